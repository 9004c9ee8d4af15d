"""Fingerprints of models and settings: sixteen hexadecimal digits that tell whether a file was made with this one.

Models with weights are known by their weights, exactly. Plain functions have none: they are known by what they do on
two fixed inputs, coarsely, so that another batch size or device gives the same digits.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import DataError
from .groups import Groups
from .latents import draw_latents, normals
from .models.protocols import Generator

_SETTINGS = ("config", "attributes", "size", "min_face", "factor", "thresholds", "select")  # of modules, beside weights
_FIELDS = ("z_dim", "w_dim", "num_ws", "c_dim", "resolution")
_GRID, _PIXELS, _NUMBERS = 0.01, 4, 8


def fingerprint(value: Any, probe: Callable[[], Any] | None = None) -> str:
    """Sixteen hexadecimal digits (64 bits of BLAKE2b) of a model or of settings; the same on every device.

    What counts: of a module its class name, its state dict (names, types, shapes, bytes) and the settings that this
    library's modules have beside it (`config`, `attributes`, a detector's sizes and thresholds); of dataclasses (all
    that is fitted here), mappings, lists and tuples everything in them; of tensors, arrays and plain values type and
    value. So the same weights in bfloat16 have other digits, and a module's code or a user's own attributes do not
    count.

    Args:
        value: module, `Artifact` or other dataclass, `Groups`, tensor, array, plain value, None, or any nesting.
        probe: for objects without weights: gives what the object does on some fixed input, tensors or nestings of
            them. Its numbers are rounded to a grid of 0.01 (of images: means over a 4 × 4 grid; of longer rows:
            eight fixed projections), so small differences of arithmetic hardly ever show, and neither do changes
            that small. See `fingerprint_model`, `fingerprint_generator`.

    Raises:
        DataError: an object without weights, and no probe.
    """
    digest = hashlib.blake2b(digest_size=8)
    value = getattr(value, "_orig_mod", value) if isinstance(value, nn.Module) else value  # what torch.compile wraps
    if probe is not None and value is not None and not _has_weights(value):
        _add(digest, type(value).__qualname__)
        with torch.no_grad():
            _add(digest, _coarse(probe()))
    else:
        _add(digest, value)
    return digest.hexdigest()


def fingerprint_generator(generator: Generator) -> str:
    """Fingerprint of any generator: its weights, or what it makes of two fixed latents.

    Two generators without weights share their digits where sizes, `w_avg` and those two images agree to about 0.01:
    enough to notice another model, not a change of a few parameters or of single pixels. Rounding may also make digits
    differ where nothing changed: hardly ever by float32's differences between devices, often by those of TF32 and
    bfloat16.
    """

    def probe() -> Any:
        z = draw_latents(generator, 0, 0, 2)
        c = torch.eye(2, generator.c_dim, device=z.device) if generator.c_dim else None
        images = generator.synthesize(generator.map(z, c))
        return [*(getattr(generator, name) for name in _FIELDS), generator.w_avg[None], images]

    return fingerprint(generator, probe)


def fingerprint_model(model: Any, resolution: int = 64, device: torch.device | str | None = None) -> str:
    """Fingerprint of a labeller, judge, embedder or detector: its weights, or what it says of two fixed images.

    The limits of `fingerprint_generator` hold. None has a fingerprint too.

    Args:
        model: images [n, 3, H, W] → tensors, or mappings or dataclasses of tensors.
        resolution: side of the two images in pixels, where the model has no weights.
        device: where a model without weights takes its images; None: the CPU.
    """

    def probe() -> Any:
        named = {name: getattr(model, name) for name in ("attributes", "dim") if hasattr(model, name)}
        return [named, model(_test_images(resolution, device))]

    return fingerprint(model, probe)


def _test_images(resolution: int, device: torch.device | str | None) -> Tensor:
    """Two smooth images [2, 3, H, H] in [-1, 1], made on the CPU: the same everywhere."""
    coarse = normals(0, torch.arange(2), 3 * 8 * 8).view(2, 3, 8, 8)
    return F.interpolate(coarse, size=(resolution, resolution), mode="bilinear").tanh().to(device)


def _has_weights(value: Any) -> bool:
    return isinstance(value, nn.Module) and bool(value.state_dict())


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _coarse(x: Any) -> Any:
    """The same nesting with rounded numbers in place of tensors."""
    if isinstance(x, Tensor):
        return _rounded(x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return {f.name: _coarse(getattr(x, f.name)) for f in dataclasses.fields(x)}
    if isinstance(x, Mapping):
        return {key: _coarse(value) for key, value in x.items()}
    return [_coarse(value) for value in x] if isinstance(x, (list, tuple)) else x


def _rounded(x: Tensor) -> Tensor:
    """int64 multiples of the grid, few a row. The shift keeps round numbers, which models like, off the edges."""
    x = x.detach().double()
    if x.ndim == 4:
        x = F.adaptive_avg_pool2d(x, _PIXELS)
    rows = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1) if x.ndim else x.view(1, 1)
    if x.ndim < 4 and rows.shape[1] > _NUMBERS:
        rows = rows @ normals(1, torch.arange(rows.shape[1], device=x.device), _NUMBERS).double()
    return (rows / _GRID + 0.382).floor().nan_to_num(2**31, 2**32, -(2**32)).long()


def _add(digest: Any, value: Any) -> None:
    """Feed a value to the digest with its type and length, so that different nestings differ."""

    def put(kind: str, data: bytes | memoryview) -> None:
        digest.update(f"{kind} {len(data)}\n".encode())
        digest.update(data)

    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype, np.generic)):
        plain = value.item() if isinstance(value, np.generic) else value
        put(type(plain).__name__, repr(plain).encode())
    elif isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach().cpu().contiguous()
        put("tensor", f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    elif _has_weights(value):
        settings = {name: getattr(value, name, None) for name in _SETTINGS}
        _add(
            digest, [type(value).__qualname__, value.state_dict(), {k: v for k, v in settings.items() if _is_plain(v)}]
        )
    elif isinstance(value, Groups):
        _add(digest, ["Groups", list(value.attributes.items())])
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        put("dataclass", type(value).__qualname__.encode())
        _add(digest, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        put("mapping", str(len(value)).encode())
        for key in sorted(value, key=repr):
            _add(digest, key)
            _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        put("sequence", str(len(value)).encode())
        for item in value:
            _add(digest, item)
    else:
        raise DataError(
            "this has no weights to know it by",
            expected="a module with weights, something fitted, tensors, plain values, or nestings of them",
            got=f"{type(value).__module__}.{type(value).__qualname__}",
            fix="fingerprint_model, fingerprint_generator, or probe=, look at what it does instead",
        )
