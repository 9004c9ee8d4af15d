"""StyleGAN3 (Karras et al. 2021, arXiv 2106.12423), configurations T and R, in plain torch.

Each layer's modulated convolution is followed by a leaky ReLU at a higher sampling rate, between two low-pass filters
(§3.2). Differs from NVIDIA's code in one respect: styles are normalised per sample, not over the batch, so that an
image does not depend on its batch; demodulation cancels the factor up to its 1e-8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .base import GENERATOR_RULES, StyleGANGenerator, split_config
from .layers import (
    MAPPING_RULES,
    CachedModule,
    FullyConnected,
    MappingNetwork,
    Rule,
    check_resolution,
    fir,
    fir_up,
    writable,
)
from .protocols import NoiseMode

SYNTHESIS_RULES = {
    "channel_base": Rule(32768, low=1, high=1 << 24),
    "channel_max": Rule(512, low=1, high=16384),
    "num_layers": Rule(14, low=2, high=64),
    "num_critical": Rule(2, low=0, high=64),
    "first_cutoff": Rule(2.0, "float", 1e-3, 8192),
    "first_stopband": Rule(2**2.1, "float", 1e-3, 8192),
    "last_stopband_rel": Rule(2**0.3, "float", 1e-3, 64),
    "margin_size": Rule(10, low=0, high=256),
    "output_scale": Rule(0.25, "float", -1e6, 1e6),
    "conv_kernel": Rule(3, low=1, high=15),
    "filter_size": Rule(6, low=1, high=64),
    "lrelu_upsampling": Rule(2, low=1, high=8),
    "use_radial_filters": Rule(False, "bool"),
    "conv_clamp": Rule(256.0, "float", 0, 1e30, optional=True),
    "magnitude_ema_beta": Rule(0.999, "float", 0, 1),
}
STYLEGAN3_MAPPING_RULES = MAPPING_RULES | {"num_layers": Rule(2, low=1, high=64)}


class LayerPlan(NamedTuple):
    """Signal-processing parameters of one layer's input or output (§3.2 and figure 4)."""

    cutoff: float
    half_width: float
    rate: int
    size: int
    channels: int


def plan_layers(resolution: int, img_channels: int, config: Mapping[str, Any]) -> list[LayerPlan]:
    """Cut-off, stop band and sampling rate of every layer: a geometric progression up to the critical layers.

    Raises:
        CheckpointError: the configuration gives no usable progression.
    """
    n, critical = config["num_layers"], config["num_critical"]
    if critical >= n:
        raise CheckpointError("num_critical must be smaller than num_layers", expected=f"< {n}", got=critical)
    last_cutoff = resolution / 2
    last_stopband = last_cutoff * config["last_stopband_rel"]
    plans = []
    for i in range(n + 1):
        exponent = min(i / (n - critical), 1.0)
        cutoff = config["first_cutoff"] * (last_cutoff / config["first_cutoff"]) ** exponent
        stopband = config["first_stopband"] * (last_stopband / config["first_stopband"]) ** exponent
        # The logarithm of an exact power of two must not be rounded up to the next.
        rate = int(2 ** math.ceil(math.log2(min(stopband * 2, resolution)) - 1e-9))
        if rate < 1:
            raise CheckpointError("the layers' sampling rate falls below 1", expected="first_stopband >= 0.5", got=rate)
        half_width = max(stopband, rate / 2) - cutoff
        size = resolution if i >= n - 1 else rate + config["margin_size"] * 2
        channels = img_channels if i == n else round(min(config["channel_base"] / 2 / cutoff, config["channel_max"]))
        plans.append(LayerPlan(cutoff, half_width, rate, size, max(channels, 1)))
    return plans


def lowpass(taps: int, cutoff: float, width: float, rate: float, radial: bool) -> Tensor | None:
    """Kaiser-windowed sinc [taps], or jinc [taps, taps] when radial (§3.2, appendix C.1); None for one tap."""
    if taps == 1:
        return None
    attenuation = 2.285 * (taps - 1) * math.pi * (width / (rate / 2)) + 7.95
    beta = 0.0
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    x = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    if not radial:
        f = torch.sinc(2 * cutoff * x) * window
    else:
        r = torch.hypot(x[None, :], x[:, None]) * math.pi
        # bessel_j1(2·c·r) / r tends to c where r is 0 (an odd number of taps).
        f = torch.where(r == 0, cutoff, torch.special.bessel_j1(2 * cutoff * r) / r.clamp_min(1e-12))
        f = f * torch.outer(window, window)
    return (f / f.sum()).float()


class SynthesisInput(nn.Module):
    """Fourier features, rotated and moved by w and by the user's `transform` (§3.1 and appendix F)."""

    transform: Tensor
    freqs: Tensor
    phases: Tensor

    def __init__(self, w_dim: int, plan: LayerPlan) -> None:
        super().__init__()
        self.size, self.rate, self.bandwidth, channels = plan.size, plan.rate, plan.cutoff, plan.channels
        freqs = torch.randn(channels, 2)
        radii = freqs.square().sum(dim=1, keepdim=True).sqrt()
        freqs = freqs / (radii * radii.square().exp().pow(0.25)) * self.bandwidth
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = FullyConnected(w_dim, 4, weight_init=0.0, bias_init=(1.0, 0.0, 0.0, 0.0))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        """w [n, w_dim] → features [n, channels, size, size]."""
        t = self.affine(w)
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cos, sin, dx, dy = t.unbind(dim=1)
        # Rotation · translation, written out: translate by (−dx, −dy), then rotate by (cos, sin).
        row0 = torch.stack((cos, -sin, sin * dy - cos * dx), dim=1)
        row1 = torch.stack((sin, cos, -sin * dx - cos * dy), dim=1)
        m = torch.stack((row0, row1), dim=1) @ self.transform
        phases = self.phases + m[:, :, 2] @ self.freqs.t()
        freqs = self.freqs @ m[:, :, :2]
        fade = 1 - (freqs.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)
        grid = torch.arange(self.size, device=w.device, dtype=freqs.dtype)
        grid = ((grid + 0.5) / self.size * 2 - 1) * (0.5 * self.size / self.rate)
        angle = (
            grid[None, None, :, None] * freqs[:, None, None, :, 0]
            + grid[None, :, None, None] * freqs[:, None, None, :, 1]
            + phases[:, None, None, :]
        )
        x = torch.sin(angle * (2 * math.pi)) * fade.clamp(0, 1)[:, None, None, :]
        return (x @ (self.weight / math.sqrt(len(self.weight))).t()).permute(0, 3, 1, 2)


class SynthesisLayer(CachedModule):
    """Modulated convolution and filtered non-linearity (§3.2, figure 4b)."""

    up_filter: Tensor | None
    down_filter: Tensor | None
    magnitude_ema: Tensor

    def __init__(
        self, w_dim: int, before: LayerPlan, after: LayerPlan, is_torgb: bool, critical: bool, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.is_torgb, self.conv_clamp = is_torgb, config["conv_clamp"]
        k = 1 if is_torgb else config["conv_kernel"]
        rate = max(before.rate, after.rate) * (1 if is_torgb else config["lrelu_upsampling"])
        self.up, self.down = round(rate / before.rate), round(rate / after.rate)
        taps = config["filter_size"]
        up_taps = taps * self.up if self.up > 1 and not is_torgb else 1
        down_taps = taps * self.down if self.down > 1 and not is_torgb else 1
        radial = config["use_radial_filters"] and not critical
        self.affine = FullyConnected(w_dim, before.channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(after.channels, before.channels, k, k))
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.register_buffer("magnitude_ema", torch.ones([]))
        device = self.weight.device
        up = lowpass_on(device, up_taps, before.cutoff, before.half_width * 2, rate, False)
        self.register_buffer("up_filter", up)
        self.register_buffer(
            "down_filter", lowpass_on(device, down_taps, after.cutoff, after.half_width * 2, rate, radial)
        )
        total = (after.size - 1) * self.down + 1 - (before.size + k - 1) * self.up + up_taps + down_taps - 2
        low = (total + self.up) // 2
        self.padding = (low, total - low, low, total - low)

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Normalised weights for the convolution, and their squares summed over the kernel [in, out]."""

        def make() -> tuple[Tensor, Tensor]:
            w: Tensor = self.weight
            if not self.is_torgb:
                w = w * w.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
            squares = w.square().sum(dim=(2, 3)).t().contiguous()
            return w.to(dtype).contiguous(memory_format=torch.channels_last), squares

        return self.prepared(("weights", dtype), [self.weight], make)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x [n, in, h, w], w [n, w_dim] → [n, out, H, W]."""
        weight, squares = self._weights(x.dtype)
        s = self.affine(w)
        scale = self.magnitude_ema.rsqrt()
        k = weight.shape[-1]
        if self.is_torgb:
            s = s * (scale / math.sqrt(weight[0].numel()))
            y = F.conv2d(x * s.to(x.dtype)[:, :, None, None], weight, padding=k - 1)
        else:
            s = s * s.square().mean(dim=1, keepdim=True).rsqrt()
            d = torch.rsqrt(s.square() @ squares + 1e-8) * scale
            y = F.conv2d(x * s.to(x.dtype)[:, :, None, None], weight, padding=k - 1)
            y = y.mul_(d.to(y.dtype)[:, :, None, None]) if writable(y, d) else y * d.to(y.dtype)[:, :, None, None]
        bias = self.bias.to(y.dtype).view(1, -1, 1, 1)
        return self._nonlinearity(y.add_(bias) if writable(y, bias) else y + bias)

    def _nonlinearity(self, y: Tensor) -> Tensor:
        """Up-sample, leaky ReLU with clamp, down-sample: the whole at `padding`'s crop."""
        if self.up_filter is not None:
            y = fir_up(y, self.up_filter, self.up, self.padding, gain=self.up**2)
        else:
            one = torch.ones(1, device=y.device, dtype=torch.float32)
            y = fir_up(y, one, self.up, self.padding, gain=self.up**2)
        if not self.is_torgb:
            y = F.leaky_relu_(y, 0.2) if writable(y) else F.leaky_relu(y, 0.2)
            y = y.mul_(math.sqrt(2)) if writable(y) else y * math.sqrt(2)
        if self.conv_clamp is not None:
            limit = self.conv_clamp
            y = y.clamp_(-limit, limit) if writable(y) else y.clamp(-limit, limit)
        if self.down_filter is not None:
            return fir(y, self.down_filter, (0, 0, 0, 0), down=self.down)
        return y[:, :, :: self.down, :: self.down]


def lowpass_on(
    device: torch.device, taps: int, cutoff: float, width: float, rate: float, radial: bool
) -> Tensor | None:
    """`lowpass`, or only its shape on the meta device."""
    if device.type == "meta":
        shape = (taps, taps) if radial else (taps,)
        return None if taps == 1 else torch.empty(shape, device=device)
    f = lowpass(taps, cutoff, width, rate, radial)
    return None if f is None else f.to(device)


class SynthesisNetwork(nn.Module):
    """The input and the layers L0…, by the names of NVIDIA's state (index, size, channels)."""

    def __init__(self, w_dim: int, resolution: int, img_channels: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        n = config["num_layers"]
        plans = plan_layers(resolution, img_channels, config)
        self.output_scale = config["output_scale"]
        self.input = SynthesisInput(w_dim, plans[0])
        self.layer_names = []
        for i in range(n + 1):
            before, after = plans[max(i - 1, 0)], plans[i]
            layer = SynthesisLayer(w_dim, before, after, i == n, i >= n - config["num_critical"], config)
            name = f"L{i}_{after.size}_{after.channels}"
            self.add_module(name, layer)
            self.layer_names.append(name)

    def forward(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """w [n, num_ws, w_dim] → images in w's precision; the layers compute in `dtype`."""
        x = self.input(w[:, 0]).to(dtype, memory_format=torch.channels_last)
        for i, name in enumerate(self.layer_names):
            x = getattr(self, name)(x, w[:, i + 1])
        return x.to(w.dtype).contiguous() * self.output_scale


class StyleGAN3Generator(StyleGANGenerator):
    """StyleGAN3's generator (T, and R with conv_kernel=1 and use_radial_filters).

    `synthesis.input.transform` [3, 3] holds the inverse of the user's rotation and translation of the image.

    Args:
        config: z_dim, c_dim, w_dim, img_resolution, img_channels, and the dictionaries `mapping` and `synthesis`
            (SYNTHESIS_RULES). Parameter names are NVIDIA's.

    Raises:
        CheckpointError: an argument is unknown or out of bounds.
    """

    kind = "stylegan3"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        parts = {"mapping": STYLEGAN3_MAPPING_RULES, "synthesis": SYNTHESIS_RULES}
        self.config = cfg = split_config(config, GENERATOR_RULES, parts, "the StyleGAN3 generator")
        self.z_dim, self.c_dim, self.w_dim = cfg["z_dim"], cfg["c_dim"], cfg["w_dim"]
        self.resolution = check_resolution(cfg["img_resolution"], "the generator")
        self.img_channels = cfg["img_channels"]
        self.num_ws = cfg["synthesis"]["num_layers"] + 2
        self.synthesis = SynthesisNetwork(self.w_dim, self.resolution, self.img_channels, cfg["synthesis"])
        self.mapping = MappingNetwork(self.z_dim, self.c_dim, self.w_dim, self.num_ws, **cfg["mapping"])

    def synthesize(self, w: Tensor, noise: NoiseMode = "const", rng: torch.Generator | None = None) -> Tensor:
        """w [n, num_ws, w_dim] → images [n, 3, resolution, resolution], about [-1, 1], not clamped.

        StyleGAN3 has no noise inputs: `noise` and `rng` are accepted and change nothing.

        Raises:
            ShapeError: w has the wrong shape, or noise is unknown.
        """
        w = self._check_w(w, noise)
        return self.synthesis(w, self._dtypes(w)[1])
