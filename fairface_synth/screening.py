"""Faces of chosen groups straight from the generator's own distribution: screening latents, and plain accept/reject.

A *screen* is a classifier on latents. Mapping z → w costs a thousandth of an image, so millions of natural draws can be
looked at, and only those that promise the wanted group are synthesised: the generator's own conditional distribution,
with its diversity, for little more than one image a face.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, SupportsFloat

import torch
import torch.nn.functional as F
from torch import Tensor

from .artifacts import Artifact, has_values
from .embeddings import embed
from .errors import DataError, GroupError, ShapeError
from .groups import Groups
from .identities import novelty
from .latents import LatentBank, check_attributes, draw_latents, normals, to_layers
from .models.facenet import faces_found
from .models.protocols import Embedder, Generator
from .thresholds import cosine_threshold

Propose = Callable[[Tensor, Tensor], Tensor]
Assign = Callable[[Tensor], Tensor]

FACE = "face_found"  # the screen's own attribute beside the labeller's
NATURAL_STREAM = 2**32 - 1  # so that nothing is judged on the latents it was fitted on


# --- the classifier on latents --------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False, eq=False)
class Screen(Artifact):
    """A classifier on latents: what a labeller would probably say of the image, without making it.

    Attributes:
        mean, scale: standardise the flattened latents [d].
        weights: of an ensemble of E two-layer perceptrons with one head for each attribute.
        attributes: the values behind each head's columns; `face_found` (no, yes) if the bank had detections.
        calibration_error: {attribute: expected calibration error on latents that neither training nor calibration saw},
            the mean of |confidence − share right| over ten bins of confidence, weighted by their samples
            (Guo et al. 2017).
        accuracy: {attribute: share right there, in expectation under the labeller's soft labels}.
        shape: of one latent: (d,) for Z and W, (num_ws, d) for W+.
        truncation_psi: of the bank; `screen` draws with the same.
    """

    kind: ClassVar[str] = "screen"

    mean: Tensor
    scale: Tensor
    weights: Mapping[str, Tensor]
    attributes: Mapping[str, tuple[str, ...]]
    calibration_error: Mapping[str, Tensor]
    accuracy: Mapping[str, Tensor]
    shape: tuple[int, ...]
    truncation_psi: float = 1.0

    def __repr__(self) -> str:
        quality = ", ".join(
            f"{a}: {float(self.accuracy[a]):.1%} right, calibration error {float(self.calibration_error[a]):.3f}"
            for a in self.attributes
        )
        return f"Screen(latents={list(self.shape)}; {quality})"

    def probabilities(self, w: Tensor) -> dict[str, Tensor]:
        """What the labeller would say of latents w [n, *shape]: {attribute: probabilities [n, k]}."""
        if w.shape[1:] != self.shape:
            raise ShapeError("these latents do not fit the screen", expected=["n", *self.shape], got=list(w.shape))
        logits = _perceptrons(self.weights, (w.flatten(1).to(self.mean) - self.mean) / self.scale)
        heads = logits.split([len(v) for v in self.attributes.values()], dim=-1)
        return {
            a: (head * self.weights[f"scale.{a}"] + self.weights[f"bias.{a}"]).softmax(-1)
            for a, head in zip(self.attributes, heads, strict=True)
        }


def fit_screen(
    bank: LatentBank,
    attributes: Iterable[str] | None = None,
    *,
    hidden: int = 128,
    members: int = 4,
    epochs: int = 20,
    held_out: float = 0.2,
    seed: int = 0,
) -> Screen:
    """Train a classifier on the bank's latents, calibrate it, and measure how well calibrated it is.

    An ensemble of perceptrons learns the labeller's soft labels (cross-entropy). Half of the held-out latents choose a
    temperature and a bias for each attribute (vector scaling, Guo et al. 2017); the other half measure accuracy and
    calibration error.

    Args:
        bank: labelled latents, 5,000 or more if you can. With detections (`label_latents(detector=…)`) the screen also
            learns which latents hold a face.
        attributes: of the bank; all by default.
        hidden: width of the two hidden layers.
        members: perceptrons in the ensemble.
        epochs: passes over the training part.
        held_out: share of the bank kept from training.
        seed: of the split, the initial weights and the order.

    Raises:
        DataError: too few latents, NaN, or settings out of range.
    """
    groups = bank.groups(None if attributes is None else list(attributes))
    out = round(len(bank) * held_out) if 0 < held_out < 1 else 0
    if out < 20 or len(bank) - out < 50 or min(hidden, members, epochs) < 1:
        raise DataError(
            "a screen cannot be fitted on this",
            expected="50 latents to train on and 20 held out, 0 < held_out < 1, hidden, members and epochs ≥ 1",
            got=f"{len(bank)} latents, held_out={held_out}, hidden={hidden}, members={members}, epochs={epochs}",
        )
    values, targets = dict(groups.attributes), {a: bank.probabilities[a].float() for a in groups.attributes}
    if bank.found is not None:
        face = faces_found(bank.found).float()
        values[FACE], targets[FACE] = ("no", "yes"), torch.stack((1 - face, face), dim=1)
    x = bank.latents.flatten(1).float()
    for what, column in {"latents": x, **targets}.items():
        if has_values(column) and not bool(column.isfinite().all()):
            raise DataError(f"the bank's {what} are NaN or infinite", expected="finite numbers", fix="check the models")
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=rng).to(x.device)
    train, calibrate, test = order[out:], order[: out // 2], order[out // 2 : out]
    mean, scale = x[train].mean(0), x[train].std(0).clamp_min(1e-6)
    x = (x - mean) / scale
    sizes = [len(v) for v in values.values()]
    joined = torch.cat(list(targets.values()), dim=1)
    weights = _train(x[train], joined[train], sizes, hidden, members, epochs, rng)
    for a, logits in zip(values, _perceptrons(weights, x[calibrate]).split(sizes, dim=1), strict=True):
        weights[f"scale.{a}"], weights[f"bias.{a}"] = _vector_scaling(logits, targets[a][calibrate])
    fitted = Screen(mean, scale, weights, values, {}, {}, tuple(bank.latents.shape[1:]), bank.truncation_psi)
    guesses = fitted.probabilities(bank.latents[test])
    accuracy, error = {}, {}
    for a, guess in guesses.items():
        accuracy[a], error[a] = _accuracy_and_calibration_error(guess, targets[a][test])
    return dataclasses.replace(fitted, accuracy=accuracy, calibration_error=error)


def _perceptrons(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits [n, Σk] of x [n, d], averaged over the ensemble."""
    return _members(weights, x).mean(0)


def _members(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits [E, n, Σk] of each member."""
    h = F.silu(x @ weights["in"] + weights["in_bias"])
    h = F.silu(h @ weights["mid"] + weights["mid_bias"])
    return h @ weights["out"] + weights["out_bias"]


def _train(
    x: Tensor, targets: Tensor, sizes: list[int], hidden: int, members: int, epochs: int, rng: torch.Generator
) -> dict[str, Tensor]:
    """Each member learns the soft labels by itself, on the same batches from another start."""

    def start(*shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=rng) / math.sqrt(shape[-2])
        return drawn.to(x.device).requires_grad_()

    sides = {"in": (x.shape[1], hidden), "mid": (hidden, hidden), "out": (hidden, targets.shape[1])}
    weights = {k: start(members, *side) for k, side in sides.items()}
    weights |= {
        f"{k}_bias": torch.zeros(members, 1, side[1], device=x.device, requires_grad=True) for k, side in sides.items()
    }
    batch = min(512, len(x))
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(weights.values(), lr=4e-3, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    with torch.enable_grad():
        for _ in range(epochs):
            order = torch.randperm(len(x), generator=rng).to(x.device)
            for rows in order[: len(x) // batch * batch].split(batch):
                heads = _members(weights, x[rows]).split(sizes, dim=-1)
                log_p = torch.cat([head.log_softmax(-1) for head in heads], dim=-1)
                loss = -(log_p * targets[rows]).sum(-1).mean(1).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return {k: v.detach() for k, v in weights.items()}


def _vector_scaling(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scale [] and bias [k] that make softmax(scale·logits + bias) most likely (Guo et al. 2017, §4.2)."""
    scale = torch.ones((), device=logits.device, requires_grad=True)
    bias = torch.zeros(logits.shape[1], device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits * scale + bias, targets)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return scale.detach(), (bias - bias.mean()).detach()


def _accuracy_and_calibration_error(guess: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    confidence, value = guess.max(1)
    right = target.gather(1, value.unsqueeze(1)).squeeze(1)
    bins = (confidence * 10).long().clamp_max(9)
    gap = torch.zeros(10, dtype=guess.dtype, device=guess.device).scatter_add_(0, bins, confidence - right)
    return right.mean(), gap.abs().sum() / len(guess)


# --- filling a quota ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Accepted:
    """What `reject` or `screen` found, sorted by group and then by index.

    Attributes:
        images: [n, 3, H, W]; None where none were made.
        latents: w [n, d] or [n, num_ws, d].
        group_ids: [n].
        index: the proposal's index [n]: with its seed (and group, where proposals are aimed) it can be made again.
        accepted, synthesized: how many were kept, and how many images were made, for each group [G]; proposals that
            are not aimed at a group cannot be split, so each group's `synthesized` is then the total.
        short: groups whose quota was not filled, and by how many: {id: missing}.
        drawn: latents that were looked at, [G] alike `synthesized`.
        passed: how many of them passed as members of each group [G], wanted or not.
    """

    images: Tensor | None
    latents: Tensor
    group_ids: Tensor
    index: Tensor
    accepted: Tensor
    synthesized: Tensor
    short: dict[int, int]
    drawn: Tensor
    passed: Tensor

    def __repr__(self) -> str:
        short = f", short {self.short}" if self.short else ""
        return f"Accepted(n={len(self.group_ids)}, synthesized={self.synthesized.tolist()}{short})"

    @property
    def acceptance_rate(self) -> Tensor:
        """passed / drawn [G], float64: how often a latent passes. The cost of a group in draws is its inverse."""
        return self.passed.double() / self.drawn.clamp_min(1)


@torch.no_grad()
def screen(
    generator: Generator,
    screen: Screen,
    quota: Tensor,
    seed: int = 0,
    *,
    groups: Groups | None = None,
    min_confidence: float = 0.6,
    min_face: float | None = None,
    verify: Assign | None = None,
    embedder: Embedder | None = None,
    threshold: SupportsFloat | None = None,
    images: bool = True,
    batch_size: int = 256,
    map_batch: int = 8192,
    max_mappings: int | None = None,
    max_syntheses: int | None = None,
    progress: bool = True,
) -> Accepted:
    """Fill a quota from the generator's own distribution: map many latents, synthesise those that pass the screen.

    Latent i is drawn from (seed, i) alone, in a sequence apart from the bank's: `draw_latents(generator, seed, i, 1,
    stream=ffs.screening.NATURAL_STREAM)`. Groups take their latents in that order; batch sizes decide nothing, except
    which of two alike faces comes first where identities are compared.

    Args:
        generator: the model that the screen's bank came from.
        screen: of `fit_screen`.
        quota: wanted number of each group, int64 [G].
        seed: of the draw; fitting and screening with one seed are independent.
        groups: over (some of) the screen's attributes; all of them by default.
        min_confidence: gate on each attribute's largest probability. Higher: fewer faces of the wrong group, more
            mappings, and less of the group's diversity, since doubtful members are left out.
        min_face: gate on the probability of a face, for screens of a bank with detections; 0.5 by default.
        verify: images [n, 3, H, W] → group ids [n], −1 to reject, as for `reject`: only confirmed faces count.
        embedder, threshold: keep only identities not kept before, of any group: cosine below the threshold.
        images: False (without `verify` and `threshold`): return latents alone, nothing is synthesised.
        batch_size, map_batch: images and latents at a time.
        max_mappings: budget of latents; by default 20,000 times the largest group's quota, or a million if that is
            more. When it is spent, `short` says what is missing.
        max_syntheses: budget of images; 200 per wanted face by default.
        progress: show a bar.

    Returns:
        `Accepted`: `drawn` counts mappings; `passed` and `acceptance_rate` are the screen's.
    """
    groups = groups or Groups({a: v for a, v in screen.attributes.items() if a != FACE})
    check_attributes(groups, screen.attributes)
    want = _checked_quota(quota, groups)
    budget, mappings = _budgets(want, max_syntheses, max_mappings, min(batch_size, map_batch))
    identities = _identities(embedder, threshold)
    if not images and (verify is not None or identities is not None):
        raise DataError("verification needs images", expected="images=True, or neither verify nor threshold", got=False)
    if min_face is not None and FACE not in screen.attributes:
        raise DataError(
            "this screen knows nothing of faces", got=f"min_face={min_face}", fix="label_latents(…, detector=detector)"
        )
    gates = min_confidence, 0.5 if min_face is None else min_face
    if not all(0 <= gate <= 1 for gate in gates):
        raise DataError("gates are probabilities", expected="min_confidence and min_face in 0 … 1", got=gates)
    sure = verify is None and identities is None
    found = _Found(want, aimed=True, identities=identities)
    pool = _Pool(generator, screen, groups, seed, *gates)
    with _bar(want, "screening faces", progress) as bar:
        while found.missing and found.total < budget:
            size, needs = min(batch_size, budget - found.total), found.needs(sure)
            while pool.mapped < mappings and pool.ready(needs) < min(size, sum(needs.values())):
                pool.map(min(map_batch, mappings - pool.mapped), needs)
            aim, index = pool.take(needs, size)
            if not len(aim):
                break
            w = pool.latents(index)
            made = generator.synthesize(to_layers(generator, w)) if images else None
            assigned = aim if verify is None or made is None else verify(made)
            bar.update(found.add(made, w, assigned, aim, index))
    found.drawn, found.passed = [pool.mapped] * len(want), pool.passed.tolist()
    return found.result(generator)


@torch.no_grad()
def reject(
    generator: Generator,
    assign: Assign,
    quota: Tensor,
    *,
    seed: int = 0,
    stream: int = 0,
    propose: Propose | None = None,
    groups: Groups | None = None,
    embedder: Embedder | None = None,
    threshold: SupportsFloat | None = None,
    truncation_psi: float = 1.0,
    batch_size: int = 256,
    max_syntheses: int | None = None,
    progress: bool = True,
) -> Accepted:
    """Fill a quota by making images and keeping the right ones: the plain baseline, and the check on any proposal.

    Args:
        generator: the model.
        assign: images [n, 3, H, W] → group ids [n], −1 for those to reject (unsure, no face found, …). For example
            `lambda images: groups.assign(labeller(images), min_confidence=0.7)`.
        quota: wanted number of each group, int64 [G].
        seed, stream: of the natural draw; a bank of the same seed has stream 0.
        propose: (group_ids [b], index [b]) → latents aimed at those groups, index counting from 0 within each group;
            an image is then kept only if `assign` says the group it was aimed at. None: natural draws, kept wherever a
            group is still short.
        groups: names for the messages and the bar.
        embedder, threshold: keep only identities not kept before, of any group: cosine below the threshold.
        truncation_psi: ψ of the natural draw's mapping.
        batch_size: images at a time.
        max_syntheses: budget; 200 images per wanted face by default. When it is spent, `short` says what is missing.
        progress: show a bar.
    """
    want = _checked_quota(quota, groups)
    budget, _ = _budgets(want, max_syntheses, None, batch_size)
    found = _Found(want, aimed=propose is not None, identities=_identities(embedder, threshold))
    device = generator.w_avg.device
    with _bar(want, "accepting faces", progress) as bar:
        while found.missing and found.total < budget:
            size = min(batch_size, budget - found.total)
            if propose is None:
                index = torch.arange(found.total, found.total + size, device=device)
                z = draw_latents(generator, seed, found.total, size, stream=stream)
                w = generator.map(z, truncation_psi=truncation_psi)
                aim = None
            else:
                aim, index = (x.to(device) for x in found.next_indices(size))
                w = propose(aim, index)
            images = generator.synthesize(to_layers(generator, w))
            bar.update(found.add(images, w, assign(images), aim, index))
    return found.result(generator)


# --- bookkeeping ----------------------------------------------------------------------------------------------------


def _checked_quota(quota: Tensor, groups: Groups | None) -> list[int]:
    quota = torch.as_tensor(quota)
    if quota.ndim != 1 or (len(quota) and quota.is_floating_point()) or quota.dtype == torch.bool:
        raise ShapeError("a quota counts faces", expected="int64 [G]", got=f"{list(quota.shape)} {quota.dtype}")
    want = quota.tolist()
    if min(want, default=-1) < 0 or sum(want) == 0:
        raise DataError("nothing to fill", expected="a quota [G] of non-negative numbers, not all zero", got=want)
    if groups is not None and len(groups) != len(want):
        raise GroupError("the quota does not fit the groups", expected=f"[{len(groups)}]", got=f"[{len(want)}]")
    return want


def _budgets(want: list[int], syntheses: int | None, mappings: int | None, smallest_batch: int) -> tuple[int, int]:
    budget = 200 * sum(want) if syntheses is None else syntheses
    draws = max(1_000_000, 20_000 * max(want)) if mappings is None else mappings
    if min(budget, draws, smallest_batch) < 1:
        raise DataError(
            "no images to make",
            expected="max_syntheses, max_mappings and batch sizes ≥ 1",
            got=f"{budget}, {draws}, {smallest_batch}",
        )
    return budget, draws


def _bar(want: list[int], what: str, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=sum(want), desc=what, unit="face", disable=not progress)


def _identities(embedder: Embedder | None, threshold: SupportsFloat | None) -> _Identities | None:
    if threshold is None:
        return None
    if embedder is None:
        raise DataError("identities are compared by an embedder", expected="embedder= beside threshold=", got=None)
    return _Identities(embedder, cosine_threshold(threshold))


class _Identities:
    """The kept faces' embeddings, and whether others resemble them."""

    def __init__(self, embedder: Embedder, threshold: float) -> None:
        self.embedder, self.threshold = embedder, threshold
        self.kept: Tensor | None = None

    def compare(self, images: Tensor) -> tuple[Tensor, list[bool], list[list[bool]]]:
        """Embeddings [n, e]; which are alike a kept face [n]; which are alike each other [n, n]."""
        embeddings = embed(self.embedder, images, progress=False)
        alike = (embeddings @ embeddings.T >= self.threshold).tolist()
        if self.kept is None:
            return embeddings, [False] * len(images), alike
        return embeddings, (novelty(embeddings, self.kept).similarity >= self.threshold).tolist(), alike

    def keep(self, embeddings: Tensor) -> None:
        self.kept = embeddings if self.kept is None else torch.cat((self.kept, embeddings))


class _Pool:
    """Natural latents that passed the screen and have not been used yet: their indices alone, in order."""

    def __init__(
        self, generator: Generator, screen: Screen, groups: Groups, seed: int, min_confidence: float, min_face: float
    ) -> None:
        self.generator, self.screen, self.groups, self.seed = generator, screen, groups, seed
        self.gates = min_confidence, min_face
        self.mapped = 0
        self.passed = torch.zeros(len(groups), dtype=torch.int64)
        self.waiting: list[list[int]] = [[] for _ in range(len(groups))]

    def latents(self, index: Tensor) -> Tensor:
        """w of draws by index, [n, d] if all layers are alike."""
        z = normals(self.seed, index.to(self.generator.w_avg.device), self.generator.z_dim, stream=NATURAL_STREAM)
        w = self.generator.map(z, truncation_psi=self.screen.truncation_psi)
        return w[:, 0] if len(self.screen.shape) == 1 else w

    def map(self, n: int, needs: Mapping[int, int]) -> None:
        """Look at the next n draws; keep those that pass, for each group no more than it could ever use."""
        index = torch.arange(self.mapped, self.mapped + n)
        probabilities = self.screen.probabilities(self.latents(index))
        ids = self.groups.assign(probabilities, self.gates[0])
        if FACE in probabilities:
            ids = torch.where(probabilities[FACE][:, 1] >= self.gates[1], ids, -1)
        ids = ids.cpu()
        self.passed += self.groups.count(ids)
        for g, need in needs.items():
            room = max(0, _WORST * need - len(self.waiting[g]))
            self.waiting[g] += index[ids == g][:room].tolist()
        self.mapped += n

    def ready(self, needs: Mapping[int, int]) -> int:
        """How many of the latents needed are there."""
        return sum(min(n, len(self.waiting[g])) for g, n in needs.items())

    def take(self, needs: Mapping[int, int], size: int) -> tuple[Tensor, Tensor]:
        """Group ids and indices of the next latents to try, spread over the groups by what is there."""
        ready = {g: min(n, len(self.waiting[g])) for g, n in needs.items()}
        aims = _spread({g: n for g, n in ready.items() if n}, size)
        aim, index = [], []
        for g, n in aims.items():
            aim += [g] * n
            index += self.waiting[g][:n]
            del self.waiting[g][:n]
        device = self.generator.w_avg.device
        return tuple(torch.tensor(x, dtype=torch.int64, device=device) for x in (aim, index))  # type: ignore[return-value]


_WORST = (
    50  # a group that confirms less than one proposal in so many counts as one that does: it must not starve others
)


def _spread(needs: Mapping[int, int], size: int) -> dict[int, int]:
    """At most `size` in all, for each group at most what it needs, by its share of all needs but at least one."""
    total = sum(needs.values())
    aims: dict[int, int] = {}
    for g, n in sorted(needs.items(), key=lambda item: item[1]):
        aims[g] = min(n, size - sum(aims.values()), max(1, round(size * n / total)))
    return {g: n for g, n in aims.items() if n}


class _Found:
    """What is kept, and what each group still lacks."""

    def __init__(self, want: list[int], aimed: bool, identities: _Identities | None = None) -> None:
        self.want, self.aimed, self.identities = want, aimed, identities
        self.kept = [0] * len(want)
        self.made = [0] * len(want)
        self.drawn: list[int] | None = None
        self.passed = [0] * len(want)
        self.total = 0
        self.parts: list[tuple[Tensor | None, Tensor, Tensor, Tensor]] = []

    @property
    def short(self) -> dict[int, int]:
        return {g: w - k for g, (w, k) in enumerate(zip(self.want, self.kept, strict=True)) if k < w}

    @property
    def missing(self) -> int:
        return sum(self.short.values())

    def needs(self, sure: bool = False) -> dict[int, int]:
        """How many proposals each short group is expected to take still."""
        if sure:
            return self.short
        return {g: math.ceil(k * min(_WORST, (self.made[g] + 2) / (self.kept[g] + 1))) for g, k in self.short.items()}

    def next_indices(self, size: int) -> tuple[Tensor, Tensor]:
        """Group ids and indices for proposals that count from 0 within each group."""
        aims = _spread(self.needs(), size)
        aim = [torch.full((n,), g) for g, n in aims.items()]
        index = [torch.arange(self.made[g], self.made[g] + n) for g, n in aims.items()]
        return torch.cat(aim), torch.cat(index)

    def add(self, images: Tensor | None, w: Tensor, assigned: Tensor, aim: Tensor | None, index: Tensor) -> int:
        """Count a batch, keep what is wanted. Returns how many were kept."""
        groups = assigned.tolist()
        aims = groups if aim is None else aim.tolist()
        right = []
        for row, (group, aimed) in enumerate(zip(groups, aims, strict=True)):
            if self.aimed:
                self.made[aimed] += 1
            if not -1 <= group < len(self.want):
                raise GroupError("assign gave an unknown group", expected=f"-1 … {len(self.want) - 1}", got=group)
            if group == aimed and group >= 0:
                self.passed[group] += 1
                right.append(row)
        self.total += len(groups)
        keep = self._wanted(right, groups, images)
        rows = torch.tensor(keep, dtype=torch.int64, device=w.device)
        self.parts.append((None if images is None else images[rows], w[rows], assigned[rows], index[rows]))
        return len(keep)

    def _wanted(self, rows: list[int], groups: list[int], images: Tensor | None) -> list[int]:
        """Those of the rows that a short group takes, in order, and whose identity is new."""
        rows = [row for row in rows if self.kept[groups[row]] < self.want[groups[row]]]
        known, alike, embeddings = [False] * len(rows), None, None
        if self.identities is not None and images is not None and rows:
            embeddings, known, alike = self.identities.compare(images[rows])
        chosen: list[int] = []
        for i, row in enumerate(rows):
            group = groups[row]
            if self.kept[group] == self.want[group] or known[i] or (alike and any(alike[i][k] for k in chosen)):
                continue
            self.kept[group] += 1
            chosen.append(i)
        if self.identities is not None and embeddings is not None:
            self.identities.keep(embeddings[chosen])
        return [rows[i] for i in chosen]

    def result(self, generator: Generator) -> Accepted:
        """All that was kept, sorted by group, and what is missing."""
        if not self.parts:
            none = torch.empty(0, dtype=torch.int64, device=generator.w_avg.device)
            self.parts = [(None, torch.empty(0, generator.w_dim, device=none.device), none, none)]
        latents, ids, index = (torch.cat([part[i] for part in self.parts]) for i in (1, 2, 3))  # type: ignore[misc]
        images = [part[0] for part in self.parts if part[0] is not None]
        order = torch.argsort(ids, stable=True)
        made = self.made if self.aimed else [self.total] * len(self.want)
        return Accepted(
            images=torch.cat(images)[order] if images else None,
            latents=latents[order].squeeze(1) if latents.ndim == 3 and latents.shape[1] == 1 else latents[order],
            group_ids=ids[order],
            index=index[order],
            accepted=torch.tensor(self.kept),
            synthesized=torch.tensor(made if images else [0] * len(self.want)),
            short=self.short,
            drawn=torch.tensor(self.drawn or made),
            passed=torch.tensor(self.passed),
        )
