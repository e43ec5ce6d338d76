"""Hands pieces of work to workers that may be lost: with back-pressure, and again where one fails.

It knows nothing of Ray: a crew hires workers, takes calls, and tells what has come of them.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from noisescope.errors import InputError, NoisescopeError

# One runs and one waits, so that no worker idles while its result is on the way.
CALLS_PER_WORKER = 2
ATTEMPTS = 3
_PAUSE_S = 1.0
# A model takes its time to load.
_PATIENCE = 60
# Waits for those that are not ready when the first is.
_GRACE = 20


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        kind: Which method of a worker does it.
        name: Unique among the jobs of a run.
        work: What the method is given.
    """

    kind: str
    name: str
    work: Any


@dataclass(frozen=True)
class Done:
    """What came of a call: a value, or what went wrong.

    Attributes:
        value: What the worker gave back.
        error: One line; empty where it worked.
        is_users: Whether the user must mend it: no other attempt will do.
    """

    value: Any = None
    error: str = ""
    is_users: bool = False


@dataclass(frozen=True)
class GivenUp:
    """A job that failed too often.

    Attributes:
        name: Of the job.
        attempts: How often it was tried.
        error: What went wrong the last time.
    """

    name: str
    attempts: int
    error: str


class Crew(Protocol):
    """Hires workers and calls them; a call is known by what `call` returns."""

    def hire(self) -> tuple[Any, Hashable]:
        """Returns a new worker, and the call that is done when it is ready."""

    def ping(self, worker: Any) -> Hashable:
        """Returns a call that is done at once where a worker is still there."""

    def call(self, worker: Any, job: Job) -> Hashable:
        """Has a worker do a job after those it has; returns the call."""

    def wait(self, calls: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Returns the calls that are done, or none when the time is up."""

    def outcome(self, call: Hashable) -> Done:
        """Returns what came of a call that is done."""

    def dismiss(self, worker: Any) -> None:
        """Ends a worker, whatever it does."""

    def missing(self) -> str:
        """Returns what a worker waits for, in words, while none is ready."""


@dataclass
class _Member:
    """A worker, and the calls it has, the first of them running."""

    worker: Any
    starting: Hashable | None
    is_new: bool = True
    calls: deque[tuple[Hashable, Job]] = field(default_factory=deque)


class Pool:
    """Workers that stay from run to run.

    Args:
        crew: Hires and calls them.
        size: How many there are.
        tell: Told what is waited for, and what was lost.
    """

    def __init__(self, crew: Crew, size: int, tell: Callable[[str], None] | None = None) -> None:
        self._crew, self._size, self._tell = crew, size, tell or (lambda text: None)
        self._members: list[_Member] = []
        self._failed_starts = self._idle = 0

    def start(self) -> None:
        """Starts the workers; waits for the first, and a while for the others.

        So what one of them has to complain of is mostly heard before anything is measured.

        Raises:
            NoisescopeError: As in `run`.
        """
        self._check_alive()
        waited = 0
        while waited < _GRACE:
            self._hire()
            starting = [m for m in self._members if m.starting is not None]
            if not starting:
                return
            for call in self._wait():
                list(self._take(call, Counter(), deque()))
            waited += len(starting) < len(self._members)

    def run(
        self, jobs: Iterable[Job], is_over: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[str, Any] | GivenUp]:
        """Yields the name and the value of each job once, or that it was given up, in any order.

        Jobs are asked for one by one, as workers have room. Closing the iterator ends the workers
        that are at work.

        Args:
            jobs: What is to be done.
            is_over: Tells whether what is in hand is the last: then nothing is tried again.

        Raises:
            NoisescopeError: A worker found something that the user must mend, or none can be had.
        """
        source, again = iter(jobs), deque[Job]()
        attempts = Counter[str]()
        self._check_alive()
        try:
            while True:
                self._hire()
                if is_over():
                    again.clear()
                is_more = not is_over() and self._hand_out(source, again)
                if not is_more and not any(m.calls for m in self._members):
                    return
                for call in self._wait():
                    yield from self._take(call, attempts, again)
        finally:
            # Whoever is at work is at work for nobody: the run is over.
            for member in [m for m in self._members if m.calls]:
                self._drop(member)

    def close(self) -> None:
        """Ends all workers."""
        for member in list(self._members):
            self._drop(member)

    def _check_alive(self) -> None:
        """Has every idle worker say that it is there: one that was lost meanwhile gets no job."""
        self._failed_starts = 0
        for member in self._members:
            if member.starting is None:
                member.starting = self._crew.ping(member.worker)

    def _hire(self) -> None:
        while len(self._members) < self._size:
            worker, starting = self._crew.hire()
            self._members.append(_Member(worker, starting))

    def _hand_out(self, source: Iterator[Job], again: deque[Job]) -> bool:
        """Fills the workers that are ready; returns whether there may be more to hand out."""
        ready = [m for m in self._members if m.starting is None]
        for room in range(CALLS_PER_WORKER):
            for member in ready:
                if len(member.calls) > room:
                    continue
                job = again.popleft() if again else next(source, None)
                if job is None:
                    return False
                member.calls.append((self._crew.call(member.worker, job), job))
        return True

    def _wait(self) -> Sequence[Hashable]:
        starting = [m.starting for m in self._members if m.starting is not None]
        running = [m.calls[0][0] for m in self._members if m.calls]
        done = self._crew.wait([*starting, *running], _PAUSE_S)
        self._idle = 0 if done or running else self._idle + 1
        if self._idle == _PATIENCE:
            self._tell(self._crew.missing())
        return done

    def _take(
        self, call: Hashable, attempts: Counter[str], again: deque[Job]
    ) -> Iterator[tuple[str, Any] | GivenUp]:
        """Takes what came of a call, and yields what is to be told of it."""
        member = next(
            (m for m in self._members if m.starting == call or (m.calls and m.calls[0][0] == call)),
            None,
        )
        if member is None:  # its worker was dismissed meanwhile
            return
        done = self._crew.outcome(call)
        if done.is_users:
            raise InputError(done.error)
        if member.starting == call:
            self._started(member, done)
            return
        _, job = member.calls.popleft()
        if not done.error:
            yield job.name, done.value
            return
        # What waited behind it had no part in it; a worker that failed may be spoilt.
        again.extend(waiting for _, waiting in member.calls)
        self._drop(member)
        attempts[job.name] += 1
        if attempts[job.name] < ATTEMPTS:
            self._tell(f"{job.name} is tried again: {done.error}")
            again.append(job)
        else:
            yield GivenUp(job.name, attempts[job.name], done.error)

    def _started(self, member: _Member, done: Done) -> None:
        is_new, member.starting, member.is_new = member.is_new, None, False
        if not done.error:
            self._failed_starts = 0
            return
        self._drop(member)
        if not is_new:  # lost while it had nothing to do
            return
        self._failed_starts += 1
        if self._failed_starts >= ATTEMPTS:
            if any(m.starting is None for m in self._members):
                self._size, self._failed_starts = len(self._members), 0
                self._tell(f"it goes on with {self._size} workers: {done.error}")
                return
            raise NoisescopeError(
                f"no worker could be started: {done.error}; what is measured is kept: run the same "
                "command when that is mended"
            )
        self._tell(f"a worker is started again: {done.error}")

    def _drop(self, member: _Member) -> None:
        self._crew.dismiss(member.worker)
        self._members.remove(member)
