"""Nearest identities and unique identities, against a FAISS flat index, side by side in one run.

    python benchmarks/identities.py [--n 100000] [--dim 512] [--rounds 3] [--threads 2]

Both see the same float32 unit vectors and search exhaustively. Rows of the table:

- nearest: `novelty(x, y)` against `IndexFlatIP.add` and `.search(k=1)`, n faces in n references;
- unique, few or many repeats: `unique(x, 0.5)` against `IndexFlatIP.range_search` in batches of 4,096 and a greedy loop
  over its lists. "Few": 4 of 5 faces are other people; "many": 10 faces of each person. Without a shared identity two
  random vectors of 512 dimensions never reach 0.5, and two faces of a person are at about 0.8.

"In CPU time" is the ratio of processor seconds, which other programs on the machine disturb less (with one thread:
waiting threads spin). "Same" is the share of faces on which the two agree. FAISS is optional (pip install faiss-cpu);
without it, ours is timed alone. Times include building the index. Then come the thresholds of the bundled world
(--skip-world leaves them out).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import describe_machine
from torch import Tensor

import fairface_synth as ffs
from fairface_synth.identities import novelty, unique
from fairface_synth.thresholds import ImpostorScores, Threshold, impostor_scores, threshold_at_fmr

try:
    import faiss
except ImportError:
    faiss = None

CUT = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--faces", type=int, default=6_000, help="of the bundled world, for the table of thresholds")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--skip-world", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if faiss is None:
        print("faiss is not installed (pip install faiss-cpu): ours alone\n")
    else:
        faiss.omp_set_num_threads(args.threads)

    other, few, many = (people(args.n, args.dim, repeats, seed) for seed, repeats in enumerate((1, 1.25, 10)))
    tasks = {
        "nearest": (lambda: novelty(other, few).indices, lambda: faiss_nearest(other, few)),
        "unique, few repeats": (lambda: unique(few, CUT), lambda: faiss_unique(few)),
        "unique, many repeats": (lambda: unique(many, CUT), lambda: faiss_unique(many)),
    }
    rows = [compare(name, *both, args.rounds) for name, both in tasks.items() if args.only in name]
    version = f", faiss {faiss.__version__}" if faiss else ""
    print(f"n = {args.n:,}, {args.dim} dimensions; {describe_machine()}{version}\n")
    print(ffs.markdown_table(["", "ours, s", "FAISS, s", "FAISS / ours", "in CPU time", "same"], rows))
    print(f"\nMedians of {args.rounds} rounds, in turn.")
    if not args.skip_world:
        print(f"\nThe bundled world, {args.faces:,} natural faces, up to 10⁶ pairs a row:\n")
        print(world_thresholds(args.faces))


def people(n: int, dim: int, repeats: float, seed: int) -> Tensor:
    """n faces of n / repeats people in random order."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(int(n / repeats), dim, generator=rng), dim=1)
    x = centres[torch.arange(n) % len(centres)][torch.randperm(n, generator=rng)]
    for rows in torch.arange(n).split(50_000):
        noise = torch.randn(len(rows), dim, generator=rng) * (0.5 / dim**0.5)
        x[rows] = torch.nn.functional.normalize(x[rows] + noise, dim=1)
    return x


def faiss_nearest(x: Tensor, reference: Tensor) -> Tensor:
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(reference.numpy())
    return torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def faiss_unique(x: Tensor) -> Tensor:
    """Greedy selection from lists of matches: what a user of FAISS would write."""
    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x.numpy())
    keep = np.ones(len(x), dtype=bool)
    for start in range(0, len(x), 4096):
        ends, _, matches = index.range_search(x[start : start + 4096].numpy(), CUT)
        for i in range(len(ends) - 1):
            earlier = matches[ends[i] : ends[i + 1]]
            keep[start + i] = not keep[earlier[earlier < start + i]].any()
    return torch.from_numpy(keep)


def compare(name: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], rounds: int) -> list[str]:
    """A row of the table: paired rounds, so that a machine that slows down slows both."""
    mine, others, same = [], [], 1.0
    for _ in range(rounds):
        seconds, result = timed(ours)
        mine.append(seconds)
        if faiss is not None:
            seconds, expected = timed(theirs)
            others.append(seconds)
            same = min(same, float((result == expected).double().mean()))
    if not others:
        return [name, f"{np.median(mine, axis=0)[0]:.1f}", "–", "–", "–", "–"]
    (seconds, _), (other_seconds, _) = np.median(mine, axis=0), np.median(others, axis=0)
    ratio, cpu_ratio = np.median(np.array(others) / np.array(mine), axis=0)
    return [name, f"{seconds:.1f}", f"{other_seconds:.1f}", f"{ratio:.1f}×", f"{cpu_ratio:.1f}×", f"{same:.5f}"]


def timed(f: Callable[[], Tensor]) -> tuple[tuple[float, float], Tensor]:
    """Seconds of the clock and of the processor (all threads), and the result."""
    start, cpu = time.perf_counter(), time.process_time()
    result = f()
    return (time.perf_counter() - start, time.process_time() - cpu), result


def world_thresholds(n: int) -> str:
    """Thresholds at FMR 10⁻³ over all pairs and within groups, and the pooled threshold's FMR within groups."""
    world = ffs.load_demo()
    bank = ffs.label_latents(world.generator, world.labeller, n, seed=11, embedder=world.embedder, progress=False)
    rng = torch.Generator().manual_seed(0)
    impostors = impostor_scores(bank.embeddings, rng=rng)
    pooled = threshold_at_fmr(impostors, 1e-3)
    rows = [_world_row("any two faces", n, impostors, pooled)]
    for attributes in (["gender"], ["skin_tone"], ["age"], ["skin_tone", "gender"]):
        groups = bank.groups(attributes)
        ids = bank.group_ids(groups, min_confidence=0.6)
        sets = {f"same {' and '.join(attributes)}": ids}
        sets |= {f"both {name}": torch.where(ids == g, 0, -1) for g, name in enumerate(groups.names)}
        for name, chosen in sets.items():
            impostors = impostor_scores(bank.embeddings, groups=chosen, rng=rng)
            rows.append(_world_row(name, int((chosen >= 0).sum()), impostors, pooled))
    return ffs.markdown_table(["pairs", "faces", "threshold at FMR 10⁻³", "FMR at the pooled threshold"], rows)


def _world_row(name: str, faces: int, impostors: ImpostorScores, pooled: Threshold) -> list[str]:
    try:
        value = f"{float(threshold_at_fmr(impostors, 1e-3)):.3f}"
    except ffs.DataError:
        value = "too few pairs"
    reached = float((impostors.scores >= float(pooled)).double().mean())
    return [name, f"{faces}", value, f"{reached:.5f}"]


if __name__ == "__main__":
    main()
