"""The layouts that face sets come in: which files hold the images, which the labels, and what they call them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .attribute_schema import IDENTITY_COLUMNS, MAAD_FACE, AttributeSchema
from .errors import DataError
from .face_files import folders_in, list_images, relative
from .label_files import cell_texts, read_columns, read_maad_labels, take_columns
from .vocabulary import UNKNOWN, VOCABULARY, plain

_RACE_FOLDERS = ("african", "asian", "caucasian", "indian")


@dataclass(frozen=True)
class Request:
    """What `read_faces` was asked for."""

    root: Path
    labels: Any
    split: str | None
    columns: Mapping[str, str]
    values: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Found:
    """What a layout's reader found, in the source's words."""

    paths: Sequence[str]
    identities: Sequence[str] | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    annotations: Tensor | None = None
    schema: AttributeSchema | None = None
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # beyond `WORDS`
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How one is read, what it looks like, and which options it takes."""

    read: Callable[[Request], Found]
    about: str
    splits: tuple[str, ...] = ()
    label_file: bool = False
    names_people: bool = True  # a known set, whose faces all get race, gender and age


def _read_folder(request: Request) -> Found:
    return Found(list_images(request.root))


def _read_identities(request: Request) -> Found:
    paths = list_images(request.root)
    return Found(paths, _parents(paths, request.root))


def _read_fairface(request: Request) -> Found:
    files = [f"fairface_label_{split}.csv" for split in ("train", "val") if request.split in (None, split)]
    places = [request.root / file for file in files] if request.labels is None else [Path(request.labels)]
    tables = [read_columns(place) for place in places if place.is_file()]
    if not tables:
        _no_label_file(places, "FairFace's authors publish it beside the images")
    rows: list[tuple[str, ...]] = []
    for table in tables:
        rows += zip(*take_columns(table, ("file", "race", "gender", "age"), "FairFace's label file"), strict=True)
    if request.split is not None:  # a file of one's own may hold both
        rows = [row for row in rows if row[0].startswith(f"{request.split}/")]
    file, race, gender, age = zip(*rows, strict=True) if rows else ((),) * 4
    before = _fairface_images(request.root)
    return Found([before + f for f in file], labels={"race": race, "gender": gender, "age": age})


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


def _read_utkface(request: Request) -> Found:
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
    return Found(paths, labels=labels, notes=(note,) if odd else ())


def _read_race_folders(request: Request) -> Found:
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
    return Found(paths, identities, {"race": races}, notes=notes)


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


def _read_vggface2(request: Request) -> Found:
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
    return Found(paths, identities, {"gender": [gender.get(who, "") for who in identities]}, notes=notes)


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


def _read_maad(request: Request) -> Found:
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
        paths, identities = tuple(paths[i] for i in kept), [identities[i] for i in kept]
        annotations = annotations[torch.from_numpy(kept)]
    elif not present.all():
        absent = len(set(identities) - set(lies_in))
        notes = (f"{absent} identities of {path.name} have no folder here: {int((~present).sum())} images",)
    located = [lies_in.get(who, "") + file for file, who in zip(paths, identities, strict=True)]
    return Found(located, identities, {}, annotations, MAAD_FACE, notes=notes)


def _read_morph(request: Request) -> Found:
    tables = sorted(p for p in request.root.glob("*.csv") if p.name.casefold().startswith("morph"))
    if request.labels is None and len(tables) != 1:
        _no_label_file(tables or [request.root / "morph_2008_nonCommercial.csv"], "it comes with MORPH's images")
    table = read_columns(tables[0] if request.labels is None else request.labels)
    wanted = ("photo", "id_num", "race", "gender", "age")
    photos, identities, race, gender, age = take_columns(table, wanted, "MORPH's label file")
    places = _morph_places(photos[0]) if photos else []
    form = next((i for i, place in enumerate(places) if (request.root / place).is_file()), 0)
    letters = {"A": "asian", "B": "black", "H": "hispanic", "W": "white", "O": UNKNOWN}
    return Found(
        [_morph_places(photo)[form] for photo in photos],
        identities,
        {"race": race, "gender": gender, "age": age},
        values={"race": letters},
    )


def _morph_places(photo: str) -> list[str]:
    """Where an image may lie: as listed, or under its first three digits."""
    file = photo.rpartition("/")[2]
    return [photo, f"Album2/{file[:3]}/{file}", f"Album2/{file}", f"{file[:3]}/{file}", file]


def _read_csv(request: Request) -> Found:
    if request.labels is None:
        raise DataError("no table given", expected="labels=: a path, a dict, a frame", fix='labels="faces.csv"')
    table = read_columns(request.labels)
    chosen = _choose_columns(list(table), request.columns)
    if unknown := set(request.values) - set(chosen) | set(request.values) & {"path", "identity"}:
        raise DataError("values= names no label", expected=", ".join(chosen), got=", ".join(sorted(unknown)))
    for label, mapping in request.values.items():
        outside = set(mapping.values()) - set(VOCABULARY.get(label, mapping.values()))
        if outside:
            raise DataError(f"not a {label}", expected=", ".join(VOCABULARY[label]), got=", ".join(sorted(outside)))
    text = {label: cell_texts(table[column]) for label, column in chosen.items()}
    paths, identities = text.pop("path"), text.pop("identity", None)
    for what, cells in (("path", paths), ("identity", identities or ())):
        if "" in cells:  # rows without an identity would become one person
            expected = f"something in every row of {chosen[what]!r}"
            raise DataError(f"row {list(cells).index('') + 1} has no {what}", expected=expected)
    left = [column for column in table if column not in chosen.values()]
    notes = (f"columns not read: {', '.join(left)}; name them with columns=",) if left else ()
    return Found(paths, identities, text, values=request.values, notes=notes)


def _choose_columns(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """{path, identity, label: column}: those given, and those whose names say what they are."""
    if absent := sorted(set(given.values()) - set(names)):
        raise DataError("no such column", expected=", ".join(names), got=", ".join(absent))
    usual = {
        "path": ("path", "file", "filename", "image", "imagepath", "imgpath", "filepath", "photo"),
        "identity": IDENTITY_COLUMNS,
        **{label: (label,) for label in ("race", "gender", "age")},
    }
    chosen = {}
    for what, aliases in usual.items():
        hits = [n for n in names if plain(n) in aliases and n not in given.values()]
        if what not in given and hits:
            if len(hits) > 1:
                fix = f'columns={{"{what}": "{hits[0]}"}}'
                raise DataError(f"several columns could be the {what}", got=", ".join(hits), fix=fix)
            chosen[what] = hits[0]
    chosen |= given
    if "path" not in chosen:
        raise DataError("which column holds the files?", got=", ".join(names), fix='columns={"path": "…"}')
    return chosen


LAYOUTS = {
    "folder": Layout(_read_folder, "images in any folders", names_people=False),
    "identities": Layout(_read_identities, "a folder of images per identity", names_people=False),
    "fairface": Layout(_read_fairface, "fairface_label_train.csv and train/1.jpg, …", ("train", "val"), True),
    "utkface": Layout(_read_utkface, "images called age_gender_race_date.jpg"),
    "rfw": Layout(_read_race_folders, "test/data/African/m.0xnkj/m.0xnkj_0001.jpg, …"),
    "bupt": Layout(_read_race_folders, "race_per_7000/African/<identity>/<image>.jpg, …"),
    "vggface2": Layout(_read_vggface2, "train/n000002/0001_01.jpg, … and identity_meta.csv", ("train", "test"), True),
    "maad": Layout(_read_maad, "VGGFace2's images and MAAD_Face.csv", ("train", "test"), True, False),
    "morph": Layout(_read_morph, "morph_2008_nonCommercial.csv and Album2/", (), True),
    "csv": Layout(_read_csv, "a table with a column of paths", (), True, False),
}


# --- what several layouts share ---------------------------------------------------------------------------------------


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


def _label_file(request: Request, name: str, source: str, folders: Sequence[str]) -> Path:
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
