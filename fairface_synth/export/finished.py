"""What a finished set says of itself: its own records, and the sizes and hashes of its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .croissant import hash_file, read_sidecars
from .plan import DatasetPlan

_BESIDE_SHARDS = (
    "plan.json",
    "parts.json",
    "identities.parquet",
    "latents.npy",
    "embeddings.npy",
    "gate.json",
    "train.rec",
    "train.idx",
    "property",
)


@dataclass(frozen=True)
class FinishedSet:
    """The finished set's own records; embeddings are a memory map."""

    gate: dict[str, Any]
    nearest: np.ndarray  # float [N], NaN where not known
    embeddings: np.ndarray | None
    files: dict[str, dict[str, Any]]
    bytes: int

    @property
    def threshold(self) -> float | None:
        value = self.gate.get("threshold")
        return None if value is None else float(value)


def read_finished(root: Path, plan: DatasetPlan) -> FinishedSet:
    """Read the records of the set in `root`, and hash them.

    Raises:
        DataError: a set that is not finished or of another plan, a file that cannot be read.
    """
    stored = _read_json(root / "plan.json")
    if DatasetPlan.from_dict(stored).digest != plan.digest:
        raise DataError(f"{root} holds the set of another plan", expected=plan.to_dict(), got=stored)
    gate = _read_json(root / "gate.json")
    files = {name: hash_file(root / name) for name in _BESIDE_SHARDS if (root / name).exists()}
    missing = [name for name in ("parts.json", "identities.parquet", "latents.npy") if name not in files]
    if missing:
        raise DataError(f"{root} is not finished", expected=missing[0], got="no such file", fix="run the export again")
    shards = 0
    for sidecar in read_sidecars(root, plan):
        # Shards' records that were joined into train.rec are counted there. A pattern stands for an identity's folders.
        shards += sum(f["bytes"] for name, f in sidecar["files"].items() if "*" in name or (root / name).exists())
    nearest = _read_nearest(root / "identities.parquet", plan)
    return FinishedSet(gate, nearest, _read_embeddings(root / "embeddings.npy", plan), files, shards)


# --- details ------------------------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        fix = "run the export again: it makes what is missing"
        raise DataError(f"cannot read {path}", expected="a file of a finished set", got=error, fix=fix) from error
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged", expected="a json object", got=type(values).__name__)
    return values


def _read_nearest(path: Path, plan: DatasetPlan) -> np.ndarray:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        column = parquet.read_table(path, columns=["nearest"])["nearest"]
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(f"cannot read {path}", expected="a column `nearest`", got=error) from error
    if len(column) != plan.identities:
        raise DataError(f"{path} is of another set", expected=f"{plan.identities} identities", got=len(column))
    return column.cast(pa.float64()).to_numpy()


def _read_embeddings(path: Path, plan: DatasetPlan) -> np.ndarray | None:
    if not path.exists():
        return None
    try:
        embeddings = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}", expected="float32 [N, e]", got=error) from error
    if embeddings.ndim != 2 or len(embeddings) != plan.identities or embeddings.dtype != np.float32:
        expected, got = f"float32 [{plan.identities}, e]", f"{embeddings.dtype} {list(embeddings.shape)}"
        raise DataError(f"{path} is of another set", expected=expected, got=got)
    return embeddings
