"""The command line: `fairface-synth demo | fit | sample | export | verify | audit | compare`.

Each command reads its options, calls the library and prints what it returns; nothing is computed here. A module a
command, named like it; `frame` has what all commands share, `models` finds the models that the options name.
"""

from __future__ import annotations

from . import audit, compare, demo, export, fit, sample, verify  # noqa: F401  (each adds its command to main)
from .frame import main

__all__ = ["main"]
