"""What noise did to a prediction, per token: KL divergence, loss of the label, top token.

All are zero (agreement: one) for identical logits. They are computed in float64, so that
differences of 1e-6 nats are not rounding, and over slices of rows, so that a large vocabulary does
not exhaust memory.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_ELEMENTS_PER_SLICE = 1 << 23


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

    def part(self, k: int) -> "TokenMetrics":
        """Returns the metrics of one set out of several that were compared together."""
        return TokenMetrics(
            self.kl_nats[k], self.nll_change_nats[k], self.clean_nll_nats[k], self.is_top1_same[k]
        )


class CleanTokens:
    """The clean predictions of some tokens, worked out once for every comparison with them.

    Args:
        logits_NV: Clean logits, any float dtype.
        label_N: int64, the token that follows.
    """

    def __init__(self, logits_NV: Tensor, label_N: Tensor) -> None:
        self._top_N = logits_NV.argmax(dim=-1)
        self._label_N1 = label_N[:, None]
        self._log_p_NV = logits_NV.double().log_softmax(dim=-1)

    @cached_property
    def _p_NV(self) -> Tensor:
        return self._log_p_NV.exp()

    def compare(self, noisy_KNV: Tensor) -> TokenMetrics:
        """Compares K sets of noisy logits with the clean ones; the metrics are [K, N].

        Source: KL(p || q) = sum_v p_v (ln p_v - ln q_v), Kullback and Leibler 1951.
        """
        K, N, V = noisy_KNV.shape
        step = max(1, _ELEMENTS_PER_SLICE // max(1, N * V))
        slices = [self._compare(part) for part in noisy_KNV.split(step)]
        kl, nll, same = (torch.cat(columns).cpu() for columns in zip(*slices, strict=True))
        clean = -self._log_p_NV.gather(1, self._label_N1)[:, 0].cpu().expand(K, N)
        return TokenMetrics(kl, nll - clean, clean, same)

    def _compare(self, noisy_KNV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_q_KNV = noisy_KNV.double().log_softmax(dim=-1)
        nll_KN = -log_q_KNV.gather(2, self._label_N1.expand(len(noisy_KNV), -1, 1))[..., 0]
        # A token of probability zero adds nothing, though its logarithm is infinite.
        terms_KNV = log_q_KNV.neg_().add_(self._log_p_NV).mul_(self._p_NV)
        terms_KNV = terms_KNV.masked_fill_(self._log_p_NV.isneginf(), 0.0)
        same_KN = (noisy_KNV.argmax(dim=-1) == self._top_N).double()
        # Rounding may leave -1e-17 of what is never negative.
        return terms_KNV.sum(dim=-1).clamp_min(0.0), nll_KN, same_KN


def token_metrics(clean_NV: Tensor, noisy_NV: Tensor, label_N: Tensor) -> TokenMetrics:
    """Compares next-token logits token by token.

    Args:
        clean_NV: Clean logits, any float dtype.
        noisy_NV: Noisy logits of the same shape.
        label_N: int64, the token that follows.
    """
    step = max(1, _ELEMENTS_PER_SLICE // max(1, clean_NV.shape[-1]))
    parts = [
        CleanTokens(clean, label).compare(noisy[None])
        for clean, noisy, label in zip(
            clean_NV.split(step), noisy_NV.split(step), label_N.split(step), strict=True
        )
    ]
    fields = ("kl_nats", "nll_change_nats", "clean_nll_nats", "is_top1_same")
    return TokenMetrics(*(torch.cat([getattr(p, f)[0] for p in parts]) for f in fields))
