"""Losses that keep a recognition network's scores alike over groups, for training beside its usual loss.

Each is a function of embeddings, identities and groups of one batch, meant for the balanced batches of
`fairface_synth.stream`. Scores are cosines. A *mated* pair shows one identity, a *non-mated* pair two; only pairs
within a group count. No value is read from the device, and whatever a batch lacks (a group, a second image of anyone,
all of it) contributes 0 and no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .artifacts import Artifact, has_values
from .errors import DataError, ShapeError
from .groups import check_ids, numbered

Spread = Literal["variance", "range"]
Distance = Literal["mmd", "quantile"]
Pairs = Literal["both", "mated", "non_mated"]
_MATED = {"mated": True, "non_mated": False}


# --- the gap between groups -----------------------------------------------------------------------------------------


def group_gap_loss(
    embeddings: Tensor,
    identity: Tensor,
    group_ids: Tensor,
    *,
    spread: Spread = "variance",
    num_groups: int | None = None,
) -> Tensor:
    """How far the groups' mean mated similarities m_g lie apart.

    m_g is the mean cosine of all pairs of one identity in group g. The aim, a smaller gap between the groups' average
    intra-class distances, is that of the de-biasing loss of Gong, Liu & Jain (CVPR 2021, arXiv 2006.07576); cosines,
    batches and both spreads are ours. It falls just as well by making the best group worse: keep its weight small.

    Args:
        embeddings: [n, d], of any length; gradients flow into them.
        identity: int64 [n].
        group_ids: int64 [n], −1 for rows that are to be left out.
        spread: "variance": mean over the present groups of (m_g − mean m)². "range": max m_g − min m_g.
        num_groups: number of groups G. None: as many slots as rows, since looking for the largest id would wait for
            the device. The result is the same; more slots take more memory.

    Returns:
        0-d, ≥ 0; 0 with fewer than two groups that have a mated pair.

    Raises:
        ShapeError, GroupError, DataError: shapes or types that do not fit, ids out of range, NaN, an unknown spread.
            Values are looked at on the CPU alone.
    """
    _check_choice(spread, Spread, "spread")
    pairs = _pairs(embeddings, identity, group_ids, num_groups)
    means, present = _group_means(pairs.scores, pairs.slot(mated=True), pairs.groups)
    if spread == "variance":
        return _variance(means, present)
    high = torch.where(present, means, -torch.inf).amax()
    low = torch.where(present, means, torch.inf).amin()
    return torch.where(present.any(), high - low, 0)


def score_alignment_loss(
    embeddings: Tensor,
    identity: Tensor,
    group_ids: Tensor,
    *,
    kind: Distance = "mmd",
    pairs: Pairs = "both",
    bandwidths: Sequence[float] = (0.05, 0.1, 0.2, 0.4),
    num_groups: int | None = None,
) -> Tensor:
    """Distance between the groups' score distributions, averaged over pairs of groups; mated plus non-mated part.

    One threshold serves all groups alike only if these distributions agree, in their tails too, which a gap of means
    does not see. The use on scores of face pairs is ours.

    Args:
        embeddings, identity, group_ids, num_groups: as for `group_gap_loss`.
        kind:
            "mmd": squared maximum mean discrepancy (Gretton et al., JMLR 2012, eq. 5, the biased estimate) with the
                mean of Gaussian kernels exp(−(s − t)²/2σ²). The kernels are summed as Fourier series, exact to 1e-9,
                so that time and memory grow with the number of scores and not with its square. The estimate is biased
                upwards where groups have few pairs, and pulls such a group's scores together a little.
            "quantile": ∫|F_g⁻¹ − F_h⁻¹|, the 1-Wasserstein distance of the empirical distributions, exact. Minimised
                between groups' classifier outputs by Jiang et al. (UAI 2019, arXiv 1907.12059).
        pairs: which scores to align.
        bandwidths: σ of the kernels, in units of the cosine; our choice.

    Returns:
        0-d, ≥ 0; 0 with fewer than two groups that have such pairs.

    Raises:
        as `group_gap_loss`; DataError for bandwidths below 0.01.
    """
    _check_choice(kind, Distance, "kind")
    _check_choice(pairs, Pairs, "pairs")
    strange = not isinstance(bandwidths, Sequence) or not all(0.01 <= sigma < math.inf for sigma in bandwidths)
    if strange or not bandwidths:
        raise DataError("bandwidths of Gaussian kernels", expected="a list of numbers ≥ 0.01", got=repr(bandwidths))
    every = _pairs(embeddings, identity, group_ids, num_groups)
    slots = [every.slot(mated) for name, mated in _MATED.items() if pairs in ("both", name)]
    if kind == "mmd":
        return _mmd(every.scores, slots, every.groups, bandwidths)
    return torch.stack([_wasserstein(every.scores, slot, every.groups) for slot in slots]).sum()


def _mmd(scores: Tensor, slots: Sequence[Tensor], groups: int, bandwidths: Sequence[float]) -> Tensor:
    """Mean over pairs of groups of the squared MMD: twice the variance (n − 1) of the groups' mean features."""
    total = scores.new_zeros(())
    for sigma in bandwidths:
        features = _features(scores, sigma)
        for slot in slots:
            means, present = _group_means(features, slot, groups)
            count = present.sum()
            total = total + 2 * _variance(means, present) * count / (count - 1).clamp_min(1)
    return total / len(bandwidths)


def _features(scores: Tensor, sigma: float) -> Tensor:
    """[P, F] with features·features = exp(−(s − t)²/2σ²) for |s − t| ≤ 2, up to a constant.

    A Gaussian repeated with a period a little over 2 is a cosine series whose amplitudes are known in closed form.
    """
    period = 2 + 7 * sigma  # the next copy is 7 σ away from the largest difference
    m = torch.arange(1, math.ceil(1.1 * period / sigma) + 1, dtype=scores.dtype, device=scores.device)
    amplitude = 2 * math.sqrt(2 * math.pi) * sigma / period * torch.exp(-2 * (math.pi * sigma / period * m) ** 2)
    phase = scores.unsqueeze(1) * (2 * math.pi / period * m)
    return torch.cat((phase.cos(), phase.sin()), dim=1) * amplitude.sqrt().repeat(2)


def _wasserstein(scores: Tensor, slot: Tensor, groups: int) -> Tensor:
    """Mean over pairs of groups of the area between their distribution functions.

    Between two neighbouring scores the functions are constant, so that only the steps' widths carry a gradient.
    Scores that do not count split steps and change nothing.
    """
    ordered, order = scores.sort()
    rank = torch.arange(groups, device=scores.device)
    with torch.no_grad():
        member = (slot[order].unsqueeze(1) == rank).to(scores.dtype)
        present = member.sum(0) > 0
        count = present.sum()
        cdf = member.cumsum(0) / member.sum(0).clamp_min(1)
        ranked = torch.where(present, cdf, torch.inf).sort(1).values  # those of absent groups come last
        # Σ over pairs |a − b| = Σ (2r − count + 1)·a over the sorted values a
        weighted = torch.where(rank < count, (2 * rank - count + 1) * ranked, 0)
        height = weighted.sum(1) / (count * (count - 1) / 2).clamp_min(1)
    return (height[:-1] * ordered.diff()).sum()


# --- the worst group ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False, eq=False)
class GroupDRO(Artifact):
    """Weights of the groups, the state of `worst_group_loss`; `.save`, `.load` and `.to` as everything fitted.

    Attributes:
        log_weights: [G]; `weights` is their exponential and sums to 1.
        adjustment: [G], C/√n_g, added to a group's loss where weights are updated.
    """

    kind: ClassVar[str] = "group_dro"

    log_weights: Tensor
    adjustment: Tensor

    @property
    def weights(self) -> Tensor:
        """q [G]."""
        return self.log_weights.exp()


def group_dro(
    num_groups: int,
    *,
    adjustment: float = 0.0,
    group_counts: Tensor | None = None,
    device: torch.device | str | None = None,
) -> GroupDRO:
    """Equal weights to begin with.

    Args:
        num_groups: G.
        adjustment: C of the generalisation adjustment C/√n_g (Sagawa et al. 2020, eq. 5): small groups are fitted more
            closely, since they generalise worse.
        group_counts: training samples of each group [G]; needed where C > 0.
        device: where the losses will be; by default that of `group_counts`, or the CPU.
    """
    if not isinstance(num_groups, int) or num_groups < 1 or not (math.isfinite(adjustment) and adjustment >= 0):
        got = f"num_groups={num_groups}, adjustment={adjustment}"
        raise DataError("a setting is out of range", expected="num_groups ≥ 1, adjustment ≥ 0", got=got)
    if group_counts is not None and (not isinstance(group_counts, Tensor) or group_counts.shape != (num_groups,)):
        sizes = list(group_counts.shape) if isinstance(group_counts, Tensor) else f"a {type(group_counts).__name__}"
        raise ShapeError("one count per group, please", expected=f"group_counts: tensor [{num_groups}]", got=sizes)
    extra = torch.zeros(num_groups, device=device if group_counts is None else group_counts.device)
    if adjustment:
        if group_counts is None:
            expected = f"group_counts: tensor [{num_groups}]"
            raise ShapeError("C/√n_g needs the groups' sizes", expected=expected, got="none")
        if has_values(group_counts) and not bool((group_counts > 0).all()):
            raise DataError("a group without samples", expected="counts > 0", got=group_counts.tolist())
        extra = adjustment / group_counts.to(extra.dtype).sqrt()
    extra = extra.to(device) if device is not None else extra
    return GroupDRO(torch.full_like(extra, -math.log(num_groups)), extra)


def worst_group_loss(
    losses: Tensor, group_ids: Tensor, state: GroupDRO, *, step_size: float = 0.01
) -> tuple[Tensor, GroupDRO]:
    """Group DRO (Sagawa, Koh, Hashimoto & Liang, ICLR 2020, algorithm 1): weighs groups by how badly they do.

    With L_g the mean loss of group g in this batch: q_g ← q_g·exp(η·(L_g + C/√n_g)), normalised; the loss is
    Σ_g q_g·L_g with the new weights, which carry no gradient. A group that is absent keeps its weight (before
    normalising) and adds nothing to this batch's loss. On several ranks each has weights of its own, unless the states
    are averaged.

    Args:
        losses: of each sample [n], for example `F.cross_entropy(…, reduction="none")`.
        group_ids: int64 [n], −1 for samples to leave out.
        state: `group_dro(G)` at first, then what the last call returned.
        step_size: η; 0.01 is the published code's default.

    Returns:
        The loss, 0-d, and the new state.

    Raises:
        ShapeError, GroupError, DataError: shapes, devices or ids that do not fit, NaN (on the CPU), step_size < 0.
    """
    _check_tensors({"losses": losses, "group_ids": group_ids})
    if not isinstance(state, GroupDRO):
        fix = "state = group_dro(G), then: loss, state = worst_group_loss(losses, group_ids, state)"
        raise DataError("the weights are missing", expected="a GroupDRO", got=f"a {type(state).__name__}", fix=fix)
    groups = len(state.log_weights)
    if losses.ndim != 1 or not losses.is_floating_point() or group_ids.shape != losses.shape:
        raise ShapeError(
            "losses and groups do not fit",
            expected="losses float [n], group_ids int64 [n]",
            got=f"{list(losses.shape)} {losses.dtype}, {list(group_ids.shape)} {group_ids.dtype}",
            fix='one loss per sample: reduction="none"',
        )
    if state.log_weights.device != losses.device:
        got = f"{state.log_weights.device}, losses on {losses.device}"
        raise ShapeError("the weights are on another device", expected="one device", got=got, fix="state.to(device)")
    if not 0 <= step_size < math.inf:
        raise DataError("a step size is not negative", expected="finite, ≥ 0", got=step_size)
    check_ids(group_ids, groups)
    _check_finite(losses, "losses")
    losses = losses.to(torch.promote_types(losses.dtype, torch.float32))
    means, present = _group_means(losses, torch.where(group_ids < 0, groups, group_ids), groups)
    gain = step_size * (means.detach() + state.adjustment)
    log_weights = (state.log_weights + torch.where(present, gain, 0)).log_softmax(0)
    loss = (log_weights.exp().to(means.dtype) * means).sum()
    return loss, GroupDRO(log_weights.to(state.log_weights.dtype), state.adjustment)


# --- one identity ---------------------------------------------------------------------------------------------------


def consistency_loss(
    embeddings: Tensor, identity: Tensor, group_ids: Tensor | None = None, *, num_groups: int | None = None
) -> Tensor:
    """1 − the mean cosine of an image to the centroid of its identity's other images.

    The leave-one-out centroid is that of the end-to-end loss of Wan et al. (ICASSP 2018, arXiv 1710.10467, eq. 8). This
    only pulls: alone, it is least when all embeddings are one.

    Args:
        embeddings, identity, num_groups: as for `group_gap_loss`.
        group_ids: int64 [n]; then every group counts the same, whatever its number of images. −1 is left out.

    Returns:
        0-d, 0 … 2; identities with one image do not count, and 0 if there is no other.
    """
    _check_batch(embeddings, identity, identity if group_ids is None else group_ids)
    slot, groups = _slots(torch.zeros_like(identity) if group_ids is None else group_ids, num_groups)
    with torch.autocast(embeddings.device.type, enabled=False):
        x = _unit(embeddings)
        person = numbered(identity)
        sums = torch.zeros_like(x).index_add(0, person, x)
        counts = torch.zeros_like(person).index_add(0, person, torch.ones_like(person))
        others = F.normalize(sums[person] - x, dim=1)
        loss = 1 - (x * others).sum(1)
    means, present = _group_means(loss, torch.where(counts[person] > 1, slot, groups), groups)
    return means.sum() / present.sum().clamp_min(1)


# --- details --------------------------------------------------------------------------------------------------------


class _PairScores(NamedTuple):
    """Cosines of all pairs [P], i < j; which are mated; the slot of their common group, `groups` if there is none."""

    scores: Tensor
    same_identity: Tensor
    group: Tensor
    groups: int

    def slot(self, mated: bool) -> Tensor:
        """The group of mated, or of non-mated pairs; `groups` for all others."""
        return torch.where(self.same_identity == mated, self.group, self.groups)


def _pairs(embeddings: Tensor, identity: Tensor, group_ids: Tensor, num_groups: int | None) -> _PairScores:
    _check_batch(embeddings, identity, group_ids)
    slot, groups = _slots(group_ids, num_groups)
    first, second = torch.triu_indices(len(slot), len(slot), 1, device=slot.device)
    with torch.autocast(embeddings.device.type, enabled=False):
        x = _unit(embeddings)
        scores = (x @ x.T)[first, second]
    group = torch.where(slot[first] == slot[second], slot[first], groups)
    return _PairScores(scores, identity[first] == identity[second], group, groups)


def _slots(group_ids: Tensor, num_groups: int | None) -> tuple[Tensor, int]:
    """Each row's place among the groups, and how many places there are; that number itself for rows of −1."""
    if num_groups is None:
        check_ids(group_ids, 2**62)
        groups = max(1, len(group_ids))
        return torch.where(group_ids < 0, groups, numbered(group_ids)), groups
    if not isinstance(num_groups, int) or num_groups < 1:
        raise DataError("there must be groups", expected="num_groups: a whole number ≥ 1", got=num_groups)
    check_ids(group_ids, num_groups)
    return torch.where(group_ids < 0, num_groups, group_ids), num_groups


def _group_means(values: Tensor, slot: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean of values [P, …] over each group [G, …], 0 where it is absent; which are present, bool [G]."""
    sums = values.new_zeros(groups + 1, *values.shape[1:]).index_add(0, slot, values)[:groups]
    counts = values.new_zeros(groups + 1).index_add(0, slot, torch.ones_like(slot, dtype=values.dtype))[:groups]
    return sums / counts.clamp_min(1).reshape(-1, *[1] * (values.ndim - 1)), counts > 0


def _variance(means: Tensor, present: Tensor) -> Tensor:
    """Mean squared distance of the present groups' means [G, …] from their centre."""
    count = present.sum().clamp_min(1)
    chosen = present.reshape(-1, *[1] * (means.ndim - 1))
    return torch.where(chosen, means - means.sum(0) / count, 0).square().sum() / count


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)


def _check_batch(embeddings: Tensor, identity: Tensor, group_ids: Tensor) -> None:
    things = {"embeddings": embeddings, "identity": identity, "group_ids": group_ids}
    _check_tensors(things)
    integer = all(not x.is_floating_point() and x.dtype != torch.bool for x in (identity, group_ids))
    alike = embeddings.ndim == 2 and identity.shape == group_ids.shape == embeddings.shape[:1]
    if not (integer and alike and embeddings.is_floating_point()):
        raise ShapeError(
            "embeddings, identities and groups do not fit",
            expected="embeddings float [n, d], identity int64 [n], group_ids int64 [n]",
            got=", ".join(f"{list(x.shape)} {x.dtype}" for x in things.values()),
        )
    _check_finite(embeddings, "embeddings")


def _check_tensors(things: Mapping[str, object]) -> None:
    strange = [f"{name}: a {type(x).__name__}" for name, x in things.items() if not isinstance(x, Tensor)]
    if strange:
        expected = f"{', '.join(things)} as tensors"
        raise ShapeError("tensors, please", expected=expected, got=strange[0], fix="torch.as_tensor(…)")


def _check_finite(x: Tensor, what: str) -> None:
    """On the CPU alone: elsewhere a look at the values would make the host wait."""
    if x.device.type == "cpu" and has_values(x) and not bool(x.isfinite().all()):
        raise DataError(f"the {what} are NaN or infinite", expected="finite values", fix="check the network")


def _check_choice(value: object, choices: object, name: str) -> None:
    if value not in get_args(choices):
        raise DataError(f"unknown {name}", expected=" or ".join(get_args(choices)), got=repr(value))
