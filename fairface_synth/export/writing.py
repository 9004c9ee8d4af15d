"""Writing shards, each at constant memory, and removing them.

Nothing has its final name before it is whole and on the disk, and the sidecar is the last of a shard's files, so a run
may be killed at any moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..artifacts import sync_folder
from ..errors import DataError
from . import records
from .disk import (
    HashedFile,
    delete,
    disk_errors,
    draft_path,
    is_abandoned,
    make_folder,
    put_file,
    put_folder,
    write_file,
)
from .joining import fold, keep_spans
from .plan import DatasetPlan, Shard
from .shard_checks import check_shard
from .storage import (
    AGAIN,
    COLUMNS,
    FOLDER,
    IMAGE_GROUP,
    IMAGES,
    JOINED,
    digest_of,
    file_name,
    identity_folders,
    index_path,
    is_done,
    is_joined,
    joined_spans,
    read_sidecar,
    relative,
    sidecar_content,
    sidecar_path,
)

_ROW_GROUP_FLOATS = 2**16  # of latents in a row group, so that one row is read cheaply


class Row(NamedTuple):
    """What the index says of one image.

    Attributes:
        image, identity, place: numbers of the image, of its identity and of the image among the identity's.
        group, group_id, index: the identity's group and its candidate's index within the group.
        latents: float32, w that made the image, of any shape; it is flattened in the index.
        factor: share of the edit that was made; 1.0 is all of it.
        similarity: cosine to the identity's face, NaN where it was not computed.
        aligned: whether a detector's landmarks placed the crop.
    """

    image: int
    identity: int
    place: int
    group: str
    group_id: int
    index: int  # type: ignore[assignment]
    latents: np.ndarray
    factor: float
    similarity: float
    aligned: bool


def write_shard(root: Path, plan: DatasetPlan, shard: Shard, rows: Iterable[tuple[bytes, Row]]) -> dict[str, Any]:
    """Write a shard from its encoded images, in order, at constant memory. A shard that is there already is replaced.

    Several processes may write one shard of the same images at once: each has drafts of its own, and whichever comes
    last finds the others' files and leaves them, or puts the same ones in their place.

    Args:
        root: the set's folder.
        plan: the set's plan, with the groups' own names (`DatasetPlan.resolve`).
        shard: which of its shards.
        rows: (encoded image, what the index says of it), exactly the shard's images. Whatever it raises goes on to the
            caller, and nothing is left behind.

    Returns:
        The sidecar's content.

    Raises:
        DataError: rows that are not the shard's, a full or read-only disk, or a set that was joined into train.rec in
            which the shard had another length, or of which nobody knows what lies where.
    """
    root = Path(root)
    if plan.layout == "rec":
        records.check_keys(plan)
        keep_spans(root, plan)
    draft = _Draft(root, plan, shard)
    try:
        draft.open()
        for data, row in _checked(rows, plan, shard):
            draft.add(data, row)
        content = draft.commit()
    except FileNotFoundError as error:
        if not draft.was_taken():
            raise
        content = _others_shard(root, plan, shard, error)
    finally:
        draft.remove()
    if plan.layout == "rec" and (root / "train.rec").is_file():
        with disk_errors(root):
            fold(root, plan, root / "train.rec", [shard])
    return content


def _others_shard(root: Path, plan: DatasetPlan, shard: Shard, error: OSError) -> dict[str, Any]:
    """The sidecar that another writer left, who finished the set meanwhile and tidied up."""
    content = read_sidecar(root, plan, shard)
    if content is None or not is_done(root, plan, shard):
        raise DataError(f"the drafts of shard {shard.number} were deleted by others", got=error, fix=AGAIN) from error
    return content


def _checked(rows: Iterable[tuple[bytes, Row]], plan: DatasetPlan, shard: Shard) -> Iterator[tuple[bytes, Row]]:
    size, number = None, 0
    for number, (data, row) in enumerate(rows, 1):
        image = shard.first_image + number - 1
        identity, place = divmod(image, plan.images_per_identity)
        if number > shard.images:
            break
        expected = (image, identity, place, _group(plan, identity))
        if (row.image, row.identity, row.place, row.group) != expected:
            raise DataError(
                f"row {number} is not the next image of shard {shard.number}",
                expected="image {}, identity {}, place {}, {}".format(*expected),
                got=f"image {row.image}, identity {row.identity}, place {row.place}, {row.group}",
            )
        size = np.size(row.latents) if size is None else size
        if np.size(row.latents) != size or not np.isfinite(row.latents).all() or not data:
            got = f"{np.size(row.latents)} latents, {np.sum(~np.isfinite(row.latents))} not finite, {len(data)} bytes"
            raise DataError(f"image {image} is not whole", expected=f"{size} finite latents, an image", got=got)
        yield data, row
    if number != shard.images:
        got = f"{number:,}" if number < shard.images else "more"
        raise DataError(f"these are not the images of shard {shard.number}", expected=f"{shard.images:,}", got=got)


def _group(plan: DatasetPlan, identity: int) -> str:
    return list(plan.quota)[plan.order[identity]]


class _Draft:
    """A shard under temporary names: its data, its index, and then both at once."""

    def __init__(self, root: Path, plan: DatasetPlan, shard: Shard) -> None:
        self.root, self.plan, self.shard = root, plan, shard
        self.index = index_path(root, shard)
        self.index_draft = draft_path(self.index)
        folders = plan.layout == "folders"
        self.data = root / FOLDER / shard.name if folders else root / file_name(plan, shard, shard.first_image)
        self.data_draft = draft_path(self.data)
        self.length, self.count = 0, 0
        self.file: HashedFile | None = None
        self.table: _IndexWriter | None = None

    def _disk(self) -> Any:
        each = self.length / self.count if self.count else 0
        needs = f"about {each * self.shard.images / 2**20:,.1f} MiB for shard {self.shard.number}" if each else None
        return disk_errors(self.root, needs)

    def open(self) -> None:
        with self._disk():
            make_folder(self.index.parent)
            for old in self.index.parent.glob(f".{self.shard.name}.*.tmp"):
                if is_abandoned(old):  # or a run that is often killed would fill the disk
                    delete(old)
            if self.plan.layout == "folders":
                make_folder(self.root / IMAGES)
                self.data_draft.mkdir()
                self.digest = hashlib.sha256()
            elif self.plan.layout != "parquet":
                self.file = HashedFile(self.data_draft)

    def add(self, data: bytes, row: Row) -> None:
        with self._disk():
            offset = self._store(data, row)
            if self.table is None:
                self.table = _IndexWriter(HashedFile(self.index_draft), self.plan, self.shard, np.size(row.latents))
            self.table.add(data, row, offset)
        self.length, self.count = self.length + len(data), self.count + 1

    def _store(self, data: bytes, row: Row) -> int | None:
        """Write the image; where it begins in its file, if that says anything."""
        if self.plan.layout == "webdataset":
            assert self.file is not None
            offset = self.file.tell() + 512
            members = _members(data, row, self.plan)
            parts = ((_tar_header(name, len(x)), x, bytes(-len(x) % 512)) for name, x in members)
            self.file.write(b"".join(chain.from_iterable(parts)))
            return offset
        if self.plan.layout == "rec":
            assert self.file is not None
            offset = self.file.tell()
            self.file.write(records.image_record(row.identity, records.image_key(row.image), data))
            return offset
        if self.plan.layout == "folders":
            folder = self.data_draft / f"{row.identity:08d}"
            folder.mkdir(exist_ok=True)
            (folder / f"{row.place:04d}.{self.plan.extension}").write_bytes(data)
            self.digest.update(data)
        return None

    def commit(self) -> dict[str, Any]:
        with self._disk():
            files = self._finish_files()
            content = sidecar_content(self.plan, self.shard, files)
            sidecar = sidecar_path(self.root, self.shard)
            same = read_sidecar(self.root, self.plan, self.shard) == content  # of another writer, or a damaged shard's
            if same and not check_shard(self.root, self.plan, self.shard):
                return content
            if not same:  # of an earlier shard: not to be found beside the new one's files
                delete(sidecar)
                sync_folder(sidecar.parent)
            self._rename()
            if not same:
                write_file(sidecar, (json.dumps(content, indent=1) + "\n").encode())
        return content

    def _finish_files(self) -> dict[str, dict[str, Any]]:
        files = {}
        if self.plan.layout == "folders":
            for folder in sorted(self.data_draft.iterdir()):  # all at the end: most are on the disk by then
                for path in sorted(folder.iterdir()):
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
                sync_folder(folder)
            sync_folder(self.data_draft)
            files[f"{IMAGES}/*"] = {"bytes": self.length, "sha256": self.digest.hexdigest()}
        elif self.file is not None:
            if self.plan.layout == "webdataset":
                self.file.write(bytes(1024 + -(self.file.tell() + 1024) % 10240))
            files[relative(self.data, self.root)] = self.file.finish()
            self._check_joined(self.file.tell())
        assert self.table is not None
        return files | {relative(self.index, self.root): self.table.finish()}

    def _check_joined(self, length: int) -> None:
        spans = joined_spans(self.root, self.plan) if self.plan.layout == "rec" else None
        if spans is not None and length != spans[self.shard.number][1]:
            raise DataError(
                f"shard {self.shard.number} does not fit into train.rec, to which all shards have been joined",
                expected=f"{spans[self.shard.number][1]:,} bytes, as before",
                got=f"{length:,} bytes: another device, or another version of torch or Pillow, makes other bytes",
                fix="make it where the set was made, or export again to a new folder",
            )

    def _rename(self) -> None:
        if self.plan.layout == "folders":
            for folder in identity_folders(self.root, self.shard):
                put_folder(self.data_draft / folder.name, folder)
            sync_folder(self.root / IMAGES)
            shutil.rmtree(self.data_draft)
        elif self.file is not None:
            put_file(self.data_draft, self.data)
        put_file(self.index_draft, self.index)
        sync_folder(self.index.parent)

    def was_taken(self) -> bool:
        """Whether somebody else deleted what was written so far."""
        data = self.plan.layout == "folders" or self.file is not None
        index = self.table is not None
        return (data and not self.data_draft.exists()) or (index and not self.index_draft.exists())

    def remove(self) -> None:
        """Whatever is left under temporary names; nothing, when all went well."""
        if self.file is not None:
            with suppress(OSError):
                self.file.close()
        if self.table is not None:
            self.table.abandon()
        shutil.rmtree(self.data_draft, ignore_errors=True)
        for path in (self.data_draft, self.index_draft):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _members(data: bytes, row: Row, plan: DatasetPlan) -> Iterator[tuple[str, bytes]]:
    key = plan.key(row.image)
    about = {name: getattr(row, name) for name in ("image", "identity", "place", "group", "group_id", "index")}
    yield f"{key}.{plan.extension}", data
    yield f"{key}.cls", str(row.identity).encode()
    yield f"{key}.json", json.dumps(about, ensure_ascii=False).encode()


def _tar_header(name: str, size: int) -> bytes:
    """What `tarfile` writes, made from its header of another member: names, sizes and checksums alone differ."""
    blank, total = _blank_header()
    named, sized = name.encode().ljust(100, b"\0"), b"%011o" % size
    checksum = b"%06o" % (total + sum(named) + sum(sized))
    return b"".join((named, blank[100:124], sized, blank[135:148], checksum, blank[154:]))


@cache
def _blank_header() -> tuple[bytes, int]:
    """A header, and the sum of its bytes without name, size and checksum."""
    import tarfile

    info = tarfile.TarInfo()
    info.mode = 0o644  # owner, group and time are 0
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return header, sum(header[100:124]) + sum(header[135:148]) + 8 * ord(" ") + sum(header[156:])


# --- the index --------------------------------------------------------------------------------------------------------


class _IndexWriter:
    """The index, a row group at a time; in the layout "parquet" with the images."""

    def __init__(self, file: HashedFile, plan: DatasetPlan, shard: Shard, latents: int) -> None:
        from pyarrow import parquet

        self._file, self._plan, self._shard, self._rows = file, plan, shard, []  # type: ignore[var-annotated]
        self._schema = _schema(plan, latents)
        self._size = IMAGE_GROUP if plan.layout == "parquet" else max(64, min(1000, _ROW_GROUP_FLOATS // latents))
        raw = ("image.bytes", "latents.list.element")  # neither gets smaller
        self._writer = parquet.ParquetWriter(
            file,
            self._schema,
            compression=dict.fromkeys((*COLUMNS[:-1], "image.path"), "zstd") | dict.fromkeys(raw, "none"),
            use_dictionary=["group", "file"],
            write_statistics=["image", "identity", "place", "group_id", "index"],
            write_page_checksum=True,
        )

    def add(self, data: bytes, row: Row, offset: int | None) -> None:
        self._rows.append((row, offset, len(data), digest_of(data), data if self._plan.layout == "parquet" else None))
        if len(self._rows) == self._size:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = _columns(self._plan, self._shard, self._rows)
            arrays = [columns[field.name] for field in self._schema]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=self._size)
            self._rows = []

    def finish(self) -> dict[str, Any]:
        self._flush()
        self._writer.close()
        return self._file.finish()

    def abandon(self) -> None:
        if not self._file.closed:
            with suppress(Exception):  # the writer wants to end its file, on a disk that may be full
                self._writer.close()
            with suppress(OSError):
                self._file.close()


def _columns(plan: DatasetPlan, shard: Shard, rows: Sequence[tuple[Row, int | None, int, str, bytes | None]]) -> Any:
    """Arrow arrays of the index for some rows."""
    import pyarrow as pa

    names = list(plan.quota)
    about, offsets, lengths, digests, images = zip(*rows, strict=True)
    similarity = np.array([row.similarity for row in about], dtype=np.float32)
    latents = np.concatenate([np.asarray(row.latents, dtype=np.float32).ravel() for row in about])
    keys = [plan.key(row.image) for row in about]
    columns = {
        "key": pa.array(keys),
        "group": pa.DictionaryArray.from_arrays(pa.array([names.index(r.group) for r in about], pa.int32()), names),
        "file": pa.array([file_name(plan, shard, row.image) for row in about]),
        "offset": pa.array(offsets, pa.int64()),
        "bytes": pa.array(lengths, pa.int64()),
        "digest": pa.array(digests),
        "factor": pa.array([row.factor for row in about], pa.float32()),
        "similarity": pa.array(similarity, mask=np.isnan(similarity)),
        "aligned": pa.array([bool(row.aligned) for row in about]),
        "latents": pa.FixedSizeListArray.from_arrays(pa.array(latents), len(latents) // len(about)),
        "place": pa.array([row.place for row in about], pa.int32()),
    }
    for name in ("image", "identity", "group_id", "index"):
        columns[name] = pa.array([getattr(row, name) for row in about], pa.int64())
    if plan.layout == "parquet":  # the column "image" holds the images here, as readers of data sets expect
        columns["number"] = columns["image"]
        paths = [f"{key}.{plan.extension}" for key in keys]
        columns["image"] = pa.StructArray.from_arrays(
            [pa.array(images, pa.binary()), pa.array(paths)], ["bytes", "path"]
        )
    return columns


def _schema(plan: DatasetPlan, latents: int) -> Any:
    import pyarrow as pa

    types = {
        "key": pa.string(), "image": pa.int64(), "identity": pa.int64(), "place": pa.int32(),
        "group": pa.dictionary(pa.int32(), pa.string()), "group_id": pa.int64(), "index": pa.int64(),
        "file": pa.string(), "offset": pa.int64(), "bytes": pa.int64(), "digest": pa.string(), "factor": pa.float32(),
        "similarity": pa.float32(), "aligned": pa.bool_(), "latents": pa.list_(pa.float32(), latents),
    }  # fmt: skip
    if plan.layout != "parquet":
        return pa.schema(types)
    types = {"number" if name == "image" else name: kind for name, kind in types.items()}
    types = {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()})} | types
    features: dict[str, Any] = {name: {"dtype": _feature(kind), "_type": "Value"} for name, kind in types.items()}
    features["image"] = {"_type": "Image"}
    features["latents"] = {"feature": {"dtype": "float32", "_type": "Value"}, "length": latents, "_type": "Sequence"}
    return pa.schema(types, {"huggingface": json.dumps({"info": {"features": features}})})


def _feature(kind: Any) -> str:
    """Hugging Face's name of a type."""
    return {"float": "float32", "dictionary<values=string, indices=int32, ordered=0>": "string"}.get(
        str(kind), str(kind)
    )


# --- removing ---------------------------------------------------------------------------------------------------------


def remove_shard(root: Path, plan: DatasetPlan, shard: Shard) -> None:
    """Take a shard away, its sidecar first. What was joined into train.rec stays until the shard is made again.

    Raises:
        DataError: a full or read-only disk, or nobody knows what lies where in train.rec.
    """
    root = Path(root)
    data = [root / file_name(plan, shard, shard.first_image)]
    with disk_errors(root):
        if plan.layout == "rec":
            keep_spans(root, plan)
        for path in (sidecar_path(root, shard), index_path(root, shard)):
            delete(path)
            sync_folder(path.parent)
        for path in identity_folders(root, shard) if plan.layout == "folders" else data:
            delete(path)


def clean(root: Path, plan: DatasetPlan) -> None:
    """Remove what interrupted writes left: temporary files, and files of shards without a sidecar of this plan.

    Nobody else may be writing: call it under the set's lock.
    """
    root = Path(root)
    with disk_errors(root):
        for folder in (root, root / FOLDER, root / IMAGES):
            for path in sorted(folder.glob(".*.tmp")) if folder.is_dir() else ():
                delete(path)
        done: dict[int, bool] = {}
        for path, number in _shard_files(root, plan):
            if number not in done:
                done[number] = number < plan.shards and read_sidecar(root, plan, plan.shard(number)) is not None
            if not done[number]:
                delete(path)
        if not is_joined(root):
            delete(root / JOINED)


def _shard_files(root: Path, plan: DatasetPlan) -> list[tuple[Path, int]]:
    """Files and identities' folders of shards, with the shard's number."""
    data = [path for path in (root / FOLDER).glob("*") if re.fullmatch(r"\d{5,}\.(tar|rec|parquet|json)", path.name)]
    found = [(path, int(path.stem)) for path in data]
    if plan.layout == "folders":
        folders = [path for path in (root / IMAGES).glob("*") if re.fullmatch(r"\d{8,}", path.name)]
        found += [(path, int(path.name) // plan.identities_per_shard) for path in folders]
    return found
