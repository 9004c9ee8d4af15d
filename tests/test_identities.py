from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fairface_synth import DataError, GroupError, Groups, ShapeError, plotting
from fairface_synth.identities import (
    ImpostorScores,
    Threshold,
    components,
    embed,
    impostor_scores,
    leakage_report,
    novelty,
    threshold_among,
    threshold_at_fmr,
    unique,
)

METHODS = ("greedy", "components")


def _unit(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(x, dim=1).to(dtype)


def _people(identities: int, faces: int, spread: float, d: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy faces of some people, shuffled, and whose they are."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.arange(identities).repeat_interleave(faces)
    x = _unit(identities, d, seed)[ids] + spread * torch.randn(len(ids), d, generator=rng, dtype=torch.float64)
    order = torch.randperm(len(ids), generator=rng)
    return nn.functional.normalize(x, dim=1)[order], ids[order]


def _walk(n: int, d: int, step: float, seed: int) -> Tensor:
    """Faces that each resemble the one before: long chains of matches."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(torch.cumsum(step * x, dim=0) + x[:1], dim=1)


def _far_from(x: Tensor, threshold: float) -> bool:
    """Whether no cosine lies within rounding of the threshold."""
    return bool(((x @ x.T - threshold).abs() > 1e-9).all())


def _naive_greedy(x: Tensor, threshold: float, known: Tensor | None = None) -> list[bool]:
    kept = [] if known is None else list(known)
    keep = []
    for row in x:
        keep.append(not any(float(row @ other) >= threshold for other in kept))
        kept += [row] if keep[-1] else []
    return keep


def _threshold(value: float, fmr: float) -> Threshold:
    return Threshold(value, fmr, fmr, fmr / 2, fmr * 2, 10**6, 10**5)


# ---------------------------------------------------------------------------------------- unique, components


@given(
    st.integers(0, 70),
    st.integers(1, 6),
    st.floats(-1, 1),
    st.integers(1, 80),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_unique_is_the_naive_greedy_loop(n: int, d: int, cut: float, block: int, chain: bool, seed: int) -> None:
    x = _walk(n, d, 0.3, seed) if chain else _unit(n, d, seed)
    assume(_far_from(x, cut))
    assert unique(x, cut, block=block).tolist() == _naive_greedy(x, cut)


@given(st.integers(1, 70), st.integers(2, 6), st.floats(-0.5, 1), st.integers(1, 80), st.integers(0, 10**6))
def test_known_identities_are_taken(n: int, d: int, cut: float, block: int, seed: int) -> None:
    x, known = _unit(n, d, seed), _unit(9, d, seed + 1)
    assume(_far_from(torch.cat((x, known)), cut))
    assert unique(x, cut, known=known, block=block).tolist() == _naive_greedy(x, cut, known)


@given(
    st.integers(0, 70),
    st.integers(1, 6),
    st.floats(-1, 1),
    st.integers(1, 80),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_components_are_scipy_s(n: int, d: int, cut: float, block: int, chain: bool, seed: int) -> None:
    x = _walk(n, d, 0.3, seed) if chain else _unit(n, d, seed)
    assume(_far_from(x, cut))
    labels = components(x, cut, block=block)
    expected = connected_components((x @ x.T >= cut).numpy(), directed=False)[1] if n else np.empty(0)
    first = np.unique(expected, return_index=True)[1]
    renumbered = np.argsort(np.argsort(first))[expected] if n else expected  # in order of first rows
    assert labels.tolist() == renumbered.tolist()
    keep = unique(x, cut, method="components", block=block)
    assert sorted(first) == keep.nonzero().squeeze(1).tolist()
    assert int(keep.sum()) <= int(unique(x, cut, block=block).sum())


def test_components_that_meet_a_known_identity_are_dropped_whole() -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 2.0], dtype=torch.float64)  # a chain of three, and one far away
    x = torch.stack((angles.cos(), angles.sin()), dim=1)
    known = torch.tensor([[math.cos(0.29), math.sin(0.29)]], dtype=torch.float64)
    cut = math.cos(0.12)
    assert unique(x, cut, method="components").tolist() == [True, False, False, True]
    assert unique(x, cut, method="components", known=known).tolist() == [False, False, False, True]
    assert unique(x, cut, known=known).tolist() == [True, False, False, True]


def test_one_long_chain_does_not_need_a_round_per_link() -> None:
    """Each face matches its two neighbours alone, the worst case for settling a block in rounds."""
    n = 600
    angle = torch.arange(n, dtype=torch.float64) * (2 * math.pi / (n + 1))
    x, cut = torch.stack((angle.cos(), angle.sin()), dim=1), math.cos(1.5 * 2 * math.pi / (n + 1))
    assert unique(x, cut).tolist() == [i % 2 == 0 for i in range(n)]
    assert unique(x, cut, block=64).tolist() == [i % 2 == 0 for i in range(n)]
    assert components(x, cut, block=64).unique().tolist() == [0]


@pytest.mark.parametrize("method", METHODS)
def test_finds_the_people_of_well_separated_faces(method: str) -> None:
    x, ids = _people(identities=40, faces=7, spread=0.04)
    keep = unique(x.float(), 0.75, method=method, block=50)  # type: ignore[arg-type]
    assert sorted(ids[keep].tolist()) == list(range(40))
    for person in range(40):  # the first face of each
        assert int(keep.nonzero()[ids[keep] == person]) == int((ids == person).nonzero()[0])


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_single_rows_and_nothing(method: Any) -> None:
    x = _unit(5, 64, dtype=torch.float32)
    assert unique(x.repeat(6, 1), 1 - 1e-5, method=method, block=4).tolist() == [True] * 5 + [False] * 25
    assert unique(x[:1].expand(300, -1), 0.9, method=method, block=64).sum() == 1
    assert unique(x[:1], 0.5, method=method).tolist() == [True]
    assert unique(x[:0], 0.5, method=method).tolist() == []
    assert unique(x, 0.9, method=method, known=x[:0]).all()
    assert not unique(x, 0.9, method=method, known=x).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_compared_in_float32(dtype: torch.dtype) -> None:
    x = _people(20, 3, 0.03, seed=3)[0].to(dtype)
    expected = unique(x.float() / x.float().norm(dim=1, keepdim=True), 0.7)
    assert unique(x, 0.7).equal(expected)
    assert novelty(x, x).similarity.dtype == torch.float32


@pytest.mark.parametrize("f", [unique, components])
def test_bad_input_speaks_up(f: Any) -> None:
    x = _unit(8, 4)
    with pytest.raises(DataError, match="not unit vectors"):
        f(2 * x, 0.5)
    with pytest.raises(DataError, match="not unit vectors"):
        f(torch.where(torch.arange(8)[:, None] == 3, torch.nan, x), 0.5)
    with pytest.raises(ShapeError, match="not embeddings"):
        f(x[0], 0.5)
    with pytest.raises(ShapeError, match="not embeddings"):
        f(torch.ones(3, 1, dtype=torch.int64), 0.5)
    for threshold in (1.01, -1.01, math.nan):
        with pytest.raises(DataError, match="out of range"):
            f(x, threshold)
    with pytest.raises(DataError, match="out of range"):
        f(x, 0.5, block=0)


def test_unique_refuses_unknown_methods_and_foreign_known() -> None:
    x = _unit(8, 4)
    with pytest.raises(DataError, match="unknown method"):
        unique(x, 0.5, method="union")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="go together"):
        unique(x, 0.5, known=_unit(3, 5))
    with pytest.raises(ShapeError, match="go together"):
        unique(x, 0.5, known=x.float())


# ---------------------------------------------------------------------------------------- novelty


@settings(max_examples=15)
@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 8), st.integers(1, 60), st.integers(0, 10**6))
def test_novelty_is_scikit_learn_s_brute_force(n: int, m: int, k: int, block: int, seed: int) -> None:
    k = min(k, m)
    x, reference = _unit(n, 6, seed), _unit(m, 6, seed + 1)
    found = novelty(x, reference, k=k, block=block)
    assert found.similarity.shape == found.indices.shape == (n, k)
    torch.testing.assert_close((x.unsqueeze(1) * reference[found.indices]).sum(2), found.similarity)
    nearest = novelty(x, reference, block=block)
    assert nearest.indices.equal(found.indices[:, 0])
    assert nearest.similarity.equal(found.similarity[:, 0])
    if n:
        index = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(reference.numpy())
        distance, indices = index.kneighbors(x.numpy())
        np.testing.assert_allclose(1 - found.similarity, distance, atol=1e-12)
        if m < 2 or _far_apart(x @ reference.T):
            assert found.indices.tolist() == indices.tolist()


@given(st.sampled_from([64, 128, 320]), st.integers(1, 6), st.sampled_from([64, 128, 512]), st.integers(0, 10**6))
def test_folded_search_finds_the_k_largest(m: int, k: int, block: int, seed: int) -> None:
    """Whole blocks are folded before they are searched; repeated references must come once each."""
    x, reference = _unit(11, 5, seed), _unit(m // 2, 5, seed + 1).repeat(2, 1)
    found = novelty(x, reference, k=k, block=block)
    torch.testing.assert_close(found.similarity, (x @ reference.T).topk(k).values)
    torch.testing.assert_close((x.unsqueeze(1) * reference[found.indices]).sum(2), found.similarity)
    assert all(len(set(row)) == k for row in found.indices.tolist())


def _far_apart(scores: Tensor) -> bool:
    return bool((scores.sort(1).values.diff(dim=1) > 1e-9).all())


def test_novelty_needs_a_reference() -> None:
    x = _unit(4, 8)
    for k in (0, 5):
        with pytest.raises(DataError, match="no such neighbours"):
            novelty(x, x, k=k)
    with pytest.raises(DataError, match="no such neighbours"):
        novelty(x, x[:0])
    with pytest.raises(DataError, match="reference: not unit"):
        novelty(x, 3 * x)
    with pytest.raises(ShapeError, match="go together"):
        novelty(x, _unit(4, 7))


class _LargestTensor(TorchDispatchMode):
    """Records the most elements that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_that_of_a_block_not_of_all_pairs(method: Any) -> None:
    x = _unit(12_000, 4, dtype=torch.float32)
    x = torch.cat((x[:1], x[:10_000], x[:1].expand(1_999, -1)))  # a crowd of duplicates: every pair of it matches
    with _LargestTensor() as seen:
        unique(x, 0.99999, method=method, block=512)
    assert seen.largest <= 16 * 512**2  # int64 pairs of a block; all pairs in float32 would be 576 MB


def test_memory_of_novelty() -> None:
    x = _unit(12_000, 4, dtype=torch.float32)
    with _LargestTensor() as seen:
        novelty(x[:3_000], x, block=512)
    assert seen.largest <= 4 * 512**2


# ---------------------------------------------------------------------------------------- impostors, thresholds


@given(st.integers(1, 30), st.integers(1, 6), st.integers(-1, 3), st.booleans(), st.integers(0, 10**6))
def test_all_impostor_pairs_are_listed_once(n: int, people: int, groups: int, use_ids: bool, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = _unit(n, 5, seed)
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
    x, ids = _people(60, 5, 0.2)
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
    centres = _unit(3, 32, 5)
    group = torch.arange(3).repeat(200)
    x = nn.functional.normalize(_unit(600, 32) + 0.8 * centres[group], dim=1)
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
    unlike = threshold_at_fmr(impostor_scores(_unit(250, 24, 4)), 0.01)  # hardly any dependence: the floor counts
    again = threshold_at_fmr(impostor_scores(_unit(250, 24, 4).repeat(3, 1), people), 0.01)
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
    x = _unit(6, 4)
    with pytest.raises(ShapeError, match="ids do not fit"):
        impostor_scores(x, torch.arange(5))
    with pytest.raises(ShapeError, match="groups do not fit"):
        impostor_scores(x, groups=torch.zeros(6))
    with pytest.raises(DataError, match="no two identities"):
        impostor_scores(x, n_pairs=0)
    with pytest.raises(DataError, match="not unit"):
        impostor_scores(x * 1.1)


# ---------------------------------------------------------------------------------------- leakage


def test_a_leak_shows_against_the_control_and_none_does_not() -> None:
    training, fresh, control = _unit(500, 48, 1), _unit(400, 48, 2), _unit(800, 48, 3)
    threshold = threshold_at_fmr(impostor_scores(training), 1e-3)
    copies = nn.functional.normalize(training[:100] + 0.05 * _unit(100, 48, 4), dim=1)
    leaky = torch.cat((fresh[:300], copies))
    clean_report = leakage_report(fresh, training, threshold, control=control)
    leaky_report = leakage_report(leaky, training, [threshold], control=control, pairs=7)
    chance = 1 - (1 - threshold.reached) ** 500
    assert float(clean_report.by_chance) == pytest.approx(chance, rel=1e-9)
    assert float(clean_report.shares) == pytest.approx(chance, abs=0.08)  # independent faces here
    _, low, high = (float(e) for e in clean_report.excess)  # type: ignore[union-attr]
    assert low < 0 < high
    difference, low, high = (float(e) for e in leaky_report.excess)  # type: ignore[union-attr]
    assert 0 < low < difference < high
    assert difference == pytest.approx(0.25 * (1 - chance), abs=0.08)
    assert leaky_report.nearest.indices[300:].tolist() == list(range(100))
    assert leaky_report.pairs.shape == (7, 2)
    assert bool((leaky_report.pairs[:, 0] == leaky_report.pairs[:, 1] + 300).all())
    assert "1 − (1 − FMR)^500" in str(leaky_report)
    assert "No control set" in str(leakage_report(fresh, training, threshold))


def test_leakage_by_group_counts_each_group() -> None:
    groups = Groups({"tone": ["light", "dark", "none"]})
    training, faces = _unit(50, 16, 1), _unit(90, 16, 2)
    ids = torch.arange(90) % 3 - 1  # −1, light, dark
    thresholds = [_threshold(0.6, 1e-3), _threshold(0.7, 1e-4)]
    report = leakage_report(faces, training, thresholds, group_ids=ids, groups=groups)
    best = (faces @ training.T).amax(1)
    assert report.names == ("all", "light", "dark", "none")
    assert report.totals.tolist() == [90, 30, 30, 0]
    for t, cut in enumerate((0.6, 0.7)):
        expected = [int((best >= cut).sum()), *(int((best[ids == g] >= cut).sum()) for g in range(3))]
        assert report.counts[:, t].tolist() == expected
    assert bool(report.shares[3].isnan().all())
    assert str(report).count("| none ") == 2


def test_leakage_refuses_what_it_cannot_report() -> None:
    x, groups = _unit(9, 8), Groups({"tone": ["light", "dark"]})
    with pytest.raises(DataError, match="known FMR"):
        leakage_report(x, x, [0.5])  # type: ignore[list-item]
    with pytest.raises(DataError, match="known FMR"):
        leakage_report(x, x, [])
    cut = _threshold(0.5, 1e-3)
    with pytest.raises(DataError, match="no faces"):
        leakage_report(x[:0], x, cut)
    with pytest.raises(DataError, match="no faces"):
        leakage_report(x, x, cut, control=x[:0])
    with pytest.raises(GroupError, match="go together"):
        leakage_report(x, x, cut, groups=groups)
    with pytest.raises(GroupError, match="unknown group ids"):
        leakage_report(x, x, cut, group_ids=torch.arange(9), groups=groups)
    with pytest.raises(ShapeError, match="one group id"):
        leakage_report(x, x, cut, group_ids=torch.zeros(8, dtype=torch.int64), groups=groups)


def test_pair_grid_draws_every_pair() -> None:
    images = torch.rand(7, 3, 8, 8) * 2 - 1
    figure = plotting.pair_grid(images, images.flip(0), torch.linspace(0, 1, 7), columns=3, title="closest")
    drawn = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in drawn] == [f"{i / 6:.3f}" for i in range(7)]
    assert drawn[0].images[0].get_array().shape == (8, 16, 3)
    with pytest.raises(DataError, match="two images each"):
        plotting.pair_grid(images, images[:3])
    with pytest.raises(DataError, match="one score"):
        plotting.pair_grid(images, images, torch.zeros(2))


def test_the_closest_pairs_of_a_report_in_one_call() -> None:
    reference, faces = _unit(30, 16, 1), _unit(20, 16, 2)
    faces[7] = reference[11]
    report = leakage_report(faces, reference, _threshold(0.9, 1e-3), pairs=4)
    images = torch.linspace(-1, 1, 20)[:, None, None, None].expand(-1, 3, 8, 8)
    originals = torch.linspace(-1, 1, 30)[:, None, None, None].expand(-1, 3, 16, 16)  # another resolution
    for files in (originals, list(originals)):
        figure = plotting.leakage_pairs(report, images, files, columns=2, title="closest")
        drawn = [ax for ax in figure.axes if ax.images]
        assert len(drawn) == 4
        for ax, (face, other) in zip(drawn, report.pairs.tolist(), strict=True):
            pixels = ax.images[0].get_array()
            assert pixels.shape == (8, 16, 3)
            np.testing.assert_array_equal(pixels[:, :8], round(255 * face / 19))
            np.testing.assert_array_equal(pixels[:, 8:], round(255 * other / 29))
            assert ax.get_title() == f"{float(report.nearest.similarity[face]):.3f}"
    assert report.pairs[0].tolist() == [7, 11]
    with pytest.raises(DataError, match="not the images of this report"):
        plotting.leakage_pairs(report, images[:9], originals)
    with pytest.raises(DataError, match="not the images of this report"):
        plotting.leakage_pairs(report, images, originals[:9])
    with pytest.raises(DataError, match="lists no pairs"):
        plotting.leakage_pairs(leakage_report(faces, reference, _threshold(0.9, 1e-3), pairs=0), images, originals)


# ---------------------------------------------------------------------------------------- embed


class _Net(nn.Module):
    """A linear embedder that counts the images it sees."""

    dim = 6

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(self.dim, 3 * 8 * 8, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return nn.functional.normalize(images.flatten(1) @ self.weight.T, dim=1)


def _faces(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_embed_takes_a_tensor_or_batches() -> None:
    net, images = _Net(), _faces(23)
    expected = net(images)
    torch.testing.assert_close(embed(net, images, batch_size=5, progress=False), expected)
    torch.testing.assert_close(embed(net, iter(images.split([1, 0, 20, 2])), batch_size=7, progress=False), expected)


def test_a_second_run_embeds_only_what_is_new(tmp_path: Path) -> None:
    net, images, cache = _Net(), _faces(30), tmp_path / "embeddings.safetensors"
    first = embed(net, images[:20], cache=cache, batch_size=8, progress=False)
    assert net.seen == 20
    net = _Net()
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    second = embed(net, images[shuffled], cache=cache, batch_size=7, progress=False)
    assert net.seen <= 10 + 4  # the new ones and a few that are checked
    torch.testing.assert_close(second, _Net()(images)[shuffled])
    torch.testing.assert_close(second[shuffled < 20], first[shuffled[shuffled < 20]])
    net = _Net()
    before = cache.stat().st_mtime_ns
    embed(net, images, cache=cache, progress=False)
    assert net.seen <= 4
    assert cache.stat().st_mtime_ns == before  # nothing new, nothing written
    assert [p.name for p in tmp_path.iterdir()] == [cache.name]


def test_repeated_images_are_embedded_once(tmp_path: Path) -> None:
    net, images = _Net(), _faces(3)
    found = embed(net, images.repeat(4, 1, 1, 1), cache=tmp_path / "c", progress=False)
    assert net.seen == 3
    torch.testing.assert_close(found, _Net()(images).repeat(4, 1))


def test_an_almost_equal_image_is_another_image(tmp_path: Path) -> None:
    images = _faces(4)
    embed(_Net(), images, cache=tmp_path / "c", progress=False)
    changed = images.clone()
    changed[2, 0, 0, 0] += 0.5
    found = embed(_Net(), changed, cache=tmp_path / "c", progress=False)
    torch.testing.assert_close(found, _Net()(changed))
    # The same bytes in another shape are not the same image either.
    wide = images.view(4, 3, 4, 16)
    torch.testing.assert_close(embed(_Net(), wide, cache=tmp_path / "c", progress=False), _Net()(wide))


def test_a_cache_never_serves_another_embedder(tmp_path: Path) -> None:
    images, cache = _faces(6), tmp_path / "c"
    embed(_Net(0), images, cache=cache, progress=False)
    stored = cache.read_bytes()
    with pytest.raises(DataError, match="another embedder"):
        embed(_Net(1), images, cache=cache, progress=False)
    # The same class and weights, but another forward pass: noticed by computing a few again.
    changed = _Net(0)
    changed.forward = lambda images: nn.functional.normalize(images.flatten(1).flip(1) @ changed.weight.T, dim=1)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="another embedder"):
        embed(changed, images, cache=cache, progress=False)
    assert cache.read_bytes() == stored


def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(DataError, match="cannot read"):
        embed(_Net(), _faces(2), cache=path, progress=False)
    assert path.read_text() == "dear diary"


def test_an_interrupted_run_keeps_what_it_did(tmp_path: Path) -> None:
    images = _faces(20)

    def interrupted() -> Any:
        yield images[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(_Net(), interrupted(), cache=tmp_path / "c", progress=False)
    net = _Net()
    embed(net, images, cache=tmp_path / "c", progress=False)
    assert net.seen <= 8 + 4


def test_embed_refuses_bad_images_and_embedders(tmp_path: Path) -> None:
    net, images = _Net(), _faces(4)
    for nothing in (images[:0], [], iter(())):
        with pytest.raises(DataError, match="no images"):
            embed(net, nothing, progress=False)
    with pytest.raises(ShapeError, match="no batch of images"):
        embed(net, images[0], progress=False)
    with pytest.raises(ShapeError, match="images for images, _ in loader"):
        embed(net, [(images, torch.zeros(4))], progress=False)  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"\[-1, 1\]"):
        embed(net, images * 127, progress=False)
    with pytest.raises(DataError, match="batch_size"):
        embed(net, images, batch_size=0, progress=False)
    net.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="not unit vectors"):
        embed(net, images, cache=tmp_path / "c", progress=False)
    assert not (tmp_path / "c").exists()
    net.dim = 5
    with pytest.raises(ShapeError, match="gave something else"):
        embed(net, images, progress=False)


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
