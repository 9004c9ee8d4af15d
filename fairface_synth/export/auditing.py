"""The audit of a set: a sample of its identities, and what models say of their images as they are on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..embeddings import check_embeddings
from ..errors import ShapeError
from ..groups import Groups
from ..images import check_range
from ..models.facenet import faces_found
from ..models.pretrained import resize
from ..models.protocols import Embedder, Labeller
from .plan import DatasetPlan
from .readme import FIGURE_GROUPS

GRID_FACES = 10  # of a group, kept for the figure of faces
_GRID_SIDE = 128
_VARIED_IDENTITIES, _VARIED_PLACES = 200, 8


def spread(group: np.ndarray, wanted: int) -> np.ndarray:
    """Positions of at most `wanted` members, rising: every group in proportion, evenly over its members.

    Groups take turns in a set, so that every other identity, say, would all be of one group.
    """
    n, m = len(group), min(wanted, len(group))
    places = (2 * np.arange(m) + 1) * n // (2 * m)
    return np.sort(np.argsort(group, kind="stable")[places])


class Sample:
    """The audited identities, int64 [n], rising, and the groups they were aimed at."""

    def __init__(self, plan: DatasetPlan, groups: Groups, identities: np.ndarray) -> None:
        self.plan, self.groups, self.identities = plan, groups, identities
        self.names = list(plan.quota)
        self.turn = plan.order[identities]  # index into the quota
        self.aimed = torch.tensor([groups.id(name) for name in self.names])[torch.from_numpy(self.turn)]

    def drawn_images(self) -> np.ndarray:
        """A variation of each identity, by the plan's seed: image numbers, int64 [n], rising."""
        k, rng = self.plan.images_per_identity, torch.Generator().manual_seed(self.plan.seed % 2**63)
        return self.identities * k + torch.randint(1, k, (len(self.identities),), generator=rng).numpy()

    def members(self) -> Iterator[tuple[str, np.ndarray]]:
        """Each group of the quota and which of the sample are of it, bool [n]; groups without any are left out."""
        for i, name in enumerate(self.names):
            if (self.turn == i).any():
                yield name, self.turn == i


@dataclass(frozen=True)
class Faces:
    """What the models say of the sample's faces."""

    labels: tuple[Tensor | None, Tensor | None]  # group ids [n], -1 unsure: labeller's, judge's
    found: Tensor | None  # bool [n]
    vectors: Tensor | None  # [n, e]
    grid: Tensor  # a few faces, small
    grid_ids: Tensor


def measure_faces(
    sample: Sample,
    images: Callable[[Sequence[int]], Tensor],
    labellers: tuple[Labeller | None, Labeller | None],
    detector: Callable[[Tensor], Any] | None,
    embedder: Embedder | None,
    min_confidence: float,
) -> Faces:
    """One pass over the faces, a batch in memory at a time."""
    labels: tuple[list[Tensor], list[Tensor]] = ([], [])
    found, vectors, grid, grid_ids = list[Tensor](), list[Tensor](), list[Tensor](), list[int]()
    room = dict.fromkeys(range(min(FIGURE_GROUPS, len(sample.names))), GRID_FACES)
    done = 0
    for batch in _batches(sample.identities * sample.plan.images_per_identity, sample.plan.forward_batch, images):
        for model, into in zip(labellers, labels, strict=True):
            if model is not None:
                into.append(sample.groups.assign(model(batch), min_confidence).cpu())
        if detector is not None:
            found.append(faces_found(detector(batch)).cpu())
        if embedder is not None:
            vectors.append(check_embeddings(embedder(batch), "what the embedder gave").cpu().float())
        for i in range(len(batch)):
            turn = int(sample.turn[done + i])
            if room.get(turn):
                room[turn] -= 1
                grid.append(resize(batch[i : i + 1].float(), _thumbnail(batch)).cpu())
                grid_ids.append(int(sample.aimed[done + i]))
        done += len(batch)
    first, second = (torch.cat(parts) if parts else None for parts in labels)
    return Faces(
        labels=(first, second),
        found=torch.cat(found) if found else None,
        vectors=torch.cat(vectors) if vectors else None,
        grid=torch.cat(grid),
        grid_ids=torch.tensor(grid_ids),
    )


@dataclass(frozen=True)
class Variations:
    """What the models say of images that are not their identity's face; None: no model, or no such image."""

    labels: tuple[Tensor | None, Tensor | None]  # of one image of every identity of the sample, as `Faces.labels`
    rows: np.ndarray  # those of the sample that were compared with their faces
    places: np.ndarray  # by these images of theirs
    cosines: np.ndarray | None  # [rows, places]


def measure_variations(
    sample: Sample,
    images: Callable[[Sequence[int]], Tensor],
    labellers: tuple[Labeller | None, Labeller | None],
    embedder: Embedder | None,
    vectors: Tensor | None,
    min_confidence: float,
) -> Variations:
    """One pass over some variations, each image read once: many identities for labels, many places for cosines."""
    k = sample.plan.images_per_identity
    rows = spread(sample.turn, _VARIED_IDENTITIES)
    places = np.unique(np.linspace(1, k - 1, min(_VARIED_PLACES, k - 1)).round().astype(np.int64))
    if k == 1:
        return Variations((None, None), rows, places, None)
    compared = (sample.identities[rows, None] * k + places).ravel() if embedder is not None else places[:0]
    drawn = sample.drawn_images() if any(model is not None for model in labellers) else places[:0]
    numbers, labels, embedded = np.union1d(compared, drawn), (list[Tensor](), list[Tensor]()), list[Tensor]()
    done = 0
    for batch in _batches(numbers, sample.plan.forward_batch, images):
        part = numbers[done : done + len(batch)]
        done += len(batch)
        to_label, to_embed = (torch.from_numpy(np.isin(part, some)) for some in (drawn, compared))
        for model, into in zip(labellers, labels, strict=True):
            if model is not None and to_label.any():
                into.append(sample.groups.assign(model(batch[to_label]), min_confidence).cpu())
        if embedder is not None and to_embed.any():
            embedded.append(embedder(batch[to_embed]).cpu().float())
    first, second = (torch.cat(parts) if parts else None for parts in labels)
    cosines = None
    if embedded and vectors is not None:
        own = vectors[torch.from_numpy(rows)].repeat_interleave(len(places), dim=0)
        cosines = (torch.cat(embedded) * own).sum(1).double().numpy().reshape(len(rows), len(places))
    return Variations((first, second), rows, places, cosines)


# --- details ------------------------------------------------------------------------------------------------------


def _batches(numbers: np.ndarray, size: int, images: Callable[[Sequence[int]], Tensor]) -> Iterator[Tensor]:
    for i in range(0, len(numbers), size):
        wanted = numbers[i : i + size].tolist()
        batch = images(wanted)
        if batch.ndim != 4 or batch.shape[:2] != (len(wanted), 3):
            raise ShapeError("these are not the images asked for", expected=[len(wanted), 3, "H", "W"], got=batch.shape)
        check_range(batch)
        yield batch


def _thumbnail(batch: Tensor) -> tuple[int, int]:
    shrink = min(1.0, _GRID_SIDE / max(batch.shape[-2:]))
    return round(batch.shape[-2] * shrink), round(batch.shape[-1] * shrink)
