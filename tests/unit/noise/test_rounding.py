"""Rounding: two neighbours only, each with its share; exact values stay; no false infinity."""

import numba
import numpy as np
import pytest
import torch

from noisescope.errors import InputError
from noisescope.noise import RelativeGaussian, flat_address, kernel_cpu, random_words
from noisescope.noise.rounding import round_to

NARROW = [torch.bfloat16, torch.float16]


def stochastic(x, dtype, seed=0):
    words = random_words(flat_address(seed, 0, 0, 1), x.numel(), stream=1).reshape(x.shape)
    return round_to(x, dtype, "stochastic", lambda: words)


def all_patterns(dtype):
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def bits(x):
    return x.view(torch.int16)


def neighbours(dtype):
    """Every two finite non-negative neighbours of a dtype, in float64."""
    values = torch.arange(2**15 - 1).to(torch.int16).view(dtype)
    values = values[values.isfinite()].double()
    return values[:-1], values[1:]


@pytest.mark.parametrize("dtype", NARROW)
def test_values_that_the_dtype_holds_stay_bitwise(dtype):
    values = all_patterns(dtype)
    finite = values[values.isfinite()]
    for seed in range(3):
        assert torch.equal(bits(stochastic(finite.float(), dtype, seed)), bits(finite))
    rest = stochastic(values[~values.isfinite()].float(), dtype)
    assert torch.equal(rest.isnan(), values[~values.isfinite()].isnan())


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("share", [0.0625, 0.5, 0.875])
def test_only_the_two_neighbours_occur_each_with_its_share(dtype, share):
    """All gaps between neighbours, subnormal ones and the last before infinity included."""
    low, high = neighbours(dtype)
    exact = low + share * (high - low)
    held = exact.float().double() == exact  # the lowest bfloat16 gaps are narrower than float32's
    low, high, x = low[held], high[held], exact[held].float()
    for sign in (1, -1):
        rounded = stochastic(sign * x, dtype, seed=sign + 1).double() * sign
        is_up = rounded == high
        assert torch.equal(is_up | (rounded == low), torch.ones_like(is_up))
        deviation = (is_up.double().mean() - share) / (share * (1 - share) / len(x)) ** 0.5
        assert abs(deviation) < 5


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [1.2345678, -3e-5, 4.5e-8, 1000.1])
def test_the_mean_is_the_value(dtype, value):
    x = torch.full((2**18,), value)
    rounded = stochastic(x, dtype).double()
    exact = x[0].double()
    gap = (rounded.max() - rounded.min()).clamp(min=1e-300)
    share = (exact - rounded.min()) / gap
    standard_error = gap * (share * (1 - share) / len(x)).sqrt()
    assert len(rounded.unique()) == 2
    assert abs(rounded.mean() - exact) < 5 * standard_error


@pytest.mark.parametrize("dtype", NARROW)
def test_beyond_the_largest_value_rounding_is_to_nearest(dtype):
    largest = torch.tensor(torch.finfo(dtype).max)
    infinity = torch.tensor(torch.inf)
    below = torch.nextafter(largest, -infinity).repeat(4096)
    assert stochastic(below, dtype).isfinite().all()
    beyond = torch.nextafter(largest, infinity).repeat(4096)
    assert (stochastic(beyond, dtype) == largest).all()
    assert stochastic(infinity.repeat(64), dtype).isinf().all()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_of_the_same_dtype_is_left_alone(rounding, dtype):
    def never():
        raise AssertionError("no words are needed here")

    x = torch.tensor([1.1, -0.0, 3e-40], dtype=dtype)
    assert torch.equal(round_to(x, dtype, rounding, never), x)


def test_an_unknown_rounding_is_refused_with_near_names():
    with pytest.raises(
        InputError, match=r"^rounding 'nearst': 'nearest' or 'stochastic' is needed"
    ):
        RelativeGaussian(0.1, rounding="nearst")


@numba.njit
def convert(out, float_bits, dice, is_half, is_stochastic):
    for i in range(len(out)):
        if is_half:
            out[i] = kernel_cpu._float16_bits(float_bits[i], dice[i], is_stochastic)
        else:
            out[i] = kernel_cpu._bfloat16_bits(float_bits[i], dice[i], is_stochastic)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", NARROW)
def test_the_kernel_rounds_as_the_reference_does(dtype, rounding):
    rng = np.random.default_rng(0)
    anywhere = rng.integers(0, 2**32, 2**19, dtype=np.uint32)
    # Around fp16's subnormals and its limits, where its conversion changes method.
    nearby = (2.0 ** rng.uniform(-27, 17, 2**19)).astype(np.float32).view(np.uint32)
    half_step = 0x1000 if dtype == torch.float16 else 0x8000
    ties = (all_patterns(dtype).float().view(torch.int32) + half_step).numpy()
    float_bits = np.concatenate([anywhere, nearby, ties.view(np.uint32)])
    dice = rng.integers(0, 2**32, len(float_bits), dtype=np.uint32)
    out = np.empty(len(float_bits), np.uint16)
    convert(out, float_bits, dice, dtype == torch.float16, rounding == "stochastic")
    words = torch.from_numpy(dice.astype(np.int64))
    expected = round_to(
        torch.from_numpy(float_bits.view(np.float32)), dtype, rounding, lambda: words
    )
    found = torch.from_numpy(out.view(np.int16)).view(dtype)
    is_nan = expected.isnan()
    assert torch.equal(found.isnan(), is_nan)
    assert torch.equal(bits(found)[~is_nan], bits(expected)[~is_nan])
