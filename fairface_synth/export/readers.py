"""Reading a finished set back for training, whatever its layout."""

from __future__ import annotations

import json
import operator
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ..errors import DataError
from ..groups import Groups
from ..images import from_uint8
from ..models.pretrained import resize
from .encoding import decode
from .plan import DatasetPlan, Shard
from .storage import AGAIN, MEND, Data, file_name, index_path, is_done, open_data, read_sidecar

Item = dict[str, Any]
Transform = Callable[[Tensor], Any]  # image [3, H, W] in [-1, 1] → what a training loop wants

_OPEN_SHARDS = 128  # at once in a process: two files each
_BUFFER = 1000  # images among which a shuffled stream chooses


def open_dataset(
    path: str | os.PathLike[str],
    *,
    iterable: bool = False,
    size: int | None = None,
    groups: str | int | Iterable[str | int] | None = None,
    transform: Transform | None = None,
    latents: bool = True,
    partial: bool = False,
    rank: int = 0,
    world_size: int = 1,
    shuffle: int | None = None,
) -> FaceDataset | FaceStream:
    """Open an exported set for a DataLoader.

    >>> for batch in DataLoader(ffs.open_dataset("set"), 64, shuffle=True): batch["image"], batch["identity"]

    Items are {"image": float32 [3, H, W] in [-1, 1], "identity": int, "group": str, "group_id": int, "latents": float32
    of the generator's shape, "place": int (0: the identity's first image), "key": str, "number": int (the image's)}.

    Args:
        path: the set's folder, of any layout.
        iterable: a `FaceStream`, which reads shards from beginning to end, instead of a `FaceDataset` with random
            access. Better on network disks, for more than 128 shards, and for parquet.
        size: side of the images in pixels; by default as they are stored.
        groups: only images of these, as `Groups.parse` takes them.
        transform: applied to each image.
        latents: whether items have them. Without, a random access is cheaper.
        partial: open what is there of an unfinished set.
        rank, world_size: of a stream: this process among those that share its shards. A `FaceDataset` is shared
            by `torch.utils.data.DistributedSampler`.
        shuffle: of a stream: a seed. The shards' order is drawn anew for every `set_epoch`, and images are drawn from
            a buffer of 1,000.

    Raises:
        DataError: no set, an unfinished or damaged one, a setting that the kind of data set does not have.
        GroupError: unknown groups.
    """
    root = Path(path)
    plan, parts = _read_header(root)
    if shuffle is not None and (type(shuffle) is not int or shuffle < 0):
        raise DataError("shuffle is a seed", expected="0, 1, 2, …, or None", got=shuffle)
    if size is not None and (type(size) is not int or size < 1):
        raise DataError("size is a number of pixels", expected="1, 2, 3, …, or None", got=size)
    if not (type(rank) is type(world_size) is int and 0 <= rank < world_size):
        raise DataError("no such rank", expected=f"0 … {world_size - 1}", got=rank)
    if not iterable and (world_size > 1 or shuffle is not None):
        raise DataError(
            "rank, world_size and shuffle are of streams",
            expected="iterable=True with them",
            got="iterable=False",
            fix="leave them out, and use DataLoader(dataset, shuffle=True) or a DistributedSampler",
        )
    source = _Source(
        root=root,
        plan=plan,
        groups=Groups(parts["groups"]),
        latent_shape=tuple(parts["latent_shape"]) if latents else None,
        size=size,
        transform=transform,
        selected=_select(root, plan, Groups(parts["groups"]), groups, partial),
    )
    return FaceStream(source, rank, world_size, shuffle) if iterable else FaceDataset(source)


def _read_header(root: Path) -> tuple[DatasetPlan, dict[str, Any]]:
    """plan.json and parts.json."""
    content = {}
    for name in ("plan.json", "parts.json"):
        try:
            content[name] = json.loads((root / name).read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"{root} is no exported set", expected=f"{name}, which export writes first", got=error
            ) from error
    parts = content["parts.json"]
    known: dict[str, Any] = parts if isinstance(parts, dict) else {}
    groups, shape = known.get("groups", []), known.get("latent_shape")
    named = isinstance(groups, dict) and all(isinstance(values, list) for values in groups.values())
    if not named or not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape):
        expected, got = "groups and latent_shape", ", ".join(known) or "something else"
        raise DataError(f"{root / 'parts.json'} is damaged", expected=expected, got=got, fix=f"delete it, and {AGAIN}")
    return DatasetPlan.from_dict(content["plan.json"]), parts


def _select(root: Path, plan: DatasetPlan, groups: Groups, wanted: Any, partial: bool) -> np.ndarray:
    """Identities to read, int64: those of finished shards and wanted groups."""
    there = np.zeros(plan.identities, dtype=bool)
    missing = []
    for number in range(plan.shards):
        shard = plan.shard(number)
        if _is_there(root, plan, shard):
            there[shard.first_identity : shard.first_identity + shard.identities] = True
        else:
            missing.append(number)
    if len(missing) == plan.shards or (missing and not partial):
        shown = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing):,} of {plan.shards:,} shards of {root} are missing",
            expected="a finished set",
            got=f"without shards {shown}",
            fix=AGAIN + ("; partial=True opens what is there" if len(missing) < plan.shards else ""),
        )
    if wanted is not None:
        ids = groups.parse(wanted)
        there &= np.isin(_group_ids(plan, groups), ids)
        if not there.any():
            raise DataError("no image is of these groups", expected=", ".join(plan.quota), got=wanted)
    return np.flatnonzero(there)


def _is_there(root: Path, plan: DatasetPlan, shard: Shard) -> bool:
    if plan.layout == "folders":  # millions of files: a missing one speaks up when it is read
        return read_sidecar(root, plan, shard) is not None and index_path(root, shard).is_file()
    return is_done(root, plan, shard)


def _group_ids(plan: DatasetPlan, groups: Groups) -> np.ndarray:
    """Group id of every identity, int64 [N]."""
    return np.array([groups.id(name) for name in plan.quota])[plan.order]


class _Source(NamedTuple):
    """What both kinds of data set read from, and how."""

    root: Path
    plan: DatasetPlan
    groups: Groups
    latent_shape: tuple[int, ...] | None
    size: int | None
    transform: Transform | None
    selected: np.ndarray

    def item(self, number: int, data: bytes, latents: np.ndarray | None) -> Item:
        """The item of an image, from its encoded bytes."""
        identity, place = divmod(number, self.plan.images_per_identity)
        group = list(self.plan.quota)[self.plan.order[identity]]
        try:
            pixels = decode(data)
        except DataError as error:
            raise DataError(f"image {number} of {self.root} is damaged", got=error, fix=MEND) from error
        image = from_uint8(torch.from_numpy(pixels).permute(2, 0, 1))
        if self.size is not None:
            image = resize(image.unsqueeze(0), (self.size, self.size))[0]
        item = {
            "image": image.contiguous() if self.transform is None else self.transform(image.contiguous()),
            "identity": identity,
            "group": group,
            "group_id": self.groups.id(group),
            "place": place,
            "key": self.plan.key(number),
            "number": number,
        }
        if latents is not None and self.latent_shape is not None:
            item["latents"] = torch.from_numpy(latents.copy()).reshape(self.latent_shape)
        return item


class _Labels:
    """What can be said of a set's images without reading them; rows are images in the order of `[i]`."""

    _source: _Source

    @property
    def plan(self) -> DatasetPlan:
        """The set's plan."""
        return self._source.plan

    @property
    def groups(self) -> Groups:
        """The groups that `group_ids` count."""
        return self._source.groups

    @property
    def identities(self) -> int:
        """Identities of the whole set, of which identity numbers are 0 … identities − 1, whatever is selected."""
        return self._source.plan.identities

    @property
    def identity(self) -> Tensor:
        """Identity of every image, int64 [n]."""
        return torch.from_numpy(self._source.selected).repeat_interleave(self.plan.images_per_identity)

    @property
    def group_ids(self) -> Tensor:
        """Group of every image, int64 [n]."""
        ids = torch.from_numpy(_group_ids(self.plan, self.groups)[self._source.selected])
        return ids.repeat_interleave(self.plan.images_per_identity)

    def __repr__(self) -> str:
        n = len(self._source.selected)
        return (
            f"{type(self).__name__}({str(self._source.root)!r}: {n * self.plan.images_per_identity:,} images of "
            f"{n:,} identities, {self.plan.layout})"
        )


class FaceDataset(_Labels, Dataset[Item]):
    """An exported set with random access, as `open_dataset` gives it; for one thread a process."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._process = -1

    def __len__(self) -> int:
        return len(self._source.selected) * self.plan.images_per_identity

    def __getitem__(self, i: int) -> Item:
        """Image i of the selection; negative i count from the end.

        Raises:
            IndexError: there is no such image.
            DataError: the files are missing or damaged.
        """
        i = operator.index(i)
        if not -len(self) <= i < len(self):
            raise IndexError(f"no image {i}: there are {len(self):,}")
        which, place = divmod(i % len(self), self.plan.images_per_identity)
        number = int(self._source.selected[which]) * self.plan.images_per_identity + place
        return self._source.item(number, *self._files().read(number))

    def _files(self) -> _Files:
        """Open files are a process's own."""
        if self._process != os.getpid():
            self._opened, self._process = _Files(self._source), os.getpid()
        return self._opened

    def __getstate__(self) -> dict[str, Any]:
        return {"_source": self._source, "_process": -1}


class FaceStream(_Labels, IterableDataset[Item]):
    """An exported set read shard by shard, as `open_dataset(iterable=True)` gives it.

    Ranks share out the shards, and the DataLoader workers of a rank share out the rank's. Ranks may have unequal
    numbers of images, by about a shard.
    """

    def __init__(self, source: _Source, rank: int, world_size: int, shuffle: int | None) -> None:
        self._source, self._rank, self._world_size, self._seed = source, rank, world_size, shuffle
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # so that workers see it that live on
        if len(self._numbers()) < world_size:
            raise DataError(
                "more ranks than shards",
                expected=f"world_size ≤ {len(self._numbers())}",
                got=world_size,
                fix="a smaller shard_size when exporting, or a FaceDataset with a DistributedSampler",
            )

    def set_epoch(self, epoch: int) -> None:
        """Draw another order, from the next `iter` on. Without `shuffle` it does nothing."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Images of this rank in this epoch."""
        return sum(len(self._images(number)) for number in self._mine())

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        files = _Files(self._source)
        shards = self._mine()[number::count]
        read: Iterator[tuple[Any, ...]] = (
            (image, *files.read(image)) for shard in shards for image in self._images(shard)
        )
        if self._seed is not None:
            rng = np.random.default_rng([self._seed, int(self._epoch), self._rank, number])
            read = _shuffled(read, rng)
        return (self._source.item(*parts) for parts in read)

    def _numbers(self) -> np.ndarray:
        """Shards that hold something of the selection."""
        return np.unique(self._source.selected // self.plan.identities_per_shard)

    def _mine(self) -> list[int]:
        """Shards of this rank, in the order in which they are read."""
        numbers = self._numbers()
        if self._seed is not None:
            numbers = np.random.default_rng([self._seed, int(self._epoch)]).permutation(numbers)
        return numbers[self._rank :: self._world_size].tolist()

    def _images(self, number: int) -> list[int]:
        """Images of the selection in a shard, by their numbers in the set."""
        shard, k = self.plan.shard(number), self.plan.images_per_identity
        ends = np.searchsorted(self._source.selected, [shard.first_identity, shard.first_identity + shard.identities])
        identities = self._source.selected[slice(*ends)]
        return (identities[:, None] * k + np.arange(k)).ravel().tolist()


def _shuffled(items: Iterable[Any], rng: np.random.Generator) -> Iterator[Any]:
    """Each item is drawn from a buffer that the next one refills."""
    buffer: list[Any] = []
    for item in items:
        if len(buffer) < _BUFFER:
            buffer.append(item)
            continue
        i = int(rng.integers(_BUFFER))
        buffer[i], item = item, buffer[i]
        yield item
    yield from (buffer[i] for i in rng.permutation(len(buffer)))


class _Files:
    """The shards used last, open, and of each column of an index the row group used last."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()
        self._last: dict[str, tuple[int, int, Any]] = {}  # column → (shard, row group, values)

    def read(self, number: int) -> tuple[bytes, np.ndarray | None]:
        """An image's encoded bytes and, where they are wanted, its latents. DataError for missing or damaged files."""
        import pyarrow as pa

        plan = self._source.plan
        shard = plan.shard_of(number)
        row = number - shard.first_image
        try:
            opened = self._shard(shard)
            if opened.data is not None:
                data = opened.data.image(int(opened.offset[row]), int(opened.bytes[row]))
            elif plan.layout == "folders":
                data = (self._source.root / file_name(plan, shard, number)).read_bytes()
            else:
                data = self._cell(opened, "image", row).field("bytes")[0].as_py()
            if self._source.latent_shape is None:
                return data, None
            return data, self._cell(opened, "latents", row).flatten().to_numpy()
        except DataError:
            raise
        except (OSError, KeyError, IndexError, pa.ArrowException) as error:
            raise DataError(f"cannot read image {number} of {self._source.root}", got=error, fix=MEND) from error

    def _shard(self, shard: Shard) -> _OpenShard:
        if shard.number not in self._open:
            self._open[shard.number] = _OpenShard(self._source.root, self._source.plan, shard)
        self._open.move_to_end(shard.number)
        while len(self._open) > _OPEN_SHARDS:
            self._open.popitem(last=False)
        return self._open[shard.number]

    def _cell(self, opened: _OpenShard, column: str, row: int) -> Any:
        """One value of a column, as an array."""
        group, within = divmod(row, opened.rows)
        last = self._last.get(column)
        if last is None or last[:2] != (opened.number, group):
            values = opened.index.read_row_group(group, [column], use_threads=False)[column].chunk(0)
            last = self._last[column] = (opened.number, group, values)
        return last[2].slice(within, 1)


class _OpenShard:
    """One shard's open files, and where its images lie in them."""

    def __init__(self, root: Path, plan: DatasetPlan, shard: Shard) -> None:
        from pyarrow import parquet

        self.number = shard.number
        self.index = parquet.ParquetFile(index_path(root, shard), page_checksum_verification=True)
        self.rows = self.index.metadata.row_group(0).num_rows  # of every row group but the last
        self.data: Data | None = None
        if plan.layout in ("webdataset", "rec"):
            place = self.index.read(["offset", "bytes"], use_threads=False)
            self.offset, self.bytes = place["offset"].to_numpy(), place["bytes"].to_numpy()
            self.data = open_data(root, plan, shard)
