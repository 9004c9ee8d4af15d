"""A verification protocol: faces, and the pairs of them that are compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, GroupError, ShapeError
from ..face_files import as_indices
from ..face_sets import FaceSet
from ..groups import Groups
from ..reports import markdown_table
from .packed import PackedFaces


@dataclass(frozen=True, repr=False, eq=False)
class PairSet:
    """A verification protocol: faces, and the pairs of them that are compared.

    Each image is one row of `faces`, however often it is compared; only an image that is compared with itself has two.

    Attributes:
        name: of the set, for tables and figures.
        faces: a `FaceSet` with the set's identities and labels, or `PackedFaces`, which have neither. Both have
            `len()` and `images(start, stop, size)`.
        pairs: int64 [m, 2], rows of `faces`.
        mated: bool [m], whether both faces are of one person.
        folds: int64 [m], the protocol's folds, numbered from 0; None where it has none.
        notes: what was odd about the source, a sentence each.

    Raises:
        DataError: no pairs, rows that do not exist, a face with itself.
        ShapeError: columns of other types or of different lengths.
    """

    name: str
    faces: FaceSet | PackedFaces
    pairs: Tensor
    mated: Tensor
    folds: Tensor | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        m, n = len(self.pairs) if isinstance(self.pairs, Tensor) else 0, len(self.faces)
        columns = {"pairs": (self.pairs, torch.int64, (m, 2)), "mated": (self.mated, torch.bool, (m,))}
        if self.folds is not None:
            columns["folds"] = (self.folds, torch.int64, (m,))
        for name, (column, dtype, shape) in columns.items():
            if not isinstance(column, Tensor) or column.dtype != dtype or column.shape != shape:
                got = f"{column.dtype} {list(column.shape)}" if isinstance(column, Tensor) else type(column).__name__
                raise ShapeError(f"these are no {name}", expected=f"{dtype} {list(shape)}", got=got)
        if m == 0:
            raise DataError("a set without pairs", expected="at least one")
        low, high = int(self.pairs.min()), int(self.pairs.max())
        if low < 0 or high >= n:
            raise DataError("a pair names a face that does not exist", expected=f"0 … {n - 1}", got=f"{low} … {high}")
        if bool((self.pairs[:, 0] == self.pairs[:, 1]).any()):
            raise DataError("a face is compared with itself", expected="two different rows in each pair")

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"PairSet({self.name}: {len(self)} pairs of {len(self.faces)} faces)"

    def __str__(self) -> str:
        mated = int(self.mated.sum())
        known = identities_of(self.faces)
        people = "unknown" if known is None else f"{len(set(known)):,}"
        folds = "none" if self.folds is None else f"{len(self.folds.unique()):,}"
        lines = [
            f"{self.name}: {len(self):,} pairs ({mated:,} mated, {len(self) - mated:,} non-mated) of "
            f"{len(self.faces):,} faces; identities: {people}; folds: {folds}"
        ]
        if rows := self._within_labels():
            lines.append(markdown_table(["label", "value", "faces", "mated", "non-mated within"], rows))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _within_labels(self) -> list[list[str]]:
        """For each value of a label: its faces, and the pairs that have both faces in it."""
        rows = []
        labels = self.faces.labels if isinstance(self.faces, FaceSet) else {}
        for label, values in labels.items():
            words, ids = np.unique(np.array(values), return_inverse=True)
            first, second = ids[self.pairs.cpu().numpy()].T
            same, mated = first == second, self.mated.cpu().numpy()
            for i, word in enumerate(words.tolist()):
                within = same & (first == i)
                counts = (int((ids == i).sum()), int((within & mated).sum()), int((within & ~mated).sum()))
                rows.append([label, word, *(f"{count:,}" for count in counts)])
        return rows

    @property
    def identity_ids(self) -> Tensor | None:
        """Who is on each face, int64 [n], numbered from 0 in the order of `faces`. None where the set does not say, or
        where it contradicts `mated` (`notes` count how often)."""
        known = identities_of(self.faces)
        if known is None:
            return None
        ids = torch.from_numpy(word_numbers(known)).to(self.pairs.device)
        first, second = ids[self.pairs].unbind(1)
        return ids if torch.equal(first == second, self.mated) else None

    def group_ids(self, groups: Groups) -> Tensor:
        """Group of each face, int64 [n], −1 for none, as `FaceSet.group_ids`.

        Raises:
            GroupError: labels that the set does not have.
        """
        if not isinstance(groups, Groups):
            got, fix = f"a {type(groups).__name__}", 'Groups({"gender": ("female", "male")})'
            raise GroupError("groups are labels and their values", expected="Groups", got=got, fix=fix)
        if not isinstance(self.faces, FaceSet):
            raise GroupError(f"{self.name} is a packed set, which has no labels", expected="a set with labels")
        return self.faces.group_ids(groups)

    def arguments(self, embeddings: Tensor, groups: Groups | None = None) -> dict[str, Any]:
        """What `verify` takes: `verify(**pairs.arguments(embeddings, groups))`, on the embeddings' device.

        Args:
            embeddings: unit vectors [n, e], one for each of `faces`, in their order.
            groups: of the faces' labels, for figures per group.

        Raises:
            ShapeError: not one embedding per face.
            GroupError: labels that the set does not have.
        """
        n = len(self.faces)
        if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or len(embeddings) != n:
            got = list(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
            raise ShapeError("one embedding per face, please", expected=f"[{n}, e]", got=got)
        found = {"pairs": self.pairs, "mated": self.mated, "folds": self.folds, "identities": self.identity_ids}
        if groups is not None:
            found["group_ids"] = self.group_ids(groups)
        arguments = {name: value.to(embeddings.device) for name, value in found.items() if value is not None}
        return {"embeddings": embeddings, **arguments, **({} if groups is None else {"groups": groups})}

    def subset(self, indices: Iterable[int] | Tensor | np.ndarray) -> PairSet:
        """The pairs at these indices in this order, or those a mask [m] is true for, with the faces that they need.

        Raises:
            DataError: no pairs, indices out of range.
            ShapeError: not a list of indices, or a mask of another length.
        """
        rows = torch.from_numpy(as_indices(indices, len(self))).to(self.pairs.device)
        needed, places = self.pairs[rows].unique(return_inverse=True)
        folds = None if self.folds is None else self.folds[rows]
        return replace(
            self, faces=self.faces.subset(needed), pairs=places, mated=self.mated[rows], folds=folds, notes=()
        )


def identities_of(faces: FaceSet | PackedFaces) -> tuple[str, ...] | None:
    """Who is on each face; None where that is not known."""
    return faces.identities if isinstance(faces, FaceSet) else None


def word_numbers(words: Iterable[str]) -> np.ndarray:
    """Words as numbers, from 0 in the order in which they come: int64."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int64)
