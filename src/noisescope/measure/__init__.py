"""Measuring: conditions, greedy answers, scores along the clean answers, and their records."""

from noisescope.measure.attest import measurement_notes
from noisescope.measure.conditions import (
    Condition,
    layer_windows,
    window_name,
)
from noisescope.measure.generate import greedy_answers
from noisescope.measure.metrics import TokenMetrics, token_metrics
from noisescope.measure.passes import PassResult, ProfilePass, Texts
from noisescope.measure.plan import LARGEST_SEED, Measurement, Plan, Progress
from noisescope.measure.profiling import ProfileOptions, RunPasses, make_profile
from noisescope.measure.run import make_units, measure, samples_per_unit
from noisescope.measure.score import Score, make_sequences, score_riders
from noisescope.measure.unit import Unit, UnitResult
from noisescope.measure.worker import Worker
from noisescope.records import CLEAN, Record

__all__ = [
    "CLEAN",
    "LARGEST_SEED",
    "Condition",
    "Measurement",
    "PassResult",
    "Plan",
    "ProfileOptions",
    "ProfilePass",
    "Progress",
    "Record",
    "RunPasses",
    "Score",
    "Texts",
    "TokenMetrics",
    "Unit",
    "UnitResult",
    "Worker",
    "greedy_answers",
    "layer_windows",
    "make_profile",
    "make_sequences",
    "make_units",
    "measure",
    "measurement_notes",
    "samples_per_unit",
    "score_riders",
    "token_metrics",
    "window_name",
]
