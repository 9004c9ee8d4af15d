"""Fitted things: frozen dataclasses of tensors that move, save and load (safetensors with a json header)."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .errors import DataError
from .groups import Groups

_VERSION = 1
_UMASK = os.umask(0)  # it can only be read by setting it: once, while there is one thread
os.umask(_UMASK)


def has_values(x: Tensor) -> bool:
    """Whether the values of x can be checked at all: fake and meta tensors have none."""
    return not (x.is_meta or isinstance(x, FakeTensor))


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, moved into place when the block ends well: a reader never sees half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        with temporary.open("rb+") as f:
            os.fsync(f.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder durable; a no-op where folders cannot be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):  # some network file systems refuse; the rename itself is done
            os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a json file atomically; equal values give equal bytes."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True, eq=False)
class Artifact:
    """Base of everything fitted. Fields are tensors, mappings of tensors, Groups, None, or plain json values."""

    kind: ClassVar[str] = ""

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy on another device; `dtype` applies to floating-point tensors alone."""

        def move(x: Any) -> Any:
            if isinstance(x, Tensor):
                return x.to(device=device, dtype=dtype if x.is_floating_point() else None)
            if isinstance(x, Mapping):
                return {k: move(v) for k, v in x.items()}
            return x

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})

    @property
    def device(self) -> torch.device:
        """Device of the first tensor."""
        return next(iter(self._split()[0].values())).device

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file, atomically."""
        tensors, plain = self._split()
        header = {
            "format": f"fairface_synth.{self.kind}",
            "version": str(_VERSION),
            "fields": json.dumps(plain),
        }
        stored = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
        with atomic_path(path) as temporary:
            save_file(stored, temporary, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """Read what `save` wrote.

        Raises:
            DataError: not such a file, or one of another kind or of a newer version.
        """
        try:
            with safe_open(path, "pt", device=str(device)) as f:
                header = f.metadata() or {}
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"cannot read {path}", expected=f"a file saved by {cls.__name__}.save", got=error
            ) from error
        wanted = f"fairface_synth.{cls.kind}"
        if header.get("format") != wanted or header.get("version") not in {str(v + 1) for v in range(_VERSION)}:
            raise DataError(
                f"{path} holds something else",
                expected=f"{wanted}, version ≤ {_VERSION}",
                got=f"{header.get('format', 'no format')}, version {header.get('version', '?')}",
                fix="load it with the class that saved it, or update fairface_synth",
            )
        try:
            values = {name: _decode(value) for name, value in json.loads(header["fields"]).items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged", expected="a readable header", got=error) from error
        for name, tensor in tensors.items():
            field, _, key = name.partition("/")
            if key:
                values.setdefault(field, {})[key] = tensor
            else:
                values[field] = tensor
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) - known or known - set(values) - _optional(cls):
            raise DataError(f"{path} is damaged", expected=", ".join(sorted(known)), got=", ".join(sorted(values)))
        return cls(**values)

    def _split(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                tensors[field.name] = value
            elif isinstance(value, Mapping) and value and all(isinstance(v, Tensor) for v in value.values()):
                tensors |= {f"{field.name}/{k}": v for k, v in value.items()}
            else:
                plain[field.name] = _encode(value)
        return tensors, plain

    def __repr__(self) -> str:
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                parts.append(f"{field.name}={list(value.shape)}")
            elif isinstance(value, Mapping):
                parts.append(f"{field.name}={{{', '.join(value)}}}")
            elif value not in (None, (), False):
                parts.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _optional(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}


def _encode(value: Any) -> Any:
    if isinstance(value, Groups):
        return {"groups": {a: list(v) for a, v in value.attributes.items()}}
    if isinstance(value, Mapping):
        return {"mapping": {k: _encode(v) for k, v in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_encode(v) for v in value]}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if "groups" in value:
            return Groups(value["groups"])
        if "mapping" in value:
            return {k: _decode(v) for k, v in value["mapping"].items()}
        return tuple(_decode(v) for v in value["tuple"])
    return value
