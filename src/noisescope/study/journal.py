"""The journal of a study that runs: for each finished unit a block of lines, closed by a seal.

    {"journal": ...}                     once, at the head: which study, and after which stage
    {"condition": ..., "draw": ...}      a record per line
    {"witnesses": ..., "notes": ...}
    {"unit": ..., "lines": [...], "sha256": ...}

A seal holds eight digits of each line's digest, and a digest over the seal before it and its own
block: a line that was changed, removed or moved breaks it. What follows the last seal is what a
killed process left behind: it is cut off, and measured again.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from noisescope.errors import InputError
from noisescope.measure import UnitResult
from noisescope.study.files import append, cut, open_appending, read_bytes, sha256, to_json

JOURNAL = "records.jsonl"
_SEAL = b'{"unit":'
_MARK_DIGITS = 8


@dataclass(frozen=True)
class Contents:
    """What a journal holds.

    Attributes:
        results: Of the finished units, in the order they were finished.
        last_digest: Of the last seal; empty where there is none.
        size: Bytes up to the end of the last seal.
        total_size: Bytes in all.
        after: Finished stages of the study when the journal was begun; None in an empty one.
    """

    results: tuple[UnitResult, ...] = ()
    last_digest: str = ""
    size: int = 0
    total_size: int = 0
    after: int | None = None


def read_journal(path: Path, study: str) -> Contents:
    """Reads what is sealed; an absent journal is an empty one.

    Args:
        path: The journal.
        study: Identity of the study that it must belong to.

    Raises:
        InputError: Something in it was changed, removed or moved, or it is another study's.
    """
    data = read_bytes(path) or b""
    lines = data.split(b"\n")[:-1]  # what follows the last newline is no whole line
    first, digest, after = 0, "", None
    results: list[UnitResult] = []
    for number, line in enumerate(lines):
        if not line.startswith(_SEAL):
            continue
        block = lines[first:number]
        seal = _decoded_seal(line)
        if seal is None or line != _seal_line(seal["unit"], block, digest):
            raise InputError(_broken(path, first, block, seal))
        if first == 0:
            after = _read_head(path, block[0], study)
            block = block[1:]
        results.append(_decoded(seal["unit"], block))
        first, digest = number + 1, seal["sha256"]
    size = sum(len(line) + 1 for line in lines[:first])
    return Contents(tuple(results), digest, size, len(data), after)


class Journal:
    """A journal that is open for appending."""

    def __init__(self, path: Path, head: bytes, contents: Contents) -> None:
        self.path = path
        self._head, self._digest, self._size = head, contents.last_digest, contents.size
        self._descriptor = open_appending(path)
        if contents.total_size > contents.size:
            cut(self._descriptor, contents.size)

    @classmethod
    def open(cls, path: Path, study: str, after: int, contents: Contents) -> Self:
        """Opens a journal where its contents end; a torn tail is cut off.

        Args:
            path: The journal; made where it is not there.
            study: Identity of its study.
            after: Finished stages of the study.
            contents: What `read_journal` found.

        Raises:
            OSError: It cannot be opened or cut.
        """
        return cls(path, to_json({"journal": {"study": study, "after": after}}), contents)

    def append(self, result: UnitResult) -> None:
        """Appends a finished unit with one write, and syncs it; it is kept whole or not at all.

        Raises:
            OSError: It could not be written, and the journal is as it was.
        """
        block = [*_encoded(result)] if self._size else [self._head, *_encoded(result)]
        seal = _seal_line(result.unit, block, self._digest)
        data = b"".join(line + b"\n" for line in (*block, seal))
        append(self._descriptor, data, self._size)
        self._size += len(data)
        self._digest = json.loads(seal)["sha256"]

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


def decoded(result: UnitResult) -> UnitResult:
    """Returns a result as it comes back from a journal."""
    return UnitResult.from_json(json.loads(to_json(result.as_json())))


def _encoded(result: UnitResult) -> Iterator[bytes]:
    entry = result.as_json()
    yield from map(to_json, entry["records"])
    yield to_json({"witnesses": entry["witnesses"], "notes": entry["notes"]})


def _decoded(unit: str, block: Sequence[bytes]) -> UnitResult:
    records = [json.loads(line) for line in block[:-1]]
    return UnitResult.from_json({"unit": unit, "records": records, **json.loads(block[-1])})


def _seal_line(unit: str, block: Sequence[bytes], digest_before: str) -> bytes:
    entry: dict[str, Any] = {"unit": unit, "lines": [_mark(line) for line in block]}
    chained = b"\n".join([digest_before.encode(), *block, to_json(entry)])
    return to_json({**entry, "sha256": sha256(chained)})


def _mark(line: bytes) -> str:
    return sha256(line)[:_MARK_DIGITS]


def _decoded_seal(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        seal = json.loads(line)
        if isinstance(seal.get("unit"), str) and isinstance(seal.get("lines"), list):
            return dict(seal)
    return None


def _read_head(path: Path, line: bytes, study: str) -> int:
    """Returns how many stages were finished when the journal was begun."""
    head = json.loads(line)["journal"]
    if head["study"] != study:
        raise InputError(
            f"{path} belongs to another study than the manifest beside it: restore the one that "
            "was there, or name another directory"
        )
    return int(head["after"])


def _broken(path: Path, first: int, block: Sequence[bytes], seal: dict[str, Any] | None) -> str:
    """Says which line of a block that begins with line `first`, from 0, is not as it was."""
    begin, end = first + 1, first + len(block) + 1
    marks, sealed = [_mark(line) for line in block], [] if seal is None else seal["lines"]
    if seal is None or marks == sealed:  # the seal itself, or a block that was moved here
        where = f"line {end}" if seal is None else f"something in lines {begin} to {end}"
    elif len(marks) != len(sealed):
        where = f"something in lines {begin} to {end}"
    else:
        where = f"line {begin + [a == b for a, b in zip(marks, sealed, strict=True)].index(False)}"
    return (
        f"{path}: {where} changed since it was written: restore the file from a copy, or delete "
        f"everything from line {begin} on, to have it measured again"
    )
