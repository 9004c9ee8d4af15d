"""Quality diversity: MAP-Elites as a strategy, and centroidal cells for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ShapeError
from .base import (
    Evaluation,
    Proposal,
    Strategy,
    check,
    checked_fitness,
    first_id,
    gather_rows,
    like,
    pick,
    propose,
    settings_text,
    steps,
    wide,
)

_DISTANCES = 1 << 24  # held at a time by `cvt_centroids`, 64 MiB


class ElitesState(NamedTuple):
    """State of `map_elites`: C cells, fitness −inf where a cell is empty.

    Attributes:
        latents [G, C, *shape], fitness [G, C], measures [G, C, m], id, root, depth [G, C]: the elites.
        first [G, P, *shape], first_id [G]: x0 and its first id.
        next_id, generation: [G].
    """

    latents: Tensor
    fitness: Tensor
    measures: Tensor
    id: Tensor
    root: Tensor
    depth: Tensor
    first: Tensor
    first_id: Tensor
    next_id: Tensor
    generation: Tensor


def map_elites(
    population: int = 64,
    *,
    low: Sequence[float],
    high: Sequence[float],
    cells: Sequence[int] = (8, 3, 3),
    centroids: Tensor | None = None,
    iso: float | Tensor = 0.1,
    line: float = 0.2,
    only_successes: bool = False,
) -> Strategy:
    """MAP-Elites (Mouret & Clune 2015): keep the fittest candidate of every cell of the space of measures.

    Children are x₁ + iso·N(0, I) + line·N(0, 1)·(x₂ − x₁) of two random elites (Vassiliades & Mouret 2018, "iso+line").
    While a group has no elite, its children come from x0. Of equals in a cell, the first one found stays.

    Their latents have bounds, those of a generator have none, and the line part widens what it starts from: without a
    term for the prior's typical set in the fitness, norms grow without end.

    Args:
        population: P.
        low, high: range of each of the m measures. What lies outside counts to the outermost cells.
        cells: number of cells along each measure.
        centroids: [C, m], cells are the nearest centroid's instead, in units of the ranges (Vassiliades et al. 2018);
            see `cvt_centroids`. `cells` is then not used.
        iso: standard deviation of the isotropic part, a number or [*shape].
        line: of the part along the line between the parents.
        only_successes: only candidates in the target group and with a face enter the archive; otherwise all whose
            fitness is above −inf. Candidates whose measures are not finite never do.

    Raises:
        DataError: arguments out of range.
        ShapeError: centroids that do not fit, or an evaluation without the m measures.
    """
    settings = settings_text(locals())
    check(population >= 1, "population ≥ 1", population)
    _check_ranges(low, high)
    size = len(low)
    if centroids is None:
        check(len(cells) == size and min(cells) >= 1, f"a number of cells ≥ 1 for each of {size} measures", cells)
    elif centroids.ndim != 2 or centroids.shape[1] != size:
        raise ShapeError("centroids do not fit the ranges", expected=f"[C, {size}]", got=list(centroids.shape))
    total = math.prod(cells) if centroids is None else len(centroids)
    centres = None if centroids is None else _unit(centroids, low, high)

    def init(x0: Tensor, start: Tensor | int = 0) -> ElitesState:
        first = first_id(x0, start, population)
        none = torch.full((len(first), total), -1, dtype=torch.int64, device=x0.device)
        return ElitesState(
            latents=x0.new_zeros(*none.shape, *x0.shape[2:]),
            fitness=torch.full(none.shape, -math.inf, dtype=wide(x0), device=x0.device),
            measures=torch.zeros(*none.shape, size, dtype=wide(x0), device=x0.device),
            id=none,
            root=none,
            depth=none,
            first=x0[:, :population],
            first_id=first,
            next_id=first,
            generation=torch.zeros_like(first),
        )

    def ask(state: ElitesState, rng: torch.Generator | None = None) -> tuple[Proposal, ElitesState]:
        occupied = state.fitness > -math.inf
        none = ~occupied.any(1, keepdim=True)
        chosen = pick(occupied, 2 * population, rng)
        fallback = torch.randint(population, chosen.shape, generator=rng, device=chosen.device)
        fresh, elite = gather_rows(state.first, fallback), gather_rows(state.latents, chosen)
        x = torch.where(like(none, elite), fresh, elite)
        one, two = x.split(population, dim=1)
        step = steps(one, 1, "gaussian", iso, rng).squeeze(2)
        along = torch.randn(one.shape[:2], generator=rng, dtype=one.dtype, device=one.device)
        children = one + step + line * like(along, one) * (two - one)
        chosen = chosen[:, :population]
        own = state.first_id.unsqueeze(1) + fallback[:, :population]
        parent, root = (torch.where(none, own, field.gather(1, chosen)) for field in (state.id, state.root))
        depth = state.depth.gather(1, chosen).masked_fill(none, 0) + 1
        return propose(state, state.first, children, parent, root, depth)

    def tell(
        state: ElitesState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
    ) -> ElitesState:
        fitness = checked_fitness(proposal, evaluation, state.fitness.dtype)
        measures = evaluation.measures.to(state.measures.dtype)
        if measures.shape != (*fitness.shape, size):
            raise ShapeError("measures do not fit", expected=[*fitness.shape, size], got=list(measures.shape))
        known = measures.isfinite().all(-1)
        if only_successes:
            known = known & evaluation.success & evaluation.found
        fitness = fitness.masked_fill(~known, -math.inf)
        winner = _winners(fitness, _cell(measures, low, high, cells, centres), state.fitness)
        new, winner = winner >= 0, winner.clamp_min(0)

        def elites(candidates: Tensor, held: Tensor) -> Tensor:
            return torch.where(like(new, held), gather_rows(candidates, winner), held)

        return state._replace(
            latents=elites(proposal.latents, state.latents),
            fitness=elites(fitness, state.fitness),
            measures=elites(measures, state.measures),
            id=elites(proposal.id, state.id),
            root=elites(proposal.root, state.root),
            depth=elites(proposal.depth, state.depth),
            generation=state.generation + 1,
        )

    return Strategy("MAP-Elites", population, init, ask, tell, settings=settings)


def cvt_centroids(
    cells: int,
    low: Sequence[float],
    high: Sequence[float],
    rng: torch.Generator | None = None,
    *,
    samples: int | None = None,
    iterations: int = 50,
) -> Tensor:
    """Centroids [cells, m] of a centroidal Voronoi tessellation of a box (Vassiliades et al. 2018, algorithm 2).

    k-means (Lloyd) over uniform samples, in units of the ranges, on the device of `rng` (CPU without one). Time grows
    with samples · cells, memory with samples alone.

    Args:
        cells: number of centroids.
        low, high: range of each of the m measures.
        rng: for the samples; the first `cells` of them are where k-means begins.
        samples: 100 for each cell by default.
        iterations: of k-means.

    Raises:
        DataError: arguments out of range.
    """
    _check_ranges(low, high)
    samples = 100 * cells if samples is None else samples
    check(1 <= cells <= samples and iterations >= 1, "1 ≤ cells ≤ samples, iterations ≥ 1", f"{cells}, {samples}")
    x = torch.rand(samples, len(low), generator=rng, device=rng.device if rng is not None else None)
    centres = x[:cells]
    for _ in range(iterations):
        nearest = torch.cat([torch.cdist(part, centres).argmin(1) for part in x.split(max(1, _DISTANCES // cells))])
        count = torch.zeros(cells, device=x.device).index_add(0, nearest, torch.ones_like(x[:, 0])).unsqueeze(1)
        mean = torch.zeros_like(centres).index_add(0, nearest, x) / count.clamp_min(1)
        centres = torch.where(count > 0, mean, centres)
    bottom, top = (torch.tensor(edge, dtype=x.dtype, device=x.device) for edge in (list(low), list(high)))
    return bottom + centres * (top - bottom)


def _unit(measures: Tensor, low: Sequence[float], high: Sequence[float]) -> Tensor:
    return torch.stack([(measures[..., i] - a) / (b - a) for i, (a, b) in enumerate(zip(low, high, strict=True))], -1)


def _cell(
    measures: Tensor, low: Sequence[float], high: Sequence[float], cells: Sequence[int], centres: Tensor | None
) -> Tensor:
    """Cell [G, P] of measures [G, P, m]: row-major on the grid, or the nearest of the centres."""
    unit = _unit(measures, low, high).nan_to_num().clamp(0, 1)
    if centres is not None:
        return torch.cdist(unit, centres.to(unit)).argmin(-1)
    cell = torch.zeros_like(unit[..., 0], dtype=torch.int64)
    for i, n in enumerate(cells):
        cell = cell * n + (unit[..., i] * n).long().clamp(max=n - 1)
    return cell


def _winners(fitness: Tensor, cell: Tensor, held: Tensor) -> Tensor:
    """Slot [G, C] of the candidate that takes each cell, −1 where none beats what it holds; of equals, the first."""
    best = held.scatter_reduce(1, cell, fitness, "amax")
    wins = (fitness == best.gather(1, cell)) & (fitness > held.gather(1, cell))
    slots = fitness.shape[1]
    slot = torch.arange(slots, device=cell.device).expand_as(cell).where(wins, slots)
    first = torch.full_like(held, slots, dtype=torch.int64).scatter_reduce(1, cell, slot, "amin")
    return first.where(first < slots, -1)


def _check_ranges(low: Sequence[float], high: Sequence[float]) -> None:
    ok = 0 < len(low) == len(high) and all(-math.inf < a < b < math.inf for a, b in zip(low, high, strict=True))
    check(ok, "low < high, finite, one each for every measure", f"low={list(low)}, high={list(high)}")
