"""Each engine makes the set that the local one makes, and outlives its workers."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import fake_world
import pytest
from fake_world import contents, differences, make_plan
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fairface_synth import BudgetError, DataError, ExportReport
from fairface_synth.export import engines
from fairface_synth.export.engines import Task, Worker

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes | None]:
    """The set that the local engine makes."""
    root = tmp_path_factory.mktemp("local") / "set"
    report = fake_world.export(root)
    assert report.complete
    assert report.images == make_plan().images
    return contents(root)


def test_local_goes_on_where_it_was(local: dict[str, bytes | None], tmp_path: Path) -> None:
    @dataclass
    class Stopped(Exception):
        """A user who presses control-c."""

    calls = 0

    def stop(w: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise Stopped

    with pytest.raises(Stopped):
        fake_world.export(tmp_path / "set", world={"trouble": stop})
    report = fake_world.export(tmp_path / "set")
    assert report.complete
    assert 0 < report.images < make_plan().images
    assert differences(tmp_path / "set", local) == []
    again = fake_world.export(tmp_path / "set")
    assert again.complete
    assert again.images == 0
    assert differences(tmp_path / "set", local) == []


SCRIPT = """
import sys
import fake_world, torch
torch.set_num_threads(1)
report = fake_world.export(sys.argv[1], engine="torchrun")
print("complete:", report.complete, "images:", report.images)
"""


def test_ranks_end_when_rank_0_gives_up(tmp_path: Path) -> None:
    """Twice: what an earlier run said does not end the next one before its time."""
    settings: dict[str, Any] = {"engine": "torchrun", "world_size": 2, "plan": {"budget": 1}}
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            ranks = [pool.submit(fake_world.export, tmp_path / "set", rank=r, **settings) for r in (0, 1)]
            errors = [rank.exception(timeout=60) for rank in ranks]
        assert [type(error) for error in errors] == [BudgetError, BudgetError]
        assert str(errors[1]).startswith("rank 0 stopped: the budget is spent")


def test_a_missing_rank_is_named_and_may_come_late(
    local: dict[str, bytes | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules[ExportReport.__module__], "_PATIENCE", 0.1)
    settings: dict[str, Any] = {"engine": "torchrun", "world_size": 2}
    said, told = "", "for rank 1 to finish"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fake_world.export, tmp_path / "set", rank=0, **settings)
        while told not in said and not first.done():
            time.sleep(0.05)
            said += capfd.readouterr().err
        second = pool.submit(fake_world.export, tmp_path / "set", rank=1, **settings)
        assert first.result(timeout=60).complete
        assert not second.result(timeout=60).complete
    assert told in said
    assert "start it: RANK=1 WORLD_SIZE=2" in said
    assert differences(tmp_path / "set", local) == []


@pytest.mark.slow
def test_torchrun_ranks_share_a_set(local: dict[str, bytes | None], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "script.py", "set"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines() if line.startswith("complete:")]
    assert sorted(line[1] for line in told) == ["False", "True"]
    assert [int(line[3]) for line in told] == [make_plan().images // 2] * 2
    assert differences(tmp_path / "set", local) == []


# --- ray --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Murder:
    """Kills its own process in the middle of one of the first shards, once."""

    marker: Path

    def __call__(self, w: Tensor) -> None:
        if (self.marker.parent / "set" / "gate.json").exists():
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Mistake:
    """User code that raises while actors make shards; the first `times` times."""

    marker: Path
    times: int
    driver: int = field(default_factory=os.getpid)

    def __call__(self, w: Tensor) -> None:
        if os.getpid() != self.driver and (self.marker.parent / "set" / "gate.json").exists():
            with self.marker.open("a") as f:
                f.write(".")
            if self.marker.stat().st_size <= self.times:
                raise RuntimeError("a mistake of the user's")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two CPUs' worth of Ray, whose workers find this folder."""
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FAKE_WORLD_UNIT": "40"}
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment},
        object_store_memory=100 * 2**20,
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("actors", [1, 2])
def test_ray_outlives_its_actors(cluster: Any, local: dict[str, bytes | None], tmp_path: Path, actors: int) -> None:
    marker = tmp_path / "died"
    report = fake_world.export(tmp_path / "set", engine="ray", actors=actors, world={"trouble": Murder(marker)})
    assert marker.exists()
    assert report.complete
    assert differences(tmp_path / "set", local) == []


@pytest.mark.slow
def test_ray_forgives_two_mistakes_and_reports_the_third(
    cluster: Any, local: dict[str, bytes | None], tmp_path: Path
) -> None:
    marker = tmp_path / "count"
    with pytest.raises(DataError, match=r"shard \d+ failed 3 times") as raised:
        fake_world.export(tmp_path / "set", engine="ray", actors=1, world={"trouble": Mistake(marker, 10**6)})
    assert "a mistake of the user's" in str(raised.value)
    marker.unlink()
    report = fake_world.export(tmp_path / "set", engine="ray", actors=1, world={"trouble": Mistake(marker, 2)})
    assert marker.stat().st_size > 2
    assert report.complete
    assert differences(tmp_path / "set", local) == []


@pytest.mark.slow
def test_ray_waits_for_room_and_says_so(
    cluster: Any, local: dict[str, bytes | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """No actor fits beside another job; when that has ended two of three do, and they do all the work."""
    monkeypatch.setattr(engines, "_PATIENCE", 0.1)
    job = cluster.remote(num_cpus=2)(Job).remote()
    cluster.get(job.begin.remote())
    said, end = "", time.monotonic() + 60
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(fake_world.export, tmp_path / "set", engine="ray", actors=3, world={"delay": 0.05})
        while "ray: " not in said and not run.done() and time.monotonic() < end:
            time.sleep(0.05)
            said += capfd.readouterr().err
        cluster.kill(job)
        assert run.result(timeout=120).complete
    assert "2 of 2 actors load the models or wait for room. " in said  # the first round has two units
    assert "free in the cluster: 0 of 2 CPUs" in said
    assert re.search(r"[12] of 3 actors load the models or wait for room; [12] at work", capfd.readouterr().err)
    assert differences(tmp_path / "set", local) == []


class Job:
    """Somebody else's, in the same cluster."""

    def begin(self) -> None:
        """Answers when it runs."""


@pytest.mark.slow
def test_ray_reports_actors_that_cannot_load_the_models(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Ray actor starts") as raised:
        fake_world.export(tmp_path / "set", engine="ray", actors=2, world={"trouble": Unloadable()})
    assert "no driver for this device" in str(raised.value)


@dataclass(frozen=True)
class Unloadable:
    """A model that can be sent from this process, and not be loaded in another one."""

    driver: int = field(default_factory=os.getpid)

    def __call__(self, w: Tensor) -> None:
        """Nothing."""

    def __setstate__(self, state: dict[str, int]) -> None:
        if os.getpid() != state["driver"]:
            raise RuntimeError("no driver for this device")
        self.__dict__.update(state)


def test_errors_of_the_disk_may_pass_unless_it_is_full(tmp_path: Path) -> None:
    """What an actor's task raises ends the export if it is a DataError; anything else is tried again."""

    @dataclass(frozen=True)
    class Disk:
        code: int
        root: Path = tmp_path

        def do(self, task: Task) -> float:
            raise OSError(self.code, os.strerror(self.code))

    for code in (errno.ENOSPC, errno.EROFS):
        with pytest.raises(DataError, match=str(tmp_path)):
            engines._Actor(cast(Worker, Disk(code))).do(Task(0))
    for code in (errno.ENOENT, errno.EIO, errno.ESTALE):
        with pytest.raises(OSError, match=os.strerror(code)):
            engines._Actor(cast(Worker, Disk(code))).do(Task(0))


@given(st.integers(0, 40), st.integers(0, 9), st.integers(0, 10_000), st.integers(1, 9))
def test_as_many_actors_as_can_be_placed_one_by_one(cpus: int, gpus: int, share: int, whole: int) -> None:
    """Shares of a GPU come from one GPU; every actor takes a CPU."""
    node = {"CPU": float(cpus), "GPU": float(gpus)}
    free, placed = [10_000] * gpus, 0
    while placed < cpus and any(x >= share for x in free or [0 if share == 0 else -1]):
        if free:
            free[next(i for i, x in enumerate(free) if x >= share)] -= share
        placed += 1
    assert engines._fit(node, share / 10_000) == placed
    assert engines._fit(node, whole) == min(cpus, gpus // whole)


@pytest.mark.parametrize("settings", [{"actors": 0}, {"actors": -1}, *({"gpus_per_actor": x} for x in (-0.5, 1.5))])
def test_actors_that_cannot_be(settings: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"got: +{next(iter(settings.values()))}"):
        fake_world.export(tmp_path / "set", engine="ray", **settings)
    assert not (tmp_path / "set").exists()
