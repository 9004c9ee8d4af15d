"""Verification protocols on disk: each layout in miniature, what is malformed, hostile or odd, and round trips."""

from __future__ import annotations

import io
import math
import os
import pickle
import string
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fairface_synth.datasets import read_faces
from fairface_synth.errors import DataError, GroupError, ShapeError
from fairface_synth.groups import Groups
from fairface_synth.pairs import LAYOUTS, PackedFaces, PairSet, read_pairs
from fairface_synth.verification import verify

Line = tuple[str, int, str, int]


def put(path: Path, colour: object = (200, 100, 50), size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def jpeg(seed: int = 0, size: int = 8) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def lfw_line(a: str, i: int, b: str, j: int, mark: str = "\t") -> str:
    return mark.join((a, str(i), str(j)) if a == b else (a, str(i), b, str(j)))


def fold_lines(n: int, fold: int = 0) -> list[Line]:
    """n mated, then n non-mated pairs of people that other folds do not have."""
    mated = [(f"p{fold}_{i}", 1, f"p{fold}_{i}", 2) for i in range(n)]
    return mated + [(f"p{fold}_{i}", 1, f"q{fold}_{i}", 1) for i in range(n)]


def listed(pairs: PairSet) -> list[tuple[str, str, bool]]:
    """The pairs as paths."""
    assert not isinstance(pairs.faces, PackedFaces)
    paths = pairs.faces.paths
    return [(paths[i], paths[j], same) for (i, j), same in zip(pairs.pairs.tolist(), pairs.mated.tolist(), strict=True)]


def path_of(who: str, number: int) -> str:
    return f"{who}/{who}_{number:04d}.jpg"


# --- LFW ------------------------------------------------------------------------------------------------------------


def lfw(root: Path, lines: Sequence[Line], header: str = "", name: str = "pairs.txt", mark: str = "\t") -> Path:
    rows = ([header] if header else []) + [lfw_line(*line, mark=mark) for line in lines]
    write(root / name, "\n".join(rows) + "\n")
    return root


def test_lfw_lists_each_image_once_with_the_folds_of_the_header(tmp_path) -> None:
    lines = [line for fold in range(3) for line in fold_lines(2, fold)]
    root = lfw(tmp_path / "lfw", lines, "3\t2")
    pairs = read_pairs("lfw", root)
    assert listed(pairs) == [(path_of(a, i), path_of(b, j), a == b) for a, i, b, j in lines]
    assert len(set(pairs.faces.paths)) == len(pairs.faces) == 3 * 6
    assert pairs.folds.tolist() == [fold for fold in range(3) for _ in range(4)]
    assert pairs.faces.identities == tuple(path.split("/")[0] for path in pairs.faces.paths)
    assert (pairs.pairs.dtype, pairs.mated.dtype, pairs.folds.dtype) == (torch.int64, torch.bool, torch.int64)
    assert len(pairs) == 12
    assert pairs.notes == ()
    assert pairs.name == "lfw"
    assert "12 pairs (6 mated, 6 non-mated) of 18 faces; identities: 12; folds: 3" in str(pairs)


def test_development_lists_have_one_number_and_no_folds(tmp_path) -> None:
    root = lfw(tmp_path, fold_lines(5), "5", "pairsDevTest.txt", " ")
    pairs = read_pairs("lfw", root, pairs="pairsDevTest.txt")
    assert len(pairs) == 10
    assert pairs.folds is None
    assert listed(pairs) == listed(read_pairs("lfw", root / "pairsDevTest.txt"))  # the file itself, as root


def test_without_a_header_ten_equal_parts_are_the_folds(tmp_path) -> None:
    ten = [line for fold in range(10) for line in fold_lines(3, fold)]
    pairs = read_pairs("lfw", lfw(tmp_path / "a", ten))
    assert torch.equal(pairs.folds, torch.arange(60) // 6)
    assert pairs.notes == ()
    for other in (ten[:-1], ten[:12], [*ten[1:], ten[0]]):
        pairs = read_pairs("lfw", lfw(tmp_path / "b", other))
        assert pairs.folds is None
        assert "no folds" in pairs.notes[0]


@pytest.mark.parametrize("below", [".", "lfw-deepfunneled", "archive/lfw-deepfunneled"])
def test_lfw_images_lie_in_the_folder_or_below_it(tmp_path, below) -> None:
    root = lfw(tmp_path, [("Ærø_Ödegård", 1, "Ærø_Ödegård", 2), ("Ærø_Ödegård", 1, "李_明", 10)], "1")
    for name in ("Ærø_Ödegård/Ærø_Ödegård_0001", "Ærø_Ödegård/Ærø_Ödegård_0002", "李_明/李_明_0010"):
        put(root / below / f"{name}.jpg")
    pairs = read_pairs("lfw", root, missing="error", size=4)
    images = pairs.faces.images()
    assert images.shape == (3, 3, 4, 4)
    assert pairs.faces.missing == 0
    assert images[:, 0].mean() == pytest.approx(200 / 127.5 - 1, abs=0.03)


def test_names_with_spaces_windows_line_ends_a_mark_and_empty_lines(tmp_path) -> None:
    text = "\ufeff1\t1\r\n\r\nvan der Berg\t1\t2\r\nvan der Berg\t1\tde la Cruz\t3\r\n\r\n"
    (tmp_path / "pairs.txt").write_bytes(text.encode())
    pairs = read_pairs("lfw", tmp_path, suffix=".png")
    assert pairs.faces.paths[2] == "de la Cruz/de la Cruz_0003.png"
    assert pairs.folds.tolist() == [0, 0]


@pytest.mark.parametrize(
    "line",
    ["Abel\t1", "Abel\t1\ttwo", "Abel\tone\tCain\t2", "Abel\t1\tCain\t2\t3", "Abel 1 Cain", "\t1\t2x", "Abel -1 2"],
)
def test_a_malformed_line_is_named(tmp_path, line) -> None:
    write(tmp_path / "pairs.txt", f"1\nA\t1\t2\n\n{line}\n")
    with pytest.raises(DataError, match=r"pairs\.txt, line 4: not a pair[\s\S]*name i j") as error:
        read_pairs("lfw", tmp_path)
    assert repr(line.strip()) in str(error.value)


@pytest.mark.parametrize(("header", "count"), [("2 3", 11), ("1 6", 10), ("5", 12), ("3 3", 12)])
def test_a_list_that_is_not_what_its_header_says_is_refused(tmp_path, header, count) -> None:
    lfw(tmp_path, (fold_lines(3) + fold_lines(3, 1))[:count], header)
    with pytest.raises(DataError, match=r"its first line says[\s\S]*mated and \d+ non-mated"):
        read_pairs("lfw", tmp_path)


def test_missing_and_empty_lists_are_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"list of pairs is not there[\s\S]*pairs\.txt or[\s\S]*pairs="):
        read_pairs("lfw", tmp_path)
    with pytest.raises(DataError, match=r"not there[\s\S]*mine\.txt"):
        read_pairs("lfw", tmp_path, pairs="mine.txt")
    for text in ("", "\n\n", "10 300\n"):
        write(tmp_path / "pairs.txt", text)
        with pytest.raises(DataError, match="lists no pairs"):
            read_pairs("lfw", tmp_path)
    (tmp_path / "pairs.txt").write_bytes(b"1\nJos\xe9\t1\t2\n")
    with pytest.raises(DataError, match=r"not text in UTF-8[\s\S]*iconv"):
        read_pairs("lfw", tmp_path)


def test_missing_images_are_counted_dropped_or_refused(tmp_path) -> None:
    lines = [("A", 1, "A", 2), ("B", 1, "B", 2), ("A", 1, "B", 1), ("A", 2, "B", 2)]
    root = lfw(tmp_path, lines, "2")
    for who, number in (("A", 1), ("A", 2), ("B", 1)):
        put(root / path_of(who, number))
    assert read_pairs("lfw", root).faces.missing is None
    counted = read_pairs("lfw", root, missing="count")
    assert counted.faces.missing == 1
    assert len(counted) == 4
    with pytest.raises(DataError, match=r"1 of 4 listed files do not exist[\s\S]*B_0002"):
        read_pairs("lfw", root, missing="error")
    left = read_pairs("lfw", root, missing="drop")
    assert listed(left) == [(*(path_of(*x) for x in ((a, i), (b, j))), a == b) for a, i, b, j in (lines[0], lines[2])]
    assert left.faces.missing == 1
    assert any("their 2 pairs were left out" in note for note in left.notes)
    with pytest.raises(DataError, match=r"an image is missing[\s\S]*B_0002"):
        read_pairs("lfw", root).faces.images()
    (root / path_of("A", 1)).unlink()
    (root / path_of("B", 1)).unlink()
    with pytest.raises(DataError, match="every pair has an image that does not exist"):
        read_pairs("lfw", root, missing="drop")


def test_what_is_odd_is_noted(tmp_path) -> None:
    lines = ["A\t1\t2", "A\t2\t1", "A\t1\tB\t1", "A\t1\tA\t2", "A\t3\t3", "A\t3\t3"]
    write(tmp_path / "pairs.txt", "\n".join(lines))
    pairs = read_pairs("lfw", tmp_path)
    notes = "\n".join(pairs.notes)
    assert "3 pairs repeat" in notes
    assert "1 pairs are listed both" in notes
    assert "2 pairs compare an image" in notes
    assert "1 pairs contradict the identities" in notes
    assert pairs.identity_ids is None
    assert len(pairs.faces) == 5
    assert pairs.faces.paths.count("A/A_0003.jpg") == 2  # one row would be compared with itself
    assert all(note in str(pairs) for note in pairs.notes)
    write(tmp_path / "pairs.txt", "A\t1\t2\nA\t1\t3")
    assert "all pairs are mated" in "\n".join(read_pairs("lfw", tmp_path).notes)


# --- RFW ------------------------------------------------------------------------------------------------------------


def rfw(root: Path, folds: int = 10, races: Sequence[str] = ("African", "Asian", "Caucasian", "Indian")) -> Path:
    for r, race in enumerate(races):
        lines = [
            line
            for f in range(folds)
            for line in [f"m.{r}{f}{i}\t1\t2" for i in (0, 1)] + [f"m.{r}{f}0\t{i}\tm.{r}{f}1\t{i}" for i in (1, 2)]
        ]
        write(root / "txts" / race / f"{race}_pairs.txt", "\n".join(lines) + "\n")
        (root / "data" / race / f"m.{r}00").mkdir(parents=True)
        put(root / "data" / race / f"m.{r}00" / f"m.{r}00_0001.jpg")
    return root


@pytest.mark.parametrize("inside", [".", "test", "data"])
def test_rfw_has_four_races_with_ten_folds_each(tmp_path, inside) -> None:
    root = rfw(tmp_path / "test" if inside == "test" else tmp_path)
    root = tmp_path / "data" if inside == "data" else tmp_path if inside == "test" else root
    pairs = read_pairs("rfw", root)
    assert len(pairs) == 4 * 40
    assert pairs.notes == ()
    assert torch.equal(pairs.folds, (torch.arange(40) // 4).repeat(4))
    before = {"test": "test/data/", "data": "", ".": "data/"}[inside]
    assert listed(pairs)[0] == (f"{before}African/m.000/m.000_0001.jpg", f"{before}African/m.000/m.000_0002.jpg", True)
    assert pairs.faces.images(0, 1).shape == (1, 3, 8, 8)
    ids = pairs.group_ids(Groups({"race": ["black", "asian", "white", "indian"]}))
    assert torch.equal(ids[pairs.pairs], (torch.arange(160) // 40)[:, None].expand(-1, 2))
    assert torch.equal(ids, pairs.group_ids(Groups({"race_original": ["African", "Asian", "Caucasian", "Indian"]})))


def test_rfw_without_some_races_or_folds_says_so(tmp_path) -> None:
    pairs = read_pairs("rfw", rfw(tmp_path, folds=3, races=("Asian", "Indian")))
    assert pairs.folds is None
    assert sum("no folds" in note for note in pairs.notes) == 2
    assert any("no list for African, Caucasian" in note for note in pairs.notes)
    with pytest.raises(DataError, match=r"RFW's lists are not there[\s\S]*African_pairs\.txt[\s\S]*txts"):
        read_pairs("rfw", tmp_path, pairs="nowhere")


# --- BFW ------------------------------------------------------------------------------------------------------------

BFW_HEADER = "ID,fold,p1,p2,label,id1,id2,att1,att2,vgg16,a1,a2,g1,g2,e1,e2"


def bfw_row(i: int, fold: int, first: str, second: str) -> str:
    one, two = first.split("/")[0], second.split("/")[0]
    same = int(first.rpartition("/")[0] == second.rpartition("/")[0])
    tags = [x for g in (one, two) for x in [g[0].upper() + g.split("_")[1][0].upper()]]
    return f"{i},{fold},{first},{second},{same},0,0,{one},{two},0.8,{tags[0]},{tags[1]},F,F,A,A"


def bfw(root: Path, name: str = "bfw-v0.1.5-datatable.csv", below: str = "bfw-cropped-aligned") -> list[str]:
    files = [f"{g}/n{i:06d}/000{k}_01.jpg" for i, g in enumerate(("asian_females", "white_males")) for k in range(3)]
    rows = [(a, b) for i, a in enumerate(files) for b in files[i + 1 :]]
    write(root / name, "\n".join([BFW_HEADER, *(bfw_row(i, 1 + i % 5, a, b) for i, (a, b) in enumerate(rows))]))
    for file in files:
        put(root / below / file)
    return files


def test_bfw_reads_pairs_folds_and_subgroups(tmp_path) -> None:
    files = bfw(tmp_path)
    pairs = read_pairs("bfw", tmp_path, missing="error")
    before = "bfw-cropped-aligned/"
    expected = [(a, b) for i, a in enumerate(files) for b in files[i + 1 :]]
    assert listed(pairs) == [(before + a, before + b, a.split("/")[1] == b.split("/")[1]) for a, b in expected]
    assert pairs.folds.tolist() == [i % 5 for i in range(len(expected))]
    assert len(pairs.faces) == 6
    assert pairs.identity_ids is not None
    groups = Groups({"race": ["asian", "white"], "gender": ["female", "male"]})
    ids = pairs.group_ids(groups)
    assert {groups.names[g] for g in ids.tolist()} == {groups.names[0], groups.names[3]}
    assert [g == 0 for g in ids.tolist()] == ["asian_females" in p for p in pairs.faces.paths]
    assert "asian" in str(pairs)
    assert "non-mated within" in str(pairs)


def test_bfw_subgroups_come_from_the_folders_where_the_columns_are_absent_and_disagreement_is_noted(tmp_path) -> None:
    bfw(tmp_path, below=".")
    table = (tmp_path / "bfw-v0.1.5-datatable.csv").read_text().splitlines()
    plain = "\n".join(["p1,p2,label", *(",".join(line.split(",")[2:5]) for line in table[1:])])
    write(tmp_path / "mine.csv", plain)
    pairs = read_pairs("bfw", tmp_path, pairs="mine.csv")
    assert pairs.folds is None
    assert set(pairs.faces.labels["race"]) == {"asian", "white"}
    write(
        tmp_path / "odd.csv",
        "\n".join([table[0], table[1].replace(",asian_females,a", ",martian_blobs,a"), *table[2:]]),
    )
    odd = "\n".join(read_pairs("bfw", tmp_path, pairs="odd.csv").notes)
    assert "another subgroup" in odd


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("0001_01.jpg,1,", "0001_01.jpg,maybe,", r"row 1: not a pair[\s\S]*label 0 or 1[\s\S]*'maybe'"),
        ("asian_females/n000000/0000_01.jpg,asian_females/n000000/0001_01.jpg", ",x", r"row 1: not a pair[\s\S]*empty"),
        (",0.8,", ",", "cannot read"),
        ("label", "lable", r"not BFW's table[\s\S]*p1, p2, label"),
        ("0,1,asian", "0,,asian", r"row 1: no fold"),
    ],
)
def test_a_damaged_bfw_table_is_refused(tmp_path, old, new, match) -> None:
    bfw(tmp_path)
    table = tmp_path / "bfw-v0.1.5-datatable.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=match):
        read_pairs("bfw", tmp_path)


def test_bfw_without_its_table_says_what_is_expected(tmp_path) -> None:
    with pytest.raises(DataError, match=r"not there[\s\S]*datatable\.csv[\s\S]*pickled"):
        read_pairs("bfw", tmp_path)
    (tmp_path / "bfw.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"not a \.csv"):
        read_pairs("bfw", tmp_path, pairs="bfw.pkl")


# --- packed sets ----------------------------------------------------------------------------------------------------


def pack(path: Path, value: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 did: as text without an encoding."""

    def save_text(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_text}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_packed_sets_decode_lazily_and_list_each_image_once(tmp_path, protocol) -> None:
    images = [jpeg(i) for i in (0, 1, 2, 0, 1, 2)]
    pairs = read_pairs("bin", pack(tmp_path / "lfw.bin", (images, [True, False, True]), protocol))
    assert pairs.pairs.tolist() == [[0, 1], [2, 0], [1, 2]]
    assert pairs.mated.tolist() == [True, False, True]
    assert pairs.name == "lfw"
    assert pairs.folds is None
    assert pairs.identity_ids is None
    assert len(pairs.faces) == 3
    for i in range(3):
        expected = np.array(Image.open(io.BytesIO(images[i])), dtype=np.float32) / 127.5 - 1
        assert np.allclose(pairs.faces.images(i, i + 1)[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert pairs.faces.images(size=4).shape == (3, 3, 4, 4)
    with pytest.raises(GroupError, match="no labels"):
        pairs.group_ids(Groups({"race": ["asian", "black"]}))


@pytest.mark.parametrize(
    "truth", [[True, False], (1, 0), np.array([True, False]), np.array([1, 0]), list(np.array([True, False]))]
)
def test_python_2_pickles_are_read(tmp_path, truth) -> None:
    images = [jpeg(i) for i in range(4)]
    for stored in (images, [np.frombuffer(image, dtype=np.uint8) for image in images]):
        with (tmp_path / "cfp_fp.bin").open("wb") as file:
            Python2(file, protocol=2).dump((stored, truth))
        pairs = read_pairs("bin", tmp_path)  # the only one in the folder
        assert list(pairs.faces.data) == images
        assert pairs.mated.tolist() == [True, False]


def test_arrays_of_bytes_and_truth_values_are_read(tmp_path) -> None:
    images = [np.frombuffer(jpeg(i), dtype=np.uint8)[:, None] for i in range(4)]  # as cv2.imencode gives them
    for truth in (np.array([True, False]), [np.bool_(True), np.bool_(False)], np.array([1, 0])):
        pairs = read_pairs("bin", pack(tmp_path / "x.bin", [images, truth]))
        assert pairs.mated.tolist() == [True, False]
        assert pairs.faces.images().shape == (4, 3, 8, 8)


@given(m=st.integers(1, 47))
@settings(max_examples=20, deadline=None)
def test_packed_sets_have_the_folds_of_scikit_learns_k_fold(m) -> None:
    from sklearn.model_selection import KFold

    with tempfile.TemporaryDirectory() as folder:
        path = pack(Path(folder) / "x.bin", ([bytes([1 + i]) for i in range(2 * m)], [i % 2 == 0 for i in range(m)]))
        folds = read_pairs("bin", path).folds
    if m < 10:
        assert folds is None
    else:
        expected = torch.empty(m, dtype=torch.int64)
        for fold, (_, test) in enumerate(KFold(10).split(np.zeros(m))):
            expected[test] = fold
        assert torch.equal(folds, expected)


class Hostile:
    def __init__(self, call: object, *arguments: object) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.reduced


@pytest.mark.parametrize("call", [os.system, subprocess.check_output, eval, os.mkdir, Path])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_packed_set_is_executed(tmp_path, monkeypatch, call, protocol) -> None:
    monkeypatch.chdir(tmp_path)
    command = (
        "__import__('os').mkdir('owned')" if call is eval else "owned" if call in (os.mkdir, Path) else "mkdir owned"
    )
    for value in (([jpeg(), jpeg(1)], [Hostile(call, command)]), Hostile(call, command)):
        path = pack(tmp_path / "evil.bin", value, protocol)
        with pytest.raises(DataError, match="nothing in it was executed"):
            read_pairs("bin", path)
        assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (([b"a", b"b"], [True, False]), r"two images for each truth value[\s\S]*2 images and 2 truth values"),
        (([b"a", b"b", b"c"], [True]), "3 images and 1 truth values"),
        (([], []), "0 images"),
        (([b"a", b"b"], [2]), "truth value 0 is neither"),
        (([b"a", b"b"], ["yes"]), "truth value 0 is neither"),
        (([b"a", b"b"], [np.zeros(3)]), "truth value 0 is neither"),
        (([b"a", 7], [True]), r"image 1 is no encoded image[\s\S]*a int"),
        (([b"a", b""], [True]), r"image 1 is no encoded image[\s\S]*nothing"),
        ({"images": []}, "no packed set of pairs"),
        ([[b"a", b"b"], [True], [1]], "no packed set of pairs"),
        ((b"ab", [True]), "a bytes and a list"),
    ],
)
def test_a_packed_set_that_does_not_fit_is_refused(tmp_path, value, match) -> None:
    with pytest.raises(DataError, match=match):
        read_pairs("bin", pack(tmp_path / "x.bin", value))


def test_damaged_packed_sets_and_images_are_refused(tmp_path) -> None:
    good = pickle.dumps(([jpeg(i) for i in range(4)], [True, False]), protocol=2)
    for data in (
        b"",
        b"not a pickle",
        good[:-30],
        good[: len(good) // 2],
        good + b"more",
        good[:40] + b"\xff" + good[41:],
    ):
        (tmp_path / "x.bin").write_bytes(data)
        with pytest.raises(DataError, match=r"no packed set|cut short|cannot read face"):
            read_pairs("bin", tmp_path).faces.images()
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    pairs = read_pairs("bin", pack(tmp_path / "x.bin", ([jpeg(), jpeg(1), jpeg(2), postscript], [True, False])))
    with pytest.raises(DataError, match=r"cannot read face 3 of x[\s\S]*JPEG"):
        pairs.faces.images()
    mixed = read_pairs("bin", pack(tmp_path / "x.bin", ([jpeg(), jpeg(1, 12)], [True])))
    with pytest.raises(DataError, match=r"images differ in size[\s\S]*size="):
        mixed.faces.images()
    with pytest.raises(DataError, match="no faces in this slice"):
        mixed.faces.images(2)


def test_which_packed_set_must_be_clear(tmp_path) -> None:
    with pytest.raises(DataError, match=r"which packed set\?[\s\S]*none"):
        read_pairs("bin", tmp_path)
    for name in ("lfw.bin", "cfp_fp.bin"):
        pack(tmp_path / name, ([jpeg(), jpeg()], [True]))
    with pytest.raises(DataError, match=r"cfp_fp\.bin, lfw\.bin"):
        read_pairs("bin", tmp_path)
    same = read_pairs("bin", tmp_path, pairs="lfw.bin")
    assert same.pairs.tolist() == [[0, 1]]
    assert "1 pairs compare an image with itself" in same.notes
    with pytest.raises(DataError, match="holds its images"):
        read_pairs("bin", tmp_path, pairs="lfw.bin", missing="drop")


# --- lists ----------------------------------------------------------------------------------------------------------

NAMES = st.text(string.ascii_letters + string.digits + "äß人-.", min_size=1, max_size=6).filter(str.strip)
PAIRS = st.lists(
    st.tuples(NAMES, NAMES, st.booleans(), st.integers(0, 4)).filter(lambda p: p[0] != p[1]), min_size=1, max_size=30
)


@given(rows=PAIRS, mark=st.sampled_from("\t, "), header=st.booleans(), folds=st.booleans())
@settings(max_examples=60, deadline=None)
def test_lists_come_back_as_written(rows, mark, header, folds) -> None:
    lines = [mark.join((a, b, str(int(same)), *([str(fold)] if folds else []))) for a, b, same, fold in rows]
    names = mark.join(("path1", "path2", "same", *(["fold"] if folds else [])))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "mine.txt", "\n".join([*([names] if header else []), *lines]))
        pairs = read_pairs("list", folder, pairs="mine.txt")
    assert listed(pairs) == [row[:3] for row in rows]
    assert len(set(pairs.faces.paths)) == len(pairs.faces)
    if folds:
        order = sorted({row[3] for row in rows})
        assert pairs.folds.tolist() == [order.index(row[3]) for row in rows]
    else:
        assert pairs.folds is None


NUMBERS = st.integers(1, 99999)
FOLDS = st.lists(st.lists(st.tuples(NAMES, NAMES, NUMBERS, NUMBERS), min_size=3, max_size=3), min_size=1, max_size=4)


@given(folds=FOLDS)
@settings(max_examples=40, deadline=None)
def test_lfw_lists_come_back_as_written(folds) -> None:
    lines: list[Line] = []
    for fold in folds:
        lines += [(a, i, a, j + (i == j)) for a, _, i, j in fold]
        lines += [(a, i, b + "_" * (a == b), j) for a, b, i, j in fold]
    with tempfile.TemporaryDirectory() as folder:
        pairs = read_pairs("lfw", lfw(Path(folder), lines, f"{len(folds)}\t3"))
    assert listed(pairs) == [(path_of(a, i), path_of(b, j), a == b) for a, i, b, j in lines]
    assert torch.equal(pairs.folds, torch.arange(len(lines)) // 6)
    assert torch.equal(pairs.subset(torch.arange(len(lines))).mated, pairs.mated)


def test_tables_and_own_names_of_columns(tmp_path) -> None:
    table = {"left": ["a", "a", "b"], "right": ["b", "c", "c"], "match": [1, 0, 0], "fold": [5, 10, 10]}
    columns = {"first": "left", "second": "right"}
    pairs = read_pairs("list", tmp_path, pairs=table, columns=columns)
    assert listed(pairs) == [("a", "b", True), ("a", "c", False), ("b", "c", False)]
    assert pairs.folds.tolist() == [0, 1, 1]  # by number: 5 before 10
    write(tmp_path / "t.csv", 'left,right,match\n"a, 1",b,TRUE\n')
    assert listed(read_pairs("list", tmp_path, pairs="t.csv", columns=columns)) == [("a, 1", "b", True)]
    with pytest.raises(DataError, match=r"neither a pair nor names[\s\S]*first, second"):
        read_pairs("list", tmp_path, pairs=table)
    with pytest.raises(DataError, match="no such column"):
        read_pairs("list", tmp_path, pairs=table, columns={"first": "top"})
    with pytest.raises(DataError, match="unknown key"):
        read_pairs("list", tmp_path, pairs=table, columns={"top": "left"})


def test_identities_of_a_list_are_used_and_disagreement_is_noted(tmp_path) -> None:
    rows = ["path1,path2,same,id1,id2", "a,b,1,Ann,Ann", "a,c,0,Ann,Cem"]
    pairs = read_pairs("list", write(tmp_path / "x.csv", "\n".join(rows)))
    assert pairs.faces.identities == ("Ann", "Ann", "Cem")
    assert pairs.identity_ids.tolist() == [0, 0, 1]
    pairs = read_pairs("list", write(tmp_path / "x.csv", "\n".join([*rows, "a,c,0,Bob,Cem"])))
    assert "1 times a face is given another identity than before" in pairs.notes


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a b 1\nc d\n", r"x\.txt, line 2: not a pair[\s\S]*3 fields[\s\S]*'c d'"),
        ("a b 1\n\nc d e f 1\n", r"line 3[\s\S]*spaces need tabs or commas"),
        ("a\tb\t1\nc\td\tperhaps\n", r"line 2: not a pair[\s\S]*perhaps"),
        ("a,b,1\nc,,1\n", r"line 2: not a pair"),
        ("a,b,1,0\nc,d,1,\n", r"line 2: no fold"),
        ("a b\n", r"line 1: not a pair"),
        ("a b maybe\n", r"line 1: neither a pair nor names"),
        ('a,b,1\n"c,d,1\ne,f,0\n', r"line 2[\s\S]*a quote that is closed"),
        ("", "lists no pairs"),
        ("path1,path2,same\n", "no pairs found"),
    ],
)
def test_malformed_lists_are_refused(tmp_path, text, match) -> None:
    with pytest.raises(DataError, match=match):
        read_pairs("list", write(tmp_path / "x.txt", text))


def test_a_list_takes_labels_and_identities_from_a_face_set(tmp_path) -> None:
    faces = read_faces(
        "csv", tmp_path, labels={"path": list("abcd"), "race": ["Black", "White"] * 2, "identity": list("1122")}
    )
    table = {"path1": ["d", "b"], "path2": ["c", "d"], "same": [1, 0]}
    pairs = read_pairs("list", tmp_path, pairs=table, faces=faces)
    assert sorted(pairs.faces.paths) == ["b", "c", "d"]
    assert listed(pairs) == [("d", "c", True), ("b", "d", False)]
    assert pairs.identity_ids is not None
    ids = pairs.group_ids(Groups({"race": ["black", "white"]}))
    assert dict(zip(pairs.faces.paths, ids.tolist(), strict=True)) == {"b": 1, "c": 0, "d": 1}
    with pytest.raises(DataError, match=r"1 of 3 listed images are not among faces="):
        read_pairs("list", tmp_path, pairs=table, faces=faces.subset([0, 1, 2]))


# --- what verify gets -----------------------------------------------------------------------------------------------


def test_verify_takes_a_set_in_one_call_and_agrees_with_brute_force(tmp_path) -> None:
    pairs = read_pairs("rfw", rfw(tmp_path))
    groups = Groups({"race": ["black", "asian", "white", "indian"]})
    rng = torch.Generator().manual_seed(0)
    own = torch.randn(int(pairs.identity_ids.max()) + 1, 16, generator=rng)[pairs.identity_ids]
    embeddings = torch.nn.functional.normalize(own + 1.2 * torch.randn(own.shape, generator=rng), dim=1)
    result = verify(**pairs.arguments(embeddings, groups), fmr=(0.1,), resamples=20)
    scores = (embeddings[pairs.pairs[:, 0]] * embeddings[pairs.pairs[:, 1]]).sum(1)
    assert torch.allclose(result.comparisons.scores, scores)
    mated, other = scores[pairs.mated], scores[~pairs.mated]
    auc = (mated[:, None] > other).float().mean()
    assert result.overall.auc.value == pytest.approx(float(auc), abs=1e-6)
    assert not np.isnan(result.overall.auc.low)  # identities are known
    assert len(result.overall.accuracy.folds) == 10
    assert [p.mated for p in result.by_group.values()] == [20] * 4


def test_arguments_leave_out_what_is_unknown_and_refuse_other_embeddings(tmp_path) -> None:
    pairs = read_pairs("bin", pack(tmp_path / "x.bin", ([jpeg(i) for i in range(4)], [True, False])))
    embeddings = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1)
    assert set(pairs.arguments(embeddings)) == {"embeddings", "pairs", "mated"}
    for wrong in (embeddings[:3], embeddings[0], embeddings.numpy()):
        with pytest.raises(ShapeError, match="one embedding per face"):
            pairs.arguments(wrong)


def test_pair_sets_of_ones_own_are_checked() -> None:
    faces = PackedFaces("x", (b"a", b"b", b"c"))
    pairs, mated = torch.tensor([[0, 1], [1, 2]]), torch.tensor([True, False])
    assert len(PairSet("x", faces, pairs, mated, torch.tensor([0, 1]))) == 2
    for wrong in (
        (pairs.int(), mated),
        (pairs, mated[:1]),
        (pairs, mated.long()),
        (pairs.tolist(), mated),
        (pairs.T[:1], mated),
    ):
        with pytest.raises((ShapeError, DataError)):
            PairSet("x", faces, *wrong)
    with pytest.raises(ShapeError, match="no folds"):
        PairSet("x", faces, pairs, mated, torch.tensor([0]))
    with pytest.raises(DataError, match="does not exist"):
        PairSet("x", faces, pairs + 1, mated)
    with pytest.raises(DataError, match="with itself"):
        PairSet("x", faces, torch.tensor([[1, 1]]), mated[:1])
    with pytest.raises(DataError, match="without pairs"):
        PairSet("x", faces, pairs[:0], mated[:0])


def test_subsets_keep_the_faces_that_they_need() -> None:
    faces = PackedFaces("x", (b"a", b"b", b"c", b"d"))
    pairs = PairSet(
        "x", faces, torch.tensor([[0, 1], [3, 2], [0, 3]]), torch.tensor([True, False, True]), torch.arange(3)
    )
    part = pairs.subset(torch.tensor([False, True, True]))
    data = [tuple(part.faces.data[i] for i in pair) for pair in part.pairs.tolist()]
    assert data == [(b"d", b"c"), (b"a", b"d")]
    assert part.folds.tolist() == [1, 2]
    assert len(part.faces) == 3


def test_unknown_options_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"unknown layout[\s\S]*did you mean 'lfw'"):
        read_pairs("lfv", tmp_path)
    for layout in LAYOUTS:
        with pytest.raises(DataError, match="no such folder"):
            read_pairs(layout, tmp_path / "nowhere")
    for options, match in (
        ({"missing": "ignore"}, "unknown missing"),
        ({"pairs": {"path1": []}}, "pairs= is a path here"),
        ({"columns": {"first": "a"}}, "columns= are for lists"),
        ({"faces": ["a"]}, "faces= is a set"),
    ):
        with pytest.raises(DataError, match=match):
            read_pairs("lfw", tmp_path, **options)
    with pytest.raises(DataError, match="which list"):
        read_pairs("list", tmp_path)


@pytest.mark.slow
def test_a_table_of_bfws_size_reads_in_seconds(tmp_path) -> None:
    rng = np.random.default_rng(0)
    groups = [f"{race}_{gender}" for race in ("asian", "black", "indian", "white") for gender in ("females", "males")]
    files = [
        f"{g}/n{100 * k + i:06d}/{j:04d}_01.jpg" for k, g in enumerate(groups) for i in range(100) for j in range(25)
    ]
    rows = rng.integers(0, len(files), (924_000, 2))
    rows = rows[rows[:, 0] != rows[:, 1]]
    lines = [bfw_row(i, 1 + i % 5, files[a], files[b]) for i, (a, b) in enumerate(rows.tolist())]
    write(tmp_path / "bfw.csv", "\n".join([BFW_HEADER, *lines]))
    start = time.process_time()  # others may use the machine
    pairs = read_pairs("bfw", tmp_path)
    assert time.process_time() - start < 15
    assert len(pairs) == len(rows)
    assert len(pairs.faces) == len(files)


@pytest.mark.parametrize("missing", [None, math.nan, ""])
def test_missing_cells_are_no_paths_and_no_person(missing: object, tmp_path: Path) -> None:
    cells = np.array(["b", missing], dtype=object)  # as in a frame
    table = {"first": ["a", "c"], "second": cells, "mated": [True, True]}
    with pytest.raises(DataError, match="row 2: not a pair"):
        read_pairs("list", tmp_path, pairs=table)
    who = np.array(["p", missing], dtype=object)
    table |= {"second": ["b", "d"], "id1": who, "id2": who}
    pairs = read_pairs("list", tmp_path, pairs=table)
    assert pairs.identity_ids is None
    assert "2 faces have no identity" in pairs.notes[0]


def test_groups_are_groups(tmp_path: Path) -> None:
    pairs = read_pairs("list", tmp_path, pairs={"first": ["a"], "second": ["b"], "mated": [True]})
    with pytest.raises(GroupError, match="labels and their values"):
        pairs.group_ids(["a"])  # type: ignore[arg-type]


def test_a_score_is_no_fold(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / f"{name}.jpg")
    lines = "a.jpg b.jpg 1 1\na.jpg c.jpg 0 0.71\n"
    with pytest.raises(DataError, match="this is no fold"):
        read_pairs("list", tmp_path, pairs=write(tmp_path / "scores.txt", lines))
    whole = write(tmp_path / "folds.txt", lines.replace("0.71", "2.0"))
    assert read_pairs("list", tmp_path, pairs=whole).folds.tolist() == [0, 1]
