"""The oracle of measuring: one condition and draw at a time, in a plain session, with all logits.

Nothing here knows of rides, forks or joined caches. Answers are made one row at a time.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from noisescope.inject import Session, make_selection
from noisescope.measure import Condition, Score, make_sequences, score_riders, token_metrics
from noisescope.measure.score import Sequences
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import ErrorModel, RelativeGaussian

SEED = 7
CPU = torch.device("cpu")


def condition(name: str, error_model: ErrorModel | None = None, **selection: Any) -> Condition:
    """Returns a condition; by default of relative noise that is easily seen."""
    return Condition(name, error_model or RelativeGaussian(0.2), make_selection(**selection))


def texts(lengths: Sequence[int], seed: int = 0, vocabulary: int = 60) -> list[list[int]]:
    """Returns random token ids, one list per length."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths
    ]


def sequences_of(lengths: Sequence[int], prompts: int = 2) -> Sequences:
    """Returns texts of these lengths, scored from their token `prompts` on."""
    ids = texts(lengths)
    names = [f"s{n}" for n in range(len(ids))]
    return make_sequences(names, [t[:prompts] for t in ids], [t[prompts:] for t in ids], CPU)


@contextmanager
def plain_session(
    model: Any, given: Condition | None, draw: int, names: Sequence[str]
) -> Iterator[Session | None]:
    """Opens a session of one condition and draw; none for the clean model."""
    if given is None:
        yield None
        return
    session = Session(model, given.error_model, given.selection, SEED, draw, attest=False)
    session.name_samples(names)
    with session:
        yield session


def plain_logits(
    model: Any, sequences: Sequences, given: Condition | None, draw: int = 0
) -> tuple[Tensor, Session | None]:
    """Returns the logits [N, V] that predict the scored tokens, and the session they ran in."""
    with torch.no_grad(), plain_session(model, given, draw, sequences.names) as session:
        logits = model(
            input_ids=sequences.ids_BT, attention_mask=sequences.mask_BT, use_cache=False
        ).logits
    return logits[sequences.row_N, sequences.before_N], session


def plain_scores(
    model: Any, sequences: Sequences, conditions: Sequence[Condition], draws: int = 1
) -> list[list[Score]]:
    """Returns the scores of the clean model and of every condition and draw."""
    clean, _ = plain_logits(model, sequences, None)
    everyone = [(None, 0), *((c, k) for c in conditions for k in range(draws))]
    scores = []
    for given, draw in everyone:
        noisy, _ = plain_logits(model, sequences, given, draw)
        scores.append(_row_scores(clean, noisy, sequences))
    return scores


def _row_scores(clean: Tensor, noisy: Tensor, sequences: Sequences) -> list[Score]:
    found = token_metrics(clean, noisy, sequences.label_N)
    nll = found.clean_nll_nats + found.nll_change_nats
    columns = (found.kl_nats, nll, found.nll_change_nats, found.is_top1_same)
    parts = zip(*(c.split(list(sequences.counts)) for c in columns), strict=True)
    return [_score(*(c.numpy() for c in row)) for row in parts]


def _score(kl: Any, nll: Any, change: Any, same: Any) -> Score:
    if not len(kl):
        return Score(0, *[math.nan] * 6)
    p95, p99 = np.percentile(kl, [95, 99])
    return Score(len(kl), kl.mean(), p95, p99, nll.mean(), change.mean(), same.mean())


def fork_scores(
    model: Any,
    sequences: Sequences,
    conditions: Sequence[Condition],
    draws: int = 1,
    apart: TakenApart | None = None,
    rows: int = 1 << 20,
    **options: Any,
) -> tuple[list[list[Score]], dict[str, Session]]:
    """Returns what `score_riders` gives for the same, and the sessions with their records."""
    sessions = {
        c.name: Session(model, c.error_model, c.selection, SEED, attest=False) for c in conditions
    }
    riders = [Rider(c.name, sessions[c.name], k) for c in conditions for k in range(draws)]
    apart = apart or TakenApart(model)
    return score_riders(apart, sequences, riders, rows=rows, **options), sessions


def assert_close(
    found: Sequence[Sequence[Score]],
    expected: Sequence[Sequence[Score]],
    rel: float = 1e-5,
    abs: float = 1e-7,
) -> None:
    """Asserts that all scores are equal to rounding."""
    assert [len(rows) for rows in found] == [len(rows) for rows in expected]
    for n, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        for row, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            close = pytest.approx(asdict(other), rel=rel, abs=abs, nan_ok=True)
            assert asdict(one) == close, f"rider {n}, row {row}"


def one_row_answer(
    model: Any,
    prompt: Sequence[int],
    name: str,
    given: Condition | None,
    draw: int = 0,
    count: int = 8,
    context_length: int | None = None,
) -> list[int]:
    """Returns a greedy answer made by calls of the model with a batch of one and its own cache."""
    ends = model.generation_config.eos_token_id
    ends = {ends} if isinstance(ends, int) else set(ends or ())
    answer: list[int] = []
    fed, cache = list(prompt), None
    with torch.no_grad(), plain_session(model, given, draw, [name]):
        while len(answer) < count and not ends & set(answer[-1:]):
            if context_length is not None and len(prompt) + len(answer) > context_length:
                break
            output = model(input_ids=torch.tensor([fed]), past_key_values=cache, use_cache=True)
            cache, fed = output.past_key_values, [int(output.logits[0, -1].argmax())]
            answer += fed
    return answer
