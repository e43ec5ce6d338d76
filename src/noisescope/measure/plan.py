"""What is to be measured, and what came of it. How it is measured is in run.py."""

from collections.abc import Callable
from dataclasses import dataclass

from noisescope.errors import InputError
from noisescope.inject import Session
from noisescope.measure.conditions import Condition
from noisescope.records import CLEAN, Record

Progress = Callable[[str, int, int], None]  # what runs now, units done, units in all

LARGEST_SEED = (1 << 32) - 1


@dataclass(frozen=True)
class Plan:
    """What is measured: conditions x draws x samples.

    Attributes:
        conditions: Noisy conditions, each under its own name.
        draws: Realisations of the noise per condition.
        seed: First key word of the random numbers, 0 to 2**32 - 1.
        batch_size: Samples per batch; None: as many as a gibibyte of logits allows, at most 64.
    """

    conditions: tuple[Condition, ...]
    draws: int = 1
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise InputError(f"draws {self.draws}: at least 1 is needed; try 4")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}: at least 1 is needed; try 16")
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
        sessions: The session of each condition, which holds its counts, dose and coverage.
        clean_nll_nats: Loss of the clean model along the scored tokens, mean over samples; NaN
            where nothing was scored.
        notes: What the user should hear, one line each.
    """

    records: tuple[Record, ...]
    sessions: dict[str, Session]
    clean_nll_nats: float
    notes: tuple[str, ...] = ()
