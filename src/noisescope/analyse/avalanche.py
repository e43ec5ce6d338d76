"""The worst condition, and whether the numbers can tell that it is the worst.

The largest of ten noisy figures is always somewhere. It is called a finding only where it differs
from the clean model and from every other condition, family-wise at 5 % by Holm.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from noisescope.analyse.intervals import finite_questions, holm, mcnemar_p, t_test_p
from noisescope.analyse.summary import Table
from noisescope.records import CLEAN

LEVEL = 0.05
LEAST_SAMPLES = 10
_HOPELESS = 0.5  # above it the estimate would be thousands of samples, and worth nothing


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


def worst_by_accuracy(table: Table, among: Sequence[str] | None = None) -> Worst:
    """Finds the plan's avalanche point: the condition with the largest loss of accuracy.

    Args:
        table: What was measured.
        among: The conditions that compete; None: all.
    """
    baseline = table.baseline_accuracy
    if math.isnan(baseline):
        return _none("accuracy", "nothing was generated, so there is no accuracy; see the KL")
    if baseline == 0:
        return _none(
            "accuracy",
            "the clean model answers no question right, so there is nothing to lose; see the KL",
        )
    return _worst(
        "accuracy", {name: table.accuracy_drops(name) for name in among or table.conditions}
    )


def worst_by_kl(table: Table, among: Sequence[str] | None = None) -> Worst:
    """Finds the condition with the largest KL from the clean model; arguments as above."""
    names = among or table.conditions
    return _worst("kl", {name: table.values(name, "kl_nats") for name in names})


def _worst(measure: str, losses: Mapping[str, NDArray[np.float64]]) -> Worst:
    finite = {name: finite_questions(values) for name, values in losses.items()}
    means = {name: float(values.mean()) for name, values in finite.items() if values.size}
    if not means:
        return _none(measure, "there is nothing to compare")
    worst = max(means, key=lambda name: means[name])
    if means[worst] <= 0:
        return _none(measure, "no condition did worse than the clean model")
    broken = tuple(n for n in losses if n != worst and finite[n].shape != losses[n].shape)
    others = [CLEAN, *(name for name in losses if name != worst)]
    adjusted = holm([_compare(losses, worst, other, measure) for other in others])
    by_name = dict(zip(others, adjusted, strict=True))
    rivals = tuple(o for o in others if o in broken or not by_name[o] < LEVEL)
    p_value = math.nan if any(map(math.isnan, adjusted)) else max(adjusted)
    draws, samples = losses[worst].shape
    if samples < LEAST_SAMPLES:
        reason = f"inconclusive: {worst} loses most, but {samples} samples are too few to tell"
        return Worst(worst, measure, False, p_value, tuple(others), f"{reason}; use 50 or more")
    if broken and set(rivals) <= set(broken):
        reason = f"inconclusive: {worst} loses most among what can be compared, but the logits of "
        return Worst(worst, measure, False, p_value, rivals, f"{reason}{_or(broken)} overflowed")
    told = _sentence(worst, {r: by_name[r] for r in rivals}, draws, samples, p_value)
    return Worst(worst, measure, not rivals, p_value, rivals, told)


def _compare(
    losses: Mapping[str, NDArray[np.float64]], worst: str, other: str, measure: str
) -> float:
    """Returns the p that `worst` loses as much as another, on the same samples and draws."""
    mine = losses[worst]
    theirs = np.zeros_like(mine) if other == CLEAN else losses[other]
    if measure == "accuracy" and mine.shape[0] == 1:
        # A loss of 1, 0 or -1 against the same clean answer: equal differences, so equal pairs.
        difference = mine[0] - theirs[0]
        return mcnemar_p((difference > 0).tolist(), (difference < 0).tolist())
    return t_test_p(mine - theirs)


def _sentence(
    worst: str, rivals: Mapping[str, float], draws: int, samples: int, p_value: float
) -> str:
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
