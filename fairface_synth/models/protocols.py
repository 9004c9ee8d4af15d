"""The three small protocols that the library asks of a model, and a wrapper for each, for models of yours.

Images are float RGB in [-1, 1], NCHW, everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DataError, ShapeError
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

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
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
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ShapeError("wrong latents", expected=f"z [n, {self.z_dim}]", got=list(z.shape))
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
        """w [n, num_ws, w_dim] → images [n, 3, resolution, resolution]; `noise` is the callable's own business."""
        images = self._synthesize(w)
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ShapeError(
                "the wrapped synthesize returned something that is not a batch of images",
                expected="[n, 3, H, W] float RGB in [-1, 1]",
                got=f"{list(images.shape)} {images.dtype}",
                fix="uint8: ffs.from_uint8(images)",
            )
        side = self.resolution or images.shape[3]
        if images.shape[2:] != (side, side):
            raise ShapeError(
                "the wrapped synthesize returned images of another size",
                expected=f"[n, 3, {side}, {side}]",
                got=list(images.shape),
                fix="square images, and wrap_generator(resolution=…) with their side; left out, it is measured",
            )
        return images


def wrap_generator(
    *,
    map: Callable[[Tensor], Tensor] | None = None,
    synthesize: Callable[[Tensor], Tensor],
    z_dim: int,
    w_dim: int | None = None,
    num_ws: int | None = None,
    resolution: int | None = None,
    w_avg: Tensor | None = None,
    device: torch.device | str | None = None,
) -> WrappedGenerator:
    """Make any model that maps z → w → image usable wherever the library asks for a generator.

    What is not given is found out by calling the callables once.

    Args:
        map: z [n, z_dim] → w [n, w_dim] or [n, num_ws, w_dim]. None: the identity (w = z).
        synthesize: w [n, num_ws, w_dim] → square images [n, 3, H, H], float RGB in [-1, 1]. Mind the second
            dimension: a model without layers has num_ws = 1 and takes w[:, 0].
        z_dim: width of z ~ N(0, I).
        w_dim: width of w.
        num_ws: number of w vectors an image takes; 1 where `map` gives [n, w_dim].
        resolution: image side H in pixels; every batch is checked against it.
        w_avg: mean latent [w_dim] for truncation. None: zeros for the identity map, otherwise the mean of
            4,096 mapped latents (seed 0).
        device: where the callables live.

    Raises:
        ShapeError: when a callable returns something of another shape; from the generator's own calls too.
    """
    with torch.no_grad():
        z = normals(0, torch.arange(2 if w_avg is not None or map is None else 4096, device=device), z_dim)
        w = z if map is None else map(z)
        if w.ndim not in (2, 3) or len(w) != len(z):
            raise ShapeError(
                "the wrapped map returned the wrong shape",
                expected=f"[{len(z)}, w_dim] or [{len(z)}, num_ws, w_dim]",
                got=list(w.shape),
            )
        w_dim = w.shape[-1] if w_dim is None else w_dim
        num_ws = (w.shape[1] if w.ndim == 3 else 1) if num_ws is None else num_ws
        if w_avg is None:
            w_avg = torch.zeros(w_dim, device=device) if map is None else w.float().flatten(0, -2).mean(0)
        wrapped = WrappedGenerator(map, synthesize, z_dim, w_dim, num_ws, resolution or 0, w_avg)
        if resolution is None:
            wrapped.resolution = wrapped.synthesize(wrapped.map(z[:1])).shape[-1]
    return wrapped


class WrappedLabeller:
    """A labeller made of a function; see `wrap_labeller`."""

    def __init__(
        self, function: Callable[[Tensor], Mapping[str, Tensor]], attributes: Mapping[str, Sequence[str]]
    ) -> None:
        self._function = function
        self.attributes = {a: tuple(v) for a, v in attributes.items()}

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        """images [n, 3, H, W] → {attribute: probabilities [n, k]}."""
        return self._function(images)

    def __repr__(self) -> str:
        return f"WrappedLabeller({self.attributes})"


def wrap_labeller(
    function: Callable[[Tensor], Mapping[str, Tensor]], attributes: Mapping[str, Sequence[str]]
) -> WrappedLabeller:
    """Make a function of yours usable wherever the library asks for a labeller.

    Args:
        function: images [n, 3, H, W] in [-1, 1] → {attribute: probabilities [n, k]}, after softmax.
        attributes: each attribute's values, in the order of the columns.
    """
    return WrappedLabeller(function, attributes)


class WrappedEmbedder(nn.Module):
    """An embedder made of a function; see `wrap_embedder`. A module, so that a wrapped one's weights are seen."""

    def __init__(self, function: Callable[[Tensor], Tensor], dim: int) -> None:
        super().__init__()
        self.function, self.dim = function, dim
        self.training = False
        self.__qualname__ = f"wrap_embedder({getattr(function, '__qualname__', type(function).__qualname__)})"

    def forward(self, images: Tensor) -> Tensor:
        """images [n, 3, H, W] → unit vectors [n, dim]."""
        vectors = self.function(images)
        if not (
            isinstance(vectors, Tensor) and vectors.shape == (len(images), self.dim) and vectors.is_floating_point()
        ):
            raise ShapeError(
                "the wrapped function returned something that is not a vector for each image",
                expected=f"float [{len(images)}, {self.dim}]",
                got=f"{list(vectors.shape)} {vectors.dtype}" if isinstance(vectors, Tensor) else type(vectors).__name__,
                fix="wrap_embedder(function, dim=…) with the vectors' own width; of several outputs return one",
            )
        return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)

    def __repr__(self) -> str:
        return f"WrappedEmbedder({self.__qualname__}, dim={self.dim})"


def wrap_embedder(function: Callable[[Tensor], Tensor], dim: int) -> WrappedEmbedder:
    """Make a function or module of yours usable wherever the library asks for an embedder.

    Its vectors are brought to length 1 and, below float32, to float32; nothing else is done. Images come as they are,
    of the generator's or the set's size: the function brings them to the size, crop and range that its network knows.

    Caches and fingerprints know a module by its weights, a function by its name and by what it does on fixed images:
    two functions that both are lambdas share a name.

    Args:
        function: images [n, 3, H, W], float RGB in [-1, 1] → vectors [n, dim] of any length but 0.
        dim: their width.

    Raises:
        DataError: a module in training mode, whose vectors may depend on their batch.
        ShapeError: from the embedder's calls, when the function returns something of another shape.
    """
    if getattr(function, "training", False):
        raise DataError(
            "an embedder in training mode: its vectors may depend on their batch",
            expected="evaluation mode",
            got=f"a {type(function).__name__} with training=True",
            fix="model.eval() first",
        )
    return WrappedEmbedder(function, dim)
