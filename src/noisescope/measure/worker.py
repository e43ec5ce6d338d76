"""Carries out units: the clean model's answers, the noisy ones, and scores along the clean answers.

Everything that is compared is paired. A unit is measured as a whole or not at all, so what a failed
attempt has counted is forgotten.
"""

import functools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from noisescope.errors import (
    DoseError,
    InputError,
    MemoryShortError,
    NoisescopeWarning,
    SelectionError,
)
from noisescope.inject import RideError, Session, Witness
from noisescope.inject.weights import DisturbedWeights
from noisescope.measure.answers import Answer, Boarding, Limits, Prompt
from noisescope.measure.attest import check_arrived
from noisescope.measure.conditions import Condition
from noisescope.measure.generate import Tell, decode
from noisescope.measure.memory import (
    GIB,
    WEIGHTS_SHARE,
    default_gib,
    is_out_of_memory,
    rows_at_hand,
    rows_of_decoding,
    rows_of_scoring,
)
from noisescope.measure.passes import Passes, PassResult, ProfilePass, Texts
from noisescope.measure.plan import Plan
from noisescope.measure.profiling import ProfileOptions, RunPasses, profile_by, telling
from noisescope.measure.score import Score, make_sequences, score_riders
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.measure.unit import Unit, UnitResult
from noisescope.models import LoadedModel
from noisescope.noise import ErrorModel
from noisescope.profile import Profile
from noisescope.records import CLEAN, Record
from noisescope.tasks import Sample, Task, encode_task

PLAIN_NOTE = (
    "this model's layers cannot be shared between conditions: each ran by itself, with the same "
    "result, only later"
)
MEMORY_NOTE = "memory ran out: batches were halved, which changes figures by rounding at most"
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
        clean_answers: Token ids of the clean answers that are known already, by sample. They and
            those that the worker decodes are not decoded again, but where a unit wants the clean
            records themselves.

    Raises:
        InputError: The model predicts no next token, or a prompt does not fit it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        task: Task,
        plan: Plan,
        spec: Mapping[str, Any] | None = None,
        tell: Tell | None = None,
        arrived: Iterable[str] = (),
        clean_answers: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._loaded, self._task, self._plan, self._spec = loaded, task, plan, spec
        self._tell = tell
        self._prompts = _encoded(loaded, task)
        self._samples = {sample.name: sample for sample in task.samples}
        self._conditions = {c.name: c for c in plan.conditions}
        self._sessions: dict[str, Session] = {}  # made at first use: there may be hundreds
        self._clean = {name: tuple(ids) for name, ids in (clean_answers or {}).items()}
        self._gib = plan.memory_gib or default_gib(loaded.model)
        self._weights = DisturbedWeights(int(self._gib * GIB / WEIGHTS_SHARE))
        self._apart = TakenApart(loaded.model)
        self._arrived = set(arrived)
        self._is_told = False
        self._smallest_pass = 0
        self._halvings = 0
        self._is_plain = False

    @property
    def model(self) -> Any:
        """The model."""
        return self._loaded.model

    @property
    def spec(self) -> Mapping[str, Any] | None:
        """From which another process can make the same worker; None: it cannot."""
        everyone = self._conditions.values()
        if self._spec is None or not all(c.can_be_read_back for c in everyone):
            return None
        return {**self._spec, "conditions": {c.name: c.as_json() for c in everyone}}

    def add(self, conditions: Iterable[Condition]) -> None:
        """Makes conditions known that were chosen after the worker was made.

        Whether their noise arrives is not demanded of them: a choice that is erased by rounding is
        told by its dose, and must not end a study that nobody could then go on with.

        Raises:
            ValueError: The name of one is another condition's.
        """
        for condition in conditions:
            if self._conditions.setdefault(condition.name, condition) != condition:
                raise ValueError(f"{condition.name!r} is the name of another condition")
            self._arrived.add(condition.name)

    def learn(self, result: UnitResult, first: Iterable[str]) -> None:
        """Takes note of a unit that may have been measured elsewhere.

        Args:
            result: What came of it. Its clean answers are not decoded again.
            first: Conditions whose noise must have arrived in it, unless it has before; of others
                it is noted where it has.

        Raises:
            SelectionError: A condition's selection names nothing, or never fired.
            DoseError: Rounding erased all of a condition's noise.
        """
        self.know({r.sample: r.answer_ids for r in result.records if r.answer_ids is not None})
        must = set(first)
        for name, witness in result.witnesses.items():
            try:
                self._check_arrived(name, witness)
            except (SelectionError, DoseError):
                if name in must:
                    raise

    def known_answers(self, samples: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
        """Returns the token ids of the clean answers that are known, of these samples or of all."""
        wanted = self._samples if samples is None else samples
        return {name: self._clean[name] for name in wanted if name in self._clean}

    def know(self, answers: Mapping[str, Sequence[int]]) -> None:
        """Takes clean answers that were decoded elsewhere."""
        self._clean |= {name: tuple(ids) for name, ids in answers.items()}

    def __call__(self, unit: Unit) -> UnitResult:
        """Measures a unit.

        Raises:
            SelectionError: A condition's selection names nothing, or never fired.
            DoseError: Rounding erased all of a condition's noise.
        """
        # Afresh for every unit, or a unit would depend on those before it.
        self._halvings, self._is_plain = 0, False
        while True:
            for name in unit.conditions:
                self._session(name).forget()
            try:
                return self._measure(unit)
            except (RuntimeError, MemoryError) as error:  # torch's own are RuntimeErrors
                self._make_smaller(error)

    def clean_texts(self, decodes: bool = True) -> Texts:
        """Returns every sample with its clean answer.

        Args:
            decodes: Whether those that are not known are decoded; otherwise they are left out.
        """
        self._halvings, self._is_plain = 0, False  # whatever the unit before it needed
        names = tuple(self._samples)
        if not decodes and self._task.is_generative:
            names = tuple(name for name in names if name in self._clean)
        if not self._task.is_generative:  # a text is scored along itself, from its second token on
            ids = [self._prompts[name] for name in names]
            return Texts(names, tuple(i[:1] for i in ids), tuple(i[1:] for i in ids))
        unknown = [name for name in names if name not in self._clean]
        if unknown:
            made = self._decoded(unknown, [Rider(CLEAN, None)], 0, 1)[0]
            self._clean |= {n: tuple(a.ids) for n, a in zip(unknown, made, strict=True)}
        prompts = tuple(self._prompts[name] for name in names)
        return Texts(names, prompts, tuple(self._clean[name] for name in names))

    def backward(self, asked: ProfilePass) -> PassResult:
        """Runs one pass of a profile; see `Passes`."""
        return self._passes.run(asked, telling(asked, self._tell))

    def profile(
        self,
        error_models: Sequence[ErrorModel],
        options: ProfileOptions,
        run: RunPasses | None = None,
        *,
        decodes: bool = True,
    ) -> Profile:
        """Returns what backward passes over all samples tell; see `make_profile`.

        Args:
            error_models: What would be added.
            options: How far to go.
            run: Runs the passes; None: this worker.
            decodes: Whether clean answers that are not known are decoded; otherwise their samples
                are left out.
        """
        run = run or functools.partial(map, self.backward)
        texts, seed = self.clean_texts(decodes), self._plan.seed
        return profile_by(run, texts, error_models, seed=seed, options=options)

    @functools.cached_property
    def _passes(self) -> Passes:
        context, rows = self._loaded.context_length, self._plan.batch_size
        return Passes(self._apart, self._gib, context, rows)

    def run_clean(self) -> None:
        """Runs the clean model once over every sample and its answer, for whoever watches it."""
        texts = self.clean_texts()
        longest = max(len(p) + len(a) for p, a in zip(texts.prompts, texts.answers, strict=True))
        rows = 1 if self._apart.minds_length else self._rows(longest)
        rows = min(rows, rows_at_hand(self._loaded.model, longest))
        for begin in range(0, len(texts.names), rows):
            self._telling(0.0, 1.0)("looking at channels", begin / len(texts.names))
            some = slice(begin, begin + rows)
            sequences = make_sequences(
                texts.names[some],
                texts.prompts[some],
                texts.answers[some],
                self._apart.device,
                self._loaded.context_length,
            )
            self._apart.run(sequences.ids_BT, sequences.mask_BT)

    def _session(self, name: str) -> Session:
        """Returns the session of a condition; its records are those of the unit in hand."""
        if name not in self._sessions:
            given = self._conditions[name]
            session = Session(
                self._loaded.model,
                given.error_model,
                given.selection,
                self._plan.seed,
                attest=False,
            )
            session.weights = self._weights
            self._sessions[name] = session
        return self._sessions[name]

    def _make_smaller(self, error: RuntimeError | MemoryError) -> None:
        """Prepares a plainer attempt, or raises where there is none."""
        if isinstance(error, RideError) and not self._is_plain:
            self._is_plain = True
            return
        if not is_out_of_memory(error):
            raise error
        if self._smallest_pass <= 1:
            raise MemoryShortError(
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
            Rider(name, self._session(name), draw)
            for name in unit.conditions
            for draw in unit.draws
        ]
        answers = self._answers(unit, riders)
        scores = self._scores(unit, riders, answers[0] if answers else None)
        records: list[Record] = []
        for n, rider in enumerate([Rider(CLEAN, None), *riders]):
            if n or unit.with_clean:
                given = answers[n] if n < len(answers) else None
                records += self._records(unit, rider, scores[n], given)
        witnesses = {name: self._sessions[name].witness for name in unit.conditions}
        for name, witness in witnesses.items():
            self._check_arrived(name, witness)
        if answers:
            self._clean |= {s: tuple(a.ids) for s, a in zip(unit.samples, answers[0], strict=True)}
        notes = [PLAIN_NOTE] if riders and not self._is_shared else []
        notes += [MEMORY_NOTE] if self._halvings else []
        return UnitResult(unit.name, tuple(records), witnesses, tuple(notes))

    def _check_arrived(self, name: str, witness: Witness) -> None:
        """Raises where nothing of a condition's noise arrived in the first unit that has it."""
        if name not in self._arrived:
            check_arrived(name, self._session(name), witness)
            self._arrived.add(name)

    @property
    def _is_shared(self) -> bool:
        return self._apart.can_share and not self._is_plain

    def _answers(self, unit: Unit, riders: Sequence[Rider]) -> list[list[Answer]]:
        """Returns the clean answers and, if the unit generates, each rider's; none of texts.

        Who decodes together does not depend on what is known, so neither does an answer.
        """
        if not self._task.is_generative:
            return []
        clean, noisy = Rider(CLEAN, None), riders if unit.generates else []
        unknown = self._unknown(unit)
        whole = bool(unknown) + len(noisy)
        if unit.with_clean:
            return self._decoded(unit.samples, [clean, *noisy], 0, whole)
        made = self._decoded(unknown, [clean], 0, whole)[0] if unknown else []
        found = dict(zip(unknown, made, strict=True))
        answers = [found.get(n) or Answer(list(self._clean[n])) for n in unit.samples]
        return [answers, *self._decoded(unit.samples, noisy, bool(unknown), whole)]

    def _unknown(self, unit: Unit) -> list[str]:
        """Returns the samples whose clean answers are decoded."""
        if not self._task.is_generative:
            return []
        # Clean records tell more than the tokens.
        return [name for name in unit.samples if unit.with_clean or name not in self._clean]

    def _decoded(
        self, samples: Sequence[str], everyone: Sequence[Rider], before: int, whole: int
    ) -> list[list[Answer]]:
        """Returns each rider's answers; `before` and `whole` count riders, for the progress."""
        if not everyone:
            return []
        prompts = [Prompt(name, tuple(self._prompts[name])) for name in samples]
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
        found: dict[int, list[Answer]] = {}
        share = (1 - _SCORING_SHARE) / whole
        for group in self._parties(everyone, min(limits.rows, limits.prompt_rows)):
            boardings = [
                Boarding(everyone[n], self._apart.first_region(everyone[n].session)) for n in group
            ]
            entries = self._apart.prompt_entries if len(group) > 1 and self._is_shared else None
            tell = self._telling(share * (before + len(found)), share * len(group))
            made = decode(
                self._loaded.model,
                prompts,
                boardings,
                limits,
                entries,
                tell,
                self._plan.compile_steps,
            )
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
        # The prompts' clean rows come on top where the clean model is not in the party itself.
        size = max(1, rows - 1)
        first = rows if any(everyone[n].session is None for n in together) else size
        later = together[first:]
        parties = [together[:first], *(later[n : n + size] for n in range(0, len(later), size))]
        return [*filter(None, parties), *([n] for n in lonely)]

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
        is_answering = answers is not None and (unit.generates or self._unknown(unit))
        before = 1 - _SCORING_SHARE if is_answering else 0.0
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
            answer_ids=tuple(answer.ids) if record.condition == CLEAN else None,
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
