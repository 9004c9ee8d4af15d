"""What is in the scores, before any model: group means, correlations, the highest and the lowest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..tables import TableLike, read_table, to_frame
from .columns import check_count, distinct_names, is_unknown, levels_of, read_labels, read_numbers
from .results import Result, find_row, number_text, range_text, result_text

_NO_CORRELATION = (float("nan"),) * 8
SIDES = ("top", "bottom")


# --- group means ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GroupRow:
    """Scores of one cell: `labels` {factor: level}; a factor that is not in it is summed over.

    `n` rows; `mean`, `sd` (ddof 1), `median`, `low` and `high` (95 % t interval of the mean) are NaN where n is too
    small for them.
    """

    labels: Mapping[str, str]
    n: int
    mean: float
    sd: float
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class GroupTable(Result):
    """Scores per cell of the crossed factors, per margin of each factor, and overall.

    Attributes:
        by: the factors.
        levels: {factor: its levels, sorted}.
        rows: cells in the order of the levels, absent ones (n = 0) too, then margins, then the whole.
        n: rows with a score.
        missing: {column: rows without a value}. A row that lacks one factor's label still counts in the margins of the
            others and in the whole, so cells need not add up to them.
        notes: caveats.
    """

    by: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    rows: tuple[GroupRow, ...]
    n: int
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def row(self, **labels: str) -> GroupRow:
        """The row of a cell or margin, `row(race="black", hair="long")`; of the whole, `row()`.

        Raises:
            DataError: there is none.
        """
        for row in self.rows:
            if dict(row.labels) == labels:
                return row
        raise DataError("no such cell", expected=f"levels of {dict(self.levels)}", got=labels)

    @property
    def cells(self) -> tuple[GroupRow, ...]:
        """Rows of the crossed factors alone."""
        return tuple(row for row in self.rows if len(row.labels) == len(self.by))

    def to_frame(self) -> Any:
        """One row per cell, margin and the whole, a column per factor ("all" where summed over)."""
        columns: dict[str, list[Any]] = {f: [row.labels.get(f, "all") for row in self.rows] for f in self.by}
        for name in ("n", "mean", "sd", "median", "low", "high"):
            columns[name] = [getattr(row, name) for row in self.rows]
        return to_frame(columns)

    def __str__(self) -> str:
        rows = [
            [*(row.labels.get(f, "all") for f in self.by), str(row.n)]
            + ["–" if np.isnan(x) else f"{x:.2f}" for x in (row.mean, row.sd, row.median)]
            + ["–" if np.isnan(row.low) else f"[{row.low:.2f}, {row.high:.2f}]"]
            for row in self.rows
        ]
        return result_text(self, [*self.by, "n", "mean", "SD", "median", "95 % of the mean"], rows)


def group_table(table: TableLike, by: Sequence[str], score: str = "score") -> GroupTable:
    """Number, mean, SD and median of the score in each group (table of arXiv 2402.09786, methods 3.4).

    Args:
        table: anything `read_table` reads.
        by: factors to cross; () gives the whole alone.
        score: the scored column.

    Raises:
        DataError: unknown columns, scores that are not finite numbers, a factor with more than 100 levels.
    """
    columns = read_table(table)
    y, labels = read_numbers(columns, score), {f: read_labels(columns, f) for f in distinct_names(by, score)}
    known = {f: ~is_unknown(x) for f, x in labels.items()}
    scored = ~np.isnan(y)
    missing = {score: int((~scored).sum()), **{f: int((~known[f]).sum()) for f in labels}}
    levels = {f: levels_of(labels[f][known[f] & scored], f) for f in labels}
    cells: list[dict[str, str]] = [{}]
    for f in labels:
        cells = [{**cell, f: level} for cell in cells for level in levels[f]]
    margins = [{f: level} for f in labels for level in levels[f]] if len(labels) > 1 else []
    wanted = [*cells, *margins, *([{}] if labels else [])]
    rows = []
    for cell in wanted:
        mask = scored.copy()
        for f, level in cell.items():
            mask &= labels[f] == level
        rows.append(_summary(cell, y[mask]))
    notes: tuple[str, ...] = ()
    if any(missing[f] for f in labels):
        notes = ("rows without a label count in the margins of their other labels and in the whole",)
    return GroupTable(tuple(labels), levels, tuple(rows), int(scored.sum()), missing, notes)


def _summary(labels: Mapping[str, str], y: np.ndarray) -> GroupRow:
    from scipy.stats import t

    n, nan = len(y), float("nan")
    if n == 0:
        return GroupRow(labels, 0, nan, nan, nan, nan, nan)
    mean, sd = float(y.mean()), float(y.std(ddof=1)) if n > 1 else nan
    half = float(t.ppf(0.975, n - 1)) * sd / n**0.5 if n > 1 else nan
    return GroupRow(labels, n, mean, sd, float(np.median(y)), mean - half, mean + half)


# --- correlations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Correlation:
    """Correlation of a column with the score over the `n` rows that have both; NaN with a `reason` where undefined.

    `pearson` with its two-sided `pearson_p` and 95 % interval (Fisher's z); `spearman` likewise, its interval from
    Fisher's z with the variance (1 + ρ² / 2) / (n − 3) of Bonett & Wright 2000.
    """

    column: str
    n: int
    pearson: float
    pearson_p: float
    pearson_low: float
    pearson_high: float
    spearman: float
    spearman_p: float
    spearman_low: float
    spearman_high: float
    reason: str


@dataclass(frozen=True)
class Correlations(Result):
    """Correlations of columns with the score: `rows` in the order asked for; `missing` {column: rows without it}."""

    rows: tuple[Correlation, ...]
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def __getitem__(self, column: str) -> Correlation:
        return find_row(self.rows, "column", column)

    def __str__(self) -> str:
        rows = []
        for r in self.rows:
            pearson = [
                number_text(r.pearson, 3),
                range_text(r.pearson_low, r.pearson_high),
                number_text(r.pearson_p, 2),
            ]
            spearman = [
                number_text(r.spearman, 3),
                range_text(r.spearman_low, r.spearman_high),
                number_text(r.spearman_p, 2),
            ]
            rows.append([r.column, str(r.n), *pearson, *spearman, r.reason])
        head = ["column", "n", "Pearson", "95 %", "p", "Spearman", "95 %", "p", ""]
        return result_text(self, head, rows)


def correlations(table: TableLike, columns: Sequence[str], score: str = "score") -> Correlations:
    """Pearson and Spearman correlation of each column with the score (methods 3.5 f).

    Args:
        table: anything `read_table` reads.
        columns: numeric columns.
        score: the scored column.

    Raises:
        DataError: unknown or text columns, infinite values, no columns.
    """
    source = read_table(table)
    y, names = read_numbers(source, score), distinct_names(columns, score)
    if not names:
        raise DataError("no columns to correlate", expected="at least one numeric column")
    numbers = {name: read_numbers(source, name) for name in names}
    missing = {score: int(np.isnan(y).sum()), **{name: int(np.isnan(x).sum()) for name, x in numbers.items()}}
    return Correlations(tuple(_correlation(name, x, y) for name, x in numbers.items()), missing, ())


def _correlation(name: str, x: np.ndarray, y: np.ndarray) -> Correlation:
    from scipy.stats import pearsonr, spearmanr

    both = ~np.isnan(x) & ~np.isnan(y)
    x, y, n = x[both], y[both], int(both.sum())
    if n < 4:
        return Correlation(name, n, *_NO_CORRELATION, f"{n} rows; at least 4 are needed")
    for values, what in ((x, "the column"), (y, "the score")):
        if np.ptp(values) == 0:
            return Correlation(name, n, *_NO_CORRELATION, f"{what} is constant")
    r, p = (float(v) for v in pearsonr(x, y))
    rho, rho_p = (float(v) for v in spearmanr(x, y))
    pearson = (r, p, *_fisher_interval(r, 1 / (n - 3)))
    return Correlation(name, n, *pearson, rho, rho_p, *_fisher_interval(rho, (1 + rho**2 / 2) / (n - 3)), "")


def _fisher_interval(r: float, variance: float) -> tuple[float, float]:
    if abs(r) >= 1:
        return r, r
    z, half = np.arctanh(r), 1.959963984540054 * variance**0.5
    return float(np.tanh(z - half)), float(np.tanh(z + half))


# --- the highest and the lowest -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Extreme:
    """The k highest or lowest scores.

    `indices` are rows of the table, most extreme first; `score_mean`, `score_low`, `score_high` mean and range of the
    score, and `means` and `ranges` those of the other numeric columns ({column: number}, {column: (low, high)}).
    """

    name: str
    indices: np.ndarray
    score_mean: float
    score_low: float
    score_high: float
    means: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, eq=False)
class TopBottom(Result):
    """The k highest and the k lowest scores: `rows` = (`top`, `bottom`), out of `n` rows with a score."""

    k: int
    n: int
    rows: tuple[Extreme, ...]
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def top(self) -> Extreme:
        """The k highest."""
        return self.rows[0]

    @property
    def bottom(self) -> Extreme:
        """The k lowest."""
        return self.rows[1]

    def to_frame(self) -> Any:
        """A row for the top and one for the bottom, a column per mean."""
        columns: dict[str, list[Any]] = {"name": [e.name for e in self.rows]}
        for name in ("score_mean", "score_low", "score_high"):
            columns[name] = [getattr(e, name) for e in self.rows]
        return to_frame({**columns, **{c: [e.means[c] for e in self.rows] for c in self.top.means}})

    def __str__(self) -> str:
        rows = []
        for e in self.rows:
            score = f"{number_text(e.score_mean)} ({number_text(e.score_low)}–{number_text(e.score_high)})"
            others = (
                f"{number_text(e.means[c])} ({number_text(low)}–{number_text(high)})"
                for c, (low, high) in e.ranges.items()
            )
            rows.append([f"{e.name} {self.k}", score, *others])
        return result_text(self, ["", "score: mean (range)", *self.top.means], rows, f"Of {self.n} rows.")


def top_bottom(table: TableLike, k: int = 100, score: str = "score") -> TopBottom:
    """The k highest and lowest scores, and the mean of every numeric column among them (methods 3.3).

    Ties are broken by the order of the rows, and noted where one straddles the k-th place.

    Args:
        table: anything `read_table` reads.
        k: rows on either side.
        score: the scored column.

    Raises:
        DataError: fewer than 2 k rows with a score, k < 1, unknown column.
    """
    columns = read_table(table)
    y = read_numbers(columns, score)
    order, notes = extremes_of(y, k, score)
    numbers = {name: x.astype(float) for name, x in columns.items() if x.dtype.kind in "biuf" and name != score}
    rows = []
    for name, chosen in zip(SIDES, order, strict=True):
        means, ranges = {}, {}
        for column, x in numbers.items():
            values = x[chosen][~np.isnan(x[chosen])]
            means[column] = float(values.mean()) if len(values) else float("nan")
            ranges[column] = (float(values.min()), float(values.max())) if len(values) else (float("nan"),) * 2
        s = y[chosen]
        rows.append(Extreme(name, chosen, float(s.mean()), float(s.min()), float(s.max()), means, ranges))
    chosen = np.concatenate(order)
    missing = {score: int(np.isnan(y).sum()), **{c: int(np.isnan(x[chosen]).sum()) for c, x in numbers.items()}}
    return TopBottom(k, int((~np.isnan(y)).sum()), tuple(rows), missing, notes)


def extremes_of(y: np.ndarray, k: int, score: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """Rows of the k highest (highest first) and of the k lowest (lowest first)."""
    check_count("k", k, 1)
    rows = np.flatnonzero(~np.isnan(y))
    if 2 * k > len(rows):
        raise DataError(
            f"no {k} highest and {k} lowest of {len(rows)} scores",
            expected=f"1 ≤ k ≤ {len(rows) // 2}",
            got=k,
            fix="a smaller k",
        )
    low = rows[np.argsort(y[rows], kind="stable")]
    high = rows[np.argsort(-y[rows], kind="stable")]
    notes = tuple(
        f"a tie at the {side} {k}-th {score}: the first rows of the table were taken"
        for side, order in (("highest", high), ("lowest", low))
        if len(order) > k and y[order[k - 1]] == y[order[k]]
    )
    top = high[:k]
    bottom = low[~np.isin(low, top)][:k]  # a tie across the middle must not put one row on both sides
    return (top, bottom), notes
