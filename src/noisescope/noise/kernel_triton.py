"""Gaussian error on a GPU in one pass: read, Philox, normal, add, round, write and tally.

Values are those of philox.py and rounding.py: words and rounding exactly, normals to 1e-6. Imports
Triton, so it is imported only where a tensor lies on a GPU. Suffixes: R rows, D channels of one
tile, K blocks of four channels (D = 4 K).
"""

import torch
import triton
import triton.language as tl

from noisescope.noise.address import Address
from noisescope.noise.error_model import TALLY_FIELDS
from noisescope.noise.philox import MULTIPLIERS, ROUNDS, STREAM_FLIPS, WEYL
from noisescope.noise.rounding import Rounding

FIELDS = tl.constexpr(len(TALLY_FIELDS))
ROUND_COUNT = tl.constexpr(ROUNDS)
MULTIPLIER_0, MULTIPLIER_1 = tl.constexpr(MULTIPLIERS[0]), tl.constexpr(MULTIPLIERS[1])
WEYL_0, WEYL_1 = tl.constexpr(WEYL[0]), tl.constexpr(WEYL[1])
NOISE_FLIP, ROUNDING_FLIP = tl.constexpr(STREAM_FLIPS[0]), tl.constexpr(STREAM_FLIPS[1])
BLOCK_MASK = tl.constexpr(0x3FFFFFFF)

SQRT_HALF_BITS, SQRT_HALF_WORD = tl.constexpr(0x3F3504F3), tl.constexpr(3037000500)
ANGLE_UNIT = tl.constexpr(2 * 3.141592653589793 / 2**32)
ABS_MASK, SIGN_MASK = tl.constexpr(0x7FFFFFFF), tl.constexpr(0x80000000)
LARGEST_BFLOAT16 = tl.constexpr(0x7F7F0000)
LARGEST_FLOAT16, NORMAL_FLOAT16 = tl.constexpr(0x477FE000), tl.constexpr(0x38800000)
INFINITY = tl.constexpr(float("inf"))
# A smaller sum of squares in float32 may have lost terms below the least normal number.
LEAST_SURE_SUM = tl.constexpr(2.0**-80)

# Few shapes, for each is compiled: rows of any length meet one of these widths.
WIDTHS = (1024, 256, 64)
ELEMENTS_PER_PROGRAM = 2048
ELEMENTS_PER_WARP = 512


@triton.jit
def _philox(
    c_0: tl.tensor, c_1: tl.tensor, c_2: tl.tensor, c_3: tl.tensor, k_0: tl.tensor, k_1: tl.tensor
) -> tl.tensor:
    # Not the library's philox_impl: that cannot be interpreted in a process that had imported
    # Triton before it knew that it would be interpreted.
    for _ in tl.static_range(ROUND_COUNT):
        # One widening multiply for both halves of a product.
        product_0 = c_0.to(tl.uint64) * MULTIPLIER_0
        product_1 = c_2.to(tl.uint64) * MULTIPLIER_1
        c_0, c_1 = (product_1 >> 32).to(tl.uint32) ^ c_1 ^ k_0, product_1.to(tl.uint32)
        c_2, c_3 = (product_0 >> 32).to(tl.uint32) ^ c_3 ^ k_1, product_0.to(tl.uint32)
        k_0 += WEYL_0
        k_1 += WEYL_1
    return c_0, c_1, c_2, c_3


@triton.jit
def _radius(word: tl.tensor) -> tl.tensor:
    """Returns sqrt(-2 ln((word + 1/2) / 2**32)); the polynomial is logf's of the Cephes library."""
    scaled = word.to(tl.float32) + 0.5
    offset = scaled.to(tl.uint32, bitcast=True) - SQRT_HALF_BITS
    mantissa = ((offset & 0x7FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    # Near u = 1 the logarithm is that of 1 - (1 - u): the complement of the word holds 1 - u to
    # full relative accuracy, u in float32 does not.
    is_near_one = word >= SQRT_HALF_WORD
    complement = (word ^ 0xFFFFFFFF).to(tl.float32) + 0.5
    f = tl.where(is_near_one, complement * -(2.0**-32), mantissa - 1.0)
    exponent = ((offset.to(tl.int32, bitcast=True) >> 23) - 32).to(tl.float32)
    exponent = tl.where(is_near_one, 0.0, exponent)
    p = tl.fma(f, 7.0376836292e-2, -1.1514610310e-1)
    p = tl.fma(p, f, 1.1676998740e-1)
    p = tl.fma(p, f, -1.2420140846e-1)
    p = tl.fma(p, f, 1.4249322787e-1)
    p = tl.fma(p, f, -1.6668057665e-1)
    p = tl.fma(p, f, 2.0000714765e-1)
    p = tl.fma(p, f, -2.4999993993e-1)
    p = tl.fma(p, f, 3.3333331174e-1)
    square = f * f
    tail = tl.fma(p * f, square, exponent * -2.12194440e-4) - 0.5 * square
    return tl.sqrt(-2.0 * tl.fma(exponent, 0.693359375, f + tail))


@triton.jit
def _cosine_and_sine(word: tl.tensor) -> tl.tensor:
    """Returns cos and sin of 2 pi (word + 1/2) / 2**32; polynomials of Cephes' sinf and cosf."""
    quarter = (word + 0x20000000) >> 30
    angle = ((word - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) + 0.5) * ANGLE_UNIT
    square = angle * angle
    s = tl.fma(square, -1.9515295891e-4, 8.3321608736e-3)
    s = tl.fma(s, square, -1.6666654611e-1)
    s = tl.fma(s * square, angle, angle)
    c = tl.fma(square, 2.443315711809948e-5, -1.388731625493765e-3)
    c = tl.fma(c, square, 4.166664568298827e-2)
    c = tl.fma(c * square, square, tl.fma(square, -0.5, 1.0))
    is_odd = (quarter & 1) != 0
    cosine = tl.where(is_odd, s, c).to(tl.uint32, bitcast=True) ^ (((quarter + 1) & 2) << 30)
    sine = tl.where(is_odd, c, s).to(tl.uint32, bitcast=True) ^ ((quarter & 2) << 30)
    return cosine.to(tl.float32, bitcast=True), sine.to(tl.float32, bitcast=True)


@triton.jit
def _normals(
    c_0: tl.tensor, c_1: tl.tensor, c_2: tl.tensor, c_3: tl.tensor, k_0: tl.tensor, k_1: tl.tensor
) -> tl.tensor:
    """Returns the four normal numbers of each block."""
    word_0, word_1, word_2, word_3 = _philox(c_0, c_1, c_2, c_3, k_0, k_1)
    radius_0, radius_1 = _radius(word_0), _radius(word_2)
    cosine_0, sine_0 = _cosine_and_sine(word_1)
    cosine_1, sine_1 = _cosine_and_sine(word_3)
    return radius_0 * cosine_0, radius_0 * sine_0, radius_1 * cosine_1, radius_1 * sine_1


@triton.jit
def _shifted(
    a_0: tl.tensor,
    a_1: tl.tensor,
    a_2: tl.tensor,
    a_3: tl.tensor,
    b_0: tl.tensor,
    b_1: tl.tensor,
    b_2: tl.tensor,
    shift: tl.tensor,
) -> tl.tensor:
    """Returns four lanes from a shift on, of a block and of the one after it."""
    x_0 = tl.where(shift < 2, tl.where(shift == 0, a_0, a_1), tl.where(shift == 2, a_2, a_3))
    x_1 = tl.where(shift < 2, tl.where(shift == 0, a_1, a_2), tl.where(shift == 2, a_3, b_0))
    x_2 = tl.where(shift < 2, tl.where(shift == 0, a_2, a_3), tl.where(shift == 2, b_0, b_1))
    x_3 = tl.where(shift < 2, tl.where(shift == 0, a_3, b_0), tl.where(shift == 2, b_1, b_2))
    return x_0, x_1, x_2, x_3


@triton.jit
def _interleaved(x_0: tl.tensor, x_1: tl.tensor, x_2: tl.tensor, x_3: tl.tensor) -> tl.tensor:
    """Returns [R, 4 K]: the four lanes, [R, K] each, side by side."""
    pairs = tl.join(tl.join(x_0, x_2), tl.join(x_1, x_3))
    return tl.reshape(pairs, [x_0.shape[0], 4 * x_0.shape[1]])


@triton.jit
def _by_element(
    FUNCTION: tl.constexpr,
    block_RK: tl.tensor,
    c_1: tl.tensor,
    c_2: tl.tensor,
    c_3: tl.tensor,
    k_0: tl.tensor,
    k_1: tl.tensor,
    shift_R1: tl.tensor,
) -> tl.tensor:
    """Returns [R, 4 K]: of the blocks' four words or normals the one that each element has."""
    x_0, x_1, x_2, x_3 = FUNCTION(block_RK & BLOCK_MASK, c_1, c_2, c_3, k_0, k_1)
    # Only a row that begins inside a block needs the next block as well.
    if tl.sum(tl.reshape(shift_R1, [shift_R1.shape[0]]), 0) > 0:
        b_0, b_1, b_2, _ = FUNCTION((block_RK + 1) & BLOCK_MASK, c_1, c_2, c_3, k_0, k_1)
        x_0, x_1, x_2, x_3 = _shifted(x_0, x_1, x_2, x_3, b_0, b_1, b_2, shift_R1)
    return _interleaved(x_0, x_1, x_2, x_3)


@triton.jit
def _stochastic_bfloat16(noisy: tl.tensor, dice: tl.tensor) -> tl.tensor:
    """Returns float32 that bfloat16 holds, where noisy is not beyond its largest value."""
    bits = noisy.to(tl.uint32, bitcast=True)
    chance = (bits + (0xFFFF - (dice >> 16))) & 0xFFFF0000
    is_chance = (bits & ABS_MASK) <= LARGEST_BFLOAT16
    return tl.where(is_chance, chance, bits).to(tl.float32, bitcast=True)


@triton.jit
def _stochastic_float16(noisy: tl.tensor, dice: tl.tensor) -> tl.tensor:
    """Returns float32 that float16 holds, where noisy is not beyond its largest value."""
    bits = noisy.to(tl.uint32, bitcast=True)
    magnitude = bits & ABS_MASK
    normal = (magnitude + (0x1FFF - (dice >> 19))) & 0xFFFFE000
    # Subnormal results: whole steps of 2**-24, and one more where dice + 1/2 < part * 2**32. All of
    # it is exact: from 2**23 on a float32 is an integer, below that it can be halved.
    steps = magnitude.to(tl.float32, bitcast=True) * 2.0**24
    below = tl.floor(steps)
    part = (steps - below) * 2.0**32
    limit = tl.where(part < 2.0**23, tl.ceil(part - 0.5), part)
    is_up = dice < tl.where(magnitude < NORMAL_FLOAT16, limit, 0.0).to(tl.uint32)
    subnormal = (below + is_up.to(tl.float32)) * 2.0**-24
    subnormal = subnormal.to(tl.uint32, bitcast=True)
    chance = tl.where(magnitude < NORMAL_FLOAT16, subnormal, normal) | (bits & SIGN_MASK)
    is_chance = magnitude <= LARGEST_FLOAT16
    return tl.where(is_chance, chance, bits).to(tl.float32, bitcast=True)


@triton.jit
def _careful_tally(x_RD: tl.tensor, noisy_RD: tl.tensor, error_RD: tl.tensor) -> tl.tensor:
    """Returns what `_tally` does, whatever the values."""
    was_finite_RD = tl.abs(x_RD) < INFINITY
    is_finite_RD = was_finite_RD & (tl.abs(noisy_RD) < INFINITY)
    asked_R = tl.sum((is_finite_RD & (error_RD != 0)).to(tl.int32), 1)
    changed_R = tl.sum((was_finite_RD & (noisy_RD != x_RD)).to(tl.int32), 1)
    clean_RD = tl.where(is_finite_RD, x_RD, 0.0).to(tl.float64)
    change_RD = tl.where(is_finite_RD, noisy_RD, 0.0).to(tl.float64) - clean_RD
    wide_RD = tl.where(is_finite_RD, error_RD, 0.0).to(tl.float64)
    error_R = tl.sum(change_RD * change_RD, 1)
    clean_R = tl.sum(clean_RD * clean_RD, 1)
    square_R = tl.sum(wide_RD * wide_RD, 1)
    return asked_R.to(tl.float64), changed_R.to(tl.float64), error_R, clean_R, square_R


@triton.jit
def _tally(
    x_RD: tl.tensor, noisy_RD: tl.tensor, error_RD: tl.tensor, is_perturbed_R: tl.tensor
) -> tl.tensor:
    """Returns asked, changed, error, clean and asked square of each row: float64 [R]."""
    change_RD = noisy_RD - x_RD
    # Two counts in one sum.
    counts_RD = tl.where(error_RD != 0, 1, 0) + tl.where(noisy_RD != x_RD, 0x10000, 0)
    counts_R = tl.sum(counts_RD, 1)
    error_R = tl.sum(change_RD * change_RD, 1)
    clean_R = tl.sum(x_RD * x_RD, 1)
    square_R = tl.sum(error_RD * error_RD, 1)
    asked_R, changed_R = counts_R & 0xFFFF, counts_R >> 16
    # Infinite and NaN values, overflow and underflow all show in the sums, so that nothing has to
    # be tested element by element. Where an error of nothing came of a scale, x is zeros.
    is_sure_R = (
        ((error_R >= LEAST_SURE_SUM) | (changed_R == 0))
        & ((clean_R >= LEAST_SURE_SUM) | ((asked_R == 0) & is_perturbed_R))
        & ((square_R >= LEAST_SURE_SUM) | (asked_R == 0))
        & (error_R + clean_R + square_R < INFINITY)
    )
    asked_R, changed_R = asked_R.to(tl.float64), changed_R.to(tl.float64)
    error_R, clean_R = error_R.to(tl.float64), clean_R.to(tl.float64)
    square_R = square_R.to(tl.float64)
    if tl.sum(is_sure_R.to(tl.int32), 0) < x_RD.shape[0]:
        asked_R, changed_R, error_R, clean_R, square_R = _careful_tally(x_RD, noisy_RD, error_RD)
    return asked_R, changed_R, error_R, clean_R, square_R


@triton.jit
def _of_rows(
    value: tl.tensor,
    dtype: tl.constexpr,
    row_R: tl.tensor,
    is_row_R: tl.tensor,
    IS_BY_ROW: tl.constexpr,
) -> tl.tensor:
    """Returns a number for each row: its own where value is a pointer, else the one of all."""
    if IS_BY_ROW:
        value_R = tl.load(value + row_R, mask=is_row_R, other=0).to(dtype)
    else:
        value_R = tl.full([row_R.shape[0]], value, dtype)
    return value_R


@triton.jit(
    do_not_specialize=["seed", "draw", "scale", "site", "rows"],
    do_not_specialize_on_alignment=["sample", "position", "channel", "seed", "draw", "scale"],
)
def perturb_tile(
    y: tl.tensor,
    out: tl.tensor,
    tallies: tl.tensor,
    sample: tl.tensor,
    position: tl.tensor,
    channel: tl.tensor,
    seed: tl.tensor,
    draw: tl.tensor,
    scale: tl.tensor,
    site: tl.tensor,
    rows: tl.tensor,
    channels: tl.tensor,
    SEED_BY_ROW: tl.constexpr,
    DRAW_BY_ROW: tl.constexpr,
    SCALE_BY_ROW: tl.constexpr,
    IS_RELATIVE: tl.constexpr,
    IS_STOCHASTIC: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_BLOCKS: tl.constexpr,
) -> None:
    """Perturbs one tile of y [R, D] into out, and writes its tally, of each row or of all."""
    row_R = tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    is_row_R = row_R < rows
    c_1 = tl.load(position + row_R, mask=is_row_R, other=0).to(tl.uint32)[:, None]
    c_2 = tl.load(sample + row_R, mask=is_row_R, other=0).to(tl.uint32)[:, None]
    first_R = tl.load(channel + row_R, mask=is_row_R, other=0).to(tl.uint32)
    k_0 = _of_rows(seed, tl.uint32, row_R, is_row_R, SEED_BY_ROW)[:, None]
    k_1 = _of_rows(draw, tl.uint32, row_R, is_row_R, DRAW_BY_ROW)[:, None]
    scale_R = _of_rows(scale, tl.float32, row_R, is_row_R, SCALE_BY_ROW)
    is_perturbed_R = scale_R != 0

    column_D = tl.program_id(1) * 4 * TILE_BLOCKS + tl.arange(0, 4 * TILE_BLOCKS)
    start_R = row_R.to(tl.int64) * channels
    is_inside_RD = is_row_R[:, None] & (column_D < channels)[None, :]
    raw_RD = tl.load((y + start_R)[:, None] + column_D[None, :], mask=is_inside_RD, other=0)
    x_RD = raw_RD.to(tl.float32)
    noisy_RD = raw_RD
    error_RD = tl.full([TILE_ROWS, 4 * TILE_BLOCKS], 0, tl.float32)
    if tl.sum(is_perturbed_R.to(tl.int32), 0) > 0:
        block_K = (tl.program_id(1) * TILE_BLOCKS + tl.arange(0, TILE_BLOCKS)).to(tl.uint32)
        block_RK = (first_R >> 2)[:, None] + block_K[None, :]
        shift_R1 = (first_R & 3)[:, None]
        c_3 = site.to(tl.uint32) ^ NOISE_FLIP
        error_RD = _by_element(_normals, block_RK, c_1, c_2, c_3, k_0, k_1, shift_R1)
        error_RD *= scale_R[:, None]
        if IS_RELATIVE:
            error_RD *= tl.abs(x_RD)
        else:
            error_RD = tl.where(is_inside_RD, error_RD, 0.0)
        wide_RD = x_RD + error_RD
        if IS_STOCHASTIC:
            c_3 = site.to(tl.uint32) ^ ROUNDING_FLIP
            dice_RD = _by_element(_philox, block_RK, c_1, c_2, c_3, k_0, k_1, shift_R1)
            if raw_RD.dtype == tl.bfloat16:
                wide_RD = _stochastic_bfloat16(wide_RD, dice_RD)
            else:
                wide_RD = _stochastic_float16(wide_RD, dice_RD)
        noisy_RD = wide_RD.to(raw_RD.dtype)
        if SCALE_BY_ROW:
            # Added zeros are no zeros everywhere: -0 and the bits of a NaN would be lost.
            noisy_RD = tl.where(is_perturbed_R[:, None], noisy_RD, raw_RD)
    tl.store((out + start_R)[:, None] + column_D[None, :], noisy_RD, mask=is_inside_RD)

    arrived_RD = noisy_RD.to(tl.float32)
    elements_R = tl.where(is_row_R & (tl.program_id(1) == 0), channels, 0)
    if not SCALE_BY_ROW:
        # One tally of all: the tile as one long row.
        x_RD = tl.reshape(x_RD, [1, TILE_ROWS * 4 * TILE_BLOCKS])
        arrived_RD = tl.reshape(arrived_RD, [1, TILE_ROWS * 4 * TILE_BLOCKS])
        error_RD = tl.reshape(error_RD, [1, TILE_ROWS * 4 * TILE_BLOCKS])
        elements_R = tl.full([1], tl.sum(elements_R, 0), tl.int32)
        is_perturbed_R = tl.full([1], scale != 0, tl.int1)
        row_R = tl.program_id(0) + tl.arange(0, 1)
        is_row_R = row_R >= 0
    place_R = tallies + (row_R.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * FIELDS
    told = _tally(x_RD, arrived_RD, error_RD, is_perturbed_R)
    tl.store(place_R, elements_R.to(tl.float64), mask=is_row_R)
    for field in tl.static_range(1, FIELDS):
        tl.store(place_R + field, told[field - 1], mask=is_row_R)


def perturb_gaussian_triton(
    y_RD: torch.Tensor,
    at: Address,
    scale: float | torch.Tensor,
    is_relative: bool,
    rounding: Rounding,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds N(0, 1) * scale, times abs(y) where relative: `ErrorModel.perturb` in one pass.

    Nothing waits for the GPU. A row of scale 0 keeps its bits.

    Args:
        y_RD: float32, bfloat16 or float16 tensor [R, D] on a GPU.
        at: Where the elements lie, on the same GPU.
        scale: Standard deviation of the error: of all rows, or float32 [R] by row.
        is_relative: Whether the scale is a share of each value.
        rounding: 'nearest' or 'stochastic'.
        out: Where the noisy values are written: contiguous, of y's shape and dtype. y_RD itself
            writes in place, unseen by autograd. None makes a new tensor.

    Returns:
        The noisy values, and the tally: float64 [6], or [R, 6] where scale is by row. The same bits
        at every call.

    Raises:
        ValueError: out is not contiguous.
    """
    rows, channels = y_RD.shape
    is_by_row = isinstance(scale, torch.Tensor)
    noisy_RD = torch.empty_like(y_RD, memory_format=torch.contiguous_format) if out is None else out
    if not noisy_RD.is_contiguous():
        raise ValueError(f"out: strides {noisy_RD.stride()}; a contiguous tensor is needed")
    tile_rows, width = _tile_shape(rows, channels)
    grid = (-(-rows // tile_rows), -(-channels // width))
    tallies = torch.empty(
        (rows if is_by_row else grid[0], grid[1], len(TALLY_FIELDS)),
        dtype=torch.float64,
        device=y_RD.device,
    )
    if y_RD.numel():
        # A kernel is launched on the current GPU, which need not be the tensor's.
        with torch.cuda.device_of(y_RD):
            perturb_tile[grid](
                y_RD.contiguous(),
                noisy_RD,
                tallies,
                at.sample_R.contiguous(),
                at.position_R.contiguous(),
                at.channel_R.contiguous(),
                _word(at.seed),
                _word(at.draw),
                scale.contiguous() if isinstance(scale, torch.Tensor) else float(scale),
                _word(at.site),
                rows,
                channels,
                SEED_BY_ROW=isinstance(at.seed, torch.Tensor),
                DRAW_BY_ROW=isinstance(at.draw, torch.Tensor),
                SCALE_BY_ROW=is_by_row,
                IS_RELATIVE=is_relative,
                IS_STOCHASTIC=rounding == "stochastic" and y_RD.dtype != torch.float32,
                TILE_ROWS=tile_rows,
                TILE_BLOCKS=width // 4,
                num_warps=max(1, tile_rows * width // ELEMENTS_PER_WARP),
            )
    return noisy_RD, tallies.sum(1 if is_by_row else (0, 1))


def _tile_shape(rows: int, channels: int) -> tuple[int, int]:
    """Returns how many rows and columns a program takes."""
    padded = {width: -(-channels // width) * width for width in WIDTHS}
    # The widest that wastes little.
    width = next((w for w in WIDTHS if padded[w] * 16 <= channels * 17), WIDTHS[-1])
    tile_rows = ELEMENTS_PER_PROGRAM // width
    return (tile_rows if rows >= tile_rows else 1), width


def _word(word: int | torch.Tensor) -> int | torch.Tensor:
    """Returns a word as the kernel takes it: 32 bits with a sign, or as many as there are rows."""
    if isinstance(word, torch.Tensor):
        return word.contiguous()
    # Beyond 31 bits Triton would take an integer for 64 bits, and compile once more.
    return word - 2**32 if word >= 2**31 else word
