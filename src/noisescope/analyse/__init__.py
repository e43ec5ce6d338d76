"""Analysis: intervals, verdicts, the worst condition with its doubt, and the search for it."""

from noisescope.analyse.additivity import Additivity, additivity
from noisescope.analyse.amplification import Amplification, Onset, amplification
from noisescope.analyse.analysis import Analysis, analyse
from noisescope.analyse.avalanche import Worst, worst_by_accuracy, worst_by_kl
from noisescope.analyse.blame import (
    LARGEST,
    SPREAD,
    STANDS_OUT,
    Blame,
    blame,
    candidates,
    worst_sites,
)
from noisescope.analyse.critical_scale import CriticalScale, critical_scale
from noisescope.analyse.dose_response import Departure, Point, Response, dose_response
from noisescope.analyse.intervals import Interval, crossed_interval, mean_interval
from noisescope.analyse.next_scale import next_scale
from noisescope.analyse.predict import (
    NOTHING,
    Agreement,
    Prediction,
    agreement,
    departs,
    mean_and_error,
    predict,
    predict_samples,
)
from noisescope.analyse.ratios import paired_ratio
from noisescope.analyse.search import Round, Winner, next_round
from noisescope.analyse.shares import share_interval
from noisescope.analyse.significance import holm, mcnemar_p, mean_test_p, t_test_p
from noisescope.analyse.standouts import Standout, standouts
from noisescope.analyse.summary import Summary, degradation
from noisescope.analyse.table import Table
from noisescope.analyse.target import Target, parse_target
from noisescope.analyse.verdict import Verdict, unknown_verdict, verdicts

__all__ = [
    "LARGEST",
    "NOTHING",
    "SPREAD",
    "STANDS_OUT",
    "Additivity",
    "Agreement",
    "Amplification",
    "Analysis",
    "Blame",
    "CriticalScale",
    "Departure",
    "Interval",
    "Onset",
    "Point",
    "Prediction",
    "Response",
    "Round",
    "Standout",
    "Summary",
    "Table",
    "Target",
    "Verdict",
    "Winner",
    "Worst",
    "additivity",
    "agreement",
    "amplification",
    "analyse",
    "blame",
    "candidates",
    "critical_scale",
    "crossed_interval",
    "degradation",
    "departs",
    "dose_response",
    "holm",
    "mcnemar_p",
    "mean_and_error",
    "mean_interval",
    "mean_test_p",
    "next_round",
    "next_scale",
    "paired_ratio",
    "parse_target",
    "predict",
    "predict_samples",
    "share_interval",
    "standouts",
    "t_test_p",
    "unknown_verdict",
    "verdicts",
    "worst_by_accuracy",
    "worst_by_kl",
    "worst_sites",
]
