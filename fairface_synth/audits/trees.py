"""Decision trees of the score, with cross-validated R²."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..tables import TableLike, read_table
from .columns import check_count, distinct_names, get_column, read_labels
from .design import ModelData, check_varies
from .results import Result, find_row, number_text, result_text


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
        return find_row(self.rows, "feature", feature)

    def __str__(self) -> str:
        rows = [[r.feature, f"{r.importance:.3f}"] for r in self.rows]
        cv = f"R² on left-out folds: {self.r2:.3f} (SD {self.r2_sd:.3f}; {', '.join(f'{x:.2f}' for x in self.fold_r2)})"
        cv += f"; on its own rows {self.r2_train:.3f}. n = {self.n}, depth {self.depth}, {self.leaves} leaves. "
        return result_text(self, ["feature", "importance"], rows, f"{cv}Folds: {self.folds}.", f"```\n{self.splits}```")


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
    check_count("folds", folds, 2)
    check_count("max_depth", max_depth, 1)
    if not shuffle and stratify is not None:
        raise DataError("unshuffled folds are not stratified", fix="shuffle=True, or no stratify")
    from sklearn.metrics import r2_score
    from sklearn.tree import DecisionTreeRegressor, export_text

    columns = read_table(table)
    features = distinct_names(features, score)
    texts = [name for name in features if get_column(columns, name).dtype.kind not in "biuf"]
    data = ModelData.read(columns, score, [name for name in features if name not in texts], texts)
    check_varies(data.y, score)
    if not features or data.n < 2 * folds:
        raise DataError("too little for a tree", expected=f"a feature, {2 * folds} rows", got=f"{features}, {data.n}")
    names, X = data.design([(name,) for name in features], {})
    names, X = names[1:], X[:, 1:]

    def grow(rows: np.ndarray) -> Any:
        return DecisionTreeRegressor(max_depth=max_depth, random_state=seed).fit(X[rows], data.y[rows])

    splits, how, notes = _folds(columns, data, folds, stratify, shuffle, seed)
    fold_r2 = tuple(float(r2_score(data.y[test], grow(train).predict(X[test]))) for train, test in splits)
    same = sum(np.ptp(data.y[test]) == 0 for _, test in splits)
    if same:
        notes += (f"{same} folds have the same score throughout: R² is undefined there, and taken as 0 (1 if met)",)
    tree = grow(np.arange(data.n))
    order = np.argsort(-tree.feature_importances_, kind="stable")
    rows = tuple(Importance(names[j], float(tree.feature_importances_[j])) for j in order)
    r2 = (float(np.mean(fold_r2)), float(np.std(fold_r2, ddof=1)), float(r2_score(data.y, tree.predict(X))))
    text = _significant(export_text(tree, feature_names=names, decimals=15))
    size = (int(tree.get_depth()), int(tree.get_n_leaves()))
    return TreeReport(rows, fold_r2, *r2, text, *size, how, data.n, data.missing, notes)


def _significant(text: str) -> str:
    """The number that ends each line of a tree with four significant digits: scores can be small."""
    return re.sub(r"(-?\d+\.\d+)(?=\]?$)", lambda m: number_text(float(m[0])), text, flags=re.MULTILINE)


def _folds(
    columns: Mapping[str, np.ndarray],
    data: ModelData,
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
        names = distinct_names([stratify] if isinstance(stratify, str) else stratify)
        labels = [read_labels(columns, name)[data.rows] for name in names]
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
