"""What a regression is fitted to: the complete rows of its columns, its terms and its design matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from ..errors import DataError
from ..tables import TableLike, read_table
from .columns import distinct_names, is_unknown, levels_of, read_labels, read_numbers, reference_levels

Interactions = Literal["all", "none"] | Sequence[Sequence[str]]
Term = tuple[str, ...]

INTERCEPT = "intercept"


@dataclass(frozen=True)
class ModelData:
    """The complete rows of the columns that a model uses."""

    y: np.ndarray
    numbers: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray]
    missing: Mapping[str, int]
    rows: np.ndarray  # of the table, that these are

    @classmethod
    def read(cls, table: TableLike, score: str, numeric: Sequence[str], factors: Sequence[str]) -> ModelData:
        """Rows with a value in all of these columns; each factor must have two levels in them."""
        columns = read_table(table)
        numeric, factors = distinct_names(numeric), distinct_names(factors)
        distinct_names((*numeric, *factors), score)
        y, numbers = read_numbers(columns, score), {name: read_numbers(columns, name) for name in numeric}
        labels = {f: read_labels(columns, f) for f in factors}
        absent = {score: np.isnan(y), **{c: np.isnan(x) for c, x in numbers.items()}}
        absent.update({f: is_unknown(x) for f, x in labels.items()})
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
        """Levels of a factor that occur in these rows."""
        return levels_of(self.labels[factor], factor)

    def references(self, wanted: Mapping[str, str] | None) -> dict[str, str]:
        """{factor: level that the others are compared with}."""
        return reference_levels({f: self.levels(f) for f in self.labels}, wanted)

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


def check_varies(y: np.ndarray, score: str) -> None:
    """Nothing goes with a score that is the same everywhere."""
    if np.ptp(y) == 0:
        raise DataError(f"{score!r} is the same in all {len(y)} rows", expected="scores that vary", got=y[0])


def check_design(names: Sequence[str], X: np.ndarray, y: np.ndarray) -> None:
    """More rows than columns, a score that varies, and no column that the others determine."""
    if len(y) <= len(names):
        raise DataError("too few rows", expected=f"more than the model's {len(names)} coefficients", got=len(y))
    check_varies(y, "the score")
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
