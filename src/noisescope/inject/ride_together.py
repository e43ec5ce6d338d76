"""Conditions of one batch that all add Gaussian error: their rows are perturbed in one pass.

Every row brings the seed, the draw and the scale of its condition; scale 0 leaves it as it is. What
a row gets is what it would get by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from noisescope.inject.rows import Layout, Rows
from noisescope.inject.spans import Mark, Piece, Span, note_forward
from noisescope.noise import AbsoluteGaussian, RelativeGaussian
from noisescope.noise.fused import has_kernel, perturb_gaussian

_GAUSSIAN = (RelativeGaussian, AbsoluteGaussian)


@dataclass
class Together:
    """Perturbs outputs for many conditions at once.

    Tables of a step's rows are kept while the spans are the same: all sites that the same
    conditions select share one.
    """

    _tables: dict[Any, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def forget(self) -> None:
        """Forgets the tables: the spans have changed."""
        self._tables.clear()

    def perturb(self, piece: Piece, marks: Sequence[Mark], output: Tensor, layout: Layout) -> bool:
        """Perturbs an output in place, where that can be done in one pass.

        Args:
            piece: The rows that the output is of.
            marks: The conditions that select the site, each with rows in it.
            output: What the operator gave, of no one else.
            layout: What its last axis holds.

        Returns:
            Whether it was done.
        """
        rows = piece.place.rows
        if rows is None or not _can_share(marks, output, rows):
            return False
        site = marks[0].record.site
        own = rows.part(piece.begin, piece.end)
        at, kind = own.address(output, site.operator, layout, site.word)
        if kind == "row":
            return False
        first = marks[0].session.error_model
        per_row = len(at) // (piece.end - piece.begin)
        seed_R, draw_R, scale_R = self._table(piece, marks, per_row, output.device)
        flat_RD = output.view(len(scale_R), -1)
        _, tally_R6 = perturb_gaussian(
            flat_RD,
            replace(at, seed=seed_R, draw=draw_R),
            scale_R,
            isinstance(first, RelativeGaussian),
            first.rounding,
            out=flat_RD,
        )
        for mark in marks:
            begin, end = ((n - piece.begin) * per_row for n in (mark.span.begin, mark.span.end))
            if kind != "token" and mark.record.rows != "row":
                mark.record.rows = kind
            note_forward(mark.record, tally_R6[begin:end].sum(dim=0))
        return True

    def _table(
        self, piece: Piece, marks: Sequence[Mark], per_row: int, device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns seed, draw and scale of every row of the output."""
        key = (piece.begin, piece.end, per_row, device, *(mark.span for mark in marks))
        if key not in self._tables:
            batch = piece.end - piece.begin
            words_2B = torch.zeros(2, batch, dtype=torch.int64, device="cpu")
            scale_B = torch.zeros(batch, dtype=torch.float32, device="cpu")
            for mark in marks:
                begin, end = mark.span.begin - piece.begin, mark.span.end - piece.begin
                words_2B[0, begin:end] = mark.session.seed
                words_2B[1, begin:end] = mark.span.draw
                scale_B[begin:end] = mark.session.error_model.scale  # type: ignore[attr-defined]
            words_2R, scale_R = (
                t.repeat_interleave(per_row, dim=-1).to(device) for t in (words_2B, scale_B)
            )
            self._tables[key] = (words_2R[0], words_2R[1], scale_R)
        return self._tables[key]


def _can_share(marks: Sequence[Mark], output: Tensor, rows: Rows) -> bool:
    """Tells whether one pass serves all: Gaussian error of one kind, on all of an output."""
    models = [mark.session.error_model for mark in marks]
    return (
        len(marks) > 1
        and isinstance(models[0], _GAUSSIAN)
        and all(type(m) is type(models[0]) and m.rounding == models[0].rounding for m in models)
        and all(mark.session.selection.elements is None for mark in marks)
        and all(_is_of_the_pass(mark.span) for mark in marks)
        and marks[0].record.site.operator != "softmax"
        and not rows.is_mixed
        and output.is_contiguous()
        and output.numel() > 0
        and has_kernel(output)
    )


def _is_of_the_pass(span: Span) -> bool:
    return span.rows is None
