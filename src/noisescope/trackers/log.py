"""Which trackers are meant, checked before anything is measured, and what is sent to them."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from noisescope.errors import InputError, near_names
from noisescope.harness import Evaluation
from noisescope.report import check_writable
from noisescope.study import Diagnosis
from noisescope.trackers.entry import Entry
from noisescope.trackers.from_diagnosis import diagnosis_entry
from noisescope.trackers.from_evaluation import evaluation_entry
from noisescope.trackers.tensorboard import check_tensorboard, write_tensorboard
from noisescope.trackers.wandb import PROJECT, check_project, check_wandb, write_wandb

TENSORBOARD, WANDB = "tensorboard", "wandb"
TRACKERS = (TENSORBOARD, WANDB)
_RUNS = "runs"
_ACCEPTED = "tensorboard, tensorboard:DIR, wandb, or wandb:PROJECT"


@dataclass(frozen=True)
class Tracker:
    """A tracker, and where its runs go.

    Attributes:
        name: `tensorboard` or `wandb`.
        directory: Where runs are made; `runs` for TensorBoard, the working directory for wandb.
        project: Of wandb.
    """

    name: str
    directory: Path
    project: str = PROJECT


def make_tracker(
    name: str, directory: str | Path | None = None, project: str | None = None
) -> Tracker:
    """Checks that a tracker can be used, and returns it.

    Raises:
        InputError: An unknown name, a missing package, or a directory that takes no files.
    """
    if name not in TRACKERS:
        raise InputError(
            f"--log {name}: no such tracker{near_names(name, TRACKERS) or ';'} accepted are "
            f"{_ACCEPTED}"
        )
    default = _RUNS if name == TENSORBOARD else os.environ.get("WANDB_DIR", ".")
    place = Path(default if directory is None else directory)
    (check_tensorboard if name == TENSORBOARD else check_wandb)()
    project = project or os.environ.get("WANDB_PROJECT") or PROJECT
    check_project(project)
    _check_directory(f"--log {name}", place)
    return Tracker(name, place, project)


def parse_trackers(texts: Sequence[str] | None) -> tuple[Tracker, ...]:
    """Reads what `--log` was given, several times or joined by commas.

    Raises:
        InputError: What `make_tracker` raises; an empty name.
    """
    found = []
    for word in (word.strip() for text in texts or () for word in text.split(",")):
        name, colon, rest = word.partition(":")
        if not name or (colon and not rest):
            raise InputError(f"--log {word!r} names no tracker: give {_ACCEPTED}")
        directory = rest if colon and name == TENSORBOARD else None
        found.append(make_tracker(name, directory, rest if colon and name == WANDB else None))
    return tuple(dict.fromkeys(found))


def log_diagnosis(
    diagnosis: Diagnosis,
    tracker: str | Tracker,
    directory: str | Path | None = None,
    *,
    project: str | None = None,
    figures: Mapping[str, bytes] | None = None,
) -> Path:
    """Logs a diagnosis as a new run: what was asked, a number per condition, figures, verdict.

    Windows of layers stand as curves over the first layer of each, with their bounds.

    Args:
        diagnosis: Finished, or as far as it is.
        tracker: ``"tensorboard"`` or ``"wandb"``; the latter offline unless WANDB_MODE says
            otherwise.
        directory: Where runs are made; None: ``runs`` for TensorBoard, for wandb WANDB_DIR or else
            the working directory.
        project: Of wandb; None: WANDB_PROJECT, or else ``noisescope``.
        figures: PNG files by name, where a report has drawn them; None: they are drawn.

    Returns:
        The directory of the run.

    Raises:
        InputError: An unknown tracker, a missing package (the line holds the command that installs
            it), or a directory that takes no files.
        NoisescopeError: The run could not be written.
    """
    return _write(diagnosis_entry(diagnosis, figures), _tracker(tracker, directory, project))


def log_evaluation(
    evaluation: Evaluation,
    tracker: str | Tracker,
    directory: str | Path | None = None,
    *,
    project: str | None = None,
) -> Path:
    """Logs an evaluation of harness tasks as a new run; arguments as of `log_diagnosis`."""
    return _write(evaluation_entry(evaluation), _tracker(tracker, directory, project))


def _tracker(tracker: str | Tracker, directory: str | Path | None, project: str | None) -> Tracker:
    if isinstance(tracker, Tracker):
        return tracker
    return make_tracker(tracker, directory, project)


def _write(entry: Entry, tracker: Tracker) -> Path:
    if tracker.name == TENSORBOARD:
        return write_tensorboard(entry, tracker.directory)
    return write_wandb(entry, tracker.directory, tracker.project)


def _check_directory(option: str, place: Path) -> None:
    """Raises InputError unless files can be made in a directory, or it and its parents can be."""
    if re.search(r"[\x00-\x1f]", str(place)):
        raise InputError(f"{option}: {str(place)!r} is no name of a directory; give another")
    there = place.absolute()
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        is_directory = there.is_dir()
    except OSError as error:
        raise InputError(f"{option} {place}: {error.strerror}; name another") from error
    if not is_directory:
        raise InputError(f"{option} {place}: {there} is a file; name a directory")
    check_writable(option, place, there)
