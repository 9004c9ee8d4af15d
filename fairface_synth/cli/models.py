"""The models that options name: found, loaded when first used, written down beside a pipeline."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import DataError, FairFaceError

if TYPE_CHECKING:
    from ..pipeline import Pipeline

MODELS = "models.json"  # beside a saved pipeline: how its models were named
_WORDS = ("demo", "vggface2", "casia-webface", "none")  # that name models which are no files
_DTYPES = ("float32", "bfloat16", "float64")
_KINDS = {  # what options take: words, and files of what
    "generator": (("demo",), "a generator's checkpoint"),
    "labeller": (("demo",), "FairFace's state dict"),
    "judge": (("demo",), "FairFace's state dict"),
    "embedder": (_WORDS, "the state dict of an InceptionResnetV1"),
    "discriminator": ((), "a checkpoint with a discriminator"),
    "mac": ((), "what MAC.save wrote"),
}
MODEL_OPTIONS = {
    "generator": click.option("--generator", metavar="demo|FILE", help="Generator: demo, or a checkpoint."),
    "labeller": click.option("--labeller", metavar="demo|FILE", help="Labeller: demo, or FairFace's state dict."),
    "races": click.option("--races", type=click.Choice(["7", "4"]), help="Of FairFace's labeller.  [default: 7]"),
    "embedder": click.option(
        "--embedder",
        metavar="demo|vggface2|casia-webface|FILE|none",
        help="Identity embedder.  [default: demo with the demo generator, otherwise none]",
    ),
    "detector": click.option(
        "--detector/--no-detector", default=None, help="Also ask MTCNN whether there is a face.  [default: no]"
    ),
    "device": click.option("--device", help="Where the networks run, for example cuda.  [default: cpu]"),
    "dtype": click.option("--dtype", type=click.Choice(_DTYPES), help="Their arithmetic.  [default: float32]"),
}


def model_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Those model options, handed to the command as one `Models`."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(**options: Any) -> None:
            given = {name: options.pop(name) for name in names}
            return function(models=Models(**given), **options)

        for name in reversed(names):
            command = MODEL_OPTIONS[name](command)
        return command

    return decorate


@dataclass
class Models:
    """The models as the options name them, loaded when first used. None: not named."""

    generator: str | None = None
    labeller: str | None = None
    races: str | None = None
    embedder: str | None = None
    detector: bool | None = None
    device: str | None = None
    dtype: str | None = None

    def names(self) -> dict[str, Any]:
        """What to write down to find the same models again; the device is not among it."""
        paths = {name: getattr(self, name) for name in ("generator", "labeller", "embedder")}
        found = {
            k: v if v in (None, *_WORDS) or not Path(v).is_file() else str(Path(v).resolve()) for k, v in paths.items()
        }
        return {**found, "races": self.races, "detector": self.detector, "dtype": self.dtype}

    def over(self, stored: Mapping[str, Any]) -> Models:
        """These where they are named, the stored ones elsewhere."""
        given = {name: value for name, value in vars(self).items() if value is not None and name in MODEL_OPTIONS}
        return Models(**{**{k: v for k, v in stored.items() if k in MODEL_OPTIONS}, **given})

    def filled(self) -> Models:
        """Unnamed ones are the bundled world's, if the generator is."""
        demo = self.generator in (None, "demo")
        if not demo and self.labeller is None:
            raise click.UsageError("--generator FILE needs --labeller: FairFace's state dict, or demo.")
        unnamed = {"generator": "demo", "labeller": "demo", "embedder": "demo" if demo else "none"}
        return self.over({**unnamed, "races": "7", "detector": False, "dtype": "float32"})

    @cached_property
    def torch_device(self) -> str:
        """Under torchrun every rank takes the GPU of its number."""
        import torch

        rank = os.environ.get("LOCAL_RANK")
        device = f"cuda:{rank}" if self.device == "cuda" and rank is not None else self.device or "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            got = f"{device}: {str(error).splitlines()[0]}"
            raise DataError(
                "this device cannot be used",
                expected="cpu, cuda, cuda:1, …",
                got=got,
                fix="--device cpu, or a torch that was built for this GPU (python -m torch.utils.collect_env)",
            ) from error
        return device

    @cached_property
    def torch_dtype(self) -> Any:
        import torch

        return getattr(torch, self.dtype or "float32")

    @cached_property
    def world(self) -> Any:
        from ..models.demo import load_demo

        return load_demo(dtype=self.torch_dtype, device=self.torch_device)

    def load_generator(self) -> Any:
        from ..models.checkpoints import load_generator

        if self.generator in (None, "demo"):
            return self.world.generator
        with read_for("generator", str(self.generator)):
            return load_generator(str(self.generator), self.torch_device, self.torch_dtype)

    def load_labeller(self) -> Any:
        return self._labeller("labeller", self.labeller or "demo")

    def load_judge(self, name: str) -> Any:
        """A second labeller; "demo" is the bundled world's judge."""
        check_model("judge", name)
        return self._labeller("judge", name)

    def _labeller(self, option: str, name: str) -> Any:
        from ..models.fairface import load_labeller

        if name == "demo":
            return getattr(self.world, option)
        device, dtype = self.torch_device, self.torch_dtype
        with read_for(option, name):
            return load_labeller(name, races=4 if self.races == "4" else 7, device=device, dtype=dtype)

    def load_embedder(self) -> Any:
        from ..models.facenet import load_embedder

        if self.embedder in (None, "none"):
            return None
        if self.embedder == "demo":
            return self.world.embedder
        with read_for("embedder", str(self.embedder)):
            return load_embedder(str(self.embedder), self.torch_device, self.torch_dtype)

    def load_detector(self) -> Any:
        from ..models.facenet import load_detector

        return load_detector(self.torch_device) if self.detector else None

    def check(self, stored: Mapping[str, Any] | None = None, where: str = "") -> Models:
        """Names of files that are not there, before an hour of work; `where` says where the stored ones stand."""
        for name in ("generator", "labeller", "embedder"):
            value = getattr(self, name)
            if value is not None:
                check_model(name, value, where if (stored or {}).get(name) == value else "")
        return self


def check_model(option: str, name: str, where: str = "") -> None:
    """Whether that word, address or file is there.

    Raises:
        click.UsageError: it is not.
    """
    words, kind = _KINDS[option]
    if name in words or "://" in name or Path(name).is_file():
        return
    what = f"{name!r} is a folder" if Path(name).is_dir() else f"there is no file {name!r}"
    said = f", which {where} names; name it anew with --{option}" if where else ""
    raise click.UsageError(f"--{option}: {what}{said}; expected {' or '.join((*words, kind))}.")


@contextmanager
def read_for(option: str, name: object) -> Iterator[None]:
    """Errors of a file that is no such model say which option named it."""
    try:
        yield
    except FairFaceError as error:
        words, kind = _KINDS[option]
        error.add_note(f"  option:   --{option} {name}, which takes {' or '.join((*words, kind))}")
        raise


def open_pipeline(folder: Path, given: Models) -> tuple[Pipeline, Models]:
    """A saved pipeline with the models it was fitted with, and those."""
    from ..pipeline import Pipeline

    stored = _stored(folder)
    unnamed = {name: value for name, value in stored.items() if getattr(given, name, None) is None}
    models = given.over(stored).filled().check(unnamed, str(folder / MODELS))
    pipeline = Pipeline.load(
        folder,
        models.load_generator(),
        models.load_labeller(),
        detector=models.load_detector(),
        embedder=models.load_embedder(),
    )
    return pipeline, models


def save_pipeline(pipeline: Pipeline, models: Models, out: Path, overwrite: bool) -> None:
    """A pipeline, and how its models were named."""
    from ..artifacts import atomic_path

    pipeline.save(out, overwrite=overwrite)
    with atomic_path(out / MODELS) as path:
        path.write_text(json.dumps(models.names(), indent=1) + "\n", encoding="utf-8")


# --- details ----------------------------------------------------------------------------------------------------------


def _stored(folder: Path) -> dict[str, Any]:
    """How the models of a saved pipeline were named; nothing if it was not saved by `fit`."""
    path = folder / MODELS
    if not path.exists():
        return {}
    fix = "delete it, and name the models: --generator, --labeller, --embedder"
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read", expected="json", got=error, fix=fix) from error
    for name, value in stored.items():
        fits = isinstance(value, bool if name == "detector" else str) and (name != "dtype" or value in _DTYPES)
        if name in MODEL_OPTIONS and value is not None and not fits:
            raise DataError(f"{path} cannot be read", expected=f"a value of --{name}", got=repr(value), fix=fix)
    return stored
