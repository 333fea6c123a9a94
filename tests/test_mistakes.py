"""Every mistake in a document is told, each with its path, and what is probably meant."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vf_manager.errors import InvalidInput
from vf_manager.mistakes import caught, type_mistakes


class Colour(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    red: int
    deep_blue: int = 0


class Paint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    name: str
    colour: Colour | tuple[Colour, ...]
    shades: tuple[int | str, ...] | None = None
    labels: dict[str, dict[str, str]] = {}


class Shop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    paints: tuple[Paint, ...]


RIGHT: dict[str, Any] = {"name": "a", "colour": {"red": 1}}


def mistakes(*paints: Any) -> list[str]:
    return list(type_mistakes({"paints": list(paints)}, Shop))


def test_nothing_is_wrong() -> None:
    assert mistakes(RIGHT, RIGHT | {"colour": [{"red": 1}], "shades": [1, "x"], "labels": {"a": {}}}) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colur": 1}, "paints[0].colur: unknown key (its value is 1); did you mean colour?"),
        ({"Name": "b"}, "paints[0].Name: unknown key (its value is 'b'); did you mean name?"),
        ({"zzz": None}, "known here: colour, labels, name, shades"),
        (
            {"deepBlue": 3},
            "paints[0].deepBlue: unknown key (its value is 3); it belongs into paints[0].colour",
        ),
        (
            {"colour": {"red": 1, "shades": []}},
            "paints[0].colour.shades: unknown key (its value is []); it belongs one level up, beside colour",
        ),
        (
            {"colour": [{"red": 1}, {"red": 1, "labels": {}}]},
            "paints[0].colour[1].labels: unknown key (its value is {}); it belongs one level up, beside"
            " colour",
        ),
        ({"colour": {}}, "paints[0].colour: object missing required field `red`"),
        ({"colour": [{"red": "1"}]}, "paints[0].colour[0].red: expected `int`, got `str` ('1')"),
        ({"colour": 7}, "paints[0].colour: expected `object | array`, got `int` (7)"),
        ({"name": 7}, "paints[0].name: expected `str`, got `int` (7); put quotes around it"),
        ({"labels": {"a": {"b": 2}}}, "paints[0].labels.a.b: expected `str`, got `int` (2); put quotes"),
        ({"shades": [[]]}, "paints[0].shades[0]: expected `int | str`, got `array`"),
    ],
)
def test_one_thing_is_wrong(change: dict[str, Any], said: str) -> None:
    (line,) = mistakes(RIGHT | change)
    assert said in line


def test_many_things_are_wrong() -> None:
    lines = mistakes({"name": 1, "colour": {"rde": 1}}, 5, RIGHT | {"shades": [1.5, {}]})
    assert [line.partition(": ")[0] for line in lines] == [
        "paints[0].name",
        "paints[0].colour.rde",
        "paints[0].colour",
        "paints[1]",
        "paints[2].shades[0]",
        "paints[2].shades[1]",
    ]
    assert list(type_mistakes([], Shop)) == ["the file: expected `object`, got `array`"]


def test_what_a_check_raises_is_caught() -> None:
    def refuse(value: int) -> None:
        if value:
            raise InvalidInput("a", value, "nothing")

    assert list(caught(refuse, 0)) == []
    assert [str(e) for e in caught(refuse, 1)] == ["a: 1 is not valid; expected nothing"]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["paints", "name", "colour", "red", "shades", "x"]), inner)
    ),
    max_leaves=12,
)


@given(values)
def test_something_is_told_exactly_when_the_document_is_refused(value: object) -> None:
    try:
        msgspec.convert(value, Shop)
        right = True
    except msgspec.ValidationError:
        right = False
    lines = list(type_mistakes(value, Shop))
    assert right == (lines == [])
    assert all(line.isprintable() for line in lines)
