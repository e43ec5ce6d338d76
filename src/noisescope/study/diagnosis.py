"""A finished diagnosis: everything that a report needs, and nothing that computes."""

from dataclasses import dataclass
from typing import Any

from noisescope.analyse import Summary, Worst
from noisescope.measure import Measurement, Plan
from noisescope.models import LoadedModel
from noisescope.noise import ErrorModel
from noisescope.tasks import Task


@dataclass(frozen=True)
class Diagnosis:
    """A finished diagnosis.

    Attributes:
        kind: `layers` or `operators`.
        loaded: The model.
        task: The samples.
        error_model: What was added.
        plan: Conditions, draws and seed.
        settings: What was asked, for the report, e.g. window and stride.
        layers: Layers of each condition; empty where it covers the whole model.
        measurement: Records and sessions.
        baseline_accuracy: Of the clean model; NaN where nothing was generated.
        summaries: One per condition, in order.
        worst_accuracy: The plan's avalanche point and its doubt.
        worst_kl: The same by KL.
        notes: What the user should hear, one line each.
    """

    kind: str
    loaded: LoadedModel
    task: Task
    error_model: ErrorModel
    plan: Plan
    settings: dict[str, Any]
    layers: dict[str, tuple[int, ...]]
    measurement: Measurement
    baseline_accuracy: float
    summaries: tuple[Summary, ...]
    worst_accuracy: Worst
    worst_kl: Worst
    notes: tuple[str, ...]
