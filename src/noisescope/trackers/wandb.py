"""An entry as a run of Weights & Biases, offline unless the user's WANDB_MODE says otherwise.

`wandb sync DIR` sends an offline run later. Texts go into the summary, which is shown as it is.
"""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from noisescope.errors import InputError, NoisescopeError
from noisescope.extras import require
from noisescope.trackers.entry import Entry, shown

WHAT = "--log wandb"
PROJECT = "noisescope"
_HEADER_BYTES = 7  # of a run's file, before its first record
_LOOK_S, _STILL_S, _MOST_S = 0.02, 0.3, 30.0
_SETTINGS = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
}
_MODES = ("offline", "online", "shared", "dryrun", "run")  # the last two are older words
_MODE = "WANDB_MODE"
_REPORTING = "WANDB_ERROR_REPORTING"


def check_wandb() -> None:
    """Raises InputError where the package is not installed, or WANDB_MODE lets it log nothing."""
    mode = _mode()
    if mode == "disabled":
        raise InputError(
            f"{WHAT}: WANDB_MODE is 'disabled', so nothing would be logged: unset it, or leave out "
            f"{WHAT}"
        )
    if mode not in _MODES:
        raise InputError(
            f"{WHAT}: WANDB_MODE {mode!r} is no mode; accepted are {', '.join(_MODES)}; unset, it "
            "is offline"
        )
    with _surroundings():
        require("wandb", "wandb", WHAT)


def _mode() -> str:
    return os.environ.get(_MODE) or "offline"


def write_wandb(entry: Entry, directory: Path, project: str = PROJECT) -> Path:
    """Writes an entry as a new run.

    Args:
        entry: What is logged.
        directory: Where the folder `wandb` with the run is made.
        project: The run's project.

    Returns:
        The directory of the run.

    Raises:
        InputError: The package is not installed.
        NoisescopeError: The run could not be written, or, where WANDB_MODE is online, not sent.
    """
    with _surroundings():
        wandb = require("wandb", "wandb", WHAT)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                mode=_mode(),
                project=project,
                name=shown(entry.name),
                dir=str(directory),
                config=dict(entry.config),
                settings=_settings(wandb),
                reinit="create_new",
            )
            _log(wandb, run, entry)
            run.finish()
            _await(Path(run.settings.sync_file), run.offline)
        except (OSError, wandb.Error) as error:
            said = " ".join(str(error).split())
            raise NoisescopeError(f"{WHAT}: the run could not be written: {said}") from error
    return Path(run.dir).parent


def _await(path: Path, is_offline: bool) -> None:
    """Waits until an offline run is on the disk: its file is written behind the back of `finish`.

    Raises:
        OSError: It is not, after a while.
    """
    if not is_offline:
        return
    seen, since, begun = -1, time.monotonic(), time.monotonic()
    while time.monotonic() - begun < _MOST_S:
        size = path.stat().st_size if path.exists() else 0
        if size != seen:
            seen, since = size, time.monotonic()
        elif size > _HEADER_BYTES and time.monotonic() - since > _STILL_S:
            return
        time.sleep(_LOOK_S)
    raise OSError(f"nothing was written to {path} within {_MOST_S:g} s")


def _settings(wandb: Any) -> Any:
    """Returns settings under which nothing of the machine is looked at, and nothing printed."""
    known = wandb.Settings.model_fields  # not every version has all of them
    return wandb.Settings(**{name: value for name, value in _SETTINGS.items() if name in known})


def _log(wandb: Any, run: Any, entry: Entry) -> None:
    pictures = require("PIL.Image", "wandb", WHAT)
    curves = sorted({s.tag for s in entry.scalars if s.tag.startswith("windows/")})
    if curves:
        run.define_metric("layer")
        for tag in curves:
            run.define_metric(tag, step_metric="layer")
    plain: dict[str, Any] = {s.tag: s.value for s in entry.scalars if s.tag not in curves}
    for name, data in entry.figures.items():
        plain[f"figures/{shown(name)}"] = wandb.Image(pictures.open(io.BytesIO(data)))
    run.log(plain)
    for layer in sorted({s.step for s in entry.scalars if s.tag in curves}):
        there = {s.tag: s.value for s in entry.scalars if s.tag in curves and s.step == layer}
        run.log({"layer": layer, **there})
    for name, text in entry.texts.items():
        run.summary[shown(name)] = text


@contextmanager
def _surroundings() -> Iterator[None]:
    """Keeps the package from telling its makers of its own errors, unless the user wants that.

    A mode that is empty, at which the package fails, is no mode for that time.
    """
    ours: dict[str, str | None] = {}
    if _REPORTING not in os.environ:
        ours[_REPORTING] = None
        os.environ[_REPORTING] = "false"
    if os.environ.get(_MODE) == "":
        ours[_MODE] = os.environ.pop(_MODE)
    try:
        yield
    finally:
        for name, before in ours.items():
            if before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = before


def check_project(project: str) -> None:
    """Raises InputError for a name that is no project's."""
    if not project or any(c in project for c in "/\\#?%:") or not project.isprintable():
        raise InputError(
            f"{WHAT}:{project}: a project's name has none of / \\ # ? % :; give another"
        )
