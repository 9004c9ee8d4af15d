"""Files that are whole or not there, and what a disk's errors mean for an export."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..artifacts import atomic_path
from ..errors import DataError

_HOST = hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()
_PROCESS = secrets.token_hex(4)  # a process id comes back, in a container that is started again at once
_DAY = 86400.0


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
        if error.errno in (errno.ENOTDIR, errno.EEXIST) and not path.is_dir():
            expected = "the path of a folder, below folders"
            raise DataError(f"{path} cannot be a folder", expected=expected, got=error, fix="another path") from error
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
    with disk_errors(path.parent):
        clear_folder(path)
        with atomic_path(path) as draft, open(draft, "wb") as file:
            file.writelines(chunks)


def holds(path: Path, chunks: Iterable[bytes]) -> bool:
    """Whether a file holds just this."""
    try:
        with open(path, "rb") as file:
            return all(file.read(len(chunk)) == chunk for chunk in chunks) and not file.read(1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False


def put_file(source: Path, target: Path) -> None:
    """Rename a file over whatever is there, even a folder."""
    clear_folder(target)
    os.replace(source, target)


def put_folder(source: Path, target: Path) -> None:
    """Rename a folder over whatever is there; what was there goes beside `source`.

    Others may do the same: one of the folders is there after it, and whole.
    """
    while True:
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        with suppress(FileNotFoundError):
            os.replace(target, source.with_name(f"{source.name}.{secrets.token_hex(4)}.old"))


def make_folder(path: Path) -> None:
    """A folder, in place of a file if one is there."""
    if path.is_file():
        path.unlink()
    path.mkdir(parents=True, exist_ok=True)


def delete(path: Path) -> None:
    """Remove a file or a folder with all in it, or nothing where nothing is."""
    with suppress(FileNotFoundError, NotADirectoryError):  # others may do the same
        shutil.rmtree(path) if _is_folder(path) else path.unlink()


def clear_folder(path: Path) -> None:
    """Remove a folder that is where a file belongs."""
    if _is_folder(path):
        delete(path)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def draft_path(path: Path) -> Path:
    """A temporary name beside a path, which `clean` knows, and which says whose it is."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{_PROCESS}-{secrets.token_hex(4)}.tmp")


def is_abandoned(draft: Path) -> bool:
    """Whether the writer of a draft is dead. On another host nobody knows: when nothing was written for a day."""
    of = re.search(r"\.([0-9a-f]+)-(\d+)-([0-9a-f]+)-[0-9a-f]+\.tmp$", draft.name)
    if of is not None and of[1] == _HOST:
        return of[3] != _PROCESS if int(of[2]) == os.getpid() else not _is_alive(int(of[2]))
    try:
        return time.time() - draft.stat().st_mtime > _DAY
    except FileNotFoundError:
        return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


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
