"""Evolutionary strategies as `(init, ask, tell)` of pure functions over an immutable state.

All groups evolve in one batch: every tensor of a state leads with [groups], and candidates with [groups, population].
Strategies know nothing of generators or labellers; `evolve` (evolution.py) drives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Proposal(NamedTuple):
    """What a strategy wants evaluated.

    Attributes:
        latents: [G, P, *shape].
        valid: bool [G, P]; False: no candidate in this slot, its latents mean nothing and are not to be evaluated.
        id: int64 [G, P], unique within a group over a whole run.
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
        fitness: [G, P], higher is better; −inf for slots that were not valid.
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
        init: (x0 [G, P, *shape], start int64 [G] or 0) → state. x0 are individuals drawn from the prior, not evaluated
            yet; `start` is the first id to give out.
        ask: (state, rng) → (Proposal, state).
        tell: (state, Proposal, Evaluation) → state.
        restarts: whether a driver may begin anew from fresh draws when nothing new is found for a while.
    """

    name: str
    population: int
    init: Callable[..., Any]
    ask: Callable[..., tuple[Proposal, Any]]
    tell: Callable[..., Any]
    restarts: bool = True
