"""What makes a set, as plan.json and parts.json tell it, so that nobody goes on with something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..fingerprints import fingerprint, fingerprint_generator, fingerprint_model
from ..models.protocols import Generator
from .making import Maker
from .plan import DatasetPlan
from .storage import FOLDER

_TOLERANCE = 1e-3  # of latents, between devices


def generator_prints(generator: Generator) -> dict[str, str]:
    """Fingerprints of a generator: its weights, and its arithmetic where it has a choice."""
    dtype = getattr(generator, "compute_dtype", None)
    return {"generator": fingerprint_generator(generator)} | ({} if dtype is None else {"generator dtype": str(dtype)})


def describe_parts(maker: Maker) -> dict[str, Any]:
    """What parts.json holds: which models make the set, so that nobody goes on with others."""
    plan, parts = maker.plan, maker.parts
    groups = [g for name in plan.quota for g in parts.groups.parse(name)]
    ids = torch.tensor(groups, device=maker.device)
    first = maker.faces(ids, torch.zeros_like(ids))
    hashes = generator_prints(parts.generator)
    generator = parts.generator
    models = {name: getattr(parts, name) for name in ("labeller", "judge", "detector", "embedder")}
    hashes_of = {
        name: fingerprint_model(model, generator.resolution, maker.device)
        for name, model in models.items()
        if model is not None
    }
    decides = {
        "labeller": plan.verify,
        "detector": plan.verify or plan.crop is not None,
        "embedder": plan.fmr is not None,
    }
    hashes |= {name: value for name, value in hashes_of.items() if decides.get(name)}
    settings = {"axes": parts.axes, "reference": parts.reference, "threshold": parts.threshold}
    screened = plan.method == "screen"
    settings["min_confidence"] = parts.min_confidence if plan.verify or screened else None
    settings["screen"] = getattr(parts.source, "screen", None) if screened else None
    numbers = ("threshold", "min_confidence")
    given = {name: value for name, value in settings.items() if value is not None}
    hashes |= {name: str(value) if name in numbers else fingerprint(value) for name, value in given.items()}
    told = {
        "generator": f"{type(generator).__name__}, z_dim={generator.z_dim}, {generator.resolution} px",
        "source": type(parts.source).__name__,
        **{name: f"{type(models[name]).__name__}, fingerprint {value}" for name, value in hashes_of.items()},
        "axes": None if parts.axes is None else [a.direction.name or "unnamed" for a in parts.axes],
        "min_confidence": parts.min_confidence,
    }
    return {
        "groups": {a: list(values) for a, values in parts.groups.attributes.items()},
        "latent_shape": list(first.shape[1:]),
        "resolution": generator.resolution,
        "fingerprint": hashes,
        "latents": [[round(x, 4) for x in row[:4]] for row in first.flatten(1).tolist()],
        "describe": told,
    }


_OURS = {".lock", "work", "log"}  # there before plan.json


def refuse_others(root: Path, maker: Maker) -> None:
    """DataError for a folder that holds something else, another plan's set, or one of other models."""
    if not root.exists():
        return
    if not root.is_dir():
        raise DataError(f"{root} is no folder", expected="a new folder, or a set begun earlier", got="a file")
    draft = ".plan.json."  # of an export that was killed, or of rank 0, which is writing it now
    strange = sorted(p.name for p in root.iterdir() if p.name not in _OURS and not p.name.startswith(draft))
    if strange and not (root / "plan.json").exists():
        _refuse_strangers(root, maker.plan, strange)
    for name, values in heads(maker).items():
        if (root / name).exists():
            _compare(root / name, values)


def _refuse_strangers(root: Path, plan: DatasetPlan, names: list[str]) -> None:
    """DataError unless this is a set of the plan that has lost plan.json."""
    expected = "a new folder, or a set begun earlier (it has plan.json)"
    if not {"parts.json", "dataset.json"} & set(names):
        raise DataError(f"{root} holds other things", expected=expected, got=", ".join(names[:3]))
    plans = {_sidecar_plan(path) for path in (root / FOLDER).glob("*.json")} - {None}
    if plans - {plan.digest}:
        fix = "the plan is also in dataset.json, under plan, if that is there; or export to a new folder"
        got = f"shards of {', '.join(sorted(map(str, plans)))}"
        raise DataError(
            f"{root} has lost its plan.json", expected=f"the plan of its shards, not {plan.digest}", got=got, fix=fix
        )


def _sidecar_plan(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def stored_plan(root: Path) -> DatasetPlan:
    """The plan of a set on disk: plan.json, or where that is lost the copy in dataset.json.

    Raises:
        DataError: no set, or a damaged plan.
    """
    if not root.is_dir():
        raise DataError(f"{root} is no set", expected="a folder that ffs.export wrote", got="no such folder")
    try:
        return DatasetPlan.from_dict(json.loads((root / "plan.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        lost = error
    try:
        return DatasetPlan.from_dict(json.loads((root / "dataset.json").read_text(encoding="utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if isinstance(lost, DataError):
        raise lost
    if isinstance(lost, OSError):
        expected, fix = (
            "a folder that ffs.export wrote, with plan.json",
            "a set that lost it: run the same export again",
        )
        raise DataError(f"{root} is no set", expected=expected, got="no plan.json", fix=fix) from lost
    fix = "delete it and run the same export again"
    raise DataError(f"{root / 'plan.json'} is damaged", expected="json", got=lost, fix=fix) from lost


def first_command(root: Path) -> str | None:
    """What a finished set's datasheet says of the command that began it."""
    try:
        return json.loads((root / "dataset.json").read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def heads(maker: Maker) -> dict[str, dict[str, Any]]:
    """Names and contents of the two files."""
    return {"plan.json": maker.plan.to_dict(), "parts.json": describe_parts(maker)}


def _compare(path: Path, mine: Mapping[str, Any]) -> None:
    """DataError with every difference between a json file and what this run would write there."""
    theirs, mine = read_json(path), json.loads(json.dumps(mine))
    if not isinstance(theirs, dict):
        fix = "delete it and run the same export again"
        raise DataError(f"{path} is damaged", expected=", ".join(mine), got=str(theirs)[:80], fix=fix)
    ignored = {"describe", "command"}  # what is told, and of the first run
    differ = [k for k in sorted(set(theirs) | set(mine)) if k not in ignored and theirs.get(k) != mine.get(k)]
    known = "fingerprint" in differ or _close(theirs.get("latents"), mine.get("latents"))  # other models, other latents
    if "latents" in differ and known:
        differ.remove("latents")
    if differ:
        what = "plan" if path.name == "plan.json" else "models"
        rows = [row for k in differ for row in _differences(k, theirs.get(k), mine.get(k))]
        raise DataError(
            f"{path.parent} was begun with another {what}" if what == "plan" else f"{path.parent} has other {what}",
            expected="; ".join(f"{name} = {a}" for name, a, _ in rows),
            got="; ".join(f"{name} = {b}" for name, _, b in rows),
            fix="go on with what the set was begun with (plan.json, parts.json), or export to a new folder"
            + ("" if _begun(path.parent) else "; nothing is made in this one yet: it may be deleted"),
        )


def _differences(name: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    if not isinstance(a, dict) or not isinstance(b, dict):
        return [(name, a, b)]
    keys = [k for k in {**a, **b} if a.get(k) != b.get(k)]
    return [(f"{name}.{k}", a.get(k), b.get(k)) for k in keys]


def _begun(root: Path) -> bool:
    """Whether there is more than the two files: candidates, identities or shards."""
    return any((root / name).exists() for name in ("work/round-0000.json", "gate.json", FOLDER))


def _close(a: Any, b: Any) -> bool:
    x, y = np.asarray(a, float), np.asarray(b, float)
    return x.shape == y.shape and bool(np.allclose(x, y, rtol=_TOLERANCE, atol=_TOLERANCE))


def read_json(path: Path) -> Any:
    """A json file of a set; DataError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        fix = "delete it and run the same export again"
        raise DataError(f"{path} is damaged", expected="json", got=error, fix=fix) from error
