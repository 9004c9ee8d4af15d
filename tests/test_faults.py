"""Whatever happens to an export, what is on disk is whole, and the next run makes the same bytes as an undisturbed one.

Every process that is killed here is a real one, forked by `fake_world.Nursery`; sets are compared byte by byte.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fake_world
import pytest
import torch
from fake_world import PHASES, Ended, Nursery, contents, differences, make_axes, make_plan, make_source, phase

import fairface_synth as ffs
from fairface_synth import DataError
from fairface_synth.export import DatasetCheck, open_dataset, verify_dataset
from fairface_synth.export.checking import kept_rows
from fairface_synth.export.provenance import stored_plan
from fairface_synth.export.storage import read_images
from fairface_synth.export.writing import write_shard

Reference = Mapping[str, bytes | None]
LAYOUTS = ("webdataset", "rec", "folders", "parquet")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The set of each layout that one run made; tests must not change it."""
    root = tmp_path_factory.mktemp("undisturbed")

    def made(layout: str) -> Path:
        if not (root / layout).exists():
            ended = nursery.run(root / layout, plan={"layout": layout})
            assert ended.code == 0, ended.text
        return root / layout

    return made


@pytest.fixture
def copied(undisturbed: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an undisturbed set."""

    def made(layout: str) -> Path:
        return Path(shutil.copytree(undisturbed(layout), tmp_path / layout))

    return made


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fake_world.no_sync)


def check_whole(root: Path, reference: Reference) -> None:
    """What has its final name is final; drafts have names that say so."""
    for name, data in contents(root).items():
        draft = any(part.startswith(".") and part.endswith(".tmp") for part in name.split("/"))
        joining = name == "train.rec.part" or (name.endswith(".rec") and name not in reference)
        if not draft and not joining and name.split("/")[0] != "work":
            assert name in reference, name
            assert data == reference[name], name


# --- SIGKILL --------------------------------------------------------------------------------------------------------


def rarest(landed: Counter[str], root: Path, draw: random.Random) -> str:
    """Where to kill next: a phase that the run has not passed, of those that few kills landed in."""
    ahead = [name for name in PHASES[:-2] if PHASES.index(name) >= PHASES.index(phase(root))]
    return min(ahead or ["finished"], key=lambda name: landed[name] + draw.random())


def enough(landed: Counter[str], kills: int, wanted: Sequence[str]) -> bool:
    """So many kills, and some in each of these phases; "join" is of the layout "rec" and short."""
    return landed.total() >= kills and all(landed[name] for name in wanted if name != "join")


def kill_in(nursery: Nursery, pid: int, root: Path, aim: str, delay: float) -> Ended:
    """SIGKILL some time after a run has come so far, unless it ends before."""
    while PHASES.index(phase(root)) < PHASES.index(aim):
        ended = nursery.wait(pid, 0.005)
        if ended is not None:
            return ended
    return nursery.wait(pid, delay) or nursery.kill(pid)


@pytest.mark.parametrize(
    ("layout", "kills"),
    [
        ("webdataset", 15),
        pytest.param("rec", 15, marks=pytest.mark.slow),
        pytest.param("folders", 4, marks=pytest.mark.slow),
        pytest.param("parquet", 4, marks=pytest.mark.slow),
    ],
)
def test_kills_do_not_show(
    layout: str, kills: int, nursery: Nursery, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    reference, draw = contents(undisturbed(layout)), random.Random(layout)
    wanted = PHASES[1:6] if kills > 10 else ("shards",)
    job: dict[str, Any] = {"plan": {"layout": layout}, "world": {"delay": 0.002}}
    landed: Counter[str] = Counter()
    for number in range(100):
        root = tmp_path / str(number)
        while not enough(landed, kills, wanted):
            if draw.random() < 0.5:  # from outside, at any time
                pid = nursery.start(root, disk={"seconds": 0.001}, **job)
                ended = kill_in(nursery, pid, root, rarest(landed, root, draw), draw.uniform(0, 0.2))
            else:  # just before it would change what is on disk
                ended = nursery.run(root, disk={"seconds": 0, "die_at": draw.randint(5, 60)}, **job)
            if ended.code == 0:
                break
            assert ended.code == -signal.SIGKILL, ended.text
            landed[phase(root)] += 1
            check_whole(root, reference)
        ended = nursery.run(root, **job)
        assert ended.code == 0, ended.text
        assert differences(root, reference) == []
        if enough(landed, kills, wanted):
            break
    assert enough(landed, kills, wanted), landed


@pytest.mark.slow
def test_every_step_of_a_run_may_be_the_last(nursery: Nursery, tmp_path: Path) -> None:
    """Dies at the first step on the disk, goes on, dies at the second one, …: no step can be skipped by luck."""
    plan, landed = {"layout": "rec", "quota": 8}, Counter[str]()
    assert nursery.run(tmp_path / "whole", plan=plan).code == 0
    reference = contents(tmp_path / "whole")
    for step in range(1, 100):
        ended = nursery.run(tmp_path / "set", plan=plan, disk={"seconds": 0, "die_at": step})
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.text
        landed[phase(tmp_path / "set")] += 1
        check_whole(tmp_path / "set", reference)
    assert ended.code == 0, landed
    assert differences(tmp_path / "set", reference) == []
    assert {"start", "candidates", "gate", "shards", "join", "datasheet"} <= set(landed), landed


@pytest.mark.parametrize(("layout", "kills"), [("webdataset", 8), pytest.param("rec", 6, marks=pytest.mark.slow)])
def test_killed_ranks_do_not_show(
    layout: str, kills: int, nursery: Nursery, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    """Any of the ranks die; those that live go on, and the dead come back, at times in another number."""
    reference, draw, landed = contents(undisturbed(layout)), random.Random(layout), Counter[str]()
    job: dict[str, Any] = {"plan": {"layout": layout}, "world": {"delay": 0.002}, "engine": "torchrun"}
    job["disk"] = {"seconds": 0.001}
    root, number, size, alive = tmp_path / "0", 0, 2, dict[int, int]()
    sizes = set()

    def rank(r: int) -> int:
        return nursery.start(root, environment={"RANK": str(r), "WORLD_SIZE": str(size)}, **job)

    while not enough(landed, kills, ("candidates", "shards")):
        alive |= {r: rank(r) for r in range(size) if r not in alive}
        sizes.add(size)
        aim, delay = rarest(landed, root, draw), draw.uniform(0, 0.2)
        if landed[aim] <= kills // 4:
            victims = draw.choice(([0], [size - 1], list(range(size))))
            ended = [kill_in(nursery, alive.pop(r), root, aim, delay) for r in victims]
            assert all(e.code in (0, -signal.SIGKILL) for e in ended), ended
            landed[phase(root)] += sum(e.code != 0 for e in ended)
        if landed[aim] > kills // 4 or phase(root) == "finished" or landed.total() >= kills - 1:
            alive |= {r: rank(r) for r in range(size) if r not in alive}
            last = [nursery.wait(pid) for pid in alive.values()]
            assert all(e is not None and e.code == 0 for e in last), last
            assert differences(root, reference) == []
            root, number, alive = tmp_path / str(number + 1), number + 1, {}
        if not alive:
            size = {2: 3, 3: 1, 1: 2}[size]
    assert len(sizes) > 1


# --- the same bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job",
    [
        {"threads": 1, "batch_size": 1},
        {"threads": 4, "batch_size": 1000},
        {"engine": "torchrun", "rank": 0, "world_size": 1},
        {"unit": 1000},
    ],
    ids=str,
)
def test_settings_do_not_show(
    job: dict[str, Any], nursery: Nursery, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = nursery.run(tmp_path / "set", **job)
    assert ended.code == 0, ended.text
    assert differences(tmp_path / "set", contents(undisturbed("webdataset"))) == []


def test_ranks_do_not_show(nursery: Nursery, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    job = {"engine": "torchrun", "world_size": 3}
    started = [nursery.start(tmp_path / "set", rank=rank, **job) for rank in (2, 0, 1)]
    ended = [nursery.wait(pid) for pid in started]
    assert all(e is not None and e.code == 0 for e in ended), ended
    assert differences(tmp_path / "set", contents(undisturbed("webdataset"))) == []
    late = nursery.run(tmp_path / "set", rank=1, **job)  # a rank that comes back when all is done
    assert late.code == 0, late.text
    assert differences(tmp_path / "set", contents(undisturbed("webdataset"))) == []


OTHER_THREADS = """
import sys
import fairface_synth as ffs
world = ffs.load_demo()
pipeline = ffs.Pipeline.load(sys.argv[1], world.generator, world.labeller, embedder=world.embedder)
plan = ffs.plan_dataset(8, images_per_identity=4, groups=pipeline.groups, fmr=1e-2, verify=True, same_person=True)
ffs.export(pipeline, plan, sys.argv[2], threshold=0.9, audit=16, progress=False, command="export")
"""


@pytest.mark.slow
def test_threads_of_torch_do_not_show(world: Any, tmp_path: Path) -> None:
    """On the bundled world, whose layers are divided over threads."""
    pipeline = ffs.Pipeline.fit(world.generator, world.labeller, attributes=["gender"], n=500, progress=False)
    pipeline.save(tmp_path / "pipeline")
    for n in ("1", "2"):
        command = [sys.executable, "-c", OTHER_THREADS, str(tmp_path / "pipeline"), str(tmp_path / n)]
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": n}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert differences(tmp_path / "2", contents(tmp_path / "1")) == []


def test_the_set_takes_every_path(undisturbed: Callable[[str], Path]) -> None:
    """The sets that are compared: several rounds and units, duplicates, unconfirmed faces, edits that were halved."""
    gate = json.loads((undisturbed("webdataset") / "gate.json").read_text())
    assert gate["rounds"] >= 3
    drawn, confirmed, doubles = (sum(gate[name].values()) for name in ("candidates", "confirmed", "duplicates"))
    assert drawn > confirmed > sum(gate["accepted"].values()) == make_plan().identities
    assert doubles > 0
    assert set(_column(undisturbed("webdataset"), "factor")) == {1.0, 0.5, 0.25}


def _column(root: Path, name: str) -> list[Any]:
    from pyarrow import parquet

    return [x for path in sorted(root.glob("shards/*.parquet")) for x in parquet.read_table(path)[name].to_pylist()]


# --- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A small disk: `disk(size="64k")` mounts it, called again it changes it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(**options: str) -> Path:
        again = ["remount"] if os.path.ismount(folder) else []
        text = ",".join([*again, *(f"{name}={value}" if value else name for name, value in options.items())])
        command = ["mount", "-t", "tmpfs", "-o", text, "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no permission to mount a small disk")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("layout", ["webdataset", pytest.param("rec", marks=pytest.mark.slow)])
def test_a_full_disk_says_so_and_the_same_command_goes_on(
    layout: str, disk: Callable[..., Path], nursery: Nursery, undisturbed: Callable[[str], Path]
) -> None:
    reference, draw, pages = contents(undisturbed(layout)), random.Random(layout), 1
    struck: Counter[str] = Counter()
    for _ in range(100):
        root = disk(size=f"{4 * pages}k") / "set"
        ended = nursery.run(root, plan={"layout": layout})
        if ended.code == 0:
            break
        assert ended.code == 1, ended  # not a signal: a mapped file on a full disk would be SIGBUS
        assert ended.text.startswith("DataError: the disk is full"), ended.text
        assert str(root) in ended.text
        assert "run the same command again" in ended.text
        assert "free" in ended.text
        struck[phase(root)] += 1
        check_whole(root, reference)
        drafts = [p for p in root.rglob(".*") if p.suffix == ".tmp"]
        assert drafts == []
        pages += {"shards": draw.randint(1, 60), "datasheet": draw.randint(1, 5)}.get(phase(root), 1)
    assert ended.code == 0, ended.text
    assert differences(root, reference) == []
    assert {"start", "candidates", "gate", "shards", "datasheet"} <= set(struck), struck


def test_a_read_only_disk_says_so_and_can_be_verified(
    disk: Callable[..., Path], nursery: Nursery, undisturbed: Callable[[str], Path]
) -> None:
    folder = disk(size="16m")
    begun, finished = folder / "begun", folder / "finished"
    nursery.kill(_started(nursery, begun, "shards"))
    assert nursery.run(finished).code == 0
    disk(ro="")
    for root in (folder / "new", begun, finished):
        before = contents(folder)
        ended = nursery.run(root)
        assert ended.code == 1
        assert ended.text.startswith("DataError: cannot write in")
        assert "read-only" in ended.text
        assert str(root) in ended.text
        assert contents(folder) == before
    assert verify_dataset(finished, progress=False).ok
    assert len(open_dataset(finished)) == make_plan().images
    disk(rw="", size="16m")
    assert nursery.run(begun).code == 0
    assert differences(begun, contents(undisturbed("webdataset"))) == []


def _started(nursery: Nursery, root: Path, until: str, **job: Any) -> int:
    """A process that has come so far."""
    pid = nursery.start(root, world={"delay": 0.02}, **job)
    while phase(root) != until:
        assert nursery.wait(pid, 0.005) is None
    return pid


# --- two at once ----------------------------------------------------------------------------------------------------


def test_the_second_exporter_is_refused_until_the_first_is_gone(
    nursery: Nursery, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "set"
    first = _started(nursery, root, "shards")
    second = nursery.run(root)
    assert second.code == 1
    assert "is being written by another export" in second.text
    assert f"process {first} " in second.text
    with pytest.raises(DataError, match=f"process {first} "):
        verify_dataset(root, make_source().generator, repair=True, progress=False)
    assert nursery.kill(first).code == -signal.SIGKILL
    ended = nursery.run(root)
    assert ended.code == 0, ended.text
    assert differences(root, contents(undisturbed("webdataset"))) == []


def test_the_same_rank_twice_is_refused(nursery: Nursery, tmp_path: Path) -> None:
    job = {"engine": "torchrun", "rank": 1, "world_size": 2}
    first = nursery.start(tmp_path / "set", **job)  # it waits for rank 0
    while not (tmp_path / "set" / "log" / "owner-00001.json").exists():
        assert nursery.wait(first, 0.005) is None
    second = nursery.run(tmp_path / "set", **job)
    assert second.code == 1
    assert f"process {first} " in second.text
    assert "as rank 1" in second.text
    nursery.kill(first)


# --- damage ---------------------------------------------------------------------------------------------------------


def flip(name: str, at: float = 0.5) -> Callable[[Path], None]:
    """Change one byte of a file."""

    def damage(root: Path) -> None:
        data = bytearray((root / name).read_bytes())
        data[int(at * len(data))] ^= 1
        (root / name).write_bytes(data)

    return damage


def cut(name: str, to: float = 0.6) -> Callable[[Path], None]:
    """Lose the end of a file."""
    return lambda root: os.truncate(root / name, int(to * (root / name).stat().st_size))


def delete(name: str) -> Callable[[Path], None]:
    """Lose a file or a folder."""
    return lambda root: shutil.rmtree(root / name) if (root / name).is_dir() else (root / name).unlink()


def write(name: str, text: str) -> Callable[[Path], None]:
    """Put something else into a file."""

    def damage(root: Path) -> None:
        (root / name).write_text(text)

    return damage


@dataclasses.dataclass(frozen=True)
class Damage:
    """What happens to a set, what names it, and what makes it good: the generator, the pipeline, the same export."""

    do: Callable[[Path], None]
    named: str
    mends: str
    layout: str = "webdataset"


DAMAGE = {
    "a byte of a tar": Damage(flip("shards/00003.tar"), "shard 3", "generator pipeline"),
    "a cut tar": Damage(cut("shards/00003.tar"), "shard 3", "generator pipeline export"),
    "an empty tar": Damage(cut("shards/00003.tar", 0), "shard 3", "generator pipeline export"),
    "no tar": Damage(delete("shards/00003.tar"), "shard 3", "generator pipeline export"),
    "no sidecar": Damage(delete("shards/00002.json"), "shard 2", "pipeline export"),
    "half a sidecar": Damage(cut("shards/00002.json"), "shard 2", "pipeline export"),
    "no index": Damage(delete("shards/00001.parquet"), "shard 1", "pipeline export"),
    "a byte of an index": Damage(flip("shards/00001.parquet"), "shard 1", "pipeline"),
    "a cut index": Damage(cut("shards/00001.parquet"), "shard 1", "pipeline export"),
    "no shards": Damage(delete("shards"), "shard 7", "pipeline export"),
    "a person's folder": Damage(delete("images/00000011"), "shard 1", "generator pipeline export", "folders"),
    "a byte of a picture": Damage(flip("images/00000011/0002.png"), "shard 1", "generator pipeline", "folders"),
    "all folders": Damage(delete("images"), "shard 0", "generator pipeline export", "folders"),
    "a byte of train.rec": Damage(flip("train.rec"), "shard", "generator pipeline", "rec"),
    "a cut train.rec": Damage(cut("train.rec"), "shard 7", "generator pipeline export", "rec"),
    "no train.rec": Damage(delete("train.rec"), "shard 0", "generator pipeline export", "rec"),
    "no train.idx": Damage(delete("train.idx"), "train.rec", "generator pipeline export", "rec"),
    "no property": Damage(delete("property"), "train.rec", "generator pipeline export", "rec"),
    "a byte of parquet": Damage(flip("shards/00004.parquet"), "shard 4", "pipeline", "parquet"),
    "a byte of latents": Damage(flip("latents.npy", 0.9), "latents.npy", "generator pipeline export"),
    "cut latents": Damage(cut("latents.npy"), "latents.npy", "generator pipeline export"),
    "no latents": Damage(delete("latents.npy"), "latents.npy", "generator pipeline export"),
    "a byte of embeddings": Damage(flip("embeddings.npy", 0.9), "embeddings.npy", "export"),
    "no embeddings": Damage(delete("embeddings.npy"), "embeddings.npy", "export"),
    "no identities": Damage(delete("identities.parquet"), "identities.parquet", "export"),
    "cut identities": Damage(cut("identities.parquet"), "identities.parquet", "export"),
    "no gate": Damage(delete("gate.json"), "gate.json", "export"),
    "half a gate": Damage(cut("gate.json"), "gate.json", "export"),
    "a changed gate": Damage(flip("gate.json", 0.04), "gate.json", ""),
    "a gate without files": Damage(write("gate.json", '{"files": {}}'), "gate.json", "export"),
    "a gate of another kind": Damage(write("gate.json", "[]"), "gate.json", "export"),
    "no plan": Damage(delete("plan.json"), "plan.json", "export"),
    "half a plan": Damage(cut("plan.json"), "plan.json", ""),
    "parts of another kind": Damage(write("parts.json", "[]"), "parts.json", ""),
    "no parts": Damage(delete("parts.json"), "parts.json", "export"),
    "no datasheet": Damage(delete("dataset.json"), "dataset.json", "export"),
    "half a datasheet": Damage(cut("dataset.json"), "dataset.json", ""),
    "no README": Damage(delete("README.md"), "README.md", "export"),
    "no record": Damage(delete("croissant.json"), "croissant.json", "export"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_mended(
    name: str, nursery: Nursery, undisturbed: Callable[[str], Path], copied: Callable[[str], Path]
) -> None:
    damage = DAMAGE[name]
    reference, root = contents(undisturbed(damage.layout)), copied(damage.layout)
    source = make_source()

    def check(**how: Any) -> DatasetCheck:
        return verify_dataset(root, progress=False, **how)

    damage.do(root)
    found = check()
    assert not found.ok
    assert any(damage.named in part for part in found.problems), found
    assert "again" in str(found)  # what to do
    damaged = contents(root)
    for way in ("generator", "pipeline"):
        shutil.rmtree(root)
        shutil.copytree(undisturbed(damage.layout), root)
        damage.do(root)
        given: dict[str, Any] = {"generator": source.generator} if way == "generator" else {"generator": source}
        given |= {"axes": make_axes()} if way == "pipeline" else {}
        found = check(repair=True, **given)
        assert found.ok == (way in damage.mends), found
        if found.ok:
            assert found.repaired or damage.named == "train.rec"
            assert differences(root, reference) == []
        else:
            assert any(damage.named in part for part in found.problems), found
    shutil.rmtree(root)
    shutil.copytree(undisturbed(damage.layout), root)
    damage.do(root)
    assert contents(root) == damaged
    if "export" not in damage.mends and not damage.mends:  # as the message says
        delete(damage.named)(root)
    ended = nursery.run(root, plan={"layout": damage.layout})
    assert ended.code == 0, ended.text
    assert (differences(root, reference) == []) == ("export" in damage.mends or not damage.mends), check()


def test_faces_made_from_damaged_identities_are_found_and_made_again(
    nursery: Nursery, copied: Callable[[str], Path], undisturbed: Callable[[str], Path]
) -> None:
    """As if a row of latents.npy had gone bad before the shard was made, and had been mended since."""
    root = copied("webdataset")
    plan = stored_plan(root)
    shard = plan.shard(0)
    images = list(read_images(root, plan, shard))
    rows = [row._replace(latents=row.latents + (row.identity == 5)) for row in kept_rows(root, plan, shard)]
    write_shard(root, plan, shard, zip(images, rows, strict=True))
    found = verify_dataset(root, progress=False)
    assert next(iter(found.problems)) == "shard 0"
    assert "faces of identities 5 are not those of" in str(found)
    assert not verify_dataset(root, make_source().generator, repair=True, progress=False).ok
    mended = verify_dataset(root, make_source(), repair=True, axes=make_axes(), progress=False)
    assert "shard 0" in mended.repaired
    ended = nursery.run(root)
    assert ended.code == 0, ended.text
    assert differences(root, contents(undisturbed("webdataset"))) == []


def test_identities_that_go_bad_before_the_shards_are_found_again(
    nursery: Nursery, copied: Callable[[str], Path], undisturbed: Callable[[str], Path]
) -> None:
    root = copied("webdataset")
    for name in ("shards/00001.json", "dataset.json", "README.md", "croissant.json"):
        (root / name).unlink()
    flip("latents.npy", 0.5)(root)
    ended = nursery.run(root)
    assert ended.code == 0, ended.text
    assert differences(root, contents(undisturbed("webdataset"))) == []


def test_another_generator_repairs_nothing(copied: Callable[[str], Path]) -> None:
    root = copied("webdataset")
    flip("shards/00003.tar")(root)
    before = contents(root)
    with pytest.raises(DataError, match="not the generator"):
        verify_dataset(root, make_source(contrast=0.5).generator, repair=True, progress=False)
    delete("shards/00003.json")(root)
    with pytest.raises(DataError, match="has other models"):
        verify_dataset(root, make_source(scale=3.0), repair=True, axes=make_axes(), progress=False)
    # nothing else was touched
    assert differences(root, before) == ["shards/00003.json"]


# --- what is refused ------------------------------------------------------------------------------------------------

OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "quota": ({"plan": {"quota": 17}}, "quota.female-light = 16"),
    "images": ({"plan": {"images_per_identity": 3}}, "images_per_identity = 4"),
    "shard size": ({"plan": {"shard_size": 64}}, "shard_size = 32"),
    "seed": ({"plan": {"seed": 1}}, "seed = 0"),
    "layout": ({"plan": {"layout": "folders"}}, "layout = webdataset"),
    "format": ({"plan": {"image_format": "jpeg"}}, "image_format = png"),
    "fmr": ({"plan": {"fmr": 1e-4}}, "fmr = 0.001"),
    "batch": ({"plan": {"forward_batch": 8}}, "forward_batch = 16"),
    "generator": ({"world": {"contrast": 0.5}}, "fingerprint.generator"),
    "embedder": ({"world": {"scale": 3.0}}, "fingerprint.embedder"),
    "latents": ({"world": {"spread": 1.5}}, "latents"),
    "confidence": ({"world": {"min_confidence": 0.8}}, "fingerprint.min_confidence"),
    "axes": ({"axes": None}, "fingerprint.axes"),
    "threshold": ({"threshold": 0.9}, "fingerprint.threshold"),
    "reference": ({"reference": torch.tensor([[1.0, 0, 0, 0]])}, "fingerprint.reference"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_plans_and_models_are_refused(name: str, undisturbed: Callable[[str], Path], tmp_path: Path) -> None:
    job, difference = OTHERS[name]
    root = undisturbed("webdataset")
    before, log = contents(root), sorted(p.stat().st_mtime_ns for p in root.rglob("*"))
    with pytest.raises(DataError, match=r"was begun with another plan|has other models") as raised:
        fake_world.export(root, **job)
    assert difference in str(raised.value)
    assert "new folder" in str(raised.value)
    assert contents(root) == before
    assert sorted(p.stat().st_mtime_ns for p in root.rglob("*")) == log


def test_folders_with_other_things_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(DataError, match="holds other things"):
        fake_world.export(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="is no folder"):
        fake_world.export(tmp_path / "thesis.tex")
    with pytest.raises(DataError, match="is no set"):
        verify_dataset(tmp_path)


@pytest.mark.parametrize(
    ("job", "what"),
    [
        ({"plan": {"budget": 1}}, "the budget is spent"),
        ({"world": {"spread": 0.01}}, "people of the set already"),
        ({"threads": 0}, "nothing would be done"),
        ({"engine": "slurm"}, "unknown engine"),
        ({"engine": "torchrun"}, "this process has no rank"),
        ({"engine": "torchrun", "rank": 2, "world_size": 2}, "ranks count from 0"),
        ({"rank": 0}, "ranks are torchrun's"),
        ({"actors": 2}, "actors are Ray's"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(
    job: dict[str, Any], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match=what) as raised:
        fake_world.export(tmp_path / "set", **job)
    assert "expected" in str(raised.value)
    assert "got" in str(raised.value)
    if "budget" in what or "already" in what:
        assert "| female-light | 16 " in str(raised.value)  # the table
        with pytest.raises(DataError, match="the budget is spent"):  # and again, from what is on disk
            fake_world.export(tmp_path / "set", **job)


def test_a_missing_embedder_is_said_before_anything_is_written(tmp_path: Path) -> None:
    from fairface_synth.export import export

    source = dataclasses.replace(make_source(), embedder=None)
    with pytest.raises(DataError, match="identities are compared by an embedder"):
        export(source, make_plan(), tmp_path / "set", threshold=0.9)
    with pytest.raises(DataError, match="confirmed by a labeller"):
        export(dataclasses.replace(make_source(), labeller=None), make_plan(), tmp_path / "set", threshold=0.9)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    estimate = fake_world.export(tmp_path / "set", dry_run=True)
    assert "Nothing was written" in str(estimate)
    assert list(tmp_path.iterdir()) == []


def test_a_repair_with_other_bytes_makes_the_record_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where another Pillow encodes: the images are right, and croissant.json has to be written again."""
    import io

    from PIL import Image

    from fairface_synth.export import checking

    def other(pixels: Any, plan: Any) -> bytes:
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png", compress_level=1)
        return data.getvalue()

    root, plan = tmp_path / "set", {"image_format": "png"}
    fake_world.export(root, plan)
    tar = root / "shards" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    monkeypatch.setattr(checking, "encode", other)
    check = verify_dataset(root, make_source().generator, repair=True, progress=False)
    assert check.repaired == ("shard 1",)
    assert list(check.problems) == ["croissant.json"]
    (root / "croissant.json").unlink()
    fake_world.export(root, plan)
    assert verify_dataset(root, progress=False).ok
