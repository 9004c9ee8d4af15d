"""The whole audit of a discriminator's scores: every analysis of Grissom et al. on one table, and a report of them.

Grissom II et al. 2024 (arXiv 2402.09786). The statistics are in regressions.py; here is which columns they are given,
what is held, and how the results stand side by side. docs/audits.md says how to read them and what not to conclude.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import plotting
from .artifacts import atomic_path
from .discriminators import COVARIATES
from .errors import DataError, FairFaceError
from .regressions import (
    OLS,
    Anova,
    BayesLinreg,
    Correlations,
    GroupTable,
    Interactions,
    MultinomialLogit,
    Result,
    TopBottom,
    TreeReport,
    _is_unknown,
    _labels,
    _levels,
    _number,
    _plain,
    anova,
    bayes_linreg,
    correlations,
    group_table,
    multinomial_logit,
    ols,
    top_bottom,
    tree_report,
)
from .reports import markdown_table
from .tables import Table, TableLike, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOUR = ("red_mean", "green_mean", "blue_mean")
BAYES = ("colour", "traits", "category")

_FEW_LEVELS = 20  # a text column with more distinct values is taken for names
_MOST_CELLS = 60  # crossed groups beyond this are shown factor by factor
_MOST_RIDGES = 24


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
        covariates: other image measures of `discriminators.covariates`, those of face regions too.
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


@dataclass(frozen=True)
class HeldTerm:
    """One term of an analysis of variance (Type II) without and with luminance in the model.

    `share`: its sum of squares over the score's total; F with (`df`, residual df) and p. `*_held`: with luminance.
    """

    model: str
    term: str
    df: int
    share: float
    F: float
    p: float
    share_held: float
    F_held: float
    p_held: float


@dataclass(frozen=True)
class LuminanceHeld(Result):
    """How much of each factor's effect is left when luminance is held; the same rows without and with it."""

    rows: tuple[HeldTerm, ...]
    missing: Mapping[str, int]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            [
                *(r.model, r.term, str(r.df)),
                *(f"{r.share:.1%}", _number(r.F, 3), _p(r.p)),
                *(f"{r.share_held:.1%}", _number(r.F_held, 3), _p(r.p_held)),
            ]
            for r in self.rows
        ]
        head = ["model", "term", "df", "share of variance", "F", "p", "share, luminance held", "F, held", "p, held"]
        return self._text(head, rows)


@dataclass(frozen=True, eq=False)
class ScoreAudit:
    """Everything about one score column. A part that is None or absent is in `skipped` with the reason.

    Attributes:
        score: the column.
        mean, sd: over all rows.
        groups: {"race × hair": means, SDs, counts of the cells and margins}; factor by factor if cells are too many.
        correlations: with colour, luminance, traits and other measures.
        ols: {"colour", "traits", "categories", "categories + colour", "categories + luminance", …: the fit}.
        anova: {"race × hair + luminance, Type II": table}; each factor alone and all together, of both types (of one
            factor without luminance they are the same: Type II).
        held: how much of each factor is left when luminance is held.
        extremes: the k highest and the k lowest.
        logit: {factor: labels of the k highest against those of the k lowest}.
        bayes: {"colour", "traits", "category": posterior under the published priors}.
        trees: {"colour": tree on shuffled, stratified folds, "colour, unshuffled folds": as published, …}.
        skipped: {part: why it could not be computed}.
    """

    score: str
    mean: float
    sd: float
    groups: Mapping[str, GroupTable]
    correlations: Correlations | None
    ols: Mapping[str, OLS]
    anova: Mapping[str, Anova]
    held: LuminanceHeld | None
    extremes: TopBottom | None
    logit: Mapping[str, MultinomialLogit]
    bayes: Mapping[str, BayesLinreg]
    trees: Mapping[str, TreeReport]
    skipped: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dicts."""
        parts: dict[str, Any] = {"score": self.score, "mean": self.mean, "sd": self.sd}
        for name in ("groups", "ols", "anova", "logit", "bayes", "trees"):
            parts[name] = {key: part.to_dict() for key, part in getattr(self, name).items()}
        for name in ("correlations", "held", "extremes"):
            part = getattr(self, name)
            parts[name] = None if part is None else part.to_dict()
        return parts | {"skipped": dict(self.skipped)}

    def to_markdown(self, level: int = 2) -> str:
        """All tables, under headings from `level` on."""
        top, sub = "#" * level, "#" * (level + 1)
        out = [f"{top} {self.score}"]

        def section(title: str, parts: Mapping[str, Any]) -> None:
            if parts:
                out.append(f"{sub} {title}")
            for name, part in parts.items():
                out.extend(([f"**{name}**"] if name else []) + [str(part)])

        section("Groups", self.groups)
        section("Correlations", {"": self.correlations} if self.correlations else {})
        section("How much of the group effect is left when luminance is held", {"": self.held} if self.held else {})
        section("Least squares", self.ols)
        section("Analysis of variance", self.anova)
        section("Highest and lowest scores", {"": self.extremes} if self.extremes else {})
        section("Labels of the highest against the lowest (multinomial logit)", self.logit)
        section("Bayesian regression", self.bayes)
        section("Decision trees", {name: _tree_text(name, tree) for name, tree in self.trees.items()})
        if self.skipped:
            out += [f"{sub} Not computed", _bullets(self.skipped)]
        return "\n\n".join(out)


@dataclass(frozen=True, eq=False)
class AuditReport:
    """An audit of one table. `print` shows the summary, `to_markdown` everything.

    Attributes:
        columns: what was found and used.
        scores: {score column: its audit}.
        agreement: {score column: its correlations with the other score columns}; {} with one score.
        collinearity: {factor or crossing: analysis of variance of the *luminance*}; its `r2` is the share of the
            luminance's variance that goes with the factor.
        k: size of the top and of the bottom.
        notes: what the audit decided by itself, and what limits the conclusions.
        skipped: {part: why it could not be computed}, for parts that concern no single score.
        table: the columns that were used.
    """

    columns: Columns
    scores: Mapping[str, ScoreAudit]
    agreement: Mapping[str, Correlations]
    collinearity: Mapping[str, Anova]
    k: int
    notes: tuple[str, ...]
    skipped: Mapping[str, str]
    table: Table = field(repr=False)

    def __getitem__(self, score: str) -> ScoreAudit:
        if score not in self.scores:
            raise DataError("no such score", expected=", ".join(self.scores), got=score)
        return self.scores[score]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the table, as JSON has it: NaN is None, ±infinity the text "inf" or "-inf"."""
        parts = {
            "columns": _plain(self.columns),
            "scores": {name: part.to_dict() for name, part in self.scores.items()},
            "agreement": {name: part.to_dict() for name, part in self.agreement.items()},
            "collinearity": {name: part.to_dict() for name, part in self.collinearity.items()},
            "k": self.k,
            "notes": list(self.notes),
            "skipped": dict(self.skipped),
        }
        return _json(parts)

    def __str__(self) -> str:
        """The summary: what was used, the main figures of all scores side by side, what is missing, what limits it."""
        out = ["# Audit of discriminator scores", str(self.columns), "## Summary", self.summary()]
        out += [self.luminance_text()] if self.collinearity else []
        skipped = dict(self.skipped)
        for part, why in dict.fromkeys(item for s in self.scores.values() for item in s.skipped.items()):
            names = [name for name, s in self.scores.items() if s.skipped.get(part) == why]
            skipped[part if len(names) == len(self.scores) else f"{', '.join(names)}: {part}"] = why
        out += ["## Not computed", _bullets(skipped)] if skipped else []
        out += ["## Limits", "\n".join(f"- {note}" for note in self.notes)]
        return "\n\n".join(out)

    def summary(self) -> str:
        """The main figures, a column per score."""
        cells = {name: self._main_figures(s) for name, s in self.scores.items()}
        names = dict.fromkeys(name for column in cells.values() for name in column)
        table = markdown_table(["", *cells], [[name, *(c.get(name, "–") for c in cells.values())] for name in names])
        if not self.agreement:
            return table
        first = next(iter(self.scores))
        pairs = ", ".join(f"{r.column} {_number(r.pearson, 3)}" for r in self.agreement[first].rows)
        return f"{table}\n\nPearson correlation of {first} with the other scores: {pairs}."

    def _main_figures(self, s: ScoreAudit) -> dict[str, str]:
        """{what: figure} of one score, for the summary."""
        out = {"mean (SD)": f"{_number(s.mean)} ({_number(s.sd, 3)})"}
        c = self.columns
        shown = {*c.colour, c.luminance, *c.traits, *(name for name in c.covariates if "/" not in name)}
        for r in s.correlations.rows if s.correlations else ():
            if r.column in shown:
                out[f"r with {r.column}"] = _number(r.pearson, 3)
        for name, fit in s.ols.items():
            out[f"R², {name}"] = f"{fit.r2:.3f}"
        if "colour" in s.bayes:
            for column in c.colour:
                b = s.bayes["colour"][column]
                out[f"posterior {column} [95 %]"] = f"{_number(b.mean, 3)} [{_number(b.low, 3)}, {_number(b.high, 3)}]"
        for by, groups in s.groups.items():
            cells = sorted((cell for cell in groups.cells if cell.n), key=lambda cell: cell.mean)
            for name, cell in (("highest", cells[-1]), ("lowest", cells[0])) if cells else ():
                out[f"{name} {by}"] = f"{' × '.join(cell.labels.values())} {_number(cell.mean)} (n = {cell.n})"
        for factor in c.factors:
            for name, held in (("alone", ""), ("luminance held", " + luminance")):
                if f"{factor}{held}, Type II" in s.anova:
                    term = s.anova[f"{factor}{held}, Type II"][factor]
                    out[f"{factor}, {name}: F (p)"] = f"{_number(term.F, 3)} ({_p(term.p)})"
        for factor, logit in s.logit.items():
            for side in ("top", "bottom"):
                shares = (
                    f"{r.level} {getattr(r, f'share_{side}'):.0%}" for r in sorted(logit.rows, key=lambda r: r.level)
                )
                out[f"{factor} of the {side} {self.k}"] = ", ".join(shares)
        return out | {f"tree R², {name}": f"{tree.r2:.3f}" for name, tree in s.trees.items()}

    def luminance_text(self) -> str:
        """Per factor and score, what luminance takes of the factor's share, and how far the two can be told apart."""
        lines = []
        for factor in (f for f in self.columns.factors if f in self.collinearity):
            parts = [f"- {factor}: {self.collinearity[factor].r2:.1%} of the luminance's variance goes with it"]
            for s in self.scores.values():
                row = next((r for r in s.held.rows if r.model == r.term == factor), None) if s.held else None
                if row:
                    parts.append(f"{row.share:.1%} of {s.score}'s, {row.share_held:.1%} with luminance held")
            lines.append("; ".join(parts) + ".")
        return "\n".join(lines) + (
            "\n\nRegression cannot assign to either what a factor and luminance share: what is left with luminance "
            "held is not “the effect of the group”, and what is gone is not proven to be light. Another subset can "
            "split it otherwise."
        )

    def to_markdown(self, figures: Mapping[str, str] | None = None) -> str:
        """The summary, the figures if their paths are given, and every table."""
        out = [str(self)]
        if figures:
            out += ["## Figures", *(f"![{name}]({path})" for name, path in figures.items())]
        if self.collinearity:
            rows = [
                [name, f"{a.r2:.3f}", _number(a.rows[0].F) if len(a.rows) == 1 else "", str(a.n)]
                for name, a in self.collinearity.items()
            ]
            out += ["## Luminance by group", markdown_table(["groups", "R² of luminance", "F", "n"], rows)]
        if self.agreement:
            out.append("## Scores against each other")
            out += [f"**{name}**\n\n{part}" for name, part in self.agreement.items()]
        out += [part.to_markdown() for part in self.scores.values()]
        return "\n\n".join(out) + "\n"

    def figures(self) -> dict[str, Figure]:
        """{name: figure}: per score a histogram, ridges by group, and scatters over luminance; where there are columns
        for them. Rows with a missing value are left out of a figure that needs it."""
        out: dict[str, Figure] = {}
        c, factors = self.columns, list(self.columns.factors)
        cells = math.prod(len(levels) for levels in c.factors.values())
        ridges = {"ridges": factors} if cells <= _MOST_RIDGES else {f"ridges_{f}": [f] for f in factors}
        for name in self.scores:
            y = self.table[name].astype(float)
            if c.colour:
                rgb = np.stack([self.table[column] for column in c.colour], axis=1).astype(float)
                known = np.isfinite(rgb).all(1)
                if known.any():
                    out[f"{name}_histogram"] = plotting.score_histogram(y[known], rgb[known], xlabel=name)
            for figure, by in ridges.items() if factors else ():
                labels = _cross(self.table, by)
                if (labels != "").any():
                    out[f"{name}_{figure}"] = plotting.score_ridges(y, labels.tolist(), xlabel=name)
            for factor in factors if c.luminance else ():
                light = self.table[str(c.luminance)].astype(float)
                known = np.isfinite(light) & (self.table[factor] != "")
                if len(np.unique(light[known])) > 1:
                    labels = self.table[factor][known]
                    out[f"{name}_luminance_{factor}"] = plotting.score_scatter(
                        y[known], light[known], labels.tolist(), xlabel=str(c.luminance), ylabel=name
                    )
        return out

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False, dpi: int = 110) -> Path:
        """Write report.md, audit.json and the figures as PNG into a folder, which is made if need be.

        report.md is written last (and, when overwriting, an old one removed first): a folder with it is complete.
        Other files in the folder are left alone.

        Returns:
            The path of report.md.

        Raises:
            DataError: one of the files exists and `overwrite` is False.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise DataError("this is a file", expected="a folder", got=str(folder))
        report, numbers = folder / "report.md", folder / "audit.json"
        figures = {n: (re.sub(r"[^A-Za-z0-9_.-]+", "_", n) + ".png", figure) for n, figure in self.figures().items()}
        files = [report, numbers, *(folder / file for file, _ in figures.values())]
        present = [path.name for path in files if path.exists()]
        if present and not overwrite:
            raise DataError(
                f"{folder} holds a report already",
                expected="an empty folder",
                got=", ".join(present),
                fix="overwrite=True",
            )
        report.unlink(missing_ok=True)
        for file, figure in figures.values():
            with atomic_path(folder / file) as temporary:
                figure.savefig(temporary, dpi=dpi, format="png")
        with atomic_path(numbers) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
        with atomic_path(report) as temporary:
            text = self.to_markdown({name: file for name, (file, _) in figures.items()})
            temporary.write_text(text, encoding="utf-8")
        return report


def audit(
    table: TableLike,
    scores: str | Sequence[str] | None = None,
    factors: str | Sequence[str] | None = None,
    traits: str | Sequence[str] | None = None,
    *,
    colour: Sequence[str] = COLOUR,
    luminance: str | None = "luminance",
    k: int = 100,
    reference: Mapping[str, str] | None = None,
    interactions: Interactions | None = None,
    bayes: bool | Sequence[str] = True,
    draws: int = 1000,
    tree: bool = True,
    seed: int = 0,
) -> AuditReport:
    """Every analysis of Grissom et al. 2024 (arXiv 2402.09786) on a table of scores, covariates and labels.

    For each score column: group means, correlations, least squares (colour; traits; factors alone, with colour, with
    luminance), analysis of variance of Type I and II without and with luminance, top k against bottom k, Bayesian
    regressions with the published priors, decision trees on shuffled and on the published unshuffled folds. What the
    table does not allow is named in the report with the reason; the rest is there.

    Args:
        table: whatever `read_table` reads: a dict of arrays, a pandas frame, the path of a csv, …; one row per image,
            for example from `score_table`.
        scores: score columns. None: every numeric column whose name begins with "score".
        factors: columns of labels. None: text and boolean columns with 2 to 20 values. "" and "unknown" are missing.
        traits: other numeric columns, such as ratings of the faces. None: all that are left; a column that merely
            numbers the rows is not used.
        colour: columns of mean red, green and blue, 0–255.
        luminance: its column, 0–1; None: there is none. The default names of both may be absent from the table.
        k: size of the top and of the bottom (the paper: 100). With fewer than 2 k rows, a quarter of the rows; the
            report says so.
        reference: {factor: level that the others are compared with}; see `ols`.
        interactions: of the factors, as in `anova`. None: all if there are at most 60 cells, each with two rows; else
            none.
        bayes: fit the Bayesian regressions; or those to fit, of "colour", "traits", "category". Each takes some 10 to
            20 s on one CPU thread, most of it compilation, and the extra [audit].
        draws: kept of each of the four chains.
        tree: fit the decision trees.
        seed: of chains and folds.

    Raises:
        DataError: no table, no score column, scores that are missing or infinite, unknown column names, fewer than 3
            rows.
    """
    columns, data, notes = _columns(read_table(table), scores, factors, traits, colour, luminance, reference)
    if k < 1:
        raise DataError("k is out of range", expected="k ≥ 1", got=k)
    if 2 * k > columns.rows:
        notes.append(
            f"{columns.rows} rows have no {k} highest and {k} lowest: top and bottom are quarters of the rows."
        )
        k = max(1, columns.rows // 4)
    wanted = _bayes_wanted(bayes)
    if interactions is None:
        interactions = _interactions(data, list(columns.factors), notes)
    skipped: dict[str, str] = {}
    collinearity: dict[str, Anova] = {}
    if columns.luminance:
        for by in _models(columns.factors):
            name = _crossed(by)
            _add(collinearity, name, skipped, f"luminance by {name}", anova, data, by, type=2, score=columns.luminance)
    agreement = {
        name: correlations(data, [other for other in columns.scores if other != name], name)
        for name in columns.scores
        if len(columns.scores) > 1
    }
    results = {
        name: _Score(data, name, columns, reference or {}, interactions, seed).run(k, wanted, draws, tree)
        for name in columns.scores
    }
    return AuditReport(columns, results, agreement, collinearity, k, (*notes, *_limits(columns)), skipped, data)


# --- which columns -----------------------------------------------------------------------------------------------


def _columns(
    table: Table,
    scores: str | Sequence[str] | None,
    factors: str | Sequence[str] | None,
    traits: str | Sequence[str] | None,
    colour: Sequence[str],
    luminance: str | None,
    reference: Mapping[str, str] | None,
) -> tuple[Columns, Table, list[str]]:
    """The columns to use, the table of these with factors as text, and notes."""
    left_out: dict[str, str] = {}
    chosen = _names(table, scores)
    if chosen is None:
        chosen = [name for name in table if name.lower().startswith("score") and table[name].dtype.kind in "iuf"]
    _check_scores(table, chosen)
    colour, luminance, notes = _measures(table, colour, luminance, left_out)
    measures = [*colour, *([luminance] if luminance else [])]
    used = {*chosen, *measures, *left_out}
    labels = _factors(table, factors, used, left_out)
    ratings, covariates = _numbers(table, traits, used | labels.keys() | left_out.keys(), left_out)
    unknown = sorted(set(reference or {}) - labels.keys())
    if unknown:
        raise DataError("a reference for what is no factor", expected=list(labels), got=", ".join(unknown))
    data = {name: table[name] for name in (*chosen, *measures, *ratings, *covariates)} | labels
    missing = {n: int((x == "").sum() if n in labels else np.isnan(x.astype(float)).sum()) for n, x in data.items()}
    columns = Columns(
        rows=len(table[chosen[0]]),
        scores=tuple(chosen),
        factors={f: _levels(x[x != ""], f) for f, x in labels.items()},
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
        notes.append(f"No colour: the table has no {', '.join(absent)}.")
        colour = ()
    if luminance == "luminance" and luminance not in table:
        notes.append("No luminance in the table: nothing says how much of a group's effect goes with it.")
        luminance = None
    names = _names(table, list(colour)) or []
    if len(names) not in (0, 3):
        raise DataError("colour has three columns", expected="mean red, green, blue", got=", ".join(names))
    for name in (*names, *(_names(table, luminance) or ())):
        _check_number(table, name)
        values = table[name][~np.isnan(table[name].astype(float))]
        if not len(values) or np.ptp(values) == 0:
            left_out[name] = "the same everywhere" if len(values) else "no values"
    for name in set(names) - left_out.keys():
        values = table[name][~np.isnan(table[name].astype(float))]
        if values.min() < 0 or not 1 < values.max() <= 255:
            got = f"{values.min():.3g}–{values.max():.3g}"
            raise DataError(
                f"column {name!r} is no mean colour", expected="0–255", got=got, fix="colour=() leaves it out"
            )
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
            _check_number(table, name)
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
        raise DataError(
            "the table has no scores",
            expected='a numeric column whose name begins with "score", or scores="its name"',
            got=f"columns {', '.join(table)}",
        )
    for name in scores:
        _check_number(table, name)
        bad = int((~np.isfinite(table[name].astype(float))).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(table[name])} values of {name!r} are missing or infinite",
                expected="a score in every row",
                fix="drop these rows first, and say how many",
            )
        if len(table[name]) < 3:
            raise DataError("too few rows for an audit", expected="at least 3, better hundreds", got=len(table[name]))
        if np.ptp(table[name].astype(float)) == 0:
            raise DataError(f"{name!r} is the same in every row", expected="scores that vary", got=table[name][0])


def _check_number(table: Table, name: str) -> None:
    if table[name].dtype.kind not in "biuf":
        raise DataError(f"column {name!r} is text", expected="numbers", got=table[name][:3].tolist())
    if np.isinf(table[name].astype(float)).any():
        raise DataError(f"column {name!r} has infinite values", expected="numbers, or NaN where missing")


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
        values = _labels(table, name)
        values = np.where(_is_unknown(values), "", values)
        levels = set(values.tolist()) - {""}
        if len(levels) < 2:
            left_out[name] = f"the same everywhere ({next(iter(levels))})" if levels else "no values"
        elif wanted is None and len(levels) > min(_FEW_LEVELS, max(2, len(values) // 2)):
            left_out[name] = f"text with {len(levels)} different values, taken for names; factors=[…] makes it a factor"
        else:
            labels[name] = values
    return labels


def _no_trait(column: np.ndarray) -> str:
    """Why a column is not used as a trait; "" if it is."""
    if column.dtype.kind not in "iuf":
        return "text"
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


def _interactions(data: Table, factors: list[str], notes: list[str]) -> Interactions:
    """ "all" if the cells of the crossed factors are not too many and every one has two rows."""
    if len(factors) < 2:
        return "all"
    cells = _cross(data, factors)
    _, counts = np.unique(cells[cells != ""], return_counts=True)
    possible = math.prod(len(set(data[f].tolist()) - {""}) for f in factors)
    if possible > _MOST_CELLS:
        notes.append(f"{_crossed(factors)} has {possible} cells: no interactions; interactions=… asks for them.")
        return "none"
    full = int((counts >= 2).sum())
    if full == possible:
        return "all"
    notes.append(
        f"{possible - full} of {possible} cells of {_crossed(factors)} have fewer than 2 rows: no interactions."
    )
    return "none"


def _cross(data: Table, factors: Sequence[str]) -> np.ndarray:
    """ "black × long" for each row, "" where a label is missing."""
    columns = [data[f] for f in factors]
    known = np.all([c != "" for c in columns], axis=0)
    joined = [" × ".join(cell) for cell in zip(*(c.tolist() for c in columns), strict=True)]
    return np.where(known, joined, "")


def _bayes_wanted(bayes: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(bayes, bool):
        return BAYES if bayes else ()
    wanted = (bayes,) if isinstance(bayes, str) else tuple(bayes)
    if not set(wanted) <= set(BAYES):
        raise DataError("unknown Bayesian regression", expected=", ".join(BAYES), got=", ".join(map(str, wanted)))
    return wanted


def _limits(columns: Columns) -> list[str]:
    """Caveats that hold whatever came out."""
    notes = ["All of this is correlation across images; `sweep` changes one thing at a time."]
    if "score_raw" in columns.scores:
        notes.append(
            "score_raw comes from 0–255 input, as the published scores do; the network was trained on [-1, 1]. What "
            "holds for score_raw alone says nothing about training."
        )
    if columns.factors:
        notes.append("Labels carry their labeller's errors, which can differ between groups (docs/label_noise.md).")
        notes.append(
            "p values are not corrected for the number of tests, and hold for rows that are independent: not for "
            "several images of a person."
        )
    return notes


# --- the parts ---------------------------------------------------------------------------------------------------


def _add(
    parts: dict[str, Any],
    key: str,
    skipped: dict[str, str],
    what: str,
    function: Callable[..., Any],
    *args: Any,
    **options: Any,
) -> None:
    """Put function(…) under `key`; if it refuses, its reason goes to `skipped` under `what`."""
    try:
        parts[key] = function(*args, **options)
    except FairFaceError as error:
        skipped[what] = "; ".join(line.strip() for line in str(error).splitlines())


def _crossed(factors: Sequence[str]) -> str:
    return " × ".join(factors)


def _models(factors: Sequence[str] | Mapping[str, Any]) -> list[list[str]]:
    """Each factor alone, then all together."""
    names = list(factors)
    return [[f] for f in names] + ([names] if len(names) > 1 else [])


@dataclass(frozen=True)
class _Score:
    """One score column with all that its parts need."""

    data: Table
    score: str
    columns: Columns
    reference: Mapping[str, str]
    interactions: Interactions
    seed: int

    def run(self, k: int, bayes: Sequence[str], draws: int, tree: bool) -> ScoreAudit:
        skipped: dict[str, str] = {}
        y, columns = self.data[self.score].astype(float), self.columns
        measures = [*columns.colour, *([columns.luminance] if columns.luminance else [])]
        numbers = [*measures, *columns.traits, *columns.covariates]
        analyses, own = self.anovas(skipped), {name: self.data[name] for name in (self.score, *numbers)}
        single: dict[str, Any] = {}
        if numbers:
            _add(single, "correlations", skipped, "correlations", correlations, self.data, numbers, self.score)
        _add(single, "extremes", skipped, "top and bottom", top_bottom, own, k, self.score)
        return ScoreAudit(
            score=self.score,
            mean=float(y.mean()),
            sd=float(y.std(ddof=1)),
            groups=self.groups(skipped),
            correlations=single.get("correlations"),
            ols=self.fits(skipped),
            anova=analyses,
            held=self.held(analyses),
            extremes=single.get("extremes"),
            logit=self.logits(k, skipped),
            bayes=self.posteriors(bayes, draws, skipped),
            trees=self.trees(skipped) if tree else {},
            skipped=skipped,
        )

    def groups(self, skipped: dict[str, str]) -> dict[str, GroupTable]:
        factors = self.columns.factors
        if not factors:
            skipped["groups, analysis of variance, logit"] = "no column of labels"
            return {}
        cells = math.prod(len(levels) for levels in factors.values())
        crossings = [list(factors)] if cells <= _MOST_CELLS else [[f] for f in factors]
        if cells > _MOST_CELLS:
            skipped[f"groups of {_crossed(list(factors))}"] = f"{cells} cells; shown factor by factor"
        return {_crossed(by): group_table(self.data, by, self.score) for by in crossings}

    def complete(self, names: Sequence[str]) -> Table:
        """Rows with a value in all of these columns: models that are compared have the same rows."""
        known = np.ones(self.columns.rows, dtype=bool)
        for name in names:
            column = self.data[name]
            known &= column != "" if name in self.columns.factors else ~np.isnan(column.astype(float))
        return {name: column[known] for name, column in self.data.items()}

    def fits(self, skipped: dict[str, str]) -> dict[str, OLS]:
        c = self.columns
        factors, colour, light = list(c.factors), list(c.colour), [c.luminance] if c.luminance else []
        rows = self.complete([*factors, *colour, *light])
        plain = [name for name in c.covariates if "/" not in name]
        several = len(factors) > 1 and self.interactions != "none"
        models: dict[str, tuple[Table, list[str], list[str], Interactions]] = {}
        if colour:
            models["colour"] = (self.data, colour, [], "none")
        if light:
            models["luminance"] = (self.data, light, [], "none")
        if c.traits:
            models["traits"] = (self.data, list(c.traits), [], "none")
        if colour and plain:
            models["colour + other measures"] = (self.data, colour + plain, [], "none")
        for held, numbers in (("", []), (" + colour", colour), (" + luminance", light)):
            if factors and (numbers or not held):
                models[f"categories{held}"] = (rows, numbers, factors, "none")
        for held, numbers in (("", []), (" + luminance", light)):
            if several and (numbers or not held):
                models[f"categories with interactions{held}"] = (rows, numbers, factors, self.interactions)
        out: dict[str, OLS] = {}
        for name, (table, numbers, labels, crossed) in models.items():
            levels = {f: level for f, level in self.reference.items() if f in labels}
            what = f"least squares: {name}"
            _add(out, name, skipped, what, ols, table, numbers, labels, crossed, levels, self.score)
        return out

    def anovas(self, skipped: dict[str, str]) -> dict[str, Anova]:
        light = [self.columns.luminance] if self.columns.luminance else []
        out: dict[str, Anova] = {}
        for by in _models(self.columns.factors):
            rows = self.complete([*by, *light])
            crossed = self.interactions if len(by) > 1 else "none"
            for covariates in [[], light] if light else [[]]:
                for kind in (1, 2) if len(by) > 1 or covariates else (2,):  # of one term they are the same
                    name = f"{_crossed(by)}{' + luminance' if covariates else ''}, Type {'I' * kind}"
                    what = f"analysis of variance: {name}"
                    _add(out, name, skipped, what, anova, rows, by, covariates, crossed, kind, self.score)
        return out

    def held(self, analyses: Mapping[str, Anova]) -> LuminanceHeld | None:
        if self.columns.luminance is None:
            return None
        rows = []
        for by in _models(self.columns.factors):
            name = _crossed(by)
            without, held = analyses.get(f"{name}, Type II"), analyses.get(f"{name} + luminance, Type II")
            if without is None or held is None:
                continue
            y = self.complete([*by, self.columns.luminance])[self.score].astype(float)
            total = float(((y - y.mean()) ** 2).sum())
            for a in without.rows:
                b = held[a.term]
                rows.append(HeldTerm(name, a.term, a.df, a.ss / total, a.F, a.p, b.ss / total, b.F, b.p))
        notes = ("Type II sums of squares; a model's rows are the same without and with luminance",)
        return LuminanceHeld(tuple(rows), {}, notes) if rows else None

    def logits(self, k: int, skipped: dict[str, str]) -> dict[str, MultinomialLogit]:
        out: dict[str, MultinomialLogit] = {}
        for factor in self.columns.factors:
            options = {"reference": self.reference.get(factor), "score": self.score}
            _add(out, factor, skipped, f"logit: {factor}", multinomial_logit, self.data, factor, k, **options)
        return out

    def posteriors(self, wanted: Sequence[str], draws: int, skipped: dict[str, str]) -> dict[str, BayesLinreg]:
        c = self.columns
        given = {"colour": (c.colour, ()), "traits": (c.traits, ()), "category": ((), tuple(c.factors))}
        out: dict[str, BayesLinreg] = {}
        for prior in wanted:
            numbers, factors = given[prior]
            what = f"Bayesian regression: {prior}"
            if not numbers and not factors:
                skipped[what] = "no such columns"
                continue
            options = {"draws": draws, "warmup": draws, "seed": self.seed}
            _add(out, prior, skipped, what, bayes_linreg, self.data, numbers, factors, prior, self.score, **options)
        return out

    def trees(self, skipped: dict[str, str]) -> dict[str, TreeReport]:
        c = self.columns
        features = {"colour": list(c.colour)} if c.colour else {}
        if c.traits:
            features["traits"] = list(c.traits)
            if c.colour:
                features["traits + colour"] = [*c.traits, *c.colour]
        if not features:
            skipped["decision trees"] = "no colour and no traits"
        out: dict[str, TreeReport] = {}
        for name, columns in features.items():
            for shuffle in (True, False):
                label = name if shuffle else f"{name}, unshuffled folds"
                options = {"stratify": (list(c.factors) or None) if shuffle else None, "shuffle": shuffle}
                what = f"decision tree: {label}"
                _add(out, label, skipped, what, tree_report, self.data, columns, self.score, seed=self.seed, **options)
        return out


# --- text --------------------------------------------------------------------------------------------------------


def _tree_text(name: str, tree: TreeReport) -> str:
    """The tree; of unshuffled folds, R² alone, since the tree fitted to all rows is the same."""
    if "unshuffled" not in name:
        return str(tree)
    notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in tree.notes)
    folds = ", ".join(f"{r2:.2f}" for r2 in tree.fold_r2)
    return f"R² on left-out folds: {tree.r2:.3f} (SD {tree.r2_sd:.3f}; {folds}), as the published code has them.{notes}"


def _p(p: float) -> str:
    return "< 1e-300" if p < 1e-300 else _number(p, 2)


def _bullets(reasons: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {why}" for name, why in reasons.items())


def _json(value: Any) -> Any:
    """NaN as None, ±infinity as text: what every reader of JSON takes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {key: _json(part) for key, part in value.items()}
    return [_json(part) for part in value] if isinstance(value, list) else value
