"""Error rates of comparisons sorted by score: thresholds, FMR, FNMR, AUC, EER, for any weights of the identities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons
from .intervals import Trials
from .thresholds import RULE_OF_30

_CURVE_POINTS = 400


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """The comparisons of one row of the report, sorted by score: p non-mated and q mated ones.

    Attributes:
        non, mat: scores, rising, as float64; `dtype` is what they came in.
        non_at, mat_at: which comparisons they are.
        below, up_to: how many non-mated scores are below, and below or equal, each mated one.
        mat_below, mat_up_to: the same among the mated.
        non_mated, mated: how many comparisons were made.
        non_weight, mat_weight: how they count.
    """

    non: Tensor
    mat: Tensor
    non_at: Tensor
    mat_at: Tensor
    below: Tensor
    up_to: Tensor
    mat_below: Tensor
    mat_up_to: Tensor
    non_mated: int
    mated: int
    non_weight: _Weighing
    mat_weight: _Weighing
    dtype: torch.dtype

    @classmethod
    def of(cls, c: Comparisons, order: Tensor, member: Tensor) -> ScoreTable:
        """From the comparisons in order of their scores, of which those with `member` count."""
        order = order[member[order]]
        mated = c.mated[order]
        non_at, mat_at = order[~mated], order[mated]
        non, mat = c.scores[non_at].double(), c.scores[mat_at].double()
        below, up_to = (torch.searchsorted(non, mat, right=right) for right in (False, True))
        mat_below, mat_up_to = (torch.searchsorted(mat, mat, right=right) for right in (False, True))
        p, q = (len(at) if c.counts is None else int(c.counts[at].sum()) for at in (non_at, mat_at))
        weighing = _Weighing.of(c, non_at), _Weighing.of(c, mat_at)
        return cls(non, mat, non_at, mat_at, below, up_to, mat_below, mat_up_to, p, q, *weighing, c.scores.dtype)

    def identities(self, c: Comparisons) -> int | None:
        if c.identities is None:
            return None
        return len(c.identities[torch.cat((self.non_at, self.mat_at))].unique())

    def trials(self, *, mated: bool) -> Trials:
        """What is behind the FNMR (mated), or behind the FMR."""
        made, weight = (self.mated, self.mat_weight) if mated else (self.non_mated, self.non_weight)
        if weight.first is None or weight.second is None:
            return Trials(made, None, made, made)
        who = weight.first if mated else torch.cat((weight.first, weight.second))
        each = weight(None, both=True).flatten().repeat(1 if mated else 2)
        each = torch.bincount(who, each)
        even = float(each.sum().square() / each.square().sum().clamp_min(1e-300))
        return Trials(made, int((each > 0).sum()), even, even if mated else even / 2)

    def sums(self, w: Tensor | None) -> WeightSums:
        """For identity weights [B, I]; None: every identity once, B = 1."""
        return WeightSums.of(self.non_weight(w, both=True), self.mat_weight(w, both=False))

    def auc(self, s: WeightSums) -> Tensor:
        if not len(self.non) or not len(self.mat):
            return _nan(s)
        mated = s.mated.diff(dim=1)
        wins = (s.non_mated[:, self.below] + s.non_mated[:, self.up_to]) / 2
        return (mated * wins).sum(1) / (s.mated[:, -1] * s.non_mated[:, -1])

    def eer(self, s: WeightSums) -> Tensor:
        """Where FMR = FNMR on the lines between the ROC's points: at a mated score the FNMR rises from a to b, and the
        FMR falls from c (score ≥) to d (score >)."""
        if not len(self.non) or not len(self.mat):
            return _nan(s)
        total, mated = s.non_mated[:, -1:], s.mated[:, -1:]
        crossed = s.mated[:, self.mat_up_to] / mated >= 1 - s.non_mated[:, self.up_to] / total
        first = crossed.to(torch.uint8).argmax(1, keepdim=True)
        a = s.mated.gather(1, self.mat_below[first]) / mated
        b = s.mated.gather(1, self.mat_up_to[first]) / mated
        c = 1 - s.non_mated.gather(1, self.below[first]) / total
        d = 1 - s.non_mated.gather(1, self.up_to[first]) / total
        along = (c - a) / ((b - a) + (c - d)).clamp_min(1e-300)
        return torch.where(a >= c, a, a + along * (b - a)).squeeze(1)

    def threshold(self, s: WeightSums, fmr: float) -> Tensor:
        """Just above the highest score that cannot be admitted [B], as a float64 that its dtype can hold."""
        if not len(self.non):
            return _nan(s)
        total = s.non_mated[:, -1:]
        refused = torch.searchsorted(s.non_mated.contiguous(), total * (1 - fmr) - 1e-6).clamp(1, len(self.non)) - 1
        highest = self.non[refused.squeeze(1)].to(self.dtype)
        return torch.nextafter(highest, torch.full_like(highest, torch.inf)).double()

    def most_accurate(self, s: WeightSums) -> Tensor:
        """The threshold [B] with the least FMR + FNMR: midway between the lowest score admitted and the next below,
        of those with weight."""
        if not len(self.non) or not len(self.mat):
            return _nan(s)
        right = s.non_mated[:, self.below] / s.non_mated[:, -1:] - s.mated[:, self.mat_below] / s.mated[:, -1:]
        best = torch.where(s.mated.diff(dim=1) > 0, right, -torch.inf).argmax(1)
        lowest, next_below = self.mat[best], torch.full_like(self.mat[best], -torch.inf)
        sides = (self.non, s.non_mated, self.below[best]), (self.mat, s.mated, self.mat_below[best])
        for scores, sums, below in sides:
            # Scores of no weight do not count: those that a resample lacks, and those of the fold that is tested.
            up_to = torch.searchsorted(sums, sums.gather(1, below.unsqueeze(1))).squeeze(1)
            next_below = torch.where(up_to > 0, next_below.maximum(scores[(up_to - 1).clamp_min(0)]), next_below)
        return torch.where(next_below.isfinite(), (lowest + next_below) / 2, lowest)

    def fmr(self, s: WeightSums, threshold: Tensor) -> Tensor:
        """Share of the non-mated at or above thresholds [B]; NaN without comparisons or threshold."""
        return _share(s.non_mated[:, -1] - _below(self.non, s.non_mated, threshold), s.non_mated, threshold)

    def fnmr(self, s: WeightSums, threshold: Tensor) -> Tensor:
        """Share of the mated below thresholds [B]; NaN without comparisons or threshold."""
        return _share(_below(self.mat, s.mated, threshold), s.mated, threshold)

    def curve(self) -> ErrorCurve:
        thresholds = torch.cat(
            (_spaced(self.non.flip(0)), _spaced(self.mat), _spaced(self.non), _spaced(self.mat.flip(0)))
        )
        thresholds = thresholds.unique()
        s = self.sums(None)
        last = torch.nextafter(thresholds[-1:], torch.full_like(thresholds[-1:], torch.inf))
        thresholds = torch.cat((thresholds, last)) if len(thresholds) else thresholds
        s = WeightSums(*(x.expand(len(thresholds), -1) for x in s))
        return ErrorCurve(thresholds.cpu(), self.fmr(s, thresholds).cpu(), self.fnmr(s, thresholds).cpu())


def score_tables(c: Comparisons) -> list[ScoreTable]:
    """Overall, each group, and all that is not within a group."""
    order = c.scores.argsort()
    members = [torch.ones_like(c.mated), *(c.group == g for g in range(len(c.names))), c.group < 0]
    return [ScoreTable.of(c, order, member) for member in members]


def within_groups(c: Comparisons) -> ScoreTable:
    """All comparisons that are within some group."""
    return ScoreTable.of(c, c.scores.argsort(), c.group >= 0)


def why_absent(mated: int, non_mated: int) -> str:
    """Why nothing can be said about a set of so many comparisons; "" if something can."""
    missing = [name for name, n in (("mated", mated), ("non-mated", non_mated)) if not n]
    return f"no {' and no '.join(missing)} comparisons" if missing else ""


def why_unresolved(table: ScoreTable, fmr: float) -> str:
    """Why a table's non-mated comparisons set no threshold (rule of 30); "" if they do."""
    if math.floor(fmr * table.non_mated + 1e-6) >= RULE_OF_30:
        return ""
    needed = math.ceil(RULE_OF_30 / fmr)
    return f"FMR {fmr:g} needs {needed:,} non-mated comparisons (rule of 30), there are {table.non_mated:,}"


class ErrorCurve(NamedTuple):
    """FMR and FNMR at rising thresholds, float64 [k]; exact at each, k ≤ a few hundred. TAR against FMR is the ROC."""

    threshold: Tensor
    fmr: Tensor
    fnmr: Tensor


class WeightSums(NamedTuple):
    """Running sums of weights over the sorted scores, each starting with 0: [B, p + 1] and [B, q + 1]."""

    non_mated: Tensor
    mated: Tensor

    @classmethod
    def of(cls, non_mated: Tensor, mated: Tensor) -> WeightSums:
        """Of weights [B, p] and [B, q]."""
        return cls(_running(non_mated), _running(mated))


# --- details ----------------------------------------------------------------------------------------------------------


class _Weighing(NamedTuple):
    """How comparisons count: first and second identity [p], where they are known, and how many each stands for [p]."""

    first: Tensor | None
    second: Tensor | None
    stands_for: Tensor | None
    one: Tensor

    @classmethod
    def of(cls, c: Comparisons, at: Tensor) -> _Weighing:
        base = c.counts if c.weights is None else c.weights
        first, second = (None, None) if c.identities is None else (c.identities[at, k].contiguous() for k in (0, 1))
        one = torch.ones(1, len(at), dtype=torch.float64, device=at.device)
        return cls(first, second, None if base is None else base[at].double()[None], one)

    def __call__(self, w: Tensor | None, *, both: bool) -> Tensor:
        """[B, p], or [1, p] without identity weights w [B, I]."""
        if w is None:
            return self.one if self.stands_for is None else self.stands_for
        assert self.first is not None
        assert self.second is not None
        weight = w.index_select(1, self.first)
        if both:
            weight.mul_(w.index_select(1, self.second))
        return weight if self.stands_for is None else weight.mul_(self.stands_for)


def _below(scores: Tensor, sums: Tensor, threshold: Tensor) -> Tensor:
    return sums.gather(1, torch.searchsorted(scores, threshold.contiguous()).unsqueeze(1)).squeeze(1)


def _share(part: Tensor, sums: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(threshold.isnan(), torch.nan, part / sums[:, -1])


def _running(weights: Tensor) -> Tensor:
    sums = weights.new_zeros(len(weights), weights.shape[1] + 1)
    torch.cumsum(weights, 1, out=sums[:, 1:])
    return sums


def _nan(s: WeightSums) -> Tensor:
    return s.mated.new_full((len(s.mated),), torch.nan)


def _spaced(scores: Tensor) -> Tensor:
    """Some of the sorted scores, ever denser towards the first."""
    n = len(scores)
    if n <= _CURVE_POINTS // 4:
        return scores
    steps = torch.linspace(0, math.log(n), _CURVE_POINTS // 4, dtype=torch.float64).exp().long() - 1
    return scores[steps.unique().clamp_max(n - 1).to(scores.device)]
