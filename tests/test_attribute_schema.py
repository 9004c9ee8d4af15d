"""Schemas of attributes: names as people write them, refused ones, equality."""

from __future__ import annotations

import pytest

from fairface_synth.attribute_schema import MAAD_FACE, AttributeSchema
from fairface_synth.errors import GroupError

SCHEMA = AttributeSchema(("Male", "Smiling", "Wearing_Hat"), noisy={"hat": "half of them are hair"}, source="a test")


def test_maad_face_has_its_47_attributes_and_the_published_warnings() -> None:
    assert len(MAAD_FACE) == 47
    assert set(MAAD_FACE.noisy) == {
        "Brown_Eyes",
        "Bags_Under_Eyes",
        "Round_Face",
        "Big_Lips",
        "Receding_Hairline",
        "Shiny_Skin",
    }
    assert all(figure in MAAD_FACE.noisy["Brown_Eyes"] for figure in (".68", ".44", ".85"))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("male", "Male"),
        ("MIDDLE AGED", "Middle_Aged"),
        ("5 o'Clock Shadow", "5_o_Clock_Shadow"),
        ("hat", "Wearing_Hat"),
        ("wearing lipstick", "Wearing_Lipstick"),
        ("No Eyewear", "No_Eyewear"),
        ("Earrings", "Wearing_Earrings"),
    ],
)
def test_names_are_matched_as_people_write_them(written: str, name: str) -> None:
    assert MAAD_FACE.names[MAAD_FACE.index(written)] == name
    assert written in MAAD_FACE


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(GroupError, match="did you mean Smiling"):
        MAAD_FACE.index("smilng")
    assert "smilng" not in MAAD_FACE
    assert 3 not in MAAD_FACE


@pytest.mark.parametrize(
    "names", [(), ("a", "A"), ("Hat", "Wearing Hat"), ("identity", "a"), ("a.reliability",), ("_",), "Male", (1, 2)]
)
def test_names_that_cannot_be_attributes_are_refused(names) -> None:
    with pytest.raises(GroupError):
        AttributeSchema(names)


def test_a_schema_is_its_names() -> None:
    assert AttributeSchema(("a", "b")) == AttributeSchema(("a", "b"), {"a": "bad"}, "x")
    assert len({AttributeSchema(("a", "b")), AttributeSchema(("a", "b"), {"a": "bad"})}) == 1
    assert AttributeSchema(("a", "b")) != AttributeSchema(("b", "a"))
    assert SCHEMA.noisy == {"Wearing_Hat": "half of them are hair"}
    assert SCHEMA.subset(["hat", "male"]).names == ("Wearing_Hat", "Male")
    assert not SCHEMA.subset(["male"]).noisy
    with pytest.raises(GroupError):
        AttributeSchema(("a",), {"b": "bad"})
    with pytest.raises(GroupError):
        SCHEMA.subset("male")
    with pytest.raises(GroupError):
        SCHEMA.subset([])
    with pytest.raises(GroupError):
        AttributeSchema(None)
