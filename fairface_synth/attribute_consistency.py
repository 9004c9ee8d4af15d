"""How alike the attributes of one identity's images are.

Neto et al. 2024 (arXiv 2404.15234) study intra-class consistency; how they define it was not found. The measures here
are this library's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .annotation_sources import as_annotations
from .attribute_counts import attribute_frame, marked, noise_note
from .errors import DataError
from .reports import Z95, markdown_table

_AT_ONCE = 4096  # identities that are resampled together


@dataclass(frozen=True, eq=False)
class Consistency:
    """How alike the labels of one identity's images are, attribute by attribute.

    Attributes:
        names, noisy: of the schema.
        n_min: see `consistency`.
        used: identities with at least n_min defined labels, int64 [K].
        reason: why values are NaN; "" if none is.
        name: of the set.
        majority: mean over identities of max(pᵢ, 1 − pᵢ), where pᵢ is the identity's rate: 0.5 … 1.
        information: mean over identities of 1 − H(pᵢ)/ln 2: 0 … 1.
        majority_low, majority_high, information_low, information_high: 95 % intervals over identities.
        majority_chance, information_chance: what labels drawn independently at the set's rate would give, for the same
            numbers of images. Both measures are biased upwards where identities have few images: with two, the majority
            rate of a fair coin is 0.75. Compare with chance, never with 0.5 or 0.
    """

    names: tuple[str, ...]
    noisy: Mapping[str, str]
    n_min: int
    used: Tensor
    reason: str
    name: str
    majority: Tensor
    majority_low: Tensor
    majority_high: Tensor
    majority_chance: Tensor
    information: Tensor
    information_low: Tensor
    information_high: Tensor
    information_chance: Tensor

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{attribute: {majority, …, used, noisy}}."""
        return {
            a: {x: float(getattr(self, x)[k]) for x in _AGREEMENT}
            | {"used": int(self.used[k]), "noisy": self.noisy.get(a, "")}
            for k, a in enumerate(self.names)
        }

    def to_frame(self) -> Any:
        """A pandas frame with a row for each attribute."""
        return attribute_frame(self.to_dict())

    def __str__(self) -> str:
        if bool(self.majority.isnan().all()):
            return f"Consistency of {self.name or 'the set'}: undefined. {self.reason}"
        rows = []
        for a, r in self.to_dict().items():
            cells = [
                f"{r[m]:.3f} [{r[m + '_low']:.3f}, {r[m + '_high']:.3f}]" if r[m] == r[m] else "–"
                for m in ("majority", "information")
            ]
            chance = [f"{r[m]:.3f}" for m in ("majority_chance", "information_chance")]
            rows.append([marked(a, self.noisy), cells[0], chance[0], cells[1], chance[1], str(r["used"])])
        header = ["attribute", "majority rate [95 %]", "by chance", "1 − H/ln 2 [95 %]", "by chance", "identities"]
        notes = [f"Identities with at least {self.n_min} defined labels.", *([self.reason] if self.reason else [])]
        return "\n".join([markdown_table(header, rows), "", *notes, *noise_note(self.noisy)])


_AGREEMENT = tuple(f"{m}{end}" for m in ("majority", "information") for end in ("", "_low", "_high", "_chance"))


def consistency(
    annotations: Any,
    n_min: int = 2,
    *,
    threshold: float | Tensor = 0.5,
    min_reliability: float | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> Consistency:
    """Intra-class consistency: the mean, over identities, of how far their images agree on each attribute.

    Neto et al. 2024 study it; how they define it was not found. The majority rate and the normalised information here
    are this library's. Rows of an identity may lie anywhere in the set: sums are kept for each, and the end takes about
    80·K bytes for each.

    Args:
        annotations: whatever `as_annotations` reads.
        n_min: fewest defined labels an identity needs, ≥ 2.
        threshold, min_reliability: of `count_attributes`.
        replicates, seed: of the bootstrap over identities.

    Returns:
        NaN with a reason for a set without identities, or an attribute without an identity of n_min labels.
    """
    if not isinstance(n_min, Integral) or n_min < 2 or not isinstance(replicates, Integral) or replicates < 2:
        got = f"n_min={n_min}, replicates={replicates}"
        raise DataError("one image cannot disagree", expected="whole n_min ≥ 2, whole replicates ≥ 2", got=got)
    opened = as_annotations(annotations)
    names, noisy, k = opened.schema.names, opened.schema.noisy, len(opened.schema)
    place: dict[str, int] = {}
    sums = torch.zeros(2, 0, k, dtype=torch.int32)  # positives, defined
    for batch in opened.batches():
        if batch.identities is None:
            nothing = {x: torch.full((k,), torch.nan, dtype=torch.float64) for x in _AGREEMENT}
            reason = f"{opened.name or 'The set'} has no identities."
            return Consistency(names, noisy, n_min, torch.zeros(k, dtype=torch.int64), reason, opened.name, **nothing)
        found, unit = np.unique(batch.identities, return_inverse=True)
        rows = torch.tensor([place.setdefault(i, len(place)) for i in found.tolist()])[torch.from_numpy(unit)]
        if len(place) > sums.shape[1]:  # room for twice as many, so that it is copied seldom
            sums = torch.cat((sums, sums.new_zeros(2, 2 * len(place) - sums.shape[1], k)), dim=1)
        labels = batch.labels(threshold, min_reliability).cpu()
        for total, marks in zip(sums, (labels > 0, labels != 0), strict=True):
            total.index_add_(0, rows, marks.int())
    if not place:
        raise DataError("the set is empty", expected="one row or more", got=0)
    positives, defined = sums[:, : len(place)].double()
    return _consistency(names, noisy, positives, defined, n_min, replicates, seed, opened.name)


def _consistency(
    names: tuple[str, ...],
    noisy: Mapping[str, str],
    positives: Tensor,
    defined: Tensor,
    n_min: int,
    replicates: int,
    seed: int,
    name: str,
) -> Consistency:
    """From the sums of each identity, [I, K]."""
    enough = (defined >= n_min).double()
    used = enough.sum(0)
    values = _agreement(positives, defined.clamp_min(1))  # [2, I, K]
    rate = positives.sum(0) / defined.sum(0)
    chance = _chance(defined, enough, rate)
    mean = (values * enough).sum(1) / used
    rng, drawn = np.random.default_rng(seed), torch.zeros(3, replicates, len(names), dtype=torch.float64)
    parts = (x.split(_AT_ONCE) for x in (*values * enough, enough))
    for columns in zip(*parts, strict=True):  # never all weights at once
        weights = torch.from_numpy(rng.poisson(1.0, (len(columns[0]), replicates))).double()
        drawn += torch.stack([weights.T @ column for column in columns])
    draws = drawn[:2] / drawn[2]
    half = Z95 * _deviation(draws, used)
    low, high = (mean - half).clamp_min(0), (mean + half).clamp_max(1)
    low[0] = low[0].clamp_min(0.5)
    low, high = (torch.where(used > 1, x, torch.nan) for x in (low, high))
    lacking = [a for a, n in zip(names, used.tolist(), strict=True) if not n]
    reason = f"No identity has {n_min} defined labels of: {', '.join(lacking)}." if lacking else ""
    figures = dict(zip(_AGREEMENT, [x[m] for m in range(2) for x in (mean, low, high, chance)], strict=True))
    return Consistency(names, noisy, n_min, used.long(), reason, name, **figures)


def _deviation(draws: Tensor, used: Tensor) -> Tensor:
    """Standard deviation over replicates [2, R, K], without those that drew no identity; for I of them, not I − 1."""
    empty = draws.isnan()
    n = (~empty).sum(1)
    centre = draws.nan_to_num(0).sum(1) / n
    square = torch.where(empty, 0, (draws - centre[:, None]).square()).sum(1)
    return (square / (n - 1) * used / (used - 1)).sqrt()


def _agreement(positives: Tensor, n: Tensor) -> Tensor:
    """Majority rate and 1 − H/ln 2 of x positives among n, [2, …]."""
    p = positives / n
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
    return torch.stack((torch.maximum(p, 1 - p), 1 - entropy / math.log(2)))


def _chance(defined: Tensor, enough: Tensor, rate: Tensor) -> Tensor:
    """Expected agreement [2, K] if labels were independent with the set's rate, for these numbers of labels."""
    from scipy.stats import binom

    total = torch.zeros(2, defined.shape[1], dtype=torch.float64)
    for n in torch.unique(defined[enough > 0]).tolist():
        x = torch.arange(n + 1, dtype=torch.float64)
        chances = torch.from_numpy(binom.pmf(x[:, None].numpy(), n, rate.nan_to_num(0.5).numpy()))  # [n + 1, K]
        share = ((defined == n) * enough).sum(0)
        total += (_agreement(x, torch.tensor(n))[:, :, None] * chances).sum(1) * share
    return total / enough.sum(0)
