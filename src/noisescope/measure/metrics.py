"""What noise did to a prediction, per token: KL divergence, loss of the label, top token.

All are zero (agreement: one) for identical logits. They are computed in float64 over slices of
tokens, so that differences of 1e-6 nats are not rounding and a large vocabulary does not exhaust
memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_TOKENS_PER_SLICE = 64


@dataclass(frozen=True)
class TokenMetrics:
    """Metrics of N tokens; each a float64 tensor [N] on the CPU.

    Attributes:
        kl_nats: KL(clean || noisy) of the next-token distribution, at least 0; lower is better.
        nll_change_nats: Noisy minus clean negative log-likelihood of the label; lower is better.
        clean_nll_nats: Clean negative log-likelihood of the label.
        is_top1_same: 1 where the most likely token is unchanged, else 0; higher is better.

    KL and NLL are infinite where noise took all probability from a token, and NaN where a logit
    is NaN.
    """

    kl_nats: Tensor
    nll_change_nats: Tensor
    clean_nll_nats: Tensor
    is_top1_same: Tensor


def token_metrics(clean_NV: Tensor, noisy_NV: Tensor, label_N: Tensor) -> TokenMetrics:
    """Compares next-token logits token by token.

    Args:
        clean_NV: Clean logits, any float dtype.
        noisy_NV: Noisy logits of the same shape.
        label_N: int64, the token that follows.

    Source: KL(p || q) = sum_v p_v (ln p_v - ln q_v), Kullback and Leibler 1951.
    """
    slices = [
        _slice_metrics(clean, noisy, label)
        for clean, noisy, label in zip(
            clean_NV.split(_TOKENS_PER_SLICE),
            noisy_NV.split(_TOKENS_PER_SLICE),
            label_N.split(_TOKENS_PER_SLICE),
            strict=True,
        )
    ]
    return TokenMetrics(*(torch.cat(columns).cpu() for columns in zip(*slices, strict=True)))


def _slice_metrics(
    clean_NV: Tensor, noisy_NV: Tensor, label_N: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_p_NV = clean_NV.double().log_softmax(dim=-1)
    log_q_NV = noisy_NV.double().log_softmax(dim=-1)
    # A token of probability zero adds nothing, though its logarithm is infinite.
    terms_NV = torch.where(log_p_NV.isneginf(), 0.0, log_p_NV.exp() * (log_p_NV - log_q_NV))
    label_N1 = label_N[:, None]
    clean_nll_N = -log_p_NV.gather(1, label_N1)[:, 0]
    noisy_nll_N = -log_q_NV.gather(1, label_N1)[:, 0]
    same_N = (clean_NV.argmax(dim=-1) == noisy_NV.argmax(dim=-1)).double()
    # Rounding may leave -1e-17 of what is never negative.
    kl_N = terms_NV.sum(dim=-1).clamp_min(0.0)
    return kl_N, noisy_nll_N - clean_nll_N, clean_nll_N, same_N
