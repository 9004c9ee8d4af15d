"""Do groups fare alike in verification? Differential performance, summed up in the measures of the literature.

Every measure is a function of the groups' FMR, FNMR and accuracy at one threshold for all. The formulas, with x_d for
group d of n that are present:

* FDR = 1 − (α·A + (1−α)·B), A = max FMR − min FMR, B likewise for FNMR; 1 is fair (de Freitas Pereira & Marcel,
  arXiv 2011.02395).
* IR = (max FMR / min FMR)^α · (max FNMR / min FNMR)^(1−α); 1 is fair; undefined where a minimum is 0 (Grother, NIST).
* GARBE = α·G(FMR) + (1−α)·G(FNMR), G(x) = n/(n−1) · Σ_i Σ_j |x_i − x_j| / (2 n² x̄); 0 is fair (Howard et al.,
  arXiv 2203.05051).
* SER = max err / min err, err = 1 − accuracy; 1 is fair; undefined where the minimum is 0 (Wang & Deng).
* STD of the accuracy over groups (divisor n); 0 is fair. Trade-off = mean accuracy − STD (FRCSyn).
* Gaps: max − min over groups of FMR, FNMR and accuracy; 0 is fair.

The vocabulary is that of ISO/IEC 19795-10; nothing here claims to conform to it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from .comparisons import Comparisons, group_names
from .error_rates import ScoreTable, score_tables, why_absent, why_unresolved, within_groups
from .errors import DataError, GroupError
from .groups import UNSURE, Groups
from .intervals import (
    Measured,
    few_identities,
    identity_weights,
    interval_columns,
    measured,
    measured_dict,
    percentiles,
)
from .reports import markdown_table
from .tables import to_frame
from .thresholds import RULE_OF_30
from .verification import Verification

AccuracyAt = Literal["best", "threshold"]
Between = Literal["between_groups", "to_overall"]

METRICS = ("fmr", "fnmr", "accuracy")
_FMR_AT_REPORTED = 3
# What each measure is called, and its value where groups fare alike.
MEASURES = {
    "fdr": ("FDR", "1"),
    "ir": ("IR", "1"),
    "garbe": ("GARBE", "0"),
    "ser": ("SER", "1"),
    "std": ("STD of accuracy", "0"),
    "trade_off": ("trade-off", "high"),
    "fmr_gap": ("FMR, max − min", "0"),
    "fnmr_gap": ("FNMR, max − min", "0"),
    "accuracy_gap": ("accuracy, max − min", "0"),
}


@dataclass(frozen=True, eq=False)
class Fairness:
    """Differential performance at one threshold: print it for tables. Its interface is that of fairlearn's MetricFrame.

    Attributes:
        by_group: {metric: {group: figure}}, metrics "fmr", "fnmr", "accuracy"; groups that are present.
        overall: {metric: figure} of all comparisons, also those across groups.
        absent: {group: why nothing can be said about it}.
        counts: {group: {"identities", "mated", "non_mated"}}, also of absent groups.
        fdr, ir, garbe, ser, std, trade_off, fmr_gap, fnmr_gap, accuracy_gap: see the module's formulas.
        by_chance: {measure: its limit of chance}: 95 % of resamples in which groups are equal are fairer; NaN without
            an interval.
        threshold: where FMR and FNMR are taken.
        accuracy_threshold: where the accuracy is taken.
        at_fmr: the pooled FMR at which the threshold was set; None if it was given.
        alpha: weight of the FMR in FDR, IR and GARBE.
        notes: what a reader has to know.
    """

    by_group: dict[str, dict[str, Measured]]
    overall: dict[str, Measured]
    absent: dict[str, str]
    counts: dict[str, dict[str, int | None]]
    fdr: Measured
    ir: Measured
    garbe: Measured
    ser: Measured
    std: Measured
    trade_off: Measured
    fmr_gap: Measured
    fnmr_gap: Measured
    accuracy_gap: Measured
    by_chance: dict[str, float]
    threshold: float
    accuracy_threshold: float
    at_fmr: float | None
    alpha: float
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> dict[str, Measured]:
        """All measures by their names."""
        return {name: getattr(self, name) for name in MEASURES}

    def group_min(self) -> dict[str, float]:
        """{metric: smallest over the groups present}."""
        return {metric: min(self._values(metric), default=math.nan) for metric in METRICS}

    def group_max(self) -> dict[str, float]:
        """{metric: largest over the groups present}."""
        return {metric: max(self._values(metric), default=math.nan) for metric in METRICS}

    def difference(self, method: Between = "between_groups") -> dict[str, float]:
        """{metric: max − min over groups}, or "to_overall": the largest distance of a group from the overall figure."""
        _check_between(method)
        if method == "between_groups":
            low, high = self.group_min(), self.group_max()
            return {metric: high[metric] - low[metric] for metric in METRICS}
        return {m: max((abs(v - self.overall[m].value) for v in self._values(m)), default=math.nan) for m in METRICS}

    def ratio(self, method: Between = "between_groups") -> dict[str, float]:
        """{metric: min / max over groups}, or "to_overall": the smallest of group / overall and overall / group.

        1 is fair; NaN for 0 / 0.
        """
        _check_between(method)
        if method == "between_groups":
            low, high = self.group_min(), self.group_max()
            return {metric: low[metric] / high[metric] if high[metric] else math.nan for metric in METRICS}
        smallest = {}
        for m in METRICS:
            whole = self.overall[m].value
            pairs = [sorted((v, whole)) for v in self._values(m)]
            smallest[m] = min((low / high if high else math.nan for low, high in pairs), default=math.nan)
        return smallest

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: {"measures", "overall", "by_group", "counts", "absent", "threshold", …}."""
        return {
            "measures": {name: measured_dict(m) for name, m in self.measures.items()},
            "overall": {metric: measured_dict(m) for metric, m in self.overall.items()},
            "by_group": {
                metric: {group: measured_dict(m) for group, m in column.items()}
                for metric, column in self.by_group.items()
            },
            "counts": self.counts,
            "absent": self.absent,
            "threshold": self.threshold,
            "accuracy_threshold": self.accuracy_threshold,
            "at_fmr": self.at_fmr,
            "alpha": self.alpha,
        }

    def to_frame(self) -> Any:
        """One row for each group, absent ones with NaN, as a pandas DataFrame."""
        none = Measured(math.nan)
        columns: dict[str, list[Any]] = {"group": list(self.counts)}
        for key in ("identities", "mated", "non_mated"):
            columns[key] = [math.nan if row[key] is None else row[key] for row in self.counts.values()]
        for metric in METRICS:
            for group in self.counts:
                for name, value in interval_columns(metric, self.by_group[metric].get(group, none)).items():
                    columns.setdefault(name, []).append(value)
        return to_frame(columns)

    def __str__(self) -> str:
        header = ["group", "identities", "mated", "non-mated", "FMR [95 %]", "FNMR [95 %]", "accuracy [95 %]"]
        rows = []
        for group, counts in self.counts.items():
            numbers = ["?" if n is None else f"{n:,}" for n in counts.values()]
            rows.append([group, *numbers, *(str(self.by_group[m].get(group, Measured(math.nan))) for m in METRICS)])
        rows.append(["overall", "", "", "", *(str(self.overall[m]) for m in METRICS)])
        measures = self.measure_rows()
        header_2 = ["measure", "value [95 %]", "fair", "by chance"]
        tables = [markdown_table(header, rows), "", markdown_table(header_2, measures)]
        return "\n".join([*tables, "", *self.notes])

    def measure_rows(self) -> list[list[str]]:
        """The rows of the measures' table: measure, value with interval, fair value, limit of chance."""
        rows = []
        for name, (label, fair) in MEASURES.items():
            limit = self.by_chance[name]
            rows.append([label, str(getattr(self, name)), fair, "–" if math.isnan(limit) else f"{limit:.3g}"])
        return rows

    def _values(self, metric: str) -> list[float]:
        return [m.value for m in self.by_group[metric].values()]


def _check_between(method: str) -> None:
    if method not in get_args(Between):
        raise DataError("unknown method", expected=" or ".join(get_args(Between)), got=repr(method))


def fairness(
    scores: Tensor | Verification,
    mated: Tensor | None = None,
    group: Tensor | Sequence[str | None] | None = None,
    *,
    at_fmr: float = 1e-3,
    threshold: float | Literal["within"] | None = None,
    groups: Groups | Sequence[str] | None = None,
    identities: Tensor | None = None,
    alpha: float = 0.5,
    accuracy_at: AccuracyAt = "best",
    resamples: int = 500,
    seed: int = 0,
) -> Fairness:
    """Differential performance of verification between groups, with intervals. Waits for the device: it makes numbers.

    Two faces match if score ≥ τ. Each group's FMR and FNMR are taken over the comparisons within it, at one τ for all;
    the measures are listed at the top of this module.

    Intervals come from the bootstrap over identities of `verify`, which sets τ again on each draw. The groups' rates
    have Wilson's interval at the effective number of comparisons, the FMR at the τ reported. Measures have percentiles.
    Noise alone makes groups differ, so that no percentile ever reaches the fair value: `by_chance` says what a measure
    comes to where groups are equal (the resamples, moved so that all groups have the same mean), and the interval
    reaches to the measure less that limit: to the fair value, unless the measure is beyond it. Without identities there
    are no intervals: resampling comparisons would give ones that are far too narrow.

    Args:
        scores: [m], higher is more alike; or what `verify` gave, and then mated, group, groups and identities
            are its.
        mated: bool [m].
        group: of both faces of each comparison: names, None, NaN or "" for comparisons that are not within a group; or
            whole numbers [m], −1 for those.
        at_fmr: τ is the lowest threshold at which no more than this share of all non-mated comparisons match.
        threshold: None: as at_fmr says; "within": so, but over the non-mated comparisons within groups; or τ itself.
        groups: the groups' names, needed with int64 ids. With names: those there should be; what does not occur is
            reported absent.
        identities: int64 [m, 2], of both faces of each comparison.
        alpha: weight of the FMR in FDR, IR and GARBE, in [0, 1].
        accuracy_at: accuracy is 1 − (FMR + FNMR) / 2, at the threshold where it is "best" over all comparisons, as in
            the protocols that SER and STD come from; or at τ ("threshold").
        resamples: of the bootstrap; 0: no intervals.
        seed: of the bootstrap.

    Raises:
        DataError: NaN scores, no groups, settings out of range.
        ShapeError: unequal lengths, `mated` that is not bool.
        GroupError: unknown groups.
    """
    c = _comparisons(scores, mated, group, groups, identities)
    _check(at_fmr, threshold, alpha, accuracy_at, resamples)
    tables = score_tables(c)[:-1]
    pool = within_groups(c) if threshold == "within" else tables[0]
    given = float(threshold) if isinstance(threshold, int | float) else None
    unresolved = "" if given is not None else why_unresolved(pool, at_fmr)
    rates, thresholds = _rates(tables, pool, at_fmr, given, accuracy_at)
    at, best = (float(t) for t in thresholds[0])
    draws = [_rates(tables, pool, at_fmr, given, accuracy_at, w, at)[0] for w in identity_weights(c, resamples, seed)]
    spread = torch.cat(draws) if draws else None
    no_interval = ("" if resamples else "no intervals were asked for (resamples=0)") or c.missing_identities
    why_not = {"fmr": unresolved, "fnmr": unresolved, "accuracy": unresolved if accuracy_at == "threshold" else ""}

    sides = [(table.trials(mated=True), table.trials(mated=False)) for table in tables]

    def figures(row: int) -> dict[str, Measured]:
        table = tables[row]
        missing = why_absent(table.mated, table.non_mated)
        no_fmr, no_fnmr = "" if table.non_mated else missing, "" if table.mated else missing
        mated, non_mated = sides[row]
        few = [few_identities(t.people, which) for t, which in ((mated, "mated"), (non_mated, "non-mated"))]
        both = mated._replace(made=mated.made + non_mated.made)
        # The FMR's interval is at the τ that is reported; at the one that each draw gives it would be about at_fmr.
        each = {  # column of the resamples, why there is none, why there is no interval, what is behind it
            "fmr": (_FMR_AT_REPORTED, no_fmr, few[1], non_mated),
            "fnmr": (1, no_fnmr, few[0], mated),
            "accuracy": (2, missing, few[0] or few[1], both),
        }
        found = {}
        for k, (metric, (column, lacking, reason, trials)) in enumerate(each.items()):
            draw, reason = None if spread is None else spread[:, row, column], no_interval or reason
            found[metric] = measured(float(rates[0, row, k]), draw, why_not[metric] or lacking, reason, trials)
        return found

    counts: dict[str, dict[str, int | None]] = {}
    absent: dict[str, str] = {}
    present: list[int] = []
    for row, name in enumerate(c.names, 1):
        t = tables[row]
        counts[name] = {"identities": t.identities(c), "mated": t.mated, "non_mated": t.non_mated}
        if reason := why_absent(t.mated, t.non_mated):
            absent[name] = reason
        else:
            present.append(row)
    by_row = {row: figures(row) for row in (0, *present)}
    fewest = min((t.people or 0 for row in present for t in sides[row]), default=0)
    reason = no_interval or few_identities(fewest)
    spread = None if spread is None else spread[:, present, :3]
    measures = _summary(rates[:, present, :3], spread, alpha, why_not, reason)
    found: dict[str, Any] = {name: m for name, (m, _) in measures.items()}
    result = Fairness(
        by_group={m: {c.names[row - 1]: by_row[row][m] for row in present} for m in METRICS},
        overall=by_row[0],
        absent=absent,
        counts=counts,
        **found,
        by_chance={name: limit for name, (_, limit) in measures.items()},
        threshold=math.nan if unresolved else at,
        accuracy_threshold=math.nan if why_not["accuracy"] else best,
        at_fmr=None if given is not None else at_fmr,
        alpha=alpha,
    )
    pooled = " within groups" if threshold == "within" else ""
    return dataclasses.replace(result, notes=_notes(result, c, unresolved, pooled, accuracy_at))


def _comparisons(
    scores: Tensor | Verification,
    mated: Tensor | None,
    group: Tensor | Sequence[str | None] | None,
    groups: Groups | Sequence[str] | None,
    identities: Tensor | None,
) -> Comparisons:
    if isinstance(scores, Verification):
        if any(x is not None for x in (mated, group, groups, identities)):
            raise DataError("a Verification has its own comparisons", expected="fairness(verification, at_fmr=…)")
        c = scores.comparisons
    elif not isinstance(scores, Tensor) or mated is None or group is None:
        raise DataError(
            "fairness of what?",
            expected="fairness(scores, mated, group), tensors and one group per comparison; or fairness(verification)",
            got=f"a {type(scores).__name__}" if not isinstance(scores, Tensor) else "no mated, or no group",
            fix="torch.as_tensor(scores)" if hasattr(scores, "__len__") else None,
        )
    else:
        ids, names = _group_ids(group, groups, scores.device)
        c = Comparisons(scores.detach(), mated, ids, names, identities)
    if len(c.names) == 0:
        raise GroupError("no groups to compare", expected="verify(…, groups=…, group_ids=…)", got="none")
    return c


def _group_ids(
    group: Tensor | Sequence[str | None], groups: Groups | Sequence[str] | None, device: torch.device
) -> tuple[Tensor, tuple[str, ...]]:
    if isinstance(group, str):
        raise GroupError("one group per comparison, please", expected="a list of names", got=repr(group[:40]))
    if not isinstance(group, Tensor):
        group = list(group)
        if group and all(isinstance(g, Integral) for g in group):  # of an array, or a list
            group = torch.as_tensor(np.array(group, dtype=np.int64), device=device)
    if isinstance(group, Tensor):
        return group, group_names(groups, group)
    # A missing name (None, NaN of a frame) differs from itself, or is empty.
    listed = [None if g is None or g == "" or g != g else g for g in group]
    if odd := [g for g in listed if not (g is None or isinstance(g, str))]:
        raise GroupError("groups have names", expected="text, or None", got=f"{odd[0]!r}, a {type(odd[0]).__name__}")
    found = sorted({g for g in listed if g is not None})
    names = group_names(found if groups is None else groups, group)
    unknown = [g for g in found if g not in names]
    if unknown:
        raise GroupError("unknown groups", expected=", ".join(names), got=", ".join(unknown))
    number: Mapping[str | None, int] = {name: i for i, name in enumerate(names)} | {None: UNSURE}
    return torch.tensor([number[g] for g in listed], dtype=torch.int64, device=device), names


def _check(at_fmr: float, threshold: object, alpha: float, accuracy_at: str, resamples: int) -> None:
    if not 0 < at_fmr < 1:
        raise DataError("the FMR is a share", expected="0 < at_fmr < 1", got=at_fmr)
    number = isinstance(threshold, int | float) and math.isfinite(threshold)
    if not (threshold is None or threshold == "within" or number):
        raise DataError("unknown threshold", expected='None, "within" or a number', got=repr(threshold))
    if not 0 <= alpha <= 1 or resamples < 0 or accuracy_at not in get_args(AccuracyAt):
        got = f"alpha={alpha}, resamples={resamples}, accuracy_at={accuracy_at!r}"
        raise DataError(
            "a setting is out of range", expected='0 ≤ alpha ≤ 1, resamples ≥ 0, "best" or "threshold"', got=got
        )


def _rates(
    tables: list[ScoreTable],
    pool: ScoreTable,
    at_fmr: float,
    given: float | None,
    accuracy_at: str,
    w: Tensor | None = None,
    reported: float | None = None,
) -> tuple[Tensor, Tensor]:
    """FMR, FNMR, accuracy, and FMR at the reported threshold [B, R, 4] under identity weights; thresholds [B, 2]."""
    sums = [table.sums(w) for table in tables]
    if given is not None:
        at = sums[0].mated.new_full((len(sums[0].mated),), given)
    else:
        at = pool.threshold(sums[0] if pool is tables[0] else pool.sums(w), at_fmr)
    best = tables[0].most_accurate(sums[0]) if accuracy_at == "best" else at
    fixed = at if reported is None else torch.full_like(at, reported)
    rows = []
    for table, s in zip(tables, sums, strict=True):
        accuracy = 1 - (table.fmr(s, best) + table.fnmr(s, best)) / 2
        rows.append(torch.stack((table.fmr(s, at), table.fnmr(s, at), accuracy, table.fmr(s, fixed)), dim=1))
    return torch.stack(rows, dim=1), torch.stack((at, best), dim=1)


# ---------------------------------------------------------------------------------------------- measures


def measures_of(rates: Tensor, alpha: float) -> dict[str, Tensor]:
    """Each measure [B] of the FMR, FNMR and accuracy [B, G, 3] of G ≥ 2 groups."""
    low, high, n = rates.amin(1), rates.amax(1), rates.shape[1]
    gap, ratio = high - low, high / low
    between = (rates.unsqueeze(1) - rates.unsqueeze(2)).abs().sum((1, 2))
    gini = n / (n - 1) * between / (2 * n**2 * rates.mean(1))
    error, accuracy = 1 - rates[:, :, 2], rates[:, :, 2]
    std = accuracy.std(1, correction=0)
    return {
        "fdr": 1 - (alpha * gap[:, 0] + (1 - alpha) * gap[:, 1]),
        "ir": ratio[:, 0] ** alpha * ratio[:, 1] ** (1 - alpha),
        "garbe": _weighted(gini, alpha),
        "ser": error.amax(1) / error.amin(1),
        "std": std,
        "trade_off": accuracy.mean(1) - std,
        "fmr_gap": gap[:, 0],
        "fnmr_gap": gap[:, 1],
        "accuracy_gap": gap[:, 2],
    }


def _weighted(x: Tensor, alpha: float) -> Tensor:
    """α of the first column and 1 − α of the second [B]; a weight of 0 also leaves a NaN out."""
    return sum((w * x[:, k] for k, w in enumerate((alpha, 1 - alpha)) if w > 0), torch.zeros_like(x[:, 0]))


# Which rates a measure is made of (those with no weight are left out), and its range.
_USES = {"ser": (2,), "std": (2,), "trade_off": (2,), "accuracy_gap": (2,), "fmr_gap": (0,), "fnmr_gap": (1,)}


def _summary(
    rates: Tensor, spread: Tensor | None, alpha: float, why_not: Mapping[str, str], no_interval: str
) -> dict[str, tuple[Measured, float]]:
    """The measures with their intervals, or why there are none, and the limits of chance."""
    if rates.shape[1] < 2:
        reason = f"groups are compared, and {'only one is' if rates.shape[1] else 'none is'} present"
        return dict.fromkeys(MEASURES, (Measured(math.nan, reason=reason), math.nan))
    values = measures_of(rates, alpha)
    # Where groups are equal: the resamples, moved so that each group's mean is the mean of all groups.
    draws = None
    if spread is not None:
        equal = (spread - rates + rates.mean(1, keepdim=True)).clamp(0, 1)
        draws = measures_of(spread, alpha), measures_of(equal, alpha)
    weighted = tuple(k for k, weight in enumerate((alpha, 1 - alpha)) if weight > 0)
    result = {}
    for name in MEASURES:
        value, uses = float(values[name]), _USES.get(name, weighted)
        reason = next((why_not[METRICS[k]] for k in uses if why_not[METRICS[k]]), "")
        reason = reason or ("" if math.isfinite(value) else _undefined(name, rates[0], uses))
        if reason or no_interval or draws is None:
            result[name] = Measured(math.nan if reason else value, reason=reason or no_interval), math.nan
        else:
            result[name] = _interval(name, value, draws[0][name], draws[1][name])
    return result


def _undefined(name: str, rates: Tensor, uses: Sequence[int]) -> str:
    """Why a measure of the rates [G, 3] is infinite or NaN."""
    if name == "ser":
        return "SER: the smallest error of a group is 0"
    zero = [METRICS[k].upper() for k in uses if float(rates[:, k].amin() if name == "ir" else rates[:, k].amax()) == 0]
    which = "smallest" if name == "ir" else "largest"
    return f"{MEASURES[name][0]}: the {which} {' and '.join(zero)} of a group is 0"


def _interval(name: str, value: float, draws: Tensor, equal: Tensor) -> tuple[Measured, float]:
    """The figure with its interval, and the limit of chance: of its values where groups are equal, 95 % are fairer.

    By the triangle inequality what is seen is at most what is true and what chance adds, together: taking the limit of
    chance off the figure (for the ratios, dividing) leaves the least that is true.
    """
    low, high = percentiles(draws)
    if low != low:
        return Measured(value, reason="not defined in most resamples"), math.nan
    if name == "trade_off":  # its STD is too large by chance, and larger still on the resamples: reflected as well
        return Measured(value, min(low, 2 * value - high), max(high, 2 * value - low)), math.nan
    fair, sign = float(MEASURES[name][1]), -1 if name == "fdr" else 1
    known = torch.where(equal.isnan(), math.inf, sign * equal).sort().values  # 0 / 0: no limit
    limit = sign * float(known[math.ceil(0.95 * (len(known) - 1))])
    beyond = value / limit if name in ("ir", "ser") else value - limit + fair
    least = beyond if sign * value > sign * limit else fair
    low, high = min(low, least), max(high, least)
    return Measured(value, low, high), limit


def _notes(f: Fairness, c: Comparisons, unresolved: str, pool: str, accuracy_at: str) -> tuple[str, ...]:
    where = "τ was given" if f.at_fmr is None else f"τ is set at FMR {f.at_fmr:g} on all non-mated comparisons{pool}"
    notes = [f"Two faces match if score ≥ τ = {f.threshold:.4f}; {where}. α = {f.alpha:g}."]
    notes = [f"No threshold: {unresolved}."] if unresolved else notes
    rejected = [m.value for g, m in f.by_group["fnmr"].items() if g not in f.absent]
    if rejected and min(rejected) == 1:
        notes.append(
            "**Every mated comparison is rejected; the measures say nothing.** Distances? Pass their negatives."
        )
    if accuracy_at == "best":
        notes.append(f"Accuracy is at {f.accuracy_threshold:.4f}, where it is best over all comparisons.")
    notes += [f"{name} is absent: {reason}." for name, reason in f.absent.items()]
    if f.at_fmr is not None:
        few = [g for g in f.by_group["fmr"] if (f.counts[g]["non_mated"] or 0) * f.at_fmr < RULE_OF_30]
        notes += [f"Fewer than {RULE_OF_30} false matches expected (rule of 30): {', '.join(few)}."] if few else []
    reasons = dict.fromkeys(m.reason for m in (*f.measures.values(), *f.overall.values()) if m.reason != unresolved)
    notes += [f"–, or no interval: {reason}." for reason in reasons if reason]
    if not all(math.isnan(limit) for limit in f.by_chance.values()):
        notes.append("By chance: where groups are equal, a measure is fairer than this in 95 % of resamples.")
    return tuple(notes)
