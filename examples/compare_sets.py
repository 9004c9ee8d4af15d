"""Does the real set explain the synthetic one, and the other way round? Attributes of sets of faces, compared by KL.

On the bundled world (the default; about three minutes of processor time): the generator's natural output as "real"
against Gaussians, screening and truncation as synthetic sets, and a second natural draw to show what "equal" looks
like:

    python examples/compare_sets.py [--faces 2400] [--latents 6000] [--out out/compare_sets]

On sets of yours, the first of them as P ("real"). A set is a folder of images, a folder that `annotate` wrote, or a
table of annotations (.csv, .tsv, .parquet: a column for each attribute, beside id and identity):

    python examples/compare_sets.py real=DIR synth=DIR other=labels.csv --layout identities \\
        --embedder vggface2 --mac mac.safetensors --device cuda

Folders of images need a classifier (`train_mac`) and the embedder it was trained on. Writes report.md, tables as CSV
and JSON, and two heat maps. docs/divergence.md says how to read them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fairface_synth as ffs
from fairface_synth.divergence import Divergence, divergence_text
from fairface_synth.plotting import kl_heatmap
from fairface_synth.reports import markdown_table

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from machine import describe_machine

Annotated = ffs.Annotations | ffs.AnnotationFolder
CELLS = 32
ON = {"labels": "rates, mean", "probabilities": "histograms, mean", "joint": "joint cells"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="name=path", help="two or more; none: the bundled world")
    parser.add_argument("--out", type=Path, default=Path("out/compare_sets"))
    parser.add_argument("--faces", type=int, default=2400, help="bundled world: faces in each set")
    parser.add_argument("--latents", type=int, default=6000, help="bundled world: labelled latents for the pipeline")
    parser.add_argument("--layout", default="folder", help="of folders of images: folder, identities, fairface, …")
    parser.add_argument("--embedder", default="demo", help="demo, vggface2, casia-webface, or a file of weights")
    parser.add_argument("--mac", type=Path, help="file of an attribute classifier; by default the bundled one")
    parser.add_argument("--size", type=int, help="images are resized to so many pixels; needed where they differ")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--replicates", type=int, default=200, help="of the bootstrap over identities")
    args = parser.parse_args()
    start, busy = time.time(), time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        sets = read_sets(args) if args.sets else world_sets(args)
        results = compare(sets, args.replicates)
    except ffs.FairFaceError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    cost = f"{time.time() - start:.0f} s ({time.process_time() - busy:.0f} s of processor time)"
    write(args, results, cost)
    print(f"\n{results.answer()}\n\nEverything is in {args.out.resolve()}: start with report.md.")


# --- sets -------------------------------------------------------------------------------------------------------------


@dataclass
class Natural:
    """Faces of the bundled generator as it is, made when they are asked for."""

    generator: Any
    latents: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    @torch.no_grad()
    def images(self, start: int, stop: int) -> Tensor:
        return self.generator.synthesize(self.latents[start:stop])


def world_sets(args: argparse.Namespace) -> dict[str, Annotated]:
    """The bundled generator's natural output twice, and what five ways of sampling make of it."""
    world, n = ffs.load_demo(args.device), args.faces
    mac = classifier(args, world)
    pipeline = ffs.Pipeline.fit(
        world.generator,
        world.labeller,
        attributes=["skin_tone", "gender"],
        n=args.latents,
        min_samples=5,
        embedder=world.embedder,
    )

    def natural(seed: int, psi: float = 1.0) -> Natural:
        z = ffs.draw_latents(world.generator, seed, 0, n)
        return Natural(world.generator, world.generator.map(z, truncation_psi=psi))

    def annotated(name: str, faces: Any, identities: list[str] | None = None) -> Annotated:
        return ffs.annotate(faces, world.embedder, mac, name=name, identities=identities, reliability_passes=0)

    people = pipeline.sample("balanced", n=max(12, n // 6), seed=14)
    sets = [
        annotated("natural", natural(11)),
        annotated("natural again", natural(12)),
        annotated("Gaussians, balanced", pipeline.sample("balanced", n=n, seed=13).images),
        annotated("Gaussians, 6 each", *varied(pipeline, people, world.directions)),
        annotated("screening, balanced", pipeline.sample("balanced", n=n, seed=15, method="screen").images),
        annotated("truncated, ψ = 0.7", natural(16, 0.7)),
        annotated("truncated, ψ = 0.5", natural(17, 0.5)),
    ]
    return {faces.name: faces for faces in sets}


def varied(pipeline: Any, people: Any, directions: Mapping[str, Any]) -> tuple[Tensor, list[str]]:
    """Each person and five edits of head pose and light; edits that lose the identity are shortened or dropped."""
    axes = [ffs.Axis.spread(directions["yaw"], 3), ffs.Axis.spread(directions["illumination side"], 2)]
    variations = pipeline.vary(people, axes, threshold=pipeline.threshold(1e-2, n=600))
    kept = torch.cat((torch.ones_like(variations.kept[:, :1]), variations.kept), dim=1)
    images = torch.cat((people.images[:, None], variations.images), dim=1)
    return images[kept], [f"person {i}" for i in kept.nonzero()[:, 0].tolist()]


def read_sets(args: argparse.Namespace) -> dict[str, Annotated]:
    """The sets of the command line, annotated where they are images."""
    pairs = dict(text.split("=", 1) if "=" in text else (Path(text).stem, text) for text in args.sets)
    if len(pairs) < 2 or len(pairs) < len(args.sets):
        raise ffs.DataError("a comparison needs sets", expected="two or more name=path, each name once", got=args.sets)
    return {name: read_set(name, Path(path), args) for name, path in pairs.items()}


def read_set(name: str, path: Path, args: argparse.Namespace) -> Annotated:
    if not path.is_dir() or next(path.glob("*.parquet"), None):
        return ffs.as_annotations(path)
    world = ffs.load_demo(args.device)
    faces = ffs.read_faces(args.layout, path, size=args.size, name=name)
    if args.mac is None or args.embedder == "demo":
        print(f"{name}: the bundled networks know the bundled generator's faces alone", file=sys.stderr)
    embedder = world.embedder if args.embedder == "demo" else ffs.load_embedder(args.embedder, args.device)
    folder = args.out / "annotations" / name
    return ffs.annotate(faces, embedder, classifier(args, world), folder, reliability_passes=0, device=args.device)


def classifier(args: argparse.Namespace, world: Any) -> ffs.MAC:
    return world.mac if args.mac is None else ffs.MAC.load(args.mac, args.device).to(dtype=torch.float32)


# --- comparison -------------------------------------------------------------------------------------------------------


@dataclass
class Results:
    """Everything that the report shows; `reference` is P."""

    reference: str
    tables: dict[str, dict[str, ffs.KLTable]]  # {on: {set: table}}
    matrix: ffs.KLMatrix
    consistency: dict[str, ffs.Consistency]

    def answer(self) -> str:
        """The paper's question, answered from the intervals."""
        lines = []
        for name in self.tables["labels"]:
            said = [f"{self.verdict(self.tables[on][name].mean)} ({what})" for on, what in ON.items()]
            lines.append(f"- **{name}**: {'; '.join(said)}.")
        return "\n".join(lines)

    def verdict(self, mean: Mapping[str, Divergence]) -> str:
        forward, backward, gap = mean["kl_pq"], mean["kl_qp"], mean["asymmetry"]
        sides = (forward, backward)
        if all(float(d.value) <= float(d.null_high) or not float(d.low) > 0 for d in sides):
            return "not told apart from equal distributions"
        if float(gap.low) > 0:
            return f"explained by {self.reference} better than it explains {self.reference}"
        if float(gap.high) < 0:
            return f"explains {self.reference} better than {self.reference} explains it"
        return "different, with no clear direction"

    def overview(self) -> str:
        rows = []
        for on, what in ON.items():
            for name, table in self.tables[on].items():
                kinds = ("kl_pq", "kl_qp", "asymmetry")
                texts = [divergence_text(table.mean[kind], signed=kind == "asymmetry") for kind in kinds]
                rows.append([name, what, *texts])
        header = ["Q", "compared on", "KL(P‖Q)", "KL(Q‖P)", "KL(P‖Q) − KL(Q‖P)"]
        return markdown_table(header, rows)


def compare(sets: dict[str, Annotated], replicates: int) -> Results:
    reference, *others = sets
    cells = ffs.fit_cells(list(sets.values()), CELLS)
    counts = {}
    for stream, (name, faces) in enumerate(sets.items()):  # each set is counted once, for everything
        counted = ffs.count_attributes(faces, bins=20, cells=cells, stream=stream, replicates=replicates)
        counts[name] = dataclasses.replace(counted, name=name)
    p = counts[reference]
    tables = {on: {name: ffs.kl_table(p, counts[name], on=on, cells=cells) for name in others} for on in ON}
    within = {name: ffs.consistency(faces, replicates=replicates) for name, faces in sets.items()}
    within = {name: dataclasses.replace(result, name=name) for name, result in within.items()}
    return Results(reference, tables, ffs.kl_matrix(counts), within)


def write(args: argparse.Namespace, results: Results, cost: str) -> None:
    out: Path = args.out
    labels = results.tables["labels"]
    title = "KL of attribute rates, in nats"
    kl_heatmap(list(labels.values()), title=title).savefig(out / "kl_attributes.png", dpi=150)
    kl_heatmap(results.matrix).savefig(out / "kl_matrix.png", dpi=150)
    rows = [
        {"on": on, "q": name, "attribute": attribute, **row}
        for on, per_set in results.tables.items()
        for name, table in per_set.items()
        for attribute, row in table.to_dict()["attributes"].items()
    ]
    ffs.write_table({column: [row[column] for row in rows] for column in rows[0]}, out / "kl.csv")
    everything = {
        "tables": {on: {q: t.to_dict() for q, t in per_set.items()} for on, per_set in results.tables.items()},
        "matrix": results.matrix.to_dict(),
        "consistency": {name: c.to_dict() for name, c in results.consistency.items()},
    }
    (out / "results.json").write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    (out / "report.md").write_text(report(results, cost))


def report(results: Results, cost: str) -> str:
    tables = "\n\n".join(f"### {name}\n\n{table}" for name, table in results.tables["labels"].items())
    within = "\n\n".join(
        str(c) if c.reason and not c.used.any() else f"### {name}\n\n{c}" for name, c in results.consistency.items()
    )
    command = " ".join(["python", "examples/compare_sets.py", *sys.argv[1:]])
    return TEMPLATE.format(
        reference=results.reference,
        answer=results.answer(),
        overview=results.overview(),
        matrix=results.matrix,
        tables=tables,
        within=within,
        machine=f"`{command}`, {cost} on {describe_machine()}",
    )


TEMPLATE = """# Sets of faces, compared by their attributes

P is {reference}. KL(P‖Q) is large where Q lacks what P has; KL(Q‖P) where Q has what P lacks. Neto et al. 2024 report
that real samples suffice to explain the synthetic distribution but not the reverse; in these terms, KL(P‖Q) >
KL(Q‖P) with P real. They give no formula: definitions, smoothing and intervals are this library's.

## Is Q explained by P better than it explains P?

{answer}

{overview}

Nats [95 % interval over identities], corrected for small samples; ° no more than equal distributions often give.
All labels are a classifier's. An error that it makes in both sets alike hides a difference or shrinks it, and one that
it makes in one of them looks like a difference.

## Attributes

![KL divergence of each attribute, both directions](kl_attributes.png)

{tables}

## Every pair of sets

![KL divergence of each pair](kl_matrix.png)

{matrix}

## Consistency within identities

{within}

Made by {machine}.
"""


if __name__ == "__main__":
    main()
