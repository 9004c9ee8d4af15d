"""Joining the shards of a "rec" set into train.rec, train.idx and property, in place and without a second copy."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..artifacts import sync_folder
from ..errors import DataError
from . import records
from .disk import clear_folder, disk_errors, holds, put_file, sync, write_chunks, write_file
from .encoding import decode
from .plan import DatasetPlan, Shard
from .storage import (
    AGAIN,
    JOINED,
    JOINED_FORMAT,
    PART,
    VERSION,
    Spans,
    file_chunks,
    file_name,
    is_done,
    is_joined,
    joined_bytes,
    joined_spans,
    read_images,
    read_index,
    sidecar_spans,
    some,
)


def finish(root: Path, plan: DatasetPlan) -> None:
    """What is done once all shards are there: "rec" sets are joined into train.rec, train.idx and property.

    Every shard is copied to its place in the file, brought to the disk, and only then deleted, so that the set needs
    its own size and one shard. May be killed at any moment and called again; on a finished set it checks and mends
    what does not belong to a shard.

    Raises:
        DataError: shards are missing, the disk is full or read-only, or nobody knows what train.rec holds.
    """
    if plan.layout != "rec":
        return
    root = Path(root)
    keep_spans(root, plan)
    missing = [k for k in range(plan.shards) if not is_done(root, plan, plan.shard(k))]
    if missing:
        raise DataError(f"{len(missing):,} of {plan.shards:,} shards are missing", got=some(missing), fix=AGAIN)
    with disk_errors(root):
        target = root / "train.rec"
        part = root / PART
        _write_spans(root, plan, joined_spans(root, plan) or sidecar_spans(root, plan))
        if not target.is_file():
            if not part.is_file():
                clear_folder(part)
                part.touch()
                sync_folder(root)
            target = part
        fold(root, plan, target, [plan.shard(k) for k in range(plan.shards)])
        _fold_ends(root, plan, target)
        for name, content in _texts(root, plan).items():
            if not holds(root / name, content()):
                write_chunks(root / name, content())
        if target == part:
            put_file(part, root / "train.rec")
            sync_folder(root)


def check_finish(root: Path, plan: DatasetPlan) -> list[str]:
    """What is wrong with the files that `finish` makes, in words; calling it again mends them. Shards not looked at."""
    root = Path(root)
    if plan.layout != "rec":
        return []
    spans = joined_spans(root, plan)
    if not (root / "train.rec").is_file():
        return ["the shards are not joined into train.rec"]
    if spans is None:
        return [f"nobody knows what lies where in it: {JOINED} and sidecars are lost; delete train.rec, and {AGAIN}"]
    problems = []
    if not holds(root / JOINED, [_spans_text(plan, spans)]):
        problems.append(f"{JOINED} is missing or not what it should be")
    with open(root / "train.rec", "rb") as file:
        for name, start, data in _ends(plan, spans):
            if b"".join(file_chunks(file, start, len(data))) != data:
                problems.append(f"train.rec: {name} differ")
        if file.seek(0, os.SEEK_END) != joined_bytes(plan, spans):
            problems.append(f"train.rec has {file.tell():,} bytes, not {joined_bytes(plan, spans):,}")
    for name, content in _texts(root, plan).items():
        try:
            if not holds(root / name, content()):
                problems.append(f"{name} is missing or not what it should be")
        except DataError as error:
            problems.append(f"{name} cannot be checked: {' '.join(str(error).split())}")
    return problems


def keep_spans(root: Path, plan: DatasetPlan) -> None:
    """Record where the shards lie in train.rec, if they were joined: before a sidecar goes, which says it too.

    Raises:
        DataError: nobody knows what lies where.
    """
    if is_joined(root):
        _write_spans(root, plan, _known_spans(root, plan))


def fold(root: Path, plan: DatasetPlan, target: Path, shards: Iterable[Shard]) -> None:
    """Copy shards that are files of their own to their places in `target`, and delete the files.

    Raises:
        DataError: nobody knows where their places are.
    """
    spans = _known_spans(root, plan)
    with open(target, "rb+") as file:
        for shard in shards:
            own = root / file_name(plan, shard, shard.first_image)
            if own.is_file():
                start, length = spans[shard.number]
                file.seek(start)
                with open(own, "rb") as source:
                    shutil.copyfileobj(source, file, 2**20)
                if file.tell() != start + length:
                    raise DataError(f"{own} changed while it was joined", fix=AGAIN)
                sync(file)
                own.unlink()
                sync_folder(own.parent)


def _known_spans(root: Path, plan: DatasetPlan) -> Spans:
    spans = joined_spans(root, plan)
    if spans is None:
        raise DataError(
            "nobody knows what lies where in train.rec",
            expected=f"{JOINED}, or the sidecars of all shards",
            got="neither: they are missing or damaged",
            fix=f"delete train.rec and {PART}, and {AGAIN}",
        )
    return spans


def _write_spans(root: Path, plan: DatasetPlan, spans: Spans) -> None:
    text = _spans_text(plan, spans)
    if not holds(root / JOINED, [text]):
        write_file(root / JOINED, text)


def _spans_text(plan: DatasetPlan, spans: Spans) -> bytes:
    """The content of joined.json."""
    content = {"format": JOINED_FORMAT, "version": VERSION, "plan": plan.digest, "shards": spans}
    return (json.dumps(content) + "\n").encode()


def _ends(plan: DatasetPlan, spans: Spans) -> Iterator[tuple[str, int, bytes]]:
    """What of train.rec no shard holds: (what it is, offset, bytes)."""
    yield "the first record", 0, records.first_record(plan)
    yield "the identities' records", sum(spans[-1]), b"".join(records.identity_records(plan))


def _fold_ends(root: Path, plan: DatasetPlan, target: Path) -> None:
    spans = _known_spans(root, plan)
    with open(target, "rb+") as file:
        for _, start, data in _ends(plan, spans):
            if b"".join(file_chunks(file, start, len(data))) != data:
                file.seek(start)
                file.write(data)
        file.truncate(joined_bytes(plan, spans))
        sync(file)


def _texts(root: Path, plan: DatasetPlan) -> dict[str, Callable[[], Iterable[bytes]]]:
    """The small files beside train.rec, and what belongs in them."""
    return {"train.idx": lambda: _lines(root, plan), "property": lambda: [_property(root, plan)]}


def _lines(root: Path, plan: DatasetPlan) -> Iterator[bytes]:
    """The content of train.idx, by shard."""
    spans = _known_spans(root, plan)
    yield b"0\t0\n"
    for number, (start, _) in enumerate(spans):
        shard = plan.shard(number)
        offsets = read_index(root, plan, shard, ["offset"])["offset"].to_pylist()
        yield records.index_lines(records.image_key(shard.first_image), offsets, start)
    ends = range(sum(spans[-1]), joined_bytes(plan, spans), records.HEADER_BYTES)
    yield records.index_lines(records.image_key(plan.images), ends, 0)


def _property(root: Path, plan: DatasetPlan) -> bytes:
    """InsightFace's "classes,height,width"."""
    height, width, _ = decode(next(read_images(root, plan, plan.shard(0)))).shape
    return f"{plan.identities},{height},{width}\n".encode()
