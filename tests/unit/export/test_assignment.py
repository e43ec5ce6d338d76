"""An assignment says what it says, or one line of what is wrong."""

import json

import pytest
from helpers.assigned import mixed

from noisescope.assignment import Assignment
from noisescope.errors import InputError


def test_it_survives_json():
    assignment = mixed(operand="both")
    assert Assignment.from_json(json.loads(json.dumps(assignment.as_json()))) == assignment
    assert list(Assignment.from_json(assignment.as_json()).formats) == list(assignment.formats)


def test_what_was_checked_does_not_change_in_the_callers_hands():
    formats = {"a": "int8", "b": "int8"}
    assignment = Assignment(formats, bound=(("a", "b"),))
    formats["b"] = "nvfp4"
    assert assignment.formats["b"] == "int8"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"formats": {"a": "int8"}, "kept": ("a",)}, "module 'a' is assigned and kept"),
        ({"formats": {}, "kept": ("a", "a")}, "module 'a' is kept twice"),
        ({"formats": {"a": "int8"}, "operand": "activations"}, "operand 'activations'"),
        ({"formats": {"a": "int8"}, "dtype": "bf16"}, "dtype 'bf16': give 'bfloat16'"),
        ({"formats": {"a..b": "int8"}}, r"module name 'a\.\.b'"),
        ({"formats": {"a\nb": "int8"}}, "printable"),
        ({"formats": {"a": ""}}, "format '' of module 'a'"),
        (
            {"formats": {"q": "int8", "k": "nvfp4"}, "bound": (("q", "k"),)},
            "bound modules differ: q int8, k nvfp4",
        ),
        (
            {"formats": {"q": "int8"}, "kept": ("k",), "bound": (("q", "k"),)},
            "bound modules differ: q int8, k kept in bfloat16",
        ),
        ({"formats": {"q": "int8"}, "bound": (("q", "k"),)}, "bound module 'k' is neither"),
    ],
)
def test_what_cannot_be_is_told_when_it_is_made(fields, told):
    with pytest.raises(InputError, match=told) as caught:
        Assignment(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"formats": ["a"]}, {"kept": "a"}, {"bound": ["ab"]}, {"dtype": None}]
)
def test_json_of_another_kind_is_refused(change):
    with pytest.raises(InputError, match=f"assignment with {next(iter(change))}"):
        Assignment.from_json(mixed().as_json() | change)
