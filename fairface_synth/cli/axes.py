"""What variations of a face move along: `--axes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .models import Models

axes_option = click.option(
    "--axes",
    default="none",
    show_default=True,
    metavar="none|demo|published:FOLDER",
    help="What variations move along: demo's 45, or the published 45 of Direction files smile.safetensors, …",
)


def load_axes(text: str, models: Models) -> Any:
    """The axes that `--axes` names; None for none."""
    from ..models.demo import demo_axes
    from ..variations import Direction, published_axes

    kind, _, folder = text.partition(":")
    if text == "none":
        return None
    if text == "demo":
        return demo_axes(models.world.directions)
    if kind != "published" or not folder or not Path(folder).is_dir():
        raise click.BadParameter(f"--axes is none, demo or published:FOLDER with a folder that is there: got {text!r}")
    files = sorted(Path(folder).glob("*.safetensors"))
    return published_axes({path.stem: Direction.load(path, models.torch_device) for path in files})
