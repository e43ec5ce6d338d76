"""Intervals for paired differences over questions and noise draws, and exact tests for one draw.

More questions never remove the variance between draws, so both count. Fewer than two of either
gives NaN bounds for what they alone could tell: an interval of zero width would be a claim nobody
can make.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

# Mean squares below this share of the rest are its rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean with its two-sided confidence interval.

    Attributes:
        mean: The estimate; NaN without data.
        low: Lower bound; NaN where the data cannot give one.
        high: Upper bound, likewise.
        degrees: Degrees of freedom; NaN where there is no interval.
        includes_draws: Whether the interval covers the variance between draws; with one draw it
            speaks of this realisation of the noise only.
    """

    mean: float
    low: float
    high: float
    degrees: float
    includes_draws: bool

    @property
    def is_known(self) -> bool:
        """True where there are bounds."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def crossed_interval(values_KN: NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """Returns the mean of K draws x N questions with a t interval that counts both.

    Args:
        values_KN: Paired differences, draw by question; what is not finite drops its question.
        confidence: Of the two-sided interval.

    Returns:
        The interval. N < 2, and values that are all the same, give NaN bounds: there is no spread
        to judge by. K = 1 gives the interval over questions alone.

    Source: two-way random effects without replication; degrees of freedom by Satterthwaite 1946.
    """
    values = finite_questions(values_KN)
    K, N = values.shape
    if N == 0:
        return Interval(math.nan, math.nan, math.nan, math.nan, K > 1)
    mean = float(values.mean())
    if N < 2:
        return Interval(mean, math.nan, math.nan, math.nan, K > 1)
    if np.ptp(values) == 0:
        return Interval(mean, math.nan, math.nan, math.nan, K > 1)
    variance, degrees = _variance_of_mean(values)
    half = float(stats.t.ppf(0.5 + confidence / 2, degrees)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, degrees, K > 1)


def share_interval(values_KN: NDArray[np.float64]) -> Interval:
    """Returns `crossed_interval` for differences of right answers, each 1, 0 or -1.

    Where all are the same, the share of others is at most about 3 / N with 95 % confidence.

    Source: the rule of three, Hanley and Lippman-Hand 1983.
    """
    values = finite_questions(values_KN)
    interval = crossed_interval(values)
    N = values.shape[1]
    if N < 2 or np.ptp(values) > 0:
        return interval
    low, high = max(-1.0, interval.mean - 3 / N), min(1.0, interval.mean + 3 / N)
    return replace(interval, low=low, high=high)


def finite_questions(values_KN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the columns whose every entry is finite."""
    values = np.asarray(values_KN, dtype=np.float64)
    kept: NDArray[np.float64] = values[:, np.isfinite(values).all(axis=0)]
    return kept


def _variance_of_mean(values: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the variance of the grand mean and its degrees of freedom."""
    K, N = values.shape
    by_draw, by_question, mean = values.mean(axis=1), values.mean(axis=0), values.mean()
    ms_question = K * float(((by_question - mean) ** 2).sum()) / (N - 1)
    if K == 1:
        return ms_question / N, float(N - 1)
    ms_draw = N * float(((by_draw - mean) ** 2).sum()) / (K - 1)
    rest = values - by_draw[:, None] - by_question[None, :] + mean
    ms_rest = float((rest**2).sum()) / ((K - 1) * (N - 1))
    total = ms_draw + ms_question - ms_rest
    largest = max(ms_draw, ms_question)
    if largest <= _ROUNDING * ms_rest:  # both are level: what is left is all there is to judge by
        return ms_rest / (K * N), float((K - 1) * (N - 1))
    if total <= largest:
        return largest / (K * N), float(K - 1 if ms_draw >= ms_question else N - 1)
    parts = ms_draw**2 / (K - 1) + ms_question**2 / (N - 1) + ms_rest**2 / ((K - 1) * (N - 1))
    return total / (K * N), total**2 / parts


def t_test_p(values_KN: NDArray[np.float64]) -> float:
    """Returns the two-sided p of a mean of zero; NaN for N < 2, 1 where nothing differs at all.

    Where every difference is the same non-zero number there is no variance to judge by, and the
    exact sign test over questions stands in: 2^(1 - N).
    """
    values = finite_questions(values_KN)
    if values.shape[1] < 2:
        return math.nan
    if not values.any():
        return 1.0
    if np.ptp(values) == 0:
        return math.ldexp(2.0, -values.shape[1])
    variance, degrees = _variance_of_mean(values)
    t = abs(float(values.mean())) / math.sqrt(variance)
    return float(2 * stats.t.sf(t, degrees))


def mcnemar_p(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Returns the exact two-sided p that two paired sets of answers are equally often right.

    No discordant pair gives 1. Source: McNemar 1947, exact binomial form.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant = only_first + only_second
    if not discordant:
        return 1.0
    return min(1.0, 2 * float(stats.binom.cdf(min(only_first, only_second), discordant, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p values adjusted so that the family-wise error is held; NaN stays NaN.

    Source: Holm 1979.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[i] = largest
    return adjusted
