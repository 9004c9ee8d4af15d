"""Screening latents and accept/reject, on toy generators whose conditional distributions are known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fairface_synth as ffs
from fairface_synth.screening import FACE, NATURAL_STREAM

GROUPS = ffs.Groups({"side": ["left", "right"], "height": ["low", "mid", "high"]})
DIM = 6


def _truth(w: Tensor) -> dict[str, Tensor]:
    """Soft labels that are known functions of the latent: one linear, one not."""
    side = torch.sigmoid(4 * w[:, 0] - 2)
    product = w[:, 1] * w[:, 2]
    height = torch.stack((-product, torch.full_like(product, 0.5), product), dim=1) * 3
    return {"side": torch.stack((1 - side, side), dim=1), "height": height.softmax(1)}


def _toy_generator(num_ws: int = 1) -> ffs.models.protocols.WrappedGenerator:
    """An 'image' that shows the latent in each of its two rows."""

    def synthesize(w: Tensor) -> Tensor:
        return w.mean(1).reshape(-1, 3, 1, DIM // 3).expand(-1, -1, 2, -1) / 10

    return ffs.wrap_generator(synthesize=synthesize, z_dim=DIM, num_ws=num_ws, resolution=2)


def _labeller() -> ffs.Labeller:
    return ffs.wrap_labeller(lambda images: _truth(images[:, :, 0].flatten(1) * 10), GROUPS.attributes)


def _assign(images: Tensor) -> Tensor:
    return GROUPS.assign(_labeller()(images), 0.6)


@pytest.fixture(scope="module")
def bank() -> ffs.LatentBank:
    return ffs.label_latents(_toy_generator(), _labeller(), 6000, seed=0, progress=False)


@pytest.fixture(scope="module")
def fitted(bank: ffs.LatentBank) -> ffs.Screen:
    return ffs.fit_screen(bank, hidden=64, members=2, epochs=20)


def test_the_screen_learns_the_labels_and_is_calibrated(fitted: ffs.Screen) -> None:
    w = torch.randn(4000, DIM, generator=torch.Generator().manual_seed(9))
    truth, guess = _truth(w), fitted.probabilities(w)
    for attribute, p in guess.items():
        assert p.sum(1).allclose(torch.ones(len(w)))
        assert float((p - truth[attribute]).abs().mean()) < 0.06
        assert float(fitted.calibration_error[attribute]) < 0.04
        confidence, value = p.max(1)
        right = truth[attribute].gather(1, value[:, None])[:, 0]
        assert abs(float(confidence.mean() - right.mean())) < 0.03
        assert abs(float(fitted.accuracy[attribute] - right.mean())) < 0.05


def test_the_calibration_error_is_the_one_of_the_definition(bank: ffs.LatentBank) -> None:
    from fairface_synth.screening import _accuracy_and_calibration_error

    guess = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    target = torch.rand(500, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    accuracy, error = _accuracy_and_calibration_error(guess, target)
    by_hand, right = 0.0, [float(t[int(g.argmax())]) for g, t in zip(guess, target, strict=True)]
    for b in range(10):
        rows = [i for i in range(500) if b / 10 <= float(guess[i].max()) < (b + 1) / 10]
        if rows:
            gap = sum(float(guess[i].max()) - right[i] for i in rows) / len(rows)
            by_hand += len(rows) / 500 * abs(gap)
    assert float(error) == pytest.approx(by_hand, abs=1e-4)
    assert float(accuracy) == pytest.approx(sum(right) / 500, abs=1e-4)


def test_a_screen_beats_a_linear_classifier_where_the_truth_is_not_linear(
    bank: ffs.LatentBank, fitted: ffs.Screen
) -> None:
    from sklearn.linear_model import LogisticRegression

    fresh = torch.randn(3000, DIM, generator=torch.Generator().manual_seed(3))
    truth = _truth(fresh)["height"].argmax(1)
    linear = LogisticRegression(max_iter=500).fit(bank.latents, bank.probabilities["height"].argmax(1))
    ours = float((fitted.probabilities(fresh)["height"].argmax(1) == truth).float().mean())
    assert ours > linear.score(fresh, truth) + 0.1


def test_same_seed_same_screen(bank: ffs.LatentBank) -> None:
    a, b, c = (ffs.fit_screen(bank[:500], hidden=8, members=1, epochs=2, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.weights["in"], b.weights["in"])
    assert not torch.equal(a.weights["in"], c.weights["in"])


def test_screen_is_saved_and_loaded(fitted: ffs.Screen, tmp_path) -> None:
    fitted.save(tmp_path / "screen.safetensors")
    again = ffs.Screen.load(tmp_path / "screen.safetensors")
    w = torch.randn(5, DIM)
    for attribute, p in fitted.probabilities(w).items():
        assert torch.equal(again.probabilities(w)[attribute], p)
    assert repr(again) == repr(fitted)
    assert "calibration error" in repr(fitted)


@given(batch_size=st.integers(1, 40), map_batch=st.integers(50, 900), data=st.data())
def test_groups_take_the_first_latents_that_pass_whatever_the_batches(
    fitted: ffs.Screen, batch_size: int, map_batch: int, data: st.DataObject
) -> None:
    quota = torch.tensor(data.draw(st.lists(st.integers(0, 9), min_size=6, max_size=6)))
    quota[0] += 1
    generator = _toy_generator()
    found = ffs.screen(
        generator, fitted, quota, seed=5, batch_size=batch_size, map_batch=map_batch, min_confidence=0.5, progress=False
    )
    assert not found.short
    assert torch.equal(GROUPS.count(found.group_ids), quota)
    w = ffs.normals(5, torch.arange(int(found.drawn[0])), DIM, stream=NATURAL_STREAM)
    ids = GROUPS.assign(fitted.probabilities(w), 0.5)
    assert torch.equal(found.passed, GROUPS.count(ids))
    for g, n in enumerate(quota.tolist()):
        first = (ids == g).nonzero()[:n, 0]
        assert torch.equal(found.index[found.group_ids == g], first)
        assert torch.equal(found.latents[found.group_ids == g], w[first])
    assert torch.equal(found.synthesized, quota)
    assert found.images is not None
    torch.testing.assert_close(found.images, generator.synthesize(found.latents[:, None]))
    torch.testing.assert_close(found.acceptance_rate, GROUPS.count(ids).double() / len(w))


def test_verified_faces_are_confirmed_and_the_rejected_are_counted(fitted: ffs.Screen) -> None:
    quota = torch.full((6,), 20)
    found = ffs.screen(_toy_generator(), fitted, quota, seed=1, verify=_assign, batch_size=32, progress=False)
    assert not found.short
    assert torch.equal(_assign(found.images), found.group_ids)
    assert bool((found.synthesized >= quota).all())
    assert int(found.synthesized.sum()) < 1.3 * 120  # the screen is good: nearly every image is confirmed
    other = ffs.screen(_toy_generator(), fitted, quota, seed=1, verify=_assign, batch_size=7, progress=False)
    assert torch.equal(other.index, found.index)


def test_screening_needs_far_fewer_images_than_rejection(fitted: ffs.Screen) -> None:
    quota = torch.tensor([0, 0, 0, 0, 0, 60])
    plain = ffs.reject(_toy_generator(), _assign, quota, seed=1, progress=False)
    screened = ffs.screen(_toy_generator(), fitted, quota, seed=1, verify=_assign, progress=False)
    assert 3 * int(screened.synthesized[5]) < int(plain.synthesized[5])
    assert int(plain.passed[5]) >= 60
    assert torch.equal(plain.drawn, plain.synthesized)


@pytest.mark.parametrize("verify", [None, lambda images: torch.full((len(images),), -1)])
def test_a_group_that_cannot_be_filled_ends_with_a_report(fitted: ffs.Screen, verify) -> None:
    bias = fitted.weights["bias.side"] + torch.tensor([50.0, 0.0])  # everybody is "left"
    blind = dataclasses.replace(fitted, weights={**fitted.weights, "bias.side": bias})
    quota = torch.tensor([3, 0, 0, 2, 0, 0])
    found = ffs.screen(_toy_generator(), blind, quota, max_mappings=3000, verify=verify, progress=False)
    assert found.short == ({3: 2} if verify is None else {0: 3, 3: 2})
    assert int(found.drawn[0]) == 3000
    assert len(found.latents) == sum(found.accepted) == 5 - sum(found.short.values())


def test_the_image_budget_holds(fitted: ffs.Screen) -> None:
    def nobody(images: Tensor) -> Tensor:
        return torch.full((len(images),), -1)

    found = ffs.screen(
        _toy_generator(), fitted, torch.full((6,), 5), verify=nobody, max_syntheses=40, batch_size=16, progress=False
    )
    assert int(found.synthesized.sum()) == 40
    assert found.short == dict.fromkeys(range(6), 5)


def test_latents_alone_cost_no_image(fitted: ffs.Screen) -> None:
    def forbidden(w: Tensor) -> Tensor:
        raise AssertionError("an image was made")

    generator = _toy_generator()
    generator._synthesize = forbidden
    found = ffs.screen(generator, fitted, torch.full((6,), 300), images=False, progress=False)
    assert found.images is None
    assert found.latents.shape == (1800, DIM)
    assert int(found.synthesized.sum()) == 0


def test_layered_latents() -> None:
    """A map that gives the layers different latents (W+) is screened as a whole."""

    def split_map(z: Tensor) -> Tensor:
        return torch.stack((z, z * 0.5), dim=1)

    generator = ffs.wrap_generator(
        map=split_map, synthesize=lambda w: _toy_generator().synthesize(w[:, :1]), z_dim=DIM, resolution=2
    )
    bank = ffs.label_latents(generator, _labeller(), 2000, progress=False)
    fitted = ffs.fit_screen(bank, hidden=32, members=1, epochs=10)
    assert fitted.shape == (2, DIM)
    found = ffs.screen(generator, fitted, torch.tensor([2, 2, 2, 2, 2, 2]), min_confidence=0.5, progress=False)
    assert found.latents.shape == (12, 2, DIM)


def test_a_screen_of_a_bank_with_detections_avoids_latents_without_a_face() -> None:
    def detector(images: Tensor) -> Tensor:
        return (images[:, :, 0].flatten(1)[:, 5] < 0.05).float()  # a face unless the last latent is above 0.5

    bank = ffs.label_latents(_toy_generator(), _labeller(), 4000, detector=detector, progress=False)
    fitted = ffs.fit_screen(bank, hidden=64, members=1, epochs=15)
    assert FACE in fitted.attributes
    found = ffs.screen(_toy_generator(), fitted, torch.full((6,), 50), min_face=0.9, min_confidence=0.5, progress=False)
    assert detector(found.images).mean() > 0.97
    assert bank.found.mean() < 0.8


def test_one_attribute_of_several_can_be_asked_for(fitted: ffs.Screen) -> None:
    side = ffs.Groups({"side": ["left", "right"]})
    found = ffs.screen(_toy_generator(), fitted, torch.tensor([4, 4]), groups=side, progress=False)
    assert torch.equal(side.assign(fitted.probabilities(found.latents)), found.group_ids)


def test_a_group_that_never_succeeds_does_not_starve_the_others(fitted: ffs.Screen) -> None:
    def only_left(images: Tensor) -> Tensor:
        coin = images[:, :, 0].flatten(1).sum(1).frac().abs() < 0.1  # one face of group 0 in ten, and no other
        return torch.where((_assign(images) == 0) & coin, 0, -1)

    def propose(ids: Tensor, index: Tensor) -> Tensor:
        latents = ffs.normals(0, index, DIM, stream=ids + 1)
        latents[:, 0] = -2.0
        return latents

    quota = torch.tensor([40, 40, 0, 0, 0, 0])
    for found in (
        ffs.reject(_toy_generator(), only_left, quota, propose=propose, progress=False),
        ffs.screen(_toy_generator(), fitted, quota, verify=only_left, progress=False),
    ):
        assert found.short == {1: 40}


@pytest.mark.parametrize("way", ["reject", "screen"])
def test_only_faces_that_are_kept_stand_in_the_way_of_others(fitted: ffs.Screen, way: str) -> None:
    """Every face has one of 12 identities, whatever its group: the quota takes each once, and none is lost."""

    class Embedder:
        dim = 12

        def __call__(self, images: Tensor) -> Tensor:
            who = (images[:, :, 0].flatten(1)[:, 5] * 1e4).long() % 12
            return torch.nn.functional.one_hot(who, 12).float()

    quota = torch.full((6,), 2)
    options = {"embedder": Embedder(), "threshold": 0.5, "max_syntheses": 20_000, "progress": False}
    if way == "reject":
        found = ffs.reject(_toy_generator(), _assign, quota, batch_size=16, **options)
    else:
        found = ffs.screen(_toy_generator(), fitted, quota, batch_size=16, **options)
    assert not found.short
    assert len(Embedder()(found.images).argmax(1).unique()) == 12
    more = ffs.reject(_toy_generator(), _assign, quota + 1, **{**options, "max_syntheses": 3000})
    assert sum(more.short.values()) == 6, "there are only 12 identities"


def test_bad_requests_say_so(bank: ffs.LatentBank, fitted: ffs.Screen) -> None:
    generator, quota = _toy_generator(), torch.ones(6, dtype=torch.int64)
    with pytest.raises(ffs.DataError, match="cannot be fitted"):
        ffs.fit_screen(bank[:50])
    with pytest.raises(ffs.DataError, match="NaN"):
        ffs.fit_screen(dataclasses.replace(bank, latents=bank.latents * torch.nan))
    with pytest.raises(ffs.GroupError, match="no such attribute"):
        ffs.fit_screen(bank, ["age"])
    with pytest.raises(ffs.GroupError, match="quota does not fit"):
        ffs.screen(generator, fitted, torch.ones(5, dtype=torch.int64), progress=False)
    swapped = ffs.Groups({"side": ["right", "left"]})
    with pytest.raises(ffs.GroupError, match="side"):
        ffs.screen(generator, fitted, torch.ones(2, dtype=torch.int64), groups=swapped, progress=False)
    with pytest.raises(ffs.DataError, match="cannot be fitted"):
        ffs.fit_screen(bank[:200], held_out=0.999)
    unknown = {**bank.probabilities, "side": bank.probabilities["side"] * torch.nan}
    with pytest.raises(ffs.DataError, match="side are NaN"):
        ffs.fit_screen(dataclasses.replace(bank, probabilities=unknown))
    with pytest.raises(ffs.ShapeError, match="counts faces"):
        ffs.screen(generator, fitted, torch.full((6,), 0.9), progress=False)
    with pytest.raises(ffs.DataError, match="gates are probabilities"):
        ffs.screen(generator, fitted, quota, min_confidence=1.5, progress=False)
    with pytest.raises(ffs.DataError, match="knows nothing of faces"):
        ffs.screen(generator, fitted, quota, min_face=0.9, progress=False)
    with pytest.raises(ffs.DataError, match="by an embedder"):
        ffs.screen(generator, fitted, quota, threshold=0.9, progress=False)
    with pytest.raises(ffs.DataError, match="verification needs images"):
        ffs.screen(generator, fitted, quota, verify=_assign, images=False, progress=False)
    with pytest.raises(ffs.ShapeError, match="do not fit the screen"):
        fitted.probabilities(torch.randn(3, DIM + 1))
    with pytest.raises(ffs.DataError, match="max_mappings"):
        ffs.screen(generator, fitted, quota, max_mappings=0, progress=False)
