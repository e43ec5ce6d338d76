"""Measuring: conditions, greedy answers, scores along the clean answers, and their records."""

from noisescope.measure.conditions import (
    Condition,
    layer_windows,
    window_conditions,
    window_name,
)
from noisescope.measure.generate import greedy_answers
from noisescope.measure.metrics import TokenMetrics, token_metrics
from noisescope.measure.records import CLEAN, Record
from noisescope.measure.run import Measurement, Plan, Progress, measure
from noisescope.measure.score import Score, answer_logits, make_sequences, score_rows

__all__ = [
    "CLEAN",
    "Condition",
    "Measurement",
    "Plan",
    "Progress",
    "Record",
    "Score",
    "TokenMetrics",
    "answer_logits",
    "greedy_answers",
    "layer_windows",
    "make_sequences",
    "measure",
    "score_rows",
    "token_metrics",
    "window_conditions",
    "window_name",
]
