"""Reading every supported format, and refusing everything else without executing it."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import http.server
import io
import math
import os
import pickle
import pickletools
import struct
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from fairface_synth.errors import CheckpointError
from fairface_synth.models import checkpoints, safe_pickle
from fairface_synth.models.checkpoints import (
    load_discriminator,
    load_generator,
    read_state_dict,
    register_generator,
    save_discriminator,
    save_generator,
)
from fairface_synth.models.protocols import Generator, wrap_generator
from fairface_synth.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from fairface_synth.models.stylegan3 import StyleGAN3Generator

TOP = {"z_dim": 8, "c_dim": 0, "w_dim": 12, "img_resolution": 16, "img_channels": 3}
SMALL = {"channel_base": 128, "channel_max": 12}


def fill(model: nn.Module) -> Any:
    with torch.no_grad():
        for name, t in model.state_dict().items():
            if name.endswith(("bias", "noise_strength", "w_avg")):
                t.add_(torch.randn_like(t) * 0.2)
    return model.eval().requires_grad_(False)


# --- a writer of NVIDIA's layout: objects that pickle as calls of torch_utils.persistence ---------


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError("the checkpoint's code was called")


class Persistent:
    def __init__(self, class_name: str, **state: Any) -> None:
        meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name}
        self.meta = {**meta, "state": state}

    def __reduce__(self) -> tuple:
        return _reconstruct_persistent_obj, (self.meta,)


@pytest.fixture(autouse=True)
def persistence_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence")
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)


def official(
    model: nn.Module, name: str, kwargs: dict, args: tuple = (), frozen: tuple[str, ...] = (), **attributes: Any
) -> Persistent:
    """The module tree of `model` as persistent objects; weights whose name contains `frozen` become buffers."""

    def convert(module: nn.Module, class_name: str, prefix: str, **more: Any) -> Persistent:
        is_frozen = any(f in prefix for f in frozen)
        params = {k: None if v is None else nn.Parameter(v.clone()) for k, v in module._parameters.items()}
        state = {
            "_parameters": {} if is_frozen else collections.OrderedDict(params),
            "_buffers": {k: v if v is None else v.clone() for k, v in module._buffers.items()}
            | ({k: v if v is None else v.detach() for k, v in params.items()} if is_frozen else {}),
            "_modules": collections.OrderedDict(
                (k, convert(m, type(m).__name__, f"{prefix}{k}.")) for k, m in module._modules.items()
            ),
            "training": False,
            "_backward_hooks": collections.OrderedDict(),
            "weight_gain": np.float64(0.25),
            "size": np.asarray([36, 36]),
            "_non_persistent_buffers_set": set(),
        }
        if prefix:
            state |= attributes
        return Persistent(class_name, **state, **more)

    return convert(model, name, "", _init_args=args, _init_kwargs=kwargs)


def snapshot(**networks: Any) -> dict:
    return {**networks, "training_set_kwargs": {"class_name": "training.dataset.X"}, "augment_pipe": None}


def same(a: Any, b: Any, n: int = 2) -> None:
    ws = torch.randn(n, a.num_ws, a.w_dim)
    assert torch.equal(a.synthesize(ws), b.synthesize(ws))
    z, c = torch.randn(n, a.z_dim), torch.eye(a.c_dim)[:n] if a.c_dim else None
    assert torch.equal(a.map(z, c, 0.7), b.map(z, c, 0.7))


# --- official pickles -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("nesting", ["nested", "flat", "positional"])
def test_official_stylegan2(protocol: int, nesting: str) -> None:
    synthesis = SMALL | {"conv_clamp": 0.5, "architecture": "resnet", "resample_filter": [1, 2, 1]}
    mapping = {"num_layers": 3, "lr_multiplier": np.float64(0.01)}
    model = fill(StyleGAN2Generator({**TOP, "c_dim": 3, "mapping": mapping, "synthesis": synthesis}))
    top = TOP | {"c_dim": 3}
    given, runtime = SMALL | {"resample_filter": [1, 2, 1], "architecture": "resnet"}, {"num_fp16_res": 4}
    args: tuple = ()
    if nesting == "nested":
        kwargs = top | {"mapping_kwargs": mapping, "synthesis_kwargs": given | runtime | {"conv_clamp": 0.5}}
    elif nesting == "flat":
        kwargs = top | given | runtime | {"mapping_kwargs": mapping, "fused_modconv_default": "inference_only"}
    else:
        args, kwargs = (*top.values(), mapping, given), {}
    network = official(model, "Generator", kwargs, args, conv_clamp=0.5)
    data = pickle.dumps(snapshot(G_ema=network, G=network), protocol)
    loaded = load_generator(data)
    same(model, loaded)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    same(model, load_generator(pickle.dumps(network, protocol)))
    same(model, load_generator(io.BytesIO(data), which="G"))
    assert load_generator(data, dtype=torch.float64).w_avg.dtype == torch.float64
    assert type(loaded).__name__ in repr(loaded)


def test_conv_clamp_follows_what_the_layers_kept() -> None:
    """The two repositories have other defaults, and neither is written into the arguments."""
    model = fill(StyleGAN2Generator({**TOP, "synthesis": SMALL}))
    for stored in (None, 256, 3.0):
        network = official(model, "Generator", TOP | {"synthesis_kwargs": SMALL}, conv_clamp=stored)
        assert load_generator(pickle.dumps(network)).config["synthesis"]["conv_clamp"] == stored
    for kwargs, expected in ((TOP | SMALL, 256), (TOP | {"synthesis_kwargs": SMALL}, None)):
        network = official(model, "Generator", kwargs)
        assert load_generator(pickle.dumps(network)).config["synthesis"]["conv_clamp"] == expected


@pytest.mark.parametrize("config", [{}, {"conv_kernel": 1, "use_radial_filters": True}], ids=["t", "r"])
def test_official_stylegan3(config: dict) -> None:
    settings3 = SMALL | config | {"num_layers": 5}
    model = fill(StyleGAN3Generator({**TOP, "mapping": {"num_layers": 2}, "synthesis": settings3}))
    model.synthesis.input.transform.copy_(torch.tensor([[0.0, -1, 0.1], [1, 0, 0], [0, 0, 1]]))
    network = official(model, "Generator", TOP | settings3 | {"num_fp16_res": 4, "magnitude_ema_beta": 0.9})
    same(model, load_generator(pickle.dumps(snapshot(G_ema=network))))


@pytest.mark.parametrize("architecture", ["resnet", "skip"])
def test_official_discriminator(architecture: str) -> None:
    config = {"c_dim": 3, "img_resolution": 16, "img_channels": 3, "architecture": architecture, **SMALL}
    block, epilogue = {"freeze_layers": 5}, {"mbstd_group_size": None, "mbstd_num_channels": 2}
    model = fill(StyleGAN2Discriminator(config | {"block": block, "epilogue": epilogue, "conv_clamp": 256}))
    kwargs = config | {"block_kwargs": block, "epilogue_kwargs": epilogue, "num_fp16_res": 4, "mapping_kwargs": {}}
    network = official(model, "Discriminator", kwargs, frozen=("b16",), conv_clamp=256)
    loaded = load_discriminator(pickle.dumps(snapshot(D=network)))
    x, c = torch.randn(2, 3, 16, 16), torch.eye(3)[:2]
    for size in (1, None):
        assert torch.equal(loaded.score(x, c, size), model.score(x, c, size))
    assert loaded.config["conv_clamp"] == 256


class EasyDict(dict):
    """NVIDIA's dictionary with attribute access; pickled by name."""


@pytest.mark.parametrize("protocol", [2, 4])
def test_easy_dicts_are_dictionaries(monkeypatch: pytest.MonkeyPatch, protocol: int) -> None:
    module = types.ModuleType("dnnlib.util")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dnnlib", types.ModuleType("dnnlib"))
    monkeypatch.setitem(sys.modules, "dnnlib.util", module)
    monkeypatch.setattr(EasyDict, "__module__", "dnnlib.util")
    model = fill(StyleGAN2Generator({**TOP, "synthesis": SMALL}))
    kwargs = EasyDict(TOP, synthesis_kwargs=EasyDict(SMALL), mapping_kwargs=EasyDict())
    data = pickle.dumps(EasyDict(G_ema=official(model, "Generator", kwargs)), protocol)
    same(model, load_generator(data))


def test_generators_follow_the_protocol() -> None:
    for cls in (StyleGAN2Generator, StyleGAN3Generator):
        assert isinstance(cls({**TOP, "synthesis": SMALL}), Generator)


def test_a_missing_mean_is_estimated() -> None:
    model = fill(StyleGAN2Generator({**TOP, "c_dim": 2, "synthesis": SMALL, "mapping": {"w_avg_beta": None}}))
    kwargs = TOP | {"c_dim": 2, "mapping_kwargs": {"w_avg_beta": None}, "synthesis_kwargs": SMALL}
    network = official(model, "Generator", kwargs)
    tree = network.meta["state"]["_modules"]["mapping"].meta["state"]["_buffers"]
    del tree["w_avg"]
    loaded = load_generator(pickle.dumps(network))
    z = torch.randn(20000, 8)
    mean = loaded.map(z, F.one_hot(torch.arange(20000) % 2, 2).float())[:, 0].mean(0)
    assert torch.allclose(loaded.w_avg, mean, atol=0.1)


def test_unknown_and_absurd_arguments() -> None:
    model = fill(StyleGAN2Generator({**TOP, "synthesis": SMALL}))
    for change in ({"use_magic": 1}, {"img_resolution": 1 << 20}, {"w_dim": 10**12}, {"channel_max": "many"}):
        network = official(model, "Generator", TOP | {"synthesis_kwargs": SMALL} | change)
        with pytest.raises(CheckpointError, match=next(iter(change)).split("_")[-1]):
            load_generator(pickle.dumps(network))
    # Sizes within bounds, but not those of the tensors: nothing of 8192² is ever allocated.
    network = official(
        model, "Generator", TOP | {"img_resolution": 8192, "channel_max": 16384, "channel_base": 1 << 24}
    )
    with pytest.raises(CheckpointError, match="missing"):
        load_generator(pickle.dumps(network))
    wide = official(model, "Generator", TOP | {"w_dim": 16000, "synthesis_kwargs": SMALL})
    with pytest.raises(CheckpointError, match="wrong shape"):
        load_generator(pickle.dumps(wide))
    with pytest.raises(CheckpointError, match="discriminator"):
        load_discriminator(pickle.dumps(snapshot(D=official(model, "Generator", TOP))))
    bad = fill(StyleGAN2Generator({**TOP, "synthesis": SMALL}))
    bad.synthesis.b8.conv0.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(CheckpointError, match=r"synthesis.b8.conv0.weight contains NaN"):
        load_generator(pickle.dumps(official(bad, "Generator", TOP | {"synthesis_kwargs": SMALL})))


# --- our own files --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])
def test_save_and_load(tmp_path: Path, kind: str) -> None:
    cls = StyleGAN2Generator if kind == "stylegan2" else StyleGAN3Generator
    model = fill(cls({**TOP, "c_dim": 2, "synthesis": SMALL}))
    path = tmp_path / "g.safetensors"
    save_generator(model, path)
    same(model, load_generator(str(path)))
    same(model, load_generator(path.read_bytes(), sha256=hashlib.sha256(path.read_bytes()).hexdigest()[:12]))
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]
    with pytest.raises(CheckpointError, match="another kind"):
        load_discriminator(path)
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_generator(path, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="hexadecimal"):
        load_generator(path, sha256="xyz")


def test_save_discriminator(tmp_path: Path) -> None:
    d = fill(StyleGAN2Discriminator({"c_dim": 0, "img_resolution": 16, "img_channels": 3, **SMALL}))
    save_discriminator(d, tmp_path / "d.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(load_discriminator(tmp_path / "d.safetensors").score(x), d.score(x))


def test_an_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fill(StyleGAN2Generator({**TOP, "synthesis": SMALL}))
    path = tmp_path / "g.safetensors"
    save_generator(model, path)
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_generator(model, path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_saving_what_cannot_be_saved(tmp_path: Path) -> None:
    wrapped = wrap_generator(synthesize=lambda w: torch.zeros(len(w), 3, 4, 4), z_dim=4, resolution=4)
    with pytest.raises(CheckpointError, match="WrappedGenerator cannot be saved"):
        save_generator(wrapped, tmp_path / "w.safetensors")


class Registered(nn.Module):
    """A user's class, with a buffer that is not saved."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.config = {"width": width}
        self.weight = nn.Parameter(torch.randn(width))
        self.register_buffer("scale", torch.full((width,), 2.0), persistent=False)

    @classmethod
    def from_config(cls, config: dict) -> Registered:
        return cls(config["width"])


def test_register_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_GENERATORS", checkpoints._GENERATORS)
    monkeypatch.setitem(checkpoints._GENERATORS, "x", "")
    register_generator("x", f"{__name__}:Registered")
    model = Registered(5)
    save_generator(model, tmp_path / "x.safetensors")
    loaded = load_generator(tmp_path / "x.safetensors")
    assert torch.equal(loaded.weight, model.weight)
    assert torch.equal(loaded.scale, model.scale)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not one of ours"):
        load_generator(path)
    save_file({"a": torch.zeros(2)}, path, {"format": "fairface_synth.model", "version": "99"})
    with pytest.raises(CheckpointError, match="another version"):
        load_generator(path)
    meta = {"format": "fairface_synth.model", "version": "1", "kind": "stylegan2", "config": "{"}
    save_file({"a": torch.zeros(2)}, path, meta)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_generator(path)


# --- state dictionaries ---------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", [False, True])
def test_read_state_dict(tmp_path: Path, legacy: bool) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "plain": base,
        "transposed": base.t(),
        "slice": base[1:3, 2:],
        "half": base.half(),
        "bf16": base.bfloat16(),
        "ints": torch.arange(5),
        "bools": torch.tensor([True, False]),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(base.clone()),
    }
    for value in (tensors, {"state_dict": tensors, "epoch": 3}, collections.OrderedDict(tensors)):
        path = tmp_path / "s.pth"
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        loaded = read_state_dict(path)
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(loaded[name], tensor), name
            assert loaded[name].dtype == tensor.dtype
            assert loaded[name].is_contiguous()
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert module.load_state_dict(read_state_dict(path))
    save_file({"a": base}, tmp_path / "s.safetensors")
    assert torch.equal(read_state_dict(tmp_path / "s.safetensors")["a"], base)
    for wrong in ([1, 2], {"a": 3}, {}, {"a": base, "b": "text"}):
        torch.save(wrong, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
            read_state_dict(path)


# --- nothing is executed --------------------------------------------------------------------------


class Calls:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = (function, args, state) if state is not None else (function, args)

    def __reduce__(self) -> tuple:
        return self.reduced


def readers() -> list[Any]:
    return [load_generator, load_discriminator, read_state_dict]


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_calls_are_refused(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "executed"
    attacks = [
        Calls(os.system, f"touch {marker}"),
        Calls(eval, f"open({str(marker)!r}, 'w')"),
        Calls(getattr, "x", "upper"),
        Calls(__import__, "os"),
        Calls(torch.load, str(marker)),
        Calls(np.load, str(marker)),
        Calls(bytearray, 10**12),
        Calls(nn.Linear, 2, 3),
        functools.partial(print, 1),
    ]
    for attack in attacks:
        for value in (attack, {"G_ema": attack}, {"g_ema": {"input.input": attack, "conv1.conv.weight": 1}}):
            data = pickle.dumps(value, protocol)
            for read in readers():
                with pytest.raises(CheckpointError, match=r"found|cannot be read"):
                    read(data)
    assert not marker.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_calls_in_torch_files_are_refused(tmp_path: Path, legacy: bool) -> None:
    marker = tmp_path / "executed"
    path = tmp_path / "x.pt"
    torch.save({"g_ema": Calls(os.system, f"touch {marker}")}, path, _use_new_zipfile_serialization=not legacy)
    for read in readers():
        with pytest.raises(CheckpointError, match=r"posix.system|nt.system"):
            read(path)
    torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"torch.nn.modules.linear.Linear"):
        load_generator(path)
    inner = io.BytesIO()
    torch.save(Calls(os.system, f"touch {marker}"), inner, _use_new_zipfile_serialization=False)
    nested = Calls(torch.storage._load_from_bytes, inner.getvalue())
    with pytest.raises(CheckpointError, match=r"posix.system|nt.system"):
        load_generator(pickle.dumps({"G_ema": nested}))
    assert not marker.exists()


def test_all_refused_names_are_listed() -> None:
    data = pickle.dumps([Calls(os.getcwd), Calls(os.getpid), Calls(nn.Linear, 1, 1)])
    with pytest.raises(CheckpointError, match=r"getcwd.*getpid.*torch.nn.modules.linear.Linear"):
        load_generator(data)


def global_then_build(module: str, name: str, state: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b."


@pytest.mark.parametrize("key", list(safe_pickle._TABLE), ids=".".join)
def test_stand_ins_cannot_be_altered(key: tuple[str, str]) -> None:
    """BUILD would set attributes or call __setstate__ on whatever a name stands for."""
    attribute = pickle.dumps({"call": 1, "name": 2, "__call__": 3, "update": 4}, 2)[2:-1]
    before = {k: repr(v) for k, v in safe_pickle._TABLE.items()}
    for state in (attribute, b"N" + attribute + b"\x86", attribute + b"N\x86"):
        with pytest.raises(CheckpointError):
            load_generator(global_then_build(*key, state))
    assert {k: repr(v) for k, v in safe_pickle._TABLE.items()} == before
    stand_in = safe_pickle._TABLE[key]
    if isinstance(stand_in, safe_pickle.StandIn):
        with pytest.raises(pickle.UnpicklingError):
            stand_in.call = print
        with pytest.raises(pickle.UnpicklingError):
            del stand_in.call


def test_tensors_must_fit_their_storage() -> None:
    storage = torch.zeros(6).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    ordered = collections.OrderedDict()
    for offset, size, stride in (
        (0, (7,), (1,)),
        (5, (2,), (1,)),
        (0, (2, 3), (4, 1)),
        (0, (10**6,), (0,)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2**40, 2**40), (0, 0)),
        (0, (2, 2), (1,)),
        (0, ("a",), (1,)),
    ):
        broken = Calls(torch._utils._rebuild_tensor_v2, typed, offset, size, stride, False, ordered)
        with pytest.raises(CheckpointError):
            read_state_dict(pickle.dumps({"a": broken}))
    fine = Calls(torch._utils._rebuild_tensor_v2, typed, 1, (2, 2), (2, 1), False, ordered)
    assert read_state_dict(pickle.dumps({"a": fine}))["a"].shape == (2, 2)


def test_bombs_are_refused(tmp_path: Path) -> None:
    bombs = {
        "memo": b"\x80\x02]r\xff\xff\xff\x7f.",
        "text memo": b"\x80\x02]p999999999\n.",
        "length": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
        "nesting": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "extension": b"\x80\x02\x82\x01.",
        "long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
        "stack": b"\x80\x02.",
        "mark": b"\x80\x02(((.",
    }
    for name, data in bombs.items():
        for read in readers():
            with pytest.raises(CheckpointError):
                read(data)
        assert name
    state = b"\x80\x02" + b"}X\x01\0\0\0a" * 100_000 + b"}" + b"s" * 100_000 + b"."
    with pytest.raises(CheckpointError):
        read_state_dict(state)
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a/data.pkl", b"\0" * 10**7)
    with pytest.raises(CheckpointError, match="compressed"):
        load_generator(path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a/readme.txt", b"hello")
    with pytest.raises(CheckpointError, match=r"readme\.txt"):
        load_generator(path)


def test_storages_must_fit_their_zip_members(tmp_path: Path) -> None:
    good, bad = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"w": torch.randn(10)}, good)
    with zipfile.ZipFile(good) as a, zipfile.ZipFile(bad, "w") as b:
        for member in a.infolist():
            content = a.read(member)
            b.writestr(member.filename, content[:-4] if "/data/" in member.filename else content)
    assert read_state_dict(good)["w"].shape == (10,)
    with pytest.raises(CheckpointError, match="does not fit"):
        read_state_dict(bad)


def small_pickle() -> bytes:
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    model = StyleGAN2Generator(
        {**TOP, "img_resolution": 8, "synthesis": {"channel_max": 2}, "mapping": {"num_layers": 1}}
    )
    kwargs = TOP | {"img_resolution": 8, "synthesis_kwargs": {"channel_max": 2}, "mapping_kwargs": {"num_layers": 1}}
    return pickle.dumps({"G_ema": official(model, "Generator", kwargs)})


def test_damaged_files() -> None:
    data = small_pickle()
    load_generator(data)
    for length in [0, 1, 2, 10, *range(20, len(data), len(data) // 60)]:
        with pytest.raises(CheckpointError):
            load_generator(data[:length])
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data)
        broken[rng.integers(len(data))] = rng.integers(256)
        with contextlib.suppress(CheckpointError):
            load_generator(bytes(broken))


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x20\0\0\0\0\0\0\0{"]))
@settings(max_examples=100)
def test_garbage_is_a_checkpoint_error(data: bytes, start: bytes) -> None:
    for read in readers():
        with pytest.raises(CheckpointError):
            read(start + data)


# --- what was found is said -----------------------------------------------------------------------


def test_wrong_but_valid_files(tmp_path: Path) -> None:
    sklearn = pytest.importorskip("sklearn.linear_model")
    for value, text in (
        ([1, 2, 3], "a list of 3"),
        ({"epoch": 1, "weights": "x"}, r"epoch \(int\), weights \(str\)"),
        ("text", "str"),
        (None, "NoneType"),
        (sklearn.LogisticRegression(), "sklearn.linear_model._logistic.LogisticRegression"),
        ({"G_ema": Persistent("AugmentPipe", _modules={"a": Persistent("B")})}, "AugmentPipe with a"),
        (snapshot(G=Persistent("Generator")), r"G \(network Generator\)"),
    ):
        with pytest.raises(CheckpointError, match=text):
            load_generator(pickle.dumps(value))
    with pytest.raises(CheckpointError, match="StyleGAN3"):
        load_generator(pickle.dumps([]))
    with pytest.raises(CheckpointError, match="no file"):
        load_generator(tmp_path / "missing.pkl")
    with pytest.raises(CheckpointError):
        load_generator(tmp_path)
    with pytest.raises(CheckpointError, match="text mode"):
        load_generator(io.StringIO("x"))
    with pytest.raises(CheckpointError, match="not known"):
        load_generator(3)


def test_tensorflow_pickles() -> None:
    data = b"\x80\x02cdnnlib.tflib.network\nNetwork\n)\x81}b."
    for value in (data, b"\x80\x02]" + data[2:-1] + b"a."):
        with pytest.raises(CheckpointError, match=r"legacy\.py"):
            load_generator(value)


def test_numpy_and_containers_of_old_protocols() -> None:
    """What NVIDIA's states hold besides tensors, in every protocol."""
    value = {
        "f": np.float64(0.1),
        "i": np.int32(-3),
        "b": np.bool_(True),
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "t": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "s": {1, 2},
        "o": collections.OrderedDict(a=1),
        "bytes": b"\x00\xff",
        "z": torch.Size([2, 3]),
    }
    for protocol in (2, 3, 4, 5):
        read = safe_pickle.Resolver()(safe_pickle.read_pickle(pickle.dumps(value, protocol)))
        assert (read["f"], read["i"], read["b"], read["s"], read["bytes"]) == (0.1, -3, True, {1, 2}, b"\x00\xff")
        assert read["z"] == (2, 3)
        for key in ("a", "t", "big"):
            assert np.array_equal(read[key], value[key])
    for bad in (np.array([None, 1], dtype=object), np.array(["text"]), np.zeros(2, dtype=[("a", "f4")])):
        with pytest.raises((pickle.UnpicklingError, CheckpointError)):
            safe_pickle.Resolver()(safe_pickle.read_pickle(pickle.dumps(bad)))
    assert pickletools.optimize(pickle.dumps(1))


# --- downloads ------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args: Any) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()


def test_urls(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, asked = server
    data = small_pickle()
    (tmp_path / "net.pkl").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    cache = tmp_path / "cache"
    a = load_generator(f"{url}/net.pkl", sha256=digest, cache_dir=cache)
    b = load_generator(f"{url}/net.pkl", sha256=digest[:8].upper(), cache_dir=cache)
    same(a, b)
    assert len(asked) == 1
    assert len(list(cache.iterdir())) == 1
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_generator(f"{url}/net.pkl", sha256="0" * 64, cache_dir=cache)
    with pytest.raises(CheckpointError, match="could not be fetched"):
        load_generator(f"{url}/net.pkl", sha256="0" * 64, cache_dir=tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())
    with pytest.raises(CheckpointError, match="could not be fetched"):
        load_generator(f"{url}/absent.pkl", cache_dir=cache)
    with pytest.raises(CheckpointError, match="could not be fetched"):
        load_generator("http://127.0.0.1:9/net.pkl", cache_dir=cache)
    with pytest.raises(CheckpointError, match="kind of URL"):
        load_generator("ftp://example.org/net.pkl")
    with pytest.raises(CheckpointError, match="kind of URL"):
        load_generator(f"file://{tmp_path}/net.pkl")


def test_a_damaged_download_is_repaired(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    url, asked = server
    data = small_pickle()
    (tmp_path / "net.pkl").write_bytes(b"<html>please log in</html>")
    cache, digest = tmp_path / "cache", hashlib.sha256(data).hexdigest()
    with pytest.raises(CheckpointError):
        load_generator(f"{url}/net.pkl", cache_dir=cache)
    (tmp_path / "net.pkl").write_bytes(data)
    for _ in range(2):
        load_generator(f"{url}/net.pkl", cache_dir=cache, sha256=digest)
    assert len(asked) == 2
    assert [p.read_bytes() for p in cache.iterdir()] == [data]
