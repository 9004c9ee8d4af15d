"""Annotations in a folder: a header and parquet parts, each of them whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .annotation import FORMAT, Annotations, from_arrow, schema_of, summary
from .artifacts import atomic_path
from .errors import DataError

HEADER = "annotations.json"


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
        self.schema, self.name = schema_of(self.header), str(self.header["name"]) or self.path.name
        self.classifier = str(self.header["mac"])
        missing = [p.name for p in parts_of(self.path, self.header) if not p.exists()]
        if missing:
            raise DataError(
                f"{self.path} is not finished",
                expected=f"{len(list(parts_of(self.path, self.header)))} parts",
                got=f"{len(missing)} missing, {missing[0]} the first",
                fix="run annotate once more with the same arguments: it makes what is missing",
            )

    def __len__(self) -> int:
        return int(self.header["n"])

    def __repr__(self) -> str:
        return summary(self, bool(self.header["reliability_passes"]), bool(self.header["has_identities"]))

    def batches(self, rows: int = 65536) -> Iterator[Annotations]:
        """The set in pieces of at most `rows` faces; no more than one of them is in memory."""
        from pyarrow import parquet

        if rows < 1:
            raise DataError("no rows at a time", expected="rows ≥ 1", got=rows)
        for part in parts_of(self.path, self.header):
            with _undamaged(part):
                file = parquet.ParquetFile(part)
            with file:
                for batch in file.iter_batches(rows):
                    yield from_arrow(batch, self.schema, self.name, self.classifier)

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


def open_folder(folder: Path, header: Mapping[str, Any]) -> Path:
    """The folder, with this header; one that has another is refused."""
    if not (folder / HEADER).exists():
        if next(folder.glob("part-*.parquet"), None):
            raise DataError(f"{folder} has parts but no {HEADER}", expected="a new folder", fix="choose another one")
        try:
            with atomic_path(folder / HEADER) as temporary:
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


def parts_of(folder: Path, header: Mapping[str, Any]) -> Iterator[Path]:
    """The files of a folder with this header, whether they are there or not."""
    for i in range(-(-header["n"] // header["part_size"])):
        yield folder / f"part-{i:06d}.parquet"


def is_done(path: Path, rows: int) -> bool:
    """Whether a part is there; one that cannot be read or has other rows is an error."""
    from pyarrow import parquet

    if not path.exists():
        return False
    with _undamaged(path):
        found = parquet.read_metadata(path).num_rows
    if found != rows:
        raise DataError(f"{path} is damaged", expected=f"{rows} rows", got=found, fix="delete it")
    return True


# --- details ----------------------------------------------------------------------------------------------------------


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} holds no annotated set", expected=f"a readable {HEADER}", got=error) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise DataError(f"{folder / HEADER} is something else", expected=FORMAT, got=str(header)[:80])
    return header


@contextmanager
def _undamaged(part: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        fix = "delete it and run annotate once more with the same arguments"
        raise DataError(f"{part} is damaged", expected="a parquet file", got=error, fix=fix) from error
