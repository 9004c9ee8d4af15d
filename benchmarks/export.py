"""What an exported set costs on the bundled world, from end to end, and what follows for large ones.

    python benchmarks/export.py [--images 20000] [--kills 3] [--parts speed,kills,memory,ranks,cost] [--out out/export]

Runs the command line in processes of its own, as a user would:

- speed: sets of `--images` images, whole, beside bare synthesis in the same number of threads, before and after each;
- kills: the first set again, its process killed at random moments; verified, compared byte by byte with the whole
  one, and read back by four readers that must agree on every pixel;
- memory: the peak of the exporting process, for sets of four sizes;
- ranks: images per second of 1, 2, … processes of one thread each;
- cost: GPU-hours, bytes and shards of 10⁶ images, and of the published plan, under stated assumptions; nothing is run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from machine import describe_machine

import fairface_synth as ffs

PARTS = ("speed", "kills", "memory", "ranks", "cost")
GROUPS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/export"))
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments of death")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)  # a process of its own: bare synthesis
    args = parser.parse_args()
    if args.bare is not None:
        print(bare_rate(args.bare))
        return
    parts = args.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    busy = f"load {os.getloadavg()[0]:.1f} at the start"
    print(f"{describe_machine()}, {os.cpu_count()} cores, {busy}\n", flush=True)
    pipeline = args.out / "pipeline"
    if parts != ["cost"] and not pipeline.exists():
        run("fit", "--attributes", "skin_tone,gender", "--n", "5000", "--out", pipeline)
    tables = {"speed": speed, "kills": kills, "memory": memory, "ranks": ranks, "cost": cost}
    for part in parts:
        print(f"## {part}\n\n{tables[part](args, pipeline)}\n", flush=True)


# --- running the command line -----------------------------------------------------------------------------------------


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "fairface_synth", *map(str, words), "--quiet"]


def run(*words: object, cwd: Path = Path()) -> float:
    """Run a command to its end; its peak memory in MiB."""
    process = subprocess.Popen(command(*words), cwd=cwd, env=environment(None), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, words))} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def environment(threads: int | None, **more: object) -> dict[str, str]:
    each = {} if threads is None else {"OMP_NUM_THREADS": threads}
    return os.environ | {k: str(v) for k, v in (each | more).items()}


def fresh(args: argparse.Namespace, name: str) -> Path:
    """An empty folder in which the set is called "set": its command line, which it keeps, is the same everywhere."""
    folder = args.out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def export_words(images: int, k: int, *more: object, shard: int = 1000) -> tuple[object, ...]:
    quota = images // (GROUPS * k)
    return (
        *("export", "--pipeline", "../pipeline", "--out", "set", "--quota", quota, "--images-per-identity", k),
        *("--shard-size", max(k, shard // k * k), "--axes", "demo", "--judge", "demo", *more),
    )


def bare(pipeline: Path, threads: int | None = None, processes: int = 1) -> float:
    """Images per second of the generator alone, in processes of its own, all told."""
    words, env = [sys.executable, __file__, "--bare", str(pipeline)], environment(threads)
    crew = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    rates = [float(process.communicate()[0]) for process in crew]
    return sum(rates)


@torch.no_grad()
def bare_rate(pipeline: Path, seconds: float = 8.0) -> float:
    generator = ffs.load_demo().generator
    w = generator.map(ffs.draw_latents(generator, 0, 0, 32))
    generator.synthesize(w)
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        generator.synthesize(w)
        images += len(w)
    return images / (time.perf_counter() - start)


def events(path: Path) -> list[dict]:
    return [json.loads(line) for log in sorted((path / "log").glob("*.jsonl")) for line in log.open()]


def images_of(path: Path) -> int:
    return ffs.DatasetPlan.from_dict(json.loads((path / "plan.json").read_text())).images


# --- parts --------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace, pipeline: Path) -> str:
    """Bare synthesis against shards, shards and identities, and everything from the threshold to the datasheet."""
    settings = {
        "10 images of each, identities new (FMR 10⁻⁴)": (10, ()),
        "45 images of each, identities new (FMR 10⁻⁴)": (45, ()),
        "10 images of each, nobody compared": (10, ("--fmr", "none")),
    }
    rows = []
    for i, (name, (k, more)) in enumerate(settings.items()):
        folder = fresh(args, f"speed-{i}")
        out = folder / "set"
        before = bare(pipeline)
        run(*export_words(args.images, k, *more), cwd=folder)
        rate = statistics.mean((before, bare(pipeline)))
        log, made = events(out), images_of(out)
        busy = sum(e["seconds"] for e in log if e["event"].startswith("shard"))
        fixed = next(e["seconds"] for e in log if e["event"] == "threshold")
        identities = next(e["elapsed"] for e in log if e["event"] == "identities") - fixed
        total = log[-1]["elapsed"]
        fixed = total - identities - busy  # the threshold before, the datasheet after
        drawn = sum(json.loads((out / "gate.json").read_text())["candidates"].values())
        rows.append(
            [
                name,
                f"{made:,}",
                f"{rate:.0f}",
                f"{made / busy:.0f} ({made / busy / rate:.0%})",
                f"{made / (total - fixed):.0f} ({made / (total - fixed) / rate:.0%})",
                f"{made / total:.0f} ({made / total / rate:.0%})",
                f"{drawn / (made / k):.2f}",
                f"{identities:.0f} s, {busy:.0f} s, {fixed:.0f} s",
            ]
        )
    header = ["set", "images", "bare images/s", "shards", "with identities", "all told", "candidates/identity"]
    header.append("identities, shards, fixed")
    return ffs.markdown_table(header, rows)


def kills(args: argparse.Namespace, pipeline: Path) -> str:
    """A set that was killed is the set that was not; and what four readers make of it."""
    words, whole = export_words(args.images, 10), args.out / "speed-0" / "set"
    if not (whole / "dataset.json").exists() or images_of(whole) != args.images // (10 * GROUPS) * 10 * GROUPS:
        run(*words, cwd=fresh(args, "speed-0"))
    folder = fresh(args, "killed")
    out = folder / "set"
    seconds, chance = events(whole)[-1]["elapsed"], random.Random(args.seed)
    deaths = []
    for _ in range(args.kills):
        died = len(events(out))
        process = subprocess.Popen(command(*words), cwd=folder, env=environment(None), stdout=subprocess.DEVNULL)
        while len(events(out)) <= died and process.poll() is None:
            time.sleep(0.1)
        time.sleep(chance.uniform(0.1, 0.5) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        deaths.append(f"{len(list(out.glob('shards/*.json')))} shards")
    run(*words, cwd=folder)
    same, files = identical(whole, out)
    start = time.perf_counter()
    check = ffs.verify_dataset(out, progress=False)
    checked = time.perf_counter() - start
    readers = {name: read(out) for name, read in READERS.items()}
    prints = {name: digest for name, (_, digest, _) in readers.items()}
    rows = [[name, f"{n:,}", f"{n / t:,.0f}", digest[:16]] for name, (n, digest, t) in readers.items()]
    lines = [
        f"{check.plan.images:,} images, killed {args.kills} times, with so much done: {', '.join(deaths)}.",
        f"Compared with the set of one run: {files} files, {'all' if same else 'NOT all'} the same bytes.",
        f"verify_dataset: {'nothing wrong' if check.ok else check} ({checked:.0f} s).",
        f"Four readers {'agree' if len(set(prints.values())) == 1 else 'DISAGREE'} on every identity and pixel:",
        "",
        ffs.markdown_table(["reader", "images", "images/s", "sum over images of SHA-256"], rows),
    ]
    return "\n".join(lines)


def identical(a: Path, b: Path) -> tuple[bool, int]:
    """Whether two sets have the same files with the same bytes, but for the logs."""

    def contents(root: Path) -> dict[str, bytes]:
        paths = [p for p in root.rglob("*") if p.is_file() and p.parent != root / "log"]
        return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).digest() for p in paths}

    first, second = contents(a), contents(b)
    differ = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    if differ:
        print(f"these differ: {', '.join(differ[:10])}", file=sys.stderr)
    return not differ, len(first)


def total(items: Iterable[tuple[int, np.ndarray]]) -> tuple[int, str, float]:
    """Number of images, an order-free fingerprint of identities and pixels, and the seconds it took."""
    start, n, result = time.perf_counter(), 0, 0
    for identity, pixels in items:
        one = hashlib.sha256(f"{identity} {pixels.shape}".encode() + np.ascontiguousarray(pixels).tobytes())
        result = (result + int.from_bytes(one.digest(), "big")) % 2**256
        n += 1
    return n, f"{result:064x}", time.perf_counter() - start


def read_own(path: Path) -> tuple[int, str, float]:
    data = ffs.open_dataset(path, iterable=True)
    return total((x["identity"], ffs.to_uint8(x["image"]).permute(1, 2, 0).numpy()) for x in data)


def read_webdataset(path: Path) -> tuple[int, str, float]:
    import webdataset

    tars = sorted(map(str, (path / "shards").glob("*.tar")))
    data = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls")
    return total((int(identity), pixels) for pixels, identity in data)


def read_datasets(path: Path) -> tuple[int, str, float]:
    import datasets

    tars = sorted(map(str, (path / "shards").glob("*.tar")))
    data = datasets.load_dataset("webdataset", data_files=tars, split="train", streaming=True)
    return total((int(x["cls"]), np.asarray(x["jpg"])) for x in data)


def read_tarfile(path: Path) -> tuple[int, str, float]:
    """By the parquet index and the names in the tars."""
    import pyarrow.parquet as pq
    from PIL import Image

    def items() -> Iterator[tuple[int, np.ndarray]]:
        for index in sorted((path / "shards").glob("*.parquet")):
            rows = pq.read_table(index, columns=["key", "identity"]).to_pylist()
            with tarfile.open(index.with_suffix(".tar")) as tar:
                for row in rows:
                    member = tar.extractfile(f"{row['key']}.jpg")
                    assert member is not None
                    yield row["identity"], np.asarray(Image.open(BytesIO(member.read())))

    return total(items())


READERS = {
    "ffs.open_dataset": read_own,
    "webdataset": read_webdataset,
    "Hugging Face datasets": read_datasets,
    "pyarrow, tarfile, Pillow": read_tarfile,
}


def memory(args: argparse.Namespace, pipeline: Path) -> str:
    """Peak resident memory of whole exports."""
    rows = []
    for share in (40, 10, 4, 1):
        n = args.images // share
        row = [f"{n // (GROUPS * 10) * GROUPS * 10:,}"]
        for more in (("--fmr", "none"), ()):
            row.append(f"{run(*export_words(n, 10, *more), cwd=fresh(args, 'memory')):,.0f}")
        rows.append(row)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    note = f"This process, which has torch and the library loaded: {own:,.0f} MiB."
    header = ["images", "MiB, nobody compared", "MiB, identities compared"]
    return ffs.markdown_table(header, rows) + "\n\n" + note


def ranks(args: argparse.Namespace, pipeline: Path) -> str:
    """Images per second of several processes on one folder, one thread each, beside as many that only synthesise."""
    rows, first = [], None
    for n in (1, 2, 4):
        if n > 2 * (os.cpu_count() or 1):
            break
        folder = fresh(args, "ranks")
        out = folder / "set"
        # Twelve shards, so that every rank gets as many.
        words = export_words(args.images // 2, 10, "--fmr", "none", "--engine", "torchrun", shard=args.images // 24)
        crew = [
            subprocess.Popen(
                command(*words, "--threads", 1),
                cwd=folder,
                env=environment(1, RANK=rank, WORLD_SIZE=n, LOCAL_RANK=rank),
                stdout=subprocess.DEVNULL,
            )
            for rank in range(n)
        ]
        if max(process.wait() for process in crew):
            sys.exit("a rank failed")
        shards = [events_of(out, rank) for rank in range(n)]
        busiest = max(sum(e["seconds"] for e in rank) for rank in shards)
        rate = sum(e["images"] for rank in shards for e in rank) / busiest
        first, alone = first or rate, bare(pipeline, 1, n)
        rows.append([str(n), f"{rate:.0f}", f"{rate / first:.2f}", f"{alone:.0f}", f"{rate / alone:.0%}"])
    header = ["ranks", "images/s", "× one rank", "bare images/s of as many processes", "share"]
    return ffs.markdown_table(header, rows)


def events_of(path: Path, rank: int) -> list[dict]:
    log = path / "log" / f"rank-{rank:05d}.jsonl"
    return [e for e in map(json.loads, log.open()) if e["event"].startswith("shard")]


# --- what large sets cost -----------------------------------------------------------------------------------------

_TFLOPS, _SHARES = 312.0, (0.05, 0.2)  # an A100's nominal bfloat16 rate, and what may be reached of it


def cost(args: argparse.Namespace, pipeline: Path) -> str:
    """GPU-hours, bytes and shards, from floating-point operations and stated rates."""
    flops = stylegan2_flops()
    rates = [_TFLOPS * 1e12 * share / flops for share in _SHARES]
    # Bytes of an image: JPEG at quality 95 is taken as 0.35 bytes a pixel (112 px) and 0.25 (1024 px).
    sizes = {"112 px crops": 112 * 112 * 0.35, "1024 px": 1024 * 1024 * 0.25}
    latents = {"112 px crops": 4 * 512, "1024 px": 4 * 512}
    rows = []
    plans = {
        "10⁶ images, 22,222 identities × 45": ffs.plan_dataset({"any": 22_222}, 45),
        "published: 6 × 50,000 × 45": ffs.plan_dataset({f"group {i}": 50_000 for i in range(6)}, 45),
    }
    for name, plan in plans.items():
        for what in sizes:
            # Every identity costs at least one candidate's image.
            made = plan.images + plan.identities
            hours = [made / rate / 3600 for rate in rates]
            each = sizes[what] + latents[what] + 100
            rows.append(
                [
                    f"{name}, {what}",
                    f"{hours[1]:,.1f} – {hours[0]:,.1f}",
                    f"{plan.images * each / 1e9:,.0f} GB",
                    f"{plan.shards:,}",
                    f"{plan.identities * 4 * (512 + 512) / 1e9:,.1f} GB",
                ]
            )
    assumed = (
        f"StyleGAN2 config-f at 1024 px takes {flops / 1e9:,.0f} GFLOP an image (counted by torch). At {_TFLOPS:.0f} "
        f"TFLOP/s nominal (an A100 in bfloat16) and {_SHARES[0]:.0%} to {_SHARES[1]:.0%} of it reached, that is "
        f"{rates[0]:,.0f} – {rates[1]:,.0f} images/s. No GPU was at hand: measure yours with `--dry-run`."
    )
    header = ["set", "GPU-hours of one A100", "disk, with latents in W", "shards of ≤ 10,000", "latents, embeddings"]
    return f"{assumed}\n\n{ffs.markdown_table(header, rows)}"


def stylegan2_flops() -> float:
    """Floating-point operations of one 1024-pixel image."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from fairface_synth.models.stylegan2 import StyleGAN2Generator

    config = {"z_dim": 512, "c_dim": 0, "w_dim": 512, "img_resolution": 1024, "img_channels": 3}
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        generator = StyleGAN2Generator({**config, "synthesis": {"channel_base": 32768, "channel_max": 512}})
        generator.eval().requires_grad_(False)
        generator.synthesize(torch.randn(1, generator.num_ws, 512))
    return float(counter.get_total_flops())


if __name__ == "__main__":
    main()
