"""compare_runs against fairness, closed forms and simulation; examples/train_recognition.py at tiny size."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fairface_synth as ffs
from fairface_synth.errors import DataError, GroupError
from fairface_synth.recognition import _over_seeds, compare_runs
from fairface_synth.verification import Verification, verify

SCRIPT = Path(__file__).parents[1] / "examples" / "train_recognition.py"
NAMES = ["a", "b"]


def judged(seed: int, people: int = 24, noise: float = 1.5, **options) -> Verification:
    """A made-up network's verification of `people` people, four images each; the people are the same for all seeds."""
    rng = torch.Generator().manual_seed(seed)
    centre = torch.randn(people, 16, generator=torch.Generator().manual_seed(99))
    x = centre.repeat_interleave(4, 0) + noise * torch.randn(4 * people, 16, generator=rng)
    identity = torch.arange(4 * people) // 4
    settings = {"groups": NAMES, "group_ids": identity % 2, "fmr": (0.02,), "resamples": 0} | options
    return verify(F.normalize(x, dim=1), identities=identity, **settings)


# --- compare_runs -----------------------------------------------------------------------------------------------------


def test_values_are_the_means_of_what_verify_and_fairness_say() -> None:
    runs = [judged(s) for s in range(3)]
    figures = compare_runs({"x": runs}, fmr=(0.02,), alpha=0.3, resamples=0).figures["x"]
    fair = [run.fairness(at_fmr=0.02, alpha=0.3, resamples=0) for run in runs]
    expected = {
        "accuracy": [f.overall["accuracy"].value for f in fair],
        "accuracy, b": [f.by_group["accuracy"]["b"].value for f in fair],
        "STD of accuracy": [f.std.value for f in fair],
        "SER": [f.ser.value for f in fair],
        "trade-off": [f.trade_off.value for f in fair],
        "TAR@0.02": [run.overall.at(0.02).tar.value for run in runs],
        "TAR@0.02, a": [run.by_group["a"].at(0.02).tar.value for run in runs],
        "FMR@0.02, b": [run.by_group["b"].at(0.02).fmr.value for run in runs],
        "FDR@0.02": [f.fdr.value for f in fair],
        "IR@0.02": [f.ir.value for f in fair],
        "GARBE@0.02": [f.garbe.value for f in fair],
    }
    for name, each in expected.items():
        assert figures[name].value == pytest.approx(np.mean(each), abs=1e-12), name
        assert np.ptp(each) > 0, "a figure that is the same for all seeds tests nothing"


def test_an_interval_of_one_run_is_the_normal_one_of_verify() -> None:
    """AUC aside, `verify` has other intervals (Wilson); their widths agree where rates are not extreme."""
    wide = judged(0, people=60, resamples=400)
    mine = compare_runs({"x": [wide]}, fmr=(0.02,), resamples=400).figures["x"]["TAR@0.02"]
    theirs = wide.overall.at(0.02).tar
    assert mine.high - mine.low == pytest.approx(theirs.high - theirs.low, rel=0.15)


def simulated(rng: np.random.Generator, people: int, seeds: int, of_seeds: float) -> tuple[Tensor, Tensor]:
    """Values [S] and resamples [S, B] of a mean over people plus an effect of the seed; the truth is 0."""
    x, effect = rng.normal(size=people), of_seeds * rng.normal(size=seeds)
    drawn = rng.choice(x, size=(200, people)).mean(1)
    return torch.tensor(x.mean() + effect), torch.tensor(drawn + effect[:, None])


@pytest.mark.parametrize("of_seeds", [0.0, 0.1, 0.5])
def test_intervals_hold_the_truth(of_seeds: float) -> None:
    rng = np.random.default_rng(0)
    both, people_alone, runs = 0, 0, 400
    for _ in range(runs):
        value, drawn = simulated(rng, 40, 3, of_seeds)
        m = _over_seeds(value, drawn, 40, "", "")
        low, high = np.quantile(drawn.mean(0), (0.025, 0.975))
        both += m.low <= 0 <= m.high
        people_alone += low <= 0 <= high
    assert 0.92 <= both / runs <= 0.995
    if of_seeds == 0.5:
        assert people_alone / runs < 0.75


def test_the_interval_by_hand() -> None:
    value = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)  # variance 0.01: of the mean 0.01 / 3
    drawn = torch.tensor([[-1.0, 1.0]] * 3, dtype=torch.float64) * math.sqrt(0.01 / 6)  # variance 2 · 0.01 / 6
    m = _over_seeds(value, drawn, 11, "", "")
    # SE² = 0.02 / 3; freedom (2v)² / (v²/2 + v²/10) = 4 / 0.6 = 6.667; t quantile 2.3882 (scipy, interpolated by R: qt)
    from scipy.stats import t

    assert m.value == pytest.approx(0.2)
    assert m.high - m.value == pytest.approx(t.ppf(0.975, 4 / 0.6) * math.sqrt(0.02 / 3))
    assert m.value - m.low == pytest.approx(m.high - m.value)


def test_equal_runs_do_not_differ_and_pairing_narrows() -> None:
    runs = [judged(s) for s in range(2)]
    same = compare_runs({"x": runs, "y": runs}, fmr=(0.02,), resamples=50)
    assert all(m.value == 0 == m.low == m.high for m in same.differences["y"].values())
    better = [judged(s, noise=1.35) for s in range(2)]
    result = compare_runs({"x": runs, "y": better}, fmr=(0.02,), resamples=200)
    gap, own = result.differences["y"]["TAR@0.02"], result.figures["y"]["TAR@0.02"]
    assert gap.value == pytest.approx(own.value - result.figures["x"]["TAR@0.02"].value)
    assert gap.value > 0
    assert "y − x" in str(result)
    turned = compare_runs({"x": runs, "y": better}, "y", fmr=(0.02,), resamples=200).differences["x"]["TAR@0.02"]
    assert (turned.value, turned.low) == pytest.approx((-gap.value, -gap.high))


def test_results_are_plain_numbers_and_frames() -> None:
    result = compare_runs({"x": [judged(0)], "y": [judged(1)]}, fmr=(0.02,), resamples=20)
    again = json.loads(json.dumps(result.to_dict()))
    assert again["figures"]["x"]["accuracy"]["value"] == result.figures["x"]["accuracy"].value
    assert again["per_seed"]["y"]["SER"] == [result.figures["y"]["SER"].value]
    frame = result.to_frame().set_index(["regime", "figure"])
    assert frame.loc[("y", "SER"), "difference"] == result.differences["y"]["SER"].value
    assert math.isnan(frame.loc[("x", "SER"), "difference"])


def test_what_cannot_be_said_is_not() -> None:
    few = compare_runs({"x": [judged(0, people=12)]}, fmr=(0.05,), resamples=20)
    assert math.isnan(few.figures["x"]["accuracy"].low)
    assert "too few" in few.figures["x"]["accuracy"].reason
    fine = compare_runs({"x": [judged(0)]}, fmr=(1e-4,), resamples=20)
    assert "rule of 30" in fine.figures["x"]["TAR@0.0001"].reason
    assert math.isnan(fine.figures["x"]["TAR@0.0001"].value)
    assert 0.5 < fine.figures["x"]["accuracy"].value < 1
    assert "rule of 30" in str(fine)


@pytest.mark.parametrize(
    ("runs", "options", "error", "says"),
    [
        ({}, {}, DataError, "no runs"),
        ({"x": []}, {}, DataError, "no runs"),
        ({"x": [judged(0)], "y": [judged(0), judged(1)]}, {}, DataError, "unequal numbers of seeds"),
        ({"x": [judged(0)], "y": [judged(0, people=22)]}, {}, DataError, "not tested on the same"),
        ({"x": [torch.zeros(3)]}, {}, DataError, "what verify gives"),
        ({"x": [judged(0)]}, {"baseline": "z"}, DataError, "no such baseline"),
        ({"x": [judged(0)]}, {"fmr": (0.0,)}, DataError, "out of range"),
        ({"x": [judged(0)]}, {"resamples": 1}, DataError, "out of range"),
        ({"x": [judged(0, groups=None, group_ids=None)]}, {}, GroupError, "groups are compared"),
        ({"x": [judged(0, groups=["a", "b", "c"])]}, {}, GroupError, r"got: \['c'\]|c"),
        (
            {"x": [verify(scores=torch.rand(200), mated=torch.arange(200) < 50, groups=NAMES, resamples=0,
                          group_ids=torch.arange(200) % 2)]},
            {}, DataError, "identities are the sample",
        ),
    ],
)  # fmt: skip
def test_bad_input_speaks_up(runs: dict, options: dict, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        compare_runs(runs, **options)


# --- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds a folder
    spec = importlib.util.spec_from_file_location("train_recognition", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "train_recognition", module)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch, out: Path, *arguments: str) -> dict:
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.setattr(sys, "argv", ["train_recognition.py", "--out", str(out), "--resamples", "20", *arguments])
    script.main()
    assert "{" not in (out / "report.md").read_text(), "a placeholder was left unfilled"
    assert (out / "recognition_groups.png").stat().st_size > 0
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_the_bundled_world_runs(script, monkeypatch, tmp_path) -> None:
    results = run(script, monkeypatch, tmp_path, "--quick")
    assert set(results["figures"]) == set(script.REGIMES)
    assert results["identities"] == 30
    balanced = results["training_sets"]["balanced"][0]
    assert [balanced[tone]["count"] for tone in ("light", "medium", "dark")] == [6, 6, 6]
    assert all((tmp_path / f"det_{regime}.png").exists() for regime in script.REGIMES)
    assert "people of each group" in (tmp_path / "report.md").read_text()


@pytest.fixture
def folder(tmp_path, world) -> Path:
    """24 people of the bundled generator, three images each, as a folder of photographs would be."""
    z = ffs.draw_latents(world.generator, 5, 0, 24).repeat_interleave(3, 0)
    z = z + 0.2 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    images = world.generator.synthesize(world.generator.map(z))
    ffs.save_images(images, tmp_path / "photos", [f"person {i // 3:02d}/{i % 3}" for i in range(len(images))])
    return tmp_path / "photos"


def test_a_folder_of_images_runs(script, monkeypatch, tmp_path, folder) -> None:
    options = ("--quick", "--attribute", "gender", "--test-share", "0.5")
    results = run(script, monkeypatch, tmp_path / "out", "--images", str(folder), *options)
    assert set(results["figures"]) == {"natural", "regularised"}
    assert set(results["groups"]) == {"female", "male"}
    assert "12 of 24 people" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.slow
def test_a_checkpoint_is_fine_tuned_with_another_generator(script, monkeypatch, tmp_path, folder, world) -> None:
    from facenet_pytorch import InceptionResnetV1

    torch.manual_seed(0)
    torch.save(InceptionResnetV1().state_dict(), tmp_path / "weights.pt")
    ffs.save_generator(world.generator, tmp_path / "generator.safetensors")
    models = ("--embedder", str(tmp_path / "weights.pt"), "--generator", str(tmp_path / "generator.safetensors"))
    options = ("--quick", "--attribute", "gender", "--test-share", "0.5", "--epochs", "1")
    steps = ("--batch", "12", "--synthetic", "4", "--rate", "1e-4")
    results = run(script, monkeypatch, tmp_path / "out", "--images", str(folder), *models, *options, *steps)
    assert results["settings"]["size"] == 160
    assert 0.3 < results["figures"]["natural"]["accuracy"]["value"] <= 1


def test_a_label_of_the_folder_makes_the_groups(script, tmp_path, folder, monkeypatch) -> None:
    race = {path: ("asian", "black")[int(path.parent.name[-2:]) % 2] for path in folder.rglob("*.png")}
    rows = [f"{path.relative_to(folder)},{path.parent.name},{value}" for path, value in race.items()]
    (folder / "labels.csv").write_text("\n".join(["path,identity,race", *rows]) + "\n")
    arguments = ["x", "--quick", "--images", str(folder / "labels.csv"), "--layout", "csv", "--test-share", "0.5"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--label", "race"])
    source = script.Folder(script.parse())
    assert set(source.groups.names) == {"asian", "black"}, "the other races of the vocabulary are not in the test"
    assert len(source.train_set.identity.unique()) == len(source.test_set.identity.unique()) == 12
    assert source.test_set.group_ids.unique().tolist() == [0, 1]
    monkeypatch.setattr(sys, "argv", [*arguments, "--label", "shoe size"])
    with pytest.raises(DataError, match="no such label"):
        script.Folder(script.parse())


class Recorder(nn.Module):
    """Counts the images it is shown."""

    dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, self.dim)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return F.normalize(self.layer(images.mean((2, 3))), dim=1)


class Batches(Iterator):
    """In place of a stream."""

    def __next__(self) -> ffs.SyntheticBatch:
        identity = torch.arange(4) // 2
        return ffs.SyntheticBatch(torch.rand(4, 3, 8, 8), identity, identity, torch.zeros(4, 1))

    def close(self) -> None:
        self.closed = True


def test_steps_and_images_are_the_same_with_a_stream(script, monkeypatch) -> None:
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.setattr(sys, "argv", ["x", "--batch", "12", "--synthetic", "4", "--epochs", "3"])
    args = script.parse()
    identity = torch.arange(40) // 4
    faces = script.Faces(torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8), identity, identity % 2)
    alone, beside, synthetic = Recorder(), Recorder(), Batches()
    script.train(alone, faces, None, args, 0, 2)
    script.train(beside, faces, synthetic, args, 0, 2)
    assert alone.seen == beside.seen == [12] * 10
    assert synthetic.closed


def test_every_row_comes_once_before_any_comes_again(script) -> None:
    rng = np.random.default_rng(0)
    for n, size in rng.integers(1, 30, (30, 2)).tolist():
        drawn = [rows for _, rows in zip(range(6), script.batches(n, size, n), strict=False)]
        assert all(len(rows) == size for rows in drawn)
        whole = torch.cat(drawn)[: 6 * size // n * n].view(-1, n)
        assert bool((whole.sort(1).values == torch.arange(n)).all())


def test_a_missing_extra_says_what_to_install(script, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(DataError, match=r"fairface_synth\[train\]"):
        script.margin_loss(3, 8)


def test_a_folder_cannot_be_balanced(script, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "argv", ["x", "--images", str(tmp_path), "--regimes", "balanced", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="a folder is as it is"):
        script.main()
