"""Who gets into a set: candidates in rounds, until every group has its identities, each of them new.

A round asks for numbered candidates; whoever is free makes them in units of `UNIT`; one process then takes the new
ones in order. What a round asks for follows from the rounds before it, so that the identities of a set depend on its
plan alone. Everything is kept in `work/` until the set is finished: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ..artifacts import atomic_path, write_json
from ..errors import BudgetError
from ..groups import Groups
from ..reports import markdown_table
from .making import Candidates, Identities, Maker
from .plan import DatasetPlan

UNIT = 512  # candidates made at a time
_BLOCK = 8192  # identities compared at a time
_LEAST_RATE = 0.02  # a round asks for at most 50 candidates per identity that is missing


IDENTITY_FILES = ("identities.parquet", "latents.npy", "embeddings.npy")


class Round(NamedTuple):
    """Candidates to be made: `counts[g]` of each group, from number `first[g]` on."""

    number: int
    first: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def units(self) -> int:
        """Units of work in it."""
        return -(-sum(self.counts) // UNIT)

    def size(self, u: int) -> int:
        """Candidates of one unit."""
        return min(UNIT, sum(self.counts) - u * UNIT)

    def unit(self, u: int) -> tuple[np.ndarray, np.ndarray]:
        """Group ids and candidate numbers of one unit, int64 [≤ UNIT]; the groups are spread evenly over a round."""
        ids, place = (x[u * UNIT : (u + 1) * UNIT] for x in _interleaved(self.counts))
        return ids, place + np.array(self.first)[ids]


@lru_cache(maxsize=2)
def _interleaved(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(n) for n in counts])
    order = np.lexsort((ids, (place + 0.5) / np.array(counts)[ids]))
    return ids[order], place[order]


@dataclass(frozen=True)
class GateFiles:
    """Where the gate keeps things."""

    root: Path

    @property
    def work(self) -> Path:
        """Removed when the set is finished."""
        return self.root / "work"

    def round(self, r: int) -> Path:
        """What round r asks for; written when the rounds before it are settled."""
        return self.work / f"round-{r:04d}.json"

    def unit(self, r: int, u: int) -> Path:
        """The candidates of a unit."""
        return self.work / f"candidates-{r:04d}-{u:06d}.safetensors"

    def taken(self, r: int) -> Path:
        """Which candidates of a round were taken."""
        return self.work / f"taken-{r:04d}.json"

    @property
    def stopped(self) -> Path:
        """Why rank 0 gave up, for the others."""
        return self.work / "stopped.json"

    @property
    def done(self) -> Path:
        """Written last, when the identities are complete."""
        return self.root / "gate.json"

    def complete(self) -> bool:
        """Whether gate.json is there, and the files that it lists are what it says."""
        try:
            gate = json.loads(self.done.read_text(encoding="utf-8"))
            files = gate["files"].items()
            whole = "threshold" in gate and set(IDENTITY_FILES[:2]) <= dict(files).keys()
            return whole and all(_described(self.root / name) == kept for name, kept in files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False


def read_round(path: Path) -> tuple[Round, float | None]:
    """A round, and the threshold of the gate."""
    values = json.loads(path.read_text())
    return Round(values["number"], tuple(values["first"]), tuple(values["counts"])), values["threshold"]


def make_unit(maker: Maker, files: GateFiles, wanted: Round, u: int) -> None:
    """Make the candidates of a unit, unless they are there."""
    path = files.unit(wanted.number, u)
    if path.exists():
        return
    ids, index = (torch.from_numpy(x) for x in wanted.unit(u))
    made = maker.candidates(ids, index)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({name: x.contiguous() for name, x in made._asdict().items()}))


class Gate:
    """Takes candidates into the set, round by round; only one process does.

    Args:
        plan: with the groups' own names.
        groups: of the source.
        files: of the set.
        threshold: cosine from which two faces are one person; None: not compared.
        reference: embeddings [m, e] of people who must not be in the set.
        device: where embeddings are compared.
    """

    def __init__(
        self,
        plan: DatasetPlan,
        groups: Groups,
        files: GateFiles,
        threshold: float | None,
        reference: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.plan, self.groups, self.files, self.threshold = plan, groups, files, threshold
        self.device = torch.device(device)
        self.reference = None if reference is None else reference.to(self.device).float()
        group_of = np.array([groups.id(name) for name in plan.quota])[plan.order]
        self.ids = group_of
        self.places = [np.flatnonzero(group_of == g) for g in range(len(groups))]
        self.index = np.full(plan.identities, -1)
        self.nearest = np.full(plan.identities, np.nan, np.float32)
        self.counts = {name: [0] * len(groups) for name in ("candidates", "confirmed", "duplicates", "leaks")}
        self.accepted = [0] * len(groups)
        self.latents: np.memmap | None = None
        self.embeddings: np.memmap | None = None

    def first_round(self) -> Round:
        """One candidate for each identity."""
        return Round(0, (0,) * len(self.groups), tuple(len(p) for p in self.places))

    def settle(self, wanted: Round) -> Round | None:
        """Take the new people of a round whose units are all there; returns the next round, None when all is full.

        Raises:
            BudgetError: the plan's budget is spent.
        """
        known = json.loads(self.files.taken(wanted.number).read_text()) if self._was_settled(wanted) else None
        before, taken = list(self.accepted), []
        for u in range(wanted.units):
            ids, index = wanted.unit(u)
            made = Candidates(**load_file(self.files.unit(wanted.number, u)))
            rows = self._choose(ids, made) if known is None else _Chosen(*known[u])
            self._take(rows, ids, index, made)
            taken.append(list(rows))
        if known is None:
            write_json(self.files.taken(wanted.number), taken)
        return self._next(wanted, before)

    def _was_settled(self, wanted: Round) -> bool:
        return self.files.taken(wanted.number).exists()

    def _choose(self, ids: np.ndarray, made: Candidates) -> _Chosen:
        """Goes through a unit in order: confirmed, in no reference, like nobody before, and wanted."""
        confirmed = made.confirmed.numpy()
        cosines, leaked = np.full(len(ids), np.nan, np.float32), np.zeros(len(ids), bool)
        among = np.zeros((0, 0), np.float32)
        if self.threshold is not None:
            x = made.embeddings.to(self.device)
            cosines, among = self._nearest(x), (x @ x.T).cpu().numpy()
            leaked = self._leaks(x)
        rows: list[int] = []
        nearest: list[float | None] = []
        duplicates: list[int] = []
        room = [len(p) - n for p, n in zip(self.places, self.accepted, strict=True)]
        for i in np.flatnonzero(confirmed & ~leaked).tolist():
            if not room[ids[i]]:
                continue
            best = cosines[i]
            if self.threshold is not None:
                best = max(best, among[i][rows].max(initial=-1.0))
                if best >= self.threshold:
                    duplicates.append(i)
                    continue
            rows.append(i)
            nearest.append(None if best <= -1 or np.isnan(best) else float(best))
            room[ids[i]] -= 1
        return _Chosen(rows, nearest, duplicates, np.flatnonzero(confirmed & leaked).tolist())

    def _nearest(self, x: Tensor) -> np.ndarray:
        """Largest cosine to the identities taken so far, −1 if there are none."""
        best = torch.full((len(x),), -1.0, device=self.device)
        for start, known in self._known():
            score = x @ known.T
            empty = torch.from_numpy(self.index[start : start + len(known)] < 0).to(self.device)
            best = torch.maximum(best, score.masked_fill(empty, -1.0).amax(1))
        return best.cpu().numpy()

    def _known(self) -> Iterator[tuple[int, Tensor]]:
        if self.embeddings is None:
            return
        for start in range(0, self.plan.identities, _BLOCK):
            if (self.index[start : start + _BLOCK] >= 0).any():
                yield start, torch.from_numpy(np.array(self.embeddings[start : start + _BLOCK])).to(self.device)

    def _leaks(self, x: Tensor) -> np.ndarray:
        leaked = torch.zeros(len(x), dtype=torch.bool, device=self.device)
        for block in () if self.reference is None else self.reference.split(_BLOCK):
            leaked |= (x @ block.T).amax(1) >= self.threshold
        return leaked.cpu().numpy()

    def _take(self, rows: _Chosen, ids: np.ndarray, index: np.ndarray, made: Candidates) -> None:
        self._count("candidates", ids)
        self._count("confirmed", ids[made.confirmed.numpy()])
        self._count("duplicates", ids[rows.duplicates])
        self._count("leaks", ids[rows.leaks])
        places = []
        for i in rows.rows:
            g = int(ids[i])
            places.append(int(self.places[g][self.accepted[g]]))
            self.accepted[g] += 1
        if not places:
            return
        self.index[places] = index[rows.rows]
        self.nearest[places] = [np.nan if x is None else x for x in rows.nearest]
        self._latents(made)[np.array(places)] = made.latents.numpy()[rows.rows]
        if self.threshold is not None and self.embeddings is not None:
            self.embeddings[np.array(places)] = made.embeddings.numpy()[rows.rows]

    def _count(self, name: str, ids: np.ndarray) -> None:
        for g, n in enumerate(np.bincount(ids, minlength=len(self.groups)).tolist()):
            self.counts[name][g] += n

    def _latents(self, made: Candidates) -> np.memmap:
        if self.latents is None:
            self.latents = self._memory("latents.npy", made.latents)
            if self.threshold is not None:
                self.embeddings = self._memory("embeddings.npy", made.embeddings)
        return self.latents

    def _memory(self, name: str, like: Tensor) -> np.memmap:
        shape = (self.plan.identities, *like.shape[1:])
        return map_new(self.files.work / name, shape)

    def _next(self, wanted: Round, before: list[int]) -> Round | None:
        first = [a + n for a, n in zip(wanted.first, wanted.counts, strict=True)]
        counts = []
        for g, places in enumerate(self.places):
            missing = len(places) - self.accepted[g]
            new, asked = self.accepted[g] - before[g], wanted.counts[g]
            rate = max(_LEAST_RATE, (new + 1) / (asked + 2))
            left = self.plan.budget * len(places) - first[g]
            counts.append(0 if missing == 0 else min(int(1.1 * missing / rate) + 1, left))
            if missing and left <= 0:
                raise self._short()
        return Round(wanted.number + 1, tuple(first), tuple(counts)) if any(counts) else None

    def _short(self) -> BudgetError:
        rows = [
            [name, str(len(self.places[g])), *(str(self.counts[c][g]) for c in self.counts), str(self.accepted[g])]
            for g, name in enumerate(self.groups.names)
            if len(self.places[g])
        ]
        table = markdown_table(["group", "wanted", *self.counts, "accepted"], rows)
        few = self.counts["duplicates"] and sum(self.counts["duplicates"]) > sum(self.accepted)
        fix = (
            f"most candidates are people of the set already: a plan with fmr far below 1/{self.plan.identities} (or a "
            "higher threshold=, if it was given), fewer identities, or a generator with more diversity"
            if few
            else "a larger budget in the plan; method='screen', verify=False, or fewer of the rare groups"
        )
        return BudgetError(
            f"the budget is spent before the set has its identities\n\n{table}\n",
            expected=f"{self.plan.identities} identities within {self.plan.budget} candidates for each",
            got=f"{sum(self.accepted)}",
            fix=fix + "; the new plan needs a new folder",
        )

    def write(self, rounds: int) -> None:
        """The identities' files; gate.json last."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        root = self.files.root
        for name, memory in {"latents.npy": self.latents, "embeddings.npy": self.embeddings}.items():
            if memory is not None:
                memory.flush()
                with (self.files.work / name).open("rb+") as f:
                    os.fsync(f.fileno())
                (self.files.work / name).replace(root / name)
        names = np.array(self.groups.names)
        table = pa.table(
            {
                "identity": pa.array(np.arange(self.plan.identities)),
                "group": pa.array(names[self.ids].tolist(), pa.string()),
                "group_id": pa.array(self.ids),
                "index": pa.array(self.index),
                "nearest": pa.array(self.nearest, from_pandas=True),
            }
        )
        with atomic_path(root / "identities.parquet") as temporary:
            pq.write_table(table, temporary)
        files = {name: describe_file(root / name) for name in IDENTITY_FILES if (root / name).exists()}
        write_json(self.files.done, self.summary(rounds) | {"files": files})

    def summary(self, rounds: int) -> dict[str, Any]:
        """What gate.json holds."""
        wanted = [g for g, places in enumerate(self.places) if len(places)]
        columns: Mapping[str, list[int]] = self.counts | {"accepted": self.accepted}
        return {
            **{name: {self.groups.name(g): column[g] for g in wanted} for name, column in columns.items()},
            "rounds": rounds,
            "verify": self.plan.verify,
            "fmr": self.plan.fmr,
            "threshold": self.threshold,
            "reference": 0 if self.reference is None else len(self.reference),
        }


def map_new(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new float32 .npy file, mapped for writing, with all its room taken.

    A full disk must say so here: writing to a mapped hole would kill the process.
    """
    memory = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    with path.open("rb+") as f:
        os.posix_fallocate(f.fileno(), 0, path.stat().st_size)
    return memory


def read_identities(root: Path) -> Identities:
    """The identities that `Gate.write` wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(root / "identities.parquet", columns=["group", "group_id", "index"])
    ids, names = table["group_id"].to_numpy(), table["group"].to_pylist()
    embeddings = root / "embeddings.npy"
    return Identities(
        names=dict(zip(ids.tolist(), names, strict=True)),
        ids=ids,
        index=table["index"].to_numpy(),
        latents=np.load(root / "latents.npy", mmap_mode="r"),
        embeddings=np.load(embeddings, mmap_mode="r") if embeddings.exists() else None,
    )


def describe_file(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file."""
    with path.open("rb") as f:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def _described(path: Path) -> dict[str, Any]:
    """`describe_file`, which reads a file again only when it has changed: ranks ask while they wait."""
    about = path.stat()
    return _describe_once(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _describe_once(path: Path, size: int, changed: int) -> dict[str, Any]:
    return describe_file(path)


class _Chosen(NamedTuple):
    """Rows of a unit that were taken, with their nearest cosines; rows like somebody before, and in the reference."""

    rows: list[int]
    nearest: list[float | None]
    duplicates: list[int]
    leaks: list[int]
