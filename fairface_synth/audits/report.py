"""The whole audit of a table, and its report."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import plotting
from ..artifacts import atomic_path
from ..errors import DataError
from ..reports import markdown_table
from ..tables import Table, TableLike, read_table
from .bayes import PRIORS
from .columns import check_count
from .descriptive import Correlations, correlations
from .design import Interactions
from .linear import Anova, anova
from .results import Parts, bullets, number_text, p_text, plain
from .roles import COLOUR, Columns, cell_names, choose_columns, choose_interactions, crossing_name, factor_sets
from .scores import ScoreAnalyses, ScoreAudit, add_or_skip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_RIDGES = 24


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
            "columns": plain(self.columns),
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
        out += ["## Not computed", bullets(skipped)] if skipped else []
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
        pairs = ", ".join(f"{r.column} {number_text(r.pearson, 3)}" for r in self.agreement[first].rows)
        return f"{table}\n\nPearson correlation of {first} with the other scores: {pairs}."

    def _main_figures(self, s: ScoreAudit) -> dict[str, str]:
        """{what: figure} of one score, for the summary."""
        out = {"mean (SD)": f"{number_text(s.mean)} ({number_text(s.sd, 3)})"}
        c = self.columns
        shown = {*c.colour, c.luminance, *c.traits, *(name for name in c.covariates if "/" not in name)}
        for r in s.correlations.rows if s.correlations else ():
            if r.column in shown:
                out[f"r with {r.column}"] = number_text(r.pearson, 3)
        for name, fit in s.ols.items():
            out[f"R², {name}"] = f"{fit.r2:.3f}"
        if "colour" in s.bayes:
            for column in c.colour:
                b = s.bayes["colour"][column]
                out[f"posterior {column} [95 %]"] = (
                    f"{number_text(b.mean, 3)} [{number_text(b.low, 3)}, {number_text(b.high, 3)}]"
                )
        for by, groups in s.groups.items():
            cells = sorted((cell for cell in groups.cells if cell.n), key=lambda cell: cell.mean)
            for name, cell in (("highest", cells[-1]), ("lowest", cells[0])) if cells else ():
                out[f"{name} {by}"] = f"{' × '.join(cell.labels.values())} {number_text(cell.mean)} (n = {cell.n})"
        for factor in c.factors:
            for name, held in (("alone", ""), ("luminance held", " + luminance")):
                if f"{factor}{held}, Type II" in s.anova:
                    term = s.anova[f"{factor}{held}, Type II"][factor]
                    out[f"{factor}, {name}: F (p)"] = f"{number_text(term.F, 3)} ({p_text(term.p)})"
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
                if row and not np.isnan(row.share_held):
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
                [name, f"{a.r2:.3f}", number_text(a.rows[0].F) if len(a.rows) == 1 else "", str(a.n)]
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
                labels = cell_names(self.table, by)
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
        scores: score columns. None: every numeric column whose name begins with "score"; where some are named, the
            others of such names are not used.
        factors: columns of labels. None: text and boolean columns with 2 to 20 values, without "x_original" where
            there is an "x". "", "unknown" and "nan" are missing. Text that is all numbers is a number, as after a CSV
            file, unless it is named here.
        traits: other numeric columns, such as ratings of the faces. None: all that are left; a column that merely
            numbers the rows is not used.
        colour: columns of mean red, green and blue, 0–255.
        luminance: its column, 0–1; None: there is none. The default names of both may be absent from the table.
        k: size of the top and of the bottom (the paper: 100). With fewer than 2 k rows, a quarter of the rows; the
            report says so.
        reference: {factor: level that the others are compared with}; see `ols`.
        interactions: of the factors, as in `anova`. None: all if there are at most 60 cells, each with two rows; else
            none.
        bayes: fit the Bayesian regressions; or those to fit, of "colour", "traits", "category". Needs the
            extra [audit], and on one CPU thread some 10 s for each the first time, which is mostly compilation, and 1
            to 3 s for every further score; on a busy machine three times as long.
        draws: kept of each of the four chains.
        tree: fit the decision trees.
        seed: of chains and folds.

    Raises:
        DataError: no table, no score column, scores that are missing or infinite, unknown column names, fewer than 3
            rows.
    """
    columns, data, notes = choose_columns(read_table(table), scores, factors, traits, colour, luminance, reference)
    check_count("k", k, 1)
    if 2 * k > columns.rows:
        notes.append(
            f"{columns.rows} rows have no {k} highest and {k} lowest: top and bottom are quarters of the rows."
        )
        k = max(1, columns.rows // 4)
    wanted = _bayes_wanted(bayes)
    if interactions is None:
        interactions = choose_interactions(data, list(columns.factors), notes)
    twice = columns.rows - len(set(zip(*(x.tolist() for x in data.values()), strict=True)))
    if twice:
        notes.append(f"{twice} rows repeat another in every column used. If they are the same images, p is too small.")
    skipped: dict[str, str] = {}
    collinearity: dict[str, Anova] = {}
    if columns.luminance:
        for by in factor_sets(columns.factors):
            name = crossing_name(by)
            add_or_skip(
                collinearity, name, skipped, f"luminance by {name}", anova, data, by, type=2, score=columns.luminance
            )
    agreement = {
        name: correlations(data, [other for other in columns.scores if other != name], name)
        for name in columns.scores
        if len(columns.scores) > 1
    }
    results = {
        name: ScoreAnalyses(data, name, columns, reference or {}, interactions, seed).run(k, wanted, draws, tree)
        for name in columns.scores
    }
    return AuditReport(
        columns, results, Parts(agreement), Parts(collinearity), k, (*notes, *_limits(columns)), skipped, data
    )


def _bayes_wanted(bayes: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(bayes, bool):
        return PRIORS if bayes else ()
    wanted = (bayes,) if isinstance(bayes, str) else tuple(bayes)
    if not set(wanted) <= set(PRIORS):
        raise DataError("unknown Bayesian regression", expected=", ".join(PRIORS), got=", ".join(map(str, wanted)))
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


def _json(value: Any) -> Any:
    """NaN as None, ±infinity as text: what every reader of JSON takes."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Mapping):
        return {key: _json(part) for key, part in value.items()}
    return [_json(part) for part in value] if isinstance(value, list) else value
