"""What really arrived: counts and dose per site, summed on the device and read once at the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from noisescope.inject.sites import Site


@dataclass(frozen=True)
class Dose:
    """Error that arrived in a set of tensors.

    Attributes:
        elements: Elements that noise was offered to.
        share_changed: Share of them that differ from the clean value, 0 to 1; NaN for none.
        asked_share: Share of them that error was asked of: relative error asks nothing of a zero.
        relative_l2: Norm of the change over norm of the clean values; NaN where that is 0 / 0.
        asked_relative_l2: The same for the error that was asked for, before rounding.
    """

    elements: int
    share_changed: float
    asked_share: float
    relative_l2: float
    asked_relative_l2: float

    @property
    def is_all_lost(self) -> bool:
        """True where error was asked for and not one element changed."""
        return self.asked_share > 0 and self.share_changed == 0

    @property
    def is_half_lost(self) -> bool:
        """True where under half of what was asked arrived, by norm or by share of elements."""
        if not self.elements or not self.asked_relative_l2 > 0:
            return False
        return self.is_norm_half_lost or self.share_changed < 0.5 * self.asked_share

    @property
    def is_norm_half_lost(self) -> bool:
        """The same by norm alone: stochastic rounding changes few elements, and those by more."""
        return self.elements > 0 and self.relative_l2 < 0.5 * self.asked_relative_l2

    def __str__(self) -> str:
        if not self.elements:
            return "no noise"
        return (
            f"{self.share_changed:.1%} of elements changed, relative L2 {self.relative_l2:.2e} "
            f"of {self.asked_relative_l2:.2e} asked"
        )


def make_dose(tally: Tensor | None) -> Dose:
    """Reads a tally (see `noisescope.noise.TALLY_FIELDS`) from its device into a `Dose`."""
    if tally is None:
        return Dose(0, math.nan, math.nan, math.nan, math.nan)
    elements, asked, changed, change_square, clean_square, asked_square = tally.tolist()
    return Dose(
        elements=int(elements),
        share_changed=changed / elements if elements else math.nan,
        asked_share=asked / elements if elements else math.nan,
        relative_l2=_ratio(change_square, clean_square),
        asked_relative_l2=_ratio(asked_square, clean_square),
    )


def _ratio(part_square: float, whole_square: float) -> float:
    if whole_square > 0:
        return math.sqrt(part_square / whole_square)
    return math.inf if part_square > 0 else math.nan


@dataclass
class SiteRecord:
    """What a session saw and did at one site.

    Attributes:
        site: The site.
        is_selected: Whether the selection means it.
        seen: Calls of the operator there.
        forward: Calls whose output received noise.
        backward: Input gradients that received noise.
        rows: How rows found their address: `token` (sample and position known), `sample` (sample
            known), `row` (neither: noise there depends on how the batch was put together).
        is_fused: Seen only inside a fused kernel that was left whole.
        pending: Inputs of the call that runs now whose gradients get error of scale 0.
        channels: How many its output has, noted where channels or positions are selected.
    """

    site: Site
    is_selected: bool
    seen: int = 0
    forward: int = 0
    backward: int = 0
    rows: str = "token"
    is_fused: bool = False
    pending: int = field(default=0, repr=False)
    channels: int = field(default=0, repr=False)
    tallies: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def add(self, phase: str, tally: Tensor) -> None:
        """Adds a tally without reading it: no host synchronisation."""
        held = self.tallies.get(phase)
        # Not in place: a tally of inference mode may not be changed outside it.
        if held is None:
            self.tallies[phase] = tally
        elif held.device == tally.device:
            self.tallies[phase] = held + tally
        else:
            self.tallies[phase] = held + tally.to(held.device, non_blocking=True)

    def dose(self, phase: str = "forward") -> Dose:
        """Returns the dose of one phase."""
        return make_dose(self.tallies.get(phase))


def total_dose(records: Sequence[SiteRecord], phase: str = "forward") -> Dose:
    """Returns the dose over many sites: norms and counts are summed, then divided."""
    tallies = [r.tallies[phase].cpu() for r in records if phase in r.tallies]
    return make_dose(torch.stack(tallies).sum(dim=0) if tallies else None)
