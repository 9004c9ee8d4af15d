from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from fairface_synth import DataError, GroupError, Groups, ShapeError, balanced_quota
from fairface_synth.label_noise import Confusion, corrected_quota, fit_confusion, true_shares

GROUPS = Groups({"gender": ["female", "male"], "tone": ["light", "medium", "dark"]})
G = len(GROUPS)
GENDER = torch.tensor([[0.80, 0.20], [0.15, 0.85]], dtype=torch.float64)
TONE = torch.tensor([[0.85, 0.12, 0.03], [0.10, 0.80, 0.10], [0.02, 0.08, 0.90]], dtype=torch.float64)
SURE = torch.tensor([0.6, 0.7, 0.8, 0.5, 0.6, 0.9], dtype=torch.float64)
SHARES = torch.tensor([0.05, 0.1, 0.3, 0.05, 0.15, 0.35], dtype=torch.float64)
UNIFORM = torch.full((G,), 1 / G, dtype=torch.float64)


def _known(sure: Tensor | None = SURE) -> Confusion:
    gate = None if sure is None else torch.stack((sure, 1 - sure), dim=1)
    return Confusion(GROUPS, {"gender": GENDER, "tone": TONE}, gate, exact=True)


def _faces(n: int, shares: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """True groups and labels of n faces: attribute by attribute, then the gate."""
    truth = torch.multinomial(shares, n, True, generator=rng)
    gender = torch.multinomial(GENDER[truth // 3], 1, generator=rng)[:, 0]
    tone = torch.multinomial(TONE[truth % 3], 1, generator=rng)[:, 0]
    sure = torch.rand(n, generator=rng, dtype=torch.float64) < SURE[truth]
    return truth, torch.where(sure, gender * 3 + tone, -1)


def _chance(tone: Tensor = TONE, gender: float = 0.5) -> Confusion:
    blind = torch.tensor([[gender, 1 - gender]] * 2, dtype=torch.float64)
    return Confusion(GROUPS, {"gender": blind, "tone": tone}, exact=True)


def _never() -> Confusion:
    tone = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    return Confusion(GROUPS, {"gender": GENDER, "tone": tone}, exact=True)


# --- the confusion ------------------------------------------------------------------------------------------------


def test_rates_are_the_product_of_the_attributes() -> None:
    rates = _known().rates()
    assert torch.allclose(rates, torch.from_numpy(np.kron(GENDER.numpy(), TONE.numpy())))
    for t in range(G):
        for label in range(G):
            (a, b), (c, d) = GROUPS.value_indices(t), GROUPS.value_indices(label)
            assert float(rates[t, label]) == pytest.approx(float(GENDER[a, c] * TONE[b, d]))


def test_three_attributes_keep_the_order_of_the_groups(rng) -> None:
    groups = Groups({"a": ["p", "q"], "b": ["r", "s", "t"], "c": ["u", "v"]})
    tables = {a: torch.rand(len(v), len(v), generator=rng) for a, v in groups.attributes.items()}
    rates = Confusion(groups, tables).rates()
    a, b, c = ((t / t.sum(1, keepdim=True)).double().numpy() for t in tables.values())
    assert np.allclose(rates.numpy(), np.kron(np.kron(a, b), c), atol=1e-6)
    drawn = Confusion(groups, {a: 1e9 * t for a, t in tables.items()}).draw(3, rng)[0]
    assert torch.allclose(drawn, rates.expand(3, -1, -1), atol=1e-3)


@given(st.integers(1, 300), st.integers(0, 1000))
def test_counting_matches_a_loop(n: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.cat((torch.arange(G), torch.randint(-1, G, (n,), generator=rng)))
    label = torch.cat((torch.arange(G), torch.randint(-1, G, (n,), generator=rng)))
    joint = fit_confusion(GROUPS, truth, label, joint=True)
    split = fit_confusion(GROUPS, truth, label)
    table, tones, gate = np.zeros((G, G)), np.zeros((3, 3)), np.zeros((G, 2))
    for t, m in zip(truth.tolist(), label.tolist(), strict=True):
        if t >= 0:
            gate[t, int(m < 0)] += 1
        if t >= 0 and m >= 0:
            table[t, m] += 1
            tones[t % 3, m % 3] += 1
    assert np.array_equal(joint.counts["*"], table)
    assert np.array_equal(split.counts["tone"], tones)
    assert np.array_equal(split.gate, gate)


def test_the_fit_recovers_what_made_the_labels(rng) -> None:
    truth, labels = _faces(60_000, UNIFORM, rng)
    for joint in (False, True):
        fitted = fit_confusion(GROUPS, truth, labels, joint=joint)
        assert torch.allclose(fitted.rates(), _known().rates(), atol=0.02)
        assert torch.allclose(fitted.labelled(), SURE, atol=0.02)


def test_draws_have_the_spread_of_the_counts(rng) -> None:
    fitted = fit_confusion(GROUPS, *_faces(600, UNIFORM, rng), joint=True)
    rates, labelled = fitted.draw(4000, rng)
    counts = fitted.counts["*"].double()
    weight = counts + 1 / G
    total = weight.sum(1, keepdim=True)
    mean = weight / total
    assert torch.allclose(rates.mean(0), mean, atol=0.005)
    assert torch.allclose(rates.var(0), mean * (1 - mean) / (total + 1), rtol=0.25, atol=2e-5)
    assert torch.allclose(labelled.mean(0), fitted.labelled(), atol=0.01)


def test_saves_and_loads(tmp_path, rng) -> None:
    fitted = fit_confusion(GROUPS, *_faces(500, UNIFORM, rng))
    fitted.save(tmp_path / "c")
    again = Confusion.load(tmp_path / "c")
    assert again.groups == GROUPS
    assert torch.equal(again.rates(), fitted.rates())
    assert torch.equal(again.labelled(), fitted.labelled())
    assert not again.exact


# --- true shares --------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0.02, 1), min_size=G, max_size=G), st.sampled_from(["em", "inverse", "bayes"]))
def test_exact_labels_give_back_the_truth(raw: list[float], method: str) -> None:
    """No sampling noise: labels in the proportions that the model implies, and a billion of them."""
    shares = torch.tensor(raw, dtype=torch.float64)
    shares = shares / shares.sum()
    confusion = _known()
    seen = (shares * SURE) @ confusion.rates()
    counts = (1e12 * seen / seen.sum()).round().long()
    rng = torch.Generator().manual_seed(0)
    result = true_shares(confusion, counts, method, draws=20, rng=rng)  # type: ignore[arg-type]
    assert torch.allclose(result.shares, shares, atol=1e-4)
    assert (result.high - result.low).max() < 1e-3


@given(st.lists(st.integers(0, 500), min_size=G, max_size=G).filter(sum), st.booleans())
def test_a_perfect_labeller_changes_nothing(raw: list[int], counted: bool) -> None:
    counts = torch.tensor(raw)
    scale = 10**9 if counted else 1
    eye = {a: scale * torch.eye(len(v)) for a, v in GROUPS.attributes.items()}
    rng = torch.Generator().manual_seed(0)
    for method in ("em", "inverse"):
        confusion = Confusion(GROUPS, eye, exact=not counted)
        result = true_shares(confusion, counts, method, draws=10, rng=rng, force=True)  # type: ignore[arg-type]
        assert torch.allclose(result.shares, counts / counts.sum().double(), atol=1e-3)
        assert torch.allclose(result.as_labelled, counts / counts.sum().double())


@settings(max_examples=15)
@given(st.lists(st.integers(0, 200), min_size=G, max_size=G).filter(lambda c: sum(c) > 20))
def test_em_is_the_maximum_of_the_likelihood(raw: list[int]) -> None:
    """Against scipy's constrained optimiser, in cases where the plain inverse is mostly negative."""
    counts, confusion = torch.tensor(raw), _known(None)
    ours = true_shares(confusion, counts, "em", draws=2, rng=torch.Generator().manual_seed(0), force=True).shares
    rates, weight = confusion.rates().numpy(), counts.double().numpy() / counts.sum().item()

    def loss(share: np.ndarray) -> float:
        return -float(weight @ np.log(np.clip(share @ rates, 1e-12, None)))

    simplex = {"type": "eq", "fun": lambda s: s.sum() - 1}
    best = minimize(loss, np.full(G, 1 / G), bounds=[(0, 1)] * G, constraints=simplex, method="SLSQP", tol=1e-12)
    assert loss(ours.numpy()) < best.fun + 2e-4
    assert float(ours.sum()) == pytest.approx(1)
    assert ours.min() >= 0


def test_the_inverse_says_what_it_clipped() -> None:
    counts = torch.tensor([0, 100, 0, 0, 100, 0])
    result = true_shares(_known(None), counts, "inverse", draws=50, rng=torch.Generator().manual_seed(0), force=True)
    free = torch.linalg.solve(_known(None).rates().T, counts.double() / 200)
    assert float(result.clipped) == pytest.approx(float(-free.clamp_max(0).sum()))
    assert torch.allclose(result.shares, free.clamp_min(0) / free.clamp_min(0).sum())
    assert "clipped" in str(result)


@pytest.mark.parametrize(
    ("method", "validated", "n", "trials"),
    [("inverse", 1500, 1000, 150), ("inverse", 300, 5000, 150), ("em", 1500, 1000, 40), ("bayes", 400, 300, 25)],
)
def test_intervals_cover_the_truth(method: str, validated: int, n: int, trials: int) -> None:
    """Both the confusion and the labels are samples; 95 % of the intervals should hold the true share."""
    rng = torch.Generator().manual_seed(3)
    covered = torch.zeros(G)
    for _ in range(trials):
        confusion = fit_confusion(GROUPS, *_faces(validated, UNIFORM, rng))
        counts = GROUPS.count(_faces(n, SHARES, rng)[1])
        result = true_shares(confusion, counts, method, draws=200, rng=rng, force=True)  # type: ignore[arg-type]
        covered += (result.low <= SHARES) & (result.high >= SHARES)
    slack = 3.5 * math.sqrt(0.05 * 0.95 / trials / 2)  # the six groups count as about two independent ones
    assert abs(float(covered.mean()) / trials - 0.945) < slack
    assert float(covered.min()) / trials > 0.94 - 4 * math.sqrt(0.05 * 0.95 / trials)


def _grid_posterior(log: Tensor, values: Tensor) -> tuple[float, float, float]:
    """Mean and 2.5 and 97.5 % quantiles of `values` [k], the first dimension of a grid of log densities."""
    mass = (log - log.max()).exp().flatten(1).sum(1)
    mass = mass / mass.sum()
    low, high = (float(values[int((mass.cumsum(0) >= q).long().argmax())]) for q in (0.025, 0.975))
    return float(mass @ values), low, high


@pytest.mark.parametrize(
    ("table", "gate", "labels"),
    [
        ([[9, 3], [4, 12]], None, [30, 10]),  # the labels also inform the rows
        ([[9, 3], [4, 12]], None, [2, 1]),  # few labels: mostly the prior
        ([[40, 10], [5, 45]], None, [0, 60]),  # against the border
        ([[8e9, 2e9], [1e9, 9e9]], [[6, 14], [27, 3]], [25, 40]),  # a gate that is known badly
        ([[0.8, 0.2], [0.1, 0.9]], [[0.2, 0.8], [0.9, 0.1]], [25, 40]),  # everything is known
    ],
)
def test_bayes_is_the_posterior_on_a_grid(table: list, gate: list | None, labels: list[int]) -> None:
    """Two groups by brute force: share π, two rates p = P(label 0 | truth), or two rates of passing the gate."""
    exact = table[0][0] < 1
    groups = Groups({"gender": ["female", "male"]})
    counts, passed = torch.tensor(table, dtype=torch.float64), gate and torch.tensor(gate, dtype=torch.float64)
    confusion = Confusion(groups, {"gender": counts}, passed, exact=exact)
    rng = torch.Generator().manual_seed(0)
    result = true_shares(confusion, torch.tensor(labels), "bayes", draws=6000, rng=rng, force=True)

    steps = (torch.arange(160, dtype=torch.float64) + 0.5) / 160
    share, *free = torch.meshgrid(steps, steps, steps, indexing="ij")
    known, rates = counts / counts.sum(1, keepdim=True), [1.0, 1.0]
    if gate is None:
        chance, weight = free, counts + 0.5
    else:
        chance = [known[0, 0], known[1, 0]]
        rates, weight = free, passed + passed.sum(0) / passed.sum()
    log = sum((w[0] - 1) * x.log() + (w[1] - 1) * (1 - x).log() for w, x in zip(weight, free, strict=True))
    if exact:
        assert passed is not None
        rates, log = [passed[0, 0], passed[1, 0]], torch.zeros_like(share)
    first = share * rates[0] * chance[0] + (1 - share) * rates[1] * chance[1]
    both = share * rates[0] + (1 - share) * rates[1]
    log = log + labels[0] * (first / both).log() + labels[1] * (1 - first / both).log()
    mean, low, high = _grid_posterior(log, steps)
    assert float(result.shares[0]) == pytest.approx(mean, abs=0.012)
    assert float(result.low[0]) == pytest.approx(low, abs=0.02)
    assert float(result.high[0]) == pytest.approx(high, abs=0.025)
    assert float(result.shares.sum()) == pytest.approx(1)


def test_bayes_over_attributes_is_bayes_over_groups_when_nothing_else_differs(rng) -> None:
    """A billion faces of known truth: then the product of the attributes' tables is the joint table."""
    counts = torch.tensor([5, 12, 30, 9, 20, 40])
    split = Confusion(GROUPS, {"gender": 1e9 * GENDER, "tone": 1e9 * TONE})
    joint = Confusion(GROUPS, {"*": 1e9 * _known(None).rates()})
    a, b = (true_shares(c, counts, "bayes", draws=4000, rng=rng, force=True) for c in (split, joint))
    for field in ("shares", "low", "high"):
        assert torch.allclose(getattr(a, field), getattr(b, field), atol=0.02)


@pytest.mark.parametrize("n", [1000, 10**6])
def test_an_absent_group_has_the_limit_0(n: int, rng) -> None:
    shares = torch.tensor([0.0, 0.2, 0.3, 0.05, 0.15, 0.3], dtype=torch.float64)
    seen = shares @ _known(None).rates()
    for _ in range(5):
        counts = torch.bincount(torch.multinomial(seen, n, True, generator=rng), minlength=G)
        for method in ("em", "inverse"):
            result = true_shares(_known(None), counts, method, draws=200, rng=rng)  # type: ignore[arg-type]
            assert result.low[0] == 0
            assert float(result.high[0]) < 8 / math.sqrt(n)
            assert result.low[1:].min() > 0
        assert float(true_shares(_known(None), counts, "bayes", draws=200, rng=rng).low[0]) > 0  # as documented


def test_a_singular_confusion_is_not_taken_at_its_word(rng) -> None:
    """Gender is labelled at chance: what is left is the tone, and an equal split, flagged."""
    labels = torch.tensor([100, 200, 300, 300, 200, 100])
    result = true_shares(_chance(), labels, "inverse", draws=50, rng=rng, force=True)
    oracle = torch.linalg.pinv(_chance().rates().T) @ (labels.double() / 1200)
    assert torch.allclose(result.shares, oracle.clamp_min(0) / oracle.clamp_min(0).sum(), atol=1e-6)
    assert (result.shares - result.as_labelled).abs().max() > 0.05
    assert torch.allclose(result.shares[:3], result.shares[3:], atol=1e-6)
    assert result.singular
    assert not result.reliable
    assert "labelled alike" in str(result)
    assert "condition number ∞" in str(result)
    em = true_shares(_chance(), labels, "em", draws=50, rng=rng, force=True)
    assert torch.allclose(em.shares, result.shares, atol=1e-3)


def test_correction_beats_taking_labels_at_their_word(rng) -> None:
    confusion = fit_confusion(GROUPS, *_faces(20_000, UNIFORM, rng))
    shares = SHARES.flip(0)
    counts = GROUPS.count(_faces(20_000, shares, rng)[1])
    for method in ("em", "inverse", "bayes"):
        result = true_shares(confusion, counts, method, draws=200, rng=rng)  # type: ignore[arg-type]
        assert (result.shares - shares).abs().sum() < 0.5 * (result.as_labelled - shares).abs().sum()
        assert result.reliable


def test_intervals_count_both_kinds_of_noise() -> None:
    """Few validated faces widen the limits as few labels do."""
    table = {"gender": GENDER, "tone": TONE}
    counts = (1000 * SHARES @ _known(None).rates()).round().long()

    def width(confusion: Confusion, labels: Tensor) -> float:
        result = true_shares(confusion, labels, rng=torch.Generator().manual_seed(0), force=True)
        return float((result.high - result.low).sum())

    many, few = (Confusion(GROUPS, {a: n * t for a, t in table.items()}) for n in (1e6, 50))
    assert width(few, 1000 * counts) > 3 * width(many, 1000 * counts)
    assert width(many, counts) > 3 * width(many, 1000 * counts)
    assert width(many, counts) == pytest.approx(width(_known(None), counts), rel=0.1)


def test_labels_at_chance_are_refused(rng) -> None:
    counts = torch.tensor([100, 200, 300, 100, 200, 300])
    with pytest.raises(DataError, match="too little about the truth"):
        true_shares(_chance(), counts, rng=rng)
    truth = torch.randint(0, G, (3000,), generator=rng)
    sampled = fit_confusion(GROUPS, truth, torch.randint(0, G, (3000,), generator=rng))  # never exactly singular
    with pytest.raises(DataError, match="merge groups"):
        true_shares(sampled, counts, rng=rng)
    forced = true_shares(sampled, counts, rng=rng, force=True)
    assert not forced.reliable
    assert "UNRELIABLE" in str(forced)
    assert torch.isfinite(forced.shares).all()
    assert torch.isfinite(true_shares(_chance(), counts, "inverse", rng=rng, force=True).shares).all()


def test_more_data_makes_a_weak_labeller_usable(rng) -> None:
    """What is refused is not a weak labeller but too few counts for it."""
    weak = torch.tensor([[0.55, 0.45], [0.45, 0.55]], dtype=torch.float64)
    groups = Groups({"gender": ["female", "male"]})
    few, many = (Confusion(groups, {"gender": n * weak}) for n in (60, 1e6))
    with pytest.raises(DataError, match="too little"):
        true_shares(few, torch.tensor([52, 48]), rng=rng)
    result = true_shares(many, torch.tensor([520_000, 480_000]), rng=rng)
    assert float(result.shares[0]) == pytest.approx(0.7, abs=0.02)


# --- quotas -------------------------------------------------------------------------------------------------------


def test_the_corrected_quota_balances_the_truth(rng) -> None:
    """Simulated from end to end: fit, plan, accept by label, count the truth."""
    confusion = fit_confusion(GROUPS, *_faces(20_000, UNIFORM, rng))
    natural = GROUPS.count(_faces(20_000, SHARES, rng)[1])
    planned = corrected_quota(confusion, 6000, natural, rng=rng)
    assert planned.reachable
    truth, labels = _faces(600_000, SHARES, rng)

    def true_make_up(quota: Tensor) -> Tensor:
        accepted = [truth[labels == g][:q] for g, q in enumerate(quota.tolist())]
        assert [len(a) for a in accepted] == quota.tolist()
        return GROUPS.count(torch.cat(accepted)) / quota.sum()

    corrected = true_make_up(planned.quota)
    plain = true_make_up(balanced_quota(GROUPS, 6000))
    noise = 4 * math.sqrt(1 / G / 6000)
    assert (corrected - planned.shares).abs().max() < noise + 0.02
    assert (plain - planned.uncorrected).abs().max() < noise + 0.02
    assert (corrected - 1 / G).abs().max() < 0.03 < (plain - 1 / G).abs().max()
    assert bool(((planned.low - noise <= corrected) & (corrected <= planned.high + noise)).all())


@given(
    st.integers(1, 5000),
    st.lists(st.floats(0.05, 1), min_size=G, max_size=G),
    st.sampled_from(["*", "dark", {"female": 2, "male": 1}, ["female-dark", "male-light"]]),
)
def test_quotas_sum_and_shares_follow_bayes_rule(n: int, natural: list[float], spec) -> None:
    prior = torch.tensor(natural, dtype=torch.float64)
    planned = corrected_quota(_known(), n, prior, spec, draws=2)
    assert planned.quota.dtype == torch.int64
    assert int(planned.quota.sum()) == n
    assert planned.quota.min() >= 0
    assert not planned.quota[planned.target == 0].any()
    rates, expected = _known().rates(), torch.zeros(G, dtype=torch.float64)
    for label in range(G):
        both = prior * SURE * rates[:, label]
        expected += planned.quota[label] / n * both / both.sum()
    assert torch.allclose(planned.shares, expected)
    assert torch.allclose(planned.low, planned.high)  # everything is known
    if n >= 1000:
        distance = (planned.uncorrected - planned.target).square().sum()
        assert (planned.shares - planned.target).square().sum() <= distance + 1e-4


@given(st.integers(1, 1000), st.lists(st.integers(1, 500), min_size=G, max_size=G))
def test_a_perfect_labeller_needs_no_other_quota(n: int, natural: list[int]) -> None:
    eye = {a: torch.eye(len(v)) for a, v in GROUPS.attributes.items()}
    planned = corrected_quota(Confusion(GROUPS, eye, exact=True), n, torch.tensor(natural), draws=2)
    assert torch.equal(planned.quota, balanced_quota(GROUPS, n))
    assert planned.reachable


def test_an_unreachable_target_is_said_so() -> None:
    """A group so rare that even its own label holds mostly others."""
    rare = torch.tensor([0.001, 0.2, 0.3, 0.1, 0.2, 0.2], dtype=torch.float64)
    planned = corrected_quota(_known(), 600, rare, draws=2)
    assert not planned.reachable
    assert planned.left > 0.05
    assert "No quota reaches" in str(planned)
    assert "true, plain quota" in str(corrected_quota(_known(), 600, SHARES, draws=2))


def test_quotas_refuse_a_labeller_at_chance(rng) -> None:
    with pytest.raises(DataError, match="too little about the truth"):
        corrected_quota(_chance(), 600, SHARES, rng=rng)
    truth = torch.randint(0, G, (3000,), generator=rng)
    sampled = fit_confusion(GROUPS, truth, torch.randint(0, G, (3000,), generator=rng))
    with pytest.raises(DataError, match="too little about the truth"):
        corrected_quota(sampled, 600, SHARES, rng=rng)
    assert int(corrected_quota(sampled, 600, SHARES, rng=rng, force=True).quota.sum()) == 600


# --- bad input ----------------------------------------------------------------------------------------------------

COUNTS = torch.full((G,), 100)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Confusion(GROUPS, {"gender": GENDER}), GroupError, "do not fit the groups"),
        (lambda: Confusion(GROUPS, {"gender": TONE, "tone": TONE}), ShapeError, "does not fit"),
        (lambda: Confusion(GROUPS, {"gender": -GENDER, "tone": TONE}), DataError, "no table of counts"),
        (lambda: Confusion(GROUPS, {"gender": GENDER / 0, "tone": TONE}), DataError, "no table of counts"),
        (lambda: Confusion(GROUPS, {"gender": GENDER, "tone": TONE}, torch.ones(2, 2), exact=True), ShapeError, "gate"),
        (lambda: Confusion(GROUPS, {"gender": GENDER, "tone": TONE}, torch.zeros(G, 2), exact=True), DataError, "gate"),
        (lambda: fit_confusion(GROUPS, torch.arange(3), torch.arange(3)), DataError, "truly male"),
        (lambda: fit_confusion(GROUPS, torch.arange(3), torch.arange(4)), ShapeError, "do not fit each other"),
        (lambda: fit_confusion(GROUPS, torch.arange(7), torch.arange(7)), GroupError, "out of range"),
        (lambda: true_shares(_known(), COUNTS[:3]), ShapeError, "one value per group"),
        (lambda: true_shares(_known(), COUNTS / 600), ShapeError, "integers"),
        (lambda: true_shares(_known(), COUNTS * 0), DataError, "no counts"),
        (lambda: true_shares(_known(), -COUNTS), DataError, "no counts"),
        (lambda: true_shares(_known(), COUNTS, "guess"), DataError, "unknown method"),
        (lambda: true_shares(_known(), COUNTS, draws=1), DataError, "draws"),
        (lambda: true_shares(_never(), COUNTS, force=True), DataError, "never given: female-dark, male-dark"),
        (lambda: corrected_quota(_known(), 0, SHARES), DataError, "nothing to fill"),
        (lambda: corrected_quota(_known(), 10, SHARES * float("nan")), DataError, "no counts"),
        (lambda: corrected_quota(_known(), 10, SHARES, "blue"), GroupError, "blue"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_probabilities_are_not_taken_for_counts() -> None:
    groups = Groups({"gender": ["female", "male"]})
    table = {"gender": torch.tensor([[0.8, 0.2], [0.1, 0.9]])}
    with pytest.raises(DataError, match="not counts"):
        Confusion(groups, table)
    assert Confusion(groups, table, exact=True).exact
