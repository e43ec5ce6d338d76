"""Differences of right answers, each 1, 0 or -1: intervals and tests that hold for few of them.

Draws and sources of questions are counted by an effective number of answers: as many independent
ones as would have the variance that was found.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from noisescope.analyse.intervals import Interval, cautions, crossed_interval, finite_part
from noisescope.analyse.moments import Moments, by_group, moments_of

_FEW_DISCORDANT = 10


@dataclass(frozen=True)
class Shares:
    """How often answers were lost and won, with what that is worth.

    Attributes:
        lost: Share of answers that the noise made wrong.
        won: Share that it made right.
        cell_variance: Variance of one answer's difference.
        moments: Of the differences; None where all are the same.
        groups: Independent questions.
    """

    lost: float
    won: float
    cell_variance: float
    moments: Moments | None
    groups: int

    @property
    def size(self) -> float:
        """The effective number of answers; the number of questions for one draw.

        Source: Korn and Graubard 1998, Survey Methodology 24.
        """
        if self.moments is None:
            return float(self.groups)
        return self.cell_variance / float(self.moments.variance)

    def centre_and_error(self) -> tuple[float, float]:
        """Returns the mean with one lost and one won answer added, and its standard error.

        Source: Bonett and Price 2012, J. Educ. Behav. Stat. 37.
        """
        n = self.size + 2
        lost, won = (self.lost * self.size + 1) / n, (self.won * self.size + 1) / n
        return lost - won, math.sqrt((lost + won - (lost - won) ** 2) / n)

    def p_above(self, margin: float) -> float:
        """Returns the one-sided p that the loss is not above a margin.

        The larger of the t test's and of McNemar's exact one, with the effective counts.
        """
        if self.moments is None:
            return ((1 + margin) / 2) ** self.groups if self.lost == 1 else 1.0
        centre, error = self.centre_and_error()
        p = float(self.moments.tail((centre - margin) / error))
        return max(p, self._mcnemar())

    def is_above(self, margin: float, level: float) -> bool:
        """Returns whether `p_above` is below a level, at a fraction of its cost."""
        if self.moments is None:
            return self.p_above(margin) < level
        centre, error = self.centre_and_error()
        is_beyond = bool((centre - margin) / error > self.moments.critical(level))
        return is_beyond and self._mcnemar() < level

    def _mcnemar(self) -> float:
        if self.lost == 0:
            return 1.0
        lost, won = self.lost * self.size, self.won * self.size
        return float(special.betainc(lost, won + 1, 0.5))

    def p_below(self, margin: float) -> float:
        """Returns the one-sided p that the loss is not below a margin.

        The largest of the t test's, of Tango's score test and of the exact binomial test of as
        many lost answers as were lost on balance. Without any difference, the rule of three.

        Source: Tango 1998, Stat. Med. 17; Hanley and Lippman-Hand 1983.
        """
        if self.moments is None:
            return math.exp(-self.groups * margin) if self.lost == 0 == self.won else 1.0
        centre, error = self.centre_and_error()
        p = float(self.moments.tail((margin - centre) / error))
        return max(p, self._score(margin), self._binomial(margin))

    def is_below(self, margin: float, level: float) -> bool:
        """Returns whether `p_below` is below a level, likewise."""
        if self.moments is None:
            return self.p_below(margin) < level
        centre, error = self.centre_and_error()
        is_beyond = bool((margin - centre) / error > self.moments.critical(level))
        return is_beyond and max(self._score(margin), self._binomial(margin)) < level

    def _score(self, margin: float) -> float:
        n = self.size
        lost, won = self.lost * n, self.won * n
        middle = (lost + won) * (1 - margin) - 2 * (n - lost) * margin
        root = math.sqrt(middle**2 + 8 * n * won * margin * (1 - margin))
        won_at_margin = max(0.0, (middle + root) / (4 * n))
        variance = n * (2 * won_at_margin + margin * (1 - margin))
        return float(special.ndtr((lost - won - n * margin) / math.sqrt(variance)))

    def _binomial(self, margin: float) -> float:
        n = self.size
        balance = min(max(0.0, (self.lost - self.won) * n), n - 1e-9)
        return float(special.betainc(n - balance, balance + 1, 1 - margin))

    def at(self, K: int, N: int) -> "Shares":
        """Returns what K draws of N independent questions would tell if these shares hold."""
        moments = None if self.moments is None else self.moments.at(K, N)
        return replace(self, moments=moments, groups=N)


def shares_of(values_KN: NDArray[np.float64], groups: Sequence[Hashable] | None = None) -> Shares:
    """Returns the shares of finite differences, of which there are at least two questions."""
    has_spread = values_KN.size > 1 and np.ptp(values_KN) > 0
    grouped = by_group(values_KN, groups)
    has_spread = has_spread and grouped.shape[1] > 1
    moments = moments_of(grouped) if has_spread else None
    if moments is not None and not float(moments.variance) > 0:
        moments = None
    return Shares(
        lost=float((values_KN > 0).mean()),
        won=float((values_KN < 0).mean()),
        cell_variance=float(values_KN.var(ddof=1)) if values_KN.size > 1 else math.nan,
        moments=moments,
        groups=grouped.shape[1],
    )


def share_interval(
    values_KN: NDArray[np.float64], groups: Sequence[Hashable] | None = None
) -> Interval:
    """Returns the mean of differences of right answers, each 1, 0 or -1, with its 95 % interval.

    Args:
        values_KN: Draw by question; what is not finite drops its question.
        groups: The source of each question; None: all apart.

    Returns:
        The interval; NaN bounds for fewer than two independent questions. Where all are the same,
        the share of others is at most about 3 / N with 95 % confidence.

    Source: Bonett and Price 2012; the rule of three, Hanley and Lippman-Hand 1983.
    """
    values, kept = finite_part(values_KN, groups)
    plain = crossed_interval(values, groups=kept)
    shares = shares_of(values, kept) if values.size else None
    if shares is None or shares.groups < 2:
        return plain
    few = [] if shares.moments is None else cautions(_without_skew(shares.moments), values.shape[1])
    caution = "; ".join([*_few_discordant(values), *few])
    if shares.moments is None:
        reach = 3 / shares.groups
    else:
        centre, error = shares.centre_and_error()
        reach = error * float(shares.moments.critical(0.025))
        low, high = min(plain.mean, centre - reach), max(plain.mean, centre + reach)
        bounds = (max(-1.0, low), min(1.0, high))
        return replace(plain, low=bounds[0], high=bounds[1], caution=caution)
    low, high = max(-1.0, plain.mean - reach), min(1.0, plain.mean + reach)
    return replace(plain, low=low, high=high, caution=caution)


def _few_discordant(values: NDArray[np.float64]) -> list[str]:
    changed = int((values != 0).any(axis=0).sum())
    if changed >= _FEW_DISCORDANT:
        return []
    return [
        f"few discordant answers: {changed} of {values.shape[1]} questions changed, and the "
        "interval is rough"
    ]


def _without_skew(moments: Moments) -> Moments:
    """Moments without their skewness, which intervals of shares do not use."""
    zero = np.zeros_like(moments.mean)
    return replace(moments, third_draw=zero, third_question=zero)
