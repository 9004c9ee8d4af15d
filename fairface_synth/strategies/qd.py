"""pyribs' CMA-MAE, driven over a subspace: the optional extra `[qd]`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, ShapeError
from ..subspaces import Subspace, lift
from .base import check
from .elites import _check_ranges


class Explored(NamedTuple):
    """Elites that `explore` found, fittest first.

    Attributes:
        latents: [n, *shape].
        coordinates: [n, m], theirs in the subspace.
        fitness: [n].
        measures: [n, k].
    """

    latents: Tensor
    coordinates: Tensor
    fitness: Tensor
    measures: Tensor


def explore(
    fitness: Callable[[Tensor, Tensor], Any],
    subspace: Subspace,
    *,
    low: Sequence[float],
    high: Sequence[float],
    cells: Sequence[int],
    minimum: float,
    row: int = 0,
    iterations: int = 100,
    emitters: int = 4,
    population: int = 36,
    sigma: float = 0.5,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> Explored:
    """CMA-MAE (Fontaine & Nikolaidis 2023) over the coordinates of a subspace, with pyribs.

    pyribs is stateful and runs on the CPU, so this is a loop of its own and no `Strategy`. A subspace of a few
    coordinates is what makes a full covariance affordable. Latents are `lift(subspace, coordinates, "mean")`: what the
    coordinates do not say is the average face's.

    Args:
        fitness: (latents [n, *shape], rows int64 [n]) → an object with `.fitness` [n] and `.measures` [n, k], tensors.
            Candidates whose fitness or measures are not finite count as the worst.
        subspace: searched from its mean.
        low, high: range of each of the k measures. What lies outside counts to the outermost cells.
        cells: number of cells along each measure.
        minimum: fitness that an elite has to exceed.
        row: what `rows` is filled with: the target.
        iterations: generations; each evaluates emitters · population candidates.
        emitters: independent CMA-ES searches that share an archive.
        population: candidates of each emitter and generation.
        sigma: step size at the start, in units of the coordinates (those of "lda" have unit variance within a group).
        learning_rate: how fast a cell's threshold follows its elites, in [0, 1]: 0 is CMA-ES, 1 is CMA-ME.
        seed: of the emitters.

    Raises:
        DataError: pyribs is missing, or arguments out of range.
        ShapeError: the evaluation does not fit.
    """
    _check_ranges(low, high)
    check(len(cells) == len(low) and min(cells) >= 1, f"a number of cells ≥ 1 for each of {len(low)} measures", cells)
    check(math.isfinite(minimum), "a finite minimum", minimum)
    check(iterations >= 1 and emitters >= 1 and population >= 2, "iterations, emitters ≥ 1, population ≥ 2", None)
    check(sigma > 0 and 0 <= learning_rate <= 1, "sigma > 0, learning_rate in [0, 1]", f"{sigma}, {learning_rate}")
    try:
        from ribs.archives import GridArchive
        from ribs.emitters import EvolutionStrategyEmitter
        from ribs.schedulers import Scheduler
    except ImportError as error:
        raise DataError("CMA-MAE needs pyribs", fix="pip install 'fairface_synth[qd]'") from error
    grid: dict[str, Any] = {
        "solution_dim": subspace.dim,
        "dims": list(cells),
        "ranges": list(zip(low, high, strict=True)),
        "threshold_min": minimum,
    }
    archive = GridArchive(**grid, learning_rate=learning_rate)
    start = [0.0] * subspace.dim
    searches = [
        EvolutionStrategyEmitter(
            archive,
            x0=start,
            sigma0=sigma,
            ranker="imp",
            selection_rule="mu",
            restart_rule="basic",
            batch_size=population,
            seed=seed + i,
        )
        for i in range(emitters)
    ]
    # The archive that steers the search forgets; this one keeps the best of each cell.
    elites = GridArchive(**grid, learning_rate=1.0)
    scheduler = Scheduler(archive, searches, result_archive=elites)
    mean = subspace.mean
    for _ in range(iterations):
        coordinates = torch.as_tensor(scheduler.ask(), dtype=mean.dtype, device=mean.device)
        rows = torch.full((len(coordinates),), row, dtype=torch.int64, device=mean.device)
        scheduler.tell(*_finite(fitness(lift(subspace, coordinates, "mean"), rows), rows, low, minimum))
    found = elites.data()
    order = found["objective"].argsort()[::-1].copy()
    coordinates, values, measures = (
        torch.as_tensor(found[name][order], dtype=mean.dtype, device=mean.device)
        for name in ("solution", "objective", "measures")
    )
    return Explored(lift(subspace, coordinates, "mean"), coordinates, values, measures)


# --- details ---------------------------------------------------------------------------------------------------------


def _finite(evaluation: Any, rows: Tensor, low: Sequence[float], minimum: float) -> tuple[Any, Any]:
    """Fitness and measures as pyribs wants them, numpy and finite."""
    fitness, measures = evaluation.fitness, evaluation.measures
    if fitness.shape != rows.shape or measures.shape != (len(rows), len(low)):
        raise ShapeError(
            "the evaluation does not fit",
            expected=f"fitness [{len(rows)}], measures [{len(rows)}, {len(low)}]",
            got=f"fitness {list(fitness.shape)}, measures {list(measures.shape)}",
        )
    fitness, measures = fitness.detach().double().cpu(), measures.detach().double().cpu()
    known = fitness.isfinite() & measures.isfinite().all(1)
    worst = fitness.where(known, minimum).clamp(max=minimum).min() - 1
    return fitness.where(known, worst).numpy(), measures.nan_to_num(0.0, 0.0, 0.0).numpy()
