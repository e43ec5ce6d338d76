"""Faults: closed forms for each; bit flips with their chances, whatever the batch."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from noisescope.errors import InputError
from noisescope.measure.conditions import KNOWN_ERROR_MODELS
from noisescope.noise import (
    Address,
    Bias,
    BitFlips,
    DeadZone,
    RoundModules,
    RoundTo,
    Saturation,
    StuckChannels,
    bit_flips,
    make_error_model,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
STORED = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
ALL = [
    BitFlips(0.01),
    StuckChannels(0.3),
    DeadZone(0.5),
    Saturation(0.7),
    Bias(0.25),
    Bias(-0.1, is_relative=True),
]


def values(rows, width, dtype=torch.float32, seed=0):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype)


def address(rows, seed=1, draw=2, site=3):
    """Returns rows of several samples and positions."""
    index_R = torch.arange(rows)
    return Address(seed, draw, site, index_R % 3, index_R, torch.zeros_like(index_R))


def flips_of(noisy, clean):
    """Returns how many bits of each value differ, and their sum over values per bit."""
    stored = STORED[clean.dtype]
    width = torch.finfo(clean.dtype).bits
    changed = (noisy.view(stored) ^ clean.view(stored)).to(torch.int64)
    each = torch.stack([(changed >> bit) & 1 for bit in range(width)])
    return each.sum(dim=0), each.flatten(1).sum(dim=1)


# Dead zone, saturation, bias.


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dead_zone_loses_what_is_small_and_nothing_else(dtype):
    y = torch.tensor([[0.5, -0.5, 0.49, -0.49, 0.0, 3.0, torch.inf, -1e-6]]).to(dtype)
    noisy, told = DeadZone(0.5).perturb(y, address(1))
    assert noisy.tolist() == [[0.5, -0.5, 0, 0, 0, 3.0, torch.inf, 0]]
    assert told[2] == 3
    small = y[0, [2, 3, 7]].double()
    assert told[3] == told[5] == pytest.approx(float(small.square().sum()), rel=1e-12)
    assert DeadZone(0.5).mean_square(y.float())[0, :4].tolist() == pytest.approx(
        [0, 0, float(y[0, 2]) ** 2, float(y[0, 3]) ** 2], rel=1e-6
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturation_clamps_to_the_limit_itself(dtype):
    """Not to clean + error, which float32 cannot hold beside a large value."""
    y = torch.tensor([[0.05, -0.1, 0.3, -60000.0, torch.inf, -torch.inf]]).to(dtype)
    noisy, told = Saturation(0.1).perturb(y, address(1))
    limit = torch.tensor(0.1).to(dtype) if dtype != torch.float64 else torch.tensor(0.1).double()
    assert torch.equal(noisy[0, 2:].abs().float(), limit.float().expand(4))
    assert noisy[0, 3] < 0
    assert torch.equal(noisy[0, 0], y[0, 0])
    assert told[0] == 6
    square = Saturation(0.1).mean_square(y.float())
    assert square[0, :3].tolist() == pytest.approx([0, 0, (float(y[0, 2]) - 0.1) ** 2], abs=1e-6)
    nan, _ = Saturation(0.1).perturb(torch.full((1, 2), torch.nan, dtype=dtype), address(1))
    assert nan.isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_is_added_in_wide_arithmetic(dtype):
    y = values(4, 50, dtype)
    for model, offset in ((Bias(0.25), 0.25), (Bias(-0.5, is_relative=True), -0.5 * y.double())):
        noisy, told = model.perturb(y, address(4))
        exact = y.double() + offset
        step = torch.finfo(dtype).eps
        assert ((noisy.double() - exact).abs() <= exact.abs() * step + 1e-7).all()
        asked = torch.as_tensor(offset, dtype=torch.float64).expand(4, 50).square()
        assert told[5] == pytest.approx(float(asked.sum()), rel=1e-6)
        square = model.mean_square(y.float()).double().expand(4, 50)
        assert torch.allclose(square, asked, rtol=1e-6)


def test_a_bias_below_the_dtypes_steps_arrives_on_average_by_stochastic_rounding():
    y = torch.ones(100, 1000, dtype=torch.bfloat16)
    lost, _ = Bias(1e-3).perturb(y, address(100))
    assert torch.equal(lost, y)
    noisy, _ = Bias(1e-3, rounding="stochastic").perturb(y, address(100))
    assert float(noisy.double().mean()) - 1 == pytest.approx(1e-3, rel=0.05)


# Stuck channels.


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_channels_are_stuck_in_every_token(dtype):
    y = values(50, 400, dtype)
    noisy, told = StuckChannels(0.1, value=2.0).perturb(y, address(50))
    is_stuck = (noisy == 2.0).all(dim=0)
    assert 20 <= is_stuck.sum() <= 65  # 40 are expected, with a standard deviation of 6
    assert torch.equal(noisy[:, ~is_stuck], y[:, ~is_stuck])
    assert told[2] == (noisy != y).sum()
    others = [StuckChannels(0.1, 2.0).perturb(y, address(50, draw=7))[0]]
    others.append(StuckChannels(0.1, 2.0).perturb(y, address(50, seed=7))[0])
    others.append(StuckChannels(0.1, 2.0).perturb(y, address(50, site=7))[0])
    for other in others:
        assert not torch.equal((other == 2.0).all(dim=0), is_stuck)


def test_stuck_channels_are_a_function_of_the_channel():
    """Heads are rows that begin at their own channels."""
    y = values(12, 10)
    index_R = torch.arange(12)
    heads = Address(1, 2, 3, index_R % 2, index_R // 4, index_R % 4 * 10)
    noisy, _ = StuckChannels(0.4, value=9.0).perturb(y, heads)
    flat, _ = StuckChannels(0.4, value=9.0).perturb(values(3, 40), address(3))
    assert torch.equal((noisy == 9.0).reshape(3, 40), flat == 9.0)
    chosen, _ = StuckChannels(value=9.0, channels=(0, 13, 39, 99)).perturb(y, heads)
    found = (chosen == 9.0).reshape(3, 40).nonzero().tolist()
    assert found == [[r, c] for r in range(3) for c in (0, 13, 39)]


def test_the_share_of_stuck_channels_is_the_share_on_average():
    y = torch.ones(1, 200_000)
    for share in (0.001, 0.3, 1.0):
        noisy, _ = StuckChannels(share).perturb(y, address(1))
        found = float((noisy == 0).double().mean())
        assert abs(found - share) <= 5 * (share * (1 - share) / 200_000) ** 0.5


def test_the_mean_square_of_stuck_channels():
    y = values(3, 5)
    expected = 0.25 * (y - 2).square()
    assert torch.allclose(StuckChannels(0.25, 2.0).mean_square(y), expected)
    listed = StuckChannels(value=2.0, channels=[3]).mean_square(y)
    assert torch.allclose(listed[:, 3], (y[:, 3] - 2).square())
    assert (listed[:, [0, 1, 2, 4]] == 0).all()


# Bit flips.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [1e-3, 0.1, 0.5])
def test_every_bit_flips_with_the_rate_and_on_its_own(dtype, rate):
    y = values(100, 700, dtype)
    noisy, _ = BitFlips(rate).perturb(y, address(100))
    per_value, per_bit = flips_of(noisy, y)
    deviation = (per_bit - 70_000 * rate) / (70_000 * rate * (1 - rate)) ** 0.5
    assert deviation.abs().max() < 5
    width = torch.finfo(dtype).bits
    # The number of flips in a value is binomial: its mean and its variance.
    counts = per_value.double()
    assert counts.mean() == pytest.approx(width * rate, rel=0.06)
    assert counts.var() == pytest.approx(width * rate * (1 - rate), rel=0.06)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rate_of_one_flips_every_bit(dtype):
    y = values(3, 50, dtype)
    noisy, _ = BitFlips(1.0).perturb(y, address(3))
    assert torch.equal(noisy.view(STORED[dtype]), ~y.view(STORED[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_bit_alone(dtype):
    y = values(100, 500, dtype)
    sign = torch.finfo(dtype).bits - 1
    noisy, told = BitFlips(0.2, bit=sign).perturb(y, address(100))
    is_flipped = noisy == -y
    assert torch.equal(noisy, torch.where(is_flipped, -y, y))
    assert abs(float(is_flipped.double().mean()) - 0.2) < 5 * (0.16 / 50_000) ** 0.5
    assert told[2] == is_flipped.sum()
    assert told[3] == pytest.approx(float((2 * y[is_flipped].double()).square().sum()), rel=1e-6)
    _, per_bit = flips_of(BitFlips(0.2, bit=3).perturb(y, address(100))[0], y)
    assert per_bit.nonzero().flatten().tolist() == [3]


def test_small_rates_keep_their_meaning(monkeypatch):
    """At 1e-10, 16 bits flip in 6.87 of 2**32 words: the seventh is decided by a second word."""
    low = torch.tensor([0, int(0.86 * 2**32), int(0.88 * 2**32), 2**32 - 1]).repeat(3)
    high = torch.tensor([0, 6, 7]).repeat_interleave(4)

    def words(at, channels, stream=0):
        if at.site != 3:  # a second flip of one value
            return torch.full((len(at), 1), 2**32 - 1)
        if channels == 1:  # single elements, in the position that they have in the tensor
            return (low if stream else high)[at.channel_R][:, None]
        return high[None]

    monkeypatch.setattr(bit_flips, "random_words", words)
    y = torch.ones(1, 12, dtype=torch.bfloat16)
    noisy, _ = BitFlips(1e-10).perturb(y, address(1))
    is_flipped = [True] * 4 + [True, True, False, False] + [False] * 4
    assert (noisy != y)[0].tolist() == is_flipped
    # The smallest of all numbers flips the first bit, one near the limit the last.
    assert (noisy.view(torch.int16) ^ y.view(torch.int16))[0, [0, 5]].tolist() == [1, -(2**15)]


def test_flips_are_a_function_of_the_address():
    y, at = values(40, 130), address(40)
    noisy, _ = BitFlips(0.02).perturb(y, at)
    part, _ = BitFlips(0.02).perturb(y[10:20], at.rows(10, 20))
    assert torch.equal(part.view(torch.int32), noisy[10:20].view(torch.int32))
    strided = values(130, 40).T.contiguous().T
    turned, _ = BitFlips(0.02).perturb(strided[:40], address(40))
    straight, _ = BitFlips(0.02).perturb(strided[:40].contiguous(), address(40))
    assert torch.equal(turned.view(torch.int32), straight.view(torch.int32))
    error = BitFlips(0.02).error(y, at)
    finite = noisy.isfinite()
    assert torch.equal(error[finite], (noisy - y)[finite])
    other, _ = BitFlips(0.02).perturb(y, address(40, draw=3))
    assert (other.view(torch.int32) != noisy.view(torch.int32)).any()


def test_elements_inside_a_block_of_channels_have_their_own_flips():
    """Rows that begin at any channel meet the flips of their channels."""
    y = torch.ones(2, 64)
    index_R = torch.zeros(2, dtype=torch.int64)
    at = Address(1, 2, 3, index_R, index_R, torch.tensor([0, 5]))
    noisy, _ = BitFlips(0.05).perturb(y, at)
    stored = noisy.view(torch.int32)
    assert torch.equal(stored[0, 5:], stored[1, :-5])


def test_what_becomes_infinite_or_nan_is_told():
    y = torch.full((10, 100), 1.5, dtype=torch.bfloat16)
    noisy, told = BitFlips(0.5, bit=14).perturb(y, address(10))
    # 1.5 with the top exponent bit set is NaN: exponent 127 becomes 255.
    assert noisy.isnan().any()
    assert told[2] == noisy.isnan().sum()
    assert told[3] == told[5] == 0
    assert told[4] == (~noisy.isnan()).sum() * 2.25


def test_nothing_is_predicted_of_bit_flips():
    with pytest.raises(InputError, match="cannot be told from a mean square"):
        BitFlips(1e-4).mean_square(values(2, 20))


def test_a_bit_that_the_dtype_has_not_is_refused_with_those_it_has():
    y = values(2, 4, torch.bfloat16)
    with pytest.raises(InputError, match=r"^bit 20: values of torch.bfloat16 have bits 0 to 15"):
        BitFlips(0.1, bit=20).perturb(y, address(2))


# All of them.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", ALL, ids=lambda m: type(m).__name__)
def test_inputs_stay_and_empty_tensors_pass(model, dtype):
    y = values(5, 30, dtype)
    kept = y.clone()
    noisy, told = model.perturb(y, address(5))
    assert torch.equal(y, kept)
    assert noisy.dtype == dtype
    assert (noisy != y).any()
    assert told[2] > 0
    for shape in ((0, 5), (5, 0), (0, 0)):
        noisy, told = model.perturb(torch.zeros(shape, dtype=dtype), address(shape[0]))
        assert noisy.shape == shape
        assert told.tolist() == [0] * 6


@pytest.mark.parametrize("model", ALL, ids=lambda m: type(m).__name__)
def test_an_element_depends_on_no_other(model):
    y, at = values(8, 30), address(8)
    whole, _ = model.perturb(y, at)
    with_nan = y.clone()
    with_nan[3, 4] = torch.nan
    rest = torch.ones_like(y, dtype=torch.bool)
    rest[3, 4] = False
    other, _ = model.perturb(with_nan, at)
    assert torch.equal(other[rest].view(torch.int32), whole[rest].view(torch.int32))


@pytest.mark.parametrize(
    "model", [BitFlips(0), StuckChannels(0), StuckChannels(), DeadZone(0), Bias(0.0)]
)
def test_nothing_asked_is_bitwise_clean(model):
    y = values(3, 8)
    assert model.is_null
    assert model.perturb(y, address(3))[0] is y


@pytest.mark.parametrize(
    ("model", "is_random"),
    [
        (BitFlips(0.1), True),
        (StuckChannels(0.1), True),
        (StuckChannels(channels=(1,)), False),
        (DeadZone(0.1), False),
        (Saturation(1), False),
        (Saturation(0.3, "stochastic"), True),
        (Bias(0.1), False),
        (Bias(0.1, rounding="stochastic"), True),
    ],
)
def test_what_is_random(model, is_random):
    assert model.is_random is is_random
    y = values(4, 64, torch.bfloat16)
    draws = [model.perturb(y, address(4, draw=d))[0].view(torch.int16) for d in range(4)]
    assert any(not torch.equal(draws[0], d) for d in draws) is is_random


@pytest.mark.parametrize(
    "model",
    [
        *ALL,
        BitFlips(0.1, bit=np.int64(3)),
        StuckChannels(value=1.0, channels=range(3)),
        Bias(0.1, True, "stochastic"),
    ],
    ids=repr,
)
def test_models_come_back_from_json(model):
    again = type(model)(**json.loads(json.dumps(asdict(model))))
    assert again == model
    assert hash(again) == hash(model)


def test_studies_know_every_error_model_of_this_package():
    kinds = (BitFlips, StuckChannels, DeadZone, Saturation, Bias, RoundTo, RoundModules)
    assert {kind.__name__: kind for kind in kinds}.items() <= KNOWN_ERROR_MODELS.items()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BitFlips(1.1), "^bit flip rate 1.1: a finite number from 0 to 1 "),
        (lambda: BitFlips(-0.1), "^bit flip rate -0.1"),
        (lambda: BitFlips(True), "^bit flip rate True"),
        (lambda: BitFlips(0.1, bit=64), "^bit 64: an integer from 0 to 63 is needed; try 14"),
        (lambda: BitFlips(0.1, bit=1.0), "^bit 1.0"),
        (lambda: StuckChannels(2), "^share of stuck channels 2: a finite number from 0 to 1 "),
        (lambda: StuckChannels(0.1, torch.nan), "^value of stuck channels nan: a finite number "),
        (lambda: StuckChannels(channels=(-1,)), "^stuck channel -1: an integer of at least 0"),
        (lambda: StuckChannels(channels="ab"), "^stuck channel 'ab'"),
        (lambda: StuckChannels(0.1, channels=(1,)), r"^stuck channels: a share \(0.1\) and"),
        (lambda: DeadZone(-1), "^dead zone threshold -1: a finite number of at least 0 "),
        (lambda: DeadZone(torch.inf), "^dead zone threshold inf"),
        (lambda: Saturation(0), "^saturation limit 0: a finite number above 0 "),
        (lambda: Saturation(1e39), "^saturation limit 1e\\+39: .* that float32 holds"),
        (lambda: Bias("1"), "^bias offset '1': a finite number that float32 holds is needed"),
        (lambda: Bias(1, rounding="up"), "^rounding 'up'"),
        (lambda: make_error_model("bit_flips", 2), "^bit flip rate 2"),
        (lambda: make_error_model("bitflips", 0.1), "did you mean 'bit_flips'"),
        (
            lambda: make_error_model("uniform", 0.1),
            r"'relative_gaussian' or 'absolute_gaussian' is needed \(or a fault: 'bit_flips', ",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bit_flips", BitFlips(0.5, rounding="stochastic")),
        ("stuck_channels", StuckChannels(0.5, rounding="stochastic")),
        ("dead_zone", DeadZone(0.5, "stochastic")),
        ("saturation", Saturation(0.5, "stochastic")),
        ("bias", Bias(0.5, rounding="stochastic")),
    ],
)
def test_faults_by_name(name, expected):
    assert make_error_model(name, 0.5, "stochastic") == expected
