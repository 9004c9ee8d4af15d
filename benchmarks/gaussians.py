"""Per-group Gaussians: `fit_gaussians` against a loop over groups with scikit-learn, side by side in one run.

    python benchmarks/gaussians.py [--n 1000000] [--dim 512] [--groups 14] [--rounds 3]

Both see the same float32 latents and unbalanced hard ids; each pair of rows fits the same estimator. The loop is what a
user would write, `Estimator().fit(x[ids == g])`. GaussianMixture(1) is timed on a tenth of the rows and scaled up.
Needs about 10 GB of memory at the default size.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from machine import describe_machine
from sklearn.covariance import OAS, EmpiricalCovariance, LedoitWolf
from sklearn.mixture import GaussianMixture

import fairface_synth as ffs

ESTIMATORS = {"full": EmpiricalCovariance, "ledoit_wolf": LedoitWolf, "oas": OAS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--groups", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    x, ids = make_data(args.n, args.dim, args.groups)
    rows = []
    for name, estimator in ESTIMATORS.items():
        ours, theirs, ratios = [], [], []
        for _ in range(args.rounds):  # in turn, so that a machine that slows down slows both
            ours.append(seconds(lambda name=name: ffs.fit_gaussians(x, ids, covariance=name)))
            theirs.append(seconds(lambda e=estimator: loop(e, x.numpy(), ids.numpy())))
            ratios.append(theirs[-1] / ours[-1])
        error = difference(ffs.fit_gaussians(x, ids, covariance=name), loop(estimator, x.numpy(), ids.numpy()))
        rows.append([name, estimator.__name__, ours, theirs, ratios, f"{error:.1e}"])
    tenth = args.n // 10
    ours = [seconds(lambda: ffs.fit_gaussians(x, ids)) for _ in range(args.rounds)]
    mixture = [10 * seconds(lambda: mixture_loop(x[:tenth].numpy(), ids[:tenth].numpy())) for _ in range(args.rounds)]
    ratios = [b / a for a, b in zip(ours, mixture, strict=True)]
    rows.append(["full", "GaussianMixture(1), scaled", ours, mixture, ratios, "–"])

    print(f"\n{args.n:,} × {args.dim}, {args.groups} groups; {describe_machine()}\n")
    table = [
        [name, other, f"{np.median(a):.2f}", f"{np.median(b):.2f}", f"{np.median(r):.1f}×", error]
        for name, other, a, b, r, error in rows
    ]
    header = [
        "covariance",
        "scikit-learn, per group",
        "ours, s",
        "loop, s",
        "loop / ours",
        "largest difference",
    ]
    print(ffs.markdown_table(header, table))
    print(f"\nMedians of {args.rounds} rounds; differences of covariances relative to each group's largest entry.")


def make_data(n: int, dim: int, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated latents in groups from 2 % to 20 % of the set."""
    rng = torch.Generator().manual_seed(0)
    weight = torch.linspace(1, 10, groups)
    ids = torch.multinomial(weight, n, replacement=True, generator=rng)
    mix = torch.randn(dim, dim, generator=rng) / dim**0.5
    x = torch.empty(n, dim)
    for chunk in torch.arange(n).split(100_000):
        x[chunk] = torch.randn(len(chunk), dim, generator=rng) @ mix + 0.1 * ids[chunk, None]
    return x, ids


def loop(estimator: type, x: np.ndarray, ids: np.ndarray) -> list:
    return [estimator().fit(x[ids == g]) for g in range(int(ids.max()) + 1)]


def mixture_loop(x: np.ndarray, ids: np.ndarray) -> list:
    return [GaussianMixture(1).fit(x[ids == g]) for g in range(int(ids.max()) + 1)]


def difference(model: ffs.GroupGaussians, fitted: list) -> float:
    ours = model.covariances.double().numpy()
    return max(float(np.abs(ours[g] - f.covariance_).max() / np.abs(f.covariance_).max()) for g, f in enumerate(fitted))


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
