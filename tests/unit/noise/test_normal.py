"""The normal numbers against the normal distribution: moments, tails, independence.

Seeds are fixed, so that a bound is passed once for all.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from noisescope.noise import Address, flat_address, random_words, standard_normal

ROWS, CHANNELS = 2048, 1024
COUNT = ROWS * CHANNELS
# A right generator passes a bound of 5 standard errors but for one seed in 1.7 million.
BOUND = 5.0


@pytest.fixture(scope="module")
def normals():
    z = standard_normal(flat_address(2024, 1, 77, ROWS), CHANNELS)
    assert z.dtype == torch.float32
    return z.to(torch.float64).flatten().numpy()


@pytest.mark.parametrize(
    ("power", "expected", "variance"),
    [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)],
)
def test_moments(normals, power, expected, variance):
    # Var(z^k) = E z^2k - (E z^k)^2 for a standard normal z.
    error = abs(np.mean(normals**power) - expected)
    assert error < BOUND * np.sqrt(variance / COUNT)


@pytest.mark.parametrize("limit", [3, 4, 5])
@pytest.mark.parametrize("sign", [-1, 1])
def test_tails_hold_as_many_as_the_normal_does(normals, limit, sign):
    found = int((sign * normals > limit).sum())
    p = stats.binomtest(found, COUNT, stats.norm.sf(limit)).pvalue
    assert p > 1e-5


def test_kolmogorov_smirnov(normals):
    assert stats.kstest(normals, "norm").pvalue > 1e-4


def test_each_lane_of_a_block_is_normal(normals):
    for lane in range(4):
        assert stats.kstest(normals.reshape(-1, 4)[:, lane], "norm").pvalue > 1e-4


def address(**changes):
    rows = torch.arange(1024)
    base = Address(5, 6, 7, rows // 32, rows % 32, torch.zeros(1024, dtype=torch.int64))
    return replace(base, **changes)


ROWS_1024 = torch.arange(1024)
OTHERS = {
    "channel": {"channel_R": torch.ones(1024, dtype=torch.int64)},
    "channel of the pair": {"channel_R": torch.full((1024,), 2)},
    "next block": {"channel_R": torch.full((1024,), 4)},
    "position": {"position_R": ROWS_1024 % 32 + 32},
    "next position": {"position_R": ROWS_1024 % 32 + 1},
    "sample": {"sample_R": ROWS_1024 // 32 + 1},
    "site": {"site": 6},
    "draw": {"draw": 7},
    "seed": {"seed": 4},
    "seed and draw exchanged": {"seed": 6, "draw": 5},
    "sample and position exchanged": {"sample_R": ROWS_1024 % 32 + 64, "position_R": ROWS_1024},
}


@pytest.mark.parametrize("other", OTHERS)
def test_neighbours_are_uncorrelated(other):
    a = standard_normal(address(), 512).double().flatten()
    b = standard_normal(address(**OTHERS[other]), 512).double().flatten()
    for power in (1, 2):
        correlation = np.corrcoef((a**power).numpy(), (b**power).numpy())[0, 1]
        assert abs(correlation) < BOUND / np.sqrt(len(a))


def test_the_streams_are_uncorrelated():
    a, b = (random_words(address(), 512, stream).double().flatten().numpy() for stream in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < BOUND / np.sqrt(len(a))


def test_formula_against_extended_precision():
    """numpy's 80-bit floats evaluate Box-Muller directly on the words."""
    at = flat_address(3, 1, 4, 64)
    words = random_words(at, 256).numpy().reshape(-1, 4).astype(np.longdouble)
    u = (words + 0.5) / np.longdouble(2) ** 32
    radius = np.sqrt(-2 * np.log(u[:, 0::2]))
    angle = 8 * np.arctan(np.longdouble(1)) * u[:, 1::2]
    exact = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1).reshape(64, 256)
    z = standard_normal(at, 256).numpy()
    assert np.abs(z / exact - 1).max() < 2.0**-24 * 1.0001


@pytest.mark.parametrize(("rows", "channels"), [(0, 5), (3, 0), (0, 0)])
def test_empty_tensors(rows, channels):
    assert standard_normal(flat_address(0, 0, 0, rows), channels).shape == (rows, channels)
