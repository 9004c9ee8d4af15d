"""Shards on disk: whole or not there, the same bytes whatever happened, and readable by other people's tools."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import re
import resource
import shutil
import struct
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fairface_synth import DataError, ShapeError
from fairface_synth.export import storage
from fairface_synth.export.disk import draft_path, is_abandoned
from fairface_synth.export.encoding import decode, encode
from fairface_synth.export.joining import check_finish, finish
from fairface_synth.export.plan import DatasetPlan, Shard, plan_dataset
from fairface_synth.export.records import MAGIC, check_keys, frame, image_record, read_frame, read_image
from fairface_synth.export.shard_checks import check_shard
from fairface_synth.export.storage import COLUMNS, file_name, is_done, read_images, read_index
from fairface_synth.export.writing import Row, clean, remove_shard, write_shard

LAYOUTS = ("webdataset", "folders", "rec", "parquet")
GROUPS = ["female", "male"]
LATENTS = (2, 3)


def _plan(layout: str = "webdataset", **settings: Any) -> DatasetPlan:
    options: dict[str, Any] = {"images_per_identity": 4, "shard_size": 13} | settings
    return plan_dataset({"female": 5, "male": 6}, layout=layout, **options)  # type: ignore[arg-type]


def _pixels(image: int) -> np.ndarray:
    return np.random.default_rng(image).integers(0, 256, (9, 9, 3), dtype=np.uint8)


def _rows(plan: DatasetPlan, shard: Shard) -> Iterator[tuple[bytes, Row]]:
    for image in range(shard.first_image, shard.first_image + shard.images):
        identity, place = divmod(image, plan.images_per_identity)
        name = list(plan.quota)[plan.order[identity]]
        latents = np.random.default_rng([7, image]).standard_normal(LATENTS).astype(np.float32)
        about = (image, identity, place, name, GROUPS.index(name), 100 + identity)
        similarity = float("nan") if place == 0 else 1 / (1 + image)
        yield encode(_pixels(image), plan), Row(*about, latents, 1 / (1 + place), similarity, image % 2 == 0)


def _other_rows(plan: DatasetPlan, shard: Shard) -> Iterator[tuple[bytes, Row]]:
    """Other pictures of the same length or another, of other latents."""
    for _, row in _rows(plan, shard):
        yield encode(_pixels(1000 + row.image), plan), row._replace(latents=row.latents + 1)


def _shards(plan: DatasetPlan) -> list[Shard]:
    return [plan.shard(k) for k in range(plan.shards)]


def _write(root: Path, plan: DatasetPlan) -> Path:
    for shard in _shards(plan):
        write_shard(root, plan, shard, _rows(plan, shard))
    return root


def _tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _check(root: Path, plan: DatasetPlan) -> list[str]:
    return [problem for shard in _shards(plan) for problem in check_shard(root, plan, shard)]


# --- images -----------------------------------------------------------------------------------------------------------


def test_lossless_images_come_back_and_lossy_ones_nearly() -> None:
    y, x = np.mgrid[:64, :64]
    pixels = np.stack([2 * x + 64, 3 * y, x + y], axis=2).astype(np.uint8)
    assert np.array_equal(decode(encode(pixels, _plan(image_format="png"))), pixels)
    for settings in ({"image_format": "webp"}, {"subsampling": "4:2:0"}, {"subsampling": "4:4:4"}):
        error = np.abs(decode(encode(pixels, _plan(**settings))).astype(int) - pixels)
        assert 0 < error.mean() < 4


@pytest.mark.parametrize(("subsampling", "factors"), [("4:4:4", 0x11), ("4:2:2", 0x21), ("4:2:0", 0x22)])
def test_jpeg_is_written_as_the_plan_says(subsampling: str, factors: int) -> None:
    """By the file's own header: the sampling factors of the first component in its SOF0 segment (ITU T.81, B.2.2)."""
    data = encode(_pixels(0), _plan(subsampling=subsampling))
    assert data[data.index(b"\xff\xc0") + 11] == factors
    sizes = [len(encode(_pixels(0), _plan(quality=q))) for q in (10, 50, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), [1]]
)
def test_only_pixels_are_encoded(pixels: Any) -> None:
    with pytest.raises(ShapeError, match=r"uint8 \[H, W, 3\]"):
        encode(pixels, _plan())


@pytest.mark.parametrize("image_format", ["jpeg", "png", "webp"])
def test_a_cut_image_is_no_image(image_format: str) -> None:
    data = encode(_pixels(0), _plan(image_format=image_format))
    for bad in (b"", b"hello", data[: len(data) // 2]):
        with pytest.raises(DataError, match="no image"):
            decode(bad)


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_set_is_read_as_it_was_written(layout: str, tmp_path: Path) -> None:
    plan = _plan(layout)
    for shard in _shards(plan):
        assert not is_done(tmp_path, plan, shard)
        sidecar = write_shard(tmp_path, plan, shard, _rows(plan, shard))
        assert json.loads((tmp_path / "shards" / f"{shard.name}.json").read_text()) == sidecar
        assert sum(sidecar["groups"].values()) == sidecar["images"] == shard.images
        assert is_done(tmp_path, plan, shard)
    for _ in range(2):  # before and after joining
        for shard in _shards(plan):
            rows = list(_rows(plan, shard))
            assert list(read_images(tmp_path, plan, shard)) == [data for data, _ in rows]
            table = read_index(tmp_path, plan, shard)
            assert table.column_names == list(COLUMNS)
            for name in ("image", "identity", "place", "group", "group_id", "index", "aligned"):
                assert table[name].to_pylist() == [getattr(row, name) for _, row in rows]
            np.testing.assert_array_equal(table["latents"].to_pylist(), [row.latents.ravel() for _, row in rows])
            np.testing.assert_array_equal(table["factor"].to_numpy(), np.float32([row.factor for _, row in rows]))
            expected = [None if np.isnan(row.similarity) else np.float32(row.similarity) for _, row in rows]
            assert table["similarity"].to_pylist() == expected
            assert table["key"].to_pylist() == [plan.key(row.image) for _, row in rows]
            assert read_index(tmp_path, plan, shard, ["image", "key"]).column_names == ["image", "key"]
        assert _check(tmp_path, plan) == []
        finish(tmp_path, plan)
    assert check_finish(tmp_path, plan) == []
    assert all(is_done(tmp_path, plan, shard) for shard in _shards(plan))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_and_repetition_do_not_change_a_byte(layout: str, tmp_path: Path) -> None:
    plan = _plan(layout)
    finish(_write(tmp_path / "a", plan), plan)
    for shard in [*reversed(_shards(plan)), plan.shard(1)]:
        write_shard(tmp_path / "b", plan, shard, _rows(plan, shard))
    for _ in range(2):
        finish(tmp_path / "b", plan)
        clean(tmp_path / "b", plan)
    assert _tree(tmp_path / "a") == _tree(tmp_path / "b")


def test_the_tar_is_what_tarfile_would_write(tmp_path: Path) -> None:
    plan = _plan()
    shard = plan.shard(0)
    write_shard(tmp_path, plan, shard, _rows(plan, shard))
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for data, row in _rows(plan, shard):
            about = {n: getattr(row, n) for n in ("image", "identity", "place", "group", "group_id", "index")}
            members = {"jpg": data, "cls": b"%d" % row.identity, "json": json.dumps(about).encode()}
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{plan.key(row.image)}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = (tmp_path / "shards/00000.tar").read_bytes()
    assert data == expected.getvalue()
    table = read_index(tmp_path, plan, shard, ["offset", "bytes"]).to_pylist()
    assert [data[r["offset"] :][: r["bytes"]] for r in table] == [image for image, _ in _rows(plan, shard)]


def test_latents_decide_the_row_groups_not_the_memory(tmp_path: Path) -> None:
    plan = plan_dataset({"female": 3}, 600, shard_size=1800)
    data = encode(_pixels(0), plan)

    def rows(latents: np.ndarray) -> Iterator[tuple[bytes, Row]]:
        return ((data, Row(i, i // 600, i % 600, "female", 0, i // 600, latents, 1.0, 0.5, False)) for i in range(1800))

    for size, groups in ((2, [1000, 800]), (512, [128] * 14 + [8])):
        write_shard(tmp_path, plan, plan.shard(0), rows(np.zeros(size, np.float32)))
        meta = pq.ParquetFile(tmp_path / "shards/00000.parquet").metadata
        assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == groups


# --- other people's readers ------------------------------------------------------------------------------------------


def test_webdataset_reads_the_tars(tmp_path: Path) -> None:
    import webdataset as wds

    plan = _plan(image_format="png")
    _write(tmp_path, plan)
    urls = [str(tmp_path / f"shards/{shard.name}.tar") for shard in _shards(plan)]
    seen = list(wds.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in seen] == [plan.key(i) for i in range(plan.images)]
    for image, sample in enumerate(seen):
        assert np.array_equal(sample["png"], _pixels(image))
        assert sample["cls"] == sample["json"]["identity"] == image // 4
        assert (sample["json"]["image"], sample["json"]["place"]) == (image, image % 4)
        assert sample["json"]["group"] == GROUPS[sample["json"]["group_id"]]
    faces, labels = next(iter(wds.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls")))
    assert (faces.size, labels) == ((9, 9), 0)


def test_datasets_reads_the_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from datasets import load_dataset

    plan = _plan(image_format="png")
    _write(tmp_path / "set", plan)
    files = [str(tmp_path / f"set/shards/{shard.name}.tar") for shard in _shards(plan)]
    faces = list(load_dataset("webdataset", data_files=files, split="train", streaming=True))
    assert [item["json"]["image"] for item in faces] == list(range(plan.images))
    for image, item in enumerate(faces):
        assert np.array_equal(np.asarray(item["png"]), _pixels(image))
        assert (int(item["cls"]), item["__key__"]) == (image // 4, plan.key(image))


def test_datasets_reads_the_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    from datasets import load_dataset

    plan = _plan("parquet", image_format="png")
    _write(tmp_path / "set", plan)
    files = [str(tmp_path / f"set/shards/{shard.name}.parquet") for shard in _shards(plan)]
    faces = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(faces) == plan.images
    rows = [row for shard in _shards(plan) for _, row in _rows(plan, shard)]
    for item, row in zip(faces, rows, strict=True):
        assert isinstance(item["image"], Image.Image)
        assert np.array_equal(np.asarray(item["image"]), _pixels(row.image))
        assert (item["number"], item["identity"], item["group"]) == (row.image, row.identity, row.group)
        np.testing.assert_array_equal(np.float32(item["latents"]), row.latents.ravel())


def test_image_folder_reads_the_folders(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    plan = _plan("folders", image_format="png")
    faces = ImageFolder(str(_write(tmp_path, plan) / "images"))
    assert len(faces.classes) == plan.identities
    for image, (face, label) in enumerate(faces):
        assert label == image // 4
        assert np.array_equal(np.asarray(face), _pixels(image))


def _mxnet_read(data: bytes, at: int) -> bytes:
    """What dmlc's RecordIOReader does: parts until a flag of 0 or 3, with the magic number between them."""
    content = b""
    while True:
        magic, word = struct.unpack_from("<II", data, at)
        assert magic == 0xCED7230A
        length = word & 0x1FFFFFFF
        content += data[at + 8 : at + 8 + length]
        assert len(data) >= at + 8 + length
        if word >> 29 in (0, 3):
            return content
        content += struct.pack("<I", magic)
        at += 8 + (length + 3) // 4 * 4


def _mxnet_unpack(content: bytes) -> tuple[int, Any, int, bytes]:
    """mxnet.recordio.unpack."""
    flag, label, key, _ = struct.unpack("<IfQQ", content[:24])
    rest = content[24:]
    if flag > 0:
        return flag, np.frombuffer(rest[: 4 * flag], np.float32), key, rest[4 * flag :]
    return flag, label, key, rest


def test_insightface_reads_train_rec(tmp_path: Path) -> None:
    """As its MXFaceDataset does, and its older readers that walk over identities."""
    plan = _plan("rec", image_format="png")
    finish(_write(tmp_path, plan), plan)
    data = (tmp_path / "train.rec").read_bytes()
    index = {
        int(k): int(v) for k, v in (line.split("\t") for line in (tmp_path / "train.idx").read_text().splitlines())
    }
    assert (tmp_path / "property").read_text().strip() == "11,9,9"
    flag, header, _, _ = _mxnet_unpack(_mxnet_read(data, index[0]))
    assert flag == 2
    assert list(range(1, int(header[0]))) == list(range(1, plan.images + 1))
    for key in range(1, int(header[0])):
        _, label, number, image = _mxnet_unpack(_mxnet_read(data, index[key]))
        assert (label, number) == ((key - 1) // 4, key)
        assert np.array_equal(decode(image), _pixels(key - 1))
    seen = []
    for identity, key in enumerate(range(int(header[0]), int(header[1]))):
        _, (first, stop), number, rest = _mxnet_unpack(_mxnet_read(data, index[key]))
        assert (number, rest) == (key, b"")
        labels = {_mxnet_unpack(_mxnet_read(data, index[k]))[1] for k in range(int(first), int(stop))}
        assert labels == {identity}
        seen += range(int(first), int(stop))
    assert seen == list(range(1, plan.images + 1))
    ends = [*sorted(index.values())[1:], len(data)]
    assert sorted(index) == list(index)
    assert [i + len(frame(_mxnet_read(data, i))) for i in sorted(index.values())] == ends


_PIECES = st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=9), st.just(MAGIC[:3])), max_size=8).map(b"".join)


@given(_PIECES, st.binary(max_size=5))
@example(MAGIC + MAGIC, b"")
@example(b"abc" + MAGIC, b"x")
@example(b"", b"")
def test_records_hold_anything(content: bytes, before: bytes) -> None:
    """And readers that start anywhere find a record's parts by the magic number at a multiple of 4."""
    data = frame(content)
    assert len(data) % 4 == 0
    assert _mxnet_read(data, 0) == content
    padded = before + data + frame(b"next")

    def read(offset: int, length: int) -> bytes:
        return padded[offset : offset + length]

    assert read_frame(read, len(before)) == content
    assert _mxnet_read(padded, len(before) + len(data)) == b"next"
    aligned = [i for i in range(0, len(content) // 4 * 4, 4) if content[i : i + 4] == MAGIC]
    assert sum(data[i : i + 4] == MAGIC for i in range(0, len(data), 4)) == len(aligned) + 1
    record = image_record(3, 5, content)
    assert read_image(lambda o, n: record[o : o + n], 0) == _mxnet_unpack(_mxnet_read(record, 0))[3] == content


def test_damaged_records_say_so() -> None:
    record = image_record(1, 2, b"x" * 30)
    for bad in (record[:-8], b"0" * 40, b"", record[:4] + struct.pack("<I", 2 << 29 | 4) + record[8:], frame(b"short")):
        with pytest.raises(DataError, match="record"):
            read_image(lambda o, n, bad=bad: bad[o : o + n], 0)  # type: ignore[misc]


def test_records_count_in_float32() -> None:
    plan = plan_dataset({"female": 16_000}, 1024, 1024, layout="rec")
    check_keys(plan)
    with pytest.raises(DataError, match="float32"):
        check_keys(dataclasses.replace(plan, quota={"female": 16_400}))


# --- interrupted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_that_raise_leave_nothing(layout: str, tmp_path: Path) -> None:
    plan = _plan(layout)
    write_shard(tmp_path, plan, plan.shard(0), _rows(plan, plan.shard(0)))
    before = _tree(tmp_path)

    def rows(shard: Shard) -> Iterator[tuple[bytes, Row]]:
        yield from list(_rows(plan, shard))[:7]
        raise OSError(errno.ENOSPC, "of the models, not of the set")

    for shard in _shards(plan)[:2]:
        with pytest.raises(OSError, match="of the models"):
            write_shard(tmp_path, plan, shard, rows(shard))
    assert _tree(tmp_path) == before
    assert not list(tmp_path.rglob("*.tmp"))
    assert is_done(tmp_path, plan, plan.shard(0))


def _wrong(plan: DatasetPlan, shard: Shard) -> Iterator[tuple[str, list[tuple[bytes, Row]]]]:
    rows = list(_rows(plan, shard))
    data, row = rows[5]
    yield "images of shard", rows[:-1]
    yield "images of shard", [*rows, rows[-1]]
    yield "images of shard", []
    yield "not the next image", [rows[1], rows[0], *rows[2:]]
    other = "male" if row.group == "female" else "female"
    for bad in (row._replace(group=other), row._replace(identity=9), row._replace(place=0)):
        yield "row 6 is not the next image", [*rows[:5], (data, bad), *rows[6:]]
    for bad in (row._replace(latents=np.zeros(3, np.float32)), row._replace(latents=row.latents * np.nan)):
        yield "not whole", [*rows[:5], (data, bad), *rows[6:]]
    yield "not whole", [*rows[:5], (b"", row), *rows[6:]]


@pytest.mark.parametrize("layout", ["webdataset", "folders"])
def test_rows_of_another_shard_are_refused(layout: str, tmp_path: Path) -> None:
    plan = _plan(layout)
    for message, rows in _wrong(plan, plan.shard(1)):
        with pytest.raises(DataError, match=message):
            write_shard(tmp_path, plan, plan.shard(1), rows)
        assert _tree(tmp_path) == {}


def _killed(work: Callable[[], object], call: int) -> bool:
    """Whether `work`, in a process that dies just before its n-th step on the disk, was killed."""
    child = os.fork()
    if child == 0:
        left = [call]

        def deadly(name: str, owner: Any) -> None:
            real = getattr(owner, name)

            def step(*args: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    if name == "copyfileobj":  # in the middle of it
                        args[1].write(args[0].read(20))
                        args[1].flush()
                    os._exit(9)
                return real(*args, **options)

            setattr(owner, name, step)

        for name in ("fsync", "replace", "unlink", "mkdir", "rmdir"):
            deadly(name, os)
        deadly("copyfileobj", shutil)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_shard_killed_at_any_step_is_made_again(layout: str, tmp_path: Path) -> None:
    plan = _plan(layout, images_per_identity=1, shard_size=2)
    shard = plan.shard(1)
    root, reference, other = tmp_path / "set", tmp_path / "reference", tmp_path / "other"
    write_shard(reference, plan, shard, _rows(plan, shard))
    write_shard(other, plan, shard, _other_rows(plan, shard))
    for again in (False, True) if layout == "webdataset" else (True,):  # a new shard; one that replaces a shard
        for call in range(1, 200):
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(other, root) if again else root.mkdir()
            killed = _killed(lambda: write_shard(root, plan, shard, _rows(plan, shard)), call)
            if is_done(root, plan, shard):
                assert check_shard(root, plan, shard) == []
            clean(root, plan)
            assert _tree(root) in ({}, _tree(other), _tree(reference))
            write_shard(root, plan, shard, _rows(plan, shard))
            assert _tree(root) == _tree(reference)
            if not killed:
                break
        assert 8 < call < 199


@pytest.mark.parametrize("layout", ["webdataset", "folders"])
def test_a_damaged_shard_killed_while_it_is_made_again(layout: str, tmp_path: Path) -> None:
    """Its sidecar is right all the time: nothing that was whole may be half there."""
    plan = _plan(layout, images_per_identity=2, shard_size=2)
    shard, root, reference = plan.shard(1), tmp_path / "set", tmp_path / "reference"
    write_shard(reference, plan, shard, _rows(plan, shard))
    whole, name = _tree(reference), file_name(plan, shard, shard.first_image + 1)
    for call in range(1, 200):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(reference, root)
        _flip(root / name, 30)
        killed = _killed(lambda: write_shard(root, plan, shard, _rows(plan, shard)), call)
        clean(root, plan)
        left = _tree(root)
        assert all(left[other] == whole[other] for other in left if other != name)
        if is_done(root, plan, shard):
            assert left.keys() == whole.keys()
        write_shard(root, plan, shard, _rows(plan, shard))
        assert _tree(root) == whole
        if not killed:
            break
    assert 5 < call < 199
    assert left == whole


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_renamed_or_deleted_before_it_is_on_the_disk(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies loses nothing it wrote; a machine does, unless it was synced."""
    plan = _plan(layout)
    events: list[tuple[str, str]] = []

    def watch(name: str, path_of: Callable[..., str]) -> None:
        real = getattr(os, name)

        def step(*args: Any, **options: Any) -> Any:
            events.append((name, path_of(*args)))
            return real(*args, **options)

        monkeypatch.setattr(os, name, step)

    watch("fsync", lambda handle: os.readlink(f"/proc/self/fd/{handle}"))
    watch("replace", lambda source, target: f"{source} {target}")
    watch("unlink", lambda path, **_: str(path))
    finish(_write(tmp_path, plan), plan)
    for i, (what, path) in enumerate(events):
        before = [p for name, p in events[:i] if name == "fsync"]
        if what == "replace":
            source, target = path.split()
            assert source in before
            sidecar = re.search(r"shards/\d+\.json$", target)
            moved = [p.split()[1] for name, p in events[max(0, i - 9) : i] if name == "replace"]
            if sidecar:  # what it speaks of was renamed, and the renames synced
                assert os.path.dirname(target) == before[-2]
                assert target.replace(".json", ".parquet") in moved
        elif what == "unlink" and path.endswith(".rec"):
            assert before[-1].endswith("train.rec.part")
    assert sum(what == "replace" for what, _ in events) > 2 * plan.shards - 1


def test_joining_killed_at_any_step_goes_on(tmp_path: Path) -> None:
    plan = _plan("rec")
    start, root, reference = tmp_path / "start", tmp_path / "set", tmp_path / "reference"
    _write(start, plan)
    shutil.copytree(start, reference)
    finish(reference, plan)
    images = [image for shard in _shards(plan) for image in read_images(start, plan, shard)]
    for call in range(1, 200):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(start, root)
        killed = _killed(lambda: finish(root, plan), call)
        clean(root, plan)
        assert all(is_done(root, plan, shard) for shard in _shards(plan))
        assert [image for shard in _shards(plan) for image in read_images(root, plan, shard)] == images
        if call % 5 == 1:
            assert _check(root, plan) == []
        if killed and call > 3:  # and once more, elsewhere
            _killed(lambda: finish(root, plan), call % 7 + 1)
            clean(root, plan)
        finish(root, plan)
        assert _tree(root) == _tree(reference)
        if not killed:
            break
    assert 15 < call < 199


def test_a_joined_shard_killed_while_it_is_made_again(tmp_path: Path) -> None:
    plan = _plan("rec", images_per_identity=1, shard_size=4)
    reference, root = tmp_path / "reference", tmp_path / "set"
    finish(_write(reference, plan), plan)
    shard = plan.shard(1)
    for call in range(1, 200):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(reference, root)
        start, length = json.loads((root / "shards/joined.json").read_text())["shards"][1]
        with open(root / "train.rec", "r+b") as file:
            file.seek(start)
            file.write(bytes(length))
        remove_shard(root, plan, shard)
        killed = _killed(lambda: write_shard(root, plan, shard, _rows(plan, shard)), call)
        clean(root, plan)
        if not is_done(root, plan, shard):
            write_shard(root, plan, shard, _rows(plan, shard))
        assert _check(root, plan) == []
        finish(root, plan)
        assert _tree(root) == _tree(reference)
        if not killed:
            break
    assert 10 < call < 199


def test_joining_needs_one_shard_more_than_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = _plan("rec")
    _write(tmp_path, plan)
    whole = sum(len(data) for name, data in _tree(tmp_path).items() if name.endswith(".rec"))
    largest = max(len(data) for name, data in _tree(tmp_path).items() if name.endswith(".rec"))
    used, fsync = [], os.fsync

    def measured(handle: int) -> None:
        used.append(sum(len(d) for name, d in _tree(tmp_path).items() if ".rec" in name))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", measured)
    finish(tmp_path, plan)
    ends = 40 * (1 + plan.identities)
    assert whole + 40 < max(used) <= whole + largest + ends
    assert not list((tmp_path / "shards").glob("*.rec"))


def test_a_joined_shard_is_made_again_in_place(tmp_path: Path) -> None:
    plan = _plan("rec")
    finish(_write(tmp_path, plan), plan)
    whole = _tree(tmp_path)
    shard = plan.shard(2)
    start = json.loads((tmp_path / "shards/joined.json").read_text())["shards"][2][0]
    with open(tmp_path / "train.rec", "r+b") as file:
        file.seek(start + 100)
        file.write(b"damage")
    assert [k for k in range(plan.shards) if check_shard(tmp_path, plan, plan.shard(k))] == [2]
    remove_shard(tmp_path, plan, shard)
    assert [is_done(tmp_path, plan, s) for s in _shards(plan)] == [True, True, False, True]
    with pytest.raises(DataError, match="1 of 4 shards are missing"):
        finish(tmp_path, plan)
    write_shard(tmp_path, plan, shard, _rows(plan, shard))
    assert _tree(tmp_path) == whole
    longer = ((data + b"\0" * 4, row) for data, row in _rows(plan, shard))
    with pytest.raises(DataError, match=r"(?s)does not fit into train\.rec.*new folder"):
        write_shard(tmp_path, plan, shard, longer)
    assert _tree(tmp_path) == whole


def test_what_joining_made_is_checked_and_mended(tmp_path: Path) -> None:
    plan = _plan("rec")
    assert check_finish(tmp_path, _plan()) == []
    assert check_finish(_write(tmp_path, plan), plan) == ["the shards are not joined into train.rec"]
    finish(tmp_path, plan)
    whole = _tree(tmp_path)
    size = len(whole["train.rec"])

    def damage(name: str, at: int, data: bytes) -> None:
        with open(tmp_path / name, "r+b") as file:
            file.seek(at)
            file.write(data)

    damages: dict[str, Callable[[], None]] = {
        "first record": lambda: damage("train.rec", 20, b"x"),
        "identities' records": lambda: damage("train.rec", size - 3, b"x"),
        f"{size + 2:,} bytes": lambda: damage("train.rec", size, b"xx"),
        "train.idx": lambda: damage("train.idx", 5, b"9"),
        "property": (tmp_path / "property").unlink,
        "shards/joined.json": (tmp_path / "shards/joined.json").unlink,
        "joined.json is missing or not": lambda: damage("shards/joined.json", 3, b"F"),
        "not what it should be": lambda: damage("shards/joined.json", len(whole["shards/joined.json"]), b"\n"),
        "not joined": (tmp_path / "train.rec").unlink,
    }
    for message, break_it in damages.items():
        break_it()
        assert any(message in problem for problem in check_finish(tmp_path, plan)), message
        for shard in _shards(plan):
            if not is_done(tmp_path, plan, shard):
                write_shard(tmp_path, plan, shard, _rows(plan, shard))
        finish(tmp_path, plan)
        assert check_finish(tmp_path, plan) == []
        assert _tree(tmp_path) == whole


def test_nobody_guesses_what_train_rec_holds(tmp_path: Path) -> None:
    """Where joined.json and a sidecar are lost: nothing is made, nothing is deleted, and the way out works."""
    plan = _plan("rec")
    finish(_write(tmp_path, plan), plan)
    whole = _tree(tmp_path)
    (tmp_path / "shards/joined.json").unlink()
    (tmp_path / "shards/00001.json").unlink()
    assert not any(is_done(tmp_path, plan, shard) for shard in _shards(plan))
    assert ["nobody knows" in problem for problem in check_finish(tmp_path, plan)] == [True]
    left = _tree(tmp_path)

    def rows() -> Iterator[tuple[bytes, Row]]:
        raise AssertionError("an image was made in vain")
        yield

    attempts: list[Callable[[], object]] = [
        lambda: finish(tmp_path, plan),
        lambda: write_shard(tmp_path, plan, plan.shard(1), rows()),
        lambda: remove_shard(tmp_path, plan, plan.shard(0)),
    ]
    for attempt in attempts:
        with pytest.raises(DataError, match=r"(?s)what lies where.*delete train\.rec"):
            attempt()
        assert _tree(tmp_path) == left
    (tmp_path / "train.rec").unlink()
    finish(_write(tmp_path, plan), plan)
    assert _tree(tmp_path) == whole


@pytest.mark.parametrize("recorded", [None, b"", b"[]", b"{}", b"moved"])
@pytest.mark.parametrize("cut", [0, 4, 2000])
def test_sidecars_say_where_shards_lie(recorded: bytes | None, cut: int, tmp_path: Path) -> None:
    """However long train.rec is, and also when one of the sidecars goes afterwards."""
    plan = _plan("rec")
    finish(_write(tmp_path, plan), plan)
    whole, joined = _tree(tmp_path), tmp_path / "shards/joined.json"
    second = json.loads(whole["shards/joined.json"])["shards"][1][0]
    moved = whole["shards/joined.json"].replace(b"%d" % second, b"%d" % (second - 4))
    joined.unlink() if recorded is None else joined.write_bytes(moved if recorded == b"moved" else recorded)
    os.truncate(tmp_path / "train.rec", len(whole["train.rec"]) - cut)
    assert any("joined.json is missing or not" in problem for problem in check_finish(tmp_path, plan))
    remove_shard(tmp_path, plan, plan.shard(1))
    assert joined.read_bytes() == whole["shards/joined.json"]
    missing = [shard for shard in _shards(plan) if not is_done(tmp_path, plan, shard)]
    assert [shard.number for shard in missing] == ([1, 3] if cut == 2000 else [1])
    for shard in missing:
        write_shard(tmp_path, plan, shard, _rows(plan, shard))
    finish(tmp_path, plan)
    assert _tree(tmp_path) == whole


def test_shards_that_lie_beside_train_rec_decide(tmp_path: Path) -> None:
    plan = _plan("rec")
    finish(_write(tmp_path / "whole", plan), plan)
    _write(tmp_path / "set", plan)
    (tmp_path / "set/train.rec").write_bytes(b"something else")
    finish(tmp_path / "set", plan)
    assert _tree(tmp_path / "set") == _tree(tmp_path / "whole")


@pytest.mark.parametrize("joined", [True, False])
def test_a_pass_over_all_shards_reads_each_file_once(
    joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_dataset({"female": 40}, 1, 1, layout="rec")
    finish(_write(tmp_path, plan), plan)
    if not joined:
        (tmp_path / "shards/joined.json").unlink()
    os.utime(tmp_path / "shards", (0, 0))  # a folder that changed just now may change again at the same time
    read, loads = [], json.loads
    monkeypatch.setattr(storage.json, "loads", lambda data: (read.append(data), loads(data))[1])
    assert all(is_done(tmp_path, plan, shard) for shard in _shards(plan))
    assert plan.shards <= len(read) <= (plan.shards + 1 if joined else 2 * plan.shards)


def test_a_lost_train_rec_is_made_again(tmp_path: Path) -> None:
    plan = _plan("rec")
    finish(_write(tmp_path, plan), plan)
    whole = _tree(tmp_path)
    (tmp_path / "train.rec").unlink()
    assert not any(is_done(tmp_path, plan, shard) for shard in _shards(plan))
    clean(tmp_path, plan)
    assert not (tmp_path / "shards/joined.json").exists()  # other lengths are welcome now
    finish(_write(tmp_path, plan), plan)
    assert _tree(tmp_path) == whole


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_that_the_system_cuts_is_a_clear_error(layout: str, tmp_path: Path) -> None:
    """A real failing write, by the limit on file sizes."""
    plan = plan_dataset({"female": 8}, 4, 32, layout=layout, image_format="png")  # type: ignore[arg-type]
    shard = plan.shard(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    try:
        with pytest.raises(DataError, match=r"(?s)the disk is full.*finished shards are kept"):
            write_shard(tmp_path, plan, shard, _rows(plan, shard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert _tree(tmp_path) == {}
    write_shard(tmp_path, plan, shard, _rows(plan, shard))
    assert check_shard(tmp_path, plan, shard) == []


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "about 0.0 MiB for shard 0; "), (errno.EROFS, "cannot write in")]
)
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_and_read_only_disks(
    step: str, number: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = _plan()

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(DataError, match=message):
            write_shard(tmp_path, plan, plan.shard(0), _rows(plan, plan.shard(0)))
    assert not list(tmp_path.rglob("*.tmp"))
    clean(tmp_path, plan)
    assert _tree(tmp_path) == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_writer_that_was_killed_leaves_no_draft_to_the_next(layout: str, tmp_path: Path) -> None:
    """Or a run that is often killed would fill the disk before it is finished and cleaned."""
    plan = _plan(layout)
    shard, other = plan.shard(1), tmp_path / "shards/.00002.parquet.abc.tmp"
    step = 3 if layout == "parquet" else 5  # there are fewer
    assert _killed(lambda: write_shard(tmp_path, plan, shard, _rows(plan, shard)), step)
    assert list(tmp_path.rglob("*.tmp"))
    other.write_bytes(b"of another writer")
    write_shard(tmp_path, plan, shard, _rows(plan, shard))
    assert list(tmp_path.rglob("*.tmp")) == [other]


def test_only_drafts_of_the_dead_are_abandoned(tmp_path: Path) -> None:
    def draft(name: str, age: float = 0) -> Path:
        path = tmp_path / name
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
        return path

    mine = draft_path(tmp_path / "00001.tar").name
    host, process, run, _ = mine.removeprefix(".00001.tar.").split("-")
    assert int(process) == os.getpid()
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert is_abandoned(draft(mine.replace(f"-{process}-", f"-{child}-"))) is False  # not yet waited for
    os.waitpid(child, 0)
    assert is_abandoned(draft(mine.replace(f"-{process}-", f"-{child}-")))
    assert not is_abandoned(draft(mine, 1e6))
    assert not is_abandoned(draft(mine.replace(f"-{process}-", f"-{os.getppid()}-"), 1e6))
    assert is_abandoned(draft(mine.replace(run, "0" * 8)))  # of an earlier process of the same number
    for name in (mine.replace(host, "0" * 8), ".00001.json.ab_c.tmp"):  # of another host; of nobody knows whom
        assert not is_abandoned(draft(name, 80_000))
        assert is_abandoned(draft(name, 90_000))
    assert not is_abandoned(tmp_path / ".00001.json.gone.tmp")


# --- two writers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("last", [False, True])
def test_another_writer_of_the_same_shard_does_not_show(layout: str, last: bool, tmp_path: Path) -> None:
    """A rank of an older job array, or an actor that was cut off, while the other run goes on or even finishes."""
    plan = _plan(layout)
    reference, shard = tmp_path / "reference", plan.shard(1)
    _write(reference, plan)
    if last:
        finish(reference, plan)
    for at in (0, 1, 7, shard.images):
        root = tmp_path / str(at)
        _write(root, plan)
        remove_shard(root, plan, shard)

        def rows(at: int = at, root: Path = root) -> Iterator[tuple[bytes, Row]]:
            of = list(_rows(plan, shard))
            yield from of[:at]
            write_shard(root, plan, shard, iter(of))
            if last:
                finish(root, plan)
                clean(root, plan)
            yield from of[at:]

        sidecar = write_shard(root, plan, shard, rows())
        assert sidecar == json.loads((reference / "shards/00001.json").read_text())
        assert _tree(root) == _tree(reference)
        assert not list(root.rglob("*.tmp"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("step", ["replace", "fsync", "unlink"])
@pytest.mark.parametrize("damaged", [False, True])
def test_two_writers_may_finish_at_once(
    damaged: bool, step: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One writes the whole shard before the n-th step of the other."""
    plan = _plan(layout, images_per_identity=2, shard_size=4)
    reference, shard = tmp_path / "reference", plan.shard(1)
    _write(reference, plan)
    real, name = getattr(os, step), file_name(plan, shard, shard.first_image)
    for call in range(1, 100):
        root, left = tmp_path / str(call), [call]
        shutil.copytree(reference, root)
        remove_shard(root, plan, shard)
        if damaged:  # folders, or whatever lies there
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(b"x")

        def stepped(*args: Any, root: Path = root, left: list[int] = left, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                write_shard(root, plan, shard, _rows(plan, shard))
                assert _check(root, plan) == []
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, step, stepped)
            write_shard(root, plan, shard, _rows(plan, shard))
        assert _tree(root) == _tree(reference)
        assert not list(root.rglob("*.tmp"))
        if left[0] > 0:
            break
    assert call > (1 if step == "unlink" else 2)


def test_a_late_writer_of_a_shard_that_is_being_joined_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, real = _plan("rec"), os.fsync
    finish(_write(tmp_path / "reference", plan), plan)
    for call in range(1, 30):
        root, left = _write(tmp_path / str(call), plan), [call]

        def stepped(handle: int, root: Path = root, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                write_shard(root, plan, plan.shard(1), _rows(plan, plan.shard(1)))
            real(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", stepped)
            finish(root, plan)
        assert _tree(root) == _tree(tmp_path / "reference")
        if left[0] > 0:
            break
    assert 10 < call < 29


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_whole_shard_is_left_alone(layout: str, tmp_path: Path) -> None:
    """Or those who read it would miss it for a moment."""
    plan = _plan(layout)
    _write(tmp_path, plan)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    write_shard(tmp_path, plan, plan.shard(1), _rows(plan, plan.shard(1)))
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


def test_drafts_that_others_deleted_are_a_clear_error(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        root, plan = tmp_path / layout, _plan(layout)

        def rows(root: Path = root, plan: DatasetPlan = plan) -> Iterator[tuple[bytes, Row]]:
            of = list(_rows(plan, plan.shard(0)))
            yield from of[:5]
            clean(root, plan)  # by a run that does not know of this one
            yield from of[5:]

        with pytest.raises(DataError, match=r"(?s)drafts of shard 0 were deleted by others.*run the same export again"):
            write_shard(root, plan, plan.shard(0), rows())
        assert _tree(root) == {}


def test_cleaning_takes_leftovers_alone(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        root, plan = tmp_path / layout, _plan(layout)
        _write(root, plan)
        (root / "plan.json").write_text("{}")
        whole = _tree(root)
        clean(root, plan)
        assert _tree(root) == whole
        for name in (".plan.json.abc.tmp", "shards/.00001.tar.abc.tmp", "shards/00009.tar", "shards/00009.parquet"):
            (root / name).write_bytes(b"x")
        (root / "shards/00002.json").unlink()
        clean(root, plan)
        first, k = plan.shard(2).first_identity, plan.identities_per_shard
        lost = {f"images/{i:08d}" for i in range(first, first + k)}
        expected = {n: d for n, d in whole.items() if "00002." not in n and n.rpartition("/")[0] not in lost}
        assert _tree(root) == expected


# --- damage -----------------------------------------------------------------------------------------------------------


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_changed_byte_is_found(layout: str, tmp_path: Path) -> None:
    plan = _plan(layout)
    _write(tmp_path, plan)
    shard = plan.shard(1)
    rng = np.random.default_rng(0)
    for name, data in _tree(tmp_path).items():
        of = int(name.split("/")[1]) // plan.identities_per_shard if "images/" in name else int(name[7:12])
        if of != 1:
            continue
        for at in rng.integers(0, len(data), 10 if name.endswith(".json") else 3):
            _flip(tmp_path / name, int(at))
            assert check_shard(tmp_path, plan, shard), (name, at)
            (tmp_path / name).write_bytes(data)
    assert _check(tmp_path, plan) == []


def test_a_changed_latent_is_never_read(tmp_path: Path) -> None:
    plan = _plan()
    _write(tmp_path, plan)
    path = tmp_path / "shards/00000.parquet"
    _, row = next(_rows(plan, plan.shard(0)))
    _flip(path, path.read_bytes().index(row.latents.tobytes()))
    with pytest.raises(DataError, match="cannot read the index of shard 0"):
        read_index(tmp_path, plan, plan.shard(0))


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    plan = _plan()
    shard, name = plan.shard(1), "shards/00001.tar"
    _write(tmp_path, plan)
    whole = _tree(tmp_path)
    offset = read_index(tmp_path, plan, shard, ["offset"])["offset"].to_pylist()

    def problems() -> str:
        return "\n".join(check_shard(tmp_path, plan, shard))

    _flip(tmp_path / name, offset[2] + 300)
    assert f"{name} is not what was written: its sha256 differs" in problems()
    assert "images that differ from the index's digest: 14" in problems()
    (tmp_path / name).write_bytes(whole[name][: offset[4]])
    assert f"{name} has {offset[4]:,} bytes, not {len(whole[name]):,}" in problems()
    assert "image 16 cannot be read" in problems()
    assert not is_done(tmp_path, plan, shard)
    (tmp_path / name).unlink()
    assert f"{name} is missing" in problems()
    (tmp_path / name).write_bytes(whole[name])
    sidecar, index = tmp_path / "shards/00001.json", tmp_path / "shards/00001.parquet"
    text = json.loads(whole["shards/00001.json"])
    text["files"][name]["bytes"] = str(text["files"][name]["bytes"])
    listed = json.dumps(text | {"files": []}).encode()
    damaged = [(content, "damaged") for content in (b"{", b"[]", b"{}", json.dumps(text).encode(), listed)]
    for content, message in (*damaged, (None, "sidecar is missing")):
        sidecar.write_bytes(content) if content is not None else sidecar.unlink()
        assert message in problems()
        assert not is_done(tmp_path, plan, shard)
    sidecar.write_bytes(whole["shards/00001.json"])
    index.write_bytes(whole["shards/00001.parquet"][:500])
    assert "shards/00001.parquet has 500 bytes" in problems()
    assert "cannot read the index" in problems()
    index.write_bytes(whole["shards/00002.parquet"])
    assert "the index's image is not the plan's in rows 0, 1, 2, 3, 4, … (12 in all)" in problems()
    index.write_bytes(whole["shards/00003.parquet"])
    assert "the index has 8 rows, not 12" in problems()
    index.write_bytes(whole["shards/00001.parquet"])
    assert problems() == ""
    sidecar.write_bytes(whole["shards/00003.json"])
    assert problems() == "shard 1: its sidecar is of shard 3 of this plan"
    sidecar.write_bytes(whole["shards/00001.json"])
    other = _plan(seed=1)
    assert f"of another plan ({plan.digest})" in check_shard(tmp_path, other, shard)[0]
    assert not is_done(tmp_path, other, shard)


def test_folders_name_stray_and_missing_files(tmp_path: Path) -> None:
    plan = _plan("folders")
    shard = plan.shard(0)
    _write(tmp_path, plan)
    stray = tmp_path / "images/00000001/copy.jpg"
    stray.write_bytes(b"x")
    assert check_shard(tmp_path, plan, shard) == ["shard 0: files that do not belong there: images/00000001/copy.jpg"]
    stray.unlink()
    (tmp_path / "images/00000001/0002.jpg").unlink()
    assert is_done(tmp_path, plan, shard)  # which looks at folders alone
    assert any("image 6 cannot be read" in problem for problem in check_shard(tmp_path, plan, shard))
    shutil.rmtree(tmp_path / "images/00000001")
    assert not is_done(tmp_path, plan, shard)
    assert "shard 0: images/* is missing" in check_shard(tmp_path, plan, shard)
    write_shard(tmp_path, plan, shard, _rows(plan, shard))
    assert check_shard(tmp_path, plan, shard) == []


@pytest.mark.parametrize(
    ("layout", "name"),
    [("webdataset", "shards/00000 (copy).tar"), ("rec", "shards/00004.parquet"), ("folders", "images/copy/a.jpg")],
)
def test_what_others_would_read_too_is_named(layout: str, name: str, tmp_path: Path) -> None:
    plan = _plan(layout)
    finish(_write(tmp_path, plan), plan)
    (tmp_path / "shards/.00001.tar.abc.tmp").write_bytes(b"of another rank")
    assert _check(tmp_path, plan) == []
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    stray = name.removesuffix("/a.jpg")
    assert _check(tmp_path, plan) == [f"shard 0: files that do not belong there: {stray}"]


def test_an_image_that_was_stored_broken_is_named(tmp_path: Path) -> None:
    plan = _plan("parquet")
    rows = list(_rows(plan, plan.shard(0)))
    rows[3] = (rows[3][0][:40], rows[3][1])
    write_shard(tmp_path, plan, plan.shard(0), rows)
    assert check_shard(tmp_path, plan, plan.shard(0)) == ["shard 0: images that do not decode: 3"]


_PLACES = {
    "webdataset": ("shards/00001.tar", "shards/00001.json", "shards/00001.parquet", "shards"),
    "folders": ("images/00000003", "images/00000003/0001.jpg", "shards/00001.json", "images", "shards"),
    "rec": ("shards/00001.json", "shards/00001.parquet", "shards/joined.json", "train.rec", "train.idx", "property"),
    "parquet": ("shards/00001.parquet", "shards/00001.json"),
}


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize(("layout", "name"), [(layout, name) for layout in LAYOUTS for name in _PLACES[layout]])
def test_files_and_folders_in_each_others_place(layout: str, name: str, removed: bool, tmp_path: Path) -> None:
    plan = _plan(layout)
    finish(_write(tmp_path, plan), plan)
    whole, path = _tree(tmp_path), tmp_path / name
    if path.is_dir():
        shutil.rmtree(path)
        path.write_bytes(b"x")
    else:
        path.unlink()
        path.mkdir()
        (path / "within").write_bytes(b"x")
    wrong = [shard for shard in _shards(plan) if check_shard(tmp_path, plan, shard)]
    assert wrong or check_finish(tmp_path, plan)
    if name != "images/00000003/0001.jpg":
        assert wrong == [s for s in _shards(plan) if not is_done(tmp_path, plan, s)] or name.endswith("00001.parquet")
    for shard in wrong:
        if removed:
            remove_shard(tmp_path, plan, shard)
    for shard in wrong:
        write_shard(tmp_path, plan, shard, _rows(plan, shard))
    finish(tmp_path, plan)
    clean(tmp_path, plan)
    assert _tree(tmp_path) == whole
    assert check_finish(tmp_path, plan) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_removed_shard_is_gone(layout: str, tmp_path: Path) -> None:
    plan = _plan(layout)
    _write(tmp_path, plan)
    remove_shard(tmp_path, plan, plan.shard(1))
    remove_shard(tmp_path, plan, plan.shard(1))
    shutil.rmtree(tmp_path / "other", ignore_errors=True)
    for shard in (plan.shard(0), plan.shard(2), plan.shard(3)):
        write_shard(tmp_path / "other", plan, shard, _rows(plan, shard))
    found = _tree(tmp_path)
    other = {name.removeprefix("other/"): found.pop(name) for name in list(found) if name.startswith("other/")}
    assert found == other


def test_memory_does_not_grow_with_the_shard(tmp_path: Path) -> None:
    """At most a row group of rows is alive at a time."""
    import weakref

    plan = plan_dataset({"female": 5}, 500, shard_size=2500)
    data, alive, most = encode(_pixels(0), plan), weakref.WeakSet(), 0  # type: ignore[var-annotated]

    class Latents(np.ndarray):
        pass

    def rows() -> Iterator[tuple[bytes, Row]]:
        nonlocal most
        for i in range(plan.images):
            latents = np.zeros(512, np.float32).view(Latents)
            alive.add(_Key(latents))
            most = max(most, len(alive))
            yield data, Row(i, i // 500, i % 500, "female", 0, i // 500, latents, 1.0, 0.5, True)

    class _Key:
        def __init__(self, latents: np.ndarray) -> None:
            latents.key = self  # type: ignore[attr-defined]

    write_shard(tmp_path, plan, plan.shard(0), rows())
    assert 100 < most < 200
    assert storage.IMAGE_GROUP == 100
