"""Supervised linear subspaces of a latent space: fit, project, lift back.

A subspace has coordinates c = Pᵀ(w − μ). Lifting puts a coordinate back into latent space,
w = μ + L·c + r, with a residual r that the coordinates say nothing about. For every method PᵀL = I and
Pᵀr = 0, so project(lift(c)) = c.

Which disentangled projection Rahimi et al. (IJCB 2023) use is not known; none of these is claimed to be theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .artifacts import Artifact, has_values
from .errors import DataError, ShapeError
from .gaussian_fitting import fit_gaussians
from .groups import Groups
from .moments import GroupMoments
from .shrinkage import shrink

Method = Literal["lda", "normals", "pca", "identity"]
Residual = Literal["mean", "resample"]


@dataclass(frozen=True, repr=False, eq=False)
class Subspace(Artifact):
    """A fitted linear subspace of a latent space of D dimensions, with m coordinates.

    Attributes:
        mean: μ [D].
        components: P [D, m]; coordinates are c = Pᵀ(w − μ).
        lifting: L [D, m], the conditional mean of w given its coordinates: L = S·P·(PᵀSP)⁻¹ under covariance S.
        directions: [D, m], how an edit moves a *given* latent when one coordinate changes by 1. L, but for
            `normals` the dual basis P(PᵀP)⁻¹: each column leaves all other coordinates as they are, which is
            InterFaceGAN's conditional manipulation (Shen et al. 2020, §3.2).
        factor: Cholesky factor of S [D, D]: the pooled within-group covariance (of all samples for `pca`).
        method: "lda", "normals", "pca" or "identity".
        names: what each coordinate is, where it has a meaning.
        shape: shape of one latent: (d,) for Z and W, (num_ws, d) for W+.
    """

    kind: ClassVar[str] = "subspace"

    mean: Tensor
    components: Tensor
    lifting: Tensor
    directions: Tensor
    factor: Tensor
    method: str
    names: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()

    @property
    def dim(self) -> int:
        """Number of coordinates m."""
        return self.components.shape[1]


def fit_subspace(
    w: Tensor,
    labels: Tensor | Mapping[str, Tensor] | None = None,
    method: Method = "lda",
    *,
    dim: int | None = None,
    shrinkage: float | Literal["oas"] = "oas",
    groups: Groups | None = None,
    iterations: int = 200,
) -> Subspace:
    """Fit a linear subspace in which groups separate.

    Args:
        w: latents [n, d] (Z or W) or [n, num_ws, d] (W+, flattened: mind the (num_ws·d)² covariance).
        labels: for one labelling, hard ids [n] (−1 "unsure" is left out) or probabilities [n, k]; for several, a
            mapping from attribute to either. "lda" on a mapping separates the product of its attributes. "pca" and
            "identity" need none.
        method:
            "lda": Fisher's discriminants for k groups, at most k − 1 of them, by falling separation; within-group
                covariance shrunk (Friedman 1989).
            "normals": the unit normals of linear classifiers, one for a two-valued attribute and one per value
                otherwise, as InterFaceGAN has them (Shen et al., CVPR 2020; logistic instead of SVM); the lift's
                `directions` are orthogonalised against the other attributes.
            "pca": principal components, `dim` of them.
            "identity": no projection: coordinates are w − μ. The null baseline.
        dim: number of coordinates to keep ("lda", "pca").
        shrinkage: weight of the scaled identity in the within-group covariance, in [0, 1], or "oas" to choose it
            (Chen et al. 2010).
        groups: names for the coordinates of "normals", taken from its attributes.
        iterations: of the classifier fit.

    Raises:
        ShapeError, DataError, GroupError: shapes that do not fit, NaN, groups without samples, a singular covariance.
    """
    if method not in get_args(Method):
        raise DataError(f"unknown method {method!r}", expected=", ".join(get_args(Method)), got=method)
    x, shape = _flatten_latents(w)
    if labels is None and method in ("lda", "normals"):
        raise DataError(f"method {method!r} needs labels", expected="ids [n], probabilities [n, k] or a mapping")
    if len(x) == 0:
        raise DataError("no latents", expected="n ≥ 2", got=0)
    named = _as_probabilities(labels, len(x), x, groups)
    joint = _product(named, x)
    mean, within, total = _covariances(x, joint, shrinkage)
    factor = _cholesky(within if method != "pca" else total)
    if method == "lda":
        components = _discriminants(x, joint, mean, within, dim)
        names: tuple[str, ...] = tuple(f"LD{i + 1}" for i in range(components.shape[1]))
    elif method == "normals":
        components, names = _normals(x, named, mean, within, groups, iterations)
    elif method == "pca":
        components, within = _principal(total, dim), total
        names = tuple(f"PC{i + 1}" for i in range(components.shape[1]))
    else:
        components, names = torch.eye(len(mean), dtype=mean.dtype, device=mean.device), ()
    lifting = within @ components
    lifting = torch.linalg.solve(components.T @ lifting, lifting, left=False)
    directions = torch.linalg.pinv(components).T if method == "normals" else lifting
    return Subspace(
        mean=mean,
        components=components,
        lifting=lifting,
        directions=directions,
        factor=factor,
        method=method,
        names=names,
        shape=shape,
    ).to(dtype=torch.promote_types(w.dtype, torch.float32))


def project(subspace: Subspace, w: Tensor) -> Tensor:
    """Coordinates of latents: w [..., *shape] → [..., m]."""
    return (_flatten_like(subspace, w) - subspace.mean) @ subspace.components


def lift(
    subspace: Subspace,
    coordinates: Tensor,
    residual: Residual | Tensor = "mean",
    rng: torch.Generator | None = None,
    *,
    noise: Tensor | None = None,
) -> Tensor:
    """Latents with the given coordinates: project(lift(c)) = c for every residual policy.

    Args:
        subspace: the fitted subspace.
        coordinates: [..., m].
        residual:
            "mean": the expected latent, without any residual: every sample of a group looks alike beyond its
                coordinates.
            "resample": a residual drawn from the pooled within-group covariance: keeps the prior's diversity.
            a tensor of latents [..., *shape]: keep theirs; this is an edit that moves along `directions` alone.
        rng: for "resample".
        noise: standard normals [..., D] for "resample" instead of drawing them.

    Returns:
        [..., *shape].
    """
    if coordinates.shape[-1:] != (subspace.dim,):
        raise ShapeError("wrong coordinates", expected=f"[..., {subspace.dim}]", got=list(coordinates.shape))
    lead, coordinates = coordinates.shape[:-1], coordinates.to(subspace.mean.dtype)
    if isinstance(residual, Tensor):
        given = _flatten_like(subspace, residual)
        change = coordinates - (given - subspace.mean) @ subspace.components
        w = given + change @ subspace.directions.T
    elif residual in ("mean", "resample"):
        w = subspace.mean + coordinates @ subspace.lifting.T
        if residual == "resample":
            size = len(subspace.mean)
            if noise is None:
                noise = torch.randn(*lead, size, generator=rng, dtype=w.dtype, device=w.device)
            elif noise.shape != (*lead, size):
                raise ShapeError("noise does not fit", expected=[*lead, size], got=list(noise.shape))
            within = noise.to(w.dtype) @ subspace.factor.T
            w = w + within - (within @ subspace.components) @ subspace.lifting.T
    else:
        raise DataError("unknown residual policy", expected='"mean", "resample" or latents', got=repr(residual))
    return w.unflatten(-1, subspace.shape) if len(subspace.shape) > 1 else w


# --- details ------------------------------------------------------------------------------------------------------


def _flatten_latents(w: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    if w.ndim not in (2, 3) or not w.is_floating_point():
        raise ShapeError(
            "not a batch of latents",
            expected="[n, d] (Z, W) or [n, num_ws, d] (W+)",
            got=f"{list(w.shape)} {w.dtype}",
        )
    return w.flatten(1).double(), tuple(w.shape[1:])


def _flatten_like(subspace: Subspace, w: Tensor) -> Tensor:
    if w.shape[-len(subspace.shape) :] != subspace.shape:
        raise ShapeError(
            "these latents do not belong to this subspace",
            expected=f"[..., {', '.join(map(str, subspace.shape))}]",
            got=list(w.shape),
        )
    return w.flatten(-len(subspace.shape)).to(subspace.mean.dtype)


def _as_probabilities(
    labels: Tensor | Mapping[str, Tensor] | None, n: int, like: Tensor, groups: Groups | None
) -> dict[str, Tensor]:
    """{attribute: weights [n, k]}, a row of zeros for unsure samples."""
    if labels is None:
        return {"all": torch.ones(n, 1, dtype=like.dtype, device=like.device)}
    named = labels if isinstance(labels, Mapping) else {"group": labels}
    result = {}
    for name, label in named.items():
        if label.shape[:1] != (n,) or label.ndim != (2 if label.is_floating_point() else 1):
            raise ShapeError(
                f"labels {name!r} do not fit the latents",
                expected=f"ids [{n}] or probabilities [{n}, k]",
                got=f"{list(label.shape)} {label.dtype}",
            )
        if label.is_floating_point():
            if has_values(label) and bool((label < 0).any()):
                raise DataError(f"negative probabilities in labels {name!r}", fix="logits: use logits.softmax(-1)")
            result[name] = label.to(like.dtype)
            continue
        values = torch.arange(_count(label, name, groups, isinstance(labels, Mapping)), device=label.device)
        result[name] = (label.unsqueeze(1) == values).to(like.dtype)
    return result


def _count(label: Tensor, name: str, groups: Groups | None, mapping: bool) -> int:
    """How many values hard labels take: known from the groups, else one look at the largest."""
    if groups is not None:
        return len(groups.attributes[name]) if mapping else len(groups)
    if not has_values(label):
        raise DataError("the number of label values is unknown", fix="pass groups=")
    if int(label.min()) < -1:
        raise DataError("labels out of range", expected="-1 (unsure), 0, 1, …", got=int(label.min()))
    return int(label.max()) + 1


def _product(named: Mapping[str, Tensor], like: Tensor) -> Tensor:
    joint = torch.ones(len(like), 1, dtype=like.dtype, device=like.device)
    for p in named.values():
        joint = (joint.unsqueeze(2) * p.unsqueeze(1)).flatten(1)
    return joint


def _covariances(x: Tensor, joint: Tensor, shrinkage: float | str) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, pooled within-group covariance and total covariance, both shrunk alike."""
    if isinstance(shrinkage, str) and shrinkage != "oas":
        raise DataError("unknown shrinkage", expected='a number in [0, 1], or "oas"', got=repr(shrinkage))
    one = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    used = joint.sum(1)
    whole = fit_gaussians(x, one, used, covariance="oas" if shrinkage == "oas" else "full")
    mean, total = whole.means[0], whole.covariances[0]
    moments = GroupMoments.empty(joint.shape[1], mean).update(x, joint)
    means = mean + moments.first / moments.weight.clamp_min(1e-300).unsqueeze(1)
    within = moments.moved(means).second.sum(0) / moments.weight.sum()
    if shrinkage == "oas":
        return mean, shrink(within, whole.shrinkage[0, 0]), total
    if not 0 <= float(shrinkage) <= 1:
        raise DataError("shrinkage out of range", expected='a number in [0, 1], or "oas"', got=shrinkage)
    intensity = torch.tensor(float(shrinkage), dtype=x.dtype, device=x.device)
    return mean, shrink(within, intensity), shrink(total, intensity)


def _cholesky(covariance: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(covariance)
    if has_values(info) and bool(info > 0):
        raise DataError(
            "the covariance of the latents is singular",
            expected="latents that vary in every direction",
            fix="use shrinkage='oas' or a value above 0",
        )
    return factor


def _discriminants(x: Tensor, joint: Tensor, mean: Tensor, within: Tensor, dim: int | None) -> Tensor:
    """Fisher's discriminants P [D, m] with PᵀSP = I, by falling between-group variance."""
    mass = joint.sum(0)
    group_means = (joint.T @ x) / mass.clamp_min(1e-300).unsqueeze(1) - mean
    present = int((mass > 0).sum()) if has_values(mass) else joint.shape[1]
    if present < 2:
        raise DataError("LDA needs at least two groups with samples", expected="k ≥ 2", got=present)
    rank = min(present - 1, x.shape[1])
    keep = _check_dim(dim, rank)
    factor = torch.linalg.cholesky(within)
    scaled = group_means * (mass / mass.sum()).sqrt().unsqueeze(1)
    whitened = torch.linalg.solve_triangular(factor, scaled.T, upper=False)
    left = torch.linalg.svd(whitened, full_matrices=False).U[:, :keep]
    return torch.linalg.solve_triangular(factor.T, left, upper=True)


def _principal(total: Tensor, dim: int | None) -> Tensor:
    keep = _check_dim(dim, len(total))
    return torch.linalg.eigh(total).eigenvectors.flip(1)[:, :keep]


def _check_dim(dim: int | None, most: int) -> int:
    if dim is not None and not 1 <= dim <= most:
        raise DataError("dim out of range", expected=f"1 … {most}", got=dim)
    return dim or most


def _normals(
    x: Tensor,
    named: Mapping[str, Tensor],
    mean: Tensor,
    within: Tensor,
    groups: Groups | None,
    iterations: int,
) -> tuple[Tensor, tuple[str, ...]]:
    """Unit normals [D, m] of one-against-rest logistic classifiers, and what each points to."""
    columns, names = [], []
    for attribute, p in named.items():
        values = groups.attributes.get(attribute) if groups is not None else None
        for k in range(p.shape[1]) if p.shape[1] > 2 else (0,):
            weight = p.sum(1)
            _check_two_sided(p[:, k], weight, f"{attribute}={values[k] if values else k}")
            columns.append(_logistic(x, p[:, k] / weight.clamp_min(1e-12), weight, mean, within, iterations))
            names.append(f"{attribute}={values[k] if values else k}")
    normals = torch.stack(columns, dim=1)
    if normals.shape[1] > normals.shape[0]:
        raise DataError("more normals than latent dimensions", expected=f"≤ {normals.shape[0]}", got=normals.shape[1])
    return normals / normals.norm(dim=0), tuple(names)


def _check_two_sided(target: Tensor, weight: Tensor, name: str) -> None:
    if has_values(target) and not 0 < float(target.sum()) < float(weight.sum()):
        raise DataError(
            f"no direction can be fitted to {name}",
            expected="samples with and without it",
            got="none without" if float(target.sum()) > 0 else "none with",
            fix="label more latents, lower the confidence gate, or leave that attribute out",
        )


def _logistic(
    x: Tensor,
    target: Tensor,
    weight: Tensor,
    mean: Tensor,
    within: Tensor,
    iterations: int,
    ridge: float = 1e-3,
) -> Tensor:
    """Weights of a ridge-penalised logistic regression with soft targets.

    Böhning & Lindsay's (1988) bound replaces the Hessian by a constant matrix: every step is two products, no line
    search and no sync; Nesterov momentum speeds it up.
    """
    factor = torch.linalg.cholesky(within)
    white = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).T
    white = torch.cat((white, torch.ones_like(white[:, :1])), dim=1)
    n = weight.sum()
    bound = 0.25 * (white.T @ (weight.unsqueeze(1) * white)) / n
    penalty = torch.full_like(bound[0], ridge)
    penalty[-1] = 0
    solve = torch.linalg.cholesky(bound + torch.diag(penalty + 1e-9))
    theta = ahead = torch.zeros_like(penalty)
    for step in range(iterations):
        error = weight * (torch.sigmoid(white @ ahead) - target)
        gradient = white.T @ error / n + penalty * ahead
        new = ahead - torch.cholesky_solve(gradient.unsqueeze(1), solve).squeeze(1)
        ahead = new + step / (step + 3) * (new - theta)
        theta = new
    return torch.linalg.solve_triangular(factor.T, theta[:-1].unsqueeze(1), upper=True).squeeze(1)
