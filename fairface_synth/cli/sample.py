"""`fairface-synth sample`: a few faces of chosen groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .frame import PROBLEM, command, say
from .group_names import check_groups
from .models import MODEL_OPTIONS, Models, model_options, open_pipeline
from .parameters import OUT, Names, Number, check_room, overwrite_option, pipeline_option


@command("""
fairface-synth sample --pipeline pipeline --groups dark-female,light --n 64 --out faces
fairface-synth sample --pipeline pipeline --method screen --verify --n 120 --out faces
""")
@pipeline_option
@click.option("--groups", type=Names(), default="balanced", show_default=True, help="balanced, or names of groups.")
@click.option("--n", type=click.IntRange(1), default=64, show_default=True, help="Faces in all.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--psi", type=Number(), default=1.0, show_default=True, help="Truncation; of gaussian alone.")
@click.option(
    "--method", type=click.Choice(["gaussian", "screen", "reject", "evolve"]), default="gaussian", show_default=True
)
@click.option("--verify/--no-verify", default=False, show_default=True, help="Keep faces that the labeller confirms.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--out", type=OUT, required=True, help="Folder for the images, latents and faces.png.")
@overwrite_option
@model_options(*MODEL_OPTIONS)
def sample(
    models: Models,
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
    check_room(out, overwrite)
    if out.resolve() == pipeline.resolve():
        raise click.UsageError(f"{out} is the pipeline's folder: name another --out.")
    fitted, _ = open_pipeline(pipeline, models)
    check_groups(groups, fitted.groups, "--groups")
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
        save_grid(drawn, out / "faces.png")
    say(f"{drawn}\nThe faces are in {out}, at a glance in {out / 'faces.png'}.")
    if drawn.short:
        click.get_current_context().exit(PROBLEM)


def save_grid(drawn: Any, path: Path) -> None:
    """The faces at a glance."""
    from ..plotting import face_grid

    face_grid(drawn.images, drawn.group_ids, drawn.groups).savefig(path, dpi=120)
