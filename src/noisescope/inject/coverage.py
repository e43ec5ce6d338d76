"""The coverage table: per operator, what was seen, selected and perturbed."""

from collections.abc import Sequence
from dataclasses import dataclass

from noisescope.inject.dose import Dose, SiteRecord, total_dose
from noisescope.inject.operators import OPERATORS

_KINDS = ("token", "sample", "row")


@dataclass(frozen=True)
class CoverageRow:
    """One operator's line.

    Attributes:
        operator: The operator.
        seen: Sites of it that ran in the selected regions.
        selected: Of these, how many the selection means.
        perturbed: Of these, how many received noise.
        fused: Sites inside fused attention that was left whole.
        forward: Outputs that received noise.
        backward: Input gradients that received noise.
        rows: The least that is known of a row at any perturbed site: `token`, `sample` or `row`.
        dose: Forward dose over these sites, or the backward one where only that was asked.
    """

    operator: str
    seen: int
    selected: int
    perturbed: int
    fused: int
    forward: int
    backward: int
    rows: str
    dose: Dose

    def __str__(self) -> str:
        return (
            f"{self.operator}: {self.seen} sites seen, {self.selected} selected, "
            f"{self.perturbed} perturbed; {self.dose}"
        )


def coverage_table(records: Sequence[SiteRecord]) -> list[CoverageRow]:
    """Returns a line for every operator that was seen, in the order of `OPERATORS`."""
    lines = []
    for operator in OPERATORS:
        mine = [r for r in records if r.site.operator == operator]
        if mine:
            lines.append(_row(operator, mine))
    return lines


def _row(operator: str, records: list[SiteRecord]) -> CoverageRow:
    perturbed = [r for r in records if r.forward or r.backward]
    forward = sum(r.forward for r in records)
    return CoverageRow(
        operator=operator,
        seen=len(records),
        selected=sum(r.is_selected for r in records),
        perturbed=len(perturbed),
        fused=sum(r.is_fused for r in records),
        forward=forward,
        backward=sum(r.backward for r in records),
        rows=max((r.rows for r in perturbed), key=_KINDS.index, default="token"),
        dose=total_dose(perturbed, "forward" if forward else "backward"),
    )
