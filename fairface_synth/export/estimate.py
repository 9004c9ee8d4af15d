"""What a set will cost, from a few batches made for the purpose."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..people import impostors_for
from .making import Identities, Maker, set_threshold
from .plan import DatasetPlan, Shard


@dataclass(frozen=True)
class ExportEstimate:
    """What a set will cost, from a few batches made for the purpose.

    Attributes:
        plan: of the set.
        images_per_second: drawing, synthesis and encoding, with same_person its checks, of one process on this device.
        candidates_per_second: drawing, and looking at, candidates.
        confirmed: share of the candidates that the plan's labeller and detector confirm. Candidates that are like
            somebody before come on top, and are not foreseen.
        impostors: natural faces that are looked at first, to measure the threshold; 0 where it is given.
        bytes: on disk, without the margins of file systems.
        work: bytes that candidates take until the set is finished.
        seconds: of one process.
        free: bytes that the disk has left.
    """

    plan: DatasetPlan
    images_per_second: float
    candidates_per_second: float
    confirmed: float
    impostors: int
    bytes: int
    work: int
    seconds: float
    free: int

    def __str__(self) -> str:
        room = "enough" if self.free > 1.1 * (self.bytes + self.work) else "NOT ENOUGH"
        free = _gigabytes(self.free)
        first = f"; {self.impostors:,} natural faces are looked at first, to measure the cosine of this FMR"
        return (
            f"{self.plan}\n"
            f"disk:  {_gigabytes(self.bytes)}, and {_gigabytes(self.work)} until the set is finished; "
            f"free: {free} ({room})\n"
            f"time:  {_duration(self.seconds)} of one process on this device: {self.images_per_second:,.1f} images/s, "
            f"{self.candidates_per_second:,.1f} candidates/s of which {self.confirmed:.0%} are confirmed; candidates "
            f"like somebody before come on top, and the datasheet at the end{first if self.impostors else ''}\n"
            "Nothing was written."
        )


def estimate(maker: Maker, root: Path) -> ExportEstimate:
    """Make and time some candidates and some images; writes nothing."""
    plan, size = maker.plan, maker.plan.forward_batch
    g = torch.tensor([maker.parts.groups.id(name) for name in plan.quota])
    draw = torch.arange(4 * max(size, len(g)))
    ids, index = g[draw % len(g)], draw // len(g)
    maker.candidates(ids[:size], index[:size])  # warm-up
    start = time.perf_counter()
    made = maker.candidates(ids, index)
    candidates_per_second = len(ids) / (time.perf_counter() - start)
    n, k = max(1, len(ids) // plan.images_per_identity), plan.images_per_identity
    names = {int(i): maker.parts.groups.name(int(i)) for i in g}
    tensors = (ids, index, made.latents, made.embeddings)
    some = Identities(names, *(x[:n].numpy() for x in tensors))
    maker = replace(maker, threshold=set_threshold(maker) if plan.same_person else None)
    maker.pixels(made.latents[:size])  # warm-up
    start = time.perf_counter()
    encoded = [len(data) for data, _ in maker.rows(Shard(0, 0, n, 0, n * k), some)]
    images_per_second = len(encoded) / (time.perf_counter() - start)
    shares = [float(made.confirmed[ids == i].double().mean()) for i in g]
    drawn = sum(n / max(share, 1 / plan.budget) for n, share in zip(plan.quota.values(), shares, strict=True))
    looked_at = drawn if plan.verify or plan.fmr is not None else 0
    impostors = impostors_for(plan.fmr) if isinstance(plan.fmr, float) and maker.parts.threshold is None else 0
    looking = (looked_at + impostors) / candidates_per_second
    each = float(np.mean([_stored_bytes(n, plan) for n in encoded])) + _INDEX_BYTES + 4 * made.latents[0].numel()
    numbers = 4 * (made.latents[0].numel() + made.embeddings.shape[1])
    exists = next(p for p in (root, *root.absolute().parents) if p.exists())
    return ExportEstimate(
        plan=plan,
        images_per_second=images_per_second,
        candidates_per_second=candidates_per_second,
        confirmed=plan.identities / drawn,
        impostors=impostors,
        bytes=int(plan.images * each + plan.identities * (numbers + 40)),
        work=int(drawn * numbers),
        seconds=plan.images / images_per_second + looking,
        free=shutil.disk_usage(exists).free,
    )


_INDEX_BYTES = 100  # of an image in the parquet index, beside its latents


def _stored_bytes(encoded: int, plan: DatasetPlan) -> int:
    """What an image takes in its layout."""
    if plan.layout == "webdataset":  # three members: a block of header each, and whole blocks
        return 5 * 512 + -(-encoded // 512) * 512
    return encoded + (60 if plan.layout == "rec" else 0)  # header, padding, a line of train.idx


def _duration(seconds: float) -> str:
    """3 s, 12 min, 5.1 hours, 14 days."""
    for unit, size in {"days": 86400, "hours": 3600, "min": 60}.items():
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{max(1, seconds):,.0f} s"


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e8 else f"{n / 1e6:,.1f} MB"
