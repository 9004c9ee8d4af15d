"""`fairface-synth export`: sets of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .axes import axes_option, load_axes
from .frame import command, say
from .group_names import check_groups
from .models import MODEL_OPTIONS, Models, model_options, open_pipeline
from .parameters import OUT, Number, Pair, Rate, check_folder, pipeline_option

if TYPE_CHECKING:
    from ..export import DatasetPlan
    from ..pipeline import Pipeline

_LAYOUTS = ("webdataset", "folders", "rec", "parquet")
PLAN_OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("images-per-identity", click.IntRange(1), 1, "The face itself and variations of it."),
    ("shard-size", click.IntRange(1), 10_000, "Images in a shard at most; it holds whole identities."),
    ("seed", click.IntRange(0), 0, "Of everything drawn."),
    ("method", click.Choice(["gaussian", "screen"]), "gaussian", "How faces are drawn."),
    ("psi", Number(), 1.0, "Truncation; of gaussian alone."),
    ("candidates", click.IntRange(1), 256, "Natural draws a face, of screen."),
    ("perturbation", Number(), 0.2, "Size of variations where there are no axes."),
    ("verify", bool, False, "Keep faces that the labeller confirms."),
    ("fmr", Rate(), "auto", "No two identities match at this false match rate (auto: 1e-4, with an embedder)."),
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
    for name, kind, default, text in reversed(PLAN_OPTIONS):
        flag = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
        given = {} if kind is bool else {"type": kind}
        function = click.option(flag, default=default, show_default=default is not None, help=text, **given)(function)
    return function


@command("""
fairface-synth export --pipeline pipeline --out set --quota 100 --images-per-identity 10 --dry-run
fairface-synth export --pipeline pipeline --out set --quota dark-female=500 --quota dark-male=500 --verify
torchrun --nproc-per-node 8 -m fairface_synth export --engine torchrun --device cuda --config run.yaml
""")
@pipeline_option
@click.option("--out", type=OUT, required=True, help="Folder of the set.")
@click.option(
    "--quota", multiple=True, required=True, metavar="N|GROUP=N", help="Identities of every group, or of one; repeat."
)
@_plan_options
@axes_option
@click.option("--engine", type=click.Choice(["local", "torchrun", "ray"]), default="local", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="That encode images, a process.")
@click.option("--actors", type=click.IntRange(1), help="Of ray.")
@click.option("--gpus-per-actor", type=click.FloatRange(0), help="Of ray; a fraction shares a GPU.")
@click.option("--judge", metavar="demo|FILE", help="Another labeller, which scores the set.")
@click.option("--audit", type=click.IntRange(1), default=2000, show_default=True, help="Identities it is scored on.")
@click.option("--licence", type=Pair(), multiple=True, help="Licence fields of the datasheet, such as name=CC-BY-4.0.")
@click.option("--dry-run", is_flag=True, help="Print counts, bytes and hours; write nothing.")
@model_options(*MODEL_OPTIONS)
def export(
    models: Models,
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
    from ..export import export as run

    check_folder(out)
    fitted, models = open_pipeline(pipeline, models)
    if settings["crop"] != "none" and not models.detector:
        raise click.UsageError("--crop needs landmarks: add --detector.")
    report = run(
        fitted,
        _plan(quota, settings, fitted),
        out,
        engine,
        axes=load_axes(axes, models),
        judge=None if judge is None else models.load_judge(judge),
        licence={key: text for key, _, text in licence} or None,
        threads=threads,
        dry_run=dry_run,
        progress=not quiet,
        audit=audit,
        command=click.get_current_context().meta["command"],
        actors=actors,
        gpus_per_actor=gpus_per_actor,
    )
    say(report)


def parse_quota(texts: Sequence[str]) -> int | dict[str, int]:
    """A number for every group, or for each that is named."""
    pairs = [text.rpartition("=") for text in texts]
    try:
        numbers = [int(number) for _, _, number in pairs]
    except ValueError as error:
        raise click.BadParameter(f"--quota is N or GROUP=N, N a whole number: got {', '.join(texts)}") from error
    names = [name for name, _, _ in pairs]
    if len(pairs) == 1 and "=" not in texts[0]:
        return numbers[0]
    if "" in names or len(set(names)) < len(names):
        raise click.BadParameter(f"--quota is one N, or GROUP=N with each group once: got {', '.join(texts)}")
    return dict(zip(names, numbers, strict=True))


def _plan(quota: Sequence[str], settings: Mapping[str, Any], pipeline: Pipeline) -> DatasetPlan:
    from ..export import plan_dataset

    wanted = parse_quota(quota)
    if isinstance(wanted, dict):
        check_groups(wanted, pipeline.groups, "--quota")
    renamed = {"psi": "truncation_psi"}
    none = {"fmr": settings["fmr"] or None, "crop": None if settings["crop"] == "none" else settings["crop"]}
    plan = {renamed.get(name, name): value for name, value in {**settings, **none}.items()}
    return plan_dataset(wanted, groups=pipeline.groups, **plan)
