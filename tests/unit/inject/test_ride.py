"""A ride: several sessions on one batch, hooks and records as they should be."""

import pytest
import torch
from helpers.one_by_one import SEED, condition, plain_session
from helpers.small_models import small_model

from noisescope.errors import InputError
from noisescope.inject import Ride, RideError, Session, Span, make_selection
from noisescope.noise import AbsoluteGaussian, RelativeGaussian

NAMES = ("a", "b")
IDS = torch.arange(14).reshape(2, 7) + 5
CONDITIONS = (
    condition("L1", layers=1),
    condition("absolute", AbsoluteGaussian(0.1), layers=[0, 2]),
    condition("all", RelativeGaussian(0.05)),
)


def sessions_on(model, conditions=CONDITIONS):
    return [Session(model, c.error_model, c.selection, SEED, attest=False) for c in conditions]


def aboard(model, sessions, draws):
    """Returns a ride with clean rows and then each session's, two rows each."""
    ride = Ride(model, sessions)
    riders = [(None, 0), *zip(sessions, draws, strict=True)]
    ride.spans = [Span(s, k, 2 * n, 2 * n + 2) for n, (s, k) in enumerate(riders)]
    ride.reader.names = NAMES * len(riders)
    return ride


def hooks_of(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_every_row_gets_what_its_own_session_gives_it(family, attention):
    model = small_model(family, attn_implementation=attention)
    draws = (0, 3, 1)
    with torch.no_grad(), aboard(model, sessions_on(model), draws):
        together = model(input_ids=IDS.repeat(4, 1)).logits
    for n, (given, draw) in enumerate([(None, 0), *zip(CONDITIONS, draws, strict=True)]):
        with torch.no_grad(), plain_session(model, given, draw, NAMES):
            alone = model(input_ids=IDS).logits
        torch.testing.assert_close(together[2 * n : 2 * n + 2], alone, rtol=1e-5, atol=1e-5)


def test_the_model_is_left_as_it_was_after_an_error_too():
    model = small_model("llama")
    before = hooks_of(model)
    weights = {name: p.clone() for name, p in model.named_parameters()}

    def stop(module, args, output):
        raise KeyboardInterrupt

    ride = aboard(model, sessions_on(model), (0, 0, 0))
    with model.model.layers[1].mlp.register_forward_hook(stop), pytest.raises(KeyboardInterrupt):
        with torch.no_grad(), ride:
            model(input_ids=IDS.repeat(4, 1))
    assert hooks_of(model) == before
    assert not torch.overrides._get_current_function_mode_stack()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())
    with torch.no_grad(), ride:  # and it may be opened again
        model(input_ids=IDS.repeat(4, 1))
    assert hooks_of(model) == before


def test_rows_that_lose_their_sample_cannot_ride_with_others():
    model = small_model("mixtral")
    with pytest.raises(RideError, match="lose their sample"), torch.no_grad():
        with aboard(model, sessions_on(model, [CONDITIONS[2]]), (0,)):
            model(input_ids=IDS.repeat(2, 1))


def test_noise_on_the_way_back_cannot_ride():
    model = small_model("llama")
    selection = make_selection(phases=["forward", "backward"])
    session = Session(model, RelativeGaussian(0.1), selection)
    with pytest.raises(InputError, match="backward noise cannot be measured on answers"):
        Ride(model, [session])


def test_a_session_that_forgets_begins_its_records_anew():
    model = small_model("llama")
    sessions = sessions_on(model)
    ride = aboard(model, sessions, (0, 0, 0))
    with torch.no_grad(), ride:
        model(input_ids=IDS.repeat(4, 1))
    first = [s.witness.as_json() for s in sessions]
    for session in sessions:
        session.forget()
        assert not session.records
    with torch.no_grad(), ride:
        model(input_ids=IDS.repeat(4, 1))
    assert [s.witness.as_json() for s in sessions] == first
