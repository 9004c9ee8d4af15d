"""How two annotated sets of faces differ: attribute rates, Kullback-Leibler divergence in both directions, consistency.

Neto et al. 2024 (arXiv 2404.15234) annotate real and synthetic sets with a massive attribute classifier, compare the
distributions of the attributes by KL divergence, and find that real samples suffice to explain the synthetic
distribution but not the reverse. Their abstract says no more: formula, smoothing, binarisation and what consistency
means were not found. The definitions here are this library's own.

Everything streams: `AttributeCounts` sees each row once and keeps sums of fixed size. Intervals come from a Poisson
bootstrap over identities (Hanley & MacGibbon 2006; Chamandy et al. 2012): replicate r counts identity i
Poisson(1) times, a number drawn from (seed, r, hash of i), so that order, batches and shards change nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from .annotation import AnnotationFolder, Annotations, AttributeSchema, as_annotations
from .artifacts import Artifact, has_values
from .errors import DataError, ShapeError
from .latents import philox
from .reports import _Z95, markdown_table, share_text, wilson_interval
from .tables import to_frame

On = Literal["labels", "probabilities", "joint"]

_ROWS = 4096  # counted at a time: their weights and one-hot bins stay in a CPU's cache
_SKETCH = 1 << 16  # distinct identities that are counted exactly
_NOTHING = torch.iinfo(torch.int64).max
# P(Poisson(1) ≤ k)·2¹⁶, rounded: a replicate's weight is the number of these that 16 random bits reach. The mean is
# right to 1e-5, and two weights for each random word halve the cost of the bootstrap.
_POISSON = [round(2**16 * sum(math.exp(-1) / math.factorial(i) for i in range(k + 1))) for k in range(8)]


# --- counting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False, eq=False)
class AttributeCounts(Artifact):
    """Sums over an annotated set, with R bootstrap replicates of each: `update`, `merge`, `compute`.

    All sums are whole numbers, so merged shards equal the counts of the whole set exactly. The first row of each tensor
    is the set itself, the other R are replicates.

    Attributes:
        names: the K attributes; `noisy`: {attribute: why its labels are weak}.
        positives, defined: rows labelled as having the attribute, and as having it or not, float64 [1 + R, K].
        bins: histogram of each attribute's probability, equal bins of [0, 1], float64 [1 + R, K, B]; B may be 0.
        cells: rows in each joint cell, float64 [1 + R, C]; C may be 0.
        sketch: the smallest identity hashes, sorted, int64, then 2⁶³ − 1 in places left over; how many identities there
            are is read off them.
        rows: rows seen.
        seed, stream: of the replicates. Sets that are compared need different streams, unless identities of one name
            are the same people.
        spans: None if identities are known; otherwise each row counts as its own identity, drawn by its number, and
            these [start, stop) are the numbers seen.
        name: of the set.
    """

    kind: ClassVar[str] = "attribute_counts"

    names: tuple[str, ...]
    noisy: Mapping[str, str]
    positives: Tensor
    defined: Tensor
    bins: Tensor
    cells: Tensor
    sketch: Tensor
    rows: int = 0
    seed: int = 0
    stream: int = 0
    spans: tuple[tuple[int, int], ...] | None = None
    name: str = ""

    @classmethod
    def empty(
        cls,
        names: Sequence[str],
        *,
        noisy: Mapping[str, str] | None = None,
        replicates: int = 200,
        bins: int = 0,
        cells: int = 0,
        seed: int = 0,
        stream: int = 0,
        identities: bool = True,
        name: str = "",
        device: torch.device | str | None = None,
    ) -> AttributeCounts:
        """Counts of nothing.

        Args:
            names: K attributes, each once.
            noisy: {attribute: why its labels are weak}.
            replicates: R ≥ 0; without any there are no intervals.
            bins: of the probabilities; 0: not counted.
            cells: joint cells; 0: not counted.
            seed, stream: of the replicates, 0 ≤ seed < 2⁶⁴, 0 ≤ stream < 2³².
            identities: whether rows come with identities; without, each row is its own.
            name: of the set.
            device: where to count.
        """
        if not names or len(set(names)) != len(names):
            raise DataError("attributes need names", expected="one or more, each once", got=list(names))
        if min(replicates, bins, cells) < 0 or not 0 <= seed < 2**64 or not 0 <= stream < 2**32:
            got = f"replicates={replicates}, bins={bins}, cells={cells}, seed={seed}, stream={stream}"
            raise DataError("out of range", expected="numbers ≥ 0, seed < 2⁶⁴, stream < 2³²", got=got)
        k, r = len(names), 1 + replicates
        zero = torch.zeros(r, k, dtype=torch.float64, device=device)
        return cls(
            names=tuple(names),
            noisy={a: why for a, why in (noisy or {}).items() if a in names},
            positives=zero,
            defined=zero,
            bins=zero.new_zeros(r, k, bins),
            cells=zero.new_zeros(r, cells),
            sketch=torch.zeros(0, dtype=torch.int64, device=device),
            seed=seed,
            stream=stream,
            spans=None if identities else (),
            name=name,
        )

    @property
    def replicates(self) -> int:
        """R."""
        return len(self.positives) - 1

    def __repr__(self) -> str:
        parts = f"{self.rows} rows, {len(self.names)} attributes, {self.replicates} replicates"
        return f"AttributeCounts({self.name + ': ' if self.name else ''}{parts})"

    def update(
        self,
        labels: Tensor,
        keys: Tensor,
        *,
        unit: Tensor | None = None,
        probabilities: Tensor | None = None,
        cells: Tensor | None = None,
    ) -> AttributeCounts:
        """The counts with more rows in them.

        Args:
            labels: [n, K] in {-1, 0, 1}, 0 for undefined.
            keys: int64 [u] ≥ 0, a number for each identity among the rows, such as `identity_keys` makes of names;
                for a set without identities the rows' own numbers in the set [n], in sequence.
            unit: int64 [n], which of the keys each row has; None: row i has key i.
            probabilities: [n, K] in [0, 1], needed where bins are counted; ignored where the label is undefined.
            cells: int64 [n], −1 for none; needed where cells are counted.

        Raises:
            ShapeError, DataError: shapes or values that do not fit, or row numbers that were counted before.
        """
        n, k = len(labels), len(self.names)
        self._check_update(labels, keys, unit, probabilities, cells)
        u = len(keys)
        unit = torch.arange(n, device=labels.device) if unit is None else unit
        # Products of small whole numbers are exact in float32 up to 2²⁴; weights are at most 8.
        zero = torch.zeros(1, dtype=torch.float32 if n <= 2**20 else torch.float64, device=labels.device)
        marks = torch.cat((labels > 0, labels != 0), dim=1).to(zero.dtype)
        columns = [zero.new_zeros(u, 2 * k).index_add_(0, unit, marks)]
        b, c = self.bins.shape[2], self.cells.shape[1]
        if probabilities is not None and b:
            bin_ = (torch.nan_to_num(probabilities) * b).long().clamp(0, b - 1)
            place = (unit[:, None] * k + torch.arange(k, device=unit.device)) * b + bin_
            sums = zero.new_zeros(u * k * b).scatter_add_(0, place.flatten(), marks[:, k:].flatten())
            columns.append(sums.view(u, k * b))
        if cells is not None and c:
            place = unit * c + cells.clamp_min(0)
            sums = zero.new_zeros(u * c).scatter_add_(0, place, (cells >= 0).to(zero.dtype))
            columns.append(sums.view(u, c))
        weights = torch.cat((torch.ones(1, u, device=keys.device), self._weights(keys))).to(zero.dtype)
        total = (weights @ torch.cat(columns, dim=1)).double()
        positives, defined, *rest = total.split([k, k, *([k * b] if b else []), *([c] if c else [])], dim=1)
        return dataclasses.replace(
            self,
            positives=self.positives + positives,
            defined=self.defined + defined,
            bins=self.bins + rest[0].view(-1, k, b) if b else self.bins,
            cells=self.cells + rest[-1] if c else self.cells,
            sketch=self._seen(keys),
            rows=self.rows + n,
            spans=None if self.spans is None else _joined(self.spans, _span(keys, self.spans, n)),
        )

    def merge(self, other: AttributeCounts) -> AttributeCounts:
        """The counts of two shards of one set together: what one pass over both would have counted, to the last digit.

        Raises:
            DataError: counts of other attributes, bins, cells, seeds or streams, or of the same rows.
        """
        mine, yours = ([*c._layout(), c.seed, c.stream, c.spans is None] for c in (self, other))
        if mine != yours:
            raise DataError("these are not shards of one set", expected=mine, got=yours)
        names = ("positives", "defined", "bins", "cells")
        return dataclasses.replace(
            self,
            **{x: getattr(self, x) + getattr(other, x).to(self.positives) for x in names},
            sketch=self._seen(other.sketch.to(self.sketch)),
            rows=self.rows + other.rows,
            spans=None if self.spans is None else _joined(self.spans, other.spans or ()),
        )

    def compute(self) -> AttributeRates:
        """Share of each attribute among the rows where it is defined, with 95 % intervals over identities.

        The interval is Wilson's at the effective sample size n/deff; the design effect deff (Kish 1965) is the
        bootstrap's variance of the share over that of n independent rows, not below 1. Shares of 0 and 1, which a
        bootstrap cannot vary, get as many effective rows as there are identities.
        """
        positives, defined = self.positives, self.defined
        rate = (positives / defined)[0]
        identities = self.identities()
        n = defined[0]
        if self.replicates < 2:
            return AttributeRates(self, rate, rate * torch.nan, rate * torch.nan, n, self.rows - n, identities)
        few = (identities / (identities - 1)).where(identities > 1, torch.nan)  # a bootstrap of I is short by this
        share = (positives[1:] / defined[1:]).nan_to_num(0.5)
        variance = share.var(0) * few
        simple = rate * (1 - rate)
        effective = torch.where(simple > 0, torch.minimum(n, simple / variance), torch.minimum(n, identities))
        low, high = wilson_interval(rate * effective, effective)
        unknown = (n == 0) | ~(identities > 1)
        low, high = (x.masked_fill(unknown, torch.nan) for x in (low, high))
        return AttributeRates(self, rate, low, high, n, self.rows - n, identities)

    def identities(self) -> Tensor:
        """How many identities were seen, a float64 scalar: exact up to 65,536, about ±0.4 % beyond (k minimum values).

        Without identities, the rows.
        """
        if self.spans is not None:
            return torch.tensor(float(self.rows), dtype=torch.float64, device=self.positives.device)
        # Bar-Yossef et al. 2002: of N uniform hashes the k-th smallest is near k/N.
        exact = (self.sketch != _NOTHING).sum().double()
        if len(self.sketch) < _SKETCH:
            return exact
        return torch.where(exact < _SKETCH, exact, (_SKETCH - 1) * 2.0**63 / self.sketch[-1])

    def _weights(self, keys: Tensor) -> Tensor:
        """Poisson(1) weights [R, u] that depend on (seed, stream, replicate, key) alone."""
        blocks = -(-self.replicates // 8)
        key = keys.long().unsqueeze(0).expand(blocks, -1)
        block = torch.arange(blocks, device=keys.device).unsqueeze(1).expand_as(key)
        mask = 0xFFFFFFFF
        counter = (block, key & mask, key >> 32, torch.full_like(key, self.stream))
        words = torch.stack(philox(counter, (self.seed & mask, self.seed >> 32)), dim=1)
        halves = torch.stack((words & 0xFFFF, words >> 16), dim=1)  # [blocks, 2, 4, u]
        steps = torch.tensor(_POISSON, device=keys.device)
        weights = torch.bucketize(halves.view(blocks * 8, len(keys))[: self.replicates], steps, right=True)
        return weights.float()

    def _seen(self, keys: Tensor) -> Tensor:
        """The sketch with more keys in it: the smallest ones, each once, in order."""
        if self.spans is not None:
            return self.sketch
        both = torch.cat((self.sketch, keys)).sort().values
        again = torch.cat((both.new_zeros(1, dtype=torch.bool), both[1:] == both[:-1]))
        return both.masked_fill(again, _NOTHING).sort().values[:_SKETCH]

    def _layout(self) -> list[Any]:
        return [list(self.names), self.replicates, self.bins.shape[2], self.cells.shape[1]]

    def _check_update(
        self, labels: Tensor, keys: Tensor, unit: Tensor | None, probabilities: Tensor | None, cells: Tensor | None
    ) -> None:
        k = len(self.names)
        if labels.ndim != 2 or labels.shape[1] != k or labels.is_floating_point():
            raise ShapeError(
                "labels do not fit", expected=f"integers [n, {k}]", got=f"{list(labels.shape)} {labels.dtype}"
            )
        wanted = {"keys": (keys, len(keys) if unit is not None else len(labels))}
        if unit is not None:
            wanted["unit"] = (unit, len(labels))
        if self.cells.shape[1]:
            wanted["cells"] = (cells if cells is not None else keys[:0].float(), len(labels))
        for what, (x, n) in wanted.items():
            if list(x.shape) != [n] or x.is_floating_point():
                raise ShapeError(f"{what} do not fit", expected=f"integers [{n}]", got=f"{list(x.shape)} {x.dtype}")
        if self.bins.shape[2] and (probabilities is None or probabilities.shape != labels.shape):
            got = None if probabilities is None else list(probabilities.shape)
            raise ShapeError("bins count probabilities", expected=list(labels.shape), got=got)
        if self.spans is not None and unit is not None:
            raise DataError("rows without identities have no unit", fix="AttributeCounts.empty(…, identities=True)")
        if not has_values(labels):
            return
        if len(labels) and int(labels.abs().max()) > 1:
            raise DataError("labels are -1, 0 or 1", got=sorted(labels.unique().tolist()))
        if probabilities is not None:
            given = torch.where(labels != 0, probabilities, 0.5)
            if not bool(((given >= 0) & (given <= 1)).all()):
                raise DataError("probabilities are missing or out of range", expected="0 … 1 where a label is defined")
        if unit is not None and len(unit) and not 0 <= int(unit.min()) <= int(unit.max()) < len(keys):
            raise DataError("unit points outside the keys", expected=f"0 … {len(keys) - 1}", got=unit.unique().tolist())
        if len(keys) and int(keys.min()) < 0:
            raise DataError("keys are not negative", got=int(keys.min()))
        if cells is not None and len(cells) and self.cells.shape[1] and int(cells.max()) >= self.cells.shape[1]:
            raise DataError("no such cell", expected=f"-1 … {self.cells.shape[1] - 1}", got=int(cells.max()))


def _span(keys: Tensor, spans: tuple[tuple[int, int], ...], n: int) -> tuple[tuple[int, int], ...]:
    """Numbers of rows without identities: a sequence, by its ends."""
    if n == 0:
        return ()
    if not has_values(keys):  # nothing to check: as if the next rows
        start = spans[-1][1] if spans else 0
        return ((start, start + n),)
    start = int(keys[0])
    if not torch.equal(keys, torch.arange(start, start + n, device=keys.device)):
        raise DataError("rows without identities are numbered in sequence", expected=f"{start} … {start + n - 1}")
    return ((start, start + n),)


def _joined(a: tuple[tuple[int, int], ...], b: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Two sets of disjoint spans as one."""
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(a + b):
        if joined and start < joined[-1][1]:
            raise DataError(
                "these rows were counted already",
                expected=f"rows from {joined[-1][1]} on",
                got=f"rows {start} … {stop - 1}",
                fix="give shards without identities their first_row=, or the rows identities",
            )
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def identity_keys(identities: np.ndarray) -> tuple[Tensor, Tensor]:
    """Numbers for identities, the same in every process: 63 bits of BLAKE2b of each distinct name.

    Two of 10⁶ names share a number with probability 5e-8.

    Args:
        identities: names [n].

    Returns:
        keys int64 [u], and which of them each row has, int64 [n].

    Raises:
        DataError: names that are empty.
    """
    names, unit = np.unique(np.asarray(identities).astype(str), return_inverse=True)
    if len(names) and names[0] == "":
        raise DataError(
            "some rows have no identity",
            expected="a name for each row, or no identities at all",
            got=f"{int((unit == 0).sum())} empty names",
            fix="give such rows names of their own, or leave the identities out",
        )
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names.tolist())
    keys = np.array([int.from_bytes(d, "little") >> 1 for d in digests], dtype=np.int64)
    return torch.from_numpy(keys), torch.from_numpy(unit.reshape(-1).astype(np.int64))


def count_attributes(
    source: Any,
    *,
    threshold: float | Tensor = 0.5,
    min_reliability: float | None = None,
    replicates: int = 200,
    bins: int = 0,
    cells: Cells | None = None,
    seed: int = 0,
    stream: int = 0,
    first_row: int = 0,
    device: torch.device | str | None = None,
) -> AttributeCounts:
    """Count an annotated set in one pass. Memory does not grow with its rows.

    Args:
        source: whatever `as_annotations` reads.
        threshold: present from this probability on; a number, or one for each attribute [K] (`MAC.thresholds`).
        min_reliability: labels below it are undefined.
        replicates, bins, seed, stream: of `AttributeCounts.empty`.
        cells: joint cells to count, of `fit_cells` or `product_cells`.
        first_row: number of the first row in the whole set, for shards of a set without identities.
        device: where to count.

    Raises:
        DataError: settings out of range, or identities that come and go.
    """
    annotations = _opened(source)
    counts: AttributeCounts | None = None
    start = first_row
    for batch in annotations.batches(_ROWS):
        if counts is None:
            counts = AttributeCounts.empty(
                annotations.schema.names,
                noisy=annotations.schema.noisy,
                replicates=replicates,
                bins=bins,
                cells=0 if cells is None else len(cells),
                seed=seed,
                stream=stream,
                identities=batch.identities is not None,
                name=annotations.name,
                device=device,
            )
        if (batch.identities is None) != (counts.spans is not None):
            raise DataError("identities come and go", expected="identities for all rows or for none")
        labels = torch.as_tensor(batch.labels(threshold, min_reliability)).to(device)
        probabilities = torch.as_tensor(batch.probabilities).to(device)
        if batch.identities is None:
            keys, unit = torch.arange(start, start + len(labels), device=device), None
        else:
            keys, unit = (x.to(device) for x in identity_keys(batch.identities))
        counts = counts.update(
            labels,
            keys,
            unit=unit,
            probabilities=probabilities if bins else None,
            cells=None if cells is None else cells.assign(labels, probabilities),
        )
        start += len(labels)
    if counts is None:
        raise DataError("the set is empty", expected="one row or more", got=0)
    return counts


def _opened(source: Any) -> Annotations | AnnotationFolder:
    return source if isinstance(source, Annotations | AnnotationFolder) else as_annotations(source)


# --- rates ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class AttributeRates:
    """How often each attribute is present, as labelled.

    Attributes:
        counts: what this was computed from.
        rate: among defined labels, float64 [K]; NaN where none is.
        low, high: 95 % intervals over identities [K]; NaN where there are fewer than two, or no replicates.
        defined, undefined: labels [K].
        identities: a scalar; the rows, if the set has none.
    """

    counts: AttributeCounts
    rate: Tensor
    low: Tensor
    high: Tensor
    defined: Tensor
    undefined: Tensor
    identities: Tensor

    @property
    def names(self) -> tuple[str, ...]:
        """The attributes."""
        return self.counts.names

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{attribute: {rate, low, high, defined, undefined, noisy}}; noisy says why, "" if not."""
        columns = {x: getattr(self, x).tolist() for x in ("rate", "low", "high", "defined", "undefined")}
        return {
            name: {x: column[k] for x, column in columns.items()} | {"noisy": self.counts.noisy.get(name, "")}
            for k, name in enumerate(self.names)
        }

    def to_frame(self) -> Any:
        """A pandas frame with a row for each attribute."""
        return _frame(self.to_dict())

    def __str__(self) -> str:
        rows = [
            [_marked(a, self.counts.noisy), share_text(r["rate"], r["low"], r["high"]), *(f"{r[x]:.0f}" for x in _N)]
            for a, r in self.to_dict().items()
        ]
        table = markdown_table(["attribute", "rate [95 %]", *_N], rows)
        return "\n".join([table, "", _size_note(self.counts), *_noise_note(self.counts.noisy)])


_N = ("defined", "undefined")


def attribute_rates(
    annotations: Any,
    *,
    threshold: float | Tensor = 0.5,
    min_reliability: float | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> AttributeRates:
    """Rate of each attribute in a set, with intervals over identities.

    Args:
        annotations: whatever `as_annotations` reads, or `AttributeCounts`, to which the settings do not apply.
        threshold, min_reliability, replicates, seed: of `count_attributes`.
    """
    if isinstance(annotations, AttributeCounts):
        return annotations.compute()
    return count_attributes(
        annotations, threshold=threshold, min_reliability=min_reliability, replicates=replicates, seed=seed
    ).compute()


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

    def __len__(self) -> int:
        return 2 ** len(self.columns or ()) if self.centroids is None else len(self.centroids)

    def __str__(self) -> str:
        if self.columns is not None:
            return "the cells " + " × ".join(self.names[k] for k in self.columns)
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

    opened = [_opened(s) for s in sets]
    names = _same_names([s.schema.names for s in opened])
    size = min([rows, *(len(s) for s in opened)])
    if n < 2 or size * len(opened) < n:
        raise DataError("too few rows for so many cells", expected=f"2 ≤ n ≤ {size * len(opened)}", got=n)
    rng = np.random.default_rng(seed)
    parts = []
    for source in opened:
        chosen, start = np.sort(rng.choice(len(source), size, replace=False)), 0
        for batch in source.batches():
            here = chosen[(chosen >= start) & (chosen < start + len(batch))] - start
            parts.append(torch.as_tensor(batch.probabilities)[torch.from_numpy(here)].double())
            start += len(batch)
    x = torch.cat(parts)
    x = torch.where(x.isnan(), x.nanmean(0).nan_to_num(0.5), x)  # only to fit; rows are assigned by what they have
    points = x.cpu().numpy()
    n = min(n, len(np.unique(points, axis=0)))  # hard labels of few attributes have few combinations
    means = KMeans(n, n_init=3, random_state=seed).fit(points)
    return Cells(names, torch.from_numpy(means.cluster_centers_))


def _same_names(all_names: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    for names in all_names:
        if names != all_names[0]:
            differ = sorted(set(names) ^ set(all_names[0])) or ["their order"]
            raise DataError("the sets have different attributes", expected="one schema", got=", ".join(differ))
    return all_names[0]


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
        plugin: uncorrected, from the smoothed shares: never negative, and too large by about `null`.
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
    half = _Z95 * draws.std(0)
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
    noisy = [counts[1:] + torch.from_numpy(g).to(counts) for counts, g in zip((p, q), gamma, strict=True)]

    def root(a: Tensor, b: Tensor) -> Tensor:
        return (a[..., 1] - b[..., 1]).sign()[..., None] * _divergences(a, b)[..., :3].sqrt()

    centre = root(p0, q0)
    half = _Z95 * root(*(x / x.sum(-1, keepdim=True) for x in noisy)).std(0)
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
        return _frame(self.to_dict()["attributes"])

    def __str__(self) -> str:
        size = torch.maximum(self.kl_pq.value, self.kl_qp.value).nan_to_num(-math.inf)
        rows = []
        for k in size.argsort(descending=True, stable=True).tolist():
            divergences = [Divergence(*(x[k] for x in getattr(self, kind))) for kind in _KINDS]
            rates = [f"{100 * float(r[k]):.1f} %" if r[k] == r[k] else "–" for r in (self.rate_p, self.rate_q)]
            undefined = f"{float(self.undefined_p[k]):.0f}, {float(self.undefined_q[k]):.0f}"
            rows.append([_marked(self.names[k], self.noisy), *rates, *map(divergence_text, divergences), undefined])
        if len(self.names) > 1:
            rows.append(["**mean**", "", "", *(divergence_text(self.mean[kind]) for kind in _KINDS), ""])
        header = ["attribute", "rate in P", "rate in Q", "KL(P‖Q)", "KL(Q‖P)", "JS", "KL(P‖Q) − KL(Q‖P)", "undefined"]
        sets = f"P: {self.p_name}. Q: {self.q_name}. Nats [95 %]; ° no more than equal distributions often give."
        return "\n".join([sets, "", markdown_table(header, rows), "", *self.settings, *_noise_note(self.noisy)])


_RATES = ("rate_p", "rate_q", "undefined_p", "undefined_q")


def _columns(kind: str, divergence: Divergence) -> dict[str, float]:
    ends = ("", "_low", "_high", "_plugin", "_null", "_null_high")
    return {kind + end: float(x) for end, x in zip(ends, divergence, strict=True)}


def divergence_text(d: Divergence) -> str:
    """One divergence as "0.0123 [0.0100, 0.0150]", with ° if it is no more than equal distributions often give."""
    value, low, high = (round(float(x), 4) + 0.0 for x in (d.value, d.low, d.high))  # + 0.0: no "-0.0000"
    if math.isnan(value):
        return "–"
    interval = "" if math.isnan(low) else f" [{low:.4f}, {high:.4f}]"
    return f"{value:.4f}{interval}" + (" °" if abs(float(d.value)) <= float(d.null_high) + 1e-12 else "")


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

    The plug-in is too large in small samples (by about (C − 1)/2·(1/n + 1/m) for C cells, more if images of one
    identity are alike); `value` is corrected by the bootstrap over identities, and `null_high` says what a corrected 0
    looks like. Intervals of one binary attribute come from the normal range of signed roots, the others from value ±
    1.96 bootstrap standard deviations.

    Args:
        p, q: whatever `as_annotations` reads; or `AttributeCounts`, then of different streams unless paired, counted
            with what `on` needs, and the settings of counting here do not apply.
        on: what is compared.
        attributes: some of them; by default all.
        alpha: pseudo-count α > 0 of each cell; ½ is Jeffreys' and Krichevsky & Trofimov's, 1 Laplace's.
        bins: equal bins of [0, 1] for "probabilities".
        cells: for "joint": a number of k-means cells (fitted on both sets, `fit_cells`), the names of a few attributes
            whose combinations are the cells, or `Cells`.
        threshold, min_reliability, replicates, seed: of `count_attributes`.
        paired: identities of one name are the same people in both sets, and are resampled together. Only then is the
            divergence of a set from itself exactly 0; otherwise two sets are taken to be independent samples.

    Raises:
        DataError: different attributes, empty sets, no attribute with labels in both, or settings out of range.
    """
    options: dict[str, Any] = {
        "threshold": threshold,
        "min_reliability": min_reliability,
        "replicates": replicates,
        "seed": seed,
    }
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
    if on == "probabilities" and bins < 2:
        raise DataError("one bin tells nothing apart", expected="bins ≥ 2", got=bins)
    if options["replicates"] < 2:
        raise DataError("too few replicates for an interval", expected="200, say", got=options["replicates"])
    partition: Cells | None = None
    if on == "joint" and attributes is not None:
        raise DataError("joint cells name their attributes", fix="cells=['Male', 'Young'] instead of attributes=")
    if on == "joint":
        partition = cells if isinstance(cells, Cells) else None
        raw = [s for s in sets if not isinstance(s, AttributeCounts)]
        if partition is None and len(raw) < len(sets):
            raise DataError("counted sets have their cells", fix="pass the Cells they were counted with")
        if partition is None:
            partition = fit_cells(raw, cells, seed=options["seed"]) if isinstance(cells, int) else None
        if partition is None:
            partition = product_cells(cells, _opened(raw[0]).schema)  # type: ignore[arg-type]
    counts = [
        s
        if isinstance(s, AttributeCounts)
        else count_attributes(
            s,
            bins=bins if on == "probabilities" else 0,
            cells=partition,
            stream=i if stream is None else stream,
            **options,
        )
        for i, s in enumerate(sets)
    ]
    _same_names([c.names for c in counts])
    return counts, partition


def _table(
    p: AttributeCounts,
    q: AttributeCounts,
    on: On,
    attributes: Sequence[str] | None,
    alpha: float,
    partition: Cells | None,
    paired: bool,
) -> KLTable:
    if not 0 < alpha < math.inf:
        raise DataError("shares are smoothed", expected="alpha > 0, for example 0.5", got=alpha)
    if p.replicates != q.replicates or p.replicates < 2:
        got = [p.replicates, q.replicates]
        raise DataError("replicates do not fit", expected="two or more, as many for both sets", got=got)
    if not paired and (p.seed, p.stream) == (q.seed, q.stream):
        fix = "count_attributes(…, stream=1) for one of them; paired=True if equal names are the same people"
        raise DataError("both sets were resampled with the same weights", got=f"stream {p.stream} twice", fix=fix)
    x, y = _cell_counts(p, on, partition), _cell_counts(q, on, partition)
    schema = AttributeSchema(p.names, p.noisy)
    chosen = None if attributes is None else schema.subset(attributes)
    if chosen is not None:
        columns = [schema.index(a) for a in chosen.names]
        x, y = x[:, columns], y[:, columns]
    names = (str(partition),) if on == "joint" else (chosen or schema).names
    if not bool(((x[0].sum(-1) > 0) & (y[0].sum(-1) > 0)).any()):
        raise DataError("nothing to compare", expected="an attribute with defined labels in both sets", got="none")
    rows = _compare(x, y, alpha, on == "labels", p.seed)
    few = [c.name or x for c, x in ((p, "P"), (q, "Q")) if float(c.identities()) < 2]
    if few:
        rows[1:3] = torch.nan
    per = {kind: Divergence(*rows[:, :-1, i]) for i, kind in enumerate(_KINDS)}
    rates = [x[0, :, 1] / x[0].sum(-1) if on == "labels" else x[0, :, 0] * torch.nan for x in (x, y)]
    if on == "probabilities":
        rates = [_pick(c.positives[0] / c.defined[0], schema, chosen) for c in (p, q)]
    noisy = {a: why for a, why in p.noisy.items() if a in names}
    return KLTable(
        p.name or "P",
        q.name or "Q",
        names,
        noisy,
        on,
        per["kl_pq"],
        per["kl_qp"],
        per["js"],
        per["asymmetry"],
        {kind: Divergence(*rows[:, -1, i]) for i, kind in enumerate(_KINDS)},
        rates[0],
        rates[1],
        p.rows - x[0].sum(-1),
        q.rows - y[0].sum(-1),
        _settings(p, q, on, alpha, x.shape[-1], partition, paired, few),
    )


def _pick(x: Tensor, schema: AttributeSchema, chosen: AttributeSchema | None) -> Tensor:
    return x if chosen is None else x[[schema.index(a) for a in chosen.names]]


def _cell_counts(counts: AttributeCounts, on: On, partition: Cells | None) -> Tensor:
    """What is compared, as counts of cells [1 + R, K, C], on the CPU."""
    if on == "labels":
        return torch.stack((counts.defined - counts.positives, counts.positives), dim=-1).cpu()
    if on == "probabilities":
        if counts.bins.shape[2] < 2:
            raise DataError("no histograms were counted", fix="count_attributes(…, bins=20)")
        return counts.bins.cpu()
    if partition is None or counts.cells.shape[1] != len(partition):
        raise DataError("these cells were not counted", expected=str(partition), got=f"{counts.cells.shape[1]} cells")
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
        _size_note(p),
        _size_note(q),
    ]
    notes += [f"No interval: {name} has one identity." for name in few]
    return tuple(notes)


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
    if len(sets) < 2 or statistic not in ("mean", "sum"):
        raise DataError("no pairs", expected="two sets or more, mean or sum", got=f"{len(sets)} sets, {statistic!r}")
    options: dict[str, Any] = {
        "threshold": threshold,
        "min_reliability": min_reliability,
        "replicates": replicates,
        "seed": seed,
    }
    counts, partition = _count_all(list(sets.values()), on, attributes, bins, cells, None, options)
    counts = [dataclasses.replace(c, name=name) for c, name in zip(counts, sets, strict=True)]
    kl = torch.zeros(6, len(sets), len(sets), dtype=torch.float64)
    for i, p in enumerate(counts):
        for j, q in enumerate(counts[:i]):
            table = _table(p, q, on, attributes, alpha, partition, paired=False)
            values = table.total if statistic == "sum" else table.mean
            kl[:, i, j], kl[:, j, i] = torch.stack(values["kl_pq"]), torch.stack(values["kl_qp"])
    settings = (table.settings[0], *(_size_note(c) for c in counts))
    return KLMatrix(tuple(sets), "joint" if on == "joint" else statistic, on, Divergence(*kl), settings)


# --- consistency within identities ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Consistency:
    """How alike the labels of one identity's images are, attribute by attribute.

    Attributes:
        names, noisy: of the schema.
        n_min: see `consistency`.
        used: identities with at least n_min defined labels, int64 [K].
        reason: why values are NaN; "" if none is.
        name: of the set.
        majority: mean over identities of max(pᵢ, 1 − pᵢ), where pᵢ is the identity's rate: 0.5 … 1.
        information: mean over identities of 1 − H(pᵢ)/ln 2: 0 … 1.
        majority_low, majority_high, information_low, information_high: 95 % intervals over identities.
        majority_chance, information_chance: what labels drawn independently at the set's rate would give, for the same
            numbers of images. Both measures are biased upwards where identities have few images: with two, the majority
            rate of a fair coin is 0.75. Compare with chance, never with 0.5 or 0.
    """

    names: tuple[str, ...]
    noisy: Mapping[str, str]
    n_min: int
    used: Tensor
    reason: str
    name: str
    majority: Tensor
    majority_low: Tensor
    majority_high: Tensor
    majority_chance: Tensor
    information: Tensor
    information_low: Tensor
    information_high: Tensor
    information_chance: Tensor

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """{attribute: {majority, …, used, noisy}}."""
        return {
            a: {x: float(getattr(self, x)[k]) for x in _AGREEMENT}
            | {"used": int(self.used[k]), "noisy": self.noisy.get(a, "")}
            for k, a in enumerate(self.names)
        }

    def to_frame(self) -> Any:
        """A pandas frame with a row for each attribute."""
        return _frame(self.to_dict())

    def __str__(self) -> str:
        if bool(self.majority.isnan().all()):
            return f"Consistency of {self.name or 'the set'}: undefined. {self.reason}"
        rows = []
        for a, r in self.to_dict().items():
            cells = [
                f"{r[m]:.3f} [{r[m + '_low']:.3f}, {r[m + '_high']:.3f}]" if r[m] == r[m] else "–"
                for m in ("majority", "information")
            ]
            chance = [f"{r[m]:.3f}" for m in ("majority_chance", "information_chance")]
            rows.append([_marked(a, self.noisy), cells[0], chance[0], cells[1], chance[1], str(r["used"])])
        header = ["attribute", "majority rate [95 %]", "by chance", "1 − H/ln 2 [95 %]", "by chance", "identities"]
        notes = [f"Identities with at least {self.n_min} defined labels.", *([self.reason] if self.reason else [])]
        return "\n".join([markdown_table(header, rows), "", *notes, *_noise_note(self.noisy)])


_AGREEMENT = tuple(f"{m}{end}" for m in ("majority", "information") for end in ("", "_low", "_high", "_chance"))


def consistency(
    annotations: Any,
    n_min: int = 2,
    *,
    threshold: float | Tensor = 0.5,
    min_reliability: float | None = None,
    replicates: int = 200,
    seed: int = 0,
) -> Consistency:
    """Intra-class consistency: the mean, over identities, of how far their images agree on each attribute.

    Neto et al. 2024 study it; how they define it was not found. The majority rate and the normalised information here
    are this library's. Rows of an identity may lie anywhere in the set: sums are kept for each identity, 8·K bytes.

    Args:
        annotations: whatever `as_annotations` reads.
        n_min: fewest defined labels an identity needs, ≥ 2.
        threshold, min_reliability: of `count_attributes`.
        replicates, seed: of the bootstrap over identities.

    Returns:
        NaN with a reason for a set without identities, or an attribute without an identity of n_min labels.
    """
    if n_min < 2 or replicates < 2:
        got = f"n_min={n_min}, replicates={replicates}"
        raise DataError("one image cannot disagree", expected="n_min ≥ 2, replicates ≥ 2", got=got)
    opened = _opened(annotations)
    names, noisy, k = opened.schema.names, opened.schema.noisy, len(opened.schema)
    place: dict[str, int] = {}
    sums = torch.zeros(2, 0, k, dtype=torch.int32)  # positives, defined
    for batch in opened.batches():
        if batch.identities is None:
            nothing = {x: torch.full((k,), torch.nan, dtype=torch.float64) for x in _AGREEMENT}
            reason = f"{opened.name or 'The set'} has no identities."
            return Consistency(names, noisy, n_min, torch.zeros(k, dtype=torch.int64), reason, opened.name, **nothing)
        found, unit = np.unique(batch.identities, return_inverse=True)
        rows = torch.tensor([place.setdefault(i, len(place)) for i in found.tolist()])[torch.from_numpy(unit)]
        if len(place) > sums.shape[1]:  # room for twice as many, so that it is copied seldom
            sums = torch.cat((sums, sums.new_zeros(2, 2 * len(place) - sums.shape[1], k)), dim=1)
        labels = batch.labels(threshold, min_reliability).cpu()
        for total, marks in zip(sums, (labels > 0, labels != 0), strict=True):
            total.index_add_(0, rows, marks.int())
    if not place:
        raise DataError("the set is empty", expected="one row or more", got=0)
    positives, defined = sums[:, : len(place)].double()
    return _consistency(names, noisy, positives, defined, n_min, replicates, seed, opened.name)


def _consistency(
    names: tuple[str, ...],
    noisy: Mapping[str, str],
    positives: Tensor,
    defined: Tensor,
    n_min: int,
    replicates: int,
    seed: int,
    name: str,
) -> Consistency:
    """From the sums of each identity, [I, K]."""
    enough = (defined >= n_min).double()
    used = enough.sum(0)
    values = _agreement(positives, defined.clamp_min(1))  # [2, I, K]
    rate = positives.sum(0) / defined.sum(0)
    chance = _chance(defined, enough, rate)
    mean = (values * enough).sum(1) / used
    weights = torch.from_numpy(np.random.default_rng(seed).poisson(1.0, (replicates, len(defined)))).double()
    draws = torch.stack([weights @ (v * enough) for v in values]) / (weights @ enough)
    half = _Z95 * _deviation(draws, used)
    low, high = (mean - half).clamp_min(0), (mean + half).clamp_max(1)
    low[0] = low[0].clamp_min(0.5)
    low, high = (torch.where(used > 1, x, torch.nan) for x in (low, high))
    lacking = [a for a, n in zip(names, used.tolist(), strict=True) if not n]
    reason = f"No identity has {n_min} defined labels of: {', '.join(lacking)}." if lacking else ""
    columns = [x[m] for m in range(2) for x in (mean, low, high, chance)]
    return Consistency(names, noisy, n_min, used.long(), reason, name, **dict(zip(_AGREEMENT, columns, strict=True)))


def _deviation(draws: Tensor, used: Tensor) -> Tensor:
    """Standard deviation over replicates [2, R, K], without those that drew no identity; for I of them, not I − 1."""
    empty = draws.isnan()
    n = (~empty).sum(1)
    centre = draws.nan_to_num(0).sum(1) / n
    square = torch.where(empty, 0, (draws - centre[:, None]).square()).sum(1)
    return (square / (n - 1) * used / (used - 1)).sqrt()


def _agreement(positives: Tensor, n: Tensor) -> Tensor:
    """Majority rate and 1 − H/ln 2 of x positives among n, [2, …]."""
    p = positives / n
    entropy = -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p))
    return torch.stack((torch.maximum(p, 1 - p), 1 - entropy / math.log(2)))


def _chance(defined: Tensor, enough: Tensor, rate: Tensor) -> Tensor:
    """Expected agreement [2, K] if labels were independent with the set's rate, for these numbers of labels."""
    from scipy.stats import binom

    total = torch.zeros(2, defined.shape[1], dtype=torch.float64)
    for n in torch.unique(defined[enough > 0]).tolist():
        x = torch.arange(n + 1, dtype=torch.float64)
        chances = torch.from_numpy(binom.pmf(x[:, None].numpy(), n, rate.nan_to_num(0.5).numpy()))  # [n + 1, K]
        share = ((defined == n) * enough).sum(0)
        total += (_agreement(x, torch.tensor(n))[:, :, None] * chances).sum(1) * share
    return total / enough.sum(0)


# --- text -----------------------------------------------------------------------------------------------------------


def _marked(name: str, noisy: Mapping[str, str]) -> str:
    return f"{name} *" if name in noisy else name


def _noise_note(noisy: Mapping[str, str]) -> list[str]:
    return ["\\* noisily labelled: " + "; ".join(f"{a} ({why})" for a, why in noisy.items()) + "."] if noisy else []


def _size_note(counts: AttributeCounts) -> str:
    name = counts.name or "The set"
    if counts.spans is not None:
        return f"{name}: {counts.rows} rows without identities, each taken as its own."
    identities = float(counts.identities())
    about = "" if identities < _SKETCH else "about "
    return f"{name}: {counts.rows} rows, {about}{identities:.0f} identities."


def _frame(rows: Mapping[str, Mapping[str, Any]]) -> Any:
    first = next(iter(rows.values()))
    return to_frame({"attribute": list(rows)} | {k: [row[k] for row in rows.values()] for k in first})
