"""Scores riders along given answers, without generating: KL, NLL and top tokens, token by token.

The layers run once for everyone (sharing.py); then a few tokens at a time get their logits
(streaming.py) and are compared, so all logits of all rows never exist at once. Where a model cannot
be taken apart or its layers shared, riders run one after the other, which gives the same numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescope.inject import Ride, Span
from noisescope.inject.rows import Rows
from noisescope.inject.tokens import sample_word
from noisescope.measure.metrics import CleanTokens, TokenMetrics
from noisescope.measure.sharing import Growth, Rider
from noisescope.measure.taken_apart import TakenApart

# Bytes per logit: itself, its float64 logarithm of two distributions, and the clean probability.
_BYTES_PER_LOGIT = 28
_LEAST_TOKENS = 16
_MOST_TOKENS = 4096


@dataclass(frozen=True)
class Sequences:
    """Prompts with the answers along which they are scored, as one right-padded batch.

    Attributes:
        names: Names of the samples.
        ids_BT: int64, prompt then answer.
        mask_BT: int64, 1 for tokens.
        row_N: Row of each scored token.
        before_N: Position whose logits predict it.
        label_N: The token.
        counts: Scored tokens per row.
    """

    names: tuple[str, ...]
    ids_BT: Tensor
    mask_BT: Tensor
    row_N: Tensor
    before_N: Tensor
    label_N: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """One row's metrics, means and percentiles over its scored tokens; NaN where there are none."""

    tokens: int
    kl_nats: float
    kl_p95_nats: float
    kl_p99_nats: float
    nll_nats: float
    nll_change_nats: float
    top1_agreement: float


def make_sequences(
    names: Sequence[str],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    device: torch.device,
    context_length: int | None = None,
) -> Sequences:
    """Joins prompts and answers; an answer's last token may lie one beyond the context."""
    rows, places = [], []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = [*prompt, *answer]
        places += [(row, i - 1, ids[i]) for i in range(len(prompt), len(ids))]
        rows.append(ids[:context_length])
    longest = max(map(len, rows))
    ids_BT = [row + [0] * (longest - len(row)) for row in rows]
    mask_BT = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    row_N, before_N, label_N = torch.tensor(places, device=device).reshape(-1, 3).T.long()
    return Sequences(
        tuple(names),
        torch.tensor(ids_BT, device=device),
        torch.tensor(mask_BT, device=device),
        row_N,
        before_N,
        label_N,
        tuple(map(len, answers)),
    )


def score_riders(
    apart: TakenApart,
    sequences: Sequences,
    riders: Sequence[Rider],
    *,
    rows: int,
    logits_bytes: int = 1 << 28,
    is_plain: bool = False,
) -> list[list[Score]]:
    """Scores the clean model and every rider; returns the rows' scores, the clean model's first.

    Args:
        apart: The model, taken apart for these riders' sessions.
        sequences: What is scored.
        riders: Conditions under their draws.
        rows: The most rows of a pass through the layers.
        logits_bytes: The most that logits and what is made of them may take.
        is_plain: Every rider runs alone.

    Raises:
        RideError: The rows of one batch cannot be told apart.
    """
    everyone = [Rider("", None), *riders]
    columns: dict[int, list[Tensor]] = {}
    clean_ND: Tensor | None = None
    # Group by group, so that what is held of the riders does not grow with their number.
    for group in _groups(apart, sequences, everyone, rows, is_plain):
        found = _states(apart, sequences, [everyone[n] for n in group])
        clean_ND = found[0] if clean_ND is None else clean_ND
        new = {n: states for n, states in zip(group, found, strict=True) if n not in columns}
        compared = _compare(
            apart, sequences, clean_ND, [everyone[n] for n in new], list(new.values()), logits_bytes
        )
        columns |= dict(zip(new, compared, strict=True))
    return [_row_scores(columns[n], sequences.counts) for n in range(len(everyone))]


def _groups(
    apart: TakenApart,
    sequences: Sequences,
    everyone: Sequence[Rider],
    rows: int,
    is_plain: bool,
) -> Iterator[list[int]]:
    """Yields who runs together: the clean rows, and as many riders as the rows allow."""
    noisy = range(1, len(everyone))
    size = rows // len(sequences.names) - 1
    is_plain = is_plain or size < 1
    shared = [n for n in noisy if not is_plain and apart.is_shared(everyone[n].session)]
    shared.sort(key=lambda n: apart.first_region(everyone[n].session))
    for begin in range(0, max(1, len(shared)), max(1, size)):
        yield [0, *shared[begin : begin + size]]
    yield from ([n] for n in sorted(set(noisy) - set(shared)))


def _states(apart: TakenApart, sequences: Sequences, group: Sequence[Rider]) -> list[Tensor]:
    """Returns each rider's states at the scored tokens [N, D]; logits where those are one pass."""
    B = len(sequences.names)
    noisy = [rider for rider in group if rider.session is not None]
    if not noisy:
        return [_picked(apart.run(sequences.ids_BT, sequences.mask_BT), sequences, 0)]
    ride = Ride(apart.model, [rider.session for rider in noisy if rider.session is not None])
    if len(noisy) == len(group):  # alone, in a batch of its own
        ride.reader.names = sequences.names
        ride.spans = [Span(noisy[0].session, noisy[0].draw, 0, B)]
        with ride:
            return [_picked(apart.run(sequences.ids_BT, sequences.mask_BT), sequences, 0)]
    waiting = [(apart.first_region(rider.session), rider) for rider in noisy]
    growth = Growth(apart.entries, ride, B, waiting)
    ride.reader.names = sequences.names * growth.copies
    with growth.attached(), ride:
        states = apart.run(
            sequences.ids_BT.repeat(growth.copies, 1), sequences.mask_BT.repeat(growth.copies, 1)
        )
    blocks = len(states) // B
    # Who begins in the head has the clean model's states.
    return [_picked(states, sequences, n * B if n < blocks else 0) for n in range(len(group))]


def _picked(states: Tensor, sequences: Sequences, begin: int) -> Tensor:
    rows, before = (t.to(states.device) for t in (sequences.row_N, sequences.before_N))
    return states[rows + begin, before]


def _compare(
    apart: TakenApart,
    sequences: Sequences,
    clean_ND: Tensor,
    riders: Sequence[Rider],
    states: Sequence[Tensor],
    logits_bytes: int,
) -> list[list[Tensor]]:
    """Returns per rider the columns KL, NLL, change of NLL and agreement, each float64 [N]."""
    N = len(sequences.label_N)
    if not N:
        return [[torch.zeros(0, dtype=torch.float64)] * 4 for _ in riders]
    together = max(_LEAST_TOKENS, logits_bytes // (_BYTES_PER_LOGIT * apart.vocabulary))
    each = max(1, min(_MOST_TOKENS, together // (1 + len(riders))))
    step = max(1, together // each - 1)
    noisy = [n for n, rider in enumerate(riders) if rider.session is not None]
    sessions = [rider.session for rider in riders if rider.session is not None]
    ride = Ride(apart.model, sessions) if apart.halves is not None and sessions else None
    parts: list[list[TokenMetrics]] = [[] for _ in riders]
    for begin in range(0, N, each):
        chunk = slice(begin, min(N, begin + each))
        with ride if ride is not None else nullcontext():
            label_N = sequences.label_N[chunk]
            clean_NV = _logits(apart, ride, sequences, chunk, [Rider("", None)], [clean_ND])
            clean = CleanTokens(clean_NV, label_N.to(clean_NV.device))
            # The clean model is compared with itself: other logits would differ by rounding.
            for n in set(range(len(riders))) - set(noisy):
                parts[n].append(clean.compare(clean_NV[None]))
            for first in range(0, len(noisy), step):
                some = noisy[first : first + step]
                logits = _logits(
                    apart,
                    ride,
                    sequences,
                    chunk,
                    [riders[n] for n in some],
                    [states[n] for n in some],
                )
                found = clean.compare(logits.unflatten(0, (len(some), -1)))
                for k, n in enumerate(some):
                    parts[n].append(found.part(k))
    return [_columns(mine) for mine in parts]


def _columns(parts: Sequence[TokenMetrics]) -> list[Tensor]:
    rows = [
        (p.kl_nats, p.nll_change_nats + p.clean_nll_nats, p.nll_change_nats, p.is_top1_same)
        for p in parts
    ]
    return [torch.cat([t.flatten() for t in column]) for column in zip(*rows, strict=True)]


def _logits(
    apart: TakenApart,
    ride: Ride | None,
    sequences: Sequences,
    chunk: slice,
    riders: Sequence[Rider],
    states: Sequence[Tensor],
) -> Tensor:
    """Returns the logits [K N, V] of a chunk of tokens for each of K riders, one after the other.

    The head's own noise falls here: every token is a row with its sample and position.
    """
    states_ND = torch.cat([tensor[chunk] for tensor in states])
    if apart.halves is None:
        return states_ND  # logits already
    if ride is not None:
        n = len(states[0][chunk])
        rows = _token_rows(sequences, chunk)
        ride.spans = [
            Span(rider.session, rider.draw, k * n, (k + 1) * n, rows)
            for k, rider in enumerate(riders)
        ]
    return apart.halves.logits(states_ND)


def _token_rows(sequences: Sequences, chunk: slice) -> Rows:
    """Returns rows of one token each."""
    words = torch.tensor([sample_word(name) for name in sequences.names])
    sample_N1 = words.to(sequences.row_N.device)[sequences.row_N[chunk]][:, None]
    before_N1 = sequences.before_N[chunk][:, None]
    return Rows(0, 0, sample_N1, before_N1, torch.zeros_like(before_N1[:, 0]), keys=1)


def _row_scores(columns: Sequence[Tensor], counts: Sequence[int]) -> list[Score]:
    rows = zip(*(column.split(list(counts)) for column in columns), strict=True)
    return [_score(*row) for row in rows]


def _score(kl: Tensor, nll: Tensor, nll_change: Tensor, is_same: Tensor) -> Score:
    if not len(kl):
        nan = float("nan")
        return Score(0, nan, nan, nan, nan, nan, nan)
    p95, p99 = torch.quantile(kl, torch.tensor([0.95, 0.99], dtype=torch.float64)).tolist()
    means = [column.mean().item() for column in (nll, nll_change, is_same)]
    return Score(len(kl), kl.mean().item(), p95, p99, *means)
