"""Per-group Gaussians (and mixtures) over latents or subspace coordinates: samples, densities, unseen groups.

`fit_gaussians` (`gaussian_fitting.py`) fits them. `compose` makes Gaussians for groups that were never seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .artifacts import Artifact, has_values
from .errors import DataError, GroupError, ShapeError
from .groups import UNSURE, Groups, check_ids
from .shrinkage import oas_intensity, shrink


@dataclass(frozen=True, repr=False, eq=False)
class GroupGaussians(Artifact):
    """One Gaussian, or a mixture of K, for each of G groups in d dimensions.

    Attributes:
        weights: mixture weights [G, K].
        component_means: [G, K, d].
        factors: lower Cholesky factors of the covariances [G or 1, K, d, d] (1: tied); or standard deviations
            [G, K, d] for diagonal covariances.
        counts: effective number of samples behind each group [G]: (Σw)² / Σw².
        shrinkage: weight of the scaled identity in each covariance [G or 1, K].
        covariance: the estimator's name.
        groups: the groups, if known: then ids can be named.
        absent: ids with no samples, left out by `missing="skip"`. `compose` fills them.
        composed: ids whose Gaussian was composed from other groups, not fitted.
    """

    kind: ClassVar[str] = "gaussians"

    weights: Tensor
    component_means: Tensor
    factors: Tensor
    counts: Tensor
    shrinkage: Tensor
    covariance: str = "full"
    groups: Groups | None = None
    absent: tuple[int, ...] = ()
    composed: tuple[int, ...] = ()

    @property
    def num_groups(self) -> int:
        return self.weights.shape[0]

    @property
    def components(self) -> int:
        return self.weights.shape[1]

    @property
    def dim(self) -> int:
        return self.component_means.shape[-1]

    @property
    def means(self) -> Tensor:
        """Mean of each group [G, d] (of the whole mixture)."""
        return torch.einsum("gk,gkd->gd", self.weights, self.component_means)

    @property
    def covariances(self) -> Tensor:
        """Covariance of each group [G, d, d] (of the whole mixture)."""
        within = self.factors @ self.factors.mT if self.covariance != "diagonal" else torch.diag_embed(self.factors**2)
        spread = self.component_means - self.means.unsqueeze(1)
        between = torch.einsum("gk,gki,gkj->gij", self.weights, spread, spread)
        return torch.einsum("gk,gkij->gij", self.weights, within.expand(self.num_groups, -1, -1, -1)) + between

    def name(self, group_id: int) -> str:
        """Name of a group for messages."""
        return self.groups.name(group_id) if self.groups is not None else f"group {group_id}"


def sample_gaussians(
    model: GroupGaussians,
    group_ids: Tensor,
    rng: torch.Generator | None = None,
    *,
    noise: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Draw one sample for each group id.

    Args:
        model: the fitted Gaussians.
        group_ids: int64 [...].
        rng: source of randomness, on the model's device.
        noise: standard normals [..., d] instead of drawing them, for example from `normals(seed, index, d)`: then
            sample i depends on (seed, i) alone. [..., d + 1] for mixtures: the last one picks the component.
        temperature: scale of the standard deviation; below 1 stays nearer to the mean.

    Returns:
        [..., d] in the model's dtype.

    Raises:
        GroupError: ids out of range, of absent groups (`compose` fills them), or −1. On an accelerator the values are
            not looked at, so that the host need not wait: rows of −1 are NaN there.
    """
    _refuse_unknown(model, group_ids)
    shape, ids = group_ids.shape, group_ids.reshape(-1)
    eps, component = _noise_and_component(model, ids, shape, rng, noise)
    eps = eps * temperature
    # All groups at once, then a gather: cheaper than copying a [d, d] factor for every sample.
    rows = max(1, 2**24 // (math.prod(model.factors.shape[:2]) * model.dim))
    parts = []
    for i, k, e in zip(ids.split(rows), component.split(rows), eps.split(rows), strict=True):
        if model.covariance == "diagonal":
            spread = model.factors[i, k] * e
        else:
            tied = model.factors.shape[0] == 1
            spread = torch.einsum("gkij,nj->ngki", model.factors, e)
            spread = spread[torch.arange(len(e), device=e.device), torch.zeros_like(i) if tied else i, k]
        parts.append(torch.where((i < 0).unsqueeze(1), torch.nan, model.component_means[i, k] + spread))
    return torch.cat(parts).reshape(*shape, model.dim)


def log_prob(model: GroupGaussians, x: Tensor) -> Tensor:
    """Log density of x under every group.

    Args:
        model: the fitted Gaussians.
        x: [..., d].

    Returns:
        [..., G], natural logarithm. Groups that are absent have NaN.
    """
    if x.shape[-1] != model.dim:
        raise ShapeError("x has the wrong width", expected=f"[..., {model.dim}]", got=list(x.shape))
    flat = x.reshape(-1, model.dim).to(model.component_means.dtype)
    rows = max(1, 2**24 // (model.num_groups * model.components * model.dim))
    parts = [component_log_prob(model, chunk).logsumexp(2) for chunk in flat.split(rows)]
    return torch.cat(parts).reshape(*x.shape[:-1], model.num_groups)


def component_log_prob(model: GroupGaussians, x: Tensor) -> Tensor:
    """log(weight · density) of every component, [n, G, K]."""
    if model.covariance == "diagonal":
        z = (x[:, None, None] - model.component_means) / model.factors
        log_det = model.factors.log().sum(-1)
    else:
        eye = torch.eye(model.dim, dtype=x.dtype, device=x.device)
        inverse = torch.linalg.solve_triangular(model.factors.to(x.dtype), eye, upper=False)
        inverse = inverse.expand(model.num_groups, -1, -1, -1)
        mean = model.component_means.to(x.dtype)
        # Whiten about the mean of means: x·A − μ·A would cancel badly far from the origin.
        centre = mean.nanmean((0, 1))
        z = torch.einsum("gkij,nj->ngki", inverse, x - centre)
        z = z - torch.einsum("gkij,gkj->gki", inverse, mean - centre)
        log_det = model.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = model.dim * math.log(2 * math.pi)
    return model.weights.log() - 0.5 * (z.square().sum(-1) + constant) - log_det


def compose(
    model: GroupGaussians,
    groups: Groups | None = None,
    ids: Iterable[int | str] | None = None,
    *,
    ridge: float = 1.0,
) -> GroupGaussians:
    """Gaussians for groups never seen, put together from their attributes' effects.

    Means follow an additive model, μ_g = μ + Σ_a effect_a(value of g), fitted by ridge regression to the seen
    groups' means, each weighted by its count; covariances are the pooled within-group covariance of the seen groups,
    shrunk by OAS. Our proposal, not a published method: the result lists them in `.composed`.

    Args:
        model: fitted with components=1 (`missing="skip"` leaves the empty groups to fill).
        groups: the groups; `model.groups` by default.
        ids: groups (ids or names) to compose as if they had not been seen; the absent ones by default.
        ridge: penalty on each effect, in samples: an effect seen in that many samples is halved.

    Raises:
        GroupError: an attribute value that no seen group has.
    """
    groups = groups or model.groups
    if groups is None or len(groups) != model.num_groups:
        raise GroupError(
            "compose needs to know the groups' attributes",
            expected=f"Groups of {model.num_groups}",
            got=groups,
            fix="pass names=groups to fit_gaussians, or groups= here",
        )
    if model.components != 1:
        raise DataError("mixtures cannot be composed", expected="components=1", got=model.components)
    target = sorted(set(model.absent if ids is None else groups.parse(ids)) | set(model.absent))
    if not target:
        return model
    seen = [g for g in range(len(groups)) if g not in target]
    design = _effects_design(groups, model.means.device)
    _refuse_unseen_values(groups, seen, target)
    weight = model.counts[seen].double()
    a, means = design[seen], model.means[seen].double()
    penalty = torch.eye(a.shape[1], dtype=a.dtype, device=a.device) * ridge
    penalty[0, 0] = 0
    effects = torch.linalg.solve(a.T @ (weight[:, None] * a) + penalty, a.T @ (weight[:, None] * means))
    covariance = model.covariances[seen].double()
    pooled = torch.einsum("g,gij->ij", weight / weight.sum(), covariance).unsqueeze(0)
    pooled = shrink(pooled, oas_intensity(pooled, weight.sum().view(1)))
    dtype = model.component_means.dtype
    new_means = model.component_means.clone()
    new_means[target, 0] = (design[target] @ effects).to(dtype)
    factors = model.factors
    if model.covariance == "diagonal":
        factors = factors.clone()
        factors[target, 0] = pooled.diagonal(dim1=-2, dim2=-1).sqrt().to(dtype)
    elif model.covariance != "tied":
        factors = factors.clone()
        factors[target, 0] = torch.linalg.cholesky(pooled).to(dtype)
    counts = model.counts.clone()
    counts[target] = 0
    composed = tuple(sorted(set(model.composed) | set(target)))
    return dataclasses.replace(
        model,
        component_means=new_means,
        factors=factors,
        counts=counts,
        groups=groups,
        absent=(),
        composed=composed,
    )


# --- details -------------------------------------------------------------------------------------------------------


def _refuse_unknown(model: GroupGaussians, group_ids: Tensor) -> None:
    """GroupError for ids without a Gaussian. On an accelerator only models with absent groups pay for the look."""
    check_ids(group_ids, model.num_groups)
    if not has_values(group_ids) or not (model.absent or group_ids.device.type == "cpu"):
        return
    asked = set(group_ids.unique().tolist())
    if UNSURE in asked:
        raise GroupError(
            "-1 (unsure) is no group to sample from", expected=f"ids 0 … {model.num_groups - 1}", fix="ids[ids >= 0]"
        )
    absent = sorted(asked & set(model.absent))
    if absent:
        raise GroupError(
            "these groups have no Gaussian: " + ", ".join(model.name(g) for g in absent),
            expected="groups with samples in the bank",
            fix="model = compose(model) puts them together from their attributes",
        )


def _noise_and_component(
    model: GroupGaussians, ids: Tensor, shape: torch.Size, rng: torch.Generator | None, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Standard normals [n, d], and which component each sample comes from [n]."""
    means = model.component_means
    mixture = model.components > 1
    width = model.dim + mixture
    if noise is None:
        noise = torch.randn(len(ids), width, generator=rng, dtype=means.dtype, device=means.device)
    elif noise.shape != (*shape, width):
        raise ShapeError("noise does not fit", expected=[*shape, width], got=list(noise.shape))
    noise = noise.reshape(-1, width).to(means.dtype)
    if not mixture:
        return noise, torch.zeros_like(ids)
    pick = torch.special.ndtr(noise[:, -1:])
    component = (model.weights[ids].cumsum(1)[:, :-1] < pick).sum(1)
    return noise[:, :-1], component


def _effects_design(groups: Groups, device: torch.device) -> Tensor:
    """[G, 1 + Σk]: an intercept and an indicator for each attribute value (the ridge settles the overlap)."""
    rows = []
    for g in range(len(groups)):
        row = [1.0]
        for value, size in zip(groups.value_indices(g), groups.shape, strict=True):
            row += [float(value == v) for v in range(size)]
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64, device=device)


def _refuse_unseen_values(groups: Groups, seen: list[int], target: list[int]) -> None:
    for axis, (attribute, values) in enumerate(groups.attributes.items()):
        known = {groups.value_indices(g)[axis] for g in seen}
        needed = {groups.value_indices(g)[axis] for g in target}
        if needed - known:
            raise GroupError(
                f"no seen group has {attribute} = " + ", ".join(values[v] for v in sorted(needed - known)),
                expected="every attribute value in at least one group with samples",
                fix="label more latents, lower the confidence gate, or evolve some latents of that group first",
            )
