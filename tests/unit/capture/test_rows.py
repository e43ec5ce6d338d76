"""Padding is left out and tokens are named, however the model is called."""

import numpy as np
import pytest
import torch
from helpers.small_models import FAMILIES, small_model
from torch import nn
from transformers import DynamicCache, StaticCache

from noisescope.capture import ActivationCapture

IDS = torch.tensor([[0, 0, 0, 5, 9, 3], [7, 8, 2, 4, 0, 0], [11, 12, 13, 14, 15, 16]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
PRESENT = MASK.bool()


def kept_of(model, patterns, *args, **kwargs):
    capture = ActivationCapture(model, patterns, keep=True)
    with capture, torch.no_grad():
        model(*args, **kwargs)
    return capture


def stored(model, name, **kwargs):
    """Returns a module's output by a hook of the test's own."""
    outputs = []
    hook = lambda module, args, output: outputs.append(output)  # noqa: E731
    handle = model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        model(**kwargs)
    handle.remove()
    return outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_is_left_out(family):
    model = small_model(family)
    capture = kept_of(model, None, input_ids=IDS, attention_mask=MASK)
    for name in capture.modules:
        (output,) = stored(model, name, input_ids=IDS, attention_mask=MASK)
        assert capture.statistics[name].tokens == 13
        assert torch.equal(capture.activations[name], output.view(3, 6, -1)[PRESENT]), name


CALLS = {
    "positional": lambda model: ((IDS, MASK), {}),
    "keywords": lambda model: ((), {"input_ids": IDS, "attention_mask": MASK}),
    "boolean": lambda model: ((IDS,), {"attention_mask": PRESENT}),
    "embeddings": lambda model: (
        (),
        {"inputs_embeds": model.get_input_embeddings()(IDS).detach(), "attention_mask": MASK},
    ),
    "queries and keys": lambda model: (
        (IDS,),
        {"attention_mask": PRESENT[:, None, None] & torch.ones(6, 6, dtype=torch.bool).tril()},
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("part", ["", "model"])
def test_the_mask_is_found_however_it_is_given_and_whoever_is_called(call, part):
    model = small_model("llama")
    capture = ActivationCapture(model, "mlp.down_proj")
    args, kwargs = CALLS[call](model)
    with capture, torch.no_grad():
        model.get_submodule(part)(*args, **kwargs)
    assert {s.tokens for s in capture.statistics.values()} == {13}


def test_without_a_mask_everything_counts():
    capture = kept_of(small_model("llama"), "mlp.down_proj", IDS)
    assert {s.tokens for s in capture.statistics.values()} == {18}


def test_a_layer_called_by_itself_is_captured():
    model = small_model("llama")
    with ActivationCapture(model, "layers.1.mlp.down_proj") as capture, torch.no_grad():
        model.model.layers[1].mlp.down_proj(torch.randn(2, 5, 48))
        model.model.layers[1].mlp(torch.randn(3, 32))
    assert capture.statistics["model.layers.1.mlp.down_proj"].tokens == 13


LEFT = torch.tensor([[0, 0, 5, 9, 3], [7, 8, 2, 4, 6]])
LEFT_MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_cached_steps_see_what_one_whole_call_sees(cache_class):
    model = small_model("llama")
    whole = kept_of(model, "mlp.down_proj", LEFT, attention_mask=LEFT_MASK)
    more = {"max_cache_len": 8} if cache_class is StaticCache else {}
    cache = cache_class(config=model.config, **more)
    steps = ActivationCapture(model, "mlp.down_proj")
    with steps, torch.no_grad():
        for begin, end in ((0, 3), (3, 4), (4, 5)):
            model(LEFT[:, begin:end], attention_mask=LEFT_MASK[:, :end], past_key_values=cache)
    for name, found in steps.statistics.items():
        expected = whole.statistics[name]
        assert found.tokens == expected.tokens == 8
        np.testing.assert_allclose(found.mean_abs, expected.mean_abs, rtol=1e-5)
        # The same tokens stand at the same positions of the same rows; only the call differs.
        np.testing.assert_array_equal(
            found.peaks.label_PC4[..., 1:], expected.peaks.label_PC4[..., 1:]
        )


def test_a_mask_of_keys_for_a_cache_of_fixed_size_is_read_where_the_tokens_are():
    model = small_model("llama")
    cache = StaticCache(config=model.config, max_cache_len=8)
    causal = torch.ones(8, 8, dtype=torch.bool).tril()
    keys = torch.nn.functional.pad(LEFT_MASK.bool(), (0, 3))[:, None, None] & causal
    with ActivationCapture(model, "lm_head") as capture, torch.no_grad():
        for begin, end in ((0, 3), (3, 5)):
            model(
                LEFT[:, begin:end],
                attention_mask=keys[:, :, begin:end],
                past_key_values=cache,
            )
    found = capture.statistics["lm_head"]
    assert found.tokens == 8
    assert set(found.peaks.label_PC4[..., 2].ravel()) <= {0, 1, 2, 3, 4}


def test_generation_counts_every_token_once():
    model = small_model("llama")
    with ActivationCapture(model, ["mlp.down_proj", "lm_head"]) as capture:
        out = model.generate(
            LEFT, attention_mask=LEFT_MASK, max_new_tokens=4, min_new_tokens=4, do_sample=False
        )
    assert out.shape == (2, 9)
    found = capture.statistics
    assert found["model.layers.0.mlp.down_proj"].tokens == 8 + 2 * 3
    assert found["lm_head"].tokens == 2 * 4  # generation computes the last token's alone


@pytest.mark.parametrize(("kept", "count"), [(2, 2 + 0 + 2), (torch.tensor([0, 3]), 1 + 2 + 2)])
def test_the_head_of_chosen_tokens_knows_which_they_are(kept, count):
    capture = kept_of(
        small_model("llama"), "lm_head", IDS, attention_mask=MASK, logits_to_keep=kept
    )
    assert capture.statistics["lm_head"].tokens == count


def test_heads_are_rows_of_their_tokens():
    model = small_model("qwen3")
    name = "model.layers.0.self_attn.q_norm"
    capture = kept_of(model, name, input_ids=IDS, attention_mask=MASK)
    (output,) = stored(model, name, input_ids=IDS, attention_mask=MASK)
    assert output.shape == (3, 6, 4, 8)
    assert torch.equal(capture.activations[name], output[PRESENT].reshape(-1, 8))


def test_flat_rows_of_a_mixture_are_traced_and_its_block_too():
    model = small_model("mixtral")
    capture = kept_of(model, ["0.mlp", "0.mlp.experts"], IDS, attention_mask=MASK)
    assert {s.tokens for s in capture.statistics.values()} == {13}
    assert all(s.is_padding_excluded for s in capture.statistics.values())


def test_rows_that_cannot_be_traced_are_counted_and_said_to_be():
    model = small_model("llama")
    rotary = "model.rotary_emb"  # one row of positions for the whole batch
    found = kept_of(model, rotary, IDS, attention_mask=MASK).statistics[rotary]
    assert (found.tokens, found.is_padding_excluded) == (6, False)
    assert kept_of(model, rotary, IDS).statistics[rotary].is_padding_excluded


def test_rows_inside_experts_lose_their_token_even_where_the_shape_fits():
    block = nn.Module()
    block.experts = nn.ModuleList([nn.Linear(4, 4)])
    block.forward = lambda attention_mask, states: block.experts[0](states.flip(0))
    capture = ActivationCapture(block, "experts.0")
    with capture:
        block(attention_mask=torch.tensor([[0, 1], [1, 1]]), states=torch.randn(2, 2, 4))
    found = capture.statistics["experts.0"]
    assert (found.tokens, found.is_padding_excluded) == (4, False)
    assert set(found.peaks.label_PC4[..., 1:].ravel()) == {-1}
