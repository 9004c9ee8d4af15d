"""Making a plan's faces: candidates for identities, and the images of a shard.

Every network sees batches of exactly `plan.forward_batch` rows, and drawing another fixed number, the last one filled
up: the last bits of an image depend on the shapes of the batch, and stored sets must not depend on how the work was
divided.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..embeddings import check_embeddings
from ..errors import DataError, ShapeError
from ..groups import Groups
from ..images import check_range, to_uint8
from ..label_noise import Confusion
from ..latents import to_layers
from ..models.facenet import Detections, align_faces, faces_found
from ..models.protocols import Embedder, Generator, Labeller
from ..people import People, Source, check_axes, check_source, natural_threshold
from ..prefetch import Prefetch
from ..streaming import to_recognition_format
from ..thresholds import cosine_threshold
from ..variations import Axis, Detector
from .encoding import encode
from .plan import DatasetPlan, Shard
from .writing import Row

# Numbers beyond all that `Pipeline.sample` and `stream` of the same seed use.
_NATURAL, _NEIGHBOURS = 2**50, 2**50 + 2**48
_FACTORS = (1.0, 0.5, 0.25)
_DRAWN_TOGETHER = 256  # latents: drawing takes many small operations, whatever their number


@dataclass(frozen=True)
class Parts:
    """What makes and checks the faces of a set; `gather` fills it from a pipeline.

    Attributes:
        source: gives latents: a `Pipeline`, or an object with generator, groups and latents.
        axes: what variations move along; None: towards another face.
        labeller, judge: selects, and scores what was selected.
        detector, embedder: of faces, of identities.
        reference: embeddings [m, e] of faces that no identity may match.
        threshold: cosine from which two faces are one person; None: measured at the plan's FMR.
        confusion: of the labeller.
    """

    source: Source
    axes: tuple[Axis, ...] | None = None
    labeller: Labeller | None = None
    judge: Labeller | None = None
    detector: Detector | None = None
    embedder: Embedder | None = None
    reference: Tensor | None = None
    threshold: float | None = None
    confusion: Confusion | None = None

    @property
    def generator(self) -> Generator:
        """The source's generator."""
        return self.source.generator

    @property
    def groups(self) -> Groups:
        """The source's groups."""
        return self.source.groups

    @property
    def min_confidence(self) -> float:
        """Of the source, below which a label is "unsure"."""
        return getattr(self.source, "min_confidence", 0.6)

    def assign(self, images: Tensor) -> Tensor:
        """Group of each image, −1 where the labeller is unsure or the detector finds no face."""
        if self.labeller is None:
            raise DataError(
                "faces are confirmed by a labeller",
                expected="a Pipeline, or labeller=",
                got="labeller=None",
                fix="plan_dataset(…, verify=False)",
            )
        ids = self.groups.assign(self.labeller(images), self.min_confidence)
        return ids if self.detector is None else torch.where(faces_found(self.detector(images)), ids, -1)


def gather(source: Any, plan: DatasetPlan, axes: Any = None, **given: Any) -> Parts:
    """Parts of a source; those that are given replace its own.

    Raises:
        DataError: the plan needs a part that is missing.
    """
    check_source(source, plan.method)
    names = ("labeller", "detector", "embedder")
    own = {name: given[name] if given.get(name) is not None else getattr(source, name, None) for name in names}
    parts = Parts(source, check_axes(axes, plan.images_per_identity), **(given | own))
    if parts.threshold is not None:
        parts = replace(parts, threshold=cosine_threshold(parts.threshold))
    if plan.fmr is not None and parts.embedder is None:
        raise DataError(
            "identities are compared by an embedder",
            expected="a pipeline with one, or embedder=",
            got="embedder=None",
            fix="Pipeline.fit(…, embedder=world.embedder); or plan_dataset(…, fmr=None): nobody checks who is who",
        )
    if parts.embedder is not None and not (callable(parts.embedder) and hasattr(parts.embedder, "dim")):
        raise DataError(
            "this is no embedder",
            expected="a model that gives unit vectors [n, dim] of images, and says its dim",
            got=f"a {type(parts.embedder).__name__} without dim" if callable(parts.embedder) else repr(parts.embedder),
            fix="ffs.wrap_embedder(…), or ffs.load_embedder()",
        )
    if plan.verify and parts.labeller is None:
        parts.assign(torch.empty(0))  # says what is missing
    if plan.crop is not None and parts.detector is None:
        raise DataError(
            "faces are aligned by a detector's landmarks",
            expected="detector=ffs.load_detector()",
            got="detector=None",
            fix="plan_dataset(…, crop=None, size=112) cuts the centre",
        )
    if parts.reference is not None:
        if plan.fmr is None:
            raise DataError("which cosine is a match with the reference?", expected="a plan with fmr", got="fmr=None")
        if not isinstance(parts.reference, Tensor):
            fix = "torch.from_numpy(embeddings)"
            raise ShapeError("a reference is a tensor", expected="[m, e]", got=type(parts.reference).__name__, fix=fix)
        check_embeddings(parts.reference, "reference")
        width = getattr(parts.embedder, "dim", parts.reference.shape[1])
        if parts.reference.shape[1] != width:
            got = list(parts.reference.shape)
            raise ShapeError("the reference is of another embedder", expected=f"[m, {width}]", got=got)
    return parts


class Candidates(NamedTuple):
    """Faces that may become identities.

    Attributes:
        latents: float32 [n, *shape].
        confirmed: bool [n]: the labeller and the detector agree, if the plan asks them.
        embeddings: float32 [n, e]; [n, 0] if identities are not compared.
    """

    latents: Tensor
    confirmed: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Maker:
    """Makes any part of a plan, on the generator's device."""

    plan: DatasetPlan
    parts: Parts
    threshold: float | None = None  # of same_person
    threads: int = 2  # that encode images
    ahead: int = 256  # images made before they are written
    progress: Callable[[int], object] = field(default=lambda n: None)

    @property
    def device(self) -> torch.device:
        """Where the generator is."""
        return self.parts.generator.w_avg.device

    @property
    def people(self) -> _Chunked:
        """Draws faces and variations."""
        plan, source = self.plan, self.parts.source
        screen = getattr(source, "screen") if plan.method == "screen" else None  # noqa: B009
        return _Chunked(
            source=source,
            screen=screen,
            axes=self.parts.axes,
            perturbation=plan.perturbation,
            candidates=plan.candidates,
            truncation_psi=plan.truncation_psi,
            seed=plan.seed,
            neighbours=_NEIGHBOURS,
            rows=_DRAWN_TOGETHER,
        )

    def person(self, ids: Tensor, index: Tensor) -> Tensor:
        """A number of its own for candidate `index` of each group, int64 [n]."""
        return index * len(self.parts.groups) + ids

    @torch.no_grad()
    def candidates(self, ids: Tensor, index: Tensor) -> Candidates:
        """Faces `index` [n] of groups `ids` [n], on the host."""
        ids = ids.to(self.device)
        w = self.faces(ids, index)
        confirmed = torch.ones(len(ids), dtype=torch.bool, device=self.device)
        vectors = w.new_empty(len(ids), 0)
        if self.plan.verify or self.plan.fmr is not None:
            confirmed, vectors = _in_chunks(self._look, self.plan.forward_batch, w, ids)
        return Candidates(w.float().cpu(), confirmed.cpu(), vectors.float().cpu())

    def faces(self, ids: Tensor, index: Tensor) -> Tensor:
        """w [n, *shape] of candidates `index` [n] of groups `ids` [n]."""
        ids, index = ids.to(self.device), index.to(self.device)
        return self.people.faces(ids, index if self.plan.method == "gaussian" else _NATURAL + self.person(ids, index))

    def _look(self, w: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Whether faces are confirmed, and who they are."""
        images = self.synthesize(w)
        check_range(images)
        confirmed = torch.ones_like(ids, dtype=torch.bool)
        if self.plan.verify:
            confirmed = self.parts.assign(images) == ids
        embedder = self.parts.embedder
        if self.plan.fmr is None or embedder is None:
            return confirmed, w.new_empty(len(w), 0)
        return confirmed, check_embeddings(embedder(images), "what the embedder gave")

    def synthesize(self, w: Tensor) -> Tensor:
        """Images [n, 3, H, W] of w [n, *shape], as stored: float32, of which the generator gets its own type."""
        generator = self.parts.generator
        return generator.synthesize(to_layers(generator, w.to(generator.w_avg.dtype)))

    def finish(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are stored, [n, 3, size, size], and whether landmarks placed them, bool [n]."""
        plan, placed = self.plan, torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if plan.crop is not None and self.parts.detector is not None:
            found = self.parts.detector(images)
            if not isinstance(found, Detections):
                raise ShapeError("alignment needs landmarks", expected="Detections", got=type(found).__name__)
            placed = found.landmarks.isfinite().all(dim=(1, 2))
            return align_faces(images, found.landmarks, plan.size or 112, plan.crop), placed
        return images if plan.size is None else to_recognition_format(images, size=plan.size), placed

    @torch.no_grad()
    def pixels(self, w: Tensor) -> np.ndarray:
        """Stored images, uint8 [n, size, size, 3], of w [n, *shape], n ≤ plan.forward_batch."""
        images, _ = self.finish(self.synthesize(_filled(w.to(self.device), self.plan.forward_batch)))
        return to_uint8(images[: len(w)]).permute(0, 2, 3, 1).cpu().numpy()

    def rows(self, shard: Shard, identities: Identities) -> Iterator[tuple[bytes, Row]]:
        """The shard's images in order, encoded in other threads while the next ones are made."""
        pool = ThreadPoolExecutor(self.threads, "encode")
        waiting: deque[tuple[Future[bytes], Row]] = deque()
        one_behind = _one_behind(self._batches(shard, identities))
        # A GPU goes on while this thread writes; on a CPU, whose cores synthesis fills, one more thread costs time.
        batches = one_behind if self.device.type == "cpu" else Prefetch(one_behind, 2, "synthesis")
        try:
            for made in batches:
                rows = self._rows(made, identities.names)
                pixels = made.pixels.numpy()
                waiting += [(pool.submit(encode, p, self.plan), row) for p, row in zip(pixels, rows, strict=True)]
                self.progress(len(rows))
                while len(waiting) > self.ahead:
                    yield _encoded(waiting)
            while waiting:
                yield _encoded(waiting)
        finally:
            if isinstance(batches, Prefetch):
                batches.close()
            pool.shutdown(cancel_futures=True)

    @torch.no_grad()
    def _batches(self, shard: Shard, identities: Identities) -> Iterator[_OnHost]:
        k, size = self.plan.images_per_identity, self.plan.forward_batch
        pending: list[_Work] = []
        for first in range(0, shard.identities, max(1, _DRAWN_TOGETHER // k)):
            last = min(shard.identities, first + max(1, _DRAWN_TOGETHER // k))
            pending.append(self._work(identities.take(shard.first_identity + first, last - first)))
            while sum(len(p.ids) for p in pending) >= size:
                joined = _Work(*(torch.cat(x) for x in zip(*pending, strict=True)))
                yield self._images(_Work(*(x[:size] for x in joined)))
                pending = [_Work(*(x[size:] for x in joined))]
        if sum(len(p.ids) for p in pending):
            yield self._images(_Work(*(torch.cat(x) for x in zip(*pending, strict=True))))

    def _work(self, people: Taken) -> _Work:
        """Latents of all images of some identities."""
        k = self.plan.images_per_identity
        people = Taken(*(x.to(self.device) for x in people))
        w = people.latents.unsqueeze(1)
        if k > 1:
            person = self.person(people.ids, people.candidate)
            w = torch.cat((w, self.people.variations(people.latents, people.ids, person, k - 1)), 1)
        number = people.identity.unsqueeze(1) * k + torch.arange(k, device=self.device)
        face = people.latents.repeat_interleave(k, 0)
        each = (people.ids, people.candidate, people.embeddings)
        return _Work(number.flatten(), w.flatten(0, 1), face, *(x.repeat_interleave(k, 0) for x in each))

    def _images(self, work: _Work) -> _OnHost:
        n, full = len(work.ids), _Work(*(_filled(x, self.plan.forward_batch) for x in work))
        w, factor = full.w, torch.ones(len(full.ids), device=self.device)
        images, similarity = self.synthesize(w), torch.full_like(factor, math.nan)
        if self.plan.same_person and self.threshold is not None:
            for shorter in (*_FACTORS[1:], None):
                similarity = (self._embed(images) * full.embeddings).sum(1)
                failed = similarity < self.threshold
                if shorter is None or not bool(failed.any()):
                    break
                factor = torch.where(failed, shorter, factor)
                rows = factor.reshape(-1, *[1] * (w.ndim - 1))
                w = torch.where(rows < 1, torch.lerp(full.face, full.w, rows), full.w)
                images = self.synthesize(w)
        pixels, placed = self.finish(images)
        pixels = to_uint8(pixels).permute(0, 2, 3, 1).contiguous()
        columns = (pixels, full.number, full.ids, full.candidate, w.float(), factor, similarity, placed)
        return _OnHost(_Made(*[*(x[:n] for x in columns), _range(images)]))

    def _rows(self, made: _Made, names: Mapping[int, str]) -> list[Row]:
        if not float(made.range) <= 2:
            raise DataError(
                "the generator's images are not in [-1, 1]",
                expected="float RGB in [-1, 1]",
                got=f"mean magnitude {float(made.range):.3g}",
                fix="NaN: check the checkpoint and the latents; otherwise rescale in your synthesize",
            )
        k, latents = self.plan.images_per_identity, made.w.numpy()
        columns = (made.number, made.ids, made.candidate, made.factor, made.similarity, made.placed)
        numbers, ids, index, factor, similarity, placed = (x.tolist() for x in columns)
        return [
            Row(number, number // k, number % k, names[g], g, i, latent, *rest)
            for number, g, i, latent, *rest in zip(
                numbers, ids, index, latents, factor, similarity, placed, strict=True
            )
        ]

    def _embed(self, images: Tensor) -> Tensor:
        if self.parts.embedder is None:
            raise DataError("the same person, by which embedder?", expected="embedder=", got="None")
        return check_embeddings(self.parts.embedder(images), "what the embedder gave")


class Taken(NamedTuple):
    """Some identities of a set: their numbers, groups, candidate numbers, latents and embeddings."""

    identity: Tensor
    ids: Tensor
    candidate: Tensor
    latents: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Identities:
    """The identities of a set, from its files; latents and embeddings stay on disk until they are needed.

    Attributes:
        names: group id → name.
        ids, index: int64 [N], group and candidate number of each identity.
        latents: [N, *shape], memory-mapped.
        embeddings: [N, e], memory-mapped; None where identities were not compared.
    """

    names: Mapping[int, str]
    ids: np.ndarray
    index: np.ndarray
    latents: np.ndarray
    embeddings: np.ndarray | None

    def take(self, first: int, n: int) -> Taken:
        """Identities first … first + n − 1."""
        rows = slice(first, first + n)
        latents = torch.from_numpy(np.array(self.latents[rows]))
        vectors = np.empty((n, 0), np.float32) if self.embeddings is None else np.array(self.embeddings[rows])
        numbers = torch.arange(first, first + n)
        ids, index = torch.from_numpy(self.ids[rows].copy()), torch.from_numpy(self.index[rows].copy())
        return Taken(numbers, ids, index, latents, torch.from_numpy(vectors))


def set_threshold(maker: Maker, progress: bool = False) -> float | None:
    """Cosine from which two faces are one person; None where nobody is compared."""
    plan, parts = maker.plan, maker.parts
    if not isinstance(plan.fmr, float) or parts.embedder is None:
        return None
    if parts.threshold is not None:
        return parts.threshold
    psi = getattr(getattr(parts.source, "bank", None), "truncation_psi", 1.0)
    draw: dict[str, Any] = {"truncation_psi": psi, "batch_size": plan.forward_batch, "progress": progress}
    return float(natural_threshold(parts.generator, parts.embedder, plan.fmr, **draw))


# --- details --------------------------------------------------------------------------------------------------------


class _Work(NamedTuple):
    """Images to be made: the set's image numbers, their latents, and those of the unedited face."""

    number: Tensor
    w: Tensor
    face: Tensor
    ids: Tensor
    candidate: Tensor
    embeddings: Tensor


class _Made(NamedTuple):
    """A batch of images with all that is stored beside them, and their mean magnitude."""

    pixels: Tensor
    number: Tensor
    ids: Tensor
    candidate: Tensor
    w: Tensor
    factor: Tensor
    similarity: Tensor
    placed: Tensor
    range: Tensor


class _OnHost:
    """Tensors on their way to the host; from a GPU they are copied while the next batch is computed."""

    def __init__(self, made: _Made) -> None:
        self._made = made
        self._event: torch.cuda.Event | None = None
        if made.pixels.is_cuda:
            self._made = _Made(*(x.to("cpu", non_blocking=True) for x in made))
            self._event = torch.cuda.Event()
            self._event.record()

    def get(self) -> _Made:
        if self._event is not None:
            self._event.synchronize()
        return self._made


def _one_behind(batches: Iterator[_OnHost]) -> Iterator[_Made]:
    """Hands out each batch after the next one was started."""
    last: _OnHost | None = None
    for batch in batches:
        if last is not None:
            yield last.get()
        last = batch
    if last is not None:
        yield last.get()


def _range(images: Tensor) -> Tensor:
    """Mean magnitude: over 2, or NaN, for what cannot be images."""
    return images.float().abs().mean()


def _encoded(waiting: deque[tuple[Future[bytes], Row]]) -> tuple[bytes, Row]:
    future, row = waiting.popleft()
    return future.result(), row


@dataclass(frozen=True)
class _Chunked(People):
    """People drawn in batches of exactly `rows`."""

    rows: int

    def faces(self, ids: Tensor, number: Tensor) -> Tensor:
        """As `People.faces`; float32, as stored."""
        return _in_chunks(lambda *chunk: (super(_Chunked, self).faces(*chunk).float(),), self.rows, ids, number)[0]


def _in_chunks(function: Callable[..., tuple[Tensor, ...]], size: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """A function of rows, called on `size` rows at a time; the last batch is filled up with its last row."""
    n, parts = len(inputs[0]), []
    for start in range(0, n, size):
        chunk = [_filled(x[start : start + size], size) for x in inputs]
        parts.append(function(*chunk))
    return tuple(torch.cat(part)[:n] for part in zip(*parts, strict=True))


def _filled(x: Tensor, size: int) -> Tensor:
    """x with its last row repeated up to `size` rows."""
    return x if len(x) == size else torch.cat((x, x[-1:].expand(size - len(x), *x.shape[1:])))
