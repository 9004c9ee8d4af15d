"""What is known about a set, written beside it: dataset.json, README.md, figures and a Croissant record.

Measured on an audit sample of the images as they are on disk. `readme.py` says it again in words, rounded further.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..embeddings import check_embeddings
from ..errors import DataError, GroupError, ShapeError
from ..groups import Groups
from ..identities import novelty
from ..images import check_range
from ..label_noise import Confusion, true_shares
from ..models.facenet import faces_found
from ..models.pretrained import resize
from ..models.protocols import Embedder, Labeller
from ..reports import GroupShares, group_shares, wilson_interval
from .croissant import croissant_record, hash_file, read_sidecars
from .disk import disk_errors, write_file
from .plan import DatasetPlan
from .readme import FIGURE_GROUPS, Section, readme, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT, VERSION = "fairface_synth.dataset", 1
SHEET = ("dataset.json", "README.md", "croissant.json")  # files of a described set
LICENCE_FIELDS = (
    "name",
    "url",
    "generator licence",
    "labeller licence",
    "training data",
    "creator",
    "citation",
    "published",
    "home page",
)
LIMITS = (
    "Groups are labels of machines, or what the generator was aimed at: perceived gender, apparent skin tone, apparent "
    "age. They say nothing about how a person would describe themselves, and no human being has checked them.",
    "Shares by a labeller are shares as labelled. Its errors differ between groups, so a set that is balanced as "
    "labelled need not be balanced.",
    "Faces that were selected by a labeller agree with it whatever they show. Only another labeller can tell.",
    "Synthetic faces may resemble people whose photographs the generator was trained on. A gate on cosines finds what "
    "its embedder sees at its threshold, nothing else.",
    "Identities are new to each other at the stated false match rate of one embedder; a person, or another embedder, "
    "may take two of them for one.",
    "Images made again from their latents are the same bytes on the same device and software. On others the last bits "
    "differ; the stored latents are the truth.",
)
_BESIDE_SHARDS = (
    "plan.json",
    "parts.json",
    "identities.parquet",
    "latents.npy",
    "embeddings.npy",
    "gate.json",
    "train.rec",
    "train.idx",
    "property",
)
_STYLE: Any = ["default", {"text.parse_math": False}]  # whatever the user's is; names of groups may hold dollars
_PACKAGES = ("fairface_synth", "torch", "torchvision", "pillow", "numpy", "pyarrow", "matplotlib")
_FIGURES = ("faces", "shares", "nearest", "same_person")
_VARIED_IDENTITIES, _VARIED_PLACES = 200, 8
_GRID_FACES, _GRID_SIDE = 10, 128


@torch.no_grad()
def write_datasheet(
    root: Path,
    plan: DatasetPlan,
    *,
    groups: Groups,
    fingerprint: Mapping[str, str],
    describe: Mapping[str, Any],
    images: Callable[[Sequence[int]], Tensor],
    labeller: Labeller | None = None,
    judge: Labeller | None = None,
    detector: Callable[[Tensor], Any] | None = None,
    embedder: Embedder | None = None,
    min_confidence: float = 0.6,
    confusion: Confusion | None = None,
    reference: Tensor | None = None,
    licence: Mapping[str, str] | None = None,
    command: str | None = None,
    audit: int = 2000,
) -> None:
    """Measure a finished set and write dataset.json, README.md, croissant.json and figures/*.png into its folder.

    Every file is replaced as a whole; dataset.json is the last. Equal inputs give equal bytes. Memory does not grow
    with the set beyond 16 bytes an identity.

    Args:
        root: the set's folder; all its shards are done.
        plan: of the set, resolved to the names of `groups`.
        groups: what the labeller's probabilities are turned into.
        fingerprint: hashes of the parts that made the set: {"generator": …, "labeller": …}.
        describe: plain facts about them, printed as they are.
        images: image numbers (at most `plan.forward_batch`) → [n, 3, H, W] float in [-1, 1], decoded from what is on
            disk, on the models' device.
        labeller: the one that the set was made with.
        judge: another one, which had no part in making the set.
        detector: finds faces; gives `Detections`, bool [n] or probabilities [n].
        embedder: the identity gate's.
        min_confidence: below it a label is "unsure"; in [0, 1].
        confusion: of the labeller at this `min_confidence`, measured elsewhere on faces whose truth is known.
        reference: embeddings of the generator's training faces by the same embedder, unit vectors [m, e].
        licence: {"name": …, "url": …, …}, see `LICENCE_FIELDS`; others are printed too. What is missing is written as
            "not stated".
        command: the command that made the set.
        audit: identities to measure, spread evenly over every group; all if there are no more.

    Raises:
        DataError: a set that is not finished or of another plan, a file that cannot be read or written, arguments
            out of range.
        GroupError, ShapeError: models that do not fit the groups; images or embeddings of the wrong shape.
    """
    root = Path(root)
    check_datasheet(
        groups,
        describe=describe,
        labeller=labeller,
        judge=judge,
        confusion=confusion,
        reference=reference,
        licence=licence,
        min_confidence=min_confidence,
        audit=audit,
    )
    disk = _read_disk(root, plan)
    sample = _Sample(plan, groups, _spread(plan.order, audit))
    faces = _measure_faces(sample, images, (labeller, judge), detector, embedder, min_confidence)
    labelled, judged = faces.labels
    shares = {
        "aimed": {name: {"identities": n, "images": n * plan.images_per_identity} for name, n in plan.quota.items()},
        "labeller": _labels(sample, labelled, "labeller", _SELECTED if plan.verify else None),
        "judge": _labels(sample, judged, "judge", None),
        "true": _true_shares(sample, labelled, confusion),
    }
    vectors = faces.vectors if disk.embeddings is None else torch.from_numpy(disk.embeddings[sample.identities])
    variations = _variations(sample, faces.vectors, embedder, images, disk.threshold)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan.to_dict(),
        "plan digest": plan.digest,
        "groups": {attribute: list(values) for attribute, values in groups.attributes.items()},
        "counts": {"identities": plan.identities, "images": plan.images, "shards": plan.shards, "bytes": disk.bytes},
        "fingerprint": dict(fingerprint),
        "describe": dict(describe),
        "audit": {"identities": len(sample.identities), "of": plan.identities, "min_confidence": min_confidence},
        "shares": shares,
        "faces found": _found(sample, faces.found),
        "identity": _identity(sample, disk, vectors, faces.vectors),
        "same person": variations.section,
        "leakage": _leakage(sample, vectors, reference, disk),
        "licence": {field: (licence or {}).get(field, "not stated") for field in (*LICENCE_FIELDS, *(licence or {}))},
        "limits": list(LIMITS),
        "versions": {**{name: version(name) for name in _PACKAGES}, "python": platform.python_version()},
        "command": command if command is not None else "not stated",
        "files": disk.files,
    }
    figures = _figures(sample, faces, disk, variations)
    croissant = croissant_record(
        root, plan, description=summary(record), licence=licence, limits=LIMITS, files=disk.files
    )
    _save_figures(figures, root)
    _write(root / "croissant.json", _json(croissant))
    _write(root / "README.md", readme(record, plan, groups, list(figures)))
    _write(root / "dataset.json", _json(record))


def check_datasheet(
    groups: Groups,
    *,
    describe: Mapping[str, Any] | None = None,
    labeller: Labeller | None = None,
    judge: Labeller | None = None,
    confusion: Confusion | None = None,
    reference: Tensor | None = None,
    licence: Mapping[str, str] | None = None,
    min_confidence: float = 0.6,
    audit: int = 2000,
) -> None:
    """Refuse what `write_datasheet` would refuse, before a set is made rather than after.

    Raises:
        DataError, GroupError, ShapeError: see `write_datasheet`.
    """
    if type(audit) is not int or audit < 1:
        raise DataError("audit is a number of identities", expected="a whole number ≥ 1", got=audit)
    if not 0 <= min_confidence <= 1:
        raise DataError("min_confidence is a probability", expected="0 … 1", got=min_confidence)
    for name, model in (("labeller", labeller), ("judge", judge)):
        known = {} if model is None else model.attributes
        if model is not None and any(tuple(known.get(a, ())) != v for a, v in groups.attributes.items()):
            raise GroupError(
                f"the {name} does not know these groups",
                expected=dict(groups.attributes),
                got=dict(known),
                fix="give one with the same attributes and values, in the same order; or none",
            )
    if confusion is not None and confusion.groups != groups:
        raise GroupError("the confusion is over other groups", expected=groups, got=confusion.groups)
    if reference is not None and not len(check_embeddings(reference, "reference")):
        raise DataError(
            "the reference is empty", expected="embeddings [m, e] of the training faces, m ≥ 1", got="m = 0"
        )
    if licence is not None:
        _check_licence(licence)
    try:
        json.dumps(dict(describe or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError("describe holds what json cannot", expected="text, numbers, lists", got=error) from error


def _check_licence(licence: Mapping[str, str]) -> None:
    wrong = [k for k, v in licence.items() if not (isinstance(k, str) and isinstance(v, str) and v.strip())]
    if wrong:
        raise DataError(
            "licence fields are text", expected='{"name": "CC-BY-4.0", …}', got={k: licence[k] for k in wrong}
        )
    for field in ("url", "home page"):
        if "://" not in licence.get(field, "://"):
            raise DataError(f"licence[{field!r}] is no address", expected="https://…", got=licence[field])
    try:
        datetime.date.fromisoformat(licence.get("published", "2000-01-01"))
    except ValueError as error:
        raise DataError("published is no date", expected="YYYY-MM-DD", got=licence["published"]) from error


# --- what is on disk ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Disk:
    """The finished set's own records; embeddings are a memory map."""

    gate: Section
    nearest: np.ndarray  # float [N], NaN where not known
    embeddings: np.ndarray | None
    files: dict[str, dict[str, Any]]
    bytes: int

    @property
    def threshold(self) -> float | None:
        value = self.gate.get("threshold")
        return None if value is None else float(value)


def _read_disk(root: Path, plan: DatasetPlan) -> _Disk:
    stored = _read_json(root / "plan.json")
    if DatasetPlan.from_dict(stored).digest != plan.digest:
        raise DataError(f"{root} holds the set of another plan", expected=plan.to_dict(), got=stored)
    gate = _read_json(root / "gate.json")
    files = {name: hash_file(root / name) for name in _BESIDE_SHARDS if (root / name).exists()}
    missing = [name for name in ("parts.json", "identities.parquet", "latents.npy") if name not in files]
    if missing:
        raise DataError(f"{root} is not finished", expected=missing[0], got="no such file", fix="run the export again")
    shards = 0
    for sidecar in read_sidecars(root, plan):
        # Shards' records that were joined into train.rec are counted there. A pattern stands for an identity's folders.
        shards += sum(f["bytes"] for name, f in sidecar["files"].items() if "*" in name or (root / name).exists())
    nearest = _read_nearest(root / "identities.parquet", plan)
    return _Disk(gate, nearest, _read_embeddings(root / "embeddings.npy", plan), files, shards)


def _read_json(path: Path) -> Section:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "run the export again: it makes what is missing"
        raise DataError(f"cannot read {path}", expected="a file of a finished set", got=error, fix=fix) from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged", expected="a json object", got=type(values).__name__)
    return values


def _read_nearest(path: Path, plan: DatasetPlan) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        column = parquet.read_table(path, columns=["nearest"])["nearest"]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"cannot read {path}", expected="a column `nearest`", got=error) from error
    if len(column) != plan.identities:
        raise DataError(f"{path} is of another set", expected=f"{plan.identities} identities", got=len(column))
    return column.cast(pa.float64()).to_numpy()


def _read_embeddings(path: Path, plan: DatasetPlan) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        embeddings = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}", expected="float32 [N, e]", got=error) from error
    if embeddings.ndim != 2 or len(embeddings) != plan.identities or embeddings.dtype != np.float32:
        expected, got = f"float32 [{plan.identities}, e]", f"{embeddings.dtype} {list(embeddings.shape)}"
        raise DataError(f"{path} is of another set", expected=expected, got=got)
    return embeddings


# --- the audit sample ---------------------------------------------------------------------------------------------


def _spread(group: np.ndarray, wanted: int) -> np.ndarray:
    """Positions of at most `wanted` members, rising: every group in proportion, evenly over its members.

    Groups take turns in a set, so that every other identity, say, would all be of one group.
    """
    n, m = len(group), min(wanted, len(group))
    places = (2 * np.arange(m) + 1) * n // (2 * m)
    return np.sort(np.argsort(group, kind="stable")[places])


class _Sample:
    """The audited identities, int64 [n], rising, and the groups they were aimed at."""

    def __init__(self, plan: DatasetPlan, groups: Groups, identities: np.ndarray) -> None:
        self.plan, self.groups, self.identities = plan, groups, identities
        self.names = list(plan.quota)
        self.turn = plan.order[identities]  # index into the quota
        self.aimed = torch.tensor([groups.id(name) for name in self.names])[torch.from_numpy(self.turn)]

    def members(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each group of the quota and which of the sample are of it, bool [n]; groups without any are left out."""
        for i, name in enumerate(self.names):
            if (self.turn == i).any():
                yield name, self.turn == i


@dataclass(frozen=True)
class _Faces:
    """What the models say of the sample's faces."""

    labels: tuple[Tensor | None, Tensor | None]  # group ids [n], -1 unsure: labeller's, judge's
    found: Tensor | None  # bool [n]
    vectors: Tensor | None  # [n, e]
    grid: Tensor  # a few faces, small
    grid_ids: Tensor


def _measure_faces(
    sample: _Sample,
    images: Callable[[Sequence[int]], Tensor],
    labellers: tuple[Labeller | None, Labeller | None],
    detector: Callable[[Tensor], Any] | None,
    embedder: Embedder | None,
    min_confidence: float,
) -> _Faces:
    """One pass over the faces, a batch in memory at a time."""
    labels: tuple[list[Tensor], list[Tensor]] = ([], [])
    found, vectors, grid, grid_ids = list[Tensor](), list[Tensor](), list[Tensor](), list[int]()
    room = dict.fromkeys(range(min(FIGURE_GROUPS, len(sample.names))), _GRID_FACES)
    done = 0
    for batch in _batches(sample.identities * sample.plan.images_per_identity, sample.plan.forward_batch, images):
        for model, into in zip(labellers, labels, strict=True):
            if model is not None:
                into.append(sample.groups.assign(model(batch), min_confidence).cpu())
        if detector is not None:
            found.append(faces_found(detector(batch)).cpu())
        if embedder is not None:
            vectors.append(check_embeddings(embedder(batch), "what the embedder gave").cpu().float())
        for i in range(len(batch)):
            turn = int(sample.turn[done + i])
            if room.get(turn):
                room[turn] -= 1
                grid.append(resize(batch[i : i + 1].float(), _thumbnail(batch)).cpu())
                grid_ids.append(int(sample.aimed[done + i]))
        done += len(batch)
    first, second = (torch.cat(parts) if parts else None for parts in labels)
    return _Faces(
        labels=(first, second),
        found=torch.cat(found) if found else None,
        vectors=torch.cat(vectors) if vectors else None,
        grid=torch.cat(grid),
        grid_ids=torch.tensor(grid_ids),
    )


def _batches(numbers: np.ndarray, size: int, images: Callable[[Sequence[int]], Tensor]) -> Iterator[Tensor]:
    for i in range(0, len(numbers), size):
        wanted = numbers[i : i + size].tolist()
        batch = images(wanted)
        if batch.ndim != 4 or batch.shape[:2] != (len(wanted), 3):
            raise ShapeError("these are not the images asked for", expected=[len(wanted), 3, "H", "W"], got=batch.shape)
        check_range(batch)
        yield batch


def _thumbnail(batch: Tensor) -> tuple[int, int]:
    shrink = min(1.0, _GRID_SIDE / max(batch.shape[-2:]))
    return round(batch.shape[-2] * shrink), round(batch.shape[-1] * shrink)


# --- sections of dataset.json -------------------------------------------------------------------------------------

_SELECTED = (
    "This labeller selected the faces (verify): that it agrees with the aim proves nothing. The judge's counts do."
)
_PER_IDENTITY = (
    "Wilson's interval with identities as the sample, their shares being what is averaged: at least as wide as the "
    "data ask for, since a share varies by p(1 − p) at most"
)


def _absent(why: str) -> Section:
    return {"measured": False, "why": why}


def _share(count: float, total: int) -> Section:
    """A share with its Wilson interval; `count` may be a sum of shares."""
    low, high = wilson_interval(torch.tensor(float(count)), total)
    return {
        "share": _rounded(count / total) if total else None,
        "low": _rounded(float(low)),
        "high": _rounded(float(high)),
    }


def _counted(hits: np.ndarray) -> Section:
    return {"count": int(hits.sum()), "total": len(hits), **_share(int(hits.sum()), len(hits))}


def _rounded(x: float) -> float | None:
    """Four significant digits: below them, threads and libraries differ."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


def _distribution(values: np.ndarray) -> Section:
    marks = {"lowest": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "highest": 1.0}
    return {"n": len(values), **{k: _rounded(float(np.quantile(values, q))) for k, q in marks.items()}}


def _labels(sample: _Sample, ids: Tensor | None, who: str, note: str | None) -> Section:
    """Shares as labelled, and what the faces aimed at each group were labelled as."""
    if ids is None:
        return _absent(f"no {who} was given")
    shares, names = group_shares(sample.groups, ids), sample.groups.names
    columns = [*names, "unsure"]
    rows, as_aimed = [], {"all": _counted((ids == sample.aimed).numpy())}
    for name, mine in sample.members():
        own = ids.numpy()[mine]
        rows.append(np.bincount(np.where(own < 0, len(names), own), minlength=len(columns)).tolist())
        as_aimed[name] = _counted(own == sample.groups.id(name))
    return {
        "measured": True,
        "total": shares.total,
        "unsure": shares.unsure,
        "groups": {name: {"count": int(shares.counts[g]), **_of(shares, g)} for g, name in enumerate(names)},
        "labelled as aimed": as_aimed,
        "aimed × labelled": {"rows": [name for name, _ in sample.members()], "columns": columns, "counts": rows},
        "note": note,
    }


def _of(shares: GroupShares | Any, g: int) -> Section:
    """A group's row of `GroupShares` or `TrueShares`."""
    columns = {"share": shares.shares, "low": shares.low, "high": shares.high}
    return {name: _rounded(float(column[g])) for name, column in columns.items()}


def _true_shares(sample: _Sample, ids: Tensor | None, confusion: Confusion | None) -> Section:
    if confusion is None:
        return _absent("no confusion matrix of the labeller was given")
    table = {
        "counts": {attribute: counts.tolist() for attribute, counts in confusion.counts.items()},
        "gate": None if confusion.gate is None else confusion.gate.tolist(),
        "exact": confusion.exact,
    }
    if ids is None:
        return {**_absent("no labeller was given"), "confusion": table}
    if sample.plan.verify:
        why = "the labeller selected these faces (verify), so its counts are the quota, whatever the faces are"
        return {**_absent(why), "confusion": table}
    rng = torch.Generator().manual_seed(sample.plan.seed % 2**63)
    try:
        true = true_shares(confusion.to("cpu"), sample.groups.count(ids), rng=rng)
    except DataError as error:
        return {**_absent(f"refused: {str(error).splitlines()[0]}"), "confusion": table}
    shares = {name: _of(true, g) for g, name in enumerate(sample.groups.names)}
    how = {"method": true.method, "condition": _rounded(float(true.condition)), "error": _rounded(float(true.error))}
    return {"measured": True, "groups": shares, **how, "confusion": table}


def _found(sample: _Sample, found: Tensor | None) -> Section:
    if found is None:
        return _absent("no detector was given")
    each = {name: _counted(found.numpy()[mine]) for name, mine in sample.members()}
    return {"measured": True, **_counted(found.numpy()), "groups": each}


def _identity(sample: _Sample, disk: _Disk, vectors: Tensor | None, stored: Tensor | None) -> Section:
    """What the gate counted, how close identities are, and whether the sample confirms it."""
    known = disk.nearest[np.isfinite(disk.nearest)]
    nearest = _distribution(known) if len(known) else None
    pairs = _pairs(vectors, disk)
    agreement: Section = _absent("needs an embedder and stored embeddings")
    if disk.embeddings is not None and stored is not None and vectors is not None:
        if stored.shape != vectors.shape:
            raise DataError(
                "this is not the embedder of the set",
                expected=f"vectors of length {vectors.shape[1]}, as in embeddings.npy",
                got=stored.shape[1],
            )
        agreement = {"measured": True, **_distribution((stored * vectors).sum(1).double().numpy())}
    return {
        "gate": disk.gate,
        "nearest earlier identity": {"measured": True, **nearest}
        if nearest
        else _absent("identities were not compared"),
        "matching pairs": pairs,
        "stored images against stored embeddings": agreement,
    }


def _pairs(vectors: Tensor | None, disk: _Disk) -> Section:
    if vectors is None:
        return _absent("no embedder was given")
    if disk.threshold is None:
        return _absent("the plan has no false match rate, so there is no threshold")
    matched, n = 0, len(vectors)
    for i in range(0, n, 1024):
        match = vectors[i : i + 1024] @ vectors[i:].T >= disk.threshold
        matched += int(match.triu(1).sum())
    source = "the generator's faces, embeddings.npy" if disk.embeddings is not None else "the stored images"
    return {"measured": True, "embeddings": source, "matched": matched, "pairs": n * (n - 1) // 2}


@dataclass(frozen=True)
class _Variations:
    section: Section
    cosines: np.ndarray | None = None  # [identities, places]


def _variations(
    sample: _Sample,
    vectors: Tensor | None,
    embedder: Embedder | None,
    images: Callable[[Sequence[int]], Tensor],
    threshold: float | None,
) -> _Variations:
    """Do the variations of an identity match its face, as stored?"""
    k = sample.plan.images_per_identity
    if k == 1:
        return _Variations(_absent("there is one image an identity"))
    if embedder is None or vectors is None:
        return _Variations(_absent("no embedder was given"))
    rows = _spread(sample.turn, _VARIED_IDENTITIES)
    places = np.unique(np.linspace(1, k - 1, min(_VARIED_PLACES, k - 1)).round().astype(np.int64))
    numbers = (sample.identities[rows, None] * k + places).ravel()
    varied = [embedder(batch).cpu().float() for batch in _batches(numbers, sample.plan.forward_batch, images)]
    own = vectors[torch.from_numpy(rows)].repeat_interleave(len(places), dim=0)
    cosines = (torch.cat(varied) * own).sum(1).double().numpy().reshape(len(rows), len(places))
    section: Section = {
        "measured": True,
        "identities": len(rows),
        "images": cosines.size,
        "places": places.tolist(),
        "cosine": _distribution(cosines.ravel()),
        "threshold": threshold,
    }
    if threshold is None:
        return _Variations({**section, "why no share": "the plan has no false match rate"}, cosines)
    means, turn = (cosines >= threshold).mean(1), sample.turn[rows]
    section |= {"interval": _PER_IDENTITY, "all": _over_identities(means)}
    section["groups"] = {n: _over_identities(means[turn == i]) for i, n in enumerate(sample.names) if (turn == i).any()}
    return _Variations(section, cosines)


def _over_identities(means: np.ndarray) -> Section:
    return {"identities": len(means), **_share(float(means.sum()), len(means))}


def _leakage(sample: _Sample, vectors: Tensor | None, reference: Tensor | None, disk: _Disk) -> Section:
    """How near the faces come to the generator's training faces."""
    if reference is None:
        return _absent("no embeddings of the generator's training faces were given (reference=)")
    if vectors is None:
        return _absent("no embedder was given")
    similarity = novelty(vectors, reference.detach().cpu().to(vectors)).similarity.double().numpy()
    section: Section = {"measured": True, "references": len(reference), "cosine": _distribution(similarity)}
    if disk.threshold is None:
        return {**section, "why no share": "the plan has no false match rate, so there is no threshold"}
    near, fmr = similarity >= disk.threshold, disk.gate.get("fmr")
    return {
        **section,
        "threshold": disk.threshold,
        "gate references": disk.gate.get("reference", 0),
        "all": _counted(near),
        "groups": {name: _counted(near[mine]) for name, mine in sample.members()},
        "by chance": None if fmr is None else _rounded(-math.expm1(len(reference) * math.log1p(-float(fmr)))),
    }


# --- figures ------------------------------------------------------------------------------------------------------


def _figures(sample: _Sample, faces: _Faces, disk: _Disk, variations: _Variations) -> dict[str, Figure]:
    """{name: figure}."""
    from matplotlib import style

    from ..plotting import face_grid, share_bars

    figures: dict[str, Figure] = {}
    with style.context(_STYLE):
        figures["faces"] = face_grid(faces.grid, faces.grid_ids, sample.groups, columns=_GRID_FACES)
        for groups, ids in _shown_groups(sample.groups, faces.labels):
            named = {
                who: group_shares(groups, i) for who, i in zip(("labeller", "judge"), ids, strict=True) if i is not None
            }
            if named:
                name = "shares" if groups == sample.groups else f"shares_{next(iter(groups.attributes))}"
                figures[name] = share_bars(named, title=f"as labelled, {len(sample.identities):,} faces")
        known = disk.nearest[np.isfinite(disk.nearest)]
        if len(known):
            xlabel = "largest cosine to an identity accepted earlier"
            figures["nearest"] = _histogram(known, disk.threshold, xlabel, "identities")
        if variations.cosines is not None:
            xlabel = "cosine of a variation to its identity's face"
            figures["same_person"] = _histogram(variations.cosines.ravel(), disk.threshold, xlabel, "images")
    return figures


def _shown_groups(
    groups: Groups, labels: tuple[Tensor | None, ...]
) -> Iterator[tuple[Groups, tuple[Tensor | None, ...]]]:
    """The groups, or each attribute by itself where there are too many for one figure."""
    if len(groups) <= FIGURE_GROUPS:
        yield groups, labels
        return
    for attribute, values in groups.attributes.items():
        yield (
            Groups({attribute: values}),
            tuple(None if ids is None else groups.value_ids(ids, attribute) for ids in labels),
        )


def _histogram(values: np.ndarray, threshold: float | None, xlabel: str, ylabel: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from ..plotting import COLOURS

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    ax = figure.subplots()
    ends = [*values, *([] if threshold is None else [threshold])]
    low, high = min(ends) - 0.01, max(ends) + 0.01
    ax.hist(values, bins=50, range=(low, high), color=COLOURS[0])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if threshold is not None:
        ax.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.3f}")
        ax.legend(frameon=False, fontsize=8)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


# --- writing ------------------------------------------------------------------------------------------------------


def _save_figures(figures: Mapping[str, Figure], root: Path) -> None:
    from matplotlib import style

    folder = root / "figures"
    for name, figure in figures.items():
        picture = io.BytesIO()
        with style.context(_STYLE):
            # Without matplotlib's version in it, the picture alone decides the bytes.
            figure.savefig(picture, format="png", dpi=100, metadata={"Software": None})
        write_file(folder / f"{name}.png", picture.getvalue())
    with disk_errors(folder):
        for old in folder.glob("*.png"):  # of a datasheet written earlier, with other models
            if old.stem not in figures and old.stem.startswith(_FIGURES):
                old.unlink()


def _write(path: Path, text: str) -> None:
    write_file(path, text.encode("utf-8"))


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
