from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_embeddings import noisy_faces, unit_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fairface_synth import (
    DataError,
    ImpostorScores,
    ShapeError,
    impostor_scores,
    threshold_among,
    threshold_at_fmr,
)


@given(st.integers(1, 30), st.integers(1, 6), st.integers(-1, 3), st.booleans(), st.integers(0, 10**6))
def test_all_impostor_pairs_are_listed_once(n: int, people: int, groups: int, use_ids: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = unit_rows(n, 5, seed)
    ids = torch.randint(-3, people, (n,), generator=rng) if use_ids else None
    group = torch.randint(-1, groups + 1, (n,), generator=rng) if groups >= 0 else None
    expected = {
        (i, j)
        for i in range(n)
        for j in range(i)
        if (ids is None or ids[i] != ids[j]) and (group is None or group[i] == group[j] >= 0)
    }
    if not expected:
        with pytest.raises(DataError, match="no two identities"):
            impostor_scores(x, ids, groups=group)
        return
    found = impostor_scores(x, ids, groups=group)
    pairs = [(max(a, b), min(a, b)) for a, b in zip(found.first.tolist(), found.second.tolist(), strict=True)]
    assert len(pairs) == len(expected)
    assert set(pairs) == expected
    torch.testing.assert_close(found.scores, (x[found.first] * x[found.second]).sum(1))
    if ids is not None:
        same = found.identities.unsqueeze(0) == found.identities.unsqueeze(1)
        assert same.equal(ids.unsqueeze(0) == ids.unsqueeze(1))


def test_sampled_pairs_are_impostors_spread_evenly_and_reproducible() -> None:
    x, ids = noisy_faces(60, 5, 0.2)
    draw = impostor_scores(x, ids, n_pairs=20_000, rng=torch.Generator().manual_seed(1))
    again = impostor_scores(x, ids, n_pairs=20_000, rng=torch.Generator().manual_seed(1))
    other = impostor_scores(x, ids, n_pairs=20_000, rng=torch.Generator().manual_seed(2))
    assert draw.scores.equal(again.scores)
    assert not draw.scores.equal(other.scores)
    assert bool((ids[draw.first] != ids[draw.second]).all())
    assert draw.scores.shape == (20_000,)
    used = torch.bincount(torch.cat((draw.first, draw.second)), minlength=300).double()
    assert 0.6 < float(used.min() / used.mean()) <= float(used.max() / used.mean()) < 1.4  # SD is 8 % of 133
    everything = impostor_scores(x, ids)
    assert float(draw.scores.mean()) == pytest.approx(float(everything.scores.mean()), abs=0.005)


def test_impostors_within_a_group_score_higher() -> None:
    centres = unit_rows(3, 32, 5)
    group = torch.arange(3).repeat(200)
    x = nn.functional.normalize(unit_rows(600, 32) + 0.8 * centres[group], dim=1)
    within = impostor_scores(x, groups=group)
    assert bool((group[within.first] == group[within.second]).all())
    assert threshold_at_fmr(within, 1e-2).value > threshold_at_fmr(impostor_scores(x), 1e-2).value


@given(st.integers(60, 400), st.floats(0.001, 0.999), st.integers(1, 200), st.integers(0, 10**6))
def test_the_threshold_is_the_lowest_that_keeps_the_fmr(n: int, fmr: float, levels: int, seed: int) -> None:
    """With ties (`levels`) too."""
    rng = torch.Generator().manual_seed(seed)
    scores = (torch.rand(n, generator=rng) * levels).round() / levels
    if math.floor(fmr * n + 1e-6) < 30:
        with pytest.raises(DataError, match="rule of 30"):
            threshold_at_fmr(scores, fmr)
        return
    if float(scores.sort().values[-math.floor(fmr * n + 1e-6) - 1]) == 1:
        with pytest.raises(DataError, match="no cosine keeps"):
            threshold_at_fmr(scores, fmr)
        return
    threshold = threshold_at_fmr(scores, fmr)
    share = float((scores >= threshold.value).double().mean())
    assert share == pytest.approx(threshold.reached)
    assert share <= fmr + 1e-9
    assert float((scores >= np.nextafter(np.float32(threshold.value), np.float32(-1))).double().mean()) > fmr - 1e-9
    assert threshold.low <= threshold.reached + 1e-12 <= threshold.high
    assert float(threshold) == threshold.value


def test_the_rule_of_30_counts_exactly() -> None:
    scores = torch.rand(30_000, generator=torch.Generator().manual_seed(0))
    assert threshold_at_fmr(scores, 1e-3).comparisons == 30_000
    with pytest.raises(DataError, match="30,000 or more"):
        threshold_at_fmr(scores[1:], 1e-3)


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_bare_scores_get_wilson_s_interval(seed: int) -> None:
    from scipy.stats import binomtest

    scores = torch.rand(5000, generator=torch.Generator().manual_seed(seed))
    threshold = threshold_at_fmr(scores, 0.02)
    interval = binomtest(round(threshold.reached * 5000), 5000).proportion_ci(method="wilson")
    assert (threshold.low, threshold.high) == pytest.approx((interval.low, interval.high))


def _covered(use_pairs: bool, runs: int = 60) -> float:
    """How often the interval holds the FMR on a great many fresh impostors of the same kind."""
    fresh = impostor_scores(_lumpy(1400, 10**6)).scores.sort().values
    hits = 0
    for seed in range(runs):
        impostors = impostor_scores(_lumpy(150, seed))
        threshold = threshold_at_fmr(impostors if use_pairs else impostors.scores, 0.01)
        fmr = 1 - int(torch.searchsorted(fresh, threshold.value)) / len(fresh)
        hits += threshold.low <= fmr <= threshold.high
    return hits / runs


def _lumpy(n: int, seed: int) -> Tensor:
    """Faces of which some resemble everybody more: comparisons that share such a face go up together."""
    rng = torch.Generator().manual_seed(seed)
    typical = torch.rand(n, 1, generator=rng) ** 2
    return nn.functional.normalize(torch.randn(n, 24, generator=rng) + 3 * typical, dim=1)


def test_the_interval_holds_on_fresh_impostors_because_it_counts_identities() -> None:
    assert _covered(use_pairs=True) >= 0.85  # 0.93 in 300 runs
    assert _covered(use_pairs=False) <= 0.6  # 0.39: taking pairs as independent would claim far too much


def test_effective_comparisons_of_independent_pairs_are_all_of_them() -> None:
    rng = torch.Generator().manual_seed(0)
    scores = torch.rand(20_000, generator=rng)
    rows = torch.arange(40_000)
    disjoint = ImpostorScores(scores, rows[:20_000], rows[20_000:], rows)
    assert threshold_at_fmr(disjoint, 0.01).effective == pytest.approx(20_000)
    assert threshold_at_fmr(disjoint, 0.01).value == threshold_at_fmr(scores, 0.01).value


def test_repeated_faces_of_an_identity_add_no_independent_comparisons() -> None:
    """Every face three times: nine comparisons of two people, which say what one says."""
    x = _lumpy(250, 4)
    once = threshold_at_fmr(impostor_scores(x), 0.01)
    people = torch.arange(250).repeat(3)
    thrice = threshold_at_fmr(impostor_scores(x.repeat(3, 1), people), 0.01)
    assert thrice.comparisons == 9 * once.comparisons
    assert thrice.value == pytest.approx(once.value, abs=1e-6)
    assert thrice.effective == pytest.approx(once.effective, rel=0.01)
    unlike = threshold_at_fmr(impostor_scores(unit_rows(250, 24, 4)), 0.01)  # hardly any dependence: the floor counts
    again = threshold_at_fmr(impostor_scores(unit_rows(250, 24, 4).repeat(3, 1), people), 0.01)
    assert again.effective == pytest.approx(unlike.effective, rel=0.01)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_effective_comparisons_follow_the_double_sum(seed: int) -> None:
    """Aronow et al.'s eq. 2 word for word: errors of all comparisons that share an identity, multiplied."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 25, (40,), generator=rng)
    impostors = impostor_scores(_lumpy(40, seed), ids)
    threshold = threshold_at_fmr(impostors, 0.1)
    error = (impostors.scores >= threshold.value).double()
    error = error - error.mean()
    a, b = impostors.identities[impostors.first], impostors.identities[impostors.second]
    shared = (a[:, None] == a) | (a[:, None] == b) | (b[:, None] == a) | (b[:, None] == b)
    both = ((a[:, None] == a) & (b[:, None] == b)) | ((a[:, None] == b) & (b[:, None] == a))
    product = error[:, None] * error
    variance = max(float(product[m].sum()) for m in (shared, both, torch.eye(len(error), dtype=torch.bool)))
    assert threshold.effective == pytest.approx(len(error) * float(error.square().sum()) / variance)


def test_no_match_among_tied_scores_still_has_an_interval() -> None:
    rows = torch.arange(2000)
    scores = torch.where(rows[:1000] < 400, 0.5, 0.25)  # at 0.5 are more than the FMR admits
    for impostors in (scores, ImpostorScores(scores, rows[:1000], rows[1000:], rows)):
        threshold = threshold_at_fmr(impostors, 0.1)
        assert threshold.reached == 0
        assert threshold.effective == 1000
        assert threshold.high == pytest.approx(1.959964**2 / (1000 + 1.959964**2), rel=1e-5)


def test_thresholds_and_impostors_refuse_bad_input() -> None:
    scores = torch.rand(1000)
    for fmr in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(DataError, match="share"):
            threshold_at_fmr(scores, fmr)
    with pytest.raises(DataError, match="NaN"):
        threshold_at_fmr(torch.cat((scores, torch.tensor([torch.nan]))), 0.1)
    with pytest.raises(ShapeError, match="vector"):
        threshold_at_fmr(scores.view(10, 100), 0.1)
    x = unit_rows(6, 4)
    with pytest.raises(ShapeError, match="ids do not fit"):
        impostor_scores(x, torch.arange(5))
    with pytest.raises(ShapeError, match="groups do not fit"):
        impostor_scores(x, groups=torch.zeros(6))
    with pytest.raises(DataError, match="no two identities"):
        impostor_scores(x, n_pairs=0)
    with pytest.raises(DataError, match="not unit"):
        impostor_scores(x * 1.1)


@given(st.integers(12, 60), st.integers(0, 10**6), st.sampled_from([5, 16, 2048]), st.floats(0.1, 0.9))
def test_threshold_among_is_the_threshold_of_all_pairs(n: int, seed: int, block: int, share: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 8, generator=rng, dtype=torch.float64)  # some people resemble each other more
    x = centres[torch.arange(n) % 4] + torch.randn(n, 8, generator=rng, dtype=torch.float64)
    x = torch.nn.functional.normalize(x, dim=1)
    fmr = max(share, 31 / (n * (n - 1) / 2))
    assume(fmr < 1)
    among, listed = threshold_among(x, fmr, block=block), threshold_at_fmr(impostor_scores(x), fmr)
    for name in ("value", "fmr", "reached", "low", "high", "comparisons", "effective"):
        assert getattr(among, name) == pytest.approx(getattr(listed, name), rel=1e-9, abs=1e-12), name


def test_threshold_among_refuses_what_it_cannot_know() -> None:
    x = torch.nn.functional.normalize(torch.randn(20, 8), dim=1)
    with pytest.raises(DataError, match="too few impostor scores"):
        threshold_among(x, 1e-2)
    with pytest.raises(DataError, match="FMR is a share"):
        threshold_among(x, 0.0)


@given(st.integers(0, 10**6), st.sampled_from([2, 8, 512]), st.sampled_from([torch.float32, torch.float64]))
def test_copies_of_one_face_have_no_threshold(seed: int, dim: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(seed)
    one = torch.nn.functional.normalize(torch.randn(1, dim, generator=rng, dtype=dtype), dim=1)
    copies = one.repeat(20, 1)  # whose cosines are 1 up to rounding only
    with pytest.raises(DataError, match="no cosine keeps"):
        threshold_among(copies, 0.5)
    with pytest.raises(DataError, match="no cosine keeps"):
        threshold_at_fmr(impostor_scores(copies), 0.5)
