"""Lists of pairs of one's own: lines "path path same [fold]", or any table."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..tables import read_table
from .base import TRUTH, Listed, Request, fold_numbers, lines_of, no_pair, pair_file

_COLUMNS = {  # of a list: what it is, and how sources call it
    "first": ("first", "path1", "p1", "image1", "img1", "file1"),
    "second": ("second", "path2", "p2", "image2", "img2", "file2"),
    "mated": ("mated", "same", "issame", "label", "match"),
    "fold": ("fold", "folds"),
    "identity1": ("identity1", "id1", "person1", "subject1"),
    "identity2": ("identity2", "id2", "person2", "subject2"),
}


def read_list(request: Request) -> Listed:
    """Lines "path path same [fold]", with or without names above, by tabs, commas or spaces; or any table."""
    source = request.pairs
    if source is None:
        raise DataError("which list?", expected="pairs=, a file or a table", got="only root=")
    if isinstance(source, str | os.PathLike):
        path = pair_file(request, str(source), "a line per pair: path path same [fold]")
        if path.suffix != ".parquet":
            return _from_lines(path, request.columns)
        source = path
    table = {name: [_text(cell) for cell in column.tolist()] for name, column in read_table(source).items()}
    return _from_columns(_chosen(list(table), request.columns), table, lambda i: f"row {i + 1}")


# --- details ----------------------------------------------------------------------------------------------------------


def _text(cell: Any) -> str:
    """A table's cell; "" where it is missing: None, or NaN, which differs from itself."""
    return "" if cell is None or cell != cell else str(cell).strip()


def _from_lines(path: Path, columns: Mapping[str, str]) -> Listed:
    numbers, rows = _rows(path)
    names = ["first", "second", "mated", "fold"][: max(3, len(rows[0]))]
    truth = rows[0][2].casefold() if len(rows[0]) > 2 else ""
    chosen = {name: name for name in names}
    if columns or (truth not in TRUTH and len(rows[0]) > 2):  # names, not a pair
        names = rows[0]
        chosen = _chosen(names, columns, f"{path.name}, line {numbers[0]}")
        numbers, rows = numbers[1:], rows[1:]
    for at, row in zip(numbers, rows, strict=True):
        if len(row) != len(names):
            fix = "paths with spaces need tabs or commas between columns" if len(row) > len(names) else None
            no_pair(path, at, " ".join(row), f"{len(names)} fields: {' '.join(names)}", fix)
    table = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    return _from_columns(chosen, table, lambda i: f"{path.name}, line {numbers[i]}")


def _rows(path: Path) -> tuple[list[int], list[list[str]]]:
    """The fields of each line that is not empty, and its number."""
    lines = list(lines_of(path))
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
        no_pair(path, at, texts[numbers.index(at)], "a quote that is closed on its line")
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


def _from_columns(chosen: Mapping[str, str], table: Mapping[str, Sequence[str]], where: Callable[[int], str]) -> Listed:
    column = {what: table[name] for what, name in chosen.items()}
    mated = []
    for i, (first, second, word) in enumerate(zip(column["first"], column["second"], column["mated"], strict=True)):
        answer = TRUTH.get(word.casefold())
        if answer is None or not first or not second:
            got = " ".join((first, second, word))
            raise DataError(f"{where(i)}: not a pair", expected="path path same, with same 1 or 0", got=got)
        mated.append(answer)
    row: dict[str, int] = {}
    flat = [row.setdefault(p, len(row)) for both in zip(column["first"], column["second"], strict=True) for p in both]
    pairs = np.array(flat, dtype=np.int64).reshape(-1, 2)
    folds = fold_numbers(column["fold"], where) if "fold" in column else None
    who: list[str] | None = None
    notes: tuple[str, ...] = ()
    if "identity1" in column and "identity2" in column:
        who, notes = _list_identities(column, pairs, len(row))
    return Listed(list(row), pairs, np.array(mated, dtype=bool), folds, who, notes=notes)


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
