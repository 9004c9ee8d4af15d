"""Optimisers: a genetic algorithm, and search distributions (SNES, CEM)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..artifacts import has_values
from .base import (
    Evaluation,
    Proposal,
    Strategy,
    as_like,
    check,
    check_choice,
    checked_fitness,
    count_from,
    first_id,
    gather_rows,
    like,
    propose,
    settings_text,
    steps,
    wide,
)

Selection = Literal["tournament", "truncation"]
Crossover = Literal["uniform", "sbx", "spherical"]
GeneticMutation = Literal["gaussian", "uniform", "pcn"]


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
    mutation: GeneticMutation = "pcn",
    scale: float | Tensor = 0.2,
    rate: float = 1.0,
    elites: int = 4,
) -> Strategy:
    """A genetic algorithm: select two parents, cross, mutate; the best of the last generation survive.

    The default mutation is for Z, where the prior is N(0, I). Steps that are merely added, "gaussian" and "uniform",
    add up: where fitness is random, "gaussian" has brought ‖z‖/√d to 1.1 … 1.3 after 30 generations, and on it goes;
    "pcn" keeps it at 1 (tests/test_strategies.py measures both). To StyleGAN's mapping length means nothing but that
    the same step turns z less; other generators leave what they were trained on. In W and W+ the prior has another mean
    and covariance, and `evolve` refuses "pcn": take "gaussian", a `scale` in units of w, and `typicality` in the
    fitness.

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
        mutation: "pcn": √(1 − scale²)·x + scale·N(0, 1), which leaves N(0, I) as it is (preconditioned Crank-Nicolson;
            Cotter, Roberts, Stuart & White 2013); "gaussian": x + N(0, scale²); "uniform": x + U(−scale, scale).
        scale: a number or [*shape]; for "pcn" in (0, 1].
        rate: probability that a coordinate mutates.
        elites: parents that stay in the next generation's pool of parents, not evaluated again; `population` makes it
            a (μ + λ) scheme.

    Raises:
        DataError: arguments out of range.
    """
    settings = settings_text(locals())
    check_choice("selection", selection, Selection)
    check_choice("mutation", mutation, GeneticMutation)
    if crossover is not None:
        check_choice("crossover", crossover, Crossover)
    check(population >= 2 and tournament_size >= 1, "population ≥ 2, tournament_size ≥ 1", population)
    check(0 <= elites <= population, f"elites in 0 … {population}", elites)
    check(0 < truncation_share <= 1 and 0 < rate <= 1, "truncation_share, rate in (0, 1]", None)
    check(sbx_index >= 0, "sbx_index ≥ 0", sbx_index)
    if mutation == "pcn":
        width = torch.as_tensor(scale)
        check(not has_values(width) or bool(((width > 0) & (width <= 1)).all()), "scale in (0, 1]", scale)
    best = max(1, round(population * truncation_share))

    def init(x0: Tensor, start: Tensor | int = 0) -> GeneticState:
        first = first_id(x0, start, population)
        ids = count_from(first, population)
        fitness = torch.full(ids.shape, -math.inf, dtype=wide(x0), device=x0.device)
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
        one, two = (gather_rows(state.latents, half) for half in chosen.split(population, dim=1))
        x = one if crossover is None else _cross(one, two, crossover, sbx_index, rng)
        children = _mutate(x, mutation, scale, rng)
        if rate < 1:
            children = torch.where(torch.rand(x.shape, generator=rng, device=x.device) < rate, children, x)
        parent, root, depth = (field.gather(1, chosen[:, :population]) for field in (state.id, state.root, state.depth))
        return propose(state, state.latents, children, parent, root, depth + 1)

    def tell(
        state: GeneticState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
    ) -> GeneticState:
        # Children first: among equals, not least where nothing has any fitness yet, the new ones win.
        fitness = checked_fitness(proposal, evaluation, state.fitness.dtype)
        fitness = torch.cat([fitness, state.fitness[:, :elites]], dim=1)
        order = fitness.argsort(dim=1, descending=True, stable=True)[:, :population]

        def survivors(new: Tensor, old: Tensor) -> Tensor:
            return gather_rows(torch.cat([new, old[:, :elites]], dim=1), order)

        return GeneticState(
            survivors(proposal.latents, state.latents),
            fitness.gather(1, order),
            survivors(proposal.id, state.id),
            survivors(proposal.root, state.root),
            survivors(proposal.depth, state.depth),
            state.next_id,
            state.generation + 1,
        )

    space = "z" if mutation == "pcn" else None
    return Strategy("genetic", population, init, ask, tell, space=space, settings=settings)


def _mutate(x: Tensor, mutation: GeneticMutation, scale: float | Tensor, rng: torch.Generator | None) -> Tensor:
    step = steps(x, 1, "uniform" if mutation == "uniform" else "gaussian", scale, rng).squeeze(2)
    if mutation == "pcn":
        x = (1 - as_like(scale, x) ** 2) ** 0.5 * x
    return x + step


def _cross(one: Tensor, two: Tensor, kind: str, sbx_index: float, rng: torch.Generator | None) -> Tensor:
    """One child [G, P, *shape] of each pair of parents."""
    if kind == "spherical":
        t = torch.rand(one.shape[:2], generator=rng, dtype=one.dtype, device=one.device)
        return _slerp(one, two, like(t, one))
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
    settings = settings_text(locals())
    check(population >= 2, "population ≥ 2", population)
    check(isinstance(step_size, Tensor) or step_size > 0, "step_size > 0", step_size)

    def init(x0: Tensor, start: Tensor | int = 0) -> DistributionState:
        first = first_id(x0, start, population)
        mean = x0.mean(1)
        scale = torch.ones_like(mean) * as_like(step_size, mean)
        return DistributionState(mean, scale, x0[:, :population], first, first, first, torch.zeros_like(first))

    def tell(
        state: DistributionState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
    ) -> DistributionState:
        fitness = checked_fitness(proposal, evaluation, wide(state.mean))
        utility = like(_utilities(fitness), proposal.latents).to(state.mean.dtype)
        rate = scale_rate
        if rate is None:
            size = math.prod(state.mean.shape[1:])
            rate = (3 + math.log(size)) / (5 * math.sqrt(size))
        s = (proposal.latents - state.mean.unsqueeze(1)) / state.scale.unsqueeze(1)
        mean = state.mean + mean_rate * state.scale * (utility * s).sum(1)
        scale = state.scale * torch.exp(rate / 2 * (utility * (s.square() - 1)).sum(1))
        return _moved(state, proposal, fitness, mean, scale)

    return Strategy("SNES", population, init, _ask_distribution, tell, settings=settings)


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
    settings = settings_text(locals())
    check(population >= 2, "population ≥ 2", population)
    check(0 < elite_share <= 1 and 0 <= smoothing < 1, "elite_share in (0, 1], smoothing in [0, 1)", None)
    elites = max(2, round(population * elite_share))

    def init(x0: Tensor, start: Tensor | int = 0) -> DistributionState:
        first = first_id(x0, start, population)
        scale = x0.std(1).clamp_min(as_like(min_scale, x0))
        return DistributionState(x0.mean(1), scale, x0[:, :population], first, first, first, torch.zeros_like(first))

    def tell(
        state: DistributionState, proposal: Proposal, evaluation: Evaluation, rng: torch.Generator | None = None
    ) -> DistributionState:
        fitness = checked_fitness(proposal, evaluation, wide(state.mean))
        top, index = fitness.topk(elites, dim=1)
        x = gather_rows(proposal.latents, index)
        weight = like(top > -math.inf, x).to(x.dtype)
        count = weight.sum(1)
        mean = (weight * x).sum(1) / count.clamp_min(1)
        scale = ((weight * (x - mean.unsqueeze(1)).square()).sum(1) / count.clamp_min(1)).sqrt()
        mean = torch.where(count > 0, mean.lerp(state.mean, smoothing), state.mean)
        scale = torch.where(count > 1, scale.lerp(state.scale, smoothing), state.scale)
        return _moved(state, proposal, fitness, mean, scale.clamp_min(as_like(min_scale, scale)))

    return Strategy("CEM", population, init, _ask_distribution, tell, settings=settings)


def _ask_distribution(
    state: DistributionState, rng: torch.Generator | None = None
) -> tuple[Proposal, DistributionState]:
    noise = steps(state.first, 1, "gaussian", 1.0, rng).squeeze(2)
    x = state.mean.unsqueeze(1) + state.scale.unsqueeze(1) * noise
    parent, root, depth = (
        field.unsqueeze(1).expand(x.shape[:2]) for field in (state.parent, state.root, state.generation)
    )
    return propose(state, state.first, x, parent, root, depth)


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
