"""From records to everything a report says of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisescope.analyse.avalanche import Worst, worst_by_accuracy, worst_by_kl
from noisescope.analyse.summary import Summary
from noisescope.analyse.table import Table
from noisescope.analyse.verdict import (
    ACCURACY_MARGIN,
    KL_MARGIN,
    Losses,
    Verdict,
    unknown_verdict,
    verdicts,
)
from noisescope.errors import InputError
from noisescope.records import Record

_NO_ANSWERS = "inconclusive: nothing was generated under this noise; see the KL"


@dataclass(frozen=True)
class Analysis:
    """What the records of one study say.

    Attributes:
        baseline_accuracy: Of the clean model; NaN where nothing was generated.
        summaries: One per condition, in the order they were measured, each with its verdicts.
        worst_accuracy: The condition that loses most accuracy, and its doubt.
        worst_kl: The same by KL.
        notes: What the user should hear, one line each.
    """

    baseline_accuracy: float
    summaries: tuple[Summary, ...]
    worst_accuracy: Worst
    worst_kl: Worst
    notes: tuple[str, ...]


def analyse(
    records: Sequence[Record],
    *,
    among: Sequence[str] | None = None,
    families: Sequence[Sequence[str]] | None = None,
    reserve: Sequence[str] | None = None,
    accuracy_margin: float = ACCURACY_MARGIN,
    kl_margin: float = KL_MARGIN,
) -> Analysis:
    """Summarises, judges and ranks the conditions of a study, finished or in progress.

    Args:
        records: The clean model's and the conditions'; in any order, complete or not.
        among: The conditions that compete for the worst; None: all. For the worst by accuracy only
            those under which something was generated do.
        families: The conditions that are judged together: within each family harm is told at 5 %
            over all of them (Holm), and one family does not change another's verdicts. What none
            names is a family of its own; None: all are one.
        reserve: Samples that a search held back, which then give the worst one's loss.
        accuracy_margin: Loss of accuracy that is still no harm, as a share; 0.01 is one point.
        kl_margin: KL that is still no harm, in nats per token.

    Raises:
        InputError: A margin that is not positive, or two records that contradict each other.
    """
    _check_margin("accuracy", accuracy_margin, most=1.0)
    _check_margin("kl", kl_margin, most=math.inf)
    table = Table(records)
    names = [name for name in table.conditions if len(table.block(name))]
    competing = names if among is None else [name for name in among if name in names]
    answered = [name for name in competing if table.has_answers(name)]
    by_accuracy: dict[str, Verdict] = {}
    by_kl: dict[str, Verdict] = {}
    for family in _split(names, families or ()):
        by_accuracy |= _accuracy_verdicts(table, family, accuracy_margin)
        by_kl |= verdicts({name: _kl_losses(table, name) for name in family}, "kl", kl_margin)
    return Analysis(
        baseline_accuracy=table.baseline_accuracy,
        summaries=tuple(table.summary(n, by_accuracy[n], by_kl[n]) for n in names),
        worst_accuracy=worst_by_accuracy(table, answered, reserve),
        worst_kl=worst_by_kl(table, competing, reserve),
        notes=_notes(table),
    )


def _check_margin(measure: str, margin: float, most: float) -> None:
    if not 0 < margin < most:
        accepted = "between 0 and 1, 0.01 for one point" if most == 1.0 else "above 0, in nats"
        raise InputError(f"{measure} margin {margin!r}: give a number {accepted}")


def _split(names: Sequence[str], families: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns the names by family; what no family names makes the last."""
    parts = [[name for name in names if name in family] for family in map(set, families)]
    named = {name for part in parts for name in part}
    return [*parts, [name for name in names if name not in named]]


def _accuracy_verdicts(table: Table, names: Sequence[str], margin: float) -> dict[str, Verdict]:
    baseline = table.baseline_accuracy
    if baseline > 0:
        losses = {
            name: Losses(table.accuracy_drops(name), table.groups(table.block(name).samples))
            for name in names
            if table.has_answers(name)
        }
        unknown = unknown_verdict("accuracy", margin, _NO_ANSWERS)
        return dict.fromkeys(names, unknown) | verdicts(losses, "accuracy", margin)
    reason = "inconclusive: nothing was generated, so there is no accuracy; see the KL"
    if baseline == 0:
        reason = "inconclusive: the clean model answers no question right; see the KL"
    return {name: unknown_verdict("accuracy", margin, reason) for name in names}


def _kl_losses(table: Table, name: str) -> Losses:
    """Returns the KL on samples where the clean model's own is finite, 0 of itself."""
    samples = table.block(name).samples
    is_scored = np.isfinite(table.clean_values("kl_nats", samples))
    if not is_scored.any():  # no clean record to tell by
        is_scored[:] = True
    kept = [s for s, k in zip(samples, is_scored, strict=True) if k]
    return Losses(table.values(name, "kl_nats")[:, is_scored], table.groups(kept))


def _notes(table: Table) -> tuple[str, ...]:
    out = {name: table.left_out(name) for name in table.conditions}
    left = {name: count for name, count in out.items() if count}
    if not left:
        return ()
    most = max(left, key=lambda name: left[name])
    return (
        f"{sum(left.values())} records of {len(left)} conditions are left out, since draws or "
        f"samples beside them are not there yet (most in {most}: {left[most]})",
    )
