"""Which scale to measure next on the way to a target: bracket it, then close in on it.

A pure function of what was measured, so that a study that is resumed goes on as it would have.
"""

import math
from collections.abc import Sequence

from noisescope.analyse.critical_scale import Groups, Losses, Tried, bracket, sides
from noisescope.analyse.target import Target

SMALLEST, LARGEST = 1e-6, 10.0
FACTOR = 1.15
_OVERSHOOT = 1.1  # beyond the scale at which the interval should just clear the target
_LEAST_STEP, _WIDEST_STEP = 1.2, 10.0
_ACCURACY_STEP = 2.0
_EXPONENTS = (0.5, 4.0)  # between these a local exponent is believed
_OFF_CENTRE = 0.2


def next_scale(
    target: Target,
    measured: Losses,
    start: float,
    *,
    steps_left: int,
    c: float | None = None,
    factor: float = FACTOR,
    groups: Groups = None,
) -> float | None:
    """Returns the scale to measure next, or None where nothing is left to gain.

    It begins at the scale the prediction gives, or else at the start; goes up and down until one
    scale is below the target and one above it beyond chance; and then halves the wider gap between
    these and what cannot be told from the target, in log scale, until no gap is wider than the
    factor.

    Args:
        target: The loss asked for.
        measured: Per scale the losses, draw by sample, as for `critical_scale`.
        start: Where to begin without a prediction.
        steps_left: How many more scales may be measured; at 0 the answer is None.
        c: Predicted KL per squared scale, in nats per token; used for KL only.
        factor: The width of bracket and gaps that is narrow enough.
        groups: The source of each sample; None: all apart.

    Returns:
        A scale within [1e-6, 10], three significant digits, not measured yet; or None.

    Raises:
        InputError: As for `critical_scale`.
    """
    tried = sides(target, measured, groups)
    if steps_left <= 0:
        return None
    if not tried:
        return _rounded(_first(target, start, c))
    if all(_is_hopeless(one) for one in tried):
        return None
    low, high = bracket(tried)
    if low == 0 and tried[0].side == "unclear" and tried[0].loss.mean <= 0:
        low = tried[0].scale  # nothing is lost there and it cannot be told: no smaller one could
    if low == 0:
        found = _outside(target, tried, high, is_up=False)
        # Where nothing smaller can be tried, the other side may still give a bound.
        if found in measured and math.isinf(high):
            found = _outside(target, tried, low, is_up=True)
    elif math.isinf(high):
        found = _outside(target, tried, low, is_up=True)
    else:
        inside = _inside(target, tried, low, high, factor)
        if inside is None:
            return None
        found = inside
    return None if found in measured else found


def _first(target: Target, start: float, c: float | None) -> float:
    if target.measure == "kl" and c is not None and c > 0 and math.isfinite(c):
        return math.sqrt(target.loss / c)
    return start


def _is_hopeless(one: Tried) -> bool:
    """Returns whether there is a loss but, for want of samples, no interval to judge it by."""
    return one.side == "unclear" and math.isfinite(one.loss.mean) and not one.loss.is_known


def _rounded(scale: float) -> float:
    return float(f"{min(max(scale, SMALLEST), LARGEST):.3g}")


def _outside(target: Target, tried: Sequence[Tried], told: float, *, is_up: bool) -> float:
    """Returns a scale beyond all that could be on the missing side.

    Args:
        target: The loss asked for.
        tried: What was measured.
        told: The innermost scale on the other side; 0 or infinity where none is.
        is_up: Whether a scale above the target is missing.
    """
    edge = tried[-1] if is_up else tried[0]
    beyond = [t for t in tried if t.side == "unclear" and (t.scale > told) == is_up]
    # Each scale that could not be told squares the step: on a plateau small steps never end.
    least = min(math.pow(_LEAST_STEP, 2.0 ** min(len(beyond), 5)), _WIDEST_STEP)
    if target.measure == "accuracy" or not edge.loss.mean > 0:
        step = _ACCURACY_STEP if math.isfinite(edge.loss.mean) else _WIDEST_STEP
    else:
        bound = edge.loss.low if is_up else edge.loss.high
        loss = bound if bound > 0 else edge.loss.mean  # a NaN bound too
        ratio = max(target.loss / loss if is_up else loss / target.loss, 1.0)
        step = math.pow(ratio, 1 / _local_exponent(tried, is_up)) * _OVERSHOOT
    step = min(max(step, least), _WIDEST_STEP)
    return _rounded(edge.scale * step if is_up else edge.scale / step)


def _local_exponent(tried: Sequence[Tried], is_up: bool) -> float:
    """Returns d log loss / d log scale at an end; the 2 of the line where it is not known."""
    if len(tried) < 2:
        return 2.0
    near, far = tried[-2:] if is_up else tried[:2]
    if not (near.loss.mean > 0 and far.loss.mean > 0):
        return 2.0
    slope = math.log(far.loss.mean / near.loss.mean) / math.log(far.scale / near.scale)
    return min(max(slope, _EXPONENTS[0]), _EXPONENTS[1])


def _inside(
    target: Target, tried: Sequence[Tried], low: float, high: float, factor: float
) -> float | None:
    """Returns a scale in the wider gap of the bracket; None where none is wide enough."""
    if high / low <= factor:
        return None
    unclear = [one.scale for one in tried if low < one.scale < high]
    if not unclear:
        return _rounded(_interpolated(target, tried, low, high))
    gaps = ((low, unclear[0]), (unclear[-1], high))
    near, far = max(gaps, key=lambda gap: gap[1] / gap[0])
    return None if far / near <= factor else _rounded(math.sqrt(near * far))


def _interpolated(target: Target, tried: Sequence[Tried], low: float, high: float) -> float:
    """Returns where the loss should pass the target, kept off the ends of the bracket."""
    loss = {one.scale: one.loss.mean for one in tried}
    near, far, goal = loss[low], loss[high], target.loss
    share = 0.5
    if target.measure == "accuracy":
        share = (goal - near) / (far - near) if far > near else 0.5
    elif near > 0 and far > near:
        share = math.log(goal / near) / math.log(far / near)
    share = 0.5 if not math.isfinite(share) else min(max(share, _OFF_CENTRE), 1 - _OFF_CENTRE)
    return low * math.pow(high / low, share)
