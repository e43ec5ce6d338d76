"""The assignment itself as JSON, for whatever has no export here; it reads back to what it was."""

import json
from collections.abc import Iterable

from noisescope.assignment import Assignment
from noisescope.errors import InputError
from noisescope.export.scheme import Export, check_names, read_scheme

SCHEMA = "noisescope.assignment"
VERSION = 1


def plain(assignment: Assignment, names: Iterable[str]) -> Export:
    """Returns the assignment, a JSON file with the version of its schema.

    Beside the assignment stand the bits of each format's element, scales not counted: what a scale
    costs depends on the shape of a matrix.

    Args:
        assignment: The assignment.
        names: Names of all modules of the model.

    Raises:
        InputError: A module is none of the model's, or a format is unknown.
    """
    check_names(assignment, names)
    given = dict.fromkeys(assignment.formats.values())
    entry = {
        "schema": SCHEMA,
        "version": VERSION,
        **assignment.as_json(),
        "element_bits": {name: read_scheme(name).bits for name in given},
    }
    return Export("assignment.json", json.dumps(entry, indent=1) + "\n")


def read_plain(text: str) -> Assignment:
    """Returns the assignment of a file that `plain` wrote.

    Raises:
        InputError: It is no such file, or one of another version.
    """
    try:
        entry = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"assignment: not JSON, {error}; give a file that export wrote") from None
    if not isinstance(entry, dict) or entry.get("schema") != SCHEMA:
        raise InputError(f"assignment: no schema {SCHEMA!r} in it; give a file that export wrote")
    if entry.get("version") != VERSION:
        raise InputError(
            f"assignment of version {entry.get('version')!r}: this program reads {VERSION}"
        )
    return Assignment.from_json(entry)
