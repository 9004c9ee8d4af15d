"""`fairface-synth demo`: the main job on the bundled world."""

from __future__ import annotations

from pathlib import Path

import click

from .axes import load_axes
from .fit import fit_models
from .frame import command, say
from .models import Models, save_pipeline
from .parameters import OUT, check_folder
from .sample import save_grid


@command("""
fairface-synth demo
fairface-synth demo --out demo --quiet
""")
@click.option("--out", type=OUT, default=Path("fairface-demo"), show_default=True, help="Folder of everything.")
@click.option("--n", type=click.IntRange(500), default=4000, show_default=True, help="Latents to label.")
def demo(out: Path, n: int, quiet: bool) -> None:
    """Fit, sample, export and verify on the bundled world.

    Takes a minute or two on two cores.
    """
    from ..export import export as run
    from ..export import plan_dataset, verify_dataset

    check_folder(out)
    models, progress = Models().filled(), not quiet
    fitted = fit_models(models, attributes=["gender", "skin_tone"], n=n, progress=progress)
    save_pipeline(fitted, models, out / "pipeline", overwrite=True)
    say(f"{fitted.report()}\n")
    drawn = fitted.sample("balanced", n=60, seed=1, verify=True, progress=progress)
    drawn.save(out / "faces", overwrite=True)
    save_grid(drawn, out / "faces" / "faces.png")
    plan = plan_dataset(8, 4, shard_size=64, seed=2, groups=fitted.groups, verify=True, fmr=1e-3)
    made_by = click.get_current_context().meta["command"]
    axes = load_axes("demo", models)
    report = run(fitted, plan, out / "set", axes=axes, judge=models.world.judge, progress=progress, command=made_by)
    say(f"{report}\n\n{verify_dataset(out / 'set', progress=progress)}\n")
    say(
        f"""In {out}: pipeline, faces (see faces.png), set (see README.md). Next:

  fairface-synth sample --pipeline {out}/pipeline --groups dark-female --n 32 --verify --out {out}/dark
  fairface-synth export --pipeline {out}/pipeline --quota 100 --images-per-identity 10 --out {out}/larger
  fairface-synth verify {out}/set"""
    )
