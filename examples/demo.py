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
from safetensors.torch import save_file
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
    for chunk in tqdm(images.split(100), desc=f"judging {what}", unit_scale=100, unit="img"):
        judged.append(groups.assign(judge(chunk)))
        found.append(detector(chunk).found())
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
        """For each method: its scores, what was aimed at, and the syntheses it took for each group [G]."""
        g = len(self.groups)
        natural = self.scored["natural"]
        return {
            "natural": (natural, natural.judged, torch.full((g,), len(natural.judged))),
            "Gaussians": (self.scored["Gaussians"], self.gaussian.group_ids, self.gaussian.synthesized),
            "balanced set": (self.scored["balanced set"], self.balanced.group_ids, self.balanced.synthesized),
        }

    def costs(self) -> dict[str, list[float]]:
        """Syntheses per accepted face, for each method and group."""
        return {
            name: (made / scored.accepted(aim, self.groups)).tolist()
            for name, (scored, aim, made) in self.aims().items()
        }

    def table(self) -> str:
        costs = self.costs()
        rows = []
        for g, name in enumerate(self.groups.names):
            hit = [self.hit_rate("Gaussians", g), self.hit_rate("balanced set", g), self.agreement(g)]
            natural = self.shares["natural"]
            rows.append(
                [name, share_text(natural.shares[g], natural.low[g], natural.high[g]), *hit]
                + [f"{costs[m][g]:.1f}" for m in costs]
            )
        header = [
            "group",
            "natural share",
            "hit rate: Gaussians",
            "balanced set",
            "natural faces, labelled so",
        ]
        return ffs.markdown_table([*header, *(f"syntheses per accepted face: {m}" for m in costs)], rows)

    def hit_rate(self, method: str, g: int) -> str:
        scored, aim, _ = self.aims()[method]
        return self._rate(scored.judged[aim == g] == g)

    def agreement(self, g: int) -> str:
        """What the judge says of natural faces that the labeller puts in the group: the two networks' agreement."""
        return self._rate(self.scored["natural"].judged[self.labelled == g] == g)

    @staticmethod
    def _rate(hits: Tensor) -> str:
        k, n = hits.sum(), len(hits)
        return share_text(k / max(1, n), *ffs.wilson_interval(k, n))

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
        aimed = torch.cat([s.judged == aim for s, aim, _ in [self.aims()["balanced set"]]]).float().mean()
        return TEMPLATE.format(
            shares=shares,
            table=self.table(),
            found=found,
            aimed=f"{aimed:.1%}",
            fit=self.pipeline.report(),
            n_natural=len(self.labelled),
            n_gaussian=len(self.gaussian),
            n_balanced=len(self.balanced),
            short=", ".join(f"{self.groups.name(g)}: {k}" for g, k in self.balanced.short.items()) or "none",
            gate=self.pipeline.min_confidence,
            machine=f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {seconds:.0f} s",
        )


TEMPLATE = """# A balanced set from the bundled generator

![faces of the balanced set](balanced.png)

Gender and skin tone are *perceived and apparent*, labelled by machines on small rendered faces; most of the dark tones
come from lighting. Read docs/demo_world.md before drawing any conclusion.

## Shares, as the judge sees them

{shares}

![shares](shares.png)

Shares are as labelled by the judge (95 % Wilson intervals), with no correction for its errors: it disagrees with the
labeller even on natural faces, so a perfectly balanced set would not look perfectly balanced to it. MTCNN finds a
face (≥ 0.95) in: {found}. The judge confirms {aimed} of the balanced set's group labels.

## What it cost

{table}

![costs](costs.png)

- *natural*: {n_natural} draws from the generator as it is. *Gaussians*: {n_gaussian} faces, group densities in an LDA
  subspace of the latent space, nothing rejected. *balanced set*: {n_balanced} faces from the same Gaussians that the
  labeller (confidence ≥ {gate}) and MTCNN confirmed; rejected syntheses are counted.
- *hit rate*: the judge, which selected nothing, sees the target group. *natural faces, labelled so*: the same for
  natural faces that labeller and MTCNN put in the group: a yardstick, since the two networks disagree on those as well.
- *accepted*: the judge sees the target group and MTCNN finds a face. Whether an identity is new is not checked here.
- Groups that could not be filled: {short}.

## What the Gaussians were fitted on (as labelled by the labeller)

{fit}

Made on {machine} by `python examples/demo.py`.
"""


def write(out: Path, report: Report, natural: Tensor, balanced, seconds: float) -> None:
    groups = report.groups
    out.mkdir(parents=True, exist_ok=True)
    title = f"{len(balanced)} faces, balanced over {len(groups)} groups"
    face_grid(balanced.images, balanced.group_ids, groups, columns=12, title=title).savefig(
        out / "balanced.png", dpi=130
    )
    one = ffs.Groups({"set": ["natural"]})
    face_grid(natural[:48], torch.zeros(48, dtype=torch.int64), one, columns=16).savefig(out / "natural.png", dpi=130)
    share_bars(report.shares, title="Group shares as scored by the judge").savefig(out / "shares.png", dpi=130)
    rate_bars(report.costs(), groups, ylabel="syntheses per accepted face", log=True).savefig(
        out / "costs.png", dpi=130
    )
    names = [
        f"{groups.name(g)}/{i:05d}" for g, i in zip(balanced.group_ids.tolist(), balanced.index.tolist(), strict=True)
    ]
    ffs.save_images(balanced.images, out / "faces", names)
    tensors = {"latents": balanced.latents, "group_ids": balanced.group_ids, "index": balanced.index}
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "latents.safetensors")
    text = report.markdown(seconds)
    (out / "report.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
