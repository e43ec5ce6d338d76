"""The Triton kernel against the reference: on a GPU, or else in Triton's interpreter."""

import importlib
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from noisescope import noise
from noisescope.noise import (
    AbsoluteGaussian,
    Address,
    RelativeGaussian,
    standard_normal,
)
from noisescope.noise.error_model import tally

triton = pytest.importorskip("triton", reason="Triton is not installed: 'make setup' installs it")
tl = triton.language

NAME = "noisescope.noise.kernel_triton"
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# numpy, which interprets, warns of what a GPU computes silently: NaN, infinity, overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def interpreted_sum(x, axis):
    """`tl.sum`, which cannot be interpreted itself where Triton was imported before."""
    return tl.reduce(x, axis, tl.standard._sum_combine)


def nearest_bfloat16(original):
    """The interpreter's cast, which truncates (Triton 3.7), made to round to nearest."""

    def cast(source, dst_type):
        if source.dtype == tl.float32 and getattr(dst_type, "scalar", dst_type) == tl.bfloat16:
            rounded = torch.from_numpy(source.data).bfloat16().view(torch.uint16).numpy()
            return type(source)(rounded, tl.bfloat16)
        return original(source, dst_type)

    return cast


@pytest.fixture(scope="module")
def kernel():
    """The module under test: compiled where there is a GPU, interpreted where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, NAME, raising=False)
        if not HAS_GPU:
            from triton.runtime import interpreter

            patch.setenv("TRITON_INTERPRET", "1")
            patch.setattr(tl, "sum", interpreted_sum)
            builder = interpreter.interpreter_builder
            patch.setattr(builder, "cast_impl", nearest_bfloat16(builder.cast_impl))
        yield importlib.import_module(NAME)
        # What was made for the interpreter stays with these tests.
        sys.modules.pop(NAME)
        vars(noise).pop("kernel_triton")


def address(rows, first_channel=0, **words):
    generator = torch.Generator().manual_seed(0)
    sample, position = (torch.randint(0, 2**32, (rows,), generator=generator) for _ in range(2))
    words = {"seed": 2**32 - 1, "draw": 5, "site": 2**31 + 1} | words
    return Address(
        **words,
        sample_R=sample,
        position_R=position,
        channel_R=first_channel + torch.zeros(rows, dtype=torch.int64),
    )


def moved(at):
    """The address on the device of the kernel."""
    parts = ("seed", "draw", "sample_R", "position_R", "channel_R")
    tensors = {p: getattr(at, p) for p in parts if isinstance(getattr(at, p), torch.Tensor)}
    return replace(at, **{p: t.to(DEVICE) for p, t in tensors.items()})


def tensor(rows, channels, dtype=torch.float32):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(1)).to(dtype)


def perturb(kernel, y, at, scale=0.05, is_relative=True, rounding="nearest"):
    scale = scale.to(DEVICE) if isinstance(scale, torch.Tensor) else scale
    noisy, told = kernel.perturb_gaussian_triton(
        y.to(DEVICE), moved(at), scale, is_relative, rounding
    )
    return noisy.cpu(), told.cpu()


def same_bits(a, b):
    shown = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.view(shown), b.view(shown))


# Small kernels that show what is inside; FUNCTION is one of the module's own.
def words_of(out, counter, key, FUNCTION: tl.constexpr, COUNT: tl.constexpr):
    row = tl.arange(0, COUNT)
    c_0 = tl.load(counter + 4 * row).to(tl.uint32)
    c_1 = tl.load(counter + 4 * row + 1).to(tl.uint32)
    c_2 = tl.load(counter + 4 * row + 2).to(tl.uint32)
    c_3 = tl.load(counter + 4 * row + 3).to(tl.uint32)
    k_0 = tl.load(key + 2 * row).to(tl.uint32)
    k_1 = tl.load(key + 2 * row + 1).to(tl.uint32)
    w_0, w_1, w_2, w_3 = FUNCTION(c_0, c_1, c_2, c_3, k_0, k_1)
    tl.store(out + 4 * row, w_0.to(tl.int64))
    tl.store(out + 4 * row + 1, w_1.to(tl.int64))
    tl.store(out + 4 * row + 2, w_2.to(tl.int64))
    tl.store(out + 4 * row + 3, w_3.to(tl.int64))


def radius_of(out, words, FUNCTION: tl.constexpr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    tl.store(out + place, FUNCTION(tl.load(words + place).to(tl.uint32)))


def cosine_and_sine_of(out, words, FUNCTION: tl.constexpr, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    cosine, sine = FUNCTION(tl.load(words + place).to(tl.uint32))
    tl.store(out + place, cosine)
    tl.store(out + COUNT + place, sine)


def extreme_words():
    """1024 words at, and at powers of two from, the ends and quarters of the range."""
    centres = [0, 2**30, 2**31, 3 * 2**30, 2**32 - 1, 3037000500, 2**29]
    offsets = [0, *(sign * 2**k for k in range(30) for sign in (1, -1))]
    near = sorted({(c + o + d) % 2**32 for c in centres for o in offsets for d in (-1, 0, 1)})
    assert len(near) <= 2048
    return torch.tensor((near * 2)[:2048])


def test_words_are_exactly_the_known_ones(kernel):
    most = 2**32 - 1
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    inputs = [([0] * 4, [0] * 2), ([most] * 4, [most] * 2), pi, ([1, 2, 3, 4], [5, 6])]
    counter, key = (torch.tensor(part, device=DEVICE) for part in zip(*inputs, strict=True))
    out = torch.zeros(4, 4, dtype=torch.int64, device=DEVICE)
    triton.jit(words_of)[(1,)](out, counter, key, FUNCTION=kernel._philox, COUNT=4)
    shown = [" ".join(f"{word & most:08x}" for word in row) for row in out.tolist()]
    assert shown[:3] == [
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ]


def test_the_radius_is_right_at_every_extreme(kernel):
    words = extreme_words().to(DEVICE)
    out = torch.zeros(2048, device=DEVICE)
    triton.jit(radius_of)[(1,)](out, words, FUNCTION=kernel._radius, COUNT=2048)
    rest = (2**32 - words.double() - 0.5) / 2**32
    # log1p keeps its accuracy where u is near 1, log where it is near 0.
    log = torch.where(rest < 0.5, torch.log1p(-rest), torch.log((words.double() + 0.5) / 2**32))
    assert (out / torch.sqrt(-2 * log) - 1).abs().max() < 4e-7


def test_the_angle_is_right_at_every_extreme(kernel):
    words = extreme_words().to(DEVICE)
    out = torch.zeros(2, 2048, device=DEVICE)
    triton.jit(cosine_and_sine_of)[(1,)](out, words, FUNCTION=kernel._cosine_and_sine, COUNT=2048)
    quarter = (words + 2**29) >> 30
    angle = ((words - (quarter << 30)).double() + 0.5) * (2 * math.pi / 2**32)
    turns = torch.stack((angle.cos(), -angle.sin(), -angle.cos(), angle.sin()))
    for turn, shown in enumerate(out):
        expected = turns.gather(0, ((quarter - turn) % 4)[None])[0]
        assert (shown / expected - 1).abs().max() < 4e-7


@pytest.mark.parametrize("first_channel", [0, 1, 2, 3, -1, -7, 2**32 - 6, -(2**40) + 1])
@pytest.mark.parametrize(("rows", "channels"), [(33, 61), (2, 64), (1, 130)])
def test_normals_agree_at_every_alignment_and_length(kernel, rows, channels, first_channel):
    """Noise on zeros in float32 is the number itself."""
    at = address(rows, first_channel)
    shown, _ = perturb(kernel, torch.zeros(rows, channels), at, scale=1.0, is_relative=False)
    assert (shown.double() / standard_normal(at, channels).double() - 1).abs().max() < 1e-6


def test_rows_of_one_tile_may_begin_at_different_lanes(kernel):
    at = replace(address(40), channel_R=torch.arange(40) - 20)
    shown, _ = perturb(kernel, torch.zeros(40, 30), at, scale=1.0, is_relative=False)
    assert (shown.double() / standard_normal(at, 30).double() - 1).abs().max() < 1e-6


@pytest.mark.parametrize("first_channel", [0, 6])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [RelativeGaussian, AbsoluteGaussian])
def test_the_kernel_does_what_the_cpu_does(kernel, model, dtype, rounding, first_channel):
    y, at = tensor(70, 61, dtype), address(70, first_channel)
    # Subnormal results in float16 too.
    y[:10] *= 1e-5
    expected, expected_told = model(0.03, rounding).perturb(y, at)
    noisy, told = perturb(kernel, y, at, 0.03, model.is_relative, rounding)
    # A normal number that differs in its last bits may fall on the other side of a rounding.
    if dtype != torch.float32:
        assert (noisy != expected).double().mean() < 1e-3
    tolerance = 1.01 * torch.finfo(dtype).eps
    assert torch.allclose(noisy.double(), expected.double(), rtol=tolerance, atol=1e-7)
    # One element that rounds the other way shows in the square of the error.
    assert told.tolist() == pytest.approx(expected_told.tolist(), rel=1e-6, abs=2e-5)


def test_float16_is_rounded_by_chance_down_to_its_least_step(kernel):
    """The same words give the same choice, for every part of a step."""
    at = address(40)
    y = torch.full((40, 64), 2.0**-24, dtype=torch.float16)
    for scale in (1e-12, 1e-9, 2e-8, 6e-8):
        expected, _ = AbsoluteGaussian(scale, "stochastic").perturb(y, at)
        noisy, _ = perturb(kernel, y, at, scale, False, "stochastic")
        assert torch.equal(noisy, expected)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1e-3), (torch.float16, 1e-4)])
def test_beyond_the_largest_value_nothing_is_left_to_chance(kernel, dtype, scale):
    """Some land between the largest value and the step above it, where a cast decides."""
    y, at = torch.full((40, 64), torch.finfo(dtype).max, dtype=dtype), address(40)
    y[0, :3] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    expected, _ = RelativeGaussian(scale, "stochastic").perturb(y, at)
    noisy, _ = perturb(kernel, y, at, scale, rounding="stochastic")
    assert torch.equal(noisy.isnan(), expected.isnan())
    numbers = ~noisy.isnan()
    assert torch.equal(noisy[numbers], expected[numbers])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [3, 40])
def test_scale_seed_and_draw_by_row(kernel, rows, dtype):
    y = tensor(rows, 60, dtype)
    seed, draw = torch.arange(rows) * 2**28 % 2**32, 2**32 - 1 - torch.arange(rows)
    at = address(rows, seed=seed, draw=draw)
    scale = torch.arange(rows, dtype=torch.float32) % 5 / 50
    noisy, told = perturb(kernel, y, at, scale)
    assert told.shape == (rows, 6)
    for row in range(rows):
        alone = at.rows(row, row + 1, seed=int(seed[row]), draw=int(draw[row]))
        expected, expected_told = RelativeGaussian(float(scale[row])).perturb(
            y[row : row + 1], alone
        )
        assert torch.allclose(noisy[row].double(), expected[0].double(), rtol=1e-2, atol=0)
        assert told[row].tolist() == pytest.approx(expected_told.tolist(), rel=2e-5)


def test_one_scale_with_seeds_by_row_gives_one_tally(kernel):
    y, at = tensor(3, 130), address(3, seed=torch.tensor([1, 2, 3]))
    _, told = perturb(kernel, y, at)
    assert told.shape == (6,)
    assert told.tolist() == pytest.approx(
        RelativeGaussian(0.05).perturb(y, at)[1].tolist(), rel=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales", [[0.0] * 36, [0.0, 0.1, 0.0] * 12], ids=["all", "some"])
def test_rows_of_scale_zero_keep_every_bit(kernel, scales, dtype):
    y = tensor(36, 33, dtype)
    shown = torch.int32 if dtype == torch.float32 else torch.int16
    not_a_number = {torch.float32: 0x7FC12345, torch.bfloat16: 0x7FD3, torch.float16: 0x7E37}
    bits = y.view(shown)
    bits[:, 0] = torch.tensor(not_a_number[dtype], dtype=shown)
    y[:, 1], y[:, 2], y[:, 3] = -0.0, float("inf"), float("-inf")
    # Squares that float32 does not hold.
    y[5, 4:] *= 1e-25
    y[5, :4] = 0
    scale = torch.tensor(scales)
    noisy, told = perturb(kernel, y, address(36), scale, is_relative=False)
    clean = scale == 0
    assert same_bits(noisy[clean], y[clean])
    finite = torch.where(y.isfinite(), y, 0).double()
    assert told[clean, 0].tolist() == [33] * int(clean.sum())
    assert told[clean, 1:4].abs().max() == 0
    assert torch.allclose(told[clean, 4], finite[clean].square().sum(1), rtol=1e-6, atol=0)
    assert told[clean, 5].abs().max() == 0
    assert not torch.equal(noisy[~clean], y[~clean]) or clean.all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same_bits(kernel, dtype):
    y, at = tensor(40, 50, dtype), address(40, 2)
    expected, expected_told = perturb(kernel, y, at)
    own = y.clone().to(DEVICE)
    noisy, told = kernel.perturb_gaussian_triton(own, moved(at), 0.05, True, "nearest", out=own)
    assert noisy is own
    assert same_bits(own.cpu(), expected)
    assert torch.equal(told.cpu(), expected_told)


def test_tensors_that_are_not_contiguous(kernel):
    wide, at = tensor(50, 80), address(40)
    turned = wide.t()[::2]
    expected, _ = perturb(kernel, turned.contiguous(), at)
    own = wide.to(DEVICE).t()[::2]
    noisy, _ = kernel.perturb_gaussian_triton(own, moved(at), 0.05, True, "nearest")
    assert torch.equal(noisy.cpu(), expected)
    assert torch.equal(own.cpu(), turned)
    with pytest.raises(ValueError, match=r"out: strides \(2, 80\); a contiguous tensor is needed"):
        kernel.perturb_gaussian_triton(own, moved(at), 0.05, True, "nearest", out=own)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("by_row", [False, True])
def test_empty_and_single_elements(kernel, shape, by_row):
    scale = torch.full((shape[0],), 0.5) if by_row else 0.5
    noisy, told = perturb(kernel, torch.ones(shape), address(shape[0]), scale)
    assert noisy.shape == shape
    assert told.shape == ((shape[0], 6) if by_row else (6,))
    assert told.sum(0)[0] == noisy.numel() if by_row else told[0] == noisy.numel()


def awkward(dtype):
    """A tensor with all that is not finite, and squares that float32 does not hold."""
    y = tensor(40, 40, dtype)
    y[1, :5] = torch.tensor([float("nan"), float("inf"), float("-inf"), 0.0, -0.0])
    y[2] *= 1e-25
    y[3] = 0
    y[35] = torch.finfo(dtype).max
    return y


@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [RelativeGaussian, AbsoluteGaussian])
def test_the_tally_is_that_of_the_error_model(kernel, model, dtype, by_row):
    y, at, scale = awkward(dtype), address(40), 0.25
    scales = torch.full((40,), scale) if by_row else scale
    noisy, told = perturb(kernel, y, at, scales, model.is_relative)
    error = model(scale).error(y.float(), at)
    rows = [tally(*(t[r : r + 1] for t in (y, noisy, error))) for r in range(40)]
    expected = torch.stack(rows) if by_row else torch.stack(rows).sum(0)
    assert torch.allclose(told, expected, rtol=1e-6, atol=0)


def test_a_tally_of_nothing_but_tiny_values(kernel):
    y, at = tensor(4, 40) * 1e-30, address(4)
    _, told = perturb(kernel, y, at, 0.5)
    assert torch.allclose(told, RelativeGaussian(0.5).perturb(y, at)[1], rtol=1e-6, atol=0)
    _, told = perturb(kernel, y, at, torch.zeros(4))
    assert torch.allclose(told[:, 4], y.double().square().sum(1), rtol=1e-6, atol=0)


def test_other_numbers_do_not_compile_again(kernel):
    if not HAS_GPU:
        fixed = set(kernel.perturb_tile.kwargs["do_not_specialize"])
        assert {"seed", "draw", "scale", "site", "rows"} <= fixed
        words = [kernel._word(word) for word in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)]
        assert all(-(2**31) <= word < 2**31 for word in words)
        return
    y = tensor(3, 60)
    perturb(kernel, y, address(3))
    compiled = [len(caches[0]) for caches in kernel.perturb_tile.device_caches.values()]
    for word in (0, 1, 16, 2**31, 2**32 - 1):
        at = address(3, seed=word, draw=word, site=word)
        perturb(kernel, y, at, scale=float(word))
        perturb(kernel, y[:1], at.rows(0, 1))
    assert compiled == [len(caches[0]) for caches in kernel.perturb_tile.device_caches.values()]


@pytest.mark.skipif(HAS_GPU, reason="the tests above compile it")
@pytest.mark.slow
def test_the_kernel_compiles_without_a_gpu(tmp_path):
    """For a GPU that need not be there; in another process, as this one interprets."""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["cubin"] * 2


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from noisescope.noise.kernel_triton import perturb_tile

names = [parameter.name for parameter in perturb_tile.params]
for by_row, dtype in ((False, "bf16"), (True, "fp16")):
    number = "*i64" if by_row else "i32"
    types = dict.fromkeys(("y", "out"), "*" + dtype) | dict.fromkeys(("seed", "draw"), number)
    types |= {"tallies": "*fp64", "scale": "*fp32" if by_row else "fp32"}
    types |= dict.fromkeys(("sample", "position", "channel"), "*i64")
    types |= dict.fromkeys(("site", "rows", "channels"), "i32")
    constants = dict.fromkeys(("SEED_BY_ROW", "DRAW_BY_ROW", "SCALE_BY_ROW"), by_row)
    constants |= {"IS_RELATIVE": True, "IS_STOCHASTIC": by_row, "TILE_ROWS": 2, "TILE_BLOCKS": 16}
    signature = types | dict.fromkeys(constants, "constexpr")
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(perturb_tile, signature, values, {})
    target = GPUTarget("cuda", 90, 32)
    print(*({"cubin"} & set(triton.compile(source, target, {"num_warps": 1}).asm)))
"""
