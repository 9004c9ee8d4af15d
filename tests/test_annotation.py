"""Annotated sets: names, labels, files, folders that are taken up again, and what others have annotated."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairface_synth.annotation import (
    MAAD_FACE,
    AnnotationFolder,
    Annotations,
    AttributeSchema,
    annotate,
    as_annotations,
)
from fairface_synth.attribute_classifier import MAC, train_mac
from fairface_synth.datasets import FaceSet
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


# --- names ------------------------------------------------------------------------------------------------------------


def test_maad_face_has_its_47_attributes_and_the_published_warnings() -> None:
    assert len(MAAD_FACE) == 47
    assert set(MAAD_FACE.noisy) == {
        "Brown_Eyes",
        "Bags_Under_Eyes",
        "Round_Face",
        "Big_Lips",
        "Receding_Hairline",
        "Shiny_Skin",
    }
    assert all(figure in MAAD_FACE.noisy["Brown_Eyes"] for figure in (".68", ".44", ".85"))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("male", "Male"),
        ("MIDDLE AGED", "Middle_Aged"),
        ("5 o'Clock Shadow", "5_o_Clock_Shadow"),
        ("hat", "Wearing_Hat"),
        ("wearing lipstick", "Wearing_Lipstick"),
        ("No Eyewear", "No_Eyewear"),
        ("Earrings", "Wearing_Earrings"),
    ],
)
def test_names_are_matched_as_people_write_them(written: str, name: str) -> None:
    assert MAAD_FACE.names[MAAD_FACE.index(written)] == name
    assert written in MAAD_FACE


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(GroupError, match="did you mean Smiling"):
        MAAD_FACE.index("smilng")
    assert "smilng" not in MAAD_FACE
    assert 3 not in MAAD_FACE


@pytest.mark.parametrize(
    "names", [(), ("a", "A"), ("Hat", "Wearing Hat"), ("identity", "a"), ("a.reliability",), ("_",), "Male", (1, 2)]
)
def test_names_that_cannot_be_attributes_are_refused(names) -> None:
    with pytest.raises(GroupError):
        AttributeSchema(names)


def test_a_schema_is_its_names() -> None:
    assert AttributeSchema(("a", "b")) == AttributeSchema(("a", "b"), {"a": "bad"}, "x")
    assert len({AttributeSchema(("a", "b")), AttributeSchema(("a", "b"), {"a": "bad"})}) == 1
    assert AttributeSchema(("a", "b")) != AttributeSchema(("b", "a"))
    assert SCHEMA.noisy == {"Wearing_Hat": "half of them are hair"}
    assert SCHEMA.subset(["hat", "male"]).names == ("Wearing_Hat", "Male")
    assert not SCHEMA.subset(["male"]).noisy
    with pytest.raises(GroupError):
        AttributeSchema(("a",), {"b": "bad"})
    with pytest.raises(GroupError):
        SCHEMA.subset("male")
    with pytest.raises(GroupError):
        SCHEMA.subset([])
    with pytest.raises(GroupError):
        AttributeSchema(None)
    with pytest.raises(GroupError, match="need a schema"):
        Annotations(["Male"], torch.rand(2, 1))
    with pytest.raises(DataError, match=r"\[3:4\]"):
        Annotations(SCHEMA, torch.rand(5, 3))[3]


# --- in memory --------------------------------------------------------------------------------------------------------

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


# --- tables of others -------------------------------------------------------------------------------------------------


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


# --- annotating a set -------------------------------------------------------------------------------------------------

N = 23


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


class _Pixels:
    """An embedder: the pixels, as unit vectors."""

    dim = 48

    def __call__(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.flatten(1), dim=1)


class _Failing(_Pixels):
    """One that stops in the middle; the same by name, so that its folder can be taken up."""

    __qualname__ = "_Pixels"

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(images)


@pytest.fixture(scope="module")
def mac(images: Tensor) -> MAC:
    return _mac(0)


def _mac(seed: int) -> MAC:
    rng = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(200, 48, generator=rng), dim=1)
    y = torch.where(x[:, :3] > 0, 1, -1)
    sizes = {"hidden": 8, "branch": 4, "epochs": 1, "batch_size": 32}
    return train_mac(x, y, range(200), schema=SCHEMA, **sizes, progress=False)


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def _annotate(images: Tensor, mac: MAC, path: Path | None, embedder=None, **settings):
    settings = {"batch_size": 4, "part_size": 6, "reliability_passes": 5, "progress": False} | settings
    return annotate(images, embedder or _Pixels(), mac, path, identities=[i // 3 for i in range(N)], **settings)


def test_annotating_in_memory_and_in_parts_is_the_classifier_of_the_embeddings(images, mac, tmp_path) -> None:
    p, reliability = mac.predict(_Pixels()(images), passes=5)
    memory = _annotate(images, mac, None, name="pixels")
    torch.testing.assert_close(memory.probabilities, p)
    torch.testing.assert_close(memory.reliability, reliability)
    folder = _annotate(images, mac, tmp_path / "set", name="pixels")
    assert isinstance(folder, AnnotationFolder)
    assert len(folder) == N
    torch.testing.assert_close(folder.load().probabilities, p)
    torch.testing.assert_close(folder.load().reliability, reliability)
    assert folder.load().identities.tolist() == memory.identities.tolist()
    opened = as_annotations(tmp_path / "set")
    assert (opened.name, opened.schema, opened.schema.noisy) == ("pixels", SCHEMA, SCHEMA.noisy)
    pieces = list(opened.batches(4))
    assert [len(x) for x in pieces] == [4, 2] * 3 + [4, 1]
    torch.testing.assert_close(torch.cat([x.probabilities for x in pieces]), p)
    plain = _annotate(images, mac, tmp_path / "plain", reliability_passes=0)
    assert plain.load().reliability is None


def test_images_without_a_name_make_a_set_without_one_or_called_as_its_folder(images, mac, tmp_path) -> None:
    assert _annotate(images, mac, None).name == ""
    folder = _annotate(images, mac, tmp_path / "with spaces" / "a set")
    assert folder.name == folder.load().name == "a set"
    assert _annotate(images, mac, tmp_path / "named", name="mine").name == "mine"


@pytest.mark.parametrize("calls", [0, 1, 3, 5])
def test_an_interrupted_run_is_taken_up_and_comes_out_the_same(images, mac, tmp_path, calls: int) -> None:
    whole = _annotate(images, mac, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _annotate(images, mac, tmp_path / "set", _Failing(calls))
    assert not list((tmp_path / "set").glob("*.tmp"))
    with pytest.raises(DataError, match="not finished"):
        AnnotationFolder(tmp_path / "set")
    done = len(list((tmp_path / "set").glob("part-*")))
    assert done == calls // 2  # six faces a part, four a batch: two calls a part
    counting = _Failing(100)
    _annotate(images, mac, tmp_path / "set", counting)
    assert 100 - counting.left == 8 - 2 * done
    assert _digests(tmp_path / "set") == _digests(whole.path)
    again = _Failing(0)
    _annotate(images, mac, tmp_path / "set", again)  # nothing is missing: the embedder is not called


def test_a_folder_of_something_else_is_refused(images, mac, tmp_path) -> None:
    _annotate(images, mac, tmp_path)
    before = _digests(tmp_path)
    other = AttributeSchema(("a", "b", "c"))
    renamed = MAC(**{**mac.__dict__, "names": other.names, "noisy": {}})
    changed = images.clone()
    changed[0] = -changed[0]
    for what, call in {
        "mac": lambda: _annotate(images, _mac(1), tmp_path),
        "schema": lambda: _annotate(images, renamed, tmp_path),
        "set": lambda: _annotate(changed, mac, tmp_path),
        "part_size": lambda: _annotate(images, mac, tmp_path, part_size=7),
        "reliability_passes": lambda: _annotate(images, mac, tmp_path, reliability_passes=0),
        "embedder": lambda: _annotate(images, mac, tmp_path, type("Other", (_Pixels,), {})()),
        "name": lambda: _annotate(images, mac, tmp_path, name="another"),
    }.items():
        with pytest.raises(DataError, match=rf"another annotation: .*{what}"):
            call()
    assert _digests(tmp_path) == before


def test_damage_is_not_passed_over(images, mac, tmp_path) -> None:
    _annotate(images, mac, tmp_path)
    part = tmp_path / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match="part-000001"):
        _annotate(images, mac, tmp_path)
    with pytest.raises(DataError, match="part-000001"):
        as_annotations(tmp_path).load()
    (tmp_path / "annotations.json").write_text("{}")
    with pytest.raises(DataError, match="something else"):
        AnnotationFolder(tmp_path)
    (tmp_path / "annotations.json").unlink()
    with pytest.raises(DataError, match=r"no annotations\.json"):
        _annotate(images, mac, tmp_path)
    with pytest.raises(DataError, match="holds no annotated set"):
        AnnotationFolder(tmp_path / "none")
    for place in (part, part / "below"):
        with pytest.raises(DataError, match="cannot write"):
            _annotate(images, mac, place)


class _Set:
    """Faces behind names, as a FaceSet has them."""

    def __init__(self, images: Tensor, broken: int | None = None) -> None:
        self.data, self.broken = images, broken
        self.name, self.paths = "files", tuple(f"{i:02d}.png" for i in range(len(images)))
        self.identities = tuple("ab"[i % 2] for i in range(len(images)))

    def __len__(self) -> int:
        return len(self.data)

    def images(self, start: int, stop: int, size: int | None = None) -> Tensor:
        if self.broken is not None and start <= self.broken < stop:
            raise OSError("truncated file")
        return self.data[start:stop, :, :size, :size]


class _Short(_Set):
    def images(self, start: int, stop: int, size: int | None = None) -> Tensor:
        return self.data[start : stop - 1]


def test_a_set_of_files_brings_its_names_and_identities(images, mac) -> None:
    a = annotate(_Set(images), _Pixels(), mac, batch_size=4, reliability_passes=0, progress=False)
    assert a.name == "files"
    assert a.ids.tolist() == [f"{i:02d}.png" for i in range(N)]
    assert a.identities.tolist() == ["ab"[i % 2] for i in range(N)]
    torch.testing.assert_close(a.probabilities, mac(_Pixels()(images)))
    large = torch.nn.functional.pad(images, (0, 2, 0, 2))
    b = annotate(_Set(large), _Pixels(), mac, size=4, reliability_passes=0, progress=False)
    torch.testing.assert_close(b.probabilities, a.probabilities)


def test_a_file_that_cannot_be_read_is_named(images, mac) -> None:
    with pytest.raises(DataError, match=r"17\.png"):
        annotate(_Set(images, broken=17), _Pixels(), mac, batch_size=8, reliability_passes=0, progress=False)


def test_what_cannot_be_annotated_speaks_up(images, mac) -> None:
    nan = images.clone()
    nan[7, 0] = torch.nan

    class Long(_Pixels):
        def __call__(self, images: Tensor) -> Tensor:
            return 2 * super().__call__(images)

    class Other(_Pixels):
        dim = 3

        def __call__(self, images: Tensor) -> Tensor:
            return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    for call in (
        lambda: _annotate(nan, mac, None),
        lambda: _annotate(images, mac, None, Long()),
        lambda: _annotate(images, mac, None, Other()),
        lambda: _annotate(images[:, :1], mac, None),
        lambda: _annotate(images, mac, None, batch_size=0),
        lambda: _annotate(images, mac, None, batch_size=2.5),
        lambda: _annotate(images, _Pixels(), None),
        lambda: annotate(images, _Pixels(), mac, identities=pd.Series(["a", pd.NA] * 11 + ["b"]), progress=False),
        lambda: _annotate(images, mac, None, reliability_passes=1),
        lambda: annotate(images, _Pixels(), mac, identities=["a"], progress=False),
        lambda: annotate(images[:0], _Pixels(), mac, progress=False),
        lambda: annotate(["a.png"], _Pixels(), mac, progress=False),
    ):
        with pytest.raises(FairFaceError):
            call()
    with pytest.raises(DataError, match="faces 4 to 7"):
        _annotate(nan, mac, None)
    with pytest.raises(ShapeError, match="gave something else"):
        annotate(_Short(images), _Pixels(), mac, progress=False)


def test_images_in_another_range_do_not_pass_unnoticed(images, mac, tmp_path) -> None:
    unit = (images + 1) / 2
    for path in (None, tmp_path / "set"):
        with pytest.warns(UserWarning, match=r"2 \* images - 1") as caught:
            _annotate(unit, mac, path)
        assert [Path(w.filename).name for w in caught] == [Path(__file__).name]  # once, and at the caller's line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _annotate(images, mac, None)
    pixels = (unit * 255).to(torch.uint8)
    given, wanted = (_annotate(x, mac, None).probabilities for x in (pixels, pixels.float() / 127.5 - 1))
    assert torch.equal(given, wanted)
    with pytest.raises(ShapeError, match=r"images.expand\(-1, 3, -1, -1\)"):
        _annotate(images[:, :1], mac, None)


@pytest.mark.parametrize("settings", [{"threshold": "0.5"}, {"threshold": ["a", "b", "c"]}, {"min_reliability": "0.3"}])
def test_settings_that_are_no_numbers_speak_up(settings) -> None:
    with pytest.raises(DataError):
        Annotations(SCHEMA, torch.rand(4, 3), torch.rand(4, 3)).labels(**settings)


def test_the_header_says_how_the_set_was_annotated(images, mac, tmp_path) -> None:
    _annotate(images, mac, tmp_path)
    header = json.loads((tmp_path / "annotations.json").read_text())
    assert header["mac"] == mac.fingerprint
    assert header["embedder"]["dim"] == 48
    assert header["schema"]["names"] == list(SCHEMA.names)
    assert header["n"] == N
    assert mac.fingerprint != _mac(1).fingerprint
    folder = AnnotationFolder(tmp_path)
    for a in (folder, folder.load(), folder.load()[2:5], next(folder.batches(3)), _annotate(images, mac, None)):
        assert a.classifier == mac.fingerprint
    assert Annotations.from_labels(torch.ones(2, 3), SCHEMA).classifier == ""
