"""Figures with 95 % intervals, from a bootstrap over identities."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .comparisons import Comparisons
from .reports import Z95, wilson_interval

MIN_IDENTITIES = 10  # below it, a bootstrap over identities says little about how they vary
_CHUNK = 2**20  # weights held at a time by the bootstrap: 8 MB


class Measured(NamedTuple):
    """A figure with its 95 % interval; NaN where there is none, and then `reason` says why."""

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.3g}" + ("" if math.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]")

    def complement(self) -> Measured:
        """1 − the figure."""
        return Measured(1 - self.value, 1 - self.high, 1 - self.low, self.reason)


def measured_dict(m: Measured) -> dict[str, Any]:
    """{value, low, high, reason}, without an empty reason."""
    return {k: v for k, v in m._asdict().items() if v != ""}


def interval_columns(name: str, m: Measured) -> dict[str, float]:
    """The figure and the ends of its interval, as columns of a table."""
    return {name: m.value, f"{name}_low": m.low, f"{name}_high": m.high}


def measured(
    value: float,
    resampled: Tensor | None,
    why_not: str = "",
    no_interval: str = "",
    trials: Trials | None = None,
) -> Measured:
    """A figure with its interval, or why there is none.

    Args:
        value: the estimate.
        resampled: the same on each resample [B].
        why_not: why there is no estimate.
        no_interval: why there is no interval.
        trials: for error rates: then Wilson's interval at the number of independent comparisons that has the
            resamples' variance, lowered for the degrees of freedom of that variance (as Korn & Graubard 1998). It is
            not one-sided where errors are few. None: percentiles.
    """
    if why_not or math.isnan(value):
        return Measured(math.nan, reason=why_not or "not defined")
    if no_interval or resampled is None:
        return Measured(value, reason=no_interval)
    if trials is None:
        low, high = percentiles(resampled)
        return Measured(value, low, high) if low == low else Measured(value, reason="not defined in most resamples")
    known = resampled[~resampled.isnan()]
    if len(known) < max(2, 0.9 * len(resampled)):
        return Measured(value, reason="not defined in most resamples")
    from scipy.special import stdtrit

    variance = float(known.var())
    effective = trials.least
    if variance > 0:
        student = float(stdtrit(max(1.0, trials.even - 1), 0.975))
        effective = max(effective, value * (1 - value) / variance) * (Z95 / student) ** 2
    trial = torch.tensor(min(effective, trials.made), dtype=torch.float64)
    low_end, high_end = wilson_interval(value * trial, trial)
    return Measured(value, min(float(low_end), value), max(float(high_end), value))


class Trials(NamedTuple):
    """What is behind an error rate: mated, or non-mated comparisons.

    Attributes:
        made: comparisons.
        people: identities in them; None where unknown.
        even: how many identities with equally many comparisons would vary as much (Kish): fewer than `people` where
            some have many more than others.
        least: how many independent comparisons they are worth at least: of mated ones `even`, of non-mated ones, which
            share each of two identities with others, half of it.
    """

    made: int
    people: int | None
    even: float
    least: float


def percentiles(resampled: Tensor) -> tuple[float, float]:
    """2.5 % and 97.5 % of the resamples that are not NaN (inf counts as large); NaN if more than one in ten is NaN."""
    known = resampled[~resampled.isnan()].sort().values
    if len(known) < 0.9 * len(resampled) or not len(known):
        return math.nan, math.nan
    last = len(known) - 1
    return float(known[math.floor(0.025 * last)]), float(known[math.ceil(0.975 * last)])


def few_identities(people: int | None, comparisons: str = "") -> str:
    """Why a bootstrap over so many identities (of these comparisons) is not shown; "" if it is."""
    if people is None or people >= MIN_IDENTITIES:
        return ""
    have = f" with {comparisons} comparisons" if comparisons else ""
    return f"{people} identities{have} are too few for an interval ({MIN_IDENTITIES} or more)"


def identity_weights(c: Comparisons, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each identity is drawn, float64 [B, I], in chunks of `resamples` in all; none without identities.

    Drawn with replacement within groups, so that each group keeps its number of identities. An identity whose faces
    are in several groups is drawn with the last of them; those in no group are drawn among themselves.
    """
    if c.identities is None or resamples == 0:
        return
    device, stratum = c.scores.device, c.identity_groups()
    people = len(stratum)
    present = torch.zeros(people, dtype=torch.bool, device=device)
    present[c.identities.flatten()] = True
    who = present.nonzero().squeeze(1)
    who = who[stratum[who].argsort(stable=True)]
    label = stratum[who]
    start, end = (torch.searchsorted(label, label, right=right) for right in (False, True))
    rng = torch.Generator(device).manual_seed(seed)
    chunk = max(1, min(resamples, _CHUNK // len(c.scores)))
    for done in range(0, resamples, chunk):
        size = min(chunk, resamples - done)
        u = torch.rand(size, len(who), dtype=torch.float64, generator=rng, device=device)
        drawn = who[(start + (u * (end - start)).long()).minimum(end - 1)]
        weights = torch.zeros(size, people, dtype=torch.float64, device=device)
        yield weights.scatter_add_(1, drawn, torch.ones_like(u))
