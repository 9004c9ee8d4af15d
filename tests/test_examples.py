"""The example scripts: the demo runs end to end, and the parts of the training script compute what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import fairface_synth as ffs

EXAMPLES = Path(__file__).parents[1] / "examples"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_demo_writes_everything_it_promises(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "demo"
    sizes = ["--latents", "3000", "--faces", "3", "--natural", "200", "--aimed", "10"]
    monkeypatch.setattr(sys, "argv", ["demo.py", "--out", str(out), *sizes])
    _load("demo").main()
    for name in ("report.md", "balanced.png", "natural.png", "shares.png", "costs.png", "faces/latents.safetensors"):
        assert (out / name).stat().st_size > 0
    faces = sorted(p.relative_to(out / "faces").parent.name for p in (out / "faces").rglob("*.png"))
    assert len(faces) == 18
    assert {faces.count(g) for g in faces} == {3}
    report = (out / "report.md").read_text()
    assert "{" not in report, "a placeholder was left unfilled"
    assert str(out) in capsys.readouterr().out


@pytest.mark.slow
def test_the_rare_groups_example_runs(tmp_path, monkeypatch, capsys) -> None:
    sizes = ["--latents", "2500", "--faces", "6"]
    monkeypatch.setattr(sys, "argv", ["rare_groups.py", "--out", str(tmp_path), *sizes])
    _load("rare_groups")
    for name in ("methods.png", "pairs.png", "evolution.png", "variations.png"):
        assert (tmp_path / name).stat().st_size > 0
    printed = capsys.readouterr().out
    for method in ("reject", "screen", "gaussian", "evolve"):
        assert f"| {method}" in printed


def test_latent_class_recovers_a_simulated_truth() -> None:
    training = _load("train_demo_models")
    rng = torch.Generator().manual_seed(0)
    female = torch.rand(20_000, generator=rng) < 0.35
    shared = torch.randn(20_000, generator=rng)
    noise = torch.randn(20_000, 3, generator=rng)
    a = torch.stack((shared + noise[:, 0], shared + noise[:, 1]), 1) + 3.0 * female[:, None]
    x = torch.cat((a, (noise[:, 2] + 2.5 * female)[:, None]), dim=1).double()
    model = training.LatentClass.fit(x)
    assert model.share == pytest.approx(0.35, abs=0.02)
    p = model.posterior(x)
    assert float(p[female].mean()) > 0.9
    for low in (0.2, 0.4, 0.6):  # calibrated: of those given p, a share p are
        band = (p >= low) & (p < low + 0.2)
        assert float(female[band].double().mean()) == pytest.approx(float(p[band].mean()), abs=0.06)


def test_measured_skin_ignores_everything_but_skin() -> None:
    training = _load("train_demo_models")
    skin = torch.tensor([200, 150, 120], dtype=torch.uint8)
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    image[0, :, 12:56, 12:52] = skin[:, None, None]
    image[0, :, 24:28, 20:44] = 255  # eyes
    angle = torch.linspace(torch.pi, 0, 17)
    jaw = torch.stack((32 + 16 * angle.cos(), 30 + 22 * angle.sin()), dim=1)
    brow = torch.stack((torch.linspace(17, 47, 10), torch.full((10,), 20.0)), dim=1)
    nose = torch.full((9, 2), 32.0)
    eyes = [
        torch.tensor([[x - 6, 23.0], [x, 22], [x + 6, 23], [x + 6, 29], [x, 30], [x - 6, 29]]) for x in (25.0, 39.0)
    ]
    mouth = torch.full((20, 2), 45.0)
    points = torch.cat((jaw, brow, nose, *eyes, mouth))[None] / 64
    lab = ffs.rgb_to_lab(ffs.from_uint8(skin)[:, None, None])[:, 0, 0]
    expected = float(ffs.ita(lab[0], lab[2]))
    assert float(training.polygon_ita(ffs.from_uint8(image), points)[0]) == pytest.approx(expected, abs=0.1)
    five = torch.tensor([[[22.0, 26], [42, 26], [32, 34], [24, 44], [40, 44]]])
    assert float(training.cheek_ita(ffs.from_uint8(image), five)[0]) == pytest.approx(expected, abs=0.1)


def test_tone_targets_are_ordered_as_the_attribute_is() -> None:
    training = _load("train_demo_models")
    target = training.tone_target(torch.tensor([60.0, 0.0, -60.0]))
    values = ffs.models.demo.ATTRIBUTES["skin_tone"]
    assert [values[int(i)] for i in target.argmax(1)] == ["light", "medium", "dark"]
