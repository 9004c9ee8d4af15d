"""Reading columns of a table: numbers, labels, levels, reference levels.

A label "", "unknown" or "nan" and a number NaN are missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError

_UNKNOWN = ("", "unknown", "nan", "<na>")  # the last two: missing values that some step made text
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_MOST_LEVELS = 100  # a factor with more is a number or an identifier given by mistake


def get_column(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column that must be there."""
    if name not in table:
        raise DataError(f"no column {name!r}", expected=f"one of {', '.join(table)}", got=name)
    return table[name]


def read_numbers(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column as float64, NaN where missing."""
    column = get_column(table, name)
    if column.dtype.kind not in "biuf":
        raise DataError(f"column {name!r} is text", expected="numbers", got=first_text(column))
    column = column.astype(np.float64)
    if np.isinf(column).any():
        raise DataError(f"column {name!r} has infinite values", expected="finite numbers, NaN where missing")
    return column


def first_text(column: np.ndarray) -> str:
    """Where a column of text is no number first: "first value that is no number: 'n/a', row 6"; rows count from 1."""
    missing = is_unknown(np.char.strip(column.astype(str)))
    for row, (text, unknown) in enumerate(zip(column.tolist(), missing.tolist(), strict=True), 1):
        if not unknown and not _NUMBER.fullmatch(text.strip()):
            return f"first value that is no number: {text!r}, row {row}"
    return "numbers written as text" if not missing.all() else "no values"


def parse_numbers(column: np.ndarray) -> np.ndarray:
    """Text whose known values are all numbers as numbers, as a CSV file would give it; other columns as they are."""
    if column.dtype.kind != "U":
        return column
    texts = np.char.strip(column)
    missing = is_unknown(texts)
    known = texts[~missing]
    if not len(known) or not all(_NUMBER.fullmatch(text) for text in known.tolist()):
        return column
    numbers = np.full(len(column), np.nan)
    numbers[~missing] = known.astype(np.float64)
    whole = not missing.any() and all(_WHOLE.fullmatch(text) for text in known.tolist())
    return numbers.astype(np.int64) if whole and np.abs(numbers).max() < 2**53 else numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_labels(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column as text without spaces around: whole numbers without their ".0", "" where missing."""
    column = get_column(table, name)
    if column.dtype.kind == "f":
        texts = ["" if np.isnan(x) else f"{x:.0f}" if x == np.floor(x) else repr(float(x)) for x in column]
        return np.array(texts, dtype=str)
    return np.char.strip(column.astype(str))


def is_unknown(labels: np.ndarray) -> np.ndarray:
    """Which labels are missing."""
    return np.isin(np.char.lower(labels), _UNKNOWN)


def levels_of(labels: np.ndarray, factor: str) -> tuple[str, ...]:
    """Levels in alphabetical order; numbers by size."""
    levels = [str(level) for level in np.unique(labels)]
    if len(levels) > _MOST_LEVELS:
        raise DataError(
            f"{factor!r} has {len(levels)} levels",
            expected=f"labels, at most {_MOST_LEVELS} different ones",
            got=", ".join(levels[:5]) + ", …",
            fix="give it as a number, or bin it",
        )
    return tuple(sorted(levels, key=float) if all(map(_is_number, levels)) else levels)


def distinct_names(names: Sequence[str], *others: str) -> tuple[str, ...]:
    """The names, checked to be a sequence in which, with the others, none comes twice."""
    if isinstance(names, str):
        raise DataError("column names come in a sequence", expected=f"[{names!r}]", got=repr(names))
    names = tuple(names)
    repeated = sorted({n for n in (*names, *others) if (*names, *others).count(n) > 1})
    if repeated:
        raise DataError("a column is used twice", expected="each column once", got=", ".join(repeated))
    return names


def reference_levels(levels: Mapping[str, Sequence[str]], wanted: Mapping[str, str] | None) -> dict[str, str]:
    """{factor: its reference level}, of {factor: its levels}; see `reference_level`."""
    wanted = {} if wanted is None else wanted
    if not isinstance(wanted, Mapping):
        raise DataError("reference is no mapping", expected="{factor: level}", got=repr(wanted))
    unknown = [str(factor) for factor in wanted if factor not in levels]
    if unknown:
        raise DataError("a reference for what is no factor", expected=list(levels), got=", ".join(unknown))
    return {factor: reference_level(own, wanted.get(factor), factor) for factor, own in levels.items()}


def reference_level(levels: Sequence[str], wanted: str | None, factor: str) -> str:
    """The level asked for, else "white", else the first; case does not matter."""
    for level in levels:
        if level == wanted:
            return level
    alike = [level for level in levels if level.lower() == str(wanted if wanted is not None else "white").lower()]
    if wanted is not None and len(alike) != 1:
        raise DataError(f"{factor!r} has no level {wanted!r}", expected=f"one of {', '.join(levels)}", got=wanted)
    return alike[0] if alike else levels[0]


def check_count(name: str, value: Any, least: int) -> None:
    """A number of things is whole and large enough."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise DataError(f"{name} is out of range", expected=f"{name} ≥ {least}, a whole number", got=value)


def import_audit(package: str) -> Any:
    """Import a package of the extra [audit].

    Raises:
        DataError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(f"{package} is not installed", fix="pip install 'fairface_synth[audit]'") from error
