"""Elements: every code is ml_dtypes's; rounding is its cast, saturation aside; chance is fair."""

import ml_dtypes
import numpy as np
import pytest
import torch

from noisescope.noise import ELEMENTS, flat_address, random_words
from noisescope.noise.elements import floor_exponent, power_of_two

# Independent tables, and the largest finite values as the specifications print them.
FLOATS = {
    "bf16": (ml_dtypes.bfloat16, 3.3895313892515355e38),
    "fp16": (np.float16, 65504.0),
    "fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0),
    "fp6_e3m2": (ml_dtypes.float6_e3m2fn, 28.0),
    "fp6_e2m3": (ml_dtypes.float6_e2m3fn, 7.5),
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, 6.0),
}
SATURATING = [name for name in FLOATS if name not in ("bf16", "fp16")]
INTS = [name for name in ELEMENTS if name.startswith("int")]
INFINITY = torch.tensor(torch.inf)


def table(name):
    """Returns float32 values of all codes, by ml_dtypes or numpy."""
    dtype, _ = FLOATS[name]
    bits = ELEMENTS[name].bits
    codes = np.arange(2**bits, dtype=np.uint16 if bits == 16 else np.uint8)
    return torch.from_numpy(codes.view(dtype).astype(np.float32))


def finite_values(name):
    """Returns the finite values of an element in order, float32, 0 once."""
    if name in INTS:
        largest = 2 ** (ELEMENTS[name].bits - 1) - 1
        return torch.arange(-largest, largest + 1).float()
    values = table(name)
    return (values[values.isfinite()] + 0.0).unique()


def dense_grid(name):
    """Returns all midpoints of neighbours, the float32 values beside them, and every float16."""
    values = finite_values(name).double()
    middle = ((values[1:] + values[:-1]) / 2).float()
    beside = [middle.nextafter(INFINITY), middle.nextafter(-INFINITY)]
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).float()
    return torch.cat([values.float(), middle, *beside, halves[halves.isfinite()]])


def words_like(x, seed=0):
    return random_words(flat_address(seed, 0, 0, 1), x.numel(), stream=1).reshape(x.shape)


@pytest.mark.parametrize("name", FLOATS)
def test_every_code_means_what_the_independent_table_says(name):
    expected, found = table(name), ELEMENTS[name].decode(torch.arange(2 ** ELEMENTS[name].bits))
    is_nan = expected.isnan()
    assert torch.equal(found.isnan(), is_nan)
    assert torch.equal(found[~is_nan].view(torch.int32), expected[~is_nan].view(torch.int32))
    assert ELEMENTS[name].largest == FLOATS[name][1] == expected[expected.isfinite()].max()
    assert (
        2.0 ** ELEMENTS[name].top_exponent
        <= FLOATS[name][1]
        < 2.0 ** (ELEMENTS[name].top_exponent + 1)
    )


@pytest.mark.parametrize("name", INTS)
def test_every_code_of_an_integer_is_twos_complement(name):
    bits = ELEMENTS[name].bits
    found = ELEMENTS[name].decode(torch.arange(2**bits))
    expected = (np.arange(2**bits) ^ 2 ** (bits - 1)) - 2 ** (bits - 1)
    assert found.tolist() == expected.tolist()


def test_powers_of_two_are_those_of_e8m0():
    codes = np.arange(255, dtype=np.uint8)
    expected = torch.from_numpy(codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    assert torch.equal(power_of_two(torch.arange(-127, 128, dtype=torch.int32)), expected)


def test_floor_exponents_are_those_of_frexp():
    exact = 2.0 ** torch.arange(-126, 128, dtype=torch.float64)
    x = torch.cat([exact.float(), exact.float().nextafter(INFINITY), exact[1:].float() * 0.75])
    assert torch.equal(floor_exponent(x).int(), (torch.frexp(x).exponent - 1).int())
    assert (floor_exponent(torch.tensor([0.0, 1e-45, 1e-39])) == -127).all()


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_to_nearest_is_the_independent_cast(name):
    dtype, largest = FLOATS[name]
    x = dense_grid(name)
    x = x[x.abs() <= largest]
    expected = torch.from_numpy(x.numpy().astype(dtype).astype(np.float32))
    found = ELEMENTS[name].round(x)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("name", [*SATURATING, *INTS])
def test_what_lies_beyond_saturates_and_nan_stays(name):
    element = ELEMENTS[name]
    beyond = torch.tensor([element.largest * 1.001, element.largest * 1e9, torch.inf])
    for words in (None, torch.zeros(3, dtype=torch.int64)):
        assert (element.round(beyond, words) == element.largest).all()
        assert (element.round(-beyond, words) == -element.largest).all()
        assert element.round(torch.full((3,), torch.nan), words).isnan().all()


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_plain_casts_overflow_to_infinity(name):
    dtype, largest = FLOATS[name]
    x = torch.tensor([largest, -3.4e38, torch.inf, -torch.inf, torch.nan])
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(x.numpy().astype(dtype).astype(np.float32))
    torch.testing.assert_close(ELEMENTS[name].round(x), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", INTS)
def test_integers_are_numpys_in_float64(name):
    largest = ELEMENTS[name].largest
    x = torch.linspace(-1.2 * largest, 1.2 * largest, 4801)
    x = torch.cat([x, torch.arange(-largest - 1, largest + 1) + 0.5])
    expected = np.clip(np.rint(x.numpy().astype(np.float64)), -largest, largest)
    assert ELEMENTS[name].round(x).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ELEMENTS)
def test_values_that_an_element_holds_stay_whatever_the_words(name):
    values = finite_values(name)
    for words in (None, words_like(values), torch.zeros_like(values, dtype=torch.int64)):
        assert torch.equal(ELEMENTS[name].round(values, words), values)


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("share", [0.125, 0.5, 0.75])
def test_stochastic_rounding_takes_each_neighbour_with_its_share(name, share):
    """Words from 0 to 2**32 - 1 in equal steps: of 64 of them, exactly share * 64 go up."""
    values = finite_values(name).double()
    low, high = values[:-1], values[1:]
    if name == "bf16":  # where the squares of float32 neither overflow nor vanish
        low, high = (v[(low.abs() < 1e15) & (low.abs() > 1e-15)] for v in (low, high))
    low, high = (v[:: 1 + len(low) // 5000] for v in (low, high))
    x = (low + share * (high - low)).float()
    words = (torch.arange(64) * 2**26 + 2**25)[:, None].expand(64, len(x))
    rounded = ELEMENTS[name].round(x.expand(64, -1).contiguous(), words).double()
    assert ((rounded == low) | (rounded == high)).all()
    away = torch.where(x > 0, high, low)
    share_away = torch.where(x > 0, share, 1 - share)
    assert torch.equal((rounded == away).double().mean(dim=0), share_away.double())
    square = (rounded - x.double()).square().mean(dim=0)
    found = ELEMENTS[name].stochastic_mean_square(x).double()
    assert torch.allclose(found, square, rtol=1e-6, atol=1e-80)


@pytest.mark.parametrize("name", [*SATURATING, "int8", "int4"])
@pytest.mark.parametrize("value", [0.7, -1.3, 2.6])
def test_the_mean_of_stochastic_rounding_is_the_value(name, value):
    x = torch.full((2**17,), value)
    rounded = ELEMENTS[name].round(x, words_like(x)).double()
    spread = ELEMENTS[name].stochastic_mean_square(x[:1]).double().sqrt()
    assert abs(rounded.mean() - x[0].double()) < 4 * spread / 2**8.5 + 1e-12
    assert rounded.var().sqrt() == pytest.approx(float(spread), rel=0.02, abs=1e-12)


@pytest.mark.parametrize("name", [*SATURATING, "int4"])
def test_beyond_the_largest_value_the_error_is_known(name):
    largest = ELEMENTS[name].largest
    x = torch.tensor([largest * 1.5, -largest * 2])
    expected = torch.tensor([(largest * 0.5) ** 2, largest**2])
    assert torch.equal(ELEMENTS[name].stochastic_mean_square(x), expected)
