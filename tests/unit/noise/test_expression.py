"""Noise as plain torch operations: equal to the kernel's, eager and compiled, compiled once."""

import math
from dataclasses import replace

import pytest
import torch

from noisescope.noise import (
    AbsoluteGaussian,
    Address,
    RelativeGaussian,
    expression,
    standard_normal,
    tally,
)
from noisescope.noise.expression import perturb_expression

SITE = 2**31 + 1
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDINGS = ["nearest", "stochastic"]


def address(rows, first_channel=0, **words):
    generator = torch.Generator().manual_seed(0)
    sample, position = (torch.randint(-(2**40), 2**40, (rows,), generator=generator) for _ in "sp")
    words = {"seed": 2**32 - 1, "draw": 5} | words
    channel = torch.full((rows,), first_channel)
    return Address(**words, site=SITE, sample_R=sample, position_R=position, channel_R=channel)


def tensor(rows, channels, dtype=torch.float32):
    y = torch.randn(rows, channels, generator=torch.Generator().manual_seed(1))
    # Subnormal in float16.
    y[: rows // 4] *= 1e-6
    return y.to(dtype)


def perturb(
    y, at, scale, is_relative=True, rounding="nearest", is_aligned=False, call=perturb_expression
):
    rows = (at.sample_R, at.position_R, at.channel_R)
    words = (torch.as_tensor(at.seed), torch.as_tensor(at.draw), at.site)
    scale = torch.as_tensor(scale, dtype=torch.float32)
    is_stochastic = rounding == "stochastic"
    return call(y, *rows, *words, scale, is_relative, is_stochastic, is_aligned=is_aligned)


def same_bits(a, b):
    shown = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.view(shown), b.view(shown))


def assert_almost_equal(noisy, expected, expected_change):
    """Equal, but for few numbers, next to each other, where a normal's last bits decide."""
    if noisy.dtype == torch.float32:
        # A sum may nearly cancel: what is off is measured by the larger of its terms.
        room = 1e-6 * (expected_change.abs() + (expected - expected_change).abs())
        assert ((noisy - expected).abs() <= room).all()
        return
    bits, expected_bits = noisy.view(torch.int16).int(), expected.view(torch.int16).int()
    assert (bits - expected_bits).abs().max() <= 1
    assert (bits != expected_bits).double().mean() < 1e-4


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [RelativeGaussian, AbsoluteGaussian])
def test_it_does_what_the_kernel_does(model, dtype, rounding):
    y, at = tensor(200, 203, dtype), address(200, 6)
    expected, expected_told = model(0.03, rounding).perturb(y, at)
    noisy, told = perturb(y, at, 0.03, model.is_relative, rounding)
    assert_almost_equal(noisy, expected, expected - y)
    assert told.dtype == torch.float64
    assert told.sum(0).tolist() == pytest.approx(expected_told.tolist(), rel=1e-5)


@pytest.mark.parametrize("is_aligned", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4, 130])
@pytest.mark.parametrize("first_channel", [0, 2**32 - 8, -64, -(2**40) + 4])
def test_normals_are_those_of_the_reference(first_channel, channels, is_aligned):
    at = address(500, first_channel)
    zero = torch.zeros(500, channels)
    shown, _ = perturb(zero, at, 1.0, is_relative=False, is_aligned=is_aligned)
    assert (shown.double() / standard_normal(at, channels).double() - 1).abs().max() < 1e-6


@pytest.mark.parametrize("first_channel", [1, 2, 3, -1, -7, 2**32 - 6, -(2**40) + 1])
def test_rows_may_begin_inside_a_block(first_channel):
    at = address(500, first_channel)
    at = replace(at, channel_R=at.channel_R + torch.arange(500) % 7)
    shown, _ = perturb(torch.zeros(500, 30), at, 1.0, is_relative=False)
    assert (shown.double() / standard_normal(at, 30).double() - 1).abs().max() < 1e-6


@pytest.mark.parametrize("is_aligned", [False, True])
def test_random_words_decide_the_rounding_to_the_last_bit(is_aligned):
    """One step of float16 and a share of the next: it goes up where the word is below the share."""
    at = address(300)
    y = torch.full((300, 64), 2.0**-24, dtype=torch.float16)
    for scale in (1e-12, 1e-9, 2e-8, 6e-8):
        expected, _ = AbsoluteGaussian(scale, "stochastic").perturb(y, at)
        noisy, _ = perturb(y, at, scale, False, "stochastic", is_aligned)
        assert torch.equal(noisy, expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [61, 64])
def test_aligned_rows_get_the_same_numbers_the_short_way(channels, dtype, rounding):
    y, at = tensor(50, channels, dtype), address(50, -8)
    at = replace(at, channel_R=at.channel_R + 4 * torch.arange(50))
    noisy, told = perturb(y, at, 0.05, rounding=rounding)
    short, short_told = perturb(y, at, 0.05, rounding=rounding, is_aligned=True)
    assert same_bits(noisy, short)
    assert torch.equal(told, short_told)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_seed_draw_and_scale_by_row(dtype, rounding):
    y = tensor(40, 60, dtype)
    seed, draw = torch.arange(40) * 2**28 % 2**32, 2**32 - 1 - torch.arange(40)
    at, scale = address(40, seed=seed, draw=draw), torch.arange(40) % 5 / 50
    noisy, told = perturb(y, at, scale, rounding=rounding)
    assert told.shape == (40, 6)
    for row in range(40):
        alone = at.rows(row, row + 1, seed=int(seed[row]), draw=int(draw[row]))
        one, one_told = perturb(y[row : row + 1], alone, scale[row], rounding=rounding)
        assert same_bits(noisy[row], one[0])
        assert told[row].tolist() == pytest.approx(one_told[0].tolist(), rel=1e-6)


@pytest.mark.parametrize("is_relative", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_scale_zero_keep_every_bit(dtype, is_relative):
    y = tensor(36, 33, dtype)
    shown = torch.int32 if dtype == torch.float32 else torch.int16
    not_a_number = {torch.float32: 0x7FC12345, torch.bfloat16: 0x7FD3, torch.float16: 0x7E37}
    y.view(shown)[:, 0] = not_a_number[dtype]
    y[:, 1], y[:, 2], y[:, 3] = -0.0, math.inf, -math.inf
    scale = torch.tensor([0.0, 0.1, 0.0] * 12)
    noisy, told = perturb(y, address(36), scale, is_relative, "stochastic")
    is_clean = scale == 0
    assert same_bits(noisy[is_clean], y[is_clean])
    assert not torch.equal(noisy[~is_clean, 4:], y[~is_clean, 4:])
    finite = torch.where(y.isfinite(), y, 0).double()
    assert told[is_clean, 0].tolist() == [33] * 24
    assert told[is_clean][:, [1, 2, 3, 5]].abs().max() == 0
    assert torch.allclose(told[is_clean, 4], finite[is_clean].square().sum(1), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", [RelativeGaussian, AbsoluteGaussian])
def test_the_tally_is_that_of_the_error_model(model, dtype):
    y, at = tensor(40, 40, dtype), address(40)
    y[1, :5] = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0])
    # Squares that float32 does not hold.
    y[2] *= 1e-25
    y[3] = 0
    y[35] = torch.finfo(dtype).max
    y[36] = torch.finfo(dtype).max * torch.logspace(-8, 0, 40)
    noisy, told = perturb(y, at, 0.25, model.is_relative)
    error = model(0.25).error(y.float(), at)
    expected = torch.stack([tally(*(t[r] for t in (y, noisy, error))) for r in range(40)])
    assert torch.allclose(told, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (1, 1)])
@pytest.mark.parametrize("is_aligned", [False, True])
def test_empty_tensors_and_single_elements(shape, is_aligned):
    y = torch.ones(shape, dtype=torch.bfloat16)
    noisy, told = perturb(y, address(shape[0]), 0.5, is_aligned=is_aligned)
    assert noisy.shape == shape
    assert told.shape == (shape[0], 6)
    assert told[:, 0].sum() == y.numel()


@pytest.mark.parametrize("is_aligned", [False, True])
def test_one_graph_serves_every_value(is_aligned):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(perturb_expression, fullgraph=True, backend=backend)
    for scale in (0.0, 0.05, math.inf):
        for turn in range(3):
            at = address(6, 4 * turn, seed=turn, draw=2**32 - 1 - turn)
            at = replace(at, sample_R=at.sample_R * turn, position_R=at.position_R - turn)
            options = {"rounding": "stochastic", "is_aligned": is_aligned}
            y = tensor(6, 10, torch.float16) * turn
            noisy, told = perturb(y, at, scale, call=compiled, **options)
            expected, expected_told = perturb(y, at, scale, **options)
            assert same_bits(noisy, expected)
            assert torch.equal(told, expected_told)
    assert len(graphs) == 1


# Inductor itself uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
@pytest.mark.slow
def test_words_are_exact_in_the_vectors_that_inductor_writes(monkeypatch):
    """In C++ an overflow is undefined: gcc takes a product of positive numbers for positive."""
    # All rounds take a minute to compile.
    monkeypatch.setattr(expression, "ROUNDS", 2)
    at = address(24, -39)

    def words(channel_R, *words_of_rows):
        of_rows = (SITE, *(word.reshape(-1, 1) & 0xFFFFFFFF for word in words_of_rows))
        return expression._words(channel_R, 37, False, of_rows)

    key = (torch.tensor(at.seed), torch.tensor(at.draw))
    rest = (at.channel_R, at.position_R, at.sample_R, *key)
    assert torch.equal(torch.compile(words, fullgraph=True)(*rest), words(*rest))


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
@pytest.mark.slow
def test_fused_by_inductor_every_value_is_rounded_all_the_same():
    """A compiler leaves out roundings to a narrow dtype between the operations that it fuses."""

    def fused(y, *rest, **constants):
        noisy, told = perturb_expression(y * 3, *rest, **constants)
        return noisy, told, noisy.to(torch.float32) * 2

    y, at, scale = tensor(24, 37, torch.bfloat16), address(24, -40), torch.arange(24) % 4 / 10
    options = {"rounding": "stochastic", "is_aligned": True}
    # Without vectors the C++ is compiled in a tenth of the time.
    compiled = torch.compile(fused, fullgraph=True, options={"cpp.simdlen": 1})
    noisy, told, doubled = perturb(y, at, scale, call=compiled, **options)
    expected, expected_told = perturb(y * 3, at, scale, **options)
    assert_almost_equal(noisy, expected, expected - y * 3)
    assert torch.equal(doubled[scale != 0], 2 * noisy[scale != 0].float())
    assert torch.allclose(told, expected_told, rtol=1e-6, atol=0)
