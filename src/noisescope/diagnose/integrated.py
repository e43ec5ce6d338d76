"""The whole diagnosis as one object: a model in, `run` over data, a verdict and a report out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from noisescope.diagnose.whole import diagnose_model
from noisescope.errors import InputError
from noisescope.models import LoadedModel, in_eval_mode, in_memory, load_model
from noisescope.noise import ErrorModel, make_error_model
from noisescope.report import verdict, write_report
from noisescope.study import Diagnosis
from noisescope.tasks import MAX_NEW_TOKENS, Sample, Task, load_task, make_task

Data = Task | str | Path | Iterable[Any]


class IntegratedDiagnostic:
    """Diagnoses a model from operator to channel: where error hurts, how sure that is, what to do.

    For example::

        diagnostic = IntegratedDiagnostic("models/my-model", noise_scale=0.05, draws=4)
        diagnosis = diagnostic.run("test.parquet")
        print(diagnostic.verdict)
        diagnostic.report("report")

    A model in memory is put into eval mode while `run` lasts, and is as before afterwards.

    Args:
        model: Directory of a Hugging Face model, a `LoadedModel`, or a causal model of
            transformers.
        tokenizer: The tokenizer of a model in memory, or the directory of one; None: the one beside
            the model, if it has one.
        noise_scale: Standard deviation of the error, relative to each value by default.
        error_type: `relative_gaussian`, `absolute_gaussian`, or a fault; see `make_error_model`.
        error_model: In place of both, such as ``RoundTo("mxfp4", "both")``.
        operators: `core`, `all`, or names.
        window: Layers per window; None: 3, or fewer of a small model.
        stride: Layers between starts; None: the window.
        scales: Scales of the dose and response; None: chosen by the prediction.
        until: A loss whose scale is looked for, such as ``"accuracy=-5%"`` or ``"kl=0.1"``.
        samples: How many samples of a file, from the first on; None: all.
        max_new_tokens: The most tokens of an answer, of data that is no `Task`.
        out: Directory of the study, which goes on where it was; None: it is kept in memory only.
        options: See `noisescope.diagnose.Options`: draws, seed, margins, memory_gib ...

    Raises:
        InputError: The model, or an option, cannot be used as it is.
    """

    def __init__(
        self,
        model: str | Path | LoadedModel | Any,
        tokenizer: Any = None,
        *,
        noise_scale: float = 0.05,
        error_type: str = "relative_gaussian",
        error_model: ErrorModel | None = None,
        operators: str | Sequence[str] = "all",
        window: int | None = None,
        stride: int | None = None,
        scales: Sequence[float] | None = None,
        until: str | None = None,
        samples: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        out: Path | str | None = None,
        **options: Any,
    ) -> None:
        self.error_model = error_model or make_error_model(error_type, noise_scale)
        self.loaded = _loaded(model, tokenizer)
        self._asked = {
            "operators": operators,
            "window": window,
            "stride": stride,
            "scales": scales,
            "until": until,
            "out": out,
            **options,
        }
        self._samples, self._max_new_tokens = samples, max_new_tokens
        self._diagnosis: Diagnosis | None = None

    def run(self, data: Data) -> Diagnosis:
        """Carries the diagnosis out, or goes on with the one in `out`.

        Args:
            data: A `Task`; a parquet, jsonl or txt file; or a list: texts, which are scored along
                themselves, pairs of question and right answer, or a sample's fields.

        Raises:
            InputError: The data or an option cannot be used.
            StudyInterrupted: Ctrl-C was pressed; what is measured is kept.
        """
        task = self._task(data)
        with in_eval_mode(self.loaded.model):
            self._diagnosis = diagnose_model(self.loaded, task, self.error_model, **self._asked)
        return self._diagnosis

    @property
    def diagnosis(self) -> Diagnosis:
        """The last diagnosis.

        Raises:
            InputError: Nothing was run yet.
        """
        if self._diagnosis is None:
            raise InputError("nothing was diagnosed yet: call run(data) first")
        return self._diagnosis

    @property
    def verdict(self) -> str:
        """What the diagnosis says, as a paragraph: each claim with its number and its doubt."""
        return verdict(self.diagnosis)

    def report(self, directory: Path | str) -> tuple[str, ...]:
        """Writes result and pictures into a directory, and returns their names.

        Files of an earlier report there are replaced.

        Raises:
            InputError: Nothing was run yet, or they cannot be written.
        """
        diagnosis = self.diagnosis
        try:
            Path(directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {directory}: {error.strerror}; name another") from error
        return write_report(diagnosis, directory)

    def _task(self, data: Data) -> Task:
        if isinstance(data, Task):
            return data
        if isinstance(data, (str, Path)):
            return load_task(data, self._samples, max_new_tokens=self._max_new_tokens)
        if not isinstance(data, Iterable):
            raise InputError(f"data {data!r}: give a Task, a path, or a list of questions or texts")
        given = list(data)[: self._samples]
        return make_task(map(_sample, given), max_new_tokens=self._max_new_tokens)


def _loaded(model: Any, tokenizer: Any) -> LoadedModel:
    if isinstance(model, LoadedModel):
        if tokenizer is not None:
            raise InputError("a LoadedModel has its tokenizer already: leave tokenizer out")
        return model
    if isinstance(model, (str, Path)):
        if tokenizer is not None and not isinstance(tokenizer, (str, Path)):
            raise InputError("give the tokenizer of a model's directory as a directory, too")
        return load_model(model, tokenizer=tokenizer)
    if isinstance(tokenizer, (str, Path)):
        raise InputError("give the tokenizer of a model in memory as an object, too")
    return in_memory(model, tokenizer)


def _sample(given: Any) -> Sample | Mapping[str, Any] | str:
    """Returns a pair of question and answer as a sample's fields, anything else as it is."""
    if isinstance(given, tuple) and len(given) == 2:
        return {"prompt": given[0], "truth": str(given[1])}
    found: Sample | Mapping[str, Any] | str = given
    return found
