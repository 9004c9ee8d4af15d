"""The published search: the branching random walk of Jain et al. (IJCB 2023), batched."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .base import (
    Evaluation,
    Mutation,
    Proposal,
    Strategy,
    as_like,
    check,
    check_choice,
    check_evaluation,
    first_id,
    gather_rows,
    like,
    norm,
    pick,
    settings_text,
    steps,
)

Space = Literal["z", "w+"]


class _Published(NamedTuple):
    scale: float
    max_pops: int
    max_no_face: int


# In Z the published code looks for no faces.
_PUBLISHED: dict[Space, _Published] = {"z": _Published(0.5, 10**9, 2**62), "w+": _Published(0.3, 5000, 20)}
_QUEUE_ENTRIES, _QUEUE_NUMBERS = 1 << 14, 1 << 26


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
    max_pops: int | None = None,
    max_no_face: int | None = None,
    lineages: int = 1,
    population: int = 64,
    max_queue: int | None = None,
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
      up to `population` − 1 individuals are evaluated that a lineage ended by `max_no_face` would not have reached.
    - Root candidates are scanned `population` at a time, and that is how many `evolve` draws. The scan may find more
      roots than there are free lineages: these wait, in order, for a free one, and are successes like any other, so
      that an archive may hold roots without descendants.
    - Roots must show a face, as all others must. The published scan for roots looks at the label alone, and in Z
      nothing looks for faces: a fitness without a detector is that.
    - What the target group is, its gate, and truncation are the fitness's. Published: the most probable label whatever
      its probability, and ψ = 0.7, which is `face_fitness(…, min_confidence=0, truncation_psi=0.7)`.
    - The published queue begins with the root and its children, so that the root is synthesised again and has children
      again. Here it has both broods at once and is not evaluated again.
    - The queue is finite. Children that find it full are lost, and counted in `state.dropped` and the archive's report.
      The first `max_queue` individuals of a lineage are those of an endless queue all the same (if `lineages` is 1),
      since whoever is lost stood behind as many. A capacity of lineages · ((children − 1) · max_pops + children + 1)
      never overflows.

    The older published W+ variant is `branching_walk("w+", spread=σ, children=10, max_pops=500)`: steps U(−3, 3)·σ.

    Args:
        space: "z": normal steps; "w+": uniform steps, independent for each layer.
        scale: standard deviation ("z"), half-width ("w+") or half-width in units of `spread`. None: the published 0.5,
            0.3 and 3.
        children: of each survivor.
        max_pops: individuals of a lineage that may have children, in the order they leave the queue, the root included.
            None: the published 10⁹ in Z and 5,000 in W+ (where white faces had 1,000).
        max_no_face: failed face detections a lineage may have; one more ends it. None: as published, 20 in W+ and no
            limit in Z.
        lineages: that live at a time in a group. Published: 1.
        population: candidates a generation, P.
        max_queue: capacity of a group's queue, ≥ P; it takes that much memory from the start, and in a saved archive.
            None: what never overflows, but at most 16,384 entries and 2²⁶ numbers (256 MiB in single precision), which
            is 7,281 entries of 18 × 512.
        spread: σ [*shape]: steps are uniform in ±scale·σ.
        crossover: probability that a child starts from a uniform mix of its parent and a survivor of the same
            generation and group. Published: 0.
        identity_gate: only new identities have children; needs a `threshold` in `evolve`. Published: off.
        pull: shrinks every child towards `centre`: c + (1 − pull)(child − c). In Z, 1 − 1/√(1 + scale²) keeps the norm
            of the prior. Published: 0.
        centre: [*shape] or a number: 0 for Z, w_avg for W+.

    Raises:
        DataError: arguments out of range.
    """
    check_choice("space", space, Space)
    check(scale is None or scale > 0, "scale > 0, or None", scale)
    default = _PUBLISHED[space]
    max_pops = default.max_pops if max_pops is None else max_pops
    max_no_face = default.max_no_face if max_no_face is None else max_no_face
    check(min(children, max_pops, lineages, population) >= 1, "children, max_pops, lineages, population ≥ 1", None)
    check(max_queue is None or max_queue >= population, f"max_queue ≥ population = {population}", max_queue)
    check(max_no_face >= 0, "max_no_face ≥ 0", max_no_face)
    check(0 <= crossover <= 1 and 0 <= pull < 1, "crossover in [0, 1], pull in [0, 1)", f"{crossover}, {pull}")
    uniform = space == "w+" or spread is not None
    if scale is None:
        scale = default.scale if spread is None else 3.0
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
        space=space,
        needs_identities=identity_gate,
        settings=settings_text(walk._asdict() | {"max_queue": max_queue}),
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


def _capacity(walk: _Walk, shape: tuple[int, ...]) -> int:
    """Of the default queue: what never overflows, as far as that is affordable."""
    enough = walk.lineages * ((walk.children - 1) * walk.max_pops + walk.children + 1)
    return max(walk.population, min(enough, _QUEUE_ENTRIES, _QUEUE_NUMBERS // math.prod(shape)))


def _init_walk(walk: _Walk, max_queue: int | None, x0: Tensor, start: Tensor | int = 0) -> WalkState:
    first = first_id(x0, start, walk.population)
    groups, pool, shape = x0.shape[0], x0.shape[1], x0.shape[2:]
    max_queue = _capacity(walk, shape) if max_queue is None else max_queue
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
    candidates = gather_rows(state.pool, index.clamp(0, state.pool.shape[1] - 1))
    id = torch.where(queued, front.id, (state.pool_id.unsqueeze(1) + index).where(scanning, -1))
    proposal = Proposal(
        latents=torch.where(like(queued, candidates), front.latents, candidates),
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
    check_evaluation(proposal, evaluation)
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
        roots=torch.where(like(started, state.roots), gather_rows(state.pool, which), state.roots),
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
        mates = gather_rows(proposal.latents, pick(survivor, base.shape[1] * walk.children, rng)).view_as(base)
        mixed = torch.rand(base.shape[:3], generator=rng, device=base.device) < walk.crossover
        coin = torch.rand(base.shape, generator=rng, device=base.device) < 0.5
        base = torch.where(like(mixed, base) & coin, mates, base)
    children = _pulled(walk, base + steps(proposal.latents, walk.children, walk.mutation, walk.width, rng))
    root = gather_rows(state.roots, lineage).unsqueeze(2)
    keep = fertile.unsqueeze(2) & (norm(children - root) > norm(parents - root))
    return _entries(children, proposal.id, proposal.depth, lineage, keep)


def _first_broods(walk: _Walk, state: WalkState, started: Tensor, rng: torch.Generator | None) -> _Entries:
    """Children of new roots: the brood that the published queue begins with, and the one when the root is popped."""
    count = 2 * walk.children
    children = state.roots.unsqueeze(2) + steps(state.roots, count, walk.mutation, walk.width, rng)
    slots = torch.arange(walk.lineages, device=started.device).expand_as(started)
    keep = started.unsqueeze(2).expand(-1, -1, count)
    return _entries(_pulled(walk, children), state.root_id, torch.zeros_like(slots), slots, keep)


def _pulled(walk: _Walk, x: Tensor) -> Tensor:
    if not walk.pull:
        return x
    centre = as_like(walk.centre, x)
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
        **{name: gather_rows(getattr(both, name), order) for name in ("latents", "id", "parent", "depth", "lineage")},
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
