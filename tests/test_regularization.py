from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fairface_synth import DataError, GroupError, ShapeError
from fairface_synth.regularization import (
    GroupDRO,
    consistency_loss,
    group_dro,
    group_gap_loss,
    score_alignment_loss,
    worst_group_loss,
)

BANDWIDTHS = (0.05, 0.1, 0.2, 0.4)

# The losses of three arguments, all of which share the same contract.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "gap": group_gap_loss,
    "gap, range": lambda *a, **k: group_gap_loss(*a, spread="range", **k),
    "mmd": score_alignment_loss,
    "mmd, mated": lambda *a, **k: score_alignment_loss(*a, pairs="mated", **k),
    "quantile": lambda *a, **k: score_alignment_loss(*a, kind="quantile", **k),
    "quantile, non-mated": lambda *a, **k: score_alignment_loss(*a, kind="quantile", pairs="non_mated", **k),
    "consistency": consistency_loss,
    "consistency, no groups": lambda e, i, g, **k: consistency_loss(e, i, **k),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _batch(n: int = 24, d: int = 5, people: int = 8, groups: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images of people, each of one group; numbers that are neither dense nor sorted."""
    rng = torch.Generator().manual_seed(seed)
    person = torch.randint(people, (n,), generator=rng)
    group = ((torch.arange(people) + seed) % (groups + 1) - 1)[person]
    embeddings = torch.randn(n, d, generator=rng, dtype=torch.float64) + 1.5 * torch.randn(
        people, d, generator=rng, dtype=torch.float64
    ).index_select(0, person)
    return embeddings, 1000 - 7 * person, group


def _scores(embeddings: Tensor, identity: Tensor, group: Tensor) -> dict[int, tuple[list[float], list[float]]]:
    """{group: (mated, non-mated)} by two loops."""
    found: dict[int, tuple[list[float], list[float]]] = {}
    for i, j in itertools.combinations(range(len(identity)), 2):
        g = int(group[i])
        if g >= 0 and g == int(group[j]):
            cosine = float(torch.cosine_similarity(embeddings[i], embeddings[j], dim=0))
            found.setdefault(g, ([], []))[int(identity[i] != identity[j])].append(cosine)
    return found


def _mmd2(x: list[float], y: list[float], bandwidths: tuple[float, ...] = BANDWIDTHS) -> float:
    a, b = np.array(x)[:, None], np.array(y)[:, None]

    def kernel(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.mean([rbf_kernel(p, q, gamma=1 / (2 * s**2)).mean() for s in bandwidths]))

    return kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)


def _over_pairs(scores: Any, distance: Callable[[list[float], list[float]], float], which: int) -> float:
    sets = [s[which] for s in scores.values() if s[which]]
    values = [distance(a, b) for a, b in itertools.combinations(sets, 2)]
    return float(np.mean(values)) if values else 0.0


# --- against loops, scipy and scikit-learn -------------------------------------------------------------------------

shapes = given(st.integers(0, 30), st.integers(1, 12), st.integers(1, 5), st.integers(0, 10_000))


@shapes
def test_group_gap_is_the_spread_of_mean_mated_similarity(n: int, people: int, groups: int, seed: int) -> None:
    batch = _batch(n, people=people, groups=groups, seed=seed)
    means = [np.mean(mated) for mated, _ in _scores(*batch).values() if mated]
    assert float(group_gap_loss(*batch)) == pytest.approx(np.var(means) if means else 0, abs=1e-12)
    spread = float(group_gap_loss(*batch, spread="range", num_groups=groups))
    assert spread == pytest.approx(np.ptp(means) if means else 0, abs=1e-12)


@shapes
def test_mmd_is_that_of_kernel_matrices(n: int, people: int, groups: int, seed: int) -> None:
    batch = _batch(n, people=people, groups=groups, seed=seed)
    scores = _scores(*batch)
    mated, others = (_over_pairs(scores, _mmd2, which) for which in (0, 1))
    assert float(score_alignment_loss(*batch, pairs="mated")) == pytest.approx(mated, abs=1e-8)
    assert float(score_alignment_loss(*batch, num_groups=groups)) == pytest.approx(mated + others, abs=1e-8)


@shapes
def test_quantile_is_scipys_wasserstein_distance(n: int, people: int, groups: int, seed: int) -> None:
    batch = _batch(n, people=people, groups=groups, seed=seed)
    scores = _scores(*batch)
    mated, others = (_over_pairs(scores, wasserstein_distance, which) for which in (0, 1))
    ours = score_alignment_loss(*batch, kind="quantile", pairs="non_mated")
    assert float(ours) == pytest.approx(others, abs=1e-12)
    ours = score_alignment_loss(*batch, kind="quantile", num_groups=groups)
    assert float(ours) == pytest.approx(mated + others, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.07, 1.0])
def test_one_kernel_over_the_whole_range_of_cosines(sigma: float) -> None:
    """Cosines from −1 to 1, where the period of the Fourier series is closest."""
    angle = torch.linspace(0, math.pi, 12, dtype=torch.float64)
    embeddings = torch.stack((angle.cos(), angle.sin()), dim=1)
    batch = embeddings, torch.arange(12), torch.arange(12) % 3
    expected = _over_pairs(_scores(*batch), lambda x, y: _mmd2(x, y, (sigma,)), 1)
    assert float(score_alignment_loss(*batch, bandwidths=[sigma])) == pytest.approx(expected, abs=1e-8)


@shapes
def test_consistency_is_the_cosine_to_the_others_centroid(n: int, people: int, groups: int, seed: int) -> None:
    embeddings, identity, group = _batch(n, people=people, groups=groups, seed=seed)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    rows: list[tuple[int, float]] = []
    for i in range(n):
        others = [j for j in range(n) if j != i and identity[j] == identity[i]]
        if others:
            rows.append((int(group[i]), 1 - float(torch.cosine_similarity(unit[i], unit[others].mean(0), dim=0))))
    expected = np.mean([loss for _, loss in rows]) if rows else 0
    assert float(consistency_loss(embeddings, identity)) == pytest.approx(expected, abs=1e-12)
    by_group = [np.mean([x for h, x in rows if h == g]) for g in sorted({g for g, _ in rows if g >= 0})]
    ours = float(consistency_loss(embeddings, identity, group, num_groups=groups))
    assert ours == pytest.approx(np.mean(by_group) if by_group else 0, abs=1e-12)


# --- what all of them keep -----------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("seed", range(2))
def test_gradients(loss: Callable[..., Tensor], seed: int) -> None:
    embeddings, identity, group = _batch(9, 3, 3, 3, seed)
    assert torch.autograd.gradcheck(lambda e: loss(e, identity, group), embeddings.requires_grad_())


@every_loss
@settings(max_examples=10)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_order_numbers_and_lengths_do_not_matter(loss: Callable[..., Tensor], seed: int, order: int) -> None:
    embeddings, identity, group = _batch(20, seed=seed)
    expected = loss(embeddings, identity, group)
    p = torch.randperm(20, generator=torch.Generator().manual_seed(order))
    lengths = torch.rand(20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(order)) + 0.1
    renamed = torch.where(group < 0, -1, torch.tensor([5, 0, 3])[group])
    for other in (
        loss(embeddings[p] * lengths, identity[p], group[p]),
        loss(embeddings, -3 * identity, renamed),
        loss(embeddings, identity, renamed, num_groups=9),  # six of nine are absent
    ):
        torch.testing.assert_close(other, expected, rtol=1e-9, atol=1e-12)


@every_loss
@pytest.mark.parametrize(
    ("identity", "group"),
    [
        ([], []),
        ([4], [1]),
        ([0, 1, 2, 3], [0, 0, 1, 1]),  # one image of everyone
        ([0, 0, 1, 1], [2, 2, 2, 2]),  # one group
        ([0, 0, 0, 0], [0, 0, 1, 1]),  # one person
        ([0, 0, 1, 1], [-1, -1, -1, -1]),  # all unsure
        ([0, 0, 1, 2], [0, 0, 1, 2]),  # mated pairs in one group alone
    ],
)
def test_what_is_missing_contributes_nothing(loss: Callable[..., Tensor], identity: list, group: list) -> None:
    embeddings = torch.ones(len(identity), 3) + torch.arange(len(identity)).unsqueeze(1) * torch.tensor([0.0, 1, 0])
    embeddings.requires_grad_()
    people, groups = (torch.tensor(x, dtype=torch.int64) for x in (identity, group))
    value = loss(embeddings, people, groups, num_groups=3)
    value.backward()
    assert torch.isfinite(value)
    assert bool(torch.isfinite(embeddings.grad).all())
    scores = _scores(embeddings.detach(), people, groups)
    comparable = any(sum(bool(s[which]) for s in scores.values()) > 1 for which in (0, 1))
    several = any(people.tolist().count(i) > 1 for i in people.tolist())
    if not comparable and not several:
        assert value.item() == 0
        assert float(embeddings.grad.abs().sum()) == 0


@pytest.mark.parametrize("name", [name for name in LOSSES if "consistency" not in name])
def test_one_group_has_nothing_to_differ_from(name: str) -> None:
    embeddings, identity, _ = _batch()
    embeddings.requires_grad_()
    value = LOSSES[name](embeddings, identity, torch.zeros_like(identity))
    value.backward()
    assert value.item() == 0
    assert float(embeddings.grad.abs().max()) == 0


@every_loss
def test_groups_made_alike_have_no_distance(loss: Callable[..., Tensor]) -> None:
    """The same embeddings in two groups; and identities whose images agree are consistent."""
    embeddings, identity, _ = _batch(12)
    people = torch.cat((identity, identity + 5000))
    value = loss(embeddings.repeat(2, 1), people, torch.arange(2).repeat_interleave(12))
    same = embeddings[identity.unique(return_inverse=True)[1]]
    zero = (
        value
        if loss not in (LOSSES["consistency"], LOSSES["consistency, no groups"])
        else loss(same, identity, torch.zeros_like(identity))
    )
    assert float(zero) == pytest.approx(0, abs=1e-9)


@every_loss
def test_training_with_it_lowers_it(loss: Callable[..., Tensor]) -> None:
    embeddings, identity, group = _batch(24, 8, seed=5)
    x = embeddings.clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    before = loss(embeddings, identity, group).item()
    for _ in range(25):
        optimizer.zero_grad()
        loss(x, identity, group).backward()
        optimizer.step()
    assert loss(x.detach(), identity, group).item() < 0.5 * before


@every_loss
def test_no_value_is_read_from_the_device(loss: Callable[..., Tensor]) -> None:
    with FakeTensorMode():
        embeddings = torch.randn(8, 4, device="cuda", requires_grad=True)
        identity = torch.zeros(8, dtype=torch.int64, device="cuda")
        for groups in (None, 3):
            assert loss(embeddings, identity, identity, num_groups=groups).device.type == "cuda"


@every_loss
def test_low_precision_and_autocast(loss: Callable[..., Tensor]) -> None:
    embeddings, identity, group = _batch()
    rounded = embeddings.bfloat16()
    expected = float(loss(rounded.double(), identity, group))
    for x, autocast in ((rounded, False), (rounded.float(), True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            value = loss(x, identity, group)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@every_loss
def test_bad_input_speaks_up(loss: Callable[..., Tensor]) -> None:
    embeddings, identity, group = _batch()
    bad: list[tuple[type[Exception], tuple[Any, ...], dict[str, Any]]] = [
        (ShapeError, (embeddings.tolist(), identity, group), {}),
        (ShapeError, (embeddings, identity.numpy(), group), {}),
        (ShapeError, (embeddings[0], identity, group), {}),
        (ShapeError, (embeddings, identity[:-1], group), {}),
        (ShapeError, (embeddings, identity.float(), group), {}),
        (DataError, (embeddings / 0, identity, group), {}),
        (DataError, (embeddings, identity, group), {"num_groups": 0}),
        (DataError, (embeddings, identity, group), {"num_groups": 2.5}),
    ]
    for error, args, kwargs in bad:
        with pytest.raises(error):
            loss(*args, **kwargs)


def test_groups_and_settings_out_of_range() -> None:
    embeddings, identity, _ = _batch()
    group = torch.arange(24) % 3
    for loss in (group_gap_loss, score_alignment_loss, consistency_loss):
        with pytest.raises(GroupError, match="out of range"):
            loss(embeddings, identity, group, num_groups=2)
        with pytest.raises(GroupError, match="out of range"):
            loss(embeddings, identity, group - 2)
        with pytest.raises(ShapeError):
            loss(embeddings, identity, group[:-1])
        with pytest.raises(ShapeError):
            loss(embeddings, identity, group.float())
    for kwargs in ({"kind": "energy"}, {"pairs": "all"}, {"bandwidths": []}, {"bandwidths": [0.1, 0.0]}):
        with pytest.raises(DataError):
            score_alignment_loss(embeddings, identity, group, **kwargs)
    for bandwidths in (0.1, [math.nan], [math.inf], torch.tensor([0.1, 0.2])):
        with pytest.raises(DataError, match="bandwidths"):
            score_alignment_loss(embeddings, identity, group, bandwidths=bandwidths)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="variance or range"):
        group_gap_loss(embeddings, identity, group, spread="std")


# --- group DRO ------------------------------------------------------------------------------------------------------


def _sagawa(
    losses: Tensor, group: Tensor, q: list[float], step: float, extra: list[float]
) -> tuple[float, list[float]]:
    """Algorithm 1, one batch: the multiplicative update for the groups at hand, then the weighted loss."""
    means = {g: float(losses[group == g].mean()) for g in range(len(q)) if bool((group == g).any())}
    q = [w * math.exp(step * (means[g] + extra[g])) if g in means else w for g, w in enumerate(q)]
    q = [w / sum(q) for w in q]
    return sum(q[g] * loss for g, loss in means.items()), q


@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0, 2), st.floats(0, 3))
def test_group_dro_is_the_exponentiated_gradient(seed: int, groups: int, step: float, adjustment: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 50, (groups,), generator=rng)
    state = group_dro(groups, adjustment=adjustment, group_counts=sizes)
    q, extra = [1 / groups] * groups, [adjustment / math.sqrt(n) for n in sizes.tolist()]
    for _ in range(5):
        n = int(torch.randint(0, 9, (), generator=rng))
        losses = torch.rand(n, generator=rng, dtype=torch.float64) * 3
        group = torch.randint(-1, groups, (n,), generator=rng)
        loss, state = worst_group_loss(losses, group, state, step_size=step)
        expected, q = _sagawa(losses, group, q, step, extra)
        assert float(loss) == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert state.weights.tolist() == pytest.approx(q, rel=1e-4)


def test_weights_go_to_the_worst_group_and_carry_no_gradient() -> None:
    losses = torch.tensor([0.1, 0.2, 2.0], dtype=torch.float64, requires_grad=True)
    group, state = torch.tensor([0, 0, 1]), group_dro(3)
    for _ in range(300):
        loss, state = worst_group_loss(losses.detach(), group, state, step_size=0.1)
    assert state.weights[1] > 0.99
    assert float(loss) == pytest.approx(2.0, abs=0.02)
    loss, new = worst_group_loss(losses, group, state)
    (gradient,) = torch.autograd.grad(loss, losses)
    share = new.weights.double()
    torch.testing.assert_close(gradient, torch.stack((share[0] / 2, share[0] / 2, share[1])))
    assert not new.log_weights.requires_grad


def test_huge_losses_do_not_overflow() -> None:
    state = group_dro(2)
    for _ in range(3):
        loss, state = worst_group_loss(torch.tensor([1e6, 1.0]), torch.tensor([0, 1]), state, step_size=1.0)
    assert torch.isfinite(loss)
    assert state.weights.tolist() == [1.0, 0.0]


def test_group_dro_gradcheck() -> None:
    losses = torch.rand(6, dtype=torch.float64, requires_grad=True)
    group, start = torch.tensor([0, 1, 1, -1, 3, 0]), group_dro(4)
    # The weights depend on the losses too, but carry no gradient: hold them.
    _, state = worst_group_loss(losses.detach(), group, start)
    assert torch.autograd.gradcheck(lambda x: worst_group_loss(x, group, state, step_size=0.0)[0], losses)


def test_a_batch_without_samples_changes_nothing() -> None:
    state = GroupDRO(torch.tensor([0.2, 0.8]).log(), torch.zeros(2))
    losses = torch.ones(2, requires_grad=True)
    for x, group in ((losses[:0], torch.empty(0, dtype=torch.int64)), (losses, torch.tensor([-1, -1]))):
        loss, new = worst_group_loss(x, group, state)
        loss.backward()
        assert loss.item() == 0
        torch.testing.assert_close(new.weights, state.weights)
    assert losses.grad.tolist() == [0, 0]


def test_group_dro_is_saved_and_does_not_wait(tmp_path) -> None:
    _, state = worst_group_loss(torch.tensor([1.0, 5.0]), torch.tensor([0, 1]), group_dro(2), step_size=0.5)
    state.save(tmp_path / "dro.safetensors")
    assert torch.equal(GroupDRO.load(tmp_path / "dro.safetensors").log_weights, state.log_weights)
    with FakeTensorMode():
        group = torch.zeros(4, dtype=torch.int64, device="cuda")
        state = group_dro(3, adjustment=1.0, group_counts=torch.ones(3, device="cuda"))
        loss, state = worst_group_loss(torch.rand(4, device="cuda"), group, state)
        assert loss.device.type == state.log_weights.device.type == "cuda"


def test_group_dro_refuses() -> None:
    state, losses, group = group_dro(2), torch.ones(3), torch.tensor([0, 1, 1])
    for error, call in (
        (ShapeError, lambda: worst_group_loss(losses.mean(), group, state)),
        (ShapeError, lambda: worst_group_loss(losses, group[:2], state)),
        (GroupError, lambda: worst_group_loss(losses, group + 1, state)),
        (DataError, lambda: worst_group_loss(losses / 0, group, state)),
        (DataError, lambda: worst_group_loss(losses, group, state, step_size=-1)),
        (DataError, lambda: worst_group_loss(losses, group, state, step_size=math.inf)),
        (ShapeError, lambda: worst_group_loss(losses.numpy(), group, state)),
        (ShapeError, lambda: worst_group_loss(losses, group.tolist(), state)),
        (DataError, lambda: worst_group_loss(losses, group, None)),
        (DataError, lambda: group_dro(0)),
        (DataError, lambda: group_dro(2.5)),
        (ShapeError, lambda: group_dro(2, adjustment=1, group_counts=[1, 2])),
        (ShapeError, lambda: group_dro(2, group_counts=torch.tensor([1, 2, 3]))),
        (DataError, lambda: group_dro(2, adjustment=-1)),
        (ShapeError, lambda: group_dro(2, adjustment=1)),
        (DataError, lambda: group_dro(2, adjustment=1, group_counts=torch.tensor([0, 3]))),
        (ShapeError, lambda: worst_group_loss(losses, group, state.to("meta"))),
    ):
        with pytest.raises(error):
            call()
