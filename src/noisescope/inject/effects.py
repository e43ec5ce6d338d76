"""What error at a site does, to second order: the sums that a backward pass leaves there.

With g the gradient of the log-probability of labels that the model itself drew, error e of mean 0
and mean square m, independent from element to element, costs 1/2 sum_i m_i E[g_i^2] in nats. The
sums are taken where the gradient passes, so nothing is kept but them.

Legend: R flat rows, D channels of a row, B samples, C classes of positions, E error models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noisescope.inject.perturb import perturb_probabilities, perturb_rows
from noisescope.inject.rows import KEYS_PER_HEAD
from noisescope.noise import Address, ErrorModel
from noisescope.profile import POSITION_CLASSES

_UNKNOWN = POSITION_CLASSES.index("unknown")
_SAFE_SIGMAS = 8


@dataclass
class SiteEffect:
    """Sums at one site over one backward pass.

    Attributes:
        by_sample_EB: float64, nats per sample.
        by_channel_ECD: float32, nats summed over samples; channels are heads where the last axis
            runs over keys.
        pull_EB: float64, what the mean of the error does to the log-probability, where it has one:
            of clamped noise, and of errors that are known. Half its square comes on top.
        rows: `token`, `sample` or `row`: how much was known of the rows.
    """

    by_sample_EB: Tensor
    by_channel_ECD: Tensor
    pull_EB: Tensor
    rows: str

    def add(self, other: "SiteEffect") -> None:
        """Adds what another call of the same site left."""
        self.by_sample_EB += other.by_sample_EB
        if self.by_channel_ECD.shape == other.by_channel_ECD.shape:
            self.by_channel_ECD += other.by_channel_ECD
        self.pull_EB += other.pull_EB

    def shrink(self, boost: float) -> None:
        """Takes back a factor by which the gradients were enlarged."""
        self.by_sample_EB /= boost**2
        self.by_channel_ECD /= boost**2
        self.pull_EB /= boost

    def cpu(self) -> "SiteEffect":
        """Returns the same sums in the CPU's memory."""
        moved = (self.by_sample_EB.cpu(), self.by_channel_ECD.cpu(), self.pull_EB.cpu())
        return SiteEffect(*moved, self.rows)

    @property
    def nats_EB(self) -> Tensor:
        """KL, float64 [E, B]."""
        return self.by_sample_EB + 0.5 * self.pull_EB.square()


def effect_of(
    value: Tensor,
    gradient: Tensor,
    error_models: Sequence[ErrorModel],
    at: Address,
    kind: str,
    samples: int,
    *,
    is_keys: bool = False,
    softmax_dim: int | None = None,
) -> SiteEffect:
    """Returns what error on a value does, by its gradient.

    Args:
        value: Output of the site, any shape and float dtype.
        gradient: Of the same shape.
        error_models: What would be added.
        at: Rows of the value: the sample is its row in the batch, the position its class.
        kind: How much of the rows is known.
        samples: B.
        is_keys: Whether the last axis runs over keys; a channel is then a head.
        softmax_dim: The axis of a softmax, which makes a distribution of its noisy output again.

    Source: second-order expansion of KL, whose Hessian at zero is the Fisher matrix.
    """
    y, g = value.detach().float(), gradient.detach().float()
    places = _places(at, kind, samples, y, is_keys)
    if softmax_dim is not None:
        centre = (y * g).sum(dim=softmax_dim, keepdim=True)
    square_g = g.square() if softmax_dim is None else (g - centre).square_()
    by_sample, by_channel, pulls = [], [], []
    for number, error_model in enumerate(error_models):
        pull: Tensor | None = None
        if not error_model.is_random:
            pull = _known(error_model, y, at, softmax_dim).mul_(g)
            spread = pull.square()
        elif softmax_dim is None or never_clamps(error_model):
            square = error_model.mean_square(y)
            # Not into `square`, which may be the model's own, or one number for all.
            is_last = number == len(error_models) - 1
            spread = square_g.mul_(square) if is_last else square * square_g
        else:
            spread, pull = _clamped(y, g, error_model.mean_square(y), softmax_dim)
        sums_B, sums_CD = places.gather(spread)
        # Of a known error the squares of single elements say what channels do, and no more.
        by_sample.append(0.5 * sums_B if error_model.is_random else torch.zeros_like(sums_B))
        by_channel.append(0.5 * sums_CD)
        pulls.append(torch.zeros_like(sums_B) if pull is None else places.per_sample(pull))
    return SiteEffect(torch.stack(by_sample), torch.stack(by_channel), torch.stack(pulls), kind)


def _known(error_model: ErrorModel, y: Tensor, at: Address, softmax_dim: int | None) -> Tensor:
    """Returns an error that is no random number, such as of rounding, in y's shape.

    With its sign: what it does to a sample adds up before it is squared. Of single channels only
    squares are told.
    """
    if softmax_dim is None:
        noisy, _ = perturb_rows(error_model, y, at)
    else:
        noisy, _ = perturb_probabilities(error_model, y, at, softmax_dim)
    return noisy - y


def never_clamps(error_model: ErrorModel) -> bool:
    """Tells whether probabilities with this error stay above 0, but once in 10^15.

    So does error that is a small share of each value, whatever the value.
    """
    one, two = error_model.mean_square(torch.tensor([1.0, 2.0])).expand(2).tolist()
    return math.isclose(two, 4 * one, rel_tol=1e-6) and one * _SAFE_SIGMAS**2 < 1


def _clamped(p: Tensor, g: Tensor, square: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Returns spread and pull, per element, of error that is clamped with probabilities at 0.

    What is left is divided by its sum. With e the Gaussian error clamped so that p + e >= 0, its
    mean mu and variance v, and M the sum of mu over the row, the noisy row (p + e) / (1 + sum e)
    varies about its mean pbar = (p + mu) / (1 + M) by (e_i - mu_i) / (1 + M) times g_i - sum_j
    pbar_j g_j in the direction of g. Without clamping that is e_i times g_i - sum_j p_j g_j.

    Source: moments of a Gaussian cut off below, Johnson, Kotz and Balakrishnan 1994, section 13.10.
    """
    sigma = square.sqrt().expand_as(p)
    has_error = (p > 0) & (sigma > 0)  # what is masked stays 0
    a = torch.where(has_error, p / sigma.clamp_min(1e-30), 0.0).clamp_max(40.0)
    density = torch.exp(-0.5 * a.square()) / math.sqrt(2 * math.pi)
    below = 0.5 * torch.erfc(a / math.sqrt(2))
    mean = torch.where(has_error, sigma * density - p * below, 0.0)
    second = sigma.square() * (1 - below - a * density) + p.square() * below
    variance = torch.where(has_error, second - mean.square(), 0.0).clamp_min(0.0)
    whole = 1 + mean.sum(dim=dim, keepdim=True)
    centre = ((p + mean) * g).sum(dim=dim, keepdim=True) / whole
    spread = variance * ((g - centre) / whole).square()
    pull = g * (mean - p * (whole - 1)) / whole
    return spread, pull


@dataclass(frozen=True)
class _Places:
    """Where the rows of one tensor are added up."""

    sample_R: Tensor
    slot_R: Tensor  # class, and head where rows have one
    samples: int
    heads: int
    is_keys: bool

    def per_sample(self, x: Tensor) -> Tensor:
        """Returns the sums per sample, float64 [B]."""
        x_R = x.reshape(len(self.sample_R), -1).sum(dim=1).double()
        return x_R.new_zeros(self.samples).index_add_(0, self.sample_R, x_R)

    def gather(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the sums per sample [B], and per class and channel [C, D]."""
        x_RD = x.reshape(len(self.sample_R), -1)
        x_R1 = x_RD.sum(dim=1, keepdim=True)
        totals = x_R1.new_zeros(self.samples, dtype=torch.float64)
        by_sample = totals.index_add_(0, self.sample_R, x_R1[:, 0].double())
        part = x_R1 if self.is_keys else x_RD
        slots = part.new_zeros(len(POSITION_CLASSES) * self.heads, part.shape[1])
        slots.index_add_(0, self.slot_R, part)
        return by_sample, slots.reshape(len(POSITION_CLASSES), -1)


def _places(at: Address, kind: str, samples: int, value: Tensor, is_keys: bool) -> _Places:
    R = len(at)
    if kind == "token":
        sample_R, class_R, first_R = at.sample_R, at.position_R, at.channel_R
        width = KEYS_PER_HEAD if is_keys else max(1, value.shape[-1])
        head_R = torch.div(first_R.clamp_min(0), width, rounding_mode="floor")
        heads = int(head_R.max()) + 1 if R else 1
        return _Places(sample_R, class_R * heads + head_R, samples, heads, is_keys)
    sample_R = sample_of_rows(at, kind, samples)
    return _Places(sample_R, torch.full_like(sample_R, _UNKNOWN), samples, 1, is_keys)


def sample_of_rows(at: Address, kind: str, samples: int) -> Tensor:
    """Returns the sample that each row belongs to, int64 [R].

    Args:
        at: The rows.
        kind: How much of them is known. Where their token is lost they are in the order of the
            batch, or mixed.
        samples: How many there are.
    """
    if kind == "token":
        return at.sample_R
    order_R = torch.arange(len(at), device=at.sample_R.device)
    return order_R * samples // max(1, len(at))
