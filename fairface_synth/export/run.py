"""`export`: fill a plan on disk, and go on where an earlier run was stopped."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..artifacts import write_json
from ..errors import BudgetError, DataError
from ..label_noise import Confusion
from ..models.protocols import Embedder, Labeller
from ..people import Source, check_source, impostors_for
from ..thresholds import Threshold
from ..variations import Axis, Detector
from .datasheet import SHEET, check_datasheet, write_datasheet
from .disk import disk_errors
from .engines import Crew, Task, Worker, crew_of
from .estimate import ExportEstimate, estimate
from .gate import Gate, GateFiles, Round, read_round
from .joining import finish
from .making import Maker, gather, set_threshold
from .plan import DatasetPlan
from .provenance import first_command, heads, read_json, refuse_others
from .readers import open_dataset
from .session import Log, lock
from .writing import clean

_PATIENCE = 15.0  # seconds of silent waiting for other ranks


@dataclass(frozen=True)
class ExportReport:
    """What a run of `export` did.

    Attributes:
        path: of the set.
        plan: of the set.
        complete: whether the set is finished; of several ranks only rank 0 says so.
        images: made by this process in this run.
        seconds: of this run.
        gate: counts of the identity gate (gate.json).
    """

    path: Path
    plan: DatasetPlan
    complete: bool
    images: int
    seconds: float
    gate: Mapping[str, Any]

    def __str__(self) -> str:
        state = "finished" if self.complete else "this rank's share is done"
        rate = f", {self.images / self.seconds:,.0f} images/s all told" if self.images else ""
        drawn, taken = (sum(self.gate[name].values()) for name in ("candidates", "accepted"))
        return (
            f"{self.path}: {state}. {self.plan.images:,} images of {self.plan.identities:,} identities in "
            f"{self.plan.shards:,} shards; {drawn:,} candidates for {taken:,} identities. This run made "
            f"{self.images:,} images in {self.seconds:,.0f} s{rate}."
        )


def export(
    source: Source,
    plan: DatasetPlan,
    path: str | os.PathLike[str],
    engine: str = "local",
    *,
    axes: Axis | Sequence[Axis] | None = None,
    labeller: Labeller | None = None,
    judge: Labeller | None = None,
    detector: Detector | None = None,
    embedder: Embedder | None = None,
    threshold: Threshold | float | None = None,
    reference: Tensor | None = None,
    confusion: Confusion | None = None,
    licence: Mapping[str, str] | None = None,
    threads: int = 2,
    batch_size: int = 256,
    rank: int | None = None,
    world_size: int | None = None,
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    dry_run: bool = False,
    progress: bool = True,
    audit: int = 2000,
    command: str | None = None,
) -> ExportReport | ExportEstimate:
    """Make the set of a plan in a folder; run again after any interruption, it does what is missing.

    First the identities are found, each new in the whole set, then the shards are made. A shard is written under a
    temporary name, synced, renamed, and its json file is the mark that it is done. The files depend on the plan and
    the models alone, not on engine, ranks, threads or restarts; images made on another kind of device may differ in
    single bits, and the stored latents are what counts.

    >>> plan = ffs.plan_dataset(100, images_per_identity=10, groups=pipeline.groups)
    >>> ffs.export(pipeline, plan, "set", dry_run=True)  # counts, bytes, hours
    >>> ffs.export(pipeline, plan, "set")

    Args:
        source: a `Pipeline`, or an object with generator, groups and latents (screen for plan.method="screen").
        plan: of `plan_dataset`.
        path: folder of the set: a new one, or one that an export of the same plan has begun.
        engine: "local": this process. "torchrun": this is one of several processes that share a file system, each
            with RANK and WORLD_SIZE in its environment: torchrun, or a job array. "ray": actors of a Ray cluster
            that hold the models (extra [ray]).
        axes: what variations move along, as in `stream`; None: towards another face of the group.
        labeller, detector, embedder: instead of the source's own.
        judge: a labeller that selects nothing, for the datasheet's shares.
        threshold: cosine from which two faces are one person; by default measured on natural faces at plan.fmr.
        reference: embeddings [m, e] of people who must not be in the set, such as the generator's training faces.
        confusion: of the labeller, for the datasheet (`fit_confusion`).
        licence: for the datasheet: {"name": …, "url": …, "generator licence": …, "text": of the file LICENSE}.
        threads: that encode images beside synthesis.
        batch_size: images held before they are written. What a forward pass sees is plan.forward_batch.
        rank, world_size: of "torchrun", instead of the environment's.
        actors, gpus_per_actor: of "ray"; by default as many as fit, one for each GPU, or for each CPU.
        dry_run: make and time a few batches, write nothing.
        progress: show a bar.
        audit: identities that the datasheet looks at: their faces, and the labels of one other image of each.
        command: for the datasheet, of the set's first run; by default that of this process.

    Returns:
        `ExportReport`, or `ExportEstimate` of a dry run.

    Raises:
        DataError: a part that the plan needs is missing; the folder holds another plan's set or one of other models;
            another process is writing it; the plan's budget is spent before all identities are found; the disk is
            full or read-only. What is finished is kept in every case.
    """
    start, root = time.monotonic(), Path(path)
    if not isinstance(plan, DatasetPlan):
        raise DataError("this is no plan", expected="ffs.plan_dataset(…)", got=f"a {type(plan).__name__}")
    given: dict[str, Any] = {"labeller": labeller, "judge": judge, "detector": detector, "embedder": embedder}
    given |= {"threshold": threshold, "reference": reference, "confusion": confusion}
    source = SimpleNamespace(**source) if isinstance(source, Mapping) else source
    check_source(source, plan.method)
    has_embedder = embedder is not None or getattr(source, "embedder", None) is not None
    if plan.fmr == "auto" and not has_embedder:
        warnings.warn("no embedder: nobody checks that the identities of this set differ", stacklevel=2)
    plan = plan.resolve(source.groups, embedder=has_embedder)
    parts = gather(source, plan, axes, **given)
    if min(threads, batch_size) < 1:
        raise DataError("nothing would be done", expected="threads ≥ 1, batch_size ≥ 1", got=f"{threads}, {batch_size}")
    check_datasheet(
        parts.groups,
        labeller=parts.labeller,
        judge=judge,
        confusion=confusion,
        reference=reference,
        licence=licence,
        min_confidence=parts.min_confidence,
        audit=audit,
    )
    maker = Maker(plan, parts, threads=threads, ahead=batch_size)
    if judge is not None and judge is parts.labeller:
        warnings.warn("the judge is the labeller: its verdict on the set proves nothing", stacklevel=2)
    refuse_others(root, maker)
    if dry_run:
        return estimate(maker, root)
    crew = crew_of(engine, rank, world_size, actors, gpus_per_actor)
    sheet = {"licence": licence, "audit": audit}
    with closing(crew), disk_errors(root), lock(root, crew.rank), Log(root, crew.rank) as log:
        before = _written(GateFiles(root).stopped)
        run = _Run(maker, root, crew, log, progress, command or " ".join(sys.argv), before)
        run.prepare()
        gate = run.find_identities()
        images = run.make_shards()
        if crew.rank == 0:
            run.finish(sheet)
        log.write("end", images=images)
    return ExportReport(root, plan, crew.rank == 0, images, time.monotonic() - start, gate)


@dataclass(frozen=True)
class _Run:
    maker: Maker
    root: Path
    crew: Crew
    log: Log
    progress: bool
    command: str
    before: int | None  # when an earlier run gave up

    @property
    def plan(self) -> DatasetPlan:
        return self.maker.plan

    @property
    def files(self) -> GateFiles:
        return GateFiles(self.root)

    def prepare(self) -> None:
        """Begin the set, or compare with what was begun."""
        for name, values in heads(self.maker).items():
            path = self.root / name
            if self.crew.rank > 0:
                self._wait(path.exists, partial("rank 0 to write {}".format, name))
            if not path.exists():
                told = {"command": first_command(self.root) or self.command} if name == "parts.json" else {}
                write_json(path, values | told)
        refuse_others(self.root, self.maker)

    def find_identities(self) -> Mapping[str, Any]:
        """Rounds of candidates until every group has its identities."""
        if self.files.complete():
            return read_json(self.files.done)
        if self.crew.rank == 0 and self.files.done.exists():
            print(
                f"{self.root}: the identities' files are not what gate.json says; finding them again", file=sys.stderr
            )
            self.files.done.unlink()
        gate, number = self._gate() if self.crew.rank == 0 else None, 0
        while not self.files.complete():
            path = self.files.round(number)
            self._wait(partial(self._is_settled, path), partial("rank 0 to settle round {}".format, number))
            if self.files.complete():
                break
            wanted, _ = read_round(path)
            tasks = [Task(u, wanted) for u in range(wanted.units)]
            worker = Worker(self.maker, self.root)
            self._do(worker, tasks, tasks, f"candidates, round {number}")
            if gate is not None:
                self._wait_for(worker, tasks)
                self._write_round(gate, self._settled(gate, wanted), number + 1)
            number += 1
        return read_json(self.files.done)

    def _do(self, worker: Worker, tasks: Sequence[Task], missing: Sequence[Task], what: str) -> int:
        """This process's share of the tasks, with a bar; returns how many images or candidates it made."""
        own, made = tasks[self.crew.rank :: self.crew.world_size], 0
        there = sum(map(self._size, own)) - sum(map(self._size, missing))
        what += f", rank 0 of {self.crew.world_size}" if self.crew.world_size > 1 else ""
        with self._bar(sum(map(self._size, own)), what, there) as bar:

            def finished(task: Task, seconds: float) -> None:
                nonlocal made
                made += self._size(task) if seconds else 0
                bar.update(max(0, there + made - bar.n))  # unless the worker has said so image by image
                self._note(task, seconds)

            worker = replace(worker, maker=replace(worker.maker, progress=bar.update))
            self.crew.run(worker, tasks if self.crew.world_size > 1 else missing, finished)
        return made

    def _size(self, task: Task) -> int:
        """Images or candidates of a task."""
        if task.round is None:
            return self.plan.shard(task.number).images
        return task.round.size(task.number)

    def _settled(self, gate: Gate, wanted: Round) -> Round | None:
        """The next round; where there is none to be, other ranks are told before they wait for it."""
        try:
            return gate.settle(wanted)
        except BudgetError as error:
            write_json(self.files.stopped, str(error))
            raise

    def _is_settled(self, following: Path) -> bool:
        return following.exists() or self.files.complete()

    def _gate(self) -> Gate:
        """The gate, with the first round written."""
        first = self.files.round(0)
        start = time.monotonic()
        fmr, measured = self.plan.fmr, self.maker.parts.threshold is None and not first.exists()
        if self.progress and measured and isinstance(fmr, float):
            many = f"measuring the cosine of FMR {fmr:g} on {impostors_for(fmr):,} natural faces …"
            print(many, file=sys.stderr, flush=True)
        threshold = read_round(first)[1] if first.exists() else set_threshold(self.maker, self.progress)
        self.log.write("threshold", cosine=threshold, seconds=round(time.monotonic() - start, 3))
        parts, device = self.maker.parts, self.maker.device
        gate = Gate(self.plan, parts.groups, self.files, threshold, parts.reference, device)
        if not first.exists():
            self._write_round(gate, gate.first_round(), 0)
        return gate

    def _write_round(self, gate: Gate, wanted: Round | None, number: int) -> None:
        if wanted is None:
            gate.write(number)
            self.log.write("identities", **gate.summary(number))
        else:
            write_json(self.files.round(number), wanted._asdict() | {"threshold": gate.threshold})

    def make_shards(self) -> int:
        """This process's shards; returns the images made."""
        worker = Worker(self.maker, self.root)
        tasks = [Task(k) for k in range(self.plan.shards)]
        own = tasks[self.crew.rank :: self.crew.world_size]
        made = self._do(worker, tasks, [task for task in own if not worker.is_done(task)], "images")
        if self.crew.rank == 0:
            self._wait_for(worker, tasks)
        return made

    def finish(self, sheet: Mapping[str, Any]) -> None:
        """Join, describe, and tidy up."""
        finish(self.root, self.plan)
        if not all((self.root / name).exists() for name in SHEET):
            parts, data = self.maker.parts, open_dataset(self.root, latents=False)
            kept = read_json(self.root / "parts.json")
            write_datasheet(
                self.root,
                self.plan,
                groups=parts.groups,
                fingerprint=kept["fingerprint"],
                describe=kept["describe"],
                command=kept["command"],
                images=lambda numbers: torch.stack([data[i]["image"] for i in numbers]).to(self.maker.device),
                labeller=parts.labeller,
                judge=parts.judge,
                detector=parts.detector,
                embedder=parts.embedder,
                min_confidence=parts.min_confidence,
                confusion=parts.confusion,
                reference=parts.reference,
                **sheet,
            )
        clean(self.root, self.plan)
        for draft in (self.root / "figures").glob(".*.tmp"):
            draft.unlink()
        shutil.rmtree(self.files.work, ignore_errors=True)

    def _note(self, task: Task, seconds: float) -> None:
        if seconds:
            images = 0 if task.round is not None else self._size(task)
            rate = {"images": images, "images_per_second": round(images / seconds, 2)} if images else {}
            self.log.write(str(task), seconds=round(seconds, 3), **rate)

    def _wait_for(self, worker: Worker, tasks: Sequence[Task]) -> None:
        left = list(enumerate(tasks))

        def done() -> bool:
            left[:] = [(place, task) for place, task in left if not worker.is_done(task)]
            return not left

        def others() -> str:
            ranks = sorted({place % self.crew.world_size for place, _ in left})
            listed = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
            return (
                f"rank {listed} to finish {len(left)} of {len(tasks)} tasks, {left[0][1]} first; if it is not running, "
                f"start it: RANK={ranks[0]} WORLD_SIZE={self.crew.world_size}, the same command"
            )

        self._wait(done, others)

    def _wait(self, ready: Callable[[], bool], what: Callable[[], str]) -> None:
        """Poll the shared folder; says what it waits for, soon and then once a minute.

        Raises:
            BudgetError: rank 0 has given up meanwhile.
        """
        say, pause = time.monotonic() + _PATIENCE, 0.02
        while not ready():
            if self.crew.rank > 0 and _written(self.files.stopped) not in (None, self.before):
                raise BudgetError(f"rank 0 stopped: {read_json(self.files.stopped)}")
            time.sleep(pause)
            pause = min(1.5 * pause, 2.0)
            if time.monotonic() > say:
                say = time.monotonic() + 60
                print(f"rank {self.crew.rank}: waiting in {self.root} for {what()}", file=sys.stderr, flush=True)

    def _bar(self, total: int, what: str, initial: int = 0) -> Any:
        from tqdm.auto import tqdm

        hidden = not self.progress or self.crew.rank > 0
        return tqdm(total=total, initial=initial, desc=what, unit="img", disable=hidden, smoothing=0.05)


def _written(path: Path) -> int | None:
    """When a file was written, if it is there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None
