"""The whole audit of a discriminator, by one command: scores, tables, statistics, figures, and sweeps that test cause.

    python examples/audit_discriminator.py                                          a toy on the bundled world
    python examples/audit_discriminator.py --checkpoint ffhq.pkl --images FOLDER [--layout fairface] [--device cuda]
    python examples/audit_discriminator.py --table scores.csv                       of scores that exist already

Without a checkpoint it trains a small StyleGAN2 discriminator (a few minutes on two cores) to tell images of the
bundled generator from those of a truncated copy (ψ = 0.7), keeps it, and audits that. Layouts of folders of images:
docs/datasets.md.
Everything goes to --out: report.md (statistics, sweeps, what the toy can and cannot show), scores.csv (one row per
image), audit.json, sweeps.csv, figures.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import fairface_synth as ffs
from fairface_synth.artifacts import atomic_path
from fairface_synth.audits import AuditReport, audit
from fairface_synth.covariates import covariates, face_regions
from fairface_synth.datasets import read_faces
from fairface_synth.discriminators import InputRange, score
from fairface_synth.errors import DataError, FairFaceError
from fairface_synth.models.checkpoints import save_discriminator
from fairface_synth.models.stylegan2 import StyleGAN2Discriminator
from fairface_synth.plotting import sweep_curves
from fairface_synth.score_tables import score_table
from fairface_synth.sweeps import Sweep, sweep
from fairface_synth.tables import write_table

PSI = 0.7  # the usual truncation, and that of Jain et al.: the "fake" set is less varied, image by image flawless
CONFIG = {"c_dim": 0, "img_resolution": 64, "img_channels": 3, "channel_base": 1024, "channel_max": 128}
RANGES: tuple[InputRange, ...] = ("minus1_1", "uint8_raw")
R1, LAZY, BATCH = 0.5, 16, 16  # γ, steps from one penalty to the next, images of each kind
SWEEPS: list[tuple[str, InputRange]] = [
    ("luminance", "minus1_1"),
    ("luminance", "uint8_raw"),
    ("red_gain", "minus1_1"),
    ("brightness", "minus1_1"),
]

LIMITS = f"""## What this toy can show, and what it cannot

- It shows that the audit works where the truth is known. The two sets differ in nothing but spread: ψ = {PSI} pulls
  every latent towards the mean face, so strong contrast and unusual light become rare. What it prefers, it
  prefers because it is rare among the truncated images, not because it looks better.
- It shows that the two input ranges answer different questions. Some of the networks above follow luminance in the raw
  range without having learned anything, upwards or downwards: a correlation there is no evidence of training.
- It shows what pixels alone can do: where score_shuffled goes with score, the preference is one of colours, since
  nothing else is left. (Shuffled images were never trained on, so the level of score_shuffled means nothing.)
- A correlation with skin tone and one with luminance are nearly the same thing here: the label *is* a band of measured
  colour, and most dark labels come from dark scenes. No regression can take the two apart. A sweep changes light
  alone; it says nothing of skin.
- It cannot show what StyleGAN's discriminators prefer. This one saw one generator, one particular fake, 64 × 64 pixels
  and a few hundred steps; another seed prefers other things. Its preferences say nothing about FFHQ or the paper.
- Labels are apparent and machine-made, wrong for a good part of the faces (docs/demo_world.md). Their errors shrink
  differences between groups, and can also make some.
- Nothing here is about people. The faces are rendered, and nobody's.
"""


# --- the toy: a discriminator for the bundled world ---------------------------------------------------------------


@torch.no_grad()
def draw(generator: Any, seed: int, start: int, n: int, psi: float = 1.0) -> Tensor:
    """Images start … start + n − 1 of a seed."""
    z = ffs.draw_latents(generator, seed, start, n)
    return torch.cat([generator.synthesize(generator.map(part, truncation_psi=psi)) for part in z.split(100)])


def train(generator: Any, steps: int) -> StyleGAN2Discriminator:
    """Non-saturating logistic loss with a lazy R1 penalty, Adam, minibatch statistics of 4 as in StyleGAN2."""
    torch.manual_seed(0)
    network = StyleGAN2Discriminator(CONFIG)
    adam = torch.optim.Adam(network.parameters(), lr=0.002, betas=(0.0, 0.99))
    with tqdm(range(steps), desc="training the discriminator", unit="step") as bar:
        for step in bar:
            real, fake = draw(generator, 1, step * BATCH, BATCH), draw(generator, 2, step * BATCH, BATCH, PSI)
            real.requires_grad_(step % LAZY == 0)
            on_real, on_fake = network.score(real, group_size=4), network.score(fake, group_size=4)
            loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
            if step % LAZY == 0:
                (gradient,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
                loss = loss + LAZY * R1 / 2 * gradient.square().sum((1, 2, 3)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return network.freeze()  # type: ignore[return-value]


def describe_toy(network: Any, generator: Any, n: int = 1000) -> str:
    """Does it tell the sets apart on latents it never saw, and what do networks say that learned nothing?"""
    real, fake = draw(generator, 3, 0, n), draw(generator, 4, 0, n, PSI)
    on_real, on_fake = score(network, real, batch_size=100), score(network, fake, batch_size=100)
    ranks = torch.cat((on_real, on_fake)).argsort().argsort()[:n].double() + 1
    auc = float((ranks.sum() - n * (n + 1) / 2) / n**2)  # Mann-Whitney
    seen = {"real (ψ = 1)": covariates(real), f"fake (ψ = {PSI})": covariates(fake)}
    spread = [
        [name, *(f"{float(values[k].mean()):.3f} ({float(values[k].std()):.3f})" for k in ("luminance", "contrast"))]
        for name, values in seen.items()
    ]
    real, light = real[:300], seen["real (ψ = 1)"]["luminance"][:300]
    rows = [["trained", *(f"{_r(score(network, real, r, batch_size=100), light):+.2f}" for r in RANGES)]]
    for seed in range(5):
        torch.manual_seed(100 + seed)
        untrained = StyleGAN2Discriminator(CONFIG).freeze()
        values = [_r(score(untrained, real, r, batch_size=100), light) for r in RANGES]
        rows.append([f"untrained, seed {seed}", *(f"{v:+.2f}" for v in values)])
    table = ffs.markdown_table(["network", *(f"r with luminance, {r}" for r in RANGES)], rows)
    return (
        "## The toy discriminator\n\n"
        f"On {n} held-out images of each kind: AUC {auc:.3f}; mean logit {float(on_real.mean()):+.2f} on real, "
        f"{float(on_fake.mean()):+.2f} on truncated ones. How the two sets differ, mean (SD):\n\n"
        f"{ffs.markdown_table(['images', 'luminance', 'contrast'], spread)}\n\n{table}"
    )


def _r(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a, b)))[0, 1])


def toy(args: argparse.Namespace) -> tuple[Any, dict[str, np.ndarray], Tensor, str]:
    """Discriminator, table, images, and what is to be said of the toy."""
    world, path = ffs.load_demo(), args.out / "discriminator.safetensors"
    args.out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        print(f"Using {path}; delete it to train again.")
    else:
        start = time.time()
        save_discriminator(train(world.generator, args.steps), path)
        print(f"Trained for {args.steps} steps in {time.time() - start:.0f} s: {path}")
    network = ffs.load_discriminator(path)
    about = describe_toy(network, world.generator, min(1000, args.natural))
    images = draw(world.generator, 5, 0, args.natural)
    labels = {a: _labels(p, world.labeller.attributes[a]) for a, p in _label(world.labeller, images).items()}
    return network, score_table(network, images, labels, regions=_regions(args)), images, about


@torch.no_grad()
def _label(labeller: Any, images: Tensor) -> dict[str, Tensor]:
    parts = [labeller(part) for part in images.split(200)]
    return {a: torch.cat([p[a] for p in parts]) for a in ("gender", "skin_tone")}


def _labels(probabilities: Tensor, values: tuple[str, ...]) -> list[str]:
    """The most probable value, "unknown" below 0.6."""
    sure, which = probabilities.max(1)
    return [values[i] if p >= 0.6 else "unknown" for p, i in zip(sure.tolist(), which.tolist(), strict=True)]


# --- a real one -----------------------------------------------------------------------------------------------------


def real(args: argparse.Namespace) -> tuple[Any, dict[str, np.ndarray], Any]:
    """Discriminator, table, and the set of images."""
    network = ffs.load_discriminator(args.checkpoint, args.device)
    faces = read_faces(args.layout, args.images, labels=args.labels, columns=dict(args.columns) or None)
    print(faces)
    check_names("factors", args.factors, list(faces.labels))
    table = score_table(network, faces, regions=_regions(args), size=args.size, batch_size=args.batch_size)
    return network, table, faces


def check_names(option: str, given: list[str] | None, columns: list[str]) -> None:
    """Before an hour of scoring, not after it."""
    unknown = [name for name in given or () if name not in columns]
    if unknown:
        raise DataError(f"--{option} names no such column", expected=", ".join(columns), got=", ".join(unknown))


def _regions(args: argparse.Namespace) -> Any:
    if not args.regions:
        return None
    detector = ffs.load_detector(args.device)
    return lambda images: face_regions(detector(images).landmarks, images.shape[-2:])


def choose(table: dict[str, np.ndarray], factors: list[str], n: int) -> tuple[np.ndarray, Tensor | None, Any]:
    """Rows for the sweeps, evenly over the groups if there are factors, and their group ids and groups."""
    factors = [f for f in factors if f in table]
    values = {f: [v for v in np.unique(table[f]).tolist() if v not in ("", "unknown")] for f in factors}
    if not factors or not all(values.values()):
        rows = np.unique(np.linspace(0, len(table["score"]) - 1, n).astype(int))
        return rows, None, None
    groups = ffs.Groups(values)
    number = {name: i for i, name in enumerate(groups.names)}
    ids = np.array([number.get("-".join(row), -1) for row in zip(*(table[f].tolist() for f in factors), strict=True)])
    rows = np.sort(np.concatenate([np.flatnonzero(ids == g)[: max(2, n // len(groups))] for g in range(len(groups))]))
    return rows, torch.from_numpy(ids[rows]), groups


def run_sweeps(network: Any, images: Tensor, ids: Tensor | None, groups: Any, args: argparse.Namespace) -> list[Sweep]:
    """Every sweep with its figure, and sweeps.csv."""
    sweeps = []
    for transform, input_range in SWEEPS:
        result = sweep(
            network,
            images,
            transform,
            group_ids=ids,
            groups=groups,
            input_range=input_range,
            batch_size=args.batch_size,
        )
        sweep_curves(result).savefig(args.out / _figure(result), dpi=120)
        sweeps.append(result)
    tables = [s.to_table() for s in sweeps]
    write_table({name: np.concatenate([t[name] for t in tables]) for name in tables[0]}, args.out / "sweeps.csv")
    return sweeps


def _figure(result: Sweep) -> str:
    return f"sweep_{result.transform}{'_raw' if result.input_range == 'uint8_raw' else ''}.png"


def verdict(report: AuditReport, sweeps: list[Sweep]) -> str:
    """Correlation beside sweep, for what was swept: do they agree?"""
    rows = []
    column = {"luminance": "luminance", "red_gain": "red_mean", "brightness": "luminance"}
    for s in sweeps:
        name = "score" if s.input_range == "minus1_1" else "score_raw"
        found = report.scores[name].correlations if name in report.scores else None
        row = next((r for r in found.rows if r.column == column[s.transform]), None) if found else None
        mean, low, high = s.curves()[0].derivative
        rows.append(
            [
                s.transform,
                s.input_range,
                "–" if row is None else f"{row.pearson:+.2f} ({row.column})",
                f"{mean:+.4g} [{low:+.4g}, {high:+.4g}]",
                f"{float((s.derivative > 0).float().mean()):.0%}",
            ]
        )
    header = ["sweep", "input", "correlation over images", "derivative, mean [95 %]", "images with a positive one"]
    return "## Correlation beside sweep\n\n" + ffs.markdown_table(header, rows)


# --- the command ------------------------------------------------------------------------------------------------------


def _pair(text: str) -> tuple[str, str]:
    key, mark, name = text.partition("=")
    if not (key and mark and name):
        raise argparse.ArgumentTypeError(f"expected KEY=NAME, such as path=file, got {text!r}")
    return key, name


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/audit_discriminator"))
    source = parser.add_argument_group("what to audit; nothing: the toy")
    source.add_argument("--checkpoint", help="a checkpoint with a discriminator (.pkl, .pt, .safetensors)")
    source.add_argument("--images", type=Path, help="folder of images, for --checkpoint")
    source.add_argument("--table", type=Path, help="a table with scores and labels: statistics alone")
    real_use = parser.add_argument_group("for --checkpoint")
    real_use.add_argument("--layout", default="folder", help="of the images: folder, fairface, utkface, csv, …")
    real_use.add_argument("--labels", type=Path, help="label file, where the layout has one")
    real_use.add_argument(
        "--columns",
        nargs="+",
        type=_pair,
        default=[],
        metavar="KEY=NAME",
        help="for --layout csv: which column holds the path, the identity, a label, such as path=file race=ethnicity",
    )
    real_use.add_argument("--size", type=int, help="cut and resize all images to this side, where they differ")
    real_use.add_argument("--device", default=None, help="for example cuda")
    real_use.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--factors", nargs="*", help="columns of labels; default: race, gender, skin_tone, or all")
    parser.add_argument("--scores", nargs="+", help="columns of scores; default: all whose name begins with score")
    parser.add_argument("--colour", nargs=3, metavar=("RED", "GREEN", "BLUE"), help="columns of mean colour, 0–255")
    parser.add_argument("--luminance", help="column of luminance, 0–1")
    parser.add_argument("--regions", action="store_true", help="covariates of face regions too (finds faces by MTCNN)")
    parser.add_argument("--sweep-images", type=int, default=360, help="for the sweeps: scored 48 times each; 0: none")
    parser.add_argument("--no-bayes", action="store_true", help="leave out the Bayesian regressions (the slowest part)")
    toy_size = parser.add_argument_group("the toy")
    toy_size.add_argument("--steps", type=int, default=400, help="of training")
    toy_size.add_argument("--natural", type=int, default=3000, help="images to score")
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.images is None) or (args.table and args.checkpoint):
        parser.error("give --checkpoint and --images together, or --table, or none of them")
    if args.columns and args.layout != "csv":
        parser.error("--columns is for --layout csv")
    return args


def main() -> None:
    args = arguments()
    try:
        run(args)
    except FairFaceError as error:  # the user's to mend: the message says how
        raise SystemExit(f"{error}") from None


def run(args: argparse.Namespace) -> None:
    """Scores, audit, sweeps; nothing is written before the input has been read."""
    start, about, images, network = time.time(), "", None, None
    if args.table is None:
        check_names("scores", args.scores, ["score", "score_raw", "score_shuffled"])
    if args.table is not None:
        table = ffs.tables.read_table(args.table)
    elif args.checkpoint is not None:
        network, table, images = real(args)
    else:
        check_names("factors", args.factors, ["gender", "skin_tone"])
        network, table, images, about = toy(args)
    if network is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        write_table(table, args.out / "scores.csv")
    if args.factors is None:
        args.factors = [f for f in ("race", "gender", "skin_tone") if f in table and network is not None]
    print(f"Scored: {time.time() - start:.0f} s so far.")

    named: dict[str, Any] = {"colour": args.colour, "luminance": args.luminance}
    named = {name: value for name, value in named.items() if value is not None}
    report = audit(table, args.scores, args.factors or None, bayes=not args.no_bayes, **named)
    report.save(args.out, overwrite=True)
    parts: list[str] = []
    print(f"\n{report}\n\nAudited: {time.time() - start:.0f} s so far.")
    if network is not None and args.sweep_images > 0:
        rows, ids, groups = choose(table, args.factors, args.sweep_images)
        chosen = images[torch.from_numpy(rows)] if isinstance(images, Tensor) else _read(images, rows, args.size)
        sweeps = run_sweeps(network, chosen, ids, groups, args)
        parts = [verdict(report, sweeps), "## Sweeps"]
        parts += [f"{result}\n\n![{result.transform}]({_figure(result)})" for result in sweeps]
    parts = [about, *parts, LIMITS] if about else parts
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    text = "\n\n".join([*parts, f"{machine}: {time.time() - start:.0f} s in all."])
    statistics = (args.out / "report.md").read_text(encoding="utf-8")
    with atomic_path(args.out / "report.md") as path:
        path.write_text(f"{statistics}\n\n{text}\n", encoding="utf-8")
    print(text)
    print(f"\nEverything is in {args.out.resolve()}: start with report.md.")


def _read(faces: Any, rows: np.ndarray, size: int | None) -> Tensor:
    """The images of these rows as uint8: four times smaller."""
    chosen = faces.subset(rows)
    return torch.cat([ffs.to_uint8(chosen.images(i, i + 16, size)) for i in range(0, len(chosen), 16)])


if __name__ == "__main__":
    main()
