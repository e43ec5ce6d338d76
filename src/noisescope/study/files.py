"""How a study touches the disk: a file is replaced whole or not at all, and synced to count.

Every call that changes something on the disk is here, but for the lock's. What is written, and in
which order, is decided elsewhere.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from noisescope.errors import InputError, NoisescopeError

PARTIAL = ".new"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)


def sha256(data: bytes) -> str:
    """Returns the digest in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def to_json(entry: Any, indent: int | None = None) -> bytes:
    """Returns JSON as ASCII, the same bytes for the same entry, without a newline at the end."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(entry, indent=indent, separators=separators).encode()


def seal(entry: Mapping[str, Any]) -> bytes:
    """Returns a JSON file that ends with the digest of everything else in it."""
    return to_json({**entry, "sha256": sha256(to_json(entry))}, indent=1) + b"\n"


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Returns what `seal` put into a file, or None where there is no such file.

    Raises:
        InputError: Not one byte may differ from what was written.
    """
    data = read_bytes(path)
    if data is None:
        return None
    with suppress(ValueError):
        entry = json.loads(data)
        if isinstance(entry, dict) and entry.pop("sha256", None) and seal(entry) == data:
            return entry
    raise InputError(
        f"{path} was changed since it was written (its digest does not fit): restore it from a "
        "copy, or name another directory"
    )


def read_bytes(path: Path) -> bytes | None:
    """Returns a file's bytes, or None where there is no such file.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def partial_path(path: Path) -> Path:
    """Returns where a file is written before it takes its name."""
    return path.with_name(path.name + PARTIAL)


def replace_file(path: Path, data: bytes) -> None:
    """Gives a file these bytes: whoever looks sees the old ones or the new ones, never a part."""
    prepare_file(path, data)
    commit_file(path)


def prepare_file(path: Path, data: bytes) -> None:
    """Writes and syncs the bytes beside the file; `commit_file` then puts them in its place."""
    made = partial_path(path)
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            made.unlink()
        raise
    finally:
        os.close(descriptor)


def commit_file(path: Path) -> None:
    """Puts what `prepare_file` wrote in the file's place."""
    partial_path(path).replace(path)
    sync_directory(path.parent)


def remove_file(path: Path) -> None:
    """Removes a file, if it is there."""
    with suppress(FileNotFoundError):
        path.unlink()
        sync_directory(path.parent)


def make_directory(path: Path) -> None:
    """Makes a directory, if it is not there."""
    with suppress(FileExistsError):
        path.mkdir()
        sync_directory(path.absolute().parent)


def open_appending(path: Path) -> int:
    """Opens a file for `append`, making it where it is not there; returns its descriptor."""
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    if is_new:
        sync_directory(path.parent)
    return descriptor


def append(descriptor: int, data: bytes, size: int) -> None:
    """Appends and syncs the bytes; where that fails, the file is cut back to its size before."""
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):
            cut(descriptor, size)
        raise


def cut(descriptor: int, size: int) -> None:
    """Cuts a file off after so many bytes."""
    os.ftruncate(descriptor, size)
    os.fsync(descriptor)


def sync_directory(path: Path) -> None:
    """Makes names that were given or taken in a directory outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:  # some network file systems do not sync directories
            raise
    finally:
        os.close(descriptor)


@contextmanager
def explained(path: Path, kept: str = "") -> Iterator[None]:
    """Tells an OSError in one line.

    Args:
        path: What was being written.
        kept: What is safe all the same, e.g. `3 of 5 units are kept`.

    Raises:
        NoisescopeError: In the place of the OSError.
    """
    try:
        yield
    except OSError as error:
        advice = "make room" if error.errno in _FULL else "mend that"
        middle = f"; {kept}: " if kept else ": "
        raise NoisescopeError(
            f"cannot write {path}: {error.strerror}{middle}{advice} and run the same command again"
        ) from error


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
