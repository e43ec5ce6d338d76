"""Names for a model's weights and its configuration, so that results can be known to share them.

The first covers the tensors as loaded, not the files: the same weights from other shards, or under
another directory, keep their fingerprint; the same weights in another dtype do not. The second
covers what is computed with them: rotary angles, epsilons, end tokens, the attention in use.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

_CHUNK_ELEMENTS = 1 << 24
# What says where a configuration came from, and what the library keeps in it for itself. The dtype
# is a setting of its own, and the attention in use is added by name.
_NOT_COMPUTED_WITH = (
    "_attn",
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
)


def fingerprint(model: nn.Module) -> str:
    """Returns ``"sha256:<hex>"`` over the sorted names, dtypes, shapes and bytes of the weights.

    Tensors go through in pieces, from whatever device they lie on; no copy of the model is made.

    Args:
        model: Any module whose ``state_dict`` is in memory.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        for piece in _pieces(value):
            digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def configuration_fingerprint(model: Any, end_tokens: Iterable[int]) -> str:
    """Returns ``"sha256:<hex>"`` over what a model computes with beside its weights.

    Args:
        model: A Hugging Face model.
        end_tokens: The tokens that end an answer.
    """
    text_config = model.config.get_text_config()
    attentions = [getattr(c, "_attn_implementation", None) for c in (model.config, text_config)]
    told = {
        "class": type(model).__qualname__,
        "configuration": _plain(model.config.to_dict()),
        "end tokens": sorted(end_tokens),
        "attention": _plain(attentions),
    }
    return f"sha256:{hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()}"


def _plain(value: Any) -> Any:
    """Returns a value of a configuration as JSON takes it, without what nothing depends on."""
    if isinstance(value, Mapping):
        named = ((str(name), inner) for name, inner in value.items())
        return {n: _plain(inner) for n, inner in named if not n.startswith(_NOT_COMPUTED_WITH)}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    # The text of an object may hold its address, which is another one in each process.
    return str(value) if isinstance(value, torch.dtype) else type(value).__qualname__


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().contiguous().flatten()
    for piece in torch.split(flat, _CHUNK_ELEMENTS):
        # As bytes, because NumPy has no bfloat16.
        yield piece.cpu().view(torch.uint8).numpy().data
