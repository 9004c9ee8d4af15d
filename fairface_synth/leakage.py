"""Leakage: do generated faces show people of the training set? Shares near one, beside chance and a control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DataError, GroupError, ShapeError
from .groups import Groups
from .identities import Nearest, novelty
from .reports import markdown_table, share_text, wilson_interval
from .thresholds import Threshold


@dataclass(frozen=True)
class LeakageReport:
    """How many faces come near an identity of the training set, and how many should by chance: print it for a table.

    Attributes:
        nearest: each face's nearest reference identity.
        pairs: the closest pairs, int64 [p, 2]: face, reference; by falling similarity.
        thresholds: where a face counts as near.
        references: size of the reference set, N.
        names: names of the rows of the shares: "all", then groups [R].
        totals: faces in each row, int64 [R].
        counts: faces at or above each threshold, int64 [R, T].
        control_counts: the same among the control's faces, int64 [T]; None without a control.
        control_total: faces in the control.
    """

    nearest: Nearest
    pairs: Tensor
    thresholds: tuple[Threshold, ...]
    references: int
    names: tuple[str, ...]
    totals: Tensor
    counts: Tensor
    control_counts: Tensor | None = None
    control_total: int = 0

    @property
    def shares(self) -> Tensor:
        """Share of the faces at or above each threshold [R, T]; NaN for groups without faces."""
        return self.counts.double() / self.totals.unsqueeze(1)

    @property
    def intervals(self) -> tuple[Tensor, Tensor]:
        """95 % Wilson intervals of the shares, low and high [R, T]."""
        return wilson_interval(self.counts, self.totals.unsqueeze(1).expand_as(self.counts))

    @property
    def by_chance(self) -> Tensor:
        """1 − (1 − FMR)^N [T]: expected share without any leakage, were the N comparisons of a face independent."""
        reached = torch.tensor([t.reached for t in self.thresholds], dtype=torch.float64)
        return -torch.expm1(self.references * torch.log1p(-reached))

    @property
    def excess(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Share minus the control's, with a 95 % interval, each [R, T] (Newcombe 1998, method 10)."""
        if self.control_counts is None:
            return None
        low, high = self.intervals
        control = self.control_counts.double() / self.control_total
        control_low, control_high = wilson_interval(self.control_counts, self.control_total)
        difference = self.shares - control
        down = ((self.shares - low).square() + (control_high - control).square()).sqrt()
        up = ((high - self.shares).square() + (control - control_low).square()).sqrt()
        return difference, difference - down, difference + up

    def __str__(self) -> str:
        low, high = self.intervals
        excess = self.excess
        header = ["FMR", "cosine", "faces", "number", "near a training identity [95 %]", "by chance"]
        header += [] if excess is None else ["control", "more than the control [95 %]"]
        rows = []
        for t, threshold in enumerate(self.thresholds):
            for r, name in enumerate(self.names):
                share = share_text(self.shares[r, t], low[r, t], high[r, t]) if self.totals[r] else "–"
                row = [f"{threshold.fmr:g}", f"{threshold.value:.3f}", name, f"{int(self.totals[r])}", share]
                row.append(f"{100 * float(self.by_chance[t]):.1f} %")
                if excess is not None and self.control_counts is not None:
                    row.append(f"{100 * int(self.control_counts[t]) / self.control_total:.1f} %")
                    row.append(share_text(*(e[r, t] for e in excess)) if self.totals[r] else "–")
                rows.append(row)
        similarity = self.nearest.similarity[self.pairs[:, 0]].tolist()
        closest = ", ".join(f"{f}–{r} ({c:.3f})" for (f, r), c in zip(self.pairs.tolist(), similarity, strict=True))
        notes = [
            f"{self.references} references. By chance: 1 − (1 − FMR)^{self.references} of the faces would be near a "
            "training identity without owing it anything, were comparisons independent."
        ]
        notes += [] if excess is not None else ["No control set was given: shares alone do not show leakage."]
        notes += [f"Closest pairs, face–reference (cosine): {closest}."]
        return "\n".join([markdown_table(header, rows), "", *notes])


def leakage_report(
    embeddings: Tensor,
    reference: Tensor,
    thresholds: Threshold | Sequence[Threshold],
    *,
    control: Tensor | None = None,
    group_ids: Tensor | None = None,
    groups: Groups | None = None,
    pairs: int = 10,
    block: int = 2048,
) -> LeakageReport:
    """Do generated faces show people of the training set? Nearest training identities, and shares above thresholds.

    The FMR is that of one comparison. A face has N of them with N references, so 1 − (1 − FMR)^N of faces find a
    "match" with no leakage at all (in ISO/IEC 19795-1's terms, the false positive identification rate): at FMR 10⁻³
    and N = 1,000 that is 63 %. What speaks of leakage is a share above that of a control set.

    Args:
        embeddings: of the faces to test, unit vectors [n, e], n ≥ 1.
        reference: of the training set [N, e]; best one face or mean vector an identity.
        thresholds: from `threshold_at_fmr`, for example at FMR 1e-3 and 1e-4.
        control: [c, e], faces of the same kind that cannot derive from the training set, for example real people
            outside it, or another generator's.
        group_ids, groups: int64 [n] and their names: also a row for each group; −1 is in "all" alone.
        pairs: how many of the closest pairs to list.
        block: as in `novelty`.

    Raises:
        DataError, ShapeError: bad embeddings, no faces, no thresholds, bare numbers as thresholds.
        GroupError: ids that are none of the groups'.
    """
    listed = (thresholds,) if isinstance(thresholds, Threshold) else tuple(thresholds)
    if not listed or not all(isinstance(t, Threshold) for t in listed):
        raise DataError(
            "a leakage report needs thresholds of known FMR",
            expected="Threshold objects",
            got=listed or "none",
            fix="ffs.threshold_at_fmr(ffs.impostor_scores(reference, ids), fmr=1e-3)",
        )
    if len(embeddings) == 0 or (control is not None and len(control) == 0) or pairs < 0:
        raise DataError("no faces to report on", expected="faces, a control that is not empty, pairs ≥ 0", got="none")
    nearest = novelty(embeddings, reference, block=block)
    member, names = _report_rows(len(embeddings), group_ids, groups, embeddings.device)
    limits = torch.tensor([t.value for t in listed], dtype=torch.float64, device=embeddings.device)
    above = nearest.similarity.double().unsqueeze(1) >= limits
    counts = (member.double() @ above.double()).long().cpu()
    controls = None
    if control is not None:
        controls = (novelty(control, reference, block=block).similarity.double().unsqueeze(1) >= limits).sum(0).cpu()
    faces = nearest.similarity.topk(min(pairs, len(embeddings))).indices
    return LeakageReport(
        nearest=nearest,
        pairs=torch.stack((faces, nearest.indices[faces]), dim=1),
        thresholds=listed,
        references=len(reference),
        names=names,
        totals=member.sum(1).cpu(),
        counts=counts,
        control_counts=controls,
        control_total=0 if control is None else len(control),
    )


# --- details -------------------------------------------------------------------------------------------------------


def _report_rows(
    n: int, group_ids: Tensor | None, groups: Groups | None, device: torch.device
) -> tuple[Tensor, tuple[str, ...]]:
    """Which faces belong to which row of the report, bool [R, n], and the rows' names."""
    everyone = torch.ones(1, n, dtype=torch.bool, device=device)
    if group_ids is None or groups is None:
        if group_ids is not None or groups is not None:
            raise GroupError("group ids and their names go together", expected="group_ids= and groups=", got="one")
        return everyone, ("all",)
    if group_ids.shape != (n,) or group_ids.is_floating_point():
        raise ShapeError("one group id per face, please", expected=f"int64 [{n}]", got=list(group_ids.shape))
    if not bool(((group_ids >= -1) & (group_ids < len(groups))).all()):
        raise GroupError("unknown group ids", expected=f"-1 … {len(groups) - 1}", got=group_ids.unique().tolist())
    each = torch.arange(len(groups), device=device).unsqueeze(1) == group_ids.to(device)
    return torch.cat((everyone, each)), ("all", *groups.names)
