"""What the StyleGAN models have in common beside their layers: configuration, precision, mapping, checks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ShapeError
from .layers import REQUIRED, MappingNetwork, Rule, check_tensor, read_config
from .protocols import NoiseMode

GENERATOR_RULES = {
    "z_dim": Rule(REQUIRED, low=0, high=16384),
    "c_dim": Rule(REQUIRED, low=0, high=16384),
    "w_dim": Rule(REQUIRED, low=1, high=16384),
    "img_resolution": Rule(REQUIRED, low=4, high=8192),
    "img_channels": Rule(REQUIRED, low=1, high=1024),
}


def split_config(
    config: Mapping[str, Any], top: Mapping[str, Rule], parts: Mapping[str, Mapping[str, Rule]], where: str
) -> dict[str, Any]:
    """Check a nested configuration: `top` beside one dictionary per name in `parts`."""
    result = read_config({k: v for k, v in config.items() if k not in parts}, top, where)
    for name, rules in parts.items():
        given = config.get(name) or {}
        if not isinstance(given, Mapping):
            raise CheckpointError(f"{where}: {name} is no dictionary", got=type(given).__name__)
        result[name] = read_config(given, rules, f"{where}, {name}")
    return result


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    if device.type != "cpu":
        return True
    checks = [getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported")]
    known = [bool(check()) for check in checks if check is not None]
    return any(known) or not known


class StyleGANModule(nn.Module):
    """What the models here share: a configuration, a compute dtype, frozen evaluation."""

    kind = ""
    config: dict[str, Any]
    compute_dtype: torch.dtype = torch.float32

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> StyleGANModule:
        """The network with fresh weights; see the class's own arguments."""
        return cls(config)

    def set_dtype(self, dtype: torch.dtype) -> StyleGANModule:
        """float32, float64, or bfloat16: convolutions in bfloat16 on hardware that has it, the rest in float32."""
        if dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise CheckpointError(
                "this dtype is not supported",
                expected="torch.float32, torch.float64 or torch.bfloat16",
                got=dtype,
                fix="use torch.bfloat16 for speed: it has float32's range, so nothing overflows",
            )
        stored = torch.float64 if dtype == torch.float64 else torch.float32
        if any(p.dtype != stored for p in self.parameters()):
            self.to(stored)
        self.compute_dtype = dtype
        return self

    def _dtypes(self, like: Tensor) -> tuple[torch.dtype, torch.dtype]:
        """(precision of everything else, precision of the convolutions)."""
        if self.compute_dtype == torch.bfloat16 and native_bf16(like.device):
            return like.dtype, torch.bfloat16
        return like.dtype, like.dtype

    def freeze(self) -> StyleGANModule:
        """Evaluation mode, no parameter requires a gradient."""
        return self.eval().requires_grad_(False)


class StyleGANGenerator(StyleGANModule):
    """map and the checks that both generators share."""

    mapping: MappingNetwork
    z_dim: int
    c_dim: int
    w_dim: int
    num_ws: int
    resolution: int

    @property
    def w_avg(self) -> Tensor:
        """Mean latent [w_dim], the point that truncation pulls towards."""
        return self.mapping.w_avg

    def map(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """z [n, z_dim] (and c [n, c_dim] when conditional) → w [n, num_ws, w_dim].

        Args:
            truncation_psi: 1 leaves w, 0 gives w_avg.
            truncation_cutoff: truncate only the first so many layers.

        Raises:
            ShapeError: z or c has the wrong shape, or c is missing or not wanted.
        """
        return self.mapping.broadcast(z, c, truncation_psi, truncation_cutoff)

    def _check_w(self, w: Tensor, noise: str) -> Tensor:
        check_tensor(
            w, ("n", self.num_ws, self.w_dim), "w", "z: map(z) first; W [n, w_dim]: ffs.to_layers(generator, w)"
        )
        if noise not in ("const", "random", "none"):
            raise ShapeError("noise is unknown", expected="'const', 'random' or 'none'", got=repr(noise))
        return w.to(self.w_avg.dtype)

    def forward(self, z: Tensor, c: Tensor | None = None, truncation_psi: float = 1.0) -> Tensor:
        """z → images in one call."""
        return self.synthesize(self.map(z, c, truncation_psi))

    @abstractmethod
    def synthesize(self, w: Tensor, noise: NoiseMode = "const", rng: torch.Generator | None = None) -> Tensor:
        """w [n, num_ws, w_dim] → images [n, img_channels, H, W]."""
