"""`read_pairs`: a verification protocol on disk, read and checked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..face_files import as_size
from ..face_sets import FaceSet, look_for_files
from .base import Listed, Request
from .bfw import read_bfw
from .lfw import read_lfw, read_rfw
from .lists import read_list
from .packed import PackedFaces, packed_file, read_packed
from .sets import PairSet, identities_of, word_numbers

_LAYOUTS: dict[str, Callable[[Request], Listed]] = {
    "lfw": read_lfw,
    "rfw": read_rfw,
    "bfw": read_bfw,
    "list": read_list,
}
LAYOUTS = (*_LAYOUTS, "bin")


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
        return _assemble_packed(packed_file(root, pairs), as_size(size), name)
    found = _LAYOUTS[layout](Request(root, pairs, suffix, columns or {}))
    name = name or (Path(pairs).stem if layout == "list" and isinstance(pairs, str | os.PathLike) else layout)
    set_ = _assemble(found, name, root, faces, as_size(size))
    return set_ if missing is None else _look(set_, missing)


# --- details ----------------------------------------------------------------------------------------------------------


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


def _assemble(found: Listed, name: str, root: Path, faces: FaceSet | None, size: tuple[int, int] | None) -> PairSet:
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


def _assemble_packed(path: Path, size: tuple[int, int] | None, name: str | None) -> PairSet:
    found = read_packed(path)
    pairs, copies = _apart(found.pairs, len(found.images))
    faces = PackedFaces(name or path.stem, found.images + tuple(found.images[i] for i in copies), size)
    notes = tuple(_oddities(pairs, found.mated, found.folds, faces, len(found.images)))
    folds = None if found.folds is None else torch.from_numpy(found.folds)
    return PairSet(faces.name, faces, torch.from_numpy(pairs), torch.from_numpy(found.mated), folds, notes)


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
    if (who := identities_of(faces)) is not None:
        first, second = word_numbers(who)[pairs].T
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
