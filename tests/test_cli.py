"""The command line, on the bundled world with tiny settings."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import fairface_synth as ffs
from fairface_synth.cli import main
from fairface_synth.cli.axes import load_axes
from fairface_synth.cli.export import PLAN_OPTIONS, parse_quota
from fairface_synth.cli.group_names import check_groups
from fairface_synth.cli.models import Models
from fairface_synth.cli.wording import PHRASES, in_options
from fairface_synth.export.datasheet import LICENCE_FIELDS
from fairface_synth.models.fairface import RACES_7

COMMANDS = ("demo", "fit", "sample", "export", "verify", "audit", "compare")


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, (SystemExit, type(None))), "errors are text"
    assert "Traceback" not in result.output
    return result


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """Of `fit`: every command but that one begins here."""
    folder = tmp_path_factory.mktemp("fit") / "pipeline"
    result = run("fit", "--attributes", "gender", "--n", 700, "--seed", 3, "-q", "--out", folder)
    assert "female" in result.stdout
    assert str(folder) in result.stdout
    return folder


@pytest.fixture(scope="module")
def plan_options() -> tuple[object, ...]:
    return ("--quota", 3, "--images-per-identity", 2, "--shard-size", 4, "--fmr", "none", "-q")


@pytest.fixture(scope="module")
def made(pipeline, plan_options, tmp_path_factory) -> Path:
    """A set of `export`, for reading alone."""
    out = tmp_path_factory.mktemp("export") / "set"
    run("export", "--pipeline", pipeline, "--out", out, *plan_options)
    return out


# --- help and the frame -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_of_options_that_exist(command: str) -> None:
    text = run(command, "--help").output
    examples = text.split("Examples:")[1]
    assert f"fairface-synth {command}" in examples or f"fairface_synth {command}" in examples
    known = {name for p in main.commands[command].params for name in (*p.opts, *p.secondary_opts)}
    used = set(re.findall(r"(?<!\S)--[a-z-]+", re.sub(r"torchrun --nproc-per-node", "", examples)))
    assert used
    assert used <= known
    shown = set(re.findall(r"^  .*?(--[a-z-]+)", text, re.MULTILINE))
    assert {"--config", "--quiet", "--debug"} <= shown


def test_all_commands_are_there() -> None:
    assert set(main.commands) == set(COMMANDS)
    assert run("--version").output.strip().endswith(ffs.__version__)


def test_the_command_line_itself_loads_nothing_heavy() -> None:
    """Beside what the package imports: with an empty package in its place, help needs no torch."""
    code = (
        "import sys, types; package = types.ModuleType('fairface_synth'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['fairface_synth'] = package\n"
        "from fairface_synth.cli import main\n"
        "for args in (['--help'], ['export', '--help'], ['audit', '--help']):\n"
        "    try: main(args)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'yaml', 'matplotlib', 'pyarrow', 'PIL', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(ffs.__file__).parent)], check=True, capture_output=True)


def test_the_defaults_of_export_are_those_of_the_plan() -> None:
    library = {name: p.default for name, p in inspect.signature(ffs.plan_dataset).parameters.items()}
    renamed = {"psi": "truncation_psi"}
    ours = {renamed.get(n, n): d for n, d in ((name.replace("-", "_"), d) for name, _, d, _ in PLAN_OPTIONS)}
    ours["crop"] = None if ours["crop"] == "none" else ours["crop"]
    assert ours == {name: default for name, default in library.items() if name not in ("quota", "groups")}
    for kind, name in ((kind, name) for name, kind, _, _ in PLAN_OPTIONS if hasattr(kind, "choices")):
        if name != "crop":
            for choice in kind.choices:
                ffs.plan_dataset({"a": 1}, **{name.replace("-", "_"): choice})


def test_errors_of_the_library_are_text_and_code_2(pipeline, tmp_path) -> None:
    args = ("sample", "--pipeline", pipeline, "--groups", "femal", "--out", tmp_path / "out", "-q")
    result = run(*args, code=2)
    assert result.stdout == ""
    assert "did you mean 'female'" in result.stderr
    debug = CliRunner().invoke(main, [str(a) for a in (*args, "--debug")])
    assert isinstance(debug.exception, ffs.GroupError), "with --debug it is raised"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("fit", "--n", "many", "--out", "x"), "'many' is not a valid integer"),
        (("fit", "--generator", "none.pkl", "--out", "x"), "needs --labeller"),
        (("fit", "--generator", "none.pkl", "--labeller", "demo", "--out", "x"), "there is no file 'none.pkl'"),
        (("fit", "--device", "abacus", "--out", "x"), "this device cannot be used"),
        (("sample", "--out", "x"), "Missing option '--pipeline'"),
        (("sample", "--pipeline", "nowhere", "--out", "x"), "does not exist"),
        (("sample", "--pipeline", ".", "--out", "x"), "holds no saved pipeline"),
        (("verify", "."), "plan.json"),
        (("verify",), "Missing argument 'SET'"),
        (("audit", "--out", "x"), "Name a TABLE"),
        (("audit", "--images", ".", "--out", "x"), "Name a TABLE"),
        (("compare", "a.csv", "b.csv", "--out", "x"), "There is no a.csv"),
        (("fit", "--config", "nowhere.yaml", "--out", "x"), "does not exist"),
        (("fitt",), "No such command"),
        (("fit", "--generator", ".", "--labeller", "demo", "--out", "x"), "--generator: '.' is a folder"),
        (("fit", "--psi", "nan", "--out", "x"), "nan is not finite"),
        (("fit", "--min-confidence", "1.5", "--out", "x"), "'--min-confidence': 1.5 is not in 0 … 1"),
        (("fit", "--attributes", "gander", "--out", "x"), "did you mean 'gender'?"),
        (("fit", "--attributes", "", "--out", "x"), "--attributes names none"),
        (("sample", "--pipeline", ".", "--out", "x"), "a folder that `fairface-synth fit` wrote"),
        (("verify", "."), "a folder that `fairface-synth export` wrote"),
        (("audit", ".", "--out", "x"), "is a directory"),
        (("compare", "=.", ".", "--out", "x"), "got no name"),
        (("compare", ".", "a=.", "--embedder", "senet", "--out", "x"), "--embedder: there is no file 'senet'"),
    ],
)
def test_bad_input_is_code_2_and_says_what(args, message: str, tmp_path, monkeypatch) -> None:
    """And before the work: these commands would take minutes."""
    monkeypatch.chdir(tmp_path)
    assert message in run(*args, code=2).stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["fit", "sample", "export", "audit", "compare", "demo"])
@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_file_is_no_folder_to_write_to(command: str, out: str, tmp_path, monkeypatch) -> None:
    """Said before the models are loaded, and so before the work."""
    monkeypatch.chdir(tmp_path)
    for name in ("file", "table.csv"):
        Path(name).write_text("")
    args = {
        "sample": ["--pipeline", "."],
        "export": ["--pipeline", ".", "--quota", "1"],
        "audit": ["table.csv"],
        "compare": ["table.csv", "b=table.csv"],
    }
    overwrite = ["--overwrite"] if command in ("fit", "sample", "audit") else []
    result = run(command, *args.get(command, []), *overwrite, "--out", out, code=2)
    assert f"--out {out}: file is a file where a folder is needed" in result.stderr


def test_what_is_not_a_pipeline_is_not_overwritten(pipeline, tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    args = ("fit", "--n", 10**6, "--overwrite", "--out", tmp_path)
    assert "no pipeline to overwrite" in run(*args, code=2).stderr
    args = ("sample", "--pipeline", pipeline, "--overwrite", "--out", pipeline)
    assert "the pipeline's folder" in run(*args, code=2).stderr


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()])
def test_a_full_memory_is_text_that_names_the_sizes(error: Exception, pipeline, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(ffs.Pipeline, "sample", full)
    result = run("sample", "--pipeline", pipeline, "--out", tmp_path / "out", code=2)
    assert "not enough memory" in result.stderr
    assert "a smaller --batch-size" in result.stderr


def test_a_bug_is_no_bad_input(pipeline, tmp_path, monkeypatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ffs.Pipeline, "sample", wrong)
    result = CliRunner().invoke(main, ["sample", "--pipeline", str(pipeline), "--out", str(tmp_path / "out")])
    assert (result.exit_code, type(result.exception)) == (1, RuntimeError)


# --- errors in the words of the command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "said", "meant"),
    [
        ("export", "or plan_dataset(…, fmr=None): nobody", "or --fmr none: nobody"),
        ("export", "Pipeline.fit(…, embedder=world.embedder); or", "--embedder demo; or"),
        ("export", "plan_dataset(…, crop=None, size=112) cuts", "--crop none, --size 112 cuts"),
        ("export", "a pipeline with one, or embedder=", "a pipeline with one, or --embedder"),
        ("export", "detector=ffs.load_detector()", "--detector"),
        ("export", "verify=False, or method='screen'", "--no-verify, or --method screen"),
        ("export", 'engine="ray"', "--engine ray"),
        ("export", "images_per_identity ≤ 46", "--images-per-identity ≤ 46"),
        ("export", "shard_size is out of range", "--shard-size is out of range"),
        ("export", "perturbation is out of range", "--perturbation is out of range"),
        ("export", "begun with layout = rec; truncation_psi = 1.0", "begun with --layout rec; --psi 1.0"),
        ("fit", "another folder, or overwrite=True to replace", "another folder, or --overwrite to replace"),
        ("audit", "pass its path as labels=", "pass its path as --labels"),
        ("audit", "the folder is root=", "the folder is --images"),
        ("sample", "min_confidence=0.6", "min_confidence=0.6"),  # no option of this command
        ("export", "/data/shard_size/fmr.txt and x.seed=3", "/data/shard_size/fmr.txt and x.seed=3"),
        ("export", "a seed of size and quality", "a seed of size and quality"),
    ],
)
def test_keywords_are_put_into_options(command: str, said: str, meant: str) -> None:
    assert in_options(said, main.commands[command]) == meant
    assert in_options(meant, main.commands[command]) == meant


def test_what_is_put_otherwise_is_what_the_library_says() -> None:
    """Where a message of the library changes, its entry in the table has to change too."""
    package = Path(ffs.__file__).parent
    files = [path for path in package.rglob("*.py") if path.parent.name != "cli"]
    trees = [ast.parse(path.read_text()) for path in files]
    texts = [n.value for t in trees for n in ast.walk(t) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    for said in PHRASES:
        assert any(said in text for text in texts), said


def test_an_error_of_export_names_its_options(pipeline, tmp_path) -> None:
    args = (
        "export",
        "--pipeline",
        pipeline,
        "--quota",
        1,
        "--embedder",
        "none",
        "--dry-run",
        "--out",
        tmp_path / "set",
    )
    result = run(*args, "--fmr", 1e-6, code=2)
    assert "fix:      --embedder demo; or --fmr none: nobody checks" in result.stderr
    assert "plan_dataset" not in result.stderr
    assert "--judge: there is no file 'nobody'" in run(*args, "--fmr", "none", "--judge", "nobody", code=2).stderr


def test_a_file_that_is_no_model_is_named_with_its_option(pipeline, tmp_path) -> None:
    (tmp_path / "photo.pt").write_bytes(b"not a model")
    args = ("sample", "--pipeline", pipeline, "--labeller", tmp_path / "photo.pt", "--out", tmp_path / "out")
    assert f"--labeller {tmp_path / 'photo.pt'}, which takes demo or FairFace's" in run(*args, code=2).stderr


def test_names_of_groups_are_guessed() -> None:
    """Any two neighbouring letters swapped, in any group, its values in any order."""
    groups = ffs.Groups({"gender": ["female", "male"], "race": ["white", "black", "east-asian"]})
    for values in itertools.product(*groups.attributes.values()):
        for name in map("-".join, itertools.permutations(values)):
            swaps = [i for i in range(len(name) - 1) if "-" not in name[i : i + 2]]
            wrong = {f"{name[:i]}{name[i + 1]}{name[i]}{name[i + 2 :]}" for i in swaps} - {name}
            for text in wrong:
                with pytest.raises(ffs.GroupError, match="did you mean") as caught:
                    check_groups([text], groups, "--quota")
                guess = re.search(r"did you mean '(.+)'\?", str(caught.value))
                assert guess is not None
                assert groups.parse(guess[1]) == groups.parse(name), text


@pytest.mark.parametrize("option", ["--quota", "--groups"])
def test_a_mistyped_group_is_guessed_by_the_command(option: str, pipeline, tmp_path) -> None:
    command, value = ("export", "femlae=3") if option == "--quota" else ("sample", "male,femlae")
    result = run(command, "--pipeline", pipeline, option, value, "--out", tmp_path / "out", code=2)
    assert f"unknown group 'femlae' in {option}" in result.stderr
    assert "did you mean 'female'?" in result.stderr


def test_an_interrupt_is_code_130(pipeline, tmp_path) -> None:
    """A real one, in a real process: fit is stopped in the midst of labelling."""
    out = tmp_path / "pipeline"
    start = (  # a shell's background job, such as this test run may be, ignores SIGINT, and its children inherit that
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from fairface_synth.cli import main; main(prog_name='fairface-synth')"
    )
    command = [sys.executable, "-c", start, "fit", "--n", "200000", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen = ""
    while "labelling" not in seen:
        seen += process.stderr.read(1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Interrupted" in rest
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir()), "nothing half-written"


# --- configuration files ----------------------------------------------------------------------------------------------


def config(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def dry(pipeline: Path, tmp_path: Path, text: str, *args: object, code: int = 0) -> str:
    """The plan that `export` reads from a YAML file and a command line."""
    out = tmp_path / "set"
    options = ("--pipeline", pipeline, "--out", out, "--forward-batch", 4, "--config", config(tmp_path, text))
    result = run("export", *options, *args, code=code)
    assert not out.exists()
    return result.output


@pytest.mark.parametrize(
    "text",
    [
        "quota: {male: 4, female: 2}\nimages-per-identity: 3\ndry_run: true\nverify: true\nfmr: none\nseed: 7",
        "seed: 7\nexport:\n  quota: [male=4, female=2]\n  images_per_identity: 3\n  dry-run: yes\n  fmr: none\n"
        "fit: {n: 2000}",
        "export: {quota: {male: 4, female: 2}, images_per_identity: 3, dry_run: yes, fmr: 1e-6}\nseed: 7\nsample:\n",
    ],
    ids=["flat", "sections", "an empty section"],
)
def test_yaml_gives_options_and_the_command_line_wins(pipeline, tmp_path, text: str) -> None:
    output = dry(pipeline, tmp_path, text)
    assert "6 identities × 3 = 18 images" in output
    assert "female 2, male 4" in output
    assert "seed 7" in output
    output = dry(pipeline, tmp_path, text, "--seed", 8, "--quota", 1)
    assert "2 identities × 3 = 6 images" in output
    assert "seed 8" in output


def test_a_terminal_without_greek_letters(pipeline) -> None:
    """What Latin-1 does not have is shown by its code."""
    args = ("export", "--pipeline", pipeline, "--embedder", "none", "--quota", 1, "--dry-run", "-q", "--out", "set")
    result = CliRunner(charset="latin-1").invoke(main, [str(a) for a in args])
    assert result.exit_code == 0, result.exception
    assert r"2 identities × 1 = 2 images in 1 shards of \u2264 10,000" in result.stdout_bytes.decode("latin-1")


def test_every_option_may_stand_in_yaml(pipeline, tmp_path, monkeypatch) -> None:
    """Also the required ones, flags, lists, and the arguments without dashes."""
    text = f"pipeline: {pipeline}\nn: 3\ngroups: [female, male]\nout: faces\nquiet: true\ndetector: false\n"
    monkeypatch.chdir(tmp_path)
    run("sample", "--config", config(tmp_path, text))
    assert len(list(Path("faces").rglob("[0-9]*.png"))) == 3
    assert {p.name for p in Path("faces").iterdir() if p.is_dir()} == {"female", "male"}
    run("sample", "--config", config(tmp_path, text), "--n", 5, "--overwrite", "--groups", "male")
    assert len(list(Path("faces").rglob("[0-9]*.png"))) == 5
    assert "plan.json" in run("verify", "--config", config(tmp_path, "set: faces"), code=2).stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quotta: 3", "export has no option 'quotta'. Did you mean quota?"),
        ("export: {layouts: rec}", "Did you mean layout?"),
        ("fit: {sead: 1}\nexport: {seed: 1}", "fit has no option 'sead'. Did you mean seed?"),
        ("zzz: 1\nexport: {seed: 1}", "no command has option 'zzz'"),
        ("config: other.yaml", "no option 'config'"),
        ("seed: ", "seed is empty"),
        ("seed: x", "'x' is not a valid integer"),
        ("layout: zip", "'zip' is not one of"),
        ("verify: maybe", "'maybe' is not a valid boolean"),
        ("licence: cc", "KEY=VALUE"),
        ("fmr: often", "'often' is not a valid float"),
        ("fmr: 2", "fmr is a rate"),
        ("quota: many", "--quota is N or GROUP=N"),
        ("quota: [twelve]", "--quota is N or GROUP=N"),
        ("quota: [3, female=2]", "one N, or GROUP=N"),
        ("quota: {nobody: 3}", "unknown group"),
        ("axes: random", "none, demo or published:FOLDER"),
        ("axes: published:nowhere", "there is no folder 'nowhere'"),
        ("crop: arcface", "add --detector"),
        ("- seed", "holds no options"),
        ("seed: [1", "cannot be read as YAML"),
        ("quota: &q {male: *q}", "cannot be read as YAML"),
        ("engine: ray\nactors: 0", "0 is not in the range"),
        ("actors: 2", "actors are Ray's"),
        ("seed: 1\nseed: 2", "has 'seed' twice, again in line"),
        ("images-per-identity: 1\nimages_per_identity: 2", "has 'images_per_identity' twice"),
        ("quota: {male: 2, male: 3}", "has 'male' twice"),
        ("quota: {no: 3}", "YAML reads a value as false"),
        ("quota: {male: }", "YAML reads a value as empty"),
        ("quota: [[male=3]]", "YAML reads a value as ['male=3']"),
        ("quota: =3", "one N, or GROUP=N"),
        ("quota: []", "Missing option '--quota'"),
        ("fmr: off", "YAML reads a value as false"),
        ("threads: yes", "YAML reads a value as true"),
        ("licence: {name: CC-BY-4.0, url: }", "YAML reads a value as empty"),
        ("", "Missing option '--quota'"),
        ("exprt: {quota: 1}", "Did you mean export?"),
        ("export: [quota]", "export is a section"),
        ("truncation_psi: 0.7", "Did you mean psi?"),
        ("no-verify: true", "Write `verify: false`."),
        ("seed: {a: 1}", "seed takes one value"),
        ("images-per-identity: [1, 2]", "images_per_identity takes one value"),
        ("quota: {male: 3.5}", "N a whole number: got male=3.5"),
        ("quota: 0", "--quota 500 for every group"),
    ],
)
def test_a_wrong_line_in_yaml_is_code_2_and_named(pipeline, tmp_path, text: str, message: str) -> None:
    if text.startswith(("fmr", "layout", "axes", "crop", "seed: x", "verify", "licence", "actors", "engine", "images")):
        text = f"quota: 1\n{text}"
    assert message in dry(pipeline, tmp_path, text, code=2)


# --- fit and sample ---------------------------------------------------------------------------------------------------


def test_fit_saves_what_the_library_fits(pipeline, world) -> None:
    loaded = ffs.Pipeline.load(pipeline, world.generator, world.labeller)
    assert (len(loaded.bank), loaded.bank.seed, tuple(loaded.groups.attributes)) == (700, 3, ("gender",))
    again = ffs.Pipeline.fit(world.generator, world.labeller, attributes=["gender"], bank=loaded.bank)
    ids, index = torch.arange(10) % 2, torch.arange(10)
    torch.testing.assert_close(loaded.latents(ids, index, 1), again.latents(ids, index, 1))
    assert json.loads((pipeline / "models.json").read_text())["generator"] == "demo"


def test_an_occupied_folder_is_refused_before_the_work(pipeline) -> None:
    start = time.monotonic()
    result = run("fit", "--n", 10**6, "--out", pipeline, code=2)
    assert "--overwrite" in result.stderr
    assert time.monotonic() - start < 60  # labelling would take hours


def test_models_are_found_again_from_files_and_other_ones_are_refused(pipeline, world, tmp_path, monkeypatch) -> None:
    """`fit` writes down absolute paths, so `sample` finds the generator from another folder."""
    ffs.save_generator(world.generator, tmp_path / "generator.safetensors")
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("a file that is not meant by --labeller demo")
    named = ("--generator", "generator.safetensors", "--labeller", "demo")
    run("fit", *named, "--attributes", "gender", "--n", 300, "--min-confidence", 0.4, "-q", "--out", "mine")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run("sample", "--pipeline", tmp_path / "mine", "--n", 2, "-q", "--out", "faces")
    args = ("sample", "--pipeline", pipeline, "--n", 2, "-q", "--out", "others")
    result = run(*args, "--dtype", "float64", code=2)
    assert "fitted with another generator and another labeller" in result.stderr
    for stored, message in {
        "{": "models.json",
        '{"generator": 3}': "a value of --generator",
        '{"dtype": "float3"}': "a value of --dtype",
        '{"generator": "gone.pkl", "labeller": "demo"}': "models.json names; name it anew with --generator",
    }.items():
        (tmp_path / "mine" / "models.json").write_text(stored)
        assert message in run("sample", "--pipeline", tmp_path / "mine", "--out", "x", code=2).stderr


def test_sample_is_that_of_the_library(pipeline, world, tmp_path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "faces"
    args = ("--groups", "male", "--n", 4, "--seed", 9, "--psi", 0.8, "--verify", "-q", "--out", out)
    result = run("sample", "--pipeline", pipeline, *args)
    assert "verified" in result.stdout
    assert (out / "faces.png").stat().st_size > 1000
    loaded = ffs.Pipeline.load(pipeline, world.generator, world.labeller)
    wanted = loaded.sample("male", n=4, seed=9, truncation_psi=0.8, verify=True, progress=False)
    assert torch.equal(load_file(out / "latents.safetensors")["latents"], wanted.latents)


# --- export and verify ------------------------------------------------------------------------------------------------


def test_export_makes_the_set_of_its_plan(made, pipeline, world) -> None:
    plan = json.loads((made / "plan.json").read_text())
    assert plan["quota"] == {"female": 3, "male": 3}
    assert (plan["images_per_identity"], plan["fmr"]) == (2, None)
    data = ffs.open_dataset(made)
    assert len(data) == 12
    loaded = ffs.Pipeline.load(pipeline, world.generator, world.labeller)
    first = data[0]
    latents = loaded.latents(torch.tensor([first["group_id"]]), torch.tensor([0]), 0)
    torch.testing.assert_close(first["latents"].reshape(1, -1), latents)
    assert f"export --pipeline {pipeline}" in json.loads((made / "dataset.json").read_text())["command"]


def test_the_same_command_again_goes_on(made, pipeline, plan_options, tmp_path) -> None:
    out = tmp_path / "set"
    shutil.copytree(made, out)
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "shards").iterdir() if p.name.startswith("00001")}
    for path in (out / "shards").glob("00000*"):
        path.unlink()
    run("verify", out, "-q", code=1)
    run("export", "--pipeline", pipeline, "--out", out, *plan_options)
    assert all((out / "shards" / name).stat().st_mtime_ns == t for name, t in kept.items())
    for path in (made / "shards").iterdir():
        assert path.read_bytes() == (out / "shards" / path.name).read_bytes()
    result = run("export", "--pipeline", pipeline, "--out", out, *plan_options, "--seed", 4, code=2)
    assert "seed" in result.stderr


def test_verify_finds_damage_and_repairs_it(made, pipeline, tmp_path) -> None:
    assert "as planned" in run("verify", made, "-q").stdout
    out = tmp_path / "set"
    shutil.copytree(made, out)
    tar = out / "shards" / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 255
    tar.write_bytes(data)
    report = run("verify", out, "-q", code=1).stdout
    assert "00001" in report
    assert report.endswith(f"fairface-synth verify {out} --repair --pipeline DIR mends damaged shards\n")
    assert "made again" in run("verify", out, "--repair", "--pipeline", pipeline, "-q").stdout
    assert tar.read_bytes() == (made / "shards" / "00001.tar").read_bytes()
    os.truncate(tar, 100)
    run("verify", out, "--repair", "--generator", "demo", "-q")
    assert "as planned" in run("verify", out, "-q").stdout


@pytest.mark.parametrize("name", ["identities.parquet", "gate.json", "dataset.json"])
def test_repairs_are_advised_where_they_help_alone(name: str, made, pipeline, plan_options, tmp_path) -> None:
    """What is no shard is mended by exporting again, which is said beside it."""
    out = tmp_path / "set"
    shutil.copytree(made, out)
    (out / name).unlink()
    report = run("verify", out, "-q", code=1).stdout
    assert re.search(rf"^{name}: .*run the same export again", report, re.MULTILINE)
    assert "--repair" not in report
    run("export", "--pipeline", pipeline, "--out", out, *plan_options)
    assert "as planned" in run("verify", out, "-q").stdout


def test_repairs_from_another_pipeline_are_refused(made, pipeline, world, tmp_path) -> None:
    bank = ffs.Pipeline.load(pipeline, world.generator, world.labeller).bank
    ffs.Pipeline.fit(world.generator, world.labeller, attributes=["skin_tone"], bank=bank).save(tmp_path / "other")
    out = tmp_path / "set"
    shutil.copytree(made, out)
    for path in (out / "shards").glob("00000*"):
        path.unlink()
    report = run("verify", out, "-q", code=1).stdout
    assert "`fairface-synth verify FOLDER --repair`" in report
    assert "repair=True" not in report
    result = run("verify", out, "--repair", "--pipeline", tmp_path / "other", "-q", code=2)
    assert "is not the pipeline that" in result.stderr


def test_a_warning_is_a_line_of_text(pipeline, tmp_path) -> None:
    args = ("--embedder", "none", "--quota", 1, "--forward-batch", 1, "--dry-run", "-q", "--out", tmp_path / "set")
    result = run("export", "--pipeline", pipeline, *args)
    assert re.fullmatch(r"Warning: no embedder: .*\n", result.stderr)
    assert "Warning" not in result.stdout


def test_a_quota_that_cannot_be_filled_is_code_1(pipeline, tmp_path) -> None:
    """The labeller does not confirm everybody, so one candidate each does not do."""
    args = ("--quota", 20, "--verify", "--fmr", "none", "--budget", 1, "-q", "--out", tmp_path / "set")
    result = run("export", "--pipeline", pipeline, *args, code=1)
    assert "budget" in result.stderr
    assert "| female" in result.stderr


@pytest.mark.slow
def test_two_ranks_make_the_set_of_one_process(made, pipeline, plan_options, tmp_path) -> None:
    """As torchrun starts them: by environment variables, both at once."""
    out = tmp_path / "set"
    command = [sys.executable, "-m", "fairface_synth", "export", "--engine", "torchrun", "--pipeline", pipeline]
    command = [str(a) for a in (*command, "--out", out, *plan_options)]
    ranks = [{**os.environ, "RANK": str(r), "WORLD_SIZE": "2", "LOCAL_RANK": str(r)} for r in range(2)]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for env in ranks]
    outputs = [process.communicate(timeout=60)[0] for process in started]
    assert [p.returncode for p in started] == [0, 0], "a rank that ends otherwise would end them all"
    assert "finished" in outputs[0]
    assert outputs[1] == "", "one rank speaks"
    for path in (made / "shards").iterdir():
        assert path.read_bytes() == (out / "shards" / path.name).read_bytes()


def test_published_axes_are_read_from_files(pipeline, world, tmp_path) -> None:
    directions = tmp_path / "directions"
    directions.mkdir()
    names = ("smile", "scream", "disgust", "squint", "surprise", "pose", "illumination")
    for name in names[:-1]:
        world.directions["yaw"].save(directions / f"{name}.safetensors")
    args = ("--axes", f"published:{directions}", "--images-per-identity", 46, "--dry-run")
    assert "illumination" in dry(pipeline, tmp_path, "quota: 1", *args, code=2)
    world.directions["yaw"].save(directions / "illumination.safetensors")
    assert "2 identities × 46" in dry(pipeline, tmp_path, "quota: 1", *args)
    assert "45 variations" not in dry(pipeline, tmp_path, "quota: 1", *args[:3], 47, "--dry-run", code=2)


# --- audit and compare ------------------------------------------------------------------------------------------------


def test_audit_reads_a_table(tmp_path) -> None:
    rng = np.random.default_rng(0)
    table = {"score": rng.normal(size=80), "luminance": rng.uniform(size=80), "race": rng.choice(["a", "b"], 80)}
    ffs.write_table(table, tmp_path / "scores.csv")
    args = ("audit", tmp_path / "scores.csv", "--no-bayes", "--out", tmp_path / "audit")
    assert "score" in run(*args).stdout
    assert "race" in (tmp_path / "audit" / "report.md").read_text()
    assert "--overwrite" in run(*args, code=2).stderr
    run(*args, "--overwrite", "--factors", "race")
    result = run(*args, "--overwrite", "--scores", "skore", code=2)
    assert "skore" in result.stderr


def test_audit_scores_images_first(world, tmp_path) -> None:
    from fairface_synth.models.checkpoints import save_discriminator
    from fairface_synth.models.stylegan2 import StyleGAN2Discriminator

    torch.manual_seed(0)
    config = {"c_dim": 0, "img_resolution": 32, "img_channels": 3, "channel_base": 128, "channel_max": 16}
    network = StyleGAN2Discriminator(config).freeze()
    save_discriminator(network, tmp_path / "d.safetensors")
    images = world.generator.synthesize(world.generator.map(ffs.draw_latents(world.generator, 0, 0, 12)))
    ffs.save_images(images, tmp_path / "images", [f"{i}" for i in range(12)])
    args = ("--discriminator", tmp_path / "d.safetensors", "--images", tmp_path / "images", "--size", 32)
    run("audit", *args, "--no-bayes", "-q", "--out", tmp_path / "audit")
    faces = ffs.read_faces("folder", tmp_path / "images")
    wanted = ffs.score(network, faces.images(size=32))
    stored = ffs.read_table(tmp_path / "audit" / "scores.csv")["score"]
    np.testing.assert_allclose(stored, wanted.numpy(), rtol=1e-4, atol=1e-6)


def test_compare_reads_tables(tmp_path) -> None:
    rng = np.random.default_rng(0)
    for name, rate in {"real": 0.3, "synth": 0.6}.items():
        columns = {"Smiling": (rng.uniform(size=300) < rate).astype(float), "Eyeglasses": rng.uniform(size=300).round()}
        ffs.write_table(columns, tmp_path / f"{name}.csv")
    out = tmp_path / "out"
    run("compare", tmp_path / "real.csv", f"made={tmp_path / 'synth.csv'}", "--out", out, "-q")
    table = ffs.kl_table(ffs.as_annotations(tmp_path / "real.csv"), ffs.as_annotations(tmp_path / "synth.csv"))
    stored = json.loads((out / "kl.json").read_text())
    kl = {name: row["kl_pq"] for name, row in stored["attributes"].items()}
    assert kl == {name: row["kl_pq"] for name, row in json.loads(json.dumps(table.to_dict()))["attributes"].items()}
    assert "Smiling" in (out / "kl.md").read_text()
    assert (out / "kl.png").stat().st_size > 1000
    assert "NAME=PATH" in run("compare", tmp_path / "real.csv", tmp_path / "real.csv", "--out", out, code=2).stderr


def test_compare_annotates_exported_sets_and_folders(made, world, tmp_path) -> None:
    """A set of `export` against a folder with the same images: the same attributes, so no divergence to speak of."""
    data = ffs.open_dataset(made)
    images = torch.stack([data[i]["image"] for i in range(len(data))])
    ffs.save_images(images, tmp_path / "folder", [f"{i:03d}" for i in range(len(images))])
    out = tmp_path / "out"
    result = run("compare", f"set={made}", f"folder={tmp_path / 'folder'}", "--out", out, "-q", "--replicates", 20)
    assert "know the bundled generator's faces alone" in result.stderr
    first, second = (ffs.as_annotations(out / "annotations" / name) for name in ("set", "folder"))
    assert len(first) == len(second) == 12
    rows = json.loads((out / "kl.json").read_text())["attributes"].values()
    assert all(row["kl_pq_plugin"] == 0 and row["rate_p"] == row["rate_q"] for row in rows)
    again = run("compare", made, out / "annotations" / "folder", "--out", out, "-q", "--replicates", 20)
    assert "KL" in again.stdout
    args = ("compare", made, tmp_path / "folder", "--embedder", "vggface2", "--out", out)
    assert "--mac and --embedder go together" in run(*args, code=2).stderr


# --- demo -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_runs_and_the_commands_it_names_do_too(tmp_path) -> None:
    out = tmp_path / "demo"
    text = run("demo", "--out", out, "--n", 2500, "-q").stdout
    assert "as planned" in text
    assert len(ffs.open_dataset(out / "set")) == 6 * 8 * 4
    commands = re.findall(r"^  fairface-synth (.*)$", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        args = command.split()
        run(*args, *(("--dry-run",) if args[0] == "export" else ()), "-q")


# --- documentation ----------------------------------------------------------------------------------------------------

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "cli.md").read_text()


def test_the_commands_of_the_page_are_commands() -> None:
    lines = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in join(block)]
    assert {command for command, _ in lines} == set(COMMANDS)
    for command, line in lines:
        known = {name for p in main.commands[command].params for name in p.opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", line)) <= known, line


def join(block: str) -> list[tuple[str, str]]:
    """Each command with its options."""
    found = [
        re.search(r"(?:fairface-synth|fairface_synth) (\w+)(.*)", line)
        for line in block.replace("\\\n", "").splitlines()
    ]
    return [(match[1], match[2]) for match in found if match]


@pytest.mark.parametrize("command", ["fit", "export"])
def test_the_file_of_the_page_is_read(command: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = read_page(PAGE, command, tmp_path)
    assert given["device"] == "cuda"
    if command == "fit":
        assert (given["attributes"], given["n"]) == (["race", "gender"], 200_000)
    else:
        assert (given["fmr"], given["verify"], given["size"]) == (1e-6, True, 112)
        assert given["quota"][0] == "black-female=50000"
        assert {key for key, _, _ in given["licence"]} <= set(LICENCE_FIELDS)


def read_page(page: str, command: str, folder: Path) -> dict[str, object]:
    """What a command takes from the page's YAML file."""
    [text] = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (folder / "pipeline").mkdir()
    return main.commands[command].make_context(command, ["--config", str(config(folder, text))]).params


def test_the_large_set_of_the_page_is_the_published_one(tmp_path, monkeypatch) -> None:
    """FairFace's races as `fit` makes groups of them: 6 × 50,000 × 45 images."""
    monkeypatch.chdir(tmp_path)
    given = read_page((DOCS / "scale.md").read_text(), "export", tmp_path)
    quota = parse_quota(given["quota"])
    plan = ffs.plan_dataset(
        quota, groups=ffs.Groups({"race": RACES_7}), images_per_identity=given["images_per_identity"]
    )
    assert (plan.identities, plan.images) == (6 * 50_000, 13_500_000)
    assert set(plan.quota) == set(RACES_7)
    assert given["verify"] is True


def test_the_directions_of_the_page_are_those_that_axes_want(world, tmp_path, monkeypatch) -> None:
    """Without them, the error says what they are; with them, the published 45 are read."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(click.BadParameter, match=r"(?s)no folder 'directions'.*smile.safetensors.*docs/scale.md"):
        load_axes("published:directions", Models())
    [code] = re.findall(r"```py\n(.*?)```", (DOCS / "scale.md").read_text(), re.DOTALL)
    w = torch.randn(300, 8)
    exec(code, {"w": w, "labels": defaultdict(lambda: (w[:, 0] > 0).long())})
    assert sum(len(axis.steps) for axis in load_axes("published:directions", Models())) == 45
