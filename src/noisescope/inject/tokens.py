"""Reads the tokens of a forward call: which sample each row is, and where in it each token stands.

Unnamed samples are named by their own tokens: the word at a position is a hash of the tokens up to
it, so a cached step, which sees one token, meets the same noise as a later pass over the whole
text.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from noisescope.errors import InputError
from noisescope.inject.rows import Rows, mix
from noisescope.noise import site_word

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class _Prefix:
    """The hash of every row's tokens so far, how many columns they are, and where its keys lie."""

    word_B: Tensor
    length: int
    keys_at: int | None = None


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
    _named: tuple[tuple[str | int, ...] | None, Tensor] = (None, torch.zeros(0))
    _latest: _Prefix | None = None
    _by_cache: "WeakKeyDictionary[Any, _Prefix]" = field(default_factory=WeakKeyDictionary)

    def read(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Rows | None:
        """Returns the rows of this call, or None where no argument is a tensor with a batch.

        Raises:
            InputError: Samples are named, but not as many as the batch has rows.
        """
        given = bound_arguments(model, args, kwargs)
        tokens = first_tensor(given)
        if tokens is None:
            return None
        B, T = tokens.shape[0], tokens.shape[1] if has_tokens(tokens) else 1
        mask_BS = given.get("attention_mask")
        if not isinstance(mask_BS, Tensor) or mask_BS.dim() != 2 or mask_BS.shape[0] != B:
            mask_BS = None
        cache = given.get("past_key_values")
        past = _past_length(cache, mask_BS, T)
        keys = past + T
        if mask_BS is not None and _has_spare_columns(cache, mask_BS, given, T):
            # How many columns are filled is asked of the cache, and awaited from its device, only
            # where samples are named by their tokens.
            past = 0 if self.names is not None else _past_length(cache, None, T)
            present_BT = mask_BS[:, past : past + T].to(torch.int64)
            position_BT = _positions(given, B, T, past, tokens.device)
            first_key_B = -(mask_BS.cumsum(dim=1) == 0).sum(dim=1)
        elif mask_BS is None:
            present_BT = _present(given, B, T, past, tokens.device)
            position_BT = _positions(given, B, T, past, tokens.device)
            first_key_B = position_BT[:, -1] - (past + T - 1)
        else:
            counted_BS = mask_BS.to(torch.int64).cumsum(dim=1)
            present_BT = mask_BS[:, -T:].to(torch.int64)
            position_BT = (counted_BS[:, -T:] - 1).clamp_min(0)
            first_key_B = -(counted_BS == 0).sum(dim=1)
        sample_BT, is_named = self._samples(tokens, present_BT, position_BT, past, cache)
        kept = given.get("logits_to_keep")
        return Rows(
            self.seed,
            self.draw,
            sample_BT,
            position_BT,
            first_key_B,
            keys=keys,
            is_named=is_named,
            kept=kept if isinstance(kept, Tensor) and kept.dim() == 1 else None,
        )

    def note_output(self, output: Any) -> None:
        """Remembers the text in a cache that a call has made, from its output."""
        made = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for cache in made:
            if _is_cache(cache):
                self._remember(cache)

    def _samples(
        self, tokens: Tensor, present_BT: Tensor, position_BT: Tensor, past: int, cache: Any
    ) -> tuple[Tensor, bool]:
        """Returns the words of the samples, and whether they name samples at all."""
        B, T = position_BT.shape
        if self.names is not None:
            if len(self.names) != B:
                raise InputError(
                    f"{len(self.names)} samples are named, but this batch has {B} rows: "
                    "call name_samples with one name per row before each call of the model."
                )
            return self._words(self.names, position_BT.device)[:, None].expand(B, T), True
        if tokens.is_floating_point() or tokens.shape != position_BT.shape:
            return torch.arange(B, device=position_BT.device)[:, None].expand(B, T), False
        prefix_BT = (mix(tokens, position_BT) * present_BT).cumsum(dim=1) & _WORD
        is_whole = past == 0
        if past:
            held = self._prefix_in(cache) if _is_cache(cache) else self._latest
            if held is not None and held.length == past and held.word_B.shape[0] == B:
                prefix_BT = (prefix_BT + held.word_B[:, None].to(prefix_BT.device)) & _WORD
                is_whole = True
        # Else the cache was filled outside the session, or copied: what it holds is unknown.
        self._latest = _Prefix(prefix_BT[:, -1], past + T) if is_whole else None
        if _is_cache(cache):
            self._remember(cache)
        return prefix_BT, is_whole

    def _words(self, names: tuple[str | int, ...], device: torch.device) -> Tensor:
        """Returns the words of names [B], those of the call before where they are the same."""
        held, word_B = self._named
        if held is not names or word_B.device != device:
            word_B = torch.tensor(list(map(sample_word, names)), device=device)
            self._named = names, word_B
        return word_B

    def _remember(self, cache: Any) -> None:
        if self._latest is None:
            self._by_cache.pop(cache, None)
        else:
            self._by_cache[cache] = replace(self._latest, keys_at=_keys_at(cache))

    def _prefix_in(self, cache: Any) -> _Prefix | None:
        """Returns what a cache holds, or None where it was changed since, as by a beam search."""
        held = self._by_cache.get(cache)
        return held if held is not None and held.keys_at == _keys_at(cache) else None


@lru_cache(maxsize=1 << 16)
def sample_word(name: str | int) -> int:
    """Returns the 32-bit word of a sample's name; a number names the same sample as its text."""
    return site_word(f"sample:{name}")


def check_names(names: Sequence[str | int] | None) -> tuple[str | int, ...] | None:
    """Makes the names of the rows of the coming calls a tuple.

    Raises:
        InputError: One string stands for a list of names.
    """
    if isinstance(names, str):
        raise InputError(f"names {names!r}: give a list with one name per row, such as [{names!r}]")
    return None if names is None else tuple(names)


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length")


def _keys_at(cache: Any) -> int | None:
    """Returns where the first layer's keys lie: reordering or cropping a cache moves them."""
    keys = getattr(next(iter(getattr(cache, "layers", ())), None), "keys", None)
    return keys.data_ptr() if isinstance(keys, Tensor) else None


def bound_arguments(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments by name; of mappings among them, the entries."""
    given = dict(kwargs)
    if args:
        try:
            given = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        except TypeError:  # the call itself will raise it again, with the model's own words
            return given
    flat: dict[str, Any] = {}
    for name, value in given.items():
        flat.update(value if isinstance(value, Mapping) else {name: value})
    return flat


def first_tensor(given: Mapping[str, Any]) -> Tensor | None:
    """Returns the first tensor with a batch among the arguments of a call, ids before others."""
    ordered = [given.get("input_ids"), given.get("inputs_embeds"), *given.values()]
    for value in ordered:
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, Tensor) and tensor.dim() >= 1:
                return tensor
    return None


def has_tokens(tensor: Tensor) -> bool:
    """Tells whether axis 1 counts tokens: ids [B, T] or features [B, T, D], not features [B, D]."""
    return tensor.dim() >= 3 or (tensor.dim() == 2 and not tensor.is_floating_point())


def _past_length(cache: Any, mask_BS: Tensor | None, T: int) -> int:
    if mask_BS is not None:
        return max(0, mask_BS.shape[1] - T)
    return int(cache.get_seq_length()) if _is_cache(cache) else 0


def _has_spare_columns(cache: Any, mask_BS: Tensor, given: Mapping[str, Any], T: int) -> bool:
    """Tells whether a mask is as long as a cache of fixed length: it does not tell positions."""
    positions = given.get("position_ids")
    lengths = {getattr(layer, "max_cache_len", 0) for layer in getattr(cache, "layers", ())}
    return (
        T < mask_BS.shape[1] == max(lengths, default=0)
        and isinstance(positions, Tensor)
        and positions.shape[1:] == (T,)
    )


def _present(given: Mapping[str, Any], B: int, T: int, past: int, device: torch.device) -> Tensor:
    """Returns which tokens are no padding, as far as a mask [B, 1, T, S] tells: int64 [B, T]."""
    for name in ("attention_mask", "full_attention", "sliding_attention"):
        mask = given.get(name)
        if isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[-1] >= past + T:
            allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
            return allowed[:, 0].any(dim=1)[:, past : past + T].to(torch.int64).expand(B, T)
    return torch.ones(B, T, dtype=torch.int64, device=device)


def _positions(given: Mapping[str, Any], B: int, T: int, past: int, device: torch.device) -> Tensor:
    positions = given.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() == 2 and positions.shape[1] == T:
        return positions.to(device=device, dtype=torch.int64).expand(B, T)
    return torch.arange(past, past + T, device=device).expand(B, T)
