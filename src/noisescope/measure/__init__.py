"""Measuring: conditions, greedy answers, scores along the clean answers, and their records."""

from noisescope.measure.conditions import (
    Condition,
    layer_windows,
    window_name,
)
from noisescope.measure.generate import greedy_answers
from noisescope.measure.metrics import TokenMetrics, token_metrics
from noisescope.measure.plan import LARGEST_SEED, Measurement, Plan, Progress
from noisescope.measure.run import measure
from noisescope.measure.score import Score, answer_logits, make_sequences, score_rows
from noisescope.measure.unit import Unit, UnitResult
from noisescope.records import CLEAN, Record

__all__ = [
    "CLEAN",
    "LARGEST_SEED",
    "Condition",
    "Measurement",
    "Plan",
    "Progress",
    "Record",
    "Score",
    "TokenMetrics",
    "Unit",
    "UnitResult",
    "answer_logits",
    "greedy_answers",
    "layer_windows",
    "make_sequences",
    "measure",
    "score_rows",
    "token_metrics",
    "window_name",
]
