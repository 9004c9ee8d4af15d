"""Annotating a set: against the classifier itself, resumed runs, damage, sets of files."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from fairface_synth.annotating import annotate
from fairface_synth.annotation import Annotations
from fairface_synth.annotation_folders import AnnotationFolder
from fairface_synth.annotation_sources import as_annotations
from fairface_synth.attribute_classifier import MAC, train_mac
from fairface_synth.attribute_schema import AttributeSchema
from fairface_synth.errors import DataError, FairFaceError, ShapeError

SCHEMA = AttributeSchema(("Male", "Smiling", "Wearing_Hat"), noisy={"hat": "half of them are hair"}, source="a test")


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
