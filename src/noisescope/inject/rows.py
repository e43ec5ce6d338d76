"""Which sample and position each row of a tensor belongs to.

Noise is a function of (sample, position, channel), so a tensor's rows must be traced to the tokens
they came from, whatever the batch, padding or cache. One `Rows` describes the tokens of one
forward pass; the layouts that operators produce ([B, T, D], [B*T, D], [B, H, T, D], scores over
keys) are recognised by shape.

Legend: B rows of the batch, T positions of this pass, H heads, S keys (cached ones too), R flat
rows.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from noisescope.noise import Address

# Scores have a channel per (head, key): four million keys fit before the next head's begin.
_KEYS_PER_HEAD = 1 << 22
_WORD = 0xFFFFFFFF
_HEADS_FIRST = frozenset({"matmul", "bmm", "softmax"})


@dataclass(frozen=True)
class RowMap:
    """Addresses of the R flat rows of one tensor.

    Attributes:
        kind: `token`, `sample` or `row`: how much of the address is known.
        sample_R: int64 words.
        position_R: int64, the token's index within its sample, padding not counted.
        channel_R: int64, the channel of each row's first element.
    """

    kind: str
    sample_R: Tensor
    position_R: Tensor
    channel_R: Tensor


@dataclass(frozen=True)
class Rows:
    """The tokens of one forward pass.

    Attributes:
        seed: Key word of the random numbers.
        draw: Number of the realisation.
        sample_BT: int64 word naming the sample of each token.
        position_BT: int64 index of each token within its sample, padding not counted.
        first_key_B: int64 position of key column 0 when all keys are present; negative under left
            padding. keys: Keys in the cache and this pass together.
    """

    seed: int
    draw: int
    sample_BT: Tensor
    position_BT: Tensor
    first_key_B: Tensor
    keys: int
    _maps: dict[object, RowMap] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_nothing(cls, seed: int, draw: int, device: torch.device) -> "Rows":
        """Returns rows for tensors outside any known forward pass: every row is its own index."""
        none_BT = torch.zeros(0, 1, dtype=torch.int64, device=device)
        return cls(seed, draw, none_BT, none_BT, none_BT[:, 0], 0)

    def address(
        self, shape: torch.Size, operator: str, is_keys: bool, site: int, device: torch.device
    ) -> tuple[Address, str]:
        """Returns the addresses for a tensor of this shape and how much of them is known.

        Args:
            shape: Of the tensor; its last axis holds the channels.
            operator: Settles what a four-dimensional shape means where it could mean two things.
            is_keys: Whether the last axis runs over keys (scores and probabilities).
            site: The site's word.
            device: Where the tensor lies.
        """
        key = (tuple(shape), operator in _HEADS_FIRST, is_keys, device)
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = self._map(shape, operator in _HEADS_FIRST, is_keys, device)
        at = Address(self.seed, self.draw, site, found.sample_R, found.position_R, found.channel_R)
        return at, found.kind

    def parameter_address(self, shape: torch.Size, site: int, device: torch.device) -> Address:
        """Returns the addresses for a parameter's gradient: no sample; the row is its own index."""
        rows = shape[:-1].numel() if len(shape) else 1
        key = ("parameter", rows, device)
        found = self._maps.get(key)
        if found is None:
            found = self._maps[key] = _row_map(rows, device)
        return Address(
            self.seed, self.draw, site, found.sample_R, found.position_R, found.channel_R
        )

    def _map(
        self, shape: torch.Size, is_heads_first: bool, is_keys: bool, device: torch.device
    ) -> RowMap:
        sample_BT, position_BT = self.sample_BT, self.position_BT
        B, T = sample_BT.shape
        heads = _find_heads(shape, B, T, is_heads_first)
        if heads is not None:
            tokens, H, is_head_axis_first = heads
            sample_BT, position_BT = sample_BT[:, -tokens:], position_BT[:, -tokens:]
            channel_BH = self._first_channels(shape[-1], H, is_keys)
            sample, position, channel = torch.broadcast_tensors(
                sample_BT[:, None, :], position_BT[:, None, :], channel_BH[:, :, None]
            )
            if not is_head_axis_first:
                sample, position, channel = (t.transpose(1, 2) for t in (sample, position, channel))
            flat = (t.reshape(-1).to(device) for t in (sample, position, channel))
            return RowMap("token", *flat)
        rows = shape[:-1].numel() if len(shape) else 1
        if len(shape) > 1 and shape[0] == B and B > 0:
            each = torch.arange(rows // B, device=device).repeat(B)
            sample = sample_BT[:, :1].expand(B, rows // B).reshape(-1).to(device)
            return RowMap("sample", sample, each, torch.zeros_like(each))
        return _row_map(rows, device)

    def _first_channels(self, channels: int, H: int, is_keys: bool) -> Tensor:
        head_H = torch.arange(H, device=self.sample_BT.device)
        if not is_keys:
            return (head_H * channels).expand(self.sample_BT.shape[0], H)
        # A sliding window keeps the last keys only: columns are counted from the newest one back.
        first_B = self.first_key_B + (self.keys - channels)
        return head_H * _KEYS_PER_HEAD + first_B[:, None]


def _row_map(rows: int, device: torch.device) -> RowMap:
    index_R = torch.arange(rows, device=device)
    return RowMap("row", torch.full_like(index_R, _WORD), index_R, torch.zeros_like(index_R))


def _find_heads(
    shape: torch.Size, B: int, T: int, is_heads_first: bool
) -> tuple[int, int, bool] | None:
    """Recognises a layout: (tokens, heads, whether heads come before tokens), or None.

    A head region computes the last tokens only, so fewer tokens than T are the last ones. A decode
    step of one token may fold grouped heads into the token axis; every such row is that one token.
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
