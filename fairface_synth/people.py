"""People by number: a face of a group, and variations of it, as pure functions of (seed, group, number).

What `stream` shows and what `export` writes is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from .embeddings import embed
from .errors import DataError, ShapeError
from .groups import Groups
from .latents import draw_latents, normals
from .models.protocols import Embedder, Generator
from .screening import FACE, Screen
from .thresholds import Threshold, threshold_among
from .variations import Axis, edit

Drawing = Literal["gaussian", "screen"]

MAX_IMAGES = 1024  # of one person: image t of person j has the number 1024·j + t
_IMPOSTOR_STREAM = 2**32 - 2  # natural faces for thresholds, apart from the bank's and the samples'
_VARIATION_STREAM, _CANDIDATE_STREAM = 2**32 - 3, 2**32 - 4


class Source(Protocol):
    """What faces are drawn from: a `Pipeline`, or `types.SimpleNamespace(generator=…, groups=…, latents=…)`."""

    generator: Generator
    groups: Groups

    def latents(self, group_ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        """w aimed at the groups; row i depends on (seed, group_ids[i], index[i]) alone."""
        ...


@dataclass(frozen=True)
class People:
    """Draws any person's face and variations.

    Attributes:
        source: what faces are drawn from.
        screen: a classifier on latents: draw the first of `candidates` natural latents that it takes for the group;
            None: draw `source.latents`.
        axes: what to vary; None: move a face towards another one of its group.
        perturbation: of axes=None, how far: 0 not at all, 1 all the way.
        candidates: natural draws a face, with a screen.
        truncation_psi: without a screen.
        seed: of everything drawn.
        neighbours: number of the first of the people who exist only to be moved towards.
    """

    source: Source
    screen: Screen | None
    axes: tuple[Axis, ...] | None
    perturbation: float
    candidates: int
    truncation_psi: float
    seed: int
    neighbours: int

    def faces(self, ids: Tensor, number: Tensor) -> Tensor:
        """w [n, *shape] of the people with these numbers, int64 [n], in groups `ids`, int64 [n]."""
        if self.screen is None:
            w = self.source.latents(ids, number, self.seed, self.truncation_psi)
            if not isinstance(w, Tensor) or w.ndim < 2 or len(w) != len(ids):
                got = list(w.shape) if isinstance(w, Tensor) else f"a {type(w).__name__}"
                raise ShapeError("the source must give one w a face", expected=[len(ids), "…"], got=got)
            return w
        return _first_that_passes(self.source, self.screen, ids, number, self.seed, self.candidates)

    def variations(self, w: Tensor, ids: Tensor, person: Tensor, n: int) -> Tensor:
        """n variations of each face: w [m, *shape] → [m, n, *shape]; those of a person depend on its number [m]."""
        if self.axes is not None:
            return _random_edits(w, self.axes, person, self.seed, n)
        place = torch.arange(1, n + 1, device=w.device)
        number = (self.neighbours + person.unsqueeze(1) * MAX_IMAGES + place).flatten()
        other = self.faces(ids.repeat_interleave(n), number).unflatten(0, (len(w), n))
        return torch.lerp(w.unsqueeze(1).expand_as(other), other, self.perturbation)


def _random_edits(w: Tensor, axes: tuple[Axis, ...], person: Tensor, seed: int, n: int) -> Tensor:
    """n different ones of all the axes' edits of each latent, [m, n, *shape]."""
    steps = torch.cat([axis_steps(axis).to(w.device) for axis in axes])
    axis_of = torch.cat([torch.full_like(axis_steps(axis), i, dtype=torch.int64) for i, axis in enumerate(axes)])
    keys = normals(seed, person, len(steps), stream=_VARIATION_STREAM)
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


@torch.no_grad()
def natural_threshold(
    generator: Generator,
    embedder: Embedder,
    fmr: float,
    *,
    n: int | None = None,
    seed: int = 0,
    truncation_psi: float = 1.0,
    batch_size: int = 256,
    progress: bool = False,
) -> Threshold:
    """The cosine from which an embedder takes two faces for one person, at a stated false match rate.

    The impostors are natural faces of the generator, two different latents each.

    Args:
        generator, embedder: the models.
        fmr: false match rate.
        n: faces to embed; all their pairs are compared. By default 2,000, or as many as give 50 false matches: 10,000
            for 10⁻⁶.
        seed, truncation_psi, batch_size: of the draw.
        progress: show a bar.

    Raises:
        DataError: fmr out of range, too few faces for it, or an embedder that gives no unit vectors.
    """
    n = impostors_for(fmr) if n is None else n
    z = draw_latents(generator, seed, 0, n, stream=_IMPOSTOR_STREAM)
    w = (generator.map(chunk, truncation_psi=truncation_psi) for chunk in z.split(batch_size))
    images = (generator.synthesize(chunk) for chunk in w)
    return threshold_among(embed(embedder, images, progress=progress), fmr)


def impostors_for(fmr: float) -> int:
    """Faces whose pairs show a false match rate: 2,000, or as many as give 50 false matches."""
    return max(2000, math.ceil(math.sqrt(100 / fmr)) + 1) if 0 < fmr < 1 else 2000


def axis_steps(axis: Axis) -> Tensor:
    """The steps of an axis as a tensor [k]."""
    return torch.as_tensor(axis.steps)


def check_source(source: Any, method: str) -> Generator:
    """The source's generator.

    Raises:
        DataError: an unknown method, or a source without the parts that it needs.
    """
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
            f"faces cannot be drawn from this: it has no {', '.join(missing)}",
            expected="a Pipeline, or an object with generator, groups and latents (screen for method='screen')",
            got=type(source).__name__,
            fix="types.SimpleNamespace(generator=…, groups=…, latents=lambda group_ids, index, seed, psi: …)",
        )
    return source.generator


def check_axes(axes: Axis | Iterable[Axis] | None, images: int) -> tuple[Axis, ...] | None:
    """The axes as a tuple, None for none.

    Args:
        axes: one or several.
        images: of each person, the unedited one included.

    Raises:
        DataError: other things than axes, or fewer edits than images need.
    """
    if axes is None:
        return None
    axes = (axes,) if isinstance(axes, Axis) else tuple(axes)
    strange = [axis for axis in axes if not isinstance(axis, Axis)]
    if strange or not axes:
        got = f"a {type(strange[0]).__name__}" if strange else "none"
        raise DataError("axes are directions with steps", expected="Axis objects", got=got, fix="ffs.demo_axes(…)")
    edits = sum(len(axis_steps(axis)) for axis in axes)
    if images - 1 > edits:
        raise DataError(
            "more images of an identity than the axes have variations",
            expected=f"images_per_identity ≤ {edits + 1}",
            got=images,
            fix="axes with more steps, for example Axis.spread(direction, steps=20)",
        )
    return axes
