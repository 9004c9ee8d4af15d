"""What a discriminator prefers: scores, what they go with in the image, and what they answer to when it is changed.

Grissom II et al. 2024 (arXiv 2402.09786) scored natural images with StyleGAN3's discriminator and found that the score
rises with luminance and red. Their study is correlational; `sweep` changes one thing at a time. What may be concluded:
docs/audits.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .artifacts import has_values
from .errors import DataError, GroupError, ShapeError
from .groups import Groups, check_ids
from .images import check_range, from_uint8, ita, rgb_to_lab, to_uint8, warn_if_unit_range
from .latents import _batches, philox
from .models.pretrained import check_images
from .reports import markdown_table
from .tables import Table, read_table, to_frame

InputRange = Literal["minus1_1", "uint8_raw"]
Resize = Literal["antialias", "torchvision", "none"]
Regions = Tensor | Mapping[str, Tensor]

LUMINANCE_WEIGHTS = (0.2126, 0.7152, 0.0722)
"""Of R, G, B in Y (ITU-R BT.709), here on non-linear values, as OpenCV's BGR2XYZ and the published study have it."""

COVARIATES = ("red_mean", "green_mean", "blue_mean", "luminance", "ita", "contrast", "saturation", "sharpness")

_SHUFFLE_LANE = 0x5348554C  # apart from the streams that latents of the same seed are drawn from


class FaceImages(Protocol):
    """Images that need not be in memory: a `FaceSet`, or anything with a length that gives a range of images."""

    def __len__(self) -> int: ...

    def images(self, start: int, stop: int) -> Tensor:
        """Images start … stop − 1, [stop − start, 3, H, W] in [-1, 1]; with size=, if `score_table` is given one."""


# --- scores -----------------------------------------------------------------------------------------------------


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
    n = _check(images)
    _check_options(input_range, resize, group_size, batch_size)
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
        x = _prepare(discriminator, images[i : i + size], input_range, resize)
        parts.append(_logits(discriminator, x, _rows(c, i, i + size, n), group_size))
    return _finite(torch.cat(parts).to(images.device))


def _check(images: Any) -> int:
    """Number of images; raises unless they are RGB, float in [-1, 1] or uint8."""
    if not isinstance(images, Tensor):
        fix = "torch.from_numpy(x).permute(0, 3, 1, 2) for arrays [n, H, W, 3]"
        if callable(getattr(images, "images", None)):
            fix = "faces.images(0, n) gives the first n images of a set, faces.images(0, n, size) where sizes differ"
        raise ShapeError("images are a tensor here", expected="[n, 3, H, W]", got=type(images).__name__, fix=fix)
    if images.ndim == 4 and images.shape[1] == 1:
        fix = "images.expand(-1, 3, -1, -1)"
        raise ShapeError("images are grey", expected="RGB, [n, 3, H, W]", got=list(images.shape), fix=fix)
    check_images(images.float() if images.dtype == torch.uint8 else images)
    if len(images) == 0:
        raise DataError("no images", expected="at least one", got=0)
    if images.dtype != torch.uint8:
        check_range(images)
        warn_if_unit_range(images, stacklevel=3)
    return len(images)


def _check_options(input_range: str, resize: str, group_size: int | None, batch_size: int) -> None:
    if input_range not in ("minus1_1", "uint8_raw"):
        raise DataError("unknown input range", expected="'minus1_1' or 'uint8_raw'", got=repr(input_range))
    if resize not in ("antialias", "torchvision", "none"):
        raise DataError("unknown resize", expected="'antialias', 'torchvision' or 'none'", got=repr(resize))
    if batch_size < 1 or (group_size is not None and group_size < 1):
        got = f"batch_size={batch_size}, group_size={group_size}"
        raise DataError("no images at a time", expected="batch_size ≥ 1; group_size ≥ 1 or None", got=got)


def _weights(discriminator: Any) -> Tensor | None:
    """Its first weights, which say where and in which precision it computes; None for a plain function."""
    return next(discriminator.parameters(), None) if isinstance(discriminator, nn.Module) else None


def _to_device(discriminator: Any, images: Tensor) -> Tensor:
    weights = _weights(discriminator)
    return images if weights is None else images.to(weights.device)


def _prepare(discriminator: Any, images: Tensor, input_range: str, resize: str) -> Tensor:
    """What the discriminator is given: on its device, in the range, of its size."""
    images, weights = _to_device(discriminator, images), _weights(discriminator)
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


def _rows(c: Tensor | None, start: int, stop: int, n: int) -> Tensor | None:
    if c is None:
        return None
    if c.ndim != 2 or len(c) not in (1, n):
        raise ShapeError("c does not fit", expected=f"[1 or {n}, c_dim]", got=list(c.shape))
    return c.expand(n, -1)[start:stop]


def _logits(discriminator: Any, x: Tensor, c: Tensor | None, group_size: int | None) -> Tensor:
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


def _finite(scores: Tensor) -> Tensor:
    if has_values(scores) and not bool(scores.isfinite().all()):
        raise DataError(
            "the discriminator gave NaN or infinite scores",
            got=f"{int((~scores.isfinite()).sum())} of {scores.numel()}",
            fix="check the checkpoint; raw 0–255 input can overflow half precision",
        )
    return scores


# --- what an image looks like -----------------------------------------------------------------------------------


@torch.no_grad()
def covariates(images: Tensor, regions: Regions | None = None) -> dict[str, Tensor]:
    """Colour and sharpness of each image, float [n] on the images' device; the same for each region.

    - `red_mean`, `green_mean`, `blue_mean`: means over the pixels, 0–255.
    - `luminance`: mean of Y = 0.2126 R + 0.7152 G + 0.0722 B on non-linear values, 0–1 (Grissom et al. 2024: OpenCV's
      BGR2XYZ on /255 values). It is linear in the three means: never put all four in one regression.
    - `ita`: individual typology angle of the mean CIELAB colour, degrees (`images.ita`). Meant for skin: over a whole
      image it describes the scene.
    - `contrast`: RMS contrast, the standard deviation of Y, 0–0.5 (Peli 1990).
    - `saturation`: mean of HSV's S, (max − min) / max, 0–1; black has 0.
    - `sharpness`: variance of the Laplacian of 255·Y, kernel [0 1 0; 1 −4 1; 0 1 0], mirrored at the border
      (Pech-Pacheco et al. 2000); compare it only between images of one size.

    Args:
        images: [n, 3, H, W], float in [-1, 1] (clamped, as a file would hold them) or uint8 0–255.
        regions: bool masks [n, H, W], reported as "region/red_mean" …; or {name: masks}, as `face_regions` gives,
            reported as "<name>/red_mean" …. An empty region gives NaN.

    Raises:
        ShapeError, DataError: not such images or masks.
    """
    _check(images)
    x = from_uint8(images) if images.dtype == torch.uint8 else images.clamp(-1, 1)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if min(x.shape[-2:]) < 2:
        raise ShapeError("sharpness needs neighbours", expected="at least 2 × 2 pixels", got=list(x.shape[-2:]))
    maps = _maps(x)
    everywhere = torch.ones_like(images[:, 0], dtype=torch.bool)
    values = _describe(maps, everywhere)
    for name, mask in _named(regions).items():
        if not isinstance(mask, Tensor) or mask.shape != images[:, 0].shape or mask.dtype != torch.bool:
            got = f"{list(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ShapeError(f"region {name!r} is no mask", expected=f"bool {list(everywhere.shape)}", got=got)
        values |= {f"{name}/{k}": v for k, v in _describe(maps, mask.to(images.device)).items()}
    return values


def _named(regions: Regions | None) -> Mapping[str, Tensor]:
    if regions is None:
        return {}
    return {"region": regions} if isinstance(regions, Tensor) else regions


def _maps(x: Tensor) -> dict[str, Tensor]:
    """Per pixel: rgb (0–1), lab, y (0–1), saturation, laplacian (of 255·Y)."""
    rgb = (x + 1) / 2
    y = _luminance(rgb)
    high, low = rgb.amax(1), rgb.amin(1)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=x.dtype, device=x.device)
    laplacian = F.conv2d(F.pad(255 * y, (1, 1, 1, 1), mode="reflect"), kernel[None, None])[:, 0]
    saturation = torch.where(high > 0, (high - low) / high.clamp_min(1e-12), 0.0)
    return {"rgb": rgb, "lab": rgb_to_lab(x), "y": y[:, 0], "saturation": saturation, "laplacian": laplacian}


def _describe(maps: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    """Means and variances over the mask [n, H, W]; 0 / 0 = NaN where it is empty."""
    weight = mask.to(maps["y"].dtype)
    pixels = weight.sum((1, 2))

    def mean(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2)) / pixels

    def variance(x: Tensor) -> Tensor:
        return mean((x - mean(x)[:, None, None]).square())

    red, green, blue = (255 * mean(channel) for channel in maps["rgb"].unbind(1))
    lightness, _, b = (mean(channel) for channel in maps["lab"].unbind(1))
    values = [red, green, blue, mean(maps["y"]), ita(lightness, b), variance(maps["y"]).sqrt()]
    values += [mean(maps["saturation"]), variance(maps["laplacian"])]
    return dict(zip(COVARIATES, values, strict=True))


def _luminance(rgb: Tensor) -> Tensor:
    """[n, 3, H, W] → [n, 1, H, W]."""
    weights = torch.tensor(LUMINANCE_WEIGHTS, dtype=rgb.dtype, device=rgb.device)
    return (rgb * weights[:, None, None]).sum(1, keepdim=True)


def face_regions(landmarks: Tensor, size: int | Sequence[int]) -> dict[str, Tensor]:
    """Ovals around the parts of a face, from its landmarks: {"face", "eyes", "cheeks", "mouth", "background"}.

    Drawn by fixed proportions in the frame that the eyes and the mouth span (x: from eye to eye, y: from the eyes to
    the mouth), so they turn and shear with the face. They are no segmentation: "face" can hold hair, glasses or a hand.
    "eyes", "cheeks" and "mouth" do not overlap; "background" is what lies outside of 1.6 times the face's oval, clothes
    and long hair included. The proportions are ours, not from a paper.

    Args:
        landmarks: [n, 5, 2] (x, y) in pixels as in `Detections.landmarks`, or dlib's 68 points [n, 68, 2], of which the
            eyes' centres, the nose and the mouth's corners are used. NaN where there is no face.
        size: side, or (height, width), of the images in pixels.

    Returns:
        bool masks [n, H, W] by name; all of them empty where there is no face.
    """
    if landmarks.ndim != 3 or landmarks.shape[1:] not in ((5, 2), (68, 2)) or not landmarks.is_floating_point():
        got = f"{list(landmarks.shape)} {landmarks.dtype}"
        raise ShapeError("these are no landmarks", expected="float [n, 5, 2] or [n, 68, 2] in pixels", got=got)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    eyes, mouth = _eyes_and_mouth(landmarks.to(torch.promote_types(landmarks.dtype, torch.float32)))
    centre = eyes.mean(1)
    across, down = eyes[:, 1] - eyes[:, 0], mouth.mean(1) - centre
    determinant = across[:, 0] * down[:, 1] - across[:, 1] * down[:, 0]

    # Pixel (x, y) = centre + u · across + v · down; zero determinant, as a profile may have, leaves nothing inside.
    grid_x = torch.arange(width, device=landmarks.device, dtype=eyes.dtype) - centre[:, 0, None, None]
    grid_y = torch.arange(height, device=landmarks.device, dtype=eyes.dtype)[:, None] - centre[:, 1, None, None]
    a, d, k = (t[..., None, None] for t in (across, down, determinant))
    u = (grid_x * d[:, 1] - grid_y * d[:, 0]) / k
    v = (grid_y * a[:, 0] - grid_x * a[:, 1]) / k

    def distance(x: float, y: float, half_width: float, half_height: float, x_of: Tensor = u) -> Tensor:
        return ((x_of - x) / half_width).square() + ((v - y) / half_height).square()

    sides = u.abs()
    face = distance(0, 0.4, 1.0, 1.2)
    return {
        "face": face <= 1,
        "eyes": distance(0.5, 0, 0.3, 0.22, sides) <= 1,
        "cheeks": distance(0.5, 0.52, 0.22, 0.26, sides) <= 1,
        "mouth": distance(0, 1, 0.5, 0.2) <= 1,
        "background": face > 1.6**2,
    }


def _eyes_and_mouth(points: Tensor) -> tuple[Tensor, Tensor]:
    """The eyes' centres and the mouth's corners, each [n, 2, 2]: the left one in the image first."""
    if points.shape[1] == 5:
        return points[:, :2], points[:, 3:]
    eyes = torch.stack((points[:, 36:42].mean(1), points[:, 42:48].mean(1)), dim=1)
    return eyes, torch.stack((points[:, 48], points[:, 54]), dim=1)


def shuffle_pixels(images: Tensor, seed: int, *, start: int = 0) -> Tensor:
    """All pixels of each image in random order: keeps every colour, destroys every structure.

    The control of Grissom et al. (their shuffle_pixels.py): what a discriminator still says of shuffled pixels, it says
    of colours alone. Image i is permuted by (seed, start + i), so any split into batches and any device gives the same.

    Args:
        images: [n, C, H, W] of any dtype; the channels of a pixel stay together.
        seed: any integer in [0, 2⁶⁴).
        start: index of the first image.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError("these are not images", expected="[n, C, H, W]", got=got)
    if not 0 <= seed < 2**64 or start < 0:
        raise DataError("seed or start out of range", expected="0 ≤ seed < 2⁶⁴, start ≥ 0", got=f"{seed}, {start}")
    n, channels, height, width = images.shape
    pixels = height * width
    row = torch.arange(start, start + n, device=images.device)[:, None].expand(-1, -(-pixels // 4))
    block = torch.arange(row.shape[1], device=images.device).expand_as(row)
    lane = torch.full_like(row, _SHUFFLE_LANE)
    words = philox((block, row & 0xFFFFFFFF, row >> 32, lane), (seed & 0xFFFFFFFF, seed >> 32))
    keys = torch.stack(words, dim=-1).flatten(1)[:, :pixels]
    order = keys.argsort(dim=1, stable=True)  # stable: equal keys fall alike on every device
    return images.flatten(2).gather(2, order[:, None].expand(-1, channels, -1)).view_as(images)


# --- changing one thing at a time -------------------------------------------------------------------------------


class _Transform(NamedTuple):
    apply: Callable[[Tensor, float], Tensor]  # RGB in [0, 1], value → RGB, not clipped
    identity: float
    step: float
    values: tuple[float, ...]
    lowest: float = -math.inf


def _contrast(rgb: Tensor, value: float) -> Tensor:
    grey = _luminance(rgb).mean((2, 3), keepdim=True)
    return grey + value * (rgb - grey)


def _saturation(rgb: Tensor, value: float) -> Tensor:
    y = _luminance(rgb)
    return y + value * (rgb - y)


def _hue(rgb: Tensor, value: float) -> Tensor:
    (wr, wg, wb), y = LUMINANCE_WEIGHTS, _luminance(rgb)
    cr, cb = (rgb[:, :1] - y) / (2 - 2 * wr), (rgb[:, 2:] - y) / (2 - 2 * wb)
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    red, blue = y + (2 - 2 * wr) * (cos * cr + sin * cb), y + (2 - 2 * wb) * (cos * cb - sin * cr)
    return torch.cat((red, (y - wr * red - wb * blue) / wg, blue), dim=1)


def _gain(*channels: float) -> Callable[[Tensor, float], Tensor]:
    """Multiply the channels marked 1 by the value."""

    def apply(rgb: Tensor, value: float) -> Tensor:
        mask = torch.tensor(channels, dtype=rgb.dtype, device=rgb.device)[:, None, None]
        return rgb * (1 + (value - 1) * mask)

    return apply


_GAINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
TRANSFORMS: dict[str, _Transform] = {
    "brightness": _Transform(_gain(1, 1, 1), 1.0, 0.02, _GAINS, 0.0),
    "luminance": _Transform(lambda x, v: x + v, 0.0, 0.01, (-0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)),
    "contrast": _Transform(_contrast, 1.0, 0.02, _GAINS, 0.0),
    "saturation": _Transform(_saturation, 1.0, 0.02, (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), 0.0),
    "hue": _Transform(_hue, 0.0, 2.0, (-60.0, -40.0, -20.0, -10.0, 0.0, 10.0, 20.0, 40.0, 60.0)),
    "red_gain": _Transform(_gain(1, 0, 0), 1.0, 0.02, _GAINS, 0.0),
    "green_gain": _Transform(_gain(0, 1, 0), 1.0, 0.02, _GAINS, 0.0),
    "blue_gain": _Transform(_gain(0, 0, 1), 1.0, 0.02, _GAINS, 0.0),
    "gamma": _Transform(lambda x, v: x**v, 1.0, 0.02, (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0), 1e-3),
}


class SweepCurve(NamedTuple):
    """Mean score change against the original of one group, with 95 % intervals over its images (paired, Student's t).

    Attributes:
        group: its name; "all" for every image.
        n: images in it; with one image there is no interval (NaN).
        mean, low, high: float64 [v], logits.
        derivative: (mean, low, high) of the derivative at the original.
    """

    group: str
    n: int
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    derivative: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Scores of images of which one property was changed; made by `sweep`.

    Attributes:
        transform: its name.
        values: float64 [v], what the transform was given.
        identity: the value that changes nothing.
        scores: float32 [v, n].
        original: float32 [n], scores of the unchanged images.
        derivative: float32 [n], central difference at the original: logits per unit of the transform.
        step: half width of that difference.
        clipped: float64 [v], share of pixel values that left the range and were clipped. Where it is not small, the
            images changed in other ways than the transform says.
        input_range: what the discriminator was given.
        group_ids, groups: the groups, if any; −1 is in "all" alone.
    """

    transform: str
    values: Tensor
    identity: float
    scores: Tensor
    original: Tensor
    derivative: Tensor
    step: float
    clipped: Tensor
    input_range: str
    group_ids: Tensor | None = None
    groups: Groups | None = None

    def curves(self) -> list[SweepCurve]:
        """One curve for all images, then one for each group that has any."""
        change = (self.scores.double() - self.original.double()).cpu().numpy()
        slope = self.derivative.double().cpu().numpy()
        masks = {"all": np.ones(change.shape[1], dtype=bool)}
        if self.group_ids is not None and self.groups is not None:
            ids = self.group_ids.cpu().numpy()
            masks |= {name: ids == g for g, name in enumerate(self.groups.names) if (ids == g).any()}
        curves = []
        for name, mask in masks.items():
            mean, low, high = _t_interval(change[:, mask])
            derivative = tuple(float(x) for x in _t_interval(slope[mask]))
            curves.append(SweepCurve(name, int(mask.sum()), mean, low, high, derivative))  # type: ignore[arg-type]
        return curves

    def to_table(self) -> Table:
        """One row per group and value: transform, input_range, group, n, value, change, low, high, clipped."""
        values, clipped, curves = self.values.cpu().numpy(), self.clipped.cpu().numpy(), self.curves()
        v = len(values)
        return {
            "transform": np.repeat([self.transform], v * len(curves)),
            "input_range": np.repeat([self.input_range], v * len(curves)),
            "group": np.repeat([c.group for c in curves], v),
            "n": np.repeat([c.n for c in curves], v),
            "value": np.tile(values, len(curves)),
            "change": np.concatenate([c.mean for c in curves]),
            "low": np.concatenate([c.low for c in curves]),
            "high": np.concatenate([c.high for c in curves]),
            "clipped": np.tile(clipped, len(curves)),
        }

    def to_frame(self) -> Any:
        """`to_table` as a pandas frame."""
        return to_frame(self.to_table())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: the settings, the shares clipped, and the curves by group."""
        return {
            "transform": self.transform,
            "input_range": self.input_range,
            "identity": self.identity,
            "step": self.step,
            "values": self.values.tolist(),
            "clipped": self.clipped.tolist(),
            "groups": {
                c.group: {
                    "n": c.n,
                    "change": c.mean.tolist(),
                    "low": c.low.tolist(),
                    "high": c.high.tolist(),
                    "derivative": list(c.derivative),
                }
                for c in self.curves()
            },
        }

    def __str__(self) -> str:
        first, last = float(self.values[0]), float(self.values[-1])
        rows = [
            [c.group, str(c.n), _interval_text(*c.derivative)]
            + [_interval_text(c.mean[i], c.low[i], c.high[i]) for i in (0, -1)]
            for c in self.curves()
        ]
        header = ["group", "images", "derivative [95 %]", f"change at {first:g}", f"change at {last:g}"]
        worst = int(self.clipped.argmax())
        note = f"Clipped: at most {float(self.clipped[worst]):.1%} of pixel values, at {float(self.values[worst]):g}."
        return (
            f"Score change under {self.transform}, {self.input_range} input; it is 0 at {self.identity:g}. Logits; "
            f"derivative per unit, from {self.identity:g} ± {self.step:g}.\n\n{markdown_table(header, rows)}\n\n{note}"
        )


def _t_interval(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the last axis and its 95 % interval; NaN for one sample."""
    from scipy.special import stdtrit

    n = x.shape[-1]
    mean = x.mean(-1)
    half = stdtrit(n - 1, 0.975) * x.std(-1, ddof=1) / math.sqrt(n) if n > 1 else np.full_like(mean, np.nan)
    return mean, mean - half, mean + half


def _interval_text(*interval: float) -> str:
    value, low, high = (f"{float(f'{x:.3g}'):g}" for x in interval)  # three digits, and 1030 rather than 1.03e+03
    return f"{value} [{low}, {high}]"


@torch.no_grad()
def sweep(
    discriminator: Any,
    images: Tensor,
    transform: str | Callable[[Tensor, float], Tensor],
    values: Sequence[float] | Tensor | None = None,
    *,
    identity: float | None = None,
    step: float | None = None,
    group_ids: Tensor | None = None,
    groups: Groups | None = None,
    input_range: InputRange = "minus1_1",
    resize: Resize = "antialias",
    batch_size: int = 32,
    c: Tensor | None = None,
    progress: bool = True,
) -> Sweep:
    """Score every image at every value of a transform: what a discriminator answers to, image by image.

    On RGB in [0, 1], not linearised; Y as in `covariates`. The results are clipped to [0, 1].

    | transform | what it does | unit, identity |
    |---|---|---|
    | "brightness" | v·(R, G, B) | gain, 1 |
    | "luminance" | adds v to R, G and B: moves Y by v, leaves chroma (R − Y, B − Y) | Y of 0–1, 0 |
    | "contrast" | m + v·(x − m), m the image's mean Y | gain, 1 |
    | "saturation" | Y + v·(x − Y): leaves Y of every pixel | gain, 1 |
    | "hue" | turns (Cb, Cr) of BT.709 by v, from red towards yellow: leaves Y | degrees, 0 |
    | "red_gain", "green_gain", "blue_gain" | v·R, v·G or v·B | gain, 1 |
    | "gamma" | x^v: below 1 brightens | exponent, 1 |

    The paper has no sweeps: this is the test of cause that its correlations lack. It is one of the *discriminator*:
    what such a change would be in front of a camera is another question.

    Args:
        discriminator, input_range, resize, batch_size, c: as in `score`; group_size is 1.
        images: [n, 3, H, W], float in [-1, 1] (clamped to it) or uint8. They are first brought to the discriminator's
            size and changed there; in the raw range the changed values are not rounded to whole numbers again.
        transform: a name above, or any function (images [b, 3, H, W] in [-1, 1], value) → images of that shape.
        values: the values to try; None: a range around the identity. Needed for a function.
        identity: for a function, the value at which nothing changes.
        step: half width of the central difference of `derivative`; None: 0.02 for gains and exponents, 0.01 for
            luminance, 2 degrees for hue, and for a function a hundredth of the values' range.
        group_ids: int64 [n], −1 for none; with `groups`, for curves by group.
        groups: names the ids.
        progress: show a bar.

    Raises:
        DataError: an unknown transform, values that it does not take, or as in `score`.
        GroupError, ShapeError: ids without groups, or not one an image; or as in `score`.
    """
    n = _check(images)
    _check_options(input_range, resize, 1, batch_size)
    _check_groups(group_ids, groups, n)
    name, how = _transform(transform, values, identity, step)
    tried = [*how.values, how.identity + how.step, how.identity - how.step]
    original, changed = [], []
    outside = torch.zeros(len(tried), dtype=torch.float64, device=_to_device(discriminator, images[:0]).device)
    for rows in _batches(n, batch_size, f"sweeping {name}", progress):
        batch = images[rows] if images.dtype == torch.uint8 else images[rows].clamp(-1, 1)
        x, condition = _prepare(discriminator, batch, input_range, resize), _rows(c, rows.start, rows.stop, n)
        rgb = x / 255 if input_range == "uint8_raw" else (x + 1) / 2
        unchanged = _logits(discriminator, x, condition, 1)
        now = []
        for k, value in enumerate(tried):
            if value == how.identity:
                now.append(unchanged)
                continue
            y = how.apply(rgb, value)
            # A fortieth of an 8-bit level is rounding, not clipping.
            outside[k] += ((y < -1e-4) | (y > 1 + 1e-4)).double().mean((1, 2, 3)).sum() / n
            y = y.clamp(0, 1)
            y = 255 * y if input_range == "uint8_raw" else 2 * y - 1
            now.append(_logits(discriminator, y, condition, 1))
        original.append(unchanged)
        changed.append(torch.stack(now))
    scores = _finite(torch.cat(changed, dim=1).to(images.device))
    return Sweep(
        transform=name,
        values=torch.tensor(how.values, dtype=torch.float64, device=images.device),
        identity=how.identity,
        scores=scores[:-2],
        original=_finite(torch.cat(original).to(images.device)),
        derivative=(scores[-2] - scores[-1]) / (2 * how.step),
        step=how.step,
        clipped=outside[:-2].to(images.device),
        input_range=input_range,
        group_ids=group_ids,
        groups=groups,
    )


def _check_groups(group_ids: Tensor | None, groups: Groups | None, n: int) -> None:
    if (group_ids is None) != (groups is None):
        raise GroupError("group_ids and groups go together", expected="both or neither", got="one of them")
    if group_ids is None or groups is None:
        return
    if group_ids.shape != (n,) or group_ids.is_floating_point():
        got = f"{list(group_ids.shape)} {group_ids.dtype}"
        raise ShapeError("one group id per image, please", expected=f"int64 [{n}]", got=got)
    check_ids(group_ids, len(groups))


def _transform(
    transform: str | Callable[[Tensor, float], Tensor],
    values: Sequence[float] | Tensor | None,
    identity: float | None,
    step: float | None,
) -> tuple[str, _Transform]:
    """Name, and the transform with the user's values."""
    given = None if values is None else [float(v) for v in values]
    if given is not None and (not given or not all(map(math.isfinite, given))):
        raise DataError("these are no values to try", expected="finite numbers", got=given)
    if isinstance(transform, str):
        known = TRANSFORMS.get(transform)
        if known is None:
            fix = "or pass a function (images, value) → images"
            raise DataError("unknown transform", expected=", ".join(TRANSFORMS), got=repr(transform), fix=fix)
        if identity is not None and identity != known.identity:
            raise DataError(f"{transform} changes nothing at {known.identity:g}", got=f"identity={identity}")
        name, how = transform, known
    elif callable(transform):
        if given is None or identity is None:
            raise DataError("a function needs values= and identity=", got=f"values={given}, identity={identity}")
        width = max(*given, identity) - min(*given, identity)
        name = getattr(transform, "__name__", type(transform).__name__)
        how = _Transform(_on_unit_range(transform, name), float(identity), 0.01 * width, tuple(given))
    else:
        raise DataError("a transform is a name or a function", got=type(transform).__name__)
    how = how._replace(values=tuple(given or how.values), step=how.step if step is None else float(step))
    if not 0 < how.step < math.inf:
        raise DataError("the step must be positive", expected="step > 0", got=how.step)
    if min(*how.values, how.identity - how.step) < how.lowest:
        raise DataError(f"{name} does not take such values", expected=f"≥ {how.lowest:g}", got=min(how.values))
    return name, how


def _on_unit_range(function: Callable[[Tensor, float], Tensor], name: str) -> Callable[[Tensor, float], Tensor]:
    def apply(rgb: Tensor, value: float) -> Tensor:
        changed = function(2 * rgb - 1, value)
        if not isinstance(changed, Tensor) or changed.shape != rgb.shape:
            got = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ShapeError(f"{name} does not return images", expected=list(rgb.shape), got=got)
        return (changed + 1) / 2

    return apply


# --- the table that audits read ---------------------------------------------------------------------------------


@torch.no_grad()
def score_table(
    discriminator: Any,
    images: Tensor | FaceImages,
    labels: Mapping[str, Any] | None = None,
    *,
    regions: Regions | Callable[[Tensor], Regions] | None = None,
    control: bool = True,
    size: int | None = None,
    resize: Resize = "antialias",
    batch_size: int = 32,
    c: Tensor | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Table:
    """One row per image with both scores, the control, all covariates and the labels: what `audit` reads.

    Columns: `score` (input in [-1, 1]), `score_raw` (0–255), with the control `score_shuffled` (input in [-1, 1],
    pixels shuffled at the discriminator's size), those of `covariates` (of the images as they come), and the labels.
    Images are read batch by batch, so a large folder need not fit into memory.

    Args:
        discriminator, resize, batch_size, c: as in `score`; group_size is 1.
        images: [n, 3, H, W], float in [-1, 1] or uint8; or a `FaceSet`, or anything with `len()` and
            `.images(start, stop)`.
        labels: {name: one value per image}. None: the `labels` of a FaceSet, and its `paths` as column "path".
        regions: masks as in `covariates`; or a function images → masks, for example
            `lambda x: face_regions(detector(x).landmarks, x.shape[-2:])`.
        control: also score the images with their pixels shuffled.
        size: for a FaceSet whose images differ in size: its `images` cuts a square and resizes it to this side. None
            reads them as they are.
        seed: of the shuffling.
        progress: show a bar.

    Raises:
        DataError: no images, labels of another length, or under the name of a computed column; or as in `score`.
        ShapeError: as in `score`.
    """
    if not isinstance(images, Tensor) and not callable(getattr(images, "images", None)):
        raise ShapeError(
            "these are no images",
            expected="a tensor [n, 3, H, W], or an object with len() and .images(start, stop)",
            got=type(images).__name__,
            fix='read_faces("folder", "photos") for a folder of images',
        )
    if isinstance(images, Tensor) and size is not None:
        raise DataError("size is for sets that are read from files", got=f"size={size}", fix="resize=")
    _check_options("minus1_1", resize, 1, batch_size)
    n = len(images)
    if n == 0:
        raise DataError("no images", expected="at least one", got=0)
    columns = _label_columns(images, labels, n)
    options: Any = {} if size is None else {"size": size}
    parts: dict[str, list[Tensor]] = {}
    for rows in _batches(n, batch_size, "scoring", progress):
        batch = images[rows] if isinstance(images, Tensor) else images.images(rows.start, rows.stop, **options)
        batch = _to_device(discriminator, batch)
        described = covariates(batch, _region_rows(regions, batch, rows, n))
        condition = _rows(c, rows.start, rows.stop, n)
        x = _prepare(discriminator, batch, "minus1_1", resize)
        raw = _prepare(discriminator, batch, "uint8_raw", resize)
        row = {"score": _logits(discriminator, x, condition, 1), "score_raw": _logits(discriminator, raw, condition, 1)}
        if control:
            shuffled = shuffle_pixels(x, seed, start=rows.start)
            row["score_shuffled"] = _logits(discriminator, shuffled, condition, 1)
        row = {k: _finite(v) for k, v in row.items()} | described
        for name, values in row.items():
            parts.setdefault(name, []).append(values.cpu())
    table = {name: torch.cat(values).double().numpy() for name, values in parts.items()}
    taken = sorted(table.keys() & columns.keys())
    if taken:
        raise DataError("labels have the names of computed columns", expected="other names", got=", ".join(taken))
    return table | columns


def _label_columns(images: Any, labels: Mapping[str, Any] | None, n: int) -> Table:
    if labels is None:
        labels = dict(getattr(images, "labels", {}))
        paths = getattr(images, "paths", None)
        labels = ({} if paths is None else {"path": paths}) | labels
    columns = read_table(labels) if labels else {}
    wrong = {name: len(column) for name, column in columns.items() if len(column) != n}
    if wrong:
        raise DataError("labels do not fit the images", expected=f"{n} values each", got=wrong)
    return columns


def _region_rows(regions: Any, batch: Tensor, rows: slice, n: int) -> Mapping[str, Tensor]:
    if callable(regions):
        return _named(regions(batch))
    masks = _named(regions)
    wrong = {name: len(mask) for name, mask in masks.items() if len(mask) != n}
    if wrong:
        raise ShapeError("regions do not fit the images", expected=f"{n} masks each", got=wrong)
    return {name: mask[rows] for name, mask in masks.items()}
