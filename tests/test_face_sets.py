"""Face sets: columns that stay together, group ids; pixels of every kind of file, against PIL."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fairface_synth.attribute_schema import AttributeSchema
from fairface_synth.datasets import read_faces
from fairface_synth.errors import DataError, GroupError, ShapeError
from fairface_synth.face_sets import FaceSet
from fairface_synth.groups import Groups
from fairface_synth.vocabulary import GENDERS, RACES, UNKNOWN


def noise(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def from_pil(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1


@given(
    st.lists(st.tuples(st.sampled_from(RACES), st.sampled_from(GENDERS)), min_size=1, max_size=40),
    st.lists(st.sampled_from(RACES[:-1]), min_size=1, max_size=6, unique=True),
)
def test_group_ids_are_those_of_the_names(rows, races) -> None:
    n = len(rows)
    faces = FaceSet(
        "x",
        Path(),
        tuple(map(str, range(n))),
        None,
        {"race": [r for r, _ in rows], "gender": [g for _, g in rows]},
        vocabulary={"race": RACES, "gender": GENDERS},
    )
    groups = Groups({"Gender": ["Female", "male"], "race": [r.upper() for r in races]})
    expected = [groups.id(f"{gender}-{race}") if race in races and gender != UNKNOWN else -1 for race, gender in rows]
    assert faces.group_ids(groups).tolist() == expected
    assert faces.group_ids(groups).dtype == torch.int64


def test_group_ids_refuse_what_can_never_match() -> None:
    labels = {"race": ["middleeastern", "white"], "age": ["3-9", "unknown"]}
    faces = FaceSet("x", Path(), ("a", "b"), None, labels)
    assert faces.group_ids(Groups({"race": ["Middle Eastern"]})).tolist() == [0, -1]
    assert faces.group_ids(Groups({"age": ["3-9"]})).tolist() == [0, -1]
    with pytest.raises(GroupError, match="'39'"):
        faces.group_ids(Groups({"age": ["39"]}))  # not 3-9
    with pytest.raises(GroupError, match=r"did you mean 'white'\?"):
        faces.group_ids(Groups({"race": ["whit"]}))
    with pytest.raises(GroupError, match="read alike"):
        faces.group_ids(Groups({"race": ["middle eastern", "middleeastern"]}))
    with pytest.raises(GroupError, match="no labels for 'gender'"):
        faces.group_ids(Groups({"gender": ["male"]}))
    part = faces.subset([1])
    assert part.group_ids(Groups({"race": ["middleeastern", "white"]})).tolist() == [1]  # its vocabulary stays


@given(st.data())
def test_subsets_keep_columns_together(data) -> None:
    n = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(n)
    faces = FaceSet(
        "x",
        Path(),
        [f"{i}.png" for i in range(n)],
        [f"p{i % 3}" for i in range(n)],
        {"race": [f"r{i}" for i in range(n)]},
        torch.from_numpy(rng.integers(-1, 2, (n, 2)).astype(np.int8)),
        AttributeSchema(("Male", "Young")),
    )
    rows = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20))
    for indices in (rows, torch.tensor(rows), np.array(rows)):
        part = faces.subset(indices)
        assert part.paths == tuple(faces.paths[i] for i in rows)
        assert part.identities == tuple(faces.identities[i] for i in rows)
        assert part.labels["race"] == tuple(faces.labels["race"][i] for i in rows)
        assert torch.equal(part.annotations, faces.annotations[rows])
    mask = np.zeros(n, dtype=bool)
    mask[rows] = True
    assert (
        faces.subset(mask).paths == faces.subset(sorted(set(rows))).paths == faces.subset(torch.from_numpy(mask)).paths
    )


def test_indices_and_columns_that_do_not_fit() -> None:
    faces = FaceSet("x", Path(), ("a", "b"))
    for bad in ([2], [-1], []):
        with pytest.raises(DataError, match="no such faces"):
            faces.subset(bad)
    for wrong in (1, [0.5], torch.tensor([True]), torch.zeros(1, 1, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="not indices"):
            faces.subset(wrong)
    schema = AttributeSchema(("Male",))
    for fields, error in (
        ({"paths": ()}, DataError),
        ({"identities": ("a",)}, DataError),
        ({"paths": "ab"}, DataError),
        ({"identities": "ab"}, DataError),
        ({"labels": {"gender": "mf"}}, DataError),
        ({"labels": {"race": ("white",)}}, DataError),
        ({"labels": {"path": ("a", "b")}}, DataError),
        ({"schema": schema}, DataError),
        ({"schema": schema, "annotations": torch.zeros(2, 1)}, ShapeError),
        ({"schema": schema, "annotations": torch.zeros(1, 1, dtype=torch.int8)}, ShapeError),
        ({"schema": schema, "annotations": torch.full((2, 1), 3, dtype=torch.int8)}, DataError),
    ):
        with pytest.raises(error):
            FaceSet(**{"name": "x", "root": Path(), "paths": ("a", "b"), **fields})


def test_the_summary_counts_unknowns() -> None:
    faces = FaceSet("mine", Path("/x"), ("a", "b", "c", "d"), ("p", "p", "q", "q"), {"race": ["white"] * 3 + [UNKNOWN]})
    text = str(faces)
    assert "mine: 4 faces" in text
    assert "1 (25.0%)" in text
    assert "white 3" in text
    assert "identities: 2" in text
    assert "not looked for" in text
    assert repr(faces) == "FaceSet(mine: 4 faces, labels: race)"


def one(path: Path, size: object = None) -> torch.Tensor:
    return FaceSet("x", path.parent, (path.name,)).images(size=size)[0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pil(tmp_path, orientation) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    assert torch.equal(one(path), from_pil(ImageOps.exif_transpose(Image.open(path))))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_none(tmp_path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8), "red").save(path, exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xffgarbage")
    assert one(path).shape == (3, 8, 8)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "RGB", "I;16"])
def test_colour_modes(tmp_path, mode) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))
    else:
        image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.png" if mode in ("L", "1", "P", "RGB", "I;16") else "a.tif")
    image.save(path)
    expected = from_pil(image)
    if mode == "I;16":  # PIL would clip
        expected = torch.linspace(-1, 1, 64).reshape(1, 8, 8).expand(3, 8, 8)
    torch.testing.assert_close(one(path), expected, atol=4e-5 if mode == "I;16" else 0, rtol=0)


def test_transparency_is_laid_on_white(tmp_path) -> None:
    pixels = np.zeros((1, 4, 4), dtype=np.uint8)
    pixels[0, :, 0], pixels[0, :, 3] = 200, [255, 128, 1, 0]
    for name, image in {
        "rgba.png": Image.fromarray(pixels),
        "la.png": Image.fromarray(pixels).convert("LA"),
    }.items():
        image.save(tmp_path / name)
        alpha = np.array(image.getchannel("A"))[..., None] / 255
        expected = np.array(image.convert("RGB")) * alpha + 255 * (1 - alpha)
        got = (one(tmp_path / name).permute(1, 2, 0) + 1) * 127.5
        assert np.abs(got.numpy() - expected).max() <= 1
    palette = Image.new("P", (2, 2), 3)
    palette.save(tmp_path / "p.gif", transparency=3)
    assert torch.equal(one(tmp_path / "p.gif"), torch.ones(3, 2, 2))


@pytest.mark.parametrize(
    ("shape", "size"), [((40, 60), 16), ((61, 40), 16), ((33, 33), 48), ((30, 50), (10, 30)), ((7, 1), 4)]
)
def test_resizing_cuts_the_centre_and_averages(tmp_path, shape, size) -> None:
    path = tmp_path / "a.png"
    noise(path, *shape)
    h, w = (size, size) if isinstance(size, int) else size
    scale = min(shape[0] / h, shape[1] / w)
    box_h, box_w = max(1, round(h * scale)), max(1, round(w * scale))
    top, left = (shape[0] - box_h) // 2, (shape[1] - box_w) // 2
    assert box_h == shape[0] or box_w == shape[1]  # nothing smaller than the largest box
    image = Image.open(path).crop((left, top, left + box_w, top + box_h)).resize((w, h), Image.Resampling.BILINEAR)
    got = one(path, size)
    assert got.shape == (3, h, w)
    assert (got - from_pil(image)).abs().max() <= 1.5 / 127.5  # PIL rounds to 8 bits after each axis


def test_batches_are_slices(tmp_path) -> None:
    pixels = [noise(tmp_path / f"{i}.png", 8 + i % 2, 8, seed=i) for i in range(5)]
    faces = read_faces("folder", tmp_path)
    together = faces.images(size=8)
    assert together.dtype == torch.float32
    assert together.min() >= -1
    assert together.max() <= 1
    for i in range(5):
        assert torch.equal(faces.images(i, i + 1, size=8)[0], together[i])
    assert torch.equal(faces.images(3, 99, size=8), together[3:])
    assert torch.equal(faces.images(0, 1)[0], torch.from_numpy(pixels[0]).permute(2, 0, 1).float() / 127.5 - 1)
    with pytest.raises(DataError, match=r"pass size=") as error:
        faces.images()
    assert "1.png" in str(error.value)
    sized = read_faces("folder", tmp_path, size=(6, 8))
    assert sized.images(1, 3).shape == sized.subset([1, 2]).images().shape == (2, 3, 6, 8)
    assert torch.equal(sized.images(size=8), together)
    for start, stop in ((5, None), (2, 2), (-1, 2), (3, 1)):
        with pytest.raises(DataError, match="no faces in this slice"):
            faces.images(start, stop)
    with pytest.raises(DataError, match="whole numbers"):
        faces.images(0, 2.5)
    assert faces.images(0, 1, np.int64(8)).shape == (1, 3, 8, 8)
    for size in (0, -3, 2.5, (4,), "big"):
        with pytest.raises(ShapeError, match="not a size"):
            faces.images(size=size)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "flipped", "folder", "float"])
def test_a_broken_file_is_named(tmp_path, damage) -> None:
    path = tmp_path / "bröken.jpg"
    if damage == "folder":
        path.mkdir()
    elif damage == "float":
        path = tmp_path / "bröken.tif"
        Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(path)
    else:
        noise(path, 64, 64)
        data = path.read_bytes()
        path.write_bytes(
            {"truncated": data[: len(data) // 2], "text": b"not an image", "empty": b"", "flipped": data[::-1]}[damage]
        )
    with pytest.raises(DataError, match=f"cannot read .*{path.name}"):
        one(path)


@given(st.integers(0, 10_000))
def test_no_damage_escapes_as_another_error(seed) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.png" if seed % 2 else "a.jpg")
        noise(path, 16, 16)
        data = bytearray(path.read_bytes())
        for at in rng.integers(0, len(data), 8):
            data[at] = rng.integers(0, 256)
        path.write_bytes(bytes(data))
        with contextlib.suppress(DataError):
            assert one(path, 8).isfinite().all()


def test_a_missing_image_is_named(tmp_path) -> None:
    faces = read_faces("csv", tmp_path, labels={"path": ["gone.png"]})
    with pytest.raises(DataError, match=r"missing(.|\n)*gone.png"):
        faces.images()
