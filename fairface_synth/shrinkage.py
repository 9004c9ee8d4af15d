"""Covariances shrunk towards a scaled identity, and by how much: Ledoit & Wolf, OAS."""

from __future__ import annotations

import torch
from torch import Tensor


def shrink(covariance: Tensor, intensity: Tensor) -> Tensor:
    """(1 − s)·Σ + s·(tr Σ / d)·I for covariances [..., d, d] and intensities s [...]."""
    dim = covariance.shape[-1]
    scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(dim, dtype=covariance.dtype, device=covariance.device)
    s = intensity[..., None, None]
    return (1 - s) * covariance + s * scale[..., None, None] * eye


def oas_intensity(covariance: Tensor, n: Tensor) -> Tensor:
    """Oracle approximating shrinkage, eq. 23 of Chen et al. 2010, for covariances [G, d, d]."""
    dim = covariance.shape[-1]
    alpha = covariance.square().mean((-2, -1))
    mu_sq = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).square()
    numerator = alpha + mu_sq
    denominator = (n + 1) * (alpha - mu_sq / dim)
    ratio = numerator / denominator.clamp_min(1e-300)
    return torch.where(denominator <= 0, torch.ones_like(ratio), ratio.clamp_max(1))


def ledoit_wolf_intensity(covariance: Tensor, n: Tensor, quartic: Tensor) -> Tensor:
    """Ledoit & Wolf 2004 (Journal of Multivariate Analysis 88), from E‖x−μ‖⁴ and the covariance."""
    dim = covariance.shape[-1]
    norm_sq = covariance.square().sum((-2, -1))
    trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
    delta = (norm_sq - trace.square() / dim) / dim
    beta = ((quartic - norm_sq) / (dim * n.clamp_min(1e-300))).minimum(delta)
    return torch.where(delta > 0, beta / delta.clamp_min(1e-300), torch.zeros_like(beta)).clamp(0, 1)
