"""Comparisons of faces: their scores, which are mated, in which group. Of scores, listed pairs, or every two faces.

A group's comparisons are those with both faces in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .artifacts import has_values
from .cosines import pair_cosines
from .embeddings import check_embeddings
from .errors import DataError, GroupError, ShapeError
from .groups import UNSURE, Groups, check_ids, numbered
from .thresholds import impostor_scores

OVERALL, ACROSS = "overall", "not within a group"  # rows of every table, so that no group has these names


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Scores of comparisons, and what is known about each: what `verify` and `fairness` work on.

    Attributes:
        scores: [m], higher is more alike.
        mated: bool [m], both faces are of one identity.
        group: int64 [m], the group of both faces; −1 if they are not both in one.
        names: the groups' names.
        identities: int64 [m, 2], ≥ 0, of the two faces; large numbers are numbered anew. None where unknown, and then
            there are no intervals.
        counts: how many comparisons had this score, [m], for the bins of a histogram; None: one.
        weights: how many comparisons each stands for, float64 [m], where only a random part was made; None: as
            `counts`.
    """

    scores: Tensor
    mated: Tensor
    group: Tensor
    names: tuple[str, ...] = ()
    identities: Tensor | None = None
    counts: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        scores, mated, group = self.scores, self.mated, self.group
        if not isinstance(scores, Tensor) or scores.ndim != 1 or not scores.is_floating_point() or not len(scores):
            raise ShapeError("scores are a vector", expected="float [m], m ≥ 1", got=describe(scores))
        m = len(scores)
        if not isinstance(mated, Tensor) or mated.shape != (m,) or mated.dtype != torch.bool:
            fix = "torch.as_tensor(mated).bool(), if 1 means the same identity"
            raise ShapeError(
                "one truth value per score, please", expected=f"mated: bool [{m}]", got=describe(mated), fix=fix
            )
        if not isinstance(group, Tensor) or group.shape != (m,):
            raise ShapeError("one group per score, please", expected=f"group: int64 [{m}]", got=describe(group))
        check_ids(group, len(self.names))
        if not bool(scores.isfinite().all()):
            bad = f"{int((~scores.isfinite()).sum())} of {m} are NaN or infinite"
            raise DataError("scores are not finite", expected="numbers", got=bad, fix="check the embeddings")
        if self.identities is not None:
            self._check_identities(self.identities)
            if int(self.identities.max()) >= 2 * m:  # no table by identity is then longer than that
                object.__setattr__(self, "identities", numbered(self.identities.flatten()).view(m, 2))

    def _check_identities(self, identities: Tensor) -> None:
        expected = f"identities: int64 [{len(self.scores)}, 2], of the two faces of each comparison"
        if (
            not isinstance(identities, Tensor)
            or identities.shape != (len(self.scores), 2)
            or not is_integer(identities)
        ):
            raise ShapeError("two identities per score, please", expected=expected, got=describe(identities))
        _check_numbers(identities)
        wrong = int(((identities[:, 0] == identities[:, 1]) != self.mated).sum())
        if wrong:
            raise DataError(
                "mated and identities contradict each other",
                expected="mated exactly where both identities are the same",
                got=f"{wrong} comparisons where it is otherwise",
            )

    @property
    def missing_identities(self) -> str:
        """Why there can be no intervals; "" if there can."""
        return "" if self.identities is not None else "the identities of the comparisons are not known"

    def identity_groups(self) -> Tensor:
        """Group of each identity [I]: the last of those that its comparisons are in; −1 for none."""
        assert self.identities is not None
        groups = torch.full((int(self.identities.max()) + 1,), UNSURE, device=self.group.device)
        return groups.scatter_reduce(0, self.identities.flatten(), self.group.repeat_interleave(2), "amax")


@torch.no_grad()
def compare(embeddings: Tensor, pairs: Tensor) -> Tensor:
    """Cosines of listed pairs of faces: [m], in float32 or the embeddings' higher precision. Blocks of 65,536 pairs.

    Args:
        embeddings: unit vectors [n, e].
        pairs: rows of the embeddings, int64 [m, 2].

    Raises:
        DataError: embeddings that are not finite unit vectors, rows that do not exist, a face with itself.
        ShapeError: pairs that are not int64 [m, 2] on the embeddings' device.
    """
    check_vectors(embeddings)
    _check_pairs(pairs, len(embeddings), embeddings.device)
    return pair_cosines(embeddings, pairs[:, 0], pairs[:, 1])


def from_scores(
    scores: Tensor, mated: Tensor | None, names: tuple[str, ...], identities: Tensor | None, group_ids: Tensor | None
) -> Comparisons:
    """Comparisons that were made before; arguments as in `verify`."""
    if mated is None:
        raise DataError("which comparisons are mated?", expected="mated=, bool [m]", got="scores alone")
    if not isinstance(scores, Tensor):
        raise ShapeError(
            "scores are a vector", expected="float tensor [m]", got=describe(scores), fix="torch.as_tensor(scores)"
        )
    group = torch.full(scores.shape, UNSURE, device=scores.device) if group_ids is None else group_ids
    if isinstance(group, Tensor) and group.ndim == 2 and group.shape == (len(scores), 2):
        check_ids(group, len(names))
        group = torch.where(group[:, 0] == group[:, 1], group[:, 0], UNSURE)
    return Comparisons(scores.detach(), mated, group, names, identities)


def from_pairs(
    embeddings: Tensor,
    pairs: Tensor,
    mated: Tensor | None,
    names: tuple[str, ...],
    identities: Tensor | None,
    group_ids: Tensor | None,
) -> Comparisons:
    """Listed pairs of faces; arguments as in `verify`."""
    scores = compare(embeddings.detach(), pairs)
    both = None if identities is None else identities[pairs]
    if mated is None:
        if both is None:
            raise DataError("which pairs are mated?", expected="mated=, bool [m], or identities=", got="pairs alone")
        mated = both[:, 0] == both[:, 1]
    return Comparisons(scores, mated, _pair_groups(pairs[:, 0], pairs[:, 1], group_ids), names, both)


def from_identities(
    embeddings: Tensor,
    identities: Tensor,
    names: tuple[str, ...],
    group_ids: Tensor | None,
    n_pairs: int,
    rng: torch.Generator,
) -> Comparisons:
    """All mated comparisons; non-mated ones within each group, and the rest, at most about n_pairs of each."""
    embeddings, numbers = embeddings.detach(), numbered(identities)
    first, second = _mated_pairs(numbers)
    parts = [(compare(embeddings, torch.stack((first, second), 1)), first, second, torch.ones_like(first).double())]
    within = 0
    for g in range(len(names)):
        assert group_ids is not None
        rows = (group_ids == g).nonzero().squeeze(1)
        total = _non_mated(numbers[rows])
        within += total
        if total:
            found = impostor_scores(embeddings[rows], numbers[rows], n_pairs=n_pairs, rng=rng)
            parts.append((found.scores, rows[found.first], rows[found.second], _stands_for(found.scores, total)))
    rest = _non_mated(numbers) - within
    if rest:
        # The rest cannot be listed alone: all pairs are drawn, those within groups are left out, and a rare rest gets
        # fewer than n_pairs.
        drawn = min(4 * n_pairs, math.ceil(n_pairs * _non_mated(numbers) / rest))
        found = impostor_scores(embeddings, numbers, n_pairs=drawn, rng=rng)
        other = _pair_groups(found.first, found.second, group_ids) < 0
        kept = found.scores[other]
        parts.append((kept, found.first[other], found.second[other], _stands_for(kept, rest)))
    scores, first, second, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    if not len(scores):
        raise DataError("nothing to compare", expected="two faces at least", got=f"{len(embeddings)} faces")
    both = torch.stack((numbers[first], numbers[second]), 1)
    group = _pair_groups(first, second, group_ids)
    return Comparisons(
        scores, both[:, 0] == both[:, 1], group, names, both, weights=None if bool((weights == 1).all()) else weights
    )


def group_names(groups: Groups | Sequence[str] | None, group_ids: object) -> tuple[str, ...]:
    """Names of the groups; an error unless they and the ids are both there, or neither."""
    if (groups is None) != (group_ids is None):
        raise GroupError("group ids and their names go together", expected="group_ids= and groups=", got="one of them")
    names = () if groups is None else groups.names if isinstance(groups, Groups) else tuple(groups)
    if isinstance(groups, str | Mapping) or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise GroupError("groups need different names", expected="Groups, or a list of names", got=repr(groups))
    if groups is not None and (not names or {OVERALL, ACROSS} & set(names)):
        raise GroupError(
            "no groups, or a reserved name", expected=f"names other than {OVERALL!r}, {ACROSS!r}", got=names
        )
    return names


def check_vectors(embeddings: object) -> None:
    """Error unless these are unit vectors in a tensor."""
    if not isinstance(embeddings, Tensor):
        fix = "torch.as_tensor(embeddings)"
        raise ShapeError("embeddings are a tensor", expected="float [n, e]", got=describe(embeddings), fix=fix)
    check_embeddings(embeddings)


def check_faces(embeddings: Tensor, identities: Tensor | None, group_ids: Tensor | None, num_groups: int) -> None:
    """Error unless identities and group ids fit the embeddings."""
    n, device = len(embeddings), embeddings.device
    for name, labels in (("identities", identities), ("group_ids", group_ids)):
        if labels is None:
            continue
        if not isinstance(labels, Tensor) or labels.shape != (n,) or not is_integer(labels) or labels.device != device:
            fix = "from names: torch.from_numpy(np.unique(names, return_inverse=True)[1])"
            expected = f"a tensor, int64 [{n}] on {device}"
            raise ShapeError(f"one of {name} per face, please", expected=expected, got=describe(labels), fix=fix)
    if identities is not None:
        _check_numbers(identities)
    if group_ids is not None:
        check_ids(group_ids, num_groups)


def describe(x: object) -> str:
    """Shape and type, for errors."""
    return f"{list(x.shape)} {x.dtype}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def is_integer(x: Tensor) -> bool:
    """Of whole numbers; truth values are none."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


# --- details ----------------------------------------------------------------------------------------------------------


def _check_pairs(pairs: Tensor, n: int, device: torch.device) -> None:
    if not isinstance(pairs, Tensor) or pairs.ndim != 2 or pairs.shape[1] != 2 or not is_integer(pairs):
        raise ShapeError("these are not pairs", expected="int64 [m, 2], rows of the embeddings", got=describe(pairs))
    if pairs.device != device:
        raise ShapeError("pairs and embeddings live apart", expected=f"pairs on {device}", got=pairs.device)
    if has_values(pairs) and len(pairs):
        low, high = (int(v) for v in pairs.aminmax())
        if low < 0 or high >= n:
            raise DataError("a pair names a face that does not exist", expected=f"0 … {n - 1}", got=f"{low} … {high}")
        if bool((pairs[:, 0] == pairs[:, 1]).any()):
            raise DataError("a face is compared with itself", expected="two different rows in each pair", got="one")


def _check_numbers(identities: Tensor) -> None:
    """No −1, as elsewhere for groups: all faces of unknown identity would be one person."""
    if has_values(identities) and identities.numel() and int(identities.min()) < 0:
        fix = "leave out the faces of unknown identity"
        raise DataError("identities are numbers from 0", expected="≥ 0", got=int(identities.min()), fix=fix)


def _pair_groups(first: Tensor, second: Tensor, group_ids: Tensor | None) -> Tensor:
    if group_ids is None:
        return torch.full_like(first, UNSURE)
    return torch.where(group_ids[first] == group_ids[second], group_ids[first], UNSURE)


def _mated_pairs(identities: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of every two faces of one identity."""
    ordered, rows = identities.sort()
    place = torch.arange(len(rows), device=rows.device)
    later = torch.searchsorted(ordered, ordered, right=True) - place - 1
    first = place.repeat_interleave(later)
    start = later.cumsum(0) - later
    second = first + 1 + torch.arange(len(first), device=rows.device) - start.repeat_interleave(later)
    return rows[first], rows[second]


def _non_mated(identities: Tensor) -> int:
    n, faces = len(identities), identities.unique(return_counts=True)[1]
    return (n * n - int(faces.square().sum())) // 2


def _stands_for(scores: Tensor, total: int) -> Tensor:
    return torch.full_like(scores, total / max(1, len(scores)), dtype=torch.float64)
