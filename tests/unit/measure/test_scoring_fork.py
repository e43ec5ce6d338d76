"""Conditions that run in one pass score as each does alone, in every family."""

import pytest
from helpers.one_by_one import (
    assert_close,
    condition,
    fork_scores,
    plain_scores,
    sequences_of,
)
from helpers.small_models import FAMILIES, small_model

from noisescope.measure.taken_apart import TakenApart
from noisescope.models import find_regions
from noisescope.noise import AbsoluteGaussian, RelativeGaussian

CAUSAL = tuple(family for family in FAMILIES if family != "bert")
LAYER_NORMED = ("gpt2", "gpt_neox", "opt")
# The longest is beyond the sliding windows of 16; all are padded to it.
LENGTHS = (21, 5, 12)


def a_linear_of(model, layer):
    """Returns the last two parts of the name of a linear module, for a pattern."""
    holder, module = find_regions(model).named(str(layer)).modules[0]
    names = [n for n, m in module.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    return ".".join(f"{holder}.{names[0]}".split(".")[-2:])


def conditions_for(model, family):
    norm = "layer_norm" if family in LAYER_NORMED else "rms_norm"
    return (
        condition("L2", layers=2),
        condition("L0", layers=0),
        condition("L1", layers=1),
        condition("L0-1", RelativeGaussian(0.05), layers=[0, 1]),
        condition("L1-2", layers=[1, 2]),
        condition("ends", layers=["embed", "norm"]),
        condition("embed", layers="embed"),
        condition("norm", layers="norm"),
        condition("head", RelativeGaussian(0.5), layers="head"),
        condition("all", RelativeGaussian(0.03)),
        condition("linear", RelativeGaussian(0.1), operators="linear"),
        condition("softmax", operators="softmax"),
        condition("matmul", operators="matmul", layers=[1, 2]),
        condition(norm, operators=norm),
        condition("pattern", modules=a_linear_of(model, 1)),
        condition("absolute", AbsoluteGaussian(0.05), layers=1),
        condition("stochastic", RelativeGaussian(0.1, "stochastic"), layers=1),
        condition("nothing", RelativeGaussian(0.0), layers=1),
    )


@pytest.mark.parametrize(
    ("family", "attention"),
    [
        *((family, "sdpa") for family in CAUSAL if family != "gemma2"),  # has no fused one
        *((family, "eager") for family in ("llama", "gpt2", "gpt_neox", "gemma2", "mixtral")),
    ],
)
def test_many_conditions_in_one_pass_score_as_each_alone(family, attention):
    model = small_model(family, attn_implementation=attention)
    conditions, sequences = conditions_for(model, family), sequences_of(LENGTHS)
    apart = TakenApart(model)
    assert apart.can_share and apart.halves is not None
    found, _ = fork_scores(model, sequences, conditions, draws=2, apart=apart)
    expected = plain_scores(model, sequences, conditions, draws=2)
    assert_close(found, expected)
    kls = [rows[0].kl_nats for rows in expected]
    assert all(kl > 1e-5 for kl in kls[1:-2]) and kls[0] == kls[-1] == 0
    assert len({round(kl, 7) for kl in kls}) == len(kls) - 2
