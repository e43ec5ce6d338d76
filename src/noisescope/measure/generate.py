"""Greedy answers, batched over samples, by transformers' own generation.

What a model's directory says about generation (a temperature, penalties, suppressed tokens) is put
aside, except for its end tokens: answers are to differ by the noise alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig


def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    context_length: int | None,
    before_rows: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, up to and with its end token.

    An answer depends on its own prompt alone: where the context ends, each fills what its prompt
    leaves of it, and its last token may lie one beyond.

    Args:
        model: A causal language model; it runs where it lies, in whatever session is open.
        prompts: Token ids; they are padded on the left.
        max_new_tokens: The most tokens to generate.
        context_length: The most positions the model takes; None: not limited.
        before_rows: Told which prompts are the rows of the coming forward passes.
    """
    ends = _end_tokens(model)
    answers: list[list[int]] = [[] for _ in prompts]

    def room(row: int) -> int:
        left = max_new_tokens - len(answers[row])
        if context_length is None:
            return left
        return min(left, context_length + 1 - len(prompts[row]) - len(answers[row]))

    rows = [row for row in range(len(prompts)) if room(row) > 0]
    # The longest prompt reaches the end of the context first; the others go on without it.
    while rows:
        if before_rows is not None:
            before_rows(rows)
        texts = [[*prompts[row], *answers[row]] for row in rows]
        for row, new in zip(rows, _generate(model, texts, min(map(room, rows)), ends), strict=True):
            answers[row] += new
        rows = [row for row in rows if room(row) > 0 and answers[row][-1] not in ends]
    return answers


def _generate(
    model: Any, texts: Sequence[Sequence[int]], count: int, ends: set[int]
) -> list[list[int]]:
    """Returns up to `count` new tokens per text."""
    ids_BT, mask_BT = pad_left(texts, model.device)
    with torch.no_grad(), _without_defaults(model):
        out_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
    return [_until_end(row[ids_BT.shape[1] :].tolist(), ends) for row in out_BT]


@contextmanager
def _without_defaults(model: Any) -> Iterator[None]:
    """Puts the model's own defaults aside: `generate` takes from them what it is not told."""
    held = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = held


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and attention mask, both int64 [B, T], padded with 0 on the left."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _end_tokens(model: Any) -> set[int]:
    given = getattr(model.generation_config, "eos_token_id", None)
    if given is None:
        return set()
    return {int(t) for t in given} if isinstance(given, (list, tuple)) else {int(given)}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    for index, token in enumerate(tokens):
        if token in ends:
            return tokens[: index + 1]
    return tokens
