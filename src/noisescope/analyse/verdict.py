"""Whether a condition harms: three answers, and what would settle the third.

Harmful, beyond a margin and beyond chance over all conditions; harmless, within the margin; or
inconclusive, with the number of samples or draws that would tell.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.evidence import Evidence, evidence
from noisescope.analyse.significance import holm

ALPHA = 0.05
LEAST_SAMPLES = 10
ACCURACY_MARGIN = 0.01
KL_MARGIN = 0.01
HARMFUL, HARMLESS, INCONCLUSIVE = "harmful", "harmless", "inconclusive"


@dataclass(frozen=True)
class Losses:
    """Paired losses of one condition.

    Attributes:
        values_KN: Draw by question; not finite where the noise overflowed.
        groups: The source of each question; None: all apart.
    """

    values_KN: NDArray[np.float64]
    groups: Sequence[Hashable] | None = None


@dataclass(frozen=True)
class Verdict:
    """What the data say about the loss of one condition.

    Attributes:
        measure: `accuracy` (loss as a share of answers) or `kl` (nats per token).
        outcome: `harmful`, `harmless` or `inconclusive`.
        margin: The loss that is still no harm.
        p_harmful: One-sided p that the loss is not above the margin, by Holm over the conditions;
            NaN without data.
        p_harmless: One-sided p that the loss is not below it; NaN without data.
        needed_samples: Samples, at the same draws, that would settle it about every other time if
            the estimate holds; None where it is settled, or where no number in sight would.
        needed_draws: Draws, on the same samples, where samples alone would not.
        reason: One sentence for a person.
    """

    measure: str
    outcome: str
    margin: float
    p_harmful: float
    p_harmless: float
    needed_samples: int | None
    needed_draws: int | None
    reason: str


def verdicts(losses: Mapping[str, Losses], measure: str, margin: float) -> dict[str, Verdict]:
    """Judges every condition: harm at 5 % over all of them together, harmlessness at 5 % each.

    A loss that is not finite, where the clean model's logits were, is larger than any margin.

    Args:
        losses: Per condition; samples that the clean model itself cannot be scored on left out.
        measure: `accuracy` or `kl`.
        margin: The loss that is still no harm, as a share or in nats per token.
    """
    found = {
        name: evidence(x.values_KN, margin, is_share=measure == "accuracy", groups=x.groups)
        for name, x in losses.items()
    }
    harmful = holm([_p_harmful(e, measure) for e in found.values()])
    return {
        name: _verdict(e, measure, p, max(1, len(losses)))
        for (name, e), p in zip(found.items(), harmful, strict=True)
    }


def unknown_verdict(measure: str, margin: float, reason: str) -> Verdict:
    """Returns the verdict where nothing could be compared."""
    return Verdict(measure, INCONCLUSIVE, margin, math.nan, math.nan, None, None, reason)


def _is_overflow(e: Evidence, measure: str) -> bool:
    return measure == "kl" and e.overflowed > 0


def _p_harmful(e: Evidence, measure: str) -> float:
    return 0.0 if _is_overflow(e, measure) else e.p_harmful


def _verdict(e: Evidence, measure: str, p_harmful: float, family: int) -> Verdict:
    p_harmless = 1.0 if _is_overflow(e, measure) else e.p_harmless
    samples = draws = None
    if e.samples < LEAST_SAMPLES or (not _is_overflow(e, measure) and e.groups < LEAST_SAMPLES):
        outcome, reason = INCONCLUSIVE, _too_few(e)
    elif p_harmful < ALPHA:
        outcome, reason = HARMFUL, _harm(e, measure, p_harmful)
    elif p_harmless < ALPHA:
        outcome, reason = HARMLESS, _no_harm(e, measure, p_harmless)
    else:
        level = ALPHA / family if e.mean > e.margin else ALPHA
        samples = e.needed_samples(level)
        draws = e.needed_draws(level) if samples is None else None
        outcome, reason = INCONCLUSIVE, _doubt(e, measure, samples, draws)
    return Verdict(measure, outcome, e.margin, p_harmful, p_harmless, samples, draws, reason)


def _too_few(e: Evidence) -> str:
    few = min(e.samples, e.groups)
    what = "samples are" if e.groups == e.samples - e.overflowed else "independent samples are"
    return f"inconclusive: {few} {what} too few to tell; use 50 or more"


def _harm(e: Evidence, measure: str, p: float) -> str:
    if _is_overflow(e, measure):
        return f"harmful: the logits overflowed in {e.overflowed} of {e.samples} samples"
    return f"harmful: {_loss(e, measure)}, more than {_amount(e.margin, measure)} (p = {p:.2g})"


def _no_harm(e: Evidence, measure: str, p: float) -> str:
    return f"harmless: {_loss(e, measure)}, less than {_amount(e.margin, measure)} (p = {p:.2g})"


def _doubt(e: Evidence, measure: str, samples: int | None, draws: int | None) -> str:
    told = f"inconclusive: {_loss(e, measure)}, not to be told from {_amount(e.margin, measure)}"
    if samples is not None:
        return f"{told}; about {samples} samples would settle it if that holds"
    if draws is not None:
        return (
            f"{told}; the draws differ too much for any number of samples, and about {draws} "
            "draws would settle it if that holds"
        )
    return f"{told}; no number of samples or draws in sight would settle it"


def _loss(e: Evidence, measure: str) -> str:
    seen = "in this one draw" if e.draws == 1 else f"over {e.draws} draws"
    return f"a loss of {_amount(e.mean, measure)} {seen}"


def _amount(value: float, measure: str) -> str:
    return f"{100 * value:.3g} points" if measure == "accuracy" else f"{value:.3g} nats"
