"""Discriminator scores, covariates, regions, shuffling, sweeps; torchvision, scipy, matplotlib, closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import rgb_to_hsv
from scipy import ndimage, stats
from torch import Tensor, nn
from torchvision.transforms import functional as tv

import fairface_synth as ffs
from fairface_synth.covariates import COVARIATES, covariates, face_regions
from fairface_synth.discriminators import score
from fairface_synth.errors import DataError, GroupError, ShapeError
from fairface_synth.models.stylegan2 import StyleGAN2Discriminator
from fairface_synth.plotting import sweep_curves
from fairface_synth.score_tables import score_table, shuffle_pixels
from fairface_synth.sweeps import TRANSFORMS, sweep
from fairface_synth.tables import read_table

GROUPS = ffs.Groups({"gender": ["female", "male"]})
SIZES = {"img_channels": 3, "img_resolution": 16, "channel_base": 128, "channel_max": 16}


def _uint8(n: int = 6, size: int | tuple[int, int] = 16, seed: int = 0) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), generator=rng, dtype=torch.uint8)


def _inside(n: int = 4, size: int = 8, seed: int = 0) -> Tensor:
    """Images well inside the range, so that small changes clip nothing."""
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 0.8 - 0.4


@pytest.fixture(scope="module")
def stylegan() -> StyleGAN2Discriminator:
    torch.manual_seed(0)
    return StyleGAN2Discriminator({"c_dim": 0, **SIZES}).freeze()


def mean_red(images: Tensor) -> Tensor:
    """A discriminator whose every derivative is known."""
    return images[:, 0].mean((1, 2))


def leaky(images: Tensor) -> Tensor:
    """Each logit depends on the whole batch."""
    return mean_red(images) + 10 * images.std()


# --- scores -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_range", ["minus1_1", "uint8_raw"])
def test_batched_scores_equal_one_at_a_time(stylegan, input_range) -> None:
    images = _uint8(7)
    for network in (stylegan, leaky, lambda x: leaky(x)[:, None]):
        together = score(network, images, input_range, batch_size=4)
        alone = torch.stack([score(network, image[None], input_range)[0] for image in images])
        assert together.shape == (7,)
        assert together.dtype == torch.float32
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_uint8_and_float_images_are_the_same_images(stylegan) -> None:
    images = _uint8()
    for input_range in ("minus1_1", "uint8_raw"):
        assert torch.equal(score(stylegan, images, input_range), score(stylegan, ffs.from_uint8(images), input_range))


def test_what_each_range_feeds() -> None:
    images, seen = _uint8(3), []

    def spy(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return mean_red(x)

    score(spy, images, "uint8_raw", group_size=None)
    score(spy, images, "minus1_1", group_size=None)
    assert torch.equal(seen[0], images.float())
    assert torch.equal(seen[1], images.float() / 127.5 - 1)


def test_precision_follows_the_weights() -> None:
    torch.manual_seed(0)
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 1)), ffs.from_uint8(_uint8(3, 8))
    single, double = score(network, images.double()), score(network.double(), images)
    assert single.dtype == double.dtype == torch.float32
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(40, 40), (9, 9), (24, 33)])
@pytest.mark.parametrize("resize", ["antialias", "torchvision"])
def test_resizing_is_torchvisions(shape, resize) -> None:
    images, antialias = _uint8(4, shape), resize == "antialias"

    class Spy:
        resolution = 16

        def __call__(self, x: Tensor) -> Tensor:
            self.seen = x
            return mean_red(x)

    spy = Spy()
    score(spy, images, "uint8_raw", resize=resize, group_size=None)
    assert torch.equal(spy.seen, tv.resize(images, [16, 16], antialias=antialias).float())
    floats = ffs.from_uint8(images)
    score(spy, floats, resize=resize, group_size=None)
    torch.testing.assert_close(spy.seen, tv.resize(floats, [16, 16], antialias=antialias))


def test_group_size_reaches_the_network(stylegan) -> None:
    images = _uint8(8)
    floats = ffs.from_uint8(images)
    pairs = torch.cat([stylegan.score(floats[i : i + 2], group_size=2) for i in range(0, 8, 2)])
    for batch_size in (1, 2, 5, 8):
        torch.testing.assert_close(score(stylegan, images, group_size=2, batch_size=batch_size), pairs)
    torch.testing.assert_close(score(stylegan, images, group_size=None), stylegan.score(floats, group_size=None))
    assert not torch.allclose(pairs, score(stylegan, images), rtol=1e-3)

    calls: list[int] = []

    def count(x: Tensor) -> Tensor:
        calls.append(len(x))
        return mean_red(x)

    for group_size, expected in ((1, [1] * 8), (2, [2] * 4), (None, [5, 3])):
        calls.clear()
        score(count, images, group_size=group_size, batch_size=5)
        assert calls == expected


def test_a_conditional_discriminator_gets_its_rows() -> None:
    torch.manual_seed(1)
    network = StyleGAN2Discriminator({"c_dim": 2, "mapping": {"num_layers": 1}, **SIZES}).freeze()
    images, c = _uint8(5), torch.eye(2)[torch.tensor([0, 1, 1, 0, 1])]
    one_by_one = torch.cat([score(network, images[i : i + 1], c=c[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(score(network, images, c=c, batch_size=2), one_by_one, rtol=1e-4, atol=1e-5)
    zeros = score(network, images, c=torch.eye(2)[:1])
    assert torch.allclose(zeros[[0, 3]], one_by_one[[0, 3]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(zeros[[1, 2, 4]], one_by_one[[1, 2, 4]], rtol=1e-3)


# --- covariates -------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12))
def test_covariates_are_their_definitions(seed: int, height: int, width: int) -> None:
    images = _uint8(2, (height, width), seed)
    values = covariates(images)
    assert tuple(values) == COVARIATES
    for i, image in enumerate(images.double().numpy()):
        y = (0.2126 * image[0] + 0.7152 * image[1] + 0.0722 * image[2]) / 255
        expected = {
            "red_mean": image[0].mean(),
            "green_mean": image[1].mean(),
            "blue_mean": image[2].mean(),
            "luminance": y.mean(),
            "contrast": y.std(),
            "saturation": rgb_to_hsv(image.transpose(1, 2, 0) / 255)[..., 1].mean(),
            "sharpness": ndimage.laplace(255 * y, mode="mirror").var(),
        }
        for name, value in expected.items():
            assert float(values[name][i]) == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_ita_is_of_the_mean_colour() -> None:
    images = torch.full((1, 3, 4, 4), 0.0)
    images[:, :, :2] = torch.tensor([0.6, 0.2, 0.0])[None, :, None, None]
    lightness, _, b = ffs.rgb_to_lab(images)[0].mean((1, 2))
    expected = math.degrees(math.atan((float(lightness) - 50) / float(b)))
    assert float(covariates(images)["ita"]) == pytest.approx(expected, abs=1e-3)


def test_luminance_is_the_published_formula_on_the_means(shared) -> None:
    """All 800 published rows; and ours of constant images of those colours."""
    for name, rows in (("scores_men600", 600), ("top_bottom100", 200)):
        table = read_table(shared / "audit_reference" / f"stylegan3r_ffhq_{name}.csv")
        rgb = torch.from_numpy(np.stack([table[f"{c}_mean"] for c in ("red", "green", "blue")], 1)).float()
        ours = covariates((rgb / 127.5 - 1)[:, :, None, None].expand(-1, -1, 2, 2))["luminance"].numpy()
        assert len(ours) == rows
        assert np.abs(ours - table["luminance"]).max() < 3e-5


def test_luminance_of_published_rows() -> None:
    """Three rows of the released table (600 men), so that the formula is held without the reference folder."""
    rgb = torch.tensor([[141.11493, 123.42827, 129.35434], [158.53375, 71.32802, 50.462322], [134.05821] * 3])
    ours = covariates((rgb / 127.5 - 1)[:, :, None, None].expand(-1, -1, 2, 2))["luminance"]
    assert ours[:2].tolist() == pytest.approx([0.5004604, 0.3465423], abs=3e-5)
    assert float(ours[2]) == pytest.approx(134.05821 / 255, abs=1e-6)


def test_regions_describe_their_pixels_alone() -> None:
    images = _uint8(3, 8)
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[0, 2:6, 2:6] = True
    mask[1, 0, 0] = True
    values = covariates(images, {"patch": mask, "all": torch.ones_like(mask)})
    patch = images[0, :, 2:6, 2:6].double()
    y = (torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None] * patch / 255).sum(0)
    assert float(values["patch/red_mean"][0]) == pytest.approx(float(patch[0].mean()), rel=1e-5)
    assert float(values["patch/contrast"][0]) == pytest.approx(float(y.std(correction=0)), rel=1e-5)
    assert float(values["patch/blue_mean"][1]) == pytest.approx(float(images[1, 2, 0, 0]), rel=1e-5)
    assert float(values["patch/sharpness"][1]) == 0
    assert all(values[f"patch/{name}"][2].isnan() for name in COVARIATES)
    for name in COVARIATES:
        torch.testing.assert_close(values[f"all/{name}"], values[name])
    assert torch.equal(covariates(images, mask)["region/ita"][:2], values["patch/ita"][:2])


def test_face_regions_follow_the_face() -> None:
    five = torch.tensor([[22.0, 26], [42, 26], [32, 36], [25, 46], [39, 46]])
    landmarks = torch.stack((five, torch.full_like(five, torch.nan), five + torch.tensor([8.0, -4])))
    regions = face_regions(landmarks, 64)
    assert {name: int(mask[1].sum()) for name, mask in regions.items()} == dict.fromkeys(regions, 0)
    for name in ("face", "eyes", "cheeks", "mouth"):
        assert torch.equal(regions[name][2].roll((4, -8), (0, 1)), regions[name][0]), name
    eyes, cheeks, mouth, face = (regions[n][0] for n in ("eyes", "cheeks", "mouth", "face"))
    for x, y in five[:2].long().tolist():
        assert eyes[y, x]
        assert cheeks[y + 10, x]
    assert mouth[46, 32]
    assert not (eyes & cheeks).any()
    assert not (mouth & cheeks).any()
    assert not (face & regions["background"][0]).any()
    assert not (cheeks & ~face).any()
    # A turned face: the picture turned by 90 degrees has its regions turned.
    turned = torch.stack((63 - five[:, 1], five[:, 0]), dim=1)[None]
    for name, mask in face_regions(turned, (64, 64)).items():
        assert torch.equal(mask[0], regions[name][0].rot90(-1)), name


def test_68_points_give_the_regions_of_their_five() -> None:
    points = torch.zeros(1, 68, 2)
    points[:, 36:42], points[:, 42:48] = torch.tensor([22.0, 26]), torch.tensor([42.0, 26])
    points[:, 48], points[:, 54] = torch.tensor([25.0, 46]), torch.tensor([39.0, 46])
    five = torch.tensor([[[22.0, 26], [42, 26], [32, 36], [25, 46], [39, 46]]])
    expected = face_regions(five, (60, 50))
    for name, mask in face_regions(points, (60, 50)).items():
        assert mask.shape == (1, 60, 50)
        assert torch.equal(mask, expected[name])


def test_regions_of_detected_faces_hold_skin(world) -> None:
    images = world.generator.synthesize(world.generator.map(ffs.draw_latents(world.generator, 0, 0, 24)))
    landmarks = ffs.load_detector()(images).landmarks
    found = landmarks.isfinite().all(2).all(1)
    values = covariates(images, face_regions(landmarks, 64))
    assert int(found.sum()) > 12
    redder = values["cheeks/red_mean"] > values["cheeks/blue_mean"]
    assert float(redder[found].float().mean()) > 0.8
    assert torch.equal(values["cheeks/luminance"].isnan(), ~found)


# --- shuffling --------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_shuffling_keeps_every_pixel_and_ignores_the_split(n, height, width, seed, start) -> None:
    images = _uint8(n, (height, width), seed % 1000)
    shuffled = shuffle_pixels(images, seed, start=start)
    for before, after in zip(images, shuffled, strict=True):
        assert sorted(map(tuple, before.flatten(1).T.tolist())) == sorted(map(tuple, after.flatten(1).T.tolist()))
    one_by_one = [shuffle_pixels(images[i : i + 1], seed, start=start + i) for i in range(n)]
    assert torch.equal(shuffled, torch.cat(one_by_one))


def test_shuffling_is_uniform_and_differs_between_images_and_seeds() -> None:
    images = torch.arange(6.0).view(1, 1, 2, 3).expand(6000, -1, -1, -1)
    shuffled = shuffle_pixels(images, 3).flatten(1).long()
    for i in range(6):
        assert stats.chisquare(torch.bincount(shuffled[:, i], minlength=6).numpy()).pvalue > 1e-4
    orders = torch.unique(shuffled, dim=0, return_counts=True)[1]
    assert len(orders) == math.factorial(6)
    assert stats.chisquare(orders.numpy()).pvalue > 1e-4
    same = (shuffle_pixels(images, 4).flatten(1) == shuffled).all(1).float().mean()
    assert float(same) < 0.01


def test_shuffled_colours_stay_and_structure_goes() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64)
    before, after = covariates(ramp), covariates(shuffle_pixels(ramp, 0))
    for name in ("red_mean", "luminance", "contrast", "saturation", "ita"):
        torch.testing.assert_close(before[name], after[name], rtol=1e-4, atol=1e-4)
    assert bool((after["sharpness"] > 100 * before["sharpness"]).all())


# --- sweeps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_range", ["minus1_1", "uint8_raw"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_the_identity_reproduces_the_scores_exactly(stylegan, transform, input_range) -> None:
    images = _uint8(5, 24)
    result = sweep(stylegan, images, transform, input_range=input_range, batch_size=2, progress=False)
    expected = score(stylegan, images, input_range, batch_size=2)
    assert torch.equal(result.original, expected)
    at = result.values.tolist().index(result.identity)
    assert torch.equal(result.scores[at], expected)
    assert float(result.clipped[at]) == 0
    assert result.scores.shape == (len(result.values), 5)


def _derivatives(x: Tensor) -> dict[str, Tensor]:
    """d mean(red in [-1, 1]) / d value at the identity, worked out by hand for RGB in [0, 1]."""
    rgb = ((x + 1) / 2).double()
    red = rgb[:, 0]
    y = 0.2126 * rgb[:, 0] + 0.7152 * rgb[:, 1] + 0.0722 * rgb[:, 2]
    # Cr turns towards Cb: R = Y + 1.5748 Cr, so dR/dangle = 1.5748 Cb = 1.5748 (B − Y) / 1.8556.
    hue = 1.5748 / 1.8556 * (rgb[:, 2] - y) * math.pi / 180
    zero = torch.zeros(len(x), dtype=torch.float64)
    return {
        "brightness": 2 * red.mean((1, 2)),
        "luminance": zero + 2,
        "contrast": 2 * (red.mean((1, 2)) - y.mean((1, 2))),
        "saturation": 2 * (red - y).mean((1, 2)),
        "hue": 2 * hue.mean((1, 2)),
        "red_gain": 2 * red.mean((1, 2)),
        "green_gain": zero,
        "blue_gain": zero,
        "gamma": 2 * (red * red.log()).mean((1, 2)),
    }


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_derivatives_of_a_linear_discriminator(transform) -> None:
    x = _inside()
    expected = _derivatives(x)[transform]
    result = sweep(mean_red, x, transform, progress=False)
    torch.testing.assert_close(result.derivative.double(), expected, rtol=2e-3, atol=2e-4)
    raw = sweep(mean_red, x, transform, input_range="uint8_raw", progress=False)
    quantised = _derivatives(ffs.from_uint8(ffs.to_uint8(x)))[transform] * 127.5
    torch.testing.assert_close(raw.derivative.double(), quantised, rtol=2e-3, atol=2e-2)


@given(st.integers(0, 1000), st.floats(-180, 180), st.floats(0, 2))
def test_transforms_leave_what_they_say(seed: int, degrees: float, gain: float) -> None:
    rgb = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)[:, None, None]

    def y(x: Tensor) -> Tensor:
        return (weights * x).sum(1, keepdim=True)

    hue, saturation = TRANSFORMS["hue"].apply, TRANSFORMS["saturation"].apply
    torch.testing.assert_close(y(hue(rgb, degrees)), y(rgb))
    torch.testing.assert_close(hue(hue(rgb, degrees), -degrees), rgb)
    torch.testing.assert_close(y(saturation(rgb, gain)), y(rgb))
    assert float((saturation(rgb, 0.0) - y(rgb)).abs().max()) < 1e-12
    shifted = TRANSFORMS["luminance"].apply(rgb, 0.1)
    torch.testing.assert_close(y(shifted), y(rgb) + 0.1)
    torch.testing.assert_close(shifted - y(shifted), rgb - y(rgb))
    contrast = TRANSFORMS["contrast"].apply(rgb, gain)
    torch.testing.assert_close(y(contrast).mean((1, 2, 3)), y(rgb).mean((1, 2, 3)))
    torch.testing.assert_close(y(contrast).std((1, 2, 3)), gain * y(rgb).std((1, 2, 3)))


def test_hue_turns_red_towards_yellow() -> None:
    red = torch.tensor([0.8, 0.3, 0.3])[None, :, None, None]
    turned = TRANSFORMS["hue"].apply(red, 20.0)[0, :, 0, 0]
    assert float(rgb_to_hsv(turned.numpy())[0]) == pytest.approx(20 / 360, abs=0.04)


def test_clipping_is_counted() -> None:
    x = torch.zeros(2, 3, 4, 4)
    x[:, 0] = 0.8  # 0.9 of 1
    result = sweep(mean_red, x, "red_gain", [0.5, 1.0, 1.05, 1.2], progress=False)
    assert result.clipped.tolist() == pytest.approx([0, 0, 0, 1 / 3])
    assert result.scores[3].tolist() == pytest.approx([1.0, 1.0])
    assert sweep(mean_red, x, "luminance", [-0.6, 0.6], progress=False).clipped.tolist() == pytest.approx([2 / 3, 1.0])
    assert "33.3%" in str(result)
    # Images that overshoot are clamped before anything is compared.
    over = sweep(mean_red, torch.full((1, 3, 4, 4), 1.2), "brightness", [1.0, 0.999], progress=False)
    assert over.original.item() == 1
    assert over.clipped.tolist() == [0, 0]


def test_a_transform_of_ones_own() -> None:
    def mirror_mix(images: Tensor, value: float) -> Tensor:
        return (1 - value) * images + value * images.flip(-1)

    def left(images: Tensor) -> Tensor:
        return images[..., : images.shape[-1] // 2].mean((1, 2, 3))

    x = _inside()
    result = sweep(left, x, mirror_mix, [0.0, 0.5, 1.0], identity=0.0, progress=False)
    assert result.transform == "mirror_mix"
    assert result.step == pytest.approx(0.01)
    torch.testing.assert_close(result.scores[2], left(x.flip(-1)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(result.derivative, left(x.flip(-1)) - left(x), atol=1e-4, rtol=1e-3)


def test_curves_are_paired_t_intervals(stylegan) -> None:
    images, ids = _uint8(9), torch.tensor([0, 1, 0, 1, 0, -1, 0, 0, 0])
    result = sweep(stylegan, images, "contrast", [0.5, 1.0, 1.4], group_ids=ids, groups=GROUPS, progress=False)
    everyone, female, male = result.curves()
    assert [(c.group, c.n) for c in (everyone, female, male)] == [("all", 9), ("female", 6), ("male", 2)]
    change = (result.scores - result.original).double().numpy()
    for curve, mask in ((everyone, np.ones(9, bool)), (female, (ids == 0).numpy()), (male, (ids == 1).numpy())):
        for k in (0, 2):
            oracle = stats.ttest_1samp(change[k, mask], 0).confidence_interval(0.95)
            assert [curve.low[k], curve.high[k]] == pytest.approx(list(oracle), rel=1e-6)
        slope = stats.ttest_1samp(result.derivative.double().numpy()[mask], 0).confidence_interval(0.95)
        assert list(curve.derivative[1:]) == pytest.approx(list(slope), rel=1e-6)
    table = result.to_table()
    assert len(table["change"]) == 9
    assert table["group"].tolist()[::3] == ["all", "female", "male"]
    assert table["change"][3:6].tolist() == pytest.approx(female.mean.tolist())
    assert result.to_dict()["groups"]["male"]["n"] == 2
    assert "| female" in str(result)


def test_one_image_has_no_interval() -> None:
    curve = sweep(mean_red, _inside(1), "brightness", progress=False).curves()[0]
    assert np.isnan(curve.low).all()
    assert np.isfinite(curve.mean).all()


def test_the_figure_shows_groups_and_clipping() -> None:
    ids = torch.tensor([0, 1, 0, 1])
    result = sweep(mean_red, _inside(), "brightness", group_ids=ids, groups=GROUPS, progress=False)
    figure = sweep_curves(result)
    axes = figure.axes[0]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["all (n = 4)", "female (n = 2)", "male (n = 2)"]
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), result.curves()[0].mean)
    assert len(axes.patches) == int((result.clipped > 0.01).sum()) > 0
    assert not list(sweep_curves(sweep(mean_red, _inside() / 2, "hue", progress=False)).axes[0].patches)


# --- the table --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Folder:
    """What a FaceSet looks like from here."""

    pixels: Tensor
    labels: dict[str, tuple[str, ...]]
    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, start: int, stop: int, size: int | None = None) -> Tensor:
        return self.pixels[start:stop] if size is None else self.pixels[start:stop, :, :size, :size]


def test_score_table_has_every_column(stylegan) -> None:
    images = ffs.from_uint8(_uint8(7, 20))
    mask = torch.zeros(7, 20, 20, dtype=torch.bool)
    mask[:, 5:9] = True
    labels = {"race": ["a", "b", "a", "b", "a", "b", "a"], "age": torch.arange(7)}
    table = score_table(stylegan, images, labels, regions={"band": mask}, batch_size=3, seed=5, progress=False)
    assert list(table)[:4] == ["score", "score_raw", "score_shuffled", "red_mean"]
    assert list(table)[-2:] == ["race", "age"]
    assert {len(column) for column in table.values()} == {7}
    np.testing.assert_allclose(table["score"], score(stylegan, images).numpy(), rtol=1e-4)
    np.testing.assert_allclose(table["score_raw"], score(stylegan, images, "uint8_raw").numpy(), rtol=1e-4)
    small = torch.nn.functional.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    shuffled = score(stylegan, shuffle_pixels(small, 5))
    np.testing.assert_allclose(table["score_shuffled"], shuffled.numpy(), rtol=1e-4)
    for name, values in covariates(images, {"band": mask}).items():
        np.testing.assert_allclose(table[name], values.numpy(), rtol=1e-4)
    assert "score_shuffled" not in score_table(stylegan, images, control=False, progress=False)


def test_score_table_reads_sets_batch_by_batch(stylegan) -> None:
    images = ffs.from_uint8(_uint8(5))
    folder = Folder(images, {"gender": ("f", "m", "f", "m", "unknown")}, tuple(f"{i}.png" for i in range(5)))
    sizes: list[int] = []

    def halves(batch: Tensor) -> dict[str, Tensor]:
        sizes.append(len(batch))
        return {"dark": batch.mean(1) < 0}

    table = score_table(stylegan, folder, regions=halves, batch_size=2, progress=False)
    assert sizes == [2, 2, 1]
    assert table["gender"].tolist() == list(folder.labels["gender"])
    assert table["path"].tolist() == list(folder.paths)
    expected = score_table(stylegan, images, regions={"dark": images.mean(1) < 0}, progress=False)
    for name, column in expected.items():
        np.testing.assert_allclose(table[name], column, rtol=1e-4, atol=1e-5)
    smaller = score_table(stylegan, folder, size=8, progress=False)
    np.testing.assert_allclose(smaller["red_mean"], covariates(images[..., :8, :8])["red_mean"].numpy(), rtol=1e-5)


# --- bad input --------------------------------------------------------------------------------------------------


def _nan(images: Tensor) -> Tensor:
    return mean_red(images) * torch.nan


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: score(mean_red, x.numpy()), ShapeError, "tensor here"),
        (lambda x: score(mean_red, x[0]), ShapeError, "not images"),
        (lambda x: score(mean_red, x[:, :1]), ShapeError, r"images.expand\(-1, 3, -1, -1\)"),
        (lambda x: covariates(x[:, :1]), ShapeError, "images are grey"),
        (lambda x: sweep(mean_red, SimpleNamespace(images=x.narrow), "hue"), ShapeError, r"faces.images\(0, n\)"),
        (lambda x: score_table(mean_red, "photos"), ShapeError, "read_faces"),
        (lambda x: score(mean_red, x.long()), ShapeError, "not images"),
        (lambda x: score(mean_red, x.float()), DataError, r"not in \[-1, 1\]"),
        (lambda x: score(mean_red, x / torch.nan), DataError, r"not in \[-1, 1\]"),
        (lambda x: score(mean_red, x[:0]), DataError, "no images"),
        (lambda x: score(mean_red, x, "0_1"), DataError, "input range"),
        (lambda x: score(mean_red, x, resize="bicubic"), DataError, "unknown resize"),
        (lambda x: score(mean_red, x, batch_size=0), DataError, "at a time"),
        (lambda x: score(mean_red, x, group_size=0), DataError, "at a time"),
        (lambda x: score(mean_red, x, group_size=4), ShapeError, "whole"),
        (lambda x: score(mean_red, x, c=torch.zeros(3, 2)), ShapeError, "c does not fit"),
        (lambda x: score(mean_red, x, c=torch.zeros(1, 2)), DataError, "takes c"),
        (lambda x: score("D", x), DataError, "no discriminator"),
        (lambda x: score(lambda y: y, x), ShapeError, "one logit"),
        (lambda x: score(lambda y: 1.0, x), ShapeError, "one logit"),
        (lambda x: score(_nan, x), DataError, "NaN"),
        (lambda x: covariates(x, torch.ones(6, 16, 16)), ShapeError, "'region' is no mask"),
        (lambda x: covariates(x, {"a": torch.ones(6, 16, dtype=torch.bool)}), ShapeError, "'a' is no mask"),
        (lambda x: covariates(x[..., :1]), ShapeError, "at least 2"),
        (lambda x: face_regions(torch.zeros(2, 6, 2), 8), ShapeError, "no landmarks"),
        (lambda x: shuffle_pixels(x, -1), DataError, "seed"),
        (lambda x: shuffle_pixels(x[0], 0), ShapeError, "not images"),
        (lambda x: sweep(mean_red, x, "warmth"), DataError, "unknown transform"),
        (lambda x: sweep(mean_red, x, 3), DataError, "name or a function"),
        (lambda x: sweep(mean_red, x, "gamma", [0.0]), DataError, "does not take"),
        (lambda x: sweep(mean_red, x, "brightness", [-1.0]), DataError, "does not take"),
        (lambda x: sweep(mean_red, x, "brightness", []), DataError, "no values"),
        (lambda x: sweep(mean_red, x, "brightness", [math.nan]), DataError, "no values"),
        (lambda x: sweep(mean_red, x, "brightness", step=0), DataError, "step"),
        (lambda x: sweep(mean_red, x, "brightness", identity=0.0), DataError, "changes nothing at 1"),
        (lambda x: sweep(mean_red, x, lambda y, v: y, [1.0]), DataError, "identity="),
        (lambda x: sweep(mean_red, x, lambda y, v: y[:1], [1.0], identity=0.0), ShapeError, "does not return"),
        (lambda x: sweep(mean_red, x, "hue", group_ids=torch.zeros(6).long()), GroupError, "together"),
        (lambda x: sweep(mean_red, x, "hue", group_ids=torch.zeros(6), groups=GROUPS), ShapeError, "group id"),
        (lambda x: sweep(mean_red, x, "hue", group_ids=torch.full((6,), 7), groups=GROUPS), GroupError, "range"),
        (lambda x: score_table(mean_red, [1, 2]), ShapeError, "no images"),
        (lambda x: score_table(mean_red, x[:0]), DataError, "no images"),
        (lambda x: score_table(mean_red, x, size=8), DataError, "read from files"),
        (lambda x: score_table(mean_red, x, {"race": ["a"]}), DataError, "do not fit"),
        (lambda x: score_table(mean_red, x, {"ita": [1] * 6}), DataError, "computed columns"),
        (lambda x: score_table(mean_red, x, regions=torch.ones(2, 16, 16).bool()), ShapeError, "do not fit"),
    ],
)
def test_bad_input(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(_uint8())


def test_the_size_must_fit_where_nothing_is_resized(stylegan) -> None:
    with pytest.raises(ShapeError, match="discriminator's size"):
        score(stylegan, _uint8(2, 20), resize="none")
    assert torch.equal(score(stylegan, _uint8(2), resize="none"), score(stylegan, _uint8(2)))


def test_images_of_0_to_1_are_noticed() -> None:
    with pytest.warns(UserWarning, match=r"\[0, 1\]"):
        score(mean_red, torch.rand(4, 3, 8, 8))


def test_nothing_keeps_a_graph(stylegan) -> None:
    images = _inside(2, 16).requires_grad_(True)
    assert not score(stylegan, images).requires_grad
    assert not sweep(stylegan, images, "hue", progress=False).derivative.requires_grad
    assert not covariates(images)["ita"].requires_grad
