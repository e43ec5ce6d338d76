"""What a session saw and did, apart from the model: it outlives it, and travels as JSON."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from noisescope.inject.coverage import CoverageRow, coverage_table
from noisescope.inject.dose import Dose, SiteRecord, total_dose
from noisescope.inject.sites import Site

_KINDS = ("token", "sample", "row")


@dataclass(frozen=True)
class Witness:
    """The records of a condition's sites, of one session or summed over many.

    Attributes:
        records: One per site seen in the selected regions, in the order they first ran.
        is_stochastic: Whether rounding was stochastic: the dose is then judged by its norm alone.
    """

    records: tuple[SiteRecord, ...] = ()
    is_stochastic: bool = False

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Injections per site: ``{site name: {"forward": n, "backward": n}}``."""
        return {
            r.site.name: {"forward": r.forward, "backward": r.backward}
            for r in self.records
            if r.forward or r.backward
        }

    def dose(self, phase: str = "forward") -> Dose:
        """Returns what arrived, over all sites together."""
        return total_dose(self.records, phase)

    def doses(self, phase: str = "forward") -> dict[str, Dose]:
        """Returns what arrived at each site that fired."""
        return {r.site.name: r.dose(phase) for r in self.records if phase in r.tallies}

    def coverage(self) -> list[CoverageRow]:
        """Returns, per operator, how many sites were seen, selected and perturbed."""
        return coverage_table(self.records)

    def is_dose_weak(self, phase: str = "forward") -> bool:
        """Tells whether rounding erased over half of what was asked.

        Stochastic rounding moves few elements, each by much, and keeps the error on average: there
        the norm alone is judged.
        """
        dose = self.dose(phase)
        return dose.is_norm_half_lost if self.is_stochastic else dose.is_half_lost

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON; tallies are read from their devices."""
        return {
            "is_stochastic": self.is_stochastic,
            "sites": [_site_json(record) for record in self.records],
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the witness of a dictionary that `as_json` made."""
        return cls(tuple(map(_site_record, entry["sites"])), entry["is_stochastic"])


def merge_witnesses(witnesses: Iterable[Witness]) -> Witness:
    """Returns the sum of witnesses of one condition; sites keep the order they first appear in."""
    records: dict[Site, SiteRecord] = {}
    is_stochastic = False
    for witness in witnesses:
        is_stochastic |= witness.is_stochastic
        for record in witness.records:
            held = records.get(record.site)
            records[record.site] = record if held is None else _sum(held, record)
    return Witness(tuple(records.values()), is_stochastic)


def _sum(one: SiteRecord, other: SiteRecord) -> SiteRecord:
    tallies = {
        phase: torch.stack([r.tallies[phase].cpu() for r in (one, other) if phase in r.tallies])
        for phase in one.tallies | other.tallies
    }
    return replace(
        one,
        seen=one.seen + other.seen,
        forward=one.forward + other.forward,
        backward=one.backward + other.backward,
        rows=max(one.rows, other.rows, key=_KINDS.index),
        is_fused=one.is_fused or other.is_fused,
        tallies={phase: tally.sum(dim=0) for phase, tally in tallies.items()},
    )


def _site_json(record: SiteRecord) -> dict[str, Any]:
    site = record.site
    return {
        "site": [site.region, site.module, site.operator, site.index],
        "is_selected": record.is_selected,
        "seen": record.seen,
        "forward": record.forward,
        "backward": record.backward,
        "rows": record.rows,
        "is_fused": record.is_fused,
        "tallies": {phase: tally.tolist() for phase, tally in record.tallies.items()},
    }


def _site_record(entry: Mapping[str, Any]) -> SiteRecord:
    tallies = {
        phase: torch.tensor(tally, dtype=torch.float64) for phase, tally in entry["tallies"].items()
    }
    counts: Sequence[str] = ("is_selected", "seen", "forward", "backward", "rows", "is_fused")
    return SiteRecord(
        Site(*entry["site"]), **{name: entry[name] for name in counts}, tallies=tallies
    )
