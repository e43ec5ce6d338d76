"""What noise did to a prediction, per token: KL divergence, loss of the label, top token.

All are zero (agreement: one) for identical logits. They are computed in float64, so that
differences of 1e-6 nats are not rounding, and over slices of rows, so that a large vocabulary does
not exhaust memory.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Float64 slices of 8 MiB stay in the cache and in memory that is at hand: of 64 MiB, each operation
# meets fresh pages, and a logit takes 12.6 ns in place of 4.2.
_ELEMENTS_ON_CPU = 1 << 20
_ELEMENTS_ELSEWHERE = 1 << 24


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
        tokens = _tokens_per_slice(logits_NV)
        self._top_N = logits_NV.argmax(dim=-1)
        self._label_N1 = label_N[:, None]
        self._log_p = [part.double().log_softmax(dim=-1) for part in logits_NV.split(tokens)]

    @cached_property
    def _p(self) -> list[Tensor]:
        return [log_p_NV.exp() for log_p_NV in self._log_p]

    def compare(self, noisy_KNV: Tensor) -> TokenMetrics:
        """Compares K sets of noisy logits with the clean ones; the metrics are [K, N].

        Source: KL(p || q) = sum_v p_v (ln p_v - ln q_v), Kullback and Leibler 1951.
        """
        columns, begin = [], 0
        for log_p_NV, p_NV in zip(self._log_p, self._p, strict=True):
            tokens = slice(begin, begin + len(log_p_NV))
            step = max(1, _elements_per_slice(noisy_KNV) // max(1, log_p_NV.numel()))
            slices = [
                self._compare(part, tokens, log_p_NV, p_NV)
                for part in noisy_KNV[:, tokens].split(step)
            ]
            columns.append([torch.cat(column) for column in zip(*slices, strict=True)])
            begin = tokens.stop
        kl, nll, clean, same = (torch.cat(c, dim=1).cpu() for c in zip(*columns, strict=True))
        return TokenMetrics(kl, nll - clean, clean, same)

    def _compare(
        self, noisy_KNV: Tensor, tokens: slice, log_p_NV: Tensor, p_NV: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        label_N1, K = self._label_N1[tokens], len(noisy_KNV)
        log_q_KNV = noisy_KNV.double().log_softmax(dim=-1)
        nll_KN = -log_q_KNV.gather(2, label_N1.expand(K, -1, 1))[..., 0]
        clean_KN = -log_p_NV.gather(1, label_N1)[:, 0].expand(K, -1)
        # A token of probability zero adds nothing, though its logarithm is infinite.
        terms_KNV = log_q_KNV.neg_().add_(log_p_NV).mul_(p_NV)
        terms_KNV = terms_KNV.masked_fill_(log_p_NV.isneginf(), 0.0)
        same_KN = (noisy_KNV.argmax(dim=-1) == self._top_N[tokens]).double()
        # Rounding may leave -1e-17 of what is never negative.
        return terms_KNV.sum(dim=-1).clamp_min(0.0), nll_KN, clean_KN, same_KN


def _elements_per_slice(logits: Tensor) -> int:
    return _ELEMENTS_ON_CPU if logits.device.type == "cpu" else _ELEMENTS_ELSEWHERE


def _tokens_per_slice(logits_NV: Tensor) -> int:
    return max(1, _elements_per_slice(logits_NV) // max(1, logits_NV.shape[-1]))


def token_metrics(clean_NV: Tensor, noisy_NV: Tensor, label_N: Tensor) -> TokenMetrics:
    """Compares next-token logits token by token.

    Args:
        clean_NV: Clean logits, any float dtype.
        noisy_NV: Noisy logits of the same shape.
        label_N: int64, the token that follows.
    """
    return CleanTokens(clean_NV, label_N).compare(noisy_NV[None]).part(0)
