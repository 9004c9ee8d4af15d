"""Reading pickled checkpoints without executing anything that is in them.

A pickle is a program; `pickle.load` runs it and calls whatever it names. Here every name it may mention stands for an
inert object of ours that only records what it was called with, so no class or function of torch, numpy or the
checkpoint's author is ever called by the pickle. Tensors are made afterwards from the recorded pieces, which are
checked first. torch.load is not used: its weights_only mode executed code in released versions (CVE-2025-32434).
A file can also be made to be slow or large: keys are plain (a hash of nested tuples has no bound in time or stack), and
one `Budget` of operations and bytes serves all pickles of a file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError

_MAX_OPS = 1_000_000
_MAX_DEPTH = 3  # of streams within streams
_MAX_NESTING = 250  # of values; networks need about 60
_MAX_ARGUMENTS = 64
_MAX_BITS = 2048
# Opcodes that call by other routes, keep their own registry or expect out-of-band data; no checkpoint needs them.
_REFUSED_OPS = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_REFUSED_CODES = {ord(op.code) for op in pickletools.opcodes if op.name in _REFUSED_OPS}
# What these make takes far more memory than the byte or two that asks for it.
_CONTAINER_OPS = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "FROZENSET", "DICT", "LIST", "MARK"}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NUMPY_KINDS = re.compile(r"[biuf](1|2|4|8)")


class Budget:
    """What reading one file may cost, whatever its parts refer to how often: operations and bytes made in memory.

    Args:
        size: length of the file; bytes are bounded by 4 · size + 64 MB.
    """

    def __init__(self, size: int = 0) -> None:
        self.operations = _MAX_OPS
        self.bytes = 4 * size + (64 << 20)
        self.nested: dict[int, tuple[bytes, Any]] = {}

    def operate(self) -> None:
        self.operations -= 1
        if self.operations < 0:
            raise pickle.UnpicklingError("too many operations")

    def charge(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise pickle.UnpicklingError("it would take far more memory than the file has bytes")


class Storage(NamedTuple):
    """Raw numbers of a tensor: their type, how many, and how to fetch the bytes."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytes]


class Captured:
    """What a pickle asked to be made: the name, the arguments, and the state given afterwards. Nothing is made."""

    __slots__ = ("arguments", "name", "state")
    name: str
    arguments: tuple[Any, ...]
    state: Any

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", arguments)
        object.__setattr__(self, "state", None)

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "state", state)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("captured objects cannot be altered")

    def __repr__(self) -> str:
        return f"<{self.name}>"


class StandIn:
    """The inert object that a name in a pickle is replaced with; a pickle cannot change its attributes."""

    __slots__ = ("call", "name")
    name: str
    call: Callable[..., Any]

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "call", call or (lambda *args: Captured(name, args)))

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError("stand-ins cannot be altered")

    def __delattr__(self, name: str) -> None:
        raise pickle.UnpicklingError("stand-ins cannot be altered")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("stand-ins cannot be altered")

    def __repr__(self) -> str:
        return f"<name {self.name}>"


_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPES = {str(d).removeprefix("torch."): d for d in (*_STORAGES.values(), torch.complex64, torch.complex128)}


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # Protocol 2 writes bytes as text in latin-1.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("_codecs.encode other than text to latin1")
    return text.encode("latin1")


def _check_key(key: Any) -> None:
    """Keys and set elements are plain, and integers small, so that none is slow to hash or made to collide."""
    if key is None or type(key) in (str, bytes, bool, float) or (type(key) is int and abs(key) < 1 << 40):
        return
    raise pickle.UnpicklingError(f"a key or set element that is not plain ({type(key).__name__})")


def _collection(kind: type) -> Callable[..., Any]:
    def make(*args: Any) -> Any:
        if len(args) > 1 or not all(isinstance(a, (list, tuple, dict, set, frozenset)) for a in args):
            raise pickle.UnpicklingError(f"{kind.__name__} of something that is not a collection")
        if issubclass(kind, dict):
            return _mapping(kind, *args)
        for element in args[0] if args and kind in (set, frozenset) else ():
            _check_key(element)
        return kind(*args)

    return make


def _mapping(kind: Any, given: Any = ()) -> Any:
    """A dictionary from another or from pairs, as OrderedDict was pickled by Python 2."""
    result = kind()
    for pair in dict.items(given) if isinstance(given, dict) else given:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise pickle.UnpicklingError("a dictionary of something that is not pairs")
        _check_key(pair[0])
        result[pair[0]] = pair[1]
    return result


def _size(value: Any) -> int:
    """About the bytes of a copy, without those of the elements."""
    if isinstance(value, (str, bytes, bytearray)):
        return len(value)
    return 64 * len(value) if isinstance(value, (list, tuple, dict, set, frozenset)) else 0


def _empty_bytes(*args: Any) -> bytes:
    if args:
        raise pickle.UnpicklingError("bytes() with arguments")
    return b""


def _table() -> dict[tuple[str, str], Any]:
    captured = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): "persistent",
        ("torch._utils", "_rebuild_tensor_v2"): "tensor",
        ("torch._utils", "_rebuild_tensor"): "tensor",
        ("torch._utils", "_rebuild_parameter"): "parameter",
        ("torch._utils", "_rebuild_parameter_with_state"): "parameter",
        ("torch", "device"): "torch.device",
        ("torch", "Size"): "torch.Size",
        ("torch.storage", "UntypedStorage"): "torch.storage.UntypedStorage",
        ("numpy", "ndarray"): "numpy.ndarray",
        ("numpy", "dtype"): "numpy.dtype",
        ("numpy", "matrix"): "numpy.matrix",
    }
    for core in ("numpy.core", "numpy._core"):
        captured[(f"{core}.multiarray", "scalar")] = "numpy.scalar"
        captured[(f"{core}.multiarray", "_reconstruct")] = "numpy.array"
        captured[(f"{core}.numeric", "_frombuffer")] = "numpy.frombuffer"
    table: dict[tuple[str, str], Any] = {key: StandIn(name) for key, name in captured.items()}
    for name in _STORAGES:
        table[("torch", name)] = StandIn(name)
        table[("torch.storage", name)] = StandIn(name)
    for name in _DTYPES:
        table[("torch", name)] = StandIn(f"torch.{name}")
    for name in ("contiguous_format", "channels_last", "preserve_format", "strided"):
        table[("torch", name)] = StandIn(f"torch.{name}")
    # The built-in dict itself, because NEWOBJ wants a type; built-in types cannot be altered.
    for module in ("dnnlib.util", "dnnlib"):
        table[(module, "EasyDict")] = dict
    table[("collections", "OrderedDict")] = OrderedDict
    for module in ("builtins", "__builtin__"):
        for kind in (set, frozenset, list, tuple, dict):
            table[(module, kind.__name__)] = StandIn(kind.__name__, _collection(kind))
        table[(module, "bytes")] = StandIn("bytes", _empty_bytes)
    table[("_codecs", "encode")] = StandIn("_codecs.encode", _encode)
    return table


_TABLE = _table()


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python, since only there the operations can be replaced by stricter ones."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, data: bytes, budget: Budget, depth: int = 0, persistent: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.budget = budget
        self.depth = depth
        self.persistent = persistent
        self.refused: dict[str, None] = {}
        self.nested = StandIn("torch.storage._load_from_bytes", self._nested)

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name; names outside the table are noted, for the error that ends the reading."""
        if len(module) + len(name) > 1000:
            raise pickle.UnpicklingError("a name of more than 1000 characters")
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self.nested
        if module.startswith("dnnlib.tflib"):
            _refuse_tensorflow()
        found = _TABLE.get((module, name))
        if found is None:
            # Reading goes on with an inert object, so that the error can name everything that is not admitted.
            self.refused[f"{module}.{name}"[:200]] = None
            return StandIn(f"{module}.{name}"[:200])
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise pickle.UnpicklingError("a reference to an external object")
        return self.persistent(pid)

    def _nested(self, data: Any) -> Any:
        if not isinstance(data, bytes) or self.depth >= _MAX_DEPTH:
            raise pickle.UnpicklingError("nested storages")
        known = self.budget.nested.get(id(data))
        if known is None:
            known = self.budget.nested[id(data)] = (data, read_legacy(data, self.budget, self.depth + 1))
        return known[1]

    def _call(self, function: Any, arguments: Any) -> Any:
        if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
            raise pickle.UnpicklingError("a call with unusable arguments")
        self.budget.charge(512 + sum(_size(a) for a in arguments))
        if isinstance(function, StandIn):
            return function(*arguments)
        if function is not dict and function is not OrderedDict:
            raise pickle.UnpicklingError("a call of something that is not a name")
        return _collection(function)(*arguments)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], arguments)

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        if arguments != () or isinstance(self.stack[-1], StandIn):
            raise pickle.UnpicklingError("an object of a class that is not admitted")
        self.stack[-1] = self._call(self.stack[-1], ())

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Captured):
            self.stack[-1].__setstate__(state)
        elif not isinstance(self.stack[-1], OrderedDict):  # the attributes of a state_dict() are left out
            raise pickle.UnpicklingError("a state for something that keeps none")

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("elements for something that is not a list")
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._update(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._update(self.stack[-1], items)

    def _update(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise pickle.UnpicklingError("entries for something that is not a dictionary")
        for i in range(0, len(items), 2):
            _check_key(items[i])
            target[items[i]] = items[i + 1]

    def load_additems(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError("elements for something that is not a set")
        self.stack[-1].update(_collection(set)(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.stack.append(_collection(frozenset)(items))

    # Operations by their byte; what is refused is not there at all.
    dispatch: ClassVar[dict[int, Any]] = {
        c: f for c, f in pickle._Unpickler.dispatch.items() if c not in _REFUSED_CODES
    } | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        pickle.DICT[0]: load_dict,
        pickle.ADDITEMS[0]: load_additems,
        pickle.FROZENSET[0]: load_frozenset,
    }


def _scan(data: bytes, start: int, budget: Budget) -> int:
    """Check one pickle's opcodes before it is read; the position after it."""
    stream = io.BytesIO(data)
    stream.seek(start)
    for count, (op, argument, _) in enumerate(pickletools.genops(stream)):
        budget.operate()
        if op.name in _CONTAINER_OPS:
            budget.charge(200)
        if op.name in _REFUSED_OPS:
            raise pickle.UnpicklingError(f"operation {op.name}")
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(str(argument)) <= 4 * count + 4096:
            raise pickle.UnpicklingError("memo index out of bounds")
        if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
            raise pickle.UnpicklingError(f"a number of more than {_MAX_BITS} bits")
    return stream.tell()


def _run(
    data: bytes, start: int, budget: Budget, depth: int, persistent: Callable[[Any], Any] | None = None
) -> tuple[Any, int]:
    end = _scan(data, start, budget)
    reader = _Unpickler(data[start:end], budget, depth, persistent)
    try:
        value = reader.load()
    except Exception:
        _refuse(list(reader.refused))
        raise
    _refuse(list(reader.refused))
    return value, end


def _refuse(names: list[str]) -> None:
    if not names:
        return
    raise CheckpointError(
        "this pickle names classes or functions that are not admitted; nothing in it was executed",
        expected="networks pickled by the StyleGAN2-ADA or StyleGAN3 code, or tensors in dictionaries",
        got="found " + ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else ""),
        fix="use a checkpoint in a supported format (docs/models.md), or save its tensors as safetensors",
    )


def _refuse_tensorflow() -> None:
    raise CheckpointError(
        "this is a TensorFlow pickle (dnnlib.tflib)",
        expected="a PyTorch checkpoint",
        fix="convert it with NVIDIA's legacy.py (in the stylegan2-ada-pytorch repository)",
    )


def read_pickle(data: bytes, budget: Budget | None = None) -> Any:
    """A plain pickle as captured pieces; see `Resolver`."""
    value, end = _run(data, 0, budget or Budget(len(data)), 0)
    if data[end : end + 1] and data[end:].strip(b"\0\n"):
        raise pickle.UnpicklingError("bytes after the end of the pickle")
    return value


def is_legacy(data: bytes) -> bool:
    """Whether the bytes begin like torch's stream format, used before zip files (torch < 1.6)."""
    return _LEGACY_MAGIC.to_bytes(10, "little") in data[:32] and data[:1] == b"\x80"


def read_legacy(data: bytes, budget: Budget | None = None, depth: int = 0) -> Any:
    """torch's stream format: magic, protocol, system, the object, storage keys, then the raw storages."""
    budget = budget or Budget(len(data))
    magic, at = _run(data, 0, budget, depth)
    protocol, at = _run(data, at, budget, depth)
    system, at = _run(data, at, budget, depth)
    if magic != _LEGACY_MAGIC or protocol != 1001 or not isinstance(system, dict):
        raise pickle.UnpicklingError("not a torch stream")
    if system.get("little_endian") is False:
        raise pickle.UnpicklingError("a big-endian torch stream")
    places: dict[Any, tuple[int, int]] = {}
    roots: dict[Any, Storage] = {}

    def persistent(pid: Any) -> Storage:
        key, dtype, numel = _storage_id(pid)
        size = dtype.itemsize

        def read() -> bytes:
            begin, count = places[key]
            return data[begin : begin + count * size]

        view = pid[5] if len(pid) > 5 else None
        if view is not None:
            raise pickle.UnpicklingError("storage views")
        return roots.setdefault(key, Storage(dtype, numel, read))

    value, at = _run(data, at, budget, depth, persistent)
    keys, at = _run(data, at, budget, depth)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("storage keys")
    for key in keys:
        (count,) = struct.unpack_from("<q", data, at)
        storage = roots.get(key)
        size = 0 if storage is None else count * storage.dtype.itemsize
        if storage is None or count != storage.numel or at + 8 + size > len(data):
            raise pickle.UnpicklingError("a storage that does not fit its file")
        places[key] = (at + 8, count)
        at += 8 + size
    if set(roots) != set(places):
        raise pickle.UnpicklingError("a storage that is missing")
    return value


def _storage_id(pid: Any) -> tuple[str, torch.dtype, int]:
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StandIn):
        raise pickle.UnpicklingError("an unknown kind of external object")
    _, kind, key, _, numel = pid[:5]
    dtype = _STORAGES.get(kind.name)
    if dtype is None or not isinstance(key, str) or len(key) > 200 or type(numel) is not int or numel < 0:
        raise pickle.UnpicklingError("a storage of an unknown type")
    return key, dtype, numel


def read_zip(data: bytes, budget: Budget | None = None) -> Any:
    """torch's zip format (torch ≥ 1.6): data.pkl, and one stored member per storage, fetched when needed."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    members = archive.infolist()
    names = [m.filename for m in members]
    if len(set(names)) != len(names):
        raise zipfile.BadZipFile("repeated names")
    if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in members):
        raise zipfile.BadZipFile("compressed members")
    if sum(m.file_size for m in members) > len(data):
        raise zipfile.BadZipFile("members that overlap")
    main = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
    if len(main) != 1:
        raise CheckpointError(
            "this zip file is not a torch checkpoint",
            expected="one data.pkl",
            got=", ".join(n[:40] for n in names[:8]) or "no files",
        )
    prefix = main[0].removesuffix("data.pkl")
    sizes = {m.filename: m.file_size for m in members}
    order = f"{prefix}byteorder"
    if order in sizes and archive.read(order) != b"little":
        raise zipfile.BadZipFile("big-endian storages")
    roots: dict[str, Storage] = {}

    def persistent(pid: Any) -> Storage:
        key, dtype, numel = _storage_id(pid)
        name = f"{prefix}data/{key}"
        if sizes.get(name) != numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key[:40]} does not fit its member")
        return roots.setdefault(key, Storage(dtype, numel, lambda: archive.read(name)))

    return _run(archive.read(main[0]), 0, budget or Budget(len(data)), 0, persistent)[0]


class Network(NamedTuple):
    """A persistent object of NVIDIA's pickles: the name of its class and the state it had."""

    class_name: str
    state: dict[str, Any]


class Resolver:
    """Turns captured pieces into plain values: tensors, numbers, dictionaries, `Network`.

    Args:
        budget: what is left for the file; None: a small one.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.done: dict[int, Any] = {}
        self.active: set[int] = set()
        self.storages: dict[int, Tensor] = {}
        self.keep: list[Any] = []

    def __call__(self, value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, bytes, bytearray, complex, StandIn, Storage)):
            return value
        at = id(value)
        if at in self.done:
            return self.done[at]
        if at in self.active:
            raise pickle.UnpicklingError("a value that contains itself")
        if len(self.active) >= _MAX_NESTING:
            raise pickle.UnpicklingError(f"values nested more than {_MAX_NESTING} deep")
        self.budget.charge(200 + _size(value))
        self.active.add(at)
        result: Any
        if isinstance(value, dict):
            result = {k: self(v) for k, v in dict.items(value)}
        elif isinstance(value, list):
            result = [self(v) for v in value]
        elif isinstance(value, Captured):
            result = self._captured(value)
        elif isinstance(value, tuple):
            result = tuple([self(v) for v in value])
        elif isinstance(value, (set, frozenset)):
            result = type(value)(value)
        else:
            raise pickle.UnpicklingError(f"a value of type {type(value).__name__}")
        self.active.remove(at)
        self.keep.append(value)
        self.done[at] = result
        return result

    def _captured(self, value: Captured) -> Any:
        if value.name == "persistent":
            (meta,) = value.arguments
            if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
                raise pickle.UnpicklingError("a persistent object without a class name")
            state = meta.get("state")
            return Network(meta["class_name"], self(state) if isinstance(state, dict) else {})
        if value.name == "tensor":
            return self._tensor(*value.arguments[:4])
        if value.name == "parameter":
            return self(value.arguments[0])
        if value.name == "numpy.scalar":
            return _scalar(*value.arguments)
        if value.name == "numpy.array":
            return self._array(value.state)
        if value.name == "numpy.frombuffer":
            data, dtype, shape, order = value.arguments
            return self._array((1, shape, dtype, order == "F", data))
        if value.name == "torch.Size":
            (size,) = value.arguments
            if not isinstance(size, (tuple, list)) or not _is_shape(tuple(size[:17])):
                raise pickle.UnpicklingError("a size of unknown make")
            return tuple(size)
        return value

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        if not isinstance(storage, Storage) or not (_is_shape((offset,)) and _is_shape(size) and _is_shape(stride)):
            raise pickle.UnpicklingError("a tensor of unknown make")
        numel = math.prod(size)
        if len(size) != len(stride) or numel > storage.numel:
            raise pickle.UnpicklingError("a tensor larger than its storage")
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if numel and last >= storage.numel:
            raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
        if numel == 0:
            return torch.empty(size, dtype=storage.dtype)
        flat = self.storages.get(id(storage))
        if flat is None:
            self.budget.charge(storage.numel * storage.dtype.itemsize)
            data = storage.read()
            if len(data) != storage.numel * storage.dtype.itemsize:
                raise pickle.UnpicklingError("a storage that is cut short")
            flat = self.storages[id(storage)] = torch.frombuffer(bytearray(data), dtype=storage.dtype)
            self.keep.append(storage)
        if flat.as_strided(size, stride, offset).is_contiguous():
            # Shared memory, as in torch.load: a copy for each of many views would multiply the file.
            return flat[offset : offset + numel].view(size)
        self.budget.charge(numel * storage.dtype.itemsize)
        return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)

    def _array(self, state: Any) -> Any:
        """A numpy array as nested lists would hold it: plain numbers in an ndarray that owns its memory."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("a numpy array of unknown make")
        _, shape, dtype, fortran, data = state
        kind = _dtype(dtype)
        if not _is_shape(shape) or (0 in shape and len(shape) > 1):
            raise pickle.UnpicklingError("a numpy array of unknown shape")
        if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * kind.itemsize:
            raise pickle.UnpicklingError("a numpy array of the wrong length")
        self.budget.charge(len(data))
        flat = np.frombuffer(data, kind).astype(kind.newbyteorder("="))
        return flat.reshape(shape, order="F" if fortran else "C")


def _is_shape(value: Any) -> bool:
    """A tuple of at most 16 integers in [0, 2^48)."""
    return type(value) is tuple and len(value) <= 16 and all(type(v) is int and 0 <= v < 1 << 48 for v in value)


def _dtype(value: Any) -> np.dtype[Any]:
    kind = value.arguments[0] if isinstance(value, Captured) and value.name == "numpy.dtype" else None
    state = value.state if kind is not None else None
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    if not isinstance(kind, str) or not _NUMPY_KINDS.fullmatch(kind) or order not in ("<", ">", "=", "|"):
        raise pickle.UnpicklingError("a numpy type that is not a plain number")
    return np.dtype(kind).newbyteorder(">" if order == ">" else "<")


def _scalar(dtype: Any, data: Any = None) -> Any:
    kind = _dtype(dtype)
    if not isinstance(data, bytes) or len(data) != kind.itemsize:
        raise pickle.UnpicklingError("a numpy number of the wrong length")
    return np.frombuffer(data, kind)[0].item()
