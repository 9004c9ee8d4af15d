"""Accept/reject: draw latents, keep those whose images are in the groups that are still short."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DataError, GroupError
from .groups import Groups
from .latents import draw_latents, to_layers
from .models.protocols import Generator

Propose = Callable[[Tensor, Tensor], Tensor]
Assign = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Accepted:
    """What `reject` found, sorted by group and then by index.

    Attributes:
        images: [n, 3, H, W].
        latents: w [n, d] or [n, num_ws, d].
        group_ids: [n].
        index: the proposal's index [n]: with its seed (and group, where proposals are aimed) it can be made again.
        accepted, synthesized: how many were kept, and how many images were made, for each group [G]; proposals that
            are not aimed at a group cannot be split, so each group's `synthesized` is then the total.
        short: groups whose quota was not filled, and by how many: {id: missing}.
    """

    images: Tensor
    latents: Tensor
    group_ids: Tensor
    index: Tensor
    accepted: Tensor
    synthesized: Tensor
    short: dict[int, int]


@torch.no_grad()
def reject(
    generator: Generator,
    assign: Assign,
    quota: Tensor,
    *,
    seed: int = 0,
    propose: Propose | None = None,
    groups: Groups | None = None,
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
        seed: of the natural draw.
        propose: (group_ids [b], index [b]) → latents aimed at those groups, index counting from 0 within each group;
            an image is then kept only if `assign` says the group it was aimed at. None: natural draws, kept wherever a
            group is still short.
        groups: names for the messages and the bar.
        truncation_psi: ψ of the natural draw's mapping.
        batch_size: images at a time.
        max_syntheses: budget; 200 images per wanted face by default. When it is spent, `short` says what is missing.
        progress: show a bar.
    """
    from tqdm.auto import tqdm

    want = [int(q) for q in quota]
    if min(want, default=-1) < 0 or sum(want) == 0:
        raise DataError("nothing to fill", expected="a quota [G] of non-negative numbers, not all zero", got=want)
    if groups is not None and len(groups) != len(want):
        raise GroupError("the quota does not fit the groups", expected=f"[{len(groups)}]", got=f"[{len(want)}]")
    budget = 200 * sum(want) if max_syntheses is None else max_syntheses
    if budget < 1 or batch_size < 1:
        raise DataError(
            "no images to make", expected="max_syntheses ≥ 1, batch_size ≥ 1", got=f"{budget}, {batch_size}"
        )
    found = _Found(want)
    device = generator.w_avg.device
    with tqdm(total=sum(want), desc="accepting faces", unit="face", disable=not progress) as bar:
        while found.missing and found.total < budget:
            size = min(batch_size, budget - found.total)
            if propose is None:
                index = torch.arange(found.total, found.total + size, device=device)
                z = draw_latents(generator, seed, found.total, size)
                w = generator.map(z, truncation_psi=truncation_psi)
                aim = None
            else:
                aim, index = found.next_aims(size)
                aim, index = aim.to(device), index.to(device)
                w = propose(aim, index)
            images = generator.synthesize(to_layers(generator, w))
            bar.update(found.add(images, w, assign(images), aim, index))
    return found.result()


class _Found:
    """The bookkeeping of `reject`: what is kept, and what each group still lacks."""

    def __init__(self, want: list[int]) -> None:
        self.want = want
        self.kept = [0] * len(want)
        self.made = [0] * len(want)
        self.total = 0
        self.aimed = False
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @property
    def missing(self) -> int:
        return sum(w - k for w, k in zip(self.want, self.kept, strict=True))

    def next_aims(self, size: int) -> tuple[Tensor, Tensor]:
        """Spread the next images over the short groups by what each is expected to need still."""
        need = {}
        for g, (want, kept, made) in enumerate(zip(self.want, self.kept, self.made, strict=True)):
            if kept < want:
                need[g] = (want - kept) * (made + 2) / (kept + 1)
        size = min(size, math.ceil(sum(need.values())))
        aims: list[int] = []
        index: list[int] = []
        for g, n in sorted(need.items(), key=lambda item: -item[1]):
            count = min(size - len(aims), max(1, round(size * n / sum(need.values()))))
            aims += [g] * count
            index += range(self.made[g], self.made[g] + count)
        return torch.tensor(aims), torch.tensor(index)

    def add(self, images: Tensor, w: Tensor, assigned: Tensor, aim: Tensor | None, index: Tensor) -> int:
        """Count a batch, keep what is wanted. Returns how many were kept."""
        groups = assigned.tolist()
        aims = groups if aim is None else aim.tolist()
        self.aimed = aim is not None
        keep = []
        for row, (group, aimed) in enumerate(zip(groups, aims, strict=True)):
            if self.aimed:
                self.made[aimed] += 1
            if not -1 <= group < len(self.want):
                raise GroupError("assign gave an unknown group", expected=f"-1 … {len(self.want) - 1}", got=group)
            if group == aimed and group >= 0 and self.kept[group] < self.want[group]:
                self.kept[group] += 1
                keep.append(row)
        self.total += len(groups)
        rows = torch.tensor(keep, dtype=torch.int64, device=images.device)
        self.parts.append((images[rows], w[rows], assigned[rows], index[rows]))
        return len(keep)

    def result(self) -> Accepted:
        """All that was kept, sorted by group, and what is missing."""
        images, latents, ids, index = (torch.cat(p) for p in zip(*self.parts, strict=True))
        order = torch.argsort(ids, stable=True)
        made = self.made if self.aimed else [self.total] * len(self.want)
        short = {g: w - k for g, (w, k) in enumerate(zip(self.want, self.kept, strict=True)) if k < w}
        return Accepted(
            images[order],
            latents[order].squeeze(1) if latents.ndim == 3 and latents.shape[1] == 1 else latents[order],
            ids[order],
            index[order],
            torch.tensor(self.kept),
            torch.tensor(made),
            short,
        )
