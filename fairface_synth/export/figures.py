"""The figures of a set's datasheet: faces, shares as labelled, cosines."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ..groups import Groups
from ..reports import group_shares
from .auditing import GRID_FACES, Faces, Sample, Variations
from .disk import disk_errors, write_file
from .finished import FinishedSet
from .readme import FIGURE_GROUPS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURES = ("faces", "shares", "nearest", "same_person")
_STYLE: Any = ["default", {"text.parse_math": False}]  # whatever the user's is; names of groups may hold dollars


def drawable(groups: Groups) -> Groups:
    """The same groups; values that the figures' font lacks letters of are called #1, #2, …"""
    from matplotlib import font_manager, style

    with style.context(_STYLE):
        font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    taken = {value for values in groups.attributes.values() for value in values}
    numbers = (number for n in count(1) if (number := f"#{n}") not in taken)
    attributes = {
        attribute: [v if all(font.get_char_index(ord(letter)) for letter in v) else next(numbers) for v in values]
        for attribute, values in groups.attributes.items()
    }
    return Groups(attributes)


def numbered(groups: Groups, drawn: Groups) -> dict[str, str]:
    """{number in the figures: value}."""
    names, values = (chain.from_iterable(g.attributes.values()) for g in (drawn, groups))
    return {name: value for name, value in zip(names, values, strict=True) if name != value}


def draw_figures(
    sample: Sample, drawn: Groups, faces: Faces, disk: FinishedSet, varied: Variations
) -> dict[str, Figure]:
    """{name: figure}; `drawn` are the sample's groups under the names that the font has."""
    from matplotlib import style

    from ..plotting import face_grid, share_bars

    figures: dict[str, Figure] = {}
    with style.context(_STYLE):
        figures["faces"] = face_grid(faces.grid, faces.grid_ids, drawn, columns=GRID_FACES)
        for groups, ids in _shown_groups(drawn, faces.labels):
            named = {
                who: group_shares(groups, i) for who, i in zip(("labeller", "judge"), ids, strict=True) if i is not None
            }
            if named:
                name = "shares" if groups == drawn else f"shares_{next(iter(groups.attributes))}"
                figures[name] = share_bars(named, title=f"as labelled, {len(sample.identities):,} faces (image 0)")
        known = disk.nearest[np.isfinite(disk.nearest)]
        if len(known):
            xlabel = "largest cosine to an identity accepted earlier"
            figures["nearest"] = _histogram(known, disk.threshold, xlabel, "identities")
        if varied.cosines is not None:
            xlabel = "cosine of a variation to its identity's face"
            figures["same_person"] = _histogram(varied.cosines.ravel(), disk.threshold, xlabel, "images")
    return figures


def save_figures(figures: Mapping[str, Figure], root: Path) -> None:
    """Write them into the set's folder; figures of an earlier datasheet that are not among them go."""
    from matplotlib import style

    folder = root / "figures"
    for name, figure in figures.items():
        picture = io.BytesIO()
        with style.context(_STYLE):
            # Without matplotlib's version in it, the picture alone decides the bytes.
            figure.savefig(picture, format="png", dpi=100, metadata={"Software": None})
        write_file(folder / f"{name}.png", picture.getvalue())
    with disk_errors(folder):
        for old in folder.glob("*.png"):  # of a datasheet written earlier, with other models
            if old.stem not in figures and old.stem.startswith(_FIGURES):
                old.unlink()


# --- details ------------------------------------------------------------------------------------------------------


def _shown_groups(
    groups: Groups, labels: tuple[Tensor | None, ...]
) -> Iterator[tuple[Groups, tuple[Tensor | None, ...]]]:
    """The groups, or each attribute by itself where there are too many for one figure."""
    if len(groups) <= FIGURE_GROUPS:
        yield groups, labels
        return
    for attribute, values in groups.attributes.items():
        yield (
            Groups({attribute: values}),
            tuple(None if ids is None else groups.value_ids(ids, attribute) for ids in labels),
        )


def _histogram(values: np.ndarray, threshold: float | None, xlabel: str, ylabel: str) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from ..plotting import COLOURS

    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    ax = figure.subplots()
    ax.hist(values, bins=_edges(values, threshold).tolist(), color=COLOURS[0])
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if threshold is not None:
        ax.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold {threshold:.3f}")
        ax.legend(frameon=False, fontsize=8)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _edges(values: np.ndarray, threshold: float | None) -> np.ndarray:
    """Of some 50 bins over all values; one is the threshold, so that no bin has values from both of its sides."""
    mark = float(values.min() if threshold is None else threshold)
    low, high = min(values.min(), mark) - 0.01, max(values.max(), mark) + 0.01
    width = (high - low) / 50
    return mark + width * np.arange(math.floor((low - mark) / width), math.ceil((high - mark) / width) + 1)
