"""Disturbed copies of weights are kept while they are right and while there is room."""

import gc
import weakref

import pytest
import torch
from helpers.injection import OneOperator
from helpers.small_models import small_model
from torch import nn

from noisescope.inject import inject
from noisescope.inject import weights as kept
from noisescope.inject.weights import DisturbedWeights
from noisescope.noise import RoundTo, make_format

NEAREST = RoundTo("int4_g8", "weights")
CHANCE = RoundTo("int4_g8", "weights", "stochastic")
IDS = torch.tensor([[5, 9, 11, 3]])


@pytest.fixture(autouse=True)
def without_gradients():
    """Nothing is kept of a weight that is being trained."""
    with torch.no_grad():
        yield


def parameter(*shape, seed=0):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def rounded(weight, name="int4_g8"):
    return make_format(name).round(weight.detach(), is_weight=True)


@pytest.fixture
def made(monkeypatch):
    """Counts the copies that are made."""
    calls, disturb = [], kept.disturb_weight

    def count(weight, *rest):
        calls.append(weight.shape)
        return disturb(weight, *rest)

    monkeypatch.setattr(kept, "disturb_weight", count)
    return calls


def get(weights, weight, axis=-1, error_model=NEAREST, seed=0, draw=0, word=0):
    return weights.get(weight, axis, error_model, seed, draw, word)[0]


def test_a_copy_is_made_once_and_is_the_rounded_weight(made):
    weights, weight = DisturbedWeights(), parameter(4, 16)
    noisy, tally = weights.get(weight, -1, NEAREST, 0, 0, 0)
    assert torch.equal(noisy, rounded(weight))
    again, same = weights.get(weight, -1, NEAREST, 1, 2, 3)  # to nearest no number decides
    assert again is noisy and same is tally and len(made) == 1
    assert weights.held_bytes == 4 * 16 * 4


def test_the_limit_is_kept_and_what_is_held_stays():
    first, second, third = (parameter(4, 16, seed=n) for n in range(3))
    weights = DisturbedWeights(2 * first.numel() * 4)
    held = [get(weights, w) for w in (first, second)]
    for _ in range(3):
        late = get(weights, third)
        assert torch.equal(late, rounded(third)) and late is not get(weights, third)
        assert get(weights, first) is held[0] and get(weights, second) is held[1]
        assert weights.held_bytes == weights.limit_bytes
    small = parameter(1, 1)
    assert get(weights, small) is not get(weights, small)
    none = DisturbedWeights(0)
    assert get(none, first) is not get(none, first) and none.held_bytes == 0


def test_a_weight_that_was_changed_is_disturbed_anew():
    weights, weight = DisturbedWeights(), parameter(4, 16)
    before = get(weights, weight)
    with torch.no_grad():
        weight.mul_(-1.5)
    after = get(weights, weight)
    assert torch.equal(after, rounded(weight)) and not torch.equal(after, before)
    assert get(weights, weight) is after


def test_copies_of_a_weight_that_is_trained_do_not_pile_up():
    weights, weight = DisturbedWeights(), parameter(4, 16)
    for _ in range(5):
        with torch.no_grad():
            weight.add_(0.1)
        assert torch.equal(get(weights, weight), rounded(weight))
        assert weights.held_bytes == weight.numel() * 4


@torch.enable_grad()
def test_a_session_over_a_trained_model_rounds_the_weights_of_every_step():
    model = OneOperator(nn.Linear(16, 4))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    with inject(model, NEAREST):
        for _ in range(3):
            found = model(x)
            expected = x @ rounded(model.op.weight).T + model.op.bias
            torch.testing.assert_close(found, expected)
            optimiser.zero_grad()
            found.square().sum().backward()
            optimiser.step()


def test_formats_axes_seeds_draws_and_words_are_not_mixed_up():
    weights, weight = DisturbedWeights(), parameter(16, 16)
    assert torch.equal(get(weights, weight), rounded(weight))
    assert torch.equal(get(weights, weight, axis=-2), rounded(weight.T).T)
    other = RoundTo("int8", "weights")
    assert torch.equal(get(weights, weight, error_model=other), rounded(weight, "int8"))
    assert torch.equal(get(weights, weight), rounded(weight))
    chances = [{}, {"seed": 1}, {"draw": 1}, {"word": 1}]
    found = [get(weights, weight, error_model=CHANCE, **c) for c in chances]
    for n, one in enumerate(found):
        assert get(weights, weight, error_model=CHANCE, **chances[n]) is one
        assert not any(torch.equal(one, other) for other in found[:n])
        assert not torch.equal(one, rounded(weight))


def test_weights_of_one_memory_are_told_apart_by_their_shape_and_place():
    weights, whole = DisturbedWeights(), parameter(4, 16, 16)
    for part in (whole[0], whole[2], whole[2, :8], whole[2].T):
        assert torch.equal(get(weights, part), rounded(part))
    stacked = get(weights, whole)
    assert torch.equal(stacked, torch.stack([rounded(part) for part in whole]))
    turned = get(weights, whole.transpose(-2, -1), axis=-2)
    assert torch.equal(turned.transpose(-2, -1), stacked)
    assert get(weights, whole[2]) is get(weights, whole[2])  # parts of a parameter are kept
    with torch.no_grad():
        whole.mul_(2)
    assert torch.equal(get(weights, whole[2]), rounded(whole[2]))


def test_forgetting_frees_the_copies_and_the_weights():
    weights, weight = DisturbedWeights(), parameter(4, 16)
    noisy, owner = weakref.ref(get(weights, weight)), weakref.ref(weight)
    del weight
    gc.collect()
    assert noisy() is not None and owner() is not None  # its address must not be given away
    weights.forget()
    gc.collect()
    assert noisy() is None and owner() is None and weights.held_bytes == 0


def test_a_weight_that_is_no_parameter_is_never_kept(made):
    weights, weight = DisturbedWeights(), parameter(4, 16)
    for passing in (weight.detach(), weight * 1.0, torch.ones(4, 16)):
        for _ in range(2):
            assert torch.equal(get(weights, passing), rounded(passing))
    assert len(made) == 6 and weights.held_bytes == 0
    with torch.inference_mode():
        inside = nn.Parameter(torch.randn(4, 16), requires_grad=False)
    for _ in range(2):
        assert torch.equal(get(weights, inside), rounded(inside))
    assert len(made) == 8 and weights.held_bytes == 0


@torch.enable_grad()
def test_a_copy_made_in_inference_mode_serves_a_pass_with_gradients():
    model = small_model("llama")
    with inject(model, NEAREST, operators="linear"):
        with torch.inference_mode():
            model(input_ids=IDS)
        model(input_ids=IDS).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_sessions_may_share_what_they_keep(made):
    model = small_model("llama")
    one, other = (inject(model, NEAREST, operators="linear", layers=n) for n in (0, [0, 1]))
    one.weights = other.weights = DisturbedWeights()
    with torch.no_grad():
        for session in (one, other, one):
            with session:
                model(input_ids=IDS)
    assert len(made) == 14  # seven in each of two layers


def test_what_a_session_keeps_for_itself_is_freed_when_it_ends():
    model = small_model("llama")
    session = inject(model, NEAREST, operators="linear")
    with torch.no_grad(), session:
        model(input_ids=IDS)
        assert session.weights.held_bytes > 0
    assert session.weights.held_bytes == 0


@pytest.mark.parametrize("how", ["fused", "data"])
def test_a_weight_that_is_trained_is_rounded_anew_in_every_pass(how):
    """A fused optimizer, and writing through `.data`, leave the weight's version as it was."""
    model = small_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    with torch.enable_grad(), inject(model, NEAREST, operators="linear"):
        for _ in range(2):
            model(input_ids=IDS, labels=IDS).loss.backward()
            if how == "fused":
                optimizer.step()
            else:
                model.model.layers[0].mlp.up_proj.weight.data.mul_(0.5)
        kept = model(input_ids=IDS).logits
    with inject(model, NEAREST, operators="linear"):
        fresh = model(input_ids=IDS).logits
    assert torch.equal(kept, fresh)
