"""Annotated sets: which attributes each face of a set shows, from labels or from an attribute classifier.

`train_mac` (attribute_classifier.py) makes the classifier, `annotate` runs it over a set, of any size and with resume,
and `as_annotations` reads what others have annotated. Everything here is P(attribute present) per face, NaN where it is
undefined.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .artifacts import atomic_path, has_values
from .discriminators import COVARIATES
from .errors import DataError, FairFaceError, GroupError, ShapeError
from .identities import _fingerprint, embed
from .images import from_uint8, warn_if_unit_range
from .tables import is_missing, read_table

if TYPE_CHECKING:
    from .attribute_classifier import MAC
    from .datasets import FaceSet
    from .models.protocols import Embedder

_FORMAT = "fairface_synth.annotations/1"
_HEADER = "annotations.json"
_RELIABILITY = ".reliability"
_IDENTITY_COLUMNS = ("identity", "identities", "personid", "subject", "subjectid")
_ID_COLUMNS = ("id", "ids", "path", "filename")
_INDEX = re.compile(r"(unnamed\d*)?")  # an index as pandas writes it, and as it reads it again
_CODE = re.compile(r"[+-]?(0|1|0?\.\d+|[01]\.0*|0\.\d+)|yes|no|true|false")


# --- attributes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttributeSchema:
    """Names of binary attributes, in the order of the columns.

    Names are matched ignoring case, spaces, underscores, other punctuation and a leading "Wearing". Two schemas are
    equal if their names are, in order.

    Attributes:
        names: the attributes [K].
        noisy: those known to be badly labelled → why, with the figures.
        source: where names and figures come from.

    Raises:
        GroupError: no names, names that repeat or are empty, reserved ones ("id", "identity", "path", …), or a
            noisy attribute that is not among them.
    """

    names: tuple[str, ...]
    noisy: Mapping[str, str] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        listed = isinstance(self.names, Iterable) and not isinstance(self.names, str)
        if not listed or not all(isinstance(n, str) for n in self.names):
            raise GroupError("attributes are a sequence of names", expected="('Male', 'Young', …)", got=self.names)
        names = tuple(self.names)
        keys = [_key(name) for name in names]
        reserved = {*_IDENTITY_COLUMNS, *_ID_COLUMNS, ""}
        bad = [n for n, k in zip(names, keys, strict=True) if k in reserved or n.endswith(_RELIABILITY)]
        bad += [n for n, k in zip(names, keys, strict=True) if keys.count(k) > 1]
        if bad or not names:
            expected = f"different names, none of {', '.join(sorted(reserved - {''}))} or ending in {_RELIABILITY!r}"
            raise GroupError("these cannot be attributes", expected=expected, got=", ".join(map(repr, bad)) or "none")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "noisy", {names[self.index(n)]: why for n, why in self.noisy.items()})

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Column of an attribute.

        Raises:
            GroupError: unknown; the message names the nearest ones.
        """
        keys = [_key(n) for n in self.names]
        if isinstance(name, str) and _key(name) in keys:
            return keys.index(_key(name))
        near = difflib.get_close_matches(_key(str(name)), keys, n=3, cutoff=0.5)
        raise GroupError(
            f"unknown attribute {name!r}",
            expected=", ".join(self.names),
            fix=f"did you mean {' or '.join(self.names[keys.index(k)] for k in near)}?" if near else None,
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in {_key(n) for n in self.names}

    def subset(self, names: Sequence[str]) -> AttributeSchema:
        """Some of the attributes, in the given order."""
        if isinstance(names, str) or not len(names):
            expected = f"[{names or 'Male'!r}]"
            raise GroupError("some attributes are a sequence of names", expected=expected, got=repr(names))
        kept = tuple(self.names[self.index(name)] for name in names)
        return AttributeSchema(kept, {n: why for n, why in self.noisy.items() if n in kept}, self.source)


def _key(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum()).removeprefix("wearing")


def _human_checked(accuracy: str, precision: str, recall: str) -> str:
    return f"human-checked accuracy {accuracy}, precision {precision}, recall {recall}"


_MAAD_NAMES = """
Male Young Middle_Aged Senior Asian White Black Rosy_Cheeks Shiny_Skin Bald Wavy_Hair Receding_Hairline
Bangs Sideburns Black_Hair Blond_Hair Brown_Hair Gray_Hair No_Beard Mustache 5_o_Clock_Shadow Goatee
Oval_Face Square_Face Round_Face Double_Chin High_Cheekbones Chubby Obstructed_Forehead
Fully_Visible_Forehead Brown_Eyes Bags_Under_Eyes Bushy_Eyebrows Arched_Eyebrows Mouth_Closed Smiling
Big_Lips Big_Nose Pointy_Nose Heavy_Makeup Wearing_Hat Wearing_Earrings Wearing_Necktie Wearing_Lipstick
No_Eyewear Eyeglasses Attractive
"""
MAAD_FACE = AttributeSchema(
    tuple(_MAAD_NAMES.split()),
    noisy={
        "Brown_Eyes": _human_checked(".68", ".44", ".85"),
        "Bags_Under_Eyes": _human_checked(".68", ".40", ".91"),
        "Round_Face": _human_checked(".69", ".56", ".76"),
        "Big_Lips": _human_checked(".70", ".50", ".83"),
        "Receding_Hairline": _human_checked(".77", ".54", "1.00"),
        "Shiny_Skin": _human_checked(".77", ".84", ".74"),
    },
    source="Terhörst et al., MAAD-Face, IEEE TIFS 2021 (arXiv 2012.01030); figures of the label file's own repository",
)
"""The 47 attributes of MAAD-Face, spelled as in its label file; overall its labels were found 91 % right by people."""


# --- a set in memory ------------------------------------------------------------------------------------------------


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
            _warn_of_zero_one(labels, schema)
        values = torch.where(labels == 0, torch.nan, (labels > 0).float())
        return cls(schema, values, identities=identities, ids=ids, name=name)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        return _summary(self, self.reliability is not None, self.identities is not None)

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
        for suffix, values in (("", self.probabilities), (_RELIABILITY, self.reliability)):
            if values is not None:
                columns = values.detach().cpu().numpy().T
                table |= {f"{n}{suffix}": np.ascontiguousarray(c) for n, c in zip(self.schema.names, columns)}  # noqa: B905
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a parquet file, atomically; schema, name and classifier are in its metadata."""
        path = Path(path)
        if path.suffix != ".parquet":
            fix = f"a table without schema and name: ffs.write_table(annotations.to_table(), {path.name!r})"
            expected = "a name ending in .parquet"
            raise DataError("annotations are saved as parquet", expected=expected, got=path.name, fix=fix)
        _write_parquet(self, path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Annotations:
        """Read what `save` wrote.

        Raises:
            DataError: no such file, or one that was not written by `save`; `as_annotations` reads any table.
        """
        from pyarrow import parquet

        header = _metadata(Path(path))
        if header is None:
            fix = "ffs.as_annotations(path) reads any table"
            raise DataError(f"{path} holds something else", expected="a file of Annotations.save", fix=fix)
        return _from_arrow(parquet.read_table(path), _schema_of(header), header["name"], header.get("classifier", ""))


def check_labels(labels: Tensor, schema: AttributeSchema) -> Tensor:
    """The labels as they are; an error unless they are −1, 0 and 1 in the shape [n, K]. Looks at the values once."""
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[1] != len(schema):
        got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        fix = "schema= defaults to MAAD_FACE's 47: pass schema=AttributeSchema((…))" if schema is MAAD_FACE else None
        raise ShapeError("labels do not fit the schema", expected=f"tensor [n, {len(schema)}]", got=got, fix=fix)
    if labels.dtype == torch.bool:
        fix = "False for absent: 2 * labels.int() - 1"
        raise DataError(
            "labels are not true or false", expected="1 present, −1 absent, 0 undefined", got="bool", fix=fix
        )
    if has_values(labels) and not bool(((labels == 0) | (labels == 1) | (labels == -1)).all()):
        wrong = sorted(set(labels[(labels != 0) & (labels.abs() != 1)].tolist()), key=str)[:5]
        fix = "0/1 labels: 2 * labels - 1; NaN for undefined: labels.nan_to_num(0)"
        raise DataError("unknown label values", expected="1 present, −1 absent, 0 undefined", got=wrong, fix=fix)
    return labels


def check_negatives(labels: Tensor, schema: AttributeSchema) -> None:
    """DataError for labels of 0 and 1 without a −1, whose zeros would count as undefined; a warning for columns."""
    if not has_values(labels):
        return
    if bool((labels == 0).any()) and bool((labels > 0).any()) and not bool((labels < 0).any()):
        expected = "1 present, −1 absent, 0 undefined"
        raise DataError("no face is labelled −1 (absent)", expected=expected, got="0 and 1", fix="2 * labels - 1")
    _warn_of_zero_one(labels, schema, stacklevel=4)


def _warn_of_zero_one(labels: Tensor, schema: AttributeSchema, stacklevel: int = 3) -> None:
    doubtful = (labels == 0).any(0) & (labels > 0).any(0) & ~(labels < 0).any(0)
    names = [name for name, doubt in zip(schema.names, doubtful.tolist(), strict=True) if doubt]
    if names:
        which = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warnings.warn(
            f"no face is labelled −1 (absent) in {which}, and 0 is read as undefined; "
            "if 0 means absent there, code it −1: 2 * labels - 1",
            stacklevel=stacklevel,
        )


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


def _summary(source: Annotations | AnnotationFolder, reliability: bool, identities: bool) -> str:
    parts = [f"{len(source)} faces", f"{len(source.schema)} attributes"]
    parts += ["reliabilities"] * reliability + ["identities" if identities else "no identities"]
    title = f"{source.name}: " if source.name else ""
    return f"{type(source).__name__}({title}{', '.join(parts)})"


# --- a set in a folder ----------------------------------------------------------------------------------------------


class AnnotationFolder:
    """A set annotated into a folder by `annotate(…, path=…)`: parquet parts and a header. Read piece by piece.

    Args:
        path: the folder.

    Attributes:
        path: the folder.
        schema, name, classifier: see `Annotations`; the name is the folder's if the set was given none.
        header: everything else that is known of how the set was annotated.

    Raises:
        DataError: no such folder, or parts that are still missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.header = _read_header(self.path)
        self.schema, self.name = _schema_of(self.header), str(self.header["name"]) or self.path.name
        self.classifier = str(self.header["mac"])
        missing = [p.name for p in _parts(self.path, self.header) if not p.exists()]
        if missing:
            raise DataError(
                f"{self.path} is not finished",
                expected=f"{len(list(_parts(self.path, self.header)))} parts",
                got=f"{len(missing)} missing, {missing[0]} the first",
                fix="run annotate once more with the same arguments: it makes what is missing",
            )

    def __len__(self) -> int:
        return int(self.header["n"])

    def __repr__(self) -> str:
        return _summary(self, bool(self.header["reliability_passes"]), bool(self.header["has_identities"]))

    def batches(self, rows: int = 65536) -> Iterator[Annotations]:
        """The set in pieces of at most `rows` faces; no more than one of them is in memory."""
        from pyarrow import parquet

        if rows < 1:
            raise DataError("no rows at a time", expected="rows ≥ 1", got=rows)
        for part in _parts(self.path, self.header):
            with _undamaged(part):
                file = parquet.ParquetFile(part)
            with file:
                for batch in file.iter_batches(rows):
                    yield _from_arrow(batch, self.schema, self.name, self.classifier)

    def load(self) -> Annotations:
        """The whole set in memory."""
        parts = list(self.batches())

        def joined(what: str) -> Any:
            first = getattr(parts[0], what)
            if first is None:
                return None
            join: Any = torch.cat if isinstance(first, Tensor) else np.concatenate
            return join([getattr(part, what) for part in parts])

        p, reliability = joined("probabilities"), joined("reliability")
        who_and_which = joined("identities"), joined("ids")
        return Annotations(self.schema, p, reliability, *who_and_which, self.name, self.classifier)


def as_annotations(source: Any, schema: AttributeSchema | None = None) -> Annotations | AnnotationFolder:
    """Annotations from whatever they are in.

    Args:
        source: Annotations or an AnnotationFolder; the path of one of them; or anything `tables.read_table` reads: a
            dict of columns, a pandas frame, the path of a .csv, .tsv or .parquet file, …; or a `FaceSet` with
            annotations, such as MAAD-Face's. In a table, columns identity, identities, person_id, subject or subject_id
            hold identities; id, path or filename the images' names; "<attribute>.reliability" a reliability; every
            other column of numbers is an attribute. Columns of words (race, gender), measurements of images as
            `covariates` names them (luminance, score, …) and unnamed columns are left out with a warning. If any value
            is −1 the coding is MAAD-Face's (1 present, −1 absent, 0 undefined), else values are probabilities (0
            absent) and NaN is undefined. If every attribute is one of MAAD-Face's, its names, its order and its
            warnings apply.
        schema: the attributes of a table, in this order; all its other columns are left out.

    Raises:
        GroupError: a schema with an attribute that the table has no column for.
        DataError: no such file, values out of range, numbers or yes and no written as text, ids that repeat.
        ShapeError: a tensor.
    """
    if isinstance(source, Tensor):
        images = "ffs.annotate(images, embedder, mac)"
        fix = images if source.ndim == 4 else "ffs.Annotations.from_labels(labels, schema)"
        raise ShapeError("a tensor has no attributes", expected="an annotated set", got=list(source.shape), fix=fix)
    if schema is not None and not isinstance(schema, AttributeSchema):
        raise GroupError("no schema", expected="AttributeSchema(('Male', …))", got=type(schema).__name__)
    opened = _as_known(source)
    if opened is None:
        name = Path(source).stem if isinstance(source, str | os.PathLike) else ""
        return _from_table(read_table(source), name, schema)
    if schema is not None:
        raise DataError("this set has a schema", expected="a table", got=repr(opened), fix="leave schema= out")
    return opened


def _as_known(source: Any) -> Annotations | AnnotationFolder | None:
    """What has a schema of its own; None for tables."""
    from .datasets import FaceSet  # which imports this module

    if isinstance(source, Annotations | AnnotationFolder):
        return source
    if isinstance(source, FaceSet):
        return _from_faces(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if (path / _HEADER).exists():
            return AnnotationFolder(path)
        if path.suffix == ".parquet" and path.is_file() and _metadata(path) is not None:
            return Annotations.load(path)
        if path.is_dir() and next(path.rglob("*.parquet"), None) is None:
            fix = "annotate(read_faces('folder', path), embedder, mac) first, if it holds images"
            raise DataError(f"{path} holds no annotations", expected="a folder of annotate, or a table", fix=fix)
    return None


def _from_faces(faces: FaceSet) -> Annotations:
    if faces.annotations is None or faces.schema is None:
        raise DataError(
            f"{faces.name} has no annotations",
            expected="a FaceSet with .annotations",
            got=f"labels of {', '.join(faces.labels) or 'nothing'}",
            fix="annotate(faces, embedder, mac), or a table with a column of 0 and 1 for each value of a label",
        )
    who, which = (None if x is None else np.array(x) for x in (faces.identities, faces.paths))
    return Annotations.from_labels(faces.annotations, faces.schema, who, which, faces.name)


def _from_table(table: Mapping[str, np.ndarray], name: str, wanted: AttributeSchema | None) -> Annotations:
    identities, ids = (_named(table, names) for names in (_IDENTITY_COLUMNS, _ID_COLUMNS))
    if identities is None:
        _check_ids(table)
    values = {k: v for k, v in table.items() if _key(k) not in (*_IDENTITY_COLUMNS, *_ID_COLUMNS)}
    values = _numeric(_without_strays(values) if wanted is None else _asked_for(values, wanted))
    columns = {k: v for k, v in values.items() if not k.endswith(_RELIABILITY)}
    labelled = any(bool((v == -1).any()) for v in columns.values())
    wrong = [k for k, v in columns.items() if not (_is_label(v) if labelled else _is_probability(v))]
    if wrong:
        expected = "−1, 0, 1, since there are −1s" if labelled else "probabilities in 0 … 1, or labels −1, 0, 1"
        got = ", ".join(f"{k!r} from {np.nanmin(columns[k]):g} to {np.nanmax(columns[k]):g}" for k in wrong[:5])
        fix = "drop columns that are none, or name the attributes: as_annotations(table, schema); "
        fix += "percentages: divide by 100; −1 for undefined among probabilities: NaN"
        raise DataError("columns that are not attributes", expected=expected, got=got, fix=fix)
    schema = own = AttributeSchema(tuple(columns))
    if wanted is not None:
        schema = wanted
    elif all(n in MAAD_FACE for n in columns):
        schema = MAAD_FACE.subset([n for n in MAAD_FACE.names if n in own])
    ordered = [own.names[own.index(n)] for n in schema.names]
    p = torch.from_numpy(np.stack([columns[k].astype(np.float32) for k in ordered], axis=1))
    if labelled:
        return Annotations.from_labels(p.nan_to_num(0), schema, identities, ids, name)
    reliability = [values[k + _RELIABILITY] for k in ordered if k + _RELIABILITY in values]
    if reliability and (len(reliability) < len(ordered) or len(values) != 2 * len(ordered)):
        got = f"{len(reliability)} of {len(ordered)}"
        raise DataError("reliabilities are missing", expected="one column for each attribute, or none", got=got)
    return Annotations(
        schema,
        p,
        torch.from_numpy(np.stack(reliability, axis=1).astype(np.float32)) if reliability else None,
        identities,
        ids,
        name,
    )


def _without_strays(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns without measurements of images and without an index, which are numbers too."""
    index = [k for k in values if _INDEX.fullmatch(_key(k))]
    covariates = {_key(name) for name in COVARIATES}
    last = {k: _key(k.rpartition("/")[2]) for k in values}  # "skin/luminance", of a region
    measured = [k for k, key in last.items() if key in covariates or key.startswith("score")]
    if index:
        message = "an unnamed column, probably pandas' index, was left out: to_csv(index=False) writes none"
        warnings.warn(message, stacklevel=4)
    if measured:
        message = f"columns that measure images were left out: {', '.join(measured)}; as_annotations(table, schema)"
        warnings.warn(f"{message} takes what the schema names", stacklevel=4)
    return {k: v for k, v in values.items() if k not in index and k not in measured}


def _asked_for(values: Mapping[str, np.ndarray], schema: AttributeSchema) -> dict[str, np.ndarray]:
    """The columns that the schema names, and their reliabilities."""
    lacking = [n for n in schema.names if _key(n) not in {_key(k) for k in values}]
    if lacking:
        got = ", ".join(k for k in values if not k.endswith(_RELIABILITY)) or "none"
        raise GroupError(f"the table has no column for {', '.join(lacking)}", expected="one for each name", got=got)
    return {k: v for k, v in values.items() if k.removesuffix(_RELIABILITY) in schema}


def _numeric(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of numbers; those of words are left out with a warning, numbers written as text are an error."""
    text = {k: v for k, v in values.items() if v.dtype.kind not in "biuf"}
    coded = [k for k, v in text.items() if _looks_coded(v)]
    if coded:
        got = f"text in {', '.join(coded[:5])}, such as {str(text[coded[0]][0])!r}"
        raise DataError("attributes are written as text", expected="numbers, NaN where undefined", got=got)
    if len(text) == len(values):
        got = f"text in {', '.join(list(text)[:5])}" if text else "no such column"
        expected, fix = (
            "numeric columns, one per attribute, beside identity and id",
            "a column of 0 and 1 for each value",
        )
        raise DataError("this is no table of attributes", expected=expected, got=got, fix=fix)
    if text:
        warnings.warn(f"columns of text are not attributes and were left out: {', '.join(text)}", stacklevel=4)
    return {k: v for k, v in values.items() if k not in text}


def _looks_coded(column: np.ndarray) -> bool:
    """Whether half of the words are codes of an attribute: 1, -1, 0.7, yes, false, …"""
    words, counts = np.unique(column[column != ""], return_counts=True)
    codes = [bool(_CODE.fullmatch(word.strip().casefold())) for word in words.tolist()]
    return 2 * int(counts[codes].sum()) >= max(1, int(counts.sum()))


def _check_ids(table: Mapping[str, np.ndarray]) -> None:
    """Rows may share a path (two faces in one picture), but an id that repeats is somebody's."""
    for k, v in table.items():
        if _key(k) in ("id", "ids") and len(np.unique(v)) < len(v):
            fix = "call the column identity if it says who is on the image, or path if it says which image"
            raise DataError(f"column {k!r} repeats", expected="another id for each row", fix=fix)


def _named(table: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    found = [k for k in table if _key(k) in names]
    if len(found) > 1:
        raise DataError("two columns say the same", expected=f"one of {', '.join(names)}", got=", ".join(found))
    return table[found[0]] if found else None


def _is_label(v: np.ndarray) -> bool:
    return bool((np.isin(v, (-1, 0, 1)) | (v != v)).all())


def _is_probability(v: np.ndarray) -> bool:
    return bool((((v >= 0) & (v <= 1)) | (v != v)).all())


# --- annotating a set -----------------------------------------------------------------------------------------------


@torch.no_grad()
def annotate(
    faces: Any,
    embedder: Embedder,
    mac: MAC,
    path: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 256,
    part_size: int = 10_000,
    reliability_passes: int = 100,
    size: int | tuple[int, int] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    name: str | None = None,
    identities: Sequence[Any] | np.ndarray | Tensor | None = None,
    ids: Sequence[str] | np.ndarray | None = None,
) -> Annotations | AnnotationFolder:
    """Run an attribute classifier over a set of faces.

    With a path, the set is written to a folder in parts, each of them whole or absent. A run that was interrupted is
    taken up by calling again with the same arguments: parts that are there are kept, and the folder comes out as if
    nothing had happened, byte for byte on the same machine. A folder of another set, classifier or embedder is
    refused. That images behind unchanged paths are the same is not checked.

    Args:
        faces: images [n, 3, H, W] in [-1, 1], or uint8; or anything with `len()` and `.images(start, stop)` that gives
            them, such as a `FaceSet`, whose `paths`, `identities` and `name` are then used.
        embedder: the one whose embeddings the classifier was trained on.
        mac: of `train_mac`.
        path: a folder, new or of an interrupted run. None: the result stays in memory.
        batch_size: images at a time.
        part_size: faces in each part.
        reliability_passes: of `MAC.predict`; 0 for no reliabilities, which saves that many passes through the
            classifier.
        size: handed to `.images(start, stop, size)`, for sets whose images differ in size; see `FaceSet.images`.
        device: where images are sent; that of the classifier by default. Embedder and classifier have to be there.
        progress: show a bar.
        name: of the set. Without one it is that of `faces`; a folder then is called by its own.
        identities, ids: of the faces [n], in place of those the set has.

    Raises:
        ShapeError, DataError: things that are not faces; an image that cannot be read (the message names it);
            embeddings that are not unit vectors; a folder of something else.
    """
    from tqdm.auto import tqdm

    if not hasattr(mac, "schema") or not hasattr(mac, "predict"):
        raise DataError("no attribute classifier", expected="a MAC, of train_mac or MAC.load", got=type(mac).__name__)
    batch, who_and_which = _set_of(faces, identities, ids, size)
    n, numbers = len(faces), (batch_size, part_size, reliability_passes)
    whole = all(isinstance(x, Integral) for x in numbers)
    if not whole or min(batch_size, part_size) < 1 or reliability_passes < 0 or reliability_passes == 1 or not n:
        expected = "faces, batch_size and part_size ≥ 1, reliability_passes ≥ 2 or 0"
        got = f"{n} faces, {', '.join(map(str, numbers))}"
        raise DataError("nothing to annotate", expected=expected, got=got)
    title = str(getattr(faces, "name", None) or "") if name is None else name  # a tensor's name is None
    target = mac.device if device is None else torch.device(device)

    def predict(start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        images = batch(start, stop).to(target)
        if images.dtype == torch.uint8:
            images = from_uint8(images)
        if start == 0:
            warn_if_unit_range(images, stacklevel=5)  # predict, part, annotate, no_grad: the caller of annotate
        try:
            embeddings = embed(embedder, images, batch_size=batch_size, progress=False)
            if not reliability_passes:
                return mac(embeddings).cpu(), None
            p, reliability = mac.predict(embeddings, reliability_passes)
            return p.cpu(), reliability.cpu()
        except FairFaceError as error:
            raise type(error)(f"faces {start} to {stop - 1} of the set: {error}") from error

    def part(start: int, stop: int) -> Annotations:
        done = []
        for row in range(start, stop, batch_size):
            done.append(predict(row, min(row + batch_size, stop)))
            bar.update(len(done[-1][0]))
        p = torch.cat([x for x, _ in done])
        reliability = torch.cat([x for _, x in done if x is not None]) if reliability_passes else None
        who, which = (None if x is None else x[start:stop] for x in who_and_which)
        return Annotations(mac.schema, p, reliability, who, which, title, mac.fingerprint)

    with tqdm(total=n, desc="annotating faces", unit="img", disable=not progress) as bar:
        if path is None:
            return part(0, n)
        header = _header(faces, who_and_which, embedder, mac, title, part_size, reliability_passes, size)
        folder = _open_folder(Path(path), header)
        for i, file in enumerate(_parts(folder, header)):
            start, stop = i * part_size, min((i + 1) * part_size, n)
            if _is_done(file, stop - start):
                bar.update(stop - start)
            else:
                _write_parquet(part(start, stop), file)
    return AnnotationFolder(folder)


def _set_of(
    faces: Any, identities: Any, ids: Any, size: Any
) -> tuple[Any, tuple[np.ndarray | None, np.ndarray | None]]:
    """A function (start, stop) → images, and the faces' identities and ids."""
    if isinstance(faces, Tensor):
        if faces.ndim != 4 or faces.shape[1] != 3:
            grey = faces.ndim == 4 and faces.shape[1] == 1
            fix = "images.expand(-1, 3, -1, -1)" if grey else None
            raise ShapeError("no images", expected="[n, 3, H, W] in [-1, 1]", got=list(faces.shape), fix=fix)
        who_and_which = texts(identities, "identities", len(faces)), texts(ids, "ids", len(faces))
        return lambda start, stop: faces[start:stop], who_and_which
    if not hasattr(faces, "images") or not hasattr(faces, "__len__"):
        expected = "images [n, 3, H, W], or something with len() and .images(start, stop), such as a FaceSet"
        raise ShapeError("this is no set of faces", expected=expected, got=type(faces).__name__)
    identities = getattr(faces, "identities", None) if identities is None else identities
    ids = getattr(faces, "paths", None) if ids is None else ids
    names = texts(ids, "ids", len(faces))

    def read(start: int, stop: int) -> Tensor:
        return faces.images(start, stop) if size is None else faces.images(start, stop, size)

    def batch(start: int, stop: int) -> Tensor:
        try:
            images = read(start, stop)
        except FairFaceError:
            raise
        except Exception as error:
            bad = _first_unreadable(read, start, stop)
            what = f"face {bad}" if names is None else names[bad]
            raise DataError(f"cannot read {what}", expected="an image", got=error, fix="leave it out") from error
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != stop - start:
            got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ShapeError("the set gave something else", expected=f"images [{stop - start}, 3, H, W]", got=got)
        return images

    return batch, (texts(identities, "identities", len(faces)), names)


def _first_unreadable(read: Callable[[int, int], Tensor], start: int, stop: int) -> int:
    for i in range(start, stop):
        try:
            read(i, i + 1)
        except Exception:
            return i
    return start


def _header(
    faces: Any,
    who_and_which: tuple[np.ndarray | None, np.ndarray | None],
    embedder: Embedder,
    mac: MAC,
    name: str,
    part_size: int,
    passes: int,
    size: Any,
) -> dict[str, Any]:
    """All that decides the content of the folder, and the versions that made it."""
    digest = hashlib.blake2b(digest_size=16)
    for text in who_and_which:
        for row in () if text is None else text:
            digest.update(f"{row}\n".encode())
        digest.update(b"-")
    if isinstance(faces, Tensor):
        digest.update(f"{list(faces.shape)} {faces.dtype}".encode())
        some = faces[:: max(1, len(faces) // 64)]
        digest.update(some.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "format": _FORMAT,
        "name": name,
        "n": len(faces),
        "part_size": part_size,
        "reliability_passes": passes,
        "size": list(size) if isinstance(size, tuple) else size,
        "has_identities": who_and_which[0] is not None,
        **_schema_entry(mac.schema),
        "set": digest.hexdigest(),
        "mac": mac.fingerprint,
        "embedder": {"class": type(embedder).__qualname__, "dim": embedder.dim, "weights": _fingerprint(embedder)},
        "versions": {"torch": str(torch.__version__)},
    }


def _open_folder(folder: Path, header: Mapping[str, Any]) -> Path:
    """The folder, with this header; one that has another is refused."""
    if not (folder / _HEADER).exists():
        if next(folder.glob("part-*.parquet"), None):
            raise DataError(f"{folder} has parts but no {_HEADER}", expected="a new folder", fix="choose another one")
        try:
            with atomic_path(folder / _HEADER) as temporary:
                temporary.write_text(json.dumps(header, indent=1, ensure_ascii=False), encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write to {folder}", expected="a folder, new or of yours", got=error) from error
        return folder
    there = _read_header(folder)
    differ = [k for k in header if k != "versions" and there.get(k) != header[k]]
    if differ:
        raise DataError(
            f"{folder} holds another annotation: {', '.join(differ)} differ",
            expected={k: there.get(k) for k in differ},
            got={k: header[k] for k in differ},
            fix="give each set, classifier and embedder a folder of its own, or delete this one",
        )
    return folder


@contextmanager
def _undamaged(part: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        fix = "delete it and run annotate once more with the same arguments"
        raise DataError(f"{part} is damaged", expected="a parquet file", got=error, fix=fix) from error


def _is_done(path: Path, rows: int) -> bool:
    from pyarrow import parquet

    if not path.exists():
        return False
    with _undamaged(path):
        found = parquet.read_metadata(path).num_rows
    if found != rows:
        raise DataError(f"{path} is damaged", expected=f"{rows} rows", got=found, fix="delete it")
    return True


# --- files ----------------------------------------------------------------------------------------------------------


def _write_parquet(annotations: Annotations, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    said = {"name": annotations.name, "classifier": annotations.classifier}
    header = {"format": _FORMAT, **said, **_schema_entry(annotations.schema)}
    table = pa.table(annotations.to_table()).replace_schema_metadata({"fairface_synth": json.dumps(header)})
    with atomic_path(path) as temporary:
        parquet.write_table(table, temporary)


def _metadata(path: Path) -> dict[str, Any] | None:
    """What `_write_parquet` noted in a file; None in a file of others."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        noted = (parquet.read_schema(path).metadata or {}).get(b"fairface_synth")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="a parquet file", got=error) from error
    header = json.loads(noted) if noted else {}
    return header if header.get("format") == _FORMAT else None


def _from_arrow(table: Any, schema: AttributeSchema, name: str, classifier: str) -> Annotations:
    def matrix(suffix: str) -> Tensor | None:
        if f"{schema.names[0]}{suffix}" not in table.schema.names:
            return None
        columns = [table.column(f"{n}{suffix}").to_numpy(zero_copy_only=False) for n in schema.names]
        return torch.from_numpy(np.stack(columns, axis=1))

    def column(name: str) -> np.ndarray | None:
        return np.array(table.column(name).to_pylist(), dtype=str) if name in table.schema.names else None

    p = matrix("")
    assert p is not None
    return Annotations(schema, p, matrix(_RELIABILITY), column("identity"), column("id"), name, classifier)


def _schema_entry(schema: AttributeSchema) -> dict[str, Any]:
    return {"schema": {"names": list(schema.names), "noisy": dict(schema.noisy), "source": schema.source}}


def _schema_of(header: Mapping[str, Any]) -> AttributeSchema:
    entry = header["schema"]
    return AttributeSchema(tuple(entry["names"]), entry["noisy"], entry["source"])


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no annotated set", expected=f"a readable {_HEADER}", got=error) from error
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise DataError(f"{folder / _HEADER} is something else", expected=_FORMAT, got=str(header)[:80])
    return header


def _parts(folder: Path, header: Mapping[str, Any]) -> Iterator[Path]:
    for i in range(-(-header["n"] // header["part_size"])):
        yield folder / f"part-{i:06d}.parquet"
