"""Statistics of an audit: what a score goes with, on a table of scores, image covariates and labels.

After Grissom II et al. 2024 (arXiv 2402.09786). Every function takes a table (whatever `tables.read_table` reads) and
names of columns, and leaves the table alone. A label "" or "unknown" and a number NaN are missing: such rows are left
out of the statistic that needs them, counted in the result's `missing`, and shown when it is printed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np

from .errors import DataError
from .reports import markdown_table
from .tables import TableLike, read_table, to_frame

Prior = Literal["colour", "traits", "category"]
Interactions = Literal["all", "none"] | Sequence[Sequence[str]]
Term = tuple[str, ...]

INTERCEPT, SIGMA = "intercept", "sigma"
_UNKNOWN = ("", "unknown")
_MOST_LEVELS = 100  # a factor with more is a number or an identifier given by mistake
_SHARED_SCALE = ("masculinity", "femininity")  # methods of arXiv 2402.09786: these two traits share one scale
_RHAT = 1.01  # Vehtari et al. 2021
_NO_CORRELATION = (float("nan"),) * 8
_SIDES = ("top", "bottom")
_FEW_SAMPLES = 400  # ESS below which a 95 % interval's limits are themselves noisy (Vehtari et al. 2021)


# --- what every result has in common --------------------------------------------------------------------------------


class Result:
    """A result with `rows` (one dataclass each), `missing` and `notes`."""

    rows: tuple[Any, ...]
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything but posterior draws, as plain numbers, texts, lists and dicts."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.metadata.get("plain", True)}  # type: ignore[arg-type]

    def to_frame(self) -> Any:
        """`rows` as a pandas DataFrame.

        Raises:
            DataError: pandas is not installed.
        """
        records = [_plain(row) for row in self.rows]
        return to_frame({name: [record[name] for record in records] for name in records[0]})

    def _text(self, header: Sequence[str], rows: Sequence[Sequence[str]], *lines: str) -> str:
        out = [line for line in lines if line]
        left_out = ", ".join(f"{name} {count}" for name, count in self.missing.items() if count)
        if left_out:
            out.append(f"Rows without a value, left out: {left_out}.")
        out += [f"Note: {note}" for note in self.notes]
        return "\n\n".join([markdown_table(header, rows), *out])


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def _number(x: float, digits: int = 4) -> str:
    if np.isnan(x):
        return "–"
    return f"{x:.0f}" if np.isfinite(x) and abs(x) >= 10**digits else f"{x:.{digits}g}"


def _range(low: float, high: float) -> str:
    return "–" if np.isnan(low) or np.isnan(high) else f"[{_number(low)}, {_number(high)}]"


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
        return self._text([*self.by, "n", "mean", "SD", "median", "95 % of the mean"], rows)


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
    y, labels = _numeric(columns, score), {f: _labels(columns, f) for f in _distinct(by, score)}
    known = {f: ~_is_unknown(x) for f, x in labels.items()}
    scored = ~np.isnan(y)
    missing = {score: int((~scored).sum()), **{f: int((~known[f]).sum()) for f in labels}}
    levels = {f: _levels(labels[f][known[f] & scored], f) for f in labels}
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
        return _find(self.rows, "column", column)

    def __str__(self) -> str:
        rows = []
        for r in self.rows:
            pearson = [_number(r.pearson, 3), _range(r.pearson_low, r.pearson_high), _number(r.pearson_p, 2)]
            spearman = [_number(r.spearman, 3), _range(r.spearman_low, r.spearman_high), _number(r.spearman_p, 2)]
            rows.append([r.column, str(r.n), *pearson, *spearman, r.reason])
        head = ["column", "n", "Pearson", "95 %", "p", "Spearman", "95 %", "p", ""]
        return self._text(head, rows)


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
    y, names = _numeric(source, score), _distinct(columns, score)
    if not names:
        raise DataError("no columns to correlate", expected="at least one numeric column")
    numbers = {name: _numeric(source, name) for name in names}
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


# --- least squares --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coefficient:
    """One term of a regression: `estimate`, standard error `se`, `t` with its two-sided `p`, 95 % limits."""

    term: str
    estimate: float
    se: float
    t: float
    p: float
    low: float
    high: float


@dataclass(frozen=True)
class OLS(Result):
    """A least-squares fit of the score.

    Attributes:
        rows: coefficients: "intercept", numeric columns, "race[black]" for a level against its reference,
            "race[black]:hair[short]" for interactions.
        n, df_residual: rows, and rows minus coefficients.
        r2, r2_adjusted: share of the score's variance.
        sigma: SD of the residuals.
        errors: "classical" or "HC3" (robust to unequal variances; MacKinnon & White 1985).
        reference: {factor: level that the others are compared with}.
        vif: {numeric column or factor: variance inflation, of main effects}. For a factor GVIF^(1/df), on the same
            scale (Fox & Monette 1992). Above about 5 a coefficient cannot be told from the others'.
        condition_number: of the design with columns scaled to unit length (Belsley et al. 1980); above 30 is collinear.
        missing, notes: rows left out, caveats.
    """

    rows: tuple[Coefficient, ...]
    n: int
    df_residual: int
    r2: float
    r2_adjusted: float
    sigma: float
    errors: str
    reference: Mapping[str, str]
    vif: Mapping[str, float]
    condition_number: float
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def __getitem__(self, term: str) -> Coefficient:
        return _find(self.rows, "term", term)

    def __str__(self) -> str:
        rows = [
            [r.term, _number(r.estimate), _number(r.se, 3), _number(r.t, 3), _number(r.p, 2), _range(r.low, r.high)]
            for r in self.rows
        ]
        fit = f"n = {self.n}, residual df = {self.df_residual}, R² = {self.r2:.3f} (adjusted {self.r2_adjusted:.3f}), "
        fit += f"residual SD = {_number(self.sigma)}; {self.errors} standard errors."
        levels = ", ".join(f"{f} {level}" for f, level in self.reference.items())
        spread = ", ".join(f"{name} {_number(v, 3)}" for name, v in self.vif.items())
        return self._text(
            ["term", "estimate", "SE", "t", "p", "95 %"],
            rows,
            fit,
            f"Compared with: {levels}." if levels else "",
            f"Variance inflation: {spread}; condition number {_number(self.condition_number, 3)}." if spread else "",
        )


def ols(
    table: TableLike,
    numeric: Sequence[str] = (),
    factors: Sequence[str] = (),
    interactions: Interactions = "none",
    reference: Mapping[str, str] | None = None,
    score: str = "score",
    robust: bool = False,
) -> OLS:
    """Linear regression of the score on colours, traits and labels (methods 3.5 a, c, d).

    The published coefficients with luminance (Black −15.1, short +16.2, luminance 105.8) are those of
    `ols(men, ["luminance"], ["race", "hair"], "all")`: in a model with interactions a factor's coefficient is its
    effect *at the reference level of the other* (Black against White among long-haired men).

    Args:
        table: anything `read_table` reads.
        numeric: columns that enter as they are.
        factors: columns of labels, treatment-coded.
        interactions: "none", "all" (every crossing of `factors`), or a list such as [("race", "hair")].
        reference: {factor: level to compare with}; else "white" if there is such a level (the paper's choice), else
            the first level in alphabetical order, as R does. Case does not matter.
        score: the scored column.
        robust: standard errors HC3 instead of classical ones.

    Raises:
        DataError: unknown columns or levels, too few rows, columns that are combinations of others.
    """
    import_audit("statsmodels")
    from statsmodels.api import OLS as Fit

    data = _Data.read(table, score, numeric, factors)
    references = {f: _reference(data.levels(f), (reference or {}).get(f), f) for f in data.labels}
    _check_reference(reference, data.labels)
    terms = data.terms(interactions)
    names, X = data.design(terms, references)
    _check_design(names, X, data.y)
    fit = Fit(data.y, X).fit(cov_type="HC3" if robust else "nonrobust", use_t=True)
    limits = fit.conf_int(0.05)
    rows = tuple(
        Coefficient(name, *(float(v[j]) for v in (fit.params, fit.bse, fit.tvalues, fit.pvalues)), *limits[j].tolist())
        for j, name in enumerate(names)
    )
    vif, condition = data.inflation(references), _condition_number(X)
    notes = [f"{name}: variance inflation {v:.1f}, hardly told from the rest" for name, v in vif.items() if v > 5]
    if any(len(t) > 1 for t in terms):
        notes.append("with interactions, a factor's coefficient is its effect at the others' reference level")
    return OLS(
        rows,
        data.n,
        int(fit.df_resid),
        float(fit.rsquared),
        float(fit.rsquared_adj),
        float(np.sqrt(fit.mse_resid)),
        "HC3" if robust else "classical",
        references,
        vif,
        condition,
        data.missing,
        tuple(notes),
    )


# --- analysis of variance -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnovaTerm:
    """One term: `df`, sum of squares `ss`, `F` with its `p`, and partial η² = ss / (ss + residual ss)."""

    term: str
    df: int
    ss: float
    F: float
    p: float
    partial_eta2: float


@dataclass(frozen=True)
class Anova(Result):
    """An analysis of variance.

    Attributes:
        rows: terms in the order in which they entered.
        type: 1 (each term after those above it) or 2 (each after all that do not contain it).
        n, df_residual, ss_residual: rows, and what the full model leaves.
        r2: share of the score's variance that the full model explains.
        missing, notes: rows left out, caveats.
    """

    rows: tuple[AnovaTerm, ...]
    type: int
    n: int
    df_residual: int
    ss_residual: float
    r2: float
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def __getitem__(self, term: str) -> AnovaTerm:
        return _find(self.rows, "term", term)

    def __str__(self) -> str:
        rows = [
            [r.term, str(r.df), _number(r.ss, 5), _number(r.F), _number(r.p, 2), _number(r.partial_eta2, 3)]
            for r in self.rows
        ]
        rows.append(["residual", str(self.df_residual), _number(self.ss_residual, 5), "", "", ""])
        kind = "Type I: each term after those above it" if self.type == 1 else "Type II: each term after the others"
        return self._text(
            ["term", "df", "SS", "F", "p", "partial η²"], rows, f"{kind}. n = {self.n}, R² = {self.r2:.3f}."
        )


def anova(
    table: TableLike,
    factors: Sequence[str],
    covariates: Sequence[str] = (),
    interactions: Interactions = "all",
    type: Literal[1, 2] = 1,
    score: str = "score",
) -> Anova:
    """Analysis of variance of the score, with and without covariates such as luminance (methods 3.5 d, e).

    Sums of squares are differences between nested least-squares fits, over the full model's residual variance, as R's
    `anova` (Type I) and car's `Anova` (Type II). Order, which Type I depends on: factors as given, covariates,
    then interactions from the lowest order, as R arranges `score ~ race * hair + luminance`. So in Type I a factor is
    *not* adjusted for the covariates; in Type II it is.

    Args:
        table: anything `read_table` reads.
        factors: columns of labels.
        covariates: numeric columns.
        interactions: "all" (every crossing of `factors`), "none", or a list such as [("race", "luminance")].
        type: 1 or 2.
        score: the scored column.

    Raises:
        DataError: unknown columns, another type, too few rows, a constant score, nothing to test.
    """
    from scipy.stats import f as f_distribution

    if type not in (1, 2):
        raise DataError("unknown type of sums of squares", expected="1 or 2", got=type)
    data = _Data.read(table, score, covariates, factors)
    terms = data.terms(interactions, covariates_first=False)
    if not terms:
        raise DataError("nothing to test", expected="at least one factor or covariate")
    _check_varies(data.y, score)
    references = {f: data.levels(f)[0] for f in data.labels}
    blocks = {term: data.block(term, references)[1] for term in terms}

    def fit(used: Iterable[Term]) -> tuple[float, int]:
        return _least_squares(data.y, [blocks[t] for t in used])

    ss_residual, rank = fit(terms)
    df_residual = data.n - rank
    if df_residual < 1:
        raise DataError("too few rows", expected=f"more than the model's {rank} coefficients", got=data.n)
    rows, notes = [], []
    for i, term in enumerate(terms):
        before = terms[:i] if type == 1 else [t for t in terms if not set(term) <= set(t)]
        (ss_without, rank_without), (ss_with, rank_with) = fit(before), fit([*before, term])
        df, ss, name = rank_with - rank_without, max(0.0, ss_without - ss_with), ":".join(term)
        if df < blocks[term].shape[1]:
            notes.append(f"{name}: {df} of {blocks[term].shape[1]} df can be estimated (empty cells or collinear)")
        F = ss / df / (ss_residual / df_residual) if df and ss_residual > 0 else float("nan")
        p = float(f_distribution.sf(F, df, df_residual)) if df else float("nan")
        eta2 = ss / (ss + ss_residual) if df else float("nan")
        rows.append(AnovaTerm(name, df, ss if df else float("nan"), F, p, eta2))
    if type == 1 and len(terms) > 1:
        notes.append("Type I depends on the order of the terms where groups are unequal or covariates differ by group")
    r2 = 1 - ss_residual / float(((data.y - data.y.mean()) ** 2).sum())
    return Anova(tuple(rows), type, data.n, df_residual, ss_residual, r2, data.missing, tuple(notes))


def _least_squares(y: np.ndarray, blocks: Sequence[np.ndarray]) -> tuple[float, int]:
    """Residual sum of squares of y on an intercept and the blocks, and the rank of that design."""
    y = y - y.mean()
    if not blocks:
        return float(y @ y), 1
    X = np.hstack(blocks)
    X = X - X.mean(0)  # takes the intercept out, which keeps the ranks well conditioned
    scale = np.sqrt((X**2).sum(0))
    X = np.divide(X, scale, out=np.zeros_like(X), where=scale > 1e-12)
    u, s, _ = np.linalg.svd(X, full_matrices=False)
    u = u[:, s > 1e-8 * max(1.0, s.max(initial=0))]
    residual = y - u @ (u.T @ y)
    return float(residual @ residual), 1 + u.shape[1]


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
            score = f"{e.score_mean:.1f} ({e.score_low:.1f}–{e.score_high:.1f})"
            others = (f"{_number(e.means[c])} ({_number(low)}–{_number(high)})" for c, (low, high) in e.ranges.items())
            rows.append([f"{e.name} {self.k}", score, *others])
        return self._text(["", "score: mean (range)", *self.top.means], rows, f"Of {self.n} rows.")


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
    y = _numeric(columns, score)
    order, notes = _extremes(y, k, score)
    numbers = {name: x.astype(float) for name, x in columns.items() if x.dtype.kind in "biuf" and name != score}
    rows = []
    for name, chosen in zip(_SIDES, order, strict=True):
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


def _extremes(y: np.ndarray, k: int, score: str) -> tuple[tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """Rows of the k highest (highest first) and of the k lowest (lowest first)."""
    rows = np.flatnonzero(~np.isnan(y))
    if k < 1 or 2 * k > len(rows):
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


# --- labels of the highest against those of the lowest --------------------------------------------------------------


@dataclass(frozen=True)
class LevelOdds:
    """One level of the factor among the top and the bottom rows.

    Attributes:
        level, top, bottom: the level and its rows on either side; `share_top`, `share_bottom`: of the rows there.
        estimate: log odds of this level against the reference, top minus bottom; ±inf where the level or the
            reference is absent on one side. `se`, `z`, `p`: Wald; NaN where the estimate is infinite, since the Wald
            statistic is meaningless there.
        exact_p: two-sided Fisher test of this level against the reference; stands in separated levels too.
        reason: why Wald values are missing ("" where they are not).
    """

    level: str
    top: int
    bottom: int
    share_top: float
    share_bottom: float
    estimate: float
    se: float
    z: float
    p: float
    exact_p: float
    reason: str


@dataclass(frozen=True)
class MultinomialLogit(Result):
    """factor ~ top or bottom.

    Attributes:
        factor: the labels; reference: the level that the others are compared with.
        rows: every level, the reference first.
        n_top, n_bottom: labelled rows on either side.
        lr, lr_df, lr_p: likelihood-ratio test that the factor's shares are the same on both sides. It stands where
            levels are separated.
        missing, notes: rows left out, caveats.
    """

    factor: str
    reference: str
    rows: tuple[LevelOdds, ...]
    n_top: int
    n_bottom: int
    lr: float
    lr_df: int
    lr_p: float
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def __getitem__(self, level: str) -> LevelOdds:
        return _find(self.rows, "level", level)

    def __str__(self) -> str:
        rows = []
        for r in self.rows:
            shares = [f"{r.top} ({100 * r.share_top:.1f} %)", f"{r.bottom} ({100 * r.share_bottom:.1f} %)"]
            tests = [_number(r.estimate, 3), _number(r.se, 3), *(_number(x, 2) for x in (r.z, r.p, r.exact_p))]
            rows.append([r.level, *shares, *tests, r.reason])
        test = f"Likelihood ratio: χ²({self.lr_df}) = {_number(self.lr)}, p = {_number(self.lr_p, 2)}."
        head = [self.factor, "top", "bottom", f"log odds against {self.reference}", "SE", "Wald z", "p", "exact p", ""]
        return self._text(head, rows, test)


def multinomial_logit(
    table: TableLike,
    factor: str,
    k: int = 100,
    is_top: str | None = None,
    reference: str | None = None,
    score: str = "score",
) -> MultinomialLogit:
    """Multinomial logistic regression factor ~ top/bottom (methods 3.3: race ~ top/bottom, reference White).

    With this one binary predictor the model is saturated: a level's coefficient is its log odds ratio to the reference,
    and levels do not influence one another's. A level that is absent on one side (as Black in the published top 100)
    has an infinite estimate; software that stops iterating reports some large number with a huge standard error. Here
    such a level gets ±inf, no Wald test, and Fisher's exact test.

    Args:
        table: anything `read_table` reads.
        factor: column of labels.
        k: compare the k highest with the k lowest scores; not used if `is_top` is given.
        is_top: a column of booleans or 0/1 that says which rows are the top ones; `score` is not read then.
        reference: level to compare with; else "white" if there is such a level, else the most frequent.
        score: the scored column.

    Raises:
        DataError: unknown columns or level, fewer than 2 k rows, one side or all but one level empty.
    """
    columns = read_table(table)
    labels = _labels(columns, factor)
    notes: tuple[str, ...] = ()
    if is_top is None:
        (top, bottom), notes = _extremes(_numeric(columns, score), k, score)
        missing = {score: int(np.isnan(_numeric(columns, score)).sum())}
    else:
        side = _numeric(columns, is_top)
        if not np.isin(side[~np.isnan(side)], (0, 1)).all():
            raise DataError(f"column {is_top!r} does not say which rows are top", expected="booleans, or 0 and 1")
        top, bottom = np.flatnonzero(side == 1), np.flatnonzero(side == 0)
        missing = {is_top: int(np.isnan(side).sum())}
    unknown = _is_unknown(labels)
    missing[factor] = int(unknown[top].sum() + unknown[bottom].sum())
    top, bottom = top[~unknown[top]], bottom[~unknown[bottom]]
    if not len(top) or not len(bottom):
        raise DataError(
            "one side has no labelled rows", expected="both top and bottom", got=f"{len(top)}, {len(bottom)}"
        )
    levels = _levels(labels[np.concatenate([top, bottom])], factor)
    if len(levels) < 2:
        raise DataError(f"{factor!r} has one level", expected="at least two", got=", ".join(levels))
    counts = {level: (int((labels[top] == level).sum()), int((labels[bottom] == level).sum())) for level in levels}
    levels = tuple(sorted(levels, key=lambda level: -sum(counts[level])))  # the default is the most frequent
    chosen = _reference(levels, reference, factor)
    levels = (chosen, *sorted(level for level in levels if level != chosen))
    rows = _level_odds(counts, levels)
    notes += tuple(f"{r.level}: {r.reason}; read the exact p" for r in rows if np.isinf(r.estimate))
    if min(counts[chosen]) == 0:
        notes += (f"the reference {chosen!r} is absent on one side, so every estimate is infinite; choose another",)
    return MultinomialLogit(
        factor, chosen, rows, len(top), len(bottom), *_likelihood_ratio(counts), missing=missing, notes=notes
    )


def _level_odds(counts: Mapping[str, tuple[int, int]], levels: Sequence[str]) -> tuple[LevelOdds, ...]:
    """Rows of the result; `levels` starts with the reference."""
    from scipy.stats import fisher_exact

    reference, nan = levels[0], float("nan")
    total = np.array([counts[level] for level in levels]).sum(0)
    fitted = [level for level in levels if min(counts[level]) > 0]
    wald = _wald(counts, fitted) if len(fitted) > 1 and fitted[0] == reference else {}
    rows = []
    for level in levels:
        top, bottom = counts[level]
        exact, reason = float(fisher_exact([[top, bottom], list(counts[reference])]).pvalue), ""
        if level == reference:
            values, exact, reason = (0.0, nan, nan, nan), nan, "reference"
        elif level in wald:
            values = wald[level]
        else:
            infinite, reason = _separation(level, counts[level], reference, counts[reference])
            values = (infinite, nan, nan, nan)
        rows.append(LevelOdds(level, top, bottom, top / total[0], bottom / total[1], *values, exact, reason))
    return tuple(rows)


def _separation(level: str, own: tuple[int, int], name: str, other: tuple[int, int]) -> tuple[float, str]:
    """The limit of the log odds ratio where some count is 0, and why."""
    up = own[1] == 0 or other[0] == 0
    down = own[0] == 0 or other[1] == 0
    sides = [(who, side, count[i]) for who, count in ((level, own), (name, other)) for i, side in enumerate(_SIDES)]
    absent = [f"no {who} in the {side}" for who, side, count in sides if count == 0]
    reason = "separated: " + ", ".join(absent)
    return (float("nan") if up and down else float("inf") if up else -float("inf")), reason


def _wald(counts: Mapping[str, tuple[int, int]], levels: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """Estimate, SE, z, p of each level but the first, from statsmodels' maximum likelihood."""
    import_audit("statsmodels")
    from statsmodels.api import MNLogit

    cells = [(code, side, counts[level][i]) for code, level in enumerate(levels) for i, side in enumerate((1.0, 0.0))]
    codes = np.repeat([c for c, _, _ in cells], [n for *_, n in cells])
    X = np.column_stack([np.ones(len(codes)), np.repeat([s for _, s, _ in cells], [n for *_, n in cells])])
    fit = MNLogit(codes, X).fit(disp=0, method="newton", maxiter=100)
    values = np.array([np.asarray(v)[1] for v in (fit.params, fit.bse, fit.tvalues, fit.pvalues)])
    return {level: tuple(column.tolist()) for level, column in zip(levels[1:], values.T, strict=True)}


def _likelihood_ratio(counts: Mapping[str, tuple[int, int]]) -> tuple[float, int, float]:
    from scipy.stats import chi2_contingency

    test = chi2_contingency(np.array(list(counts.values())), correction=False, lambda_="log-likelihood")
    return float(test.statistic), int(test.dof), float(test.pvalue)


# --- Bayesian linear regression -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """Posterior of a coefficient: `mean`, `sd`, 95 % highest-density interval, split R̂, effective sample size."""

    term: str
    mean: float
    sd: float
    low: float
    high: float
    rhat: float
    ess: float


@dataclass(frozen=True, eq=False)
class BayesLinreg(Result):
    """A Bayesian linear regression.

    Attributes:
        rows: posterior of "intercept", each coefficient, and "sigma" (SD of the residuals).
        prior: which of the published sets; priors: what it says, a line each, and how its gaps were filled.
        n, chains, draws: rows of the table; chains and draws kept of each.
        worst_rhat, least_ess: over the coefficients, sigma and the prior's own parameters (these on a log scale).
        divergences: divergent transitions of NUTS.
        samples: {term: draws [chains, draws]}.
        missing, notes: rows left out, caveats; a sampler that did not converge is noted here (and warned of).
    """

    rows: tuple[Posterior, ...]
    prior: str
    priors: tuple[str, ...]
    n: int
    chains: int
    draws: int
    worst_rhat: float
    least_ess: float
    divergences: int
    missing: Mapping[str, int]
    notes: tuple[str, ...]
    samples: Mapping[str, np.ndarray] = field(repr=False, metadata={"plain": False})

    @property
    def converged(self) -> bool:
        """R̂ ≤ 1.01 everywhere and no divergence."""
        return self.worst_rhat <= _RHAT and self.divergences == 0

    def __getitem__(self, term: str) -> Posterior:
        return _find(self.rows, "term", term)

    def __str__(self) -> str:
        rows = [
            [r.term, _number(r.mean, 3), _number(r.sd, 3), _range(r.low, r.high), f"{r.rhat:.3f}", f"{r.ess:.0f}"]
            for r in self.rows
        ]
        run = f"n = {self.n}; {self.chains} chains × {self.draws} draws; R̂ ≤ {self.worst_rhat:.3f}, "
        run += f"ESS ≥ {self.least_ess:.0f}, {self.divergences} divergences."
        head = ["term", "mean", "SD", "95 % HDI", "R̂", "ESS"]
        return self._text(head, rows, run, "Priors: " + "; ".join(self.priors) + ".")


def bayes_linreg(
    table: TableLike,
    numeric: Sequence[str] = (),
    factors: Sequence[str] = (),
    prior: Prior = "colour",
    score: str = "score",
    chains: int = 4,
    draws: int = 1000,
    warmup: int = 1000,
    seed: int = 0,
    reference: Mapping[str, str] | None = None,
    shared_scale: Sequence[Sequence[str]] | None = None,
) -> BayesLinreg:
    """Bayesian linear regression of the score with one of the published sets of priors (methods 3.5 a–c).

    - "colour": σ, σ_c, σ₀ ~ Half-t(10, scale 1); β_c ~ N(0, σ_c); β₀ ~ N(ȳ, σ₀).
    - "traits": β_c ~ Student-t(ν, μ_c, σ_c); ν ~ Half-Cauchy(2); μ_c ~ N(0, σ_c); σ_c ~ Half-t(10, 1); columns
      masculinity and femininity share one σ_c; σ ~ Half-Normal(SD of the score), which the code uses in the end (the
      slides: Half-Cauchy(10)). β₀'s prior was not found: that of "colour".
    - "category": every level of every factor has a coefficient beside the intercept, β_l ~ Student-t(ν, 0, SD of the
      scores in that group); ν ~ Half-Normal(10). Not found: σ ~ Half-Normal(SD of the score), β₀ ~ N(ȳ, SD of the
      score). Only the priors tell the levels from the intercept: compare levels with one another.

    Indices are read as written: a scale σ_c for each coefficient, one ν for all. Columns enter as they are (no
    standardising), so the priors mean what they say per unit of the column: σ_c ~ Half-t(10, 1) suits colours on
    0–255 and ratings on 1–7, and shrinks the coefficient of a luminance on 0–1 (about 100) towards 0.

    All three are normal given their scales, so the coefficients are integrated out in closed form; NUTS (numpyro, on
    the CPU, 64 bit) samples σ, the scales and ν, and each draw of these gives one exact draw of the coefficients.
    This samples the published posterior itself, without the funnels that slow its usual parametrisation.

    Args:
        table: anything `read_table` reads.
        numeric: columns that enter as they are ("colour", "traits").
        factors: columns of labels: treatment-coded, or for "category" all levels.
        prior: "colour", "traits" or "category".
        score: the scored column.
        chains, draws, warmup: chains, draws kept and thrown away of each (the paper: 10 chains × 50,000 draws).
        seed: the same seed gives the same draws.
        reference: {factor: level to compare with}, as in `ols`; not for "category".
        shared_scale: "traits" only: groups of columns that share a σ_c; by default masculinity with femininity.

    Raises:
        DataError: numpyro is not installed, unknown columns or prior, collinear columns ("colour", "traits"),
            numeric columns under "category", fewer than 4 draws.

    Warns:
        RuntimeWarning: R̂ above 1.01, or divergences; also noted in the result.
    """
    if prior not in get_args(Prior):
        raise DataError("unknown prior", expected=", ".join(get_args(Prior)), got=prior)
    for name, value, least in (("chains", chains, 1), ("draws", draws, 4), ("warmup", warmup, 1)):
        if value < least:
            raise DataError(f"too few {name}", expected=f"at least {least}", got=value)
    data = _Data.read(table, score, numeric, factors)
    _check_varies(data.y, score)
    model = _published_model(prior, data, reference, shared_scale)
    sampled, spread, divergences = _nuts(model, data.y, chains, draws, warmup, seed)
    beta = _draw_coefficients(model.X, data.y, sampled[SIGMA], spread, seed)
    samples = {name: beta[..., j] for j, name in enumerate(model.names)} | {SIGMA: sampled[SIGMA][..., 0]}
    rows = tuple(_posterior(name, x) for name, x in samples.items())
    quality = [(r.rhat, r.ess) for r in rows]
    quality += [_mixing(np.log(x[..., j])) for x in sampled.values() for j in range(x.shape[-1])]
    worst_rhat, least_ess = max(r for r, _ in quality), min(e for _, e in quality)
    notes = []
    if not worst_rhat <= _RHAT or divergences:
        what = f"the sampler has not converged: R̂ up to {worst_rhat:.3f}, {divergences} divergences"
        notes.append(f"{what}; more warmup and draws may help")
        warnings.warn(notes[0], RuntimeWarning, stacklevel=2)
    if least_ess < _FEW_SAMPLES:
        notes.append(f"only {least_ess:.0f} effective draws: the limits of the intervals are rough")
    kept = (len(data.y), chains, draws, worst_rhat, least_ess, divergences)
    return BayesLinreg(rows, prior, model.priors, *kept, data.missing, tuple(notes), samples)


@dataclass(frozen=True)
class _Model:
    """A linear model whose coefficients are normal given positive parameters: σ, scales, degrees of freedom.

    `sizes` {parameter: how many}; `known`: what the prior takes from the data. `_log_prior` gives their density and
    each coefficient's prior SD. The coefficients' prior means are 0, and ȳ for the intercept, which comes first.
    """

    kind: str
    names: list[str]
    X: np.ndarray
    priors: tuple[str, ...]
    sizes: Mapping[str, int]
    known: Mapping[str, Any]


def _published_model(
    prior: str, data: _Data, reference: Mapping[str, str] | None, shared_scale: Sequence[Sequence[str]] | None
) -> _Model:
    if prior != "traits" and shared_scale is not None:
        raise DataError("only the prior 'traits' shares scales", got=f"shared_scale with {prior!r}")
    if prior == "category":
        return _category_model(data, reference)
    _check_reference(reference, data.labels)
    references = {f: _reference(data.levels(f), (reference or {}).get(f), f) for f in data.labels}
    names, X = data.design(data.terms("none"), references)
    if len(names) == 1:
        raise DataError("nothing to regress on", expected="at least one numeric column or factor")
    _check_design(names, X, data.y)
    return _colour_model(names, X) if prior == "colour" else _traits_model(names, X, data.y, shared_scale)


def _colour_model(names: list[str], X: np.ndarray) -> _Model:
    lines = ("σ, σ_c, σ₀ ~ Half-t(10, scale 1)", "β_c ~ N(0, σ_c), a σ_c for each", "β₀ ~ N(mean score, σ₀)")
    return _Model("colour", names, X, lines, {SIGMA: 1, "scale": len(names)}, {})


def _traits_model(
    names: list[str], X: np.ndarray, y: np.ndarray, shared_scale: Sequence[Sequence[str]] | None
) -> _Model:
    slopes = names[1:]
    if shared_scale is None:
        pair = [name for name in slopes if name.lower() in _SHARED_SCALE]
        shared_scale = [pair] if len(pair) == 2 else []
    shared = [name for group in shared_scale for name in group]
    if set(shared) - set(slopes) or len(set(shared)) < len(shared):
        raise DataError("shared_scale does not fit", expected=f"groups of {', '.join(slopes)}", got=shared_scale)
    groups = [*map(tuple, shared_scale), *((name,) for name in slopes if name not in shared)]
    index = np.array([next(g for g, group in enumerate(groups) if name in group) for name in slopes])
    sd = float(y.std(ddof=1))
    together = "; ".join(f"{' and '.join(g)} share σ_c" for g in groups if len(g) > 1)
    lines: tuple[str, ...] = ("β_c ~ Student-t(ν, μ_c, σ_c), one ν for all", "ν ~ Half-Cauchy(2)", "μ_c ~ N(0, σ_c)")
    lines += ("σ_c, σ₀ ~ Half-t(10, scale 1)", *filter(None, [together]), f"σ ~ Half-Normal({sd:.4g})")
    sizes = {SIGMA: 1, "intercept_scale": 1, "scale": len(groups), "nu": 1, "stretched_w": len(slopes)}
    lines += ("β₀ ~ N(mean score, σ₀), not found in the paper",)
    return _Model("traits", names, X, lines, sizes, {"sd": sd, "index": index})


def _category_model(data: _Data, reference: Mapping[str, str] | None) -> _Model:
    if data.numbers or not data.labels or reference:
        raise DataError(
            "the prior 'category' is for factors alone, all levels of each",
            expected="factors, no numeric columns, no reference",
            got=f"numeric {list(data.numbers)}, factors {list(data.labels)}, reference {dict(reference or {})}",
        )
    names, X = data.design(data.terms("none"), {})
    groups = [data.y[column == 1] for column in X[:, 1:].T]
    small = [name for name, group in zip(names[1:], groups, strict=True) if len(group) < 2 or np.ptp(group) == 0]
    if small:
        raise DataError("a group has no SD", expected="two different scores in each", got=", ".join(small))
    sd, sds = float(data.y.std(ddof=1)), np.array([group.std(ddof=1) for group in groups])
    lines: tuple[str, ...] = ("β_l ~ Student-t(ν, 0, SD of the group's scores), one ν for all", "ν ~ Half-Normal(10)")
    lines += (f"σ ~ Half-Normal({sd:.4g}) and β₀ ~ N(mean score, {sd:.4g}), not found in the paper",)
    return _Model("category", names, X, lines, {SIGMA: 1, "nu": 1, "stretched_w": len(sds)}, {"sd": sd, "sds": sds})


def _log_prior(kind: str, at: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[Any, Any]:
    """Log density of a model's parameters, and the prior SD of each coefficient given them [p]; traced by jax."""
    dist, jnp = import_audit("numpyro.distributions"), import_audit("jax.numpy")
    half_t = dist.FoldedDistribution(dist.StudentT(10.0, 0.0, 1.0))
    if kind == "colour":
        return half_t.log_prob(at[SIGMA]).sum() + half_t.log_prob(at["scale"]).sum(), at["scale"]
    log_p = dist.HalfNormal(known["sd"]).log_prob(at[SIGMA]).sum()
    # A Student-t of scale s is a normal of variance s²/w, w ~ Gamma(ν/2, ν/2). The larger ν, the nearer w to 1: log w
    # is sampled times √(1 + ν/2), which is as wide for any ν, so that NUTS meets no funnel.
    stretch = jnp.sqrt(1 + at["nu"] / 2)
    log_w = jnp.log(at["stretched_w"]) / stretch
    w = jnp.exp(log_w)
    log_p += (dist.Gamma(at["nu"] / 2, at["nu"] / 2).log_prob(w) + log_w - log_w * stretch - jnp.log(stretch)).sum()
    if kind == "category":
        log_p += dist.HalfNormal(10.0).log_prob(at["nu"]).sum()
        return log_p, jnp.concatenate([known["sd"][None], known["sds"] / jnp.sqrt(w)])
    log_p += dist.HalfCauchy(2.0).log_prob(at["nu"]).sum()
    log_p += half_t.log_prob(at["intercept_scale"]).sum() + half_t.log_prob(at["scale"]).sum()
    spread = at["scale"][known["index"]] * jnp.sqrt(1 / w + 1)  # + 1: μ_c ~ N(0, σ_c)
    return log_p, jnp.concatenate([at["intercept_scale"], spread])


def _nuts(
    model: _Model, y: np.ndarray, chains: int, draws: int, warmup: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """Draws of the positive parameters [chains, draws, size], of the coefficients' prior SDs, and divergences."""
    jax = import_audit("jax")
    r = y - y.mean()
    known: dict[str, Any] = {
        "XX": model.X.T @ model.X,
        "Xr": model.X.T @ r,
        "rr": r @ r,
        "n": float(len(y)),
        **model.known,
    }
    starts = np.random.default_rng(seed).uniform(-2, 2, (chains, sum(model.sizes.values())))
    # Older jax has enable_x64 among its experiments. Neither context changes a setting outside this block.
    x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else import_audit("jax.experimental").enable_x64
    with x64(True), jax.default_device(jax.devices("cpu")[0]):
        chain, keys = _chain(model.kind, tuple(model.sizes.items()), warmup, draws), jax.random.PRNGKey(seed)
        runs = [chain(key, start, known) for key, start in zip(jax.random.split(keys, chains), starts, strict=True)]
    sampled = {name: np.stack([np.asarray(at[name]) for at, *_ in runs]) for name in model.sizes}
    return sampled, np.stack([np.asarray(s) for _, s, _ in runs]), int(sum(d.sum() for *_, d in runs))


@cache  # compiling takes seconds, sampling a fraction of one
def _chain(kind: str, sizes: tuple[tuple[str, int], ...], warmup: int, draws: int) -> Callable[..., Any]:
    """Compiled: (key, start, known) to draws of the parameters, of the coefficients' prior SDs, and divergences."""
    jax, jnp, infer = import_audit("jax"), import_audit("jax.numpy"), import_audit("numpyro.infer")
    solve_triangular = import_audit("jax.scipy.linalg").solve_triangular
    ends = np.cumsum([0, *(size for _, size in sizes)])

    def parameters(u: Any) -> dict[str, Any]:
        return {name: jnp.exp(u[end - size : end]) for (name, size), end in zip(sizes, ends[1:], strict=True)}

    def chain(key: Any, start: Any, known: Mapping[str, Any]) -> Any:
        def potential(u: Any) -> Any:
            """−log prior − log p(y | parameters), the coefficients integrated out; u: logs of the parameters."""
            at = parameters(u)
            log_prior, spread = _log_prior(kind, at, known)
            sigma = at[SIGMA][0]
            L = jnp.linalg.cholesky(jnp.eye(len(spread)) + spread[:, None] * known["XX"] * spread / sigma**2)
            h = solve_triangular(L, spread * known["Xr"] / sigma**2, lower=True)
            log_p = h @ h / 2 - known["rr"] / (2 * sigma**2) - known["n"] * jnp.log(sigma)
            return jnp.log(jnp.diagonal(L)).sum() - log_p - log_prior - u.sum()

        kernel = infer.NUTS(potential_fn=potential, target_accept_prob=0.95, dense_mass=True)

        def step(state: Any, _: None) -> Any:
            state = kernel.sample(state, (), {})
            at = parameters(state.z)
            return state, (at, _log_prior(kind, at, known)[1], state.diverging)

        draw = jax.lax.scan(step, kernel.init(key, warmup, start, (), {}), None, length=warmup + draws)[1]
        return jax.tree.map(lambda x: x[warmup:], draw)

    return jax.jit(chain)


def _draw_coefficients(X: np.ndarray, y: np.ndarray, sigma: np.ndarray, spread: np.ndarray, seed: int) -> np.ndarray:
    """One exact draw of the coefficients [chains, draws, p] for each draw of σ and of their prior SDs."""
    rng = np.random.default_rng(seed)
    XX, Xr = X.T @ X, X.T @ (y - y.mean())
    beta = np.empty_like(spread)
    for chain, (s, S) in enumerate(zip(sigma, spread, strict=True)):  # a chain at a time, to save memory
        M = np.eye(len(Xr)) + S[:, :, None] * XX * S[:, None, :] / (s**2)[..., None]
        L, noise = np.linalg.cholesky(M), rng.standard_normal(S.shape)
        h = np.linalg.solve(L, (S * Xr / s**2)[..., None]) + noise[..., None]
        beta[chain] = S * np.linalg.solve(L.transpose(0, 2, 1), h)[..., 0]
    beta[..., 0] += y.mean()
    return beta


def _posterior(term: str, x: np.ndarray) -> Posterior:
    """Summary of draws [chains, draws]."""
    import_audit("numpyro")
    from numpyro.diagnostics import hpdi

    low, high = (float(v) for v in hpdi(x.reshape(-1), prob=0.95))
    return Posterior(term, float(x.mean()), float(x.std(ddof=1)), low, high, *_mixing(x))


def _mixing(x: np.ndarray) -> tuple[float, float]:
    """Split R̂ and effective sample size of draws [chains, draws]."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    return float(split_gelman_rubin(x)), float(effective_sample_size(x))


# --- decision trees -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """Share of the tree's gain in fit that is due to splits on a feature (impurity importance, sums to 1)."""

    feature: str
    importance: float


@dataclass(frozen=True)
class TreeReport(Result):
    """A regression tree of the score.

    Attributes:
        rows: importances, largest first.
        fold_r2: R² on each left-out fold; r2, r2_sd: their mean and SD; r2_train: on the rows it was fitted to.
        splits: the tree fitted to all rows, as text.
        depth, leaves: its size.
        folds: how the folds were made.
        n: rows.
        missing, notes: rows left out, caveats.
    """

    rows: tuple[Importance, ...]
    fold_r2: tuple[float, ...]
    r2: float
    r2_sd: float
    r2_train: float
    splits: str
    depth: int
    leaves: int
    folds: str
    n: int
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def __getitem__(self, feature: str) -> Importance:
        return _find(self.rows, "feature", feature)

    def __str__(self) -> str:
        rows = [[r.feature, f"{r.importance:.3f}"] for r in self.rows]
        cv = f"R² on left-out folds: {self.r2:.3f} (SD {self.r2_sd:.3f}; {', '.join(f'{x:.2f}' for x in self.fold_r2)})"
        cv += f"; on its own rows {self.r2_train:.3f}. n = {self.n}, depth {self.depth}, {self.leaves} leaves. "
        return self._text(["feature", "importance"], rows, f"{cv}Folds: {self.folds}.", f"```\n{self.splits}```")


def tree_report(
    table: TableLike,
    features: Sequence[str],
    score: str = "score",
    max_depth: int = 4,
    folds: int = 5,
    stratify: str | Sequence[str] | None = None,
    shuffle: bool = True,
    seed: int = 0,
) -> TreeReport:
    """Regression tree of the score with cross-validated R² (methods 3.5 g).

    The published code leaves its five folds unshuffled on rows sorted by race, so each tree is tested on groups it
    hardly saw (mean R² −.15 for traits alone); `shuffle=False` does that. The default shuffles, and gives every fold
    the same share of each stratum.

    Args:
        table: anything `read_table` reads.
        features: numeric columns, and columns of labels (a 0/1 feature per level).
        score: the scored column.
        max_depth: 4, as in the published code (its slides say 5).
        folds: number of folds.
        stratify: column or columns of labels whose crossing every fold has alike; None: ten quantiles of the score.
        shuffle: False: folds of consecutive rows, in the order of the table.
        seed: of the folds, and of ties between splits.

    Raises:
        DataError: unknown columns, too few rows, a constant score, strata with unshuffled folds.
    """
    if folds < 2 or max_depth < 1:
        raise DataError("no such tree", expected="folds ≥ 2, max_depth ≥ 1", got=f"{folds}, {max_depth}")
    if not shuffle and stratify is not None:
        raise DataError("unshuffled folds are not stratified", fix="shuffle=True, or no stratify")
    from sklearn.metrics import r2_score
    from sklearn.tree import DecisionTreeRegressor, export_text

    columns = read_table(table)
    features = _distinct(features, score)
    texts = [name for name in features if _column(columns, name).dtype.kind not in "biuf"]
    data = _Data.read(columns, score, [name for name in features if name not in texts], texts)
    _check_varies(data.y, score)
    if not features or data.n < 2 * folds:
        raise DataError("too little for a tree", expected=f"a feature, {2 * folds} rows", got=f"{features}, {data.n}")
    names, X = data.design([(name,) for name in features], {})
    names, X = names[1:], X[:, 1:]

    def grow(rows: np.ndarray) -> Any:
        return DecisionTreeRegressor(max_depth=max_depth, random_state=seed).fit(X[rows], data.y[rows])

    splits, how, notes = _folds(columns, data, folds, stratify, shuffle, seed)
    fold_r2 = tuple(float(r2_score(data.y[test], grow(train).predict(X[test]))) for train, test in splits)
    tree = grow(np.arange(data.n))
    order = np.argsort(-tree.feature_importances_, kind="stable")
    rows = tuple(Importance(names[j], float(tree.feature_importances_[j])) for j in order)
    r2 = (float(np.mean(fold_r2)), float(np.std(fold_r2, ddof=1)), float(r2_score(data.y, tree.predict(X))))
    text = export_text(tree, feature_names=names, decimals=2)
    size = (int(tree.get_depth()), int(tree.get_n_leaves()))
    return TreeReport(rows, fold_r2, *r2, text, *size, how, data.n, data.missing, notes)


def _folds(
    columns: Mapping[str, np.ndarray],
    data: _Data,
    folds: int,
    stratify: str | Sequence[str] | None,
    shuffle: bool,
    seed: int,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str, tuple[str, ...]]:
    """(train, test) rows of `data`, how they were made, caveats."""
    from sklearn.model_selection import KFold, StratifiedKFold

    if not shuffle:
        note = "folds of consecutive rows: on a table sorted by group their R² says little"
        return list(KFold(folds).split(data.y)), f"{folds} of consecutive rows, unshuffled", (note,)
    if stratify is None:
        bins = min(10, data.n // folds)
        strata = np.searchsorted(np.quantile(data.y, np.arange(1, bins) / bins), data.y)
        how = f"{bins} quantiles of the score"
    else:
        names = _distinct([stratify] if isinstance(stratify, str) else stratify)
        labels = [_labels(columns, name)[data.rows] for name in names]
        strata = np.unique(np.stack(labels, 1), axis=0, return_inverse=True)[1].reshape(-1)
        how = " × ".join(names)
    counts = np.bincount(strata)
    if counts.max() < folds:
        raise DataError("every stratum is smaller than the number of folds", expected=f"≥ {folds}", got=counts.max())
    notes: tuple[str, ...] = ()
    small = int((counts[counts > 0] < folds).sum())
    if small:
        notes = (f"{small} strata have fewer rows than there are folds, so not every fold has them",)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # said in the notes
        splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(data.y, strata))
    return splits, f"{folds}, shuffled (seed {seed}), stratified by {how}", notes


# --- reading columns ------------------------------------------------------------------------------------------------


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


def _find(rows: Iterable[Any], key: str, value: str) -> Any:
    rows = tuple(rows)
    for row in rows:
        if getattr(row, key) == value:
            return row
    raise DataError(f"no such {key}", expected=", ".join(getattr(r, key) for r in rows), got=value)


def _column(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in table:
        raise DataError(f"no column {name!r}", expected=f"one of {', '.join(table)}", got=name)
    return table[name]


def _numeric(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column as float64, NaN where missing."""
    column = _column(table, name)
    if column.dtype.kind not in "biuf":
        example = next((str(x) for x in column if x), "")
        raise DataError(f"column {name!r} is text", expected="numbers", got=example, fix="give it as a factor")
    column = column.astype(np.float64)
    if np.isinf(column).any():
        raise DataError(f"column {name!r} has infinite values", expected="finite numbers, NaN where missing")
    return column


def _labels(table: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column as text: whole numbers without their ".0", "" where missing."""
    column = _column(table, name)
    if column.dtype.kind == "f":
        texts = ["" if np.isnan(x) else f"{x:.0f}" if x == np.floor(x) else repr(float(x)) for x in column]
        return np.array(texts, dtype=str)
    return column.astype(str)


def _is_unknown(labels: np.ndarray) -> np.ndarray:
    return np.isin(np.char.lower(np.char.strip(labels)), _UNKNOWN)


def _levels(labels: np.ndarray, factor: str) -> tuple[str, ...]:
    """Levels in alphabetical order; numbers by size."""
    levels = [str(level) for level in np.unique(labels)]
    if len(levels) > _MOST_LEVELS:
        raise DataError(
            f"{factor!r} has {len(levels)} levels",
            expected=f"labels, at most {_MOST_LEVELS} different ones",
            got=", ".join(levels[:5]) + ", …",
            fix="give it as a number, or bin it",
        )
    if all(level.lstrip("-").isdigit() for level in levels):
        levels.sort(key=int)
    return tuple(levels)


def _distinct(names: Sequence[str], *others: str) -> tuple[str, ...]:
    if isinstance(names, str):
        raise DataError("column names come in a sequence", expected=f"[{names!r}]", got=repr(names))
    names = tuple(names)
    repeated = sorted({n for n in (*names, *others) if (*names, *others).count(n) > 1})
    if repeated:
        raise DataError("a column is used twice", expected="each column once", got=", ".join(repeated))
    return names


def _reference(levels: Sequence[str], wanted: str | None, factor: str) -> str:
    """The level asked for, else "white", else the first; case does not matter."""
    for level in levels:
        if level == wanted:
            return level
    alike = [level for level in levels if level.lower() == str(wanted if wanted is not None else "white").lower()]
    if wanted is not None and len(alike) != 1:
        raise DataError(f"{factor!r} has no level {wanted!r}", expected=f"one of {', '.join(levels)}", got=wanted)
    return alike[0] if alike else levels[0]


@dataclass(frozen=True)
class _Data:
    """The complete rows of the columns that a model uses."""

    y: np.ndarray
    numbers: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    missing: Mapping[str, int]
    rows: np.ndarray  # of the table, that these are

    @classmethod
    def read(cls, table: TableLike, score: str, numeric: Sequence[str], factors: Sequence[str]) -> _Data:
        columns = read_table(table)
        numeric, factors = _distinct(numeric), _distinct(factors)
        _distinct((*numeric, *factors), score)
        y, numbers = _numeric(columns, score), {name: _numeric(columns, name) for name in numeric}
        labels = {f: _labels(columns, f) for f in factors}
        absent = {score: np.isnan(y), **{c: np.isnan(x) for c, x in numbers.items()}}
        absent.update({f: _is_unknown(x) for f, x in labels.items()})
        keep = ~np.any(list(absent.values()), axis=0)
        missing = {name: int(mask.sum()) for name, mask in absent.items()}
        if not keep.any():
            raise DataError("no row has all the columns", expected=", ".join(absent), got=f"missing: {missing}")
        data = cls(
            y[keep],
            {c: x[keep] for c, x in numbers.items()},
            {f: x[keep] for f, x in labels.items()},
            missing,
            np.flatnonzero(keep),
        )
        for f in factors:
            if len(data.levels(f)) < 2:
                raise DataError(f"factor {f!r} has one level", expected="at least two", got=", ".join(data.levels(f)))
        return data

    @property
    def n(self) -> int:
        return len(self.y)

    def levels(self, factor: str) -> tuple[str, ...]:
        return _levels(self.labels[factor], factor)

    def terms(self, interactions: Interactions, covariates_first: bool = True) -> list[Term]:
        """Main effects, then interactions from the lowest order, each after those it contains."""
        numbers, factors = [(c,) for c in self.numbers], [(f,) for f in self.labels]
        mains = numbers + factors if covariates_first else factors + numbers
        if isinstance(interactions, str):
            if interactions not in ("all", "none"):
                raise DataError("unknown interactions", expected='"all", "none" or a list of tuples', got=interactions)
            orders = range(2, len(factors) + 1) if interactions == "all" else ()
            return mains + [t for order in orders for t in combinations(self.labels, order)]
        crossed: list[Term] = sorted(((t,) if isinstance(t, str) else tuple(t) for t in interactions), key=len)
        for term in crossed:
            if len(set(term)) < 2 or not all((name,) in mains for name in term):
                names = ", ".join(name for (name,) in mains)
                raise DataError("not an interaction", expected=f"two or more of {names}", got=term)
            inside = [set(t) for order in range(2, len(term)) for t in combinations(term, order)]
            if not all(any(part == set(t) for t in crossed) for part in inside):
                raise DataError("an interaction without those it contains", expected="all lower orders too", got=term)
        if len({frozenset(t) for t in crossed}) < len(crossed):
            raise DataError("an interaction is given twice", got=crossed)
        return mains + crossed

    def block(self, term: Term, references: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
        """Names and columns [n, …] of a term: products of its columns, a column per level but the reference's."""
        names, X = [""], np.ones((self.n, 1))
        for name in term:
            if name in self.numbers:
                parts, columns = [name], self.numbers[name][:, None]
            else:
                levels = [level for level in self.levels(name) if level != references.get(name)]
                parts = [f"{name}[{level}]" for level in levels]
                columns = (self.labels[name][:, None] == np.array(levels)).astype(float)
            names = [f"{a}:{b}".lstrip(":") for a in names for b in parts]
            X = (X[:, :, None] * columns[:, None, :]).reshape(self.n, -1)
        return names, X

    def design(self, terms: Sequence[Term], references: Mapping[str, str]) -> tuple[list[str], np.ndarray]:
        """Names and columns [n, p] of the intercept and all terms."""
        blocks = [self.block(term, references) for term in terms]
        return [INTERCEPT, *(x for names, _ in blocks for x in names)], np.hstack(
            [np.ones((self.n, 1)), *(X for _, X in blocks)]
        )

    def inflation(self, references: Mapping[str, str]) -> dict[str, float]:
        """GVIF^(1/df) of the main effects: det R_own · det R_others / det R (Fox & Monette 1992, eq. 10)."""
        blocks = {name: self.block((name,), references)[1] for name in (*self.numbers, *self.labels)}
        if len(blocks) < 2:
            return {}

        def log_det(names: Iterable[str]) -> float:
            X = np.hstack([blocks[name] for name in names])
            return float(np.linalg.slogdet(np.atleast_2d(np.corrcoef(X, rowvar=False)))[1])

        everything = log_det(blocks)
        return {
            name: float(np.exp((log_det([name]) + log_det([o for o in blocks if o != name]) - everything) / X.shape[1]))
            for name, X in blocks.items()
        }


def _check_reference(reference: Mapping[str, str] | None, factors: Iterable[str]) -> None:
    unknown = set(reference or {}) - set(factors)
    if unknown:
        raise DataError("a reference for something that is not a factor", expected=list(factors), got=sorted(unknown))


def _check_varies(y: np.ndarray, score: str) -> None:
    if np.ptp(y) == 0:
        raise DataError(f"{score!r} is the same in all {len(y)} rows", expected="scores that vary", got=y[0])


def _check_design(names: Sequence[str], X: np.ndarray, y: np.ndarray) -> None:
    """More rows than columns, a score that varies, and no column that the others determine."""
    if len(y) <= len(names):
        raise DataError("too few rows", expected=f"more than the model's {len(names)} coefficients", got=len(y))
    _check_varies(y, "the score")
    lengths = np.sqrt((X**2).sum(0))
    Q, determined = np.zeros((len(y), 0)), []
    for name, column, length in zip(names, X.T, lengths, strict=True):
        unit = column / length if length > 0 else column
        rest = unit - Q @ (Q.T @ unit)
        rest = rest - Q @ (Q.T @ rest)
        if np.linalg.norm(rest) < 1e-7:
            determined.append(name)
        else:
            Q = np.column_stack([Q, rest / np.linalg.norm(rest)])
    if determined:
        raise DataError(
            "columns determine one another, so their coefficients cannot be told apart",
            expected="columns that vary and are no combination of the others; rows in every cell of an interaction",
            got=", ".join(determined),
            fix="leave these out",
        )


def _condition_number(X: np.ndarray) -> float:
    return float(np.linalg.cond(X / np.sqrt((X**2).sum(0))))
