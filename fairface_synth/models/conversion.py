"""From foreign checkpoints to (kind, config, tensors): NVIDIA's networks and rosinality's state dictionaries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError
from .base import GENERATOR_RULES
from .layers import REQUIRED, brief
from .safe_pickle import Network
from .stylegan2 import strip_runtime


@dataclass(frozen=True)
class Parts:
    """What a model is made of: the registered kind, its configuration, its tensors by name."""

    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]


_MAX_DEPTH, _MAX_TENSORS, _MAX_NAME, _MAX_TAPS = 32, 20_000, 500, 64


def collect_tensors(network: Network) -> dict[str, Tensor]:
    """Parameters and buffers by dotted name. Frozen layers keep their weights among the buffers.

    Raises:
        CheckpointError: a part that is used twice (shared parts could multiply without end), or nested too deep.
    """
    result: dict[str, Tensor] = {}
    _collect(network, "", result, set(), 0)
    return result


def _collect(network: Network, prefix: str, result: dict[str, Tensor], seen: set[int], depth: int) -> None:
    groups = [_dictionary(network.state, name) for name in ("_parameters", "_buffers", "_modules")]
    parts = {id(part) for part in (network.state, *groups) if part}
    if parts & seen or depth > _MAX_DEPTH:
        raise CheckpointError(
            f"{brief(prefix)} is a part of the network that is shared or nested too deep",
            expected=f"a tree of modules, at most {_MAX_DEPTH} deep",
            fix="the network is a variant with its own code, or the file is damaged",
        )
    seen |= parts
    for group in groups[:2]:
        for name, value in group.items():
            full = _name(prefix, name)
            if isinstance(value, Tensor):
                result[full] = value
            elif value is not None:
                raise CheckpointError(f"{full} is not a tensor", got=type(value).__name__)
    if len(result) > _MAX_TENSORS:
        raise CheckpointError("the network has too many tensors", expected=f"at most {_MAX_TENSORS}", got=len(result))
    for name, child in groups[2].items():
        full = _name(prefix, name)
        if isinstance(child, Network):
            _collect(child, f"{full}.", result, seen, depth + 1)
        elif child is not None:
            raise CheckpointError(f"{full} is not a network", got=type(child).__name__)


def _name(prefix: str, name: str) -> str:
    if len(prefix) + len(name) > _MAX_NAME:
        raise CheckpointError(
            "a part of the network has an unusable name",
            expected=f"at most {_MAX_NAME} characters",
            got=brief(prefix + name),
        )
    return prefix + name


def _dictionary(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = state.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise CheckpointError(f"the network's {name} is not a dictionary of names", got=type(value).__name__)
    return value


def _child(network: Network | None, *path: str) -> Network | None:
    for name in path:
        child = _dictionary(network.state, "_modules").get(name) if network is not None else None
        network = child if isinstance(child, Network) else None
    return network


def _arguments(network: Network, names: list[str]) -> dict[str, Any]:
    """The constructor's arguments by name, positional ones included."""
    args = network.state.get("_init_args", ())
    kwargs = _dictionary(network.state, "_init_kwargs")
    if not isinstance(args, (tuple, list)) or len(args) > len(names):
        raise CheckpointError(
            f"{network.class_name} was made with more positional arguments than are known",
            expected=", ".join(names),
            got=len(args) if isinstance(args, (tuple, list)) else type(args).__name__,
        )
    return dict(zip(names, args, strict=False)) | kwargs


_GENERATOR_NAMES = [*GENERATOR_RULES, "mapping_kwargs", "synthesis_kwargs"]
_DISCRIMINATOR_NAMES = [
    "c_dim", "img_resolution", "img_channels", "architecture", "channel_base", "channel_max", "num_fp16_res",
    "conv_clamp", "cmap_dim", "block_kwargs", "mapping_kwargs", "epilogue_kwargs",
]  # fmt: skip


def _plain(value: Any) -> Any:
    """numpy arrays inside arguments as lists; a filter is the largest."""
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim > 2 or any(n > _MAX_TAPS for n in value.shape):
        raise CheckpointError(
            "an array among the network's arguments is too large",
            expected=f"at most {_MAX_TAPS}×{_MAX_TAPS} numbers",
            got=brief(value.shape),
            fix="the network is a variant with its own code, or the file is damaged",
        )
    return value.tolist()


def _nested(given: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = given.pop(name, None)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: {name} is not a dictionary", got=type(value).__name__)
    return {k: _plain(v) for k, v in _dictionary({name: value}, name).items()}


def _summary(network: Network) -> str:
    names = list(_dictionary(network.state, "_modules"))[:8]
    parts = ", ".join(name[:40] for name in names) or "no parts"
    return f"class {network.class_name[:80]} with {parts}"


def _stored(layer: Network | None, name: str, default: Any) -> Any:
    """An attribute that the layer kept when it was pickled: the two repositories differ in their defaults."""
    return default if layer is None else layer.state.get(name, default)


def convert_generator(network: Network) -> Parts:
    """An official StyleGAN2 or StyleGAN3 generator.

    Raises:
        CheckpointError: it is something else, or made with arguments that are not known.
    """
    synthesis = _child(network, "synthesis")
    if synthesis is None or _child(network, "mapping") is None:
        raise CheckpointError(
            "this network is not a StyleGAN generator",
            expected="a network with the parts mapping and synthesis",
            got=_summary(network),
            fix="pass which='G_ema' for a training snapshot, or load_discriminator for a discriminator",
        )
    given = _arguments(network, _GENERATOR_NAMES)
    where = f"the generator ({network.class_name[:80]})"
    mapping = _nested(given, "mapping_kwargs", where)
    # ADA nests the synthesis arguments, the StyleGAN3 code hands them over flat.
    nested = "synthesis_kwargs" in given
    settings = _nested(given, "synthesis_kwargs", where)
    top = {k: given.pop(k) for k in list(given) if k in GENERATOR_RULES}
    settings |= {k: _plain(v) for k, v in given.items()}
    if _child(synthesis, "input") is not None:
        settings.pop("num_fp16_res", None)
        return Parts("stylegan3", {**top, "mapping": mapping, "synthesis": settings}, collect_tensors(network))
    settings = strip_runtime(settings, where)
    if "channels" in settings:
        raise CheckpointError(f"{where} was made with an argument that is not known", got="channels")
    if "conv_clamp" not in settings:
        layer = _child(synthesis, "b4", "conv1")
        settings["conv_clamp"] = _stored(layer, "conv_clamp", None if nested else 256)
    return Parts("stylegan2", {**top, "mapping": mapping, "synthesis": settings}, collect_tensors(network))


def convert_discriminator(network: Network) -> Parts:
    """An official StyleGAN2 discriminator, which StyleGAN3 uses too.

    Raises:
        CheckpointError: it is something else, or made with arguments that are not known.
    """
    if _child(network, "b4") is None or _child(network, "synthesis") is not None:
        raise CheckpointError(
            "this network is not a StyleGAN discriminator",
            expected="a network with the parts b…, b4",
            got=_summary(network),
        )
    given = _arguments(network, _DISCRIMINATOR_NAMES)
    where = f"the discriminator ({network.class_name[:80]})"
    config: dict[str, Any] = {
        "block": strip_runtime(_nested(given, "block_kwargs", where), where),
        "mapping": _nested(given, "mapping_kwargs", where),
        "epilogue": _nested(given, "epilogue_kwargs", where),
    }
    config["mapping"].pop("w_avg_beta", None)
    given = strip_runtime({k: _plain(v) for k, v in given.items()}, where)
    if "channels" in given or given.keys() & config.keys():
        raise CheckpointError(f"{where} was made with arguments that are not known", got=brief(list(given)))
    if "conv_clamp" not in given:
        size = given.get("img_resolution", REQUIRED)
        given["conv_clamp"] = _stored(_child(network, f"b{size}", "conv0"), "conv_clamp", None)
    return Parts("stylegan2-discriminator", given | config, collect_tensors(network))


# --- rosinality/stylegan2-pytorch: the same arithmetic under other names -------------------------------------------


def is_rosinality_generator(tensors: Mapping[str, Any]) -> bool:
    return "input.input" in tensors and "conv1.conv.weight" in tensors


def is_rosinality_discriminator(tensors: Mapping[str, Any]) -> bool:
    return "final_conv.0.weight" in tensors and "convs.0.0.weight" in tensors


class _Renamer:
    """Takes tensors out of a state dictionary by their old names, checking the number of dimensions."""

    def __init__(self, tensors: Mapping[str, Tensor], what: str) -> None:
        self.left = dict(tensors)
        self.what = what

    def take(self, name: str, ndim: int) -> Tensor:
        value = self.left.pop(name, None)
        if not isinstance(value, Tensor) or value.ndim != ndim:
            got = "nothing" if value is None else str(list(getattr(value, "shape", ())))
            raise CheckpointError(f"{self.what} lacks {name}", expected=f"a tensor with {ndim} dimensions", got=got)
        return value

    def kernel(self, name: str) -> Tensor:
        """A FIR filter with gain 1; the stored ones contain the gain of the resampling."""
        if name not in self.left:
            return torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
        f = self.take(name, 2).float()
        if not all(1 <= n <= _MAX_TAPS for n in f.shape):
            raise CheckpointError(
                f"{name[:80]} is no filter", expected=f"1 to {_MAX_TAPS} taps per axis", got=list(f.shape)
            )
        return f / f.sum()

    def finish(self) -> None:
        if self.left:
            raise CheckpointError(
                f"{self.what} holds tensors that are not known",
                got=", ".join(name[:40] for name in list(self.left)[:8]),
            )


def _power(count: int, what: str) -> int:
    if not 1 <= count <= 11:
        raise CheckpointError(f"{what} has an unusable number of layers", expected="1 to 11", got=count)
    return 4 << count


def _count(tensors: Mapping[str, Any], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def _modulated(src: _Renamer, old: str, new: str, scale: bool) -> tuple[dict[str, Tensor], int]:
    """Weight [1, out, in, k, k] and modulation. His scale 1/√fan_in is folded in where demodulation follows."""
    weight = src.take(f"{old}.conv.weight", 5)[0]
    fan_in = weight.shape[1] * weight.shape[2] * weight.shape[3]
    out = {
        f"{new}.weight": weight / math.sqrt(fan_in) if scale else weight,
        f"{new}.affine.weight": src.take(f"{old}.conv.modulation.weight", 2),
        f"{new}.affine.bias": src.take(f"{old}.conv.modulation.bias", 1),
    }
    return out, weight.shape[0]


def _styled(src: _Renamer, old: str, new: str, noise: int, up: bool) -> tuple[dict[str, Tensor], int]:
    out, width = _modulated(src, old, new, scale=True)
    out[f"{new}.bias"] = src.take(f"{old}.activate.bias", 1)
    out[f"{new}.noise_strength"] = src.take(f"{old}.noise.weight", 1).reshape([])
    out[f"{new}.noise_const"] = src.take(f"noises.noise_{noise}", 4)[0, 0]
    out[f"{new}.resample_filter"] = src.kernel(f"{old}.conv.blur.kernel" if up else "")
    return out, width


def _rgb(src: _Renamer, old: str, new: str) -> dict[str, Tensor]:
    out, _ = _modulated(src, old, new, scale=False)
    return out | {f"{new}.bias": src.take(f"{old}.bias", 4).flatten()}


def convert_rosinality_generator(tensors: Mapping[str, Tensor], latent_avg: Tensor | None) -> Parts:
    """rosinality's StyleGAN2 generator; the configuration is read off the shapes."""
    src = _Renamer(tensors, "this rosinality generator")
    resolution = _power(_count(tensors, r"to_rgbs\.\d+\.bias"), src.what)
    num_layers = _count(tensors, r"style\.\d+\.weight")
    out: dict[str, Tensor] = {}
    for i in range(num_layers):
        out[f"mapping.fc{i}.weight"] = src.take(f"style.{i + 1}.weight", 2)
        out[f"mapping.fc{i}.bias"] = src.take(f"style.{i + 1}.bias", 1)
    if num_layers == 0:
        raise CheckpointError(f"{src.what} has no mapping network", expected="style.1.weight, …")
    w_dim, z_dim = out[f"mapping.fc{num_layers - 1}.weight"].shape[0], out["mapping.fc0.weight"].shape[1]
    out["synthesis.b4.const"] = src.take("input.input", 4)[0]
    out["synthesis.b4.resample_filter"] = src.kernel("")
    layer, width = _styled(src, "conv1", "synthesis.b4.conv1", 0, False)
    out |= layer | _rgb(src, "to_rgb1", "synthesis.b4.torgb")
    channels = [width]
    for i in range(resolution.bit_length() - 3):
        block = f"synthesis.b{8 << i}"
        first, _ = _styled(src, f"convs.{2 * i}", f"{block}.conv0", 2 * i + 1, True)
        second, width = _styled(src, f"convs.{2 * i + 1}", f"{block}.conv1", 2 * i + 2, False)
        out |= first | second | _rgb(src, f"to_rgbs.{i}", f"{block}.torgb")
        out[f"{block}.resample_filter"] = src.kernel(f"to_rgbs.{i}.upsample.kernel")
        channels.append(width)
    src.finish()
    if latent_avg is not None:
        out["mapping.w_avg"] = latent_avg.reshape(-1)
    config = {
        "z_dim": z_dim,
        "c_dim": 0,
        "w_dim": w_dim,
        "img_resolution": resolution,
        "img_channels": out["synthesis.b4.torgb.weight"].shape[0],
        "mapping": {"num_layers": num_layers, "layer_features": out["mapping.fc0.weight"].shape[0]},
        "synthesis": {
            "channels": channels,
            "kernel_size": out["synthesis.b4.conv1.weight"].shape[-1],
            "resample_filter": out["synthesis.b8.resample_filter"].tolist(),
        },
    }
    return Parts("stylegan2", config, out)


def convert_rosinality_discriminator(tensors: Mapping[str, Tensor]) -> Parts:
    """rosinality's StyleGAN2 discriminator; minibatch statistics over groups of 4, one channel."""
    src = _Renamer(tensors, "this rosinality discriminator")
    resolution = _power(_count(tensors, r"convs\.\d+\.conv1\.0\.weight"), src.what)
    out: dict[str, Tensor] = {}

    def conv(old: str, new: str, at: int, bias: bool = True) -> None:
        out[f"{new}.weight"] = src.take(f"{old}.{at}.weight", 4)
        out[f"{new}.resample_filter"] = src.kernel(f"{old}.0.kernel" if at else "")
        if bias:
            out[f"{new}.bias"] = src.take(f"{old}.{at + 1}.bias", 1)

    conv("convs.0", f"b{resolution}.fromrgb", 0)
    channels = [out[f"b{resolution}.fromrgb.weight"].shape[0]]
    size = resolution
    for i in range(1, resolution.bit_length() - 2):
        conv(f"convs.{i}.conv1", f"b{size}.conv0", 0)
        conv(f"convs.{i}.conv2", f"b{size}.conv1", 1)
        conv(f"convs.{i}.skip", f"b{size}.skip", 1, bias=False)
        out[f"b{size}.resample_filter"] = out[f"b{size}.conv1.resample_filter"]
        channels.insert(0, out[f"b{size}.conv1.weight"].shape[0])
        size //= 2
    conv("final_conv", "b4.conv", 0)
    for i, name in enumerate(("fc", "out")):
        out[f"b4.{name}.weight"] = src.take(f"final_linear.{i}.weight", 2)
        out[f"b4.{name}.bias"] = src.take(f"final_linear.{i}.bias", 1)
    src.finish()
    extra = out["b4.conv.weight"].shape[1] - channels[0]
    config = {
        "c_dim": 0,
        "img_resolution": resolution,
        "img_channels": out[f"b{resolution}.fromrgb.weight"].shape[1],
        "channels": channels,
        "conv_clamp": None,
        "block": {"resample_filter": out[f"b{resolution}.conv1.resample_filter"].tolist()},
        "epilogue": {"mbstd_num_channels": extra},
    }
    return Parts("stylegan2-discriminator", config, out)
