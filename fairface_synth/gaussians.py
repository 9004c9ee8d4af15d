"""Per-group Gaussians (and mixtures) over latents or subspace coordinates, fitted for all groups at once.

`GroupMoments` streams: update it chunk by chunk, merge it across machines, compute the model at the end.
`fit_gaussians` does that in one call. `compose` makes Gaussians for groups that were never seen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .artifacts import Artifact, has_values
from .errors import DataError, GroupError, ShapeError
from .groups import UNSURE, Groups, check_ids

Covariance = Literal["full", "diagonal", "tied", "ledoit_wolf", "oas"]


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
        within = _outer(self.factors) if self.covariance != "diagonal" else torch.diag_embed(self.factors**2)
        spread = self.component_means - self.means.unsqueeze(1)
        between = torch.einsum("gk,gki,gkj->gij", self.weights, spread, spread)
        return torch.einsum("gk,gkij->gij", self.weights, within.expand(self.num_groups, -1, -1, -1)) + between

    def name(self, group_id: int) -> str:
        """Name of a group for messages."""
        return self.groups.name(group_id) if self.groups is not None else f"group {group_id}"


# --- streaming moments ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GroupMoments:
    """Weighted moments of each group about a common shift: all that the estimators need, in float64.

    Attributes:
        shift: reference point [d], or one for each group [G, d].
        weight, weight_sq: Σw, Σw² [G].
        first: Σw·y [G, d] with y = x − shift.
        second: Σw·y·yᵀ [G, d, d]; only Σw·y² [G, d] for `diagonal` moments.
        cubic: Σw·‖y‖²·y [G, d] and quartic: Σw·‖y‖⁴ [G], for the Ledoit-Wolf intensity.
    """

    shift: Tensor
    weight: Tensor
    weight_sq: Tensor
    first: Tensor
    second: Tensor
    cubic: Tensor
    quartic: Tensor

    @classmethod
    def empty(cls, num_groups: int, shift: Tensor, *, diagonal: bool = False) -> GroupMoments:
        """Moments of nothing, about `shift` [d]."""
        dim = shift.shape[-1]
        zero = torch.zeros(num_groups, dtype=torch.float64, device=shift.device)
        vector = zero.new_zeros(num_groups, dim)
        second = vector if diagonal else zero.new_zeros(num_groups, dim, dim)
        return cls(shift.double(), zero, zero, vector, second, vector, zero)

    @property
    def diagonal(self) -> bool:
        return self.second.ndim == 2

    def update(self, x: Tensor, groups: Tensor, weights: Tensor | None = None) -> GroupMoments:
        """The moments with more samples in them.

        Args:
            x: [n, d].
            groups: hard ids [n] (−1: left out), or soft probabilities [n, G].
            weights: non-negative sample weights [n]; 1 if not given.
        """
        x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        if groups.is_floating_point():
            return self._plus(self._soft(x, groups.detach(), weights))
        if not has_values(groups):
            ids = torch.arange(len(self.weight), device=groups.device)
            return self._plus(self._soft(x, (groups.unsqueeze(1) == ids).to(x.dtype), weights))
        return self._plus(self._hard(x, groups, weights))

    def _plus(self, local: GroupMoments) -> GroupMoments:
        """Sums about this shift and about local ones, added."""
        local = local.moved(self.shift)
        names = ("weight", "weight_sq", "first", "second", "cubic", "quartic")
        return dataclasses.replace(self, **{n: getattr(self, n) + getattr(local, n) for n in names})

    def _soft(self, x: Tensor, p: Tensor, weights: Tensor | None) -> GroupMoments:
        """Moments of x about each group's own mean, so that float32 products lose nothing to distant groups."""
        rows = max(1, 2**24 // (max(1, x.shape[1]) * p.shape[1]))  # bounds [G, rows, d] to about 64 MB
        weights = torch.ones_like(x[:, 0]) if weights is None else weights.detach().to(x.dtype)
        share = (p[:rows].to(x.dtype) * weights[:rows].unsqueeze(1)).T
        centre = share @ x[:rows] / share.sum(1, keepdim=True).clamp_min(1e-30)
        sums = GroupMoments.empty(len(self.weight), centre, diagonal=self.diagonal)._copies()
        for xs, ps, ws in zip(x.split(rows), p.split(rows), weights.split(rows), strict=True):
            y = xs - centre.unsqueeze(1)
            w = (ps.to(y.dtype) * ws.unsqueeze(1)).T
            weighted = w.unsqueeze(2) * y
            norm_sq = torch.linalg.vector_norm(y, dim=2).square()
            sums["second"] += (weighted * y).sum(1) if self.diagonal else weighted.transpose(1, 2) @ y
            sums["first"] += weighted.sum(1)
            sums["cubic"] += ((w * norm_sq).unsqueeze(1) @ y).squeeze(1)
            sums["weight"] += w.double().sum(1)
            sums["weight_sq"] += w.double().square().sum(1)
            sums["quartic"] += (w.double() * norm_sq.double().square()).sum(1)
        return GroupMoments(**sums)

    def _hard(self, x: Tensor, ids: Tensor, weights: Tensor | None) -> GroupMoments:
        """As `_soft`, with each group's rows sorted into one block, so that a group costs only its own samples.

        One sync: the counts.
        """
        order = ids.argsort()
        unsure, *counts = torch.bincount(ids + 1, minlength=len(self.weight) + 1).tolist()
        blocks = order[unsure:].split(counts)
        parts = [self._block(x, block, weights) for block in blocks]
        names = [f.name for f in dataclasses.fields(GroupMoments)]
        return GroupMoments(**{n: torch.cat([getattr(part, n) for part in parts]) for n in names})

    def _block(self, x: Tensor, block: Tensor, weights: Tensor | None, rows: int = 4096) -> GroupMoments:
        """Moments of one group's rows. A few thousand at a time stay in a CPU's cache between the products."""
        if len(block) == 0:
            return GroupMoments.empty(1, x.new_zeros(1, x.shape[1]), diagonal=self.diagonal)
        centre = x.index_select(0, block[:rows]).mean(0, keepdim=True)
        sums = GroupMoments.empty(1, centre, diagonal=self.diagonal)._copies()
        for chunk in block.split(rows):
            y = x.index_select(0, chunk).sub_(centre)
            w = torch.ones_like(y[:, 0]) if weights is None else weights[chunk].to(y.dtype)
            weighted = y if weights is None else y * w.unsqueeze(1)
            if self.diagonal:
                sums["second"] += (weighted * y).sum(0)
            else:
                _add_gram(sums["second"][0], weighted, y)
            norm_sq = torch.linalg.vector_norm(y, dim=1).square()
            first, cubic = torch.stack((w, w * norm_sq)).matmul(y)
            sums["first"] += first
            sums["cubic"] += cubic
            sums["weight"] += w.double().sum()
            sums["weight_sq"] += w.double().square().sum()
            sums["quartic"] += w.double() @ norm_sq.double().square()
        return GroupMoments(**sums)

    def _copies(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name).clone() for f in dataclasses.fields(self)}

    def moved(self, shift: Tensor) -> GroupMoments:
        """The same samples about another shift."""
        delta = (self.shift - shift.to(self.shift)).expand_as(self.first)
        length = delta.square().sum(1)
        along = (self.first * delta).sum(1)
        weight = self.weight.unsqueeze(1)
        total = self.second.sum(1) if self.diagonal else self.second.diagonal(dim1=-2, dim2=-1).sum(1)
        if self.diagonal:
            second = self.second + 2 * self.first * delta + weight * delta.square()
            stretched = self.second * delta  # off-diagonal part unknown: diagonal estimators do not use it
        else:
            cross = self.first.unsqueeze(2) * delta.unsqueeze(1)
            second = self.second + cross + cross.transpose(1, 2)
            second += (weight * delta).unsqueeze(2) * delta.unsqueeze(1)
            stretched = (self.second @ delta.unsqueeze(2)).squeeze(2)
        cubic = self.cubic + total.unsqueeze(1) * delta + 2 * stretched + 2 * along.unsqueeze(1) * delta
        cubic = cubic + length.unsqueeze(1) * (self.first + weight * delta)
        quartic = self.quartic + 4 * ((self.cubic + stretched) * delta).sum(1) + 2 * length * total
        quartic = quartic + 4 * length * along + self.weight * length.square()
        return dataclasses.replace(
            self,
            shift=shift.to(self.shift),
            first=self.first + weight * delta,
            second=second,
            cubic=cubic,
            quartic=quartic,
        )

    def merge(self, other: GroupMoments) -> GroupMoments:
        """Moments of both sets of samples; the shifts may differ."""
        if self.second.shape != other.second.shape:
            raise ShapeError(
                "moments of different shape do not merge",
                expected=list(self.second.shape),
                got=list(other.second.shape),
            )
        return self._plus(other)

    def compute(
        self,
        covariance: Covariance = "full",
        *,
        groups: Groups | None = None,
        missing: Literal["raise", "skip"] = "raise",
        dtype: torch.dtype = torch.float32,
    ) -> GroupGaussians:
        """The fitted Gaussians; see `fit_gaussians` for the arguments and errors."""
        _check_estimator(covariance, self)
        n = self.weight.square() / self.weight_sq.clamp_min(1e-300)
        absent = self._check(n, covariance, groups, missing)
        safe = self.weight.clamp_min(1e-300).unsqueeze(1)
        offset = self.first / safe
        mean = self.shift + offset
        centred = self.moved(mean)
        precision = torch.finfo(dtype).eps
        if covariance == "diagonal":
            variance = centred.second / safe
            factors, shrinkage = variance.clamp_min(0).sqrt().unsqueeze(1), torch.zeros_like(n).unsqueeze(1)
            # A constant column still shows the rounding of its mean.
            singular = (variance <= (8 * precision * mean).square()).any(1)
            _refuse_singular(singular, groups, covariance, absent)
        else:
            matrix, shrinkage = centred._estimate(covariance, n)
            seen = torch.ones_like(n, dtype=torch.bool)
            seen[list(absent)] = False
            if covariance != "tied":
                eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
                matrix = torch.where(seen[:, None, None], matrix, eye)
            factors, info = torch.linalg.cholesky_ex(matrix)
            # What a direction adds beyond the ones before it, against the precision that x had.
            pivots = factors.diagonal(dim1=-2, dim2=-1).square() / matrix.diagonal(dim1=-2, dim2=-1)
            singular = (info > 0) | ~(pivots.amin(1) > 10 * matrix.shape[-1] ** 0.5 * precision)
            _refuse_singular(singular, groups, covariance, absent)
            factors, shrinkage = factors.unsqueeze(1), shrinkage.unsqueeze(1)
        if absent:
            mean[list(absent)] = float("nan")
        return GroupGaussians(
            weights=torch.ones_like(n, dtype=dtype).unsqueeze(1),
            component_means=mean.to(dtype).unsqueeze(1),
            factors=factors.to(dtype),
            counts=n.to(dtype),
            shrinkage=shrinkage.to(dtype),
            covariance=covariance,
            groups=groups,
            absent=absent,
        )

    def _estimate(self, covariance: str, n: Tensor) -> tuple[Tensor, Tensor]:
        """Covariances [G or 1, d, d] and shrinkage intensities [G or 1] of moments about the groups' means."""
        if covariance == "tied":
            return self.second.sum(0, keepdim=True) / self.weight.sum(), torch.zeros_like(n[:1])
        weight = self.weight.clamp_min(1e-300)
        matrix = self.second / weight[:, None, None]
        if covariance == "full":
            return matrix, torch.zeros_like(n)
        if covariance == "oas":
            intensity = _oas_intensity(matrix, n)
        else:
            intensity = _ledoit_wolf_intensity(matrix, n, self.quartic / weight)
        return shrink(matrix, intensity), intensity

    def _check(self, n: Tensor, covariance: str, groups: Groups | None, missing: str) -> tuple[int, ...]:
        """Named errors for what would otherwise be a silent number. Returns the absent ids."""
        if not has_values(n):
            return ()
        if not bool(torch.stack([t.isfinite().all() for t in (self.first, self.second, self.weight)]).all()):
            raise DataError(
                "the latents, probabilities or weights hold NaN or infinite values",
                expected="finite numbers",
                fix="drop those rows first: keep = x.isfinite().all(-1)",
            )
        dim = self.first.shape[1]
        pooled = covariance == "tied"
        need = {"full": dim + 1, "tied": 1, "ledoit_wolf": 3}.get(covariance, 2)
        counts = n.tolist()
        absent = tuple(g for g, w in enumerate(self.weight.tolist()) if w <= 0)
        few = {g: c for g, c in enumerate(counts) if g not in absent and c < need - 1e-6}
        present = len(counts) - len(absent)
        if pooled and sum(counts) - present < dim:
            few = {g: c for g, c in enumerate(counts) if g not in absent}
            need = math.ceil((dim + present) / max(1, present))
        if few or (absent and missing == "raise"):
            short = few | (dict.fromkeys(absent, 0.0) if missing == "raise" else {})
            described = ", ".join(f"{_name(groups, g)}: {c:.4g}" for g, c in sorted(short.items()))
            raise DataError(
                f"too few samples for a {covariance} covariance in {dim} dimensions",
                expected=f"at least {need} effective samples in each group",
                got=described,
                fix="label more latents; or use covariance='ledoit_wolf' or 'tied'; or fit in a subspace; or pass "
                "missing='skip' and fill the empty groups with compose()",
            )
        return absent


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
            log_p = _component_log_prob(model, x[rows])
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


# --- using the model --------------------------------------------------------------------------------------------


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
    parts = [_component_log_prob(model, chunk).logsumexp(2) for chunk in flat.split(rows)]
    return torch.cat(parts).reshape(*x.shape[:-1], model.num_groups)


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
    pooled = shrink(pooled, _oas_intensity(pooled, weight.sum().view(1)))
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


def shrink(covariance: Tensor, intensity: Tensor) -> Tensor:
    """(1 − s)·Σ + s·(tr Σ / d)·I for covariances [..., d, d] and intensities s [...]."""
    dim = covariance.shape[-1]
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    s = intensity[..., None, None]
    return (1 - s) * covariance + s * scale[..., None, None] * eye


# --- details ------------------------------------------------------------------------------------------------------


def _component_log_prob(model: GroupGaussians, x: Tensor) -> Tensor:
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


def _oas_intensity(covariance: Tensor, n: Tensor) -> Tensor:
    """Oracle approximating shrinkage, eq. 23 of Chen et al. 2010, for covariances [G, d, d]."""
    dim = covariance.shape[-1]
    alpha = covariance.square().mean((-2, -1))
    mu_sq = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).square()
    numerator = alpha + mu_sq
    denominator = (n + 1) * (alpha - mu_sq / dim)
    ratio = numerator / denominator.clamp_min(1e-300)
    return torch.where(denominator <= 0, torch.ones_like(ratio), ratio.clamp_max(1))


def _ledoit_wolf_intensity(covariance: Tensor, n: Tensor, quartic: Tensor) -> Tensor:
    """Ledoit & Wolf 2004 (Journal of Multivariate Analysis 88), from E‖x−μ‖⁴ and the covariance."""
    dim = covariance.shape[-1]
    norm_sq = covariance.square().sum((-2, -1))
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    delta = (norm_sq - trace.square() / dim) / dim
    beta = ((quartic - norm_sq) / (dim * n.clamp_min(1e-300))).minimum(delta)
    return torch.where(delta > 0, beta / delta.clamp_min(1e-300), torch.zeros_like(beta)).clamp(0, 1)


def _add_gram(total: Tensor, a: Tensor, b: Tensor, blocks: int = 4) -> None:
    """total += aᵀb where the result is symmetric: only the upper blocks are multiplied, the rest is mirrored."""
    dim = a.shape[1]
    size = dim if dim < 128 else -(-dim // blocks)
    for i in range(0, dim, size):
        j = min(i + size, dim)
        block = a[:, i:j].T @ b[:, i:]
        total[i:j, i:] += block
        total[j:, i:j] += block[:, j - i :].T


def _outer(factor: Tensor) -> Tensor:
    return factor @ factor.transpose(-2, -1)


def _slices(n: int, size: int) -> Iterable[slice]:
    return (slice(i, min(i + size, n)) for i in range(0, n, size))


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


def _check_estimator(covariance: str, moments: GroupMoments) -> None:
    if covariance not in get_args(Covariance):
        raise DataError(f"unknown covariance {covariance!r}", expected=", ".join(get_args(Covariance)), got=covariance)
    if moments.diagonal != (covariance == "diagonal"):
        raise DataError(
            f"these moments cannot give a {covariance} covariance",
            expected="GroupMoments.empty(…, diagonal=True) for diagonal covariances, diagonal=False for all others",
            got=f"diagonal={moments.diagonal}",
        )


def _name(groups: Groups | None, g: int) -> str:
    return groups.name(g) if groups is not None and g < len(groups) else f"group {g}"


def _refuse_singular(singular: Tensor, groups: Groups | None, covariance: str, absent: tuple[int, ...]) -> None:
    if not has_values(singular):
        return
    bad = [g for g, s in enumerate(singular.tolist()) if s and g not in absent]
    if bad:
        raise DataError(
            f"the {covariance} covariance is singular",
            expected="samples that vary in every direction",
            got=", ".join(_name(groups, g) for g in bad) if covariance != "tied" else "the pooled covariance",
            fix="drop constant or repeated dimensions, project first, or use covariance='ledoit_wolf' or 'oas'",
        )


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
