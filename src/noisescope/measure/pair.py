"""Two models on the same samples: the answers of each, and KL(A || B) along those of A.

Both are in memory at once; logits are made a few tokens at a time. Nothing is perturbed: what one
model does under noise is the worker's business, which answers here for each of the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noisescope.errors import InputError
from noisescope.measure.attest import close_call_note, cut_note
from noisescope.measure.memory import (
    default_gib,
    is_out_of_memory,
    rows_at_hand,
    rows_of_scoring,
)
from noisescope.measure.metrics import CleanTokens, TokenMetrics
from noisescope.measure.plan import Plan, Progress
from noisescope.measure.run import make_units
from noisescope.measure.score import Sequences, make_sequences
from noisescope.measure.taken_apart import TakenApart
from noisescope.measure.unit import Unit
from noisescope.measure.worker import Worker
from noisescope.models import LoadedModel
from noisescope.records import CLEAN, Record
from noisescope.tasks import Task, encode_task

_LOGITS_SHARE = 8  # of the memory: what the logits of some tokens may take
_BYTES_PER_LOGIT = 28  # itself, its float64 logarithm of two distributions, and the probability
_LEAST_TOKENS, _MOST_TOKENS = 16, 4096


@dataclass(frozen=True)
class Pair:
    """What two models said of the same samples.

    Attributes:
        first: One record per sample of A, along its own answers or the texts.
        second: One of B, with its own answer; KL(A || B), NLL and agreement are along A's answer.
        notes: What the user should hear, one line each.
    """

    first: tuple[Record, ...]
    second: tuple[Record, ...]
    notes: tuple[str, ...] = ()


def check_pair(first: LoadedModel, second: LoadedModel, task: Task) -> None:
    """Checks that KL between two models is defined along the same tokens.

    Raises:
        InputError: Their vocabularies differ, or their tokenizers encode a prompt differently, or a
            sample cannot be measured on one of them.
    """
    sizes = [x.model.get_input_embeddings().num_embeddings for x in (first, second)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the vocabularies differ, {sizes[0]:,} tokens in A and {sizes[1]:,} in B: between "
            "such predictions there is no KL; give two models of one vocabulary"
        )
    encoded = [
        encode_task(task, x.tokenizer, x.context_length, size)
        for x, size in zip((first, second), sizes, strict=True)
    ]
    for sample, a, b in zip(task.samples, *encoded, strict=True):
        if a != b:
            raise InputError(
                f"the tokenizers encode sample {sample.name!r} differently ({len(a)} tokens in A, "
                f"{len(b)} in B): give both the same with --tokenizer DIR"
            )


def measure_pair(
    first: LoadedModel,
    second: LoadedModel,
    task: Task,
    *,
    is_same: bool = False,
    batch_size: int | None = None,
    memory_gib: float | None = None,
    progress: Progress | None = None,
) -> Pair:
    """Measures two models on the samples of a task.

    Args:
        first: A, along whose answers both are scored.
        second: B.
        task: The samples and their scoring.
        is_same: Whether weights and configuration are the same: then B is not run, and KL is 0.
        batch_size: The most rows that run together; None: by memory.
        memory_gib: Memory to take beside the models; None: half of what is free.
        progress: Told what runs, and how many units of how many are done.

    Raises:
        InputError: The two cannot be compared, a model predicts no next token, or there is no
            memory for one row.
    """
    check_pair(first, second, task)
    gib = memory_gib or min(default_gib(x.model) for x in (first, second))
    plan = Plan((), batch_size=batch_size, memory_gib=gib)
    units = make_units(plan, [sample.name for sample in task.samples])
    parties = [first] if is_same else [first, second]
    workers = [Worker(x, task, plan) for x in parties]
    scorer = None if is_same else _Scorer(first, second, task, gib, batch_size)
    found: tuple[list[Record], list[Record]] = ([], [])
    for done, unit in enumerate(units):
        _tell(progress, "A", done, units)
        mine = list(workers[0](unit).records)
        if scorer is None:
            theirs = mine
        else:
            _tell(progress, "B", done + 1 / 3, units)
            theirs = list(workers[1](unit).records) if task.is_generative else mine
            _tell(progress, "A against B", done + 2 / 3, units)
            theirs = scorer.scored(unit, mine, theirs)
        found[0].extend(mine)
        found[1].extend(theirs)
    _tell(progress, "done", len(units), units)
    return Pair(tuple(found[0]), tuple(found[1]), _notes(found, task))


def _tell(progress: Progress | None, what: str, done: float, units: Sequence[Unit]) -> None:
    if progress is not None:
        progress(what, done, len(units))


def _notes(found: tuple[list[Record], list[Record]], task: Task) -> tuple[str, ...]:
    notes = []
    for name, records in zip("AB", found, strict=True):
        for note in (cut_note(records, task.max_new_tokens), close_call_note(records)):
            if note is not None:
                notes.append(f"{name}: {note}")
    return tuple(notes)


class _Scorer:
    """Scores B against A along the answers of A."""

    def __init__(
        self,
        first: LoadedModel,
        second: LoadedModel,
        task: Task,
        gib: float,
        batch_size: int | None,
    ) -> None:
        self._apart = TakenApart(first.model), TakenApart(second.model)
        self._context = second.context_length
        encoded = encode_task(task, first.tokenizer)
        self._prompts = {s.name: ids for s, ids in zip(task.samples, encoded, strict=True)}
        self._is_generative = task.is_generative
        self._gib, self._most_rows = gib, batch_size
        self._halvings = 0

    def scored(self, unit: Unit, mine: Sequence[Record], theirs: Sequence[Record]) -> list[Record]:
        """Returns the records of B with what they say along the answers of A."""
        while True:
            try:
                return list(self._scored(unit, mine, theirs))
            except (RuntimeError, MemoryError) as error:  # torch's own are RuntimeErrors
                if not is_out_of_memory(error):
                    raise
                if self._gib / 2**self._halvings < 2**-10:
                    raise InputError(
                        "memory ran out with one row at a time: give shorter samples, a smaller "
                        "--max-new-tokens, --dtype bfloat16, or a device with more memory"
                    ) from error
                self._halvings += 1

    def _scored(
        self, unit: Unit, mine: Sequence[Record], theirs: Sequence[Record]
    ) -> Iterator[Record]:
        along = {record.sample: self._along(record) for record in mine}
        columns: dict[str, TokenMetrics] = {}
        # Neighbours in length pad each other little.
        order = sorted(unit.samples, key=lambda name: sum(map(len, along[name])))
        size = self._rows(max(sum(map(len, parts)) for parts in along.values()))
        for begin in range(0, len(order), size):
            names = order[begin : begin + size]
            columns |= dict(zip(names, self._compared(names, along), strict=True))
        for record in theirs:
            yield _record(record, columns[record.sample])

    def _along(self, record: Record) -> tuple[Sequence[int], Sequence[int]]:
        """Returns what is given of a sample, and what is scored after it."""
        ids = self._prompts[record.sample]
        start, scored = (
            (ids, record.answer_ids or ()) if self._is_generative else (ids[:1], ids[1:])
        )
        if self._context is not None and len(start) + len(scored) > self._context + 1:
            raise InputError(
                f"sample {record.sample!r} with the answer of A is {len(start) + len(scored)} "
                f"tokens long, B takes {self._context}: give a smaller --max-new-tokens"
            )
        return start, scored

    def _rows(self, tokens: int) -> int:
        if any(apart.minds_length for apart in self._apart):
            return 1
        rows = min(
            min(
                rows_of_scoring(apart.model, tokens, self._gib, apart.halves is None),
                rows_at_hand(apart.model, tokens),
            )
            for apart in self._apart
        )
        rows = rows if self._most_rows is None else min(rows, self._most_rows)
        return max(1, rows >> self._halvings)

    def _compared(
        self, names: Sequence[str], along: Mapping[str, tuple[Sequence[int], Sequence[int]]]
    ) -> list[TokenMetrics]:
        """Returns the metrics of each sample's tokens."""
        starts, answers = zip(*(along[name] for name in names), strict=True)
        batches = [
            make_sequences(names, starts, answers, apart.device, self._context)
            for apart in self._apart
        ]
        states = [_picked(apart, batch) for apart, batch in zip(self._apart, batches, strict=True)]
        label_N = batches[0].label_N
        parts = []
        for begin in range(0, len(label_N), self._tokens):
            chunk = slice(begin, begin + self._tokens)
            a_NV, b_NV = (
                _logits(apart, held[chunk]) for apart, held in zip(self._apart, states, strict=True)
            )
            _check_same_width(a_NV, b_NV)
            clean = CleanTokens(a_NV, label_N[chunk].to(a_NV.device))
            parts.append(clean.compare(b_NV.to(a_NV.device)[None]).part(0))
        return _split(parts, batches[0].counts)

    @property
    def _tokens(self) -> int:
        """How many tokens have logits at once."""
        allowed = int(self._gib * (1 << 30)) // _LOGITS_SHARE >> self._halvings
        tokens = allowed // (_BYTES_PER_LOGIT * self._apart[0].vocabulary) // 2
        return max(_LEAST_TOKENS, min(_MOST_TOKENS, tokens))


def _picked(apart: TakenApart, batch: Sequences) -> Tensor:
    """Returns the states at the scored tokens [N, D]; logits where the model is not cut."""
    states = apart.run(batch.ids_BT, batch.mask_BT)
    rows, before = (t.to(states.device) for t in (batch.row_N, batch.before_N))
    return states[rows, before]


def _logits(apart: TakenApart, states_ND: Tensor) -> Tensor:
    return states_ND if apart.halves is None else apart.halves.logits(states_ND)


def _check_same_width(a_NV: Tensor, b_NV: Tensor) -> None:
    if a_NV.shape[-1] != b_NV.shape[-1]:
        raise InputError(
            f"the heads differ, {a_NV.shape[-1]:,} logits in A and {b_NV.shape[-1]:,} in B: give "
            "two models of one vocabulary"
        )


def _split(parts: Sequence[TokenMetrics], counts: Sequence[int]) -> list[TokenMetrics]:
    """Returns the metrics of each row out of those of all its tokens."""
    names = ("kl_nats", "nll_change_nats", "clean_nll_nats", "is_top1_same")
    empty = torch.zeros(0, dtype=torch.float64)
    whole = [torch.cat([empty, *(getattr(part, name) for part in parts)]) for name in names]
    rows = zip(*(column.split(list(counts)) for column in whole), strict=True)
    return [TokenMetrics(*row) for row in rows]


def _record(theirs: Record, found: TokenMetrics) -> Record:
    """Returns the record of B with its figures along the answer of A; NaN without tokens."""
    nan = float("nan")
    tokens = len(found.kl_nats)
    p95 = p99 = nan
    if tokens:
        at = torch.tensor([0.95, 0.99], dtype=torch.float64)
        p95, p99 = torch.quantile(found.kl_nats, at).tolist()

    def mean(column: Tensor) -> float:
        return float(column.mean()) if tokens else nan

    return replace(
        theirs,
        condition=CLEAN,
        tokens=tokens,
        kl_nats=mean(found.kl_nats),
        kl_p95_nats=p95,
        kl_p99_nats=p99,
        nll_nats=mean(found.nll_change_nats + found.clean_nll_nats),
        nll_change_nats=mean(found.nll_change_nats),
        top1_agreement=mean(found.is_top1_same),
        answer_ids=None,
    )
