"""Counting the attributes of annotated sets: sums that stream, merge and carry their own bootstrap over identities.

`AttributeCounts` sees each row once and keeps sums of fixed size. Intervals come from a Poisson bootstrap over
identities (Hanley & MacGibbon 2006; Chamandy et al. 2012): replicate r counts identity i Poisson(1) times, a number
drawn from (seed, r, hash of i), so that order, batches and shards change nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .annotation_sources import as_annotations
from .artifacts import Artifact, has_values
from .attribute_schema import AttributeSchema
from .errors import DataError, ShapeError
from .latents import philox
from .reports import markdown_table, share_text, wilson_interval
from .tables import to_frame

if TYPE_CHECKING:
    from .divergence import Cells

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
        partition: which joint cells these are (`Cells.fingerprint`).
        sketch: the smallest identity hashes, sorted, int64, then 2⁶³ − 1 in places left over; how many identities there
            are is read off them.
        rows: rows seen.
        seed, stream: of the replicates. Sets that are compared need different streams, unless identities of one name
            are the same people.
        spans: None if identities are known; otherwise each row counts as its own identity, drawn by its number, and
            these [start, stop) are the numbers seen.
        name: of the set.
        classifier: fingerprint of the one that labelled it (`Annotations.classifier`); "" if not known.
        rule: how labels were made of probabilities, in words, such as "probability ≥ 0.5"; "" if not known.
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
    partition: str = ""
    name: str = ""
    classifier: str = ""
    rule: str = ""

    @classmethod
    def empty(
        cls,
        names: Sequence[str],
        *,
        noisy: Mapping[str, str] | None = None,
        replicates: int = 200,
        bins: int = 0,
        cells: int = 0,
        partition: str = "",
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
            cells: joint cells; 0: not counted. `partition`: which ones (`Cells.fingerprint`).
            seed, stream: of the replicates, 0 ≤ seed < 2⁶⁴, 0 ≤ stream < 2³².
            identities: whether rows come with identities; without, each row is its own.
            name: of the set.
            device: where to count.
        """
        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise DataError("attributes need names", expected="one or more, each once", got=repr(names))
        numbers = {"replicates": replicates, "bins": bins, "cells": cells, "seed": seed, "stream": stream}
        whole = all(isinstance(x, Integral) and x >= 0 for x in numbers.values())
        if not whole or seed >= 2**64 or stream >= 2**32:
            raise DataError("out of range", expected="whole numbers ≥ 0, seed < 2⁶⁴, stream < 2³²", got=numbers)
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
            partition=partition,
            name=name,
        )

    @property
    def schema(self) -> AttributeSchema:
        """The attributes, with warnings."""
        return AttributeSchema(self.names, self.noisy)

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
            DataError: counts of other attributes, bins, cells, seeds or streams, of labels by another classifier or
                rule, or of the same rows.
        """
        mine, yours = ([*c._layout(), c.seed, c.stream, c.spans is None] for c in (self, other))
        if mine != yours:
            raise DataError("these are not shards of one set", expected=mine, got=yours)
        for what in ("classifier", "rule"):
            said = [getattr(c, what) for c in (self, other)]
            if all(said) and said[0] != said[1]:
                raise DataError(f"these shards were labelled by another {what}", expected=said[0], got=said[1])
        names = ("positives", "defined", "bins", "cells")
        return dataclasses.replace(
            self,
            **{x: getattr(self, x) + getattr(other, x).to(self.positives) for x in names},
            sketch=self._seen(other.sketch.to(self.sketch)),
            rows=self.rows + other.rows,
            classifier=self.classifier or other.classifier,
            rule=self.rule or other.rule,
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
        share = torch.where(defined[1:] > 0, positives[1:] / defined[1:], rate)  # a replicate that drew nobody
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
        return [list(self.names), self.replicates, self.bins.shape[2], self.cells.shape[1], self.partition]

    def _check_update(
        self, labels: Tensor, keys: Tensor, unit: Tensor | None, probabilities: Tensor | None, cells: Tensor | None
    ) -> None:
        k = len(self.names)
        for x in (labels, keys, unit, probabilities, cells):
            if x is not None and not isinstance(x, Tensor):
                raise ShapeError("counting takes tensors", got=type(x).__name__, fix="count_attributes takes any table")
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
        cells: joint cells to count, of `fit_cells` or `product_cells`; their attributes are found by name.
        first_row: number of the first row in the whole set, for shards of a set without identities.
        device: where to count.

    Raises:
        DataError: an empty set, settings out of range, or identities that come and go.
        GroupError: cells of attributes that the set lacks.
    """
    annotations = as_annotations(source)
    columns = None if cells is None else [annotations.schema.index(name) for name in cells.names]
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
                partition="" if cells is None else cells.fingerprint,
                seed=seed,
                stream=stream,
                identities=batch.identities is not None,
                name=annotations.name,
                device=device,
            )
            rule = _rule(threshold, min_reliability)
            counts = dataclasses.replace(counts, classifier=annotations.classifier, rule=rule)
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
            cells=None if cells is None else cells.assign(labels[:, columns], probabilities[:, columns]),
        )
        start += len(labels)
    if counts is None:
        raise DataError("the set is empty", expected="one row or more", got=0)
    return counts


def _rule(threshold: float | Tensor, min_reliability: float | None) -> str:
    """How labels are made of probabilities, in words."""
    level = f"{threshold:g}" if isinstance(threshold, Real) else "a threshold for each attribute"
    sure = "" if min_reliability is None else f", defined where reliability ≥ {min_reliability}"
    return f"probability ≥ {level}{sure}"


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
        return attribute_frame(self.to_dict())

    def __str__(self) -> str:
        rows = []
        for a, r in self.to_dict().items():
            rate = share_text(r["rate"], r["low"], r["high"])
            if math.isnan(r["low"]):
                rate = "–" if math.isnan(r["rate"]) else f"{100 * r['rate']:.1f} %"
            rows.append([marked(a, self.counts.noisy), rate, f"{r['defined']:.0f}", f"{r['undefined']:.0f}"])
        table = markdown_table(["attribute", "rate [95 %]", "defined", "undefined"], rows)
        return "\n".join([table, "", size_note(self.counts), *noise_note(self.counts.noisy)])


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


# --- text, for all tables of attributes -----------------------------------------------------------------------------


def marked(name: str, noisy: Mapping[str, str]) -> str:
    """The attribute, with a star if its labels are weak."""
    return f"{name} *" if name in noisy else name


def noise_note(noisy: Mapping[str, str]) -> list[str]:
    """The sentence that explains the stars; none without any."""
    return ["\\* noisily labelled: " + "; ".join(f"{a} ({why})" for a, why in noisy.items()) + "."] if noisy else []


def size_note(counts: AttributeCounts) -> str:
    """Rows and identities of a counted set, as a sentence."""
    name = counts.name or "The set"
    if counts.spans is not None:
        return f"{name}: {counts.rows} rows without identities, each taken as its own."
    identities = float(counts.identities())
    about = "" if identities < _SKETCH else "about "
    return f"{name}: {counts.rows} rows, {about}{identities:.0f} identities."


def attribute_frame(rows: Mapping[str, Mapping[str, Any]]) -> Any:
    """A pandas frame of {attribute: {column: value}}."""
    first = next(iter(rows.values()))
    return to_frame({"attribute": list(rows)} | {k: [row[k] for row in rows.values()] for k in first})
