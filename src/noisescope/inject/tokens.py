"""Reads the tokens of a forward call: which sample each row is, and where in it each token stands.

Unnamed samples are named by their own tokens: the word at a position is a hash of the tokens up to
it, so a cached step, which sees one token, meets the same noise as a later pass over the whole
text.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisescope.inject.rows import Rows
from noisescope.noise import site_word

_WORD = 0xFFFFFFFF


@dataclass
class TokenReader:
    """Turns the arguments of each forward call into `Rows`; remembers the prefix of a cached text.

    Attributes:
        seed: Key word of the random numbers.
        draw: Number of the realisation.
        names: Names of the samples of the rows, or None to name them by their tokens.
    """

    seed: int
    draw: int
    names: tuple[str | int, ...] | None = None
    _prefix_B: Tensor | None = None
    _prefix_length: int = 0

    def read(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Rows | None:
        """Returns the rows of this call, or None where no argument is a tensor with a batch."""
        given = _bound(model, args, kwargs)
        tokens = _first_tensor(given)
        if tokens is None:
            return None
        B, T = tokens.shape[0], tokens.shape[1] if _has_tokens(tokens) else 1
        mask_BS = given.get("attention_mask")
        if not isinstance(mask_BS, Tensor) or mask_BS.dim() != 2 or mask_BS.shape[0] != B:
            mask_BS = None
        past = _past_length(given, mask_BS, T)
        if mask_BS is None:
            present_BT = torch.ones(B, T, dtype=torch.int64, device=tokens.device)
            position_BT = _positions(given, B, T, past, tokens.device)
            first_key_B = torch.zeros(B, dtype=torch.int64, device=tokens.device)
        else:
            counted_BS = mask_BS.to(torch.int64).cumsum(dim=1)
            present_BT = mask_BS[:, -T:].to(torch.int64)
            position_BT = (counted_BS[:, -T:] - 1).clamp_min(0)
            first_key_B = -(counted_BS == 0).sum(dim=1)
        sample_BT = self._samples(given.get("input_ids"), present_BT, position_BT, past)
        return Rows(self.seed, self.draw, sample_BT, position_BT, first_key_B, past + T)

    def _samples(self, ids_BT: Any, present_BT: Tensor, position_BT: Tensor, past: int) -> Tensor:
        B, T = position_BT.shape
        if self.names is not None and len(self.names) == B:
            words = torch.tensor([sample_word(n) for n in self.names], device=position_BT.device)
            return words[:, None].expand(B, T)
        if not isinstance(ids_BT, Tensor) or ids_BT.shape != position_BT.shape:
            return torch.arange(B, device=position_BT.device)[:, None].expand(B, T)
        prefix_BT = (_mix(ids_BT, position_BT) * present_BT).cumsum(dim=1) & _WORD
        held = self._prefix_B
        if past and held is not None and self._prefix_length == past and held.shape[0] == B:
            prefix_BT = (prefix_BT + held[:, None].to(prefix_BT.device)) & _WORD
        self._prefix_B, self._prefix_length = prefix_BT[:, -1], past + T
        return prefix_BT


def sample_word(name: str | int) -> int:
    """Returns the 32-bit word of a sample's name; a number names the same sample as its text."""
    return site_word(f"sample:{name}")


def check_names(names: Sequence[str | int] | None) -> tuple[str | int, ...] | None:
    """Makes the names of the rows of the coming calls a tuple."""
    return None if names is None else tuple(names)


def _mix(ids_BT: Tensor, position_BT: Tensor) -> Tensor:
    """Hashes token and position to 32 bits, so that sums over a prefix are hashes of the prefix.

    Source: the constants of the `lowbias32` integer finaliser found by C. Wellons' hash prospector.
    """
    x = (ids_BT.to(torch.int64) * 0x9E3779B1 + position_BT * 0x85EBCA77 + 0x27D4EB2F) & _WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _bound(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if not args:
        return dict(kwargs)
    try:
        bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    except TypeError:  # the call itself will raise it again, with the model's own words
        return dict(kwargs)
    flat: dict[str, Any] = {}
    for name, value in bound.items():
        flat.update(value if isinstance(value, dict) and name == "kwargs" else {name: value})
    return flat


def _first_tensor(given: Mapping[str, Any]) -> Tensor | None:
    ordered = [given.get("input_ids"), given.get("inputs_embeds"), *given.values()]
    for value in ordered:
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, Tensor) and tensor.dim() >= 1:
                return tensor
    return None


def _has_tokens(tensor: Tensor) -> bool:
    """Tells whether axis 1 counts tokens: ids [B, T] or features [B, T, D], not features [B, D]."""
    return tensor.dim() >= 3 or (tensor.dim() == 2 and not tensor.is_floating_point())


def _past_length(given: Mapping[str, Any], mask_BS: Tensor | None, T: int) -> int:
    if mask_BS is not None:
        return max(0, mask_BS.shape[1] - T)
    cache = given.get("past_key_values")
    if cache is not None and hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return 0


def _positions(given: Mapping[str, Any], B: int, T: int, past: int, device: torch.device) -> Tensor:
    positions = given.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == T:
        return positions.to(torch.int64).expand(B, T)
    return torch.arange(past, past + T, device=device).expand(B, T)
