"""Streaming moments of groups: updated chunk by chunk, merged across machines, turned into Gaussians at the end."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, ShapeError
from .gaussians import GroupGaussians
from .groups import Groups
from .shrinkage import ledoit_wolf_intensity, oas_intensity, shrink

Covariance = Literal["full", "diagonal", "tied", "ledoit_wolf", "oas"]


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
            intensity = oas_intensity(matrix, n)
        else:
            intensity = ledoit_wolf_intensity(matrix, n, self.quartic / weight)
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


# --- details -------------------------------------------------------------------------------------------------------


def _add_gram(total: Tensor, a: Tensor, b: Tensor, blocks: int = 4) -> None:
    """total += aᵀb where the result is symmetric: only the upper blocks are multiplied, the rest is mirrored."""
    dim = a.shape[1]
    size = dim if dim < 128 else -(-dim // blocks)
    for i in range(0, dim, size):
        j = min(i + size, dim)
        block = a[:, i:j].T @ b[:, i:]
        total[i:j, i:] += block
        total[j:, i:j] += block[:, j - i :].T


def _check_estimator(covariance: str, moments: GroupMoments) -> None:
    if covariance not in get_args(Covariance):
        raise DataError(f"unknown covariance {covariance!r}", expected=", ".join(get_args(Covariance)), got=covariance)
    if moments.diagonal != (covariance == "diagonal"):
        raise DataError(
            f"these moments cannot give a {covariance} covariance",
            expected="GroupMoments.empty(…, diagonal=True) for diagonal covariances, diagonal=False for all others",
            got=f"diagonal={moments.diagonal}",
        )


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


def _name(groups: Groups | None, g: int) -> str:
    return groups.name(g) if groups is not None and g < len(groups) else f"group {g}"
