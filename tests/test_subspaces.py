from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from fairface_synth import DataError, Groups, ShapeError, Subspace, fit_subspace, lift, project

N, D, G = 3000, 8, 4
METHODS = ("lda", "normals", "pca", "identity")


def _data(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, G, (N,), generator=rng)
    a, b = (
        torch.randn(2, D, generator=rng, dtype=torch.float64),
        torch.randn(2, D, generator=rng, dtype=torch.float64),
    )
    mix = torch.randn(D, D, generator=rng, dtype=torch.float64)
    x = torch.randn(N, D, generator=rng, dtype=torch.float64) @ mix
    return x + a[ids // 2] + b[ids % 2] + 5, ids


def _labels(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"a": ids // 2, "b": ids % 2}


@given(st.sampled_from(METHODS), st.integers(0, 3), st.booleans())
def test_project_undoes_lift(method: str, seed: int, plus: bool) -> None:
    x, ids = _data(seed)
    w = x.view(N, 2, D // 2) if plus else x
    subspace = fit_subspace(w, _labels(ids), method)  # type: ignore[arg-type]
    c = torch.randn(5, 3, subspace.dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for residual in ("mean", "resample", w[:15].view(5, 3, *w.shape[1:])):
        lifted = lift(subspace, c, residual)
        assert lifted.shape == (5, 3, *w.shape[1:])
        torch.testing.assert_close(project(subspace, lifted), c, rtol=1e-7, atol=1e-7)


def test_keeping_its_own_residual_changes_nothing() -> None:
    x, ids = _data()
    for method in METHODS:
        subspace = fit_subspace(x, _labels(ids), method)  # type: ignore[arg-type]
        torch.testing.assert_close(lift(subspace, project(subspace, x), x), x)


def test_lda_spans_scikit_learn_s_discriminants() -> None:
    x, ids = _data()
    ours = project(fit_subspace(x, ids, "lda", shrinkage=0.0), x).numpy()
    theirs = LinearDiscriminantAnalysis(solver="eigen").fit(x.numpy(), ids.numpy()).transform(x.numpy())
    for i in range(2):  # the third is almost degenerate in an additive world
        assert abs(np.corrcoef(ours[:, i], theirs[:, i])[0, 1]) > 0.9999


def test_lda_coordinates_are_white_within_groups() -> None:
    x, ids = _data()
    c = project(fit_subspace(x, ids, "lda", shrinkage=0.0), x)
    within = sum(torch.cov(c[ids == g].T, correction=0) * int((ids == g).sum()) for g in range(G)) / N
    torch.testing.assert_close(within, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_pca_matches_scikit_learn() -> None:
    x, _ = _data()
    ours = fit_subspace(x, method="pca", dim=3, shrinkage=0.0)
    theirs = PCA(3).fit(x.numpy())
    for i in range(3):
        assert abs(float(ours.components[:, i] @ torch.from_numpy(theirs.components_[i]))) == pytest.approx(1, abs=1e-8)


def test_normals_match_logistic_regression() -> None:
    x, ids = _data()
    groups = Groups({"a": ["p", "q"], "b": ["r", "s"]})
    subspace = fit_subspace(x, _labels(ids), "normals", groups=groups, shrinkage=0.0, iterations=2000)
    assert subspace.names == ("a=p", "b=r")
    white = torch.linalg.solve_triangular(subspace.factor, (x - subspace.mean).T, upper=False).T
    for i, target in enumerate((1 - ids // 2, 1 - ids % 2)):
        # The same penalty on the same whitened latents: 1e-3 / 2 · ‖θ‖² per sample.
        fit = LogisticRegression(C=1 / (1e-3 * N), tol=1e-10, max_iter=10_000).fit(white.numpy(), target.numpy())
        oracle = torch.linalg.solve_triangular(subspace.factor.T, torch.from_numpy(fit.coef_.T), upper=True)[:, 0]
        assert float(subspace.components[:, i] @ oracle / oracle.norm()) > 1 - 1e-6


def test_an_edit_along_one_normal_leaves_the_others_alone() -> None:
    x, ids = _data()
    subspace = fit_subspace(x, _labels(ids), "normals")
    step = torch.tensor([2.0, 0.0], dtype=torch.float64)
    edited = lift(subspace, project(subspace, x) + step, x)
    moved = edited - x
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))
    # InterFaceGAN's condition: the move is orthogonal to the other attribute's normal.
    assert abs(float(moved[0] @ subspace.components[:, 1])) < 1e-9


def test_resampling_restores_the_distribution(rng) -> None:
    """Given the groups' own coordinates, lifted latents have the covariance of the data."""
    x, ids = _data()
    subspace = fit_subspace(x, ids, "lda", shrinkage=0.0)
    lifted = lift(subspace, project(subspace, x).repeat(20, 1), "resample", rng)
    expected = torch.cov(x.T)
    torch.testing.assert_close(torch.cov(lifted.T), expected, rtol=0, atol=0.04 * float(expected.diagonal().max()))
    flat = torch.cov(lift(subspace, project(subspace, x), "mean").T)
    assert float(flat.trace()) < 0.9 * float(expected.trace())


def test_everything_is_differentiable() -> None:
    x, ids = _data()
    subspace = fit_subspace(x, ids, "lda")
    c = torch.randn(4, subspace.dim, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(4, D, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: project(subspace, lift(subspace, c, "resample", noise=noise).tanh()), c)


def test_soft_labels_and_unsure() -> None:
    x, ids = _data()
    soft = (ids.unsqueeze(1) == torch.arange(G)).double()
    a, b = fit_subspace(x, ids, "lda"), fit_subspace(x, soft, "lda")
    torch.testing.assert_close(a.components.abs(), b.components.abs())
    unsure = ids.where(torch.arange(N) >= 500, -1)
    c = fit_subspace(x, unsure, "lda", shrinkage=0.0)
    d = fit_subspace(x[500:], ids[500:], "lda", shrinkage=0.0)
    torch.testing.assert_close(c.components.abs(), d.components.abs())


def test_lda_does_without_a_group_that_has_no_samples() -> None:
    x, ids = _data()
    keep = ids != 3
    subspace = fit_subspace(x[keep], _labels(ids[keep]), "lda")
    assert subspace.dim == 2
    assert project(subspace, x).isfinite().all()


def test_float32_stays_float32_and_round_trips(tmp_path) -> None:
    x, ids = _data()
    subspace = fit_subspace(x.float(), ids, "lda")
    assert project(subspace, x.float()).dtype == torch.float32
    subspace.save(tmp_path / "s")
    again = Subspace.load(tmp_path / "s")
    assert (again.method, again.names, again.shape) == (subspace.method, subspace.names, subspace.shape)
    assert torch.equal(again.components, subspace.components)


def test_a_direction_needs_samples_on_both_sides() -> None:
    x, ids = _data()
    for labels in (ids * 0, 2 * (ids // 2)):  # one class; a value (1) that nobody has
        with pytest.raises(DataError, match="no direction can be fitted"):
            fit_subspace(x, labels, "normals")


def test_mixed_precision_latents_are_brought_to_the_subspace() -> None:
    x, ids = _data()
    subspace = fit_subspace(x.float(), ids)
    c = project(subspace, x)
    assert c.dtype == torch.float32
    assert lift(subspace, c.double(), x).dtype == torch.float32
    assert fit_subspace(x.bfloat16(), ids).components.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, i: fit_subspace(x, i, "ica"), DataError, "unknown method"),
        (lambda x, i: fit_subspace(x, None, "lda"), DataError, "needs labels"),
        (lambda x, i: fit_subspace(x, i[:-1], "lda"), ShapeError, "do not fit"),
        (lambda x, i: fit_subspace(x, i * 0, "lda"), DataError, "two groups"),
        (lambda x, i: fit_subspace(x, i, "lda", dim=9), DataError, "dim out of range"),
        (lambda x, i: fit_subspace(x, i, "lda", shrinkage=2.0), DataError, "shrinkage"),
        (lambda x, i: fit_subspace(x, i, "lda", shrinkage="ledoit_wolf"), DataError, "shrinkage"),
        (lambda x, i: fit_subspace(torch.cat((x, x), 1), i, "lda", shrinkage=0.0), DataError, "singular"),
        (lambda x, i: fit_subspace(x[:0], i[:0]), DataError, "no latents"),
        (lambda x, i: fit_subspace(x, torch.randn(len(x), 2).double()), DataError, "negative"),
        (lambda x, i: fit_subspace(x.where(x < 9, float("nan")), i), DataError, "NaN"),
        (lambda x, i: fit_subspace(x[0], i), ShapeError, "not a batch"),
        (lambda x, i: project(fit_subspace(x, i), x[:, :3]), ShapeError, "do not belong"),
        (lambda x, i: lift(fit_subspace(x, i), x), ShapeError, "wrong coordinates"),
        (lambda x, i: lift(fit_subspace(x, i), x[:, :3], "kept"), DataError, "residual"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    x, ids = _data()
    with pytest.raises(error, match=message):
        call(x, ids)
