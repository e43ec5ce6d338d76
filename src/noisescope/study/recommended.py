"""A recommendation: which format each group of weights should have, predicted and measured.

Made from a study's plan, profile and records alone. What may be chosen stands in the plan, as it
was read off the model; the prediction is the sum of the groups' own, from real rounding errors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from noisescope.analyse import Interval, Prediction, Summary, Table, mean_interval, predict
from noisescope.analyse.predict import mean_and_error
from noisescope.analyse.recommend import (
    Choices,
    Point,
    by_weight_error,
    fewest_bits,
    frontier,
    last_high,
    least_loss,
    neighbours,
)
from noisescope.assignment import Assignment
from noisescope.inject import make_selection
from noisescope.models.weight_groups import WeightGroup
from noisescope.noise import RoundModules, make_format
from noisescope.profile import Profile
from noisescope.records import Record
from noisescope.study.plan import StudyPlan

RECOMMENDED = "recommended"
FEWER, MORE = "fewer bits", "more bits"
LAST_HIGH, BY_WEIGHT_ERROR = "last layers high", "by weight error"
FRONTIER_POINTS = 24
_DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class FormatOptions:
    """What a recommendation may choose from, and what it is held to.

    Attributes:
        formats: Names.
        operand: `weights`, or `both`: the activations that meet them too.
        groups: The weights that choose together.
        kept: Modules that stay as they are, each with the reason.
        weight_errors: Of each group and format, the mean square error of the weights over their
            mean square.
        bits: The most bits per weight; None where a loss is given.
        kl_nats: The most predicted loss, in nats per token; None where bits are given.
        other_parameters: Parameters of the model that choose nothing.
        model_type: The model's type by its configuration.
    """

    formats: tuple[str, ...]
    operand: str
    groups: tuple[WeightGroup, ...]
    kept: Mapping[str, str]
    weight_errors: tuple[tuple[float, ...], ...]
    bits: float | None
    kl_nats: float | None
    other_parameters: int
    model_type: str = ""

    @classmethod
    def of(cls, plan: StudyPlan) -> "FormatOptions | None":
        """Returns those of a study's plan; None of another kind of study."""
        entry: Mapping[str, Any] | None = plan.about["config"].get("recommendation")
        if entry is None:
            return None
        groups = tuple(
            WeightGroup(
                group["name"],
                tuple(group["modules"]),
                tuple((outputs, inputs) for outputs, inputs in group["shapes"]),
                group["active_share"],
            )
            for group in entry["groups"]
        )
        values = {name: entry[name] for name in ("operand", "kept", "bits", "kl_nats")}
        return cls(
            formats=tuple(entry["formats"]),
            groups=groups,
            weight_errors=tuple(tuple(row) for row in entry["weight_errors"]),
            other_parameters=entry["other_parameters"],
            model_type=entry["model_type"],
            **values,
        )

    @property
    def target(self) -> str:
        """What it is held to, in words."""
        if self.bits is not None:
            return f"at most {self.bits:g} bits per weight"
        return f"a predicted loss of at most {self.kl_nats:g} nats per token"

    def bits_of(self, group: WeightGroup, name: str) -> float:
        """Returns the bits per weight of a group in a format, scales counted."""
        made = make_format(name)
        total = sum(made.bits(*shape) * shape[0] * shape[1] for shape in group.shapes)
        return total / group.weights

    def choices(self, profile: Profile) -> Choices:
        """Returns what may be chosen, with its predicted loss and bits."""
        numbers = {e["format"]: n for n, e in enumerate(profile.error_models)}
        kl_GF = [
            [_predicted(profile, group, numbers[name]) for name in self.formats]
            for group in self.groups
        ]
        return Choices(
            tuple(group.name for group in self.groups),
            self.formats,
            np.array(kl_GF),
            np.array([[self.bits_of(g, name) for name in self.formats] for g in self.groups]),
            np.array([g.weights * g.active_share for g in self.groups], dtype=np.float64),
        )

    def best(self, choices: Choices) -> Point:
        """Returns the recommended assignment.

        Raises:
            InputError: None keeps within the bits, or the loss.
        """
        if self.bits is not None:
            return least_loss(choices, self.bits)
        return fewest_bits(choices, float(self.kl_nats or 0.0))

    def modules(self, chosen: Sequence[int]) -> dict[str, str]:
        """Returns the format of every module of an assignment."""
        return {
            module: self.formats[number]
            for group, number in zip(self.groups, chosen, strict=True)
            for module in group.modules
        }

    def error_model(self, chosen: Sequence[int]) -> RoundModules:
        """Returns the rounding that an assignment does."""
        pairs = tuple(self.modules(chosen).items())
        return RoundModules(pairs, self.operand)  # type: ignore[arg-type]

    def stored_bits(self, chosen: Sequence[int]) -> float:
        """Returns the bits per weight as stored: every weight counts, read or not."""
        total = sum(
            self.bits_of(group, self.formats[number]) * group.weights
            for group, number in zip(self.groups, chosen, strict=True)
        )
        return total / sum(group.weights for group in self.groups)

    def model_bits(self, chosen: Sequence[int], dtype: str) -> float:
        """Returns the bits per parameter of the whole model; the others are in its own dtype."""
        weights = sum(group.weights for group in self.groups)
        others = self.other_parameters * _DTYPE_BITS.get(dtype, 32)
        return (self.stored_bits(chosen) * weights + others) / (weights + self.other_parameters)

    def assignment(self, chosen: Sequence[int], dtype: str) -> Assignment:
        """Returns an assignment as exports take it."""
        return Assignment(
            formats=self.modules(chosen),
            operand=self.operand,
            kept=tuple(self.kept),
            dtype=dtype,
            bound=tuple(g.modules for g in self.groups if len(g.modules) > 1),
            model_type=self.model_type,
        )


def _predicted(profile: Profile, group: WeightGroup, number: int) -> float:
    """Returns the predicted loss of a group in the format of that number; NaN where not known."""
    sites = [site for site in profile.sites if site.module in group.modules]
    return mean_and_error(sites, number)[0] if sites else float("nan")


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
