"""The main job on the bundled world: a balanced set of faces from a biased generator, and what it cost.

    python examples/demo.py [--out out/demo] [--latents 20000] [--faces 60] [--natural 2400] [--aimed 150]

Writes report.md, three figures, the faces as PNG files and their latents. Every score comes from the judge, which
took no part in choosing; every "accepted" face is one that the judge confirms and in which MTCNN finds a face.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import fairface_synth as ffs
from fairface_synth.plotting import face_grid, rate_bars, share_bars
from fairface_synth.reports import share_text


@dataclass
class Scored:
    """A set of faces as the judge and the detector see it."""

    judged: Tensor  # group ids [n]
    found: Tensor  # bool [n]

    def accepted(self, aim: Tensor, groups: ffs.Groups) -> Tensor:
        """Faces of each group [G] that were aimed at it, are confirmed by the judge and hold a face."""
        return groups.count(torch.where(self.found & (self.judged == aim), aim, -1))


@torch.no_grad()
def score(images: Tensor, judge, detector, groups: ffs.Groups, what: str) -> Scored:
    judged, found = [], []
    with tqdm(total=len(images), desc=f"judging {what}", unit="img") as bar:
        for chunk in images.split(100):
            judged.append(groups.assign(judge(chunk)))
            found.append(detector(chunk).found())
            bar.update(len(chunk))
    return Scored(torch.cat(judged), torch.cat(found))


@torch.no_grad()
def natural_images(generator, n: int, seed: int) -> Tensor:
    z = ffs.draw_latents(generator, seed, 0, n)
    return torch.cat([generator.synthesize(generator.map(chunk)) for chunk in z.split(200)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--latents", type=int, default=20_000, help="size of the labelled bank")
    parser.add_argument("--faces", type=int, default=60, help="faces per group in the balanced set")
    parser.add_argument("--natural", type=int, default=2400, help="fresh natural faces, scored for the 'before'")
    parser.add_argument("--aimed", type=int, default=150, help="Gaussian faces per group, scored without any selection")
    args = parser.parse_args()
    start = time.time()

    world = ffs.load_demo()
    detector = ffs.load_detector()
    pipeline = ffs.Pipeline.fit(
        world.generator,
        world.labeller,
        attributes=["skin_tone", "gender"],
        n=args.latents,
        seed=0,
        min_confidence=0.7,
        detector=detector,
    )
    groups = pipeline.groups
    print(f"\n{pipeline.report()}\n")

    natural = natural_images(world.generator, args.natural, seed=1)
    gaussian = pipeline.sample("balanced", n=args.aimed * len(groups), seed=2)
    balanced = pipeline.sample("balanced", n=args.faces * len(groups), seed=3, verify=True)
    scored = {
        "natural": score(natural, world.judge, detector, groups, "natural faces"),
        "Gaussians": score(gaussian.images, world.judge, detector, groups, "Gaussian faces"),
        "balanced set": score(balanced.images, world.judge, detector, groups, "the balanced set"),
    }
    labelled = torch.cat([pipeline.assign(chunk) for chunk in natural.split(200)])
    report = Report(pipeline, scored, labelled, gaussian, balanced)
    write(args.out, report, natural, balanced, time.time() - start)
    print(f"\n{report.table()}\n\nEverything is in {args.out.resolve()}: start with report.md and balanced.png.")


class Report:
    """The figures of report.md."""

    def __init__(self, pipeline, scored: dict[str, Scored], labelled: Tensor, gaussian, balanced) -> None:
        self.pipeline, self.groups, self.scored = pipeline, pipeline.groups, scored
        self.labelled, self.gaussian, self.balanced = labelled, gaussian, balanced
        self.shares = {name: ffs.group_shares(self.groups, s.judged) for name, s in scored.items()}

    def aims(self) -> dict[str, tuple[Scored, Tensor, Tensor]]:
        """For each method: its scores, what each face was aimed at (−1: thrown away), syntheses per group [G]."""
        natural = self.scored["natural"]
        drawn = torch.full((len(self.groups),), len(natural.judged))
        return {
            "natural": (natural, natural.judged, drawn),
            "natural, checked": (natural, self.labelled, drawn),
            "Gaussians": (self.scored["Gaussians"], self.gaussian.group_ids, self.gaussian.synthesized),
            "Gaussians, checked": (self.scored["balanced set"], self.balanced.group_ids, self.balanced.synthesized),
        }

    def costs(self) -> dict[str, list[float]]:
        """Syntheses per accepted face, for each method and group."""
        return {
            n: (made / scored.accepted(aim, self.groups)).tolist() for n, (scored, aim, made) in self.aims().items()
        }

    def hits(self) -> str:
        """Hit rates by the judge; it selects the natural faces of a group itself, so those have none."""
        methods = [m for m in self.aims() if m != "natural"]
        rows = [[name, *(self.hit_rate(m, g) for m in methods)] for g, name in enumerate(self.groups.names)]
        return ffs.markdown_table(["group", *methods], rows)

    def table(self) -> str:
        costs = self.costs()
        rows = [[name, *(f"{costs[m][g]:.1f}" for m in costs)] for g, name in enumerate(self.groups.names)]
        return ffs.markdown_table(["group", *costs], rows)

    def hit_rate(self, method: str, g: int) -> str:
        scored, aim, _ = self.aims()[method]
        return self._rate(scored.judged[aim == g] == g)

    @staticmethod
    def _rate(hits: Tensor) -> str:
        k, n = hits.sum(), len(hits)
        return f"{share_text(k / max(1, n), *ffs.wilson_interval(k, n))} of {n}"

    def markdown(self, seconds: float) -> str:
        shares = ffs.markdown_table(
            ["group", *self.shares],
            [
                [name, *(share_text(s.shares[g], s.low[g], s.high[g]) for s in self.shares.values())]
                for g, name in enumerate(self.groups.names)
            ]
            + [["largest / smallest", *(f"{s.imbalance:.1f}" for s in self.shares.values())]],
        )
        found = ", ".join(f"{name} {s.found.float().mean():.1%}" for name, s in self.scored.items())
        confirmed = {
            name: f"{(scored.judged == aim)[aim >= 0].float().mean():.1%}"
            for name, (scored, aim, _) in self.aims().items()
        }
        return TEMPLATE.format(
            shares=shares,
            hits=self.hits(),
            table=self.table(),
            found=found,
            confirmed=confirmed,
            chance=f"{1 / len(self.groups):.0%}",
            seed=self.balanced.seed,
            fit=self.pipeline.report(),
            n_natural=len(self.labelled),
            n_gaussian=len(self.gaussian),
            n_balanced=len(self.balanced),
            short=", ".join(f"{self.groups.name(g)}: {k}" for g, k in self.balanced.short.items()) or "none",
            gate=self.pipeline.min_confidence,
            machine=f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {seconds:.0f} s",
        )


TEMPLATE = """# A balanced set from the bundled generator

![faces of the balanced set, the first twelve of each group](balanced.png)

Gender and skin tone are *perceived and apparent*, labelled by machines on small rendered faces; most of the dark tones
come from lighting. Read docs/demo_world.md before drawing any conclusion. For comparison, what the generator makes by
itself:

![natural faces](natural.png)

## Shares, as the judge sees them

{shares}

![shares](shares.png)

The judge's most probable group, without a confidence gate; 95 % Wilson intervals. Shares are as labelled, with no
correction for the judge's errors: it disagrees with the labeller on natural faces too, so a perfectly balanced set
would not look perfectly balanced to it. MTCNN finds a face (≥ 0.95) in: {found}.

## Hit rates: does the judge see the group a face was made for?

{hits}

Overall {confirmed[natural, checked]} of the natural faces that labeller and MTCNN put in a group,
{confirmed[Gaussians]} of the Gaussians', and {confirmed[Gaussians, checked]} of the balanced set's; guessing would give
{chance}. The first figure is how far two independent labellers agree on this generator: a yardstick for the last one.

## What it cost: syntheses per accepted face

{table}

![costs](costs.png)

- *accepted*: the judge sees the target group, and MTCNN finds a face. Whether an identity is new is not checked here.
- *natural*: {n_natural} draws from the generator as it is, in the groups that the judge itself sees; no other check.
- *natural, checked*: those that the labeller (confidence ≥ {gate}) and MTCNN put in a group: plain rejection.
- *Gaussians*: {n_gaussian} faces, group densities in an LDA subspace of the latent space, nothing rejected.
- *Gaussians, checked*: the balanced set, {n_balanced} faces from the same Gaussians that labeller and MTCNN confirmed;
  the rejected syntheses are counted. Compare it with *natural, checked*, which passes the same checks.
- Groups that could not be filled: {short}.

## What the Gaussians were fitted on (as labelled by the labeller)

{fit}

The faces are in faces/<group>/<index>.png, their latents in faces/latents.safetensors (seed {seed}). Made on
{machine} by `python examples/demo.py`.
"""


def write(out: Path, report: Report, natural: Tensor, balanced, seconds: float) -> None:
    groups = report.groups
    out.mkdir(parents=True, exist_ok=True)
    title = f"the first 12 of each of {len(groups)} groups, from a balanced set of {len(balanced)}"
    face_grid(balanced.images, balanced.group_ids, groups, columns=12, title=title).savefig(
        out / "balanced.png", dpi=130
    )
    rows = ffs.Groups({"natural": ["draws 1–12", "draws 13–24", "draws 25–36"]})
    face_grid(natural[:36], torch.arange(36) // 12, rows, columns=12).savefig(out / "natural.png", dpi=130)
    share_bars(report.shares, title="Group shares as scored by the judge").savefig(out / "shares.png", dpi=130)
    rate_bars(report.costs(), groups, ylabel="syntheses per accepted face", log=True).savefig(
        out / "costs.png", dpi=130
    )
    balanced.save(out / "faces", overwrite=True)
    text = report.markdown(seconds)
    (out / "report.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
