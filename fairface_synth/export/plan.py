"""What a set will hold, before anything is made: a small, pure, versioned plan.

Identities are numbered 0 … N − 1 with the groups spread evenly, images 0 … N·k − 1 identity by identity. A shard is a
run of whole identities. Everything about shard k follows from the plan (and the models): never from ranks, workers or
restarts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from torch import Tensor

from ..errors import DataError, GroupError
from ..groups import Groups, balanced_quota
from ..label_noise import CorrectedQuota
from ..people import Drawing

Layout = Literal["webdataset", "folders", "rec", "parquet"]
ImageFormat = Literal["jpeg", "png", "webp"]
Subsampling = Literal["4:4:4", "4:2:2", "4:2:0"]
Crop = Literal["arcface"]

FORMAT, VERSION = "fairface_synth.plan", 1
DEFAULT_FMR = 1e-4  # of "auto", with an embedder
MAX_IMAGES = 1024  # of one identity, as in a stream
MAX_CANDIDATES = 4096  # natural draws a face: the numbers of the draws must stay below 2⁶³
EXTENSIONS: Mapping[str, str] = {"jpeg": "jpg", "png": "png", "webp": "webp"}


class Shard(NamedTuple):
    """A run of whole identities, made, written, checked and made again as one."""

    number: int
    first_identity: int
    identities: int
    first_image: int
    images: int

    @property
    def name(self) -> str:
        """File names begin with it: "00012"."""
        return f"{self.number:05d}"


@dataclass(frozen=True)
class DatasetPlan:
    """A set to be made; `plan_dataset` checks it and says what the fields mean. Equal plans make equal sets."""

    quota: Mapping[str, int]
    images_per_identity: int
    shard_size: int
    seed: int
    method: Drawing
    truncation_psi: float
    candidates: int
    perturbation: float
    verify: bool
    fmr: float | Literal["auto"] | None
    same_person: bool
    budget: int
    layout: Layout
    image_format: ImageFormat
    quality: int
    subsampling: Subsampling
    size: int | None
    crop: Crop | None
    forward_batch: int

    @property
    def identities(self) -> int:
        """Number of identities, N."""
        return sum(self.quota.values())

    @property
    def images(self) -> int:
        """Number of images, N·k."""
        return self.identities * self.images_per_identity

    @property
    def identities_per_shard(self) -> int:
        """Whole identities in a full shard."""
        return self.shard_size // self.images_per_identity

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.identities // self.identities_per_shard)

    @property
    def extension(self) -> str:
        """Of image files, without the dot."""
        return EXTENSIONS[self.image_format]

    def shard(self, number: int) -> Shard:
        """Shard 0 … shards − 1."""
        if not 0 <= number < self.shards:
            raise DataError("no such shard", expected=f"0 … {self.shards - 1}", got=number)
        first, k = number * self.identities_per_shard, self.images_per_identity
        n = min(self.identities_per_shard, self.identities - first)
        return Shard(number, first, n, first * k, n * k)

    def shard_of(self, image: int) -> Shard:
        """The shard that holds an image, by its number in the set."""
        if not 0 <= image < self.images:
            raise DataError("no such image", expected=f"0 … {self.images - 1}", got=image)
        return self.shard(image // self.images_per_identity // self.identities_per_shard)

    def key(self, image: int) -> str:
        """Name of an image within the set, without a dot: "00000123_0004" is image 4 of identity 123."""
        identity, place = divmod(image, self.images_per_identity)
        return f"{identity:08d}_{place:04d}"

    @cached_property
    def order(self) -> np.ndarray:
        """Which group each identity is of, int64 [N], an index into `quota`: every group is spread evenly."""
        counts = list(self.quota.values())
        turn = np.concatenate([(np.arange(n) + 0.5) / n for n in counts]) if counts else np.empty(0)
        group = np.repeat(np.arange(len(counts)), counts)
        return group[np.lexsort((group, turn))]

    def resolve(self, groups: Groups, *, embedder: bool = True) -> DatasetPlan:
        """The same plan with the groups' own names, in their order, and the rate that "auto" stands for.

        Args:
            groups: of the pipeline.
            embedder: whether it has one.

        Raises:
            GroupError: unknown or repeated names, or a name of several groups.
            DataError: the plan needs an embedder.
        """
        ids = []
        for name in self.quota:
            found = groups.parse(name)
            if len(found) != 1:
                raise GroupError(
                    f"{name!r} names {len(found)} groups",
                    expected="one group a name: " + ", ".join(groups.names),
                    got=name,
                    fix="plan_dataset(…, groups=pipeline.groups) divides partial names",
                )
            ids.append(found[0])
        if len(set(ids)) < len(ids):
            raise GroupError("two names mean the same group", expected="each once", got=list(self.quota))
        quota = sorted(zip(ids, self.quota.values(), strict=True))
        fmr = self.fmr if self.fmr != "auto" else DEFAULT_FMR if embedder else None
        return _checked(dataclasses.replace(self, quota={groups.name(g): n for g, n in quota}, fmr=fmr))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"format": FORMAT, "version": VERSION, **fields, "quota": dict(self.quota)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetPlan:
        """The plan that `to_dict` wrote.

        Raises:
            DataError: something else, or a plan of a newer version.
        """
        known = isinstance(values, Mapping) and values.get("format") == FORMAT
        if not known or values.get("version") not in range(1, VERSION + 1):
            got = f"{FORMAT}, version {values.get('version', '?')}" if known else "something else"
            raise DataError(
                "this is no plan that this version can read",
                expected=f"{FORMAT}, version ≤ {VERSION}",
                got=got,
                fix="update fairface_synth, or make a plan with plan_dataset",
            )
        names = {f.name for f in dataclasses.fields(cls)}
        given = set(values) - {"format", "version"}
        if given != names:
            raise DataError("the plan is damaged", expected=sorted(names), got=sorted(given))
        return _checked(cls(**{name: values[name] for name in names}))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ between plans."""
        text = json.dumps(self.to_dict(), sort_keys=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        each = ", ".join(f"{name} {n:,}" for name, n in self.quota.items())
        full = self.identities_per_shard * self.images_per_identity
        return (
            f"{self.identities:,} identities × {self.images_per_identity} = {self.images:,} images in {self.shards:,} "
            f"shards of ≤ {full:,} ({self.layout}, {self.image_format}); "
            f"identities: {each}; seed {self.seed}, {self.method}, ψ = {self.truncation_psi}"
        )


def plan_dataset(
    quota: Mapping[str, int] | Tensor | CorrectedQuota | int,
    images_per_identity: int = 1,
    shard_size: int = 10_000,
    seed: int = 0,
    *,
    groups: Groups | None = None,
    method: Drawing = "gaussian",
    truncation_psi: float = 1.0,
    candidates: int = 256,
    perturbation: float = 0.2,
    verify: bool = False,
    fmr: float | Literal["auto"] | None = "auto",
    same_person: bool = False,
    budget: int = 100,
    layout: Layout = "webdataset",
    image_format: ImageFormat = "jpeg",
    quality: int = 95,
    subsampling: Subsampling = "4:4:4",
    size: int | None = None,
    crop: Crop | None = None,
    forward_batch: int = 32,
) -> DatasetPlan:
    """Plan a set: how many identities of each group, how many images of each, and how they are written.

    >>> plan = plan_dataset({"dark-female": 50_000, "light-male": 50_000}, images_per_identity=45)
    >>> print(plan)

    Args:
        quota: identities of each group: {group: n}; or, with `groups`, an int (so many of every group), int64 [G], or
            partial names, whose number is divided equally. A `CorrectedQuota` brings its groups.
        images_per_identity: k, at most 1024: the identity's face and k − 1 variations of it.
        shard_size: images in a shard at most; a shard holds whole identities.
        seed: of everything drawn. Identity candidates of "gaussian" are those of `Pipeline.sample` of the same seed.
        groups: the groups that `quota` is over. Needed unless every key names one group; `export` checks the names.
        method: "gaussian" or "screen", as in `stream`.
        truncation_psi: of "gaussian"; lower values are known to worsen imbalance. "screen" draws with its bank's ψ.
        candidates: natural draws a face, of "screen", at most 4096.
        perturbation: how far a variation moves towards another face of the group, where `export` is given no axes.
        verify: an identity's face must be confirmed by the labeller (and the detector, if the pipeline has one).
        fmr: identities must be new: below the embedder's threshold at this false match rate against every other
            identity of the set. A set of N identities has about N²·fmr/2 pairs that match by chance, and for each the
            later face is drawn again: plan with fmr ≪ 1/N, or the generator may run out of people. None: no check.
            "auto": 1e-4 where the pipeline has an embedder, otherwise None, with a warning.
        same_person: a variation must match its identity's face at that threshold; edits that do not are halved twice,
            and the last one is kept whatever it shows (column `similarity` of the index says so).
        budget: candidates drawn per wanted identity before giving up.
        layout: "webdataset" (tars), "folders" (one for each identity), "rec" (InsightFace's train.rec and train.idx) or
            "parquet" (images inside). All have a parquet index with the latents.
        image_format, quality, subsampling: "jpeg" (with quality 1 … 100 and chroma subsampling), "png" (lossless) or
            "webp" (lossy, quality 1 … 100).
        size: side of the stored images in pixels; by default the generator's. 112 for recognition.
        crop: "arcface": align to ArcFace's eyes and mouth by the pipeline's detector, at `size` (112 by default).
        forward_batch: images a forward pass. In the plan, since the last bits of an image depend on it.

    Raises:
        DataError, GroupError: settings out of range, unknown groups, nothing to make.
    """
    if crop is not None and size is None:
        size = 112
    plan = DatasetPlan(
        quota=_quota(quota, groups),
        images_per_identity=images_per_identity,
        shard_size=shard_size,
        seed=seed,
        method=method,
        truncation_psi=truncation_psi,
        candidates=candidates,
        perturbation=perturbation,
        verify=verify,
        fmr=fmr,
        same_person=same_person,
        budget=budget,
        layout=layout,
        image_format=image_format,
        quality=quality,
        subsampling=subsampling,
        size=size,
        crop=crop,
        forward_batch=forward_batch,
    )
    return _checked(plan)


def _quota(quota: Any, groups: Groups | None) -> dict[str, int]:
    if isinstance(quota, CorrectedQuota):
        if groups is not None and quota.groups != groups:
            raise GroupError("the quota is over other groups", expected=groups, got=quota.groups)
        groups, quota = quota.groups, quota.quota
    if isinstance(quota, np.integer):
        quota = int(quota)
    if isinstance(quota, Mapping):
        quota = {name: int(n) if isinstance(n, np.integer) else n for name, n in quota.items()}
        _check_counts(list(quota.values()), quota)
        return {name: n for name, n in _divided(quota, groups).items() if n}
    if groups is None:
        raise GroupError(
            "these numbers have no names",
            expected="{group: identities}, or groups=pipeline.groups beside them",
            got=quota,
        )
    counts = quota.tolist() if isinstance(quota, Tensor) else [quota] * len(groups)
    if not isinstance(counts, list) or len(counts) != len(groups):
        raise GroupError("a quota counts each group's identities", expected=f"int64 [{len(groups)}]", got=counts)
    _check_counts(counts, quota)
    return {name: n for name, n in zip(groups.names, counts, strict=True) if n}


def _check_counts(counts: list[Any], shown: Any) -> None:
    if not all(type(n) is int and n >= 0 for n in counts) or not sum(counts):
        raise DataError(
            "a quota is whole numbers of identities, not all 0",
            expected='{"dark-female": 50_000, …}, or 50_000 for every group',
            got=f"{shown!r}, a {type(shown).__name__}",
        )


def _divided(quota: Mapping[str, int], groups: Groups | None) -> dict[str, int]:
    """Partial names divided over their groups, in the groups' order."""
    if groups is None:
        return {str(name): n for name, n in quota.items()}
    total = [0] * len(groups)
    for name, n in quota.items():
        ids = groups.parse(name)
        if any(total[g] for g in ids):
            raise GroupError("two names mean the same group", expected="each group once", got=list(quota))
        for g, share in enumerate(balanced_quota(groups, n, name).tolist() if n else []):
            total[g] += share
    return dict(zip(groups.names, total, strict=True))


def _checked(plan: DatasetPlan) -> DatasetPlan:
    """The plan itself, with real numbers as floats: equal plans have equal digests."""
    if not isinstance(plan.quota, Mapping):
        raise DataError("a quota counts each group's identities", expected="{group: identities}", got=plan.quota)
    _check_counts(list(plan.quota.values()), plan.quota)
    real: dict[str, Any] = {"perturbation": plan.perturbation, "truncation_psi": plan.truncation_psi}
    real |= {} if plan.fmr in (None, "auto") else {"fmr": plan.fmr}
    for name, value in real.items():
        if not isinstance(value, Real) or isinstance(value, bool):
            raise DataError(f"{name} is a number", expected="for example 0.5", got=repr(value))
        real[name] = float(value)
    for name in ("verify", "same_person"):
        if type(getattr(plan, name)) is not bool:
            raise DataError(f"{name} is yes or no", expected="True or False", got=repr(getattr(plan, name)))
    plan = dataclasses.replace(plan, **real)
    _check(plan)
    return plan


def _check(plan: DatasetPlan) -> None:
    choices = {
        "method": Drawing,
        "layout": Layout,
        "image_format": ImageFormat,
        "subsampling": Subsampling,
    }
    for name, allowed in choices.items():
        if getattr(plan, name) not in get_args(allowed):
            raise DataError(f"unknown {name}", expected=", ".join(get_args(allowed)), got=repr(getattr(plan, name)))
    if plan.crop not in (None, *get_args(Crop)):
        raise DataError("unknown crop", expected="arcface, or None", got=repr(plan.crop))
    ranges: dict[str, tuple[int, int]] = {
        "images_per_identity": (1, MAX_IMAGES),
        "shard_size": (plan.images_per_identity, 10**7),
        "seed": (0, 2**64 - 1),
        "candidates": (1, MAX_CANDIDATES),
        "budget": (1, 2**20),
        "quality": (1, 100),
        "forward_batch": (1, 4096),
    } | ({} if plan.size is None else {"size": (8, 8192)})
    for name, (low, high) in ranges.items():
        value = getattr(plan, name)
        if type(value) is not int or not low <= value <= high:
            fix = "a shard holds whole identities" if name == "shard_size" else None
            raise DataError(
                f"{name} is out of range", expected=f"a whole number, {low} … {high}", got=repr(value), fix=fix
            )
    if not 0 <= plan.perturbation <= 1:
        raise DataError("perturbation is out of range", expected="0 … 1", got=plan.perturbation)
    if not math.isfinite(plan.truncation_psi):
        raise DataError("truncation is a number", expected="truncation_psi, for example 0.7", got=plan.truncation_psi)
    if plan.method == "screen" and plan.truncation_psi != 1.0:
        raise DataError(
            "a screen draws with its bank's truncation", expected="truncation_psi=1.0", got=plan.truncation_psi
        )
    if isinstance(plan.fmr, float) and not 0 < plan.fmr < 1:
        raise DataError("fmr is a rate", expected='0 < fmr < 1, for example 1e-4, "auto" or None', got=plan.fmr)
    if plan.same_person and plan.fmr is None:
        raise DataError("the same person at which threshold?", expected="fmr, with same_person=True", got="fmr=None")
    if plan.layout == "rec" and plan.image_format == "webp":
        raise DataError("record files hold what OpenCV decodes everywhere", expected="jpeg or png", got="webp")
