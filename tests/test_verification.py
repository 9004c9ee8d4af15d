from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import det_curve, roc_auc_score, roc_curve
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fairface_synth as ffs
from fairface_synth import DataError, GroupError, Groups, ShapeError, plotting
from fairface_synth.comparisons import Comparisons, compare
from fairface_synth.intervals import Measured
from fairface_synth.score_histograms import ScoreHistogram, cross_scores
from fairface_synth.thresholds import impostor_scores, threshold_at_fmr
from fairface_synth.verification import Verification, evaluate, verify

NAMES = ("a", "b", "c")


def _people(
    identities: int = 60, faces: int = 4, d: int = 32, spread: float = 0.9, seed: int = 0
) -> tuple[Tensor, ...]:
    """Embeddings, identities and group ids (by identity)."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.arange(identities).repeat_interleave(faces)
    centre = torch.randn(identities, d, generator=rng, dtype=torch.float64)
    x = centre[ids] + spread * torch.randn(len(ids), d, generator=rng, dtype=torch.float64)
    order = torch.randperm(len(ids), generator=rng)
    return nn.functional.normalize(x, dim=1)[order], ids[order], (ids % 3)[order]


def _scores(p: int, q: int, seed: int, ties: bool = False) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    scores = torch.cat((torch.randn(p, generator=rng), torch.randn(q, generator=rng) + 1.5)).double()
    mated = torch.arange(p + q) >= p
    order = torch.randperm(p + q, generator=rng)
    return (scores.mul(2).round() if ties else scores)[order], mated[order]


def _crossing(fpr: np.ndarray, fnr: np.ndarray) -> float:
    """Where the polyline through (FPR, FNR) meets FPR = FNR, by going through its segments."""
    for i in range(len(fpr) - 1):
        a, b = fpr[i] - fnr[i], fpr[i + 1] - fnr[i + 1]
        if a <= 0 <= b:
            t = 0.0 if a == b else -a / (b - a)
            return float(fpr[i] + t * (fpr[i + 1] - fpr[i]))
    raise AssertionError


# ---------------------------------------------------------------------------------------- compare


def test_compare_is_the_cosine_in_any_block_and_precision() -> None:
    x, *_ = _people(d=4)
    rng = torch.Generator().manual_seed(1)
    pairs = torch.randint(0, len(x), (66_000, 2), generator=rng)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    expected = nn.functional.cosine_similarity(x[pairs[:, 0]], x[pairs[:, 1]])
    torch.testing.assert_close(compare(x, pairs), expected)
    half = compare(x.half(), pairs[:50])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), expected[:50], atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("pairs", "error", "says"),
    [
        (torch.tensor([[0, 240]]), DataError, "does not exist"),
        (torch.tensor([[-1, 2]]), DataError, "does not exist"),
        (torch.tensor([[3, 3]]), DataError, "with itself"),
        (torch.tensor([[0.0, 1.0]]), ShapeError, "not pairs"),
        (torch.tensor([0, 1]), ShapeError, "not pairs"),
        (np.array([[0, 1]]), ShapeError, "a ndarray"),
    ],
)
def test_bad_pairs_speak_up(pairs: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        compare(_people()[0], pairs)


def test_bad_embeddings_speak_up() -> None:
    x, ids, _ = _people()
    broken = x.clone()
    broken[3, 0] = math.nan
    for embeddings in (broken, 2 * x):
        with pytest.raises(DataError, match="not unit vectors"):
            compare(embeddings, torch.tensor([[0, 1]]))
        with pytest.raises(DataError, match="not unit vectors"):
            verify(embeddings, identities=ids)
        with pytest.raises(DataError, match="not unit vectors"):
            cross_scores(embeddings, ids)


# ---------------------------------------------------------------------------------------- rates against scikit-learn


@given(st.integers(40, 400), st.integers(5, 200), st.booleans(), st.floats(0.08, 0.9), st.integers(0, 10**6))
def test_rates_are_scikit_learns(p: int, q: int, ties: bool, fmr: float, seed: int) -> None:
    fmr = max(fmr, 31 / p) if 31 / p < 1 else 0.99
    scores, mated = _scores(p, q, seed, ties)
    result = verify(scores=scores, mated=mated, fmr=(fmr,), resamples=0).overall
    fpr, tpr, _ = roc_curve(mated, scores, drop_intermediate=False)
    assert result.auc.value == pytest.approx(roc_auc_score(mated, scores), abs=1e-12)
    assert result.eer.value == pytest.approx(_crossing(fpr, 1 - tpr), abs=1e-12)
    if math.floor(fmr * p + 1e-6) < 30:
        assert math.isnan(result.points[0].threshold)
        return
    point = result.points[0]
    assert point.tar.value == pytest.approx(tpr[fpr <= fmr + 1e-9].max(), abs=1e-12)
    assert point.fmr.value == pytest.approx(float((scores[~mated] >= point.threshold).double().mean()), abs=1e-12)
    assert point.fnmr.value == pytest.approx(float((scores[mated] < point.threshold).double().mean()), abs=1e-12)
    assert point.fmr.value <= fmr + 1e-9


@pytest.mark.parametrize("ties", [False, True])
def test_curve_is_scikit_learns_det_curve(ties: bool) -> None:
    scores, mated = _scores(60, 30, 4, ties)
    curve = verify(scores=scores, mated=mated, fmr=(0.6,), resamples=0).overall.curve
    ours = set(zip(curve.fmr.round(decimals=9).tolist(), curve.fnmr.round(decimals=9).tolist(), strict=True))
    fpr, fnr, _ = det_curve(mated, scores)
    theirs = set(zip(fpr.round(9).tolist(), fnr.round(9).tolist(), strict=True))
    assert theirs <= ours  # scikit-learn leaves out the ends where one rate is 0
    full = roc_curve(mated, scores, drop_intermediate=False)
    assert ours == set(zip(full[0].round(9).tolist(), (1 - full[1]).round(9).tolist(), strict=True))


def test_a_long_curve_is_thinned_and_exact_at_each_point() -> None:
    scores, mated = _scores(20_000, 3_000, 0)
    curve = verify(scores=scores, mated=mated, resamples=0).overall.curve
    assert 100 < len(curve.threshold) <= 401
    assert bool((curve.threshold.diff() > 0).all())
    for t, fmr, fnmr in zip(*(x[::25].tolist() for x in curve), strict=True):
        assert fmr == pytest.approx(float((scores[~mated] >= t).double().mean()), abs=1e-12)
        assert fnmr == pytest.approx(float((scores[mated] < t).double().mean()), abs=1e-12)
    assert float(curve.fmr.max()) == 1
    assert float(curve.fmr[curve.fmr > 0].min()) == 1 / 20_000


def test_known_distributions() -> None:
    """Non-mated N(0, 1), mated N(3, 1): at FMR 1 %, t = 2.3263 and FNMR = Φ(2.3263 − 3) = 0.2503; EER = Φ(−1.5)."""
    rng = torch.Generator().manual_seed(0)
    scores = torch.cat((torch.randn(200_000, generator=rng), torch.randn(50_000, generator=rng) + 3))
    result = verify(scores=scores, mated=torch.arange(250_000) >= 200_000, fmr=(0.01,), resamples=0).overall
    assert result.points[0].threshold == pytest.approx(2.3263, abs=0.03)
    assert result.points[0].fnmr.value == pytest.approx(0.2503, abs=0.01)
    assert result.eer.value == pytest.approx(0.0668, abs=0.003)
    assert result.auc.value == pytest.approx(0.98305, abs=0.001)  # Φ(3 / √2)


def test_pooled_threshold_is_threshold_at_fmr() -> None:
    x, ids, _ = _people(80)
    for embeddings in (x, x.float()):
        expected = threshold_at_fmr(impostor_scores(embeddings, ids), 1e-2)
        point = verify(embeddings, identities=ids, fmr=(1e-2,), resamples=0).overall.points[0]
        assert point.threshold == float(expected)
        assert point.fmr.value == pytest.approx(expected.reached, abs=1e-12)


# ---------------------------------------------------------------------------------------- what is compared


def test_every_two_faces_by_brute_force() -> None:
    x, ids, group = _people(30, 3)
    group = group.clone()
    group[:5] = -1  # also breaks up some identities
    result = verify(x, identities=ids, groups=NAMES, group_ids=group, fmr=(0.5,), threshold="within", resamples=0)
    i, j = np.triu_indices(len(x), 1)
    cosine = (x[i] * x[j]).sum(1).numpy()
    same = (ids[i] == ids[j]).numpy()
    both = np.where((group[i] == group[j]).numpy(), group[i].numpy(), -1)
    t = result.overall.points[0].threshold
    pool = cosine[~same & (both >= 0)]
    assert (pool >= t).mean() == pytest.approx(math.floor(len(pool) * 0.5) / len(pool))
    sets = [np.ones_like(same), *(both == g for g in range(3)), both < 0]
    for member, p in zip(sets, (result.overall, *result.by_group.values(), result.across), strict=True):
        assert p is not None
        assert (p.mated, p.non_mated) == (int((member & same).sum()), int((member & ~same).sum()))
        assert p.points[0].fmr.value == pytest.approx((cosine[member & ~same] >= t).mean())
        assert p.points[0].fnmr.value == pytest.approx((cosine[member & same] < t).mean())
        assert p.auc.value == pytest.approx(roc_auc_score(same[member], cosine[member]))


def test_the_three_ways_to_say_it_agree() -> None:
    x, ids, group = _people(30, 3)
    i, j = torch.triu_indices(len(x), len(x), 1)
    pairs, options = torch.stack((i, j), 1), {"groups": NAMES, "fmr": (0.05, 0.2), "resamples": 40}
    every = verify(x, identities=ids, group_ids=group, **options)
    listed = verify(x, pairs=pairs, identities=ids, group_ids=group, **options)
    given_scores = verify(
        scores=compare(x, pairs), mated=ids[i] == ids[j], identities=ids[pairs], group_ids=group[pairs], **options
    )
    for a, b, c in zip(every._all, listed._all, given_scores._all, strict=True):
        for field in ("auc", "eer", "points"):
            assert getattr(a, field) == pytest.approx(getattr(b, field), nan_ok=True) if field != "points" else True
            assert str(getattr(a, field)) == str(getattr(b, field)) == str(getattr(c, field))


def test_per_group_thresholds() -> None:
    x, ids, group = _people(60)
    x = x + torch.where(group == 2, 0.4, 0.0).unsqueeze(1) * nn.functional.normalize(torch.ones(1, 32).double())
    x = nn.functional.normalize(x, dim=1)
    options: Any = {"identities": ids, "groups": NAMES, "group_ids": group, "fmr": (0.02,), "resamples": 0}
    own, pooled = verify(x, threshold="per-group", **options), verify(x, **options)
    for name in NAMES:
        n = own.by_group[name].non_mated
        assert own.by_group[name].points[0].fmr.value == pytest.approx(math.floor(0.02 * n) / n)
    assert own.overall.points == pooled.overall.points
    assert own.by_group["c"].points[0].threshold > pooled.by_group["c"].points[0].threshold
    assert pooled.by_group["c"].points[0].fmr.value > 0.03


def test_a_random_part_stands_for_all() -> None:
    x, ids, group = _people(120)
    options: Any = {"identities": ids, "groups": NAMES, "group_ids": group, "fmr": (0.02,), "resamples": 0}
    every, part = verify(x, **options), verify(x, n_pairs=4000, **options)
    assert part.by_group["a"].non_mated == 4000 < every.by_group["a"].non_mated
    assert any("random part" in note for note in part.notes)
    for a, b in zip(every._all, part._all, strict=True):
        assert a.mated == b.mated
        assert b.points[0].fmr.value == pytest.approx(a.points[0].fmr.value, abs=0.006)
    assert part.overall.points[0].threshold == pytest.approx(every.overall.points[0].threshold, abs=0.02)


def test_a_rare_rest_does_not_draw_without_end() -> None:
    x, ids, _ = _people(120)
    group = torch.where(ids == 0, -1, 0)
    c = verify(x, identities=ids, groups=["a"], group_ids=group, n_pairs=2000, fmr=(0.1,), resamples=0).comparisons
    assert c.weights is not None
    rest, within = (c.group < 0) & ~c.mated, (c.group == 0) & ~c.mated
    assert int(within.sum()) == 2000
    assert 50 < int(rest.sum()) < 250  # 4 · 2000 draws of which 2 / 120 are of the rest
    assert float(c.weights[rest].sum()) == pytest.approx(4 * 119 * 4)
    assert float(c.weights[within].sum()) == pytest.approx(119 * 118 / 2 * 16)


# ---------------------------------------------------------------------------------------- what cannot be said


def test_rule_of_30_and_absent_groups() -> None:
    x, ids, group = _people(20, 3)
    result = verify(x, identities=ids, groups=(*NAMES, "d"), group_ids=group, fmr=(0.05, 1e-3), resamples=0)
    assert result.by_group["d"].absent == "no mated and no non-mated comparisons"
    assert math.isnan(result.by_group["d"].auc.value)
    resolved, unresolved = result.overall.points
    assert not math.isnan(resolved.threshold)
    assert math.isnan(unresolved.threshold)
    assert "30,000 non-mated comparisons" in unresolved.fnmr.reason
    assert "d is absent" in str(result)
    own = verify(x, identities=ids, groups=NAMES, group_ids=group, fmr=(0.05,), threshold="per-group", resamples=0)
    assert not math.isnan(own.overall.points[0].tar.value)
    assert "rule of 30" in own.by_group["a"].points[0].tar.reason  # 7 × 6 / 2 × 9 = 189 < 600


def test_without_identities_or_with_few_there_is_no_interval() -> None:
    scores, mated = _scores(500, 100, 0)
    eer = verify(scores=scores, mated=mated, fmr=(0.1,)).overall.eer
    assert math.isnan(eer.low)
    assert "identities" in eer.reason
    x, ids, group = _people(24, 8)  # 8 identities a group
    result = verify(x, identities=ids, groups=NAMES, group_ids=group, fmr=(0.1,), resamples=20)
    assert not math.isnan(result.overall.eer.low)
    assert "too few" in result.by_group["a"].eer.reason


def test_no_error_still_has_an_interval() -> None:
    x, ids, _ = _people(30, 3, spread=0.01)
    point = verify(x, identities=ids, fmr=(0.1,), resamples=20).overall.points[0]
    assert point.fnmr.value == 0
    assert point.fnmr.low == 0
    assert point.fnmr.high == pytest.approx(1.96**2 / (30 + 1.96**2), abs=1e-4)  # Wilson's for 0 of 30


def test_few_mated_identities_are_few_whatever_else_there_is() -> None:
    """Two of 100 people have a second face: 100 is not what is behind the FNMR."""
    x, _, _ = _people(102, 1)
    ids = torch.cat((torch.arange(100), torch.tensor([0, 1])))
    result = verify(x, identities=ids, fmr=(0.01,), resamples=20).overall
    assert math.isnan(result.points[0].fnmr.low)
    assert "2 identities with mated comparisons are too few" in result.points[0].fnmr.reason
    assert math.isnan(result.auc.low)
    assert result.points[0].fmr.low < 0.01 < result.points[0].fmr.high


def test_people_with_many_images_do_not_count_as_many() -> None:
    """FNMR of people who are all right or all wrong; some have twelve times the comparisons of others."""
    hit, runs = 0, 40
    for seed in range(runs):
        rng = torch.Generator().manual_seed(seed)
        wrong = torch.rand(40, generator=rng) < 0.3
        often = torch.where(torch.rand(40, generator=rng) < 0.15, 36, 3)
        who = torch.arange(40).repeat_interleave(often)
        pairs = torch.combinations(torch.arange(40))
        scores = torch.cat((torch.rand(len(pairs), generator=rng), torch.where(wrong[who], -1.0, 2.0)))
        both = torch.cat((pairs, torch.stack((who, who), 1)))
        mated = both[:, 0] == both[:, 1]
        fnmr = verify(scores=scores, mated=mated, identities=both, fmr=(0.1,), resamples=60).overall.points[0].fnmr
        hit += fnmr.low <= 0.3 <= fnmr.high
    assert hit >= 0.85 * runs  # two thirds, with as many independent comparisons as there are people


def test_identities_may_be_any_numbers_but_not_negative() -> None:
    scores, mated, both = _draw(40, 0)
    plain = verify(scores=scores, mated=mated, identities=both, fmr=(0.05,), resamples=20)
    large = verify(scores=scores, mated=mated, identities=both * 10**9 + 7, fmr=(0.05,), resamples=20)
    assert large.to_dict() == plain.to_dict()
    with pytest.raises(DataError, match="numbers from 0"):
        verify(scores=scores, mated=mated, identities=both - 1)


@pytest.mark.parametrize("given", ["list", "array"])
def test_arrays_and_lists_speak_up(given: str) -> None:
    x, ids, _ = _people()
    other = x.tolist() if given == "list" else x.numpy()
    calls: list[Any] = [lambda: verify(other, identities=ids), lambda: cross_scores(other, ids)]
    calls += [lambda: compare(other, torch.tensor([[0, 1]])), lambda: verify(x, identities=ids.numpy())]
    calls += [lambda: verify(scores=np.zeros(3), mated=torch.ones(3) > 0), lambda: cross_scores(x, ids.tolist())]
    calls += [lambda: ScoreHistogram.empty().update(other, ids > 0), lambda: verify(x, identities=["a", "b"] * 120)]
    for call in calls:
        with pytest.raises(ShapeError):
            call()


def test_targets_in_any_form() -> None:
    x, ids, _ = _people()
    for fmr in (0.1, [0.1], (0.1,), np.array([0.1]), torch.tensor(0.1, dtype=torch.float64), np.float64(0.1)):
        assert [p.target for p in verify(x, identities=ids, fmr=fmr, resamples=0).overall.points] == [0.1]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"identities": torch.full((240,), -1)}, DataError, "numbers from 0"),
        ({"groups": {"gender": ("a", "b")}}, GroupError, "list of names"),
        ({"fmr": "0.1"}, DataError, "FMR is a share"),
        ({"fmr": None}, DataError, "FMR is a share"),
        ({"fmr": math.nan}, DataError, "FMR is a share"),
        ({"identities": torch.arange(5)}, ShapeError, "identities per face"),
        ({"identities": torch.rand(240)}, ShapeError, "identities per face"),
        ({"group_ids": None}, GroupError, "go together"),
        ({"groups": None}, GroupError, "go together"),
        ({"group_ids": torch.full((240,), 3)}, GroupError, "out of range"),
        ({"group_ids": torch.zeros(7, dtype=torch.int64)}, ShapeError, "group_ids per face"),
        ({"groups": ("a", "a", "b")}, GroupError, "different names"),
        ({"groups": ("a", "b", "overall")}, GroupError, "reserved"),
        ({"fmr": (0.0,)}, DataError, "FMR is a share"),
        ({"fmr": ()}, DataError, "FMR is a share"),
        ({"threshold": "mine"}, DataError, "unknown threshold"),
        ({"n_pairs": 0}, DataError, "out of range"),
        ({"resamples": -1}, DataError, "out of range"),
        ({"seed": torch.Generator()}, DataError, "seed is a number"),
        ({"identities": None}, DataError, "which faces"),
        ({"mated": torch.ones(3, dtype=torch.bool)}, DataError, "which faces"),
        (
            {"pairs": torch.tensor([[0, 1]]), "mated": torch.ones(2, dtype=torch.bool)},
            ShapeError,
            "truth value per score",
        ),
        ({"pairs": torch.tensor([[0, 1]]), "mated": torch.ones(1)}, ShapeError, "truth value per score"),
        ({"pairs": torch.tensor([[0, 1]]), "identities": None}, DataError, "which pairs are mated"),
        ({"scores": torch.rand(3)}, DataError, "not both"),
    ],
)
def test_bad_input_speaks_up(change: dict[str, Any], error: type[Exception], says: str) -> None:
    x, ids, group = _people()
    options: dict[str, Any] = {"identities": ids, "groups": NAMES, "group_ids": group, "fmr": (0.1,), "resamples": 0}
    with pytest.raises(error, match=says):
        verify(x, **options | change)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"scores": torch.tensor([0.1, math.nan, 0.3])}, DataError, "1 of 3 are NaN"),
        ({"scores": [0.1, 0.2, 0.3]}, ShapeError, "a list"),
        ({"scores": torch.tensor([1, 2, 3])}, ShapeError, "scores are a vector"),
        ({"scores": torch.rand(0), "mated": torch.zeros(0, dtype=torch.bool)}, ShapeError, "m ≥ 1"),
        ({"mated": None}, DataError, "which comparisons are mated"),
        ({"mated": torch.tensor([1, 0, 1])}, ShapeError, "truth value"),
        ({"identities": torch.tensor([[0, 0], [0, 0], [0, 1]])}, DataError, "contradict"),
        ({"identities": torch.tensor([0, 1, 2])}, ShapeError, "two identities per score"),
        ({"folds": torch.tensor([0, 1])}, ShapeError, "one fold per comparison"),
    ],
)
def test_bad_scores_speak_up(change: dict[str, Any], error: type[Exception], says: str) -> None:
    options: dict[str, Any] = {"scores": torch.rand(3), "mated": torch.tensor([True, False, True])}
    with pytest.raises(error, match=says):
        verify(**options | change)


def test_nothing_at_all_speaks_up() -> None:
    with pytest.raises(DataError, match="nothing to verify"):
        verify()
    x, ids, _ = _people(1, 1)
    with pytest.raises(DataError, match="nothing to compare"):
        verify(x, identities=ids)


# ---------------------------------------------------------------------------------------- intervals


def _draw(identities: int, seed: int, mated_each: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with effects of identities: non-mated N(0, 1) with a_i + a_j in it, mated N(3, 1) with b_i in it."""
    rng = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(identities, generator=rng, dtype=torch.float64) * s for s in (0.5, 0.8))
    i, j = torch.triu_indices(identities, identities, 1)
    own = torch.arange(identities).repeat_interleave(mated_each)
    non = a[i] + a[j] + math.sqrt(0.5) * torch.randn(len(i), generator=rng, dtype=torch.float64)
    mat = 3 + b[own] + 0.6 * torch.randn(len(own), generator=rng, dtype=torch.float64)
    both = torch.cat((torch.stack((i, j), 1), torch.stack((own, own), 1)))
    return torch.cat((non, mat)), both[:, 0] == both[:, 1], both


def test_intervals_cover_and_bootstrapping_pairs_would_not() -> None:
    normal = torch.distributions.Normal(0.0, 1.0)
    t = float(normal.icdf(torch.tensor(0.95)))
    true_fnmr = float(normal.cdf(torch.tensor(t - 3)))
    covered, naive, runs = {"fmr": 0, "fnmr": 0, "eer": 0}, 0, 60
    for seed in range(runs):
        scores, mated, both = _draw(50, seed)
        result = verify(scores=scores, mated=mated, identities=both, fmr=(0.05,), resamples=100, seed=seed).overall
        point = result.points[0]
        true_fmr = 1 - float(normal.cdf(torch.tensor(point.threshold)))
        covered["fmr"] += point.fmr.low <= true_fmr <= point.fmr.high
        covered["fnmr"] += point.fnmr.low <= true_fnmr <= point.fnmr.high
        covered["eer"] += result.eer.low <= 0.0668 <= result.eer.high
        n, p = int((~mated).sum()), point.fmr.value
        naive += abs(p - true_fmr) <= 1.96 * math.sqrt(p * (1 - p) / n)  # what resampling pairs comes to
    assert min(covered.values()) >= 0.88 * runs, covered
    assert naive < 0.75 * runs


def test_intervals_are_reproducible_and_narrow_with_more_identities() -> None:
    results = []
    for identities in (40, 40, 160):
        scores, mated, both = _draw(identities, 3)
        results.append(verify(scores=scores, mated=mated, identities=both, fmr=(0.05,), resamples=60, seed=1).overall)
    first, again, more = (r.points[0].fnmr for r in results)
    assert first == again
    widths = [(m.high - m.low) / math.sqrt(m.value * (1 - m.value)) for m in (first, more)]
    assert 0.35 < widths[1] / widths[0] < 0.7  # √(40 / 160)


# ---------------------------------------------------------------------------------------- the LFW protocol


def test_ten_folds_by_brute_force() -> None:
    """Every threshold is tried on nine folds, as the definition says."""
    scores, mated = _scores(300, 300, 5)
    folds = torch.arange(600) % 10
    result = verify(scores=scores, mated=mated, folds=folds, fmr=(0.2,), resamples=0).overall.accuracy
    s, m, f = scores.numpy(), mated.numpy(), folds.numpy()

    def right(member: np.ndarray, t: float) -> float:
        return ((s[member & m] >= t).mean() + (s[member & ~m] < t).mean()) / 2

    candidates = np.concatenate(([-np.inf], (np.sort(s)[1:] + np.sort(s)[:-1]) / 2, [np.inf]))
    for fold, value in enumerate(result.folds):
        reached = [right(f != fold, t) for t in candidates]
        best = np.flatnonzero(np.isclose(reached, max(reached), atol=1e-12))
        assert any(value == pytest.approx(right(f == fold, candidates[k])) for k in best)
    assert result.value == pytest.approx(np.mean(result.folds))
    assert result.standard_error == pytest.approx(np.std(result.folds, ddof=1) / math.sqrt(10))


def test_the_tested_fold_has_no_say_in_its_threshold() -> None:
    """The other folds leave a gap from 0.3 to 0.6, whose middle is 0.45: not where fold 0 would like it."""
    scores = torch.tensor([0.32, 0.35, 0.3, 0.6, 0.2, 0.9])
    mated = torch.tensor([False, True] * 3)
    accuracy = verify(scores=scores, mated=mated, folds=torch.tensor([0, 0, 1, 1, 2, 2]), fmr=0.5).overall.accuracy
    assert accuracy.folds[0] == 0.5  # 0.32 and 0.35 are both below


def test_folds_count_comparisons_as_what_they_stand_for() -> None:
    scores, mated = _scores(200, 200, 7)
    weights, folds = torch.arange(400) % 3 + 1, torch.arange(400) % 5
    group = torch.full((400,), -1)
    weighted = Comparisons(scores, mated, group, weights=weights.double())
    copied = Comparisons(*(x.repeat_interleave(weights) for x in (scores, mated, group)))
    few, many = (
        evaluate(c, (0.2,), "pooled", folds=f).overall.accuracy.folds
        for c, f in ((weighted, folds), (copied, folds.repeat_interleave(weights)))
    )
    assert few == pytest.approx(many)


def test_a_list_like_lfws_is_cut_into_its_own_folds() -> None:
    """300 mated, 300 non-mated, ten times: stretches of either kind are exactly these."""
    scores, mated = _scores(3000, 3000, 6)
    lfw = torch.arange(6000) // 300 % 2 == 0
    ordered = torch.empty_like(scores)
    ordered[lfw], ordered[~lfw] = scores[mated], scores[~mated]
    cut = verify(scores=ordered, mated=lfw, resamples=0).overall.accuracy
    given_folds = verify(scores=ordered, mated=lfw, folds=torch.arange(6000) // 600, resamples=0).overall.accuracy
    assert cut == given_folds
    assert len(cut.folds) == 10


def test_folds_of_every_two_faces_have_different_identities_and_a_missing_class_is_said() -> None:
    x, ids, group = _people(60)
    result = verify(x, identities=ids, groups=NAMES, group_ids=group, fmr=(0.05,), resamples=0)
    assert len(result.overall.accuracy.folds) == 10
    assert 0.9 < result.overall.accuracy.value <= 1
    perfect = verify(_people(60, spread=0.01)[0], identities=_people(60, spread=0.01)[1], fmr=(0.05,), resamples=0)
    assert perfect.overall.accuracy.value == 1
    scores, mated = _scores(300, 300, 5)
    lopsided = verify(scores=scores, mated=mated, folds=mated.long(), fmr=(0.2,), resamples=0).overall.accuracy
    assert math.isnan(lopsided.value)
    assert "no mated or no non-mated" in lopsided.reason


# ---------------------------------------------------------------------------------------- results


@pytest.fixture(scope="module")
def result() -> Verification:
    x, ids, group = _people(60)
    groups = Groups({"tone": ["a", "b", "c", "d"]})
    return verify(x, identities=ids, groups=groups, group_ids=group, fmr=(0.05, 1e-4), resamples=40)


def test_tables(result: Verification) -> None:
    text, plain, frame = str(result), result.to_dict(), result.to_frame()
    assert "| overall" in text
    assert "not within a group" in text
    assert set(plain) == {"overall", "a", "b", "c", "d", "not within a group"}
    assert plain["a"]["points"]["0.05"]["tar"]["value"] == 1 - plain["a"]["points"]["0.05"]["fnmr"]["value"]
    assert "reason" in plain["a"]["points"]["0.0001"]["tar"]
    assert len(frame) == 2 * 6
    row = frame[(frame.group == "b") & (frame.target_fmr == 0.05)].iloc[0]
    assert row.tar == result.by_group["b"].at(0.05).tar.value
    assert row.tar_low <= row.tar <= row.tar_high
    with pytest.raises(DataError, match="no such operating point"):
        result.overall.at(0.3)
    assert str(Measured(math.nan)) == "–"


def test_figures(result: Verification) -> None:
    det = plotting.det_curves(result)
    (ax,) = det.axes
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert [label.split(" ")[0] for label in labels] == ["overall", "a", "b", "c"]  # d is absent
    line = ax.get_lines()[0]
    curve = result.overall.curve
    inside = (curve.fmr > 0) & (curve.fmr < 1) & (curve.fnmr > 0) & (curve.fnmr < 1)
    assert len(line.get_xdata()) == int(inside.sum())
    densities = plotting.score_densities(result)
    assert len([a for a in densities.axes if a.get_lines()]) == 4


# ---------------------------------------------------------------------------------------- histograms


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_cross_scores_count_every_two_faces_once(block: int) -> None:
    x, ids, group = _people(30, 3)
    group = group.clone()
    group[:5] = -1
    histogram = cross_scores(x, ids, group, groups=NAMES, bins=64, block=block)
    i, j = torch.triu_indices(len(x), len(x), 1)
    both = torch.where(group[i] == group[j], group[i], -1)
    cosine, same = (x[i] * x[j]).sum(1), ids[i] == ids[j]
    expected = torch.zeros(4, 2, 64, dtype=torch.int64)
    for s, m, g in zip(cosine.tolist(), same.tolist(), both.tolist(), strict=True):
        expected[g, int(m), int((s + 1) * 32)] += 1
    assert torch.equal(histogram.counts, expected)
    streamed = ScoreHistogram.empty(NAMES, 64)
    for part in torch.arange(len(i)).split(500):
        streamed = streamed.update(cosine[part], same[part], both[part])
    assert torch.equal(streamed.counts, expected)
    halves = [ScoreHistogram.empty(NAMES, 64).update(cosine[k::2], same[k::2], both[k::2]) for k in (0, 1)]
    assert torch.equal(halves[0].merge(halves[1]).counts, expected)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([2**8, 2**12, 2**16]))
def test_histogram_rates_are_exact_up_to_a_bin(seed: int, bins: int) -> None:
    x, ids, group = _people(40, 4, seed=seed)
    options: Any = {"groups": NAMES, "group_ids": group}
    exact = verify(x, identities=ids, fmr=(0.02, 0.2), resamples=0, **options)
    histogram = cross_scores(x, ids, bins=bins, **options)
    ours, width = histogram.compute((0.02, 0.2)), histogram.width
    scores, c = exact.comparisons.scores, exact.comparisons
    for row, (a, b) in enumerate(zip(ours._all, exact._all, strict=True)):
        assert (a.mated, a.non_mated) == (b.mated, b.non_mated)
        member = torch.ones_like(c.mated) if row == 0 else c.group == (row - 1 if row < 4 else -1)
        for p, q in zip(a.points, b.points, strict=True):
            assert q.threshold - width <= p.threshold <= q.threshold + width
            for rate, kind in ((p.fmr.value, ~c.mated), (p.fnmr.value, c.mated)):
                s = scores[member & kind]
                if len(s) == 0:
                    continue
                near = [(s >= p.threshold + w).double().mean() for w in (width, -width)]
                low, high = near if kind is not c.mated else (1 - near[1], 1 - near[0])
                assert float(low) - 1e-9 <= rate <= float(high) + 1e-9
        if a.mated:
            assert a.eer.value == pytest.approx(b.eer.value, abs=0.002 + 4 * width)
            assert a.auc.value == pytest.approx(b.auc.value, abs=width)


def test_histograms_that_do_not_fit_speak_up() -> None:
    h = ScoreHistogram.empty(NAMES, 16)
    scores, mated = torch.rand(4), torch.tensor([True, False, True, False])
    with pytest.raises(ShapeError, match="do not go together"):
        h.merge(ScoreHistogram.empty(NAMES, 32))
    with pytest.raises(ShapeError, match="do not fit"):
        h.update(scores, mated[:3])
    with pytest.raises(GroupError, match="out of range"):
        h.update(scores, mated, torch.full((4,), 3))
    with pytest.raises(DataError, match="not finite"):
        h.update(scores * math.nan, mated)
    with pytest.raises(DataError, match="empty"):
        h.compute()
    with pytest.raises(DataError, match="too few bins"):
        ScoreHistogram.empty(bins=1)
    with pytest.raises(DataError, match="too few bins"):
        ScoreHistogram.empty(bins=10.5)  # type: ignore[arg-type]
    for names in ("ab", ["a", "a"]):
        with pytest.raises(GroupError, match="different names"):
            ScoreHistogram.empty(names)
    with pytest.raises(DataError, match="block"):
        cross_scores(_people()[0], _people()[1], block=0)


def test_stays_on_the_device() -> None:
    with FakeTensorMode():
        x, ids = torch.randn(6, 8, device="cuda"), torch.zeros(6, dtype=torch.int64, device="cuda")
        scores = compare(x, torch.zeros(3, 2, dtype=torch.int64, device="cuda"))
        histogram = cross_scores(x, ids, ids, groups=NAMES, bins=16, block=4)
        more = histogram.update(scores, scores > 0).merge(histogram)
        assert {scores.device.type, histogram.counts.device.type, more.counts.device.type} == {"cuda"}


def test_distances_and_labels_of_images_are_noticed() -> None:
    rng = torch.Generator().manual_seed(0)
    identity = torch.arange(60).repeat_interleave(4)
    centre = torch.randn(60, 8, generator=rng)[identity]
    e = torch.nn.functional.normalize(centre + 0.2 * torch.randn(240, 8, generator=rng), dim=1)
    options = {"groups": ["a", "b"], "fmr": (0.05, 0.1), "resamples": 0}
    good = verify(e, identities=identity, group_ids=identity % 2, **options)
    assert not any("distances" in note or "several groups" in note for note in good.notes)
    assert good.fairness(resamples=0).at_fmr == 0.05  # 1e-3 is not among its targets
    mixed = verify(e, identities=identity, group_ids=torch.arange(240) % 2, **options)
    assert any("60 identities have faces in several groups" in note for note in mixed.notes)
    c = good.comparisons
    upside_down = verify(scores=-c.scores, mated=c.mated, fmr=(0.05,), resamples=0)
    assert any("distances" in note for note in upside_down.notes)
    names = ["a"] * len(c.scores)
    nothing = ffs.fairness(c.scores, c.mated, names, threshold=2.0, groups=["a"], resamples=0)
    assert any("every mated comparison is rejected" in note.lower() for note in nothing.notes)
