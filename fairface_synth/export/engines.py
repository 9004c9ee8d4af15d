"""Who does the work of a set: this process, the ranks of torchrun or of a job array, or Ray actors.

All work is tasks that leave a finished file behind and do nothing where it is there. No engine schedules anything
itself: ranks take every world_size-th task, Ray hands tasks to whichever actor is free.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ..errors import DataError
from .disk import disk_errors
from .gate import GateFiles, Round, make_unit, read_identities
from .making import Identities, Maker
from .storage import is_done
from .writing import write_shard

Engine = Literal["local", "torchrun", "ray"]
_ATTEMPTS = 3  # at a task whose actor died or raised, or at starting an actor
_PATIENCE = 15.0  # seconds of silent waiting for actors to start


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
    """Ray actors hold the models; a task whose actor died or raised is given to another one, three times at most.

    An actor gets tasks once it has answered, so that none waits for an actor that the cluster has no room for. One
    that failed is ended and another one started: a process whose device failed would fail at every other task too.
    """

    rank, world_size = 0, 1

    def __init__(self, actors: int, gpus_per_actor: float) -> None:
        self.actors, self.gpus_per_actor = actors, gpus_per_actor
        self._pool, self._idle = list[Any](), deque[Any]()
        self._calls = dict[Any, tuple[Any, Task | None]]()  # what is waited for: actor and task, None while it starts
        self._shared: Any = None  # the worker in Ray's store: it is there as long as it is referred to
        self._notice = math.inf  # when to say that actors have not started

    def run(self, worker: Worker, tasks: Sequence[Task], finished: Finished) -> None:
        """Hand out the tasks, calling `finished(task, seconds)` after each; returns when all are done.

        Raises:
            DataError: a task's own; or a task failed three times, or no actor starts.
        """
        from ray.exceptions import RayError

        waiting, attempts = deque(task for task in tasks if not worker.is_done(task)), Counter[Task | None]()
        self._start(worker, min(self.actors, len(waiting)) - len(self._pool))
        while waiting or any(task is not None for _, task in self._calls.values()):
            while waiting and self._idle:
                self._call(self._idle.popleft(), waiting.popleft())
            for actor, task, result in self._results():
                if not isinstance(result, RayError):
                    attempts[task] = 0
                    self._idle.append(actor)
                    if task is not None:
                        finished(task, result)
                    continue
                self._end(actor)
                attempts[task] += 1
                if attempts[task] < _ATTEMPTS and not isinstance(_cause(result), DataError):
                    self._start(worker, 1)
                    waiting.extendleft([] if task is None else [task])  # next: a mistake is soon told
                elif task is not None or not self._pool:  # where one does not start, the others go on
                    raise _failure(task, _cause(result)) from result

    def _call(self, actor: Any, task: Task | None) -> None:
        self._calls[actor.ready.remote() if task is None else actor.do.remote(task)] = actor, task

    def _results(self) -> list[tuple[Any, Task | None, Any]]:
        """(actor, task, seconds or a RayError) of calls that have ended; tells the user what is waited for."""
        import ray

        seconds = None if self._notice == math.inf else max(0.0, self._notice - time.monotonic())
        ended, _ = ray.wait(list(self._calls), timeout=seconds)
        results = [(*self._calls.pop(call), _result(call)) for call in ended]
        starting = sum(task is None for _, task in self._calls.values())
        if not starting:
            self._notice = math.inf
        elif time.monotonic() >= self._notice:
            others = len(self._pool) - starting
            self._notice = math.inf if others else time.monotonic() + 60
            print(_not_started(starting, others, self.gpus_per_actor), file=sys.stderr, flush=True)
        return results

    def _start(self, worker: Worker, count: int) -> None:
        """More actors; they load the models once and stay until `close`."""
        import ray

        if count < 1:
            return
        if self._shared is None:
            # Without the bar: it lives in this process.
            self._shared = ray.put(Worker(replace(worker.maker, progress=_nothing), worker.root))
        remote: Any = ray.remote(num_cpus=1, num_gpus=self.gpus_per_actor)(_Actor)
        for _ in range(count):
            self._pool.append(remote.remote(self._shared))
            self._call(self._pool[-1], None)
        self._notice = time.monotonic() + _PATIENCE

    def _end(self, actor: Any) -> None:
        """It may still be at work, cut off from this process."""
        import ray

        ray.kill(actor)
        self._pool.remove(actor)

    def close(self) -> None:
        """End the actors."""
        for actor in list(self._pool):
            self._end(actor)
        self._idle.clear()
        self._calls, self._shared = {}, None


class _Actor:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def ready(self) -> None:
        """Answers when the models are loaded."""

    def do(self, task: Task) -> float:
        with disk_errors(self._worker.root):  # these end the export; others may pass, as on a network's disk
            return self._worker.do(task)


def _result(call: Any) -> Any:
    import ray

    try:
        return ray.get(call)
    except ray.exceptions.RayError as error:
        return error


def _cause(error: Any) -> Exception:
    """What the actor raised; the error itself where the actor died."""
    return getattr(error, "cause", None) or error


def _failure(task: Task | None, cause: Exception) -> DataError:
    if isinstance(cause, DataError):
        return cause
    return DataError(
        "no Ray actor starts" if task is None else f"{task} failed {_ATTEMPTS} times",
        expected="actors that load the models" if task is None else "a file",
        got=f"{type(cause).__name__}: {cause}".strip().splitlines()[-1],
        fix="read the actor's log (ray logs); run the same command to go on: what is finished is kept",
    )


def _not_started(starting: int, others: int, gpus: float) -> str:
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    has = " and ".join(f"{free.get(x, 0):g} of {total.get(x, 0):g} {x}s" for x in ("CPU", "GPU"))
    then = f"; {others} at work" if others else ""
    return (
        f"ray: {starting} of {starting + others} actors load the models or wait for room{then}. "
        f"Each needs 1 CPU and {gpus:g} GPUs of one node; free in the cluster: {has}"
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
        actors, gpus_per_actor: of "ray"; by default as many as fit: one for each GPU of the cluster, or for each CPU.

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
    if actors is not None and actors < 1:
        raise DataError("nobody would do the work", expected="actors ≥ 1", got=actors)
    each = gpus_per_actor
    if each is not None and not (0 <= each <= 1 or (each > 1 and each % 1 == 0)):
        raise DataError("Ray cannot give such a share", expected="gpus_per_actor: 0 to 1, or a whole number", got=each)
    try:
        import ray
    except ImportError as error:
        raise DataError(
            "Ray is not installed", expected="the extra [ray]", got=error, fix="pip install 'fairface_synth[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if each is None:
        each = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
    fit = sum(_fit(node, each) for node in nodes)
    if fit < 1:
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise DataError("no actor fits the cluster", expected=f"1 CPU and {each:g} GPUs on a node", got=has)
    return RayActors(fit if actors is None else actors, each)


def _fit(node: Mapping[str, float], gpus: float) -> int:
    """How many actors fit on a node, each with a CPU, and with whole GPUs or a share of one."""
    cpus, devices = int(node.get("CPU", 0)), int(node.get("GPU", 0))
    if gpus == 0:
        return cpus
    return min(cpus, devices * int(1 / gpus + 1e-9) if gpus < 1 else devices // int(gpus))
