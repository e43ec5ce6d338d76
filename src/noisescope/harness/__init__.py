"""lm-evaluation-harness under noise: a model for it, and its tasks clean and noisy, paired.

The harness itself is imported when a model or a task is made.
"""

from noisescope.harness.answers import Answer, Run
from noisescope.harness.evaluate import Evaluation, evaluate_tasks
from noisescope.harness.gates import check_gates, ruling_text, rulings_of
from noisescope.harness.kept import is_evaluation
from noisescope.harness.loading import LoadedTask, TaskOptions, load_tasks
from noisescope.harness.noisy_lm import NoisyLM
from noisescope.harness.paired import Change, EvaluationMargins
from noisescope.harness.result import evaluation_result, write_evaluation

__all__ = [
    "Answer",
    "Change",
    "Evaluation",
    "EvaluationMargins",
    "LoadedTask",
    "NoisyLM",
    "Run",
    "TaskOptions",
    "check_gates",
    "evaluate_tasks",
    "evaluation_result",
    "is_evaluation",
    "load_tasks",
    "ruling_text",
    "rulings_of",
    "write_evaluation",
]
