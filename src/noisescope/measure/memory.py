"""How many rows a pass may have: from what a row takes, by the model's shape, and what is free.

An estimate, on the safe side; where memory runs out after all, the rows are halved.
"""

import math
from typing import Any

import psutil
import torch

GIB = 1 << 30
# A share of the memory beside the model is for disturbed copies of its weights.
WEIGHTS_SHARE = 4
# Of what is free: others use the machine too, and allocators waste some.
_SHARE_OF_FREE = 0.5
_MOST_ROWS = 1024
# More tokens in one pass do not make it faster, only larger.
_MOST_TOKENS = 1 << 16
_AT_HAND_BYTES = 1 << 24
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")


def free_bytes(device: torch.device) -> int:
    """Returns the free memory of a device; of the machine, for the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def default_gib(model: Any) -> float:
    """Returns the memory that measuring takes where no limit is given, by the fullest device.

    Down to a power of two: batches, and with them the last digits of figures, are then the same
    from run to run, though never quite as much is free.
    """
    devices = {parameter.device for parameter in model.parameters()} - {torch.device("meta")}
    gib = _SHARE_OF_FREE * min(map(free_bytes, devices or {torch.device("cpu")})) / GIB
    return float(2.0 ** math.floor(math.log2(max(gib, 2.0**-10))))


def rows_of_scoring(model: Any, tokens: int, gib: float, has_logits: bool = False) -> int:
    """Returns the most rows of so many tokens that go up through the layers together.

    Args:
        model: The model.
        tokens: Of the longest row.
        gib: What a pass may take.
        has_logits: Whether the pass makes the logits of every token, too.
    """
    shape = _shape(model)
    width = 8 * shape["hidden"] + 4 * shape["inner"] + 6 * shape["heads"] * shape["head_width"]
    # Attention in steps, in float32: scores, masked scores, probabilities and noisy ones, and what
    # is counted of them in float64. With 4 copies, 0.40 GiB were taken where 0.25 were allowed.
    attention = 4 * 10 * shape["heads"] * tokens
    logits = 2 * shape["vocabulary"] if has_logits else 0
    each = tokens * ((width + logits) * _item_size(model) + attention)
    return _rows(gib, each, tokens)


def rows_at_hand(model: Any, tokens: int) -> int:
    """Returns how many rows' widest activation stays small enough to be at hand on a CPU.

    Beyond some 16 MiB every operation meets fresh pages: 12 layers of width 512 take 1.76 s in one
    pass of 52 rows of 64 tokens, and 1.65 s in two passes of 26.
    """
    if model.device.type != "cpu":
        return _MOST_ROWS
    return max(1, _AT_HAND_BYTES // (tokens * _shape(model)["inner"] * _item_size(model)))


def rows_of_decoding(model: Any, tokens: int, gib: float) -> int:
    """Returns the most rows that decode together, whose texts grow to so many tokens."""
    shape = _shape(model)
    cached = 2 * shape["layers"] * shape["kv_heads"] * shape["head_width"] * _item_size(model)
    # Each step appends to the cache by copying a layer of it, and rows are dropped by copying.
    # One token's attention in steps reads the keys and values of all heads in float32.
    attention = 4 * tokens * shape["heads"] * (2 * shape["head_width"] + 10)
    each = 2 * tokens * cached + attention + 12 * shape["vocabulary"]
    return _rows(gib, each, 1)


def rows_of_profiling(model: Any, tokens: int, gib: float) -> int:
    """Returns the most rows of so many tokens that go through the layers and back together.

    Args:
        model: The model.
        tokens: Of the longest row.
        gib: What a pass may take.
    """
    shape = _shape(model)
    # What a layer keeps for the way back: outputs that are watched, and what autograd saves.
    width = 24 * shape["hidden"] + 6 * shape["inner"]
    attention = 4 * 12 * shape["heads"] * tokens  # of one layer at a time, in float32
    each = tokens * (shape["layers"] * width * _item_size(model) + attention)
    return min(_rows(gib, each, tokens), rows_at_hand(model, tokens))


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error means that memory ran out; allocators name it in many ways."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _rows(gib: float, bytes_per_row: int, tokens_per_row: int) -> int:
    by_tokens = max(1, _MOST_TOKENS // tokens_per_row)
    return max(1, min(_MOST_ROWS, by_tokens, int(gib * GIB / max(1, bytes_per_row))))


def _item_size(model: Any) -> int:
    return int(next(model.parameters()).element_size())


def _shape(model: Any) -> dict[str, int]:
    """Returns the sizes of a model from its configuration, under the names that families use."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else None
    config = config or model.config
    embedding = model.get_input_embeddings()

    def first(*names: str, default: int) -> int:
        values = (getattr(config, name, None) for name in names)
        return next((int(v) for v in values if isinstance(v, int) and v > 0), default)

    hidden = first("hidden_size", "n_embd", "d_model", default=embedding.embedding_dim)
    heads = first("num_attention_heads", "n_head", "n_heads", default=max(1, hidden // 64))
    return {
        "hidden": hidden,
        "heads": heads,
        "head_width": first("head_dim", default=max(1, hidden // heads)),
        "kv_heads": first("num_key_value_heads", default=heads),
        "inner": first("intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
        "layers": first("num_hidden_layers", "n_layer", "n_layers", default=1),
        "vocabulary": int(embedding.num_embeddings),
    }
