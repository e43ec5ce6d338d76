"""Ray's side of the pool: a worker is an actor, and a call is what Ray promises for it.

Actors are not restarted by Ray: the pool knows what was lost with one.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from noisescope.cluster.pool import Done, Job
from noisescope.cluster.reach import Needs, missing
from noisescope.cluster.remote import worker_class

_DETAIL = "Worker exit detail:"


class RayCrew:
    """Workers on a cluster that this process is connected to.

    Args:
        ray: The package.
        needs: What a worker takes.
        versions: What numbers depend on; a worker with others is refused.
        source: Where model and data lie.
        threads: Threads of an operation on the CPU.
    """

    def __init__(
        self,
        ray: Any,
        needs: Needs,
        versions: Mapping[str, str],
        source: Mapping[str, Any],
        threads: int,
    ) -> None:
        self._ray, self._needs, self._source = ray, needs, dict(source)
        self._versions, self._threads = dict(versions), threads
        self._class = ray.remote(worker_class())
        self._spec: Any = None  # where Ray keeps it
        self._sent: Mapping[str, Any] | None = None

    def take(self, spec: Mapping[str, Any]) -> None:
        """Has the calls that follow do their work for this spec; it is sent to a machine once."""
        if spec != self._sent:
            self._spec, self._sent = self._ray.put(dict(spec)), spec

    def hire(self) -> tuple[Any, Hashable]:
        """Starts an actor that loads the model; it waits where there is no room yet."""
        needs = self._needs
        actor = self._class.options(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory,
            max_restarts=0,
            max_task_retries=0,
        ).remote()
        return actor, actor.start.remote(self._versions, self._source, self._threads)

    def ping(self, worker: Any) -> Hashable:
        """Has an actor say that it is there."""
        called: Hashable = worker.ping.remote()
        return called

    def call(self, worker: Any, job: Job) -> Hashable:
        """Has an actor do a job after those it has."""
        called: Hashable = worker.work.remote(job.kind, self._spec, job.work)
        return called

    def wait(self, calls: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Returns the calls that are done, or none when the time is up."""
        done, _ = self._ray.wait(list(calls), num_returns=1, timeout=seconds)
        return list(done)

    def outcome(self, call: Hashable) -> Done:
        """Returns what came of a call that is done."""
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            return Done(error=f"{type(error).__name__}: {_why(str(error))}")
        if "error" in answer:
            return Done(error=answer["error"], is_users=answer["kind"] == "users")
        return Done(answer["value"])

    def dismiss(self, worker: Any) -> None:
        """Kills an actor; where the connection was ended it is gone already."""
        if self._ray.is_initialized():  # or Ray would open another one
            with suppress(self._ray.exceptions.RayError, ValueError):
                self._ray.kill(worker)

    def missing(self) -> str:
        """Returns what an actor waits for, in words."""
        return missing(self._needs)


def _why(said: str) -> str:
    """Returns the first sentence of what Ray says, and the one that tells how the process ended."""
    lines = [line.strip() for line in said.strip().splitlines()] or [""]
    details = [line.partition(_DETAIL)[2] for line in lines if _DETAIL in line]
    told = [lines[0].partition(". ")[0].removesuffix(".")]
    told += [detail.partition(". ")[0].strip() for detail in details[:1]]
    return ": ".join(text[:200] for text in told)
