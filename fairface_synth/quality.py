"""How near a set of images is to a reference set, in any feature space: KID, precision, recall, density, coverage.

Everything takes features, real [n, d] and fake [m, d], and the caller chooses the network: a figure means nothing
without its name, and figures from different features do not compare. Kernels and distances are computed in blocks and
in float64, so memory does not grow with n·m and differences of large sums keep their digits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, ShapeError
from .reports import Z95, wilson_interval

# Squared distances from matrix products err by about 1e-14 of the squared norms. Anything below this share of them is
# a tie, and ties are inside: then exact copies, and the block size, make no difference.
_TIE = 1e-11


class Estimate(NamedTuple):
    """A figure and its 95 % interval, each a float64 scalar tensor; NaN ends where no interval was asked for."""

    value: Tensor
    low: Tensor
    high: Tensor

    def __str__(self) -> str:
        low, high = float(self.low), float(self.high)
        return f"{float(self.value):.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")


@dataclass(frozen=True)
class KID:
    """Kernel inception distance: squared maximum mean discrepancy, 0 in expectation for equal distributions.

    Attributes:
        value: unbiased estimate from all samples, a float64 scalar; may be negative.
        low, high: 95 % interval.
        standard_error: jackknife standard error.
        subset_mean, subset_std: mean and standard deviation over random subsets, as torch-fidelity prints them;
            None unless asked for. The deviation depends on the subset size and is not an error of the mean.
        n_real, n_fake: sample sizes.
    """

    value: Tensor
    low: Tensor
    high: Tensor
    standard_error: Tensor
    subset_mean: Tensor | None
    subset_std: Tensor | None
    n_real: int
    n_fake: int

    def __str__(self) -> str:
        text = f"KID {float(self.value):.3g} [{float(self.low):.3g}, {float(self.high):.3g}]"
        return f"{text} ({self.n_real} real, {self.n_fake} fake)"


@dataclass(frozen=True)
class PRDC:
    """Fidelity and diversity of a set, from k-nearest-neighbour balls.

    Attributes:
        precision: share of fakes inside the balls around the real samples (fidelity).
        recall: share of reals inside the balls around the fake samples (diversity).
        density: mean number of real balls a fake is in, over k (fidelity; 1 for equal distributions, can exceed 1).
        coverage: share of real balls with a fake in them (diversity).
        k: neighbours.
        n_real, n_fake: sample sizes. All four figures depend on them: compare sets of equal size only.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate
    k: int
    n_real: int
    n_fake: int

    @property
    def expected_coverage(self) -> float:
        """Coverage of a perfect generator at these sample sizes; see the function of the same name."""
        return expected_coverage(self.n_real, self.n_fake, self.k)

    def __str__(self) -> str:
        names = ("precision", "recall", "density", "coverage")
        lines = [f"{name:9} {getattr(self, name)}" for name in names]
        size = f"({self.n_real} real, {self.n_fake} fake, k = {self.k})"
        return "\n".join(lines) + f"; {self.expected_coverage:.3f} expected of equal distributions\n{size}"


def kid(
    real: Tensor,
    fake: Tensor,
    *,
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    subsets: int = 0,
    subset_size: int = 1000,
    rng: torch.Generator | None = None,
    block: int = 2048,
) -> KID:
    """Kernel inception distance (Bińkowski et al. 2018, arXiv 1801.01401, §4): unbiased MMD², polynomial kernel.

    The value uses every pair of samples once. Its interval is value ± 1.96 standard errors of the two-sample
    delete-one jackknife (Arvesen 1969), whose leave-one-out values follow from row sums of the kernel, without
    resampling. A bootstrap would pair copies of a sample and so put the kernel's diagonal, which the unbiased estimate
    leaves out, back in. The jackknife errs on the safe side (Efron & Stein 1981): where the distributions are equal,
    its variance is about twice too large.

    Args:
        real: features [n, d] of the reference, any float dtype and device.
        fake: features [m, d] of the set that is judged.
        degree, gamma, coef0: of the kernel (γ·x·y + coef0)^degree; γ is 1/d unless given. For unit vectors pass
            gamma=1: with 1/d, x·y/d is so small that the kernel is all but linear and sees little beyond the means.
        subsets: also report mean and deviation over so many random subsets, as torch-fidelity does. 0: leave out.
        subset_size: samples of either set in a subset; cut to the smaller set.
        rng: for the subsets.
        block: side of the kernel blocks in memory.

    Raises:
        ShapeError, DataError: different widths, NaN, fewer than 3 samples, a kernel that is none.
    """
    _check(real, fake, at_least=3, block=block)
    gamma = 1 / real.shape[1] if gamma is None else gamma
    if degree < 1 or not gamma > 0 or coef0 < 0 or subsets < 0 or subset_size < 3:
        got = f"{degree=}, {gamma=}, {coef0=}, {subsets=}, {subset_size=}"
        raise DataError(
            "no such kernel or subsets", expected="degree ≥ 1, gamma > 0, coef0, subsets ≥ 0, size ≥ 3", got=got
        )
    x, y = real.detach().double() * math.sqrt(gamma), fake.detach().double() * math.sqrt(gamma)
    value, error = _mmd2(x, y, degree, coef0, block)
    mean = std = None
    if subsets:
        size = min(subset_size, len(x), len(y))
        draws = [
            _mmd2(x[_choose(len(x), size, rng, x)], y[_choose(len(y), size, rng, y)], degree, coef0, block)[0]
            for _ in range(subsets)
        ]
        mean, std = torch.stack(draws).mean(), torch.stack(draws).std(correction=0)
    return KID(value, value - Z95 * error, value + Z95 * error, error, mean, std, len(x), len(y))


def prdc(
    real: Tensor,
    fake: Tensor,
    *,
    k: int = 5,
    resamples: int = 100,
    rng: torch.Generator | None = None,
    block: int = 2048,
) -> PRDC:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020,
    arXiv 2002.09797). A ball reaches from a sample to its k-th neighbour within its own set, boundary included.

    Intervals are about the figure's expectation at these sample sizes, and count the randomness of both sets. They come
    from `resamples` random halves of either set, drawn without replacement: the spread over halves is the standard
    error of the whole (delete-d jackknife with d = n/2; Shao & Wu 1989). Resampling with replacement would be wrong
    here: copies of a sample are each other's nearest neighbours, balls shrink, and every figure is biased. Shares get
    a Wilson interval at the effective sample size that this error implies (at most the real one), so that it does not
    collapse at 0 or 1; density gets value ± 1.96 errors.

    Args:
        real: features [n, d] of the reference, any float dtype and device.
        fake: features [m, d] of the set that is judged.
        k: neighbours that set the radius; 5 as Naeem et al. have it (3 in Kynkäänniemi et al.).
        resamples: halves; 0 leaves the intervals out. They cost a quarter of the estimate each.
        rng: for the halves.
        block: side of the distance blocks in memory.

    Raises:
        ShapeError, DataError: different widths, NaN, fewer than k + 1 samples (2k + 2 with intervals).
    """
    if k < 1 or resamples < 0 or resamples == 1:
        raise DataError("k or resamples out of range", expected="k ≥ 1, resamples 0 or ≥ 2", got=f"{k}, {resamples}")
    _check(real, fake, at_least=2 * k + 2 if resamples else k + 1, block=block)
    # Distances do not depend on the origin, but their cancellation does.
    centre = real.detach().double().mean(0)
    x, y = real.detach().double() - centre, fake.detach().double() - centre
    value = _prdc(x, y, k, block)
    spread = torch.full_like(value, torch.nan)
    if resamples:
        halves = [
            _prdc(x[_choose(len(x), len(x) // 2, rng, x)], y[_choose(len(y), len(y) // 2, rng, y)], k, block)
            for _ in range(resamples)
        ]
        spread = torch.stack(halves).var(0)
    low, high = _intervals(value, spread, value.new_tensor([len(y), len(x), len(y), len(x)]))
    precision, recall, density, coverage = map(Estimate, value, low, high)
    return PRDC(precision, recall, density, coverage, k, len(x), len(y))


def expected_coverage(n_real: int, n_fake: int, k: int = 5) -> float:
    """Coverage where real and fake come from one distribution: 1 − Π_{i=1..k} (N − i) / (N + M − i), N real and M fake.

    Naeem et al. 2020, Lemma 2: no fake is in a real sample's ball if its k nearest among all others are real. Holds
    for every continuous distribution; about 1 − 2^−k for equal sizes, so k = 5 cannot tell 0.97 from perfect.
    """
    if not 1 <= k < n_real or n_fake < 0:
        raise DataError(
            "no such sample sizes", expected="1 ≤ k < n_real, n_fake ≥ 0", got=f"{k=}, {n_real=}, {n_fake=}"
        )
    return 1 - math.prod((n_real - i) / (n_real + n_fake - i) for i in range(1, k + 1))


# --- details ------------------------------------------------------------------------------------------------------


def _check(real: Tensor, fake: Tensor, *, at_least: int, block: int) -> None:
    for name, x in (("real", real), ("fake", fake)):
        if x.ndim != 2 or not x.is_floating_point():
            raise ShapeError(f"{name} is no set of features", expected="float [n, d]", got=f"{list(x.shape)} {x.dtype}")
        if len(x) < at_least or x.shape[1] == 0:
            raise DataError(f"too few {name} samples", expected=f"[n ≥ {at_least}, d ≥ 1]", got=list(x.shape))
        if has_values(x) and not bool(x.isfinite().all()):
            raise DataError(f"{name} features hold NaN or infinity", fix="leave such samples out, and count them")
    if real.shape[1] != fake.shape[1] or real.device != fake.device:
        raise ShapeError(
            "features do not fit each other",
            expected=f"[m, {real.shape[1]}] on {real.device}",
            got=f"{list(fake.shape)} on {fake.device}",
            fix="use the same network for both sets",
        )
    if block < 1:
        raise DataError("block out of range", expected="≥ 1", got=block)


def _choose(n: int, size: int, rng: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.randperm(n, generator=rng, device=like.device)[:size]


def _mmd2(x: Tensor, y: Tensor, degree: int, coef0: float, block: int) -> tuple[Tensor, Tensor]:
    """Unbiased MMD² and its jackknife standard error. x, y are scaled by √γ."""
    n, m = len(x), len(y)
    xx, yy = _within_sums(x, degree, coef0, block), _within_sums(y, degree, coef0, block)
    xy, yx = _cross_sums(x, y, degree, coef0, block)
    within = xx.sum() / (n * (n - 1)), yy.sum() / (m * (m - 1))
    value = within[0] + within[1] - 2 * xy.sum() / (n * m)
    variance = value.new_zeros(())
    for own, cross, size, other in ((xx, xy, n, m), (yy, yx, m, n)):
        # Leave-one-out values, less the term of the other set alone.
        without = (own.sum() - 2 * own) / ((size - 1) * (size - 2))
        without = without - 2 * (cross.sum() - cross) / ((size - 1) * other)
        variance = variance + (size - 1) * without.var(correction=0)
    return value, variance.sqrt()


def _within_sums(x: Tensor, degree: int, coef0: float, block: int) -> Tensor:
    """Σ_{j≠i} k(x_i, x_j) for each i [n]."""
    return _cross_sums(x, x, degree, coef0, block)[0] - (x.square().sum(1) + coef0) ** degree


def _cross_sums(x: Tensor, y: Tensor, degree: int, coef0: float, block: int) -> tuple[Tensor, Tensor]:
    """Σ_j k(x_i, y_j) [n] and Σ_i k(x_i, y_j) [m]."""
    rows, columns = [], [y.new_zeros(len(part)) for part in y.split(block)]
    for a in x.split(block):
        row = x.new_zeros(len(a))
        for j, b in enumerate(y.split(block)):
            kernel = (a @ b.T + coef0) ** degree
            row = row + kernel.sum(1)
            columns[j] = columns[j] + kernel.sum(0)
        rows.append(row)
    return torch.cat(rows), torch.cat(columns)


def _prdc(x: Tensor, y: Tensor, k: int, block: int) -> Tensor:
    """[precision, recall, density, coverage] of y [m, d] against x [n, d]."""
    tie = _TIE * x.square().sum(1).mean()
    real_radius, fake_radius = (_radii(points, k, block) + tie for points in (x, y))
    balls = [y.new_zeros(len(part)) for part in y.split(block)]
    covered, recalled = [], []
    for a, radius in zip(x.split(block), real_radius.split(block), strict=True):
        hit = torch.zeros_like(radius, dtype=torch.bool)
        found = torch.zeros_like(hit)
        for j, (b, other) in enumerate(zip(y.split(block), fake_radius.split(block), strict=True)):
            distance = _squared_distances(a, b)
            inside = distance <= radius.unsqueeze(1)
            balls[j] = balls[j] + inside.sum(0)
            hit = hit | inside.any(1)
            found = found | (distance <= other).any(1)
        covered.append(hit)
        recalled.append(found)
    count = torch.cat(balls)
    shares = [count > 0, torch.cat(recalled), count / k, torch.cat(covered)]
    return torch.stack([s.to(x.dtype).mean() for s in shares])


def _radii(x: Tensor, k: int, block: int) -> Tensor:
    """Squared distance [n] of each sample to its k-th nearest other."""
    result = []
    for a in x.split(block):
        nearest = a.new_full((len(a), k + 1), torch.inf)
        for b in x.split(block):
            nearest = torch.cat((nearest, _squared_distances(a, b)), dim=1).topk(k + 1, largest=False).values
        result.append(nearest.amax(1))  # the nearest of all is the sample itself
    return torch.cat(result)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[n, m], by one matrix product."""
    norms = a.square().sum(1, keepdim=True) + b.square().sum(1)
    return torch.addmm(norms, a, b.T, alpha=-2).clamp_min(0)


def _intervals(value: Tensor, variance: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """95 % limits of [precision, recall, density, coverage] whose variances are known."""
    error = Z95 * variance.sqrt()
    effective = (value * (1 - value) / variance.clamp_min(1e-300)).minimum(size)
    effective = torch.where(value * (1 - value) > 0, effective, size)
    low, high = wilson_interval(value * effective, effective)
    is_density = torch.arange(4, device=value.device) == 2
    low = torch.where(is_density, (value - error).clamp_min(0), low)
    high = torch.where(is_density, value + error, high)
    known = ~variance.isnan()
    return torch.where(known, low, torch.nan), torch.where(known, high, torch.nan)
