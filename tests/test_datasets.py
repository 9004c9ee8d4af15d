"""Reading face sets: each layout in miniature, odd files and names, the vocabulary."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fairface_synth.attribute_schema import MAAD_FACE, AttributeSchema
from fairface_synth.dataset_layouts import LAYOUTS
from fairface_synth.datasets import read_faces
from fairface_synth.errors import DataError
from fairface_synth.face_sets import FaceSet
from fairface_synth.groups import Groups
from fairface_synth.label_files import read_maad_labels
from fairface_synth.tables import read_table, write_table
from fairface_synth.vocabulary import GENDERS, RACES, UNKNOWN


def put(path: Path, colour: object = (200, 100, 50), size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# --- layouts --------------------------------------------------------------------------------------------------------


def test_any_folder_lists_images_alone_in_order_and_follows_links(tmp_path) -> None:
    root = tmp_path / "set"
    for name in ("b.PNG", "a.jpg", "deep/er/ü 人.JPEG", "x.webp", "._a.jpg", "__MACOSX/a.jpg", ".hidden/a.jpg"):
        put(root / name)
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "deep/list.csv"):
        write(root / name, "no image")
    put(tmp_path / "elsewhere" / "c.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "linked" / "back").symlink_to(root / "linked")  # never ends if followed
    faces = read_faces("folder", root)
    assert faces.paths == ("a.jpg", "b.PNG", "x.webp", "deep/er/ü 人.JPEG", "linked/c.jpg")
    assert faces.identities is None
    assert faces.labels == {}
    assert faces.name == "set"
    assert faces.images().shape == (5, 3, 8, 8)


def test_identities_are_folders(tmp_path) -> None:
    for name in ("zoë/1.png", "zoë/2.png", "al/1.png", "more/al/1.png"):
        put(tmp_path / name)
    faces = read_faces("identities", tmp_path)
    assert dict(zip(faces.paths, faces.identities, strict=True)) == {
        "zoë/1.png": "zoë",
        "zoë/2.png": "zoë",
        "al/1.png": "al",
        "more/al/1.png": "more/al",  # another folder, another person
    }
    put(tmp_path / "stray.png")
    with pytest.raises(DataError, match=r"stray\.png"):
        read_faces("identities", tmp_path)


FAIRFACE = {
    "East Asian": "asian",
    "Southeast Asian": "asian",
    "Black": "black",
    "White": "white",
    "Indian": "indian",
    "Latino_Hispanic": "hispanic",
    "Middle Eastern": "middleeastern",
}


def make_fairface(root: Path, images: str = "") -> None:
    head = "file,age,gender,race,service_test\n"
    ages = ["0-2", "3-9", "10-19", "20-29", "30-39", "60-69", "more than 70"]
    genders = ["Male", "Female"] * 3 + ["Male"]
    rows = [f"train/{i}.jpg,{a},{g},{r},True" for i, (a, g, r) in enumerate(zip(ages, genders, FAIRFACE, strict=True))]
    write(root / "fairface_label_train.csv", head + "\n".join(rows) + "\n")
    write(root / "fairface_label_val.csv", head + "val/1.jpg,20-29,Female,Martian,False\n")
    for i in range(len(rows)):
        put(root / images / "train" / f"{i}.jpg")
    put(root / images / "val" / "1.jpg")


@pytest.mark.parametrize("images", ["", "fairface-img-margin025-trainval"])
def test_fairface(tmp_path, images) -> None:
    make_fairface(tmp_path, images)
    train = read_faces("fairface", tmp_path, split="train", missing="error")
    assert len(train) == 7
    assert dict(zip(train.labels["race_original"], train.labels["race"], strict=True)) == FAIRFACE
    assert train.labels["gender"][:2] == ("male", "female")
    assert train.labels["age"][-1] == "more than 70"
    assert train.notes == ()
    assert train.missing == 0
    assert train.images(0, 7).shape == (7, 3, 8, 8)
    both = read_faces("fairface", tmp_path)
    assert len(both) == 8
    assert both.labels["race"][-1] == UNKNOWN
    assert both.labels["race_original"][-1] == "Martian"
    assert "'Martian' (1)" in both.notes[0]
    words = read_faces("fairface", tmp_path, split="train", vocabulary="original")
    assert words.labels["race"] == tuple(FAIRFACE)
    assert words.labels["gender"][0] == "Male"
    assert "race_original" not in words.labels


def test_fairface_says_what_is_missing_or_ambiguous(tmp_path) -> None:
    with pytest.raises(DataError, match=r"fairface_label_train.csv or .*fairface_label_val.csv"):
        read_faces("fairface", tmp_path)
    make_fairface(tmp_path / "a", "fairface-img-margin025-trainval")
    put(tmp_path / "a" / "fairface-img-margin125-trainval" / "train" / "0.jpg")
    with pytest.raises(DataError, match="several versions"):
        read_faces("fairface", tmp_path / "a")
    one = read_faces(
        "fairface",
        tmp_path / "a" / "fairface-img-margin025-trainval",
        labels=tmp_path / "a" / "fairface_label_val.csv",
        split="val",
        missing="error",
    )
    assert one.paths == ("val/1.jpg",)
    wrong = write(tmp_path / "wrong.csv", "file,age\na.jpg,3\n")
    with pytest.raises(DataError, match="not FairFace's label file"):
        read_faces("fairface", tmp_path, labels=wrong)


def test_utkface_reads_names_and_counts_the_malformed(tmp_path) -> None:
    expected = {  # age, gender, race, race as UTKFace calls it
        "26_0_0_20170117175041574.jpg.chip.jpg": ("26", "male", "white", "White"),
        "1_1_1_20170117175041574.jpg": ("1", "female", "black", "Black"),
        "116_1_2_20170117175041574.JPG": ("116", "female", "asian", "Asian"),
        "30_0_3_20170117175041574.jpg": ("30", "male", "indian", "Indian"),
        "40_0_4_20170117175041574.jpg": ("40", "male", UNKNOWN, "Others"),
        "24_0_1_20170116220224657 .jpg.chip.jpg": ("24", "male", "black", "Black"),  # these five are in the real set
        "55_0_0_20170116232725357jpg.chip.jpg": ("55", "male", "white", "White"),
        "61_1_20170109142408075.jpg.chip.jpg": ("61", UNKNOWN, UNKNOWN, UNKNOWN),
        "39_1_20170116174525125.jpg.chip.jpg": ("39", UNKNOWN, UNKNOWN, UNKNOWN),
        "53__0_20170116184028385.jpg": ("53", UNKNOWN, "white", "White"),
        "20_3_9_20170116184028385.jpg": ("20", UNKNOWN, UNKNOWN, UNKNOWN),
        "portrait.jpg": (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN),
    }
    for name in expected:
        put(tmp_path / "part1" / name)
    faces = read_faces("UTKFace", tmp_path)
    columns = [faces.labels[label] for label in ("age", "gender", "race", "race_original")]
    found = {p.removeprefix("part1/"): row for p, row in zip(faces.paths, zip(*columns, strict=True), strict=True)}
    assert found == expected
    assert faces.notes[0].startswith("5 file names are not age_gender_race_date")
    assert faces.counts()["race"][UNKNOWN] == 5
    for name in ("portrait.jpg", "0001_01.png"):
        put(tmp_path / "holiday" / name)
    with pytest.raises(DataError, match=r"(?s)named as UTKFace's.*portrait\.jpg"):
        read_faces("utkface", tmp_path / "holiday")


def make_race_folders(root: Path) -> None:
    for race, who in (
        ("African", "m.01"),
        ("Asian", "m.02"),
        ("Caucasian", "m.03"),
        ("Indian", "m.04"),
        ("Indian", "m.01"),
    ):
        for k in (1, 2):
            put(root / race / who / f"{who}_{k:04d}.jpg")


@pytest.mark.parametrize(
    ("layout", "below"), [("rfw", "test/data"), ("rfw", "data"), ("rfw", ""), ("bupt", "race_per_7000")]
)
def test_race_folders_of_identity_folders(tmp_path, layout, below) -> None:
    root = tmp_path / "set"
    make_race_folders(root / below)
    write(root / Path(below).parent / "txts" / "African" / "African_images.txt", "m.01_0001.jpg\t0\n")
    faces = read_faces(layout, root, missing="error")
    assert len(faces) == 10
    assert faces.name == layout
    in_folder = {"African": "black", "Asian": "asian", "Caucasian": "white", "Indian": "indian"}
    for path, who, race, word in zip(
        faces.paths, faces.identities, faces.labels["race"], faces.labels["race_original"], strict=True
    ):
        assert path == f"{below}/{word}/{who}/{path[-13:]}".lstrip("/")
        assert race == in_folder[word]
    assert faces.counts()["gender"] == {UNKNOWN: 10}
    assert faces.counts()["age"] == {UNKNOWN: 10}
    assert faces.notes == ("1 identities lie in more than one race folder",)


def test_race_folders_that_are_not_there_or_twice(tmp_path) -> None:
    with pytest.raises(DataError, match="no race folders"):
        read_faces("rfw", tmp_path)
    make_race_folders(tmp_path / "test" / "data")
    make_race_folders(tmp_path / "test_aligned" / "data")
    with pytest.raises(DataError, match="several sets"):
        read_faces("rfw", tmp_path)


META = """Class_ID, Name, Sample_Num, Flag, Gender
n000001, "14th_Dalai_Lama",424,0, m,
n000002, "A_Fine_Frenzy",315,1, f,
n000003, "Somebody,_Jr.",205,1, m
n000004, "half_a_quote, f", 205, 1, m,
n000005, "nobody_knows",205,1, ,
"""


def make_vggface2(root: Path, below: str = "") -> None:
    for who in ("n000001", "n000002", "n000003", "n000004", "n000005", "n999999"):
        for k in (1, 2):
            put(root / below / ("test" if who == "n000001" else "train") / who / f"{k:04d}_01.jpg")


@pytest.mark.parametrize(("below", "meta"), [("", ""), ("data", "meta")])
def test_vggface2(tmp_path, below, meta) -> None:
    make_vggface2(tmp_path, below)
    with pytest.raises(DataError, match=r"identity_meta.csv.*\n.*VGGFace2's archives"):
        read_faces("vggface2", tmp_path)
    write(tmp_path / meta / "identity_meta.csv", META)
    faces = read_faces("vggface2", tmp_path)
    gender = dict(zip(faces.identities, faces.labels["gender"], strict=True))
    assert gender == {
        "n000001": "male",
        "n000002": "female",
        "n000003": "male",
        "n000004": "male",
        "n000005": UNKNOWN,
        "n999999": UNKNOWN,
    }
    assert "1 identities are not in identity_meta.csv" in faces.notes
    assert faces.counts()["race"] == {UNKNOWN: 12}
    test = read_faces("vggface2", tmp_path, split="test")
    assert set(test.identities) == {"n000001"}
    assert test.name == "vggface2-test"
    assert (test.root / test.paths[0]).is_file()
    direct = read_faces("vggface2", tmp_path / below / "train", labels=tmp_path / meta / "identity_meta.csv")
    assert len(direct) == 10
    with pytest.raises(DataError, match="no folder 'test'"):
        read_faces("vggface2", tmp_path / below / "train", split="test", labels=tmp_path / meta / "identity_meta.csv")


def maad_csv(path: Path, rows: list[str], values: np.ndarray, names: tuple[str, ...] = MAAD_FACE.names) -> Path:
    body = [f"{row},{row.split('/')[0]},{','.join(map(str, v))}" for row, v in zip(rows, values, strict=True)]
    return write(path, "\n".join([f"Filename,Identity,{','.join(names)}", *body]) + "\n")


def test_maad_joins_labels_and_images(tmp_path) -> None:
    make_vggface2(tmp_path)
    rows = ["n000002/0001_01.jpg", "n000001/0002_01.jpg", "n000002/0007_01.jpg", "n000777/0001_01.jpg"]
    values = np.random.default_rng(0).integers(-1, 2, (4, 47))
    maad_csv(tmp_path / "MAAD_Face.csv", rows, values)
    faces = read_faces("maad", tmp_path)
    assert faces.schema == MAAD_FACE
    assert faces.annotations.dtype == torch.int8
    assert np.array_equal(faces.annotations.numpy(), values)
    assert faces.paths[:2] == ("train/n000002/0001_01.jpg", "test/n000001/0002_01.jpg")
    assert faces.identities == ("n000002", "n000001", "n000002", "n000777")
    assert "1 identities" in faces.notes[0]
    train = read_faces("maad", tmp_path, split="train")
    assert train.paths == ("train/n000002/0001_01.jpg", "train/n000002/0007_01.jpg")
    assert np.array_equal(train.annotations.numpy(), values[[0, 2]])
    found = read_faces("maad", tmp_path, missing="drop")
    assert (len(found), found.missing) == (2, 2)
    assert np.array_equal(found.annotations.numpy(), values[:2])
    assert "2 listed files" in found.notes[-1]
    with pytest.raises(DataError, match="none of the identities"):
        read_faces("maad", tmp_path / "train" / "n000002", labels=tmp_path / "MAAD_Face.csv")


def test_maad_labels_find_columns_by_name(tmp_path) -> None:
    values = np.random.default_rng(1).integers(-1, 2, (5, 47))
    order = np.random.default_rng(2).permutation(47)
    rows = [f"n{i:06d}/0001_01.jpg" for i in range(5)]
    spelled = tuple(MAAD_FACE.names[i].lower().replace("_", " ") for i in order)
    path = maad_csv(tmp_path / "labels.csv", rows, values[:, order], spelled)
    files, identities, labels = read_maad_labels(path)
    assert files == tuple(rows)
    assert identities == tuple(row[:7] for row in rows)
    assert np.array_equal(labels.numpy(), values)
    few = AttributeSchema(("Smiling", "Male"))
    _, _, two = read_maad_labels(path, few)
    assert np.array_equal(two.numpy(), values[:, [MAAD_FACE.index("Smiling"), 0]])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Filename,Identity,Male\na,b,2\n", "other values"),
        ("Filename,Identity,Male\na,b,\n", "empty cells"),
        ("Filename,Identity,Male\na,b,yes\n", "cannot read"),
        ("Filename,Identity,Male\na,b\n", "cannot read"),
        ("Filename,Identity,Male\n", "no rows"),
        ("Filename,Identity,Young\na,b,1\n", "Male: missing"),
        ("Filename,Identity,Male,male\na,b,1,1\n", "Male: Male, male"),
        ("Filename,Male\na,1\n", "identity: missing"),
        ("", "cannot read"),
    ],
)
def test_maad_labels_refuse_other_files(tmp_path, text, match) -> None:
    with pytest.raises(DataError, match=match):
        read_maad_labels(write(tmp_path / "labels.csv", text), AttributeSchema(("Male",)))
    with pytest.raises(DataError, match="no such file"):
        read_maad_labels(tmp_path / "none.csv")


@pytest.mark.parametrize("place", ["Album2/{f}", "{p}/{f}", "Album2/{p}/{f}", "{f}"])
def test_morph(tmp_path, place) -> None:
    rows = [("009055", "00009055_1M54.JPG", c, g) for c, g in zip("ABHWO", "MFMFM", strict=True)]
    rows = [(i, f"{k}{f[1:]}", c, g) for k, (i, f, c, g) in enumerate(rows)]
    head = "id_num,picture_num,dob,doa,race,gender,facial_hair,age,age_diff,glasses,photo\n"
    text = "".join(f"{i},1,a,b,{c},{g},x,54,0,y,Album2/{f}\n" for i, f, c, g in rows)
    write(tmp_path / "morph_2008_nonCommercial.csv", head + text)
    for _, f, _, _ in rows:
        put(tmp_path / place.format(p=f[:3], f=f))
    faces = read_faces("morph", tmp_path, missing="error")
    assert faces.labels["race"] == ("asian", "black", "hispanic", "white", UNKNOWN)
    assert faces.labels["race_original"] == tuple("ABHWO")
    assert faces.labels["gender"] == ("male", "female", "male", "female", "male")
    assert faces.labels["age"] == ("54",) * 5
    assert set(faces.identities) == {"009055"}  # leading zeros stay
    assert read_faces("morph", tmp_path, vocabulary="original").labels["race"] == tuple("ABHWO")
    assert faces.notes == ()


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "dict", "pandas", "arrow"])
def test_a_table_of_your_own(tmp_path, kind) -> None:
    table = {
        "Image Path": ["a.png", "b/ü,1.png", "c.png"],
        "person_id": ["007", "7", "8"],
        "Race": ["Latino", "South Asian", ""],
        "gender": ["W", "man", "F"],
        "years": [30, 41, 5],
        "hair": ["long", "", "short"],
    }
    labels: object = table
    if kind in ("csv", "tsv", "parquet"):
        labels = write_table(table, tmp_path / f"faces.{kind}")
    elif kind == "pandas":
        labels = pytest.importorskip("pandas").DataFrame(table)
    elif kind == "arrow":
        labels = pytest.importorskip("pyarrow").table(table)
    faces = read_faces(
        "csv",
        tmp_path,
        labels=labels,
        columns={"age": "years", "hair": "hair"},
        values={"race": {"South Asian": "indian"}, "gender": {"W": "female"}, "hair": {"long": "big"}},
    )
    assert faces.paths == ("a.png", "b/ü,1.png", "c.png")
    assert faces.identities == ("007", "7", "8")
    assert faces.labels["race"] == ("hispanic", "indian", UNKNOWN)
    assert faces.labels["gender"] == ("female", "male", "female")
    assert faces.labels["age"] == ("30", "41", "5")
    assert faces.labels["hair"] == ("big", UNKNOWN, "short")
    assert faces.notes == ()


def test_a_table_alone_is_enough_and_what_is_left_out_is_said(tmp_path) -> None:
    path = write(tmp_path / "list.csv", "file,race,ethnicity\na.png,White,x\na.png,Klingon,y\n")
    faces = read_faces("csv", path)
    assert (faces.root, faces.name) == (tmp_path, "list")
    assert faces.labels["race"] == ("white", UNKNOWN)
    text = str(faces)
    assert "columns not read: ethnicity" in text
    assert "'Klingon' (1)" in text
    assert "1 rows repeat a file" in text


@pytest.mark.parametrize(
    ("table", "options", "match"),
    [
        ({"race": ["White"]}, {}, "which column holds the files"),
        ({"path": ["a"], "file": ["b"]}, {}, "several columns could be the path"),
        ({"path": ["a", ""]}, {}, "row 2 has no path"),
        ({"path": ["a", "b"], "person_id": ["", "p"]}, {}, "row 1 has no identity"),
        ({"path": ["a"]}, {"columns": {"race": "rasse"}}, "no such column"),
        ({"path": ["a"]}, {"values": {"race": {"x": "white"}}}, "names no label"),
        ({"path": ["a"], "race": ["x"]}, {"values": {"race": {"x": "pink"}}}, "not a race"),
        ({"path": []}, {}, "no images"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, table, options, match) -> None:
    with pytest.raises(DataError, match=match):
        read_faces("csv", tmp_path, labels=table, **options)


def test_text_files_as_other_programs_write_them(tmp_path) -> None:
    (tmp_path / "bom.csv").write_bytes('\ufefffile,race\r\n"a,b.png", White \r\n'.encode())
    faces = read_faces("csv", tmp_path / "bom.csv")
    assert faces.labels["race"] == ("white",)
    for name, text in {
        "twice.csv": "file,race,race\na,b,c\n",
        "ragged.csv": "file,race\na,b\nc\n",
        "empty.csv": "",
    }.items():
        with pytest.raises(DataError, match=name):
            read_faces("csv", write(tmp_path / name, text))
    (tmp_path / "latin.csv").write_bytes("file,race\nzo\xeb.png,White\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv"):
        read_faces("csv", tmp_path / "latin.csv")


@pytest.mark.parametrize(
    ("layout", "options", "match"),
    [
        ("fairfaces", {}, "'fairface'"),
        ("folder", {"split": "train"}, "no such split"),
        ("fairface", {"split": "test"}, "train, val"),
        ("folder", {"labels": "x.csv"}, "no label file"),
        ("folder", {"columns": {"path": "x"}}, "for tables"),
        (
            "csv",
            {"labels": {"path": ["a"]}, "vocabulary": "original", "values": {"x": {"a": "b"}}},
            "values= translates",
        ),
        ("folder", {"vocabulary": "mine"}, "'common', 'original'"),
        ("folder", {"missing": "ignore"}, "unknown missing"),
        ("fairface", {"labels": {"file": ["a"]}}, "is the path"),
        ("csv", {}, "no table given"),
        ("folder", {}, "no images found"),
        ("morph", {}, "morph_2008_nonCommercial.csv"),
        ("maad", {}, "MAAD_Face.csv"),
    ],
)
def test_requests_that_do_not_fit(tmp_path, layout, options, match) -> None:
    with pytest.raises(DataError, match=match):
        read_faces(layout, tmp_path, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_that_is_not_there(tmp_path, layout) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_faces(layout, tmp_path / "none")


def test_missing_files_are_counted_dropped_or_refused(tmp_path) -> None:
    put(tmp_path / "a" / "1.png")
    put(tmp_path / "2.png")
    away = put(tmp_path.parent / f"{tmp_path.name}-away.png")
    table = {"path": ["a/1.png", "a/9.png", "nowhere/1.png", "2.png", "3.png", str(away)], "race": list("abcdef")}
    assert read_faces("csv", tmp_path, labels=table).missing is None
    counted = read_faces("csv", tmp_path, labels=table, missing="count")
    assert (len(counted), counted.missing) == (6, 3)
    assert "missing files: 3" in str(counted)
    dropped = read_faces("csv", tmp_path, labels=table, missing="drop")
    assert dropped.paths == ("a/1.png", "2.png", str(away))
    assert dropped.missing == 3
    assert dropped.labels["race_original"] == ("a", "d", "f")
    assert dropped.images().shape == (3, 3, 8, 8)
    with pytest.raises(DataError, match="3 of 6 listed files"):
        read_faces("csv", tmp_path, labels=table, missing="error")
    with pytest.raises(DataError, match="check root="):
        read_faces("csv", tmp_path, labels={"path": ["x.png"]}, missing="drop")


# --- the vocabulary -------------------------------------------------------------------------------------------------

SOURCES = st.sampled_from(
    [*FAIRFACE, *RACES, "African", "Caucasian", "LATINO hispanic", "middle-eastern", "Others", "unkown"]
)


@given(st.lists(st.tuples(st.one_of(SOURCES, st.text(max_size=8)), st.text(max_size=8)), min_size=1, max_size=40))
def test_every_value_maps_into_the_vocabulary(rows) -> None:
    table = {
        "path": [f"{i}.png" for i in range(len(rows))],
        "race": [r for r, _ in rows],
        "gender": [g for _, g in rows],
    }
    faces = read_faces("csv", ".", labels=table)
    for label, words in (("race", RACES), ("gender", GENDERS)):
        assert set(faces.labels[label]) <= set(words)
        counts = faces.counts()[label]
        assert sum(counts.values()) == len(rows)
        assert counts == {**dict(Counter(faces.labels[label])), UNKNOWN: faces.labels[label].count(UNKNOWN)}
    for (source, _), word in zip(rows, faces.labels["race"], strict=True):
        if source in FAIRFACE:
            assert word == FAIRFACE[source]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_tables_are_read_back_as_the_same_set(tmp_path) -> None:
    faces = FaceSet(
        "x",
        tmp_path,
        ("a.png", "b.png"),
        ("007", "7"),
        {"race": ("white", UNKNOWN), "age": ("3", UNKNOWN)},
        torch.tensor([[1], [-1]], dtype=torch.int8),
        AttributeSchema(("Male",)),
    )
    for kind in ("csv", "parquet"):
        path = write_table(faces.to_table(), tmp_path / f"set.{kind}")
        again = read_faces("csv", tmp_path, labels=path)
        assert (again.paths, again.identities) == (faces.paths, faces.identities)
        assert {label: again.labels[label] for label in faces.labels} == faces.labels
        assert read_table(path)["Male"].tolist() == [1, -1]


def test_two_hundred_thousand_rows_take_seconds(tmp_path) -> None:
    n = 200_000
    races = np.array(list(FAIRFACE))[np.arange(n) % 7]
    table = {"file": [f"train/{i}.jpg" for i in range(n)], "age": ["20-29"] * n, "gender": ["Male"] * n, "race": races}
    write_table(table, tmp_path / "fairface_label_train.csv")
    start = time.perf_counter()
    faces = read_faces("fairface", tmp_path)
    groups = faces.group_ids(Groups({"race": list(RACES[:-1]), "gender": ["male", "female"]}))
    half = faces.subset(groups >= 2)
    str(faces)
    assert time.perf_counter() - start < 10  # 1 s on an idle core
    assert sum(faces.counts()["race"].values()) == n
    assert len(half) == n - faces.counts()["race"]["asian"]
    assert faces.labels["race"][0] is faces.labels["race"][7]  # one string per value, not one per row
