"""The fused CPU kernel against the reference, and the same bytes however the work is cut."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch

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
)

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


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bytes_and_tally(dtype, monkeypatch):
    y, at = tensor(301, 500, dtype), some_address(301, 3)
    results = []
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(RelativeGaussian(0.1, "stochastic").perturb(y, at))
    for noisy, told in results[1:]:
        assert torch.equal(noisy, results[0][0])
        assert torch.equal(told, results[0][1])


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


def test_the_kernel_compiles_where_no_cache_can_be_written(monkeypatch):
    calls = []

    def njit(**options):
        calls.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert kernel_cpu._compiled()(abs) is abs
    assert [bool(c.get("cache")) for c in calls] == [True, False]
