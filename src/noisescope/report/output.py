"""Where output goes: never over something that is there, and whole or not at all."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from noisescope.errors import InputError
from noisescope.profile import Profile
from noisescope.report.page.page import Section
from noisescope.report.page.sections import report_files
from noisescope.report.pictures.profile_map import draw_profile
from noisescope.report.result import result_bytes, without_nan
from noisescope.report.result_findings import profile_json
from noisescope.study import Diagnosis
from noisescope.study.files import replace_file
from noisescope.study.kept_profile import PROFILE, profile_bytes


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


def write_report(
    diagnosis: Diagnosis, directory: Path | str, extra: Sequence[Section] = ()
) -> tuple[str, ...]:
    """Writes result, page and figures into a study's directory, each whole or not at all.

    Args:
        diagnosis: What is reported.
        directory: Of its study.
        extra: Sections of the page from elsewhere.

    Returns:
        The names of the files.

    Raises:
        InputError: They cannot be written; the study itself is complete all the same.
    """
    files = {"result.json": result_bytes(diagnosis), **report_files(diagnosis, extra)}
    write_into(Path(directory), files)
    return tuple(files)


def write_into(directory: Path, files: Mapping[str, bytes]) -> None:
    """Writes files into a study's directory and folders of it, each whole or not at all.

    Raises:
        InputError: They cannot be written; the study itself is complete all the same.
    """
    kept = "all that was measured is kept"
    for folder in dict.fromkeys((directory / name).parent for name in files):
        _make(folder, kept)
    for name, data in files.items():
        _write(directory / name, data, kept)


def write_profile_report(profile: Profile, directory: Path, about: Mapping[str, Any]) -> None:
    """Writes a profile into a directory that is empty or does not exist: all of it, and its map.

    Args:
        profile: What backward passes told.
        directory: Where to; its parent exists.
        about: What it was made of: `config`, `fingerprints` and `versions`.

    Raises:
        InputError: They cannot be written.
    """
    text = json.dumps(without_nan({**about, **profile_json(profile)}), indent=2, allow_nan=False)
    files = {
        PROFILE: profile_bytes(profile, about),
        "profile.json": (text + "\n").encode(),
        "profile.png": draw_profile(profile, about["config"]["model"]),
    }
    _make(directory, "nothing of a profile is kept")
    for name, data in files.items():
        _write(directory / name, data, "nothing of a profile is kept")


def check_empty(option: str, directory: Path) -> None:
    """Raises InputError unless a directory is empty, or absent and can be made."""
    try:
        is_empty = directory.is_dir() and not any(directory.iterdir())
    except OSError as error:
        raise InputError(f"{option} {directory}: {error.strerror}; name another") from error
    if is_empty:
        check_writable(option, directory, directory)
    else:
        check_output(option, directory)


def _make(directory: Path, kept: str) -> None:
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {directory}: {error.strerror}; {kept}") from error


def _write(path: Path, data: bytes, kept: str) -> None:
    try:
        replace_file(path, data)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room and run the same command again, "
            f"{kept}"
        ) from error
