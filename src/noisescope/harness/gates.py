"""Bounds that noise must not pass, such as `accuracy<-1%`: what an evaluation says of each.

The bounds and their tests are those of a comparison of two models; here A is the clean model.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from noisescope.analyse.change import Change as Compared
from noisescope.analyse.change import Measure, make_change
from noisescope.analyse.gate import EXCLUDED, INCONCLUSIVE, SHOWN, Gate, Ruling, judge
from noisescope.errors import InputError, near_names
from noisescope.harness.loading import LoadedTask
from noisescope.harness.paired import Change, is_twice, lost_text
from noisescope.harness.pairs import CHOICE_KL, NATS, NUMBER, OF_LIKELIHOODS, SHARE

_MOST_NAMED = 6


def rulings_of(changes: Sequence[Change], gates: Sequence[Gate]) -> list[Ruling]:
    """Returns what the changes say of each gate.

    `accuracy` is meant of shares of which more is better, `nll` of what log-likelihoods lose, `kl`
    of the choices of a question. What is in brackets names a task, a condition, a metric or a
    filter.

    Raises:
        InputError: A gate that nothing of the evaluation can answer.
    """
    return [_ruling(gate, changes) for gate in gates]


def check_gates(gates: Sequence[Gate], tasks: Sequence[LoadedTask], names: Sequence[str]) -> None:
    """Checks before anything is measured that the gates can be answered, as far as is known then.

    Args:
        gates: The gates.
        tasks: The tasks that will be asked.
        names: The conditions.

    Raises:
        InputError: A name in brackets that is no task, condition, metric or filter of these, or a
            measure that none of the tasks can tell.
    """
    known = {*names, *(task.name for task in tasks)}
    is_closed = all(task.metrics is not None for task in tasks)
    for task in tasks:
        known |= {*(task.metrics or ()), *task.filters}
    has_choices = any(task.output_type == "multiple_choice" for task in tasks)
    known |= {CHOICE_KL} if has_choices else set()
    named = f"; there are {', '.join(sorted(known)[:_MOST_NAMED])}"
    for gate in gates:
        if gate.condition is not None and is_closed and gate.condition not in known:
            raise InputError(
                f"--fail-if {gate.text}: no task, condition or metric {gate.condition!r} is "
                f"evaluated{near_names(gate.condition, known) or named}"
            )
        if gate.measure == "kl" and not has_choices:
            raise InputError(
                f"--fail-if {gate.text}: kl is of the choices of multiple choice, and none of the "
                "tasks has any"
            )
        metrics = {metric for task in tasks for metric in task.metrics or ()}
        if gate.measure == "accuracy" and is_closed and metrics <= set(OF_LIKELIHOODS):
            raise InputError(f"--fail-if {gate.text}: these tasks tell no accuracy; they tell nll")
        if gate.measure == "nll" and is_closed and not metrics & set(OF_LIKELIHOODS):
            raise InputError(
                f"--fail-if {gate.text}: these tasks tell no nll; {' and '.join(OF_LIKELIHOODS)} do"
            )


def _ruling(gate: Gate, changes: Sequence[Change]) -> Ruling:
    able = [(change, _measure(change)) for change in changes]
    meant = [change for change, measure in able if measure == gate.measure]
    if gate.condition is not None:
        names = {name for change in meant for name in _names(change)}
        meant = [change for change in meant if gate.condition in _names(change)]
        if names and not meant:
            raise InputError(
                f"--fail-if {gate.text}: no task, condition or metric {gate.condition!r} with "
                f"{gate.measure} was evaluated{near_names(gate.condition, names)}"
            )
    if not meant:
        has = sorted({measure for _, measure in able if measure is not None})
        raise InputError(
            f"--fail-if {gate.text}: these tasks tell no {gate.measure}; they tell "
            f"{' and '.join(has) or 'nothing that a bound can be held against'}"
        )
    keys = [_key(change) for change in meant]
    meant = [change for change in meant if not is_twice(_key(change), keys)]
    return _judged(replace(gate, condition=None), meant)


def _judged(gate: Gate, meant: Sequence[Change]) -> Ruling:
    """Holds changes against a gate; where noise left no number, it is shown or open, never passed.

    An answer that is lost is taken for the better one, so that what is shown is shown either way; a
    log-likelihood that is lost is told of only where no other one shows it.
    """
    lost = [c for c in meant if (c.lost and gate.measure != "kl") or _is_mixed(c)]
    able = [c for c in meant if c not in lost or c.kind == SHARE]
    ruling = judge(gate, [_compared(c, gate.measure) for c in able]) if able else None
    if not lost or (ruling is not None and ruling.outcome == SHOWN):
        assert ruling is not None  # noqa: S101, without lost ones there are others
        return ruling
    worst = max(lost, key=lambda change: change.lost)
    why = lost_text(worst.lost, worst.samples) if worst.lost else "answers neither right nor wrong"
    return Ruling(
        gate,
        INCONCLUSIVE,
        label(worst),
        reason=f"{why} ({label(worst)})",
        conditions=tuple(label(change) for change in lost),
    )


def _key(change: Change) -> tuple[str, str, str, str]:
    return change.condition, change.task, change.metric, change.filter


def _names(change: Change) -> tuple[str, ...]:
    return change.task, change.condition, change.metric, change.filter


def _measure(change: Change) -> Measure | None:
    if change.metric == CHOICE_KL:
        return "kl"
    if change.kind == NATS:
        return "nll"
    is_meant = change.kind == SHARE or _is_mixed(change)
    return "accuracy" if is_meant and change.is_higher_better else None


def _is_mixed(change: Change) -> bool:
    """Tells whether the clean model's answers are right or wrong, and some noisy ones neither."""
    if change.kind != NUMBER or change.sides is None:
        return False
    clean = change.sides.first_KN
    return bool(np.isin(clean[np.isfinite(clean)], (0.0, 1.0)).all())


def _compared(change: Change, measure: Measure) -> Compared:
    sides = change.at_best if measure == "accuracy" else change.sides
    assert sides is not None  # noqa: S101, only a corpus metric has none, and no measure
    return make_change(label(change), measure, sides)


def label(change: Change) -> str:
    """Returns a change's place in words: ``gsm8k, exact_match (strict-match), all``."""
    where = "" if change.filter == "none" else f" ({change.filter})"
    return f"{change.task}, {change.metric}{where}, {change.condition}"


def ruling_text(ruling: Ruling) -> str:
    """Says what the data say of a gate, on one line."""
    gate, change = ruling.gate, ruling.change
    loss = ""
    if change is not None and math.isfinite(change.difference.mean):
        mean = change.difference.mean
        loss = f"{100 * mean:+.1f} points" if gate.measure == "accuracy" else f"{mean:+.2g} nats"
        loss = f"; {change.condition}: {loss}"
    if ruling.outcome == SHOWN:
        return f"FAIL {gate.text}: passed beyond chance (p = {ruling.p:.2g}){loss}"
    if ruling.outcome == EXCLUDED:
        return f"PASS {gate.text}: excluded everywhere (p = {ruling.p:.2g}){loss}"
    more = ""
    if ruling.needed_samples is not None:
        more = f"; about {ruling.needed_samples} samples would settle it"
    elif ruling.needed_draws is not None:
        more = f"; about {ruling.needed_draws} draws would settle it"
    return f"OPEN {gate.text}: {ruling.reason or 'too few data tell'}{loss}{more}"
