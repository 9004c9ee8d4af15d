"""The package as a whole: fast to import, everything public documented."""

from __future__ import annotations

import inspect
import subprocess
import sys

import fairface_synth as ffs


def test_import_is_light() -> None:
    """Heavy packages load when used; the import takes a second of the processor, or half of what torch's own takes."""
    heavy = [
        "matplotlib",
        "sklearn",
        "scipy",
        "ray",
        "facenet_pytorch",
        "torchvision",
        "PIL",
        "pandas",
        "pyarrow",
        "statsmodels",
        "jax",
        "click",
        "yaml",
    ]
    code = (
        "import sys, time; before = time.process_time(); import torch; start = time.process_time(); "
        "import fairface_synth; print(time.process_time() - start, start - before); "
        f"print(','.join(m for m in {heavy} "
        "if m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    own, torch_own = map(float, out[0].split())
    assert own < max(1.0, torch_own / 2)
    assert out[1] == ""


def test_everything_public_exists_and_is_documented() -> None:
    for name in ffs.__all__:
        thing = getattr(ffs, name)
        assert inspect.getdoc(thing), f"{name} has no docstring"


def test_errors_say_what_was_expected_what_came_and_what_to_do() -> None:
    error = ffs.ShapeError("wrong", expected=[1, 2], got=[3], fix="do this")
    assert str(error) == "wrong\n  expected: [1, 2]\n  got:      [3]\n  fix:      do this"
    for kind in (ffs.CheckpointError, ffs.ShapeError, ffs.GroupError, ffs.DataError):
        assert issubclass(kind, ffs.FairFaceError)
        assert issubclass(kind, ValueError)
