"""Balanced batches of synthetic faces, made while a recognition network trains.

Identities of a stream are numbered 0, 1, 2, … and belong to groups in a fixed cycle. Everything about identity j, its
face and its variations, depends on (seed, j) alone: ranks, workers and how far ahead batches are made decide nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .errors import DataError, GroupError, ShapeError
from .groups import Groups, balanced_quota
from .label_noise import CorrectedQuota
from .latents import normals, to_layers
from .models.pretrained import check_images, resize
from .people import MAX_IMAGES, Drawing, People, Source, axis_steps, check_axes, check_source
from .prefetch import Prefetch
from .variations import Axis

Transform = Callable[[Tensor, Tensor], Tensor]  # (images [n, 3, H, W], their numbers int64 [n]) → images

FIRST_INDEX = 2**40  # of `latents`, so that no stream shows the faces of `Pipeline.sample` of the same seed
_NEIGHBOURS = 2**40  # identities that exist only to be moved towards, beyond all that are shown
_AUGMENT_STREAM = 2**32 - 5


class SyntheticBatch(NamedTuple):
    """One batch, the images of an identity side by side.

    Attributes:
        images: [n, 3, H, W] in [-1, 1], or what `transform` made of them.
        identity: int64 [n], the identity's number, unique over the whole stream and over ranks.
        group_ids: int64 [n], the groups the faces were aimed at.
        latents: w that made them.
    """

    images: Tensor
    identity: Tensor
    group_ids: Tensor
    latents: Tensor


def stream(
    source: Source,
    batch_size: int = 64,
    *,
    groups: str | int | Iterable[str | int] | Mapping[str, float] | CorrectedQuota | Tensor = "balanced",
    images_per_identity: int = 2,
    method: Drawing = "gaussian",
    axes: Axis | Iterable[Axis] | None = None,
    perturbation: float = 0.2,
    candidates: int = 256,
    truncation_psi: float = 1.0,
    transform: Transform | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    prefetch: int = 2,
) -> SyntheticStream:
    """An endless iterator of balanced batches, for a training loop or a DataLoader.

    >>> for (real, label), fake in zip(loader, ffs.stream(pipeline, 32), strict=False): ...

    Args:
        source: a fitted `Pipeline`, or an object with `generator`, `groups` and `latents` (see `Source`).
        batch_size: images a batch on each rank, a multiple of `images_per_identity`.
        groups: "balanced" over all groups, a group, a list or {specification: share} (`balanced_quota`), a
            `CorrectedQuota`, or relative numbers of identities int64 [G]. In every batch equal shares differ by at most
            one identity, and uneven ones by less than two from what they should be; what is left over goes round.
        images_per_identity: k: the identity's face and k − 1 variations of it.
        method:
            "gaussian": faces from `source.latents`, for a pipeline its groups' Gaussians. Cheapest, and least sure to
                show the group.
            "screen": the first of `candidates` natural draws that `source.screen` takes for the group; if none, the
                most probable. Costs that many mappings an identity.
            Confirming faces by a labeller (`sample(verify=True)`, "reject", "evolve") needs an unknown number of
            syntheses a face; make a set of latents with it, and hand over a source that looks them up.
        axes: what to vary. Each variation is another one of the edits that `vary(w, axes)` would make, at random and
            unchecked. None: each is the face moved a little towards another one of its group.
        perturbation: of axes=None, how far: 0 not at all, 1 all the way to the other face.
        candidates: of "screen".
        truncation_psi: of "gaussian"; lower values are known to worsen imbalance. "screen" draws with its bank's ψ.
        transform: (images, numbers) → images, for example `to_recognition_format`, before a batch is handed out and
            under no_grad. `numbers` [n] are the images' own, 1024·identity + its place among the identity's images, for
            random transforms that are reproducible (`augment`).
        device: where batches are handed out; by default where the generator is, which is where they are made.
        seed: of everything drawn.
        rank, world_size: this process among those that train together; they share out one sequence of batches.
        prefetch: batches made ahead, in a thread, or on CUDA on a stream of its own; 0: each when it is asked for.

    Raises:
        DataError, GroupError, ShapeError: settings out of range, unknown groups, a source without the parts that the
            method needs.
    """
    generator = check_source(source, method)
    _check_settings(batch_size, images_per_identity, perturbation, candidates, seed, rank, world_size, prefetch)
    axes = check_axes(axes, images_per_identity)
    if not math.isfinite(truncation_psi):
        raise DataError("truncation is a number", expected="truncation_psi, for example 0.7", got=truncation_psi)
    screen = getattr(source, "screen", None) if method == "screen" else None
    if screen is not None and truncation_psi != 1.0:
        expected = f"truncation_psi=1.0 here; the bank has ψ = {screen.truncation_psi}"
        raise DataError("a screen draws with its bank's truncation", expected=expected, got=truncation_psi)
    # Natural candidates have a sequence of their own; the Gaussians' is that of Pipeline.sample, further on.
    first = FIRST_INDEX if screen is None else 0
    neighbours = first + _NEIGHBOURS
    recipe = _Recipe(
        people=People(source, screen, axes, perturbation, candidates, truncation_psi, seed, neighbours),
        first=first,
        cycle=_cycle(source.groups, groups).to(generator.w_avg.device),
        identities=batch_size // images_per_identity,
        images_per_identity=images_per_identity,
        transform=transform,
    )
    return SyntheticStream(recipe, rank, world_size, prefetch, device)


class SyntheticStream(IterableDataset[SyntheticBatch]):
    """What `stream` gives: `next(batches)`, `for batch in batches`, or `DataLoader(batches, batch_size=None)`.

    In a DataLoader with workers (the generator then has to be on the CPU) the workers take turns, so that the sequence
    is the same for any number of them; it begins at `step`, which does not move then. Copies count for themselves.

    Attributes:
        step: number of the next batch on this rank.
    """

    def __init__(
        self, recipe: _Recipe, rank: int, world_size: int, prefetch: int, device: torch.device | str | None
    ) -> None:
        self.step = 0
        self._recipe, self._rank, self._world_size, self._prefetch = recipe, rank, world_size, prefetch
        self._device = recipe.device if device is None else torch.device(device)
        self._ahead: _Ahead | None = None

    def __repr__(self) -> str:
        r = self._recipe
        return (
            f"SyntheticStream({r.identities} identities × {r.images_per_identity} images a batch, "
            f"{len(r.cycle.unique())} groups, seed={r.people.seed}, rank {self._rank} of {self._world_size}, "
            f"step={self.step})"
        )

    def __iter__(self) -> Iterator[SyntheticBatch]:
        worker = get_worker_info()
        if worker is None:
            return self
        if self._recipe.device.type != "cpu":
            raise DataError(
                "a DataLoader's workers cannot share the generator's GPU",
                expected="num_workers=0, where the stream prefetches by itself; or a generator on the CPU",
                got=f"{worker.num_workers} workers, a generator on {self._recipe.device}",
            )
        steps = count(self.step + worker.id, worker.num_workers)
        return (self._recipe.batch(self._number(step)) for step in steps)

    def __next__(self) -> SyntheticBatch:
        if self._ahead is None:
            self._ahead = self._start()
        try:
            batch = next(self._ahead)
        except BaseException:
            self.close()
            raise
        self.step += 1
        return SyntheticBatch(*(x.to(self._device, non_blocking=True) for x in batch))

    def __enter__(self) -> SyntheticStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop prefetching and let go of the batches made ahead; `next` starts it again. Nothing is skipped."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands after the last batch handed out, and the settings its batches depend on."""
        return {"step": self.step, "world_size": self._world_size, **self._recipe.settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another stream of the same settings stood.

        Raises:
            DataError: settings that differ; the batches would.
        """
        if not isinstance(state, Mapping):
            raise DataError("this is no state", expected="what state_dict() gave", got=f"a {type(state).__name__}")
        mine = self.state_dict()
        differ = [k for k in mine if k != "step" and state.get(k) != mine[k]]
        step = state.get("step")
        if differ or not isinstance(step, int) or step < 0:
            raise DataError(
                "this state is another stream's",
                expected=", ".join(f"{k}={mine[k]}" for k in differ) or "a step ≥ 0",
                got=", ".join(f"{k}={state.get(k)}" for k in differ) or step,
                fix="make the stream with the settings that the state was saved with",
            )
        self.seek(step)

    def seek(self, step: int) -> None:
        """Make batch `step` of this rank the next one; costs nothing."""
        if not isinstance(step, int) or step < 0:
            raise DataError("batches are counted from 0", expected="a whole number ≥ 0", got=step)
        self.close()
        self.step = step

    def _number(self, step: int) -> int:
        return step * self._world_size + self._rank

    def _start(self) -> _Ahead:
        numbers = count(self._number(self.step), self._world_size)
        if self._recipe.device.type == "cuda":
            return _SideStream(self._recipe, numbers, self._prefetch)
        batches = _batches(self._recipe, numbers, pin=self._device.type == "cuda")
        return Prefetch(batches, self._prefetch, "synthetic batches") if self._prefetch else batches

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None}  # a thread does not survive pickling


# --- what a batch holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    """Makes any batch by its number, counted over all ranks."""

    people: People
    first: int  # number of identity 0 among the people
    cycle: Tensor  # the group of identity j is cycle[j mod its length]
    identities: int
    images_per_identity: int
    transform: Transform | None

    @property
    def device(self) -> torch.device:
        return self.people.source.generator.w_avg.device

    def settings(self) -> dict[str, Any]:
        """What a state must agree on."""
        p = self.people
        return {
            "seed": p.seed,
            "identities": self.identities,
            "images_per_identity": self.images_per_identity,
            "method": "gaussian" if p.screen is None else "screen",
            "cycle": self.cycle.tolist(),
            "perturbation": p.perturbation if p.axes is None else None,
            "axes": None if p.axes is None else [[axis.kind, *axis_steps(axis).tolist()] for axis in p.axes],
            "candidates": p.candidates,
            "truncation_psi": p.truncation_psi,
        }

    @torch.no_grad()
    def batch(self, number: int) -> SyntheticBatch:
        m, k, device = self.identities, self.images_per_identity, self.device
        identity = torch.arange(number * m, (number + 1) * m, device=device)
        ids = self.cycle[identity % len(self.cycle)]
        w = self.people.faces(ids, self.first + identity).unsqueeze(1)
        if k > 1:
            w = torch.cat((w, self.people.variations(w[:, 0], ids, identity, k - 1)), dim=1)
        w = w.flatten(0, 1)
        generator = self.people.source.generator
        images = generator.synthesize(to_layers(generator, w))
        if self.transform is not None:
            numbers = identity.unsqueeze(1) * MAX_IMAGES + torch.arange(k, device=device)
            images = self.transform(images, numbers.flatten())
            if not isinstance(images, Tensor) or len(images) != m * k:
                got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise ShapeError("the transform must keep the images", expected=[m * k, "…"], got=got)
        return SyntheticBatch(images, identity.repeat_interleave(k), ids.repeat_interleave(k), w)


def _cycle(groups: Groups, spec: Any) -> Tensor:
    """Groups of identities 0 … C − 1, int64 [C], after which they repeat.

    C is the smallest number up to 1,000 that the shares divide, and each group's turns are spread evenly.
    """
    if isinstance(spec, CorrectedQuota):
        if spec.groups != groups:
            raise GroupError("the quota is over other groups", expected=groups, got=spec.groups)
        spec = spec.quota
    if isinstance(spec, np.ndarray):
        spec = torch.from_numpy(spec)
    if isinstance(spec, Tensor):
        if spec.shape != (len(groups),) or spec.is_floating_point() or int(spec.min()) < 0 or int(spec.sum()) == 0:
            expected = f"int64 [{len(groups)}], not negative, not all 0"
            raise GroupError("a quota counts each group's identities", expected=expected, got=spec.tolist())
        spec = {name: float(n) for name, n in zip(groups.names, spec.tolist(), strict=True)}
    shares = [q / 10**6 for q in balanced_quota(groups, 10**6, spec).tolist()]
    whole = (n for n in range(1, 1001) if all(abs(s * n - round(s * n)) < 2e-6 * n for s in shares))
    counts = balanced_quota(groups, next(whole, 1000), spec).tolist()
    return torch.tensor(_spread(counts))


def _spread(counts: Sequence[int]) -> list[int]:
    """Group g counts[g] times, so that no beginning of the list is off its share by a whole one (Tijdeman 1980).

    Then no stretch of it, such as a batch, is off by two. Merely sorting evenly spaced turns is: where several groups'
    turns fall together, the others' pile up beside them.
    """
    total, present = sum(counts), [g for g, n in enumerate(counts) if n]
    slack = 1 / (2 * len(present) - 2) if len(present) > 1 else 0.0
    had, turns = [0] * len(counts), []
    for t in range(1, total + 1):
        owed = {g: counts[g] * t / total - had[g] for g in present}
        ready = [g for g in present if owed[g] >= slack - 1e-9]
        turns.append(min(ready, key=lambda g: (round((1 - slack - owed[g]) * total / counts[g], 6), g)))  # due first
        had[turns[-1]] += 1
    return turns


# --- making batches ahead -------------------------------------------------------------------------------------------


def _batches(recipe: _Recipe, numbers: Iterator[int], pin: bool) -> Generator[SyntheticBatch, None, None]:
    for number in numbers:
        batch = recipe.batch(number)
        yield SyntheticBatch(*(x.pin_memory() for x in batch)) if pin else batch


class _SideStream:
    """Makes batches on a CUDA stream of its own, `depth` of them queued behind the one that is handed out.

    The allocator gives a batch's memory back to the side stream once the consumer's stream is past its last use, so
    that a few buffers serve for ever.
    """

    def __init__(self, recipe: _Recipe, numbers: Iterator[int], depth: int) -> None:
        self._recipe, self._numbers, self._depth = recipe, numbers, depth
        self._stream = torch.cuda.Stream(recipe.device)
        self._stream.wait_stream(torch.cuda.current_stream(recipe.device))  # the weights may still be on their way
        self._queue: deque[tuple[SyntheticBatch, torch.cuda.Event]] = deque()

    def __next__(self) -> SyntheticBatch:
        while len(self._queue) <= self._depth:
            with torch.cuda.stream(self._stream):
                batch = self._recipe.batch(next(self._numbers))
                self._queue.append((batch, self._stream.record_event()))
        batch, made = self._queue.popleft()
        consumer = torch.cuda.current_stream(self._recipe.device)
        consumer.wait_event(made)
        for x in batch:
            x.record_stream(consumer)
        return batch

    def close(self) -> None:
        self._queue.clear()


_Ahead = Prefetch[SyntheticBatch] | Generator[SyntheticBatch, None, None] | _SideStream


# --- the trainer's format -------------------------------------------------------------------------------------------


def to_recognition_format(
    images: Tensor, numbers: Tensor | None = None, *, size: int = 112, crop: float = 1.0
) -> Tensor:
    """Images of the size that recognition networks train on, [n, 3, size, size].

    Mean and standard deviation 0.5, as such trainers write, is [-1, 1]: what images have here already. This cuts and
    scales, and moves nothing: for ArcFace's position of the eyes use `align_faces`, and the same for the real images.

    Args:
        images: [n, 3, H, W] in [-1, 1].
        numbers: not used; it lets the function be a stream's `transform`.
        size: side in pixels.
        crop: share of the shorter side that a central square keeps, in (0, 1].
    """
    _check_tensor(images)
    if size < 1 or not 0 < crop <= 1:
        raise DataError("a setting is out of range", expected="size ≥ 1, 0 < crop ≤ 1", got=f"{size}, {crop}")
    height, width = images.shape[-2:]
    side = max(1, round(crop * min(height, width)))
    top, left = (height - side) // 2, (width - side) // 2
    return resize(images[..., top : top + side, left : left + side], (size, size))


def augment(
    images: Tensor, numbers: Tensor, *, seed: int = 0, flip: float = 0.5, brightness: float = 0.2, contrast: float = 0.2
) -> Tensor:
    """Mirror images and change their light at random; row i depends on (seed, numbers[i]) alone.

    Args:
        images: [n, 3, H, W] in [-1, 1].
        numbers: int64 [n], for example those that a stream hands its `transform`.
        seed: of the draw.
        flip: probability of a left-right mirror image.
        brightness: largest shift; black to white is 2.
        contrast: largest relative change of the distance from the image's mean.

    Returns:
        Like images, clamped to [-1, 1].
    """
    _check_tensor(images)
    if not isinstance(numbers, Tensor) or numbers.shape != images.shape[:1]:
        got = list(numbers.shape) if isinstance(numbers, Tensor) else f"a {type(numbers).__name__}"
        raise ShapeError("one number per image, please", expected=f"numbers: int64 [{len(images)}]", got=got)
    if not (0 <= flip <= 1 and 0 <= brightness <= 2 and 0 <= contrast <= 1):
        raise DataError(
            "a setting is out of range",
            expected="0 ≤ flip ≤ 1, 0 ≤ brightness ≤ 2, 0 ≤ contrast ≤ 1",
            got=f"flip={flip}, brightness={brightness}, contrast={contrast}",
        )
    drawn = torch.special.ndtr(normals(seed, numbers.to(images.device), 3, stream=_AUGMENT_STREAM)).to(images.dtype)
    mirrored, shift, factor = drawn.reshape(-1, 3, 1, 1, 1).unbind(1)
    x = torch.where(mirrored < flip, images.flip(-1), images)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * (1 + contrast * (2 * factor - 1)) + brightness * (2 * shift - 1)
    return x.clamp(-1, 1)


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_tensor(images: object) -> None:
    if not isinstance(images, Tensor):
        raise ShapeError("images are a tensor", expected="float [n, 3, H, W]", got=f"a {type(images).__name__}")
    check_images(images)


def _check_settings(
    batch_size: int,
    k: int,
    perturbation: float,
    candidates: int,
    seed: int,
    rank: int,
    world_size: int,
    prefetch: int,
) -> None:
    whole = {"batch_size": batch_size, "images_per_identity": k, "candidates": candidates, "seed": seed}
    whole |= {"rank": rank, "world_size": world_size, "prefetch": prefetch}
    for name, value in whole.items():
        if not isinstance(value, int):
            raise DataError(f"{name} is a whole number", expected="an int", got=repr(value))
    if not 0 <= seed < 2**64:
        raise DataError("seed out of range", expected="0 ≤ seed < 2⁶⁴", got=seed)
    if not 1 <= k <= MAX_IMAGES or batch_size < 1 or batch_size % k:
        raise DataError(
            "a batch holds whole identities",
            expected=f"1 ≤ images_per_identity ≤ {MAX_IMAGES}, batch_size a multiple of it",
            got=f"batch_size={batch_size}, images_per_identity={k}",
        )
    if not 0 <= rank < world_size or prefetch < 0 or candidates < 1 or not 0 <= perturbation <= 1:
        raise DataError(
            "a setting is out of range",
            expected="0 ≤ rank < world_size, prefetch ≥ 0, candidates ≥ 1, 0 ≤ perturbation ≤ 1",
            got=f"rank={rank}, world_size={world_size}, prefetch={prefetch}, candidates={candidates}, {perturbation}",
        )
