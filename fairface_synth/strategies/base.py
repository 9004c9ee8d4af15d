"""What every strategy is made of: the contract, and a few helpers on tensors that lead with [groups, population].

All groups evolve in one batch. Strategies know nothing of generators or labellers; `evolve` (evolution.py) drives them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ..artifacts import has_values
from ..errors import DataError, ShapeError

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
        space: whose latents it is meant for, "z", "w" or "w+"; None: any.
        needs_identities: whether it reads `Evaluation.novel`, which means nothing unless identities are compared.
        settings: all that distinguishes it from others of its name, for `resume`.

    A state with a field `dropped` [G] tells the driver how many candidates were lost unseen since `init`.
    """

    name: str
    population: int
    init: Callable[..., Any]
    ask: Callable[..., tuple[Proposal, Any]]
    tell: Callable[..., Any]
    restarts: bool = True
    space: str | None = None
    needs_identities: bool = False
    settings: str = ""


# --- helpers ----------------------------------------------------------------------------------------------------------


def steps(
    parents: Tensor, count: int, mutation: Mutation, width: float | Tensor, rng: torch.Generator | None
) -> Tensor:
    """Random steps N(0, width²) or U(−width, width) from each parent: [G, n, *shape] → [G, n, count, *shape]."""
    shape = (*parents.shape[:2], count, *parents.shape[2:])
    if mutation == "uniform":
        noise = torch.rand(shape, generator=rng, dtype=parents.dtype, device=parents.device) * 2 - 1
    else:
        noise = torch.randn(shape, generator=rng, dtype=parents.dtype, device=parents.device)
    return noise * as_like(width, parents)


def propose(
    state: Any, first: Tensor, children: Tensor, parent: Tensor, root: Tensor, depth: Tensor
) -> tuple[Proposal, Any]:
    """x0 in the first generation, else children; every slot gets a new id."""
    count = first.shape[1]
    ids = count_from(state.next_id, count)
    new = (state.generation == 0).unsqueeze(1)
    proposal = Proposal(
        latents=torch.where(like(new, first), first, children),
        valid=torch.ones_like(ids, dtype=torch.bool),
        id=ids,
        parent=parent.masked_fill(new, -1),
        root=torch.where(new, ids, root),
        depth=depth.masked_fill(new, 0),
    )
    return proposal, state._replace(next_id=state.next_id + count)


def first_id(x0: Tensor, start: Tensor | int, population: int) -> Tensor:
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


def count_from(first: Tensor, count: int) -> Tensor:
    """first [G] → first … first + count − 1, [G, count]."""
    return first.unsqueeze(1) + torch.arange(count, device=first.device)


def check_evaluation(proposal: Proposal, evaluation: Evaluation) -> None:
    """ShapeError unless the evaluation has a number or a truth value [G, P] for each candidate."""
    for name in ("fitness", "success", "found", "novel"):
        value = getattr(evaluation, name)
        if value.shape != proposal.id.shape or (name != "fitness" and value.dtype != torch.bool):
            raise ShapeError(
                f"{name} of the evaluation does not fit the proposal",
                expected=f"{list(proposal.id.shape)}{'' if name == 'fitness' else ' torch.bool'}",
                got=f"{list(value.shape)} {value.dtype}",
            )


def checked_fitness(proposal: Proposal, evaluation: Evaluation, dtype: torch.dtype) -> Tensor:
    """Fitness [G, P], −inf where it is NaN or the slot was not valid."""
    check_evaluation(proposal, evaluation)
    fitness = evaluation.fitness.to(dtype)
    return fitness.masked_fill(fitness.isnan() | ~proposal.valid, -math.inf)


def pick(mask: Tensor, count: int, rng: torch.Generator | None) -> Tensor:
    """`count` random columns [G, count], with replacement, among those marked in mask [G, n]; 0 where none is."""
    total = mask.sum(1, keepdim=True)
    u = torch.rand(len(mask), count, generator=rng, dtype=torch.float64, device=mask.device)
    index = torch.minimum((u * total).long(), (total - 1).clamp_min(0))
    return (~mask).long().argsort(dim=1, stable=True).gather(1, index)


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """x [G, n, *shape], index [G, k] → [G, k, *shape]; copies whole rows, several times faster than `gather`."""
    first = torch.arange(len(x), device=x.device).unsqueeze(1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (first + index).flatten()).unflatten(0, index.shape)


def like(x: Tensor, other: Tensor) -> Tensor:
    """Append dimensions of size 1 until x has as many as other."""
    return x.view(*x.shape, *[1] * (other.ndim - x.ndim))


def as_like(value: float | Tensor, x: Tensor) -> float | Tensor:
    return value.to(x) if isinstance(value, Tensor) else value


def norm(x: Tensor) -> Tensor:
    """Norms over all but the first three dimensions, in at least single precision."""
    return torch.linalg.vector_norm(x.flatten(3), dim=3, dtype=wide(x))


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def settings_text(settings: dict[str, Any]) -> str:
    """Settings in words that are equal where the settings are; tensors by shape and hash. Reads tensors' values."""
    return ", ".join(f"{name}={_setting(value)}" for name, value in sorted(settings.items()))


def _setting(value: Any) -> str:
    if isinstance(value, Tensor):
        digest = "?"
        if has_values(value):
            digest = hashlib.blake2b(value.detach().double().cpu().numpy().tobytes(), digest_size=8).hexdigest()
        return f"{list(value.shape)} {digest}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(float(value)).removesuffix(".0")  # 1 and 1.0 are one setting
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"({', '.join(map(_setting, value))})"
    return str(value)


def check(condition: bool, expected: str, got: object) -> None:
    if not condition:
        raise DataError("argument out of range", expected=expected, got=got)


def check_choice(name: str, value: object, literal: Any) -> None:
    if value not in get_args(literal):
        raise DataError(f"unknown {name} {value!r}", expected=", ".join(get_args(literal)), got=value)
