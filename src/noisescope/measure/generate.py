"""Greedy answers of many conditions, samples and draws, decoded together.

A loop of our own instead of the library's: rows leave the batch and its cache at their own end and
new ones come in, the prompt's clean part is computed once for all conditions, and every row is
known by sample, condition and draw. Nothing of a model's generation defaults (penalties, suppressed
tokens, sampling) is applied. An answer does not depend on the batch it is made in, but where the
two best logits differ by no more than rounding: such steps are counted. Steps may also run in
batches of fixed size through a compiled model; see static_decoding.py.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisescope.inject import Ride, RideError, Span
from noisescope.measure.answers import Answer, Batch, Boarding, Limits, Prompt, Row, open_rows
from noisescope.measure.caches import (
    can_be_static,
    drop_columns,
    is_joinable,
    join_rows,
    layer_rows,
    select_layer_rows,
    select_rows,
    to_dynamic,
    to_static,
)
from noisescope.measure.sharing import Entries, Growth, Rider
from noisescope.measure.static_decoding import (
    Call,
    StaticSteps,
    bucket_of,
    capacity_of,
    compiled_step,
    largest_bucket,
    may_compile,
    takes_static_caches,
)
from noisescope.measure.steps import best_tokens, call_arguments, end_tokens, pad_left

# Rows that are done are dropped when they are so many: choosing rows copies the cache.
_DONE_SHARE = 8
_EMPTY_COLUMNS = 32

Tell = Callable[[str, float], None]  # what runs now, the share that is done


def greedy_answers(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, context_length: int | None
) -> list[list[int]]:
    """Returns the clean model's greedy continuation of each prompt, up to and with its end token.

    Args:
        model: A causal language model; it runs where it lies, in whatever session is open.
        prompts: Token ids.
        max_new_tokens: The most tokens to generate.
        context_length: The most positions the model takes; None: not limited.
    """
    named = [Prompt(str(n), tuple(ids)) for n, ids in enumerate(prompts)]
    clean = [Boarding(Rider("", None))]
    (answers,) = decode(model, named, clean, Limits(max_new_tokens, context_length))
    return [answer.ids for answer in answers]


def decode(
    model: Any,
    prompts: Sequence[Prompt],
    boardings: Sequence[Boarding],
    limits: Limits,
    entries: Entries | None = None,
    tell: Tell | None = None,
    compile_steps: bool = False,
) -> list[list[Answer]]:
    """Returns each rider's answers to the prompts.

    Args:
        model: A causal language model; it runs where it lies.
        prompts: The samples.
        boardings: Who answers.
        limits: Lengths and sizes.
        entries: Where the model's regions begin, to share the clean part of the prompts; None:
            nothing is shared.
        tell: Told what runs, and the share of the answers that are done.
        compile_steps: Whether steps run through a compiled model, where model and noise allow it.
            More rows that are done then count in the dose before they are dropped: up to half of a
            batch, not an eighth.

    Raises:
        RideError: The rows of one batch cannot be told apart.
    """
    sessions = [b.rider.session for b in boardings if b.rider.session is not None]
    ride = Ride(model, list(dict.fromkeys(sessions))) if sessions else None
    can_compile = ride is None or ride.compilable is not None
    step = None
    if compile_steps and can_compile and takes_static_caches(model):
        step = compiled_step(model)
    return _Decoder(model, prompts, boardings, limits, entries, ride, step).run(tell)


class _Decoder:
    """Decodes waves of prompts, each for all riders, in one running batch."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Prompt],
        boardings: Sequence[Boarding],
        limits: Limits,
        entries: Entries | None,
        ride: Ride | None,
        compiled: Call | None,
    ) -> None:
        self._model, self._prompts, self._boardings = model, prompts, boardings
        self._limits, self._entries, self._ride = limits, entries, ride
        self._compiled = compiled
        self._largest_bucket = 0
        self._hooks = ExitStack()  # holds the ride while steps run
        self._is_aboard = False
        self._steps = 0
        self._tell: Tell | None = None
        self._ends = end_tokens(model)
        self._accepted = inspect.signature(model.forward).parameters
        self._answers = [[Answer() for _ in prompts] for _ in boardings]
        open_ = [n for n, prompt in enumerate(prompts) if self._room(prompt) > 0]
        # Neighbours in length pad each other little; the longest first, so that none is late.
        self._waiting = sorted(open_, key=lambda n: len(prompts[n].ids))
        self._asked, self._done = len(open_) * len(boardings), 0
        for n in set(range(len(prompts))) - set(open_):
            for answers in self._answers:
                answers[n].is_cut = True

    def run(self, tell: Tell | None = None) -> list[list[Answer]]:
        self._tell = tell
        batch: Batch | None = None
        compiled = self._compiled
        with self._hooks:
            while batch is not None or self._waiting:
                waited = len(self._waiting)
                # A prompt's own pass may end its answer, and the context with it.
                batch = self._without_done(self._take_in(batch))
                if batch is None:
                    self._say()
                elif compiled is None or not can_be_static(batch.cache, self._model.config):
                    batch = self._step(batch)
                elif len(self._waiting) == waited:  # else more prompts may find room
                    batch = self._run_static(batch, compiled)
        return self._answers

    def _say(self) -> None:
        """Tells how far the answers are."""
        self._steps += 1
        if self._tell is not None:
            self._tell(f"answering, step {self._steps}", self._done / self._asked)

    def _room(self, prompt: Prompt) -> int:
        room, context = self._limits.max_new_tokens, self._limits.context_length
        return room if context is None else min(room, context - len(prompt.ids) + 1)

    @property
    def _rows_per_prompt(self) -> int:
        """Rows that a prompt takes: one of each boarding, and a clean one that is none's."""
        has_one_apart = self._entries is not None and all(b.rider.session for b in self._boardings)
        return len(self._boardings) + has_one_apart

    # Waves of new rows.

    def _take_in(self, batch: Batch | None) -> Batch:
        """Returns the batch with as many new prompts as there is room for, if any wait."""
        limits, held = self._limits, 0 if batch is None else len(batch.rows)
        free, most = self._free(held), limits.prompt_rows // self._rows_per_prompt
        wave = 1 if limits.is_by_prompt else max(1, min(free, most))
        if batch is None:
            return self._prefill(wave)
        if not self._has_place(held) or not is_joinable(batch.cache):
            return batch
        return self._joined(batch, self._prefill(wave))

    def _free(self, held: int) -> int:
        """Returns how many prompts there is room for beside so many rows."""
        return max(0, self._limits.rows - held) // self._rows_per_prompt

    def _has_place(self, held: int) -> bool:
        """Tells whether prompts wait, and enough of them find room beside so many rows."""
        # A wave costs a pass over its prompts: not for a row or two.
        is_worth_it = 4 * self._free(held) * self._rows_per_prompt >= self._limits.rows
        return bool(self._waiting) and is_worth_it and not self._limits.is_by_prompt

    def _prefill(self, count: int) -> Batch:
        """Runs the next prompts, the clean rows alone as far as all share them."""
        wave = [self._waiting.pop() for _ in range(min(count, len(self._waiting)))]
        ids_BT, mask_BT = pad_left([self._prompts[n].ids for n in wave], self._model.device)
        if self._ride is None:
            logits_RV, cache = self._forward(ids_BT, mask_BT, None)
        else:
            logits_RV, cache = self._prefill_riders(self._ride, wave, ids_BT, mask_BT)
        rows = [
            Row(rider, n, self._answers[rider][n], self._room(self._prompts[n]))
            for rider in range(len(self._boardings))
            for n in wave
        ]
        mask_RT = mask_BT.repeat(len(self._boardings), 1)
        batch = Batch(rows, ids_BT[:, -1], mask_RT, cache)
        self._append(batch, logits_RV)
        return batch

    def _prefill_riders(
        self, ride: Ride, wave: Sequence[int], ids_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Any]:
        """Returns last logits [R, V] of all rows, rider by rider, and their cache."""
        B = len(wave)
        self._leave_ride()  # its hooks must run after those by which a pass grows
        names = [self._prompts[n].name for n in wave]
        clean = [n for n, b in enumerate(self._boardings) if b.rider.session is None]
        noisy = [n for n, b in enumerate(self._boardings) if b.rider.session is not None]
        if self._entries is None:
            order = list(range(len(self._boardings)))
            ride.reader.names = tuple(names * len(order))
            ride.spans = self._spans([(n, B) for n in order])
            with ride:
                return self._forward(
                    ids_BT.repeat(len(order), 1), mask_BT.repeat(len(order), 1), None
                )
        noisy.sort(key=lambda n: self._boardings[n].first)
        waiting = [(self._boardings[n].first, self._boardings[n].rider) for n in noisy]
        growth = Growth(self._entries, ride, B, waiting)
        ride.reader.names = tuple(names * growth.copies)
        with growth.attached(), ride:
            logits_RV, cache = self._forward(
                ids_BT.repeat(growth.copies, 1), mask_BT.repeat(growth.copies, 1), None
            )
        self._spread(cache, growth)
        block_of = {rider: block for block, rider in enumerate(noisy, start=1)}
        block_of |= dict.fromkeys(clean, 0)
        final = [
            block_of[rider] * B + row for rider in range(len(self._boardings)) for row in range(B)
        ]
        select_rows(cache, final)
        return logits_RV[torch.tensor(final, device=logits_RV.device)], cache

    def _spread(self, cache: Any, growth: Growth) -> None:
        """Gives every layer of the cache rows for all: who came later gets the clean rows'."""
        if not is_joinable(cache):
            raise RideError(f"a {type(cache).__name__} does not let its rows be chosen")
        for number, layer in enumerate(cache.layers):
            present = growth.present.get(str(number), growth.first)
            held = layer_rows(layer)
            if held is not None and held != present:
                raise RideError(f"layer {number} of the cache has {held} rows, not {present}")
            rows = [r if r < present else r % growth.base for r in range(growth.rows)]
            if held is not None and len(rows) != held:
                select_layer_rows(layer, rows)

    def _joined(self, batch: Batch, new: Batch) -> Batch:
        """Returns one batch of both, rider by rider."""
        columns = max(batch.mask_RS.shape[1], new.mask_RS.shape[1])
        join_rows(batch.cache, new.cache, columns)
        masks = [F.pad(b.mask_RS, (columns - b.mask_RS.shape[1], 0)) for b in (batch, new)]
        rows = batch.rows + new.rows
        both = Batch(rows, torch.cat([batch.token_R, new.token_R]), torch.cat(masks), batch.cache)
        self._keep(both, sorted(range(len(rows)), key=lambda n: rows[n].rider))
        return both

    # Steps.

    def _step(self, batch: Batch) -> Batch | None:
        """Runs the newest token of every row; returns the batch of those that are not done."""
        batch.mask_RS = F.pad(batch.mask_RS, (0, 1), value=1)
        ids_R1 = batch.token_R[:, None]
        if self._ride is None:
            logits_RV, batch.cache = self._forward(ids_R1, batch.mask_RS, batch.cache)
        else:
            counts = [0] * len(self._boardings)
            for row in batch.rows:
                counts[row.rider] += 1
            self._ride.spans = self._spans(list(enumerate(counts)))
            self._ride.reader.names = self._names(batch.rows)
            self._board_ride(self._ride)
            logits_RV, batch.cache = self._forward(ids_R1, batch.mask_RS, batch.cache)
        self._append(batch, logits_RV)
        self._say()
        return self._without_done(batch)

    def _board_ride(self, ride: Ride) -> None:
        """Opens the ride, for as long as nothing but steps runs: its hooks are on every module."""
        if not self._is_aboard:
            self._hooks.enter_context(ride)
            self._is_aboard = True

    def _leave_ride(self) -> None:
        self._hooks.close()
        self._is_aboard = False

    def _names(self, rows: Sequence[Row]) -> tuple[str, ...]:
        return tuple(self._prompts[row.prompt].name for row in rows)

    def _spans(self, counts: Sequence[tuple[int, int]]) -> list[Span]:
        """Returns the spans of riders that have so many rows each, one after the other."""
        spans, begin = [], 0
        for n, count in counts:
            rider = self._boardings[n].rider
            if count:
                spans.append(Span(rider.session, rider.draw, begin, begin + count))
            begin += count
        return spans

    def _forward(self, ids_BT: Tensor, mask_BS: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Returns the last position's logits [R, V], and the cache with this pass in it."""
        with torch.no_grad():
            output = self._model(
                **call_arguments(self._accepted, ids_BT, mask_BS), past_key_values=cache
            )
        return output.logits[:, -1], output.past_key_values

    def _append(self, batch: Batch, logits_RV: Tensor) -> None:
        """Takes the most likely token of each row."""
        batch.token_R, close_R = best_tokens(logits_RV)
        batch.token_R = batch.token_R.to(self._model.device)
        both = torch.stack([batch.token_R, close_R.to(batch.token_R.device)])
        tokens, close = both.tolist()
        for row, token, is_close in zip(batch.rows, tokens, close, strict=True):
            if row.is_done:
                continue
            row.answer.ids.append(token)
            row.answer.close_calls += is_close
            row.room -= 1
            row.is_done = token in self._ends or row.room <= 0
            self._done += row.is_done
            row.answer.is_cut = row.is_done and token not in self._ends

    def _without_done(self, batch: Batch) -> Batch | None:
        """Returns the batch without the rows that are done, when they are worth the copying."""
        kept = open_rows(batch.rows)
        if not kept:
            return None
        done = len(batch.rows) - len(kept)
        context = self._limits.context_length
        # A row that is done goes on until it is dropped, but may not leave the context.
        is_full = context is not None and batch.mask_RS.shape[1] >= context
        if done and (done * _DONE_SHARE >= len(batch.rows) or is_full):
            self._keep(batch, kept)
        return batch

    def _keep(self, batch: Batch, kept: Sequence[int]) -> None:
        self._select(batch, kept)
        self._drop_empty_columns(batch)

    def _select(self, batch: Batch, kept: Sequence[int]) -> None:
        kept_K = torch.tensor(kept, device=batch.token_R.device)
        select_rows(batch.cache, kept)
        batch.rows = [batch.rows[n] for n in kept]
        batch.token_R, batch.mask_RS = batch.token_R[kept_K], batch.mask_RS[kept_K]

    def _drop_empty_columns(self, batch: Batch) -> None:
        empty = int((batch.mask_RS.cumsum(dim=1) == 0).sum(dim=1).min())
        if empty >= _EMPTY_COLUMNS and is_joinable(batch.cache):
            batch.mask_RS = batch.mask_RS[:, empty:]
            # The newest token is in the mask when its pass has put it into the cache.
            drop_columns(batch.cache, batch.mask_RS.shape[1])

    # Steps in a batch of fixed size.

    def _run_static(self, batch: Batch, compiled: Call) -> Batch | None:
        """Runs steps in a batch of fixed size, until a smaller one holds all that are not done."""
        rooms = [row.room for row in batch.rows if not row.is_done]
        R, capacity = self._bucket(len(rooms)), capacity_of(batch.mask_RS.shape[1], max(rooms))
        shape = None if self._ride is None else self._ride.shape
        if not may_compile(self._model, (R, capacity, shape)):
            return self._step(batch)
        self._fill_up(batch, R)
        rows, context = batch.rows, self._limits.context_length
        cache = to_static(batch.cache, self._model.config, capacity)
        steps = StaticSteps(self._model, compiled, cache, batch.mask_RS, capacity, context)
        if self._ride is not None:
            self._ride.reader.names = self._names(rows)
            self._board_ride(self._ride)
        seated = 0
        while (open_ := len(open_rows(rows))) and not self._is_to_shrink(open_, R):
            if open_ != seated and self._ride is not None:
                self._ride.spans = self._open_spans(rows)
            seated = open_
            self._append(batch, steps(batch.token_R))
            self._say()
        if not open_:
            return None
        batch.cache, batch.mask_RS = to_dynamic(cache, steps.columns), steps.mask_RS
        self._keep(batch, open_rows(rows))  # now: who may come in is told by the rows that are held
        return batch

    def _bucket(self, rows: int) -> int:
        if rows > self._largest_bucket:
            self._largest_bucket = largest_bucket(rows, self._limits.rows)
        return bucket_of(rows, self._largest_bucket)

    def _fill_up(self, batch: Batch, R: int) -> None:
        """Makes R rows: those that are not done, and copies of the first of them, which are."""
        kept = open_rows(batch.rows)
        held = len(kept)
        kept += [kept[0]] * (R - held)
        if kept != list(range(len(batch.rows))):
            self._keep(batch, kept)
        batch.rows[held:] = [
            replace(row, answer=Answer(), is_done=True) for row in batch.rows[held:]
        ]

    def _is_to_shrink(self, open_: int, R: int) -> bool:
        """Tells whether so few of R rows are open that a batch of another size is better."""
        is_smaller = bucket_of(open_, self._largest_bucket) < R or self._has_place(open_)
        return 2 * open_ <= R and is_smaller

    def _open_spans(self, rows: Sequence[Row]) -> list[Span]:
        """Returns each rider's span, from its first to its last row that is not done.

        Rows that are done between these go on as theirs: a span for every piece would cost more.
        """
        held: dict[int, list[int]] = {}
        for n in open_rows(rows):
            held.setdefault(rows[n].rider, []).append(n)
        spans, end = [], 0
        for number, own in held.items():
            rider = self._boardings[number].rider
            spans += [Span(None, 0, end, own[0])] if end < own[0] else []
            end = own[-1] + 1
            spans.append(Span(rider.session, rider.draw, own[0], end))
        return spans + ([Span(None, 0, end, len(rows))] if end < len(rows) else [])
