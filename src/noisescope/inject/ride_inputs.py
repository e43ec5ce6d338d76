"""Conditions of one batch that put error on the inputs of operators: each runs on its own rows.

Weights differ from condition to condition, so a product is computed span by span; rows between
spans stay clean.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noisescope.inject.calls import Arguments, Function, Layouts
from noisescope.inject.operands import (
    Disturbance,
    Input,
    disturb,
    falls_on_inputs,
    find_inputs,
    no_address,
    rows_of_inputs,
)
from noisescope.inject.rows import Layout
from noisescope.inject.spans import Mark, Piece, RideError, Span, note_forward, own_address
from noisescope.noise import Address, ErrorModel


def compute(
    piece: Piece,
    marks: Sequence[Mark],
    function: Function,
    arguments: Arguments,
    layouts: Layouts,
    batch: int,
) -> Any:
    """Runs a call; rows whose conditions put error on its inputs run by themselves.

    Args:
        piece: The rows that the call is about.
        marks: The conditions that select it.
        function: What is called.
        arguments: With these.
        layouts: What the last axes of inputs and output hold.
        batch: Rows of the whole batch.

    Raises:
        RideError: The inputs cannot be cut into the conditions' rows.
    """
    moved = {m.span: m for m in marks if falls_on_inputs(m.session.error_model)}
    operator = marks[0].record.site.operator if marks else ""
    inputs = find_inputs(function, operator, *arguments, layouts) if moved else ()
    if not inputs:
        return function(*arguments[0], **arguments[1])
    is_mixed = piece.place.rows is not None and piece.place.rows.is_mixed
    if is_mixed and any(span.end - span.begin != batch for span in moved):
        # Experts sort the rows that they get: each span's share of them is not in its place.
        raise RideError(f"rows of {marks[0].record.site.name} lose their sample")
    made = []
    for begin, end, span in _runs(list(moved), piece.begin, piece.end):
        own = rows_of_inputs(
            inputs, arguments, begin - piece.begin, end - piece.begin, piece.end - piece.begin
        )
        if own is None:
            raise RideError(f"the inputs of {operator} are not of a batch of {batch} rows")
        if span is not None:
            own = _disturbed(piece, moved[span], inputs, own, batch)
        made.append(function(*own[0], **own[1]))
    return made[0] if len(made) == 1 else torch.cat(made)


def _disturbed(
    piece: Piece, mark: Mark, inputs: Sequence[Input], own: Arguments, batch: int
) -> Arguments:
    """Returns the arguments of one span's rows with error on its inputs."""
    span, session, record = mark.span, mark.session, mark.record
    error_model = session.error_model.at_module(record.site.module)

    def address(value: Tensor, layout: Layout, word: int) -> Address:
        if not error_model.is_random and layout != "keys":
            return no_address(value)
        rows = span.rows
        if rows is None or (piece.place.rows is not None and piece.place.rows.is_mixed):
            if piece.place.rows is None:
                raise RideError("the pass has no rows")
            rows = piece.place.rows.part(span.begin, span.end)
        at, kind = rows.address(value, record.site.operator, layout, word)
        return own_address(mark, at, kind, batch)

    def weight(value: Tensor, axis: int, by: ErrorModel, word: int) -> tuple[Tensor, Tensor]:
        return session.weights.get(value, axis, by, session.seed, span.draw, word)

    tallies: list[Tensor] = []
    by = Disturbance(error_model, address, weight, tallies.append)
    disturbed = disturb(inputs, record.site, own, by)
    if tallies:
        note_forward(record, torch.stack(tallies).sum(dim=0))
    return disturbed


def _runs(spans: Sequence[Span], begin: int, end: int) -> Iterator[tuple[int, int, Span | None]]:
    """Yields the rows begin..end-1 span by span, and those between spans."""
    for span in sorted(spans, key=lambda s: s.begin):
        if begin < span.begin:
            yield begin, span.begin, None
        yield span.begin, span.end, span
        begin = span.end
    if begin < end:
        yield begin, end, None
