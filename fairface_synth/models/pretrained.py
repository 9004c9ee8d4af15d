"""What the wrapped networks share: checking and resizing their images, fitting a state dict into them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ShapeError


def check_images(images: Tensor, device: torch.device | None = None) -> None:
    """ShapeError unless images are float [n, 3, H, W], on `device` if one is given."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape[2:]:
        raise ShapeError(
            "these are not images",
            expected="[n, 3, H, W] float RGB in [-1, 1]",
            got=f"{list(images.shape)} {str(images.dtype).removeprefix('torch.')}",
            fix="for 8-bit images [n, H, W, 3]: images.permute(0, 3, 1, 2).float() / 127.5 - 1",
        )
    if device is not None and images.device != device:
        raise ShapeError(
            "images and model lie apart",
            expected=f"images on {device}",
            got=images.device,
            fix="move one of them with .to(device)",
        )


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Antialiased bilinear; images that have the size already are passed through."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def device_of(module: nn.Module) -> torch.device:
    """Device of a module's parameters."""
    return next(module.parameters()).device


def read_state(path: Path, fix: str) -> dict[str, Tensor]:
    """A file's state dict, without DataParallel's "module." before every name."""
    if not path.is_file():
        raise CheckpointError("no such file", expected="a state dict", got=str(path), fix=fix)
    from .checkpoints import read_state_dict

    state = read_state_dict(path)
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_into(net: nn.Module, state: Mapping[str, Tensor], source: Any, name: str) -> None:
    """Give `net` (on the meta device) these weights; CheckpointError where names or shapes do not fit."""
    expected = net.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or unexpected or shapes:
        found = {"missing": missing, "unexpected": unexpected, "shapes": shapes}
        raise CheckpointError(
            f"{source} is not a state dict of {name}",
            expected=f"{len(expected)} tensors of {name}",
            got="; ".join(f"{kind}: {_first(keys)}" for kind, keys in found.items() if keys),
            fix="pass the model's own state dict: torch.save(model.state_dict(), path)",
        )
    counters = (key for key in expected if key.endswith("num_batches_tracked"))  # absent from old files
    zeros = {key: torch.zeros((), dtype=torch.long) for key in counters}
    net.load_state_dict({**zeros, **state}, assign=True)


def _first(keys: list[str], count: int = 3) -> str:
    more = f" and {len(keys) - count} more" if len(keys) > count else ""
    return ", ".join(keys[:count]) + more
