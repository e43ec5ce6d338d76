"""From records to one line per condition: quality, its loss, and intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.intervals import Interval, crossed_interval, share_interval
from noisescope.records import CLEAN, Record


@dataclass(frozen=True)
class Summary:
    """What one condition did.

    Attributes:
        condition: Its name.
        accuracy: Share of right answers over samples and draws; NaN where nothing was generated.
        accuracy_drop: Clean minus noisy accuracy, paired; lower is better, 0 for identical answers.
        degradation: (baseline - accuracy) / baseline; NaN where the baseline is 0 or unknown.
        kl_nats: KL(clean || noisy) in nats per token; lower is better, 0 for identical models.
        nll_change_nats: Change of the loss along the clean answer, in nats per token.
        top1_agreement: Share of scored tokens whose most likely token is unchanged.
        draws: Realisations of the noise.
        samples: Samples.
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


class Table:
    """Records arranged as draws x samples per condition.

    Args:
        records: The records of one measurement, each condition with every draw of every sample.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._by_condition: dict[str, dict[int, list[Record]]] = {}
        for record in records:
            self._by_condition.setdefault(record.condition, {}).setdefault(record.draw, []).append(
                record
            )

    @property
    def conditions(self) -> list[str]:
        """The noisy conditions, in the order they were measured."""
        return [name for name in self._by_condition if name != CLEAN]

    def values(self, condition: str, field: str) -> NDArray[np.float64]:
        """Returns a field as [K, N]; None and infinities become NaN, truth values 0 and 1."""
        draws = self._by_condition[condition]
        rows = [[getattr(r, field) for r in draws[k]] for k in sorted(draws)]
        values = np.array(rows, dtype=np.float64)  # None becomes NaN
        return np.where(np.isfinite(values), values, np.nan)

    @property
    def baseline_accuracy(self) -> float:
        """Share of samples that the clean model answers right; NaN where nothing was generated."""
        return float(self.values(CLEAN, "is_right").mean())

    def accuracy_drops(self, condition: str) -> NDArray[np.float64]:
        """Returns clean minus noisy correctness as [K, N]: 1, 0 or -1."""
        drops: NDArray[np.float64] = self.values(CLEAN, "is_right") - self.values(
            condition, "is_right"
        )
        return drops

    def summary(self, condition: str) -> Summary:
        """Returns the line of one condition."""
        kl_KN = self.values(condition, "kl_nats")
        accuracy = float(self.values(condition, "is_right").mean())
        return Summary(
            condition=condition,
            accuracy=accuracy,
            accuracy_drop=share_interval(self.accuracy_drops(condition)),
            degradation=degradation(self.baseline_accuracy, accuracy),
            kl_nats=crossed_interval(kl_KN),
            nll_change_nats=crossed_interval(self.values(condition, "nll_change_nats")),
            top1_agreement=crossed_interval(self.values(condition, "top1_agreement")),
            draws=kl_KN.shape[0],
            samples=kl_KN.shape[1],
        )


def degradation(baseline: float, accuracy: float) -> float:
    """Returns (baseline - accuracy) / baseline, or NaN where the baseline is 0 or unknown.

    Source: the users' plan.
    """
    return (baseline - accuracy) / baseline if baseline > 0 else math.nan
