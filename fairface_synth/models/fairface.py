"""FairFace's classifier of race, gender and age as a labeller, from its released checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, DataError
from .pretrained import check_images, device_of, load_into, read_state, resize

RACES_7 = ("white", "black", "latino-hispanic", "east-asian", "southeast-asian", "indian", "middle-eastern")
RACES_4 = ("white", "black", "asian", "indian")
GENDERS = ("male", "female")
AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+")

# ImageNet's mean and standard deviation, of pixels in [0, 1].
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FairFaceLabeller(nn.Module):
    """ResNet-34 with one softmax an attribute; made by `load_labeller`.

    Always in evaluation mode (train() is ignored), its weights frozen; gradients reach the images.

    Attributes:
        attributes: attribute → values, in the order of the probabilities' columns.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, attributes: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.net = net
        self.attributes = dict(attributes)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.train(False)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FairFaceLabeller:
        """Stay in evaluation mode: batch statistics would make labels depend on their batch."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images [n, 3, H, W] in [-1, 1] → {attribute: probabilities [n, k]}, float32, rows sum to 1.

        Any size: images are brought to 224 × 224 (antialiased bilinear), values clamped as saving would.

        Raises:
            ShapeError: images are not float [n, 3, H, W] on the labeller's device.
        """
        check_images(images, device_of(self))
        pixels = (resize(images.float(), (224, 224)).clamp(-1, 1) + 1) / 2
        pixels = (pixels - self.mean) / self.std
        logits = self.net(pixels.to(next(self.parameters()).dtype)).float()
        widths = [len(values) for values in self.attributes.values()]
        parts = logits[:, : sum(widths)].split(widths, dim=1)
        return {name: part.softmax(dim=1) for name, part in zip(self.attributes, parts, strict=True)}

    def __repr__(self) -> str:
        kinds = ", ".join(f"{name}: {len(values)}" for name, values in self.attributes.items())
        return f"FairFaceLabeller({kinds}, device={device_of(self)})"


def load_labeller(
    source: str | Path,
    *,
    races: Literal[7, 4] = 7,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> FairFaceLabeller:
    """FairFace's ResNet-34 (Kärkkäinen & Joo, WACV 2021, arXiv 1908.04913) from a local file.

    The authors release `res34_fair_align_multi_7_20190809.pt` and `res34_fair_align_multi_4_20190809.pt`
    (https://github.com/joojs/fairface). Nothing is downloaded here.

    What it expects: faces cut by dlib's five-point `get_face_chips` with padding 0.25 (upright, eyes level,
    some margin around the face). Nothing here vouches for its accuracy on other crops.

    What it is worth: the labels are one annotator pool's *perceived* categories, and on FairFace's own
    validation set the 7-race model is right for 71.4 % of faces, between 59 and 62 % for latino-hispanic,
    southeast-asian and middle-eastern ones (white 75.5, black 86.1, latino-hispanic 59.3, east-asian 78.0,
    southeast-asian 62.3, indian 73.0, middle-eastern 61.8 %: measured by a user, issue 7 of the authors'
    repository dchen236/FairFace). A balance figure read off it needs its confusion matrix beside it.

    Columns, as in that repository's predict.py: 18 outputs are 7 races, 2 genders, 9 ages. Of the 4-race
    file's 18 outputs predict.py reads the first four and nothing documents the others, so with 4 races there
    are gender and age only where the last layer has 15 = 4 + 2 + 9 outputs.

    Args:
        source: path of the state dict.
        races: 7, or 4 (white, black, asian, indian) for the 4-race file: its shapes do not tell.
        device: where it runs; None: the CPU.
        dtype: of the weights and the arithmetic; probabilities are float32 in any case.

    Raises:
        CheckpointError: no readable file, or not such a model.
        DataError: `races` is neither 7 nor 4.
    """
    if races not in (4, 7):
        raise DataError("FairFace's models know 7 or 4 races", expected="races=7 or races=4", got=races)
    from torchvision.models import resnet34

    path = Path(source)
    state = read_state(path, fix="download FairFace's res34_fair_align_multi_7_20190809.pt and pass its path")
    outputs = _outputs(state, path)
    attributes = _attributes(outputs, races, path)
    with torch.device("meta"):
        net = resnet34(num_classes=outputs)
    load_into(net, state, path, "FairFace's ResNet-34")
    return FairFaceLabeller(net.to(dtype=dtype), attributes).to(device)


def _outputs(state: Mapping[str, Tensor], path: Path) -> int:
    """Width of the last layer."""
    bias = state.get("fc.bias")
    if bias is None or bias.ndim != 1:
        raise CheckpointError(
            f"{path} is not a state dict of FairFace's ResNet-34",
            expected="torchvision's resnet34 names, with fc.weight and fc.bias",
            got=f"{len(state)} tensors: {', '.join(list(state)[:3])}, …",
            fix="pass the released .pt file, or torch.save(model.state_dict(), path)",
        )
    return len(bias)


def _attributes(outputs: int, races: int, path: Path) -> dict[str, tuple[str, ...]]:
    """What the columns of the last layer mean; `FairFaceLabeller` reads them from the left."""
    if races == 7 and outputs == 18:
        return {"race": RACES_7, "gender": GENDERS, "age": AGES}
    if races == 4 and outputs == 15:
        return {"race": RACES_4, "gender": GENDERS, "age": AGES}
    if races == 4 and outputs == 18:
        return {"race": RACES_4}
    raise CheckpointError(
        f"the last layer of {path} does not fit {races} races",
        expected="18 outputs (7 + 2 + 9)" if races == 7 else "18 outputs (the first 4 are races) or 15 (4 + 2 + 9)",
        got=f"{outputs} outputs",
        fix=f"pass races={4 if races == 7 else 7}, or the right file",
    )
