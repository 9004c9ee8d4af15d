"""What the results of all statistics have in common, and how their numbers are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..reports import markdown_table
from ..tables import to_frame


class Result:
    """A result with `rows` (one dataclass each), `missing` and `notes`."""

    rows: tuple[Any, ...]
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but posterior draws, as plain numbers, texts, lists and dicts."""
        return {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.metadata.get("plain", True)}  # type: ignore[arg-type]

    def to_frame(self) -> Any:
        """`rows` as a pandas DataFrame.

        Raises:
            DataError: pandas is not installed.
        """
        records = [plain(row) for row in self.rows]
        return to_frame({name: [record[name] for record in records] for name in records[0]})


class Parts(dict[str, Any]):
    """{name: part}; an unknown name is answered with those that are there."""

    def __missing__(self, name: str) -> Any:
        raise KeyError(f"no part {name!r}; there are: {', '.join(map(repr, self)) or 'none'}; see `skipped`")


def result_text(result: Result, header: Sequence[str], rows: Sequence[Sequence[str]], *lines: str) -> str:
    """A table of the rows, lines below it (empty ones are left out), what is missing, and the notes."""
    out = [line for line in lines if line]
    left_out = ", ".join(f"{name} {count}" for name, count in result.missing.items() if count)
    if left_out:
        out.append(f"Rows without a value, left out: {left_out}.")
    out += [f"Note: {note}" for note in result.notes]
    return "\n\n".join([markdown_table(header, rows), *out])


def find_row(rows: Iterable[Any], key: str, value: str) -> Any:
    """The row whose `key` is this value; a DataError if there is none."""
    rows = tuple(rows)
    for row in rows:
        if getattr(row, key) == value:
            return row
    raise DataError(f"no such {key}", expected=", ".join(getattr(r, key) for r in rows), got=value)


def plain(value: Any) -> Any:
    """Dataclasses, mappings, tuples and arrays as dicts and lists of plain numbers and texts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def number_text(x: float, digits: int = 4) -> str:
    """Significant digits, none after the point in large numbers, a dash for NaN."""
    if np.isnan(x):
        return "–"
    return f"{x:.0f}" if np.isfinite(x) and abs(x) >= 10**digits else f"{x:.{digits}g}"


def range_text(low: float, high: float) -> str:
    """ "[1.2, 3.4]"."""
    return "–" if np.isnan(low) or np.isnan(high) else f"[{number_text(low)}, {number_text(high)}]"


def p_text(p: float) -> str:
    """A p value; below what a float holds, "< 1e-300"."""
    return "< 1e-300" if p < 1e-300 else number_text(p, 2)


def bullets(reasons: Mapping[str, str]) -> str:
    """A line for each: "- name: why"."""
    return "\n".join(f"- {name}: {why}" for name, why in reasons.items())
