"""Several training regimes, several seeds each, one test set: figures with intervals, and paired differences.

Two things vary between such results: how training happens to go (the seed: initial weights, order, training people) and
which people are in the test set. An interval that holds only one of them is too narrow. Here, for a figure θ with value
θ_s after training with seed s = 1 … S,

    θ̄ = mean_s θ_s,   SE² = var_s(θ_s)/S + var_b(θ̄_b),   interval = θ̄ ± t · SE,

where θ̄_b is the mean over the seeds when the test's identities are drawn again (bootstrap b, the same draw for all
runs), and t has the degrees of freedom of Satterthwaite's approximation (1946): few seeds that differ much make it
wide. Differences between regimes are the same with θ_s the difference of two runs of one seed: the difficulty of the
test's people, which all runs share, drops out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .comparisons import Comparisons
from .error_rates import score_tables, why_unresolved
from .errors import DataError, GroupError
from .fairness import MEASURES, measures_of
from .intervals import Measured, few_identities, identity_weights, measured_dict
from .reports import markdown_table
from .tables import to_frame
from .verification import Verification

_OF_ACCURACY = ("std", "ser", "trade_off")
_AT_FMR = ("fdr", "ir", "garbe")


@dataclass(frozen=True, eq=False)
class RunComparison:
    """What `compare_runs` found: print it for two tables.

    Attributes:
        figures: {regime: {figure: mean over seeds with its interval}}.
        differences: {regime: {figure: regime − baseline}}, every regime but the baseline.
        per_seed: {regime: {figure: the value of each seed}}.
        baseline: what differences are taken from.
        groups: names of the groups.
        seeds, identities: how many runs of each regime, and people in the test.
        notes: what a reader has to know.
    """

    figures: dict[str, dict[str, Measured]]
    differences: dict[str, dict[str, Measured]]
    per_seed: dict[str, dict[str, tuple[float, ...]]]
    baseline: str
    groups: tuple[str, ...]
    seeds: int
    identities: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """{"figures", "differences", "per_seed", …}, plain numbers."""
        plain = {
            key: {regime: {k: measured_dict(m) for k, m in row.items()} for regime, row in table.items()}
            for key, table in (("figures", self.figures), ("differences", self.differences))
        }
        seeds = {r: {k: list(v) for k, v in row.items()} for r, row in self.per_seed.items()}
        return plain | {
            "per_seed": seeds,
            "baseline": self.baseline,
            "groups": list(self.groups),
            "seeds": self.seeds,
            "identities": self.identities,
        }

    def to_frame(self) -> Any:
        """One row for each regime and figure as a pandas DataFrame; differences are NaN for the baseline."""
        none = Measured(math.nan)
        columns: dict[str, list[Any]] = {}
        for regime, row in self.figures.items():
            for name, m in row.items():
                d = self.differences.get(regime, {}).get(name, none)
                cells = {"regime": regime, "figure": name, "value": m.value, "low": m.low, "high": m.high}
                cells |= {"difference": d.value, "difference_low": d.low, "difference_high": d.high}
                for key, value in cells.items():
                    columns.setdefault(key, []).append(value)
        return to_frame(columns)

    def __str__(self) -> str:
        names = list(self.figures[self.baseline])
        rows = [[name, *(str(row[name]) for row in self.figures.values())] for name in names]
        tables = [markdown_table(["figure", *self.figures], rows)]
        if self.differences:
            rows = [[name, *(_signed(row[name]) for row in self.differences.values())] for name in names]
            tables += ["", markdown_table(["figure", *(f"{r} − {self.baseline}" for r in self.differences)], rows)]
        return "\n".join([*tables, "", *self.notes])


def _signed(m: Measured) -> str:
    """The difference with its interval, and a star where the interval leaves 0 out."""
    if math.isnan(m.value):
        return "–"
    if math.isnan(m.low):
        return f"{m.value:+.3g}"
    return f"{m.value:+.3g} [{m.low:+.3g}, {m.high:+.3g}]" + (" *" if m.low > 0 or m.high < 0 else "")


@torch.no_grad()
def compare_runs(
    runs: Mapping[str, Sequence[Verification]],
    baseline: str | None = None,
    *,
    fmr: Sequence[float] = (1e-2, 1e-3),
    alpha: float = 0.5,
    resamples: int = 200,
    seed: int = 0,
) -> RunComparison:
    """Compare training regimes on one test set, over seeds. Waits for the device: it makes numbers.

    Figures: the accuracy overall and of each group at the threshold that is most accurate overall, with STD, SER and
    trade-off; and for each target FMR, at the threshold that all non-mated comparisons give, TAR overall and of each
    group, FMR of each group, FDR, IR and GARBE. Formulas: `fairface_synth.fairness`. Intervals: see the module.

    Args:
        runs: {regime: what `verify` gave for the network of each seed}, as many seeds for each regime and in the same
            order, all on the same faces with the same `seed` of `verify`: comparisons must be the same in all runs.
        baseline: the regime that differences are taken from; by default the first.
        fmr: targets.
        alpha: weight of the FMR in FDR, IR and GARBE.
        resamples: of the bootstrap over identities; 0: no intervals.
        seed: of the bootstrap.

    Raises:
        DataError: no runs, unequal numbers of seeds, comparisons that differ between runs or whose identities are not
            known, an unknown baseline, settings out of range.
        GroupError: fewer than two groups, or a group that is absent.
    """
    first, baseline = _check_runs(runs, baseline, fmr, alpha, resamples)
    tables = score_tables(first)
    unresolved = {f: why_unresolved(tables[0], f) for f in fmr}
    people = [table.identities(first) or 0 for table in tables[1:-1]]
    no_interval = "" if resamples else "no intervals were asked for (resamples=0)"
    no_interval = no_interval or few_identities(min(people))
    weights = list(identity_weights(first, 0 if no_interval else resamples, seed))
    names, reasons = _names(first.names, fmr, unresolved)
    values: dict[str, Tensor] = {}
    draws: dict[str, Tensor | None] = {}
    for regime, seeds in runs.items():
        each = [_figures(run.comparisons, fmr, alpha, weights) for run in seeds]
        values[regime] = torch.stack([value for value, _ in each])
        draws[regime] = None if no_interval else torch.stack([drawn for _, drawn in each if drawn is not None])

    def summed(value: Tensor, drawn: Tensor | None) -> dict[str, Measured]:
        each = enumerate(zip(names, reasons, strict=True))
        return {
            name: _over_seeds(value[:, k], None if drawn is None else drawn[..., k], sum(people), reason, no_interval)
            for k, (name, reason) in each
        }

    def level(regime: str) -> dict[str, Measured]:
        return {name: _in_range(name, m) for name, m in summed(values[regime], draws[regime]).items()}

    def gap(regime: str) -> tuple[Tensor, Tensor | None]:
        mine, other = draws[regime], draws[baseline]
        return values[regime] - values[baseline], None if mine is None or other is None else mine - other

    count = len(runs[baseline])
    return RunComparison(
        figures={regime: level(regime) for regime in runs},
        differences={regime: summed(*gap(regime)) for regime in runs if regime != baseline},
        per_seed={r: {n: tuple(v[:, k].tolist()) for k, n in enumerate(names)} for r, v in values.items()},
        baseline=baseline,
        groups=first.names,
        seeds=count,
        identities=sum(people),
        notes=_notes(count, people, resamples, no_interval, unresolved),
    )


def _names(groups: Sequence[str], fmr: Sequence[float], unresolved: Mapping[float, str]) -> tuple[list[str], list[str]]:
    """Names of the figures in the order of `_figures`, and for each why there is none."""
    names = ["accuracy", *(f"accuracy, {g}" for g in groups), *(MEASURES[m][0] for m in _OF_ACCURACY)]
    reasons = [""] * len(names)
    for f in fmr:
        at = [f"TAR@{f:g}", *(f"TAR@{f:g}, {g}" for g in groups), *(f"FMR@{f:g}, {g}" for g in groups)]
        names += at + [f"{MEASURES[m][0]}@{f:g}" for m in _AT_FMR]
        reasons += [unresolved[f]] * (len(names) - len(reasons))
    return names, reasons


def _figures(
    c: Comparisons, fmr: Sequence[float], alpha: float, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """All figures [K], and the same on each resample [B, K]."""
    tables = score_tables(c)[:-1]

    def under(w: Tensor | None) -> Tensor:
        sums = [table.sums(w) for table in tables]
        best = tables[0].most_accurate(sums[0])
        accuracy = _rows(1 - (t.fmr(s, best) + t.fnmr(s, best)) / 2 for t, s in zip(tables, sums, strict=True))
        columns: list[Tensor] = []
        for f in fmr:
            at = tables[0].threshold(sums[0], f)
            false_match = _rows(t.fmr(s, at) for t, s in zip(tables, sums, strict=True))
            false_non_match = _rows(t.fnmr(s, at) for t, s in zip(tables, sums, strict=True))
            rates = torch.stack((false_match, false_non_match, accuracy), dim=2)[:, 1:]
            found = measures_of(rates, alpha)
            if not columns:
                columns += [accuracy, _rows(found[m] for m in _OF_ACCURACY)]
            columns += [1 - false_non_match, false_match[:, 1:], _rows(found[m] for m in _AT_FMR)]
        return torch.cat(columns, dim=1)

    drawn = [under(w) for w in weights]
    return under(None)[0], torch.cat(drawn) if drawn else None


def _rows(columns: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(columns), dim=1)


def _over_seeds(value: Tensor, drawn: Tensor | None, people: int, why_not: str, no_interval: str) -> Measured:
    """Mean of the seeds' values [S] with its interval from them and the resamples [S, B]."""
    mean = float(value.mean())
    if why_not or not math.isfinite(mean):
        return Measured(math.nan, reason=why_not or "not defined for every seed")
    if no_interval or drawn is None:
        return Measured(mean, reason=no_interval)
    resampled = drawn.mean(0)
    known = resampled[resampled.isfinite()]
    if len(known) < 0.9 * len(resampled):
        return Measured(mean, reason="not defined in most resamples")
    seeds = len(value)
    of_seeds = float(value.var()) / seeds if seeds > 1 else 0.0
    of_people = float(known.var())
    variance = of_seeds + of_people
    if not variance > 0:
        return Measured(mean, mean, mean)
    from scipy.stats import t

    freedom = variance**2 / (of_seeds**2 / max(1, seeds - 1) + of_people**2 / max(1, people - 1))
    reach = float(t.ppf(0.975, freedom)) * math.sqrt(variance)
    return Measured(mean, mean - reach, mean + reach)


def _in_range(name: str, m: Measured) -> Measured:
    """The interval cut where the figure ends: ratios begin at 1, all others are shares."""
    low, high = (1.0, math.inf) if name.startswith(("IR", "SER")) else (0.0, 1.0)
    return m if math.isnan(m.low) else m._replace(low=max(m.low, low), high=min(m.high, high))


def _notes(
    seeds: int, people: Sequence[int], resamples: int, no_interval: str, unresolved: Mapping[float, str]
) -> tuple[str, ...]:
    number = f"{min(people)}" if min(people) == max(people) else f"{min(people)} … {max(people)}"
    notes = [f"Mean of {seeds} seed{'s' * (seeds > 1)}; {number} people in each group."]
    if no_interval:
        notes.append(f"No intervals: {no_interval}.")
    else:
        seeds_too = "the seeds and the choice of the test's people" if seeds > 1 else "the choice of the test's people"
        notes.append(f"95 % intervals over {seeds_too} ({resamples} resamples); * leaves out 0.")
    notes += [f"–: {reason}." for reason in unresolved.values() if reason]
    return tuple(notes)


def _check_runs(
    runs: Mapping[str, Sequence[Verification]], baseline: str | None, fmr: Sequence[float], alpha: float, resamples: int
) -> tuple[Comparisons, str]:
    if not runs or not all(len(seeds) for seeds in runs.values()):
        raise DataError("no runs to compare", expected="{regime: [verify(…) of each seed]}", got=dict(runs))
    strange = [v for seeds in runs.values() for v in seeds if not isinstance(v, Verification)]
    if strange:
        raise DataError("runs are what verify gives", expected="Verification", got=type(strange[0]).__name__)
    counts = {regime: len(seeds) for regime, seeds in runs.items()}
    if len(set(counts.values())) > 1:
        raise DataError("unequal numbers of seeds cannot be paired", expected="as many for each regime", got=counts)
    baseline = next(iter(runs)) if baseline is None else baseline
    if baseline not in runs:
        raise DataError("no such baseline", expected=", ".join(runs), got=baseline)
    if not fmr or not all(0 < f < 1 for f in fmr) or not 0 <= alpha <= 1 or resamples < 0 or resamples == 1:
        got = f"fmr={list(fmr)}, alpha={alpha}, resamples={resamples}"
        raise DataError("a setting is out of range", expected="0 < fmr < 1, 0 ≤ alpha ≤ 1, resamples 0 or ≥ 2", got=got)
    every = [run.comparisons for seeds in runs.values() for run in seeds]
    first = every[0]
    if first.identities is None:
        raise DataError("identities are the sample", expected="verify(…, identities=…)", got=first.missing_identities)
    if any(not _alike(first, other) for other in every[1:]):
        raise DataError(
            "the runs were not tested on the same comparisons",
            expected="verify of the same faces in the same order, with the same seed and n_pairs",
            got="other identities, groups or pairs",
        )
    absent = [n for n, t in zip(first.names, score_tables(first)[1:-1], strict=True) if not t.mated or not t.non_mated]
    if len(first.names) < 2 or absent:
        raise GroupError("groups are compared", expected="two or more, none of them absent", got=absent or first.names)
    return first, baseline


def _alike(a: Comparisons, b: Comparisons) -> bool:
    if b.identities is None or a.identities is None or a.names != b.names:
        return False
    pairs = ((a.mated, b.mated), (a.group, b.group), (a.identities, b.identities))
    return all(x.shape == y.shape and bool((x == y).all()) for x, y in pairs)
