"""What a discriminator answers to: scores of images of which one thing is changed, the test of cause for an audit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .covariates import LUMINANCE_WEIGHTS, check_rgb, luminance
from .discriminators import (
    InputRange,
    Resize,
    check_finite,
    check_options,
    condition_rows,
    logits_of,
    prepare,
    to_device,
)
from .errors import DataError, GroupError, ShapeError
from .groups import Groups, check_ids
from .latents import _batches
from .reports import markdown_table
from .tables import Table, to_frame


class SweepCurve(NamedTuple):
    """Mean score change against the original of one group, with 95 % intervals over its images (paired, Student's t).

    Attributes:
        group: its name; "all" for every image.
        n: images in it; with one image there is no interval (NaN).
        mean, low, high: float64 [v], logits.
        derivative: (mean, low, high) of the derivative at the original.
    """

    group: str
    n: int
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    derivative: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Sweep:
    """Scores of images of which one property was changed; made by `sweep`.

    Attributes:
        transform: its name.
        values: float64 [v], what the transform was given.
        identity: the value that changes nothing.
        scores: float32 [v, n].
        original: float32 [n], scores of the unchanged images.
        derivative: float32 [n], central difference at the original: logits per unit of the transform.
        step: half width of that difference.
        clipped: float64 [v], share of pixel values that left the range and were clipped. Where it is not small, the
            images changed in other ways than the transform says.
        input_range: what the discriminator was given.
        group_ids, groups: the groups, if any; −1 is in "all" alone.
    """

    transform: str
    values: Tensor
    identity: float
    scores: Tensor
    original: Tensor
    derivative: Tensor
    step: float
    clipped: Tensor
    input_range: str
    group_ids: Tensor | None = None
    groups: Groups | None = None

    def curves(self) -> list[SweepCurve]:
        """One curve for all images, then one for each group that has any."""
        change = (self.scores.double() - self.original.double()).cpu().numpy()
        slope = self.derivative.double().cpu().numpy()
        masks = {"all": np.ones(change.shape[1], dtype=bool)}
        if self.group_ids is not None and self.groups is not None:
            ids = self.group_ids.cpu().numpy()
            masks |= {name: ids == g for g, name in enumerate(self.groups.names) if (ids == g).any()}
        curves = []
        for name, mask in masks.items():
            mean, low, high = _t_interval(change[:, mask])
            derivative = tuple(float(x) for x in _t_interval(slope[mask]))
            curves.append(SweepCurve(name, int(mask.sum()), mean, low, high, derivative))  # type: ignore[arg-type]
        return curves

    def to_table(self) -> Table:
        """One row per group and value: transform, input_range, group, n, value, change, low, high, clipped."""
        values, clipped, curves = self.values.cpu().numpy(), self.clipped.cpu().numpy(), self.curves()
        v = len(values)
        return {
            "transform": np.repeat([self.transform], v * len(curves)),
            "input_range": np.repeat([self.input_range], v * len(curves)),
            "group": np.repeat([c.group for c in curves], v),
            "n": np.repeat([c.n for c in curves], v),
            "value": np.tile(values, len(curves)),
            "change": np.concatenate([c.mean for c in curves]),
            "low": np.concatenate([c.low for c in curves]),
            "high": np.concatenate([c.high for c in curves]),
            "clipped": np.tile(clipped, len(curves)),
        }

    def to_frame(self) -> Any:
        """`to_table` as a pandas frame."""
        return to_frame(self.to_table())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers: the settings, the shares clipped, and the curves by group."""
        return {
            "transform": self.transform,
            "input_range": self.input_range,
            "identity": self.identity,
            "step": self.step,
            "values": self.values.tolist(),
            "clipped": self.clipped.tolist(),
            "groups": {
                c.group: {
                    "n": c.n,
                    "change": c.mean.tolist(),
                    "low": c.low.tolist(),
                    "high": c.high.tolist(),
                    "derivative": list(c.derivative),
                }
                for c in self.curves()
            },
        }

    def __str__(self) -> str:
        first, last = float(self.values[0]), float(self.values[-1])
        rows = [
            [c.group, str(c.n), _interval_text(*c.derivative)]
            + [_interval_text(c.mean[i], c.low[i], c.high[i]) for i in (0, -1)]
            for c in self.curves()
        ]
        header = ["group", "images", "derivative [95 %]", f"change at {first:g}", f"change at {last:g}"]
        worst = int(self.clipped.argmax())
        note = f"Clipped: at most {float(self.clipped[worst]):.1%} of pixel values, at {float(self.values[worst]):g}."
        return (
            f"Score change under {self.transform}, {self.input_range} input; it is 0 at {self.identity:g}. Logits; "
            f"derivative per unit, from {self.identity:g} ± {self.step:g}.\n\n{markdown_table(header, rows)}\n\n{note}"
        )


@torch.no_grad()
def sweep(
    discriminator: Any,
    images: Tensor,
    transform: str | Callable[[Tensor, float], Tensor],
    values: Sequence[float] | Tensor | None = None,
    *,
    identity: float | None = None,
    step: float | None = None,
    group_ids: Tensor | None = None,
    groups: Groups | None = None,
    input_range: InputRange = "minus1_1",
    resize: Resize = "antialias",
    batch_size: int = 32,
    c: Tensor | None = None,
    progress: bool = True,
) -> Sweep:
    """Score every image at every value of a transform: what a discriminator answers to, image by image.

    On RGB in [0, 1], not linearised; Y as in `covariates`. The results are clipped to [0, 1].

    | transform | what it does | unit, identity |
    |---|---|---|
    | "brightness" | v·(R, G, B) | gain, 1 |
    | "luminance" | adds v to R, G and B: moves Y by v, leaves chroma (R − Y, B − Y) | Y of 0–1, 0 |
    | "contrast" | m + v·(x − m), m the image's mean Y | gain, 1 |
    | "saturation" | Y + v·(x − Y): leaves Y of every pixel | gain, 1 |
    | "hue" | turns (Cb, Cr) of BT.709 by v, from red towards yellow: leaves Y | degrees, 0 |
    | "red_gain", "green_gain", "blue_gain" | v·R, v·G or v·B | gain, 1 |
    | "gamma" | x^v: below 1 brightens | exponent, 1 |

    The paper has no sweeps: this is the test of cause that its correlations lack. It is one of the *discriminator*:
    what such a change would be in front of a camera is another question.

    Args:
        discriminator, input_range, resize, batch_size, c: as in `score`; group_size is 1.
        images: [n, 3, H, W], float in [-1, 1] (clamped to it) or uint8. They are first brought to the discriminator's
            size and changed there; in the raw range the changed values are not rounded to whole numbers again.
        transform: a name above, or any function (images [b, 3, H, W] in [-1, 1], value) → images of that shape.
        values: the values to try; None: a range around the identity. Needed for a function.
        identity: for a function, the value at which nothing changes.
        step: half width of the central difference of `derivative`; None: 0.02 for gains and exponents, 0.01 for
            luminance, 2 degrees for hue, and for a function a hundredth of the values' range.
        group_ids: int64 [n], −1 for none; with `groups`, for curves by group.
        groups: names the ids.
        progress: show a bar.

    Raises:
        DataError: an unknown transform, values that it does not take, or as in `score`.
        GroupError, ShapeError: ids without groups, or not one an image; or as in `score`.
    """
    n = check_rgb(images)
    check_options(input_range, resize, 1, batch_size)
    _check_groups(group_ids, groups, n)
    name, how = _transform(transform, values, identity, step)
    tried = [*how.values, how.identity + how.step, how.identity - how.step]
    original, changed = [], []
    outside = torch.zeros(len(tried), dtype=torch.float64, device=to_device(discriminator, images[:0]).device)
    for rows in _batches(n, batch_size, f"sweeping {name}", progress):
        batch = images[rows] if images.dtype == torch.uint8 else images[rows].clamp(-1, 1)
        x, condition = prepare(discriminator, batch, input_range, resize), condition_rows(c, rows.start, rows.stop, n)
        rgb = x / 255 if input_range == "uint8_raw" else (x + 1) / 2
        unchanged = logits_of(discriminator, x, condition, 1)
        now = []
        for k, value in enumerate(tried):
            if value == how.identity:
                now.append(unchanged)
                continue
            y = how.apply(rgb, value)
            # A fortieth of an 8-bit level is rounding, not clipping.
            outside[k] += ((y < -1e-4) | (y > 1 + 1e-4)).double().mean((1, 2, 3)).sum() / n
            y = y.clamp(0, 1)
            y = 255 * y if input_range == "uint8_raw" else 2 * y - 1
            now.append(logits_of(discriminator, y, condition, 1))
        original.append(unchanged)
        changed.append(torch.stack(now))
    scores = check_finite(torch.cat(changed, dim=1).to(images.device))
    return Sweep(
        transform=name,
        values=torch.tensor(how.values, dtype=torch.float64, device=images.device),
        identity=how.identity,
        scores=scores[:-2],
        original=check_finite(torch.cat(original).to(images.device)),
        derivative=(scores[-2] - scores[-1]) / (2 * how.step),
        step=how.step,
        clipped=outside[:-2].to(images.device),
        input_range=input_range,
        group_ids=group_ids,
        groups=groups,
    )


# --- transforms -------------------------------------------------------------------------------------------------------


class _Transform(NamedTuple):
    apply: Callable[[Tensor, float], Tensor]  # RGB in [0, 1], value → RGB, not clipped
    identity: float
    step: float
    values: tuple[float, ...]
    lowest: float = -math.inf


def _contrast(rgb: Tensor, value: float) -> Tensor:
    grey = luminance(rgb).mean((2, 3), keepdim=True)
    return grey + value * (rgb - grey)


def _saturation(rgb: Tensor, value: float) -> Tensor:
    y = luminance(rgb)
    return y + value * (rgb - y)


def _hue(rgb: Tensor, value: float) -> Tensor:
    (wr, wg, wb), y = LUMINANCE_WEIGHTS, luminance(rgb)
    cr, cb = (rgb[:, :1] - y) / (2 - 2 * wr), (rgb[:, 2:] - y) / (2 - 2 * wb)
    cos, sin = math.cos(math.radians(value)), math.sin(math.radians(value))
    red, blue = y + (2 - 2 * wr) * (cos * cr + sin * cb), y + (2 - 2 * wb) * (cos * cb - sin * cr)
    return torch.cat((red, (y - wr * red - wb * blue) / wg, blue), dim=1)


def _gain(*channels: float) -> Callable[[Tensor, float], Tensor]:
    """Multiply the channels marked 1 by the value."""

    def apply(rgb: Tensor, value: float) -> Tensor:
        mask = torch.tensor(channels, dtype=rgb.dtype, device=rgb.device)[:, None, None]
        return rgb * (1 + (value - 1) * mask)

    return apply


_GAINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5)
TRANSFORMS: dict[str, _Transform] = {
    "brightness": _Transform(_gain(1, 1, 1), 1.0, 0.02, _GAINS, 0.0),
    "luminance": _Transform(lambda x, v: x + v, 0.0, 0.01, (-0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3)),
    "contrast": _Transform(_contrast, 1.0, 0.02, _GAINS, 0.0),
    "saturation": _Transform(_saturation, 1.0, 0.02, (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), 0.0),
    "hue": _Transform(_hue, 0.0, 2.0, (-60.0, -40.0, -20.0, -10.0, 0.0, 10.0, 20.0, 40.0, 60.0)),
    "red_gain": _Transform(_gain(1, 0, 0), 1.0, 0.02, _GAINS, 0.0),
    "green_gain": _Transform(_gain(0, 1, 0), 1.0, 0.02, _GAINS, 0.0),
    "blue_gain": _Transform(_gain(0, 0, 1), 1.0, 0.02, _GAINS, 0.0),
    "gamma": _Transform(lambda x, v: x**v, 1.0, 0.02, (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0), 1e-3),
}


def _transform(
    transform: str | Callable[[Tensor, float], Tensor],
    values: Sequence[float] | Tensor | None,
    identity: float | None,
    step: float | None,
) -> tuple[str, _Transform]:
    """Name, and the transform with the user's values."""
    given = None if values is None else [float(v) for v in values]
    if given is not None and (not given or not all(map(math.isfinite, given))):
        raise DataError("these are no values to try", expected="finite numbers", got=given)
    if isinstance(transform, str):
        known = TRANSFORMS.get(transform)
        if known is None:
            fix = "or pass a function (images, value) → images"
            raise DataError("unknown transform", expected=", ".join(TRANSFORMS), got=repr(transform), fix=fix)
        if identity is not None and identity != known.identity:
            raise DataError(f"{transform} changes nothing at {known.identity:g}", got=f"identity={identity}")
        name, how = transform, known
    elif callable(transform):
        if given is None or identity is None:
            raise DataError("a function needs values= and identity=", got=f"values={given}, identity={identity}")
        width = max(*given, identity) - min(*given, identity)
        name = getattr(transform, "__name__", type(transform).__name__)
        how = _Transform(_on_unit_range(transform, name), float(identity), 0.01 * width, tuple(given))
    else:
        raise DataError("a transform is a name or a function", got=type(transform).__name__)
    how = how._replace(values=tuple(given or how.values), step=how.step if step is None else float(step))
    if not 0 < how.step < math.inf:
        raise DataError("the step must be positive", expected="step > 0", got=how.step)
    if min(*how.values, how.identity - how.step) < how.lowest:
        raise DataError(f"{name} does not take such values", expected=f"≥ {how.lowest:g}", got=min(how.values))
    return name, how


def _on_unit_range(function: Callable[[Tensor, float], Tensor], name: str) -> Callable[[Tensor, float], Tensor]:
    def apply(rgb: Tensor, value: float) -> Tensor:
        changed = function(2 * rgb - 1, value)
        if not isinstance(changed, Tensor) or changed.shape != rgb.shape:
            got = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise ShapeError(f"{name} does not return images", expected=list(rgb.shape), got=got)
        return (changed + 1) / 2

    return apply


# --- details ----------------------------------------------------------------------------------------------------------


def _check_groups(group_ids: Tensor | None, groups: Groups | None, n: int) -> None:
    if (group_ids is None) != (groups is None):
        raise GroupError("group_ids and groups go together", expected="both or neither", got="one of them")
    if group_ids is None or groups is None:
        return
    if group_ids.shape != (n,) or group_ids.is_floating_point():
        got = f"{list(group_ids.shape)} {group_ids.dtype}"
        raise ShapeError("one group id per image, please", expected=f"int64 [{n}]", got=got)
    check_ids(group_ids, len(groups))


def _t_interval(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the last axis and its 95 % interval; NaN for one sample."""
    from scipy.special import stdtrit

    n = x.shape[-1]
    mean = x.mean(-1)
    half = stdtrit(n - 1, 0.975) * x.std(-1, ddof=1) / math.sqrt(n) if n > 1 else np.full_like(mean, np.nan)
    return mean, mean - half, mean + half


def _interval_text(*interval: float) -> str:
    value, low, high = (f"{float(f'{x:.3g}'):g}" for x in interval)  # three digits, and 1030 rather than 1.03e+03
    return f"{value} [{low}, {high}]"
