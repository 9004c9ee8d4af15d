"""examples/evaluate_recogniser.py at tiny size: the bundled world, folders, lists, and what does not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_examples import _load

import fairface_synth as ffs
from fairface_synth.tables import read_table, write_table

FEW = ("--fmr", "0.1", "0.05", "--resamples", "40")


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds a folder
    return _load("evaluate_recogniser")


def run(script: ModuleType, monkeypatch, out: Path, *arguments: object) -> dict:
    monkeypatch.setattr(sys, "argv", ["evaluate_recogniser.py", "--out", str(out), *map(str, arguments)])
    script.main()
    assert (out / "report.md").stat().st_size > 0
    return json.loads((out / "evaluation.json").read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def refused(script: ModuleType, monkeypatch, out: Path, *arguments: object) -> str:
    monkeypatch.setattr(sys, "argv", ["evaluate_recogniser.py", "--out", str(out), *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert isinstance(stopped.value.code, str)  # python prints it and exits with 1
    assert not out.exists()
    return stopped.value.code


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory) -> Path:
    """48 people of two genders, three images each: a folder per person and labels.csv."""
    root = tmp_path_factory.mktemp("set")
    z = ffs.draw_latents(world.generator, 0, 0, 48)
    edits = ffs.vary(z, ffs.Axis.spread(world.directions["yaw"], 3, 1.0)).latents
    images = world.generator.synthesize(world.generator.map(edits.flatten(0, 1)))
    names = [f"p{i // 3:02d}/{i % 3}" for i in range(3 * 48)]
    ffs.save_images(images, root, names)
    write_table(
        {"path": [f"{n}.png" for n in names], "gender": ["female" if i < 72 else "male" for i in range(144)]},
        root / "labels.csv",
    )
    return root


# --- the bundled world ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_world_is_made_evaluated_kept_and_opened_again(script, monkeypatch, tmp_path, capsys) -> None:
    sizes = ("--identities-per-group", 4, "--variations", 3, "--latents", 1500, "--attributes", "gender", *FEW)
    kept = tmp_path / "set"
    made = run(script, monkeypatch, tmp_path / "made", *sizes, "--keep", kept)
    printed = capsys.readouterr().out
    for promised in ("judge agrees", "demo+16px − demo", "GARBE", "trade-off", "By chance", "TAR @ FMR 0.05"):
        assert promised in printed
    assert list(made["fairness"]) == list(made["error_rates"]) == ["demo", "demo+16px"]
    assert any("No recogniser declared them different" in note for note in made["notes"])

    labels = read_table(kept / "labels.csv")
    counts = {name: list(labels["gender"]).count(name) for name in ("female", "male")}
    assert all(12 <= count <= 16 for count in counts.values())  # the detector may drop some
    again = run(script, monkeypatch, tmp_path / "opened", "--set", kept, "--attributes", "gender", *FEW)
    for name in ("female", "male"):
        first, second = (found["error_rates"]["demo"][name] for found in (made, again))
        assert first["identities"] == second["identities"] == 4
        assert first["mated"] == second["mated"]
        assert first["auc"]["value"] == pytest.approx(second["auc"]["value"], abs=0.02)  # 8 bits
    assert "not empty" in refused(script, monkeypatch, tmp_path / "x", *sizes, "--keep", kept)


@pytest.mark.slow
def test_a_recogniser_that_chose_the_identities_is_called_out(script, monkeypatch, tmp_path) -> None:
    sizes = ("--identities-per-group", 3, "--variations", 2, "--latents", 1500, "--attributes", "gender", *FEW)
    found = run(script, monkeypatch, tmp_path / "out", *sizes, "--unique-by", "demo", "--embedder", "demo+grey")
    assert any("demo+grey tested on identities that demo chose" in note for note in found["notes"])
    assert not found["differences"]


# --- sets on disk -----------------------------------------------------------------------------------------------------


def test_a_folder_gives_what_verify_gives(script, monkeypatch, tmp_path, world, folder) -> None:
    found = run(script, monkeypatch, tmp_path / "out", "--set", folder, *FEW, "--embedder", "demo", "demo+8px")
    faces = ffs.read_faces("identities", folder)
    vectors = ffs.embed(world.embedder, faces.images(), progress=False)
    who, group = torch.arange(144) // 3, (torch.arange(144) >= 72).long()
    groups = ffs.Groups({"gender": ["female", "male"]})
    direct = ffs.verify(vectors, identities=who, groups=groups, group_ids=group, fmr=(0.1, 0.05), resamples=40)
    for name in ("overall", "female", "male"):
        mine, expected = found["error_rates"]["demo"][name], direct.to_dict()[name]
        assert mine["points"]["0.1"]["fnmr"] == pytest.approx(expected["points"]["0.1"]["fnmr"], abs=1e-6)
        assert mine["eer"] == pytest.approx(expected["eer"], abs=1e-6)
    at = direct.fairness(at_fmr=0.1, resamples=40)
    assert found["fairness"]["demo"]["measures"]["garbe"]["value"] == pytest.approx(at.garbe.value, abs=1e-6)
    difference = found["differences"]["demo+8px"]["fnmr overall"]
    rates = [f["overall"]["fnmr"]["value"] for f in found["fairness"].values()]
    assert difference["value"] == pytest.approx(rates[1] - rates[0])
    assert difference["low"] < difference["value"] < difference["high"]
    assert difference["low"] > 0, "8 × 8 pixels are worse, and the same people must be enough to show it"
    for file in ("groups.png", "det_demo.png", "scores_demo+8px.png", "dashboard_demo+8px.png"):
        assert (tmp_path / "out" / file).stat().st_size > 0


def test_labels_of_identities_are_those_of_their_faces(script, monkeypatch, tmp_path, folder) -> None:
    people = {"identity": [f"p{i:02d}" for i in range(48)], "gender": ["female"] * 24 + ["male"] * 24}
    table = write_table(people, tmp_path / "people.csv")
    options = ("--set", folder, *FEW, "--embedder", "demo")
    by_face = run(script, monkeypatch, tmp_path / "a", *options)
    by_person = run(script, monkeypatch, tmp_path / "b", *options, "--labels", table)
    assert by_face["error_rates"] == by_person["error_rates"]


def test_a_list_of_pairs(script, monkeypatch, tmp_path, folder, capsys) -> None:
    rows = [(f"p{i:02d}/0.png", f"p{i:02d}/{k}.png", 1) for i in range(48) for k in (1, 2)]
    rows += [
        (f"p{i:02d}/0.png", f"p{j:02d}/1.png", 0)
        for i in range(48)
        for j in range(i // 24 * 24, i // 24 * 24 + 24)
        if i != j
    ]
    listed = tmp_path / "pairs.csv"
    listed.write_text("path1,path2,same\n" + "".join(f"{a},{b},{same}\n" for a, b, same in rows))
    options = ("--pairs", "list", folder, "--list", listed, "--embedder", "demo", "demo+8px", *FEW)
    bare = run(script, monkeypatch, tmp_path / "bare", *options)
    assert "without labels" in capsys.readouterr().out
    assert not bare["fairness"]
    assert not bare["differences"]
    overall = bare["error_rates"]["demo"]["overall"]
    assert (overall["mated"], overall["non_mated"]) == (96, len(rows) - 96)

    labelled = run(script, monkeypatch, tmp_path / "labelled", *options, "--labels", folder / "labels.csv")
    assert labelled["error_rates"]["demo"]["female"]["mated"] == 48
    assert labelled["error_rates"]["demo"]["overall"]["eer"]["value"] == overall["eer"]["value"]
    assert "low" in labelled["fairness"]["demo"]["measures"]["fdr"]  # the labels' folders say who is who
    assert "fdr" in labelled["differences"]["demo+8px"]


# --- recognisers ------------------------------------------------------------------------------------------------------


def test_a_recogniser_of_ones_own(script, monkeypatch, tmp_path, folder) -> None:
    (tmp_path / "my_recogniser.py").write_text(
        "import torch\n"
        "class Mean:\n"
        "    dim = 3\n"
        "    def __call__(self, images):\n"
        "        return torch.nn.functional.normalize(images.mean((2, 3)) + 1e-3, dim=1)\n"
        "def load():\n"
        "    return Mean()\n"
    )
    monkeypatch.chdir(tmp_path)
    found = run(script, monkeypatch, tmp_path / "out", "--set", folder, *FEW, "--embedder", "my_recogniser:load")
    images = ffs.read_faces("identities", folder).images()
    vectors = torch.nn.functional.normalize(images.mean((2, 3)) + 1e-3, dim=1)
    direct = ffs.verify(vectors, identities=torch.arange(144) // 3, fmr=(0.1,), resamples=0)
    auc = found["error_rates"]["my_recogniser:load"]["overall"]["auc"]["value"]
    assert auc == pytest.approx(direct.overall.auc.value, abs=1e-6)
    said = refused(script, monkeypatch, tmp_path / "x", "--set", folder, "--embedder", "my_recogniser:absent")
    assert "there is no absent in my_recogniser" in said


def test_handicaps_do_what_they_say(script, world, rng) -> None:
    images = world.generator.synthesize(world.generator.map(torch.randn(3, 100, generator=rng)))
    plain = script.load_recogniser("demo", "cpu")
    grey, small, flat = (script.load_recogniser(f"demo+{h}", "cpu") for h in ("grey", "16px", "32d"))
    same = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(grey(same), plain(same.contiguous()), atol=1e-4, rtol=0)
    assert not torch.allclose(grey(images), plain(images), atol=1e-2)
    blocks = torch.nn.functional.interpolate(images, size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(small(images), plain(blocks))
    assert flat(images).shape == (3, flat.dim) == (3, 32)
    torch.testing.assert_close(flat(images).norm(dim=1), torch.ones(3))
    full = script.load_recogniser("demo+256d", "cpu")(images)  # a rotation changes no cosine
    torch.testing.assert_close(full @ full.T, plain(images) @ plain(images).T, atol=1e-5, rtol=0)
    torch.testing.assert_close(script.load_recogniser("demo+16px+32d", "cpu")(images), flat(blocks))


# --- differences ------------------------------------------------------------------------------------------------------


def two_matchers(script: ModuleType, seed: int) -> dict:
    """60 people of two groups; the second matcher is noisier, for both alike. Differences of the second − the first."""
    rng = torch.Generator().manual_seed(seed)
    who = torch.arange(60).repeat_interleave(4)
    people, noise = torch.randn(60, 16, generator=rng)[who], torch.randn(240, 16, generator=rng)
    results = {}
    for name, scale in (("a", 0.7), ("b", 1.0)):
        vectors = torch.nn.functional.normalize(people + scale * noise, dim=1)
        results[name] = ffs.verify(
            vectors, identities=who, groups=["x", "y"], group_ids=who % 2, fmr=(0.05,), resamples=0
        )
    fair = {name: r.fairness(at_fmr=0.05, resamples=100) for name, r in results.items()}
    return script.paired(results, fair, 0.05, 100, 0)["b"]


@pytest.mark.slow
def test_differences_hold_the_truth(script) -> None:
    """Both matchers treat groups alike, so that all differences of measures are 0; but one makes more errors."""
    runs = [two_matchers(script, seed) for seed in range(25)]
    truth = sum(r["fnmr overall"].value for r in runs) / len(runs)
    assert all(r["fnmr overall"].low > 0 for r in runs)
    for key, true in {"fnmr overall": truth, "fdr": 0, "garbe": 0, "ser": 0, "std": 0}.items():
        held = sum(r[key].low <= true <= r[key].high for r in runs)
        assert held >= 21, (key, held)


def test_the_same_matcher_twice_differs_by_nothing(script) -> None:
    who = torch.arange(40).repeat_interleave(3)
    vectors = torch.nn.functional.normalize(torch.randn(120, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    result = ffs.verify(vectors, identities=who, groups=["x", "y"], group_ids=who % 2, fmr=(0.05,), resamples=0)
    fair = result.fairness(at_fmr=0.05, resamples=0)
    found = script.paired({"a": result, "b": result}, {"a": fair, "b": fair}, 0.05, 20, 0)["b"]
    assert {m.value for m in found.values()} == {0.0}
    assert all(m.low != m.low for m in found.values()), "no interval where no resample differs"


# --- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--embedder", "nobody"), "unknown recogniser"),
        (("--embedder", "demo+blur"), "unknown handicap"),
        (("--embedder", "demo+300d"), "fewer dimensions"),
        (("--embedder", "vggface2:absent.pt"), "absent.pt"),
        (("--embedder", "json:absent"), "there is no absent in json"),
        (("--embedder", "absent_module:load"), "No module named"),
        (("--set", "absent"), "no such folder"),
        (("--set", "absent", "--layout", "rfww"), "unknown layout"),
        (("--pairs", "list", "absent"), "no such folder"),
        (("--pairs", "lists", "."), "unknown layout"),
        (("--generator", "absent.pkl"), "needs more"),
        (("--generator", "absent.pkl", "--labeller", "l.pt", "--directions", "d.safetensors"), "absent.pkl"),
    ],
)
def test_what_is_not_there_is_named(script, monkeypatch, tmp_path, arguments, said) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(script, monkeypatch, tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"identity": ["p00", "p01"], "gender": ["female", "male"]}, "folders without labels"),
        ({"identity": ["p00", "p00"], "gender": ["female", "male"]}, "an identity is listed twice"),
        ({"path": ["p00/0.png", "p99/0.png"], "gender": ["female", "male"]}, "do not exist"),
        ({"path": ["p00/0.png", "p01/0.png"], "gender": ["female", "female"]}, "no groups to compare"),
        ({"path": ["p00/0.png", "p01/0.png"], "height": ["1", "2"]}, "no groups to compare"),
        ({"gender": ["female", "male"]}, "which column holds the files"),
    ],
)
def test_labels_that_do_not_fit(script, monkeypatch, tmp_path, folder, table, said) -> None:
    path = write_table(table, tmp_path / "labels.csv")
    assert said in refused(script, monkeypatch, tmp_path / "out", "--set", folder, "--labels", path)


def test_attributes_that_are_not_there(script, monkeypatch, tmp_path, folder) -> None:
    assert "no such column" in refused(script, monkeypatch, tmp_path / "out", "--set", folder, "--attributes", "race")


def test_too_few_faces_for_a_threshold_say_so(script, monkeypatch, tmp_path, folder) -> None:
    found = run(script, monkeypatch, tmp_path / "out", "--set", folder, "--fmr", "0.0001", "--embedder", "demo")
    assert found["error_rates"]["demo"]["overall"]["points"]["0.0001"]["fnmr"]["value"] is None
    assert found["fairness"]["demo"]["measures"]["fdr"]["value"] is None
    assert "rule of 30" in (tmp_path / "out" / "report.md").read_text()
