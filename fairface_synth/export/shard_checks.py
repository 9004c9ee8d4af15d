"""What is wrong with a shard on disk: its files against the sidecar, its rows against the plan, its images."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .encoding import decode
from .plan import DatasetPlan, Shard
from .storage import (
    COLUMNS,
    FOLDER,
    IMAGES,
    JOINED,
    digest_of,
    file_chunks,
    file_name,
    identity_folders,
    load_sidecar,
    read_images,
    read_index,
    record_place,
    relative,
    size_problems,
    some,
    stored_size,
)


def check_shard(root: Path, plan: DatasetPlan, shard: Shard) -> list[str]:
    """Everything that is wrong with a shard, in words; [] if it is as it was written. Reads and decodes every image."""
    root, label = Path(root), f"shard {shard.number}"
    content, problem = load_sidecar(root, plan, shard)
    problems = [problem] if problem else []
    if content is not None:
        problems += size_problems(root, plan, shard, content)
        problems += _stray_problems(root, plan, shard)
        for name, entry in content["files"].items():
            if name.endswith("*") or stored_size(root, plan, shard, name) != entry["bytes"]:
                continue
            if _file_hash(root, plan, shard, name) != entry["sha256"]:
                problems.append(f"{name} is not what was written: its sha256 differs")
    try:
        problems += _index_problems(read_index(root, plan, shard, COLUMNS[:-1]), plan, shard)  # latents may be large
        problems += _image_problems(root, plan, shard, content)
    except DataError as error:
        problems.append(" ".join(str(error).split()))
    return [f"{label}: {problem}" for problem in problems]


def _file_hash(root: Path, plan: DatasetPlan, shard: Shard, name: str) -> str:
    path, start, length = record_place(root, plan, shard) if name.endswith(".rec") else (root / name, 0, None)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in file_chunks(file, start, path.stat().st_size - start if length is None else length):
            digest.update(chunk)
    return digest.hexdigest()


def _stray_problems(root: Path, plan: DatasetPlan, shard: Shard) -> list[str]:
    """Files that others, who read `shards/*.tar` or all of images/, would take for a part of the set."""
    stray = _strangers(root, plan) if shard.number == 0 else []
    if plan.layout == "folders":
        known = {f"{place:04d}.{plan.extension}" for place in range(plan.images_per_identity)}
        found = [p for folder in identity_folders(root, shard) if folder.is_dir() for p in folder.iterdir()]
        stray += sorted(relative(p, root) for p in found if p.name not in known)
    return [f"files that do not belong there: {some(stray)}"] if stray else []


def _strangers(root: Path, plan: DatasetPlan) -> list[str]:
    """What lies beside shards and identities and is none of the plan's; not what begins with a dot."""
    digits, stray = re.compile(r"\d+"), []
    for folder, count, width in ((FOLDER, plan.shards, 5), (IMAGES, plan.identities, 8)):
        for name in sorted(os.listdir(root / folder)) if (root / folder).is_dir() else ():
            stem = name.partition(".")[0] if folder == FOLDER else name
            planned = digits.fullmatch(stem) and len(stem) >= width and int(stem) < count
            if not planned and f"{folder}/{name}" != JOINED and not name.startswith("."):
                stray.append(f"{folder}/{name}")
    return stray


def _index_problems(table: Any, plan: DatasetPlan, shard: Shard) -> list[str]:
    """Where the index does not say what the plan says."""
    if table.num_rows != shard.images:
        return [f"the index has {table.num_rows:,} rows, not {shard.images:,}"]
    image = np.arange(shard.first_image, shard.first_image + shard.images)
    identity, place = np.divmod(image, plan.images_per_identity)
    expected: dict[str, Any] = {
        "image": image,
        "identity": identity,
        "place": place,
        "key": np.array([plan.key(i) for i in image.tolist()]),
        "group": np.array(list(plan.quota))[plan.order[identity]],
        "file": np.array([file_name(plan, shard, i) for i in image.tolist()]),
    }
    problems = []
    for name, values in expected.items():
        wrong = np.flatnonzero(np.array(table[name].to_pylist()) != values)
        if len(wrong):
            problems.append(f"the index's {name} is not the plan's in rows {some(wrong.tolist())}")
    ids = set(zip(table["group"].to_pylist(), table["group_id"].to_pylist(), strict=True))
    if len(ids) != len({name for name, _ in ids}):
        problems.append("the index has several group ids for one group")
    return problems


def _image_problems(root: Path, plan: DatasetPlan, shard: Shard, content: dict[str, Any] | None) -> list[str]:
    """Images that are missing, differ from their digest in the index, or do not decode."""
    digests = read_index(root, plan, shard, ["digest"])["digest"].to_pylist()
    whole, wrong, broken, count = hashlib.sha256(), [], [], 0
    images = read_images(root, plan, shard)
    problems = []
    try:
        for count, data in enumerate(images, 1):
            number = shard.first_image + count - 1
            whole.update(data)
            if count <= len(digests) and digest_of(data) != digests[count - 1]:
                wrong.append(number)
            try:
                decode(data)
            except DataError:
                broken.append(number)
    except DataError as error:
        problems.append(f"image {shard.first_image + count} cannot be read: {' '.join(str(error).split())}")
    else:
        if count != shard.images:
            problems.append(f"it has {count:,} images, not {shard.images:,}")
    if wrong:
        problems.append(f"images that differ from the index's digest: {some(wrong)}")
    if broken:
        problems.append(f"images that do not decode: {some(broken)}")
    entry = content["files"].get(f"{IMAGES}/*") if content is not None else None
    if entry is not None and not problems and whole.hexdigest() != entry["sha256"]:
        problems.append("the images' sha256 differs from the sidecar's")
    return problems
