"""What a step of a study may go by when it chooses: what is asked, told and measured.

Everything here is a pure function of plan, records and profile, so a study that goes on would
choose again what it has chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse import Interval, Prediction, Table, mean_interval, predict
from noisescope.inject import Selection, Site, make_selection
from noisescope.measure import Condition
from noisescope.noise import ErrorModel
from noisescope.profile import Profile
from noisescope.records import Record


@dataclass(frozen=True)
class Scene:
    """What a step may go by.

    Attributes:
        error_model: What the study adds.
        operators: The operators that are meant.
        sites: The sites that the model runs in the regions that are meant, in running order.
        conditions: Those that were asked for, by name.
        records: What is measured so far.
        profile: What backward passes told; None where nothing can be predicted.
        outliers: Outlier channels of modules, by name.
        seed: First key word of the random numbers.
        dtype: Of the model, e.g. `bfloat16`.
    """

    error_model: ErrorModel
    operators: tuple[str, ...]
    sites: tuple[Site, ...]
    conditions: Mapping[str, Condition]
    records: Sequence[Record]
    profile: Profile | None
    outliers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float32"

    @cached_property
    def table(self) -> Table:
        """The records, by condition, draw and sample."""
        return Table(self.records)

    @cached_property
    def regions(self) -> tuple[str, ...]:
        """The regions that hold a site that is meant, in running order."""
        return tuple(dict.fromkeys(s.region for s in self.sites if s.operator in self.operators))

    @property
    def layers(self) -> tuple[str, ...]:
        """Those of them that are layers."""
        return tuple(region for region in self.regions if region.isdigit())

    def values(self, condition: str, what: str = "kl_nats") -> NDArray[np.float64] | None:
        """Returns a field of a condition's records [K, N]; None where it is not measured."""
        if condition not in self.table.conditions:
            return None
        return self.table.values(condition, what)

    def kl(self, condition: str) -> Interval | None:
        """Returns the measured KL of a condition, in nats per token."""
        values = self.values(condition)
        if values is None:
            return None
        block = self.table.block(condition)
        return mean_interval(values, groups=self.table.groups(block.samples))

    def predicted(self, selection: Selection) -> Prediction | None:
        """Returns the predicted KL of a selection under the study's error model."""
        return None if self.profile is None else predict(self.profile, selection)

    def on_site(self, site: Site, name: str | None = None, **elements: object) -> Condition:
        """Returns the condition in which one site is noisy; `elements` name channels of it."""
        region = None if site.region == "model" else region_value(site.region)
        selection = make_selection(
            layers=None if region is None else [region],
            operators=site.operator,
            sites=[site.name],
            **elements,  # type: ignore[arg-type]
        )
        return Condition(name or site.name, self.error_model, selection)

    def on_regions(self, name: str, regions: Sequence[str]) -> Condition | None:
        """Returns the condition in which some regions are noisy; None where nothing is in them."""
        here = [s for s in self.sites if s.region in regions and s.operator in self.operators]
        held = dict.fromkeys(s.region for s in here)
        if not here:
            return None
        named = [region_value(r) for r in held if r != "model"]
        operators = [o for o in self.operators if any(s.operator == o for s in here)]
        selection = make_selection(layers=named or None, operators=operators)
        return Condition(name, self.error_model, selection)

    def all_but_sites(self, name: str, sites: Sequence[str]) -> Condition | None:
        """Returns the condition in which everything is noisy but these sites."""
        left = [s for s in self.sites if s.operator in self.operators and s.name not in sites]
        if not left:
            return None
        named = [region_value(r) for r in dict.fromkeys(s.region for s in left) if r != "model"]
        operators = [o for o in self.operators if any(s.operator == o for s in left)]
        selection = make_selection(layers=named or None, operators=operators, without=sites)
        return Condition(name, self.error_model, selection)

    def on_sites(self, name: str, sites: Sequence[str]) -> Condition:
        """Returns the condition in which these sites are noisy."""
        here = [s for s in self.sites if s.name in sites]
        named = [region_value(r) for r in dict.fromkeys(s.region for s in here) if r != "model"]
        selection = make_selection(
            layers=named or None,
            operators=list(dict.fromkeys(s.operator for s in here)),
            sites=[s.name for s in here],
        )
        return Condition(name, self.error_model, selection)


def region_value(region: str) -> int | str:
    """Returns a region as a selection names it: layers by number."""
    return int(region) if region.isdigit() else region


def region_label(region: str) -> str:
    """Names a region as a window of one is named: ``L3``, or `head`."""
    return f"L{region}" if region.isdigit() else region
