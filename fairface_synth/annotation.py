"""Annotations in memory and in one file: P(attribute present) of each face of a set, NaN where undefined."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .artifacts import atomic_path, has_values
from .attribute_schema import MAAD_FACE, RELIABILITY, AttributeSchema, check_labels, warn_of_zero_one
from .errors import DataError, GroupError, ShapeError
from .tables import is_missing

FORMAT = "fairface_synth.annotations/1"


@dataclass(frozen=True, eq=False, repr=False)
class Annotations:
    """What is known of each face of a set.

    Attributes:
        schema: the attributes.
        probabilities: P(attribute present), float32 [n, K]; NaN where undefined. Hard labels are 0 and 1.
        reliability: of each prediction, float32 [n, K] (`MAC.predict`), or None.
        identities: whose face it is, an array of str [n]; None if the set has no identities.
        ids: names or paths of the images, an array of str [n]; None if they have none.
        name: of the set.
        classifier: `MAC.fingerprint` of the one that gave the probabilities; "" if not known.

    Raises:
        ShapeError, DataError: shapes that do not fit the schema or each other, values outside 0 … 1, an identity
            that is missing.
    """

    schema: AttributeSchema
    probabilities: Tensor
    reliability: Tensor | None = None
    identities: np.ndarray | None = None
    ids: np.ndarray | None = None
    name: str = ""
    classifier: str = ""

    def __post_init__(self) -> None:
        p = self.probabilities
        if not isinstance(self.schema, AttributeSchema):
            raise GroupError("columns need a schema", expected="AttributeSchema", got=type(self.schema).__name__)
        if not isinstance(p, Tensor) or p.ndim != 2 or p.shape[1] != len(self.schema) or not p.is_floating_point():
            got: Any = f"{list(p.shape)} {p.dtype}" if isinstance(p, Tensor) else type(p).__name__
            fix = "hard labels −1, 0, 1: Annotations.from_labels"
            raise ShapeError("no probabilities", expected=f"float tensor [n, {len(self.schema)}]", got=got, fix=fix)
        object.__setattr__(self, "probabilities", p.float())
        if has_values(p) and bool(((p < 0) | (p > 1)).any()):
            got = f"values from {float(p[~p.isnan()].min()):.3g} to {float(p[~p.isnan()].max()):.3g}"
            fix = "labels −1, 0, 1: Annotations.from_labels; logits: .sigmoid()"
            raise DataError("these are not probabilities", expected="0 … 1, or NaN for undefined", got=got, fix=fix)
        if self.reliability is not None:
            if not isinstance(self.reliability, Tensor) or self.reliability.shape != p.shape:
                got = list(getattr(self.reliability, "shape", [])) or type(self.reliability).__name__
                raise ShapeError("reliability does not fit the probabilities", expected=list(p.shape), got=got)
            object.__setattr__(self, "reliability", self.reliability.float())
        for what in ("identities", "ids"):
            object.__setattr__(self, what, texts(getattr(self, what), what, len(p)))

    @classmethod
    def from_labels(
        cls,
        labels: Tensor,
        schema: AttributeSchema = MAAD_FACE,
        identities: Sequence[Any] | np.ndarray | Tensor | None = None,
        ids: Sequence[str] | np.ndarray | None = None,
        name: str = "",
    ) -> Annotations:
        """From hard labels.

        Warns of attributes that have zeros and ones but no −1: if their 0 meant absent, all absent faces are lost.

        Args:
            labels: [n, K], 1 present, −1 absent, 0 undefined, as MAAD-Face codes them.
            schema, identities, ids, name: see the class.

        Raises:
            ShapeError, DataError: not such labels.
        """
        labels = check_labels(labels, schema)
        if has_values(labels):
            warn_of_zero_one(labels, schema)
        values = torch.where(labels == 0, torch.nan, (labels > 0).float())
        return cls(schema, values, identities=identities, ids=ids, name=name)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        return summary(self, self.reliability is not None, self.identities is not None)

    def batches(self, rows: int = 65536) -> Iterator[Annotations]:
        """The set in pieces of at most `rows` faces."""
        if rows < 1:
            raise DataError("no rows at a time", expected="rows ≥ 1", got=rows)
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def __getitem__(self, rows: slice) -> Annotations:
        if isinstance(rows, int | np.integer):
            raise DataError("one face is a slice too", expected=f"[{rows}:{rows + 1}]", got=f"[{rows}]")

        def part(x: Any) -> Any:
            return None if x is None else x[rows]

        p, reliability = self.probabilities[rows], part(self.reliability)
        who_and_which = part(self.identities), part(self.ids)
        return Annotations(self.schema, p, reliability, *who_and_which, self.name, self.classifier)

    def labels(self, threshold: float | Tensor = 0.5, min_reliability: float | None = None) -> Tensor:
        """Hard labels int8 [n, K]: 1 present, −1 absent, 0 undefined or less reliable than `min_reliability`.

        Args:
            threshold: present from this probability on; one number, or one for each attribute [K] (`MAC.thresholds`).
            min_reliability: leave out what is less reliable.

        Raises:
            DataError: thresholds that are no numbers or outside 0 … 1, or a set without reliabilities.
        """
        try:
            threshold = torch.as_tensor(threshold, dtype=torch.float32).to(self.probabilities.device)
        except (TypeError, ValueError) as error:
            expected = f"a number, or a tensor [{len(self.schema)}]"
            raise DataError("a threshold is a probability", expected=expected, got=repr(threshold)) from error
        if threshold.ndim and threshold.shape != (len(self.schema),):
            raise ShapeError("thresholds do not fit", expected=f"[{len(self.schema)}]", got=list(threshold.shape))
        if has_values(threshold) and not bool(((threshold >= 0) & (threshold <= 1)).all()):
            raise DataError("a threshold is a probability", expected="0 … 1", got=threshold.tolist())
        p = self.probabilities
        labels = torch.where(p >= threshold, 1, torch.where(p.isnan(), 0, -1)).to(torch.int8)
        if min_reliability is None:
            return labels
        if not isinstance(min_reliability, Real):
            raise DataError("a reliability is a number", expected="0.3, say", got=repr(min_reliability))
        if self.reliability is None:
            raise DataError("this set has no reliabilities", fix="annotate(…, reliability_passes=100)")
        return torch.where(self.reliability >= min_reliability, labels, 0)

    def to_table(self) -> dict[str, np.ndarray]:
        """Columns id and identity (if known), one of probabilities per attribute, then "<attribute>.reliability"."""
        table = {k: v for k, v in (("id", self.ids), ("identity", self.identities)) if v is not None}
        for suffix, values in (("", self.probabilities), (RELIABILITY, self.reliability)):
            if values is not None:
                columns = values.detach().cpu().numpy().T
                table |= {f"{n}{suffix}": np.ascontiguousarray(c) for n, c in zip(self.schema.names, columns)}  # noqa: B905
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a parquet file, atomically; schema, name and classifier are in its metadata."""
        import pyarrow as pa
        from pyarrow import parquet

        path = Path(path)
        if path.suffix != ".parquet":
            fix = f"a table without schema and name: ffs.write_table(annotations.to_table(), {path.name!r})"
            expected = "a name ending in .parquet"
            raise DataError("annotations are saved as parquet", expected=expected, got=path.name, fix=fix)
        said = {"name": self.name, "classifier": self.classifier}
        header = {"format": FORMAT, **said, **schema_entry(self.schema)}
        table = pa.table(self.to_table()).replace_schema_metadata({"fairface_synth": json.dumps(header)})
        with atomic_path(path) as temporary:
            parquet.write_table(table, temporary)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Annotations:
        """Read what `save` wrote.

        Raises:
            DataError: no such file, or one that was not written by `save`; `as_annotations` reads any table.
        """
        from pyarrow import parquet

        header = metadata(Path(path))
        if header is None:
            fix = "ffs.as_annotations(path) reads any table"
            raise DataError(f"{path} holds something else", expected="a file of Annotations.save", fix=fix)
        return from_arrow(parquet.read_table(path), schema_of(header), header["name"], header.get("classifier", ""))


def texts(values: Any, what: str, n: int) -> np.ndarray | None:
    """An array of str [n]; whole numbers are written as such."""
    if values is None:
        return None
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype.kind == "f" and array.size and bool((array == np.round(array)).all()):
        array = array.astype(np.int64)
    written = array.astype(str)
    if written.shape != (n,):
        raise ShapeError(f"{what} do not fit the set", expected=[n], got=list(written.shape))
    lacking = [is_missing(x) for x in array] if array.dtype == object else []
    if array.dtype.kind == "f" or any(lacking) or bool((written == "").any()):
        fix = "give each such face an identity of its own, or the whole set None" if what == "identities" else None
        raise DataError(f"{what} are missing for some faces", expected="a name or whole number each", fix=fix)
    return written


def summary(source: Any, reliability: bool, identities: bool) -> str:
    """The repr of annotations, in memory or in a folder."""
    parts = [f"{len(source)} faces", f"{len(source.schema)} attributes"]
    parts += ["reliabilities"] * reliability + ["identities" if identities else "no identities"]
    title = f"{source.name}: " if source.name else ""
    return f"{type(source).__name__}({title}{', '.join(parts)})"


# --- files ------------------------------------------------------------------------------------------------------------


def metadata(path: Path) -> dict[str, Any] | None:
    """What `Annotations.save` noted in a file; None in a file of others."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        noted = (parquet.read_schema(path).metadata or {}).get(b"fairface_synth")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="a parquet file", got=error) from error
    header = json.loads(noted) if noted else {}
    return header if header.get("format") == FORMAT else None


def from_arrow(table: Any, schema: AttributeSchema, name: str, classifier: str) -> Annotations:
    """From the columns of `to_table`, in an arrow table or batch."""

    def matrix(suffix: str) -> Tensor | None:
        if f"{schema.names[0]}{suffix}" not in table.schema.names:
            return None
        columns = [table.column(f"{n}{suffix}").to_numpy(zero_copy_only=False) for n in schema.names]
        return torch.from_numpy(np.stack(columns, axis=1))

    def column(name: str) -> np.ndarray | None:
        return np.array(table.column(name).to_pylist(), dtype=str) if name in table.schema.names else None

    p = matrix("")
    assert p is not None
    return Annotations(schema, p, matrix(RELIABILITY), column("identity"), column("id"), name, classifier)


def schema_entry(schema: AttributeSchema) -> dict[str, Any]:
    """The part of a header that `schema_of` reads."""
    return {"schema": {"names": list(schema.names), "noisy": dict(schema.noisy), "source": schema.source}}


def schema_of(header: Mapping[str, Any]) -> AttributeSchema:
    """The schema that a header holds."""
    entry = header["schema"]
    return AttributeSchema(tuple(entry["names"]), entry["noisy"], entry["source"])
