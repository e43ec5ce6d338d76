"""A bound that a change must not pass, as text (`kl>0.02`, `accuracy<-1%`), and what data tell.

Passed beyond chance, within it beyond chance, or open, with what would settle it. A bound is named
by a change for the worse, as `target` names a loss.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from noisescope.analyse.change import Change, Measure
from noisescope.analyse.evidence import Evidence
from noisescope.analyse.significance import holm
from noisescope.analyse.verdict import ALPHA, LEAST_SAMPLES
from noisescope.errors import InputError, near_names
from noisescope.records import CLEAN

SHOWN, EXCLUDED, INCONCLUSIVE = "shown", "excluded", "inconclusive"
_STATUS = {SHOWN: 1, EXCLUDED: 0, INCONCLUSIVE: 3}
_FORM = re.compile(
    r"\s*(accuracy|kl|nll)\s*(?:\[(.+)\])?\s*([<>])\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*(%?)\s*",
    re.DOTALL,
)
_ACCEPTED = (
    "'kl>0.02' or 'nll>0.02' (nats per token), 'accuracy<-1%' or 'accuracy<-0.01' (share of "
    "answers lost), of one condition 'kl[L0-2]>0.02'"
)


@dataclass(frozen=True)
class Gate:
    """A change that is not to be passed.

    Attributes:
        text: As the user wrote it.
        measure: `kl` or `nll` (a rise, nats per token) or `accuracy` (a fall, share of answers).
        bound: How much, above zero; below one for accuracy.
        condition: The condition that is meant; None: every one that the user asked for.
    """

    text: str
    measure: Measure
    bound: float
    condition: str | None = None


@dataclass(frozen=True)
class Ruling:
    """What the data say of a gate.

    Attributes:
        gate: The gate.
        outcome: `shown`: the bound is passed; `excluded`: it is not; or `inconclusive`.
        condition: The condition that decides: where it is shown most clearly, or is nearest.
        change: What changed there; None where nothing could be compared.
        p: One-sided p of the outcome, where shown by Holm over the conditions; NaN where open.
        reason: Why it is open, where not for want of data; empty otherwise.
        conditions: All conditions of which the outcome is true: where it is shown, all that are
            meant where it is excluded, and those that are open.
        needed_samples: Samples, at the same draws, that would settle all of them about every other
            time if the figures hold; None where it is settled, or no number in sight would.
        needed_draws: Draws, on the same samples, where samples alone would not.
    """

    gate: Gate
    outcome: str
    condition: str = ""
    change: Change | None = None
    p: float = math.nan
    reason: str = ""
    conditions: tuple[str, ...] = ()
    needed_samples: int | None = None
    needed_draws: int | None = None


def parse_gate(text: str) -> Gate:
    """Reads a gate.

    Args:
        text: `accuracy<-1%` and `accuracy<-0.01` both mean more than one answer in a hundred lost;
            `kl>0.02` and `nll>0.02` are nats per token; a condition may follow in brackets.

    Raises:
        InputError: Anything else.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise _refused(text, "")
    measure, condition, sign, number, percent = found.groups()
    try:
        value = float(number)
    except ValueError:
        raise _refused(text, f"; {number!r} is not a number") from None
    if measure == "accuracy":
        bound = -value / 100 if percent else -value
        if sign != "<" or not 0 < bound < 1:
            raise _refused(text, "; of accuracy a fall is told, as a number below 0 and above -1")
        return Gate(text.strip(), "accuracy", bound, condition)
    if sign != ">" or percent or not (value > 0 and math.isfinite(value)):
        raise _refused(text, f"; {measure} rises, in nats per token, above a number above 0")
    return Gate(text.strip(), "kl" if measure == "kl" else "nll", value, condition)


def _refused(text: str, why: str) -> InputError:
    return InputError(f"Gate {text!r} cannot be used{why}: give {_ACCEPTED}")


def judge(gate: Gate, changes: Sequence[Change]) -> Ruling:
    """Holds changes against a gate.

    It is shown where any condition passes the bound, at 5 % over all that are meant (Holm); it is
    excluded where every one of them is within it, at 5 % each. Fewer than ten independent samples
    show and exclude nothing; what is the same in both is excluded without a test. A KL that is not
    finite in B, and is in A, is above any bound.

    Args:
        gate: The gate.
        changes: All that was compared.

    Raises:
        InputError: It names a condition, or a measure, that was not compared.
    """
    meant = _meant(gate, changes)
    found = [change.loss_evidence(gate.bound) for change in meant]
    pairs = list(zip(meant, found, strict=True))
    shown = holm([_p_shown(*pair) for pair in pairs])
    clear = [n for n, p in enumerate(shown) if p < ALPHA and _is_enough(*pairs[n])]
    if clear:
        first = min(clear, key=lambda n: (shown[n], -_loss(meant[n])))
        names = tuple(meant[n].condition for n in clear)
        return _ruling(gate, SHOWN, meant[first], shown[first], names)
    excluded = [_p_excluded(*pair) for pair in pairs]
    is_open = [
        not (p < ALPHA and _is_enough(*pair)) for p, pair in zip(excluded, pairs, strict=True)
    ]
    if not any(is_open):
        worst = max(range(len(meant)), key=lambda n: _order(_loss(meant[n])))
        names = tuple(change.condition for change in meant)
        return _ruling(gate, EXCLUDED, meant[worst], excluded[worst], names)
    return _open(
        gate, [pair for pair, open_ in zip(pairs, is_open, strict=True) if open_], len(meant)
    )


def exit_status(rulings: Sequence[Ruling]) -> int:
    """Returns 1 where any gate is shown, else 3 where any is inconclusive, else 0."""
    statuses = {_STATUS[ruling.outcome] for ruling in rulings}
    return next((status for status in (1, 3) if status in statuses), 0)


def _meant(gate: Gate, changes: Sequence[Change]) -> list[Change]:
    of_measure = [change for change in changes if change.measure == gate.measure]
    if not of_measure:
        raise InputError(
            f"Gate {gate.text!r}: no {gate.measure} was compared; name one of "
            f"{', '.join(dict.fromkeys(c.measure for c in changes)) or 'nothing'}"
        )
    if gate.condition is None:
        return [change for change in of_measure if change.is_asked] or of_measure
    names = [change.condition for change in of_measure]
    if gate.condition not in names:
        accepted = ", ".join(filter(None, names[:3]))
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise InputError(
            f"Gate {gate.text!r}: no condition {gate.condition!r} was compared"
            f"{near_names(gate.condition, names)}; "
            + (
                f"accepted are {accepted}{more}"
                if accepted
                else "two models have none: leave it out"
            )
        )
    return [change for change in of_measure if change.condition == gate.condition]


def _ruling(
    gate: Gate, outcome: str, change: Change, p: float, conditions: tuple[str, ...]
) -> Ruling:
    return Ruling(gate, outcome, change.condition, change, p, conditions=conditions)


def _loss(change: Change) -> float:
    mean = change.difference.mean
    return -mean if change.measure == "accuracy" else mean


def _is_enough(change: Change, e: Evidence) -> bool:
    if change.is_same:
        return True
    return e.samples >= LEAST_SAMPLES and (change.overflows > 0 or e.groups >= LEAST_SAMPLES)


def _p_shown(change: Change, e: Evidence) -> float:
    if change.is_same or _is_hopeless(change):
        return 1.0
    return 0.0 if change.overflows else e.p_harmful


def _p_excluded(change: Change, e: Evidence) -> float:
    if change.is_same:
        return 0.0
    if change.overflows or _is_hopeless(change):
        return 1.0
    return 1.0 if math.isnan(e.p_harmless) else e.p_harmless


def _is_hopeless(change: Change) -> bool:
    """Tells whether A answers nothing right even without noise: then accuracy tells nothing."""
    return change.measure == "accuracy" and change.first == 0 and change.condition in ("", CLEAN)


def _open(gate: Gate, pairs: Sequence[tuple[Change, Evidence]], family: int) -> Ruling:
    nearest = max(pairs, key=lambda pair: _order(_loss(pair[0])))[0]
    names = tuple(change.condition for change, _ in pairs)
    reason = next(filter(None, (_why(change, e) for change, e in pairs)), "")
    samples, draws = [], []
    for _, e in pairs:
        level = ALPHA / family if e.mean > e.margin else ALPHA
        needed = e.needed_samples(level)
        samples.append(needed)
        draws.append(e.needed_draws(level) if needed is None else 0)
    # What settles the slowest of them settles all; one that nothing settles leaves no number.
    known = [n for n in samples if n is not None]
    more = [n for n in draws if n]
    by_samples = max(known) if len(known) == len(pairs) and not reason else None
    by_draws = (
        max(more) if by_samples is None and None not in draws and more and not reason else None
    )
    return Ruling(
        gate,
        INCONCLUSIVE,
        nearest.condition,
        nearest,
        reason=reason,
        conditions=names,
        needed_samples=by_samples,
        needed_draws=by_draws,
    )


def _order(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _why(change: Change, e: Evidence) -> str:
    """Says why nothing can be told, where more of the same data would not help or is too little."""
    if _is_hopeless(change):
        return "A answers nothing right, so no accuracy can be lost"
    if not math.isfinite(e.mean):
        return "nothing finite can be compared"
    if not _is_enough(change, e):
        few = min(e.samples, e.groups)
        what = "samples" if e.groups == e.samples - e.overflowed else "independent samples"
        return f"{few} {what} are too few to tell: use 50 or more"
    return ""
