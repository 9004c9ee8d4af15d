"""LFW's lists of pairs, and RFW's, which have their form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..dataset_layouts import race_root
from ..errors import DataError
from ..face_files import folders_in, relative
from ..vocabulary import RACES
from .base import Listed, Request, folder_holding, lines_of, no_pair, pair_file

FOLDS = 10  # of LFW's protocol, and of those that follow it
_RFW_RACES = {"African": "black", "Asian": "asian", "Caucasian": "white", "Indian": "indian"}


def read_lfw(request: Request) -> Listed:
    """pairs.txt: "10 300", then for each fold 300 lines "name i j" and 300 lines "name1 i name2 j"."""
    path = pair_file(request, "pairs.txt", "LFW's authors publish pairs.txt, pairsDevTrain.txt and pairsDevTest.txt")
    header, lines = _read_lines(path)
    before = folder_holding(request.root, lines[0][0])
    people, pairs, mated = _images_of(lines)
    paths = [f"{before}{who}/{who}_{number:04d}{request.suffix}" for who, number in people]
    folds, notes = _lfw_folds(path, header, mated)
    return Listed(paths, pairs, mated, folds, [who for who, _ in people], notes=notes)


def read_rfw(request: Request) -> Listed:
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
        header, lines = _read_lines(path)
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
    return Listed(
        paths,
        np.concatenate(pairs),
        np.concatenate(mated),
        np.concatenate(each) if len(each) == len(folds) else None,
        who,
        {"race": [_RFW_RACES[race] for race in races], "race_original": races},
        {"race": RACES},
        tuple(notes),
    )


# --- details ----------------------------------------------------------------------------------------------------------


def _read_lines(path: Path) -> tuple[list[int], list[tuple[str, int, str, int, bool]]]:
    """The numbers of the header, if there is one, and (name, number, name, number, mated) of each line."""
    header: list[int] = []
    lines: list[tuple[str, int, str, int, bool]] = []
    for at, line in lines_of(path):
        fields = [f.strip() for f in line.split("\t")] if "\t" in line else line.split()
        if not lines and not header and len(fields) <= 2 and all(f.isdecimal() for f in fields):
            header = [int(f) for f in fields]
        elif len(fields) == 3 and fields[0] and fields[1].isdecimal() and fields[2].isdecimal():
            lines.append((fields[0], int(fields[1]), fields[0], int(fields[2]), True))
        elif len(fields) == 4 and fields[0] and fields[2] and fields[1].isdecimal() and fields[3].isdecimal():
            lines.append((fields[0], int(fields[1]), fields[2], int(fields[3]), False))
        else:
            no_pair(path, at, line, "name i j (one person) or name1 i name2 j (two), by tabs or spaces")
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
    n, rest = divmod(len(mated), 2 * FOLDS)
    pattern = np.tile(np.repeat([True, False], n), FOLDS)
    return None if rest or not np.array_equal(mated, pattern) else np.arange(len(mated)) // (2 * n)


def _rfw_lists(request: Request) -> dict[str, Path]:
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
