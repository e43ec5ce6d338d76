"""Which modules a capture watches: by pattern, and the output projections of every family."""

import pytest
from helpers.more_models import MORE, more_model, toy_model
from helpers.small_models import FAMILIES, small_backbone, small_model
from torch import nn

from noisescope.capture import ActivationCapture, output_projections
from noisescope.errors import SelectionError

LLAMA = ("self_attn.o_proj", "mlp.down_proj")
WRITERS = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text"), LLAMA),
    "phi3": LLAMA,
    "qwen3_next": LLAMA,
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", "fc2"),
    "bert": ("attention.output.dense", "output.dense"),
    "mixtral": ("self_attn.o_proj", "mlp"),
    "qwen3_moe": ("self_attn.o_proj", "mlp"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "lfm2": ("self_attn.out_proj", "feed_forward.w2"),
}
LAYERS = {"gpt2": "transformer.h", "bloom": "transformer.h", "gpt_neox": "gpt_neox.layers"}
LAYERS |= {"opt": "model.decoder.layers", "bert": "bert.encoder.layer"}


def model_of(family):
    return more_model(family) if family in MORE else small_model(family)


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
def test_none_means_what_attention_and_mlp_of_every_layer_add(family):
    layers, names = LAYERS.get(family, "model.layers"), WRITERS[family]
    expected = [f"{layers}.{n}.{name}" for n in range(3) for name in names]
    mixers = {"lfm2": ("conv.out_proj", (0, 2)), "qwen3_next": ("linear_attn.out_proj", (0, 2))}
    if family in mixers:  # layers without attention have another mixer in its place
        mixer, where = mixers[family]
        for layer in where:
            expected[2 * layer] = f"{layers}.{layer}.{mixer}"
    assert ActivationCapture(model_of(family), None).modules == tuple(expected)


def test_none_needs_no_known_family_nor_a_customary_name():
    assert list(output_projections(toy_model())) == [f"layers.{n}.linear" for n in range(3)]
    backbone = list(output_projections(small_backbone("gpt2")))
    assert backbone[:2] == ["h.0.attn.c_proj", "h.0.mlp.c_proj"]


def test_the_map_an_adapter_adapts_is_captured_and_not_the_adapter():
    model = small_model("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj.lora_B = nn.Linear(4, 32)
    assert not any("lora" in name for name in output_projections(model))


def test_a_customary_name_counts_more_than_the_order_of_declaration():
    model = small_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj = layer.self_attn._modules.pop("q_proj")
    assert list(model.model.layers[0].self_attn._modules)[-1] == "q_proj"
    assert list(output_projections(model)) == list(output_projections(small_model("llama")))


def test_a_model_without_layers_is_told_what_to_do():
    with pytest.raises(SelectionError, match=r"no output projections .* 0 known .* layer_patterns"):
        ActivationCapture(nn.Linear(2, 2), None)


def test_default_patterns_are_those_of_llama():
    assert ActivationCapture(small_model("qwen2")).modules[:2] == (
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.down_proj",
    )
    message = r"no module matches 'self_attn.o_proj' in this model.*layer_patterns=None"
    with pytest.raises(SelectionError, match=message):
        ActivationCapture(small_model("gpt2"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("lm_head", ["lm_head"]),
        ("model.layers.1", ["model.layers.1"]),
        ("model.layers", [f"model.layers.{n}" for n in range(3)]),
        ("model.layers.*", [f"model.layers.{n}" for n in range(3)]),
        ("*.[02].mlp", ["model.layers.0.mlp", "model.layers.2.mlp"]),
        ("*attn*", [f"model.layers.{n}.self_attn" for n in range(3)]),
        (["model.layers.0", "0.mlp"], ["model.layers.0", "model.layers.0.mlp"]),
    ],
)
def test_patterns_are_names_endings_and_globs_and_take_the_outermost(pattern, expected):
    assert list(ActivationCapture(small_model("llama"), pattern).modules) == expected


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["mlp.dwn_proj"], r"no module matches 'mlp.dwn_proj'.*did you mean.*mlp.down_proj"),
        (["mlp.down_proj", "nothing.like.it"], "no module matches 'nothing.like.it'"),
        ([], r"layer_patterns=\[\] captures nothing"),
        ([3], "no module matches 3 in this model"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(patterns, message):
    with pytest.raises(SelectionError, match=message):
        ActivationCapture(small_model("llama"), patterns)
