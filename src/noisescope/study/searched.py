"""A search as a study carries it out: which samples come next, and what may be said of its records.

Samples are met in the order of the clean model's loss, so what a condition lost on those it met is
no estimate of what it loses on all. Only the last two are judged, on the samples held back.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from noisescope.analyse import (
    Analysis,
    Round,
    Summary,
    Winner,
    analyse,
    next_round,
    unknown_verdict,
)
from noisescope.records import CLEAN, Record
from noisescope.study.plan import StudyPlan

GIVEN_UP_NOTE = (
    "the search gave up all conditions but two, after the samples that the clean model is least "
    "sure of: their KL there is no estimate of their KL on all samples, and they are not judged"
)
_GIVEN_UP = "inconclusive: given up by the search, not measured on all samples"


def searched_winner(plan: StudyPlan, records: Sequence[Record]) -> Winner | None:
    """Returns the winner of a search, or None where rounds are left."""
    found = next_step(plan, records)
    return found if isinstance(found, Winner) else None


def next_step(plan: StudyPlan, records: Sequence[Record]) -> Round | Winner:
    """Returns what a search evaluates next, or its winner.

    It meets the samples in the order of the clean model's NLL, whose records must be there before
    the first noisy ones: they cost no evaluation, for every condition needs them.
    """
    samples = [sample.name for sample in plan.samples]
    nll = {r.sample: r.nll_nats for r in records if r.condition == CLEAN}
    return next_round(list(plan.conditions), losses_of(records), samples, priority=nll)


def losses_of(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Returns the KL by condition and sample, mean over draws, as a search goes by it."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record.condition != CLEAN:
            by_sample = values.setdefault(record.condition, {})
            by_sample.setdefault(record.sample, []).append(record.kl_nats)
    return {
        name: {sample: math.fsum(kls) / len(kls) for sample, kls in by_sample.items()}
        for name, by_sample in values.items()
    }


def judged_on_reserve(
    analysis: Analysis, records: Sequence[Record], winner: Winner, kl_margin: float
) -> Analysis:
    """Replaces what was said of each condition: the last two on the reserve, no verdict on others.

    Args:
        analysis: Of all records.
        records: The same.
        winner: What the search came to.
        kl_margin: KL that is still no harm, in nats per token.
    """
    last = {winner.name, winner.runner_up}
    kept = [r for r in records if r.sample in winner.reserve and r.condition in (CLEAN, *last)]
    on_reserve = {s.condition: s for s in analyse(kept, kl_margin=kl_margin).summaries}
    given_up = unknown_verdict("kl", kl_margin, _GIVEN_UP)

    def judged(summary: Summary) -> Summary:
        found = on_reserve.get(summary.condition)
        return replace(summary, kl_verdict=given_up) if found is None else found

    return replace(analysis, summaries=tuple(map(judged, analysis.summaries)))
