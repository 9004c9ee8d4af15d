from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

from fairface_synth import Confusion, DataError, GroupError, Groups, ShapeError
from fairface_synth.export.auditing import Sample, spread
from fairface_synth.export.croissant import croissant_record
from fairface_synth.export.datasheet import LICENCE_FIELDS, write_datasheet
from fairface_synth.export.figures import _edges, drawable
from fairface_synth.export.plan import DatasetPlan, plan_dataset

GROUPS = Groups({"gender": ["female", "male"], "tone": ["light", "dark"]})
QUOTA = {"female-light": 30, "female-dark": 20, "male-light": 25, "male-dark": 25}
THRESHOLD, FMR, WIDTH = 0.9, 1e-3, 24
MODELS = ("labeller", "judge", "detector", "embedder")


# --- a miniature set, made by hand --------------------------------------------------------------------------------


def _plan(**settings: Any) -> DatasetPlan:
    values: dict[str, Any] = {"images_per_identity": 3, "shard_size": 60, "seed": 5, "layout": "folders", "fmr": 1e-4}
    return plan_dataset(QUOTA, **{**values, "image_format": "png", "forward_batch": 16, **settings})


def _picture(plan: DatasetPlan, image: int) -> np.ndarray:
    """uint8 [16, 16, 3] whose first pixels say which image it is."""
    identity, place = divmod(image, plan.images_per_identity)
    pixels = np.full((16, 16, 3), 40 + identity, dtype=np.uint8)
    pixels[0, 0] = (plan.order[identity], identity, place)
    return pixels


def _images(plan: DatasetPlan) -> Callable[[Sequence[int]], Tensor]:
    def read(numbers: Sequence[int]) -> Tensor:
        assert 0 < len(numbers) <= plan.forward_batch
        stack = np.stack([_picture(plan, image) for image in numbers])
        return torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 127.5 - 1

    return read


def _read(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Group's place in the quota, identity, place."""
    codes = ((images[:, :, 0, 0] + 1) * 127.5).round().long()
    return codes[:, 0], codes[:, 1], codes[:, 2]


class _Labeller:
    """Right, but the gender of each fifth identity is swapped and it is unsure of the tone of each seventh."""

    def __init__(self, wrong: int = 5, unsure: int = 7) -> None:
        self.attributes = dict(GROUPS.attributes)
        self.wrong, self.unsure = wrong, unsure

    def label(self, turn: int, identity: int) -> int:
        gender, tone = GROUPS.value_indices(GROUPS.id(list(QUOTA)[turn]))
        gender = 1 - gender if self.wrong and identity % self.wrong == 0 else gender
        return -1 if self.unsure and identity % self.unsure == 0 else 2 * gender + tone

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        turn, identity, _ = _read(images)
        gender, tone = torch.full((len(images), 2), 0.1), torch.full((len(images), 2), 0.1)
        for row, (t, i) in enumerate(zip(turn.tolist(), identity.tolist(), strict=True)):
            g, s = GROUPS.value_indices(GROUPS.id(list(QUOTA)[t]))
            gender[row, 1 - g if self.wrong and i % self.wrong == 0 else g] = 0.9
            tone[row, s] = 0.9
            if self.unsure and i % self.unsure == 0:
                tone[row] = torch.tensor([0.45, 0.55])
        return {"gender": gender, "tone": tone}


def _vectors(identities: int, k: int) -> np.ndarray:
    """Unit vectors [N, k, WIDTH]; identity 40 is 41's double; variations stray by a known amount."""
    rng = np.random.default_rng(0)
    faces = rng.normal(size=(identities, 1, WIDTH))
    faces[41] = faces[40] + 0.01 * faces[41]
    stray = rng.normal(size=(identities, k, WIDTH)) * np.arange(k)[None, :, None] * 0.25
    vectors = (faces + stray).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


class _Embedder:
    dim = WIDTH

    def __init__(self, k: int = 3) -> None:
        self.vectors = torch.from_numpy(_vectors(sum(QUOTA.values()), k))

    def __call__(self, images: Tensor) -> Tensor:
        _, identity, place = _read(images)
        return self.vectors[identity, place]


def _detector(images: Tensor) -> Tensor:
    return _read(images)[1] % 10 != 3


def _models(**changes: Any) -> dict[str, Any]:
    return {"labeller": _Labeller(), "judge": _Labeller(4, 0), "detector": _detector, "embedder": _Embedder()} | changes


def _encoded(plan: DatasetPlan, image: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_picture(plan, image)).save(file, "PNG")
    return file.getvalue()


def _table(plan: DatasetPlan, numbers: range) -> dict[str, pa.Array]:
    k, names = plan.images_per_identity, list(plan.quota)
    identity = np.array(numbers) // k
    group = [names[t] for t in plan.order[identity]]
    latents = np.arange(len(numbers) * 4, dtype=np.float32) / 7
    return {
        "key": pa.array([plan.key(i) for i in numbers]),
        "image": pa.array(list(numbers), pa.int64()),
        "identity": pa.array(identity, pa.int64()),
        "place": pa.array(np.array(numbers) % k, pa.int32()),
        "group": pa.array(group).dictionary_encode(),
        "group_id": pa.array([GROUPS.id(g) for g in group], pa.int64()),
        "index": pa.array(identity + 1000, pa.int64()),
        "file": pa.array([_file(plan, i) for i in numbers]),
        "offset": pa.array([None if plan.layout == "folders" else 512 for _ in numbers], pa.int64()),
        "factor": pa.array(np.ones(len(numbers)), pa.float32()),
        "similarity": pa.array([None if i % k == 0 else 0.5 for i in numbers], pa.float32()),
        "aligned": pa.array([i % 2 == 0 for i in numbers]),
        "latents": pa.FixedSizeListArray.from_arrays(pa.array(latents), 4),
    }


def _file(plan: DatasetPlan, image: int) -> str:
    identity, place = divmod(image, plan.images_per_identity)
    if plan.layout == "folders":
        return f"images/{identity:08d}/{place:04d}.png"
    return f"shards/{plan.shard_of(image).name}{'.tar' if plan.layout == 'webdataset' else '.parquet'}"


def _about(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _write_shard(root: Path, plan: DatasetPlan, number: int) -> None:
    shard = plan.shard(number)
    numbers = range(shard.first_image, shard.first_image + shard.images)
    table, files, images = _table(plan, numbers), [f"shards/{shard.name}.parquet"], {}
    if plan.layout == "parquet":
        table["number"] = table["image"]
        pairs = [{"bytes": _encoded(plan, i), "path": f"{plan.key(i)}.png"} for i in numbers]
        table["image"] = pa.array(pairs, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    elif plan.layout == "folders":
        for image in numbers:
            path = root / _file(plan, image)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_encoded(plan, image))
        whole = b"".join(_encoded(plan, image) for image in numbers)
        images = {"images/*": {"bytes": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}}
    else:
        files.append(f"shards/{shard.name}.tar")
        with tarfile.open(root / files[-1], "w") as tar:
            for image in numbers:
                for name, data in ((f"{plan.key(image)}.png", _encoded(plan, image)), (f"{plan.key(image)}.cls", b"1")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    pq.write_table(pa.table(table), root / files[0])
    sidecar = {
        "format": "fairface_synth.shard",
        "version": 1,
        "plan": plan.digest,
        "shard": number,
        "first_image": shard.first_image,
        "images": shard.images,
        "identities": shard.identities,
        "groups": dict(Counter(table["group"].to_pylist())),
        "files": {name: _about(root / name) for name in files} | images,
    }
    (root / f"shards/{shard.name}.json").write_text(json.dumps(sidecar))


def _write_set(root: Path, plan: DatasetPlan) -> Path:
    (root / "shards").mkdir(parents=True)
    n, vectors = plan.identities, _vectors(plan.identities, plan.images_per_identity)[:, 0]
    names = [list(plan.quota)[t] for t in plan.order]
    nearest = [None] + [float((vectors[:i] @ vectors[i]).max()) for i in range(1, n)]
    columns = {
        "identity": pa.array(range(n), pa.int64()),
        "group": pa.array(names),
        "group_id": pa.array([GROUPS.id(g) for g in names], pa.int64()),
        "index": pa.array(range(n), pa.int64()),
        "nearest": pa.array(nearest if plan.fmr is not None else [None] * n, pa.float32()),
    }
    pq.write_table(pa.table(columns), root / "identities.parquet")
    np.save(root / "latents.npy", np.zeros((n, 4), np.float32))
    if plan.fmr is not None:
        np.save(root / "embeddings.npy", vectors)
    parts = {"groups": {a: list(v) for a, v in GROUPS.attributes.items()}, "resolution": 16}
    gate = {
        **{name: {g: q + extra for g, q in QUOTA.items()} for name, extra in _COUNTS.items()},
        "rounds": 2,
        "fmr": plan.fmr,
        "threshold": None if plan.fmr is None else THRESHOLD,
        "reference": 0,
    }
    for name, values in {"plan": plan.to_dict(), "parts": parts, "gate": gate}.items():
        (root / f"{name}.json").write_text(json.dumps(values))
    for number in range(plan.shards):
        _write_shard(root, plan, number)
    return root


_COUNTS = {"candidates": 1000, "confirmed": 200, "duplicates": 7, "leaks": 3, "accepted": 0}


def _sheet(root: Path, plan: DatasetPlan, **settings: Any) -> dict[str, Any]:
    arguments = {
        "groups": GROUPS,
        "fingerprint": {"generator": "ab12", "labeller": "cd34"},
        "describe": {"generator": "a toy, 16 px", "axes": ["pose"]},
        "images": _images(plan),
        **settings,
    }
    write_datasheet(root, plan, **arguments)
    return json.loads((root / "dataset.json").read_text())


@pytest.fixture(scope="module")
def plain() -> DatasetPlan:
    return _plan(fmr=FMR)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, plain: DatasetPlan) -> Path:
    return _write_set(tmp_path_factory.mktemp("bare") / "set", plain)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, bare: Path, plain: DatasetPlan) -> tuple[Path, dict[str, Any]]:
    """The whole set is audited, by all models."""
    root = Path(shutil.copytree(bare, tmp_path_factory.mktemp("full") / "set"))
    reference = torch.from_numpy(np.concatenate((_vectors(100, 3)[10:13, 0], np.eye(WIDTH, dtype=np.float32)[:5])))
    return root, _sheet(root, plain, **_models(), reference=reference, command="fairface-synth export x.yaml")


@pytest.fixture
def copy(tmp_path: Path, bare: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "set"))


def _wilson(count: float, total: int) -> tuple[float, float, float]:
    return count / total, *proportion_confint(count, total, method="wilson")


def _row(section: Mapping[str, float]) -> tuple[float, float, float]:
    return section["share"], section["low"], section["high"]


# --- groups -------------------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_labels_with_wilson_intervals(full, plain) -> None:
    shares, n = full[1]["shares"], plain.identities
    for who, model in (("labeller", _Labeller()), ("judge", _Labeller(4, 0))):
        labels = np.array([model.label(int(t), i) for i, t in enumerate(plain.order)])
        assert shares[who]["unsure"] == (labels < 0).sum()
        assert shares[who]["total"] == n
        for g, name in enumerate(GROUPS.names):
            row = shares[who]["groups"][name]
            assert row["count"] == (labels == g).sum()
            assert _row(row) == pytest.approx(_wilson(row["count"], n), rel=1e-3)
        aimed = np.array([GROUPS.id(list(QUOTA)[t]) for t in plain.order])
        matrix = shares[who]["aimed × labelled"]
        for name, counts in zip(matrix["rows"], matrix["counts"], strict=True):
            mine = labels[aimed == GROUPS.id(name)]
            assert counts == [*((mine == g).sum() for g in range(4)), (mine < 0).sum()]
        everyone = shares[who]["labelled as aimed"]["all"]
        assert everyone["count"] == (labels == aimed).sum()
        assert _row(everyone) == pytest.approx(_wilson(everyone["count"], n), rel=1e-3)
    assert shares["aimed"] == {name: {"identities": q, "images": 3 * q} for name, q in QUOTA.items()}


def test_a_selecting_labeller_is_told_to_prove_nothing(tmp_path: Path) -> None:
    plan = _plan(verify=True)
    root = _write_set(tmp_path / "set", plan)
    exact = {a: torch.eye(2) for a in GROUPS.attributes}
    record = _sheet(root, plan, **_models(), confusion=Confusion(GROUPS, exact, exact=True))
    assert "proves nothing" in record["shares"]["labeller"]["note"]
    assert record["shares"]["judge"]["note"] is None
    assert not record["shares"]["true"]["measured"]
    assert "whatever the faces are" in record["shares"]["true"]["why"]
    readme = (root / "README.md").read_text()
    assert "proves nothing" in readme
    assert "whatever the faces are" in readme


class _Fickle(_Labeller):
    """Right of every face; of variations only where identity and place say so, which `right` decides."""

    def __init__(self, right: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(wrong=0, unsure=0)
        self.right = right

    def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
        _, identity, place = _read(images)
        labels, keep = super().__call__(images), (place == 0) | self.right(identity, place)
        return {**labels, "gender": torch.where(keep[:, None], labels["gender"], labels["gender"].flip(1))}


def test_variations_are_labelled_too(tmp_path: Path) -> None:
    """One of each identity, by the seed; what the labeller confirmed says nothing of them."""
    k = 20
    plan = _plan(images_per_identity=k, shard_size=400, fmr=FMR, verify=True, forward_batch=32)
    root, asked = _write_set(tmp_path / "set", plan), list[int]()

    def images(numbers: Sequence[int]) -> Tensor:
        asked.extend(numbers)
        return _images(plan)(numbers)

    fickle = {"labeller": _Fickle(lambda _, place: place % 4 > 0), "judge": _Fickle(lambda i, _: i % 2 > 0)}
    record = _sheet(root, plan, images=images, **fickle)
    shares = record["shares"]
    identities, places = np.divmod([i for i in asked if i % k], k)
    assert identities.tolist() == list(range(100))
    right = {"labeller": places % 4 > 0, "judge": identities % 2 > 0}
    assert 0 < right["labeller"].sum() < 100
    for who, agrees in right.items():
        section = shares["variations"][who]
        assert shares[who]["labelled as aimed"]["all"]["share"] == 1
        assert section["labelled as aimed"]["all"]["count"] == agrees.sum()
        assert _row(section["labelled as aimed"]["all"]) == pytest.approx(_wilson(agrees.sum(), 100), rel=1e-3)
        for turn, name in enumerate(QUOTA):
            mine = agrees[plan.order == turn]
            assert (section["labelled as aimed"][name]["count"], section["labelled as aimed"][name]["total"]) == (
                mine.sum(),
                len(mine),
            )
    text, about = (root / "README.md").read_text(), json.loads((root / "croissant.json").read_text())["description"]
    for who in right:
        share, low, high = (100 * x for x in _row(shares["variations"][who]["labelled as aimed"]["all"]))
        said = f"of the faces (image 0) and {share:.1f} % [{low:.1f}, {high:.1f}] of the other images"
        assert text.split("## ")[0].count(said) == about.count(said) == 1
    assert "The labeller, which selected the faces, sees" in text
    assert "the judge sees" in text
    table = _rows(text.split("## Groups")[1])
    share, low, high = (100 * x for x in _row(shares["variations"]["judge"]["groups"]["male-dark"]))
    assert table["male-dark"][-1] == f"{share:.1f} % [{low:.1f}, {high:.1f}]"


def test_every_other_image_may_be_drawn() -> None:
    plan = plan_dataset(QUOTA, images_per_identity=5, seed=3)
    sample = Sample(plan_dataset(dict.fromkeys(QUOTA, 1000), images_per_identity=5), GROUPS, np.arange(4000))
    identities, places = np.divmod(sample.drawn_images(), 5)
    assert (identities == np.arange(4000)).all()
    assert scipy.stats.chisquare(np.bincount(places)[1:]).pvalue > 1e-3
    assert places.min() == 1
    few = Sample(plan, GROUPS, np.arange(100))
    assert (few.drawn_images() == few.drawn_images()).all()
    assert (few.drawn_images() % 5 != places[:100]).any()  # another seed


def test_no_image_is_read_twice(tmp_path: Path) -> None:
    plan = _plan(images_per_identity=20, shard_size=400, fmr=FMR)
    root, asked = _write_set(tmp_path / "set", plan), list[int]()

    def images(numbers: Sequence[int]) -> Tensor:
        asked.extend(numbers)
        return _images(plan)(numbers)

    record = _sheet(root, plan, images=images, **_models(embedder=_Embedder(20)))
    assert len(asked) == len(set(asked))
    alone = _sheet(root, plan, embedder=_Embedder(20))
    assert record["same person"] == alone["same person"]
    assert record["shares"] | {"true": None} == _sheet(root, plan, **_models(embedder=None))["shares"] | {"true": None}


def test_without_other_images_nothing_is_said_of_them(tmp_path: Path) -> None:
    plan = _plan(images_per_identity=1, verify=True)
    root = _write_set(tmp_path / "set", plan)
    record = _sheet(root, plan, **_models(embedder=_Embedder(1)))
    assert not record["shares"]["variations"]["judge"]["measured"]
    head = (root / "README.md").read_text().split("## How it was made")[0]
    assert "of the faces; the judge sees" in head
    assert "variation" not in (root / "README.md").read_text().split("## Groups")[1].split("## Identities")[0]
    assert not any("other images" in limit for limit in record["limits"])


def test_known_errors_are_undone(copy: Path, plain: DatasetPlan) -> None:
    """A labeller that swaps a fifth of every group's genders: the corrected shares are the true ones."""
    labeller = _Labeller(wrong=0, unsure=0)
    turns, seen = plain.order, dict.fromkeys(range(4), 0)
    swapped = set[int]()
    for identity, turn in enumerate(turns.tolist()):
        seen[turn] += 1
        if seen[turn] % 5 == 0:
            swapped.add(identity)

    class Swapping(_Labeller):
        def __call__(self, images: Tensor) -> Mapping[str, Tensor]:
            right = labeller(images)
            swap = torch.tensor([int(i) in swapped for i in _read(images)[1]])
            return {**right, "gender": torch.where(swap[:, None], right["gender"].flip(1), right["gender"])}

    rates = {"gender": torch.tensor([[0.8, 0.2], [0.2, 0.8]]), "tone": torch.eye(2)}
    record = _sheet(copy, plain, labeller=Swapping(), confusion=Confusion(GROUPS, rates, exact=True))
    true = record["shares"]["true"]
    for name, quota in QUOTA.items():
        labelled = record["shares"]["labeller"]["groups"][name]["share"]
        assert true["groups"][name]["share"] == pytest.approx(quota / 100, abs=2e-3)
        assert true["groups"][name]["low"] <= quota / 100 <= true["groups"][name]["high"]
        assert labelled == pytest.approx(quota / 100, abs=0.05)
    assert record["shares"]["labeller"]["groups"]["female-light"]["count"] == 29  # 24 right, 5 of the men
    assert true["confusion"]["counts"]["gender"] == pytest.approx(np.array([[0.8, 0.2], [0.2, 0.8]]))
    readme = (copy / "README.md").read_text()
    assert "| female | 0.8" in readme
    assert "corrected [95 %]" in readme


def test_a_confusion_that_says_nothing_is_refused_in_words(copy: Path, plain: DatasetPlan) -> None:
    rates = {"gender": torch.full((2, 2), 0.5), "tone": torch.eye(2)}
    true = _sheet(copy, plain, labeller=_Labeller(), confusion=Confusion(GROUPS, rates, exact=True))["shares"]["true"]
    assert not true["measured"]
    assert true["why"].startswith("refused: the labels say too little")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 80))
def test_a_sample_has_every_group_in_proportion(groups: list[int], wanted: int) -> None:
    group = np.array(groups)
    rows = spread(group, wanted)
    m = min(wanted, len(group))
    assert len(rows) == m
    assert (np.diff(rows) > 0).all()
    for g in set(groups):
        assert abs((group[rows] == g).sum() - m * (group == g).mean()) < 1


def test_a_balanced_set_is_sampled_in_balance() -> None:
    """Groups take turns: every other identity would be of one group."""
    order = plan_dataset({"a": 1000, "b": 1000}).order
    assert order[:4].tolist() == [0, 1, 0, 1]
    assert np.bincount(order[spread(order, 1000)]).tolist() == [500, 500]


def test_limits_are_those_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Groups({"brightness": ["dim", "bright"], "colour_warmth": ["cold", "warm"]})
    monkeypatch.setitem(globals(), "GROUPS", names)
    monkeypatch.setitem(globals(), "QUOTA", dict(zip(names.names, QUOTA.values(), strict=True)))
    plan = _plan(fmr=None)
    root = _write_set(tmp_path / "set", plan)
    limits = _sheet(root, plan)["limits"]
    assert "apparent brightness, colour warmth." in limits[0]
    assert not any(word in limit for limit in limits for word in ("gender", "age.", "skin tone"))
    assert not any("selected by a labeller" in limit or "false match rate" in limit for limit in limits)
    assert json.loads((root / "croissant.json").read_text())["rai:dataLimitations"] == limits


# --- identities ---------------------------------------------------------------------------------------------------


def test_identity_statistics(full, plain) -> None:
    identity, vectors = full[1]["identity"], _vectors(100, 3)[:, 0].astype(np.float64)
    cosines = vectors @ vectors.T
    pairs = np.triu(cosines >= THRESHOLD, 1).sum()
    assert pairs == 1
    assert identity["matching pairs"] == {
        "measured": True,
        "embeddings": "the generator's faces, embeddings.npy",
        "matched": pairs,
        "pairs": 100 * 99 // 2,
    }
    nearest = np.array([cosines[i, :i].max() for i in range(1, 100)])
    assert identity["nearest earlier identity"]["n"] == 99
    assert identity["nearest earlier identity"]["median"] == pytest.approx(np.median(nearest), rel=1e-3)
    assert identity["nearest earlier identity"]["highest"] == pytest.approx(nearest.max(), rel=1e-3)
    assert identity["stored images against stored embeddings"]["lowest"] == pytest.approx(1, abs=1e-5)
    assert identity["gate"]["duplicates"] == {name: q + 7 for name, q in QUOTA.items()}


def test_the_same_person_with_identities_as_the_sample(full, plain) -> None:
    section, vectors = full[1]["same person"], _vectors(100, 3).astype(np.float64)
    match = np.einsum("npe,ne->np", vectors[:, 1:], vectors[:, 0]) >= THRESHOLD
    assert 0 < match.mean() < 1
    assert section["places"] == [1, 2]
    assert section["identities"] == 100
    assert _row(section["all"]) == pytest.approx(_wilson(match.mean(1).sum(), 100), rel=1e-3)
    for turn, (name, quota) in enumerate(QUOTA.items()):
        assert section["groups"][name]["identities"] == quota
        expected = _wilson(match[plain.order == turn].mean(1).sum(), quota)
        assert _row(section["groups"][name]) == pytest.approx(expected, rel=1e-3)


def test_leakage(full, plain) -> None:
    section, vectors = full[1]["leakage"], _vectors(100, 3)[:, 0].astype(np.float64)
    reference = np.concatenate((vectors[10:13], np.eye(WIDTH)[:5]))
    near = (vectors @ reference.T).max(1) >= THRESHOLD
    assert near.sum() >= 3
    assert section["all"]["count"] == near.sum()
    assert section["references"] == 8
    assert _row(section["all"]) == pytest.approx(_wilson(near.sum(), 100), rel=1e-3)
    assert section["by chance"] == pytest.approx(1 - (1 - FMR) ** 8, rel=1e-3)
    assert sum(row["count"] for row in section["groups"].values()) == near.sum()


def test_faces_found(full) -> None:
    section = full[1]["faces found"]
    assert (section["count"], section["total"]) == (90, 100)
    assert _row(section) == pytest.approx(_wilson(90, 100), rel=1e-3)


def test_many_images_are_sampled_in_small_batches(tmp_path: Path) -> None:
    plan = _plan(images_per_identity=20, shard_size=400, fmr=FMR, forward_batch=7)
    root, asked = _write_set(tmp_path / "set", plan), list[int]()

    def images(numbers: Sequence[int]) -> Tensor:
        asked.extend(numbers)
        return _images(plan)(numbers)

    record = _sheet(root, plan, images=images, embedder=_Embedder(20), audit=40)
    assert record["audit"]["identities"] == 40
    assert len(asked) == 40 + 40 * 8
    assert len(set(asked)) == len(asked)
    assert sorted({i % 20 for i in asked}) == [0, *record["same person"]["places"]]
    assert record["same person"]["places"][0] == 1
    assert record["same person"]["places"][-1] == 19
    taken = np.bincount(plan.order[[i // 20 for i in asked if i % 20 == 0]])
    assert taken.tolist() == [12, 8, 10, 10]


# --- what is missing ----------------------------------------------------------------------------------------------


def test_without_models_it_says_so(tmp_path: Path) -> None:
    plan = _plan(fmr=None, images_per_identity=1)
    root = _write_set(tmp_path / "set", plan)
    record = _sheet(root, plan)
    for section in (record["shares"]["labeller"], record["shares"]["judge"], record["faces found"]):
        assert section["measured"] is False
    readme = (root / "README.md").read_text()
    for text in ("no labeller was given", "no judge was given", "no detector was given", "no embedder was given"):
        assert text in readme
    assert "there is one image an identity" in readme
    assert "identities new to each other" in readme
    assert sorted(p.name for p in (root / "figures").iterdir()) == ["faces.png"]
    assert "embeddings.npy" not in readme.split("## Files")[1].split("## Licence")[0]


def test_without_a_threshold_there_are_cosines_but_no_shares(tmp_path: Path) -> None:
    plan = _plan(fmr=None)
    root = _write_set(tmp_path / "set", plan)
    record = _sheet(root, plan, embedder=_Embedder(), reference=torch.eye(WIDTH))
    assert record["same person"]["cosine"]["n"] == 200
    assert "all" not in record["same person"]
    assert "all" not in record["leakage"]
    assert "no threshold" in (root / "README.md").read_text()


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50), st.one_of(st.none(), st.floats(-1, 1, width=32)))
def test_no_bin_has_values_from_both_sides_of_the_threshold(values: list[float], threshold: float | None) -> None:
    edges = _edges(np.array(values), threshold)
    assert edges[0] <= min(values) <= max(values) <= edges[-1]
    assert 50 <= len(edges) - 1 <= 51
    assert np.diff(edges) == pytest.approx(np.full(len(edges) - 1, edges[1] - edges[0]))
    if threshold is not None:
        assert threshold in edges


@pytest.mark.filterwarnings("error")
def test_names_that_the_font_lacks_are_numbered_in_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = Groups({"gender": ["女性", "male"], "tone": ["#1", "तेज़"]})
    monkeypatch.setitem(globals(), "GROUPS", names)
    monkeypatch.setitem(globals(), "QUOTA", dict(zip(names.names, QUOTA.values(), strict=True)))
    assert drawable(names).attributes == {"gender": ("#2", "male"), "tone": ("#1", "#3")}
    plan = _plan(fmr=FMR)
    root = _write_set(tmp_path / "set", plan)
    _sheet(root, plan, **_models())
    assert "#2 is 女性, #3 is तेज़." in (root / "README.md").read_text(encoding="utf-8")
    assert set(names.names) <= set(json.loads((root / "croissant.json").read_text(encoding="utf-8"))["keywords"])


def test_figures_of_an_earlier_datasheet_go(copy: Path, plain: DatasetPlan) -> None:
    (copy / "figures").mkdir()
    (copy / "figures" / "mine.png").write_bytes(b"x")
    _sheet(copy, plain, **_models())
    assert (copy / "figures" / "shares.png").exists()
    _sheet(copy, plain)
    assert {p.name for p in (copy / "figures").iterdir()} == {"faces.png", "nearest.png", "mine.png"}


# --- files --------------------------------------------------------------------------------------------------------


def test_figures_show_something(full) -> None:
    folder = full[0] / "figures"
    assert {p.name for p in folder.iterdir()} == {"faces.png", "shares.png", "nearest.png", "same_person.png"}
    for path in folder.iterdir():
        picture = Image.open(path)
        assert min(picture.size) > 100
        assert np.asarray(picture.convert("L")).std() > 5
        assert "Software" not in picture.info


def test_equal_inputs_give_equal_bytes(full, bare: Path, plain: DatasetPlan, tmp_path: Path) -> None:
    root = Path(shutil.copytree(bare, tmp_path / "elsewhere"))
    reference = torch.from_numpy(np.concatenate((_vectors(100, 3)[10:13, 0], np.eye(WIDTH, dtype=np.float32)[:5])))
    _sheet(root, plain, **_models(), reference=reference, command="fairface-synth export x.yaml")
    written = {p.relative_to(full[0]) for p in full[0].rglob("*") if p.is_file()}
    assert written == {p.relative_to(root) for p in root.rglob("*") if p.is_file()}
    for name in written:
        assert (full[0] / name).read_bytes() == (root / name).read_bytes(), name


def test_the_readme_has_the_numbers_of_dataset_json(full) -> None:
    root, record = full
    text = (root / "README.md").read_text()
    table = _rows(text.split("## Groups")[1])  # group: identities, images, share, labeller, judge
    for name in QUOTA:
        aimed, labelled = record["shares"]["aimed"][name], record["shares"]["labeller"]["groups"][name]
        assert table[name][:2] == [str(aimed["identities"]), str(aimed["images"])]
        share, low, high = (100 * x for x in _row(labelled))
        assert table[name][3] == f"{share:.1f} % [{low:.1f}, {high:.1f}]"
    assert table["unsure"][3] == f"{record['shares']['labeller']['unsure']} of 100"
    assert _rows(text.split("## Identities")[1])["female-dark"] == ["1,020", "220", "27", "23", "20", "150"]
    assert f"{record['faces found']['count']} of 100" in text
    assert f"{record['identity']['matching pairs']['matched']} of 4,950 (the generator's faces" in text
    for version in record["versions"].values():
        assert version in text
    for value in (*record["fingerprint"].values(), record["plan digest"], record["command"], "a toy, 16 px"):
        assert value in text
    for limit in record["limits"]:
        assert limit in text
    for figure in (root / "figures").iterdir():
        assert f"figures/{figure.name}" in text


def test_the_gate_table_adds_up(full) -> None:
    rows = _rows((full[0] / "README.md").read_text().split("## Identities")[1])
    assert set(rows) >= set(QUOTA)
    for name in QUOTA:
        _, confirmed, *parts = (int(cell.replace(",", "")) for cell in rows[name])
        assert confirmed == sum(parts)


def test_settings_are_printed_as_values(copy: Path, plain: DatasetPlan) -> None:
    prints = {"generator": "ab12", "min_confidence": "cd34", "threshold": "ef56", "generator dtype": "torch.float16"}
    _sheet(copy, plain)
    assert "This cosine was given" not in (copy / "README.md").read_text()
    _sheet(copy, plain, fingerprint=prints)
    text = (copy / "README.md").read_text()
    made = text.split("## How it was made")[1].split("## Groups")[0]
    assert "`ab12`" in made
    assert re.search(rf"threshold, given +\| {THRESHOLD} ", made)
    assert re.search(r"generator dtype +\| torch.float16 ", made)
    assert not any(value in text for value in ("cd34", "ef56"))
    assert f"a cosine of {THRESHOLD} (false match rate {FMR:g}). This cosine was given" in text


def _rows(text: str) -> dict[str, list[str]]:
    """The first markdown table of a text, by its first column."""
    table = text[text.index("| group") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {first: rest for first, *rest in cells}


def test_groups_may_be_called_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar ends a cell of Markdown, dollars begin matplotlib's formulas, of which this one is wrong."""
    names = Groups({"gender": ["fe|male", "$\\nonsense$"], "tone": ["latino/hispanic", "_ä.ö"]})
    monkeypatch.setitem(globals(), "GROUPS", names)
    monkeypatch.setitem(globals(), "QUOTA", dict(zip(names.names, QUOTA.values(), strict=True)))
    plan = _plan(fmr=FMR)
    root = _write_set(tmp_path / "set", plan)
    record = _sheet(root, plan, **_models())
    assert set(record["shares"]["labeller"]["groups"]) == set(names.names)
    assert set(names.names) <= set(json.loads((root / "croissant.json").read_text())["keywords"])
    text = (root / "README.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert "| fe\\|male-_ä.ö " in text


def test_files_and_bytes_are_those_on_disk(full, plain) -> None:
    root, record = full
    assert record["files"]["latents.npy"] == _about(root / "latents.npy")
    assert set(record["files"]) >= {"plan.json", "parts.json", "gate.json", "identities.parquet", "embeddings.npy"}
    files = [*(root / "shards").glob("*.parquet"), *(root / "images").rglob("*.png")]
    assert record["counts"]["bytes"] == sum(p.stat().st_size for p in files)
    assert DatasetPlan.from_dict(record["plan"]) == plain


def test_licence_fields(copy: Path, plain: DatasetPlan) -> None:
    record = _sheet(copy, plain, licence={"name": "CC-BY-4.0", "url": "https://example.org/by", "creator": "lab | 7"})
    assert record["licence"]["name"] == "CC-BY-4.0"
    missing = set(LICENCE_FIELDS) - {"name", "url", "creator"}
    assert {record["licence"][field] for field in missing} == {"not stated"}
    readme = (copy / "README.md").read_text()
    assert readme.count("not stated") == len(missing) + 1  # and the command
    assert "lab \\| 7" in readme
    assert json.loads((copy / "croissant.json").read_text())["license"] == "https://example.org/by"
    assert not (copy / "LICENSE").exists()
    assert "LICENSE" not in readme


def test_a_whole_licence_is_a_file(copy: Path, plain: DatasetPlan) -> None:
    text = "Terms of this set\r\n\n1. | Ask – first.\n"
    record = _sheet(copy, plain, licence={"text": text})
    assert (copy / "LICENSE").read_bytes() == text.encode()
    assert record["licence"]["text"] == text
    assert record["files"]["LICENSE"] == _about(copy / "LICENSE")
    assert "[LICENSE](LICENSE)" in (copy / "README.md").read_text().split("## Licence")[1]
    croissant = json.loads((copy / "croissant.json").read_text())
    assert croissant["license"] == "LICENSE"
    file = next(o for o in croissant["distribution"] if o["@id"] == "LICENSE")
    assert file["sha256"] == _about(copy / "LICENSE")["sha256"]
    assert not _validated(copy).metadata.issues.errors


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"licence": {"name": ""}}, DataError, "licence fields are text"),
        ({"licence": {"text": 4}}, DataError, "licence fields are text"),
        ({"licence": "CC-BY-4.0"}, DataError, r"licence is a dict\n.*generator licence"),
        ({"licence": {"generator": "FFHQ"}}, DataError, r"nobody knows\n(.*\n)*.*did you mean 'generator licence'"),
        ({"licence": {"autor": "I"}}, DataError, r"expected: name, url, (.*\n)*  got:      autor\n"),
        ({"licence": {"hmoe page": "https://x"}}, DataError, "did you mean 'home page'"),
        ({"licence": {"url": "CC-BY"}}, DataError, "is no address"),
        ({"licence": {"published": "last week"}}, DataError, "no date"),
        ({"audit": 0}, DataError, "audit"),
        ({"min_confidence": 60}, DataError, "min_confidence"),
        ({"describe": {"model": torch.zeros(2)}}, DataError, "json"),
        ({"reference": torch.ones(3, WIDTH)}, DataError, "unit vectors"),
        ({"images": lambda numbers: torch.zeros(len(numbers), 1, 8, 8)}, ShapeError, "not the images"),
        ({"images": lambda numbers: torch.full((len(numbers), 3, 8, 8), 128.0)}, DataError, "not in"),
    ],
)
def test_bad_arguments(copy: Path, plain: DatasetPlan, settings: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        _sheet(copy, plain, **settings)
    assert not (copy / "dataset.json").exists()


def test_models_of_other_groups_are_refused(copy: Path, plain: DatasetPlan) -> None:
    judge = _Labeller()
    judge.attributes = {"gender": ("male", "female"), "tone": ("light", "dark")}  # the same names in another order
    with pytest.raises(GroupError, match="judge does not know these groups"):
        _sheet(copy, plain, judge=judge)
    other = Groups({"gender": ["female", "male"]})
    with pytest.raises(GroupError, match="confusion is over other groups"):
        _sheet(copy, plain, confusion=Confusion(other, {"gender": torch.eye(2)}, exact=True))


def test_another_embedder_is_noticed(copy: Path, plain: DatasetPlan) -> None:
    class Short(_Embedder):
        def __call__(self, images: Tensor) -> Tensor:
            return torch.nn.functional.normalize(super().__call__(images)[:, :5], dim=1)

    with pytest.raises(DataError, match="not the embedder of the set"):
        _sheet(copy, plain, embedder=Short())


@pytest.mark.parametrize("name", ["shards/00001.json", "gate.json", "latents.npy", "identities.parquet", "parts.json"])
def test_an_unfinished_set_is_refused(copy: Path, plain: DatasetPlan, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(DataError, match=r"not finished|cannot read"):
        _sheet(copy, plain)


def test_a_set_of_another_plan_is_refused(copy: Path, plain: DatasetPlan) -> None:
    with pytest.raises(DataError, match="another plan"):
        _sheet(copy, _plan(fmr=FMR, seed=6))
    sidecar = json.loads((copy / "shards/00000.json").read_text())
    (copy / "shards/00000.json").write_text(json.dumps({**sidecar, "plan": "0" * 16}))
    with pytest.raises(DataError, match="another plan"):
        _sheet(copy, plain)
    (copy / "shards/00000.json").write_text(json.dumps(sidecar))
    np.save(copy / "embeddings.npy", np.zeros((3, WIDTH), np.float32))
    with pytest.raises(DataError, match="of another set"):
        _sheet(copy, plain)


# --- Croissant ----------------------------------------------------------------------------------------------------


def _validated(root: Path) -> Any:
    mlcroissant = pytest.importorskip("mlcroissant")
    dataset = mlcroissant.Dataset(jsonld=root / "croissant.json")
    assert not dataset.metadata.issues.errors
    return dataset


def _same(value: Any, ours: Any) -> bool:
    if isinstance(value, bytes):
        return value.decode() == ours
    return value == pytest.approx(ours, rel=1e-6) if isinstance(ours, list | float) else value == ours


@pytest.mark.parametrize("layout", ["folders", "parquet", "webdataset"])
def test_mlcroissant_reads_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    extract = pytest.importorskip("mlcroissant._src.operation_graph.operations.extract")
    from etils import epath

    monkeypatch.setattr(extract, "EXTRACT_PATH", epath.Path(tmp_path / "cache"))  # kept by name, of any set
    plan = _plan(layout=layout, images_per_identity=1, shard_size=40)
    root = _write_set(tmp_path / "set", plan)
    _sheet(root, plan)
    dataset = _validated(root)
    ours = [row for k in range(plan.shards) for row in pq.read_table(root / f"shards/{k:05d}.parquet").to_pylist()]
    rows = list(dataset.records("images"))
    assert len(rows) == plan.images
    for row, wanted in zip(rows, ours, strict=True):
        assert {name.removeprefix("images/") for name in row} == set(wanted)
        for name, value in wanted.items():
            if not (layout == "parquet" and name == "image"):
                assert _same(row[f"images/{name}"], value), name
    identities = list(dataset.records("identities"))
    assert [row["identities/identity"] for row in identities] == list(range(plan.identities))
    assert [row["identities/group"].decode() for row in identities] == [w["group"] for w in ours]
    if layout == "parquet":
        pictures = {w["key"]: row["images/image"] for row, w in zip(rows, ours, strict=True)}
    else:
        column = "file" if layout == "folders" else "key"
        key_of = {w[column]: w["key"] for w in ours}
        found = list(dataset.records("files"))
        pictures = {key_of[row[f"files/{column}"].decode()]: row["files/image"] for row in found}
    assert len(pictures) == plan.images
    for w in ours[::17]:
        expected = _picture(plan, w.get("number", w["image"]))
        assert (np.asarray(pictures[w["key"]].convert("RGB")) == expected).all()


def test_mlcroissant_finds_a_damaged_file(copy: Path, plain: DatasetPlan) -> None:
    _sheet(copy, plain)
    dataset = _validated(copy)
    path = copy / "identities.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Exception, match=r"Download\(identities"):
        list(dataset.records("identities"))


def test_no_warnings_where_everything_is_stated(copy: Path, plain: DatasetPlan) -> None:
    licence = {
        "name": "CC-BY-4.0",
        "url": "https://creativecommons.org/licenses/by/4.0/",
        "citation": "@misc{x}",
        "published": "2025-06-01",
        "creator": "A laboratory",
        "home page": "https://example.org/set",
    }
    _sheet(copy, plain, licence=licence)
    dataset = _validated(copy)
    assert not dataset.metadata.issues.warnings
    assert dataset.metadata.url == "https://example.org/set"
    assert dataset.metadata.date_published.isoformat().startswith("2025-06-01")
    _sheet(copy, plain)
    assert len(_validated(copy).metadata.issues.warnings) == 3  # citation, date, licence: nobody stated them


def test_every_shard_file_is_listed_with_its_hash(copy: Path, plain: DatasetPlan) -> None:
    record = croissant_record(copy, plain, description="toy")
    listed = {o["contentUrl"]: o["sha256"] for o in record["distribution"] if o["@type"] == "cr:FileObject"}
    on_disk = {f"shards/{p.name}": _about(p)["sha256"] for p in (copy / "shards").glob("*.parquet")}
    assert len(on_disk) == plain.shards
    assert listed == on_disk
