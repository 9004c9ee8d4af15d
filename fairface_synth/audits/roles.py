"""Which columns of a table an audit uses, and as what: scores, factors, colour, luminance, traits, other measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..covariates import COVARIATES
from ..errors import DataError
from ..tables import Table
from .columns import (
    first_text,
    is_unknown,
    levels_of,
    parse_numbers,
    read_labels,
    read_numbers,
    reference_levels,
)
from .design import Interactions

COLOUR = ("red_mean", "green_mean", "blue_mean")
MOST_CELLS = 60  # crossed groups beyond this are shown factor by factor
_FEW_LEVELS = 20  # a text column with more distinct values is taken for names


@dataclass(frozen=True)
class Columns:
    """What an audit found in the table and used.

    Attributes:
        rows: of the table.
        scores: columns that are audited, side by side.
        factors: {column of labels: its levels}.
        colour: mean red, green, blue; () if they are not there.
        luminance: its column, or None.
        traits: other numbers, such as ratings.
        covariates: other image measures of `covariates.covariates`, those of face regions too.
        left_out: {column: why it was not used}.
        missing: {column: rows without a value}, where there are any.
    """

    rows: int
    scores: tuple[str, ...]
    factors: Mapping[str, tuple[str, ...]]
    colour: tuple[str, ...]
    luminance: str | None
    traits: tuple[str, ...]
    covariates: tuple[str, ...]
    left_out: Mapping[str, str]
    missing: Mapping[str, int]

    def __str__(self) -> str:
        factors = ", ".join(f"{f} ({', '.join(levels)})" for f, levels in self.factors.items())
        lines = [
            f"{self.rows} rows.",
            f"Scores: {', '.join(self.scores)}.",
            f"Factors: {factors or 'none'}.",
            f"Colour: {', '.join(self.colour) or 'none'}. Luminance: {self.luminance or 'none'}.",
            f"Traits: {', '.join(self.traits) or 'none'}.",
            f"Other image measures: {', '.join(self.covariates) or 'none'}.",
        ]
        if self.left_out:
            lines.append("Not used: " + "; ".join(f"{name}: {why}" for name, why in self.left_out.items()) + ".")
        if self.missing:
            lines.append("Missing values: " + ", ".join(f"{name} {n}" for name, n in self.missing.items()) + ".")
        return "\n".join(f"- {line}" for line in lines)


def choose_columns(
    table: Table,
    scores: str | Sequence[str] | None,
    factors: str | Sequence[str] | None,
    traits: str | Sequence[str] | None,
    colour: Sequence[str],
    luminance: str | None,
    reference: Mapping[str, str] | None,
) -> tuple[Columns, Table, list[str]]:
    """The columns to use, the table of these with factors as text, and notes."""
    asked = {*(_names(table, factors) or ()), *(_names(table, traits) or ())}
    # Numbers written as text are numbers, as they would be after a CSV file; unless they are asked for as labels.
    labelled = set(_names(table, factors) or ())
    table = {name: x if name in labelled else parse_numbers(x) for name, x in table.items()}
    chosen = _names(table, scores)
    named_scores = [name for name in table if name.lower().startswith("score") and table[name].dtype.kind in "iuf"]
    if chosen is None:
        chosen = named_scores
    _check_scores(table, chosen)
    left_out = {name: "another score, not asked for" for name in named_scores if name not in {*chosen, *asked}}
    left_out |= {
        name: f"the source's own values of {name.removesuffix('_original')!r}; factors=[…] makes it a factor"
        for name in table
        if name.endswith("_original") and name.removesuffix("_original") in table and name not in {*chosen, *asked}
    }
    colour, luminance, notes = _measures(table, colour, luminance, left_out)
    measures = [*colour, *([luminance] if luminance else [])]
    used = {*chosen, *measures, *left_out}
    labels = _factors(table, factors, used, left_out)
    ratings, covariates = _numbers(table, traits, used | labels.keys() | left_out.keys(), left_out)
    levels = {f: levels_of(x[x != ""], f) for f, x in labels.items()}
    reference_levels(levels, reference)  # speaks up early; parts would only be skipped
    notes += [
        f"{coarse} follows from {fine}: least squares with both have {fine} alone; factors=[…] chooses."
        for coarse, fine in determined_factors(labels).items()
    ]
    data = {name: table[name] for name in (*chosen, *measures, *ratings, *covariates)} | labels
    missing = {n: int((x == "").sum() if n in labels else np.isnan(x.astype(float)).sum()) for n, x in data.items()}
    columns = Columns(
        rows=len(table[chosen[0]]),
        scores=tuple(chosen),
        factors=levels,
        colour=tuple(colour),
        luminance=luminance,
        traits=tuple(ratings),
        covariates=tuple(covariates),
        left_out=left_out,
        missing={name: n for name, n in missing.items() if n},
    )
    return columns, data, notes


def _measures(
    table: Table, colour: Sequence[str], luminance: str | None, left_out: dict[str, str]
) -> tuple[list[str], str | None, list[str]]:
    """Columns of colour and luminance, with notes; those of the default names may be absent, others may not."""
    notes = []
    if tuple(colour) == COLOUR and not set(COLOUR) <= table.keys():
        absent = [c for c in COLOUR if c not in table]
        left_out |= {c: "part of the colour, the rest of which is absent" for c in COLOUR if c in table}
        how = 'colour=("R", "G", "B") names columns that are called otherwise'
        notes.append(f"No colour: the table has no {', '.join(absent)}; {how}.")
        colour = ()
    if luminance == "luminance" and luminance not in table:
        notes.append(
            "No luminance in the table: nothing says how much of a group's effect goes with it; "
            'luminance="lum" names a column that is called otherwise.'
        )
        luminance = None
    names = _names(table, list(colour)) or []
    if len(names) not in (0, 3):
        raise DataError("colour has three columns", expected="mean red, green, blue", got=", ".join(names))
    for name in (*names, *(_names(table, luminance) or ())):
        values = read_numbers(table, name)
        values = values[~np.isnan(values)]
        if not len(values) or np.ptp(values) == 0:
            left_out[name] = "the same everywhere" if len(values) else "no values"
    for name in set(names) - left_out.keys():
        values = read_numbers(table, name)
        low, high = np.nanmin(values), np.nanmax(values)
        if low < 0 or not 1 < high <= 255:
            got = f"{low:.3g}–{high:.3g}"
            raise DataError(
                f"column {name!r} is no mean colour", expected="0–255", got=got, fix="colour=() leaves it out"
            )
    if luminance is not None and luminance not in left_out:
        values = read_numbers(table, luminance)
        low, high = np.nanmin(values), np.nanmax(values)
        if low < 0 or high > 1 + 1e-6:  # a mean of 1s can round to more
            got = f"{low:.3g}–{high:.3g}"
            fix = "divide 0–255 by 255; luminance=None leaves it out"
            raise DataError(f"column {luminance!r} is no luminance", expected="0–1", got=got, fix=fix)
    if left_out.keys() & set(names):
        left_out |= dict.fromkeys(names, "part of the colour, the rest of which is unusable") | left_out
        names = []
    return names, None if luminance in left_out else luminance, notes


def _numbers(
    table: Table, wanted: str | Sequence[str] | None, used: set[str], left_out: dict[str, str]
) -> tuple[list[str], list[str]]:
    """Traits, and other image measures."""
    names = _names(table, wanted)
    rest = [name for name in table if name not in used | set(names or ())]
    if names is not None:
        _check_unused(names, used, "traits")
        for name in names:
            read_numbers(table, name)
        left_out |= dict.fromkeys(rest, "not asked for")
        return names, []
    left_out |= {name: why for name in rest if (why := _no_trait(table[name]))}
    kept = [name for name in rest if name not in left_out]
    measures = [name for name in kept if name.split("/")[-1] in COVARIATES]
    return [name for name in kept if name not in measures], measures


def _names(table: Table, names: str | Sequence[str] | None) -> list[str] | None:
    """Checked names, each once; None stays None."""
    if names is None:
        return None
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
    unknown = [str(name) for name in wanted if name not in table]
    if unknown:
        raise DataError("no such column", expected=f"one of {', '.join(table)}", got=", ".join(unknown))
    return wanted


def _check_scores(table: Table, scores: Sequence[str]) -> None:
    if not scores:
        texts = [name for name in table if name.lower().startswith("score") and table[name].dtype.kind not in "biuf"]
        separated = next((mark for mark in ";\t|" if len(table) == 1 and mark in next(iter(table))), None)
        if texts and separated is None:
            raise DataError(f"the table has no scores: {texts[0]!r} is text", got=first_text(table[texts[0]]))
        raise DataError(
            "the table has no scores",
            expected='a numeric column whose name begins with "score", or scores="its name"',
            got=f"columns {', '.join(table)}" if separated is None else f"one column, {next(iter(table))!r}",
            fix=None if separated is None else f"is it separated by {separated!r}? Columns are separated by commas",
        )
    for name in scores:
        bad = int(np.isnan(read_numbers(table, name)).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(table[name])} values of {name!r} are missing",
                expected="a score in every row",
                fix="drop these rows first, and say how many",
            )
        if len(table[name]) < 3:
            raise DataError("too few rows for an audit", expected="at least 3, better hundreds", got=len(table[name]))
        if np.ptp(table[name].astype(float)) == 0:
            raise DataError(f"{name!r} is the same in every row", expected="scores that vary", got=table[name][0])


def _check_unused(names: Sequence[str], used: set[str], purpose: str) -> None:
    twice = [name for name in names if name in used]
    if twice:
        raise DataError(f"these {purpose} are used as something else, or unusable", got=", ".join(twice))


def _factors(table: Table, wanted: str | Sequence[str] | None, used: set[str], left_out: dict[str, str]) -> Table:
    """{factor: labels, "" where missing}; what is none goes to left_out."""
    names = _names(table, wanted)
    _check_unused(names or (), used, "factors")
    if names is None:
        names = [name for name, x in table.items() if x.dtype.kind not in "iuf" and name not in used]
    labels: Table = {}
    for name in names:
        values = read_labels(table, name)
        values = np.where(is_unknown(values), "", values)
        levels = set(values.tolist()) - {""}
        if len(levels) < 2:
            left_out[name] = f"the same everywhere ({next(iter(levels))})" if levels else "no values"
        elif wanted is None and name.lower().startswith("score"):
            why = f"text, though named as a score ({first_text(table[name])})"
            left_out[name] = f"{why}; factors=[…] makes it a factor"
        elif wanted is None and len(levels) > min(_FEW_LEVELS, max(2, len(values) // 2)):
            left_out[name] = f"text with {len(levels)} different values, taken for names; factors=[…] makes it a factor"
        else:
            labels[name] = values
    return labels


def determined_factors(labels: Table) -> dict[str, str]:
    """{factor: the other one whose label says its label in every row}; of two that are the same, the later one."""
    out: dict[str, str] = {}
    for coarse in reversed(list(labels)):
        for fine in labels:
            known = (labels[coarse] != "") & (labels[fine] != "")
            pairs = set(zip(labels[coarse][known].tolist(), labels[fine][known].tolist(), strict=True))
            if fine != coarse and fine not in out and pairs and len(pairs) == len({b for _, b in pairs}):
                out[coarse] = fine
                break
    return out


def _no_trait(column: np.ndarray) -> str:
    """Why a column is not used as a trait; "" if it is."""
    if column.dtype.kind not in "iuf":
        return "true or false, not asked for" if column.dtype.kind == "b" else "text"
    values = column[np.isfinite(column.astype(float))]
    if not len(values):
        return "no values"
    if np.isinf(column.astype(float)).any():
        return "infinite values"
    if np.ptp(values) == 0:
        return f"the same everywhere ({values[0]:g})"
    if column.dtype.kind in "iu" and len(np.unique(values)) == len(column) > 20:
        return "whole numbers, none twice: taken for the rows' numbers; traits=[…] makes it a trait"
    return ""


def choose_interactions(data: Table, factors: list[str], notes: list[str]) -> Interactions:
    """ "all" if the cells of the crossed factors are not too many and every one has two rows."""
    if len(factors) < 2:
        return "all"
    cells = cell_names(data, factors)
    _, counts = np.unique(cells[cells != ""], return_counts=True)
    possible = math.prod(len(set(data[f].tolist()) - {""}) for f in factors)
    if possible > MOST_CELLS:
        notes.append(f"{crossing_name(factors)} has {possible} cells: no interactions; interactions=… asks for them.")
        return "none"
    full = int((counts >= 2).sum())
    if full == possible:
        return "all"
    notes.append(
        f"{possible - full} of {possible} cells of {crossing_name(factors)} have fewer than 2 rows: no interactions."
    )
    return "none"


def cell_names(data: Table, factors: Sequence[str]) -> np.ndarray:
    """ "black × long" for each row, "" where a label is missing."""
    columns = [data[f] for f in factors]
    known = np.all([c != "" for c in columns], axis=0)
    joined = [" × ".join(cell) for cell in zip(*(c.tolist() for c in columns), strict=True)]
    return np.where(known, joined, "")


def crossing_name(factors: Sequence[str]) -> str:
    """ "race × hair"."""
    return " × ".join(factors)


def factor_sets(factors: Sequence[str] | Mapping[str, Any]) -> list[list[str]]:
    """Each factor alone, then all together."""
    names = list(factors)
    return [[f] for f in names] + ([names] if len(names) > 1 else [])
