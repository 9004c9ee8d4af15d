"""Counts and shares of groups with intervals, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import ShapeError
from .groups import Groups

Z95 = 1.959963984540054


@dataclass(frozen=True)
class GroupShares:
    """How a set divides over groups, as labelled: no correction for the labeller's errors.

    Attributes:
        groups: the groups.
        counts: int64 [G]; `unsure` of `total` samples are in none of them.
        shares: counts / total [G].
        low, high: 95 % Wilson intervals of the shares [G].
    """

    groups: Groups
    counts: Tensor
    unsure: int
    total: int
    shares: Tensor
    low: Tensor
    high: Tensor

    @property
    def imbalance(self) -> float:
        """Largest share over smallest: 1 is balanced, inf if a group is empty."""
        smallest = float(self.shares.min())
        return float(self.shares.max()) / smallest if smallest > 0 else float("inf")

    def to_dict(self) -> dict[str, dict[str, float]]:
        """{group: {count, share, low, high}}."""
        columns = (self.counts, self.shares, self.low, self.high)
        keys = ("count", "share", "low", "high")
        return {
            name: {k: float(c[g]) for k, c in zip(keys, columns, strict=True)}
            for g, name in enumerate(self.groups.names)
        }

    def __str__(self) -> str:
        rows = [
            [name, str(int(self.counts[g])), share_text(self.shares[g], self.low[g], self.high[g])]
            for g, name in enumerate(self.groups.names)
        ]
        rows.append(["unsure", str(self.unsure), f"{self.unsure / max(1, self.total):.1%}"])
        return markdown_table(["group", "faces", "share [95 %]"], rows)


def group_shares(groups: Groups, group_ids: Tensor) -> GroupShares:
    """Shares of the groups among labelled samples; −1 counts as unsure, inside the total.

    Args:
        groups: the groups.
        group_ids: int64 [n], −1 for unsure.
    """
    if group_ids.is_floating_point():
        raise ShapeError("group ids are integers", expected="int64 [n]", got=group_ids.dtype)
    counts, total = groups.count(group_ids).cpu(), group_ids.numel()
    low, high = wilson_interval(counts, total)
    shares = counts.double() / max(1, total)
    return GroupShares(groups, counts, total - int(counts.sum()), total, shares, low, high)


def wilson_interval(count: Tensor, total: Tensor | int) -> tuple[Tensor, Tensor]:
    """95 % interval of a proportion (Wilson 1927); [0, 1] where total is 0.

    Args:
        count: successes, any shape.
        total: trials, same shape or a number.
    """
    n = torch.as_tensor(total, dtype=torch.float64, device=count.device).clamp_min(1e-300)
    p = count.double() / n
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * (p * (1 - p) / n + Z95**2 / (4 * n**2)).sqrt()
    empty = n < 0.5
    low, high = (centre - half).clamp(0, 1), (centre + half).clamp(0, 1)
    # Exactly 0 and 1 at the ends, where rounding would leave 1e-17.
    return torch.where(empty | (p <= 0), 0.0, low), torch.where(empty | (p >= 1), 1.0, high)


def share_text(share: Tensor | float, low: Tensor | float, high: Tensor | float) -> str:
    """ "12.3 % [10.1, 14.9]"."""
    return f"{100 * float(share):.1f} % [{100 * float(low):.1f}, {100 * float(high):.1f}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table with its columns lined up."""
    widths = [max(len(str(r[i])) for r in (header, *rows)) for i in range(len(header))]
    lines = ["| " + " | ".join(str(c).ljust(w) for c, w in zip(r, widths, strict=True)) + " |" for r in (header, *rows)]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
