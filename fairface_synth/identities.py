"""Who is who among faces: embeddings, thresholds at a stated FMR, unique identities, nearest training identities.

Faces are compared by the cosine of their embeddings: unit vectors [n, e], one a face. Sets are compared in blocks; an
n × n matrix is never held.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, SupportsFloat, get_args

import torch
from torch import Tensor, nn

from .artifacts import Artifact, has_values
from .errors import DataError, GroupError, ShapeError
from .groups import Groups
from .images import check_range
from .models.protocols import Embedder
from .reports import markdown_table, share_text, wilson_interval

Method = Literal["greedy", "components"]

# Doddington et al. 2000: with 30 errors, the true rate is within ±30 % of the observed one at 90 % confidence.
RULE_OF_30 = 30


# ------------------------------------------------------------------------------------------ embedding


@torch.no_grad()
def embed(
    embedder: Embedder,
    images: Tensor | Iterable[Tensor],
    *,
    batch_size: int = 256,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Tensor:
    """Identity embeddings of many images [n, e], unit vectors, on the images' device. No gradient.

    Args:
        embedder: the model.
        images: [n, 3, H, W] in [-1, 1]; or an iterable of such batches, which are not kept.
        batch_size: images at a time.
        cache: a file that remembers embeddings from one run to the next, made when missing. Each is filed under its
            image's exact values and the file belongs to one embedder (its class and weights); a few remembered ones are
            computed again in every run and must agree. What is done is written even if the run is interrupted.
            Meant for images from files: images synthesised again may differ in the last bit, and are then
            embedded again. A file has one writer at a time: of two, the last one's embeddings remain.
        progress: show a bar.

    Raises:
        DataError: no images; images out of range; vectors that are not finite and of unit length; a cache of another
            embedder, or a file that is no cache.
        ShapeError: things that are not batches of images, or an embedder that does not give [n, dim].
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise DataError("no images at a time", expected="batch_size ≥ 1", got=batch_size)
    memory = None if cache is None else _Memory(embedder, Path(cache))
    total = len(images) if isinstance(images, Tensor) else None
    parts: list[Tensor] = []
    try:
        with tqdm(total=total, desc="embedding faces", unit="img", disable=not progress) as bar:
            for batch in _image_batches(images, batch_size):
                if not parts:
                    check_range(batch)
                parts.append(_embed_batch(embedder, batch) if memory is None else memory.embed(batch))
                bar.update(len(batch))
    finally:
        if memory is not None:
            memory.save()
    if not parts:
        raise DataError(
            "no images to embed",
            expected="at least one",
            got=0,
            fix="an iterator can be used up only once: make a new one",
        )
    return torch.cat(parts)


def _image_batches(images: Tensor | Iterable[Tensor], size: int) -> Iterator[Tensor]:
    for batch in (images,) if isinstance(images, Tensor) else images:
        if not isinstance(batch, Tensor) or batch.ndim != 4 or batch.shape[1] != 3:
            got = list(batch.shape) if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
            raise ShapeError(
                "this is no batch of images",
                expected="[b, 3, H, W] float RGB in [-1, 1], or an iterable of such",
                got=got,
                fix="a loader that gives (images, labels): (images for images, _ in loader)",
            )
        if len(batch):
            yield from batch.split(size)


def _embed_batch(embedder: Embedder, images: Tensor) -> Tensor:
    vectors = embedder(images)
    if vectors.shape != (len(images), embedder.dim):
        expected, got = [len(images), embedder.dim], list(vectors.shape)
        raise ShapeError("the embedder gave something else", expected=expected, got=got)
    return check_embeddings(vectors, "what the embedder gave")


@dataclass(frozen=True, repr=False, eq=False)
class _Remembered(Artifact):
    """The cache's file: embeddings by the hash of their image, of one embedder."""

    kind: ClassVar[str] = "embeddings"

    keys: Tensor
    embeddings: Tensor
    embedder: str


class _Memory:
    """Embeddings by the content of their images; see `embed`."""

    def __init__(self, embedder: Embedder, path: Path) -> None:
        self.embedder, self.path, self.name = embedder, path, _fingerprint(embedder)
        self.table, self.rows = torch.empty(0, embedder.dim), dict[bytes, int]()
        self.trusted = self.unchanged = True
        if not path.exists():
            return
        stored = _Remembered.load(path)
        if stored.embedder != self.name:
            self._refuse()
        self.table = check_embeddings(stored.embeddings, f"what {path} holds")
        self.rows = {key.tobytes(): row for row, key in enumerate(stored.keys.numpy())}
        if len(self.rows) != len(self.table):
            raise DataError(f"{path} is damaged", expected=f"{len(self.table)} keys", got=len(self.rows))
        self.trusted = False

    def embed(self, images: Tensor) -> Tensor:
        keys = _hashes(images)
        if not self.trusted:
            self._compare(images, keys)
        new = {key: i for i, key in enumerate(keys) if key not in self.rows}
        if new:
            vectors = _embed_batch(self.embedder, images[list(new.values())]).cpu()
            self._append(new, vectors)
        rows = torch.tensor([self.rows[key] for key in keys])
        return self.table[rows].to(images.device)

    def _append(self, keys: Iterable[bytes], vectors: Tensor) -> None:
        used, self.unchanged = len(self.rows), False
        if used + len(vectors) > len(self.table):  # doubled, so that a row is copied about once
            larger = vectors.new_empty(max(2 * len(self.table), used + len(vectors)), vectors.shape[1])
            larger[:used] = self.table[:used]
            self.table = larger
        self.table[used : used + len(vectors)] = vectors
        self.rows.update((key, used + i) for i, key in enumerate(keys))

    def _compare(self, images: Tensor, keys: list[bytes]) -> None:
        """Catches what a fingerprint of weights cannot: another forward pass, a plain function that changed."""
        known = [i for i, key in enumerate(keys) if key in self.rows][:4]
        if not known:
            return
        again = _embed_batch(self.embedder, images[known]).cpu().float()
        stored = self.table[[self.rows[keys[i]] for i in known]].float()
        if not bool(((again * stored).sum(1) > 0.999).all()):
            self._refuse()
        self.trusted = True

    def _refuse(self) -> None:
        raise DataError(
            f"{self.path} holds the embeddings of another embedder",
            expected="the embedder that the file was made with",
            got=f"a {type(self.embedder).__name__} of other weights or another forward pass",
            fix="give each embedder a file of its own, or delete this one",
        )

    def save(self) -> None:
        if not self.unchanged:
            keys = torch.frombuffer(bytearray(b"".join(self.rows)), dtype=torch.uint8).view(len(self.rows), -1)
            _Remembered(keys, self.table[: len(self.rows)], self.name).save(self.path)


def _hashes(images: Tensor) -> list[bytes]:
    kind = f"{images.dtype} {list(images.shape[1:])}".encode()
    raw = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    return [hashlib.blake2b(row, digest_size=16, key=kind).digest() for row in raw]


def _fingerprint(embedder: Embedder) -> str:
    """Class and weights."""
    name = getattr(embedder, "__qualname__", type(embedder).__qualname__)
    digest = hashlib.blake2b(f"{name} {embedder.dim}".encode(), digest_size=16)
    for key, value in embedder.state_dict().items() if isinstance(embedder, nn.Module) else ():
        digest.update(f"{key} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def check_embeddings(embeddings: Tensor, what: str = "embeddings") -> Tensor:
    """The embeddings themselves; an error unless they are finite unit vectors [n, e]. Looks at the values once."""
    if embeddings.ndim != 2 or embeddings.shape[1] == 0 or not embeddings.is_floating_point():
        got = f"{list(embeddings.shape)} {embeddings.dtype}"
        raise ShapeError(f"{what}: not embeddings", expected="[n, e] float unit vectors", got=got)
    if has_values(embeddings) and len(embeddings):
        norms = torch.linalg.vector_norm(embeddings, dim=1, dtype=_precision(embeddings))
        tolerance = 1e-2 if embeddings.dtype.itemsize < 4 else 1e-3
        if not bool(((norms - 1).abs() <= tolerance).all()):
            raise DataError(
                f"{what}: not unit vectors",
                expected="rows of length 1, no NaN",
                got=f"lengths from {float(norms.min()):.4g} to {float(norms.max()):.4g}",
                fix="torch.nn.functional.normalize(embeddings, dim=1); NaN: check the images and the embedder",
            )
    return embeddings


# ------------------------------------------------------------------------------------------ thresholds


class ImpostorScores(NamedTuple):
    """Comparisons of different identities.

    Attributes:
        scores: cosines [p].
        first, second: the faces compared, rows of the embeddings, int64 [p].
        identities: int64 [n], the identity of each row, numbered from 0.
    """

    scores: Tensor
    first: Tensor
    second: Tensor
    identities: Tensor


@torch.no_grad()
def impostor_scores(
    embeddings: Tensor,
    ids: Tensor | None = None,
    *,
    groups: Tensor | None = None,
    n_pairs: int = 1_000_000,
    rng: torch.Generator | None = None,
) -> ImpostorScores:
    """Cosines of pairs of different identities: all pairs, or a random part where there are more than `n_pairs`.

    Every pair is as likely as any other: a random part takes one from each of `n_pairs` equal stretches of the list of
    all pairs. Faces of one demographic group resemble each other more, so impostors within groups give higher
    scores, and a threshold set on pairs of any two faces has a higher FMR within groups than it says.

    Args:
        embeddings: unit vectors [n, e].
        ids: identity of each face, int64 [n]. None: every face is another person.
        groups: int64 [n]; only faces of the same group are compared, and −1 with none.
        n_pairs: at most so many.
        rng: for the random part, on the embeddings' device.

    Raises:
        DataError: not unit vectors, or no pair of different identities.
    """
    check_embeddings(embeddings)
    n, device = len(embeddings), embeddings.device
    for name, labels in (("ids", ids), ("groups", groups)):
        if labels is not None and (labels.shape != (n,) or labels.is_floating_point()):
            raise ShapeError(f"{name} do not fit the embeddings", expected=f"int64 [{n}]", got=list(labels.shape))
    pairs = _list_pairs(n, device, ids, groups)
    if pairs.total == 0 or n_pairs < 1:
        raise DataError(
            "no two identities to compare",
            expected="two identities at least (in one group, where groups are given), n_pairs ≥ 1",
            got=f"{n} faces, n_pairs={n_pairs}",
        )
    number = torch.arange(min(pairs.total, n_pairs), device=device)
    if pairs.total > n_pairs:
        within = torch.rand(n_pairs, dtype=torch.float64, generator=rng, device=device)
        number = ((number + within) * (pairs.total / n_pairs)).long().clamp_max(pairs.total - 1)
    ends = pairs.partners.cumsum(0)
    place = torch.searchsorted(ends, number, right=True)
    first = pairs.rows[place]
    second = pairs.rows[pairs.group_end[place] - (ends[place] - number)]
    scores = [
        (_rows(embeddings, a) * _rows(embeddings, b)).sum(1)
        for a, b in zip(first.split(65536), second.split(65536), strict=True)
    ]
    return ImpostorScores(torch.cat(scores), first, second, pairs.identities)


class _Pairs(NamedTuple):
    """All pairs as a list that is never written out: faces by group and identity, each with its later partners.

    `rows` [n] are the faces in that order; the face at place p has `partners[p]` impostors after it, which are the last
    ones of its group and end before `group_end[p]`; `total` is their sum.
    """

    rows: Tensor
    group_end: Tensor
    partners: Tensor
    total: int
    identities: Tensor


def _list_pairs(n: int, device: torch.device, ids: Tensor | None, groups: Tensor | None) -> _Pairs:
    rows = torch.arange(n, device=device)
    if ids is None and groups is None:
        return _Pairs(rows, torch.full_like(rows, n), n - 1 - rows, n * (n - 1) // 2, rows)
    identities = rows if ids is None else _numbered(ids)
    group = torch.zeros_like(rows) if groups is None else _numbered(groups)
    both = group * max(n, 1) + identities
    rows = both.argsort()
    group, both = group[rows], both[rows]
    group_end = torch.searchsorted(group, group, right=True)
    partners = group_end - torch.searchsorted(both, both, right=True)
    if groups is not None:
        partners = torch.where(groups[rows] < 0, 0, partners)
    return _Pairs(rows, group_end, partners, int(partners.sum()), identities)


def _numbered(labels: Tensor) -> Tensor:
    """The same labels as 0, 1, 2, … in their order."""
    ordered, order = labels.sort()
    steps = torch.zeros_like(order)
    steps[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, steps.cumsum(0))


@dataclass(frozen=True)
class Threshold:
    """A cosine from which two faces count as one identity; `float(threshold)` is the value.

    Attributes:
        value: the cosine.
        fmr: the false match rate (FMR) that was asked for.
        reached: share of the impostor scores at or above the value, ≤ fmr.
        low, high: 95 % interval of the FMR at this value.
        comparisons: impostor scores it was set on.
        effective: the number of independent comparisons that would give an interval as wide.
    """

    value: float
    fmr: float
    reached: float
    low: float
    high: float
    comparisons: int
    effective: float

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return (
            f"cosine {self.value:.4f} at FMR {self.fmr:g}: reached {self.reached:.3g} "
            f"[{self.low:.2g}, {self.high:.2g}] in {self.comparisons:,} comparisons, worth {self.effective:,.0f} "
            "independent ones"
        )


def threshold_at_fmr(impostors: ImpostorScores | Tensor, fmr: float) -> Threshold:
    """The lowest threshold at which no more than a share `fmr` of the impostor scores match (score ≥ threshold).

    Comparisons that share a face are not independent, so the interval takes identities as the sample: the variance
    is the dyadic cluster-robust one (Aronow, Samii & Assenova 2015, eq. 2, all comparisons of two identities being one
    dyad), never below that of independent dyads or comparisons, and the interval Wilson's with the number of
    independent comparisons that has this variance (as Korn & Graubard 1998).

    Args:
        impostors: from `impostor_scores`; or bare scores [p], which are then taken as independent.
        fmr: false match rate, in (0, 1).

    Raises:
        DataError: fewer than 30 / fmr scores (the rule of 30, Doddington et al. 2000), NaN, fmr out of range, or more
            impostors at cosine 1 than the FMR admits.
    """
    scores = impostors if isinstance(impostors, Tensor) else impostors.scores
    if scores.ndim != 1 or not scores.is_floating_point():
        raise ShapeError("impostor scores are a vector", expected="float [p]", got=list(scores.shape))
    n = len(scores)
    allowed = _allowed_matches(fmr, n)
    if not bool(scores.isfinite().all()):
        raise DataError("impostor scores with NaN or infinities", fix="check the embeddings they came from")
    value = _just_above(scores.topk(allowed + 1).values[-1], fmr, n)
    matched = scores >= value
    return _threshold(value, fmr, matched.double().mean(), n, _effective_comparisons(matched, impostors))


@torch.no_grad()
def threshold_among(embeddings: Tensor, fmr: float, *, block: int = 2048) -> Threshold:
    """`threshold_at_fmr` of all pairs of faces of different people, in constant memory: for rates of 10⁻⁵ and below.

    The pairs are gone through twice, block by block; the value and its interval are those of
    `threshold_at_fmr(impostor_scores(embeddings, n_pairs=n * n), fmr)`, up to rounding.

    Args:
        embeddings: unit vectors [n, e], every row another person; n(n − 1)/2 pairs must be 30 / fmr or more.
        fmr: false match rate, in (0, 1).
        block: rows at a time; memory is O(block²) and O(fmr·n²) scores beside the input.

    Raises:
        DataError: not unit vectors, too few, or fmr out of range.
    """
    check_embeddings(embeddings)
    if block < 1:
        raise DataError("block out of range", expected="≥ 1", got=block)
    n = len(embeddings)
    pairs = n * (n - 1) // 2
    allowed = _allowed_matches(fmr, pairs)
    top = embeddings.new_empty(0, dtype=_precision(embeddings))
    for _, _, scores in _pair_blocks(embeddings, block):
        flat = scores.flatten()
        top = torch.cat((top, flat.topk(min(allowed + 1, len(flat))).values))
        top = top.topk(min(allowed + 1, len(top))).values
    value = _just_above(top[-1], fmr, pairs)
    degree = torch.zeros(n, dtype=torch.float64, device=embeddings.device)  # matches of each person
    for i, j, scores in _pair_blocks(embeddings, block):
        matched = scores >= value
        degree[i : i + block] += matched.sum(1)
        degree[j : j + block] += matched.sum(0)
    rate = degree.sum() / 2 / pairs
    # Each dyad is one pair here: the sums of `_effective_comparisons` in closed form.
    independent = pairs * rate * (1 - rate)
    dyadic = (degree - rate * (n - 1)).square().sum() - independent
    effective = torch.where(independent > 0, pairs * independent / torch.maximum(dyadic, independent), pairs)
    return _threshold(value, fmr, rate, pairs, effective)


def _pair_blocks(x: Tensor, block: int) -> Iterator[tuple[int, int, Tensor]]:
    """Scores of rows i … against rows j …, every pair once; −2 for what is no pair."""
    product = _Product(x, block)
    for i in range(0, len(x), block):
        for j in range(i, len(x), block):
            scores = product(_rows(x, slice(i, i + block)), _rows(x, slice(j, j + block)))
            yield i, j, scores if i < j else scores.masked_fill(torch.ones_like(scores).tril_().bool(), -2.0)


def _allowed_matches(fmr: float, comparisons: int) -> int:
    if not 0 < fmr < 1:
        raise DataError("the FMR is a share", expected="0 < fmr < 1", got=fmr)
    allowed = math.floor(fmr * comparisons + 1e-6)
    if allowed < RULE_OF_30:
        raise DataError(
            f"too few impostor scores for an FMR of {fmr:g}",
            expected=f"{math.ceil(RULE_OF_30 / fmr):,} or more (30 false matches, the rule of 30)",
            got=f"{comparisons:,}",
            fix="raise n_pairs, embed more identities (n give n(n − 1)/2 pairs), or ask for a higher FMR",
        )
    return allowed


def _just_above(refused: Tensor, fmr: float, comparisons: int) -> Tensor:
    """The lowest cosine above the highest score that must not match."""
    value = torch.nextafter(refused, torch.full_like(refused, torch.inf))
    # The cosine of an embedding with its own copy is 1 up to rounding, below as well as above.
    if not float(value) < 1 - 8 * torch.finfo(value.dtype).eps:
        raise DataError(
            f"no cosine keeps an FMR of {fmr:g}",
            expected=f"at most {math.floor(fmr * comparisons + 1e-6):,} of {comparisons:,} impostor scores at 1",
            got="more",
            fix="the same faces are listed as several identities: pass ids=, or remove the repeats",
        )
    return value


def _threshold(value: Tensor, fmr: float, reached: Tensor, comparisons: int, effective: Tensor) -> Threshold:
    low, high = wilson_interval(reached * effective, effective)
    at, share, lowest, highest, worth = torch.stack((value.double(), reached, low, high, effective)).tolist()
    return Threshold(at, fmr, share, lowest, highest, comparisons, worth)


def _effective_comparisons(matched: Tensor, impostors: ImpostorScores | Tensor) -> Tensor:
    n = torch.full((), len(matched), dtype=torch.float64, device=matched.device)
    if isinstance(impostors, Tensor):
        return n
    rate = matched.double().mean()
    error = matched.double() - rate
    first, second = impostors.identities[impostors.first], impostors.identities[impostors.second]
    people = len(impostors.identities)
    sums = error.new_zeros(people).index_add_(0, first, error).index_add_(0, second, error)
    key = torch.minimum(first, second) * people + torch.maximum(first, second)
    dyads, dyad = key.unique(return_inverse=True)
    repeated = error.new_zeros(len(dyads)).index_add_(0, dyad, error).square().sum()
    independent = error.square().sum()
    dyadic = sums.square().sum() - repeated  # two identities' comparisons are in the sums of both
    ratio = independent / torch.stack((dyadic, repeated, independent)).max()
    return torch.where(independent > 0, n * ratio, n)  # no match at all, as ties can have it: no variance to go by


# ------------------------------------------------------------------------------------------ comparing sets


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
    similarity = embeddings.new_empty(len(embeddings), wanted, dtype=_precision(embeddings))
    index = torch.empty(similarity.shape, dtype=torch.int64, device=embeddings.device)
    product = _Product(embeddings, block)
    for i in range(0, len(embeddings), block):
        query = _rows(embeddings, slice(i, i + block))
        best = None
        for j in range(0, len(reference), block):
            scores = product(query, _rows(reference, slice(j, j + block)))
            found = _largest(scores, min(wanted, scores.shape[1]))
            found = Nearest(found.similarity, found.indices + j)
            best = found if best is None else _merge(best, found, wanted)
        assert best is not None
        similarity[i : i + block], index[i : i + block] = best
    return Nearest(similarity.squeeze(1), index.squeeze(1)) if k is None else Nearest(similarity, index)


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
        product = _Product(embeddings, block)
        for j in range(0, len(known), block):
            left = rows[~taken]
            taken[left] = _matches(product, embeddings, left, _rows(known, slice(j, j + block)), cosine)
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
    return _numbered(_roots(embeddings, _check_threshold(embeddings, threshold, block), block))


def _greedy(x: Tensor, rows: Tensor, cosine: float, block: int) -> Tensor:
    """Keep mask [n] of greedy selection among some rows, in order."""
    keep = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    product = _Product(x, block)
    while len(rows):
        head, rows = rows[:block], rows[block:]
        candidates = _rows(x, head)
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


def _matches(product: _Product, x: Tensor, rows: Tensor, others: Tensor, cosine: float) -> Tensor:
    """bool: does a row of x match any of `others` [b, e]?"""
    if len(rows) == 0 or len(others) == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    return torch.cat([product(_rows(x, part), others).amax(1) >= cosine for part in rows.split(product.block)])


def _roots(x: Tensor, cosine: float, block: int) -> Tensor:
    """The first row of each row's component, int64 [n]."""
    root = torch.arange(len(x), device=x.device)
    product = _Product(x, block)
    for i in range(0, len(x), block):
        left = _rows(x, slice(i, i + block))
        for j in range(i, len(x), block):
            match = product(left, _rows(x, slice(j, j + block))) >= cosine
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


class _Product:
    """Products of row blocks, all into one buffer instead of fresh memory for each."""

    def __init__(self, x: Tensor, block: int) -> None:
        self.block, self.length = block, 0
        self.buffer = x.new_empty(0, dtype=_precision(x))

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """a·bᵀ; valid until the next call."""
        size = len(a) * len(b)
        if size > self.length:
            self.buffer, self.length = self.buffer.new_empty(size), size
        return torch.mm(a, b.T, out=self.buffer[:size].view(len(a), len(b)))


def _rows(x: Tensor, rows: Tensor | slice) -> Tensor:
    return x[rows].to(_precision(x))


def _precision(x: Tensor) -> torch.dtype:
    """Half-precision embeddings are compared in float32, a block at a time."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_alike(x: Tensor, other: Tensor) -> None:
    if other.shape[1] != x.shape[1] or other.device != x.device or other.dtype != x.dtype:
        raise ShapeError(
            "the two sets of embeddings do not go together",
            expected=f"[m, {x.shape[1]}] {x.dtype} on {x.device}",
            got=f"{list(other.shape)} {other.dtype} on {other.device}",
        )


def cosine_threshold(threshold: SupportsFloat) -> float:
    """The threshold as a number; DataError unless it is a cosine."""
    if isinstance(threshold, str) or not -1 <= float(threshold) <= 1:
        raise DataError(
            "threshold out of range: it is a cosine",
            expected="a Threshold, or a number in [-1, 1]",
            got=repr(threshold),
            fix="ffs.threshold_at_fmr(ffs.impostor_scores(embeddings), fmr=1e-3), or pipeline.threshold(fmr=1e-3)",
        )
    return float(threshold)


def _check_threshold(embeddings: Tensor, threshold: Threshold | float, block: int) -> float:
    check_embeddings(embeddings)
    if block < 1:
        raise DataError("block out of range", expected="≥ 1", got=block)
    return cosine_threshold(threshold)


# ------------------------------------------------------------------------------------------ leakage


@dataclass(frozen=True)
class LeakageReport:
    """How many faces come near an identity of the training set, and how many should by chance: print it for a table.

    Attributes:
        nearest: each face's nearest reference identity.
        pairs: the closest pairs, int64 [p, 2]: face, reference; by falling similarity.
        thresholds: where a face counts as near.
        references: size of the reference set, N.
        names: names of the rows of the shares: "all", then groups [R].
        totals: faces in each row, int64 [R].
        counts: faces at or above each threshold, int64 [R, T].
        control_counts: the same among the control's faces, int64 [T]; None without a control.
        control_total: faces in the control.
    """

    nearest: Nearest
    pairs: Tensor
    thresholds: tuple[Threshold, ...]
    references: int
    names: tuple[str, ...]
    totals: Tensor
    counts: Tensor
    control_counts: Tensor | None = None
    control_total: int = 0

    @property
    def shares(self) -> Tensor:
        """Share of the faces at or above each threshold [R, T]; NaN for groups without faces."""
        return self.counts.double() / self.totals.unsqueeze(1)

    @property
    def intervals(self) -> tuple[Tensor, Tensor]:
        """95 % Wilson intervals of the shares, low and high [R, T]."""
        return wilson_interval(self.counts, self.totals.unsqueeze(1).expand_as(self.counts))

    @property
    def by_chance(self) -> Tensor:
        """1 − (1 − FMR)^N [T]: expected share without any leakage, were the N comparisons of a face independent."""
        reached = torch.tensor([t.reached for t in self.thresholds], dtype=torch.float64)
        return -torch.expm1(self.references * torch.log1p(-reached))

    @property
    def excess(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Share minus the control's, with a 95 % interval, each [R, T] (Newcombe 1998, method 10)."""
        if self.control_counts is None:
            return None
        low, high = self.intervals
        control = self.control_counts.double() / self.control_total
        control_low, control_high = wilson_interval(self.control_counts, self.control_total)
        difference = self.shares - control
        down = ((self.shares - low).square() + (control_high - control).square()).sqrt()
        up = ((high - self.shares).square() + (control - control_low).square()).sqrt()
        return difference, difference - down, difference + up

    def __str__(self) -> str:
        low, high = self.intervals
        excess = self.excess
        header = ["FMR", "cosine", "faces", "number", "near a training identity [95 %]", "by chance"]
        header += [] if excess is None else ["control", "more than the control [95 %]"]
        rows = []
        for t, threshold in enumerate(self.thresholds):
            for r, name in enumerate(self.names):
                share = share_text(self.shares[r, t], low[r, t], high[r, t]) if self.totals[r] else "–"
                row = [f"{threshold.fmr:g}", f"{threshold.value:.3f}", name, f"{int(self.totals[r])}", share]
                row.append(f"{100 * float(self.by_chance[t]):.1f} %")
                if excess is not None and self.control_counts is not None:
                    row.append(f"{100 * int(self.control_counts[t]) / self.control_total:.1f} %")
                    row.append(share_text(*(e[r, t] for e in excess)) if self.totals[r] else "–")
                rows.append(row)
        similarity = self.nearest.similarity[self.pairs[:, 0]].tolist()
        closest = ", ".join(f"{f}–{r} ({c:.3f})" for (f, r), c in zip(self.pairs.tolist(), similarity, strict=True))
        notes = [
            f"{self.references} references. By chance: 1 − (1 − FMR)^{self.references} of the faces would be near a "
            "training identity without owing it anything, were comparisons independent."
        ]
        notes += [] if excess is not None else ["No control set was given: shares alone do not show leakage."]
        notes += [f"Closest pairs, face–reference (cosine): {closest}."]
        return "\n".join([markdown_table(header, rows), "", *notes])


def leakage_report(
    embeddings: Tensor,
    reference: Tensor,
    thresholds: Threshold | Sequence[Threshold],
    *,
    control: Tensor | None = None,
    group_ids: Tensor | None = None,
    groups: Groups | None = None,
    pairs: int = 10,
    block: int = 2048,
) -> LeakageReport:
    """Do generated faces show people of the training set? Nearest training identities, and shares above thresholds.

    The FMR is that of one comparison. A face has N of them with N references, so 1 − (1 − FMR)^N of faces find a
    "match" with no leakage at all (in ISO/IEC 19795-1's terms, the false positive identification rate): at FMR 10⁻³
    and N = 1,000 that is 63 %. What speaks of leakage is a share above that of a control set.

    Args:
        embeddings: of the faces to test, unit vectors [n, e], n ≥ 1.
        reference: of the training set [N, e]; best one face or mean vector an identity.
        thresholds: from `threshold_at_fmr`, for example at FMR 1e-3 and 1e-4.
        control: [c, e], faces of the same kind that cannot derive from the training set, for example real people
            outside it, or another generator's.
        group_ids, groups: int64 [n] and their names: also a row for each group; −1 is in "all" alone.
        pairs: how many of the closest pairs to list.
        block: as in `novelty`.

    Raises:
        DataError, ShapeError: bad embeddings, no faces, no thresholds, bare numbers as thresholds.
        GroupError: ids that are none of the groups'.
    """
    listed = (thresholds,) if isinstance(thresholds, Threshold) else tuple(thresholds)
    if not listed or not all(isinstance(t, Threshold) for t in listed):
        raise DataError(
            "a leakage report needs thresholds of known FMR",
            expected="Threshold objects",
            got=listed or "none",
            fix="ffs.threshold_at_fmr(ffs.impostor_scores(reference, ids), fmr=1e-3)",
        )
    if len(embeddings) == 0 or (control is not None and len(control) == 0) or pairs < 0:
        raise DataError("no faces to report on", expected="faces, a control that is not empty, pairs ≥ 0", got="none")
    nearest = novelty(embeddings, reference, block=block)
    member, names = _report_rows(len(embeddings), group_ids, groups, embeddings.device)
    limits = torch.tensor([t.value for t in listed], dtype=torch.float64, device=embeddings.device)
    above = nearest.similarity.double().unsqueeze(1) >= limits
    counts = (member.double() @ above.double()).long().cpu()
    controls = None
    if control is not None:
        controls = (novelty(control, reference, block=block).similarity.double().unsqueeze(1) >= limits).sum(0).cpu()
    faces = nearest.similarity.topk(min(pairs, len(embeddings))).indices
    return LeakageReport(
        nearest=nearest,
        pairs=torch.stack((faces, nearest.indices[faces]), dim=1),
        thresholds=listed,
        references=len(reference),
        names=names,
        totals=member.sum(1).cpu(),
        counts=counts,
        control_counts=controls,
        control_total=0 if control is None else len(control),
    )


def _report_rows(
    n: int, group_ids: Tensor | None, groups: Groups | None, device: torch.device
) -> tuple[Tensor, tuple[str, ...]]:
    """Which faces belong to which row of the report, bool [R, n], and the rows' names."""
    everyone = torch.ones(1, n, dtype=torch.bool, device=device)
    if group_ids is None or groups is None:
        if group_ids is not None or groups is not None:
            raise GroupError("group ids and their names go together", expected="group_ids= and groups=", got="one")
        return everyone, ("all",)
    if group_ids.shape != (n,) or group_ids.is_floating_point():
        raise ShapeError("one group id per face, please", expected=f"int64 [{n}]", got=list(group_ids.shape))
    if not bool(((group_ids >= -1) & (group_ids < len(groups))).all()):
        raise GroupError("unknown group ids", expected=f"-1 … {len(groups) - 1}", got=group_ids.unique().tolist())
    each = torch.arange(len(groups), device=device).unsqueeze(1) == group_ids.to(device)
    return torch.cat((everyone, each)), ("all", *groups.names)
