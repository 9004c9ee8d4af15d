"""Fitting a Gaussian, or a mixture by expectation-maximisation, to every group at once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, GroupError, ShapeError
from .gaussians import GroupGaussians, component_log_prob
from .groups import Groups
from .moments import Covariance, GroupMoments


def fit_gaussians(
    x: Tensor,
    groups: Tensor,
    weights: Tensor | None = None,
    covariance: Covariance = "full",
    components: int = 1,
    *,
    names: Groups | None = None,
    num_groups: int | None = None,
    missing: Literal["raise", "skip"] = "raise",
    chunk_size: int = 2**20,
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> GroupGaussians:
    """Fit one Gaussian, or a mixture, to every group at once.

    Args:
        x: latents or coordinates [n, d] (or [..., n, d] with `groups` to match).
        groups: hard ids [n] (−1 "unsure" is left out), or soft probabilities [n, G].
        weights: non-negative sample weights [n].
        covariance: "full" (maximum likelihood, divided by Σw), "diagonal", "tied" (pooled within groups),
            "ledoit_wolf" (Ledoit & Wolf 2004) or "oas" (Chen et al. 2010): shrunk towards a scaled identity.
        components: Gaussians per group; more than one are fitted by expectation-maximisation, started along each
            group's first principal axis (deterministic; a local optimum, as always).
        names: the `Groups`, for messages and for `compose`; gives the number of groups.
        num_groups: number of groups where `names` is not given; largest id + 1 otherwise.
        missing: what to do about groups without samples: "raise", or "skip" and list them in `.absent`.
        chunk_size: rows per step; memory beyond x stays constant.
        iterations, tolerance: of expectation-maximisation: stop when the mean log-likelihood gains less.

    Returns:
        `GroupGaussians` on x's device, in x's dtype but at least float32. Sums are kept in float64.

    Raises:
        ShapeError: shapes that do not fit together.
        GroupError: ids out of range.
        DataError: NaN, a group with too few samples for the estimator, an empty group, a singular covariance.
    """
    x, groups, weights = _flatten(x, groups, weights)
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    count = _count_groups(groups, names, num_groups)
    shift = x[: min(len(x), 4096)].mean(0)
    moments = GroupMoments.empty(count, shift, diagonal=covariance == "diagonal")
    for rows in _slices(len(x), chunk_size):
        moments = moments.update(x[rows], groups[rows], None if weights is None else weights[rows])
    model = moments.compute(covariance, groups=names, missing=missing, dtype=x.dtype)
    if components < 1:
        raise DataError("a mixture needs components", expected="components ≥ 1", got=components)
    if components == 1:
        return model
    if model.absent:
        raise DataError(
            "a mixture cannot skip empty groups",
            got=", ".join(model.name(g) for g in model.absent),
            fix="use components=1, or leave those groups out of Groups",
        )
    return _expectation_maximisation(model, x, groups, weights, components, chunk_size, iterations, tolerance)


# --- details -------------------------------------------------------------------------------------------------------


def _flatten(x: Tensor, groups: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if not x.is_floating_point() or x.ndim < 2:
        raise ShapeError("x must be a batch of float vectors", expected="[n, d]", got=f"{list(x.shape)} {x.dtype}")
    soft = groups.is_floating_point()
    lead = groups.shape[:-1] if soft else groups.shape
    if lead != x.shape[:-1]:
        raise ShapeError(
            "groups do not fit x",
            expected=f"hard ids {list(x.shape[:-1])} or probabilities {[*x.shape[:-1], 'G']}",
            got=f"{list(groups.shape)} {groups.dtype}",
            fix="W+ latents have to be flattened first: x.flatten(1)" if x.ndim > groups.ndim + 1 else None,
        )
    if weights is not None and weights.shape != x.shape[:-1]:
        raise ShapeError("weights do not fit x", expected=list(x.shape[:-1]), got=list(weights.shape))
    if weights is not None and has_values(weights) and bool((weights < 0).any()):
        raise DataError("negative sample weights", expected="weights ≥ 0", got=f"minimum {float(weights.min()):.4g}")
    if soft and has_values(groups) and bool((groups < 0).any()):
        raise DataError(
            "negative probabilities",
            expected="probabilities [n, G], or integer ids [n]",
            got=f"minimum {float(groups.min()):.4g}",
            fix="logits: use logits.softmax(-1)",
        )
    flat_groups = groups.reshape(-1, groups.shape[-1]) if soft else groups.reshape(-1).long()
    return x.reshape(-1, x.shape[-1]), flat_groups, None if weights is None else weights.reshape(-1)


def _count_groups(groups: Tensor, names: Groups | None, num_groups: int | None) -> int:
    count = len(names) if names is not None else num_groups
    if groups.is_floating_point():
        if count is not None and count != groups.shape[1]:
            raise ShapeError("probabilities do not fit the groups", expected=f"[n, {count}]", got=list(groups.shape))
        return groups.shape[1]
    if not has_values(groups):
        if count is None:
            raise GroupError("the number of groups is unknown", fix="pass names= or num_groups=")
        return count
    if groups.numel() == 0:
        raise DataError("no samples", expected="n ≥ 1", got=0)
    low, high = (int(v) for v in groups.aminmax())
    if count is None:
        count = high + 1
    if low < -1 or high >= count or count < 1:
        raise GroupError("group ids out of range", expected=f"-1 (unsure) … {count - 1}", got=f"{low} … {high}")
    return count


def _slices(n: int, size: int) -> Iterable[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


def _expectation_maximisation(
    start: GroupGaussians,
    x: Tensor,
    groups: Tensor,
    weights: Tensor | None,
    components: int,
    chunk_size: int,
    iterations: int,
    tolerance: float,
) -> GroupGaussians:
    """EM over G·K components; a sample's responsibility is shared only within the groups it belongs to."""
    if not groups.is_floating_point():
        ids = torch.arange(start.num_groups, device=groups.device)
        groups = (groups.unsqueeze(1) == ids).to(x.dtype)
    model = _split_along_axis(start, components)
    before = -math.inf
    chunk_size = min(chunk_size, max(1, 2**25 // (start.num_groups * components * start.dim)))
    for _ in range(iterations):
        moments = GroupMoments.empty(
            start.num_groups * components, model.means.mean(0), diagonal=start.covariance == "diagonal"
        )
        likelihood = x.new_zeros((), dtype=torch.float64)
        for rows in _slices(len(x), chunk_size):
            log_p = component_log_prob(model, x[rows])
            share = groups[rows] if weights is None else groups[rows] * weights[rows].unsqueeze(1)
            responsibility = share.unsqueeze(2) * log_p.softmax(2)
            moments = moments.update(x[rows], responsibility.flatten(1))
            likelihood = likelihood + (share * log_p.logsumexp(2)).double().sum()
        fitted = _compute_components(moments, start, components, x.dtype)
        model = _as_mixture(fitted, moments, start, components)
        if has_values(likelihood):
            after = float(likelihood / moments.weight.sum())
            if after - before < tolerance:
                break
            before = after
    return model


def _compute_components(
    moments: GroupMoments, start: GroupGaussians, components: int, dtype: torch.dtype
) -> GroupGaussians:
    """`GroupMoments.compute` of G·K components, with an error in terms of groups."""
    try:
        return moments.compute(start.covariance, dtype=dtype)  # type: ignore[arg-type]
    except DataError as error:
        weights = moments.weight.view(-1, components).tolist()
        smallest = min(range(len(weights)), key=lambda g: min(weights[g]))
        raise DataError(
            "a mixture component collapsed onto too few samples",
            expected=f"{components} components that each keep enough samples of their group",
            got=f"{start.name(smallest)}: " + ", ".join(f"{w:.3g}" for w in weights[smallest]),
            fix="use fewer components, covariance='ledoit_wolf' or 'tied', or label more latents",
        ) from error


def _as_mixture(
    fitted: GroupGaussians, moments: GroupMoments, start: GroupGaussians, components: int
) -> GroupGaussians:
    """G·K fitted Gaussians as G mixtures of K."""
    shape = (start.num_groups, components)
    mass = moments.weight.view(shape)
    factors = fitted.factors.view(-1, *fitted.factors.shape[2:])
    tied = start.covariance == "tied"
    return dataclasses.replace(
        start,
        weights=(mass / mass.sum(1, keepdim=True)).to(fitted.weights.dtype),
        component_means=fitted.component_means.view(*shape, -1),
        factors=factors.expand(components, -1, -1).unsqueeze(0) if tied else factors.unflatten(0, shape),
        shrinkage=fitted.shrinkage.expand(components, 1).T if tied else fitted.shrinkage.view(shape),
    )


def _split_along_axis(model: GroupGaussians, components: int) -> GroupGaussians:
    """K copies of each Gaussian, their means at the normal quantiles of the first principal axis."""
    quantile = torch.arange(components, device=model.weights.device, dtype=torch.float64)
    offset = torch.special.ndtri((quantile + 0.5) / components).to(model.weights.dtype)
    values, vectors = torch.linalg.eigh(model.covariances.double())
    axis = (vectors[..., -1] * values[..., -1:].clamp_min(0).sqrt()).to(offset.dtype)
    means = model.means.unsqueeze(1) + offset[None, :, None] * axis.unsqueeze(1)
    return dataclasses.replace(
        model,
        weights=torch.full_like(means[..., 0], 1 / components),
        component_means=means,
        factors=model.factors.expand(-1, components, *model.factors.shape[2:]),
        shrinkage=model.shrinkage.expand(-1, components),
    )
