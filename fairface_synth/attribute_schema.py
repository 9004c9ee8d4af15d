"""Binary attributes: their names, as sources write them, and hard labels (1 present, −1 absent, 0 undefined)."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .artifacts import has_values
from .errors import DataError, GroupError, ShapeError

RELIABILITY = ".reliability"
"""Ends the name of a column that holds an attribute's reliabilities."""

IDENTITY_COLUMNS = ("identity", "identities", "personid", "subject", "subjectid")
ID_COLUMNS = ("id", "ids", "path", "filename")
"""Columns that say who or which image it is, by `attribute_key`: no attribute is called so."""


@dataclass(frozen=True)
class AttributeSchema:
    """Names of binary attributes, in the order of the columns.

    Names are matched ignoring case, spaces, underscores, other punctuation and a leading "Wearing". Two schemas are
    equal if their names are, in order.

    Attributes:
        names: the attributes [K].
        noisy: those known to be badly labelled → why, with the figures.
        source: where names and figures come from.

    Raises:
        GroupError: no names, names that repeat or are empty, reserved ones ("id", "identity", "path", …), or a
            noisy attribute that is not among them.
    """

    names: tuple[str, ...]
    noisy: Mapping[str, str] = field(default_factory=dict, compare=False)
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        listed = isinstance(self.names, Iterable) and not isinstance(self.names, str)
        if not listed or not all(isinstance(n, str) for n in self.names):
            raise GroupError("attributes are a sequence of names", expected="('Male', 'Young', …)", got=self.names)
        names = tuple(self.names)
        keys = [attribute_key(name) for name in names]
        reserved = {*IDENTITY_COLUMNS, *ID_COLUMNS, ""}
        bad = [n for n, k in zip(names, keys, strict=True) if k in reserved or n.endswith(RELIABILITY)]
        bad += [n for n, k in zip(names, keys, strict=True) if keys.count(k) > 1]
        if bad or not names:
            expected = f"different names, none of {', '.join(sorted(reserved - {''}))} or ending in {RELIABILITY!r}"
            raise GroupError("these cannot be attributes", expected=expected, got=", ".join(map(repr, bad)) or "none")
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "noisy", {names[self.index(n)]: why for n, why in self.noisy.items()})

    def __len__(self) -> int:
        return len(self.names)

    def index(self, name: str) -> int:
        """Column of an attribute.

        Raises:
            GroupError: unknown; the message names the nearest ones.
        """
        keys = [attribute_key(n) for n in self.names]
        if isinstance(name, str) and attribute_key(name) in keys:
            return keys.index(attribute_key(name))
        near = difflib.get_close_matches(attribute_key(str(name)), keys, n=3, cutoff=0.5)
        raise GroupError(
            f"unknown attribute {name!r}",
            expected=", ".join(self.names),
            fix=f"did you mean {' or '.join(self.names[keys.index(k)] for k in near)}?" if near else None,
        )

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and attribute_key(name) in {attribute_key(n) for n in self.names}

    def subset(self, names: Sequence[str]) -> AttributeSchema:
        """Some of the attributes, in the given order."""
        if isinstance(names, str) or not len(names):
            expected = f"[{names or 'Male'!r}]"
            raise GroupError("some attributes are a sequence of names", expected=expected, got=repr(names))
        kept = tuple(self.names[self.index(name)] for name in names)
        return AttributeSchema(kept, {n: why for n, why in self.noisy.items() if n in kept}, self.source)


def attribute_key(name: str) -> str:
    """A name for comparing: no case, no punctuation, no leading "Wearing"."""
    return "".join(c for c in name.casefold() if c.isalnum()).removeprefix("wearing")


def _human_checked(accuracy: str, precision: str, recall: str) -> str:
    return f"human-checked accuracy {accuracy}, precision {precision}, recall {recall}"


_MAAD_NAMES = """
Male Young Middle_Aged Senior Asian White Black Rosy_Cheeks Shiny_Skin Bald Wavy_Hair Receding_Hairline
Bangs Sideburns Black_Hair Blond_Hair Brown_Hair Gray_Hair No_Beard Mustache 5_o_Clock_Shadow Goatee
Oval_Face Square_Face Round_Face Double_Chin High_Cheekbones Chubby Obstructed_Forehead
Fully_Visible_Forehead Brown_Eyes Bags_Under_Eyes Bushy_Eyebrows Arched_Eyebrows Mouth_Closed Smiling
Big_Lips Big_Nose Pointy_Nose Heavy_Makeup Wearing_Hat Wearing_Earrings Wearing_Necktie Wearing_Lipstick
No_Eyewear Eyeglasses Attractive
"""
MAAD_FACE = AttributeSchema(
    tuple(_MAAD_NAMES.split()),
    noisy={
        "Brown_Eyes": _human_checked(".68", ".44", ".85"),
        "Bags_Under_Eyes": _human_checked(".68", ".40", ".91"),
        "Round_Face": _human_checked(".69", ".56", ".76"),
        "Big_Lips": _human_checked(".70", ".50", ".83"),
        "Receding_Hairline": _human_checked(".77", ".54", "1.00"),
        "Shiny_Skin": _human_checked(".77", ".84", ".74"),
    },
    source="Terhörst et al., MAAD-Face, IEEE TIFS 2021 (arXiv 2012.01030); figures of the label file's own repository",
)
"""The 47 attributes of MAAD-Face, spelled as in its label file; overall its labels were found 91 % right by people."""


def check_labels(labels: Tensor, schema: AttributeSchema) -> Tensor:
    """The labels as they are; an error unless they are −1, 0 and 1 in the shape [n, K]. Looks at the values once."""
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.shape[1] != len(schema):
        got = list(labels.shape) if isinstance(labels, Tensor) else type(labels).__name__
        fix = "schema= defaults to MAAD_FACE's 47: pass schema=AttributeSchema((…))" if schema is MAAD_FACE else None
        raise ShapeError("labels do not fit the schema", expected=f"tensor [n, {len(schema)}]", got=got, fix=fix)
    if labels.dtype == torch.bool:
        fix = "False for absent: 2 * labels.int() - 1"
        raise DataError(
            "labels are not true or false", expected="1 present, −1 absent, 0 undefined", got="bool", fix=fix
        )
    if has_values(labels) and not bool(((labels == 0) | (labels == 1) | (labels == -1)).all()):
        wrong = sorted(set(labels[(labels != 0) & (labels.abs() != 1)].tolist()), key=str)[:5]
        fix = "0/1 labels: 2 * labels - 1; NaN for undefined: labels.nan_to_num(0)"
        raise DataError("unknown label values", expected="1 present, −1 absent, 0 undefined", got=wrong, fix=fix)
    return labels


def check_negatives(labels: Tensor, schema: AttributeSchema) -> None:
    """DataError for labels of 0 and 1 without a −1, whose zeros would count as undefined; a warning for columns."""
    if not has_values(labels):
        return
    if bool((labels == 0).any()) and bool((labels > 0).any()) and not bool((labels < 0).any()):
        expected = "1 present, −1 absent, 0 undefined"
        raise DataError("no face is labelled −1 (absent)", expected=expected, got="0 and 1", fix="2 * labels - 1")
    warn_of_zero_one(labels, schema, stacklevel=4)


def warn_of_zero_one(labels: Tensor, schema: AttributeSchema, stacklevel: int = 3) -> None:
    """A warning for columns with zeros and ones but no −1; the level is of `warnings.warn`."""
    doubtful = (labels == 0).any(0) & (labels > 0).any(0) & ~(labels < 0).any(0)
    names = [name for name, doubt in zip(schema.names, doubtful.tolist(), strict=True) if doubt]
    if names:
        which = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warnings.warn(
            f"no face is labelled −1 (absent) in {which}, and 0 is read as undefined; "
            "if 0 means absent there, code it −1: 2 * labels - 1",
            stacklevel=stacklevel,
        )
