"""What a diagnosis asks: its conditions, and the steps by which it goes on from there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from noisescope.diagnose.scene import Scene
from noisescope.inject import Site
from noisescope.measure import Condition, ProfileOptions
from noisescope.noise import ErrorModel


@dataclass(frozen=True)
class Step:
    """Conditions that a study chooses for itself.

    Attributes:
        name: Unique in a study.
        choose: Returns them; none: there is nothing to measure.
        generates: Whether they are answered; None: as the plan, False: scored only.
        most: How often the step may choose, each time by what the last one measured; it ends where
            it chooses nothing.
        needs_outliers: Whether it goes by outlier channels.
    """

    name: str
    choose: Callable[[Scene], list[Condition]]
    generates: bool | None = False
    most: int = 1
    needs_outliers: bool = False


@dataclass(frozen=True)
class Question:
    """What a diagnosis asks, and how the report names what was asked.

    Attributes:
        kind: `diagnose`, `layers`, `sites`, `operators` or `channels`.
        conditions: What is measured.
        error_model: What is added.
        operators: The operators that are meant.
        config: What else was asked, for the result file.
        scope: Options that only say which conditions there are; an extension changes them.
        layers: Layers of each condition, where it does not cover the whole model.
        among: The conditions that compete for the worst; None: all.
        notes: What the user should hear, one line each.
        sites: The sites that the model runs in the regions that are meant, in running order.
        steps: What follows.
        is_predicted: Whether a profile is made.
        profile_options: How far it goes.
        settings: Options that the steps' numbers depend on, by the name the user knows them by.
        profiled: Error models that the profile tells of; none: `error_model` alone.
    """

    kind: str
    conditions: tuple[Condition, ...]
    error_model: ErrorModel
    operators: tuple[str, ...]
    config: Mapping[str, Any]
    scope: Mapping[str, Any]
    layers: Mapping[str, tuple[int, ...]]
    among: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    steps: tuple[Step, ...] = ()
    is_predicted: bool = False
    profile_options: ProfileOptions = field(default_factory=ProfileOptions)
    settings: Mapping[str, Any] = field(default_factory=dict)
    profiled: tuple[ErrorModel, ...] = ()
