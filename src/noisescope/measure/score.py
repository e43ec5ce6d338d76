"""Scores noisy logits against clean ones along given answers, without generating anything."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisescope.measure.metrics import token_metrics


@dataclass(frozen=True)
class Sequences:
    """Prompts with the answers along which they are scored, as one right-padded batch.

    Attributes:
        ids_BT: int64, prompt then answer.
        mask_BT: int64, 1 for tokens.
        row_N: Row of each scored token.
        before_N: Position whose logits predict it.
        label_N: The token.
        counts: Scored tokens per row.
    """

    ids_BT: Tensor
    mask_BT: Tensor
    row_N: Tensor
    before_N: Tensor
    label_N: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """One row's metrics, means over its scored tokens; NaN where there are none."""

    tokens: int
    kl_nats: float
    nll_change_nats: float
    clean_nll_nats: float
    top1_agreement: float


def make_sequences(
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
        torch.tensor(ids_BT, device=device),
        torch.tensor(mask_BT, device=device),
        row_N,
        before_N,
        label_N,
        tuple(map(len, answers)),
    )


def answer_logits(model: Any, sequences: Sequences) -> Tensor:
    """Returns the logits [N, V] that predict each scored token, in the model's dtype."""
    with torch.no_grad():
        logits_BTV = model(
            input_ids=sequences.ids_BT, attention_mask=sequences.mask_BT, use_cache=False
        ).logits
    rows, before = (t.to(logits_BTV.device) for t in (sequences.row_N, sequences.before_N))
    picked: Tensor = logits_BTV[rows, before]
    return picked


def score_rows(clean_NV: Tensor, noisy_NV: Tensor, sequences: Sequences) -> list[Score]:
    """Returns each row's score."""
    counts = list(sequences.counts)
    if not clean_NV.shape[0]:
        nan = float("nan")
        return [Score(0, nan, nan, nan, nan) for _ in counts]
    metrics = token_metrics(clean_NV, noisy_NV, sequences.label_N.to(clean_NV.device))
    columns = (
        metrics.kl_nats,
        metrics.nll_change_nats,
        metrics.clean_nll_nats,
        metrics.is_top1_same,
    )
    means = [[part.mean().item() for part in column.split(counts)] for column in columns]
    return [Score(n, *values) for n, *values in zip(counts, *means, strict=True)]
