"""What is to be measured, and what came of it. How it is measured is in run.py."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from noisescope.errors import InputError
from noisescope.inject import Witness
from noisescope.measure.conditions import Condition
from noisescope.records import CLEAN, Record

# What runs now, units done (the one in hand as a part), units in all.
Progress = Callable[[str, float, int], None]

LARGEST_SEED = (1 << 32) - 1


@dataclass(frozen=True)
class Plan:
    """What is measured: conditions x draws x samples.

    Attributes:
        conditions: Noisy conditions, each under its own name.
        draws: Realisations of the noise per condition.
        seed: First key word of the random numbers, 0 to 2**32 - 1.
        batch_size: Rows that run together, each a sample under a condition and draw; None: as many
            as memory allows.
        memory_gib: Memory that measuring may take beside the model; None: half of what is free.
        generates: Whether noisy answers are generated too, where the task has a score; else all is
            told by the scores along the clean answers.
        compile_steps: Whether answers are decoded by a compiled model, where it and the noise allow
            that.
    """

    conditions: tuple[Condition, ...]
    draws: int = 1
    seed: int = 0
    batch_size: int | None = None
    memory_gib: float | None = None
    generates: bool = True
    compile_steps: bool = False

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"draws {self.draws}: at least 1 is needed; try 4")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: at least 1 is needed; try 16")
        if self.memory_gib is not None and not 0 < self.memory_gib < math.inf:
            raise InputError(f"memory of {self.memory_gib} GiB: a number above 0 is needed; try 4")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise InputError(f"seed {self.seed}: accepted are 0 to {LARGEST_SEED}; try 0")
        names = [CLEAN, *(c.name for c in self.conditions)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise InputError(f"two conditions are named {twice[0]!r}: give each its own name")


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured.

    Attributes:
        records: Clean records first, then condition by condition, draw by draw, in sample order.
        witnesses: Of each condition: its sites, their counts, dose and coverage.
        notes: What the user should hear, one line each.
    """

    records: tuple[Record, ...]
    witnesses: Mapping[str, Witness]
    notes: tuple[str, ...] = ()

    @property
    def clean_nll_nats(self) -> float:
        """Loss of the clean model along the scored tokens, mean over samples; NaN without any."""
        losses = [r.nll_nats for r in self.records if r.condition == CLEAN and r.tokens]
        return sum(losses) / len(losses) if losses else math.nan
