from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import fairface_synth as ffs
from fairface_synth import (
    DataError,
    GroupError,
    LatentBank,
    ShapeError,
    draw_latents,
    label_latents,
    normals,
    truncate,
)
from fairface_synth.latents import philox


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Known answers of the Random123 distribution (kat_vectors, philox4x32 10).
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple, key: tuple, expected: tuple) -> None:
    out = philox(tuple(torch.tensor([c]) for c in counter), key)  # type: ignore[arg-type]
    assert tuple(int(x) for x in out) == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 33), st.integers(0, 2**32 - 1))
def test_a_row_depends_on_seed_stream_and_index_alone(seed: int, start: int, dim: int, stream: int) -> None:
    index = torch.arange(start, start + 9)
    whole = normals(seed, index, dim, stream=stream)
    order = torch.tensor([4, 0, 8, 3])
    assert torch.equal(normals(seed, index[order], dim, stream=stream), whole[order])
    assert torch.equal(torch.cat([normals(seed, i[None], dim, stream=stream) for i in index]), whole)
    assert torch.equal(normals(seed, index, dim, stream=torch.full((9,), stream)), whole)
    assert torch.equal(normals(seed, index, dim + 5, stream=stream)[:, :dim], whole)


def test_seeds_and_streams_differ() -> None:
    index = torch.arange(64)
    a = normals(1, index, 8)
    for other in (normals(2, index, 8), normals(1, index, 8, stream=1), normals(1 + 2**32, index, 8)):
        assert not torch.equal(a, other)
        assert abs(float(torch.corrcoef(torch.stack((a.flatten(), other.flatten())))[0, 1])) < 0.2


def test_latents_are_standard_normal() -> None:
    x = normals(3, torch.arange(4000), 50).numpy()
    assert scipy.stats.kstest(x.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(x.T) - np.eye(50)
    assert np.abs(correlation).max() < 0.08
    assert scipy.stats.kstest((x**2).sum(1), scipy.stats.chi2(50).cdf).pvalue > 1e-3


def test_a_million_normals_a_second() -> None:
    index = torch.arange(2000)
    normals(0, index, 512)
    best = min(_seconds(lambda: normals(0, index, 512)) for _ in range(3))
    assert index.numel() * 512 / best > 1e6


def _seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def test_draw_latents_splits_anywhere(world) -> None:
    whole = draw_latents(world.generator, 7, 0, 100)
    assert whole.shape == (100, 100)
    parts = [draw_latents(world.generator, 7, a, b - a) for a, b in [(0, 1), (1, 60), (60, 100)]]
    assert torch.equal(torch.cat(parts), whole)
    assert draw_latents(world.generator, 7, 5, 0).shape == (0, 100)
    with pytest.raises(DataError, match="start"):
        draw_latents(world.generator, 7, -1, 5)


@pytest.mark.cuda
def test_latents_agree_between_devices() -> None:
    index = torch.arange(1000)
    torch.testing.assert_close(normals(5, index.cuda(), 64).cpu(), normals(5, index, 64), rtol=2e-7, atol=1e-7)


# --- truncation ---------------------------------------------------------------------------------------------------


def test_truncation_interpolates_towards_the_mean(rng) -> None:
    w, w_avg = torch.randn(3, 4, 5, generator=rng), torch.randn(5, generator=rng)
    torch.testing.assert_close(truncate(w, w_avg, 0.3), w_avg + 0.3 * (w - w_avg))
    assert truncate(w, w_avg, 1.0) is w
    torch.testing.assert_close(truncate(w, w_avg, 0.0), w_avg.expand_as(w))
    cut = truncate(w, w_avg, 0.3, truncation_cutoff=2)
    torch.testing.assert_close(cut[:, :2], truncate(w, w_avg, 0.3)[:, :2])
    assert torch.equal(cut[:, 2:], w[:, 2:])


def test_truncation_of_single_latents_knows_no_layers() -> None:
    with pytest.raises(ShapeError, match="cutoff"):
        truncate(torch.zeros(5, 8), torch.zeros(8), 0.5, 2)
    with pytest.raises(ShapeError, match="cutoff"):
        truncate(torch.zeros(5, 3, 8), torch.zeros(8), 0.5, 4)
    with pytest.raises(DataError, match="must be a number"):
        truncate(torch.zeros(5, 8), torch.zeros(8), "0.7")  # type: ignore[arg-type]


@pytest.mark.parametrize(("seed", "stream"), [(-1, 0), (2**64, 0), (0, -1), (0, 2**32)])
def test_seeds_that_would_alias_are_refused(seed: int, stream: int) -> None:
    with pytest.raises(DataError, match="out of range"):
        normals(seed, torch.arange(2), 3, stream=stream)


def test_conditional_generators_take_their_condition() -> None:
    class Conditional:
        z_dim = w_dim = 4
        num_ws, c_dim, resolution = 1, 2, 8
        w_avg = torch.zeros(4)

        def map(self, z: torch.Tensor, c: torch.Tensor, truncation_psi: float = 1.0) -> torch.Tensor:
            return (z + 10 * c[:, 1:])[:, None]

        def synthesize(self, w: torch.Tensor) -> torch.Tensor:
            return w[:, 0, :1, None, None].expand(-1, 3, 8, 8).tanh()

    labeller = ffs.wrap_labeller(lambda x: {"a": torch.ones(len(x), 2) / 2}, {"a": ("x", "y")})
    with pytest.raises(ShapeError, match="conditional"):
        label_latents(Conditional(), labeller, 5, progress=False)
    one = label_latents(Conditional(), labeller, 5, c=torch.eye(2)[1:], batch_size=2, progress=False)
    each = label_latents(Conditional(), labeller, 5, c=torch.eye(2)[[1, 1, 1, 1, 1]], batch_size=2, progress=False)
    assert torch.equal(one.latents, each.latents)
    assert float(one.latents.mean()) > 5


# --- the bank -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bank(world) -> LatentBank:
    return label_latents(
        world.generator, world.labeller, 96, seed=3, embedder=world.embedder, batch_size=40, progress=False
    )


def test_bank_holds_what_the_labeller_says(world, bank) -> None:
    z = draw_latents(world.generator, 3, 0, 96)
    images = world.generator.synthesize(world.generator.map(z))
    torch.testing.assert_close(bank.latents, z)
    for attribute, p in world.labeller(images).items():
        torch.testing.assert_close(bank.probabilities[attribute], p, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bank.embeddings, world.embedder(images), rtol=1e-4, atol=1e-5)
    assert bank.attributes == world.labeller.attributes


def test_bank_does_not_depend_on_the_batch_size(world, bank) -> None:
    again = label_latents(world.generator, world.labeller, 96, seed=3, batch_size=96, progress=False)
    assert torch.equal(again.latents, bank.latents)
    for a in bank.probabilities:
        torch.testing.assert_close(again.probabilities[a], bank.probabilities[a], rtol=1e-4, atol=1e-5)


def test_bank_survives_a_round_trip(bank, tmp_path) -> None:
    bank.save(tmp_path / "bank.safetensors")
    again = LatentBank.load(tmp_path / "bank.safetensors")
    assert again.attributes == bank.attributes
    assert (again.seed, again.truncation_psi) == (3, 1.0)
    assert torch.equal(again.latents, bank.latents)
    assert torch.equal(again.embeddings, bank.embeddings)
    assert all(torch.equal(again.probabilities[a], p) for a, p in bank.probabilities.items())
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_banks_concatenate_and_slice(world, bank) -> None:
    both = LatentBank.concatenate([bank[:30], bank[30:]])
    assert torch.equal(both.latents, bank.latents)
    assert torch.equal(both.index, torch.arange(96))
    other = label_latents(world.generator, world.labeller, 4, seed=9, truncation_psi=0.5, progress=False)
    with pytest.raises(DataError, match="truncated differently"):
        LatentBank.concatenate([bank, other])
    with pytest.raises(DataError, match="no banks"):
        LatentBank.concatenate([])


def test_bank_groups(bank) -> None:
    groups = bank.groups(["skin_tone", "gender"])
    assert len(groups) == 6
    ids = bank.group_ids(groups, min_confidence=0.9)
    assert bool((ids == -1).any()), "a strict gate leaves some unsure"
    with pytest.raises(GroupError, match="no such attribute"):
        bank.groups(["race"])


def test_loading_something_else_is_an_error(bank, tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"not a file of ours")
    with pytest.raises(DataError, match="cannot read"):
        LatentBank.load(tmp_path / "x")
    bank.save(tmp_path / "bank")
    with pytest.raises(DataError, match="holds something else"):
        ffs.Subspace.load(tmp_path / "bank")


def test_an_interrupted_save_leaves_the_old_file(bank, tmp_path, monkeypatch) -> None:
    import fairface_synth.artifacts as artifacts

    path = tmp_path / "bank"
    bank.save(path)
    before = path.read_bytes()

    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(artifacts, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        bank.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_labeller_without_probabilities_is_refused(world) -> None:
    class Logits:
        attributes = {"gender": ("female", "male")}  # noqa: RUF012

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"gender": torch.full((len(images), 2), 3.0)}

    with pytest.raises(DataError, match="not probabilities"):
        label_latents(world.generator, Logits(), 4, progress=False)


def test_w_plus_generators_keep_every_layer() -> None:
    generator = ffs.wrap_generator(
        map=lambda z: torch.stack((z, 2 * z), dim=1),
        synthesize=lambda w: w.sum((1, 2))[:, None, None, None].expand(-1, 3, 8, 8).tanh(),
        z_dim=6,
        num_ws=2,
        resolution=8,
    )

    class Labeller:
        attributes = {"side": ("left", "right")}  # noqa: RUF012

        def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            p = images.mean((1, 2, 3)).sigmoid()
            return {"side": torch.stack((p, 1 - p), dim=1)}

    bank = label_latents(generator, Labeller(), 50, progress=False)
    assert bank.latents.shape == (50, 2, 6)


def test_to_layers(world) -> None:
    assert ffs.to_layers(world.generator, torch.zeros(3, 100)).shape == (3, 1, 100)
    with pytest.raises(ShapeError, match="do not fit the generator"):
        ffs.to_layers(world.generator, torch.zeros(3, 99))
