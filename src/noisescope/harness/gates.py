"""Bounds that noise must not pass, such as `accuracy<-1%`: what an evaluation says of each.

The bounds and their tests are those of a comparison of two models; here A is the clean model.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from noisescope.analyse.change import Change as Compared
from noisescope.analyse.change import Measure, make_change
from noisescope.analyse.gate import EXCLUDED, SHOWN, Gate, Ruling, judge
from noisescope.errors import InputError, near_names
from noisescope.harness.paired import Change
from noisescope.harness.pairs import CHOICE_KL, NATS, SHARE


def rulings_of(changes: Sequence[Change], gates: Sequence[Gate]) -> list[Ruling]:
    """Returns what the changes say of each gate.

    `accuracy` is meant of shares of which more is better, `nll` of what log-likelihoods lose, `kl`
    of the choices of a question. What is in brackets names a task, a condition, a metric or a
    filter.

    Raises:
        InputError: A gate that nothing of the evaluation can answer.
    """
    return [_ruling(gate, changes) for gate in gates]


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
    return judge(replace(gate, condition=None), [_compared(c, gate.measure) for c in meant])


def _names(change: Change) -> tuple[str, ...]:
    return change.task, change.condition, change.metric, change.filter


def _measure(change: Change) -> Measure | None:
    if change.metric == CHOICE_KL:
        return "kl"
    if change.kind == NATS:
        return "nll"
    return "accuracy" if change.kind == SHARE and change.is_higher_better else None


def _compared(change: Change, measure: Measure) -> Compared:
    assert change.sides is not None  # noqa: S101, only a corpus metric has none, and no measure
    return make_change(label(change), measure, change.sides)


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
