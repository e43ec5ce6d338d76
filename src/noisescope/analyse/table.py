"""Records arranged as draws x samples per condition, paired by name and never by order.

A study in progress lacks some records: of each condition the block of draws x samples that is
complete is used, and what is left out is counted.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from noisescope.analyse.intervals import Interval, mean_interval
from noisescope.analyse.shares import share_interval
from noisescope.analyse.summary import Summary, degradation
from noisescope.analyse.verdict import Verdict
from noisescope.errors import InputError
from noisescope.records import CLEAN, Record


@dataclass(frozen=True)
class Block:
    """Draws and samples of a condition, each draw with every sample."""

    draws: tuple[int, ...]
    samples: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.draws) * len(self.samples)

    def common(self, other: "Block") -> "Block":
        """Returns the draws and samples that both have, in this one's order."""
        draws, samples = set(other.draws), set(other.samples)
        return Block(
            tuple(k for k in self.draws if k in draws),
            tuple(s for s in self.samples if s in samples),
        )


class Table:
    """Records arranged as draws x samples per condition.

    Args:
        records: The records of one measurement, complete or not.

    Raises:
        InputError: Two records of the same condition, draw and sample differ.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self._cells: dict[str, dict[int, dict[str, Record]]] = {}
        for record in records:
            row = self._cells.setdefault(record.condition, {}).setdefault(record.draw, {})
            known = row.setdefault(record.sample, record)
            if known is not record and known.as_json() != record.as_json():
                raise InputError(
                    f"two records of {record.condition!r}, draw {record.draw}, sample "
                    f"{record.sample!r} differ: give one record for each; measure them again"
                )
        self._blocks: dict[str, Block] = {}

    @cached_property
    def _order(self) -> dict[str, int]:
        """The place of each sample: as the clean model met them, then as they came."""
        rows = [*self._cells.get(CLEAN, {}).values()]
        rows += [row for draws in self._cells.values() for row in draws.values()]
        return {s: i for i, s in enumerate(dict.fromkeys(s for row in rows for s in row))}

    @property
    def conditions(self) -> list[str]:
        """The noisy conditions, in the order they were measured."""
        return [name for name in self._cells if name != CLEAN]

    def block(self, condition: str) -> Block:
        """Returns the complete draws x samples of a condition, among the clean model's samples."""
        if condition not in self._blocks:
            clean = {s for row in self._cells.get(CLEAN, {}).values() for s in row}
            found = {
                k: [s for s in row if s in clean or not clean]
                for k, row in self._cells[condition].items()
            }
            self._blocks[condition] = _largest_block(found, self._order)
        return self._blocks[condition]

    def left_out(self, condition: str) -> int:
        """Returns how many records of a condition lie outside its complete block."""
        return sum(map(len, self._cells[condition].values())) - len(self.block(condition))

    def values(self, condition: str, field: str, block: Block | None = None) -> NDArray[np.float64]:
        """Returns a field as [K, N]; None and infinities become NaN, truth values 0 and 1.

        Args:
            condition: Its name.
            field: A field of its records.
            block: Which draws and samples; None: all that are complete.
        """
        at = self.block(condition) if block is None else block
        cells = self._cells[condition]
        rows = [[getattr(cells[k][s], field) for s in at.samples] for k in at.draws]
        values = np.array(rows, dtype=np.float64).reshape(len(at.draws), len(at.samples))
        return np.where(np.isfinite(values), values, np.nan)  # None became NaN

    def clean_values(self, field: str, samples: Sequence[str]) -> NDArray[np.float64]:
        """Returns a field of the clean model, [N]; NaN where it has no such sample."""
        row = {s: r for cells in self._cells.get(CLEAN, {}).values() for s, r in cells.items()}
        found = [getattr(row[s], field) if s in row else None for s in samples]
        values = np.array(found, dtype=np.float64)
        return np.where(np.isfinite(values), values, np.nan)

    def groups(self, samples: Iterable[str]) -> list[Hashable] | None:
        """Returns the source of each sample, or None where each stands for itself."""
        found = [self._group_of.get(s, (s,)) for s in samples]
        return found if len(set(found)) < len(found) else None

    @cached_property
    def _group_of(self) -> Mapping[str, Hashable]:
        rows = (row for draws in self._cells.values() for row in draws.values())
        records = (r for row in rows for r in row.values())
        return {r.sample: r.group for r in records if r.group is not None}

    @property
    def baseline_accuracy(self) -> float:
        """Share of samples that the clean model answers right; NaN where nothing was generated."""
        return mean_of(self.clean_values("is_right", list(self._order)))

    def has_answers(self, condition: str) -> bool:
        """Tells whether anything was generated under a condition, among what is complete."""
        return bool(np.isfinite(self.values(condition, "is_right")).any())

    def accuracy_drops(self, condition: str, block: Block | None = None) -> NDArray[np.float64]:
        """Returns clean minus noisy correctness as [K, N]: 1, 0 or -1."""
        at = self.block(condition) if block is None else block
        clean = self.clean_values("is_right", at.samples)
        drops: NDArray[np.float64] = clean[None, :] - self.values(condition, "is_right", at)
        return drops

    def summary(
        self,
        condition: str,
        accuracy_verdict: Verdict | None = None,
        kl_verdict: Verdict | None = None,
    ) -> Summary:
        """Returns the line of one condition, with the verdicts on it."""
        block = self.block(condition)
        groups = self.groups(block.samples)
        accuracy = mean_of(self.values(condition, "is_right"))
        baseline = mean_of(self.clean_values("is_right", block.samples))

        def interval(field: str) -> Interval:
            return mean_interval(self.values(condition, field), groups=groups)

        return Summary(
            condition=condition,
            accuracy=accuracy,
            accuracy_drop=share_interval(self.accuracy_drops(condition), groups),
            degradation=degradation(baseline, accuracy),
            kl_nats=interval("kl_nats"),
            nll_change_nats=interval("nll_change_nats"),
            top1_agreement=interval("top1_agreement"),
            draws=len(block.draws),
            samples=len(block.samples),
            accuracy_verdict=accuracy_verdict,
            kl_verdict=kl_verdict,
            kl_p95_nats=interval("kl_p95_nats"),
            kl_p99_nats=interval("kl_p99_nats"),
        )


def mean_of(values: NDArray[np.float64]) -> float:
    """Returns the mean; NaN of nothing."""
    return float(values.mean()) if values.size else float("nan")


def _largest_block(samples_by_draw: Mapping[int, Sequence[str]], order: Mapping[str, int]) -> Block:
    """Returns the draws and the samples they share that make the most cells.

    From every draw on, the one that keeps most of the shared samples is added, one at a time.
    """
    has = {draw: set(samples) for draw, samples in sorted(samples_by_draw.items())}
    best_draws: list[int] = []
    best_shared: set[str] = set()
    for first in has:
        draws, shared = [first], has[first]
        while shared:
            if len(draws) * len(shared) > len(best_draws) * len(best_shared):
                best_draws, best_shared = draws, shared
            left = [draw for draw in has if draw not in draws]
            if not left:
                break
            following = max(left, key=lambda draw: len(shared & has[draw]))
            draws, shared = [*draws, following], shared & has[following]
    return Block(tuple(sorted(best_draws)), tuple(sorted(best_shared, key=order.__getitem__)))
