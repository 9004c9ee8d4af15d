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
    from ..variations import PUBLISHED_EXPRESSIONS, Direction, published_axes

    kind, _, folder = text.partition(":")
    if text == "none":
        return None
    if text == "demo":
        return demo_axes(models.world.directions)
    if kind != "published" or not folder:
        raise click.BadParameter(f"--axes is none, demo or published:FOLDER: got {text!r}")
    if not Path(folder).is_dir():
        wanted = ", ".join(f"{name}.safetensors" for name in (*PUBLISHED_EXPRESSIONS, "pose", "illumination"))
        raise click.BadParameter(
            f"--axes {text}: there is no folder {folder!r}. Expected one with {wanted}: directions in your generator's "
            "latents, which you fit and save in Python, ffs.fit_direction(…).save(…); docs/scale.md shows how."
        )
    files = sorted(Path(folder).glob("*.safetensors"))
    return published_axes({path.stem: Direction.load(path, models.torch_device) for path in files})
