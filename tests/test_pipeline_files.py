"""Pipelines on disk, and the fingerprints that say which models they were fitted with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fairface_synth as ffs
from fairface_synth import DataError
from fairface_synth.fingerprints import fingerprint, fingerprint_generator, fingerprint_model
from fairface_synth.subspaces import Subspace


class Flat(nn.Module):
    """Images of one colour each, which three numbers of z choose."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([gain]))

    def forward(self, w: Tensor) -> Tensor:
        return (self.gain * w[:, 0, :3]).tanh()[:, :, None, None].expand(-1, -1, 16, 16)


def flat_generator(gain: float = 1.0, w_avg: Tensor | None = None):
    return ffs.wrap_generator(synthesize=Flat(gain), z_dim=8, w_avg=w_avg)


def label(images: Tensor) -> dict[str, Tensor]:
    red, green = images[:, :2].mean((2, 3)).unbind(1)
    return {"tone": torch.stack((6 * red, -6 * red), 1).softmax(1), "tint": torch.stack((green, -green), 1).softmax(1)}


ATTRIBUTES = {"tone": ("light", "dark"), "tint": ("warm", "cold")}


@pytest.fixture(scope="module")
def pipeline() -> ffs.Pipeline:
    generator, labeller = flat_generator(), ffs.wrap_labeller(label, ATTRIBUTES)
    return ffs.Pipeline.fit(generator, labeller, attributes="tone", n=600, min_confidence=0.7, progress=False)


@pytest.fixture
def saved(pipeline, tmp_path) -> Path:
    return pipeline.save(tmp_path / "pipeline")


# --- save and load ----------------------------------------------------------------------------------------------------


def test_a_loaded_pipeline_draws_the_same_latents_bit_for_bit(pipeline, saved) -> None:
    again = ffs.Pipeline.load(saved, flat_generator(), ffs.wrap_labeller(label, ATTRIBUTES))
    ids, index = torch.arange(40) % 2, torch.arange(40)
    assert torch.equal(again.latents(ids, index, 3), pipeline.latents(ids, index, 3))
    assert again.groups == pipeline.groups
    assert again.min_confidence == 0.7
    assert str(again.report()) == str(pipeline.report())
    first, second = (p.sample("dark", n=8, seed=5, verify=True, progress=False) for p in (pipeline, again))
    assert torch.equal(first.latents, second.latents)
    assert torch.equal(first.images, second.images)


def test_a_screen_is_kept_if_there_was_one(pipeline, tmp_path) -> None:
    fresh = ffs.Pipeline.fit(pipeline.generator, pipeline.labeller, attributes="tone", bank=pipeline.bank)
    assert not (fresh.save(tmp_path / "without") / "screen.safetensors").exists()
    w = fresh.bank.latents[:20]
    wanted = fresh.screen.probabilities(w)["tone"]
    again = ffs.Pipeline.load(fresh.save(tmp_path / "with"), fresh.generator, fresh.labeller)
    assert again._screen is not None, "loaded, not fitted again"
    assert torch.equal(again.screen.probabilities(w)["tone"], wanted)


def test_other_models_are_refused_and_named(saved) -> None:
    labeller = ffs.wrap_labeller(label, ATTRIBUTES)
    with pytest.raises(DataError, match=r"another generator\n") as error:
        ffs.Pipeline.load(saved, flat_generator(0.5), labeller)
    stored = json.loads((saved / "pipeline.json").read_text())["fingerprints"]["generator"]
    assert stored in str(error.value)
    assert fingerprint_generator(flat_generator(0.5)) in str(error.value)
    other = ffs.wrap_labeller(lambda x: {a: p.flip(1) for a, p in label(x).items()}, ATTRIBUTES)
    with pytest.raises(DataError, match="another labeller"):
        ffs.Pipeline.load(saved, flat_generator(), other)
    with pytest.raises(DataError, match="another generator and another labeller"):
        ffs.Pipeline.load(saved, flat_generator(0.5), other)


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


def _truncate(folder: Path, name: str) -> None:
    os.truncate(folder / name, 100)


def _flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)


@pytest.mark.parametrize("harm", [_remove, _truncate, _flip])
@pytest.mark.parametrize("name", ["pipeline.json", "bank.safetensors", "subspace.safetensors", "gaussians.safetensors"])
def test_a_folder_that_is_not_whole_is_refused(pipeline, saved, harm, name: str) -> None:
    if harm is _flip and name == "pipeline.json":
        (saved / name).write_text('{"format": "fairface_synth.pipeline", "version": 1}')
    else:
        harm(saved, name)
    with pytest.raises(DataError, match=f"{name}|no saved pipeline"):
        ffs.Pipeline.load(saved, pipeline.generator, pipeline.labeller)


def test_a_newer_format_is_refused(pipeline, saved) -> None:
    described = json.loads((saved / "pipeline.json").read_text())
    (saved / "pipeline.json").write_text(json.dumps({**described, "version": 2}))
    with pytest.raises(DataError, match="version 2"):
        ffs.Pipeline.load(saved, pipeline.generator, pipeline.labeller)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_ends_early_leaves_nothing_or_the_old_one(pipeline, tmp_path, monkeypatch, error) -> None:
    old = pipeline.save(tmp_path / "old")
    before = {p.name: p.read_bytes() for p in old.iterdir()}

    def fail(self, path) -> None:
        raise error

    monkeypatch.setattr(Subspace, "save", fail)
    for folder in (tmp_path / "new", old):
        with pytest.raises(DataError if isinstance(error, OSError) else KeyboardInterrupt):
            pipeline.save(folder, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["old"]
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before


def test_the_old_pipeline_comes_back_if_the_new_one_cannot_take_its_place(pipeline, tmp_path, monkeypatch) -> None:
    old = pipeline.save(tmp_path / "old")
    replace = Path.replace

    def fail(self, target):
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(DataError, match="could not be written"):
        pipeline.save(old, overwrite=True)
    monkeypatch.undo()
    ffs.Pipeline.load(old, pipeline.generator, pipeline.labeller)


def test_nothing_but_a_saved_pipeline_is_overwritten(pipeline, saved, tmp_path) -> None:
    with pytest.raises(DataError, match="overwrite=True"):
        pipeline.save(saved)
    assert pipeline.save(saved, overwrite=True) == saved
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        pipeline.save(saved, overwrite=True)
    assert (saved / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="a file"):
        pipeline.save(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    pipeline.save(tmp_path / "empty")


# --- fingerprints -----------------------------------------------------------------------------------------------------

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
def test_equal_settings_and_no_others_have_equal_fingerprints(a, b) -> None:
    """repr tells 1, 1.0 and True apart, and −0.0 from 0.0, which == does not."""

    def ordered(x):
        if isinstance(x, dict):
            return ["mapping", sorted((repr(k), repr(ordered(v))) for k, v in x.items())]
        return ["list", *map(ordered, x)] if isinstance(x, list) else x

    assert (fingerprint(a) == fingerprint(b)) == (repr(ordered(a)) == repr(ordered(b)))
    assert fingerprint(a) == fingerprint(json.loads(json.dumps(a)))


def test_a_fingerprint_is_sixteen_digits_and_the_order_of_keys_does_not_matter() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert len(fingerprint({"a": x})) == 16
    int(fingerprint(x), 16)
    assert fingerprint({"a": x, "b": 1}) == fingerprint({"b": 1, "a": x.clone()})
    assert fingerprint(x.t().contiguous().t()) == fingerprint(x), "strides are no part of it"
    assert len({fingerprint(y) for y in (x, x.double(), x.bfloat16(), x.view(4, 3), x[:2], [x], -x)}) == 7


def test_weights_count_to_the_last_bit() -> None:
    first, second = Flat(), Flat()
    assert fingerprint(first) == fingerprint(second)
    with torch.no_grad():
        second.gain.copy_(torch.nextafter(first.gain, torch.tensor(2.0)))
    assert fingerprint(first) != fingerprint(second)
    assert fingerprint(first) != fingerprint(first.double())

    class Other(Flat):
        pass

    assert fingerprint(Flat()) != fingerprint(Other()), "another class is another model"


def test_what_the_library_fits_and_loads_has_fingerprints(world) -> None:
    models = (world.generator, world.labeller, world.judge, world.embedder, ffs.load_detector(), world.mac, None)
    axes = ffs.demo_axes(world.directions)
    found = [fingerprint(x) for x in (*models, world.directions, axes, axes[:2], world.labeller.attributes)]
    assert len(set(found)) == len(found)
    again = ffs.load_demo()
    assert [fingerprint(x) for x in (again.generator, again.labeller, again.judge, again.embedder)] == found[:4]
    assert fingerprint(ffs.demo_axes(again.directions)) == fingerprint(axes)
    assert fingerprint(ffs.load_detector(size=96)) != found[4], "its settings decide too"
    assert fingerprint(torch.compile(world.labeller)) == found[1]


def test_functions_are_known_by_what_they_do(world) -> None:
    """In other batches, and with noise as of other arithmetic, they are the same; another model is not."""
    whole = ffs.wrap_generator(synthesize=world.generator.synthesize, z_dim=100)
    singly = ffs.wrap_generator(
        synthesize=lambda w: torch.cat([world.generator.synthesize(x) for x in w.split(1)]), z_dim=100
    )
    noisy = ffs.wrap_generator(synthesize=lambda w: world.generator.synthesize(w) + 1e-6 * torch.randn(64), z_dim=100)
    darker = ffs.wrap_generator(synthesize=lambda w: world.generator.synthesize(w) - 0.05, z_dim=100)
    centred = ffs.wrap_generator(synthesize=world.generator.synthesize, z_dim=100, w_avg=torch.full((100,), 0.1))
    same = {fingerprint_generator(g) for g in (whole, singly, noisy)}
    assert len(same) == 1
    assert len(same | {fingerprint_generator(g) for g in (darker, centred, world.generator)}) == 4

    models = {
        "labeller": ffs.wrap_labeller(world.labeller, world.labeller.attributes),
        "judge": ffs.wrap_labeller(world.judge, world.judge.attributes),
        "renamed": ffs.wrap_labeller(world.labeller, {"sex": ("a", "b"), **world.labeller.attributes}),
        "embedder": lambda x: world.embedder(x),
        "detector": lambda x: ffs.load_detector()(x),
        "no faces": lambda x: x.mean((1, 2, 3)) > 2,
        "nobody": None,
    }
    found = {name: fingerprint_model(model, 64) for name, model in models.items()}
    assert len(set(found.values())) == len(models)
    assert found == {name: fingerprint_model(model, 64) for name, model in models.items()}


def test_a_conditional_generator_is_probed_with_conditions() -> None:
    class Conditional:
        z_dim, w_dim, num_ws, c_dim, resolution = 4, 4, 1, 3, 8
        w_avg = torch.zeros(4)

        def __init__(self, sign: float) -> None:
            self.sign = sign

        def map(self, z, c=None, truncation_psi=1.0, truncation_cutoff=None):
            return (z + self.sign * c[:, :1]).unsqueeze(1)

        def synthesize(self, w, noise="const"):
            return w[:, 0, :3, None, None].tanh().expand(-1, -1, 8, 8)

    assert fingerprint_generator(Conditional(1.0)) == fingerprint_generator(Conditional(1.0))
    assert fingerprint_generator(Conditional(1.0)) != fingerprint_generator(Conditional(-1.0))


def test_what_has_no_weights_needs_a_probe() -> None:
    with pytest.raises(DataError, match="no weights"):
        fingerprint(label)
    with pytest.raises(DataError, match="no weights"):
        fingerprint({"model": [flat_generator()]})
    assert fingerprint(label, lambda: label(torch.zeros(1, 3, 4, 4))) != fingerprint(label, lambda: torch.zeros(1))
    assert fingerprint(nn.ReLU(), lambda: torch.ones(1)) != fingerprint(nn.ReLU(), lambda: torch.zeros(1))
