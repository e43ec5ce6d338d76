"""What is sent back through a model: random gradients of logits whose covariance is Fisher's.

With p the probabilities of a token, any v of mean 0 and covariance diag(p) - p p^T will do. The
textbook draws a label from the model (v = onehot - p). Where the model is nearly sure, hardly any
draw says something else than its first choice, and the few that do make up the whole sum: on the
demo model's answers 16 draws gave a 300th of the KL, and saw no spread by which to tell. So signs
are drawn instead, one for each word of the vocabulary: the same mean from every draw, and on text
half the spread.
"""

from typing import Literal

import torch
from torch import Tensor

from noisescope.noise import Address, random_words, site_word

Estimator = Literal["signs", "labels"]
ESTIMATORS: tuple[Estimator, ...] = ("signs", "labels")

_SITE = site_word("profile")
_WORD_BITS = 32


def draw_seeds(
    logits_NV: Tensor,
    sample_N: Tensor,
    position_N: Tensor,
    seed: int,
    draw: int,
    estimator: Estimator = "signs",
) -> Tensor:
    """Returns one random gradient of the log-likelihood per token: float32 [N, V].

    It is a function of the token's address, so batches change nothing.

    Args:
        logits_NV: Clean logits, any float dtype.
        sample_N: int64 words that name the samples.
        position_N: int64 positions.
        seed: First key word of the random numbers.
        draw: Number of the draw.
        estimator: `signs`: v_i = sqrt(p_i) e_i - p_i sum_j sqrt(p_j) e_j with e_j = +1 or -1.
            `labels`: v = onehot(label) - p with a label drawn from p.

    Source: both have E[v v^T] = diag(p) - p p^T, the Fisher matrix of a categorical distribution in
    its logits; signs in the place of a draw: Hutchinson 1990.
    """
    p_NV = logits_NV.float().softmax(dim=-1)
    at = Address(seed, draw, _SITE, sample_N, position_N, torch.zeros_like(position_N))
    if estimator == "labels":
        return seeds_of_labels(p_NV, _labels(at, p_NV))
    return seeds_of_signs(p_NV, _signs(at, p_NV.shape[1]))


def seeds_of_signs(p_NV: Tensor, signs_NV: Tensor) -> Tensor:
    """Returns the seeds of given signs; `signs_NV` may be written over."""
    rooted_NV = signs_NV.mul_(p_NV.sqrt())
    return torch.addcmul(rooted_NV, p_NV, rooted_NV.sum(dim=-1, keepdim=True), value=-1)


def seeds_of_labels(p_NV: Tensor, label_N1: Tensor) -> Tensor:
    """Returns the seeds of given labels."""
    return (-p_NV).scatter_add_(1, label_N1, torch.ones_like(label_N1, dtype=p_NV.dtype))


def _labels(at: Address, p_NV: Tensor) -> Tensor:
    """Returns one label of each token, drawn from its probabilities: int64 [N, 1]."""
    uniform_N1 = (random_words(at, 1).double() + 0.5) / 2.0**_WORD_BITS
    up_to_NV = p_NV.double().cumsum(dim=-1)
    label_N1 = torch.searchsorted(up_to_NV, uniform_N1 * up_to_NV[:, -1:])
    return label_N1.clamp_max(p_NV.shape[1] - 1)


def _signs(at: Address, count: int) -> Tensor:
    """Returns +1 or -1 for each element, float32 [N, count]: the bits of the random words."""
    words_NW = random_words(at, -(-count // _WORD_BITS))
    # Byte by byte out of a table: every bit as an integer of its own would take ten times as long.
    shift = torch.arange(0, _WORD_BITS, 8, device=words_NW.device)
    bytes_NK = (words_NW[:, :, None] >> shift & 0xFF).flatten(1)
    bit = torch.arange(8, device=words_NW.device)
    byte = torch.arange(256, device=words_NW.device)
    table = (byte[:, None] >> bit & 1).float().mul_(2).sub_(1)
    signs_NV: Tensor = table[bytes_NK].flatten(1)[:, :count]
    return signs_NV
