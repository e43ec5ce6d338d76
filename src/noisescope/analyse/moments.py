"""Mean, variance and skewness of a table of draws x questions, each source of chance apart.

All figures are arrays over any leading axes, so that a thousand simulated studies go through the
very code that one real study goes through. Questions of one source count as one.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]

# Mean squares below this share of the rest are its rounding.
ROUNDING = 1e-12
_LEAST_DRAWS_FOR_SKEW = 5  # fewer say nothing of a third moment
_LEAST_TAIL = 1e-40
_GRID, _PASSES = 64, 6


@dataclass(frozen=True)
class Moments:
    """What a table of K draws x N questions (or groups of them) tells of its mean.

    Attributes:
        mean: The grand mean.
        ms_draw: Mean square of draws; 0 with one draw.
        ms_question: Mean square of questions.
        ms_rest: Mean square of what neither explains; 0 with one draw.
        third_draw: Third central moment of the means of draws; 0 below five draws.
        third_question: Third central moment of the means of questions.
        K: Draws.
        N: Questions, or groups of them; at least 2.
    """

    mean: Array
    ms_draw: Array
    ms_question: Array
    ms_rest: Array
    third_draw: Array
    third_question: Array
    K: int
    N: int

    @property
    def _square(self) -> Array:
        """K N times the variance of the mean, at least that of draws or questions alone."""
        largest = np.maximum(self.ms_draw, self.ms_question)
        total = np.maximum(self.ms_draw + self.ms_question - self.ms_rest, largest)
        # Where draws and questions are both level, the rest is all there is to judge by.
        found: Array = np.where(largest <= ROUNDING * self.ms_rest, self.ms_rest, total)
        return found

    @property
    def variance(self) -> Array:
        """Variance of the grand mean. Source: two-way random effects without replication."""
        return self._square / (self.K * self.N)

    @property
    def degrees(self) -> Array:
        """Degrees of freedom of the variance. Source: Satterthwaite 1946."""
        if self.K == 1:
            return np.full_like(self.mean, self.N - 1.0)
        K, N, square = self.K, self.N, self._square
        largest = np.maximum(self.ms_draw, self.ms_question)
        alone = np.where(self.ms_draw >= self.ms_question, K - 1.0, N - 1.0)
        alone = np.where(square > largest, (K - 1.0) * (N - 1.0), alone)
        parts = self.ms_draw**2 / (K - 1) + self.ms_question**2 / (N - 1)
        parts += self.ms_rest**2 / ((K - 1) * (N - 1))
        is_sum = self.ms_draw + self.ms_question - self.ms_rest > largest
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = np.where(is_sum, square**2 / parts, alone)
        return found

    @property
    def skewness(self) -> Array:
        """Skewness of the grand mean as an estimate; 0 where nothing varies."""
        third = self.third_question / self.N**2 + self.third_draw / self.K**2
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Array = np.where(self.variance > 0, third / self.variance**1.5, 0.0)
        return found

    @property
    def draw_share(self) -> Array:
        """The share of the variance that draws alone would account for; 0 with one draw."""
        square = np.where(self._square > 0, self._square, 1.0)
        return np.asarray(np.clip(self.ms_draw / square, 0.0, 1.0))

    def critical(self, tail: ArrayLike) -> Array:
        """Returns the t value that the mean over its standard error exceeds with chance `tail`.

        Each source of variance brings the t value of its own degrees of freedom, weighted by its
        share. Satterthwaite's sum takes few draws for many where they happen to agree: with two
        draws its 95 % interval covers 88 %, and a test at 0.36 % errs in 6 % (benchmarks).

        Source: Cochran and Cox 1957, Experimental Designs, section 4.14.
        """
        tails = np.asarray(tail, dtype=np.float64)
        of_questions = -special.stdtrit(self.N - 1, tails)
        if self.K == 1:
            return np.broadcast_to(of_questions, np.broadcast_shapes(tails.shape, self.mean.shape))
        of_draws = -special.stdtrit(self.K - 1, tails)
        found: Array = self.draw_share * of_draws + (1 - self.draw_share) * of_questions
        return found

    def tail(self, t: ArrayLike) -> Array:
        """Returns the chance to exceed a t value: the inverse of `critical`."""
        size = np.abs(np.asarray(t, dtype=np.float64))
        if self.K == 1:
            found: Array = special.stdtr(self.N - 1, -size)
        else:
            found = self._tail_by_search(size)
        return np.where(np.asarray(t) >= 0, found, 1 - found)

    def _tail_by_search(self, size: Array) -> Array:
        """Finds the tail in its logarithm, a grid of points at a time."""
        shape = np.broadcast_shapes(size.shape, self.mean.shape)
        low, high = np.full(shape, math.log(_LEAST_TAIL)), np.full(shape, math.log(0.5))
        at = np.linspace(0.0, 1.0, _GRID).reshape(-1, *[1] * len(shape))
        for _ in range(_PASSES):
            grid = low + at * (high - low)
            is_above = self.critical(np.exp(grid)) > size  # the critical value falls with the tail
            last = np.clip(is_above.sum(axis=0) - 1, 0, _GRID - 2)
            step = (high - low) / (_GRID - 1)
            low, high = low + last * step, low + (last + 1) * step
        found: Array = np.exp((low + high) / 2)
        return np.where(np.isnan(size), np.nan, found)

    def bounds(self, tail: float) -> tuple[Array, Array]:
        """Returns the bounds of the mean, each missed with chance `tail`, freed of skewness."""
        t, error = self.critical(tail), np.sqrt(self.variance)
        low = self.mean - error * skewed(t, self.skewness)
        return low, self.mean - error * skewed(-t, self.skewness)

    def _t(self, value: float) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (self.mean - value) / np.sqrt(self.variance)
        return unskewed(t, self.skewness)

    def p_above(self, value: float) -> Array:
        """Returns the one-sided p that the true mean is not above a value."""
        return self.tail(self._t(value))

    def p_below(self, value: float) -> Array:
        """Returns the one-sided p that the true mean is not below a value."""
        return self.tail(-self._t(value))

    def is_above(self, value: float, level: float) -> NDArray[np.bool_]:
        """Returns whether `p_above` is below a level, at a fraction of its cost."""
        return np.asarray(self._t(value) > self.critical(level))

    def is_below(self, value: float, level: float) -> NDArray[np.bool_]:
        """Returns whether `p_below` is below a level, likewise."""
        return np.asarray(-self._t(value) > self.critical(level))

    def with_unseen(self, value: Array) -> "Moments":
        """Returns the moments with one more question, whose loss is a value in every draw."""
        K, N, far = self.K, self.N, value - self.mean
        shift = far / (N + 1)
        square = self.ms_question * (N - 1) / K
        third = self.third_question * (N - 1) * (N - 2) / N  # back to a plain sum
        third = third - 3 * shift * square - N * shift**3 + (far * N / (N + 1)) ** 3
        return replace(
            self,
            mean=self.mean + shift,
            ms_draw=self.ms_draw * N / (N + 1),
            ms_question=K * (square + far**2 * N / (N + 1)) / N,
            ms_rest=(self.ms_rest * (N - 1) + self.ms_draw / (N + 1)) / N,
            third_draw=self.third_draw * (N / (N + 1)) ** 3,
            third_question=third * (N + 1) / (N * (N - 1)),
            N=N + 1,
        )

    def at(self, K: int, N: int) -> "Moments":
        """Returns what K draws of N questions would tell if these components are the true ones."""
        of_draw = np.maximum(self.ms_draw - self.ms_rest, 0.0) / self.N
        of_question = np.maximum(self.ms_question - self.ms_rest, 0.0) / self.K
        ms_draw = N * of_draw + self.ms_rest if K > 1 else np.zeros_like(self.mean)
        ms_question = K * of_question + self.ms_rest
        ms_rest = self.ms_rest if K > 1 else np.zeros_like(self.mean)
        return replace(self, ms_draw=ms_draw, ms_question=ms_question, ms_rest=ms_rest, K=K, N=N)


def unskewed(t: ArrayLike, skewness: ArrayLike) -> Array:
    """Returns a t value as it would be if the estimate were not skewed; rising in t.

    The mean of skewed values, over a standard error that goes along with it, is skewed the other
    way: intervals for KL over twenty questions covered 87 % and cover 92 % with this.

    Source: Hall 1992, On the removal of skewness by transformation, J. R. Stat. Soc. B 54.
    """
    t, a = np.asarray(t, dtype=np.float64), np.asarray(skewness, dtype=np.float64)
    found: Array = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
    return found


def skewed(t: ArrayLike, skewness: ArrayLike) -> Array:
    """Returns the inverse of `unskewed`; without skewness, t itself."""
    t, a = np.asarray(t, dtype=np.float64), np.asarray(skewness, dtype=np.float64)
    is_level = np.abs(a) < 1e-9  # where the cube root would cancel
    safe = np.where(is_level, 1.0, a)
    found: Array = np.where(is_level, t, 3 / safe * (np.cbrt(1 + safe * t - safe**2 / 6) - 1))
    return found


def moments_of(values_KN: Array) -> Moments:
    """Returns the moments of [..., K, N] values, all finite, N of at least 2."""
    K, N = values_KN.shape[-2:]
    by_draw, by_question = values_KN.mean(axis=-1), values_KN.mean(axis=-2)
    mean = by_question.mean(axis=-1)
    off_draw, off_question = by_draw - mean[..., None], by_question - mean[..., None]
    zero = np.zeros_like(mean)
    ms_draw = ms_rest = zero
    if K > 1:
        ms_draw = N * (off_draw**2).sum(axis=-1) / (K - 1)
        rest = values_KN - by_draw[..., None] - off_question[..., None, :]
        ms_rest = (rest**2).sum(axis=(-2, -1)) / ((K - 1) * (N - 1))
    return Moments(
        mean=mean,
        ms_draw=ms_draw,
        ms_question=K * (off_question**2).sum(axis=-1) / (N - 1),
        ms_rest=ms_rest,
        third_draw=third_moment(off_draw) if K >= _LEAST_DRAWS_FOR_SKEW else zero,
        third_question=third_moment(off_question) if N > 2 else zero,
        K=K,
        N=N,
    )


def third_moment(off_mean: Array) -> Array:
    """Returns the unbiased third central moment of deviations from their mean, on the last axis."""
    n = off_mean.shape[-1]
    found: Array = (off_mean**3).sum(axis=-1) * n / ((n - 1) * (n - 2))
    return found


def by_group(values_KN: Array, groups: Sequence[Hashable] | None) -> Array:
    """Returns one value per draw and group, whose plain variance is the cluster-robust one.

    Z_kg = mean + G/N * (sum over the group of what lies above the mean): with one draw the variance
    of their mean is the CR1 variance of the mean over questions.

    Source: Miller 2024, arXiv 2411.00640; Liang and Zeger 1986.
    """
    codes = {group: i for i, group in enumerate(dict.fromkeys(groups or ()))}
    N, G = values_KN.shape[-1], len(codes)
    if groups is None or G == N:
        return values_KN
    mean = values_KN.mean(axis=(-2, -1), keepdims=True)
    member_NG = np.zeros((N, G))
    member_NG[np.arange(N), [codes[group] for group in groups]] = 1.0
    found: Array = mean + G / N * ((values_KN - mean) @ member_NG)
    return found
