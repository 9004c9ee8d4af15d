"""BFW's table of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..vocabulary import GENDERS, RACES, UNKNOWN
from .base import TRUTH, Listed, Request, fold_numbers, folder_holding, pair_file


def read_bfw(request: Request) -> Listed:
    """A table with columns p1, p2, label, fold, att1, att2 (and more, not read); images asian_females/n000009/….jpg."""
    path = _table(request)
    table = _columns(path)
    flat, rows = _coded(path, table["p1"], table["p2"])
    paths = [p.replace("\\", "/") for p in flat]
    mated = _truth(path, table["label"])
    folds = (
        None if "fold" not in table else fold_numbers(table["fold"].to_pylist(), lambda i: f"{path.name}, row {i + 1}")
    )
    subgroups, notes = _subgroups(path, table, paths, rows)
    races, genders = zip(*(_words(group) for group in subgroups), strict=True) if paths else ((), ())
    strange = sum(UNKNOWN in words for words in zip(races, genders, strict=True))
    if strange:
        notes += (f"{strange} faces are in no subgroup such as asian_females; race or gender unknown",)
    before = folder_holding(request.root, paths[0].split("/")[0]) if paths else ""
    return Listed(
        [before + p for p in paths],
        rows,
        mated,
        folds,
        [p.rpartition("/")[0] for p in paths],
        {"race": races, "gender": genders},
        {"race": RACES, "gender": GENDERS},
        notes,
    )


# --- details ----------------------------------------------------------------------------------------------------------


def _table(request: Request) -> Path:
    if request.pairs is not None:
        return pair_file(request, str(request.pairs), "BFW's authors publish it")
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


def _columns(path: Path) -> dict[str, Any]:
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


def _truth(path: Path, column: Any) -> np.ndarray:
    """The column label as bool; texts are looked up once each."""
    coded = column.combine_chunks().dictionary_encode()
    words = coded.dictionary.to_pylist()
    codes = coded.indices.to_numpy()
    answers = np.array([TRUTH.get(word.strip().casefold(), -1) for word in words], dtype=np.int64)
    if (answers < 0).any():
        row = int(np.argmax(answers[codes] < 0))
        raise DataError(f"{path.name}, row {row + 1}: not a pair", expected="label 0 or 1", got=repr(words[codes[row]]))
    return np.asarray(answers[codes] == 1)


def _subgroups(
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


def _words(subgroup: str) -> tuple[str, str]:
    """("asian", "female") of "asian_females"."""
    race, _, gender = subgroup.strip().casefold().partition("_")
    gender = gender.removesuffix("s")
    return race if race in RACES else UNKNOWN, gender if gender in GENDERS else UNKNOWN
