"""Carries out units: the clean model's answers, the noisy ones, and scores along the clean answers.

Everything that is compared is paired. A unit is measured as a whole or not at all, so what a failed
attempt has counted is forgotten.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from noisescope.errors import InputError, NoisescopeWarning
from noisescope.inject import RideError, Session
from noisescope.measure.attest import check_arrived
from noisescope.measure.generate import Answer, Boarding, Limits, Prompt, Tell, decode
from noisescope.measure.memory import (
    default_gib,
    rows_at_hand,
    rows_of_decoding,
    rows_of_scoring,
)
from noisescope.measure.plan import Plan
from noisescope.measure.score import Score, make_sequences, score_riders
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.measure.unit import Unit, UnitResult
from noisescope.models import LoadedModel
from noisescope.records import CLEAN, Record
from noisescope.tasks import Sample, Task, encode_task

PLAIN_NOTE = (
    "this model's layers cannot be shared between conditions: each ran by itself, with the same "
    "result, only later"
)
MEMORY_NOTE = "memory ran out: batches were halved, which changes figures by rounding at most"
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
_LOGITS_SHARE = 8
# Of a unit that generates, for its progress alone.
_SCORING_SHARE = 0.25


class Worker:
    """Measures units of a plan on a model that is loaded in this process.

    Args:
        loaded: The model, its tokenizer and its context length.
        task: The samples and their scoring.
        plan: The conditions and the seed.
        spec: From which another process can make the same worker; None: it cannot.
        tell: Told what runs, and the share of the unit that is done.
        arrived: Conditions of which noise is known to arrive; the others are checked at their
            first unit.

    Raises:
        InputError: The model predicts no next token, or a prompt does not fit it.
        SelectionError: A condition's selection names nothing.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        plan: Plan,
        spec: Mapping[str, Any] | None = None,
        tell: Tell | None = None,
        arrived: Iterable[str] = (),
    ) -> None:
        self._loaded, self._task, self._plan, self.spec = loaded, task, plan, spec
        self._tell = tell
        self._prompts = _encoded(loaded, task)
        self._samples = {sample.name: sample for sample in task.samples}
        self._sessions = {
            c.name: Session(loaded.model, c.error_model, c.selection, plan.seed, attest=False)
            for c in plan.conditions
        }
        self._gib = plan.memory_gib or default_gib(loaded.model)
        self._apart = TakenApart(loaded.model)
        self._arrived = set(arrived)
        self._is_told = False
        self._smallest_pass = 0
        self._halvings = 0
        self._is_plain = False

    @property
    def sessions(self) -> Mapping[str, Session]:
        """The session of each condition; its records are those of the unit in hand."""
        return self._sessions

    def __call__(self, unit: Unit) -> UnitResult:
        """Measures a unit.

        Raises:
            SelectionError: A condition's selection never fired.
            DoseError: Rounding erased all of a condition's noise.
        """
        # Afresh for every unit, or a unit would depend on those before it.
        self._halvings, self._is_plain = 0, False
        while True:
            for name in unit.conditions:
                self._sessions[name].forget()
            try:
                return self._measure(unit)
            except (RuntimeError, MemoryError) as error:  # torch's own are RuntimeErrors
                self._make_smaller(error)

    def _make_smaller(self, error: RuntimeError | MemoryError) -> None:
        """Prepares a plainer attempt, or raises where there is none."""
        if isinstance(error, RideError) and not self._is_plain:
            self._is_plain = True
            return
        if not _is_out_of_memory(error):
            raise error
        if self._smallest_pass <= 1:
            raise InputError(
                "memory ran out with one row at a time: give shorter samples, a smaller "
                "--max-new-tokens, --dtype bfloat16, or a device with more memory"
            ) from error
        if not self._is_told:
            warnings.warn(MEMORY_NOTE, NoisescopeWarning, stacklevel=4)
            self._is_told = True
        self._halvings += 1
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _rows(self, tokens: int, is_decoding: bool = False) -> int:
        """Returns the most rows of a pass."""
        model = self._loaded.model
        if is_decoding:
            rows = rows_of_decoding(model, tokens, self._gib)
        else:
            rows = rows_of_scoring(model, tokens, self._gib, self._apart.halves is None)
        if self._plan.batch_size is not None:
            rows = min(rows, self._plan.batch_size)
        self._smallest_pass = max(1, rows >> self._halvings)
        return self._smallest_pass

    # Measuring.

    def _measure(self, unit: Unit) -> UnitResult:
        riders = [
            Rider(name, self._sessions[name], draw)
            for name in unit.conditions
            for draw in unit.draws
        ]
        answers = self._answers(unit, riders if unit.generates else [])
        scores = self._scores(unit, riders, answers[0] if answers else None)
        records: list[Record] = []
        for n, rider in enumerate([Rider(CLEAN, None), *riders]):
            if n or unit.with_clean:
                given = answers[n] if n < len(answers) else None
                records += self._records(unit, rider, scores[n], given)
        witnesses = {name: self._sessions[name].witness for name in unit.conditions}
        for name in unit.conditions:
            if name not in self._arrived:
                check_arrived(name, self._sessions[name])
                self._arrived.add(name)
        notes = [PLAIN_NOTE] if riders and not self._is_shared else []
        notes += [MEMORY_NOTE] if self._halvings else []
        return UnitResult(unit.name, tuple(records), witnesses, tuple(notes))

    @property
    def _is_shared(self) -> bool:
        return self._apart.can_share and not self._is_plain

    def _answers(self, unit: Unit, riders: Sequence[Rider]) -> list[list[Answer]]:
        """Returns the clean answers and each rider's; none where nothing is generated."""
        if not self._task.is_generative:
            return []
        prompts = [Prompt(name, tuple(self._prompts[name])) for name in unit.samples]
        longest = max(len(p.ids) for p in prompts) + self._task.max_new_tokens
        if self._loaded.context_length is not None:
            longest = min(longest, self._loaded.context_length)
        limits = Limits(
            self._task.max_new_tokens,
            self._loaded.context_length,
            rows=self._rows(longest, is_decoding=True),
            prompt_rows=self._rows(max(len(p.ids) for p in prompts)),
            is_by_prompt=self._apart.minds_length,
        )
        everyone = [Rider(CLEAN, None), *riders]
        found: dict[int, list[Answer]] = {}
        whole = len(everyone) / (1 - _SCORING_SHARE)
        for group in self._parties(everyone, min(limits.rows, limits.prompt_rows)):
            boardings = [
                Boarding(everyone[n], self._apart.first_region(everyone[n].session)) for n in group
            ]
            entries = self._apart.prompt_entries if len(group) > 1 and self._is_shared else None
            tell = self._telling(len(found) / whole, len(group) / whole)
            made = decode(self._loaded.model, prompts, boardings, limits, entries, tell)
            found |= dict(zip(group, made, strict=True))
        return [found[n] for n in range(len(everyone))]

    def _parties(self, everyone: Sequence[Rider], rows: int) -> list[list[int]]:
        """Returns who decodes together: as many as the rows allow of all who may."""
        if self._is_plain:
            return [[n] for n in range(len(everyone))]
        lonely = [
            n for n, rider in enumerate(everyone) if self._apart.must_ride_alone(rider.session)
        ]
        together = [n for n in range(len(everyone)) if n not in lonely]
        # In later parties the prompts' clean rows come on top.
        size = max(1, rows - 1)
        later = together[rows:]
        parties = [together[:rows], *(later[n : n + size] for n in range(0, len(later), size))]
        return [*parties, *([n] for n in lonely)]

    def _scores(
        self, unit: Unit, riders: Sequence[Rider], answers: Sequence[Answer] | None
    ) -> list[list[Score]]:
        """Returns the rows' scores along the clean answers, the clean model's first."""
        prompts = [self._prompts[name] for name in unit.samples]
        if answers is None:  # a text is scored along itself, from its second token on
            starts, continuations = [p[:1] for p in prompts], [p[1:] for p in prompts]
        else:
            starts, continuations = prompts, [answer.ids for answer in answers]
        scores: list[list[Score]] = [[] for _ in range(1 + len(riders))]
        context = self._loaded.context_length
        lengths = [len(s) + len(c) for s, c in zip(starts, continuations, strict=True)]
        rows = self._rows(max(lengths))
        at_hand = min(rows, rows_at_hand(self._loaded.model, max(lengths)))
        block = max(1, at_hand // (1 if self._is_plain else 1 + len(riders)))
        block = 1 if self._apart.minds_length else block
        # Neighbours in length pad each other little.
        order = sorted(range(len(prompts)), key=lambda n: lengths[n])
        before = 0.0 if answers is None else 1 - _SCORING_SHARE
        for begin in range(0, len(order), block):
            self._telling(before, 1 - before)("scoring", begin / len(order))
            part = order[begin : begin + block]
            sequences = make_sequences(
                [unit.samples[n] for n in part],
                [starts[n] for n in part],
                [continuations[n] for n in part],
                self._apart.device,
                context,
            )
            found = score_riders(
                self._apart,
                sequences,
                riders,
                rows=rows,
                logits_bytes=int(self._gib * (1 << 30)) // _LOGITS_SHARE >> self._halvings,
                is_plain=self._is_plain,
            )
            for mine, new in zip(scores, found, strict=True):
                mine += new
        return [[mine[order.index(n)] for n in range(len(order))] for mine in scores]

    def _telling(self, before: float, share: float) -> Tell:
        """Returns what tells of a part of the unit: the share before it, and its own."""

        def tell(what: str, done: float) -> None:
            if self._tell is not None:
                self._tell(what, before + share * done)

        return tell

    # Records.

    def _records(
        self, unit: Unit, rider: Rider, scores: Sequence[Score], answers: Sequence[Answer] | None
    ) -> list[Record]:
        made = []
        for row, name in enumerate(unit.samples):
            sample, score = self._samples[name], scores[row]
            record = Record(
                condition=rider.name,
                draw=rider.draw,
                sample=name,
                group=sample.group,
                tokens=score.tokens,
                kl_nats=score.kl_nats,
                kl_p95_nats=score.kl_p95_nats,
                kl_p99_nats=score.kl_p99_nats,
                nll_nats=score.nll_nats,
                nll_change_nats=score.nll_change_nats,
                top1_agreement=score.top1_agreement,
                is_right=None,
            )
            made.append(record if answers is None else self._answered(record, sample, answers[row]))
        return made

    def _answered(self, record: Record, sample: Sample, answer: Answer) -> Record:
        given: Any = answer.ids
        text = " ".join(map(str, answer.ids))
        if sample.prompt_ids is None:
            text = given = self._loaded.tokenizer.decode(answer.ids, skip_special_tokens=True)  # type: ignore[union-attr]
        text = text.encode(errors="replace").decode()  # half a surrogate pair cannot be written
        is_right = bool(self._task.score(given, sample)) if self._task.score is not None else False
        return replace(
            record,
            is_right=is_right,
            answer=text,
            is_cut=answer.is_cut,
            close_calls=answer.close_calls,
        )


def _encoded(loaded: LoadedModel, task: Task) -> dict[str, list[int]]:
    """Returns the token ids of every sample; raises where the model cannot be measured on them."""
    model = loaded.model
    if not model.can_generate():
        raise InputError(
            f"{type(model).__name__} does not predict the next token, so it cannot be measured: "
            "give a causal language model, or use noisescope.inject from Python"
        )
    prompts = encode_task(
        task, loaded.tokenizer, loaded.context_length, model.get_input_embeddings().num_embeddings
    )
    return {s.name: ids for s, ids in zip(task.samples, prompts, strict=True)}


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)
