"""`Pipeline` chains the library's functions for the usual case. It holds no algorithm: each method is a few calls."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .artifacts import Artifact, atomic_path, sync_folder
from .embeddings import embed
from .errors import DataError, GroupError
from .evolution import Archive, evolve
from .fingerprints import fingerprint_generator, fingerprint_model
from .fitness import face_fitness
from .gaussian_fitting import fit_gaussians
from .gaussians import GroupGaussians, compose, sample_gaussians
from .groups import Groups, balanced_quota
from .identities import unique
from .images import save_images
from .label_noise import CorrectedQuota
from .latents import (
    LatentBank,
    check_attributes,
    check_models,
    label_latents,
    normals,
    to_layers,
    truncate,
)
from .models.facenet import faces_found
from .models.protocols import Embedder, Generator, Labeller
from .moments import Covariance
from .people import natural_threshold
from .reports import GroupShares, group_shares, markdown_table
from .screening import NATURAL_STREAM, Accepted, Screen, fit_screen, reject, screen
from .strategies import Strategy, genetic
from .subspaces import Method, Subspace, fit_subspace, lift, project
from .thresholds import Threshold
from .variations import Axis, Detector, Variations, vary

Sampling = Literal["gaussian", "screen", "reject", "evolve"]
_FORMAT, _VERSION = "fairface_synth.pipeline", 1
_PARTS: Mapping[str, type[Artifact]] = {
    "bank": LatentBank,
    "subspace": Subspace,
    "gaussians": GroupGaussians,
    "screen": Screen,
}


@dataclass(frozen=True, repr=False)
class Sample:
    """Faces of chosen groups, sorted by group.

    Attributes:
        images: [n, 3, H, W] in [-1, 1].
        latents: w that made them.
        group_ids: the groups they were made for [n]; a judge may disagree.
        index: with `seed` and the group, makes the latent again. "gaussian": `pipeline.latents(group_ids, index,
            seed)`; "screen" and "reject": `draw_latents(generator, seed, index, 1, stream=screening.NATURAL_STREAM)`;
            "evolve": the id in `archive`.
        groups: the groups.
        seed, truncation_psi: of the draw.
        synthesized: images made for each group [G], the rejected ones included. Natural draws are aimed at no group:
            for "reject" each group's number is the total.
        short: groups that could not be filled within the budget: {id: missing}.
        verified: whether the labeller (and detector) confirmed every face. If not, `group_ids` say what the faces were
            aimed at, and a good part of them will look otherwise.
        method: how they were made.
        archive: of "evolve": lineages, probabilities, distances. To go on from one, use `evolve` itself.
    """

    images: Tensor
    latents: Tensor
    group_ids: Tensor
    index: Tensor
    groups: Groups
    seed: int
    truncation_psi: float
    synthesized: Tensor
    short: Mapping[int, int]
    verified: bool
    method: str = "gaussian"
    archive: Archive | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: int | slice | Tensor | str) -> Sample:
        """A sample of some rows, or of a group by its name; `synthesized` and `short` stay those of the whole."""
        if isinstance(rows, str):
            rows = torch.isin(self.group_ids, torch.tensor(self.groups.parse(rows), device=self.group_ids.device))
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"row {rows} of a sample of {len(self)}")
            rows = slice(rows % len(self), rows % len(self) + 1)
        names = ("images", "latents", "group_ids", "index")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def __repr__(self) -> str:
        missing = ", ".join(f"{self.groups.name(g)}: {k}" for g, k in self.short.items())
        short = f", missing {missing}" if missing else ""
        return (
            f"Sample(n={len(self)}, groups={len(self.group_ids.unique())}, {self.method}, seed={self.seed}, "
            f"ψ={self.truncation_psi}, {'verified' if self.verified else 'aimed at, not verified'}{short})"
        )

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write `folder/<group>/<index>.png` and `folder/latents.safetensors`; returns the folder.

        A folder that holds a set already is refused, unless `overwrite` says to remove that set's images first.

        The latents' file holds latents, group_ids and index, and in its header the group names, seed and ψ: what
        it takes to make every face again.
        """
        folder = Path(folder)
        old = [path for name in self.groups.names for path in (folder / name).glob("*.png")]
        if (folder / "latents.safetensors").exists() or old:
            if not overwrite:
                raise DataError(
                    f"{folder} holds a set already", expected="an empty folder", fix="another folder, or overwrite=True"
                )
            for path in old:
                path.unlink()
        pairs = zip(self.group_ids.tolist(), self.index.tolist(), strict=True)
        save_images(self.images, folder, [f"{self.groups.name(g)}/{i:06d}" for g, i in pairs])
        tensors = {"latents": self.latents, "group_ids": self.group_ids, "index": self.index}
        header = {
            "groups": json.dumps({a: list(v) for a, v in self.groups.attributes.items()}),
            "seed": str(self.seed),
            "truncation_psi": str(self.truncation_psi),
            "verified": str(self.verified),
            "method": self.method,
        }
        with atomic_path(folder / "latents.safetensors") as path:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path, header)
        return folder


@dataclass(frozen=True)
class PipelineReport:
    """What the pipeline was fitted on: print it for a table."""

    natural: GroupShares
    fitted_on: Mapping[str, float]
    composed: tuple[str, ...]
    truncation_psi: float
    min_confidence: float

    def __str__(self) -> str:
        sure = max(1, int(self.natural.counts.sum()))
        rows = [
            [
                name,
                f"{row['count'] / sure:.1%}",
                f"{row['share']:.1%} [{row['low']:.1%}, {row['high']:.1%}]",
                f"{self.fitted_on[name]:.0f}",
            ]
            for name, row in self.natural.to_dict().items()
        ]
        header = ["group", "share of the labelled", "share of all [95 %]", "latents fitted on"]
        unsure = self.natural.unsure / max(1, self.natural.total)
        notes = [
            f"{self.natural.total} latents, ψ = {self.truncation_psi}; {unsure:.1%} unsure (confidence below "
            f"{self.min_confidence}). Shares are as labelled: the labeller's own errors are not corrected."
        ]
        if self.composed:
            notes.append("Too rare to fit, composed from the other groups: " + ", ".join(self.composed) + ".")
        table = markdown_table(header, rows)
        return "\n".join([table, "", *notes])


class Pipeline:
    """From a biased generator to faces of the groups you choose.

    >>> pipeline = Pipeline.fit(world.generator, world.labeller, attributes=["gender", "skin_tone"])
    >>> sample = pipeline.sample("light", n=64, seed=1)

    Attributes are the fitted parts, for use with the library's functions: generator, labeller, groups, bank,
    subspace, gaussians, detector, min_confidence, embedder, and `screen`, which is fitted when first used.
    """

    def __init__(
        self,
        generator: Generator,
        labeller: Labeller,
        groups: Groups,
        bank: LatentBank,
        subspace: Subspace,
        gaussians: GroupGaussians,
        detector: Detector | None = None,
        min_confidence: float = 0.6,
        embedder: Embedder | None = None,
    ) -> None:
        check_models(generator, labeller)
        check_attributes(groups, labeller.attributes)
        if detector is not None and not callable(detector):
            expected = "ffs.load_detector(), or a function: images → bool [n] or probabilities [n]"
            raise DataError("this is no detector", expected=expected, got=type(detector).__name__)
        if embedder is not None and not (callable(embedder) and hasattr(embedder, "dim")):
            raise DataError(
                "this is no embedder",
                expected="a model that gives unit vectors [n, dim] of images, and says its dim",
                got=f"a {type(embedder).__name__} without dim" if callable(embedder) else type(embedder).__name__,
                fix="ffs.wrap_embedder(function, dim=512) around a function or module of yours; or ffs.load_embedder()",
            )
        self.generator, self.labeller, self.groups, self.bank = generator, labeller, groups, bank
        self.subspace, self.gaussians = subspace, gaussians
        self.detector, self.min_confidence, self.embedder = detector, min_confidence, embedder
        self._screen: Screen | None = None
        self._thresholds: dict[tuple[float, int | None, int], Threshold] = {}

    def __repr__(self) -> str:
        return f"Pipeline({self.groups}, {self.bank}, subspace={self.subspace.method}[{self.subspace.dim}])"

    @classmethod
    def fit(
        cls,
        generator: Generator,
        labeller: Labeller,
        *,
        attributes: str | Sequence[str] | None = None,
        bank: LatentBank | None = None,
        n: int = 20_000,
        seed: int = 0,
        truncation_psi: float = 1.0,
        c: Tensor | None = None,
        method: Method = "lda",
        covariance: Covariance = "ledoit_wolf",
        components: int = 1,
        min_confidence: float = 0.6,
        min_samples: int = 10,
        detector: Detector | None = None,
        detect: bool = False,
        embedder: Embedder | None = None,
        batch_size: int = 256,
        progress: bool = True,
    ) -> Pipeline:
        """Label latents, fit a subspace, fit a Gaussian to every group.

        Groups with fewer than `min_samples` labelled latents are composed from the others (`compose`), and listed in
        `report()`.

        Args:
            generator, labeller: see `fairface_synth.models.protocols`.
            attributes: which of the labeller's attributes make the groups; all by default.
            bank: latents labelled earlier, instead of drawing n of them from `seed`.
            n, seed, truncation_psi, c, batch_size, progress: of `label_latents`.
            method: of `fit_subspace`.
            covariance, components: of `fit_gaussians`.
            min_confidence: labels below it, on any attribute, are "unsure": counted, never forced into a group.
            min_samples: with fewer labelled latents a group's own Gaussian would be noise.
            detector: what `load_detector` gives, or any images → bool or probability [n]; for `assign` and
                `sample(verify=True)`.
            detect: also run the detector over the bank, so that the screen learns which latents hold a face. MTCNN is
                slower than small generators.
            embedder: for `unique`, `vary` and `sample(threshold=…)`.
        """
        if detect and (detector is None or bank is not None):
            raise DataError(
                "detect=True runs the detector while labelling",
                expected="a detector, and no bank",
                got=f"detector={detector}, {'a' if bank is not None else 'no'} bank",
                fix="label_latents(…, detector=detector) makes a bank with detections",
            )
        if bank is None:
            bank = label_latents(
                generator,
                labeller,
                n,
                seed,
                truncation_psi=truncation_psi,
                c=c,
                detector=detector if detect else None,
                batch_size=batch_size,
                progress=progress,
            )
        groups = bank.groups(attributes)
        ids = bank.group_ids(groups, min_confidence)
        ids = _without_rare(groups, ids, min_samples, min_confidence)
        labels = ids if method in ("lda", "pca", "identity") else _labels_by_attribute(groups, ids)
        subspace = fit_subspace(bank.latents, labels, method, groups=groups)
        coordinates = project(subspace, bank.latents)
        gaussians = fit_gaussians(
            coordinates,
            ids,
            None,
            covariance,
            components,
            names=groups,
            missing="skip" if components == 1 else "raise",
        )
        gaussians = compose(gaussians) if gaussians.absent else gaussians
        return cls(generator, labeller, groups, bank, subspace, gaussians, detector, min_confidence, embedder)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write what was fitted to a folder; returns the folder. The models themselves are not in it.

        bank, subspace and gaussians as safetensors, screen too if it was fitted already, and pipeline.json: groups,
        min_confidence, checksums, and fingerprints of the models, so that `load` can refuse others. The folder appears
        under its name when everything is on disk, never half.

        Args:
            folder: a new or empty one.
            overwrite: replace a saved pipeline; a folder with anything else in it is refused all the same.

        Raises:
            DataError: the folder holds something, or the disk does not take it.
        """
        folder = Path(folder)
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        ours = {f"{name}.safetensors" for name in _PARTS} | {"pipeline.json", "models.json"}
        if folder.is_file() or (held and not (overwrite and "pipeline.json" in held and held <= ours)):
            raise DataError(
                f"{folder} holds something already",
                expected="a new folder" + (", or a saved pipeline alone" if overwrite else ""),
                got=", ".join(sorted(held)[:5]) or "a file",
                fix="another folder" + ("" if overwrite else ", or overwrite=True to replace a saved pipeline"),
            )
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp") as name:
                new, old = Path(name, "new"), Path(name, "old")
                self._write(new)
                if held:
                    folder.replace(old)
                try:
                    new.replace(folder)
                except OSError:
                    if held:
                        old.replace(folder)
                    raise
                sync_folder(folder.parent)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"the pipeline could not be written to {folder}",
                expected="a folder on a disk with room that may be written to",
                got=error,
                fix="free some room or name another folder; nothing half-written is left under that name",
            ) from error
        return folder

    def _write(self, folder: Path) -> None:
        folder.mkdir()
        fitted = {"bank": self.bank, "subspace": self.subspace, "gaussians": self.gaussians, "screen": self._screen}
        sums = {}
        for name, part in fitted.items():
            if part is not None:
                part.save(folder / f"{name}.safetensors")
                sums[name] = _checksum(folder / f"{name}.safetensors")
        models = {"labeller": self.labeller, "embedder": self.embedder, "detector": self.detector}
        described = {
            "format": _FORMAT,
            "version": _VERSION,
            "groups": {a: list(v) for a, v in self.groups.attributes.items()},
            "min_confidence": self.min_confidence,
            "sha256": sums,
            "fingerprints": {
                "generator": fingerprint_generator(self.generator),
                **{name: _fingerprint(model, self.generator) for name, model in models.items()},
            },
            "versions": {"fairface_synth": _library_version(), "torch": torch.__version__},
        }
        with atomic_path(folder / "pipeline.json") as path:
            path.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        sync_folder(folder)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        generator: Generator,
        labeller: Labeller,
        *,
        detector: Detector | None = None,
        embedder: Embedder | None = None,
        device: torch.device | str | None = None,
    ) -> Pipeline:
        """The pipeline that `save` wrote, with the models it was fitted with: the same latents, bit for bit.

        >>> pipeline.save("pipeline")
        >>> again = Pipeline.load("pipeline", world.generator, world.labeller, embedder=world.embedder)

        Args:
            folder: of `save`.
            generator, labeller: those of the fit; others are refused, since the Gaussians would aim at nothing.
                Plain functions are compared by what they do, coarsely (`fingerprints`).
            detector, embedder: as in `fit`; any.
            device: of what was fitted; by default the generator's.

        Raises:
            DataError: no saved pipeline, a damaged one, or other models than it was fitted with.
        """
        folder = Path(folder)
        described = _read_description(folder)
        wanted = described["fingerprints"]
        given = {"generator": fingerprint_generator(generator), "labeller": _fingerprint(labeller, generator)}
        other = [name for name in given if given[name] != wanted[name]]
        if other:
            raise DataError(
                f"the pipeline in {folder} was fitted with another {' and another '.join(other)}",
                expected=", ".join(f"{name} {wanted[name]}" for name in other),
                got=", ".join(f"{name} {given[name]}" for name in other),
                fix="load the same weights in the same dtype, or fit a pipeline with these models",
            )
        device = generator.w_avg.device if device is None else device
        parts: dict[str, Any] = {}
        for name, digest in described["sha256"].items():
            path = folder / f"{name}.safetensors"
            if not path.is_file() or _checksum(path) != digest:
                raise DataError(
                    f"{path} is {'damaged' if path.is_file() else 'missing'}",
                    expected="the file that Pipeline.save wrote",
                    fix="copy the folder again, or fit again",
                )
            parts[name] = _PARTS[name].load(path, str(device))
        drawn = parts.pop("screen", None)
        pipeline = cls(
            generator,
            labeller,
            Groups(described["groups"]),
            **parts,
            detector=detector,
            min_confidence=described["min_confidence"],
            embedder=embedder,
        )
        pipeline._screen = drawn
        return pipeline

    @property
    def screen(self) -> Screen:
        """The classifier on latents behind `sample(method="screen")`, fitted on the bank when first used."""
        if self._screen is None:
            self._screen = fit_screen(self.bank, self.groups.attributes)
        return self._screen

    def latents(self, group_ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        """w aimed at the given groups; row i depends on (seed, group_ids[i], index[i]) alone.

        Args:
            group_ids, index: int64 [n].
            seed: of the draw.
            truncation_psi: pulls towards w_avg; lower values are known to worsen imbalance.
        """
        m, size = self.gaussians.dim, self.subspace.mean.numel()
        width = m + (self.gaussians.components > 1)
        noise = normals(seed, index, width + size, stream=group_ids + 1)
        coordinates = sample_gaussians(self.gaussians, group_ids, noise=noise[:, :width])
        w = lift(self.subspace, coordinates, "resample", noise=noise[:, width:])
        return truncate(w, self.generator.w_avg, truncation_psi)

    def assign(self, images: Tensor) -> Tensor:
        """Group of each image by the labeller, −1 where it is unsure or the detector finds no face."""
        ids = self.groups.assign(self.labeller(images), self.min_confidence)
        if self.detector is None:
            return ids
        rows = (ids >= 0).nonzero().squeeze(1)  # the detector is the slowest network here
        if not len(rows):
            return ids
        found = faces_found(self.detector(images[rows]))
        return ids.index_put((rows,), torch.where(found, ids[rows], -1))

    @torch.no_grad()
    def sample(
        self,
        groups: str | int | Iterable[str | int] | Mapping[str, float] | CorrectedQuota = "balanced",
        n: int = 64,
        seed: int = 0,
        truncation_psi: float = 1.0,
        *,
        method: Sampling = "gaussian",
        verify: bool = False,
        threshold: Threshold | float | None = None,
        strategy: Strategy | None = None,
        max_syntheses: int | None = None,
        batch_size: int = 256,
        progress: bool = True,
    ) -> Sample:
        """n faces, divided equally over the groups asked for.

        Args:
            groups: "balanced", a group, a partial name, a list, or {specification: share}; see `balanced_quota`; or a
                `CorrectedQuota`, which brings its own n. Groups are aimed at: without `verify`, a judge sees the group
                in 45 % of the Gaussians' faces on the bundled world.
            n: number of faces.
            seed: of the draw. Fitting and sampling with one seed are independent.
            truncation_psi: of "gaussian": a pull towards w_avg; lower values are known to worsen imbalance. The other
                methods draw with the bank's ψ.
            method:
                "gaussian": from the groups' Gaussians, lifted from the subspace.
                "screen": natural draws that a classifier on latents accepts (`fairface_synth.screen`).
                "reject": natural draws, kept where the labeller and detector confirm: the plain baseline.
                "evolve": an evolutionary search (`fairface_synth.evolve`) in Z, for what the others hardly ever reach.
                docs/rare_groups.md compares what they cost and what they lose.
            verify: keep only faces that the labeller, and the detector if there is one, confirm. Costs the rejected
                syntheses, and selects by the labeller: score such a sample by another one. "reject" and "evolve" always
                verify.
            threshold: keep only faces that are no identity seen before: cosine below this (`pipeline.threshold(fmr)`).
                Needs an embedder, and `verify` where that is a choice.
            strategy: of "evolve"; `genetic()` by default.
            max_syntheses: budget of a verified sample; 200 images per wanted face by default.
            batch_size, progress: images at a time; whether to show a bar.
        """
        if not isinstance(n, int) or n < 1 or batch_size < 1:
            raise DataError("no faces to make", expected="whole n ≥ 1, batch_size ≥ 1", got=f"n={n}, {batch_size}")
        if strategy is not None and method != "evolve":
            raise DataError("a strategy is for evolution", expected='method="evolve"', got=method)
        if method not in get_args(Sampling):
            raise DataError(f"unknown method {method!r}", expected=", ".join(get_args(Sampling)), got=method)
        if method != "gaussian" and truncation_psi != 1.0:
            raise DataError(
                f"{method!r} draws with the bank's truncation",
                expected=f"truncation_psi=1.0 here; the bank has ψ = {self.bank.truncation_psi}",
                got=truncation_psi,
                fix="label a bank with that truncation_psi, and fit the pipeline on it",
            )
        verify = verify or method in ("reject", "evolve")
        if threshold is not None and not verify:
            raise DataError("identities are compared during verification", expected="verify=True", got="verify=False")
        quota = self._quota(groups, n)
        options: dict[str, Any] = {
            "groups": self.groups,
            "embedder": None if threshold is None else self._embedder(),
            "threshold": threshold,
            "max_syntheses": max_syntheses,
            "batch_size": batch_size,
            "progress": progress,
        }
        psi = self.bank.truncation_psi
        if method == "evolve":
            return self._evolve(quota, seed, threshold, strategy or genetic(), max_syntheses, batch_size, progress)
        if method == "screen":
            check = self.assign if verify else None
            gate = self.min_confidence
            found = screen(self.generator, self.screen, quota, seed, verify=check, min_confidence=gate, **options)
            return self._as_sample(found, method, seed, psi, verify)
        if method == "reject":
            options |= {"seed": seed, "stream": NATURAL_STREAM, "truncation_psi": psi}
            found = reject(self.generator, self.assign, quota, **options)
            return self._as_sample(found, method, seed, psi, verify)

        def propose(ids: Tensor, index: Tensor) -> Tensor:
            return self.latents(ids, index, seed, truncation_psi)

        if verify:
            found = reject(self.generator, self.assign, quota, propose=propose, **options)
            return self._as_sample(found, method, seed, truncation_psi, verify)
        device = self.subspace.mean.device
        ids = torch.repeat_interleave(torch.arange(len(quota)), quota).to(device)
        index = torch.cat([torch.arange(int(q)) for q in quota]).to(device)
        w = propose(ids, index)
        images = self._synthesize(w, batch_size)
        return Sample(images, w, ids, index, self.groups, seed, truncation_psi, quota, {}, verify)

    def threshold(self, fmr: float = 1e-3, *, n: int | None = None, seed: int = 0, batch_size: int = 256) -> Threshold:
        """The cosine from which the embedder takes two faces for one person (`people.natural_threshold`).

        Args:
            fmr: false match rate.
            n: natural faces to embed; by default as many as the rate needs, 2,000 at least.
            seed, batch_size: of the draw.
        """
        known = (fmr, n, seed)
        if known not in self._thresholds:
            psi, models = self.bank.truncation_psi, (self.generator, self._embedder())
            draw: dict[str, Any] = {"n": n, "seed": seed, "truncation_psi": psi, "batch_size": batch_size}
            self._thresholds[known] = natural_threshold(*models, fmr, **draw)
        return self._thresholds[known]

    def unique(self, sample: Sample, threshold: Threshold | float | None = None, *, batch_size: int = 256) -> Sample:
        """The faces of a sample that are no identity seen earlier in it (`fairface_synth.unique`).

        Args:
            sample: of this pipeline.
            threshold: the cosine from which two faces are one identity; by default `self.threshold(1e-3)`.
            batch_size: images at a time.
        """
        threshold = self.threshold(1e-3) if threshold is None else threshold
        embeddings = embed(self._embedder(), sample.images, batch_size=batch_size, progress=False)
        return sample[unique(embeddings, threshold)]

    def vary(
        self,
        sample: Sample,
        axes: Axis | Iterable[Axis],
        *,
        threshold: Threshold | float | None = None,
        batch_size: int = 256,
    ) -> Variations:
        """Variations of every face along the axes, with their images (`fairface_synth.vary`).

        With an embedder, a variation that is no longer the same person is shortened or dropped; with a detector, also
        one in which no face is found.

        Args:
            sample: of this pipeline.
            axes: for example `published_axes(directions)`, or `Axis(direction, steps)`s.
            threshold: cosine to the unvaried face that a variation must keep; by default `self.threshold(1e-3)`.
            batch_size: images at a time.
        """
        if threshold is None and self.embedder is not None:
            threshold = self.threshold(1e-3)
        return vary(
            sample.latents,
            axes,
            generator=self.generator,
            embedder=None if threshold is None else self._embedder(),
            threshold=threshold,
            detector=self.detector,
            keep_images=True,
            batch_size=batch_size,
        )

    def _quota(self, groups: Any, n: int) -> Tensor:
        """Numbers of each group [G]; a corrected quota is taken as it is."""
        if isinstance(groups, CorrectedQuota):
            if groups.groups != self.groups:
                raise GroupError("the quota is over other groups", expected=self.groups, got=groups.groups)
            return groups.quota.cpu()
        ids = groups.tolist() if isinstance(groups, Tensor) else groups
        if isinstance(ids, list) and len(set(map(str, ids))) < len(ids):
            raise GroupError(
                "a list names groups, and each once",
                expected='["dark-female", "light"], or {name: share}',
                got=ids,
                fix=f"a quota: {{name: k for name, k in zip(pipeline.groups.names, {ids}) if k}}, with n={sum(ids)}"
                if all(isinstance(i, int) for i in ids)
                else None,
            )
        return balanced_quota(self.groups, n, groups)

    def _evolve(
        self,
        quota: Tensor,
        seed: int,
        threshold: Threshold | float | None,
        strategy: Strategy,
        max_syntheses: int | None,
        batch_size: int,
        progress: bool,
    ) -> Sample:
        fitness = face_fitness(
            self.generator,
            self.labeller,
            self.groups,
            detector=self.detector,
            embedder=None if threshold is None else self._embedder(),
            min_confidence=self.min_confidence,
            truncation_psi=self.bank.truncation_psi,
        )
        archive = evolve(
            strategy,
            fitness,
            quota,
            seed=seed,
            threshold=threshold,
            max_evaluations=max_syntheses,
            batch_size=batch_size,
            progress=progress,
        )
        w = torch.cat([fitness.w(z) for z in archive.latents.split(batch_size)]) if len(archive) else archive.latents
        return Sample(
            images=self._synthesize(w, batch_size),
            latents=w[:, 0] if self.bank.latents.ndim == 2 and w.ndim == 3 else w,
            group_ids=archive.group_ids,
            index=archive.id,
            groups=self.groups,
            seed=seed,
            truncation_psi=self.bank.truncation_psi,
            synthesized=archive.evaluations.cpu(),
            short=archive.short,
            verified=True,
            method="evolve",
            archive=archive,
        )

    def _as_sample(self, found: Accepted, method: str, seed: int, psi: float, verified: bool) -> Sample:
        return Sample(
            self._synthesize(found.latents, 1) if found.images is None else found.images,
            found.latents[:, 0] if self.bank.latents.ndim == 2 and found.latents.ndim == 3 else found.latents,
            found.group_ids,
            found.index,
            self.groups,
            seed,
            psi,
            found.synthesized,
            found.short,
            verified,
            method,
        )

    def _synthesize(self, w: Tensor, batch_size: int) -> Tensor:
        if not len(w):
            return w.new_empty(0, 3, self.generator.resolution, self.generator.resolution)
        layers = to_layers(self.generator, w)
        return torch.cat([self.generator.synthesize(chunk) for chunk in layers.split(batch_size)])

    def _embedder(self) -> Embedder:
        if self.embedder is None:
            raise DataError(
                "identities are compared by an embedder",
                expected="a pipeline with one",
                got="embedder=None",
                fix="Pipeline.fit(…, embedder=world.embedder), or set pipeline.embedder",
            )
        return self.embedder

    def report(self) -> PipelineReport:
        """Natural shares of the generator as labelled, and what each Gaussian rests on."""
        ids = self.bank.group_ids(self.groups, self.min_confidence)
        return PipelineReport(
            natural=group_shares(self.groups, ids),
            fitted_on=dict(zip(self.groups.names, self.gaussians.counts.tolist(), strict=True)),
            composed=tuple(self.groups.name(g) for g in self.gaussians.composed),
            truncation_psi=self.bank.truncation_psi,
            min_confidence=self.min_confidence,
        )


def _without_rare(groups: Groups, ids: Tensor, min_samples: int, min_confidence: float) -> Tensor:
    """Ids with −1 for members of groups that have fewer than `min_samples`."""
    if not 0 <= min_confidence <= 1:
        raise DataError("min_confidence is a probability", expected="0 … 1", got=min_confidence)
    counts = groups.count(ids)
    if int((counts >= min_samples).sum()) < min(2, len(groups)):
        unsure = float((ids < 0).double().mean())
        raise DataError(
            "too few labelled latents to fit groups",
            expected=f"at least two groups with {min_samples} latents labelled at confidence ≥ {min_confidence}",
            got=", ".join(f"{name}: {k}" for name, k in zip(groups.names, counts.tolist(), strict=True))
            + f"; {unsure:.0%} unsure",
            fix="label more latents, lower min_confidence, or use fewer attributes=[…]",
        )
    enough = torch.cat((counts >= min_samples, counts.new_zeros(1, dtype=torch.bool)))  # the last slot serves −1
    return torch.where(enough[ids], ids, -1)


def _labels_by_attribute(groups: Groups, ids: Tensor) -> dict[str, Tensor]:
    return {attribute: groups.value_ids(ids, attribute) for attribute in groups.attributes}


def _read_description(folder: Path) -> dict[str, Any]:
    """pipeline.json of a saved pipeline, checked."""
    try:
        described = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no saved pipeline",
            expected="a folder that Pipeline.save wrote",
            got=error,
            fix="pipeline.save(folder) writes one whole or not at all: was it copied in part?",
        ) from error
    known = isinstance(described, dict) and described.get("format") == _FORMAT
    if not known or described.get("version") not in range(1, _VERSION + 1):
        raise DataError(
            f"{folder}/pipeline.json is nothing that this version can read",
            expected=f"{_FORMAT}, version ≤ {_VERSION}",
            got=f"{described.get('format')}, version {described.get('version')}" if known else "something else",
            fix="update fairface_synth, or fit again",
        )
    groups, sums, models = (described.get(name) for name in ("groups", "sha256", "fingerprints"))
    if not (
        all(isinstance(x, dict) for x in (groups, sums, models))
        and isinstance(described.get("min_confidence"), (int, float))
        and set(_PARTS) - {"screen"} <= set(sums) <= set(_PARTS)
        and {"generator", "labeller"} <= set(models)
    ):
        raise DataError(
            f"{folder}/pipeline.json is damaged",
            expected="groups, min_confidence, sha256 and fingerprints as Pipeline.save wrote them",
            fix="copy the folder again, or fit again",
        )
    return described


def _fingerprint(model: Any, generator: Generator) -> str:
    return fingerprint_model(model, generator.resolution, generator.w_avg.device)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _library_version() -> str:
    from . import __version__  # at import the package is still being made

    return __version__
