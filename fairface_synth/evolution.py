"""Evolutionary search for faces of rare groups: the driver `evolve` and its `Archive`.

`evolve` knows neither generators nor labellers: it drives a strategy (strategies/) with any `Fitness`;
`face_fitness` (fitness.py) makes one from a generator, a labeller and terms that are added up.

A search exploits whatever labels it: score what it found with another network, and count its roots.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from .artifacts import Artifact, has_values
from .errors import DataError, ShapeError
from .identities import novelty, unique
from .reports import markdown_table
from .strategies import Evaluation, Proposal, Strategy
from .thresholds import Threshold, cosine_threshold

Prior = Callable[[Tensor, Tensor], Tensor]


class Scores(NamedTuple):
    """What a fitness says of n candidates.

    Attributes:
        fitness: [n], higher is better; no NaN.
        success: bool [n], in the target group.
        found: bool [n], a face was found.
        probability: [n], P(target).
        distance: [n], from the prior, for reports; about 1 for natural draws.
        measures: [n, m], what MAP-Elites lays its cells over; m may be 0.
        embeddings: [n, e], whose cosine compares identities; e may be 0.
        latents: [n, *shape], the candidates in the form to be archived; None: as they came.
    """

    fitness: Tensor
    success: Tensor
    found: Tensor
    probability: Tensor
    distance: Tensor
    measures: Tensor
    embeddings: Tensor
    latents: Tensor | None = None


class Fitness(Protocol):
    """Scores candidates; `rows` says which of the quota's entries each one is meant for.

    `evolve` also reads these attributes where there are any: `names` of the targets, the `space` of the latents ("z",
    "w" or "w+"), and `prior(seed)`.
    """

    def __call__(self, latents: Tensor, rows: Tensor, known: Archive | None) -> Scores:
        """latents [n, *shape], rows int64 [n], what was found in earlier generations (unsorted) → `Scores` of n."""
        ...


@dataclass(frozen=True, repr=False, eq=False)
class Archive(Artifact):
    """What a search found, sorted by group, in the order of discovery within each; and all it takes to go on.

    Attributes:
        latents: [n, *shape].
        group_ids: the quota's entry that each one fills, int64 [n].
        id, root, parent: int64 [n], lineage within the group; −1: no parent. Of one root: of one first ancestor.
        depth: int64 [n], generations since the root.
        probability, fitness, distance: [n], see `Scores`.
        embeddings: unit rows [n, e], or None.
        evaluations: candidates evaluated (images made) for each group, int64 [G], the unsuccessful included.
        wanted: the quota, int64 [G].
        state: where the search stood, for `resume`.
        strategy, settings, names, space, seed, threshold: of the run: the strategy's name and settings, the fitness's
            targets (empty if it names none) and the space it searched.
        dropped: candidates of each group that were lost unseen because the strategy had no room for them, int64 [G].
    """

    kind: ClassVar[str] = "archive"

    latents: Tensor
    group_ids: Tensor
    id: Tensor
    root: Tensor
    parent: Tensor
    depth: Tensor
    probability: Tensor
    fitness: Tensor
    distance: Tensor
    embeddings: Tensor | None
    evaluations: Tensor
    wanted: Tensor
    state: Mapping[str, Tensor]
    strategy: str = ""
    seed: int = 0
    threshold: float | None = None
    settings: str = ""
    names: tuple[str, ...] = ()
    space: str | None = None
    dropped: Tensor | None = None

    # Aliases, in the singular as the other columns are.
    group = property(lambda self: self.group_ids)
    embedding = property(lambda self: self.embeddings)

    def __len__(self) -> int:
        return len(self.group_ids)

    @property
    def found(self) -> Tensor:
        """Members of each group, int64 [G]."""
        return torch.bincount(self.group_ids, minlength=len(self.wanted))

    @property
    def short(self) -> dict[int, int]:
        """What is missing: {row: faces}, of the groups that were not filled."""
        return {g: k for g, k in enumerate((self.wanted - self.found).tolist()) if k > 0}

    def report(self, names: Sequence[str] | None = None) -> str:
        """A markdown table with a row for each group, and a sentence about those that stayed short.

        Args:
            names: of the groups [G]; those of the fitness by default, or else their row numbers.
        """
        count = len(self.wanted)
        names = list(self.names or map(str, range(count))) if names is None else list(names)
        if len(names) != count:
            raise ShapeError("not one name for each group", expected=count, got=len(names))
        found, made, wanted = (x.tolist() for x in (self.found, self.evaluations, self.wanted))
        rows = []
        for g, name in enumerate(names):
            mine = self.group_ids == g
            lineage = ["–"] * 3
            if found[g]:
                roots, depth = len(self.root[mine].unique()), int(self.depth[mine].max())
                lineage = [str(roots), str(depth), f"{float(self.distance[mine].median()):.2f}"]
            cost = f"{made[g] / found[g]:.1f}" if found[g] else "–"
            rows.append([name, str(wanted[g]), str(found[g]), str(made[g]), cost, *lineage])
        header = ["target", "wanted", "found", "images", "images per face", "roots", "deepest", "median distance"]
        lines = [markdown_table(header, rows), ""]
        lines.append(
            f"{self.strategy or 'search'}, seed {self.seed}: {sum(made)} images. "
            + ("Identities not compared." if self.threshold is None else f"Cosines below {self.threshold:g}.")
        )
        if self.short:
            lines.append("Short: " + ", ".join(f"{names[g]} by {k}" for g, k in self.short.items()) + ".")
        if self.dropped is not None and int(self.dropped.sum()) > 0:
            lost = ", ".join(f"{names[g]} {k}" for g, k in enumerate(self.dropped.tolist()) if k > 0)
            lines.append(f"Dropped unseen, for want of room: {lost}.")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        missing = f", missing {self.short}" if self.short else ""
        return f"Archive(n={len(self)}, groups={len(self.wanted)}, images={int(self.evaluations.sum())}{missing})"


# --- the driver ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def evolve(
    strategy: Strategy,
    fitness: Fitness,
    quota: Tensor,
    *,
    prior: Prior | None = None,
    seed: int = 0,
    threshold: Threshold | float | None = None,
    max_evaluations: int | None = None,
    patience: int = 20,
    resume: Archive | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> Archive:
    """Search until every group has as many successes as wanted, or until the budget is spent.

    All groups evolve in one batch; filled ones cost nothing more. A success (in the target group, face found) enters
    the archive. A group that runs out of candidates begins anew from fresh draws. So does one that gains nothing for
    `patience` generations, if the strategy restarts: no new member and, while it has had no success yet, no better
    fitness. One that proposes nothing even then is given up. The published walk has neither limit nor restarts.

    Random numbers come from one `torch.Generator` on the latents' device, seeded anew from (seed, generation), and are
    drawn for all targets at once, filled or not. With a strategy that draws equally much every generation, as all here
    do, stopping and resuming therefore changes nothing; and of one list of targets, a group's search is the same
    whatever the quotas of the others, zero or not (without `threshold` or `identity_novelty`, which compare across
    groups, and up to rounding, which may depend on the batch). Another list of targets, even a longer one, is another
    search for all of them.

    Args:
        strategy: see `fairface_synth.strategies`. The fitness has to be over the space that it is meant for.
        fitness: see `Fitness`; for faces `face_fitness`.
        quota: wanted number for each target, int64 [G].
        prior: (index [n], stream [n]) → latents [n, *shape], a pure function of both (which may lie on another device
            than the latents): fresh individuals. The stream is the group's row. None: `fitness.prior(seed)`, which
            `face_fitness` has.
        seed: of the search, and of the default prior.
        threshold: admit a success only if its largest cosine to all members of all groups, and to those before it in
            its batch, is below this (see `threshold_at_fmr`). None: identities are not compared, and a search finds
            many near-duplicates.
        max_evaluations: budget, images in all (those before a resume included), never exceeded: the search stops before
            a generation that would. 200 per wanted face by default.
        patience: generations without gain before a restart.
        resume: an archive to go on from, with the same strategy and settings, targets, space, seed and threshold, and
            any quota. Models, terms and gates of the fitness are not compared: they are yours to keep.
        batch_size: candidates in one call of `fitness`.
        progress: show a bar.

    Returns:
        `Archive`; `archive.short` and `print(archive)` tell which groups stayed short.

    Raises:
        DataError, ShapeError: an impossible quota or budget, a strategy for another space, or for identities without a
            threshold, scores that are NaN or of the wrong shape, an archive of another run.
    """
    from tqdm.auto import tqdm

    if not isinstance(strategy, Strategy):
        raise DataError("this is no strategy", expected="for example ffs.genetic(): mind the brackets", got=strategy)
    quota = torch.as_tensor(quota)
    threshold = None if threshold is None else cosine_threshold(threshold)
    names = getattr(fitness, "names", None)
    if names is not None and quota.shape != (len(names),):
        raise ShapeError("not one quota for each target", expected=[len(names)], got=list(quota.shape))
    _check_request(quota, seed, threshold, max_evaluations, patience, batch_size)
    _check_strategy(strategy, getattr(fitness, "space", None), threshold)
    if prior is None:
        if not hasattr(fitness, "prior"):
            raise DataError(
                "a search needs a prior", expected="prior= (index [n], stream [n]) → latents [n, *shape]", got=None
            )
        prior = cast(Prior, fitness.prior(seed))
    budget = 200 * int(quota.sum()) if max_evaluations is None else max_evaluations
    search = _Search(strategy, fitness, quota, prior, seed, threshold, patience, batch_size)
    if resume is not None:
        search.restore(resume)
    with tqdm(total=int(quota.sum()), desc="evolving faces", unit="face", disable=not progress) as bar:
        while search.advance(budget):
            bar.update(search.filled() - bar.n)
            bar.set_postfix(images=search.images, refresh=False)
    if search.images == 0 and search.too_small:
        raise DataError(
            "the budget is smaller than one generation",
            expected=f"max_evaluations ≥ {search.too_small}",
            got=budget,
            fix="raise max_evaluations, or use a strategy with a smaller population",
        )
    return search.archive()


class _Counters(NamedTuple):
    """Where each group stands, all [G]: generations lived, images made, draws taken from the prior, the next free id,
    generations without gain, generations without candidates; since the last restart: best fitness, any success; and
    candidates dropped by the strategy before that restart."""

    generation: Tensor
    evaluations: Tensor
    drawn: Tensor
    next_id: Tensor
    stale: Tensor
    idle: Tensor
    best: Tensor
    hit: Tensor
    dropped: Tensor


class _Search:
    """The bookkeeping of `evolve`."""

    def __init__(
        self,
        strategy: Strategy,
        fitness: Fitness,
        quota: Tensor,
        prior: Prior,
        seed: int,
        threshold: float | None,
        patience: int,
        batch_size: int,
    ) -> None:
        self.strategy, self.fitness, self.prior = strategy, fitness, prior
        self.seed, self.threshold, self.patience, self.batch_size = seed, threshold, patience, batch_size
        zero = torch.zeros_like(quota, dtype=torch.int64)
        x0 = self._fresh(zero)
        if not x0.is_floating_point() or (has_values(x0) and not bool(x0.isfinite().all())):
            raise DataError("the prior's latents must be finite floats", got=x0.dtype)
        self.device = x0.device
        self.rng = torch.Generator(device=self.device)
        zero = zero.to(self.device)
        self.wanted = quota.to(self.device).long()
        self.state = strategy.init(x0, start=zero)
        best = torch.full(zero.shape, -math.inf, dtype=torch.float64, device=self.device)
        self.at = _Counters(zero, zero, zero + strategy.population, zero, zero, zero, best, zero.bool(), zero)
        self.pool = _Pool(_empty_columns(x0))
        self.images = self.too_small = 0

    def advance(self, budget: int) -> bool:
        """One generation of the groups that lag most behind (without a resume these are all that are open). False:
        the quota is filled, the budget spent, or no group has candidates left."""
        active = (self.kept() < self.wanted) & (self.at.idle <= self.patience)
        if not bool(active.any()):
            return False
        generation = int(self.at.generation[active].min())
        active &= self.at.generation == generation
        self.rng.manual_seed(_mix(self.seed, generation))
        proposal, asked = self.strategy.ask(self.state, self.rng)
        proposal = proposal._replace(valid=proposal.valid & active.unsqueeze(1))
        group, slot = proposal.valid.nonzero(as_tuple=True)
        if self.images + len(group) > budget:
            self.too_small = len(group)
            return False
        gained = torch.zeros_like(active)
        if len(group):
            scores = self._evaluate(proposal.latents[group, slot], group)
            novel = self._novel(scores)
            accepted = scores.success & scores.found & novel
            self._admit(proposal, scores, accepted, group, slot)
            gained[group[accepted]] = True
            evaluation = _as_evaluation(scores, novel, proposal.valid, group, slot)
            told = self.strategy.tell(asked, proposal, evaluation, self.rng)
            self.state = _merge(active, told, self.state)
            self.images += len(group)
        else:
            evaluation = None
        self._count(active, proposal, evaluation, gained)
        return True

    def kept(self) -> Tensor:
        """Successes of each group so far [G], those beyond its quota included."""
        return torch.bincount(self.pool.columns["group_ids"], minlength=len(self.wanted))

    def filled(self) -> int:
        """Successes that count."""
        return int(torch.minimum(self.kept(), self.wanted).sum())

    def _fresh(self, drawn: Tensor) -> Tensor:
        """The next individuals of every group from the prior, [G, P, *shape]."""
        size = self.strategy.population
        index = drawn.unsqueeze(1) + torch.arange(size, device=drawn.device)
        stream = torch.arange(len(drawn), device=drawn.device).unsqueeze(1).expand_as(index)
        latents = self.prior(index.flatten(), stream.flatten())
        if latents.ndim < 2 or len(latents) != index.numel():
            raise ShapeError("not a draw for each index", expected=[index.numel(), "*shape"], got=list(latents.shape))
        return latents.unflatten(0, (len(drawn), size))

    def _evaluate(self, latents: Tensor, rows: Tensor) -> Scores:
        known = self._archive_of(self.pool.columns, {}) if self.pool.size else None
        parts = []
        for chunk, chunk_rows in zip(latents.split(self.batch_size), rows.split(self.batch_size), strict=True):
            scores = self.fitness(chunk, chunk_rows, known)
            _check_scores(scores, len(chunk))
            parts.append(scores if scores.latents is not None else scores._replace(latents=chunk))
        scores = Scores(*(torch.cat(column) for column in zip(*parts, strict=True)))  # type: ignore[arg-type]
        if self.threshold is not None and scores.embeddings.shape[1] == 0:
            raise DataError(
                "identities cannot be compared", expected="embeddings [n, e]", got="none", fix="pass embedder="
            )
        return scores._replace(embeddings=F.normalize(scores.embeddings, dim=1))

    def _novel(self, scores: Scores) -> Tensor:
        """bool [n]: new to the archive, and for successes also to the admitted ones before them in the batch."""
        if self.threshold is None:
            return torch.ones_like(scores.success)
        known = self.pool.columns["embeddings"] if self.pool.size else None
        novel = torch.ones_like(scores.success)
        if known is not None:
            novel = novelty(scores.embeddings, known).similarity < self.threshold
        rows = (scores.success & scores.found).nonzero().squeeze(1)
        return novel.index_copy(0, rows, unique(scores.embeddings[rows], self.threshold, known=known))

    def _admit(self, proposal: Proposal, scores: Scores, accepted: Tensor, group: Tensor, slot: Tensor) -> None:
        """Put the accepted into the pool. Those beyond a quota are paid for, and wait there for a resume."""
        at = (group[accepted], slot[accepted])
        columns = {name: getattr(proposal, name)[at] for name in ("id", "root", "parent", "depth")}
        for name in ("latents", "probability", "fitness", "distance", "embeddings"):
            columns[name] = getattr(scores, name)[accepted]
        self.pool.add(columns | {"group_ids": at[0]})

    def _count(self, active: Tensor, proposal: Proposal, evaluation: Evaluation | None, gained: Tensor) -> None:
        """Move the counters on and restart what has to be."""
        at, none = self.at, ~proposal.valid.any(1)
        best, hit = at.best, at.hit
        if evaluation is not None:
            best = torch.maximum(best, evaluation.fitness.double().amax(1))
            hit = hit | (evaluation.success & evaluation.found).any(1)
        gained = gained | (~hit & (best > at.best))
        last = torch.where(proposal.valid, proposal.id, -1).amax(1)
        stale = torch.where(gained, 0, at.stale + 1)
        restart = active & (none | ((stale >= self.patience) & self.strategy.restarts))
        counted = _Counters(
            generation=at.generation + 1,
            evaluations=at.evaluations + proposal.valid.sum(1),
            drawn=at.drawn + self.strategy.population * restart,
            next_id=torch.maximum(at.next_id, last + 1),
            stale=torch.where(restart, 0, stale),
            idle=torch.where(none, at.idle + 1, 0),
            best=torch.where(restart, -math.inf, best),
            hit=hit & ~restart,
            dropped=at.dropped + self._dropped() * restart,
        )
        self.at = _Counters(*(torch.where(active, new, old) for new, old in zip(counted, at, strict=True)))
        if bool(restart.any()):
            fresh = self.strategy.init(self._fresh(at.drawn), start=self.at.next_id)
            self.state = _merge(restart, fresh, self.state)

    def _dropped(self) -> Tensor:
        """Candidates of each group [G] that the strategy lost unseen since it last began anew."""
        dropped = getattr(self.state, "dropped", None)
        return torch.zeros_like(self.wanted) if dropped is None else dropped

    def archive(self) -> Archive:
        """The first `wanted` of each group; the rest and all counters go into the state."""
        columns = self.pool.columns
        order = columns["group_ids"].argsort(stable=True)
        groups = columns["group_ids"][order]
        rank = torch.arange(len(order), device=self.device) - (self.kept().cumsum(0) - self.kept())[groups]
        member = rank < self.wanted[groups]
        state = {f"counters.{k}": v for k, v in self.at._asdict().items()}
        state |= {f"strategy.{i}": leaf for i, leaf in enumerate(tree_flatten(self.state)[0])}
        state |= {f"surplus.{k}": v[order[~member]] for k, v in columns.items()}
        return self._archive_of({k: v[order[member]] for k, v in columns.items()}, state)

    def _archive_of(self, columns: dict[str, Tensor], state: dict[str, Tensor]) -> Archive:
        fields: dict[str, Any] = columns | self._identity()
        if columns["embeddings"].shape[1] == 0:
            fields["embeddings"] = None
        return Archive(
            **fields,
            evaluations=self.at.evaluations,
            wanted=self.wanted,
            state=state,
            dropped=self.at.dropped + self._dropped(),
        )

    def _identity(self) -> dict[str, Any]:
        """What a run and its continuation have in common."""
        return {
            "strategy": self.strategy.name,
            "settings": self.strategy.settings,
            "names": tuple(getattr(self.fitness, "names", None) or ()),
            "space": getattr(self.fitness, "space", None),
            "seed": self.seed,
            "threshold": self.threshold,
        }

    def restore(self, archive: Archive) -> None:
        """Go on where `archive` stood."""
        leaves, spec = tree_flatten(self.state)
        saved = [archive.state.get(f"strategy.{i}") for i in range(len(leaves))]
        mine = self._identity() | {"state": [list(x.shape) for x in leaves]}
        theirs = {name: getattr(archive, name) for name in self._identity()}
        theirs["state"] = [list(x.shape) for x in saved if x is not None]
        differs = [name for name in mine if mine[name] != theirs[name]]
        if differs:
            raise DataError(
                "this archive comes from another search",
                expected="; ".join(f"{name} {mine[name]}" for name in differs),
                got="; ".join(f"{name} {theirs[name]}" for name in differs),
                fix="resume with the strategy, settings, targets, space, seed and threshold it was made with",
            )
        stored = {k: v.to(self.device) for k, v in archive.state.items()}
        self.state = tree_unflatten([x.to(self.device) for x in saved], spec)  # type: ignore[union-attr]
        self.at = _Counters(**{k: stored[f"counters.{k}"] for k in _Counters._fields})
        self.images = int(self.at.evaluations.sum())
        surplus = {k: stored[f"surplus.{k}"] for k in self.pool.columns}
        members = {k: getattr(archive, k) for k in self.pool.columns}
        if members["embeddings"] is None:
            members["embeddings"] = archive.probability.new_empty(len(archive), 0)
        self.pool.add({k: v.to(self.device) for k, v in members.items()})
        self.pool.add(surplus)


class _Pool:
    """Columns of rows in the order they were added. Buffers double, so that adding many times stays cheap."""

    def __init__(self, empty: dict[str, Tensor]) -> None:
        self.buffers, self.size = empty, 0

    @property
    def columns(self) -> dict[str, Tensor]:
        """Views of the rows."""
        return {name: buffer[: self.size] for name, buffer in self.buffers.items()}

    def add(self, rows: dict[str, Tensor]) -> None:
        """Append rows with the same columns."""
        size = self.size + len(rows["group_ids"])
        if self.size == 0:
            self.buffers = dict(rows)
        elif size > len(self.buffers["group_ids"]):
            grown = {k: v.new_empty((2 * size, *v.shape[1:])) for k, v in self.buffers.items()}
            for name, column in self.columns.items():
                grown[name][: self.size] = column
            self.buffers = grown
        for name, buffer in self.buffers.items():
            buffer[self.size : size] = rows[name]
        self.size = size


def _as_evaluation(scores: Scores, novel: Tensor, valid: Tensor, group: Tensor, slot: Tensor) -> Evaluation:
    """Flat scores put back into their slots [G, P]."""

    def spread(x: Tensor, fill: float | bool) -> Tensor:
        full = torch.full((*valid.shape, *x.shape[1:]), fill, dtype=x.dtype, device=x.device)
        full[group, slot] = x
        return full

    return Evaluation(
        fitness=spread(scores.fitness, -math.inf),
        success=spread(scores.success, False),
        found=spread(scores.found, False),
        novel=spread(novel, False),
        measures=spread(scores.measures, 0.0),
    )


def _merge(mask: Tensor, new: Any, old: Any) -> Any:
    """The new state where mask [G] is True, the old one elsewhere."""
    if bool(mask.all()):
        return new
    return tree_map(lambda a, b: torch.where(mask.view(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _mix(seed: int, generation: int) -> int:
    """A seed for each generation. Hashed, since torch's CPU generator uses the low 32 bits alone."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{generation}".encode(), digest_size=7).digest(), "big")


def _empty_columns(x0: Tensor) -> dict[str, Tensor]:
    integers = torch.empty(0, dtype=torch.int64, device=x0.device)
    floats = torch.empty(0, device=x0.device)
    columns = dict.fromkeys(("group_ids", "id", "root", "parent", "depth"), integers)
    columns |= dict.fromkeys(("probability", "fitness", "distance"), floats)
    return columns | {"latents": x0[0, :0], "embeddings": floats.unsqueeze(1)[:, :0]}


def _check_request(
    quota: Tensor, seed: int, threshold: float | None, budget: int | None, patience: int, batch_size: int
) -> None:
    if quota.ndim != 1 or quota.is_floating_point() or quota.dtype == torch.bool:
        raise ShapeError("a quota counts faces", expected="int64 [G]", got=f"{list(quota.shape)} {quota.dtype}")
    if quota.numel() == 0 or int(quota.min()) < 0 or int(quota.sum()) == 0:
        raise DataError("nothing to fill", expected="non-negative numbers, not all zero", got=quota.tolist())
    if (budget is not None and budget < 1) or patience < 1 or batch_size < 1 or seed < 0:
        raise DataError(
            "an impossible search",
            expected="max_evaluations ≥ 1, patience ≥ 1, batch_size ≥ 1, seed ≥ 0",
            got=f"{budget}, {patience}, {batch_size}, {seed}",
        )
    if threshold is not None and not -1 < threshold <= 1:
        raise DataError("the threshold is a cosine", expected="above -1, at most 1", got=threshold)


def _check_strategy(strategy: Strategy, space: str | None, threshold: float | None) -> None:
    if None not in (strategy.space, space) and strategy.space != space:
        raise DataError(
            f"{strategy.name} is not for these latents",
            expected=f"a fitness over {strategy.space}",
            got=space,
            fix=f'face_fitness(…, space="{strategy.space}"), or a strategy for {space}, such as snes() or '
            'genetic(mutation="gaussian")',
        )
    if strategy.needs_identities and threshold is None:
        raise DataError(
            f"{strategy.name} asks for new identities, and none are compared",
            expected="threshold=",
            got=None,
            fix="pass a threshold, and a fitness with embeddings; or switch the strategy's identity gate off",
        )


def _check_scores(scores: Scores, n: int) -> None:
    for name, column in scores._asdict().items():
        if column is not None and (len(column) != n or (name in ("measures", "embeddings") and column.ndim != 2)):
            raise ShapeError(f"the fitness gave wrong {name}", expected=f"{n} rows", got=list(column.shape))
    if scores.success.dtype != torch.bool or scores.found.dtype != torch.bool:
        raise ShapeError(
            "success and found are truth values", expected="bool", got=f"{scores.success.dtype}, {scores.found.dtype}"
        )
    if has_values(scores.fitness) and bool(scores.fitness.isnan().any() | scores.embeddings.isnan().any()):
        raise DataError("the fitness is NaN", fix="check the images, the labeller's probabilities, and your terms")
