"""Models of the user's own, wrapped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fairface_synth as ffs
from fairface_synth import DataError, ShapeError
from fairface_synth.embeddings import embedder_digest
from fairface_synth.fingerprints import fingerprint_model

# --- generators -------------------------------------------------------------------------------------------------------


def flat(side: int, **given: object) -> ffs.Generator:
    """Black images of that side."""
    return ffs.wrap_generator(synthesize=lambda w: torch.zeros(len(w), 3, side, side), z_dim=4, **given)


def test_wrapped_generators_estimate_their_mean_and_truncate() -> None:
    generator = ffs.wrap_generator(
        map=lambda z: z + 3, synthesize=lambda w: w[:, 0, :3, None, None], z_dim=4, resolution=1, num_ws=3
    )
    assert isinstance(generator, ffs.Generator)
    torch.testing.assert_close(generator.w_avg, torch.full((4,), 3.0), rtol=0, atol=0.1)
    z = torch.randn(5, 4)
    w = generator.map(z, truncation_psi=0.5)
    torch.testing.assert_close(w, (generator.w_avg + 0.5 * (z + 3 - generator.w_avg))[:, None].expand(-1, 3, -1))


def test_what_is_not_given_is_found_out() -> None:
    generator = ffs.wrap_generator(
        map=lambda z: z[:, None, :2].expand(-1, 5, -1), synthesize=lambda w: torch.zeros(len(w), 3, 16, 16), z_dim=4
    )
    assert (generator.w_dim, generator.num_ws, generator.resolution) == (2, 5, 16)
    plain = flat(8, map=None)
    assert (plain.w_dim, plain.num_ws, plain.resolution) == (4, 1, 8)


def test_wrapped_callables_of_the_wrong_shape_are_named() -> None:
    with pytest.raises(ShapeError, match="wrapped map"):
        ffs.wrap_generator(map=lambda z: z[0], synthesize=lambda w: w, z_dim=4)
    with pytest.raises(ShapeError, match=r"z \[n, 4\]"):
        flat(8).map(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match="not a batch of images"):
        ffs.wrap_generator(synthesize=lambda w: w, z_dim=4, resolution=8).synthesize(torch.zeros(2, 1, 4))
    with pytest.raises(ShapeError, match="unconditional"):
        flat(8).map(torch.zeros(2, 4), torch.zeros(2, 1))


@settings(deadline=None, max_examples=30)
@given(side=st.integers(1, 9), said=st.integers(1, 9))
def test_images_have_the_resolution_that_was_said(side: int, said: int) -> None:
    """A set would otherwise state a size that its images do not have."""
    generator = flat(side, resolution=said)
    if side == said:
        assert generator.synthesize(torch.zeros(2, 1, 4)).shape == (2, 3, side, side)
    else:
        with pytest.raises(ShapeError, match=rf"(?s)\[n, 3, {said}, {said}\].*\[2, 3, {side}, {side}\].*resolution="):
            generator.synthesize(torch.zeros(2, 1, 4))


def test_images_are_square() -> None:
    with pytest.raises(ShapeError, match="another size"):
        ffs.wrap_generator(synthesize=lambda w: torch.zeros(len(w), 3, 8, 4), z_dim=4)


# --- embedders --------------------------------------------------------------------------------------------------------


def pixels(images: Tensor) -> Tensor:
    """Vectors of whatever length."""
    return images.flatten(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_wrapped_embedder_gives_the_functions_directions_at_length_1(dtype: torch.dtype) -> None:
    embedder = ffs.wrap_embedder(lambda images: pixels(images).to(dtype), dim=48)
    assert isinstance(embedder, ffs.Embedder)
    images = torch.rand(6, 3, 4, 4) * 2 - 1
    raw, unit = pixels(images).to(dtype), embedder(images)
    assert unit.dtype == torch.promote_types(dtype, torch.float32)
    wide = raw.double()
    torch.testing.assert_close(unit.double(), wide / wide.norm(dim=1, keepdim=True), rtol=0, atol=1e-6)


def test_a_pipeline_takes_a_wrapped_embedder_and_the_error_without_names_it(world: ffs.DemoWorld) -> None:
    """A head with weights that want gradients, in front of which images are brought to its size."""
    head = network()
    embedder = ffs.wrap_embedder(lambda x: head(nn.functional.interpolate(x, size=(4, 4))), dim=5)
    bank = ffs.label_latents(world.generator, world.labeller, n=200, embedder=embedder, progress=False)
    kept = bank.embeddings
    assert kept is not None
    assert kept.shape == (200, 5)
    assert not kept.requires_grad
    torch.testing.assert_close(kept.norm(dim=1), torch.ones(200))
    given = {"attributes": ["gender"], "bank": bank, "min_confidence": 0.4}
    fitted = ffs.Pipeline.fit(world.generator, world.labeller, embedder=embedder, **given)
    assert -1 <= float(fitted.threshold(fmr=0.05, n=60).value) <= 1
    with pytest.raises(DataError, match="wrap_embedder"):
        ffs.Pipeline.fit(world.generator, world.labeller, embedder=pixels, **given)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda x: x.flatten(1)[:, :3], r"\[2, 3\]"),
        (lambda x: x, r"\[2, 3, 4, 4\]"),
        (lambda x: x.flatten(1)[:1], r"\[1, 48\]"),
        (lambda x: x.flatten(1).long(), "int64"),
        (lambda x: (x.flatten(1), x), "tuple"),
    ],
)
def test_what_is_no_vector_an_image_is_named(function, got: str) -> None:
    with pytest.raises(ShapeError, match=rf"(?s)expected: float \[2, 48\].*{got}.*wrap_embedder"):
        ffs.wrap_embedder(function, dim=48)(torch.rand(2, 3, 4, 4))


def test_a_network_in_training_mode_is_refused() -> None:
    with pytest.raises(DataError, match=r"model\.eval\(\)"):
        ffs.wrap_embedder(network().train(), dim=5)


def test_wrapped_embedders_are_told_apart() -> None:
    """A cache of one must not be read for another: modules by their weights, functions by name and by what they do."""
    first, same, other = network(), network(), network()
    with torch.no_grad():
        other[1].weight[0, 0] += 1e-3
    digests = [embedder_digest(ffs.wrap_embedder(m, 5)) for m in (first, same, other)]
    prints = [fingerprint_model(ffs.wrap_embedder(m, 5), resolution=4) for m in (first, same, other)]
    for one, again, changed in (digests, prints):
        assert one == again
        assert one != changed

    def halves(images: Tensor) -> Tensor:
        return pixels(images).roll(7, dims=1)

    functions = [ffs.wrap_embedder(f, 48) for f in (pixels, halves)]
    assert len({embedder_digest(e) for e in functions}) == 2
    assert len({fingerprint_model(e, resolution=4) for e in functions}) == 2
