"""The scale of the noise at which a chosen loss is reached, with the interval the data allow.

A scale counts as below or above the target only where the 95 % interval of its loss lies on that
side; the critical scale lies between the two. Nothing is extrapolated: without a scale on either
side there is a bound only.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from noisescope.analyse.intervals import Interval, mean_interval
from noisescope.analyse.shares import share_interval
from noisescope.analyse.target import Target
from noisescope.errors import InputError

Side = Literal["below", "above", "unclear"]
_SIGN_TEST = 0.025  # as much as one end of a 95 % interval misses
_FLOOR = 1e-3  # losses below this share of the target are all the same to the interpolation

Losses = Mapping[float, NDArray[np.float64]]
Groups = Sequence[Hashable] | None


@dataclass(frozen=True)
class Tried:
    """One scale against the target.

    Attributes:
        scale: Relative size of the noise.
        loss: The loss with its interval; lower is better.
        side: `below` or `above` the target beyond chance, or `unclear`.
    """

    scale: float
    loss: Interval
    side: Side


@dataclass(frozen=True)
class CriticalScale:
    """The scale at which the target is reached.

    Attributes:
        estimate: By interpolation; NaN where the losses measured do not pass the target. Higher is
            better: the model stands more noise.
        low: The largest scale that is below the target beyond chance, and below which none is above
            it; 0 where there is none.
        high: The smallest scale that is above the target beyond chance; infinity where there is
            none.
        is_bracketed: Whether both were found.
        reason: One sentence for a person.
        scales: The scales measured, rising.
    """

    estimate: float
    low: float
    high: float
    is_bracketed: bool
    reason: str
    scales: tuple[float, ...]


def critical_scale(target: Target, measured: Losses, groups: Groups = None) -> CriticalScale:
    """Returns the scale at which the target is reached.

    Args:
        target: The loss asked for.
        measured: Per scale the losses, draw by sample, on the same draws and samples: KL or change
            of the NLL in nats per token, or clean minus noisy answers (1, 0 or -1). Not finite
            where the logits overflowed or nothing was scored.
        groups: The source of each sample; None: all apart.

    Returns:
        The critical scale. Losses that fall on the way up are pooled for the estimate. Fewer than
        two samples leave every scale unclear; one draw speaks of that draw only.

    Raises:
        InputError: A scale that is not above zero, or tables of different shape.

    Source: isotonic regression (Barlow et al. 1972), then linear interpolation of log loss, or of
        lost answers, in log scale.
    """
    tried = sides(target, measured, groups)
    low, high = bracket(tried)
    estimate = _estimate(target, tried)
    is_bracketed = low > 0 and math.isfinite(high)
    if is_bracketed:
        estimate = math.sqrt(low * high) if math.isnan(estimate) else min(max(estimate, low), high)
    reason = _reason(target, tried, low, high, estimate)
    if any(values.shape[0] == 1 for values in measured.values()):
        reason += "; one draw: this speaks of that realisation of the noise only"
    scales = tuple(one.scale for one in tried)
    return CriticalScale(estimate, low, high, is_bracketed, reason, scales)


def sides(target: Target, measured: Losses, groups: Groups = None) -> tuple[Tried, ...]:
    """Returns which side of the target each scale is on, rising in scale."""
    shapes = {values.shape for values in measured.values()}
    if len(shapes) > 1:
        raise InputError(
            f"losses of shapes {sorted(shapes)}: every scale needs one table [draws, samples] of "
            "the same draws and samples; measure the missing ones"
        )
    wrong = next((s for s in measured if not (math.isfinite(s) and s > 0)), None)
    if wrong is not None:
        raise InputError(f"scale {wrong!r}: give a finite number above 0")
    if not measured:
        return ()
    is_finite = {s: np.isfinite(values).all(axis=0) for s, values in measured.items()}
    scorable = np.logical_or.reduce(list(is_finite.values()))
    return tuple(
        _tried(target, scale, measured[scale], groups, scorable & ~is_finite[scale], scorable)
        for scale in sorted(measured)
    )


def _tried(
    target: Target,
    scale: float,
    values_KN: NDArray[np.float64],
    groups: Groups,
    overflowed: NDArray[np.bool_],
    scorable: NDArray[np.bool_],
) -> Tried:
    is_share = target.measure == "accuracy"
    loss = share_interval(values_KN, groups) if is_share else mean_interval(values_KN, 0.95, groups)
    side = _side(loss, target.loss, _independent(scorable & ~overflowed, groups))
    if overflowed.any() and side != "above":  # what overflowed lost more than any number says
        side = "above" if overflowed.all() or math.isnan(loss.mean) else "unclear"
    return Tried(scale, loss, side)


def _independent(kept: NDArray[np.bool_], groups: Groups) -> int:
    """Returns how many sources of samples are kept."""
    if groups is None:
        return int(kept.sum())
    return len({group for group, k in zip(groups, kept, strict=True) if k})


def _side(loss: Interval, target: float, samples: int) -> Side:
    """Judges by the interval, and by the sign test where every sample loses the same."""
    if not loss.is_known:
        is_level = math.isfinite(loss.mean) and math.ldexp(1.0, -samples) < _SIGN_TEST
        if not is_level or loss.mean == target:
            return "unclear"
        return "below" if loss.mean < target else "above"
    if loss.high < target:
        return "below"
    return "above" if loss.low > target else "unclear"


def bracket(tried: Sequence[Tried]) -> tuple[float, float]:
    """Returns the largest scale below and the smallest above; 0 and infinity where none is."""
    high = min((one.scale for one in tried if one.side == "above"), default=math.inf)
    low = max((t.scale for t in tried if t.side == "below" and t.scale < high), default=0.0)
    return low, high


def _estimate(target: Target, tried: Sequence[Tried]) -> float:
    """Returns the scale at which the rising fit passes the target; NaN where it does not."""
    known = [one for one in tried if math.isfinite(one.loss.mean)]
    if len(known) < 2:
        return math.nan
    losses, goal = np.array([one.loss.mean for one in known]), target.loss
    if target.measure != "accuracy":
        losses, goal = np.log(np.maximum(losses, _FLOOR * goal)), math.log(goal)
    rising = np.asarray(optimize.isotonic_regression(losses).x)
    after = int(np.searchsorted(rising, goal))
    if after in (0, len(known)):
        exact = [one.scale for one, loss in zip(known, rising, strict=True) if loss == goal]
        return exact[0] if exact else math.nan
    share = (goal - rising[after - 1]) / (rising[after] - rising[after - 1])
    near, far = math.log(known[after - 1].scale), math.log(known[after].scale)
    return math.exp(near + share * (far - near))


def _reason(
    target: Target, tried: Sequence[Tried], low: float, high: float, estimate: float
) -> str:
    if not tried:
        return f"{target} was not looked for: no scale was measured"
    if not any(math.isfinite(one.loss.mean) for one in tried):
        return f"{target} cannot be placed: no loss is finite at any scale"
    if all(one.side == "unclear" for one in tried):
        return f"{target} cannot be placed: no scale can be told from it; use more samples"
    if low == 0:
        told = f"{target} is reached below {high:g}: no smaller scale is below it beyond chance"
        least = tried[0]
        if least.side == "unclear" and least.loss.mean <= 0:
            told += f", though nothing is lost at {least.scale:g}; use more samples"
        return told
    if math.isinf(high):
        return f"{target} is not reached up to {low:g}: no larger scale is above it beyond chance"
    told = f"{target} is reached at {estimate:.3g}, between {low:g} and {high:g}"
    if any(one.side == "below" and one.scale > high for one in tried):
        told += "; a larger scale is below it again, so the loss does not rise throughout"
    return told
