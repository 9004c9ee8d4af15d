"""Who is who among faces: unique identities, components, the nearest faces of a reference set.

Faces are compared by the cosine of their embeddings, unit vectors [n, e], in blocks: an n × n matrix is never held.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .cosines import BlockProduct, cosine_dtype, take_rows
from .embeddings import check_embeddings
from .errors import DataError, ShapeError
from .groups import numbered
from .thresholds import Threshold, cosine_threshold

Method = Literal["greedy", "components"]


@torch.no_grad()
def unique(
    embeddings: Tensor,
    threshold: Threshold | float,
    *,
    method: Method = "greedy",
    known: Tensor | None = None,
    block: int = 2048,
) -> Tensor:
    """Which faces to keep so that every identity occurs once: bool [n].

    "greedy" goes through the rows in order and keeps each whose cosine to every row kept before is below the
    threshold: no two kept faces match, and every other face matches a kept one. "components" keeps the first row of
    each connected component of the graph that joins matching faces: it drops at least as many, since chains of
    faces that resemble their neighbours count as one.

    Rows that are out are not compared again, so the cost lies between n·e and n²·e/2 multiplications. Cosines are those
    of a matrix product: a pair within rounding (10⁻⁶) of the threshold may fall on either side, and exact duplicates
    need a threshold a little below 1. Waits for the device once or more in each block.

    Args:
        embeddings: unit vectors [n, e]; put the rows you would rather keep first.
        threshold: from `threshold_at_fmr`, or a cosine in [-1, 1].
        method: "greedy" or "components".
        known: unit vectors [m, e] of identities that are taken: faces (or components) that match one are not kept.
        block: rows at a time; memory is O(block²) and O(n) flags beside the input.

    Raises:
        DataError: not unit vectors, threshold out of range, unknown method.
        ShapeError: `known` has another width or device.
    """
    if method not in get_args(Method):
        raise DataError("unknown method", expected=" or ".join(get_args(Method)), got=method)
    cosine = _check_threshold(embeddings, threshold, block)
    rows = torch.arange(len(embeddings), device=embeddings.device)
    taken = torch.zeros_like(rows, dtype=torch.bool)
    if known is not None:
        _check_alike(embeddings, check_embeddings(known, "known"))
        product = BlockProduct(embeddings, block)
        for j in range(0, len(known), block):
            left = rows[~taken]
            taken[left] = _matches(product, embeddings, left, take_rows(known, slice(j, j + block)), cosine)
    if method == "greedy":
        return _greedy(embeddings, rows[~taken], cosine, block)
    root = _roots(embeddings, cosine, block)
    met = torch.zeros_like(taken)
    met[root[taken]] = True
    return (root == rows) & ~met


@torch.no_grad()
def components(embeddings: Tensor, threshold: Threshold | float, *, block: int = 2048) -> Tensor:
    """Connected components of the graph that joins faces whose cosine is at or above the threshold: int64 [n].

    Numbered from 0 in the order of their first rows. Blocks, memory, errors and waiting are those of `unique`.

    Args:
        embeddings: unit vectors [n, e].
        threshold: from `threshold_at_fmr`, or a cosine in [-1, 1].
        block: rows at a time.
    """
    return numbered(_roots(embeddings, _check_threshold(embeddings, threshold, block), block))


class Nearest(NamedTuple):
    """What a face resembles most in a reference set.

    Attributes:
        similarity: cosine, [n], or [n, k] falling.
        indices: rows of the reference, int64, same shape.
    """

    similarity: Tensor
    indices: Tensor


@torch.no_grad()
def novelty(embeddings: Tensor, reference: Tensor, *, k: int | None = None, block: int = 2048) -> Nearest:
    """Nearest reference identities of each face, by exact search in blocks: low similarity is novelty.

    Args:
        embeddings: unit vectors [n, e].
        reference: unit vectors [m, e], m ≥ 1, on the same device.
        k: None: the nearest, results [n]; otherwise the k nearest, [n, k].
        block: rows of either side at a time; memory is O(block²) beside the input.

    Raises:
        DataError: not unit vectors, an empty reference, k out of range.
        ShapeError: other widths or devices.
    """
    check_embeddings(embeddings)
    _check_alike(embeddings, check_embeddings(reference, "reference"))
    wanted = 1 if k is None else k
    if not 1 <= wanted <= len(reference) or block < 1:
        raise DataError(
            "no such neighbours",
            expected=f"1 ≤ k ≤ {len(reference)} (the size of the reference), block ≥ 1",
            got=f"k={wanted}, block={block}",
        )
    similarity = embeddings.new_empty(len(embeddings), wanted, dtype=cosine_dtype(embeddings))
    index = torch.empty(similarity.shape, dtype=torch.int64, device=embeddings.device)
    product = BlockProduct(embeddings, block)
    for i in range(0, len(embeddings), block):
        query = take_rows(embeddings, slice(i, i + block))
        best = None
        for j in range(0, len(reference), block):
            scores = product(query, take_rows(reference, slice(j, j + block)))
            found = _largest(scores, min(wanted, scores.shape[1]))
            found = Nearest(found.similarity, found.indices + j)
            best = found if best is None else _merge(best, found, wanted)
        assert best is not None
        similarity[i : i + block], index[i : i + block] = best
    return Nearest(similarity.squeeze(1), index.squeeze(1)) if k is None else Nearest(similarity, index)


# --- details -------------------------------------------------------------------------------------------------------


def _check_threshold(embeddings: Tensor, threshold: Threshold | float, block: int) -> float:
    check_embeddings(embeddings)
    if block < 1:
        raise DataError("block out of range", expected="≥ 1", got=block)
    return cosine_threshold(threshold)


def _check_alike(x: Tensor, other: Tensor) -> None:
    if other.shape[1] != x.shape[1] or other.device != x.device or other.dtype != x.dtype:
        raise ShapeError(
            "the two sets of embeddings do not go together",
            expected=f"[m, {x.shape[1]}] {x.dtype} on {x.device}",
            got=f"{list(other.shape)} {other.dtype} on {other.device}",
        )


def _greedy(x: Tensor, rows: Tensor, cosine: float, block: int) -> Tensor:
    """Keep mask [n] of greedy selection among some rows, in order."""
    keep = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    product = BlockProduct(x, block)
    while len(rows):
        head, rows = rows[:block], rows[block:]
        candidates = take_rows(x, head)
        match = (product(candidates, candidates) >= cosine).tril(-1)
        kept = _greedy_block(match, torch.ones_like(match[0]))
        keep[head] = kept
        rows = rows[~_matches(product, x, rows, candidates[kept], cosine)]
    return keep


def _greedy_block(match: Tensor, free: Tensor) -> Tensor:
    """Greedy selection from the strictly lower triangle of matches [b, b]; only `free` rows may be kept.

    Each round settles at least one more row from the top, and most blocks are settled in two or three. Long chains
    of matches are cut in halves instead of waiting for a round per link.
    """
    keep = free
    for _ in range(8):
        new = free & ~(match & keep).any(1)
        if torch.equal(new, keep):
            return keep
        keep = new
    half = len(free) // 2
    top = _greedy_block(match[:half, :half], free[:half])
    left = free[half:] & ~(match[half:, :half] & top).any(1)
    return torch.cat((top, _greedy_block(match[half:, half:], left)))


def _matches(product: BlockProduct, x: Tensor, rows: Tensor, others: Tensor, cosine: float) -> Tensor:
    """bool: does a row of x match any of `others` [b, e]?"""
    if len(rows) == 0 or len(others) == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    return torch.cat([product(take_rows(x, part), others).amax(1) >= cosine for part in rows.split(product.block)])


def _roots(x: Tensor, cosine: float, block: int) -> Tensor:
    """The first row of each row's component, int64 [n]."""
    root = torch.arange(len(x), device=x.device)
    product = BlockProduct(x, block)
    for i in range(0, len(x), block):
        left = take_rows(x, slice(i, i + block))
        for j in range(i, len(x), block):
            match = product(left, take_rows(x, slice(j, j + block))) >= cosine
            # Pairs that are joined already are not listed again: a crowd of duplicates would list them all.
            match &= root[i : i + block, None] != root[None, j : j + block]
            a, b = match.nonzero().unbind(1)
            if len(a):
                root = _join(root, a + i, b + j)
    return root


def _join(root: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Joins the components of rows a and b: larger roots are hooked to smaller ones, then paths are halved."""
    while True:
        ra, rb = root[a], root[b]
        if torch.equal(ra, rb):
            return root
        root = root.scatter_reduce(0, torch.maximum(ra, rb), torch.minimum(ra, rb), "amin")
        while not torch.equal(root, shorter := root[root]):
            root = shorter


def _largest(scores: Tensor, k: int) -> Nearest:
    """The k largest of each row. A maximum with its index costs a quarter of the product, one without a twentieth: so
    each row is folded into 16, and only the k columns with the largest maxima are searched."""
    fold = scores.shape[1] // 16
    if scores.shape[1] % 16 or fold < 4 * k:
        return _top(scores, k)
    folded = scores.unflatten(1, (16, fold))
    columns = _top(folded.amax(1), k).indices
    found = _top(folded.gather(2, columns.unsqueeze(1).expand(-1, 16, -1)).flatten(1), k)
    return Nearest(found.similarity, found.indices // k * fold + columns.gather(1, found.indices % k))


def _top(scores: Tensor, k: int) -> Nearest:
    return Nearest(*(scores.max(1, keepdim=True) if k == 1 else scores.topk(k)))  # max is several times as fast


def _merge(a: Nearest, b: Nearest, k: int) -> Nearest:
    similarity = torch.cat((a.similarity, b.similarity), dim=1)
    top = _top(similarity, min(k, similarity.shape[1]))
    return Nearest(top.similarity, torch.cat((a.indices, b.indices), dim=1).gather(1, top.indices))
