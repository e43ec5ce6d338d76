"""What was seen of one module's channels, as numbers on the host.

Plain data: how it is gathered is in stream.py, what stands out of it in outliers.py.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from noisescope.capture import histogram
from noisescope.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PeakTable:
    """The largest magnitudes of each channel, largest first: up to P of each of C channels.

    Attributes:
        value_PC: float64 with sign; NaN where fewer than P values came.
        label_PC4: int64 call, row, position and token id; -1 where unknown.
    """

    value_PC: Floats
    label_PC4: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Statistics of one module's activations: an array [C] each, in the activations' own unit.

    Padding is not counted, nor is a value that is NaN or infinite; of a channel without a finite
    value every statistic is NaN.

    Attributes:
        tokens: Rows seen; of a tensor of heads [B, T, H, D], a row per token and head.
        count: int64 finite values.
        nonfinite: int64 values that are NaN or infinite.
        mean: The mean.
        rms: Root of the mean square.
        mean_abs: Mean of magnitudes: what `detect_outliers` compares.
        max_abs: The largest magnitude.
        kurtosis: Fourth central moment over the square of the variance: 3 for a Gaussian, large
            where few tokens hold most of the energy. NaN below two values or without spread.
            Source: Pearson 1905.
        is_padding_excluded: False where a mask was given but rows could not be told from padding
            (inside the experts of a mixture): padding is then counted too.
        magnitudes: int32 [C, K], the histogram under `quantile`.
        peaks: The largest values and where they stood.
    """

    tokens: int
    count: NDArray[np.int64]
    nonfinite: NDArray[np.int64]
    mean: Floats
    rms: Floats
    mean_abs: Floats
    max_abs: Floats
    kurtosis: Floats
    is_padding_excluded: bool
    magnitudes: NDArray[np.int32] = field(repr=False)
    peaks: PeakTable = field(repr=False)

    @property
    def channels(self) -> int:
        """How many channels there are; 0 for a module that never ran."""
        return len(self.count)

    def quantile(self, q: float) -> Floats:
        """Returns a quantile of the magnitudes of each channel.

        It is the least magnitude whose rank reaches the share, to a relative error of 6.1 %
        (`histogram.RELATIVE_ERROR`) between 2**-24 and 2**24; below, it is 0; above, `max_abs`.

        Args:
            q: The share, 0 to 1: 0.5 is the median.

        Returns:
            float64 [C]; NaN without values.

        Raises:
            InputError: `q` is no number from 0 to 1.

        Source: the fixed bins of HdrHistogram (Tene 2014); float32 bits are the bins.
        """
        if isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 <= q <= 1:
            raise InputError(f"quantile {q!r}: give one number from 0 to 1, such as 0.99")
        return histogram.quantile(self.magnitudes, q, self.max_abs)

    def typical_magnitude(self) -> float:
        """Returns the median magnitude over all channels and tokens, to the same error.

        Where half of the values are zero (behind a ReLU), the median of the others. NaN where none
        is left.
        """
        counts_1K = self.magnitudes.sum(axis=0, dtype=np.int64, keepdims=True)
        largest = np.array([np.nanmax(self.max_abs, initial=0.0)])
        typical = float(histogram.quantile(counts_1K, 0.5, largest)[0])
        if typical == 0:
            counts_1K[:, 0] = 0
            typical = float(histogram.quantile(counts_1K, 0.5, largest)[0])
        return typical

    def count_above(self, magnitude: float, channel: int) -> int:
        """Returns how many values of a channel reach a magnitude, to the width of a bin."""
        if not math.isfinite(magnitude):
            return 0
        first = int(np.searchsorted(histogram.bin_middles(), magnitude))
        return int(self.magnitudes[channel, first:].sum(dtype=np.int64))


def statistics_of_nothing() -> ChannelStatistics:
    """Returns the statistics of a module that never ran: no channels are known."""
    none, counts = np.zeros(0), np.zeros(0, dtype=np.int64)
    peaks = PeakTable(np.zeros((0, 0)), np.zeros((0, 0, 4), dtype=np.int64))
    magnitudes = np.zeros((0, histogram.BINS), dtype=np.int32)
    return ChannelStatistics(
        0, counts, counts, none, none, none, none, none, True, magnitudes, peaks
    )
