"""Files that are whole or not there, and what a disk's errors mean for an export."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..artifacts import atomic_path
from ..errors import DataError


@contextmanager
def disk_errors(path: Path, needs: str | None = None) -> Iterator[None]:
    """Say what a full or read-only disk means for an export; other errors pass.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        full, refused = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EROFS, errno.EACCES, errno.EPERM)
        if error.errno in full:
            with suppress(OSError):
                free = shutil.disk_usage(path if path.is_dir() else path.parent).free
                needs = f"{needs or 'room'}; {free / 2**20:,.1f} MiB are free"
            raise DataError(
                f"the disk is full (or a quota is reached) at {path}",
                expected=needs,
                got=error,
                fix="free space and run the same command again: finished shards are kept",
            ) from error
        if error.errno in refused:
            raise DataError(
                f"cannot write in {path}",
                expected="a folder that this user may write to, on a disk that is not read-only",
                got=error,
                fix="change its rights, or export to another folder; finished shards are kept",
            ) from error
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that, whatever happens, it is there whole or as it was before."""
    write_chunks(path, [data])


def write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    """The same of a file that comes in pieces."""
    with disk_errors(path.parent), atomic_path(path) as draft, open(draft, "wb") as file:
        file.writelines(chunks)


def holds(path: Path, chunks: Iterable[bytes]) -> bool:
    """Whether a file holds just this."""
    try:
        with open(path, "rb") as file:
            return all(file.read(len(chunk)) == chunk for chunk in chunks) and not file.read(1)
    except FileNotFoundError:
        return False


def draft_path(path: Path) -> Path:
    """A temporary name beside a path, which `clean` knows."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def sync(file: BinaryIO) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


class HashedFile:
    """A file that is written once, from its beginning, and hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._file, self._hash, self._length = open(path, "xb"), hashlib.sha256(), 0  # noqa: SIM115

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._hash.update(data)
        self._length += len(data)
        return len(data)

    def tell(self) -> int:
        return self._length

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def finish(self) -> dict[str, Any]:
        """Put it on the disk; its entry in the sidecar."""
        sync(self._file)
        self._file.close()
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}
