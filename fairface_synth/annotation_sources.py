"""Annotations from whatever they are in: files and folders of this library, face sets, tables of others."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .annotation import Annotations, metadata
from .annotation_folders import HEADER, AnnotationFolder
from .attribute_schema import ID_COLUMNS, IDENTITY_COLUMNS, MAAD_FACE, RELIABILITY, AttributeSchema, attribute_key
from .covariates import COVARIATES
from .errors import DataError, GroupError, ShapeError
from .face_sets import FaceSet
from .tables import read_table

_INDEX = re.compile(r"(unnamed\d*)?")  # an index as pandas writes it, and as it reads it again
_CODE = re.compile(r"[+-]?(0|1|0?\.\d+|[01]\.0*|0\.\d+)|yes|no|true|false")


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


# --- details ----------------------------------------------------------------------------------------------------------


def _as_known(source: Any) -> Annotations | AnnotationFolder | None:
    """What has a schema of its own; None for tables."""
    if isinstance(source, Annotations | AnnotationFolder):
        return source
    if isinstance(source, FaceSet):
        return _from_faces(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if (path / HEADER).exists():
            return AnnotationFolder(path)
        if path.suffix == ".parquet" and path.is_file() and metadata(path) is not None:
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
    identities, ids = (_named(table, names) for names in (IDENTITY_COLUMNS, ID_COLUMNS))
    if identities is None:
        _check_ids(table)
    values = {k: v for k, v in table.items() if attribute_key(k) not in (*IDENTITY_COLUMNS, *ID_COLUMNS)}
    values = _numeric(_without_strays(values) if wanted is None else _asked_for(values, wanted))
    columns = {k: v for k, v in values.items() if not k.endswith(RELIABILITY)}
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
    reliability = [values[k + RELIABILITY] for k in ordered if k + RELIABILITY in values]
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
    index = [k for k in values if _INDEX.fullmatch(attribute_key(k))]
    covariates = {attribute_key(name) for name in COVARIATES}
    last = {k: attribute_key(k.rpartition("/")[2]) for k in values}  # "skin/luminance", of a region
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
    lacking = [n for n in schema.names if attribute_key(n) not in {attribute_key(k) for k in values}]
    if lacking:
        got = ", ".join(k for k in values if not k.endswith(RELIABILITY)) or "none"
        raise GroupError(f"the table has no column for {', '.join(lacking)}", expected="one for each name", got=got)
    return {k: v for k, v in values.items() if k.removesuffix(RELIABILITY) in schema}


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
        if attribute_key(k) in ("id", "ids") and len(np.unique(v)) < len(v):
            fix = "call the column identity if it says who is on the image, or path if it says which image"
            raise DataError(f"column {k!r} repeats", expected="another id for each row", fix=fix)


def _named(table: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray | None:
    found = [k for k in table if attribute_key(k) in names]
    if len(found) > 1:
        raise DataError("two columns say the same", expected=f"one of {', '.join(names)}", got=", ".join(found))
    return table[found[0]] if found else None


def _is_label(v: np.ndarray) -> bool:
    return bool((np.isin(v, (-1, 0, 1)) | (v != v)).all())


def _is_probability(v: np.ndarray) -> bool:
    return bool((((v >= 0) & (v <= 1)) | (v != v)).all())
