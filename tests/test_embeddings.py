from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairface_synth import DataError, ShapeError, embed


class _Net(nn.Module):
    """A linear embedder that counts the images it sees."""

    dim = 6

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        weight = torch.randn(self.dim, 3 * 8 * 8, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("weight", weight)
        self.seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return nn.functional.normalize(images.flatten(1) @ self.weight.T, dim=1)


def _faces(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_embed_takes_a_tensor_or_batches() -> None:
    net, images = _Net(), _faces(23)
    expected = net(images)
    torch.testing.assert_close(embed(net, images, batch_size=5, progress=False), expected)
    torch.testing.assert_close(embed(net, iter(images.split([1, 0, 20, 2])), batch_size=7, progress=False), expected)


def test_a_second_run_embeds_only_what_is_new(tmp_path: Path) -> None:
    net, images, cache = _Net(), _faces(30), tmp_path / "embeddings.safetensors"
    first = embed(net, images[:20], cache=cache, batch_size=8, progress=False)
    assert net.seen == 20
    net = _Net()
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    second = embed(net, images[shuffled], cache=cache, batch_size=7, progress=False)
    assert net.seen <= 10 + 4  # the new ones and a few that are checked
    torch.testing.assert_close(second, _Net()(images)[shuffled])
    torch.testing.assert_close(second[shuffled < 20], first[shuffled[shuffled < 20]])
    net = _Net()
    before = cache.stat().st_mtime_ns
    embed(net, images, cache=cache, progress=False)
    assert net.seen <= 4
    assert cache.stat().st_mtime_ns == before  # nothing new, nothing written
    assert [p.name for p in tmp_path.iterdir()] == [cache.name]


def test_repeated_images_are_embedded_once(tmp_path: Path) -> None:
    net, images = _Net(), _faces(3)
    found = embed(net, images.repeat(4, 1, 1, 1), cache=tmp_path / "c", progress=False)
    assert net.seen == 3
    torch.testing.assert_close(found, _Net()(images).repeat(4, 1))


def test_an_almost_equal_image_is_another_image(tmp_path: Path) -> None:
    images = _faces(4)
    embed(_Net(), images, cache=tmp_path / "c", progress=False)
    changed = images.clone()
    changed[2, 0, 0, 0] += 0.5
    found = embed(_Net(), changed, cache=tmp_path / "c", progress=False)
    torch.testing.assert_close(found, _Net()(changed))
    # The same bytes in another shape are not the same image either.
    wide = images.view(4, 3, 4, 16)
    torch.testing.assert_close(embed(_Net(), wide, cache=tmp_path / "c", progress=False), _Net()(wide))


def test_a_cache_never_serves_another_embedder(tmp_path: Path) -> None:
    images, cache = _faces(6), tmp_path / "c"
    embed(_Net(0), images, cache=cache, progress=False)
    stored = cache.read_bytes()
    with pytest.raises(DataError, match="another embedder"):
        embed(_Net(1), images, cache=cache, progress=False)
    # The same class and weights, but another forward pass: noticed by computing a few again.
    changed = _Net(0)
    changed.forward = lambda images: nn.functional.normalize(images.flatten(1).flip(1) @ changed.weight.T, dim=1)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="another embedder"):
        embed(changed, images, cache=cache, progress=False)
    assert cache.read_bytes() == stored


def test_a_file_that_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(DataError, match="cannot read"):
        embed(_Net(), _faces(2), cache=path, progress=False)
    assert path.read_text() == "dear diary"


def test_an_interrupted_run_keeps_what_it_did(tmp_path: Path) -> None:
    images = _faces(20)

    def interrupted() -> Any:
        yield images[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(_Net(), interrupted(), cache=tmp_path / "c", progress=False)
    net = _Net()
    embed(net, images, cache=tmp_path / "c", progress=False)
    assert net.seen <= 8 + 4


def test_embed_refuses_bad_images_and_embedders(tmp_path: Path) -> None:
    net, images = _Net(), _faces(4)
    for nothing in (images[:0], [], iter(())):
        with pytest.raises(DataError, match="no images"):
            embed(net, nothing, progress=False)
    with pytest.raises(ShapeError, match="no batch of images"):
        embed(net, images[0], progress=False)
    with pytest.raises(ShapeError, match="images for images, _ in loader"):
        embed(net, [(images, torch.zeros(4))], progress=False)  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"\[-1, 1\]"):
        embed(net, images * 127, progress=False)
    with pytest.raises(DataError, match="batch_size"):
        embed(net, images, batch_size=0, progress=False)
    net.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="not unit vectors"):
        embed(net, images, cache=tmp_path / "c", progress=False)
    assert not (tmp_path / "c").exists()
    net.dim = 5
    with pytest.raises(ShapeError, match="gave something else"):
        embed(net, images, progress=False)
