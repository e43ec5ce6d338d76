"""The options that commands share, each group declared once, and how a command takes them.

A command gets a group as one object; the parser sees its fields as options of the command.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from noisescope.cli import options as o
from noisescope.cli.executing import ClusterOptions
from noisescope.cluster import check_device
from noisescope.errors import InputError
from noisescope.noise import ErrorModel, RoundTo, make_error_model
from noisescope.study import Margins
from noisescope.tasks import Task, load_task
from noisescope.trackers import parse_trackers

_Given = TypeVar("_Given")
_SCALE, _ERROR_TYPE = 0.05, "relative_gaussian"


@dataclass(frozen=True)
class RunOptions:
    """What every command takes that runs a model over data."""

    model: o.Model
    data: o.Data
    tokenizer: o.Tokenizer = None
    noise_scale: o.Scale = None
    error_type: o.ErrorType = None
    format: o.Format = None
    operand: o.Operand = None
    samples: o.Samples = 50
    seed: o.Seed = 0
    dtype: o.Dtype = None
    device: o.Device = None
    batch_size: o.BatchSize = None
    memory_gib: o.MemoryGib = None
    max_new_tokens: o.MaxNewTokens = 512
    trust_remote_code: o.RemoteCode = False
    out: o.Out = None

    def check(self) -> None:
        """Raises InputError for an option out of range, before anything is loaded."""
        o.check_numbers(self.seed, batch_size=self.batch_size)
        o.check_memory(self.memory_gib)

    def error_model(self) -> ErrorModel:
        """Returns what is added, or done to weights and activations.

        Raises:
            InputError: An option that does not go with another, or out of range.
        """
        return self._error_model("nearest")

    def _error_model(self, rounding: str) -> ErrorModel:
        if self.format is None:
            if self.operand is not None:
                raise InputError(
                    f"--operand {self.operand}: it tells what a format rounds; give --format, too"
                )
            scale = _SCALE if self.noise_scale is None else self.noise_scale
            return make_error_model(self.error_type or _ERROR_TYPE, scale, rounding)  # type: ignore[arg-type]
        for option, value in (
            ("--noise-scale", self.noise_scale),
            ("--error-type", self.error_type),
        ):
            if value is not None:
                raise InputError(
                    f"{option} {value} with --format {self.format}: a format is an error of its "
                    "own; leave one of them out"
                )
        return RoundTo(self.format, self.operand or "both", rounding)  # type: ignore[arg-type]

    def task(self) -> Task:
        """Reads the samples."""
        return load_task(self.data, self.samples, max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True)
class StudyOptions(RunOptions):
    """What every command takes that measures."""

    rounding: o.Rounding = "nearest"
    draws: o.Draws = 1
    accuracy_margin: o.AccuracyMargin = 0.01
    kl_margin: o.KlMargin = 0.01
    compile_steps: o.CompileSteps = False
    executor: o.Executor = None
    ray_address: o.RayAddress = None
    workers: o.Workers = None
    gpus_per_worker: o.GpusPerWorker = None
    extend: o.Extend = False
    result: o.Result = None
    log: o.Log = None

    def check(self) -> None:
        """Raises InputError for an option out of range, before anything is loaded."""
        o.check_outputs(self.out, self.result, self.extend)
        super().check()
        o.check_numbers(self.seed, draws=self.draws)
        o.check_margins(self.accuracy_margin, self.kl_margin)
        parse_trackers(self.log)
        if self.cluster.is_elsewhere:
            check_device(self.device)

    def error_model(self) -> ErrorModel:
        """Returns what is added, or done to weights and activations.

        Raises:
            InputError: An option that does not go with another, or out of range.
        """
        return self._error_model(self.rounding)

    @property
    def cluster(self) -> ClusterOptions:
        """Who carries the work out."""
        return ClusterOptions(self.executor, self.ray_address, self.workers, self.gpus_per_worker)

    def measuring(self) -> dict[str, Any]:
        """Returns how it is measured, as `diagnose.Options` names it."""
        names = ("draws", "seed", "batch_size", "memory_gib", "compile_steps", "extend", "out")
        chosen: dict[str, Any] = {name: getattr(self, name) for name in names}
        margins = Margins(self.accuracy_margin, self.kl_margin)
        return chosen | {"margins": margins, "source": self._source()}

    def _source(self) -> dict[str, Any]:
        """Returns by what another process, in another directory, finds the same model and data."""
        names = ("dtype", "device", "trust_remote_code", "samples", "max_new_tokens")
        source = {name: getattr(self, name) for name in names}
        for name in ("model", "tokenizer", "data"):
            given = getattr(self, name)
            source[name] = given and str(Path(given).absolute())
        return source


def takes(group: type[_Given]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command take the fields of a group as options; it gets them as its first argument.

    Its own options follow those of the group.
    """
    shared = [_parameter(field, group) for field in fields(group)]  # type: ignore[arg-type]
    names = [parameter.name for parameter in shared]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]
        alone = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

        def called(**words: Any) -> None:
            given = group(**{name: words.pop(name) for name in names})
            command(given, **words)

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        signature = inspect.Signature([*shared, *alone])
        called.__signature__ = signature  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return called

    return decorate


def _parameter(field: Field[Any], group: type) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    hint = get_type_hints(group, include_extras=True)[field.name]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, kind, default=default, annotation=hint)
