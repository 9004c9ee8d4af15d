"""The library's exceptions. Each message says what was expected, what came, and what to do."""

from __future__ import annotations


class FairFaceError(Exception):
    """Base of every error this library raises on purpose.

    Args:
        what: one sentence, what went wrong.
        expected: what would have been right.
        got: what came instead.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, *, expected: object = None, got: object = None, fix: str | None = None) -> None:
        lines = [what]
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if got is not None:
            lines.append(f"  got:      {got}")
        if fix is not None:
            lines.append(f"  fix:      {fix}")
        super().__init__("\n".join(lines))


class CheckpointError(FairFaceError, ValueError):
    """A file could not be read as a model, or asks for something that is not admitted."""


class ShapeError(FairFaceError, ValueError):
    """A tensor has the wrong shape, dtype or device."""


class GroupError(FairFaceError, ValueError):
    """An attribute, value or group name is unknown, ambiguous or empty."""


class DataError(FairFaceError, ValueError):
    """The values make the request impossible: NaN, too few samples, a singular covariance, …"""


class BudgetError(DataError):
    """What was asked for was not found within the budget; what was found is kept."""
