"""What a run of one task gave: a row per sample and filter, as plain data that JSON holds.

Metrics of a sample are numbers, or pairs of numbers (a log-likelihood and what it is divided by);
what a task keeps for the whole corpus, such as the texts of a BLEU, is not kept sample by sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from noisescope.inject import Witness

Number = float | tuple[float, ...] | None


@dataclass(frozen=True)
class Answer:
    """A sample of a task under one filter.

    Attributes:
        doc_id: Its place in the task's data.
        doc_hash: The harness's hash of the document: pairs are made by this and `doc_id`.
        prompt_hash: Of what was asked, examples included.
        filter: The harness's name for how the answer was read out.
        metrics: Values by metric; None where they are no numbers.
        response: What was answered: a text, or per request the log-likelihood and whether it was
            the greedy continuation.
        target: What a right answer is, as text.
    """

    doc_id: int
    doc_hash: str
    prompt_hash: str
    filter: str
    metrics: Mapping[str, Number]
    response: Any
    target: str

    @property
    def key(self) -> tuple[int, str]:
        """What it is paired by, within a filter."""
        return self.doc_id, self.doc_hash

    def as_json(self) -> dict[str, Any]:
        """Returns a dictionary for JSON; what is not finite becomes a text."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Returns the answer of a dictionary that `as_json` made."""
        metrics = {name: _number(unplain(value)) for name, value in entry["metrics"].items()}
        return cls(**{**entry, "metrics": metrics, "response": unplain(entry["response"])})


@dataclass(frozen=True)
class Run:
    """One task under one condition and draw.

    Attributes:
        condition: The condition's name; `clean` for the clean model.
        draw: Number of the realisation; 0 for the clean model.
        task: The task's name.
        answers: Sample by sample, filter by filter.
        aggregates: The harness's own figures, `metric,filter`.
        higher_is_better: By metric; None where the task does not say.
        output_type: `multiple_choice`, `loglikelihood`, `loglikelihood_rolling` or
            `generate_until`.
        witness: What fired, and its dose.
        notes: What the harness warned of.
    """

    condition: str
    draw: int
    task: str
    answers: tuple[Answer, ...]
    aggregates: Mapping[str, float]
    higher_is_better: Mapping[str, bool | None]
    output_type: str
    witness: Witness
    notes: tuple[str, ...] = ()

    def by_filter(self) -> dict[str, dict[tuple[int, str], Answer]]:
        """Returns the answers by filter and by what they are paired by."""
        found: dict[str, dict[tuple[int, str], Answer]] = {}
        for answer in self.answers:
            found.setdefault(answer.filter, {})[answer.key] = answer
        return found


def answers_of(samples: Sequence[Mapping[str, Any]]) -> tuple[Answer, ...]:
    """Returns the answers of the samples that the harness has logged."""
    return tuple(
        Answer(
            doc_id=int(sample["doc_id"]),
            doc_hash=sample["doc_hash"],
            prompt_hash=sample["prompt_hash"],
            filter=sample["filter"],
            metrics={name: _number(sample[name]) for name in sample["metrics"]},
            response=_plain_response(sample["filtered_resps"]),
            target=str(sample["target"]),
        )
        for sample in samples
    )


def _number(value: Any) -> Number:
    if isinstance(value, (list, tuple)):
        parts = [_number(part) for part in value]
        flat = [part for part in parts if isinstance(part, float)]
        return tuple(flat) if len(flat) == len(parts) == 2 else None
    if isinstance(value, str) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _plain_response(value: Any) -> Any:
    """Returns a response of lists, texts and numbers."""
    if isinstance(value, (list, tuple)):
        return [_plain_response(part) for part in value]
    if isinstance(value, (str, bool)) or value is None:
        return value
    number = _number(value)
    return str(value) if number is None else number


def plain(value: Any) -> Any:
    """Returns a value with texts in the place of numbers that JSON does not hold."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    return value


def unplain(value: Any) -> Any:
    """Returns what `plain` was given; tuples come back as lists."""
    if isinstance(value, Mapping):
        if set(value) == {"float"}:
            return float(value["float"])
        return {name: unplain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [unplain(part) for part in value]
    return value
