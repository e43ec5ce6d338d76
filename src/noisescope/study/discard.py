"""A new study that failed before anything was kept goes again: its name is free for another try."""

from contextlib import suppress
from pathlib import Path

from noisescope.study.files import remove_file
from noisescope.study.journal import JOURNAL
from noisescope.study.lock import LOCK
from noisescope.study.manifest import MANIFEST


def discard(directory: Path, with_directory: bool) -> None:
    """Removes the files of a study without records, and its directory if nothing else is there.

    Args:
        directory: Where it is kept; its lock is held by the caller.
        with_directory: Whether the directory goes, too.
    """
    with suppress(OSError):
        for name in (JOURNAL, MANIFEST, LOCK):  # the lock last: from then on it keeps nobody out
            remove_file(directory / name)
        if with_directory:
            directory.rmdir()
