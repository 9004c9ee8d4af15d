"""Evolutionary strategies as `(init, ask, tell)` of pure functions over an immutable state.

All groups evolve in one batch: every tensor of a state leads with [groups], and candidates with [groups, population].
Strategies know nothing of generators or labellers; `evolve` (evolution.py) drives them.

A state is a NamedTuple of tensors that lead with [groups] and nothing else, so that states of single groups can be
merged, saved and resumed. Every state has a field `next_id` [G], the first id that it has not given out. MAP-Elites
is in qd.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, ShapeError

Space = Literal["z", "w+"]
Selection = Literal["tournament", "truncation"]
Crossover = Literal["uniform", "sbx", "spherical"]
Mutation = Literal["gaussian", "uniform"]


class Proposal(NamedTuple):
    """What a strategy wants evaluated.

    Attributes:
        latents: [G, P, *shape].
        valid: bool [G, P]; False: no candidate in this slot, its latents mean nothing and are not to be evaluated.
        id: int64 [G, P], unique within a group over a whole run; −1 where not valid.
        parent: int64 [G, P], id of the (first) parent; −1 for candidates of the first generation.
        root: int64 [G, P], id of the first ancestor; its own id in the first generation.
        depth: int64 [G, P], generations since the root.
    """

    latents: Tensor
    valid: Tensor
    id: Tensor
    parent: Tensor
    root: Tensor
    depth: Tensor


class Evaluation(NamedTuple):
    """What is known about candidates once evaluated; every strategy reads what it needs.

    Attributes:
        fitness: [G, P], higher is better; −inf for slots that were not valid. NaN counts as −inf.
        success: bool [G, P], in the target group.
        found: bool [G, P], a face was found.
        novel: bool [G, P], the identity is new; all True where identities are not looked at.
        measures: [G, P, m], what MAP-Elites lays its cells over; m may be 0.
    """

    fitness: Tensor
    success: Tensor
    found: Tensor
    novel: Tensor
    measures: Tensor


class Strategy(NamedTuple):
    """An evolutionary strategy.

    Attributes:
        name: for reports.
        population: candidates asked for each group and generation, P.
        init: (x0 [G, ≥ P, *shape], start int64 [G] or 0) → state. x0 are individuals drawn from the prior, not
            evaluated yet; `start` is the first id to give out.
        ask: (state, rng=None) → (Proposal, state).
        tell: (state, Proposal, Evaluation, rng=None) → state. The Proposal is the one that `ask` returned last.
        restarts: whether a driver may begin anew from fresh draws when nothing new is found for a while.
    """

    name: str
    population: int
    init: Callable[..., Any]
    ask: Callable[..., tuple[Proposal, Any]]
    tell: Callable[..., Any]
    restarts: bool = True


# --- the published search -----------------------------------------------------------------------------------------


class WalkState(NamedTuple):
    """State of `branching_walk`. The queue is kept in order, its first `size` entries are in use.

    Attributes:
        latents [G, Q, *shape], id, parent, depth, lineage [G, Q]: the queue; `lineage` is a slot below.
        size [G]: entries in use.
        roots [G, L, *shape], root_id, pops, failures [G, L]: lineages: where they began, how many individuals were
            taken from the queue (the root included), how many of them showed no face.
        pool [G, N, *shape], scanned [G], pool_id [G]: root candidates, how many were proposed, id of the first.
        waiting bool [G, N]: root candidates in the target group for which no lineage was free yet.
        next_id [G]: first id not given out.
        dropped [G]: children lost because the queue was full.
    """

    latents: Tensor
    id: Tensor
    parent: Tensor
    depth: Tensor
    lineage: Tensor
    size: Tensor
    roots: Tensor
    root_id: Tensor
    pops: Tensor
    failures: Tensor
    pool: Tensor
    scanned: Tensor
    pool_id: Tensor
    waiting: Tensor
    next_id: Tensor
    dropped: Tensor


class _Entries(NamedTuple):
    """What may stand in the queue: latents [G, n, *shape], the rest [G, n]."""

    latents: Tensor
    id: Tensor
    parent: Tensor
    depth: Tensor
    lineage: Tensor
    keep: Tensor


def branching_walk(
    space: Space = "z",
    *,
    scale: float | None = None,
    children: int = 3,
    max_pops: int = 5000,
    max_no_face: int = 20,
    lineages: int = 1,
    population: int = 64,
    max_queue: int = 1024,
    spread: Tensor | None = None,
    crossover: float = 0.0,
    identity_gate: bool = False,
    pull: float = 0.0,
    centre: Tensor | float = 0.0,
) -> Strategy:
    """The first-in-first-out branching random walk of Jain et al. (IJCB 2023), as in their published code, batched.

    Root candidates (x0) are scanned in order. One in the target group founds a lineage: its children queue up, the
    queue's front is evaluated, and whoever is in the target group and shows a face gets `children` children, of which
    those enter the queue that lie further from the root than their parent. Nothing ranks candidates: `fitness` is not
    read. When queue and pool are exhausted no slot is valid any more and the driver begins again with a new pool.

    What differs from the published code:

    - The first `population` queue entries are evaluated together. Order and offspring are those of one at a time, but
      up to `population` − 1 individuals are evaluated that a lineage ended by `max_no_face` would not have reached,
      and the scan may find more root candidates than there are free lineages. These wait, in order, for a free one.
    - The published queue begins with the root and its children, so that the root is synthesised again and has children
      again. Here it has both broods at once and is not evaluated again.
    - The queue is finite. `max_queue=lineages * ((children - 1) * max_pops + children + 1)` can never overflow and is
      the published search exactly; below that, children that find it full are lost and counted in `state.dropped`.

    The older published W+ variant is `branching_walk("w+", spread=σ, children=10, max_pops=500)`: steps U(−3, 3)·σ.

    Args:
        space: "z": normal steps; "w+": uniform steps, independent for each layer.
        scale: standard deviation ("z"), half-width ("w+") or half-width in units of `spread`. None: the published 0.5,
            0.3 and 3.
        children: of each survivor.
        max_pops: individuals of a lineage that may have children, in the order they leave the queue, the root included.
            Published: 5,000 (1,000 for white faces) in W+, 10⁹ in Z.
        max_no_face: failed face detections a lineage may have; one more ends it.
        lineages: that live at a time in a group. Published: 1.
        population: candidates a generation, P.
        max_queue: capacity of a group's queue, ≥ P.
        spread: σ [*shape]: steps are uniform in ±scale·σ.
        crossover: probability that a child starts from a uniform mix of its parent and a survivor of the same
            generation and group. Published: 0.
        identity_gate: only new identities have children. Published: off.
        pull: shrinks every child towards `centre`: c + (1 − pull)(child − c). In Z, 1 − 1/√(1 + scale²) keeps the norm
            of the prior. Published: 0.
        centre: [*shape] or a number: 0 for Z, w_avg for W+.

    Raises:
        DataError: arguments out of range.
    """
    _check_choice("space", space, Space)
    _check(scale is None or scale > 0, "scale > 0, or None", scale)
    _check(min(children, max_pops, lineages, population) >= 1, "children, max_pops, lineages, population ≥ 1", None)
    _check(max_queue >= population, f"max_queue ≥ population = {population}", max_queue)
    _check(max_no_face >= 0, "max_no_face ≥ 0", max_no_face)
    _check(0 <= crossover <= 1 and 0 <= pull < 1, "crossover in [0, 1], pull in [0, 1)", f"{crossover}, {pull}")
    uniform = space == "w+" or spread is not None
    if scale is None:
        scale = 3.0 if spread is not None else 0.3 if uniform else 0.5
    width = scale if spread is None else scale * spread
    mutation: Mutation = "uniform" if uniform else "gaussian"
    walk = _Walk(
        population, children, max_pops, max_no_face, lineages, mutation, width, crossover, identity_gate, pull, centre
    )
    return Strategy(
        f"branching walk in {space.upper()}",
        population,
        partial(_init_walk, walk, max_queue),
        partial(_ask_walk, walk),
        partial(_tell_walk, walk),
        restarts=False,
    )


class _Walk(NamedTuple):
    """The rules of a branching walk, as `branching_walk` takes them."""

    population: int
    children: int
    max_pops: int
    max_no_face: int
    lineages: int
    mutation: Mutation
    width: float | Tensor
    crossover: float
    identity_gate: bool
    pull: float
    centre: Tensor | float


def _init_walk(walk: _Walk, max_queue: int, x0: Tensor, start: Tensor | int = 0) -> WalkState:
    first = _first_id(x0, start, walk.population)
    groups, pool, shape = x0.shape[0], x0.shape[1], x0.shape[2:]
    none, slots = first.new_zeros(groups, max_queue), first.new_zeros(groups, walk.lineages)
    return WalkState(
        latents=x0.new_zeros(groups, max_queue, *shape),
        id=none,
        parent=none,
        depth=none,
        lineage=none,
        size=torch.zeros_like(first),
        roots=x0.new_zeros(groups, walk.lineages, *shape),
        root_id=slots,
        pops=slots,
        failures=slots,
        pool=x0,
        scanned=torch.zeros_like(first),
        pool_id=first,
        waiting=torch.zeros(groups, pool, dtype=torch.bool, device=x0.device),
        next_id=first + pool,
        dropped=torch.zeros_like(first),
    )


def _ask_walk(walk: _Walk, state: WalkState, rng: torch.Generator | None = None) -> tuple[Proposal, WalkState]:
    """The queue's front, then root candidates. `tell` pops them: what is asked follows from the state alone."""
    queued, scanning, index = _walk_slots(state, walk.population)
    front = _queue(state, slice(None, walk.population), queued)
    candidates = _gather(state.pool, index.clamp(0, state.pool.shape[1] - 1))
    id = torch.where(queued, front.id, (state.pool_id.unsqueeze(1) + index).where(scanning, -1))
    proposal = Proposal(
        latents=torch.where(_like(queued, candidates), front.latents, candidates),
        valid=queued | scanning,
        id=id,
        parent=front.parent.where(queued, -1),
        root=torch.where(queued, state.root_id.gather(1, front.lineage), id),
        depth=front.depth.where(queued, 0),
    )
    return proposal, state


def _tell_walk(
    walk: _Walk, state: WalkState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
) -> WalkState:
    _check_evaluation(proposal, evaluation)
    queued, scanning, index = _walk_slots(state, walk.population)
    survivor = proposal.valid & evaluation.success & evaluation.found
    if walk.identity_gate:
        survivor = survivor & evaluation.novel
    lineage = state.lineage[:, : walk.population]
    member = queued.unsqueeze(2) & (lineage.unsqueeze(2) == torch.arange(walk.lineages, device=lineage.device))
    turn = ((state.pops.unsqueeze(1) + member.cumsum(1) - 1) * member).sum(2)
    failures = state.failures + (member & ~evaluation.found.unsqueeze(2)).sum(1)
    ended = failures > walk.max_no_face

    fertile = queued & survivor & (turn < walk.max_pops)
    brood = _brood(walk, state, proposal, survivor, fertile, lineage, rng)
    after = torch.arange(walk.population, state.id.shape[1], device=lineage.device) < state.size.unsqueeze(1)
    queue = _queue(state, slice(walk.population, None), after)
    brood, queue = (x._replace(keep=x.keep & ~ended.gather(1, x.lineage)) for x in (brood, queue))

    alive = _lineage_sizes(brood, walk.lineages) + _lineage_sizes(queue, walk.lineages) > 0
    waiting = _mark(state.waiting, index, scanning, survivor)
    started, which, waiting = _start_lineages(~alive, waiting)
    state = state._replace(
        roots=torch.where(_like(started, state.roots), _gather(state.pool, which), state.roots),
        root_id=(state.pool_id.unsqueeze(1) + which).where(started, state.root_id),
        pops=(state.pops + member.sum(1)).masked_fill(started, 1),
        failures=failures.masked_fill(started, 0),
        scanned=state.scanned + scanning.sum(1),
        waiting=waiting,
    )
    return _enqueue(state, queue, _join(brood, _first_broods(walk, state, started, rng)))


def _brood(
    walk: _Walk,
    state: WalkState,
    proposal: Proposal,
    survivor: Tensor,
    fertile: Tensor,
    lineage: Tensor,
    rng: torch.Generator | None,
) -> _Entries:
    """Children of the fertile, in the order of their parents; those that do not lead away from the root are no use."""
    parents = proposal.latents.unsqueeze(2)
    base = parents.expand(-1, -1, walk.children, *parents.shape[3:])
    if walk.crossover:
        mates = _gather(proposal.latents, _pick(survivor, base.shape[1] * walk.children, rng)).view_as(base)
        mixed = torch.rand(base.shape[:3], generator=rng, device=base.device) < walk.crossover
        coin = torch.rand(base.shape, generator=rng, device=base.device) < 0.5
        base = torch.where(_like(mixed, base) & coin, mates, base)
    children = _pulled(walk, base + _steps(proposal.latents, walk.children, walk.mutation, walk.width, rng))
    root = _gather(state.roots, lineage).unsqueeze(2)
    keep = fertile.unsqueeze(2) & (_norm(children - root) > _norm(parents - root))
    return _entries(children, proposal.id, proposal.depth, lineage, keep)


def _first_broods(walk: _Walk, state: WalkState, started: Tensor, rng: torch.Generator | None) -> _Entries:
    """Children of new roots: the brood that the published queue begins with, and the one when the root is popped."""
    count = 2 * walk.children
    children = state.roots.unsqueeze(2) + _steps(state.roots, count, walk.mutation, walk.width, rng)
    slots = torch.arange(walk.lineages, device=started.device).expand_as(started)
    keep = started.unsqueeze(2).expand(-1, -1, count)
    return _entries(_pulled(walk, children), state.root_id, torch.zeros_like(slots), slots, keep)


def _pulled(walk: _Walk, x: Tensor) -> Tensor:
    if not walk.pull:
        return x
    centre = _as_like(walk.centre, x)
    return centre + (1 - walk.pull) * (x - centre)


def _entries(children: Tensor, id: Tensor, depth: Tensor, lineage: Tensor, keep: Tensor) -> _Entries:
    """Entries for children [G, n, c, *shape] of individuals [G, n]; they get their ids when they enter the queue."""
    parent, depth, lineage = (x.unsqueeze(2).expand_as(keep).flatten(1) for x in (id, depth + 1, lineage))
    return _Entries(children.flatten(1, 2), torch.zeros_like(parent), parent, depth, lineage, keep.flatten(1))


def _enqueue(state: WalkState, queue: _Entries, new: _Entries) -> WalkState:
    """Close the gaps, and let new entries follow in order as far as there is room."""
    capacity = state.id.shape[1]
    new = new._replace(id=state.next_id.unsqueeze(1) + new.keep.cumsum(1) - 1)
    both = _join(queue, new)
    order = (~both.keep).long().argsort(dim=1, stable=True)[:, :capacity]
    total = both.keep.sum(1)
    return state._replace(
        **{name: _gather(getattr(both, name), order) for name in ("latents", "id", "parent", "depth", "lineage")},
        size=total.clamp(max=capacity),
        next_id=state.next_id + new.keep.sum(1),
        dropped=state.dropped + (total - capacity).clamp(min=0),
    )


def _queue(state: WalkState, part: slice, keep: Tensor) -> _Entries:
    id, parent, depth, lineage = (x[:, part] for x in (state.id, state.parent, state.depth, state.lineage))
    return _Entries(state.latents[:, part], id, parent, depth, lineage, keep)


def _join(a: _Entries, b: _Entries) -> _Entries:
    return _Entries(*(torch.cat(pair, dim=1) for pair in zip(a, b, strict=True)))


def _lineage_sizes(entries: _Entries, lineages: int) -> Tensor:
    """Kept entries of each lineage [G, L]."""
    zero = entries.lineage.new_zeros(len(entries.lineage), lineages)
    return zero.scatter_add(1, entries.lineage, entries.keep.long())


def _walk_slots(state: WalkState, population: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which slots hold queue entries, which hold root candidates, and the latter's index in the pool: [G, P] each."""
    slot = torch.arange(population, device=state.size.device)
    size = state.size.unsqueeze(1)
    used = torch.arange(state.id.shape[1], device=slot.device) < size
    alive = _lineage_sizes(_queue(state, slice(None), used), state.pops.shape[1]) > 0
    index = state.scanned.unsqueeze(1) + slot - size
    scanning = (slot >= size) & (index < state.pool.shape[1]) & ~alive.all(1, keepdim=True)
    return slot < size, scanning, index


def _mark(waiting: Tensor, index: Tensor, scanning: Tensor, survivor: Tensor) -> Tensor:
    """Note which of the root candidates just evaluated may found a lineage; a spare column takes all other slots."""
    spare = waiting.shape[1]
    padded = torch.cat([waiting, torch.zeros_like(waiting[:, :1])], dim=1)
    return padded.scatter(1, index.where(scanning, spare), survivor)[:, :spare]


def _start_lineages(free: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the i-th free lineage the i-th waiting candidate: (started [G, L], pool index [G, L], still waiting)."""
    rank = free.cumsum(1) - 1
    started = free & (rank < waiting.sum(1, keepdim=True))
    order = (~waiting).long().argsort(dim=1, stable=True)
    which = order.gather(1, rank.clamp(0, waiting.shape[1] - 1))
    return started, which, waiting & (waiting.cumsum(1) > free.sum(1, keepdim=True))


# --- genetic algorithm --------------------------------------------------------------------------------------------


class GeneticState(NamedTuple):
    """Parents, best first (before the first generation: x0): latents [G, P, *shape]; fitness, id, root, depth [G, P];
    next_id and generation [G]."""

    latents: Tensor
    fitness: Tensor
    id: Tensor
    root: Tensor
    depth: Tensor
    next_id: Tensor
    generation: Tensor


def genetic(
    population: int = 64,
    *,
    selection: Selection = "tournament",
    tournament_size: int = 3,
    truncation_share: float = 0.25,
    crossover: Crossover | None = "uniform",
    sbx_index: float = 15.0,
    mutation: Mutation = "gaussian",
    scale: float | Tensor = 0.2,
    rate: float = 1.0,
    elites: int = 4,
) -> Strategy:
    """A genetic algorithm: select two parents, cross, mutate; the best of the last generation survive.

    Args:
        population: P, children a generation, and parents kept.
        selection: "tournament": the fittest of `tournament_size` drawn with replacement; "truncation": any of the best
            `truncation_share`.
        tournament_size: ≥ 1; 1 is no selection.
        truncation_share: in (0, 1].
        crossover: "uniform": each coordinate from either parent; "sbx": simulated binary crossover (Deb & Agrawal
            1995), one of the two children; "spherical": a random point of the arc between the parents, with the norm
            interpolated likewise, so that children of Gaussian latents stay where the prior's mass is (a straight mix
            does not); None: mutation of the first parent only.
        sbx_index: η of SBX; larger keeps children nearer to their parents.
        mutation: "gaussian": N(0, scale²); "uniform": U(−scale, scale).
        scale: a number or [*shape].
        rate: probability that a coordinate mutates.
        elites: parents that stay in the next generation's pool of parents, not evaluated again; `population` makes it
            a (μ + λ) scheme.

    Raises:
        DataError: arguments out of range.
    """
    _check_choice("selection", selection, Selection)
    _check_choice("mutation", mutation, Mutation)
    if crossover is not None:
        _check_choice("crossover", crossover, Crossover)
    _check(population >= 2 and tournament_size >= 1, "population ≥ 2, tournament_size ≥ 1", population)
    _check(0 <= elites <= population, f"elites in 0 … {population}", elites)
    _check(0 < truncation_share <= 1 and 0 < rate <= 1, "truncation_share, rate in (0, 1]", None)
    _check(sbx_index >= 0, "sbx_index ≥ 0", sbx_index)
    best = max(1, round(population * truncation_share))

    def init(x0: Tensor, start: Tensor | int = 0) -> GeneticState:
        first = _first_id(x0, start, population)
        ids = _count_from(first, population)
        fitness = torch.full(ids.shape, -math.inf, dtype=_wide(x0), device=x0.device)
        zero = torch.zeros_like(first)
        return GeneticState(x0[:, :population], fitness, ids, ids, torch.zeros_like(ids), first, zero)

    def select(fitness: Tensor, rng: torch.Generator | None) -> Tensor:
        shape = (len(fitness), 2 * population)
        if selection == "truncation":
            return torch.randint(best, shape, generator=rng, device=fitness.device)
        entrants = torch.randint(population, (*shape, tournament_size), generator=rng, device=fitness.device)
        scores = fitness.gather(1, entrants.flatten(1)).view_as(entrants)
        return entrants.gather(2, scores.argmax(2, keepdim=True)).squeeze(2)

    def ask(state: GeneticState, rng: torch.Generator | None = None) -> tuple[Proposal, GeneticState]:
        chosen = select(state.fitness, rng)
        one, two = (_gather(state.latents, half) for half in chosen.split(population, dim=1))
        x = one if crossover is None else _cross(one, two, crossover, sbx_index, rng)
        step = _steps(x, 1, mutation, scale, rng).squeeze(2)
        if rate < 1:
            step = step * (torch.rand(x.shape, generator=rng, device=x.device) < rate)
        parent, root, depth = (field.gather(1, chosen[:, :population]) for field in (state.id, state.root, state.depth))
        return _propose(state, state.latents, x + step, parent, root, depth + 1)

    def tell(
        state: GeneticState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
    ) -> GeneticState:
        # Children first: among equals, not least where nothing has any fitness yet, the new ones win.
        fitness = torch.cat([_fitness(proposal, evaluation, state.fitness.dtype), state.fitness[:, :elites]], dim=1)
        order = fitness.argsort(dim=1, descending=True, stable=True)[:, :population]

        def survivors(new: Tensor, old: Tensor) -> Tensor:
            return _gather(torch.cat([new, old[:, :elites]], dim=1), order)

        return GeneticState(
            survivors(proposal.latents, state.latents),
            fitness.gather(1, order),
            survivors(proposal.id, state.id),
            survivors(proposal.root, state.root),
            survivors(proposal.depth, state.depth),
            state.next_id,
            state.generation + 1,
        )

    return Strategy("genetic", population, init, ask, tell)


def _cross(one: Tensor, two: Tensor, kind: str, sbx_index: float, rng: torch.Generator | None) -> Tensor:
    """One child [G, P, *shape] of each pair of parents."""
    if kind == "spherical":
        t = torch.rand(one.shape[:2], generator=rng, dtype=one.dtype, device=one.device)
        return _slerp(one, two, _like(t, one))
    u = torch.rand(one.shape, generator=rng, dtype=one.dtype, device=one.device)
    if kind == "uniform":
        return torch.where(u < 0.5, one, two)
    # A small lower bound on 1 − u, which may round to 0.
    tail = (2 * (1 - u)).clamp_min(torch.finfo(u.dtype).eps)
    beta = torch.where(u <= 0.5, 2 * u, 1 / tail) ** (1 / (sbx_index + 1))
    return ((1 + beta) * one + (1 - beta) * two) / 2


def _slerp(one: Tensor, two: Tensor, t: Tensor) -> Tensor:
    """Point t of the arc from one to two (Shoemake 1985), the norm interpolated linearly."""
    dims = tuple(range(2, one.ndim))
    tiny = torch.finfo(one.dtype).tiny
    lengths = [torch.linalg.vector_norm(x, dim=dims, keepdim=True).clamp_min(tiny) for x in (one, two)]
    a, b = one / lengths[0], two / lengths[1]
    # Twice the arcsine of half the chord: accurate for small angles, where arccos is not.
    angle = 2 * torch.asin((torch.linalg.vector_norm(a - b, dim=dims, keepdim=True) / 2).clamp(max=1))
    near = angle < 1e-3  # parents all but alike: the chord is the arc
    sine = torch.sin(angle).where(~near, 1)
    unit = (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / sine
    unit = torch.where(near, (1 - t) * a + t * b, unit)
    return unit * ((1 - t) * lengths[0] + t * lengths[1])


# --- search distributions: SNES, CEM ------------------------------------------------------------------------------


class DistributionState(NamedTuple):
    """State of `snes` and `cem`: a normal distribution with a diagonal covariance.

    Attributes:
        mean, scale: [G, *shape].
        first: x0 [G, P, *shape], the first generation.
        parent, root: [G], the fittest candidate of the last generation and its root: a search distribution has no
            parents, so its best sample stands for them, and all later candidates of a group share one root.
        next_id, generation: [G].
    """

    mean: Tensor
    scale: Tensor
    first: Tensor
    parent: Tensor
    root: Tensor
    next_id: Tensor
    generation: Tensor


def snes(
    population: int = 64,
    *,
    step_size: float | Tensor = 1.0,
    mean_rate: float = 1.0,
    scale_rate: float | None = None,
) -> Strategy:
    """Separable natural evolution strategy (Schaul, Glasmachers & Schmidhuber 2011, algorithm 2).

    Utilities are those of the paper, by rank; candidates of equal fitness share theirs, so a generation without any
    success moves nothing. The mean begins at that of x0.

    Args:
        population: P.
        step_size: σ at the start, a number or [*shape]: the prior's standard deviation (1 in Z), so that x0 itself
            is a first sample of the search distribution.
        mean_rate: η_μ, 1 in the paper.
        scale_rate: η_σ; None: (3 + ln d) / (5√d), the paper's.

    Raises:
        DataError: arguments out of range.
    """
    _check(population >= 2, "population ≥ 2", population)
    _check(isinstance(step_size, Tensor) or step_size > 0, "step_size > 0", step_size)

    def init(x0: Tensor, start: Tensor | int = 0) -> DistributionState:
        first = _first_id(x0, start, population)
        mean = x0.mean(1)
        scale = torch.ones_like(mean) * _as_like(step_size, mean)
        return DistributionState(mean, scale, x0[:, :population], first, first, first, torch.zeros_like(first))

    def tell(
        state: DistributionState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
    ) -> DistributionState:
        fitness = _fitness(proposal, evaluation, _wide(state.mean))
        utility = _like(_utilities(fitness), proposal.latents).to(state.mean.dtype)
        rate = scale_rate
        if rate is None:
            size = math.prod(state.mean.shape[1:])
            rate = (3 + math.log(size)) / (5 * math.sqrt(size))
        s = (proposal.latents - state.mean.unsqueeze(1)) / state.scale.unsqueeze(1)
        mean = state.mean + mean_rate * state.scale * (utility * s).sum(1)
        scale = state.scale * torch.exp(rate / 2 * (utility * (s.square() - 1)).sum(1))
        return _moved(state, proposal, fitness, mean, scale)

    return Strategy("SNES", population, init, _ask_distribution, tell)


def cem(
    population: int = 64,
    *,
    elite_share: float = 0.25,
    smoothing: float = 0.2,
    min_scale: float | Tensor = 0.05,
) -> Strategy:
    """Cross-entropy method with a diagonal normal distribution (de Boer, Kroese, Mannor & Rubinstein 2005, §5).

    Mean and scale begin as those of x0 and then follow the fittest candidates. Candidates of fitness −inf are never
    among them: without any the distribution stays, and a single one moves the mean alone.

    Args:
        population: P.
        elite_share: of the population that the distribution is fitted to, in (0, 1]; at least two candidates.
        smoothing: share of the old mean and scale that stays, in [0, 1).
        min_scale: the scale never falls below it, a number or [*shape]; keeps the search from freezing.

    Raises:
        DataError: arguments out of range.
    """
    _check(population >= 2, "population ≥ 2", population)
    _check(0 < elite_share <= 1 and 0 <= smoothing < 1, "elite_share in (0, 1], smoothing in [0, 1)", None)
    elites = max(2, round(population * elite_share))

    def init(x0: Tensor, start: Tensor | int = 0) -> DistributionState:
        first = _first_id(x0, start, population)
        scale = x0.std(1).clamp_min(_as_like(min_scale, x0))
        return DistributionState(x0.mean(1), scale, x0[:, :population], first, first, first, torch.zeros_like(first))

    def tell(
        state: DistributionState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
    ) -> DistributionState:
        fitness = _fitness(proposal, evaluation, _wide(state.mean))
        top, index = fitness.topk(elites, dim=1)
        x = _gather(proposal.latents, index)
        weight = _like(top > -math.inf, x).to(x.dtype)
        count = weight.sum(1)
        mean = (weight * x).sum(1) / count.clamp_min(1)
        scale = ((weight * (x - mean.unsqueeze(1)).square()).sum(1) / count.clamp_min(1)).sqrt()
        mean = torch.where(count > 0, mean.lerp(state.mean, smoothing), state.mean)
        scale = torch.where(count > 1, scale.lerp(state.scale, smoothing), state.scale)
        return _moved(state, proposal, fitness, mean, scale.clamp_min(_as_like(min_scale, scale)))

    return Strategy("CEM", population, init, _ask_distribution, tell)


def _ask_distribution(
    state: DistributionState, rng: torch.Generator | None = None
) -> tuple[Proposal, DistributionState]:
    noise = _steps(state.first, 1, "gaussian", 1.0, rng).squeeze(2)
    x = state.mean.unsqueeze(1) + state.scale.unsqueeze(1) * noise
    parent, root, depth = (
        field.unsqueeze(1).expand(x.shape[:2]) for field in (state.parent, state.root, state.generation)
    )
    return _propose(state, state.first, x, parent, root, depth)


def _moved(
    state: DistributionState, proposal: Proposal, fitness: Tensor, mean: Tensor, scale: Tensor
) -> DistributionState:
    best = fitness.argmax(1, keepdim=True)
    parent, root = (field.gather(1, best).squeeze(1) for field in (proposal.id, proposal.root))
    return state._replace(mean=mean, scale=scale, parent=parent, root=root, generation=state.generation + 1)


def _utilities(fitness: Tensor) -> Tensor:
    """Utilities [G, P] by falling fitness, Σ = 0; equals get the mean of the utilities that their ranks hold."""
    n = fitness.shape[1]
    rank = torch.arange(1, n + 1, dtype=fitness.dtype, device=fitness.device)
    raw = (math.log(n / 2 + 1) - rank.log()).clamp_min(0)
    total = torch.nn.functional.pad((raw / raw.sum() - 1 / n).cumsum(0), (1, 0))
    rising = fitness.sort(dim=1).values
    better = n - torch.searchsorted(rising, fitness, right=True)
    not_worse = n - torch.searchsorted(rising, fitness)
    return (total[not_worse] - total[better]) / (not_worse - better)


# --- shared -------------------------------------------------------------------------------------------------------


def _steps(
    parents: Tensor, count: int, mutation: Mutation, width: float | Tensor, rng: torch.Generator | None
) -> Tensor:
    """Random steps N(0, width²) or U(−width, width) from each parent: [G, n, *shape] → [G, n, count, *shape]."""
    shape = (*parents.shape[:2], count, *parents.shape[2:])
    if mutation == "uniform":
        noise = torch.rand(shape, generator=rng, dtype=parents.dtype, device=parents.device) * 2 - 1
    else:
        noise = torch.randn(shape, generator=rng, dtype=parents.dtype, device=parents.device)
    return noise * _as_like(width, parents)


def _propose(
    state: Any, first: Tensor, children: Tensor, parent: Tensor, root: Tensor, depth: Tensor
) -> tuple[Proposal, Any]:
    """x0 in the first generation, else children; every slot gets a new id."""
    count = first.shape[1]
    ids = _count_from(state.next_id, count)
    new = (state.generation == 0).unsqueeze(1)
    proposal = Proposal(
        latents=torch.where(_like(new, first), first, children),
        valid=torch.ones_like(ids, dtype=torch.bool),
        id=ids,
        parent=parent.masked_fill(new, -1),
        root=torch.where(new, ids, root),
        depth=depth.masked_fill(new, 0),
    )
    return proposal, state._replace(next_id=state.next_id + count)


def _first_id(x0: Tensor, start: Tensor | int, population: int) -> Tensor:
    """Check x0 and bring `start` into shape [G]."""
    if x0.ndim < 3 or x0.shape[0] < 1 or x0.shape[1] < population or not x0.is_floating_point():
        raise ShapeError(
            "not a first population",
            expected=f"[groups, ≥ {population}, *shape] of floating-point latents",
            got=f"{list(x0.shape)} {x0.dtype}",
            fix="draw as many latents for each group as the strategy's population",
        )
    if has_values(x0) and not bool(x0.isfinite().all()):
        raise DataError("x0 holds NaN or infinity", expected="finite latents")
    start = torch.as_tensor(start, dtype=torch.int64, device=x0.device)
    if start.shape not in ((), x0.shape[:1]):
        raise ShapeError("start does not fit x0", expected=f"a number or [{x0.shape[0]}]", got=list(start.shape))
    return start.expand(x0.shape[0])


def _count_from(first: Tensor, count: int) -> Tensor:
    return first.unsqueeze(1) + torch.arange(count, device=first.device)


def _check_evaluation(proposal: Proposal, evaluation: Evaluation) -> None:
    for name in ("fitness", "success", "found", "novel"):
        value = getattr(evaluation, name)
        if value.shape != proposal.id.shape or (name != "fitness" and value.dtype != torch.bool):
            raise ShapeError(
                f"{name} of the evaluation does not fit the proposal",
                expected=f"{list(proposal.id.shape)}{'' if name == 'fitness' else ' torch.bool'}",
                got=f"{list(value.shape)} {value.dtype}",
            )


def _fitness(proposal: Proposal, evaluation: Evaluation, dtype: torch.dtype) -> Tensor:
    _check_evaluation(proposal, evaluation)
    fitness = evaluation.fitness.to(dtype)
    return fitness.masked_fill(fitness.isnan() | ~proposal.valid, -math.inf)


def _pick(mask: Tensor, count: int, rng: torch.Generator | None) -> Tensor:
    """`count` random columns [G, count], with replacement, among those marked in mask [G, n]; 0 where none is."""
    total = mask.sum(1, keepdim=True)
    u = torch.rand(len(mask), count, generator=rng, dtype=torch.float64, device=mask.device)
    index = torch.minimum((u * total).long(), (total - 1).clamp_min(0))
    return (~mask).long().argsort(dim=1, stable=True).gather(1, index)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """x [G, n, *shape], index [G, k] → [G, k, *shape]; copies whole rows, several times faster than `gather`."""
    first = torch.arange(len(x), device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, index.shape)


def _like(x: Tensor, other: Tensor) -> Tensor:
    """Append dimensions of size 1 until x has as many as other."""
    return x.view(*x.shape, *[1] * (other.ndim - x.ndim))


def _as_like(value: float | Tensor, x: Tensor) -> float | Tensor:
    return value.to(x) if isinstance(value, Tensor) else value


def _norm(x: Tensor) -> Tensor:
    """Norms over all but the first three dimensions, in at least single precision."""
    return torch.linalg.vector_norm(x.flatten(3), dim=3, dtype=_wide(x))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise DataError("argument out of range", expected=expected, got=got)


def _check_choice(name: str, value: object, literal: Any) -> None:
    if value not in get_args(literal):
        raise DataError(f"unknown {name} {value!r}", expected=", ".join(get_args(literal)), got=value)
