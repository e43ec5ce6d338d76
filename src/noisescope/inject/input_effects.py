"""What error on the weights and activations of an operator does, to second order.

Rounding to nearest is no random error: the change D of a sample's inputs is known, and it costs
1/2 (sum D g)^2, with g the gradient of the sample's log-likelihood by them. So errors of one sign
add up, which a mean square cannot tell. Stochastic rounding has independent errors of mean 0, and
costs 1/2 sum E[D^2] g^2; a weight meets every position, so g is then summed over a sample's
positions before it is squared. Nothing is kept but the sums.

Legend: R flat rows, K inputs, O outputs, B samples, E error models.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noisescope.inject.calls import Arguments
from noisescope.inject.effects import SiteEffect, effect_of, sample_of_rows
from noisescope.inject.operands import (
    Input,
    no_address,
    perturb_activation,
    replaced,
    value_of,
)
from noisescope.inject.rows import Layout
from noisescope.inject.weights import DisturbedWeights
from noisescope.noise import Address, ErrorModel
from noisescope.profile import POSITION_CLASSES

_UNKNOWN = POSITION_CLASSES.index("unknown")
# Of a weight's gradient that exists at a time.
_SLAB_BYTES = 1 << 26


def watched_inputs(
    inputs: Sequence[Input], arguments: Arguments, watch: Callable[[Tensor, Input], Tensor]
) -> Arguments:
    """Returns the arguments of a call, its activations passed through `watch`."""
    for one in inputs:
        if one.role == "activations":
            value = value_of(one.key, *arguments)
            arguments = replaced(arguments, one.key, watch(value, one))
    return arguments


def activation_effect(
    value: Tensor,
    gradient: Tensor,
    error_models: Sequence[ErrorModel],
    at: Address,
    kind: str,
    samples: int,
    layout: Layout = "channels",
) -> SiteEffect:
    """Returns what error on an activation does; channels are not told apart.

    Args:
        value: [.., K], the axis that the product sums over last.
        gradient: Of the same shape.
        error_models: What would be done to it.
        at: Rows of the value.
        kind: How much of the rows is known.
        samples: B.
        layout: What the last axis holds.
    """
    value, gradient = value.detach(), gradient.detach()
    sample_R = sample_of_rows(at, kind, samples)
    found = []
    for error_model in error_models:
        if error_model.is_random:
            is_keys = layout == "keys"
            one = effect_of(value, gradient, [error_model], at, kind, samples, is_keys=is_keys)
            one.by_channel_ECD = one.by_channel_ECD.sum(dim=-1, keepdim=True)
        else:
            rows = at if layout == "keys" else no_address(value)
            noisy, _ = perturb_activation(value, layout, error_model, rows)
            change_RK = (noisy.float() - value.float()).reshape(len(sample_R), -1)
            pull_R = (change_RK * gradient.float().reshape(change_RK.shape)).sum(dim=1).double()
            one = _pulled(pull_R.new_zeros(samples).index_add_(0, sample_R, pull_R)[None], kind)
        found.append(one)
    return _of_all(found)


def weight_effect(
    call: "WeightCall",
    gradient: Tensor,
    error_models: Sequence[ErrorModel],
    at: Address,
    kind: str,
    samples: int,
) -> SiteEffect:
    """Returns what error on a weight does, by the gradient of the operator's output.

    Args:
        call: What went into the operator.
        gradient: [.., O].
        error_models: What would be done to the weight. Of a random one, a single draw is squared:
            its mean over the weights is that over draws.
        at: Rows of the output.
        kind: How much of the rows is known.
        samples: B.
    """
    sample_R = sample_of_rows(at, kind, samples)
    gradient_RO = gradient.detach().float().reshape(len(sample_R), -1)
    sums_EB = torch.zeros(
        len(error_models), samples, dtype=torch.float64, device=gradient_RO.device
    )
    for weight_OK, noisy_EOK, begin, end in call.matrices(error_models, len(sample_R)):
        by_sample = list(_by_sample(sample_R[begin:end], samples))
        for slab in _slabs(weight_OK):
            changes = [
                (noisy_OK[slab].float() - weight_OK[slab].float()).reshape(-1)
                for noisy_OK in noisy_EOK
            ]
            for sample, rows in by_sample:
                gradient_OK = call.gradient(gradient_RO[begin:end], rows, begin, slab).reshape(-1)
                for n, change in enumerate(changes):
                    product = change * gradient_OK
                    is_random = error_models[n].is_random
                    sums_EB[n, sample] += (product.square() if is_random else product).sum()
    return _of_all(
        [
            _spread(0.5 * sums_B[None], kind) if e.is_random else _pulled(sums_B[None], kind)
            for e, sums_B in zip(error_models, sums_EB, strict=True)
        ]
    )


def _of_all(effects: Sequence[SiteEffect]) -> SiteEffect:
    """Returns the effects of single error models as one."""
    return SiteEffect(
        torch.cat([e.by_sample_EB for e in effects]),
        torch.cat([e.by_channel_ECD for e in effects]),
        torch.cat([e.pull_EB for e in effects]),
        effects[0].rows,
    )


def _pulled(pull_EB: Tensor, kind: str) -> SiteEffect:
    """Returns the effect of a known change, by what it does to the log-likelihood."""
    by_channel_EC1 = _unplaced(0.5 * pull_EB.square())
    return SiteEffect(torch.zeros_like(pull_EB), by_channel_EC1, pull_EB, kind)


def _spread(nats_EB: Tensor, kind: str) -> SiteEffect:
    """Returns the effect of independent errors."""
    return SiteEffect(nats_EB, _unplaced(nats_EB), torch.zeros_like(nats_EB), kind)


def _unplaced(nats_EB: Tensor) -> Tensor:
    """Returns sums over samples, of one channel and no known position, float32 [E, C, 1]."""
    shape = (len(nats_EB), len(POSITION_CLASSES), 1)
    by_channel = torch.zeros(shape, dtype=torch.float32, device=nats_EB.device)
    by_channel[:, _UNKNOWN, 0] = nats_EB.sum(dim=1).float()
    return by_channel


class WeightCall:
    """A call of a product by a weight, or of an embedding.

    Args:
        first: The activation [.., K], or ids of an embedding.
        weight: [O, K] or, where `axis` is -2, [K, O]; of experts [X, K, O]; of an embedding [V, D].
        axis: The axis that the product sums over.
        ends: Of experts, the row after each one's last.
        weights: Keeps the disturbed copies.
    """

    def __init__(
        self,
        first: Tensor,
        weight: Tensor,
        axis: int,
        ends: Tensor | None,
        weights: DisturbedWeights,
    ) -> None:
        self.is_lookup = not first.is_floating_point()
        self.first = first.detach()
        self._version = None if first.is_inference() else self.first._version
        self.weight, self.axis, self.ends, self.weights = weight, axis, ends, weights

    @property
    def is_overwritten(self) -> bool:
        """Whether the activation was written into since."""
        return self._version is not None and self.first._version != self._version

    def matrices(
        self, error_models: Sequence[ErrorModel], rows: int
    ) -> Iterator[tuple[Tensor, list[Tensor], int, int]]:
        """Yields each matrix [O, K], its disturbed copies, and which of R rows meet it."""
        noisy = [self.weights.get(self.weight, self.axis, e, 0, 0, 0)[0] for e in error_models]
        clean, *others = (
            t.detach() if self.axis == -1 else t.detach().transpose(-2, -1)
            for t in (self.weight, *noisy)
        )
        if clean.dim() == 2:
            yield clean, others, 0, rows
            return
        ends = [rows] if self.ends is None else self.ends.tolist()
        for number, end in enumerate(ends):
            begin = ends[number - 1] if number else 0
            yield clean[number], [t[number] for t in others], begin, end

    def gradient(self, gradient_RO: Tensor, rows: Tensor, begin: int, slab: slice) -> Tensor:
        """Returns the gradient of some rows' log-likelihood by a slab of the weight, float32."""
        if not self.is_lookup:
            first_RK = self.first.reshape(-1, self.first.shape[-1])
            meeting = first_RK[begin:][: len(gradient_RO)][rows].float()
            return gradient_RO[rows][:, slab].T @ meeting
        ids_R = self.first.expand(len(gradient_RO) // max(1, self.first.shape[-1]), -1)
        ids_R = ids_R.reshape(-1)[rows] - slab.start
        is_here = (ids_R >= 0) & (ids_R < slab.stop - slab.start)
        made = gradient_RO.new_zeros(slab.stop - slab.start, gradient_RO.shape[1])
        return made.index_add_(0, ids_R[is_here], gradient_RO[rows][is_here])


def _slabs(weight_OK: Tensor) -> Iterator[slice]:
    """Yields slabs of output channels."""
    each = max(1, _SLAB_BYTES // (4 * max(1, weight_OK.shape[1])))
    for begin in range(0, len(weight_OK), each):
        yield slice(begin, min(len(weight_OK), begin + each))


def _by_sample(sample_R: Tensor, samples: int) -> Iterator[tuple[int, Tensor]]:
    """Yields each sample that has rows, with their indices."""
    order_R = torch.argsort(sample_R, stable=True)
    counts = torch.bincount(sample_R, minlength=samples).tolist()
    for sample, rows in enumerate(order_R.split(counts)):
        if len(rows):
            yield sample, rows


def ends_of(kwargs: dict[str, Any], args: Sequence[Any]) -> Tensor | None:
    """Returns where the rows of each expert end, of a call for all experts at once."""
    found = kwargs.get("offs", args[2] if len(args) > 2 else None)
    return found if isinstance(found, Tensor) else None
