"""Where output goes: never over something that is there, and whole or not at all."""

import tempfile
from pathlib import Path

from noisescope.errors import InputError
from noisescope.report.heatmap import draw_heatmap
from noisescope.report.result import result_bytes
from noisescope.study import Diagnosis
from noisescope.study.files import replace_file


def check_output(option: str, path: Path) -> None:
    """Raises InputError unless a path is absent and its directory takes files.

    Args:
        option: What the path was given as, for the message.
        path: The file or directory to be written later.
    """
    try:
        is_taken = path.exists() or path.is_symlink()
    except OSError as error:
        raise InputError(f"{option}: {error.strerror}; name another") from error
    if is_taken:
        raise InputError(f"{option} {path} exists already: name one that does not")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{option} {path}: there is no directory {parent}; make it first")
    check_writable(option, path, parent)


def check_writable(option: str, path: Path, directory: Path) -> None:
    """Raises InputError unless a directory takes files.

    Args:
        option: What the path was given as, for the message.
        path: What is to be written later.
        directory: The directory that must take it.
    """
    try:
        tempfile.TemporaryDirectory(prefix=".noisescope-", dir=directory).cleanup()
    except OSError as error:
        raise InputError(
            f"{option} {path}: nothing can be written in {directory} ({error.strerror}); "
            "name another"
        ) from error


def fresh_directory(base: Path) -> Path:
    """Returns `base`, or the first of base-2, base-3 ... that does not exist."""
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def write_report(diagnosis: Diagnosis, directory: Path | str) -> None:
    """Writes result and heatmap into a study's directory, each whole or not at all.

    Raises:
        InputError: They cannot be written; the study itself is complete all the same.
    """
    files = {"result.json": result_bytes(diagnosis), "heatmap.png": draw_heatmap(diagnosis)}
    for name, data in files.items():
        path = Path(directory) / name
        try:
            replace_file(path, data)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}; make room and run the same "
                "command again, all that was measured is kept"
            ) from error
