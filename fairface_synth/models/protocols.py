"""The three small protocols that the library asks of a model, and `wrap_generator` for any generator of yours.

Images are float RGB in [-1, 1], NCHW, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import ShapeError
from ..latents import normals, truncate

NoiseMode = Literal["const", "random", "none"]


@runtime_checkable
class Generator(Protocol):
    """z → w → image. `w_avg` [w_dim] is the mean latent that truncation pulls towards."""

    z_dim: int
    w_dim: int
    num_ws: int
    c_dim: int
    resolution: int

    @property
    def w_avg(self) -> Tensor: ...

    def map(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """z [n, z_dim] (c [n, c_dim] for a conditional generator) → w [n, num_ws, w_dim]."""
        ...

    def synthesize(self, w: Tensor, noise: NoiseMode = "const") -> Tensor:
        """w [n, num_ws, w_dim] → images [n, 3, resolution, resolution]."""
        ...


@runtime_checkable
class Labeller(Protocol):
    """Attribute probabilities of images. `attributes` maps each attribute to its values, in column order."""

    attributes: Mapping[str, tuple[str, ...]]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """images [n, 3, H, W] → {attribute: probabilities [n, k]}, rows sum to 1."""
        ...


@runtime_checkable
class Embedder(Protocol):
    """Identity embeddings: unit vectors whose cosine compares two faces."""

    dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """images [n, 3, H, W] → unit vectors [n, dim]."""
        ...


class WrappedGenerator:
    """A generator made of two callables; see `wrap_generator`."""

    def __init__(
        self,
        map: Callable[[Tensor], Tensor] | None,
        synthesize: Callable[[Tensor], Tensor],
        z_dim: int,
        w_dim: int,
        num_ws: int,
        resolution: int,
        w_avg: Tensor,
    ) -> None:
        self.z_dim, self.w_dim, self.num_ws, self.c_dim = z_dim, w_dim, num_ws, 0
        self.resolution = resolution
        self.w_avg = w_avg
        self._map, self._synthesize = map, synthesize

    def __repr__(self) -> str:
        return (
            f"WrappedGenerator(z_dim={self.z_dim}, w_dim={self.w_dim}, num_ws={self.num_ws}, "
            f"resolution={self.resolution})"
        )

    def map(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """z [n, z_dim] → w [n, num_ws, w_dim], truncated towards `w_avg`."""
        if c is not None:
            raise ShapeError(
                "wrap_generator makes an unconditional generator",
                expected="c=None",
                got=f"c {tuple(c.shape)}",
                fix="bind the condition in your map: wrap_generator(map=lambda z: model.map(z, c), …)",
            )
        w = z if self._map is None else self._map(z)
        if w.ndim == 2:
            w = w.unsqueeze(1).expand(-1, self.num_ws, -1)
        if w.shape[1:] != (self.num_ws, self.w_dim):
            raise ShapeError(
                "the wrapped map returned the wrong shape",
                expected=f"[n, {self.w_dim}] or [n, {self.num_ws}, {self.w_dim}]",
                got=list(w.shape),
                fix="pass the model's own w_dim= and num_ws= to wrap_generator",
            )
        return truncate(w, self.w_avg, truncation_psi, truncation_cutoff)

    def synthesize(self, w: Tensor, noise: NoiseMode = "const") -> Tensor:
        """w [n, num_ws, w_dim] → images [n, 3, H, W]; `noise` is the wrapped callable's own business."""
        images = self._synthesize(w)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(
                "the wrapped synthesize returned something that is not a batch of images",
                expected="[n, 3, H, W] float RGB in [-1, 1]",
                got=list(images.shape),
            )
        return images


def wrap_generator(
    *,
    map: Callable[[Tensor], Tensor] | None = None,
    synthesize: Callable[[Tensor], Tensor],
    z_dim: int,
    resolution: int,
    w_dim: int | None = None,
    num_ws: int = 1,
    w_avg: Tensor | None = None,
    device: torch.device | str | None = None,
) -> WrappedGenerator:
    """Make any model that maps z → w → image usable wherever the library asks for a generator.

    Args:
        map: z [n, z_dim] → w [n, w_dim] or [n, num_ws, w_dim]. None: the identity (w = z).
        synthesize: w [n, num_ws, w_dim] → images [n, 3, H, W], float RGB in [-1, 1].
        z_dim: width of z ~ N(0, I).
        resolution: image side in pixels.
        w_dim: width of w; z_dim where not given.
        num_ws: number of w vectors an image takes.
        w_avg: mean latent [w_dim] for truncation. None: zeros for the identity map, otherwise the mean of
            4,096 mapped latents (seed 0).
        device: where that estimate is made; the callables' device.

    Raises:
        ShapeError: when a callable returns something of another shape.
    """
    w_dim = z_dim if w_dim is None else w_dim
    if w_avg is None:
        w_avg = torch.zeros(w_dim, device=device)
        if map is not None:
            with torch.no_grad():
                w = map(normals(0, torch.arange(4096, device=device), z_dim))
            w_avg = w.float().flatten(0, -2).mean(0)
    return WrappedGenerator(map, synthesize, z_dim, w_dim, num_ws, resolution, w_avg)
