"""The plain file reads back to the assignment it was."""

import json

import pytest
from helpers.assigned import all_names, mixed

from noisescope.errors import InputError
from noisescope.export import plain, read_plain


@pytest.mark.parametrize("operand", ["weights", "both"])
def test_it_reads_back(operand):
    assignment = mixed(operand=operand)
    export = plain(assignment, all_names())
    again = read_plain(export.text)
    assert again == assignment
    assert list(again.formats) == list(assignment.formats)


def test_bits_of_elements_stand_beside():
    entry = json.loads(plain(mixed(), all_names()).text)
    assert entry["element_bits"] == {"mxfp4": 4, "int4_g32": 4, "bf16": 16}
    assert (entry["schema"], entry["version"]) == ("noisescope.assignment", 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not JSON"),
        ("[]", "no schema"),
        ("{}", "no schema"),
        ('{"schema": "noisescope.assignment", "version": 2}', "version 2"),
        ('{"schema": "noisescope.assignment", "version": 1}', "assignment with formats None"),
    ],
)
def test_another_file_is_refused(text, told):
    with pytest.raises(InputError, match=told):
        read_plain(text)
