"""A recommendation: which format each group of weights should have, predicted and measured.

Made from a study's plan, profile and records alone. What may be chosen stands in the plan, as it
was read off the model; the prediction is the sum of the groups' own, from real rounding errors.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from noisescope.analyse import Interval, Prediction, Summary, Table, mean_interval, predict
from noisescope.analyse.recommend import (
    Choices,
    Point,
    by_weight_error,
    frontier,
    last_high,
    neighbours,
)
from noisescope.assignment import Assignment
from noisescope.inject import make_selection
from noisescope.profile import Profile
from noisescope.records import Record
from noisescope.study.format_options import FormatOptions
from noisescope.study.plan import StudyPlan

RECOMMENDED = "recommended"
FEWER, MORE = "fewer bits", "more bits"
LAST_HIGH, BY_WEIGHT_ERROR = "last layers high", "by weight error"
FRONTIER_POINTS = 24


def candidates(options: FormatOptions, choices: Choices) -> dict[str, tuple[int, ...]]:
    """Returns the assignments that are measured, by the first of their names."""
    first: dict[tuple[int, ...], str] = {}
    for name, chosen in named_assignments(options, choices).items():
        first.setdefault(chosen, name)
    return {name: chosen for chosen, name in first.items()}


def named_assignments(options: FormatOptions, choices: Choices) -> dict[str, tuple[int, ...]]:
    """Returns the assignments that are compared, by name; several names may mean the same one.

    The recommended one, its neighbours on the frontier, and what is done without a measurement at
    as many bits: the finest single format that fits, the last layers high, and the same exact
    choice by the error of the weights alone.
    """
    best = options.best(choices)
    points = frontier(choices, FRONTIER_POINTS)
    fewer, more = neighbours(points, best)
    budget = best.bits if options.bits is None else options.bits
    # A mean of equal numbers may be a last digit above them.
    most = budget * (1 + 1e-9)
    fitting = [n for n in range(len(options.formats)) if choices.bits(choices.uniform(n)) <= most]
    named: dict[str, tuple[int, ...]] = {RECOMMENDED: best.chosen}
    if fewer is not None:
        named[FEWER] = fewer.chosen
    if more is not None:
        named[MORE] = more.chosen
    for number in sorted(fitting, key=lambda n: -choices.bits(choices.uniform(n)))[:1]:
        named[f"all {options.formats[number]}"] = choices.uniform(number)
    named[LAST_HIGH] = last_high(choices, budget)
    named[BY_WEIGHT_ERROR] = by_weight_error(choices, np.array(options.weight_errors), budget)
    return named


@dataclass(frozen=True)
class Assigned:
    """An assignment that was measured, or is to be.

    Attributes:
        name: What it is, and the name of its condition.
        also: What else it is.
        chosen: The number of each group's format.
        bits: Per weight that a token reads, scales counted.
        stored_bits: Per weight, whether read or not.
        predicted: Its predicted loss.
        summary: What was measured; None: nothing yet.
        worse_by: How much more it loses than the recommended one, KL in nats per token, paired.
    """

    name: str
    also: tuple[str, ...]
    chosen: tuple[int, ...]
    bits: float
    stored_bits: float
    predicted: Prediction
    summary: Summary | None
    worse_by: Interval | None


@dataclass(frozen=True)
class Recommendation:
    """Which format each group of weights should have.

    Attributes:
        options: What could be chosen.
        choices: With predicted losses and bits.
        frontier: The least predicted loss over bits.
        assigned: The recommended assignment first, then what it is compared with.
        dtype: Of the model.
    """

    options: FormatOptions
    choices: Choices
    frontier: tuple[Point, ...]
    assigned: tuple[Assigned, ...]
    dtype: str

    @property
    def best(self) -> Assigned:
        """The recommended assignment."""
        return self.assigned[0]

    @property
    def assignment(self) -> Assignment:
        """The same as exports take it."""
        return self.options.assignment(self.best.chosen, self.dtype)


def recommend(
    plan: StudyPlan,
    records: Sequence[Record],
    profile: Profile | None,
    summaries: Sequence[Summary],
) -> Recommendation | None:
    """Returns the recommendation of a study; None of another kind of study, or without a profile.

    Args:
        plan: The study's.
        records: What is measured so far.
        profile: Of the formats.
        summaries: Of the conditions.

    Raises:
        InputError: Nothing keeps within the bits, or the loss.
    """
    options = FormatOptions.of(plan)
    if options is None or profile is None:
        return None
    choices = options.choices(profile)
    table, found = Table(records), {s.condition: s for s in summaries}
    assigned = []
    every = named_assignments(options, choices)
    for name, chosen in candidates(options, choices).items():
        also = tuple(other for other, same in every.items() if same == chosen and other != name)
        error_model = options.error_model(chosen)
        entry = {"formats": error_model.formats, "operand": error_model.operand}
        assigned.append(
            Assigned(
                name,
                also,
                chosen,
                choices.bits(chosen),
                options.stored_bits(chosen),
                predict(profile, make_selection(operators="linear"), entry),
                found.get(name),
                _worse_by(table, name),
            )
        )
    points = frontier(choices, FRONTIER_POINTS)
    dtype = str(plan.about["config"]["dtype"])
    return Recommendation(options, choices, points, tuple(assigned), dtype)


def _worse_by(table: Table, name: str) -> Interval | None:
    """Returns how much more an assignment loses than the recommended one, question by question."""
    if name == RECOMMENDED or not {name, RECOMMENDED} <= set(table.conditions):
        return None
    block = table.block(name).common(table.block(RECOMMENDED))
    if not len(block):
        return None
    other, own = (table.values(n, "kl_nats", block) for n in (name, RECOMMENDED))
    return mean_interval(other - own, groups=table.groups(block.samples))
