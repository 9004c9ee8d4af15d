"""Verification protocols on disk: lists of pairs of faces, and which of them show one person.

`read_pairs` reads LFW's lists, RFW's, BFW's table, InsightFace's packed sets (lfw.bin, cfp_fp.bin, …) and any list of
one's own into a `PairSet`, in which each image is listed once, so that it is embedded once. Nothing is downloaded, no
image is opened, and nothing in a pickled set is executed.
"""

from __future__ import annotations

import csv
import difflib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .datasets import GENDERS, RACES, UNKNOWN, FaceSet, look_for_files, race_root
from .errors import DataError, FairFaceError, GroupError, ShapeError
from .face_files import as_indices, as_size, as_slice, fit, folders_in, relative, rgb, upright
from .groups import Groups
from .models.safe_pickle import Budget, Captured, Resolver, read_pickle
from .reports import markdown_table
from .tables import read_table

_FOLDS = 10
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")  # of packed images; others can start programs (EPS)
_RFW_RACES = {"African": "black", "Asian": "asian", "Caucasian": "white", "Indian": "indian"}
_TRUTH = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "-1", "false"), False),
}
_COLUMNS = {  # of a list: what it is, and how sources call it
    "first": ("first", "path1", "p1", "image1", "img1", "file1"),
    "second": ("second", "path2", "p2", "image2", "img2", "file2"),
    "mated": ("mated", "same", "issame", "label", "match"),
    "fold": ("fold", "folds"),
    "identity1": ("identity1", "id1", "person1", "subject1"),
    "identity2": ("identity2", "id2", "person2", "subject2"),
}


# --- a set ----------------------------------------------------------------------------------------------------------


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
        known = _identities_of(self.faces)
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
        known = _identities_of(self.faces)
        if known is None:
            return None
        ids = torch.from_numpy(_numbered(known)).to(self.pairs.device)
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


def _identities_of(faces: FaceSet | PackedFaces) -> tuple[str, ...] | None:
    return faces.identities if isinstance(faces, FaceSet) else None


def _numbered(words: Iterable[str]) -> np.ndarray:
    """Words as numbers, from 0 in the order in which they come: int64."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int64)


# --- reading a set --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Listed:
    """What a layout's reader found: each image once, and the pairs as rows of them."""

    paths: Sequence[str]
    pairs: np.ndarray
    mated: np.ndarray
    folds: np.ndarray | None = None
    identities: Sequence[str] | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vocabulary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Request:
    root: Path
    pairs: Any
    suffix: str
    columns: Mapping[str, str]


def read_pairs(
    layout: str,
    root: str | os.PathLike[str],
    *,
    pairs: Any = None,
    faces: FaceSet | None = None,
    missing: str | None = None,
    size: int | tuple[int, int] | None = None,
    suffix: str = ".jpg",
    columns: Mapping[str, str] | None = None,
    name: str | None = None,
) -> PairSet:
    """Read a verification protocol; no image is opened. docs/pairs.md shows each layout.

    Args:
        layout: "lfw", "rfw", "bfw", "bin" (InsightFace's packed sets: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW) or "list"
            (lines or a table of path, path, same, fold).
        root: folder of the images; or, where they lie beside each other, the file of the pairs.
        pairs: the file of the pairs, where it is not at its usual place, as a path or relative to `root`. For "rfw" it
            is the folder `txts`, for "list" any table will do, as a dict or a frame.
        faces: a set that has the listed images, by the same paths; its labels and identities are then used.
        missing: None takes the images on trust, "count" looks for them and counts those that are not there (in
            `faces.missing`), "drop" leaves their pairs out and says how many, "error" raises.
        size: of the images when they are read, in pixels or (height, width); None: as they are on disk.
        suffix: of the image files of "lfw" and "rfw", whose lists give numbers.
        columns: for "list" with named columns: {"first" | "second" | "mated" | "fold" | "identity1" | "identity2": name
            of the column}, where the usual names are not found.
        name: of the set; by default that of the layout or, where it says little, of the file.

    Raises:
        DataError: an unknown layout or option, files that are not there, a line that is no pair (with its number),
            a list that does not fit its header, a packed set with too few or too many images.
        ShapeError: a size that is none.
    """
    _check_options(layout, missing, pairs, faces, columns)
    root = Path(root)
    if pairs is None and root.is_file():
        root, pairs = root.parent, root
    if not root.is_dir():
        raise DataError("no such folder", expected=f"the folder of a set, laid out as {layout!r}", got=str(root))
    if layout == "bin":
        return _read_bin(_packed_file(root, pairs), as_size(size), name)
    found = _LAYOUTS[layout](_Request(root, pairs, suffix, columns or {}))
    name = name or (Path(pairs).stem if layout == "list" and isinstance(pairs, str | os.PathLike) else layout)
    set_ = _assemble(found, name, root, faces, as_size(size))
    return set_ if missing is None else _look(set_, missing)


def _check_options(layout: str, missing: str | None, pairs: Any, faces: object, columns: object) -> None:
    for option, value, allowed in (("layout", layout, LAYOUTS), ("missing", missing, (None, "count", "drop", "error"))):
        if value not in allowed:
            near = difflib.get_close_matches(str(value), [a for a in allowed if a], n=1)
            fix = f"did you mean {near[0]!r}?" if near else None
            raise DataError(f"unknown {option}", expected=", ".join(map(repr, allowed)), got=repr(value), fix=fix)
    if layout != "list" and pairs is not None and not isinstance(pairs, str | os.PathLike):
        raise DataError("pairs= is a path here", got=type(pairs).__name__, fix='layout="list"')
    if layout != "list" and columns:
        raise DataError("columns= are for lists", got=f"layout {layout!r}", fix='layout="list"')
    if layout == "bin" and (missing is not None or faces is not None):
        raise DataError("a packed set holds its images", expected="no missing= and no faces=", got=f"layout {layout!r}")
    if faces is not None and not isinstance(faces, FaceSet):
        raise DataError("faces= is a set of faces", expected="what read_faces returns", got=type(faces).__name__)


def _assemble(found: _Listed, name: str, root: Path, faces: FaceSet | None, size: tuple[int, int] | None) -> PairSet:
    if not len(found.pairs):
        raise DataError("no pairs found", expected="one at least", got=f"an empty list in {root}")
    pairs, copies = _apart(found.pairs, len(found.paths))
    rows = [*range(len(found.paths)), *copies]

    def column(values: Sequence[str]) -> tuple[str, ...]:
        return tuple(values[i] for i in rows)

    paths, who = column(found.paths), None if found.identities is None else column(found.identities)
    if faces is None:
        labels = {label: column(values) for label, values in found.labels.items()}
        faces = FaceSet(name, root, paths, who, labels, vocabulary=found.vocabulary, size=size)
    else:
        faces = _of(faces, paths)
        faces = replace(
            faces, identities=who if faces.identities is None else faces.identities, size=size or faces.size
        )
    notes = (*found.notes, *_oddities(pairs, found.mated, found.folds, faces, len(found.paths)))
    folds = None if found.folds is None else torch.from_numpy(found.folds.astype(np.int64))
    return PairSet(name, faces, torch.from_numpy(pairs), torch.from_numpy(found.mated), folds, notes)


def _apart(pairs: np.ndarray, n: int) -> tuple[np.ndarray, list[int]]:
    """Give images that are compared with themselves a second row, from n on; and which images those are."""
    alike = pairs[:, 0] == pairs[:, 1]
    copies, which = np.unique(pairs[alike, 1], return_inverse=True)
    pairs = pairs.astype(np.int64)
    pairs[alike, 1] = n + which
    return pairs, copies.tolist()


def _of(faces: FaceSet, paths: Sequence[str]) -> FaceSet:
    row = {path: i for i, path in enumerate(faces.paths)}
    absent = [path for path in paths if path not in row]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(paths)} listed images are not among faces=",
            expected=f"paths as there, such as {faces.paths[0]}",
            got=", ".join(absent[:3]),
            fix="both lists count from their root=: pass the same",
        )
    return faces.subset(np.array([row[path] for path in paths]))


def _oddities(
    pairs: np.ndarray, mated: np.ndarray, folds: np.ndarray | None, faces: FaceSet | PackedFaces, distinct: int
) -> Iterator[str]:
    """What a reader of figures should know of a list."""
    alike = int((pairs >= distinct).any(1).sum())
    if alike:
        yield f"{alike} pairs compare an image with itself"
    keys = pairs.min(1) * (1 + int(pairs.max())) + pairs.max(1)
    ordered = np.sort(2 * keys + mated)
    answers, different = (1 + int((np.diff(x) > 0).sum()) for x in (ordered, ordered // 2))
    if different < len(keys):
        yield f"{len(keys) - different} pairs repeat one that is listed above"
    if answers > different:
        yield f"{answers - different} pairs are listed both as mated and as non-mated"
    if (who := _identities_of(faces)) is not None:
        first, second = _numbered(who)[pairs].T
        wrong = int(((first == second) != mated).sum())
        if wrong:
            yield (f"{wrong} pairs contradict the identities, which are therefore not used: verify gives no intervals")
    if mated.all() or not mated.any():
        yield f"all pairs are {'mated' if mated.all() else 'non-mated'}"
    if folds is not None:
        yield from _unbalanced(mated, folds)


def _unbalanced(mated: np.ndarray, folds: np.ndarray) -> Iterator[str]:
    k = int(folds.max()) + 1
    sizes, positives = np.bincount(folds, minlength=k), np.bincount(folds, weights=mated, minlength=k)
    if sizes.min() < sizes.max():
        yield f"the folds differ in size: {sizes.min()} … {sizes.max()} pairs"
    uneven = int((2 * positives != sizes).sum())
    if uneven:
        yield f"in {uneven} of {k} folds there are not as many mated as non-mated pairs"


def _look(found: PairSet, missing: str) -> PairSet:
    """Look for the images; `missing` as in `read_pairs`."""
    assert isinstance(found.faces, FaceSet)
    faces = look_for_files(found.faces, missing)
    if len(faces) == len(found.faces):
        return replace(found, faces=faces)
    there = set(faces.paths)
    kept = torch.tensor([path in there for path in found.faces.paths])[found.pairs].all(1)
    gone = len(found) - int(kept.sum())
    if gone == len(found):
        raise DataError("every pair has an image that does not exist", expected=f"images under {faces.root}")
    note = f"{faces.missing} listed images do not exist; their {gone} pairs were left out"
    left = found.subset(kept)
    assert isinstance(left.faces, FaceSet)
    return replace(left, faces=replace(left.faces, missing=faces.missing), notes=(*found.notes, note))


# --- LFW and RFW ----------------------------------------------------------------------------------------------------


def _read_lfw(request: _Request) -> _Listed:
    """pairs.txt: "10 300", then for each fold 300 lines "name i j" and 300 lines "name1 i name2 j"."""
    path = _pair_file(request, "pairs.txt", "LFW's authors publish pairs.txt, pairsDevTrain.txt and pairsDevTest.txt")
    header, lines = _read_lfw_lines(path)
    before = _holder(request.root, lines[0][0])
    people, pairs, mated = _images_of(lines)
    paths = [f"{before}{who}/{who}_{number:04d}{request.suffix}" for who, number in people]
    folds, notes = _lfw_folds(path, header, mated)
    return _Listed(paths, pairs, mated, folds, [who for who, _ in people], notes=notes)


def _read_lfw_lines(path: Path) -> tuple[list[int], list[tuple[str, int, str, int, bool]]]:
    """The numbers of the header, if there is one, and (name, number, name, number, mated) of each line."""
    header: list[int] = []
    lines: list[tuple[str, int, str, int, bool]] = []
    for at, line in _lines(path):
        fields = [f.strip() for f in line.split("\t")] if "\t" in line else line.split()
        if not lines and not header and len(fields) <= 2 and all(f.isdecimal() for f in fields):
            header = [int(f) for f in fields]
        elif len(fields) == 3 and fields[0] and fields[1].isdecimal() and fields[2].isdecimal():
            lines.append((fields[0], int(fields[1]), fields[0], int(fields[2]), True))
        elif len(fields) == 4 and fields[0] and fields[2] and fields[1].isdecimal() and fields[3].isdecimal():
            lines.append((fields[0], int(fields[1]), fields[2], int(fields[3]), False))
        else:
            _no_pair(path, at, line, "name i j (one person) or name1 i name2 j (two), by tabs or spaces")
    if not lines:
        raise DataError(f"{path.name} lists no pairs", expected="a line per pair", got=str(path))
    return header, lines


def _images_of(
    lines: Sequence[tuple[str, int, str, int, bool]],
) -> tuple[list[tuple[str, int]], np.ndarray, np.ndarray]:
    """(name, number) of each image once, pairs [m, 2], mated [m]."""
    row: dict[tuple[str, int], int] = {}
    flat = [row.setdefault(image, len(row)) for a, i, b, j, _ in lines for image in ((a, i), (b, j))]
    return list(row), np.array(flat, dtype=np.int64).reshape(-1, 2), np.array([line[4] for line in lines], dtype=bool)


def _lfw_folds(path: Path, header: list[int], mated: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Folds by the header (k folds of n + n pairs, or n + n without folds); without one, by the list's pattern."""
    if not header:
        folds = _ten_folds(mated)
        return folds, () if folds is not None else (f"no folds: {path.name} has no header, and not ten equal parts",)
    k, n = (1, *header) if len(header) == 1 else header
    here, expected = (int(mated.sum()), int((~mated).sum())), (k * n, k * n)
    if here != expected:
        raise DataError(
            f"{path.name} is not what its first line says: {' '.join(map(str, header))}",
            expected=f"{expected[0]} mated and {expected[1]} non-mated pairs",
            got=f"{here[0]} mated and {here[1]} non-mated",
            fix="get the file again; or correct its first line, or take it out",
        )
    return (None if len(header) == 1 else np.arange(2 * k * n) // (2 * n)), ()


def _ten_folds(mated: np.ndarray) -> np.ndarray | None:
    """Folds of a list of ten times n mated and n non-mated pairs; None if it is not such a list."""
    n, rest = divmod(len(mated), 2 * _FOLDS)
    pattern = np.tile(np.repeat([True, False], n), _FOLDS)
    return None if rest or not np.array_equal(mated, pattern) else np.arange(len(mated)) // (2 * n)


def _read_rfw(request: _Request) -> _Listed:
    """txts/<Race>/<Race>_pairs.txt: 6,000 lines a race in LFW's form, without a header; data/<Race>/<who>/<image>."""
    lists, images = _rfw_lists(request), race_root(request.root)
    before = relative(images, request.root)
    folders = {folder.casefold(): folder for folder in folders_in(images)}
    paths: list[str] = []
    who: list[str] = []
    races: list[str] = []
    notes: list[str] = []
    pairs, mated, folds = [], [], []
    for race, path in lists.items():
        header, lines = _read_lfw_lines(path)
        people, rows, same = _images_of(lines)
        fold, said = _lfw_folds(path, header, same)
        folder = f"{before}{folders.get(race.casefold(), race)}"
        pairs.append(rows + len(paths))
        paths += [f"{folder}/{person}/{person}_{number:04d}{request.suffix}" for person, number in people]
        who += [person for person, _ in people]
        races += [race] * len(people)
        mated.append(same)
        folds.append(fold)
        notes += said
    if absent := [race for race in _RFW_RACES if race not in lists]:
        notes.append(f"no list for {', '.join(absent)}")
    each = [fold for fold in folds if fold is not None]
    return _Listed(
        paths,
        np.concatenate(pairs),
        np.concatenate(mated),
        np.concatenate(each) if len(each) == len(folds) else None,
        who,
        {"race": [_RFW_RACES[race] for race in races], "race_original": races},
        {"race": RACES},
        tuple(notes),
    )


def _rfw_lists(request: _Request) -> dict[str, Path]:
    """{race: its list}, of those that are there."""
    root = request.root
    places = [root / "txts", root / "test" / "txts", root.parent / "txts", root.parent.parent / "txts"]
    if request.pairs is not None:
        places = [Path(request.pairs), root / request.pairs]
    for place in places:
        found = {race: place / race / f"{race}_pairs.txt" for race in _RFW_RACES}
        found = {race: path for race, path in found.items() if path.is_file()}
        if found:
            return found
    raise DataError(
        "RFW's lists are not there",
        expected=" or ".join(f"{place}/African/African_pairs.txt, …" for place in places[:2]),
        fix="they come with RFW's test images; if they lie elsewhere, pass their folder txts as pairs=",
    )


# --- BFW ------------------------------------------------------------------------------------------------------------


def _read_bfw(request: _Request) -> _Listed:
    """A table with columns p1, p2, label, fold, att1, att2 (and more, not read); images asian_females/n000009/….jpg."""
    path = _bfw_table(request)
    table = _bfw_columns(path)
    flat, rows = _coded(path, table["p1"], table["p2"])
    paths = [p.replace("\\", "/") for p in flat]
    mated = _bfw_truth(path, table["label"])
    folds = (
        None if "fold" not in table else _fold_numbers(table["fold"].to_pylist(), lambda i: f"{path.name}, row {i + 1}")
    )
    subgroups, notes = _bfw_subgroups(path, table, paths, rows)
    races, genders = zip(*(_bfw_words(group) for group in subgroups), strict=True) if paths else ((), ())
    strange = sum(UNKNOWN in words for words in zip(races, genders, strict=True))
    if strange:
        notes += (f"{strange} faces are in no subgroup such as asian_females; race or gender unknown",)
    before = _holder(request.root, paths[0].split("/")[0]) if paths else ""
    return _Listed(
        [before + p for p in paths],
        rows,
        mated,
        folds,
        [p.rpartition("/")[0] for p in paths],
        {"race": races, "gender": genders},
        {"race": RACES, "gender": GENDERS},
        notes,
    )


def _bfw_table(request: _Request) -> Path:
    if request.pairs is not None:
        return _pair_file(request, str(request.pairs), "BFW's authors publish it")
    places = [request.root, request.root / "meta", request.root / "data", request.root.parent]
    found = [file for place in places for file in sorted(place.glob("bfw*.csv"))]
    if len(found) != 1:
        raise DataError(
            "several tables lie here" if found else "BFW's table of pairs is not there",
            expected=f"one file bfw-v0.1.5-datatable.csv, or the like, in {request.root}",
            got=", ".join(str(file) for file in found) or None,
            fix="pass its path as pairs=; a pickled table has to be saved as .csv first (pandas: to_csv)",
        )
    return found[0]


def _bfw_columns(path: Path) -> dict[str, Any]:
    """Columns p1, p2, label and, where they are there, fold, att1, att2: as text."""
    import pyarrow as pa
    from pyarrow import csv as arrow

    if path.suffix not in (".csv", ".gz"):
        raise DataError("not a .csv file", expected="BFW's table as .csv", got=path.name, fix="pandas: to_csv")
    try:
        with arrow.open_csv(path) as reader:
            names = reader.schema.names
        wanted = [n for n in ("p1", "p2", "label", "fold", "att1", "att2") if n in names]
        if not {"p1", "p2", "label"} <= set(wanted):
            raise DataError("this is not BFW's table", expected="columns p1, p2, label", got=", ".join(names))
        convert = arrow.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()))
        # One thread, so that an error names its row.
        table = arrow.read_csv(path, arrow.ReadOptions(use_threads=False), convert_options=convert)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="rows of equal length", got=error) from error
    return {name: table.column(name) for name in wanted}


def _coded(path: Path, first: Any, second: Any) -> tuple[list[str], np.ndarray]:
    """Each text of two columns once, and rows [m, 2] of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    both = pa.chunked_array([*first.chunks, *second.chunks], type=pa.string())
    empty = pc.equal(pc.utf8_trim_whitespace(both), "")
    if pc.any(empty).as_py():
        row = pc.index(empty, True).as_py() % len(first)
        raise DataError(f"{path.name}, row {row + 1}: not a pair", expected="two paths", got="an empty cell")
    coded = both.combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy().astype(np.int64).reshape(2, -1).T
    return coded.dictionary.to_pylist(), np.ascontiguousarray(codes)


def _bfw_truth(path: Path, column: Any) -> np.ndarray:
    """The column label as bool; texts are looked up once each."""
    coded = column.combine_chunks().dictionary_encode()
    words = coded.dictionary.to_pylist()
    codes = coded.indices.to_numpy()
    answers = np.array([_TRUTH.get(word.strip().casefold(), -1) for word in words], dtype=np.int64)
    if (answers < 0).any():
        row = int(np.argmax(answers[codes] < 0))
        raise DataError(f"{path.name}, row {row + 1}: not a pair", expected="label 0 or 1", got=repr(words[codes[row]]))
    return np.asarray(answers[codes] == 1)


def _bfw_subgroups(
    path: Path, table: Mapping[str, Any], paths: Sequence[str], rows: np.ndarray
) -> tuple[list[str], tuple[str, ...]]:
    """Of each face, by att1 and att2 or, without them, by the first folder of its path."""
    if "att1" not in table or "att2" not in table:
        return [p.split("/")[0] for p in paths], ()
    words, codes = _coded(path, table["att1"], table["att2"])
    of_face = np.zeros(len(paths), dtype=np.int64)
    of_face[rows] = codes
    wrong = int((of_face[rows] != codes).any(1).sum())
    notes = (f"{wrong} pairs give a face another subgroup than others do",) if wrong else ()
    return [words[code] for code in of_face], notes


def _bfw_words(subgroup: str) -> tuple[str, str]:
    """("asian", "female") of "asian_females"."""
    race, _, gender = subgroup.strip().casefold().partition("_")
    gender = gender.removesuffix("s")
    return race if race in RACES else UNKNOWN, gender if gender in GENDERS else UNKNOWN


# --- lists of one's own ---------------------------------------------------------------------------------------------


def _read_list(request: _Request) -> _Listed:
    """Lines "path path same [fold]", with or without names above, by tabs, commas or spaces; or any table."""
    source = request.pairs
    if source is None:
        raise DataError("which list?", expected="pairs=, a file or a table", got="only root=")
    if isinstance(source, str | os.PathLike):
        path = _pair_file(request, str(source), "a line per pair: path path same [fold]")
        if path.suffix != ".parquet":
            return _from_lines(path, request.columns)
        source = path
    table = {name: [_text(cell) for cell in column.tolist()] for name, column in read_table(source).items()}
    return _from_columns(_chosen(list(table), request.columns), table, lambda i: f"row {i + 1}")


def _text(cell: Any) -> str:
    """A table's cell; "" where it is missing: None, or NaN, which differs from itself."""
    return "" if cell is None or cell != cell else str(cell).strip()


def _from_lines(path: Path, columns: Mapping[str, str]) -> _Listed:
    numbers, rows = _rows(path)
    names = ["first", "second", "mated", "fold"][: max(3, len(rows[0]))]
    truth = rows[0][2].casefold() if len(rows[0]) > 2 else ""
    chosen = {name: name for name in names}
    if columns or (truth not in _TRUTH and len(rows[0]) > 2):  # names, not a pair
        names = rows[0]
        chosen = _chosen(names, columns, f"{path.name}, line {numbers[0]}")
        numbers, rows = numbers[1:], rows[1:]
    for at, row in zip(numbers, rows, strict=True):
        if len(row) != len(names):
            fix = "paths with spaces need tabs or commas between columns" if len(row) > len(names) else None
            _no_pair(path, at, " ".join(row), f"{len(names)} fields: {' '.join(names)}", fix)
    table = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    return _from_columns(chosen, table, lambda i: f"{path.name}, line {numbers[i]}")


def _rows(path: Path) -> tuple[list[int], list[list[str]]]:
    """The fields of each line that is not empty, and its number."""
    lines = list(_lines(path))
    if not lines:
        raise DataError(f"{path.name} lists no pairs", expected="lines: path path same [fold]", got=str(path))
    numbers, texts = [at for at, _ in lines], [line for _, line in lines]
    mark = next((mark for mark in "\t," if mark in texts[0]), None)
    if mark is None:
        return numbers, [text.split() for text in texts]
    try:
        read = csv.reader(texts) if mark == "," else (text.split(mark) for text in texts)
        rows = [[cell.strip() for cell in row] for row in read]
    except csv.Error as error:
        raise DataError(f"cannot read {path}", expected="path, path, same on each line", got=error) from error
    if len(rows) < len(texts):
        at = next((at for at, text in lines if text.count('"') % 2), numbers[-1])
        _no_pair(path, at, texts[numbers.index(at)], "a quote that is closed on its line")
    return numbers, rows


def _chosen(names: Sequence[str], columns: Mapping[str, str], where: str = "the table") -> dict[str, str]:
    """{what: name of its column}; those given, then those with a usual name."""
    if unknown := [what for what in columns if what not in _COLUMNS]:
        raise DataError("unknown key in columns=", expected=", ".join(_COLUMNS), got=", ".join(unknown))
    if absent := [name for name in columns.values() if name not in names]:
        raise DataError("no such column", expected=", ".join(names), got=", ".join(absent))
    chosen = dict(columns)
    for what, usual in _COLUMNS.items():
        hits = [n for n in names if re.sub(r"[\W_]+", "", n).casefold() in usual and n not in chosen.values()]
        if what not in chosen and hits:
            chosen[what] = hits[0]
    if lost := [what for what in ("first", "second", "mated") if what not in chosen]:
        raise DataError(
            f"{where}: neither a pair nor names of columns",
            expected="path path same [fold], with same 1 or 0; or columns path1, path2, same",
            got=" ".join(names)[:200],
            fix='columns={"first": "…", "second": "…", "mated": "…"}: not found are ' + ", ".join(lost),
        )
    return chosen


def _from_columns(
    chosen: Mapping[str, str], table: Mapping[str, Sequence[str]], where: Callable[[int], str]
) -> _Listed:
    column = {what: table[name] for what, name in chosen.items()}
    mated = []
    for i, (first, second, word) in enumerate(zip(column["first"], column["second"], column["mated"], strict=True)):
        answer = _TRUTH.get(word.casefold())
        if answer is None or not first or not second:
            got = " ".join((first, second, word))
            raise DataError(f"{where(i)}: not a pair", expected="path path same, with same 1 or 0", got=got)
        mated.append(answer)
    row: dict[str, int] = {}
    flat = [row.setdefault(p, len(row)) for both in zip(column["first"], column["second"], strict=True) for p in both]
    pairs = np.array(flat, dtype=np.int64).reshape(-1, 2)
    folds = _fold_numbers(column["fold"], where) if "fold" in column else None
    who: list[str] | None = None
    notes: tuple[str, ...] = ()
    if "identity1" in column and "identity2" in column:
        who, notes = _list_identities(column, pairs, len(row))
    return _Listed(list(row), pairs, np.array(mated, dtype=bool), folds, who, notes=notes)


def _list_identities(
    column: Mapping[str, Sequence[str]], pairs: np.ndarray, n: int
) -> tuple[list[str] | None, tuple[str, ...]]:
    who = [""] * n
    wrong = 0
    for rows, names in zip(pairs.tolist(), zip(column["identity1"], column["identity2"], strict=True), strict=True):
        for row, name in zip(rows, names, strict=True):
            wrong += who[row] not in ("", name)
            who[row] = name
    if "" in who:  # who are not known are not one person
        return None, (f"{who.count('')} faces have no identity; the identities are therefore not used",)
    return who, (f"{wrong} times a face is given another identity than before",) if wrong else ()


def _fold_numbers(words: Sequence[str], where: Callable[[int], str]) -> np.ndarray:
    """Folds numbered from 0 in their order: by number where all are numbers."""
    if "" in words:
        raise DataError(f"{where(list(words).index(''))}: no fold", expected="a fold for every pair", got="empty")
    different = set(words)
    fraction = next((i for i, word in enumerate(words) if re.fullmatch(r"-?\d*\.\d*[1-9]\d*", word)), None)
    if fraction is not None:
        fix = "if it is a score, leave the column out, or name the others by columns="
        got = repr(words[fraction])
        raise DataError(f"{where(fraction)}: this is no fold", expected="a whole number or a name", got=got, fix=fix)
    is_number = all(re.fullmatch(r"-?\d+(\.0)?", word) for word in different)
    order = sorted(different, key=lambda word: int(float(word)) if is_number else word)  # type: ignore[arg-type, return-value]
    number = {word: i for i, word in enumerate(order)}
    return np.array([number[word] for word in words], dtype=np.int64)


# --- InsightFace's packed sets --------------------------------------------------------------------------------------


def _packed_file(root: Path, pairs: Any) -> Path:
    if pairs is None:
        found = sorted(root.glob("*.bin"))
        if len(found) == 1:
            return found[0]
        got = ", ".join(file.name for file in found) or "none"
        raise DataError("which packed set?", expected=f"one .bin file in {root}", got=got, fix="pass it as pairs=")
    return _pair_file(_Request(root, pairs, "", {}), str(pairs), "it comes with InsightFace's training sets")


def _read_bin(path: Path, size: tuple[int, int] | None, name: str | None) -> PairSet:
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
    pairs, copies = _apart(np.array(flat, dtype=np.int64).reshape(-1, 2), len(row))
    data = tuple(row)
    mated = np.array(truth, dtype=bool)
    folds = _stretches(len(mated))
    faces = PackedFaces(name or path.stem, data + tuple(data[i] for i in copies), size)
    notes = tuple(_oddities(pairs, mated, folds, faces, len(row)))
    at = None if folds is None else torch.from_numpy(folds)
    return PairSet(faces.name, faces, torch.from_numpy(pairs), torch.from_numpy(mated), at, notes)


def _stretches(m: int) -> np.ndarray | None:
    """Ten folds of consecutive pairs, the first ones larger by one: those of InsightFace's own evaluation."""
    sizes = [m // _FOLDS + (fold < m % _FOLDS) for fold in range(_FOLDS)]
    return np.repeat(np.arange(_FOLDS), sizes) if m >= _FOLDS else None


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


def _no_packed_set(path: Path, got: str) -> DataError:
    return DataError(
        f"{path.name} is no packed set of pairs; nothing in it was executed",
        expected="a pickle of (encoded images, truth values), as InsightFace's lfw.bin",
        got=got[:400],
    )


def _encoded(path: Path, i: int, image: Any) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:  # as cv2.imencode returns it
        image = image.tobytes()
    image = bytes(image) if isinstance(image, bytearray) else _latin1(image)
    if not isinstance(image, bytes) or not image:
        got = "nothing" if isinstance(image, bytes) else f"a {type(image).__name__}"
        raise DataError(f"{path.name}: image {i} is no encoded image", expected="the bytes of a JPEG file", got=got)
    return image


# --- files ----------------------------------------------------------------------------------------------------------


def _pair_file(request: _Request, usual: str, source: str) -> Path:
    places = [request.root / usual, request.root.parent / usual]
    if request.pairs is not None:
        places = [Path(request.pairs), request.root / request.pairs]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        expected = " or ".join(dict.fromkeys(str(place) for place in places))
        fix = f"{source}; if it lies elsewhere, pass its path as pairs="
        raise DataError("the list of pairs is not there", expected=expected, fix=fix)
    return found


def _holder(root: Path, folder: str) -> str:
    """What stands between root and this folder, which lies in it or up to two levels below: "" or "a/b/".

    Nothing if it is nowhere: `missing=` says so, or the reading of an image.
    """
    level = [root]
    for _ in range(3):
        found = [place for place in level if (place / folder).is_dir()]
        if len(found) > 1:
            got = ", ".join(map(str, found))
            raise DataError(
                "several sets lie here", expected="one", got=got, fix="pass one of them as root=, and pairs="
            )
        if found:
            return relative(found[0], root)
        level = [place / sub for place in level for sub in folders_in(place)]
    return ""


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, without the spaces around them, and their numbers from 1."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        fix = f"iconv -f latin1 -t utf8 {path.name}, if it is Latin-1"
        raise DataError(f"{path} is not text in UTF-8", expected="a list of pairs", got=error, fix=fix) from error
    except OSError as error:
        raise DataError(f"cannot read {path}", got=error) from error


def _no_pair(path: Path, number: int, line: str, expected: str, fix: str | None = None) -> NoReturn:
    raise DataError(f"{path.name}, line {number}: not a pair", expected=expected, got=repr(line[:200]), fix=fix)


_LAYOUTS: dict[str, Callable[[_Request], _Listed]] = {
    "lfw": _read_lfw,
    "rfw": _read_rfw,
    "bfw": _read_bfw,
    "list": _read_list,
}
LAYOUTS = (*_LAYOUTS, "bin")
