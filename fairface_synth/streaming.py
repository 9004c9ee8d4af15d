"""Balanced batches of synthetic faces, made while a recognition network trains.

Identities of a stream are numbered 0, 1, 2, … and belong to groups in a fixed cycle. Everything about identity j, its
face and its variations, depends on (seed, j) alone: ranks, workers and how far ahead batches are made decide nothing.
"""

from __future__ import annotations

import math
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .errors import DataError, GroupError, ShapeError
from .groups import Groups, balanced_quota
from .label_noise import CorrectedQuota
from .latents import normals, to_layers
from .models.pretrained import check_images, resize
from .models.protocols import Generator
from .screening import FACE, Screen
from .variations import Axis, edit

Drawing = Literal["gaussian", "screen"]
Transform = Callable[[Tensor, Tensor], Tensor]  # (images [n, 3, H, W], their numbers int64 [n]) → images

FIRST_INDEX = 2**40  # of `latents`, so that no stream shows the faces of `Pipeline.sample` of the same seed
_NEIGHBOURS = 2**40  # identities that exist only to be moved towards, beyond all that are shown
_MAX_IMAGES = 1024  # of one identity: image t of identity j has the number 1024·j + t
_VARIATION_STREAM, _CANDIDATE_STREAM, _AUGMENT_STREAM = 2**32 - 3, 2**32 - 4, 2**32 - 5


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


class Source(Protocol):
    """What a stream is made from: a `Pipeline`, or `types.SimpleNamespace(generator=…, groups=…, latents=…)`."""

    generator: Generator
    groups: Groups

    def latents(self, group_ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        """w aimed at the groups; row i depends on (seed, group_ids[i], index[i]) alone."""
        ...


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
    generator = _check_source(source, method)
    axes = (axes,) if isinstance(axes, Axis) else None if axes is None else tuple(axes)
    _check_settings(batch_size, images_per_identity, axes, perturbation, candidates, seed, rank, world_size, prefetch)
    if not math.isfinite(truncation_psi):
        raise DataError("truncation is a number", expected="truncation_psi, for example 0.7", got=truncation_psi)
    screen = getattr(source, "screen", None) if method == "screen" else None
    if screen is not None and truncation_psi != 1.0:
        expected = f"truncation_psi=1.0 here; the bank has ψ = {screen.truncation_psi}"
        raise DataError("a screen draws with its bank's truncation", expected=expected, got=truncation_psi)
    recipe = _Recipe(
        source=source,
        screen=screen,
        cycle=_cycle(source.groups, groups).to(generator.w_avg.device),
        identities=batch_size // images_per_identity,
        images_per_identity=images_per_identity,
        axes=axes,
        perturbation=perturbation,
        candidates=candidates,
        truncation_psi=truncation_psi,
        transform=transform,
        seed=seed,
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
        self._ahead: _Thread | _SideStream | None = None

    def __repr__(self) -> str:
        r = self._recipe
        return (
            f"SyntheticStream({r.identities} identities × {r.images_per_identity} images a batch, "
            f"{len(r.cycle.unique())} groups, seed={r.seed}, rank {self._rank} of {self._world_size}, step={self.step})"
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
            batch = self._ahead.get()
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

    def _start(self) -> _Thread | _SideStream:
        numbers = count(self._number(self.step), self._world_size)
        if self._recipe.device.type == "cuda":
            return _SideStream(self._recipe, numbers, self._prefetch)
        return _Thread(self._recipe, numbers, self._prefetch, pin=self._device.type == "cuda")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_ahead": None}  # a thread does not survive pickling


# --- what a batch holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Recipe:
    """Makes any batch by its number, counted over all ranks."""

    source: Source
    screen: Screen | None
    cycle: Tensor  # the group of identity j is cycle[j mod its length]
    identities: int
    images_per_identity: int
    axes: tuple[Axis, ...] | None
    perturbation: float
    candidates: int
    truncation_psi: float
    transform: Transform | None
    seed: int

    @property
    def device(self) -> torch.device:
        return self.source.generator.w_avg.device

    def settings(self) -> dict[str, Any]:
        """What a state must agree on."""
        return {
            "seed": self.seed,
            "identities": self.identities,
            "images_per_identity": self.images_per_identity,
            "method": "gaussian" if self.screen is None else "screen",
            "cycle": self.cycle.tolist(),
            "perturbation": self.perturbation if self.axes is None else None,
            "axes": None if self.axes is None else [[axis.kind, *_steps(axis).tolist()] for axis in self.axes],
            "candidates": self.candidates,
            "truncation_psi": self.truncation_psi,
        }

    @torch.no_grad()
    def batch(self, number: int) -> SyntheticBatch:
        m, k, device = self.identities, self.images_per_identity, self.device
        identity = torch.arange(number * m, (number + 1) * m, device=device)
        ids = self.cycle[identity % len(self.cycle)]
        w = self._faces(ids, identity).unsqueeze(1)
        if k > 1:
            w = torch.cat((w, self._variations(w[:, 0], ids, identity)), dim=1)
        w = w.flatten(0, 1)
        images = self.source.generator.synthesize(to_layers(self.source.generator, w))
        if self.transform is not None:
            numbers = identity.unsqueeze(1) * _MAX_IMAGES + torch.arange(k, device=device)
            images = self.transform(images, numbers.flatten())
            if not isinstance(images, Tensor) or len(images) != m * k:
                got = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
                raise ShapeError("the transform must keep the images", expected=[m * k, "…"], got=got)
        return SyntheticBatch(images, identity.repeat_interleave(k), ids.repeat_interleave(k), w)

    def _faces(self, ids: Tensor, number: Tensor) -> Tensor:
        """w [n, *shape] of people by number, those beyond the shown identities included."""
        if self.screen is None:
            w = self.source.latents(ids, FIRST_INDEX + number, self.seed, self.truncation_psi)
            if not isinstance(w, Tensor) or w.ndim < 2 or len(w) != len(ids):
                got = list(w.shape) if isinstance(w, Tensor) else f"a {type(w).__name__}"
                raise ShapeError("the source must give one w a face", expected=[len(ids), "…"], got=got)
            return w
        return _first_that_passes(self.source, self.screen, ids, number, self.seed, self.candidates)

    def _variations(self, w: Tensor, ids: Tensor, identity: Tensor) -> Tensor:
        """w [m, *shape] → [m, k − 1, *shape]."""
        extra = self.images_per_identity - 1
        if self.axes is not None:
            return _random_edits(w, self.axes, identity, self.seed, extra)
        place = torch.arange(1, extra + 1, device=w.device)
        number = (_NEIGHBOURS + identity.unsqueeze(1) * _MAX_IMAGES + place).flatten()
        other = self._faces(ids.repeat_interleave(extra), number).unflatten(0, (len(w), extra))
        return torch.lerp(w.unsqueeze(1).expand_as(other), other, self.perturbation)


def _random_edits(w: Tensor, axes: tuple[Axis, ...], identity: Tensor, seed: int, n: int) -> Tensor:
    """n different ones of all the axes' edits of each latent, [m, n, *shape]."""
    steps = torch.cat([_steps(axis).to(w.device) for axis in axes])
    axis_of = torch.cat([torch.full_like(_steps(axis), i, dtype=torch.int64) for i, axis in enumerate(axes)])
    keys = normals(seed, identity, len(steps), stream=_VARIATION_STREAM)
    chosen = keys.argsort(1)[:, :n].flatten()
    start = w.repeat_interleave(n, 0)
    amount, which = steps[chosen], axis_of.to(w.device)[chosen].reshape(-1, *[1] * (w.ndim - 1))
    result = start
    for i, axis in enumerate(axes):
        move = axis.kind == "move"
        moved = edit(start, axis.direction, amount) if move else edit(start, axis.direction, to=amount)
        result = torch.where(which == i, moved, result)
    return result.unflatten(0, (len(w), n))


def _first_that_passes(source: Any, screen: Screen, ids: Tensor, number: Tensor, seed: int, tries: int) -> Tensor:
    """Of each person's natural draws the first that the screen takes for the group, or else the most probable."""
    draw = torch.arange(tries, device=ids.device)
    z = normals(seed, (number.unsqueeze(1) * tries + draw).flatten(), source.generator.z_dim, stream=_CANDIDATE_STREAM)
    w = source.generator.map(z, truncation_psi=screen.truncation_psi)
    w = w[:, 0] if len(screen.shape) == 1 else w
    p = screen.probabilities(w)
    wanted = ids.repeat_interleave(tries)
    passes = source.groups.assign(p, getattr(source, "min_confidence", 0.6)) == wanted
    likely = source.groups.joint(p).gather(1, wanted.unsqueeze(1)).squeeze(1)
    if FACE in p:
        passes, likely = passes & (p[FACE][:, 1] >= 0.5), likely * p[FACE][:, 1]
    w, passes, likely = (x.unflatten(0, (len(ids), tries)) for x in (w, passes, likely))
    pick = torch.where(passes, 2 - draw / tries, likely).argmax(1)
    return w[torch.arange(len(ids), device=ids.device), pick]


def _steps(axis: Axis) -> Tensor:
    return torch.as_tensor(axis.steps)


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


class _Thread:
    """Makes batches in a thread of its own, at most `depth` before they are asked for; depth 0: without a thread."""

    def __init__(self, recipe: _Recipe, numbers: Iterator[int], depth: int, pin: bool) -> None:
        self._recipe, self._numbers, self._pin = recipe, numbers, pin
        self._depth = depth
        if depth:
            self._ready: queue.SimpleQueue[SyntheticBatch | BaseException] = queue.SimpleQueue()
            self._room, stop = threading.Semaphore(depth), threading.Event()
            # The thread knows nothing of this object, so that dropping the stream ends it; so does the interpreter's
            # exit, before which a daemon thread must be out of torch.
            work = (recipe, numbers, pin, self._ready, self._room, stop)
            thread = threading.Thread(target=_work, args=work, name="synthetic batches", daemon=True)
            self._end = weakref.finalize(self, _join, thread, self._room, stop)
            thread.start()

    def get(self) -> SyntheticBatch:
        if not self._depth:
            return _make(self._recipe, next(self._numbers), self._pin)
        batch = self._ready.get()
        self._room.release()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def close(self) -> None:
        if self._depth:
            self._end()


def _work(
    recipe: _Recipe,
    numbers: Iterator[int],
    pin: bool,
    ready: queue.SimpleQueue[SyntheticBatch | BaseException],
    room: threading.Semaphore,
    stop: threading.Event,
) -> None:
    while room.acquire() and not stop.is_set():
        try:
            ready.put(_make(recipe, next(numbers), pin))
        except BaseException as error:  # whatever it is, it belongs to whoever waits for the batch
            ready.put(error)
            return


def _join(thread: threading.Thread, room: threading.Semaphore, stop: threading.Event) -> None:
    stop.set()
    room.release()
    if thread is not threading.current_thread():  # garbage may be collected in any thread
        thread.join()


def _make(recipe: _Recipe, number: int, pin: bool) -> SyntheticBatch:
    batch = recipe.batch(number)
    return SyntheticBatch(*(x.pin_memory() for x in batch)) if pin else batch


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

    def get(self) -> SyntheticBatch:
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


def _check_source(source: Any, method: str) -> Generator:
    if method not in get_args(Drawing):
        look_up = "pipeline.sample(…, method=…) first, then a source whose latents() looks the set up"
        raise DataError(
            f"a stream cannot draw by {method!r}",
            expected=" or ".join(get_args(Drawing)),
            got=method,
            fix=look_up if method in ("reject", "evolve") else None,
        )
    parts = ["generator", "groups", *(["screen"] if method == "screen" else ["latents"])]
    missing = [part for part in parts if not hasattr(source, part)]
    if missing:
        raise DataError(
            f"this cannot be streamed: it has no {', '.join(missing)}",
            expected="a Pipeline, or an object with generator, groups and latents (screen for method='screen')",
            got=type(source).__name__,
            fix="types.SimpleNamespace(generator=…, groups=…, latents=lambda group_ids, index, seed, psi: …)",
        )
    return source.generator


def _check_settings(
    batch_size: int,
    k: int,
    axes: tuple[Axis, ...] | None,
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
    if not 1 <= k <= _MAX_IMAGES or batch_size < 1 or batch_size % k:
        raise DataError(
            "a batch holds whole identities",
            expected=f"1 ≤ images_per_identity ≤ {_MAX_IMAGES}, batch_size a multiple of it",
            got=f"batch_size={batch_size}, images_per_identity={k}",
        )
    if not 0 <= rank < world_size or prefetch < 0 or candidates < 1 or not 0 <= perturbation <= 1:
        raise DataError(
            "a setting is out of range",
            expected="0 ≤ rank < world_size, prefetch ≥ 0, candidates ≥ 1, 0 ≤ perturbation ≤ 1",
            got=f"rank={rank}, world_size={world_size}, prefetch={prefetch}, candidates={candidates}, {perturbation}",
        )
    if axes is None:
        return
    strange = [axis for axis in axes if not isinstance(axis, Axis)]
    if strange or not axes:
        got = f"a {type(strange[0]).__name__}" if strange else "none"
        raise DataError("axes are directions with steps", expected="Axis objects", got=got, fix="ffs.demo_axes(…)")
    edits = sum(len(_steps(axis)) for axis in axes)
    if k - 1 > edits:
        raise DataError(
            "more images of an identity than the axes have variations",
            expected=f"images_per_identity ≤ {edits + 1}",
            got=k,
            fix="axes with more steps, for example Axis.spread(direction, steps=20)",
        )
