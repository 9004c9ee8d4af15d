"""`fairface-synth audit`: what a discriminator prefers."""

from __future__ import annotations

from pathlib import Path

import click

from .frame import command, say
from .models import Models, model_options, read_for
from .parameters import FILE, OUT, Names, check_room, overwrite_option


@command("""
fairface-synth audit scores.csv --out audit
fairface-synth audit --discriminator ffhq.pkl --images fairface --layout fairface --size 256 --out audit
""")
@click.argument("table", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--discriminator", type=FILE, help="Checkpoint whose discriminator scores --images.")
@click.option("--images", type=FILE, help="Folder of images.")
@click.option("--layout", default="folder", show_default=True, help="Of the images: folder, fairface, utkface, …")
@click.option("--labels", type=FILE, help="Label file, where the layout has one.")
@click.option("--size", type=click.IntRange(8), help="Resize images to this side, where they differ.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--factors", type=Names(), help="Columns of labels.  [default: found by their values]")
@click.option("--scores", type=Names(), help="Columns of scores.  [default: all that begin with score]")
@click.option("--bayes/--no-bayes", default=True, show_default=True, help="Bayesian regressions; the slowest part.")
@click.option("--out", type=OUT, required=True, help="Folder of the report.")
@overwrite_option
@model_options("device")
def audit(
    models: Models,
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
    from ..audits import audit as run
    from ..datasets import read_faces
    from ..models.checkpoints import load_discriminator
    from ..score_tables import score_table
    from ..tables import read_table, write_table

    if (table is None) == (discriminator is None) or (discriminator is None) != (images is None):
        raise click.UsageError("Name a TABLE of scores, or --discriminator and --images.")
    check_room(out, overwrite)
    if table is not None:
        columns = read_table(table)
    else:
        with read_for("discriminator", discriminator):
            network = load_discriminator(str(discriminator), models.torch_device)
        faces = read_faces(layout, str(images), labels=labels)
        columns = score_table(network, faces, size=size, batch_size=batch_size, progress=not quiet)
        out.mkdir(parents=True, exist_ok=True)
        write_table(columns, out / "scores.csv")
    report = run(columns, scores, factors, bayes=bayes)
    report.save(out, overwrite=overwrite)
    say(f"{report}\n\nThe report is {out / 'report.md'}.")
