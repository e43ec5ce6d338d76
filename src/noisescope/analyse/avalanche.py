"""The worst condition, and whether the numbers can tell that it is the worst.

The largest of ten noisy figures is always somewhere. It is called a finding only where it differs
from the clean model and from every other condition, family-wise at 5 % by Holm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.intervals import holm, mcnemar_p, t_test_p
from noisescope.analyse.summary import Table
from noisescope.measure import CLEAN

LEVEL = 0.05


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
    """

    condition: str | None
    measure: str
    is_conclusive: bool
    p_value: float
    rivals: tuple[str, ...]
    reason: str


def worst_by_accuracy(table: Table) -> Worst:
    """Finds the plan's avalanche point: the condition with the largest loss of accuracy."""
    baseline = table.baseline_accuracy
    if math.isnan(baseline):
        return _none("accuracy", "nothing was generated, so there is no accuracy; see the KL")
    if baseline == 0:
        return _none(
            "accuracy",
            "the clean model answers no question right, so there is nothing to lose; see the KL",
        )
    return _worst(table, "accuracy", table.accuracy_drops, table.values(CLEAN, "is_right").shape[1])


def worst_by_kl(table: Table) -> Worst:
    """Finds the condition with the largest KL from the clean model."""
    samples = table.values(CLEAN, "kl_nats").shape[1]
    return _worst(table, "kl", lambda name: table.values(name, "kl_nats"), samples)


def _worst(
    table: Table, measure: str, losses: Callable[[str], NDArray[np.float64]], samples: int
) -> Worst:
    names = table.conditions
    means = {name: float(np.nanmean(losses(name))) for name in names if losses(name).size}
    if not means:
        return _none(measure, "no condition was measured")
    worst = max(means, key=lambda name: means[name])
    if means[worst] <= 0:
        return Worst(
            worst,
            measure,
            False,
            math.nan,
            tuple(names),
            "no condition did worse than the clean model",
        )
    others = [CLEAN, *(name for name in names if name != worst)]
    p_values = [_compare(losses, worst, other, measure) for other in others]
    adjusted = holm(p_values)
    rivals = tuple(o for o, p in zip(others, adjusted, strict=True) if not p < LEVEL)
    p_value = math.nan if any(map(math.isnan, adjusted)) else max(adjusted)
    return Worst(
        worst, measure, not rivals, p_value, rivals, _sentence(worst, rivals, samples, p_value)
    )


def _compare(
    losses: Callable[[str], NDArray[np.float64]], worst: str, other: str, measure: str
) -> float:
    """Returns the p that `worst` loses as much as another, on the same samples and draws."""
    mine = losses(worst)
    theirs = np.zeros_like(mine) if other == CLEAN else losses(other)
    if measure == "accuracy" and mine.shape[0] == 1:
        # A loss of 1, 0 or -1 against the same clean answer: equal differences, so equal pairs.
        difference = mine[0] - theirs[0]
        return mcnemar_p((difference > 0).tolist(), (difference < 0).tolist())
    return t_test_p(mine - theirs)


def _sentence(worst: str, rivals: Sequence[str], samples: int, p_value: float) -> str:
    if not rivals:
        return f"{worst} loses most, beyond chance (p = {p_value:.2g} by Holm, {samples} samples)"
    told = "the clean model" if CLEAN in rivals else " or ".join(rivals[:3])
    more = f" and {len(rivals) - 3} more" if len(rivals) > 3 and CLEAN not in rivals else ""
    chance = "too few samples for a test" if math.isnan(p_value) else f"p = {p_value:.2g} by Holm"
    return (
        f"inconclusive: {worst} loses most, but with {samples} samples it cannot be told from "
        f"{told}{more} ({chance}); use more samples or draws"
    )


def _none(measure: str, reason: str) -> Worst:
    return Worst(None, measure, False, math.nan, (), reason)
