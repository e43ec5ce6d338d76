"""What the channels of a study's model look like, kept beside its records as sealed JSON.

Like a profile it is a pure function of model and samples, and is made anew where it lacks.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from noisescope.study.channels import Massive, ModuleChannels
from noisescope.study.files import explained, read_sealed, replace_file, seal
from noisescope.study.kept_profile import made_of
from noisescope.study.study import Study

CHANNELS = "channels.json"


def channels_kept_or_made(
    study: Study, make: Callable[[], tuple[ModuleChannels, ...]]
) -> tuple[ModuleChannels, ...]:
    """Returns a study's channels as they come from their file, made and written where they lack.

    Raises:
        InputError: The file was changed.
        NoisescopeError: It cannot be written.
    """
    if study.directory is None:
        return make()
    about = made_of(study.plan)
    kept = read_channels(study.directory, about)
    if kept is None:
        kept = make()
        path = study.directory / CHANNELS
        with explained(path):
            replace_file(path, seal({"about": about, "modules": [asdict(m) for m in kept]}))
    return kept


def read_channels(
    directory: Path, about: Mapping[str, Any] | None = None
) -> tuple[ModuleChannels, ...] | None:
    """Returns the channels of a directory; None where there are none, or of something else.

    Raises:
        InputError: The file was changed.
    """
    entry = read_sealed(directory / CHANNELS)
    if entry is None or (about is not None and entry["about"] != about):
        return None
    return tuple(_module(m) for m in entry["modules"])


def _module(entry: Mapping[str, Any]) -> ModuleChannels:
    massive = tuple(Massive(**m) for m in entry["massive"])
    lists = {name: tuple(entry[name]) for name in ("outliers", "ratios")}
    return ModuleChannels(**{**entry, **lists, "massive": massive})
