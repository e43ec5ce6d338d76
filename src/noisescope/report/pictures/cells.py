"""The cells of the map, region by operator: what is predicted there, and what was measured there.

The last row and column are sums: a region with all its operators, an operator in all regions.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from noisescope.analyse import Interval, Prediction, mean_and_error
from noisescope.analyse.predict import departs
from noisescope.profile import SiteProfile
from noisescope.study import Diagnosis
from noisescope.study.findings import whole_of
from noisescope.study.steps import BLAMED, scale_of_name

SUM = "all"


@dataclass(frozen=True)
class Measured:
    """A condition that was measured in a cell: all of it, or one of its sites.

    Attributes:
        condition: Its name.
        kl: In nats per token.
        predicted: The same, predicted; None where nothing is.
    """

    condition: str
    kl: Interval
    predicted: Prediction | None

    @property
    def ratio(self) -> float:
        """Measured over predicted; NaN where either is unknown."""
        known = self.predicted is not None and self.predicted.kl_nats > 0
        return self.kl.mean / self.predicted.kl_nats if known and self.predicted else math.nan

    @property
    def place(self) -> str:
        """`above` or `below` the prediction beyond chance and tolerance, or `on`: not told apart.

        Without a prediction it is `alone`.
        """
        if self.predicted is None or not math.isfinite(self.ratio):
            return "alone"
        if not departs(self.predicted, self.kl):
            return "on"
        return "above" if self.ratio > 1 else "below"


@dataclass(frozen=True)
class Cell:
    """One region and operator.

    Attributes:
        region: A region's label such as `L3`, or `all`.
        operator: An operator, or `all`.
        sites: Names of its sites, as far as they are known.
        predicted: Predicted KL summed over its sites, nats per token; NaN where none is.
        error: Its standard error over label draws; NaN for one draw.
        measured: What was measured in it.
    """

    region: str
    operator: str
    sites: tuple[str, ...]
    predicted: float
    error: float
    measured: tuple[Measured, ...]

    @property
    def place(self) -> str:
        """Where what was measured lies; empty where nothing was."""
        places = [found.place for found in self.measured]
        return next((p for p in ("above", "below", "on", "alone") if p in places), "")


@dataclass(frozen=True)
class Grid:
    """The cells of a map.

    Attributes:
        regions: Labels of the rows, from the first that runs to the last, then `all`.
        operators: Labels of the columns, then `all`.
        cells: By region and operator; those with nothing in them are left out.
        is_predicted: Whether there is a prediction; else the cells hold measurements alone.
    """

    regions: tuple[str, ...]
    operators: tuple[str, ...]
    cells: dict[tuple[str, str], Cell]
    is_predicted: bool


def label_of(region: str) -> str:
    """Returns a region as conditions name it: `L3` for layer 3."""
    return f"L{region}" if region.isdigit() else region


def grid_of(diagnosis: Diagnosis) -> Grid | None:
    """Returns the map's cells; None where they are one row or column."""
    profile = diagnosis.told.profile
    sites: dict[tuple[str, str], list[SiteProfile]] = {}
    for site in profile.sites if profile is not None else ():
        label = label_of(site.region)
        for key in ((label, site.operator), (label, SUM), (SUM, site.operator), (SUM, SUM)):
            sites.setdefault(key, []).append(site)
    measured: dict[tuple[str, str], list[Measured]] = {}
    for key, found in _measured(diagnosis):
        measured.setdefault(key, []).append(found)
    keys = [*sites, *(key for key in measured if key not in sites)]
    known = [label_of(r) for r in diagnosis.plan.about.get("regions", ())]
    regions = [r for r in dict.fromkeys([*known, *(r for r, _ in keys)]) if r != SUM]
    asked = diagnosis.plan.about.get("operators", ())
    operators = [o for o in dict.fromkeys([*asked, *(o for _, o in keys)]) if o != SUM]
    if len({r for r, _ in keys}) < 2 or len({o for _, o in keys}) < 2:
        return None
    cells = {
        key: Cell(
            *key,
            tuple(site.name for site in sites.get(key, ())),
            *(mean_and_error(sites[key]) if key in sites else (math.nan, math.nan)),
            tuple(measured.get(key, ())),
        )
        for key in keys
    }
    rows = [r for r in (*regions, SUM) if any(region == r for region, _ in cells)]
    columns = [o for o in (*operators, SUM) if any(operator == o for _, operator in cells)]
    return Grid(tuple(rows), tuple(columns), cells, profile is not None)


def _measured(diagnosis: Diagnosis) -> Iterator[tuple[tuple[str, str], Measured]]:
    """Yields every condition at the study's own scale that lies in a cell, with its cell."""
    plan = diagnosis.plan
    labels = {label_of(region) for region in plan.about.get("regions", ())}
    operators = set(plan.about.get("operators", ()))
    for summary in diagnosis.analysis.summaries:
        name = summary.condition
        if scale_of_name(name) is not None or name == BLAMED:
            continue
        found = Measured(name, summary.kl_nats, diagnosis.findings.predictions.get(name))
        if name == whole_of(plan):
            yield (SUM, SUM), found
        elif name in labels:
            yield (name, SUM), found
        elif name in operators:
            yield (SUM, name), found
        else:
            place = _place_of_site(diagnosis, name)
            if place is not None:
                yield place, found


def _place_of_site(diagnosis: Diagnosis, name: str) -> tuple[str, str] | None:
    """Returns the cell of a condition that is one whole site; None for any other."""
    selection = diagnosis.plan.conditions.get(name, {}).get("selection", {})
    if len(selection.get("sites") or ()) != 1:
        return None
    if selection.get("channels") is not None or selection.get("without_channels"):
        return None
    chosen = [r.site for r in diagnosis.witnesses[name].records if r.is_selected]
    return (label_of(chosen[0].region), chosen[0].operator) if len(chosen) == 1 else None
