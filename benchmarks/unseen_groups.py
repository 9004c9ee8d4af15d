"""Groups never seen: composed from their attributes, beside the direct fit. Figures of docs/rare_groups.md.

    python benchmarks/unseen_groups.py [--faces 300] [--latents 20000] [--out out/unseen_groups]

Each group in turn is taken out of the bank entirely: every latent whose most probable group it is. What is left makes
the composed Gaussian and the blind screen, which knows the attributes but never saw them together.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from machine import describe_machine
from rare_groups import GATE, Bench, Made, interval

import fairface_synth as ffs


def merged(parts: list[Made]) -> Made:
    """One group from each part."""
    return Made(
        torch.cat([p.images for p in parts if len(p.group_ids)]),
        torch.cat([p.group_ids for p in parts]),
        torch.stack([p.synthesized[g] for g, p in enumerate(parts)]),
        sum(p.seconds for p in parts),
    )


def screened(bench: Bench, fitted: ffs.Screen, g: int) -> Made:
    quota = torch.zeros(len(bench.groups), dtype=torch.int64)
    quota[g] = bench.faces
    found = ffs.screen(
        bench.world.generator, fitted, quota, 4, groups=bench.groups, min_confidence=GATE, max_mappings=5_000_000
    )
    return Made(found.images, found.group_ids, found.synthesized, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=300, help="faces of each group and method")
    parser.add_argument("--latents", type=int, default=20_000, help="size of the labelled bank")
    parser.add_argument("--bank", type=Path, default=Path("out/bank.safetensors"), help="kept there between runs")
    parser.add_argument("--out", type=Path, default=Path("out/unseen_groups"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.latents, args.faces, args.bank)
    groups = bench.groups
    reference, reference_ids, natural = bench.halves(*bench.natural(2 * args.faces))

    fitted = [ffs.fit_screen(bench.without(g), groups.attributes) for g in range(len(groups))]
    made = {
        "natural rejection": natural,
        "Gaussian, direct": bench.gaussians(bench.pipeline),
        "composed, group held out": bench.composed(),
        "screen": merged([screened(bench, bench.screen, g) for g in range(len(groups))]),
        "screen, group held out": merged([screened(bench, blind, g) for g, blind in enumerate(fitted)]),
    }
    scores = {name: bench.score(m, reference, reference_ids) for name, m in made.items()}
    hits = [
        [name, *(f"{s.hit[g][0] / max(1, s.hit[g][1]):.2f}" for g in range(len(groups)))] for name, s in scores.items()
    ]
    coverage = [[name, *(interval(p and p.coverage) for p in s.prdc)] for name, s in scores.items()]
    text = "\n\n".join(
        [
            f"{args.faces} faces of every group and method; bank of {args.latents:,}; {describe_machine()}",
            "### Hit rate by the judge",
            ffs.markdown_table(["method", *groups.names], hits),
            "### Coverage of the natural faces",
            ffs.markdown_table(["method", *groups.names], coverage),
        ]
    )
    (args.out / "tables.md").write_text(text)
    print("\n" + text)


if __name__ == "__main__":
    main()
