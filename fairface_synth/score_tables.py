"""The table that an audit reads: scores of images, those of their shuffled pixels, their covariates and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .covariates import Regions, covariates, named_regions
from .discriminators import Resize, check_finite, check_options, condition_rows, logits_of, prepare, to_device
from .errors import DataError, ShapeError
from .latents import _batches, philox
from .tables import Table, read_table

_SHUFFLE_LANE = 0x5348554C  # apart from the streams that latents of the same seed are drawn from


class FaceImages(Protocol):
    """Images that need not be in memory: a `FaceSet`, or anything with a length that gives a range of images."""

    def __len__(self) -> int: ...

    def images(self, start: int, stop: int) -> Tensor:
        """Images start … stop − 1, [stop − start, 3, H, W] in [-1, 1]; with size=, if `score_table` is given one."""


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
    check_options("minus1_1", resize, 1, batch_size)
    n = len(images)
    if n == 0:
        raise DataError("no images", expected="at least one", got=0)
    columns = _label_columns(images, labels, n)
    options: Any = {} if size is None else {"size": size}
    parts: dict[str, list[Tensor]] = {}
    for rows in _batches(n, batch_size, "scoring", progress):
        batch = images[rows] if isinstance(images, Tensor) else images.images(rows.start, rows.stop, **options)
        batch = to_device(discriminator, batch)
        described = covariates(batch, _region_rows(regions, batch, rows, n))
        condition = condition_rows(c, rows.start, rows.stop, n)
        x = prepare(discriminator, batch, "minus1_1", resize)
        raw = prepare(discriminator, batch, "uint8_raw", resize)
        row = {
            "score": logits_of(discriminator, x, condition, 1),
            "score_raw": logits_of(discriminator, raw, condition, 1),
        }
        if control:
            shuffled = shuffle_pixels(x, seed, start=rows.start)
            row["score_shuffled"] = logits_of(discriminator, shuffled, condition, 1)
        row = {k: check_finite(v) for k, v in row.items()} | described
        for name, values in row.items():
            parts.setdefault(name, []).append(values.cpu())
    table = {name: torch.cat(values).double().numpy() for name, values in parts.items()}
    taken = sorted(table.keys() & columns.keys())
    if taken:
        raise DataError("labels have the names of computed columns", expected="other names", got=", ".join(taken))
    return table | columns


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


# --- details ----------------------------------------------------------------------------------------------------------


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
        return named_regions(regions(batch))
    masks = named_regions(regions)
    wrong = {name: len(mask) for name, mask in masks.items() if len(mask) != n}
    if wrong:
        raise ShapeError("regions do not fit the images", expected=f"{n} masks each", got=wrong)
    return {name: mask[rows] for name, mask in masks.items()}
