"""Faces in images: find them, bring them to a standard position, embed them (networks: facenet-pytorch).

Images are float RGB in [-1, 1], NCHW. Coordinates are (x, y) in pixels of the image that came in, and (0, 0)
is the centre of the top left pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, DataError, ShapeError
from .pretrained import check_images, device_of, load_into, read_state, resize

Selection = Literal["probability", "largest"]
Template = Literal["arcface", "ffhq"]

LANDMARK_NAMES = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")
"""Rows of `Detections.landmarks`. Left and right are the viewer's: the "left eye" is the eye nearer to the
image's left edge, which is the person's own right eye in an upright, frontal picture."""

# InsightFace's five points (arcface_dst) for a 112 x 112 crop, in the order of LANDMARK_NAMES.
_ARCFACE_112 = (
    (38.2946, 51.6963),
    (73.5318, 51.5014),
    (56.0252, 71.7366),
    (41.5493, 92.3655),
    (70.7299, 92.2041),
)
_WEIGHT_URLS = {
    "vggface2": "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt",
    "casia-webface": "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180408-102900-casia-webface.pt",
}


# ------------------------------------------------------------------------------------------ detection


@dataclass(frozen=True, eq=False)
class Detections:
    """One face an image, at most.

    Attributes:
        probability: [n] float32, MTCNN's last-stage probability of a face; 0 where none was found.
        boxes: [n, 4] float32, left, top, right, bottom; NaN where none was found. May reach past the image.
        landmarks: [n, 5, 2] float32, (x, y) of LANDMARK_NAMES; NaN where none was found.
    """

    probability: Tensor
    boxes: Tensor
    landmarks: Tensor

    def found(self, threshold: float = 0.95) -> Tensor:
        """bool [n]: is there a face of at least this probability? Below 0.7 MTCNN reports nothing."""
        return self.probability >= threshold

    def to(self, device: torch.device | str) -> Detections:
        """The same detections on another device."""
        return Detections(self.probability.to(device), self.boxes.to(device), self.landmarks.to(device))

    def __len__(self) -> int:
        return len(self.probability)

    def __repr__(self) -> str:
        return f"Detections(n={len(self)}, device={self.probability.device})"


def faces_found(result: Detections | Tensor, threshold: float = 0.95) -> Tensor:
    """bool [n], whatever a detector gives: `Detections`, truth values, or probabilities of a face.

    Raises:
        ShapeError: none of these.
    """
    if isinstance(result, Detections):
        return result.found(threshold)
    if result.ndim != 1 or not (result.dtype == torch.bool or result.is_floating_point()):
        raise ShapeError(
            "a detector says of each image whether there is a face",
            expected="Detections, bool [n], or probabilities [n]",
            got=f"{list(result.shape)} {result.dtype}",
        )
    return result if result.dtype == torch.bool else result >= threshold


class FaceDetector(nn.Module):
    """MTCNN (Zhang et al. 2016, arXiv 1604.02878) on batches; made by `load_detector`.

    The three networks and their weights are facenet-pytorch's. The cascade around them gives the boxes,
    probabilities and points of `facenet_pytorch.MTCNN.detect`, but cuts all candidates of a batch out at once
    (exact area means from an integral image) where that loops over them.
    """

    def __init__(
        self,
        pnet: nn.Module,
        rnet: nn.Module,
        onet: nn.Module,
        *,
        size: int,
        min_face: float,
        factor: float,
        thresholds: tuple[float, float, float],
        select: Selection,
        batch_size: int,
    ) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = pnet, rnet, onet
        self.size, self.min_face, self.factor = size, min_face, factor
        self.thresholds, self.select, self.batch_size = thresholds, select, batch_size

    def extra_repr(self) -> str:
        return f"size={self.size}, min_face={self.min_face}, factor={self.factor}, select={self.select!r}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Detections:
        """images [n, 3, H, W] in [-1, 1] → `Detections` on their device.

        Waits for the device, as the number of candidates decides the shapes of later stages. No gradient.

        Raises:
            ShapeError: images are not float [n, 3, H, W] on the detector's device.
        """
        check_images(images, device_of(self))
        height, width = images.shape[-2:]
        zoom = self.size / min(height, width)
        size = (max(round(height * zoom), 1), max(round(width * zoom), 1))
        parts = []
        for chunk in images.split(self.batch_size):
            pixels = (resize(chunk.float(), size) + 1).mul(127.5).clamp(0, 255)
            parts.append(_select(self._cascade(pixels), len(chunk), self.select, images.device))
        probability, boxes, points = (torch.cat(part) for part in zip(*parts, strict=True))
        ratio = boxes.new_tensor([width / size[1], height / size[0]])
        boxes = ((boxes.unflatten(1, (2, 2)) + 0.5) * ratio - 0.5).flatten(1)
        return Detections(probability, boxes, (points + 0.5) * ratio - 0.5)

    def _cascade(self, pixels: Tensor) -> _Candidates:
        """The three stages on pixels [n, 3, h, w] in [0, 255]."""
        faces = self._propose(pixels)
        if len(faces.score) == 0:
            return faces
        table = _integral(pixels)
        offsets, probability = self.rnet(_cut(table, faces, 24))
        faces = _refine(faces, probability[:, 1], offsets, self.thresholds[1])
        faces = faces.take(_nms(faces, 0.7)).shifted(inclusive=True).squared()
        if len(faces.score) == 0:
            return faces
        offsets, points, probability = self.onet(_cut(table, faces, 48))
        faces = _refine(faces, probability[:, 1], offsets, self.thresholds[2], points)
        corner, extent = faces.boxes[:, :2], faces.boxes[:, 2:] - faces.boxes[:, :2] + 1
        landmarks = faces.points * extent.unsqueeze(1) + corner.unsqueeze(1) - 1
        faces = faces._replace(points=landmarks).shifted(inclusive=True)
        return faces.take(_nms_contained(faces, 0.7)) if self.select == "largest" else faces

    def _propose(self, pixels: Tensor) -> _Candidates:
        """First stage: every 12-pixel window of the image pyramid, thinned out."""
        height, width = pixels.shape[-2:]
        parts = []
        for scale in _pyramid(min(height, width), self.min_face * min(height, width), self.factor):
            small = F.interpolate(pixels, (int(height * scale + 1), int(width * scale + 1)), mode="area")
            offsets, probability = self.pnet((small - 127.5) / 128)
            image, row, column = (probability[:, 1] >= self.thresholds[0]).nonzero(as_tuple=True)
            cell = 2.0 * torch.stack((column, row), dim=1)
            boxes = torch.cat((((cell + 1) / scale).floor(), ((cell + 12) / scale).floor()), dim=1)
            score, offset = probability[image, 1, row, column], offsets[image, :, row, column]
            part = _Candidates(boxes, score, image, offset, boxes.new_zeros(len(boxes), 5, 2))
            parts.append(part.take(_nms(part, 0.5)))
        faces = _Candidates(*(torch.cat(field) for field in zip(*parts, strict=True)))
        return faces.take(_nms(faces, 0.7)).shifted(inclusive=False).squared()


def load_detector(
    device: torch.device | str | None = None,
    *,
    size: int = 128,
    min_face: float = 0.25,
    factor: float = 0.709,
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7),
    select: Selection = "probability",
    batch_size: int | None = None,
) -> FaceDetector:
    """MTCNN with the weights that ship inside facenet-pytorch: nothing is downloaded.

    Args:
        device: where it runs; None: the CPU.
        size: every image is first brought to this many pixels on its shorter side (antialiased bilinear), so
            cost and behaviour depend little on the resolution. Raise it together with a smaller `min_face`.
            docs/faces.md has the measurements behind the defaults.
        min_face: smallest face looked for, as a share of the shorter side, in (0, 1]. The default suits
            generators, whose faces fill the image; photographs with small faces need less.
        factor: ratio of neighbouring scales of the image pyramid, in (0, 1).
        thresholds: probabilities a candidate needs to pass the three stages (facenet-pytorch's defaults).
        select: the face to keep where there are several: the one of highest probability, or the largest.
        batch_size: images processed at once; bounds memory, does not change results. None: 8 on a CPU, whose
            caches that suits, 256 elsewhere.

    Raises:
        DataError: a setting is out of its range.
    """
    if batch_size is None:
        batch_size = 8 if torch.device(device or "cpu").type == "cpu" else 256
    _check_settings(size, min_face, factor, select, batch_size)
    import facenet_pytorch
    from facenet_pytorch.models import mtcnn

    weights = Path(facenet_pytorch.__file__).parent / "data"
    nets = []
    for name in ("PNet", "RNet", "ONet"):
        with torch.device("meta"):  # the weights follow: no random draw
            net = getattr(mtcnn, name)(pretrained=False)
        state = torch.load(weights / f"{name.lower()}.pt", map_location="cpu", weights_only=True)
        net.load_state_dict(state, assign=True)
        nets.append(net)
    detector = FaceDetector(
        *nets,
        size=size,
        min_face=min_face,
        factor=factor,
        thresholds=thresholds,
        select=select,
        batch_size=batch_size,
    )
    return detector.to(device).requires_grad_(False).eval()


class _Candidates(NamedTuple):
    """Boxes under examination, over all images of a batch."""

    boxes: Tensor  # [m, 4]
    score: Tensor  # [m]
    image: Tensor  # [m] int64
    offsets: Tensor  # [m, 4] the last network's correction, in shares of the box's extent
    points: Tensor  # [m, 5, 2]

    def take(self, index: Tensor) -> _Candidates:
        return _Candidates(*(field[index] for field in self))

    def shifted(self, *, inclusive: bool) -> _Candidates:
        """Corrected by `offsets`; MTCNN counts both end pixels in the extent from its second stage on."""
        extent = self.boxes[:, 2:] - self.boxes[:, :2] + float(inclusive)
        return self._replace(boxes=self.boxes + self.offsets * extent.repeat(1, 2))

    def squared(self) -> _Candidates:
        """Grown to squares around the same centres."""
        extent = self.boxes[:, 2:] - self.boxes[:, :2]
        side = extent.amax(dim=1, keepdim=True)
        corner = self.boxes[:, :2] + 0.5 * extent - 0.5 * side
        return self._replace(boxes=torch.cat((corner, corner + side), dim=1))


def _pyramid(shorter: int, min_face: float, factor: float) -> Iterator[float]:
    """Scales at which faces from `min_face` pixels to the whole shorter side fill the 12-pixel window."""
    scale = 12.0 / min_face
    while shorter * scale >= 12:
        yield scale
        scale *= factor


def _refine(
    faces: _Candidates, score: Tensor, offsets: Tensor, threshold: float, points: Tensor | None = None
) -> _Candidates:
    """The candidates that pass a stage, with its scores, offsets and points (x1..x5, y1..y5)."""
    kept = (score > threshold).nonzero(as_tuple=True)[0]
    xy = faces.points if points is None else points.unflatten(1, (2, 5)).transpose(1, 2)
    return _Candidates(faces.boxes, score, faces.image, offsets, xy).take(kept)


def _nms(faces: _Candidates, threshold: float) -> Tensor:
    """Indices that survive non-maximum suppression within each image."""
    from torchvision.ops import batched_nms

    return batched_nms(faces.boxes, faces.score, faces.image, threshold)


def _nms_contained(faces: _Candidates, threshold: float) -> Tensor:
    """Suppression by overlap over the smaller box: a candidate inside a better one is the same face."""
    faces_order = faces.score.argsort(descending=True, stable=True)
    boxes, image = faces.boxes[faces_order], faces.image[faces_order]
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(dim=1)
    start = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    end = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (end - start + 1).clamp_min(0).prod(dim=2)
    beats = shared > threshold * torch.minimum(area[:, None], area[None, :])
    beats = (beats & (image[:, None] == image[None, :])).triu(1)
    keep = torch.ones_like(image, dtype=torch.bool)
    for _ in range(len(image)):  # greedy suppression is this iteration's only fixed point
        previous, keep = keep, ~(beats & keep[:, None]).any(dim=0)
        if torch.equal(previous, keep):
            break
    return faces_order[keep]


def _integral(pixels: Tensor) -> Tensor:
    """Sums over all rectangles from the top left corner: [n, 3, h, w] → float64 [n, h + 1, w + 1, 3]."""
    padded = F.pad(pixels.permute(0, 2, 3, 1).double(), (0, 0, 1, 0, 1, 0))
    return padded.cumsum(dim=1).cumsum(dim=2)


def _cut(table: Tensor, faces: _Candidates, size: int) -> Tensor:
    """Candidates cut out and shrunk by area means, as a network wants them: [m, 3, size, size] in [-1, 1].

    A bin covers whole pixels, from floor(i·L / size) to ceil((i + 1)·L / size), as in
    torch.nn.functional.interpolate(mode="area"), whose results these are.
    """
    rows, columns = table.shape[1:3]
    whole = faces.boxes.trunc().long()

    def bins(first: Tensor, last: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        start = first.clamp(1, limit).sub(1)[:, None]
        length = (last.clamp(1, limit)[:, None] - start).clamp_min(1)
        step = torch.arange(size, device=first.device)
        return start + step * length // size, start - (-(step + 1) * length // size)

    x0, x1 = (index[:, None, :] for index in bins(whole[:, 0], whole[:, 2], columns - 1))
    y0, y1 = (index[:, :, None] for index in bins(whole[:, 1], whole[:, 3], rows - 1))

    def corner(y: Tensor, x: Tensor) -> Tensor:
        index = (faces.image[:, None, None] * rows + y) * columns + x
        return table.flatten(0, 2).index_select(0, index.flatten()).unflatten(0, (-1, size, size))

    sums = corner(y1, x1) - corner(y0, x1) - corner(y1, x0) + corner(y0, x0)
    means = sums / ((x1 - x0) * (y1 - y0)).unsqueeze(-1)
    return ((means - 127.5) / 128).permute(0, 3, 1, 2).float()


def _select(faces: _Candidates, count: int, select: Selection, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """One candidate an image: probability [n] or 0, box [n, 4] and points [n, 5, 2] or NaN."""
    if len(faces.score) == 0:
        nan = torch.full((count, 14), torch.nan, device=device)
        return torch.zeros(count, device=device), nan[:, :4], nan[:, 4:].unflatten(1, (5, 2))
    extent = faces.boxes[:, 2:] - faces.boxes[:, :2]
    key = faces.score if select == "probability" else extent.prod(dim=1)
    mine = faces.image == torch.arange(count, device=device)[:, None]
    best, index = torch.where(mine, key, -torch.inf).max(dim=1)
    none = best == -torch.inf
    return (
        faces.score[index].masked_fill(none, 0),
        faces.boxes[index].masked_fill(none[:, None], torch.nan),
        faces.points[index].masked_fill(none[:, None, None], torch.nan),
    )


def _check_settings(size: int, min_face: float, factor: float, select: str, batch_size: int) -> None:
    if select not in get_args(Selection):
        raise DataError("unknown rule for several faces", expected=get_args(Selection), got=repr(select))
    if not (0 < min_face <= 1 and 0 < factor < 1 and batch_size >= 1):
        raise DataError(
            "a detector setting is out of range",
            expected="0 < min_face <= 1, 0 < factor < 1, batch_size >= 1",
            got=f"min_face={min_face}, factor={factor}, batch_size={batch_size}",
        )
    if size * min_face < 12:
        raise DataError(
            "faces that small cannot be seen: MTCNN's window is 12 pixels",
            expected="size * min_face >= 12",
            got=f"size={size}, min_face={min_face}: {size * min_face:.1f} pixels",
            fix=f"pass size={math.ceil(12 / min_face)} or more, or a larger min_face",
        )


# ------------------------------------------------------------------------------------------ alignment


def align_faces(images: Tensor, landmarks: Tensor, size: int = 112, template: Template = "arcface") -> Tensor:
    """Faces brought to a standard position and scale: [n, 3, size, size].

    - "arcface": the similarity (no reflection) that takes the five points to InsightFace's template with the
      least squared error (Umeyama 1991); outside the image is black (-1), as in InsightFace. The crop that
      ArcFace-like recognisers are trained on.
    - "ffhq": the oriented square of FFHQ (Karras et al. 2019), from the eyes and the corners of the mouth;
      outside the image is its mirror image, without FFHQ's blur there. The crop StyleGAN's generators make.

    Batched, differentiable in the images, never waits for the device. Bilinear; where the image has more
    pixels than the crop, ceil(max(H, W) / size)² samples per output pixel are averaged against aliasing.

    Args:
        images: [n, 3, H, W] in [-1, 1].
        landmarks: [n, 5, 2], rows as in LANDMARK_NAMES: what a detector's `landmarks` holds. Where a point is
            NaN, or the five give no direction, the centred square of side min(H, W) is taken instead.
        size: side of the result in pixels.
        template: "arcface" or "ffhq".

    Raises:
        ShapeError: wrong shapes, dtypes or devices.
        DataError: unknown template, or a size below 1.
    """
    check_images(images)
    if landmarks.shape != (len(images), 5, 2) or not landmarks.is_floating_point():
        raise ShapeError(
            "landmarks must be five points an image",
            expected=f"[{len(images)}, 5, 2] float",
            got=f"{list(landmarks.shape)} {landmarks.dtype}",
            fix="pass detector(images).landmarks",
        )
    if landmarks.device != images.device:
        raise ShapeError("images and landmarks lie apart", expected=images.device, got=landmarks.device)
    if template not in get_args(Template) or size < 1:
        raise DataError(
            "cannot align to that", expected=f"{get_args(Template)}, size >= 1", got=f"{template!r}, {size}"
        )
    points = landmarks.to(torch.promote_types(images.dtype, torch.float32))
    matrix = (_arcface_matrix if template == "arcface" else _ffhq_matrix)(points, size)
    usable = matrix.isfinite().all(dim=(1, 2), keepdim=True)
    matrix = torch.where(usable, matrix, _centre_matrix(images, size).to(matrix))
    return _warp(images, matrix, size, mirror=template == "ffhq")


def _similarity(real: Tensor, imaginary: Tensor, offset: Tensor) -> Tensor:
    """p ↦ (real + i·imaginary)·p + offset as matrices [n, 2, 3], from [n], [n], [n, 2]."""
    rows = torch.stack((real, -imaginary, imaginary, real), dim=1).unflatten(1, (2, 2))
    return torch.cat((rows, offset.unsqueeze(2)), dim=2)


def _arcface_matrix(points: Tensor, size: int) -> Tensor:
    """Output pixel → image pixel. In the plane, with points as complex numbers, the least squares fit of
    a·p + b ≈ q is a = Σ conj(p − p̄)(q − q̄) / Σ |p − p̄|²; what is returned is its inverse, p = (q − b) / a."""
    scale = size / 112
    target = _constant_points(points) * scale
    middle = points.mean(dim=1)
    p, q = points - middle.unsqueeze(1), target - target.mean(dim=0)
    spread = p.square().sum(dim=(1, 2))
    real = (p * q).sum(dim=(1, 2))
    imaginary = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]).sum(dim=1)
    norm = real.square() + imaginary.square()
    real, imaginary = real * spread / norm, -imaginary * spread / norm
    turn = _similarity(real, imaginary, torch.zeros_like(middle))[:, :, :2]
    return _similarity(real, imaginary, middle - (turn @ target.mean(dim=0).unsqueeze(1)).squeeze(2))


def _ffhq_matrix(points: Tensor, size: int) -> Tensor:
    """Output pixel → image pixel for the square c ± x ± y of FFHQ's recreate_aligned_images."""
    eyes, mouth = points[:, :2].mean(dim=1), points[:, 3:].mean(dim=1)
    eye_to_eye, eye_to_mouth = points[:, 1] - points[:, 0], mouth - eyes
    x = eye_to_eye + eye_to_mouth.flip(1) * eye_to_mouth.new_tensor([1.0, -1.0])
    reach = torch.maximum(2.0 * eye_to_eye.norm(dim=1), 1.8 * eye_to_mouth.norm(dim=1))
    x = x / x.norm(dim=1, keepdim=True) * reach.unsqueeze(1)
    y = torch.stack((-x[:, 1], x[:, 0]), dim=1)
    centre = eyes + 0.1 * eye_to_mouth
    step = x * (2 / size)  # one output pixel to the right; pixel 0 lies half a step inside the square
    return _similarity(step[:, 0], step[:, 1], centre + (x + y) * (1 / size - 1))


def _centre_matrix(images: Tensor, size: int) -> Tensor:
    """Output pixel → image pixel [2, 3] for the centred square of side min(H, W)."""
    height, width = images.shape[-2:]
    step = min(height, width) / size
    first = ((side - min(height, width)) / 2 + step / 2 - 0.5 for side in (width, height))
    left, top = first
    return torch.tensor([[step, 0.0, left], [0.0, step, top]])


def _constant_points(like: Tensor) -> Tensor:
    return like.new_tensor(_ARCFACE_112)


def _warp(images: Tensor, matrix: Tensor, size: int, *, mirror: bool) -> Tensor:
    """Sample images [n, 3, H, W] at matrix · (x, y, 1) for every pixel of the output."""
    height, width = images.shape[-2:]
    finer = max(math.ceil(max(height, width) / size), 1)
    steps = (torch.arange(size * finer, device=matrix.device, dtype=matrix.dtype) + 0.5) / finer - 0.5
    across = matrix[:, None, None, :, 0] * steps[:, None]
    down = matrix[:, None, None, :, 1] * steps[:, None, None]
    position = across + down + matrix[:, None, None, :, 2]
    # Mirrors lie on the centres of the border pixels with align_corners, on their outer edges without; black
    # needs neither, and +1 - 1 makes zero padding black.
    if mirror:
        grid = position * position.new_tensor([2 / max(width - 1, 1), 2 / max(height - 1, 1)]) - 1
    else:
        grid = (2 * position + 1) / position.new_tensor([width, height]) - 1
    padding = "reflection" if mirror else "zeros"
    work = images.to(matrix.dtype) + 1
    sampled = F.grid_sample(work, grid, mode="bilinear", padding_mode=padding, align_corners=mirror)
    return (F.avg_pool2d(sampled, finer) - 1).to(images.dtype)


# ------------------------------------------------------------------------------------------ embedding


class FacenetEmbedder(nn.Module):
    """FaceNet-style embeddings by Inception-ResNet-v1: the library's `Embedder`; made by `load_embedder`.

    Always in evaluation mode (train() is ignored), its weights frozen; gradients reach the images.
    """

    dim = 512

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.train(False)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FacenetEmbedder:
        """Stay in evaluation mode: in training, embeddings depend on their batch and on chance."""
        super().train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """images [n, 3, H, W] in [-1, 1] → unit vectors [n, 512], float32.

        Any size: images are brought to 160 × 160 (antialiased bilinear). Values are clamped to [-1, 1] as
        saving would, then scaled as facenet-pytorch's fixed_image_standardization, (pixel − 127.5) / 128.

        Raises:
            ShapeError: images are not float [n, 3, H, W] on the embedder's device.
        """
        check_images(images, device_of(self))
        if len(images) == 0:
            return images.new_zeros((0, self.dim), dtype=torch.float32)
        pixels = resize(images.float(), (160, 160)).clamp(-1, 1) * (127.5 / 128)
        vectors: Tensor = self.net(pixels.to(next(self.parameters()).dtype))
        return F.normalize(vectors.float(), dim=1)

    def __repr__(self) -> str:
        return f"FacenetEmbedder(dim={self.dim}, device={device_of(self)})"


def load_embedder(
    source: str | Path = "vggface2",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> FacenetEmbedder:
    """facenet-pytorch's InceptionResnetV1 as an embedder with 512 dimensions.

    "vggface2" and "casia-webface" are downloaded once, from facenet-pytorch's release, into torch's cache
    (~110 MB). Their authors report LFW accuracies of 0.9965 and 0.9905 on MTCNN crops of 160 pixels (David
    Sandberg's models). Both training sets were collected from the web without consent and are unbalanced:
    expect accuracy to differ by group, and measure it before a threshold means anything.

    Args:
        source: "vggface2", "casia-webface", or the path of InceptionResnetV1's state dict (logits.* ignored).
        device: where it runs; None: the CPU.
        dtype: of the weights and the arithmetic; the vectors are float32 in any case.

    Raises:
        CheckpointError: no download possible, no readable file, or a state dict of something else.
    """
    from facenet_pytorch import InceptionResnetV1

    path = _pretrained_file(str(source)) if str(source) in _WEIGHT_URLS else Path(source)
    state = read_state(path, fix='pass "vggface2", "casia-webface" or the path of a state dict')
    with torch.device("meta"):
        net = InceptionResnetV1()
    kept = {key: value for key, value in state.items() if not key.startswith("logits.")}
    load_into(net, kept, path, "InceptionResnetV1")
    return FacenetEmbedder(net.to(device=device, dtype=dtype))


def _pretrained_file(name: str) -> Path:
    """The pretrained weights in torch's cache, where facenet-pytorch keeps them; downloaded if missing."""
    from facenet_pytorch.models.utils.download import download_url_to_file

    url = _WEIGHT_URLS[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(path))
        except OSError as error:  # URLError, HTTPError, timeouts and a read-only cache are all OSErrors
            raise CheckpointError(
                f"the weights {name!r} could not be downloaded ({error})",
                expected=f"a connection to {url}",
                got=f"no file {path}",
                fix=f"download that address elsewhere and put the file at {path}, or keep it anywhere and "
                'pass its path: load_embedder("/path/to/weights.pt")',
            ) from error
    return path
