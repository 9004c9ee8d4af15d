"""MTCNN's settings on small generated faces: what share it finds, and how fast, against facenet-pytorch's own loop.

    python benchmarks/detector.py [--images 500]

Natural images of the bundled generator, and the same latents moved by 4σ along a linear direction of falling luminance
(fitted to the mean luminance of 2,000 images): a direction that leaves the faces. All settings see the same images.
"""

from __future__ import annotations

import argparse
import time

import torch
from facenet_pytorch import MTCNN
from machine import describe_machine
from torch import Tensor

import fairface_synth as ffs

SETTINGS = [
    (160, 0.125, 0.709),
    (160, 0.25, 0.709),
    (128, 0.25, 0.709),
    (128, 0.5, 0.709),
    (96, 0.25, 0.709),
    (64, 0.25, 0.709),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    args = parser.parse_args()
    generator = ffs.load_demo().generator
    z = ffs.draw_latents(generator, 0, 0, args.images)
    natural = synthesize(generator, z)
    dark = synthesize(generator, z - 4 * luminance_direction(generator))
    rows = []
    for size, min_face, factor in SETTINGS:
        detector = ffs.load_detector(size=size, min_face=min_face, factor=factor)
        start = time.perf_counter()
        found = detector(natural).found(0.95)
        speed = args.images / (time.perf_counter() - start)
        rows.append(
            [f"ours: {size}", min_face, factor, share(found), share(detector(dark).found(0.95)), f"{speed:.0f}"]
        )
    for size, min_face in ((160, 0.25), (128, 0.25)):
        start = time.perf_counter()
        found = facenet_loop(natural, size, min_face)
        speed = args.images / (time.perf_counter() - start)
        again = facenet_loop(dark, size, min_face)
        rows.append([f"MTCNN.detect: {size}", min_face, 0.709, share(found), share(again), f"{speed:.0f}"])
    print(f"{args.images} images a column; {describe_machine()}\n")
    header = ["size", "min_face", "factor", "natural, found", "dark, found", "images/s"]
    print(ffs.markdown_table(header, [[str(c) for c in row] for row in rows]))


def synthesize(generator, z: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([generator.synthesize(generator.map(chunk)) for chunk in z.split(250)])


def luminance_direction(generator) -> Tensor:
    """Unit vector along which the images' mean luminance rises fastest (least squares)."""
    z = ffs.draw_latents(generator, 1, 0, 2000)
    luminance = (synthesize(generator, z) * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1).mean((1, 2))
    slope = torch.linalg.lstsq(z, (luminance - luminance.mean())[:, None]).solution[:, 0]
    return slope / slope.norm()


def facenet_loop(images: Tensor, size: int, min_face: float) -> Tensor:
    """The same settings through facenet-pytorch's own detect."""
    mtcnn = MTCNN(min_face_size=int(size * min_face), keep_all=False)
    large = torch.nn.functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    pixels = ((large + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    found = []
    for chunk in pixels.split(50):
        _, probabilities = mtcnn.detect(chunk)
        found += [p[0] is not None and p[0] >= 0.95 for p in probabilities]
    return torch.tensor(found)


def share(found: Tensor) -> str:
    return f"{found.float().mean():.3f}"


if __name__ == "__main__":
    main()
