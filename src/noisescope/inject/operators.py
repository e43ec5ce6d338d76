"""What computes: the operators noise can fall on, and every spelling under which PyTorch runs them.

A spelling is the function object that a `TorchFunctionMode` sees. Operators that models write out
by hand (an RMSNorm of six small functions, GPT-2's tanh GELU) are recognised by their module's
class instead.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescope.errors import SelectionError, near_names

OPERATORS = (
    "linear",
    "matmul",
    "bmm",
    "softmax",
    "silu",
    "gelu",
    "relu",
    "layer_norm",
    "rms_norm",
    "embedding",
)
CORE_OPERATORS = ("matmul", "bmm", "linear")
ALL_OPERATORS = OPERATORS

# Fused attention is not an operator but three of them; attention.py takes it apart.
FUSED_ATTENTION = F.scaled_dot_product_attention

Function = Any  # builtins, methods and torch.ops packets: no one type holds them


@dataclass(frozen=True)
class Spelling:
    """One function object and how to treat its call.

    Attributes:
        operator: The operator it computes.
        functional: The function to call instead where `function` writes into its input.
    """

    operator: str
    functional: Function | None = None


def _named(root: Any, names: Iterable[str]) -> list[Function]:
    """Returns the functions of these names, and their `torch.ops` packets."""
    found = [getattr(root, name) for name in names if hasattr(root, name)]
    packets = [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]
    return [*found, *packets]


def _spellings() -> dict[Any, Spelling]:
    matmuls = _named(
        torch,
        ("matmul", "mm", "addmm", "mv", "addmv", "einsum", "inner", "tensordot", "chain_matmul"),
    )
    matmuls += [torch.linalg.matmul, torch.linalg.multi_dot, torch.sspaddmm, torch.addbmm]
    matmuls += [
        getattr(Tensor, name)
        for name in ("matmul", "__matmul__", "__rmatmul__", "mm", "addmm", "mv", "addmv")
    ]
    matmuls += [Tensor.inner, Tensor.addbmm]
    bmms = [*_named(torch, ("bmm", "baddbmm")), Tensor.bmm, Tensor.baddbmm]
    functions: dict[str, list[Function]] = {
        "linear": [F.linear, torch.ops.aten.linear, *_grouped_linears()],
        "matmul": matmuls,
        "bmm": bmms,
        "softmax": [F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax],
        "silu": [F.silu],
        "gelu": [F.gelu],
        "relu": [F.relu, torch.relu, Tensor.relu],
        "layer_norm": [F.layer_norm, torch.layer_norm, torch.native_layer_norm],
        "rms_norm": [F.rms_norm, torch.rms_norm],
        "embedding": [F.embedding, torch.embedding],
    }
    table = {f: Spelling(operator) for operator, fs in functions.items() for f in fs}
    in_place = {
        torch.relu_: ("relu", torch.relu),
        Tensor.relu_: ("relu", torch.relu),
        F.relu_: ("relu", torch.relu),
        Tensor.addmm_: ("matmul", torch.addmm),
        Tensor.addmv_: ("matmul", torch.addmv),
        Tensor.addbmm_: ("matmul", torch.addbmm),
        Tensor.baddbmm_: ("bmm", torch.baddbmm),
    }
    return table | {f: Spelling(op, functional) for f, (op, functional) in in_place.items()}


def _grouped_linears() -> list[Function]:
    """Returns the grouped products that run the projections of all experts at once."""
    functions: list[Function] = _named(F, ("grouped_mm",)) + _named(torch, ("_grouped_mm",))
    return functions


SPELLINGS = _spellings()

_MODULE_OPERATORS = (
    (re.compile(r"RMSNorm|^T5LayerNorm$"), "rms_norm"),
    (re.compile(r"LayerNorm"), "layer_norm"),
    (re.compile(r"GELU"), "gelu"),
    (re.compile(r"SiLU"), "silu"),
    (re.compile(r"^ReLU$"), "relu"),
)


def spelling_of(function: Any, args: tuple[Any, ...]) -> Spelling | None:
    """Returns how a function called with these arguments is spelled; None: it is no operator.

    `addmm` by a parameter is how Conv1D-style projections (GPT-2) spell `linear`.
    """
    spelling = SPELLINGS.get(function)
    if spelling is None:
        # Kernels that a library registers itself are told by name: the object may not exist yet.
        if getattr(function, "__name__", "") == "grouped_mm_fallback":
            return Spelling("linear")
        return None
    if spelling.operator == "matmul" and function in _ADDMM and isinstance(args[-1], nn.Parameter):
        return Spelling("linear")
    return spelling


_ADDMM = (torch.addmm, Tensor.addmm, torch.ops.aten.addmm)


def module_operator(module: nn.Module) -> str | None:
    """Returns the operator that a module as a whole is (norms and activations), or None."""
    name = type(module).__name__
    if any(True for _ in module.children()):
        return None
    return next((operator for pattern, operator in _MODULE_OPERATORS if pattern.search(name)), None)


def check_operators(operators: Iterable[str] | str | None) -> tuple[str, ...] | None:
    """Checks operator names; None stands for all of them.

    Raises:
        SelectionError: A name is not an operator; the near names are listed.
    """
    if operators is None:
        return None
    names = (operators,) if isinstance(operators, str) else tuple(operators)
    for name in names:
        if name not in OPERATORS:
            raise SelectionError(
                f"unknown operator {name!r}{near_names(str(name), OPERATORS)} "
                f"Accepted: {', '.join(OPERATORS)}."
            )
    return tuple(dict.fromkeys(names))
