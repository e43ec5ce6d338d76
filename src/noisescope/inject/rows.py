"""Which sample and position each row of a tensor belongs to.

Noise is a function of (sample, position, channel), so a tensor's rows must be traced to the tokens
they came from, whatever the batch, padding or cache. One `Rows` describes the tokens of one
forward pass; the layouts that operators produce ([B, T, D], [B*T, D], [B, H, T, D], scores over
keys) are recognised by shape.

Legend: B rows of the batch, T positions of this pass, H heads, S keys (cached ones too), R flat
rows.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from noisescope.noise import Address

# What the last axis holds: channels of a token, or keys (scores, probabilities); or the tensor is
# transposed, and the last axis holds positions and the one before it channels (K^T in Q K^T).
Layout = Literal["channels", "keys", "transposed"]

# Scores have a channel per (head, key): four million keys fit before the next head's begin.
KEYS_PER_HEAD = 1 << 22
_WORD = 0xFFFFFFFF
HEADS_FIRST = frozenset({"matmul", "bmm", "softmax"})
# Norms of heads may get the heads of all tokens one after the other, as [B*T*H, D].
_HEADS_FLAT = frozenset({"rms_norm", "layer_norm"})


@dataclass(frozen=True)
class RowMap:
    """Addresses of the R flat rows of one tensor.

    Attributes:
        kind: `token`, `sample` or `row`: how much of the address is known.
        at: The addresses, of site 0. The position is the token's index within its sample, padding
            not counted.
    """

    kind: str
    at: Address


@dataclass(frozen=True)
class Rows:
    """The tokens of one forward pass.

    Attributes:
        seed: Key word of the random numbers.
        draw: Number of the realisation.
        sample_BT: int64 word naming the sample of each token.
        position_BT: int64 index of each token within its sample, padding not counted.
        first_key_B: int64 position of key column 0 when all keys are present; negative under left
            padding.
        keys: Keys in the cache and this pass together.
        is_named: Whether the words name samples; otherwise they only number the batch's rows.
        kept: int64 indices of the tokens that the head computes, where they are not the last ones.
        is_mixed: Rows of this place lost their token (experts of a mixture); shapes that look like
            tokens are not.
    """

    seed: int
    draw: int
    sample_BT: Tensor
    position_BT: Tensor
    first_key_B: Tensor
    keys: int
    is_named: bool = True
    kept: Tensor | None = None
    is_mixed: bool = False
    _maps: dict[object, RowMap] = field(default_factory=dict, repr=False, compare=False)
    _parts: dict[tuple[int, int], "Rows"] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_nothing(cls, seed: int, draw: int, device: torch.device) -> "Rows":
        """Returns rows for tensors outside any known forward pass: every row is its own index."""
        none_BT = torch.zeros(0, 1, dtype=torch.int64, device=device)
        return cls(seed, draw, none_BT, none_BT, none_BT[:, 0], 0)

    def mixed(self) -> "Rows":
        """Returns the rows of the same pass for a place where rows lose their token."""
        return self if self.is_mixed else replace(self, is_mixed=True, _maps={}, _parts={})

    def part(self, begin: int, end: int) -> "Rows":
        """Returns the rows begin..end-1 of the batch, as if they were a batch of their own."""
        if (begin, end) == (0, len(self.sample_BT)):
            return self
        if (begin, end) not in self._parts:
            self._parts[begin, end] = replace(
                self,
                sample_BT=self.sample_BT[begin:end],
                position_BT=self.position_BT[begin:end],
                first_key_B=self.first_key_B[begin:end],
                _maps={},
                _parts={},
            )
        return self._parts[begin, end]

    def forget_maps(self) -> None:
        """Frees the addresses; they are computed again when they are asked for again."""
        self._maps.clear()
        self._parts.clear()

    def address(
        self, value: Tensor, operator: str, layout: Layout, site: int
    ) -> tuple[Address, str]:
        """Returns the addresses of a tensor's rows and how much of them is known.

        Args:
            value: The tensor; with `transposed`, the tensor turned back.
            operator: Settles what a four-dimensional shape means where it could mean two things.
            layout: What the last axis holds.
            site: The site's word.
        """
        is_heads_first = operator in HEADS_FIRST or _is_heads_first_view(value)
        shape = value.shape
        if operator in _HEADS_FLAT and value.dim() == 2:
            shape = self._with_heads(shape)
        is_cached = operator == "linear" and self._holds_cached(shape)
        is_wide = len(shape) > 3 or is_heads_first or layout == "keys"  # the width counts
        key = (
            tuple(shape if is_wide else shape[:-1]),
            is_heads_first,
            layout == "keys",
            is_cached,
            value.device,
        )
        found = self._maps.get(key)
        if found is None:
            found = self._map(shape, is_heads_first, layout == "keys", is_cached, value.device)
            self._maps[key] = found
        return found.at.at_site(site), found.kind if self.is_named else "row"

    def parameter_address(self, value: Tensor, site: int) -> Address:
        """Returns the addresses for a parameter's gradient: the row is its own index.

        It is a sum over the pass, so the pass stands for the sample.
        """
        return self._map_pass(_count_rows(value.shape), value.device).at.at_site(site)

    def _row_map(
        self, kind: str, sample_R: Tensor, position_R: Tensor, channel_R: Tensor
    ) -> RowMap:
        return RowMap(kind, Address(self.seed, self.draw, 0, sample_R, position_R, channel_R))

    def _with_heads(self, shape: torch.Size) -> torch.Size:
        """Returns [B*T*H, D] as [B, T, H, D], and other shapes as they are."""
        B, T = self.sample_BT.shape
        if self.is_mixed or B * T == 0 or shape[0] in (B, B * T) or shape[0] % (B * T):
            return shape
        return torch.Size((B, T, shape[0] // (B * T), shape[1]))

    def _map(
        self,
        shape: torch.Size,
        is_heads_first: bool,
        is_keys: bool,
        is_cached: bool,
        device: torch.device,
    ) -> RowMap:
        B, T = self.sample_BT.shape
        if is_cached and self.is_named:
            return self._map_cached(device)
        is_unknown = self.is_mixed or is_cached
        heads = None if is_unknown else _find_heads(shape, B, T, is_heads_first)
        if heads is not None:
            return self._map_tokens(shape[-1], *heads, is_keys, device)
        rows = _count_rows(shape)
        if self.is_mixed or len(shape) < 2 or shape[0] != B or not rows:
            return self._map_pass(rows, device)
        # The token is unknown, but what the sample holds so far still tells one pass from another:
        # else every decoding step would meet the same noise.
        sample_B = mix(self.sample_BT[:, -1], self.position_BT[:, -1])
        sample_R = sample_B[:, None].expand(B, rows // B).reshape(-1).to(device)
        index_R = torch.arange(rows // B, device=device).repeat(B)
        return self._row_map("sample", sample_R, index_R, torch.zeros_like(index_R))

    def _holds_cached(self, shape: torch.Size) -> bool:
        """Tells whether [B, 1, S, D] holds all S tokens of the cache, and not a new one's heads.

        Latent attention keeps what its projections are made of, and makes them again at each step.
        """
        B, T = self.sample_BT.shape
        is_of_tokens = not self.is_mixed and len(shape) == 4 and self.keys > T
        return is_of_tokens and tuple(shape[:3]) == (B, 1, self.keys)

    def _map_cached(self, device: torch.device) -> RowMap:
        position_BS = self.first_key_B[:, None] + torch.arange(
            self.keys, device=self.first_key_B.device
        )
        sample_BS = self.sample_BT[:, -1:].expand(-1, self.keys)
        sample_R, position_R = (
            t.reshape(-1).to(device) for t in (sample_BS, position_BS.clamp_min(0))
        )
        return self._row_map("token", sample_R, position_R, torch.zeros_like(position_R))

    def _map_pass(self, rows: int, device: torch.device) -> RowMap:
        """Returns rows of which nothing is known but the pass, told by all its tokens."""
        index_R = torch.arange(rows, device=device)
        word = mix(self.sample_BT, self.position_BT).sum() & _WORD
        return self._row_map(
            "row", word.to(device).expand(rows), index_R, torch.zeros_like(index_R)
        )

    def _map_tokens(
        self,
        channels: int,
        tokens: int,
        H: int,
        is_head_axis_first: bool,
        is_keys: bool,
        device: torch.device,
    ) -> RowMap:
        channel_BH = self._first_channels(channels, H, is_keys)
        sample_BT, position_BT = self.sample_BT, self.position_BT
        if tokens < sample_BT.shape[1]:
            last = slice(-tokens, None)
            kept = last if self.kept is None or len(self.kept) != tokens else self.kept
            sample_BT, position_BT = sample_BT[:, kept], position_BT[:, kept]
        each = torch.broadcast_tensors(
            sample_BT[:, None], position_BT[:, None], channel_BH[:, :, None]
        )
        if not is_head_axis_first:
            each = tuple(t.transpose(1, 2) for t in each)
        return self._row_map("token", *(t.reshape(-1).to(device) for t in each))

    def _first_channels(self, channels: int, H: int, is_keys: bool) -> Tensor:
        head_H = torch.arange(H, device=self.sample_BT.device)
        if not is_keys:
            return (head_H * channels).expand(self.sample_BT.shape[0], H)
        # A sliding window keeps the last keys only: columns are counted from the newest one back. A
        # static cache has columns to spare at the end.
        first_B = self.first_key_B + max(0, self.keys - channels)
        return head_H * KEYS_PER_HEAD + first_B[:, None]


@dataclass(frozen=True)
class RowsOf:
    """Neighbouring rows of a batch that one condition and draw hold.

    Attributes:
        condition: The number of the condition.
        draw: Number of the realisation.
        begin: First row.
        end: The row after the last; None: all rows, in a table of one row.
    """

    condition: int
    draw: int
    begin: int = 0
    end: int | None = None


def token_words(
    value: Tensor, is_heads_first: bool, sample_BT: Tensor, position_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Returns sample, position and first channel of a tensor's rows, as `Rows.address` finds them.

    Args:
        value: Its last axis holds channels.
        is_heads_first: What a shape of four axes means where it could mean two things.
        sample_BT: int64 words.
        position_BT: int64.

    Returns:
        int64 [R] each; None where the tokens of the rows are not known.
    """
    B, T = sample_BT.shape
    if value.dim() == 4 and T == 1 and not is_heads_first:
        return None  # heads of a new token, or all cached tokens: a shape does not tell
    is_heads_first = is_heads_first or _is_heads_first_view(value)
    heads = _find_heads(value.shape, B, T, is_heads_first)
    if heads is None:
        return None
    tokens, H, is_head_axis_first = heads
    head_H = torch.arange(H, device=sample_BT.device)
    each = torch.broadcast_tensors(
        sample_BT[:, None, T - tokens :],
        position_BT[:, None, T - tokens :],
        (head_H * value.shape[-1])[None, :, None],
    )
    if not is_head_axis_first:
        each = tuple(t.transpose(1, 2) for t in each)
    return each[0].reshape(-1), each[1].reshape(-1), each[2].reshape(-1)


def known_batch(rows: Rows | None) -> int | None:
    """Returns the rows of the batch; None where the tokens of a tensor's rows are not known."""
    return None if rows is None or rows.is_mixed else rows.sample_BT.shape[0]


def mix(value: Tensor, position: Tensor) -> Tensor:
    """Hashes two integers to 32 bits, so well that sums of such words are hashes of the set.

    Source: the constants of the `lowbias32` integer finaliser found by C. Wellons' hash prospector.
    """
    x = (value.to(torch.int64) * 0x9E3779B1 + position * 0x85EBCA77 + 0x27D4EB2F) & _WORD
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


def _count_rows(shape: torch.Size) -> int:
    return shape[:-1].numel() if len(shape) else 1


def _is_heads_first_view(value: Tensor) -> bool:
    """Tells whether [B, T, H, D] was transposed to [B, H, T, D]: some norms of Q and K get that."""
    return value.dim() == 4 and value.stride(1) < value.stride(2) and value.shape[1] > 1


def _find_heads(
    shape: torch.Size, B: int, T: int, is_heads_first: bool
) -> tuple[int, int, bool] | None:
    """Recognises a layout: (tokens, heads, whether heads come before tokens), or None.

    A head may compute some tokens only, the last ones unless `Rows.kept` tells. A decode step of
    one token may fold grouped heads into the token axis; every such row is that one token.
    """
    middle = tuple(shape[1:-1])
    if B == 0 or len(shape) < 2 or shape[:-1].numel() == 0:
        return None
    if len(shape) == 2:
        return (T, 1, True) if shape[0] == B * T else ((1, 1, True) if shape[0] == B else None)
    if len(shape) == 3 and shape[0] == B and not (is_heads_first and middle[0] != T):
        return (middle[0], 1, True) if middle[0] <= T else None
    if len(shape) == 3 and is_heads_first and shape[0] % B == 0 and middle[0] == T:
        return (T, shape[0] // B, True)
    if len(shape) == 4 and shape[0] == B:
        if T == 1:
            return (1, middle[0] * middle[1], True)
        orders = ((1, True), (0, False)) if is_heads_first else ((0, False), (1, True))
        for axis, is_first in orders:
            if middle[axis] == T:
                return (T, middle[1 - axis], is_first)
    return None
