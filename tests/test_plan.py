"""A plan partitions its images into shards of whole identities, and says so in the same words everywhere."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fairface_synth as ffs
from fairface_synth import DataError, GroupError
from fairface_synth.export import DatasetPlan, plan_dataset

GROUPS = ffs.Groups({"gender": ["female", "male"], "tone": ["light", "dark"]})
NAMES = GROUPS.names


@st.composite
def plans(draw: st.DrawFn) -> DatasetPlan:
    """Small plans of all shapes."""
    k = draw(st.integers(1, 9))
    return plan_dataset(
        draw(st.dictionaries(st.sampled_from(NAMES), st.integers(1, 40), min_size=1)),
        images_per_identity=k,
        shard_size=draw(st.integers(k, 8 * k)),
        seed=draw(st.integers(0, 2**64 - 1)),
        truncation_psi=draw(st.sampled_from([1, 1.0, 0.7, 0.1 + 0.2])),
        perturbation=draw(st.sampled_from([0, 0.2, 1])),
        fmr=draw(st.sampled_from([None, "auto", 1e-4, 1 / 3])),
        layout=draw(st.sampled_from(["webdataset", "folders", "parquet", "rec"])),
        image_format=draw(st.sampled_from(["jpeg", "png"])),
    )


def test_numbers_of_numpy_are_numbers() -> None:
    assert plan_dataset(np.int64(3), groups=GROUPS) == plan_dataset(3, groups=GROUPS)
    assert plan_dataset({NAMES[0]: np.int32(3)}, groups=GROUPS) == plan_dataset({NAMES[0]: 3}, groups=GROUPS)
    with pytest.raises(DataError, match="a float64"):
        plan_dataset(np.float64(3), groups=GROUPS)


# --- the quota ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quota", "expected"),
    [
        (3, [3, 3, 3, 3]),
        (torch.tensor([1, 0, 2, 5]), [1, 0, 2, 5]),
        ({"male-dark": 2, "female-light": 7}, [7, 0, 0, 2]),
        ({"dark": 5}, [0, 3, 0, 2]),
        ({"dark": 4, "male-light": 1}, [0, 2, 1, 2]),
        ({"gender=female,tone=*": 2, "male": 3}, [1, 1, 2, 1]),
        ({"balanced": 10}, [3, 3, 2, 2]),
        ({"female-dark": 0, "male": 2}, [0, 0, 1, 1]),
    ],
)
def test_quota_over_groups(quota: Any, expected: list[int]) -> None:
    plan = plan_dataset(quota, groups=GROUPS)
    assert plan.quota == {name: n for name, n in zip(NAMES, expected, strict=True) if n}
    assert list(plan.quota) == [name for name, n in zip(NAMES, expected, strict=True) if n]
    assert plan.identities == sum(expected)


def test_quota_without_groups_is_resolved_in_their_order() -> None:
    plan = plan_dataset({"dark-male": 3, "light_female": 1})
    assert list(plan.quota.items()) == [("dark-male", 3), ("light_female", 1)]
    resolved = plan.resolve(GROUPS)
    assert list(resolved.quota.items()) == [("female-light", 1), ("male-dark", 3)]
    assert resolved == plan_dataset({"male-dark": 3, "female-light": 1}, groups=GROUPS).resolve(GROUPS)
    assert resolved.resolve(GROUPS) == resolved


def test_corrected_quota_brings_its_groups() -> None:
    groups = ffs.Groups({"gender": ["female", "male"]})
    truth = torch.tensor([0] * 100 + [1] * 100)
    labels = torch.tensor([0] * 90 + [1] * 10 + [1] * 70 + [0] * 30)
    confusion = ffs.fit_confusion(groups, truth, labels)
    quota = ffs.corrected_quota(confusion, 100, torch.tensor([500, 500]))
    plan = plan_dataset(quota)
    assert plan.quota == dict(zip(groups.names, quota.quota.tolist(), strict=True))
    assert plan.quota["female"] != 50
    assert plan_dataset(quota, groups=groups) == plan
    with pytest.raises(GroupError, match="other groups"):
        plan_dataset(quota, groups=GROUPS)


@pytest.mark.parametrize(
    ("quota", "groups", "text"),
    [
        ({}, None, "not all 0"),
        ({"a": 0}, None, "not all 0"),
        ({"a": 5, "b": -1}, None, "whole numbers"),
        ({"a": 2.5}, None, "whole numbers"),
        ({"a": True}, None, "whole numbers"),
        (0, GROUPS, "not all 0"),
        (-3, GROUPS, "whole numbers"),
        (torch.tensor([0.5, 1, 1, 1]), GROUPS, "whole numbers"),
        (torch.tensor([1, 2, 3]), GROUPS, r"int64 \[4\]"),
        (torch.tensor(7), GROUPS, r"int64 \[4\]"),
        (torch.ones(4, 4, dtype=torch.int64), GROUPS, "whole numbers"),
        (100, None, "groups=pipeline.groups"),
        (torch.tensor([1, 2]), None, "groups=pipeline.groups"),
        ({"purple": 3}, GROUPS, "purple"),
        ({"dark": 3, "dark-female": 2}, GROUPS, "same group"),
        ({"dark-female": 3, "female-dark": 2}, GROUPS, "same group"),
    ],
)
def test_bad_quotas(quota: Any, groups: ffs.Groups | None, text: str) -> None:
    with pytest.raises((DataError, GroupError), match=text):
        plan_dataset(quota, groups=groups)


def test_automatic_rate_depends_on_the_embedder() -> None:
    plan = plan_dataset({"male-dark": 3})
    assert plan.fmr == "auto"
    assert plan.resolve(GROUPS).fmr == 1e-4
    assert plan.resolve(GROUPS, embedder=False).fmr is None
    assert plan_dataset({"male-dark": 3}, fmr=0.5).resolve(GROUPS, embedder=False).fmr == 0.5
    with pytest.raises(DataError, match="same person at which threshold"):
        plan_dataset({"male-dark": 3}, same_person=True).resolve(GROUPS, embedder=False)


@pytest.mark.parametrize(
    ("quota", "text"),
    [
        ({"purple": 1}, "purple"),
        ({"dark": 4}, "names 2 groups"),
        ({"dark-female": 1, "female-dark": 1}, "same group"),
    ],
)
def test_names_are_checked_when_the_groups_are_known(quota: dict[str, int], text: str) -> None:
    with pytest.raises(GroupError, match=text):
        plan_dataset(quota).resolve(GROUPS)


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"images_per_identity": 0}, r"images_per_identity is out of range\n.*1 … 1024"),
        ({"images_per_identity": 1025, "shard_size": 2000}, "1 … 1024"),
        ({"images_per_identity": 2.0}, "whole number"),
        ({"images_per_identity": True}, "whole number"),
        ({"images_per_identity": 10, "shard_size": 9}, r"shard_size is out of range\n.*10 … [\s\S]*whole identities"),
        ({"shard_size": 10**7 + 1}, "shard_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": "0"}, "seed"),
        ({"candidates": 0}, "candidates"),
        ({"candidates": 4097}, "1 … 4096"),
        ({"budget": np.int64(5)}, r"np.int64\(5\)"),
        ({"budget": 0}, "budget"),
        ({"forward_batch": 0}, "forward_batch"),
        ({"quality": 0}, "quality"),
        ({"quality": 101}, "quality"),
        ({"size": 7}, "size"),
        ({"size": 112.0}, "size"),
        ({"method": "evolve"}, "gaussian, screen"),
        ({"layout": "zip"}, "webdataset, folders, rec, parquet"),
        ({"image_format": "gif"}, "jpeg, png, webp"),
        ({"subsampling": "4:1:1"}, "4:4:4, 4:2:2, 4:2:0"),
        ({"crop": "ffhq"}, "arcface"),
        ({"perturbation": 1.5}, "perturbation"),
        ({"perturbation": math.nan}, "perturbation"),
        ({"perturbation": None}, "perturbation is a number"),
        ({"perturbation": "0.2"}, "perturbation is a number"),
        ({"truncation_psi": math.inf}, "truncation"),
        ({"truncation_psi": None}, "truncation_psi is a number"),
        ({"method": "screen", "truncation_psi": 0.7}, "bank's truncation"),
        ({"fmr": 0.0}, "0 < fmr < 1"),
        ({"fmr": 1}, "0 < fmr < 1"),
        ({"fmr": "1e-4"}, "fmr is a number"),
        ({"fmr": None, "same_person": True}, "threshold"),
        ({"layout": "rec", "image_format": "webp"}, "jpeg or png"),
        ({"verify": "yes"}, "True or False"),
        ({"same_person": 1}, "True or False"),
    ],
)
def test_bad_settings(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        plan_dataset({"a": 10}, **settings)


def test_crops_have_arcface_size_by_default() -> None:
    assert plan_dataset({"a": 1}, crop="arcface").size == 112
    assert plan_dataset({"a": 1}, crop="arcface", size=96).size == 96
    assert plan_dataset({"a": 1}).size is None


# --- shards ---------------------------------------------------------------------------------------------------------


@given(plans())
def test_shards_partition_identities_and_images(plan: DatasetPlan) -> None:
    k, shards = plan.images_per_identity, [plan.shard(i) for i in range(plan.shards)]
    identities = [i for s in shards for i in range(s.first_identity, s.first_identity + s.identities)]
    images = [i for s in shards for i in range(s.first_image, s.first_image + s.images)]
    assert identities == list(range(sum(plan.quota.values())))
    assert images == list(range(len(identities) * k)) == list(range(plan.images))
    for i, shard in enumerate(shards):
        assert shard.number == i
        assert shard.first_image == shard.first_identity * k
        assert shard.images == shard.identities * k
        assert 0 < shard.images <= plan.shard_size
        assert all(plan.shard_of(j) == shard for j in range(shard.first_image, shard.first_image + shard.images))
    # No shard could have held one more identity, except for the last.
    assert all(s.images + k > plan.shard_size for s in shards[:-1])


@given(plans())
def test_numbers_outside_are_refused(plan: DatasetPlan) -> None:
    for number in (-1, plan.shards):
        with pytest.raises(DataError, match=f"0 … {plan.shards - 1}"):
            plan.shard(number)
    for number in (-1, plan.images):
        with pytest.raises(DataError, match=f"0 … {plan.images - 1}"):
            plan.shard_of(number)


@given(plans())
def test_keys_name_images(plan: DatasetPlan) -> None:
    keys = [plan.key(i) for i in range(plan.images)]
    k = plan.images_per_identity
    assert [int(key.split("_")[0]) * k + int(key.split("_")[1]) for key in keys] == list(range(plan.images))
    assert keys == sorted(keys)
    assert not any("." in key for key in keys)  # webdataset splits names there


@given(st.dictionaries(st.integers(0, 11).map(str), st.integers(1, 60), min_size=1))
def test_every_group_is_spread_evenly(quota: dict[str, int]) -> None:
    """A prefix is off a group's share p of it by at most (1 + p·(G − 2)) / 2: every group is at most half a turn off
    the same clock."""
    plan = plan_dataset(quota)
    counts, n, g = np.array(list(quota.values())), plan.identities, len(quota)
    assert np.bincount(plan.order, minlength=g).tolist() == counts.tolist()
    had = np.cumsum(plan.order[:, None] == np.arange(g), axis=0)
    share = counts / n
    off = np.abs(had - share * np.arange(1, n + 1)[:, None])
    assert (off <= (1 + share * max(0, g - 2)) / 2 + 1e-9).all()


def test_equal_groups_take_turns() -> None:
    assert plan_dataset(3, groups=GROUPS).order.tolist() == [0, 1, 2, 3] * 3


# --- on disk --------------------------------------------------------------------------------------------------------


@given(plans())
def test_plans_survive_json(plan: DatasetPlan) -> None:
    read = DatasetPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert read == plan
    assert list(read.quota) == list(plan.quota)
    assert read.digest == plan.digest
    assert (read.order == plan.order).all()


@given(plans(), plans())
def test_digests_are_equal_where_resolved_plans_are(a: DatasetPlan, b: DatasetPlan) -> None:
    a, b = a.resolve(GROUPS), b.resolve(GROUPS)
    assert (a.digest == b.digest) == (a == b)


def test_whole_and_real_numbers_make_the_same_plan() -> None:
    for psi in (1, 1.0, np.float64(1)):
        assert plan_dataset({"a": 1}, truncation_psi=psi).digest == plan_dataset({"a": 1}).digest


def test_order_of_the_names_does_not_matter_once_resolved() -> None:
    a = plan_dataset({"male-light": 2, "female-light": 3}).resolve(GROUPS)
    b = plan_dataset({"female-light": 3, "male-light": 2}).resolve(GROUPS)
    assert a.digest == b.digest
    assert a.order.tolist() == b.order.tolist()


def test_every_field_changes_the_digest() -> None:
    plan = plan_dataset({"a": 10, "b": 10})
    other: dict[str, Any] = {
        "quota": {"a": 10, "b": 11},
        "images_per_identity": 2,
        "shard_size": 100,
        "seed": 1,
        "method": "screen",
        "truncation_psi": 0.7,
        "candidates": 8,
        "perturbation": 0.3,
        "verify": True,
        "fmr": 1e-3,
        "same_person": True,
        "budget": 7,
        "layout": "rec",
        "image_format": "png",
        "quality": 90,
        "subsampling": "4:2:0",
        "size": 112,
        "crop": "arcface",
        "forward_batch": 8,
    }
    assert set(other) == {field.name for field in dataclasses.fields(DatasetPlan)}
    digests = {dataclasses.replace(plan, **{name: value}).digest for name, value in other.items()}
    assert len(digests | {plan.digest}) == len(other) + 1
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_plans_are_the_same_in_another_process() -> None:
    code = (
        "from fairface_synth.export import plan_dataset;"
        "p = plan_dataset({'b': 50, 'a': 33, 'c': 9}, 7, 50);"
        "print(p.digest, p.order.tolist())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    plan = plan_dataset({"b": 50, "a": 33, "c": 9}, 7, 50)
    assert done.stdout.strip() == f"{plan.digest} {plan.order.tolist()}"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "version 2[\\s\\S]*update fairface_synth"),
        ({"version": "1"}, "no plan that this version can read"),
        ({"format": "something"}, "no plan"),
        ({"extra": 1}, "damaged[\\s\\S]*extra"),
        ({"seed": None}, "seed"),
        ({"quota": {}}, "not all 0"),
        ({"quota": {"a": -4, "b": 8}}, "whole numbers"),
        ({"quota": ["a"]}, "a quota counts"),
        ({"perturbation": "much"}, "perturbation is a number"),
    ],
)
def test_strange_files_are_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        DatasetPlan.from_dict(plan_dataset({"a": 3}).to_dict() | change)


@pytest.mark.parametrize("values", [None, [], "plan", 3, {}])
def test_other_json_is_no_plan(values: Any) -> None:
    with pytest.raises(DataError, match="no plan that this version can read"):
        DatasetPlan.from_dict(values)


def test_a_field_is_missing() -> None:
    values = plan_dataset({"a": 3}).to_dict()
    del values["forward_batch"]
    with pytest.raises(DataError, match="damaged"):
        DatasetPlan.from_dict(values)


def test_text() -> None:
    plan = plan_dataset({"dark-female": 50_000, "light-male": 50_000}, images_per_identity=45)
    text = str(plan)
    for part in (
        "100,000 identities × 45 = 4,500,000 images",
        "451 shards",
        "≤ 9,990",
        "dark-female 50,000",
        "ψ = 1",
    ):
        assert part in text
