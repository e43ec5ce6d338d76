"""Opens a study: a new one, or the one that a directory holds, where it stands."""

from collections.abc import Sequence
from pathlib import Path

from noisescope.errors import InputError
from noisescope.study.compact import read_finished, settle
from noisescope.study.compare import reconcile
from noisescope.study.files import explained, make_directory, partial_path, remove_file
from noisescope.study.gather import Gathered
from noisescope.study.journal import JOURNAL, Contents, Journal, read_journal
from noisescope.study.lock import LOCK, Lock, take_lock
from noisescope.study.manifest import (
    MANIFEST,
    Manifest,
    new_manifest,
    read_manifest,
    write_manifest,
)
from noisescope.study.plan import StudyPlan
from noisescope.study.study import Study

_LEFT_BY_A_KILL = (LOCK, partial_path(Path(MANIFEST)).name)
# Begins the names of what is made, and removed at once, to see whether a directory takes files.
_PROBE = ".noisescope-"


def open_study(directory: Path | None, plan: StudyPlan, extend: bool = False) -> Study:
    """Opens a study for measuring; use it in a `with` statement.

    A directory that does not exist, or is empty, becomes a new study. One that holds this plan goes
    on where it was. The directory is this process's alone until the study is closed.

    Args:
        directory: Where it is kept; None: in memory only.
        plan: What is to be measured. The layout of a study that is there already is kept.
        extend: Whether samples (after the old ones), draws and conditions may be added to a study
            that is there already; nothing that is kept is measured again.

    Raises:
        InputError: The directory is in use, holds something else or another plan, or one of its
            files was changed.
        NoisescopeError: The disk is full, or cannot be written for another reason.
    """
    if directory is None:
        return Study(new_manifest(plan))
    check_directory(directory)
    with explained(directory):
        make_directory(directory)
    lock = take_lock(directory)
    try:
        return _open_locked(directory, plan, extend, lock)
    except BaseException:
        lock.release()
        raise


def read_kept(directory: Path, manifest: Manifest) -> tuple[Gathered, Contents]:
    """Returns what finished stages and the journal hold; a journal that is done with, as empty.

    Raises:
        InputError: A file was changed since it was written.
    """
    # The journal first: it may become finished files, and go, while they are read.
    data = read_journal(directory / JOURNAL, manifest.identity)
    finished = read_finished(directory)
    is_done_with = data.after is not None and data.after < finished.stages
    return finished, Contents() if is_done_with else data


def _open_locked(directory: Path, plan: StudyPlan, extend: bool, lock: Lock) -> Study:
    manifest = read_manifest(directory)
    if manifest is None:
        check_directory(directory)  # again: another process may have been here before the lock
        manifest = new_manifest(plan)
        with explained(directory / MANIFEST):
            write_manifest(directory, manifest)
        return _resume(directory, manifest, lock, Gathered(), Contents())
    grown, added = reconcile(directory, manifest, plan, extend)
    with explained(directory):
        settle(directory)
    finished, contents = read_kept(directory, manifest)
    if grown != manifest:
        with explained(directory / MANIFEST):
            write_manifest(directory, grown)
    study = _resume(directory, grown, lock, finished, contents)
    study.opening = _opening(study, added, extend)
    return study


def _resume(
    directory: Path, manifest: Manifest, lock: Lock, finished: Gathered, contents: Contents
) -> Study:
    path, journal = directory / JOURNAL, None
    with explained(path):
        if not contents.results and path.exists():
            remove_file(path)  # it is done with, or holds no whole unit
        if finished.stages < len(manifest.stages):
            journal = Journal.open(path, manifest.identity, finished.stages, contents)
    try:
        return Study(
            manifest,
            directory,
            lock=lock,
            journal=journal,
            finished=finished,
            results=contents.results,
        )
    except BaseException:
        if journal is not None:
            journal.close()
        raise


def _opening(study: Study, added: Sequence[str], extend: bool) -> str:
    """Tells what was found."""
    parts = [f"extended by {'; '.join(added)}"] if added else []
    if extend and not added:
        parts.append("--extend: nothing is added")
    done, total = study.progress
    if study.is_complete:
        parts.append("complete: nothing is left to measure")
    elif study.plan.is_adaptive:
        parts.append("goes on where it was")
    else:
        more = "; steps may add more" if study.plan.has_steps else ""
        parts.append(f"{done} of {total} units are kept already{more}")
    return "; ".join(parts)


def is_study(directory: Path) -> bool:
    """Says whether a study was begun in a directory."""
    return (directory / MANIFEST).is_file()


def check_directory(directory: Path) -> None:
    """Checks that a study is here, or may be made here without overwriting anything.

    Raises:
        InputError: Neither.
    """
    try:
        if not directory.exists():
            if not directory.absolute().parent.is_dir():
                raise InputError(
                    f"{directory}: there is no directory {directory.absolute().parent}; make it "
                    "first"
                )
            return
        if not directory.is_dir():
            raise InputError(f"{directory} is a file: name a directory")
        names = {p.name for p in directory.iterdir() if not p.name.startswith(_PROBE)}
    except OSError as error:
        raise InputError(f"{directory}: {error.strerror}; name another directory") from error
    if MANIFEST not in names and not names <= set(_LEFT_BY_A_KILL):
        raise InputError(
            f"{directory} holds other files and no study: name a directory that is empty or does "
            "not exist"
        )
