"""`fairface-synth fit`: a pipeline from a generator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .frame import command, say
from .group_names import check_attributes
from .models import MODEL_OPTIONS, Models, model_options, save_pipeline
from .parameters import OUT, Names, Number, check_room, overwrite_option

if TYPE_CHECKING:
    from ..pipeline import Pipeline


@command("""
fairface-synth fit --attributes gender,skin_tone --n 20000 --out pipeline
fairface-synth fit --generator ffhq.pkl --labeller res34_fair_align_multi_7_20190809.pt \\
    --embedder vggface2 --detector --attributes race,gender --n 200000 --device cuda --out pipeline
fairface-synth fit --config run.yaml
""")
@click.option("--attributes", type=Names(), help="Attributes that make the groups.  [default: all of the labeller's]")
@click.option("--n", type=click.IntRange(1), default=20_000, show_default=True, help="Latents to label.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--psi", type=Number(), default=1.0, show_default=True, help="Truncation of the latents.")
@click.option("--method", type=click.Choice(["lda", "normals", "pca", "identity"]), default="lda", show_default=True)
@click.option(
    "--min-confidence", type=Number(0, 1), default=0.6, show_default=True, help="Labels below it count for no group."
)
@click.option("--min-samples", type=click.IntRange(2), default=10, show_default=True, help="Rarer groups are composed.")
@click.option("--batch-size", type=click.IntRange(1), default=256, show_default=True)
@click.option("--out", type=OUT, required=True, help="Folder of the pipeline, made whole or not at all.")
@overwrite_option
@model_options(*MODEL_OPTIONS)
def fit(
    models: Models,
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
    check_room(out, overwrite)
    if overwrite and out.exists() and any(out.iterdir()) and not (out / "pipeline.json").is_file():
        raise click.UsageError(f"{out} holds something, but no pipeline to overwrite: name another --out.")
    pipeline = fit_models(
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
    save_pipeline(pipeline, models, out, overwrite)
    say(f"{pipeline.report()}\n\nThe pipeline is in {out}.")


def fit_models(models: Models, *, attributes: list[str] | None, **settings: Any) -> Pipeline:
    """`Pipeline.fit` with the models that the options name; wrong attributes show before the latents are labelled."""
    from ..pipeline import Pipeline

    generator, labeller = models.load_generator(), models.load_labeller()
    if attributes is not None:
        check_attributes(attributes, labeller.attributes)
    return Pipeline.fit(
        generator,
        labeller,
        attributes=attributes,
        detector=models.load_detector(),
        embedder=models.load_embedder(),
        **settings,
    )
