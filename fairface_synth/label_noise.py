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
_BURN_IN, _THIN, _KEPT = 100, 20, 10  # sweeps left out, sweeps between two states kept, states kept of each chain
_MAX_ERROR = 0.25  # a quarter of the faces in the wrong group: no correction is better than this one
_REACHED = 0.005
_SINGULAR = 1e9  # condition number; well before 1 / eps, where an inverse is rounding alone


@dataclass(frozen=True, repr=False, eq=False)
class Confusion(Artifact):
    """How a labeller labels faces of each true group.

    Attributes:
        groups: the groups.
        counts: {attribute: [k, k]}, row: truth, column: label, of faces that got a label. Two things are then assumed:
            the label of an attribute depends on the truth of that attribute alone (gender is read equally well in
            every tone), and errors in different attributes are independent given the truth. Or {"*": [G, G]} over
            groups, which assumes neither.
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
            table = self.counts[attribute].double()
            if self.exact or not has_values(table) or bool((table == table.round()).all()):
                continue
            if bool(((table.sum(1) - 1).abs() < 1e-3).all()):
                raise DataError(
                    f"the table of {attribute!r} holds probabilities, not counts of faces",
                    expected="counts of faces [truth, label]",
                    got=table.tolist(),
                    fix="exact=True, if these are probabilities without error",
                )
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
        size, counts = len(self.groups), next(iter(self.counts.values()))
        none = torch.zeros((), dtype=torch.float64, device=counts.device)
        return self._draw(none.expand(draws, size, size), none.expand(draws, size, 2), rng)

    def _draw(self, labels: Tensor, gate: Tensor, rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The same where each draw has seen more faces: their labels [draws, G, G], gate [draws, G, 2], row: truth."""
        if self.exact:
            return self.rates().expand_as(labels), self.labelled().expand_as(gate[..., 0])
        tables = {}
        for attribute, counts in self.counts.items():
            seen = labels
            if not self.joint:
                seen = self.groups.marginal(self.groups.marginal(labels, attribute).mT, attribute).mT
            tables[attribute] = _dirichlet(seen + counts.double() + 1 / counts.shape[1], rng)
        labelled = self.labelled().expand_as(gate[..., 0])
        if self.gate is not None:
            labelled = _dirichlet(gate + self._gate_weights().clamp_min(1e-6), rng)[..., 0]
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
        low, high: 95 % limits [G]: sampling noise of the labels and of the confusion together. Confidence limits; of
            "bayes" the posterior's 2.5 and 97.5 % quantiles, which never include 0 (so look at `high` for a group that
            may be absent).
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
        return bool(self.error <= _MAX_ERROR) and not self.singular

    @property
    def singular(self) -> bool:
        """Whether the labels of some groups say nothing at all about which of these groups a face is of."""
        return not bool(self.condition < _SINGULAR)

    def __str__(self) -> str:
        rows = [
            [name, f"{float(self.as_labelled[g]):.1%}", share_text(self.shares[g], self.low[g], self.high[g])]
            for g, name in enumerate(self.groups.names)
        ]
        lines = [markdown_table(["group", "as labelled", "true share [95 %]"], rows), ""]
        condition = "∞" if self.singular else f"{float(self.condition):.1f}"
        lines.append(f"method {self.method}, condition number {condition}, error {float(self.error):.3f}")
        if float(self.clipped) > 0:
            lines.append(f"The inverse was negative by {float(self.clipped):.1%} in all; clipped and rescaled.")
        if not self.reliable:
            lines.append("UNRELIABLE: the labels say too little about the truth to correct these shares.")
        if self.singular:
            lines.append("Some groups are labelled alike: shares between them are a convention, not an estimate.")
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

    Over attributes (the default), P(label of an attribute | truth) is taken to depend on the truth of that attribute
    alone, not on the face's other attributes, and errors in different attributes to be independent given the truth
    and that the gate was passed. Where a labeller reads the gender of one tone worse than that of another, pass
    `joint=True`.

    Args:
        groups: the groups.
        truth_ids: true group of each face, int64 [n]; −1 (unknown) is left out.
        label_ids: the labeller's group of the same faces [n]; −1 for unsure, as `Groups.assign` has it.
        joint: count over groups instead of over attributes: without these assumptions, but every group needs faces,
            some hundreds each.

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
                Of a singular confusion (with `force`), the least squares solution of smallest norm.
            "bayes": the posterior mean under multinomial labels, a uniform prior on the true shares and Dirichlet rows
                of the confusion (prior weight 1 a row), which the labels themselves also inform. Gibbs sampling: the
                truths behind each label's counts, then shares and confusion given these.
        draws: "em", "inverse": of the label shares and of the confusion (Dirichlet, prior weight 1 each), solved like
            the estimate. "bayes": states of draws/10 parallel chains of 300 sweeps, every 20th of the last 200. Their
            2.5 and 97.5 % quantiles are the limits.
        rng: for the draws.
        force: return an estimate even where the labels say too little about the truth.

    Raises:
        ShapeError, DataError: counts that do not fit or are all zero, or of labels that the confusion says are never
            given; a confusion too near to chance, or too uncertain, for these counts.
    """
    if method not in get_args(Method):
        raise DataError(f"unknown method {method!r}", expected=", ".join(get_args(Method)), got=method)
    if draws < 2:
        raise DataError("too few draws", expected="≥ 2", got=draws)
    if counts.is_floating_point():
        raise ShapeError("label counts are integers: how many there are is needed", got=counts.dtype)
    counts = _check_counts(counts, confusion)
    _check_possible(confusion, counts)
    observed, total = counts / counts.sum(), counts.sum()
    rates, labelled = confusion.draw(draws, rng)
    noisy = _label_shares(counts, draws, rng)
    centre = _before_gate(_inverse(confusion.rates(), observed), confusion.labelled())
    error = _variation(_before_gate(_inverse(rates, noisy), labelled), centre)
    error = torch.where(error.isfinite(), error, torch.inf).median()
    if method == "bayes":
        sample, clipped = _gibbs(confusion, counts, draws, rng), torch.zeros_like(total)
        point = sample.mean(0)
        low, high = _quantiles(sample)
    else:
        point, clipped = _solve(confusion.rates(), confusion.labelled(), observed, total, method)
        low, high = _limits(_solve(rates, labelled, noisy, total, method)[0], point)
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
        total = found.sum()
        prior, _ = _solve(confusion.rates(), confusion.labelled(), found / total, total, "em")
        priors, _ = _solve(rates, labelled, _label_shares(found, draws, rng), total, "em")
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


def _check_possible(confusion: Confusion, counts: Tensor) -> None:
    never = confusion.rates().sum(0) == 0
    if confusion.exact and has_values(counts) and bool((never & (counts > 0)).any()):
        names = [n for n, bad in zip(confusion.groups.names, (never & (counts > 0)).tolist(), strict=True) if bad]
        raise DataError(
            f"counts of labels that the confusion says are never given: {', '.join(names)}",
            expected="P(label | truth) above 0 for some truth",
            fix="give the confusion as counts (exact=False), which leave room for what a sample did not show",
        )


def _dirichlet(weights: Tensor, rng: torch.Generator | None) -> Tensor:
    """Each last dimension a draw from its Dirichlet distribution."""
    gamma = torch._standard_gamma(weights.contiguous(), generator=rng).clamp_min(1e-300)
    return gamma / gamma.sum(-1, keepdim=True)


def _label_shares(counts: Tensor, draws: int, rng: torch.Generator | None) -> Tensor:
    """Draws of the label shares behind counts [G]: [draws, G]."""
    return _dirichlet((counts + 1 / len(counts)).expand(draws, -1), rng)


def _inverse(rates: Tensor, observed: Tensor) -> Tensor:
    """Shares among the labelled that explain the labels exactly, negative ones included; infinite if singular."""
    inverse, info = torch.linalg.inv_ex(rates.mT)
    free = (inverse @ observed.unsqueeze(-1)).squeeze(-1)
    regular = (info == 0) & (free.abs().amax(-1) < _SINGULAR)  # NaN is neither
    return torch.where(regular.unsqueeze(-1), free, torch.inf)


def _solve(rates: Tensor, labelled: Tensor, observed: Tensor, total: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """True shares [..., G] and the share that clipping lost [...]."""
    free = _inverse(rates, observed)
    if method == "inverse":
        free = torch.where(free.isfinite(), free, _least_squares(rates, observed))
        return _before_gate(free.clamp_min(0), labelled), -free.clamp_max(0).sum(-1)
    among = _em(rates, observed, torch.where(free.isfinite(), free, 1.0), total)
    return _before_gate(among, labelled), torch.zeros_like(among[..., 0])


def _least_squares(rates: Tensor, observed: Tensor) -> Tensor:
    """The least squares solution of smallest norm, as a ridge of vanishing weight has it."""
    ridge = 1e-9 * torch.eye(rates.shape[-1], dtype=rates.dtype, device=rates.device)
    return torch.linalg.solve_ex(rates @ rates.mT + ridge, rates @ observed.unsqueeze(-1)).result.squeeze(-1)


def _before_gate(among: Tensor, labelled: Tensor) -> Tensor:
    """Shares of all faces from shares among the labelled: groups pass the gate unequally often."""
    shares = among / labelled.clamp_min(1e-12)
    return shares / shares.sum(-1, keepdim=True)


def _em(rates: Tensor, observed: Tensor, start: Tensor, total: Tensor) -> Tensor:
    """Maximum likelihood on the simplex. Where the inverse is positive it is the maximum; elsewhere it is near.

    EM never leaves a 0 and never reaches one. So it starts a tenth of a standard error above 0, and what is still as
    near and falling in the end is 0.
    """
    least = (0.1 / total.sqrt()).clamp_max(1e-3)
    share = start.maximum(least)
    share = share / share.sum(-1, keepdim=True)
    factor = torch.ones_like(share)
    for _ in range(_ITERATIONS):
        share = share * factor
        expected = (share.unsqueeze(-2) @ rates).squeeze(-2)
        factor = (rates @ (observed / expected.clamp_min(1e-300)).unsqueeze(-1)).squeeze(-1)
    share = torch.where((share < least) & (factor < 1 - 1e-6), 0.0, share * factor)
    return share / share.sum(-1, keepdim=True)


def _gibbs(confusion: Confusion, counts: Tensor, draws: int, rng: torch.Generator | None) -> Tensor:
    """Posterior draws of the true shares of all faces, [draws, G]: π ~ Dirichlet(1, …, 1), rows as `Confusion.draw`.

    Behind a gate the counts are the n faces that got a label, and those that did not are missing data too. They are
    as many as a negative binomial has it (n successes), which a Gamma mixture of Poissons draws group by group; with
    them the posterior of π and of the gate is again Dirichlet and Beta.
    """
    chains = -(-draws // _KEPT)
    # Already about the posterior, where that is far from the border of the simplex.
    rates, labelled = confusion.draw(chains, rng)
    start = _inverse(rates, _label_shares(counts, chains, rng))
    share = _before_gate(torch.where(start.isfinite(), start, 1.0).clamp_min(1e-3), labelled)
    found, kept = counts.expand(chains, -1), []
    for sweep in range(1, _BURN_IN + _KEPT * _THIN + 1):
        weight = (share * labelled).unsqueeze(-1) * rates
        truths = _multinomial(found, weight.mT, rng).mT  # [chains, truth, label]
        sure = truths.sum(-1)
        rate = torch._standard_gamma(found.sum(-1, keepdim=True), generator=rng)
        passed = (share * labelled).sum(-1, keepdim=True).clamp_min(1e-12)
        unsure = torch.poisson(rate * share * (1 - labelled) / passed, generator=rng)
        share = _dirichlet(1 + sure + unsure, rng)
        rates, labelled = confusion._draw(truths, torch.stack((sure, unsure), dim=-1), rng)
        if sweep > _BURN_IN and sweep % _THIN == 0:
            kept.append(share)
    return torch.cat(kept)[:draws]


def _multinomial(total: Tensor, weights: Tensor, rng: torch.Generator | None) -> Tensor:
    """total [...] divided at random in proportion to weights [..., k], as one binomial after the other: [..., k]."""
    rest = weights.flip(-1).cumsum(-1).flip(-1).clamp_min(1e-300)
    chance = (weights / rest).clamp(0, 1).unbind(-1)[:-1]
    parts = []
    for p in chance:
        # torch.binomial has no kernel for fake tensors (torch 2.14).
        part = torch.binomial(total, p.contiguous(), generator=rng) if has_values(total) else total * p
        parts.append(part)
        total = total - part
    return torch.stack((*parts, total), dim=-1)


def _posterior(rates: Tensor, labelled: Tensor, prior: Tensor) -> Tensor:
    """P(truth | label) [..., G, G], row: label. A label that is never given has the prior."""
    both = (rates * (labelled * prior).unsqueeze(-1)).mT
    total = both.sum(-1, keepdim=True)
    return torch.where(total > 0, both / total.clamp_min(1e-300), prior.unsqueeze(-2))


def _limits(sample: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    low, high = _quantiles(sample)
    return low.minimum(point), high.maximum(point)


def _quantiles(sample: Tensor) -> tuple[Tensor, Tensor]:
    return sample.quantile(0.025, dim=0), sample.quantile(0.975, dim=0)


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
