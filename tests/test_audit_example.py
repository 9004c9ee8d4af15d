"""examples/audit_discriminator.py runs end to end, at a size where its figures mean nothing."""

from __future__ import annotations

import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from test_examples import _load

import fairface_synth as ffs
from fairface_synth.models.checkpoints import save_discriminator
from fairface_synth.models.stylegan2 import StyleGAN2Discriminator
from fairface_synth.tables import read_table, write_table


def _run(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["audit_discriminator.py", *map(str, arguments)])
    _load("audit_discriminator").main()


@pytest.mark.slow
def test_the_toy_is_trained_audited_and_kept(tmp_path, monkeypatch, capsys) -> None:
    _run(monkeypatch, "--steps", 4, "--natural", 160, "--sweep-images", 12, "--no-bayes", "--out", tmp_path)
    for name in ("report.md", "audit.json", "scores.csv", "sweeps.csv", "sweep_luminance_raw.png", "score_ridges.png"):
        assert (tmp_path / name).stat().st_size > 0
    table = read_table(tmp_path / "scores.csv")
    assert len(table["score_shuffled"]) == 160
    assert set(table["skin_tone"]) <= {"light", "medium", "dark", "unknown"}
    printed = capsys.readouterr().out
    for promised in ("AUC", "untrained, seed 4", "Correlation beside sweep", "cannot show"):
        assert promised in printed
    assert set(read_table(tmp_path / "sweeps.csv")["transform"]) == {"luminance", "red_gain", "brightness"}

    trained = (tmp_path / "discriminator.safetensors").stat().st_mtime_ns
    args = Namespace(out=tmp_path, steps=4, natural=20, regions=False)
    again = _load("audit_discriminator").toy(args)[1]
    assert "delete it to train again" in capsys.readouterr().out
    assert (tmp_path / "discriminator.safetensors").stat().st_mtime_ns == trained
    np.testing.assert_allclose(again["score"], table["score"][:20], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_folder_and_a_checkpoint(tmp_path, monkeypatch, capsys, world) -> None:
    images = world.generator.synthesize(world.generator.map(ffs.draw_latents(world.generator, 0, 0, 40)))
    names = [f"{i}" for i in range(40)]
    ffs.save_images(images, tmp_path / "faces", names)
    labels = {"path": [f"{n}.png" for n in names], "gender": ["female", "male"] * 20}
    write_table(labels, tmp_path / "labels.csv")
    config = {"c_dim": 0, "img_resolution": 32, "img_channels": 3, "channel_base": 128}
    save_discriminator(StyleGAN2Discriminator(config), tmp_path / "d.safetensors")
    out = tmp_path / "out"
    where = ["--images", tmp_path / "faces", "--layout", "csv", "--labels", tmp_path / "labels.csv", "--regions"]
    _run(
        monkeypatch, "--checkpoint", tmp_path / "d.safetensors", *where, "--no-bayes", "--sweep-images", 8, "--out", out
    )
    table = read_table(out / "scores.csv")
    assert sorted(table["path"]) == sorted(labels["path"])
    assert "cheeks/luminance" in table
    assert (out / "sweep_red_gain.png").stat().st_size > 0
    text = capsys.readouterr().out
    assert "| female" in text
    assert "toy" not in text

    # The table alone is enough for the statistics.
    _run(monkeypatch, "--table", out / "scores.csv", "--no-bayes", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "report.md").stat().st_size > 0
    assert not (tmp_path / "again" / "sweeps.csv").exists()


def test_what_to_audit_must_be_clear(monkeypatch, capsys) -> None:
    for arguments in (
        ["--checkpoint", "d.pkl"],
        ["--images", "x"],
        ["--table", "t.csv", "--checkpoint", "d", "--images", "x"],
    ):
        with pytest.raises(SystemExit):
            _run(monkeypatch, *arguments)
        assert "together" in capsys.readouterr().err


def _fails(monkeypatch, *arguments: object) -> str:
    """The message with which the command ends; a text as exit code is printed, and the code is 1."""
    with pytest.raises(SystemExit) as stop:
        _run(monkeypatch, *arguments)
    assert isinstance(stop.value.code, str)
    return stop.value.code


def test_errors_are_one_message_and_leave_no_folder(tmp_path, monkeypatch) -> None:
    out, table = tmp_path / "out", tmp_path / "t.csv"
    assert "no such table" in _fails(monkeypatch, "--table", tmp_path / "none.csv", "--out", out)
    write_table({"x": [1.0, 2, 3]}, table)
    assert "no scores" in _fails(monkeypatch, "--table", table, "--out", out)
    nowhere = ["--checkpoint", tmp_path / "d.pkl", "--images", tmp_path / "faces"]
    assert "d.pkl" in _fails(monkeypatch, *nowhere, "--out", out)
    assert "skin_tone" in _fails(monkeypatch, "--factors", "race", "--out", out)
    assert "score_raw" in _fails(monkeypatch, "--scores", "logit", "--out", out)
    assert not out.exists()


def test_own_column_names(tmp_path, monkeypatch, capsys) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.uniform(20, 235, (60, 3))
    table = dict(zip("RGB", rgb.T, strict=True)) | {"lum": rgb.mean(1) / 255, "logit": rng.normal(size=60)}
    table |= {"sort": np.array(["a", "b"])[np.arange(60) % 2]}
    write_table(table, tmp_path / "t.csv")
    own = ["--scores", "logit", "--colour", "R", "G", "B", "--luminance", "lum", "--factors", "sort"]
    _run(monkeypatch, "--table", tmp_path / "t.csv", *own, "--no-bayes", "--out", tmp_path / "out")
    text = capsys.readouterr().out
    for line in ("Scores: logit.", "Colour: R, G, B. Luminance: lum.", "Factors: sort (a, b)."):
        assert line in text


def test_columns_of_a_csv_are_named_and_factors_checked_before_scoring(tmp_path, monkeypatch, capsys) -> None:
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ffs.save_images(images, tmp_path / "faces", [f"{i}" for i in range(6)])
    write_table({"bild": [f"{i}.png" for i in range(6)], "sort": ["a", "b"] * 3}, tmp_path / "labels.csv")
    config = {"c_dim": 0, "img_resolution": 8, "img_channels": 3, "channel_base": 64}
    save_discriminator(StyleGAN2Discriminator(config), tmp_path / "d.safetensors")
    where = ["--checkpoint", tmp_path / "d.safetensors", "--images", tmp_path / "faces", "--labels"]
    where += [tmp_path / "labels.csv", "--no-bayes", "--sweep-images", 0, "--out", tmp_path / "out"]
    named = [*where, "--layout", "csv", "--columns", "path=bild", "kind=sort", "--factors"]
    message = _fails(monkeypatch, *named, "race")
    assert "--factors names no such column" in message
    assert "kind" in message
    assert not (tmp_path / "out").exists()
    _run(monkeypatch, *named, "kind")
    assert list(read_table(tmp_path / "out" / "scores.csv")["kind"]) == ["a", "b"] * 3
    for wrong in ([*where, "--columns", "path=bild"], [*where, "--layout", "csv", "--columns", "bild"]):
        with pytest.raises(SystemExit):
            _run(monkeypatch, *wrong)
        assert "--columns" in capsys.readouterr().err
