"""Loading and saving generators and discriminators. No code in a checkpoint is ever executed; see docs/models.md."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..artifacts import atomic_path
from ..errors import CheckpointError, DataError, FairFaceError
from ..latents import normals
from .base import StyleGANModule
from .conversion import (
    Parts,
    convert_discriminator,
    convert_generator,
    convert_rosinality_discriminator,
    convert_rosinality_generator,
    is_rosinality_discriminator,
    is_rosinality_generator,
)
from .layers import brief
from .safe_pickle import Budget, Captured, Network, Resolver, Storage, is_legacy, read_legacy, read_pickle, read_zip

Source = str | os.PathLike[str] | bytes | IO[bytes]

_FORMAT, _VERSION = "fairface_synth.model", 1
_SUPPORTED = (
    "an official StyleGAN2-ADA or StyleGAN3 pickle (.pkl), rosinality's StyleGAN2 (.pt), "
    "or a file that save_generator wrote (.safetensors)"
)

# kind → "module:class". A class has a `config` dictionary of json values and `from_config(config)`.
_GENERATORS = {
    "stylegan2": "fairface_synth.models.stylegan2:StyleGAN2Generator",
    "stylegan3": "fairface_synth.models.stylegan3:StyleGAN3Generator",
    "dcgan": "fairface_synth.models.demo:DCGANGenerator",
}
_DISCRIMINATORS = {"stylegan2-discriminator": "fairface_synth.models.stylegan2:StyleGAN2Discriminator"}


def register_generator(kind: str, target: str) -> None:
    """Make `save_generator` and `load_generator` know another class.

    Args:
        kind: the name written into files.
        target: "package.module:ClassName", imported when needed. The class is an nn.Module with a `config`
            dictionary of json values and a class method `from_config(config)`.
    """
    _GENERATORS[kind] = target


def load_generator(
    source: Source,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    which: str = "G_ema",
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Read a generator without executing anything in the file.

    Args:
        source: path, http(s) URL, bytes or binary file of an official StyleGAN2-ADA or StyleGAN3 pickle, of
            rosinality's StyleGAN2 checkpoint, or of a file written by `save_generator`.
        device: where the generator goes; None: the CPU.
        dtype: float32, float64, or bfloat16 (its convolutions, on hardware that has it; images stay float32).
        which: the network of a training snapshot: "G_ema" (the average, for use) or "G".
        sha256: expected SHA-256 in hexadecimal, or its first 8 or more digits.
        cache_dir: where downloads are kept; None: $FAIRFACE_SYNTH_CACHE, or the user's cache folder.

    Returns:
        A generator in evaluation mode whose parameters require no gradient; see `protocols.Generator`.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or asks for something not admitted.
    """
    return _load(source, _GENERATORS, which, device, dtype, sha256, cache_dir)


def load_discriminator(
    source: Source,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    sha256: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Read the discriminator of a checkpoint; arguments and errors as in `load_generator`."""
    return _load(source, _DISCRIMINATORS, "D", device, dtype, sha256, cache_dir)


def save_generator(generator: Any, path: str | os.PathLike[str]) -> None:
    """Write a generator that `load_generator` reads back bit for bit: safetensors, configuration in the metadata.

    The file appears under its name only when it is complete.

    Raises:
        CheckpointError: the generator is of a class that is not registered, such as a wrapped one.
    """
    _save(generator, path, _GENERATORS)


def save_discriminator(discriminator: Any, path: str | os.PathLike[str]) -> None:
    """As `save_generator`, for `load_discriminator`."""
    _save(discriminator, path, _DISCRIMINATORS)


def read_state_dict(source: Source) -> dict[str, Tensor]:
    """The tensors of a plain state dictionary, by name, without executing anything in the file.

    Args:
        source: path, bytes or binary file: safetensors, or what torch.save wrote (zip or the older stream format).
            {"state_dict": {…}} is unwrapped.

    Raises:
        CheckpointError: damaged, or not a dictionary of tensors.
    """
    with _reading(source):
        data = _fetch(source, None, None)
        if _is_safetensors(data):
            return safetensors.torch.load(data)
        value, budget = _unpickle(data)
        if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
            value = value["state_dict"]
        tensors = _tensors(value, budget) if isinstance(value, dict) else {}
        if not tensors or len(tensors) != len(value):
            raise CheckpointError(
                "this file is not a dictionary of tensors",
                expected="what torch.save(model.state_dict(), path) writes",
                got=_describe(value),
            )
        return tensors


def _load(
    source: Source,
    registry: Mapping[str, str],
    which: str,
    device: torch.device | str | None,
    dtype: torch.dtype,
    sha256: str | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Any:
    _check_device(device)
    # Normal tensors, whatever mode the caller is in.
    with torch.inference_mode(False), _reading(source):
        data = _fetch(source, sha256, cache_dir)
        parts = _parts(data, registry, which)
        return _build(parts, registry, device, dtype)


def _check_device(device: torch.device | str | None) -> None:
    """A missing GPU must not look like a damaged file."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(
            f"the device {device!s} cannot be used", got=str(error).splitlines()[0], fix="pass device='cpu'"
        ) from error


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Whatever goes wrong while reading becomes a CheckpointError."""
    try:
        yield
    except FairFaceError:
        raise
    except (Exception, RecursionError, MemoryError) as error:
        raise CheckpointError(
            f"{_name(source)} cannot be read",
            expected=_SUPPORTED,
            got=f"{type(error).__name__}: {error}"[:300],
            fix="the file is damaged or of another format; fetch it again and compare its SHA-256",
        ) from error


def _name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)[:300]
    return "this " + ("data" if isinstance(source, (bytes, bytearray)) else "file")


# --- fetching -------------------------------------------------------------------------------------------------------


def _fetch(source: Source, sha256: str | None, cache_dir: str | os.PathLike[str] | None) -> bytes:
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{8,64}", sha256):
        raise CheckpointError("sha256 is not a hash", expected="8 to 64 hexadecimal digits", got=repr(sha256)[:100])
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        path = _download(source, sha256, cache_dir)
        data = path.read_bytes()
        if sha256 is not None and not _has_sha256(data, sha256):
            # A damaged file in the cache would stay there for ever.
            path.unlink(missing_ok=True)
            data = _download(source, sha256, cache_dir).read_bytes()
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}", expected=_SUPPORTED, fix="check the path")
        data = path.read_bytes()
    elif hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise CheckpointError("the file is open in text mode", expected="open(path, 'rb')")
    else:
        raise CheckpointError(
            "this source is not known", expected="path, URL, bytes or binary file", got=type(source).__name__
        )
    if sha256 is not None and not _has_sha256(data, sha256):
        raise CheckpointError(
            f"{_name(source)} has another SHA-256",
            expected=sha256,
            got=hashlib.sha256(data).hexdigest(),
            fix="fetch the file again",
        )
    return data


def _has_sha256(data: bytes, sha256: str) -> bool:
    return hashlib.sha256(data).hexdigest().startswith(sha256.lower())


def _download(url: str, sha256: str | None, cache_dir: str | os.PathLike[str] | None) -> Path:
    """The file of a URL, kept in the cache; torch's download writes to a temporary name and renames."""
    parsed = urllib.parse.urlparse(url)
    if parsed.scheme.lower() not in ("http", "https") or not parsed.netloc:
        raise CheckpointError("this kind of URL is not supported", expected="http:// or https://", got=url[:200])
    base = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(parsed.path))[-80:] or "checkpoint"
    folder = _cache_folder(cache_dir)
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{base}"
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256.lower() if sha256 else None, progress=False)
    except Exception as error:
        raise CheckpointError(
            f"{url[:300]} could not be fetched",
            got=f"{type(error).__name__}: {error}"[:300],
            fix="check the connection and the SHA-256, or fetch the file by hand and pass its path",
        ) from error
    return path


def _cache_folder(cache_dir: str | os.PathLike[str] | None) -> Path:
    if cache_dir is not None:
        return Path(cache_dir)
    if os.environ.get("FAIRFACE_SYNTH_CACHE"):
        return Path(os.environ["FAIRFACE_SYNTH_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairface_synth"


# --- reading --------------------------------------------------------------------------------------------------------


def _is_safetensors(data: bytes) -> bool:
    return len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8


def _unpickle(data: bytes) -> tuple[Any, Budget]:
    """The raw value of any pickled format (plain containers, `Captured` pieces for the rest), and what may be spent."""
    if not data:
        raise CheckpointError("the file is empty", expected=_SUPPORTED)
    budget = Budget(len(data))
    read = read_zip if data[:4] == b"PK\x03\x04" else read_legacy if is_legacy(data) else read_pickle
    return read(data, budget), budget


def _parts(data: bytes, registry: Mapping[str, str], which: str) -> Parts:
    if _is_safetensors(data):
        return _own_parts(data, registry)
    value, budget = _unpickle(data)
    generator = registry is _GENERATORS
    if isinstance(value, Captured) and value.name == "persistent":
        return (convert_generator if generator else convert_discriminator)(_network(value, budget))
    if isinstance(value, dict):
        chosen = value.get(which)
        if isinstance(chosen, Captured) and chosen.name == "persistent":
            return (convert_generator if generator else convert_discriminator)(_network(chosen, budget))
        found = _rosinality(value, generator, which, budget)
        if found is not None:
            return found
    raise CheckpointError(
        f"no {'generator' if generator else 'discriminator'} was found (looked for {which!r})",
        expected=_SUPPORTED,
        got=_describe(value),
        fix="pass which= for another network of a training snapshot",
    )


def _network(value: Captured, budget: Budget) -> Network:
    network = Resolver(budget)(value)
    assert isinstance(network, Network)
    return network


def _rosinality(value: dict[Any, Any], generator: bool, which: str, budget: Budget) -> Parts | None:
    name = {"G_ema": "g_ema", "G": "g", "D": "d"}.get(which, which)
    inner = value.get(name, value)
    if not isinstance(inner, dict):
        return None
    known = is_rosinality_generator if generator else is_rosinality_discriminator
    inner = {k.removeprefix("module."): v for k, v in dict.items(inner) if isinstance(k, str)}
    if not known(inner):
        return None
    tensors = _tensors(inner, budget)
    _check_sharing(tensors)
    if not generator:
        return convert_rosinality_discriminator(tensors)
    average = value.get("latent_avg")
    mean = Resolver(budget)(average) if average is not None else None
    return convert_rosinality_generator(tensors, mean if isinstance(mean, Tensor) else None)


def _tensors(value: dict[Any, Any], budget: Budget) -> dict[str, Tensor]:
    resolve = Resolver(budget)
    resolved = {k: resolve(v) for k, v in dict.items(value) if isinstance(k, str)}
    return {k: v for k, v in resolved.items() if isinstance(v, Tensor)}


def _own_parts(data: bytes, registry: Mapping[str, str]) -> Parts:
    size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            "this safetensors file is not one of ours",
            expected=f"metadata with format {_FORMAT!r}",
            got=brief(metadata),
            fix="safetensors hold no configuration; load the original checkpoint and save_generator it",
        )
    if metadata.get("version") != str(_VERSION):
        raise CheckpointError(
            "this file was written by another version",
            expected=_VERSION,
            got=brief(metadata.get("version")),
            fix="upgrade fairface_synth",
        )
    kind = str(metadata.get("kind"))
    if kind not in registry:
        raise CheckpointError("this file holds a model of another kind", expected=", ".join(registry), got=kind[:80])
    config = json.loads(metadata["config"])
    if not isinstance(config, dict):
        raise CheckpointError("the configuration is no dictionary", got=type(config).__name__)
    return Parts(kind, config, safetensors.torch.load(data))


def _describe(value: Any) -> str:
    """What a file holds, briefly, without printing its contents."""
    if isinstance(value, dict):
        entries = [f"{_text(k)} ({_kind(v)})" for k, v in itertools.islice(dict.items(value), 12)]
        more = ", …" if len(value) > 12 else ""
        return f"a dictionary with {', '.join(entries) or 'no entries'}{more}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"a {type(value).__name__} of {len(value)}"
    return _kind(value)


def _text(value: Any) -> str:
    return value[:40] if isinstance(value, str) else brief(value)[:40]


def _kind(value: Any) -> str:
    if isinstance(value, Captured):
        if value.name == "persistent" and value.arguments and isinstance(value.arguments[0], dict):
            return f"network {_text(value.arguments[0].get('class_name'))}"
        return value.name
    return "tensor" if isinstance(value, Storage) else type(value).__name__


# --- building -------------------------------------------------------------------------------------------------------


def _import(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _build(parts: Parts, registry: Mapping[str, str], device: torch.device | str | None, dtype: torch.dtype) -> Any:
    """The module around the given tensors. It is made on the meta device, so sizes in a file allocate nothing."""
    cls = _import(registry[parts.kind])
    with torch.device("meta"):
        model: nn.Module = cls.from_config(parts.config)
    tensors = dict(parts.tensors)
    estimate = hasattr(model, "mapping") and "mapping.w_avg" not in tensors and "mapping.w_avg" in model.state_dict()
    if estimate:
        tensors["mapping.w_avg"] = torch.zeros(model.state_dict()["mapping.w_avg"].shape)
    _check_tensors(model.state_dict(), tensors)
    _check_sharing(tensors)
    tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    model.load_state_dict(tensors, assign=True)
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        # Buffers that are not saved: make the module for real, now that its sizes are known to be the file's.
        model = cls.from_config(parts.config)
        model.load_state_dict(tensors)
    model.eval().requires_grad_(False)
    model = model.to(device or "cpu")
    if estimate:
        _estimate_w_avg(model)
    return model.set_dtype(dtype) if isinstance(model, StyleGANModule) else model.to(dtype)


def _check_tensors(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            "the tensors do not belong to the configuration",
            expected=f"{len(wanted)} tensors" + (f", missing: {', '.join(missing[:5])}" if missing else ""),
            got=f"{len(given)} tensors" + (f", not known: {', '.join(extra[:5])}" if extra else ""),
            fix="the network is a variant with its own code, or the file is damaged",
        )
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{name} has the wrong shape", expected=list(wanted[name].shape), got=list(tensor.shape)
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{name} contains NaN or infinity", fix="the training diverged or the file is damaged"
            )


def _check_sharing(tensors: Mapping[str, Tensor]) -> None:
    """Many views of one storage, converted or moved, would multiply a file in memory."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
    if sum(4 * t.numel() for t in tensors.values()) > 4 * sum(held.values()) + (64 << 20):
        raise CheckpointError(
            "the tensors share their memory",
            expected="at most four times the numbers that are stored",
            got=f"{len(tensors)} tensors over {len(held)} storages",
            fix="save the model's tensors one by one, as safetensors or with torch.save",
        )


def _estimate_w_avg(model: Any) -> None:
    """The mean of 4,096 mapped latents, for checkpoints that keep no running mean (as in `wrap_generator`)."""
    count, part = 4096, 64
    total = torch.zeros(model.w_avg.shape, dtype=torch.float64, device=model.w_avg.device)
    with torch.no_grad():
        for start in range(0, count, part):
            index = torch.arange(start, start + part, device=model.w_avg.device)
            c = torch.nn.functional.one_hot(index % model.c_dim, model.c_dim).float() if model.c_dim else None
            total += model.mapping(normals(0, index, model.z_dim), c).double().sum(0)
        model.w_avg.copy_(total / count)


# --- saving ---------------------------------------------------------------------------------------------------------


def _save(model: Any, path: str | os.PathLike[str], registry: Mapping[str, str]) -> None:
    own = f"{type(model).__module__}:{type(model).__qualname__}"
    kind = next((k for k, target in registry.items() if target == own), None)
    if kind is None:
        raise CheckpointError(
            f"a {type(model).__name__} cannot be saved",
            expected=f"one of {', '.join(t.partition(':')[2] for t in registry.values())}",
            got=own,
            fix="save the model that you wrapped with its own code, or register_generator its class",
        )
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    metadata = {"format": _FORMAT, "version": str(_VERSION), "kind": kind, "config": json.dumps(model.config)}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)
