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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, GroupError, ShapeError
from .groups import UNSURE, Groups, check_ids
from .identities import RULE_OF_30, _numbered, _rows, check_embeddings, impostor_scores
from .reports import Z95, markdown_table, wilson_interval
from .tables import to_frame

if TYPE_CHECKING:
    from .fairness import Fairness

ThresholdFrom = Literal["pooled", "within", "per-group"]

MIN_IDENTITIES = 10  # below it, a bootstrap over identities says little about how they vary
_OVERALL, _ACROSS = "overall", "not within a group"
_FOLDS = 10
_CURVE_POINTS = 400
_CHUNK = 2**20  # weights held at a time by the bootstrap: 8 MB


# ---------------------------------------------------------------------------------------------- scores


@torch.no_grad()
def compare(embeddings: Tensor, pairs: Tensor) -> Tensor:
    """Cosines of listed pairs of faces: [m], in float32 or the embeddings' higher precision. Blocks of 65,536 pairs.

    Args:
        embeddings: unit vectors [n, e].
        pairs: rows of the embeddings, int64 [m, 2].

    Raises:
        DataError: embeddings that are not finite unit vectors, rows that do not exist, a face with itself.
        ShapeError: pairs that are not int64 [m, 2] on the embeddings' device.
    """
    check_vectors(embeddings)
    _check_pairs(pairs, len(embeddings), embeddings.device)
    parts = [(_rows(embeddings, p[:, 0]) * _rows(embeddings, p[:, 1])).sum(1) for p in pairs.split(65536)]
    return torch.cat(parts)


def check_vectors(embeddings: object) -> None:
    """Error unless these are unit vectors in a tensor."""
    if not isinstance(embeddings, Tensor):
        fix = "torch.as_tensor(embeddings)"
        raise ShapeError("embeddings are a tensor", expected="float [n, e]", got=describe(embeddings), fix=fix)
    check_embeddings(embeddings)


def _check_pairs(pairs: Tensor, n: int, device: torch.device) -> None:
    if not isinstance(pairs, Tensor) or pairs.ndim != 2 or pairs.shape[1] != 2 or not _is_integer(pairs):
        raise ShapeError("these are not pairs", expected="int64 [m, 2], rows of the embeddings", got=describe(pairs))
    if pairs.device != device:
        raise ShapeError("pairs and embeddings live apart", expected=f"pairs on {device}", got=pairs.device)
    if has_values(pairs) and len(pairs):
        low, high = (int(v) for v in pairs.aminmax())
        if low < 0 or high >= n:
            raise DataError("a pair names a face that does not exist", expected=f"0 … {n - 1}", got=f"{low} … {high}")
        if bool((pairs[:, 0] == pairs[:, 1]).any()):
            raise DataError("a face is compared with itself", expected="two different rows in each pair", got="one")


def _check_numbers(identities: Tensor) -> None:
    """No −1, as elsewhere for groups: all faces of unknown identity would be one person."""
    if has_values(identities) and identities.numel() and int(identities.min()) < 0:
        fix = "leave out the faces of unknown identity"
        raise DataError("identities are numbers from 0", expected="≥ 0", got=int(identities.min()), fix=fix)


def _is_integer(x: Tensor) -> bool:
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def describe(x: object) -> str:
    """Shape and type, for errors."""
    return f"{list(x.shape)} {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Scores of comparisons, and what is known about each: what `verify` and `fairness` work on.

    Attributes:
        scores: [m], higher is more alike.
        mated: bool [m], both faces are of one identity.
        group: int64 [m], the group of both faces; −1 if they are not both in one.
        names: the groups' names.
        identities: int64 [m, 2], ≥ 0, of the two faces; large numbers are numbered anew. None where unknown, and then
            there are no intervals.
        counts: how many comparisons had this score, [m], for the bins of a histogram; None: one.
        weights: how many comparisons each stands for, float64 [m], where only a random part was made; None: as
            `counts`.
    """

    scores: Tensor
    mated: Tensor
    group: Tensor
    names: tuple[str, ...] = ()
    identities: Tensor | None = None
    counts: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        scores, mated, group = self.scores, self.mated, self.group
        if not isinstance(scores, Tensor) or scores.ndim != 1 or not scores.is_floating_point() or not len(scores):
            raise ShapeError("scores are a vector", expected="float [m], m ≥ 1", got=describe(scores))
        m = len(scores)
        if not isinstance(mated, Tensor) or mated.shape != (m,) or mated.dtype != torch.bool:
            fix = "torch.as_tensor(mated).bool(), if 1 means the same identity"
            raise ShapeError(
                "one truth value per score, please", expected=f"mated: bool [{m}]", got=describe(mated), fix=fix
            )
        if not isinstance(group, Tensor) or group.shape != (m,):
            raise ShapeError("one group per score, please", expected=f"group: int64 [{m}]", got=describe(group))
        check_ids(group, len(self.names))
        if not bool(scores.isfinite().all()):
            bad = f"{int((~scores.isfinite()).sum())} of {m} are NaN or infinite"
            raise DataError("scores are not finite", expected="numbers", got=bad, fix="check the embeddings")
        if self.identities is not None:
            self._check_identities(self.identities)
            if int(self.identities.max()) >= 2 * m:  # no table by identity is then longer than that
                object.__setattr__(self, "identities", _numbered(self.identities.flatten()).view(m, 2))

    def _check_identities(self, identities: Tensor) -> None:
        expected = f"identities: int64 [{len(self.scores)}, 2], of the two faces of each comparison"
        if (
            not isinstance(identities, Tensor)
            or identities.shape != (len(self.scores), 2)
            or not _is_integer(identities)
        ):
            raise ShapeError("two identities per score, please", expected=expected, got=describe(identities))
        _check_numbers(identities)
        wrong = int(((identities[:, 0] == identities[:, 1]) != self.mated).sum())
        if wrong:
            raise DataError(
                "mated and identities contradict each other",
                expected="mated exactly where both identities are the same",
                got=f"{wrong} comparisons where it is otherwise",
            )

    @property
    def missing_identities(self) -> str:
        """Why there can be no intervals; "" if there can."""
        return "" if self.identities is not None else "the identities of the comparisons are not known"


class Measured(NamedTuple):
    """A figure with its 95 % interval; NaN where there is none, and then `reason` says why."""

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.3g}" + ("" if math.isnan(self.low) else f" [{self.low:.3g}, {self.high:.3g}]")

    def complement(self) -> Measured:
        """1 − the figure."""
        return Measured(1 - self.value, 1 - self.high, 1 - self.low, self.reason)


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


class FoldAccuracy(NamedTuple):
    """Accuracy by the LFW protocol: the threshold comes from the other folds.

    Attributes:
        value: mean over the folds; NaN where there is none.
        standard_error: of the mean: standard deviation over the folds (n − 1) / √n.
        folds: accuracy on each fold.
        reason: why there is none.
    """

    value: float
    standard_error: float = math.nan
    folds: tuple[float, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{100 * self.value:.2f} ± {100 * self.standard_error:.2f} %"


class ErrorCurve(NamedTuple):
    """FMR and FNMR at rising thresholds, float64 [k]; exact at each, k ≤ a few hundred. TAR against FMR is the ROC."""

    threshold: Tensor
    fmr: Tensor
    fnmr: Tensor


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


def why_absent(mated: int, non_mated: int) -> str:
    """Why nothing can be said about a set of so many comparisons; "" if something can."""
    missing = [name for name, n in (("mated", mated), ("non-mated", non_mated)) if not n]
    return f"no {' and no '.join(missing)} comparisons" if missing else ""


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


def measured_dict(m: Measured) -> dict[str, Any]:
    """{value, low, high, reason}, without an empty reason."""
    return {k: v for k, v in m._asdict().items() if v != ""}


def interval_columns(name: str, m: Measured) -> dict[str, float]:
    """The figure and the ends of its interval, as columns of a table."""
    return {name: m.value, f"{name}_low": m.low, f"{name}_high": m.high}


# ---------------------------------------------------------------------------------------------- verify


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
        made = _from_scores(scores, mated, names, identities, group_ids)
    elif embeddings is None:
        raise DataError("nothing to verify", expected="embeddings, or scores= and mated=", got="neither")
    else:
        check_vectors(embeddings)
        check_faces(embeddings, identities, group_ids, len(names))
        if pairs is not None:
            made = _from_pairs(embeddings, pairs, mated, names, identities, group_ids)
        elif identities is None or mated is not None or folds is not None:
            raise DataError(
                "which faces are to be compared?",
                expected="identities= (every two faces), or pairs= with mated= and folds=",
                got="neither identities nor pairs" if identities is None else "mated or folds without pairs",
            )
        else:
            rng = torch.Generator(embeddings.device).manual_seed(rng_seed)
            made = _from_identities(embeddings, identities, names, group_ids, n_pairs, rng)
            folds = _identity_folds(made, rng_seed)
    result = evaluate(made, targets, threshold, folds=folds, resamples=resamples, seed=rng_seed)
    mixed = 0 if scores is not None else _in_several_groups(identities, group_ids)
    if not mixed:
        return result
    note = (
        f"{mixed} identities have faces in several groups, whose mated comparisons count overall alone: is the label "
    )
    return replace(result, notes=(*result.notes, note + "of the image? The group of the identity is meant."))


def _in_several_groups(identities: Tensor | None, group_ids: Tensor | None) -> int:
    """How many identities have faces in more than one group."""
    if identities is None or group_ids is None:
        return 0
    pairs = torch.unique(torch.stack((identities, group_ids), dim=1)[group_ids >= 0], dim=0)
    return int((torch.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())


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


def _not_a_seed(seed: object) -> int:
    raise DataError("the seed is a number", expected="an int", got=f"a {type(seed).__name__}")


def group_names(groups: Groups | Sequence[str] | None, group_ids: object) -> tuple[str, ...]:
    """Names of the groups; an error unless they and the ids are both there, or neither."""
    if (groups is None) != (group_ids is None):
        raise GroupError("group ids and their names go together", expected="group_ids= and groups=", got="one of them")
    names = () if groups is None else groups.names if isinstance(groups, Groups) else tuple(groups)
    if isinstance(groups, str | Mapping) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise GroupError("groups need different names", expected="Groups, or a list of names", got=repr(groups))
    if groups is not None and (not names or {_OVERALL, _ACROSS} & set(names)):
        raise GroupError(
            "no groups, or a reserved name", expected=f"names other than {_OVERALL!r}, {_ACROSS!r}", got=names
        )
    return names


def check_faces(embeddings: Tensor, identities: Tensor | None, group_ids: Tensor | None, num_groups: int) -> None:
    """Error unless identities and group ids fit the embeddings."""
    n, device = len(embeddings), embeddings.device
    for name, labels in (("identities", identities), ("group_ids", group_ids)):
        if labels is None:
            continue
        if not isinstance(labels, Tensor) or labels.shape != (n,) or not _is_integer(labels) or labels.device != device:
            fix = "from names: torch.from_numpy(np.unique(names, return_inverse=True)[1])"
            expected = f"a tensor, int64 [{n}] on {device}"
            raise ShapeError(f"one of {name} per face, please", expected=expected, got=describe(labels), fix=fix)
    if identities is not None:
        _check_numbers(identities)
    if group_ids is not None:
        check_ids(group_ids, num_groups)


def _from_scores(
    scores: Tensor, mated: Tensor | None, names: tuple[str, ...], identities: Tensor | None, group_ids: Tensor | None
) -> Comparisons:
    if mated is None:
        raise DataError("which comparisons are mated?", expected="mated=, bool [m]", got="scores alone")
    if not isinstance(scores, Tensor):
        raise ShapeError(
            "scores are a vector", expected="float tensor [m]", got=describe(scores), fix="torch.as_tensor(scores)"
        )
    group = torch.full(scores.shape, UNSURE, device=scores.device) if group_ids is None else group_ids
    if isinstance(group, Tensor) and group.ndim == 2 and group.shape == (len(scores), 2):
        check_ids(group, len(names))
        group = torch.where(group[:, 0] == group[:, 1], group[:, 0], UNSURE)
    return Comparisons(scores.detach(), mated, group, names, identities)


def _from_pairs(
    embeddings: Tensor,
    pairs: Tensor,
    mated: Tensor | None,
    names: tuple[str, ...],
    identities: Tensor | None,
    group_ids: Tensor | None,
) -> Comparisons:
    scores = compare(embeddings.detach(), pairs)
    both = None if identities is None else identities[pairs]
    if mated is None:
        if both is None:
            raise DataError("which pairs are mated?", expected="mated=, bool [m], or identities=", got="pairs alone")
        mated = both[:, 0] == both[:, 1]
    return Comparisons(scores, mated, _pair_groups(pairs[:, 0], pairs[:, 1], group_ids), names, both)


def _pair_groups(first: Tensor, second: Tensor, group_ids: Tensor | None) -> Tensor:
    if group_ids is None:
        return torch.full_like(first, UNSURE)
    return torch.where(group_ids[first] == group_ids[second], group_ids[first], UNSURE)


def _from_identities(
    embeddings: Tensor,
    identities: Tensor,
    names: tuple[str, ...],
    group_ids: Tensor | None,
    n_pairs: int,
    rng: torch.Generator,
) -> Comparisons:
    """All mated comparisons; non-mated ones within each group, and the rest, at most about n_pairs of each."""
    embeddings, numbers = embeddings.detach(), _numbered(identities)
    first, second = _mated_pairs(numbers)
    parts = [(compare(embeddings, torch.stack((first, second), 1)), first, second, torch.ones_like(first).double())]
    within = 0
    for g in range(len(names)):
        assert group_ids is not None
        rows = (group_ids == g).nonzero().squeeze(1)
        total = _non_mated(numbers[rows])
        within += total
        if total:
            found = impostor_scores(embeddings[rows], numbers[rows], n_pairs=n_pairs, rng=rng)
            parts.append((found.scores, rows[found.first], rows[found.second], _stands_for(found.scores, total)))
    rest = _non_mated(numbers) - within
    if rest:
        # The rest cannot be listed alone: all pairs are drawn, those within groups are left out, and a rare rest gets
        # fewer than n_pairs.
        drawn = min(4 * n_pairs, math.ceil(n_pairs * _non_mated(numbers) / rest))
        found = impostor_scores(embeddings, numbers, n_pairs=drawn, rng=rng)
        other = _pair_groups(found.first, found.second, group_ids) < 0
        kept = found.scores[other]
        parts.append((kept, found.first[other], found.second[other], _stands_for(kept, rest)))
    scores, first, second, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(scores):
        raise DataError("nothing to compare", expected="two faces at least", got=f"{len(embeddings)} faces")
    both = torch.stack((numbers[first], numbers[second]), 1)
    group = _pair_groups(first, second, group_ids)
    return Comparisons(
        scores, both[:, 0] == both[:, 1], group, names, both, weights=None if bool((weights == 1).all()) else weights
    )


def _mated_pairs(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of every two faces of one identity."""
    ordered, rows = identities.sort()
    place = torch.arange(len(rows), device=rows.device)
    later = torch.searchsorted(ordered, ordered, right=True) - place - 1
    first = place.repeat_interleave(later)
    start = later.cumsum(0) - later
    second = first + 1 + torch.arange(len(first), device=rows.device) - start.repeat_interleave(later)
    return rows[first], rows[second]


def _non_mated(identities: Tensor) -> int:
    n, faces = len(identities), identities.unique(return_counts=True)[1]
    return (n * n - int(faces.square().sum())) // 2


def _stands_for(scores: Tensor, total: int) -> Tensor:
    return torch.full_like(scores, total / max(1, len(scores)), dtype=torch.float64)


# ---------------------------------------------------------------------------------------------- evaluation


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
    for row, (table, name) in enumerate(zip(tables, (_OVERALL, *c.names, _ACROSS), strict=True)):
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
        accuracy = _fold_accuracy(table, c, folds, absent)
        counts = people, table.mated, table.non_mated
        auc, eer = figure(0, absent, both), figure(1, absent, both)
        results.append(Performance(name, *counts, auc, eer, accuracy, tuple(points), table.curve()))
    by_group = {p.name: p for p in results[1:-1]}
    across = results[-1] if c.names else None
    notes = _notes(c, threshold, results, folds)
    return Verification(results[0], by_group, across, threshold, c, notes)


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


def few_identities(people: int | None, comparisons: str = "") -> str:
    """Why a bootstrap over so many identities (of these comparisons) is not shown; "" if it is."""
    if people is None or people >= MIN_IDENTITIES:
        return ""
    have = f" with {comparisons} comparisons" if comparisons else ""
    return f"{people} identities{have} are too few for an interval ({MIN_IDENTITIES} or more)"


class Trials(NamedTuple):
    """What is behind an error rate: mated, or non-mated comparisons.

    Attributes:
        made: comparisons.
        people: identities in them; None where unknown.
        even: how many identities with equally many comparisons would vary as much (Kish): fewer than `people` where
            some have many more than others.
        least: how many independent comparisons they are worth at least: of mated ones `even`, of non-mated ones, which
            share each of two identities with others, half of it.
    """

    made: int
    people: int | None
    even: float
    least: float


def measured(
    value: float,
    resampled: Tensor | None,
    why_not: str = "",
    no_interval: str = "",
    trials: Trials | None = None,
) -> Measured:
    """A figure with its interval, or why there is none.

    Args:
        value: the estimate.
        resampled: the same on each resample [B].
        why_not: why there is no estimate.
        no_interval: why there is no interval.
        trials: for error rates: then Wilson's interval at the number of independent comparisons that has the
            resamples' variance, lowered for the degrees of freedom of that variance (as Korn & Graubard 1998). It is
            not one-sided where errors are few. None: percentiles.
    """
    if why_not or math.isnan(value):
        return Measured(math.nan, reason=why_not or "not defined")
    if no_interval or resampled is None:
        return Measured(value, reason=no_interval)
    if trials is None:
        low, high = percentiles(resampled)
        return Measured(value, low, high) if low == low else Measured(value, reason="not defined in most resamples")
    known = resampled[~resampled.isnan()]
    if len(known) < max(2, 0.9 * len(resampled)):
        return Measured(value, reason="not defined in most resamples")
    from scipy.special import stdtrit

    variance = float(known.var())
    effective = trials.least
    if variance > 0:
        student = float(stdtrit(max(1.0, trials.even - 1), 0.975))
        effective = max(effective, value * (1 - value) / variance) * (Z95 / student) ** 2
    trial = torch.tensor(min(effective, trials.made), dtype=torch.float64)
    low_end, high_end = wilson_interval(value * trial, trial)
    return Measured(value, min(float(low_end), value), max(float(high_end), value))


def percentiles(resampled: Tensor) -> tuple[float, float]:
    """2.5 % and 97.5 % of the resamples that are not NaN (inf counts as large); NaN if more than one in ten is NaN."""
    known = resampled[~resampled.isnan()].sort().values
    if len(known) < 0.9 * len(resampled) or not len(known):
        return math.nan, math.nan
    last = len(known) - 1
    return float(known[math.floor(0.025 * last)]), float(known[math.ceil(0.975 * last)])


def why_unresolved(table: ScoreTable, fmr: float) -> str:
    """Why a table's non-mated comparisons set no threshold (rule of 30); "" if they do."""
    if math.floor(fmr * table.non_mated + 1e-6) >= RULE_OF_30:
        return ""
    needed = math.ceil(RULE_OF_30 / fmr)
    return f"FMR {fmr:g} needs {needed:,} non-mated comparisons (rule of 30), there are {table.non_mated:,}"


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


class WeightSums(NamedTuple):
    """Running sums of weights over the sorted scores, each starting with 0: [B, p + 1] and [B, q + 1]."""

    non_mated: Tensor
    mated: Tensor


class _Weighing(NamedTuple):
    """How comparisons count: first and second identity [p], where they are known, and how many each stands for [p]."""

    first: Tensor | None
    second: Tensor | None
    stands_for: Tensor | None
    one: Tensor

    @classmethod
    def of(cls, c: Comparisons, at: Tensor) -> _Weighing:
        base = c.counts if c.weights is None else c.weights
        first, second = (None, None) if c.identities is None else (c.identities[at, k].contiguous() for k in (0, 1))
        one = torch.ones(1, len(at), dtype=torch.float64, device=at.device)
        return cls(first, second, None if base is None else base[at].double()[None], one)

    def __call__(self, w: Tensor | None, *, both: bool) -> Tensor:
        """[B, p], or [1, p] without identity weights w [B, I]."""
        if w is None:
            return self.one if self.stands_for is None else self.stands_for
        assert self.first is not None
        assert self.second is not None
        weight = w.index_select(1, self.first)
        if both:
            weight.mul_(w.index_select(1, self.second))
        return weight if self.stands_for is None else weight.mul_(self.stands_for)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """The comparisons of one row of the report, sorted by score: p non-mated and q mated ones.

    Attributes:
        non, mat: scores, rising, as float64; `dtype` is what they came in.
        non_at, mat_at: which comparisons they are.
        below, up_to: how many non-mated scores are below, and below or equal, each mated one.
        mat_below, mat_up_to: the same among the mated.
        non_mated, mated: how many comparisons were made.
        non_weight, mat_weight: how they count.
    """

    non: Tensor
    mat: Tensor
    non_at: Tensor
    mat_at: Tensor
    below: Tensor
    up_to: Tensor
    mat_below: Tensor
    mat_up_to: Tensor
    non_mated: int
    mated: int
    non_weight: _Weighing
    mat_weight: _Weighing
    dtype: torch.dtype

    @classmethod
    def of(cls, c: Comparisons, order: Tensor, member: Tensor) -> ScoreTable:
        """From the comparisons in order of their scores, of which those with `member` count."""
        order = order[member[order]]
        mated = c.mated[order]
        non_at, mat_at = order[~mated], order[mated]
        non, mat = c.scores[non_at].double(), c.scores[mat_at].double()
        below, up_to = (torch.searchsorted(non, mat, right=right) for right in (False, True))
        mat_below, mat_up_to = (torch.searchsorted(mat, mat, right=right) for right in (False, True))
        p, q = (len(at) if c.counts is None else int(c.counts[at].sum()) for at in (non_at, mat_at))
        weighing = _Weighing.of(c, non_at), _Weighing.of(c, mat_at)
        return cls(non, mat, non_at, mat_at, below, up_to, mat_below, mat_up_to, p, q, *weighing, c.scores.dtype)

    def identities(self, c: Comparisons) -> int | None:
        if c.identities is None:
            return None
        return len(c.identities[torch.cat((self.non_at, self.mat_at))].unique())

    def trials(self, *, mated: bool) -> Trials:
        """What is behind the FNMR (mated), or behind the FMR."""
        made, weight = (self.mated, self.mat_weight) if mated else (self.non_mated, self.non_weight)
        if weight.first is None or weight.second is None:
            return Trials(made, None, made, made)
        who = weight.first if mated else torch.cat((weight.first, weight.second))
        each = weight(None, both=True).flatten().repeat(1 if mated else 2)
        each = torch.bincount(who, each)
        even = float(each.sum().square() / each.square().sum().clamp_min(1e-300))
        return Trials(made, int((each > 0).sum()), even, even if mated else even / 2)

    def sums(self, w: Tensor | None) -> WeightSums:
        """For identity weights [B, I]; None: every identity once, B = 1."""
        return WeightSums(_running(self.non_weight(w, both=True)), _running(self.mat_weight(w, both=False)))

    def auc(self, s: WeightSums) -> Tensor:
        if not len(self.non) or not len(self.mat):
            return _nan(s)
        mated = s.mated.diff(dim=1)
        wins = (s.non_mated[:, self.below] + s.non_mated[:, self.up_to]) / 2
        return (mated * wins).sum(1) / (s.mated[:, -1] * s.non_mated[:, -1])

    def eer(self, s: WeightSums) -> Tensor:
        """Where FMR = FNMR on the lines between the ROC's points: at a mated score the FNMR rises from a to b, and the
        FMR falls from c (score ≥) to d (score >)."""
        if not len(self.non) or not len(self.mat):
            return _nan(s)
        total, mated = s.non_mated[:, -1:], s.mated[:, -1:]
        crossed = s.mated[:, self.mat_up_to] / mated >= 1 - s.non_mated[:, self.up_to] / total
        first = crossed.to(torch.uint8).argmax(1, keepdim=True)
        a = s.mated.gather(1, self.mat_below[first]) / mated
        b = s.mated.gather(1, self.mat_up_to[first]) / mated
        c = 1 - s.non_mated.gather(1, self.below[first]) / total
        d = 1 - s.non_mated.gather(1, self.up_to[first]) / total
        along = (c - a) / ((b - a) + (c - d)).clamp_min(1e-300)
        return torch.where(a >= c, a, a + along * (b - a)).squeeze(1)

    def threshold(self, s: WeightSums, fmr: float) -> Tensor:
        """Just above the highest score that cannot be admitted [B], as a float64 that its dtype can hold."""
        if not len(self.non):
            return _nan(s)
        total = s.non_mated[:, -1:]
        refused = torch.searchsorted(s.non_mated.contiguous(), total * (1 - fmr) - 1e-6).clamp(1, len(self.non)) - 1
        highest = self.non[refused.squeeze(1)].to(self.dtype)
        return torch.nextafter(highest, torch.full_like(highest, torch.inf)).double()

    def most_accurate(self, s: WeightSums) -> Tensor:
        """The threshold [B] with the least FMR + FNMR: midway between the lowest score admitted and the next below,
        of those with weight."""
        if not len(self.non) or not len(self.mat):
            return _nan(s)
        right = s.non_mated[:, self.below] / s.non_mated[:, -1:] - s.mated[:, self.mat_below] / s.mated[:, -1:]
        best = torch.where(s.mated.diff(dim=1) > 0, right, -torch.inf).argmax(1)
        lowest, next_below = self.mat[best], torch.full_like(self.mat[best], -torch.inf)
        sides = (self.non, s.non_mated, self.below[best]), (self.mat, s.mated, self.mat_below[best])
        for scores, sums, below in sides:
            # Scores of no weight do not count: those that a resample lacks, and those of the fold that is tested.
            up_to = torch.searchsorted(sums, sums.gather(1, below.unsqueeze(1))).squeeze(1)
            next_below = torch.where(up_to > 0, next_below.maximum(scores[(up_to - 1).clamp_min(0)]), next_below)
        return torch.where(next_below.isfinite(), (lowest + next_below) / 2, lowest)

    def fmr(self, s: WeightSums, threshold: Tensor) -> Tensor:
        """Share of the non-mated at or above thresholds [B]; NaN without comparisons or threshold."""
        return _share(s.non_mated[:, -1] - _below(self.non, s.non_mated, threshold), s.non_mated, threshold)

    def fnmr(self, s: WeightSums, threshold: Tensor) -> Tensor:
        """Share of the mated below thresholds [B]; NaN without comparisons or threshold."""
        return _share(_below(self.mat, s.mated, threshold), s.mated, threshold)

    def curve(self) -> ErrorCurve:
        thresholds = torch.cat(
            (_spaced(self.non.flip(0)), _spaced(self.mat), _spaced(self.non), _spaced(self.mat.flip(0)))
        )
        thresholds = thresholds.unique()
        s = self.sums(None)
        last = torch.nextafter(thresholds[-1:], torch.full_like(thresholds[-1:], torch.inf))
        thresholds = torch.cat((thresholds, last)) if len(thresholds) else thresholds
        s = WeightSums(*(x.expand(len(thresholds), -1) for x in s))
        return ErrorCurve(thresholds.cpu(), self.fmr(s, thresholds).cpu(), self.fnmr(s, thresholds).cpu())


def score_tables(c: Comparisons) -> list[ScoreTable]:
    """Overall, each group, and all that is not within a group."""
    order = c.scores.argsort()
    members = [torch.ones_like(c.mated), *(c.group == g for g in range(len(c.names))), c.group < 0]
    return [ScoreTable.of(c, order, member) for member in members]


def within_groups(c: Comparisons) -> ScoreTable:
    """All comparisons that are within some group."""
    return ScoreTable.of(c, c.scores.argsort(), c.group >= 0)


def _below(scores: Tensor, sums: Tensor, threshold: Tensor) -> Tensor:
    return sums.gather(1, torch.searchsorted(scores, threshold.contiguous()).unsqueeze(1)).squeeze(1)


def _share(part: Tensor, sums: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(threshold.isnan(), torch.nan, part / sums[:, -1])


def _running(weights: Tensor) -> Tensor:
    sums = weights.new_zeros(len(weights), weights.shape[1] + 1)
    torch.cumsum(weights, 1, out=sums[:, 1:])
    return sums


def _nan(s: WeightSums) -> Tensor:
    return s.mated.new_full((len(s.mated),), torch.nan)


def _spaced(scores: Tensor) -> Tensor:
    """Some of the sorted scores, ever denser towards the first."""
    n = len(scores)
    if n <= _CURVE_POINTS // 4:
        return scores
    steps = torch.linspace(0, math.log(n), _CURVE_POINTS // 4, dtype=torch.float64).exp().long() - 1
    return scores[steps.unique().clamp_max(n - 1).to(scores.device)]


# ---------------------------------------------------------------------------------------------- bootstrap and folds


def identity_weights(c: Comparisons, resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each identity is drawn, float64 [B, I], in chunks of `resamples` in all; none without identities.

    Drawn with replacement within groups, so that each group keeps its number of identities. An identity whose faces
    are in several groups is drawn with the last of them; those in no group are drawn among themselves.
    """
    if c.identities is None or resamples == 0:
        return
    device = c.scores.device
    people = int(c.identities.max()) + 1
    stratum = torch.full((people,), UNSURE, device=device)
    stratum = stratum.scatter_reduce(0, c.identities.flatten(), c.group.repeat_interleave(2), "amax")
    present = torch.zeros(people, dtype=torch.bool, device=device)
    present[c.identities.flatten()] = True
    who = present.nonzero().squeeze(1)
    who = who[stratum[who].argsort(stable=True)]
    label = stratum[who]
    start, end = (torch.searchsorted(label, label, right=right) for right in (False, True))
    rng = torch.Generator(device).manual_seed(seed)
    chunk = max(1, min(resamples, _CHUNK // len(c.scores)))
    for done in range(0, resamples, chunk):
        size = min(chunk, resamples - done)
        u = torch.rand(size, len(who), dtype=torch.float64, generator=rng, device=device)
        drawn = who[(start + (u * (end - start)).long()).minimum(end - 1)]
        weights = torch.zeros(size, people, dtype=torch.float64, device=device)
        yield weights.scatter_add_(1, drawn, torch.ones_like(u))


def _identity_folds(c: Comparisons, seed: int) -> Tensor:
    """Folds [m] with different identities, dealt out within each group; −1 for comparisons between folds."""
    assert c.identities is not None
    people = int(c.identities.max()) + 1
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(people, generator=rng)
    group = torch.full((people,), UNSURE, device=c.group.device)
    group = group.scatter_reduce(0, c.identities.flatten(), c.group.repeat_interleave(2), "amax").cpu()
    order = order[group[order].argsort(stable=True)]
    fold = torch.empty(people, dtype=torch.int64).scatter_(0, order, torch.arange(people) % _FOLDS)
    first, second = fold.to(c.group.device)[c.identities].unbind(1)
    return torch.where(first == second, first, -1)


def _fold_accuracy(table: ScoreTable, c: Comparisons, folds: Tensor | None, absent: str) -> FoldAccuracy:
    """On each fold, with the threshold that is most accurate on the others."""
    if absent or c.counts is not None:
        return FoldAccuracy(math.nan, reason=absent or "a histogram has no folds")
    if folds is not None and (not isinstance(folds, Tensor) or folds.shape != c.scores.shape or not _is_integer(folds)):
        raise ShapeError("one fold per comparison, please", expected=f"int64 [{len(c.scores)}]", got=describe(folds))
    weights = [weight(None, both=True) for weight in (table.non_weight, table.mat_weight)]
    parts = []
    for at in (table.non_at, table.mat_at):
        listed = at.sort().values
        stretch = torch.empty_like(c.group)
        stretch[listed] = torch.arange(len(at), device=at.device) * _FOLDS // max(1, len(at))
        parts.append(stretch[at] if folds is None else folds[at])
    accuracies = []
    for fold in torch.cat(parts)[torch.cat(parts) >= 0].unique().tolist():
        s = WeightSums(*(_running(w * ((f != fold) & (f >= 0))) for w, f in zip(weights, parts, strict=True)))
        test = WeightSums(*(_running(w * (f == fold)) for w, f in zip(weights, parts, strict=True)))
        if min(float(x[0, -1]) for x in (*s, *test)) == 0:
            reason = f"fold {fold}, or the others, has no mated or no non-mated comparisons"
            return FoldAccuracy(math.nan, reason=reason)
        at = table.most_accurate(s)
        accuracies.append(1 - float(table.fmr(test, at) + table.fnmr(test, at)) / 2)
    n = len(accuracies)
    if n < 2:
        return FoldAccuracy(math.nan, reason="fewer than two folds")
    values = torch.tensor(accuracies, dtype=torch.float64)
    return FoldAccuracy(float(values.mean()), float(values.std()) / math.sqrt(n), tuple(accuracies))
