"""How figures are written in text: two digits, a mean with its 95 % interval, unknown as such."""

import math

from noisescope.analyse import Interval
from noisescope.inject import Dose
from noisescope.study.searched import GIVEN_UP


def number_text(value: float) -> str:
    """Writes a number with two digits."""
    return f"{value:.2g}" if math.isfinite(value) else "n/a"


def times_text(value: float) -> str:
    """Writes a ratio with two digits, large ones in full, e.g. `1.6` or `1,300`."""
    if math.isinf(value):
        return "any number of"
    if not math.isfinite(value):
        return "n/a"
    return f"{float(f'{value:.2g}'):,.0f}" if value >= 10 else f"{value:.2g}"


def estimate_text(interval: Interval) -> str:
    """Writes a mean with its 95 % interval, e.g. `0.022 [0.0053, 0.038]`."""
    if interval.mean == 0 and not interval.is_known:
        return "0"
    if not interval.is_known:
        why = "given up" if interval.caution == GIVEN_UP else "too few data"
        return f"{number_text(interval.mean)} [{why}]"
    return f"{number_text(interval.mean)} [{max(0.0, interval.low):.2g}, {interval.high:.2g}]"


def ratio_text(interval: Interval) -> str:
    """Writes a ratio with its interval, e.g. `2.6 [2.1, 3.4]`."""
    if not interval.is_known:
        return f"{times_text(interval.mean)} [too few data]"
    return f"{times_text(interval.mean)} [{times_text(interval.low)}, {times_text(interval.high)}]"


def points_text(interval: Interval) -> str:
    """Writes a share as points, e.g. `73.0 [62.3, 80.8] points`."""
    if not interval.is_known:
        return f"{100 * interval.mean:.1f} points"
    low, high = (f"{100 * bound:.1f}" for bound in (interval.low, interval.high))
    return f"{100 * interval.mean:.1f} [{low}, {high}] points"


def share_text(interval: Interval) -> str:
    """Writes a share with its interval, e.g. `81 % [74, 87]`."""
    if not math.isfinite(interval.mean):
        return "an unknown share"
    if not interval.is_known:
        return f"{per_cent(interval.mean)} [too few data]"
    low, high = (per_cent(bound).removesuffix(" %") for bound in (interval.low, interval.high))
    return f"{per_cent(interval.mean)} [{low}, {high}]"


def per_cent(share: float) -> str:
    """Writes a share in per cent with two digits, e.g. `81 %` or `0.024 %`."""
    if not math.isfinite(share):
        return "n/a"
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 10 else f"{value:.2g} %"


def percent(value: float) -> str:
    """Writes a share in per cent."""
    return f"{value:.1%}" if math.isfinite(value) else "n/a"


def dose_text(dose: Dose) -> str:
    """Writes the relative norm of the change and the share of elements that changed."""
    if not dose.elements:
        return "none"
    return f"{dose.relative_l2:.2g} on {dose.share_changed:.0%}"


def counted(count: int, what: str) -> str:
    """Writes e.g. `1 draw` or `1,200 samples`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
