from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fairface_synth.errors import DataError, ShapeError
from fairface_synth.strategies import (
    Evaluation,
    Proposal,
    Strategy,
    branching_walk,
    cem,
    cvt_centroids,
    genetic,
    map_elites,
    optimisers,
    qd,
    snes,
    walk,
)
from fairface_synth.subspaces import Subspace, lift, project

Evaluate = Callable[[Proposal], Evaluation]
G, P, D = 3, 24, 6
BOX: dict[str, Any] = {"low": (-3.0, -3.0), "high": (3.0, 3.0)}

STRATEGIES: dict[str, Strategy] = {
    "walk": branching_walk(population=P, max_queue=200),
    "walk, uniform, several lineages": branching_walk("w+", scale=0.8, population=P, lineages=4, max_queue=200),
    "walk, all flags": branching_walk(
        population=P, lineages=3, crossover=0.5, identity_gate=True, pull=0.1, max_queue=200
    ),
    "genetic": genetic(P),
    "genetic, gaussian": genetic(P, mutation="gaussian"),
    "genetic, truncation, sbx, uniform": genetic(P, selection="truncation", crossover="sbx", mutation="uniform"),
    "genetic, spherical, rate": genetic(P, crossover="spherical", rate=0.5, scale=torch.tensor(0.4)),
    "genetic, mutation only, plus": genetic(P, crossover=None, elites=P),
    "snes": snes(P),
    "cem": cem(P),
    "map_elites": map_elites(P, cells=(4, 4), **BOX),
    "map_elites, successes": map_elites(P, cells=(4, 4), only_successes=True, **BOX),
    "map_elites, centroids": map_elites(P, centroids=torch.rand(9, 2) * 6 - 3, **BOX),
}
contract = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
shapes = pytest.mark.parametrize("shape", [(D,), (2, D // 2)], ids=str)


def sphere(targets: Tensor, radius: float = 1.4) -> Evaluate:
    """Success is a ball around each group's target that a few draws of the prior in 100 hit."""

    def evaluate(proposal: Proposal) -> Evaluation:
        x = proposal.latents.flatten(2)
        fitness = -(x - targets.flatten(1).unsqueeze(1)).square().sum(2)
        return evaluated(proposal, fitness, fitness > -(radius**2), x[..., :2])

    return evaluate


def ridge(targets: Tensor) -> Evaluate:
    """Up along the direction of the target, but off it fitness falls; success is a distance along the ridge."""

    def evaluate(proposal: Proposal) -> Evaluation:
        x = proposal.latents.flatten(2)
        direction = torch.nn.functional.normalize(targets.flatten(1), dim=1).unsqueeze(2)
        along = (x @ direction).squeeze(2)
        off = (x.square().sum(2) - along.square()).clamp_min(0)
        return evaluated(proposal, along - 0.2 * off.sqrt(), along > 1.8, x[..., :2])

    return evaluate


def evaluated(proposal: Proposal, fitness: Tensor, success: Tensor, measures: Tensor) -> Evaluation:
    yes = torch.ones_like(success)
    return Evaluation(fitness.masked_fill(~proposal.valid, -math.inf), success, yes, yes, measures)


def everyone(proposal: Proposal) -> Evaluation:
    return evaluated(proposal, torch.zeros_like(proposal.latents.flatten(2)[..., 0]), proposal.valid, proposal.latents)


def first(shape: tuple[int, ...], rows: int = P, groups: int = G, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(groups, rows, *shape, generator=rng, dtype=dtype)


def goals(shape: tuple[int, ...]) -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return 0.6 * torch.randn(G, *shape, generator=rng, dtype=torch.float64)


def run(strategy: Strategy, evaluate: Evaluate, x0: Tensor, steps: int, seed: int = 0, start: Any = 0) -> list[Any]:
    """[(proposal, evaluation, state after)] for each generation."""
    rng = torch.Generator().manual_seed(seed)
    state = strategy.init(x0, start)
    history = []
    for _ in range(steps):
        proposal, state = strategy.ask(state, rng)
        evaluation = evaluate(proposal)
        state = strategy.tell(state, proposal, evaluation, rng)
        history.append((proposal, evaluation, state))
    return history


# --- the contract, for every strategy -----------------------------------------------------------------------------


@contract
@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_contract(strategy: Strategy, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x0, start = first(shape, P + 3, dtype=dtype), torch.tensor([0, 100, 7])
    evaluate = sphere(goals(shape).to(dtype))
    history = run(strategy, evaluate, x0, 12, start=start)

    proposal = history[0][0]
    torch.testing.assert_close(proposal.latents, x0[:, :P], rtol=0, atol=0)
    assert proposal.valid.all()
    assert (proposal.id == start.unsqueeze(1) + torch.arange(P)).all()
    assert (proposal.root == proposal.id).all()
    assert (proposal.parent == -1).all()
    assert (proposal.depth == 0).all()

    before = strategy.init(x0, start)
    for proposal, _, state in history:
        assert proposal.latents.shape == (G, P, *shape)
        assert proposal.latents.dtype == dtype
        assert proposal.latents.isfinite().all()
        assert proposal.valid.dtype == torch.bool
        for name in ("valid", "id", "parent", "root", "depth"):
            assert getattr(proposal, name).shape == (G, P)
        assert type(state) is type(before)
        for old, new in zip(before, state, strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
            assert new.shape[0] == G
    check_lineage(history)


def check_lineage(history: list[Any]) -> None:
    """Ids never repeat; a child's root is its parent's and it is one deeper."""
    for g in range(G):
        known: dict[int, tuple[int, int]] = {}
        for proposal, _, state in history:
            new = {}
            fields = (proposal.id, proposal.parent, proposal.root, proposal.depth)
            for ok, id, parent, root, depth in zip(
                proposal.valid[g].tolist(), *(x[g].tolist() for x in fields), strict=True
            ):
                if not ok:
                    assert id == -1
                    continue
                assert id not in known
                assert id not in new
                assert (root, depth) == ((id, 0) if parent == -1 else (known[parent][0], known[parent][1] + 1))
                new[id] = (root, depth)
            known |= new
            assert max(known) < int(state.next_id[g])
        assert len(known) > P  # children came


@contract
@pytest.mark.parametrize("landscape", [sphere, ridge])
@shapes
def test_improves_every_group(strategy: Strategy, landscape: Any, shape: tuple[int, ...]) -> None:
    # The walk needs a root, so its pool is large. It knows no fitness: what rises is the share of successes.
    walk = "walk" in strategy.name
    history = run(strategy, landscape(goals(shape)), first(shape, 600 if walk else P), 60)
    draws = torch.Generator().manual_seed(3)
    natural = Proposal(torch.randn(G, 20_000, *shape, generator=draws, dtype=torch.float64), *[torch.tensor(True)] * 5)
    rare = landscape(goals(shape))(natural).success.double().mean(1)
    assert (rare < 0.08).all()
    depth = torch.cat([p.depth.where(p.valid, 0) for p, _, _ in history[-40:]], dim=1)
    success = torch.cat([e.success for _, e, _ in history[-40:]], dim=1)
    share = (success & (depth > 0)).sum(1) / (depth > 0).sum(1)
    assert (share > 2 * rare).all()
    if not walk:
        begin, end = history[0][1].fitness, torch.cat([e.fitness for _, e, _ in history[1:]], dim=1)
        assert (end.amax(1) > begin.amax(1)).all()


@contract
def test_same_rng_same_run(strategy: Strategy) -> None:
    x0, evaluate = first((D,), 100), sphere(goals((D,)))
    one, same, other = (run(strategy, evaluate, x0, 10, seed)[-1] for seed in (0, 0, 1))
    for a, b in zip(one[2], same[2], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(one[2].next_id, other[2].next_id) or not torch.equal(one[0].latents, other[0].latents)


@contract
def test_groups_do_not_touch_each_other(strategy: Strategy) -> None:
    targets = goals((D,))
    moved = targets.clone()
    moved[1] = -2 * moved[1]
    one, other = (run(strategy, sphere(t), first((D,), 100), 15) for t in (targets, moved))
    for (a, _, _), (b, _, _) in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x[[0, 2]], y[[0, 2]])
    assert any(not torch.equal(a[0].latents[1], b[0].latents[1]) for a, b in zip(one, other, strict=True))


@contract
@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_bears_groups_in_which_nothing_succeeds(strategy: Strategy, value: float) -> None:
    works = sphere(goals((D,)))

    def evaluate(proposal: Proposal) -> Evaluation:
        e = works(proposal)
        dead = torch.tensor([False, True, False]).unsqueeze(1)
        return e._replace(fitness=e.fitness.masked_fill(dead, value), success=e.success & ~dead)

    history = run(strategy, evaluate, first((D,), 100), 10)
    for proposal, _, state in history:
        assert proposal.latents.isfinite().all()
        assert all(x.isfinite().all() for name, x in state._asdict().items() if name != "fitness")
    check_valid = history[-1][0].valid[1]
    assert not check_valid.any() if "walk" in strategy.name else check_valid.all()


@contract
def test_stays_on_its_device_and_never_waits_for_it(strategy: Strategy) -> None:
    strategy = branching_walk(population=P, lineages=2, crossover=0.5) if "flags" in strategy.name else strategy
    with FakeTensorMode(allow_non_fake_inputs=True):
        x0 = torch.randn(G, P, D, device="cuda")
        state = strategy.init(x0, 5)
        for _ in range(2):
            proposal, state = strategy.ask(state, None)
            yes = torch.ones(G, P, dtype=torch.bool, device="cuda")
            fitness, measures = torch.randn(G, P, device="cuda"), torch.randn(G, P, 2, device="cuda")
            evaluation = Evaluation(fitness, yes, yes, yes, measures)
            state = strategy.tell(state, proposal, evaluation)
            assert all(x.device.type == "cuda" for x in (*proposal, *state))


@contract
def test_single_groups_can_be_merged(strategy: Strategy) -> None:
    """What a driver does to begin anew in one group: torch.where along the groups, and the others go on unchanged."""
    x0, evaluate = first((D,)), sphere(goals((D,)))
    state = run(strategy, evaluate, x0, 6)[-1][2]
    fresh = strategy.init(-x0, state.next_id)
    again = torch.tensor([False, True, False])
    merged = type(state)(
        *(torch.where(again.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(state, fresh, strict=True))
    )
    (one, _), (two, _) = (strategy.ask(s, torch.Generator().manual_seed(5)) for s in (state, merged))
    assert torch.equal(one.latents[[0, 2]], two.latents[[0, 2]])
    assert torch.equal(two.latents[1], -x0[1])
    assert (two.id[1] >= state.next_id[1]).all()


@contract
def test_bad_input_is_refused(strategy: Strategy) -> None:
    with pytest.raises(ShapeError, match="first population"):
        strategy.init(first((D,), P - 1), 0)
    with pytest.raises(ShapeError, match="first population"):
        strategy.init(first((D,))[0], 0)
    with pytest.raises(ShapeError, match="start"):
        strategy.init(first((D,)), torch.zeros(G + 1, dtype=torch.int64))
    with pytest.raises(DataError, match="NaN"):
        strategy.init(first((D,)) * math.nan, 0)
    proposal, state = strategy.ask(strategy.init(first((D,)), 0))
    e = sphere(goals((D,)))(proposal)
    with pytest.raises(ShapeError, match="fitness"):
        strategy.tell(state, proposal, e._replace(fitness=e.fitness[0]))
    with pytest.raises(ShapeError, match="success"):
        strategy.tell(state, proposal, e._replace(success=e.fitness))


@pytest.mark.parametrize(
    "make",
    [
        lambda: branching_walk("w"),  # type: ignore[arg-type]
        lambda: branching_walk(children=0),
        lambda: branching_walk(max_queue=10),
        lambda: branching_walk(pull=1.0),
        lambda: branching_walk(scale=-1.0),
        lambda: genetic(1),
        lambda: genetic(crossover="two-point"),  # type: ignore[arg-type]
        lambda: genetic(selection="best"),  # type: ignore[arg-type]
        lambda: genetic(elites=65),
        lambda: genetic(rate=0.0),
        lambda: genetic(scale=1.5),
        lambda: genetic(scale=torch.tensor([0.2, 0.0])),
        lambda: genetic(mutation="cauchy"),  # type: ignore[arg-type]
        lambda: branching_walk(max_pops=0),
        lambda: branching_walk(max_no_face=-1),
        lambda: snes(1),
        lambda: snes(step_size=0.0),
        lambda: cem(elite_share=0.0),
        lambda: cem(smoothing=1.0),
        lambda: map_elites(cells=(3,), **BOX),
        lambda: map_elites(low=(1.0,), high=(0.0,), cells=(3,)),
        lambda: map_elites(centroids=torch.zeros(4, 3), **BOX),
        lambda: cvt_centroids(0, (0.0,), (1.0,)),
        lambda: cvt_centroids(5, (0.0,), (1.0,), samples=4),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises((DataError, ShapeError), match="expected"):
        make()


TENSOR = torch.tensor([0.1, 0.2])
VARIED: dict[str, tuple[Callable[..., Strategy], dict[str, Any]]] = {
    "walk": (
        branching_walk,
        {
            "scale": 0.4,
            "children": 2,
            "max_pops": 7,
            "max_no_face": 3,
            "lineages": 2,
            "population": 8,
            "max_queue": 99,
            "spread": TENSOR,
            "crossover": 0.1,
            "identity_gate": True,
            "pull": 0.1,
            "centre": 0.5,
        },
    ),
    "genetic": (
        genetic,
        {
            "population": 8,
            "selection": "truncation",
            "tournament_size": 2,
            "truncation_share": 0.5,
            "crossover": None,
            "sbx_index": 3.0,
            "mutation": "gaussian",
            "scale": TENSOR,
            "rate": 0.5,
            "elites": 0,
        },
    ),
    "snes": (snes, {"population": 8, "step_size": 0.5, "mean_rate": 0.5, "scale_rate": 0.1}),
    "cem": (cem, {"population": 8, "elite_share": 0.5, "smoothing": 0.5, "min_scale": 0.1}),
    "map_elites": (
        lambda **changed: map_elites(**(BOX | {"cells": (5, 5)} | changed)),
        {
            "population": 8,
            "low": (-2.0, -3.0),
            "high": (2.0, 3.0),
            "cells": (3, 4),
            "centroids": torch.rand(4, 2),
            "iso": 0.3,
            "line": 0.1,
            "only_successes": True,
        },
    ),
}


@pytest.mark.parametrize("name", VARIED)
def test_every_setting_shows_in_the_settings(name: str) -> None:
    make, changes = VARIED[name]
    plain = make().settings
    assert plain == make().settings
    told = {key: make(**{key: value}).settings for key, value in changes.items()}
    assert plain not in told.values()
    assert len(set(told.values())) == len(told)


def test_equal_settings_are_written_equally() -> None:
    assert branching_walk().settings == branching_walk(scale=0.5, max_pops=10**9, centre=0).settings
    in_w_plus = branching_walk("w+", scale=0.3, max_pops=5000, max_no_face=20)
    assert branching_walk("w+").settings == in_w_plus.settings
    assert map_elites(cells=[4, 4], **BOX).settings == map_elites(cells=(4, 4), low=[-3, -3], high=[3, 3]).settings
    assert genetic(scale=TENSOR).settings == genetic(scale=TENSOR.double().float()).settings
    assert genetic(scale=TENSOR).settings != genetic(scale=TENSOR.flip(0)).settings
    assert genetic(scale=TENSOR).settings != genetic(scale=TENSOR.unsqueeze(0)).settings


def test_strategies_say_what_they_are_for() -> None:
    assert (branching_walk("z").space, branching_walk("w+").space, genetic().space) == ("z", "w+", "z")
    anywhere = (
        genetic(mutation="gaussian"),
        genetic(mutation="uniform"),
        snes(),
        cem(),
        map_elites(cells=(4, 4), **BOX),
    )
    assert all(strategy.space is None for strategy in anywhere)
    assert branching_walk(identity_gate=True).needs_identities
    assert not branching_walk().needs_identities


# --- branching walk against the published loop --------------------------------------------------------------------

WALK_D = 4


def noise(x: Tensor, index: int) -> Tensor:
    """The index-th step of an individual: a hash of it, so that order and batching cannot matter."""
    phase = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    return torch.sin(1e4 * (x * phase).sum(-1, keepdim=True) + 37.7 * (index + 1) * phase)


def hashed_steps(parents: Tensor, count: int, mutation: str, width: Any, rng: Any) -> Tensor:
    return width * torch.stack([noise(parents, i) for i in range(count)], dim=2)


class World(NamedTuple):
    """Who succeeds, shows a face, and is new: functions of the latent alone."""

    reach: float = 4.0
    faceless: float = 0.05

    def success(self, x: Tensor) -> Tensor:
        return (x[..., 0] > 0) & (x.norm(dim=-1) < self.reach)

    def found(self, x: Tensor) -> Tensor:
        return torch.sin(1e3 * x[..., 1]) > 2 * self.faceless - 1

    def __call__(self, proposal: Proposal) -> Evaluation:
        x = proposal.latents
        yes = torch.ones_like(proposal.valid)
        return Evaluation(x[..., 0], self.success(x), self.found(x), yes, x[..., :0])


def published(
    pool: Tensor,
    world: World,
    *,
    scale: float = 0.5,
    children: int = 3,
    max_pops: int = 10**9,
    max_no_face: int = 10**9,
) -> list[tuple[Tensor, int]]:
    """methods §2.2, one individual at a time: what is evaluated, with its depth, seed scans included.

    The root's second evaluation, which the published loop makes when it pops it, is left out of the list.
    """
    visited: list[tuple[Tensor, int]] = []
    for root in pool:
        visited.append((root, 0))
        if not (world.success(root) and world.found(root)):
            continue
        queue = deque([(root, 0)] + [(root + scale * noise(root, i), 1) for i in range(children)])
        count = count_no_face = 0
        while queue:
            x, depth = queue.popleft()
            if depth:
                visited.append((x, depth))
            if not world.found(x):
                count_no_face += 1
                if count_no_face > max_no_face:
                    queue.clear()
            elif world.success(x) and count < max_pops:
                for i in range(children):
                    child = x + scale * noise(x, i if depth else children + i)
                    if (child - root).norm() > (x - root).norm():
                        queue.append((child, depth + 1))
            count += 1
    return visited


def walked(strategy: Strategy, pool: Tensor, world: World, most: int) -> tuple[list[tuple[Tensor, int]], list[Any]]:
    rng = torch.Generator().manual_seed(0)
    state, visited, history = strategy.init(pool.unsqueeze(0), 0), [], []
    for _ in range(most):
        proposal, state = strategy.ask(state, rng)
        if not proposal.valid.any():
            return visited, history
        evaluation = world(proposal)
        state = strategy.tell(state, proposal, evaluation, rng)
        history.append((proposal, evaluation, state))
        ok = proposal.valid[0]
        visited += list(zip(proposal.latents[0, ok], proposal.depth[0, ok].tolist(), strict=True))
    raise AssertionError(f"not exhausted after {most} generations")


def same(a: list[tuple[Tensor, int]], b: list[tuple[Tensor, int]]) -> bool:
    return [d for _, d in a] == [d for _, d in b] and torch.equal(
        torch.stack([x for x, _ in a]), torch.stack([x for x, _ in b])
    )


def in_order(visited: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
    return sorted(visited, key=lambda entry: tuple(entry[0].tolist()))


@pytest.mark.parametrize(
    ("world", "rules"),
    [
        (World(), {}),
        (World(), {"children": 2}),
        (World(reach=50.0), {"max_pops": 25}),
        (World(faceless=0.2), {"max_no_face": 4}),
        (World(), {"scale": 1.5, "children": 4}),
    ],
    ids=["dies out", "two children", "max_pops", "max_no_face", "long steps"],
)
def test_walk_of_one_visits_what_the_published_loop_visits(
    monkeypatch: pytest.MonkeyPatch, world: World, rules: dict[str, Any]
) -> None:
    monkeypatch.setattr(walk, "steps", hashed_steps)
    pool = first((WALK_D,), 20, 1)[0]
    expected = published(pool, world, **rules)
    assert sum(depth > 1 for _, depth in expected) > 40
    visited, history = walked(branching_walk(population=1, max_queue=600, **rules), pool, world, 20_000)
    assert same(visited, expected)
    assert int(history[-1][2].dropped) == 0


@pytest.mark.parametrize("population", [2, 7, 12])
@pytest.mark.parametrize("lineages", [1, 3])
def test_batched_walk_visits_the_same_individuals(
    monkeypatch: pytest.MonkeyPatch, population: int, lineages: int
) -> None:
    monkeypatch.setattr(walk, "steps", hashed_steps)
    pool, world = first((WALK_D,), 20, 1)[0], World()
    for rules in ({"max_no_face": 10**6}, {"max_no_face": 10**6, "max_pops": 15}):
        strategy = branching_walk(population=population, lineages=lineages, max_queue=600, **rules)
        visited, _ = walked(strategy, pool, world, 5_000)
        assert same(in_order(visited), in_order(published(pool, world, **rules)))


def test_batched_walk_overshoots_the_end_of_a_lineage_by_less_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "steps", hashed_steps)
    pool, world = first((WALK_D,), 20, 1)[0], World(faceless=0.2)
    expected = published(pool, world, max_no_face=4)
    visited, _ = walked(branching_walk(population=5, max_queue=600, max_no_face=4), pool, world, 5_000)
    ours, theirs = ({tuple(x.tolist()) for x, _ in v} for v in (visited, expected))
    roots = sum(bool(world.success(x) and world.found(x)) for x in pool)
    assert theirs < ours
    assert len(ours - theirs) <= 4 * roots


def test_walk_keeps_its_rules() -> None:
    world, rules = World(reach=9.0, faceless=0.1), {"max_no_face": 3, "max_pops": 40}
    strategy = branching_walk(population=8, lineages=2, max_queue=20, **rules)
    _, history = walked(strategy, first((WALK_D,), 60, 1)[0], world, 5_000)
    seen: dict[int, tuple[Tensor, bool]] = {}
    roots: dict[int, Tensor] = {}
    children: dict[int, int] = {}
    for proposal, evaluation, _ in history:
        alive = set()
        for i in proposal.valid[0].nonzero().flatten().tolist():
            id, parent, root = (int(x[0, i]) for x in (proposal.id, proposal.parent, proposal.root))
            x = proposal.latents[0, i]
            seen[id] = (x, bool((evaluation.success & evaluation.found)[0, i]))
            if parent < 0:
                roots[id] = x
                continue
            alive.add(root)
            assert seen[parent][1], "only survivors have children"
            assert (x - roots[root]).norm() > (seen[parent][0] - roots[root]).norm()
            children[parent] = children.get(parent, 0) + 1
        assert len(alive) <= 2
    assert all(n <= (6 if parent in roots else 3) for parent, n in children.items())
    by_root: dict[int, int] = {}
    for proposal, evaluation, _ in history:
        lost = proposal.valid & ~evaluation.found & (proposal.depth > 0)
        for root in proposal.root[lost].tolist():
            by_root[root] = by_root.get(root, 0) + 1
    assert max(by_root.values()) > 3
    assert max(by_root.values()) <= 3 + 8
    dropped = [int(state.dropped) for *_, state in history]
    assert dropped == sorted(dropped)
    assert dropped[-1] > 0
    assert max(int(state.size) for *_, state in history) == 20


def test_documented_capacity_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    class Everyone(World):
        def success(self, x: Tensor) -> Tensor:
            return torch.ones_like(x[..., 0], dtype=torch.bool)

        found = success

    children, max_pops, pool = 3, 7, first((WALK_D,), 1, 1)[0]
    capacity = (children - 1) * max_pops + children + 1
    # All children lie further out than their parents.
    monkeypatch.setattr(walk, "norm", lambda x: torch.full(x.shape[:3], float(x.shape[2])))
    for room, lost in ((capacity, 0), (capacity - 1, 1)):
        strategy = branching_walk(population=1, children=children, max_pops=max_pops, max_queue=room)
        _, history = walked(strategy, pool, Everyone(), 100)
        assert max(int(state.size) for *_, state in history) == room
        assert int(history[-1][2].dropped) == lost


def lone_root(population: int) -> Tensor:
    """A pool whose first candidate alone succeeds in a world of limited reach."""
    pool = torch.full((population, WALK_D), 1e6, dtype=torch.float64)
    pool[0] = torch.tensor([3.0, 2.0, 1.0, 2.0])
    return pool


def descendants(visited: list[tuple[Tensor, int]]) -> list[tuple[Tensor, int]]:
    return [entry for entry in visited if entry[1]]


@pytest.mark.parametrize("population", [1, 5])
def test_a_full_queue_leaves_the_first_individuals_as_published(
    monkeypatch: pytest.MonkeyPatch, population: int
) -> None:
    monkeypatch.setattr(walk, "steps", hashed_steps)
    pool, world, room = lone_root(population), World(reach=1e5, faceless=0.0), 30
    expected = descendants(published(pool, world, max_pops=60))
    strategy = branching_walk(population=population, max_pops=60, max_queue=room)
    visited, history = walked(strategy, pool, world, 5_000)
    assert int(history[-1][2].dropped) > 0
    assert len(descendants(visited)) < len(expected)
    assert same(descendants(visited)[:room], expected[:room])


def test_the_default_walk_is_the_published_one() -> None:
    """No child is lost, failed detections end nothing in Z, and in W+ more than 20 do."""

    def evaluate(proposal: Proposal) -> Evaluation:
        return everyone(proposal)._replace(found=(proposal.depth == 0) | (proposal.id % 64 > 0))

    for space in ("z", "w+"):
        history = run(branching_walk(space), evaluate, first((3, 64), 64, 1, torch.float32), 45)
        later = history[1:]
        lost = torch.stack([(p.valid & ~e.found).sum() for p, e, _ in later]).cumsum(0)
        roots = [set(p.root[p.valid].tolist()) for p, *_ in later]
        first_root = [r == roots[0] for r in roots]
        assert int(lost[-1]) > 35
        assert sum(first_root) == (len(roots) if space == "z" else int((lost <= 20).sum()) + 1)
        assert int(history[-1][2].dropped) == 0
        assert space == "w+" or int(history[-1][2].size) > 1024


def test_the_default_queue_is_bounded() -> None:
    """What never overflows, 16,384 entries, or 2²⁶ numbers: whichever is least."""
    for strategy, shape, expected in (
        (branching_walk(population=2), (100,), 16_384),
        (branching_walk("w+", population=2), (1, 100), 10_004),
        (branching_walk("w+", population=2), (18, 512), 7_281),
        (branching_walk(population=2, max_pops=10, lineages=2), (100,), 48),
        (branching_walk(population=64, max_pops=1), (4,), 64),
    ):
        with FakeTensorMode():
            state = strategy.init(torch.randn(1, strategy.population, *shape), 0)
        assert state.id.shape == (1, expected)


def test_waiting_roots_follow_in_order() -> None:
    """More roots than lineages in one scan: all of them found lineages in the end, in the order of the pool."""
    pool = first((WALK_D,), 20, 1)[0]
    world = World(reach=2.0, faceless=0.0)
    _, history = walked(branching_walk(population=20, lineages=1, max_queue=500, scale=1.0), pool, world, 1_000)
    order = list(dict.fromkeys(r for p, *_ in history[1:] for r in p.root[p.valid].tolist()))
    assert order == world.success(pool).nonzero().flatten().tolist()


def test_identity_gate_stops_reproduction() -> None:
    def evaluate(proposal: Proposal) -> Evaluation:
        return everyone(proposal)._replace(novel=proposal.depth == 0)

    for gate in (False, True):
        history = run(branching_walk(population=8, identity_gate=gate), evaluate, first((WALK_D,), 8), 8)
        assert max(int(p.depth.where(p.valid, 0).max()) for p, *_ in history) == (1 if gate else 4)


def test_walk_in_z_forgets_its_root_as_fast_as_measured() -> None:
    """cos(z₀, z_k) of the published walk: 0.895, 0.817, 0.755 (methods §2.7), 1/√(1 + k/4) in high dimensions."""
    x0 = first((512,), 32, 1, torch.float32)
    history = run(branching_walk(population=32, lineages=32, max_queue=2000), everyone, x0, 40)
    depth = torch.cat([p.depth[0] for p, *_ in history])
    z = torch.cat([p.latents[0] for p, *_ in history])
    cosine = torch.cosine_similarity(z, x0[0, torch.cat([p.root[0] for p, *_ in history])])
    for k, expected in ((1, 0.895), (2, 0.817), (3, 0.755)):
        assert int((depth == k).sum()) >= 192
        assert float(cosine[depth == k].mean()) == pytest.approx(expected, abs=0.005)


def test_walk_in_w_plus_steps_uniformly_in_each_layer() -> None:
    sigma = torch.rand(18, 64) + 0.1
    x0 = first((18, 64), 4, 1, torch.float32)
    for strategy, width in (
        (branching_walk("w+", population=4, lineages=4), torch.full((18, 64), 0.3)),
        (branching_walk("w+", population=4, lineages=4, spread=sigma, children=10, max_pops=500), 3 * sigma),
    ):
        proposal = run(strategy, everyone, x0, 4)[-1][0]
        assert (proposal.depth == 1).all()
        step = ((proposal.latents[0] - x0[0, proposal.root[0]]) / width).flatten()
        assert 0.999 < float(step.abs().max()) <= 1 + 1e-5
        assert float(step.var()) == pytest.approx(1 / 3, rel=0.05)


def test_pull_keeps_the_norm_of_the_prior() -> None:
    x0 = first((512,), 8, 1, torch.float32)
    last = {}
    for pull in (0.0, 1 - 1 / math.sqrt(1.25)):
        strategy = branching_walk(population=8, lineages=8, pull=pull, max_queue=1000)
        proposal = run(strategy, everyone, x0, 80)[-1][0]
        assert int(proposal.depth.min()) >= 3
        last[pull] = float(proposal.latents.square().mean())
    assert last[1 - 1 / math.sqrt(1.25)] == pytest.approx(1, abs=0.05)
    assert last[0.0] > 1.7


def test_pull_is_towards_its_centre() -> None:
    x0, centre = first((WALK_D,), 8), torch.arange(1.0, 1 + WALK_D, dtype=torch.float64)
    one, moved = (
        run(branching_walk(population=8, lineages=2, pull=0.3, centre=c), everyone, x0 + c, 10)[-1][0].latents - c
        for c in (torch.zeros_like(centre), centre)
    )
    torch.testing.assert_close(one, moved)


def test_crossover_mixes_survivors() -> None:
    """With steps all but zero, a child's coordinates are its parent's or another survivor's."""
    x0 = first((WALK_D,), 6, 1)
    for probability in (0.0, 1.0):
        strategy = branching_walk(population=6, lineages=6, children=1, crossover=probability, scale=1e-7)
        history = run(strategy, everyone, x0, 12)
        proposal = next(p for p, *_ in reversed(history) if (p.depth >= 2).all())
        source = (proposal.latents[0, :, None] - x0[0]).abs() < 1e-5  # [child, root, coordinate]
        assert source.any(1).all()
        own = source[torch.arange(6), proposal.root[0]]
        assert bool(own.all()) is (probability == 0.0)
        assert bool(source.all(2).any(1).all()) is (probability == 0.0), "children mix both, coordinate by coordinate"


# --- genetic ------------------------------------------------------------------------------------------------------


def test_truncation_and_tournament_select_as_often_as_they_should() -> None:
    """P(best of k draws with replacement has rank ≤ r) = 1 − (1 − r/P)ᵏ."""
    x0 = torch.arange(8.0).view(1, 8, 1).expand(400, 8, 1)
    evaluate = lambda p: evaluated(p, p.latents[..., 0], p.valid, p.latents)  # noqa: E731
    settings = {"crossover": None, "scale": 1e-9}
    chosen = run(genetic(8, tournament_size=3, **settings), evaluate, x0, 2)[1][0].latents.round().flatten()
    for r in range(1, 9):
        assert float((chosen >= 8 - r).double().mean()) == pytest.approx(1 - (1 - r / 8) ** 3, abs=0.03)
    chosen = run(genetic(8, selection="truncation", truncation_share=0.25, **settings), evaluate, x0, 2)[1][0].latents
    assert float(chosen.min()) == pytest.approx(6, abs=1e-6)
    assert float(chosen.mean()) == pytest.approx(6.5, abs=0.05)


def test_elites_stay_parents_without_being_evaluated_again() -> None:
    x0 = torch.arange(8.0).view(1, 8, 1)
    worse = lambda p: evaluated(p, p.latents[..., 0] - 100 * (p.depth > 0), p.valid, p.latents)  # noqa: E731
    for elites in (0, 2, 8):
        history = run(genetic(8, elites=elites), worse, x0, 5)
        state = history[-1][2]
        assert (state.depth == 0).sum() == elites
        assert state.fitness.isfinite().all()
        assert torch.equal(state.fitness, state.fitness.sort(dim=1, descending=True).values)


@given(st.floats(0, 1), st.integers(0, 1000), st.sampled_from([1e-6, 1.0, 1e4]))
def test_slerp_keeps_to_the_arc(t: float, seed: int, apart: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    b = a + apart * torch.randn(2, 3, 5, generator=rng, dtype=torch.float64)
    x = optimisers._slerp(a, b, torch.tensor(t, dtype=a.dtype))
    norm = (1 - t) * a.norm(dim=2) + t * b.norm(dim=2)
    torch.testing.assert_close(x.norm(dim=2), norm, rtol=1e-6, atol=1e-9)
    angle = torch.arccos(torch.cosine_similarity(a, b, dim=2).clamp(-1, 1))
    torch.testing.assert_close(
        torch.arccos(torch.cosine_similarity(a, x, dim=2).clamp(-1, 1)), t * angle, rtol=1e-5, atol=1e-6
    )


def test_sbx_has_its_spread_and_keeps_the_mean() -> None:
    """Deb & Agrawal 1995: β has density (η+1)/2·βᵑ below 1 and (η+1)/2·β^−(η+2) above, whence E[β²]."""
    one, two = torch.zeros(1, 200_000, 1, dtype=torch.float64), torch.ones(1, 200_000, 1, dtype=torch.float64)
    rng = torch.Generator().manual_seed(0)
    for eta in (5.0, 15.0):
        beta = 1 - 2 * optimisers._cross(one, two, "sbx", eta, rng)  # child = ((1 + β)·0 + (1 − β)·1) / 2
        below = beta <= 1
        assert float(below.double().mean()) == pytest.approx(0.5, abs=0.01)
        assert float(beta[below].mean()) == pytest.approx((eta + 1) / (eta + 2), abs=0.005)
        assert float(beta.square().mean()) == pytest.approx((eta + 1) / 2 * (1 / (eta + 3) + 1 / (eta - 1)), rel=0.02)


@pytest.mark.parametrize("crossover", ["uniform", "spherical", None])
def test_pcn_keeps_to_the_prior_where_added_steps_drift_off(crossover: Any) -> None:
    """Random fitness. The lengths are those that `genetic`'s docstring states."""
    rng = torch.Generator().manual_seed(0)

    def chance(proposal: Proposal) -> Evaluation:
        return evaluated(proposal, torch.rand(proposal.id.shape, generator=rng), proposal.valid, proposal.latents)

    x0 = first((256,), 64, 4, torch.float32)
    length = {}
    for mutation in ("pcn", "gaussian"):
        last = run(genetic(64, crossover=crossover, mutation=mutation), chance, x0, 31)[-1][0].latents
        length[mutation] = float(last.norm(dim=2).mean() / 16)
    assert length["pcn"] == pytest.approx(1, abs=0.05)
    assert 1.1 < length["gaussian"] < 1.3


def test_pcn_leaves_a_normal_distribution_as_it_is() -> None:
    x = torch.randn(1, 100_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for scale in (0.3, torch.tensor([0.2, 1.0])):
        y = optimisers._mutate(x, "pcn", scale, torch.Generator().manual_seed(2))
        for i in range(2):
            assert scipy.stats.kstest(y[0, :, i].numpy(), "norm").pvalue > 1e-3
            width = float(torch.as_tensor(scale).expand(2)[i])
            correlation = np.corrcoef(x[0, :, i], y[0, :, i])[0, 1]
            assert correlation == pytest.approx(math.sqrt(1 - width**2), abs=0.01)


# --- SNES and CEM against one step by hand ------------------------------------------------------------------------


def one_step(strategy: Strategy, fitness: Tensor) -> tuple[Any, Any, Proposal]:
    x0 = first((2, 3), 10, 2)
    rng = torch.Generator().manual_seed(4)
    state = strategy.init(x0, 0)
    evaluate = lambda p: evaluated(p, fitness, p.valid, p.latents[..., 0])  # noqa: E731
    proposal, state = strategy.ask(state, rng)
    state = strategy.tell(state, proposal, evaluate(proposal), rng)
    proposal, state = strategy.ask(state, rng)
    return state, strategy.tell(state, proposal, evaluate(proposal), rng), proposal


def test_snes_step_is_the_paper_s() -> None:
    fitness = torch.randperm(20, generator=torch.Generator().manual_seed(0)).view(2, 10).double()
    old, new, proposal = one_step(snes(10), fitness)
    d, n = 6, 10
    for g in range(2):
        mean, sigma, x = (t[g].flatten(-2).numpy() for t in (old.mean, old.scale, proposal.latents))
        s = ((x - mean) / sigma)[np.argsort(-fitness[g].numpy())]
        u = np.maximum(0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
        u = u / u.sum() - 1 / n
        np.testing.assert_allclose(new.mean[g].flatten(), mean + sigma * (u @ s), rtol=1e-10)
        rate = (3 + np.log(d)) / (5 * np.sqrt(d))
        np.testing.assert_allclose(new.scale[g].flatten(), sigma * np.exp(rate / 2 * (u @ (s**2 - 1))), rtol=1e-10)


def test_snes_stands_still_where_all_are_equal() -> None:
    for value in (-math.inf, 1.0):
        old, new, _ = one_step(snes(10), torch.full((2, 10), value, dtype=torch.float64))
        torch.testing.assert_close(new.mean, old.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(new.scale, old.scale, rtol=1e-12, atol=0)


@given(st.lists(st.sampled_from([-math.inf, 0.0, 1.0, 2.0]), min_size=2, max_size=12), st.randoms())
def test_equals_share_their_utilities(values: list[float], random: Any) -> None:
    fitness = torch.tensor([values], dtype=torch.float64)
    u = optimisers._utilities(fitness)[0]
    n = len(values)
    raw = np.maximum(0, np.log(n / 2 + 1) - np.log(np.arange(1, n + 1)))
    raw = raw / raw.sum() - 1 / n
    order = sorted(range(n), key=lambda i: -values[i])
    for v in set(values):
        held = [raw[rank] for rank, i in enumerate(order) if values[i] == v]
        for i in range(n):
            if values[i] == v:
                assert float(u[i]) == pytest.approx(np.mean(held), abs=1e-12)


def test_cem_step_is_the_elites_mean_and_deviation() -> None:
    fitness = torch.randperm(20, generator=torch.Generator().manual_seed(0)).view(2, 10).double()
    old, new, proposal = one_step(cem(10, elite_share=0.4, smoothing=0.3, min_scale=0.5), fitness)
    for g in range(2):
        x = proposal.latents[g].flatten(1).numpy()[np.argsort(-fitness[g].numpy())[:4]]
        mean, scale = (t[g].flatten().numpy() for t in (old.mean, old.scale))
        np.testing.assert_allclose(new.mean[g].flatten(), 0.7 * x.mean(0) + 0.3 * mean, rtol=1e-10)
        np.testing.assert_allclose(new.scale[g].flatten(), np.maximum(0.7 * x.std(0) + 0.3 * scale, 0.5), rtol=1e-10)


def test_cem_needs_elites_to_move() -> None:
    fitness = torch.full((2, 10), -math.inf, dtype=torch.float64)
    fitness[1, 3] = 0.0
    old, new, proposal = one_step(cem(10, smoothing=0.0, min_scale=1e-3), fitness)
    assert torch.equal(new.mean[0], old.mean[0])
    torch.testing.assert_close(new.scale, first((2, 3), 10, 2).std(1))  # as at the start, two generations ago
    torch.testing.assert_close(new.mean[1], proposal.latents[1, 3])


# --- MAP-Elites against a loop ------------------------------------------------------------------------------------

grid = hnp.arrays(np.float64, (3, 2, 7, 2), elements=st.sampled_from([-5.0, -0.5, 0.0, 0.5, 2.9, 3.0, math.nan]))
worth = hnp.arrays(np.float64, (3, 2, 7), elements=st.sampled_from([-math.inf, math.nan, 0.0, 1.0, 2.0]))
flags = hnp.arrays(np.bool_, (3, 2, 7))


@given(grid, worth, flags, flags, st.booleans(), st.booleans())
def test_map_elites_inserts_as_a_loop_would(
    measures: Any, fitness: Any, success: Any, found: Any, only: bool, voronoi: bool
) -> None:
    centroids = torch.tensor([[-2.0, -2.0], [0.1, 0.3], [2.0, -1.0], [1.0, 2.5]], dtype=torch.float64)
    strategy = map_elites(7, cells=(3, 4), centroids=centroids if voronoi else None, only_successes=only, **BOX)
    rng = torch.Generator().manual_seed(0)
    state = strategy.init(first((D,), 7, 2), 0)
    archive: list[dict[int, tuple[float, int]]] = [{}, {}]
    for generation in range(3):
        proposal, state = strategy.ask(state, rng)
        f, s, o, m = (torch.from_numpy(x[generation]) for x in (fitness, success, found, measures))
        state = strategy.tell(state, proposal, Evaluation(f, s, o, s, m), rng)
        for g in range(2):
            for i in range(7):
                value = float(f[g, i])
                ok = value > -math.inf and m[g, i].isfinite().all() and (not only or bool(s[g, i] & o[g, i]))
                if not ok:
                    continue
                at = m[g, i].clamp(-3, 3)
                if voronoi:
                    cell = int((at - centroids).norm(dim=1).argmin())
                else:
                    cell = 4 * min(int((at[0] + 3) / 6 * 3), 2) + min(int((at[1] + 3) / 6 * 4), 3)
                if cell not in archive[g] or value > archive[g][cell][0]:
                    archive[g][cell] = (value, int(proposal.id[g, i]))
    for g in range(2):
        for cell in range(state.fitness.shape[1]):
            value, id = archive[g].get(cell, (-math.inf, -1))
            assert (float(state.fitness[g, cell]), int(state.id[g, cell])) == (value, id)


def test_map_elites_keeps_latents_with_their_ids_and_fills_cells() -> None:
    strategy = map_elites(P, cells=(4, 4), **BOX)
    history = run(strategy, sphere(goals((D,))), first((D,)), 40)
    latents = {(g, int(p.id[g, i])): p.latents[g, i] for p, *_ in history for g in range(G) for i in range(P)}
    state = history[-1][2]
    for g, cell in (state.id >= 0).nonzero().tolist():
        x = latents[g, int(state.id[g, cell])]
        assert torch.equal(state.latents[g, cell], x)
        assert torch.equal(state.measures[g, cell], x[:2])
    filled = [(s.fitness > -math.inf).sum(1) for *_, s in history]
    assert (filled[-1] > filled[0]).all()
    assert (filled[-1] >= 12).all()


def test_iso_line_children_lie_on_the_line_of_two_elites() -> None:
    strategy = map_elites(P, cells=(4, 4), iso=0.0, line=0.5, **BOX)
    x0 = first((D,))
    history = run(strategy, sphere(goals((D,))), x0, 2)
    state, children = history[0][2], history[1][0]
    for g in range(G):
        elites = state.latents[g, state.fitness[g] > -math.inf]
        for i in range(P):
            d = children.latents[g, i] - x0[g, int(children.parent[g, i])]
            toward = elites - x0[g, int(children.parent[g, i])]
            cosine = torch.cosine_similarity(d.expand_as(toward), toward, dim=1).abs()
            assert float(d.norm()) == 0 or float(cosine.max()) == pytest.approx(1, abs=1e-9)


def test_cvt_centroids_are_the_centroids_of_their_cells() -> None:
    low, high = (0.0, -10.0), (1.0, 30.0)
    centroids = cvt_centroids(16, low, high, torch.Generator().manual_seed(0))
    assert centroids.shape == (16, 2)
    unit = (centroids - torch.tensor(low)) / (torch.tensor(high) - torch.tensor(low))
    x = torch.rand(100_000, 2, generator=torch.Generator().manual_seed(1))
    nearest = torch.cdist(x, unit).argmin(1)
    share = nearest.bincount(minlength=16) / len(x)
    assert float(share.max() / share.min()) < 2.5  # random centroids: often above 10
    means = torch.stack([x[nearest == c].mean(0) for c in range(16)])
    assert float((means - unit).norm(dim=1).max()) < 0.04


def test_cvt_centroids_never_hold_all_distances(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, cdist = [], torch.cdist

    def counted(a: Tensor, b: Tensor) -> Tensor:
        sizes.append(len(a) * len(b))
        return cdist(a, b)

    whole = cvt_centroids(20, (0.0, 0.0), (1.0, 2.0), torch.Generator().manual_seed(0), iterations=5)
    monkeypatch.setattr(torch, "cdist", counted)
    monkeypatch.setattr("fairface_synth.strategies.elites._DISTANCES", 1000)
    parts = cvt_centroids(20, (0.0, 0.0), (1.0, 2.0), torch.Generator().manual_seed(0), iterations=5)
    assert max(sizes) == 1000
    assert sum(sizes) == 5 * 2000 * 20
    torch.testing.assert_close(parts, whole)


# --- pyribs -------------------------------------------------------------------------------------------------------


def _subspace() -> Subspace:
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 3, generator=rng)).Q
    return Subspace(torch.randn(8, generator=rng), basis, basis, basis, torch.eye(8), "pca", shape=(2, 4))


@pytest.mark.slow  # numba compiles pyribs' CMA-ES
def test_explore_fills_cells_of_a_subspace() -> None:
    pytest.importorskip("ribs")
    subspace, rows = _subspace(), []

    def fitness(latents: Tensor, row: Tensor) -> Evaluation:
        rows.append(row)
        c = project(subspace, latents)
        value = -(c - 1).square().sum(1)
        value = value.where(c[:, 2] < 1.2, -math.inf)
        yes = torch.ones_like(value, dtype=torch.bool)
        return Evaluation(value, yes, yes, yes, c[:, :2].where(c[:, 2:] > -1, math.nan))

    found = qd.explore(
        fitness, subspace, low=(0, 0), high=(2, 2), cells=(5, 5), minimum=-4.0, row=3, iterations=40, seed=1
    )
    assert len(rows) == 40
    assert torch.equal(rows[0], torch.full((4 * 36,), 3))
    assert 20 <= len(found.latents) <= 25
    torch.testing.assert_close(found.latents, lift(subspace, found.coordinates, "mean"))
    value = -(found.coordinates - 1).square().sum(1)
    torch.testing.assert_close(found.fitness, value, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.fitness, found.fitness.sort(descending=True).values)
    assert float(found.fitness[0]) > -0.1
    assert float(found.fitness.min()) > -4
    assert (found.coordinates[:, 2] < 1.2).all()
    cells = (found.measures.clamp(0, 1.999) / 2 * 5).long()
    assert len(cells.unique(dim=0)) == len(cells)
    with pytest.raises(ShapeError, match="does not fit"):
        qd.explore(lambda x, rows: fitness(x[1:], rows), subspace, low=(0, 0), high=(2, 2), cells=(5, 5), minimum=-4.0)
    again = qd.explore(
        fitness, subspace, low=(0, 0), high=(2, 2), cells=(5, 5), minimum=-4.0, row=3, iterations=40, seed=1
    )
    assert torch.equal(found.latents, again.latents)


def test_explore_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"low": (0,), "high": (1,), "cells": (3,), "minimum": 0.0}
    bad = lambda latents, rows: Evaluation(*[torch.zeros(3)] * 4, torch.zeros(3, 1))  # noqa: E731
    monkeypatch.setitem(__import__("sys").modules, "ribs.archives", None)
    with pytest.raises(DataError, match=r"fairface_synth\[qd\]"):
        qd.explore(bad, _subspace(), **settings)
    with pytest.raises(DataError, match="finite minimum"):
        qd.explore(bad, _subspace(), **settings | {"minimum": -math.inf})
