"""The compiled half of fused.py: read, Philox, normal, add, round, write and tally in one pass.

Written for LLVM's vectoriser: short loops without branches over small arrays that stay in the first
cache. Values are those of philox.py and rounding.py, words and rounding exactly, normals to 1e-6.
Everything compiled is in this one file, as numba's cache does not notice changes in another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np

from noisescope.noise.philox import MULTIPLIERS, ROUNDS, STREAM_FLIPS, WEYL

# Arguments of compiled functions are numpy scalars and arrays; numba infers which.
Array = Any
Number = Any

U16, U32, U64, I32, F32, F64 = np.uint16, np.uint32, np.uint64, np.int32, np.float32, np.float64

# 16 numbers fill the widest vector register; 64 blocks of four keep the scratch arrays under 8 KiB.
GROUP = 16
CHUNK_BLOCKS = 64
CHUNK = 4 * CHUNK_BLOCKS

MASK = U64(0xFFFFFFFF)
BLOCK_MASK = U64(0x3FFFFFFF)
HALF = U64(32)
MULTIPLIER_0, MULTIPLIER_1 = U64(MULTIPLIERS[0]), U64(MULTIPLIERS[1])
WEYL_0, WEYL_1 = U64(WEYL[0]), U64(WEYL[1])
NOISE_FLIP, ROUNDING_FLIP = U64(STREAM_FLIPS[0]), U64(STREAM_FLIPS[1])

SQRT_HALF_BITS = U32(0x3F3504F3)
SQRT_HALF_WORD = U32(3037000500)
LN2_HIGH, LN2_LOW = F32(0.693359375), F32(-2.12194440e-4)
ANGLE_UNIT = F32(2 * np.pi / 2**32)

# What the bits of an element mean; one compiled kernel serves all formats of one width.
AS_FLOAT32, AS_BFLOAT16, AS_FLOAT16 = 0, 1, 2
ABS_MASK, SIGN_MASK = U32(0x7FFFFFFF), U32(0x80000000)
INFINITY = U32(0x7F800000)
LARGEST_BFLOAT16 = U32(0x7F7F0000)
LARGEST_FLOAT16, NORMAL_FLOAT16 = U32(0x477FE000), U32(0x38800000)


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles at the first call; machine code is kept on disk where a place can be written."""
    options = {"nogil": True, "error_model": "numpy", **options}

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            # Neither beside this file nor in the user's cache directory: every process compiles.
            return numba.njit(**options)(function)

    return decorate


@_compiled(forceinline=True)
def _philox(c_0: Number, c_1: Number, c_2: Number, c_3: Number, k_0: Number, k_1: Number) -> Any:
    # Words lie in 64-bit lanes: the widening multiply is then one instruction without shuffles,
    # three times as fast as 32-bit lanes.
    for _ in range(ROUNDS):
        p_0 = c_0 * MULTIPLIER_0
        p_1 = c_2 * MULTIPLIER_1
        c_0, c_1 = (p_1 >> HALF) ^ c_1 ^ k_0, p_1 & MASK
        c_2, c_3 = (p_0 >> HALF) ^ c_3 ^ k_1, p_0 & MASK
        k_0 = (k_0 + WEYL_0) & MASK
        k_1 = (k_1 + WEYL_1) & MASK
    return c_0, c_1, c_2, c_3


@_compiled(forceinline=True)
def fill_words(
    words: Array,
    blocks: int,
    block: Number,
    position: Number,
    sample: Number,
    site: Number,
    seed: Number,
    draw: Number,
) -> None:
    """Fills words[lane, j], uint32 [4, n], with those of blocks block + j; numbers are uint64."""
    for j in range(blocks):
        c_0 = (block + U64(j)) & BLOCK_MASK
        x_0, x_1, x_2, x_3 = _philox(c_0, position, sample, site, seed, draw)
        words[0, j] = U32(x_0)
        words[1, j] = U32(x_1)
        words[2, j] = U32(x_2)
        words[3, j] = U32(x_3)


# Fused multiply-adds are let in where polynomials are; elsewhere one would skip a rounding that the
# generic path makes.
@_compiled(forceinline=True, fastmath={"contract"})
def _radius(word: Number) -> Any:
    """Returns sqrt(-2 ln((word + 1/2) / 2**32)); the polynomial is logf's of the Cephes library."""
    scaled = F32(F32(word) + F32(0.5))
    offset = U32(F32(scaled).view(U32) - SQRT_HALF_BITS)
    mantissa = U32(U32(offset & U32(0x7FFFFF)) + SQRT_HALF_BITS)
    # Near u = 1 the logarithm is that of 1 - (1 - u): the complement of the word holds 1 - u to
    # full relative accuracy, u in float32 does not.
    is_near_one = word >= SQRT_HALF_WORD
    complement = F32(F32(U32(~word)) + F32(0.5))
    f = -complement * F32(2.0**-32) if is_near_one else U32(mantissa).view(F32) - F32(1)
    exponent = F32(0) if is_near_one else F32(I32((I32(offset) >> I32(23)) - I32(32)))
    p = F32(7.0376836292e-2)
    p = p * f + F32(-1.1514610310e-1)
    p = p * f + F32(1.1676998740e-1)
    p = p * f + F32(-1.2420140846e-1)
    p = p * f + F32(1.4249322787e-1)
    p = p * f + F32(-1.6668057665e-1)
    p = p * f + F32(2.0000714765e-1)
    p = p * f + F32(-2.4999993993e-1)
    p = p * f + F32(3.3333331174e-1)
    square = f * f
    tail = p * f * square + exponent * LN2_LOW - F32(0.5) * square
    return np.sqrt(F32(-2) * ((f + tail) + exponent * LN2_HIGH))


@_compiled(forceinline=True, fastmath={"contract"})
def _cosine_and_sine(word: Number) -> Any:
    """Returns cos and sin of 2 pi (word + 1/2) / 2**32; polynomials of Cephes' sinf and cosf."""
    quarter = U32(U32(word + U32(0x20000000)) >> U32(30))
    angle = (F32(I32(U32(word - U32(quarter << U32(30))))) + F32(0.5)) * ANGLE_UNIT
    square = angle * angle
    s = F32(-1.9515295891e-4) * square + F32(8.3321608736e-3)
    s = (s * square + F32(-1.6666654611e-1)) * square * angle + angle
    c = F32(2.443315711809948e-5) * square + F32(-1.388731625493765e-3)
    c = (c * square + F32(4.166664568298827e-2)) * square * square
    c = c + (F32(1) - F32(0.5) * square)
    is_odd = U32(quarter & U32(1)) != U32(0)
    cosine_bits = F32(s if is_odd else c).view(U32) ^ U32(
        U32((quarter + U32(1)) & U32(2)) << U32(30)
    )
    sine_bits = F32(c if is_odd else s).view(U32) ^ U32(U32(quarter & U32(2)) << U32(30))
    return U32(cosine_bits).view(F32), U32(sine_bits).view(F32)


@_compiled(forceinline=True, fastmath={"contract"})
def fill_normals(normals: Array, words: Array, blocks: int) -> None:
    """Fills normals[4 j + lane], float32, from words[lane, j]."""
    for j in range(blocks):
        radius = _radius(words[0, j])
        cosine, sine = _cosine_and_sine(words[1, j])
        normals[4 * j] = radius * cosine
        normals[4 * j + 1] = radius * sine
        radius = _radius(words[2, j])
        cosine, sine = _cosine_and_sine(words[3, j])
        normals[4 * j + 2] = radius * cosine
        normals[4 * j + 3] = radius * sine


@_compiled(forceinline=True)
def _float_of_half(bits: Number) -> Any:
    """Returns the float32 of float16 bits (uint32)."""
    # The exponent is moved up by a product, which also makes subnormals normal.
    shifted = U32((bits & U32(0x7FFF)) << U32(13))
    magnitude = U32(F32(U32(shifted).view(F32) * F32(2.0**112)).view(U32))
    is_finite = shifted < U32(0x0F800000)
    magnitude = magnitude if is_finite else U32(shifted | INFINITY)
    return U32(magnitude | U32((bits & U32(0x8000)) << U32(16))).view(F32)


@_compiled(forceinline=True)
def _bfloat16_bits(bits: Number, dice: Number, is_stochastic: bool) -> Any:
    """Returns the bfloat16 bits of float32 bits (all uint32)."""
    magnitude = U32(bits & ABS_MASK)
    nearest = U32(U32(0x7FFF) + U32((bits >> U32(16)) & U32(1)))
    upward = U32(U32(0xFFFF) - U32(dice >> U32(16)))
    addend = upward if is_stochastic and magnitude <= LARGEST_BFLOAT16 else nearest
    rounded = U32(U32(bits + addend) >> U32(16))
    return rounded if magnitude <= INFINITY else U32(U32(bits >> U32(16)) | U32(0x40))


@_compiled(forceinline=True)
def _float16_bits(bits: Number, dice: Number, is_stochastic: bool) -> Any:
    """Returns the float16 bits of float32 bits (all uint32)."""
    magnitude = U32(bits & ABS_MASK)
    is_chance = is_stochastic and magnitude <= LARGEST_FLOAT16
    # Normal results: 13 bits fall away, and a carry into the exponent is right as it is.
    nearest = U32(U32(0x0FFF) + U32((magnitude >> U32(13)) & U32(1)))
    upward = U32(U32(0x1FFF) - U32(dice >> U32(19)))
    addend = upward if is_chance else nearest
    normal = U32(U32(magnitude + addend) >> U32(13)) - U32(112 << 10)
    normal = U32(0x7C00) if U32(normal) > U32(0x7C00) else U32(normal)
    # Subnormal results: the number of steps of 2**-24 is the bit pattern.
    steps = U32(min(U32(magnitude), NORMAL_FLOAT16)).view(F32) * F32(2.0**24)
    below = np.floor(steps)
    is_up = (F64(dice) + 0.5) * 2.0**-32 < F64(steps - below)
    chance = below + (F32(1) if is_up else F32(0))
    subnormal = U32(I32(chance if is_chance else np.rint(steps)))
    rounded = subnormal if magnitude < NORMAL_FLOAT16 else normal
    rounded = rounded if magnitude <= INFINITY else U32(0x7E00)
    return U32(rounded | U32(U32(bits & SIGN_MASK) >> U32(16)))


@_compiled(forceinline=True)
def _read(x: Array, y: Array, start: int, count: int, number_format: int) -> None:
    """Fills x with y[start:start+count] as float32."""
    if number_format == AS_FLOAT32:
        for i in range(count):
            x[i] = U32(y[start + U64(i)]).view(F32)
    elif number_format == AS_BFLOAT16:
        for i in range(count):
            x[i] = U32(U32(y[start + U64(i)]) << U32(16)).view(F32)
    else:
        for i in range(count):
            x[i] = _float_of_half(U32(y[start + U64(i)]))


@_compiled(forceinline=True)
def _add(
    noisy: Array,
    error: Array,
    x: Array,
    normals: Array,
    offset: int,
    count: int,
    scale: Number,
    is_relative: bool,
) -> None:
    """Fills error from normals[offset:], and noisy with x + error."""
    if is_relative:
        for i in range(count):
            error[i] = normals[offset + U64(i)] * scale * abs(x[i])
            noisy[i] = x[i] + error[i]
    else:
        for i in range(count):
            error[i] = normals[offset + U64(i)] * scale
            noisy[i] = x[i] + error[i]


@_compiled(forceinline=True)
def _write(
    out: Array,
    start: int,
    noisy: Array,
    dice: Array,
    offset: int,
    count: int,
    format_: int,
    is_chance: bool,
) -> None:
    """Rounds noisy into out[start:start+count], and noisy itself becomes what was written."""
    if format_ == AS_FLOAT32:
        for i in range(count):
            out[start + U64(i)] = F32(noisy[i]).view(U32)
    elif format_ == AS_BFLOAT16:
        for i in range(count):
            bits = _bfloat16_bits(F32(noisy[i]).view(U32), dice[offset + U64(i)], is_chance)
            out[start + U64(i)] = bits
            noisy[i] = U32(U32(bits) << U32(16)).view(F32)
    else:
        for i in range(count):
            bits = _float16_bits(F32(noisy[i]).view(U32), dice[offset + U64(i)], is_chance)
            out[start + U64(i)] = bits
            noisy[i] = _float_of_half(U32(bits))


# Sums may be reassociated here, to be vectorised, but noisy is read back from memory: what arrived
# cannot be simplified into what was asked for.
@_compiled(forceinline=True, fastmath={"contract", "reassoc"})
def _count(tallies: Array, task: int, x: Array, noisy: Array, error: Array, count: int) -> None:
    """Adds a chunk to tallies[task, 1:]: asked, changed, error, clean and asked square."""
    wanted, changed = 0, 0
    error_square, clean_square, asked_square = 0.0, 0.0, 0.0
    for i in range(count):
        is_finite = abs(noisy[i]) < np.inf
        change = F64(noisy[i]) - F64(x[i]) if is_finite else 0.0
        clean = F64(x[i]) if is_finite else 0.0
        asked = F64(error[i]) if is_finite else 0.0
        changed += 1 if abs(x[i]) < np.inf and noisy[i] != x[i] else 0
        wanted += 1 if asked != 0.0 else 0
        error_square += change * change
        clean_square += clean * clean
        asked_square += asked * asked
    tallies[task, 1] += wanted
    tallies[task, 2] += changed
    tallies[task, 3] += error_square
    tallies[task, 4] += clean_square
    tallies[task, 5] += asked_square


class Recipe(NamedTuple):
    """What is done to each element of a tensor; numbers only, as arrays in a tuple are counted."""

    site: int
    seed: int
    draw: int
    number_format: int
    scale: Number
    is_relative: bool
    is_stochastic: bool


@_compiled()
def perturb_tasks(
    out: Array,
    y: Array,
    sample_R: Array,
    position_R: Array,
    channel_R: Array,
    recipe: Any,
    rows_per_task: int,
    begin: int,
    end: int,
    tallies: Array,
) -> None:
    """Perturbs the rows of tasks begin..end-1 of flat y into out, and writes a tally per task."""
    words = np.empty((4, CHUNK_BLOCKS), U32)
    dice = np.zeros(CHUNK, U32)
    normals = np.empty(CHUNK, F32)
    x, error, noisy = np.empty(CHUNK, F32), np.empty(CHUNK, F32), np.empty(CHUNK, F32)
    channels = len(y) // len(sample_R)
    site, seed, draw = U64(recipe.site), U64(recipe.seed), U64(recipe.draw)
    for r in range(begin * rows_per_task, min(end * rows_per_task, len(sample_R))):
        position, sample = U64(position_R[r]) & MASK, U64(sample_R[r]) & MASK
        first_block = (U64(channel_R[r]) & MASK) >> U64(2)
        # Chunks begin at whole blocks; the first column may lie inside its block.
        shift = channel_R[r] & 3
        for chunk in range((channels + shift + CHUNK - 1) // CHUNK):
            first = max(0, chunk * CHUNK - shift)
            count = min(channels, (chunk + 1) * CHUNK - shift) - first
            offset = U64(first + shift - chunk * CHUNK)
            # Whole groups, so that every number leaves the same vector instructions wherever a row
            # ends; what is too much stays in the scratch arrays.
            groups = (first + shift - chunk * CHUNK + count + 4 * GROUP - 1) // (4 * GROUP)
            blocks = groups * GROUP
            block = first_block + U64(chunk * CHUNK_BLOCKS)
            start = U64(r * channels + first)
            fill_words(words, blocks, block, position, sample, site ^ NOISE_FLIP, seed, draw)
            fill_normals(normals, words, blocks)
            _read(x, y, start, count, recipe.number_format)
            _add(noisy, error, x, normals, offset, count, recipe.scale, recipe.is_relative)
            if recipe.is_stochastic:
                fill_words(words, blocks, block, position, sample, site ^ ROUNDING_FLIP, seed, draw)
                for j in range(blocks):
                    for lane in range(4):
                        dice[4 * j + lane] = words[lane, j]
            _write(
                out, start, noisy, dice, offset, count, recipe.number_format, recipe.is_stochastic
            )
            _count(tallies, r // rows_per_task, x, noisy, error, count)
