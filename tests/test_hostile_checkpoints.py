"""Files made to crash, to hang or to fill the memory end quickly in a CheckpointError."""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import resource
import struct
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_checkpoints import TOP, Calls, Persistent, persistence_module  # noqa: F401 (a fixture for every test)

from fairface_synth.errors import CheckpointError
from fairface_synth.latents import normals
from fairface_synth.models import checkpoints, conversion
from fairface_synth.models.checkpoints import load_generator, read_state_dict, save_generator
from fairface_synth.models.demo import DCGANGenerator


def shared(kind: type, levels: int) -> Any:
    """A small value that is exponential when it is walked without a memory."""
    value: Any = kind()
    for _ in range(levels):
        value = kind((value, value))
    return value


def test_slow_keys_are_refused() -> None:
    """Run apart: what these do when they are not refused is a crash of the interpreter or a hash without end."""
    deep, wide = b"\x85" * 900_000, b"2\x86" * 60
    keys = (b")" + deep, b")" + wide, b"h\x00", b"\x8a\x08" + b"\x7f" * 8)
    files = [b"\x80\x04)\x85\x940" + start + key + end for key in keys for start, end in (
        (b"}", b"Ns."), (b"}(", b"Nu."), (b"(", b"Nd."), (b"\x8f(", b"\x90."), (b"(", b"\x91."),
        (b"cbuiltins\nset\n](", b"e\x85R."), (b"cbuiltins\nfrozenset\n](", b"e\x85R."),
        (b"ccollections\nOrderedDict\n](", b"N\x86e\x85R."), (b"cdnnlib\nEasyDict\n](", b"N\x86e\x85R."),
        (b"cbuiltins\ndict\n](", b"N\x86e\x85R."),
    )]  # fmt: skip
    files.append(b"\x80\x04})" + b"\x85" * 1_000_000 + b"Ns.")
    program = """
import pickle, sys
from fairface_synth.errors import CheckpointError
from fairface_synth.models.checkpoints import load_generator
for data in pickle.load(sys.stdin.buffer):
    try:
        load_generator(data)
    except CheckpointError as error:
        assert "not plain" in str(error) or "too many operations" in str(error), (data[:40], data[-40:], str(error))
    else:
        raise AssertionError(data[-40:])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(files), capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def refused(data: bytes, match: str, read: Any = load_generator, seconds: float = 20, megabytes: int = 300) -> None:
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=match):
        read(data)
    assert time.perf_counter() - start < seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < megabytes * 1024  # KB on Linux


def test_copies_are_charged() -> None:
    elements = b"\x80\x02](" + b"N" * 100_000 + b"eq\x00cbuiltins\nlist\nq\x01"
    refused(elements + b"h\x01h\x00\x85R" * 2000 + b".", "more memory")
    text = b"\x80\x02X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00c_codecs\nencode\nq\x01"
    refused(text + b"h\x01h\x00X\6\0\0\0latin1\x86R" * 1000 + b".", "more memory")
    many = b"\x80\x02(" + b"N" * 100_000 + b"tq\x00ctorch\nSize\nq\x01"
    refused(many + b"h\x01h\x00R" * 10_000 + b".", "unusable arguments")
    refused(b"\x80\x04" + b"\x8f" * 900_000 + b".", "more memory")
    refused(b"\x80\x02" + b"N0" * 1_000_000 + b"N.", "too many operations")


@pytest.mark.parametrize("contiguous", [True, False])
def test_many_views_of_one_storage(tmp_path: Path, contiguous: bool) -> None:
    base = torch.randn(1024, 1024) if contiguous else torch.randn(1024, 1024).t()
    path = tmp_path / "s.pt"
    torch.save({f"t{i}": base.view_as(base) for i in range(1000)}, path)
    if contiguous:  # shared memory, as in torch.load
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        loaded = read_state_dict(path)
        assert len({t.data_ptr() for t in loaded.values()}) == 1
        assert torch.equal(loaded["t7"], base)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    else:
        refused(path.read_bytes(), "more memory", read_state_dict)
    tensors = {"input.input": base, "conv1.conv.weight": base} | {f"t{i}": base for i in range(60)}
    if contiguous:
        torch.save({"g_ema": tensors}, path)
        refused(path.read_bytes(), "share their memory")


def test_many_copies_of_one_array() -> None:
    array = np.zeros(1 << 18)
    parts = array.__reduce__()
    state = parts[2]
    arrays = [Calls(parts[0], *parts[1], state=state) for _ in range(200)]
    network = Persistent("G", _modules={"mapping": Persistent("m"), "synthesis": Persistent("s")}, other=arrays)
    refused(pickle.dumps(network), "more memory")


def parts(**kwargs: Any) -> Persistent:
    modules = {"mapping": Persistent("m"), "synthesis": Persistent("s")}
    return Persistent("G", _modules=modules, _init_kwargs=TOP | kwargs)


@pytest.mark.parametrize("share", ["object", "state", "modules"])
def test_shared_parts_are_refused(share: str) -> None:
    part = Persistent("x", _parameters={"w": torch.zeros(1)})
    for _ in range(40):
        state = part.meta["state"]
        a, b = part, part
        if share == "state":
            a, b = Persistent("x"), Persistent("x")
            a.meta["state"] = b.meta["state"] = state
        elif share == "modules":
            a, b = Persistent("x", **state), Persistent("x", **state)
        part = Persistent("x", _modules={"a": a, "b": b})
    network = parts()
    network.meta["state"]["_modules"]["mapping"] = part
    refused(pickle.dumps(network), "shared or nested")
    long = parts()
    long.meta["state"]["_modules"]["mapping"] = Persistent("x", _parameters={"w" * 1000: torch.zeros(1)})
    refused(pickle.dumps(long), "unusable name")


def test_values_that_contain_themselves() -> None:
    network = parts()
    network.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"] = {"a": network}
    refused(pickle.dumps(network), "contains itself")
    refused(pickle.dumps(parts(z_dim=functools.reduce(lambda a, _: [a], range(300), []))), "nested more than")


def stream(body: bytes) -> bytes:
    """torch's older format without storages around one pickle."""
    return b"".join(
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2),
         body, pickle.dumps([], 2))
    )  # fmt: skip


def test_nested_streams_share_the_budget() -> None:
    def outer(inner: list[bytes], times: int) -> bytes:
        load = b"ctorch.storage\n_load_from_bytes\n"
        once = [b"B" + struct.pack("<I", len(b)) + b + b"\x940" for b in inner]
        calls = b"".join(load + b"h" + bytes([i]) + b"\x85R0" for i in range(len(inner)) for _ in range(times))
        return b"\x80\x04" + b"N0" * 20 + b"".join(once) + calls + b"N."

    body = b"\x80\x02" + b"N0" * 50_000 + b"N."
    refused(outer([stream(body)], 80), "was found", seconds=5)  # read once
    refused(outer([stream(body)] * 20, 1), "too many operations")
    other = b"\x80\x02]." + pickle.dumps([()], 2)
    refused(stream(other)[:-1], "cannot be read")


def test_messages_do_not_print_what_is_shared() -> None:
    for value in (shared(list, 60), shared(tuple, 60), {"a": shared(list, 60)}, "x" * 10**6, 1 << 1000, [[1]] * 50):
        refused(pickle.dumps(parts(z_dim=value)), "z_dim has a value", seconds=5)
        data = pickle.dumps({"G_ema": Persistent(value, a=1), "x" * 1000: value})  # type: ignore[arg-type]
        refused(data, "was found|not a StyleGAN|without a class", seconds=5)
    many = {f"{'n' * 100}{i}": i for i in range(10_000)}
    with pytest.raises(CheckpointError) as caught:
        load_generator(pickle.dumps(parts(**many)))
    assert len(str(caught.value)) < 3000
    with pytest.raises(CheckpointError) as caught:
        load_generator(pickle.dumps({b"b" * 10**6: 1, "y": parts()}))
    assert len(str(caught.value)) < 3000


def test_arrays_among_the_arguments() -> None:
    good = pickle.dumps(parts(synthesis_kwargs={"resample_filter": np.zeros((2, 0))}), protocol=2)
    at = good.index(b"K\x02K\x00\x86")
    for rows in (2, 2_000_000_000):
        refused(good[:at] + b"J" + struct.pack("<i", rows) + b"K\x00\x86" + good[at + 5 :], "unknown shape")
    for shape in ((65,), (1, 65), (2, 2, 2)):
        data = pickle.dumps(parts(synthesis_kwargs={"resample_filter": np.ones(shape)}))
        refused(data, "array among the network's arguments")
    source = conversion._Renamer({"k": torch.zeros(0, 0).as_strided((1 << 40, 0), (1, 1))}, "this")
    with pytest.raises(CheckpointError, match="no filter"):
        source.kernel("k")


def test_dcgan_configurations(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    good = {"z_dim": 4, "channels": [4, 4]}
    model = DCGANGenerator.from_config(good)
    assert model.config == good
    save_generator(model, path)
    assert load_generator(path).config == good
    bad = ([4] * 20_000, [], [0], [1.0], [True], [1 << 20], "44", None, 3)
    for config in (
        *({"z_dim": 4, "channels": c} for c in bad),
        *({"z_dim": z, "channels": [4]} for z in (0, "4", None)),
    ):
        meta = {"format": "fairface_synth.model", "version": "1", "kind": "dcgan", "config": json.dumps(config)}
        save_file({"a": torch.zeros(2)}, path, meta)
        refused(path.read_bytes(), "DCGAN is not admitted", seconds=5)


def test_the_mean_is_estimated_in_parts() -> None:
    sizes: list[int] = []

    class Mapping:
        def __call__(self, z: torch.Tensor, c: torch.Tensor | None) -> torch.Tensor:
            sizes.append(len(z))
            return z * 2 + 1

    model = types.SimpleNamespace(w_avg=torch.zeros(5), z_dim=5, c_dim=0, mapping=Mapping())
    checkpoints._estimate_w_avg(model)
    assert max(sizes) == 64
    z = normals(0, torch.arange(4096), 5)
    assert torch.allclose(model.w_avg, z.mean(0) * 2 + 1, atol=1e-5)


def test_deep_values_are_freed() -> None:
    for data in (b")" + b"\x85" * 900_000, b"]" * 200_000 + b"a" * 199_999):
        with contextlib.suppress(CheckpointError):
            load_generator(b"\x80\x02" + data + b".")
    chain = b"\x80\x02" + b"ctorch\ndevice\n" * 20_000 + b"N" + b"\x85R" * 20_000 + b"."
    refused(chain, "was found")
