"""examples/compare_sets.py at tiny size: on tables, on folders of images, and on the bundled world."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from fairface_synth.images import save_images
from fairface_synth.tables import read_table, write_table

FEW = ("--replicates", "50")
SCRIPT = Path(__file__).parents[1] / "examples" / "compare_sets.py"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds a folder
    spec = importlib.util.spec_from_file_location("compare_sets", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "compare_sets", module)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch, out: Path, *arguments: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["compare_sets.py", "--out", str(out), *arguments])
    script.main()
    for name in ("report.md", "kl.csv", "kl_attributes.png", "kl_matrix.png"):
        assert (out / name).stat().st_size > 0
    assert "{" not in (out / "report.md").read_text().replace("{name", ""), "a placeholder was left unfilled"
    return json.loads((out / "results.json").read_text())


def table(path: Path, rates: dict[str, float], n: int, seed: int) -> str:
    """n rows of {−1, 1} labels, ten of each identity."""
    rng = np.random.default_rng(seed)
    labels = {name: 2 * (rng.random(n) < rate).astype(int) - 1 for name, rate in rates.items()}
    return str(write_table({"identity": [f"p{i // 10}" for i in range(n)], **labels}, path))


def test_tables_and_an_answer_that_follows_from_them(script, monkeypatch, tmp_path, capsys) -> None:
    """P has a tenth of bald faces; "narrow" has hardly any, so that P explains it better than the reverse."""
    real = table(tmp_path / "real.csv", {"Bald": 0.1, "Smiling": 0.5}, 2000, 0)
    same = table(tmp_path / "same.csv", {"Bald": 0.1, "Smiling": 0.5}, 2000, 1)
    narrow = table(tmp_path / "narrow.csv", {"Bald": 0.002, "Smiling": 0.5}, 2000, 2)
    wide = table(tmp_path / "wide.parquet", {"Bald": 0.5, "Smiling": 0.5}, 2000, 3)
    results = run(script, monkeypatch, tmp_path / "out", f"real={real}", f"same={same}", narrow, f"wide={wide}", *FEW)
    printed = capsys.readouterr().out
    lines = {line.split("**")[1]: line for line in printed.splitlines() if line.startswith("- **")}
    assert lines["narrow"].count("explained by real better than it explains real (rates") == 1
    assert "not told apart from equal distributions (rates" in lines["same"]
    assert "explains real better than real explains it (rates" in lines["wide"]
    bald = results["tables"]["labels"]["narrow"]["attributes"]["Bald"]
    expected = 0.1 * np.log(0.1 / 0.002) + 0.9 * np.log(0.9 / 0.998)
    assert bald["kl_pq"] == pytest.approx(expected, rel=0.4)
    rows = read_table(tmp_path / "out" / "kl.csv")
    assert len(rows["kl_pq"]) == 3 * (2 + 2 + 1)
    assert results["consistency"]["real"]["Smiling"]["used"] == 200


def test_folders_of_images_are_annotated_once(script, monkeypatch, tmp_path, world, capsys) -> None:
    with torch.no_grad():
        images = world.generator.synthesize(world.generator.map(torch.randn(48, world.generator.z_dim)))
    sets = []
    for name, part in zip(("real", "synth"), images.split(24), strict=True):
        save_images(part, tmp_path / name, [f"person {i // 4}/{i}" for i in range(24)])
        sets.append(f"{name}={tmp_path / name}")
    out = tmp_path / "out"
    results = run(script, monkeypatch, out, *sets, "--layout", "identities", *FEW)
    assert set(results["consistency"]) == {"real", "synth"}
    assert min(row["used"] for row in results["consistency"]["real"].values()) == 6
    assert "bundled generator's faces alone" in capsys.readouterr().err
    again = [f"{name}={out / 'annotations' / name}" for name in ("real", "synth")]
    second = run(script, monkeypatch, tmp_path / "again", *again, *FEW)
    assert second["tables"]["labels"]["synth"]["attributes"] == results["tables"]["labels"]["synth"]["attributes"]


def test_one_set_is_refused(script, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_sets.py", "--out", str(tmp_path), "real=x.csv"])
    with pytest.raises(SystemExit, match="a comparison needs sets"):
        script.main()


@pytest.mark.slow
def test_the_bundled_world_runs(script, monkeypatch, tmp_path) -> None:
    results = run(script, monkeypatch, tmp_path, "--faces", "60", "--latents", "1500", *FEW)
    assert "natural again" in results["tables"]["joint"]
    varied = results["consistency"]["Gaussians, 6 each"]
    assert min(row["used"] for row in varied.values()) > 5
    assert all(row["used"] == 0 for row in results["consistency"]["natural"].values())
