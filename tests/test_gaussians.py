from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf
from sklearn.mixture import GaussianMixture

from fairface_synth import (
    DataError,
    GroupError,
    GroupGaussians,
    GroupMoments,
    Groups,
    ShapeError,
    compose,
    fit_gaussians,
    log_prob,
    normals,
    sample_gaussians,
)

G, D, N = 4, 9, 2500
ESTIMATORS = {"full": EmpiricalCovariance, "ledoit_wolf": LedoitWolf, "oas": OAS}
GROUPS = Groups({"a": ["x", "y"], "b": ["u", "v"]})


def _data(seed: int = 0, dtype: torch.dtype = torch.float64, offset: float = 20.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated groups far from the origin, where careless sums lose their digits; some ids unsure."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, G, (N,), generator=rng)
    mix = torch.randn(G, D, D, generator=rng, dtype=torch.float64)
    x = torch.einsum("nij,nj->ni", mix[ids], torch.randn(N, D, generator=rng, dtype=torch.float64))
    return (x + 2.0 * ids.unsqueeze(1) + offset).to(dtype), ids


@pytest.mark.parametrize("covariance", list(ESTIMATORS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fits_match_scikit_learn(covariance: str, dtype: torch.dtype) -> None:
    x, ids = _data(dtype=dtype)
    model = fit_gaussians(x, ids, covariance=covariance)  # type: ignore[arg-type]
    assert model.component_means.dtype == dtype
    for g in range(G):
        oracle = ESTIMATORS[covariance]().fit(x[ids == g].double().numpy())
        scale = np.abs(oracle.covariance_).max()
        np.testing.assert_allclose(model.means[g], oracle.location_, rtol=1e-5)
        np.testing.assert_allclose(model.covariances[g], oracle.covariance_, rtol=1e-5, atol=1e-5 * scale)
        if covariance != "full":
            assert float(model.shrinkage[g, 0]) == pytest.approx(oracle.shrinkage_, rel=1e-4)


def test_diagonal_and_tied() -> None:
    x, ids = _data()
    diagonal = fit_gaussians(x, ids, covariance="diagonal")
    tied = fit_gaussians(x, ids, covariance="tied")
    pooled = np.zeros((D, D))
    for g in range(G):
        rows = x[ids == g].numpy()
        np.testing.assert_allclose(diagonal.covariances[g], np.diag(rows.var(0)), rtol=1e-9, atol=1e-9)
        pooled += np.cov(rows.T, bias=True) * len(rows)
    pooled /= int((ids >= 0).sum())
    for g in range(G):
        np.testing.assert_allclose(tied.covariances[g], pooled, rtol=1e-9)


def test_soft_probabilities_generalise_hard_ids() -> None:
    x, ids = _data()
    one_hot = (ids.unsqueeze(1) == torch.arange(G)).double()
    for covariance in ("full", "ledoit_wolf", "oas", "diagonal", "tied"):
        hard = fit_gaussians(x, ids, covariance=covariance)  # type: ignore[arg-type]
        soft = fit_gaussians(x, one_hot, covariance=covariance)  # type: ignore[arg-type]
        torch.testing.assert_close(hard.covariances, soft.covariances)
        torch.testing.assert_close(hard.means, soft.means)


def test_weights_count_like_repeated_samples() -> None:
    x, ids = _data()
    repeats = torch.randint(1, 4, (N,), generator=torch.Generator().manual_seed(1))
    weighted = fit_gaussians(x, ids, repeats.double())
    repeated = fit_gaussians(x.repeat_interleave(repeats, 0), ids.repeat_interleave(repeats))
    torch.testing.assert_close(weighted.means, repeated.means)
    torch.testing.assert_close(weighted.covariances, repeated.covariances)


def test_soft_weights_match_numpy() -> None:
    x, _ = _data()
    p = torch.rand(N, G, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(1)
    model = fit_gaussians(x, p)
    for g in range(G):
        expected = np.cov(x.numpy().T, aweights=p[:, g].numpy(), bias=True)
        np.testing.assert_allclose(model.covariances[g], expected, rtol=1e-7)


@given(st.integers(1, N - 1), st.sampled_from(["full", "ledoit_wolf", "oas", "tied", "diagonal"]))
def test_moments_merge_exactly(cut: int, covariance: str) -> None:
    x, ids = _data()
    diagonal = covariance == "diagonal"
    here = GroupMoments.empty(G, torch.zeros(D), diagonal=diagonal).update(x[:cut], ids[:cut])
    there = GroupMoments.empty(G, x.mean(0), diagonal=diagonal).update(x[cut:], ids[cut:])
    whole = fit_gaussians(x, ids, covariance=covariance)  # type: ignore[arg-type]
    for merged in (here.merge(there), there.merge(here)):
        model = merged.compute(covariance, dtype=torch.float64)  # type: ignore[arg-type]
        torch.testing.assert_close(model.means, whole.means)
        torch.testing.assert_close(model.covariances, whole.covariances, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(model.shrinkage, whole.shrinkage, rtol=1e-6, atol=1e-9)


def test_chunks_do_not_change_the_fit() -> None:
    x, ids = _data()
    whole, chunked = fit_gaussians(x, ids), fit_gaussians(x, ids, chunk_size=77)
    torch.testing.assert_close(whole.covariances, chunked.covariances)


def test_wide_latents_use_every_block_of_the_gram_matrix() -> None:
    x = torch.randn(700, 301, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    ids = torch.arange(700) % 2
    model = fit_gaussians(x, ids)
    np.testing.assert_allclose(model.covariances[1], np.cov(x[1::2].numpy().T, bias=True), atol=1e-9)


def test_leading_dimensions() -> None:
    x, ids = _data()
    folded = fit_gaussians(x.view(50, 50, D), ids.view(50, 50))
    torch.testing.assert_close(folded.covariances, fit_gaussians(x, ids).covariances)


# --- density and sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied", "ledoit_wolf"])
def test_log_prob_matches_scipy(covariance: str) -> None:
    x, ids = _data()
    model = fit_gaussians(x, ids, covariance=covariance)  # type: ignore[arg-type]
    ours = log_prob(model, x[:40].view(8, 5, D))
    assert ours.shape == (8, 5, G)
    for g in range(G):
        oracle = multivariate_normal(model.means[g].numpy(), model.covariances[g].numpy()).logpdf(x[:40].numpy())
        np.testing.assert_allclose(ours[..., g].flatten(), oracle, rtol=1e-8)


def test_log_prob_in_float32_far_from_the_origin() -> None:
    x, ids = _data(dtype=torch.float32, offset=500.0)
    model = fit_gaussians(x, ids)
    exact = log_prob(model.to(dtype=torch.float64), x[:100].double())
    torch.testing.assert_close(log_prob(model, x[:100]).double(), exact, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
@pytest.mark.parametrize("components", [1, 2])
def test_samples_have_the_model_s_moments(covariance: str, components: int, rng) -> None:
    x, ids = _data()
    model = fit_gaussians(x, ids, covariance=covariance, components=components)  # type: ignore[arg-type]
    n = 40_000
    s = sample_gaussians(model, torch.arange(G).repeat_interleave(n), rng).view(G, n, D)
    for g in range(G):
        scale = float(model.covariances[g].diagonal().max())
        torch.testing.assert_close(s[g].mean(0), model.means[g], rtol=0, atol=5 * (scale / n) ** 0.5)
        torch.testing.assert_close(torch.cov(s[g].T), model.covariances[g], rtol=0, atol=0.06 * scale)


def test_sampling_is_reproducible_from_rng_and_from_noise() -> None:
    x, ids = _data()
    model = fit_gaussians(x, ids)
    want = torch.tensor([[0, 3], [1, 1]])
    draws = [sample_gaussians(model, want, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert draws[0].shape == (2, 2, D)
    assert torch.equal(*draws)
    noise = normals(0, torch.arange(4), D).view(2, 2, D)
    from_noise = sample_gaussians(model, want, noise=noise)
    torch.testing.assert_close(from_noise[1, 0], sample_gaussians(model, want[1, 0], noise=noise[1, 0]))


def test_mixture_noise_picks_components_by_weight() -> None:
    x, ids = _data()
    model = fit_gaussians(x, ids, components=2)
    noise = normals(0, torch.arange(20_000), D + 1)
    s = sample_gaussians(model, torch.zeros(20_000, dtype=torch.int64), noise=noise)
    torch.testing.assert_close(s.mean(0), model.means[0], rtol=0, atol=0.15)


def test_mixture_matches_scikit_learn_from_the_same_start() -> None:
    rng = torch.Generator().manual_seed(3)
    centres = torch.tensor([[-6.0, 0.0], [6.0, 1.0]], dtype=torch.float64)
    which = (torch.rand(3000, generator=rng) < 0.3).long()
    x = centres[which] + torch.randn(3000, 2, generator=rng, dtype=torch.float64)
    ids = torch.zeros(3000, dtype=torch.int64)
    model = fit_gaussians(x, ids, components=2, tolerance=1e-12, iterations=500)
    start = centres.numpy()
    oracle = GaussianMixture(2, means_init=start, tol=1e-12, reg_covar=0.0, max_iter=500, random_state=0).fit(x.numpy())
    order = model.component_means[0, :, 0].argsort()
    oracle_order = oracle.means_[:, 0].argsort()
    np.testing.assert_allclose(model.component_means[0][order], oracle.means_[oracle_order], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.weights[0][order], oracle.weights_[oracle_order], rtol=1e-5)
    np.testing.assert_allclose(log_prob(model, x).mean(), oracle.score(x.numpy()), rtol=1e-7)


# --- composition --------------------------------------------------------------------------------------------------


def _additive(counts: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    a, b = (
        torch.randn(2, D, generator=rng, dtype=torch.float64),
        torch.randn(2, D, generator=rng, dtype=torch.float64),
    )
    means = 3 * (a[:, None] + b[None]).flatten(0, 1)
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    mix = torch.randn(D, D, generator=rng, dtype=torch.float64)
    x = means[ids] + torch.randn(len(ids), D, generator=rng, dtype=torch.float64) @ mix
    return x, ids, means


def test_composition_recovers_an_additive_world() -> None:
    x, ids, means = _additive([4000, 4000, 4000, 0])
    model = fit_gaussians(x, ids, names=GROUPS, missing="skip")
    assert model.absent == (3,)
    composed = compose(model)
    assert composed.composed == (3,)
    assert composed.absent == ()
    spread = float(model.covariances[0].diagonal().mean()) ** 0.5
    assert float((composed.means[3] - means[3]).norm()) < 0.2 * spread * D**0.5
    torch.testing.assert_close(composed.means[:3], model.means[:3])
    torch.testing.assert_close(composed.covariances[3], model.covariances[0], rtol=0.2, atol=0.2 * spread**2)


def test_composing_a_seen_group_ignores_its_samples() -> None:
    x, ids, _ = _additive([500, 500, 500, 500])
    shifted = torch.where((ids == 3).unsqueeze(1), x + 100, x)
    a = compose(fit_gaussians(x, ids, names=GROUPS), ids=[3])
    b = compose(fit_gaussians(shifted, ids, names=GROUPS), ids=[3])
    torch.testing.assert_close(a.means[3], b.means[3])


def test_composition_needs_every_value_somewhere() -> None:
    x, ids, _ = _additive([500, 0, 500, 0])
    with pytest.raises(GroupError, match="no seen group has b = v"):
        compose(fit_gaussians(x, ids, names=GROUPS, missing="skip"))
    with pytest.raises(GroupError, match="groups' attributes"):
        compose(fit_gaussians(x, ids, num_groups=4, missing="skip"))


def test_absent_groups_cannot_be_sampled_in_silence() -> None:
    x, ids, _ = _additive([500, 500, 500, 0])
    model = fit_gaussians(x, ids, names=GROUPS, missing="skip")
    assert sample_gaussians(model, torch.tensor([0])).isfinite().all()
    with pytest.raises(GroupError, match="y-v"):
        sample_gaussians(model, torch.tensor([0, 3]))


# --- numbers that used to come out wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True])
def test_distant_groups_keep_their_covariance_in_float32(soft: bool) -> None:
    """Products about one common shift would lose everything but the distance between the groups."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.arange(4000) % 2
    x = torch.randn(4000, 5, generator=rng) + 1000.0 * (2 * ids - 1).unsqueeze(1)
    model = fit_gaussians(x, torch.nn.functional.one_hot(ids).float() if soft else ids, covariance="ledoit_wolf")
    for g in range(2):
        oracle = LedoitWolf().fit(x[ids == g].double().numpy())
        np.testing.assert_allclose(model.covariances[g], oracle.covariance_, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_latents_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(8192, 8, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
    ids = torch.arange(8192) % 2
    model = fit_gaussians(x, ids)
    assert model.factors.dtype == torch.float32
    np.testing.assert_allclose(
        model.covariances[1], np.cov(x[1::2].double().numpy().T, bias=True), rtol=1e-3, atol=0.05
    )
    assert log_prob(model, x[:3]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_covariances_do_not_pass_by_rounding_luck(dtype: torch.dtype) -> None:
    for seed in range(20):
        y = torch.randn(300, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)
        y[:, 4] = y[:, 0] + y[:, 1]
        with pytest.raises(DataError, match="singular"):
            fit_gaussians(y, torch.zeros(300, dtype=torch.int64))


def test_ill_conditioned_covariances_are_not_called_singular() -> None:
    """A direction with a ten-thousandth of its variance left is small, not absent."""
    y = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    y[:, 63] = y[:, :63].sum(1) / 63**0.5 + 0.01 * y[:, 63]
    model = fit_gaussians(y, torch.zeros(3000, dtype=torch.int64))
    assert log_prob(model, y[:5]).isfinite().all()


def test_unsure_is_no_group_to_sample() -> None:
    x, ids = _data()
    model = fit_gaussians(x, ids)
    for bad in (-1, G):
        with pytest.raises(GroupError):
            sample_gaussians(model, torch.tensor([0, bad]))


def test_negative_probabilities_are_logits() -> None:
    x, _ = _data()
    with pytest.raises(DataError, match="softmax"):
        fit_gaussians(x, torch.randn(N, G, dtype=torch.float64))


def test_latents_with_gradients_are_only_read() -> None:
    x, ids = _data()
    before = x.clone()
    assert not fit_gaussians(x.requires_grad_(), ids).factors.requires_grad
    assert torch.equal(x, before)


def test_compose_takes_names_and_refuses_others() -> None:
    x, ids, _ = _additive([500, 500, 500, 500])
    model = fit_gaussians(x, ids, names=GROUPS)
    assert compose(model, ids=["y-v"]).composed == (3,)
    for bad in ([-1], [4], ["z"]):
        with pytest.raises(GroupError):
            compose(model, ids=bad)


def test_a_collapsing_component_is_named_by_its_group() -> None:
    x, ids, _ = _additive([30, 30, 30, 30])
    with pytest.raises(DataError, match=r"x-u|x-v|y-u|y-v"):
        fit_gaussians(x, ids, names=GROUPS, components=4)


# --- bad input ----------------------------------------------------------------------------------------------------


def test_an_empty_group_is_named() -> None:
    x, ids, _ = _additive([500, 500, 500, 0])
    with pytest.raises(DataError, match=r"y-v: 0[\s\S]*compose"):
        fit_gaussians(x, ids, names=GROUPS)


def test_too_few_samples_are_named() -> None:
    x, ids, _ = _additive([500, 500, 500, D])
    with pytest.raises(DataError, match=rf"at least {D + 1}[\s\S]*y-v: {D}"):
        fit_gaussians(x, ids, names=GROUPS)
    assert fit_gaussians(x, ids, covariance="ledoit_wolf").covariances.isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_latents(bad: float) -> None:
    x, ids = _data()
    x[17, 3] = bad
    ids[17] = 0
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_gaussians(x, ids)


def test_a_singular_covariance_is_named() -> None:
    x, ids = _data()
    x = torch.cat((x, x[:, :1] * 2), dim=1)
    with pytest.raises(DataError, match="singular"):
        fit_gaussians(x, ids)
    with pytest.raises(DataError, match="singular"):
        fit_gaussians(torch.cat((x, torch.ones(N, 1, dtype=x.dtype)), 1), ids, covariance="diagonal")
    assert fit_gaussians(x, ids, covariance="oas").covariances.isfinite().all()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda x, i: (x[:, None].expand(-1, 2, -1), i), ShapeError),
        (lambda x, i: (x[:-1], i), ShapeError),
        (lambda x, i: (x.long(), i), ShapeError),
        (lambda x, i: (x, i.where(i < 3, -2)), GroupError),
        (lambda x, i: (x[:0], i[:0]), DataError),
    ],
)
def test_shapes_and_ids_that_do_not_fit(change, error: type[Exception]) -> None:
    x, ids = _data()
    with pytest.raises(error):
        fit_gaussians(*change(x, ids))


def test_other_bad_arguments() -> None:
    x, ids = _data()
    with pytest.raises(GroupError, match="out of range"):
        fit_gaussians(x, ids, num_groups=2)
    with pytest.raises(DataError, match="unknown covariance"):
        fit_gaussians(x, ids, covariance="spherical")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="negative"):
        fit_gaussians(x, ids, -torch.ones(N))
    with pytest.raises(DataError, match="components"):
        fit_gaussians(x, ids, components=0)
    with pytest.raises(ShapeError, match="width"):
        log_prob(fit_gaussians(x, ids), x[:, :3])
    with pytest.raises(ShapeError, match="noise"):
        sample_gaussians(fit_gaussians(x, ids), ids[ids >= 0][:5], noise=torch.zeros(5, D - 1))


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
def test_models_survive_a_round_trip(covariance: str, tmp_path) -> None:
    x, ids, _ = _additive([500, 400, 300, 0])
    model = fit_gaussians(x, ids, names=GROUPS, covariance=covariance, missing="skip")  # type: ignore[arg-type]
    model.save(tmp_path / "g")
    again = GroupGaussians.load(tmp_path / "g")
    assert (again.groups, again.absent, again.covariance) == (GROUPS, (3,), covariance)
    torch.testing.assert_close(log_prob(again, x[:5])[:, :3], log_prob(model, x[:5])[:, :3])
    assert "GroupGaussians(" in repr(again)
