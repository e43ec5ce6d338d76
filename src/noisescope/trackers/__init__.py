"""Experiment trackers: a diagnosis or an evaluation as a run of TensorBoard or Weights & Biases.

Neither is imported before something is logged, and nothing is sent unless the user says so.
"""

from noisescope.trackers.log import (
    TRACKERS,
    Tracker,
    log_diagnosis,
    log_evaluation,
    make_tracker,
    parse_trackers,
)

__all__ = [
    "TRACKERS",
    "Tracker",
    "log_diagnosis",
    "log_evaluation",
    "make_tracker",
    "parse_trackers",
]
