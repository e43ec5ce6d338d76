"""Philox-4x32-10 and the normal numbers made of it: the reference that fast kernels are held to.

Written for clearness in torch's int64 and float64, on any device; it keeps no state. The fast form
for the CPU is kernel_cpu. Shape suffixes: R rows, D channels, K blocks of four channels.
"""

import math
from collections.abc import Callable

import torch

from noisescope.noise.address import Address

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
# Stream 0 is noise, stream 1 stochastic rounding: each flips its own fixed bits of the site's word.
STREAM_FLIPS = (0, 0x5BD1E995)

_MASK = 0xFFFFFFFF
_ELEMENTS_AT_ONCE = 2**22


def philox4x32(
    counter: torch.Tensor, key: torch.Tensor | tuple[int | torch.Tensor, int | torch.Tensor]
) -> torch.Tensor:
    """Returns the four random words of each counter under a key.

    Source: Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3. SC 2011,
    Philox-4x32 with 10 rounds.

    Args:
        counter: int64 [..., 4], each value a 32-bit word.
        key: int64 [..., 2], or the two words as a pair, each a number or of a shape that broadcasts
            to the counters'.

    Returns:
        int64 [..., 4], values 0 to 2**32 - 1.
    """
    key_0, key_1 = key if isinstance(key, tuple) else key.unbind(-1)
    x_0, x_1, x_2, x_3 = counter.unbind(-1)
    for _ in range(ROUNDS):
        high_0, low_0 = _multiply(x_0, MULTIPLIERS[0])
        high_1, low_1 = _multiply(x_2, MULTIPLIERS[1])
        x_0, x_1, x_2, x_3 = high_1 ^ x_1 ^ key_0, low_1, high_0 ^ x_3 ^ key_1, low_0
        key_0, key_1 = (key_0 + WEYL[0]) & _MASK, (key_1 + WEYL[1]) & _MASK
    return torch.stack((x_0, x_1, x_2, x_3), dim=-1)


def random_words(at: Address, channels: int, stream: int = 0) -> torch.Tensor:
    """Returns one random word for each element of a tensor.

    The counter is (channel block, position, sample, site), the key (seed, draw) of the row. A
    block is four neighbouring channels and the channel modulo 4 picks the word.

    Args:
        at: Where the R rows lie.
        channels: D, the length of a row.
        stream: 0 for noise, 1 for stochastic rounding; the two are independent.

    Returns:
        int64 [R, D], values 0 to 2**32 - 1.
    """
    return _by_rows(
        lambda part: _pick_lanes(_block_words(part, channels, stream), part, channels), at, channels
    )


def standard_normal(at: Address, channels: int) -> torch.Tensor:
    """Returns one N(0, 1) number for each element of a tensor: float32 [R, D].

    Computed in float64 and rounded once, so that every other implementation has a fixed target.

    Args:
        at: Where the R rows lie.
        channels: D, the length of a row.
    """
    return _by_rows(
        lambda part: _pick_lanes(_normal_of_words(_block_words(part, channels, 0)), part, channels),
        at,
        channels,
    )


def _multiply(x: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the high and low words of a 64-bit product."""
    # int64 wraps modulo 2**64, which keeps every bit; the mask undoes the sign that >> drags in.
    product = x * multiplier
    return (product >> 32) & _MASK, product & _MASK


def _block_words(at: Address, channels: int, stream: int) -> torch.Tensor:
    """Returns int64 [R, K, 4]: the words of every block that the rows touch."""
    # A row may begin in the middle of a block: three lanes more than its length cover every case.
    block_count = (channels + 6) // 4
    block_K = torch.arange(block_count, dtype=torch.int64, device=at.channel_R.device)
    block_RK = (at.channel_R[:, None] & _MASK) // 4 + block_K
    # 2**30 blocks make the whole circle of channels: the block after the last is the first.
    block_RK = block_RK & (_MASK // 4)
    counter = torch.stack(
        (
            block_RK,
            (at.position_R[:, None] & _MASK).expand_as(block_RK),
            (at.sample_R[:, None] & _MASK).expand_as(block_RK),
            torch.full_like(block_RK, at.site ^ STREAM_FLIPS[stream]),
        ),
        dim=-1,
    )
    return philox4x32(counter, (_key_word(at.seed), _key_word(at.draw)))


def _key_word(word: int | torch.Tensor) -> int | torch.Tensor:
    """Returns a word of the key as it goes with [R, K] blocks."""
    return word[:, None] & _MASK if isinstance(word, torch.Tensor) else word


def _pick_lanes(lanes_RK4: torch.Tensor, at: Address, channels: int) -> torch.Tensor:
    """Returns [R, D]: from each row's blocks the lanes that belong to its own channels."""
    lane_D = torch.arange(channels, dtype=torch.int64, device=lanes_RK4.device)
    return lanes_RK4.flatten(1).gather(1, (at.channel_R[:, None] & 3) + lane_D)


def _normal_of_words(words_RK4: torch.Tensor) -> torch.Tensor:
    """Returns float32 [R, K, 4]: words (0, 1) make normals (0, 1), words (2, 3) make (2, 3).

    Source: Box and Muller 1958. With u = (word + 1/2) / 2**32 of either word: radius
    sqrt(-2 ln u_0), angle 2 pi u_1, normals radius * cos(angle) and radius * sin(angle).
    """
    pairs = words_RK4.reshape(*words_RK4.shape[:-1], 2, 2)
    radius = torch.sqrt(-2.0 * torch.log((pairs[..., 0].to(torch.float64) + 0.5) / 2.0**32))
    cosine, sine = _cosine_and_sine(pairs[..., 1])
    return torch.stack((radius * cosine, radius * sine), dim=-1).flatten(-2).to(torch.float32)


def _cosine_and_sine(word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cos and sin of 2 pi (word + 1/2) / 2**32."""
    # The quarter turns come off in integers: in floating point the relative accuracy would be gone
    # near the zeros of cos and sin.
    quarter = (word + 2**29) >> 30
    rest = (word - (quarter << 30)).to(torch.float64) + 0.5
    angle = rest * (2.0 * math.pi / 2.0**32)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    is_odd = (quarter & 1) == 1
    cosine, sine = torch.where(is_odd, -sine, cosine), torch.where(is_odd, cosine, sine)
    sign = 1 - (quarter & 2)
    return cosine * sign, sine * sign


def _by_rows(
    function: Callable[[Address], torch.Tensor], at: Address, channels: int
) -> torch.Tensor:
    """Returns the function of all rows, some at a time: its temporaries are many times larger."""
    rows = max(1, _ELEMENTS_AT_ONCE // max(1, channels))
    if len(at) <= rows:
        return function(at)
    return torch.cat([function(at.rows(r, r + rows)) for r in range(0, len(at), rows)])
