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
    Worst,
    analyse,
    next_round,
    unknown_verdict,
)
from noisescope.analyse.intervals import UNKNOWN
from noisescope.errors import InputError
from noisescope.records import CLEAN, Record
from noisescope.study.plan import StudyPlan

GIVEN_UP_NOTE = (
    "the search gave up all conditions but two, after the samples that the clean model is least "
    "sure of: their KL there is no estimate of their KL on all samples, and they are not judged"
)
GIVEN_UP = "given up by the search"
_GIVEN_UP = "inconclusive: given up by the search, not measured on all samples"


def searched_winner(plan: StudyPlan, records: Sequence[Record]) -> Winner | None:
    """Returns the winner of a search, or None where rounds are left."""
    found = next_step(plan, records)
    return found if isinstance(found, Winner) else None


def next_step(plan: StudyPlan, records: Sequence[Record]) -> Round | Winner:
    """Returns what a search evaluates next, or its winner.

    It meets the samples in the order of the clean model's NLL, whose records must be there before
    the first noisy ones: they cost no evaluation, for every condition needs them. Samples that the
    clean model itself cannot be scored on could not tell conditions apart, and are left out.

    Raises:
        InputError: The clean model can be scored on no sample.
    """
    clean = [r for r in records if r.condition == CLEAN]
    nll = {r.sample: r.nll_nats for r in clean if math.isfinite(r.nll_nats)}
    broken = {r.sample for r in clean} - nll.keys()
    samples = [sample.name for sample in plan.samples if sample.name not in broken]
    if not samples:
        raise InputError(
            "the clean model's logits are not finite on any sample, so nothing can be searched: "
            "use --dtype float32 or bfloat16"
        )
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
    analysis: Analysis, records: Sequence[Record], winner: Winner | None, kl_margin: float
) -> Analysis:
    """Replaces what was said of each condition: the last two on the reserve, nothing on others.

    Args:
        analysis: Of all records.
        records: The same.
        winner: What the search came to; None: rounds are left, and nobody is judged yet.
        kl_margin: KL that is still no harm, in nats per token.
    """
    if winner is None:
        reason = "the search goes on: nothing is told yet"
        worst = replace(_no_worst(analysis.worst_kl, reason), condition=None)
        judged = (_given_up(s, kl_margin, f"inconclusive: {reason}") for s in analysis.summaries)
        return replace(analysis, summaries=tuple(judged), worst_kl=worst)
    last = {winner.name, winner.runner_up}
    kept = [r for r in records if r.sample in winner.reserve and r.condition in (CLEAN, *last)]
    found = analyse(kept, kl_margin=kl_margin)
    on_reserve = {s.condition: s for s in found.summaries}
    judged = (
        on_reserve.get(s.condition) or _given_up(s, kl_margin, _GIVEN_UP)
        for s in analysis.summaries
    )
    worst = replace(found.worst_kl, held_out=UNKNOWN, chosen_again=math.nan)
    if worst.condition != winner.name:
        worst = _no_worst(worst, f"inconclusive: on the samples held back {worst.condition} loses")
        worst = replace(worst, condition=winner.name, reason=f"{worst.reason} more")
    else:
        named = on_reserve[winner.name].kl_nats
        reason = f"{worst.reason}; of the last two, on the samples held back"
        worst = replace(worst, reason=reason, held_out=named)
    return replace(analysis, summaries=tuple(judged), worst_kl=worst)


def _no_worst(worst: Worst, reason: str) -> Worst:
    return replace(worst, is_conclusive=False, reason=reason, held_out=UNKNOWN)


def _given_up(summary: Summary, kl_margin: float, reason: str) -> Summary:
    """Returns a summary that keeps its means and takes back every interval and verdict."""
    intervals = {
        name: replace(getattr(summary, name), low=math.nan, high=math.nan, caution=GIVEN_UP)
        for name in ("kl_nats", "nll_change_nats", "top1_agreement", "kl_p95_nats", "kl_p99_nats")
    }
    return replace(summary, **intervals, kl_verdict=unknown_verdict("kl", kl_margin, reason))
