"""Gathers the statistics of one module batch by batch, in constant memory on the module's device.

No number is fetched from the device until it is asked for, so a capture does not hold the model up.
Accumulators are float64 whatever the model's dtype.

Legend: N rows of a part, C channels.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from noisescope.capture.histogram import count_magnitudes, empty_histogram
from noisescope.capture.moments import Moments
from noisescope.capture.peaks import Peaks
from noisescope.capture.rows import Labels
from noisescope.capture.statistics import ChannelStatistics, PeakTable

# Elements of a part: bounds the float64 copies. A processor wants them in its cache (4 MiB each,
# twice as fast as 32), an accelerator wants few launches (64 MiB each).
_PART_CPU, _PART_DEVICE = 1 << 19, 1 << 23


class Stream:
    """The running statistics of one module.

    Args:
        channels: Size of the last axis.
        device: Where the activations are.
    """

    def __init__(self, channels: int, device: torch.device) -> None:
        self.channels = channels
        self.is_traced = True
        self.moments = Moments.of_nothing(channels, device)
        self.peaks = Peaks.of_nothing(channels, device)
        self.magnitudes_CK = empty_histogram(channels, device)
        self.magnitude_sum_C = torch.zeros(channels, dtype=torch.float64, device=device)
        self.nonfinite_C = torch.zeros(channels, dtype=torch.int64, device=device)
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, x_NC: Tensor, labels: Labels) -> None:
        """Adds the activations of one call, floating point [N, C]."""
        self.is_traced &= labels.is_traced
        device = self.tokens.device  # after a move of the model the sums stay where they began
        self.tokens += labels.is_present_N.sum().to(device)
        elements = _PART_CPU if device.type == "cpu" else _PART_DEVICE
        rows = max(1, elements // max(1, self.channels))
        for begin in range(0, len(x_NC), rows):
            part = slice(begin, begin + rows)
            self._add(
                x_NC[part].to(device),
                labels.is_present_N[part].to(device),
                labels.label_N4[part].to(device),
            )

    def _add(self, part_NC: Tensor, is_present_N: Tensor, label_N4: Tensor) -> None:
        is_finite_NC = part_NC.isfinite()
        is_counted_NC = is_finite_NC & is_present_N[:, None]
        x_NC = torch.where(is_counted_NC, part_NC.to(torch.float64), 0.0)
        magnitude_NC = x_NC.abs()
        self.nonfinite_C += (is_finite_NC.logical_not_() & is_present_N[:, None]).sum(dim=0)
        self.magnitude_sum_C += magnitude_NC.sum(dim=0)
        self.moments = self.moments.merge(Moments.of(x_NC, is_counted_NC))
        self.peaks = self.peaks.updated(x_NC, magnitude_NC, is_counted_NC, label_N4)
        count_magnitudes(self.magnitudes_CK, magnitude_NC, is_counted_NC)

    def statistics(self) -> ChannelStatistics:
        """Fetches what was gathered so far."""
        count_C, mean_C, square_C, _, fourth_C = (_host(t) for t in vars(self.moments).values())
        n_C = np.where(count_C > 0, count_C, np.nan)
        peak_PC = np.where(_host(self.peaks.magnitude_PC) >= 0, _host(self.peaks.value_PC), np.nan)
        return ChannelStatistics(
            tokens=int(self.tokens),
            count=count_C.astype(np.int64),
            nonfinite=_host(self.nonfinite_C),
            mean=np.where(count_C > 0, mean_C, np.nan),
            rms=np.sqrt(mean_C**2 + square_C / n_C),
            mean_abs=_host(self.magnitude_sum_C) / n_C,
            max_abs=np.abs(peak_PC[0]),
            kurtosis=_kurtosis(count_C, mean_C, square_C, fourth_C),
            is_padding_excluded=self.is_traced,
            magnitudes=_host(self.magnitudes_CK),
            peaks=PeakTable(peak_PC, _host(self.peaks.label_PC4)),
        )


def _kurtosis(
    count_C: NDArray[np.float64],
    mean_C: NDArray[np.float64],
    square_C: NDArray[np.float64],
    fourth_C: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns n times the fourth sum over the square of the squares' sum; NaN where undefined."""
    # A constant differs from its own mean by rounding, and the ratio would be made of that.
    least_C = count_C * (8 * np.finfo(np.float64).eps * mean_C) ** 2
    is_defined_C = (count_C >= 2) & (square_C > least_C)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(is_defined_C, count_C * fourth_C / square_C**2, np.nan)


def _host(tensor: Tensor) -> NDArray[Any]:
    # A copy: on the CPU the array would be the running sum itself, and change.
    return tensor.detach().cpu().numpy().copy()
