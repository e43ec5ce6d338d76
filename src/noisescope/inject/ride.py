"""Many conditions in one batch: every row carries its condition and draw.

A ride opens the hooks once for several sessions. What a row gets is what it would get in a batch of
its own session: the noise is a function of its address, so company changes nothing. Which rows are
whose is told from outside, as `Span`s, and may change in the middle of a pass.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescope.errors import InputError
from noisescope.inject import attention
from noisescope.inject.calls import (
    Function,
    Layouts,
    layouts_of,
    may_share_memory,
    out_of_place,
    softmax_dim,
    write,
)
from noisescope.inject.elements import find_mask
from noisescope.inject.injector import for_every_sample
from noisescope.inject.mode import OperatorMode, remove_mode
from noisescope.inject.operands import OUTPUT, falls_on_inputs
from noisescope.inject.operators import Spelling
from noisescope.inject.perturb import perturb_probabilities, perturb_rows
from noisescope.inject.ride_inputs import compute as compute_inputs
from noisescope.inject.ride_together import Together
from noisescope.inject.rows import Layout, Rows, RowsOf, known_batch
from noisescope.inject.session import Session
from noisescope.inject.sites import Site, SiteKey
from noisescope.inject.spans import Mark, Piece, RideError, Span, note_forward, own_address
from noisescope.inject.tokens import TokenReader
from noisescope.inject.tracker import Place, Tracker
from noisescope.models import find_regions
from noisescope.noise import TALLY_FIELDS, Address


class Ride:
    """Several conditions on one model in one batch, forward only.

    Args:
        model: The model that the sessions are made for.
        sessions: Closed sessions, whose error models, selections and records are used.
    """

    phases: tuple[str, ...] = ("forward",)

    def __init__(self, model: nn.Module, sessions: Sequence[Session]) -> None:
        if any(session.selection.phases != self.phases for session in sessions):
            raise InputError(
                "backward noise cannot be measured on answers: leave phases at ('forward',)"
            )
        self.model = model
        self.sessions = tuple(sessions)
        self.reader = TokenReader(0, 0)
        self.regions = find_regions(model)
        names = {name for session in sessions for name in session.region_names}
        self._region_names = [r.name for r in self.regions.all if r.name in names]
        self._tracker = Tracker(self, self.reader)
        self._mode = OperatorMode(self, lambda: self._tracker.place)
        self._hooks = ExitStack()
        self._spans: tuple[Span, ...] = ()
        self._together = Together()
        self._aboard: dict[str, list[tuple[Span, Session]]] = {}

    # Who sits where.

    @property
    def spans(self) -> tuple[Span, ...]:
        """Whose the rows of the batch are, in their order and without gaps."""
        return self._spans

    @spans.setter
    def spans(self, spans: Sequence[Span]) -> None:
        self._spans = tuple(spans)
        self._together.forget()
        self._aboard = {name: [] for name in self._region_names}
        for span in self._spans:
            for name in span.session.region_names if span.session is not None else ():
                self._aboard[name].append((span, span.session))  # type: ignore[arg-type]

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return self._spans[-1].end if self._spans else 0

    @property
    def rows(self) -> Rows | None:
        """Samples and positions of the rows that the pass began with."""
        return self._tracker.rows

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._tracker.attach(self.model, self.regions, self._region_names, stack)
            self._hooks = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.close()
        remove_mode(self._mode)
        self._tracker.reset()

    # What the mode calls.

    def run(
        self, place: Place, spelling: Spelling, function: Function, args: Any, kwargs: Any
    ) -> Any:
        """Runs a call of an operator; the rows whose conditions select it are perturbed."""
        marks = [m for m in self._see(place, spelling.operator) if m.record.is_selected]
        if not marks:
            return function(*args, **kwargs)
        function, args, kwargs, target = out_of_place(spelling, function, args, dict(kwargs))
        site = marks[0].record.site
        batch = None if known_batch(place.rows) is None else self.batch
        layouts = layouts_of(site.operator, site.index, args, kwargs, batch)
        piece = Piece(place, 0, self.batch)
        output = compute_inputs(piece, marks, function, (args, kwargs), layouts, self.batch)
        if may_share_memory(output, (args, kwargs)):
            output = output.clone()
        result = self._perturb(piece, marks, output, layouts, softmax_dim(args, kwargs))
        return result if target is None else write(target, result)

    def run_attention(
        self, place: Place, function: Function, args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Runs fused attention: whole for most rows, in three steps for those that need it."""
        steps = [self._see(place, operator) for operator in attention.SITE_OPERATORS]
        apart = {
            mark.span
            for marks in steps
            for mark in marks
            if mark.record.is_selected and not mark.session.error_model.is_null
        }
        for mark in (mark for marks in steps for mark in marks if mark.span not in apart):
            mark.record.is_fused = True
            if mark.record.is_selected:
                note_forward(mark.record, torch.zeros(len(TALLY_FIELDS), dtype=torch.float64))
        selected = [[m for m in marks if m.span in apart] for marks in steps]
        pieces = []
        for begin, end in _segments(apart, self.batch):
            part_args, part_kwargs = _rows_of((args, kwargs), begin, end, self.batch)
            piece = Piece(place, begin, end)
            if any(piece.holds(span) for span in apart):
                pieces.append(self._attend(piece, selected, part_args, part_kwargs))
            else:
                pieces.append(function(*part_args, **part_kwargs))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def wrap_parameters(self, place: Place, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns the arguments: nothing is wrapped where no gradient is perturbed."""
        return args

    # What a compiled model is told of; see inject.compiled.

    @property
    def compilable(self) -> Self | None:
        """The ride; None where error falls on weights or activations, which differ by row."""
        is_of_inputs = any(falls_on_inputs(s.error_model) for s in self.sessions)
        return None if is_of_inputs else self

    @property
    def perturber(self) -> Self:
        """What perturbs at a site."""
        return self

    @property
    def shape(self) -> Hashable:
        """All that a graph depends on: the sites of all conditions together."""
        return tuple(session.shape for session in self.sessions)

    @property
    def operands(self) -> frozenset[str]:
        """What of a site error falls on."""
        return OUTPUT

    @property
    def has_rows_apart(self) -> bool:
        """Yes: a row gets the error of its own condition."""
        return True

    @property
    def leaves_attention_whole(self) -> bool:
        """Whether no condition has error."""
        return all(session.error_model.is_null for session in self.sessions)

    def treatment(self, site: Site) -> str:
        """Returns ``output`` where a condition perturbs a site, or nothing."""
        is_selected = any(
            site.region in session.region_names and session.includes(site)
            for session in self.sessions
        )
        return "output" if is_selected else ""

    @property
    def conditions(self) -> tuple[Session, ...]:
        """The sessions, where a graph may compute their noise: Gaussian error of one kind."""
        kinds = {(type(s.error_model), s.error_model.rounding) for s in self.sessions}
        are_plain = all(s.conditions for s in self.sessions) and len(kinds) == 1
        return self.sessions if are_plain and self._is_of_the_pass else ()

    @property
    def _is_of_the_pass(self) -> bool:
        return all(span.rows is None for span in self._spans)

    @property
    def rows_of_conditions(self) -> tuple[RowsOf, ...]:
        """The spans of conditions."""
        numbers = {session: n for n, session in enumerate(self.sessions)}
        return tuple(
            RowsOf(numbers[span.session], span.draw, span.begin, span.end)
            for span in self._spans
            if span.session is not None
        )

    def note_seen(self, key: SiteKey, is_fused: bool) -> None:
        """Notes that a site ran which got no error."""
        for _, session in self._aboard[key[0]]:
            session.note_seen(key, is_fused)

    def perturb_at(
        self, key: SiteKey, rows: Rows | None, value: Tensor, layout: Layout, dim: int
    ) -> Tensor:
        """Returns the output of a site with error in the rows of the conditions that select it."""
        marks = [Mark(span, session, session.see_at(key)) for span, session in self._aboard[key[0]]]
        place = Place(key[0], key[1], rows)
        selected = [mark for mark in marks if mark.record.is_selected]
        layouts: Layouts = {"output": layout}
        perturbed: Tensor = self._perturb(
            Piece(place, 0, self.batch), selected, value.clone(), layouts, dim
        )
        return perturbed

    def attend_at(
        self, keys: list[SiteKey], rows: Rows | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Returns fused attention, taken apart in the rows of conditions that select it."""
        place = Place(keys[0][0], keys[0][1], rows)
        for _, module, operator, index in reversed(keys):
            place.calls[module, operator] = index
        attended: Tensor = self.run_attention(place, F.scaled_dot_product_attention, args, kwargs)
        return attended

    def perturb_gradient_at(self, *arguments: Any) -> Tensor:
        """Never called: conditions that ride together have no backward noise."""
        raise RideError("gradients of conditions that ride together")

    def disturb_input_at(self, *arguments: Any) -> Tensor:
        """Never called: `compilable` is None where error falls on inputs."""
        raise RideError("inputs of conditions that ride together")

    # What the tracker calls.

    def enter_region(self) -> None:
        """Turns the mode on for a region that a condition selects."""
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def leave_region(self) -> None:
        """Turns it off."""
        self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def before_module(self, place: Place, module: nn.Module, args: Any) -> None:
        """Notes a module that is an operator as a whole."""
        place.marks = self._see(place, str(place.operator))

    def after_module(self, place: Place, module: nn.Module, output: Any) -> Any:
        """Adds the error to its output."""
        marks = [m for m in place.marks if m.record.is_selected]
        if not marks:
            return None
        # A module may give back its input, which is not ours to write into.
        output = output.clone() if isinstance(output, Tensor) else output
        return self._perturb(Piece(place, 0, self.batch), marks, output, {}, -1)

    # Perturbing.

    def _see(self, place: Place, operator: str) -> list[Mark]:
        """Notes that an operator runs at a place, for every condition that has rows there."""
        key = (place.region, place.module, operator, place.next_index(operator))
        return [
            Mark(span, session, session.see_at(key)) for span, session in self._aboard[place.region]
        ]

    def _attend(
        self, piece: Piece, steps: Sequence[Sequence[Mark]], args: Any, kwargs: Any
    ) -> Tensor:
        layouts: list[Layouts] = [{"output": "keys"}, {"output": "keys"}, {0: "keys"}]

        def run(step: int, compute: Function, *inputs: Any) -> Tensor:
            here = [m for m in steps[step] if m.record.is_selected and piece.holds(m.span)]
            output = compute_inputs(piece, here, compute, (inputs, {}), layouts[step], self.batch)
            result: Tensor = self._perturb(piece, here, output, layouts[step], -1)
            return result

        return attention.attend(*args, **kwargs, run=run)

    def _perturb(
        self, piece: Piece, marks: Sequence[Mark], output: Any, layouts: Layouts, dim: int
    ) -> Any:
        """Adds each condition's error to its own rows of an output; of several, to the first."""
        marks = [m for m in marks if not falls_on_inputs(m.session.error_model)]
        if isinstance(output, tuple) and output:
            return (self._perturb(piece, marks, output[0], layouts, dim), *output[1:])
        if not isinstance(output, Tensor) or not output.is_floating_point() or not marks:
            return output
        if piece.place.region == "embed":
            repeated = for_every_sample(output, piece.place.rows)
            output = output if repeated is output else repeated.clone()
        batch = piece.end - piece.begin
        if output.dim() == 0 or output.shape[0] % batch:
            raise RideError(f"{list(output.shape)} is not a batch of {batch} rows")
        per_row = output.shape[0] // batch
        with torch.no_grad():
            layout = layouts.get("output", "channels")
            if self._together.perturb(piece, marks, output, layout):
                return output
            for mark in marks:
                begin = (mark.span.begin - piece.begin) * per_row
                end = (mark.span.end - piece.begin) * per_row
                noisy = self._perturb_span(piece, mark, output, output[begin:end], layouts, dim)
                if len(marks) == 1 and len(noisy) == len(output):
                    return noisy
                output[begin:end] = noisy
        return output

    def _perturb_span(
        self,
        piece: Piece,
        mark: Mark,
        output: Tensor,
        own: Tensor,
        layouts: Layouts,
        dim: int,
    ) -> Tensor:
        record = mark.record
        error_model = mark.session.error_model.at_module(record.site.module)
        layout = layouts.get("output", "channels")
        rows, is_own = self._rows_at(piece, mark)
        known = own if is_own else output
        at = self._address(piece, mark, rows, is_own, known, layout)
        mask = find_mask(mark.session.selection.elements, record, rows, known, layout, at)
        if record.site.operator == "softmax" and not error_model.is_null:
            noisy, tally = perturb_probabilities(error_model, own, at, dim, mask)
        else:
            noisy, tally = perturb_rows(error_model, own, at, mask)
        note_forward(record, tally)
        return noisy

    def _rows_at(self, piece: Piece, mark: Mark) -> tuple[Rows, bool]:
        """Returns the rows that tell where a span lies, and whether they are the span's alone."""
        span, pass_rows = mark.span, piece.place.rows
        if span.rows is not None and not (pass_rows is not None and pass_rows.is_mixed):
            return span.rows, True
        if pass_rows is None:
            raise RideError("the pass has no rows")
        return pass_rows.part(piece.begin, piece.end), False

    def _address(
        self, piece: Piece, mark: Mark, rows: Rows, is_own: bool, known: Tensor, layout: Layout
    ) -> Address:
        """Returns where the rows of one span lie."""
        span, record = mark.span, mark.record
        at, kind = rows.address(known, record.site.operator, layout, record.site.word)
        if not is_own:
            each = len(at) // (piece.end - piece.begin)
            at = at.rows(*((n - piece.begin) * each for n in (span.begin, span.end)))
        return own_address(mark, at, kind, self.batch)


def _segments(apart: Sequence[Span] | set[Span], batch: int) -> list[tuple[int, int]]:
    """Returns the batch cut into runs of rows that are all in a span, and all in none."""
    runs: list[tuple[int, int]] = []
    for begin, end in sorted((span.begin, span.end) for span in apart):
        if runs and runs[-1][1] == begin:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((begin, end))
    cuts = sorted({0, batch, *(edge for run in runs for edge in run)})
    return list(itertools.pairwise(cuts))


def _rows_of(
    arguments: tuple[Any, Mapping[str, Any]], begin: int, end: int, batch: int
) -> tuple[Any, dict[str, Any]]:
    """Returns the arguments of fused attention for some rows of the batch."""
    if (begin, end) == (0, batch):
        return arguments[0], dict(arguments[1])

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 3:
            return value
        if value.shape[0] not in (1, batch):
            raise RideError(f"attention over {list(value.shape)} is not of a batch of {batch}")
        return value[begin:end] if value.shape[0] == batch else value

    args, kwargs = arguments
    return tuple(map(cut, args)), {name: cut(value) for name, value in kwargs.items()}
