"""How two annotated sets of faces differ: Kullback-Leibler divergence of their attributes, in both directions.

Neto et al. 2024 (arXiv 2404.15234) annotate real and synthetic sets with a massive attribute classifier, compare the
distributions of the attributes by KL divergence, and find that real samples suffice to explain the synthetic
distribution but not the reverse. Their abstract says no more: formula, smoothing and binarisation were not found. The
definitions here are this library's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from .annotation_sources import as_annotations
from .artifacts import Artifact
from .attribute_counts import AttributeCounts, attribute_frame, count_attributes, marked, noise_note, size_note
from .attribute_schema import AttributeSchema
from .errors import DataError, ShapeError
from .reports import Z95, markdown_table
from .tables import to_frame

On = Literal["labels", "probabilities", "joint"]


# --- joint cells ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False, eq=False)
class Cells(Artifact):
    """A partition of the space of all attributes, for joint distributions.

    Attributes:
        names: the K attributes of the sets it is for.
        centroids: [C, K]; a row belongs to the nearest one, over the attributes it has. None for product cells.
        columns: which attributes' combinations are the 2^m cells; None for k-means cells.
    """

    kind: ClassVar[str] = "cells"

    names: tuple[str, ...]
    centroids: Tensor | None = None
    columns: tuple[int, ...] | None = None

    @property
    def attributes(self) -> tuple[str, ...]:
        """Those that tell the cells apart."""
        return self.names if self.columns is None else tuple(self.names[k] for k in self.columns)

    @property
    def fingerprint(self) -> str:
        """A digest: counts over different cells do not compare."""
        digest = hashlib.blake2b(json.dumps([self.names, self.columns]).encode(), digest_size=16)
        if self.centroids is not None:
            digest.update(self.centroids.double().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return 2 ** len(self.columns or ()) if self.centroids is None else len(self.centroids)

    def __str__(self) -> str:
        if self.columns is not None:
            return "the cells " + " × ".join(self.attributes)
        return f"{len(self)} k-means cells of {len(self.names)} attributes"

    def assign(self, labels: Tensor, probabilities: Tensor) -> Tensor:
        """Cell of each row, int64 [n]; −1 where an attribute of a product is undefined, or all attributes are.

        Args:
            labels: [n, K] in {-1, 0, 1}.
            probabilities: [n, K].
        """
        for x in (labels, probabilities):
            if x.ndim != 2 or x.shape[1] != len(self.names):
                raise ShapeError("these rows do not fit the cells", expected=["n", len(self.names)], got=list(x.shape))
        if self.columns is not None:
            chosen = labels[:, list(self.columns)]
            powers = 2 ** torch.arange(len(self.columns), device=labels.device)
            return torch.where((chosen != 0).all(1), ((chosen > 0) * powers).sum(1), -1)
        known = (labels != 0).double()
        x = torch.nan_to_num(probabilities).double() * known
        centre = self.centroids.to(x)  # type: ignore[union-attr]
        distance = known @ centre.square().T - 2 * x @ centre.T  # and Σx², the same for all cells
        return torch.where((labels != 0).any(1), distance.argmin(1), -1)


def product_cells(names: Sequence[str], schema: AttributeSchema) -> Cells:
    """All 2^m combinations of m attributes.

    Args:
        names: of attributes.
        schema: of the sets.

    Raises:
        GroupError: an unknown attribute.
        DataError: none, repeated ones, or more than 12.
    """
    columns = tuple(schema.index(name) for name in ([names] if isinstance(names, str) else names))
    if not 1 <= len(columns) <= 12 or len(set(columns)) < len(columns):
        raise DataError("these make no product", expected="1 to 12 different attributes", got=list(names))
    return Cells(schema.names, columns=columns)


def fit_cells(sets: Sequence[Any], n: int = 32, *, rows: int = 20_000, seed: int = 0) -> Cells:
    """k-means cells of the K-dimensional vectors of probabilities, fitted on an equal random part of every set.

    Args:
        sets: whatever `as_annotations` reads, all of one schema.
        n: cells; fewer where the rows have fewer different values.
        rows: drawn from each set; all take as many as the smallest has.
        seed: of the draw and of k-means.

    Raises:
        DataError: fewer rows than cells, or different schemas.
    """
    from sklearn.cluster import KMeans

    if not isinstance(sets, Sequence) or isinstance(sets, str) or not sets:
        raise DataError("cells are fitted on several sets", expected="a list of sets", got=type(sets).__name__)
    opened = [as_annotations(s) for s in sets]
    names = _common_names([s.schema for s in opened])
    size = min([rows, *(len(s) for s in opened)])
    if n < 2 or size * len(opened) < n:
        raise DataError("too few rows for so many cells", expected=f"2 ≤ n ≤ {size * len(opened)}", got=n)
    rng = np.random.default_rng(seed)
    parts = []
    for source in opened:
        chosen, start = np.sort(rng.choice(len(source), size, replace=False)), 0
        columns = [source.schema.index(name) for name in names]
        for batch in source.batches():
            here = chosen[(chosen >= start) & (chosen < start + len(batch))] - start
            parts.append(torch.as_tensor(batch.probabilities)[torch.from_numpy(here)][:, columns].double())
            start += len(batch)
    x = torch.cat(parts)
    x = torch.where(x.isnan(), x.nanmean(0).nan_to_num(0.5), x)  # only to fit; rows are assigned by what they have
    points = x.cpu().numpy()
    n = min(n, len(np.unique(points, axis=0)))  # hard labels of few attributes have few combinations
    means = KMeans(n, n_init=3, random_state=seed).fit(points)
    return Cells(names, torch.from_numpy(means.cluster_centers_))


def _common_names(schemas: Sequence[AttributeSchema], attributes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The attributes to compare, as the first set spells them: all, which every set must have, or those asked for."""
    first = schemas[0] if attributes is None else schemas[0].subset(attributes)
    if attributes is None:
        differ = {n for s in schemas[1:] for a, b in ((first, s), (s, first)) for n in a.names if n not in b}
        if differ:
            raise DataError(
                "the sets have different attributes",
                expected="the same names",
                got=f"not in all of them: {', '.join(sorted(differ))}",
                fix="attributes=[…] of kl_table and kl_matrix compares some that all have",
            )
    for schema in schemas:
        schema.subset(first.names)  # or an error that names the attribute
    return first.names


# --- divergences ----------------------------------------------------------------------------------------------------


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(P‖Q) = Σ p·ln(p/q) in nats: inf where P has something that Q lacks, and 0 only if they are equal.

    Args:
        p, q: probabilities [..., C] that sum to one.
    """
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).clamp_min(0)


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence ½·KL(P‖M) + ½·KL(Q‖M) with M = (P + Q)/2, in nats, 0 … ln 2 (Lin 1991).

    Args:
        p, q: probabilities [..., C] that sum to one.
    """
    m = (p + q) / 2
    return (kl_divergence(p, m) + kl_divergence(q, m)) / 2


class Divergence(NamedTuple):
    """One divergence of each of K attributes (or one joint one), float64, in nats.

    Attributes:
        value: corrected for the bias of small samples, so that it may fall a little below 0; NaN where undefined.
        low, high: 95 % interval over identities.
        plugin: the textbook estimate: the formula, of the smoothed shares (binary: (positives + α)/(defined + 2α)),
            uncorrected. Never negative; too large in small samples, by about `null` where the distributions are close.
        null: the plug-in that two samples of these sizes would give on average if the distributions were equal.
        null_high: what `value` would stay below in 95 % of such pairs (for the asymmetry: its absolute value).
    """

    value: Tensor
    low: Tensor
    high: Tensor
    plugin: Tensor
    null: Tensor
    null_high: Tensor


_KINDS = ("kl_pq", "kl_qp", "js", "asymmetry")


def _divergences(p: Tensor, q: Tensor) -> Tensor:
    """KL(P‖Q), KL(Q‖P), JS and KL(P‖Q) − KL(Q‖P), [..., 4], of shares [..., C]."""
    forward, backward = kl_divergence(p, q), kl_divergence(q, p)
    return torch.stack((forward, backward, js_divergence(p, q), forward - backward), dim=-1)


def _with_sum(x: Tensor, valid: Tensor) -> Tensor:
    """[..., K, 4] → [..., K + 1, 4]: the sum over valid attributes beside them."""
    return torch.cat((x, torch.where(valid[:, None], x, 0).sum(-2, keepdim=True)), dim=-2)


def _compare(p: Tensor, q: Tensor, alpha: float, binary: bool, seed: int) -> Tensor:
    """The six rows of `Divergence` for the four kinds and each attribute, then their sum: [6, K + 1, 4].

    Args:
        p, q: counts of the sets and their replicates, [1 + R, K, C].
        alpha: added to every cell that is not empty in both sets (to both cells of a binary attribute).
        binary: C = 2, an attribute present or absent.
        seed: of the pseudo-counts' replicates.
    """
    p, q = (torch.where(x.sum(-1, keepdim=True) > 0, x, x[:1]) for x in (p, q))  # replicates that drew nobody
    n, m = p[0].sum(-1), q[0].sum(-1)
    valid = (n > 0) & (m > 0)
    prior = torch.full_like(p[0], alpha) if binary else alpha * (p[0] + q[0] > 0).double()
    prior = torch.where(valid[:, None], prior, 1.0)  # so that attributes without data stay finite until they are masked

    def smooth(counts: Tensor, prior: Tensor = prior) -> Tensor:
        return (counts + prior) / (counts + prior).sum(-1, keepdim=True)

    def measure(a: Tensor, b: Tensor) -> Tensor:
        return _with_sum(_divergences(a, b), valid)

    shares_p, shares_q = smooth(p[0]), smooth(q[0])
    plugin, draws = measure(shares_p, shares_q), measure(smooth(p[1:]), smooth(q[1:]))
    # What sampling adds, and what smoothing takes: the same step once more, from the estimate as if it were the truth.
    smoothed_twice = measure(smooth(n[:, None] * shares_p), smooth(m[:, None] * shares_q))
    value = plugin - (draws.mean(0) - plugin) - (smoothed_twice - plugin)
    half = Z95 * draws.std(0)
    low, high = value - half, value + half
    if binary:
        root_low, root_high = _root_interval(p, q, shares_p, shares_q, alpha, seed)
        low[:-1, :3], high[:-1, :3] = root_low, root_high
    low[:, :3], high[:, :3] = low[:, :3].clamp_min(0), high[:, :3].clamp_min(0)
    null, null_high = _null(p, q, smooth, measure)
    rows = torch.stack((value, low, high, plugin, null, null_high))
    keep = torch.cat((valid, valid.any()[None]))[:, None]
    return torch.where(keep, rows, torch.nan)


def _root_interval(p: Tensor, q: Tensor, p0: Tensor, q0: Tensor, alpha: float, seed: int) -> tuple[Tensor, Tensor]:
    """Intervals of the binary divergences [K, 3] from signed roots ±√D, which are nearly normal, also at D = 0.

    The pseudo-counts are resampled too, as Gamma(α) weights: a rate of 0 then varies as Jeffreys' posterior does.
    """
    gamma = np.random.default_rng(seed).gamma(alpha, size=(2, *p[1:].shape))
    gamma = np.maximum(gamma, np.finfo(np.float64).tiny)  # where α is small they underflow
    noisy = [counts[1:] + torch.from_numpy(g).to(counts) for counts, g in zip((p, q), gamma, strict=True)]

    def root(a: Tensor, b: Tensor) -> Tensor:
        return (a[..., 1] - b[..., 1]).sign()[..., None] * _divergences(a, b)[..., :3].sqrt()

    centre = root(p0, q0)
    half = Z95 * root(*(x / x.sum(-1, keepdim=True) for x in noisy)).std(0)
    ends = torch.stack((centre - half, centre + half))
    low = torch.where(ends[0] * ends[1] <= 0, 0.0, ends.square().min(0).values)
    return low, ends.square().max(0).values


def _null(
    p: Tensor, q: Tensor, smooth: Callable[[Tensor], Tensor], measure: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean of the plug-in, and 95 % point of the corrected value, if both sets came from their pooled distribution.

    Each replicate moves the pooled shares as far as it moved its set's own, on the scale of square roots, where the
    variance of a share does not depend on the share: sample sizes and the clustering by identity are kept.
    """
    pooled = (p[0] + q[0]) / (p[0] + q[0]).sum(-1, keepdim=True)

    def moved(counts: Tensor) -> Tensor:
        roots = (counts / counts.sum(-1, keepdim=True)).nan_to_num(0).sqrt()
        share = (pooled.sqrt() + roots[1:] - roots[0]).clamp_min(0).square()
        share = share / share.sum(-1, keepdim=True)
        return smooth((counts[0].sum(-1, keepdim=True) * share).nan_to_num(0))

    draws = measure(moved(p), moved(q))
    mean = draws.mean(0)
    excess = draws - mean
    excess = torch.cat((excess[..., :3], excess[..., 3:].abs()), dim=-1)
    return mean, excess.quantile(0.95, dim=0)


# --- tables of divergences ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KLTable:
    """How two sets differ, attribute by attribute: large KL(P‖Q) where Q lacks what P has, and the reverse.

    Attributes:
        p_name, q_name: of the sets.
        names: the K attributes; for a joint comparison, one name that describes the cells.
        noisy: {attribute: why its labels are weak}: its divergence is label noise in good part.
        on: "labels", "probabilities" or "joint".
        kl_pq, kl_qp: KL(P‖Q) and KL(Q‖P).
        js: Jensen-Shannon divergence.
        asymmetry: KL(P‖Q) − KL(Q‖P). Positive: P explains Q better than Q explains P.
        total: each of the four summed over the attributes that have data in both sets.
        rate_p, rate_q: rates as labelled [K]; NaN for a joint comparison.
        undefined_p, undefined_q: undefined labels [K] (joint: rows in no cell).
        settings: smoothing, bins or cells, replicates, sizes of the sets, as a sentence each.
    """

    p_name: str
    q_name: str
    names: tuple[str, ...]
    noisy: Mapping[str, str]
    on: On
    kl_pq: Divergence
    kl_qp: Divergence
    js: Divergence
    asymmetry: Divergence
    total: Mapping[str, Divergence]
    rate_p: Tensor
    rate_q: Tensor
    undefined_p: Tensor
    undefined_q: Tensor
    settings: tuple[str, ...]

    @property
    def mean(self) -> dict[str, Divergence]:
        """`total` over the number of attributes that have data in both sets."""
        n = int((~self.kl_pq.value.isnan()).sum())
        return {kind: Divergence(*(x / n for x in sums)) for kind, sums in self.total.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: the sets, settings, {attribute: {column: number}}, and the sum and mean of each divergence."""
        attributes: dict[str, dict[str, Any]] = {}
        for k, name in enumerate(self.names):
            row: dict[str, Any] = {x: float(getattr(self, x)[k]) for x in _RATES}
            for kind in _KINDS:
                row |= _columns(kind, Divergence(*(x[k] for x in getattr(self, kind))))
            attributes[name] = row | {"noisy": self.noisy.get(name, "")}
        ends = {"sum": self.total, "mean": self.mean}
        return {
            "p": self.p_name,
            "q": self.q_name,
            "on": self.on,
            "settings": list(self.settings),
            "attributes": attributes,
            **{k: {c: x for kind, d in v.items() for c, x in _columns(kind, d).items()} for k, v in ends.items()},
        }

    def to_frame(self) -> Any:
        """A pandas frame with a row for each attribute."""
        return attribute_frame(self.to_dict()["attributes"])

    def __str__(self) -> str:
        size = torch.maximum(self.kl_pq.value, self.kl_qp.value).nan_to_num(-math.inf)
        rows = []
        for k in size.argsort(descending=True, stable=True).tolist():
            divergences = [Divergence(*(x[k] for x in getattr(self, kind))) for kind in _KINDS]
            rates = [f"{100 * float(r[k]):.1f} %" if r[k] == r[k] else "–" for r in (self.rate_p, self.rate_q)]
            undefined = f"{float(self.undefined_p[k]):.0f}, {float(self.undefined_q[k]):.0f}"
            rows.append([marked(self.names[k], self.noisy), *rates, *_texts(divergences), undefined])
        if len(self.names) > 1:
            rows.append(["**mean**", "", "", *_texts([self.mean[kind] for kind in _KINDS]), ""])
        header = ["attribute", "rate in P", "rate in Q", "KL(P‖Q)", "KL(Q‖P)", "JS", "KL(P‖Q) − KL(Q‖P)", "undefined"]
        sets = "".join(f"{x}: {name}. " for x, name in (("P", self.p_name), ("Q", self.q_name)) if name != x)
        sets += "Nats [95 %]; ° no more than equal distributions often give."
        return "\n".join([sets, "", markdown_table(header, rows), "", *self.settings, *noise_note(self.noisy)])


_RATES = ("rate_p", "rate_q", "undefined_p", "undefined_q")


def _columns(kind: str, divergence: Divergence) -> dict[str, float]:
    ends = ("", "_low", "_high", "_plugin", "_null", "_null_high")
    return {kind + end: float(x) for end, x in zip(ends, divergence, strict=True)}


def _texts(divergences: Sequence[Divergence]) -> list[str]:
    """One text for each of `_KINDS`."""
    return [divergence_text(d, kind == "asymmetry") for d, kind in zip(divergences, _KINDS, strict=True)]


def divergence_text(d: Divergence, signed: bool = False) -> str:
    """One divergence as "0.0123 [0.0100, 0.0150]", with ° if it is no more than equal distributions often give.

    Args:
        d: scalars.
        signed: it is an asymmetry. Others are not negative: a corrected value below 0 is written as 0.0000.
    """
    value, low, high = (round(float(x), 4) + 0.0 for x in (d.value, d.low, d.high))  # + 0.0: no "-0.0000"
    if math.isnan(value):
        return "–"
    interval = "" if math.isnan(low) else f" [{low:.4f}, {high:.4f}]"
    value, exact = (value, abs(float(d.value))) if signed else (max(value, 0.0), float(d.value))
    return f"{value:.4f}{interval}" + (" °" if exact <= float(d.null_high) + 1e-12 else "")


def kl_table(
    p: Any,
    q: Any,
    *,
    on: On = "labels",
    attributes: Sequence[str] | None = None,
    alpha: float = 0.5,
    bins: int = 20,
    cells: int | Sequence[str] | Cells = 32,
    threshold: float | Tensor = 0.5,
    min_reliability: float | None = None,
    replicates: int = 200,
    seed: int = 0,
    paired: bool = False,
) -> KLTable:
    """Kullback-Leibler divergence of two annotated sets, in both directions, and Jensen-Shannon.

    Per attribute, KL(P‖Q) = p·ln(p/q) + (1 − p)·ln((1 − p)/(1 − q)) of the rates among defined labels; on
    "probabilities", of their histograms; "joint", of the shares of cells in the space of all attributes. Shares are
    smoothed: α is added to each cell. Neto et al. 2024 state no formula, smoothing or bins: these are ours.

    `plugin` is that formula and no more: what a hand calculation gives. It is too large in small samples (by about
    (C − 1)/2·(1/n + 1/m) for C cells, more if images of one identity are alike); `value` is corrected by the bootstrap
    over identities, and `null_high` says what a corrected 0 looks like. Intervals of one binary attribute come from the
    normal range of signed roots, the others from value ± 1.96 bootstrap standard deviations.

    Args:
        p, q: whatever `as_annotations` reads; or `AttributeCounts`, then of different streams unless paired, counted
            with what `on` needs, and the settings of counting here do not apply.
        on: what is compared.
        attributes: some that both sets have, found by name; by default all, which then have to be the same.
        alpha: pseudo-count α > 0 of each cell; ½ is Jeffreys' and Krichevsky & Trofimov's, 1 Laplace's.
        bins: equal bins of [0, 1] for "probabilities".
        cells: for "joint": a number of k-means cells (fitted on both sets, `fit_cells`), the names of a few attributes
            whose combinations are the cells, or `Cells`.
        threshold, min_reliability, replicates, seed: of `count_attributes`.
        paired: identities of one name are the same people in both sets, and are resampled together. Only then is the
            divergence of a set from itself exactly 0; otherwise two sets are taken to be independent samples.

    Warns if the sets are known to have been annotated by different classifiers, and says so in `settings`.

    Raises:
        DataError: different attributes, empty sets, no attribute with labels in both, or settings out of range.
    """
    options = {"threshold": threshold, "min_reliability": min_reliability, "replicates": replicates, "seed": seed}
    counts, partition = _count_all([p, q], on, attributes, bins, cells, 0 if paired else None, options)
    return _table(counts[0], counts[1], on, attributes, alpha, partition, paired)


def _count_all(
    sets: Sequence[Any],
    on: On,
    attributes: Sequence[str] | None,
    bins: int,
    cells: int | Sequence[str] | Cells,
    stream: int | None,
    options: dict[str, Any],
) -> tuple[list[AttributeCounts], Cells | None]:
    """Counts of every set, with streams 0, 1, … or all the same one; and the joint cells, if there are any."""
    if on not in get_args(On):
        raise DataError("unknown comparison", expected=", ".join(get_args(On)), got=repr(on))
    whole = {"bins": bins, "replicates": options["replicates"], "seed": options["seed"]}
    if not all(isinstance(x, Integral) for x in whole.values()):
        raise DataError("settings are whole numbers", expected="bins=20, replicates=200, seed=0, say", got=whole)
    if on == "probabilities" and bins < 2:
        raise DataError("one bin tells nothing apart", expected="bins ≥ 2", got=bins)
    if on == "joint" and attributes is not None:
        raise DataError("joint cells name their attributes", fix="cells=['Male', 'Young'] instead of attributes=")
    if options["replicates"] < 2:
        raise DataError("too few replicates for an interval", expected="200, say", got=options["replicates"])
    opened = [s if isinstance(s, AttributeCounts) else as_annotations(s) for s in sets]
    if on == "joint":
        partition = _partition(opened, cells, options["seed"])
    else:
        partition = None
        _common_names([s.schema for s in opened], attributes)  # before anything is counted
    bins = bins if on == "probabilities" else 0
    counts = [
        s
        if isinstance(s, AttributeCounts)
        else count_attributes(s, bins=bins, cells=partition, stream=i if stream is None else stream, **options)
        for i, s in enumerate(opened)
    ]
    if len({c.classifier for c in counts if c.classifier}) > 1:
        warnings.warn("the sets were annotated by different classifiers, which may differ as much", stacklevel=3)
    return counts, partition


def _partition(opened: Sequence[Any], cells: int | Sequence[str] | Cells, seed: int) -> Cells:
    """Joint cells: those given, those of some attributes, or k-means cells of all sets."""
    if isinstance(cells, Cells):
        return cells
    if any(isinstance(s, AttributeCounts) for s in opened):
        raise DataError("counted sets have their cells", fix="pass the Cells they were counted with")
    if isinstance(cells, Integral):
        return fit_cells(opened, int(cells), seed=seed)
    if not isinstance(cells, Sequence) or not all(isinstance(name, str) for name in cells):
        raise DataError("these are no cells", expected="a number, names of attributes, or Cells", got=cells)
    return product_cells(cells, opened[0].schema)


def _table(
    p: AttributeCounts,
    q: AttributeCounts,
    on: On,
    attributes: Sequence[str] | None,
    alpha: float,
    partition: Cells | None,
    paired: bool,
) -> KLTable:
    _check_table(p, q, alpha, paired)
    p, q = (dataclasses.replace(c, name=c.name or x) for c, x in ((p, "P"), (q, "Q")))
    counts = [_cell_counts(c, on, partition) for c in (p, q)]
    flagged = {**_noisy(q, p.schema), **p.noisy}
    if partition is not None:
        names: tuple[str, ...] = (str(partition),)
        noisy = {a: why for a, why in flagged.items() if a in partition.attributes}
        rates = [torch.full((1,), torch.nan, dtype=torch.float64)] * 2
    else:
        names = _common_names([p.schema, q.schema], attributes)
        columns = [[c.schema.index(a) for a in names] for c in (p, q)]
        counts = [x[:, k] for x, k in zip(counts, columns, strict=True)]
        noisy = {a: why for a, why in flagged.items() if a in names}
        rates = [(c.positives[0] / c.defined[0]).cpu()[k] for c, k in zip((p, q), columns, strict=True)]
    known = [x[0].sum(-1) for x in counts]
    if not bool(((known[0] > 0) & (known[1] > 0)).any()):
        raise DataError("nothing to compare", expected="an attribute with defined labels in both sets", got="none")
    rows = _compare(counts[0], counts[1], alpha, on == "labels", p.seed)
    few = [c.name for c in (p, q) if float(c.identities()) < 2]
    if few:  # its sampling error cannot be known
        low, high, null, null_high = (Divergence._fields.index(x) for x in ("low", "high", "null", "null_high"))
        rows[[low, high, null, null_high]] = torch.nan
    kl_pq, kl_qp, js, asymmetry = (Divergence(*rows[:, :-1, i]) for i in range(len(_KINDS)))
    total = {kind: Divergence(*rows[:, -1, i]) for i, kind in enumerate(_KINDS)}
    return KLTable(
        p.name,
        q.name,
        names,
        noisy,
        on,
        kl_pq,
        kl_qp,
        js,
        asymmetry,
        total,
        rate_p=rates[0],
        rate_q=rates[1],
        undefined_p=p.rows - known[0],
        undefined_q=q.rows - known[1],
        settings=_settings(p, q, on, alpha, counts[0].shape[-1], partition, paired, few),
    )


def _check_table(p: AttributeCounts, q: AttributeCounts, alpha: float, paired: bool) -> None:
    if not isinstance(alpha, Real) or not 0 < alpha < math.inf:
        raise DataError("shares are smoothed", expected="alpha > 0, for example 0.5", got=alpha)
    if p.replicates != q.replicates or p.replicates < 2:
        got = [p.replicates, q.replicates]
        raise DataError("replicates do not fit", expected="two or more, as many for both sets", got=got)
    if not paired and (p.seed, p.stream) == (q.seed, q.stream):
        fix = "count_attributes(…, stream=1) for one of them; paired=True if equal names are the same people"
        raise DataError("both sets were resampled with the same weights", got=f"stream {p.stream} twice", fix=fix)


def _noisy(counts: AttributeCounts, schema: AttributeSchema) -> dict[str, str]:
    """Its weak attributes, as another schema spells them."""
    return {schema.names[schema.index(a)]: why for a, why in counts.noisy.items() if a in schema}


def _cell_counts(counts: AttributeCounts, on: On, partition: Cells | None) -> Tensor:
    """What is compared, as counts of cells [1 + R, K, C], on the CPU."""
    if on == "labels":
        return torch.stack((counts.defined - counts.positives, counts.positives), dim=-1).cpu()
    if on == "probabilities":
        if counts.bins.shape[2] < 2:
            raise DataError("no histograms were counted", fix="count_attributes(…, bins=20)")
        return counts.bins.cpu()
    if partition is None or counts.partition != partition.fingerprint:
        got = f"{counts.cells.shape[1]} other cells" if counts.partition else "none"
        fix = "count_attributes(…, cells=…) with the Cells that are passed here"
        raise DataError(f"{counts.name or 'a set'} has no counts of {partition}", got=got, fix=fix)
    return counts.cells.cpu().unsqueeze(1)


def _settings(
    p: AttributeCounts,
    q: AttributeCounts,
    on: On,
    alpha: float,
    cells: int,
    partition: Cells | None,
    paired: bool,
    few: Sequence[str],
) -> tuple[str, ...]:
    what = {
        "labels": "Bernoulli KL of the rates among defined labels",
        "probabilities": f"KL of histograms of the probabilities, {cells} bins",
        "joint": f"Joint KL over {partition}",
    }[on]
    notes = [
        f"{what}; α = {alpha:g} added to each cell; corrected for small samples; {p.replicates} bootstrap replicates "
        f"over identities{', paired by name' if paired else ''}.",
        *_rules(p, q),
        size_note(p),
        size_note(q),
    ]
    if p.classifier and q.classifier and p.classifier != q.classifier:
        sets = "P and Q" if (p.name, q.name) == ("P", "Q") else f"P and Q ({p.name}, {q.name})"
        notes.append(f"{sets} were annotated by different classifiers: what differs may be the classifiers.")
    return (*notes, *(f"No intervals, no °, and little correction: {name} has one identity." for name in few))


def _rules(p: AttributeCounts, q: AttributeCounts) -> list[str]:
    """How labels were made of probabilities, a sentence for both sets or for each; none where it is not known."""
    if p.rule == q.rule:
        return [f"Labels and rates: present where {p.rule}."] if p.rule else []
    return [f"Labels and rates of {c.name}: present where {c.rule}." for c in (p, q) if c.rule]


# --- matrix ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KLMatrix:
    """KL divergence of every ordered pair of sets: entry [i, j] is KL(set i‖set j), large where set j lacks what i has.

    Attributes:
        names: the S sets.
        statistic: "mean" or "sum" over attributes; a joint comparison has one.
        on: see `kl_table`.
        kl: `Divergence` of float64 [S, S]; 0 on the diagonal.
        settings: a sentence each.
    """

    names: tuple[str, ...]
    statistic: str
    on: On
    kl: Divergence
    settings: tuple[str, ...]

    def to_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """{P: {Q: {kl, kl_low, kl_high, …}}}, without the diagonal."""
        return {
            a: {b: _columns("kl", Divergence(*(x[i, j] for x in self.kl))) for j, b in enumerate(self.names) if i != j}
            for i, a in enumerate(self.names)
        }

    def to_frame(self) -> Any:
        """A pandas frame with a row for each ordered pair."""
        rows = [{"p": a, "q": b, **columns} for a, row in self.to_dict().items() for b, columns in row.items()]
        return to_frame({k: [row[k] for row in rows] for k in rows[0]})

    def __str__(self) -> str:
        rows = [
            [
                f"P = {a}",
                *(
                    "–" if i == j else divergence_text(Divergence(*(x[i, j] for x in self.kl)))
                    for j in range(len(self.names))
                ),
            ]
            for i, a in enumerate(self.names)
        ]
        table = markdown_table([f"KL(P‖Q), {self.statistic}", *(f"Q = {b}" for b in self.names)], rows)
        return "\n".join([table, "", *self.settings])


def kl_matrix(
    sets: Mapping[str, Any],
    *,
    on: On = "labels",
    statistic: Literal["mean", "sum"] = "mean",
    attributes: Sequence[str] | None = None,
    alpha: float = 0.5,
    bins: int = 20,
    cells: int | Sequence[str] | Cells = 32,
    threshold: float | Tensor = 0.5,
    min_reliability: float | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> KLMatrix:
    """KL divergence of every ordered pair of any number of sets. Each set is read once (joint: twice).

    Args:
        sets: {name: whatever `as_annotations` reads, or `AttributeCounts` of different streams}, two or more.
        statistic: over attributes.
        on, attributes, alpha, bins, cells, threshold, min_reliability, replicates, seed: of `kl_table`.
    """
    if not isinstance(sets, Mapping):
        raise DataError("the sets have no names", expected="{name: set}", got=type(sets).__name__)
    if len(sets) < 2 or statistic not in ("mean", "sum"):
        raise DataError("no pairs", expected="two sets or more, mean or sum", got=f"{len(sets)} sets, {statistic!r}")
    options = {"threshold": threshold, "min_reliability": min_reliability, "replicates": replicates, "seed": seed}
    counts, partition = _count_all(list(sets.values()), on, attributes, bins, cells, None, options)
    counts = [dataclasses.replace(c, name=name) for c, name in zip(counts, sets, strict=True)]
    kl = torch.zeros(6, len(sets), len(sets), dtype=torch.float64)
    notes: dict[str, None] = {}  # of all pairs, each once, in order
    for i, p in enumerate(counts):
        for j, q in enumerate(counts[:i]):
            table = _table(p, q, on, attributes, alpha, partition, paired=False)
            values = table.total if statistic == "sum" else table.mean
            kl[:, i, j], kl[:, j, i] = torch.stack(values["kl_pq"]), torch.stack(values["kl_qp"])
            notes |= dict.fromkeys(table.settings)
    return KLMatrix(tuple(sets), "joint" if on == "joint" else statistic, on, Divergence(*kl), tuple(notes))
