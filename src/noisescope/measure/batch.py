"""A batch of samples: its clean answers and logits, made once, and what noise does to them.

Everything is scored along the clean answers, so what is compared is always paired.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from noisescope.inject import Session
from noisescope.measure.generate import end_tokens, greedy_answers
from noisescope.measure.score import Score, answer_logits, make_sequences, score_rows
from noisescope.models import LoadedModel
from noisescope.records import CLEAN, Record
from noisescope.tasks import Sample, Task

_BATCH_BYTES = 1 << 30
_MOST_SAMPLES = 64


@dataclass(frozen=True)
class Batch:
    """Samples with their prompts as token ids."""

    samples: tuple[Sample, ...]
    prompts: tuple[list[int], ...]

    def names(self, rows: Sequence[int]) -> list[str]:
        """Returns the names of the samples of these rows."""
        return [self.samples[row].name for row in rows]


def make_batches(
    loaded: LoadedModel, task: Task, prompts: Sequence[list[int]], size: int | None
) -> Iterator[Batch]:
    """Yields the samples in their order, in batches of a size, or as large as memory allows."""
    if size is None:
        size = _batch_size(loaded, task, max(map(len, prompts)))
    for start in range(0, len(prompts), size):
        yield Batch(task.samples[start : start + size], tuple(prompts[start : start + size]))


def _batch_size(loaded: LoadedModel, task: Task, longest: int) -> int:
    """Returns how many samples' logits stay within a gibibyte."""
    if task.is_generative:
        longest += task.max_new_tokens
    if loaded.context_length is not None:
        longest = min(longest, loaded.context_length)
    vocabulary: int = loaded.model.get_input_embeddings().num_embeddings
    bytes_per_row = longest * vocabulary * torch.finfo(loaded.dtype).bits // 8
    return max(1, min(_MOST_SAMPLES, _BATCH_BYTES // bytes_per_row))


class CleanBatch:
    """A batch that the clean model has answered.

    Attributes:
        records: The clean records.
        nlls: Loss of the clean model along each sample's scored tokens, where there are any.
        cut: Clean answers that reached the most tokens before an end token.
    """

    def __init__(self, loaded: LoadedModel, task: Task, batch: Batch) -> None:
        self._loaded, self._task, self._batch = loaded, task, batch
        answers = self._answers(None)
        if answers is None:  # a text is scored along itself, from its second token on
            starts, continuations = [p[:1] for p in batch.prompts], [p[1:] for p in batch.prompts]
        else:
            starts, continuations = list(batch.prompts), answers
        self._sequences = make_sequences(
            starts, continuations, loaded.model.device, loaded.context_length
        )
        self._logits_NV = answer_logits(loaded.model, self._sequences)
        scores = score_rows(self._logits_NV, self._logits_NV, self._sequences)
        ends, most = end_tokens(loaded.model), task.max_new_tokens
        self.cut = sum(len(a) >= most and a[-1] not in ends for a in answers or ()) if ends else 0
        self.nlls = [s.clean_nll_nats for s in scores if s.tokens]
        self.records = self._records(CLEAN, 0, scores, answers)

    def noisy_records(self, condition: str, session: Session, draw: int) -> list[Record]:
        """Returns the records of one realisation of a condition."""

        def name_rows(rows: Sequence[int]) -> None:
            session.name_samples(self._batch.names(rows))

        session.draw = draw
        with session:
            answers = self._answers(name_rows)
            name_rows(range(len(self._batch.samples)))
            noisy_NV = answer_logits(self._loaded.model, self._sequences)
        scores = score_rows(self._logits_NV, noisy_NV, self._sequences)
        return self._records(condition, draw, scores, answers)

    def _answers(
        self, before_rows: Callable[[Sequence[int]], None] | None
    ) -> list[list[int]] | None:
        if not self._task.is_generative:
            return None
        return greedy_answers(
            self._loaded.model,
            self._batch.prompts,
            self._task.max_new_tokens,
            self._loaded.context_length,
            before_rows,
        )

    def _records(
        self, condition: str, draw: int, scores: list[Score], answers: list[list[int]] | None
    ) -> list[Record]:
        return [
            Record(
                condition=condition,
                draw=draw,
                sample=sample.name,
                tokens=score.tokens,
                kl_nats=score.kl_nats,
                nll_change_nats=score.nll_change_nats,
                top1_agreement=score.top1_agreement,
                is_right=None if answers is None else self._is_right(answers[row], sample),
            )
            for row, (sample, score) in enumerate(zip(self._batch.samples, scores, strict=True))
        ]

    def _is_right(self, answer: list[int], sample: Sample) -> bool:
        given: Any = answer
        if sample.prompt_ids is None:
            given = self._loaded.tokenizer.decode(answer, skip_special_tokens=True)  # type: ignore[union-attr]
        return bool(self._task.score(given, sample)) if self._task.score is not None else False
