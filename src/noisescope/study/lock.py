"""One process at a time in a directory: a lock of the kernel's, which ends with the process."""

import fcntl
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from noisescope.errors import InputError
from noisescope.study.files import make_directory

LOCK = "lock"
_TRIES, _PAUSE_S = 5, 0.05  # whoever asks `holder_of` holds the lock for a moment, too


@dataclass(frozen=True)
class Lock:
    """A lock that is held until it is released or the process ends, however it ends."""

    descriptor: int

    def release(self) -> None:
        """Gives the lock back and leaves the file empty: it names nobody."""
        with suppress(OSError):
            os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def take_lock(directory: Path) -> Lock:
    """Takes the lock of a directory.

    Raises:
        InputError: Another process holds it, or locks do not work there.
    """
    path = directory / LOCK
    for _ in range(_TRIES):
        descriptor = _open_and_lock(path)
        if _has_name(descriptor, path):
            break
        # Whoever held it has discarded the study, its directory included, since it was opened: a
        # lock on a file that has lost its name keeps nobody out.
        os.close(descriptor)
        with suppress(OSError):
            make_directory(directory)
    else:
        raise InputError(f"{path} is removed again and again: name another directory")
    with suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on host {socket.gethostname()}".encode())
    return Lock(descriptor)


def _open_and_lock(path: Path) -> int:
    """Returns a descriptor of the lock file that holds the lock."""
    directory = path.parent
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"cannot write in {directory}: {error.strerror}; name another") from error
    try:
        is_taken = _try_lock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        os.close(descriptor)
        raise InputError(f"cannot lock {path}: {error.strerror}; name another directory") from error
    if not is_taken:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise InputError(f"{directory} is in use by {holder}: wait for it or stop it")
    return descriptor


def _has_name(descriptor: int, path: Path) -> bool:
    """Says whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def holder_of(directory: Path) -> str | None:
    """Returns who holds the lock of a directory, or None; where it cannot be told, None."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        return None if _try_lock(descriptor, fcntl.LOCK_SH) else _holder(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    for attempt in range(_TRIES):
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt < _TRIES - 1:
                time.sleep(_PAUSE_S)
        else:
            return True
    return False


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode(errors="replace") or "another process"
