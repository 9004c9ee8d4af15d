"""Identity embeddings of faces: made by an embedder, remembered from one run to the next, checked.

One unit vector a face: [n, e]. `cosines` compares them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from .artifacts import Artifact, has_values
from .cosines import cosine_dtype
from .errors import DataError, ShapeError
from .images import check_range
from .models.protocols import Embedder


@torch.no_grad()
def embed(
    embedder: Embedder,
    images: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 256,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tensor:
    """Identity embeddings of many images [n, e], unit vectors, on the images' device. No gradient.

    Args:
        embedder: the model.
        images: [n, 3, H, W] in [-1, 1]; or an iterable of such batches, which are not kept.
        batch_size: images at a time.
        cache: a file that remembers embeddings from one run to the next, made when missing. Each is filed under its
            image's exact values and the file belongs to one embedder (its class and weights); a few remembered ones are
            computed again in every run and must agree. What is done is written even if the run is interrupted.
            Meant for images from files: images synthesised again may differ in the last bit, and are then
            embedded again. A file has one writer at a time: of two, the last one's embeddings remain.
        progress: show a bar.

    Raises:
        DataError: no images; images out of range; vectors that are not finite and of unit length; a cache of another
            embedder, or a file that is no cache.
        ShapeError: things that are not batches of images, or an embedder that does not give [n, dim].
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise DataError("no images at a time", expected="batch_size ≥ 1", got=batch_size)
    memory = None if cache is None else _Memory(embedder, Path(cache))
    total = len(images) if isinstance(images, Tensor) else None
    parts: list[Tensor] = []
    try:
        with tqdm(total=total, desc="embedding faces", unit="img", disable=not progress) as bar:
            for batch in _image_batches(images, batch_size):
                if not parts:
                    check_range(batch)
                parts.append(_embed_batch(embedder, batch) if memory is None else memory.embed(batch))
                bar.update(len(batch))
    finally:
        if memory is not None:
            memory.save()
    if not parts:
        raise DataError(
            "no images to embed",
            expected="at least one",
            got=0,
            fix="an iterator can be used up only once: make a new one",
        )
    return torch.cat(parts)


def check_embeddings(embeddings: Tensor, what: str = "embeddings") -> Tensor:
    """The embeddings themselves; an error unless they are finite unit vectors [n, e]. Looks at the values once."""
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or not embeddings.is_floating_point():
        got = f"{list(embeddings.shape)} {embeddings.dtype}"
        raise ShapeError(f"{what}: not embeddings", expected="[n, e] float unit vectors", got=got)
    if has_values(embeddings) and len(embeddings):
        norms = torch.linalg.vector_norm(embeddings, dim=1, dtype=cosine_dtype(embeddings))
        tolerance = 1e-2 if embeddings.dtype.itemsize < 4 else 1e-3
        if not bool(((norms - 1).abs() <= tolerance).all()):
            raise DataError(
                f"{what}: not unit vectors",
                expected="rows of length 1, no NaN",
                got=f"lengths from {float(norms.min()):.4g} to {float(norms.max()):.4g}",
                fix="torch.nn.functional.normalize(embeddings, dim=1); NaN: check the images and the embedder",
            )
    return embeddings


def embedder_digest(embedder: Embedder) -> str:
    """Hexadecimal digits of an embedder's class and weights, by which caches and annotations know it."""
    name = getattr(embedder, "__qualname__", type(embedder).__qualname__)
    digest = hashlib.blake2b(f"{name} {embedder.dim}".encode(), digest_size=16)
    for key, value in embedder.state_dict().items() if isinstance(embedder, nn.Module) else ():
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


# --- details -------------------------------------------------------------------------------------------------------


def _image_batches(images: Tensor | Iterable[Tensor], size: int) -> Iterator[Tensor]:
    for batch in (images,) if isinstance(images, Tensor) else images:
        if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[1] != 3:
            got = list(batch.shape) if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
            raise ShapeError(
                "this is no batch of images",
                expected="[b, 3, H, W] float RGB in [-1, 1], or an iterable of such",
                got=got,
                fix="a loader that gives (images, labels): (images for images, _ in loader)",
            )
        if len(batch):
            yield from batch.split(size)


def _embed_batch(embedder: Embedder, images: Tensor) -> Tensor:
    vectors = embedder(images)
    if vectors.shape != (len(images), embedder.dim):
        expected, got = [len(images), embedder.dim], list(vectors.shape)
        raise ShapeError("the embedder gave something else", expected=expected, got=got)
    return check_embeddings(vectors, "what the embedder gave")


class _Memory:
    """Embeddings by the content of their images; see `embed`."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self.embedder, self.path, self.name = embedder, path, embedder_digest(embedder)
        self.table, self.rows = torch.empty(0, embedder.dim), dict[bytes, int]()
        self.trusted = self.unchanged = True
        if not path.exists():
            return
        stored = _Remembered.load(path)
        if stored.embedder != self.name:
            self._refuse()
        self.table = check_embeddings(stored.embeddings, f"what {path} holds")
        self.rows = {key.tobytes(): row for row, key in enumerate(stored.keys.numpy())}
        if len(self.rows) != len(self.table):
            raise DataError(f"{path} is damaged", expected=f"{len(self.table)} keys", got=len(self.rows))
        self.trusted = False

    def embed(self, images: Tensor) -> Tensor:
        keys = _hashes(images)
        if not self.trusted:
            self._compare(images, keys)
        new = {key: i for i, key in enumerate(keys) if key not in self.rows}
        if new:
            vectors = _embed_batch(self.embedder, images[list(new.values())]).cpu()
            self._append(new, vectors)
        rows = torch.tensor([self.rows[key] for key in keys])
        return self.table[rows].to(images.device)

    def _append(self, keys: Iterable[bytes], vectors: Tensor) -> None:
        used, self.unchanged = len(self.rows), False
        if used + len(vectors) > len(self.table):  # doubled, so that a row is copied about once
            larger = vectors.new_empty(max(2 * len(self.table), used + len(vectors)), vectors.shape[1])
            larger[:used] = self.table[:used]
            self.table = larger
        self.table[used : used + len(vectors)] = vectors
        self.rows.update((key, used + i) for i, key in enumerate(keys))

    def _compare(self, images: Tensor, keys: list[bytes]) -> None:
        """Catches what a fingerprint of weights cannot: another forward pass, a plain function that changed."""
        known = [i for i, key in enumerate(keys) if key in self.rows][:4]
        if not known:
            return
        again = _embed_batch(self.embedder, images[known]).cpu().float()
        stored = self.table[[self.rows[keys[i]] for i in known]].float()
        if not bool(((again * stored).sum(1) > 0.999).all()):
            self._refuse()
        self.trusted = True

    def _refuse(self) -> None:
        raise DataError(
            f"{self.path} holds the embeddings of another embedder",
            expected="the embedder that the file was made with",
            got=f"a {type(self.embedder).__name__} of other weights or another forward pass",
            fix="give each embedder a file of its own, or delete this one",
        )

    def save(self) -> None:
        if not self.unchanged:
            keys = torch.frombuffer(bytearray(b"".join(self.rows)), dtype=torch.uint8).view(len(self.rows), -1)
            _Remembered(keys, self.table[: len(self.rows)], self.name).save(self.path)


@dataclass(frozen=True, repr=False, eq=False)
class _Remembered(Artifact):
    """The cache's file: embeddings by the hash of their image, of one embedder."""

    kind: ClassVar[str] = "embeddings"

    keys: Tensor
    embeddings: Tensor
    embedder: str


def _hashes(images: Tensor) -> list[bytes]:
    kind = f"{images.dtype} {list(images.shape[1:])}".encode()
    raw = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [hashlib.blake2b(row, digest_size=16, key=kind).digest() for row in raw]
