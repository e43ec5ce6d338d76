"""Token metrics against closed forms and a float64 computation of their own."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from noisescope.measure import token_metrics

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def logits(rows, vocabulary, dtype=torch.float32, seed=0, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(rows, vocabulary, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 200])
def test_metrics_equal_the_definition_in_float64(dtype, rows):
    clean, noisy = logits(rows, 31, dtype), logits(rows, 31, dtype, seed=1)
    label = torch.arange(rows) % 31
    found = token_metrics(clean, noisy, label)
    p = special.softmax(clean.double().numpy(), axis=1)
    q = special.softmax(noisy.double().numpy(), axis=1)
    at = np.arange(rows), label.numpy()
    np.testing.assert_allclose(found.kl_nats, special.rel_entr(p, q).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.clean_nll_nats, -np.log(p[at]), rtol=1e-12)
    np.testing.assert_allclose(
        found.nll_change_nats, np.log(p[at]) - np.log(q[at]), rtol=1e-10, atol=1e-13
    )
    same = p.argmax(axis=1) == q.argmax(axis=1)
    np.testing.assert_array_equal(found.is_top1_same, same.astype(float))
    assert all(t.dtype == torch.float64 for t in vars(found).values())


def test_two_tokens_have_the_closed_form():
    # p = (3/4, 1/4), q = (1/2, 1/2): KL = ln 2 - H(p) with H(1/4) = .5623351446188083.
    found = token_metrics(
        torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64),
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor([1]),
    )
    assert found.kl_nats.item() == pytest.approx(math.log(2) - 0.5623351446188083, abs=1e-15)
    assert found.clean_nll_nats.item() == pytest.approx(math.log(4), abs=1e-15)
    assert found.nll_change_nats.item() == pytest.approx(-math.log(2), abs=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_logits_give_exactly_nothing(dtype):
    same = logits(70, 1000, dtype)
    found = token_metrics(same, same.clone(), torch.zeros(70, dtype=torch.int64))
    assert not found.kl_nats.any() and not found.nll_change_nats.any()
    assert found.is_top1_same.eq(1).all()


def test_kl_is_zero_for_logits_that_differ_by_a_constant():
    clean = logits(50, 40, torch.float64)
    found = token_metrics(clean, clean + 2.5, torch.zeros(50, dtype=torch.int64))
    assert (found.kl_nats >= 0).all() and (found.kl_nats < 1e-14).all()


def test_a_kl_of_a_millionth_is_no_rounding():
    # For small d the KL is half the variance of d under p, here about 1e-6.
    clean = logits(20, 50, torch.float64)
    difference = logits(20, 50, torch.float64, seed=2, spread=1.5e-3)
    found = token_metrics(clean, clean + difference, torch.zeros(20, dtype=torch.int64))
    p = special.softmax(clean.numpy(), axis=1)
    d = difference.numpy()
    second_order = 0.5 * ((p * d**2).sum(axis=1) - (p * d).sum(axis=1) ** 2)
    assert 1e-7 < np.median(second_order) < 1e-5
    np.testing.assert_allclose(found.kl_nats, second_order, rtol=5e-3)


def test_a_token_that_is_impossible_in_both_adds_nothing():
    minus = -math.inf
    clean = torch.tensor([[0.0, minus, 0.0]])
    noisy = torch.tensor([[1.0, minus, 0.0]])
    found = token_metrics(clean, noisy, torch.tensor([0]))
    reference = token_metrics(clean[:, [0, 2]], noisy[:, [0, 2]], torch.tensor([0]))
    assert found.kl_nats.item() == pytest.approx(reference.kl_nats.item(), rel=1e-14) != 0


def test_a_token_that_only_noise_allows_is_finite_and_one_it_forbids_infinite():
    open_, shut = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -math.inf]])
    allowed = token_metrics(shut, open_, torch.tensor([0]))
    assert allowed.kl_nats.item() == pytest.approx(math.log(2), rel=1e-14)
    forbidden = token_metrics(open_, shut, torch.tensor([1]))
    assert forbidden.kl_nats.item() == math.inf
    assert forbidden.nll_change_nats.item() == math.inf


def test_nan_logits_are_told():
    broken = torch.tensor([[0.0, math.nan]])
    assert token_metrics(torch.zeros(1, 2), broken, torch.tensor([0])).kl_nats.isnan().all()
