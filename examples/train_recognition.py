"""Does balance help? One small recognition network, three ways to train it, errors by group on held-out identities.

On the bundled world (the default; no downloads), for each of several seeds the same network is trained on

    natural      the generator's own people, as unbalanced as they come, several variations of each;
    balanced     as many people and images, equally many of each group;
    regularised  natural, but every batch holds a share of balanced synthetic faces instead, for `score_alignment_loss`;

with the same number of steps and of images a step, and tested on the same balanced set of other identities:

    python examples/train_recognition.py [--seeds 3] [--identities 240] [--out out/train_recognition]

On a folder of real images, a person each (natural = the folder; people of it are held out for the test), with any
generator for the regularisation and, to fine-tune, InceptionResnetV1's weights instead of the small network:

    python examples/train_recognition.py --images DIR --layout identities --embedder vggface2.pt \\
        --generator ffhq.pkl --labeller fairface.pt --attribute race --device cuda

Needs pip install 'fairface_synth[train]'. Writes report.md, results.json and figures; docs/recognition.md says how to
read them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import fairface_synth as ffs
from fairface_synth.errors import DataError, FairFaceError
from fairface_synth.models.demo import CompactNet
from fairface_synth.plotting import COLOURS, det_curves
from fairface_synth.recognition import RunComparison, compare_runs
from fairface_synth.reports import markdown_table
from fairface_synth.verification import Verification

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from machine import describe_machine

REGIMES = ("natural", "balanced", "regularised")
FMR = (1e-2, 1e-3)
# Standard deviation of the edits, in mean distances of the directions' positive class: about as much as people differ.
EDITS = {"yaw": 1.0, "illumination side": 1.0, "mouth opening": 1.0}
TEST_SEED, GATE_FMR = 7_000_000, 1e-4
QUICK = {"seeds": 1, "identities": 18, "variations": 3, "people": 10, "epochs": 2, "latents": 600, "size": 32}


def main() -> None:
    args = parse()
    start, busy = time.time(), time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        source = Folder(args) if args.images else World(args)
        trained = [train_seed(source, args, seed) for seed in range(args.seeds)]
        test = source.test()
        runs = {r: [verified(nets[r], test, source.groups) for nets in trained] for r in args.regimes}
        result = compare_runs(runs, fmr=FMR, resamples=args.resamples)
    except FairFaceError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    cost = f"{time.time() - start:.0f} s ({time.process_time() - busy:.0f} s of processor time)"
    write(args, source, result, {r: v[0] for r, v in runs.items()}, cost)
    print(f"\n{result}\n\nEverything is in {args.out.resolve()}: start with report.md.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/train_recognition"))
    parser.add_argument("--quick", action="store_true", help="a tiny run that shows only that it works")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, help="the first is the one others are compared with")
    parser.add_argument("--identities", type=int, default=240, help="people in each training set")
    parser.add_argument("--variations", type=int, default=8, help="images of each")
    parser.add_argument("--people", type=int, default=100, help="people of each group in the test")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=120)
    parser.add_argument("--synthetic", type=int, default=24, help="of them, in the regularised regime")
    parser.add_argument("--weight", type=float, default=0.1, help="of score_alignment_loss")
    parser.add_argument("--rate", type=float, default=6e-3, help="highest learning rate")
    parser.add_argument("--size", type=int, default=32, help="of the small network's images, in pixels")
    parser.add_argument("--attribute", default="skin_tone", help="of the labeller: what makes the groups")
    parser.add_argument("--latents", type=int, default=3000, help="labelled for the pipeline")
    parser.add_argument("--resamples", type=int, default=200, help="of the bootstrap over identities")
    parser.add_argument("--device", default="cpu")
    real = parser.add_argument_group("real images")
    real.add_argument("--images", type=Path, help="a folder of real images with identities")
    real.add_argument("--layout", default="identities", help="of the folder: see docs/datasets.md")
    real.add_argument("--label", help="label of the folder that makes the test's groups (race, …), not the labeller")
    real.add_argument("--test-share", type=float, default=0.2, help="of the folder's people")
    real.add_argument("--embedder", help="vggface2, casia-webface, or InceptionResnetV1's weights, to fine-tune")
    real.add_argument("--generator", help="a checkpoint; by default the bundled generator")
    real.add_argument("--labeller", help="FairFace's weights; by default the bundled labeller")
    args = parser.parse_args()
    if args.quick:  # what the command line says comes first
        parser.set_defaults(**QUICK)
        args = parser.parse_args()
    args.regimes = args.regimes or (["natural", "regularised"] if args.images else list(REGIMES))
    args.size = 160 if args.embedder else args.size
    return args


# --- faces ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Faces:
    """uint8 images [n, 3, s, s], identities 0 … m − 1 [n], and the groups of the identities [n], −1 where unsure."""

    images: Tensor
    identity: Tensor
    group_ids: Tensor

    @property
    def people(self) -> int:
        return int(self.identity.max()) + 1


class Synthesis:
    """A generator with a pipeline fitted to it: where synthetic batches come from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, world = args, ffs.load_demo(args.device)
        self.directions = None if args.generator else world.directions
        self.embedder = world.embedder
        generator = ffs.load_generator(args.generator, device=args.device) if args.generator else world.generator
        labeller = ffs.load_labeller(args.labeller, device=args.device) if args.labeller else world.labeller
        self.pipeline = ffs.Pipeline.fit(
            generator,
            labeller,
            attributes=[args.attribute],
            n=args.latents,
            min_samples=5,
            embedder=world.embedder,
            progress=False,
        )

    def stream(self, seed: int) -> ffs.SyntheticStream:
        return ffs.stream(
            self.pipeline,
            self.args.synthetic,
            method="screen",
            candidates=64,
            axes=None if self.directions is None else ffs.demo_axes(self.directions),
            transform=self.augmented(seed),
            seed=3_000_000 + seed,
        )

    def augmented(self, seed: int) -> Callable[[Tensor, Tensor], Tensor]:
        def transform(images: Tensor, numbers: Tensor) -> Tensor:
            return ffs.augment(ffs.to_recognition_format(images, size=self.args.size), numbers, seed=seed)

        return transform


class World(Synthesis):
    """Training and test sets from the bundled world."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        self.groups = self.pipeline.groups
        self.shares: dict[str, list[ffs.GroupShares]] = {}
        self.known: list[Tensor] = []
        self.about = ""

    def training(self, regime: str, seed: int) -> Faces:
        args, pipeline = self.args, self.pipeline
        if regime == "balanced":
            options: dict[str, Any] = {"method": "screen", "verify": True, "progress": False}
            people = pipeline.sample("balanced", n=args.identities, seed=2_000_000 + seed, **options)
            w, images, ids = people.latents, people.images, people.group_ids
        else:
            w = ffs.draw_latents(pipeline.generator, 1_000_000 + seed, 0, args.identities)
            images = self.synthesized(w)
            ids = pipeline.assign(images)
        self.shares.setdefault(regime, []).append(ffs.group_shares(self.groups, ids))
        self.known.append(ffs.embed(self.embedder, images, progress=False))
        return self.varied(w, ids, seed)

    def test(self) -> Faces:
        """Natural draws that the labeller confirms, each another person than all before and all in training sets."""
        args, pipeline = self.args, self.pipeline
        gate = pipeline.threshold(GATE_FMR, n=max(800, min(2000, args.latents)))
        tried = args.people * len(self.groups) * 8 // 5
        sample = pipeline.sample("balanced", n=tried, seed=TEST_SEED, method="reject", progress=False)
        unique = ffs.unique(ffs.embed(self.embedder, sample.images, progress=False), gate, known=torch.cat(self.known))
        rows = [(unique & (sample.group_ids == g)).nonzero()[:, 0] for g in range(len(self.groups))]
        people = min(args.people, *map(len, rows))
        rows = torch.cat([r[:people] for r in rows])
        self.about = (
            f"Test: {people} people of each group, {args.variations} images each. Of {len(sample)} candidates "
            f"{len(sample) - int(unique.sum())} were dropped because the embedder took them for one before, or for one "
            f"in a training set (cosine ≥ {float(gate):.3f}, FMR {GATE_FMR:g} on natural faces)."
        )
        return self.varied(sample.latents[rows], sample.group_ids[rows], TEST_SEED)

    def varied(self, w: Tensor, ids: Tensor, seed: int) -> Faces:
        """Images of each person with random yaw, side light and mouth; none of them unedited."""
        assert self.directions is not None
        k = self.args.variations
        size = torch.arange(len(w) * k, device=w.device)
        amount = ffs.normals(4_000_000 + seed, size, len(EDITS)).to(w)
        edited = w.repeat_interleave(k, 0)
        for i, (name, scale) in enumerate(EDITS.items()):
            edited = ffs.edit(edited, self.directions[name], scale * amount[:, i], units="distance")
        images = ffs.to_uint8(self.synthesized(edited, self.args.size))
        return Faces(images, size // k, ids.repeat_interleave(k))

    @torch.no_grad()
    def synthesized(self, w: Tensor, size: int = 64) -> Tensor:
        generator = self.pipeline.generator
        parts = (generator.synthesize(ffs.to_layers(generator, chunk)) for chunk in w.split(256))
        return torch.cat([ffs.to_recognition_format(images, size=size) for images in parts])


class Folder(Synthesis):
    """Training and test people from a folder of real images, which are held in memory."""

    def __init__(self, args: argparse.Namespace) -> None:
        if "balanced" in args.regimes:
            raise DataError("a folder is as it is", expected="--regimes natural regularised", got="balanced")
        faces = ffs.read_faces(args.layout, args.images, size=args.size)
        if faces.identities is None:
            raise DataError("whose faces are these?", expected="a layout with identities", got=args.layout)
        super().__init__(args)
        names = {name: i for i, name in enumerate(dict.fromkeys(faces.identities))}
        person = torch.tensor([names[name] for name in faces.identities])
        images = torch.cat([ffs.to_uint8(faces.images(i, i + 256)) for i in range(0, len(faces), 256)])
        self.groups, ids = self.grouped(faces, images, person)
        order = torch.randperm(len(names), generator=torch.Generator().manual_seed(TEST_SEED))
        held_out = torch.zeros(len(names), dtype=torch.bool)
        held_out[order[: max(2, round(args.test_share * len(names)))]] = True
        every = Faces(images, person, ids[person])
        self.train_set = chosen(every, ~held_out[person])
        self.shares = {"natural": [ffs.group_shares(self.groups, ids[~held_out])]}
        self.groups, self.test_set = present(self.groups, chosen(every, held_out[person]))
        self.about = f"Test: {int(held_out.sum())} of {len(names)} people in {args.images}, held out."

    def grouped(self, faces: ffs.FaceSet, images: Tensor, person: Tensor) -> tuple[ffs.Groups, Tensor]:
        """Group of each person: by the folder's label, or by the labeller's mean over the person's images."""
        people = int(person.max()) + 1
        label = self.args.label
        if label:
            if label not in faces.labels:
                raise DataError("no such label", expected=", ".join(faces.labels) or "a layout with labels", got=label)
            values = [v for v in faces.vocabulary[label] if v != "unknown"]
            of_face = torch.tensor([values.index(v) if v in values else -1 for v in faces.labels[label]])
            return ffs.Groups({label: values}), torch.full((people,), -1).scatter(0, person, of_face)
        groups, labeller = self.pipeline.groups, self.pipeline.labeller
        chunks = [labeller(ffs.from_uint8(chunk.to(self.args.device))) for chunk in images.split(256)]
        mean = {}
        for attribute in groups.attributes:
            p = torch.cat([chunk[attribute] for chunk in chunks]).cpu()
            counts = torch.bincount(person, minlength=people).unsqueeze(1)
            mean[attribute] = p.new_zeros(people, p.shape[1]).index_add(0, person, p) / counts
        return groups, groups.assign(mean)

    def training(self, regime: str, seed: int) -> Faces:
        return self.train_set

    def test(self) -> Faces:
        return self.test_set


def present(groups: ffs.Groups, faces: Faces) -> tuple[ffs.Groups, Faces]:
    """Groups of two people with two images at least; faces of the others are in no group."""
    two = torch.bincount(faces.identity)[faces.identity] > 1
    people = [len(faces.identity[two & (faces.group_ids == g)].unique()) for g in range(len(groups))]
    names = [name for name, n in zip(groups.names, people, strict=True) if n > 1]
    if len(names) < 2:
        got = ", ".join(f"{name}: {n}" for name, n in zip(groups.names, people, strict=True))
        raise DataError(
            "the test compares groups",
            expected="two groups with two held-out people each, who have two images",
            got=got,
            fix="a larger folder or --test-share, or another --attribute or --label",
        )
    slot = torch.tensor([*(names.index(n) if n in names else -1 for n in groups.names), -1])
    return ffs.Groups({"group": names}), replace(faces, group_ids=slot[faces.group_ids])


def chosen(faces: Faces, rows: Tensor) -> Faces:
    """Some of the faces, their people numbered anew."""
    person = faces.identity[rows].unique(return_inverse=True)[1]
    return Faces(faces.images[rows], person, faces.group_ids[rows])


# --- training ---------------------------------------------------------------------------------------------------------


class SmallNet(nn.Module):
    """A small residual network, images [n, 3, s, s] in [-1, 1] → unit vectors [n, 128]."""

    dim = 128

    def __init__(self) -> None:
        super().__init__()
        self.net = CompactNet({"embedding": self.dim})

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.net(images.contiguous(memory_format=torch.channels_last))["embedding"], dim=1)


class FineTuned(nn.Module):
    """InceptionResnetV1 from a checkpoint, all of it trainable: images [n, 3, 160, 160] → unit vectors [n, 512]."""

    dim = 512

    def __init__(self, source: str) -> None:
        super().__init__()
        self.net = ffs.load_embedder(source).net.requires_grad_(True)  # the embedder itself stays in evaluation mode

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.net(images * (127.5 / 128)), dim=1)


def train_seed(source: World | Folder, args: argparse.Namespace, seed: int) -> dict[str, nn.Module]:
    """A network for each regime; they start from the same weights, and natural data is the same for all."""
    sets: dict[str, Faces] = {}
    nets = {}
    for regime in args.regimes:
        data = "natural" if regime == "regularised" else regime
        if data not in sets:
            sets[data] = source.training(data, seed)
        torch.manual_seed(seed)
        net = FineTuned(args.embedder) if args.embedder else SmallNet()
        synthetic = source.stream(seed) if regime == "regularised" else None
        busy = time.process_time()
        loss = train(net.to(args.device), sets[data], synthetic, args, seed, len(source.pipeline.groups))
        nets[regime] = net.eval()
        took = f"{time.process_time() - busy:.0f} s of processor time"
        print(f"seed {seed}, {regime}: {len(sets[data].images):,} images, last loss {loss:.2f}, {took}", flush=True)
    return nets


def train(
    net: nn.Module,
    faces: Faces,
    synthetic: ffs.SyntheticStream | None,
    args: argparse.Namespace,
    seed: int,
    num_groups: int,
) -> float:
    """CosFace over the people of `faces`; with a stream, part of each batch is its, for the alignment of scores.

    Steps and images a step do not depend on whether there is a stream.
    """
    head = margin_loss(faces.people, net.dim).to(args.device)
    steps = max(1, args.epochs * len(faces.images) // args.batch)
    own = args.batch - (args.synthetic if synthetic else 0)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=args.rate, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, total_steps=steps)
    net.train()
    for step, rows in zip(range(steps), batches(len(faces.images), own, seed), strict=False):
        images = ffs.from_uint8(faces.images[rows]).to(args.device)
        numbers = torch.arange(step * own, step * own + len(rows), device=args.device)
        images = ffs.augment(images, numbers, seed=seed)
        fake = next(synthetic) if synthetic else None
        embeddings = net(images if fake is None else torch.cat((images, fake.images)))
        loss = head(embeddings[: len(rows)], faces.identity[rows].to(args.device))
        if fake is not None:
            aligned = embeddings[len(rows) :], fake.identity, fake.group_ids
            loss = loss + args.weight * ffs.score_alignment_loss(*aligned, num_groups=num_groups)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    if synthetic:
        synthetic.close()
    return float(loss.detach())


def margin_loss(people: int, dim: int) -> nn.Module:
    try:
        from pytorch_metric_learning.losses import CosFaceLoss
    except ImportError as error:
        fix = "pip install 'fairface_synth[train]'"
        raise DataError("margin losses come from pytorch-metric-learning", got=str(error), fix=fix) from error
    # Small embeddings of few people, trained briefly: CosFace's margin 0.35 and scale 64 do not get off the ground.
    return CosFaceLoss(people, dim, margin=0.2, scale=16)


def batches(n: int, size: int, seed: int) -> Iterator[Tensor]:
    """Rows in endless random order, every row once before any comes again."""
    rng = torch.Generator().manual_seed(seed)
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat((left, torch.randperm(n, generator=rng)))
        yield left[:size]
        left = left[size:]


def verified(net: nn.Module, test: Faces, groups: ffs.Groups) -> Verification:
    device = next(net.parameters()).device
    images = (ffs.from_uint8(chunk).to(device) for chunk in test.images.split(256))
    embeddings = ffs.embed(net, images, progress=False).cpu()
    ids = test.group_ids.cpu()
    return ffs.verify(
        embeddings,
        identities=test.identity.cpu(),
        groups=groups,
        group_ids=ids,
        fmr=FMR,
        n_pairs=100_000,
        resamples=0,
    )


# --- report -----------------------------------------------------------------------------------------------------------


def write(
    args: argparse.Namespace, source: World | Folder, result: RunComparison, first: dict[str, Verification], cost: str
) -> None:
    figure(result).savefig(args.out / "recognition_groups.png", dpi=150)
    for regime, verification in first.items():
        det_curves(verification, title=f"{regime}, seed 0").savefig(args.out / f"det_{regime}.png", dpi=150)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    shares = {name: [s.to_dict() for s in each] for name, each in source.shares.items()}
    everything = {"settings": settings, "training_sets": shares, **result.to_dict()}
    (args.out / "results.json").write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    command = " ".join(["python", "examples/train_recognition.py", *sys.argv[1:]])
    report = TEMPLATE.format(
        result=result,
        test=source.about,
        shares=shares_table(source.shares),
        machine=f"`{command}`, {cost} on {describe_machine()}",
    )
    (args.out / "report.md").write_text(report)


def shares_table(shares: dict[str, list[ffs.GroupShares]]) -> str:
    """People of each group in the training sets, as labelled, over all seeds."""
    rows = []
    for regime, each in shares.items():
        counts, total = sum(s.counts for s in each), sum(s.total for s in each)
        unsure = total - int(counts.sum())
        rows.append([regime, *(f"{c / total:.1%}" for c in counts.tolist()), f"{unsure / total:.1%}"])
    names: Sequence[str] = next(iter(shares.values()))[0].groups.names
    return markdown_table(["training set", *names, "unsure"], rows)


def figure(result: RunComparison) -> Figure:
    """TAR and FMR of each group in each regime, and what changes against the baseline, with intervals."""
    drawn = Figure(figsize=(9, 2 + 0.35 * len(result.groups)), layout="constrained")
    axes = drawn.subplots(1, 4, sharey=True)
    for column, rate in enumerate((f"TAR@{FMR[0]:g}", f"FMR@{FMR[0]:g}")):
        for side, table in enumerate((result.figures, result.differences)):
            ax = axes[2 * column + side]
            for i, regime in enumerate(result.figures):
                for y, group in enumerate(result.groups if regime in table else ()):
                    m = table[regime][f"{rate}, {group}"]
                    at = y + 0.22 * (i - (len(result.figures) - 1) / 2)
                    ax.plot([m.low, m.high], [at, at], color=COLOURS[i], linewidth=1.6)
                    ax.plot([m.value], [at], "osD"[i], color=COLOURS[i], ms=5, label=None if y else regime)
            ax.set_title(f"{rate}, minus {result.baseline}" if side else rate, fontsize=9)
            if side:
                ax.axvline(0, color="0.5", linewidth=0.8, zorder=0)
            ax.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(result.groups)), result.groups)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    return drawn


TEMPLATE = """# Recognition trained on natural, balanced and regularised data

{result}

![TAR and FMR of each group](recognition_groups.png)

## Training sets

People as the labeller sees them, all seeds together:

{shares}

{test}

Made by {machine}.
"""


if __name__ == "__main__":
    main()
