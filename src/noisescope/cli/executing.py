"""Who carries out a command's work: this process, or a cluster, reached before a model loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from noisescope.cluster import RayExecutor
from noisescope.errors import InputError, near_names

_RAY = "ray"
# The exit status where units were given up: everything else was measured and written.
UNITS_FAILED = 1


@dataclass(frozen=True)
class ClusterOptions:
    """The options that say where work is carried out.

    Attributes:
        executor: Its name; None: this process.
        ray_address: Where the cluster is.
        workers: How many workers.
        gpus_per_worker: GPUs of one worker.

    Raises:
        InputError: An executor that is not known, options of one that is not asked for, or a
            number out of range.
    """

    executor: str | None = None
    ray_address: str | None = None
    workers: int | None = None
    gpus_per_worker: int | None = None

    def __post_init__(self) -> None:
        if self.executor == _RAY:
            self._make()
            return
        if self.executor is not None:
            raise InputError(
                f"--executor {self.executor!r}: accepted is ray, or nothing for this process"
                f"{near_names(self.executor, [_RAY])}"
            )
        for option, value in (
            ("--ray-address", self.ray_address),
            ("--workers", self.workers),
            ("--gpus-per-worker", self.gpus_per_worker),
        ):
            if value is not None:
                raise InputError(f"{option} {value} tells of a cluster: give --executor ray, too")

    @property
    def is_elsewhere(self) -> bool:
        """Whether other processes do the work; the model here is then only asked what it holds."""
        return self.executor is not None

    @contextmanager
    def connected(self) -> Iterator[RayExecutor | None]:
        """Gives the executor that was asked for, connected; its workers end with the block.

        Raises:
            InputError: Ray is not installed, or the cluster cannot be reached.
        """
        if not self.is_elsewhere:
            yield None
            return
        with self._make() as executor:
            executor.connect()
            yield executor

    def _make(self) -> RayExecutor:
        return RayExecutor(self.ray_address, self.workers, self.gpus_per_worker)
