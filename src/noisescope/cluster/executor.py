"""The executor of a study on Ray: what the study asks for becomes jobs of a pool of workers."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from types import TracebackType
from typing import Any, Self

import torch

from noisescope.cluster.crew import RayCrew
from noisescope.cluster.pool import GivenUp, Job, Pool
from noisescope.cluster.reach import Needs, connect, has_gpus, rooms
from noisescope.errors import InputError, NoisescopeError, NoisescopeWarning
from noisescope.extras import require
from noisescope.measure import PassResult, ProfilePass, UnitResult
from noisescope.models import LoadedModel
from noisescope.study import Place, UnitFailure
from noisescope.study.channels import ModuleChannels
from noisescope.study.executor import ProfilingWorker, UnitSource
from noisescope.versions import versions

_DEVICES = (None, "auto", "cpu", "cuda")
_SOURCE = (
    "model",
    "tokenizer",
    "dtype",
    "device",
    "trust_remote_code",
    "data",
    "samples",
    "max_new_tokens",
)


class RayExecutor:
    """Carries out a study's work on Ray; results are those of one process, to the last byte.

    A worker loads the model once and keeps it. One that is lost is replaced, and what it was at is
    tried again; a unit that fails three times is given up, and the others go on.

    Sums on the CPU depend on the number of threads in their last bits, so a worker takes as many as
    this process has (`OMP_NUM_THREADS`), and as many cores.

    Args:
        address: ``host:port`` of a cluster, ``ray://host:port``, ``auto``; None: one is started on
            this machine.
        workers: How many; None: as many as fit.
        gpus_per_worker: GPUs that one model is spread over; None: one where the cluster has GPUs.

    Raises:
        InputError: A number out of range.

    Warns with a `NoisescopeWarning` of what is waited for, and of what was lost.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        gpus_per_worker: int | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"--workers {workers}: at least 1 is needed; leave it out for all")
        if gpus_per_worker is not None and gpus_per_worker < 0:
            raise InputError(f"--gpus-per-worker {gpus_per_worker}: 0 or more is needed")
        self._address, self._workers, self._gpus = address, workers, gpus_per_worker
        self._model_bytes = 0
        self._is_ours = False
        self._crew: RayCrew | None = None
        self._pool: Pool | None = None
        self._source: dict[str, Any] | None = None  # what the workers have loaded

    def connect(self) -> None:
        """Connects to the cluster, or starts one.

        Raises:
            InputError: Ray is not installed, or nobody answers at the address.
        """
        self._is_ours = connect(self._address) or self._is_ours

    def place(self, source: Mapping[str, Any] | None, loaded: LoadedModel) -> Place:
        """Starts the workers, and returns where the first of them runs.

        A machine is given no more workers than it has memory for their weights.

        Raises:
            InputError: Model or data are in this process only, or no machine has room for a worker,
                or a worker cannot load them.
        """
        self._model_bytes = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
        given = None if source is None else _checked(source)
        if given != self._source:
            self._dismiss()
        pool = self._opened(given)
        pool.start()
        (found,) = pool.run([Job("place", "place", None)])
        if isinstance(found, GivenUp):
            raise NoisescopeError(f"no worker could be started: {found.error}")
        _, told = found
        return Place(told["device"], told["memory_gib"])

    def run(self, worker: ProfilingWorker, units: UnitSource) -> Iterator[UnitResult | UnitFailure]:
        """Yields what came of each unit, as it is finished; see `Executor`."""
        pool = self._for(worker)
        jobs = (
            Job("unit", u.name, (u.as_json(), dict(worker.known_answers(u.samples)))) for u in units
        )
        for found in pool.run(jobs, lambda: units.is_over):
            if isinstance(found, GivenUp):
                yield UnitFailure(found.name, found.attempts, found.error)
            else:
                yield UnitResult.from_json(found[1])

    def backward(
        self, worker: ProfilingWorker, passes: Sequence[ProfilePass]
    ) -> Iterator[PassResult]:
        """Yields the result of each pass, as it is finished.

        Raises:
            NoisescopeError: One failed too often; without it there is no profile.
        """
        for found in self._for(worker).run(Job("pass", p.name, p) for p in passes):
            yield _value(found, "the prediction")

    def channels(self, worker: ProfilingWorker) -> tuple[ModuleChannels, ...]:
        """Returns what the channels of the clean model look like, as one worker sees them.

        Raises:
            NoisescopeError: It failed too often.
        """
        job = Job("channels", "channels", dict(worker.known_answers()))
        (found,) = self._for(worker).run([job])
        channels: tuple[ModuleChannels, ...] = _value(found, "the look at the channels")
        return channels

    def close(self) -> None:
        """Ends the workers, and the connection where it was opened here."""
        try:
            self._dismiss()
        finally:
            if self._is_ours:
                require("ray", "ray", "--executor ray").shutdown()
                self._is_ours = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _dismiss(self) -> None:
        """Ends the workers: nobody needs the model that they hold."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._crew = self._source = None

    def _for(self, worker: ProfilingWorker) -> Pool:
        """Returns the pool, with the spec of a study's worker before it."""
        spec = worker.spec
        if spec is None:
            raise InputError(
                "--executor ray: an error model, a scoring function or a model that only this "
                "process has cannot be sent to another; leave the executor out"
            )
        if self._source is not None and _differ(self._source, spec["source"]):
            self._dismiss()
        pool = self._opened(spec["source"])
        if self._crew is not None:
            self._crew.take(spec)
        return pool

    def _opened(self, source: Mapping[str, Any] | None) -> Pool:
        """Returns the pool of workers, which is made at first."""
        ray = require("ray", "ray", "--executor ray")
        if self._pool is not None and ray.is_initialized():
            return self._pool
        self._dismiss()  # what is left of a connection that somebody has ended
        if source is None:
            raise InputError(
                "--executor ray: model and data must lie in files that every machine can read; "
                "give source, such as the command line does"
            )
        self.connect()
        gpus = self._gpus if self._gpus is not None else int(has_gpus())
        gpus = 0 if source["device"] == "cpu" else gpus
        threads = torch.get_num_threads()
        needs = Needs(1 if gpus else threads, gpus, self._model_bytes)
        room = rooms(needs)
        self._source, given = dict(source), dict(source)
        if gpus > 1 and given["device"] in (None, "cuda"):
            given["device"] = "auto"
        self._crew = RayCrew(ray, needs, versions(), given, threads)
        self._pool = Pool(self._crew, self._workers or room, _warn)
        return self._pool


def check_device(device: str | None) -> None:
    """Raises InputError for a device that a worker cannot be told: it sees its own GPUs alone."""
    if device not in _DEVICES:
        raise InputError(
            f"--device {device} with --executor ray: a worker takes the GPUs that it is given; "
            "accepted are cuda, cpu and auto, or leave it out"
        )


def _checked(source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a source as JSON holds it; raises InputError where something lacks in it."""
    lacks = [name for name in _SOURCE if name not in source]
    if lacks:
        raise InputError(
            f"source lacks {', '.join(map(repr, lacks))}: it tells every worker what to load; "
            f"needed are {', '.join(_SOURCE)}"
        )
    check_device(source["device"])
    return {n: str(v) if isinstance(v, PurePath) else v for n, v in source.items()}


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tells whether two sources name different things; dtype and device may be left open in one."""
    names = one.keys() - {"dtype", "device"}
    return any(one[name] != other.get(name) for name in names)


def _warn(text: str) -> None:
    warnings.warn(text, NoisescopeWarning, stacklevel=2)


def _value(found: tuple[str, Any] | GivenUp, what: str) -> Any:
    if isinstance(found, GivenUp):
        raise NoisescopeError(
            f"{what} failed {found.attempts} times ({found.error}): what is measured is kept; run "
            "the same command to try again"
        )
    return found[1]
