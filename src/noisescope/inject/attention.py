"""Fused attention taken apart into its three sites: scores (matmul), softmax, context (matmul).

The steps run in float32 as they do inside the fused kernels, and the result is rounded once, so at
scale 0 it equals the fused result to rounding. Legend: B batch, H heads, T queries, S keys, D head
width.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SITE_OPERATORS = ("matmul", "softmax", "matmul")


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    run: Callable[..., Tensor],
) -> Tensor:
    """Computes scaled dot-product attention step by step.

    Args:
        query: [..., H, T, D]
        key: [..., H or fewer, S, D]
        value: [..., H or fewer, S, Dv]
        attn_mask: Broadcastable to [..., H, T, S]; bool keeps where true, float is added.
        dropout_p: Share of probabilities dropped, applied whether or not the model trains, as the
            fused function does.
        is_causal: Masks keys later than the query, aligned at the top left.
        scale: Factor on the scores; 1 / sqrt(D) by default.
        enable_gqa: Repeats key and value heads to match the query's.
        run: Called as ``run(step, function, *arguments)`` for steps 0 to 2; computes a site.

    Returns:
        [..., H, T, Dv] in the query's dtype.

    Source: the definition in the documentation of
    `torch.nn.functional.scaled_dot_product_attention`.
    """
    query, key, value = (_autocast(t) for t in (query, key, value))
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
    # The fused kernels sum in float32 under autocast too.
    with torch.autocast(query.device.type, enabled=False):
        return _attend(query, key, value, attn_mask, dropout_p, is_causal, scale, run)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    run: Callable[..., Tensor],
) -> Tensor:
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = run(0, torch.matmul, query.to(wide), key.to(wide).transpose(-2, -1)) * factor
    scores, is_empty = _mask(scores, attn_mask, is_causal)
    probabilities = run(1, F.softmax, scores, -1)
    if dropout_p > 0:
        probabilities = F.dropout(probabilities, dropout_p, training=True)

    def context(probabilities: Tensor, value: Tensor) -> Tensor:
        # Rounded inside the site, so that the dose counts what this rounding erases.
        return torch.matmul(probabilities, value.to(wide)).to(query.dtype)

    result = run(2, context, probabilities, value)
    return result if is_empty is None else result.masked_fill(is_empty, 0.0)


def _autocast(tensor: Tensor) -> Tensor:
    """Casts a tensor as autocast casts the inputs of fused attention."""
    device = tensor.device.type
    if not torch.is_autocast_enabled(device) or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _mask(
    scores: Tensor, attn_mask: Tensor | None, is_causal: bool
) -> tuple[Tensor, Tensor | None]:
    """Returns masked scores, and which queries may see no key: they stay unmasked, to be finite.

    What is empty is read off the mask, which is smaller than the scores by the number of heads.
    """
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(later, -math.inf), None
    if attn_mask is None:
        return scores, None
    if attn_mask.dtype == torch.bool:
        is_empty = ~attn_mask.any(dim=-1, keepdim=True)
        return scores.masked_fill(~(attn_mask | is_empty), -math.inf), is_empty
    is_empty = torch.isneginf(attn_mask).all(dim=-1, keepdim=True)
    return scores + attn_mask.to(scores.dtype).masked_fill(is_empty, 0.0), is_empty
