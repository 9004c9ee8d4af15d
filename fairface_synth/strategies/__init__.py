"""Evolutionary strategies as `(init, ask, tell)` of pure functions over an immutable state."""

from .base import Evaluation, Proposal, Strategy
from .elites import cvt_centroids, map_elites
from .optimisers import cem, genetic, snes
from .qd import Explored, explore
from .walk import branching_walk

__all__ = [
    "Evaluation",
    "Explored",
    "Proposal",
    "Strategy",
    "branching_walk",
    "cem",
    "cvt_centroids",
    "explore",
    "genetic",
    "map_elites",
    "snes",
]
