"""Figures. Every function returns a matplotlib Figure; nothing is shown or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import DataError, GroupError
from .groups import Groups
from .images import to_uint8
from .models.pretrained import resize
from .reports import GroupShares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .identities import LeakageReport

# Okabe & Ito 2008: told apart by the colour-blind, and in greyscale print by lightness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")


def face_grid(
    images: Tensor, group_ids: Tensor, groups: Groups, *, columns: int = 10, title: str | None = None
) -> Figure:
    """One labelled row of faces for each group that has any.

    Args:
        images: [n, 3, H, W] in [-1, 1].
        group_ids: int64 [n]; −1 is left out.
        groups: names the rows.
        columns: faces a row; the first ones of each group.
        title: above the figure.
    """
    from matplotlib.figure import Figure

    if len(images) != len(group_ids):
        raise DataError("one group id per image, please", expected=len(images), got=len(group_ids))
    present = [g for g in range(len(groups)) if bool((group_ids == g).any())]
    if not present:
        raise GroupError("no image belongs to a group", expected="some ids ≥ 0", got="only -1 or nothing")
    side = images.shape[-1]
    figure = Figure(figsize=(1.6 + 0.8 * columns, 0.82 * len(present) + (0.4 if title else 0.1)), layout="constrained")
    axes = figure.subplots(len(present), 1, squeeze=False)[:, 0]
    for ax, g in zip(axes, present, strict=True):
        faces = to_uint8(images[group_ids == g][:columns]).permute(0, 2, 3, 1).cpu()
        strip = torch.full((side, side * columns, 3), 255, dtype=torch.uint8)
        strip[:, : side * len(faces)] = torch.cat(list(faces), dim=1)
        ax.imshow(strip.numpy(), interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_frame_on(False)
        ax.set_ylabel(groups.name(g).replace("-", "\n"), rotation=0, ha="right", va="center", fontsize=9)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def share_bars(sets: Mapping[str, GroupShares], *, title: str | None = None) -> Figure:
    """Group shares of several sets side by side, with 95 % intervals and the balanced share as a line.

    Args:
        sets: {name of the set: shares}, all over the same groups.
        title: above the figure.
    """
    from matplotlib.figure import Figure

    if not sets:
        raise DataError("no sets to draw", expected="at least one", got=0)
    groups = next(iter(sets.values())).groups
    figure = Figure(figsize=(1.5 + 1.25 * len(groups), 3.4), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / len(sets)
    for i, (name, shares) in enumerate(sets.items()):
        if shares.groups != groups:
            raise GroupError("the sets are over different groups", expected=groups, got=shares.groups)
        x = [g + (i - (len(sets) - 1) / 2) * width for g in range(len(groups))]
        value = 100 * shares.shares
        error = torch.stack((value - 100 * shares.low, 100 * shares.high - value)).clamp_min(0)
        ax.bar(x, value.tolist(), width, yerr=error.tolist(), label=name, color=COLOURS[i % len(COLOURS)], capsize=2)
    ax.axhline(100 / len(groups), color="black", linewidth=0.8, linestyle="--", label="balanced")
    ax.set_xticks(range(len(groups)), [n.replace("-", "\n", 1) for n in groups.names])
    ax.set_ylabel("share of faces, %")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    if title:
        ax.set_title(title, fontsize=10)
    return figure


def rate_bars(
    rates: Mapping[str, Sequence[float]],
    groups: Groups,
    *,
    ylabel: str,
    log: bool = False,
    title: str | None = None,
) -> Figure:
    """One bar per method and group, for example syntheses per accepted face.

    Args:
        rates: {method: one number per group}; NaN and inf are left blank.
        groups: names the groups.
        ylabel: what the numbers are.
        log: logarithmic axis.
        title: above the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 1.25 * len(groups), 3.2), layout="constrained")
    ax = figure.subplots()
    width = 0.8 / max(1, len(rates))
    for i, (name, values) in enumerate(rates.items()):
        height = torch.tensor(values, dtype=torch.float64)
        height = torch.where(height.isfinite(), height, float("nan"))
        x = [g + (i - (len(rates) - 1) / 2) * width for g in range(len(groups))]
        bars = ax.bar(x, height.tolist(), width, label=name, color=COLOURS[i % len(COLOURS)])
        ax.bar_label(bars, [f"{v:.3g}" if v == v else "–" for v in height.tolist()], fontsize=7)
    if log:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("")
    ax.set_xticks(range(len(groups)), [n.replace("-", "\n", 1) for n in groups.names])
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    if title:
        ax.set_title(title, fontsize=10)
    return figure


def pair_grid(
    first: Tensor, second: Tensor, scores: Tensor | None = None, *, columns: int = 5, title: str | None = None
) -> Figure:
    """Pairs of faces side by side, for example the closest ones of a leakage report.

    Args:
        first, second: images [n, 3, H, W] in [-1, 1], row by row a pair.
        scores: [n], written above each pair.
        columns: pairs a line.
        title: above the figure.
    """
    from matplotlib.figure import Figure

    if first.shape != second.shape or len(first) == 0:
        raise DataError("pairs need two images each", expected="equal shapes, n ≥ 1", got=[first.shape, second.shape])
    if scores is not None and scores.shape != first.shape[:1]:
        raise DataError("one score per pair, please", expected=[len(first)], got=list(scores.shape))
    columns = min(columns, len(first))
    lines = -(-len(first) // columns)
    figure = Figure(figsize=(1.9 * columns, 1.2 * lines + (0.4 if title else 0.1)), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    pixels = to_uint8(torch.cat((first, second), dim=-1)).permute(0, 2, 3, 1).cpu().numpy()
    for ax in axes:
        ax.set_axis_off()
    for i, (ax, pair) in enumerate(zip(axes, pixels, strict=False)):
        ax.imshow(pair, interpolation="nearest")
        if scores is not None:
            ax.set_title(f"{float(scores[i]):.3f}", fontsize=8, pad=2)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def leakage_pairs(
    report: LeakageReport,
    images: Tensor | Sequence[Tensor],
    reference_images: Tensor | Sequence[Tensor],
    *,
    columns: int = 5,
    title: str | None = None,
) -> Figure:
    """The closest pairs of a leakage report, face beside reference, with their cosines.

    Args:
        report: lists the pairs, the closest first.
        images: the tested faces, [n, 3, H, W] in [-1, 1], or anything with a length that gives image [3, H, W] number i
            (a dataset need not be in memory).
        reference_images: the references likewise; at another resolution, they are resized.
        columns: pairs a line.
        title: above the figure.

    Raises:
        DataError: not as many images as the report has faces and references, or a report without pairs.
    """
    expected = [len(report.nearest.similarity), report.references]
    if [len(images), len(reference_images)] != expected:
        got = [len(images), len(reference_images)]
        raise DataError("these are not the images of this report", expected=expected, got=got)
    if not len(report.pairs):
        raise DataError("the report lists no pairs", fix="leakage_report(…, pairs=10)")
    rows, others = report.pairs.T.tolist()
    faces = torch.stack([images[i] for i in rows])
    references = torch.stack([reference_images[i] for i in others]).to(faces)
    scores = report.nearest.similarity[report.pairs[:, 0]]
    height, width = faces.shape[-2:]
    return pair_grid(faces, resize(references, (height, width)), scores, columns=columns, title=title)
