"""Ratios of means with intervals: of paired losses, and of a loss to an independent prediction.

Both invert intervals of means rather than expand a logarithm, so that they stay right where the
denominator is barely known, and inherit what `mean_interval` does for skewed values and few draws.
A denominator that cannot be told from zero gives no bounds.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from noisescope.analyse.intervals import UNKNOWN, Interval, finite_part, mean_interval
from noisescope.analyse.moments import ROUNDING, by_group, moments_of, skewed

_TAIL = 0.025
_FURTHEST = 60  # doublings of the distance from the estimate within which a bound is looked for
NO_DENOMINATOR = "what it is divided by cannot be told from zero"

Groups = Sequence[Hashable] | None
_Values = NDArray[np.float64]


def paired_ratio(over_KN: _Values, under_KN: _Values, groups: Groups = None) -> Interval:
    """Returns mean(over) / mean(under) of losses on the same draws and samples, with 95 % bounds.

    A ratio is inside where the mean of `over - ratio * under` cannot be told from zero; of all such
    ratios, those in one piece with the estimate. What draws do to both alike drops out.

    Args:
        over_KN: Losses, draw by sample; a sample that is not finite in both is left out of both.
        under_KN: Losses on the same draws and samples.
        groups: The source of each sample; None: all apart.

    Returns:
        The ratio; 1 for identical losses. NaN bounds for fewer than two samples, for losses that
        are in one proportion throughout, and where `under` cannot be told from zero; NaN
        throughout where its mean is zero.

    Source: Fieller 1954, J. R. Stat. Soc. B 16, on the moments of `mean_interval`.
    """
    both_finite = (np.isfinite(over_KN) & np.isfinite(under_KN)).all(axis=0)
    over, under = (np.where(both_finite, x, np.nan) for x in (over_KN, under_KN))
    dividend, divisor = float(np.nansum(over)), float(np.nansum(under))
    if divisor == 0:
        return replace(UNKNOWN, caution=NO_DENOMINATOR)
    ratio = dividend / divisor
    at_ratio = mean_interval(over - ratio * under, groups=groups)
    unknown = replace(at_ratio, mean=ratio, low=math.nan, high=math.nan, degrees=math.nan)
    if not at_ratio.is_known or _are_in_proportion(over, under, ratio):
        return unknown
    step = (at_ratio.high - at_ratio.low) / 4 / abs(float(np.nanmean(under)))
    bound = _bound(over, under, ratio, groups)
    low, high = _root(bound, ratio, -step), _root(bound, ratio, step)
    if math.isnan(low) or math.isnan(high):
        return replace(unknown, caution=_joined(at_ratio.caution, NO_DENOMINATOR))
    return replace(at_ratio, mean=ratio, low=low, high=high)


def _are_in_proportion(over: _Values, under: _Values, ratio: float) -> bool:
    largest = np.nanmax(np.abs(over), initial=0.0)
    return bool(np.nanmax(np.abs(over - ratio * under), initial=0.0) <= ROUNDING * largest)


def _bound(over: _Values, under: _Values, ratio: float, groups: Groups) -> Callable[[float], float]:
    """Returns how far zero is inside the interval of `over - value * under`, in its own unit.

    The t value is that of the estimate. Further off, what draws do to both alike no longer drops
    out, and two draws would ask for a t of 12.7 and find no bound at all.
    """
    kept_over, kept = finite_part(over, groups)
    over_KG, under_KG = by_group(kept_over, kept), by_group(finite_part(under, groups)[0], kept)
    critical = float(moments_of(over_KG - ratio * under_KG).critical(_TAIL))

    def bound(value: float) -> float:
        found = moments_of(over_KG - value * under_KG)
        mean, error = float(found.mean), math.sqrt(float(found.variance))
        reach = skewed(critical if mean > 0 else -critical, found.skewness)
        return abs(error * float(reach)) - abs(mean)

    return bound


def _root(bound: Callable[[float], float], ratio: float, step: float) -> float:
    """Returns the first value that is outside, going from the ratio by a step that doubles."""
    near = ratio
    for _ in range(_FURTHEST):
        far = near + step
        if bound(far) <= 0:
            return float(optimize.brentq(bound, near, far, rtol=1e-9, xtol=1e-300))
        near, step = far, 2 * step
    return math.nan


def ratio_to(measured: Interval, value: float, low: float, high: float) -> Interval:
    """Returns a measured mean over an independent estimate, with bounds from the bounds of both.

    Args:
        measured: The mean above, with its bounds.
        value: What it is divided by, above zero.
        low: Its lower bound, of the same confidence.
        high: Its upper bound.

    Returns:
        The ratio; 1 where they agree. NaN bounds where either has none, or where the lower bound of
        `value` is not above zero; NaN throughout for a value that is not above zero.

    Source: Newcombe 2016, MOVER-R confidence intervals for ratios and products of two independently
        estimated quantities, Stat. Methods Med. Res. 25; Fieller's where both are symmetric.
    """
    if not value > 0 or not math.isfinite(value):
        return replace(UNKNOWN, caution=NO_DENOMINATOR)
    unknown = replace(measured, mean=measured.mean / value, low=math.nan, high=math.nan)
    if not (low > 0 and 2 * value > high):
        return replace(unknown, caution=_joined(measured.caution, NO_DENOMINATOR))
    if not measured.is_known:
        return unknown
    product = measured.mean * value
    down = product**2 - measured.low * high * (2 * measured.mean - measured.low) * (
        2 * value - high
    )
    up = product**2 - measured.high * low * (2 * measured.mean - measured.high) * (2 * value - low)
    return replace(
        unknown,
        low=(product - math.sqrt(max(down, 0.0))) / (high * (2 * value - high)),
        high=(product + math.sqrt(max(up, 0.0))) / (low * (2 * value - low)),
    )


def _joined(*cautions: str) -> str:
    return "; ".join(c for c in cautions if c)


def ratio_text(value: float) -> str:
    """Writes a ratio with three digits, and in full from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def interval_text(ratio: Interval, what: str) -> str:
    """Writes a ratio with its bounds, e.g. `1.2 times the line [1.1, 1.3]`."""
    bounds = f"[{ratio_text(ratio.low)}, {ratio_text(ratio.high)}]"
    return f"{ratio_text(ratio.mean)} times {what} {bounds}"
