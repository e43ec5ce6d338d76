"""Gaussian error on the output of every linear layer, as a bare hook and two other tools do it.

Each tool is used by its documented interface, in the cheapest way that it offers. Both come from
image classifiers; what has to be adapted to a language model is done before the time is taken.
"""

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor, nn

NOTES = {
    "PyTorchFI": "custom function on layer_types=[nn.Linear], y += randn * |y| * s in place, as it "
    "wants; it profiles a model with floats, so an adapter around the model makes them token ids, "
    "and is gone when time is taken",
    "MRFI": "its own NormalDisturb on activation_out of module_type Linear: y + randn * std, which "
    "does not depend on y and takes fewer operations; its hooks stand on every module",
}


def find_tools() -> dict[str, str]:
    """Returns the versions of the tools that can be imported."""
    names = [name for name in NOTES if find_spec(name.lower()) is not None]
    return {name: version(name) for name in names}


def with_hooks(model: nn.Module, scale: float) -> nn.Module:
    """Gives the model a bare hook on each linear layer, with relative error."""

    def add_noise(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        return y + torch.randn_like(y) * y.abs() * scale

    for linear in linears(model).values():
        linear.register_forward_hook(add_noise)
    return model


def with_pytorchfi(model: nn.Module, scale: float) -> nn.Module:
    """Returns PyTorchFI's copy of the model, with relative error on the outputs of linear layers.

    The copy has the weights of the model and not copies of them: all that is measured here reads
    the same memory.
    """
    from pytorchfi.core import fault_injection

    class Noise(fault_injection):
        def add_noise(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            output += torch.randn_like(output) * output.abs() * scale
            # The tool's manual asks custom functions to keep its count of layers.
            self.updateLayer()
            if self.get_current_layer() >= self.get_total_layers():
                self.reset_current_layer()

    tool = Noise(_TakesFloats(model), 1, input_shape=[8], layer_types=[nn.Linear])
    copy = tool.declare_neuron_fi(function=tool.add_noise).model
    for own, shared in zip(copy.parameters(), model.parameters(), strict=True):
        own.data = shared.data
    return copy


class _TakesFloats(nn.Module):
    """A language model that takes floats: PyTorchFI sends them to learn the shapes of outputs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, floats: Tensor) -> object:
        return self.model(torch.zeros_like(floats, dtype=torch.long), use_cache=False)


def with_mrfi(model: nn.Module, scale: float) -> nn.Module:
    """Gives the model MRFI's hooks, with absolute error on the outputs of linear layers."""
    from mrfi import MRFI, EasyConfig

    error = {
        "type": "activation_out",
        "module_type": ["Linear"],
        "error_mode": {"method": "NormalDisturb", "std": scale},
    }
    MRFI(model, EasyConfig({"faultinject": [error]}))
    return model


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


TOOLS: dict[str, Callable[[nn.Module, float], nn.Module]] = {
    "PyTorchFI": with_pytorchfi,
    "MRFI": with_mrfi,
}
