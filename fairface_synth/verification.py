"""How well an embedder verifies identities, overall and in each demographic group, with intervals.

A comparison is *mated* if both faces are of one identity, otherwise *non-mated*. At a threshold t two faces match if
score ≥ t; the false match rate FMR(t) is the share of non-mated comparisons that match, the false non-match rate
FNMR(t) the share of mated ones that do not, and TAR = 1 − FNMR. The words are those of ISO/IEC 19795-1 and -10;
nothing here claims to conform to them.

A group's comparisons are those with both faces in it. All others (across groups, or of faces of no group) count in the
overall figures alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .comparisons import (
    ACROSS,
    OVERALL,
    Comparisons,
    check_faces,
    check_vectors,
    from_identities,
    from_pairs,
    from_scores,
    group_names,
)
from .error_rates import ErrorCurve, ScoreTable, score_tables, why_absent, why_unresolved, within_groups
from .errors import DataError
from .folds import FoldAccuracy, fold_accuracy, identity_folds
from .groups import Groups
from .intervals import Measured, Trials, few_identities, identity_weights, interval_columns, measured, measured_dict
from .reports import markdown_table
from .tables import to_frame

if TYPE_CHECKING:
    from .fairness import Fairness

ThresholdFrom = Literal["pooled", "within", "per-group"]


def verify(
    embeddings: Tensor | None = None,
    *,
    identities: Tensor | None = None,
    pairs: Tensor | None = None,
    mated: Tensor | None = None,
    scores: Tensor | None = None,
    groups: Groups | Sequence[str] | None = None,
    group_ids: Tensor | None = None,
    fmr: Sequence[float] = (1e-2, 1e-3, 1e-4),
    threshold: ThresholdFrom = "pooled",
    folds: Tensor | None = None,
    n_pairs: int = 1_000_000,
    resamples: int = 500,
    seed: int = 0,
) -> Verification:
    """Error rates of verification, overall and per group, with intervals. Waits for the device: it makes numbers.

    Three ways to say what is compared:

    * `verify(embeddings, identities=…)`: every two faces. Where a group, or the rest, has more than `n_pairs` non-mated
      comparisons, a random part of at most so many is made and weighted to stand for all.
    * `verify(embeddings, pairs=…, mated=…)`: listed pairs. With `identities`, `mated` may be left out.
    * `verify(scores=…, mated=…)`: scores that were computed before, by any matcher.

    **Thresholds** are the lowest at which no more than a share `fmr` of the non-mated comparisons match; which ones,
    `threshold` says: "pooled" takes all, also those across groups, "within" those within groups, and "per-group" each
    group its own (overall: pooled). One threshold is what an operator has. "per-group" compares the groups' ROC curves
    instead, and hides that they differ at the threshold in use.

    **Intervals** come from a bootstrap over identities: within each group, as many identities as there are are drawn
    with replacement; a mated comparison of identity i counts w_i times, a non-mated one of i and j w_i·w_j times, where
    w is how often each was drawn. Comparisons that share a face are not independent, and resampling them would give
    intervals that are far too narrow. Thresholds are set again on each draw, except for the FMR's interval, which is
    at the threshold reported. Error rates have Wilson's interval at the number of independent comparisons that would
    vary as much as the resamples do (where no error was seen: as many as there are identities, or disjoint pairs of
    them); AUC and EER have percentiles.

    **NaN with a reason** stands where fewer than 30 / fmr non-mated comparisons could set the threshold (rule of 30,
    Doddington et al. 2000), where a group has no mated or no non-mated comparisons, and for intervals where
    identities are unknown or fewer than 10.

    Args:
        embeddings: unit vectors [n, e].
        identities: int64 [n], of each face; with `scores`: [m, 2], of both faces of each comparison.
        pairs: rows of the embeddings, int64 [m, 2].
        mated: bool [m].
        scores: [m], higher is more alike.
        groups: names of the groups.
        group_ids: of each face, int64 [n], −1 for none; with `scores`: [m] (the group of both), or [m, 2].
        fmr: targets.
        threshold: see above.
        folds: int64 [m], for the LFW protocol on listed pairs or scores; −1 is in none. Without: for every two faces,
            ten folds with different identities; for lists, ten equal stretches of the mated and of the non-mated ones
            in their order, as the lists of LFW are made.
        n_pairs: see above.
        resamples: of the bootstrap; 0: no intervals. Each costs some 40 ns per comparison on a processor.
        seed: of the bootstrap, of random parts and folds.

    Raises:
        DataError: NaN, vectors not of unit length, faces that do not exist, no comparisons, contradictions, settings
            out of range.
        ShapeError: things that do not fit together.
        GroupError: unknown group ids, or ids without names.
    """
    targets = check_settings(fmr, threshold, n_pairs, resamples)
    names = group_names(groups, group_ids)
    rng_seed = seed if isinstance(seed, int) else _not_a_seed(seed)
    if scores is not None:
        if embeddings is not None or pairs is not None:
            raise DataError("scores or embeddings, not both", expected="verify(scores=…, mated=…)", got="both")
        made = from_scores(scores, mated, names, identities, group_ids)
    elif embeddings is None:
        raise DataError("nothing to verify", expected="embeddings, or scores= and mated=", got="neither")
    else:
        check_vectors(embeddings)
        check_faces(embeddings, identities, group_ids, len(names))
        if pairs is not None:
            made = from_pairs(embeddings, pairs, mated, names, identities, group_ids)
        elif identities is None or mated is not None or folds is not None:
            raise DataError(
                "which faces are to be compared?",
                expected="identities= (every two faces), or pairs= with mated= and folds=",
                got="neither identities nor pairs" if identities is None else "mated or folds without pairs",
            )
        else:
            rng = torch.Generator(embeddings.device).manual_seed(rng_seed)
            made = from_identities(embeddings, identities, names, group_ids, n_pairs, rng)
            folds = identity_folds(made, rng_seed)
    result = evaluate(made, targets, threshold, folds=folds, resamples=resamples, seed=rng_seed)
    mixed = 0 if scores is not None else _in_several_groups(identities, group_ids)
    if not mixed:
        return result
    note = (
        f"{mixed} identities have faces in several groups, whose mated comparisons count overall alone: is the label "
    )
    return replace(result, notes=(*result.notes, note + "of the image? The group of the identity is meant."))


@dataclass(frozen=True, eq=False)
class Verification:
    """What `verify` found: print it for tables.

    Attributes:
        overall: of all comparisons.
        by_group: {name: of the comparisons within the group}; every group, also those that are absent.
        across: of the comparisons that are not within a group; None without groups.
        threshold: where thresholds come from.
        comparisons: what it was computed from, for `fairness` and figures.
        notes: what a reader has to know.
    """

    overall: Performance
    by_group: dict[str, Performance]
    across: Performance | None
    threshold: ThresholdFrom
    comparisons: Comparisons
    notes: tuple[str, ...] = ()

    def fairness(self, *, at_fmr: float | None = None, **options: Any) -> Fairness:
        """Fairness measures of the same comparisons; see `fairface_synth.fairness.fairness`.

        Args:
            at_fmr: where the threshold is set. None: 1e-3 if it is among this verification's targets, or the first.
            options: of `fairness`.
        """
        from .fairness import fairness

        targets = [point.target for point in self.overall.points]
        at = (1e-3 if 1e-3 in targets else targets[0]) if at_fmr is None else at_fmr
        return fairness(self, at_fmr=at, **options)

    @property
    def _all(self) -> list[Performance]:
        return [self.overall, *self.by_group.values(), *([] if self.across is None else [self.across])]

    def to_dict(self) -> dict[str, Any]:
        """{name: {identities, mated, non_mated, auc, eer, accuracy, points: {target: {threshold, fmr, fnmr, tar}}}},
        with "low" and "high" where there is an interval."""
        return {p.name: _performance_dict(p) for p in self._all}

    def to_frame(self) -> Any:
        """One row for each set and target FMR, as a pandas DataFrame; columns as in `to_dict`."""
        columns: dict[str, list[Any]] = {}
        for p in self._all:
            for point in p.points:
                row: dict[str, Any] = {
                    "group": p.name,
                    "identities": math.nan if p.identities is None else p.identities,
                }
                row |= {
                    "mated": p.mated,
                    "non_mated": p.non_mated,
                    **interval_columns("auc", p.auc),
                    **interval_columns("eer", p.eer),
                }
                row |= {"accuracy": p.accuracy.value, "accuracy_se": p.accuracy.standard_error}
                row |= {"target_fmr": point.target, "threshold": point.threshold}
                row |= {**interval_columns("fmr", point.fmr), **interval_columns("tar", point.tar)}
                for key, value in row.items():
                    columns.setdefault(key, []).append(value)
        return to_frame(columns)

    def __str__(self) -> str:
        header = ["comparisons", "identities", "mated", "non-mated", "AUC", "EER", "accuracy (10-fold)"]
        rows = []
        for p in self._all:
            people = "?" if p.identities is None else f"{p.identities:,}"
            row = [p.name, people, f"{p.mated:,}", f"{p.non_mated:,}", str(p.auc), str(p.eer), str(p.accuracy)]
            rows.append(row)
        table = markdown_table(header, rows)
        header = ["comparisons", "target FMR", "threshold", "FMR [95 %]", "FNMR [95 %]", "TAR"]
        rows = []
        for point in range(len(self.overall.points)):
            for p in self._all:
                target, threshold, fmr, fnmr = p.points[point]
                at = "–" if math.isnan(threshold) else f"{threshold:.4f}"
                tar = "–" if math.isnan(fnmr.value) else f"{1 - fnmr.value:.4f}"
                rows.append([p.name, f"{target:g}", at, str(fmr), str(fnmr), tar])
        return "\n".join([table, "", markdown_table(header, rows), "", *self.notes])


@dataclass(frozen=True, eq=False)
class Performance:
    """How well a set of comparisons is told apart.

    Attributes:
        name: of the group.
        identities: how many take part; None where unknown.
        mated, non_mated: comparisons made.
        auc: probability that a mated score exceeds a non-mated one, ties counting half.
        eer: where FMR = FNMR, on straight lines between the points of the ROC.
        accuracy: LFW protocol, within this set (its own thresholds). Mated and non-mated comparisons count half each,
            which is the share of right decisions in protocols with as many of both.
        points: rates at each target FMR.
        curve: for plots.
    """

    name: str
    identities: int | None
    mated: int
    non_mated: int
    auc: Measured
    eer: Measured
    accuracy: FoldAccuracy
    points: tuple[OperatingPoint, ...]
    curve: ErrorCurve

    @property
    def absent(self) -> str:
        """Why nothing can be said about this set; "" if something can."""
        return why_absent(self.mated, self.non_mated)

    def at(self, fmr: float) -> OperatingPoint:
        """The operating point of a target FMR.

        Raises:
            DataError: not among the targets.
        """
        for point in self.points:
            if math.isclose(point.target, fmr, rel_tol=1e-9):
                return point
        targets = ", ".join(f"{p.target:g}" for p in self.points)
        raise DataError("no such operating point", expected=targets, got=fmr, fix=f"verify(…, fmr=({fmr:g},))")


class OperatingPoint(NamedTuple):
    """Error rates at one threshold.

    Attributes:
        target: the FMR that was asked for.
        threshold: the lowest score at which no more than `target` of the pooled (or the group's own) non-mated
            comparisons match; NaN if too few.
        fmr, fnmr: this group's rates at the threshold.
    """

    target: float
    threshold: float
    fmr: Measured
    fnmr: Measured

    @property
    def tar(self) -> Measured:
        """1 − FNMR."""
        return self.fnmr.complement()


def evaluate(
    comparisons: Comparisons,
    fmr: Sequence[float],
    threshold: ThresholdFrom,
    *,
    folds: Tensor | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> Verification:
    """`verify` for comparisons that are made already."""
    c, tables = comparisons, score_tables(comparisons)
    pool = within_groups(c) if threshold == "within" else tables[0]
    own = [t if threshold == "per-group" else pool for t in tables]
    reasons = [[why_unresolved(t, f) for f in fmr] for t in own]
    value = _figures(tables, pool, None, fmr, threshold)
    fixed = value[:, :, 2::3]
    draws = [_figures(tables, pool, w, fmr, threshold, fixed) for w in identity_weights(c, resamples, seed)]
    value, spread = value[0], torch.cat(draws) if draws else None
    no_interval = "" if resamples else "no intervals were asked for (resamples=0)"
    results = []
    for row, (table, name) in enumerate(zip(tables, (OVERALL, *c.names, ACROSS), strict=True)):
        people = table.identities(c)
        absent = why_absent(table.mated, table.non_mated)
        reason = no_interval or c.missing_identities
        mated, non_mated = table.trials(mated=True), table.trials(mated=False)
        both = few_identities(mated.people, "mated") or few_identities(non_mated.people, "non-mated")

        def figure(
            k: int, why_not: str, few: str, trials: Trials | None = None, row: int = row, reason: str = reason
        ) -> Measured:
            resampled = None if spread is None or reason or few else spread[:, row, k]
            return measured(float(value[row, k]), resampled, why_not, reason or few, trials)

        points = []
        for i, target in enumerate(fmr):
            unresolved, k = reasons[row][i], 2 + 3 * i
            at = math.nan if unresolved else float(value[row, k])
            no_fmr, no_fnmr = ("" if n else absent for n in (table.non_mated, table.mated))
            points.append(
                OperatingPoint(
                    target,
                    at,
                    figure(k + 1, unresolved or no_fmr, few_identities(non_mated.people, "non-mated"), non_mated),
                    figure(k + 2, unresolved or no_fnmr, few_identities(mated.people, "mated"), mated),
                )
            )
        accuracy = fold_accuracy(table, c, folds, absent)
        counts = people, table.mated, table.non_mated
        auc, eer = figure(0, absent, both), figure(1, absent, both)
        results.append(Performance(name, *counts, auc, eer, accuracy, tuple(points), table.curve()))
    by_group = {p.name: p for p in results[1:-1]}
    across = results[-1] if c.names else None
    notes = _notes(c, threshold, results, folds)
    return Verification(results[0], by_group, across, threshold, c, notes)


def check_settings(fmr: Sequence[float], threshold: str, n_pairs: int, resamples: int) -> tuple[float, ...]:
    """The target FMRs; an error for settings out of range."""
    try:
        targets = tuple(torch.as_tensor(fmr, dtype=torch.float64).flatten().tolist())
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError("the FMR is a share", expected="a number, or several", got=repr(fmr)) from error
    if not targets or not all(0 < f < 1 for f in targets):
        raise DataError("the FMR is a share", expected="one or more, 0 < fmr < 1", got=list(targets))
    if threshold not in get_args(ThresholdFrom):
        raise DataError("unknown threshold", expected=" or ".join(get_args(ThresholdFrom)), got=repr(threshold))
    if n_pairs < 1 or resamples < 0:
        got = f"n_pairs={n_pairs}, resamples={resamples}"
        raise DataError("a setting is out of range", expected="n_pairs ≥ 1, resamples ≥ 0", got=got)
    return targets


# --- details ----------------------------------------------------------------------------------------------------------


def _performance_dict(p: Performance) -> dict[str, Any]:
    points = {
        f"{point.target:g}": {
            "threshold": point.threshold,
            **{name: measured_dict(m) for name, m in (("fmr", point.fmr), ("fnmr", point.fnmr), ("tar", point.tar))},
        }
        for point in p.points
    }
    accuracy = {k: v for k, v in p.accuracy._asdict().items() if v not in ("", ())}
    plain = {"identities": p.identities, "mated": p.mated, "non_mated": p.non_mated}
    return plain | {"auc": measured_dict(p.auc), "eer": measured_dict(p.eer), "accuracy": accuracy, "points": points}


def _not_a_seed(seed: object) -> int:
    raise DataError("the seed is a number", expected="an int", got=f"a {type(seed).__name__}")


def _in_several_groups(identities: Tensor | None, group_ids: Tensor | None) -> int:
    """How many identities have faces in more than one group."""
    if identities is None or group_ids is None:
        return 0
    pairs = torch.unique(torch.stack((identities, group_ids), dim=1)[group_ids >= 0], dim=0)
    return int((torch.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())


def _figures(
    tables: list[ScoreTable],
    pool: ScoreTable,
    w: Tensor | None,
    fmr: Sequence[float],
    threshold: str,
    fixed: Tensor | None = None,
) -> Tensor:
    """[B, R, 2 + 3F] for identity weights w [B, I]: AUC and EER, then threshold, FMR and FNMR at each target.

    With `fixed` thresholds [1, R, F] the FMR is at these, and the FNMR at those that the weights give: the FMR of a
    threshold that is set on the same comparisons would be the target, always.
    """
    sums = [table.sums(w) for table in tables]
    pooled = sums[0] if pool is tables[0] else pool.sums(w)
    shared = [pool.threshold(pooled, f) for f in fmr]
    rows = []
    for row, (table, s) in enumerate(zip(tables, sums, strict=True)):
        own = threshold == "per-group" and row > 0
        figures = [table.auc(s), table.eer(s)]
        for i, f in enumerate(fmr):
            at = table.threshold(s, f) if own else shared[i]
            figures += [at, table.fmr(s, at if fixed is None else fixed[:, row, i].expand_as(at)), table.fnmr(s, at)]
        rows.append(torch.stack(figures, dim=1))
    return torch.stack(rows, dim=1)


def _notes(c: Comparisons, threshold: str, results: list[Performance], folds: Tensor | None) -> tuple[str, ...]:
    pool = {
        "pooled": "all non-mated comparisons",
        "within": "the non-mated comparisons within groups",
        "per-group": "each group's own non-mated comparisons",
    }[threshold]
    notes = [f"Two faces match if score ≥ threshold. Thresholds are set on {pool}."]
    if results[0].auc.value < 0.5:
        notes.append(
            "**Mated comparisons score lower than non-mated ones.** Are these distances? Pass their negatives."
        )
    if c.names:
        notes.append("A group's comparisons have both faces in it; all others count in the overall figures alone.")
    notes += [f"{p.name} is absent: {p.absent}." for p in results[1:-1] if p.absent]
    measures = {m.reason for p in results if not p.absent for pt in p.points for m in (pt.fmr, pt.fnmr) if m.reason}
    notes += [f"–, or no interval: {reason}." for reason in sorted(measures)]
    notes += [f"{p.name}: {p.accuracy.reason}." for p in results if p.accuracy.reason and not p.absent]
    if c.weights is not None:
        notes.append("A random part of the non-mated comparisons was made, weighted to stand for all.")
    if folds is None and c.counts is None and c.identities is not None:
        notes.append("The folds are stretches of the list: an identity may be in several.")
    return tuple(notes)
