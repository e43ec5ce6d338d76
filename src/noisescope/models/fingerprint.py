"""A name for a model's weights, so that two results can be known to stem from the same numbers.

It covers the tensors as loaded, not the files: the same weights from other shards, or under another
directory, keep their fingerprint; the same weights in another dtype do not.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import nn

_CHUNK_ELEMENTS = 1 << 24


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


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().contiguous().flatten()
    for piece in torch.split(flat, _CHUNK_ELEMENTS):
        # As bytes, because NumPy has no bfloat16.
        yield piece.cpu().view(torch.uint8).numpy().data
