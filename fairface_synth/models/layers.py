"""What StyleGAN2 and StyleGAN3 share: configuration checks, FIR resampling, dense layers, the mapping network."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ShapeError
from ..latents import truncate

# name → (function, gain that keeps the variance, whether f(a·x) = a·f(x) for a > 0).
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float, bool]] = {
    "linear": (lambda x: x, 1.0, True),
    "relu": (torch.relu, math.sqrt(2), True),
    "lrelu": (lambda x: F.leaky_relu(x, 0.2), math.sqrt(2), True),
    "tanh": (torch.tanh, 1.0, False),
    "sigmoid": (torch.sigmoid, 1.0, False),
    "elu": (F.elu, 1.0, False),
    "selu": (F.selu, 1.0, False),
    "softplus": (F.softplus, 1.0, False),
    "swish": (lambda x: torch.sigmoid(x) * x, math.sqrt(2), False),
}


class Rule(NamedTuple):
    """What one entry of a configuration may be: its default, its kind and its bounds."""

    default: object
    kind: str = "int"  # int | float | bool | filter | channels | one of the names in `choices`
    low: float = 0
    high: float = 65536
    optional: bool = False
    choices: Sequence[str] = ()


REQUIRED = object()


class _Brief(reprlib.Repr):
    """Short in time as well as in length: values of a file may be huge, or small and shared without end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = self.maxlong = 60

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= 256 else f"<int of {x.bit_length()} bits>"

    def repr_dict(self, x: Any, level: int) -> str:
        return f"<{type(x).__name__} of {len(x)}>"

    repr_set = repr_frozenset = repr_dict

    def repr_instance(self, x: Any, level: int) -> str:
        return repr(x) if x is None or isinstance(x, (bool, float)) else f"<{describe(x)}>"


def brief(value: Any) -> str:
    """A value from a file for an error message, in at most 200 characters."""
    return _Brief().repr(value)[:200]


def read_config(given: Mapping[str, Any], rules: Mapping[str, Rule], where: str) -> dict[str, Any]:
    """Check `given` against `rules` and fill in the defaults; plain json values come out.

    Raises:
        CheckpointError: an unknown or missing name, a value of the wrong kind or out of bounds.
    """
    unknown = sorted(str(name) for name in given if name not in rules)
    if unknown:
        raise CheckpointError(
            f"{where} was made with arguments that this library does not know",
            expected=", ".join(rules),
            got=", ".join(name[:60] for name in unknown[:8]),
            fix="the network is a variant with its own code; re-implement that part or convert the checkpoint",
        )
    result = {}
    for name, rule in rules.items():
        if name not in given and rule.default is REQUIRED:
            raise CheckpointError(f"{where} lacks the argument {name!r}", expected=_rule_text(rule))
        value = given.get(name, rule.default)
        result[name] = value if value is rule.default else _checked(value, rule, f"{where}: {name}")
    return result


def _checked(value: Any, rule: Rule, what: str) -> Any:
    if value is None and rule.optional:
        return None
    try:
        if rule.kind == "int" and not isinstance(value, str) and int(value) == value:
            if rule.low <= value <= rule.high:
                return int(value)
        elif rule.kind == "float" and not isinstance(value, str):
            number = float(value)
            if math.isfinite(number) and rule.low <= number <= rule.high:
                return number
        elif rule.kind == "bool":
            if value in (0, 1):
                return bool(value)
        elif rule.kind == "choice" and isinstance(value, str) and value in rule.choices:
            return value
        elif rule.kind in ("filter", "channels"):
            return _checked_list(value, rule)
    except (TypeError, ValueError, OverflowError):
        pass
    raise CheckpointError(f"{what} has a value that is not admitted", expected=_rule_text(rule), got=brief(value))


def _checked_list(value: Any, rule: Rule) -> list[Any]:
    if isinstance(value, (str, bytes, Mapping)) or (hasattr(value, "__len__") and not 1 <= len(value) <= 64):
        raise ValueError("not a list of 1 to 64")
    rows: list[Any] = [value] if isinstance(value, (int, float)) else list(value)
    if rule.kind == "channels":
        if not all(int(v) == v and 1 <= v <= rule.high for v in rows):
            raise ValueError(rows)
        return [int(v) for v in rows]
    if isinstance(rows[0], (list, tuple)):
        if {len(row) for row in rows} != {len(rows[0])} or len(rows[0]) > 64:
            raise ValueError(rows)
        return [[float(v) for v in row] for row in rows]
    return [float(v) for v in rows]


def _rule_text(rule: Rule) -> str:
    none = " or None" if rule.optional else ""
    if rule.kind == "choice":
        return f"one of {', '.join(rule.choices)}{none}"
    if rule.kind in ("int", "float"):
        return f"{rule.kind} in [{rule.low}, {rule.high}]{none}"
    return f"{rule.kind}{none}"


def activation_rule(default: str = "lrelu") -> Rule:
    return Rule(default, "choice", choices=tuple(ACTIVATIONS))


MAPPING_RULES = {
    "num_layers": Rule(8, low=1, high=64),
    "embed_features": Rule(None, low=1, high=16384, optional=True),
    "layer_features": Rule(None, low=1, high=16384, optional=True),
    "activation": activation_rule(),
    "lr_multiplier": Rule(0.01, "float", 1e-8, 1e8),
    "w_avg_beta": Rule(0.998, "float", 0, 1, optional=True),
}


def check_resolution(resolution: int, where: str) -> int:
    """A power of two in [4, 8192]."""
    if resolution < 4 or resolution > 8192 or resolution & (resolution - 1):
        raise CheckpointError(
            f"{where}: the image resolution is not admitted", expected="a power of two in [4, 8192]", got=resolution
        )
    return resolution


def describe(x: object) -> str:
    """Shape, dtype and device for error messages."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    return f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')} on {x.device}"


def check_tensor(x: Tensor, shape: Sequence[int | str], name: str, fix: str | None = None) -> None:
    """Raise ShapeError unless x is floating point and has `shape`, where a string stands for any size."""
    fits = (
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.ndim == len(shape)
        and all(isinstance(want, str) or want == got for want, got in zip(shape, x.shape, strict=True))
    )
    if not fits:
        wanted = "[" + ", ".join(str(s) for s in shape) + "] floating point"
        raise ShapeError(f"{name} has the wrong shape", expected=wanted, got=describe(x), fix=fix)


def writable(*tensors: Tensor) -> bool:
    """Whether in-place operations on intermediate results are safe: no gradient flows through them."""
    return not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors)


class CachedModule(nn.Module):
    """A module that prepares constants from its parameters once and remakes them when a parameter changed.

    The cache is keyed by the identity and version of the tensors that it was made from, and emptied whenever
    the module is moved or cast, so nothing stale can be used. It is bypassed while parameters are being trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self._prepared: dict[Any, tuple[Any, ...]] = {}

    def prepared(self, key: Any, sources: Sequence[Tensor | None], make: Callable[[], Any]) -> Any:
        """make(), or what it returned last time for this key and these very sources."""
        present = [t for t in sources if t is not None]
        if not writable(*present):
            return make()
        stamp = [(id(t), -1 if t.is_inference() else t._version, t.device, t.dtype) for t in present]
        hit = self._prepared.get(key)
        if hit is None or hit[0] != stamp:
            # Normal tensors, even when called first under inference mode: a later call may need gradients.
            with torch.inference_mode(False), torch.no_grad():
                # The sources are kept beside the result, so that an id cannot be reused.
                hit = (stamp, make(), present)
            self._prepared[key] = hit
        return hit[1]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        self._prepared.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._prepared.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": {}}


def setup_filter(taps: Sequence[Any] | float | None) -> Tensor:
    """A normalised FIR filter: 2-D, or 1-D (separable) for 8 taps or more, as ADA's resampling has it."""
    f = torch.tensor(1.0 if taps is None else taps, dtype=torch.float32)
    f = f.reshape(1) if f.ndim == 0 else f
    if f.ndim == 1 and f.numel() < 8:
        f = torch.outer(f, f)
    return f / f.sum()


def fir(x: Tensor, f: Tensor, padding: Sequence[int], *, down: int = 1, gain: float = 1.0) -> Tensor:
    """Convolve every channel of x [n, c, h, w] with f (1-D: separable), then keep each `down`-th pixel.

    Args:
        padding: zeros (left, right, top, bottom); negative crops.
        gain: factor on the result.
    """
    if f.ndim == 1:
        y = _fir_axis(x, f * math.sqrt(gain), padding[:2], 3, down)
        return _fir_axis(y, f * math.sqrt(gain), padding[2:], 2, down)
    kernel = (f * gain).flip((0, 1)).to(x.dtype).expand(x.shape[1], 1, *f.shape)
    left, right, top, bottom = padding
    if left == right >= 0 and top == bottom >= 0:
        return F.conv2d(x, kernel, stride=down, padding=(top, left), groups=x.shape[1])
    return F.conv2d(F.pad(x, (left, right, top, bottom)), kernel, stride=down, groups=x.shape[1])


def _fir_axis(x: Tensor, f: Tensor, padding: Sequence[int], axis: int, down: int) -> Tensor:
    low, high = padding
    wide = axis == 3
    kernel = f.flip(0).to(x.dtype).view((1, 1, 1, -1) if wide else (1, 1, -1, 1)).expand(x.shape[1], -1, -1, -1)
    stride = (1, down) if wide else (down, 1)
    if low == high >= 0:
        return F.conv2d(x, kernel, stride=stride, padding=(0, low) if wide else (low, 0), groups=x.shape[1])
    x = F.pad(x, (low, high) if wide else (0, 0, low, high))
    return F.conv2d(x, kernel, stride=stride, groups=x.shape[1])


def fir_up(x: Tensor, f: Tensor, up: int, padding: Sequence[int], gain: float = 1.0) -> Tensor:
    """Insert up − 1 zeros after each pixel, pad, convolve with f, multiply by gain.

    Only the taps that meet a pixel are computed: each of the `up` output phases is a small convolution of x.
    """
    if up == 1:
        return fir(x, f, padding, gain=gain)
    if f.ndim == 2:
        n, c, h, w = x.shape
        kh, kw = f.shape
        # A transposed convolution is zero insertion and the full convolution; its border is then cut to `padding`.
        y = F.conv_transpose2d(x.reshape(n * c, 1, h, w), (f * gain).to(x.dtype)[None, None], stride=up)
        left, top = padding[0] - (kw - 1), padding[2] - (kh - 1)
        right, bottom = padding[1] + up - kw, padding[3] + up - kh
        y = F.pad(y, (left, right, top, bottom))
        return y.view(n, c, *y.shape[2:])
    x = _fir_up_axis(x, f * math.sqrt(gain), up, padding[:2], 3)
    return _fir_up_axis(x, f * math.sqrt(gain), up, padding[2:], 2)


def _fir_up_axis(x: Tensor, f: Tensor, up: int, padding: Sequence[int], axis: int) -> Tensor:
    low, high = padding
    g = f.flip(0)
    size = x.shape[axis]
    out = size * up + low + high - len(g) + 1
    g = F.pad(g, (0, max(0, up - len(g))))  # every phase has a tap
    phases = []
    for r in range(up):
        first = (low - r) % up
        taps = g[first::up]
        count, start = -(-out // up), (r + first - low) // up
        stop = start + count + len(taps) - 1
        phases.append(_fir_axis(x, taps.flip(0), (-start, stop - size), axis, 1))
    # Interleaved with the channels last, where whole pixels are copied.
    y = torch.stack([p.permute(0, 2, 3, 1) for p in phases], dim=axis).flatten(axis - 1, axis)
    y = y.permute(0, 3, 1, 2)
    return y.narrow(axis, 0, out)


def upsample2d(x: Tensor, f: Tensor) -> Tensor:
    """Twice the size, [n, c, h, w] → [n, c, 2h, 2w]: zero insertion and the low-pass filter f, gain 4."""
    kh, kw = f.shape[0], f.shape[-1]
    return fir_up(x, f, 2, ((kw + 1) // 2, (kw - 2) // 2, (kh + 1) // 2, (kh - 2) // 2), gain=4.0)


def downsample2d(x: Tensor, f: Tensor, extra: int = 0, down: int = 2) -> Tensor:
    """The low-pass filter f, then every `down`-th pixel; `extra` widens the border for a convolution to come."""
    kh, kw = f.shape[0], f.shape[-1]
    padding = (extra + (kw - 1) // 2, extra + (kw - 2) // 2, extra + (kh - 1) // 2, extra + (kh - 2) // 2)
    return fir(x, f, padding, down=down)


def normalize_2nd_moment(x: Tensor) -> Tensor:
    """x [n, d] with mean square 1 in every row (StyleGAN, Karras et al. 2019: pixel norm)."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class FullyConnected(nn.Module):
    """x [n, in] → [n, out] with an equalised learning rate (weights are stored at unit scale / lr_multiplier)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str = "linear",
        lr_multiplier: float = 1.0,
        weight_init: float = 1.0,
        bias_init: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * (weight_init / lr_multiplier))
        bias = torch.as_tensor(bias_init, dtype=torch.float32, device=self.weight.device) / lr_multiplier
        self.bias = nn.Parameter(bias.expand(out_features).clone())
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        function, gain, _ = ACTIVATIONS[self.activation]
        y = torch.addmm(self.bias * self.bias_gain, x.to(self.weight.dtype), self.weight.t(), alpha=self.weight_gain)
        y = function(y)
        return y if gain == 1.0 else y * gain


class MappingNetwork(nn.Module):
    """z, c → w (StyleGAN2, §2; ADA for the conditional form). Always computed in the parameters' precision."""

    w_avg: Tensor

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        num_layers: int = 8,
        embed_features: int | None = None,
        layer_features: int | None = None,
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: float | None = 0.998,
    ) -> None:
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws, self.num_layers = z_dim, c_dim, w_dim, num_ws, num_layers
        embed = (w_dim if embed_features is None else embed_features) if c_dim else 0
        inner = w_dim if layer_features is None else layer_features
        widths = [z_dim + embed] + [inner] * (num_layers - 1) + [w_dim]
        if widths[0] == 0:
            raise CheckpointError("the mapping network has no input", expected="z_dim > 0 or c_dim > 0", got="both 0")
        if c_dim:
            self.embed = FullyConnected(c_dim, embed)
        for i in range(num_layers):
            layer = FullyConnected(widths[i], widths[i + 1], activation, lr_multiplier)
            self.add_module(f"fc{i}", layer)
        if num_ws is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None = None) -> Tensor:
        """z [n, z_dim], c [n, c_dim] → w [n, w_dim]."""
        parts = []
        dtype = self.fc0.weight.dtype  # type: ignore[union-attr]
        if self.z_dim:
            check_tensor(z, ("n", self.z_dim), "z")  # type: ignore[arg-type]
            parts.append(normalize_2nd_moment(z.to(dtype)))  # type: ignore[union-attr,arg-type]
        if self.c_dim:
            parts.append(normalize_2nd_moment(self.embed(self._condition(z, c))))
        elif c is not None and c.numel():
            raise ShapeError("this model is unconditional", expected="c=None", got=describe(c), fix="leave c out")
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        return x

    def _condition(self, z: Tensor | None, c: Tensor | None) -> Tensor:
        fix = "pass one-hot rows, for example torch.nn.functional.one_hot(labels, c_dim).float()"
        if c is None:
            raise ShapeError(
                "this model is conditional and c is missing", expected=f"c [n, {self.c_dim}]", got="None", fix=fix
            )
        check_tensor(c, ("n" if z is None or not self.z_dim else len(z), self.c_dim), "c", fix)
        return c

    def broadcast(self, z: Tensor, c: Tensor | None, psi: float, cutoff: int | None) -> Tensor:
        """z, c → w [n, num_ws, w_dim], truncated towards w_avg."""
        w = self(z, c).unsqueeze(1).repeat(1, self.num_ws or 1, 1)
        return truncate(w, self.w_avg, psi, cutoff)
