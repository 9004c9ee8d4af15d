from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from fairface_synth import DataError, ShapeError
from fairface_synth.quality import PRDC, expected_coverage, kid, prdc

FIGURES = ("precision", "recall", "density", "coverage")


def _sets(n: int, m: int, d: int = 4, seed: int = 0, shift: float = 0.3, scale: float = 0.9) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    real = torch.randn(n, d, generator=rng, dtype=torch.float64)
    return real, torch.randn(m, d, generator=rng, dtype=torch.float64) * scale + shift


def _values(result: PRDC) -> list[float]:
    return [float(getattr(result, f).value) for f in FIGURES]


def _definitions(real: Tensor, fake: Tensor, k: int) -> list[float]:
    """Naeem et al. 2020, eq. 1-5, read off the full distance matrix; radii from scikit-learn."""
    x, y = real.numpy(), fake.numpy()
    radius_x, radius_y = (NearestNeighbors(n_neighbors=k).fit(s).kneighbors()[0][:, -1] for s in (x, y))
    distance = cdist(x, y)
    in_real, in_fake = distance <= radius_x[:, None], distance <= radius_y[None]
    return [in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum() / (k * len(y)), in_real.any(1).mean()]


def _mmd2(x: np.ndarray, y: np.ndarray, degree: int = 3, gamma: float | None = None, coef0: float = 1.0) -> float:
    n, m = len(x), len(y)
    kxx, kyy, kxy = (polynomial_kernel(a, b, degree, gamma, coef0) for a, b in ((x, x), (y, y), (x, y)))
    within = (kxx.sum() - np.trace(kxx)) / (n * (n - 1)) + (kyy.sum() - np.trace(kyy)) / (m * (m - 1))
    return float(within - 2 * kxy.mean())


# --- KID ----------------------------------------------------------------------------------------------------------


@given(st.integers(3, 40), st.integers(3, 40), st.integers(1, 6), st.integers(1, 50), st.integers(1, 4))
def test_kid_is_the_unbiased_mmd_and_blocks_do_not_matter(n: int, m: int, d: int, block: int, degree: int) -> None:
    real, fake = _sets(n, m, d, seed=n + m)
    for gamma, coef0 in ((None, 1.0), (0.7, 0.0)):
        ours = kid(real, fake, degree=degree, gamma=gamma, coef0=coef0, block=block)
        oracle = _mmd2(real.numpy(), fake.numpy(), degree, gamma, coef0)
        assert float(ours.value) == pytest.approx(oracle, rel=1e-9, abs=1e-9)


def test_jackknife_error_equals_leaving_samples_out_one_by_one() -> None:
    real, fake = (x.numpy() for x in _sets(20, 13))
    variance = 0.0
    for size, values in (
        (20, [_mmd2(np.delete(real, i, 0), fake) for i in range(20)]),
        (13, [_mmd2(real, np.delete(fake, j, 0)) for j in range(13)]),
    ):
        variance += (size - 1) * np.var(values)
    ours = kid(torch.from_numpy(real), torch.from_numpy(fake), block=7)
    assert float(ours.standard_error) == pytest.approx(math.sqrt(variance), rel=1e-9)
    assert float(ours.high - ours.value) == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


def test_kid_of_two_halves_is_zero_on_average() -> None:
    values = torch.stack([kid(*_sets(60, 40, 8, seed, shift=0, scale=1)).value for seed in range(300)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / math.sqrt(300)
    assert float(values.min()) < 0 < float(values.max())


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.6)])
def test_kid_interval_covers(shift: float, scale: float) -> None:
    """The truth is the mean over many pairs of sets, since the estimate is unbiased."""
    results = [kid(*_sets(100, 100, 8, seed, shift, scale)) for seed in range(300)]
    truth = 0.0 if (shift, scale) == (0.0, 1.0) else float(torch.stack([r.value for r in results]).mean())
    covered = np.mean([float(r.low) <= truth <= float(r.high) for r in results])
    assert covered > 0.91
    spread = float(torch.stack([r.value for r in results]).std())
    errors = float(torch.stack([r.standard_error for r in results]).mean())
    assert 0.85 < errors / spread < 1.65  # √2 where the distributions are equal, as the docstring has it


def test_subsets_of_everything_are_the_estimate(rng) -> None:
    real, fake = _sets(50, 50)
    result = kid(real, fake, subsets=3, subset_size=1000, rng=rng)
    assert float(result.subset_mean) == pytest.approx(float(result.value), rel=1e-9)
    assert float(result.subset_std) == pytest.approx(0, abs=1e-9)
    small = kid(real, fake, subsets=200, subset_size=20, rng=rng)
    error = float(small.subset_std) / math.sqrt(200)
    assert abs(float(small.subset_mean) - float(small.value)) < 4 * error
    assert kid(real, fake).subset_mean is None


def test_unit_vectors_need_gamma_one() -> None:
    """Same mean, other covariance: gamma = 1/d hardly sees it, as the docstring warns."""
    rng = torch.Generator().manual_seed(1)
    scale = torch.cat((torch.full((32,), 1.25), torch.full((32,), 0.75)))
    real, fake = torch.randn(300, 64, generator=rng), torch.randn(300, 64, generator=rng) * scale
    real, fake = (x / x.norm(dim=1, keepdim=True) for x in (real, fake))
    plain, right = kid(real, fake), kid(real, fake, gamma=1.0)
    assert float(plain.low) < 0
    assert float(right.low) > 0


# --- precision, recall, density, coverage -------------------------------------------------------------------------


@given(st.integers(7, 60), st.integers(7, 60), st.integers(1, 5), st.integers(1, 6), st.integers(3, 70))
def test_prdc_matches_the_definitions_and_blocks_do_not_matter(n: int, m: int, d: int, k: int, block: int) -> None:
    real, fake = _sets(n, m, d, seed=n * m)
    ours = prdc(real, fake, k=k, resamples=0, block=block)
    assert _values(ours) == pytest.approx(_definitions(real, fake, k), abs=1e-12)
    assert math.isnan(float(ours.recall.low))


@given(st.integers(0, 1000))
def test_order_rotation_and_place_do_not_matter(seed: int) -> None:
    real, fake = _sets(40, 30, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=rng, dtype=torch.float64)).Q
    moved = [x[torch.randperm(len(x), generator=rng)] @ turn * 3 + 1e4 for x in (real, fake)]
    assert _values(prdc(*moved, resamples=0)) == pytest.approx(_values(prdc(real, fake, resamples=0)), abs=1e-12)


def test_swapping_the_sets_swaps_precision_and_recall() -> None:
    real, fake = _sets(50, 70)
    there, back = prdc(real, fake, resamples=0), prdc(fake, real, resamples=0)
    assert torch.equal(there.precision.value, back.recall.value)
    assert torch.equal(there.recall.value, back.precision.value)


@pytest.mark.parametrize("block", [7, 64, 2048])
def test_a_set_against_itself_is_perfect(block: int) -> None:
    """Every distance is tied here: k neighbours and the sample itself are inside each ball."""
    real, _ = _sets(100, 100, 16)
    for offset in (0.0, 100.0):
        result = prdc(real.float() + offset, real.float() + offset, k=5, resamples=0, block=block)
        assert _values(result) == pytest.approx([1, 1, 6 / 5, 1])


def test_copies_in_the_reference_still_count() -> None:
    """A real sample with k copies has a ball of radius 0: only a fake that equals it is inside."""
    real, fake = _sets(30, 30, 16, seed=3)
    real = torch.cat((real, real[:1].expand(5, -1)))
    without = prdc(real, fake, resamples=0)
    with_copy = prdc(real, torch.cat((fake[1:], real[:1])), resamples=0)
    assert float(with_copy.coverage.value) >= float(without.coverage.value) + 5 / 35


def test_known_worlds() -> None:
    real, fake = _sets(200, 200, 8, shift=50.0)
    assert _values(prdc(real, fake, resamples=0)) == [0, 0, 0, 0]
    collapsed = real[:1] + torch.randn(200, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3
    precision, recall, _, coverage = _values(prdc(real, collapsed, resamples=0))
    assert (precision, recall) == (1, 1 / 200)  # the one real sample at the centre is found
    assert coverage < 0.2


@pytest.mark.parametrize(("n", "m", "k"), [(50, 50, 5), (50, 20, 3), (30, 120, 1)])
def test_expected_coverage(n: int, m: int, k: int) -> None:
    simulated = torch.stack(
        [prdc(*_sets(n, m, 3, s, 0, 1), k=k, resamples=0).coverage.value for s in range(400)]
    )  # fmt: skip
    error = float(simulated.std()) / math.sqrt(400)
    assert abs(float(simulated.mean()) - expected_coverage(n, m, k)) < 3.5 * error


def test_density_of_equal_distributions_is_one_on_average() -> None:
    values = torch.stack([prdc(*_sets(60, 60, 3, s, 0, 1), k=4, resamples=0).density.value for s in range(300)])
    assert abs(float(values.mean()) - 1) < 3.5 * float(values.std()) / math.sqrt(300)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.25, 0.6)])
def test_prdc_intervals_cover(shift: float, scale: float) -> None:
    """The truth is the expectation at these sample sizes: the mean over many pairs of sets."""
    rng = torch.Generator().manual_seed(0)
    results = [prdc(*_sets(120, 120, 6, s, shift, scale), resamples=25, rng=rng) for s in range(110)]
    for figure in FIGURES:
        value, low, high = (torch.stack(parts) for parts in zip(*(getattr(r, figure) for r in results), strict=True))
        covered = ((low <= value.mean()) & (value.mean() <= high)).double().mean()
        assert covered > 0.88, figure  # 95 % less three standard errors of 110 trials, and discreteness near 1
        if 0.05 < float(value.mean()) < 0.95:
            half_width = float((high - low).mean()) / (2 * 1.96)
            assert 0.8 < half_width / float(value.std()) < 1.6, figure


def test_intervals_follow_the_generator_and_contain_the_value(rng) -> None:
    real, fake = _sets(60, 40)
    a, b = (prdc(real, fake, resamples=10, rng=torch.Generator().manual_seed(1)) for _ in range(2))
    c = prdc(real, fake, resamples=10, rng=torch.Generator().manual_seed(2))
    assert torch.equal(a.recall.low, b.recall.low)
    assert not torch.equal(a.recall.low, c.recall.low)
    for figure in FIGURES:
        value, low, high = getattr(a, figure)
        assert 0 <= low <= value <= high
        assert figure == "density" or high <= 1


def test_a_perfect_share_still_has_an_interval(rng) -> None:
    real, _ = _sets(100, 0, 8)
    result = prdc(real, real + 1e-6, resamples=10, rng=rng)
    assert float(result.coverage.value) == 1
    assert 0.9 < float(result.coverage.low) < 1


def test_dtype_does_not_matter_and_prints() -> None:
    real, fake = _sets(50, 50)
    assert kid(real.float(), fake.float()).value.dtype == torch.float64
    half = prdc(real.half(), fake.half(), resamples=0)
    assert _values(half) == pytest.approx(_values(prdc(real.half().double(), fake.half().double(), resamples=0)))
    assert "coverage" in str(half)
    assert "nan" not in str(half)
    assert f"{expected_coverage(50, 50, 5):.3f} expected" in str(half)
    assert "50 real" in str(kid(real, fake))


@settings(max_examples=10)
@given(st.integers(2, 200), st.integers(0, 200), st.data())
def test_expected_coverage_is_a_probability_and_grows(n: int, m: int, data) -> None:
    k = data.draw(st.integers(1, n - 1))
    assert 0 <= expected_coverage(n, m, k) <= expected_coverage(n, m + 1, k) <= 1
    assert expected_coverage(n, 0, k) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: kid(x[0], y), ShapeError, "real is no set"),
        (lambda x, y: kid(x, y.long()), ShapeError, "fake is no set"),
        (lambda x, y: kid(x, y[:, :3]), ShapeError, "do not fit"),
        (lambda x, y: kid(x, y[:2]), DataError, "too few fake"),
        (lambda x, y: kid(x.where(x < 1, float("nan")), y), DataError, "NaN"),
        (lambda x, y: kid(x, y, gamma=0.0), DataError, "no such kernel"),
        (lambda x, y: kid(x, y, degree=0), DataError, "no such kernel"),
        (lambda x, y: kid(x, y, subsets=2, subset_size=2), DataError, "no such kernel"),
        (lambda x, y: kid(x, y, block=0), DataError, "block"),
        (lambda x, y: prdc(x[:5], y, resamples=0), DataError, "too few real"),
        (lambda x, y: prdc(x, y[:11]), DataError, "too few fake"),
        (lambda x, y: prdc(x, y, k=0), DataError, "k or resamples"),
        (lambda x, y: prdc(x, y, resamples=1), DataError, "k or resamples"),
        (lambda x, y: prdc(x, y / 0), DataError, "infinity"),
        (lambda x, y: expected_coverage(5, 5, 5), DataError, "sample sizes"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(*_sets(20, 20))
