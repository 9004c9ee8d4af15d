"""Names of groups and attributes as users type them: checked before the work, with the name that was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from itertools import permutations, product
from typing import TYPE_CHECKING

from ..errors import GroupError

if TYPE_CHECKING:
    from ..groups import Groups


def check_groups(names: Iterable[str], groups: Groups, option: str) -> None:
    """Names of groups as an option gives them.

    Raises:
        GroupError: a name that is no group; where one is like it, with that.
    """
    for name in names:
        try:
            groups.parse(name)
        except GroupError as error:
            near = None if "=" in name else _nearest(name, _spellings(groups))
            if near is None or not str(error).startswith("unknown group"):  # contradictions are no typing errors
                raise
            known = "; ".join(f"{attribute}: {', '.join(values)}" for attribute, values in groups.attributes.items())
            expected = f"{known}; or several with hyphens, such as {groups.names[0]}"
            raise GroupError(f"unknown group {name!r} in {option}", expected=expected, fix=_meant(near)) from error


def check_attributes(names: Iterable[str], known: Iterable[str]) -> None:
    """Names that `--attributes` gives, before the latents are labelled.

    Raises:
        GroupError: none, or one that the labeller does not have.
    """
    names, known = list(names), list(known)
    expected = f"some of {', '.join(known)}"
    if not names:
        raise GroupError("--attributes names none", expected=expected, fix="leave it out for all of them")
    for name in names:
        if name not in known:
            near = _nearest(name, known)
            fix = _meant(near) if near else "another --labeller, which knows it"
            raise GroupError(f"unknown attribute {name!r} in --attributes", expected=expected, fix=fix)


# --- details ----------------------------------------------------------------------------------------------------------


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), list(known), 1, 0.6)), None)


def _spellings(groups: Groups) -> Iterator[str]:
    """Every name of every group, whole or partial, its values in any order."""
    for length in range(1, len(groups.attributes) + 1):
        for attributes in permutations(groups.attributes.values(), length):
            yield from ("-".join(values) for values in product(*attributes))


def _meant(near: str) -> str:
    return f"did you mean {near!r}?"
