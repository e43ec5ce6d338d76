"""Which token each row of a captured tensor is, and which of them are padding.

The tokens are read from the call of the outermost module and the rows told by their shape. A
tensor whose rows cannot be told is counted whole, and its statistics say so.

Legend: B rows of the batch, T positions of this call, S positions with cached ones, N flat rows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisescope.inject.tokens import bound_arguments, first_tensor, has_tokens

_INSIDE_EXPERTS = re.compile(r"(^|\.)experts\.")


@dataclass(frozen=True)
class Labels:
    """The flat rows of one tensor.

    Attributes:
        is_present_N: bool, False for padding.
        label_N4: int64 call, row of the batch, position in the text and token id; -1 where unknown.
        is_traced: Whether the rows were told from padding.
    """

    is_present_N: Tensor
    label_N4: Tensor
    is_traced: bool = True


@dataclass(frozen=True)
class Tokens:
    """The tokens of one call.

    Attributes:
        call: Its number.
        is_present_BT: bool, False for padding.
        label_BT4: int64, as in `Labels`.
        is_masked: Whether a mask was given; without one nothing is padding.
        kept: `logits_to_keep` of the call: of how many last tokens, or of which, the head runs.
    """

    call: int
    is_present_BT: Tensor
    label_BT4: Tensor
    is_masked: bool
    kept: Tensor | int | None = None

    @classmethod
    def of_nothing(cls, call: int) -> "Tokens":
        """Returns the tokens of a call without any: no row of it can be told."""
        label_BT4 = torch.zeros(0, 0, 4, dtype=torch.int64)
        return cls(call, torch.ones(0, 0, dtype=torch.bool), label_BT4, is_masked=False)

    def labels(self, shape: torch.Size, device: torch.device, module: str) -> Labels:
        """Returns the labels of the rows of a tensor [..., C] that a module handled."""
        count = shape[:-1].numel()
        found = None if _INSIDE_EXPERTS.search(module) else self._select(shape)
        if found is None:
            label_N4 = torch.full((count, 4), -1, dtype=torch.int64, device=device)
            label_N4[:, 0] = self.call
            present_N = torch.ones(count, dtype=torch.bool, device=device)
            return Labels(present_N, label_N4, is_traced=not self.is_masked)
        present, label = found
        return Labels(present.reshape(-1).to(device), label.reshape(-1, 4).to(device))

    def _select(self, shape: torch.Size) -> tuple[Tensor, Tensor] | None:
        """Returns presence and labels along the leading axes of a shape, or None: unknown."""
        present, label = self.is_present_BT, self.label_BT4
        B, T = present.shape
        lead = shape[:-1]
        if len(lead) == 1 and lead[0] == B * T:
            return present, label
        if len(lead) == 2 and lead[0] == B and lead[1] != T and self.kept is not None:
            chosen = slice(-self.kept, None) if isinstance(self.kept, int) else self.kept
            present, label = present[:, chosen], label[:, chosen]
            T = present.shape[1]
        if len(lead) < 2 or lead[0] != B:
            return None
        # [B, T, H, D] before [B, H, T, D]: norms of heads run ahead of the transposition.
        at = next((axis for axis in range(1, len(lead)) if lead[axis] == T), None)
        if at is None:
            return None
        view = [B if axis == 0 else T if axis == at else 1 for axis in range(len(lead))]
        return present.view(view).expand(lead), label.view(*view, 4).expand(*lead, 4)


def read_tokens(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: int
) -> Tokens:
    """Returns the tokens of a call of a model or of a part of one.

    A mask that is longer than the tokens counts cached ones first, as Hugging Face has it.
    """
    given = bound_arguments(model, args, kwargs)
    tokens = first_tensor(given)
    if tokens is None:
        return Tokens.of_nothing(call)
    B, T = tokens.shape[0], tokens.shape[1] if has_tokens(tokens) else 1
    device = tokens.device
    past = _past_length(given.get("past_key_values"))
    mask_BS = _mask(given, B, T, past)
    if mask_BS is None:
        present_BT = torch.ones(B, T, dtype=torch.bool, device=device)
        position_BT = torch.arange(past, past + T, device=device).expand(B, T)
    else:
        present_BT = mask_BS[:, -T:].to(device)
        position_BT = mask_BS.cumsum(dim=1)[:, -T:].to(device) - 1
    row_BT = torch.arange(B, device=device)[:, None].expand(B, T)
    is_ids = not tokens.is_floating_point() and tokens.shape == (B, T)
    id_BT = tokens.to(torch.int64) if is_ids else torch.full_like(row_BT, -1)
    label_BT4 = torch.stack([torch.full_like(row_BT, call), row_BT, position_BT, id_BT], dim=-1)
    kept = given.get("logits_to_keep")
    is_choice = isinstance(kept, Tensor) or (isinstance(kept, int) and kept > 0)
    return Tokens(call, present_BT, label_BT4, mask_BS is not None, kept if is_choice else None)


def _mask(given: Mapping[str, Any], B: int, T: int, past: int) -> Tensor | None:
    """Returns which keys are no padding, bool [B, S], of a mask [B, S] or [B, 1, T, S].

    A mask of queries and keys says a key is padding where no query may see it; one for a cache of
    fixed size has keys to spare.
    """
    for name in ("attention_mask", "full_attention", "sliding_attention"):
        mask = given.get(name)
        if not isinstance(mask, Tensor) or mask.shape[0] != B or mask.shape[-1] < T:
            continue
        if mask.dim() == 2:
            return mask != 0
        if mask.dim() == 4 and mask.shape[-1] >= past + T:
            is_open = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            return is_open[..., : past + T].flatten(1, 2).any(dim=1)
    return None


def _past_length(cache: Any) -> int:
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
