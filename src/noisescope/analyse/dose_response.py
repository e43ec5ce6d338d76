"""How KL grows with the scale of the noise, and from which scale on it leaves the predicted line.

Backward passes predict c * s^2 for small noise. Where the measured KL leaves that line beyond
chance and beyond a tolerance, errors compound (the avalanche) or saturate. The scale of departure
is an interval between two measured scales, as no more was seen.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisescope.analyse.intervals import UNKNOWN, Interval, mean_interval
from noisescope.analyse.ratios import interval_text, paired_ratio, ratio_to
from noisescope.errors import InputError

TOLERANCE = 1.25
Place = Literal["on", "above", "below", "unknown"]
_ERASED = "no KL at all: rounding erased the noise"
_ON_THE_LINE = 2.0


@dataclass(frozen=True)
class Point:
    """What was measured at one scale.

    Attributes:
        scale: Relative size of the noise, above zero.
        values_KN: KL in nats per token, draw by sample; not finite where the logits overflowed or
            nothing was scored. The same draws and samples at every scale.
        groups: The source of each sample; None: all apart.
        predicted_N: Predicted KL of each sample at this scale; None: only the mean is known.
            Samples that cost much are predicted to, so the ratio is known far better by pairs.
    """

    scale: float
    values_KN: NDArray[np.float64]
    groups: Sequence[Hashable] | None = None
    predicted_N: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ScaleResponse:
    """One scale against the line.

    Attributes:
        scale: Relative size of the noise.
        measured: KL in nats per token; lower is better, 0 for identical models.
        predicted_nats: c * scale^2; NaN without a prediction.
        ratio: Measured over predicted, with the error of both; 1 on the line.
        place: `on` the line (the ratio lies within the tolerance), `above` or `below` (it lies
            outside), or `unknown` (the data cannot tell).
        note: Why it is unknown where more than chance is behind it; empty otherwise.
    """

    scale: float
    measured: Interval
    predicted_nats: float
    ratio: Interval
    place: Place
    note: str = ""


@dataclass(frozen=True)
class Exponent:
    """How steeply KL rises between neighbouring scales.

    Attributes:
        low_scale: The smaller scale.
        high_scale: The larger scale.
        slope: d log KL / d log scale; 2 on the line, more where errors compound, less where they
            saturate. NaN where either KL is zero or unknown.
    """

    low_scale: float
    high_scale: float
    slope: Interval

    @property
    def is_flatter(self) -> bool:
        """Whether it is below the line's 2 beyond chance."""
        return self.slope.high < _ON_THE_LINE


@dataclass(frozen=True)
class Departure:
    """Where KL leaves the line.

    Attributes:
        last_on: The largest smaller scale that is on the line; 0 where none was measured.
        first_off: The smallest scale from which on it is off. It leaves in (last_on, first_off].
        way: `above` (errors compound: the avalanche) or `below` (they saturate or cancel).
    """

    last_on: float
    first_off: float
    way: Literal["above", "below"]


@dataclass(frozen=True)
class Response:
    """KL at every scale against the line.

    Attributes:
        scales: One line per scale, rising.
        exponents: One per pair of neighbouring scales.
        departure: Where it leaves the line; None where it does not or the data cannot tell.
        saturates_from: The scale from which on every step is flatter than the line beyond chance;
            None where the last step is not.
        tolerance: The ratio that still counts as on the line, either way.
        reason: One sentence for a person.
    """

    scales: tuple[ScaleResponse, ...]
    exponents: tuple[Exponent, ...]
    departure: Departure | None
    saturates_from: float | None
    tolerance: float
    reason: str


def dose_response(
    points: Sequence[Point],
    c: float,
    c_error: float,
    tolerance: float = TOLERANCE,
    c_degrees: float = math.inf,
) -> Response:
    """Holds measured KL against the predicted line c * s^2.

    It departs at the smallest scale from which on every scale is off the line. Scales on which KL
    saturates (each step flatter than the line, beyond chance, up to the largest) are left out of
    this, or a curve that rises above the line and comes down through it would show no avalanche.
    Scales are taken from the largest down and the first that is not off ends it, so that the chance
    to name one that is not off stays at 5 % whatever the number of scales.

    Args:
        points: What was measured, one point per scale, in any order.
        c: Predicted KL per squared scale, in nats per token.
        c_error: Its standard error over label draws, for points without predictions by sample.
        tolerance: The ratio that still counts as on the line, above 1.
        c_degrees: Degrees of freedom of `c_error`: label draws less one; infinite if well known.

    Returns:
        The response. One draw speaks of that draw only, and the reason says so.

    Raises:
        InputError: No points, a scale that is not above zero or comes twice, tables of different
            shape, or a tolerance of 1 or less.

    Source: reference.md section 3 for the line; Newcombe 2016 for the ratio; Maurer, Hothorn and
        Lehmacher 1995 for tests in a fixed order.
    """
    _check(points, tolerance)
    ordered = sorted(points, key=lambda point: point.scale)
    reach = float(stats.t.ppf(0.975, c_degrees)) * c_error
    scorable = np.any([_finite_samples(point.values_KN) for point in ordered], axis=0)
    scales = tuple(_scale(point, c, reach, tolerance, scorable) for point in ordered)
    exponents = tuple(_exponent(a, b) for a, b in pairwise(ordered))
    end = len(scales) - 1
    while end > 0 and exponents[end - 1].is_flatter:
        end -= 1
    saturates_from = scales[end].scale if end < len(scales) - 1 else None
    departure = _departure(scales, end)
    reason = _reason(scales, exponents, departure, saturates_from, tolerance, c, c_error)
    if ordered[0].values_KN.shape[0] == 1:
        reason += "; one draw: this speaks of that realisation of the noise only"
    return Response(scales, exponents, departure, saturates_from, tolerance, reason)


def _check(points: Sequence[Point], tolerance: float) -> None:
    if not points:
        raise InputError("dose response of no scales: give one point per measured scale")
    if not (math.isfinite(tolerance) and tolerance > 1):
        raise InputError(f"tolerance {tolerance!r}: give a ratio above 1, such as 1.25")
    shapes = {point.values_KN.shape for point in points}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise InputError(
            f"values of shapes {sorted(shapes)}: every scale needs one table [draws, samples] of "
            "the same draws and samples; measure the missing ones"
        )
    for point in points:
        if not (math.isfinite(point.scale) and point.scale > 0):
            raise InputError(f"scale {point.scale!r}: give a finite number above 0")
    scales = [point.scale for point in points]
    twice = next((s for s in scales if scales.count(s) > 1), None)
    if twice is not None:
        raise InputError(f"scale {twice!r} comes twice: give one point per scale")


def _finite_samples(values_KN: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(values_KN).all(axis=0))


def _scale(
    point: Point, c: float, reach: float, tolerance: float, scorable: NDArray[np.bool_]
) -> ScaleResponse:
    measured = mean_interval(point.values_KN, groups=point.groups)
    predicted = c * point.scale**2
    half = reach * point.scale**2
    ratio = ratio_to(measured, predicted, predicted - half, predicted + half)
    if point.predicted_N is not None:
        # Label draws of samples are independent: the spread over samples holds their error.
        line_KN = np.broadcast_to(point.predicted_N, point.values_KN.shape)
        paired = paired_ratio(point.values_KN, line_KN, point.groups)
        # Where a few samples are predicted to carry all, pairs cannot tell the line from zero.
        ratio = paired if paired.is_known else ratio
    overflowed = int((scorable & ~_finite_samples(point.values_KN)).sum())
    if measured.mean == 0:
        ratio, note = replace(UNKNOWN, mean=ratio.mean, caution=_ERASED), _ERASED
    elif overflowed:
        note = f"{overflowed} samples overflowed, so that the KL is at least this"
    else:
        note = ""
    place = _place(ratio, tolerance)
    if place != "above" and overflowed:
        place = "unknown"
    return ScaleResponse(point.scale, measured, predicted, ratio, place, note)


def _place(ratio: Interval, tolerance: float) -> Place:
    if not ratio.is_known:
        return "unknown"
    if ratio.low > tolerance:
        return "above"
    if ratio.high < 1 / tolerance:
        return "below"
    return "on" if ratio.low >= 1 / tolerance and ratio.high <= tolerance else "unknown"


def _exponent(near: Point, far: Point) -> Exponent:
    rise = paired_ratio(far.values_KN, near.values_KN, near.groups)
    steps = math.log(far.scale / near.scale)
    slope = replace(
        rise,
        mean=_log(rise.mean) / steps,
        low=_log(rise.low) / steps,
        high=_log(rise.high) / steps,
    )
    return Exponent(near.scale, far.scale, slope)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else math.nan


def _departure(scales: Sequence[ScaleResponse], end: int) -> Departure | None:
    """Returns where the line is left, judged from a scale down; from the last if that is on it."""
    ends = (end, len(scales) - 1)
    last = next((i for i in ends if scales[i].place in ("above", "below")), None)
    if last is None:
        return None
    first = last
    while first > 0 and scales[first - 1].place == scales[last].place:
        first -= 1
    on = [s.scale for s in scales[:first] if s.place == "on"]
    way: Literal["above", "below"] = "above" if scales[last].place == "above" else "below"
    return Departure(on[-1] if on else 0.0, scales[first].scale, way)


def _reason(
    scales: Sequence[ScaleResponse],
    exponents: Sequence[Exponent],
    departure: Departure | None,
    saturates_from: float | None,
    tolerance: float,
    c: float,
    c_error: float,
) -> str:
    if not (c > 0 and math.isfinite(c)):
        return f"inconclusive: the prediction is {c:.3g}, so there is no line to leave"
    if not math.isfinite(c_error):
        return "inconclusive: the prediction's error is unknown; use two label draws or more"
    if departure is not None:
        return _departed(scales, exponents, departure, saturates_from)
    last = scales[-1]
    if all(s.place == "on" for s in scales):
        return f"no departure: within a factor {tolerance:g} of the line up to {last.scale:g}"
    if last.place == "on":
        above = [s.scale for s in scales if s.place == "above"]
        if above:
            return (
                f"KL is above the line at {above[0]:g} and, as it saturates, on it again at the "
                f"largest scale, {last.scale:g}: look at the scales between them"
            )
        return f"no departure: on the line at the largest scale, {last.scale:g}"
    if not last.measured.is_known:
        why = last.note or "too few samples, or no spread between them"
        return f"inconclusive: {why} at the largest scale, {last.scale:g}"
    if not last.ratio.is_known:
        return "inconclusive: the prediction cannot be told from zero; use more label draws"
    span = interval_text(last.ratio, "the line")
    what = f"; {last.note}" if last.note else ", neither within nor beyond the tolerance"
    return f"inconclusive: at the largest scale, {last.scale:g}, KL is {span}{what}"


def _departed(
    scales: Sequence[ScaleResponse],
    exponents: Sequence[Exponent],
    departure: Departure,
    saturates_from: float | None,
) -> str:
    at = next(s for s in scales if s.scale == departure.first_off)
    compounds = departure.way == "above"
    told = (
        f"KL is {departure.way} the line from {departure.first_off:g} on: "
        f"{interval_text(at.ratio, 'the line')} there, "
        f"{'errors compound' if compounds else 'errors saturate or cancel'}"
    )
    before = [s.scale for s in scales if s.scale < departure.first_off]
    if departure.last_on > 0:
        told += f"; at {departure.last_on:g} it is still on it"
    elif before:
        told += f"; below, down to {before[0]:g}, too few data tell"
    if saturates_from is not None and compounds:
        told += f"; it saturates from {saturates_from:g} on"
    slope = exponents[0].slope if exponents else UNKNOWN
    is_first = departure.first_off == scales[0].scale
    if is_first and slope.low <= _ON_THE_LINE <= slope.high:
        told += (
            "; it is off from the smallest scale on and rises as the line does, so that the "
            "prediction itself may be off"
        )
    elif is_first:
        told += "; no smaller scale was measured, so measure one that is on the line"
    return told
