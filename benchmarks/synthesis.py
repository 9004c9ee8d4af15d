"""Images per second of StyleGAN2 synthesis: a plain reference, this library in float32 and bfloat16, bare convolutions.

    python benchmarks/synthesis.py [--resolutions 64 256 1024] [--rounds 5] [--batch 4]

The variants take turns within each round on all cores; the median over rounds is printed as a markdown table, with the
PSNR of bfloat16 against float32 images (peak-to-peak 2). Weights are random, as at initialisation, but the image is
scaled to a standard deviation of 0.5, as that of a trained network, and noise has strength 0.05.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import reference_stylegan2 as reference
from machine import describe_machine

from fairface_synth.models import base
from fairface_synth.models.stylegan2 import StyleGAN2Generator


def make_generator(resolution: int) -> StyleGAN2Generator:
    """Random weights whose images have the spread of a photograph."""
    torch.manual_seed(resolution)
    channel_base = 32768 if resolution >= 512 else 16384
    config = {"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": resolution, "img_channels": 3}
    generator = StyleGAN2Generator(
        {**config, "synthesis": {"channel_base": channel_base, "channel_max": 512, "conv_clamp": 256}}
    )
    generator.freeze()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.05)
    spread = generator.synthesize(generator.map(torch.randn(2, 512))).std()
    for name, parameter in generator.named_parameters():
        if name.endswith("torgb.weight"):
            parameter.mul_(0.5 / spread)
    return generator


def bare_convolutions(generator: StyleGAN2Generator, n: int, dtype: torch.dtype) -> Callable[[], None]:
    """The same convolutions on ready channels_last inputs, with nothing around them."""
    work = []
    cl = torch.channels_last
    for block in generator.synthesis.blocks:
        for name in ("conv0", "conv1"):
            layer = getattr(block, name, None)
            if layer is None:
                continue
            o, i = layer.weight.shape[:2]
            size = layer.resolution // layer.up
            shape = (i, o, 3, 3) if layer.up > 1 else (o, i, 3, 3)
            x = torch.randn(n, i, size, size).to(dtype, memory_format=cl)
            work.append((layer.up, x, torch.randn(shape).to(dtype, memory_format=cl)))

    def run() -> None:
        for up, x, weight in work:
            if up > 1:
                F.conv_transpose2d(x, weight, stride=2)
            else:
                F.conv2d(x, weight, padding=1)

    return run


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).double().square().mean()))


def forced_bf16(generator: StyleGAN2Generator, w: Tensor) -> Tensor:
    """Images with bfloat16 convolutions even where the CPU emulates them."""
    original = base.native_bf16
    base.native_bf16 = lambda device: True  # type: ignore[assignment]
    try:
        return generator.synthesize(w)
    finally:
        base.native_bf16 = original


def measure(resolution: int, batch: int, rounds: int, forced: bool) -> str:
    """One row of the table."""
    full = make_generator(resolution)
    half = StyleGAN2Generator(full.config)
    half.load_state_dict(full.state_dict())
    half.freeze().set_dtype(torch.bfloat16)
    state = dict(full.state_dict())
    w = full.map(torch.randn(batch, 512))
    runs: list[Callable[[], object]] = [
        lambda: reference.synthesize(full.config, state, w),
        lambda: full.synthesize(w),
        lambda: half.synthesize(w),
        bare_convolutions(full, batch, torch.float32),
        bare_convolutions(full, batch, torch.bfloat16),
    ]
    if forced:
        runs.append(lambda: forced_bf16(half, w))
    times: list[list[float]] = [[] for _ in runs]
    for i in range(rounds + 1):
        for run, seconds in zip(runs, times, strict=True):
            seconds.append(timed(run)) if i else run()
    a, b, c, d32, d16, *rest = (batch / statistics.median(t) for t in times)
    exact = full.synthesize(w)
    error = (exact - reference.synthesize(full.config, state, w)).abs().max() / exact.abs().max()
    cells = [f"{v:.3g}" for v in (a, b, c, d32, d16)]
    cells += [f"{b / a:.2f}×", f"{c / a:.2f}×", f"{c / d16:.2f}", f"{b / d32:.2f}"]
    cells += [f"{psnr(forced_bf16(half, w), exact):.1f} dB", f"{error:.0e}", *(f"{v:.3g}" for v in rest)]
    return f"| {resolution} | {batch} | " + " | ".join(cells) + " |"


def compare_upsampling(rounds: int) -> None:
    """Milliseconds of four equal ways to upsample by 2 with a 3×3 convolution and the 4×4 filter, in float32."""
    print("| n, in, out, size | transposed + filter | two passes | composed, shuffled | composed 6×6 |")
    print("|---|---|---|---|---|")
    cl = torch.channels_last
    for n, i, o, size in ((2, 512, 256, 32), (2, 128, 64, 128), (1, 64, 32, 512)):
        x = torch.randn(n, i, size, size).to(memory_format=cl)
        w3, w6 = torch.randn(i, o, 3, 3).to(memory_format=cl), torch.randn(i, o, 6, 6)
        phases = torch.randn(4 * o, i, 3, 3).to(memory_format=cl)
        square, tall, wide = torch.randn(o, 1, 4, 4), torch.randn(o, 1, 4, 1), torch.randn(o, 1, 1, 4)

        def transposed(x: Tensor = x, w: Tensor = w3) -> Tensor:
            return F.conv_transpose2d(x, w, stride=2)

        def two(y: Tensor, tall: Tensor = tall, wide: Tensor = wide, o: int = o) -> Tensor:
            return F.conv2d(F.conv2d(y, tall, padding=(1, 0), groups=o), wide, padding=(0, 1), groups=o)

        runs: list[Callable[[], Tensor]] = [
            lambda t=transposed, k=square, o=o: F.conv2d(t(), k, padding=1, groups=o),
            lambda t=transposed, two=two: two(t()),
            lambda x=x, w=phases: F.pixel_shuffle(F.conv2d(x, w, padding=1), 2),
            lambda x=x, w=w6: F.conv_transpose2d(x, w, stride=2, padding=2),
        ]
        times: list[list[float]] = [[] for _ in runs]
        for r in range(rounds + 1):
            for run, seconds in zip(runs, times, strict=True):
                seconds.append(timed(run)) if r else run()
        print(f"| {n}, {i}, {o}, {size} | " + " | ".join(f"{1e3 * statistics.median(t):.0f}" for t in times) + " |")


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolutions", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=None, help="default: 8, 4 and 1 at 64, 256 and 1024")
    parser.add_argument("--force-bf16", action="store_true", help="also time bfloat16 where it is emulated")
    parser.add_argument("--upsampling", action="store_true", help="only compare ways of upsampling")
    args = parser.parse_args()
    if args.upsampling:
        compare_upsampling(args.rounds)
        return
    note = "" if base.native_bf16(torch.device("cpu")) else "; dtype=bfloat16 therefore runs in float32"
    print(f"{describe_machine()}{note}; median of {args.rounds}\n")
    head = ["resolution", "batch", "(a) plain fp32", "(b) ours fp32", "(c) ours bf16", "(d) bare fp32", "(d) bare bf16"]
    head += ["b/a", "c/a", "c/d bf16", "b/d fp32", "PSNR bf16", "max error b vs a"]
    head += ["forced bf16"] if args.force_bf16 else []
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for resolution in args.resolutions:
        batch = args.batch or (8 if resolution <= 64 else 4 if resolution <= 256 else 1)
        print(measure(resolution, batch, args.rounds, args.force_bf16), flush=True)


if __name__ == "__main__":
    main()
