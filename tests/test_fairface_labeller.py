"""FairFace's labeller, against torchvision's ResNet-34 with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import ResNet, resnet34
from torchvision.transforms.functional import normalize

from fairface_synth.errors import CheckpointError, DataError, ShapeError
from fairface_synth.models.fairface import load_labeller
from fairface_synth.models.protocols import Labeller


def random_net(outputs: int) -> ResNet:
    with torch.random.fork_rng():
        torch.manual_seed(outputs)
        return resnet34(num_classes=outputs).eval()


def saved(net: ResNet, folder: Path) -> Path:
    path = folder / "net.pt"
    torch.save(net.state_dict(), path)
    return path


def random_images(n: int, height: int, width: int) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(
    ("outputs", "races", "columns"),
    [
        (18, 7, {"race": (0, 7), "gender": (7, 9), "age": (9, 18)}),
        (15, 4, {"race": (0, 4), "gender": (4, 6), "age": (6, 15)}),
        (18, 4, {"race": (0, 4)}),
    ],
)
def test_columns_and_probabilities(
    tmp_path: Path, outputs: int, races: int, columns: dict[str, tuple[int, int]]
) -> None:
    net = random_net(outputs)
    labeller = load_labeller(saved(net, tmp_path), races=races)  # type: ignore[arg-type]
    images = random_images(3, 224, 224)
    with torch.no_grad():
        pixels = normalize((images + 1) / 2, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
        logits = net(pixels)
        labels = labeller(images)
    assert isinstance(labeller, Labeller)
    assert list(labels) == list(labeller.attributes) == list(columns)
    for name, (first, last) in columns.items():
        expected = logits[:, first:last].softmax(dim=1)
        assert len(labeller.attributes[name]) == last - first
        assert labels[name].dtype == torch.float32
        torch.testing.assert_close(labels[name], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(labels[name].sum(dim=1), torch.ones(3))


def test_vocabulary(tmp_path: Path) -> None:
    path = saved(random_net(18), tmp_path)
    seven, four = load_labeller(path), load_labeller(path, races=4)
    assert seven.attributes["race"] == (
        "white",
        "black",
        "latino-hispanic",
        "east-asian",
        "southeast-asian",
        "indian",
        "middle-eastern",
    )
    assert seven.attributes["gender"] == ("male", "female")
    assert seven.attributes["age"][0] == "0-2"
    assert seven.attributes["age"][-1] == "70+"
    assert four.attributes == {"race": ("white", "black", "asian", "indian")}
    assert "race: 7" in repr(seven)


def test_any_size_dtype_and_device(tmp_path: Path) -> None:
    path = saved(random_net(18), tmp_path)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    labeller = load_labeller(path)
    assert torch.equal(before, torch.get_rng_state())
    large = random_images(2, 300, 260)
    small = F.interpolate(large, (224, 224), mode="bilinear", antialias=True)
    torch.testing.assert_close(labeller.train()(large)["age"], labeller(small)["age"])
    assert labeller(large[:0])["race"].shape == (0, 7)
    half = load_labeller(path, dtype=torch.bfloat16)(small)["race"]
    assert half.dtype == torch.float32
    assert (half - labeller(small)["race"]).abs().max() < 0.05
    away = load_labeller(path, device="meta")  # the meta device has no values: a wait would raise
    assert away(large.to("meta"))["gender"].shape == (2, 2)
    small.requires_grad_(True)
    labeller(small)["gender"][0, 0].backward()
    assert small.grad is not None
    assert small.grad.abs().sum() > 0


def test_errors(tmp_path: Path) -> None:
    path = saved(random_net(18), tmp_path)
    with pytest.raises(DataError, match="7 or 4"):
        load_labeller(path, races=5)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="no such file"):
        load_labeller(tmp_path / "nowhere.pt")
    with pytest.raises(ShapeError, match="not images"):
        load_labeller(path)(torch.zeros(1, 1, 8, 8))
    with pytest.raises(CheckpointError, match="15 outputs"):
        load_labeller(saved(random_net(15), tmp_path))
    torch.save({"conv1.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"fc\.weight and fc\.bias"):
        load_labeller(path)
    state = random_net(18).state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="unexpected: extra"):
        load_labeller(path)
