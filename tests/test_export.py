"""What a set holds, recomputed from its latents and from nothing else."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fake_world import GROUPS, Embed, Synthesize, W, contents, differences, label, make_axes, make_source
from PIL import Image
from torch import Tensor

import fairface_synth as ffs
from fairface_synth import DataError, ShapeError
from fairface_synth.export import (
    DatasetPlan,
    ExportEstimate,
    ExportReport,
    gate,
    open_dataset,
    plan_dataset,
    regenerate,
    run,
    verify_dataset,
)
from fairface_synth.export import export as export_set
from fairface_synth.models.facenet import Detections
from fairface_synth.variations import edit

THRESHOLD = 0.99


def make(**changes: Any) -> DatasetPlan:
    """13 identities × 4, five in a shard, the last one smaller."""
    plan = {"quota": {"female": 8, "male": 5}, "images_per_identity": 4, "shard_size": 22, "groups": GROUPS}
    return plan_dataset(**(plan | {"fmr": 1e-3, "image_format": "png", "forward_batch": 16, "budget": 200} | changes))


@contextmanager
def no_datasheet() -> Iterator[None]:
    """A set's description takes longer than a small set, and has tests of its own."""

    def write(root: Path, *parts: Any, **more: Any) -> None:
        files = {name: gate.describe_file(root / name) for name in ("parts.json", "gate.json")}
        for name in run.SHEET:
            (root / name).write_text(json.dumps({"files": files, "distribution": []}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "write_datasheet", write)
        yield


def export(source: Any, plan: DatasetPlan, path: Path, **settings: Any) -> Any:
    with no_datasheet():
        return export_set(
            source, plan, path, **({"threshold": THRESHOLD, "progress": False, "command": "pytest"} | settings)
        )


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The set of a plan, made once; tests must not change it."""
    known: dict[str, Path] = {}

    def made(axes: bool = False, **changes: Any) -> Path:
        name = f"{axes}-{make(**changes).digest}"
        if name not in known:
            known[name] = tmp_path_factory.mktemp("sets") / name
            export(make_source(), make(**changes), known[name], axes=make_axes() if axes else None)
        return known[name]

    return made


def index_of(path: Path) -> dict[str, list[Any]]:
    """Columns of a set's whole index."""
    rows = [row for file in sorted((path / "shards").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return {name: [row[name] for row in rows] for name in rows[0]}


def identities_of(path: Path) -> dict[str, list[Any]]:
    return pq.read_table(path / "identities.parquet").to_pydict()


def stored_bytes(path: Path, plan: DatasetPlan) -> list[bytes]:
    """Encoded images in order, read without the library's readers."""
    index = index_of(path)
    if plan.layout == "parquet":
        return [image["bytes"] for image in index["image"]]
    if plan.layout == "folders":
        return [(path / name).read_bytes() for name in index["file"]]
    assert plan.layout == "webdataset"
    return [
        (path / name).read_bytes()[offset : offset + n]
        for name, offset, n in zip(index["file"], index["offset"], index["bytes"], strict=True)
    ]


def faces(latents: Tensor) -> Tensor:
    """Images of latents [n, 8], by the fake generator's function alone."""
    return Synthesize()(latents.unsqueeze(1))


def pixels(images: Tensor) -> np.ndarray:
    """uint8 [n, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# --- identities -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("psi", [1.0, 0.7])
def test_identities_are_candidates_of_their_groups(tmp_path: Path, psi: float) -> None:
    source = make_source()
    seen = []

    def latents(ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        seen.append((seed, truncation_psi))
        return truncation_psi * source.latents(ids, index, seed)

    lesser = SimpleNamespace(
        generator=source.generator, groups=GROUPS, embedder=Embed(), labeller=source.labeller, latents=latents
    )
    plan = make(truncation_psi=psi, seed=2**63 + 5)
    export(lesser, plan, tmp_path / "set")
    assert set(seen) == {(2**63 + 5, psi)}
    table = identities_of(tmp_path / "set")
    assert table["group"] == [list(plan.quota)[g] for g in plan.order]
    assert table["group_id"] == [GROUPS.id(name) for name in table["group"]]
    expected = psi * source.latents(torch.tensor(table["group_id"]), torch.tensor(table["index"]), 2**63 + 5)
    np.testing.assert_array_equal(np.load(tmp_path / "set" / "latents.npy"), expected.numpy())


def test_identities_are_new_in_the_whole_set(sets: Callable[..., Path]) -> None:
    path = sets(quota={"male": 20, "female": 20})
    w = torch.from_numpy(np.load(path / "latents.npy"))
    x = Embed()(faces(w))
    np.testing.assert_allclose(np.load(path / "embeddings.npy"), x.numpy(), atol=1e-6)
    cosines = (x @ x.T).fill_diagonal_(-1)
    assert cosines.max() < THRESHOLD
    counts = json.loads((path / "gate.json").read_text())
    assert sum(counts["duplicates"].values()) > 0  # there was somebody to keep out
    assert counts["threshold"] == THRESHOLD
    table = identities_of(path)
    nearest = torch.tensor([math.nan if c is None else c for c in table["nearest"]])
    # Somebody is the first of all; everybody's nearest is among the others.
    assert nearest.isnan().sum() == 1
    assert (nearest <= cosines.amax(1) + 1e-5)[~nearest.isnan()].all()


def test_reference_stays_out(sets: Callable[..., Path], tmp_path: Path) -> None:
    reference = torch.from_numpy(np.load(sets() / "embeddings.npy"))
    export(make_source(), make(), tmp_path / "set", reference=reference)
    x = torch.from_numpy(np.load(tmp_path / "set" / "embeddings.npy"))
    assert (x @ reference.T).max() < THRESHOLD
    counts = json.loads((tmp_path / "set" / "gate.json").read_text())
    assert counts["reference"] == 13
    assert sum(counts["leaks"].values()) >= 13  # all of them at least, since the candidates are the same


def test_only_confirmed_faces(tmp_path: Path) -> None:
    source = make_source()
    export(source, make(fmr=None, verify=True), tmp_path / "set")
    table = identities_of(tmp_path / "set")
    passed = 0  # groups of which somebody was passed over
    for g in range(len(GROUPS)):
        index = torch.arange(200)
        ids = torch.full_like(index, g)
        labels = GROUPS.assign(label(faces(source.latents(ids, index))))
        found = [i for h, i in zip(table["group_id"], table["index"], strict=True) if h == g]
        assert found == (labels == g).nonzero().flatten()[: len(found)].tolist()
        passed += found != list(range(len(found)))
    assert passed > 0
    counts = json.loads((tmp_path / "set" / "gate.json").read_text())
    assert sum(counts["confirmed"].values()) < sum(counts["candidates"].values())


def test_without_embedder_nobody_is_compared(tmp_path: Path) -> None:
    source = dataclasses.replace(make_source(), embedder=None)
    export(source, make(fmr=None), tmp_path / "set", threshold=None)
    table = identities_of(tmp_path / "set")
    assert table["nearest"] == [None] * 13
    order = make().order.tolist()
    assert table["index"] == [order[:i].count(g) for i, g in enumerate(order)]  # the first ones
    assert not (tmp_path / "set" / "embeddings.npy").exists()
    assert index_of(tmp_path / "set")["similarity"] == [None] * 52


def test_automatic_rate(tmp_path: Path) -> None:
    source = dataclasses.replace(make_source(), embedder=None)
    with pytest.warns(UserWarning, match="nobody checks"):
        export(source, make(fmr="auto"), tmp_path / "unchecked")
    assert identities_of(tmp_path / "unchecked")["nearest"] == [None] * 13
    with pytest.raises(DataError, match="same person at which threshold"), pytest.warns(UserWarning, match="embedder"):
        export(source, make(fmr="auto", same_person=True), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    export(make_source(), make(fmr="auto"), tmp_path / "set")
    assert json.loads((tmp_path / "set" / "gate.json").read_text())["fmr"] == 1e-4


@pytest.mark.parametrize("own", [False, True])
def test_threshold_is_measured_by_this_embedder_and_depends_on_the_plan_alone(tmp_path: Path, own: bool) -> None:
    parts = vars(make_source()) | {"latents": make_source().latents, "threshold": lambda fmr: 0.5}
    del parts["embedder"]
    source = SimpleNamespace(**parts) if own else make_source()
    export(source, make(fmr=0.01, quota={"male": 2}), tmp_path / "set", threshold=None, embedder=Embed(scale=0.5))
    threshold = json.loads((tmp_path / "set" / "gate.json").read_text())["threshold"]
    x = Embed(scale=0.5)(faces(torch.randn(1500, W, generator=torch.Generator().manual_seed(0))))
    matches = float(((x @ x.T) >= threshold).double().mean())
    assert 0.005 < matches - 1 / 1500 < 0.02


# --- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["webdataset", "folders", "parquet", "rec"])
@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_images_index_and_identities_agree(sets: Callable[..., Path], layout: str, image_format: str) -> None:
    changes = {"layout": layout, "image_format": image_format}
    path = sets(**changes)
    table, index, data = identities_of(path), index_of(path), open_dataset(path)
    assert index["number" if layout == "parquet" else "image"] == list(range(52))
    assert index["identity"] == [i // 4 for i in range(52)]
    assert index["place"] == [i % 4 for i in range(52)]
    assert index["key"] == [f"{i // 4:08d}_{i % 4:04d}" for i in range(52)]
    assert index["group"] == [table["group"][i // 4] for i in range(52)]
    assert index["group_id"] == [table["group_id"][i // 4] for i in range(52)]
    assert index["index"] == [table["index"][i // 4] for i in range(52)]
    assert index["factor"] == [1.0] * 52
    assert index["similarity"] == [None] * 52
    assert index["aligned"] == [False] * 52
    w = torch.tensor(index["latents"])
    np.testing.assert_array_equal(w[::4].numpy(), np.load(path / "latents.npy"))
    expected, again = pixels(faces(w)), regenerate(path, range(52), make_source().generator)
    np.testing.assert_array_equal(pixels(again), expected)
    for i, item in enumerate(data[j] for j in range(len(data))):
        assert (item["number"], item["key"]) == (i, index["key"][i])
        assert (item["identity"], item["place"]) == (i // 4, i % 4)
        assert (item["group"], item["group_id"]) == (index["group"][i], index["group_id"][i])
        assert torch.equal(item["latents"], w[i])
        found = pixels(item["image"][None])[0].astype(int)
        assert abs(found - expected[i]).max() <= (0 if image_format == "png" else 8)
    assert verify_dataset(path, progress=False).ok
    assert differences(path, contents(sets(**changes))) == []


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("png", {}),
        ("jpeg", {"quality": 95, "subsampling": 0}),
        ("jpeg", {"quality": 60, "subsampling": 2}),
        ("webp", {"quality": 80}),
    ],
)
def test_stored_bytes_are_those_of_pillow(
    sets: Callable[..., Path], image_format: str, options: Mapping[str, int]
) -> None:
    changes: dict[str, Any] = {"image_format": image_format, "quality": options.get("quality", 95)}
    changes["subsampling"] = ("4:4:4", "4:2:2", "4:2:0")[options.get("subsampling", 0)]
    path = sets(**changes)
    images = pixels(regenerate(path, range(52), make_source().generator))
    for image, found in zip(images, stored_bytes(path, make(**changes)), strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, image_format, **options)
        assert found == file.getvalue()


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_images_per_identity_need_not_divide_the_batch(tmp_path: Path, k: int) -> None:
    plan = make(images_per_identity=k, shard_size=4 * k, forward_batch=16, layout="parquet")
    export(make_source(), plan, tmp_path / "set")
    w = torch.tensor(index_of(tmp_path / "set")["latents"])
    assert len(w) == 13 * k
    images = np.stack([np.array(Image.open(io.BytesIO(data))) for data in stored_bytes(tmp_path / "set", plan)])
    np.testing.assert_array_equal(images, pixels(faces(w)))
    again = regenerate(tmp_path / "set", range(13 * k), make_source().generator)
    np.testing.assert_array_equal(images, pixels(again))


def test_one_identity(tmp_path: Path) -> None:
    export(make_source(), make(quota={"male-dark": 1}, images_per_identity=1), tmp_path / "set")
    assert identities_of(tmp_path / "set")["nearest"] == [None]
    assert len(open_dataset(tmp_path / "set")) == 1
    assert verify_dataset(tmp_path / "set", progress=False).ok


def test_latents_with_layers(tmp_path: Path) -> None:
    def latents(ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        return ffs.normals(seed, index, 3 * W, stream=ids + 1).unflatten(1, (3, W))

    def synthesize(w: Tensor) -> Tensor:
        return faces(w[:, 0] + 0.5 * w[:, 1] - w[:, 2])

    generator = ffs.wrap_generator(synthesize=synthesize, z_dim=W, num_ws=3, resolution=16, w_avg=torch.zeros(W))
    source = SimpleNamespace(generator=generator, groups=GROUPS, latents=latents, embedder=Embed())
    path, plan = tmp_path / "set", make(same_person=True, layout="parquet")
    export(source, plan, path)
    table = identities_of(path)
    own = np.load(path / "latents.npy")
    assert own.shape == (13, 3, W)
    np.testing.assert_array_equal(own, latents(torch.tensor(table["group_id"]), torch.tensor(table["index"])))
    w = torch.tensor(index_of(path)["latents"]).unflatten(1, (3, W))
    images = np.stack([np.array(Image.open(io.BytesIO(data))) for data in stored_bytes(path, plan)])
    np.testing.assert_array_equal(images, pixels(synthesize(w)))
    np.testing.assert_array_equal(images, pixels(regenerate(path, range(52), generator)))
    data = open_dataset(path)
    assert torch.equal(data[5]["latents"], w[5])


def test_size_cuts_and_scales(sets: Callable[..., Path]) -> None:
    path = sets(size=8, layout="parquet")
    w = torch.tensor(index_of(path)["latents"])
    expected = pixels(ffs.to_recognition_format(faces(w), size=8))
    images = [np.array(Image.open(io.BytesIO(x))) for x in stored_bytes(path, make(size=8, layout="parquet"))]
    np.testing.assert_array_equal(np.stack(images), expected)
    np.testing.assert_array_equal(pixels(regenerate(path, range(52), make_source().generator)), expected)


def detect(images: Tensor) -> Detections:
    """Points that move with the face's colour; bright faces are not found."""
    n = len(images)
    colour = images[:, :, 8, 8]
    points = torch.tensor([[5.0, 6], [10, 6], [7.5, 9], [5.5, 12], [9.5, 12]]) + colour[:, None, :2]
    points[colour.mean(1) > 0.2] = torch.nan
    return Detections(torch.ones(n), torch.zeros(n, 4), points)


def test_crops_follow_the_landmarks(tmp_path: Path) -> None:
    plan, path = make(crop="arcface", size=24, layout="parquet"), tmp_path / "set"
    export(make_source(), plan, path, detector=detect)
    index = index_of(path)
    images = faces(torch.tensor(index["latents"]))
    landmarks = detect(images).landmarks
    assert index["aligned"] == landmarks.isfinite().all(2).all(1).tolist()
    assert 0 < sum(index["aligned"]) < 52
    expected = pixels(ffs.align_faces(images, landmarks, 24, "arcface"))
    stored = np.stack([np.array(Image.open(io.BytesIO(data))) for data in stored_bytes(path, plan)])
    np.testing.assert_array_equal(stored, expected)
    again = regenerate(path, range(52), make_source().generator, detector=detect)
    np.testing.assert_array_equal(pixels(again), expected)
    with pytest.raises(DataError, match="placed by a detector"):
        regenerate(path, 0, make_source().generator)
    with pytest.raises(DataError, match="not the detector that placed"):
        regenerate(path, 0, make_source().generator, detector=lambda x: detect(x.flip(3)))
    with pytest.raises(ShapeError, match="Detections"):
        export(make_source(), plan, tmp_path / "other", detector=lambda x: torch.ones(len(x), dtype=torch.bool))


# --- variations -----------------------------------------------------------------------------------------------------


def test_axes_give_each_person_different_edits(sets: Callable[..., Path]) -> None:
    w = torch.tensor(index_of(sets(axes=True))["latents"]).unflatten(0, (13, 4))
    (axis,) = make_axes()
    chosen = []
    for face, others in zip(w[:, 0], w[:, 1:], strict=True):
        edits = edit(face.expand(4, -1), axis.direction, torch.as_tensor(axis.steps))
        match = torch.cdist(others, edits) < 1e-5
        assert (match.sum(1) == 1).all()  # each is one of them
        assert match.sum(0).max() == 1  # and no two are the same
        chosen.append(tuple(match.int().argmax(1).tolist()))
    assert len(set(chosen)) > 6  # people get different ones


@pytest.mark.parametrize("amount", [0.2, 1.0])
def test_without_axes_faces_move_towards_others_of_their_group(sets: Callable[..., Path], amount: float) -> None:
    index = index_of(sets(perturbation=amount))
    w = torch.tensor(index["latents"])
    ids, candidate, place = (torch.tensor(index[name]) for name in ("group_id", "index", "place"))
    first = 2**50 + 2**48  # no candidate has such a number
    other = make_source().latents(ids, first + (candidate * len(GROUPS) + ids) * 1024 + place)
    face = w[::4].repeat_interleave(4, 0)
    torch.testing.assert_close(w[place > 0], torch.lerp(face, other, amount)[place > 0], rtol=0, atol=1e-6)
    assert len(w.unique(dim=0)) == 52


@pytest.mark.parametrize("axes", [True, False])
def test_same_person(sets: Callable[..., Path], axes: bool) -> None:
    changes = {"quota": 10, "perturbation": 0.3}
    index = index_of(sets(axes=axes, same_person=True, **changes))
    full = torch.tensor(index_of(sets(axes=axes, **changes))["latents"])
    w, factor, similarity = (torch.tensor(index[name]) for name in ("latents", "factor", "similarity"))
    face = w[::4].repeat_interleave(4, 0)
    own = Embed()(faces(face))

    def similar(share: float) -> Tensor:
        return (Embed()(faces(torch.lerp(face, full, share))) * own).sum(1)

    torch.testing.assert_close(w, torch.lerp(face, full, factor[:, None]), rtol=0, atol=1e-6)
    torch.testing.assert_close(similarity, (Embed()(faces(w)) * own).sum(1), rtol=0, atol=1e-5)
    # The largest share that matches, or else a quarter.
    full_matches, half_matches = similar(1.0) >= THRESHOLD, similar(0.5) >= THRESHOLD
    assert torch.equal(factor, torch.where(full_matches, 1.0, torch.where(half_matches, 0.5, 0.25)))
    assert ((similarity >= THRESHOLD) | (factor == 0.25)).all()
    assert set(factor.tolist()) == {1.0, 0.5, 0.25}
    assert (factor[::4] == 1).all()
    assert (similarity[factor == 0.25] < THRESHOLD).any()  # kept all the same


# --- how the work is done -------------------------------------------------------------------------------------------


def test_threads_and_buffers_change_nothing(sets: Callable[..., Path], tmp_path: Path) -> None:
    expected = contents(sets(axes=True, same_person=True))
    for i, settings in enumerate([{"threads": 1, "batch_size": 1}, {"threads": 5, "batch_size": 7}]):
        export(make_source(), make(same_person=True), tmp_path / str(i), axes=make_axes(), **settings)
        assert differences(tmp_path / str(i), expected) == []


@pytest.mark.parametrize("threshold", [THRESHOLD, None])
def test_networks_see_full_batches(tmp_path: Path, threshold: float | None) -> None:
    sizes: list[int] = []
    looked: list[int] = []

    class Watching(Embed):
        def __call__(self, images: Tensor) -> Tensor:
            looked.append(len(images))
            return super().__call__(images)

    source = make_source(trouble=lambda w: sizes.append(len(w)))
    with no_datasheet():
        fitted = dataclasses.replace(source, embedder=Watching())
        plan = make(same_person=True, verify=True, forward_batch=5)
        export_set(fitted, plan, tmp_path / "set", threshold=threshold, progress=False)
    assert set(sizes) == {2, 5}  # 2: the fingerprint's
    assert set(looked) == {2, 5}


def test_running_again_does_nothing(tmp_path: Path) -> None:
    first = export(make_source(), make(), tmp_path / "set")
    before = contents(tmp_path / "set")
    again = export(make_source(), make(), tmp_path / "set")
    assert differences(tmp_path / "set", before) == []
    assert (first.images, again.images) == (52, 0)
    assert first.complete
    assert again.complete
    assert not (tmp_path / "set" / "work").exists()


def test_quota_in_another_order_is_the_same_set(tmp_path: Path) -> None:
    source = make_source()
    export(source, plan_dataset({"male-dark": 2, "female-light": 3}, fmr=None), tmp_path / "set")
    before = contents(tmp_path / "set")
    export(source, plan_dataset({"light-female": 3, "dark-male": 2}, fmr=None), tmp_path / "set")
    assert differences(tmp_path / "set", before) == []


def test_report_says_what_was_done(tmp_path: Path) -> None:
    report = export(make_source(), make(), tmp_path / "set")
    assert isinstance(report, ExportReport)
    counts = json.loads((tmp_path / "set" / "gate.json").read_text())
    drawn = sum(counts["candidates"].values())
    for part in ("finished", "52 images of 13 identities in 3 shards", f"{drawn} candidates for 13 identities"):
        assert part in str(report)
    assert "made 52 images" in str(report)
    assert "made 0 images" in str(export(make_source(), make(), tmp_path / "set"))


def test_strange_images_stop_the_export(tmp_path: Path) -> None:
    """Nobody looks at candidates here, so that the images are the first to show it."""

    def latents(ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        w = make_source().latents(ids, index, seed)
        return torch.where((index == 2)[:, None] & (ids == 3)[:, None], torch.nan, w)

    source = SimpleNamespace(generator=make_source().generator, groups=GROUPS, latents=latents)
    plan = make(quota=4, fmr=None, images_per_identity=4, shard_size=16)
    with pytest.raises(DataError, match=r"not in \[-1, 1\][\s\S]*nan[\s\S]*checkpoint"):
        export(source, plan, tmp_path / "set", threshold=None)
    names = [name for name, data in contents(tmp_path / "set").items() if data is not None]
    assert not [name for name in names if name.endswith(".tmp") or ".tmp" in name]
    # Shards 0 and 1 are whole; of shard 2, with the strange face, there is nothing.
    assert sorted(n for n in names if n.startswith("shards/")) == [
        f"shards/{k:05d}.{e}" for k in (0, 1) for e in ("json", "parquet", "tar")
    ]
    assert len(open_dataset(tmp_path / "set", partial=True)) == 32
    assert regenerate(tmp_path / "set", 31, source.generator).shape == (3, 16, 16)
    with pytest.raises(DataError, match="shard 2"):
        regenerate(tmp_path / "set", 32, source.generator)
    with pytest.raises(DataError, match="2 of 4 shards"):
        open_dataset(tmp_path / "set")
    check = verify_dataset(tmp_path / "set", progress=False)
    assert {"shard 2", "shard 3"} <= set(check.problems)
    assert "shard 0" not in check.problems


def test_strange_embeddings_stop_the_export(tmp_path: Path) -> None:
    """A variation without an embedding must not pass for the same person."""

    class Lost(Embed):
        def __call__(self, images: Tensor) -> Tensor:
            x = super().__call__(images)
            return torch.where(images.mean((1, 2, 3))[:, None] > 0.5, torch.nan, x)

    source = dataclasses.replace(make_source(spread=0.1), embedder=Lost())
    axes = make_axes((5.0, 6.0, 7.0))
    with pytest.raises(DataError, match=r"unit vectors[\s\S]*NaN"):
        export(source, make(same_person=True, fmr=0.5), tmp_path / "set", axes=axes, threshold=0.99999)


def test_strange_candidates_stop_the_export(tmp_path: Path) -> None:
    source = make_source(trouble=lambda w: w.mul_(1 if len(w) == 2 else math.nan))
    with pytest.raises(DataError, match=r"not in \[-1, 1\]"):
        export(source, make(), tmp_path / "set")


# --- dry run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["webdataset", "folders", "parquet", "rec"])
def test_estimate_of_bytes(tmp_path: Path, layout: str) -> None:
    plan = make(quota=50, shard_size=400, image_format="jpeg", layout=layout, fmr=None)
    estimate = export(make_source(), plan, tmp_path / "set", dry_run=True)
    assert isinstance(estimate, ExportEstimate)
    assert not (tmp_path / "set").exists()
    export(make_source(), plan, tmp_path / "set")
    true = sum(len(data) for name, data in contents(tmp_path / "set").items() if data is not None)
    assert true / 1.5 < estimate.bytes < 1.5 * true


def test_estimate_of_time_and_candidates(tmp_path: Path) -> None:
    def strict(images: Tensor) -> Mapping[str, Tensor]:
        return label(images - 0.6)  # takes few for dark or male

    source = make_source(delay=0.01)
    source = dataclasses.replace(source, labeller=ffs.wrap_labeller(strict, GROUPS.attributes))
    quota = {"female-light": 1000, "male-dark": 3000}
    plan = make(quota=quota, images_per_identity=10, shard_size=1000, fmr=None, verify=True)
    estimate = export(source, plan, tmp_path / "set", dry_run=True)
    per_image = 0.01 / 16
    assert 1 < 1 / estimate.images_per_second / per_image < 30  # on a busy machine, too
    assert 1 < 1 / estimate.candidates_per_second / per_image < 30
    drawn = 0.0
    for name, n in quota.items():
        index, ids = torch.arange(400), torch.full((400,), GROUPS.id(name))
        drawn += n / float((GROUPS.assign(strict(faces(source.latents(ids, index)))) == ids).double().mean())
    assert 0.75 < estimate.confirmed * drawn / 4000 < 1.33
    assert estimate.work == pytest.approx(4_000 / estimate.confirmed * 4 * W, abs=1)
    images = 40_000 / estimate.images_per_second
    candidates = 4_000 / estimate.confirmed / estimate.candidates_per_second
    assert estimate.seconds == pytest.approx(images + candidates)
    for part in ("40,000 images", "Nothing was written", "of one process", f"{estimate.confirmed:.0%}"):
        assert part in str(estimate)
    assert list(tmp_path.iterdir()) == []
    checked = export(source, dataclasses.replace(plan, same_person=True, fmr=0.1), tmp_path / "set", dry_run=True)
    assert estimate.images_per_second / checked.images_per_second > 1.2  # nearly every batch is made three times
    measured = export(source, dataclasses.replace(plan, fmr=1e-3), tmp_path / "set", dry_run=True, threshold=None)
    assert (estimate.impostors, checked.impostors, measured.impostors) == (0, 0, 2000)
    candidates = (4_000 / measured.confirmed + 2000) / measured.candidates_per_second
    assert measured.seconds == pytest.approx(40_000 / measured.images_per_second + candidates)
    assert "2,000 natural faces are looked at first" in str(measured)
    poor = dataclasses.replace(estimate, free=int(1.05 * (estimate.bytes + estimate.work)))
    assert "NOT ENOUGH" in str(poor)
    assert "NOT ENOUGH" not in str(dataclasses.replace(estimate, free=10 * estimate.bytes))


# --- making again, and checking ------------------------------------------------------------------------------------


def test_regenerate_takes_numbers_of_any_kind(sets: Callable[..., Path]) -> None:
    path, generator = sets(), make_source().generator
    data = open_dataset(path)
    expected = torch.stack([data[i]["image"] for i in (51, 3, 3, 22)])
    for numbers in ([51, 3, 3, 22], (51, 3, 3, 22), torch.tensor([51, 3, 3, 22]), np.array([51, 3, 3, 22])):
        assert torch.equal(regenerate(path, numbers, generator), expected)
    for number in (22, np.int64(22), torch.tensor(22)):
        assert torch.equal(regenerate(path, number, generator), expected[3])
    assert regenerate(path, [], generator).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("number", [-1, 52, [3, 52], [0, -5]])
def test_regenerate_refuses_numbers_outside(sets: Callable[..., Path], number: Any) -> None:
    with pytest.raises(DataError, match=r"no such image\n.*0 … 51"):
        regenerate(sets(), number, make_source().generator)


@pytest.mark.parametrize("number", [1.5, [1.5], torch.tensor([1.0]), "3", ["3"], None])
def test_regenerate_refuses_other_things(sets: Callable[..., Path], number: Any) -> None:
    with pytest.raises(DataError, match="images are counted"):
        regenerate(sets(), number, make_source().generator)


def test_regenerate_refuses_other_generators(sets: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not the generator that made the set[\s\S]*expected: [\s\S]*same file"):
        regenerate(sets(), 0, make_source(contrast=0.5).generator)
    with pytest.raises(DataError, match="not the generator that made the set"):
        regenerate(sets(), 0)  # the bundled one
    with pytest.raises(DataError, match="is no set"):
        regenerate(tmp_path, 0, make_source().generator)


def test_regenerate_takes_the_pipeline_too(sets: Callable[..., Path]) -> None:
    source = make_source()
    assert torch.equal(regenerate(sets(), 7, source), regenerate(sets(), 7, source.generator))


def test_equal_images_are_found(tmp_path: Path) -> None:
    export(make_source(), make(perturbation=0.0, images_per_identity=2), tmp_path / "set")
    check = verify_dataset(tmp_path / "set", progress=False)
    assert not check.ok
    assert check.duplicates == 13
    assert check.problems == {"duplicates": [f"{i:08d}_0000 and {i:08d}_0001 are the same image" for i in range(13)]}
    assert "… and 8 more" in str(check)
    assert "perturbation 0" in str(check)
    assert "repair=True" not in str(check)


def test_equal_images_are_found_in_other_shards(tmp_path: Path) -> None:
    def latents(ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        return make_source().latents(torch.where(index == 3, 0, ids), torch.where(index == 3, ids // 3, index))

    source = SimpleNamespace(generator=make_source().generator, groups=GROUPS, latents=latents)
    plan = make(quota=5, images_per_identity=1, shard_size=2, fmr=None)
    export(source, plan, tmp_path / "set", threshold=None)
    people: dict[tuple[float, ...], list[int]] = {}
    for i, w in enumerate(np.load(tmp_path / "set" / "latents.npy").tolist()):
        people.setdefault(tuple(w), []).append(i)
    expected = [f"{a:08d}_0000 and {b:08d}_0000" for same in people.values() for a, b in itertools.pairwise(same)]
    assert len(expected) == 4
    check = verify_dataset(tmp_path / "set", progress=False)
    assert sorted(text.removesuffix(" are the same image") for text in check.problems["duplicates"]) == sorted(expected)


def test_a_whole_set(sets: Callable[..., Path]) -> None:
    check = verify_dataset(sets(), progress=False)
    assert check.ok
    assert (check.repaired, check.duplicates, dict(check.problems)) == ((), 0, {})
    assert "52 images of 13 identities in 3 shards" in str(check)
    assert "no image occurs twice" in str(check)


@pytest.mark.parametrize("text", ["null", "[]", "{", '{"format": 3}'])
def test_damaged_plans_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    for function in (verify_dataset, lambda path: regenerate(path, 0), open_dataset):
        with pytest.raises(DataError):
            function(tmp_path)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "settings", "without", "text"),
    [
        ({}, {"threads": 0}, "", "threads ≥ 1"),
        ({}, {"batch_size": 0}, "", "batch_size ≥ 1"),
        ({}, {"threshold": 1.5}, "", r"cosine"),
        ({}, {}, "embedder", "compared by an embedder"),
        ({}, {"embedder": lambda images: images.mean((2, 3))}, "", "without dim"),
        ({"verify": True, "fmr": None}, {}, "labeller", "confirmed by a labeller"),
        ({"crop": "arcface"}, {}, "", "landmarks"),
        ({"method": "screen"}, {}, "", "screen"),
        ({"fmr": None}, {"reference": torch.eye(4)}, "", "reference"),
        ({}, {"reference": torch.eye(7)}, "", r"\[m, 4\]"),
        ({}, {"reference": 2 * torch.eye(4)}, "", "unit vectors"),
        ({}, {"reference": np.eye(4)}, "", "from_numpy"),
        ({"images_per_identity": 6}, {"axes": make_axes()}, "", "images_per_identity ≤ 5"),
        ({}, {"engine": "slurm"}, "", "local, torchrun, ray"),
        ({}, {"rank": 0, "world_size": 2}, "", 'engine="torchrun"'),
    ],
)
def test_refused(tmp_path: Path, plan: Mapping[str, Any], settings: Mapping[str, Any], without: str, text: str) -> None:
    source = dataclasses.replace(make_source(), **({without: None} if without else {}))
    with pytest.raises((DataError, ShapeError), match=text):
        export(source, make(**plan), tmp_path / "set", **settings)
    assert not (tmp_path / "set").exists()


def test_plans_are_plans(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plan_dataset"):
        export(make_source(), {"female": 3}, tmp_path / "set")  # type: ignore[arg-type]


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is no folder"):
        export(make_source(), make(), tmp_path / "file")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match=r"other things[\s\S]*thesis\.tex"):
        export(make_source(), make(), tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="cannot be a folder"):
        export(make_source(), make(), tmp_path / "file" / "set")


def test_a_lost_plan_is_taken_from_the_same_export_and_no_other(sets: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "set"
    shutil.copytree(sets(), path)
    (path / "plan.json").unlink()
    (path / "shards" / "00001.json").unlink()
    with pytest.raises(DataError, match=r"lost its plan\.json"):
        export(make_source(), make(seed=1), path)
    assert not (path / "plan.json").exists()
    with pytest.raises(DataError, match="run the same export again"):
        verify_dataset(path, progress=False)
    assert export(make_source(), make(), path).complete
    assert (path / "plan.json").read_bytes() == (sets() / "plan.json").read_bytes()


def test_what_nothing_was_made_for_may_be_deleted(tmp_path: Path) -> None:
    class Long(Embed):
        def __call__(self, images: Tensor) -> Tensor:
            return 2 * super().__call__(images)

    broken = dataclasses.replace(make_source(), embedder=Long())
    with pytest.raises(DataError, match="unit"):
        export(broken, make(images_per_identity=2), tmp_path / "set", threshold=None)
    with pytest.raises(DataError, match="nothing is made in this one yet"):
        export(make_source(), make(images_per_identity=3), tmp_path / "set", threshold=None)


def screen_of(seed: int) -> ffs.Screen:
    """Some classifier on latents."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"in": (1, W, 5), "mid": (1, 5, 5), "out": (1, 5, sum(map(len, GROUPS.attributes.values())))}
    weights = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    weights |= {f"{name}_bias": torch.zeros(1, 1, shape[2]) for name, shape in shapes.items()}
    weights |= {f"scale.{a}": torch.ones(()) for a in GROUPS.attributes}
    weights |= {f"bias.{a}": torch.zeros(len(v)) for a, v in GROUPS.attributes.items()}
    return ffs.Screen(torch.zeros(W), torch.ones(W), weights, GROUPS.attributes, {}, {}, (W,))


@pytest.mark.parametrize(("seed", "confidence", "named"), [(2, 0.6, "screen"), (1, 0.65, "min_confidence = 0.6")])
def test_another_screen_is_refused(tmp_path: Path, seed: int, confidence: float, named: str) -> None:
    def source(seed: int, confidence: float) -> Any:
        return SimpleNamespace(**(vars(make_source()) | {"screen": screen_of(seed), "min_confidence": confidence}))

    plan = make(method="screen", candidates=4, quota={"female": 2, "male": 2}, fmr=None)
    export(source(1, 0.6), plan, tmp_path / "set", threshold=None)
    assert export(source(1, 0.6), plan, tmp_path / "set", threshold=None).images == 0
    with pytest.raises(DataError, match=f"fingerprint.{named}"):
        export(source(seed, confidence), plan, tmp_path / "set", threshold=None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_latents_of_other_types_are_stored_as_they_are_used(tmp_path: Path, dtype: torch.dtype) -> None:
    """What is stored in float32 makes the image that is stored, also where the source's own had more digits."""
    own, seen = make_source(), set()

    class Typed:
        z_dim, w_dim, num_ws, c_dim, resolution = W, W, 1, 0, own.generator.resolution
        w_avg = torch.zeros(W, dtype=dtype)

        def map(self, z: Tensor, *args: Any, **settings: Any) -> Tensor:
            return own.generator.map(z.float(), *args, **settings).to(dtype)

        def synthesize(self, w: Tensor, noise: str = "const") -> Tensor:
            seen.add(w.dtype)
            return own.generator.synthesize(w.float())

    source = SimpleNamespace(**(vars(own) | {"generator": Typed()}), latents=lambda *a: own.latents(*a).to(dtype))
    export(source, make(), tmp_path / "set", axes=make_axes())
    assert seen == {dtype}
    index = index_of(tmp_path / "set")
    expected = pixels(faces(torch.tensor(index["latents"]).to(dtype).float()))
    stored = [np.asarray(Image.open(io.BytesIO(data))) for data in stored_bytes(tmp_path / "set", make())]
    assert np.abs(np.stack(stored).astype(int) - expected).max() <= 1
    assert verify_dataset(tmp_path / "set", source.generator, progress=False).ok


def test_differences_are_shown(sets: Callable[..., Path]) -> None:
    path = sets()
    with pytest.raises(DataError, match=r"another plan[\s\S]*seed = 0[\s\S]*seed = 1"):
        export(make_source(), make(seed=1), path)
    with pytest.raises(DataError, match=r"quota.female-light = 4[\s\S]*quota.female-light = 5"):
        export(make_source(), make(quota={"female": 9, "male": 5}), path)
    with pytest.raises(DataError, match=r"other models[\s\S]*fingerprint.generator"):
        export(make_source(contrast=0.5), make(), path)
    with pytest.raises(DataError, match=r"other models[\s\S]*fingerprint.embedder"):
        export(make_source(scale=0.5), make(), path)
    with pytest.raises(DataError, match=r"other models[\s\S]*latents"):
        export(make_source(spread=0.5), make(), path)


# --- the bundled world ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bundled_world(tmp_path: Path, world: Any) -> None:
    pipeline = ffs.Pipeline.fit(
        world.generator, world.labeller, attributes=["gender"], n=1500, progress=False, embedder=world.embedder
    )
    axes = ffs.demo_axes(world.directions)
    for method, plan in {
        "gaussian": plan_dataset(4, 4, 12, groups=pipeline.groups, image_format="png", same_person=True, verify=True),
        "screen": plan_dataset(
            2, 3, 12, groups=pipeline.groups, method="screen", candidates=32, fmr=None, layout="parquet"
        ),
    }.items():
        path = tmp_path / method
        report = export_set(pipeline, plan, path, axes=axes, judge=world.judge, threshold=0.8, progress=False)
        assert report.complete
        assert verify_dataset(path, progress=False).ok
        text = (path / "README.md").read_text()
        assert "ψ" in text
        assert "gender" in text
        assert "female" in text
        data = open_dataset(path)
        again = regenerate(path, range(len(data)))
        w = torch.stack([data[i]["latents"] for i in range(len(data))])
        with torch.no_grad():
            images = world.generator.synthesize(w.unsqueeze(1) if w.ndim == 2 else w)
        assert abs(pixels(images).astype(int) - pixels(again)).max() <= 1  # other batches
        if method == "gaussian":
            stored = torch.stack([data[i]["image"] for i in range(len(data))])
            assert torch.equal(stored, again)
            table = identities_of(path)
            expected = pipeline.latents(torch.tensor(table["group_id"]), torch.tensor(table["index"]), plan.seed)
            np.testing.assert_allclose(np.load(path / "latents.npy"), expected.numpy(), atol=1e-5)
            labels = pipeline.groups.assign(world.labeller(again[::4]))
            assert (labels == data.group_ids[::4]).all()
    table = identities_of(tmp_path / "screen")
    number = 2**50 + torch.tensor(table["index"]) * 2 + torch.tensor(table["group_id"])
    people = ffs.people.People(pipeline, pipeline.screen, None, 0.2, 32, 1.0, 0, 0)
    expected = people.faces(torch.tensor(table["group_id"]), number)
    np.testing.assert_allclose(np.load(tmp_path / "screen" / "latents.npy"), expected.numpy(), atol=1e-5)
