"""A histogram of magnitudes per channel in fixed logarithmic bins: quantiles in constant memory.

The bin of a value is the head of its float32 bits (exponent and three bits of the mantissa), so
counting takes no logarithm and merging is addition. No bin is moved or split as data come.

Legend: N values of a part, C channels, K bins.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# 2**-24 is the least number that float16 holds; up to 2**24 there are eight bins an octave.
LOWEST, HIGHEST = 2.0**-24, 2.0**24
_PER_OCTAVE_BITS = 3
_SHIFT = 23 - _PER_OCTAVE_BITS
_FIRST = (127 - 24) << _PER_OCTAVE_BITS
BINS = (48 << _PER_OCTAVE_BITS) + 2

# A quantile is the geometric middle of its bin, whose ends are at most 9/8 apart.
RELATIVE_ERROR = 1.125**0.5 - 1


def empty_histogram(channels: int, device: torch.device) -> Tensor:
    """Returns int32 zeros [C, K]. A bin overflows after 2**31 tokens, which no capture reaches."""
    return torch.zeros(channels, BINS, dtype=torch.int32, device=device)


def count_magnitudes(counts_CK: Tensor, magnitude_NC: Tensor, is_counted_NC: Tensor) -> None:
    """Adds the magnitudes of a part to a histogram, in place.

    Args:
        counts_CK: int32 counts; bin 0 holds what is below `LOWEST`, zeros among it, and the last
            bin what is `HIGHEST` or more.
        magnitude_NC: Floating-point values of at least 0.
        is_counted_NC: bool.
    """
    bits_NC = magnitude_NC.to(torch.float32).view(torch.int32)
    bin_NC = ((bits_NC >> _SHIFT) - (_FIRST - 1)).clamp_(0, BINS - 1)
    # Flat places, since scattering along an axis would need both sides transposed.
    place_NC = bin_NC + torch.arange(len(counts_CK), device=counts_CK.device) * BINS
    ones_NC = is_counted_NC.to(torch.int32)
    counts_CK.view(-1).scatter_add_(0, place_NC.reshape(-1), ones_NC.reshape(-1))


def quantile(
    counts_CK: NDArray[np.int32], q: float, largest_C: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the magnitude that a share `q` of the values of each channel does not exceed.

    Args:
        counts_CK: A histogram.
        q: The share, 0 to 1.
        largest_C: The largest magnitude of each channel, which no quantile exceeds.

    Returns:
        float64 [C]: within `RELATIVE_ERROR` of the least value whose rank reaches the share. 0 for
        values below `LOWEST`, the largest magnitude for those of `HIGHEST` or more, NaN without
        values.
    """
    below_CK = counts_CK.cumsum(axis=1, dtype=np.int64)
    count_C = below_CK[:, -1]
    rank_C = np.maximum(np.ceil(q * count_C), 1)
    bin_C = (below_CK < rank_C[:, None]).sum(axis=1).clip(max=BINS - 1)
    found = np.fmin(bin_middles()[bin_C], largest_C)
    return np.where(count_C > 0, found, np.nan)


@cache
def bin_edges() -> NDArray[np.float64]:
    """Returns the lower ends of the bins: 0, then `LOWEST` to `HIGHEST`."""
    parts = np.arange(BINS - 1)
    per_octave = 1 << _PER_OCTAVE_BITS
    octave, part = np.divmod(parts, per_octave)
    return np.concatenate([[0.0], LOWEST * 2.0**octave * (1 + part / per_octave)])


@cache
def bin_middles() -> NDArray[np.float64]:
    """Returns what stands for the values of each bin; infinity for the open one at the top."""
    edges = bin_edges()
    return np.append(np.sqrt(edges[:-1] * edges[1:]), np.inf)
