"""Face sets on disk: paths, and what is known of each face; pixels are read when they are asked for."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .attribute_schema import AttributeSchema
from .errors import DataError, GroupError, ShapeError
from .face_files import as_indices, as_size, as_slice, read_image
from .groups import UNSURE, Groups
from .reports import markdown_table
from .tables import Table
from .vocabulary import UNKNOWN, plain


@dataclass(frozen=True, repr=False, eq=False)
class FaceSet:
    """Faces on disk with what is known of them. Only `images` opens image files.

    Attributes:
        name: of the set, for tables and figures.
        root: the folder that the paths start from.
        paths: one file per face, relative to `root`, with "/" between folders (absolute paths are kept as they are).
        identities: who is on each face, or None if the set does not say.
        labels: {label: a value per face}, "unknown" where the source has none. Ages are the source's words: years in
            UTKFace and MORPH, ranges in FairFace.
        annotations: int8 [n, K], 1 present, −1 absent, 0 undefined, or None.
        schema: names of the K annotations, or None.
        vocabulary: {label: the values it can take}; by default those that occur.
        missing: how many listed files do not exist, or None if nobody looked.
        notes: what was odd about the source, a sentence each.
        size: (height, width) that `images` resizes to unless told otherwise, or None: as they are.

    Raises:
        DataError: no faces, columns of different lengths, annotations without names or outside {−1, 0, 1}.
        ShapeError: annotations that are not int8 [n, K].
    """

    name: str
    root: Path
    paths: tuple[str, ...]
    identities: tuple[str, ...] | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    annotations: Tensor | None = None
    schema: AttributeSchema | None = None
    vocabulary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: int | None = None
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        columns = {"paths": self.paths, "identities": self.identities, **self.labels}
        if bad := [name for name, values in columns.items() if isinstance(values, str)]:
            raise DataError("a column is a sequence of texts", expected="('a.png', 'b.png')", got=f"{bad[0]}= one text")
        labels = {name: tuple(values) for name, values in self.labels.items()}
        words = {name: tuple(self.vocabulary.get(name) or sorted(set(values))) for name, values in labels.items()}
        who = None if self.identities is None else tuple(self.identities)
        fields = {"root": Path(self.root), "paths": tuple(self.paths), "identities": who}
        fields |= {"labels": labels, "vocabulary": words, "size": as_size(self.size)}
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        _check_set(self)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        known = [*self.labels, *(() if self.schema is None else (f"{len(self.schema.names)} annotations",))]
        return f"FaceSet({self.name}: {len(self)} faces, labels: {', '.join(known) or 'none'})"

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self):,} faces in {self.root}"]
        counts = self.counts()
        rows = [[a, _share(c[UNKNOWN], len(self)), _most_frequent(c)] for a, c in counts.items()]
        if rows:
            lines.append(markdown_table(["label", UNKNOWN, "values"], rows))
        who = "none" if self.identities is None else f"{len(set(self.identities)):,}"
        lines.append(f"identities: {who}")
        if self.annotations is not None:
            undefined = int((self.annotations == 0).sum())
            share = _share(undefined, self.annotations.numel())
            lines.append(f"annotations: {self.annotations.shape[1]} attributes, undefined {share}")
        lines.append(f"missing files: {'not looked for' if self.missing is None else f'{self.missing:,}'}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def counts(self) -> dict[str, dict[str, int]]:
        """{label: {value: faces}}, most frequent first; "unknown" is always there and always last."""
        result = {}
        for name, values in self.labels.items():
            count = Counter(values)
            unknown = count.pop(UNKNOWN, 0)
            result[name] = {**dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))), UNKNOWN: unknown}
        return result

    def images(self, start: int = 0, stop: int | None = None, size: int | tuple[int, int] | None = None) -> Tensor:
        """Read the images of faces start … stop − 1, as a slice does.

        Orientation from EXIF is applied; grey becomes RGB, transparency is laid on white, 16 bits keep their depth.
        With `size`, the largest centred box of that shape is cut out and resized (bilinear, antialiased): proportions
        are kept, since face shape is an attribute, at the price of the margins of oblong images.

        Args:
            start, stop: the slice; `stop` may lie past the end.
            size: pixels, one number for a square or (height, width); None: the set's own `size`, and if it has none,
                the images' sizes, which must then be equal.

        Returns:
            float32 RGB [m, 3, H, W] in [−1, 1].

        Raises:
            DataError: an empty slice, a file that is missing or damaged (named), images that differ in size.
        """
        paths, size = self.paths[as_slice(start, stop, len(self))], self.size if size is None else as_size(size)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release Python's lock
            images = list(pool.map(lambda path: read_image(self.root / path, size), paths))
        odd = next((i for i, image in enumerate(images) if image.shape != images[0].shape), None)
        if odd is not None:
            raise DataError(
                "images differ in size",
                expected=f"{list(images[0].shape[1:])} as {paths[0]}",
                got=f"{list(images[odd].shape[1:])}: {paths[odd]}",
                fix="pass size=, here or to read_faces, for example size=224",
            )
        return torch.stack(images)

    def subset(self, indices: Iterable[int] | Tensor | np.ndarray) -> FaceSet:
        """The faces at these indices in this order, or those a mask [n] is true for. Vocabularies stay; `missing` and
        `notes`, which speak of the whole set, do not.

        Raises:
            DataError: no faces, indices out of range.
            ShapeError: not a list of indices, or a mask of another length.
        """
        rows = as_indices(indices, len(self))
        picked = rows.tolist()
        return replace(
            self,
            paths=_pick(self.paths, picked),
            identities=None if self.identities is None else _pick(self.identities, picked),
            labels={name: _pick(values, picked) for name, values in self.labels.items()},
            annotations=None if self.annotations is None else self.annotations[torch.from_numpy(rows)],
            missing=None,
            notes=(),
        )

    def group_ids(self, groups: Groups) -> Tensor:
        """Group of each face: int64 [n], −1 where a label is unknown or is none of the groups' values.

        Values are matched ignoring case, spaces and punctuation: Groups({"race": ["White", "Middle Eastern"]}) fits.

        Raises:
            GroupError: an attribute that the set has no labels for, or a value that its label can never take.
        """
        ids: np.ndarray = np.zeros(len(self), dtype=np.int64)
        sure = np.ones(len(self), dtype=bool)
        by_name = {plain(name): name for name in self.labels}
        for attribute, values in groups.attributes.items():
            if plain(attribute) not in by_name:
                raise GroupError(
                    f"{self.name} has no labels for {attribute!r}", expected=", ".join(self.labels) or "none at all"
                )
            label = by_name[plain(attribute)]
            lookup = self._lookup(label, values)
            column = np.fromiter((lookup.get(v, UNSURE) for v in self.labels[label]), np.int64, len(self))
            ids, sure = ids * len(values) + column, sure & (column != UNSURE)
        return torch.from_numpy(np.where(sure, ids, UNSURE))

    def _lookup(self, label: str, values: Sequence[str]) -> dict[str, int]:
        """The set's spellings of each value → the value's index; "unknown" has none."""
        wanted = {plain(value): i for i, value in enumerate(values)}
        if len(wanted) < len(values):
            raise GroupError(f"two values of {label} read alike", expected="different names", got=", ".join(values))
        known = {value: plain(value) for value in self.vocabulary[label] if value != UNKNOWN}
        for value in values:
            if plain(value) not in known.values():
                near = difflib.get_close_matches(plain(value), list(known.values()), n=3, cutoff=0.5)
                raise GroupError(
                    f"no face of {self.name} can have {label} {value!r}",
                    expected=", ".join(list(known)[:20]) or "nothing: all are unknown",
                    got=value,
                    fix="did you mean " + " or ".join(map(repr, near)) + "?" if near else None,
                )
        return {value: wanted[plain] for value, plain in known.items() if plain in wanted}

    def to_table(self) -> Table:
        """Columns path, identity (if known), the labels as text, the annotations as int8: what `write_table` takes."""
        table: Table = {"path": np.array(self.paths)}
        if self.identities is not None:
            table["identity"] = np.array(self.identities)
        table |= {name: np.array(values) for name, values in self.labels.items()}
        if self.annotations is not None and self.schema is not None:
            table |= dict(zip(self.schema.names, self.annotations.numpy().T, strict=True))
        return table


def look_for_files(faces: FaceSet, missing: str) -> FaceSet:
    """Look folder by folder: a listing per folder is much faster than asking for each of millions of files."""
    there: dict[str, set[str]] = {}
    exists = np.empty(len(faces), dtype=bool)
    for i, path in enumerate(faces.paths):
        folder, _, name = path.rpartition("/")
        if folder not in there:
            there[folder] = _names_in(faces.root / (folder or ("/" if path.startswith("/") else "")))
        exists[i] = name in there[folder]
    gone = int((~exists).sum())
    if gone and (missing == "error" or gone == len(faces)):
        raise DataError(
            f"{gone} of {len(faces)} listed files do not exist",
            expected=f"the images under {faces.root}",
            got=", ".join(faces.paths[i] for i in np.flatnonzero(~exists)[:3]),
            fix="check root=" if gone == len(faces) else 'missing="count" or missing="drop"',
        )
    kept = faces.subset(exists) if gone and missing == "drop" else faces
    dropped = (f"{gone} listed files do not exist and were left out",) if kept is not faces else ()
    return replace(kept, missing=gone, notes=(*faces.notes, *dropped))


# --- details ----------------------------------------------------------------------------------------------------------


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"cannot look into {folder}", got=error) from error


def _check_set(faces: FaceSet) -> None:
    n, k = len(faces.paths), 0 if faces.schema is None else len(faces.schema.names)
    if n == 0:
        raise DataError("a set without faces", expected="at least one path")
    lengths = {name: len(values) for name, values in faces.labels.items()}
    if faces.identities is not None:
        lengths["identities"] = len(faces.identities)
    if wrong := {name: length for name, length in lengths.items() if length != n}:
        raise DataError("columns differ in length", expected=f"{n}, one value per path", got=wrong)
    taken = {"path", "identity", *(faces.schema.names if faces.schema else ())} & set(faces.labels)
    if taken:
        raise DataError("this name is taken", expected="other names for labels", got=", ".join(sorted(taken)))
    x = faces.annotations
    if (x is None) != (faces.schema is None):
        raise DataError("annotations and their names come together", expected="annotations and schema, or neither")
    if x is not None and (not isinstance(x, Tensor) or x.dtype != torch.int8 or x.shape != (n, k)):
        got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError("these are not annotations of this set", expected=f"int8 [{n}, {k}]", got=got)
    if x is not None and k and (int(x.min()) < -1 or int(x.max()) > 1):
        raise DataError("annotations are 1, −1 or 0", expected="-1, 0, 1", got=f"{int(x.min())} … {int(x.max())}")


def _pick(values: Sequence[str], rows: Sequence[int]) -> tuple[str, ...]:
    return tuple(values[i] for i in rows)


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / max(1, total):.1%})"


def _most_frequent(counts: Mapping[str, int], shown: int = 8) -> str:
    known = [f"{value} {count:,}" for value, count in counts.items() if value != UNKNOWN]
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return ", ".join(known[:shown]) + more or "none"
