"""Gaussian error in plain torch operations, for a compiler to fuse into the kernels around it.

Values are those of philox.py and rounding.py: words and rounding exactly, normals to 1e-6. Nothing
waits for the device, no value decides what is computed, and all arithmetic is in 64-bit integers
and float32. Suffixes: R rows, D channels, K blocks of four channels, 1 an axis that is spread.
"""

import math

import torch

from noisescope.noise.philox import MULTIPLIERS, ROUNDS, STREAM_FLIPS, WEYL

_MASK = 0xFFFFFFFF

_SQRT_HALF_BITS, _SQRT_HALF_WORD = 0x3F3504F3, 3037000500
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_ANGLE_UNIT = 2 * math.pi / 2**32
# Polynomials of logf, sinf and cosf of the Cephes library, highest power first.
_LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)

# Of float32's bits: those that a narrower dtype drops, and its largest finite value.
_DROPPED = {torch.bfloat16: 16, torch.float16: 13}
_LARGEST = {torch.bfloat16: 0x7F7F0000, torch.float16: 0x477FE000}
_ABS_MASK, _SIGN_MASK, _INFINITY = 0x7FFFFFFF, -(2**31), 0x7F800000
_NORMAL_FLOAT16 = 0x38800000

# What counter and key have of a row: site, and int64 [R, 1] or [1, 1] position, sample, seed, draw.
_RowWords = tuple[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def perturb_expression(
    y_RD: torch.Tensor,
    sample_R: torch.Tensor,
    position_R: torch.Tensor,
    channel_R: torch.Tensor,
    seed: torch.Tensor,
    draw: torch.Tensor,
    site: int,
    scale: torch.Tensor,
    is_relative: bool,
    is_stochastic: bool,
    *,
    is_aligned: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds N(0, 1) * scale, times abs(y) where relative: `ErrorModel.perturb`, to be compiled.

    Row r, column c has channel ``channel_R[r] + c``. A row of scale 0 keeps its values. Tensors lie
    on one device; numbers and booleans are constants of the graph. No gradient passes.

    Args:
        y_RD: float32, bfloat16 or float16 [R, D].
        sample_R: int64 [R], modulo 2**32, as all words.
        position_R: int64 [R].
        channel_R: int64 [R], the channel of the first column.
        seed: int64, without axes or [R].
        draw: int64, without axes or [R].
        site: The site's word, 0 <= site < 2**32.
        scale: float32, without axes or [R], at least 0: standard deviation of the error.
        is_relative: Whether the scale is a share of each value.
        is_stochastic: Whether the sum is rounded stochastically to y's dtype, else to nearest.
        is_aligned: Promises that every channel_R is a multiple of 4, which is not looked at: random
            words are then made once for four elements.

    Returns:
        The noisy values, of y's shape and dtype, and float64 [R, 6]: the tally of each row, see
        `error_model.tally`, its sums of squares summed in float32.
    """
    y_RD = y_RD.detach()
    # A compiler leaves out the rounding to y's dtype on either side of what it fuses. What is
    # rounded here by its bits stays so.
    clean_RD = _rounded(y_RD.to(torch.float32), y_RD.dtype, None)
    scale_R1 = scale.reshape(-1, 1)
    columns = (channel_R, y_RD.shape[1], is_aligned)
    position, sample, key_0, key_1 = (_of_rows(w) for w in (position_R, sample_R, seed, draw))
    noise = (site ^ STREAM_FLIPS[0], position, sample, key_0, key_1)
    # Scale first: N(0, 1) * abs(y) could overflow where the error itself does not.
    error_RD = _normals(*columns, noise) * scale_R1
    if is_relative:
        error_RD = error_RD * clean_RD.abs()
    dice_RD = None
    if is_stochastic and y_RD.dtype in _DROPPED:
        dice_RD = _words(*columns, (site ^ STREAM_FLIPS[1], position, sample, key_0, key_1))
    noisy_RD = _rounded(clean_RD + error_RD, y_RD.dtype, dice_RD)
    tally_R6 = _tally(clean_RD, noisy_RD, error_RD)
    return torch.where(scale_R1 == 0, y_RD, noisy_RD.to(y_RD.dtype)), tally_R6


def _of_rows(word: torch.Tensor) -> torch.Tensor:
    """Returns words of rows, or the one of all, as they go with [R, D]."""
    return word.reshape(-1, 1) & _MASK


def _normals(
    channel_R: torch.Tensor, channels: int, is_aligned: bool, of_rows: _RowWords
) -> torch.Tensor:
    """Returns N(0, 1) numbers: float32 [R, D], those of `standard_normal`."""
    lane, (x_0, x_1, x_2, x_3) = _lanes(channel_R, channels, is_aligned, of_rows)
    is_second_pair = (lane & 2) != 0
    radius_RD = _radius(torch.where(is_second_pair, x_2, x_0))
    # The odd lanes hold the sine: the cosine of a quarter turn less.
    return radius_RD * _cosine(torch.where(is_second_pair, x_3, x_1), lane & 1)


def _words(
    channel_R: torch.Tensor, channels: int, is_aligned: bool, of_rows: _RowWords
) -> torch.Tensor:
    """Returns random words: int64 [R, D], those of `random_words`."""
    lane, (x_0, x_1, x_2, x_3) = _lanes(channel_R, channels, is_aligned, of_rows)
    is_odd = (lane & 1) != 0
    first_RD, second_RD = torch.where(is_odd, x_1, x_0), torch.where(is_odd, x_3, x_2)
    return torch.where((lane & 2) != 0, second_RD, first_RD)


def _lanes(
    channel_R: torch.Tensor, channels: int, is_aligned: bool, of_rows: _RowWords
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Returns each element's lane, [D] or [R, D], and the words of its block, four times [R, D]."""
    column_D = torch.arange(channels, dtype=torch.int64, device=channel_R.device)
    channel_R1 = channel_R[:, None]
    if not is_aligned:
        channel_RD = (channel_R1 + column_D) & _MASK
        return channel_RD & 3, _philox(channel_RD >> 2, of_rows)
    words_RK = _philox(((channel_R1 + column_D[::4]) & _MASK) >> 2, of_rows)
    return column_D & 3, tuple(_spread(word_RK, channels) for word_RK in words_RK)


def _spread(word_RK: torch.Tensor, channels: int) -> torch.Tensor:
    """Returns [R, D]: the word of each element's block."""
    return word_RK[:, :, None].expand(-1, -1, 4).flatten(1)[:, :channels]


def _philox(block: torch.Tensor, of_rows: _RowWords) -> tuple[torch.Tensor, ...]:
    """Returns the four words of blocks; `philox4x32` without stacks, which cost memory."""
    site, position, sample, key_0, key_1 = of_rows
    x_0, x_1, x_2, x_3 = block, position, sample, torch.full_like(block, site)
    for turn in range(ROUNDS):
        high_0, low_0 = _multiply(x_0, MULTIPLIERS[0])
        high_1, low_1 = _multiply(x_2, MULTIPLIERS[1])
        x_0 = high_1 ^ x_1 ^ ((key_0 + turn * WEYL[0]) & _MASK)
        x_2 = high_0 ^ x_3 ^ ((key_1 + turn * WEYL[1]) & _MASK)
        x_1, x_3 = low_1, low_0
    return x_0, x_1, x_2, x_3


def _multiply(x: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the high and low words of a 64-bit product."""
    # The product itself would overflow, which in the C++ that Inductor writes is undefined: gcc
    # takes it for positive, and half of the words are wrong. So 2**32 * x is added afterwards.
    product = x * (multiplier - 2**32)
    return ((product >> 32) + x) & _MASK, product & _MASK


def _radius(word: torch.Tensor) -> torch.Tensor:
    """Returns sqrt(-2 ln((word + 1/2) / 2**32)), float32."""
    # Near u = 1 the logarithm is that of 1 - (1 - u): the complement of the word holds 1 - u to
    # full relative accuracy, u in float32 does not.
    is_near_one = word >= _SQRT_HALF_WORD
    scaled = torch.where(is_near_one, word ^ _MASK, word).to(torch.float32) + 0.5
    offset = scaled.view(torch.int32) - _SQRT_HALF_BITS
    mantissa = ((offset & 0x7FFFFF) + _SQRT_HALF_BITS).view(torch.float32)
    f = torch.where(is_near_one, scaled * -(2.0**-32), mantissa - 1.0)
    exponent = torch.where(is_near_one, 0.0, ((offset >> 23) - 32).to(torch.float32))
    square = f * f
    tail = _polynomial(_LOG, f) * f * square + exponent * _LN2_LOW - 0.5 * square
    return torch.sqrt(-2.0 * ((f + tail) + exponent * _LN2_HIGH))


def _cosine(word: torch.Tensor, turns_back: torch.Tensor) -> torch.Tensor:
    """Returns cos(2 pi (word + 1/2) / 2**32 - turns_back * pi / 2), float32."""
    # The quarter turns come off in integers, exactly.
    quarter = (word + 2**29) >> 30
    angle = ((word - (quarter << 30)).to(torch.float32) + 0.5) * _ANGLE_UNIT
    square = angle * angle
    sine = _polynomial(_SINE, square) * square * angle + angle
    cosine = _polynomial(_COSINE, square) * square * square + (1.0 - 0.5 * square)
    quarter = quarter - turns_back
    value = torch.where((quarter & 1) != 0, sine, cosine)
    return torch.where(((quarter + 1) & 2) != 0, -value, value)


def _polynomial(coefficients: tuple[float, ...], x: torch.Tensor) -> torch.Tensor:
    value = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def _rounded(x_RD: torch.Tensor, dtype: torch.dtype, dice_RD: torch.Tensor | None) -> torch.Tensor:
    """Returns float32 values that dtype holds: `round_to`, stochastic where there are dice."""
    if dtype not in _DROPPED:
        return x_RD
    dropped = _DROPPED[dtype]
    bits = x_RD.view(torch.int32)
    is_nan = (bits & _ABS_MASK) > _INFINITY
    # To a NaN's bits nothing can be added without overflow.
    magnitude = (bits & _ABS_MASK).clamp(max=_INFINITY)
    addend = ((magnitude >> dropped) & 1) + (2 ** (dropped - 1) - 1)
    if dice_RD is not None:
        upward = (2**dropped - 1) - (dice_RD >> (32 - dropped)).to(torch.int32)
        addend = torch.where(magnitude <= _LARGEST[dtype], upward, addend)
    rounded = (magnitude + addend) & -(2**dropped)
    if dtype == torch.float16:
        rounded = torch.where(rounded > _LARGEST[dtype], _INFINITY, rounded)
        small = _small_float16(magnitude, dice_RD)
        rounded = torch.where(magnitude < _NORMAL_FLOAT16, small, rounded)
    rounded = rounded | (bits & _SIGN_MASK)
    return torch.where(is_nan, x_RD, rounded.view(torch.float32))


def _small_float16(magnitude_RD: torch.Tensor, dice_RD: torch.Tensor | None) -> torch.Tensor:
    """Returns the float32 bits of magnitudes' bits below float16's least normal number, rounded."""
    # Whole steps of 2**-24.
    steps = magnitude_RD.clamp(max=_NORMAL_FLOAT16).view(torch.float32) * 2.0**24
    if dice_RD is None:
        return (steps.round() * 2.0**-24).view(torch.int32)
    below = steps.floor()
    # (dice + 1/2) / 2**32 < steps - below, in integers: to raise the right side to one is exact.
    limit = ((steps - below) * 2.0**33).ceil().to(torch.int64)
    is_up = 2 * dice_RD + 1 < limit
    return ((below + is_up.to(torch.float32)) * 2.0**-24).view(torch.int32)


def _tally(clean_RD: torch.Tensor, noisy_RD: torch.Tensor, error_RD: torch.Tensor) -> torch.Tensor:
    """Returns the `error_model.tally` of each row: float64 [R, 6]."""
    was_finite_RD = clean_RD.abs() < math.inf
    is_finite_RD = was_finite_RD & (noisy_RD.abs() < math.inf)
    asked_RD = is_finite_RD & (error_RD != 0)
    changed_RD = was_finite_RD & (noisy_RD != clean_RD)
    fields = (
        clean_RD.new_full((clean_RD.shape[0],), clean_RD.shape[1]),
        asked_RD.sum(1),
        changed_RD.sum(1),
        _sum_of_squares(noisy_RD - clean_RD, is_finite_RD),
        _sum_of_squares(clean_RD, is_finite_RD),
        _sum_of_squares(error_RD, is_finite_RD),
    )
    return torch.stack([field.to(torch.float64) for field in fields], dim=1)


def _sum_of_squares(x_RD: torch.Tensor, is_counted_RD: torch.Tensor) -> torch.Tensor:
    """Returns float64 [R], of float32 numbers from 1e-31 to the largest."""
    # float32 holds the squares of half its range: the large and the small are summed apart, each
    # moved to where theirs are.
    is_large_RD = x_RD.abs() >= 2.0**12
    square_RD = (x_RD * torch.where(is_large_RD, 2.0**-74, 2.0**42)).square()
    square_RD = torch.where(is_counted_RD, square_RD, 0.0)
    large_R = torch.where(is_large_RD, square_RD, 0.0).sum(1).to(torch.float64)
    small_R = torch.where(is_large_RD, 0.0, square_RD).sum(1).to(torch.float64)
    return large_R * 2.0**148 + small_R * 2.0**-84
