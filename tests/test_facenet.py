"""Detector, alignment and embedder, against facenet-pytorch's own code, numpy and closed forms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from facenet_pytorch import MTCNN, InceptionResnetV1, fixed_image_standardization
from facenet_pytorch.models.utils.detect_face import nms_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import fairface_synth
from fairface_synth.errors import CheckpointError, DataError, ShapeError
from fairface_synth.models import facenet
from fairface_synth.models.facenet import align_faces, load_detector, load_embedder
from fairface_synth.models.protocols import Embedder

ARCFACE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def faces() -> Tensor:
    """48 natural images of the bundled generator, [48, 3, 64, 64]."""
    try:
        generator = fairface_synth.load_demo().generator
    except FileNotFoundError:
        pytest.skip("the bundled world's weights are not installed")
    z = torch.randn(48, generator.z_dim, generator=seeded(3))
    with torch.no_grad():
        return generator.synthesize(generator.map(z))


@pytest.fixture(scope="module")
def detector() -> facenet.FaceDetector:
    return load_detector()


# -------------------------------------------------------------------------------- detector


def test_finds_faces_of_the_bundled_world(detector: facenet.FaceDetector, faces: Tensor) -> None:
    found = detector(faces)
    assert found.found().float().mean() >= 0.85  # about 0.95 over many images
    assert found.boxes[found.found()].isfinite().all()
    points = found.landmarks[found.found()].median(dim=0).values
    left_eye, right_eye, nose, left_mouth, right_mouth = points.unbind()
    assert left_eye[0] < nose[0] < right_eye[0]  # the viewer's left
    assert left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


@pytest.mark.parametrize("select", ["probability", "largest"])
def test_same_results_as_facenet_pytorch(faces: Tensor, select: str) -> None:
    ours = load_detector(size=128, min_face=0.2, select=select, batch_size=5)(faces[:12])
    theirs = MTCNN(min_face_size=0.2 * 128, select_largest=select == "largest", keep_all=True)
    large = F.interpolate(faces[:12], (128, 128), mode="bilinear", antialias=True)
    pixels = ((large + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    for i, (boxes, probabilities, points) in enumerate(zip(*theirs.detect(pixels, landmarks=True), strict=True)):
        if boxes is None:
            assert ours.probability[i] == 0
            continue
        best = 0 if select == "largest" else int(np.argmax(probabilities))
        assert ours.probability[i].item() == pytest.approx(probabilities[best], abs=1e-5)
        scale = 64 / 128
        np.testing.assert_allclose(ours.boxes[i], (boxes[best].astype(float) + 0.5) * scale - 0.5, atol=1e-3)
        np.testing.assert_allclose(ours.landmarks[i], (points[best].astype(float) + 0.5) * scale - 0.5, atol=1e-3)


def test_nothing_found_in_noise_black_and_nan(detector: facenet.FaceDetector, faces: Tensor) -> None:
    noise = torch.rand(3, 3, 64, 64, generator=seeded(0)) * 2 - 1
    images = torch.cat((noise, torch.full((1, 3, 64, 64), -1.0), torch.full((1, 3, 64, 64), torch.nan)))
    alone = detector(images)
    assert torch.equal(alone.probability, torch.zeros(5))
    assert alone.boxes.isnan().all()
    assert alone.landmarks.isnan().all()
    assert not alone.found().any()
    beside = detector(torch.cat((images, faces[:4])))  # and they leave their neighbours alone
    torch.testing.assert_close(beside.probability[5:], detector(faces[:4]).probability)
    assert torch.equal(beside.probability[:5], torch.zeros(5))


def test_batches_do_not_matter(detector: facenet.FaceDetector, faces: Tensor) -> None:
    small, large = load_detector(batch_size=3)(faces[:10]), load_detector(batch_size=10)(faces[:10])
    torch.testing.assert_close(small.landmarks, large.landmarks, equal_nan=True, rtol=0, atol=1e-3)
    torch.testing.assert_close(small.probability, large.probability, rtol=0, atol=1e-5)
    empty = detector(faces[:0])
    assert empty.probability.shape == (0,)
    assert empty.boxes.shape == (0, 4)
    assert empty.landmarks.shape == (0, 5, 2)


def test_coordinates_are_the_original_images(detector: facenet.FaceDetector, faces: Tensor) -> None:
    at_64, at_192 = detector(faces), detector(F.interpolate(faces, (192, 192), mode="bilinear"))
    both = at_64.found() & at_192.found()
    expected = (at_64.landmarks[both] + 0.5) * 3 - 0.5
    assert (at_192.landmarks[both] - expected).abs().median() < 3  # one pixel of the small image
    padded = detector(F.pad(faces, (40, 0, 0, 0), value=-1.0))  # wider than high: 40 pixels to the left
    shift = (padded.landmarks - at_64.landmarks)[padded.found() & at_64.found()]
    assert shift[..., 0].median().item() == pytest.approx(40, abs=1)
    assert shift[..., 1].median().item() == pytest.approx(0, abs=1)


def test_several_faces_the_rule_is_the_users(detector: facenet.FaceDetector, faces: Tensor) -> None:
    sure = detector(faces).probability.argsort(descending=True)
    best, other = faces[sure[0]], faces[sure[1]]
    scene = torch.full((1, 3, 128, 192), -1.0)
    scene[0, :, :, 64:] = F.interpolate(other[None], (128, 128), mode="bilinear")[0]
    scene[0, :, 32:96, :64] = best
    largest = load_detector(select="largest", size=256, min_face=0.12)(scene)
    assert largest.boxes[0, 0] > 60
    probable = load_detector(select="probability", size=256, min_face=0.12)(scene)
    assert probable.probability[0] >= largest.probability[0]


def test_detector_errors(detector: facenet.FaceDetector) -> None:
    with pytest.raises(ShapeError, match="not images"):
        detector(torch.zeros(2, 64, 64, 3))
    with pytest.raises(ShapeError, match="uint8"):
        detector(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ShapeError, match="apart"):
        detector(torch.zeros(2, 3, 64, 64, device="meta"))
    with pytest.raises(DataError, match="12 pixels"):
        load_detector(size=96, min_face=0.1)
    with pytest.raises(DataError, match="unknown rule"):
        load_detector(select="first")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="out of range"):
        load_detector(factor=1.0)


def test_detections_are_plain_data(detector: facenet.FaceDetector, faces: Tensor) -> None:
    some = detector(faces[:4].requires_grad_(False))
    assert len(some) == 4
    assert repr(some) == "Detections(n=4, device=cpu)"
    assert some.to("meta").boxes.device.type == "meta"
    assert torch.equal(some.found(0.7), some.probability >= 0.7)


def test_loading_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    load_detector()
    assert torch.equal(before, torch.get_rng_state())


def test_facenet_pytorch_loads_when_used() -> None:
    code = "import sys, fairface_synth.models.facenet; assert 'facenet_pytorch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([24, 48]))
def test_cut_is_interpolate_area(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.uniform(0, 255, (2, 3, 37, 53)).astype(np.float32))
    corner = rng.uniform(-10, 30, (6, 2))
    boxes = torch.from_numpy(np.concatenate((corner, corner + rng.uniform(12, 60, (6, 2))), 1)).float()
    image = torch.from_numpy(rng.integers(0, 2, 6))
    nothing = torch.zeros(6)
    candidates = facenet._Candidates(boxes, nothing, image, nothing, nothing)
    got = facenet._cut(facenet._integral(pixels), candidates, size)
    for k, (x0, y0, x1, y1) in enumerate(boxes.trunc().int().tolist()):  # the crops of facenet-pytorch's pad()
        crop = pixels[image[k], :, max(y0, 1) - 1 : min(y1, 37), max(x0, 1) - 1 : min(x1, 53)]
        expected = (F.interpolate(crop[None], (size, size), mode="area") - 127.5) / 128
        torch.testing.assert_close(got[k : k + 1], expected, rtol=0, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 30))
def test_contained_suppression_is_greedy(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(5, 50, (count, 2))), 1).astype(np.float32)
    score = rng.uniform(0.7, 1, count).astype(np.float32)
    image = rng.integers(0, 2, count)
    nothing = torch.zeros(count)
    candidates = facenet._Candidates(
        torch.from_numpy(boxes), torch.from_numpy(score), torch.from_numpy(image), nothing, nothing
    )
    expected = set()
    for i in range(2):
        mine = np.flatnonzero(image == i)
        expected |= set(mine[nms_numpy(boxes[mine], score[mine], 0.7, "Min")]) if len(mine) else set()
    assert set(facenet._nms_contained(candidates, 0.7).tolist()) == expected


# -------------------------------------------------------------------------------- alignment


def ramp(height: int, width: int) -> Tensor:
    """An image that holds its own coordinates: channel 0 is x, channel 1 is y; float64."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return torch.stack((x, y, torch.zeros_like(x)))[None]


def turned(points: np.ndarray, angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return (points - 56) @ turn.T * scale + np.asarray(shift)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([64, 112, 128]), st.floats(-3.1, 3.1), st.floats(0.4, 1.0))
def test_arcface_is_the_least_squares_similarity(seed: int, size: int, angle: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = turned(ARCFACE, angle, scale, (150.0, 140.0)) + rng.normal(0, 2, (5, 2))
    (x, y), (u, v) = points.T, (ARCFACE * size / 112).T
    one, zero = np.ones(5), np.zeros(5)
    design = np.concatenate((np.stack((x, -y, one, zero), 1), np.stack((y, x, zero, one), 1)))
    a, b, tx, ty = np.linalg.lstsq(design, np.concatenate((u, v)), rcond=None)[0]
    forward = np.array([[a, -b, tx], [b, a, ty], [0, 0, 1]])
    out = align_faces(ramp(300, 300), torch.from_numpy(points)[None], size)
    assert out.shape == (1, 3, size, size)
    inverse = np.linalg.inv(forward)
    column, row = np.meshgrid(np.arange(size), np.arange(size))
    expected = np.einsum("ij,jhw->ihw", inverse, np.stack((column, row, np.ones_like(row))))[:2]
    assert expected.min() > 2  # the case stays inside the image
    assert expected.max() < 297
    np.testing.assert_allclose(out[0, :2].numpy(), expected, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([64, 100]), st.floats(-3.1, 3.1), st.floats(0.2, 0.5))
def test_ffhq_is_the_oriented_square(seed: int, size: int, angle: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    points = turned(ARCFACE, angle, scale, (150.0, 150.0)) + rng.normal(0, 0.5, (5, 2))
    left, right, _, mouth_left, mouth_right = points
    eye, to_eye, mouth = (left + right) / 2, right - left, (mouth_left + mouth_right) / 2
    to_mouth = mouth - eye
    x = to_eye - np.flipud(to_mouth) * [-1, 1]
    x *= max(np.hypot(*to_eye) * 2.0, np.hypot(*to_mouth) * 1.8) / np.hypot(*x)
    y = np.flipud(x) * [-1, 1]
    centre = eye + 0.1 * to_mouth
    t = (np.arange(size) + 0.5) / size * 2 - 1
    expected = centre + t[None, :, None] * x + t[:, None, None] * y
    if expected.min() < 2 or expected.max() > 297:
        return
    out = align_faces(ramp(300, 300), torch.from_numpy(points)[None], size, "ffhq")
    np.testing.assert_allclose(out[0, :2].permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_no_reflection_for_mirrored_points() -> None:
    mirrored = ARCFACE.copy()
    mirrored[:, 0] = 112 - mirrored[:, 0]
    out = align_faces(ramp(300, 300), torch.from_numpy(mirrored + 90)[None])[0]
    right, down = out[:2, 60, 61] - out[:2, 60, 60], out[:2, 61, 60] - out[:2, 60, 60]
    assert right[0] * down[1] - right[1] * down[0] > 0


def test_outside_is_black_or_mirrored() -> None:
    rng = seeded(0)
    image = torch.rand(1, 3, 40, 40, generator=rng, dtype=torch.float64) * 2 - 1
    shifted = torch.from_numpy(ARCFACE * 40 / 112 - 12)[None]  # a crop that begins 12 pixels outside
    black = align_faces(image, shifted, 40)
    torch.testing.assert_close(black[..., 12:, 12:], image[..., :28, :28])
    assert (black[..., :11, :] == -1).all()
    square = torch.tensor([[[9.5, 9.5], [19.5, 9.5], [0, 0], [9.5, 19.5], [19.5, 19.5]]]).double()
    mirror = align_faces(image, square, 40, "ffhq")  # side 40 around (14.5, 10.5), so from pixel (-5, -9) on
    padded = F.pad(image, (10, 10, 10, 10), mode="reflect")
    expected = padded[..., 1:41, 5:45]
    torch.testing.assert_close(mirror, expected)


@pytest.mark.parametrize("template", ["arcface", "ffhq"])
def test_rows_without_a_face_are_the_centre(template: facenet.Template) -> None:
    image = torch.rand(4, 3, 32, 48, generator=seeded(0)).requires_grad_(True)
    points = torch.full((4, 5, 2), torch.nan)
    points[1], points[3, 2:] = 20.0, 5.0  # one point five times, and a row with two NaN points
    points[2] = torch.from_numpy(ARCFACE * 32 / 112 + 4)
    out = align_faces(image, points, 48, template)
    assert out.isfinite().all()
    whole = align_faces(image, torch.full_like(points, torch.nan), 32, template)
    if template == "ffhq":  # 32 by 48 pixels on a 32 pixel crop: finer sampling, the same square
        assert (whole.mean((2, 3)) - image[..., 8:40].mean((2, 3))).abs().max() < 0.01
    square = image[..., 8:40]
    torch.testing.assert_close(align_faces(square, torch.full_like(points, torch.nan), 32, template), square)
    out.sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_shrinking_does_not_alias() -> None:
    board = (torch.arange(256)[:, None] + torch.arange(256)).remainder(2).float() * 2 - 1
    points = torch.from_numpy(ARCFACE * 256 / 112 + 0.25).float()[None]
    out = align_faces(board.expand(1, 3, 256, 256), points, 64)
    assert out[..., 4:-4, 4:-4].abs().max() < 0.05


def test_alignment_keeps_dtypes_and_gradients() -> None:
    image = torch.rand(1, 3, 12, 12, generator=seeded(0), dtype=torch.float64).requires_grad_(True)
    points = torch.from_numpy(turned(ARCFACE, 0.3, 0.1, (6.0, 5.0)))[None]
    assert torch.autograd.gradcheck(lambda x: align_faces(x, points, 8), (image,))
    assert torch.autograd.gradcheck(lambda x: align_faces(x, points, 8, "ffhq"), (image,))
    half = align_faces(image.detach().bfloat16(), points.float(), 8)
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("template", ["arcface", "ffhq"])
def test_alignment_never_waits_for_the_device(template: facenet.Template) -> None:
    with FakeTensorMode():
        image = torch.zeros(3, 3, 128, 96, device="cuda")
        out = align_faces(image, torch.zeros(3, 5, 2, device="cuda"), 112, template)
        assert out.shape == (3, 3, 112, 112)
        assert out.device.type == "cuda"


def test_alignment_errors() -> None:
    image, points = torch.zeros(2, 3, 16, 16), torch.zeros(2, 5, 2)
    with pytest.raises(ShapeError, match="five points"):
        align_faces(image, points[:1])
    with pytest.raises(ShapeError, match="apart"):
        align_faces(image, points.to("meta"))
    with pytest.raises(DataError, match="cannot align"):
        align_faces(image, points, template="dlib")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot align"):
        align_faces(image, points, size=0)


def test_detected_faces_align(detector: facenet.FaceDetector, faces: Tensor) -> None:
    first = detector(faces)
    again = detector(align_faces(faces, first.landmarks, 128, "arcface")[first.found()])
    error = again.landmarks[again.found()] - torch.from_numpy(ARCFACE * 128 / 112).float()
    assert error.norm(dim=-1).median() < 8


# -------------------------------------------------------------------------------- embedder


@pytest.fixture(scope="module")
def net() -> InceptionResnetV1:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InceptionResnetV1(classify=True, num_classes=7).eval()


@pytest.fixture(scope="module")
def weights(net: InceptionResnetV1, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def embedder(weights: Path) -> facenet.FacenetEmbedder:
    return load_embedder(weights)


def test_embeds_as_facenet_pytorch_does(embedder: facenet.FacenetEmbedder, net: InceptionResnetV1) -> None:
    images = torch.rand(3, 3, 160, 160, generator=seeded(1)) * 2 - 1
    net.classify = False
    with torch.no_grad():
        expected = net(fixed_image_standardization((images + 1) * 127.5))
        vectors = embedder(images)
    net.classify = True
    torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert isinstance(embedder, Embedder)
    assert vectors.shape == (3, embedder.dim)
    assert "512" in repr(embedder)


def test_embedder_takes_any_size_and_is_never_in_training(embedder: facenet.FacenetEmbedder) -> None:
    large = torch.rand(1, 3, 320, 200, generator=seeded(1)) * 2 - 1
    small = F.interpolate(large, (160, 160), mode="bilinear", antialias=True)
    torch.testing.assert_close(embedder(large), embedder(small))
    torch.testing.assert_close(embedder.train()(small), embedder(small), rtol=0, atol=0)
    assert embedder(small[:0]).shape == (0, 512)
    small.requires_grad_(True)
    embedder(small)[0, 0].backward()
    assert small.grad is not None
    assert small.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in embedder.parameters())


def test_embedder_dtype_and_device(weights: Path, embedder: facenet.FacenetEmbedder) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    half = load_embedder(weights, dtype=torch.bfloat16)
    assert torch.equal(before, torch.get_rng_state())
    images = torch.rand(2, 3, 64, 64, generator=seeded(2)) * 2 - 1
    vectors = half(images)
    assert vectors.dtype == torch.float32
    assert F.cosine_similarity(vectors, embedder(images)).min() > 0.98
    away = load_embedder(weights, device="meta")  # the meta device has no values: a wait would raise
    assert away(images.to("meta")).shape == (2, 512)
    with pytest.raises(ShapeError, match="apart"):
        away(images)


def test_embedder_offline_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("facenet_pytorch.models.utils.download.download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_embedder("casia-webface")
    message = str(caught.value)
    assert "github.com/timesler/facenet-pytorch/releases" in message
    assert str(tmp_path / "checkpoints" / "20180408-102900-casia-webface.pt") in message
    assert 'load_embedder("/path/to/weights.pt")' in message


def test_embedder_uses_the_cached_download(
    tmp_path: Path, weights: Path, embedder: facenet.FacenetEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "20180402-114759-vggface2.pt").symlink_to(weights)
    images = torch.zeros(1, 3, 64, 64)
    torch.testing.assert_close(load_embedder()(images), embedder(images))


def test_embedder_refuses_other_weights(tmp_path: Path, net: InceptionResnetV1) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_embedder(tmp_path / "nowhere.pt")
    path = tmp_path / "other.pt"
    state = {key: value for key, value in net.state_dict().items() if not key.startswith("last_bn")}
    torch.save({**state, "head.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"missing: last_bn\.weight.* and 1 more; unexpected: head\.weight"):
        load_embedder(path)
    torch.save({f"module.{key}": value for key, value in net.state_dict().items()}, path)
    load_embedder(path)  # DataParallel's prefix is no obstacle
    torch.save({**net.state_dict(), "last_linear.weight": torch.zeros(4, 4)}, path)
    with pytest.raises(CheckpointError, match=r"last_linear\.weight \[4, 4\] instead of \[512, 1792\]"):
        load_embedder(path)


def test_every_kind_of_detector_answer_is_understood() -> None:
    probability = torch.tensor([0.0, 0.94, 0.95, 1.0])
    nothing = torch.full((4, 4), torch.nan)
    expected = torch.tensor([False, False, True, True])
    for answer in (facenet.Detections(probability, nothing, torch.zeros(4, 5, 2)), probability, expected):
        assert torch.equal(facenet.faces_found(answer), expected)
    for wrong in (torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)):
        with pytest.raises(ShapeError, match="whether there is a face"):
            facenet.faces_found(wrong)
