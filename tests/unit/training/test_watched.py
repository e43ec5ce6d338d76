"""What noise on a trained model is attested by, and what of wrapped models is refused."""

import pytest
import torch
from helpers.small_models import small_model

from noisescope.errors import DoseError
from noisescope.noise import RelativeGaussian
from noisescope.training.watched import WatchedNoise, dose_figures

IDS = torch.tensor([[5, 9, 11, 3]])
NOISE = RelativeGaussian(0.1)


def test_what_is_taken_is_what_came_since_and_the_whole_is_kept():
    model = small_model("llama")
    noise = WatchedNoise(model, NOISE, "update", operators="silu")
    with torch.no_grad():
        for step in range(3):
            with noise.at(step):
                model(input_ids=IDS)
            if step < 2:
                taken = noise.take()
                assert [n["forward"] for n in taken.counts.values()] == [1, 1, 1]
    assert [n["forward"] for n in noise.witness.counts.values()] == [3, 3, 3]
    found = dose_figures("x", noise.witness, ("forward", "backward"))
    assert sorted(found) == ["x/forward_relative_l2", "x/forward_share_changed"]
    assert found["x/forward_relative_l2"] == pytest.approx(0.1, rel=0.2)


def test_a_list_of_operators_needs_one_that_ran_unless_it_was_named():
    model = small_model("llama")
    noise = WatchedNoise(model, NOISE, "update", operators=("gelu", "silu"))
    with torch.no_grad(), noise.at(0):
        model(input_ids=IDS)
    noise.attest(is_named=False)
    with pytest.raises(ValueError, match="operator 'gelu' never ran"):
        noise.attest()
    none = WatchedNoise(model, NOISE, "update", operators=("gelu",))
    with torch.no_grad(), none.at(0):
        model(input_ids=IDS)
    with pytest.raises(
        DoseError, match=r"none of the operators that ran .*silu.* is in \['gelu'\]"
    ):
        none.attest(is_named=False)


def test_a_head_that_is_passed_over_is_noticed():
    model = small_model("llama")
    noise = WatchedNoise(model, NOISE, "update", operators="linear")
    with torch.no_grad(), noise.at(0):
        model.model(input_ids=IDS)
        assert noise.is_head_silent
        model(input_ids=IDS)
        assert not noise.is_head_silent
    body = WatchedNoise(model, NOISE, "update", layers=[0, 1])
    with torch.no_grad(), body.at(0):
        model(input_ids=IDS)
    assert not body.is_head_silent
