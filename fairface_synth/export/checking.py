"""Whether a set on disk is what its plan says, and making again what is not."""

from __future__ import annotations

import json
import operator
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from ..artifacts import atomic_path
from ..errors import DataError
from ..fingerprints import fingerprint_model
from ..groups import Groups
from ..images import from_uint8
from ..models.protocols import Generator
from ..people import Source
from ..variations import Axis, Detector
from .datasheet import SHEET
from .disk import disk_errors
from .encoding import encode
from .engines import Task, Worker
from .gate import IDENTITY_FILES, describe_file, map_new, read_identities
from .joining import check_finish, finish
from .making import Identities, Maker, Parts, gather
from .plan import DatasetPlan, Shard
from .provenance import generator_prints, refuse_others, stored_plan
from .session import lock
from .shard_checks import check_shard
from .storage import index_path, is_done, read_index, read_sidecar, some
from .writing import Row, remove_shard, write_shard

_SHOWN = 5  # problems of one shard
_ROWS = 1000  # latents read at a time


@dataclass(frozen=True)
class DatasetCheck:
    """What `verify_dataset` found; print it.

    Attributes:
        path: of the set.
        plan: of the set.
        problems: what is wrong now, in words, by file or shard.
        repaired: shards and files that were wrong and were made again.
        duplicates: images whose bytes another image of the set has too.
    """

    path: Path
    plan: DatasetPlan
    problems: Mapping[str, Sequence[str]]
    repaired: tuple[str, ...]
    duplicates: int

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        plan = self.plan
        size = f"{plan.images:,} images of {plan.identities:,} identities in {plan.shards:,} shards ({plan.layout})"
        lines = [f"{self.path}: {size}"]
        if self.repaired:
            lines.append(f"made again: {', '.join(self.repaired)}")
        if self.ok:
            text = "every shard, index, checksum, row and image is as planned; no image occurs twice"
            return "\n".join([*lines, text + " (of the datasheet only the checksums in it are compared)"])
        for name, problems in self.problems.items():
            more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            lines += [t if t.startswith(name) else f"{name}: {t}" for t in (*problems[:_SHOWN], *more)]
        if set(self.problems) == {"duplicates"}:
            lines.append(
                "equal images have equal latents, as planned: was perturbation 0, or does an axis move nothing?"
            )
        elif any(name.startswith("shard ") for name in self.problems):
            lines.append(
                "fix: missing shards: run the same export again. Damaged ones: verify_dataset(path, generator, "
                "repair=True) (--repair), from the latents in their index; where index or sidecar are lost, with the "
                "pipeline instead of the generator, and the axes of the export (--pipeline, --axes). Files that do not "
                "belong there: delete them"
            )
        return "\n".join(lines)


def verify_dataset(
    path: str | os.PathLike[str],
    generator: Generator | Source | None = None,
    repair: bool = False,
    *,
    axes: Axis | Sequence[Axis] | None = None,
    detector: Detector | None = None,
    threads: int = 2,
    progress: bool = True,
) -> DatasetCheck:
    """Compare every file of a set with its plan and its checksums, decode every image, look for duplicates.

    Reads everything once. With `repair`, damaged and missing shards are made again: from the latents in their index, if
    that is whole, by the generator alone; otherwise from the identities, as `export` made them, for which `generator`
    must be the pipeline (and `axes` those of the export).

    Args:
        path: folder of a set.
        generator: for repairs: the generator, or the `Pipeline` of the export; None: the bundled world's.
        repair: make again what is damaged or missing.
        axes: of the export; needed where an index is lost.
        detector: for repairs of aligned crops, if `generator` is no pipeline with one.
        threads: that read and decode.
        progress: show a bar.

    Raises:
        DataError: no set; for repairs, another generator than the set's, or a set that is being written.
    """
    root, plan = Path(path), stored_plan(Path(path))
    problems = _problems(root, plan, threads, progress)
    repaired: list[str] = []
    if repair and problems:
        with disk_errors(root), lock(root):
            repaired = _repair(root, plan, problems, generator, axes, detector)
        problems = _problems(root, plan, threads, progress)
    doubles = _duplicates(root, plan, problems)
    if doubles:
        problems["duplicates"] = [f"{a} and {b} are the same image" for a, b in doubles]
    return DatasetCheck(root, plan, problems, tuple(repaired), len(doubles))


def regenerate(
    path: str | os.PathLike[str],
    index: int | Iterable[int] | Tensor,
    generator: Generator | Source | None = None,
    *,
    detector: Detector | None = None,
) -> Tensor:
    """Make images of a set again from their stored latents, as they were before encoding.

    An image is made in the batch in which the export made it, so that on the same kind of device it is the same to
    the bit.

    Args:
        path: folder of a set.
        index: the image's number in the set, or several.
        generator: that made the set, or its `Pipeline`; None: the bundled one, if the set is its.
        detector: for aligned crops, the one that placed them.

    Returns:
        [3, H, W] for one number, [n, 3, H, W] for several, in [-1, 1].

    Raises:
        DataError: no such image, another generator or detector, a shard that is missing.
    """
    root, plan = Path(path), stored_plan(Path(path))
    numbers, single = _numbers(index)
    given: Any = generator
    maker = _maker(root, plan, getattr(given, "generator", given), detector or getattr(given, "detector", None))
    batches: dict[tuple[Shard, int], list[int]] = defaultdict(list)
    for place, number in enumerate(numbers):
        shard = plan.shard_of(number)
        batches[shard, (number - shard.first_image) // plan.forward_batch].append(place)
    side = plan.size or maker.parts.generator.resolution
    result = torch.empty(len(numbers), 3, side, side)
    for (shard, batch), places in batches.items():
        first = batch * plan.forward_batch
        w = _latents(root, plan, shard, first, first + plan.forward_batch)
        images = from_uint8(torch.from_numpy(maker.pixels(w)).permute(0, 3, 1, 2))
        for place in places:
            result[place] = images[numbers[place] - shard.first_image - first]
    return result[0] if single else result


def _numbers(index: Any) -> tuple[list[int], bool]:
    """Whole numbers, and whether it was a single one."""
    try:
        if isinstance(index, SupportsIndex) and not (isinstance(index, (Tensor, np.ndarray)) and index.ndim):
            return [operator.index(index)], True
        return [operator.index(i) for i in index], False
    except TypeError as error:
        raise DataError("images are counted 0, 1, 2, …", expected="a whole number, or several", got=index) from error


# --- finding --------------------------------------------------------------------------------------------------------


def _problems(root: Path, plan: DatasetPlan, threads: int, progress: bool) -> dict[str, list[str]]:
    from tqdm.auto import tqdm

    if threads < 1:
        raise DataError("nothing would be read", expected="threads ≥ 1", got=threads)
    found = _identity_problems(root) | _head_problems(root)
    people = None if found.keys() & {"gate.json", *IDENTITY_FILES} else read_identities(root)
    shards = [plan.shard(k) for k in range(plan.shards)]

    def check(shard: Shard) -> list[str]:
        problems = check_shard(root, plan, shard)
        return problems if problems or people is None else _stranger_problems(root, plan, shard, people)

    with ThreadPoolExecutor(threads, "verify") as pool:
        checks = pool.map(check, shards)
        bar = tqdm(zip(shards, checks, strict=True), "verifying", len(shards), unit="shard", disable=not progress)
        for shard, problems in bar:
            if problems:
                found[f"shard {shard.number}"] = problems
    for text in check_finish(root, plan):
        found.setdefault("train.rec", []).append(f"{text}: run the same export again, or repair")
    for name in SHEET:
        if not (root / name).exists():
            found[name] = ["missing: run the same export again, it finishes the set"]
    return found | _croissant_problems(root, plan)


def _stranger_problems(root: Path, plan: DatasetPlan, shard: Shard, people: Identities) -> list[str]:
    """Identities of a shard whose faces are not those of the set's files."""
    mine = people.take(shard.first_identity, shard.identities)
    k, wrong = plan.images_per_identity, []
    columns = ["identity", "group_id", "index", "latents"]
    step = max(1, _ROWS // k)
    for first in range(0, shard.identities, step):
        rows = slice(first * k, min(first + step, shard.identities) * k)
        table = read_index(root, plan, shard, columns, rows)
        group, index = (torch.from_numpy(table[name].to_numpy()[::k].copy()) for name in columns[1:3])
        faces = _flat(table)[::k]
        own = slice(first, first + len(group))
        same = (mine.ids[own] == group) & (mine.candidate[own] == index)
        same &= (mine.latents[own].flatten(1) == faces).all(1)
        wrong += mine.identity[own][~same].tolist()
    if not wrong:
        return []
    text = f"faces of identities {some(wrong)} are not those of identities.parquet and latents.npy"
    return [f"shard {shard.number}: {text}: repair with the pipeline makes them again"]


def _identity_problems(root: Path) -> dict[str, list[str]]:
    try:
        files = dict(json.loads((root / "gate.json").read_text(encoding="utf-8"))["files"])
        whole = files.keys() >= {"identities.parquet", "latents.npy"}
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        return {"gate.json": ["missing or damaged: run the same export again, it finds the same identities"]}
    found = {}
    for name, kept in files.items():
        path = root / name
        if not path.exists():
            found[name] = ["missing: run the same export again, it finds the same identities"]
        elif describe_file(path) != kept:
            found[name] = ["its checksum is not gate.json's: run the same export again, it finds the same identities"]
    return found


def _head_problems(root: Path) -> dict[str, list[str]]:
    """Whether parts.json, gate.json and LICENSE are as they were when dataset.json was written."""
    try:
        files = json.loads((root / "dataset.json").read_text(encoding="utf-8"))["files"]
        kept = {"parts.json": files["parts.json"], "gate.json": files["gate.json"]}
        kept |= {"LICENSE": files["LICENSE"]} if "LICENSE" in files else {}
        wrong = [name for name in kept if (root / name).exists() and describe_file(root / name) != kept[name]]
    except FileNotFoundError:
        wrong = []
    except (ValueError, KeyError, TypeError):
        return {"dataset.json": ["damaged: delete it and run the same export again"]}
    again = "it is not as it was when dataset.json was written: if it is what it should be, delete dataset.json, or"
    found = {name: [f"{again} else {name}, and run the same export again"] for name in wrong}
    for name in ("plan.json", "parts.json"):
        try:
            whole = isinstance(json.loads((root / name).read_text(encoding="utf-8")), dict)
        except FileNotFoundError:
            found[name] = ["missing: run the same export again"]
            continue
        except (OSError, ValueError):
            whole = False
        if not whole:
            found[name] = ["damaged: delete it and run the same export again"]
    return found


def _croissant_problems(root: Path, plan: DatasetPlan) -> dict[str, list[str]]:
    """Whether croissant.json has the sidecars' checksums: a shard that was made again elsewhere may have others."""
    try:
        record = json.loads((root / "croissant.json").read_text(encoding="utf-8"))
        told = {file["contentUrl"]: file["sha256"] for file in record["distribution"] if "sha256" in file}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"croissant.json": ["damaged: delete it and run the same export again"]}
    sidecars = (read_sidecar(root, plan, plan.shard(k)) for k in range(plan.shards))
    kept = {name: file["sha256"] for s in sidecars if s is not None for name, file in s["files"].items()}
    old = [name for name in told.keys() & kept.keys() if told[name] != kept[name]]
    if not old:
        return {}
    text = f"it has another checksum of {min(old)} than the shard: delete it and run the same export again"
    return {"croissant.json": [text]}


def _duplicates(root: Path, plan: DatasetPlan, problems: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys of images with the same bytes, each beside the first one."""
    whole = [plan.shard(k) for k in range(plan.shards) if f"shard {k}" not in problems]
    digests, numbers = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for shard in whole:
        column = read_index(root, plan, shard, ["digest"])["digest"].to_pylist()
        digests.append(np.array([int(text[:16], 16) for text in column], np.uint64))
        numbers.append(np.arange(shard.first_image, shard.first_image + shard.images))
    digest, number = np.concatenate(digests), np.concatenate(numbers)
    order = np.argsort(digest, kind="stable")
    again = np.flatnonzero(digest[order][1:] == digest[order][:-1])
    again = again[np.argsort(number[order[again]])]
    return [(plan.key(int(number[order[i]])), plan.key(int(number[order[i + 1]]))) for i in again]


# --- making again ---------------------------------------------------------------------------------------------------


def _repair(
    root: Path, plan: DatasetPlan, problems: Mapping[str, Any], given: Any, axes: Any, detector: Any
) -> list[str]:
    if "parts.json" in problems:
        return []  # nobody knows by which generator
    source = given if hasattr(given, "generator") else None
    maker = _maker(
        root, plan, given if source is None else source.generator, detector or getattr(source, "detector", None)
    )
    shards = [plan.shard(k) for k in range(plan.shards) if f"shard {k}" in problems]
    repaired = []
    for shard in shards:
        rows = None if _of_strangers(problems[f"shard {shard.number}"]) else kept_rows(root, plan, shard)
        if rows is not None:
            write_shard(root, plan, shard, _again(maker, rows))
        elif source is not None and not _identity_problems(root):
            whole = Maker(plan, gather(source, plan, axes, detector=detector, threshold=_given_threshold(root)))
            refuse_others(root, whole)
            remove_shard(root, plan, shard)
            Worker(whole, root).do(Task(shard.number))
        else:
            continue
        repaired.append(f"shard {shard.number}")
    if all(is_done(root, plan, plan.shard(k)) for k in range(plan.shards)):
        finish(root, plan)
    if "latents.npy" in problems and len(repaired) == len(shards):
        _write_latents(root, plan)
        repaired.append("latents.npy")
    return repaired


def _of_strangers(problems: Sequence[str]) -> bool:
    return any("faces of identities" in text for text in problems)


def _given_threshold(root: Path) -> float | None:
    """The threshold that the export was given; None if it was measured, or not needed."""
    return _read_json(root / "gate.json")["threshold"] if "threshold" in _parts(root)["fingerprint"] else None


def kept_rows(root: Path, plan: DatasetPlan, shard: Shard) -> list[Row] | None:
    """The rows of a shard's index, None unless the sidecar vouches for it."""
    sidecar = read_sidecar(root, plan, shard)
    path = index_path(root, shard)
    name = path.relative_to(root).as_posix()
    if sidecar is None or not path.exists() or describe_file(path) != sidecar["files"].get(name):
        return None
    columns = [f for f in Row._fields if f != "latents"]
    table = read_index(root, plan, shard, columns)
    latents = _latents(root, plan, shard, 0, shard.images).numpy()
    values = [table[name].to_pylist() for name in columns]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    nothing = float("nan")
    return [
        Row(**(row | {"similarity": nothing if row["similarity"] is None else row["similarity"], "latents": w}))
        for row, w in zip(rows, latents, strict=True)
    ]


def _again(maker: Maker, rows: Sequence[Row]) -> Iterator[tuple[bytes, Row]]:
    size = maker.plan.forward_batch
    for first in range(0, len(rows), size):
        batch = rows[first : first + size]
        pixels = maker.pixels(torch.from_numpy(np.stack([row.latents for row in batch])))
        yield from ((encode(image, maker.plan), row) for image, row in zip(pixels, batch, strict=True))


def _write_latents(root: Path, plan: DatasetPlan) -> None:
    """latents.npy from the faces in the shards' indexes."""
    shape = (plan.identities, *_parts(root)["latent_shape"])
    with atomic_path(root / "latents.npy") as temporary:
        memory = map_new(temporary, shape)
        for k in range(plan.shards):
            shard = plan.shard(k)
            rows = slice(shard.first_identity, shard.first_identity + shard.identities)
            memory[rows] = _latents(root, plan, shard, 0, shard.images)[:: plan.images_per_identity]
        memory.flush()


def _latents(root: Path, plan: DatasetPlan, shard: Shard, start: int, stop: int) -> Tensor:
    """Latents of images start … stop − 1 of a shard, [n, *shape]."""
    table = read_index(root, plan, shard, ["latents"], slice(start, stop))
    return _flat(table).reshape(-1, *_parts(root)["latent_shape"])


def _flat(table: Any) -> Tensor:
    """The column of latents, float32 [n, numbers]."""
    flat = table["latents"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(flat.astype(np.float32)).reshape(table.num_rows, -1)


def _parts(root: Path) -> dict[str, Any]:
    parts = _read_json(root / "parts.json")
    if not isinstance(parts, dict) or not {"fingerprint", "describe", "groups", "latent_shape"} <= parts.keys():
        expected, fix = "what export wrote", "delete it and run the same export again"
        raise DataError(f"{root / 'parts.json'} is damaged", expected=expected, got=str(parts)[:80], fix=fix)
    return parts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        expected, fix = "a set that export wrote", "delete it if it is there, and run the same export again"
        raise DataError(f"cannot read {path}", expected=expected, got=error, fix=fix) from error


def _maker(root: Path, plan: DatasetPlan, generator: Generator | None, detector: Detector | None) -> Maker:
    """Makes images from latents, by the set's generator."""
    kept = _parts(root)
    wanted = {name: value for name, value in kept["fingerprint"].items() if name.startswith("generator")}
    if generator is None:
        from ..models.demo import load_demo

        generator = load_demo().generator
    found = generator_prints(generator)
    if found != wanted:
        raise DataError(
            "this is not the generator that made the set",
            expected=f"{kept['describe']['generator']}: {wanted}",
            got=f"{type(generator).__name__}: {found}",
            fix="generator=ffs.load_generator(…) of the same file, in the same dtype",
        )
    if plan.crop is not None and detector is None:
        raise DataError("the crops were placed by a detector", expected="detector=ffs.load_detector()", got="None")
    if plan.crop is not None:
        placed_by = kept["fingerprint"]["detector"]
        given_by = fingerprint_model(detector, generator.resolution, generator.w_avg.device)
        if given_by != placed_by:
            raise DataError("this is not the detector that placed the crops", expected=placed_by, got=given_by)
    source: Any = SimpleNamespace(generator=generator, groups=Groups(kept["groups"]))
    return Maker(plan, Parts(source, detector=detector))
