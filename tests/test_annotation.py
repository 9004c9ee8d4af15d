"""Annotations in memory and in one file: labels and probabilities, thresholds, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairface_synth.annotation import Annotations
from fairface_synth.annotation_sources import as_annotations
from fairface_synth.attribute_schema import AttributeSchema
from fairface_synth.errors import DataError, FairFaceError, GroupError, ShapeError

SCHEMA = AttributeSchema(("Male", "Smiling", "Wearing_Hat"), noisy={"hat": "half of them are hair"}, source="a test")


def _same(a: Annotations, b: Annotations) -> None:
    assert a.schema == b.schema
    assert a.schema.noisy == b.schema.noisy
    assert a.schema.source == b.schema.source
    assert a.name == b.name
    assert a.classifier == b.classifier
    for what in ("probabilities", "reliability"):
        x, y = getattr(a, what), getattr(b, what)
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)
    for what in ("identities", "ids"):
        x, y = getattr(a, what), getattr(b, what)
        assert (x is None and y is None) or x.tolist() == y.tolist()


labels_in = st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3), min_size=1, max_size=20)


@pytest.mark.filterwarnings("ignore:no face is labelled")
@given(labels_in, st.integers(1, 25))
def test_labels_survive_probabilities_and_batches(rows: list[list[int]], size: int) -> None:
    labels = torch.tensor(rows)
    a = Annotations.from_labels(labels, SCHEMA, identities=range(len(rows)))
    assert torch.equal(a.labels(), labels.to(torch.int8))
    parts = list(a.batches(size))
    assert [len(p) for p in parts] == [size] * (len(rows) // size) + [len(rows) % size] * (len(rows) % size > 0)
    assert torch.equal(torch.cat([p.labels() for p in parts]), labels.to(torch.int8))
    assert np.concatenate([p.identities for p in parts]).tolist() == [str(i) for i in range(len(rows))]


def test_hard_labels_by_threshold_and_reliability() -> None:
    p = torch.tensor([[0.2, 0.5, float("nan")], [0.8, 0.49, 1.0]])
    r = torch.tensor([[0.4, 0.1, 0.4], [0.1, 0.4, 0.4]])
    a = Annotations(SCHEMA, p, r)
    assert a.labels().tolist() == [[-1, 1, 0], [1, -1, 1]]
    assert a.labels(min_reliability=0.3).tolist() == [[-1, 0, 0], [0, -1, 1]]
    assert a.labels(torch.tensor([0.1, 0.9, 0.5])).tolist() == [[1, -1, 0], [1, -1, 1]]
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(DataError):
            a.labels(wrong)
    with pytest.raises(ShapeError):
        a.labels(torch.tensor([0.5, 0.5]))
    with pytest.raises(DataError, match="reliabilities"):
        Annotations(SCHEMA, p).labels(min_reliability=0.3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"probabilities": torch.rand(4, 2)},
        {"probabilities": torch.ones(4, 3, dtype=torch.int64)},
        {"probabilities": np.zeros((4, 3))},
        {"probabilities": torch.full((4, 3), 1.1)},
        {"probabilities": torch.full((4, 3), -1.0)},
        {"reliability": torch.rand(4, 2)},
        {"reliability": 0.5},
        {"identities": ["a", "b"]},
        {"identities": ["a", "b", "", "c"]},
        {"identities": ["a", None, "b", "c"]},
        {"identities": np.array(["a", float("nan"), "b", "c"], dtype=object)},
        {"identities": [1.0, 2.0, float("nan"), 3.0]},
        {"ids": "abcd"},
    ],
)
def test_bad_annotations_speak_up(arguments) -> None:
    with pytest.raises(FairFaceError):
        Annotations(SCHEMA, **({"probabilities": torch.rand(4, 3)} | arguments))


@pytest.mark.parametrize(
    "labels", [torch.full((2, 3), 2), torch.full((2, 3), float("nan")), torch.ones(2, 2), [[1]], torch.ones(2, 3) > 0]
)
def test_bad_labels_speak_up(labels) -> None:
    with pytest.raises(FairFaceError):
        Annotations.from_labels(labels, SCHEMA)


@pytest.mark.parametrize("full", [True, False])
def test_saved_and_loaded(tmp_path, full: bool) -> None:
    p = torch.rand(5, 3)
    p[1, 2] = torch.nan
    more = {"reliability": torch.rand(5, 3), "identities": ["a", "ä", "b", "b", "1"], "ids": list("vwxyz")}
    a = Annotations(SCHEMA, p, **(more if full else {}), name="a set", classifier="0123" if full else "")
    path = a.save(tmp_path / "a.parquet")
    _same(a, Annotations.load(path))
    _same(a, as_annotations(path))
    assert as_annotations(a) is a
    with pytest.raises(DataError, match=r"write_table\(annotations.to_table\(\), 'a.csv'\)"):
        a.save(tmp_path / "a.csv")
    with pytest.raises(DataError):
        Annotations.load(tmp_path / "none.parquet")


def test_one_face_and_columns_without_a_schema_are_refused() -> None:
    with pytest.raises(GroupError, match="need a schema"):
        Annotations(["Male"], torch.rand(2, 1))
    with pytest.raises(DataError, match=r"\[3:4\]"):
        Annotations(SCHEMA, torch.rand(5, 3))[3]


@pytest.mark.parametrize("settings", [{"threshold": "0.5"}, {"threshold": ["a", "b", "c"]}, {"min_reliability": "0.3"}])
def test_settings_that_are_no_numbers_speak_up(settings) -> None:
    with pytest.raises(DataError):
        Annotations(SCHEMA, torch.rand(4, 3), torch.rand(4, 3)).labels(**settings)
