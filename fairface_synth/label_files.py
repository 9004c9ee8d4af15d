"""Label files of face sets: MAAD-Face's by the million rows, and any table's columns as text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .attribute_schema import MAAD_FACE, AttributeSchema
from .errors import DataError
from .tables import read_table
from .vocabulary import plain


def read_maad_labels(
    path: str | os.PathLike[str], schema: AttributeSchema = MAAD_FACE
) -> tuple[tuple[str, ...], tuple[str, ...], Tensor]:
    """Read MAAD-Face's label file (Terhörst et al. 2021): columns Filename, Identity and one of −1, 0, 1 per attribute.

    Streams, so that the 3.3 million rows fit into a laptop's memory. Columns are found by name, in any order; columns
    that the schema does not name are left out.

    Returns:
        Filenames [n] ("n000001/0001_01.jpg"), identities [n], and int8 labels [n, K] in the schema's order.

    Raises:
        DataError: no such file, missing or doubled columns, values other than −1, 0, 1.
    """
    import pyarrow as pa
    from pyarrow import csv

    path = Path(path)
    names = _header(path)
    columns = _maad_columns(names, schema, path)
    types = dict.fromkeys(columns, pa.int8()) | dict.fromkeys(columns[:2], pa.string())
    filenames: list[str] = []
    identities: list[str] = []
    known: dict[str, str] = {}  # 9,000 identities in 3.3 million rows: one string each
    blocks = []
    try:
        options = csv.ConvertOptions(column_types=types, include_columns=columns)
        for batch in csv.open_csv(path, convert_options=options):
            filenames += batch.column(0).to_pylist()
            identities += [known.setdefault(i, i) for i in batch.column(1).to_pylist()]
            if any(c.null_count for c in batch.columns):
                raise DataError(f"{path} has empty cells", expected="-1, 0 or 1 in every attribute")
            blocks.append(np.stack([c.to_numpy() for c in batch.columns[2:]], axis=1))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="-1, 0 or 1 in every attribute", got=error) from error
    labels = torch.from_numpy(np.concatenate(blocks)) if blocks else torch.empty(0, len(schema.names))
    if not len(labels):
        raise DataError(f"{path} has no rows", expected="a row per image")
    if int(labels.min()) < -1 or int(labels.max()) > 1:
        raise DataError(
            f"{path} holds other values", expected="-1, 0, 1", got=f"{int(labels.min())} … {int(labels.max())}"
        )
    return tuple(filenames), tuple(identities), labels


def read_columns(source: Any) -> dict[str, Any]:
    """A table's columns. Text files are read as text, so that identity "0007" stays what it is."""
    import pyarrow as pa
    from pyarrow import csv

    if not isinstance(source, str | os.PathLike) or _delimiter(Path(source)) is None:
        return dict(read_table(source))
    path = Path(source)
    names = _header(path)
    options = csv.ParseOptions(delimiter=_delimiter(path))
    convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    try:
        table = csv.read_csv(path, parse_options=options, convert_options=convert)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="rows of equal length", got=error) from error
    return {name.strip(): table.column(name).to_pylist() for name in names}


def take_columns(table: Mapping[str, Sequence[Any]], wanted: Iterable[str], what: str) -> list[list[str]]:
    """Columns by name as text, ignoring case, spaces and underscores."""
    by_name = {plain(name): name for name in table}
    if not all(plain(name) in by_name for name in wanted):
        raise DataError(f"this is not {what}", expected=", ".join(wanted), got=", ".join(table), fix='layout="csv"')
    return [cell_texts(table[by_name[plain(name)]]) for name in wanted]


def cell_texts(column: Sequence[Any]) -> list[str]:
    """Cells as text: whole numbers without a point, "" where there is nothing."""
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":
        return ["" if x != x else str(int(x)) if x.is_integer() else repr(x) for x in column.tolist()]
    return [str(cell).strip() for cell in (column.tolist() if isinstance(column, np.ndarray) else column)]


# --- details ----------------------------------------------------------------------------------------------------------


def _maad_columns(names: Sequence[str], schema: AttributeSchema, path: Path) -> list[str]:
    """The file's names of its columns: filename, identity, then the attributes in the schema's order."""
    wanted = {"filename": [n for n in names if plain(n) in ("filename", "file", "path")]}
    wanted["identity"] = [n for n in names if plain(n) in ("identity", "identities")]
    wanted |= {attribute: [] for attribute in schema.names}
    for name in names:
        if name in schema:
            wanted[schema.names[schema.index(name)]].append(name)
    bad = {column: hits for column, hits in wanted.items() if len(hits) != 1}
    if bad:
        raise DataError(
            f"{path.name} is not a label file of this kind",
            expected=f"Filename, Identity and {len(schema.names)} attributes, a column each",
            got="; ".join(f"{column}: {', '.join(hits) or 'missing'}" for column, hits in list(bad.items())[:5]),
            fix="pass the schema of your file: AttributeSchema((…))",
        )
    return [hits[0] for hits in wanted.values()]


def _header(path: Path) -> list[str]:
    """Column names of a .csv or .tsv file."""
    import pyarrow as pa
    from pyarrow import csv

    if not path.is_file():
        raise DataError("no such file", expected="a table with a header line", got=str(path))
    try:
        with csv.open_csv(path, parse_options=csv.ParseOptions(delimiter=_delimiter(path) or ",")) as reader:
            names: list[str] = reader.schema.names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path}", expected="columns under a header line", got=error) from error
    if len(set(names)) < len(names):
        raise DataError(f"{path.name} repeats a column", got=", ".join(n for n, k in Counter(names).items() if k > 1))
    return names


def _delimiter(path: Path) -> str | None:
    """Of a text table by its name, also gzipped; None for other files."""
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return {".csv": ",", ".tsv": "\t"}.get(kind)
