"""Figures. Every function returns a matplotlib Figure; nothing is shown or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import DataError, GroupError, ShapeError
from .groups import Groups
from .images import to_uint8
from .models.pretrained import resize
from .reports import GroupShares

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from .divergence import KLMatrix, KLTable
    from .fairness import Fairness
    from .leakage import LeakageReport
    from .sweeps import Sweep
    from .verification import Verification

# Okabe & Ito 2008: told apart by the colour-blind, and in greyscale print by lightness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")

# Ticks of normal-deviate axes.
_RATE_MARKS = (1e-6, 1e-5, 1e-4, 1e-3, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


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


def sweep_curves(sweep: Sweep, *, title: str | None = None) -> Figure:
    """Score change against the value of a sweep's transform, one line a group, with 95 % bands over its images.

    Where more than 1 % of the pixel values are clipped the background is grey: there the images changed in other ways
    than the transform says. Every group has its own marker and dashes, so the lines survive greyscale print.

    Args:
        sweep: what `sweeps.sweep` gives.
        title: above the figure.
    """
    from matplotlib.figure import Figure

    order = sweep.values.argsort().cpu().numpy()
    values, clipped = sweep.values.cpu().numpy()[order], sweep.clipped.cpu().numpy()[order]
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    ax = figure.subplots()
    for i, curve in enumerate(sweep.curves()):
        colour = "black" if curve.group == "all" else COLOURS[(i - 1) % len(COLOURS)]
        marker, dashes = "o^sDvP*X"[i % 8], ("-", "--", "-.", ":")[i % 4]
        label = f"{curve.group} (n = {curve.n})"
        ax.plot(values, curve.mean[order], marker + dashes, color=colour, markersize=4, linewidth=1.2, label=label)
        ax.fill_between(values, curve.low[order], curve.high[order], color=colour, alpha=0.13, linewidth=0)
    for i in (clipped > 0.01).nonzero()[0]:
        left = values[i] if i == 0 else (values[i - 1] + values[i]) / 2
        right = values[i] if i == len(values) - 1 else (values[i] + values[i + 1]) / 2
        ax.axvspan(left, right, color="#ededed", linewidth=0, zorder=0)
    ax.axhline(0, color="#555555", linewidth=0.7)
    ax.axvline(sweep.identity, color="#555555", linewidth=0.7, linestyle=":")
    ax.set_xlabel(sweep.transform.replace("_", " "))
    ax.set_ylabel("score change, logits")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    if (clipped > 0.01).any():
        figure.supxlabel("grey: more than 1 % of the pixel values are clipped", fontsize=8)
    ax.set_title(title or f"{sweep.transform.replace('_', ' ')}, {sweep.input_range} input", fontsize=10)
    return figure


def score_histogram(
    scores: ArrayLike,
    rgb: ArrayLike,
    *,
    bins: int = 20,
    xlabel: str = "discriminator score",
    title: str | None = None,
) -> Figure:
    """How often each score occurs (logarithmic), every bar filled with the mean colour of its own images.

    Grissom et al. 2024 (arXiv 2402.09786, study 1; 20 bins): where a discriminator prefers a colour, the bars drift
    towards it. Bars have dark edges, so a pale bar is still seen.

    Args:
        scores: [n], finite.
        rgb: mean colour of each image [n, 3], 0–255.
        bins: of equal width over the scores' range.
        xlabel: what the score is.
        title: above the figure.

    Raises:
        ShapeError, DataError: arrays that do not fit together, NaN, no scores, colours outside 0–255.
    """
    import numpy as np
    from matplotlib.figure import Figure

    values, colours = _finite(scores, "scores", 1), _finite(rgb, "rgb", 2)
    if colours.shape != (len(values), 3):
        raise ShapeError("one colour per score, please", expected=[len(values), 3], got=list(colours.shape))
    if bins < 1 or colours.min() < 0 or colours.max() > 255:
        got = f"{bins=}, colours {colours.min():.3g}–{colours.max():.3g}"
        raise DataError("no such bins or colours", expected="bins ≥ 1, colours 0–255", got=got)
    counts, edges = np.histogram(values, bins=bins)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)  # np.histogram's own rule
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    ax = figure.subplots()
    for i in np.flatnonzero(counts):
        fill = colours[place == i].mean(0) / 255
        left, width = edges[i], edges[i + 1] - edges[i]
        ax.bar(left, counts[i], width, align="edge", color=fill, edgecolor="#333333", linewidth=0.8)
    ax.set_yscale("log")
    ax.set_ylim(0.7, 1.6 * counts.max())  # a single image is a bar too
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel(xlabel)
    ax.set_ylabel("images (log scale)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title or "colour of a bar: mean colour of its images", fontsize=10)
    return figure


def score_ridges(
    scores: ArrayLike,
    groups: Sequence[str],
    *,
    xlabel: str = "discriminator score",
    title: str | None = None,
) -> Figure:
    """Density of the scores of each group, one above the other, by name; a dot at the mean, n beside the name.

    Densities are Gaussian kernel estimates (Scott's bandwidth), each drawn to the same height: compare places and
    widths, not heights. A group of fewer than 5, or one whose scores are all the same, is drawn as ticks: a curve
    through so few would be invented.

    Args:
        scores: [n], finite.
        groups: the group of each score; "" is left out.
        xlabel: what the score is.
        title: above the figure.

    Raises:
        ShapeError, DataError: arrays that do not fit together, NaN, no scores.
    """
    import numpy as np
    from matplotlib.figure import Figure
    from scipy.stats import gaussian_kde

    values, labels = _finite(scores, "scores", 1), np.asarray(groups).astype(str)
    if labels.shape != values.shape:
        raise ShapeError("one group per score, please", expected=list(values.shape), got=list(labels.shape))
    names = [name for name in sorted(set(labels.tolist())) if name]
    if not names:
        raise DataError("no score belongs to a group", expected="names", got="only ''")
    margin = 0.08 * max(float(np.ptp(values)), 1e-9)
    grid = np.linspace(values.min() - margin, values.max() + margin, 256)
    figure = Figure(figsize=(6.4, 0.9 + 0.55 * len(names)), layout="constrained")
    ax = figure.subplots()
    for row, name in enumerate(reversed(names)):
        own = values[labels == name]
        if len(own) < 5 or np.ptp(own) == 0:
            ax.vlines(own, row, row + 0.35, color=COLOURS[0], linewidth=1.4)
        else:
            density = gaussian_kde(own)(grid)
            curve = row + 1.35 * density / density.max()
            ax.fill_between(grid, row, curve, color=COLOURS[4], alpha=0.75, linewidth=0, zorder=len(names) - row)
            ax.plot(grid, curve, color="#1b3a4b", linewidth=1, zorder=len(names) - row)
        ax.plot(own.mean(), row, "o", color="black", markersize=4, zorder=len(names) + 1, clip_on=False)
    labelled = [f"{name} (n = {int((labels == name).sum())})" for name in reversed(names)]
    ax.set_yticks(range(len(names)), labelled, fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.12, len(names) + 0.45)
    ax.set_xlabel(xlabel)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(title or "each curve to its own height; dot: mean", fontsize=10)
    return figure


def score_scatter(
    scores: ArrayLike,
    covariate: ArrayLike,
    groups: Sequence[str],
    *,
    xlabel: str = "luminance",
    ylabel: str = "discriminator score",
    title: str | None = None,
) -> Figure:
    """Scores against a covariate, one panel a group: its members dark over all others in grey, and the line of all.

    Where a panel's cloud lies along the common line but in another part of it, group and covariate are collinear;
    where it lies beside the line, the group differs at an equal covariate.

    Args:
        scores: [n], finite.
        covariate: [n], finite, for example luminance.
        groups: the group of each score; "" is grey everywhere.
        xlabel, ylabel: of the axes.
        title: above the figure.

    Raises:
        ShapeError, DataError: arrays that do not fit together, NaN, a constant covariate, no groups.
    """
    import numpy as np
    from matplotlib.figure import Figure

    y, x = _finite(scores, "scores", 1), _finite(covariate, "covariate", 1)
    labels = np.asarray(groups).astype(str)
    if not y.shape == x.shape == labels.shape:
        shapes = [list(a.shape) for a in (y, x, labels)]
        raise ShapeError("one score, covariate and group per row, please", expected="three times [n]", got=shapes)
    names = [name for name in sorted(set(labels.tolist())) if name]
    if not names or np.ptp(x) == 0:
        got = "only ''" if not names else f"constant {x[0]:g}"
        raise DataError("nothing to compare", expected="groups, and a covariate that varies", got=got)
    lines = -(-len(names) // 4)
    columns = -(-len(names) // lines)
    figure = Figure(figsize=(0.7 + 2.1 * columns, 0.7 + 2.0 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    slope, intercept = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    size = float(np.clip(3000 / len(y), 0.5, 8))
    for ax in panels[len(names) :]:
        ax.set_axis_off()
    for ax, name in zip(panels, names, strict=False):
        own = labels == name
        ax.scatter(x[~own], y[~own], s=size, color="#d0d0d0", linewidth=0, rasterized=True)
        ax.scatter(x[own], y[own], s=1.5 * size, color=COLOURS[0], linewidth=0, rasterized=True)
        ax.plot(ends, intercept + slope * ends, color="black", linewidth=1)
        ax.set_title(f"{name} (n = {int(own.sum())})", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    figure.suptitle(title or "line: least squares over all", fontsize=10)
    return figure


def kl_heatmap(tables: KLTable | Sequence[KLTable] | KLMatrix, *, title: str | None = None) -> Figure:
    """KL divergence as a heat map: attributes × pairs of sets in both directions, or a matrix of sets.

    Colour is on a square-root scale, dark for 0; numbers are in nats. ° marks what equal distributions often give, and
    * an attribute whose labels are known to be weak.

    Args:
        tables: one or more of `kl_table`, over the same attributes, a column each; or a `kl_matrix`.
        title: above the figure.

    Raises:
        DataError: no tables, or tables over different attributes.
    """
    import numpy as np

    from .divergence import KLMatrix, KLTable

    if isinstance(tables, KLTable):
        tables = [tables]
    if isinstance(tables, KLMatrix):
        names = tables.names
        panels = {f"KL(P‖Q), {tables.statistic}": (tables.kl.value.numpy(), tables.kl.null_high.numpy())}
        return _heat_panels(panels, [f"P = {n}" for n in names], [f"Q = {n}" for n in names], title)
    if not tables or any(t.names != tables[0].names for t in tables):
        raise DataError("no common attributes", expected="tables over the same attributes", got=f"{len(tables)} tables")
    sides = [
        [np.stack([getattr(t, kind)[i].numpy() for t in tables], axis=1) for i in (0, 5)] for kind in ("kl_pq", "kl_qp")
    ]
    largest = np.nan_to_num(np.concatenate([side[0] for side in sides], axis=1), nan=-1).max(axis=1)
    order = np.argsort(-largest, kind="stable")
    references = {t.p_name for t in tables}
    common = f", P = {references.pop()}" if len(references) == 1 else ""
    columns = [t.q_name if common else f"{t.p_name}, {t.q_name}" for t in tables]
    rows = [f"{n} *" if n in tables[0].noisy else n for n in tables[0].names]
    panels = {
        f"{side}{common}": (values[order], nulls[order])
        for side, (values, nulls) in zip(("KL(P‖Q)", "KL(Q‖P)"), sides, strict=True)
    }
    return _heat_panels(panels, [rows[i] for i in order], columns, title)


def _heat_panels(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], rows: Sequence[str], columns: Sequence[str], title: str | None
) -> Figure:
    """Panels {name: (values, null levels)} of one colour scale, side by side."""
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    longest = max(len(n) for n in rows)
    width = 0.5 + 0.085 * longest + len(panels) * (0.2 + 0.62 * len(columns)) + 0.6
    tall = 0.7 + 0.075 * max(len(n) for n in columns) + 0.21 * len(rows) + (0.3 if title else 0)
    figure = Figure(figsize=(width, tall), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    top = max(float(np.nanmax(values, initial=1e-6)) for values, _ in panels.values())
    norm = PowerNorm(0.5, vmin=0, vmax=top)
    for ax, (name, (values, nulls)) in zip(axes, panels.items(), strict=True):
        image = ax.imshow(np.clip(values, 0, None), norm=norm, cmap="cividis", aspect="auto")
        ax.set_xticks(range(len(columns)), columns, rotation=50, ha="right", rotation_mode="anchor", fontsize=8)
        ax.set_yticks(range(len(rows)), rows, fontsize=8)
        ax.set_title(name, fontsize=9)
        for i, j in np.ndindex(values.shape):
            value, null = float(values[i, j]), float(nulls[i, j])
            if np.isnan(value) or value == null == 0:  # no data; or a set against itself
                continue
            shown = max(value, 0.0)
            text = f"{shown:.3f}".replace("0.", ".", 1) + ("°" if value <= null + 1e-12 else "")
            colour = "black" if shown > 0.3 * top else "white"  # the scale's middle: 0.55²
            ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color=colour)
    figure.colorbar(image, ax=list(axes), label="nats", fraction=0.04, pad=0.02)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def det_curves(verification: Verification, *, title: str | None = None) -> Figure:
    """Detection error trade-off (Martin et al. 1997): FNMR against FMR on normal-deviate axes, overall and per group.

    Dots mark each curve at the thresholds of the report: groups that differ at one threshold have theirs apart. Absent
    groups are left out, and points where a rate is 0 or 1.

    Args:
        verification: of `verify`.
        title: above the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    _draw_det(figure.subplots(), verification)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _draw_det(ax: Axes, verification: Verification, marks: Sequence[float] = _RATE_MARKS) -> None:
    drawn = [verification.overall, *verification.by_group.values()]
    drawn = [p for p in drawn if not p.absent]
    styles = ("-", "--", "-.", ":")
    rates = []
    for i, p in enumerate(drawn):
        both = torch.stack((p.curve.fmr, p.curve.fnmr))
        x, y = both[:, ((both > 0) & (both < 1)).all(0)]
        colour = "black" if i == 0 else COLOURS[(i - 1) % (len(COLOURS) - 1)]
        style = styles[0] if i == 0 else styles[(i - 1) % len(styles)]
        name = f"{p.name} (EER {100 * p.eer.value:.2g} %)"
        ax.plot(_deviate(x), _deviate(y), style, color=colour, linewidth=2 if i == 0 else 1.4, label=name)
        points = [[pt.fmr.value, pt.fnmr.value] for pt in p.points if 0 < pt.fmr.value < 1 and 0 < pt.fnmr.value < 1]
        if points:
            ax.plot(*(_deviate(torch.tensor(column)) for column in zip(*points, strict=True)), "o", color=colour, ms=4)
        rates.append(both[(both > 0) & (both < 1)])
    if not drawn or not len(torch.cat(rates)):
        raise DataError(
            "no DET curve to draw",
            expected="comparisons with errors of both kinds at some threshold",
            got="none" if not drawn else "no threshold where both rates lie between 0 and 1",
        )
    low = float(torch.cat(rates).min())
    marks = [v for v in marks if low <= v]
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_ticks(_deviate(torch.tensor(marks)), [f"{100 * v:g}" for v in marks])
    end = _deviate(torch.tensor([low]))[0] - 0.1
    ax.set_xlim(end, 0.1)
    ax.set_ylim(end, 0.1)
    ax.set_xlabel("FMR, %")
    ax.set_ylabel("FNMR, %")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=7)


def _deviate(rates: Tensor) -> list[float]:
    return torch.special.ndtri(rates.double()).tolist()


def score_densities(verification: Verification, *, bins: int = 80, title: str | None = None) -> Figure:
    """Densities of mated and non-mated scores, overall and per group, one panel each, with the report's thresholds.

    Args:
        verification: of `verify`, or of a `ScoreHistogram`.
        bins: of the histograms, common to all panels.
        title: above the figure.
    """
    import numpy as np
    from matplotlib.figure import Figure

    if bins < 2:
        raise DataError("too few bins", expected="2 or more", got=bins)
    c = verification.comparisons
    scores, mated, group = (x.cpu().numpy() for x in (c.scores, c.mated, c.group))
    base = c.counts if c.weights is None else c.weights
    weights = np.ones(len(scores)) if base is None else base.cpu().numpy()
    edges = np.linspace(scores.min(), scores.max() + 1e-9, bins + 1)
    panels = {verification.overall.name: np.ones(len(scores), dtype=bool)}
    panels |= {name: group == g for g, name in enumerate(c.names) if (group == g).any()}
    figure = Figure(figsize=(5.4, 0.5 + 1.15 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (name, member) in zip(axes, panels.items(), strict=True):
        kinds = (~mated, "non-mated", COLOURS[1], None), (mated, "mated", COLOURS[0], "///")
        for kind, label, colour, hatch in kinds:
            rows = member & kind
            if rows.any():
                height, _ = np.histogram(scores[rows], edges, weights=weights[rows], density=True)
                ax.stairs(height, edges, fill=True, facecolor=colour, alpha=0.35, hatch=hatch, edgecolor=colour)
                ax.stairs(height, edges, color=colour, linewidth=1.2, label=label)
        p = verification.overall if name == verification.overall.name else verification.by_group[name]
        for i, point in enumerate(q for q in p.points if q.threshold == q.threshold):
            ax.axvline(point.threshold, color="black", linewidth=0.8, linestyle=(0, (1 + 3 * i, 1 + i)))
        ax.set_yticks([])
        ax.set_ylabel(name.replace("-", "\n", 1), rotation=0, ha="right", va="center", fontsize=8)
        ax.spines[["top", "right", "left"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    targets = ", ".join(f"{q.target:g}" for q in verification.overall.points if q.threshold == q.threshold)
    axes[-1].set_xlabel(f"score (lines: thresholds at FMR {targets})" if targets else "score")
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def fairness_dashboard(
    result: Fairness | Verification, *, at_fmr: float | None = None, title: str | None = None
) -> Figure:
    """FMR, FNMR and accuracy of each group with intervals, and all fairness measures, as one figure.

    Absent groups keep their line, empty. A dotted line is the overall figure.

    Args:
        result: of `fairness`; or of `verify`, and then the figure also shows DET curves.
        at_fmr: where the threshold is set, for a `Verification`; None: as `Verification.fairness` has it.
        title: above the figure.
    """
    from matplotlib.figure import Figure

    from .verification import Verification

    fair = result.fairness(at_fmr=at_fmr) if isinstance(result, Verification) else result
    metrics = {"fmr": "FMR", "fnmr": "FNMR, %", "accuracy": "accuracy, %"}
    top = (["det"] if isinstance(result, Verification) else []) + list(metrics)
    tall = 1.0 + 0.32 * len(fair.counts)
    rows = len(fair.measures) + 1
    heights = [max(tall, 3.4 if "det" in top else 2.0), 0.24 * rows]
    figure = Figure(figsize=(2.7 * len(top) + 1.2, sum(heights) + 0.5), layout="constrained")
    panels: list[Any] = [top, ["table"] * len(top)]
    axes = figure.subplot_mosaic(panels, height_ratios=heights)
    if isinstance(result, Verification):
        _draw_det(axes["det"], result, (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5))
    for metric, label in metrics.items():
        _draw_rates(axes[metric], fair, metric, label, names=metric == "fmr")
    _draw_measures(axes["table"], fair)
    tau = "no threshold" if fair.threshold != fair.threshold else f"τ = {fair.threshold:.4f}"
    where = "" if fair.at_fmr is None else f" (pooled FMR {fair.at_fmr:g})"
    figure.suptitle(title or f"Differential performance at {tau}{where}", fontsize=10)
    return figure


def _draw_rates(ax: Axes, fair: Fairness, metric: str, label: str, *, names: bool) -> None:
    """Groups from top to bottom, a dot and its interval each; FMR on a logarithmic axis, where 0 is an arrow."""
    from matplotlib.ticker import LogLocator

    log, scale = metric == "fmr", 1 if metric == "fmr" else 100
    for y, group in enumerate(fair.counts):
        m = fair.by_group[metric].get(group)
        if m is None or m.value != m.value:
            ax.text(
                0.5,
                y,
                "absent" if group in fair.absent else "–",
                transform=ax.get_yaxis_transform(),
                ha="center",
                va="center",
                fontsize=7,
                color="0.4",
                backgroundcolor="white",
            )
            continue
        colour, zero = COLOURS[y % (len(COLOURS) - 1)], log and m.value == 0
        if m.low == m.low:
            low = m.high / 30 if log and m.low == 0 else m.low
            ax.plot([scale * low, scale * m.high], [y, y], color=colour, linewidth=1.6)
        if not zero:
            ax.plot([scale * m.value], [y], "o", color=colour, ms=5)
        elif m.high == m.high:
            ax.plot([scale * m.high / 30], [y], "<", color=colour, ms=5)
    whole = fair.overall[metric].value
    if whole == whole and not (log and whole == 0):
        ax.axvline(scale * whole, color="black", linewidth=0.9, linestyle=":")
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    ax.set_ylim(len(fair.counts) - 0.5, -0.5)
    ax.set_yticks(range(len(fair.counts)), list(fair.counts) if names else [""] * len(fair.counts), fontsize=8)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_xlabel(label, fontsize=9)
    ax.grid(axis="x", alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_measures(ax: Axes, fair: Fairness) -> None:
    ax.set_axis_off()
    cells = fair.measure_rows()
    table = ax.table(cells, colLabels=["measure", "value [95 %]", "fair", "by chance"], loc="center", cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for cell in table.get_celld().values():
        cell.set_linewidth(0.3)


def _finite(values: ArrayLike, name: str, dimensions: int) -> np.ndarray:
    import numpy as np

    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions or not len(array):
        expected = "[n]" if dimensions == 1 else "[n, 3]"
        raise ShapeError(f"{name} cannot be drawn", expected=f"{expected}, n ≥ 1", got=list(array.shape))
    if not np.isfinite(array).all():
        raise DataError(f"{name} are not finite", expected="no NaN, no infinity", got=f"{(~np.isfinite(array)).sum()}")
    return array
