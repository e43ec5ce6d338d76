"""A unit of work, and what comes of it: plain data, that a journal keeps and a network carries.

A unit needs no other unit, and the same unit gives the same result wherever it runs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from noisescope.inject import Witness
from noisescope.records import Record


@dataclass(frozen=True)
class Unit:
    """Some samples under some conditions and draws, measured together.

    Attributes:
        name: Unique within a study; no other meaning.
        samples: Names of the samples.
        conditions: Names of the noisy conditions.
        draws: Numbers of the realisations, each for every condition.
        with_clean: Whether the records of the clean model are wanted too.
        generates: Whether the noisy model answers too; otherwise it is only scored along the
            clean model's answers.
    """

    name: str
    samples: tuple[str, ...]
    conditions: tuple[str, ...]
    draws: tuple[int, ...]
    with_clean: bool = True
    generates: bool = True

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the unit of a dictionary that `as_json` made."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in entry.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class UnitResult:
    """What came of a unit.

    Attributes:
        unit: The unit's name.
        records: One per condition, draw and sample of the unit, the clean ones first.
        witnesses: Of each noisy condition: its sites, their counts and dose.
        notes: What the user should hear, one line each.
    """

    unit: str
    records: tuple[Record, ...]
    witnesses: dict[str, Witness]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return {
            "unit": self.unit,
            "records": [record.as_json() for record in self.records],
            "witnesses": {name: w.as_json() for name, w in self.witnesses.items()},
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the result of a dictionary that `as_json` made."""
        return cls(
            entry["unit"],
            tuple(map(Record.from_json, entry["records"])),
            {name: Witness.from_json(w) for name, w in entry["witnesses"].items()},
            tuple(entry["notes"]),
        )
