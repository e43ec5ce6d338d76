"""The worst condition, whether the numbers can tell that it is the worst, and what it truly costs.

The largest of ten noisy figures is always somewhere. It is called a finding only where it differs
from the clean model and from every other condition, family-wise at 5 % by Holm; and its loss is
measured again on questions and draws that did not choose it.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisescope.analyse.held_out import hold_out
from noisescope.analyse.intervals import UNKNOWN, Interval, finite_part, mean_interval
from noisescope.analyse.shares import share_interval
from noisescope.analyse.significance import holm, mcnemar_p, mean_test_p
from noisescope.analyse.table import Block, Table
from noisescope.analyse.verdict import LEAST_SAMPLES
from noisescope.records import CLEAN

LEVEL = 0.05
_HOPELESS = 0.5  # above it the estimate would be thousands of samples, and worth nothing

_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Worst:
    """The condition with the largest loss.

    Attributes:
        condition: Its name; None where nothing could be compared.
        measure: `accuracy` or `kl`.
        is_conclusive: Whether it can be told from the clean model and from every other condition.
        p_value: The largest adjusted p among these comparisons; NaN without data.
        rivals: Conditions that cannot be told from it.
        reason: One sentence for the user.
        held_out: Its loss on questions and draws that did not choose it, free of the selection's
            bias; unknown where too few questions are there to hold any out.
        held_out_draws: Whether draws were held out too; one draw cannot.
        chosen_again: The share of held-out blocks whose other data chose the same condition; NaN
            where a reserve was held back, or nothing could be.
    """

    condition: str | None
    measure: str
    is_conclusive: bool
    p_value: float
    rivals: tuple[str, ...]
    reason: str
    held_out: Interval = UNKNOWN
    held_out_draws: bool = False
    chosen_again: float = math.nan


def worst_by_accuracy(
    table: Table, among: Sequence[str] | None = None, reserve: Sequence[str] | None = None
) -> Worst:
    """Finds the plan's avalanche point: the condition with the largest loss of accuracy.

    Args:
        table: What was measured.
        among: The conditions that compete; None: all.
        reserve: Samples that a search held back, none of which may choose; None: cross-fitting.
    """
    baseline = table.baseline_accuracy
    if math.isnan(baseline):
        return _none("accuracy", "nothing was generated, so there is no accuracy; see the KL")
    if baseline == 0:
        return _none(
            "accuracy",
            "the clean model answers no question right, so there is nothing to lose; see the KL",
        )
    names = table.conditions if among is None else list(among)
    return _worst(_Contest("accuracy", table, names, table.accuracy_drops), reserve or ())


def worst_by_kl(
    table: Table, among: Sequence[str] | None = None, reserve: Sequence[str] | None = None
) -> Worst:
    """Finds the condition with the largest KL from the clean model; arguments as above."""
    names = table.conditions if among is None else list(among)

    def kl(name: str, block: Block) -> _Values:
        return table.values(name, "kl_nats", block)

    return _worst(_Contest("kl", table, names, kl), reserve or ())


@dataclass(frozen=True)
class _Contest:
    """Conditions that compete, with their losses on any block."""

    measure: str
    table: Table
    names: Sequence[str]
    losses: Callable[[str, Block], _Values]

    def own(self, name: str, reserve: Sequence[str] = ()) -> _Values:
        return self.losses(name, _without(self.table.block(name), reserve))

    def difference(self, name: str, other: str) -> tuple[_Values, list[Hashable] | None]:
        """Returns what one loses more than another on the draws and samples both have."""
        block = self.table.block(name)
        if other == CLEAN:
            return self.losses(name, block), self.table.groups(block.samples)
        both = block.common(self.table.block(other))
        found = self.losses(name, both) - self.losses(other, both)
        return found, self.table.groups(both.samples)


def _without(block: Block, samples: Sequence[str]) -> Block:
    left_out = set(samples)
    return Block(block.draws, tuple(s for s in block.samples if s not in left_out))


def _worst(contest: _Contest, reserve: Sequence[str]) -> Worst:
    means = _means(contest, reserve)
    if not means:
        return _none(contest.measure, "there is nothing to compare")
    worst = max(means, key=lambda name: means[name])
    if means[worst] <= 0:
        return _none(contest.measure, "no condition did worse than the clean model")
    others = [CLEAN, *(name for name in contest.names if name != worst)]
    adjusted = holm([_compare(contest, worst, other) for other in others])
    by_name = dict(zip(others, adjusted, strict=True))
    broken = tuple(n for n in contest.names if n != worst and _is_broken(contest, n))
    rivals = tuple(o for o in others if o in broken or not by_name[o] < LEVEL)
    p_value = math.nan if any(map(math.isnan, adjusted)) else max(adjusted)
    told = _sentence(contest, worst, {r: by_name[r] for r in rivals}, broken, p_value)
    again = _again(contest, worst, reserve, any(name != CLEAN for name in rivals))
    if len(contest.table.block(worst).samples) < LEAST_SAMPLES:
        return Worst(worst, contest.measure, False, p_value, tuple(others), told, *again)
    return Worst(worst, contest.measure, not rivals, p_value, rivals, told, *again)


def _means(contest: _Contest, reserve: Sequence[str]) -> dict[str, float]:
    """Returns the mean losses that may be compared: of those with the most samples.

    A search gives the rest up on fewer samples, on which they lost to these.
    """
    sizes = {name: len(contest.table.block(name).samples) for name in contest.names}
    most = [name for name, size in sizes.items() if size == max(sizes.values())]
    finite = {name: finite_part(contest.own(name, reserve), None)[0] for name in most}
    return {name: float(values.mean()) for name, values in finite.items() if values.size}


def _is_broken(contest: _Contest, name: str) -> bool:
    return not np.isfinite(contest.own(name)).all()


def _compare(contest: _Contest, worst: str, other: str) -> float:
    """Returns the p that `worst` loses as much as another, on the same samples and draws."""
    difference, groups = contest.difference(worst, other)
    if not difference.size:
        return math.nan
    if contest.measure == "accuracy" and difference.shape[0] == 1 and groups is None:
        # A loss of 1, 0 or -1 against the same clean answer: equal differences, so equal pairs.
        return mcnemar_p((difference[0] > 0).tolist(), (difference[0] < 0).tolist())
    return mean_test_p(difference, groups)


def _again(
    contest: _Contest, worst: str, reserve: Sequence[str], is_close: bool
) -> tuple[Interval, bool, float]:
    """Returns the held-out loss, whether draws were held out, and how often it was chosen again."""
    interval = share_interval if contest.measure == "accuracy" else _kl_interval
    block = contest.table.block(worst)
    if reserve:
        held = Block(block.draws, tuple(s for s in block.samples if s in set(reserve)))
        values = contest.losses(worst, held)
        return interval(values, contest.table.groups(held.samples)), False, math.nan
    losses, samples = _shared_losses(contest, worst)
    if not samples:
        return UNKNOWN, False, math.nan
    groups = contest.table.groups(samples)
    held_out = hold_out(losses, groups)
    if not held_out.choices:
        return UNKNOWN, False, math.nan
    found = held_out.interval(interval(held_out.values_KN, groups), groups, is_close)
    return found, held_out.includes_draws, held_out.share_of(worst)


def _kl_interval(values: _Values, groups: Sequence[Hashable] | None) -> Interval:
    return mean_interval(values, groups=groups)


def _shared_losses(contest: _Contest, worst: str) -> tuple[dict[str, _Values], list[str]]:
    """Returns the losses of those with as many samples, on the samples finite in all of them."""
    block = contest.table.block(worst)
    rivals = [n for n in contest.names if len(contest.table.block(n).samples) == len(block.samples)]
    for name in rivals:
        block = block.common(contest.table.block(name))
    losses = {name: contest.losses(name, block) for name in rivals}
    losses = {n: x for n, x in losses.items() if np.isfinite(x).all(axis=0).any()}
    if not losses or not len(block):
        return {}, []
    is_finite = np.logical_and.reduce([np.isfinite(x).all(axis=0) for x in losses.values()])
    kept = [s for s, k in zip(block.samples, is_finite, strict=True) if k]
    return {name: values[:, is_finite] for name, values in losses.items()}, kept


def _sentence(
    contest: _Contest,
    worst: str,
    rivals: Mapping[str, float],
    broken: Sequence[str],
    p_value: float,
) -> str:
    block = contest.table.block(worst)
    draws, samples = len(block.draws), len(block.samples)
    if samples < LEAST_SAMPLES:
        reason = f"inconclusive: {worst} loses most, but {samples} samples are too few to tell"
        return f"{reason}; use 50 or more"
    if broken and set(rivals) <= set(broken):
        reason = f"inconclusive: {worst} loses most among what can be compared, but the logits of "
        return f"{reason}{_or(broken)} overflowed"
    data = f"{samples} samples, {'one draw' if draws == 1 else f'{draws} draws'}"
    if not rivals:
        return f"{worst} loses most, beyond chance (p = {p_value:.2g} by Holm, {data})"
    named = [CLEAN] if CLEAN in rivals else list(rivals)
    p_named = max((rivals[name] for name in named), key=lambda p: math.inf if p != p else p)
    told = "the clean model" if CLEAN in rivals else _or(named)
    chance = "too few for a test" if math.isnan(p_named) else f"p = {p_named:.2g} by Holm"
    return (
        f"inconclusive: {worst} loses most, but cannot be told from {told} ({chance}, {data}); "
        f"{_advice(samples, p_value)}"
    )


def _or(names: Sequence[str]) -> str:
    return " or ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _advice(samples: int, p_value: float) -> str:
    needed = samples_needed(samples, p_value)
    if needed is None:
        return "use more samples or draws"
    return f"about {needed} samples would settle it if the difference holds"


def samples_needed(samples: int, p_value: float) -> int | None:
    """Returns how many samples would bring a two-sided p to 5 %; None where nothing is in sight.

    Source: the standard error of a mean goes as 1 / sqrt(N), so N z(0.05)^2 / z(p)^2.
    """
    if not p_value < _HOPELESS:
        return None
    needed = samples * (stats.norm.isf(LEVEL / 2) / stats.norm.isf(p_value / 2)) ** 2
    digits = 10 ** max(0, math.floor(math.log10(needed)) - 1)
    return int(math.ceil(needed / digits) * digits)


def _none(measure: str, reason: str) -> Worst:
    return Worst(None, measure, False, math.nan, (), reason)
