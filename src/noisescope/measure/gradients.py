"""One batch forward and several times backward under a watch: what error at every site would do.

The layers run once; each draw of seeds goes back by itself. Logits exist a few tokens at a time, as
in scoring. Nothing is averaged here; that is profiling.py's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescope.inject.effects import SiteEffect
from noisescope.inject.rows import Rows
from noisescope.inject.sites import SiteKey
from noisescope.inject.tokens import sample_word
from noisescope.inject.watch import Watch
from noisescope.measure.score import Sequences
from noisescope.measure.seeds import Estimator, draw_seeds
from noisescope.measure.taken_apart import TakenApart

# Of one token and one word: logits, probabilities, signs, seeds, and their gradients.
_BYTES_PER_LOGIT = 28
# Gradients of float16 would be lost below 6e-8.
_BOOST_OF_HALVES = 256.0

Effects = dict[SiteKey, SiteEffect]


@dataclass(frozen=True)
class Draws:
    """Which seeds are drawn.

    Attributes:
        seed: First key word of the random numbers.
        numbers: Of the draws.
        estimator: How they are drawn.
    """

    seed: int
    numbers: tuple[int, ...]
    estimator: Estimator = "signs"


def backward_effects(
    apart: TakenApart,
    watch: Watch,
    sequences: Sequences,
    prompt_lengths: Sequence[int],
    draws: Draws,
    logits_bytes: int,
) -> list[Effects]:
    """Returns the effects at every site, in nats per scored token of each sample, draw by draw.

    Args:
        apart: The model.
        watch: An open watch on it.
        sequences: The batch.
        prompt_lengths: Tokens of each row before the scored ones.
        draws: Which seeds.
        logits_bytes: The most that logits and what is made of them may take.
    """
    batch = _Batch(apart, sequences, _classes(sequences.ids_BT, prompt_lengths), draws)
    watch.begin(batch.class_BT)
    found: list[Effects] = [{} for _ in draws.numbers]
    with torch.enable_grad():
        top = batch.forward()
        seeds = batch.head_seeds(watch, top, logits_bytes, found)
        watch.rows = None
        for number, seed in enumerate(seeds if top.requires_grad else ()):
            is_last = number == len(seeds) - 1
            torch.autograd.backward([top], [seed], retain_graph=not is_last)
            _add(found[number], watch.take())
    for effects in found:
        for effect in effects.values():
            effect.shrink(batch.boost)
    return found


class _Batch:
    """A batch on its way through the model."""

    def __init__(
        self, apart: TakenApart, sequences: Sequences, class_BT: Tensor, draws: Draws
    ) -> None:
        self.apart, self.sequences, self.class_BT, self.draws = apart, sequences, class_BT, draws
        words = [sample_word(name) for name in sequences.names]
        self.word_B = torch.tensor(words, device=sequences.row_N.device)
        counts = torch.tensor(sequences.counts, device=sequences.row_N.device)
        is_half = apart.model.dtype == torch.float16
        self.boost = _BOOST_OF_HALVES if is_half else 1.0
        self.weight_N = self.boost * counts.float().rsqrt()[sequences.row_N]

    def forward(self) -> Tensor:
        """Returns what the first half makes of the scored tokens, with its graph."""
        apart, sequences = self.apart, self.sequences
        if apart.halves is not None:
            made = apart.halves.states(sequences.ids_BT, sequences.mask_BT, has_graph=True)
        else:
            made = apart.model(
                input_ids=sequences.ids_BT, attention_mask=sequences.mask_BT, use_cache=False
            ).logits
        rows, before = (t.to(made.device) for t in (sequences.row_N, sequences.before_N))
        picked: Tensor = made[rows, before]
        return picked

    def head_seeds(
        self, watch: Watch, top: Tensor, logits_bytes: int, found: list[Effects]
    ) -> list[Tensor]:
        """Returns the gradient of each draw at the top of the first half; notes the head's effects.

        Args:
            watch: The open watch.
            top: States [N, D] of the scored tokens, or their logits where the model is not cut.
            logits_bytes: The most that logits may take.
            found: Receives the effects, draw by draw.
        """
        seeds = [torch.zeros_like(top) for _ in self.draws.numbers]
        for chunk in self._chunks(len(top), logits_bytes):
            if self.apart.halves is None:
                for n, made in enumerate(self._seeds(top.detach()[chunk], chunk)):
                    seeds[n][chunk] = made
                continue
            watch.rows = self._token_rows(chunk)
            states = top.detach()[chunk].requires_grad_()
            logits = self.apart.halves.logits(states, has_graph=True)
            for n, made in enumerate(self._seeds(logits.detach(), chunk)):
                is_last = n == len(seeds) - 1
                (seeds[n][chunk],) = torch.autograd.grad(
                    logits, states, made, retain_graph=not is_last
                )
                _add(found[n], watch.take())
        return seeds

    def _chunks(self, tokens: int, logits_bytes: int) -> Iterator[slice]:
        each = max(16, logits_bytes // (_BYTES_PER_LOGIT * self.apart.vocabulary))
        for begin in range(0, tokens, each):
            yield slice(begin, min(tokens, begin + each))

    def _seeds(self, logits_NV: Tensor, chunk: slice) -> Iterator[Tensor]:
        """Yields each draw's gradient of the logits of a chunk, in their dtype."""
        rows = self.sequences.row_N[chunk]
        device = logits_NV.device
        for draw in self.draws.numbers:
            made = draw_seeds(
                logits_NV,
                self.word_B[rows].to(device),
                self.sequences.before_N[chunk].to(device),
                self.draws.seed,
                draw,
                self.draws.estimator,
            )
            yield (made * self.weight_N[chunk, None].to(device)).to(logits_NV.dtype)

    def _token_rows(self, chunk: slice) -> Rows:
        """Returns rows of one token each, by their row in the batch and their class."""
        row_N, before_N = self.sequences.row_N[chunk], self.sequences.before_N[chunk]
        class_N1 = self.class_BT[row_N, before_N][:, None]
        return Rows(0, 0, row_N[:, None], class_N1, torch.zeros_like(row_N), keys=1)


def _classes(ids_BT: Tensor, prompt_lengths: Sequence[int]) -> Tensor:
    """Returns the class of each position: 0 the first, 1 the rest of the prompt, 2 what follows."""
    position_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    length_B1 = torch.tensor(list(prompt_lengths), device=ids_BT.device)[:, None]
    is_answer_BT = (position_T >= length_B1).long()
    return torch.where(position_T > 0, 1 + is_answer_BT, 0)


def _add(held: Effects, new: Effects) -> None:
    for key, effect in new.items():
        if key in held:
            held[key].add(effect)
        else:
            held[key] = effect
