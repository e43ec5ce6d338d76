"""Runs conditions over samples: the clean model first, then every condition and draw beside it.

Samples go in batches; a batch's clean answers and logits are made once and every condition is
scored against them, so what is compared is always paired.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from noisescope.errors import InputError
from noisescope.inject import Session
from noisescope.measure.conditions import Condition
from noisescope.measure.generate import greedy_answers
from noisescope.measure.records import CLEAN, Record
from noisescope.measure.score import Score, Sequences, answer_logits, make_sequences, score_rows
from noisescope.models import LoadedModel
from noisescope.tasks import Sample, Task, encode_task

Progress = Callable[[str, int, int], None]  # what runs now, units done, units in all

_BATCH_BYTES = 1 << 30


@dataclass(frozen=True)
class Plan:
    """What is measured: conditions x draws x samples.

    Attributes:
        conditions: Noisy conditions, each under its own name.
        draws: Realisations of the noise per condition.
        seed: First key word of the random numbers.
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
        clean_nll_nats: Loss of the clean model along the scored tokens, mean over samples.
    """

    records: tuple[Record, ...]
    sessions: dict[str, Session]
    clean_nll_nats: float


@dataclass
class _Batch:
    samples: tuple[Sample, ...]
    prompts: list[list[int]]
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.names = [s.name for s in self.samples]


def measure(
    loaded: LoadedModel, task: Task, plan: Plan, progress: Progress | None = None
) -> Measurement:
    """Measures every condition of a plan on every sample of a task.

    Args:
        loaded: The model, its tokenizer and its context length.
        task: The samples and their scoring.
        plan: The conditions, draws and seed.
        progress: Told what runs now, and how many units of how many are done.

    Raises:
        InputError: A prompt does not fit the model.
        SelectionError: A condition's selection names nothing, or never fired.
    """
    model = loaded.model
    if not model.can_generate():
        raise InputError(
            f"{type(model).__name__} does not predict the next token, so it cannot be measured: "
            "give a causal language model, or use noisescope.inject from Python"
        )
    sessions = {
        c.name: Session(model, c.error_model, c.selection, plan.seed, attest=False)
        for c in plan.conditions
    }
    prompts = encode_task(
        task, loaded.tokenizer, loaded.context_length, model.get_input_embeddings().num_embeddings
    )
    batches = list(_batches(loaded, task, prompts, plan.batch_size))
    total = len(batches) * (1 + len(sessions) * plan.draws)
    records: list[Record] = []
    clean_nlls: list[float] = []
    done = 0

    def tell(what: str) -> None:
        if progress is not None:
            progress(what, done, total)

    for batch in batches:
        tell("clean")
        clean = _CleanBatch(loaded, task, batch)
        records += clean.records
        clean_nlls += clean.nlls
        done += 1
        for name, session in sessions.items():
            for draw in range(plan.draws):
                tell(name if plan.draws == 1 else f"{name}, draw {draw + 1} of {plan.draws}")
                session.draw = draw
                session.name_samples(batch.names)
                with session:
                    records += clean.noisy_records(name, draw)
                done += 1
    tell("done")
    for session in sessions.values():
        session.check()
    order = {name: i for i, name in enumerate([CLEAN, *sessions])}
    records.sort(key=lambda r: (order[r.condition], r.draw))  # stable: samples keep their order
    nll = sum(clean_nlls) / len(clean_nlls) if clean_nlls else float("nan")
    return Measurement(tuple(records), sessions, nll)


class _CleanBatch:
    """A batch's clean answers and logits, and what noise does to them."""

    def __init__(self, loaded: LoadedModel, task: Task, batch: _Batch) -> None:
        self.loaded, self.task, self.batch = loaded, task, batch
        answers = self._answers()
        if answers is None:  # a text is scored along itself, from its second token on
            self.starts = [p[:1] for p in batch.prompts]
            self.answers = [p[1:] for p in batch.prompts]
        else:
            self.starts, self.answers = batch.prompts, answers
        self.sequences: Sequences = make_sequences(
            self.starts, self.answers, loaded.model.device, loaded.context_length
        )
        self.logits_NV = answer_logits(loaded.model, self.sequences)
        scores = score_rows(self.logits_NV, self.logits_NV, self.sequences)
        self.nlls = [s.clean_nll_nats for s in scores if s.tokens]
        self.records = self._records(CLEAN, 0, scores, answers)

    def noisy_records(self, condition: str, draw: int) -> list[Record]:
        """Returns the records of the condition whose session is open."""
        answers = self._answers()
        noisy_NV = answer_logits(self.loaded.model, self.sequences)
        scores = score_rows(self.logits_NV, noisy_NV, self.sequences)
        return self._records(condition, draw, scores, answers)

    def _answers(self) -> list[list[int]] | None:
        if not self.task.is_generative:
            return None
        return greedy_answers(
            self.loaded.model,
            self.batch.prompts,
            self.task.max_new_tokens,
            self.loaded.context_length,
        )

    def _records(
        self, condition: str, draw: int, scores: list[Score], answers: list[list[int]] | None
    ) -> list[Record]:
        records = []
        for row, (sample, score) in enumerate(zip(self.batch.samples, scores, strict=True)):
            is_right = None if answers is None else self._is_right(answers[row], sample)
            records.append(
                Record(
                    condition,
                    draw,
                    sample.name,
                    score.tokens,
                    score.kl_nats,
                    score.nll_change_nats,
                    score.top1_agreement,
                    is_right,
                )
            )
        return records

    def _is_right(self, answer: list[int], sample: Sample) -> bool:
        given: Any = answer
        if sample.prompt_ids is None:
            given = self.loaded.tokenizer.decode(answer, skip_special_tokens=True)  # type: ignore[union-attr]
        return bool(self.task.score(given, sample)) if self.task.score is not None else False


def _batches(
    loaded: LoadedModel, task: Task, prompts: Sequence[list[int]], size: int | None
) -> Iterator[_Batch]:
    """Yields the samples in their order, in batches whose logits stay within a gibibyte."""
    if size is None:
        longest = max(map(len, prompts)) + (task.max_new_tokens if task.is_generative else 0)
        if loaded.context_length is not None:
            longest = min(longest, loaded.context_length)
        vocabulary = loaded.model.get_input_embeddings().num_embeddings
        bytes_per_row = longest * vocabulary * torch.finfo(loaded.dtype).bits // 8
        size = max(1, min(64, _BATCH_BYTES // bytes_per_row))
    for start in range(0, len(prompts), size):
        yield _Batch(task.samples[start : start + size], list(prompts[start : start + size]))
