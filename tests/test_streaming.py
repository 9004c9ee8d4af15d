from __future__ import annotations

import dataclasses
import gc
import itertools
import pickle
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

import fairface_synth as ffs
from fairface_synth import DataError, GroupError, ShapeError
from fairface_synth.latents import normals
from fairface_synth.people import _first_that_passes
from fairface_synth.streaming import (
    FIRST_INDEX,
    SyntheticBatch,
    SyntheticStream,
    augment,
    stream,
    to_recognition_format,
)

GROUPS = ffs.Groups({"gender": ["female", "male"], "tone": ["light", "medium", "dark"]})
D = 6


def _synthesize(w: Tensor) -> Tensor:
    return w[:, 0].tanh()[:, :3, None, None].expand(-1, -1, 4, 4)


def _latents(group_ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
    return truncation_psi * (normals(seed, index, D) + 0.1 * group_ids.unsqueeze(1))


def _source(synthesize: Any = _synthesize, device: str = "cpu") -> Any:
    generator = ffs.wrap_generator(synthesize=synthesize, z_dim=D, resolution=4, device=device)
    return SimpleNamespace(generator=generator, groups=GROUPS, latents=_latents)


def _direction(i: int) -> ffs.Direction:
    one = torch.ones(())
    return ffs.Direction(torch.eye(D)[i], -one, one, 0.3 * one, name=str(i))


AXES = (ffs.Axis.spread(_direction(0), 4), ffs.Axis(_direction(1), [0.5, 2.0, 3.0], "set"))


def _take(batches: SyntheticStream, n: int) -> list[SyntheticBatch]:
    with batches:
        return list(itertools.islice(batches, n))


def _same(one: list[SyntheticBatch], other: list[SyntheticBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


@pytest.fixture(scope="module")
def pipeline(world: ffs.models.demo.DemoWorld) -> ffs.Pipeline:
    return ffs.Pipeline.fit(
        world.generator, world.labeller, attributes=["gender", "skin_tone"], n=500, min_samples=3, progress=False
    )


# --- who is in a batch ----------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.sets(st.integers(0, 5), min_size=1))
def test_every_batch_is_balanced_and_the_remainder_goes_round(m: int, k: int, world_size: int, chosen: set) -> None:
    total = torch.zeros(len(GROUPS), dtype=torch.int64)
    seen: list[int] = []
    ranks = [
        stream(
            _source(), m * k, groups=sorted(chosen), images_per_identity=k, rank=r, world_size=world_size, prefetch=0
        )
        for r in range(world_size)
    ]
    for _, batches in itertools.product(range(4), ranks):
        batch = next(batches)
        assert batch.identity.view(m, k).eq(batch.identity.view(m, k)[:, :1]).all()
        assert batch.group_ids.view(m, k).eq(batch.group_ids.view(m, k)[:, :1]).all()
        counts = GROUPS.count(batch.group_ids[::k])[sorted(chosen)]
        assert int(counts.sum()) == m
        assert int(counts.max() - counts.min()) <= 1
        total += GROUPS.count(batch.group_ids[::k])
        seen += batch.identity[::k].tolist()
    assert int(total[sorted(chosen)].max() - total[sorted(chosen)].min()) <= 1
    assert sorted(seen) == list(range(4 * m * world_size))  # unique over batches and ranks, without a gap


@given(st.lists(st.integers(0, 9), min_size=6, max_size=6).filter(any), st.integers(1, 30))
@example(shares=[0, 0, 1, 1, 1, 6], m=3)
def test_a_quota_holds_in_every_batch_and_exactly_in_the_long_run(shares: list[int], m: int) -> None:
    quota, total = torch.tensor(shares), sum(shares)
    cycle = stream(_source(), m, groups=quota, images_per_identity=1)._recipe.cycle
    assert total % len(cycle) == 0
    rows = torch.arange(m * total) % len(cycle)
    counts = torch.stack([GROUPS.count(ids) for ids in cycle[rows].split(m)])
    assert torch.equal(counts.sum(0), quota * m)
    assert bool(((counts - quota * m / total).abs() < 2).all())


def test_quotas_by_name_and_corrected() -> None:
    batches = stream(_source(), 12, groups={"light": 2, "dark": 1}, images_per_identity=1, prefetch=0)
    assert GROUPS.count(next(batches).group_ids).tolist() == [4, 0, 2, 4, 0, 2]
    shares = torch.full((6,), 1 / 6)
    quota = torch.tensor([30, 10, 20, 10, 10, 10])
    corrected = ffs.CorrectedQuota(GROUPS, quota, shares, shares, shares, shares, shares, 0.0, True)
    batches = stream(_source(), 9, groups=corrected, images_per_identity=1, prefetch=0)
    assert GROUPS.count(next(batches).group_ids).tolist() == [3, 1, 2, 1, 1, 1]
    assert set(next(stream(_source(), 8, groups="male-dark")).group_ids.tolist()) == {5}


# --- what an identity looks like ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", [{}, {"axes": AXES}, {"axes": AXES[0], "truncation_psi": 0.5}])
def test_an_identity_depends_on_its_number_alone(kwargs: dict) -> None:
    """Neither on the batch size, nor on how many images are shown of it."""
    images = {}
    for batch_size, k in ((4, 2), (12, 2), (12, 3), (5, 5)):
        for batch in _take(stream(_source(), batch_size, images_per_identity=k, seed=7, **kwargs), 6):
            for j, w in zip(batch.identity[::k].tolist(), batch.latents.unflatten(0, (-1, k)), strict=True):
                before = images.setdefault(j, w)
                n = min(len(before), k)
                assert torch.equal(before[:n], w[:n])
    assert not torch.equal(images[0], _take(stream(_source(), 4, seed=8, **kwargs), 1)[0].latents[:2])


def test_faces_can_be_made_again_and_are_not_those_of_a_sample(pipeline: ffs.Pipeline) -> None:
    (batch,) = _take(stream(pipeline, 12, seed=3), 1)
    ids, identity = batch.group_ids[::2], batch.identity[::2]
    assert torch.equal(batch.latents[::2], pipeline.latents(ids, FIRST_INDEX + identity, seed=3))
    images = pipeline.generator.synthesize(ffs.to_layers(pipeline.generator, batch.latents))
    torch.testing.assert_close(batch.images, images)
    assert batch.images.shape == (12, 3, 64, 64)
    sample = pipeline.sample(n=12, seed=3, progress=False)
    assert float(torch.cdist(batch.latents, sample.latents).min()) > 1


def test_variations_are_those_of_vary_and_all_different() -> None:
    (batch,) = _take(stream(_source(), 8 * 30, images_per_identity=8, axes=AXES, seed=1), 1)
    latents = batch.latents.unflatten(0, (30, 8))
    every = ffs.vary(latents[:, 0], AXES).latents  # [30, 7, D]
    distance = torch.cdist(latents[:, 1:], every)
    assert torch.equal((distance < 1e-5).sum(1), torch.ones(30, 7, dtype=torch.int64))  # each of the seven once
    few = _take(stream(_source(), 2 * 700, images_per_identity=2, axes=AXES), 1)[0].latents.unflatten(0, (700, 2))
    chosen = torch.cdist(few[:, 1:], ffs.vary(few[:, 0], AXES).latents)[:, 0].argmin(1).bincount(minlength=7)
    assert float(((chosen - 100).square() / 100).sum()) < 22.5  # χ² with 6 degrees of freedom, p = 0.001


def test_perturbations_go_towards_another_face_of_the_group() -> None:
    near, far, there = (
        _take(stream(_source(), 40, perturbation=p, seed=2), 1)[0].latents.unflatten(0, (20, 2))
        for p in (0.0, 0.3, 1.0)
    )
    assert torch.equal(near[:, 0], near[:, 1])
    torch.testing.assert_close(far[:, 1], torch.lerp(far[:, 0], there[:, 1], 0.3))
    assert float(torch.cdist(there[:, 1], there[:, 0]).min()) > 0.1  # nobody is moved towards one who is shown


def test_screened_faces_are_the_first_that_pass(pipeline: ffs.Pipeline) -> None:
    tries, seed = 40, 5
    ids, number = torch.arange(6).repeat(3), torch.arange(100, 118)
    w = _first_that_passes(pipeline, pipeline.screen, ids, number, seed, tries)
    passed = 0
    for g, j, ours in zip(ids.tolist(), number.tolist(), w, strict=True):
        z = normals(seed, torch.arange(j * tries, (j + 1) * tries), 100, stream=2**32 - 4)
        drawn = pipeline.generator.map(z)[:, 0]
        p = pipeline.screen.probabilities(drawn)
        right = (pipeline.groups.assign(p, pipeline.min_confidence) == g).nonzero()
        passed += len(right) > 0
        expected = right[0, 0] if len(right) else pipeline.groups.joint(p)[:, g].argmax()
        assert torch.equal(ours, drawn[expected])
    assert 3 < passed < 15
    (batch,) = _take(stream(pipeline, 6, method="screen", images_per_identity=1, candidates=tries, seed=seed), 1)
    first = _first_that_passes(pipeline, pipeline.screen, torch.arange(6), torch.arange(6), seed, tries)
    assert torch.equal(batch.latents, first)


# --- one sequence ---------------------------------------------------------------------------------------------------


def test_ranks_share_out_one_sequence() -> None:
    alone = _take(stream(_source(), 8, axes=AXES), 6)
    ranks = [_take(stream(_source(), 8, axes=AXES, rank=r, world_size=3), 2) for r in range(3)]
    assert _same(alone, [ranks[i % 3][i // 3] for i in range(6)])


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_prefetching_changes_nothing(prefetch: int) -> None:
    assert _same(_take(stream(_source(), 8, prefetch=0), 7), _take(stream(_source(), 8, prefetch=prefetch), 7))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_dataloader_gives_the_same_sequence(workers: int) -> None:
    expected = _take(stream(_source(), 8, axes=AXES, rank=1, world_size=2), 9)
    batches = stream(_source(), 8, axes=AXES, rank=1, world_size=2)
    next(batches)  # a running thread must not disturb the workers' processes
    found = list(itertools.islice(DataLoader(batches, batch_size=None, num_workers=workers), 8))
    batches.close()
    assert _same(expected[1:], found)
    assert all(isinstance(batch, SyntheticBatch) for batch in found)


def test_the_bundled_world_in_a_worker(pipeline: ffs.Pipeline) -> None:
    expected = _take(stream(pipeline, 4), 2)
    found = list(itertools.islice(DataLoader(stream(pipeline, 4), batch_size=None, num_workers=1), 2))
    for mine, theirs in zip(expected, found, strict=True):
        assert torch.equal(mine.latents, theirs.latents)
        torch.testing.assert_close(mine.images, theirs.images)


@settings(max_examples=10)
@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
def test_state_continues_exactly(steps: int, before: int, after: int) -> None:
    whole = _take(stream(_source(), 6, prefetch=0, seed=4), steps + 3)
    first = stream(_source(), 6, prefetch=before, seed=4)
    list(itertools.islice(first, steps))
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = stream(_source(), 6, prefetch=after, seed=4)
    next(second)  # already running elsewhere
    second.load_state_dict(state)
    assert _same(whole[steps:], _take(second, 3))
    assert _same(whole[steps:], _take(first, 3))  # asking for the state disturbs nothing
    copy = pickle.loads(pickle.dumps(first))
    assert copy.step == steps + 3


def test_a_state_of_other_settings_is_refused() -> None:
    state = stream(_source(), 8).state_dict()
    for kwargs in ({"seed": 1}, {"groups": "dark"}, {"world_size": 2}, {"axes": AXES}, {"perturbation": 0.3}):
        with pytest.raises(DataError, match="another stream"):
            stream(_source(), 8, **kwargs).load_state_dict(state)
    other = [ffs.Axis(AXES[0].direction, [9.0] * sum(len(torch.as_tensor(axis.steps)) for axis in AXES))]
    with pytest.raises(DataError, match="another stream"):  # as many edits, but others
        stream(_source(), 8, axes=other).load_state_dict(stream(_source(), 8, axes=AXES).state_dict())
    one, whole = [ffs.Axis(AXES[0].direction, [1.0])], stream(_source(), 8, perturbation=1.0)
    with pytest.raises(DataError, match="another stream"):
        stream(_source(), 8, axes=one).load_state_dict(whole.state_dict())
    with pytest.raises(DataError, match="no state"):
        stream(_source(), 8).load_state_dict(None)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="from 0"):
        stream(_source(), 8).seek(1.5)  # type: ignore[arg-type]
    for broken in ({}, state | {"step": -1}, state | {"step": "2"}):
        with pytest.raises(DataError, match="another stream"):
            stream(_source(), 8).load_state_dict(broken)
    stream(_source(), 8, rank=1, world_size=2).load_state_dict(stream(_source(), 8, world_size=2).state_dict())
    with pytest.raises(DataError, match="from 0"):
        stream(_source(), 8).seek(-1)


# --- the thread -----------------------------------------------------------------------------------------------------


def _threads() -> int:
    return sum(t.name == "synthetic batches" for t in threading.enumerate())


def _wait(condition: Any) -> bool:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_than_was_asked_for(depth: int) -> None:
    made = []
    source = _source(lambda w: made.append(threading.current_thread()) or _synthesize(w))
    made.clear()
    batches = stream(source, 4, prefetch=depth)
    for taken in range(1, 4):
        next(batches)
        assert _wait(lambda taken=taken: len(made) == taken + depth)
        time.sleep(0.02)
        assert len(made) == taken + depth
    assert threading.current_thread() not in made
    batches.close()


def test_the_thread_ends_with_its_stream() -> None:
    before = _threads()
    batches = stream(_source(), 4)
    next(batches)
    assert _threads() == before + 1
    batches.close()
    batches.close()
    assert _threads() == before
    next(batches)
    del batches
    gc.collect()
    assert _wait(lambda: _threads() == before)


def test_an_error_in_the_thread_reaches_the_consumer_and_stays() -> None:
    def fails_at_the_third(images: Tensor, numbers: Tensor) -> Tensor:
        if int(numbers[0]) // 1024 >= 2 * 2:
            raise ZeroDivisionError("third batch")
        return images

    for prefetch in (0, 2):
        batches = stream(_source(), 4, transform=fails_at_the_third, prefetch=prefetch)
        assert [int(next(batches).identity[0]) for _ in range(2)] == [0, 2]
        for _ in range(2):
            with pytest.raises(ZeroDivisionError, match="third batch"):
                next(batches)
        assert batches.step == 2


@pytest.mark.slow
def test_the_interpreter_leaves_without_hanging() -> None:
    code = """
import fairface_synth as ffs, torch
from types import SimpleNamespace
from fairface_synth.streaming import stream
world = ffs.load_demo()
source = SimpleNamespace(generator=world.generator, groups=ffs.Groups({"a": ["x", "y"]}),
                         latents=lambda g, i, seed, psi: ffs.normals(seed, i, 100))
batches = stream(source, 64, prefetch=4)
print(next(batches).images.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([64, 3, 64, 64])"
    assert done.stderr == ""


def test_gradients_are_the_consumers_business() -> None:
    weight = torch.ones((), requires_grad=True)
    batches = stream(_source(lambda w: weight * _synthesize(w)), 4)
    batch = next(batches)
    batches.close()
    assert not any(x.requires_grad for x in batch)
    assert torch.is_grad_enabled()
    (batch.images * weight).sum().backward()  # no inference tensors
    assert weight.grad is not None


# --- devices --------------------------------------------------------------------------------------------------------


def _cuda_screen() -> ffs.Screen:
    def cuda(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda")

    shapes = {"in": (2, D, 5), "mid": (2, 5, 5), "out": (2, 5, 5)}
    weights = {k: cuda(*s) for k, s in shapes.items()} | {f"{k}_bias": cuda(2, 1, s[2]) for k, s in shapes.items()}
    weights |= {f"scale.{a}": cuda() for a in GROUPS.attributes}
    weights |= {f"bias.{a}": cuda(len(v)) for a, v in GROUPS.attributes.items()}
    return ffs.Screen(cuda(D), cuda(D), weights, GROUPS.attributes, {}, {}, (D,))


@pytest.mark.parametrize("kwargs", [{}, {"axes": AXES}, {"images_per_identity": 1}, {"candidates": 3}])
def test_a_batch_is_made_without_waiting(kwargs: dict) -> None:
    recipe = stream(_source(), 8, transform=augment, **kwargs)._recipe
    with FakeTensorMode():
        axes = (ffs.Axis.spread(_direction(0).to("cuda"), 4), ffs.Axis.between(_direction(1).to("cuda"), 3))
        people = dataclasses.replace(
            recipe.people,
            source=_source(device="cuda"),
            axes=axes if "axes" in kwargs else None,
            screen=_cuda_screen() if "candidates" in kwargs else None,
        )
        recipe = dataclasses.replace(recipe, people=people, cycle=torch.arange(6, device="cuda"))
        for x in recipe.batch(3):
            assert x.device.type == "cuda"


@pytest.mark.cuda
@pytest.mark.parametrize("prefetch", [0, 2])
def test_on_cuda_the_same_batches_come_from_a_side_stream(prefetch: int) -> None:
    world = ffs.load_demo("cuda")
    source = SimpleNamespace(generator=world.generator, groups=GROUPS, latents=_cuda_latents)
    expected = [stream(source, 16, prefetch=0)._recipe.batch(i) for i in range(30)]
    batches = stream(source, 16, prefetch=prefetch)
    weight = torch.randn(512, 512, device="cuda")
    memory = []
    for want, batch in zip(expected, batches, strict=False):
        for _ in range(20):
            weight = torch.tanh(weight @ weight)  # the consumer is busy while the next batches are made
        assert torch.equal(batch.identity, want.identity)
        assert torch.equal(batch.latents, want.latents)
        torch.testing.assert_close(batch.images, want.images)
        memory.append(torch.cuda.memory_reserved())
    assert memory[-1] == memory[10]
    with pytest.raises(DataError, match="workers"):
        next(iter(DataLoader(stream(source, 16), batch_size=None, num_workers=1, multiprocessing_context="fork")))


@pytest.mark.cuda
def test_batches_made_on_the_cpu_are_handed_out_on_cuda() -> None:
    with stream(_source(), 8, device="cuda") as batches:
        batch = next(batches)
    assert all(x.device.type == "cuda" for x in batch)
    assert torch.equal(batch.images.cpu(), _take(stream(_source(), 8), 1)[0].images)


def _cuda_latents(group_ids: Tensor, index: Tensor, seed: int, truncation_psi: float) -> Tensor:
    return normals(seed, index, 100, stream=group_ids)


# --- formats --------------------------------------------------------------------------------------------------------


def test_transform_sees_the_images_own_numbers() -> None:
    seen: list[Tensor] = []

    def transform(images: Tensor, numbers: Tensor) -> Tensor:
        seen.append(numbers)
        return to_recognition_format(images, numbers, size=10)

    batches = stream(_source(), 6, images_per_identity=3, transform=transform, prefetch=0)
    assert next(batches).images.shape == (6, 3, 10, 10)
    next(batches)
    assert torch.cat(seen).tolist() == [j * 1024 + t for j in range(4) for t in range(3)]
    for wrong in (lambda images, numbers: images[:1], lambda images, numbers: None):
        with pytest.raises(ShapeError, match="transform"):
            next(stream(_source(), 6, transform=wrong))


def test_recognition_format_is_a_central_square_of_the_size() -> None:
    images = torch.randn(2, 3, 40, 60)
    assert torch.equal(to_recognition_format(images, size=20, crop=0.5), images[:, :, 10:30, 20:40])
    assert to_recognition_format(images).shape == (2, 3, 112, 112)
    flat = torch.full((1, 3, 64, 64), -0.25)
    torch.testing.assert_close(to_recognition_format(flat), torch.full((1, 3, 112, 112), -0.25))
    for bad in ({"size": 0}, {"crop": 0.0}, {"crop": 1.1}):
        with pytest.raises(DataError):
            to_recognition_format(images, **bad)
    with pytest.raises(ShapeError):
        to_recognition_format(images[0])


def test_augmentations_by_definition() -> None:
    images = torch.rand(400, 3, 5, 4, dtype=torch.float64) - 0.5
    numbers = torch.arange(400)
    plain = {"flip": 0.0, "brightness": 0.0, "contrast": 0.0}
    torch.testing.assert_close(augment(images, numbers, **plain), images)
    torch.testing.assert_close(augment(images, numbers, **plain | {"flip": 1.0}), images.flip(-1))
    half = augment(images, numbers, **plain | {"flip": 0.5})
    mirrored = (half - images).flatten(1).abs().amax(1) > 1e-9
    assert 160 < int(mirrored.sum()) < 240
    shift = (augment(images, numbers, **plain | {"brightness": 0.3}) - images).flatten(1)
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift))
    assert -0.3 <= float(shift.min()) < -0.25 < 0.25 < float(shift.max()) <= 0.3
    varied = augment(images, numbers, **plain | {"contrast": 0.4}).flatten(1)
    ratio = varied.std(1) / images.flatten(1).std(1)
    torch.testing.assert_close(varied.mean(1), images.flatten(1).mean(1))
    assert 0.6 <= float(ratio.min()) < 0.65 < 1.35 < float(ratio.max()) <= 1.4


def test_augmentation_depends_on_seed_and_number_alone() -> None:
    images = torch.rand(1, 3, 4, 4).expand(50, -1, -1, -1)
    numbers = torch.arange(50) * 1024
    whole = augment(images, numbers, seed=1)
    order = torch.randperm(50)
    torch.testing.assert_close(augment(images[:50], numbers[order], seed=1), whole[order])
    assert len(whole.flatten(1).unique(dim=0)) == 50
    assert not torch.equal(whole, augment(images, numbers, seed=2))
    assert whole.dtype == images.dtype
    assert float(augment(images * 4 - 2, numbers, brightness=1.0).abs().max()) <= 1
    for bad in ({"flip": 2}, {"brightness": -1}, {"contrast": 1.5}):
        with pytest.raises(DataError):
            augment(images, numbers, **bad)
    for numbers in (torch.arange(3), None, [1, 2]):
        with pytest.raises(ShapeError, match="one number per image"):
            augment(images[:2], numbers)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="images are a tensor"):
        to_recognition_format(images.numpy())  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="one number per image"):
        augment(images, numbers[:3])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"batch_size": 7}, DataError, "whole identities"),
        ({"batch_size": 0}, DataError, "whole identities"),
        ({"images_per_identity": 0}, DataError, "whole identities"),
        ({"groups": "green"}, GroupError, "green"),
        ({"groups": torch.zeros(6, dtype=torch.int64)}, GroupError, "quota"),
        ({"groups": torch.ones(5, dtype=torch.int64)}, GroupError, "quota"),
        ({"method": "evolve"}, DataError, r"pipeline\.sample"),
        ({"method": "magic"}, DataError, "gaussian or screen"),
        ({"method": "screen"}, DataError, "no screen"),
        ({"axes": []}, DataError, "axes"),
        ({"axes": [_direction(0)]}, DataError, "Axis objects"),
        ({"axes": AXES, "images_per_identity": 16}, DataError, "more images"),
        ({"perturbation": 2.0}, DataError, "perturbation"),
        ({"rank": 1}, DataError, "rank"),
        ({"seed": -1}, DataError, "seed"),
        ({"prefetch": -1}, DataError, "prefetch"),
        ({"candidates": 0}, DataError, "candidates"),
        ({"batch_size": 16.0}, DataError, "batch_size is a whole number"),
        ({"seed": None}, DataError, "seed is a whole number"),
        ({"seed": 1.5}, DataError, "seed is a whole number"),
        ({"truncation_psi": float("nan")}, DataError, "truncation is a number"),
    ],
)
def test_settings_that_cannot_be(kwargs: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        stream(_source(), **{"batch_size": 16} | kwargs)


def test_sources_that_cannot_be(pipeline: ffs.Pipeline) -> None:
    with pytest.raises(DataError, match="latents"):
        stream(SimpleNamespace(generator=pipeline.generator, groups=GROUPS))
    with pytest.raises(DataError, match="ψ"):
        stream(pipeline, method="screen", truncation_psi=0.7)


@pytest.mark.parametrize(
    "wrong", [lambda w: w[:1], lambda w: torch.cat((w, w)), lambda w: w.numpy(), lambda w: w[:, 0]]
)
def test_a_source_must_give_one_latent_a_face(wrong: Any) -> None:
    """One too many would shift every image against its identity."""
    good = _source()
    source = SimpleNamespace(generator=good.generator, groups=good.groups, latents=lambda *x: wrong(good.latents(*x)))
    with pytest.raises(ShapeError, match="one w a face"):
        next(stream(source, 8, prefetch=0))


def test_a_quota_may_be_an_array() -> None:
    quota = torch.arange(1, len(_source().groups) + 1)
    batches = [next(stream(_source(), 24, groups=q, prefetch=0)).group_ids for q in (quota, quota.numpy())]
    assert torch.equal(*batches)
