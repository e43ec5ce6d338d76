"""Whether the noise of a condition arrived at all: without it, its figures are the clean model's.

Checked after a condition's first pass, so that a void run ends at once and not after hours.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from noisescope.errors import DoseError
from noisescope.inject import Session, Witness, coverage_table
from noisescope.inject.fired import check_fired
from noisescope.records import CLEAN, Record

_ADVICE = "use a larger scale, float32, or stochastic rounding"


def check_arrived(condition: str, session: Session, witness: Witness | None = None) -> None:
    """Raises where a condition's noise has changed nothing.

    Args:
        condition: Its name.
        session: The condition's; it may have run nothing itself.
        witness: What was seen elsewhere; None: what the session has seen.

    Raises:
        SelectionError: Something that its selection names never ran.
        DoseError: Noise was added, and rounding erased all of it.
    """
    witness = witness or session.witness
    check_fired(session.selection, session.region_names, witness.records)
    dose = witness.dose()
    if dose.is_all_lost:
        raise DoseError(
            f"no noise arrived in {condition}: rounding erased all of it (relative L2 "
            f"{dose.asked_relative_l2:.1e} asked, 0 of {dose.elements:,} elements changed); "
            f"{_ADVICE}"
        )


def measurement_notes(
    records: Sequence[Record], witnesses: Mapping[str, Witness], max_new_tokens: int
) -> tuple[str, ...]:
    """Returns what the user should hear of a measurement, one line each."""
    notes = (
        weak_dose_note(witnesses),
        lost_operators_note(witnesses),
        not_finite_note(records),
        cut_note(records, max_new_tokens),
        close_call_note(records),
    )
    return tuple(note for note in notes if note is not None)


def weak_dose_note(witnesses: Mapping[str, Witness]) -> str | None:
    """Returns one line about the conditions where under half of the noise arrived, or None."""
    weak = {name: witness.dose() for name, witness in witnesses.items() if witness.is_dose_weak()}
    if not weak:
        return None
    worst = min(weak, key=lambda name: weak[name].share_changed)
    return (
        f"under half of the noise arrived in {_few(list(weak))} ({worst}: {weak[worst]}), rounding "
        f"erased it: {_ADVICE}"
    )


def lost_operators_note(witnesses: Mapping[str, Witness]) -> str | None:
    """Returns one line about operators that received none of their noise anywhere, or None."""
    rows = coverage_table([r for witness in witnesses.values() for r in witness.records])
    lost = [row.operator for row in rows if row.perturbed and row.dose.is_all_lost]
    if not lost:
        return None
    return f"no noise arrived in any {' or '.join(lost)}: rounding erased all of it; {_ADVICE}"


def not_finite_note(records: Sequence[Record]) -> str | None:
    """Returns one line about records without a finite KL, or None.

    They are left out of means and intervals, which then tell too little of the loss.
    """
    broken = Counter(r.condition for r in records if r.tokens and not math.isfinite(r.kl_nats))
    if not broken:
        return None
    if CLEAN in broken:
        return (
            f"the clean model's own logits are not finite in {broken[CLEAN]} samples, which are "
            "left out: use float32 or bfloat16"
        )
    worst, count = broken.most_common(1)[0]
    total = sum(r.condition == worst for r in records)
    return (
        f"noise made logits overflow in {_few(list(broken))} ({worst}: {count} of {total} records "
        "without a finite KL): they are left out, so the loss there is larger than is shown"
    )


def cut_note(records: Sequence[Record], max_new_tokens: int) -> str | None:
    """Returns one line about clean answers that ended for want of tokens, or None."""
    clean = [r for r in records if r.condition == CLEAN]
    cut = sum(bool(r.is_cut) for r in clean)
    if not cut:
        return None
    return (
        f"{cut} of {len(clean)} clean answers were cut at {max_new_tokens} tokens and may count as "
        "wrong for that: allow more with --max-new-tokens"
    )


def close_call_note(records: Sequence[Record]) -> str | None:
    """Returns one line about answers that another batch or device may give otherwise, or None."""
    close = [r for r in records if r.close_calls]
    if not close:
        return None
    return (
        f"in {len(close)} of {len(records)} answers the two best tokens came within rounding of "
        f"each other, in {sum(r.close_calls or 0 for r in close)} steps: there another batch or "
        "device may go on otherwise"
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
