"""Analysis: intervals, one summary per condition, and the worst of them with its doubt."""

from noisescope.analyse.avalanche import Worst, worst_by_accuracy, worst_by_kl
from noisescope.analyse.intervals import Interval, crossed_interval, holm, mcnemar_p, t_test_p
from noisescope.analyse.summary import Summary, Table, degradation

__all__ = [
    "Interval",
    "Summary",
    "Table",
    "Worst",
    "crossed_interval",
    "degradation",
    "holm",
    "mcnemar_p",
    "t_test_p",
    "worst_by_accuracy",
    "worst_by_kl",
]
