"""What an image looks like: colour, light and sharpness, of the whole image and of the regions of a face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import DataError, ShapeError
from .images import check_range, from_uint8, ita, rgb_to_lab, warn_if_unit_range
from .models.pretrained import check_images

Regions = Tensor | Mapping[str, Tensor]

LUMINANCE_WEIGHTS = (0.2126, 0.7152, 0.0722)
"""Of R, G, B in Y (ITU-R BT.709), here on non-linear values, as OpenCV's BGR2XYZ and the published study have it."""

COVARIATES = ("red_mean", "green_mean", "blue_mean", "luminance", "ita", "contrast", "saturation", "sharpness")


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
    check_rgb(images)
    x = from_uint8(images) if images.dtype == torch.uint8 else images.clamp(-1, 1)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if min(x.shape[-2:]) < 2:
        raise ShapeError("sharpness needs neighbours", expected="at least 2 × 2 pixels", got=list(x.shape[-2:]))
    maps = _maps(x)
    everywhere = torch.ones_like(images[:, 0], dtype=torch.bool)
    values = _describe(maps, everywhere)
    for name, mask in named_regions(regions).items():
        if not isinstance(mask, Tensor) or mask.shape != images[:, 0].shape or mask.dtype != torch.bool:
            got = f"{list(mask.shape)} {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
            raise ShapeError(f"region {name!r} is no mask", expected=f"bool {list(everywhere.shape)}", got=got)
        values |= {f"{name}/{k}": v for k, v in _describe(maps, mask.to(images.device)).items()}
    return values


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


def luminance(rgb: Tensor) -> Tensor:
    """Y of each pixel: [n, 3, H, W] → [n, 1, H, W]."""
    weights = torch.tensor(LUMINANCE_WEIGHTS, dtype=rgb.dtype, device=rgb.device)
    return (rgb * weights[:, None, None]).sum(1, keepdim=True)


def named_regions(regions: Regions | None) -> Mapping[str, Tensor]:
    """Masks by name; those without one are called "region"."""
    if regions is None:
        return {}
    return {"region": regions} if isinstance(regions, Tensor) else regions


def check_rgb(images: Any) -> int:
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


# --- details ----------------------------------------------------------------------------------------------------------


def _maps(x: Tensor) -> dict[str, Tensor]:
    """Per pixel: rgb (0–1), lab, y (0–1), saturation, laplacian (of 255·Y)."""
    rgb = (x + 1) / 2
    y = luminance(rgb)
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


def _eyes_and_mouth(points: Tensor) -> tuple[Tensor, Tensor]:
    """The eyes' centres and the mouth's corners, each [n, 2, 2]: the left one in the image first."""
    if points.shape[1] == 5:
        return points[:, :2], points[:, 3:]
    eyes = torch.stack((points[:, 36:42].mean(1), points[:, 42:48].mean(1)), dim=1)
    return eyes, torch.stack((points[:, 48], points[:, 54]), dim=1)
