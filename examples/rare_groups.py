"""Faces the generator hardly ever makes, in pictures: a rare group four ways, different people, several images of each.

    python examples/rare_groups.py [--out out/rare_groups_example] [--latents 8000] [--faces 40]

Reads like a notebook, and runs as one (the cells start at "# %%"); about two minutes on two free cores. What each
method costs and loses is measured properly by benchmarks/rare_groups.py; this script shows how to ask.
"""

# %% What we have: a generator that makes few light faces, a labeller to select, a judge to score
from __future__ import annotations

import argparse
from pathlib import Path

import torch

import fairface_synth as ffs
from fairface_synth.plotting import face_grid, pair_grid

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("out/rare_groups_example"))
parser.add_argument("--latents", type=int, default=8000, help="size of the labelled bank")
parser.add_argument("--faces", type=int, default=40, help="faces for each method")
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)

world = ffs.load_demo()
pipeline = ffs.Pipeline.fit(
    world.generator,
    world.labeller,
    attributes=["skin_tone", "gender"],
    n=args.latents,
    detector=ffs.load_detector(),
    embedder=world.embedder,
)
print(pipeline.report())
group = "light-female"

# %% One call for each method; every face here is confirmed by the labeller and holds a face
samples = {
    method: pipeline.sample(group, n=args.faces, seed=1, method=method, verify=True)
    for method in ("reject", "screen", "gaussian", "evolve")
}
g = pipeline.groups.id(group)
rows = []
for method, sample in samples.items():
    judged = pipeline.groups.assign(world.judge(sample.images)) == g
    different = len(pipeline.unique(sample))
    cost = int(sample.synthesized[g]) / max(1, len(sample))
    rows.append([method, str(len(sample)), f"{cost:.1f}", f"{judged.float().mean():.0%}", str(different)])
print(ffs.markdown_table(["method", "faces", "syntheses per face", "the judge agrees", "different people"], rows))

methods = ffs.Groups({"method": list(samples)})
images = torch.cat([sample.images for sample in samples.values()])
ids = torch.cat([torch.full((len(sample),), i) for i, sample in enumerate(samples.values())])
face_grid(images, ids, methods, columns=12, title=f"{group}, by four methods").savefig(
    args.out / "methods.png", dpi=130
)

# %% As many *different* people as asked for: identities are compared while sampling, at a stated false match rate
threshold = pipeline.threshold(fmr=1e-2)
print(threshold)
people = pipeline.sample(group, n=args.faces, seed=2, method="screen", verify=True, threshold=threshold)
print(people)
embeddings = ffs.embed(world.embedder, people.images, progress=False)
cosine = (embeddings @ embeddings.T).fill_diagonal_(-1)
nearest = cosine.max(1)
first = nearest.values.argsort(descending=True)[: min(10, len(people))]
pairs = pair_grid(
    people.images[first],
    people.images[nearest.indices[first]],
    nearest.values[first],
    title="the most alike that remain",
)
pairs.savefig(args.out / "pairs.png", dpi=130)

# %% A combination that hardly ever occurs: evolution, with lineages; a budget instead of an endless loop
groups = pipeline.bank.groups(["skin_tone", "gender", "age"])
target = "light-female-older"
fitness = ffs.face_fitness(
    world.generator, world.labeller, groups, [target], detector=pipeline.detector, min_confidence=0.7
)
archive = ffs.evolve(ffs.genetic(), fitness, torch.tensor([args.faces]), seed=3, max_evaluations=5000)
print(archive.report(fitness.names))
if len(archive):
    found = world.generator.synthesize(fitness.w(archive.latents))
    confirmed = groups.assign(world.judge(found)) == groups.id(target)
    print(f"The judge, which selected nothing, sees {target} in {confirmed.float().mean():.0%}.")
    generations = ffs.Groups({"depth": ["early", "late"]})
    late = (archive.depth > archive.depth.float().median()).long()
    figure = face_grid(found, late, generations, columns=12, title=f"{target}, found by evolution")
    figure.savefig(args.out / "evolution.png", dpi=130)

# %% Several images of each person: 45 variations, shortened or dropped where the person would change
axes = ffs.demo_axes(world.directions)
varied = pipeline.vary(people[:4], axes, threshold=threshold)
print(varied)
shown = torch.arange(0, 45, 4)
persons = ffs.Groups({"person": [f"person {i + 1}" for i in range(len(varied.latents))]})
strip = torch.cat((people.images[: len(varied.latents), None], varied.images[:, shown]), dim=1)
who = torch.arange(len(strip)).repeat_interleave(strip.shape[1])
title = "first the person, then variations"
figure = face_grid(strip.flatten(0, 1), who, persons, columns=strip.shape[1], title=title)
figure.savefig(args.out / "variations.png", dpi=130)
print(f"\nPictures are in {args.out.resolve()}.")
