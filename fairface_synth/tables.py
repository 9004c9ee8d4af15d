"""Tables: named columns of equal length, from whatever a user has them in, as a plain dict of arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .artifacts import atomic_path
from .errors import DataError, ShapeError

Table = dict[str, np.ndarray]
TableLike = Mapping[str, Any] | str | os.PathLike[str]  # and pandas frames, pyarrow tables, lists of records
_TEXT = {".csv": ",", ".tsv": "\t"}


def read_table(source: Any) -> Table:
    """Columns of a table as numpy arrays: numbers as they are, everything else as text ("" where missing).

    Missing numbers are NaN. The order of columns and rows is kept; a pandas index is not read.

    Args:
        source: a mapping of columns (arrays, tensors, lists), a pandas frame, a pyarrow table, a list of records, or
            the path of a .csv, .tsv (also .gz) or .parquet file, or of a folder of parquet files.

    Raises:
        DataError: no such file, an unknown format, no columns, repeated names, columns of different lengths.
        ShapeError: a column that is not one-dimensional.
    """
    if isinstance(source, str | os.PathLike):
        source = _read_file(Path(source))
    if isinstance(source, Sequence) and source and all(isinstance(row, Mapping) for row in source):
        source = {name: [row.get(name) for row in source] for name in dict.fromkeys(n for row in source for n in row)}
    names = _names(source)
    if len(set(names)) != len(names):
        repeated = sorted({n for n in names if names.count(n) > 1})
        raise DataError("column names repeat", expected="one column per name", got=", ".join(repeated))
    table = {name: _column(name, source[name]) for name in names}
    lengths = {name: len(column) for name, column in table.items()}
    if len(set(lengths.values())) > 1:
        raise DataError("columns differ in length", expected="one value per row in each", got=lengths)
    return table


def write_table(table: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write columns to a .csv, .tsv or .parquet file, atomically; what `read_table` reads back.

    Raises:
        DataError: an unknown format, or columns that are not a table.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    path, columns = Path(path), pa.table(read_table(table))
    if path.suffix not in (*_TEXT, ".parquet"):
        raise DataError("unknown table format", expected=".csv, .tsv or .parquet", got=path.name)
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            parquet.write_table(columns, temporary)
        else:
            csv.write_csv(columns, temporary, csv.WriteOptions(delimiter=_TEXT[path.suffix]))
    return path


def to_frame(table: Mapping[str, Any]) -> Any:
    """The table as a pandas DataFrame.

    Raises:
        DataError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise DataError("pandas is not installed", fix="pip install 'fairface_synth[audit]'") from error
    return pd.DataFrame(read_table(table))


def _read_file(path: Path) -> Any:
    import pyarrow as pa
    from pyarrow import csv, parquet

    if not path.exists():
        raise DataError("no such table", expected="a .csv, .tsv or .parquet file", got=str(path))
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        if path.is_dir() or kind == ".parquet":
            return parquet.read_table(path)
        if kind in _TEXT:
            return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=_TEXT[kind]))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="columns under a header line", got=error) from error
    raise DataError("unknown table format", expected=".csv, .tsv (also .gz) or .parquet", got=path.name)


def _names(source: Any) -> list[str]:
    if isinstance(source, Mapping):
        names = list(source)
    else:  # pyarrow's name for it, then pandas'
        names = list(getattr(source, "column_names", getattr(source, "columns", ())))
    if not names:
        raise DataError(
            "this is not a table",
            expected="a mapping of columns, a pandas frame, a pyarrow table, records, or the path of a file",
            got=type(source).__name__,
        )
    return [str(name) for name in names]


def _column(name: str, values: Any) -> np.ndarray:
    if str(getattr(values, "dtype", "")) == "category":
        values = values.astype(object)  # a pandas categorical holds labels, whatever they look like
        values = values.where(values.isna(), values.astype(str))
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    elif hasattr(values, "to_numpy"):  # pandas, pyarrow
        values = values.to_numpy()
    column = np.asarray(values)
    if column.dtype.kind == "U" and not isinstance(values, np.ndarray):
        column = np.asarray(values, dtype=object)  # in a list, NaN has become the word "nan"
    if column.ndim != 1:
        raise ShapeError(f"column {name!r} is not one-dimensional", expected="[n]", got=list(column.shape))
    if column.dtype.kind in "biuf":
        return column
    missing = np.array([is_missing(x) for x in column], dtype=bool)
    if column.dtype == object and all(isinstance(x, int | float | np.number) for x in column[~missing]):
        return np.where(missing, np.nan, column).astype(np.float64)
    return np.where(missing, "", column).astype(str)


def is_missing(x: Any) -> bool:
    """Whether a value is None, NaN or pandas' NA."""
    try:
        return x is None or bool(x != x)
    except TypeError:  # pandas' NA is neither equal nor unequal
        return True
