"""All analyses of one score column, and their text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FairFaceError
from ..tables import Table
from .bayes import BayesLinreg, bayes_linreg
from .descriptive import Correlations, GroupTable, TopBottom, correlations, group_table, top_bottom
from .design import Interactions
from .linear import OLS, Anova, anova, ols
from .logit import MultinomialLogit, multinomial_logit
from .results import Parts, Result, bullets, number_text, p_text, result_text
from .roles import MOST_CELLS, Columns, crossing_name, determined_factors, factor_sets
from .trees import TreeReport, tree_report


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
                *(_share_text(r.share), number_text(r.F, 3), p_text(r.p)),
                *(_share_text(r.share_held), number_text(r.F_held, 3), p_text(r.p_held)),
            ]
            for r in self.rows
        ]
        head = ["model", "term", "df", "share of variance", "F", "p", "share, luminance held", "F, held", "p, held"]
        return result_text(self, head, rows)


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
            out += [f"{sub} Not computed", bullets(self.skipped)]
        return "\n\n".join(out)


def _share_text(share: float) -> str:
    return "–" if np.isnan(share) else f"{share:.1%}"


def _tree_text(name: str, tree: TreeReport) -> str:
    """The tree; of unshuffled folds, R² alone, since the tree fitted to all rows is the same."""
    if "unshuffled" not in name:
        return str(tree)
    notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in tree.notes)
    folds = ", ".join(f"{r2:.2f}" for r2 in tree.fold_r2)
    return f"R² on left-out folds: {tree.r2:.3f} (SD {tree.r2_sd:.3f}; {folds}), as the published code has them.{notes}"


@dataclass(frozen=True)
class ScoreAnalyses:
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
            add_or_skip(single, "correlations", skipped, "correlations", correlations, self.data, numbers, self.score)
        add_or_skip(single, "extremes", skipped, "top and bottom", top_bottom, own, k, self.score)
        return ScoreAudit(
            score=self.score,
            mean=float(y.mean()),
            sd=float(y.std(ddof=1)),
            groups=Parts(self.groups(skipped)),
            correlations=single.get("correlations"),
            ols=Parts(self.fits(skipped)),
            anova=Parts(analyses),
            held=self.held(analyses),
            extremes=single.get("extremes"),
            logit=Parts(self.logits(k, skipped)),
            bayes=Parts(self.posteriors(bayes, draws, skipped)),
            trees=Parts(self.trees(skipped) if tree else {}),
            skipped=skipped,
        )

    def groups(self, skipped: dict[str, str]) -> dict[str, GroupTable]:
        factors = self.columns.factors
        if not factors:
            skipped["groups, analysis of variance, logit"] = "no column of labels"
            return {}
        cells = math.prod(len(levels) for levels in factors.values())
        crossings = [list(factors)] if cells <= MOST_CELLS else [[f] for f in factors]
        if cells > MOST_CELLS:
            skipped[f"groups of {crossing_name(list(factors))}"] = f"{cells} cells; shown factor by factor"
        return {crossing_name(by): group_table(self.data, by, self.score) for by in crossings}

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
        follow = determined_factors({f: self.data[f] for f in factors})
        factors = [f for f in factors if f not in follow]  # they would add nothing; the report notes it
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
            add_or_skip(out, name, skipped, what, ols, table, numbers, labels, crossed, levels, self.score)
        return out

    def anovas(self, skipped: dict[str, str]) -> dict[str, Anova]:
        light = [self.columns.luminance] if self.columns.luminance else []
        out: dict[str, Anova] = {}
        for by in factor_sets(self.columns.factors):
            rows = self.complete([*by, *light])
            crossed = self.interactions if len(by) > 1 else "none"
            for covariates in [[], light] if light else [[]]:
                for kind in (1, 2) if len(by) > 1 or covariates else (2,):  # of one term they are the same
                    name = f"{crossing_name(by)}{' + luminance' if covariates else ''}, Type {'I' * kind}"
                    what = f"analysis of variance: {name}"
                    add_or_skip(out, name, skipped, what, anova, rows, by, covariates, crossed, kind, self.score)
        return out

    def held(self, analyses: Mapping[str, Anova]) -> LuminanceHeld | None:
        if self.columns.luminance is None:
            return None
        rows = []
        for by in factor_sets(self.columns.factors):
            name = crossing_name(by)
            without, held = analyses.get(f"{name}, Type II"), analyses.get(f"{name} + luminance, Type II")
            if without is None or held is None:
                continue
            y = self.complete([*by, self.columns.luminance])[self.score].astype(float)
            total = float(((y - y.mean()) ** 2).sum())
            for a in without.rows:
                b = held[a.term]
                rows.append(HeldTerm(name, a.term, a.df, a.ss / total, a.F, a.p, b.ss / total, b.F, b.p))
        notes: tuple[str, ...] = ("Type II sums of squares; a model's rows are the same without and with luminance",)
        if any(np.isnan(r.share) or np.isnan(r.share_held) for r in rows):
            notes += ("– where the rest of the model determines a term: it has no share of its own",)
        return LuminanceHeld(tuple(rows), {}, notes) if rows else None

    def logits(self, k: int, skipped: dict[str, str]) -> dict[str, MultinomialLogit]:
        out: dict[str, MultinomialLogit] = {}
        for factor in self.columns.factors:
            options = {"reference": self.reference.get(factor), "score": self.score}
            add_or_skip(out, factor, skipped, f"logit: {factor}", multinomial_logit, self.data, factor, k, **options)
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
            add_or_skip(
                out, prior, skipped, what, bayes_linreg, self.data, numbers, factors, prior, self.score, **options
            )
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
                add_or_skip(
                    out, label, skipped, what, tree_report, self.data, columns, self.score, seed=self.seed, **options
                )
        return out


def add_or_skip(
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
