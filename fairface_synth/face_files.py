"""Files of a set of faces: which images lie in a folder, their pixels, and which of them are meant."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, ShapeError
from .models.pretrained import resize

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation → PIL.Image.Transpose


# --- folders --------------------------------------------------------------------------------------------------------


def list_images(root: Path) -> list[str]:
    """Images below root, relative to it, sorted within folders; hidden names and __MACOSX are no images."""

    def fail(error: OSError) -> NoReturn:
        raise DataError(f"cannot look into {error.filename}", got=error) from error

    paths = []
    for folder, below, files in os.walk(root, onerror=fail, followlinks=True):
        below[:] = sorted(f for f in below if not _hidden(f) and not _leads_back(folder, f))
        before = relative(Path(folder), root)
        paths += [before + f for f in sorted(files) if f.lower().endswith(_IMAGE_SUFFIXES) and not _hidden(f)]
    return paths


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _leads_back(folder: str, name: str) -> bool:
    """Whether a link leads to a folder that it lies in: following it would never end."""
    path = os.path.join(folder, name)
    return os.path.islink(path) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))
    except OSError as error:
        raise DataError(f"cannot look into {folder}", got=error) from error


def relative(folder: Path, root: Path) -> str:
    """What stands between root and a file in the folder: "" or "a/b/"."""
    path = os.path.relpath(folder, root).replace(os.sep, "/")
    return "" if path == "." else f"{path}/"


# --- images ---------------------------------------------------------------------------------------------------------


def read_image(path: Path, size: tuple[int, int] | None) -> Tensor:
    """RGB float32 [3, H, W] in [−1, 1]; an error names the file."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            pixels = rgb(upright(file))
    except FileNotFoundError as error:
        fix = 'read_faces(…, missing="drop") leaves such files out'
        raise DataError("an image is missing", expected=str(path), fix=fix) from error
    except Exception as error:  # a damaged file can make a decoder raise anything
        got = f"{type(error).__name__}: {error}"
        raise DataError(f"cannot read {path}", expected="an image", got=got, fix="replace or leave it out") from error
    image = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    return image if size is None else fit(image, size)


def upright(image: Any) -> Any:
    """Turn as the camera held it. A damaged EXIF block says nothing, as none does."""
    from PIL import Image

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:
        return image
    return image.transpose(Image.Transpose(_TURNS[orientation])) if orientation in _TURNS else image


def rgb(image: Any) -> np.ndarray:
    """Pixels [H, W, 3] in 0 … 255, float32."""
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = np.asarray(image).astype(np.float32) / 257
        return np.repeat(grey[..., None], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"the range of pixels of mode {image.mode!r} is not known; save it with 8 or 16 bits")
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=np.float32)


def fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest centred box of this shape, resized: [3, *size]."""
    height, width = image.shape[1:]
    scale = min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - h) // 2, (width - w) // 2
    return resize(image[None, :, top : top + h, left : left + w], size)[0]


# --- which faces, how large -----------------------------------------------------------------------------------------


def as_slice(start: int, stop: int | None, n: int) -> slice:
    """start … stop − 1 of n faces, one at least; an end past the last is the last."""
    stop = n if stop is None else stop
    if not isinstance(start, Integral) or not isinstance(stop, Integral):
        raise DataError("a slice needs whole numbers", expected="start, stop", got=f"{start!r}, {stop!r}")
    start, stop = int(start), int(stop)
    if not 0 <= start < min(stop, n):
        raise DataError("no faces in this slice", expected=f"0 ≤ start < stop, start < {n}", got=f"{start} … {stop}")
    return slice(start, min(stop, n))


def as_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of a size as users write it."""
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, Integral) and side > 0 for side in pair):
        raise ShapeError("not a size", expected="pixels: 224 or (height, width)", got=size)
    return int(pair[0]), int(pair[1])


def as_indices(indices: Iterable[int] | Tensor | np.ndarray, n: int) -> np.ndarray:
    """Indices int64 of some of n faces, from indices or a mask [n]."""
    if isinstance(indices, Tensor):
        indices = indices.detach().cpu().numpy()
    if not isinstance(indices, Iterable):
        raise ShapeError("not indices", expected=f"integers, or a mask [{n}]", got=repr(indices))
    rows = np.asarray(list(indices) if not isinstance(indices, np.ndarray) else indices)
    if rows.ndim != 1 or (rows.dtype.kind not in "biu" and rows.size) or (rows.dtype.kind == "b" and len(rows) != n):
        raise ShapeError("not indices", expected=f"integers, or a mask [{n}]", got=f"{rows.dtype} {list(rows.shape)}")
    rows = np.flatnonzero(rows) if rows.dtype.kind == "b" else rows.astype(np.int64)
    if not rows.size or rows.min() < 0 or rows.max() >= n:
        got = f"{rows.min()} … {rows.max()}" if rows.size else "none"
        raise DataError("no such faces", expected=f"indices 0 … {n - 1}, one at least", got=got)
    return rows
