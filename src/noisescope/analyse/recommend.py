"""Which format each group of weights should have, by predicted loss and bits; solved exactly.

Either the least loss that a budget of bits allows, or the fewest bits that a loss allows: a choice
of one format per group. The loss of an assignment is the sum of its groups' predicted losses, as if
their errors were independent; injection tells how far that holds.

Legend: G groups, F formats.
"""

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from noisescope.errors import InputError

Array = NDArray[np.float64]

# The solver stops within 1e-6 of the best, and of the budget, by its own account: what it is given
# is blown up before that. With budgets of 1 it missed assignments that fit exactly.
_LARGEST = 1e4
_LEAST = 5e-324
_SLACK = 1e-9  # of a budget, for what rounding of sums may take away
_OPTIMAL = 0


@dataclass(frozen=True)
class Choices:
    """What each group may choose, and what that costs.

    Attributes:
        groups: Names.
        formats: Names.
        kl_GF: Predicted loss, in nats per token; NaN where it is not known.
        bits_GF: Bits per weight, scales counted.
        weights_G: How much each group counts in the mean of the bits: weights that a token reads.
    """

    groups: tuple[str, ...]
    formats: tuple[str, ...]
    kl_GF: Array
    bits_GF: Array
    weights_G: Array

    def __post_init__(self) -> None:
        shape = (len(self.groups), len(self.formats))
        if self.kl_GF.shape != shape or self.bits_GF.shape != shape:
            raise ValueError(f"losses and bits of {shape} are needed")
        if not self.groups or not self.formats:
            raise InputError("nothing to choose: at least one group and one format are needed")
        rows = zip(self.groups, self.kl_GF, strict=True)
        broken = [group for group, row in rows if not np.isfinite(row).all()]
        if broken:
            raise InputError(
                f"no loss is predicted for {broken[0]}, so no format can be recommended for it: "
                "keep it with --keep, or give more samples"
            )

    def bits(self, chosen: Sequence[int]) -> float:
        """Returns the mean bits per weight of an assignment, a format's number per group."""
        picked = self.bits_GF[np.arange(len(chosen)), list(chosen)]
        return float(picked @ self.weights_G / self.weights_G.sum())

    def kl_nats(self, chosen: Sequence[int]) -> float:
        """Returns the predicted loss of an assignment, in nats per token."""
        return float(self.kl_GF[np.arange(len(chosen)), list(chosen)].sum())

    def uniform(self, format_number: int) -> tuple[int, ...]:
        """Returns the assignment of one format to every group."""
        return (format_number,) * len(self.groups)


@dataclass(frozen=True)
class Point:
    """An assignment on the frontier: no other has fewer bits and a smaller predicted loss.

    Attributes:
        chosen: The number of each group's format.
        bits: Mean bits per weight.
        kl_nats: Predicted loss, in nats per token.
    """

    chosen: tuple[int, ...]
    bits: float
    kl_nats: float


def least_loss(choices: Choices, bits: float) -> Point:
    """Returns the assignment of the least predicted loss within a budget of bits per weight.

    Raises:
        InputError: Not even the cheapest assignment fits.
    """
    cheapest = choices.bits(_cheapest(choices))
    if not bits >= cheapest * (1 - _SLACK):
        raise InputError(
            f"{bits:g} bits per weight: the cheapest of these formats takes {cheapest:.4g} "
            f"({', '.join(choices.formats)}); give more bits, or a smaller format"
        )
    total = choices.weights_G.sum()
    cost_GF = choices.bits_GF * choices.weights_G[:, None] / total
    return _solved(choices, choices.kl_GF, cost_GF, max(bits, cheapest))


def fewest_bits(choices: Choices, kl_nats: float) -> Point:
    """Returns the assignment of the fewest bits whose predicted loss is within a bound.

    Raises:
        InputError: Not even the most exact assignment is.
    """
    best = choices.kl_nats(tuple(np.argmin(choices.kl_GF, axis=1).tolist()))
    if not kl_nats >= best:
        raise InputError(
            f"{kl_nats:g} nats per token: the most exact of these formats is predicted to cost "
            f"{best:.3g} ({', '.join(choices.formats)}); allow more, or give a finer format"
        )
    total = choices.weights_G.sum()
    goal_GF = choices.bits_GF * choices.weights_G[:, None] / total
    found = _solved(choices, goal_GF, choices.kl_GF, kl_nats)
    # Among assignments of as many bits, the one that loses least.
    return least_loss(choices, found.bits)


def frontier(choices: Choices, points: int = 24) -> tuple[Point, ...]:
    """Returns the assignments of least predicted loss over budgets, one solution each.

    Args:
        choices: What may be chosen.
        points: Budgets, evenly spread from the cheapest assignment to the most exact one.
    """
    low = choices.bits(_cheapest(choices))
    exact = tuple(
        min(range(len(choices.formats)), key=lambda f: (row[f], bits[f]))
        for row, bits in zip(choices.kl_GF, choices.bits_GF, strict=True)
    )
    budgets = np.linspace(low, max(low, choices.bits(exact)), points)
    found = [least_loss(choices, float(budget)) for budget in budgets]
    return _not_dominated(found)


def _not_dominated(found: Sequence[Point]) -> tuple[Point, ...]:
    """Returns points by rising bits, each of which loses less than those before it."""
    kept: list[Point] = []
    for point in sorted(found, key=lambda p: (p.bits, p.kl_nats)):
        if not kept or point.kl_nats < kept[-1].kl_nats:
            kept.append(point)
    return tuple(kept)


def neighbours(points: Sequence[Point], chosen: Point) -> tuple[Point | None, Point | None]:
    """Returns the points of a frontier with the next fewer and the next more bits."""
    fewer = [p for p in points if p.bits < chosen.bits and p.chosen != chosen.chosen]
    more = [p for p in points if p.bits > chosen.bits and p.chosen != chosen.chosen]
    return (
        max(fewer, key=lambda p: p.bits, default=None),
        min(more, key=lambda p: p.bits, default=None),
    )


def last_high(choices: Choices, bits: float) -> tuple[int, ...]:
    """Returns the cheapest format everywhere but in the last groups, which get the finest.

    As many groups from the end as the budget allows.
    """
    chosen = list(_cheapest(choices))
    finest = int(np.argmax(choices.bits_GF.mean(axis=0)))
    for group in reversed(range(len(chosen))):
        before, chosen[group] = chosen[group], finest
        if choices.bits(chosen) > bits * (1 + _SLACK):
            chosen[group] = before
            break
    return tuple(chosen)


def by_weight_error(choices: Choices, error_GF: Array, bits: float) -> tuple[int, ...]:
    """Returns the assignment of the least total error of the weights, whatever it does.

    Args:
        choices: What may be chosen.
        error_GF: Sum of the squared errors of each group's weights.
        bits: The budget.
    """
    blind = Choices(choices.groups, choices.formats, error_GF, choices.bits_GF, choices.weights_G)
    return least_loss(blind, bits).chosen


def _cheapest(choices: Choices) -> tuple[int, ...]:
    return tuple(np.argmin(choices.bits_GF, axis=1).tolist())


def _solved(choices: Choices, goal_GF: Array, cost_GF: Array, most: float) -> Point:
    """Minimises the goal over one choice per group, with the sum of costs at most `most`."""
    G, F = goal_GF.shape
    with np.errstate(over="ignore"):
        goal_GF = goal_GF * (_LARGEST / max(goal_GF.max(), 1e-300))
        # What alone is above the bound counts twice it, whatever it is: the solver takes no 1e15.
        share_GF = np.minimum(cost_GF / (most or _LEAST), 2.0) * _LARGEST
    one_each = sparse.kron(sparse.eye(G), np.ones((1, F)), format="csr")
    with _no_prints():
        found = optimize.milp(
            goal_GF.reshape(-1),
            integrality=np.ones(G * F),
            bounds=optimize.Bounds(0, 1),
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(
                    share_GF.reshape(1, -1), -np.inf, _LARGEST * (1 + _SLACK)
                ),
            ],
            options={"mip_rel_gap": 0.0},
        )
    if found.status != _OPTIMAL or found.x is None:
        raise InputError(f"no assignment was found: {' '.join(str(found.message).split())}")
    chosen = tuple(np.argmax(found.x.reshape(G, F), axis=1).tolist())
    kl_nats = choices.kl_nats(chosen)
    return Point(chosen, choices.bits(chosen), kl_nats if math.isfinite(kl_nats) else math.nan)


@contextmanager
def _no_prints() -> Iterator[None]:
    """Keeps lines from standard output that the solver's library prints for its own developers.

    They come from C (`transformNewIntegerFeasibleSolution`), whatever `disp` says, and would end up
    among what the user reads.
    """
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    library.fflush(None)
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
            library.fflush(None)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
