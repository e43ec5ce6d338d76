"""What changed from A to B: one measure of one condition, B minus A, and what that is worth.

Paired samples are compared one by one, others as two means; either way through the intervals and
tests that losses of one study go through. Where the values come from is in `contrast`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from noisescope.analyse.apart import Apart, Groups, Values, apart_interval, side_of
from noisescope.analyse.evidence import Evidence, evidence
from noisescope.analyse.intervals import UNKNOWN, Interval, mean_interval
from noisescope.analyse.shares import share_interval
from noisescope.analyse.significance import holm
from noisescope.analyse.verdict import ALPHA, LEAST_SAMPLES

Measure = Literal["kl", "accuracy", "nll"]
MEASURES: tuple[Measure, ...] = ("kl", "accuracy", "nll")
ROSE, FELL, SAME, OPEN = "rose", "fell", "same", "open"
# Known, and not estimated: no other sample could tell otherwise.
_NOTHING = Interval(0.0, 0.0, 0.0, math.inf, True)


@dataclass(frozen=True)
class Sides:
    """The values of A and of B that are compared.

    Attributes:
        first_KN: Of A, draw by sample.
        second_KN: Of B; of the same draws and samples where they are paired.
        first_groups: The source of each sample of A; None: all apart.
        second_groups: The same of B.
        samples: Names of the samples that are paired; none where they are not.
    """

    first_KN: Values
    second_KN: Values
    first_groups: Groups = None
    second_groups: Groups = None
    samples: tuple[str, ...] = ()

    @property
    def is_paired(self) -> bool:
        """Whether sample stands against sample."""
        return bool(self.samples)

    @property
    def swapped(self) -> "Sides":
        """B in the place of A, and A in that of B."""
        return Sides(
            self.second_KN, self.first_KN, self.second_groups, self.first_groups, self.samples
        )

    @property
    def differences_KN(self) -> Values:
        """B minus A, of paired samples.

        A sample that is not finite in A is dropped: there is nothing that B could be held against.
        """
        known = np.isfinite(self.first_KN).all(axis=0)
        found: Values = (self.second_KN - self.first_KN)[:, known]
        return found

    @property
    def known_groups(self) -> Groups:
        """The sources of what `differences_KN` keeps."""
        if self.first_groups is None:
            return None
        known = np.flatnonzero(np.isfinite(self.first_KN).all(axis=0))
        return [self.first_groups[int(n)] for n in known]


@dataclass(frozen=True)
class Change:
    """One measure of one condition in A and in B.

    Attributes:
        condition: Its name; `clean` for the models without noise, empty for two models as such.
        measure: `kl` or `nll` (nats per token, lower is better), `accuracy` (a share, higher is).
        first: The mean in A, over what is compared; NaN without data.
        second: The mean in B.
        difference: B minus A, with its 95 % interval; 0 for identical values.
        p: Two-sided p that nothing changed, by Holm over the conditions; NaN for fewer than two
            independent samples.
        sides: The values.
        is_same: Whether both asked the same question of the same weights, and got the same answer
            in every sample: then it is known without a test that nothing changed.
        is_asked: Whether the user asked for the condition in both; else a study chose it.
    """

    condition: str
    measure: Measure
    first: float
    second: float
    difference: Interval
    p: float
    sides: Sides = field(repr=False)
    is_same: bool = False
    is_asked: bool = True

    @property
    def draws(self) -> int:
        """Draws that are compared."""
        return int(self.sides.first_KN.shape[0])

    @property
    def samples(self) -> tuple[int, int]:
        """Samples of A and of B that are compared."""
        return int(self.sides.first_KN.shape[1]), int(self.sides.second_KN.shape[1])

    @property
    def outcome(self) -> str:
        """`rose` or `fell`, beyond chance at 5 % over the conditions; `same`, or `open`."""
        if self.is_same:
            return SAME
        if not self.p < ALPHA or self.loss_evidence(0.0).groups < LEAST_SAMPLES:
            return OPEN
        return ROSE if self.difference.mean > 0 or self.overflows > 0 else FELL

    @property
    def loss_sides(self) -> Sides:
        """The sides, turned so that the second less the first is a loss."""
        return self.sides.swapped if self.measure == "accuracy" else self.sides

    def loss_evidence(self, margin: float) -> Evidence:
        """Weighs the loss from A to B against a margin, in the measure's unit."""
        return _weighed(self.loss_sides, margin, self.measure)

    @property
    def overflows(self) -> int:
        """Samples that have a KL in A, and in B none that is finite."""
        return overflows(self.sides) if self.measure == "kl" else 0

    @property
    def flips(self) -> tuple[float, float] | None:
        """Answers of a paired comparison that B alone gets wrong, and that it alone gets right.

        Shares of all of them; None where answers are not paired.
        """
        if self.measure != "accuracy" or not self.sides.is_paired:
            return None
        found = self.sides.differences_KN
        found = found[:, np.isfinite(found).all(axis=0)]
        return (float((found < 0).mean()), float((found > 0).mean())) if found.size else None


def overflows(sides: Sides) -> int:
    """Returns how many samples are finite on the first side and not on the second.

    Of sides that are not paired: those of the second, where all of the first are finite.
    """
    is_lost = ~np.isfinite(sides.second_KN).all(axis=0)
    is_known = np.isfinite(sides.first_KN).all(axis=0)
    return int((is_lost & (is_known if sides.is_paired else is_known.all())).sum())


def make_change(condition: str, measure: Measure, sides: Sides, is_same: bool = False) -> Change:
    """Returns what changed from one side to the other; its p is not yet adjusted.

    Args:
        condition: Its name.
        measure: What the values are.
        sides: The values.
        is_same: Whether both asked the same of the same weights.
    """
    is_same = is_same and sides.is_paired and bool((sides.differences_KN == 0).all())
    return Change(
        condition=condition,
        measure=measure,
        first=_mean(sides.first_KN, sides),
        second=_mean(sides.second_KN, sides),
        difference=_NOTHING if is_same else _difference(sides, measure),
        p=1.0 if is_same else _two_sided(sides, measure),
        sides=sides,
        is_same=is_same,
    )


def adjusted(changes: Sequence[Change]) -> tuple[Change, ...]:
    """Returns the changes with p values by Holm, over the conditions of each measure.

    What the user asked for is a family of its own: what studies chose does not change it.
    """
    families: dict[Any, list[int]] = {}
    for n, change in enumerate(changes):
        families.setdefault((change.measure, change.is_asked), []).append(n)
    found = list(changes)
    for family in families.values():
        for n, p in zip(family, holm([changes[n].p for n in family]), strict=True):
            found[n] = replace(changes[n], p=p)
    return tuple(found)


def _mean(values_KN: Values, sides: Sides) -> float:
    """Returns the mean over what is compared, which is finite on both sides of a pair."""
    kept = np.isfinite(values_KN).all(axis=0)
    if sides.is_paired:
        kept = np.isfinite(sides.first_KN + sides.second_KN).all(axis=0)
    return float(values_KN[:, kept].mean()) if kept.any() else math.nan


def _difference(sides: Sides, measure: Measure) -> Interval:
    if not sides.is_paired:
        test = _apart(sides, is_share=measure == "accuracy")
        if test is not None:
            return apart_interval(test)
        return replace(UNKNOWN, mean=_mean(sides.second_KN, sides) - _mean(sides.first_KN, sides))
    values, groups = sides.differences_KN, sides.known_groups
    if measure == "accuracy":
        return share_interval(values, groups)
    return mean_interval(values, groups=groups)


def _apart(sides: Sides, is_share: bool) -> Apart | None:
    second = side_of(sides.second_KN, sides.second_groups, is_share)
    first = side_of(sides.first_KN, sides.first_groups, is_share)
    return None if first is None or second is None else Apart(second, first)


def _weighed(sides: Sides, margin: float, measure: Measure) -> Evidence:
    """Weighs how far the second side lies above the first."""
    is_share = measure == "accuracy"
    if sides.is_paired:
        values = sides.differences_KN
        return evidence(values, margin, is_share=is_share, groups=sides.known_groups)
    test: Any = _apart(sides, is_share)  # answers what the tests of pairs answer
    counts = [] if test is None else [test.minuend.moments.N, test.subtrahend.moments.N]
    smaller = min(sides.first_KN.shape[1], sides.second_KN.shape[1])
    return Evidence(
        mean=_mean(sides.second_KN, sides) - _mean(sides.first_KN, sides),
        margin=margin,
        draws=int(sides.first_KN.shape[0]),
        samples=smaller,
        groups=min(counts, default=min(1, smaller)),
        overflowed=0,
        test=test,
    )


def _two_sided(sides: Sides, measure: Measure) -> float:
    if measure == "kl" and (overflows(sides) or overflows(sides.swapped)):
        return 0.0
    ps = [_weighed(s, 0.0, measure).p_harmful for s in (sides, sides.swapped)]
    return math.nan if any(map(math.isnan, ps)) else min(1.0, 2 * min(ps))
