"""Annotated face sets on disk: `read_faces` lists the files and labels of one, in one vocabulary.

Races and genders are mapped to the words of vocabulary.py; what a source does not say is "unknown", and counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .dataset_layouts import LAYOUTS, Found, Layout, Request
from .errors import DataError
from .face_files import as_size
from .face_sets import FaceSet, look_for_files
from .vocabulary import UNKNOWN, VOCABULARY, WORDS, plain


def read_faces(
    layout: str,
    root: str | os.PathLike[str],
    *,
    labels: Any = None,
    split: str | None = None,
    vocabulary: str = "common",
    missing: str | None = None,
    size: int | tuple[int, int] | None = None,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, str]] | None = None,
    name: str | None = None,
) -> FaceSet:
    """List the faces of a set and their labels; no image is opened. docs/datasets.md shows each layout.

    Args:
        layout: "folder" (any images, no labels), "identities" (a folder per identity), "fairface", "utkface", "rfw",
            "bupt" (BUPT-BalancedFace and -GlobalFace), "vggface2", "maad" (VGGFace2 with MAAD-Face's labels), "morph",
            or "csv" (a table of your own); capitals do not matter.
        root: folder of the set.
        labels: the label file, where it is not at its usual place; for "csv" any table (a path, a dict, a frame).
        split: "train" or "val" of FairFace, "train" or "test" of VGGFace2; None reads all there is.
        vocabulary: "common" maps races to `RACES` and genders to `GENDERS`, and keeps the source's words as
            `labels["race_original"]`; "original" leaves everything in the source's words.
        missing: files that are listed but do not exist: None does not look, "count" counts them, "drop" leaves them
            out and counts them, "error" raises.
        size: of the images when they are read, in pixels or (height, width); None: as they are on disk.
        columns: for "csv": {"path" | "identity" | label: name of the column}. Without it, columns called path, file,
            …, identity, race, gender, age are found.
        values: for "csv": {label: {value in the table: value here}}.
        name: of the set; by default that of the layout or, where it says little, of the folder.

    Raises:
        DataError: an unknown layout or option, a folder or label file that is not there or not readable, no images.
        ShapeError: a size that is none.
    """
    layout = layout.casefold() if isinstance(layout, str) else layout
    kind = _layout(layout, split, vocabulary, missing)
    root = Path(root)
    if layout == "csv" and labels is None and root.is_file():
        root, labels = root.parent, root
    if not root.is_dir():
        raise DataError("no such folder", expected=f"the folder of a set, laid out as {layout!r}", got=str(root))
    if labels is not None and layout != "csv" and not isinstance(labels, str | os.PathLike):
        raise DataError("labels= is the path of the label file here", got=type(labels).__name__, fix='layout="csv"')
    if labels is not None and not kind.label_file:
        raise DataError(f"layout {layout!r} has no label file", got=f"labels={labels}", fix='layout="csv"')
    if layout != "csv" and (columns or values):
        raise DataError("columns= and values= are for tables", got=f"layout {layout!r}", fix='layout="csv"')
    if values and vocabulary == "original":
        raise DataError("values= translates", expected="the source's own words: no values=", got=f"values={values}")
    found = kind.read(Request(root, labels, split, columns or {}, values or {}))
    if not found.paths:
        raise DataError("no images found", expected=kind.about, got=str(root))
    worded, words, notes = _in_words(found, vocabulary, kind.names_people)
    faces = FaceSet(
        name=name or _default_name(layout, root, split, labels),
        root=root,
        paths=tuple(found.paths),
        identities=found.identities if found.identities is None else tuple(found.identities),
        labels={label: tuple(column) for label, column in worded.items()},
        annotations=found.annotations,
        schema=found.schema,
        vocabulary=words,
        notes=(*found.notes, *notes, *_repeats(found.paths)),
        size=as_size(size),
    )
    return faces if missing is None else look_for_files(faces, missing)


# --- details ----------------------------------------------------------------------------------------------------------


def _layout(layout: str, split: str | None, vocabulary: str, missing: str | None) -> Layout:
    options = (
        ("layout", layout, tuple(LAYOUTS)),
        ("vocabulary", vocabulary, ("common", "original")),
        ("missing", missing, (None, "count", "drop", "error")),
    )
    for option, value, allowed in options:
        if value not in allowed:
            raise DataError(f"unknown {option}", expected=", ".join(map(repr, allowed)), got=repr(value))
    kind = LAYOUTS[layout]
    if split is not None and split not in kind.splits:
        raise DataError(f"{layout!r} has no such split", expected=", ".join(kind.splits) or "none", got=repr(split))
    return kind


def _default_name(layout: str, root: Path, split: str | None, labels: Any) -> str:
    if layout == "csv" and isinstance(labels, str | os.PathLike):
        return Path(labels).stem
    return root.resolve().name if layout in ("folder", "identities", "csv") else "-".join(filter(None, (layout, split)))


def _in_words(
    found: Found, vocabulary: str, names_people: bool
) -> tuple[dict[str, Sequence[str]], dict[str, tuple[str, ...]], list[str]]:
    """Labels in the vocabulary asked for, what each can say, and what was not understood."""
    n, labels, words, notes = len(found.paths), dict(found.labels), {}, []
    common = VOCABULARY if vocabulary == "common" else {}
    if names_people:
        for label in ("race", "gender", "age"):
            labels.setdefault(label, (UNKNOWN,) * n)
    if "race" in found.labels and common:
        labels.setdefault("race_original", labels["race"])
    for label, column in labels.items():
        extra = found.values.get(label, {}) if vocabulary == "common" else {}
        distinct = set(column)
        if label in common:
            words[label] = common[label]
            dictionary = WORDS[label] | {plain(k): v for k, v in extra.items()}
            table = {value: dictionary.get(plain(value), "") for value in distinct}
            notes += _not_understood(label, Counter(value for value in column if not table[value]))
        else:
            table = {value: extra.get(value, value) for value in distinct}
            table |= dict.fromkeys((v for v in distinct if plain(table[v]) in ("", UNKNOWN, "nan")), UNKNOWN)
        labels[label] = tuple(table[value] or UNKNOWN for value in column)
    return labels, words, notes


def _not_understood(label: str, strange: Counter[str]) -> list[str]:
    which = ", ".join(f"{value!r} ({count})" for value, count in strange.most_common(5))
    said = f"{label}: {strange.total()} faces have values outside the vocabulary, counted as unknown: {which}"
    return [said] if strange else []


def _repeats(paths: Sequence[str]) -> tuple[str, ...]:
    again = len(paths) - len(set(paths))
    return (f"{again} rows repeat a file that is listed above",) if again else ()
