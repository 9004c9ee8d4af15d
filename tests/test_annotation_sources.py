"""Tables and files of others as annotations: codings, columns left out, schemas, what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from fairface_synth.annotation import Annotations
from fairface_synth.annotation_sources import as_annotations
from fairface_synth.attribute_schema import MAAD_FACE, AttributeSchema
from fairface_synth.errors import DataError, FairFaceError, GroupError
from fairface_synth.face_sets import FaceSet

SCHEMA = AttributeSchema(("Male", "Smiling", "Wearing_Hat"), noisy={"hat": "half of them are hair"}, source="a test")


def test_columns_of_words_are_left_out_and_mentioned() -> None:
    labels = torch.tensor([[1, -1, 0], [-1, 1, -1]], dtype=torch.int8)
    words = {"race": ("asian", "white"), "age": ("3-9", "70"), "size": ("", "large")}
    faces = FaceSet("a set", Path("."), ("a.png", "b.png"), ("p", "q"), words, labels, SCHEMA)
    with pytest.warns(UserWarning, match="left out: race, age, size"):
        a = as_annotations(faces.to_table())
    b = as_annotations(faces)
    for x in (a, b):
        assert x.labels()[:, [x.schema.index(n) for n in SCHEMA.names]].tolist() == labels.tolist()
        assert x.identities.tolist() == ["p", "q"]
        assert x.ids.tolist() == ["a.png", "b.png"]
    assert b.name == "a set"
    with pytest.raises(DataError, match="has no annotations"):
        as_annotations(FaceSet("a set", Path("."), ("a.png",)))


def test_zeros_that_may_mean_absent_are_mentioned(tmp_path) -> None:
    with pytest.warns(UserWarning, match=r"−1 \(absent\) in Male, Wearing_Hat"):
        Annotations.from_labels(torch.tensor([[0, 1, 1], [1, -1, 0]]), SCHEMA)
    with pytest.warns(UserWarning, match="in fair"):  # one column of zeros and ones among MAAD-Face's
        as_annotations({"Male": [1, -1, 0], "fair": [0, 1, 1]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_annotations({"Male": [1, -1, 0], "Smiling": [0, 0, 0], "Young": [1, 1, 1]})
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="holds no annotations"):
        as_annotations(tmp_path / "photos")


def test_the_coding_of_a_table_is_told_by_its_values(tmp_path) -> None:
    labelled = as_annotations({"Identity": [3, 3, 4], "filename": list("abc"), "x": [1, 0, -1], "y": [0, 1, -1]})
    assert labelled.labels().tolist() == [[1, 0], [0, 1], [-1, -1]]
    assert labelled.identities.tolist() == ["3", "3", "4"]
    assert labelled.ids.tolist() == ["a", "b", "c"]
    soft = as_annotations({"person_id": ["a", "b"], "x": [1, 0], "y": [0.25, np.nan]})
    torch.testing.assert_close(soft.probabilities, torch.tensor([[1, 0.25], [0, np.nan]]), equal_nan=True)
    (tmp_path / "set.csv").write_text("Identity,x\n1,0.5\n2,\n")
    read = as_annotations(tmp_path / "set.csv")
    assert read.name == "set"
    assert read.probabilities[0].item() == 0.5
    assert read.probabilities[1].isnan().all()


def test_tables_of_maad_face_get_its_order_and_its_warnings() -> None:
    shuffled = {n.replace("_", " ").lower(): [1, -1, 0] for n in reversed(MAAD_FACE.names)}
    a = as_annotations({"Filename": list("abc"), "Identity": [1, 1, 2]} | shuffled)
    assert a.schema == MAAD_FACE
    assert a.schema.noisy == MAAD_FACE.noisy
    assert a.labels().tolist() == [[1] * 47, [-1] * 47, [0] * 47]
    some = as_annotations({"brown eyes": [0.3], "male": [0.9]})
    assert some.schema.names == ("Male", "Brown_Eyes")
    assert set(some.schema.noisy) == {"Brown_Eyes"}
    torch.testing.assert_close(some.probabilities, torch.tensor([[0.9, 0.3]]))


def test_a_table_of_reliabilities_comes_back() -> None:
    a = Annotations(SCHEMA, torch.rand(4, 3), torch.rand(4, 3), np.array(list("aabb")))
    b = as_annotations(a.to_table())
    torch.testing.assert_close(b.reliability[:, b.schema.index("hat")], a.reliability[:, 2])
    table = a.to_table()
    del table["Smiling.reliability"]
    with pytest.raises(DataError, match="reliabilities"):
        as_annotations(table)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"identity": [1, 2]}, "no such column"),
        ({"race": ["asian", "white"]}, "text in race"),
        ({"x": ["1", "-1"], "y": [1, -1]}, "written as text"),
        ({"x": ["yes", "", "no"], "y": [1, 0, 0]}, "written as text"),
        ({"x": [1, 0], "age": [20, 30]}, "'age' from 20 to 30"),
        ({"x": [0, 55, 100]}, "percentages"),
        ({"x": [0.3, -1, 0.7]}, "−1 for undefined"),
        ({"id": ["p", "p", "q"], "x": [1, 0, 0]}, "'id' repeats"),
        ({"x": [1, -1], "y": [0.5, 0.5]}, "y"),
        ({"x": [0.5], "identity": ["a"], "person_id": ["b"]}, "say the same"),
        ({"x": [0, 1, 1], "frame": [0, 1, 2]}, r"(?s)'frame' from 0 to 2.*as_annotations\(table, schema\)"),
        (torch.zeros(2, 3, 4, 4), r"annotate\(images"),
        (torch.zeros(2, 3), "from_labels"),
    ],
)
def test_tables_that_are_no_annotations_speak_up(table, says: str) -> None:
    with pytest.raises(FairFaceError, match=says):
        as_annotations(table)


def test_measurements_and_an_index_are_no_attributes(tmp_path) -> None:
    frame = pd.DataFrame(
        {"subject": ["a", "b", "b"], "fair": [1, 0, 1], "luminance": [0.2, 0.3, 0.4], "skin/ita": 0.5, "score": 0.5}
    )
    frame.to_csv(tmp_path / "set.csv")  # with pandas' index, as a column without a name
    for table in (tmp_path / "set.csv", pd.read_csv(tmp_path / "set.csv")):
        with pytest.warns(UserWarning, match="left out") as caught:
            a = as_annotations(table)
        messages = " ".join(str(w.message) for w in caught)
        assert "index=False" in messages
        assert "left out: luminance, skin/ita, score" in messages
        assert a.schema.names == ("fair",)
        assert a.identities.tolist() == ["a", "b", "b"]
    with pytest.warns(UserWarning, match="luminance"), pytest.raises(DataError, match="no table of attributes"):
        as_annotations({"luminance": [0.5], "identity": ["a"]})


def test_a_schema_says_which_columns_are_attributes() -> None:
    table = {
        "frame": [0, 1, 2],
        "luminance": [0.2, 0.3, 0.4],
        "fair": [1, 0, 1],
        "wearing hat": [1, 1, 0],
        "id": [*"abc"],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = as_annotations(table, AttributeSchema(("hat", "luminance"), noisy={"hat": "hair"}))
    assert a.schema.names == ("hat", "luminance")
    assert a.schema.noisy == {"hat": "hair"}
    torch.testing.assert_close(a.probabilities, torch.tensor([[1, 0.2], [1, 0.3], [0, 0.4]]))
    with pytest.raises(GroupError, match="no column for Bald"):
        as_annotations(table, AttributeSchema(("hat", "Bald")))
    with pytest.raises(DataError, match="has a schema"):
        as_annotations(a, a.schema)
