"""Who does the work of a set: this process, the ranks of torchrun or of a job array, or Ray actors.

All work is tasks that leave a finished file behind and do nothing where it is there. No engine schedules anything
itself: ranks take every world_size-th task, Ray hands tasks to whichever actor is free.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ..errors import DataError
from .gate import GateFiles, Round, make_unit, read_identities
from .making import Identities, Maker
from .storage import is_done
from .writing import write_shard

Engine = Literal["local", "torchrun", "ray"]
_ATTEMPTS = 3  # at a task whose actor died or raised


class Task(NamedTuple):
    """A unit of candidates of a round, or, without a round, a shard."""

    number: int
    round: Round | None = None

    def __str__(self) -> str:
        return f"shard {self.number}" if self.round is None else f"round {self.round.number}, unit {self.number}"


@dataclass(frozen=True)
class Worker:
    """Does tasks; knows nothing of other workers."""

    maker: Maker
    root: Path

    def do(self, task: Task) -> float:
        """Do a task unless it is done; returns the seconds it took, 0 where it was done."""
        if self.is_done(task):
            return 0.0
        start = time.monotonic()
        if task.round is not None:
            make_unit(self.maker, GateFiles(self.root), task.round, task.number)
        else:
            shard = self.maker.plan.shard(task.number)
            write_shard(self.root, self.maker.plan, shard, self._shard_maker.rows(shard, self._identities))
        return time.monotonic() - start

    def is_done(self, task: Task) -> bool:
        """Whether a task has left its file."""
        if task.round is not None:
            return GateFiles(self.root).unit(task.round.number, task.number).exists()
        return is_done(self.root, self.maker.plan, self.maker.plan.shard(task.number))

    @cached_property
    def _identities(self) -> Identities:
        return read_identities(self.root)

    @cached_property
    def _shard_maker(self) -> Maker:
        gate = json.loads(GateFiles(self.root).done.read_text())
        return replace(self.maker, threshold=gate["threshold"])


Finished = Callable[[Task, float], None]


@dataclass(frozen=True)
class Ranks:
    """This process is one of world_size, and does every world_size-th task; rank 0 settles rounds and finishes."""

    rank: int = 0
    world_size: int = 1

    def run(self, worker: Worker, tasks: Sequence[Task], finished: Finished) -> None:
        """Do this rank's share of the tasks, calling `finished(task, seconds)` after each."""
        for task in tasks[self.rank :: self.world_size]:
            finished(task, worker.do(task))

    def close(self) -> None:
        """Nothing to end."""


class RayActors:
    """Ray actors hold the models; a task whose actor died or raised is given to another one, three times at most."""

    rank, world_size = 0, 1

    def __init__(self, actors: int, gpus_per_actor: float) -> None:
        self.actors, self.gpus_per_actor = actors, gpus_per_actor
        self._pool: list[Any] = []

    def run(self, worker: Worker, tasks: Sequence[Task], finished: Finished) -> None:
        """Hand out the tasks, calling `finished(task, seconds)` after each; returns when all are done."""
        import ray

        waiting = deque(task for task in tasks if not worker.is_done(task))
        self._grow(worker, min(self.actors, len(waiting)))
        idle, busy, attempts = deque(self._pool), dict[Any, tuple[Any, Task]](), dict[Task, int]()
        while waiting or busy:
            while waiting and idle:
                actor, task = idle.popleft(), waiting.popleft()
                busy[actor.do.remote(task)] = actor, task
            ready, _ = ray.wait(list(busy), num_returns=1)
            actor, task = busy.pop(ready[0])
            idle.append(actor)
            try:
                finished(task, ray.get(ready[0]))
            except ray.exceptions.RayError as error:
                attempts[task] = attempts.get(task, 0) + 1
                if attempts[task] == _ATTEMPTS or isinstance(getattr(error, "cause", None), (DataError, OSError)):
                    raise _cause(error, task) from error
                waiting.append(task)

    def _grow(self, worker: Worker, size: int) -> None:
        """As many actors as `size`; they load the models once and stay until `close`."""
        import ray

        if len(self._pool) < size:
            # Without the bar: it lives in this process.
            shared = ray.put(Worker(replace(worker.maker, progress=_nothing), worker.root))
            remote: Any = ray.remote(num_cpus=1, num_gpus=self.gpus_per_actor, max_restarts=-1)(_Actor)
            self._pool += [remote.remote(shared) for _ in range(size - len(self._pool))]

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in self._pool:
            ray.kill(actor)
        self._pool = []


class _Actor:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def do(self, task: Task) -> float:
        return self._worker.do(task)


def _cause(error: Any, task: Task) -> Exception:
    cause = getattr(error, "cause", None)
    if isinstance(cause, (DataError, OSError)):
        return cause
    return DataError(
        f"{task} failed {_ATTEMPTS} times",
        expected="a shard",
        got=str(cause or error).strip().splitlines()[-1],
        fix="read the actor's log (ray logs); run the same command to go on: what is finished is kept",
    )


Crew = Ranks | RayActors


def _nothing(n: int) -> None:
    """Reports no progress."""


def crew_of(
    engine: str, rank: int | None, world_size: int | None, actors: int | None, gpus_per_actor: float | None
) -> Crew:
    """The crew of an engine.

    Args:
        engine: "local", "torchrun" or "ray".
        rank, world_size: of "torchrun"; by default RANK and WORLD_SIZE of the environment.
        actors, gpus_per_actor: of "ray"; by default one actor for each GPU of the cluster, or for each CPU.

    Raises:
        DataError: an unknown engine, settings of another one, or no ranks.
    """
    if engine not in get_args(Engine):
        raise DataError("unknown engine", expected=", ".join(get_args(Engine)), got=repr(engine))
    if engine != "ray" and (actors is not None or gpus_per_actor is not None):
        raise DataError("actors are Ray's", expected='engine="ray"', got=engine)
    if engine != "torchrun" and (rank is not None or world_size is not None):
        raise DataError("ranks are torchrun's, or a job array's", expected='engine="torchrun"', got=engine)
    if engine == "torchrun":
        return _ranks(rank, world_size)
    return Ranks() if engine == "local" else _ray(actors, gpus_per_actor)


def _ranks(rank: int | None, world_size: int | None) -> Ranks:
    try:
        rank = int(os.environ["RANK"]) if rank is None else rank
        world_size = int(os.environ["WORLD_SIZE"]) if world_size is None else world_size
    except (KeyError, ValueError) as error:
        raise DataError(
            "this process has no rank",
            expected="RANK and WORLD_SIZE in the environment, or rank= and world_size=",
            got=error,
            fix="torchrun --nproc-per-node=8 your_script.py; in a job array: RANK=$TASK_ID WORLD_SIZE=$TASKS python …",
        ) from error
    if not 0 <= rank < world_size:
        raise DataError("ranks count from 0", expected=f"0 ≤ rank < {world_size}", got=rank)
    return Ranks(rank, world_size)


def _ray(actors: int | None, gpus_per_actor: float | None) -> RayActors:
    try:
        import ray
    except ImportError as error:
        raise DataError(
            "Ray is not installed", expected="the extra [ray]", got=error, fix="pip install 'fairface_synth[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0.0)
    each = (1.0 if gpus else 0.0) if gpus_per_actor is None else gpus_per_actor
    fit = int(gpus / each + 1e-9) if each else int(resources.get("CPU", 1))
    if fit < 1:
        raise DataError("no actor fits the cluster", expected=f"{each} GPUs", got=f"{gpus} GPUs")
    return RayActors(fit if actors is None else actors, each)
