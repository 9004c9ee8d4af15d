"""Annotating a set of faces of any size with an attribute classifier, in memory or into a folder with resume."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .annotation import FORMAT, Annotations, schema_entry, texts
from .annotation_folders import AnnotationFolder, is_done, open_folder, parts_of
from .embeddings import embed, embedder_digest
from .errors import DataError, FairFaceError, ShapeError
from .images import from_uint8, warn_if_unit_range

if TYPE_CHECKING:
    from .attribute_classifier import MAC
    from .models.protocols import Embedder


@torch.no_grad()
def annotate(
    faces: Any,
    embedder: Embedder,
    mac: MAC,
    path: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 256,
    part_size: int = 10_000,
    reliability_passes: int = 100,
    size: int | tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    name: str | None = None,
    identities: Sequence[Any] | np.ndarray | Tensor | None = None,
    ids: Sequence[str] | np.ndarray | None = None,
) -> Annotations | AnnotationFolder:
    """Run an attribute classifier over a set of faces.

    With a path, the set is written to a folder in parts, each of them whole or absent. A run that was interrupted is
    taken up by calling again with the same arguments: parts that are there are kept, and the folder comes out as if
    nothing had happened, byte for byte on the same machine. A folder of another set, classifier or embedder is
    refused. That images behind unchanged paths are the same is not checked.

    Args:
        faces: images [n, 3, H, W] in [-1, 1], or uint8; or anything with `len()` and `.images(start, stop)` that gives
            them, such as a `FaceSet`, whose `paths`, `identities` and `name` are then used.
        embedder: the one whose embeddings the classifier was trained on.
        mac: of `train_mac`.
        path: a folder, new or of an interrupted run. None: the result stays in memory.
        batch_size: images at a time.
        part_size: faces in each part.
        reliability_passes: of `MAC.predict`; 0 for no reliabilities, which saves that many passes through the
            classifier.
        size: handed to `.images(start, stop, size)`, for sets whose images differ in size; see `FaceSet.images`.
        device: where images are sent; that of the classifier by default. Embedder and classifier have to be there.
        progress: show a bar.
        name: of the set. Without one it is that of `faces`; a folder then is called by its own.
        identities, ids: of the faces [n], in place of those the set has.

    Raises:
        ShapeError, DataError: things that are not faces; an image that cannot be read (the message names it);
            embeddings that are not unit vectors; a folder of something else.
    """
    from tqdm.auto import tqdm

    if not hasattr(mac, "schema") or not hasattr(mac, "predict"):
        raise DataError("no attribute classifier", expected="a MAC, of train_mac or MAC.load", got=type(mac).__name__)
    batch, who_and_which = _set_of(faces, identities, ids, size)
    n, numbers = len(faces), (batch_size, part_size, reliability_passes)
    whole = all(isinstance(x, Integral) for x in numbers)
    if not whole or min(batch_size, part_size) < 1 or reliability_passes < 0 or reliability_passes == 1 or not n:
        expected = "faces, batch_size and part_size ≥ 1, reliability_passes ≥ 2 or 0"
        got = f"{n} faces, {', '.join(map(str, numbers))}"
        raise DataError("nothing to annotate", expected=expected, got=got)
    title = str(getattr(faces, "name", None) or "") if name is None else name  # a tensor's name is None
    target = mac.device if device is None else torch.device(device)

    def predict(start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        images = batch(start, stop).to(target)
        if images.dtype == torch.uint8:
            images = from_uint8(images)
        if start == 0:
            warn_if_unit_range(images, stacklevel=5)  # predict, part, annotate, no_grad: the caller of annotate
        try:
            embeddings = embed(embedder, images, batch_size=batch_size, progress=False)
            if not reliability_passes:
                return mac(embeddings).cpu(), None
            p, reliability = mac.predict(embeddings, reliability_passes)
            return p.cpu(), reliability.cpu()
        except FairFaceError as error:
            raise type(error)(f"faces {start} to {stop - 1} of the set: {error}") from error

    def part(start: int, stop: int) -> Annotations:
        done = []
        for row in range(start, stop, batch_size):
            done.append(predict(row, min(row + batch_size, stop)))
            bar.update(len(done[-1][0]))
        p = torch.cat([x for x, _ in done])
        reliability = torch.cat([x for _, x in done if x is not None]) if reliability_passes else None
        who, which = (None if x is None else x[start:stop] for x in who_and_which)
        return Annotations(mac.schema, p, reliability, who, which, title, mac.fingerprint)

    with tqdm(total=n, desc="annotating faces", unit="img", disable=not progress) as bar:
        if path is None:
            return part(0, n)
        header = _header(faces, who_and_which, embedder, mac, title, part_size, reliability_passes, size)
        folder = open_folder(Path(path), header)
        for i, file in enumerate(parts_of(folder, header)):
            start, stop = i * part_size, min((i + 1) * part_size, n)
            if is_done(file, stop - start):
                bar.update(stop - start)
            else:
                part(start, stop).save(file)
    return AnnotationFolder(folder)


# --- details ----------------------------------------------------------------------------------------------------------


def _set_of(
    faces: Any, identities: Any, ids: Any, size: Any
) -> tuple[Any, tuple[np.ndarray | None, np.ndarray | None]]:
    """A function (start, stop) → images, and the faces' identities and ids."""
    if isinstance(faces, Tensor):
        if faces.ndim != 4 or faces.shape[1] != 3:
            grey = faces.ndim == 4 and faces.shape[1] == 1
            fix = "images.expand(-1, 3, -1, -1)" if grey else None
            raise ShapeError("no images", expected="[n, 3, H, W] in [-1, 1]", got=list(faces.shape), fix=fix)
        who_and_which = texts(identities, "identities", len(faces)), texts(ids, "ids", len(faces))
        return lambda start, stop: faces[start:stop], who_and_which
    if not hasattr(faces, "images") or not hasattr(faces, "__len__"):
        expected = "images [n, 3, H, W], or something with len() and .images(start, stop), such as a FaceSet"
        raise ShapeError("this is no set of faces", expected=expected, got=type(faces).__name__)
    identities = getattr(faces, "identities", None) if identities is None else identities
    ids = getattr(faces, "paths", None) if ids is None else ids
    names = texts(ids, "ids", len(faces))

    def read(start: int, stop: int) -> Tensor:
        return faces.images(start, stop) if size is None else faces.images(start, stop, size)

    def batch(start: int, stop: int) -> Tensor:
        try:
            images = read(start, stop)
        except FairFaceError:
            raise
        except Exception as error:
            bad = _first_unreadable(read, start, stop)
            what = f"face {bad}" if names is None else names[bad]
            raise DataError(f"cannot read {what}", expected="an image", got=error, fix="leave it out") from error
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != stop - start:
            got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ShapeError("the set gave something else", expected=f"images [{stop - start}, 3, H, W]", got=got)
        return images

    return batch, (texts(identities, "identities", len(faces)), names)


def _first_unreadable(read: Callable[[int, int], Tensor], start: int, stop: int) -> int:
    for i in range(start, stop):
        try:
            read(i, i + 1)
        except Exception:
            return i
    return start


def _header(
    faces: Any,
    who_and_which: tuple[np.ndarray | None, np.ndarray | None],
    embedder: Embedder,
    mac: MAC,
    name: str,
    part_size: int,
    passes: int,
    size: Any,
) -> dict[str, Any]:
    """All that decides the content of the folder, and the versions that made it."""
    digest = hashlib.blake2b(digest_size=16)
    for text in who_and_which:
        for row in () if text is None else text:
            digest.update(f"{row}\n".encode())
        digest.update(b"-")
    if isinstance(faces, Tensor):
        digest.update(f"{list(faces.shape)} {faces.dtype}".encode())
        some = faces[:: max(1, len(faces) // 64)]
        digest.update(some.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "format": FORMAT,
        "name": name,
        "n": len(faces),
        "part_size": part_size,
        "reliability_passes": passes,
        "size": list(size) if isinstance(size, tuple) else size,
        "has_identities": who_and_which[0] is not None,
        **schema_entry(mac.schema),
        "set": digest.hexdigest(),
        "mac": mac.fingerprint,
        "embedder": {"class": type(embedder).__qualname__, "dim": embedder.dim, "weights": embedder_digest(embedder)},
        "versions": {"torch": str(torch.__version__)},
    }
