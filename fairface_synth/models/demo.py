"""The bundled world: a small face generator with a labeller, a judge, an embedder and directions, all offline.

Where the weights come from, how noisy the labels are and what must not be concluded: docs/demo_world.md.
Every network of ours here is made by examples/train_demo_models.py, the directions by examples/fit_demo_directions.py,
the attribute classifier by examples/train_demo_mac.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ..attribute_classifier import MAC
from ..errors import CheckpointError, ShapeError
from ..latents import truncate
from ..variations import Axis, Direction
from .layers import brief
from .pretrained import check_images, resize
from .protocols import NoiseMode

SKIN_TONE_EDGES = (-30.0, 28.0)  # ITA in degrees: dark below the first, light above the second
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "skin_tone": ("light", "medium", "dark"),
    "age": ("younger", "middle", "older"),
}


class DCGANGenerator(nn.Module):
    """A DCGAN generator (Radford et al. 2016) behind the generator protocol; w is z, in one layer.

    Args:
        z_dim: width of z ~ N(0, I).
        channels: feature maps of each transposed convolution but the last; the image side is 4·2^len(channels).
    """

    c_dim = 0
    num_ws = 1
    w_avg: Tensor

    def __init__(self, z_dim: int = 100, channels: tuple[int, ...] = (512, 256, 128, 64)) -> None:
        super().__init__()
        self.z_dim = self.w_dim = z_dim
        self.resolution = 4 * 2 ** len(channels)
        self.config: dict[str, Any] = {"z_dim": z_dim, "channels": list(channels)}
        layers: list[nn.Module] = []
        width = z_dim
        for i, out in enumerate(channels):
            stride, padding = (1, 0) if i == 0 else (2, 1)
            layers += [nn.ConvTranspose2d(width, out, 4, stride, padding, bias=False), nn.BatchNorm2d(out)]
            layers += [nn.ReLU(inplace=True)]
            width = out
        layers += [nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False)]
        self.main = nn.Sequential(*layers)
        self.register_buffer("w_avg", torch.zeros(z_dim), persistent=False)
        self.eval().requires_grad_(False)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DCGANGenerator:
        """Build from the `config` of a saved generator.

        Raises:
            CheckpointError: the configuration has other entries, or sizes that are not admitted.
        """
        z_dim: Any = config.get("z_dim")
        channels = config.get("channels")
        listed: Any = channels if isinstance(channels, (list, tuple)) and 1 <= len(channels) <= 10 else [None]
        if len(config) != 2 or not all(type(v) is int and 1 <= v <= 16384 for v in (z_dim, *listed)):
            raise CheckpointError(
                "the configuration of this DCGAN is not admitted",
                expected="z_dim and 1 to 10 channels, integers in [1, 16384], and nothing else",
                got=f"z_dim {brief(z_dim)}, channels {brief(channels)}, {len(config)} entries",
                fix="the file is damaged or was made by other code; save the generator again with save_generator",
            )
        return cls(z_dim, tuple(listed))

    def map(
        self,
        z: Tensor,
        c: Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """z [n, z_dim] → w [n, 1, z_dim]: the identity, truncated towards 0."""
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ShapeError("wrong latents", expected=f"z [n, {self.z_dim}]", got=list(z.shape))
        return truncate(z.unsqueeze(1), self.w_avg, truncation_psi, truncation_cutoff)

    def synthesize(self, w: Tensor, noise: NoiseMode = "const") -> Tensor:
        """w [n, 1, z_dim] → float32 images [n, 3, H, W] in [-1, 1]; the model has no noise inputs."""
        if w.ndim != 3 or w.shape[1:] != (1, self.w_dim):
            raise ShapeError(
                "wrong latents",
                expected=f"w [n, 1, {self.w_dim}]",
                got=list(w.shape),
                fix="z: generator.map(z) first; W [n, d], as Sample.latents has it: ffs.to_layers(generator, w)",
            )
        x = w[:, 0, :, None, None].to(next(self.parameters()).dtype)
        return self.main(x).float().tanh()


class CompactNet(nn.Module):
    """A small residual network for 64×64 faces with one linear head per output.

    Args:
        heads: output name → width.
        width: channels after the stem; they double at each of three stages.
    """

    def __init__(self, heads: Mapping[str, int], width: int = 16) -> None:
        super().__init__()
        sizes = [width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = [_ConvBlock(3, width, stride=2)]
        for c_in, c_out in pairwise(sizes):
            layers += [_ConvBlock(c_in, c_out, stride=2), _Residual(c_out)]
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * sizes[-1], k) for name, k in heads.items()})
        self.config: dict[str, Any] = {"heads": dict(heads), "width": width}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images [n, 3, 64, 64] in [-1, 1] → {head: float32 outputs [n, k]}."""
        x = self.body(images)
        x = torch.cat((x.mean((2, 3)), x.amax((2, 3))), dim=1)
        x = self.dropout(x)
        return {name: head(x).float() for name, head in self.heads.items()}


class _ConvBlock(nn.Sequential):
    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv0 = _ConvBlock(c, c)
        self.conv1 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.conv1(self.conv0(x))))


class CompactLabeller(nn.Module):
    """A `CompactNet` whose heads are attributes: images → calibrated probabilities (the labeller protocol)."""

    def __init__(self, net: CompactNet, attributes: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.net = net
        self.attributes = dict(attributes)

    def __repr__(self) -> str:
        return f"CompactLabeller({self.attributes})"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images [n, 3, H, W] in [-1, 1] → {attribute: float32 probabilities [n, k]}."""
        outputs = self.net(_at_64(images, self.net))
        return {name: outputs[name].softmax(1) for name in self.attributes}


class CompactEmbedder(nn.Module):
    """A `CompactNet` with one head, normalised: images → unit identity vectors (the embedder protocol)."""

    def __init__(self, net: CompactNet) -> None:
        super().__init__()
        self.net = net
        self.dim: int = net.config["heads"]["embedding"]

    def __repr__(self) -> str:
        return f"CompactEmbedder(dim={self.dim})"

    def forward(self, images: Tensor) -> Tensor:
        """images [n, 3, H, W] in [-1, 1] → float32 unit vectors [n, dim]."""
        return F.normalize(self.net(_at_64(images, self.net))["embedding"], dim=1)


def _at_64(images: Tensor, net: nn.Module) -> Tensor:
    check_images(images)
    weight = next(net.parameters())
    return resize(images.float(), (64, 64)).to(weight.dtype).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class DemoWorld:
    """What `load_demo` gives: everything a first experiment needs, offline.

    Attributes:
        generator: 64×64 faces from z ~ N(0, I₁₀₀).
        labeller: perceived gender, apparent skin tone, apparent age. Use it to select.
        judge: the same attributes from other teachers, seed and split. Use it to score what the labeller selected.
        embedder: unit identity vectors [n, 256].
        directions: of w, for `edit` and `vary`: "yaw" (positive: nose to the viewer's right), "mouth opening",
            "illumination side" (positive: brighter on the viewer's right), "illumination level" and "age" (apparent
            age, from the labeller). In float32.
        mac: attribute classifier on the embedder's vectors: 16 attributes of what teachers see in such faces
            (docs/annotation.md). In float32.
    """

    generator: DCGANGenerator
    labeller: CompactLabeller
    judge: CompactLabeller
    embedder: CompactEmbedder
    directions: Mapping[str, Direction]
    mac: MAC


def load_demo(device: torch.device | str | None = None, dtype: torch.dtype = torch.float32) -> DemoWorld:
    """Load the bundled world. Its labels are machine-made and noisy: read docs/demo_world.md before concluding.

    Args:
        device: where the networks live; CPU by default.
        dtype: compute type of the four networks; torch.bfloat16 is several times faster where the hardware has it.
    """
    device = torch.device("cpu") if device is None else torch.device(device)
    nets = {name: _load_net(name) for name in ("labeller", "judge", "embedder")}
    world = DemoWorld(
        generator=_load_generator(),
        labeller=CompactLabeller(*nets["labeller"]),
        judge=CompactLabeller(*nets["judge"]),
        embedder=CompactEmbedder(nets["embedder"][0]),
        directions={name: d.to(device) for name, d in _load_directions().items()},
        mac=_load_mac().to(device, torch.float32),
    )
    for model in (world.generator, world.labeller, world.judge, world.embedder):
        model.eval().requires_grad_(False).to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return world


def demo_axes(directions: Mapping[str, Direction]) -> tuple[Axis, ...]:
    """45 variations for the bundled world, in place of `published_axes`, whose expressions it does not have.

    20 yaws and 20 illumination sides spread as the published poses and illuminations are, and five mouth openings from
    shut to open. The scales are wider than the published 0.75 and 1.25, since the class means here are of quartiles.

    Args:
        directions: those of `load_demo`.
    """
    return (
        Axis.spread(directions["yaw"], 20, 1.5),
        Axis.spread(directions["illumination side"], 20, 2.0),
        Axis.between(directions["mouth opening"], 5, 2.5),
    )


def _load_directions() -> dict[str, Direction]:
    config, tensors = _read_weights("directions")
    directions = {}
    for name, fit in config.items():
        fields: dict[str, Any] = {k: tensors[f"{name}/{k}"] for k in ("normal", "neg_mean", "pos_mean", "offset")}
        directions[name] = Direction(**fields, **fit, name=name)
    return directions


def _load_mac() -> MAC:
    with resources.as_file(resources.files("fairface_synth.models") / "weights" / "demo_mac.safetensors") as file:
        return MAC.load(file)


def _read_weights(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = resources.files("fairface_synth.models") / "weights" / f"demo_{name}.safetensors"
    with resources.as_file(path) as file, safe_open(file, "pt") as f:
        config = json.loads(f.metadata()["config"])
        return config, {key: f.get_tensor(key).float() for key in f.keys()}  # noqa: SIM118


def _load_generator() -> DCGANGenerator:
    config, state = _read_weights("generator")
    generator = DCGANGenerator.from_config(config)
    generator.load_state_dict(state, strict=False)  # num_batches_tracked has no use in a frozen network
    return generator


def _load_net(name: str) -> tuple[CompactNet, dict[str, tuple[str, ...]]]:
    config, state = _read_weights(name)
    net = CompactNet(config["heads"], config["width"])
    net.load_state_dict(state, strict=False)
    return net, {attribute: tuple(values) for attribute, values in config.get("attributes", {}).items()}
