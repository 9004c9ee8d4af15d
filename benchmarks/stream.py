"""What a training step pays for synthetic images made beside it, and whether memory stays constant.

    python benchmarks/stream.py [--real 128] [--synthetic 32] [--steps 20] [--rounds 3] [--threads 1] [--batches 10000]

A small recognition network (residual, 64×64 images) trains on the bundled world: cross-entropy on `--real` stored ones,
consistency and group gap on `--synthetic` ones, one for four by default. Rows of the first table:

- stored: the synthetic images were made before, and are read from memory: what a step costs without a generator;
- when asked for: `ffs.stream(prefetch=0)`;
- ahead: `ffs.stream(prefetch=2)`, in a thread (on a GPU: on a stream of its own).

"Waiting" is the share of the steps' time between asking for a synthetic batch and having it; medians over rounds, which
take turns. On a CPU a thread that makes images takes cores from training: "longer" is the step's time over that of
"stored", and there nothing is hidden. Then: what a batch costs and how often a judge sees the group it was aimed at, by
method; and the process's memory over `--batches` batches of two images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe_machine
from torch import Tensor, nn

import fairface_synth as ffs
from fairface_synth.models.demo import CompactNet
from fairface_synth.regularization import consistency_loss, group_gap_loss
from fairface_synth.streaming import SyntheticBatch, stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--real", type=int, default=128)
    parser.add_argument("--synthetic", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32, help="channels of the network's first layer")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in training and in making images alike")
    parser.add_argument("--batches", type=int, default=10_000, help="for the memory; 0: leave it out")
    parser.add_argument("--bank", type=int, default=5_000, help="latents to label for the pipeline")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    world = ffs.load_demo(args.device)
    attributes = ["gender", "skin_tone"]
    pipeline = ffs.Pipeline.fit(world.generator, world.labeller, attributes=attributes, n=args.bank, progress=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    busy = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    print(f"{describe_machine()}, {cores} cores{busy}\n", flush=True)
    print(waiting(pipeline, args) + "\n", flush=True)
    print(methods(pipeline, world, args.synthetic) + "\n", flush=True)
    if args.batches:
        print(memory(pipeline, args.batches))


# --- waiting --------------------------------------------------------------------------------------------------------


def waiting(pipeline: ffs.Pipeline, args: argparse.Namespace) -> str:
    images = pipeline.sample(n=4 * args.real, seed=99, progress=False).images
    step = train(args.width, images, args.real)
    with stream(pipeline, args.synthetic, prefetch=0) as batches:
        stored = list(islice(batches, 8))
    rows: dict[str, list[tuple[float, float]]] = {"stored": [], "when asked for": [], "ahead": []}
    for _ in range(args.rounds):
        rows["stored"].append(timed(step, cycle(stored), args.steps))
        for name, prefetch in (("when asked for", 0), ("ahead", 2)):
            with stream(pipeline, args.synthetic, prefetch=prefetch) as batches:
                rows[name].append(timed(step, batches, args.steps))
    table = []
    for name, rounds in rows.items():
        seconds = statistics.median(s for s, _ in rounds)
        share = statistics.median(w for _, w in rounds)
        longer = statistics.median(s / base for (s, _), (base, _) in zip(rounds, rows["stored"], strict=True))
        shares = f"{share:.1%} ({min(w for _, w in rounds):.1%} to {max(w for _, w in rounds):.1%})"
        table.append([name, f"{1000 * seconds:.0f}", shares, f"{longer:.2f}×"])
    heading = (
        f"{args.real} real and {args.synthetic} synthetic images a step, {args.rounds} rounds of {args.steps} steps:"
    )
    return heading + "\n\n" + ffs.markdown_table(["synthetic images", "ms a step", "waiting (range)", "longer"], table)


def train(width: int, images: Tensor, real: int) -> Any:
    """A training step: batch → None."""
    net = CompactNet({"embedding": 128}, width).to(images.device).train()
    head = nn.Linear(128, 1000, bias=False, device=images.device)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.01, momentum=0.9)
    labels = torch.randint(1000, (len(images),), device=images.device)

    def step(batch: SyntheticBatch) -> None:
        rows = torch.randint(len(images), (real,), device=images.device)
        embeddings = net(torch.cat((images[rows], batch.images)))["embedding"]
        fake = embeddings[real:]
        loss = F.cross_entropy(head(embeddings[:real]), labels[rows])
        loss = loss + consistency_loss(fake, batch.identity) + group_gap_loss(fake, batch.identity, batch.group_ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def timed(step: Any, batches: Iterator[SyntheticBatch], steps: int) -> tuple[float, float]:
    """Seconds a step, and the share of them spent waiting for synthetic images; after three steps to warm up."""
    for _ in range(3):
        step(next(batches))
    waited, start = 0.0, now()
    for _ in range(steps):
        asked = now()
        batch = next(batches)
        waited += now() - asked
        step(batch)
    total = now() - start
    return total / steps, waited / total


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


# --- methods --------------------------------------------------------------------------------------------------------


def methods(pipeline: ffs.Pipeline, world: ffs.models.demo.DemoWorld, batch_size: int, faces: int = 600) -> str:
    axes = ffs.demo_axes(world.directions)
    rows = []
    for name, kwargs in {
        "gaussian": {},
        "gaussian, axes": {"axes": axes},
        "screen": {"method": "screen"},
        "screen, axes": {"method": "screen", "axes": axes},
    }.items():
        with stream(pipeline, batch_size, prefetch=0, seed=1, **kwargs) as batches:
            next(batches)
            start = now()
            made = list(islice(batches, -(-2 * faces // batch_size)))
            seconds = (now() - start) / len(made)
        images, ids = (torch.cat([getattr(batch, part) for batch in made]) for part in ("images", "group_ids"))
        right = pipeline.groups.assign(world.judge(images)) == ids
        vectors = world.embedder(images)
        cosines = (vectors[0::2] * vectors[1::2]).sum(1)
        shares = [ffs.reports.share_text(right[i::2].double().mean(), *limits(right[i::2])) for i in (0, 1)]
        low, middle, high = cosines.quantile(torch.tensor([0.05, 0.5, 0.95], device=cosines.device)).tolist()
        rows.append([name, f"{1000 * seconds:.0f}", *shares, f"{middle:.2f} ({low:.2f} to {high:.2f})"])
    header = [
        "method",
        f"ms a batch of {batch_size}",
        "group seen in faces",
        "in variations",
        "cosine of the two (90 %)",
    ]
    return ffs.markdown_table(header, rows)


def limits(right: Tensor) -> tuple[Tensor, Tensor]:
    return ffs.wilson_interval(right.sum(), len(right))


# --- memory ---------------------------------------------------------------------------------------------------------


def memory(pipeline: ffs.Pipeline, n: int) -> str:
    rows = []
    with stream(pipeline, 2) as batches:
        for i, _ in enumerate(islice(batches, n), start=1):
            if i % max(1, n // 5) == 0 or i == min(100, n):
                rows.append([f"{i:,}", f"{resident():.0f}"])
    return ffs.markdown_table(["batches of 2", "MB"], rows)


def resident() -> float:
    """Megabytes of this process in memory; on a GPU, those reserved there."""
    if torch.cuda.is_available():
        return torch.cuda.memory_reserved() / 1e6
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
