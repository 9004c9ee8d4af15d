"""Demographic groups as products of attributes: names ⇄ ids, wildcards, marginals, quotas.

Ids count in row-major order of the attributes, as `itertools.product` does. Group ids are int64 tensors; −1
means "unsure": the labeller's confidence was below the gate.
"""

from __future__ import annotations

import difflib
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsIndex, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .errors import DataError, GroupError, ShapeError

UNSURE = -1
_EVERYTHING = ("*", "all", "balanced")
_T = TypeVar("_T")


@dataclass(frozen=True, init=False, repr=False, eq=False)
class Groups:
    """The product of attributes, each a list of values.

    >>> groups = Groups({"gender": ["female", "male"], "skin_tone": ["light", "medium", "dark"]})
    >>> len(groups), groups.names[2]
    (6, 'female-dark')
    >>> groups.id("dark-female"), groups.parse("dark")
    (2, (2, 5))

    Values may contain hyphens ("east-asian") and may repeat between attributes ("other"), in which case a name
    has to say which: "race=other". Names are matched without regard to case, order, spaces and underscores.

    Raises:
        GroupError: no attribute, an attribute without values, a value that repeats within its attribute or is a
            reserved word, or values that make two groups share a name.
    """

    attributes: Mapping[str, tuple[str, ...]]
    _by_name: Mapping[str, int]

    def __init__(self, attributes: Mapping[str, Sequence[str]]) -> None:
        if not attributes:
            raise GroupError("no attributes", expected='for example {"gender": ["female", "male"]}', got="{}")
        for attribute, values in attributes.items():
            if isinstance(values, str) or not values or not all(isinstance(v, str) and _plain(v) for v in values):
                raise GroupError(
                    f"attribute {attribute!r} needs a list of names", expected='["female", "male"]', got=repr(values)
                )
            reserved = [v for v in values if _plain(v) in _EVERYTHING or set("=,") & set(v)]
            if reserved:
                raise GroupError(f"{reserved[0]!r} has a meaning of its own in group names", fix="rename the value")
            if len({_plain(v) for v in values}) < len(values):
                raise GroupError(f"attribute {attribute!r} repeats a value", got=list(values))
        object.__setattr__(self, "attributes", {a: tuple(v) for a, v in attributes.items()})
        by_name: dict[str, int] = {}
        for i, name in enumerate(self.names):
            if by_name.setdefault(_plain(name), i) != i:
                raise GroupError(f"two groups are called {name!r}", fix="rename a value")
        object.__setattr__(self, "_by_name", by_name)

    def __eq__(self, other: object) -> bool:
        """Same attributes and values in the same order, since ids depend on the order."""
        if not isinstance(other, Groups):
            return NotImplemented
        return tuple(self.attributes.items()) == tuple(other.attributes.items())

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __hash__(self) -> int:
        return hash(tuple(self.attributes.items()))

    def __repr__(self) -> str:
        product = " × ".join(f"{a}({', '.join(v)})" for a, v in self.attributes.items())
        return f"Groups({len(self)}: {product})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each attribute."""
        return tuple(len(v) for v in self.attributes.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names in id order: the values in attribute order, joined by hyphens."""
        return tuple("-".join(values) for values in itertools.product(*self.attributes.values()))

    def name(self, group_id: int) -> str:
        """Canonical name of an id; "unsure" for −1."""
        if group_id == UNSURE:
            return "unsure"
        if not 0 <= group_id < len(self):
            raise GroupError("no such group id", expected=f"0 … {len(self) - 1}, or -1 (unsure)", got=group_id)
        return self.names[group_id]

    def id(self, name: str | int) -> int:
        """Id of one group. Its values may come in any order.

        Raises:
            GroupError: unknown name (with near misses), or a name that matches several groups.
        """
        ids = self.parse(name)
        if len(ids) != 1:
            raise GroupError(
                f"{name!r} names {len(ids)} groups where one is needed",
                expected="a value for every attribute: " + ", ".join(self.attributes),
                got=", ".join(self.name(i) for i in ids[:6]) + (", …" if len(ids) > 6 else ""),
            )
        return ids[0]

    def parse(self, spec: str | int | Iterable[str | int]) -> tuple[int, ...]:
        """Ids that a specification names, in id order for a name, in the given order for a list.

        Args:
            spec: a group ("dark-female"), a partial name ("dark": both genders), "*" or "all" or "balanced"
                (every group), "attribute=value" pairs joined by commas ("gender=female,skin_tone=*"), an id, or a
                list of these (duplicates are dropped).

        Raises:
            GroupError: unknown or contradictory names; the message lists near misses.
        """
        if isinstance(spec, bool):
            raise GroupError("a truth value is no group", expected="a name, an id or a list", got=spec)
        if isinstance(spec, Tensor):
            spec = spec.tolist()
        if isinstance(spec, SupportsIndex) and not isinstance(spec, str):
            spec = operator.index(spec)
            self.name(spec)
            if spec == UNSURE:
                raise GroupError("-1 (unsure) is no group", expected=f"0 … {len(self) - 1}")
            return (spec,)
        if isinstance(spec, str) and _plain(spec) in self._by_name:
            return (self._by_name[_plain(spec)],)
        if isinstance(spec, str):
            chosen = self._choose(spec)
            axes = [range(len(v)) if a not in chosen else (chosen[a],) for a, v in self.attributes.items()]
            return tuple(self._ravel(index) for index in itertools.product(*axes))
        ids = [i for item in spec for i in self.parse(item)]
        if not ids:
            raise GroupError("an empty list names no group", expected=f"some of {', '.join(self.names[:4])}, …")
        return tuple(dict.fromkeys(ids))

    def value_indices(self, group_id: int) -> tuple[int, ...]:
        """Index of the group's value of each attribute, in attribute order."""
        if not 0 <= group_id < len(self):
            raise GroupError("no such group id", expected=f"0 … {len(self) - 1}", got=group_id)
        indices = []
        for size in reversed(self.shape):
            group_id, i = divmod(group_id, size)
            indices.append(i)
        return tuple(reversed(indices))

    def _ravel(self, index: Sequence[int]) -> int:
        flat = 0
        for i, size in zip(index, self.shape, strict=True):
            flat = flat * size + i
        return flat

    def _choose(self, spec: str) -> dict[str, int]:
        """Attribute → value index, for the attributes that the text fixes."""
        if _plain(spec) in _EVERYTHING:
            return {}
        chosen: dict[str, int] = {}
        for part in spec.split(","):
            if "=" in part:
                key, value = (p.strip() for p in part.split("=", 1))
                attribute = self._match(key, {a: a for a in self.attributes}, "attribute")
                options = {v: i for i, v in enumerate(self.attributes[attribute])}
                if value != "*":
                    self._set(chosen, attribute, self._match(value, options, f"value of {attribute!r}"), spec)
            else:
                for attribute, i in self._split(part, spec):
                    self._set(chosen, attribute, i, spec)
        return chosen

    def _split(self, part: str, spec: str) -> Iterator[tuple[str, int]]:
        """Longest match first, so that "east-asian-male" is read as "east-asian" and "male"."""
        words = _plain(part).split("-")
        values = [(_plain(v).split("-"), a, i) for a, vs in self.attributes.items() for i, v in enumerate(vs)]
        longest = max(len(v) for v, _, _ in values)
        while words:
            if words[0] == "*":
                words = words[1:]
                continue
            for length in range(min(longest, len(words)), 0, -1):
                hits = [(a, i) for v, a, i in values if v == words[:length]]
                if len(hits) > 1:
                    raise GroupError(
                        f"{'-'.join(words[:length])!r} is a value of several attributes in {spec!r}",
                        got=", ".join(a for a, _ in hits),
                        fix=f'say which: "{hits[0][0]}={"-".join(words[:length])}"',
                    )
                if hits:
                    yield hits[0]
                    words = words[length:]
                    break
            else:
                raise self._unknown("-".join(words), spec)

    def _set(self, chosen: dict[str, int], attribute: str, i: int, spec: str) -> None:
        if chosen.setdefault(attribute, i) != i:
            values = self.attributes[attribute]
            raise GroupError(
                f"{spec!r} gives {attribute!r} two values",
                expected="one value for each attribute",
                got=f"{values[chosen[attribute]]} and {values[i]}",
                fix='for both, pass a list: ["…", "…"]',
            )

    def _match(self, text: str, options: Mapping[str, _T], what: str) -> _T:
        for name, result in options.items():
            if _plain(name) == _plain(text):
                return result
        raise GroupError(
            f"unknown {what} {text!r}", expected=", ".join(options), got=text, fix=_near(text, list(options))
        )

    def _unknown(self, text: str, spec: str) -> GroupError:
        values = [v for vs in self.attributes.values() for v in vs]
        known = "; ".join(f"{a}: {', '.join(v)}" for a, v in self.attributes.items())
        near = _near(text, values) or _near(text.split("-")[0], values)
        return GroupError(f"unknown group {spec!r}", expected=known, got=text, fix=near)

    # --- tensors --------------------------------------------------------------------------------------------

    def assign(self, probabilities: Mapping[str, Tensor], min_confidence: float = 0.0) -> Tensor:
        """Most probable group of each sample, or −1 where any attribute is less certain than the gate.

        Args:
            probabilities: {attribute: [..., k]}, at least the attributes of these groups.
            min_confidence: gate on each attribute's largest probability, in [0, 1]. The unsure are to be counted,
                never forced into a group.

        Returns:
            int64 group ids [...], −1 for unsure.

        Raises:
            DataError: a gate that is no probability.
        """
        if not 0 <= min_confidence <= 1:
            raise DataError("min_confidence is a probability", expected="0 … 1", got=min_confidence)
        group_id: Tensor | None = None
        sure: Tensor | None = None
        for p in self._columns(probabilities):
            confidence, value = p.max(-1)
            group_id = value if group_id is None else group_id * p.shape[-1] + value
            certain = confidence >= min_confidence
            sure = certain if sure is None else sure & certain
        assert group_id is not None
        assert sure is not None
        return torch.where(sure, group_id, UNSURE)

    def joint(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """P(group) [..., G]: the product of the attributes' probabilities (independent given the image)."""
        joint: Tensor | None = None
        for p in self._columns(probabilities):
            joint = p if joint is None else (joint.unsqueeze(-1) * p.unsqueeze(-2)).flatten(-2)
        assert joint is not None
        return joint

    def marginal(self, values: Tensor, attribute: str) -> Tensor:
        """Sum a per-group quantity [..., G] (counts, shares) over all other attributes: [..., k]."""
        attribute = self._match(attribute, {a: a for a in self.attributes}, "attribute")
        if values.shape[-1] != len(self):
            raise ShapeError("not one value per group", expected=f"[..., {len(self)}]", got=list(values.shape))
        axis = list(self.attributes).index(attribute)
        table = values.unflatten(-1, self.shape)
        others = [d - len(self.shape) for d in range(len(self.shape)) if d != axis]
        return table.sum(others) if others else table

    def value_ids(self, group_ids: Tensor, attribute: str) -> Tensor:
        """Index of each sample's value of one attribute (same shape as `group_ids`; −1 stays −1)."""
        attribute = self._match(attribute, {a: a for a in self.attributes}, "attribute")
        axis = list(self.attributes).index(attribute)
        stride = math.prod(self.shape[axis + 1 :])
        value = group_ids.div(stride, rounding_mode="floor") % self.shape[axis]
        return torch.where(group_ids < 0, UNSURE, value)

    def count(self, group_ids: Tensor) -> Tensor:
        """How many samples each group has: int64 [G]; the unsure (−1) are left out.

        Raises:
            GroupError: ids out of range.
        """
        check_ids(group_ids, len(self))
        slots = group_ids.flatten().long() + 1
        counts = torch.zeros(len(self) + 1, dtype=torch.int64, device=group_ids.device)
        return counts.scatter_add_(0, slots, torch.ones_like(slots))[1:]

    def _columns(self, probabilities: Mapping[str, Tensor]) -> Iterator[Tensor]:
        for attribute, values in self.attributes.items():
            if attribute not in probabilities:
                raise GroupError(
                    f"the labeller gives no {attribute!r}",
                    expected=", ".join(self.attributes),
                    got=", ".join(probabilities),
                    fix="make Groups from labeller.attributes, or use a labeller that knows this attribute",
                )
            p = probabilities[attribute]
            if p.shape[-1] != len(values):
                raise ShapeError(
                    f"probabilities of {attribute!r} have the wrong width",
                    expected=f"[..., {len(values)}] ({', '.join(values)})",
                    got=list(p.shape),
                )
            yield p


def parse(groups: Groups, spec: str | int | Iterable[str | int]) -> tuple[int, ...]:
    """Ids that a specification names; see `Groups.parse`."""
    return groups.parse(spec)


def balanced_quota(groups: Groups, n: int, spec: str | int | Iterable[str | int] | Mapping[str, float] = "*") -> Tensor:
    """How many samples of each group make a set of n: int64 [G], summing to n exactly.

    Args:
        groups: the groups.
        n: size of the set.
        spec: the groups to balance over (any `Groups.parse` specification), or a mapping from specification to
            share, {"dark": 2, "light": 1}: shares are relative, and within one specification groups share equally.

    Rounding is by largest remainder, ties to the lower id, so that counts differ from the exact shares by less than 1.

    Raises:
        GroupError: unknown names; negative or all-zero shares; n < 0.
    """
    if n < 0:
        raise GroupError("a set cannot have a negative size", expected="n ≥ 0", got=n)
    weight = [0.0] * len(groups)
    shares = spec if isinstance(spec, Mapping) else {None: 1.0}
    for key, share in shares.items():
        ids = groups.parse(spec if key is None else key)
        if not (math.isfinite(share) and share >= 0):
            raise GroupError("shares must be finite and non-negative", got=f"{key!r}: {share}")
        for i in ids:
            weight[i] += share / len(ids)
    total = sum(weight)
    if total <= 0:
        raise GroupError("no group has a share", expected="some share above 0", got=dict(shares))
    exact = [n * w / total for w in weight]
    quota = [math.floor(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (quota[i] - exact[i], i))
    for i in by_remainder[: n - sum(quota)]:
        quota[i] += 1
    return torch.tensor(quota)


def check_ids(group_ids: Tensor, num_groups: int) -> None:
    """GroupError unless ids lie in −1 (unsure) … num_groups − 1. On an accelerator, only the type is checked: a look
    at the values would make the host wait."""
    if group_ids.is_floating_point() or group_ids.dtype == torch.bool:
        raise ShapeError("group ids are integers", expected="int64", got=group_ids.dtype)
    if group_ids.device.type == "cpu" and group_ids.numel() and not isinstance(group_ids, FakeTensor):
        low, high = (int(v) for v in group_ids.aminmax())
        if low < UNSURE or high >= num_groups:
            raise GroupError(
                "group ids out of range", expected=f"-1 (unsure) … {num_groups - 1}", got=f"{low} … {high}"
            )


def numbered(labels: Tensor) -> Tensor:
    """Any labels [n], of groups or identities, as 0, 1, 2, … in their order: int64 [n]."""
    ordered, order = labels.sort()
    steps = torch.zeros_like(order)
    steps[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, steps.cumsum(0))


def _plain(text: str) -> str:
    return "-".join(text.strip().lower().replace("_", "-").replace("/", "-").split())


def _near(text: str, options: Sequence[str]) -> str | None:
    plain = {_plain(o): o for o in options}
    near = difflib.get_close_matches(_plain(text), list(plain), n=3, cutoff=0.5)
    return "did you mean " + " or ".join(repr(plain[p]) for p in near) + "?" if near else None
