"""Rounding as an error: what is written is the format's value; weights and tokens share scales."""

import json
from dataclasses import asdict

import pytest
import torch

from noisescope.errors import InputError
from noisescope.noise import (
    TALLY_FIELDS,
    NoError,
    RelativeGaussian,
    RoundModules,
    RoundTo,
    flat_address,
    make_format,
    random_words,
    rounded,
)

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NAMES = ["bf16", "fp8_e4m3", "int8_tensor", "int4_g32_asym", "mxfp4", "nvfp4"]


def values(rows, width, dtype=torch.float32, seed=0):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return x.to(dtype)


def bits(x):
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_the_formats_value_cast_once(name, dtype):
    y, at = values(6, 80, dtype), flat_address(1, 2, 3, 6)
    kept = y.clone()
    for is_weight in (False, True):
        model = RoundTo(name, "weights" if is_weight else "activations")
        noisy, _ = model.perturb_weight(y, at) if is_weight else model.perturb(y, at)
        exact = make_format(name).round(y.float(), is_weight=is_weight)
        assert noisy.dtype == dtype
        assert torch.equal(bits(noisy), bits(exact.to(dtype)))
    assert torch.equal(y, kept)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_clean_plus_error_is_the_formats_value(name, dtype):
    """To float32's last bits: what is written is not made by adding."""
    y, at = values(6, 80, dtype), flat_address(1, 2, 3, 6)
    wide = y.to(torch.promote_types(dtype, torch.float32))
    error = RoundTo(name).error(wide, at)
    assert error.dtype == wide.dtype
    exact = make_format(name).round(y.float(), is_weight=False).to(wide.dtype)
    torch.testing.assert_close(wide + error, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_tally_says_what_arrived(dtype, monkeypatch):
    y, at = values(6, 80, dtype), flat_address(1, 2, 3, 6)
    y[0, 3] = 0
    noisy, told = RoundTo("mxfp4").perturb(y, at)
    exact = make_format("mxfp4").round(y.float(), is_weight=False).double()
    change, asked = noisy.double() - y.double(), exact - y.double()
    expected = {
        "elements": 480,
        "asked": (asked != 0).sum(),
        "changed": (change != 0).sum(),
        "error_square": change.square().sum(),
        "clean_square": y.double().square().sum(),
        "asked_square": asked.square().sum(),
    }
    assert told.dtype == torch.float64
    assert told.tolist() == pytest.approx([float(expected[f]) for f in TALLY_FIELDS], rel=1e-6)
    monkeypatch.setattr(rounded, "_ELEMENTS_AT_ONCE", 100)
    again, told_in_parts = RoundTo("mxfp4").perturb(y, at)
    assert torch.equal(again, noisy)
    assert told_in_parts.tolist() == pytest.approx(told.tolist(), rel=1e-12)


def test_a_weight_shares_its_tensor_scale_and_tokens_do_not():
    y, at = values(4, 32), flat_address(0, 0, 0, 4)
    y[3] *= 1000
    model = RoundTo("int8_tensor", "both")
    tokens, _ = model.perturb(y, at)
    weight, _ = model.perturb_weight(y, at)
    assert (tokens[0] != 0).all()
    assert (weight[0] == 0).all()
    alone, _ = model.perturb(y[:1], flat_address(0, 0, 0, 1))
    assert torch.equal(alone, tokens[:1])


def test_what_the_tensor_holds_already_does_not_change():
    y = values(4, 64, torch.bfloat16)
    noisy, told = RoundTo("bf16").perturb(y, flat_address(0, 0, 0, 4))
    assert torch.equal(bits(noisy), bits(y))
    assert told[1] == told[2] == told[3] == told[5] == 0


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_empty_tensors(shape, rounding):
    noisy, told = RoundTo("nvfp4", "output", rounding).perturb(
        torch.zeros(shape), flat_address(0, 0, 0, shape[0])
    )
    assert noisy.shape == shape
    assert told.tolist() == [0] * 6


# Stochastic rounding.


def test_stochastic_rounding_is_a_function_of_the_address():
    y, model = values(6, 64), RoundTo("mxfp4", rounding="stochastic")
    at = flat_address(1, 2, 3, 6)
    noisy, _ = model.perturb(y, at)
    words = random_words(at, 64, stream=1)
    expected = make_format("mxfp4").round(y, is_weight=False, words=lambda: words)
    assert torch.equal(noisy, expected)
    part, _ = model.perturb(y[2:4], at.rows(2, 4))
    assert torch.equal(part, noisy[2:4])
    other, _ = model.perturb(y, flat_address(1, 3, 3, 6))
    assert (other != noisy).any()


def test_rounding_to_nearest_needs_no_address():
    y, model = values(6, 64), RoundTo("mxfp4")
    assert not model.is_random
    assert RoundTo("mxfp4", rounding="stochastic").is_random
    noisy = [model.perturb(y, flat_address(seed, seed, seed, 6))[0] for seed in (0, 5)]
    assert torch.equal(*noisy)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_square_is_that_of_the_error_that_arrives(name):
    y, at = values(12, 80), flat_address(1, 2, 3, 12)
    model = RoundTo(name)
    assert torch.equal(model.mean_square(y), model.error(y, at).square())
    assert torch.equal(model.mean_square(y.reshape(3, 4, 80)), model.mean_square(y).view(3, 4, 80))
    weights = RoundTo(name, "weights")
    change = weights.perturb_weight(y, at)[0] - y
    assert torch.equal(weights.mean_square(y), change.square())
    assert model.mean_square(torch.tensor([1.0, 2.0])).shape == (2,)


def test_the_mean_square_of_stochastic_rounding_is_that_over_many_draws():
    y, model = values(4, 64), RoundTo("int4_g32", rounding="stochastic")
    draws = [model.error(y, flat_address(0, draw, 3, 4)).square() for draw in range(600)]
    found = torch.stack(draws).mean(dim=0).sum()
    assert float(found / model.mean_square(y).sum()) == pytest.approx(1, rel=0.03)


# What is rounded.


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        ("weights", {"weights"}),
        ("activations", {"activations"}),
        ("both", {"weights", "activations"}),
        ("output", {"output"}),
    ],
)
def test_operands(operand, expected):
    assert RoundTo("nvfp4", operand).operands == expected
    assert RoundModules({"a": "nvfp4"}, operand).operands == expected


def test_other_error_models_perturb_outputs_at_random_and_everywhere_alike():
    model = RelativeGaussian(0.1)
    assert model.operands == {"output"}
    assert model.is_random
    assert model.at_module("model.layers.0") is model
    w, at = values(3, 8), flat_address(0, 0, 0, 3)
    assert torch.equal(model.perturb_weight(w, at)[0], model.perturb(w, at)[0])


def test_every_module_has_its_own_format():
    model = RoundModules((("b", "mxfp4"), ("a.b", "nvfp4")), "both", "stochastic")
    assert model.at_module("a.b") == RoundTo("nvfp4", "both", "stochastic")
    assert model.at_module("b") == RoundTo("mxfp4", "both", "stochastic")
    none = model.at_module("a")
    assert none == NoError()
    assert none.is_null
    assert not none.is_random
    assert not none.operands
    y = values(2, 8)
    noisy, told = none.perturb(y, flat_address(0, 0, 0, 2))
    assert noisy is y
    assert told[1] == told[2] == 0
    assert none.error(y, flat_address(0, 0, 0, 2)).eq(0).all()
    assert none.mean_square(y) == 0
    assert model.is_random
    assert not model.is_null
    assert RoundModules(()).is_null


def test_formats_of_modules_without_a_module_are_nothing():
    model = RoundModules({"a": "nvfp4"})
    assert not model.is_random
    with pytest.raises(InputError, match="mean square of RoundModules depends on the module"):
        model.mean_square(torch.ones(2))
    with pytest.raises(TypeError, match="use at_module"):
        model.perturb(values(1, 4), flat_address(0, 0, 0, 1))


@pytest.mark.parametrize(
    "model",
    [
        RoundTo("int4_g32_asym", "both", "stochastic"),
        RoundModules({"b": "mxfp4", "a": "nvfp4"}, "activations"),
    ],
)
def test_models_come_back_from_json(model):
    again = type(model)(**json.loads(json.dumps(asdict(model))))
    assert again == model
    assert hash(again) == hash(model)


def test_the_order_of_modules_is_no_difference():
    assert RoundModules((("b", "bf16"), ("a", "fp16"))) == RoundModules({"a": "fp16", "b": "bf16"})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoundTo("nvfp"), "^format 'nvfp': .* did you mean 'nvfp4'"),
        (
            lambda: RoundTo("nvfp4", "weight"),
            "^operand 'weight': 'weights' or 'activations' or 'both' or 'output' is needed; "
            "did you mean 'weights'",
        ),
        (lambda: RoundTo("nvfp4", "output", "up"), "^rounding 'up'"),
        (lambda: RoundModules({"a": "int4_cast"}), "^format 'int4_cast'"),
        (lambda: RoundModules({"a": "nvfp4"}, "all"), "^operand 'all'"),
        (lambda: RoundModules({"a": "nvfp4"}, rounding=None), "^rounding None"),
        (lambda: RoundModules((("a", "nvfp4"), ("a", "bf16"))), "^module 'a' has more than one"),
        (lambda: RoundModules(("a",)), "^formats entry 'a': a module's dotted name"),
        (lambda: RoundModules(((1, "bf16"),)), r"^formats entry \(1, 'bf16'\)"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
