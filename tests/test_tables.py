"""Tables: every source gives the same columns, and what is written is what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import fairface_synth as ffs
from fairface_synth.tables import read_table, to_frame, write_table

COLUMNS = {"score": [1.5, float("nan"), -2.0], "n": [1, 2, 3], "group": ["a", "", "c,\n'd'"]}


def _same(table: dict[str, np.ndarray]) -> None:
    assert list(table) == list(COLUMNS)
    np.testing.assert_array_equal(table["score"], COLUMNS["score"])
    np.testing.assert_array_equal(table["n"], COLUMNS["n"])
    assert table["group"].tolist() == COLUMNS["group"]


def test_every_source_gives_the_same_columns() -> None:
    _same(read_table(COLUMNS))
    _same(read_table(COLUMNS | {"score": torch.tensor(COLUMNS["score"], dtype=torch.float64)}))
    _same(read_table(pd.DataFrame(COLUMNS)))
    _same(read_table(pa.table(COLUMNS)))
    _same(read_table([dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.parquet"])
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    _same(read_table(write_table(COLUMNS, tmp_path / name)))
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    for part in range(2):
        write_table({"x": [2 * part, 2 * part + 1]}, tmp_path / f"part-{part}.parquet")
    assert read_table(tmp_path)["x"].tolist() == [0, 1, 2, 3]


def test_missing_values() -> None:
    assert read_table({"text": ["a", float("nan")]})["text"].tolist() == ["a", ""]
    table = read_table({"text": ["a", None, float("nan")], "number": [1, None, 3.5]})
    assert table["text"].tolist() == ["a", "", ""]
    np.testing.assert_array_equal(table["number"], [1, np.nan, 3.5])
    frame = to_frame(table)
    assert list(frame.columns) == ["text", "number"]
    assert len(frame) == 3


def test_pandas_own_types() -> None:
    frame = pd.DataFrame(
        {
            "flag": pd.array([True, None, False], dtype="boolean"),
            "text": pd.array(["a", None, "b"], dtype="string"),
            "label": pd.Categorical([1, None, 2]),
        }
    )
    table = read_table(frame)
    np.testing.assert_array_equal(table["flag"], [1, np.nan, 0])
    assert table["text"].tolist() == ["a", "", "b"]
    assert table["label"].tolist() == ["1", "", "2"]  # labels, not numbers


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({}, "not a table"),
        (3, "not a table"),
        ({"a": [1, 2], "b": [1]}, "differ in length"),
        (pa.table([[1], [2]], names=["a", "a"]), "repeat"),
        ({"a": [[1, 2]]}, "one-dimensional"),
        ("nowhere.csv", "no such table"),
    ],
)
def test_what_is_no_table_says_so(source: object, says: str) -> None:
    with pytest.raises(ffs.FairFaceError, match=says):
        read_table(source)


def test_unreadable_files_say_so(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("x")
    (tmp_path / "a.parquet").write_text("x")
    with pytest.raises(ffs.DataError, match="unknown table format"):
        read_table(tmp_path / "a.xlsx")
    with pytest.raises(ffs.DataError, match="unknown table format"):
        write_table(COLUMNS, tmp_path / "a.xlsx")
    with pytest.raises(ffs.DataError, match="cannot read"):
        read_table(tmp_path / "a.parquet")
