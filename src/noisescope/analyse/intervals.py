"""Intervals for paired differences over questions and noise draws.

More questions never remove the variance between draws, so both count. Fewer than two questions
give NaN bounds, and one draw says nothing of others: an interval of zero width would be a claim
nobody can make. Where an interval covers less or more than it says, its caution tells.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisescope.analyse.moments import Moments, by_group, moments_of

_FEW_DRAWS, _SOME_DRAWS = 3, 5
_FEW_QUESTIONS = 10
_SKEWED_MEAN = 0.45


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval.

    Attributes:
        mean: The estimate; NaN without data.
        low: Lower bound; NaN where the data cannot give one.
        high: Upper bound, likewise.
        degrees: Degrees of freedom by Satterthwaite; NaN where there is no interval. The bounds of
            summaries use wider critical values where draws are few.
        includes_draws: Whether the interval covers the variance between draws; with one draw it
            speaks of this realisation of the noise only.
        caution: Why it may cover less or more than it says, as a sentence; empty without a doubt.
    """

    mean: float
    low: float
    high: float
    degrees: float
    includes_draws: bool
    caution: str = ""

    @property
    def is_known(self) -> bool:
        """True where there are bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)


UNKNOWN = Interval(math.nan, math.nan, math.nan, math.nan, False)


def crossed_interval(
    values_KN: NDArray[np.float64],
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Returns the mean of K draws x N questions with the plain t interval that counts both.

    Args:
        values_KN: Paired differences, draw by question; what is not finite drops its question.
        confidence: Of the two-sided interval.
        groups: The source of each question; those of one source count as one. None: all apart.

    Returns:
        The interval. N < 2, and values that are all the same, give NaN bounds: there is no spread
        to judge by. K = 1 gives the interval over questions alone.

    Source: two-way random effects without replication; degrees of freedom by Satterthwaite 1946.
    """
    values, groups = finite_part(values_KN, groups)
    moments = _moments(values, groups)
    if moments is None:
        return _without_bounds(values)
    mean, degrees = float(moments.mean), float(moments.degrees)
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * math.sqrt(moments.variance)
    return Interval(mean, mean - half, mean + half, degrees, moments.K > 1)


def mean_interval(
    values_KN: NDArray[np.float64],
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Returns `crossed_interval` made to hold for skewed values, as KL is, and for few draws.

    Arguments as there; `Moments.critical` and `unskewed` say what is mended and by whom. Equal to
    it for one draw of values that are not skewed.
    """
    values, kept = finite_part(values_KN, groups)
    moments = _moments(values, kept)
    if moments is None:
        return _without_bounds(values)
    low, high = moments.bounds((1 - confidence) / 2)
    lost = np.asarray(values_KN).shape[1] - values.shape[1]
    return Interval(
        mean=float(moments.mean),
        low=float(low),
        high=float(high),
        degrees=float(moments.degrees),
        includes_draws=moments.K > 1,
        caution="; ".join([*_lost(lost, values.shape[1]), *cautions(moments, values.shape[1])]),
    )


def cautions(moments: Moments, questions: int) -> list[str]:
    """Returns what is known to bend an interval of these moments; benchmarks/intervals.py says."""
    found = []
    if has_few_draws(moments):
        found.append(
            f"few draws: {moments.K} hardly tell how draws differ, and the interval may be too "
            "wide, or too narrow where draws differ most; use 10 or more"
        )
    if moments.N < _FEW_QUESTIONS:
        what = "questions" if moments.N == questions else "sources of questions"
        found.append(
            f"few {what}: {moments.N} are too few for the interval to hold; use 20 or more"
        )
    if is_skewed(moments):
        found.append(
            "skewed: a few questions or draws carry most of the mean, and the interval may cover "
            "90 % or less; use more of them"
        )
    return found


def has_few_draws(moments: Moments) -> NDArray[np.bool_]:
    """Returns whether an interval rests on two or three draws, or mostly on up to five."""
    by_draws = moments.draw_share > 0.5
    few = moments.K <= _FEW_DRAWS
    return np.asarray((by_draws | few) & (1 < moments.K <= _SOME_DRAWS))


def is_skewed(moments: Moments) -> NDArray[np.bool_]:
    """Returns whether the mean is so skewed that its correction may fall short."""
    return np.asarray(np.abs(moments.skewness) > _SKEWED_MEAN)


def _lost(lost: int, kept: int) -> list[str]:
    return [f"{lost} of {lost + kept} questions are not finite and left out"] if lost else []


def _moments(values: NDArray[np.float64], groups: Sequence[Hashable] | None) -> Moments | None:
    """Returns the moments over groups, or None where there is no spread to judge by."""
    if values.shape[1] < 2 or np.ptp(values) == 0:
        return None
    grouped = by_group(values, groups)
    return moments_of(grouped) if grouped.shape[1] > 1 else None


def _without_bounds(values: NDArray[np.float64]) -> Interval:
    mean = float(values.mean()) if values.size else math.nan
    return Interval(mean, math.nan, math.nan, math.nan, values.shape[0] > 1)


def finite_questions(values_KN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the columns whose every entry is finite."""
    return finite_part(values_KN, None)[0]


def finite_part(
    values_KN: NDArray[np.float64], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], Sequence[Hashable] | None]:
    """Returns the columns whose every entry is finite, and their groups."""
    values = np.asarray(values_KN, dtype=np.float64)
    is_finite = np.atleast_1d(np.isfinite(values).all(axis=0))
    kept = None if groups is None else [g for g, k in zip(groups, is_finite, strict=True) if k]
    return values[:, is_finite], kept
