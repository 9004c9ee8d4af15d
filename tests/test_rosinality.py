"""rosinality's checkpoints against an independent reference with his names and semantics."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairface_synth.errors import CheckpointError
from fairface_synth.models.checkpoints import load_discriminator, load_generator, save_generator


class Rosinality:
    """Random weights under rosinality's names, and the images and logits that his formulas give for them."""

    def __init__(self, size: int = 32, style: int = 10, mlp: int = 3, kernel: tuple[float, ...] = (1, 3, 3, 1)) -> None:
        self.size, self.mlp = size, mlp
        self.log = int(math.log2(size))
        self.width = {4: 12, 8: 12, 16: 10, 32: 6, 64: 5}
        k = torch.tensor(kernel)
        self.k = torch.outer(k, k) / k.sum() ** 2
        r = functools.partial(torch.randn, dtype=torch.float32)
        g: dict[str, Tensor] = {}
        for i in range(1, mlp + 1):
            g[f"style.{i}.weight"], g[f"style.{i}.bias"] = r(style, style) * 100, r(style) * 10
        g["input.input"] = r(1, 12, 4, 4)

        def modulated(name: str, i: int, o: int, k: int) -> None:
            g[f"{name}.conv.weight"] = r(1, o, i, k, k)
            g[f"{name}.conv.modulation.weight"] = r(i, style)
            g[f"{name}.conv.modulation.bias"] = 1 + 0.1 * r(i)

        def styled(name: str, i: int, o: int, up: bool) -> None:
            modulated(name, i, o, 3)
            g[f"{name}.noise.weight"], g[f"{name}.activate.bias"] = r(1) * 0.3, r(o) * 0.3
            if up:
                g[f"{name}.conv.blur.kernel"] = self.k * 4

        styled("conv1", 12, 12, False)
        modulated("to_rgb1", 12, 3, 1)
        g["to_rgb1.bias"] = r(1, 3, 1, 1)
        g["noises.noise_0"] = r(1, 1, 4, 4)
        for i, log in enumerate(range(3, self.log + 1)):
            w, before = self.width[2**log], self.width[2 ** (log - 1)]
            styled(f"convs.{2 * i}", before, w, True)
            styled(f"convs.{2 * i + 1}", w, w, False)
            modulated(f"to_rgbs.{i}", w, 3, 1)
            g[f"to_rgbs.{i}.bias"] = r(1, 3, 1, 1)
            g[f"to_rgbs.{i}.upsample.kernel"] = self.k * 4
            for j in (1, 2):
                g[f"noises.noise_{2 * i + j}"] = r(1, 1, 2**log, 2**log)
        self.g = g
        self.latent_avg = r(style)
        self.d = self._discriminator(r)

    def _discriminator(self, r: Any) -> dict[str, Tensor]:
        top = self.width[self.size]
        d = {"convs.0.0.weight": r(top, 3, 1, 1), "convs.0.1.bias": r(top)}
        for i, log in enumerate(range(self.log, 2, -1), 1):
            a, b, n = self.width[2**log], self.width[2 ** (log - 1)], f"convs.{i}"
            d |= {f"{n}.conv1.0.weight": r(a, a, 3, 3), f"{n}.conv1.1.bias": r(a)}
            d |= {f"{n}.conv2.0.kernel": self.k, f"{n}.conv2.1.weight": r(b, a, 3, 3), f"{n}.conv2.2.bias": r(b)}
            d |= {f"{n}.skip.0.kernel": self.k, f"{n}.skip.1.weight": r(b, a, 1, 1)}
        d |= {"final_conv.0.weight": r(12, 13, 3, 3), "final_conv.1.bias": r(12)}
        d |= {"final_linear.0.weight": r(12, 192), "final_linear.0.bias": r(12)}
        return d | {"final_linear.1.weight": r(1, 12), "final_linear.1.bias": r(1)}

    def checkpoint(self) -> dict:
        return {"g_ema": self.g, "g": self.g, "d": self.d, "latent_avg": self.latent_avg, "g_optim": {"state": {}}}

    @staticmethod
    def fused(x: Tensor, bias: Tensor) -> Tensor:
        return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * 2**0.5

    @staticmethod
    def blur(x: Tensor, k: Tensor, up: int, pad: tuple[int, int]) -> Tensor:
        n, c, h, w = x.shape
        wide = torch.zeros(n, c, h * up, w * up)
        wide[:, :, ::up, ::up] = x
        wide = F.pad(wide, (*pad, *pad))
        return F.conv2d(wide.view(n * c, 1, *wide.shape[2:]), k.flip((0, 1))[None, None]).view(
            n, c, wide.shape[2] - len(k) + 1, -1
        )

    def map(self, z: Tensor) -> Tensor:
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for i in range(1, self.mlp + 1):
            weight = self.g[f"style.{i}.weight"]
            x = self.fused(F.linear(x, weight * (0.01 / weight.shape[1] ** 0.5)), self.g[f"style.{i}.bias"] * 0.01)
        return x

    def modulated(self, name: str, x: Tensor, w: Tensor, up: bool = False, demodulate: bool = True) -> Tensor:
        weight = self.g[f"{name}.conv.weight"]
        _, o, i, k, _ = weight.shape
        m = self.g[f"{name}.conv.modulation.weight"]
        s = F.linear(w, m / m.shape[1] ** 0.5, self.g[f"{name}.conv.modulation.bias"])
        ww = weight * s.view(-1, 1, i, 1, 1) / (i * k * k) ** 0.5
        if demodulate:
            ww = ww * torch.rsqrt(ww.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        n = len(x)
        flat = x.reshape(1, n * i, *x.shape[2:])
        if not up:
            y = F.conv2d(flat, ww.reshape(n * o, i, k, k), padding=k // 2, groups=n)
            return y.view(n, o, *y.shape[2:])
        y = F.conv_transpose2d(flat, ww.transpose(1, 2).reshape(n * i, o, k, k), stride=2, groups=n)
        p = len(self.k) - 2 - (k - 1)
        return self.blur(y.view(n, o, *y.shape[2:]), self.k * 4, 1, ((p + 1) // 2 + 1, p // 2 + 1))

    def images(self, ws: Tensor) -> Tensor:
        def styled(name: str, x: Tensor, w: Tensor, noise: int, up: bool) -> Tensor:
            y = self.modulated(name, x, w, up) + self.g[f"{name}.noise.weight"] * self.g[f"noises.noise_{noise}"]
            return self.fused(y, self.g[f"{name}.activate.bias"])

        def rgb(name: str, x: Tensor, w: Tensor) -> Tensor:
            return self.modulated(name, x, w, demodulate=False) + self.g[f"{name}.bias"]

        x = styled("conv1", self.g["input.input"].repeat(len(ws), 1, 1, 1), ws[:, 0], 0, False)
        skip = rgb("to_rgb1", x, ws[:, 1])
        p = len(self.k) - 2
        for i in range(self.log - 2):
            x = styled(f"convs.{2 * i}", x, ws[:, 2 * i + 1], 2 * i + 1, True)
            x = styled(f"convs.{2 * i + 1}", x, ws[:, 2 * i + 2], 2 * i + 2, False)
            skip = self.blur(skip, self.k * 4, 2, ((p + 1) // 2 + 1, p // 2))
            skip = skip + rgb(f"to_rgbs.{i}", x, ws[:, 2 * i + 3])
        return skip

    def logits(self, x: Tensor) -> Tensor:
        def conv(name: str, x: Tensor, at: int, down: bool, activate: bool = True) -> Tensor:
            weight = self.d[f"{name}.{at}.weight"]
            k = weight.shape[-1]
            if down:
                p = len(self.k) - 2 + k - 1
                x = self.blur(x, self.k, 1, ((p + 1) // 2, p // 2))
            y = F.conv2d(x, weight / weight[0].numel() ** 0.5, stride=2 if down else 1, padding=0 if down else k // 2)
            return self.fused(y, self.d[f"{name}.{at + 1}.bias"]) if activate else y

        x = conv("convs.0", x, 0, False)
        for i in range(1, self.log - 1):
            y = conv(f"convs.{i}.conv2", conv(f"convs.{i}.conv1", x, 0, False), 1, True)
            x = (y + conv(f"convs.{i}.skip", x, 1, True, activate=False)) / 2**0.5
        n = len(x)
        group = min(n, 4)
        std = x.view(group, -1, 1, x.shape[1], 4, 4)
        std = torch.sqrt(std.var(0, unbiased=False) + 1e-8).mean((2, 3, 4), keepdim=True).squeeze(2)
        x = conv("final_conv", torch.cat([x, std.repeat(group, 1, 4, 4)], 1), 0, False).view(n, -1)
        w0, w1 = self.d["final_linear.0.weight"], self.d["final_linear.1.weight"]
        x = self.fused(F.linear(x, w0 / w0.shape[1] ** 0.5), self.d["final_linear.0.bias"])
        return F.linear(x, w1 / w1.shape[1] ** 0.5, self.d["final_linear.1.bias"])[:, 0]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("size", "mlp", "kernel"),
    [(32, 3, (1.0, 3, 3, 1)), (8, 1, (1.0, 3, 3, 1)), (16, 8, (1.0, 2, 3, 4)), (64, 2, (1.0, 3, 3, 1))],
)
def test_rosinality(tmp_path: Path, size: int, mlp: int, kernel: tuple[float, ...], legacy: bool) -> None:
    torch.manual_seed(0)
    theirs = Rosinality(size, mlp=mlp, kernel=kernel)
    path = tmp_path / "r.pt"
    torch.save(theirs.checkpoint(), path, _use_new_zipfile_serialization=not legacy)
    g, d = load_generator(path), load_discriminator(path)
    z = torch.randn(4, 10)
    ws = g.map(z)
    torch.testing.assert_close(ws[:, 0], theirs.map(z), rtol=1e-5, atol=1e-5)
    w = torch.randn(4, g.num_ws, 10)
    images = theirs.images(w)
    assert float((g.synthesize(w) - images).abs().max() / images.abs().max()) < 1e-5
    assert torch.equal(g.w_avg, theirs.latent_avg)
    x = torch.randn(4, 3, size, size)
    torch.testing.assert_close(d.score(x, group_size=None), theirs.logits(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(d.score(x), torch.cat([theirs.logits(i[None]) for i in x]), rtol=1e-4, atol=1e-4)
    save_generator(g, tmp_path / "g.safetensors")
    assert torch.equal(load_generator(tmp_path / "g.safetensors").synthesize(w), g.synthesize(w))


def test_rosinality_variants(tmp_path: Path) -> None:
    theirs = Rosinality(16)
    parallel = {f"module.{k}": v for k, v in theirs.g.items()}
    for value in (theirs.g, parallel, {"g_ema": parallel}):
        torch.save(value, tmp_path / "r.pt")
        assert load_generator(tmp_path / "r.pt").resolution == 16
    for change in ({"extra": torch.zeros(2)}, {"conv1.noise.weight": None}, {"convs.1.conv.weight": torch.zeros(3)}):
        torch.save({"g_ema": theirs.g | change}, tmp_path / "r.pt")
        with pytest.raises(CheckpointError):
            load_generator(tmp_path / "r.pt")
    torch.save({"g_ema": theirs.g}, tmp_path / "r.pt")
    with pytest.raises(CheckpointError, match="no discriminator"):
        load_discriminator(tmp_path / "r.pt")
