"""The command line: `fairface-synth demo | fit | sample | export | verify | audit | compare`.

Each command reads its options, calls the library and prints what it returns; nothing is computed here. Exit codes: 0
fine, 1 the data has a problem (damage, a quota that was not filled), 2 usage or bad input, 130 interrupted.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import BudgetError, DataError, FairFaceError

if TYPE_CHECKING:
    from .export import DatasetPlan
    from .pipeline import Pipeline

PROBLEM, USAGE, INTERRUPTED = 1, 2, 130
MODELS = "models.json"  # beside a saved pipeline: how its models were named
_LAYOUTS = ("webdataset", "folders", "rec", "parquet")
_FILE = click.Path(exists=True, path_type=Path)
_OUT = click.Path(path_type=Path)

# --- the frame: configuration files, errors, exit codes --------------------------------------------------------------


class _Main(click.Group):
    """Turns the library's errors into text and exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that has no "ψ" is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        ctx.meta["command"] = shlex.join(["fairface-synth", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
                return super().invoke(ctx)
        except BrokenPipeError:  # click's: the reader of the output has gone
            raise
        except (FairFaceError, OSError) as error:
            if ctx.meta.get("debug"):
                raise
            click.echo(f"Error: {error}", err=True)
            ctx.exit(PROBLEM if isinstance(error, BudgetError) else USAGE)
        except KeyboardInterrupt:
            click.echo("Interrupted. What is on disk is whole; export and compare go on when run again.", err=True)
            ctx.exit(INTERRUPTED)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fairface_synth")
def main() -> None:
    """Demographically balanced faces from a biased generator, with the proof beside them.

    Begin with `fairface-synth demo`. Exit codes: 0 fine, 1 the data has a problem, 2 usage or bad input, 130
    interrupted.
    """


def _command(examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command with examples in its help, and with the options that all commands share."""

    def decorate(function: Callable[..., None]) -> click.Command:
        lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
        command = main.command(epilog=f"\b\nExamples:\n{lines}")(function)
        command.params += [
            click.Option(["-q", "--quiet"], is_flag=True, help="No progress bars."),
            click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks."),
            click.Option(
                ["--config"],
                type=click.Path(exists=True, dir_okay=False),
                is_eager=True,
                expose_value=False,
                callback=_read_config,
                help="YAML file of options; the command line wins.",
            ),
        ]
        return command

    return decorate


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value


def _read_config(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Options from YAML become the command's defaults: so the command line wins, and click checks them alike.

    Keys are options of the command; or names of commands, each with its options, and beside them options that several
    commands share.
    """
    if path is None:
        return
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        _check_twice(yaml.compose(text, yaml.SafeLoader), path)
        values = yaml.safe_load(text) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise click.BadParameter(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(values, Mapping):
        raise click.BadParameter(f"{path} holds no options: expected lines such as `seed: 1`")
    values = {_option_name(key): value for key, value in values.items()}
    everywhere = {name for command in main.commands.values() for name in _parameters(command)}
    empty = {k for k, v in values.items() if v is None and k not in everywhere}
    sections = {k: v or {} for k, v in values.items() if k in main.commands and (k in empty or isinstance(v, Mapping))}
    beside = {k: v for k, v in values.items() if k not in sections}
    options = {}
    if sections:
        _check_keys(beside, everywhere, f"{path}: no command has")
        options = {k: v for k, v in beside.items() if k in _parameters(ctx.command)}
    else:
        _check_keys(beside, set(_parameters(ctx.command)), f"{path}: {ctx.command.name} has no")
        options = beside
    for name, section in sections.items():
        given = {_option_name(key): value for key, value in section.items()}
        _check_keys(given, set(_parameters(main.commands[name])), f"{path}: {name} has no")
        options |= given if name == ctx.command.name else {}
    known = _parameters(ctx.command)
    ctx.default_map = {name: _yaml_value(known[name], value) for name, value in options.items()}


def _option_name(key: object) -> str:
    return str(key).replace("-", "_")


def _check_twice(node: Any, path: str) -> None:
    """Of a key that stands twice YAML would silently take the last value."""
    seen = set[str]()
    for key, value in node.value if getattr(node, "id", "") == "mapping" else ():
        name = _option_name(key.value)
        if name in seen:
            raise click.BadParameter(f"{path} has {key.value!r} twice, again in line {key.start_mark.line + 1}")
        seen.add(name)
        _check_twice(value, path)


def _parameters(command: click.Command) -> dict[str, click.Parameter]:
    """What a YAML file may set, by name."""
    return {str(p.name): p for p in command.params if p.name != "config"}


def _check_keys(given: Iterable[str], known: set[str], what: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 2, 0.7)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"It has {', '.join(sorted(known))}."
            raise click.BadParameter(f"{what} option {key!r}. {hint}")


def _yaml_value(param: click.Parameter, value: Any) -> Any:
    """As click reads it: text for one value, a list for options that repeat, commas for lists in one option."""
    if value is None:
        raise click.BadParameter(f"{param.name} is empty: leave the line out, or write none where that is a choice")
    if isinstance(value, bool) and getattr(param, "is_flag", False):
        return value
    if isinstance(value, Mapping):
        value = [f"{_yaml_text(param, key)}={_yaml_text(param, item)}" for key, item in value.items()]
    texts = [_yaml_text(param, item) for item in (value if isinstance(value, list) else [value])]
    return texts if getattr(param, "multiple", False) else ",".join(texts)


def _yaml_text(param: click.Parameter, value: Any) -> str:
    """One value, where YAML has not made something else of it."""
    if value is None or isinstance(value, (bool, list, Mapping)):
        got = {True: "true (also yes, on)", False: "false (also no, off)", None: "empty"}
        name = got[value] if value is None or isinstance(value, bool) else repr(value)
        raise click.BadParameter(f"{param.name}: YAML reads a value as {name}: expected a text or number; try quotes")
    return str(value)


class _Names(click.ParamType):
    """Names with commas between them."""

    name = "name,name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, list) else [part.strip() for part in value.split(",") if part.strip()]


class _Rate(click.ParamType):
    """A rate, auto, or none (also 0), which is 0.0."""

    name = "rate|auto|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return value
        number = 0.0 if value == "none" else click.FLOAT.convert(value, param, ctx)
        return number or 0.0


class _Pair(click.ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        key, mark, text = value if isinstance(value, tuple) else str(value).partition("=")
        if not (key and mark and text):
            self.fail(f"expected KEY=VALUE, got {value!r}", param, ctx)
        return key, mark, text


# --- models ----------------------------------------------------------------------------------------------------------

_WORDS = ("demo", "vggface2", "casia-webface", "none")  # that name models which are no files
_MODEL_OPTIONS = {
    "generator": click.option("--generator", metavar="demo|FILE", help="Generator: demo, or a checkpoint."),
    "labeller": click.option("--labeller", metavar="demo|FILE", help="Labeller: demo, or FairFace's state dict."),
    "races": click.option("--races", type=click.Choice(["7", "4"]), help="Of FairFace's labeller.  [default: 7]"),
    "embedder": click.option(
        "--embedder",
        metavar="demo|vggface2|casia-webface|FILE|none",
        help="Identity embedder.  [default: demo with the demo generator, otherwise none]",
    ),
    "detector": click.option(
        "--detector/--no-detector", default=None, help="Also ask MTCNN whether there is a face.  [default: no]"
    ),
    "device": click.option("--device", help="Where the networks run, for example cuda.  [default: cpu]"),
    "dtype": click.option(
        "--dtype", type=click.Choice(["float32", "bfloat16", "float64"]), help="Their arithmetic.  [default: float32]"
    ),
}


def _models(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Those model options, handed to the command as one `_Models`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**options: Any) -> None:
            given = {name: options.pop(name) for name in names}
            return function(models=_Models(**given), **options)

        for name in reversed(names):
            command = _MODEL_OPTIONS[name](command)
        return command

    return decorate


@dataclass
class _Models:
    """The models as the options name them, loaded when first used. None: not named."""

    generator: str | None = None
    labeller: str | None = None
    races: str | None = None
    embedder: str | None = None
    detector: bool | None = None
    device: str | None = None
    dtype: str | None = None

    def names(self) -> dict[str, Any]:
        """What to write down to find the same models again; the device is not among it."""
        paths = {name: getattr(self, name) for name in ("generator", "labeller", "embedder")}
        found = {
            k: v if v in (None, *_WORDS) or not Path(v).is_file() else str(Path(v).resolve()) for k, v in paths.items()
        }
        return {**found, "races": self.races, "detector": self.detector, "dtype": self.dtype}

    def over(self, stored: Mapping[str, Any]) -> _Models:
        """These where they are named, the stored ones elsewhere."""
        given = {name: value for name, value in vars(self).items() if value is not None and name in _MODEL_OPTIONS}
        return _Models(**{**{k: v for k, v in stored.items() if k in _MODEL_OPTIONS}, **given})

    def filled(self) -> _Models:
        """Unnamed ones are the bundled world's, if the generator is."""
        demo = self.generator in (None, "demo")
        if not demo and self.labeller is None:
            raise click.UsageError("--generator FILE needs --labeller: FairFace's state dict, or demo.")
        unnamed = {"generator": "demo", "labeller": "demo", "embedder": "demo" if demo else "none"}
        return self.over({**unnamed, "races": "7", "detector": False, "dtype": "float32"})

    @cached_property
    def torch_device(self) -> str:
        """Under torchrun every rank takes the GPU of its number."""
        import torch

        rank = os.environ.get("LOCAL_RANK")
        device = f"cuda:{rank}" if self.device == "cuda" and rank is not None else self.device or "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            got = f"{device}: {str(error).splitlines()[0]}"
            raise DataError("this device cannot be used", expected="cpu, cuda, cuda:1, …", got=got) from error
        return device

    @cached_property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype or "float32")

    @cached_property
    def world(self) -> Any:
        from .models.demo import load_demo

        return load_demo(dtype=self.torch_dtype, device=self.torch_device)

    def load_generator(self) -> Any:
        from .models.checkpoints import load_generator

        if self.generator in (None, "demo"):
            return self.world.generator
        return load_generator(self.generator, self.torch_device, self.torch_dtype)

    def load_labeller(self, name: str | None = None, demo: str = "labeller") -> Any:
        """The labeller, or another of that name; `demo` says which of the bundled world's is meant by "demo"."""
        from .models.fairface import load_labeller

        name = name or self.labeller or "demo"
        if name == "demo":
            return getattr(self.world, demo)
        dtype = self.torch_dtype
        return load_labeller(name, races=4 if self.races == "4" else 7, device=self.torch_device, dtype=dtype)

    def load_embedder(self) -> Any:
        from .models.facenet import load_embedder

        if self.embedder in (None, "none"):
            return None
        if self.embedder == "demo":
            return self.world.embedder
        dtype = self.torch_dtype
        return load_embedder(str(self.embedder), self.torch_device, dtype)

    def load_detector(self) -> Any:
        from .models.facenet import load_detector

        return load_detector(self.torch_device) if self.detector else None

    def check(self) -> _Models:
        """Names of files that are not there, before an hour of work."""
        for name, words in {"generator": ("demo",), "labeller": ("demo",), "embedder": _WORDS}.items():
            value = getattr(self, name)
            if value not in (None, *words) and "://" not in value and not Path(value).is_file():
                one_of = ", ".join((*words, "a file"))
                raise click.UsageError(f"--{name}: there is no file {value!r}; expected one of {one_of}.")
        return self


def _stored(folder: Path) -> dict[str, Any]:
    """How the models of a saved pipeline were named; nothing if it was not saved by `fit`."""
    path = folder / MODELS
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read", expected="json", got=error, fix="delete it") from error


def _open_pipeline(folder: Path, models: _Models) -> tuple[Pipeline, _Models]:
    """A saved pipeline with the models it was fitted with, and those."""
    from .pipeline import Pipeline

    models = models.over(_stored(folder)).filled().check()
    pipeline = Pipeline.load(
        folder,
        models.load_generator(),
        models.load_labeller(),
        detector=models.load_detector(),
        embedder=models.load_embedder(),
    )
    return pipeline, models


def _say(text: object = "") -> None:
    """On one rank only, where there are several."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(str(text))


# --- fit and sample --------------------------------------------------------------------------------------------------

_pipeline = click.option("--pipeline", type=_FILE, required=True, help="Folder that `fit` wrote.")
_axes_option = click.option(
    "--axes",
    default="none",
    show_default=True,
    metavar="none|demo|published:FOLDER",
    help="What variations move along: demo's 45, or the published 45 of Direction files smile.safetensors, …",
)
_overwrite = click.option("--overwrite", is_flag=True, help="Replace what an earlier run wrote there.")


@_command("""
fairface-synth fit --attributes gender,skin_tone --n 20000 --out pipeline
fairface-synth fit --generator ffhq.pkl --labeller res34_fair_align_multi_7_20190809.pt \\
    --embedder vggface2 --detector --attributes race,gender --n 200000 --device cuda --out pipeline
fairface-synth fit --config run.yaml
""")
@click.option("--attributes", type=_Names(), help="Attributes that make the groups.  [default: all of the labeller's]")
@click.option("--n", type=click.IntRange(1), default=20_000, show_default=True, help="Latents to label.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--psi", type=float, default=1.0, show_default=True, help="Truncation of the latents.")
@click.option("--method", type=click.Choice(["lda", "normals", "pca", "identity"]), default="lda", show_default=True)
@click.option(
    "--min-confidence", type=float, default=0.6, show_default=True, help="Labels below it count for no group."
)
@click.option("--min-samples", type=click.IntRange(2), default=10, show_default=True, help="Rarer groups are composed.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--out", type=_OUT, required=True, help="Folder of the pipeline, made whole or not at all.")
@_overwrite
@_models(*_MODEL_OPTIONS)
def fit(
    models: _Models,
    attributes: list[str] | None,
    n: int,
    seed: int,
    psi: float,
    method: Any,
    min_confidence: float,
    min_samples: int,
    batch_size: int,
    out: Path,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Label a generator's latents, fit a Gaussian to every group."""
    models = models.filled().check()
    _check_room(out, overwrite)
    pipeline = _fit(
        models,
        attributes=attributes,
        n=n,
        seed=seed,
        truncation_psi=psi,
        method=method,
        min_confidence=min_confidence,
        min_samples=min_samples,
        batch_size=batch_size,
        progress=not quiet,
    )
    _save(pipeline, models, out, overwrite)
    _say(f"{pipeline.report()}\n\nThe pipeline is in {out}.")


def _fit(models: _Models, **settings: Any) -> Pipeline:
    from .pipeline import Pipeline

    return Pipeline.fit(
        models.load_generator(),
        models.load_labeller(),
        detector=models.load_detector(),
        embedder=models.load_embedder(),
        **settings,
    )


def _check_room(out: Path, overwrite: bool) -> None:
    """Before the work, not after it."""
    if not overwrite and out.exists() and (out.is_file() or any(out.iterdir())):
        raise click.UsageError(f"{out} holds something already: name another --out, or --overwrite.")


def _save(pipeline: Pipeline, models: _Models, out: Path, overwrite: bool) -> None:
    from .artifacts import atomic_path

    pipeline.save(out, overwrite=overwrite)
    with atomic_path(out / MODELS) as path:
        path.write_text(json.dumps(models.names(), indent=1) + "\n", encoding="utf-8")


@_command("""
fairface-synth sample --pipeline pipeline --groups dark-female,light --n 64 --out faces
fairface-synth sample --pipeline pipeline --method screen --verify --n 120 --out faces
""")
@_pipeline
@click.option("--groups", type=_Names(), default="balanced", show_default=True, help="balanced, or names of groups.")
@click.option("--n", type=click.IntRange(1), default=64, show_default=True, help="Faces in all.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--psi", type=float, default=1.0, show_default=True, help="Truncation; of gaussian alone.")
@click.option(
    "--method", type=click.Choice(["gaussian", "screen", "reject", "evolve"]), default="gaussian", show_default=True
)
@click.option("--verify/--no-verify", default=False, show_default=True, help="Keep faces that the labeller confirms.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--out", type=_OUT, required=True, help="Folder for the images, latents and faces.png.")
@_overwrite
@_models(*_MODEL_OPTIONS)
def sample(
    models: _Models,
    pipeline: Path,
    groups: list[str],
    n: int,
    seed: int,
    psi: float,
    method: Any,
    verify: bool,
    batch_size: int,
    out: Path,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Faces of chosen groups, their latents, a figure.

    Exit code 1 if too few were found.
    """
    fitted, _ = _open_pipeline(pipeline, models)
    _check_room(out, overwrite)
    drawn = fitted.sample(
        groups[0] if len(groups) == 1 else groups,
        n=n,
        seed=seed,
        truncation_psi=psi,
        method=method,
        verify=verify,
        batch_size=batch_size,
        progress=not quiet,
    )
    drawn.save(out, overwrite=overwrite)
    if len(drawn):
        _save_grid(drawn, out / "faces.png")
    _say(f"{drawn}\nThe faces are in {out}, at a glance in {out / 'faces.png'}.")
    if drawn.short:
        click.get_current_context().exit(PROBLEM)


def _save_grid(drawn: Any, path: Path) -> None:
    from .plotting import face_grid

    face_grid(drawn.images, drawn.group_ids, drawn.groups).savefig(path, dpi=120)


# --- export and verify -----------------------------------------------------------------------------------------------

_PLAN_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("images-per-identity", click.IntRange(1), 1, "The face itself and variations of it."),
    ("shard-size", click.IntRange(1), 10_000, "Images in a shard at most; it holds whole identities."),
    ("seed", click.IntRange(0), 0, "Of everything drawn."),
    ("method", click.Choice(["gaussian", "screen"]), "gaussian", "How faces are drawn."),
    ("psi", float, 1.0, "Truncation; of gaussian alone."),
    ("candidates", click.IntRange(1), 256, "Natural draws a face, of screen."),
    ("perturbation", float, 0.2, "Size of variations where there are no axes."),
    ("verify", bool, False, "Keep faces that the labeller confirms."),
    ("fmr", _Rate(), "auto", "No two identities match at this false match rate (auto: 1e-4, with an embedder)."),
    ("same-person", bool, False, "Variations must match their identity's face."),
    ("budget", click.IntRange(1), 100, "Candidates for an identity before giving up."),
    ("layout", click.Choice(_LAYOUTS), "webdataset", "How the set is stored."),
    ("image-format", click.Choice(["jpeg", "png", "webp"]), "jpeg", "How images are stored."),
    ("quality", click.IntRange(1, 100), 95, "Of jpeg and webp."),
    ("subsampling", click.Choice(["4:4:4", "4:2:2", "4:2:0"]), "4:4:4", "Of jpeg's colours."),
    ("size", click.IntRange(8), None, "Side of stored images; the generator's if left out."),
    ("crop", click.Choice(["none", "arcface"]), "none", "Align to ArcFace's template, 112 pixels; needs --detector."),
    ("forward-batch", click.IntRange(1), 32, "Images a forward pass; part of the plan."),
)


def _plan_options(function: Callable[..., None]) -> Callable[..., None]:
    for name, kind, default, text in reversed(_PLAN_OPTIONS):
        flag = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
        given = {} if kind is bool else {"type": kind}
        function = click.option(flag, default=default, show_default=default is not None, help=text, **given)(function)
    return function


@_command("""
fairface-synth export --pipeline pipeline --out set --quota 100 --images-per-identity 10 --dry-run
fairface-synth export --pipeline pipeline --out set --quota dark-female=500 --quota dark-male=500 --verify
torchrun --nproc-per-node 8 -m fairface_synth export --engine torchrun --device cuda --config run.yaml
""")
@_pipeline
@click.option("--out", type=_OUT, required=True, help="Folder of the set.")
@click.option(
    "--quota", multiple=True, required=True, metavar="N|GROUP=N", help="Identities of every group, or of one; repeat."
)
@_plan_options
@_axes_option
@click.option("--engine", type=click.Choice(["local", "torchrun", "ray"]), default="local", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="That encode images, a process.")
@click.option("--actors", type=click.IntRange(1), help="Of ray.")
@click.option("--gpus-per-actor", type=click.FloatRange(0), help="Of ray; a fraction shares a GPU.")
@click.option("--judge", metavar="demo|FILE", help="Another labeller, which scores the set.")
@click.option("--audit", type=click.IntRange(1), default=2000, show_default=True, help="Identities it is scored on.")
@click.option("--licence", type=_Pair(), multiple=True, help="Licence fields of the datasheet, such as name=CC-BY-4.0.")
@click.option("--dry-run", is_flag=True, help="Print counts, bytes and hours; write nothing.")
@_models(*_MODEL_OPTIONS)
def export(
    models: _Models,
    pipeline: Path,
    out: Path,
    quota: tuple[str, ...],
    axes: str,
    engine: Any,
    threads: int,
    actors: int | None,
    gpus_per_actor: float | None,
    judge: str | None,
    audit: int,
    licence: tuple[tuple[str, str, str], ...],
    dry_run: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Make a set; the same command again goes on where it stopped.

    Exit code 1 if the budget was spent before the quota was filled.
    """
    from .export import export as run

    fitted, models = _open_pipeline(pipeline, models)
    if settings["crop"] != "none" and not models.detector:
        raise click.UsageError("--crop needs landmarks: add --detector.")
    report = run(
        fitted,
        _plan(quota, settings, fitted),
        out,
        engine,
        axes=_axes(axes, models),
        judge=None if judge is None else models.load_labeller(judge, "judge"),
        licence={key: text for key, _, text in licence} or None,
        threads=threads,
        dry_run=dry_run,
        progress=not quiet,
        audit=audit,
        command=click.get_current_context().meta["command"],
        actors=actors,
        gpus_per_actor=gpus_per_actor,
    )
    _say(report)


def _plan(quota: Sequence[str], settings: Mapping[str, Any], pipeline: Pipeline) -> DatasetPlan:
    from .export import plan_dataset

    renamed = {"psi": "truncation_psi"}
    none = {"fmr": settings["fmr"] or None, "crop": None if settings["crop"] == "none" else settings["crop"]}
    plan = {renamed.get(name, name): value for name, value in {**settings, **none}.items()}
    return plan_dataset(_quota(quota), groups=pipeline.groups, **plan)


def _quota(texts: Sequence[str]) -> int | dict[str, int]:
    """A number for every group, or for each that is named."""
    pairs = [text.rpartition("=") for text in texts]
    try:
        numbers = [int(number) for _, _, number in pairs]
    except ValueError as error:
        raise click.BadParameter(f"--quota is N or GROUP=N: {error}") from error
    names = [name for name, _, _ in pairs]
    if len(pairs) == 1 and "=" not in texts[0]:
        return numbers[0]
    if "" in names or len(set(names)) < len(names):
        raise click.BadParameter(f"--quota is one N, or GROUP=N with each group once: got {', '.join(texts)}")
    return dict(zip(names, numbers, strict=True))


def _axes(text: str, models: _Models) -> Any:
    from .models.demo import demo_axes
    from .variations import Direction, published_axes

    kind, _, folder = text.partition(":")
    if text == "none":
        return None
    if text == "demo":
        return demo_axes(models.world.directions)
    if kind != "published" or not Path(folder).is_dir():
        raise click.BadParameter(f"--axes is none, demo or published:FOLDER with a folder that is there: got {text!r}")
    files = sorted(Path(folder).glob("*.safetensors"))
    return published_axes({path.stem: Direction.load(path, models.torch_device) for path in files})


@_command("""
fairface-synth verify set
fairface-synth verify set --repair --pipeline pipeline --axes demo
fairface-synth verify set --repair --generator ffhq.pkl --device cuda
""")
@click.argument("set", type=_FILE)
@click.option("--repair", is_flag=True, help="Make again what is damaged or missing.")
@click.option("--pipeline", type=_FILE, help="For repairs, that of the export: needed where latents are lost.")
@_axes_option
@_models("generator", "detector", "device", "dtype")
def verify(models: _Models, set: Path, repair: bool, pipeline: Path | None, axes: str, quiet: bool) -> None:
    """Check every checksum, count and item of a set.

    Repairs make images again from their latents, by the generator alone; where the latents are lost too, from the
    pipeline and axes of the export. Exit code 1 if something is damaged or missing, after the repairs if there were.
    """
    from .export import verify_dataset

    source = None
    if repair and pipeline is not None:
        source, models = _open_pipeline(pipeline, models)
    elif repair and models.generator is not None:
        source = models.check().load_generator()
    detector = models.load_detector() if repair else None
    moves = _axes(axes, models) if repair else None
    check = verify_dataset(set, source, repair=repair, axes=moves, detector=detector, progress=not quiet)
    _say(check)
    if not (check.ok or repair):
        _say(f"fairface-synth verify {set} --repair --pipeline DIR does that")
    if not check.ok:
        click.get_current_context().exit(PROBLEM)


# --- audit and compare -----------------------------------------------------------------------------------------------


@_command("""
fairface-synth audit scores.csv --out audit
fairface-synth audit --discriminator ffhq.pkl --images fairface --layout fairface --size 256 --out audit
""")
@click.argument("table", type=_FILE, required=False)
@click.option("--discriminator", type=_FILE, help="Checkpoint whose discriminator scores --images.")
@click.option("--images", type=_FILE, help="Folder of images.")
@click.option("--layout", default="folder", show_default=True, help="Of the images: folder, fairface, utkface, …")
@click.option("--labels", type=_FILE, help="Label file, where the layout has one.")
@click.option("--size", type=click.IntRange(8), help="Resize images to this side, where they differ.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--factors", type=_Names(), help="Columns of labels.  [default: found by their values]")
@click.option("--scores", type=_Names(), help="Columns of scores.  [default: all that begin with score]")
@click.option("--bayes/--no-bayes", default=True, show_default=True, help="Bayesian regressions; the slowest part.")
@click.option("--out", type=_OUT, required=True, help="Folder of the report.")
@_overwrite
@_models("device")
def audit(
    models: _Models,
    table: Path | None,
    discriminator: Path | None,
    images: Path | None,
    layout: str,
    labels: Path | None,
    size: int | None,
    batch_size: int,
    factors: list[str] | None,
    scores: list[str] | None,
    bayes: bool,
    out: Path,
    overwrite: bool,
    quiet: bool,
) -> None:
    """What a discriminator prefers, by a TABLE or by images.

    Statistics on a table of scores and labels, or on images that the discriminator scores first.
    """
    from .audits import audit as run
    from .datasets import read_faces
    from .discriminators import score_table
    from .models.checkpoints import load_discriminator
    from .tables import read_table, write_table

    if (table is None) == (discriminator is None) or (discriminator is None) != (images is None):
        raise click.UsageError("Name a TABLE of scores, or --discriminator and --images.")
    _check_room(out, overwrite)
    if table is not None:
        columns = read_table(table)
    else:
        network = load_discriminator(str(discriminator), models.torch_device)
        faces = read_faces(layout, str(images), labels=labels)
        columns = score_table(network, faces, size=size, batch_size=batch_size, progress=not quiet)
        out.mkdir(parents=True, exist_ok=True)
        write_table(columns, out / "scores.csv")
    report = run(columns, scores, factors, bayes=bayes)
    report.save(out, overwrite=overwrite)
    _say(f"{report}\n\nThe report is {out / 'report.md'}.")


@_command("""
fairface-synth compare real=ffhq synth=set --embedder vggface2 --mac mac.safetensors --out comparison
fairface-synth compare real.csv synth.csv --out comparison
""")
@click.argument("p", metavar="[NAME=]P")
@click.argument("q", metavar="[NAME=]Q")
@click.option("--layout", default="folder", show_default=True, help="Of folders of images: folder, identities, …")
@click.option("--size", type=click.IntRange(8), help="Resize images to this side, where they differ.")
@click.option("--mac", type=_FILE, help="Attribute classifier on the embedder's vectors.  [default: the bundled one]")
@click.option(
    "--on",
    type=click.Choice(["labels", "probabilities", "joint"]),
    default="labels",
    show_default=True,
    help="What of them.",
)
@click.option("--replicates", type=click.IntRange(2), default=200, show_default=True, help="Of the bootstrap.")
@click.option("--out", type=_OUT, required=True, help="Folder of the table; annotations are kept in it.")
@_models("embedder", "device")
def compare(
    models: _Models,
    p: str,
    q: str,
    layout: str,
    size: int | None,
    mac: Path | None,
    on: Any,
    replicates: int,
    out: Path,
    quiet: bool,
) -> None:
    """Kullback-Leibler divergence of two sets' attributes.

    P is the real set, Q the synthetic one.

    A set is a folder of images, one that `export` made, one that `annotate` wrote, or a table of annotations. Run
    again, the command goes on with annotations that were interrupted.
    """
    from .divergence import kl_table
    from .plotting import kl_heatmap

    sets = {}
    for text in (p, q):
        name, mark, path = text.partition("=")
        name, path = (name, path) if mark else (Path(text).stem, text)
        if not Path(path).exists():
            raise click.UsageError(f"There is no {path}: expected a folder, a table, or NAME=PATH.")
        sets[name] = Path(path)
    if len(sets) < 2:
        raise click.UsageError(f"Both sets are called {name!r}: write NAME=PATH.")
    opened = [_annotated(name, path, models, layout, size, mac, out, quiet) for name, path in sets.items()]
    table = kl_table(*opened, on=on, replicates=replicates)
    out.mkdir(parents=True, exist_ok=True)
    (out / "kl.json").write_text(json.dumps(table.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "kl.md").write_text(f"{table}\n", encoding="utf-8")
    kl_heatmap(table).savefig(out / "kl.png", dpi=150)
    _say(f"{table}\n\nThe table is in {out}: kl.md, kl.json, kl.png.")


def _annotated(
    name: str,
    path: Path,
    models: _Models,
    layout: str,
    size: int | None,
    mac: Path | None,
    out: Path,
    quiet: bool,
) -> Any:
    """A set with its attributes, annotated here where it is images."""
    from .annotation import annotate, as_annotations
    from .attribute_classifier import MAC
    from .datasets import read_faces

    made = (path / "plan.json").is_file()
    if not made and (path.is_file() or any(path.glob("*.parquet")) or (path / "annotations.json").is_file()):
        return as_annotations(path)
    if (mac is None) != (models.embedder in (None, "demo")):
        raise click.UsageError("--mac and --embedder go together: the classifier reads that embedder's vectors.")
    if mac is None:
        click.echo(f"{name}: the bundled networks know the bundled generator's faces alone.", err=True)
        classifier, embedder = models.world.mac, models.world.embedder
    else:
        classifier, embedder = MAC.load(mac, models.torch_device), models.check().load_embedder()
    faces = _Exported(name, path, size) if made else read_faces(layout, path, size=size, name=name)
    folder = out / "annotations" / name
    progress = not quiet
    return annotate(
        faces, embedder, classifier, folder, reliability_passes=0, device=models.torch_device, progress=progress
    )


class _Exported:
    """An exported set as `annotate` reads faces."""

    def __init__(self, name: str, path: Path, size: int | None) -> None:
        from .export import open_dataset

        self.name, self.data = name, open_dataset(path, size=size, latents=False)
        numbers, each = range(len(self.data)), self.data.plan.images_per_identity
        self.identities, self.paths = [str(i // each) for i in numbers], [self.data.plan.key(i) for i in numbers]

    def __len__(self) -> int:
        return len(self.data)

    def images(self, start: int, stop: int) -> Any:
        import torch

        return torch.stack([self.data[i]["image"] for i in range(start, stop)])


# --- demo ------------------------------------------------------------------------------------------------------------


@_command("""
fairface-synth demo
fairface-synth demo --out demo --quiet
""")
@click.option("--out", type=_OUT, default=Path("fairface-demo"), show_default=True, help="Folder of everything.")
@click.option("--n", type=click.IntRange(500), default=4000, show_default=True, help="Latents to label.")
def demo(out: Path, n: int, quiet: bool) -> None:
    """Fit, sample, export and verify on the bundled world.

    Takes a minute or two on two cores.
    """
    from .export import export as run
    from .export import plan_dataset, verify_dataset

    models, progress = _Models().filled(), not quiet
    fitted = _fit(models, attributes=["gender", "skin_tone"], n=n, progress=progress)
    _save(fitted, models, out / "pipeline", overwrite=True)
    _say(f"{fitted.report()}\n")
    drawn = fitted.sample("balanced", n=60, seed=1, verify=True, progress=progress)
    drawn.save(out / "faces", overwrite=True)
    _save_grid(drawn, out / "faces" / "faces.png")
    plan = plan_dataset(8, 4, shard_size=64, seed=2, groups=fitted.groups, verify=True, fmr=1e-3)
    command = click.get_current_context().meta["command"]
    axes = _axes("demo", models)
    report = run(fitted, plan, out / "set", axes=axes, judge=models.world.judge, progress=progress, command=command)
    _say(f"{report}\n\n{verify_dataset(out / 'set', progress=progress)}\n")
    _say(
        f"""In {out}: pipeline, faces (see faces.png), set (see README.md). Next:

  fairface-synth sample --pipeline {out}/pipeline --groups dark-female --n 32 --verify --out {out}/dark
  fairface-synth export --pipeline {out}/pipeline --quota 100 --images-per-identity 10 --out {out}/larger
  fairface-synth verify {out}/set"""
    )
