"""How figures are written: known ones with their interval, unknown ones as such."""

import math
from dataclasses import replace

import pytest

from noisescope.analyse import Interval
from noisescope.analyse.intervals import UNKNOWN
from noisescope.report import figures


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.64, "1.6"),
        (0.0123, "0.012"),
        (9.96, "10"),
        (1313.8, "1,300"),
        (math.inf, "any number of"),
        (math.nan, "n/a"),
    ],
)
def test_ratios_are_written_with_two_digits(value, text):
    assert figures.times_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100 %"), (0.333, "33 %"), (0.00024, "0.024 %"), (math.nan, "n/a")]
)
def test_shares_are_written_in_per_cent(value, text):
    assert figures.per_cent(value) == text


def test_intervals_stand_beside_their_mean():
    interval = Interval(0.81, 0.737, 0.868, 9.0, True)
    assert figures.share_text(interval) == "81 % [74, 87]"
    assert figures.ratio_text(interval) == "0.81 [0.74, 0.87]"
    assert figures.points_text(interval) == "81.0 [73.7, 86.8] points"
    mean_only = replace(UNKNOWN, mean=0.3)
    assert figures.share_text(mean_only) == "30 % [too few data]"
    assert figures.ratio_text(mean_only) == "0.3 [too few data]"
    assert figures.share_text(UNKNOWN) == "an unknown share"
