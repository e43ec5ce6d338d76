"""Where error goes: operators, sites, the rows of a tensor, and the session."""

from noisescope.inject.coverage import CoverageRow, coverage_table
from noisescope.inject.dose import Dose, SiteRecord, total_dose
from noisescope.inject.operators import CORE_OPERATORS, OPERATORS, check_operators
from noisescope.inject.ride import Ride
from noisescope.inject.selection import Selection, make_selection, selected_regions
from noisescope.inject.session import Session, inject
from noisescope.inject.sites import Site
from noisescope.inject.spans import RideError, Span
from noisescope.inject.witness import Witness, merge_witnesses

__all__ = [
    "CORE_OPERATORS",
    "OPERATORS",
    "CoverageRow",
    "Dose",
    "Ride",
    "RideError",
    "Selection",
    "Session",
    "Site",
    "SiteRecord",
    "Span",
    "Witness",
    "check_operators",
    "coverage_table",
    "inject",
    "make_selection",
    "merge_witnesses",
    "selected_regions",
    "total_dose",
]
