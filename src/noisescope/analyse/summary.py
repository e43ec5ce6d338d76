"""One line per condition: quality, its loss with intervals, and the verdicts. Table makes them."""

import math
from dataclasses import dataclass

from noisescope.analyse.intervals import UNKNOWN, Interval
from noisescope.analyse.verdict import Verdict


@dataclass(frozen=True)
class Summary:
    """What one condition did.

    Attributes:
        condition: Its name.
        accuracy: Share of right answers over samples and draws; NaN where nothing was generated.
        accuracy_drop: Clean minus noisy accuracy, paired; lower is better, 0 for identical answers,
            unknown where nothing was generated.
        degradation: (baseline - accuracy) / baseline on the same samples; NaN where the baseline
            is 0 or unknown.
        kl_nats: KL(clean || noisy) in nats per token; lower is better, 0 for identical models.
        nll_change_nats: Change of the loss along the clean answer, in nats per token.
        top1_agreement: Share of scored tokens whose most likely token is unchanged.
        draws: Realisations of the noise.
        samples: Samples.
        accuracy_verdict: Whether its loss of accuracy harms; None where nobody asked.
        kl_verdict: Whether its KL harms, likewise.
        kl_p95_nats: 95th percentile over the tokens of a sample, mean over samples.
        kl_p99_nats: 99th percentile, likewise.
    """

    condition: str
    accuracy: float
    accuracy_drop: Interval
    degradation: float
    kl_nats: Interval
    nll_change_nats: Interval
    top1_agreement: Interval
    draws: int
    samples: int
    accuracy_verdict: Verdict | None = None
    kl_verdict: Verdict | None = None
    kl_p95_nats: Interval = UNKNOWN
    kl_p99_nats: Interval = UNKNOWN


def degradation(baseline: float, accuracy: float) -> float:
    """Returns (baseline - accuracy) / baseline, or NaN where the baseline is 0 or unknown.

    Source: the users' plan.
    """
    return (baseline - accuracy) / baseline if baseline > 0 else math.nan
