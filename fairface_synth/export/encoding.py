"""Images as the bytes of JPEG, PNG or WebP files, and back."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import DataError, ShapeError
from .plan import DatasetPlan

_SUBSAMPLING: Mapping[str, int] = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # Pillow's numbers


def encode(pixels: np.ndarray, plan: DatasetPlan) -> bytes:
    """One image as the plan says (format, quality, subsampling); equal pixels make equal bytes. Safe in threads.

    Args:
        pixels: uint8 [H, W, 3], RGB.
        plan: WebP has no other chroma subsampling than 4:2:0, and PNG neither quality nor subsampling.

    Raises:
        ShapeError: something else than such pixels.
    """
    from PIL import Image

    good = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    if not good or 0 in pixels.shape:
        got = f"{list(pixels.shape)} {pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise ShapeError(
            "these are not the pixels of one image",
            expected="numpy uint8 [H, W, 3], RGB",
            got=got,
            fix="to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()[i]",
        )
    options: dict[str, Any] = {
        "jpeg": {"quality": plan.quality, "subsampling": _SUBSAMPLING[plan.subsampling]},
        "png": {},
        "webp": {"quality": plan.quality},
    }[plan.image_format]
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, plan.image_format, **options)
    return file.getvalue()


def decode(data: bytes) -> np.ndarray:
    """The pixels of an encoded image, uint8 [H, W, 3], RGB.

    Raises:
        DataError: no image, or a damaged one.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise DataError("these bytes are no image", expected="a whole JPEG, PNG or WebP file", got=error) from error
