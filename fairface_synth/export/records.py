"""InsightFace's record files (`train.rec`, `train.idx`), without mxnet.

A record is the magic number, a word of `flag << 29 | length`, the content and zeros up to a multiple of 4 bytes
(dmlc's RecordIO). Content that holds the magic number at a multiple of 4 is cut there: the number is left out and the
parts have the flags 1, 2, …, 2, 3; whole records have 0. The content begins with the header `<IfQQ`: how many labels
follow it (0: the label is the second field), a label, a key, 0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator

from ..errors import DataError
from .plan import DatasetPlan

MAGIC = struct.pack("<I", 0xCED7230A)
HEADER_BYTES = 40  # of the records with two labels and no image: the first one, and one for each identity
_FRAME, _CONTENT = struct.Struct("<II"), struct.Struct("<IfQQ")
_LENGTH = 2**29 - 1
_EXACT = 2**24  # whole numbers up to it are float32, which labels are

ReadAt = Callable[[int, int], bytes]  # (offset, length) → bytes, fewer at the end


def frame(content: bytes) -> bytes:
    """A record with its magic number, length and padding, as dmlc's RecordIOWriter makes it.

    Raises:
        DataError: 512 MiB or more.
    """
    if len(content) > _LENGTH:
        raise DataError("too long for a record", expected="less than 512 MiB", got=f"{len(content):,} bytes")
    parts, start, at = [], 0, content.find(MAGIC)
    while at >= 0:
        if at % 4 == 0:
            parts.append(content[start:at])
            start = at + 4
        at = content.find(MAGIC, at + 4)  # it does not overlap itself
    parts.append(content[start:])
    last = len(parts) - 1
    flags = [0] if not last else [1, *[2] * (last - 1), 3]
    words = (MAGIC + struct.pack("<I", flag << 29 | len(part)) + part for flag, part in zip(flags, parts, strict=True))
    return b"".join(words) + bytes(-len(content) % 4)


def read_frame(read: ReadAt, offset: int) -> bytes:
    """Content of the record that begins at `offset`.

    Raises:
        DataError: no record there, or a damaged or cut one.
    """
    parts: list[bytes] = []
    while True:
        head = read(offset, 8)
        if len(head) < 8 or head[:4] != MAGIC:
            raise DataError(
                f"no record at byte {offset}", expected="the number 0xced7230a", got=head[:4].hex() or "end"
            )
        flag, length = divmod(_FRAME.unpack(head)[1], 2**29)
        part = read(offset + 8, length)
        if flag not in ((1, 0) if not parts else (2, 3)) or len(part) < length:
            raise DataError(
                f"the record at byte {offset} is damaged", got=f"flag {flag}, {len(part)} of {length} bytes"
            )
        parts.append(part)
        if flag in (0, 3):
            return MAGIC.join(parts)
        offset += 8 + length + -length % 4


def image_record(label: int, key: int, data: bytes) -> bytes:
    """The record of an image: `label` is its class, `key` its number in the .idx file."""
    return frame(_CONTENT.pack(0, label, key, 0) + data)


def read_image(read: ReadAt, offset: int) -> bytes:
    """The encoded image of the record at `offset`. DataError as `read_frame`."""
    content = read_frame(read, offset)
    if len(content) < _CONTENT.size:
        raise DataError(f"the record at byte {offset} is damaged", expected="a header", got=f"{len(content)} bytes")
    return content[_CONTENT.size + 4 * _CONTENT.unpack_from(content)[0] :]


def range_record(first: int, stop: int, key: int) -> bytes:
    """A record of two labels: the keys `first` … `stop` − 1 belong to it."""
    return frame(_CONTENT.pack(2, 0.0, key, 0) + struct.pack("<ff", first, stop))


def image_key(image: int) -> int:
    """Key of an image: 1 … images; 0 is the file's first record."""
    return image + 1


def check_keys(plan: DatasetPlan) -> None:
    """DataError for a set whose keys are no float32: InsightFace stores key ranges as such."""
    if 1 + plan.images + plan.identities > _EXACT:
        raise DataError(
            "too many images for one train.rec, whose key ranges are float32",
            expected=f"images + identities < {_EXACT:,}",
            got=f"{plan.images + plan.identities:,}",
            fix='layout="webdataset", or several sets',
        )


def first_record(plan: DatasetPlan) -> bytes:
    """Record 0, the keys of the identities' records."""
    first = image_key(plan.images)
    return range_record(first, first + plan.identities, 0)


def identity_records(plan: DatasetPlan) -> Iterator[bytes]:
    """The records at the end, one an identity: the keys of its images."""
    k, first = plan.images_per_identity, image_key(plan.images)
    for identity in range(plan.identities):
        start = image_key(identity * k)
        yield range_record(start, start + k, first + identity)


def index_lines(first: int, offsets: Iterable[int], start: int) -> bytes:
    """Lines of the .idx file for records of the keys `first`, `first` + 1, …, that lie at `start` + offsets."""
    return "".join(f"{key}\t{start + offset}\n" for key, offset in enumerate(offsets, first)).encode()
