"""Disturbed copies of weights, kept as far as memory is given for them; the weights stay as are.

A forward pass of one token reads every weight once, and rounding one takes longer than using it.
When the memory is full nothing more is kept: passes read weights in the same order, and what is
thrown out for another would be missed in the next pass.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noisescope.inject.operands import disturb_weight
from noisescope.noise import ErrorModel

DEFAULT_BYTES = 1 << 30


@dataclass(frozen=True)
class _Held:
    """A copy; its owner lives on with it, so that nothing else comes to lie at its address."""

    owner: nn.Parameter
    version: int
    noisy: Tensor
    tally: Tensor

    @property
    def size(self) -> int:
        return self.noisy.numel() * self.noisy.element_size()


class DisturbedWeights:
    """Makes disturbed copies of a model's weights and keeps them.

    A weight that is written through its `.data` without gradients shows no trace of it: call
    `forget`, or open another session.

    Args:
        limit_bytes: The most that the copies may take.
    """

    def __init__(self, limit_bytes: int = DEFAULT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._held: dict[Hashable, _Held] = {}

    def get(
        self,
        weight: Tensor,
        axis: int,
        error_model: ErrorModel,
        seed: int,
        draw: int,
        word: int,
    ) -> tuple[Tensor, Tensor]:
        """Returns a disturbed copy, which is not to be written into, and its tally.

        Args:
            weight: [.., O, K], or [.., K, O] where `axis` is -2.
            axis: The axis that the product sums over.
            error_model: What disturbs it.
            seed: First key word of the random numbers.
            draw: Number of the realisation.
            word: The weight's word in the counter.
        """
        owner = _owner(weight)
        key = (
            None if owner is None else _place(weight),
            axis,
            error_model,
            (seed, draw, word) if error_model.is_random else None,
        )
        held = None if owner is None else self._held.get(key)
        # A fused optimizer writes weights without raising their version: of a weight that is being
        # trained nothing is kept from one pass to the next.
        is_trained = owner is not None and owner.requires_grad and torch.is_grad_enabled()
        if held is not None:
            if not is_trained and held.owner is owner and held.version == weight._version:
                return held.noisy, held.tally
            del self._held[key]  # the weight was written into: it will not come back
            self.held_bytes -= held.size
        # A copy made in inference mode could not serve a pass with gradients later.
        with torch.inference_mode(False), torch.no_grad():
            noisy, tally = disturb_weight(weight, axis, error_model, seed, draw, word)
        if owner is not None and not is_trained:
            new = _Held(owner, weight._version, noisy, tally)
            if self.held_bytes + new.size <= self.limit_bytes:
                self._held[key] = new
                self.held_bytes += new.size
        return noisy, tally

    def forget(self) -> None:
        """Frees every copy."""
        self._held.clear()
        self.held_bytes = 0


def _owner(weight: Tensor) -> nn.Parameter | None:
    """Returns the parameter that a weight is, or is a part of; None: it may be gone tomorrow."""
    if weight.is_inference():
        return None
    if isinstance(weight, nn.Parameter):
        return weight
    base = weight._base
    return base if isinstance(base, nn.Parameter) else None


def _place(weight: Tensor) -> Hashable:
    """Returns what tells a weight from every other, while its owner lives."""
    return (
        weight.device,
        weight.data_ptr(),
        weight.dtype,
        tuple(weight.shape),
        weight.stride(),
    )
