"""Mean, spread and kurtosis per channel of a stream, merged part by part.

Each part is taken about its own mean and then merged: sums of raw powers would lose a small spread
about a large mean. Quantiles are in histogram.py.

Legend: N values of a part, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and sums of powers of the deviations from it, per channel.

    Attributes:
        count_C: float64: a count of values, exact up to 2**53.
        mean_C: float64.
        square_C: float64 sum of squared deviations; `cube_C` and `fourth_C` alike.
    """

    count_C: Tensor
    mean_C: Tensor
    square_C: Tensor
    cube_C: Tensor
    fourth_C: Tensor

    @classmethod
    def of_nothing(cls, channels: int, device: torch.device) -> "Moments":
        """Returns the moments of no values."""
        return cls(*torch.zeros(5, channels, dtype=torch.float64, device=device))

    @classmethod
    def of(cls, x_NC: Tensor, is_counted_NC: Tensor) -> "Moments":
        """Returns the moments of one part.

        Args:
            x_NC: float64 values; 0 where they are not counted.
            is_counted_NC: bool.
        """
        count_C = is_counted_NC.sum(dim=0).to(x_NC.dtype)
        mean_C = x_NC.sum(dim=0) / count_C.clamp_min(1)
        off_NC = torch.where(is_counted_NC, x_NC - mean_C, 0.0)
        square_NC = off_NC * off_NC
        return cls(
            count_C,
            mean_C,
            square_NC.sum(dim=0),
            (square_NC * off_NC).sum(dim=0),
            square_NC.square_().sum(dim=0),
        )

    def merge(self, other: "Moments") -> "Moments":
        """Returns the moments of both parts together.

        Source: Pebay 2008, "Formulas for robust, one-pass parallel computation of covariances and
        arbitrary-order statistical moments", SAND2008-6212, equations 3.1; Chan et al. 1979 for
        the square.
        """
        a, b = self.count_C, other.count_C
        n = (a + b).clamp_min(1)
        step = (other.mean_C - self.mean_C) / n
        both = a * b * step
        cube = self.cube_C + other.cube_C + both * step**2 * (a - b) * n
        cube += 3 * step * (a * other.square_C - b * self.square_C)
        fourth = self.fourth_C + other.fourth_C + both * step**3 * (a * a - a * b + b * b) * n
        fourth += 6 * step**2 * (a * a * other.square_C + b * b * self.square_C)
        fourth += 4 * step * (a * other.cube_C - b * self.cube_C)
        return Moments(
            a + b,
            self.mean_C + step * b,
            self.square_C + other.square_C + both * step * n,
            cube,
            fourth,
        )
