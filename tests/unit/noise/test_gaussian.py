"""Gaussian error: arguments, the dose that arrives, scale 0, and that nothing else is touched."""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from noisescope.errors import InputError
from noisescope.noise import (
    AbsoluteGaussian,
    RelativeGaussian,
    flat_address,
    make_error_model,
    standard_normal,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MODELS = [RelativeGaussian, AbsoluteGaussian]


def gaussian_tensor(rows, channels, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, channels, generator=generator).to(dtype)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "scale", [-0.1, float("nan"), float("inf"), -float("inf"), True, "0.1", None]
)
def test_a_scale_that_is_no_finite_non_negative_number_is_refused(model, scale):
    with pytest.raises(InputError) as caught:
        model(scale)
    expected = f"noise scale {scale!r}: a finite number of at least 0 is needed; try 0.05"
    assert str(caught.value) == expected


@pytest.mark.parametrize("model", MODELS)
def test_a_scale_that_float32_cannot_hold_is_refused(model):
    with pytest.raises(InputError, match=r"^noise scale 1e\+39 is infinite in float32"):
        model(1e39)
    assert model(3e38).scale == 3e38


def test_models_by_name():
    assert make_error_model("relative_gaussian", 0.1) == RelativeGaussian(0.1)
    made = make_error_model("absolute_gaussian", 1, "stochastic")
    assert made == AbsoluteGaussian(1, "stochastic")
    near = "'relative_gaussian' or 'absolute_gaussian' is needed; did you mean 'relative_gaussian'"
    with pytest.raises(InputError, match=f"^error type 'relativ_gaussian': {near}"):
        make_error_model("relativ_gaussian", 0.1)
    with pytest.raises(InputError, match="noise scale -1"):
        make_error_model("absolute_gaussian", -1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_the_error_is_the_formula_in_wide_arithmetic(model, dtype):
    y, at = gaussian_tensor(40, 300, dtype), flat_address(1, 2, 3, 40)
    noisy, told = model(0.05).perturb(y, at)
    error = standard_normal(at, 300).double() * 0.05
    error = error * y.double().abs() if model is RelativeGaussian else error
    exact = y.double() + error
    # One rounding of the sum, and 1e-6 of the error for the normal number.
    bound = exact.abs() * torch.finfo(dtype).eps / 2 + error.abs() * 1e-6 + y.double().abs() * 1e-7
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((noisy.double() - exact).abs() <= bound + tiny).all()
    change = noisy.double() - y.double()
    expected = [
        y.numel(),
        (error != 0).sum(),
        (change != 0).sum(),
        *(x.square().sum() for x in (change, y.double(), error)),
    ]
    assert told.tolist() == pytest.approx([float(x) for x in expected], rel=2e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("model", MODELS)
def test_scale_zero_gives_the_very_same_tensor(model, rounding, dtype):
    y = torch.tensor([[1.0, -0.0, torch.nan, torch.inf, 1e-7]], dtype=dtype)
    null = model(0.0, rounding)
    noisy, told = null.perturb(y, flat_address(0, 0, 0, 1))
    assert null.is_null
    assert not model(1e-9).is_null
    assert noisy is y
    assert told[:4].tolist() == [5, 0, 0, 0]
    assert told[5] == 0


def global_states():
    """The states of torch's, numpy's and Python's own generators, comparable by ==."""
    name, words, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), name, words.tolist(), rest, random.getstate()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("model", MODELS)
def test_the_input_and_all_global_generators_are_left_alone(model, rounding, dtype):
    y = gaussian_tensor(8, 64, dtype)
    before, states = y.clone(), global_states()
    noisy, _ = model(0.1, rounding).perturb(y, flat_address(0, 0, 0, 8))
    assert torch.equal(y, before)
    assert noisy.data_ptr() != y.data_ptr()
    assert global_states() == states


def share_changed(dtype, scale):
    """The share of N(0, 1) values that relative noise moves over half a gap, by integration."""
    values = torch.arange(1, 2**15).to(torch.int16).view(dtype)
    v = values[values.isfinite()].double().numpy()
    v = v[v < 50]
    edges = (v[:-1] + v[1:]) / 2
    v, low, high = v[1:-1], edges[:-1], edges[1:]
    weight = 2 * (stats.norm.sf(low) - stats.norm.sf(high))
    moved = stats.norm.sf((high - v) / (v * scale)) + stats.norm.sf((v - low) / (v * scale))
    return float((weight * moved).sum())


@pytest.mark.parametrize(
    ("dtype", "scale", "known_percent"),
    [(torch.bfloat16, 1e-4, 0.0), (torch.bfloat16, 1e-3, 1.2), (torch.float16, 1e-4, 0.26)],
)
def test_the_realised_dose_is_what_rounding_leaves(dtype, scale, known_percent):
    y = gaussian_tensor(2048, 512, dtype)
    _, told = RelativeGaussian(scale).perturb(y, flat_address(1, 2, 3, 2048))
    elements, changed = int(told[0]), int(told[2])
    expected = share_changed(dtype, scale)
    assert abs(changed - elements * expected) <= 5 * (elements * expected) ** 0.5 + 1e-3
    assert 100 * changed / elements == pytest.approx(known_percent, abs=0.1)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1e-4), (torch.float16, 1e-5)])
def test_stochastic_rounding_keeps_the_mean_error(dtype, scale):
    """Where rounding to nearest erases the dose: what arrived, regressed on what was asked for."""
    y, at = gaussian_tensor(2048, 1024, dtype), flat_address(1, 2, 3, 2048)
    asked = standard_normal(at, 1024).double() * y.double().abs() * scale
    step = y.double().abs() * torch.finfo(dtype).eps
    arrived, told = RelativeGaussian(scale, "stochastic").perturb(y, at)
    change = arrived.double() - y.double()
    # Regression through the origin, in units of the gap: slope 1 when the error is kept on average.
    a, b = (asked / step).flatten(), (change / step).flatten()
    held = step.flatten() > 1e-4
    a, b = a[held], b[held]
    slope = (a * b).sum() / a.square().sum()
    standard_error = ((b - slope * a).square() * a.square()).sum().sqrt() / a.square().sum()
    assert abs(slope - 1) < 5 * standard_error
    assert standard_error < 0.05
    assert told[2] > 0
    nearest, _ = RelativeGaussian(scale, "nearest").perturb(y, at)
    lost = (((nearest.double() - y.double()) / step).flatten()[held] * a).sum() / a.square().sum()
    assert abs(lost - 1) > 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_and_nan_stay_and_do_not_spread(dtype):
    y = torch.tensor([[torch.inf, -torch.inf, torch.nan, 1.0, 0.0]], dtype=dtype)
    noisy, told = RelativeGaussian(0.1).perturb(y, flat_address(0, 0, 0, 1))
    assert not noisy[0, :3].isfinite().any()
    assert noisy[0, 3:].isfinite().all()
    assert noisy[0, 4] == 0
    assert told.isfinite().all()
    assert told[2] == (noisy[0, 3] != 1)
    absolute, _ = AbsoluteGaussian(0.1).perturb(y, flat_address(0, 0, 0, 1))
    assert absolute[0, :2].tolist() == [torch.inf, -torch.inf]
    assert absolute[0, 2].isnan()


def test_a_large_value_takes_its_error_without_overflow():
    y = torch.full((64, 64), 3e38)
    noisy, _ = RelativeGaussian(1e-6).perturb(y, flat_address(0, 0, 0, 64))
    assert noisy.isfinite().all()
