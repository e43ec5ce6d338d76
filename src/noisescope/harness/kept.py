"""An evaluation in a directory: what was asked, and one file per condition, draw and task.

A file is written whole or not at all, and ends with the digest of the rest, so a run that was
stopped goes on with what lacks, and what was changed by hand is found. More conditions, draws and
tasks may be added; what the numbers depend on may not change.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from noisescope.errors import InputError, NoisescopeError
from noisescope.harness.answers import Answer, Run, plain, unplain
from noisescope.inject import Witness

MANIFEST, RUNS = "evaluation.json", "runs"
_SCHEMA = 1
_BY_NAME = ("conditions", "tasks")


class Kept:
    """The runs of an evaluation that are kept, in a directory or, without one, nowhere.

    Args:
        directory: Where; None: nothing is kept.
        asked: What every number depends on, by the name the user knows it by: `lasting`, the same
            for all runs; `conditions` and `tasks`, by name. Besides, `batch_size` of the first time
            and `num_fewshot` by task, which are kept and not held against anything.

    Attributes:
        directory: Where.
        asked: The same of all that is in the directory, now and from before.
    """

    def __init__(self, directory: Path | None, asked: Mapping[str, Any]) -> None:
        self.directory = directory
        self.asked = json.loads(json.dumps(plain(asked)))
        if directory is not None:
            self._open(directory)

    def read(self, condition: str, draw: int, task: str) -> Run | None:
        """Returns a run that is kept, or None.

        Raises:
            InputError: Its file was changed.
        """
        if self.directory is None:
            return None
        path = self._path(condition, draw, task)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        return _run_of(path, data)

    def all_runs(self) -> list[Run]:
        """Returns every run that is kept, of this command and of those before it.

        Raises:
            InputError: A file was changed.
        """
        if self.directory is None:
            return []
        found = []
        try:
            for path in sorted((self.directory / RUNS).glob("*.jsonl")):
                run = _run_of(path, path.read_bytes())
                if path == self._path(run.condition, run.draw, run.task):
                    found.append(run)
        except OSError as error:
            raise InputError(f"cannot read {self.directory}: {error.strerror}") from error
        return found

    def write(self, run: Run) -> None:
        """Keeps a run.

        Raises:
            NoisescopeError: It cannot be written; the others are kept all the same.
        """
        if self.directory is not None:
            replace_file(self._path(run.condition, run.draw, run.task), _bytes_of(run))

    def _path(self, condition: str, draw: int, task: str) -> Path:
        """Returns the file of a run; names of tasks and conditions may hold anything."""
        name = hashlib.sha256(json.dumps([condition, draw, task]).encode()).hexdigest()[:16]
        return Path(self.directory or ".") / RUNS / f"{name}.jsonl"

    def _open(self, directory: Path) -> None:
        path = directory / MANIFEST
        held = _read_manifest(path)
        if held is None and directory.is_dir() and any(directory.iterdir()):
            raise InputError(f"--out {directory} holds something else: name a new directory")
        if held is not None:
            _check_same(directory, held, self.asked)
            for part in (*_BY_NAME, "num_fewshot"):
                self.asked[part] = {**held.get(part, {}), **self.asked.get(part, {})}
            if "batch_size" in held:
                self.asked["batch_size"] = held["batch_size"]
        try:
            (directory / RUNS).mkdir(parents=True, exist_ok=True)
            _sync_directory(directory)
        except OSError as error:
            raise InputError(f"cannot make {directory}: {error.strerror}; name another") from error
        if self.asked != held:
            text = json.dumps({"schema": _SCHEMA, **self.asked}, indent=1)
            replace_file(path, (text + "\n").encode())


def is_evaluation(directory: Path) -> bool:
    """Returns whether a directory holds an evaluation."""
    try:
        return (directory / MANIFEST).is_file()
    except OSError:  # no name of a directory, such as one that is too long
        return False


def _read_manifest(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError:
        entry = {}
    if not _is_manifest(entry):
        raise InputError(f"{path} is no evaluation of this noisescope: name another directory")
    return {name: value for name, value in entry.items() if name != "schema"}


def _is_manifest(entry: Any) -> bool:
    """Tells whether a file holds what is looked up in it."""
    return (
        isinstance(entry, dict)
        and entry.get("schema") == _SCHEMA
        and all(isinstance(entry.get(part), dict) for part in ("lasting", *_BY_NAME))
        and isinstance(entry.get("num_fewshot", {}), dict)
        and isinstance(entry.get("batch_size", 1), int)
        and entry.get("batch_size", 1) >= 1
    )


def _check_same(directory: Path, held: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises InputError where another question is asked than was, naming what differs."""
    pairs = [(name, held["lasting"].get(name), value) for name, value in asked["lasting"].items()]
    for part in _BY_NAME:
        pairs += [
            (f"{part.removesuffix('s')} {name!r}", held[part][name], value)
            for name, value in asked[part].items()
            if name in held[part]
        ]
    for name, before, now in pairs:
        if before != now:
            raise InputError(
                f"--out {directory} holds another evaluation: {name} was {_short(before)} and is "
                f"{_short(now)} now; name another directory, or ask the same"
            )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _bytes_of(run: Run) -> bytes:
    head = {
        "condition": run.condition,
        "draw": run.draw,
        "task": run.task,
        "aggregates": plain(run.aggregates),
        "higher_is_better": dict(run.higher_is_better),
        "output_type": run.output_type,
        "witness": plain(run.witness.as_json()),
        "notes": list(run.notes),
    }
    lines = [json.dumps(entry) for entry in (head, *(a.as_json() for a in run.answers))]
    body = "".join(f"{line}\n" for line in lines).encode()
    return body + f'{{"sha256": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def _run_of(path: Path, data: bytes) -> Run:
    body, _, last = data.rstrip(b"\n").rpartition(b"\n")
    body += b"\n"
    with suppress(ValueError, KeyError, TypeError):
        if json.loads(last)["sha256"] == hashlib.sha256(body).hexdigest():
            head, *answers = (json.loads(line) for line in body.splitlines())
            witness = Witness.from_json(unplain(head.pop("witness")))
            head["aggregates"] = unplain(head["aggregates"])
            head["notes"] = tuple(head["notes"])
            return Run(**head, witness=witness, answers=tuple(map(Answer.from_json, answers)))
    raise InputError(
        f"{path} was changed since it was written (its digest does not fit): delete it to have it "
        "measured again, or name another directory"
    )


def replace_file(path: Path, data: bytes) -> None:
    """Gives a file these bytes: whoever looks sees the old ones or the new ones, never a part.

    The new ones outlive a loss of power.

    Raises:
        NoisescopeError: It cannot be written.
    """
    made = path.with_name(path.name + ".new")
    try:
        with made.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            made.unlink()
        raise NoisescopeError(
            f"cannot write {path}: {error.strerror}; what was finished is kept: mend that and run "
            "the same command again"
        ) from error


def _sync_directory(path: Path) -> None:
    """Makes names that were given in a directory outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
