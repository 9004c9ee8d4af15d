"""StyleGAN2 and StyleGAN3 against plain textbook implementations, and the promises of their interface."""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fairface_synth.errors import CheckpointError, ShapeError
from fairface_synth.models import base, stylegan2, stylegan3
from fairface_synth.models.checkpoints import load_discriminator, load_generator
from fairface_synth.models.layers import downsample2d, fir, fir_up, read_config, setup_filter, upsample2d
from fairface_synth.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from fairface_synth.models.stylegan3 import StyleGAN3Generator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import reference_stylegan2 as reference  # noqa: E402

GOLDEN = sorted((ROOT.parent / "shared" / "golden").glob("*.pkl"))


def generator(synthesis: dict | None = None, mapping: dict | None = None, **top: int) -> StyleGAN2Generator:
    torch.manual_seed(0)
    config = {"z_dim": 8, "c_dim": 0, "w_dim": 12, "img_resolution": 16, "img_channels": 3} | top
    settings = {"channel_base": 128, "channel_max": 14} | (synthesis or {})
    g = StyleGAN2Generator({**config, "mapping": mapping or {"num_layers": 2}, "synthesis": settings}).freeze()
    randomize(g)
    return g


def discriminator(block: dict | None = None, epilogue: dict | None = None, **top: object) -> StyleGAN2Discriminator:
    torch.manual_seed(0)
    config = {"c_dim": 0, "img_resolution": 16, "img_channels": 3, "channel_base": 128, "channel_max": 12} | top
    d = StyleGAN2Discriminator({**config, "block": block, "epilogue": epilogue, "mapping": {"num_layers": 2}})
    randomize(d.freeze())
    return d


def generator3(**synthesis: object) -> StyleGAN3Generator:
    torch.manual_seed(0)
    config = {"z_dim": 8, "c_dim": 0, "w_dim": 12, "img_resolution": 16, "img_channels": 3}
    settings = {"channel_base": 256, "channel_max": 10, "num_layers": 6} | synthesis
    g = StyleGAN3Generator({**config, "synthesis": settings}).freeze()
    randomize(g)
    g.synthesis.input.affine.weight.normal_(std=0.2)
    for name, buffer in g.named_buffers():
        if name.endswith("magnitude_ema"):
            buffer.uniform_(0.5, 1.5)
    return g


def randomize(model: torch.nn.Module) -> None:
    """Biases and noise strengths are zero at initialisation, and would hide mistakes."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                p.add_(torch.randn_like(p) * 0.3)
        for name, b in model.named_buffers():
            if name.endswith("w_avg"):
                b.normal_()


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in model.state_dict().items()}


# --- resampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [1, 2, 4])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (2, 1, 2, 1), (5, 6, 3, 2), (-1, 3, 2, -2)])
@pytest.mark.parametrize("taps", [1, 3, 4, 12])
def test_fir_up_is_zero_insertion(up: int, padding: tuple[int, ...], taps: int) -> None:
    x = torch.randn(2, 3, 14, 13, dtype=torch.float64)
    f = torch.rand(taps, dtype=torch.float64)
    plain = reference.upfirdn(x, torch.outer(f, f), up=up, pad=padding, gain=3.0)
    close(fir_up(x, f, up, padding, gain=3.0), plain)
    close(fir_up(x, torch.outer(f, f), up, padding, gain=3.0), plain)
    close(fir(x, f, padding, down=2), reference.upfirdn(x, torch.outer(f, f), down=2, pad=padding))


def test_filters() -> None:
    assert setup_filter(None).shape == (1, 1)
    assert setup_filter([1, 3, 3, 1]).shape == (4, 4)
    assert setup_filter(list(range(1, 13))).shape == (12,)
    assert setup_filter([[1, 2], [3, 4]]).sum() == 1
    x = torch.ones(1, 2, 8, 8)
    f = setup_filter([1, 3, 3, 1])
    assert torch.allclose(upsample2d(x, f)[..., 3:-3, 3:-3], torch.ones(1, 2, 10, 10))
    assert torch.allclose(downsample2d(x, f)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


# --- StyleGAN2 against the textbook ---------------------------------------------------------------

VARIANTS = [
    {},
    {"architecture": "resnet"},
    {"architecture": "orig"},
    {"conv_clamp": 0.8},
    {"conv_clamp": 0.8, "architecture": "resnet"},
    {"use_noise": False},
    {"kernel_size": 1},
    {"kernel_size": 5},
    {"resample_filter": None},
    {"resample_filter": [1, 2, 1]},
    {"resample_filter": [[1, 2, 1, 1], [0, 1, 3, 2]], "architecture": "resnet"},
    {"resample_filter": [1, 5, 10, 10, 5, 1]},
    {"channels": [9, 7, 5]},
    *({"activation": name} for name in stylegan2.ACTIVATIONS),
    {"activation": "swish", "architecture": "resnet", "conv_clamp": 0.5},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_generator_matches_textbook(variant: dict) -> None:
    g = generator(variant).set_dtype(torch.float64)
    ws = torch.randn(3, g.num_ws, g.w_dim, dtype=torch.float64)
    for transposed in (False, True):
        close(g.synthesize(ws), reference.synthesize(g.config, state(g), ws, transposed=transposed))
    close(g.synthesize(ws, "none"), reference.synthesize(g.config, state(g), ws, "none"))
    # With a gradient the in-place path is off.
    close(g.synthesize(ws.requires_grad_()), g.synthesize(ws.detach()))


@pytest.mark.parametrize("resolution", [4, 8, 32, 64])
def test_generator_resolutions(resolution: int) -> None:
    if resolution == 4:
        g = generator(img_resolution=4)
        assert g.synthesize(g.map(torch.randn(1, 8))).shape == (1, 3, 4, 4)
        return
    g = generator(img_resolution=resolution, img_channels=1)
    ws = g.map(torch.randn(2, 8))
    assert g.num_ws == 2 * int(math.log2(resolution)) - 2
    close(g.synthesize(ws), reference.synthesize(g.config, state(g), ws), 1e-5)


@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize(
    "mapping",
    [
        {},
        {"num_layers": 1},
        {"embed_features": 5, "layer_features": 7},
        {"activation": "tanh"},
        {"lr_multiplier": 1.0, "w_avg_beta": None},
    ],
)
def test_mapping_matches_textbook(mapping: dict, c_dim: int) -> None:
    g = generator(mapping={"num_layers": 3} | mapping, c_dim=c_dim)
    z, c = torch.randn(4, 8), F.one_hot(torch.arange(4) % 3, 3).float() if c_dim else None
    close(g.map(z, c)[:, 0], reference.mapping(g.config, state(g), z, c), 1e-5)
    w, t = g.map(z, c), g.map(z, c, 0.4)
    assert torch.allclose(t, g.w_avg + 0.4 * (w - g.w_avg), atol=1e-6)
    cut = g.map(z, c, 0.4, 2)
    assert torch.equal(cut[:, 2:], w[:, 2:])
    assert torch.allclose(cut[:, :2], t[:, :2])
    assert torch.allclose(g.map(z, c, 0.0), g.w_avg.expand_as(w), atol=1e-6)


@pytest.mark.parametrize("architecture", ["resnet", "skip", "orig"])
@pytest.mark.parametrize(
    ("block", "epilogue", "top"),
    [
        ({}, {}, {}),
        ({"activation": "relu"}, {"activation": "elu", "mbstd_num_channels": 3}, {"conv_clamp": 0.7}),
        ({"resample_filter": None}, {"mbstd_num_channels": 0}, {"c_dim": 3}),
        ({"resample_filter": [1, 2, 1]}, {"mbstd_group_size": None}, {"c_dim": 3, "cmap_dim": 5}),
        ({"resample_filter": [1, 1]}, {"mbstd_group_size": 2}, {"img_channels": 1, "channels": [8, 6, 4]}),
    ],
)
def test_discriminator_matches_textbook(architecture: str, block: dict, epilogue: dict, top: dict) -> None:
    d = discriminator(block, epilogue, architecture=architecture, **top).set_dtype(torch.float64)
    x = torch.randn(4, d.img_channels, 16, 16, dtype=torch.float64)
    c = F.one_hot(torch.arange(4) % 3, 3).double() if d.c_dim else None
    trained = d.b4.group_size or 4
    close(d.score(x, c, None), reference.discriminate(d.config, state(d), x, c, trained))
    single = d.score(x, c)
    close(single, reference.discriminate(d.config, state(d), x, c, 1))
    close(d.score(x[:1], None if c is None else c[:1]), single[:1])
    close(d.score(x, c, group_size=2), reference.discriminate(d.config, state(d), x, c, 2))
    close(d.score(x.clone().requires_grad_(), c), single)


# --- StyleGAN3 against the textbook ---------------------------------------------------------------


def synthesize3(g: StyleGAN3Generator, ws: Tensor) -> Tensor:
    """StyleGAN3 layer by layer: grouped convolutions, zero insertion, affine_grid."""
    cfg, s = g.config["synthesis"], state(g)
    plans = stylegan3.plan_layers(g.resolution, g.img_channels, cfg)
    p = "synthesis.input"
    t = reference.dense(s, f"{p}.affine", ws[:, 0])
    t = t / t[:, :2].norm(dim=1, keepdim=True)
    images = []
    for row in t:
        rotate, move = torch.eye(3, dtype=t.dtype), torch.eye(3, dtype=t.dtype)
        rotate[:2, :2] = torch.tensor([[row[0], -row[1]], [row[1], row[0]]])
        move[:2, 2] = -row[2:]
        m = rotate @ move @ s[f"{p}.transform"]
        phases = s[f"{p}.phases"] + s[f"{p}.freqs"] @ m[:2, 2]
        freqs = s[f"{p}.freqs"] @ m[:2, :2]
        plan = plans[0]
        fade = (1 - (freqs.norm(dim=1) - plan.cutoff) / (plan.rate / 2 - plan.cutoff)).clamp(0, 1)
        theta = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=t.dtype)[None] * (0.5 * plan.size / plan.rate)
        grid = F.affine_grid(theta, [1, 1, plan.size, plan.size], align_corners=False)[0]
        x = torch.sin(2 * math.pi * (grid @ freqs.t() + phases)) * fade
        weight = s[f"{p}.weight"]
        images.append((x @ weight.t() / math.sqrt(len(weight))).permute(2, 0, 1))
    x = torch.stack(images)
    for i, name in enumerate(g.synthesis.layer_names):
        x = layer3(g, s, f"synthesis.{name}", i, x, ws[:, i + 1], plans)
    return x * cfg["output_scale"]


def layer3(g: StyleGAN3Generator, s: dict, name: str, i: int, x: Tensor, w: Tensor, plans: list) -> Tensor:
    cfg = g.config["synthesis"]
    before, after, rgb = plans[max(i - 1, 0)], plans[i], i == cfg["num_layers"]
    weight, styles = s[f"{name}.weight"], reference.dense(s, f"{name}.affine", w)
    n, k = len(x), weight.shape[-1]
    ww = weight[None] * styles[:, None, :, None, None]
    ww = ww / (math.sqrt(weight[0].numel()) if rgb else ww.square().sum(dim=(2, 3, 4), keepdim=True).sqrt())
    ww = ww / s[f"{name}.magnitude_ema"].sqrt()
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), ww.flatten(0, 1), padding=k - 1, groups=n)
    y = y.view(n, -1, *y.shape[2:]) + s[f"{name}.bias"].view(-1, 1, 1)
    rate = max(before.rate, after.rate) * (1 if rgb else cfg["lrelu_upsampling"])
    up, down = rate // before.rate, rate // after.rate
    one = torch.ones(1, 1, dtype=x.dtype)
    fu, fd = s.get(f"{name}.up_filter"), s.get(f"{name}.down_filter")
    fu = one if fu is None else torch.outer(fu, fu)
    fd = one if fd is None else fd if fd.ndim == 2 else torch.outer(fd, fd)
    total = (after.size - 1) * down + 1 - (before.size + k - 1) * up + len(fu) + len(fd) - 2
    low = (total + up) // 2
    y = reference.upfirdn(y, fu, up=up, pad=(low, total - low, low, total - low), gain=up**2)
    y = y if rgb else F.leaky_relu(y, 0.2) * math.sqrt(2)
    if cfg["conv_clamp"] is not None:
        y = y.clamp(-cfg["conv_clamp"], cfg["conv_clamp"])
    return reference.upfirdn(y, fd, down=down)


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"conv_kernel": 1, "use_radial_filters": True, "channel_max": 16},
        {"conv_clamp": 0.4, "output_scale": 1.0},
        {"filter_size": 4, "lrelu_upsampling": 4, "margin_size": 6},
        {"num_layers": 4, "num_critical": 1, "conv_clamp": None},
        {"first_cutoff": 1.5, "first_stopband": 5.0, "last_stopband_rel": 1.5},
        {"lrelu_upsampling": 1, "num_critical": 0},
        {"filter_size": 1, "conv_kernel": 5},
    ],
    ids=str,
)
def test_stylegan3_matches_textbook(variant: dict) -> None:
    g = generator3(**variant).set_dtype(torch.float64)
    angle = 0.3
    g.synthesis.input.transform.copy_(
        torch.tensor([[math.cos(angle), -math.sin(angle), 0.1], [math.sin(angle), math.cos(angle), -0.2], [0, 0, 1]])
    )
    ws = torch.randn(2, g.num_ws, g.w_dim, dtype=torch.float64)
    close(g.synthesize(ws), synthesize3(g, ws), 1e-7)  # 1e-8 inside the demodulation is the difference
    close(g.synthesize(ws.requires_grad_()), g.synthesize(ws.detach()))
    close(g.synthesize(ws[:1].detach()), g.synthesize(ws.detach())[:1])


@pytest.mark.parametrize("resolution", [16, 32, 64, 128, 256, 512, 1024, 2048])
def test_stylegan3_plan_matches_numpy(resolution: int) -> None:
    """The sampling rates must round as in float64 numpy: at 256 one stop band lies on a power of two."""
    cfg = read_config({}, stylegan3.SYNTHESIS_RULES, "test")
    n, cutoff, stopband = 14, resolution / 2, resolution / 2 * 2**0.3
    exponents = np.minimum(np.arange(n + 1) / (n - 2), 1)
    stopbands = 2**2.1 * (stopband / 2**2.1) ** exponents
    cutoffs = 2 * (cutoff / 2) ** exponents
    rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, resolution))))
    plans = stylegan3.plan_layers(resolution, 3, cfg)
    assert [p.rate for p in plans] == rates.astype(int).tolist()
    assert np.allclose([p.cutoff for p in plans], cutoffs)
    assert np.allclose([p.half_width for p in plans], np.maximum(stopbands, rates / 2) - cutoffs)
    assert [p.size for p in plans][-2:] == [resolution] * 2


def test_lowpass_matches_scipy() -> None:
    signal = pytest.importorskip("scipy.signal")
    special = pytest.importorskip("scipy.special")
    for taps, cutoff, width, rate in ((12, 2.0, 12.0, 32), (13, 5.0, 6.0, 64), (24, 3.0, 2.0, 64)):
        theirs = signal.firwin(numtaps=taps, cutoff=cutoff, width=width, fs=rate)
        assert np.allclose(stylegan3.lowpass(taps, cutoff, width, rate, False), theirs, atol=1e-7)
    x = (np.arange(12) - 5.5) / 32
    r = np.hypot(*np.meshgrid(x, x))
    f = special.j1(2 * 2.0 * np.pi * r) / (np.pi * r)
    w = np.kaiser(12, signal.kaiser_beta(signal.kaiser_atten(12, 12.0 / 16)))
    f = f * np.outer(w, w)
    assert np.allclose(stylegan3.lowpass(12, 2.0, 12.0, 32, True), f / f.sum(), atol=1e-7)


# --- the interface --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_styles_are_synthesize_in_two_steps(architecture: str) -> None:
    g = generator({"architecture": architecture})
    ws = torch.randn(2, g.num_ws, g.w_dim)
    s = g.styles(ws)
    assert len(s) == (8 if architecture == "skip" else 6)
    assert torch.equal(g.synthesize_styles(s), g.synthesize(ws))
    assert torch.equal(g.synthesize_styles(list(s), "none"), g.synthesize(ws, "none"))
    with pytest.raises(ShapeError, match="number of layers"):
        g.synthesize_styles(s[:-1])
    with pytest.raises(ShapeError, match=r"styles\[1\]"):
        g.synthesize_styles([s[0], s[1][:, 1:], *s[2:]])


@pytest.mark.parametrize("make", [generator, generator3])
def test_an_image_does_not_depend_on_its_batch(make, monkeypatch: pytest.MonkeyPatch) -> None:
    g = make()
    ws = torch.randn(5, g.num_ws, g.w_dim)
    together = g.synthesize(ws)
    close(torch.cat([g.synthesize(w[None]) for w in ws]), together, 1e-5)
    if make is generator:
        monkeypatch.setattr(stylegan2.SynthesisNetwork, "part_bytes", 2 * 4 * 8 * 16 * 16)
        close(g.synthesize(ws), together, 1e-5)


def test_noise() -> None:
    g = generator()
    ws = g.map(torch.randn(2, 8))
    a = g.synthesize(ws, "random", torch.Generator().manual_seed(1))
    assert torch.equal(a, g.synthesize(ws, "random", torch.Generator().manual_seed(1)))
    assert not torch.equal(a, g.synthesize(ws, "random", torch.Generator().manual_seed(2)))
    assert g.synthesize(ws, "random").shape == a.shape
    assert not torch.equal(g.synthesize(ws), g.synthesize(ws, "none"))
    same = g.synthesize(ws[:1].expand(2, -1, -1), "random", torch.Generator().manual_seed(1))
    assert not torch.equal(same[0], same[1])
    with pytest.raises(ShapeError, match="noise"):
        g.synthesize(ws, "loud")


def test_gradients() -> None:
    g = generator().set_dtype(torch.float64)
    ws = torch.randn(1, g.num_ws, g.w_dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: g.synthesize(w).mean(dim=(1, 3)), ws, fast_mode=True)
    d = discriminator(c_dim=3).set_dtype(torch.float64)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    c = torch.eye(3, dtype=torch.float64)[:2]
    assert torch.autograd.gradcheck(lambda x: d.score(x, c, None), x, fast_mode=True)
    h = generator3().set_dtype(torch.float64)
    ws = torch.randn(1, h.num_ws, h.w_dim, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: h.synthesize(w).mean(dim=(1, 3)), ws, fast_mode=True)


def test_shape_errors() -> None:
    g, cond = generator(), generator(c_dim=3)
    d, d_cond = discriminator(), discriminator(c_dim=3)
    z, c = torch.randn(2, 8), torch.eye(3)[:2]
    for call in (
        lambda: g.map(torch.randn(2, 9)),
        lambda: g.map(torch.randn(8)),
        lambda: g.map(torch.ones(2, 8, dtype=torch.int64)),
        lambda: g.map(z, c),
        lambda: cond.map(z, c[:1]),
        lambda: cond.map(z, torch.eye(4)[:2]),
        lambda: g.synthesize(torch.randn(2, 12)),
        lambda: g.synthesize(torch.randn(2, g.num_ws + 1, 12)),
        lambda: generator3().synthesize(torch.randn(2, 3, 12)),
        lambda: d.score(torch.randn(2, 3, 8, 8)),
        lambda: d.score(torch.randn(2, 1, 16, 16)),
        lambda: d.score(torch.randn(2, 3, 16, 16), c),
        lambda: d_cond.score(torch.randn(2, 3, 16, 16), torch.eye(3)[:1]),
        lambda: d.score(torch.randn(5, 3, 16, 16), group_size=None),
        lambda: d.score(torch.randn(5, 3, 16, 16), group_size=0),
    ):
        with pytest.raises(ShapeError, match="expected"):
            call()
    for call in (lambda: cond.map(z), lambda: d_cond.score(torch.randn(2, 3, 16, 16))):
        with pytest.raises(ShapeError, match="c is missing"):
            call()
    assert torch.equal(g.map(z, torch.zeros(2, 0)), g.map(z))
    assert d.score(torch.randn(3, 3, 16, 16), group_size=None).shape == (3,)


@pytest.mark.parametrize("make", [generator, generator3])
def test_no_device_syncs(make) -> None:
    """Under fake tensors on "cuda", a constant left on the CPU or a sync raises."""
    with FakeTensorMode():
        with torch.device("cuda"):
            g, d = make(), discriminator(c_dim=3)
        for dtype in (torch.float32, torch.bfloat16):
            g.set_dtype(dtype)
            d.set_dtype(dtype)
            for grad in (False, True):
                z = torch.empty(4, 8, device="cuda", requires_grad=grad)
                ws = g.map(z, truncation_psi=0.7, truncation_cutoff=3)
                for noise in ("const", "none", "random"):
                    images = g.synthesize(ws, noise)
                    assert images.device.type == "cuda"
                    assert images.shape == (4, 3, 16, 16)
                    assert images.dtype == torch.float32
                c = torch.empty(4, 3, device="cuda")
                for size in (1, None):
                    assert d.score(images, c, group_size=size).device.type == "cuda"
                if make is generator:
                    assert g.synthesize_styles(g.styles(ws)).device.type == "cuda"


def test_nothing_stale_is_used() -> None:
    g = generator()
    ws = g.map(torch.randn(2, 8))
    before = g.synthesize(ws)
    twin = copy.deepcopy(g)
    with torch.no_grad():
        g.synthesis.b8.conv1.weight.mul_(-1)
    assert not torch.equal(g.synthesize(ws), before)
    assert torch.equal(twin.synthesize(ws), before)
    g.load_state_dict(twin.state_dict())
    assert torch.equal(g.synthesize(ws), before)
    close(g.double().synthesize(ws.double()).float(), before, 1e-5)
    g.float()
    with torch.inference_mode():
        g.synthesize(ws)
    w = ws.clone().requires_grad_()
    g.synthesize(w).sum().backward()
    assert w.grad is not None


def test_training_the_generator() -> None:
    g = generator()
    ws = torch.randn(1, g.num_ws, g.w_dim)
    g.synthesize(ws)
    g.requires_grad_(True)
    g.synthesize(ws).square().mean().backward()
    grads = {n: p.grad for n, p in g.synthesis.named_parameters()}
    assert all(v is not None and v.abs().max() > 0 for v in grads.values()), [n for n, v in grads.items() if v is None]


@pytest.mark.parametrize("make", [generator, generator3])
def test_bfloat16(make, monkeypatch: pytest.MonkeyPatch) -> None:
    g = make({"channel_base": 512, "channel_max": 32}) if make is generator else make()
    ws = g.map(torch.randn(2, 8))
    exact = g.synthesize(ws)
    scale = 0.5 / exact.std()
    monkeypatch.setattr(base, "native_bf16", lambda device: True)
    half = g.set_dtype(torch.bfloat16).synthesize(ws)
    assert half.dtype == torch.float32
    assert not torch.equal(half, exact)
    assert 10 * torch.log10(4 / ((half - exact) * scale).square().mean()) > 40
    monkeypatch.setattr(base, "native_bf16", lambda device: False)
    assert torch.equal(g.synthesize(ws), exact)
    with pytest.raises(CheckpointError, match="dtype"):
        g.set_dtype(torch.float16)


def test_bad_configurations() -> None:
    for change in ({"kernel_size": 2}, {"channels": [1, 2]}, {"architecture": "skipp"}, {"conv_clamp": -1}):
        with pytest.raises(CheckpointError):
            generator(change)
    for top in ({"img_resolution": 24}, {"img_resolution": 1 << 14}, {"w_dim": 10**9}, {"z_dim": 0}, {"z_dim": 2.5}):
        with pytest.raises(CheckpointError):
            generator(**top)
    with pytest.raises(CheckpointError, match="use_fancy"):
        generator({"use_fancy": 1})
    for change in ({"num_layers": 2}, {"num_layers": 10**6}, {"first_stopband": 0.1}, {"conv_clampp": 1}):
        with pytest.raises(CheckpointError):
            generator3(**change)
    with pytest.raises(CheckpointError):
        discriminator(epilogue={"mbstd_num_channels": 5})


# --- NVIDIA's outputs -----------------------------------------------------------------------------


@pytest.mark.skipif(not GOLDEN, reason="the golden files are not here")
@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    want = load_file(path.with_suffix(".expected.safetensors"))
    g, d = load_generator(path), load_discriminator(path)
    c = want["c"]
    ws = g.map(want["z"], c)
    pairs = [
        (ws, want["ws"]),
        (g.map(want["z"], c, 0.7), want["ws_trunc07"]),
        (g.synthesize(ws), want["image"]),
        (g.synthesize(want["ws_trunc07"]), want["image_trunc07"]),
        (g.synthesize(want["ws_plus"]), want["image_plus"]),
        (d.score(want["image"], c, None), want["d_logits_batch"][:, 0]),
        (d.score(want["image"], c), want["d_logits_single"][:, 0]),
    ]
    if "image_no_noise" in want:
        pairs.append((g.synthesize(ws, "none"), want["image_no_noise"]))
    for ours, theirs in pairs:
        close(ours, theirs, 1e-5)
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    print(f"{path.stem}: largest relative error {worst:.1e}")
    assert not torch.equal(load_generator(path, which="G").synthesize(ws), want["image"])
