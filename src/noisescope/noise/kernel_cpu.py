"""The compiled half of fused.py: read, Philox, normal, add, round, write and tally in one pass.

Written for LLVM's vectoriser: short loops without branches over small arrays that stay in the first
cache. Values are those of philox.py and rounding.py, words and rounding exactly, normals to 1e-6.
Everything compiled is in this one file, as numba's cache does not notice changes in another.
"""

import ctypes
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from noisescope.noise.philox import MULTIPLIERS, ROUNDS, STREAM_FLIPS, WEYL

# Arguments of compiled functions are numpy scalars and arrays; numba infers which.
Array = Any
Number = Any

U16, U32, U64, I32, I64 = np.uint16, np.uint32, np.uint64, np.int32, np.int64
F32, F64 = np.float32, np.float64

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

TALLY_BYTES = 8 * 6
# Below this a sum of 256 squares in float32 may miss some that are no normal numbers.
LEAST_SUM = F32(2.0**-100)


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
def _round(x_0: Number, x_1: Number, x_2: Number, x_3: Number, k_0: Number, k_1: Number) -> Any:
    """Returns Philox's words after one more round; what is above 32 bits does not count."""
    # Words lie in 64-bit lanes: the widening multiply is then one instruction without shuffles,
    # three times as fast as 32-bit lanes.
    p_0 = (x_0 & MASK) * MULTIPLIER_0
    p_1 = (x_2 & MASK) * MULTIPLIER_1
    return (p_1 >> HALF) ^ x_1 ^ k_0, p_1, (p_0 >> HALF) ^ x_3 ^ k_1, p_0


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
    """Fills words[lane, j], uint32 [4, n], with those of blocks block + j; numbers are uint64.

    More than are asked for are written, up to a multiple of 2 * GROUP.
    """
    half = U64((blocks + 2 * GROUP - 1) // (2 * GROUP) * GROUP)
    for j in range(half):
        # Two blocks at a time: each round waits for the one before, and the other block fills the
        # gap.
        x_0, y_0 = (block + U64(j)) & BLOCK_MASK, (block + half + U64(j)) & BLOCK_MASK
        x_1 = y_1 = position
        x_2 = y_2 = sample
        x_3 = y_3 = site
        k_0, k_1 = seed, draw
        for _ in range(ROUNDS):
            x_0, x_1, x_2, x_3 = _round(x_0, x_1, x_2, x_3, k_0, k_1)
            y_0, y_1, y_2, y_3 = _round(y_0, y_1, y_2, y_3, k_0, k_1)
            k_0 = (k_0 + WEYL_0) & MASK
            k_1 = (k_1 + WEYL_1) & MASK
        words[0, j], words[0, half + j] = U32(x_0), U32(y_0)
        words[1, j], words[1, half + j] = U32(x_1), U32(y_1)
        words[2, j], words[2, half + j] = U32(x_2), U32(y_2)
        words[3, j], words[3, half + j] = U32(x_3), U32(y_3)


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


@intrinsic
def _pointer(typing: Any, address: Any) -> Any:
    """Returns an address, int64, as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _chunk_memory(typing: Any) -> Any:
    """Returns a pointer to room for CHUNK numbers of 32 bits on the calling function's stack.

    The compiler knows that nothing else points there, and nothing is counted: counts of arrays from
    the heap take longer than a chunk of a short row.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers = context.get_value_type(types.UniTuple(types.uint32, CHUNK))
        room = cgutils.alloca_once(builder, numbers)
        room.align = 64
        return builder.bitcast(room, cgutils.voidptr_t)

    return types.voidptr(), generate


@intrinsic
def _claim(typing: Any, address: Any) -> Any:
    """Adds 1 to the int64 at an address, as one step among threads, and returns what was there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], cgutils.intp_t.as_pointer())
        return builder.atomic_rmw("add", pointer, context.get_constant(types.int64, 1), "seq_cst")

    return types.int64(types.int64), generate


@_compiled(forceinline=True)
def _word_of_row(word: int, words_at: int, r: int) -> Any:
    """Returns number r of the int64 at an address, or the common word where there is none."""
    if words_at != 0:
        word = numba.carray(_pointer(words_at), (r + 1,), np.int64)[r]
    return U64(word) & MASK


@_compiled(forceinline=True)
def _scale_of_row(scale: Number, scales_at: int, r: int) -> Any:
    """Returns number r of the float32 at an address, or the common scale where there is none."""
    if scales_at != 0:
        return numba.carray(_pointer(scales_at), (r + 1,), F32)[r]
    return F32(scale)


@_compiled(forceinline=True)
def _read(x: Array, y_at: int, start: int, count: int, number_format: int) -> None:
    """Fills x with y[start:start+count] as float32."""
    end = start + U64(count)
    if number_format == AS_FLOAT32:
        bits = numba.carray(_pointer(y_at), (end,), U32)
        for i in range(count):
            x[i] = U32(bits[start + U64(i)]).view(F32)
        return
    halves = numba.carray(_pointer(y_at), (end,), U16)
    if number_format == AS_BFLOAT16:
        for i in range(count):
            x[i] = U32(U32(halves[start + U64(i)]) << U32(16)).view(F32)
    else:
        for i in range(count):
            x[i] = _float_of_half(U32(halves[start + U64(i)]))


@_compiled(forceinline=True)
def _copy(out_at: int, y_at: int, start: int, count: int, number_format: int) -> None:
    """Copies the bits of y[start:start+count] into out."""
    end = start + U64(count)
    if number_format == AS_FLOAT32:
        words, out = (
            numba.carray(_pointer(y_at), (end,), U32),
            numba.carray(_pointer(out_at), (end,), U32),
        )
        for i in range(count):
            out[start + U64(i)] = words[start + U64(i)]
    else:
        halves, out_16 = (
            numba.carray(_pointer(y_at), (end,), U16),
            numba.carray(_pointer(out_at), (end,), U16),
        )
        for i in range(count):
            out_16[start + U64(i)] = halves[start + U64(i)]


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
    out_at: int,
    start: int,
    noisy: Array,
    dice: Array,
    offset: int,
    count: int,
    number_format: int,
    is_chance: bool,
) -> None:
    """Rounds noisy into out[start:start+count], and noisy itself becomes what was written."""
    end = start + U64(count)
    if number_format == AS_FLOAT32:
        out = numba.carray(_pointer(out_at), (end,), U32)
        for i in range(count):
            out[start + U64(i)] = F32(noisy[i]).view(U32)
        return
    halves = numba.carray(_pointer(out_at), (end,), U16)
    if number_format == AS_BFLOAT16:
        for i in range(count):
            bits = _bfloat16_bits(F32(noisy[i]).view(U32), dice[offset + U64(i)], is_chance)
            halves[start + U64(i)] = bits
            noisy[i] = U32(U32(bits) << U32(16)).view(F32)
    else:
        for i in range(count):
            bits = _float16_bits(F32(noisy[i]).view(U32), dice[offset + U64(i)], is_chance)
            halves[start + U64(i)] = bits
            noisy[i] = _float_of_half(U32(bits))


# Sums may be reassociated in these two, to be vectorised, but noisy is read back from memory: what
# arrived cannot be simplified into what was asked for.
@_compiled(forceinline=True, fastmath={"contract", "reassoc"})
def _tally(tally: Array, x: Array, noisy: Array, error: Array, count: int) -> None:
    """Adds a chunk to tally[1:]: asked, changed, error, clean and asked square."""
    wanted, changed = I32(0), I32(0)
    error_square, clean_square, asked_square = F32(0), F32(0), F32(0)
    for i in range(count):
        change = noisy[i] - x[i]
        wanted = I32(wanted + I32(1 if error[i] != F32(0) else 0))
        changed = I32(changed + I32(1 if noisy[i] != x[i] else 0))
        error_square += change * change
        clean_square += x[i] * x[i]
        asked_square += error[i] * error[i]
    is_finite = error_square + clean_square + asked_square < F32(np.inf)
    is_whole = (
        (wanted == 0 or asked_square >= LEAST_SUM)
        and (changed == 0 or error_square >= LEAST_SUM)
        and clean_square >= LEAST_SUM
    )
    if is_finite and is_whole:
        tally[1] += wanted
        tally[2] += changed
        tally[3] += error_square
        tally[4] += clean_square
        tally[5] += asked_square
    else:
        _tally_with_care(tally, x, noisy, error, count)


@_compiled(fastmath={"contract", "reassoc"})
def _tally_with_care(tally: Array, x: Array, noisy: Array, error: Array, count: int) -> None:
    """`_tally` in float64, of finite elements alone."""
    wanted, changed = 0, 0
    error_square, clean_square, asked_square = 0.0, 0.0, 0.0
    for i in range(count):
        was_finite = abs(x[i]) < np.inf
        is_finite = was_finite and abs(noisy[i]) < np.inf
        change = F64(noisy[i]) - F64(x[i]) if is_finite else 0.0
        clean = F64(x[i]) if is_finite else 0.0
        asked = F64(error[i]) if is_finite else 0.0
        wanted += 1 if asked != 0.0 else 0
        changed += 1 if was_finite and noisy[i] != x[i] else 0
        error_square += change * change
        clean_square += clean * clean
        asked_square += asked * asked
    tally[1] += wanted
    tally[2] += changed
    tally[3] += error_square
    tally[4] += clean_square
    tally[5] += asked_square


@_compiled(forceinline=True)
def _interleave(dice: Array, words: Array, blocks: int) -> None:
    """Fills dice[4 j + lane] from words[lane, j]."""
    for j in range(blocks):
        for lane in range(4):
            dice[4 * j + lane] = words[lane, j]


@_compiled()
def _leave_row(
    out_at: int,
    y_at: int,
    r: int,
    channels: int,
    number_format: int,
    tally: Array,
    x: Array,
    error: Array,
) -> None:
    """Takes row r as it is, NaN payloads too."""
    error[:] = 0
    for first in range(0, channels, CHUNK):
        start, count = U64(r * channels + first), min(CHUNK, channels - first)
        _read(x, y_at, start, count, number_format)
        if out_at != y_at:
            _copy(out_at, y_at, start, count, number_format)
        _tally(tally, x, x, error, count)


# What the kernel is told: `_at` is the address of contiguous numbers, as to make arrays of tensors
# takes longer than to perturb a row. The addresses by row may be 0: the word or the scale named
# before is then that of all rows.
JOB = np.dtype(
    [
        ("out_at", np.int64),  # numbers of y's format [R, D]; may be y_at
        ("y_at", np.int64),
        ("rows", np.int64),
        ("channels", np.int64),
        ("number_format", np.int64),
        ("sample_at", np.int64),  # int64 [R], and so are position, channel, seed and draw by row
        ("position_at", np.int64),
        ("channel_at", np.int64),
        ("site", np.int64),
        ("seed", np.int64),
        ("seed_at", np.int64),
        ("draw", np.int64),
        ("draw_at", np.int64),
        ("scale", np.float64),
        ("scale_at", np.int64),  # float32 [R]
        ("is_relative", np.int64),
        ("is_stochastic", np.int64),
        ("rows_per_task", np.int64),
        ("rows_per_tally", np.int64),
        ("tally_at", np.int64),  # float64 [tallies, 6], zeros
        ("claims_at", np.int64),  # int64 [1], 0: how many tasks have been begun
    ]
)
pack_job = struct.Struct(
    "=" + "".join("d" if name == "scale" else "q" for name in JOB.names or ())
).pack


C_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def kernel() -> Any:
    """Returns `_perturb` as a C function of a packed job, which threads may share."""
    return C_KERNEL(_compiled_kernel().address)


@cache
def _compiled_kernel() -> Any:
    """Returns what numba compiled; without it the function's address is no longer good."""
    options = {"error_model": "numpy"}
    try:
        return numba.cfunc("void(voidptr)", cache=True, **options)(_perturb)
    except RuntimeError:
        return numba.cfunc("void(voidptr)", **options)(_perturb)


def _perturb(job_at: Any) -> None:
    """Perturbs y into out, task by task, until none is left that another thread has not begun."""
    job = numba.carray(job_at, (1,), JOB)[0]
    rows, channels, number_format = job.rows, job.channels, job.number_format
    out_at, y_at = job.out_at, job.y_at
    is_relative, is_stochastic = job.is_relative != 0, job.is_stochastic != 0
    noise_site, rounding_site = U64(job.site) ^ NOISE_FLIP, U64(job.site) ^ ROUNDING_FLIP
    words = numba.carray(_chunk_memory(), (4, CHUNK_BLOCKS), U32)
    dice = numba.carray(_chunk_memory(), (CHUNK,), U32)
    normals = numba.carray(_chunk_memory(), (CHUNK,), F32)
    x = numba.carray(_chunk_memory(), (CHUNK,), F32)
    error = numba.carray(_chunk_memory(), (CHUNK,), F32)
    noisy = numba.carray(_chunk_memory(), (CHUNK,), F32)
    for i in range(CHUNK):
        dice[i] = 0
    while True:
        begin = _claim(job.claims_at) * job.rows_per_task
        if begin >= rows:
            break
        for r in range(begin, min(begin + job.rows_per_task, rows)):
            tally = numba.carray(
                _pointer(job.tally_at + TALLY_BYTES * (r // job.rows_per_tally)), (6,), F64
            )
            tally[0] += channels
            row_scale = _scale_of_row(job.scale, job.scale_at, r)
            if row_scale == F32(0):
                _leave_row(out_at, y_at, r, channels, number_format, tally, x, error)
                continue
            seed = _word_of_row(job.seed, job.seed_at, r)
            draw = _word_of_row(job.draw, job.draw_at, r)
            sample = _word_of_row(0, job.sample_at, r)
            position = _word_of_row(0, job.position_at, r)
            channel = _word_of_row(0, job.channel_at, r)
            first_block = channel >> U64(2)
            # Chunks begin at whole blocks; the first column may lie inside its block.
            shift: Any = I64(channel & U64(3))
            for chunk in range((channels + shift + CHUNK - 1) // CHUNK):
                first = max(0, chunk * CHUNK - shift)
                count = min(channels, (chunk + 1) * CHUNK - shift) - first
                offset = U64(first + shift - chunk * CHUNK)
                # Whole groups, so that every number leaves the same vector instructions wherever a
                # row ends; what is too much stays in the scratch arrays.
                groups = (first + shift - chunk * CHUNK + count + 4 * GROUP - 1) // (4 * GROUP)
                blocks = groups * GROUP
                block = first_block + U64(chunk * CHUNK_BLOCKS)
                start = U64(r * channels + first)
                fill_words(words, blocks, block, position, sample, noise_site, seed, draw)
                fill_normals(normals, words, blocks)
                _read(x, y_at, start, count, number_format)
                _add(noisy, error, x, normals, offset, count, row_scale, is_relative)
                if is_stochastic:
                    fill_words(words, blocks, block, position, sample, rounding_site, seed, draw)
                    _interleave(dice, words, blocks)
                _write(out_at, start, noisy, dice, offset, count, number_format, is_stochastic)
                _tally(tally, x, noisy, error, count)
