"""Shares and quotas corrected for a labeller's errors, given how it labels faces whose truth is known.

One assumption carries everything: P(label | truth) is the same in the set as where it was measured, and only the
shares of the true groups differ ("label shift"; Rogan & Gladen 1978 for two classes, Saerens et al. 2002, Lipton et
al. 2018). Where the "truth" comes from another labeller, results are what that labeller would say, not the truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from .artifacts import Artifact, has_values
from .errors import DataError, GroupError, ShapeError
from .groups import Groups, balanced_quota, check_ids
from .reports import markdown_table, share_text

Method = Literal["em", "inverse", "bayes"]
JOINT = "*"
_ITERATIONS = 300
_MAX_ERROR = 0.25  # a quarter of the faces in the wrong group: no correction is better than this one
_REACHED = 0.005


@dataclass(frozen=True, repr=False, eq=False)
class Confusion(Artifact):
    """How a labeller labels faces of each true group.

    Attributes:
        groups: the groups.
        counts: {attribute: [k, k]}, row: truth, column: label, of faces that got a label. Errors in different
            attributes are then taken to be independent given the truth. Or {"*": [G, G]} over groups, without that.
        gate: faces of each true group that got a label, and that did not (−1, unsure): [G, 2]. None: all get one.
        exact: `counts` (and `gate`) are probabilities known without error, rather than counts of a sample.

    Raises:
        ShapeError, GroupError, DataError: tables that do not fit the groups, negative entries, a truth without faces.
    """

    kind: ClassVar[str] = "confusion"

    groups: Groups
    counts: Mapping[str, Tensor]
    gate: Tensor | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        wanted = {JOINT: self.groups.names} if self.joint else dict(self.groups.attributes)
        if set(self.counts) != set(wanted):
            raise GroupError("tables do not fit the groups", expected=", ".join(wanted), got=", ".join(self.counts))
        for attribute, values in wanted.items():
            _check_table(self.counts[attribute], attribute, values)
        if self.gate is not None:
            if self.gate.shape != (len(self.groups), 2):
                raise ShapeError("gate does not fit", expected=[len(self.groups), 2], got=list(self.gate.shape))
            if has_values(self.gate) and not bool((self.gate >= 0).all() & (self.gate.sum(0)[0] > 0)):
                raise DataError("gate needs counts ≥ 0, and some face with a label", got=self.gate.tolist())

    @property
    def joint(self) -> bool:
        """Whether errors were counted over groups instead of over attributes."""
        return JOINT in self.counts

    def rates(self) -> Tensor:
        """P(label | truth, labelled) [G, G], row: truth."""
        return self._combine({a: c.double() / c.double().sum(1, keepdim=True) for a, c in self.counts.items()})

    def labelled(self) -> Tensor:
        """P(labelled | truth) [G]: how often a face of each true group passes the gate.

        Each group's rate is drawn towards the common one with the weight of one face, which also serves the groups
        that the sample lacks.
        """
        if self.gate is None:
            some = next(iter(self.counts.values()))
            return torch.ones(len(self.groups), dtype=torch.float64, device=some.device)
        weights = self._gate_weights()
        return weights[:, 0] / weights.sum(1)

    def draw(self, draws: int, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Posterior draws of `rates` [draws, G, G] and `labelled` [draws, G] (Dirichlet rows, prior weight 1 a row)."""
        if self.exact:
            return self.rates().expand(draws, -1, -1), self.labelled().expand(draws, -1)
        tables = {}
        for attribute, counts in self.counts.items():
            tables[attribute] = _dirichlet(counts.double() + 1 / counts.shape[1], draws, rng)
        labelled = self.labelled().expand(draws, -1)
        if self.gate is not None:
            labelled = _dirichlet(self._gate_weights().clamp_min(1e-6), draws, rng)[..., 0]
        return self._combine(tables), labelled

    def _gate_weights(self) -> Tensor:
        assert self.gate is not None
        gate = self.gate.double()
        return gate if self.exact else gate + gate.sum(0) / gate.sum()

    def _combine(self, tables: Mapping[str, Tensor]) -> Tensor:
        """Kronecker product of the attributes' tables [..., k, k], in the order of the groups."""
        if self.joint:
            return tables[JOINT]
        product: Tensor | None = None
        for attribute in self.groups.attributes:
            table = tables[attribute]
            if product is None:
                product = table
                continue
            both = product[..., :, None, :, None] * table[..., None, :, None, :]
            product = both.flatten(-2).flatten(-3, -2)
        assert product is not None
        return product


@dataclass(frozen=True)
class TrueShares:
    """Shares of the true groups, estimated from labels.

    Attributes:
        groups: the groups.
        shares: [G], of all faces, those without a label included.
        low, high: 95 % limits [G]: sampling noise of the labels and of the confusion together.
        as_labelled: shares of the labels [G], uncorrected.
        method: "em", "inverse" or "bayes".
        condition: condition number of P(label | truth).
        error: median over the draws of the total variation between estimate and draw, before any constraint: the part
            of the faces that is likely to be in the wrong group. Above 0.25 the correction is refused.
        clipped: share that "inverse" put below 0 and lost by clipping.
    """

    groups: Groups
    shares: Tensor
    low: Tensor
    high: Tensor
    as_labelled: Tensor
    method: str
    condition: Tensor
    error: Tensor
    clipped: Tensor

    @property
    def reliable(self) -> bool:
        return bool(self.error <= _MAX_ERROR)

    def __str__(self) -> str:
        rows = [
            [name, f"{float(self.as_labelled[g]):.1%}", share_text(self.shares[g], self.low[g], self.high[g])]
            for g, name in enumerate(self.groups.names)
        ]
        lines = [markdown_table(["group", "as labelled", "true share [95 %]"], rows), ""]
        lines.append(
            f"method {self.method}, condition number {float(self.condition):.1f}, error {float(self.error):.3f}"
        )
        if float(self.clipped) > 0:
            lines.append(f"The inverse was negative by {float(self.clipped):.1%} in all; clipped and rescaled.")
        if not self.reliable:
            lines.append("UNRELIABLE: the labels say too little about the truth to correct these shares.")
        return "\n".join(lines)


@dataclass(frozen=True)
class CorrectedQuota:
    """How many faces to accept by label so that the true groups come out as wanted.

    Attributes:
        groups: the groups.
        quota: faces to accept by label, int64 [G], summing to n.
        target: wanted true shares [G].
        shares: expected true shares under this quota [G], with 95 % limits `low` and `high` that count the
            uncertainty of the confusion and of the natural counts, not the chance make-up of n faces.
        uncorrected: expected true shares under the plain quota, which takes labels at their word [G].
        left: total variation between `shares` and `target`; above 0.005, besides rounding, no quota reaches the target.
        reachable: whether some quota reaches the target to within 0.005.
    """

    groups: Groups
    quota: Tensor
    target: Tensor
    shares: Tensor
    low: Tensor
    high: Tensor
    uncorrected: Tensor
    left: float
    reachable: bool

    def __str__(self) -> str:
        rows = [
            [
                name,
                str(int(self.quota[g])),
                f"{float(self.target[g]):.1%}",
                f"{float(self.uncorrected[g]):.1%}",
                share_text(self.shares[g], self.low[g], self.high[g]),
            ]
            for g, name in enumerate(self.groups.names)
        ]
        table = markdown_table(["group", "accept", "wanted", "true, plain quota", "true, this quota [95 %]"], rows)
        if self.reachable:
            return table
        return (
            f"{table}\n\nNo quota reaches the wanted shares with this labeller; {self.left:.1%} of the faces are off."
        )


def fit_confusion(groups: Groups, truth_ids: Tensor, label_ids: Tensor, *, joint: bool = False) -> Confusion:
    """Count how true groups are labelled.

    Args:
        groups: the groups.
        truth_ids: true group of each face, int64 [n]; −1 (unknown) is left out.
        label_ids: the labeller's group of the same faces [n]; −1 for unsure, as `Groups.assign` has it.
        joint: count over groups instead of over attributes: without the assumption that errors in different attributes
            are independent given the truth (and the gate passed), but every group needs faces, some hundreds each.

    Raises:
        ShapeError, GroupError, DataError: ids that do not fit, a true value that no labelled face has.
    """
    if truth_ids.ndim != 1 or truth_ids.shape != label_ids.shape:
        got = f"{list(truth_ids.shape)}, {list(label_ids.shape)}"
        raise ShapeError("truth and labels do not fit each other", expected="int64 [n] both", got=got)
    size = len(groups)
    check_ids(truth_ids, size)
    check_ids(label_ids, size)
    cell = (truth_ids.long() + 1) * (size + 1) + label_ids.long() + 1
    flat = torch.zeros((size + 1) ** 2, dtype=torch.int64, device=cell.device)
    table = flat.scatter_add_(0, cell, torch.ones_like(cell)).view(size + 1, size + 1)[1:]
    sure = table[:, 1:]
    gate = torch.stack((sure.sum(1), table[:, 0]), dim=1)
    if joint:
        return Confusion(groups, {JOINT: sure}, gate)
    counts = {a: groups.marginal(groups.marginal(sure, a).T, a).T for a in groups.attributes}
    return Confusion(groups, counts, gate)


def true_shares(
    confusion: Confusion,
    counts: Tensor,
    method: Method = "em",
    *,
    draws: int = 1000,
    rng: torch.Generator | None = None,
    force: bool = False,
) -> TrueShares:
    """True shares of a set from its label counts.

    Not for a set that was selected by these very labels: its label counts are the quota, whatever the truth. Count such
    a set with another labeller and that one's confusion, or see `corrected_quota`.

    Args:
        confusion: of the labeller that gave the counts, at the same gate.
        counts: faces with each label [G]; the unsure are not needed.
        method:
            "em": maximum likelihood on the simplex, by expectation-maximisation (Richardson-Lucy; Saerens et al. 2002).
            "inverse": solve for the shares; negative ones are clipped, the rest rescaled, and the loss reported.
            "bayes": the mean over the draws.
        draws: of the label shares and of the confusion (Dirichlet, prior weight 1 each), solved like the estimate;
            their 2.5 and 97.5 % quantiles are the limits.
        rng: for the draws.
        force: return an estimate even where the labels say too little about the truth.

    Raises:
        ShapeError, DataError: counts that do not fit or are all zero; a confusion too near to chance, or too uncertain,
            for these counts.
    """
    if method not in get_args(Method):
        raise DataError(f"unknown method {method!r}", expected=", ".join(get_args(Method)), got=method)
    if draws < 2:
        raise DataError("too few draws", expected="≥ 2", got=draws)
    if counts.is_floating_point():
        raise ShapeError("label counts are integers: how many there are is needed", got=counts.dtype)
    counts = _check_counts(counts, confusion)
    observed = counts / counts.sum()
    point, clipped = _solve(confusion.rates(), confusion.labelled(), observed, method)
    rates, labelled = confusion.draw(draws, rng)
    noisy = _dirichlet(counts + 1 / len(counts), draws, rng)
    sample, _ = _solve(rates, labelled, noisy, method)
    centre = _before_gate(_inverse(confusion.rates(), observed), confusion.labelled())
    error = _variation(_before_gate(_inverse(rates, noisy), labelled), centre)
    error = torch.where(error.isfinite(), error, torch.inf).median()
    if method == "bayes":
        point = sample.mean(0)
    low, high = _limits(sample, point)
    condition = torch.linalg.cond(confusion.rates())
    result = TrueShares(confusion.groups, point, low, high, observed, method, condition, error, clipped)
    if not force and has_values(error) and not result.reliable:
        raise _too_noisy(f"condition number {float(condition):.3g}, error {float(error):.2f} of the faces")
    return result


def corrected_quota(
    confusion: Confusion,
    n: int,
    natural: Tensor,
    spec: str | int | Iterable[str | int] | Mapping[str, float] = "*",
    *,
    draws: int = 1000,
    rng: torch.Generator | None = None,
    force: bool = False,
) -> CorrectedQuota:
    """Label quotas that make the *true* groups balanced, where faces are drawn naturally and accepted by their label.

    Among faces accepted with label l the truth is t with P(t | l) ∝ P(l, labelled | t)·π_t, π being the true shares of
    what is drawn. The quota q ≥ 0 minimises ‖Σ_l q_l·P(· | l) − target‖² (non-negative least squares, Lawson & Hanson
    1974), over the labels that `spec` names. It serves rejection and screening, whose accepted faces are natural ones;
    not proposals aimed at a group, whose truth is distributed otherwise.

    Args:
        confusion: of the labeller that accepts, at the same gate.
        n: faces in the set.
        natural: what natural draws look like [G]: as counts (integers) of labels by the same labeller, or as true
            shares that are known (floats).
        spec: wanted true shares, as in `balanced_quota`.
        draws, rng: for the limits, as in `true_shares`.
        force: return a quota even where the labels say too little about the truth.

    Raises:
        ShapeError, GroupError, DataError: bad shares or names; a confusion that cannot be told from chance.
    """
    from scipy.optimize import nnls

    groups = confusion.groups
    # Shares to nine digits, by the function that knows every form of `spec`.
    target = balanced_quota(groups, 10**9, spec).to(torch.float64) / 1e9
    if n < 1 or draws < 2:
        raise DataError("nothing to fill", expected="n ≥ 1, draws ≥ 2", got=f"{n=}, {draws=}")
    rates, labelled = confusion.draw(draws, rng)
    if not force:
        _check_informative(confusion.rates(), rates)
    if natural.is_floating_point():
        known = _check_counts(natural, confusion)
        prior, priors = known / known.sum(), (known / known.sum()).expand(draws, -1)
    else:
        found = _check_counts(natural, confusion)
        prior, _ = _solve(confusion.rates(), confusion.labelled(), found / found.sum(), "em")
        priors, _ = _solve(rates, labelled, _dirichlet(found + 1 / len(found), draws, rng), "em")
    posterior = _posterior(confusion.rates(), confusion.labelled(), prior).cpu()
    used = target > 0
    mixing = posterior[used].T
    # The last, heavy row makes the shares sum to 1 (Haskell & Hanson 1981).
    system = torch.cat((mixing, torch.full((1, mixing.shape[1]), 1e3, dtype=torch.float64)))
    wanted = torch.cat((target, target.new_tensor([1e3])))
    exact = torch.zeros_like(target)
    exact[used] = torch.from_numpy(nnls(system.numpy(), wanted.numpy())[0])
    exact = exact / exact.sum()
    quota = balanced_quota(groups, n, {groups.names[g]: round(float(q), 8) for g, q in enumerate(exact)})
    share = (quota.double() / n) @ posterior
    sample = (quota.to(rates.device).double() / n) @ _posterior(rates, labelled, priors)
    low, high = _limits(sample.cpu(), share)
    return CorrectedQuota(
        groups=groups,
        quota=quota,
        target=target,
        shares=share,
        low=low,
        high=high,
        uncorrected=target @ posterior,
        left=_variation(share, target).item(),
        reachable=_variation(exact @ posterior, target).item() <= _REACHED,
    )


# --- details ------------------------------------------------------------------------------------------------------


def _check_table(table: Tensor, attribute: str, values: tuple[str, ...]) -> None:
    if table.shape != (len(values), len(values)):
        expected = f"[{len(values)}, {len(values)}]"
        raise ShapeError(f"the table of {attribute!r} does not fit", expected=expected, got=list(table.shape))
    if not has_values(table):
        return
    if not bool((table.isfinite() & (table >= 0)).all()):
        raise DataError(f"the table of {attribute!r} is no table of counts", expected="≥ 0", got=table.tolist())
    empty = [v for v, total in zip(values, table.sum(1).tolist(), strict=True) if total == 0]
    if empty:
        raise DataError(
            f"no labelled face is truly {', '.join(empty)}: how such faces are labelled is unknown",
            expected="faces of every true value, some hundreds each",
            fix="add such faces to the sample, drop the value, or count over attributes (joint=False)",
        )


def _check_counts(counts: Tensor, confusion: Confusion) -> Tensor:
    size = len(confusion.groups)
    if counts.shape != (size,):
        raise ShapeError("not one value per group", expected=[size], got=list(counts.shape))
    counts = counts.double()
    if has_values(counts) and not bool((counts.isfinite() & (counts >= 0)).all() & (counts.sum() > 0)):
        raise DataError("no counts or shares", expected="≥ 0, not all 0", got=counts.tolist())
    return counts


def _dirichlet(weights: Tensor, draws: int, rng: torch.Generator | None) -> Tensor:
    """[draws, *weights.shape], each last dimension a draw from its Dirichlet distribution."""
    gamma = torch._standard_gamma(weights.expand(draws, *weights.shape).contiguous(), generator=rng)
    gamma = gamma.clamp_min(1e-300)
    return gamma / gamma.sum(-1, keepdim=True)


def _inverse(rates: Tensor, observed: Tensor) -> Tensor:
    """Shares among the labelled that explain the labels exactly, negative ones included; not finite if singular."""
    return (torch.linalg.inv_ex(rates.mT).inverse @ observed.unsqueeze(-1)).squeeze(-1)


def _solve(rates: Tensor, labelled: Tensor, observed: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """True shares [..., G] and the share that clipping lost [...]."""
    free = _inverse(rates, observed)
    free = torch.where(free.isfinite().all(-1, keepdim=True), free, observed)
    clipped = -free.clamp_max(0).sum(-1)
    if method == "inverse":
        return _before_gate(free.clamp_min(0), labelled), clipped
    # Where the inverse is positive it is the maximum; elsewhere it is near, and EM would never leave a 0.
    return _before_gate(_em(rates, observed, free.clamp_min(1e-3)), labelled), torch.zeros_like(clipped)


def _before_gate(among: Tensor, labelled: Tensor) -> Tensor:
    """Shares of all faces from shares among the labelled: groups pass the gate unequally often."""
    shares = among / labelled.clamp_min(1e-12)
    return shares / shares.sum(-1, keepdim=True)


def _em(rates: Tensor, observed: Tensor, start: Tensor) -> Tensor:
    share = start / start.sum(-1, keepdim=True)
    for _ in range(_ITERATIONS):
        expected = (share.unsqueeze(-2) @ rates).squeeze(-2)
        share = share * (rates @ (observed / expected.clamp_min(1e-300)).unsqueeze(-1)).squeeze(-1)
    return share


def _posterior(rates: Tensor, labelled: Tensor, prior: Tensor) -> Tensor:
    """P(truth | label) [..., G, G], row: label. A label that is never given has the prior."""
    both = (rates * (labelled * prior).unsqueeze(-1)).mT
    total = both.sum(-1, keepdim=True)
    return torch.where(total > 0, both / total.clamp_min(1e-300), prior.unsqueeze(-2))


def _limits(sample: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    low, high = sample.quantile(0.025, dim=0), sample.quantile(0.975, dim=0)
    return low.minimum(point), high.maximum(point)


def _variation(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().sum(-1) / 2


def _check_informative(rates: Tensor, draws: Tensor) -> None:
    """Refuse a confusion whose smallest singular value is within the noise of its counts (Weyl's inequality)."""
    smallest = torch.linalg.svdvals(rates)[-1]
    noise = torch.linalg.matrix_norm(draws[:100] - rates, ord=2).median()
    limit = (2 * noise).clamp_min(1e-3)
    if bool(smallest <= limit):
        raise _too_noisy(f"smallest singular value {float(smallest):.3g}, noise of the counts {float(noise):.3g}")


def _too_noisy(got: str) -> DataError:
    return DataError(
        "the labels say too little about the truth to correct for their errors",
        expected="P(label | truth) clearly different between groups, from enough faces",
        got=got,
        fix="merge groups that are confused, raise the gate, count more faces, use a better labeller, or force=True",
    )
