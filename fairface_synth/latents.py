"""Drawing latents by (seed, index), truncation, latent layouts, and the labelled `LatentBank`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from .artifacts import Artifact, has_values
from .errors import DataError, GroupError, ShapeError
from .groups import Groups
from .images import check_range

if TYPE_CHECKING:
    from .models.facenet import Detections
    from .models.protocols import Embedder, Generator, Labeller

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox-4x32-10, the counter-based generator of Salmon et al. (SC 2011), in torch integer operations.

    Args:
        counter: four int64 tensors of one (broadcastable) shape, each holding values in [0, 2³²).
        key: two integers in [0, 2³²).

    Returns:
        Four int64 tensors of uniform values in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit product wraps in int64, but its two 32-bit halves survive the mask.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def normals(seed: int, index: Tensor, dim: int, *, stream: int | Tensor = 0) -> Tensor:
    """Standard normals [n, dim] in which row i depends on (seed, stream, index[i]) alone.

    Counter-based (Philox-4x32-10, then Box-Muller in float64 rounded to float32), so any batch split, order,
    worker count or device gives the same rows.

    Args:
        seed: any integer in [0, 2⁶⁴).
        index: int64 tensor [n] of non-negative indices; the result lies on its device.
        dim: numbers per row.
        stream: an independent sequence for the same seed, in [0, 2³²); or one for each row, int64 [n].
    """
    if index.ndim != 1 or index.is_floating_point():
        raise ShapeError("index must be a vector of integers", expected="[n] int64", got=_describe(index))
    if not 0 <= seed < 2**64 or (isinstance(stream, int) and not 0 <= stream < 2**32):
        raise DataError(
            "seed or stream out of range", expected="0 ≤ seed < 2⁶⁴, 0 ≤ stream < 2³²", got=f"{seed}, stream {stream}"
        )
    blocks = (dim + 3) // 4
    block = torch.arange(blocks, device=index.device).unsqueeze(0)
    row = index.long().unsqueeze(1)
    lane = stream.unsqueeze(1) if isinstance(stream, Tensor) else torch.full_like(row, stream)
    counter = (
        block.expand(len(index), -1),
        (row & _MASK).expand(-1, blocks),
        ((row >> 32) & _MASK).expand(-1, blocks),
        (lane & _MASK).expand(-1, blocks),
    )
    bits = torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=-1)
    uniform = (bits.double() + 0.5) / 2.0**32
    radius = (-2.0 * uniform[..., 0::2].log()).sqrt()
    angle = (2.0 * math.pi) * uniform[..., 1::2]
    pairs = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return pairs.reshape(len(index), blocks * 4)[:, :dim].float()


def draw_latents(
    generator: Generator,
    seed: int,
    start: int,
    n: int,
    *,
    stream: int = 0,
    device: torch.device | str | None = None,
) -> Tensor:
    """z ~ N(0, I) [n, z_dim], rows start … start + n − 1 of an endless sequence.

    Row i depends on (seed, i) alone: any split into batches, any order and any device gives the same latents
    (devices to within the rounding of one float32 bit).

    Args:
        generator: gives z_dim, and the device unless `device` is given.
        seed: any integer in [0, 2⁶⁴).
        start: first index, ≥ 0.
        n: number of latents.
        stream: an independent sequence for the same seed, for example one per group.
        device: where the latents are made.
    """
    if start < 0 or n < 0:
        raise DataError("latents are counted from 0", expected="start ≥ 0, n ≥ 0", got=f"start={start}, n={n}")
    device = generator.w_avg.device if device is None else device
    return normals(seed, torch.arange(start, start + n, device=device), generator.z_dim, stream=stream)


def truncate(w: Tensor, w_avg: Tensor, truncation_psi: float = 1.0, truncation_cutoff: int | None = None) -> Tensor:
    """Pull latents towards the mean: w_avg + ψ·(w − w_avg) (Karras et al. 2019, §B).

    Truncation raises quality and *worsens* demographic imbalance (Maluleke et al. 2022, arXiv 2209.02836), so
    ψ is always explicit and 1 by default.

    Args:
        w: latents [..., d], or [..., num_ws, d] with a cutoff.
        w_avg: mean latent [d].
        truncation_psi: ψ; 1 leaves w as it is, 0 gives w_avg.
        truncation_cutoff: truncate only the first so many layers of w [..., num_ws, d]; None: all of them.
    """
    if truncation_cutoff is not None and (w.ndim < 3 or not 0 <= truncation_cutoff <= w.shape[-2]):
        raise ShapeError(
            "the cutoff does not fit the layers",
            expected="w [n, num_ws, d] and 0 ≤ truncation_cutoff ≤ num_ws",
            got=f"w {list(w.shape)}, truncation_cutoff={truncation_cutoff}",
        )
    if not isinstance(truncation_psi, (int, float)):
        raise DataError("truncation_psi must be a number", expected="for example 0.7", got=repr(truncation_psi))
    if truncation_psi == 1.0:
        return w
    w_avg = w_avg.to(w)
    if truncation_cutoff is None:
        return torch.lerp(w_avg.expand_as(w), w, truncation_psi)
    head, tail = w[..., :truncation_cutoff, :], w[..., truncation_cutoff:, :]
    return torch.cat((torch.lerp(w_avg.expand_as(head), head, truncation_psi), tail), dim=-2)


# --- the labelled bank ------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False, eq=False)
class LatentBank(Artifact):
    """Latents with what a labeller says of their images. Everything downstream is fitted on a bank.

    Attributes:
        latents: w [n, d], or [n, num_ws, d] where the layers differ (W+).
        probabilities: {attribute: [n, k]} from the labeller.
        attributes: the values behind each probability's columns.
        index: the draw's index of each latent [n]; with `seed`, z can be drawn again.
        embeddings: identity embeddings [n, e], if an embedder was given.
        found: a face detector's probability [n], if one was given.
        seed: of the draw; None if the latents came from elsewhere.
        truncation_psi: the ψ that the latents were mapped with.
    """

    kind: ClassVar[str] = "latent_bank"

    latents: Tensor
    probabilities: Mapping[str, Tensor]
    attributes: Mapping[str, tuple[str, ...]]
    index: Tensor
    embeddings: Tensor | None = None
    seed: int | None = None
    truncation_psi: float = 1.0
    found: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __repr__(self) -> str:
        known = ", ".join(f"{a}: {'/'.join(v)}" for a, v in self.attributes.items())
        return f"LatentBank(n={len(self)}, latents={list(self.latents.shape[1:])}, {known})"

    def __getitem__(self, rows: slice | Tensor) -> LatentBank:
        """A bank of some rows."""
        return dataclasses.replace(
            self,
            latents=self.latents[rows],
            probabilities={a: p[rows] for a, p in self.probabilities.items()},
            index=self.index[rows],
            embeddings=None if self.embeddings is None else self.embeddings[rows],
            found=None if self.found is None else self.found[rows],
        )

    def groups(self, attributes: str | Sequence[str] | None = None) -> Groups:
        """Groups over one, some or all of the labelled attributes."""
        if isinstance(attributes, str):
            attributes = [attributes]
        names = list(self.attributes) if attributes is None else list(attributes)
        unknown = [a for a in names if a not in self.attributes]
        if unknown:
            raise GroupError("the bank has no such attribute", expected=", ".join(self.attributes), got=unknown)
        return Groups({a: self.attributes[a] for a in names})

    def group_ids(self, groups: Groups | None = None, min_confidence: float = 0.0) -> Tensor:
        """Most probable group of each latent [n], −1 for unsure; see `Groups.assign`."""
        groups = groups or self.groups()
        check_attributes(groups, self.attributes)
        return groups.assign(self.probabilities, min_confidence)

    @classmethod
    def concatenate(cls, banks: Sequence[LatentBank]) -> LatentBank:
        """One bank of several with the same attributes and latent layout.

        `seed` survives only if all agree; embeddings and detections only if all have them.
        """
        if not banks:
            raise DataError("no banks to concatenate", expected="at least one", got=0)
        first = banks[0]
        for bank in banks[1:]:
            if dict(bank.attributes) != dict(first.attributes):
                raise GroupError("the banks have different attributes", expected=first.attributes, got=bank.attributes)
            if bank.latents.shape[1:] != first.latents.shape[1:]:
                raise ShapeError(
                    "the banks have different latents",
                    expected=["n", *first.latents.shape[1:]],
                    got=list(bank.latents.shape),
                )
            if bank.truncation_psi != first.truncation_psi:
                raise DataError(
                    "the banks were truncated differently",
                    expected=f"ψ = {first.truncation_psi}",
                    got=f"ψ = {bank.truncation_psi}",
                )
        embeddings = [b.embeddings for b in banks if b.embeddings is not None]
        found = [b.found for b in banks if b.found is not None]
        return dataclasses.replace(
            first,
            latents=torch.cat([b.latents for b in banks]),
            probabilities={a: torch.cat([b.probabilities[a] for b in banks]) for a in first.probabilities},
            index=torch.cat([b.index for b in banks]),
            embeddings=torch.cat(embeddings) if len(embeddings) == len(banks) else None,
            found=torch.cat(found) if len(found) == len(banks) else None,
            seed=first.seed if all(b.seed == first.seed for b in banks) else None,
        )


@torch.no_grad()
def label_latents(
    generator: Generator,
    labeller: Labeller,
    n: int = 20_000,
    seed: int = 0,
    *,
    start: int = 0,
    z: Tensor | None = None,
    c: Tensor | None = None,
    embedder: Embedder | None = None,
    detector: Callable[[Tensor], Detections | Tensor] | None = None,
    truncation_psi: float = 1.0,
    batch_size: int = 256,
    progress: bool = True,
) -> LatentBank:
    """Draw, map, synthesise and label latents: the bank that everything is fitted on. Images are not kept.

    Args:
        generator, labeller: the models, on one device.
        n, seed, start: draw latents start … start + n − 1 of `seed`.
        z: latents [n, z_dim] of yours instead.
        c: condition of a conditional generator: one row [1, c_dim] for all, or [n, c_dim].
        embedder: also keep identity embeddings.
        detector: also keep a face detector's verdict: what `load_detector` gives, or any images → probability or
            bool [n]. A screen fitted on such a bank learns to avoid latents without a face.
        truncation_psi: ψ of the mapping; 1 leaves the generator's own distribution as it is.
        batch_size: images at a time.
        progress: show a bar.

    Raises:
        ShapeError, DataError: a labeller whose rows are not probabilities, or NaN from a model.
    """
    check_models(generator, labeller)
    total = n if z is None else len(z)
    if not isinstance(total, int) or total < 1 or batch_size < 1:
        raise DataError("an empty bank", expected="n ≥ 1, batch_size ≥ 1", got=f"n={total}, batch_size={batch_size}")
    latents, embeddings, found = [], [], []
    probabilities: dict[str, list[Tensor]] = {a: [] for a in labeller.attributes}
    for rows in _batches(total, batch_size, "labelling latents", progress):
        size = rows.stop - rows.start
        batch = draw_latents(generator, seed, start + rows.start, size) if z is None else z[rows]
        w = generator.map(batch, _condition(generator, c, rows, total), truncation_psi=truncation_psi)
        if has_values(w) and not bool(w.isfinite().all()):
            raise DataError("the generator's map gave NaN or infinite latents", fix="check the checkpoint and z")
        images = generator.synthesize(w)
        if rows.start == 0:
            check_range(images)
        labels = labeller(images)
        for attribute, values in labeller.attributes.items():
            probabilities[attribute].append(_checked_labels(labels, attribute, values, size))
        if embedder is not None:
            embeddings.append(embedder(images))
        if detector is not None:
            detected = detector(images)
            found.append(detected if isinstance(detected, Tensor) else detected.probability)
        if not has_values(w) or torch.equal(w, w[:, :1].expand_as(w)):
            w = w[:, :1]  # the same w for every layer
        latents.append(w)
    layers = max(w.shape[1] for w in latents)
    stacked = torch.cat([w.expand(-1, layers, -1) for w in latents])
    index = torch.arange(start, start + total, device=latents[0].device)
    return LatentBank(
        latents=stacked[:, 0].contiguous() if layers == 1 else stacked,
        probabilities={a: torch.cat(p) for a, p in probabilities.items()},
        attributes={a: tuple(v) for a, v in labeller.attributes.items()},
        index=index,
        embeddings=torch.cat(embeddings) if embeddings else None,
        found=torch.cat(found).to(latents[0].dtype) if found else None,
        seed=seed if z is None else None,
        truncation_psi=truncation_psi,
    )


def check_models(generator: object, labeller: object) -> None:
    """DataError where an object lacks what the protocols ask for."""
    wanted = {
        "generator": (generator, ("map", "synthesize", "z_dim", "num_ws", "w_avg"), "ffs.wrap_generator"),
        "labeller": (labeller, ("attributes", "__call__"), "ffs.wrap_labeller"),
    }
    for name, (thing, members, wrapper) in wanted.items():
        missing = [m for m in members if not hasattr(thing, m)]
        if missing:
            raise DataError(
                f"this is no {name}",
                expected=f"an object with {', '.join(members)}",
                got=f"a {type(thing).__name__} without {', '.join(missing)}",
                fix=f"make one of your functions with {wrapper}(…)",
            )


def check_attributes(groups: Groups, attributes: Mapping[str, Sequence[str]]) -> None:
    """GroupError unless the groups' values are the labeller's, in the labeller's order: columns have no names."""
    for attribute, values in groups.attributes.items():
        given = attributes.get(attribute)
        if given is None or tuple(given) != values:
            raise GroupError(
                f"the groups' values of {attribute!r} are not the labeller's",
                expected=f"{attribute}: {', '.join(given)}" if given is not None else ", ".join(attributes),
                got=f"{attribute}: {', '.join(values)}",
                fix="make the groups with bank.groups([…]), which keeps the labeller's values and order",
            )


def to_layers(generator: Generator, w: Tensor) -> Tensor:
    """w for `synthesize` [n, num_ws, w_dim]: W latents [n, w_dim] are given to every layer, W+ passes through."""
    if w.ndim == 2 and w.shape[1] == generator.w_dim:
        return w.unsqueeze(1).expand(-1, generator.num_ws, -1)
    if w.ndim == 3 and w.shape[1:] == (generator.num_ws, generator.w_dim):
        return w
    raise ShapeError(
        "these latents do not fit the generator",
        expected=f"W [n, {generator.w_dim}] or W+ [n, {generator.num_ws}, {generator.w_dim}]",
        got=list(w.shape),
    )


def _condition(generator: Generator, c: Tensor | None, rows: slice, total: int) -> Tensor | None:
    """The rows of c for a batch."""
    size = rows.stop - rows.start
    if c is None:
        if generator.c_dim > 0:
            raise ShapeError(
                "this generator is conditional",
                expected=f"c [1 or {total}, {generator.c_dim}]",
                got="c=None",
                fix="pass c=, for example one row torch.eye(generator.c_dim)[:1] for class 0",
            )
        return None
    if c.ndim != 2 or len(c) not in (1, total) or c.shape[1] != generator.c_dim:
        raise ShapeError("c does not fit", expected=f"[1 or {total}, {generator.c_dim}]", got=list(c.shape))
    return c.expand(size, -1) if len(c) == 1 else c[rows]


def _checked_labels(labels: Mapping[str, Tensor], attribute: str, values: Sequence[str], n: int) -> Tensor:
    if not isinstance(labels, Mapping):
        raise DataError(
            "the labeller must give a dictionary", expected="{attribute: [n, k]}", got=f"a {type(labels).__name__}"
        )
    if attribute not in labels or labels[attribute].shape != (n, len(values)):
        raise ShapeError(
            f"the labeller's {attribute!r} has the wrong shape",
            expected=[n, len(values)],
            got=list(labels[attribute].shape) if attribute in labels else "nothing",
        )
    p = labels[attribute]
    if has_values(p) and not bool((((p.sum(1) - 1).abs() < 1e-2) & (p >= 0).all(1)).all()):
        raise DataError(
            f"the labeller's {attribute!r} are not probabilities",
            expected="rows of non-negative numbers that sum to 1, no NaN",
            got=f"values from {float(p.min()):.3g}, row sums up to {float(p.sum(1).max()):.3g}",
            fix="apply softmax in the labeller; check that the generator's images are finite",
        )
    return p


def _batches(n: int, size: int, what: str, progress: bool) -> Iterator[slice]:
    from tqdm.auto import tqdm

    with tqdm(total=n, desc=what, unit="img", disable=not progress) as bar:
        for i in range(0, n, size):
            yield slice(i, min(i + size, n))
            bar.update(min(size, n - i))


def _describe(x: Tensor) -> str:
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"
