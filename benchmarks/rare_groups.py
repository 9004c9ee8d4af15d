"""The table that decides: what each way to faces of a group costs, and what it loses. Figures of docs/rare_groups.md.

    python benchmarks/rare_groups.py [--faces 500] [--latents 20000] [--out out/rare_groups]

Every method makes the same number of faces of every group of the bundled world. The labeller selects; the judge and the
embedder score (the latter also selects in "genetic, unique", whose distinct identities are so by construction). KID,
density and coverage compare with natural faces of the group (plain rejection), whose second half is itself scored, as
the row "natural rejection".
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor

import fairface_synth as ffs

GATE = 0.7
STRICT = {"min_confidence": 0.9, "min_face": 0.97}
FMR = 1e-4


@dataclass
class Made:
    """What a method made: faces, their groups, images it took [G], seconds, and the number of first ancestors [G]."""

    images: Tensor
    group_ids: Tensor
    synthesized: Tensor
    seconds: float
    roots: list[int] | None = None


@dataclass
class Scored:
    """Figures of one method, [G] each; Estimates where there are intervals."""

    seconds: float  # per 1,000 accepted faces, over all groups
    faces: list[int]
    cost: list[float]
    hit: list[tuple[int, int]]
    found: list[float]
    distinct: list[float]
    roots: list[float]
    kid: list[ffs.KID | None]
    prdc: list[ffs.PRDC | None]


class Bench:
    """The bundled world, the fitted pipeline, and the natural faces that everything is compared with."""

    def __init__(self, latents: int, faces: int, path: Path) -> None:
        self.world, self.detector, self.faces = ffs.load_demo(), ffs.load_detector(), faces
        self.mappings: dict[str, int] = {}
        self.times: dict[str, float] = {}
        bank = ffs.LatentBank.load(path) if path.exists() else None
        if bank is None or len(bank) != latents:
            start = time.perf_counter()
            bank = ffs.label_latents(self.world.generator, self.world.labeller, latents, detector=self.detector)
            self.times[f"labelling {latents:,} latents, with detections"] = time.perf_counter() - start
            bank.save(path)
        self.pipeline = self.fit(bank, "lda")
        self.without_projection = self.fit(bank, "identity")
        self.groups, self.bank = self.pipeline.groups, bank
        start = time.perf_counter()
        self.screen = self.pipeline.screen
        self.times["fitting the screen"] = time.perf_counter() - start
        self.screen_of_all = ffs.fit_screen(bank)
        self.threshold = self.pipeline.threshold(FMR)

    def fit(self, bank: ffs.LatentBank, method: str) -> ffs.Pipeline:
        return ffs.Pipeline.fit(
            self.world.generator,
            self.world.labeller,
            attributes=["skin_tone", "gender"],
            bank=bank,
            method=method,
            min_confidence=GATE,
            detector=self.detector,
            embedder=self.world.embedder,
        )

    def quota(self, n: int) -> Tensor:
        return torch.full((len(self.groups),), n)

    # --- the methods -----------------------------------------------------------------------------------------------

    def natural(self, n: int) -> tuple[ffs.Accepted, float]:
        """Plain rejection. The detector is spared where a group is full already."""
        left = self.quota(n)

        def assign(images: Tensor) -> Tensor:
            ids = self.groups.assign(self.world.labeller(images), GATE)
            rows = ((ids >= 0) & (left[ids] > 0)).nonzero().squeeze(1)
            kept = torch.full_like(ids, -1)
            kept[rows] = torch.where(self.detector(images[rows]).found(), ids[rows], -1)
            left.sub_(self.groups.count(kept))
            return kept

        start = time.perf_counter()
        found = ffs.reject(self.world.generator, assign, self.quota(n), seed=1, max_syntheses=10**6)
        return found, time.perf_counter() - start

    def halves(self, found: ffs.Accepted, seconds: float) -> tuple[Tensor, Tensor, Made]:
        """The first half of each group's natural faces as embeddings and ids; the second half as a method's result.

        Groups share their draws; each is charged what it would have cost alone.
        """
        rank = torch.cat([torch.arange(int(k)) for k in found.accepted])
        first = rank < self.faces
        drawn = torch.tensor([faces_needed(found, g) * self.faces for g in range(len(self.groups))])
        per_draw = seconds / int(found.drawn[0])
        second = Made(found.images[~first], found.group_ids[~first], drawn, float(drawn.sum()) * per_draw)
        return self.look(found.images[first])[2], found.group_ids[first], second

    def gaussians(self, pipeline: ffs.Pipeline) -> Made:
        start = time.perf_counter()
        sample = pipeline.sample("balanced", n=self.faces * len(self.groups), seed=2, progress=False)
        return Made(sample.images, sample.group_ids, sample.synthesized, time.perf_counter() - start)

    def without(self, g: int) -> ffs.LatentBank:
        """The bank without the latents whose most probable group is g: subspace and Gaussians never see them."""
        return self.bank[(self.bank.group_ids(self.groups) != g).nonzero().squeeze(1)]

    def composed(self) -> Made:
        """Each group in turn is taken out of the bank and composed from the others."""
        blind = [self.fit(self.without(g), "lda") for g in range(len(self.groups))]
        start = time.perf_counter()
        parts = [p.sample(g, n=self.faces, seed=3, progress=False) for g, p in enumerate(blind)]
        seconds = time.perf_counter() - start
        ids = torch.cat([p.group_ids for p in parts])
        return Made(torch.cat([p.images for p in parts]), ids, self.quota(self.faces), seconds)

    def screened(self, **gates: float) -> Made:
        start = time.perf_counter()
        quota = self.quota(self.faces)
        generator, groups = self.world.generator, self.groups
        found = ffs.screen(generator, self.screen, quota, 4, groups=groups, max_mappings=40_000_000, **gates)
        self.mappings[str(gates)] = int(found.drawn[0])
        return Made(found.images, found.group_ids, found.synthesized, time.perf_counter() - start)

    def evolved(self, strategy: ffs.Strategy, unique: bool = False, **options: object) -> Made:
        start = time.perf_counter()
        fitness = ffs.face_fitness(
            self.world.generator,
            self.world.labeller,
            self.groups,
            detector=self.detector,
            embedder=self.world.embedder if unique else None,
            min_confidence=GATE,
            **options,
        )
        archive = ffs.evolve(
            strategy,
            fitness,
            self.quota(self.faces),
            prior=fitness.prior(5),
            threshold=self.threshold if unique else None,
            max_evaluations=15 * self.faces * len(self.groups),
        )
        print(archive.report(fitness.names))
        images = self.synthesize(fitness.w(archive.latents))
        roots = [len(archive.root[archive.group_ids == g].unique()) for g in range(len(self.groups))]
        return Made(images, archive.group_ids, archive.evaluations, time.perf_counter() - start, roots)

    @torch.no_grad()
    def synthesize(self, w: Tensor) -> Tensor:
        return torch.cat([self.world.generator.synthesize(chunk) for chunk in w.split(256)])

    # --- scores ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Judge's groups, found, and embeddings."""
        parts = [
            (
                self.groups.assign(self.world.judge(chunk)),
                self.detector(chunk).found(),
                self.world.embedder(chunk),
            )
            for chunk in images.split(256)
        ]
        judged, found, embeddings = (torch.cat(part) for part in zip(*parts, strict=True))
        return judged, found, embeddings

    def score(self, made: Made, reference: Tensor, reference_ids: Tensor) -> Scored:
        judged, found, embeddings = self.look(made.images)
        right = found & (judged == made.group_ids)
        table = Scored(1000 * made.seconds / max(1, int(right.sum())), [], [], [], [], [], [], [], [])
        for g in range(len(self.groups)):
            mine = made.group_ids == g
            n, accepted = int(mine.sum()), int(right[mine].sum())
            real = reference[reference_ids == g]
            full = n == self.faces == len(real)  # coverage depends on the sizes: others are not comparable
            rng = torch.Generator().manual_seed(0)
            table.faces.append(n)
            table.cost.append(float(made.synthesized[g]) / accepted if accepted else float("inf"))
            table.hit.append((int((judged[mine] == g).sum()), n))
            table.found.append(float(found[mine].float().mean()))
            table.distinct.append(1000 * int(ffs.unique(embeddings[mine], self.threshold).sum()) / max(1, n))
            table.roots.append(1000 * made.roots[g] / max(1, n) if made.roots else float("nan"))
            table.kid.append(ffs.kid(real, embeddings[mine], gamma=1.0) if full else None)
            table.prdc.append(ffs.prdc(real, embeddings[mine], resamples=40, rng=rng) if full else None)
        return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=500, help="faces of each group and method")
    parser.add_argument("--latents", type=int, default=20_000, help="size of the labelled bank")
    parser.add_argument("--rare", type=int, default=60, help="faces of the combination that hardly ever occurs")
    parser.add_argument("--only", nargs="*", help="methods whose name contains one of these")
    parser.add_argument("--bank", type=Path, default=Path("out/bank.safetensors"), help="kept there between runs")
    parser.add_argument("--out", type=Path, default=Path("out/rare_groups"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.latents, args.faces, args.bank)

    found, seconds = bench.natural(2 * args.faces)
    reference, reference_ids, natural = bench.halves(found, seconds)
    methods: dict[str, Callable[[], Made]] = {
        "natural rejection": lambda: natural,
        "branching walk, Z": lambda: bench.evolved(ffs.branching_walk()),
        "Gaussians, LDA": lambda: bench.gaussians(bench.pipeline),
        "Gaussians, no projection": lambda: bench.gaussians(bench.without_projection),
        "composition": bench.composed,
        "screening": lambda: bench.screened(min_confidence=GATE),
        "screening, strict": lambda: bench.screened(**STRICT),
        "genetic": lambda: bench.evolved(ffs.genetic(), detect="successes"),
        "genetic, unique": lambda: bench.evolved(ffs.genetic(), unique=True, detect="successes"),
        "SNES": lambda: bench.evolved(ffs.snes(), detect="successes"),
        "MAP-Elites": lambda: bench.evolved(
            ffs.map_elites(cells=(8, 8), low=(0.0, -0.3), high=(1.0, 0.3)),
            measures=["age", "yaw"],
            terms={ffs.log_target: 1.0, ffs.typicality: 0.5},
        ),
    }
    scores = {}
    for name, make in methods.items():
        if args.only and not any(part.lower() in name.lower() for part in args.only):
            continue
        print(f"\n# {name}", flush=True)
        made = make()
        scores[name] = bench.score(made, reference, reference_ids)
        print(
            f"{made.seconds:.0f} s, syntheses per accepted face {[round(c, 2) for c in scores[name].cost]}", flush=True
        )
    text = report(bench, scores, found, args.faces)
    if "natural rejection" in scores:
        text += "\n\n" + never_seen(bench, found, min(scores["natural rejection"].cost), args.rare)
    (args.out / "tables.md").write_text(text)
    print("\n" + text)


def report(bench: Bench, scores: dict[str, Scored], natural: ffs.Accepted, faces: int) -> str:
    names = bench.groups.names

    def table(cell: Callable[[Scored, int], str]) -> str:
        rows = [[m, *(cell(s, g) if s.faces[g] > 10 else "–" for g in range(len(names)))] for m, s in scores.items()]
        return ffs.markdown_table(["method", *names], rows)

    def rate(pair: tuple[int, int]) -> str:
        k, n = pair
        low, high = ffs.wilson_interval(torch.tensor(k), n)
        return f"{k / n:.2f} [{low:.2f}, {high:.2f}]"

    def coverage(s: Scored, g: int) -> float:
        figure = s.prdc[g]
        return float("nan") if figure is None else float(figure.coverage.value)

    split = scores.get("natural rejection")
    short = {m: s.faces for m, s in scores.items() if min(s.faces) < faces}
    parts = [
        f"{faces} faces of every group and method; {describe_machine()}; {int(natural.drawn[0]):,} natural draws.",
        "Natural draws per face that labeller and detector confirm: "
        + ", ".join(f"{n} {faces_needed(natural, g):.1f}" for g, n in enumerate(names))
        + ".",
        f"One identity: {bench.threshold}.",
        "Mappings: " + "; ".join(f"{n:,} for the screen at {gates}" for gates, n in bench.mappings.items()) + ".",
        "Once: " + "; ".join(f"{what}, {seconds:.0f} s" for what, seconds in bench.times.items()) + ".",
        *(f"Short: {m} found {', '.join(map(str, counts))}." for m, counts in short.items()),
        "### Syntheses per accepted face\n",
        table(lambda s, g: f"{s.cost[g]:.2f}"),
        "### Seconds per 1,000 accepted faces of the balanced set\n",
        ffs.markdown_table(["method", "seconds"], [[m, f"{s.seconds:.0f}"] for m, s in scores.items()]),
        "### Hit rate by the judge\n",
        table(lambda s, g: rate(s.hit[g])),
        "### Detection rate\n",
        table(lambda s, g: f"{s.found[g]:.3f}"),
        "### Distinct identities per 1,000 faces\n",
        table(lambda s, g: f"{s.distinct[g]:.0f}"),
        "### First ancestors per 1,000 faces\n",
        table(lambda s, g: f"{s.roots[g]:.0f}" if s.roots[g] == s.roots[g] else "–"),
        "### KID × 1,000\n",
        table(lambda s, g: interval(s.kid[g], 1000)),
        "### Density\n",
        table(lambda s, g: interval(s.prdc[g] and s.prdc[g].density)),
        "### Coverage\n",
        table(lambda s, g: interval(s.prdc[g] and s.prdc[g].coverage)),
    ]
    if split is not None:
        parts += [
            "### Coverage as a share of natural rejection's\n",
            table(lambda s, g: f"{coverage(s, g) / coverage(split, g):.2f}".replace("nan", "–")),
        ]
    return "\n\n".join(part.rstrip("\n") for part in parts)


def faces_needed(natural: ffs.Accepted, g: int) -> float:
    """Draws per accepted face: those up to the last face that was kept."""
    index = natural.index[natural.group_ids == g]
    return float(index.max() + 1) / len(index)


def interval(figure: ffs.KID | ffs.Estimate | None, scale: float = 1.0) -> str:
    """ "0.93 [0.91, 0.95]", or a dash."""
    if figure is None:
        return "–"
    digits = 1 if scale > 1 else 2
    value, low, high = (scale * float(x) for x in (figure.value, figure.low, figure.high))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def never_seen(bench: Bench, natural: ffs.Accepted, common: float, wanted: int) -> str:
    """A conjunction that hardly ever occurs: how often, and what evolution and screening need for it."""
    world, target = bench.world, "light-female-older"
    groups = bench.bank.groups(["skin_tone", "gender", "age"])
    g = groups.id(target)
    seen, total = 0, int(natural.drawn[0])
    with torch.no_grad():
        for start in range(0, total, 512):
            z = ffs.draw_latents(world.generator, 1, start, min(512, total - start))
            ids = groups.assign(world.labeller(world.generator.synthesize(world.generator.map(z))), GATE)
            seen += int((ids == g).sum())
    low, high = (float(x) for x in ffs.wilson_interval(torch.tensor(seen), total))
    rows = []

    def add(name: str, images: Tensor, made: int) -> None:
        with torch.no_grad():
            judged, embeddings = groups.assign(world.judge(images)) == g, world.embedder(images)
        accepted = int((judged & bench.detector(images).found()).sum())
        each = f"{made / accepted:.1f}" if accepted else "–"
        different = int(ffs.unique(embeddings, bench.threshold).sum())
        rows.append([name, str(len(images)), str(made), each, f"{float(judged.float().mean()):.2f}", str(different)])

    for name, strategy, unique in (
        ("branching walk, Z", ffs.branching_walk(), False),
        ("genetic", ffs.genetic(), False),
        ("genetic, unique", ffs.genetic(), True),
        ("SNES", ffs.snes(), False),
    ):
        fitness = ffs.face_fitness(
            world.generator,
            world.labeller,
            groups,
            [target],
            detector=bench.detector,
            embedder=world.embedder if unique else None,
            min_confidence=GATE,
        )
        archive = ffs.evolve(
            strategy,
            fitness,
            torch.tensor([wanted]),
            seed=6,
            max_evaluations=200 * wanted,
            threshold=bench.threshold if unique else None,
        )
        images = bench.synthesize(fitness.w(archive.latents)) if len(archive) else None
        if images is None:
            rows.append([name, "0", str(int(archive.evaluations)), "–", "–", "–"])
        else:
            add(name, images, int(archive.evaluations))
    quota = torch.zeros(len(groups), dtype=torch.int64)
    quota[g] = wanted
    for gate in (0.6, GATE):
        fitted = bench.screen_of_all
        found = ffs.screen(
            world.generator, fitted, quota, 7, groups=groups, min_confidence=gate, max_mappings=10_000_000
        )
        name = f"screening, gate {gate} ({int(found.drawn[0]):,} mappings)"
        if found.images is None:
            rows.append([name, "0", "0", "–", "–", "–"])
        else:
            add(name, found.images, int(found.synthesized.sum()))
    header = ["method", "found", "syntheses", "per accepted face", "hit rate by the judge", "identities"]
    return "\n".join(
        [
            f"### {target}, which hardly ever occurs\n",
            f"{seen} of {total:,} natural draws ({low:.1e} to {high:.1e}), labelled at a confidence of {GATE}; "
            f"{wanted} faces wanted. By natural rejection, an accepted face of the commonest of the six groups costs "
            f"{common:.1f} syntheses.\n",
            ffs.markdown_table(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
