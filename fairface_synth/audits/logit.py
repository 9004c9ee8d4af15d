"""Labels of the highest scores against those of the lowest: multinomial logit, exact tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from ..tables import TableLike, read_table
from .columns import import_audit, is_unknown, levels_of, read_labels, read_numbers, reference_level
from .descriptive import SIDES, extremes_of
from .results import Result, find_row, number_text, result_text


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
        return find_row(self.rows, "level", level)

    def __str__(self) -> str:
        rows = []
        for r in self.rows:
            shares = [f"{r.top} ({100 * r.share_top:.1f} %)", f"{r.bottom} ({100 * r.share_bottom:.1f} %)"]
            tests = [
                number_text(r.estimate, 3),
                number_text(r.se, 3),
                *(number_text(x, 2) for x in (r.z, r.p, r.exact_p)),
            ]
            rows.append([r.level, *shares, *tests, r.reason])
        test = f"Likelihood ratio: χ²({self.lr_df}) = {number_text(self.lr)}, p = {number_text(self.lr_p, 2)}."
        head = [self.factor, "top", "bottom", f"log odds against {self.reference}", "SE", "Wald z", "p", "exact p", ""]
        return result_text(self, head, rows, test)


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
    labels = read_labels(columns, factor)
    top, bottom, missing, notes = _sides(columns, k, is_top, score)
    unknown = is_unknown(labels)
    missing[factor] = int(unknown[top].sum() + unknown[bottom].sum())
    top, bottom = top[~unknown[top]], bottom[~unknown[bottom]]
    if not len(top) or not len(bottom):
        raise DataError(
            "one side has no labelled rows", expected="both top and bottom", got=f"{len(top)}, {len(bottom)}"
        )
    levels = levels_of(labels[np.concatenate([top, bottom])], factor)
    if len(levels) < 2:
        raise DataError(f"{factor!r} has one level", expected="at least two", got=", ".join(levels))
    counts = {level: (int((labels[top] == level).sum()), int((labels[bottom] == level).sum())) for level in levels}
    levels = tuple(sorted(levels, key=lambda level: -sum(counts[level])))  # the default is the most frequent
    chosen = reference_level(levels, reference, factor)
    levels = (chosen, *(level for level in counts if level != chosen))
    rows = _level_odds(counts, levels)
    notes += tuple(f"{r.level}: {r.reason}; read the exact p" for r in rows if np.isinf(r.estimate))
    if min(counts[chosen]) == 0:
        notes += (f"the reference {chosen!r} is absent on one side, so every estimate is infinite; choose another",)
    return MultinomialLogit(
        factor, chosen, rows, len(top), len(bottom), *_likelihood_ratio(counts), missing=missing, notes=notes
    )


def _sides(
    columns: Mapping[str, np.ndarray], k: int, is_top: str | None, score: str
) -> tuple[np.ndarray, np.ndarray, dict[str, int], tuple[str, ...]]:
    """Rows of the top and of the bottom, rows that are on neither for want of a value, caveats."""
    side = read_numbers(columns, score if is_top is None else is_top)
    if is_top is None:
        (top, bottom), notes = extremes_of(side, k, score)
        return top, bottom, {score: int(np.isnan(side).sum())}, notes
    if not np.isin(side[~np.isnan(side)], (0, 1)).all():
        raise DataError(f"column {is_top!r} does not say which rows are top", expected="booleans, or 0 and 1")
    return np.flatnonzero(side == 1), np.flatnonzero(side == 0), {is_top: int(np.isnan(side).sum())}, ()


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
    sides = [(who, side, count[i]) for who, count in ((level, own), (name, other)) for i, side in enumerate(SIDES)]
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
