"""Cosines of embeddings: the precision they are compared in, pair by pair or in blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def cosine_dtype(x: Tensor) -> torch.dtype:
    """Half-precision embeddings are compared in float32, a block at a time."""
    return torch.promote_types(x.dtype, torch.float32)


def take_rows(x: Tensor, rows: Tensor | slice) -> Tensor:
    """Some of the embeddings, in the precision they are compared in."""
    return x[rows].to(cosine_dtype(x))


def pair_cosines(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Cosines [m] of embeddings [n, e] by their rows, int64 [m] each; 65,536 pairs at a time."""
    parts = zip(first.split(65536), second.split(65536), strict=True)
    return torch.cat([(take_rows(x, a) * take_rows(x, b)).sum(1) for a, b in parts])


class BlockProduct:
    """Products of row blocks, all into one buffer instead of fresh memory for each."""

    def __init__(self, x: Tensor, block: int) -> None:
        self.block, self.length = block, 0
        self.buffer = x.new_empty(0, dtype=cosine_dtype(x))

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a·bᵀ; valid until the next call."""
        size = len(a) * len(b)
        if size > self.length:
            self.buffer, self.length = self.buffer.new_empty(size), size
        return torch.mm(a, b.T, out=self.buffer[:size].view(len(a), len(b)))
