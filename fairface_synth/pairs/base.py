"""What a layout's reader gets and gives, and what the readers share: finding files, lines, truth values, folds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ..errors import DataError
from ..face_files import folders_in, relative

TRUTH = {
    **dict.fromkeys(("1", "1.0", "true"), True),
    **dict.fromkeys(("0", "0.0", "-1", "false"), False),
}


@dataclass(frozen=True)
class Request:
    """What a layout's reader is asked for: options of `read_pairs`."""

    root: Path
    pairs: Any
    suffix: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Listed:
    """What a layout's reader found: each image once, and the pairs as rows of them."""

    paths: Sequence[str]
    pairs: np.ndarray
    mated: np.ndarray
    folds: np.ndarray | None = None
    identities: Sequence[str] | None = None
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vocabulary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def pair_file(request: Request, usual: str, source: str) -> Path:
    """The file that was asked for, or the usual one, in the root or beside it; `source` says where to get it."""
    places = [request.root / usual, request.root.parent / usual]
    if request.pairs is not None:
        places = [Path(request.pairs), request.root / request.pairs]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        expected = " or ".join(dict.fromkeys(str(place) for place in places))
        fix = f"{source}; if it lies elsewhere, pass its path as pairs="
        raise DataError("the list of pairs is not there", expected=expected, fix=fix)
    return found


def folder_holding(root: Path, folder: str) -> str:
    """What stands between root and this folder, which lies in it or up to two levels below: "" or "a/b/".

    Nothing if it is nowhere: `missing=` says so, or the reading of an image.
    """
    level = [root]
    for _ in range(3):
        found = [place for place in level if (place / folder).is_dir()]
        if len(found) > 1:
            got = ", ".join(map(str, found))
            raise DataError(
                "several sets lie here", expected="one", got=got, fix="pass one of them as root=, and pairs="
            )
        if found:
            return relative(found[0], root)
        level = [place / sub for place in level for sub in folders_in(place)]
    return ""


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, without the spaces around them, and their numbers from 1."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        fix = f"iconv -f latin1 -t utf8 {path.name}, if it is Latin-1"
        raise DataError(f"{path} is not text in UTF-8", expected="a list of pairs", got=error, fix=fix) from error
    except OSError as error:
        raise DataError(f"cannot read {path}", got=error) from error


def no_pair(path: Path, number: int, line: str, expected: str, fix: str | None = None) -> NoReturn:
    """The error for a line that is no pair."""
    raise DataError(f"{path.name}, line {number}: not a pair", expected=expected, got=repr(line[:200]), fix=fix)


def fold_numbers(words: Sequence[str], where: Callable[[int], str]) -> np.ndarray:
    """Folds numbered from 0 in their order: by number where all are numbers."""
    if "" in words:
        raise DataError(f"{where(list(words).index(''))}: no fold", expected="a fold for every pair", got="empty")
    different = set(words)
    fraction = next((i for i, word in enumerate(words) if re.fullmatch(r"-?\d*\.\d*[1-9]\d*", word)), None)
    if fraction is not None:
        fix = "if it is a score, leave the column out, or name the others by columns="
        got = repr(words[fraction])
        raise DataError(f"{where(fraction)}: this is no fold", expected="a whole number or a name", got=got, fix=fix)
    is_number = all(re.fullmatch(r"-?\d+(\.0)?", word) for word in different)
    order = sorted(different, key=lambda word: int(float(word)) if is_number else word)  # type: ignore[arg-type, return-value]
    number = {word: i for i, word in enumerate(order)}
    return np.array([number[word] for word in words], dtype=np.int64)
