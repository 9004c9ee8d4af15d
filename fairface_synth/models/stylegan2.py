"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958; ADA, arXiv 2006.06676): generator and discriminator in plain torch.

Modulation scales the activations and demodulation scales the outputs, so one ordinary convolution with shared weights
serves the whole batch; a sample's result does not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ShapeError
from .base import GENERATOR_RULES, StyleGANGenerator, StyleGANModule, split_config
from .layers import (
    ACTIVATIONS,
    MAPPING_RULES,
    REQUIRED,
    CachedModule,
    FullyConnected,
    MappingNetwork,
    Rule,
    activation_rule,
    check_resolution,
    check_tensor,
    downsample2d,
    fir,
    read_config,
    setup_filter,
    upsample2d,
    writable,
)
from .protocols import NoiseMode

ARCHITECTURES = ("orig", "skip", "resnet")
_FILTER = Rule([1, 3, 3, 1], "filter", optional=True)
_CLAMP = Rule(None, "float", 0, 1e30, optional=True)
# Accepted and ignored: how NVIDIA's code runs, not what it computes.
_RUNTIME_RULES = {
    "num_fp16_res": Rule(0, low=0, high=64),
    "fp16_channels_last": Rule(False, "bool"),
    "fused_modconv_default": Rule(None, "choice", optional=True, choices=("inference_only",)),
}

SYNTHESIS_RULES = {
    "channel_base": Rule(32768, low=1, high=1 << 24),
    "channel_max": Rule(512, low=1, high=16384),
    # Widths by resolution (4, 8, …) for checkpoints that do not follow channel_base and channel_max.
    "channels": Rule(None, "channels", high=16384, optional=True),
    "architecture": Rule("skip", "choice", choices=ARCHITECTURES),
    "resample_filter": _FILTER,
    "conv_clamp": _CLAMP,
    "kernel_size": Rule(3, low=1, high=15),
    "use_noise": Rule(True, "bool"),
    "activation": activation_rule(),
}
DISCRIMINATOR_RULES = {
    "c_dim": Rule(REQUIRED, low=0, high=16384),
    "img_resolution": Rule(REQUIRED, low=8, high=8192),
    "img_channels": Rule(REQUIRED, low=1, high=1024),
    "architecture": Rule("resnet", "choice", choices=ARCHITECTURES),
    "channel_base": Rule(32768, low=1, high=1 << 24),
    "channel_max": Rule(512, low=1, high=16384),
    "channels": Rule(None, "channels", high=16384, optional=True),
    "conv_clamp": _CLAMP,
    "cmap_dim": Rule(None, low=0, high=16384, optional=True),
}
BLOCK_RULES = {
    "activation": activation_rule(),
    "resample_filter": _FILTER,
    "freeze_layers": Rule(0, low=0, high=1000),
}
EPILOGUE_RULES = {
    "mbstd_group_size": Rule(4, low=1, high=1 << 20, optional=True),
    "mbstd_num_channels": Rule(1, low=0, high=1024),
    "activation": activation_rule(),
}


def strip_runtime(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`given` without the arguments that only say how NVIDIA's code runs; each is checked all the same."""
    runtime = {k: v for k, v in given.items() if k in _RUNTIME_RULES}
    if isinstance(runtime.get("fused_modconv_default"), bool):
        del runtime["fused_modconv_default"]
    read_config(runtime, _RUNTIME_RULES, where)
    return {k: v for k, v in given.items() if k not in _RUNTIME_RULES}


def _channels(config: Mapping[str, Any], resolution: int, where: str) -> dict[int, int]:
    sizes = [2**i for i in range(2, resolution.bit_length())]
    listed = config["channels"]
    if listed is None:
        return {r: max(1, min(config["channel_base"] // r, config["channel_max"])) for r in sizes}
    if len(listed) != len(sizes):
        raise CheckpointError(f"{where}: channels has the wrong length", expected=len(sizes), got=len(listed))
    return dict(zip(sizes, listed, strict=True))


def bias_act(x: Tensor, bias: Tensor | None, activation: str, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    """activation(x + bias) · activation's gain · gain, clamped to ±clamp · gain. x may be overwritten."""
    function, own, _ = ACTIVATIONS[activation]
    if bias is not None:
        bias = bias.to(x.dtype).view(1, -1, 1, 1)
        x = x.add_(bias) if writable(x, bias) else x + bias
    x = F.leaky_relu_(x, 0.2) if activation == "lrelu" and writable(x) else function(x)
    if own * gain != 1.0:
        x = x.mul_(own * gain) if writable(x) else x * (own * gain)
    if clamp is not None:
        x = x.clamp_(-clamp * gain, clamp * gain) if writable(x) else x.clamp(-clamp * gain, clamp * gain)
    return x


class SynthesisLayer(CachedModule):
    """Modulated convolution, noise, bias, activation (StyleGAN2, §2.2, equations 1-3)."""

    noise_const: Tensor
    resample_filter: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, w_dim: int, resolution: int, up: int, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.resolution, self.up = resolution, up
        self.activation: str = config["activation"]
        self.use_noise: bool = config["use_noise"]
        self.conv_clamp: float | None = config["conv_clamp"]
        k = config["kernel_size"]
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, k, k))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        # As in NVIDIA's layers, only an upsampling layer follows the configured filter.
        self.register_buffer("resample_filter", setup_filter(config["resample_filter"] if up > 1 else [1, 3, 3, 1]))
        if self.use_noise:
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
            self.noise_strength = nn.Parameter(torch.zeros([]))

    def _weights(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The weights as the convolution takes them, and their squares summed over the kernel [in, out]."""

        def make() -> tuple[Tensor, Tensor]:
            w = self.weight.transpose(0, 1) if self.up > 1 else self.weight
            w = w.to(dtype).contiguous(memory_format=torch.channels_last)
            return w, self.weight.square().sum(dim=(2, 3)).t().contiguous()

        return self.prepared(("weights", dtype), [self.weight], make)

    def _shift(self, noise: NoiseMode, gain: float, dtype: torch.dtype, n: int, rng: torch.Generator | None) -> Any:
        """(noise, bias), each times gain: [1 or n, 1, H, W] or None, and [1, out, 1, 1]."""
        bias = self.prepared(("bias", gain, dtype), [self.bias], lambda: (self.bias * gain).to(dtype).view(1, -1, 1, 1))
        if noise == "none" or not self.use_noise:
            return None, bias
        if noise == "random":
            shape = (n, 1, self.resolution, self.resolution)
            device = self.weight.device
            draw = torch.randn(shape, generator=rng, device=device if rng is None else rng.device).to(device)
            return (draw * (self.noise_strength * gain)).to(dtype), bias

        def make() -> Tensor:
            return (self.noise_const * (self.noise_strength * gain)).to(dtype)[None, None]

        return self.prepared(("noise", gain, dtype), [self.noise_const, self.noise_strength], make), bias

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        k = self.weight.shape[-1]
        if self.up == 1:
            return F.conv2d(x, weight, padding=k // 2)
        # Transposed convolution, then the low-pass filter with gain 4 (§2.2; ADA, appendix C).
        y = F.conv_transpose2d(x, weight, stride=2)
        kh, kw = self.resample_filter.shape
        low, high = k // 2 - (k - 1), k // 2 - (k - 2)
        padding = (low + (kw + 1) // 2, high + (kw - 2) // 2, low + (kh + 1) // 2, high + (kh - 2) // 2)
        return fir(y, self.resample_filter, padding, gain=4.0)

    def forward(
        self,
        x: Tensor,
        styles: Tensor,
        noise: NoiseMode = "const",
        rng: torch.Generator | None = None,
        gain: float = 1.0,
        owned: bool = True,
    ) -> Tensor:
        """x [n, in, h, w], styles [n, in] → [n, out, H, W]; an owned x may be overwritten."""
        function, own, homogeneous = ACTIVATIONS[self.activation]
        total = own * gain
        weight, squares = self._weights(x.dtype)
        # For a positively homogeneous activation the gain moves in front of it, into d, noise and bias.
        inner = total if homogeneous else 1.0
        d = torch.rsqrt(styles.square() @ squares + 1e-8) * inner
        d = d.to(x.dtype)[:, :, None, None]
        s = styles.to(x.dtype)[:, :, None, None]
        y = self._convolve(x.mul_(s) if owned and writable(x, s) else x * s, weight)
        pattern, bias = self._shift(noise, inner, x.dtype, len(y), rng)
        free = writable(y, d, bias) and (pattern is None or writable(pattern))
        if pattern is None:
            y = torch.addcmul(bias, y, d, out=y) if free else torch.addcmul(bias, y, d)
        elif free:
            y = torch.addcmul(pattern, y, d, out=y).add_(bias)
        else:
            y = torch.addcmul(pattern, y, d) + bias
        y = F.leaky_relu_(y, 0.2) if self.activation == "lrelu" and writable(y) else function(y)
        if not homogeneous and total != 1.0:
            y = y * total
        if self.conv_clamp is not None:
            limit = self.conv_clamp * gain
            y = y.clamp_(-limit, limit) if writable(y) else y.clamp(-limit, limit)
        return y


class ToRGBLayer(CachedModule):
    """A modulated 1×1 convolution without demodulation, as one batched matrix product."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, conv_clamp: float | None) -> None:
        super().__init__()
        self.conv_clamp = conv_clamp
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        """x [n, in, h, w], styles [n, in] → [n, img_channels, h, w] in the styles' precision."""
        n, c, h, w = x.shape
        weight = self.weight.flatten(1) * (styles * (1 / math.sqrt(c))).unsqueeze(1)
        pixels = x.permute(0, 2, 3, 1).reshape(n, h * w, c).transpose(1, 2)
        y = torch.bmm(weight.to(x.dtype), pixels).view(n, -1, h, w).to(styles.dtype)
        return bias_act(y, self.bias, "linear", clamp=self.conv_clamp)


class Conv2dLayer(CachedModule):
    """An ordinary convolution with an equalised learning rate and optional resampling by 2."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[Any] | None = (1, 3, 3, 1),
        conv_clamp: float | None = None,
    ) -> None:
        super().__init__()
        self.activation, self.up, self.down, self.conv_clamp = activation, up, down, conv_clamp
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        # None is a filter of its own (one tap), not the default.
        self.register_buffer("resample_filter", setup_filter(resample_filter))

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """x [n, in, h, w] → [n, out, h·up/down, w·up/down]."""

        def make() -> Tensor:
            w = self.weight * self.weight_gain
            return w.to(x.dtype).contiguous(memory_format=torch.channels_last)

        weight = self.prepared(("weight", x.dtype), [self.weight], make)
        k = weight.shape[-1]
        if self.up > 1:
            x = upsample2d(F.conv2d(x, weight), self.resample_filter)
        elif self.down > 1 and k == 1:
            x = F.conv2d(downsample2d(x, self.resample_filter), weight)
        elif self.down > 1:
            x = F.conv2d(downsample2d(x, self.resample_filter, extra=k // 2, down=1), weight, stride=2)
        else:
            x = F.conv2d(x, weight, padding=k // 2)
        return bias_act(x, self.bias, self.activation, gain, self.conv_clamp)


class SynthesisBlock(nn.Module):
    """One resolution: up to two modulated convolutions and the image that they add (StyleGAN2, figure 7)."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: int,
        is_last: bool,
        w_dim: int,
        img_channels: int,
        config: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.resolution, self.in_channels, self.out_channels = resolution, in_channels, out_channels
        self.register_buffer("resample_filter", setup_filter(config["resample_filter"]))
        self.has_rgb = is_last or config["architecture"] == "skip"
        self.has_skip = in_channels > 0 and config["architecture"] == "resnet"
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, resolution, resolution))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, w_dim, resolution, 2, config)
        self.conv1 = SynthesisLayer(out_channels, out_channels, w_dim, resolution, 1, config)
        if self.has_rgb:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim, config["conv_clamp"])
        if self.has_skip:
            taps = config["resample_filter"]
            self.skip = Conv2dLayer(in_channels, out_channels, 1, bias=False, up=2, resample_filter=taps)

    @property
    def modulated(self) -> list[SynthesisLayer | ToRGBLayer]:
        """The layers that take a style, in order."""
        names = ["conv0"] * (self.in_channels > 0) + ["conv1"] + ["torgb"] * self.has_rgb
        return [getattr(self, name) for name in names]

    @property
    def num_conv(self) -> int:
        return 1 + (self.in_channels > 0)

    def forward(
        self,
        x: Tensor | None,
        img: Tensor | None,
        styles: Sequence[Tensor],
        noise: NoiseMode,
        rng: torch.Generator | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        """Features, image, one style per modulated layer → features and image at this resolution."""
        if x is None:
            x = self.conv1(self.const.to(dtype).unsqueeze(0), styles[0], noise, rng, owned=False)
        else:
            x = x.to(dtype)
            gain = math.sqrt(0.5) if self.has_skip else 1.0
            y = self.skip(x, gain) if self.has_skip else None
            x = self.conv1(self.conv0(x, styles[0], noise, rng), styles[1], noise, rng, gain)
            x = x if y is None else y + x
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.has_rgb:
            rgb = self.torgb(x, styles[-1])
            img = rgb if img is None else img + rgb
        return x, img


class SynthesisNetwork(nn.Module):
    """The blocks b4, b8, … by name, as in NVIDIA's state."""

    # Largest activation, in bytes, that a batch may have on a CPU before it is cut into parts that fit the cache.
    part_bytes = 20_000_000

    def __init__(self, w_dim: int, resolution: int, img_channels: int, config: Mapping[str, Any]) -> None:
        super().__init__()
        channels = _channels(config, resolution, "the generator")
        self.num_ws = 0
        self.resolutions = list(channels)
        for r in self.resolutions:
            last = r == resolution
            block = SynthesisBlock(channels.get(r // 2, 0), channels[r], r, last, w_dim, img_channels, config)
            self.add_module(f"b{r}", block)
            self.num_ws += block.num_conv + (block.has_rgb if last else 0)

    @property
    def blocks(self) -> list[SynthesisBlock]:
        return [getattr(self, f"b{r}") for r in self.resolutions]

    def forward(
        self,
        styles: Sequence[Tensor],
        noise: NoiseMode,
        rng: torch.Generator | None,
        dtypes: tuple[torch.dtype, torch.dtype],
    ) -> Tensor:
        """Styles of all layers in order → images, in the first dtype; the second is that of the convolutions."""
        return self._run(0, None, None, list(styles), noise, rng, dtypes)

    def _run(
        self,
        start: int,
        x: Tensor | None,
        img: Tensor | None,
        styles: list[Tensor],
        noise: NoiseMode,
        rng: torch.Generator | None,
        dtypes: tuple[torch.dtype, torch.dtype],
    ) -> Tensor:
        for i in range(start, len(self.resolutions)):
            block = self.blocks[i]
            # The smallest layers cost next to nothing and every later one builds on them.
            dtype = dtypes[0] if block.resolution <= 8 else dtypes[1]
            n = len(styles[0])
            part = max(1, self.part_bytes // (block.out_channels * block.resolution**2 * dtype.itemsize))
            if x is not None and n > part and x.device.type == "cpu" and noise != "random" and writable(x, *styles):
                cuts = [slice(j, j + part) for j in range(0, n, part)]
                images = [
                    self._run(i, x[c], None if img is None else img[c], [s[c] for s in styles], noise, rng, dtypes)
                    for c in cuts
                ]
                return torch.cat(images)
            count = len(block.modulated)
            x, img = block(x, img, styles[:count], noise, rng, dtype)
            styles = styles[count:]
        return img  # type: ignore[return-value]


class StyleGAN2Generator(StyleGANGenerator):
    """StyleGAN2's generator.

    Args:
        config: z_dim, c_dim, w_dim, img_resolution, img_channels, and the dictionaries `mapping`
            (layers.MAPPING_RULES) and `synthesis` (SYNTHESIS_RULES). Parameter names are NVIDIA's.

    Raises:
        CheckpointError: an argument is unknown or out of bounds.
    """

    kind = "stylegan2"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        parts = {"mapping": MAPPING_RULES, "synthesis": SYNTHESIS_RULES}
        self.config = cfg = split_config(config, GENERATOR_RULES, parts, "the StyleGAN2 generator")
        if cfg["synthesis"]["kernel_size"] % 2 == 0:
            raise CheckpointError("kernel_size must be odd", got=cfg["synthesis"]["kernel_size"])
        self.z_dim, self.c_dim, self.w_dim = cfg["z_dim"], cfg["c_dim"], cfg["w_dim"]
        self.resolution = check_resolution(cfg["img_resolution"], "the generator")
        self.img_channels = cfg["img_channels"]
        self.synthesis = SynthesisNetwork(self.w_dim, self.resolution, self.img_channels, cfg["synthesis"])
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(self.z_dim, self.c_dim, self.w_dim, self.num_ws, **cfg["mapping"])

    def synthesize(self, w: Tensor, noise: NoiseMode = "const", rng: torch.Generator | None = None) -> Tensor:
        """w [n, num_ws, w_dim] → images [n, 3, resolution, resolution], about [-1, 1], not clamped.

        Args:
            noise: "const" the stored pattern, "random" drawn from rng, "none".
            rng: for noise="random"; None uses torch's default generator.

        Raises:
            ShapeError: w has the wrong shape, or noise is unknown.
        """
        w = self._check_w(w, noise)
        return self.synthesis(self._styles(w), noise, rng, self._dtypes(w))

    def styles(self, w: Tensor) -> tuple[Tensor, ...]:
        """StyleSpace (Wu et al. 2021, arXiv 2011.12799): the style of every modulated layer, [n, channels] each.

        In the order of computation: b4.conv1, b4.torgb, b8.conv0, b8.conv1, b8.torgb, … where a block has a torgb
        (every block with the skip architecture, else the last one).
        """
        return tuple(self._styles(self._check_w(w, "const")))

    def _styles(self, w: Tensor) -> list[Tensor]:
        # A torgb shares its w with the next block's conv0.
        styles, index = [], 0
        for block in self.synthesis.blocks:
            for i, layer in enumerate(block.modulated):
                styles.append(layer.affine(w[:, index + i]))
            index += block.num_conv
        return styles

    def synthesize_styles(
        self, styles: Sequence[Tensor], noise: NoiseMode = "const", rng: torch.Generator | None = None
    ) -> Tensor:
        """Images of the per-layer styles that `styles` returns, edited or not; see `synthesize`."""
        layers = [layer for block in self.synthesis.blocks for layer in block.modulated]
        if len(styles) != len(layers):
            raise ShapeError("styles has the wrong number of layers", expected=len(layers), got=len(styles))
        for i, (s, layer) in enumerate(zip(styles, layers, strict=True)):
            check_tensor(s, (len(styles[0]), layer.weight.shape[1]), f"styles[{i}]")
        if noise not in ("const", "random", "none"):
            raise ShapeError("noise is unknown", expected="'const', 'random' or 'none'", got=repr(noise))
        styles = [s.to(self.w_avg.dtype) for s in styles]
        return self.synthesis(styles, noise, rng, self._dtypes(styles[0]))


class DiscriminatorBlock(nn.Module):
    """One resolution of the discriminator, halving the size."""

    resample_filter: Tensor

    def __init__(
        self, in_channels: int, tmp: int, out: int, img_channels: int, architecture: str, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.architecture = architecture
        taps, act, clamp = config["resample_filter"], config["activation"], config["conv_clamp"]
        self.register_buffer("resample_filter", setup_filter(taps))
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, tmp, 1, activation=act, conv_clamp=clamp)
        self.conv0 = Conv2dLayer(tmp, tmp, 3, activation=act, conv_clamp=clamp)
        self.conv1 = Conv2dLayer(tmp, out, 3, activation=act, down=2, resample_filter=taps, conv_clamp=clamp)
        if architecture == "resnet":
            self.skip = Conv2dLayer(tmp, out, 1, bias=False, down=2, resample_filter=taps)

    def forward(self, x: Tensor | None, img: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Features and image at this resolution → at half of it; the image is None once it has been read in."""
        if img is not None:
            y = self.fromrgb(img.to(dtype, memory_format=torch.channels_last))
            x = y if x is None else x.to(dtype) + y
            img = downsample2d(img, self.resample_filter) if self.architecture == "skip" else None
        x = x.to(dtype)  # type: ignore[union-attr]
        if self.architecture == "resnet":
            y = self.skip(x, math.sqrt(0.5))
            return y + self.conv1(self.conv0(x), math.sqrt(0.5)), img
        return self.conv1(self.conv0(x)), img


class DiscriminatorEpilogue(nn.Module):
    """4×4: minibatch standard deviation, a convolution, two dense layers."""

    def __init__(
        self, channels: int, cmap_dim: int, img_channels: int, architecture: str, config: Mapping[str, Any]
    ) -> None:
        super().__init__()
        act, extra = config["activation"], config["mbstd_num_channels"]
        self.cmap_dim = cmap_dim
        self.group_size: int | None = config["mbstd_group_size"]
        self.num_channels: int = extra
        if extra and channels % extra:
            raise CheckpointError(
                "mbstd_num_channels does not divide the channels", expected=f"a divisor of {channels}", got=extra
            )
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, channels, 1, activation=act)
        self.conv = Conv2dLayer(channels + extra, channels, 3, activation=act, conv_clamp=config["conv_clamp"])
        self.fc = FullyConnected(channels * 16, channels, act)
        self.out = FullyConnected(channels, cmap_dim if cmap_dim else 1)

    def _minibatch_std(self, x: Tensor, group_size: int | None) -> Tensor:
        n, c, h, w = x.shape
        wanted = self.group_size if group_size is None else group_size
        size = n if wanted is None else min(wanted, n)
        if n % max(size, 1):
            raise ShapeError(
                "the minibatch statistics need whole groups",
                expected=f"a batch that is a multiple of {size}",
                got=n,
                fix="pass group_size=1 for scores that do not depend on the batch, or a fitting batch",
            )
        f = self.num_channels
        y = x.reshape(size, n // max(size, 1), f, c // f, h, w)
        y = (y - y.mean(dim=0)).square().mean(dim=0)
        y = (y + 1e-8).sqrt().mean(dim=(2, 3, 4)).view(-1, f, 1, 1)
        return torch.cat((x, y.repeat(size, 1, h, w)), dim=1)

    def forward(self, x: Tensor, img: Tensor | None, cmap: Tensor | None, group_size: int | None) -> Tensor:
        """Features at 4×4 → logits [n, 1]; cmap [n, cmap_dim] is the mapped condition."""
        if img is not None:
            x = x + self.fromrgb(img)
        if self.num_channels:
            x = self._minibatch_std(x, group_size)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if cmap is not None:
            return (x * cmap).sum(dim=1) * (1 / math.sqrt(self.cmap_dim))
        return x.squeeze(1)


class StyleGAN2Discriminator(StyleGANModule):
    """StyleGAN2's discriminator, which StyleGAN3 is trained with too.

    Args:
        config: c_dim, img_resolution, img_channels, … (DISCRIMINATOR_RULES) and the dictionaries `block`, `mapping`
            and `epilogue`. Parameter names are NVIDIA's.

    Raises:
        CheckpointError: an argument is unknown or out of bounds.
    """

    kind = "stylegan2-discriminator"

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        parts = {"block": BLOCK_RULES, "mapping": MAPPING_RULES, "epilogue": EPILOGUE_RULES}
        self.config = cfg = split_config(config, DISCRIMINATOR_RULES, parts, "the discriminator")
        self.c_dim, self.img_channels, arch = cfg["c_dim"], cfg["img_channels"], cfg["architecture"]
        self.resolution = check_resolution(cfg["img_resolution"], "the discriminator")
        channels = _channels(cfg, self.resolution, "the discriminator")
        cmap = 0 if self.c_dim == 0 else cfg["cmap_dim"] if cfg["cmap_dim"] is not None else channels[4]
        self.resolutions = [r for r in reversed(channels) if r > 4]
        clamp = {"conv_clamp": cfg["conv_clamp"]}
        for r in self.resolutions:
            width = channels[r] if r < self.resolution else 0
            block = DiscriminatorBlock(
                width, channels[r], channels[r // 2], self.img_channels, arch, cfg["block"] | clamp
            )
            self.add_module(f"b{r}", block)
        if self.c_dim:
            settings = cfg["mapping"] | {"w_avg_beta": None}
            self.mapping = MappingNetwork(0, self.c_dim, cmap, None, **settings)
        self.b4 = DiscriminatorEpilogue(channels[4], cmap, self.img_channels, arch, cfg["epilogue"] | clamp)

    def score(self, images: Tensor, c: Tensor | None = None, group_size: int | None = 1) -> Tensor:
        """Raw logits [n] of images [n, 3, H, W] in [-1, 1]; higher is more like the training images.

        Args:
            c: condition [n, c_dim] of a conditional discriminator.
            group_size: images that share minibatch statistics. 1 makes a score independent of its batch; None
                does as in training, min(the trained group size, n).

        Raises:
            ShapeError: wrong shapes, a missing or unwanted c, or n not a multiple of the group size.
        """
        check_tensor(images, ("n", self.img_channels, self.resolution, self.resolution), "images")
        if group_size is not None and group_size < 1:
            raise ShapeError("group_size is not admitted", expected="at least 1, or None", got=group_size)
        images = images.to(self.b4.out.weight.dtype)
        cmap = None
        if self.c_dim:
            if c is not None and len(c) != len(images):
                check_tensor(c, (len(images), self.c_dim), "c")
            cmap = self.mapping(None, c)
        elif c is not None and c.numel():
            raise ShapeError("this discriminator is unconditional", expected="c=None", got=list(c.shape))
        full, fast = self._dtypes(images)
        x, img = None, images
        for r in self.resolutions:
            x, img = getattr(self, f"b{r}")(x, img, fast if r > 8 else full)
        return self.b4(x.to(full), img, cmap if self.b4.cmap_dim else None, group_size)  # type: ignore[union-attr]

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """`score` with its defaults."""
        return self.score(images, c)
