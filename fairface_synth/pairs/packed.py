"""InsightFace's packed sets (lfw.bin, cfp_fp.bin, …): reading them without executing anything, and their faces."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, FairFaceError
from ..face_files import as_indices, as_size, as_slice, fit, rgb, upright
from ..models.safe_pickle import Budget, Captured, Resolver, read_pickle
from .base import Request, pair_file
from .lfw import FOLDS

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # of packed images; others can start programs (EPS)


@dataclass(frozen=True, repr=False, eq=False)
class PackedFaces:
    """Images that lie encoded in memory, as in InsightFace's .bin files; decoded when asked for.

    Attributes:
        name: of the set.
        data: the encoded images (JPEG, PNG, BMP or WEBP).
        size: (height, width) that `images` resizes to unless told otherwise, or None: as they are.
    """

    name: str
    data: tuple[bytes, ...]
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"PackedFaces({self.name}: {len(self)} faces)"

    def images(self, start: int = 0, stop: int | None = None, size: int | tuple[int, int] | None = None) -> Tensor:
        """Decode faces start … stop − 1, as `FaceSet.images` reads them: float32 RGB [m, 3, H, W] in [−1, 1].

        Raises:
            DataError: an empty slice, an entry that is no image (its number is given), images that differ in size.
        """
        rows = range(len(self))[as_slice(start, stop, len(self))]
        size = self.size if size is None else as_size(size)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release Python's lock
            images = list(pool.map(lambda row: self._decode(row, size), rows))
        odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
        if odd is not None:
            raise DataError(
                "images differ in size",
                expected=f"{list(images[0].shape[1:])} as face {rows[0]}",
                got=f"{list(images[odd].shape[1:])}: face {rows[odd]}",
                fix="pass size=, here or to read_pairs, for example size=112",
            )
        return torch.stack(images)

    def _decode(self, row: int, size: tuple[int, int] | None) -> Tensor:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.data[row]), formats=_FORMATS) as file:
                pixels = rgb(upright(file))
        except Exception as error:  # a damaged file can make a decoder raise anything
            got = f"{type(error).__name__}: {error}"
            raise DataError(f"cannot read face {row} of {self.name}", expected=", ".join(_FORMATS), got=got) from error
        image = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
        return image if size is None else fit(image, size)

    def subset(self, indices: Iterable[int] | Tensor | np.ndarray) -> PackedFaces:
        """The faces at these indices in this order, or those a mask [n] is true for."""
        rows = as_indices(indices, len(self)).tolist()
        return replace(self, data=tuple(self.data[i] for i in rows))


class Unpacked(NamedTuple):
    """What a packed set holds.

    Attributes:
        images: each encoded image once.
        pairs: int64 [m, 2], rows of them.
        mated: bool [m].
        folds: int64 [m]; None for fewer pairs than folds.
    """

    images: tuple[bytes, ...]
    pairs: np.ndarray
    mated: np.ndarray
    folds: np.ndarray | None


def packed_file(root: Path, pairs: Any) -> Path:
    """The .bin file that was asked for, or the only one in the folder."""
    if pairs is None:
        found = sorted(root.glob("*.bin"))
        if len(found) == 1:
            return found[0]
        got = ", ".join(file.name for file in found) or "none"
        raise DataError("which packed set?", expected=f"one .bin file in {root}", got=got, fix="pass it as pairs=")
    return pair_file(Request(root, pairs, "", {}), str(pairs), "it comes with InsightFace's training sets")


def read_packed(path: Path) -> Unpacked:
    """A pickled pair of lists: 2 m encoded images (pair i is images 2 i and 2 i + 1), and m truth values."""
    value = _unpickled(path)
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise _no_packed_set(path, f"a {type(value).__name__}")
    images, truth = value
    truth = truth.ravel().tolist() if isinstance(truth, np.ndarray) else truth
    if not isinstance(images, list | tuple) or not isinstance(truth, list | tuple):
        raise _no_packed_set(path, f"a {type(images).__name__} and a {type(truth).__name__}")
    if len(images) != 2 * len(truth) or not len(truth):
        raise DataError(
            f"{path.name} is cut short, or no set of pairs",
            expected="two images for each truth value",
            got=f"{len(images)} images and {len(truth)} truth values",
        )
    odd = next((i for i, a in enumerate(truth) if not isinstance(a, bool | int | float) or a not in (0, 1)), None)
    if odd is not None:
        raise DataError(
            f"{path.name}: truth value {odd} is neither", expected="True or False", got=repr(truth[odd])[:80]
        )
    row: dict[bytes, int] = {}
    flat = [row.setdefault(_encoded(path, i, image), len(row)) for i, image in enumerate(images)]
    pairs = np.array(flat, dtype=np.int64).reshape(-1, 2)
    return Unpacked(tuple(row), pairs, np.array(truth, dtype=bool), _stretches(len(truth)))


# --- details ----------------------------------------------------------------------------------------------------------


def _stretches(m: int) -> np.ndarray | None:
    """Ten folds of consecutive pairs, the first ones larger by one: those of InsightFace's own evaluation."""
    sizes = [m // FOLDS + (fold < m % FOLDS) for fold in range(FOLDS)]
    return np.repeat(np.arange(FOLDS), sizes) if m >= FOLDS else None


def _unpickled(path: Path) -> Any:
    """What a pickle holds, if that is lists, text, bytes, truth values and plain arrays. Nothing in it is executed."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}", got=error) from error
    budget = Budget(len(data))
    try:
        return _Python2(budget)(read_pickle(data, budget))
    except FairFaceError as error:
        found = re.search(r"found (.+)", str(error))
        raise _no_packed_set(path, f"a pickle that names {found[1]}" if found else str(error)) from error
    except (Exception, RecursionError, MemoryError) as error:  # a damaged pickle can raise anything
        raise _no_packed_set(path, f"{type(error).__name__}: {error}") from error


class _Python2(Resolver):
    """Python 2 wrote the bytes of numpy's arrays as text; `read_pickle` reads text as Latin-1, one byte a character."""

    def _captured(self, value: Any) -> Any:
        if value.name == "numpy.scalar" and len(value.arguments) == 2:
            dtype, data = value.arguments
            value = Captured(value.name, (dtype, _latin1(data)))
        elif value.name == "numpy.array" and isinstance(value.state, tuple) and len(value.state) == 5:
            state, value = value.state, Captured(value.name, value.arguments)
            value.__setstate__((*state[:4], _latin1(state[4])))
        return super()._captured(value)


def _latin1(text: Any) -> Any:
    return text.encode("latin1") if isinstance(text, str) else text


def _encoded(path: Path, i: int, image: Any) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:  # as cv2.imencode returns it
        image = image.tobytes()
    image = bytes(image) if isinstance(image, bytearray) else _latin1(image)
    if not isinstance(image, bytes) or not image:
        got = "nothing" if isinstance(image, bytes) else f"a {type(image).__name__}"
        raise DataError(f"{path.name}: image {i} is no encoded image", expected="the bytes of a JPEG file", got=got)
    return image


def _no_packed_set(path: Path, got: str) -> DataError:
    return DataError(
        f"{path.name} is no packed set of pairs; nothing in it was executed",
        expected="a pickle of (encoded images, truth values), as InsightFace's lfw.bin",
        got=got[:400],
    )
