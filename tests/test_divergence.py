"""Counting, KL divergence and consistency against scipy, closed forms, brute force and simulated sets of known KL."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fairface_synth import plotting
from fairface_synth.annotation import Annotations
from fairface_synth.attribute_consistency import consistency
from fairface_synth.attribute_counts import AttributeCounts, attribute_rates, count_attributes, identity_keys
from fairface_synth.attribute_schema import MAAD_FACE, AttributeSchema
from fairface_synth.divergence import (
    Cells,
    Divergence,
    divergence_text,
    fit_cells,
    js_divergence,
    kl_divergence,
    kl_matrix,
    kl_table,
    product_cells,
)
from fairface_synth.errors import DataError, FairFaceError, GroupError, ShapeError

PAD = {2**63 - 1}
SCHEMA = AttributeSchema(("Smiling", "Young", "Bald"), {"Young": "checked by nobody"})


def annotated(p: Tensor, identities=None, name: str = "", schema: AttributeSchema = SCHEMA) -> Annotations:
    return Annotations(schema, p.float(), identities=None if identities is None else np.asarray(identities), name=name)


def draws(rates, n: int, seed: int, name: str = "", identities=None) -> Annotations:
    """n rows with independent hard labels."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, len(rates))) < np.asarray(rates)
    names = ("Smiling", "Young", "Bald")[: len(rates)]
    return annotated(torch.from_numpy(labels), identities, name, AttributeSchema(names))


def shares(values: list[float]) -> Tensor:
    x = torch.tensor(values, dtype=torch.float64)
    return x / x.sum()


def equal(a: AttributeCounts, b: AttributeCounts) -> bool:
    tensors = ("positives", "defined", "bins", "cells")
    same = all(torch.equal(getattr(a, x), getattr(b, x)) for x in tensors) and set(a.sketch.tolist()) - PAD == (
        set(b.sketch.tolist()) - PAD
    )
    return same and (a.rows, a.spans) == (b.rows, b.spans)


# --- formulas ---------------------------------------------------------------------------------------------------------

POSITIVE = st.lists(st.floats(1e-6, 1), min_size=4, max_size=4).map(shares)
WITH_ZEROS = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=4, max_size=4).filter(any).map(shares)


@given(POSITIVE | WITH_ZEROS, POSITIVE | WITH_ZEROS)
def test_divergences_equal_scipys(p: Tensor, q: Tensor) -> None:
    assert float(kl_divergence(p, q)) == pytest.approx(entropy(p.numpy(), q.numpy()), rel=1e-9, abs=1e-12)
    expected = jensenshannon(p.numpy(), q.numpy()) ** 2
    assert float(js_divergence(p, q)) == pytest.approx(float(np.nan_to_num(expected)), rel=1e-7, abs=1e-12)


@given(POSITIVE | WITH_ZEROS, POSITIVE | WITH_ZEROS)
def test_divergences_keep_their_bounds(p: Tensor, q: Tensor) -> None:
    assert float(kl_divergence(p, q)) >= 0
    assert float(kl_divergence(p, p)) == 0
    js = float(js_divergence(p, q))
    assert 0 <= js <= math.log(2) + 1e-12
    assert js == pytest.approx(float(js_divergence(q, p)), abs=1e-15)


def test_divergences_of_what_the_other_lacks() -> None:
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    assert float(kl_divergence(p, q)) == math.inf
    assert float(js_divergence(p, q)) == pytest.approx(math.log(2))


# --- counting ---------------------------------------------------------------------------------------------------------


def random_set(n: int, seed: int, people: int | None = 7) -> Annotations:
    rng = np.random.default_rng(seed)
    p = torch.from_numpy(rng.random((n, 3)))
    p[torch.from_numpy(rng.random((n, 3)) < 0.1)] = torch.nan
    return annotated(p, None if people is None else [f"person {i}" for i in rng.integers(0, people, n)])


@given(st.integers(2, 60), st.integers(0, 10**6), st.data())
def test_shards_merge_exactly_whatever_the_split_and_order(n: int, seed: int, data) -> None:
    whole = random_set(n, seed)
    cells = product_cells(["Smiling", "Bald"], SCHEMA)
    order = np.random.default_rng(seed + 1).permutation(n)
    mixed = annotated(whole.probabilities[torch.from_numpy(order)], whole.identities[order])
    cut = data.draw(st.integers(1, n - 1))
    first, second = (count_attributes(mixed[s], bins=5, cells=cells) for s in (slice(cut), slice(cut, n)))
    expected = count_attributes(whole, bins=5, cells=cells)
    assert equal(first.merge(second), expected)
    assert equal(second.merge(first), expected)


def test_rows_without_identities_merge_by_their_numbers() -> None:
    whole = random_set(50, 0, people=None)
    first, second = count_attributes(whole[:20]), count_attributes(whole[20:], first_row=20)
    assert equal(second.merge(first), count_attributes(whole))
    assert first.merge(second).spans == ((0, 50),)
    with pytest.raises(DataError, match="counted already"):
        first.merge(count_attributes(whole[20:]))


def test_batches_do_not_matter(monkeypatch) -> None:
    whole = random_set(1000, 3, people=90)
    expected = count_attributes(whole, bins=4)
    monkeypatch.setattr("fairface_synth.attribute_counts._ROWS", 37)
    assert equal(count_attributes(whole, bins=4), expected)


def test_counts_equal_numpys() -> None:
    whole = random_set(400, 1)
    counts = count_attributes(whole, bins=8, threshold=0.3)
    p = whole.probabilities.numpy()
    np.testing.assert_array_equal(counts.positives[0], (p >= 0.3).sum(0))
    np.testing.assert_array_equal(counts.defined[0], (~np.isnan(p)).sum(0))
    for k in range(3):
        np.testing.assert_array_equal(counts.bins[0, k], np.histogram(p[:, k], bins=8, range=(0, 1))[0])
    assert int(counts.bins[0].sum()) == int(counts.defined[0].sum())
    assert float(counts.identities()) == 7
    assert counts.rows == 400


def test_each_replicate_counts_an_identity_as_often_as_its_weight() -> None:
    whole = random_set(300, 2, people=40)
    counts = count_attributes(whole, replicates=10, seed=5, stream=3)
    keys, unit = identity_keys(whole.identities)
    one = AttributeCounts.empty(("x",), replicates=10, seed=5, stream=3)
    weights = torch.stack([one.update(torch.ones(1, 1, dtype=torch.int8), key[None]).positives[1:, 0] for key in keys])
    expected = weights.T[:, unit] @ (whole.labels() > 0).double()  # brute force, identity by identity
    assert torch.equal(counts.positives[1:], expected)


def test_weights_are_poisson() -> None:
    n = 20_000
    counts = AttributeCounts.empty(("x",), replicates=64, identities=False)
    weights = counts._weights(torch.arange(n))
    share = torch.bincount(weights.flatten().long(), minlength=8)[:8] / weights.numel()
    expected = torch.tensor([math.exp(-1) / math.factorial(k) for k in range(8)])
    error = 5 * (expected / weights.numel()).sqrt() + 2e-5
    assert bool(((share - expected).abs() < error).all())
    correlation = torch.corrcoef(weights)
    assert float((correlation - torch.eye(64)).abs().max()) < 5 / math.sqrt(n)  # replicates are independent
    other = AttributeCounts.empty(("x",), replicates=64, identities=False, stream=1)._weights(torch.arange(n))
    assert abs(float(torch.corrcoef(torch.stack((weights[0], other[0])))[0, 1])) < 5 / math.sqrt(n)


def test_many_identities_are_estimated() -> None:
    counts = AttributeCounts.empty(("x",), replicates=0)
    true = 200_000
    for part in np.array_split(np.arange(true), 4):
        keys, _ = identity_keys(part.astype(str))
        labels = torch.ones(len(keys), 1, dtype=torch.int8)
        counts = counts.update(labels, keys).update(labels, keys)  # repeats count once
    assert float(counts.identities()) == pytest.approx(true, rel=0.015)


def test_identity_keys_are_the_same_everywhere() -> None:
    keys, unit = identity_keys(np.array(["b", "a", "b"]))
    assert torch.equal(keys[unit[:1]], keys[unit[2:]])
    assert keys.tolist() == identity_keys(np.array(["a", "b"]))[0].tolist()
    assert int(identity_keys(np.array(["n000001"]))[0]) == 844786507971268917  # shards are counted apart
    with pytest.raises(DataError, match="no identity"):
        identity_keys(np.array(["a", ""]))


def test_counts_are_saved(tmp_path) -> None:
    for people in (5, None):
        counts = count_attributes(random_set(30, 1, people), bins=3)
        counts.save(tmp_path / "counts.safetensors")
        loaded = AttributeCounts.load(tmp_path / "counts.safetensors")
        assert equal(counts, loaded)
        assert loaded.noisy == SCHEMA.noisy
        assert equal(
            counts.merge(count_attributes(random_set(9, 2, people), bins=3, first_row=30)).to("cpu"),
            (loaded.merge(count_attributes(random_set(9, 2, people), bins=3, first_row=30))),
        )


# --- rates ------------------------------------------------------------------------------------------------------------


def test_rates_and_what_is_undefined() -> None:
    p = torch.tensor([[0.9, torch.nan, 0.1], [0.2, torch.nan, 0.4], [0.5, torch.nan, 0.3], [0.1, torch.nan, torch.nan]])
    rates = attribute_rates(annotated(p, ["a", "a", "b", "c"]))
    assert rates.rate.tolist()[::2] == [0.5, 0.0]
    assert math.isnan(rates.rate[1])
    assert rates.defined.tolist() == [4, 0, 3]
    assert rates.undefined.tolist() == [0, 4, 1]
    assert float(rates.identities) == 3
    assert 0 < float(rates.high[2]) < 1
    assert float(rates.low[2]) == pytest.approx(0)
    assert "Young *" in str(rates)
    assert "checked by nobody" in str(rates)
    assert json.dumps(rates.to_dict())
    assert list(rates.to_frame()["attribute"]) == list(SCHEMA.names)


def test_reliability_makes_labels_undefined() -> None:
    p = torch.tensor([[0.9], [0.8], [0.1]])
    annotations = Annotations(AttributeSchema(("x",)), p, torch.tensor([[0.4], [0.1], [0.4]]))
    rates = attribute_rates(annotations, min_reliability=0.3)
    assert rates.rate.tolist() == [0.5]
    assert rates.undefined.tolist() == [1]


def test_one_identity_gives_no_interval() -> None:
    rates = attribute_rates(annotated(torch.rand(9, 3), ["same"] * 9))
    assert bool(rates.low.isnan().all())
    table = kl_table(annotated(torch.rand(9, 3), ["same"] * 9), annotated(torch.rand(9, 3)))
    assert bool(table.kl_pq.low.isnan().all())
    assert "one identity" in str(table)


def clustered(people: int, images: int, rng: np.random.Generator, a: float = 1.0, b: float = 2.0) -> Annotations:
    """Identities with rates of their own from Beta(a, b): images of one are alike. The true rate is a/(a + b)."""
    rate = np.repeat(rng.beta(a, b, people), images)
    labels = torch.from_numpy(rng.random(people * images) < rate)[:, None]
    identities = np.repeat(np.arange(people), images).astype(str)
    return annotated(labels, identities, schema=AttributeSchema(("x",)))


def test_intervals_over_identities_cover_and_naive_ones_do_not() -> None:
    rng = np.random.default_rng(0)
    trials, covered, naive = 120, 0, 0
    for trial in range(trials):
        annotations = clustered(60, 20, rng)
        rates = attribute_rates(annotations, seed=trial, replicates=100)
        alone = attribute_rates(
            annotated(annotations.probabilities, schema=annotations.schema), seed=trial, replicates=100
        )
        covered += bool(rates.low <= 1 / 3 <= rates.high)
        naive += bool(alone.low <= 1 / 3 <= alone.high)
    assert covered / trials > 0.89  # 95 % less three standard errors
    assert naive / trials < 0.7


# --- divergence of sets -----------------------------------------------------------------------------------------------


def test_plugin_is_the_stated_formula() -> None:
    p, q = draws([0.3, 0.9], 200, 0), draws([0.5, 0.7], 100, 1)
    table = kl_table(p, q, alpha=1.5)
    for k in range(2):
        x, y = (float((a.labels()[:, k] > 0).sum()) for a in (p, q))
        a, b = (x + 1.5) / 203, (y + 1.5) / 103
        assert float(table.kl_pq.plugin[k]) == pytest.approx(
            a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b))
        )
        assert float(table.kl_qp.plugin[k]) == pytest.approx(entropy([b, 1 - b], [a, 1 - a]))
        assert float(table.js.plugin[k]) == pytest.approx(jensenshannon([a, 1 - a], [b, 1 - b]) ** 2)
    assert torch.allclose(table.asymmetry.value, table.kl_pq.value - table.kl_qp.value)
    assert torch.allclose(table.total["js"].value, table.js.value.sum())
    assert torch.allclose(table.mean["kl_pq"].value, table.kl_pq.value.mean())


def test_the_documented_numbers() -> None:
    """docs/divergence.md; the corrected value is twice the plug-in less the mean of a plain bootstrap of it."""
    p, q = ({"Smiling": [1.0] * k + [0.0] * (100 - k)} for k in (30, 40))
    table = kl_table(p, q, replicates=2000)
    assert float(table.kl_pq.plugin[0]) == pytest.approx(0.0211, abs=5e-5)
    rng = np.random.default_rng(0)
    (a, x), (b, y) = ((rng.binomial(100, k / 100, 10**5) + 0.5, 101) for k in (30, 40))
    drawn = entropy([a / x, 1 - a / x], [b / y, 1 - b / y]).mean()
    assert float(table.kl_pq.value[0]) == pytest.approx(2 * 0.0211 - drawn, abs=0.0025)
    assert float(table.kl_pq.value[0]) == pytest.approx(0.012, abs=0.0015)


def test_histograms_are_smoothed_over_the_bins_that_either_set_uses() -> None:
    p, q = torch.tensor([0.05] * 3 + [0.95] * 5), torch.tensor([0.05] * 6 + [0.55] * 2)
    schema = AttributeSchema(("x",))
    table = kl_table(annotated(p[:, None], schema=schema), annotated(q[:, None], schema=schema), on="probabilities")
    a, b = np.array([3.5, 0.5, 5.5]), np.array([6.5, 2.5, 0.5])
    assert float(table.kl_pq.plugin[0]) == pytest.approx(entropy(a, b))
    assert table.rate_p.tolist() == [0.625]


def test_swapping_the_sets_swaps_the_directions() -> None:
    p, q = (count_attributes(random_set(300, s, 50), stream=s) for s in (1, 2))
    one, other = kl_table(p, q), kl_table(q, p)
    assert torch.allclose(one.kl_pq.value, other.kl_qp.value)
    assert torch.allclose(one.asymmetry.value, -other.asymmetry.value)
    assert torch.allclose(one.js.value, other.js.value)


def test_a_set_against_itself_is_zero_when_paired() -> None:
    whole = random_set(200, 1)
    table = kl_table(whole, whole, paired=True)
    for divergence in (table.kl_pq, table.js, table.asymmetry):
        for x in (divergence.value, divergence.plugin, divergence.low, divergence.null_high):
            assert bool((x.abs() < 1e-12).all())
    alone = kl_table(whole, whole)
    assert bool((alone.kl_pq.plugin == 0).all())
    assert bool((alone.kl_pq.value <= 0).all())
    assert bool((alone.kl_pq.low == 0).all())


def simulate(rates_p, rates_q, n: int, m: int, trials: int, **options) -> list:
    return [
        kl_table(draws(rates_p, n, 2 * t), draws(rates_q, m, 2 * t + 1), seed=t, replicates=100, **options)
        for t in range(trials)
    ]


def test_correction_is_nearly_unbiased_and_intervals_cover() -> None:
    rates_p, rates_q = (0.3, 0.05, 0.5), (0.3, 0.1, 0.8)
    true = torch.tensor([entropy([p, 1 - p], [q, 1 - q]) for p, q in zip(rates_p, rates_q, strict=True)])
    tables = simulate(rates_p, rates_q, 400, 250, trials=150)
    value, plugin = (torch.stack([getattr(t.kl_pq, x) for t in tables]) for x in ("value", "plugin"))
    error = value.std(0) / math.sqrt(len(tables))
    assert bool(((value.mean(0) - true).abs() < 3.5 * error).all())
    assert bool(((plugin.mean(0) - true)[0] > 5 * error[0]).all())  # the plug-in is not
    covered = torch.stack([(t.kl_pq.low <= true + 1e-12) & (true <= t.kl_pq.high) for t in tables]).double().mean(0)
    assert bool((covered > 0.9).all()), covered
    sums = [float(t.total["kl_pq"].low) <= float(true.sum()) <= float(t.total["kl_pq"].high) for t in tables]
    assert np.mean(sums) > 0.9
    gap = torch.tensor([entropy([q, 1 - q], [p, 1 - p]) for p, q in zip(rates_p, rates_q, strict=True)])
    sides = torch.stack([(t.asymmetry.low <= true - gap) & (true - gap <= t.asymmetry.high) for t in tables])
    assert bool((sides.double().mean(0) > 0.9).all())


@pytest.mark.parametrize("same", [True, False])
def test_joint_correction_on_known_cells(same: bool) -> None:
    """Eight product cells of three independent attributes: the joint KL is the sum of the three."""
    rates_p, rates_q = (0.3, 0.4, 0.5), ((0.3, 0.4, 0.5) if same else (0.4, 0.3, 0.6))
    true = sum(entropy([p, 1 - p], [q, 1 - q]) for p, q in zip(rates_p, rates_q, strict=True))
    tables = simulate(rates_p, rates_q, 300, 300, trials=100, on="joint", cells=("Smiling", "Young", "Bald"))
    value = torch.cat([t.kl_pq.value for t in tables])
    plugin = torch.cat([t.kl_pq.plugin for t in tables])
    assert float(plugin.mean()) - true > 0.01  # about 7/2 · (1/300 + 1/300)
    assert abs(float(value.mean()) - true) < 3.5 * float(value.std()) / math.sqrt(len(value))
    covered = [bool(t.kl_pq.low <= true + 1e-12) and bool(true <= t.kl_pq.high) for t in tables]
    assert np.mean(covered) > 0.9
    if same:
        above = torch.cat([t.kl_pq.value > t.kl_pq.null_high for t in tables]).double().mean()
        assert 0.01 < float(above) < 0.12
        null = torch.cat([t.kl_pq.null for t in tables])
        assert float(null.mean()) == pytest.approx(float(plugin.mean()), rel=0.15)


def test_null_level_equals_that_of_permuted_identities() -> None:
    rng = np.random.default_rng(4)
    p, q = clustered(80, 10, rng, 1, 2), clustered(60, 10, rng, 2, 2)
    table = kl_table(p, q, replicates=1000)
    labels = torch.cat((p.probabilities, q.probabilities))[:, 0].numpy().reshape(-1, 10).sum(1)
    permuted = []
    for _ in range(1000):
        mixed = rng.permutation(labels)
        a, b = ((x.sum() + 0.5) / (len(x) * 10 + 1) for x in (mixed[:80], mixed[80:]))
        permuted.append(entropy([a, 1 - a], [b, 1 - b]))
    assert float(table.kl_pq.null[0]) == pytest.approx(np.mean(permuted), rel=0.25)
    level = np.quantile(permuted, 0.95) - np.mean(permuted)
    assert float(table.kl_pq.null_high[0]) == pytest.approx(level, rel=0.3)


def test_clustered_sets_of_equal_rates_are_not_told_apart() -> None:
    rng = np.random.default_rng(1)
    covered, naive, trials = 0, 0, 60
    for trial in range(trials):
        p, q = clustered(50, 30, rng), clustered(50, 30, rng)
        covered += float(kl_table(p, q, seed=trial, replicates=100).kl_pq.low[0]) == 0
        p, q = (annotated(x.probabilities, schema=x.schema) for x in (p, q))
        naive += float(kl_table(p, q, seed=trial, replicates=100).kl_pq.low[0]) == 0
    assert covered >= 0.88 * trials
    assert naive <= 0.7 * trials


def test_joint_finds_what_rates_cannot() -> None:
    rng = np.random.default_rng(0)
    x = rng.random(4000) < 0.5
    together = annotated(torch.from_numpy(np.stack((x, x, x), 1)), name="together")
    apart = draws([0.5, 0.5, 0.5], 4000, 1)
    assert float(kl_table(together, apart).kl_pq.value.max()) < 0.01
    for cells in (["Smiling", "Young", "Bald"], 8):
        table = kl_table(together, annotated(apart.probabilities), on="joint", cells=cells)
        assert float(table.kl_pq.value[0]) == pytest.approx(math.log(4), rel=0.05)  # two of eight cells against all


def test_cells_are_the_nearest_and_products_of_labels() -> None:
    p = torch.rand(200, 3)
    p[:5] = torch.nan
    whole = annotated(p)
    cells = fit_cells([whole, annotated(torch.rand(150, 3))], 6)
    ids = cells.assign(whole.labels(), whole.probabilities)
    expected = torch.cdist(p[5:].double(), cells.centroids).argmin(1)
    assert torch.equal(ids[5:], expected)
    assert bool((ids[:5] == -1).all())
    half = torch.tensor([[0.9, torch.nan, 0.1]])
    near = (cells.centroids[:, [0, 2]] - half[0, [0, 2]]).square().sum(1).argmin()
    assert int(cells.assign(annotated(half).labels(), half)) == int(near)
    product = product_cells(["Young", "Bald"], SCHEMA)
    labels = torch.tensor([[0, -1, -1], [0, 1, -1], [1, -1, 1], [1, 1, 1], [1, 0, 1]], dtype=torch.int8)
    assert product.assign(labels, torch.zeros(5, 3)).tolist() == [0, 1, 2, 3, -1]
    assert torch.equal(fit_cells([whole], 6, seed=3).centroids, fit_cells([whole], 6, seed=3).centroids)


def test_attributes_are_found_by_name() -> None:
    rng = np.random.default_rng(0)
    p, q = ({n: rng.integers(0, 2, 300) for n in ("Bald", "Young", "x")} for _ in range(2))
    turned = {"X": q["x"], "bald": q["Bald"], "young": q["Young"]}
    for on in ("labels", "joint"):
        one, other = (kl_table(p, s, on=on, cells=4) for s in (q, turned))
        assert torch.equal(one.kl_pq.plugin, other.kl_pq.plugin)
        assert torch.equal(one.rate_q.nan_to_num(), other.rate_q.nan_to_num())
    more = q | {"Gray": rng.integers(0, 2, 300)}
    with pytest.raises(DataError, match="Gray"):
        kl_table(p, more)
    some, every = kl_table(p, more, attributes=["x", "Bald"]), kl_table(p, q)
    assert some.names == ("x", "Bald")
    assert torch.equal(some.kl_pq.plugin, every.kl_pq.plugin[[2, 0]])
    assert kl_matrix({"p": p, "more": more}, attributes=["x"]).names == ("p", "more")
    with pytest.raises(GroupError, match="Gray"):
        kl_table(p, more, attributes=["Gray"])


def test_what_either_set_flags_is_flagged() -> None:
    p = annotated(torch.rand(30, 3), schema=AttributeSchema(SCHEMA.names))
    q = annotated(torch.rand(30, 3), schema=SCHEMA)
    for table in (kl_table(p, q), kl_table(q, p), kl_table(p, q, on="joint", cells=["Young", "Bald"])):
        assert table.noisy == {"Young": "checked by nobody"}
        assert "checked by nobody" in str(table)
    assert kl_table(p, q, on="joint", cells=["Smiling", "Bald"]).noisy == {}


def test_counts_over_other_cells_are_refused() -> None:
    p, q = random_set(60, 1), random_set(60, 2)
    fitted, product = fit_cells([p, q], 4), product_cells(["Smiling", "Bald"], SCHEMA)
    assert len(fitted) == len(product)
    a, b = count_attributes(p, cells=fitted), count_attributes(q, cells=product, stream=1)
    with pytest.raises(DataError, match="4 other cells"):
        kl_table(a, b, on="joint", cells=fitted)
    with pytest.raises(DataError, match="not shards"):
        a.merge(count_attributes(q, cells=product))
    with pytest.raises(GroupError, match="unknown attribute"):
        count_attributes(draws([0.5], 20, 1), cells=product)


def test_a_set_of_one_identity_tells_nothing_of_its_error() -> None:
    alone, many = draws([0.9, 0.5], 50, 0, "alone", ["a"] * 50), draws([0.5, 0.5], 300, 1)
    table = kl_table(alone, many)
    for divergence in (*(getattr(table, x) for x in ("kl_pq", "kl_qp", "js", "asymmetry")), table.mean["kl_pq"]):
        for x in (divergence.low, divergence.high, divergence.null, divergence.null_high):
            assert bool(x.isnan().all())
    assert "°" not in str(table).split("\n\n")[1]
    for text in (str(table), str(kl_matrix({"alone": alone, "many": many}))):
        assert "alone has one identity" in text
    assert "nan" not in str(attribute_rates(alone))


def test_replicates_that_drew_nobody_do_not_pull_towards_a_half() -> None:
    """Of three identities, e⁻³ = 5 % of the replicates are empty; all three are alike, so nothing varies."""
    table = kl_table(draws([1.0], 30, 0, "p", np.arange(30) // 10), draws([1.0], 40, 0, "q", np.arange(40) // 10))
    assert abs(float(table.js.value[0])) < 5e-3  # a tenth of the pairs at JS(1, ½) = 0.2 would move it by 0.02
    assert float(table.asymmetry.high[0] - table.asymmetry.low[0]) < 0.1


def test_a_tiny_alpha_stays_finite() -> None:
    table = kl_table(draws([0.0, 0.3], 100, 0), draws([0.2, 0.3], 100, 1), alpha=1e-6)
    for divergence in (table.kl_pq, table.kl_qp, table.js, table.asymmetry, table.total["kl_pq"]):
        assert all(bool(x.isfinite().all()) for x in divergence)


def test_undefined_attributes_are_left_out_and_counted() -> None:
    p, q = torch.rand(100, 3), torch.rand(80, 3)
    p[:30, 0] = torch.nan
    q[:, 2] = torch.nan
    table = kl_table(annotated(p), annotated(q))
    assert table.undefined_p.tolist() == [30, 0, 0]
    assert table.undefined_q.tolist() == [0, 0, 80]
    assert math.isnan(table.kl_pq.value[2])
    assert float(table.mean["kl_pq"].value) == pytest.approx(float(table.kl_pq.value[:2].mean()))
    assert [line.split("|")[1].strip() for line in str(table).splitlines()[4:7]][-1] == "Bald"


def test_table_says_what_it_is() -> None:
    table = kl_table(random_set(200, 1), annotated(torch.rand(100, 3) ** 2, name="synthetic"), alpha=0.25)
    text = str(table)
    for phrase in ("Q: synthetic", "α = 0.25", "Young *", "checked by nobody", "without identities", "7 identities"):
        assert phrase in text
    assert json.dumps(table.to_dict())
    assert table.to_dict()["attributes"]["Young"]["noisy"] == "checked by nobody"
    assert set(table.to_dict()["mean"]) >= {"kl_pq", "kl_qp_low", "asymmetry_high"}
    frame = table.to_frame()
    assert float(frame["kl_qp"][0]) == float(table.kl_qp.value[0])
    chosen = kl_table(random_set(200, 1), random_set(100, 2), attributes=["bald"])
    assert chosen.names == ("Bald",)


def test_sets_of_different_classifiers_are_not_compared_in_silence(tmp_path) -> None:
    made = {"natural": "one", "edited": "other", "labelled": ""}
    sets = [dataclasses.replace(draws([0.5, 0.2], 40, i, n), classifier=c) for i, (n, c) in enumerate(made.items())]
    said = "annotated by different classifiers"
    with pytest.warns(UserWarning, match=said):
        table = kl_table(*sets[:2])
    assert f"(natural, edited) were {said}" in str(table)
    with pytest.warns(UserWarning, match=said):
        assert f"(edited, natural) were {said}" in str(kl_matrix({s.name: s for s in sets}))
    path = tmp_path / "counts.safetensors"
    count_attributes(sets[0]).save(path)
    with pytest.warns(UserWarning, match=said):
        kl_table(AttributeCounts.load(path), count_attributes(sets[1], stream=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert said not in str(kl_table(sets[0], sets[2]))  # hard labels: who made them is not known
        assert said not in str(kl_table(sets[0], dataclasses.replace(sets[1], classifier="one")))
    with pytest.raises(DataError, match="another classifier"):
        count_attributes(sets[0][:20]).merge(count_attributes(sets[1][20:], first_row=20))


def test_the_table_says_what_counts_as_present() -> None:
    p, q = annotated(torch.rand(30, 3)), annotated(torch.rand(30, 3))
    assert "present where probability ≥ 0.5." in str(kl_table(p, q))
    assert "present where probability ≥ 0.3." in str(kl_table(p, q, threshold=0.3))
    assert "≥ a threshold for each attribute." in str(kl_table(p, q, threshold=torch.tensor([0.1, 0.2, 0.3])))
    a, b = count_attributes(p, threshold=0.3), count_attributes(q, threshold=0.4, stream=1)
    assert "rates of Q: present where probability ≥ 0.4." in str(kl_table(a, b))
    with pytest.raises(DataError, match="another rule"):
        a.merge(count_attributes(q, threshold=0.4, first_row=30))


def test_unnamed_sets_are_p_and_q() -> None:
    p, q = annotated(torch.rand(30, 3)), annotated(torch.rand(40, 3))
    text = str(kl_table(p, q))
    assert text.startswith("Nats")
    assert "P: 30 rows" in text
    assert "Q: 40 rows" in text
    assert str(kl_table(annotated(torch.rand(30, 3), name="real"), q)).startswith("P: real. Nats")


def test_a_corrected_value_below_zero_is_written_as_zero_and_is_no_more_than_chance() -> None:
    def text(value: float, signed: bool = False) -> str:
        low, high = (-0.9, 0.1) if signed else (0.0, 0.1)
        numbers = (value, low, high, 0.02, 0.01, 0.05)
        return divergence_text(Divergence(*map(torch.tensor, numbers)), signed)

    assert text(-0.4) == "0.0000 [0.0000, 0.1000] °"
    assert text(0.04) == "0.0400 [0.0000, 0.1000] °"
    assert text(0.06) == "0.0600 [0.0000, 0.1000]"
    assert text(-0.4, signed=True) == "-0.4000 [-0.9000, 0.1000]"
    assert text(-0.04, signed=True).endswith("°")


def test_matrix_holds_the_tables() -> None:
    sets = {"a": random_set(200, 1), "b": annotated(torch.rand(150, 3) ** 2), "c": random_set(90, 2, None)}
    counts = {name: count_attributes(s, stream=i) for i, (name, s) in enumerate(sets.items())}
    matrix = kl_matrix(sets)
    table = kl_table(counts["a"], counts["c"])
    assert float(matrix.kl.value[0, 2]) == pytest.approx(float(table.mean["kl_pq"].value))
    assert float(matrix.kl.value[2, 0]) == pytest.approx(float(table.mean["kl_qp"].value))
    assert float(matrix.kl.value[1, 1]) == 0
    assert torch.allclose(kl_matrix(counts, statistic="sum").kl.high, 3 * matrix.kl.high)
    assert len(matrix.to_frame()) == 6
    assert "P = a" in str(matrix)
    assert kl_matrix(sets, on="joint", cells=4).statistic == "joint"


# --- consistency ------------------------------------------------------------------------------------------------------


def test_consistency_by_brute_force() -> None:
    whole = random_set(200, 4, people=30)
    result = consistency(whole, n_min=3)
    labels, people = whole.labels().numpy(), whole.identities
    for k in range(3):
        majority, information = [], []
        for person in np.unique(people):
            own = labels[(people == person) & (labels[:, k] != 0), k] > 0
            if len(own) >= 3:
                p = own.mean()
                majority.append(max(p, 1 - p))
                information.append(1 - entropy([p, 1 - p], base=2))
        assert float(result.majority[k]) == pytest.approx(np.mean(majority))
        assert float(result.information[k]) == pytest.approx(np.mean(information))
        assert int(result.used[k]) == len(majority)
        half = 1.96 * np.std(majority, ddof=1) / math.sqrt(len(majority))
        assert float(result.majority_high[k] - result.majority[k]) == pytest.approx(half, rel=0.25)


def test_consistency_resamples_identities_in_parts(monkeypatch) -> None:
    whole = random_set(500, 3, 90)
    once = consistency(whole)
    monkeypatch.setattr("fairface_synth.attribute_consistency._AT_ONCE", 7)
    parts = consistency(whole)
    for x in ("majority_low", "information_high"):
        torch.testing.assert_close(getattr(once, x), getattr(parts, x))


def test_consistency_does_not_mind_the_order_or_the_batches() -> None:
    whole = random_set(3000, 5, people=200)
    order = np.random.default_rng(0).permutation(3000)
    mixed = annotated(whole.probabilities[torch.from_numpy(order)], whole.identities[order])
    parts = type("Parts", (Annotations,), {"batches": lambda self, rows=0: Annotations.batches(self, 57)})
    small = parts(SCHEMA, mixed.probabilities, identities=mixed.identities)
    for other in (mixed, small):
        assert torch.allclose(consistency(other).majority, consistency(whole).majority)


@pytest.mark.parametrize("images", [2, 3, 10])
def test_chance_is_what_independent_labels_give(images: int) -> None:
    identities = np.repeat(np.arange(3000), images)
    result = consistency(draws([0.5, 0.2, 0.02], len(identities), images, identities=identities))
    assert bool((result.majority_low <= result.majority_chance).all())
    assert bool((result.majority_chance <= result.majority_high + 1e-3).all())
    assert torch.allclose(result.information, result.information_chance, atol=0.01)
    if images == 2:
        assert float(result.majority_chance[0]) == pytest.approx(0.75, abs=0.01)


def test_consistent_identities_are_above_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.random((300, 3)) < 0.5, 4, axis=0)
    result = consistency(annotated(torch.from_numpy(labels), np.repeat(np.arange(300), 4)))
    assert result.majority.tolist() == [1, 1, 1]
    assert result.information.tolist() == [1, 1, 1]
    assert float(result.majority_chance.max()) < 0.75
    assert json.dumps(result.to_dict())
    assert "by chance" in str(result)


def test_no_identities_give_nan_with_a_reason() -> None:
    result = consistency(annotated(torch.rand(20, 3), name="Syn-GAN"))
    assert bool(result.majority.isnan().all())
    assert result.reason == "Syn-GAN has no identities."
    assert result.reason in str(result)
    single = consistency(annotated(torch.rand(20, 3), np.arange(20)))
    assert bool(single.majority.isnan().all())
    assert "No identity has 2" in single.reason


# --- figures, errors, devices -----------------------------------------------------------------------------------------


def test_heat_maps_show_every_attribute_and_pair() -> None:
    p, schema = torch.rand(300, 47), MAAD_FACE
    tables = [
        kl_table(annotated(p, name="real", schema=schema), annotated(p[:99] ** power, name=name, schema=schema))
        for name, power in (("one", 1), ("two", 3))
    ]
    figure = plotting.kl_heatmap(tables, title="47 attributes")
    left, right = figure.axes[:2]
    assert "P = real" in left.get_title()
    assert [t.get_text() for t in left.get_xticklabels()] == ["one", "two"]
    rows = [t.get_text() for t in left.get_yticklabels()]
    assert sorted(r.removesuffix(" *") for r in rows) == sorted(schema.names)
    assert sum(r.endswith(" *") for r in rows) == len(schema.noisy)
    top = schema.index(rows[0].removesuffix(" *"))
    shown = np.asarray(left.images[0].get_array())[0, 1], np.asarray(right.images[0].get_array())[0, 1]
    assert shown == pytest.approx((float(tables[1].kl_pq.value[top]), float(tables[1].kl_qp.value[top])))
    assert left.images[0].get_clim() == right.images[0].get_clim()
    matrix = plotting.kl_heatmap(kl_matrix({"a": random_set(50, 1), "b": random_set(50, 2)}))
    assert matrix.axes[0].get_ylabel() == ""
    with pytest.raises(DataError, match="no common attributes"):
        plotting.kl_heatmap([])
    assert plotting.kl_heatmap(kl_table(random_set(50, 1), random_set(50, 2))).axes


def test_errors_speak_up() -> None:
    whole, counts = random_set(20, 1), count_attributes(random_set(20, 1))
    bad = {
        "different attributes": lambda: kl_table(whole, draws([0.5], 20, 1)),
        "same weights": lambda: kl_table(counts, counts),
        "no histograms": lambda: kl_table(counts, count_attributes(whole, stream=1), on="probabilities"),
        "has no counts of the cells": lambda: kl_table(
            counts, count_attributes(whole, stream=1), on="joint", cells=product_cells(["Bald"], SCHEMA)
        ),
        "counted sets have their cells": lambda: kl_table(counts, whole, on="joint"),
        "unknown comparison": lambda: kl_table(whole, whole, on="label"),
        "smoothed": lambda: kl_table(whole, whole, alpha=0),
        "too few replicates": lambda: kl_table(whole, whole, replicates=1),
        "replicates do not fit": lambda: kl_table(counts, count_attributes(whole, stream=1, replicates=9)),
        "alpha > 0": lambda: kl_table(whole, whole, alpha="0.5"),
        "whole numbers": lambda: kl_table(whole, whole, replicates=10.0),
        "these are no cells": lambda: kl_table(whole, whole, on="joint", cells=None),
        "several sets": lambda: fit_cells(whole),
        "a list of sets": lambda: fit_cells([]),
        "no names": lambda: kl_matrix([whole, whole]),
        "a threshold is a probability": lambda: kl_table(whole, whole, threshold="0.5"),
        "a reliability is a number": lambda: kl_table(whole, whole, min_reliability="0.5"),
        "settings are whole numbers": lambda: kl_table(whole, whole, replicates="200"),
        "whole replicates": lambda: consistency(whole, replicates="200"),
        r"annotate\(images": lambda: kl_table(torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8)),
        "one bin": lambda: kl_table(whole, whole, on="probabilities", bins=1),
        "nothing to compare": lambda: kl_table(annotated(torch.full((4, 3), torch.nan)), whole),
        "joint cells name": lambda: kl_table(whole, whole, on="joint", attributes=["Bald"]),
        "too few rows": lambda: fit_cells([whole], 21),
        "no product": lambda: product_cells(["Bald", "bald"], SCHEMA),
        "unknown attribute": lambda: product_cells(["Beautiful"], SCHEMA),
        "no pairs": lambda: kl_matrix({"one": whole}),
        "cannot disagree": lambda: consistency(whole, n_min=1),
        "whole n_min": lambda: consistency(whole, n_min=2.5),
        "empty": lambda: count_attributes(whole[:0]),
        "not shards": lambda: counts.merge(count_attributes(whole, seed=1)),
        "attributes need names": lambda: AttributeCounts.empty(()),
        "out of range": lambda: AttributeCounts.empty(("x",), seed=-1),
    }
    for message, call in bad.items():
        with pytest.raises(FairFaceError, match=message):
            call()
    labels, keys = torch.ones(4, 3, dtype=torch.int8), torch.arange(4)
    updates = {
        "labels do not fit": lambda: counts.update(labels[:, :2], keys),
        "counting takes tensors": lambda: counts.update(labels.numpy(), keys),
        "keys do not fit": lambda: counts.update(labels, keys[:3]),
        "unit do not fit": lambda: counts.update(labels, keys, unit=keys[:3]),
        "-1, 0 or 1": lambda: counts.update(labels * 2, keys),
        "outside the keys": lambda: counts.update(labels, keys[:2], unit=keys),
        "not negative": lambda: counts.update(labels, keys - 1),
    }
    for message, call in updates.items():
        with pytest.raises((ShapeError, DataError), match=message):
            call()
    with pytest.raises(ShapeError, match="bins count probabilities"):
        AttributeCounts.empty(SCHEMA.names, bins=3).update(labels, keys)
    with pytest.raises(ShapeError, match="cells do not fit"):
        AttributeCounts.empty(SCHEMA.names, cells=3).update(labels, keys)
    with pytest.raises(DataError, match="in sequence"):
        AttributeCounts.empty(SCHEMA.names, identities=False).update(labels, keys.flip(0))
    with pytest.raises(ShapeError, match="rows do not fit"):
        Cells(("a", "b"), torch.rand(2, 2)).assign(labels, labels.float())
    assert issubclass(GroupError, FairFaceError)


@pytest.mark.parametrize("identities", [True, False])
def test_counting_stays_on_the_device(identities: bool) -> None:
    with FakeTensorMode():
        counts = AttributeCounts.empty(SCHEMA.names, bins=4, cells=5, identities=identities, device="cuda")
        labels = torch.zeros(6, 3, dtype=torch.int8, device="cuda")
        ids = torch.zeros(6, dtype=torch.int64, device="cuda")
        unit = ids if identities else None
        p = torch.rand(6, 3, device="cuda")
        counts = counts.update(labels, ids, unit=unit, probabilities=p, cells=ids)
        rates = counts.merge(counts).compute() if identities else counts.compute()
        cells = Cells(SCHEMA.names, torch.rand(2, 3, device="cuda")).assign(labels, p)
        product = Cells(SCHEMA.names, columns=(0, 2)).assign(labels, p)
        for tensor in (counts.positives, counts.bins, counts.cells, rates.rate, rates.low, cells, product):
            assert tensor.device.type == "cuda"
