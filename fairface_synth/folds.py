"""Accuracy by the LFW protocol: on each fold, at the threshold that is most accurate on the others."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons, describe, is_integer
from .error_rates import ScoreTable, WeightSums
from .errors import ShapeError

_FOLDS = 10


class FoldAccuracy(NamedTuple):
    """Accuracy by the LFW protocol: the threshold comes from the other folds.

    Attributes:
        value: mean over the folds; NaN where there is none.
        standard_error: of the mean: standard deviation over the folds (n − 1) / √n.
        folds: accuracy on each fold.
        reason: why there is none.
    """

    value: float
    standard_error: float = math.nan
    folds: tuple[float, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{100 * self.value:.2f} ± {100 * self.standard_error:.2f} %"


def fold_accuracy(table: ScoreTable, c: Comparisons, folds: Tensor | None, absent: str) -> FoldAccuracy:
    """On each fold, with the threshold that is most accurate on the others.

    Args:
        table: the comparisons that count.
        c: all comparisons.
        folds: int64 [m], −1 is in none. None: ten equal stretches of the mated and of the non-mated, in their order.
        absent: why there is none.

    Raises:
        ShapeError: not one fold per comparison.
    """
    if absent or c.counts is not None:
        return FoldAccuracy(math.nan, reason=absent or "a histogram has no folds")
    if folds is not None and (not isinstance(folds, Tensor) or folds.shape != c.scores.shape or not is_integer(folds)):
        raise ShapeError("one fold per comparison, please", expected=f"int64 [{len(c.scores)}]", got=describe(folds))
    weights = [weight(None, both=True) for weight in (table.non_weight, table.mat_weight)]
    parts = []
    for at in (table.non_at, table.mat_at):
        listed = at.sort().values
        stretch = torch.empty_like(c.group)
        stretch[listed] = torch.arange(len(at), device=at.device) * _FOLDS // max(1, len(at))
        parts.append(stretch[at] if folds is None else folds[at])
    accuracies = []
    for fold in torch.cat(parts)[torch.cat(parts) >= 0].unique().tolist():
        s = WeightSums.of(*(w * ((f != fold) & (f >= 0)) for w, f in zip(weights, parts, strict=True)))
        test = WeightSums.of(*(w * (f == fold) for w, f in zip(weights, parts, strict=True)))
        if min(float(x[0, -1]) for x in (*s, *test)) == 0:
            reason = f"fold {fold}, or the others, has no mated or no non-mated comparisons"
            return FoldAccuracy(math.nan, reason=reason)
        at = table.most_accurate(s)
        accuracies.append(1 - float(table.fmr(test, at) + table.fnmr(test, at)) / 2)
    n = len(accuracies)
    if n < 2:
        return FoldAccuracy(math.nan, reason="fewer than two folds")
    values = torch.tensor(accuracies, dtype=torch.float64)
    return FoldAccuracy(float(values.mean()), float(values.std()) / math.sqrt(n), tuple(accuracies))


def identity_folds(c: Comparisons, seed: int) -> Tensor:
    """Folds [m] with different identities, dealt out within each group; −1 for comparisons between folds."""
    assert c.identities is not None
    group = c.identity_groups().cpu()
    people = len(group)
    order = torch.randperm(people, generator=torch.Generator().manual_seed(seed))
    order = order[group[order].argsort(stable=True)]
    fold = torch.empty(people, dtype=torch.int64).scatter_(0, order, torch.arange(people) % _FOLDS)
    first, second = fold.to(c.group.device)[c.identities].unbind(1)
    return torch.where(first == second, first, -1)
