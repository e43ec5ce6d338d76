"""What stands out: channels that are large for every token, and values that are at few of them.

Both compare with a median, so neither depends on the unit, and what is looked for does not hide
itself by moving the scale. Nothing here sees a model.
"""

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike

from noisescope.capture.statistics import ChannelStatistics
from noisescope.errors import InputError

# A massive activation is also this many times the median magnitude of its own channel: else it is
# a loud channel, of which `find_outliers` tells.
_OVER_ITS_CHANNEL = 10.0


class Outliers(TypedDict):
    """The outlier channels of one module.

    Attributes:
        num_outliers: How many.
        max_ratio: The largest ratio of a channel's magnitude to the median channel's; NaN where
            no channel has a magnitude.
        outlier_channels: Their numbers, ascending.
    """

    num_outliers: int
    max_ratio: float
    outlier_channels: list[int]


@dataclass(frozen=True)
class MassiveActivation:
    """One value that is far above all others of its module.

    Attributes:
        value: The activation, with sign.
        ratio: Its magnitude over the median magnitude of the module.
        channel: Index on the last axis.
        count: How many values of this channel reach the threshold, to the width of a bin (an
            eighth of an octave); at most four of them are listed.
        call: Which call of the model since the capture was made, from 0.
        row: Row of that call's batch; None where rows could not be told (inside experts).
        position: Position in the text, padding not counted; None likewise.
        token_id: Token at that position; None likewise, and where embeddings were given.
    """

    value: float
    ratio: float
    channel: int
    count: int
    call: int
    row: int | None
    position: int | None
    token_id: int | None


def find_outliers(mean_abs: ArrayLike, threshold: float = 10.0) -> Outliers:
    """Returns the channels whose magnitude is more than `threshold` times the median channel's.

    Where the median is zero (most channels are dead) it is taken over the channels that are not.
    A massive activation raises its channel's mean too: a large kurtosis tells such a channel.

    Args:
        mean_abs: [C] mean of magnitudes over batch and tokens; NaN for a channel without values.
        threshold: Smallest ratio that is no outlier's, above 0.

    Raises:
        InputError: The threshold is no finite number above 0.

    Source: the plan of the users (channel magnitude = mean of abs over batch and tokens, ratio =
    magnitude / median over channels).
    """
    _check_threshold(threshold)
    magnitude_C = np.asarray(mean_abs, dtype=np.float64)
    known = magnitude_C[~np.isnan(magnitude_C)]
    median = np.median(known) if len(known) else math.nan
    if median == 0:
        known = known[known > 0]
        median = np.median(known) if len(known) else math.nan
    if math.isnan(median):
        return Outliers(num_outliers=0, max_ratio=math.nan, outlier_channels=[])
    ratio_C = magnitude_C / median
    channels = np.flatnonzero(ratio_C > threshold)
    return Outliers(
        num_outliers=len(channels),
        max_ratio=float(np.nanmax(ratio_C)),
        outlier_channels=channels.tolist(),
    )


def find_massive(
    statistics: ChannelStatistics, threshold: float = 1000.0
) -> tuple[MassiveActivation, ...]:
    """Returns the massive activations of one module, largest first; up to four of a channel.

    A value is massive when its magnitude is at least `threshold` times the median magnitude of the
    module over channels and tokens, and at least 10 times the median of its own channel: it is at
    few positions. The definition has no unit; the source's second condition (magnitude above 100)
    is left out, since it has one. Medians are exact to 6.1 %.

    On Gaussian activations a value of 15 times the median (10 standard deviations) has a chance of
    1e-23, so any threshold above 15 reports nothing of them; the second condition alone has one of
    2e-11. A lower threshold than the default finds what is large but not massive, and gives false
    alarms where activations are heavy-tailed.

    Args:
        statistics: Of the module.
        threshold: The least ratio, above 0.

    Raises:
        InputError: The threshold is no finite number above 0.

    Source: Sun et al. 2024, "Massive Activations in Large Language Models", arXiv:2402.17762,
    section 2: at least about 1,000 times the median magnitude of the hidden state.
    """
    _check_threshold(threshold)
    typical = statistics.typical_magnitude()
    if math.isnan(typical):
        return ()
    least_C = np.fmax(threshold * typical, _OVER_ITS_CHANNEL * statistics.quantile(0.5))
    magnitude_PC = np.abs(statistics.peaks.value_PC)
    found = np.argwhere(magnitude_PC >= least_C)  # NaN, an empty place, reaches nothing
    found = found[np.argsort(-magnitude_PC[tuple(found.T)], kind="stable")]
    return tuple(_massive(statistics, int(p), int(c), typical, least_C[c]) for p, c in found)


def _massive(
    statistics: ChannelStatistics, peak: int, channel: int, typical: float, least: float
) -> MassiveActivation:
    value = float(statistics.peaks.value_PC[peak, channel])
    call, row, position, token = statistics.peaks.label_PC4[peak, channel].tolist()
    return MassiveActivation(
        value=value,
        ratio=abs(value) / typical,
        channel=channel,
        count=statistics.count_above(least, channel),
        call=call,
        row=row if row >= 0 else None,
        position=position if position >= 0 else None,
        token_id=token if token >= 0 else None,
    )


def _check_threshold(threshold: float) -> None:
    is_number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not is_number or not math.isfinite(threshold) or threshold <= 0:
        raise InputError(f"threshold {threshold!r}: give a finite number above 0, such as 10.0")
