"""`fairface-synth verify`: checks of a set, and repairs."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import DataError, GroupError
from .axes import axes_option, load_axes
from .frame import PROBLEM, command, say
from .models import Models, model_options, open_pipeline
from .parameters import FILE
from .wording import in_options


@command("""
fairface-synth verify set
fairface-synth verify set --repair --pipeline pipeline --axes demo
fairface-synth verify set --repair --generator ffhq.pkl --device cuda
""")
@click.argument("set", type=FILE)
@click.option("--repair", is_flag=True, help="Make again what is damaged or missing.")
@click.option("--pipeline", type=FILE, help="For repairs, that of the export: needed where latents are lost.")
@axes_option
@model_options("generator", "detector", "device", "dtype")
def verify(models: Models, set: Path, repair: bool, pipeline: Path | None, axes: str, quiet: bool) -> None:
    """Check every checksum, count and item of a set.

    Repairs make images again from their latents, by the generator alone; where the latents are lost too, from the
    pipeline and axes of the export. Exit code 1 if something is damaged or missing, after the repairs if there were.
    """
    from ..export import verify_dataset

    source = None
    if repair and pipeline is not None:
        source, models = open_pipeline(pipeline, models)
    elif repair and models.generator is not None:
        source = models.check().load_generator()
    detector = models.load_detector() if repair else None
    moves = load_axes(axes, models) if repair else None
    try:
        check = verify_dataset(set, source, repair=repair, axes=moves, detector=detector, progress=not quiet)
    except GroupError as error:
        raise DataError(
            f"{pipeline} is not the pipeline that {set} was exported from",
            expected="one with the groups of the set",
            got=str(error).splitlines()[0],
            fix="name that one with --pipeline; README.md in the set has the command it was made by",
        ) from error
    say(in_options(str(check), click.get_current_context().command))
    if not repair and any(name.startswith("shard ") for name in check.problems):
        say(f"fairface-synth verify {set} --repair --pipeline DIR mends damaged shards")
    if not check.ok:
        click.get_current_context().exit(PROBLEM)
