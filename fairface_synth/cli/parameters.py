"""Kinds of options that several commands have: names, rates, numbers, files, folders."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

FILE = click.Path(exists=True, path_type=Path)
OUT = click.Path(path_type=Path)

pipeline_option = click.option("--pipeline", type=FILE, required=True, help="Folder that `fit` wrote.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what an earlier run wrote there.")


class Names(click.ParamType):
    """Names with commas between them."""

    name = "name,name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, list) else [part.strip() for part in value.split(",") if part.strip()]


class Rate(click.ParamType):
    """A rate, auto, or none (also 0), which is 0.0."""

    name = "rate|auto|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto":
            return value
        try:
            number = 0.0 if value == "none" else float(value)
        except ValueError:
            self.fail(f"{value!r} is not a valid float, nor auto or none.", param, ctx)
        return number or 0.0


class Number(click.ParamType):
    """A finite float, of a range where one is given; NaN would be noticed after the work only."""

    name = "float"

    def __init__(self, low: float = -math.inf, high: float = math.inf) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = click.FLOAT.convert(value, param, ctx)
        if not (math.isfinite(number) and self.low <= number <= self.high):
            bounded = math.isfinite(self.low)
            self.fail(f"{value} is not {f'in {self.low:g} … {self.high:g}' if bounded else 'finite'}.", param, ctx)
        return number


class Pair(click.ParamType):
    """KEY=VALUE."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        key, mark, text = value if isinstance(value, tuple) else str(value).partition("=")
        if not (key and mark and text):
            self.fail(f"expected KEY=VALUE, got {value!r}", param, ctx)
        return key, mark, text


def check_folder(out: Path) -> None:
    """That `--out` is a folder or can be one: before the work, not after it."""
    there = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise click.UsageError(f"--out {out}: {there} is a file where a folder is needed: name another --out.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise click.UsageError(f"--out {out}: {there} may not be written to: name another --out, or change its rights.")


def check_room(out: Path, overwrite: bool) -> None:
    """That `--out` can be written to, and holds nothing that is to be kept."""
    check_folder(out)
    if not overwrite and out.exists() and any(out.iterdir()):
        raise click.UsageError(f"{out} holds something already: name another --out, or --overwrite.")
