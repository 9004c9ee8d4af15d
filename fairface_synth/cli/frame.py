"""What all commands share: `main` and `command`, errors as text, exit codes.

Exit codes: 0 fine, 1 the data has a problem (damage, a quota that was not filled), 2 usage or bad input, 130
interrupted.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from ..errors import BudgetError, FairFaceError
from .config import read_config
from .wording import in_options

PROBLEM, USAGE, INTERRUPTED = 1, 2, 130


class _Main(click.Group):
    """Turns errors into text, in the words of the command line, and exit codes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a terminal that has no "ψ" is no reason to fail
                stream.reconfigure(errors="backslashreplace")
        ctx.meta["command"] = shlex.join(["fairface-synth", *args])
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        def warn(message: object, *_: object, **__: object) -> None:
            click.echo(f"Warning: {in_options(str(message), self._chosen(ctx))}", err=True)

        try:
            with warnings.catch_warnings():
                warnings.showwarning = warn
                return super().invoke(ctx)
        except BrokenPipeError:  # click's: the reader of the output has gone
            raise
        except (FairFaceError, OSError, MemoryError, RuntimeError) as error:  # of these some are bugs, or click's own
            text = _text(error, self._chosen(ctx))
            if ctx.meta.get("debug") or text is None:
                raise
            click.echo(f"Error: {text}", err=True)
            ctx.exit(PROBLEM if isinstance(error, BudgetError) else USAGE)
        except KeyboardInterrupt:
            click.echo("Interrupted. What is on disk is whole; export and compare go on when run again.", err=True)
            ctx.exit(INTERRUPTED)

    def _chosen(self, ctx: click.Context) -> click.Command:
        return self.commands.get(ctx.invoked_subcommand or "", self)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fairface_synth")
def main() -> None:
    """Demographically balanced faces from a biased generator, with the proof beside them.

    Begin with `fairface-synth demo`. Exit codes: 0 fine, 1 the data has a problem, 2 usage or bad input, 130
    interrupted.
    """


def command(examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command with examples in its help, and with the options that all commands share."""

    def decorate(function: Callable[..., None]) -> click.Command:
        lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
        made = main.command(epilog=f"\b\nExamples:\n{lines}")(function)
        made.params += [
            click.Option(["-q", "--quiet"], is_flag=True, help="No progress bars."),
            click.Option(["--debug"], is_flag=True, expose_value=False, callback=_set_debug, help="Show tracebacks."),
            click.Option(
                ["--config"],
                type=click.Path(exists=True, dir_okay=False),
                is_eager=True,
                expose_value=False,
                callback=_set_defaults,
                help="YAML file of options; the command line wins.",
            ),
        ]
        return made

    return decorate


def say(text: object = "") -> None:
    """On one rank only, where there are several."""
    if os.environ.get("RANK", "0") == "0":
        click.echo(str(text))


# --- details ----------------------------------------------------------------------------------------------------------


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta["debug"] = value


def _set_defaults(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    """Options from YAML become the command's defaults: so the command line wins, and click checks them alike."""
    if path is not None:
        ctx.default_map = read_config(path, ctx.command, main.commands)


def _text(error: BaseException, chosen: click.Command) -> str | None:
    """What to tell the user; nothing of an error that would be a bug of the library."""
    if isinstance(error, FairFaceError):
        return in_options("\n".join([str(error), *getattr(error, "__notes__", ())]), chosen)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    said = (str(error).splitlines() or [""])[0]
    if not (isinstance(error, MemoryError) or "out of memory" in said.lower() or "can't allocate memory" in said):
        return None
    sizes = {p.name: p.opts[0] for p in chosen.params}
    smaller = [sizes[name] for name in ("batch_size", "forward_batch", "size") if name in sizes]
    return f"not enough memory\n  got:      {said}\n  fix:      a smaller {' or '.join(smaller) or 'set'}" + (
        ", or a larger --fmr" if "fmr" in sizes else ""
    )
