"""Thresholds on the cosine of two faces at a stated false match rate (FMR), from comparisons of impostors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, SupportsFloat

import torch
from torch import Tensor

from .cosines import BlockProduct, cosine_dtype, pair_cosines, take_rows
from .embeddings import check_embeddings
from .errors import DataError, ShapeError
from .groups import numbered
from .reports import wilson_interval

# Doddington et al. 2000: with 30 errors, the true rate is within ±30 % of the observed one at 90 % confidence.
RULE_OF_30 = 30


class ImpostorScores(NamedTuple):
    """Comparisons of different identities.

    Attributes:
        scores: cosines [p].
        first, second: the faces compared, rows of the embeddings, int64 [p].
        identities: int64 [n], the identity of each row, numbered from 0.
    """

    scores: Tensor
    first: Tensor
    second: Tensor
    identities: Tensor


@torch.no_grad()
def impostor_scores(
    embeddings: Tensor,
    ids: Tensor | None = None,
    *,
    groups: Tensor | None = None,
    n_pairs: int = 1_000_000,
    rng: torch.Generator | None = None,
) -> ImpostorScores:
    """Cosines of pairs of different identities: all pairs, or a random part where there are more than `n_pairs`.

    Every pair is as likely as any other: a random part takes one from each of `n_pairs` equal stretches of the list of
    all pairs. Faces of one demographic group resemble each other more, so impostors within groups give higher
    scores, and a threshold set on pairs of any two faces has a higher FMR within groups than it says.

    Args:
        embeddings: unit vectors [n, e].
        ids: identity of each face, int64 [n]. None: every face is another person.
        groups: int64 [n]; only faces of the same group are compared, and −1 with none.
        n_pairs: at most so many.
        rng: for the random part, on the embeddings' device.

    Raises:
        DataError: not unit vectors, or no pair of different identities.
    """
    check_embeddings(embeddings)
    n, device = len(embeddings), embeddings.device
    for name, labels in (("ids", ids), ("groups", groups)):
        if labels is not None and (labels.shape != (n,) or labels.is_floating_point()):
            raise ShapeError(f"{name} do not fit the embeddings", expected=f"int64 [{n}]", got=list(labels.shape))
    pairs = _list_pairs(n, device, ids, groups)
    if pairs.total == 0 or n_pairs < 1:
        raise DataError(
            "no two identities to compare",
            expected="two identities at least (in one group, where groups are given), n_pairs ≥ 1",
            got=f"{n} faces, n_pairs={n_pairs}",
        )
    number = torch.arange(min(pairs.total, n_pairs), device=device)
    if pairs.total > n_pairs:
        within = torch.rand(n_pairs, dtype=torch.float64, generator=rng, device=device)
        number = ((number + within) * (pairs.total / n_pairs)).long().clamp_max(pairs.total - 1)
    ends = pairs.partners.cumsum(0)
    place = torch.searchsorted(ends, number, right=True)
    first = pairs.rows[place]
    second = pairs.rows[pairs.group_end[place] - (ends[place] - number)]
    return ImpostorScores(pair_cosines(embeddings, first, second), first, second, pairs.identities)


@dataclass(frozen=True)
class Threshold:
    """A cosine from which two faces count as one identity; `float(threshold)` is the value.

    Attributes:
        value: the cosine.
        fmr: the false match rate (FMR) that was asked for.
        reached: share of the impostor scores at or above the value, ≤ fmr.
        low, high: 95 % interval of the FMR at this value.
        comparisons: impostor scores it was set on.
        effective: the number of independent comparisons that would give an interval as wide.
    """

    value: float
    fmr: float
    reached: float
    low: float
    high: float
    comparisons: int
    effective: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return (
            f"cosine {self.value:.4f} at FMR {self.fmr:g}: reached {self.reached:.3g} "
            f"[{self.low:.2g}, {self.high:.2g}] in {self.comparisons:,} comparisons, worth {self.effective:,.0f} "
            "independent ones"
        )


def threshold_at_fmr(impostors: ImpostorScores | Tensor, fmr: float) -> Threshold:
    """The lowest threshold at which no more than a share `fmr` of the impostor scores match (score ≥ threshold).

    Comparisons that share a face are not independent, so the interval takes identities as the sample: the variance
    is the dyadic cluster-robust one (Aronow, Samii & Assenova 2015, eq. 2, all comparisons of two identities being one
    dyad), never below that of independent dyads or comparisons, and the interval Wilson's with the number of
    independent comparisons that has this variance (as Korn & Graubard 1998).

    Args:
        impostors: from `impostor_scores`; or bare scores [p], which are then taken as independent.
        fmr: false match rate, in (0, 1).

    Raises:
        DataError: fewer than 30 / fmr scores (the rule of 30, Doddington et al. 2000), NaN, fmr out of range, or more
            impostors at cosine 1 than the FMR admits.
    """
    scores = impostors if isinstance(impostors, Tensor) else impostors.scores
    if scores.ndim != 1 or not scores.is_floating_point():
        raise ShapeError("impostor scores are a vector", expected="float [p]", got=list(scores.shape))
    n = len(scores)
    allowed = _allowed_matches(fmr, n)
    if not bool(scores.isfinite().all()):
        raise DataError("impostor scores with NaN or infinities", fix="check the embeddings they came from")
    value = _just_above(scores.topk(allowed + 1).values[-1], fmr, n)
    matched = scores >= value
    return _threshold(value, fmr, matched.double().mean(), n, _effective_comparisons(matched, impostors))


@torch.no_grad()
def threshold_among(embeddings: Tensor, fmr: float, *, block: int = 2048) -> Threshold:
    """`threshold_at_fmr` of all pairs of faces of different people, in constant memory: for rates of 10⁻⁵ and below.

    The pairs are gone through twice, block by block; the value and its interval are those of
    `threshold_at_fmr(impostor_scores(embeddings, n_pairs=n * n), fmr)`, up to rounding.

    Args:
        embeddings: unit vectors [n, e], every row another person; n(n − 1)/2 pairs must be 30 / fmr or more.
        fmr: false match rate, in (0, 1).
        block: rows at a time; memory is O(block²) and O(fmr·n²) scores beside the input.

    Raises:
        DataError: not unit vectors, too few, or fmr out of range.
    """
    check_embeddings(embeddings)
    if block < 1:
        raise DataError("block out of range", expected="≥ 1", got=block)
    n = len(embeddings)
    pairs = n * (n - 1) // 2
    allowed = _allowed_matches(fmr, pairs)
    top = embeddings.new_empty(0, dtype=cosine_dtype(embeddings))
    for _, _, scores in _pair_blocks(embeddings, block):
        flat = scores.flatten()
        top = torch.cat((top, flat.topk(min(allowed + 1, len(flat))).values))
        top = top.topk(min(allowed + 1, len(top))).values
    value = _just_above(top[-1], fmr, pairs)
    degree = torch.zeros(n, dtype=torch.float64, device=embeddings.device)  # matches of each person
    for i, j, scores in _pair_blocks(embeddings, block):
        matched = scores >= value
        degree[i : i + block] += matched.sum(1)
        degree[j : j + block] += matched.sum(0)
    rate = degree.sum() / 2 / pairs
    # Each dyad is one pair here: the sums of `_effective_comparisons` in closed form.
    independent = pairs * rate * (1 - rate)
    dyadic = (degree - rate * (n - 1)).square().sum() - independent
    effective = torch.where(independent > 0, pairs * independent / torch.maximum(dyadic, independent), pairs)
    return _threshold(value, fmr, rate, pairs, effective)


def cosine_threshold(threshold: SupportsFloat) -> float:
    """The threshold as a number; DataError unless it is a cosine."""
    if isinstance(threshold, str) or not -1 <= float(threshold) <= 1:
        raise DataError(
            "threshold out of range: it is a cosine",
            expected="a Threshold, or a number in [-1, 1]",
            got=repr(threshold),
            fix="ffs.threshold_at_fmr(ffs.impostor_scores(embeddings), fmr=1e-3), or pipeline.threshold(fmr=1e-3)",
        )
    return float(threshold)


# --- details -------------------------------------------------------------------------------------------------------


class _Pairs(NamedTuple):
    """All pairs as a list that is never written out: faces by group and identity, each with its later partners.

    `rows` [n] are the faces in that order; the face at place p has `partners[p]` impostors after it, which are the last
    ones of its group and end before `group_end[p]`; `total` is their sum.
    """

    rows: Tensor
    group_end: Tensor
    partners: Tensor
    total: int
    identities: Tensor


def _list_pairs(n: int, device: torch.device, ids: Tensor | None, groups: Tensor | None) -> _Pairs:
    rows = torch.arange(n, device=device)
    if ids is None and groups is None:
        return _Pairs(rows, torch.full_like(rows, n), n - 1 - rows, n * (n - 1) // 2, rows)
    identities = rows if ids is None else numbered(ids)
    group = torch.zeros_like(rows) if groups is None else numbered(groups)
    both = group * max(n, 1) + identities
    rows = both.argsort()
    group, both = group[rows], both[rows]
    group_end = torch.searchsorted(group, group, right=True)
    partners = group_end - torch.searchsorted(both, both, right=True)
    if groups is not None:
        partners = torch.where(groups[rows] < 0, 0, partners)
    return _Pairs(rows, group_end, partners, int(partners.sum()), identities)


def _pair_blocks(x: Tensor, block: int) -> Iterator[tuple[int, int, Tensor]]:
    """Scores of rows i … against rows j …, every pair once; −2 for what is no pair."""
    product = BlockProduct(x, block)
    for i in range(0, len(x), block):
        for j in range(i, len(x), block):
            scores = product(take_rows(x, slice(i, i + block)), take_rows(x, slice(j, j + block)))
            yield i, j, scores if i < j else scores.masked_fill(torch.ones_like(scores).tril_().bool(), -2.0)


def _allowed_matches(fmr: float, comparisons: int) -> int:
    if not 0 < fmr < 1:
        raise DataError("the FMR is a share", expected="0 < fmr < 1", got=fmr)
    allowed = math.floor(fmr * comparisons + 1e-6)
    if allowed < RULE_OF_30:
        raise DataError(
            f"too few impostor scores for an FMR of {fmr:g}",
            expected=f"{math.ceil(RULE_OF_30 / fmr):,} or more (30 false matches, the rule of 30)",
            got=f"{comparisons:,}",
            fix="raise n_pairs, embed more identities (n give n(n − 1)/2 pairs), or ask for a higher FMR",
        )
    return allowed


def _just_above(refused: Tensor, fmr: float, comparisons: int) -> Tensor:
    """The lowest cosine above the highest score that must not match."""
    value = torch.nextafter(refused, torch.full_like(refused, torch.inf))
    # The cosine of an embedding with its own copy is 1 up to rounding, below as well as above.
    if not float(value) < 1 - 8 * torch.finfo(value.dtype).eps:
        raise DataError(
            f"no cosine keeps an FMR of {fmr:g}",
            expected=f"at most {math.floor(fmr * comparisons + 1e-6):,} of {comparisons:,} impostor scores at 1",
            got="more",
            fix="the same faces are listed as several identities: pass ids=, or remove the repeats",
        )
    return value


def _threshold(value: Tensor, fmr: float, reached: Tensor, comparisons: int, effective: Tensor) -> Threshold:
    low, high = wilson_interval(reached * effective, effective)
    at, share, lowest, highest, worth = torch.stack((value.double(), reached, low, high, effective)).tolist()
    return Threshold(at, fmr, share, lowest, highest, comparisons, worth)


def _effective_comparisons(matched: Tensor, impostors: ImpostorScores | Tensor) -> Tensor:
    n = torch.full((), len(matched), dtype=torch.float64, device=matched.device)
    if isinstance(impostors, Tensor):
        return n
    rate = matched.double().mean()
    error = matched.double() - rate
    first, second = impostors.identities[impostors.first], impostors.identities[impostors.second]
    people = len(impostors.identities)
    sums = error.new_zeros(people).index_add_(0, first, error).index_add_(0, second, error)
    key = torch.minimum(first, second) * people + torch.maximum(first, second)
    dyads, dyad = key.unique(return_inverse=True)
    repeated = error.new_zeros(len(dyads)).index_add_(0, dyad, error).square().sum()
    independent = error.square().sum()
    dyadic = sums.square().sum() - repeated  # two identities' comparisons are in the sums of both
    ratio = independent / torch.stack((dyadic, repeated, independent)).max()
    return torch.where(independent > 0, n * ratio, n)  # no match at all, as ties can have it: no variance to go by
