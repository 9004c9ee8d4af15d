from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from fake_embeddings import noisy_faces, unit_rows
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fairface_synth import DataError, ShapeError, components, novelty, unique

METHODS = ("greedy", "components")


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


@given(
    st.integers(0, 70),
    st.integers(1, 6),
    st.floats(-1, 1),
    st.integers(1, 80),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_unique_is_the_naive_greedy_loop(n: int, d: int, cut: float, block: int, chain: bool, seed: int) -> None:
    x = _walk(n, d, 0.3, seed) if chain else unit_rows(n, d, seed)
    assume(_far_from(x, cut))
    assert unique(x, cut, block=block).tolist() == _naive_greedy(x, cut)


@given(st.integers(1, 70), st.integers(2, 6), st.floats(-0.5, 1), st.integers(1, 80), st.integers(0, 10**6))
def test_known_identities_are_taken(n: int, d: int, cut: float, block: int, seed: int) -> None:
    x, known = unit_rows(n, d, seed), unit_rows(9, d, seed + 1)
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
    x = _walk(n, d, 0.3, seed) if chain else unit_rows(n, d, seed)
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
    x, ids = noisy_faces(identities=40, faces=7, spread=0.04)
    keep = unique(x.float(), 0.75, method=method, block=50)  # type: ignore[arg-type]
    assert sorted(ids[keep].tolist()) == list(range(40))
    for person in range(40):  # the first face of each
        assert int(keep.nonzero()[ids[keep] == person]) == int((ids == person).nonzero()[0])


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_single_rows_and_nothing(method: Any) -> None:
    x = unit_rows(5, 64, dtype=torch.float32)
    assert unique(x.repeat(6, 1), 1 - 1e-5, method=method, block=4).tolist() == [True] * 5 + [False] * 25
    assert unique(x[:1].expand(300, -1), 0.9, method=method, block=64).sum() == 1
    assert unique(x[:1], 0.5, method=method).tolist() == [True]
    assert unique(x[:0], 0.5, method=method).tolist() == []
    assert unique(x, 0.9, method=method, known=x[:0]).all()
    assert not unique(x, 0.9, method=method, known=x).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_are_compared_in_float32(dtype: torch.dtype) -> None:
    x = noisy_faces(20, 3, 0.03, seed=3)[0].to(dtype)
    expected = unique(x.float() / x.float().norm(dim=1, keepdim=True), 0.7)
    assert unique(x, 0.7).equal(expected)
    assert novelty(x, x).similarity.dtype == torch.float32


@pytest.mark.parametrize("f", [unique, components])
def test_bad_input_speaks_up(f: Any) -> None:
    x = unit_rows(8, 4)
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
    x = unit_rows(8, 4)
    with pytest.raises(DataError, match="unknown method"):
        unique(x, 0.5, method="union")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="go together"):
        unique(x, 0.5, known=unit_rows(3, 5))
    with pytest.raises(ShapeError, match="go together"):
        unique(x, 0.5, known=x.float())


@settings(max_examples=15)
@given(st.integers(0, 40), st.integers(1, 50), st.integers(1, 8), st.integers(1, 60), st.integers(0, 10**6))
def test_novelty_is_scikit_learn_s_brute_force(n: int, m: int, k: int, block: int, seed: int) -> None:
    k = min(k, m)
    x, reference = unit_rows(n, 6, seed), unit_rows(m, 6, seed + 1)
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
    x, reference = unit_rows(11, 5, seed), unit_rows(m // 2, 5, seed + 1).repeat(2, 1)
    found = novelty(x, reference, k=k, block=block)
    torch.testing.assert_close(found.similarity, (x @ reference.T).topk(k).values)
    torch.testing.assert_close((x.unsqueeze(1) * reference[found.indices]).sum(2), found.similarity)
    assert all(len(set(row)) == k for row in found.indices.tolist())


def _far_apart(scores: Tensor) -> bool:
    return bool((scores.sort(1).values.diff(dim=1) > 1e-9).all())


def test_novelty_needs_a_reference() -> None:
    x = unit_rows(4, 8)
    for k in (0, 5):
        with pytest.raises(DataError, match="no such neighbours"):
            novelty(x, x, k=k)
    with pytest.raises(DataError, match="no such neighbours"):
        novelty(x, x[:0])
    with pytest.raises(DataError, match="reference: not unit"):
        novelty(x, 3 * x)
    with pytest.raises(ShapeError, match="go together"):
        novelty(x, unit_rows(4, 7))


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
    x = unit_rows(12_000, 4, dtype=torch.float32)
    x = torch.cat((x[:1], x[:10_000], x[:1].expand(1_999, -1)))  # a crowd of duplicates: every pair of it matches
    with _LargestTensor() as seen:
        unique(x, 0.99999, method=method, block=512)
    assert seen.largest <= 16 * 512**2  # int64 pairs of a block; all pairs in float32 would be 576 MB


def test_memory_of_novelty() -> None:
    x = unit_rows(12_000, 4, dtype=torch.float32)
    with _LargestTensor() as seen:
        novelty(x[:3_000], x, block=512)
    assert seen.largest <= 4 * 512**2
