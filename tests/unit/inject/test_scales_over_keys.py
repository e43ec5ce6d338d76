"""Formats whose elements share a scale do not fall on outputs over keys: company would tell."""

import pytest
import torch
from helpers.small_models import small_model

from noisescope import BitFlips, RoundTo, SelectionError, inject

IDS = torch.arange(12).reshape(1, 12) + 3


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int8", "fp8_e4m3", "int4_g8"])
def test_a_shared_scale_is_kept_from_scores_and_softmax(name):
    model = small_model("llama")
    with torch.no_grad(), inject(model, RoundTo(name, "output")) as session:
        model(input_ids=IDS)
    fired = {row.operator for row in session.coverage() if row.perturbed}
    assert "linear" in fired and not fired & {"matmul", "bmm", "softmax"}


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3_cast"])
def test_a_cast_falls_on_them_and_a_token_does_not_know_what_follows(name):
    model = small_model("llama")
    later = IDS.clone()
    later[0, 9:] += 20
    found = []
    for ids in (IDS, later):
        with torch.no_grad(), inject(model, RoundTo(name, "output")) as session:
            found.append(model(input_ids=ids).logits[:, :9])
    assert {"matmul", "softmax"} <= {r.operator for r in session.coverage() if r.perturbed}
    assert torch.allclose(*found, atol=1e-5)


def test_named_it_is_an_error():
    model = small_model("llama")
    with (
        torch.no_grad(),
        pytest.raises(SelectionError, match="softmax"),
        inject(model, RoundTo("mxfp4", "output"), operators="softmax"),
    ):
        model(input_ids=IDS)


def test_a_softmax_that_nothing_fell_on_is_left_to_the_last_bit():
    model = small_model("llama")
    with torch.no_grad():
        clean = model(input_ids=IDS).logits
        with inject(model, BitFlips(1e-12), operators="softmax", layers=0) as session:
            noisy = model(input_ids=IDS).logits
    assert torch.equal(clean, noisy) or torch.allclose(clean, noisy, atol=1e-6)
    assert session.dose().share_changed == 0
