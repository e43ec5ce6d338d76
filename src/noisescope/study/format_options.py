"""What a recommendation may choose from, as a study's plan keeps it: groups, formats, a goal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.predict import mean_and_error
from noisescope.analyse.recommend import Choices, Point, fewest_bits, least_loss
from noisescope.assignment import Assignment
from noisescope.models.weight_groups import WeightGroup
from noisescope.noise import RoundModules, make_format
from noisescope.profile import Profile
from noisescope.study.plan import StudyPlan

_DTYPE_BITS = {"float32": 32, "bfloat16": 16, "float16": 16}


@dataclass(frozen=True)
class FormatOptions:
    """What a recommendation may choose from, and what it is held to.

    Attributes:
        formats: Names.
        operand: `weights`, or `both`: the activations that meet them too.
        groups: The weights that choose together.
        kept: Modules that stay as they are, each with the reason.
        weight_errors: Of each group and format, the sum of the squared errors of the weights.
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
        return self._choices(np.array(kl_GF))

    def _choices(self, kl_GF: NDArray[np.float64]) -> Choices:
        return Choices(
            tuple(group.name for group in self.groups),
            self.formats,
            kl_GF,
            np.array([[self.bits_of(g, name) for name in self.formats] for g in self.groups]),
            np.array([g.weights * g.active_share for g in self.groups], dtype=np.float64),
        )

    def check_bits(self) -> None:
        """Raises InputError for bits that not even the cheapest formats keep within."""
        if self.bits is not None:
            nothing = np.zeros((len(self.groups), len(self.formats)))
            least_loss(self._choices(nothing), self.bits)

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
