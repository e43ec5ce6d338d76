"""Who carries out the work of a study, which knows nothing of processes or machines.

Work is of three kinds, and each piece needs no other: units, the backward passes of a profile, and
one look at the channels. Whoever carries it out, the same piece gives the same result.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

from noisescope.measure import PassResult, ProfilePass, Unit, UnitResult
from noisescope.models import LoadedModel
from noisescope.study.channels import CleanRunner, ModuleChannels, look_at_channels


class Worker(Protocol):
    """Carries out work, each piece by itself: the same piece gives the same result in any order."""

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON from which the same worker is made in another process; None: it cannot be."""

    def __call__(self, unit: Unit) -> UnitResult:
        """Measures a unit."""

    def learn(self, result: UnitResult, first: Sequence[str]) -> None:
        """Takes note of a unit before it is kept, whoever has measured it.

        Args:
            result: What came of it.
            first: The conditions that are measured in it first of all units: their noise must have
                arrived, in it or in another.
        """


class ProfilingWorker(Worker, CleanRunner, Protocol):
    """A worker that can also look at the clean model."""

    def backward(self, asked: ProfilePass) -> PassResult:
        """Runs a pass of a profile."""

    def known_answers(self, samples: Iterable[str] | None = None) -> Mapping[str, Sequence[int]]:
        """Returns the token ids of the clean answers that are known, of these samples or of all."""


@dataclass(frozen=True)
class UnitFailure:
    """A unit that was given up.

    Attributes:
        unit: The unit's name.
        attempts: How often it was tried.
        error: What went wrong the last time, one line.
    """

    unit: str
    attempts: int
    error: str

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Place:
    """Where work runs, of which a study's plan speaks.

    Attributes:
        device: As of a model that is loaded there.
        memory_gib: Memory beside the model that is taken where no limit is given.
    """

    device: str
    memory_gib: float


class UnitSource:
    """Units, handed out as an executor has room for them, until an end is asked for.

    Args:
        units: The units.
        is_ending: Tells whether an end was asked for.
    """

    def __init__(self, units: Iterable[Unit], is_ending: Callable[[], bool]) -> None:
        self._units, self._is_ending = iter(units), is_ending

    @property
    def is_over(self) -> bool:
        """Whether what was handed out is the last, and what fails is not to be tried again."""
        return self._is_ending()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Unit:
        if self.is_over:
            raise StopIteration
        return next(self._units)


class Executor(Protocol):
    """Has work carried out, here or elsewhere."""

    def place(self, source: Mapping[str, Any] | None, loaded: LoadedModel) -> Place | None:
        """Returns where it runs; None: in this process, on the model that is loaded here.

        Args:
            source: Where model and data lie; None: in this process only.
            loaded: The model as it is loaded here.
        """

    def run(self, worker: Worker, units: UnitSource) -> Iterator[UnitResult | UnitFailure]:
        """Yields what came of each unit once, as it is finished, in any order.

        Units are asked for one by one, as there is room for them: where they end early, what is in
        hand is finished and yielded, and no more. A result that was yielded is kept before the next
        is asked for. Closing the iterator ends the work at once: units that were not yielded are
        carried out another time.
        """

    def backward(
        self, worker: ProfilingWorker, passes: Sequence[ProfilePass]
    ) -> Iterator[PassResult]:
        """Yields the result of each pass once, in any order."""

    def channels(self, worker: ProfilingWorker) -> tuple[ModuleChannels, ...]:
        """Returns what the channels of the clean model look like."""


class InProcess:
    """Carries out work in this process, one piece after the other."""

    def place(self, source: Mapping[str, Any] | None, loaded: LoadedModel) -> Place | None:
        """Returns None: it is here."""

    def run(self, worker: Worker, units: UnitSource) -> Iterator[UnitResult | UnitFailure]:
        """Yields the results in the order of the units."""
        for unit in units:
            yield worker(unit)

    def backward(
        self, worker: ProfilingWorker, passes: Sequence[ProfilePass]
    ) -> Iterator[PassResult]:
        """Yields the results in the order of the passes."""
        for asked in passes:
            yield worker.backward(asked)

    def channels(self, worker: ProfilingWorker) -> tuple[ModuleChannels, ...]:
        """Returns what the worker finds."""
        return look_at_channels(worker)
