"""Verification scores too many to keep: counted in histograms, group by group, in constant memory.

`cross_scores` compares every two faces block by block. `ScoreHistogram.compute` gives what `verify` gives, without
intervals, with scores exact to a bin's width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .artifacts import has_values
from .comparisons import Comparisons, check_faces, check_vectors, describe, group_names
from .cosines import cosine_dtype, take_rows
from .errors import DataError, ShapeError
from .groups import UNSURE, Groups, check_ids
from .verification import ThresholdFrom, Verification, check_settings, evaluate


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Counts of scores in equal bins over [−1, 1], for comparisons too many to keep: constant memory.

    Attributes:
        counts: int64 [G + 1, 2, bins]: each group, and last what is not within one; non-mated, mated.
        names: the groups' names.
    """

    counts: Tensor
    names: tuple[str, ...] = ()

    @classmethod
    def empty(
        cls,
        groups: Groups | Sequence[str] = (),
        bins: int = 2**16,
        device: torch.device | str = "cpu",
    ) -> ScoreHistogram:
        """Of no scores yet."""
        if not isinstance(bins, int) or bins < 2:
            raise DataError("too few bins", expected="a whole number, 2 or more", got=bins)
        names = group_names(groups, groups) if len(groups) else ()
        return cls(torch.zeros(len(names) + 1, 2, bins, dtype=torch.int64, device=device), names)

    @property
    def width(self) -> float:
        """Of a bin: what rates and thresholds are exact to."""
        return 2 / self.counts.shape[-1]

    def update(self, scores: Tensor, mated: Tensor, group: Tensor | None = None) -> ScoreHistogram:
        """With more scores in it; those outside [−1, 1] count in the outer bins.

        Args:
            scores: of any shape.
            mated: bool, same shape.
            group: int64, same shape, −1 for comparisons not within a group; None: all of them.

        Raises:
            ShapeError, GroupError, DataError: other shapes, unknown groups, NaN.
        """
        if not isinstance(scores, Tensor) or not isinstance(mated, Tensor):
            got = f"{describe(scores)}, {describe(mated)}"
            raise ShapeError("scores and mated are tensors", expected="float, and bool", got=got)
        group = torch.full_like(mated, UNSURE, dtype=torch.int64) if group is None else group
        if (
            not isinstance(group, Tensor)
            or scores.shape != mated.shape
            or mated.dtype != torch.bool
            or group.shape != scores.shape
        ):
            got = f"{describe(scores)}, {describe(mated)}, {describe(group)}"
            raise ShapeError(
                "scores, mated and group do not fit", expected="one shape; mated bool, group int64", got=got
            )
        check_ids(group, len(self.names))
        if has_values(scores) and not bool(scores.isfinite().all()):
            raise DataError(
                "scores are not finite", expected="numbers", got="NaN or infinite", fix="check the embeddings"
            )
        row = torch.where(group < 0, len(self.names), group) * 2 + mated
        key = row * self.counts.shape[-1] + _bin(scores, self.counts.shape[-1])
        counts = self.counts.clone()
        counts.view(-1).scatter_add_(0, key.flatten(), torch.ones_like(key).flatten())
        return dataclasses.replace(self, counts=counts)

    def merge(self, other: ScoreHistogram) -> ScoreHistogram:
        """Of the scores of both.

        Raises:
            ShapeError: other groups or bins.
        """
        if other.names != self.names or other.counts.shape != self.counts.shape:
            got = f"{other.names}, {other.counts.shape[-1]} bins"
            expected = f"{self.names}, {self.counts.shape[-1]} bins"
            raise ShapeError("these histograms do not go together", expected=expected, got=got)
        return dataclasses.replace(self, counts=self.counts + other.counts)

    def compute(self, fmr: Sequence[float] = (1e-2, 1e-3, 1e-4), threshold: ThresholdFrom = "pooled") -> Verification:
        """As `verify`, with every score moved down to the edge of its bin: thresholds are exact to a bin's width.

        No intervals (identities are not kept) and no folds.

        Raises:
            DataError: an empty histogram, settings out of range.
        """
        targets = check_settings(fmr, threshold, 1, 0)
        group, mated, place = self.counts.nonzero().unbind(1)
        if not len(place):
            raise DataError("the histogram is empty", expected="scores", got="none")
        edges = place.double() * self.width - 1
        row = torch.where(group == len(self.names), UNSURE, group)
        counts = self.counts[group, mated, place]
        return evaluate(Comparisons(edges, mated.bool(), row, self.names, counts=counts), targets, threshold)


def _bin(scores: Tensor, bins: int) -> Tensor:
    return ((scores + 1) * (bins / 2)).clamp(0, bins - 1).long()


@torch.no_grad()
def cross_scores(
    embeddings: Tensor,
    identities: Tensor,
    group_ids: Tensor | None = None,
    *,
    groups: Groups | Sequence[str] | None = None,
    bins: int = 2**16,
    block: int = 1024,
) -> ScoreHistogram:
    """Scores of every two faces as histograms, in blocks: memory is O(block²) beside the input and the result.

    On a processor the fastest block is the one whose scores stay in its cache; on an accelerator take a larger one.

    Args:
        embeddings: unit vectors [n, e].
        identities: int64 [n].
        group_ids, groups: of the faces, int64 [n], −1 for none; and their names.
        bins: over [−1, 1].
        block: rows at a time.

    Raises:
        DataError, ShapeError, GroupError: as `verify`.
    """
    names = group_names(groups, group_ids)
    check_vectors(embeddings)
    check_faces(embeddings, identities, group_ids, len(names))
    if block < 1:
        raise DataError("block out of range", expected="≥ 1", got=block)
    result = ScoreHistogram.empty(names, bins, embeddings.device)
    counts = result.counts.view(-1)
    n, none = len(embeddings), len(names)
    group = torch.full_like(identities, none) if group_ids is None else torch.where(group_ids < 0, none, group_ids)
    order = group.argsort(stable=True)  # neighbours then count in the same bins: the cache is what limits speed
    rows, group, identity = order.split(block), group[order], identities[order]
    buffers = _Buffers(min(block, n), embeddings)
    for i, left in enumerate(rows):
        a = take_rows(embeddings, left)
        for j in range(i, len(rows)):
            here, there = slice(i * block, i * block + len(left)), slice(j * block, j * block + len(rows[j]))
            b = a if i == j else take_rows(embeddings, rows[j])
            key = buffers.bins(a, b, bins)
            same = group[here, None] == group[None, there]
            row = torch.where(same, group[here, None], none).mul_(2)
            row += identity[here, None] == identity[None, there]
            key.add_(row, alpha=bins)
            once = torch.ones_like(key).triu_(1) if i == j else buffers.ones[: len(left) * len(b)].view_as(key)
            counts.scatter_add_(0, key.view(-1), once.view(-1))
    return result


class _Buffers:
    """Memory for one block, used again for each."""

    def __init__(self, block: int, like: Tensor) -> None:
        self.scores = like.new_empty(block * block, dtype=cosine_dtype(like))
        self.keys = torch.empty(block * block, dtype=torch.int64, device=like.device)
        self.ones = torch.ones(block * block, dtype=torch.int64, device=like.device)

    def bins(self, a: Tensor, b: Tensor, bins: int) -> Tensor:
        """Bin of each score [len(a), len(b)]; valid until the next call."""
        size, shape = len(a) * len(b), (len(a), len(b))
        scores = torch.mm(a, b.T, out=self.scores[:size].view(shape))
        scores.add_(1).mul_(bins / 2).clamp_(0, bins - 1)
        return self.keys[:size].view(shape).copy_(scores)
