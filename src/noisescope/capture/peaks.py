"""The largest magnitudes of each channel, and where in the text they stood.

A few per channel are kept and not the largest of the whole module: one loud channel would take
every place and hide the others.

Legend: N values of a part, C channels, P peaks of a channel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PEAKS = 4  # of each channel


@dataclass(frozen=True)
class Peaks:
    """The largest values of each channel, largest first.

    Attributes:
        value_PC: float64 values with their sign.
        magnitude_PC: float64; -1 where fewer than P values came.
        label_PC4: int64 call, row, position and token id; -1 where unknown.
    """

    value_PC: Tensor
    magnitude_PC: Tensor
    label_PC4: Tensor

    @classmethod
    def of_nothing(cls, channels: int, device: torch.device) -> "Peaks":
        """Returns the peaks of no values."""
        empty_PC = torch.full((PEAKS, channels), -1.0, dtype=torch.float64, device=device)
        label_PC4 = torch.full((PEAKS, channels, 4), -1, dtype=torch.int64, device=device)
        return cls(torch.zeros_like(empty_PC), empty_PC, label_PC4)

    def updated(
        self, x_NC: Tensor, magnitude_NC: Tensor, is_counted_NC: Tensor, label_N4: Tensor
    ) -> "Peaks":
        """Returns the peaks after one more part."""
        compared_NC = torch.where(is_counted_NC, magnitude_NC, -1.0)
        top = compared_NC.topk(min(PEAKS, len(x_NC)), dim=0)
        value = torch.cat([self.value_PC, x_NC.gather(0, top.indices)])
        label = torch.cat([self.label_PC4, label_N4[top.indices]])
        best = torch.cat([self.magnitude_PC, top.values]).topk(PEAKS, dim=0)
        index = best.indices
        wide = index[..., None].expand(-1, -1, 4)
        return Peaks(value.gather(0, index), best.values, label.gather(0, wide))
