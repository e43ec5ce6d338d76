"""One step of greedy decoding: what a pass is given, and which token it gives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ROUNDING_STEPS = {torch.float32: 64.0, torch.float64: 64.0}
_ROUNDING_STEPS_OF_HALVES = 4.0


def call_arguments(accepted: Any, ids_BT: Tensor, mask_BS: Tensor) -> dict[str, Any]:
    """Returns the arguments of a pass of a generation: a prompt's, or the next token's."""
    position_BT = (mask_BS.cumsum(dim=1) - 1).clamp_min(0)[:, -ids_BT.shape[1] :]
    offered = {"position_ids": position_BT, "logits_to_keep": 1}
    options = {name: value for name, value in offered.items() if name in accepted}
    return {"input_ids": ids_BT, "attention_mask": mask_BS, "use_cache": True, **options}


def best_tokens(logits_RV: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the most likely token of each row [R], and 1 where the second is within rounding.

    What counts as rounding is 64 units in the last place of the row's largest logit in float32 (a
    batch of another size adds up in another order), and 4 in the short formats.
    """
    token_R = logits_RV.argmax(dim=-1)
    best_R1 = logits_RV.gather(1, token_R[:, None])
    second_R = logits_RV.scatter(1, token_R[:, None], -torch.inf).amax(dim=-1)
    steps = _ROUNDING_STEPS.get(logits_RV.dtype, _ROUNDING_STEPS_OF_HALVES)
    # Models that forbid a token give it minus infinity, which is no size.
    size_R = logits_RV.abs().masked_fill(logits_RV.isinf(), 0.0).amax(dim=-1).float()
    gap_R = best_R1[:, 0].float() - second_R.float()
    return token_R, (gap_R <= steps * torch.finfo(logits_RV.dtype).eps * size_R).long()


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns ids and attention mask, both int64 [B, T], padded with 0 on the left."""
    longest = max(map(len, rows))
    ids = [[0] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def end_tokens(model: Any) -> frozenset[int]:
    """Returns the tokens that end an answer, from the generation configuration."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if ends is None:
        return frozenset()
    return frozenset(map(int, ends if isinstance(ends, (list, tuple)) else [ends]))
