"""Images at the library's border, and their colour: uint8 and files, CIELAB, the individual typology angle (ITA).

Inside the library images are float RGB in [-1, 1], NCHW.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, ShapeError

# Chardon, Cretois & Hourseau 1991; Del Bino & Bernerd 2013. Upper band edges in degrees, darkest band first.
ITA_EDGES = (-30.0, 10.0, 28.0, 41.0, 55.0)
ITA_BANDS = ("dark", "brown", "tan", "intermediate", "light", "very light")

_SRGB_TO_XYZ = (
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
)
_D65 = (0.95047, 1.0, 1.08883)


def check_range(images: Tensor) -> None:
    """DataError for images that are finite but cannot be in [-1, 1]: a mean magnitude over 2, as 0–255 has.

    Generators overshoot the range a little, so single values say nothing. Looks at the values once.
    """
    if not images.is_floating_point():
        raise ShapeError(
            "images are floats here", expected="float RGB in [-1, 1]", got=images.dtype, fix="ffs.from_uint8(images)"
        )
    if has_values(images) and images.numel() and not float(images.abs().mean()) <= 2:
        raise DataError(
            "these images are not in [-1, 1]",
            expected="float RGB in [-1, 1]",
            got=f"mean magnitude {float(images.abs().mean()):.3g}",
            fix="0–255: images / 127.5 - 1; 0–1: 2 * images - 1; NaN: check the checkpoint and the latents",
        )


def warn_if_unit_range(images: Tensor, stacklevel: int = 2) -> None:
    """Warn of images that may be in [0, 1]: several of floats, with no value below 0. Looks at the values once.

    Args:
        images: a batch, [n, 3, H, W].
        stacklevel: of `warnings.warn`, from the caller on: 2 is the caller's caller.
    """
    several = images.is_floating_point() and len(images) > 3
    if several and has_values(images) and bool((images >= 0).all()):
        message = "no value of these images is below 0; [0, 1] needs 2 * images - 1"
        warnings.warn(message, stacklevel=stacklevel + 1)


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] float to 0–255 uint8, same shape, clamped and rounded to nearest."""
    if not images.is_floating_point():
        raise ShapeError("these images are integers already", expected="float in [-1, 1]", got=images.dtype)
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """0–255 uint8 to float in [-1, 1], same shape.

    Raises:
        ShapeError: not uint8, so the range is not known.
    """
    if images.dtype != torch.uint8:
        raise ShapeError(
            "the range of these images is not known",
            expected="uint8, 0–255",
            got=images.dtype,
            fix="floats in [0, 1]: use 2·x − 1; floats in [-1, 1] need no conversion",
        )
    return images.float() / 127.5 - 1


def save_images(images: Tensor, folder: str | os.PathLike[str], names: list[str]) -> list[Path]:
    """Write images [n, 3, H, W] in [-1, 1] as PNG files `folder/<name>.png`; sub-folders in names are made.

    Raises:
        ShapeError, DataError: not one name per image, repeated names, names that lead out of the folder, images that
            are not in [-1, 1].
    """
    from PIL import Image

    check_range(images)
    if len(names) != len(images):
        raise ShapeError("one name per image, please", expected=len(images), got=len(names))
    if len(set(names)) != len(names):
        raise DataError(
            "names repeat, so images would overwrite each other",
            expected=f"{len(names)} different names",
            got=f"{len(set(names))} different ones",
            fix="an index restarts in every group: put the group's name in front, or use Sample.save",
        )
    outside = [n for n in names if Path(n).is_absolute() or ".." in Path(n).parts]
    if outside:
        raise DataError("a name leads out of the folder", expected="relative names", got=outside[0])
    paths = [Path(folder) / f"{name}.png" for name in names]
    for path, pixels in zip(paths, to_uint8(images).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return paths


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB images in [-1, 1] to CIELAB under D65 (IEC 61966-2-1 and CIE 15).

    Args:
        images: [..., 3, H, W] in [-1, 1].

    Returns:
        [..., 3, H, W] with L* in [0, 100] and a*, b* in about [-110, 110].
    """
    if images.ndim < 3 or images.shape[-3] != 3 or not images.is_floating_point():
        got = f"{list(images.shape)} {images.dtype}"
        raise ShapeError("not RGB images", expected="[..., 3, H, W] float in [-1, 1]", got=got)
    rgb = ((images + 1) / 2).clamp(0, 1)
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_SRGB_TO_XYZ, dtype=linear.dtype, device=linear.device)
    white = torch.tensor(_D65, dtype=linear.dtype, device=linear.device)
    xyz = torch.einsum("ij,...jhw->...ihw", matrix / white[:, None], linear)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min((6 / 29) ** 3) ** (1 / 3), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = f.unbind(-3)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=-3)


def ita(lightness: Tensor, b: Tensor) -> Tensor:
    """Individual typology angle arctan((L* - 50) / b*) in degrees, within (-90, 90) (Chardon et al. 1991).

    Skin has b* > 0. Coloured light can push it below, where the formula would flip its sign; b* is therefore
    held at 1 or more, which keeps the order of lightness.
    """
    return torch.atan((lightness - 50) / b.clamp_min(1.0)) * (180 / math.pi)


def ita_band(angle: Tensor, edges: tuple[float, ...] = ITA_EDGES) -> Tensor:
    """Index of the band an ITA angle falls into: 0 is the darkest; names in `ITA_BANDS` for the default edges."""
    return torch.bucketize(angle, torch.tensor(edges, dtype=angle.dtype, device=angle.device))
