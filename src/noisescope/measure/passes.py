"""Backward passes over some samples: a piece of a profile that any process can carry out.

A pass needs no other, and its result is plain numbers, so a profile is the same whoever ran them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from noisescope.errors import MemoryShortError
from noisescope.inject.sites import SiteKey
from noisescope.inject.watch import Overwritten, Watch
from noisescope.inject.weights import DisturbedWeights
from noisescope.measure.gradients import Draws, Effects, backward_effects
from noisescope.measure.memory import (
    GIB,
    WEIGHTS_SHARE,
    is_out_of_memory,
    rows_of_profiling,
)
from noisescope.measure.score import make_sequences
from noisescope.measure.seeds import Estimator
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import ErrorModel

_LOGITS_SHARE = 8


@dataclass(frozen=True)
class Texts:
    """What a profile runs over.

    Attributes:
        names: Names of the samples.
        prompts: Token ids that are not scored, at least one each.
        answers: Token ids that are scored.
    """

    names: tuple[str, ...]
    prompts: tuple[Sequence[int], ...]
    answers: tuple[Sequence[int], ...]


@dataclass(frozen=True)
class ProfilePass:
    """Some samples through the model, and back once for each of some draws.

    Attributes:
        name: Unique within a profile; no other meaning.
        texts: The samples.
        draws: Numbers of the draws of seeds.
        seed: First key word of the random numbers.
        error_models: What would be added.
        estimator: See `draw_seeds`.
        operators: Operators whose sites are predicted; None: all.
    """

    name: str
    texts: Texts
    draws: tuple[int, ...]
    seed: int
    error_models: tuple[ErrorModel, ...]
    estimator: Estimator
    operators: tuple[str, ...] | None


@dataclass(frozen=True)
class PassPart:
    """What one batch of a pass left.

    Attributes:
        samples: Their places in the pass.
        effects: At every site, draw by draw; tensors on the CPU.
    """

    samples: tuple[int, ...]
    effects: tuple[Effects, ...]


@dataclass(frozen=True)
class PassResult:
    """What came of a pass.

    Attributes:
        name: The pass's name.
        parts: One per batch.
        seen: Sites in the order they first ran.
        boundaries: Where layers begin, likewise.
    """

    name: str
    parts: tuple[PassPart, ...]
    seen: tuple[SiteKey, ...]
    boundaries: tuple[SiteKey, ...]


class Passes:
    """Runs passes on a model of this process, in smaller batches where memory is short.

    Args:
        apart: The model.
        gib: Memory that a batch may take beside the model.
        context_length: The most tokens that a text may have.
        most_rows: The most rows of a batch.
    """

    def __init__(
        self,
        apart: TakenApart,
        gib: float = 1.0,
        context_length: int | None = None,
        most_rows: int | None = None,
    ) -> None:
        self._apart, self._gib, self._context_length = apart, gib, context_length
        self._weights = DisturbedWeights(int(gib * GIB / WEIGHTS_SHARE))
        is_alone = apart.minds_length or apart.has_experts
        self._allowed = 1 if is_alone else most_rows
        self._most_rows = self._allowed
        self._copies = False  # which changes no number

    def run(self, asked: ProfilePass, tell: Callable[[float], None] | None = None) -> PassResult:
        """Runs a pass.

        Args:
            asked: The pass.
            tell: Told the share of it that is done.

        Raises:
            MemoryShortError: There is no memory for even one row.
        """
        # Afresh for every pass, or one would depend on those before it.
        self._most_rows = self._allowed
        texts, parts = asked.texts, list[PassPart]()
        seen, boundaries = dict[SiteKey, None](), dict[SiteKey, None]()
        begin, count = 0, len(texts.names)
        while begin < count:
            if tell is not None:
                tell(begin / count)
            some = range(begin, min(count, begin + self._rows(texts)))
            try:
                with Watch(
                    self._apart.model, asked.error_models, self._copies, asked.operators
                ) as watch:
                    watch.weights = self._weights
                    effects = self._effects(asked, watch, some)
            except (RuntimeError, MemoryError) as error:
                self._make_plainer(error, len(some))
                continue
            parts.append(PassPart(tuple(some), effects))
            seen |= dict.fromkeys(watch.seen)
            boundaries |= dict.fromkeys(watch.boundaries)
            begin = some.stop
        return PassResult(asked.name, tuple(parts), tuple(seen), tuple(boundaries))

    def _rows(self, texts: Texts) -> int:
        """Returns the most rows of a batch."""
        pairs = zip(texts.prompts, texts.answers, strict=True)
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        rows = rows_of_profiling(self._apart.model, longest, self._gib)
        return min(rows, self._most_rows or rows)

    def _effects(self, asked: ProfilePass, watch: Watch, some: range) -> tuple[Effects, ...]:
        texts = asked.texts
        sequences = make_sequences(
            [texts.names[n] for n in some],
            [texts.prompts[n] for n in some],
            [texts.answers[n] for n in some],
            self._apart.device,
            self._context_length,
        )
        found = backward_effects(
            self._apart,
            watch,
            sequences,
            [len(texts.prompts[n]) for n in some],
            Draws(asked.seed, asked.draws, asked.estimator),
            int(self._gib * GIB) // _LOGITS_SHARE,
        )
        return tuple({key: effect.cpu() for key, effect in one.items()} for one in found)

    def _make_plainer(self, error: RuntimeError | MemoryError, rows: int) -> None:
        """Prepares a plainer attempt, or raises where there is none."""
        if isinstance(error, Overwritten) and not self._copies:
            self._copies = True
            return
        if not is_out_of_memory(error):
            raise error
        if rows <= 1:
            raise MemoryShortError(
                "memory ran out in a backward pass over one sample: give shorter samples, "
                "--dtype bfloat16, or a device with more memory"
            ) from error
        self._most_rows = rows // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
