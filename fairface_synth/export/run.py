"""`export`: fill a plan on disk, and go on where an earlier run was stopped."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..artifacts import write_json
from ..errors import DataError
from ..fingerprints import fingerprint, fingerprint_generator, fingerprint_model
from ..identities import Threshold
from ..label_noise import Confusion
from ..models.protocols import Embedder, Generator, Labeller
from ..people import Source, check_source, natural_threshold
from ..variations import Axis, Detector
from .datasheet import check_datasheet, write_datasheet
from .disk import disk_errors
from .engines import Crew, Task, Worker, crew_of
from .gate import Gate, GateFiles, Round, read_round
from .joining import finish
from .making import Identities, Maker, gather
from .plan import DatasetPlan, Shard
from .readers import open_dataset
from .writing import clean

SHEET = ("dataset.json", "README.md", "croissant.json")
_PROBE_TOLERANCE = 1e-3  # of latents, between devices


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


@dataclass(frozen=True)
class ExportEstimate:
    """What a set will cost, from a few batches made for the purpose.

    Attributes:
        plan: of the set.
        images_per_second: drawing, synthesis and encoding, with same_person its checks, of one process on this device.
        candidates_per_second: drawing, and looking at, candidates.
        confirmed: share of the candidates that the plan's labeller and detector confirm. Candidates that are like
            somebody before come on top, and are not foreseen.
        bytes: on disk, without the margins of file systems.
        work: bytes that candidates take until the set is finished.
        seconds: of one process.
        free: bytes that the disk has left.
    """

    plan: DatasetPlan
    images_per_second: float
    candidates_per_second: float
    confirmed: float
    bytes: int
    work: int
    seconds: float
    free: int

    def __str__(self) -> str:
        room = "enough" if self.free > 1.1 * (self.bytes + self.work) else "NOT ENOUGH"
        return (
            f"{self.plan}\n"
            f"disk:  {_gigabytes(self.bytes)}, and {_gigabytes(self.work)} until the set is finished; "
            f"free: {_gigabytes(self.free)} ({room})\n"
            f"time:  {self.seconds / 3600:.2g} hours of one process on this device: {self.images_per_second:,.1f} "
            f"images/s, {self.candidates_per_second:,.1f} candidates/s of which {self.confirmed:.0%} are confirmed; "
            "candidates like somebody before come on top\n"
            "Nothing was written."
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
        licence: for the datasheet: {"name": …, "url": …, "generator licence": …}.
        threads: that encode images beside synthesis.
        batch_size: images held before they are written. What a forward pass sees is plan.forward_batch.
        rank, world_size: of "torchrun", instead of the environment's.
        actors, gpus_per_actor: of "ray"; by default an actor for each GPU, or for each CPU where there is none.
        dry_run: make and time a few batches, write nothing.
        progress: show a bar.
        audit: identities that the datasheet looks at.
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
    if dry_run:
        return _estimate(maker, root)
    crew = crew_of(engine, rank, world_size, actors, gpus_per_actor)
    sheet = {"licence": licence, "audit": audit}
    refuse_others(root, maker)
    with disk_errors(root), lock(root, crew.rank), _Log(root, crew.rank) as log:
        run = _Run(maker, root, crew, log, progress, command or " ".join(sys.argv))
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
    log: _Log
    progress: bool
    command: str

    @property
    def plan(self) -> DatasetPlan:
        return self.maker.plan

    @property
    def files(self) -> GateFiles:
        return GateFiles(self.root)

    def prepare(self) -> None:
        """Begin the set, or compare with what was begun."""
        for name, values in _heads(self.maker).items():
            path = self.root / name
            if self.crew.rank > 0:
                self._wait(path.exists, f"rank 0 to write {name}")
            if not path.exists():
                write_json(path, values | ({"command": self.command} if name == "parts.json" else {}))
        refuse_others(self.root, self.maker)

    def find_identities(self) -> Mapping[str, Any]:
        """Rounds of candidates until every group has its identities."""
        if self.files.complete():
            return _read(self.files.done)
        if self.crew.rank == 0:
            self.files.done.unlink(missing_ok=True)  # one that was damaged, or of identities that were lost
        gate, number = self._gate() if self.crew.rank == 0 else None, 0
        with self._bar(self.plan.identities, "identities", "id") as bar:
            while not self.files.complete():
                path = self.files.round(number)
                self._wait(partial(self._is_settled, path), f"rank 0 to settle round {number}")
                if self.files.complete():
                    break
                wanted, _ = read_round(path)
                tasks = [Task(u, wanted) for u in range(wanted.units)]
                worker = Worker(self.maker, self.root)
                self.crew.run(worker, tasks, self._note)
                if gate is not None:
                    self._wait_for(worker, tasks)
                    self._write_round(gate, gate.settle(wanted), number + 1)
                    bar.update(sum(gate.accepted) - bar.n)
                number += 1
        return _read(self.files.done)

    def _is_settled(self, following: Path) -> bool:
        return following.exists() or self.files.complete()

    def _gate(self) -> Gate:
        """The gate, with the first round written."""
        first = self.files.round(0)
        threshold = read_round(first)[1] if first.exists() else _threshold(self.maker)
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
        missing = [task for task in tasks if not worker.is_done(task)]
        there = self.plan.images - sum(self.plan.shard(t.number).images for t in missing)
        made = 0
        with self._bar(self.plan.images, "images", "img", initial=there) as bar:
            worker = Worker(replace(self.maker, progress=bar.update), self.root)

            def note(task: Task, seconds: float) -> None:
                nonlocal made
                made += self.plan.shard(task.number).images if seconds else 0
                self._note(task, seconds)
                bar.refresh()

            self.crew.run(worker, tasks if self.crew.world_size > 1 else missing, note)
            if self.crew.rank == 0:
                self._wait_for(worker, tasks)
        return made

    def finish(self, sheet: Mapping[str, Any]) -> None:
        """Join, describe, and tidy up."""
        finish(self.root, self.plan)
        if not all((self.root / name).exists() for name in SHEET):
            parts, data = self.maker.parts, open_dataset(self.root)
            kept = _read(self.root / "parts.json")
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
            images = 0 if task.round is not None else self.plan.shard(task.number).images
            rate = {"images": images, "images_per_second": round(images / seconds, 2)} if images else {}
            self.log.write(str(task), seconds=round(seconds, 3), **rate)

    def _wait_for(self, worker: Worker, tasks: Sequence[Task]) -> None:
        left = list(tasks)

        def done() -> bool:
            left[:] = [task for task in left if not worker.is_done(task)]
            return not left

        self._wait(done, "other ranks to finish their tasks")

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        """Poll the shared folder; says what it waits for once a minute."""
        said, pause = time.monotonic(), 0.02
        while not ready():
            time.sleep(pause)
            pause = min(1.5 * pause, 2.0)
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"rank {self.crew.rank}: waiting for {what} in {self.root}", file=sys.stderr, flush=True)

    def _bar(self, total: int, what: str, unit: str, initial: int = 0) -> Any:
        from tqdm.auto import tqdm

        hidden = not self.progress or self.crew.rank > 0
        return tqdm(total=total, initial=initial, desc=what, unit=unit, disable=hidden, smoothing=0.05)


def _threshold(maker: Maker) -> float | None:
    """Cosine from which two faces are one person; None where nobody is compared."""
    fmr, parts = maker.plan.fmr, maker.parts
    source: Any = parts.source
    if not isinstance(fmr, float) or parts.embedder is None:
        return None
    if parts.threshold is not None:
        return parts.threshold
    if hasattr(source, "threshold") and getattr(source, "embedder", None) is parts.embedder:
        return float(source.threshold(fmr))  # which it may have measured already
    psi = source.bank.truncation_psi if hasattr(source, "bank") else 1.0
    return float(natural_threshold(parts.generator, parts.embedder, fmr, truncation_psi=psi))


class _Log:
    """A line of json for each thing that was done, in log/rank-00000.jsonl."""

    def __init__(self, root: Path, rank: int) -> None:
        self._path = root / "log" / f"rank-{rank:05d}.jsonl"
        self._start = time.monotonic()

    def __enter__(self) -> _Log:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.write("start", host=platform.node(), pid=os.getpid(), command=" ".join(sys.argv), torch=torch.__version__)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            with contextlib.suppress(OSError):  # the error itself may be a full disk
                self.write("error", error=f"{type(error).__name__}: {error}")

    def write(self, event: str, **values: Any) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "elapsed": round(time.monotonic() - self._start, 3)}
        line |= {"event": event, **values}
        with self._path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(line, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def lock(root: Path, rank: int = 0) -> Iterator[None]:
    """One writer of a rank at a time; the operating system lets go of it when the process dies."""
    from filelock import FileLock, Timeout

    path = root / ".lock" if rank == 0 else root / "log" / f".lock-{rank:05d}"
    owner = root / "log" / f"owner-{rank:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise _taken(root, rank, _owner(owner)) from error
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        write_json(owner, {"host": platform.node(), "pid": os.getpid(), "since": since})
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    try:
        whose = json.loads(path.read_text(encoding="utf-8"))
        return f"process {whose['pid']} on {whose['host']}, since {whose['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"


def _taken(root: Path, rank: int, whose: str) -> DataError:
    return DataError(
        f"{root} is being written by another export",
        expected="one exporter at a time" + (f" as rank {rank}" if rank else ""),
        got=whose,
        fix="wait for it or stop it; a lock of a process that died is free by itself",
    )


def generator_prints(generator: Generator) -> dict[str, str]:
    """Fingerprints of a generator: its weights, and its arithmetic where it has a choice."""
    dtype = getattr(generator, "compute_dtype", None)
    return {"generator": fingerprint_generator(generator)} | ({} if dtype is None else {"generator dtype": str(dtype)})


def describe_parts(maker: Maker) -> dict[str, Any]:
    """What parts.json holds: which models make the set, so that nobody goes on with others."""
    plan, parts = maker.plan, maker.parts
    groups = [g for name in plan.quota for g in parts.groups.parse(name)]
    ids = torch.tensor(groups, device=maker.device)
    first = maker.faces(ids, torch.zeros_like(ids))
    hashes = generator_prints(parts.generator)
    generator = parts.generator
    models = {name: getattr(parts, name) for name in ("labeller", "judge", "detector", "embedder")}
    hashes_of = {
        name: fingerprint_model(model, generator.resolution, maker.device)
        for name, model in models.items()
        if model is not None
    }
    decides = {
        "labeller": plan.verify,
        "detector": plan.verify or plan.crop is not None,
        "embedder": plan.fmr is not None,
    }
    hashes |= {name: value for name, value in hashes_of.items() if decides.get(name)}
    settings = {"axes": parts.axes, "reference": parts.reference, "threshold": parts.threshold}
    settings["min_confidence"] = parts.min_confidence if plan.verify else None
    hashes |= {name: fingerprint(value) for name, value in settings.items() if value is not None}
    told = {
        "generator": f"{type(generator).__name__}, z_dim={generator.z_dim}, {generator.resolution} px",
        "source": type(parts.source).__name__,
        **{name: f"{type(models[name]).__name__}, fingerprint {value}" for name, value in hashes_of.items()},
        "axes": None if parts.axes is None else [a.direction.name or "unnamed" for a in parts.axes],
        "min_confidence": parts.min_confidence,
    }
    return {
        "groups": {a: list(values) for a, values in parts.groups.attributes.items()},
        "latent_shape": list(first.shape[1:]),
        "resolution": generator.resolution,
        "fingerprint": hashes,
        "latents": [[round(x, 4) for x in row[:4]] for row in first.flatten(1).tolist()],
        "describe": told,
    }


_OURS = {".lock", "work", "log"}  # there before plan.json


def refuse_others(root: Path, maker: Maker) -> None:
    """DataError for a folder that holds something else, another plan's set, or one of other models."""
    if not root.exists():
        return
    if not root.is_dir():
        raise DataError(f"{root} is no folder", expected="a new folder, or a set begun earlier", got="a file")
    draft = ".plan.json."  # of an export that was killed, or of rank 0, which is writing it now
    strange = sorted(p.name for p in root.iterdir() if p.name not in _OURS and not p.name.startswith(draft))
    if strange and not (root / "plan.json").exists():
        expected = "a new folder, or a set begun earlier (it has plan.json)"
        raise DataError(f"{root} holds other things", expected=expected, got=", ".join(strange[:3]))
    for name, values in _heads(maker).items():
        if (root / name).exists():
            _compare(root / name, values)


def _heads(maker: Maker) -> dict[str, dict[str, Any]]:
    return {"plan.json": maker.plan.to_dict(), "parts.json": describe_parts(maker)}


def _compare(path: Path, mine: Mapping[str, Any]) -> None:
    """DataError with every difference between a json file and what this run would write there."""
    theirs, mine = _read(path), json.loads(json.dumps(mine))
    ignored = {"describe", "command"}  # what is told, and of the first run
    differ = [k for k in sorted(set(theirs) | set(mine)) if k not in ignored and theirs.get(k) != mine.get(k)]
    if "latents" in differ and _close(theirs.get("latents"), mine.get("latents")):
        differ.remove("latents")
    if differ:
        what = "plan" if path.name == "plan.json" else "models"
        rows = [row for k in differ for row in _differences(k, theirs.get(k), mine.get(k))]
        raise DataError(
            f"{path.parent} was begun with another {what}" if what == "plan" else f"{path.parent} has other {what}",
            expected="; ".join(f"{name} = {a}" for name, a, _ in rows),
            got="; ".join(f"{name} = {b}" for name, _, b in rows),
            fix="go on with what the set was begun with (plan.json, parts.json), or export to a new folder",
        )


def _differences(name: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return [(name, a, b)]
    keys = [k for k in {**a, **b} if a.get(k) != b.get(k)]
    return [(f"{name}.{k}", a.get(k), b.get(k)) for k in keys]


def _close(a: Any, b: Any) -> bool:
    x, y = np.asarray(a, float), np.asarray(b, float)
    return x.shape == y.shape and bool(np.allclose(x, y, rtol=_PROBE_TOLERANCE, atol=_PROBE_TOLERANCE))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged", expected="json", got=error, fix="export to a new folder") from error


def _estimate(maker: Maker, root: Path) -> ExportEstimate:
    plan, size = maker.plan, maker.plan.forward_batch
    g = torch.tensor([maker.parts.groups.id(name) for name in plan.quota])
    draw = torch.arange(4 * max(size, len(g)))
    ids, index = g[draw % len(g)], draw // len(g)
    maker.candidates(ids[:size], index[:size])  # warm-up
    start = time.perf_counter()
    made = maker.candidates(ids, index)
    candidates_per_second = len(ids) / (time.perf_counter() - start)
    n, k = max(1, len(ids) // plan.images_per_identity), plan.images_per_identity
    names = {int(i): maker.parts.groups.name(int(i)) for i in g}
    tensors = (ids, index, made.latents, made.embeddings)
    some = Identities(names, *(x[:n].numpy() for x in tensors))
    maker = replace(maker, threshold=_threshold(maker) if plan.same_person else None)
    maker.pixels(made.latents[:size])  # warm-up
    start = time.perf_counter()
    encoded = [len(data) for data, _ in maker.rows(Shard(0, 0, n, 0, n * k), some)]
    images_per_second = len(encoded) / (time.perf_counter() - start)
    shares = [float(made.confirmed[ids == i].double().mean()) for i in g]
    drawn = sum(n / max(share, 1 / plan.budget) for n, share in zip(plan.quota.values(), shares, strict=True))
    looking = drawn / candidates_per_second if plan.verify or plan.fmr is not None else 0
    each = float(np.mean([_stored_bytes(n, plan) for n in encoded])) + _INDEX_BYTES + 4 * made.latents[0].numel()
    numbers = 4 * (made.latents[0].numel() + made.embeddings.shape[1])
    exists = next(p for p in (root, *root.absolute().parents) if p.exists())
    return ExportEstimate(
        plan=plan,
        images_per_second=images_per_second,
        candidates_per_second=candidates_per_second,
        confirmed=plan.identities / drawn,
        bytes=int(plan.images * each + plan.identities * (numbers + 40)),
        work=int(drawn * numbers),
        seconds=plan.images / images_per_second + looking,
        free=shutil.disk_usage(exists).free,
    )


_INDEX_BYTES = 100  # of an image in the parquet index, beside its latents


def _stored_bytes(encoded: int, plan: DatasetPlan) -> int:
    """What an image takes in its layout."""
    if plan.layout == "webdataset":  # three members: a block of header each, and whole blocks
        return 5 * 512 + -(-encoded // 512) * 512
    return encoded + (60 if plan.layout == "rec" else 0)  # header, padding, a line of train.idx


def _gigabytes(n: float) -> str:
    return f"{n / 1e9:,.1f} GB" if n >= 1e8 else f"{n / 1e6:,.1f} MB"
