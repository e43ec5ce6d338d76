"""What a study was asked for: everything its numbers depend on, as plain data.

Two plans are compared in `compare`; how a plan is cut into units is in `units`.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from noisescope.errors import InputError
from noisescope.measure import CLEAN, LARGEST_SEED, Condition
from noisescope.tasks import Sample, Task, encode_sample


@dataclass(frozen=True)
class SampleKey:
    """A sample by its name, with what tells whether it is still the same.

    Attributes:
        name: Its name, unique in a study.
        group: The source that it shares with others, if any.
        digest: Over all its fields, and the token ids of its prompt.
    """

    name: str
    group: str | None
    digest: str


@dataclass(frozen=True)
class Layout:
    """How the work is cut up: chosen when a study is made, and kept for its life.

    Numbers depend on it in their last bits, so it is taken from the directory when a study goes on.

    Attributes:
        samples_per_unit: Samples that are measured, and kept, together.
        rows_per_batch: Rows that go through the model together; None: as memory allows.
        memory_gib: Memory that measuring may take beside the model; None: the worker's choice.
        draws_per_unit: Draws that are measured, and kept, together; None: all.
        conditions_per_unit: Conditions likewise; None: all that came together.
        compile_steps: Whether answers are decoded by a compiled model.
    """

    samples_per_unit: int
    rows_per_batch: int | None = None
    memory_gib: float | None = None
    draws_per_unit: int | None = None
    conditions_per_unit: int | None = None
    compile_steps: bool = False

    def __post_init__(self) -> None:
        sizes = ("samples_per_unit", "rows_per_batch", "draws_per_unit", "conditions_per_unit")
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value}: at least 1 is needed; try 16")


@dataclass(frozen=True)
class StudyPlan:
    """What a study measures: conditions x draws x samples.

    Attributes:
        kind: What it is about, e.g. `layers`.
        conditions: Error model and selection of each noisy condition, from `conditions_json`.
        draws: Realisations of the noise per condition.
        seed: First key word of the random numbers.
        samples: The samples in their order, from `sample_keys`.
        layout: How the work is cut up.
        settings: Whatever else numbers depend on, by the name the user knows it by, such as
            `--dtype`. A study goes on with these and no others.
        scope: Options that only say which samples, draws and conditions there are, such as
            `--stride`; an extension changes them.
        fingerprints: Of the `model`, of its `configuration` and of the `data`.
        versions: Of Python and of the packages that numbers depend on.
        generates: Whether the noisy model answers too, or is scored only.
        is_adaptive: Whether records decide which of the conditions are measured further.
        has_steps: Whether steps add conditions of their own choice, so that the study is complete
            only when its driver says so.
        chosen: The conditions that steps have added so far, each with its step; the others were
            asked for by the user.
        about: What a report says of the study, such as the model's path. Nothing is measured by it,
            so a study goes on whatever it says.
    """

    kind: str
    conditions: Mapping[str, Any]
    draws: int
    seed: int
    samples: tuple[SampleKey, ...]
    layout: Layout
    settings: Mapping[str, Any] = field(default_factory=dict)
    scope: Mapping[str, Any] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    generates: bool = True
    is_adaptive: bool = False
    has_steps: bool = False
    chosen: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"draws {self.draws}: at least 1 is needed; try 4")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"seed {self.seed}: accepted are 0 to {LARGEST_SEED}; try 0")
        if CLEAN in self.conditions:
            raise InputError(f"a condition is named {CLEAN!r}, as the clean model is: rename it")
        if not self.samples:
            raise InputError("a study without samples: give at least one")
        name, count = Counter(sample.name for sample in self.samples).most_common(1)[0]
        if count > 1:
            raise InputError(f"{count} samples are named {name!r}: give each its own name")

    @property
    def asked(self) -> dict[str, Any]:
        """The conditions that the user asked for."""
        return {name: c for name, c in self.conditions.items() if name not in self.chosen}

    @property
    def families(self) -> list[list[str]]:
        """Names of the conditions that came together: those asked for, then step by step."""
        steps = dict.fromkeys(self.chosen.values())
        chosen = ([n for n, step in self.chosen.items() if step == s] for s in steps)
        return [list(self.asked), *chosen]

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON, with samples as lists of name, group and digest."""
        entry = {f.name: getattr(self, f.name) for f in fields(self)}
        samples = [[s.name, s.group, s.digest] for s in self.samples]
        return entry | {"samples": samples, "layout": asdict(self.layout)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the plan of a dictionary that `as_json` made."""
        samples = tuple(SampleKey(*sample) for sample in entry["samples"])
        return cls(**{**entry, "samples": samples, "layout": Layout(**entry["layout"])})

    def decoded(self) -> Self:
        """Returns the plan as it comes back from a file, e.g. with lists in the place of tuples."""
        return self.from_json(json.loads(json.dumps(self.as_json())))


def conditions_json(conditions: Iterable[Condition]) -> dict[str, Any]:
    """Returns what a plan keeps of each condition, by its name.

    Raises:
        InputError: Two conditions share a name.
    """
    entries: dict[str, Any] = {}
    for condition in conditions:
        if condition.name in entries:
            raise InputError(f"two conditions are named {condition.name!r}: give each its own name")
        entries[condition.name] = condition.as_json()
    return entries


def sample_keys(task: Task, tokenizer: Any) -> tuple[SampleKey, ...]:
    """Returns what a plan keeps of a task's samples.

    Args:
        task: The task.
        tokenizer: Makes token ids of the prompts; None will do for samples given as such.

    Raises:
        InputError: There is no tokenizer, or its template refuses a chat.
    """
    return tuple(
        SampleKey(s.name, s.group, _digest(s, encode_sample(s, tokenizer))) for s in task.samples
    )


def _digest(sample: Sample, ids: Sequence[int]) -> str:
    values: dict[str, Any] = {f.name: getattr(sample, f.name) for f in fields(sample)}
    values["encoded"] = list(ids)
    if sample.messages is not None:
        values["messages"] = [dict(message) for message in sample.messages]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
