"""The difference of two means that nothing pairs: two sets of samples, each with its own chance.

Both variances count, and each brings the t value of its own degrees of freedom. What pairs can tell
is in `evidence`; this answers the same questions, so that whoever judges need not know which it is.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from noisescope.analyse.intervals import Interval, cautions, finite_part
from noisescope.analyse.moments import Moments, by_group, moments_of, skewed, unskewed

_TAIL = 0.025
_LEAST_LOG_TAIL = math.log(1e-40)
_UNSEEN = 2.0  # as in `evidence.Spread`: how much worse than the worst sample another may be

Values = NDArray[np.float64]
Groups = Sequence[Hashable] | None


@dataclass(frozen=True)
class Side:
    """The mean of one set of samples.

    Attributes:
        moments: Of its values, over groups of samples; at least two.
        largest: The largest mean value of a sample or group.
        cell_variance: Variance of one right or wrong answer; NaN where values are no answers.
        plain_mean: Of the values as they are.
    """

    moments: Moments
    largest: float
    cell_variance: float
    plain_mean: float

    @property
    def _size(self) -> float:
        """The effective number of answers. Source: Korn and Graubard 1998."""
        variance = float(self.moments.variance)
        return self.cell_variance / variance if variance > 0 else float(self.moments.N)

    @property
    def is_share(self) -> bool:
        """Whether the values are right (1) and wrong (0) answers."""
        return not math.isnan(self.cell_variance)

    @property
    def centre(self) -> float:
        """The mean; of answers with one right and one wrong one added."""
        if not self.is_share:
            return float(self.moments.mean)
        return (self.plain_mean * self._size + 1) / (self._size + 2)

    @property
    def variance(self) -> float:
        """Of the centre. Source: Agresti and Caffo 2000, Am. Stat. 54, for answers."""
        if not self.is_share:
            return float(self.moments.variance)
        return self.centre * (1 - self.centre) / (self._size + 2)

    @property
    def third(self) -> float:
        """Third central moment of the centre; 0 for answers, whose bounds need no such mending."""
        if self.is_share:
            return 0.0
        return float(self.moments.skewness) * math.pow(float(self.moments.variance), 1.5)

    def at(self, K: int, N: int) -> "Side":
        """Returns what K draws of N samples would tell if these figures are the true ones."""
        return Side(self.moments.at(K, N), self.largest, self.cell_variance, self.plain_mean)

    def with_unseen(self) -> "Side":
        """Returns the side with one more sample, worse than the worst one seen."""
        if self.is_share:
            return self
        worse = np.asarray(_UNSEEN * max(self.largest, 0.0))
        return Side(self.moments.with_unseen(worse), self.largest, math.nan, self.plain_mean)


@dataclass(frozen=True)
class Apart:
    """The mean of one side less that of another.

    Attributes:
        minuend: The side that counts as it is.
        subtrahend: The side that is taken away.
    """

    minuend: Side
    subtrahend: Side

    @property
    def moments(self) -> Moments | None:
        """Of the minuend; None where nothing varies on either side."""
        return self.minuend.moments if self._variance > 0 else None

    @property
    def _centre(self) -> float:
        return self.minuend.centre - self.subtrahend.centre

    @property
    def _variance(self) -> float:
        return self.minuend.variance + self.subtrahend.variance

    @property
    def _skewness(self) -> float:
        third = self.minuend.third - self.subtrahend.third
        return third / self._variance**1.5 if self._variance > 0 else 0.0

    def critical(self, tail: float) -> float:
        """Returns the t value that the difference over its standard error exceeds with a chance.

        Source: Cochran and Cox 1957, Experimental Designs, section 4.14.
        """
        sides = (self.minuend, self.subtrahend)
        weighted = (side.variance * float(side.moments.critical(tail)) for side in sides)
        return sum(weighted) / self._variance

    def bounds(self, tail: float = _TAIL) -> tuple[float, float]:
        """Returns the bounds of the difference, each missed with chance `tail`; NaN for a level."""
        if not self._variance > 0:
            return math.nan, math.nan
        t, error = self.critical(tail), math.sqrt(self._variance)
        low, high = (self._centre - error * float(skewed(s * t, self._skewness)) for s in (1, -1))
        return low, high

    def p_above(self, margin: float) -> float:
        """Returns the one-sided p that the difference is not above a margin."""
        if not self._variance > 0:
            return self._level(self._centre > margin)
        t = float(unskewed((self._centre - margin) / math.sqrt(self._variance), self._skewness))
        return self._tail(t)

    def p_below(self, margin: float) -> float:
        """Returns the one-sided p that the difference is not below a margin.

        It must stand one more sample, worse than the worst one, as `evidence.Spread` does.
        """
        if not self._variance > 0:
            return self._level(self._centre < margin)
        guarded = Apart(self.minuend.with_unseen(), self.subtrahend)
        return 1 - guarded.p_above(margin)

    def is_above(self, margin: float, level: float) -> bool:
        """Returns whether `p_above` is below a level."""
        return self.p_above(margin) < level

    def is_below(self, margin: float, level: float) -> bool:
        """Returns whether `p_below` is below a level."""
        return self.p_below(margin) < level

    def at(self, K: int, N: int) -> "Apart":
        """Returns what K draws of N samples on the smaller side, and more on the other, tell."""
        smaller = min(self.minuend.moments.N, self.subtrahend.moments.N)
        sides = (
            side.at(K, max(2, round(N * side.moments.N / smaller)))
            for side in (self.minuend, self.subtrahend)
        )
        return Apart(*sides)

    def _level(self, is_beyond: bool) -> float:
        """Returns the p of two sides of one value each: every sample could have told otherwise."""
        smaller = min(self.minuend.moments.N, self.subtrahend.moments.N)
        return math.ldexp(1.0, -smaller) if is_beyond else 1.0

    def _tail(self, t: float) -> float:
        """Returns the chance to exceed a t value: the inverse of `critical`."""
        size = abs(t)

        def excess(log_tail: float) -> float:
            return self.critical(math.exp(log_tail)) - size

        if math.isinf(size) or excess(_LEAST_LOG_TAIL) <= 0:
            found = math.exp(_LEAST_LOG_TAIL)
        else:
            found = math.exp(optimize.brentq(excess, _LEAST_LOG_TAIL, math.log(0.5)))
        return found if t >= 0 else 1 - found


def side_of(values_KN: Values, groups: Groups, is_share: bool) -> Side | None:
    """Returns a side, of what is finite; None for fewer than two independent samples.

    Args:
        values_KN: Values, draw by sample.
        groups: The source of each sample; None: all apart.
        is_share: Whether they are right (1) and wrong (0) answers.
    """
    values, kept = finite_part(values_KN, groups)
    if values.shape[1] < 2:
        return None
    grouped = by_group(values, kept)
    if grouped.shape[1] < 2:
        return None
    largest = float(grouped.mean(axis=0).max())
    cell = float(values.var(ddof=1)) if is_share else math.nan
    return Side(moments_of(grouped), largest, cell, float(values.mean()))


def apart_interval(test: Apart) -> Interval:
    """Returns the difference of two means with its 95 % interval; NaN bounds where none varies."""
    minuend, subtrahend = test.minuend, test.subtrahend
    mean = minuend.plain_mean - subtrahend.plain_mean
    low, high = test.bounds()
    if minuend.is_share:
        low, high = max(-1.0, min(mean, low)), min(1.0, max(mean, high))
    counts = [side.moments.K for side in (minuend, subtrahend)]
    told = [c for side in (minuend, subtrahend) for c in cautions(side.moments, side.moments.N)]
    if minuend.is_share:
        told = [c for c in told if not c.startswith("skewed")]
    caution = "; ".join(dict.fromkeys(told))
    degrees = float(min(side.moments.N for side in (minuend, subtrahend)) - 1)
    return Interval(mean, low, high, degrees, min(counts) > 1, caution)
