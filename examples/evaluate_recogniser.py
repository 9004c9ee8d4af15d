"""Is a face recogniser as good for one group as for another? Error rates and fairness, recognisers side by side.

    python examples/evaluate_recogniser.py [--quick]                                   the bundled world
    python examples/evaluate_recogniser.py --generator ffhq.pkl --labeller res34_fair_align_multi_7_20190809.pt \\
        --directions yaw.safetensors light.safetensors --embedder vggface2 mymodule:load --device cuda
    python examples/evaluate_recogniser.py --set FOLDER [--labels FILE] --embedder …   a folder per identity
    python examples/evaluate_recogniser.py --pairs rfw FOLDER --embedder …             a protocol with real faces

The first two make a balanced set: as many identities of each group, one latent each, with edits of pose, light and
mouth. --keep FOLDER writes it, for --set. Recognisers (--embedder, any number; the first is what the others are
compared with): demo, vggface2[:PATH], casia-webface[:PATH], or MODULE:FUNCTION for one of yours (the function returns a
callable with `dim`: images [n, 3, H, W] in [-1, 1] → unit vectors [n, dim]). A handicap may follow: demo+16px reduces
images to 16 pixels first, +grey takes their colour, +32d projects the vectors to 32 random dimensions.

Writes report.md, evaluation.json and figures to --out; about two minutes on two free cores. docs/evaluation.md says
how to read them.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import fairface_synth as ffs
from fairface_synth.errors import DataError, FairFaceError
from fairface_synth.face_sets import FaceSet
from fairface_synth.fairness import MEASURES, METRICS, Fairness
from fairface_synth.intervals import Measured
from fairface_synth.pairs import PairSet
from fairface_synth.plotting import COLOURS, det_curves, fairness_dashboard, score_densities
from fairface_synth.recognition import compare_runs
from fairface_synth.reports import markdown_table
from fairface_synth.tables import read_table, write_table
from fairface_synth.variations import Direction
from fairface_synth.verification import Verification
from fairface_synth.vocabulary import UNKNOWN

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from machine import describe_machine

DEMO_DIRECTIONS = ("yaw", "illumination side", "mouth opening")
USUAL_ATTRIBUTES = ("race", "skin_tone", "gender")
PRETRAINED = ("vggface2", "casia-webface")
SIZES = {"identities_per_group": (50, 12), "variations": (6, 3), "latents": (6000, 2000), "resamples": (200, 100)}


def main() -> None:
    args = arguments()
    start, busy = time.time(), time.process_time()
    try:
        embedders = {name: load_recogniser(name, args.device) for name in args.embedder}
        faces = opened_pairs(args) if args.pairs else opened_set(args) if args.set else made_set(args)
        vectors = embed_all(embedders, faces, args.batch_size)
        evaluation = evaluate(faces, vectors, args)
        args.out.mkdir(parents=True, exist_ok=True)
        cost = f"{time.time() - start:.0f} s ({time.process_time() - busy:.0f} s of processor time)"
        write(args, evaluation, cost)
    except FairFaceError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"\n{evaluation.tables()}\n\nEverything is in {args.out.resolve()}: start with report.md.")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--embedder", nargs="+", default=["demo", "demo+16px"], metavar="NAME", help="recognisers; see above")
    add("--out", type=Path, default=Path("out/evaluate_recogniser"))
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--set", type=Path, metavar="FOLDER", help="evaluate on these faces")
    source.add_argument(
        "--pairs", nargs=2, metavar=("LAYOUT", "PATH"), help="lfw, rfw, bfw, bin or list; docs/pairs.md"
    )
    add("--list", metavar="FILE", help="--pairs: the file of the pairs, where it is not at its usual place")
    add(
        "--labels", type=Path, metavar="FILE", help="of --set or --pairs: a table with path or identity, and attributes"
    )
    add("--layout", default="identities", help="of --set: identities (with --labels), rfw, bupt, …; docs/datasets.md")
    add("--size", type=int, help="read images at so many pixels; needed where they differ in size")
    add("--generator", help="checkpoint to make the set with; none: the bundled world")
    add("--labeller", help="FairFace's checkpoint, for --generator")
    add("--judge", help="a second checkpoint of FairFace's kind, that selects nothing: confirms the groups")
    add("--directions", nargs="+", metavar="FILE", help="what to vary, for --generator: files of fitted directions")
    add("--attributes", nargs="+", metavar="NAME", help="which make the groups; none: race, skin_tone and gender")
    add("--identities-per-group", type=int)
    add("--variations", type=int, help="edits of each identity, beside the unedited face")
    add("--edit-scale", type=float, default=1.0, help="size of the edits; 1: as far as the classes' means")
    add("--truncation-psi", type=float, default=1.0, help="lower values are known to worsen imbalance")
    add("--latents", type=int, help="labelled, to find the groups with")
    add("--unique-by", metavar="NAME", help="leave out people alike in the eyes of this recogniser (FMR 0.001)")
    add("--keep", type=Path, metavar="FOLDER", help="write the images and labels.csv")
    add("--fmr", type=float, nargs="+", default=[1e-2, 1e-3], help="pooled; the first is where fairness is measured")
    add("--resamples", type=int, help="of the bootstrap over identities")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=64)
    add("--device", default="cpu")
    add("--quick", action="store_true", help="small: intervals will be wide")
    args = parser.parse_args()
    for name, sizes in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, sizes[args.quick])
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return args


# --- recognisers ------------------------------------------------------------------------------------------------------


def load_recogniser(name: str, device: str) -> Any:
    """The embedder of a --embedder name, with its handicaps."""
    base, *handicaps = name.split("+")
    kind, _, where = base.partition(":")
    embedder: Any
    if base == "demo":
        embedder = ffs.load_demo(device).embedder
    elif kind in PRETRAINED:
        embedder = ffs.load_embedder(where or kind, device)
    elif where:
        embedder = _call(kind, where)
    else:
        expected = f"demo, {', '.join(f'{p}[:PATH]' for p in PRETRAINED)} or MODULE:FUNCTION"
        raise DataError("unknown recogniser", expected=expected, got=name)
    if not callable(embedder) or not isinstance(getattr(embedder, "dim", None), int):
        got = f"a {type(embedder).__name__}"
        raise DataError(
            f"{base} gives no recogniser", expected="a callable with dim, the length of its vectors", got=got
        )
    for handicap in handicaps:
        embedder = Handicapped(embedder, handicap)
    return embedder


def _call(module: str, function: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        expected = "a function in a module that can be imported from here"
        raise DataError(f"there is no {function} in {module}", expected=expected, got=error) from None
    finally:
        sys.path.pop(0)
    return found()


class Handicapped:
    """An embedder that is deliberately made worse: "16px", "grey" or "32d"."""

    def __init__(self, embedder: Any, handicap: str) -> None:
        found = re.fullmatch(r"(?:([1-9]\d*)(px|d)|(grey))", handicap)
        if not found:
            raise DataError("unknown handicap", expected="+16px, +grey, +32d, or other numbers", got=f"+{handicap}")
        number, self.kind = int(found[1] or 0), found[2] or found[3]
        if self.kind == "d" and number > embedder.dim:
            raise DataError("a projection has fewer dimensions", expected=f"at most {embedder.dim}", got=number)
        self.embedder, self.number = embedder, number
        self.dim = number if self.kind == "d" else embedder.dim
        rng = torch.Generator().manual_seed(0)
        self.basis = torch.linalg.qr(torch.randn(embedder.dim, self.dim, generator=rng)).Q  # orthonormal columns

    def __call__(self, images: Tensor) -> Tensor:
        if self.kind == "grey":
            weights = images.new_tensor([0.299, 0.587, 0.114])  # luma, ITU-R BT.601
            images = torch.einsum("nchw,c->nhw", images, weights)[:, None].expand_as(images).contiguous()
        if self.kind == "px":
            sides = (self.number, self.number)
            images = F.interpolate(images, size=sides, mode="bilinear", antialias=True).clamp(-1, 1)
        vectors: Tensor = self.embedder(images)
        return F.normalize(vectors @ self.basis.to(vectors), dim=1) if self.kind == "d" else vectors


def embed_all(embedders: dict[str, Any], faces: Faces, batch_size: int) -> dict[str, Tensor]:
    """Vectors of each recogniser; each image is made or read once."""
    parts = defaultdict(list)
    with tqdm(total=faces.n, desc="embedding faces", unit="img") as bar:
        for first in range(0, faces.n, batch_size):
            images = faces.images(first, min(first + batch_size, faces.n))
            for name, embedder in embedders.items():
                parts[name].append(ffs.embed(embedder, images, progress=False))
            bar.update(len(images))
    return {name: torch.cat(vectors) for name, vectors in parts.items()}


# --- faces ------------------------------------------------------------------------------------------------------------


@dataclass
class Faces:
    """What is compared: every two faces, or the pairs of a protocol.

    Attributes:
        name: for headings.
        n: number of faces.
        images: (start, stop) → images [m, 3, H, W] in [-1, 1].
        identities, group_ids: of each face [n]; None where unknown.
        groups: None: without labels there are only overall figures.
        confirmed: whether the judge saw the identity's group, bool [n]; None without a judge.
        pairs: of a protocol; None: every two faces.
        notes: how the set came about, and what to keep in mind.
    """

    name: str
    n: int
    images: Callable[[int, int], Tensor]
    identities: Tensor | None
    groups: ffs.Groups | None
    group_ids: Tensor | None
    confirmed: Tensor | None = None
    pairs: PairSet | None = None
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Identities and images of each group, and how many identities the judge confirms."""
        if self.groups is None or self.group_ids is None or self.identities is None:
            return f"{self.n:,} faces, without labels or identities."
        rows = []
        for g, name in enumerate(self.groups.names):
            mine = self.group_ids == g
            people = len(self.identities[mine].unique())
            row = [name, f"{people:,}", f"{int(mine.sum()):,}"]
            if self.confirmed is not None:
                agreed = len(self.identities[mine & self.confirmed].unique())
                row.append(f"{agreed / people:.0%}" if people else "–")
            rows.append(row)
        header = ["group, as labelled", "identities", "images", *(() if self.confirmed is None else ("judge agrees",))]
        return markdown_table(header, rows)


def made_set(args: argparse.Namespace) -> Faces:
    """Identities of each group, confirmed by the labeller and no recogniser, and edits of each."""
    world = ffs.load_demo(args.device)
    generator: Any = world.generator
    labeller: Any = world.labeller
    judge: Any = world.judge
    directions = {name: world.directions[name] for name in DEMO_DIRECTIONS}
    if args.generator:
        if not args.labeller or not args.directions:
            got = f"labeller {args.labeller}, directions {args.directions}"
            raise DataError("a generator of yours needs more", expected="--labeller and --directions", got=got)
        generator = ffs.load_generator(args.generator, args.device)
        labeller = ffs.load_labeller(args.labeller, device=args.device)
        judge = ffs.load_labeller(args.judge, device=args.device) if args.judge else None
        directions = {path: Direction.load(path, args.device) for path in args.directions}
    pipeline = ffs.Pipeline.fit(
        generator,
        labeller,
        attributes=args.attributes or [a for a in USUAL_ATTRIBUTES if a in labeller.attributes],
        n=args.latents,
        seed=args.seed,
        truncation_psi=args.truncation_psi,
        min_samples=2,
        detector=ffs.load_detector(args.device),
        batch_size=args.batch_size,
    )
    gate, notes = uniqueness(pipeline, args)
    wanted = args.identities_per_group * len(pipeline.groups)
    people = pipeline.sample(
        n=wanted, seed=args.seed, method="screen", verify=True, threshold=gate, batch_size=args.batch_size
    )
    missing = ", ".join(f"{pipeline.groups.name(g)}: {k}" for g, k in people.short.items())
    notes += [f"Not found within the budget: {missing}."] if missing else []
    latents, who = varied(pipeline, people.latents, axes(directions, args), args.batch_size)
    group_ids, made = people.group_ids[who], len(people) * (args.variations + 1)
    confirmed = None
    if judge is not None:
        parts = people.images.split(args.batch_size)
        judged = torch.cat([pipeline.groups.assign(judge(images)) for images in parts])
        confirmed = (judged == people.group_ids)[who]

    def images(start: int, stop: int) -> Tensor:
        faces: Tensor = generator.synthesize(ffs.to_layers(generator, latents[start:stop]))
        return faces

    notes.append(
        f"The labeller selected, at confidence ≥ {pipeline.min_confidence}; "
        + ("the judge selected nothing." if judge is not None else "nobody confirmed: no --judge was given.")
    )
    notes.append(
        f"Each identity is one latent (ψ = {args.truncation_psi:g}, seed {args.seed}) and {args.variations} edits of "
        f"{', '.join(directions)}, scale {args.edit_scale:g}; no recogniser filtered them. Images in which the "
        f"detector finds no face were left out: {made - len(latents)} of {made}."
    )
    name = "the bundled world" if not args.generator else Path(args.generator).name
    faces = Faces(name, len(latents), images, who, pipeline.groups, group_ids, confirmed, notes=notes)
    if args.keep:
        keep(faces, args.keep, args.batch_size)
    return faces


def uniqueness(pipeline: ffs.Pipeline, args: argparse.Namespace) -> tuple[Any, list[str]]:
    """The threshold at which two people are alike, or None, and what is to be said of it."""
    if not args.unique_by:
        return None, [
            "Identities are independent latents. No recogniser declared them different people: one that does leaves "
            "out its own false matches, and is flattered when it is tested. Look-alikes count as false matches."
        ]
    pipeline.embedder = load_recogniser(args.unique_by, args.device)
    threshold = pipeline.threshold(1e-3, n=min(2000, args.latents), batch_size=args.batch_size)
    notes = [f"Identities are different people in the eyes of {args.unique_by}: cosine below {float(threshold):.3f}."]
    base = args.unique_by.split("+")[0]
    tested = [name for name in args.embedder if name.split("+")[0] == base]
    if tested:
        notes.append(f"**{', '.join(tested)} tested on identities that {base} chose: its FMR is flattered.**")
    return threshold, notes


def axes(directions: Any, args: argparse.Namespace) -> list[ffs.Axis]:
    """The edits, dealt out over the directions, evenly spread to both sides."""
    k = len(directions)
    steps = [args.variations // k + (i < args.variations % k) for i in range(k)]
    each = zip(directions.values(), steps, strict=True)
    return [ffs.Axis.spread(direction, n, args.edit_scale) for direction, n in each if n]


def varied(
    pipeline: ffs.Pipeline, latents: Tensor, edits: Sequence[ffs.Axis], batch_size: int
) -> tuple[Tensor, Tensor]:
    """Latents of all faces, the unedited ones first of each identity, and the identity of each; no face: left out."""
    found, who = [], []
    people = max(1, batch_size // 4)
    with tqdm(total=len(latents), desc="varying identities", unit="id") as bar:
        for first in range(0, len(latents), people):
            w = latents[first : first + people]
            # min_step=1: an edit without a face is dropped, not shortened, which would make it an easier one.
            v = ffs.vary(
                w,
                edits,
                generator=pipeline.generator,
                detector=pipeline.detector,
                min_step=1,
                batch_size=batch_size,
            )
            kept = torch.cat((v.reference_found[:, None], v.kept), dim=1)
            found.append(torch.cat((w[:, None], v.latents), dim=1)[kept])
            who.append(first + kept.nonzero()[:, 0])
            bar.update(len(w))
    return torch.cat(found), torch.cat(who)


def keep(faces: Faces, folder: Path, batch_size: int) -> None:
    """Write folder/<identity>/<image>.png and labels.csv, as --set reads them."""
    assert faces.identities is not None
    assert faces.group_ids is not None
    assert faces.groups is not None
    if folder.exists() and any(folder.iterdir()):
        raise DataError("this folder is not empty", expected="a new one for --keep", got=folder)
    who = faces.identities.tolist()
    names = [f"{who[i]:05d}/{i:06d}" for i in range(faces.n)]
    for first in range(0, faces.n, batch_size):
        last = min(first + batch_size, faces.n)
        ffs.save_images(faces.images(first, last), folder, names[first:last])
    table: dict[str, Any] = {"path": [f"{name}.png" for name in names], "identity": [f"{i:05d}" for i in who]}
    for attribute, values in faces.groups.attributes.items():
        ids = faces.groups.value_ids(faces.group_ids, attribute).tolist()
        table[attribute] = [values[i] for i in ids]
    write_table(table, folder / "labels.csv")


def opened_set(args: argparse.Namespace) -> Faces:
    """Faces on disk, every two of them compared."""
    faces = listed_faces(args, args.set)
    if faces.identities is None:
        raise DataError("who is on these faces?", expected="a folder per identity, or a column identity", got=args.set)
    groups = label_groups(faces, args.attributes)
    if groups is None:
        expected = "labels with two values at least, among: " + (", ".join(faces.labels) or "none")
        raise DataError(f"{faces.name} has no groups to compare", expected=expected, fix="--labels FILE, --attributes")
    order = {name: i for i, name in enumerate(dict.fromkeys(faces.identities))}
    who, group_ids = torch.tensor([order[i] for i in faces.identities]), faces.group_ids(groups)
    notes = [*read_notes(faces), *mixed_identities(who, group_ids)]
    return Faces(faces.name, len(faces), reader(faces, args), who, groups, group_ids, notes=notes)


def opened_pairs(args: argparse.Namespace) -> Faces:
    """A protocol on disk, by groups where its faces have labels."""
    layout, path = args.pairs
    root = Path(path)
    labelled = listed_faces(args, root) if args.labels else None
    found = ffs.read_pairs(layout, root, pairs=args.list, faces=labelled, missing=None if layout == "bin" else "error")
    groups = label_groups(found.faces, args.attributes) if isinstance(found.faces, FaceSet) else None
    ids = None if groups is None else found.group_ids(groups)
    notes = [str(found)] + (read_notes(found.faces) if isinstance(found.faces, FaceSet) else [])
    notes += ["Its faces have no labels: overall figures alone."] if groups is None else []
    images = reader(found.faces, args)
    return Faces(found.name, len(found.faces), images, found.identity_ids, groups, ids, pairs=found, notes=notes)


def listed_faces(args: argparse.Namespace, root: Path) -> FaceSet:
    """A set by its layout; "identities" with the labels of a table, one row per face or per identity."""
    if args.layout != "identities":
        return ffs.read_faces(args.layout, root, labels=args.labels, missing="error")
    if not root.is_dir():
        raise DataError("no such folder", expected="a folder of images per identity", got=root)
    table = read_table(args.labels or root / "labels.csv")
    wanted = args.attributes or [name for name in table if name in USUAL_ATTRIBUTES]
    if absent := [name for name in wanted if name not in table]:
        raise DataError("no such column", expected=", ".join(table), got=", ".join(absent))
    if "path" in table or "identity" not in table:
        faces = ffs.read_faces(
            "csv", root, labels=table, columns={name: name for name in wanted}, vocabulary="original", missing="error"
        )
        folders = [Path(path).parent.name for path in faces.paths]
        return faces if faces.identities or "" in folders else dataclasses.replace(faces, identities=tuple(folders))
    faces = ffs.read_faces("identities", root)
    assert faces.identities is not None
    people = [str(name) for name in table["identity"]]
    row = {name: i for i, name in enumerate(people)}
    if len(row) < len(people):
        raise DataError("an identity is listed twice", expected="one row each", got=f"{len(people) - len(row)} repeats")
    if strange := sorted(set(faces.identities) - set(row)):
        got = f"{len(strange)} that are not: {', '.join(strange[:3])}"
        raise DataError("folders without labels", expected="every folder as an identity of the table", got=got)
    labels = {name: tuple(str(table[name][row[i]]) or UNKNOWN for i in faces.identities) for name in wanted}
    return dataclasses.replace(faces, labels=labels, vocabulary={})


def label_groups(faces: FaceSet, attributes: list[str] | None) -> ffs.Groups | None:
    """The groups of a set's labels: of the attributes asked for, or the usual ones where they vary."""
    if absent := [name for name in attributes or () if name not in faces.labels]:
        known = ", ".join(faces.labels) or "no labels"
        raise DataError(f"{faces.name} has no such labels", expected=known, got=", ".join(absent))
    found = {}
    for name in attributes or [a for a in USUAL_ATTRIBUTES if a in faces.labels]:
        values = sorted(set(faces.labels[name]) - {UNKNOWN})
        if len(values) > 1:
            found[name] = values
    return ffs.Groups(found) if found else None


def read_notes(faces: FaceSet) -> list[str]:
    return [*(f"{note}." for note in faces.notes), "Groups are as the set labels them; nobody confirmed them here."]


def mixed_identities(who: Tensor, group_ids: Tensor) -> list[str]:
    """How many identities have faces in several groups: their mated comparisons count in none."""
    both = torch.stack((who, group_ids), 1)[group_ids >= 0].unique(dim=0)
    mixed = int((both[:, 0].unique(return_counts=True)[1] > 1).sum())
    unknown = int((group_ids < 0).sum())
    notes = [f"{mixed} identities have faces in several groups."] if mixed else []
    return notes + ([f"{unknown} faces are in no group: a label is unknown."] if unknown else [])


def reader(faces: Any, args: argparse.Namespace) -> Callable[[int, int], Tensor]:
    def images(start: int, stop: int) -> Tensor:
        read: Tensor = faces.images(start, stop, args.size)
        return read.to(args.device)

    return images


# --- evaluation -------------------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """Everything that the report shows, by the recognisers' names; the first is what the others are compared with.

    Attributes:
        faces: what was compared.
        results: error rates.
        fair: differential performance at one FMR; empty without groups.
        differences: {another recogniser: {figure: it − the first}}.
        confirmed: error rates where only identities that the judge confirms count in their groups.
    """

    faces: Faces
    at_fmr: float
    results: dict[str, Verification]
    fair: dict[str, Fairness]
    differences: dict[str, dict[str, Measured]]
    confirmed: dict[str, Verification]

    def tables(self) -> str:
        """What is printed."""
        parts = [f"# {self.faces.name}", self.faces.table(), "## Error rates [95 %]", self.error_table()]
        if self.fair:
            at = f"one threshold, at a pooled FMR of {self.at_fmr:g}"
            parts += [f"## Groups at {at} [95 %]", self.rate_table(), "## Fairness", self.measure_table(), CHANCE]
        if self.confirmed:
            parts += ["## FNMR, identities that the judge confirms", self.confirmed_table()]
        return "\n\n".join(parts)

    def error_table(self) -> str:
        targets = [p.target for p in next(iter(self.results.values())).overall.points]
        header = ["comparisons", "recogniser", "EER", "accuracy (10-fold)"]
        header += [f"{what} @ FMR {t:g}" for t in targets for what in ("FNMR", "TAR")]
        rows = []
        for group in [None, *(self.faces.groups.names if self.faces.groups else ())]:
            for name, result in self.results.items():
                p = result.overall if group is None else result.by_group[group]
                cells = [c for point in p.points for c in (shown(point.fnmr), shown(Measured(point.tar.value)))]
                rows.append([p.name, name, shown(p.eer), str(p.accuracy), *cells])
        return markdown_table(header, rows)

    def rate_table(self) -> str:
        """FMR, FNMR and accuracy of each group, and the differences."""
        rows = []
        for metric in METRICS:
            # The overall FMR is what the threshold was set to.
            overall = [] if metric == "fmr" else ["overall"]
            for group in [*overall, *next(iter(self.fair.values())).counts]:
                figures = [_rate(f, metric, group) for f in self.fair.values()]
                rows.append([metric.upper() if metric != "accuracy" else metric, group, *map(shown, figures)])
                rows[-1] += [_difference(d.get(f"{metric} {group}"), 100) for d in self.differences.values()]
        return markdown_table(["", "group", *self.fair, *self._minus()], rows)

    def measure_table(self) -> str:
        rows = []
        tables = [f.measure_rows() for f in self.fair.values()]
        for i, key in enumerate(next(iter(self.fair.values())).measures):
            cells = [c for t in tables for c in (t[i][1], t[i][3])]
            rows.append([tables[0][i][0], tables[0][i][2], *cells])
            rows[-1] += [_difference(d.get(key)) for d in self.differences.values()]
        header = ["measure", "fair", *(c for name in self.fair for c in (f"{name} [95 %]", "by chance"))]
        return markdown_table([*header, *self._minus()], rows)

    def confirmed_table(self) -> str:
        rows = []
        for group in self.faces.groups.names if self.faces.groups else ():
            found = [(v.by_group[group].at(self.at_fmr), v.by_group[group].identities) for v in self.confirmed.values()]
            rows.append([group, f"{found[0][1]}", *(shown(point.fnmr) for point, _ in found)])
        return markdown_table(["group", "identities", *(f"{n} @ FMR {self.at_fmr:g}" for n in self.confirmed)], rows)

    def _minus(self) -> list[str]:
        first = next(iter(self.results))
        return [f"{name} − {first} [95 %]" for name in self.differences]

    def to_dict(self) -> dict[str, Any]:
        return {
            "set": self.faces.name,
            "at_fmr": self.at_fmr,
            "error_rates": {name: v.to_dict() for name, v in self.results.items()},
            "fairness": {name: f.to_dict() for name, f in self.fair.items()},
            "differences": {n: {k: m._asdict() for k, m in d.items()} for n, d in self.differences.items()},
            "confirmed_by_the_judge": {name: v.to_dict() for name, v in self.confirmed.items()},
            "notes": self.faces.notes,
        }


CHANCE = (
    "By chance: where groups are equal, a measure is fairer than this in 95 % of resamples. Differences are of the "
    "same identities, resampled together; * where the interval leaves out 0 (of twenty such intervals, about one does "
    "so by chance)."
)


def shown(m: Measured) -> str:
    """A rate with its interval, in per cent."""
    if math.isnan(m.value):
        return "–"
    percent = [100 * round(x, 6) for x in m[:3]]
    return f"{percent[0]:.3g} %" + ("" if math.isnan(m.low) else f" [{percent[1]:.3g}, {percent[2]:.3g}]")


def _rate(fair: Fairness, metric: str, group: str) -> Measured:
    rates = {"overall": fair.overall[metric], **fair.by_group[metric]}
    return rates.get(group, Measured(math.nan))


def _difference(m: Measured | None, unit: float = 1) -> str:
    if m is None or math.isnan(m.value):
        return "–"
    value, low, high = (unit * x for x in m[:3])
    interval = "" if math.isnan(low) else f" [{low:+.2g}, {high:+.2g}]"
    return f"{value:+.2g}{interval}{' *' if low > 0 or high < 0 else ''}"


def evaluate(faces: Faces, vectors: dict[str, Tensor], args: argparse.Namespace) -> Evaluation:
    at_fmr = args.fmr[0]
    options = {"fmr": args.fmr, "resamples": args.resamples, "seed": args.seed}
    results, fair, confirmed = {}, {}, {}
    for name in tqdm(vectors, desc="comparing faces", unit="recogniser"):
        results[name] = compared(faces, vectors[name], faces.group_ids, options)
        if faces.groups is not None:
            fair[name] = results[name].fairness(at_fmr=at_fmr, resamples=args.resamples, seed=args.seed)
        if faces.confirmed is not None and faces.group_ids is not None:
            ids = torch.where(faces.confirmed, faces.group_ids, -1)
            confirmed[name] = compared(faces, vectors[name], ids, options | {"fmr": (at_fmr,)})
    differences = paired(results, fair, at_fmr, args.resamples, args.seed) if len(fair) > 1 else {}
    return Evaluation(faces, at_fmr, results, fair, differences, confirmed)


def compared(faces: Faces, vectors: Tensor, group_ids: Tensor | None, options: dict[str, Any]) -> Verification:
    if faces.pairs is not None:
        return ffs.verify(**faces.pairs.arguments(vectors, faces.groups), **options)
    assert faces.identities is not None
    device = vectors.device
    ids = None if group_ids is None else group_ids.to(device)
    who = faces.identities.to(device)
    return ffs.verify(vectors, identities=who, groups=faces.groups, group_ids=ids, n_pairs=20_000, **options)


def paired(
    results: dict[str, Verification], fair: dict[str, Fairness], at_fmr: float, resamples: int, seed: int
) -> dict[str, dict[str, Measured]]:
    """Each figure of the other recognisers minus that of the first, the same identities resampled together.

    Noise sets groups apart, the more so the fewer errors there are, and so makes measures differ between recognisers
    that are both fair: where neither is beyond chance, the interval of a measure reaches to 0.
    """
    first = next(iter(results))
    f = fair[first]
    if f.absent or len(f.counts) < 2 or results[first].comparisons.missing_identities:
        return {}  # the figures of each recogniser say why
    runs = compare_runs({name: [r] for name, r in results.items()}, fmr=(at_fmr,), resamples=resamples, seed=seed)
    found: dict[str, dict[str, Measured]] = {}
    for name, row in runs.differences.items():
        found[name] = {f"fmr {g}": row[f"FMR@{at_fmr:g}, {g}"] for g in f.counts}
        for after, group in (("", "overall"), *((f", {g}", g) for g in f.counts)):
            tar = row[f"TAR@{at_fmr:g}{after}"]
            found[name][f"fnmr {group}"] = Measured(-tar.value, -tar.high, -tar.low, tar.reason)
            found[name][f"accuracy {group}"] = row[f"accuracy{after}"]
        for measure, (label, _) in MEASURES.items():
            m = row.get(f"{label}@{at_fmr:g}", row.get(label))
            if m is not None and not (beyond_chance(fair[name], measure) or beyond_chance(f, measure)):
                m = m._replace(low=min(m.low, 0.0), high=max(m.high, 0.0))
            if m is not None:
                found[name][measure] = m
    return {name: {key: without_errors(m) for key, m in row.items()} for name, row in found.items()}


def beyond_chance(fair: Fairness, measure: str) -> bool:
    """Whether groups differ more than equal ones do. The trade-off is no such measure: it has no fair value."""
    value, limit = fair.measures[measure].value, fair.by_chance[measure]
    return measure == "trade_off" or (value < limit if measure == "fdr" else value > limit)


def without_errors(m: Measured) -> Measured:
    """No interval where no resample differs: the bootstrap knows nothing there, least of all that nothing differs."""
    return m if m.low < m.high else Measured(m.value, reason=m.reason)


# --- writing ----------------------------------------------------------------------------------------------------------


def write(args: argparse.Namespace, evaluation: Evaluation, cost: str) -> None:
    text = json.dumps(plain_numbers(evaluation.to_dict()), indent=1, ensure_ascii=False)
    (args.out / "evaluation.json").write_text(text + "\n")
    command = " ".join(["python", "examples/evaluate_recogniser.py", *sys.argv[1:]])
    parts = [
        evaluation.tables(),
        "## How the set was made, and what to keep in mind",
        "\n".join(f"- {note}" for note in [*evaluation.faces.notes, *LIMITS]),
        "## Figures",
        *draw(evaluation, args.out),
        *(f"## {name}: all figures\n\n{result}" for name, result in evaluation.results.items()),
        *(f"## {name}: fairness\n\n{fair}" for name, fair in evaluation.fair.items()),
        f"Made by `{command}`, {cost} on {describe_machine()}.",
    ]
    (args.out / "report.md").write_text("\n\n".join(parts) + "\n")


def draw(evaluation: Evaluation, out: Path) -> list[str]:
    """Write the figures; for each, what the report says of it."""
    figures: dict[str, Callable[[], Any]] = {}
    if evaluation.fair:
        figures["groups"] = partial(side_by_side, evaluation)
    for name, result in evaluation.results.items():
        plain = re.sub(r"[^A-Za-z0-9+-]+", "_", name)
        figures[f"det_{plain}"] = partial(det_curves, result, title=name)
        figures[f"scores_{plain}"] = partial(score_densities, result, title=name)
        if evaluation.fair:
            title = f"{name}, at a pooled FMR of {evaluation.at_fmr:g}"
            figures[f"dashboard_{plain}"] = partial(fairness_dashboard, evaluation.fair[name], title=title)
    said = []
    for file, figure in figures.items():
        try:
            figure().savefig(out / f"{file}.png", dpi=130)
            said.append(f"![{file.replace('_', ', ')}]({file}.png)")
        except DataError as error:  # nothing to draw is no reason to lose the numbers
            said.append(f"No {file}.png: {error}")
    return said


def side_by_side(evaluation: Evaluation) -> Any:
    """FMR, FNMR and accuracy of each group with intervals, the recognisers beside each other."""
    from matplotlib.figure import Figure

    groups = list(next(iter(evaluation.fair.values())).counts)
    k = len(evaluation.fair)
    figure = Figure(figsize=(9.6, 1.3 + 0.2 * len(groups) * (k + 0.5)), layout="constrained")
    axes = figure.subplots(1, len(METRICS), sharey=True)
    for ax, metric in zip(axes, METRICS, strict=True):
        for i, (name, fair) in enumerate(evaluation.fair.items()):
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "osD^vP*X"[i % 8]}
            rates = [[100 * x for x in _rate(fair, metric, group)[:3]] for group in groups]
            places = [y + (i - (k - 1) / 2) * 0.7 / k for y in range(len(groups))]
            ax.plot([r[0] for r in rates], places, linestyle="", markersize=5, label=name, **style)
            ax.hlines(places, [r[1] for r in rates], [r[2] for r in rates], color=style["color"], linewidth=1.5)
        ax.set_xlabel(f"{metric.upper() if metric != 'accuracy' else metric}, %")
        ax.grid(axis="x", alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(groups)), groups)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=k, frameon=False)
    figure.supxlabel(f"at a pooled FMR of {evaluation.at_fmr:g}; 95 % intervals over identities", fontsize=9)
    return figure


LIMITS = (
    "Thresholds are set on all non-mated comparisons together, as an operator sets them.",
    "Intervals say how much other people of the same source would change the figures, and nothing about other sources.",
    "What not to conclude: docs/evaluation.md.",
)


def plain_numbers(x: Any) -> Any:
    """NaN and infinities as null, which is what JSON can say."""
    if isinstance(x, dict):
        return {key: plain_numbers(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [plain_numbers(value) for value in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


if __name__ == "__main__":
    main()
