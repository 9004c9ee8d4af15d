"""A plain StyleGAN2, written from the paper's equations: the yardstick of tests and of synthesis.py.

Functions of (configuration, state dictionary, inputs) in the layout of fairface_synth.models.stylegan2, but with
none of its code: every sample has its own modulated weights in a grouped convolution, every resampling inserts zeros.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GAINS = {"relu": math.sqrt(2), "lrelu": math.sqrt(2), "swish": math.sqrt(2)}
FUNCTIONS = {
    "linear": lambda x: x,
    "relu": F.relu,
    "lrelu": lambda x: torch.where(x > 0, x, 0.2 * x),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": F.softplus,
    "swish": F.silu,
}

State = dict[str, Tensor]
Config = dict[str, Any]


def upfirdn(
    x: Tensor, f: Tensor, up: int = 1, down: int = 1, pad: tuple[int, ...] = (0, 0, 0, 0), gain: float = 1.0
) -> Tensor:
    """Insert zeros, pad (left, right, top, bottom), convolve with f, drop pixels."""
    n, c, h, w = x.shape
    if up > 1:
        y = x.new_zeros(n, c, h * up, w * up)
        y[:, :, ::up, ::up] = x
        x = y
    x = F.pad(x, pad)
    kernel = (f * gain).flip((0, 1))[None, None].repeat(c, 1, 1, 1).to(x.dtype)
    return F.conv2d(x, kernel, groups=c)[:, :, ::down, ::down]


def up_image(x: Tensor, f: Tensor) -> Tensor:
    h, w = f.shape
    return upfirdn(x, f, up=2, pad=((w + 1) // 2, (w - 2) // 2, (h + 1) // 2, (h - 2) // 2), gain=4)


def activate(x: Tensor, name: str, gain: float = 1.0, clamp: float | None = None) -> Tensor:
    x = FUNCTIONS[name](x) * (GAINS.get(name, 1.0) * gain)
    return x if clamp is None else x.clamp(-clamp * gain, clamp * gain)


def dense(state: State, name: str, x: Tensor, activation: str = "linear", lr: float = 1.0) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return activate(F.linear(x, weight * (lr / math.sqrt(weight.shape[1])), bias * lr), activation)


def modulated_conv(
    x: Tensor, weight: Tensor, s: Tensor, f: Tensor, *, demodulate: bool, up: int, transposed: bool
) -> Tensor:
    """Equations 1-3 of StyleGAN2, one weight per sample. `transposed`: the quicker of two equal ways to upsample."""
    n, i, h, w = x.shape
    o, _, k, _ = weight.shape
    ww = weight[None] * s[:, None, :, None, None]
    if demodulate:
        ww = ww * (ww.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    if up == 1:
        y = F.conv2d(x.reshape(1, n * i, h, w), ww.reshape(n * o, i, k, k), padding=k // 2, groups=n)
        return y.view(n, o, *y.shape[2:])
    p, (fh, fw) = k // 2, f.shape
    pad = (p + (fw + 1) // 2, p + (fw - 2) // 2, p + (fh + 1) // 2, p + (fh - 2) // 2)
    if not transposed:
        y = upfirdn(x, f, up=2, pad=pad, gain=4)
        y = F.conv2d(y.reshape(1, n * i, *y.shape[2:]), ww.flip((3, 4)).reshape(n * o, i, k, k), groups=n)
        return y.view(n, o, *y.shape[2:])
    y = F.conv_transpose2d(x.reshape(1, n * i, h, w), ww.transpose(1, 2).reshape(n * i, o, k, k), stride=2, groups=n)
    pad = (pad[0] - (k - 1), pad[1] - (k - 2), pad[2] - (k - 1), pad[3] - (k - 2))
    return upfirdn(y.view(n, o, *y.shape[2:]), f, pad=pad, gain=4)


def mapping(config: Config, state: State, z: Tensor | None, c: Tensor | None, prefix: str = "mapping.") -> Tensor:
    """z, c → w [n, w_dim]."""
    parts = []
    if z is not None and z.shape[1]:
        parts.append(z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt())
    if config["c_dim"]:
        y = dense(state, f"{prefix}embed", c)
        parts.append(y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt())
    x = torch.cat(parts, 1)
    for i in range(config["mapping"]["num_layers"]):
        x = dense(state, f"{prefix}fc{i}", x, config["mapping"]["activation"], config["mapping"]["lr_multiplier"])
    return x


def synthesize(config: Config, state: State, ws: Tensor, noise: str = "const", transposed: bool = True) -> Tensor:
    """w [n, num_ws, w_dim] → images."""
    cfg = config["synthesis"]
    arch, clamp = cfg["architecture"], cfg["conv_clamp"]
    x = img = None
    index, r = 0, 4
    while r <= config["img_resolution"]:
        b = f"synthesis.b{r}"

        def layer(name: str, x: Tensor, w: Tensor, up: int, gain: float = 1.0) -> Tensor:
            s = dense(state, f"{name}.affine", w)
            f = state[f"{name}.resample_filter"]
            y = modulated_conv(x, state[f"{name}.weight"], s, f, demodulate=True, up=up, transposed=transposed)
            if cfg["use_noise"] and noise == "const":
                y = y + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
            return activate(y + state[f"{name}.bias"].view(-1, 1, 1), cfg["activation"], gain, clamp)

        if r == 4:
            x = layer(f"{b}.conv1", state[f"{b}.const"].expand(len(ws), -1, -1, -1), ws[:, 0], 1)
            index += 1
        else:
            resnet = arch == "resnet"
            if resnet:
                sw = state[f"{b}.skip.weight"]
                y = up_image(F.conv2d(x, sw / math.sqrt(sw.shape[1])), state[f"{b}.skip.resample_filter"])
            x = layer(f"{b}.conv0", x, ws[:, index], 2)
            x = layer(f"{b}.conv1", x, ws[:, index + 1], 1, math.sqrt(0.5) if resnet else 1.0)
            x = x + y * math.sqrt(0.5) if resnet else x
            index += 2
        if img is not None:
            img = up_image(img, state[f"{b}.resample_filter"])
        if arch == "skip" or r == config["img_resolution"]:
            weight = state[f"{b}.torgb.weight"]
            s = dense(state, f"{b}.torgb.affine", ws[:, index]) / math.sqrt(weight.shape[1])
            rgb = modulated_conv(x, weight, s, None, demodulate=False, up=1, transposed=False)
            rgb = activate(rgb + state[f"{b}.torgb.bias"].view(-1, 1, 1), "linear", 1.0, clamp)
            img = rgb if img is None else img + rgb
        r *= 2
    return img


def discriminate(config: Config, state: State, images: Tensor, c: Tensor | None, group: int) -> Tensor:
    """Logits [n], with minibatch statistics over `group` images."""
    arch, clamp = config["architecture"], config["conv_clamp"]
    act = config["block"]["activation"]

    def conv(
        name: str, x: Tensor, down: int = 1, activation: str = "linear", gain: float = 1.0, clamp: float | None = None
    ) -> Tensor:
        weight = state[f"{name}.weight"]
        k, f = weight.shape[-1], state[f"{name}.resample_filter"]
        p, (fh, fw) = k // 2, f.shape
        if down > 1:
            x = upfirdn(x, f, pad=(p + (fw - 1) // 2, p + (fw - 2) // 2, p + (fh - 1) // 2, p + (fh - 2) // 2))
            p = 0
        x = F.conv2d(x, weight / math.sqrt(weight[0].numel()), stride=down, padding=p)
        if f"{name}.bias" in state:
            x = x + state[f"{name}.bias"].view(-1, 1, 1)
        return activate(x, activation, gain, clamp)

    x, img, r = None, images, config["img_resolution"]
    while r > 4:
        b = f"b{r}"
        if r == config["img_resolution"] or arch == "skip":
            y = conv(f"{b}.fromrgb", img, 1, act, clamp=clamp)
            x = y if x is None else x + y
            f = state[f"{b}.resample_filter"]
            h, w = f.shape
            img = upfirdn(img, f, down=2, pad=((w - 1) // 2, (w - 2) // 2, (h - 1) // 2, (h - 2) // 2))
        gain = math.sqrt(0.5) if arch == "resnet" else 1.0
        y = conv(f"{b}.skip", x, 2, gain=gain) if arch == "resnet" else 0
        x = conv(f"{b}.conv0", x, 1, act, clamp=clamp)
        x = conv(f"{b}.conv1", x, 2, act, gain, clamp) + y
        r //= 2
    act = config["epilogue"]["activation"]
    if arch == "skip":
        x = x + conv("b4.fromrgb", img, 1, act)
    count = config["epilogue"]["mbstd_num_channels"]
    if count:
        n, ch = x.shape[:2]
        extra = torch.empty(n, count, 4, 4, dtype=x.dtype)
        groups = n // group
        for g in range(groups):
            rows = x[g::groups]
            for j in range(count):
                part = rows[:, j * (ch // count) : (j + 1) * (ch // count)]
                extra[g::groups, j] = (part.var(0, unbiased=False) + 1e-8).sqrt().mean()
        x = torch.cat((x, extra), 1)
    x = conv("b4.conv", x, 1, act, clamp=clamp)
    x = dense(state, "b4.out", dense(state, "b4.fc", x.flatten(1), act))
    if config["c_dim"]:
        cmap = mapping(config, state, None, c)
        return (x * cmap).sum(1) / math.sqrt(cmap.shape[1])
    return x[:, 0]
