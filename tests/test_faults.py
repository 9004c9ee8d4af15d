"""Whatever happens to an export, what is on disk is whole, and the next run makes the same bytes as an undisturbed one.

Every process that is killed here is a real one, forked by `fake_world.Nursery`; sets are compared byte by byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_world
import pytest
import torch
from fake_world import PHASES, Ended, Nursery, contents, differences, make_axes, make_plan, make_source, phase

from fairface_synth import DataError
from fairface_synth.export import DatasetCheck, DatasetPlan, open_dataset, verify_dataset

Reference = Mapping[str, bytes | None]
LAYOUTS = ("webdataset", "rec", "folders", "parquet")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The set of each layout that one run made; tests must not change it."""
    root = tmp_path_factory.mktemp("undisturbed")

    def made(layout: str) -> Path:
        if not (root / layout).exists():
            ended = nursery.run(root / layout, plan={"layout": layout})
            assert ended.code == 0, ended.text
        return root / layout

    return made


@pytest.fixture
def copied(undisturbed: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an undisturbed set."""

    def made(layout: str) -> Path:
        return Path(shutil.copytree(undisturbed(layout), tmp_path / layout))

    return made


def check_whole(root: Path, reference: Reference) -> None:
    """What has its final name is final; drafts have names that say so."""
    for name, data in contents(root).items():
        draft = any(part.startswith(".") and part.endswith(".tmp") for part in name.split("/"))
        joining = name == "train.rec.part" or (name.endswith(".rec") and name not in reference)
        if not draft and not joining and name.split("/")[0] != "work":
            assert name in reference, name
            assert data == reference[name], name


# --- SIGKILL --------------------------------------------------------------------------------------------------------


def rarest(landed: Counter[str], root: Path, draw: random.Random) -> str:
    """Where to kill next: a phase that the run has not passed, of those that few kills landed in."""
    ahead = [name for name in PHASES[:-2] if PHASES.index(name) >= PHASES.index(phase(root))]
    return min(ahead or ["finished"], key=lambda name: landed[name] + draw.random())


def kill_in(nursery: Nursery, pid: int, root: Path, aim: str, delay: float) -> Ended:
    """SIGKILL some time after a run has come so far, unless it ends before."""
    while PHASES.index(phase(root)) < PHASES.index(aim):
        ended = nursery.wait(pid, 0.005)
        if ended is not None:
            return ended
    return nursery.wait(pid, delay) or nursery.kill(pid)


@pytest.mark.parametrize(("layout", "kills"), [("webdataset", 15), ("rec", 15), ("folders", 4), ("parquet", 4)])
def test_kills_do_not_show(
    layout: str, kills: int, nursery: Nursery, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    reference, draw = contents(undisturbed(layout)), random.Random(layout)
    phases = [name for name in PHASES[:-2] if layout == "rec" or name != "join"]
    job: dict[str, Any] = {"plan": {"layout": layout}, "world": {"delay": 0.002}}
    landed: Counter[str] = Counter()
    for number in range(100):
        root = tmp_path / str(number)
        while landed.total() < kills:
            if draw.random() < 0.5:  # from outside, at any time
                pid = nursery.start(root, disk={"seconds": 0.001}, **job)
                ended = kill_in(nursery, pid, root, rarest(landed, root, draw), draw.uniform(0, 0.2))
            else:  # just before it would change what is on disk
                ended = nursery.run(root, disk={"seconds": 0, "die_at": draw.randint(5, 60)}, **job)
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.text
            landed[phase(root)] += 1
            check_whole(root, reference)
        ended = nursery.run(root, **job)
        assert ended.code == 0, ended.text
        assert differences(root, reference) == []
        if landed.total() >= kills:
            break
    if kills > 10:
        assert set(phases) - {"start", "gate"} <= set(landed), landed


def test_every_step_of_a_run_may_be_the_last(nursery: Nursery, tmp_path: Path) -> None:
    """Dies at the first step on the disk, goes on, dies at the second one, …: no step can be skipped by luck."""
    plan, landed = {"layout": "rec", "quota": 8}, Counter[str]()
    assert nursery.run(tmp_path / "whole", plan=plan).code == 0
    reference = contents(tmp_path / "whole")
    for step in range(1, 100):
        ended = nursery.run(tmp_path / "set", plan=plan, disk={"seconds": 0, "die_at": step})
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.text
        landed[phase(tmp_path / "set")] += 1
        check_whole(tmp_path / "set", reference)
    assert ended.code == 0, landed
    assert differences(tmp_path / "set", reference) == []
    assert {"start", "candidates", "gate", "shards", "join", "datasheet"} <= set(landed), landed


@pytest.mark.parametrize(("layout", "kills"), [("webdataset", 8), ("rec", 6)])
def test_killed_ranks_do_not_show(
    layout: str, kills: int, nursery: Nursery, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """Any of the ranks die; those that live go on, and the dead come back, at times in another number."""
    reference, draw, landed = contents(undisturbed(layout)), random.Random(layout), Counter[str]()
    job: dict[str, Any] = {"plan": {"layout": layout}, "world": {"delay": 0.002}, "engine": "torchrun"}
    job["disk"] = {"seconds": 0.001}
    root, number, size, alive = tmp_path / "0", 0, 2, dict[int, int]()
    sizes = set()

    def rank(r: int) -> int:
        return nursery.start(root, environment={"RANK": str(r), "WORLD_SIZE": str(size)}, **job)

    while landed.total() < kills:
        alive |= {r: rank(r) for r in range(size) if r not in alive}
        sizes.add(size)
        aim, delay = rarest(landed, root, draw), draw.uniform(0, 0.2)
        if landed[aim] <= kills // 4:
            victims = draw.choice(([0], [size - 1], list(range(size))))
            ended = [kill_in(nursery, alive.pop(r), root, aim, delay) for r in victims]
            assert all(e.code in (0, -signal.SIGKILL) for e in ended), ended
            landed[phase(root)] += sum(e.code != 0 for e in ended)
        if landed[aim] > kills // 4 or phase(root) == "finished" or landed.total() >= kills:
            alive |= {r: rank(r) for r in range(size) if r not in alive}
            last = [nursery.wait(pid) for pid in alive.values()]
            assert all(e is not None and e.code == 0 for e in last), last
            assert differences(root, reference) == []
            root, number, alive = tmp_path / str(number + 1), number + 1, {}
        if not alive:
            size = {2: 3, 3: 1, 1: 2}[size]
    assert len(sizes) > 1
    assert {"candidates", "shards"} <= set(landed), landed
