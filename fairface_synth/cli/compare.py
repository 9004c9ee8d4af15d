"""`fairface-synth compare`: divergence of two sets' attributes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .frame import command, say
from .models import Models, model_options, read_for
from .parameters import FILE, OUT, check_folder


@command("""
fairface-synth compare real=ffhq synth=set --embedder vggface2 --mac mac.safetensors --out comparison
fairface-synth compare real.csv synth.csv --out comparison
""")
@click.argument("p", metavar="[NAME=]P")
@click.argument("q", metavar="[NAME=]Q")
@click.option("--layout", default="folder", show_default=True, help="Of folders of images: folder, identities, …")
@click.option("--size", type=click.IntRange(8), help="Resize images to this side, where they differ.")
@click.option("--mac", type=FILE, help="Attribute classifier on the embedder's vectors.  [default: the bundled one]")
@click.option(
    "--on",
    type=click.Choice(["labels", "probabilities", "joint"]),
    default="labels",
    show_default=True,
    help="What of them.",
)
@click.option("--replicates", type=click.IntRange(2), default=200, show_default=True, help="Of the bootstrap.")
@click.option("--out", type=OUT, required=True, help="Folder of the table; annotations are kept in it.")
@model_options("embedder", "device")
def compare(
    models: Models,
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
    from ..divergence import kl_table
    from ..plotting import kl_heatmap

    check_folder(out)
    models.check()
    sets = {}
    for text in (p, q):
        name, mark, path = text.partition("=")
        if not mark or Path(text).exists():  # also runs/lr=0.1
            name, path = Path(text).stem, text
        if not Path(path).exists():
            raise click.UsageError(f"There is no {path}: expected a folder, a table, or NAME=PATH.")
        if not name:
            raise click.UsageError(f"{text}: expected NAME=PATH, got no name.")
        sets[name] = Path(path)
    if len(sets) < 2:
        raise click.UsageError(f"Both sets are called {name!r}: write NAME=PATH.")
    opened = [_annotated(name, path, models, layout, size, mac, out, quiet) for name, path in sets.items()]
    table = kl_table(*opened, on=on, replicates=replicates)
    out.mkdir(parents=True, exist_ok=True)
    (out / "kl.json").write_text(json.dumps(table.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / "kl.md").write_text(f"{table}\n", encoding="utf-8")
    kl_heatmap(table).savefig(out / "kl.png", dpi=150)
    say(f"{table}\n\nThe table is in {out}: kl.md, kl.json, kl.png.")


def _annotated(
    name: str,
    path: Path,
    models: Models,
    layout: str,
    size: int | None,
    mac: Path | None,
    out: Path,
    quiet: bool,
) -> Any:
    """A set with its attributes, annotated here where it is images."""
    from ..annotating import annotate
    from ..annotation_sources import as_annotations
    from ..attribute_classifier import MAC
    from ..datasets import read_faces

    made = (path / "plan.json").is_file()
    if not made and (path.is_file() or any(path.glob("*.parquet")) or (path / "annotations.json").is_file()):
        return as_annotations(path)
    if (mac is None) != (models.embedder in (None, "demo")):
        raise click.UsageError("--mac and --embedder go together: the classifier reads that embedder's vectors.")
    if mac is None:
        click.echo(f"{name}: the bundled networks know the bundled generator's faces alone.", err=True)
        classifier, embedder = models.world.mac, models.world.embedder
    else:
        with read_for("mac", mac):
            classifier = MAC.load(mac, models.torch_device)
        embedder = models.load_embedder()
    faces = _Exported(name, path, size) if made else read_faces(layout, path, size=size, name=name)
    folder = out / "annotations" / name
    progress = not quiet
    return annotate(
        faces, embedder, classifier, folder, reliability_passes=0, device=models.torch_device, progress=progress
    )


class _Exported:
    """An exported set as `annotate` reads faces."""

    def __init__(self, name: str, path: Path, size: int | None) -> None:
        from ..export import open_dataset

        self.name, self.data = name, open_dataset(path, size=size, latents=False)
        numbers, each = range(len(self.data)), self.data.plan.images_per_identity
        self.identities, self.paths = [str(i // each) for i in numbers], [self.data.plan.key(i) for i in numbers]

    def __len__(self) -> int:
        return len(self.data)

    def images(self, start: int, stop: int) -> Any:
        import torch

        return torch.stack([self.data[i]["image"] for i in range(start, stop)])
