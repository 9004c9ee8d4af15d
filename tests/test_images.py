from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

import fairface_synth as ffs
from fairface_synth import DataError, ShapeError
from fairface_synth.images import ITA_BANDS


def _pixel(rgb: tuple[int, int, int]) -> torch.Tensor:
    return ffs.from_uint8(torch.tensor(rgb, dtype=torch.uint8))[None, :, None, None]


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # Bruce Lindbloom's calculator, sRGB, D65, rounded to four digits.
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((255, 0, 0), (53.2408, 80.0925, 67.2032)),
        ((0, 255, 0), (87.7347, -86.1827, 83.1793)),
        ((0, 0, 255), (32.2970, 79.1875, -107.8602)),
    ],
)
def test_lab_reference_values(rgb: tuple, lab: tuple) -> None:
    np.testing.assert_allclose(ffs.rgb_to_lab(_pixel(rgb))[0, :, 0, 0], lab, atol=0.02)


def test_lab_lightness_agrees_with_a_colour_management_system() -> None:
    """Little CMS works in 8 bits under D50: neutral greys have the same L* there."""
    greys = torch.arange(0, 256, 15, dtype=torch.uint8)
    image = Image.fromarray(greys.view(1, -1, 1).expand(1, -1, 3).numpy())
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    oracle = np.asarray(ImageCms.applyTransform(image, transform))[0, :, 0] / 255 * 100
    ours = ffs.rgb_to_lab(ffs.from_uint8(greys).view(1, 1, 1, -1).expand(1, 3, 1, -1))[0, 0, 0]
    np.testing.assert_allclose(ours, oracle, atol=0.5)


@given(st.floats(0, 100), st.floats(1, 60))
def test_ita_is_the_published_angle(lightness: float, b: float) -> None:
    angle = float(ffs.ita(torch.tensor(lightness), torch.tensor(b)))
    assert angle == pytest.approx(math.degrees(math.atan((lightness - 50) / b)), abs=1e-3)


def test_ita_keeps_the_order_of_lightness_under_blue_light() -> None:
    lightness = torch.linspace(0, 100, 21)
    for b in (-20.0, 0.0, 0.5):
        assert bool((ffs.ita(lightness, torch.full_like(lightness, b)).diff() > 0).all())


def test_bands() -> None:
    angles = torch.tensor([-60.0, 0.0, 20.0, 35.0, 50.0, 70.0])
    assert ffs.ita_band(angles).tolist() == list(range(len(ITA_BANDS)))


def test_uint8_round_trip() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(ffs.to_uint8(ffs.from_uint8(levels)), levels)
    assert ffs.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    with pytest.raises(ShapeError, match="range"):
        ffs.from_uint8(torch.zeros(3))
    with pytest.raises(ShapeError, match="not RGB"):
        ffs.rgb_to_lab(torch.zeros(1, 1, 4, 4))


def test_saved_images_read_back(tmp_path) -> None:
    images = torch.rand(2, 3, 5, 7) * 2 - 1
    paths = ffs.save_images(images, tmp_path, ["a/0", "a/1"])
    back = torch.from_numpy(np.asarray(Image.open(paths[1])).copy()).permute(2, 0, 1)
    assert torch.equal(back, ffs.to_uint8(images[1]))
    with pytest.raises(ShapeError, match="one name per image"):
        ffs.save_images(images, tmp_path, ["only one"])
    with pytest.raises(DataError, match="names repeat"):
        ffs.save_images(images, tmp_path, ["a", "a"])
    with pytest.raises(DataError, match="out of the folder"):
        ffs.save_images(images, tmp_path, ["../a", "b"])
    with pytest.raises(DataError, match="not in"):
        ffs.save_images(127 * (images + 1), tmp_path, ["a", "b"])
    with pytest.raises(ShapeError, match="floats"):
        ffs.save_images(ffs.to_uint8(images), tmp_path, ["a", "b"])
    with pytest.raises(ShapeError, match="integers already"):
        ffs.to_uint8(ffs.to_uint8(images))
