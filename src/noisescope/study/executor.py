"""Who carries out units. A study knows these two protocols and nothing of processes or machines."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from noisescope.measure import Unit, UnitResult


class Worker(Protocol):
    """Carries out units, each by itself: the same unit gives the same result in any order."""

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """JSON from which the same worker is made in another process; None: it cannot be."""

    def __call__(self, unit: Unit) -> UnitResult:
        """Measures a unit."""


class Executor(Protocol):
    """Has units carried out, here or elsewhere."""

    def run(self, worker: Worker, units: Sequence[Unit]) -> Iterator[UnitResult]:
        """Yields the result of each unit once, as it is finished, in any order.

        A result that was yielded is kept before the next is asked for. Closing the iterator ends
        the work: units that were not yielded are carried out another time.
        """


class InProcess:
    """Carries out units in this process, one after the other."""

    def run(self, worker: Worker, units: Sequence[Unit]) -> Iterator[UnitResult]:
        """Yields the results in the order of the units."""
        for unit in units:
            yield worker(unit)
