"""A tiny world for tests of exports: 16 px faces made of eight numbers, exported by processes that may be killed.

Everything pickles by name, so that subprocesses and Ray's workers can use it: they need this folder on their path.
Run as a script it is the far end of `Nursery`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fairface_synth as ffs
from fairface_synth.export import DatasetPlan, ExportReport, datasheet, gate, plan_dataset
from fairface_synth.export import export as export_set
from fairface_synth.variations import Direction

GROUPS = ffs.Groups({"gender": ["female", "male"], "tone": ["light", "dark"]})
W = 8
if "FAKE_WORLD_UNIT" in os.environ:  # in processes that do not pass through `export` below
    gate.UNIT = int(os.environ["FAKE_WORLD_UNIT"])


@dataclass(frozen=True)
class Synthesize:
    """w [n, 1, 8] → images [n, 3, 16, 16]: a colour, a slope across the face, and a slope down it."""

    delay: float = 0.0  # seconds a batch takes
    contrast: float = 1.0
    trouble: Callable[[Tensor], None] | None = None  # called with every batch

    def __call__(self, w: Tensor) -> Tensor:
        time.sleep(self.delay)
        if self.trouble is not None:
            self.trouble(w)
        line, w = torch.linspace(-1, 1, 16), w[:, 0, :, None, None]
        slopes = w[:, 3:6] * line + w[:, [6, 7, 6]] * line[:, None]
        return (self.contrast * (w[:, :3] + 0.5 * slopes)).tanh()


@dataclass(frozen=True)
class Embed:
    """Unit vectors of four numbers of a face: so few that people often look alike."""

    scale: float = 1.0
    dim: int = 4

    def __call__(self, images: Tensor) -> Tensor:
        centre, corner = images[:, :, 6:10, 6:10].mean((2, 3)), images[:, :1, :4, :4].mean((2, 3))
        return torch.nn.functional.normalize(torch.cat((centre, self.scale * corner), 1), dim=1)


def label(images: Tensor) -> Mapping[str, Tensor]:
    """Red faces are male, green ones dark."""
    x = 3 * images[:, :2, 6:10, 6:10].mean((2, 3))
    return {a: torch.stack((-x[:, i], x[:, i]), 1).softmax(1) for i, a in enumerate(GROUPS.attributes)}


@dataclass(frozen=True)
class FakeSource:
    """Faces aimed at their groups, and missing them now and then."""

    generator: Any
    labeller: Any
    embedder: Any
    groups: ffs.Groups = GROUPS
    spread: float = 1.0
    min_confidence: float = 0.6

    def latents(self, group_ids: Tensor, index: Tensor, seed: int = 0, truncation_psi: float = 1.0) -> Tensor:
        """w [n, 8]."""
        w = self.spread * ffs.normals(seed, index, W, stream=group_ids + 1)
        aim = torch.stack((group_ids // 2, group_ids % 2), 1) * 2.0 - 1
        return torch.cat((w[:, :2] + aim, w[:, 2:]), 1)


def make_source(
    delay: float = 0.0,
    contrast: float = 1.0,
    scale: float = 1.0,
    spread: float = 1.0,
    min_confidence: float = 0.6,
    trouble: Callable[[Tensor], None] | None = None,
) -> FakeSource:
    """The world. Other settings make another one, except for the delay."""
    generator = ffs.wrap_generator(
        synthesize=Synthesize(delay, contrast, trouble),
        z_dim=W,
        w_dim=W,
        num_ws=1,
        resolution=16,
        w_avg=torch.zeros(W),
    )
    return FakeSource(
        generator, ffs.wrap_labeller(label, GROUPS.attributes), Embed(scale), GROUPS, spread, min_confidence
    )


def make_axes(steps: tuple[float, ...] = (-2.0, -0.9, 1.1, 2.3)) -> tuple[ffs.Axis, ...]:
    """One axis, which moves faces far enough to become somebody else now and then."""
    normal, one = torch.nn.functional.normalize(torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 0]), dim=0), torch.ones(())
    return (ffs.Axis(Direction(normal, -one, one, 0 * one, "warmth"), steps),)


def make_plan(**changes: Any) -> DatasetPlan:
    """64 identities × 4 in 8 shards, on which every path of an export lies."""
    plan = {"quota": 16, "images_per_identity": 4, "shard_size": 32, "groups": GROUPS, "forward_batch": 16}
    checks = {"fmr": 1e-3, "verify": True, "same_person": True, "image_format": "png"}
    return plan_dataset(**(plan | checks | changes))


EXPORT: Mapping[str, Any] = {"threshold": 0.997, "audit": 8, "progress": False, "command": "export"}


def export(
    path: str | Path,
    plan: Mapping[str, Any] | None = None,
    world: Mapping[str, Any] | None = None,
    unit: int = 40,
    **settings: Any,
) -> ExportReport:
    """Export this world, with several units of candidates a round."""
    before, gate.UNIT = gate.UNIT, unit
    try:
        source = make_source(**(world or {}))
        more = {"axes": make_axes(), "judge": source.labeller}
        return export_set(source, make_plan(**(plan or {})), path, **(EXPORT | more | settings))
    finally:
        gate.UNIT = before


# --- what is on disk ------------------------------------------------------------------------------------------------


def contents(path: str | Path) -> dict[str, bytes | None]:
    """Every file of a set with its bytes, every folder with None; log/ is not part of the set."""
    root = Path(path)
    found = {p.relative_to(root).as_posix(): None if p.is_dir() else p.read_bytes() for p in root.rglob("*")}
    return {name: data for name, data in found.items() if name.split("/")[0] != "log"}


def differences(path: str | Path, reference: Mapping[str, bytes | None]) -> list[str]:
    """Names of files that one of two sets does not have, or that differ."""
    found = contents(path)
    return sorted(
        name for name in {**found, **reference} if found.get(name, b"missing") != reference.get(name, b"missing")
    )


PHASES = ("start", "candidates", "gate", "shards", "join", "datasheet", "tidying", "finished")


def phase(path: str | Path) -> str:
    """One of `PHASES`: how far an export has come, by what is on disk."""
    root = Path(path)
    if not (root / "parts.json").exists():
        return "start"
    if not (root / "gate.json").exists():
        settled = (root / "work" / "latents.npy", root / "latents.npy")  # before and after `Gate.write` moves it
        return "gate" if any(path.exists() for path in settled) else "candidates"
    plan = DatasetPlan.from_dict(json.loads((root / "plan.json").read_text()))
    if any(not (root / "shards" / f"{k:05d}.json").exists() for k in range(plan.shards)):
        return "shards"
    if plan.layout == "rec" and not (root / "train.rec").exists():
        return "join"
    if not (root / "dataset.json").exists():
        return "datasheet"
    return "tidying" if (root / "work").exists() else "finished"


# --- processes that may be killed -----------------------------------------------------------------------------------

_POINTS = ("fsync", "replace", "unlink", "rmdir", "mkdir")  # of os: a disk changes its state here


def slow_disk(seconds: float, die_at: int | None = None) -> None:
    """Make this process wait before every sync, rename and removal, and kill itself before number `die_at`."""
    count = 0

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(seconds)
            return function(*args, **kwargs)

        return call

    for name in _POINTS:
        setattr(os, name, wrapped(getattr(os, name)))


def run_child(disk: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None, **job: Any) -> str:
    """An export in a process of its own; returns what it reported."""
    os.environ.update(environment or {})
    if disk is not None:
        slow_disk(**disk)
    return str(export(**job))


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and its report or error."""

    code: int
    text: str


def no_sync(handle: int) -> None:
    """In place of fsync: processes die here, the machine does not, and what was written stays."""


class Nursery:
    """A process that has imported everything, has one thread, and forks a process for each export: in no time."""

    def __enter__(self) -> Nursery:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, __file__]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        return self

    def __exit__(self, *error: object) -> None:
        self._server.communicate()

    def start(self, path: str | Path, **job: Any) -> int:
        """Begin `run_child`; the process's id."""
        return int(self._ask({"do": "start", "job": job | {"path": str(path)}}))

    def wait(self, pid: int, seconds: float = 60.0) -> Ended | None:
        """How a process ended; None if it goes on."""
        answer = self._ask({"do": "wait", "pid": pid, "seconds": seconds})
        return None if answer is None else Ended(**answer)

    def run(self, path: str | Path, **job: Any) -> Ended:
        """Start, and wait."""
        ended = self.wait(self.start(path, **job))
        assert ended is not None
        return ended

    def kill(self, pid: int) -> Ended:
        """SIGKILL, at once."""
        os.kill(pid, signal.SIGKILL)
        ended = self.wait(pid)
        assert ended is not None
        return ended

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _serve() -> None:
    torch.set_num_threads(1)
    _import_all()
    datasheet.draw_figures = lambda *args: {name: _Picture() for name in ("faces", "nearest")}  # drawing takes a second
    os.fsync = no_sync
    pipes: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if question["do"] == "start":
            answer: Any = _fork(question["job"], pipes)
        else:
            answer = _wait(question["pid"], question["seconds"], pipes)
        print(json.dumps(answer), flush=True)
    for pid in pipes:
        os.kill(pid, signal.SIGKILL)


class _Picture:
    def savefig(self, file: Any, **settings: Any) -> None:
        file.write(b"a picture")


def _import_all() -> None:
    """What an export imports late, so that the children need not."""
    import filelock  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import PIL.JpegImagePlugin
    import PIL.PngImagePlugin  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import tqdm.auto  # noqa: F401


def _fork(job: Mapping[str, Any], pipes: dict[int, int]) -> int:
    end, start = os.pipe()
    pid = os.fork()
    if pid:
        os.close(start)
        pipes[pid] = end
        return pid
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    try:
        text, code = run_child(**job), 0
    except BaseException as error:
        text, code = f"{type(error).__name__}: {error}", 1
    os.write(start, text.encode()[:60_000])
    os._exit(code)


def _wait(pid: int, seconds: float, pipes: dict[int, int]) -> dict[str, Any] | None:
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > end:
            return None
        time.sleep(0.002)
    with os.fdopen(pipes.pop(pid), "rb") as pipe:
        readable, _, _ = select.select([pipe], [], [], 0)
        text = pipe.read1(60_000).decode() if readable else ""
    return {"code": os.waitstatus_to_exitcode(status), "text": text}


if __name__ == "__main__":
    _serve()
