"""Rows of caches: chosen and joined, they go on as a cache of the texts run together does."""

import pytest
import torch
from helpers.more_models import more_model
from helpers.one_by_one import texts
from helpers.small_models import small_model
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import QuantizedCache

from noisescope.measure.caches import (
    drop_columns,
    is_joinable,
    join_rows,
    layer_rows,
    select_rows,
)
from noisescope.measure.steps import call_arguments, pad_left

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2", "mistral", "gemma3_text", "lfm2", "qwen3_next", "bloom")
ACCEPTED = ("position_ids", "logits_to_keep")
# Below, at and beyond the sliding windows of 16.
LENGTHS = [((5, 3), (9, 2)), ((20, 4), (6, 15)), ((7,), (16, 22, 1)), ((18, 17), (21, 19))]


def model_of(family):
    return more_model(family) if family in ("lfm2", "qwen3_next", "bloom") else small_model(family)


def accepted(model):
    return () if model.config.model_type == "bloom" else ACCEPTED


def run(model, ids_BT, mask_BS, cache=None):
    arguments = call_arguments(accepted(model), ids_BT, mask_BS)
    with torch.no_grad():
        output = model(**arguments, past_key_values=cache)
    return output.logits[:, -1], output.past_key_values


def widened(mask, columns):
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))


def steps(model, cache, mask, count=3):
    """Returns the logits of some more tokens."""
    found = []
    for n in range(count):
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        ids = torch.arange(len(mask))[:, None] + 5 + n
        logits, cache = run(model, ids, mask, cache)
        found.append(logits)
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_joined_caches_go_on_as_one_made_together(family, lengths):
    model = model_of(family)
    prompts = texts([*lengths[0], *lengths[1]])
    first, second = prompts[: len(lengths[0])], prompts[len(lengths[0]) :]
    ids, mask = pad_left(prompts, CPU)
    _, together = run(model, ids, mask)
    (ids_1, mask_1), (ids_2, mask_2) = pad_left(first, CPU), pad_left(second, CPU)
    (_, cache), (_, other) = run(model, ids_1, mask_1), run(model, ids_2, mask_2)
    columns = max(mask_1.shape[1], mask_2.shape[1])
    join_rows(cache, other, columns)
    both = torch.cat([widened(mask_1, columns), widened(mask_2, columns)])
    assert torch.equal(both, mask)
    assert all(layer_rows(layer) in (None, len(prompts)) for layer in cache.layers)
    assert cache.get_seq_length() == together.get_seq_length()
    expected = steps(model, together, mask)
    torch.testing.assert_close(steps(model, cache, both), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_chosen_rows_go_on_as_they_would_have(family):
    model = model_of(family)
    ids, mask = pad_left(texts((20, 4, 9)), CPU)
    _, whole = run(model, ids, mask)
    rows = [2, 0, 2]
    ids, mask = ids[rows], mask[rows]
    _, expected = run(model, ids, mask)
    select_rows(whole, rows)
    torch.testing.assert_close(
        steps(model, whole, mask), steps(model, expected, mask), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("longest", [12, 25])
def test_columns_that_no_row_uses_may_go(family, longest):
    model = model_of(family)
    prompts = texts((longest, 4, 7))
    ids, mask = pad_left(prompts, CPU)
    _, cache = run(model, ids, mask)
    select_rows(cache, [1, 2])
    drop_columns(cache, 7)
    ids, mask = pad_left(prompts[1:], CPU)
    _, expected = run(model, ids, mask)
    torch.testing.assert_close(
        steps(model, cache, mask), steps(model, expected, mask), rtol=1e-4, atol=1e-4
    )


def test_only_dynamic_caches_are_joined():
    config = small_model("llama").config
    assert is_joinable(DynamicCache(config=config))
    assert not is_joinable(StaticCache(config=config, max_cache_len=8))
    assert not is_joinable(object())
    assert not issubclass(QuantizedCache, DynamicCache)


def test_a_cache_that_holds_nothing_yet_has_no_rows():
    cache = DynamicCache(config=small_model("llama").config)
    assert [layer_rows(layer) for layer in cache.layers] == [None, None, None]
    select_rows(cache, [0, 0])
    drop_columns(cache, 3)
    join_rows(cache, DynamicCache(config=small_model("llama").config), 3)
