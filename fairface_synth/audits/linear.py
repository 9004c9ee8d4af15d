"""Least squares and analysis of variance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import DataError
from ..tables import TableLike
from .columns import import_audit
from .design import Interactions, ModelData, Term, check_design, check_varies
from .results import Result, find_row, number_text, range_text, result_text

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
        return find_row(self.rows, "term", term)

    def __str__(self) -> str:
        rows = [
            [
                r.term,
                number_text(r.estimate),
                number_text(r.se, 3),
                number_text(r.t, 3),
                number_text(r.p, 2),
                range_text(r.low, r.high),
            ]
            for r in self.rows
        ]
        fit = f"n = {self.n}, residual df = {self.df_residual}, R² = {self.r2:.3f} (adjusted {self.r2_adjusted:.3f}), "
        fit += f"residual SD = {number_text(self.sigma)}; {self.errors} standard errors."
        levels = ", ".join(f"{f} {level}" for f, level in self.reference.items())
        spread = ", ".join(f"{name} {number_text(v, 3)}" for name, v in self.vif.items())
        return result_text(
            self,
            ["term", "estimate", "SE", "t", "p", "95 %"],
            rows,
            fit,
            f"Compared with: {levels}." if levels else "",
            f"Variance inflation: {spread}; condition number {number_text(self.condition_number, 3)}."
            if spread
            else "",
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
        DataError: unknown columns or levels, too few rows, columns that are combinations of others, HC3 where a row
            alone decides a coefficient (a level with one row).
    """
    import_audit("statsmodels")
    from statsmodels.api import OLS as Fit

    data = ModelData.read(table, score, numeric, factors)
    references = data.references(reference)
    terms = data.terms(interactions)
    names, X = data.design(terms, references)
    check_design(names, X, data.y)
    if robust:
        _check_leverage(names, X)
    fit = Fit(data.y, X).fit(cov_type="HC3" if robust else "nonrobust", use_t=True)
    limits = fit.conf_int(0.05)
    rows = tuple(
        Coefficient(name, *(float(v[j]) for v in (fit.params, fit.bse, fit.tvalues, fit.pvalues)), *limits[j].tolist())
        for j, name in enumerate(names)
    )
    vif, condition = _inflation(data, references), _condition_number(X)
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


def _check_leverage(names: Sequence[str], X: np.ndarray) -> None:
    """HC3 divides by 1 − leverage, which is 0 in a row that alone decides a coefficient."""
    alone = np.flatnonzero((np.linalg.qr(X)[0] ** 2).sum(1) > 1 - 1e-9)
    if len(alone):
        decided = [name for name, column in zip(names, X.T, strict=True) if (np.flatnonzero(column) == alone[0]).all()]
        raise DataError(
            "HC3 standard errors are undefined: a row alone decides a coefficient",
            expected="at least two rows for each",
            got=", ".join(decided) or f"complete row {alone[0]}",
            fix="merge or leave out rare levels, or robust=False",
        )


def _condition_number(X: np.ndarray) -> float:
    return float(np.linalg.cond(X / np.sqrt((X**2).sum(0))))


def _inflation(data: ModelData, references: Mapping[str, str]) -> dict[str, float]:
    """GVIF^(1/df) of the main effects: det R_own · det R_others / det R (Fox & Monette 1992, eq. 10)."""
    blocks = {name: data.block((name,), references)[1] for name in (*data.numbers, *data.labels)}
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
        return find_row(self.rows, "term", term)

    def __str__(self) -> str:
        rows = [
            [
                r.term,
                str(r.df),
                number_text(r.ss, 5),
                number_text(r.F),
                number_text(r.p, 2),
                number_text(r.partial_eta2, 3),
            ]
            for r in self.rows
        ]
        rows.append(["residual", str(self.df_residual), number_text(self.ss_residual, 5), "", "", ""])
        kind = "Type I: each term after those above it" if self.type == 1 else "Type II: each term after the others"
        return result_text(
            self, ["term", "df", "SS", "F", "p", "partial η²"], rows, f"{kind}. n = {self.n}, R² = {self.r2:.3f}."
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
    if type not in (1, 2):
        raise DataError("unknown type of sums of squares", expected="1 or 2", got=type)
    data = ModelData.read(table, score, covariates, factors)
    terms = data.terms(interactions, covariates_first=False)
    if not terms:
        raise DataError("nothing to test", expected="at least one factor or covariate")
    check_varies(data.y, score)
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
        rows.append(_anova_term(name, df, ss, ss_residual, df_residual))
    if ss_residual == 0:
        notes.append("the model fits exactly: F is infinite, or undefined for terms that add nothing")
    if type == 1 and len(terms) > 1:
        notes.append("Type I depends on the order of the terms where groups are unequal or covariates differ by group")
    r2 = 1 - ss_residual / float(((data.y - data.y.mean()) ** 2).sum())
    return Anova(tuple(rows), type, data.n, df_residual, ss_residual, r2, data.missing, tuple(notes))


def _anova_term(name: str, df: int, ss: float, ss_residual: float, df_residual: int) -> AnovaTerm:
    from scipy.stats import f as f_distribution

    nan = float("nan")
    if df == 0:
        return AnovaTerm(name, df, nan, nan, nan, nan)
    if ss_residual == 0:
        return AnovaTerm(name, df, ss, *((float("inf"), 0.0, 1.0) if ss > 0 else (nan, nan, nan)))
    F = ss / df / (ss_residual / df_residual)
    return AnovaTerm(name, df, ss, F, float(f_distribution.sf(F, df, df_residual)), ss / (ss + ss_residual))


def _least_squares(y: np.ndarray, blocks: Sequence[np.ndarray]) -> tuple[float, int]:
    """Residual sum of squares of y on an intercept and the blocks, and the rank of that design."""
    y = y - y.mean()
    if not blocks:
        return float(y @ y), 1
    X = np.hstack(blocks)
    size = np.sqrt((X**2).sum(0))
    X = X - X.mean(0)  # takes the intercept out, which keeps the ranks well conditioned
    scale = np.sqrt((X**2).sum(0))
    X = np.divide(X, scale, out=np.zeros_like(X), where=scale > 1e-12 * size)
    u, s, _ = np.linalg.svd(X, full_matrices=False)
    u = u[:, s > 1e-8 * max(1.0, s.max(initial=0))]
    residual = y - u @ (u.T @ y)
    ss = float(residual @ residual)
    return ss if ss > 1e-24 * float(y @ y) else 0.0, 1 + u.shape[1]  # an exact fit leaves rounding errors
