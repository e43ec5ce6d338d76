"""Sums of effects against loops in float64, and clamped softmax against integrals and chance."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from noisescope.inject.effects import effect_of, never_clamps
from noisescope.inject.perturb import perturb_probabilities
from noisescope.inject.rows import Rows
from noisescope.noise import AbsoluteGaussian, Address, RelativeGaussian
from noisescope.profile import POSITION_CLASSES

B, T, D, H = 3, 4, 6, 2
CLASSES = [[0, 1, 2, 2], [0, 2, 2, 2], [0, 1, 1, 2]]
NOISES = [RelativeGaussian(0.1), AbsoluteGaussian(0.02)]
SQUARES = [lambda y: (0.1 * y) ** 2, lambda y: 0.02**2]


def rows_of_batch():
    row_BT = torch.arange(B)[:, None].expand(B, T)
    zero_B = torch.zeros(B, dtype=torch.int64)
    return Rows(0, 0, row_BT, torch.tensor(CLASSES), zero_B, keys=T)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Of every layout: shape, operator, layout, and the sample, position and channel of an index.
LAYOUTS = {
    "B T D": ((B, T, D), "linear", "channels", lambda i: (i[0], i[1], i[2])),
    "BT D": ((B * T, D), "linear", "channels", lambda i: (i[0] // T, i[0] % T, i[1])),
    "heads last": (
        (B, T, H, D), "rms_norm", "channels", lambda i: (i[0], i[1], i[2] * D + i[3])
    ),
    "heads first": (
        (B, H, T, D), "matmul", "channels", lambda i: (i[0], i[2], i[1] * D + i[3])
    ),
    "heads flat": (
        (B * T * H, D),
        "rms_norm",
        "channels",
        lambda i: (i[0] // (T * H), i[0] // H % T, i[0] % H * D + i[1]),
    ),
    "keys": ((B, H, T, T), "matmul", "keys", lambda i: (i[0], i[2], i[1])),
    "keys of bmm": ((B * H, T, T), "bmm", "keys", lambda i: (i[0] // H, i[1], i[0] % H)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_sums_are_those_of_a_loop(name):
    shape, operator, layout, place_of = LAYOUTS[name]
    y, g = random(*shape), random(*shape, seed=1)
    at, kind = rows_of_batch().address(y, operator, layout, 0)
    found = effect_of(y, g, NOISES, at, kind, B, is_keys=layout == "keys")
    assert (found.rows, kind) == ("token", "token")
    channels = 1 + max(place_of(i)[2] for i in np.ndindex(shape))
    by_sample = np.zeros((2, B))
    by_channel = np.zeros((2, len(POSITION_CLASSES), channels))
    for i in np.ndindex(shape):
        sample, position, channel = place_of(i)
        for e, square in enumerate(SQUARES):
            nats = 0.5 * square(float(y[i])) * float(g[i]) ** 2
            by_sample[e, sample] += nats
            by_channel[e, CLASSES[sample][position], channel] += nats
    np.testing.assert_allclose(found.nats_EB.numpy(), by_sample, rtol=2e-6)
    np.testing.assert_allclose(found.by_channel_ECD.numpy(), by_channel, rtol=2e-6)


@pytest.mark.parametrize(("kind", "shape"), [("sample", (B, 2, 5, D)), ("row", (B * 8, D))])
def test_rows_that_lost_their_token_keep_their_sample_and_are_of_unknown_class(kind, shape):
    y, g = random(*shape), random(*shape, seed=1)
    R = y.numel() // D
    zero_R = torch.zeros(R, dtype=torch.int64)
    found = effect_of(y, g, NOISES, Address(0, 0, 0, zero_R, zero_R, zero_R), kind, B)
    nats = 0.5 * (0.1 * y.double() * g.double()) ** 2
    torch.testing.assert_close(found.nats_EB[0], nats.reshape(B, -1).sum(-1), rtol=2e-6, atol=0)
    known, unknown = found.by_channel_ECD[0].double().split([3, 1])
    assert not known.any()
    torch.testing.assert_close(unknown[0], nats.reshape(-1, D).sum(0), rtol=2e-6, atol=0)


def test_effects_of_calls_add_up_and_a_boost_is_taken_back():
    y, g = random(B, T, D), random(B, T, D, seed=1)
    at, kind = rows_of_batch().address(y, "linear", "channels", 0)
    one = effect_of(y, g, NOISES, at, kind, B)
    two = effect_of(y, 256 * g, NOISES, at, kind, B)
    two.shrink(256.0)
    torch.testing.assert_close(two.nats_EB, one.nats_EB)
    two.add(one)
    torch.testing.assert_close(two.nats_EB, 2 * one.nats_EB)
    torch.testing.assert_close(two.by_channel_ECD, 2 * one.by_channel_ECD)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_halves_are_those_of_their_values(dtype):
    y, g = random(B, T, D).to(dtype), random(B, T, D, seed=1).to(dtype)
    at, kind = rows_of_batch().address(y, "linear", "channels", 0)
    found, wide = (
        effect_of(a, b, NOISES, at, kind, B) for a, b in ((y, g), (y.float(), g.float()))
    )
    assert torch.equal(found.nats_EB, wide.nats_EB)


# Softmax.


def softmax_effect(p, g, error_model):
    zero_R = torch.zeros(len(p), dtype=torch.int64)
    at = Address(0, 0, 0, zero_R, zero_R, zero_R)
    return effect_of(p, g, [error_model], at, "row", 1, softmax_dim=-1)


def moments(p, sigma):
    """Mean and variance of a Gaussian error clamped so that p + error >= 0, by quadrature."""

    def mean_of(f):
        below = f(-p) * norm.cdf(-p / sigma)
        return below + quad(lambda e: f(e) * norm.pdf(e, scale=sigma), -p, 12 * sigma)[0]

    mean = mean_of(lambda e: e)
    return mean, mean_of(lambda e: (e - mean) ** 2)


@pytest.mark.parametrize(
    ("error_model", "sigma_of"),
    [
        (AbsoluteGaussian(0.02), lambda p: 0.02),
        (AbsoluteGaussian(0.2), lambda p: 0.2),
        (RelativeGaussian(0.5), lambda p: 0.5 * p),
        (RelativeGaussian(1.5), lambda p: 1.5 * p),
    ],
)
def test_clamped_probabilities_have_the_moments_of_an_integral(error_model, sigma_of):
    p = random(1, 8).mul(2).softmax(-1)
    p[0, 3] = 0.0  # masked: stays 0, whatever the error
    p /= p.sum()
    g = random(1, 8, seed=1)
    wide_p, wide_g = p[0].double().numpy(), g[0].double().numpy()
    found = [moments(x, sigma_of(x)) if x > 0 else (0.0, 0.0) for x in wide_p]
    mean, variance = np.array(found).T
    whole = 1 + mean.sum()
    after = (wide_p + mean) / whole
    spread = (variance * ((wide_g - after @ wide_g) / whole) ** 2).sum()
    expected = 0.5 * spread + 0.5 * (wide_g @ (after - wide_p)) ** 2
    effect = softmax_effect(p, g, error_model)
    assert float(effect.nats_EB) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("error_model", "rel"),
    [
        (AbsoluteGaussian(0.001), 0.02),
        (AbsoluteGaussian(0.02), 0.02),
        (AbsoluteGaussian(0.1), 0.05),
        (RelativeGaussian(0.02), 0.02),
        (RelativeGaussian(0.5), 0.05),
        (RelativeGaussian(1.0), 0.05),
    ],
)
def test_what_injection_does_to_probabilities_has_the_predicted_square(error_model, rel):
    # 200 keys: their sum then varies little, to first order, as the formula has it.
    keys, draws = 200, 20_000
    p, g = random(1, keys).softmax(-1), random(1, keys, seed=1)
    order_R = torch.arange(draws)
    at = Address(1, 0, 9, order_R, order_R, torch.zeros_like(order_R))
    noisy, _ = perturb_probabilities(error_model, p.expand(draws, keys), at, -1)
    squares = ((noisy - p).double() @ g[0].double()).square()
    measured, error = 0.5 * squares.mean(), 0.5 * squares.std() / draws**0.5
    found = float(softmax_effect(p, g, error_model).nats_EB)
    assert float(error / measured) < 0.02
    assert found == pytest.approx(float(measured), rel=rel + 2 * float(error / measured))


def test_small_relative_error_needs_no_clamping_and_agrees_with_the_clamped_form():
    assert never_clamps(RelativeGaussian(0.12))
    assert not never_clamps(RelativeGaussian(0.13))
    assert not never_clamps(AbsoluteGaussian(1e-9))
    # Eight standard deviations: a normal number is lower once in 10^15.
    assert norm.cdf(-8) < 1e-15
    p, g = random(1, 50).softmax(-1), random(1, 50, seed=1)
    plain, clamped = (
        float(softmax_effect(p, g, RelativeGaussian(s)).nats_EB) / s**2 for s in (0.1249, 0.1251)
    )
    assert plain == pytest.approx(clamped, rel=1e-4)


def test_softmax_takes_back_what_all_of_a_row_have_in_common():
    p = random(1, 50).softmax(-1)
    g = torch.full((1, 50), 3.0)
    assert float(softmax_effect(p, g, RelativeGaussian(0.1)).nats_EB) < 1e-10
    assert float(softmax_effect(p, g, AbsoluteGaussian(0.1)).nats_EB) < 1e-10


def test_a_softmax_over_another_axis_is_its_transpose():
    p, g = random(1, 5, 7).softmax(1), random(1, 5, 7, seed=1)

    def at(rows):
        zero_R = torch.zeros(rows, dtype=torch.int64)
        return Address(0, 0, 0, zero_R, zero_R, zero_R)

    noises = [RelativeGaussian(0.1), AbsoluteGaussian(0.05)]
    one = effect_of(p, g, noises, at(5), "row", 1, softmax_dim=1)
    turned = p.transpose(1, 2), g.transpose(1, 2)
    other = effect_of(*turned, noises, at(7), "row", 1, softmax_dim=-1)
    torch.testing.assert_close(one.by_sample_EB, other.by_sample_EB, rtol=1e-5, atol=0)
    assert math.isclose(*map(float, (one.pull_EB[1], other.pull_EB[1])), rel_tol=1e-3)
