"""Annotated face sets on disk: the layouts they come in, read lazily, and one vocabulary for their labels.

`read_faces` lists a set's files and labels, `FaceSet.images` reads the pixels of some of them. Races and genders are
mapped to the vocabulary of the LatentPlayInterface data layer of Rahimi et al. (IJCB 2023); what a source does not say
is "unknown", and counted.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .annotation import MAAD_FACE, AttributeSchema
from .errors import DataError, GroupError, ShapeError
from .face_files import as_indices, as_size, as_slice, folders_in, list_images, read_image, relative
from .groups import UNSURE, Groups
from .reports import markdown_table
from .tables import Table, read_table

UNKNOWN = "unknown"
RACES = ("asian", "black", "white", "indian", "hispanic", "middleeastern", UNKNOWN)
GENDERS = ("male", "female", UNKNOWN)

_VOCABULARY = {"race": RACES, "gender": GENDERS}
_NO_ANSWER = dict.fromkeys(("", "unknown", "unkown", "none", "nan", "na", "other", "others"), UNKNOWN)
_WORDS: dict[str, dict[str, str]] = {  # what sources say, by `_plain`, and what it is called here
    "race": {
        **_NO_ANSWER,
        **{race: race for race in RACES},
        "african": "black",
        "caucasian": "white",
        "eastasian": "asian",
        "southeastasian": "asian",
        "latino": "hispanic",
        "latinohispanic": "hispanic",
    },
    "gender": {
        **_NO_ANSWER,
        **dict.fromkeys(("male", "m", "man", "men"), "male"),
        **dict.fromkeys(("female", "f", "woman", "women"), "female"),
    },
}
_RACE_FOLDERS = ("african", "asian", "caucasian", "indian")


# --- a set ----------------------------------------------------------------------------------------------------------


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
        by_name = {_plain(name): name for name in self.labels}
        for attribute, values in groups.attributes.items():
            if _plain(attribute) not in by_name:
                raise GroupError(
                    f"{self.name} has no labels for {attribute!r}", expected=", ".join(self.labels) or "none at all"
                )
            label = by_name[_plain(attribute)]
            lookup = self._lookup(label, values)
            column = np.fromiter((lookup.get(v, UNSURE) for v in self.labels[label]), np.int64, len(self))
            ids, sure = ids * len(values) + column, sure & (column != UNSURE)
        return torch.from_numpy(np.where(sure, ids, UNSURE))

    def _lookup(self, label: str, values: Sequence[str]) -> dict[str, int]:
        """The set's spellings of each value → the value's index; "unknown" has none."""
        wanted = {_plain(value): i for i, value in enumerate(values)}
        if len(wanted) < len(values):
            raise GroupError(f"two values of {label} read alike", expected="different names", got=", ".join(values))
        known = {value: _plain(value) for value in self.vocabulary[label] if value != UNKNOWN}
        for value in values:
            if _plain(value) not in known.values():
                near = difflib.get_close_matches(_plain(value), list(known.values()), n=3, cutoff=0.5)
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


# --- reading a set --------------------------------------------------------------------------------------------------


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
    found = kind.read(_Request(root, labels, split, columns or {}, values or {}))
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


def read_maad_labels(
    path: str | os.PathLike[str], schema: AttributeSchema = MAAD_FACE
) -> tuple[tuple[str, ...], tuple[str, ...], Tensor]:
    """Read MAAD-Face's label file (Terhörst et al. 2021): columns Filename, Identity and one of −1, 0, 1 per attribute.

    Streams, so that the 3.3 million rows fit into a laptop's memory. Columns are found by name, in any order; columns
    that the schema does not name are left out.

    Returns:
        Filenames [n] ("n000001/0001_01.jpg"), identities [n], and int8 labels [n, K] in the schema's order.

    Raises:
        DataError: no such file, missing or doubled columns, values other than −1, 0, 1.
    """
    import pyarrow as pa
    from pyarrow import csv

    path = Path(path)
    names = _header(path)
    columns = _maad_columns(names, schema, path)
    types = dict.fromkeys(columns, pa.int8()) | dict.fromkeys(columns[:2], pa.string())
    filenames: list[str] = []
    identities: list[str] = []
    known: dict[str, str] = {}  # 9,000 identities in 3.3 million rows: one string each
    blocks = []
    try:
        options = csv.ConvertOptions(column_types=types, include_columns=columns)
        for batch in csv.open_csv(path, convert_options=options):
            filenames += batch.column(0).to_pylist()
            identities += [known.setdefault(i, i) for i in batch.column(1).to_pylist()]
            if any(c.null_count for c in batch.columns):
                raise DataError(f"{path} has empty cells", expected="-1, 0 or 1 in every attribute")
            blocks.append(np.stack([c.to_numpy() for c in batch.columns[2:]], axis=1))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="-1, 0 or 1 in every attribute", got=error) from error
    labels = torch.from_numpy(np.concatenate(blocks)) if blocks else torch.empty(0, len(schema.names))
    if not len(labels):
        raise DataError(f"{path} has no rows", expected="a row per image")
    if int(labels.min()) < -1 or int(labels.max()) > 1:
        raise DataError(
            f"{path} holds other values", expected="-1, 0, 1", got=f"{int(labels.min())} … {int(labels.max())}"
        )
    return tuple(filenames), tuple(identities), labels


def _maad_columns(names: Sequence[str], schema: AttributeSchema, path: Path) -> list[str]:
    """The file's names of its columns: filename, identity, then the attributes in the schema's order."""
    wanted = {"filename": [n for n in names if _plain(n) in ("filename", "file", "path")]}
    wanted["identity"] = [n for n in names if _plain(n) in ("identity", "identities")]
    wanted |= {attribute: [] for attribute in schema.names}
    for name in names:
        if name in schema:
            wanted[schema.names[schema.index(name)]].append(name)
    bad = {column: hits for column, hits in wanted.items() if len(hits) != 1}
    if bad:
        raise DataError(
            f"{path.name} is not a label file of this kind",
            expected=f"Filename, Identity and {len(schema.names)} attributes, a column each",
            got="; ".join(f"{column}: {', '.join(hits) or 'missing'}" for column, hits in list(bad.items())[:5]),
            fix="pass the schema of your file: AttributeSchema((…))",
        )
    return [hits[0] for hits in wanted.values()]


def _default_name(layout: str, root: Path, split: str | None, labels: Any) -> str:
    if layout == "csv" and isinstance(labels, str | os.PathLike):
        return Path(labels).stem
    return root.resolve().name if layout in ("folder", "identities", "csv") else "-".join(filter(None, (layout, split)))


def _in_words(
    found: _Found, vocabulary: str, names_people: bool
) -> tuple[dict[str, Sequence[str]], dict[str, tuple[str, ...]], list[str]]:
    """Labels in the vocabulary asked for, what each can say, and what was not understood."""
    n, labels, words, notes = len(found.paths), dict(found.labels), {}, []
    common = _VOCABULARY if vocabulary == "common" else {}
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
            dictionary = _WORDS[label] | {_plain(k): v for k, v in extra.items()}
            table = {value: dictionary.get(_plain(value), "") for value in distinct}
            notes += _not_understood(label, Counter(value for value in column if not table[value]))
        else:
            table = {value: extra.get(value, value) for value in distinct}
            table |= dict.fromkeys((v for v in distinct if _plain(table[v]) in ("", UNKNOWN, "nan")), UNKNOWN)
        labels[label] = tuple(table[value] or UNKNOWN for value in column)
    return labels, words, notes


def _not_understood(label: str, strange: Counter[str]) -> list[str]:
    which = ", ".join(f"{value!r} ({count})" for value, count in strange.most_common(5))
    said = f"{label}: {strange.total()} faces have values outside the vocabulary, counted as unknown: {which}"
    return [said] if strange else []


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


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"cannot look into {folder}", got=error) from error


# --- layouts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Request:
    root: Path
    labels: Any
    split: str | None
    columns: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class _Found:
    """What a layout's reader found, in the source's words."""

    paths: Sequence[str]
    identities: Sequence[str] | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    annotations: Tensor | None = None
    schema: AttributeSchema | None = None
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # beyond `_WORDS`
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Layout:
    read: Callable[[_Request], _Found]
    about: str
    splits: tuple[str, ...] = ()
    label_file: bool = False
    names_people: bool = True  # a known set, whose faces all get race, gender and age


def _read_folder(request: _Request) -> _Found:
    return _Found(list_images(request.root))


def _read_identities(request: _Request) -> _Found:
    paths = list_images(request.root)
    return _Found(paths, _parents(paths, request.root))


def _read_fairface(request: _Request) -> _Found:
    files = [f"fairface_label_{split}.csv" for split in ("train", "val") if request.split in (None, split)]
    places = [request.root / file for file in files] if request.labels is None else [Path(request.labels)]
    tables = [_columns(place) for place in places if place.is_file()]
    if not tables:
        _no_label_file(places, "FairFace's authors publish it beside the images")
    rows: list[tuple[str, ...]] = []
    for table in tables:
        rows += zip(*_take(table, ("file", "race", "gender", "age"), "FairFace's label file"), strict=True)
    if request.split is not None:  # a file of one's own may hold both
        rows = [row for row in rows if row[0].startswith(f"{request.split}/")]
    file, race, gender, age = zip(*rows, strict=True) if rows else ((),) * 4
    before = _fairface_images(request.root)
    return _Found([before + f for f in file], labels={"race": race, "gender": gender, "age": age})


def _fairface_images(root: Path) -> str:
    """The folder between root and "train/…": none, or that of the one archive unpacked there."""
    places = (root, *sorted(root.glob("fairface-img-margin*")))
    holders = [place for place in places if (place / "train").is_dir() or (place / "val").is_dir()]
    if not holders or holders[0] == root:
        return ""
    if len(holders) > 1:
        raise DataError(
            "several versions of the images lie here",
            expected="one folder with train/ and val/",
            got=", ".join(holder.name for holder in holders),
            fix="pass one of them as root= and the label file as labels=",
        )
    return f"{holders[0].name}/"


def _read_utkface(request: _Request) -> _Found:
    paths = list_images(request.root)
    races, genders = ("White", "Black", "Asian", "Indian", "Others"), ("male", "female")
    labels: dict[str, list[str]] = {"race": [], "gender": [], "age": []}
    odd = []
    for path in paths:
        name = path.rpartition("/")[2]
        fields = name.split("_")
        age, gender, race = fields[:3] if len(fields) > 3 else (fields[0], "", "")  # which one is left out?
        said = (
            races[int(race)] if re.fullmatch("[0-4]", race) else "",
            genders[int(gender)] if re.fullmatch("[01]", gender) else "",
            str(int(age)) if re.fullmatch("[0-9]{1,3}", age) else "",
        )
        for column, value in zip(labels.values(), said, strict=True):
            column.append(value)
        if not all(said):
            odd.append(name)
    some = ", ".join(odd[:3]) + (", …" if len(odd) > 3 else "")
    if paths and len(odd) == len(paths):
        raise DataError(
            f"no file under {request.root} is named as UTKFace's are",
            expected="age_gender_race_date.jpg, such as 25_1_2_20170116174525125.jpg.chip.jpg",
            got=some,
            fix='layout="folder" reads any images',
        )
    note = f"{len(odd)} file names are not age_gender_race_date; what they do not say is unknown: {some}"
    return _Found(paths, labels=labels, notes=(note,) if odd else ())


def _read_race_folders(request: _Request) -> _Found:
    base = race_root(request.root)
    before = relative(base, request.root)
    paths: list[str] = []
    identities: list[str] = []
    races: list[str] = []
    for race in sorted(f for f in folders_in(base) if f.casefold() in _RACE_FOLDERS):
        within = list_images(base / race)
        identities += [who.rpartition("/")[2] for who in _parents(within, base / race)]
        paths += [f"{before}{race}/{path}" for path in within]
        races += [race] * len(within)
    people = Counter(who for who, _ in set(zip(identities, races, strict=True)))
    twice = sum(1 for count in people.values() if count > 1)
    notes = (f"{twice} identities lie in more than one race folder",) if twice else ()
    return _Found(paths, identities, {"race": races}, notes=notes)


def race_root(root: Path) -> Path:
    """The folder that holds African, Asian, …: root itself or, as in test/data, up to two levels below."""
    level = [root]
    for _ in range(3):
        found = [f for f in level if any(sub.casefold() in _RACE_FOLDERS for sub in folders_in(f))]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                "several sets lie here", expected="one", got=", ".join(map(str, found)), fix="pass one of them as root="
            )
        level = [f / sub for f in level for sub in folders_in(f) if sub.casefold() != "txts"]
    raise DataError(
        f"no race folders under {root}", expected="African, Asian, Caucasian, Indian, each with a folder per identity"
    )


def _read_vggface2(request: _Request) -> _Found:
    meta = _label_file(request, "identity_meta.csv", "it comes with VGGFace2's archives", (".", "meta", "data"))
    gender = _vggface2_genders(meta)
    paths: list[str] = []
    identities: list[str] = []
    for folder in _vggface2_folders(request.root, request.split):
        before, within = relative(folder, request.root), list_images(folder)
        paths += [before + path for path in within]
        identities += [who.rpartition("/")[2] for who in _parents(within, folder)]
    absent = len(set(identities) - set(gender))
    notes = (f"{absent} identities are not in {meta.name}",) if absent else ()
    return _Found(paths, identities, {"gender": [gender.get(who, "") for who in identities]}, notes=notes)


def _vggface2_genders(path: Path) -> dict[str, str]:
    """{Class_ID: m, f or ""}. Names may hold commas, quoted or not, so fields are counted from neither end."""
    genders = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        fields = [cell.strip().strip('"').strip() for cell in line.split(",")]
        if fields[0] and fields[0] != "Class_ID":
            genders[fields[0]] = next((cell for cell in reversed(fields[1:]) if cell in ("m", "f")), "")
    return genders


def _vggface2_folders(root: Path, split: str | None) -> list[Path]:
    """train/ and test/, here or in data/; or root itself, where identities lie in it directly."""
    splits = ("train", "test") if split is None else (split,)
    folders = [root / below / s for below in (".", "data") for s in splits if (root / below / s).is_dir()]
    if not folders and split is not None:
        raise DataError(f"no folder {split!r} here", expected=f"{root / split} or {root / 'data' / split}")
    return folders or [root]


def _read_maad(request: _Request) -> _Found:
    path = _label_file(request, "MAAD_Face.csv", "MAAD-Face's authors publish it", (".", "meta", "data"))
    paths, _, annotations = read_maad_labels(path)
    identities = [file.partition("/")[0] for file in paths]  # spelled as in VGGFace2, whatever the column says
    lies_in: dict[str, str] = {}
    for folder in _vggface2_folders(request.root, request.split):
        before = relative(folder, request.root)
        lies_in |= dict.fromkeys(folders_in(folder), before)
    present = np.fromiter((who in lies_in for who in identities), bool, len(identities))
    if not present.any():
        raise DataError(
            f"none of the identities in {path.name} has a folder here",
            expected=f"folders such as {identities[0]} in {request.root}, its train/ or its test/",
            fix="root= is the folder of VGGFace2's images, labels= the label file",
        )
    notes: tuple[str, ...] = ()
    if request.split is not None:
        kept = np.flatnonzero(present)
        paths, identities = _pick(paths, kept.tolist()), list(_pick(identities, kept.tolist()))
        annotations = annotations[torch.from_numpy(kept)]
    elif not present.all():
        absent = len(set(identities) - set(lies_in))
        notes = (f"{absent} identities of {path.name} have no folder here: {int((~present).sum())} images",)
    located = [lies_in.get(who, "") + file for file, who in zip(paths, identities, strict=True)]
    return _Found(located, identities, {}, annotations, MAAD_FACE, notes=notes)


def _read_morph(request: _Request) -> _Found:
    tables = sorted(p for p in request.root.glob("*.csv") if p.name.casefold().startswith("morph"))
    if request.labels is None and len(tables) != 1:
        _no_label_file(tables or [request.root / "morph_2008_nonCommercial.csv"], "it comes with MORPH's images")
    table = _columns(tables[0] if request.labels is None else request.labels)
    wanted = ("photo", "id_num", "race", "gender", "age")
    photos, identities, race, gender, age = _take(table, wanted, "MORPH's label file")
    places = _morph_places(photos[0]) if photos else []
    form = next((i for i, place in enumerate(places) if (request.root / place).is_file()), 0)
    letters = {"A": "asian", "B": "black", "H": "hispanic", "W": "white", "O": UNKNOWN}
    return _Found(
        [_morph_places(photo)[form] for photo in photos],
        identities,
        {"race": race, "gender": gender, "age": age},
        values={"race": letters},
    )


def _morph_places(photo: str) -> list[str]:
    """Where an image may lie: as listed, or under its first three digits."""
    file = photo.rpartition("/")[2]
    return [photo, f"Album2/{file[:3]}/{file}", f"Album2/{file}", f"{file[:3]}/{file}", file]


def _read_csv(request: _Request) -> _Found:
    if request.labels is None:
        raise DataError("no table given", expected="labels=: a path, a dict, a frame", fix='labels="faces.csv"')
    table = _columns(request.labels)
    chosen = _choose_columns(list(table), request.columns)
    if unknown := set(request.values) - set(chosen) | set(request.values) & {"path", "identity"}:
        raise DataError("values= names no label", expected=", ".join(chosen), got=", ".join(sorted(unknown)))
    for label, mapping in request.values.items():
        outside = set(mapping.values()) - set(_VOCABULARY.get(label, mapping.values()))
        if outside:
            raise DataError(f"not a {label}", expected=", ".join(_VOCABULARY[label]), got=", ".join(sorted(outside)))
    text = {label: _text(table[column]) for label, column in chosen.items()}
    paths, identities = text.pop("path"), text.pop("identity", None)
    for what, cells in (("path", paths), ("identity", identities or ())):
        if "" in cells:  # rows without an identity would become one person
            expected = f"something in every row of {chosen[what]!r}"
            raise DataError(f"row {list(cells).index('') + 1} has no {what}", expected=expected)
    left = [column for column in table if column not in chosen.values()]
    notes = (f"columns not read: {', '.join(left)}; name them with columns=",) if left else ()
    return _Found(paths, identities, text, values=request.values, notes=notes)


def _choose_columns(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """{path, identity, label: column}: those given, and those whose names say what they are."""
    if absent := sorted(set(given.values()) - set(names)):
        raise DataError("no such column", expected=", ".join(names), got=", ".join(absent))
    usual = {
        "path": ("path", "file", "filename", "image", "imagepath", "imgpath", "filepath", "photo"),
        "identity": ("identity", "identities", "personid", "subject", "subjectid"),
        **{label: (label,) for label in ("race", "gender", "age")},
    }
    chosen = {}
    for what, aliases in usual.items():
        hits = [n for n in names if _plain(n) in aliases and n not in given.values()]
        if what not in given and hits:
            if len(hits) > 1:
                fix = f'columns={{"{what}": "{hits[0]}"}}'
                raise DataError(f"several columns could be the {what}", got=", ".join(hits), fix=fix)
            chosen[what] = hits[0]
    chosen |= given
    if "path" not in chosen:
        raise DataError("which column holds the files?", got=", ".join(names), fix='columns={"path": "…"}')
    return chosen


_LAYOUTS = {
    "folder": _Layout(_read_folder, "images in any folders", names_people=False),
    "identities": _Layout(_read_identities, "a folder of images per identity", names_people=False),
    "fairface": _Layout(_read_fairface, "fairface_label_train.csv and train/1.jpg, …", ("train", "val"), True),
    "utkface": _Layout(_read_utkface, "images called age_gender_race_date.jpg"),
    "rfw": _Layout(_read_race_folders, "test/data/African/m.0xnkj/m.0xnkj_0001.jpg, …"),
    "bupt": _Layout(_read_race_folders, "race_per_7000/African/<identity>/<image>.jpg, …"),
    "vggface2": _Layout(_read_vggface2, "train/n000002/0001_01.jpg, … and identity_meta.csv", ("train", "test"), True),
    "maad": _Layout(_read_maad, "VGGFace2's images and MAAD_Face.csv", ("train", "test"), True, False),
    "morph": _Layout(_read_morph, "morph_2008_nonCommercial.csv and Album2/", (), True),
    "csv": _Layout(_read_csv, "a table with a column of paths", (), True, False),
}
LAYOUTS = tuple(_LAYOUTS)


def _layout(layout: str, split: str | None, vocabulary: str, missing: str | None) -> _Layout:
    options = (
        ("layout", layout, LAYOUTS),
        ("vocabulary", vocabulary, ("common", "original")),
        ("missing", missing, (None, "count", "drop", "error")),
    )
    for option, value, allowed in options:
        if value not in allowed:
            raise DataError(f"unknown {option}", expected=", ".join(map(repr, allowed)), got=repr(value))
    kind = _LAYOUTS[layout]
    if split is not None and split not in kind.splits:
        raise DataError(f"{layout!r} has no such split", expected=", ".join(kind.splits) or "none", got=repr(split))
    return kind


# --- files ----------------------------------------------------------------------------------------------------------


def _parents(paths: Sequence[str], root: Path) -> list[str]:
    """The folder of each file: whom it shows."""
    folders = [path.rpartition("/")[0] for path in paths]
    known: dict[str, str] = {}  # one string per identity
    alone = next((path for path, folder in zip(paths, folders, strict=True) if not folder), None)
    if alone is not None:
        raise DataError(
            "an image lies outside the folders of the identities",
            expected=f"{root}/<identity>/<image>",
            got=alone,
            fix='layout="folder" if the set has no identities',
        )
    return [known.setdefault(folder, folder) for folder in folders]


def _label_file(request: _Request, name: str, source: str, folders: Sequence[str]) -> Path:
    places = [request.root / folder / name for folder in folders]
    if request.labels is not None:
        places = [Path(request.labels)]
    found = next((place for place in places if place.is_file()), None)
    return found if found is not None else _no_label_file(places, source)


def _no_label_file(places: Sequence[Path], source: str) -> NoReturn:
    several = len(places) > 1 and all(place.is_file() for place in places)
    raise DataError(
        "several label files lie here" if several else "the label file is not there",
        expected="one, named by labels=" if several else " or ".join(str(place) for place in places),
        got=", ".join(place.name for place in places) if several else None,
        fix=f"{source}; if it lies elsewhere, pass its path as labels=",
    )


def _header(path: Path) -> list[str]:
    """Column names of a .csv or .tsv file."""
    import pyarrow as pa
    from pyarrow import csv

    if not path.is_file():
        raise DataError("no such file", expected="a table with a header line", got=str(path))
    try:
        with csv.open_csv(path, parse_options=csv.ParseOptions(delimiter=_delimiter(path) or ",")) as reader:
            names: list[str] = reader.schema.names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="columns under a header line", got=error) from error
    if len(set(names)) < len(names):
        raise DataError(f"{path.name} repeats a column", got=", ".join(n for n, k in Counter(names).items() if k > 1))
    return names


def _delimiter(path: Path) -> str | None:
    """Of a text table by its name, also gzipped; None for other files."""
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return {".csv": ",", ".tsv": "\t"}.get(kind)


def _columns(source: Any) -> dict[str, Any]:
    """A table's columns. Text files are read as text, so that identity "0007" stays what it is."""
    import pyarrow as pa
    from pyarrow import csv

    if not isinstance(source, str | os.PathLike) or _delimiter(Path(source)) is None:
        return dict(read_table(source))
    path = Path(source)
    names = _header(path)
    options = csv.ParseOptions(delimiter=_delimiter(path))
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    try:
        table = csv.read_csv(path, parse_options=options, convert_options=convert)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="rows of equal length", got=error) from error
    return {name.strip(): table.column(name).to_pylist() for name in names}


def _take(table: Mapping[str, Sequence[Any]], wanted: Iterable[str], what: str) -> list[list[str]]:
    """Columns by name as text, ignoring case, spaces and underscores."""
    by_name = {_plain(name): name for name in table}
    if not all(_plain(name) in by_name for name in wanted):
        raise DataError(f"this is not {what}", expected=", ".join(wanted), got=", ".join(table), fix='layout="csv"')
    return [_text(table[by_name[_plain(name)]]) for name in wanted]


def _text(column: Sequence[Any]) -> list[str]:
    """Cells as text: whole numbers without a point, "" where there is nothing."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":
        return ["" if x != x else str(int(x)) if x.is_integer() else repr(x) for x in column.tolist()]
    return [str(cell).strip() for cell in (column.tolist() if isinstance(column, np.ndarray) else column)]


def _repeats(paths: Sequence[str]) -> tuple[str, ...]:
    again = len(paths) - len(set(paths))
    return (f"{again} rows repeat a file that is listed above",) if again else ()


# --- small things ---------------------------------------------------------------------------------------------------


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


def _plain(text: str) -> str:
    """For comparing: no case, no punctuation; but "3-9" is not "39"."""
    return re.sub(r"[\W_]+", "-" if re.search(r"\d", text) else "", text.strip().casefold())


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / max(1, total):.1%})"


def _most_frequent(counts: Mapping[str, int], shown: int = 8) -> str:
    known = [f"{value} {count:,}" for value, count in counts.items() if value != UNKNOWN]
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return ", ".join(known[:shown]) + more or "none"
