"""Kill exports of the bundled world at random moments, and compare what they finish with an undisturbed set.

    python benchmarks/faults.py [--kills 30] [--identities 300]

Every run is a process of its own. Of `torchrun`, with two ranks, either one rank is killed, which torchrun answers by
starting both again, or everything at once. A set that is finished before the next kill is compared, and another one
begun. All kills are SIGKILL, up to three seconds after a phase of the export that is drawn by lot was reached.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import describe_machine

import fairface_synth as ffs
from fairface_synth.reports import markdown_table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fake_world import PHASES, contents, differences, phase

RANKS = {"local": 1, "torchrun": 2}


def fit(folder: Path) -> None:
    """Fit a pipeline and keep it."""
    world = ffs.load_demo()
    pipeline = ffs.Pipeline.fit(
        world.generator, world.labeller, attributes=["gender"], n=2000, progress=False, embedder=world.embedder
    )
    pipeline.save(folder / "pipeline")


def export(folder: Path, root: Path, identities: int, engine: str) -> None:
    """Begin, or go on with, a set; says in a file when models are loaded."""
    torch.set_num_threads(1)
    world = ffs.load_demo()
    pipeline = ffs.Pipeline.load(folder / "pipeline", world.generator, world.labeller, embedder=world.embedder)
    settings = {"images_per_identity": 4, "shard_size": 100, "fmr": 1e-3, "verify": True, "forward_batch": 16}
    plan = ffs.plan_dataset(identities // len(pipeline.groups), groups=pipeline.groups, **settings)
    (folder / f"ready-{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))
    ffs.export(pipeline, plan, root, engine, audit=200, progress=False, command="benchmarks/faults.py")


@dataclass
class Runs:
    """The runs of one engine, one after another, and what became of them."""

    engine: str
    folder: Path
    identities: int
    landed: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    sets: int = 0
    files: int = 0
    different: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ready(self) -> list[Path]:
        """Files that hold the processes' ids, once their models are loaded."""
        return [self.folder / f"ready-{rank}" for rank in range(RANKS[self.engine])]

    def start(self, root: Path) -> subprocess.Popen[bytes]:
        """A run on the set in `root`."""
        self.forget()
        python = [sys.executable]
        if self.engine == "torchrun":
            python += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS[self.engine]}"]
            python += ["--max-restarts=1000"]
        arguments = ["--export", str(root), "--engine", self.engine, "--folder", str(self.folder)]
        arguments += ["--identities", str(self.identities)]
        with (self.folder / "log.txt").open("ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            return subprocess.Popen([*python, __file__, *arguments], stdout=log, stderr=log, env=environment)

    def forget(self) -> None:
        """Wait for the models to be loaded anew."""
        self.starts += 1
        for path in self.ready:
            path.unlink(missing_ok=True)

    def wait(self, run: subprocess.Popen[bytes], root: Path, aim: str, seconds: float) -> bool:
        """Whether the run ended within some seconds after it had loaded its models and reached a phase."""
        end = None
        while run.poll() is None:
            loaded = end is None and all(path.exists() and path.read_text() for path in self.ready)
            if loaded and PHASES.index(phase(root)) >= PHASES.index(aim):
                end = time.monotonic() + seconds
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(0.005)
        if run.returncode:
            raise RuntimeError(f"a run failed by itself: see {self.folder / 'log.txt'}")
        return True

    def kill(self, run: subprocess.Popen[bytes], draw: random.Random) -> bool:
        """SIGKILL one rank, or everything; whether the run goes on by itself."""
        pids = [int(path.read_text()) for path in self.ready]
        one = self.engine == "torchrun" and draw.random() < 0.5
        victims = [draw.choice(pids)] if one else list({run.pid, *pids})
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # this rank's share was done
                one = False
        if not one:
            for pid in {run.pid, *pids} - set(victims):
                _end(pid)
            run.wait()
        return one

    def row(self, undisturbed: float) -> list[str]:
        """Of the table."""
        where = ", ".join(f"{name} {self.landed[name]}" for name in PHASES if self.landed[name])
        lost = self.seconds - self.sets * undisturbed
        same = "no: " + ", ".join(self.different[:5]) if self.different else "yes"
        counts = (self.landed.total(), where, self.starts - self.sets, self.sets, self.files)
        return [self.engine, *map(str, counts), same, f"{undisturbed:,.0f} s", f"{lost:,.0f} s"]


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def undisturbed(runs: Runs, root: Path) -> float:
    """Seconds of a run that nobody kills, its start included."""
    start = time.monotonic()
    runs.wait(runs.start(root), root, "finished", float("inf"))
    runs.starts = 0
    return time.monotonic() - start


def torture(runs: Runs, kills: int, reference: dict[str, bytes | None], reach: float = 3.0) -> None:
    """Kill and go on, until so many kills have landed and the last set is finished."""
    draw, begun = random.Random(runs.engine), time.monotonic()
    root = runs.folder / runs.engine
    run = runs.start(root)
    while True:
        left = runs.landed.total() < kills
        # Any phase is as probable as another one, up to a third of the kills; or few would land in the short ones.
        ahead = [name for name in PHASES[:-2] if PHASES.index(name) >= PHASES.index(phase(root))]
        rare = [name for name in ahead if runs.landed[name] < kills / 3] if left else []
        aim = draw.choice(rare or ["finished"])
        if not runs.wait(run, root, aim, draw.uniform(0, reach) if rare else float("inf")):
            goes_on = runs.kill(run, draw)
            runs.landed[phase(root)] += 1
            if goes_on:
                runs.forget()
            else:
                run = runs.start(root)
        else:
            runs.sets += 1
            runs.files += len(reference)
            runs.different += differences(root, reference)
            shutil.rmtree(root)
            if not left:
                break
            run = runs.start(root)
        print(f"{runs.engine}: {dict(runs.landed)}, {runs.sets} sets finished", flush=True)
    runs.seconds = time.monotonic() - begun


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each engine")
    parser.add_argument("--identities", type=int, default=300)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--export", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine", default="local", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.export:
        export(args.folder, args.export, args.identities, args.engine)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fit(folder)
        rows, reference = [], {}
        for engine in RANKS:
            runs = Runs(engine, folder, args.identities)
            seconds = undisturbed(runs, folder / "undisturbed")
            if not reference:
                reference = contents(folder / "undisturbed")
            same = differences(folder / "undisturbed", reference)
            if same:
                raise SystemExit(f"undisturbed sets of the engines differ: {same}")
            shutil.rmtree(folder / "undisturbed")
            print(f"{engine}: undisturbed in {seconds:.0f} s", flush=True)
            torture(runs, args.kills, reference)
            rows.append(runs.row(seconds))
    print(f"\n{describe_machine()}\n\n{4 * args.identities:,} images of the bundled world; SIGKILL at random\n")
    header = ["engine", "kills", "landed in", "restarts", "sets", "files compared", "identical"]
    print(markdown_table([*header, "undisturbed", "time lost"], rows))


if __name__ == "__main__":
    main()
