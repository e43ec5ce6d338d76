"""The fused CPU kernel against the reference, and the same bytes however the work is cut."""

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from noisescope.noise import (
    AbsoluteGaussian,
    Address,
    ErrorModel,
    RelativeGaussian,
    flat_address,
    fused,
    kernel_cpu,
    random_words,
    standard_normal,
    tally,
)
from noisescope.noise.fused import has_kernel, perturb_gaussian

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def some_address(rows, first_channel=0):
    generator = torch.Generator().manual_seed(0)
    sample, position = (torch.randint(0, 2**32, (rows,), generator=generator) for _ in range(2))
    return Address(2**32 - 1, 5, 2**31 + 1, sample, position, torch.full((rows,), first_channel))


def tensor(rows, channels, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, channels, generator=generator).to(dtype)


def kernel_normals(at, channels):
    """Noise on zeros in float32 is the number itself."""
    return AbsoluteGaussian(1.0).perturb(torch.zeros(len(at), channels), at)[0]


@pytest.mark.parametrize("first_channel", [0, 4, 2**31, -64])
def test_words_are_exactly_the_reference(first_channel):
    at = some_address(16, first_channel)
    assert fused.words_cpu(at, 256).tolist() == random_words(at, 256).tolist()


@pytest.mark.parametrize("first_channel", [0, 1, 2, 3, -1, -7, 2**32 - 6, -(2**40) + 1, 10**6 + 3])
@pytest.mark.parametrize("channels", [1, 2, 63, 255, 256, 259, 1000])
def test_normals_agree_at_every_alignment_and_length(first_channel, channels):
    at = some_address(5, first_channel)
    expected = standard_normal(at, channels)
    assert ((kernel_normals(at, channels) / expected).double() - 1).abs().max() < 1e-6


def test_normals_agree_on_two_million_addresses():
    at = some_address(2048)
    ratio = kernel_normals(at, 1024).double() / standard_normal(at, 1024).double()
    assert (ratio - 1).abs().max() < 1e-6


def extreme_words():
    """Words at, and at every power of two away from, the ends and quarters of the range."""
    centres = [0, 2**30, 2**31, 3 * 2**30, 2**32 - 1, 3037000500, 2**29]
    offsets = [0, *(sign * 2**k for k in range(30) for sign in (1, -1))]
    near = sorted({(c + o + d) % 2**32 for c in centres for o in offsets for d in (-1, 0, 1)})
    return np.array(near, dtype=np.uint32)


def test_normals_hold_their_accuracy_at_the_extremes():
    """Every pair of extreme words against 80-bit floats, where u or 1 - u or an angle is tiny."""
    words = extreme_words()
    pairs = np.stack(np.meshgrid(words, words)).reshape(2, -1)
    pairs = (
        pairs[:, : pairs.shape[1] // 32 * 32].reshape(2, 2, -1).transpose(1, 0, 2).reshape(4, -1)
    )
    pairs = np.ascontiguousarray(pairs)
    normals = np.empty(pairs.size, np.float32)
    fill_all(normals, pairs)
    half = np.longdouble(0.5)
    for first in (0, 2):
        radius = np.sqrt(-2 * np.log((pairs[first] + half) / np.longdouble(2) ** 32))
        # Quarter turns taken off as integers: 80 bits of pi are too few for 1e-6 next to a zero.
        quarter = (pairs[first + 1].astype(np.int64) + 2**29) >> 30
        rest = pairs[first + 1].astype(np.int64) - (quarter << 30) + half
        angle = rest * (np.longdouble(math.pi) * 2 / np.longdouble(2) ** 32)
        turned = [(np.cos, 1), (np.sin, -1), (np.cos, -1), (np.sin, 1)]
        cosine = np.choose(quarter % 4, [sign * f(angle) for f, sign in turned])
        sine = np.choose((quarter - 1) % 4, [sign * f(angle) for f, sign in turned])
        for lane, trigonometric in ((first, cosine), (first + 1, sine)):
            assert np.abs(normals[lane::4] / (radius * trigonometric) - 1).max() < 1e-6


@numba.njit
def fill_all(normals, words):
    kernel_cpu.fill_normals(normals, words, words.shape[1])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [RelativeGaussian, AbsoluteGaussian])
def test_the_kernel_does_what_the_generic_path_does(model, dtype, rounding):
    y, at = tensor(64, 700, dtype), some_address(64, 2)
    noise = model(0.03, rounding)
    noisy, told = noise.perturb(y, at)
    expected, expected_told = ErrorModel._perturb(noise, y, at)
    # A normal number that differs in its last bit may fall on the other side of a tie.
    if dtype != torch.float32:
        assert (noisy != expected).double().mean() < 1e-4
    assert torch.allclose(
        noisy.double(), expected.double(), rtol=1.01 * torch.finfo(dtype).eps, atol=1e-7
    )
    assert told.tolist() == pytest.approx(expected_told.tolist(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.05])
def test_the_dose_asked_for_is_the_same_number_in_every_dtype(scale):
    y, at = tensor(128, 512, torch.float16).bfloat16(), some_address(128)
    y = torch.where(y.half().bfloat16() == y, y, 1.0)
    asked = [RelativeGaussian(scale).perturb(y.to(d), at)[1][4] for d in (*DTYPES, torch.float64)]
    assert [float(a) for a in asked] == pytest.approx([float(asked[-1])] * 4, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_finite_pattern_is_read_and_written_bitwise(dtype):
    patterns = torch.arange(-(2**15), 2**15)
    bits = patterns << 16 if dtype == torch.float32 else patterns
    y = (
        bits.to(torch.int32 if dtype == torch.float32 else torch.int16)
        .view(dtype)
        .reshape(256, 256)
    )
    noisy, told = RelativeGaussian(1e-30).perturb(y, some_address(256))
    assert torch.equal(noisy[y.isfinite()], y[y.isfinite()])
    assert torch.equal(noisy.isnan() & y.isnan(), y.isnan())
    assert told[2] == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_that_are_not_contiguous(dtype):
    y, at = tensor(50, 80, dtype), some_address(40)
    turned = y.t()[::2]
    noisy, _ = RelativeGaussian(0.1).perturb(turned, flat_address(1, 2, 3, 40))
    straight, _ = RelativeGaussian(0.1).perturb(turned.contiguous(), flat_address(1, 2, 3, 40))
    assert torch.equal(noisy, straight)
    spread = tensor(1, 80, dtype).expand(40, 80)
    assert len(RelativeGaussian(0.1).perturb(spread, at)[0].unique(dim=0)) == 40


@pytest.mark.parametrize("threads_of", ["openmp", "pool"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bytes_and_tally(dtype, threads_of, monkeypatch):
    if threads_of == "pool":
        monkeypatch.setattr(fused, "_openmp", lambda: None)
    y, at = tensor(301, 500, dtype), some_address(301, 3)
    scale_R = torch.linspace(0, 0.2, 301)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(
            RelativeGaussian(0.1, "stochastic").perturb(y, at)
            + perturb_gaussian(y, at, scale_R, True, "stochastic")
        )
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_forked_child_brings_threads_of_its_own(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(fused, "_PROCESS", fused._PROCESS + 1)
    monkeypatch.setattr(fused, "_openmp", lambda: pytest.fail("the parent's threads are called"))
    y, at = tensor(301, 500), some_address(301)
    noisy, _ = RelativeGaussian(0.1).perturb(y, at)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert torch.equal(noisy, RelativeGaussian(0.1).perturb(y, at)[0])


def test_every_cut_of_a_tensor_gives_the_same_bytes():
    y, at = tensor(6, 600), some_address(6)
    whole, _ = RelativeGaussian(0.1).perturb(y, at)
    for cut in (1, 5, 64, 255, 256, 257, 511):
        right_at = replace(at, channel_R=at.channel_R + cut)
        left, _ = RelativeGaussian(0.1).perturb(y[:, :cut], at)
        right, _ = RelativeGaussian(0.1).perturb(y[:, cut:], right_at)
        assert torch.equal(torch.cat((left, right), dim=1), whole)


def test_concurrent_calls_give_the_same_bytes(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    y, at = tensor(200, 400), some_address(200)
    expected, _ = RelativeGaussian(0.1).perturb(y, at)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(RelativeGaussian(0.1).perturb, y, at) for _ in range(40)]
        assert all(torch.equal(call.result()[0], expected) for call in calls)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_empty_and_single_elements(shape, dtype):
    y = torch.ones(shape, dtype=dtype)
    noisy, told = RelativeGaussian(0.5).perturb(y, flat_address(1, 2, 3, shape[0]))
    assert noisy.shape == shape
    assert noisy.dtype == dtype
    assert told[0] == y.numel()


def conditions(rows):
    """An address and scales that differ from row to row; every third scale is 0."""
    generator = torch.Generator().manual_seed(2)
    seed_R, draw_R = (torch.randint(0, 2**32, (rows,), generator=generator) for _ in range(2))
    scale_R = 0.1 * torch.rand(rows, generator=generator) * (torch.arange(rows) % 3 != 0)
    return replace(some_address(rows, 3), seed=seed_R, draw=draw_R), scale_R


def one_row(at, r):
    return replace(at.rows(r, r + 1), seed=int(at.seed[r]), draw=int(at.draw[r]))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("is_relative", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_one_batch_are_what_each_is_alone(dtype, is_relative, rounding):
    y, (at, scale_R) = tensor(60, 700, dtype), conditions(60)
    noisy, told_R6 = perturb_gaussian(y, at, scale_R, is_relative, rounding)
    for r in range(60):
        scale = float(scale_R[r])
        alone, told = perturb_gaussian(y[r : r + 1], one_row(at, r), scale, is_relative, rounding)
        assert torch.equal(noisy[r : r + 1], alone)
        assert torch.equal(told_R6[r], told)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_conditions_agree_with_the_reference(dtype):
    y, (at, scale_R) = tensor(60, 700, dtype), conditions(60)
    noisy, told_R6 = perturb_gaussian(y, at, scale_R, True, "nearest")
    error = standard_normal(at, 700) * scale_R[:, None] * y.float().abs()
    expected = (y.float() + error).to(dtype)
    assert torch.allclose(
        noisy.double(), expected.double(), rtol=1.01 * torch.finfo(dtype).eps, atol=1e-7
    )
    for r in range(60):
        told = tally(y[r], noisy[r], error[r]).tolist()
        assert told_R6[r].tolist() == pytest.approx(told, rel=1e-5)
    whole = tally(y, noisy, error).tolist()
    assert told_R6.sum(dim=0).tolist() == pytest.approx(whole, rel=1e-5)


def test_seeds_and_draws_by_row_are_taken_with_a_common_scale():
    y, (at, _) = tensor(60, 700), conditions(60)
    noisy, told = perturb_gaussian(y, at, 0.1, True, "nearest")
    by_row, told_R6 = perturb_gaussian(y, at, torch.full((60,), 0.1), True, "nearest")
    assert torch.equal(noisy, by_row)
    assert told.tolist() == pytest.approx(told_R6.sum(dim=0).tolist(), rel=1e-12)


def test_conditions_that_are_not_contiguous():
    y, (at, scale_R) = tensor(30, 70), conditions(60)
    strided = replace(at.rows(0, 30), seed=at.seed[::2], draw=at.draw[:1].expand(30))
    straight = replace(strided, seed=at.seed[::2].clone(), draw=at.draw[:1].repeat(30))
    noisy, _ = perturb_gaussian(y, strided, scale_R[::2], True, "nearest")
    expected, _ = perturb_gaussian(y, straight, scale_R[::2].clone(), True, "nearest")
    assert torch.equal(noisy, expected)


def every_pattern(dtype):
    """All 16-bit patterns, or as many of 32 bits: NaN payloads, -0.0 and subnormals among them."""
    short = torch.arange(-(2**15), 2**15)
    bits = (short << 16 | short & 1).int() if dtype == torch.float32 else short.to(torch.int16)
    return bits.view(dtype).reshape(64, 1024)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_scale_zero_keeps_its_bits_and_tells_its_clean_square(dtype, in_place):
    y, at = every_pattern(dtype), some_address(64)
    is_null_R = torch.arange(64) % 4 != 2
    scale_R = (~is_null_R).float()
    bits = y.clone().view(torch.uint8)
    noisy, told = perturb_gaussian(
        y, at, scale_R, True, "stochastic", out=y if in_place else torch.zeros_like(y)
    )
    clean = bits.view(dtype)
    assert torch.equal(noisy.view(torch.uint8)[is_null_R], bits[is_null_R])
    assert not torch.equal(noisy.view(torch.uint8)[~is_null_R], bits[~is_null_R])
    for r in is_null_R.nonzero().flatten().tolist():
        expected = tally(clean[r], clean[r], torch.zeros(1024))
        assert told[r].tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_gives_the_same_bytes_and_tally(dtype, rounding):
    y, at = tensor(301, 500, dtype), some_address(301, 3)
    expected, expected_told = perturb_gaussian(y, at, 0.1, True, rounding)
    version = y._version
    noisy, told = perturb_gaussian(y, at, 0.1, True, rounding, out=y)
    assert noisy is y
    assert y._version > version
    assert torch.equal(noisy, expected)
    assert torch.equal(told, expected_told)


@pytest.mark.parametrize(
    "out", [torch.zeros(5, 4), torch.zeros(4, 5).bfloat16(), torch.zeros(5, 4).t()]
)
def test_an_output_of_another_shape_dtype_or_layout_is_refused(out):
    with pytest.raises(ValueError, match=r"contiguous torch.float32 \[4, 5\] on cpu is needed"):
        perturb_gaussian(tensor(4, 5), some_address(4), 0.1, True, "nearest", out)


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(4).double(), torch.ones(4, 1)])
def test_scales_of_another_shape_or_dtype_are_refused(scale):
    with pytest.raises(ValueError, match=r"or torch.float32 \[4\] on cpu, is needed"):
        perturb_gaussian(tensor(4, 5), some_address(4), scale, True, "nearest")


def test_outputs_on_another_device_are_refused():
    with pytest.raises(ValueError, match=r"on meta; contiguous .* on cpu is needed"):
        perturb_gaussian(
            tensor(4, 5), some_address(4), 0.1, True, "nearest", torch.zeros(4, 5, device="meta")
        )


def test_scales_on_another_device_are_refused():
    scale_R = torch.ones(4, device="meta")
    with pytest.raises(ValueError, match=r"on meta; a number, or torch.float32 \[4\] on cpu"):
        perturb_gaussian(tensor(4, 5), some_address(4), scale_R, True, "nearest")


@pytest.mark.parametrize("rows", [3, 5])
def test_an_address_of_another_length_is_refused(rows):
    with pytest.raises(ValueError, match=f"address of {rows} rows on cpu; 4 rows, all on cpu"):
        perturb_gaussian(tensor(4, 5), some_address(rows), 0.1, True, "nearest")


@pytest.mark.parametrize("part", ["sample_R", "position_R", "channel_R", "seed", "draw"])
def test_an_address_on_another_device_is_refused(part):
    at = conditions(4)[0]
    at = replace(at, **{part: getattr(at, part).to("meta")})
    with pytest.raises(ValueError, match="on cpu, meta; 4 rows, all on cpu"):
        perturb_gaussian(tensor(4, 5), at, 0.1, True, "nearest")


OVERLAPS = {
    "a row on": lambda x: (x[:4], x[1:5]),
    "a row back": lambda x: (x[1:5], x[:4]),
    "inside a strided one": lambda x: (x.view(-1)[: 4 * 6].view(4, 6)[:, :5], x[1:5]),
    "one row read four times": lambda x: (x[:1].expand(4, 5), x[:4]),
}


@pytest.mark.parametrize("case", OVERLAPS)
def test_an_output_that_overlaps_y_is_refused(case):
    y, out = OVERLAPS[case](tensor(8, 5))
    version = out._version
    with pytest.raises(ValueError, match="overlaps y; y itself, or memory apart from it"):
        perturb_gaussian(y, some_address(4), 0.1, True, "nearest", out)
    assert out._version == version


@pytest.mark.parametrize("begin", [0, 4])
def test_an_output_may_be_a_view_of_y_or_lie_beside_it(begin):
    x, at = tensor(8, 5), some_address(4)
    expected, _ = perturb_gaussian(x[:4], at, 0.1, True, "nearest")
    out = x[begin : begin + 4]
    perturb_gaussian(x[:4], at, 0.1, True, "nearest", out)
    assert torch.equal(out, expected)


def test_on_a_gpu_the_same_is_checked_before_the_kernel(monkeypatch):
    calls = []
    stub = SimpleNamespace(perturb_gaussian_triton=lambda *args: calls.append(args))
    monkeypatch.setitem(sys.modules, "noisescope.noise.kernel_triton", stub)
    with FakeTensorMode():
        y = torch.zeros(4, 5, device="cuda")
        at = flat_address(1, 2, 3, 4, device="cuda")
        bad = [
            (flat_address(1, 2, 3, 4), 0.1, None),
            (flat_address(1, 2, 3, 3, device="cuda"), 0.1, None),
            (at, torch.ones(4), None),
            (at, torch.ones(3, device="cuda"), None),
            (at, 0.1, torch.zeros(4, 5)),
            (at, 0.1, torch.zeros(5, 4, device="cuda").t()),
        ]
        for where, scale, out in bad:
            with pytest.raises(ValueError, match="needed"):
                perturb_gaussian(y, where, scale, True, "nearest", out)
        assert calls == []
        perturb_gaussian(y, at, 0.1, True, "nearest", y)
    assert len(calls) == 1
    assert y._version == 1


def test_a_default_device_is_not_where_the_kernel_writes():
    y, at = tensor(40, 500), some_address(40)
    expected = perturb_gaussian(y, at, 0.1, True, "nearest")
    with torch.device("meta"):
        results = perturb_gaussian(y, at, 0.1, True, "nearest")
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


class Subclass(torch.Tensor):
    """Any tensor that may keep its values elsewhere."""


NO_KERNEL = {
    "subclass": lambda y: y.as_subclass(Subclass),
    "sparse": lambda y: y.to_sparse(),
    "zeros without memory": lambda y: torch._efficientzerotensor(y.shape),
    "negative bit": lambda y: torch._neg_view(y),
    "meta": lambda y: y.to("meta"),
    "float64": lambda y: y.double(),
}


@pytest.mark.parametrize("case", NO_KERNEL)
def test_the_kernel_takes_no_tensor_without_plain_memory(case):
    assert not has_kernel(NO_KERNEL[case](tensor(4, 5)))


def test_the_kernel_takes_tensors_and_parameters_but_no_functorch_wrapper():
    assert has_kernel(tensor(4, 5))
    assert has_kernel(torch.nn.Parameter(tensor(4, 5)))
    told = []
    torch.func.vmap(lambda row: told.append(has_kernel(row)) or row)(tensor(4, 5))
    assert told == [False]


SIZES = {
    "ordinary": lambda y: y,
    "squares overflow": lambda y: y * 1e30,
    "one square overflows": lambda y: y.index_fill(1, torch.tensor([300]), 1e25),
    "squares underflow": lambda y: y * 1e-30,
    "subnormal": lambda y: y * 1e-41,
    "changes underflow": lambda y: (y * 1e-18).index_fill(1, torch.tensor([300]), 1.0),
    "zero": lambda y: y * 0,
    "infinite": lambda y: y.index_fill(1, torch.tensor([3, 290]), math.inf),
    "NaN": lambda y: y.index_fill(1, torch.tensor([3]), math.nan),
    "near the largest": lambda y: y.sign() * 3e38,
}


@pytest.mark.parametrize("size", SIZES)
def test_the_tally_is_right_for_values_of_every_size(size):
    y, at = SIZES[size](tensor(8, 700)), some_address(8, 1)
    noisy, told = perturb_gaussian(y, at, 0.5, True, "nearest")
    told_R6 = perturb_gaussian(y, at, torch.full((8,), 0.5), True, "nearest")[1]
    error = standard_normal(at, 700) * 0.5 * y.abs()
    assert told.tolist() == pytest.approx(tally(y, noisy, error).tolist(), rel=1e-6, abs=0)
    for r in range(8):
        expected = tally(y[r], noisy[r], error[r])
        assert told_R6[r].tolist() == pytest.approx(expected.tolist(), rel=1e-6, abs=0)


@pytest.mark.parametrize("scale", [1e-19, 1e-25])
def test_errors_whose_squares_underflow_are_told(scale):
    y, at = tensor(8, 700), some_address(8)
    noisy, told = perturb_gaussian(y, at, scale, True, "nearest")
    error = standard_normal(at, 700) * scale * y.abs()
    assert told.tolist() == pytest.approx(tally(y, noisy, error).tolist(), rel=1e-6, abs=0)


def test_tiny_changes_beside_an_erased_one_are_told():
    """In a chunk the sum of what was asked is ordinary, that of what arrived underflows."""
    y, at = torch.full((64, 40), 1e-24, dtype=torch.bfloat16), some_address(64)
    y[:, 7] = 1.0
    noisy, told = perturb_gaussian(y, at, 1e-3, True, "nearest", None)
    is_erased_R = noisy[:, 7] == 1.0
    assert is_erased_R.double().mean() > 0.5
    told_R6 = perturb_gaussian(y, at, torch.full((64,), 1e-3), True, "nearest")[1]
    for r in is_erased_R.nonzero().flatten().tolist():
        change = noisy[r].double() - y[r].double()
        assert float(told_R6[r, 3]) == pytest.approx(float(change.square().sum()), rel=1e-6, abs=0)
    assert told[2] == (noisy != y).sum()


def test_no_rows_have_no_tallies():
    empty = perturb_gaussian(torch.ones(0, 5), some_address(0), torch.ones(0), True, "nearest")
    assert [list(x.shape) for x in empty] == [[0, 5], [0, 6]]


@pytest.mark.parametrize(
    ("compiler", "call"),
    [
        ("njit", lambda: kernel_cpu._compiled()(abs)),
        ("cfunc", lambda: kernel_cpu._compiled_kernel.__wrapped__()),
    ],
)
def test_the_kernel_compiles_where_no_cache_can_be_written(compiler, call, monkeypatch):
    calls = []

    def compile_(*signature, **options):
        calls.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, compiler, compile_)
    assert call() in (abs, kernel_cpu._perturb)
    assert [bool(c.get("cache")) for c in calls] == [True, False]
