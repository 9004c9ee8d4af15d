"""One run on a set's folder: its lock, and its log."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..artifacts import write_json
from ..errors import DataError


class Log:
    """A line of json for each thing that was done, in log/rank-00000.jsonl."""

    def __init__(self, root: Path, rank: int) -> None:
        self._path = root / "log" / f"rank-{rank:05d}.jsonl"
        self._start = time.monotonic()

    def __enter__(self) -> Log:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.write("start", host=platform.node(), pid=os.getpid(), command=" ".join(sys.argv), torch=torch.__version__)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            with contextlib.suppress(OSError):  # the error itself may be a full disk
                self.write("error", error=f"{type(error).__name__}: {error}")

    def write(self, event: str, **values: Any) -> None:
        """Append an event with the time, and the seconds since the start."""
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
        fix="wait for it or stop it; a lock of a process that died is free by itself. Ranks of one run need "
        "engine='torchrun'",
    )
