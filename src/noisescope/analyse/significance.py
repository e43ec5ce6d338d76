"""Tests of paired differences, and what many tests at once do to their p values."""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisescope.analyse.intervals import finite_part
from noisescope.analyse.moments import by_group, moments_of


def t_test_p(values_KN: NDArray[np.float64], groups: Sequence[Hashable] | None = None) -> float:
    """Returns the two-sided p of a mean of zero; NaN for N < 2, 1 where nothing differs at all.

    It is the test of `crossed_interval`. Where every difference is the same non-zero number there
    is no variance to judge by, and the exact sign test over questions stands in: 2^(1 - N).
    """
    values, groups = finite_part(values_KN, groups)
    known = _p_without_spread(values, groups)
    if known is not None:
        return known
    moments = moments_of(by_group(values, groups))
    t = abs(float(moments.mean)) / math.sqrt(moments.variance)
    return float(2 * stats.t.sf(t, float(moments.degrees)))


def mean_test_p(values_KN: NDArray[np.float64], groups: Sequence[Hashable] | None = None) -> float:
    """Returns the same for the test of `mean_interval`, which holds for skewed values."""
    values, groups = finite_part(values_KN, groups)
    known = _p_without_spread(values, groups)
    if known is not None:
        return known
    p = float(moments_of(by_group(values, groups)).p_above(0.0))
    return 2 * min(p, 1 - p)


def _p_without_spread(
    values: NDArray[np.float64], groups: Sequence[Hashable] | None
) -> float | None:
    """Returns the p where values give no variance; None where they do."""
    G = values.shape[1] if groups is None else len(set(groups))
    if G < 2:
        return math.nan
    if not values.any():
        return 1.0
    return math.ldexp(2.0, -G) if np.ptp(values) == 0 else None


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
