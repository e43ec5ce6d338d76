"""What a graph that computes its noise itself reads and writes: tensors that stay where they are.

Seed, draw and scale of every row are read from tables, so that another seed, scale or condition is
no other graph; the dose is added up in a table that is read when somebody asks for it. One set of
tables belongs to one model and shape of session.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from noisescope.inject.rows import RowsOf
from noisescope.inject.sites import Site, SiteKey
from noisescope.noise import TALLY_FIELDS

# More sites than a model has; sites beyond are perturbed by an operator of their own.
CAPACITY = 4096
_FIELDS = len(TALLY_FIELDS) + 1  # the tally, and how often


class Condition(Protocol):
    """A session, as tables know it."""

    @property
    def seed(self) -> int:
        """Key word of the random numbers."""

    @property
    def error_model(self) -> Any:
        """Gaussian error."""

    def treatment(self, site: Site) -> str:
        """Returns what error falls on at a site, or nothing."""

    def note_from_graph(self, key: SiteKey, times: int, tally: Tensor, is_named: bool) -> None:
        """Notes what arrived at a site in some passes."""

    def read_later(self, read: Callable[[], None]) -> None:
        """Keeps what is to be called before records are read."""


class Tables:
    """Legend: B rows of the batch (1 where all are alike), N sites, C conditions and one for none.

    Args:
        device: Of the model.
        keys: The sites by number; it grows.
        conditions: How many conditions there are.

    Attributes:
        words_2B: int64, seed and draw of each row.
        scale_NB: float32, the scale of each row at each site; 0 leaves it as it is.
        member_BC: float64, 1 at the condition of each row.
        aboard_C: float64, how many spans of rows a condition has.
        tally_NCF: float64, the tally at each site for each condition, and how often it ran.
    """

    def __init__(self, device: torch.device, keys: list[SiteKey], conditions: int) -> None:
        self.device, self.keys, self.count = device, keys, conditions
        self.tally_NCF = _static(
            torch.zeros(CAPACITY, conditions + 1, _FIELDS, dtype=torch.float64, device=device)
        )
        self._sets: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        self._owners: list[weakref.ref[Condition]] = []
        self._spans: tuple[RowsOf, ...] = ()
        self._filled: tuple[object, int] = (None, 0)
        self.is_named = True

    def set(
        self, conditions: Sequence[Condition], spans: Sequence[RowsOf], batch: int, is_named: bool
    ) -> None:
        """Tells whose the rows of the coming pass are."""
        is_other = [owner() for owner in self._owners] != list(conditions)
        if is_other or is_named != self.is_named:
            self.flush()
            self._owners = [weakref.ref(condition) for condition in conditions]
        for condition in conditions:
            condition.read_later(self.flush)
        self.is_named = is_named
        self._spans = tuple(spans)
        if batch not in self._sets:
            self._sets[batch] = self._new_set(batch)
        self.words_2B, self.scale_NB, self.member_BC, self.aboard_C = self._sets[batch]
        state = (batch, self._spans, *((c.seed, c.error_model) for c in conditions))
        if self._filled != (state, len(self.keys)):
            self._fill_rows(conditions)
            self._filled = (state, len(self.keys))

    def add_site(self, number: int) -> None:
        """Fills the row of a site that a graph has just met."""
        owners = [owner() for owner in self._owners]
        self.scale_NB[number].copy_(self._scales(number, [o for o in owners if o is not None]))

    def flush(self) -> None:
        """Writes what has arrived into the records of its conditions, and begins anew."""
        if not self.keys or not self._owners:
            return
        tally_NCF = self.tally_NCF[: len(self.keys)].to("cpu", copy=True)
        self.tally_NCF.zero_()
        for c, owner in enumerate(self._owners):
            condition = owner()
            for number, key in enumerate(self.keys):
                times = int(tally_NCF[number, c, -1])
                if condition is not None and times and condition.treatment(Site(*key)):
                    tally = tally_NCF[number, c, :-1].clone()
                    condition.note_from_graph(key, times, tally, self.is_named)

    def _new_set(self, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        columns = self.count + 1
        shapes: tuple[tuple[Any, torch.dtype], ...] = (
            ((2, batch), torch.int64),
            ((CAPACITY, batch), torch.float32),
            ((batch, columns), torch.float64),
            ((columns,), torch.float64),
        )
        made = [_static(torch.zeros(s, dtype=t, device=self.device)) for s, t in shapes]
        return made[0], made[1], made[2], made[3]

    def _fill_rows(self, conditions: Sequence[Condition]) -> None:
        batch = self.words_2B.shape[1]
        words_2B = torch.zeros(2, batch, dtype=torch.int64, device="cpu")
        member_BC = torch.zeros(batch, self.count + 1, dtype=torch.float64, device="cpu")
        aboard_C = torch.zeros(self.count + 1, dtype=torch.float64, device="cpu")
        member_BC[:, -1] = 1
        for of in self._spans:
            rows = slice(of.begin, of.end)
            words_2B[0, rows], words_2B[1, rows] = conditions[of.condition].seed, of.draw
            member_BC[rows] = 0
            member_BC[rows, of.condition] = 1
            aboard_C[of.condition] += 1
        known = len(self.keys)
        scales = [self._scales(number, conditions) for number in range(known)]
        self.words_2B.copy_(words_2B)
        self.member_BC.copy_(member_BC)
        self.aboard_C.copy_(aboard_C)
        if scales:
            self.scale_NB[:known].copy_(torch.stack(scales))

    def _scales(self, number: int, conditions: Sequence[Condition]) -> Tensor:
        scale_B = torch.zeros(self.scale_NB.shape[1], device="cpu")
        site = Site(*self.keys[number])
        for of in self._spans:
            condition = conditions[of.condition]
            if condition.treatment(site):
                scale_B[of.begin : of.end] = condition.error_model.scale
        return scale_B


def _static(tensor: Tensor) -> Tensor:
    """Promises the compiler that a tensor stays where it is, so that it may be written into."""
    torch._dynamo.mark_static_address(tensor)
    return tensor
