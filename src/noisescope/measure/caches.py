"""Rows of a key-value cache: chosen, joined with another cache's, and freed of empty columns.

Works on the layers of transformers' dynamic caches. Columns are aligned at the newest token, so two
caches of different lengths are joined by empty columns on the left, which the mask hides. Those
whose layers keep every token can be turned into static ones, of fixed size, and back.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import (
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
    StaticCache,
    StaticLayer,
)

_JOINABLE = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)


def is_joinable(cache: Any) -> bool:
    """Tells whether every layer of a cache is of a kind whose rows can be chosen and joined."""
    return isinstance(cache, DynamicCache) and all(type(x) in _JOINABLE for x in cache.layers)


def select_rows(cache: Any, rows: Sequence[int]) -> None:
    """Keeps these rows, in this order; a row may be named more than once."""
    if not is_joinable(cache):
        cache.batch_select_indices(torch.tensor(rows))
        return
    for layer in cache.layers:
        select_layer_rows(layer, rows)


def select_layer_rows(layer: Any, rows: Sequence[int]) -> None:
    """The same for one layer."""
    if isinstance(layer, LinearAttentionLayer) and layer.device is None:
        return
    if isinstance(layer, DynamicLayer) and not layer.get_seq_length():
        return
    layer.reorder_cache(torch.tensor(rows))


def layer_rows(layer: Any) -> int | None:
    """Returns how many rows a layer holds; None where it holds nothing yet."""
    held = _states(layer)
    return len(held[0]) if held else None


def join_rows(cache: Any, other: Any, columns: int) -> None:
    """Appends the rows of another cache.

    Args:
        cache: Changed in place.
        other: A cache of the same model.
        columns: Length of the longer of the two.
    """
    for layer, more in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, LinearAttentionLayer):
            for states in ("conv_states", "recurrent_states"):
                mine, theirs = getattr(layer, states), getattr(more, states)
                for n, held in mine.items():
                    mine[n] = None if held is None else torch.cat([held, theirs[n]])
        if isinstance(layer, DynamicLayer) and layer.get_seq_length():
            width = _width(layer, columns)
            for name in ("keys", "values"):
                both = (getattr(layer, name), getattr(more, name))
                padded = [F.pad(t, (0, 0, width - t.shape[-2], 0)) for t in both]
                setattr(layer, name, torch.cat(padded))
            _set_length(layer, columns)


def drop_columns(cache: Any, columns: int) -> None:
    """Keeps the newest columns; the others are empty in every row."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.get_seq_length():
            width = _width(layer, columns)
            layer.keys, layer.values = (t[..., -width:, :] for t in (layer.keys, layer.values))
            _set_length(layer, columns)


def can_be_static(cache: Any, config: Any) -> bool:
    """Tells whether every layer keeps every token, as a static cache's would."""
    if not isinstance(cache, DynamicCache) or {type(x) for x in cache.layers} != {DynamicLayer}:
        return False
    if not all(layer.get_seq_length() for layer in cache.layers):
        return False
    layers = StaticCache(config=config, max_cache_len=1).layers
    return {type(x) for x in layers} == {StaticLayer} and len(layers) == len(cache.layers)


def to_static(cache: Any, config: Any, capacity: int) -> Any:
    """Returns a static cache of so many columns; the dynamic one is used up layer by layer.

    Args:
        cache: One of which `can_be_static` is true.
        config: The model's configuration.
        capacity: Columns, at least as many as are filled.
    """
    static = StaticCache(config=config, max_cache_len=capacity)
    for number, layer in enumerate(cache.layers):
        static.update(layer.keys, layer.values, number)
        layer.keys = layer.values = None
    return static


def to_dynamic(cache: Any, columns: int) -> Any:
    """Returns a dynamic cache of the first columns; the static one is used up layer by layer."""
    dynamic = DynamicCache()
    for number, layer in enumerate(cache.layers):
        keys, values = (t[:, :, :columns] for t in (layer.keys, layer.values))
        dynamic.update(keys, values, number)
        layer.keys = layer.values = None
    return dynamic


def _states(layer: Any) -> list[Tensor]:
    held = [getattr(layer, name, None) for name in ("keys", "values")]
    for states in ("conv_states", "recurrent_states"):
        held += list(getattr(layer, states, {}).values())
    return [tensor for tensor in held if isinstance(tensor, Tensor) and tensor.numel()]


def _width(layer: DynamicLayer, columns: int) -> int:
    """Returns how many columns a layer keeps of a text of so many."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        return min(columns, int(layer.sliding_window) - 1)
    return columns


def _set_length(layer: DynamicLayer, columns: int) -> None:
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns
