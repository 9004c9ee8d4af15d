from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fairface_synth as ffs
from fairface_synth import GroupError, Groups, ShapeError, balanced_quota, parse

GROUPS = Groups(
    {
        "gender": ["female", "male"],
        "race": ["black", "east-asian", "latino_hispanic"],
        "age": ["young", "old"],
    }
)


def test_names_and_ids_are_inverse() -> None:
    assert len(GROUPS) == 12
    assert GROUPS.names[:3] == ("female-black-young", "female-black-old", "female-east-asian-young")
    for i, name in enumerate(GROUPS.names):
        assert GROUPS.id(name) == i
        assert GROUPS.name(i) == name
    assert GROUPS.name(-1) == "unsure"


@given(st.data())
def test_values_may_come_in_any_order_and_case(data: st.DataObject) -> None:
    i = data.draw(st.integers(0, len(GROUPS) - 1))
    values = list(itertools.product(*GROUPS.attributes.values()))[i]
    shuffled = data.draw(st.permutations(values))
    joiner = data.draw(st.sampled_from(["-", " ", "_"]))
    text = joiner.join(shuffled)
    assert GROUPS.id(data.draw(st.sampled_from([text, text.upper(), text.title()]))) == i


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("black", {"black"}),
        ("black-female", {"black", "female"}),
        ("gender=female, race=*", {"female"}),
        ("race=east asian", {"east-asian"}),
        ("*", set()),
        ("balanced", set()),
        ("old-*", {"old"}),
    ],
)
def test_partial_names_and_wildcards(spec: str, expected: set[str]) -> None:
    combos = list(itertools.product(*GROUPS.attributes.values()))
    assert parse(GROUPS, spec) == tuple(i for i, c in enumerate(combos) if expected <= set(c))


def test_lists_keep_order_and_drop_duplicates() -> None:
    assert GROUPS.parse(["male-black-old", 0, "female-black-young"]) == (7, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blak", "did you mean 'black'"),
        ("femal-old", "did you mean 'female'"),
        ("gendr=female", "did you mean 'gender'"),
        ("race=blck", "did you mean 'black'"),
        ("male-female", "two values"),
        (12, "no such group id"),
        (-1, "unsure"),
        ([], "names no group"),
        (True, "truth value"),
    ],
)
def test_unknown_names_list_the_near_misses(spec: object, message: str) -> None:
    with pytest.raises(GroupError, match=message):
        GROUPS.parse(spec)  # type: ignore[arg-type]


def test_a_partial_name_is_not_one_group() -> None:
    with pytest.raises(GroupError, match="names 6 groups"):
        GROUPS.id("female")


def test_a_value_of_two_attributes_must_be_qualified() -> None:
    groups = Groups({"race": ["black", "other"], "hair": ["long", "other"]})
    with pytest.raises(GroupError, match="race=other"):
        groups.parse("other")
    assert groups.parse("race=other,hair=other") == (3,)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"a": []},
        {"a": "female"},
        {"a": ["x", "X"]},
        {"a": ["all"]},
        {"a": [0, 1]},
        {"a": ["x=y"]},
        {"a": ["x", "x-y"], "b": ["y-z", "z"]},  # two groups called x-y-z
    ],
)
def test_bad_attributes(attributes: dict) -> None:
    with pytest.raises(GroupError):
        Groups(attributes)


def test_groups_are_equal_and_hashable() -> None:
    same = Groups(dict(GROUPS.attributes))
    assert same == GROUPS
    assert hash(same) == hash(GROUPS)
    assert Groups({"a": ["x"]}) != GROUPS
    a, b = {"g": ["f", "m"], "t": ["l", "d"]}, {"t": ["l", "d"], "g": ["f", "m"]}
    assert Groups(a) != Groups(b), "ids depend on the order of the attributes"


def test_canonical_names_are_ids_even_where_values_are_ambiguous() -> None:
    for groups in (
        Groups({"race": ["white", "black", "other"], "gender": ["female", "male", "other"]}),
        Groups({"race": ["white", "white-hispanic"], "ethnicity": ["hispanic", "other"]}),
    ):
        assert [groups.id(name) for name in groups] == list(range(len(groups)))


def test_ids_may_be_numpy_or_torch_numbers() -> None:
    import numpy as np

    assert GROUPS.parse(np.int64(3)) == GROUPS.parse(torch.tensor(3)) == (3,)
    assert GROUPS.parse(torch.tensor([3, 1])) == (3, 1)


def test_counting_refuses_what_is_no_group() -> None:
    assert int(GROUPS.count(torch.tensor([3], dtype=torch.int32))[3]) == 1
    for bad in (-2, 12):
        with pytest.raises(GroupError, match="out of range"):
            GROUPS.count(torch.tensor([bad]))
    with pytest.raises(GroupError, match="no such group"):
        GROUPS.value_indices(99)


# --- quotas -------------------------------------------------------------------------------------------------------


@given(
    st.integers(0, 10_000),
    st.sampled_from(["*", "black", ["old", "male-black-young"], {"black": 2, "male": 1}]),
)
def test_quota_sums_exactly_and_differs_by_less_than_one(n: int, spec: object) -> None:
    quota = balanced_quota(GROUPS, n, spec)  # type: ignore[arg-type]
    assert int(quota.sum()) == n
    if not isinstance(spec, dict):
        ids = list(GROUPS.parse(spec))  # type: ignore[arg-type]
        inside = quota[ids]
        assert int(inside.sum()) == n
        assert int(inside.max() - inside.min()) <= 1


def test_custom_shares() -> None:
    groups = Groups({"tone": ["light", "dark"], "gender": ["female", "male"]})
    assert balanced_quota(groups, 80, {"dark": 3, "light": 1}).tolist() == [10, 10, 30, 30]
    assert balanced_quota(groups, 10, {"dark-female": 1}).tolist() == [0, 0, 10, 0]


@pytest.mark.parametrize("spec", [{"black": -1}, {"black": float("nan")}, {"black": 0}])
def test_bad_shares(spec: dict) -> None:
    with pytest.raises(GroupError):
        balanced_quota(GROUPS, 10, spec)


# --- tensors ------------------------------------------------------------------------------------------------------


def _probabilities(n: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        a: torch.rand(n, len(v), generator=generator, dtype=torch.float64).softmax(1)
        for a, v in GROUPS.attributes.items()
    }


def test_assign_takes_the_most_probable_value_of_each_attribute() -> None:
    p = _probabilities(50)
    ids = GROUPS.assign(p)
    for row, i in enumerate(ids.tolist()):
        best = tuple(v[int(p[a][row].argmax())] for a, v in GROUPS.attributes.items())
        assert GROUPS.name(i) == "-".join(best)


def test_the_gate_counts_the_unsure() -> None:
    p = {"gender": torch.tensor([[0.9, 0.1], [0.55, 0.45]]), "race": torch.eye(3)[:2], "age": torch.eye(2)}
    ids = GROUPS.assign(p, min_confidence=0.6)
    assert ids.tolist() == [0, -1]
    shares = ffs.group_shares(GROUPS, ids)
    assert (shares.unsure, shares.total, int(shares.counts.sum())) == (1, 2, 1)


def test_joint_and_marginals_agree() -> None:
    p = _probabilities(20)
    joint = GROUPS.joint(p)
    assert joint.shape == (20, 12)
    torch.testing.assert_close(joint.sum(1), torch.ones(20, dtype=torch.float64))
    for attribute in GROUPS.attributes:
        torch.testing.assert_close(GROUPS.marginal(joint, attribute), p[attribute])


def test_value_ids_invert_the_product() -> None:
    ids = torch.tensor([*range(12), -1])
    parts = [GROUPS.value_ids(ids, a) for a in GROUPS.attributes]
    assert torch.stack(parts).T[:12].tolist() == [list(x) for x in itertools.product(range(2), range(3), range(2))]
    assert [int(p[-1]) for p in parts] == [-1, -1, -1]


def test_counts_match_bincount() -> None:
    ids = torch.randint(-1, 12, (500,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(GROUPS.count(ids), torch.bincount(ids[ids >= 0], minlength=12))


def test_missing_attribute_and_wrong_width() -> None:
    p = _probabilities(3)
    with pytest.raises(GroupError, match="race"):
        GROUPS.assign({"gender": p["gender"], "age": p["age"]})
    with pytest.raises(ShapeError, match="width"):
        GROUPS.assign({**p, "age": torch.ones(3, 3)})
    with pytest.raises(GroupError, match="did you mean 'gender'"):
        GROUPS.marginal(torch.ones(12), "gendre")
