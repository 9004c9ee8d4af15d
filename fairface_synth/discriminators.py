"""Scores of a discriminator, in the range that it was trained on and in that of published scores.

Grissom II et al. 2024 (arXiv 2402.09786) scored natural images with StyleGAN3's discriminator and found that the score
rises with luminance and red. What may be concluded: docs/audits.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .artifacts import has_values
from .covariates import check_rgb
from .errors import DataError, ShapeError
from .images import from_uint8, to_uint8

InputRange = Literal["minus1_1", "uint8_raw"]
Resize = Literal["antialias", "torchvision", "none"]


@torch.no_grad()
def score(
    discriminator: Any,
    images: Tensor,
    input_range: InputRange = "minus1_1",
    *,
    resize: Resize = "antialias",
    group_size: int | None = 1,
    batch_size: int = 32,
    c: Tensor | None = None,
) -> Tensor:
    """Raw logits of a discriminator [n], float32, on the images' device; higher is more like its training images.

    `input_range` decides what is being asked. "minus1_1" is what StyleGAN's discriminators are trained on.
    "uint8_raw" feeds 0–255 values, as the published scoring scripts do (methods of Grissom et al.: all scores of the
    paper are such): about 127 times outside of the trained range and offset, so it reproduces published scores and says
    little of what the network learned. Report both.

    Args:
        discriminator: an object with `score(images, c, group_size)`, such as `load_discriminator` gives; or any
            callable images → logits [n] or [n, 1]. Batches are moved to the device of a module's weights.
        images: [n, 3, H, W], float in [-1, 1], or uint8 0–255, which is converted exactly. In the raw range floats are
            rounded to uint8 first, as a file would hold them.
        input_range: "minus1_1" or "uint8_raw".
        resize: to the discriminator's square `resolution` (without one, images go in as they are); other aspect
            ratios are stretched. "antialias": bilinear with antialiasing, torchvision's default for tensors since
            0.17. "torchvision": bilinear without (`antialias=False`), as the later published script has it and
            torchvision did by default before 0.17. "none": the images must have the size already. In the raw range the
            resized values are rounded to whole numbers, as torchvision does with uint8.
        group_size: images that share a minibatch's statistics; consecutive ones. 1 makes a score independent of its
            batch, and is what the paper has (batch size 1). A callable without `score` gets batches of so many images:
            with 1, one at a time. None passes batches as they are, whatever leaks between their images.
        batch_size: images at a time.
        c: condition of a conditional discriminator, [n, c_dim], or one row for all.

    Raises:
        ShapeError: not images, sizes that do not fit, an output that is not one logit an image.
        DataError: no images, images out of range, unknown options, NaN logits.
    """
    n = check_rgb(images)
    check_options(input_range, resize, group_size, batch_size)
    if group_size is not None and n % group_size:
        raise ShapeError(
            "groups that share statistics must be whole",
            expected=f"a multiple of {group_size} images",
            got=n,
            fix="group_size=1 gives scores that do not depend on other images",
        )
    size = batch_size if group_size is None else max(1, batch_size // group_size) * group_size
    parts = []
    for i in range(0, n, size):
        x = prepare(discriminator, images[i : i + size], input_range, resize)
        parts.append(logits_of(discriminator, x, condition_rows(c, i, i + size, n), group_size))
    return check_finite(torch.cat(parts).to(images.device))


# --- the steps of a score ---------------------------------------------------------------------------------------------


def check_options(input_range: str, resize: str, group_size: int | None, batch_size: int) -> None:
    """DataError for options that `score` does not know."""
    if input_range not in ("minus1_1", "uint8_raw"):
        raise DataError("unknown input range", expected="'minus1_1' or 'uint8_raw'", got=repr(input_range))
    if resize not in ("antialias", "torchvision", "none"):
        raise DataError("unknown resize", expected="'antialias', 'torchvision' or 'none'", got=repr(resize))
    if batch_size < 1 or (group_size is not None and group_size < 1):
        got = f"batch_size={batch_size}, group_size={group_size}"
        raise DataError("no images at a time", expected="batch_size ≥ 1; group_size ≥ 1 or None", got=got)


def to_device(discriminator: Any, images: Tensor) -> Tensor:
    """The images where the discriminator's weights are; as they are if it has none."""
    weights = _weights(discriminator)
    return images if weights is None else images.to(weights.device)


def prepare(discriminator: Any, images: Tensor, input_range: str, resize: str) -> Tensor:
    """What the discriminator is given: on its device, in the range, of its size."""
    images, weights = to_device(discriminator, images), _weights(discriminator)
    dtype = torch.float64 if weights is not None and weights.dtype == torch.float64 else torch.float32
    if input_range == "uint8_raw":
        x = (images if images.dtype == torch.uint8 else to_uint8(images)).to(dtype)
    else:
        x = (from_uint8(images) if images.dtype == torch.uint8 else images).to(dtype)
    side = getattr(discriminator, "resolution", None)
    if side is None or x.shape[-2:] == (side, side):
        return x
    if resize == "none":
        raise ShapeError(
            "the images do not have the discriminator's size",
            expected=[side, side],
            got=list(x.shape[-2:]),
            fix="resize='antialias'",
        )
    x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=resize == "antialias")
    return x.round() if input_range == "uint8_raw" else x


def condition_rows(c: Tensor | None, start: int, stop: int, n: int) -> Tensor | None:
    """The conditions of images start … stop − 1 of n; one row is for all."""
    if c is None:
        return None
    if c.ndim != 2 or len(c) not in (1, n):
        raise ShapeError("c does not fit", expected=f"[1 or {n}, c_dim]", got=list(c.shape))
    return c.expand(n, -1)[start:stop]


def logits_of(discriminator: Any, x: Tensor, c: Tensor | None, group_size: int | None) -> Tensor:
    """Logits float32 [b] of a batch that is as the discriminator takes it."""
    own = getattr(discriminator, "score", None)
    if own is None and not callable(discriminator):
        raise DataError(
            "this is no discriminator",
            expected="score(images, c, group_size), or a callable images → logits",
            got=type(discriminator).__name__,
        )
    if own is None and c is not None:
        raise DataError(
            "only a discriminator with `score` takes c", got=type(discriminator).__name__, fix="lambda x: D(x, c)"
        )
    # A network that knows about groups of one takes them side by side.
    size = len(x) if group_size is None or (own is not None and group_size == 1) else group_size
    parts = []
    for i in range(0, len(x), size):
        batch = x[i : i + size]
        condition = None if c is None else c[i : i + size].to(x.device)
        logits = discriminator(batch) if own is None else own(batch, condition, group_size)
        shape = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if shape not in ([len(batch)], [len(batch), 1]):
            raise ShapeError("a discriminator gives one logit an image", expected=[len(batch)], got=shape)
        parts.append(logits.reshape(-1).float())
    return torch.cat(parts)


def check_finite(scores: Tensor) -> Tensor:
    """The scores as they are; an error if some are NaN or infinite."""
    if has_values(scores) and not bool(scores.isfinite().all()):
        raise DataError(
            "the discriminator gave NaN or infinite scores",
            got=f"{int((~scores.isfinite()).sum())} of {scores.numel()}",
            fix="check the checkpoint; raw 0–255 input can overflow half precision",
        )
    return scores


def _weights(discriminator: Any) -> Tensor | None:
    """Its first weights, which say where and in which precision it computes; None for a plain function."""
    return next(discriminator.parameters(), None) if isinstance(discriminator, nn.Module) else None
