"""Several images of one identity: attribute directions in latent space, edits along them, and the published 45.

A direction is the unit normal n of a plane that separates two classes of latents. A latent's signed distance is
s = w·n − offset; an edit moves it along n and leaves everything orthogonal to n as it is. Nothing says that the image
changes in that one respect only, or that the person stays the same: `vary` can check both identity and face.

Sources: the directions and edits of Colbois, Freitas Pereira & Marcel (IJCB 2021), in the form in which Jain, Memon &
Togelius (IJCB 2023) use them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, SupportsFloat, get_args

import torch
from torch import Tensor

from .artifacts import Artifact, has_values
from .errors import DataError, ShapeError
from .images import save_images
from .latents import to_layers
from .models.facenet import Detections, faces_found
from .models.protocols import Embedder, Generator
from .reports import markdown_table
from .thresholds import cosine_threshold

Fit = Literal["svm", "logistic", "ridge"]
Units = Literal["distance", "class"]
Kind = Literal["move", "set"]
Detector = Callable[[Tensor], Detections | Tensor]  # images → Detections, bool [n] or probabilities [n]

PUBLISHED_EXPRESSIONS = ("smile", "scream", "disgust", "squint", "surprise")
MIN_SAMPLES = 10  # of each class, below which a plane in some hundred dimensions means nothing


# --- directions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False, eq=False)
class Direction(Artifact):
    """A direction of latent space along which one attribute changes.

    Attributes:
        normal: unit vector n, [d] (used for every layer of a W+ latent) or [num_ws, d].
        neg_mean, pos_mean: mean signed distance of the negative and the positive class, 0-d.
        offset: signed distance is w·n − offset, 0-d; 0 for the published SVM, whose plane goes through the origin.
        name: what changes.
        method: how it was fitted.
        quality: on held-out latents, the AUC of the signed distance (`metric` "AUC": classes) or its correlation with
            the labels ("correlation": continuous ones); None if nothing was held out.
    """

    kind: ClassVar[str] = "direction"

    normal: Tensor
    neg_mean: Tensor
    pos_mean: Tensor
    offset: Tensor
    name: str = ""
    method: str = ""
    quality: float | None = None
    metric: str = ""


def fit_direction(
    w: Tensor,
    labels: Tensor,
    *,
    method: Fit = "svm",
    orthogonal_to: Direction | Iterable[Direction] = (),
    tails: float = 0.25,
    regularization: float = 1.0,
    held_out: float = 0.2,
    name: str = "",
) -> Direction:
    """Fit the direction of an attribute to labelled latents. Waits for the device: a one-off fit by scikit-learn.

    Args:
        w: latents [n, d] (Z, W) or [n, num_ws, d] (W+).
        labels: [n]. bool or integers 0 and 1, −1 for those to leave out; or floats, a measured quantity: its lower and
            upper tails are then the two classes.
        method:
            "svm": linear SVM without intercept on latents as they are, LinearSVC(fit_intercept=False, max_iter=10000),
                which is the published fit.
            "logistic": logistic regression with intercept.
            "ridge": least squares on the value itself, for float labels; the plane lies where their mean is predicted.
        orthogonal_to: directions that the result must not move along; removed from the normal after the fit.
        tails: share of the samples in each tail of a measured quantity, in (0, 0.5].
        regularization: 1/C of the SVM and the logistic regression, alpha of ridge; > 0. 1 is the published C.
        held_out: share of the rows on which `quality` is measured, by a fit to the others; the direction itself is
            then fitted to all rows. Which rows is always the same. 0: not measured.
        name: kept in the result.

    Raises:
        ShapeError: latents and labels that do not fit.
        DataError: NaN, fewer than 10 samples of a class, a setting out of range, or a direction that lies in the span
            of `orthogonal_to`.
    """
    _check_fit(w, labels, method, tails, regularization, held_out)
    x, y = w.detach().flatten(1).double().cpu(), labels.detach().double().cpu()
    continuous = labels.is_floating_point()
    classes = _tails(y, tails) if continuous else y
    target = y if method == "ridge" else classes
    others = torch.stack(
        [d.normal.double().cpu().expand(w.shape[1:]).flatten() for d in _each(orthogonal_to)] or [x[0] * 0]
    )

    def plane(rows: Tensor) -> tuple[Tensor, Tensor]:
        _check_classes(classes[rows], name)
        rows = rows if method == "ridge" else rows[classes[rows] >= 0]
        return _fit_plane(x[rows], target[rows], method, regularization, others)

    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = order.tensor_split([round(held_out * len(x))])
    quality = None
    if len(test):
        if not continuous:
            _check_classes(classes[test], name)
        quality = _quality(x[test] @ plane(train)[0], y[test], continuous)
    normal, offset = plane(torch.arange(len(x)))
    distance = x @ normal - offset
    return Direction(
        normal=normal.view(w.shape[1:]),
        neg_mean=distance[classes == 0].mean(),
        pos_mean=distance[classes == 1].mean(),
        offset=offset,
        name=name,
        method=method,
        quality=quality,
        metric="" if quality is None else "correlation" if continuous else "AUC",
    ).to(w.device, torch.promote_types(w.dtype, torch.float32))


def signed_distance(w: Tensor, direction: Direction) -> Tensor:
    """w·n − offset: latents [..., *normal.shape] → [...]; per layer, [..., num_ws], for W+ and a normal [d]."""
    x, normal = _fitting(w, direction)
    return (x * normal).flatten(-normal.ndim).sum(-1) - direction.offset.to(x.dtype)


def edit(
    w: Tensor,
    direction: Direction,
    amount: float | Tensor | None = None,
    *,
    to: float | Tensor | None = None,
    units: Units = "distance",
) -> Tensor:
    """Move latents along a direction: w + amount·n, or w + (to − s)·n, which sets the signed distance s.

    Args:
        w: latents [..., *normal.shape], or W+ [..., num_ws, d] for a normal [d], which then moves every layer alike.
        direction: the fitted direction.
        amount: how far to move; a number, or a tensor whose dimensions are the first ones of w (one amount per latent
            is [n], also for W+).
        to: the signed distance to arrive at instead; same shapes.
        units: "distance": of w itself. "class": 1 is the positive class's mean distance, −1 the negative class's.

    Returns:
        Like w.

    Raises:
        ShapeError, DataError: shapes that do not fit, both or neither of `amount` and `to`.
    """
    if (amount is None) == (to is None):
        raise DataError("one of amount and to, please", expected="edit(w, d, 2.0) or edit(w, d, to=2.0)")
    if units not in get_args(Units):
        raise DataError("unknown units", expected=" or ".join(get_args(Units)), got=repr(units))
    x, normal = _fitting(w, direction)
    step = torch.as_tensor(amount if to is None else to, dtype=x.dtype, device=x.device)
    if units == "class":
        step = torch.where(step >= 0, step * direction.pos_mean, -step * direction.neg_mean)
    lead = x.ndim - normal.ndim
    if step.ndim > lead or any(s not in (1, n) for s, n in zip(step.shape, x.shape[: step.ndim], strict=True)):
        raise ShapeError("the amounts do not fit", expected=f"at most {list(x.shape[:lead])}", got=list(step.shape))
    step = step.reshape(*step.shape, *[1] * (x.ndim - step.ndim))
    if to is not None:
        distance = signed_distance(w, direction).to(x.dtype)
        step = step - distance.reshape(*distance.shape, *[1] * normal.ndim)
    return (x + step * normal).to(w.dtype)


def neutralise(w: Tensor, directions: Direction | Iterable[Direction]) -> Tensor:
    """The nearest latents at signed distance 0 from every direction, for example frontal and evenly lit.

    One direction: w − s·n (Colbois et al. 2021). Several need not be orthogonal: they are solved for together,
    w − Nᵀ(NNᵀ)⁺s, which takes w out of their span; one after the other, a later one would undo the earlier.

    Args:
        w: latents as in `edit`.
        directions: one or more, all with normals of one shape.

    Returns:
        Like w.
    """
    directions = _each(directions)
    if not directions:
        return w
    shapes = {tuple(d.normal.shape) for d in directions}
    if len(shapes) > 1:
        raise ShapeError("directions of different shapes", expected="one shape", got=sorted(shapes))
    x, normal = _fitting(w, directions[0])
    normals = torch.stack([d.normal.to(x.dtype).flatten() for d in directions])
    distances = torch.stack([signed_distance(w, d).to(x.dtype) for d in directions], dim=-1)
    gram = (normals @ normals.T).double()
    step = distances @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-6).to(x.dtype) @ normals
    return (x - step.unflatten(-1, normal.shape)).to(w.dtype)


# --- the variations of an identity --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Axis:
    """Steps along one direction.

    Attributes:
        direction: what to edit.
        steps: signed distances [k], a tensor or numbers.
        kind: "move": w + s·n, from where the latent is. "set": w + (s − d)·n, d being the latent's signed distance, to
            the same distance for every latent. Where the plane goes through the origin (offset 0) d is w·n, and this
            is the published w − (w·n)n + s·n.
    """

    direction: Direction
    steps: Tensor | Sequence[float]
    kind: Kind = "move"

    def __post_init__(self) -> None:
        steps = torch.as_tensor(self.steps, dtype=self.direction.normal.dtype, device=self.direction.normal.device)
        if steps.ndim != 1 or len(steps) == 0:
            raise ShapeError("an axis needs steps", expected="[k], k ≥ 1", got=list(steps.shape))
        if has_values(steps) and not bool(steps.isfinite().all()):
            raise DataError("the steps are not finite", expected="signed distances", got=steps.tolist())
        if self.kind not in get_args(Kind):
            raise DataError("unknown kind of axis", expected=" or ".join(get_args(Kind)), got=repr(self.kind))
        object.__setattr__(self, "steps", steps)

    @classmethod
    def spread(cls, direction: Direction, steps: int = 20, scale: float = 1.0) -> Axis:
        """Moves evenly spread to both sides: scale·linspace(−e, e, steps) with e = max(−neg_mean, pos_mean)."""
        reach = torch.maximum(-direction.neg_mean, direction.pos_mean)
        line = torch.linspace(-1, 1, steps, dtype=reach.dtype, device=reach.device)
        return cls(direction, scale * reach * line, "move")

    @classmethod
    def between(cls, direction: Direction, steps: int = 5, scale: float = 1.0) -> Axis:
        """Sets the distance to `steps` evenly spread values from scale·neg_mean to scale·pos_mean."""
        line = torch.linspace(0, 1, steps, dtype=direction.normal.dtype, device=direction.normal.device)
        return cls(direction, scale * torch.lerp(direction.neg_mean, direction.pos_mean, line), "set")


def published_axes(directions: Mapping[str, Direction]) -> tuple[Axis, ...]:
    """The 45 variations of Jain et al. (2023; their released code), in their order, as axes for `vary`.

    Five expressions set to 0.75·pos_mean; 20 poses moved by 0.75·linspace(−e, e, 20), e = max(−neg_mean, pos_mean); 20
    illuminations likewise with 1.25. Nothing is neutralised first, unlike in Colbois et al. (`vary(neutral=…)`). The
    unedited image is not among the 45.

    Args:
        directions: "smile", "scream", "disgust", "squint", "surprise" (each against neutral), "pose", "illumination".

    Raises:
        DataError: names the directions that are missing.
    """
    wanted = (*PUBLISHED_EXPRESSIONS, "pose", "illumination")
    missing = [name for name in wanted if name not in directions]
    if missing:
        raise DataError(
            f"the published variations need more directions: {', '.join(missing)}",
            expected=", ".join(wanted),
            got=", ".join(directions) or "none",
            fix="fit them with fit_direction, or make axes of your own from the directions there are (ffs.Axis)",
        )
    expressions = (directions[name] for name in PUBLISHED_EXPRESSIONS)
    return (
        *(Axis(d, 0.75 * d.pos_mean.reshape(1), "set") for d in expressions),
        Axis.spread(directions["pose"], 20, 0.75),
        Axis.spread(directions["illumination"], 20, 1.25),
    )


@dataclass(frozen=True, eq=False)
class Variations:
    """The variations of n identities, k each; print it for a table.

    Attributes:
        latents: [n, k, *shape]; where nothing could be kept, the unedited latent.
        kept: bool [n, k]; False: dropped.
        factor: [n, k], share of the edit that was made: 1 whole, 1/2, 1/4, … shortened, 0 dropped.
        similarity: [n, k], cosine to the unedited face at the last factor tried; NaN without an embedder.
        axis: int64 [k], the axis of each variation.
        names: name of each axis.
        images: [n, k, 3, H, W] if asked for; where dropped, of the last factor tried.
        synthesized: images made, with an embedder or a detector the unedited faces included.
        reference_found: bool [n], whether the detector finds a face in the unedited image; where it does not, the
            cosines compare with no face, and most variations are dropped. All True without a detector.
    """

    latents: Tensor
    kept: Tensor
    factor: Tensor
    similarity: Tensor
    axis: Tensor
    names: tuple[str, ...]
    images: Tensor | None
    synthesized: int
    reference_found: Tensor

    def counts(self) -> Tensor:
        """int64 [axes, 3]: variations of each axis kept whole, shortened and dropped."""
        whole = self.kept & (self.factor == 1)
        each = torch.stack((whole, self.kept & ~whole, ~self.kept), dim=-1).sum(0)
        return torch.zeros(len(self.names), 3, dtype=each.dtype, device=each.device).index_add_(0, self.axis, each)

    def __str__(self) -> str:
        cosines = [float(self.similarity[:, self.axis == i].mean()) for i in range(len(self.names))]
        rows = [
            [name, *map(str, row), "–" if math.isnan(cosine) else f"{cosine:.3f}"]
            for name, row, cosine in zip(self.names, self.counts().tolist(), cosines, strict=True)
        ]
        table = markdown_table(["axis", "whole", "shortened", "dropped", "mean cosine"], rows)
        faceless = ~self.reference_found
        count, dropped = int(faceless.sum()), int((~self.kept).sum())
        if not count:
            return table
        theirs = f"{int((~self.kept[faceless]).sum())} of the {dropped} dropped variations are theirs"
        return f"{table}\n\nNo face found in {count} of {len(faceless)} unedited images; {theirs}."

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the kept variations' images as `folder/<identity>/<axis>_<number>.png`; returns the folder.

        Raises:
            DataError: the images were not kept (`vary(keep_images=True)`; `Pipeline.vary` does).
        """
        if self.images is None:
            raise DataError("there are no images to save", expected="vary(…, keep_images=True)", got="latents alone")
        rows, columns = self.kept.nonzero(as_tuple=True)
        axes = [self.names[i].replace(" ", "_") for i in self.axis.tolist()]
        number = [axes[:k].count(name) for k, name in enumerate(axes)]
        names = [f"{i:06d}/{axes[k]}_{number[k]:02d}" for i, k in zip(rows.tolist(), columns.tolist(), strict=True)]
        save_images(self.images[rows, columns], folder, names)
        return Path(folder)

    def __repr__(self) -> str:
        return f"Variations(identities={len(self.kept)}, variations={self.kept.shape[1]}, axes={self.names})"


@torch.no_grad()
def vary(
    w: Tensor,
    axes: Axis | Iterable[Axis],
    *,
    neutral: Direction | Iterable[Direction] = (),
    generator: Generator | None = None,
    embedder: Embedder | None = None,
    threshold: SupportsFloat | None = None,
    detector: Detector | None = None,
    min_step: float = 0.25,
    keep_images: bool = False,
    batch_size: int = 256,
) -> Variations:
    """All variations of all identities in one batch; with models, only those that are still the same face.

    Without embedder and detector this is a function of latents alone. With them every variation is synthesised and
    checked; where it fails, the edit is halved (w + ½(w' − w), then ¼, …) and only those latents are made again, until
    the factor would fall below `min_step`: the variation is then dropped. Waits for the device after every halving.
    All n·k latents are held at once: hand over so many identities as that allows.

    Args:
        w: latents of the identities, [n, d] (Z, W) or [n, num_ws, d] (W+).
        axes: what to vary: `published_axes(directions)`, or axes of your own.
        neutral: directions brought to distance 0 before each edit (Colbois et al.: pose and illumination). None by
            default, as in the published 45.
        generator: needed by all of the following.
        embedder: images → unit vectors; a variation's cosine to the unedited face (not neutralised) must reach the
            threshold.
        threshold: that cosine, from a stated FMR on impostor scores of this embedder (`threshold_at_fmr`).
        detector: what `load_detector` gives, or images → bool [n] or probabilities [n]; a variation must hold a face
            (≥ 0.95). Whether the unedited image holds one is only noted, in `reference_found`.
        min_step: smallest factor tried, in (0, 1]; 1: never shorten.
        keep_images: also return the images.
        batch_size: images at a time.

    Raises:
        ShapeError, DataError: latents that do not fit, NaN, a threshold without embedder or the reverse.
    """
    axes = (axes,) if isinstance(axes, Axis) else tuple(axes)
    strange = [axis for axis in axes if not isinstance(axis, Axis)]
    if strange:
        raise DataError(
            "an axis is a direction with steps along it",
            expected="Axis objects",
            got=f"a {type(strange[0]).__name__}",
            fix="ffs.Axis.spread(direction, steps=5), or ffs.demo_axes(world.directions) for the bundled world",
        )
    _check_vary(w, axes, min_step, batch_size)
    cosine = None if threshold is None else cosine_threshold(threshold)
    _check_models(generator, embedder, cosine, detector, keep_images)
    start = neutralise(w, neutral)
    target = torch.cat([_edits(start, axis) for axis in axes], dim=1)
    n, k = target.shape[:2]
    target, latents = target.flatten(0, 1), target.flatten(0, 1)
    kept = torch.ones(n * k, dtype=torch.bool, device=w.device)
    factor = torch.ones(n * k, device=w.device)
    similarity = torch.full((n * k,), torch.nan, device=w.device)
    images, made = None, 0
    found = torch.ones(n, dtype=torch.bool, device=w.device)
    if generator is not None:
        check = _Check(generator, embedder, cosine, detector, keep_images, batch_size)
        if embedder is None and detector is None:
            reference = w.new_zeros(n, 0)
        else:
            reference, found, made = *check.unedited(w), n
        latents, pending = latents.clone(), torch.arange(n * k, device=w.device)
        for halving in range(int(math.log2(1 / min_step) + 1e-9) + 1):
            identity = pending // k
            factor[pending] = 0.5**halving
            latents[pending] = torch.lerp(w[identity], target[pending], 0.5**halving)
            passed, similarity[pending], seen = check(latents[pending], reference[identity])
            if seen is not None:
                images = seen if images is None else images.index_copy_(0, pending, seen)
            made += len(pending)
            pending = pending[~passed]
            if len(pending) == 0:
                break
        kept[pending], factor[pending], latents[pending] = False, 0.0, w[pending // k]
    sizes = [len(torch.as_tensor(axis.steps)) for axis in axes]
    return Variations(
        latents=latents.unflatten(0, (n, k)),
        kept=kept.view(n, k),
        factor=factor.view(n, k),
        similarity=similarity.view(n, k),
        axis=torch.cat([torch.full((size,), i, device=w.device) for i, size in enumerate(sizes)]),
        names=tuple(axis.direction.name or f"axis {i}" for i, axis in enumerate(axes)),
        images=None if images is None else images.unflatten(0, (n, k)),
        synthesized=made,
        reference_found=found,
    )


# --- details ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Check:
    """Which latents still show a face, and the same one."""

    generator: Generator
    embedder: Embedder | None
    threshold: float | None
    detector: Detector | None
    keep_images: bool
    batch_size: int

    def unedited(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Identity vectors [n, e] of the unedited images ([n, 0] without an embedder), and bool [n]: is it a face?"""
        parts = []
        for latents in w.split(self.batch_size):
            images = self._synthesize(latents)
            vectors = w.new_zeros(len(images), 0) if self.embedder is None else self.embedder(images)
            parts.append((vectors, self._faces(images)))
        vectors, found = (torch.cat(part) for part in zip(*parts, strict=True))
        return vectors, found

    def _faces(self, images: Tensor) -> Tensor:
        if self.detector is None:
            return torch.ones(len(images), dtype=torch.bool, device=images.device)
        return faces_found(self.detector(images))

    def __call__(self, w: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """bool [m], cosines [m] (NaN without embedder) and, if asked for, images."""
        parts = []
        for latents, unedited in zip(w.split(self.batch_size), reference.split(self.batch_size), strict=True):
            images = self._synthesize(latents)
            passed = self._faces(images)
            cosine = torch.full((len(images),), torch.nan, device=w.device)
            if self.embedder is not None and self.threshold is not None:
                cosine = (self.embedder(images) * unedited).sum(1).to(cosine.dtype)
                if has_values(cosine) and not bool(cosine.isfinite().all()):
                    raise DataError("the embedder gave NaN or infinite values", fix="check generator and embedder")
                passed = passed & (cosine >= self.threshold)
            parts.append((passed, cosine, images if self.keep_images else images[:0]))
        passed, cosine, images = (torch.cat(part) for part in zip(*parts, strict=True))
        return passed, cosine, images if self.keep_images else None

    def _synthesize(self, w: Tensor) -> Tensor:
        return self.generator.synthesize(to_layers(self.generator, w))


def _edits(w: Tensor, axis: Axis) -> Tensor:
    """All steps of an axis: w [n, *shape] → [n, k, *shape]."""
    steps = torch.as_tensor(axis.steps).expand(len(w), -1)
    w = w.unsqueeze(1).expand(-1, steps.shape[1], *w.shape[1:])
    return edit(w, axis.direction, steps) if axis.kind == "move" else edit(w, axis.direction, to=steps)


def _each(directions: Direction | Iterable[Direction]) -> tuple[Direction, ...]:
    return (directions,) if isinstance(directions, Direction) else tuple(directions)


def _fitting(w: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """w and the normal in one dtype of at least single precision; ShapeError if they do not belong together."""
    shape = direction.normal.shape
    if not w.is_floating_point() or w.shape[-len(shape) :] != shape:
        raise ShapeError(
            f"these latents do not belong to the direction {direction.name!r}",
            expected=f"[..., {', '.join(map(str, shape))}], floating",
            got=f"{list(w.shape)} {w.dtype}",
        )
    dtype = torch.promote_types(w.dtype, torch.float32)
    return w.to(dtype), direction.normal.to(dtype)


def _tails(y: Tensor, share: float) -> Tensor:
    """1 for the upper tail, 0 for the lower, −1 between."""
    low, high = torch.quantile(y, torch.tensor([share, 1 - share], dtype=y.dtype))
    return torch.where(y >= high, 1.0, torch.where(y <= low, 0.0, -1.0))


def _fit_plane(x: Tensor, target: Tensor, method: Fit, regularization: float, others: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normal [D] without its part in the span of others [m, D], and the offset of the plane, 0-d."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.svm import LinearSVC

    model: Any
    if method == "svm":
        model = LinearSVC(fit_intercept=False, max_iter=10_000, C=1 / regularization, random_state=0)
    elif method == "logistic":
        model = LogisticRegression(max_iter=10_000, C=1 / regularization)
    else:
        model = Ridge(alpha=regularization)
    model.fit(x.numpy(), target.numpy())
    weight = torch.from_numpy(model.coef_).double().flatten()
    rest = weight - torch.linalg.pinv(others) @ (others @ weight)
    if not float(rest.norm()) > 1e-6 * max(float(weight.norm()), 1e-300):
        raise DataError(
            "no direction is left to move along",
            expected="labels that vary with the latents, beyond what orthogonal_to explains",
            got=f"a slope of {float(weight.norm()):.3g}, {float(rest.norm()):.3g} of it outside orthogonal_to",
        )
    normal = rest / rest.norm()
    if method == "svm":
        return normal, normal.new_zeros(())
    # Removing `others` turns the plane: about the mean of the data, whose distance so stays what it was.
    level = float(target.mean()) if method == "ridge" else 0.0
    predicted = x.mean(0) @ weight + float(torch.as_tensor(model.intercept_).flatten()[0]) - level
    return normal, x.mean(0) @ normal - predicted / weight.norm()


def _quality(distance: Tensor, y: Tensor, continuous: bool) -> float:
    from sklearn.metrics import roc_auc_score

    if continuous:
        return float(torch.corrcoef(torch.stack((distance, y)))[0, 1])
    known = y >= 0
    return float(roc_auc_score(y[known].numpy(), distance[known].numpy()))


def _check_fit(w: Tensor, labels: Tensor, method: str, tails: float, regularization: float, held_out: float) -> None:
    if w.ndim not in (2, 3) or not w.is_floating_point() or labels.shape != w.shape[:1]:
        raise ShapeError(
            "latents and labels do not fit",
            expected="w [n, d] or [n, num_ws, d], labels [n]",
            got=f"w {list(w.shape)} {w.dtype}, labels {list(labels.shape)}",
        )
    if method not in get_args(Fit) or not 0 < tails <= 0.5 or not regularization > 0 or not 0 <= held_out < 1:
        raise DataError(
            "a setting is out of range",
            expected=f"method {', '.join(get_args(Fit))}; 0 < tails ≤ 0.5; regularization > 0; 0 ≤ held_out < 1",
            got=f"{method!r}; {tails}; {regularization}; {held_out}",
        )
    if not bool(w.isfinite().all()) or not bool(labels.isfinite().all()):
        fix = "nothing could be measured there? fit_direction(w[ok], labels[ok])"
        raise DataError("latents or labels are NaN or infinite", expected="finite values", fix=fix)
    if not labels.is_floating_point() and not bool(((labels >= -1) & (labels <= 1)).all()):
        raise DataError("unknown class labels", expected="0 and 1, or −1 to leave out", got=labels.unique().tolist())
    if not labels.is_floating_point() and method == "ridge":
        raise DataError("ridge is for measured quantities", expected="float labels", got=labels.dtype)


def _check_classes(classes: Tensor, name: str) -> None:
    counts = [int((classes == c).sum()) for c in (0, 1)]
    if min(counts) < MIN_SAMPLES:
        raise DataError(
            f"too few samples to fit the direction {name!r}",
            expected=f"at least {MIN_SAMPLES} of each class, also among the held-out rows",
            got=f"{counts[0]} negative, {counts[1]} positive",
            fix="label more latents, widen tails=, or pass held_out=0",
        )


def _check_vary(w: Tensor, axes: Sequence[Axis], min_step: float, batch_size: int) -> None:
    if w.ndim not in (2, 3) or not w.is_floating_point() or len(w) == 0:
        got = f"{list(w.shape)} {w.dtype}"
        raise ShapeError("not a batch of latents", expected="[n, d] or [n, num_ws, d], n ≥ 1", got=got)
    if has_values(w) and not bool(w.isfinite().all()):
        raise DataError("the latents are NaN or infinite", expected="finite values")
    if not axes:
        raise DataError("nothing to vary", expected="at least one axis", got="none")
    for normal in (axis.direction.normal for axis in axes):
        if normal.ndim > w.ndim - 1:  # [num_ws, d] would be taken for a batch
            expected = f"w [n, {', '.join(map(str, normal.shape))}]"
            raise ShapeError("a W+ direction cannot edit W latents", expected=expected, got=list(w.shape))
    if not 0 < min_step <= 1 or batch_size < 1:
        got = f"min_step={min_step}, batch_size={batch_size}"
        raise DataError("a setting is out of range", expected="0 < min_step ≤ 1, batch_size ≥ 1", got=got)


def _check_models(
    generator: object, embedder: object, threshold: float | None, detector: object, keep_images: bool
) -> None:
    if (embedder is None) != (threshold is None) or (threshold is not None and not -1 <= threshold <= 1):
        raise DataError(
            "embedder and threshold go together",
            expected="both or neither; the threshold is a cosine, −1 … 1",
            got=f"embedder {'missing' if embedder is None else 'given'}, threshold={threshold}",
            fix="ffs.threshold_at_fmr(ffs.impostor_scores(embeddings), fmr=1e-3)",
        )
    needed = embedder is not None or detector is not None or keep_images
    if needed != (generator is not None):
        raise DataError(
            "images are needed, and there is no generator" if needed else "there is nothing to make images for",
            expected="generator= together with embedder=, detector= or keep_images=True",
            got=f"generator {'missing' if generator is None else 'alone'}",
        )
