"""The two halves of a language model: what makes the states of tokens, and what makes logits.

All logits of all rows never exist at once: the first half runs once for a batch, the second on a
few tokens at a time. What a model does after its head (a cap on the logits, a factor) is its own
forward's business: it runs on a copy of the outermost module whose inner model hands over given
states. The copy shares every weight and hook; the model itself is left as it is.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast


class _Given(nn.Module):
    """Stands in for the inner model and returns the states it was given."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.config = getattr(like, "config", None)
        self.states: Tensor | None = None
        self.kind: type[Any] = BaseModelOutputWithPast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.kind(last_hidden_state=self.states)


class Halves:
    """A causal language model taken apart at the last hidden state.

    Args:
        model: The model.
        inner: Dotted name of the module that makes the states.
    """

    def __init__(self, model: nn.Module, inner: str) -> None:
        self.model = model
        self.inner = model.get_submodule(inner)
        self._given = _Given(self.inner)
        self._outer = _with_module(model, inner.split("."), self._given)
        self._forward = type(model).forward
        self._device = next(model.parameters()).device

    def states(self, ids_BT: Tensor, mask_BT: Tensor, has_graph: bool = False) -> Tensor:
        """Returns the last hidden states [B, T, D]; rows may be more than went in.

        Args:
            ids_BT: int64 texts.
            mask_BT: Their mask.
            has_graph: Whether a backward pass will follow.
        """
        with torch.set_grad_enabled(has_graph):
            output = self.inner(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
        self._given.kind = type(output)
        states: Tensor = output.last_hidden_state
        return states

    def logits(self, states_ND: Tensor, has_graph: bool = False) -> Tensor:
        """Returns the logits [N, V] of tokens of which the states are known."""
        self._given.states = states_ND[:, None]
        try:
            ids_N1 = torch.zeros(len(states_ND), 1, dtype=torch.int64, device=self._device)
            mask_N1 = torch.ones_like(ids_N1)
            with torch.set_grad_enabled(has_graph):
                output = self._forward(
                    self._outer, input_ids=ids_N1, attention_mask=mask_N1, use_cache=False
                )
        finally:
            self._given.states = None
        logits: Tensor = output.logits[:, 0]
        return logits


def find_halves(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> Halves | None:
    """Takes a model apart where that gives the logits it gives whole; else returns None.

    Args:
        model: A causal language model.
        ids_BT: int64 texts to try it on.
        mask_BT: Their mask, padded on the right.
    """
    with torch.no_grad():
        whole_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    for name in _inner_names(model, ids_BT, mask_BT):
        halves = Halves(model, name)
        try:
            apart = halves.logits(halves.states(ids_BT, mask_BT).flatten(0, 1))
            apart_BTV = apart.to(whole_BTV.device).reshape_as(whole_BTV)
        except (AttributeError, TypeError, ValueError, RuntimeError, KeyError, IndexError):
            continue  # this module is not where the model can be cut
        is_token_BT = mask_BT.bool().to(whole_BTV.device)
        if is_close(apart_BTV[is_token_BT], whole_BTV[is_token_BT]):
            return halves
    return None


def is_close(found: Tensor, expected: Tensor) -> bool:
    """Tells whether two tensors are equal up to what another order of additions explains."""
    wide = expected.double()
    tolerance = 64 * torch.finfo(expected.dtype).eps * max(1.0, float(wide.abs().max()))
    return bool((found.double() - wide).abs().max() <= tolerance)


def _inner_names(model: nn.Module, ids_BT: Tensor, mask_BT: Tensor) -> list[str]:
    """Returns the modules, outermost first, that the model calls and that return hidden states."""
    names = {module: name for name, module in model.named_modules() if name}
    found: list[str] = []
    handles = []

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if getattr(output, "last_hidden_state", None) is not None:
            found.append(names[module])

    try:
        handles = [module.register_forward_hook(after) for module in names]
        with torch.no_grad():
            model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return sorted(found, key=lambda name: name.count("."))


def _with_module(module: nn.Module, path: list[str], inside: nn.Module) -> nn.Module:
    """Returns a copy of a module, sharing everything but the one module at the path."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    name, *rest = path
    child = module._modules[name]
    made._modules[name] = _with_module(child, rest, inside) if rest and child else inside
    return made
