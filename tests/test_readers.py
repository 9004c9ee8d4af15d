"""Reading a set back: the images and labels that were written, from every layout, in DataLoaders and over ranks."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import fairface_synth as ffs
from fairface_synth import DataError, GroupError
from fairface_synth.export import readers
from fairface_synth.export.encoding import encode
from fairface_synth.export.joining import finish
from fairface_synth.export.plan import DatasetPlan, Shard, plan_dataset
from fairface_synth.export.readers import FaceDataset, FaceStream, open_dataset
from fairface_synth.export.writing import Row, remove_shard, write_shard

LAYOUTS = ("webdataset", "folders", "rec", "parquet")
GROUPS = ffs.Groups({"gender": ["female", "male"], "tone": ["light", "dark"]})
QUOTA = {"male-dark": 6, "female-light": 5, "female-dark": 4}
K, LATENTS = 3, (2, 4)
KEYS = {"image", "identity", "group", "group_id", "latents", "place", "key", "number"}


def _pixels(image: int) -> np.ndarray:
    return np.random.default_rng(image).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _latents(image: int) -> np.ndarray:
    return np.random.default_rng([7, image]).standard_normal(LATENTS).astype(np.float32)


def _rows(plan: DatasetPlan, shard: Shard) -> Iterator[tuple[bytes, Row]]:
    for image in range(shard.first_image, shard.first_image + shard.images):
        identity, place = divmod(image, K)
        name = list(plan.quota)[plan.order[identity]]
        about = (image, identity, place, name, GROUPS.id(name), identity)
        yield encode(_pixels(image), plan), Row(*about, _latents(image), 1.0, 0.5, True)


def _make(root: Path, layout: str = "webdataset") -> DatasetPlan:
    """15 identities × 3 images in 5 shards."""
    plan = plan_dataset(QUOTA, K, shard_size=10, layout=layout, image_format="png")  # type: ignore[arg-type]
    root.mkdir(parents=True, exist_ok=True)
    (root / "plan.json").write_text(json.dumps(plan.to_dict()))
    parts = {"groups": {a: list(v) for a, v in GROUPS.attributes.items()}, "latent_shape": list(LATENTS)}
    (root / "parts.json").write_text(json.dumps(parts))
    for number in range(plan.shards):
        write_shard(root, plan, plan.shard(number), _rows(plan, plan.shard(number)))
    finish(root, plan)
    return plan


@pytest.fixture(scope="module", params=LAYOUTS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    _make(root, request.param)
    return root


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tars")
    _make(root)
    return root


def _check(item: dict[str, Any], image: int, plan: DatasetPlan) -> None:
    name = list(QUOTA)[plan.order[image // K]]
    assert set(item) == KEYS
    assert (item["number"], item["identity"], item["place"]) == (image, image // K, image % K)
    assert (item["group"], item["group_id"], item["key"]) == (
        name,
        GROUPS.id(name),
        f"{image // K:08d}_{image % K:04d}",
    )
    assert item["image"].dtype == torch.float32
    assert torch.equal(item["image"], torch.from_numpy(_pixels(image)).permute(2, 0, 1) / 127.5 - 1)
    assert torch.equal(item["latents"], torch.from_numpy(_latents(image)))


# --- random access ----------------------------------------------------------------------------------------------------


def test_items_are_what_was_written(made: Path) -> None:
    data = open_dataset(made)
    assert isinstance(data, FaceDataset)
    assert (len(data), data.identities, data.groups) == (45, 15, GROUPS)
    for image in torch.randperm(45, generator=torch.Generator().manual_seed(0)).tolist():
        _check(data[image], image, data.plan)
    _check(data[-1], 44, data.plan)
    for bad in (45, -46):
        with pytest.raises(IndexError, match="there are 45"):
            data[bad]
    assert repr(data) == f"FaceDataset({str(made)!r}: 45 images of 15 identities, {data.plan.layout})"


def test_labels_are_known_without_images(made: Path) -> None:
    for groups in (None, "female", ["male-dark"]):
        data = open_dataset(made, groups=groups)
        assert data.identity.tolist() == [data[i]["identity"] for i in range(len(data))]
        assert data.group_ids.tolist() == [data[i]["group_id"] for i in range(len(data))]
        wanted = {GROUPS.names[g] for g in GROUPS.parse("*" if groups is None else groups)}
        assert set(data.group_ids.tolist()) == {GROUPS.id(name) for name in QUOTA if name in wanted}
        assert len(data) == K * sum(n for name, n in QUOTA.items() if name in wanted)


@pytest.mark.parametrize("iterable", [False, True])
def test_loaders_with_workers_see_every_image_once(made: Path, iterable: bool) -> None:
    data = open_dataset(made, iterable=iterable)
    data_again = pickle.loads(pickle.dumps(data))
    next(iter(data_again)) if iterable else data[7]  # files that are open where workers are forked
    batches = list(DataLoader(data_again, 4, num_workers=2))
    seen = torch.cat([batch["number"] for batch in batches])
    assert sorted(seen.tolist()) == list(range(45))
    for batch in batches:
        for i, image in enumerate(batch["number"].tolist()):
            _check({name: v[i] for name, v in batch.items()}, image, data.plan)


def test_images_may_be_resized_and_transformed(tars: Path) -> None:
    assert open_dataset(tars, size=4)[3]["image"].shape == (3, 4, 4)
    flat = open_dataset(tars, size=2, transform=torch.flatten)[3]["image"]
    expected = torch.from_numpy(_pixels(3)).permute(2, 0, 1) / 127.5 - 1
    resized = torch.nn.functional.interpolate(expected[None], (2, 2), mode="bilinear", antialias=True)
    assert torch.allclose(flat, resized.flatten())
    assert set(open_dataset(tars, latents=False)[3]) == KEYS - {"latents"}


def test_few_files_are_open_at_a_time(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_OPEN_SHARDS", 2)
    data = open_dataset(tars)
    for image in range(0, 45, 7):
        _check(data[image], image, data.plan)
    assert isinstance(data, FaceDataset)
    assert len(data._files()._open) == 2
    mine = data._files()
    monkeypatch.setattr(os, "getpid", lambda: 7)
    assert data._files() is not mine  # a forked process opens its own
    _check(data[8], 8, data.plan)


# --- streams ----------------------------------------------------------------------------------------------------------


def _numbers(stream: Any) -> list[int]:
    return [item["number"] for item in stream]


def test_a_stream_has_the_set_in_order(made: Path) -> None:
    stream = open_dataset(made, iterable=True)
    assert isinstance(stream, FaceStream)
    for image, item in enumerate(stream):
        _check(item, image, stream.plan)
    assert len(stream) == image + 1 == 45


@pytest.mark.parametrize("shuffle", [None, 3])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (3, 2)])
def test_ranks_and_workers_share_the_set_out(ranks: int, workers: int, shuffle: int | None, tars: Path) -> None:
    for groups, images in ((None, 45), ("female", 27)):
        seen: list[int] = []
        for rank in range(ranks):
            stream = open_dataset(
                tars, iterable=True, rank=rank, world_size=ranks, shuffle=shuffle, groups=groups, latents=False
            )
            mine = [n for b in DataLoader(stream, 4, num_workers=workers) for n in b["number"].tolist()]
            assert len(mine) == len(stream)
            seen += mine
        assert len(seen) == len(set(seen)) == images


def test_shuffled_streams_follow_seed_and_epoch(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_BUFFER", 8)
    stream = open_dataset(tars, iterable=True, shuffle=1)
    assert isinstance(stream, FaceStream)
    first = _numbers(stream)
    assert first == _numbers(stream) == _numbers(open_dataset(tars, iterable=True, shuffle=1))
    assert first != _numbers(open_dataset(tars, iterable=True, shuffle=2))
    assert [n // 9 for n in first[:9]] != [first[0] // 9] * 9  # from several shards
    stream.set_epoch(1)
    assert first != _numbers(stream)
    assert sorted(first) == sorted(_numbers(stream)) == list(range(45))
    orders = set()  # within a shard, of every rank and epoch
    for rank in range(5):
        stream = open_dataset(tars, iterable=True, shuffle=1, rank=rank, world_size=5)
        for epoch in range(2):
            stream.set_epoch(epoch)  # type: ignore[union-attr]
            orders.add(tuple(n % 9 for n in _numbers(stream)))
    assert len(orders) == 10


def test_workers_that_live_on_see_the_epoch(tars: Path) -> None:
    stream = open_dataset(tars, iterable=True, shuffle=1, latents=False)
    assert isinstance(stream, FaceStream)
    loader = DataLoader(stream, None, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        orders.append(_numbers(loader))
        assert orders[-1] == _numbers(stream)
    assert orders[0] != orders[1]


# --- what cannot be read ----------------------------------------------------------------------------------------------


def test_an_unfinished_set_says_what_is_missing(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        root = tmp_path / layout
        plan = _make(root, layout)
        remove_shard(root, plan, plan.shard(1))
        remove_shard(root, plan, plan.shard(3))
        with pytest.raises(DataError, match=r"(?s)2 of 5 shards.*without shards 1, 3.*run the same export again"):
            open_dataset(root)
        there = [image for k in (0, 2, 4) for image in range(9 * k, 9 * k + 9)]
        data = open_dataset(root, partial=True)
        assert [data[i]["number"] for i in range(len(data))] == there
        assert _numbers(open_dataset(root, partial=True, iterable=True)) == there
        assert data.identity.tolist() == [image // K for image in there]
        for k in (0, 2, 4):
            remove_shard(root, plan, plan.shard(k))
        with pytest.raises(DataError, match="5 of 5 shards"):
            open_dataset(root, partial=True)


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    _make(tmp_path / "set")
    with pytest.raises(DataError, match=r"(?s)is no exported set.*plan\.json"):
        open_dataset(tmp_path)
    for damaged in ("{}", "[]", '{"groups": 3, "latent_shape": [2, 4]}', '{"groups": {"a": ["b"]}, "latent_shape": 8}'):
        (tmp_path / "set/parts.json").write_text(damaged)
        with pytest.raises(DataError, match=r"parts\.json is damaged"):
            open_dataset(tmp_path / "set")
    (tmp_path / "set/parts.json").unlink()
    with pytest.raises(DataError, match=r"parts\.json, which export writes first"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 1, "world_size": 2}, "of streams"),
        ({"shuffle": 1}, "of streams"),
        ({"shuffle": True, "iterable": True}, "a seed"),
        ({"shuffle": 1.5, "iterable": True}, "a seed"),
        ({"size": 0}, "number of pixels"),
        ({"size": "64"}, "number of pixels"),
        ({"rank": None, "world_size": 2, "iterable": True}, "no such rank"),
        ({"rank": 2, "world_size": 2, "iterable": True}, "no such rank"),
        ({"rank": 2, "world_size": 6, "iterable": True}, "more ranks than shards"),
        ({"groups": "male-light"}, "no image is of these groups"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str, tars: Path) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(tars, **settings)


def test_a_link_to_a_set_that_was_moved(tmp_path: Path) -> None:
    plan = _make(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    _check(open_dataset(tmp_path / "link")[44], 44, plan)


def test_unknown_groups(tars: Path) -> None:
    with pytest.raises(GroupError, match="femael"):
        open_dataset(tars, groups="femael")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_speaks_up_when_it_is_read(layout: str, tmp_path: Path) -> None:
    plan = _make(tmp_path, layout)
    data = open_dataset(tmp_path)
    files = {
        "webdataset": "shards/00001.tar",
        "folders": "images/00000003/0001.png",
        "rec": "train.rec",
        "parquet": "shards/00001.parquet",
    }
    path = tmp_path / files[layout]
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(DataError, match="verify_dataset"):
        open_dataset(tmp_path)[10]
    path.unlink()
    with pytest.raises(DataError, match="verify_dataset"):
        data[10]
    path.write_bytes(whole)
    _check(open_dataset(tmp_path)[10], 10, plan)
