"""How shards lie on disk: writing, checking and reading them.

A shard is its data, a parquet index with a row for each image, and a json sidecar that is written last: a shard is done
when its sidecar is there. Nothing has its final name before it is whole and on the disk, so a run may be killed at any
moment. "rec" sets are joined into one train.rec at the end, in place and without a second copy: see `finish`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..errors import DataError
from . import records
from .encoding import decode
from .plan import DatasetPlan, Shard

FORMAT, JOINED_FORMAT, VERSION = "fairface_synth.shard", "fairface_synth.joined", 1
FOLDER, IMAGES, JOINED, PART = "shards", "images", "shards/joined.json", "train.rec.part"
COLUMNS = (
    "key", "image", "identity", "place", "group", "group_id", "index", "file", "offset", "bytes", "digest", "factor",
    "similarity", "aligned", "latents",
)  # fmt: skip
IMAGE_GROUP = 100  # rows in a row group of images
_ROW_GROUP_FLOATS = 2**16  # of latents in a row group, so that one row is read cheaply
_SUFFIX = {"webdataset": ".tar", "rec": ".rec", "parquet": ".parquet"}
AGAIN = "run the same export again: it makes what is missing, and nothing else"
MEND = "verify_dataset(folder, repair=True) finds what is damaged or missing and makes it again"


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


# --- files that are whole or not there --------------------------------------------------------------------------------


@contextmanager
def disk_errors(path: Path, needs: str | None = None) -> Iterator[None]:
    """Say what a full or read-only disk means for an export; other errors pass.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        full, refused = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG), (errno.EROFS, errno.EACCES, errno.EPERM)
        if error.errno in full:
            with suppress(OSError):
                free = shutil.disk_usage(path if path.is_dir() else path.parent).free
                needs = f"{needs or 'room'}; {free / 2**20:,.1f} MiB are free"
            raise DataError(
                f"the disk is full (or a quota is reached) at {path}",
                expected=needs,
                got=error,
                fix="free space and run the same command again: finished shards are kept",
            ) from error
        if error.errno in refused:
            raise DataError(
                f"cannot write in {path}",
                expected="a folder that this user may write to, on a disk that is not read-only",
                got=error,
                fix="change its rights, or export to another folder; finished shards are kept",
            ) from error
        raise


def write_file(path: Path, data: bytes) -> None:
    """Write a small file so that, whatever happens, it is there whole or as it was before."""
    _write_chunks(path, [data])


def _write_chunks(path: Path, chunks: Iterable[bytes]) -> None:
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            with _create(temporary) as file:
                for chunk in chunks:
                    file.write(chunk)
                _sync(file)
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _create(path: Path) -> BinaryIO:
    return open(path, "xb")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """A rename is on the disk when its folder is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _Hashed:
    """A file that is written once, from its beginning, and hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._file, self._hash, self._length = _create(path), hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._file.write(data)
        self._hash.update(data)
        self._length += len(data)
        return len(data)

    def tell(self) -> int:
        return self._length

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def finish(self) -> dict[str, Any]:
        """Put it on the disk; its entry in the sidecar."""
        _sync(self._file)
        self._file.close()
        return {"bytes": self._length, "sha256": self._hash.hexdigest()}


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


def _identity_folders(root: Path, shard: Shard) -> list[Path]:
    first = shard.first_identity
    return [root / IMAGES / f"{identity:08d}" for identity in range(first, first + shard.identities)]


def _group(plan: DatasetPlan, identity: int) -> str:
    return list(plan.quota)[plan.order[identity]]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_shard(root: Path, plan: DatasetPlan, shard: Shard, rows: Iterable[tuple[bytes, Row]]) -> dict[str, Any]:
    """Write a shard from its encoded images, in order, at constant memory. A shard that is there already is replaced.

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
            which the shard had another length.
    """
    root = Path(root)
    if plan.layout == "rec":
        records.check_keys(plan)
    draft = _Draft(root, plan, shard)
    try:
        draft.open()
        for data, row in _checked(rows, plan, shard):
            draft.add(data, row)
        content = draft.commit()
    finally:
        draft.remove()
    if plan.layout == "rec" and (root / "train.rec").exists():
        with disk_errors(root):
            _fold(root, plan, root / "train.rec", [shard])
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


class _Draft:
    """A shard under temporary names: its data, its index, and then both at once."""

    def __init__(self, root: Path, plan: DatasetPlan, shard: Shard) -> None:
        self.root, self.plan, self.shard = root, plan, shard
        self.index = index_path(root, shard)
        self.index_draft = _temporary(self.index)
        folders = plan.layout == "folders"
        self.data = root / IMAGES / shard.name if folders else root / file_name(plan, shard, shard.first_image)
        self.data_draft = _temporary(self.data)
        self.length, self.count = 0, 0
        self.file: _Hashed | None = None
        self.table: _IndexWriter | None = None

    def _disk(self) -> Any:
        each = self.length / self.count if self.count else 0
        needs = f"about {each * self.shard.images / 2**20:,.1f} MiB for shard {self.shard.number}" if each else None
        return disk_errors(self.root, needs)

    def open(self) -> None:
        with self._disk():
            self.index.parent.mkdir(parents=True, exist_ok=True)
            if self.plan.layout == "folders":
                self.data_draft.mkdir(parents=True)
                self.digest = hashlib.sha256()
            elif self.plan.layout != "parquet":
                self.file = _Hashed(self.data_draft)

    def add(self, data: bytes, row: Row) -> None:
        with self._disk():
            offset = self._store(data, row)
            if self.table is None:
                self.table = _IndexWriter(_Hashed(self.index_draft), self.plan, self.shard, np.size(row.latents))
            self.table.add(data, row, offset)
        self.length, self.count = self.length + len(data), self.count + 1

    def _store(self, data: bytes, row: Row) -> int | None:
        """Write the image; where it begins in its file, if that says anything."""
        if self.plan.layout == "webdataset":
            assert self.file is not None
            offset = self.file.tell() + 512
            for name, content in _members(data, row, self.plan):
                self.file.write(_tar_header(name, len(content)))
                self.file.write(content)
                self.file.write(bytes(-len(content) % 512))
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
            content = _sidecar(self.plan, self.shard, files)
            sidecar = sidecar_path(self.root, self.shard)
            if sidecar.exists():  # of an earlier shard: not to be found beside the new one's files
                sidecar.unlink()
                _sync_folder(sidecar.parent)
            self._rename()
            write_file(sidecar, (json.dumps(content, indent=1) + "\n").encode())
        return content

    def _finish_files(self) -> dict[str, dict[str, Any]]:
        files = {}
        if self.plan.layout == "folders":
            for folder in sorted(self.data_draft.iterdir()):  # all at the end: most are on the disk by then
                for path in sorted(folder.iterdir()):
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
                _sync_folder(folder)
            _sync_folder(self.data_draft)
            files[f"{IMAGES}/*"] = {"bytes": self.length, "sha256": self.digest.hexdigest()}
        elif self.file is not None:
            if self.plan.layout == "webdataset":
                self.file.write(bytes(1024 + -(self.file.tell() + 1024) % 10240))
            files[_relative(self.data, self.root)] = self.file.finish()
            self._check_joined(self.file.tell())
        assert self.table is not None
        return files | {_relative(self.index, self.root): self.table.finish()}

    def _check_joined(self, length: int) -> None:
        spans = _spans(self.root, self.plan) if self.plan.layout == "rec" else None
        if spans is not None and length != spans[self.shard.number][1]:
            raise DataError(
                f"shard {self.shard.number} does not fit into train.rec, to which all shards have been joined",
                expected=f"{spans[self.shard.number][1]:,} bytes, as before",
                got=f"{length:,} bytes: another device, or another version of torch or Pillow, makes other bytes",
                fix="make it where the set was made, or export again to a new folder",
            )

    def _rename(self) -> None:
        if self.plan.layout == "folders":
            for folder in _identity_folders(self.root, self.shard):
                if folder.exists():
                    shutil.rmtree(folder)
                os.replace(self.data_draft / folder.name, folder)
            self.data_draft.rmdir()
            _sync_folder(self.root / IMAGES)
        elif self.file is not None:
            os.replace(self.data_draft, self.data)
        os.replace(self.index_draft, self.index)
        _sync_folder(self.index.parent)

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


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _sidecar(plan: DatasetPlan, shard: Shard, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
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


def _members(data: bytes, row: Row, plan: DatasetPlan) -> Iterator[tuple[str, bytes]]:
    key = plan.key(row.image)
    about = {name: getattr(row, name) for name in ("image", "identity", "place", "group", "group_id", "index")}
    yield f"{key}.{plan.extension}", data
    yield f"{key}.cls", str(row.identity).encode()
    yield f"{key}.json", json.dumps(about, ensure_ascii=False).encode()


def _tar_header(name: str, size: int) -> bytes:
    import tarfile

    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644  # owner, group and time are 0
    return info.tobuf(tarfile.USTAR_FORMAT)


# --- the index --------------------------------------------------------------------------------------------------------


class _IndexWriter:
    """The index, a row group at a time; in the layout "parquet" with the images."""

    def __init__(self, file: _Hashed, plan: DatasetPlan, shard: Shard, latents: int) -> None:
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
        self._rows.append((row, offset, len(data), _digest(data), data if self._plan.layout == "parquet" else None))
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


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_sidecar(root: Path, plan: DatasetPlan, shard: Shard) -> dict[str, Any] | None:
    """The shard's sidecar; None where it is missing, damaged, or of another plan."""
    content, _ = _load_sidecar(Path(root), plan, shard)
    return content


def _load_sidecar(root: Path, plan: DatasetPlan, shard: Shard) -> tuple[dict[str, Any] | None, str]:
    """The sidecar, or what is wrong with it."""
    path = sidecar_path(root, shard)
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT or content["version"] not in range(1, VERSION + 1):
            return None, f"its sidecar is of another format: {content['format']}, version {content['version']}"
        if content["plan"] != plan.digest or content["shard"] != shard.number:
            return None, f"its sidecar is of shard {content['shard']} of another plan ({content['plan']})"
        whole = all(set(entry) == {"bytes", "sha256"} for entry in content["files"].values())
        if not whole or set(content["files"]) != set(_file_names(plan, shard)):
            return None, "its sidecar is damaged: it lists other files"
        if content != _sidecar(plan, shard, content["files"]):
            return None, "its sidecar is damaged: it does not say what the plan says"
    except FileNotFoundError:
        return None, "its sidecar is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"its sidecar is damaged: {error}"
    return content, ""


def _file_names(plan: DatasetPlan, shard: Shard) -> list[str]:
    index = f"{FOLDER}/{shard.name}.parquet"
    data = f"{IMAGES}/*" if plan.layout == "folders" else file_name(plan, shard, shard.first_image)
    return [data] if data == index else [data, index]


def is_done(root: Path, plan: DatasetPlan, shard: Shard) -> bool:
    """Whether the shard is there: a sidecar of this plan, and files of the sizes that it says. Reads no images."""
    content = read_sidecar(root, plan, shard)
    return content is not None and not _size_problems(Path(root), plan, shard, content)


def _size_problems(root: Path, plan: DatasetPlan, shard: Shard, content: dict[str, Any]) -> list[str]:
    problems = []
    for name, entry in content["files"].items():
        found = _size(root, plan, shard, name)
        if found is None:
            problems.append(f"{name} is missing")
        elif found != entry["bytes"]:
            problems.append(f"{name} has {found:,} bytes, not {entry['bytes']:,}")
    return problems


def _size(root: Path, plan: DatasetPlan, shard: Shard, name: str) -> int | None:
    """Bytes that the shard has of one of its sidecar's files; None if missing."""
    try:
        if name.endswith("*"):
            return sum(path.stat().st_size for path in _image_paths(root, plan, shard))
        if name.endswith(".rec"):
            path, start, length = _record_place(root, plan, shard)
            size = path.stat().st_size
            return size if length is None else max(0, min(length, size - start))
        return (root / name).stat().st_size
    except FileNotFoundError:
        return None


def _image_paths(root: Path, plan: DatasetPlan, shard: Shard) -> Iterator[Path]:
    for image in range(shard.first_image, shard.first_image + shard.images):
        yield root / file_name(plan, shard, image)


def _record_place(root: Path, plan: DatasetPlan, shard: Shard) -> tuple[Path, int, int | None]:
    """Where the shard's records are: the file, their beginning, and their length where the file holds others too."""
    own = root / file_name(plan, shard, shard.first_image)
    for joined in (root / "train.rec", root / PART):
        if not own.exists() and joined.exists() and (spans := _spans(root, plan)) is not None:
            return (joined, *spans[shard.number])
    return own, 0, None


def read_index(root: Path, plan: DatasetPlan, shard: Shard, columns: Sequence[str] | None = None) -> Any:
    """The shard's index as a pyarrow table, by default all `COLUMNS`; the images themselves are left out.

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
            return file.read(stored, use_threads=False).select(stored).rename_columns(columns)
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


def open_data(root: Path, plan: DatasetPlan, shard: Shard) -> Data:
    """The tar or rec file in which the shard's images are. OSError if it is missing."""
    if plan.layout == "rec":
        path, start, _ = _record_place(Path(root), plan, shard)
        return Data(path, start, True)
    return Data(Path(root) / file_name(plan, shard, shard.first_image), 0, False)


# --- checking ---------------------------------------------------------------------------------------------------------


def check_shard(root: Path, plan: DatasetPlan, shard: Shard) -> list[str]:
    """Everything that is wrong with a shard, in words; [] if it is as it was written. Reads and decodes every image."""
    root, label = Path(root), f"shard {shard.number}"
    content, problem = _load_sidecar(root, plan, shard)
    problems = [problem] if problem else []
    if content is not None:
        problems += _size_problems(root, plan, shard, content)
        problems += _stray_problems(root, plan, shard)
        for name, entry in content["files"].items():
            if name.endswith("*") or _size(root, plan, shard, name) != entry["bytes"]:
                continue
            if _file_hash(root, plan, shard, name) != entry["sha256"]:
                problems.append(f"{name} is not what was written: its sha256 differs")
    try:
        problems += _index_problems(read_index(root, plan, shard), plan, shard)
        problems += _image_problems(root, plan, shard, content)
    except DataError as error:
        problems.append(" ".join(str(error).split()))
    return [f"{label}: {problem}" for problem in problems]


def _file_hash(root: Path, plan: DatasetPlan, shard: Shard, name: str) -> str:
    path, start, length = _record_place(root, plan, shard) if name.endswith(".rec") else (root / name, 0, None)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in _chunks(file, start, path.stat().st_size - start if length is None else length):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    file.seek(start)
    while length > 0 and (chunk := file.read(min(length, 2**20))):
        length -= len(chunk)
        yield chunk


def _stray_problems(root: Path, plan: DatasetPlan, shard: Shard) -> list[str]:
    """Files that others would read as images of the set."""
    if plan.layout != "folders":
        return []
    known = {f"{place:04d}.{plan.extension}" for place in range(plan.images_per_identity)}
    found = [p for folder in _identity_folders(root, shard) if folder.is_dir() for p in folder.iterdir()]
    stray = sorted(_relative(p, root) for p in found if p.name not in known)
    return [f"files that do not belong there: {_some(stray)}"] if stray else []


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
            problems.append(f"the index's {name} is not the plan's in rows {_some(wrong.tolist())}")
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
            if count <= len(digests) and _digest(data) != digests[count - 1]:
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
        problems.append(f"images that differ from the index's digest: {_some(wrong)}")
    if broken:
        problems.append(f"images that do not decode: {_some(broken)}")
    entry = content["files"].get(f"{IMAGES}/*") if content is not None else None
    if entry is not None and not problems and whole.hexdigest() != entry["sha256"]:
        problems.append("the images' sha256 differs from the sidecar's")
    return problems


def _some(items: Sequence[Any]) -> str:
    """The first few, and how many."""
    shown = ", ".join(str(item) for item in items[:5])
    return shown if len(items) <= 5 else f"{shown}, … ({len(items):,} in all)"


# --- removing ---------------------------------------------------------------------------------------------------------


def remove_shard(root: Path, plan: DatasetPlan, shard: Shard) -> None:
    """Take a shard away, its sidecar first. What was joined into train.rec stays until the shard is made again."""
    root = Path(root)
    with disk_errors(root):
        for path in (sidecar_path(root, shard), index_path(root, shard)):
            if path.exists():
                path.unlink()
                _sync_folder(path.parent)
        if plan.layout == "folders":
            for folder in _identity_folders(root, shard):
                shutil.rmtree(folder, ignore_errors=True)
        else:
            (root / file_name(plan, shard, shard.first_image)).unlink(missing_ok=True)


def clean(root: Path, plan: DatasetPlan) -> None:
    """Remove what interrupted writes left: temporary files, and files of shards without a sidecar of this plan.

    Nobody else may be writing: call it under the set's lock.
    """
    root = Path(root)
    with disk_errors(root):
        for folder in (root, root / FOLDER, root / IMAGES):
            for path in sorted(folder.glob(".*.tmp")) if folder.is_dir() else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        done: dict[int, bool] = {}
        for path, number in _shard_files(root, plan):
            if number not in done:
                done[number] = number < plan.shards and read_sidecar(root, plan, plan.shard(number)) is not None
            if not done[number]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not (root / PART).exists() and not (root / "train.rec").exists():
            (root / JOINED).unlink(missing_ok=True)


def _shard_files(root: Path, plan: DatasetPlan) -> list[tuple[Path, int]]:
    """Files and identities' folders of shards, with the shard's number."""
    data = [path for path in (root / FOLDER).glob("*") if re.fullmatch(r"\d{5,}\.(tar|rec|parquet|json)", path.name)]
    found = [(path, int(path.stem)) for path in data]
    if plan.layout == "folders":
        folders = [path for path in (root / IMAGES).glob("*") if re.fullmatch(r"\d{8,}", path.name)]
        found += [(path, int(path.name) // plan.identities_per_shard) for path in folders]
    return found


# --- joining records --------------------------------------------------------------------------------------------------


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
    missing = [k for k in range(plan.shards) if not is_done(root, plan, plan.shard(k))]
    if missing:
        raise DataError(f"{len(missing):,} of {plan.shards:,} shards are missing", got=_some(missing), fix=AGAIN)
    with disk_errors(root):
        target = root / "train.rec"
        part = root / PART
        _write_spans(root, plan, target)
        if not target.exists():
            if not part.exists():
                part.touch()
                _sync_folder(root)
            target = part
        _fold(root, plan, target, [plan.shard(k) for k in range(plan.shards)])
        _fold_ends(root, plan, target)
        for name, content in _texts(root, plan).items():
            if not _same(root / name, content()):
                _write_chunks(root / name, content())
        if target == part:
            os.replace(part, root / "train.rec")
            _sync_folder(root)


def check_finish(root: Path, plan: DatasetPlan) -> list[str]:
    """What is wrong with the files that `finish` makes, in words; calling it again mends them. Shards not looked at."""
    root = Path(root)
    if plan.layout != "rec":
        return []
    spans = _spans(root, plan)
    if not (root / "train.rec").exists() or spans is None or not (root / JOINED).exists():
        return ["the shards are not joined into train.rec"]
    problems = []
    with open(root / "train.rec", "rb") as file:
        for name, start, data in _ends(plan, spans):
            if b"".join(_chunks(file, start, len(data))) != data:
                problems.append(f"train.rec: {name} differ")
        if file.seek(0, os.SEEK_END) != _total(plan, spans):
            problems.append(f"train.rec has {file.tell():,} bytes, not {_total(plan, spans):,}")
    for name, content in _texts(root, plan).items():
        try:
            if not _same(root / name, content()):
                problems.append(f"{name} is missing or not what it should be")
        except DataError as error:
            problems.append(f"{name} cannot be checked: {' '.join(str(error).split())}")
    return problems


def _spans(root: Path, plan: DatasetPlan) -> list[tuple[int, int]] | None:
    """(offset, length) of each shard in train.rec: recorded when joining began, or what the sidecars say."""
    try:
        content = json.loads((root / JOINED).read_bytes())
        spans = [(int(start), int(length)) for start, length in content["shards"]]
        if content["format"] == JOINED_FORMAT and content["plan"] == plan.digest and len(spans) == plan.shards:
            return spans
    except (OSError, ValueError, KeyError, TypeError):
        pass
    spans = _sidecar_spans(root, plan) if (root / "train.rec").exists() else []
    return spans if spans and (root / "train.rec").stat().st_size == _total(plan, spans) else None


def _sidecar_spans(root: Path, plan: DatasetPlan) -> list[tuple[int, int]]:
    """The same from the sidecars; [] unless all are there."""
    spans, start = [], records.HEADER_BYTES
    for number in range(plan.shards):
        shard = plan.shard(number)
        content = read_sidecar(root, plan, shard)
        if content is None:
            return []
        length = content["files"][file_name(plan, shard, shard.first_image)]["bytes"]
        spans.append((start, length))
        start += length
    return spans


def _total(plan: DatasetPlan, spans: list[tuple[int, int]]) -> int:
    return sum(spans[-1]) + records.HEADER_BYTES * plan.identities


def _write_spans(root: Path, plan: DatasetPlan, target: Path) -> None:
    spans = _spans(root, plan)
    if spans is None and (target.exists() or (root / PART).exists()):
        raise DataError(
            "nobody knows what lies where in train.rec",
            expected=f"{JOINED}, which is missing or damaged",
            fix=f"delete train.rec and {PART}, and {AGAIN}",
        )
    content = {
        "format": JOINED_FORMAT, "version": VERSION, "plan": plan.digest, "shards": spans or _sidecar_spans(root, plan),
    }  # fmt: skip
    data = (json.dumps(content) + "\n").encode()
    if not _same(root / JOINED, [data]):
        write_file(root / JOINED, data)


def _fold(root: Path, plan: DatasetPlan, target: Path, shards: Iterable[Shard]) -> None:
    """Copy shards that are files of their own to their places in `target`, and delete the files."""
    spans = _spans(root, plan)
    assert spans is not None
    with open(target, "rb+") as file:
        for shard in shards:
            own = root / file_name(plan, shard, shard.first_image)
            if own.exists():
                start, length = spans[shard.number]
                file.seek(start)
                with open(own, "rb") as source:
                    shutil.copyfileobj(source, file, 2**20)
                if file.tell() != start + length:
                    raise DataError(f"{own} changed while it was joined", fix=AGAIN)
                _sync(file)
                own.unlink()
                _sync_folder(own.parent)


def _ends(plan: DatasetPlan, spans: list[tuple[int, int]]) -> Iterator[tuple[str, int, bytes]]:
    """What of train.rec no shard holds: (what it is, offset, bytes)."""
    yield "the first record", 0, records.first_record(plan)
    yield "the identities' records", sum(spans[-1]), b"".join(records.identity_records(plan))


def _fold_ends(root: Path, plan: DatasetPlan, target: Path) -> None:
    spans = _spans(root, plan)
    assert spans is not None
    with open(target, "rb+") as file:
        for _, start, data in _ends(plan, spans):
            if b"".join(_chunks(file, start, len(data))) != data:
                file.seek(start)
                file.write(data)
        file.truncate(_total(plan, spans))
        _sync(file)


def _texts(root: Path, plan: DatasetPlan) -> dict[str, Callable[[], Iterable[bytes]]]:
    """The small files beside train.rec, and what belongs in them."""
    return {"train.idx": lambda: _lines(root, plan), "property": lambda: [_property(root, plan)]}


def _lines(root: Path, plan: DatasetPlan) -> Iterator[bytes]:
    """The content of train.idx, by shard."""
    spans = _spans(root, plan)
    assert spans is not None
    yield b"0\t0\n"
    for number, (start, _) in enumerate(spans):
        shard = plan.shard(number)
        offsets = read_index(root, plan, shard, ["offset"])["offset"].to_pylist()
        yield records.index_lines(records.image_key(shard.first_image), offsets, start)
    ends = range(sum(spans[-1]), _total(plan, spans), records.HEADER_BYTES)
    yield records.index_lines(records.image_key(plan.images), ends, 0)


def _property(root: Path, plan: DatasetPlan) -> bytes:
    """InsightFace's "classes,height,width"."""
    height, width, _ = decode(next(read_images(root, plan, plan.shard(0)))).shape
    return f"{plan.identities},{height},{width}\n".encode()


def _same(path: Path, chunks: Iterable[bytes]) -> bool:
    """Whether a file holds just this."""
    try:
        with open(path, "rb") as file:
            return all(file.read(len(chunk)) == chunk for chunk in chunks) and not file.read(1)
    except FileNotFoundError:
        return False
