"""Puts together what units gave, in the plan's order, in whatever order they were finished."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from noisescope.inject import Witness
from noisescope.inject.witness import merge_witnesses
from noisescope.measure import Record, UnitResult
from noisescope.study.plan import StudyPlan
from noisescope.study.units import in_order


@dataclass(frozen=True)
class Gathered:
    """What stages and units of a study have given.

    Attributes:
        records: In the plan's order.
        witnesses: Of each condition, summed over units.
        notes: What the user should hear, each line once.
        stages: How many stages are finished.
    """

    records: tuple[Record, ...] = ()
    witnesses: Mapping[str, Witness] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    stages: int = 0


def gather(
    finished: Gathered, results: Iterable[UnitResult], plan: StudyPlan, stages: int
) -> Gathered:
    """Adds results to what finished stages gave.

    Sums of floating-point numbers depend on their order, so results come in the order of their
    units, and not in that of their arrival.

    Args:
        finished: What finished stages gave.
        results: In the order of their units.
        plan: Gives the order of records and conditions.
        stages: How many stages are finished with them.
    """
    some = list(results)
    records = in_order([*finished.records, *(r for result in some for r in result.records)], plan)
    parts: dict[str, list[Witness]] = {name: [] for name in plan.conditions}
    for witnesses in (finished.witnesses, *(result.witnesses for result in some)):
        for name, witness in witnesses.items():
            parts[name].append(witness)
    merged = {name: merge_witnesses(part) for name, part in parts.items() if part}
    lines = [*finished.notes, *(line for result in some for line in result.notes)]
    return Gathered(tuple(records), merged, tuple(dict.fromkeys(lines)), stages)
