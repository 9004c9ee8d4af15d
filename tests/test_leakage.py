from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_embeddings import unit_rows
from torch import nn

from fairface_synth import (
    DataError,
    GroupError,
    Groups,
    ShapeError,
    Threshold,
    impostor_scores,
    leakage_report,
    plotting,
    threshold_at_fmr,
)


def _threshold(value: float, fmr: float) -> Threshold:
    return Threshold(value, fmr, fmr, fmr / 2, fmr * 2, 10**6, 10**5)


def test_a_leak_shows_against_the_control_and_none_does_not() -> None:
    training, fresh, control = unit_rows(500, 48, 1), unit_rows(400, 48, 2), unit_rows(800, 48, 3)
    threshold = threshold_at_fmr(impostor_scores(training), 1e-3)
    copies = nn.functional.normalize(training[:100] + 0.05 * unit_rows(100, 48, 4), dim=1)
    leaky = torch.cat((fresh[:300], copies))
    clean_report = leakage_report(fresh, training, threshold, control=control)
    leaky_report = leakage_report(leaky, training, [threshold], control=control, pairs=7)
    chance = 1 - (1 - threshold.reached) ** 500
    assert float(clean_report.by_chance) == pytest.approx(chance, rel=1e-9)
    assert float(clean_report.shares) == pytest.approx(chance, abs=0.08)  # independent faces here
    _, low, high = (float(e) for e in clean_report.excess)  # type: ignore[union-attr]
    assert low < 0 < high
    difference, low, high = (float(e) for e in leaky_report.excess)  # type: ignore[union-attr]
    assert 0 < low < difference < high
    assert difference == pytest.approx(0.25 * (1 - chance), abs=0.08)
    assert leaky_report.nearest.indices[300:].tolist() == list(range(100))
    assert leaky_report.pairs.shape == (7, 2)
    assert bool((leaky_report.pairs[:, 0] == leaky_report.pairs[:, 1] + 300).all())
    assert "1 − (1 − FMR)^500" in str(leaky_report)
    assert "No control set" in str(leakage_report(fresh, training, threshold))


def test_leakage_by_group_counts_each_group() -> None:
    groups = Groups({"tone": ["light", "dark", "none"]})
    training, faces = unit_rows(50, 16, 1), unit_rows(90, 16, 2)
    ids = torch.arange(90) % 3 - 1  # −1, light, dark
    thresholds = [_threshold(0.6, 1e-3), _threshold(0.7, 1e-4)]
    report = leakage_report(faces, training, thresholds, group_ids=ids, groups=groups)
    best = (faces @ training.T).amax(1)
    assert report.names == ("all", "light", "dark", "none")
    assert report.totals.tolist() == [90, 30, 30, 0]
    for t, cut in enumerate((0.6, 0.7)):
        expected = [int((best >= cut).sum()), *(int((best[ids == g] >= cut).sum()) for g in range(3))]
        assert report.counts[:, t].tolist() == expected
    assert bool(report.shares[3].isnan().all())
    assert str(report).count("| none ") == 2


def test_leakage_refuses_what_it_cannot_report() -> None:
    x, groups = unit_rows(9, 8), Groups({"tone": ["light", "dark"]})
    with pytest.raises(DataError, match="known FMR"):
        leakage_report(x, x, [0.5])  # type: ignore[list-item]
    with pytest.raises(DataError, match="known FMR"):
        leakage_report(x, x, [])
    cut = _threshold(0.5, 1e-3)
    with pytest.raises(DataError, match="no faces"):
        leakage_report(x[:0], x, cut)
    with pytest.raises(DataError, match="no faces"):
        leakage_report(x, x, cut, control=x[:0])
    with pytest.raises(GroupError, match="go together"):
        leakage_report(x, x, cut, groups=groups)
    with pytest.raises(GroupError, match="unknown group ids"):
        leakage_report(x, x, cut, group_ids=torch.arange(9), groups=groups)
    with pytest.raises(ShapeError, match="one group id"):
        leakage_report(x, x, cut, group_ids=torch.zeros(8, dtype=torch.int64), groups=groups)


def test_pair_grid_draws_every_pair() -> None:
    images = torch.rand(7, 3, 8, 8) * 2 - 1
    figure = plotting.pair_grid(images, images.flip(0), torch.linspace(0, 1, 7), columns=3, title="closest")
    drawn = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in drawn] == [f"{i / 6:.3f}" for i in range(7)]
    assert drawn[0].images[0].get_array().shape == (8, 16, 3)
    with pytest.raises(DataError, match="two images each"):
        plotting.pair_grid(images, images[:3])
    with pytest.raises(DataError, match="one score"):
        plotting.pair_grid(images, images, torch.zeros(2))


def test_the_closest_pairs_of_a_report_in_one_call() -> None:
    reference, faces = unit_rows(30, 16, 1), unit_rows(20, 16, 2)
    faces[7] = reference[11]
    report = leakage_report(faces, reference, _threshold(0.9, 1e-3), pairs=4)
    images = torch.linspace(-1, 1, 20)[:, None, None, None].expand(-1, 3, 8, 8)
    originals = torch.linspace(-1, 1, 30)[:, None, None, None].expand(-1, 3, 16, 16)  # another resolution
    for files in (originals, list(originals)):
        figure = plotting.leakage_pairs(report, images, files, columns=2, title="closest")
        drawn = [ax for ax in figure.axes if ax.images]
        assert len(drawn) == 4
        for ax, (face, other) in zip(drawn, report.pairs.tolist(), strict=True):
            pixels = ax.images[0].get_array()
            assert pixels.shape == (8, 16, 3)
            np.testing.assert_array_equal(pixels[:, :8], round(255 * face / 19))
            np.testing.assert_array_equal(pixels[:, 8:], round(255 * other / 29))
            assert ax.get_title() == f"{float(report.nearest.similarity[face]):.3f}"
    assert report.pairs[0].tolist() == [7, 11]
    with pytest.raises(DataError, match="not the images of this report"):
        plotting.leakage_pairs(report, images[:9], originals)
    with pytest.raises(DataError, match="not the images of this report"):
        plotting.leakage_pairs(report, images, originals[:9])
    with pytest.raises(DataError, match="lists no pairs"):
        plotting.leakage_pairs(leakage_report(faces, reference, _threshold(0.9, 1e-3), pairs=0), images, originals)
