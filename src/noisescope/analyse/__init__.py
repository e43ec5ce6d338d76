"""Analysis: intervals, verdicts, the worst condition with its doubt, and the search for it."""

from noisescope.analyse.analysis import Analysis, analyse
from noisescope.analyse.avalanche import Worst, worst_by_accuracy, worst_by_kl
from noisescope.analyse.intervals import Interval, crossed_interval, mean_interval
from noisescope.analyse.search import Round, Winner, next_round
from noisescope.analyse.shares import share_interval
from noisescope.analyse.significance import holm, mcnemar_p, mean_test_p, t_test_p
from noisescope.analyse.summary import Summary, degradation
from noisescope.analyse.table import Table
from noisescope.analyse.verdict import Verdict, unknown_verdict, verdicts

__all__ = [
    "Analysis",
    "Interval",
    "Round",
    "Summary",
    "Table",
    "Verdict",
    "Winner",
    "Worst",
    "analyse",
    "crossed_interval",
    "degradation",
    "holm",
    "mcnemar_p",
    "mean_interval",
    "mean_test_p",
    "next_round",
    "share_interval",
    "t_test_p",
    "unknown_verdict",
    "verdicts",
    "worst_by_accuracy",
    "worst_by_kl",
]
