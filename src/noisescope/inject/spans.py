"""Whose the rows of a batch are: spans of neighbouring rows, each of one condition and draw."""

from dataclasses import dataclass

from torch import Tensor

from noisescope.inject.dose import SiteRecord
from noisescope.inject.rows import Rows
from noisescope.inject.session import Session
from noisescope.inject.tracker import Place
from noisescope.noise import Address


class RideError(RuntimeError):
    """Rows of a batch could not be told apart; the conditions must then run one by one."""


@dataclass(frozen=True)
class Span:
    """Neighbouring rows of a batch that one condition and draw hold.

    Attributes:
        session: The condition; None for rows that stay clean.
        draw: Number of the realisation.
        begin: First row.
        end: The row after the last.
        rows: Samples and positions of these rows; None: those that the pass itself tells.
    """

    session: Session | None
    draw: int
    begin: int
    end: int
    rows: Rows | None = None


@dataclass(frozen=True)
class Mark:
    """A condition that sees the site that runs: its rows, and its record of that site."""

    span: Span
    session: Session
    record: SiteRecord


@dataclass(frozen=True)
class Piece:
    """A tensor of rows begin..end-1 of the batch, as an operator's output."""

    place: Place
    begin: int
    end: int

    def holds(self, span: Span) -> bool:
        """Tells whether all rows of a span are in it."""
        return self.begin <= span.begin and span.end <= self.end


def own_address(mark: Mark, at: Address, kind: str, batch: int) -> Address:
    """Returns where a span's rows lie, under its seed and draw; notes how much is known of them.

    Args:
        mark: The condition, and its rows.
        at: Where they lie.
        kind: How much is known of them.
        batch: Rows of the whole batch.

    Raises:
        RideError: Rows lose their sample, and others are in the batch.
    """
    span, record = mark.span, mark.record
    if kind == "row" and span.end - span.begin != batch:
        raise RideError(f"rows of {record.site.name} lose their sample")
    if kind != "token" and record.rows != "row":
        record.rows = kind
    return at.rows(0, len(at), mark.session.seed, span.draw)


def note_forward(record: SiteRecord, tally: Tensor) -> None:
    """Writes an injection into the record of its site."""
    record.forward += 1
    record.add("forward", tally)
