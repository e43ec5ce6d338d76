"""Greedy answers, batched over samples: one pass over the prompts, then a token at a time.

A loop of our own instead of the library's: an answer must not depend on the batch it is made in,
so each row ends at its own end of the context and leaves the batch and its cache, and the caller
learns which rows go on. Nothing of a model's generation defaults (penalties, suppressed tokens,
sampling) is applied.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    context_length: int | None,
    before_rows: Callable[[list[int]], None] | None = None,
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, up to and with its end token.

    Each answer fills what its own prompt leaves of the context; its last token may lie one beyond.

    Args:
        model: A causal language model; it runs where it lies, in whatever session is open.
        prompts: Token ids; they are padded on the left.
        max_new_tokens: The most tokens to generate.
        context_length: The most positions the model takes; None: not limited.
        before_rows: Told which prompts are the rows of the coming forward passes.
    """
    ends = end_tokens(model)
    answers: list[list[int]] = [[] for _ in prompts]

    def is_done(row: int) -> bool:
        answer = answers[row]
        used = len(prompts[row]) + len(answer)
        is_full = context_length is not None and used > context_length
        return is_full or len(answer) >= max_new_tokens or bool(answer and answer[-1] in ends)

    rows = [row for row in range(len(prompts)) if not is_done(row)]
    if not rows:
        return answers
    ids_BT, mask_BS = pad_left([prompts[row] for row in rows], model.device)
    cache, told = None, None
    while rows:
        if before_rows is not None and rows != told:
            before_rows(rows)
        token_B, cache = _next_tokens(model, ids_BT, mask_BS, cache)
        for row, token in zip(rows, token_B.tolist(), strict=True):
            answers[row].append(token)
        told, kept = rows, [place for place, row in enumerate(rows) if not is_done(row)]
        if kept and len(kept) < len(rows):
            kept_B = torch.tensor(kept, device=token_B.device)
            cache.batch_select_indices(kept_B)
            token_B, mask_BS = token_B[kept_B], mask_BS[kept_B]
        rows = [rows[place] for place in kept]
        ids_BT, mask_BS = token_B[:, None], torch.nn.functional.pad(mask_BS, (0, 1), value=1)
    return answers


def _next_tokens(model: Any, ids_BT: Tensor, mask_BS: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """Returns the most likely next token of each row [B], and the cache with this pass in it."""
    accepted = inspect.signature(model.forward).parameters
    position_BT = (mask_BS.cumsum(dim=1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]
    offered = {"position_ids": position_BT, "logits_to_keep": 1}
    options = {name: value for name, value in offered.items() if name in accepted}
    with torch.no_grad():
        output = model(
            input_ids=ids_BT,
            attention_mask=mask_BS,
            past_key_values=cache,
            use_cache=True,
            **options,
        )
    return output.logits[:, -1].argmax(dim=-1).to(ids_BT.device), output.past_key_values


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and attention mask, both int64 [B, T], padded with 0 on the left."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def end_tokens(model: Any) -> set[int]:
    """Returns the tokens that end an answer; none where the model names none."""
    given = getattr(model.generation_config, "eos_token_id", None)
    if given is None:
        return set()
    return {int(t) for t in given} if isinstance(given, (list, tuple)) else {int(given)}
