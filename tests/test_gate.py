"""The identity gate against a plain loop over all pairs, and against itself after being stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import fairface_synth as ffs
from fairface_synth import DataError
from fairface_synth.export import DatasetPlan, gate, plan_dataset
from fairface_synth.export.gate import Gate, GateFiles, Round, make_unit
from fairface_synth.export.making import Candidates

GROUPS = ffs.Groups({"group": ["a", "b", "c"]})
COUNTS = ("candidates", "confirmed", "duplicates", "leaks")


@dataclass(frozen=True)
class World:
    """Candidates of three groups, from tables; does the work of a `Maker`."""

    plan: DatasetPlan
    embeddings: Tensor  # [G, candidates, e]
    confirmed: Tensor  # bool [G, candidates]
    threshold: float | None
    reference: Tensor | None = None
    made: list[tuple[int, int]] = field(default_factory=list)

    def candidates(self, ids: Tensor, index: Tensor) -> Candidates:
        self.made.extend(zip(ids.tolist(), index.tolist(), strict=True))
        latents = torch.stack((ids, index), 1).float()
        return Candidates(latents, self.confirmed[ids, index], self.embeddings[ids, index])

    def gate(self, root: Path) -> Gate:
        return Gate(self.plan, GROUPS, GateFiles(root), self.threshold, self.reference)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Crowded worlds: in 2 … 5 dimensions many people look alike."""
    quota = draw(st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1))
    plan = plan_dataset(quota, fmr=1e-3, budget=draw(st.integers(1, 6)), groups=GROUPS)
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    e = draw(st.integers(2, 5))
    embeddings = normalize(torch.randn(3, 54, e, generator=rng), dim=-1)
    if draw(st.booleans()):  # somebody occurs again, in any group
        again = torch.randint(54, (3, 54), generator=rng)
        embeddings = torch.where(torch.rand(3, 54, 1, generator=rng) < 0.3, embeddings[0, again], embeddings)
    confirmed = torch.rand(3, 54, generator=rng) < draw(st.sampled_from([1.0, 0.8, 0.3]))
    reference = normalize(torch.randn(3, e, generator=rng), dim=-1) if draw(st.booleans()) else None
    threshold = draw(st.sampled_from([0.5, 0.8, 0.95, 0.999]))
    everybody = embeddings.flatten(0, 1) if reference is None else torch.cat((embeddings.flatten(0, 1), reference))
    assume(float(((everybody @ everybody.T) - threshold).abs().min()) > 1e-5)  # no pair within rounding of it
    return World(plan, embeddings, confirmed, threshold, reference)


# --- the oracle -----------------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """Looks at one candidate after the other, and compares it with everybody."""

    world: World
    people: list[tuple[int, int]] = field(default_factory=list)
    nearest: list[float | None] = field(default_factory=list)
    counts: dict[str, dict[int, int]] = field(default_factory=lambda: {n: dict.fromkeys(range(3), 0) for n in COUNTS})

    def taken(self, group: int) -> int:
        return sum(g == group for g, _ in self.people)

    def wanted(self, group: int) -> int:
        return self.world.plan.quota.get(GROUPS.name(group), 0)

    def see(self, group: int, index: int) -> None:
        world = self.world
        x = world.embeddings[group, index].double().numpy()
        self.counts["candidates"][group] += 1
        if not world.confirmed[group, index]:
            return
        self.counts["confirmed"][group] += 1
        known = [] if world.reference is None else world.reference.double().tolist()
        if any(np.dot(x, y) >= world.threshold for y in known):
            self.counts["leaks"][group] += 1
            return
        if self.taken(group) == self.wanted(group):
            return
        cosines = [float(np.dot(x, world.embeddings[g, i].double().numpy())) for g, i in self.people]
        if cosines and max(cosines) >= world.threshold:
            self.counts["duplicates"][group] += 1
            return
        self.people.append((group, index))
        self.nearest.append(max(cosines) if cosines else None)

    def ordered(self) -> list[tuple[int, int, float | None]]:
        """The people by their numbers in the set."""
        names = list(self.world.plan.quota)
        found = list(zip(self.people, self.nearest, strict=True))
        queues = [iter([(g, i, c) for (g, i), c in found if g == group]) for group in range(3)]
        return [next(queues[GROUPS.id(names[j])]) for j in self.world.plan.order.tolist()]


@contextmanager
def small_units(unit: int = 7, block: int = 3) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "UNIT", unit)
        patch.setattr(gate, "_BLOCK", block)
        yield


def fill(world: World, root: Path, stop_after: int | None = None) -> list[Round]:
    """Rounds of candidates until the set has its identities, or `stop_after` rounds; they are written at the end."""
    files = GateFiles(root)
    files.work.mkdir(parents=True, exist_ok=True)
    keeper, rounds = world.gate(root), []
    wanted: Round | None = keeper.first_round()
    while wanted is not None:
        rounds.append(wanted)
        for u in range(wanted.units):
            make_unit(world, files, wanted, u)  # type: ignore[arg-type]
        if stop_after == len(rounds):
            return rounds
        wanted = keeper.settle(wanted)
    keeper.write(len(rounds))
    return rounds


def order_of(rounds: Sequence[Round]) -> list[tuple[int, int]]:
    return [(int(g), int(i)) for r in rounds for u in range(r.units) for g, i in zip(*r.unit(u), strict=True)]


def table_of(error: DataError) -> list[list[str]]:
    """Rows of the table in the message of a spent budget."""
    assert "the budget is spent" in str(error)
    lines = [line.strip("|").split("|") for line in str(error).splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line] for line in lines]
    assert head == ["group", "wanted", *COUNTS, "accepted"]
    return rows


@settings(max_examples=50)
@given(worlds(), st.sampled_from([3, 7, 512]), st.sampled_from([1, 3, 8192]))
def test_gate_is_the_plain_loop(world: World, unit: int, block: int) -> None:
    oracle, short, rounds = Oracle(world), [], []
    with TemporaryDirectory() as folder, small_units(unit, block):
        root = Path(folder)
        try:
            rounds = fill(world, root)
        except DataError as error:
            short = table_of(error)
        for group, index in order_of(rounds) if rounds else world.made:
            oracle.see(group, index)
        missing = [g for g in range(3) if oracle.taken(g) < oracle.wanted(g)]
        if short:
            assert any(oracle.counts["candidates"][g] == world.plan.budget * oracle.wanted(g) for g in missing)
            assert short == [
                [name, *map(str, (oracle.wanted(g), *(c[g] for c in oracle.counts.values()), oracle.taken(g)))]
                for g, name in enumerate(GROUPS.names)
                if oracle.wanted(g)
            ]
            return
        assert not missing
        assert world.made == order_of(rounds)
        expected = oracle.ordered()
        table = pq.read_table(root / "identities.parquet").to_pydict()
        assert table["identity"] == list(range(world.plan.identities))
        assert table["group_id"] == [g for g, _, _ in expected]
        assert table["group"] == [GROUPS.name(g) for g, _, _ in expected]
        assert table["index"] == [i for _, i, _ in expected]
        assert [x is None for x in table["nearest"]] == [c is None for *_, c in expected]
        np.testing.assert_allclose(
            [x for x in table["nearest"] if x is not None], [c for *_, c in expected if c is not None], atol=1e-5
        )
        x = np.load(root / "embeddings.npy")
        np.testing.assert_array_equal(x, np.stack([world.embeddings[g, i] for g, i, _ in expected]))
        np.testing.assert_array_equal(np.load(root / "latents.npy"), [[g, i] for g, i, _ in expected])
        assert (x @ x.T - 2 * np.eye(len(x)) < world.threshold).all()  # nobody is in the set twice
        counts = json.loads((root / "gate.json").read_text())
        assert counts["rounds"] == len(rounds)
        assert counts["accepted"] == dict(world.plan.quota)
        for name, column in oracle.counts.items():
            assert counts[name] == {GROUPS.name(g): n for g, n in column.items() if oracle.wanted(g)}


@given(worlds())
def test_rounds_ask_for_each_candidate_once_and_for_no_more_than_the_budget(world: World) -> None:
    with TemporaryDirectory() as folder, small_units(), suppress(DataError):
        fill(world, Path(folder))
    for g, name in enumerate(GROUPS.names):
        numbers = [i for h, i in world.made if h == g]
        assert sorted(numbers) == list(range(len(numbers)))
        assert len(numbers) <= world.plan.budget * world.plan.quota.get(name, 0)


@given(st.lists(st.integers(0, 40), min_size=3, max_size=3).filter(any), st.integers(1, 50))
def test_units_spread_the_groups_over_a_round(counts: list[int], unit: int) -> None:
    wanted = Round(0, (5, 0, 9), tuple(counts))
    with small_units(unit):
        parts = [wanted.unit(u) for u in range(wanted.units)]
    assert all(len(ids) == unit for ids, _ in parts[:-1])
    assert 0 < len(parts[-1][0]) <= unit
    ids, index = np.concatenate([x for x, _ in parts]), np.concatenate([x for _, x in parts])
    for g in range(3):
        assert index[ids == g].tolist() == list(range(wanted.first[g], wanted.first[g] + counts[g]))
        had = np.cumsum(ids == g)
        share = counts[g] / sum(counts)
        assert (np.abs(had - share * np.arange(1, len(ids) + 1)) <= 1 + 1e-9).all()


@given(worlds())
def test_first_round_keeps_whom_unique_keeps(world: World) -> None:
    """Nobody has too many candidates in the first round, so that quotas do not matter."""
    with TemporaryDirectory() as folder, small_units():
        fill(world, Path(folder), stop_after=1)
        keeper = world.gate(Path(folder))
        first = keeper.first_round()
        with suppress(DataError):
            keeper.settle(first)
    order = [(g, i) for g, i in order_of([first]) if world.confirmed[g, i]]
    if not order:
        assert sum(keeper.accepted) == 0
        return
    x = torch.stack([world.embeddings[g, i] for g, i in order])
    assert world.threshold is not None
    keep = ffs.unique(x, world.threshold, known=world.reference)
    expected = [person for person, kept in zip(order, keep.tolist(), strict=True) if kept]
    found = [(int(g), int(i)) for g, i in zip(keeper.ids, keeper.index, strict=True) if i >= 0]
    assert sorted(found) == sorted(expected)


# --- being stopped --------------------------------------------------------------------------------------------------


def crowd(threshold: float | None = 0.7, **changes: Any) -> World:
    """A world in which the gate needs several rounds."""
    plan = plan_dataset({"a": 8, "b": 5, "c": 8}, fmr=1e-3, budget=10, groups=GROUPS)
    rng = torch.Generator().manual_seed(3)
    embeddings = normalize(torch.randn(3, 80, 5, generator=rng), dim=-1)
    confirmed = torch.rand(3, 80, generator=rng) < 0.7
    return World(**{"plan": plan, "embeddings": embeddings, "confirmed": confirmed, "threshold": threshold} | changes)


def results(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.iterdir() if p.is_file()}


def test_gate_goes_on_after_every_round(tmp_path: Path) -> None:
    with small_units():
        rounds = fill(crowd(), tmp_path / "whole")
        assert len(rounds) >= 3
        expected = results(tmp_path / "whole")
        assert {"identities.parquet", "latents.npy", "embeddings.npy", "gate.json"} == set(expected)
        for stop in range(1, len(rounds) + 1):
            root = tmp_path / f"stopped-{stop}"
            fill(crowd(), root, stop_after=stop)  # the last round's units are there; nobody has settled it
            again = crowd()
            fill(again, root)
            assert results(root) == expected
            assert again.made == order_of(rounds[stop:])  # nothing is made twice
            if stop > 1:  # settled, and the file that says so was lost
                GateFiles(root).taken(0).unlink()
                fill(crowd(), root)
                assert results(root) == expected


def test_a_unit_that_is_missing_is_made_again(tmp_path: Path) -> None:
    with small_units():
        fill(crowd(), tmp_path / "whole")
        rounds = fill(crowd(), tmp_path / "stopped", stop_after=2)
        GateFiles(tmp_path / "stopped").unit(1, 0).unlink()
        again = crowd()
        fill(again, tmp_path / "stopped")
        assert results(tmp_path / "stopped") == results(tmp_path / "whole")
        lost = list(zip(*(x.tolist() for x in rounds[1].unit(0)), strict=True))
        assert again.made[: len(lost)] == lost


# --- particular people ----------------------------------------------------------------------------------------------


def test_candidates_beyond_the_quota_block_nobody(tmp_path: Path) -> None:
    """Candidate 3 of group a comes when a is full. Candidate 3 of b looks like it, and is welcome."""
    plan = plan_dataset({"a": 2, "b": 2}, budget=10, groups=GROUPS)
    person = torch.eye(8)
    people = {"a": [0, 0, 1, 2, 2], "b": [3, 3, 3, 2, 4], "c": [0] * 5}
    embeddings = person[torch.tensor(list(people.values()))]
    world = World(plan, embeddings, torch.ones(3, 5, dtype=torch.bool), 1.0)  # a cosine at the threshold is a match
    rounds = fill(world, tmp_path)
    assert order_of(rounds[1:]) == [(0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4)]
    table = pq.read_table(tmp_path / "identities.parquet").to_pydict()
    assert list(zip(table["group"], table["index"], strict=True)) == [("a", 0), ("b", 0), ("a", 2), ("b", 3)]


def test_without_a_threshold_everybody_confirmed_is_taken(tmp_path: Path) -> None:
    plan = plan_dataset({"a": 4, "b": 4}, fmr=None, verify=True, budget=10, groups=GROUPS)
    confirmed = torch.ones(3, 80, dtype=torch.bool)
    confirmed[0, [0, 3]] = False
    fill(crowd(None, plan=plan, embeddings=torch.zeros(3, 80, 0), confirmed=confirmed), tmp_path)
    table = pq.read_table(tmp_path / "identities.parquet").to_pydict()
    assert [i for g, i in zip(table["group"], table["index"], strict=True) if g == "a"] == [1, 2, 4, 5]
    assert [i for g, i in zip(table["group"], table["index"], strict=True) if g == "b"] == [0, 1, 2, 3]
    assert table["nearest"] == [None] * 8
    assert not (tmp_path / "embeddings.npy").exists()


def test_spent_budget_says_why(tmp_path: Path) -> None:
    nobody = torch.zeros(3, 80, dtype=torch.bool)
    with pytest.raises(DataError, match="budget is spent") as error:
        fill(crowd(confirmed=nobody), tmp_path / "unconfirmed")
    text = str(error.value)
    assert table_of(error.value)[0] == ["a", "8", "80", "0", "0", "0", "0"]
    assert "21 identities within 10 candidates for each" in text
    assert "a larger budget in the plan" in text
    with pytest.raises(DataError, match="far below 1/21") as error:
        fill(crowd(embeddings=torch.eye(5)[torch.zeros(3, 80, dtype=torch.int64)]), tmp_path / "alike")
    with pytest.raises(DataError, match="budget is spent") as again:  # the same after a restart
        fill(crowd(embeddings=torch.eye(5)[torch.zeros(3, 80, dtype=torch.int64)]), tmp_path / "alike")
    assert str(again.value) == str(error.value)


def test_comparison_holds_one_block_at_a_time(tmp_path: Path) -> None:
    with small_units(block=4):
        fill(crowd(), tmp_path)
        keeper = crowd().gate(tmp_path)
        keeper.index[[0, 1, 9]] = 0
        keeper.embeddings = np.lib.format.open_memmap(tmp_path / "embeddings.npy", "r+")
        blocks = list(keeper._known())
    assert [(start, len(known)) for start, known in blocks] == [(0, 4), (8, 4)]
