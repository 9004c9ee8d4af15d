"""What is known about a set, written beside it: dataset.json, README.md, figures and a Croissant record.

Measured by `auditing.py` on a sample of the images as they are on disk, put into numbers by `sections.py`; `readme.py`
says it again in words, rounded further.
"""

from __future__ import annotations

import datetime
import difflib
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embeddings import check_embeddings
from ..errors import DataError, GroupError
from ..groups import Groups
from ..label_noise import Confusion
from ..models.protocols import Embedder, Labeller
from .auditing import Sample, measure_faces, measure_variations, spread
from .croissant import croissant_record
from .disk import write_file
from .figures import draw_figures, drawable, numbered, save_figures
from .finished import read_finished
from .plan import DatasetPlan
from .readme import headline, readme, summary
from .sections import measured_sections

FORMAT, VERSION = "fairface_synth.dataset", 1
SHEET = ("dataset.json", "README.md", "croissant.json")  # files of a described set
LICENCE_FIELDS = (
    "name",
    "url",
    "generator licence",
    "labeller licence",
    "training data",
    "creator",
    "citation",
    "published",
    "home page",
)
LICENCE_TEXT = "text"  # the whole licence, which becomes the file LICENSE of the set
_PACKAGES = ("fairface_synth", "torch", "torchvision", "pillow", "numpy", "pyarrow", "matplotlib")
_NOT_SELECTED = (
    "A labeller that selects faces looks at image 0 of each identity. The other images are made from that one, and "
    "nobody has selected them: fewer of them show the group."
)


@torch.no_grad()
def write_datasheet(
    root: Path,
    plan: DatasetPlan,
    *,
    groups: Groups,
    fingerprint: Mapping[str, str],
    describe: Mapping[str, Any],
    images: Callable[[Sequence[int]], Tensor],
    labeller: Labeller | None = None,
    judge: Labeller | None = None,
    detector: Callable[[Tensor], Any] | None = None,
    embedder: Embedder | None = None,
    min_confidence: float = 0.6,
    confusion: Confusion | None = None,
    reference: Tensor | None = None,
    licence: Mapping[str, str] | None = None,
    command: str | None = None,
    audit: int = 2000,
) -> None:
    """Measure a finished set and write dataset.json, README.md, croissant.json and figures/*.png into its folder.

    Every file is replaced as a whole; dataset.json is the last. Equal inputs give equal bytes. Memory does not grow
    with the set beyond 16 bytes an identity.

    Args:
        root: the set's folder; all its shards are done.
        plan: of the set, resolved to the names of `groups`.
        groups: what the labeller's probabilities are turned into.
        fingerprint: hashes of the parts that made the set: {"generator": …, "labeller": …}.
        describe: plain facts about them, printed as they are.
        images: image numbers (at most `plan.forward_batch`) → [n, 3, H, W] float in [-1, 1], decoded from what is on
            disk, on the models' device.
        labeller: the one that the set was made with.
        judge: another one, which had no part in making the set.
        detector: finds faces; gives `Detections`, bool [n] or probabilities [n].
        embedder: the identity gate's.
        min_confidence: below it a label is "unsure"; in [0, 1].
        confusion: of the labeller at this `min_confidence`, measured elsewhere on faces whose truth is known.
        reference: embeddings of the generator's training faces by the same embedder, unit vectors [m, e].
        licence: {"name": …, "url": …, …}, of `LICENCE_FIELDS`. What is missing is written as "not stated". "text", the
            whole licence, is written as the file LICENSE.
        command: the command that made the set.
        audit: identities to measure, spread evenly over every group; all if there are no more. Of each the face (image
            0) and, if there are others, the labels of one of them, drawn by the plan's seed.

    Raises:
        DataError: a set that is not finished or of another plan, a file that cannot be read or written, arguments
            out of range.
        GroupError, ShapeError: models that do not fit the groups; images or embeddings of the wrong shape.
    """
    root = Path(root)
    check_datasheet(
        groups,
        describe=describe,
        labeller=labeller,
        judge=judge,
        confusion=confusion,
        reference=reference,
        licence=licence,
        min_confidence=min_confidence,
        audit=audit,
    )
    disk = read_finished(root, plan)
    sample = Sample(plan, groups, spread(plan.order, audit))
    faces = measure_faces(sample, images, (labeller, judge), detector, embedder, min_confidence)
    varied = measure_variations(sample, images, (labeller, judge), embedder, faces.vectors, min_confidence)
    files, limits = disk.files | _licence_file(licence), set_limits(plan, groups)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan.to_dict(),
        "plan digest": plan.digest,
        "groups": {attribute: list(values) for attribute, values in groups.attributes.items()},
        "counts": {"identities": plan.identities, "images": plan.images, "shards": plan.shards, "bytes": disk.bytes},
        "fingerprint": dict(fingerprint),
        "describe": dict(describe),
        "audit": {"identities": len(sample.identities), "of": plan.identities, "min_confidence": min_confidence},
        **measured_sections(sample, disk, faces, varied, confusion=confusion, reference=reference),
        "licence": dict.fromkeys(LICENCE_FIELDS, "not stated") | dict(licence or {}),
        "limits": list(limits),
        "versions": {**{name: version(name) for name in _PACKAGES}, "python": platform.python_version()},
        "command": command if command is not None else "not stated",
        "files": files,
    }
    drawn = drawable(groups)
    figures = draw_figures(sample, drawn, faces, disk, varied)
    about = f"{summary(record)} {headline(record)}"
    croissant = croissant_record(root, plan, description=about, licence=licence, limits=limits, files=files)
    save_figures(figures, root)
    if licence is not None and LICENCE_TEXT in licence:
        _write(root / "LICENSE", licence[LICENCE_TEXT])
    _write(root / "croissant.json", _json(croissant))
    _write(root / "README.md", readme(record, plan, groups, list(figures), numbered(groups, drawn)))
    _write(root / "dataset.json", _json(record))


def check_datasheet(
    groups: Groups,
    *,
    describe: Mapping[str, Any] | None = None,
    labeller: Labeller | None = None,
    judge: Labeller | None = None,
    confusion: Confusion | None = None,
    reference: Tensor | None = None,
    licence: Mapping[str, str] | None = None,
    min_confidence: float = 0.6,
    audit: int = 2000,
) -> None:
    """Refuse what `write_datasheet` would refuse, before a set is made rather than after.

    Raises:
        DataError, GroupError, ShapeError: see `write_datasheet`.
    """
    if type(audit) is not int or audit < 1:
        raise DataError("audit is a number of identities", expected="a whole number ≥ 1", got=audit)
    if not 0 <= min_confidence <= 1:
        raise DataError("min_confidence is a probability", expected="0 … 1", got=min_confidence)
    for name, model in (("labeller", labeller), ("judge", judge)):
        known = {} if model is None else model.attributes
        if model is not None and any(tuple(known.get(a, ())) != v for a, v in groups.attributes.items()):
            raise GroupError(
                f"the {name} does not know these groups",
                expected=dict(groups.attributes),
                got=dict(known),
                fix="give one with the same attributes and values, in the same order; or none",
            )
    if confusion is not None and confusion.groups != groups:
        raise GroupError("the confusion is over other groups", expected=groups, got=confusion.groups)
    if reference is not None and not len(check_embeddings(reference, "reference")):
        raise DataError(
            "the reference is empty", expected="embeddings [m, e] of the training faces, m ≥ 1", got="m = 0"
        )
    if licence is not None:
        _check_licence(licence)
    try:
        json.dumps(dict(describe or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError("describe holds what json cannot", expected="text, numbers, lists", got=error) from error


def set_limits(plan: DatasetPlan, groups: Groups) -> tuple[str, ...]:
    """What a set's numbers do not prove, a sentence or two each."""
    first, *rest = (name.replace("_", " ") for name in groups.attributes)
    attributes = ", ".join((f"apparent {first}", *rest))
    compared = (
        "Identities are new to each other at the stated false match rate of one embedder; a person, or another "
        "embedder, may take two of them for one.",
    )
    selected = (
        "Faces that were selected by a labeller agree with it whatever they show. Only another labeller can tell.",
        *([_NOT_SELECTED] if plan.images_per_identity > 1 else []),
    )
    return (
        f"Groups are labels of machines, or what the generator was aimed at: {attributes}. They say nothing about how "
        "a person would describe themselves, and no human being has checked them.",
        "Shares by a labeller are shares as labelled. Its errors differ between groups, so a set that is balanced as "
        "labelled need not be balanced.",
        *(selected if plan.verify else ()),
        "Synthetic faces may resemble people whose photographs the generator was trained on. A gate on cosines finds "
        "what its embedder sees at its threshold, nothing else.",
        *(compared if plan.fmr is not None else ("Nobody has checked that the identities differ from each other.",)),
        "Images made again from their latents are the same bytes on the same device and software. On others the last "
        "bits differ; the stored latents are the truth.",
    )


# --- details ------------------------------------------------------------------------------------------------------


def _check_licence(licence: Mapping[str, str]) -> None:
    example = '{"name": "CC-BY-4.0", "url": "https://…", "generator licence": "…"}'
    if not isinstance(licence, Mapping):
        raise DataError("licence is a dict", expected=example, got=repr(licence))
    known = (*LICENCE_FIELDS, LICENCE_TEXT)
    for field in map(str, licence):
        if field not in known:
            # "generator" is no typing error of "generator licence", but means it.
            near = [x for x in known if field in x] or difflib.get_close_matches(field, known, 1, 0.5)
            guess = f"did you mean {near[0]!r}? " if near else ""
            fix = f"{guess}What has no field of its own fits into {LICENCE_TEXT!r}, which becomes the file LICENSE"
            raise DataError("the licence has a field that nobody knows", expected=", ".join(known), got=field, fix=fix)
    wrong = [k for k, v in licence.items() if not (isinstance(v, str) and v.strip())]
    if wrong:
        raise DataError("licence fields are text", expected=example, got={k: licence[k] for k in wrong})
    for field in ("url", "home page"):
        if "://" not in licence.get(field, "://"):
            raise DataError(f"licence[{field!r}] is no address", expected="https://…", got=licence[field])
    try:
        datetime.date.fromisoformat(licence.get("published", "2000-01-01"))
    except ValueError as error:
        raise DataError("published is no date", expected="YYYY-MM-DD", got=licence["published"]) from error


def _licence_file(licence: Mapping[str, str] | None) -> dict[str, dict[str, Any]]:
    if licence is None or LICENCE_TEXT not in licence:
        return {}
    data = licence[LICENCE_TEXT].encode("utf-8")
    return {"LICENSE": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}}


def _write(path: Path, text: str) -> None:
    write_file(path, text.encode("utf-8"))


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
