"""The steps of the avalanche: dose and response, and the scale of a chosen loss."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse import Target, next_scale, parse_target
from noisescope.diagnose.question import Step
from noisescope.diagnose.scales import at, choose_scales, least_scale, scale_of
from noisescope.diagnose.scene import Scene
from noisescope.errors import InputError
from noisescope.measure import Condition
from noisescope.noise import ErrorModel
from noisescope.study.steps import (
    SCALES,
    UNTIL,
    base_of,
    scale_of_name,
    whole_name,
)

_MOST_SEARCHED = 10
_MOST_WINDOWS = 6


def check_scalable(
    error_model: ErrorModel, scales: Sequence[float] | str | None, until: str | None
) -> None:
    """Raises InputError for scales of an error that has none, such as rounding to a format."""
    option = "--scales" if scales is not None else "--until" if until is not None else None
    if option is not None and scale_of(error_model) is None:
        raise InputError(
            f"{option}: {type(error_model).__name__} has no scale to change; leave it out, or give "
            "noise (--noise-scale)"
        )


def avalanche_steps(
    scales: Sequence[float] | None, until: str | None, is_chosen: bool, has_answers: bool = True
) -> tuple[Step, ...]:
    """Returns the steps: dose and response, then the scale of a chosen loss.

    Args:
        scales: Scales of the dose and response.
        until: The loss, as text; None: no scale is looked for.
        is_chosen: Whether scales that are not given are chosen around the study's own.
        has_answers: Whether anything is generated, so that accuracy can be lost.

    Raises:
        InputError: A scale that is not above 0, or a loss that cannot be read, or not be reached.
    """
    check_scales(scales)
    steps = []
    if scales is not None or is_chosen:
        steps.append(Step(SCALES, lambda scene: _doses(scene, scales)))
    if until is not None:
        target = parse_target(until)
        if target.measure == "accuracy" and not has_answers:
            raise InputError(
                f"until {until!r}: texts are scored along themselves and have no accuracy; give "
                "kl=0.1 or nll=0.1"
            )
        generates = None if target.measure == "accuracy" else False
        steps.append(
            Step(UNTIL, lambda scene: _nearer(scene, target), generates, most=_MOST_SEARCHED)
        )
    return tuple(steps)


def avalanche_settings(scales: Sequence[float] | None, until: str | None) -> dict[str, Any]:
    """Returns the options that the steps go by, by their names on the command line."""
    given = {"--scales": None if scales is None else list(scales), "--until": until}
    return {name: value for name, value in given.items() if value is not None}


def given_scales(scales: Sequence[float] | str | None) -> Sequence[float] | None:
    """Returns the scales that were given; None where they are to be chosen.

    Raises:
        InputError: A word that is not `auto`, or a single number.
    """
    if scales is None or scales == "auto":
        return None
    if isinstance(scales, (str, int, float)):
        raise InputError(
            f"scales {scales!r}: give a list of numbers, such as [0.01, 0.1], or 'auto'"
        )
    return scales


def check_scales(scales: Sequence[float] | None) -> None:
    """Raises InputError for a scale that cannot be used."""
    if scales is None:
        return
    if not scales:
        raise InputError("--scales names none: give some, such as 0.01,0.1, or leave it out")
    for scale in scales:
        if not 0 < scale < float("inf"):
            raise InputError(f"--scales: {scale!r} is not above 0; give scales such as 0.01,0.1")


def whole_of(scene: Scene) -> Condition | None:
    """Returns the condition in which everything is noisy that the study looks at."""
    return scene.on_regions(whole_name(scene.regions), scene.regions)


def _doses(scene: Scene, scales: Sequence[float] | None) -> list[Condition]:
    whole = whole_of(scene)
    name = None if whole is None else whole.name
    windows = [c for c in scene.conditions.values() if c.selection.layers and c.name != name]
    if scales is None:
        windows = _telling(scene, windows)
    return choose_scales(scene, [*([whole] if whole is not None else []), *windows], scales)


def _telling(scene: Scene, windows: list[Condition]) -> list[Condition]:
    """Returns the windows that cost most as measured, and the one that costs least.

    Each is measured at half a dozen scales, and a deep model has many.
    """
    if len(windows) <= _MOST_WINDOWS:
        return windows

    def cost(window: Condition) -> float:
        measured = scene.kl(window.name)
        return measured.mean if measured is not None else 0.0

    order = sorted(windows, key=cost, reverse=True)
    kept = [*order[: _MOST_WINDOWS - 1], order[-1]]
    return [window for window in windows if window in kept]


def _nearer(scene: Scene, target: Target) -> list[Condition]:
    """Returns the next scale at which the loss is looked at, one condition or none."""
    whole, own = whole_of(scene), scale_of(scene.error_model)
    if whole is None or own is None or not own > 0:
        return []
    measured = losses_by_scale(scene, whole.name, own, target)
    predicted = scene.predicted(whole.selection)
    c = None
    if predicted is not None and predicted.kl_nats > 0:
        c = predicted.kl_nats / own**2
    scale = next_scale(target, measured, own, steps_left=_MOST_SEARCHED, c=c)
    if scale is None or scale < least_scale(scene):
        return []
    return [at(whole, scale, target.measure == "accuracy")]


def losses_by_scale(
    scene: Scene, whole: str, own: float, target: Target
) -> Mapping[float, NDArray[np.float64]]:
    """Returns the measured losses of a selection by scale, in the target's measure."""
    found: dict[float, NDArray[np.float64]] = {}
    for name in scene.table.conditions:
        if base_of(name) != whole:
            continue
        scale = scale_of_name(name) or own
        if target.measure == "accuracy":
            if scene.table.has_answers(name):
                found[scale] = scene.table.accuracy_drops(name)
        else:
            field = "kl_nats" if target.measure == "kl" else "nll_change_nats"
            found[scale] = scene.table.values(name, field)
    return found
