"""How shards lie on disk: names, sidecars, where images are, and reading them.

A shard is its data, a parquet index with a row for each image, and a json sidecar that is written last: a shard is done
when its sidecar is there. `writing.py` writes them, `joining.py` makes one train.rec of those of a "rec" set,
`shard_checks.py` compares them with what was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError
from . import records
from .plan import DatasetPlan, Shard

FORMAT, JOINED_FORMAT, VERSION = "fairface_synth.shard", "fairface_synth.joined", 1
FOLDER, IMAGES, JOINED, PART = "shards", "images", "shards/joined.json", "train.rec.part"
COLUMNS = (
    "key", "image", "identity", "place", "group", "group_id", "index", "file", "offset", "bytes", "digest", "factor",
    "similarity", "aligned", "latents",
)  # fmt: skip
IMAGE_GROUP = 100  # rows in a row group of images
Spans = Sequence[tuple[int, int]]  # (offset, length) of each shard's records in train.rec
_SUFFIX = {"webdataset": ".tar", "rec": ".rec", "parquet": ".parquet"}
AGAIN = "run the same export again: it makes what is missing, and nothing else"
MEND = "verify_dataset(folder, repair=True) finds what is damaged or missing and makes it again"


# --- names ------------------------------------------------------------------------------------------------------------


def sidecar_path(root: Path, shard: Shard) -> Path:
    """The shard's sidecar, the mark that it is done."""
    return root / FOLDER / f"{shard.name}.json"


def index_path(root: Path, shard: Shard) -> Path:
    """The shard's index."""
    return root / FOLDER / f"{shard.name}.parquet"


def file_name(plan: DatasetPlan, shard: Shard, image: int) -> str:
    """The file that holds an image, relative to the set's folder."""
    if plan.layout == "folders":
        identity, place = divmod(image, plan.images_per_identity)
        return f"{IMAGES}/{identity:08d}/{place:04d}.{plan.extension}"
    return f"{FOLDER}/{shard.name}{_SUFFIX[plan.layout]}"


def identity_folders(root: Path, shard: Shard) -> list[Path]:
    """Of the layout "folders", whether they are there or not."""
    first = shard.first_identity
    return [root / IMAGES / f"{identity:08d}" for identity in range(first, first + shard.identities)]


def _image_paths(root: Path, plan: DatasetPlan, shard: Shard) -> Iterator[Path]:
    for image in range(shard.first_image, shard.first_image + shard.images):
        yield root / file_name(plan, shard, image)


def _file_names(plan: DatasetPlan, shard: Shard) -> list[str]:
    index = f"{FOLDER}/{shard.name}.parquet"
    data = f"{IMAGES}/*" if plan.layout == "folders" else file_name(plan, shard, shard.first_image)
    return [data] if data == index else [data, index]


def relative(path: Path, root: Path) -> str:
    """A path as a sidecar names it."""
    return path.relative_to(root).as_posix()


# --- sidecars ---------------------------------------------------------------------------------------------------------


def sidecar_content(plan: DatasetPlan, shard: Shard, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a sidecar says; all but the files follows from the plan."""
    of = plan.order[shard.first_identity : shard.first_identity + shard.identities]
    counts = (np.bincount(of, minlength=len(plan.quota)) * plan.images_per_identity).tolist()
    return {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan.digest,
        "shard": shard.number,
        "first_image": shard.first_image,
        "images": shard.images,
        "identities": shard.identities,
        "groups": {name: n for name, n in zip(plan.quota, counts, strict=True) if n},
        "files": files,
    }


def read_sidecar(root: Path, plan: DatasetPlan, shard: Shard) -> dict[str, Any] | None:
    """The shard's sidecar; None where it is missing, damaged, or of another plan."""
    content, _ = load_sidecar(Path(root), plan, shard)
    return content


def load_sidecar(root: Path, plan: DatasetPlan, shard: Shard) -> tuple[dict[str, Any] | None, str]:
    """The sidecar, or what is wrong with it."""
    path = sidecar_path(root, shard)
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] not in range(1, VERSION + 1):
            return None, f"its sidecar is of another format: {content['format']}, version {content['version']}"
        if content["plan"] != plan.digest:
            return None, f"its sidecar is of shard {content['shard']} of another plan ({content['plan']})"
        if content["shard"] != shard.number:
            return None, f"its sidecar is of shard {content['shard']} of this plan"
        whole = all(type(entry["bytes"]) is int and len(entry) == 2 for entry in content["files"].values())
        whole = whole and all(isinstance(entry["sha256"], str) for entry in content["files"].values())
        if not whole or set(content["files"]) != set(_file_names(plan, shard)):
            return None, "its sidecar is damaged: it lists other files"
        if content != sidecar_content(plan, shard, content["files"]):
            return None, "its sidecar is damaged: it does not say what the plan says"
    except FileNotFoundError:
        return None, "its sidecar is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"its sidecar is damaged: {error}"
    return content, ""


def is_done(root: Path, plan: DatasetPlan, shard: Shard) -> bool:
    """Whether the shard is there: a sidecar of this plan, and files of the sizes that it says. Reads no images.

    Of the layout "folders" the identities' folders are looked for, not the millions of files in them.
    """
    root = Path(root)
    content = read_sidecar(root, plan, shard)
    if content is None:
        return False
    sizes = {name: entry["bytes"] for name, entry in content["files"].items() if not name.endswith("*")}
    there = all(stored_size(root, plan, shard, name) == size for name, size in sizes.items())
    return there and (plan.layout != "folders" or all(map(os.path.isdir, map(str, identity_folders(root, shard)))))


def size_problems(root: Path, plan: DatasetPlan, shard: Shard, content: dict[str, Any]) -> list[str]:
    """Files that are missing, or not as long as the sidecar says, in words."""
    problems = []
    for name, entry in content["files"].items():
        found = stored_size(root, plan, shard, name)
        if found is None:
            problems.append(f"{name} is missing")
        elif found != entry["bytes"]:
            problems.append(f"{name} has {found:,} bytes, not {entry['bytes']:,}")
    return problems


def stored_size(root: Path, plan: DatasetPlan, shard: Shard, name: str) -> int | None:
    """Bytes that the shard has of one of its sidecar's files; None if it is missing, or no file."""
    if name.endswith("*"):
        images = range(shard.first_image, shard.first_image + shard.images)  # millions in all: no Path objects
        sizes = [_file_size(f"{root}/{file_name(plan, shard, image)}") for image in images]
        return None if None in sizes else sum(size or 0 for size in sizes)
    if not name.endswith(".rec"):
        return _file_size(root / name)
    path, start, length = record_place(root, plan, shard)
    size = _file_size(path)
    return size if size is None or length is None else max(0, min(length, size - start))


def _file_size(path: str | Path) -> int | None:
    """None where no file is."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


# --- train.rec --------------------------------------------------------------------------------------------------------


def record_place(root: Path, plan: DatasetPlan, shard: Shard) -> tuple[Path, int, int | None]:
    """Where the shard's records are: the file, their beginning, and their length where the file holds others too."""
    own = root / file_name(plan, shard, shard.first_image)
    if not own.is_file() and (spans := joined_spans(root, plan)) is not None:
        joined = root / "train.rec"
        return (joined if joined.is_file() else root / PART, *spans[shard.number])
    return own, 0, None


def is_joined(root: Path) -> bool:
    """Whether shards were joined, or some of them."""
    return (root / "train.rec").is_file() or (root / PART).is_file()


def joined_spans(root: Path, plan: DatasetPlan) -> Spans | None:
    """Where the shards lie in train.rec: as recorded when joining began, or as the sidecars say.

    None where nothing was joined, or nobody knows.
    """
    if not is_joined(root):
        return None
    path = root / JOINED
    try:
        found = path.stat()
        return _recorded_spans(path, (found.st_ino, found.st_mtime_ns, found.st_size), plan.digest, plan.shards)
    except (OSError, ValueError, KeyError, TypeError):
        return sidecar_spans(root, plan) or None


@lru_cache(maxsize=8)  # every look at a shard asks; errors are not kept
def _recorded_spans(path: Path, _: tuple[int, ...], digest: str, shards: int) -> Spans:
    content = json.loads(path.read_bytes())
    spans, stop = [(int(start), int(length)) for start, length in content["shards"]], records.HEADER_BYTES
    for start, length in spans:
        if start != stop or length < 0:
            raise ValueError("not one behind the other")
        stop += length
    if content["format"] != JOINED_FORMAT or content["plan"] != digest or len(spans) != shards:
        raise ValueError("of another set")
    return tuple(spans)


_seen: tuple[object, Spans] = None, ()  # what `sidecar_spans` found last, and in what state of the folder


def sidecar_spans(root: Path, plan: DatasetPlan) -> Spans:
    """The same from the sidecars; () unless all are there. Reads them once as long as no shard comes or goes."""
    global _seen
    try:
        found = os.stat(root / FOLDER)
        state = (root.absolute(), found.st_ino, found.st_mtime_ns, plan.digest)
        last, spans = _seen
        if last == state:
            return spans
        sidecars = sum(name.endswith(".json") for name in os.listdir(root / FOLDER))
    except OSError:
        return ()
    spans = _read_spans(root, plan) if sidecars >= plan.shards else ()  # no need to read those that are there
    if spans and time.time_ns() - found.st_mtime_ns > 10**9:  # later changes will have another time
        _seen = state, spans
    return spans


def _read_spans(root: Path, plan: DatasetPlan) -> Spans:
    spans, start = [], records.HEADER_BYTES
    for number in range(plan.shards):
        shard = plan.shard(number)
        content = read_sidecar(root, plan, shard)
        if content is None:
            return ()
        length = content["files"][file_name(plan, shard, shard.first_image)]["bytes"]
        spans.append((start, length))
        start += length
    return tuple(spans)


def joined_bytes(plan: DatasetPlan, spans: Spans) -> int:
    """Length of train.rec."""
    return sum(spans[-1]) + records.HEADER_BYTES * plan.identities


# --- reading ----------------------------------------------------------------------------------------------------------


def read_index(
    root: Path, plan: DatasetPlan, shard: Shard, columns: Sequence[str] | None = None, rows: slice | None = None
) -> Any:
    """The shard's index as a pyarrow table, by default all `COLUMNS` and rows; the images themselves are left out.

    Raises:
        DataError: it is missing or damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    columns = list(COLUMNS if columns is None else columns)
    path = index_path(Path(root), shard)
    stored = ["number" if name == "image" and plan.layout == "parquet" else name for name in columns]
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            if rows is None:
                return file.read(stored, use_threads=False).select(stored).rename_columns(columns)
            start, stop, _ = rows.indices(file.metadata.num_rows)
            lengths = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = np.cumsum(lengths)
            first, last = (int(np.searchsorted(ends, row, "right")) for row in (start, max(start, stop - 1)))
            groups = range(first, min(last + 1, len(lengths)))
            table = file.read_row_groups(groups, stored, use_threads=False).select(stored).rename_columns(columns)
            return table.slice(start - int(ends[first] - lengths[first]) if groups else 0, stop - start)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read the index of shard {shard.number}", expected=str(path), got=error, fix=MEND
        ) from error


def read_images(root: Path, plan: DatasetPlan, shard: Shard) -> Iterator[bytes]:
    """The shard's encoded images, in order, one at a time.

    Raises:
        DataError: a file is missing or damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    root = Path(root)
    try:
        if plan.layout == "folders":
            yield from (path.read_bytes() for path in _image_paths(root, plan, shard))
        elif plan.layout == "parquet":
            with parquet.ParquetFile(index_path(root, shard), page_checksum_verification=True) as file:
                for batch in file.iter_batches(IMAGE_GROUP, columns=["image"], use_threads=False):
                    yield from batch.column("image").field("bytes").to_pylist()
        else:
            with open_data(root, plan, shard) as data:
                place = read_index(root, plan, shard, ["offset", "bytes"])
                for offset, length in zip(place["offset"].to_numpy(), place["bytes"].to_numpy(), strict=True):
                    yield data.image(int(offset), int(length))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DataError(f"cannot read the images of shard {shard.number}", got=error, fix=MEND) from error


def open_data(root: Path, plan: DatasetPlan, shard: Shard) -> Data:
    """The tar or rec file in which the shard's images are. OSError if it is missing."""
    if plan.layout == "rec":
        path, start, _ = record_place(Path(root), plan, shard)
        return Data(path, start, True)
    return Data(Path(root) / file_name(plan, shard, shard.first_image), 0, False)


class Data:
    """An open tar or rec file: `image(offset, length)` with what the index says. For threads and forked processes."""

    def __init__(self, path: Path, start: int, rec: bool) -> None:
        self._handle, self._start, self._rec, self._path = -1, start, rec, path
        self._handle = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._handle).st_size - start

    def _read(self, offset: int, length: int) -> bytes:
        return os.pread(self._handle, length, self._start + offset)

    def image(self, offset: int, length: int) -> bytes:
        """The encoded image. DataError where there is none, or none of this length."""
        expected, data = f"{length:,} bytes at {offset:,}", b""
        try:
            if 0 <= offset <= self._size - length:
                data = records.read_image(self._read, offset) if self._rec else self._read(offset, length)
        except DataError as error:
            raise DataError(f"{self._path} is damaged", expected=expected, got=error, fix=MEND) from error
        if len(data) != length:
            got = f"{len(data):,} bytes, in a file of {self._size:,}"
            raise DataError(f"{self._path} is damaged", expected=expected, got=got, fix=MEND)
        return data

    def close(self) -> None:
        """Close the file, once."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __enter__(self) -> Data:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def file_chunks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    """A part of a file, a megabyte at a time; less where the file ends."""
    file.seek(start)
    while length > 0 and (chunk := file.read(min(length, 2**20))):
        length -= len(chunk)
        yield chunk


def digest_of(data: bytes) -> str:
    """Of an encoded image, as the index has it."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def some(items: Sequence[Any]) -> str:
    """The first few, and how many."""
    shown = ", ".join(str(item) for item in items[:5])
    return shown if len(items) <= 5 else f"{shown}, … ({len(items):,} in all)"
