from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fairface_synth import DataError, GroupError, Groups, ShapeError, plotting
from fairface_synth.fairness import METRICS, Fairness, fairness, measures_of
from fairface_synth.score_histograms import ScoreHistogram
from fairface_synth.verification import verify

# Four groups of known rates at τ = 0.5: (comparisons, errors) of the non-mated and of the mated.
COUNTS = {"a": ((10, 1), (10, 2)), "b": ((10, 2), (20, 2)), "c": ((20, 8), (10, 3))}
# FMR 0.1, 0.2, 0.4; FNMR 0.2, 0.1, 0.3; accuracy 1 − (FMR + FNMR) / 2 = 0.85, 0.85, 0.65.


def _lists(counts: dict[str, Any]) -> tuple[Tensor, Tensor, list[str]]:
    scores, mated, group = [], [], []
    for name, ((p, false_matches), (q, false_non_matches)) in counts.items():
        scores += [0.9] * false_matches + [0.1] * (p - false_matches)
        scores += [0.2] * false_non_matches + [0.8] * (q - false_non_matches)
        mated += [False] * p + [True] * q
        group += [name] * (p + q)
    return torch.tensor(scores), torch.tensor(mated), group


def _at_half(counts: dict[str, Any], **options: Any) -> Fairness:
    return fairness(*_lists(counts), threshold=0.5, accuracy_at="threshold", **options)


# ---------------------------------------------------------------------------------------- by hand


def test_rates_by_hand() -> None:
    f = _at_half(COUNTS)
    assert {g: m.value for g, m in f.by_group["fmr"].items()} == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.4})
    assert {g: m.value for g, m in f.by_group["fnmr"].items()} == pytest.approx({"a": 0.2, "b": 0.1, "c": 0.3})
    assert {g: m.value for g, m in f.by_group["accuracy"].items()} == pytest.approx({"a": 0.85, "b": 0.85, "c": 0.65})
    # Overall: FMR (1 + 2 + 8) / 40, FNMR (2 + 2 + 3) / 40.
    assert {m: f.overall[m].value for m in METRICS} == pytest.approx({"fmr": 0.275, "fnmr": 0.175, "accuracy": 0.775})


def test_measures_by_hand() -> None:
    f = _at_half(COUNTS, alpha=0.25)
    # A = 0.4 − 0.1 = 0.3, B = 0.3 − 0.1 = 0.2: 1 − (0.25 · 0.3 + 0.75 · 0.2)
    assert f.fdr.value == pytest.approx(0.775)
    # (0.4 / 0.1)^0.25 · (0.3 / 0.1)^0.75 = 1.41421 · 2.27951
    assert f.ir.value == pytest.approx(3.22371, abs=1e-5)
    # FMR: ΣΣ|x_i − x_j| = 2 · (0.1 + 0.3 + 0.2) = 1.2, mean 0.7/3: 3/2 · 1.2 / (2 · 9 · 0.7/3) = 0.428571
    # FNMR: 2 · (0.1 + 0.1 + 0.2) = 0.8, mean 0.2: 3/2 · 0.8 / (18 · 0.2) = 0.333333
    assert f.garbe.value == pytest.approx(0.25 * 0.428571 + 0.75 * 0.333333, abs=1e-5)
    # errors 0.15, 0.15, 0.35
    assert f.ser.value == pytest.approx(0.35 / 0.15)
    # mean (0.85 + 0.85 + 0.65) / 3 = 0.783333; squares (2 · 0.066667² + 0.133333²) / 3 = 0.008889, root 0.094281
    assert f.std.value == pytest.approx(0.094281, abs=1e-6)
    assert f.trade_off.value == pytest.approx(0.783333 - 0.094281, abs=1e-5)
    assert (f.fmr_gap.value, f.fnmr_gap.value, f.accuracy_gap.value) == pytest.approx((0.3, 0.2, 0.2))


def test_metric_frame_by_hand() -> None:
    f = _at_half(COUNTS)
    assert f.group_min() == pytest.approx({"fmr": 0.1, "fnmr": 0.1, "accuracy": 0.65})
    assert f.group_max() == pytest.approx({"fmr": 0.4, "fnmr": 0.3, "accuracy": 0.85})
    assert f.difference() == pytest.approx({"fmr": 0.3, "fnmr": 0.2, "accuracy": 0.2})
    assert f.ratio() == pytest.approx({"fmr": 0.25, "fnmr": 1 / 3, "accuracy": 0.65 / 0.85})
    # overall 0.275, 0.175, 0.775: the farthest is a for the FMR, c otherwise
    assert f.difference("to_overall") == pytest.approx({"fmr": 0.175, "fnmr": 0.125, "accuracy": 0.125})
    assert f.ratio("to_overall") == pytest.approx({"fmr": 0.1 / 0.275, "fnmr": 0.1 / 0.175, "accuracy": 0.65 / 0.775})
    frame = f.to_frame().set_index("group")
    assert frame.fmr["c"] == pytest.approx(0.4)
    assert frame.mated.to_dict() == {"a": 10, "b": 20, "c": 10}
    with pytest.raises(DataError, match="between_groups or to_overall"):
        f.ratio("other")  # type: ignore[arg-type]


def test_equal_groups_are_fair() -> None:
    f = _at_half(dict.fromkeys("abcd", COUNTS["a"]))
    fair = {"fdr": 1, "ir": 1, "garbe": 0, "ser": 1, "std": 0, "fmr_gap": 0, "fnmr_gap": 0, "accuracy_gap": 0}
    assert {name: f.measures[name].value for name in fair} == pytest.approx(fair, abs=1e-12)
    assert f.trade_off.value == pytest.approx(0.85)


def test_zero_minimum_is_nan_with_a_reason() -> None:
    f = _at_half(COUNTS | {"b": ((10, 0), (20, 2))})
    assert math.isnan(f.ir.value)
    assert f.ir.reason == "IR: the smallest FMR of a group is 0"
    assert "IR: the smallest FMR of a group is 0" in str(f)
    assert not math.isnan(f.ser.value)
    assert not math.isnan(f.fdr.value)
    only_fnmr = _at_half(COUNTS | {"b": ((10, 0), (20, 2))}, alpha=0)
    assert only_fnmr.ir.value == pytest.approx(3)  # 0.3 / 0.1: the FMR has no weight
    perfect = _at_half(COUNTS | {"b": ((10, 0), (20, 0))})
    assert "error of a group is 0" in perfect.ser.reason
    none = _at_half(dict.fromkeys("ab", ((10, 0), (10, 0))))
    assert "largest FMR and FNMR of a group is 0" in none.garbe.reason
    assert none.fdr.value == 1


def test_missing_names_are_no_group_and_numbers_are_ids() -> None:
    scores, mated, group = _lists(COUNTS)
    here = fairness(scores, mated, [None if g == "c" else g for g in group], threshold=0.5)
    frame = np.array([math.nan if g == "c" else g for g in group], dtype=object)  # a column of a frame
    assert fairness(scores, mated, frame, threshold=0.5).to_dict() == here.to_dict()
    ids = ["ab".find(g) for g in group]  # c: −1
    for numbers in (ids, np.array(ids), torch.tensor(ids)):
        assert fairness(scores, mated, numbers, groups=["a", "b"], threshold=0.5).to_dict() == here.to_dict()
    assert list(here.counts) == ["a", "b"]


def test_absent_groups_are_absent() -> None:
    scores, mated, group = _lists(COUNTS | {"no mates": ((10, 1), (0, 0))})
    f = fairness(scores, mated, group, threshold=0.5, groups=["a", "b", "c", "no mates", "nobody"])
    assert f.absent == {
        "no mates": "no mated comparisons",
        "nobody": "no mated and no non-mated comparisons",
    }
    assert list(f.by_group["fmr"]) == ["a", "b", "c"]
    assert f.counts["no mates"] == {"identities": None, "mated": 0, "non_mated": 10}
    without = fairness(*_lists(COUNTS), threshold=0.5)
    assert f.fdr.value == pytest.approx(without.fdr.value)  # it took no part
    assert "nobody is absent" in str(f)
    assert math.isnan(f.to_frame().set_index("group").fmr["nobody"])
    alone = fairness(*_lists({"a": COUNTS["a"]}), threshold=0.5)
    assert math.isnan(alone.fdr.value)
    assert "only one is present" in alone.fdr.reason


# ---------------------------------------------------------------------------------------- thresholds


def _gaussians(n: int, shifts: dict[str, tuple[float, float]], seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    rng = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, generator=rng) + shift for pair in shifts.values() for shift in pair]
    mated = torch.tensor([False, True]).repeat(len(shifts)).repeat_interleave(n)
    return torch.cat(parts), mated, [name for name in shifts for _ in range(2 * n)]


def test_known_distributions() -> None:
    """At τ = 2: FMR 1 − Φ(2 − s), FNMR Φ(2 − m) of the groups' means s, m."""
    shifts = {"a": (0.0, 4.0), "b": (0.5, 3.5)}
    f = fairness(*_gaussians(200_000, shifts), threshold=2.0, accuracy_at="threshold")
    expected = {"a": (0.02275, 0.02275), "b": (0.06681, 0.06681)}
    for name, (fmr, fnmr) in expected.items():
        assert f.by_group["fmr"][name].value == pytest.approx(fmr, abs=0.002)
        assert f.by_group["fnmr"][name].value == pytest.approx(fnmr, abs=0.002)
    assert f.fdr.value == pytest.approx(1 - 0.04406, abs=0.002)
    assert f.ir.value == pytest.approx(0.06681 / 0.02275, rel=0.05)


def test_the_threshold_is_set_on_the_pooled_non_mated() -> None:
    scores, mated, group = _gaussians(50_000, {"a": (0.0, 4.0), "b": (0.5, 3.5)})
    f = fairness(scores, mated, group, at_fmr=1e-2)
    assert float((scores[~mated] >= f.threshold).double().mean()) == pytest.approx(1e-2, abs=1e-6)
    assert f.overall["fmr"].value == pytest.approx(1e-2, abs=1e-6)
    assert f.at_fmr == 1e-2
    # Comparisons across groups move it, unless it is set within groups.
    far = scores[~mated] - 3
    more = torch.cat((scores, far)), torch.cat((mated, torch.zeros(len(far), dtype=torch.bool)))
    labels = [*group, *[None] * len(far)]
    assert fairness(*more, labels, at_fmr=1e-2).threshold < f.threshold
    within = fairness(*more, labels, at_fmr=1e-2, threshold="within")
    assert within.threshold == f.threshold
    assert within.by_group["fmr"]["a"].value == f.by_group["fmr"]["a"].value


def test_best_accuracy_by_trying_every_threshold() -> None:
    scores, mated, group = _gaussians(300, {"a": (0.0, 2.0), "b": (0.5, 1.5)})
    f = fairness(scores, mated, group, at_fmr=0.2)
    s, m = scores.double().numpy(), mated.numpy()
    best = max(((s[m] >= t).mean() + (s[~m] < t).mean()) / 2 for t in s)
    assert f.overall["accuracy"].value == pytest.approx(best)
    t = f.accuracy_threshold
    a = np.array(group) == "a"
    assert f.by_group["accuracy"]["a"].value == pytest.approx(((s[a & m] >= t).mean() + (s[a & ~m] < t).mean()) / 2)


def test_too_few_comparisons_for_the_fmr() -> None:
    f = fairness(*_lists(COUNTS), at_fmr=1e-3)
    assert "30,000 non-mated comparisons" in f.fdr.reason
    assert math.isnan(f.threshold)
    assert math.isnan(f.by_group["fmr"]["a"].value)
    assert not math.isnan(f.std.value)  # at the best accuracy, which needs no FMR
    assert "No threshold" in str(f)


# ---------------------------------------------------------------------------------------- properties

_RATES = st.lists(st.tuples(*[st.floats(0.001, 0.999)] * 3), min_size=2, max_size=7)


@given(_RATES, st.floats(0, 1), st.randoms())
def test_measures_keep_their_ranges_and_do_not_care_for_order(rates: Any, alpha: float, random: Any) -> None:
    x = torch.tensor([rates], dtype=torch.float64)
    values = {name: float(v) for name, v in measures_of(x, alpha).items()}
    for name in ("fdr", "garbe", "std", "fmr_gap", "fnmr_gap", "accuracy_gap"):
        assert -1e-12 <= values[name] <= 1 + 1e-12
    assert values["ir"] >= 1 - 1e-12
    assert values["ser"] >= 1 - 1e-12
    random.shuffle(rates)
    again = measures_of(torch.tensor([rates], dtype=torch.float64), alpha)
    assert {name: float(v) for name, v in again.items()} == pytest.approx(values)


@given(_RATES)
def test_garbe_is_the_corrected_gini_coefficient(rates: Any) -> None:
    x = torch.tensor([rates], dtype=torch.float64)
    fmr, n = [r[0] for r in rates], len(rates)
    double_loop = sum(abs(a - b) for a in fmr for b in fmr) / (2 * n * sum(fmr)) * n / (n - 1)
    assert float(measures_of(x, 1.0)["garbe"]) == pytest.approx(double_loop, rel=1e-9, abs=1e-12)


@settings(max_examples=10)
@given(st.permutations(["a", "b", "c"]), st.integers(0, 99))
def test_names_and_order_of_comparisons_change_nothing(names: list[str], seed: int) -> None:
    scores, mated, group = _lists(COUNTS)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(seed))
    renamed = dict(zip("abc", names, strict=True))
    f = fairness(scores[order], mated[order], [renamed[group[i]] for i in order.tolist()], threshold=0.5)
    for name, m in fairness(scores, mated, group, threshold=0.5).measures.items():
        assert f.measures[name].value == pytest.approx(m.value, abs=1e-12)


# ---------------------------------------------------------------------------------------- intervals


def _draw(seed: int, shifts: dict[str, tuple[float, float]], n: int = 40) -> dict[str, Any]:
    """Scores with effects of identities; within a group N(s, 1) and N(m, 1)."""
    rng = torch.Generator().manual_seed(seed)
    scores, both, group = [], [], []
    for k, (non, mat) in enumerate(shifts.values()):
        a, b = (torch.randn(n, generator=rng, dtype=torch.float64) * s for s in (0.5, 0.8))
        i, j = torch.triu_indices(n, n, 1)
        own = torch.arange(n).repeat_interleave(4)
        noise = torch.randn(len(i), generator=rng, dtype=torch.float64)
        scores += [non + a[i] + a[j] + math.sqrt(0.5) * noise]
        scores += [mat + b[own] + 0.6 * torch.randn(len(own), generator=rng, dtype=torch.float64)]
        both += [torch.stack((i, j), 1) + k * n, torch.stack((own, own), 1) + k * n]
        group += [torch.full((len(i) + len(own),), k)]
    pairs = torch.cat(both)
    return {
        "scores": torch.cat(scores),
        "mated": pairs[:, 0] == pairs[:, 1],
        "group": torch.cat(group),
        "groups": list(shifts),
        "identities": pairs,
    }


def _truth(shifts: dict[str, tuple[float, float]], tau: float) -> dict[str, float]:
    phi = torch.distributions.Normal(0.0, 1.0).cdf
    non, mat = (torch.tensor(side, dtype=torch.float64) for side in zip(*shifts.values(), strict=True))
    fmr, fnmr = 1 - phi(tau - non), phi(tau - mat)
    rates = torch.stack((fmr, fnmr, 1 - (fmr + fnmr) / 2), 1)
    return {name: float(v) for name, v in measures_of(rates[None], 0.5).items()}


@pytest.mark.parametrize(
    "shifts",
    [
        {"a": (0.0, 3.5), "b": (0.0, 3.5), "c": (0.0, 3.5)},
        {"a": (0.0, 3.5), "b": (0.4, 3.2), "c": (0.8, 4.2)},
        {"a": (-0.4, 3.2), "b": (-0.4, 2.7), "c": (-0.4, 3.5)},  # GARBE: chance in the FMR, a difference in the FNMR
    ],
    ids=["equal", "different", "in the FNMR alone"],
)
def test_intervals_cover(shifts: dict[str, tuple[float, float]]) -> None:
    """At τ = 2, also where groups are equal, and every estimate of a spread is too large."""
    truth, runs = _truth(shifts, 2.0), 30
    missed = dict.fromkeys(truth, 0)
    for seed in range(runs):
        options: dict[str, Any] = {"threshold": 2.0, "accuracy_at": "threshold", "resamples": 100, "seed": seed}
        for name, m in fairness(**_draw(seed, shifts), **options).measures.items():
            known = name != "ir" or not math.isnan(m.low)  # where no one is mistaken in a group, it is not defined
            missed[name] += known and not m.low - 1e-9 <= truth[name] <= m.high + 1e-9
    assert max(missed.values()) <= 5, missed  # of 30; 1.5 are expected
    assert missed["garbe"] <= 3  # percentiles alone: 5 in the third case
    assert sum(missed.values()) <= 0.08 * runs * len(missed)


def test_chance_tells_equal_groups_from_different_ones() -> None:
    options: Any = {"threshold": 2.0, "resamples": 100}
    equal = fairness(**_draw(0, {"a": (0.0, 3.5), "b": (0.0, 3.5)}, 60), **options)
    assert equal.fdr.high == 1
    assert equal.fdr.value >= equal.by_chance["fdr"]
    different = fairness(**_draw(0, {"a": (0.0, 3.5), "b": (0.3, 2.0)}, 60), **options)
    assert different.fdr.high < 1
    assert different.fdr.value < different.by_chance["fdr"]
    assert different.fnmr_gap.low > 0


def test_no_identities_no_intervals() -> None:
    drawn = _draw(0, {"a": (0.0, 3.5), "b": (0.4, 3.2)})
    drawn.pop("identities")
    f = fairness(**drawn, at_fmr=0.05)
    for m in (*f.measures.values(), *f.by_group["fmr"].values()):
        assert not math.isnan(m.value)
        assert math.isnan(m.low)
        assert "identities of the comparisons are not known" in m.reason
    assert math.isnan(f.by_chance["fdr"])
    few = fairness(**_draw(0, {"a": (0.0, 3.5), "b": (0.4, 3.2)}, 9), threshold=2.0)
    assert "too few for an interval" in few.fdr.reason


# ---------------------------------------------------------------------------------------- from a Verification


def test_of_a_verification_and_of_a_histogram() -> None:
    drawn = _draw(1, {"a": (0.0, 3.5), "b": (0.4, 3.2), "c": (0.8, 4.2)})
    direct = fairness(**drawn, at_fmr=0.05, resamples=30)
    drawn["group_ids"] = drawn.pop("group")
    verified = verify(**drawn, fmr=(0.05,), resamples=30)
    through = verified.fairness(at_fmr=0.05, resamples=30)
    assert str(through) == str(direct)
    assert through.by_group["fmr"]["b"] == verified.by_group["b"].points[0].fmr
    assert through.threshold == verified.overall.points[0].threshold
    squeezed = drawn["scores"] / 10
    histogram = ScoreHistogram.empty(drawn["groups"]).update(squeezed, drawn["mated"], drawn["group_ids"])
    binned = fairness(histogram.compute((0.05,)), at_fmr=0.05)
    assert binned.counts == {g: {**c, "identities": None} for g, c in direct.counts.items()}
    for name in ("fdr", "garbe", "std"):
        assert binned.measures[name].value == pytest.approx(direct.measures[name].value, abs=0.01)
    with pytest.raises(DataError, match="its own comparisons"):
        fairness(verified, drawn["mated"])


def test_tables_and_dashboard() -> None:
    drawn = _draw(1, {"a": (0.0, 3.5), "b": (0.4, 3.2)})
    drawn["groups"] = Groups({"tone": ["a", "b", "nobody"]})
    f = fairness(**drawn, at_fmr=0.05, resamples=30)
    text, plain = str(f), f.to_dict()
    for label in ("FDR", "IR", "GARBE", "SER", "STD", "trade-off", "nobody is absent", "by chance"):
        assert label in text
    assert plain["measures"]["fdr"]["value"] == f.fdr.value
    assert plain["by_group"]["fmr"]["a"]["low"] == f.by_group["fmr"]["a"].low
    assert plain["absent"] == {"nobody": "no mated and no non-mated comparisons"}
    figure = plotting.fairness_dashboard(f)
    assert len(figure.axes) == 4  # FMR, FNMR, accuracy, measures
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "nobody"]
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    assert texts.count("absent") == 3
    drawn["group_ids"] = drawn.pop("group")
    assert len(plotting.fairness_dashboard(verify(**drawn, fmr=(0.05,), resamples=30), at_fmr=0.05).axes) == 5


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"mated": torch.ones(5, dtype=torch.bool)}, ShapeError, "one truth value per score"),
        ({"mated": torch.ones(80)}, ShapeError, "one truth value per score"),
        ({"group": ["a"] * 5}, ShapeError, "one group per score"),
        ({"group": torch.zeros(5, dtype=torch.int64), "groups": ["a"]}, ShapeError, "one group per score"),
        ({"group": torch.zeros(80, dtype=torch.int64)}, GroupError, "go together"),
        ({"group": torch.full((80,), 3), "groups": ["a", "b", "c"]}, GroupError, "out of range"),
        ({"groups": ["a", "b"]}, GroupError, "unknown groups"),
        ({"group": "a" * 80}, GroupError, "one group per comparison"),
        ({"group": [1.5] * 80}, GroupError, "groups have names"),
        ({"group": np.arange(80) % 3}, GroupError, "go together"),
        ({"group": [0, -1] * 40}, GroupError, "go together"),
        ({"group": [None] * 80}, GroupError, "no groups"),
        ({"scores": torch.full((80,), math.nan)}, DataError, "80 of 80 are NaN"),
        ({"scores": np.zeros(80)}, DataError, "a ndarray"),
        ({"mated": None}, DataError, "no mated"),
        ({"identities": torch.zeros(80, 2, dtype=torch.int64)}, DataError, "contradict"),
        ({"alpha": 1.5}, DataError, "out of range"),
        ({"at_fmr": 0.0}, DataError, "FMR is a share"),
        ({"threshold": "mine"}, DataError, "unknown threshold"),
        ({"threshold": math.nan}, DataError, "unknown threshold"),
        ({"accuracy_at": "worst"}, DataError, "out of range"),
        ({"resamples": -1}, DataError, "out of range"),
    ],
)
def test_bad_input_speaks_up(change: dict[str, Any], error: type[Exception], says: str) -> None:
    scores, mated, group = _lists(COUNTS)
    options: dict[str, Any] = {"scores": scores, "mated": mated, "group": group}
    with pytest.raises(error, match=says):
        fairness(**options | change)
