"""Greedy answers, batched over samples, by transformers' own generation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

# Said in full: what is left out would be taken from the model's own defaults, and a repetition
# penalty or a temperature there would make the answers of another kind.
_PLAIN_GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}


def greedy_answers(
    model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int, context_length: int | None
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, up to and with its end token.

    Args:
        model: A causal language model; it runs where it lies, in whatever session is open.
        prompts: Token ids; they are padded on the left.
        max_new_tokens: The most tokens to generate; fewer where the context ends sooner.
        context_length: The most positions the model takes; None: not limited.
    """
    ids_BT, mask_BT = pad_left(prompts, model.device)
    longest = ids_BT.shape[1]
    room = max_new_tokens if context_length is None else context_length - longest + 1
    ends = _end_tokens(model)
    config = GenerationConfig(
        **_PLAIN_GREEDY,
        max_new_tokens=max(1, min(max_new_tokens, room)),
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
    )
    with torch.no_grad():
        out_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=config)
    return [_until_end(row[longest:].tolist(), ends) for row in out_BT]


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
