"""The measured sections of dataset.json: shares, identities, leakage, each number with its interval."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..identities import novelty
from ..label_noise import Confusion, true_shares
from ..reports import GroupShares, group_shares, wilson_interval
from .auditing import Faces, Sample, Variations
from .finished import FinishedSet
from .readme import Section

_SELECTED = (
    "This labeller selected the faces (image 0 of each identity; verify): that it agrees with the aim there proves "
    "nothing. The judge's counts do. It looked before the faces were stored: where it agrees in less than 100 %, "
    "encoding, size or crop have moved faces across its minimum confidence."
)
_ONE_IMAGE = "there is one image an identity"
_PER_IDENTITY = (
    "Wilson's interval with identities as the sample, their shares being what is averaged: at least as wide as the "
    "data ask for, since a share varies by p(1 − p) at most"
)


def measured_sections(
    sample: Sample,
    disk: FinishedSet,
    faces: Faces,
    varied: Variations,
    *,
    confusion: Confusion | None,
    reference: Tensor | None,
) -> Section:
    """What the models say of the sample, in numbers; what was not measured says why.

    Args:
        sample: the audited identities.
        disk: the set's own records.
        faces: of the sample.
        varied: other images of the sample.
        confusion: of the labeller, to correct its shares.
        reference: embeddings of the generator's training faces, unit vectors [m, e].

    Raises:
        DataError: vectors that are not of the embedder of the set.
    """
    plan, (labelled, judged) = sample.plan, faces.labels
    vectors = faces.vectors if disk.embeddings is None else torch.from_numpy(disk.embeddings[sample.identities])
    return {
        "shares": {
            "aimed": {
                name: {"identities": n, "images": n * plan.images_per_identity} for name, n in plan.quota.items()
            },
            "labeller": _labels(sample, labelled, "labeller", _SELECTED if plan.verify else None),
            "judge": _labels(sample, judged, "judge", None),
            "variations": _variation_labels(sample, varied.labels),
            "true": _true_shares(sample, labelled, confusion),
        },
        "faces found": _found(sample, faces.found),
        "identity": _identity(sample, disk, vectors, faces.vectors),
        "same person": _same_person(sample, varied, disk.threshold),
        "leakage": _leakage(sample, vectors, reference, disk),
    }


# --- details ------------------------------------------------------------------------------------------------------


def _absent(why: str) -> Section:
    return {"measured": False, "why": why}


def _share(count: float, total: int) -> Section:
    """A share with its Wilson interval; `count` may be a sum of shares."""
    low, high = wilson_interval(torch.tensor(float(count)), total)
    return {
        "share": _rounded(count / total) if total else None,
        "low": _rounded(float(low)),
        "high": _rounded(float(high)),
    }


def _counted(hits: np.ndarray) -> Section:
    return {"count": int(hits.sum()), "total": len(hits), **_share(int(hits.sum()), len(hits))}


def _rounded(x: float) -> float | None:
    """Four significant digits: below them, threads and libraries differ."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


def _distribution(values: np.ndarray) -> Section:
    marks = {"lowest": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "highest": 1.0}
    return {"n": len(values), **{k: _rounded(float(np.quantile(values, q))) for k, q in marks.items()}}


def _labels(sample: Sample, ids: Tensor | None, who: str, note: str | None) -> Section:
    """Shares as labelled, and what the faces aimed at each group were labelled as."""
    if ids is None:
        return _absent(f"no {who} was given")
    shares, names = group_shares(sample.groups, ids), sample.groups.names
    columns = [*names, "unsure"]
    rows, as_aimed = [], {"all": _counted((ids == sample.aimed).numpy())}
    for name, mine in sample.members():
        own = ids.numpy()[mine]
        rows.append(np.bincount(np.where(own < 0, len(names), own), minlength=len(columns)).tolist())
        as_aimed[name] = _counted(own == sample.groups.id(name))
    return {
        "measured": True,
        "total": shares.total,
        "unsure": shares.unsure,
        "groups": {name: {"count": int(shares.counts[g]), **_of(shares, g)} for g, name in enumerate(names)},
        "labelled as aimed": as_aimed,
        "aimed × labelled": {"rows": [name for name, _ in sample.members()], "columns": columns, "counts": rows},
        "note": note,
    }


def _variation_labels(sample: Sample, labels: tuple[Tensor | None, Tensor | None]) -> Section:
    """The same of one variation of each identity, which nobody selected."""
    if sample.plan.images_per_identity == 1:
        return {who: _absent(_ONE_IMAGE) for who in ("labeller", "judge")}
    return {who: _labels(sample, ids, who, None) for who, ids in zip(("labeller", "judge"), labels, strict=True)}


def _of(shares: GroupShares | Any, g: int) -> Section:
    """A group's row of `GroupShares` or `TrueShares`."""
    columns = {"share": shares.shares, "low": shares.low, "high": shares.high}
    return {name: _rounded(float(column[g])) for name, column in columns.items()}


def _true_shares(sample: Sample, ids: Tensor | None, confusion: Confusion | None) -> Section:
    if confusion is None:
        return _absent("no confusion matrix of the labeller was given")
    table = {
        "counts": {attribute: counts.tolist() for attribute, counts in confusion.counts.items()},
        "gate": None if confusion.gate is None else confusion.gate.tolist(),
        "exact": confusion.exact,
    }
    if ids is None:
        return {**_absent("no labeller was given"), "confusion": table}
    if sample.plan.verify:
        why = "the labeller selected these faces (verify), so its counts are the quota, whatever the faces are"
        return {**_absent(why), "confusion": table}
    rng = torch.Generator().manual_seed(sample.plan.seed % 2**63)
    try:
        true = true_shares(confusion.to("cpu"), sample.groups.count(ids), rng=rng)
    except DataError as error:
        return {**_absent(f"refused: {str(error).splitlines()[0]}"), "confusion": table}
    shares = {name: _of(true, g) for g, name in enumerate(sample.groups.names)}
    how = {"method": true.method, "condition": _rounded(float(true.condition)), "error": _rounded(float(true.error))}
    return {"measured": True, "groups": shares, **how, "confusion": table}


def _found(sample: Sample, found: Tensor | None) -> Section:
    if found is None:
        return _absent("no detector was given")
    each = {name: _counted(found.numpy()[mine]) for name, mine in sample.members()}
    return {"measured": True, **_counted(found.numpy()), "groups": each}


def _identity(sample: Sample, disk: FinishedSet, vectors: Tensor | None, stored: Tensor | None) -> Section:
    """What the gate counted, how close identities are, and whether the sample confirms it."""
    known = disk.nearest[np.isfinite(disk.nearest)]
    nearest = _distribution(known) if len(known) else None
    pairs = _pairs(vectors, disk)
    agreement: Section = _absent("needs an embedder and stored embeddings")
    if disk.embeddings is not None and stored is not None and vectors is not None:
        if stored.shape != vectors.shape:
            raise DataError(
                "this is not the embedder of the set",
                expected=f"vectors of length {vectors.shape[1]}, as in embeddings.npy",
                got=stored.shape[1],
            )
        agreement = {"measured": True, **_distribution((stored * vectors).sum(1).double().numpy())}
    return {
        "gate": disk.gate,
        "nearest earlier identity": {"measured": True, **nearest}
        if nearest
        else _absent("identities were not compared"),
        "matching pairs": pairs,
        "stored images against stored embeddings": agreement,
    }


def _pairs(vectors: Tensor | None, disk: FinishedSet) -> Section:
    if vectors is None:
        return _absent("no embedder was given")
    if disk.threshold is None:
        return _absent("the plan has no false match rate, so there is no threshold")
    matched, n = 0, len(vectors)
    for i in range(0, n, 1024):
        match = vectors[i : i + 1024] @ vectors[i:].T >= disk.threshold
        matched += int(match.triu(1).sum())
    source = "the generator's faces, embeddings.npy" if disk.embeddings is not None else "the stored images"
    return {"measured": True, "embeddings": source, "matched": matched, "pairs": n * (n - 1) // 2}


def _same_person(sample: Sample, varied: Variations, threshold: float | None) -> Section:
    """Do the variations of an identity match its face, as stored?"""
    cosines = varied.cosines
    if cosines is None:
        return _absent(_ONE_IMAGE if sample.plan.images_per_identity == 1 else "no embedder was given")
    section: Section = {
        "measured": True,
        "identities": len(varied.rows),
        "images": cosines.size,
        "places": varied.places.tolist(),
        "cosine": _distribution(cosines.ravel()),
        "threshold": threshold,
    }
    if threshold is None:
        return {**section, "why no share": "the plan has no false match rate"}
    means, turn = (cosines >= threshold).mean(1), sample.turn[varied.rows]
    groups = {n: _over_identities(means[turn == i]) for i, n in enumerate(sample.names) if (turn == i).any()}
    return {**section, "interval": _PER_IDENTITY, "all": _over_identities(means), "groups": groups}


def _over_identities(means: np.ndarray) -> Section:
    return {"identities": len(means), **_share(float(means.sum()), len(means))}


def _leakage(sample: Sample, vectors: Tensor | None, reference: Tensor | None, disk: FinishedSet) -> Section:
    """How near the faces come to the generator's training faces."""
    if reference is None:
        return _absent("no embeddings of the generator's training faces were given (reference=)")
    if vectors is None:
        return _absent("no embedder was given")
    similarity = novelty(vectors, reference.detach().cpu().to(vectors)).similarity.double().numpy()
    section: Section = {"measured": True, "references": len(reference), "cosine": _distribution(similarity)}
    if disk.threshold is None:
        return {**section, "why no share": "the plan has no false match rate, so there is no threshold"}
    near, fmr = similarity >= disk.threshold, disk.gate.get("fmr")
    return {
        **section,
        "threshold": disk.threshold,
        "gate references": disk.gate.get("reference", 0),
        "all": _counted(near),
        "groups": {name: _counted(near[mine]) for name, mine in sample.members()},
        "by chance": None if fmr is None else _rounded(-math.expm1(len(reference) * math.log1p(-float(fmr)))),
    }
