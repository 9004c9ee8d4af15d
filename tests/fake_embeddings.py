"""Embeddings without an embedder: random unit vectors, alone or around the people they are of."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def unit_rows(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(x, dim=1).to(dtype)


def noisy_faces(identities: int, faces: int, spread: float, d: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy faces of some people, shuffled, and whose they are."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.arange(identities).repeat_interleave(faces)
    x = unit_rows(identities, d, seed)[ids] + spread * torch.randn(len(ids), d, generator=rng, dtype=torch.float64)
    order = torch.randperm(len(ids), generator=rng)
    return nn.functional.normalize(x, dim=1)[order], ids[order]
