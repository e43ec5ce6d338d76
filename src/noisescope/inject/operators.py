"""What computes: the operators noise can fall on, and every spelling under which PyTorch runs them.

A spelling is the function object that a `TorchFunctionMode` sees. Operators that models write out
by hand (an RMSNorm of six small functions, GPT-2's tanh GELU) are recognised by their module's
class instead.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload

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

# Fused attention is not an operator but three of them; attention.py takes it apart.
_FUSED_ATTENTION = frozenset(
    {F.scaled_dot_product_attention, torch.ops.aten.scaled_dot_product_attention}
)

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
    matmuls = ("matmul", "mm", "addmm", "mv", "addmv", "inner", "addbmm")
    functions: dict[str, list[Function]] = {
        # F.grouped_mm runs the projections of all experts at once.
        "linear": [*_named(F, ("linear", "grouped_mm")), *_named(torch, ("_grouped_mm",))],
        "matmul": [
            *_named(torch, (*matmuls, "einsum", "tensordot", "chain_matmul", "sspaddmm")),
            *_named(torch.linalg, ("matmul", "multi_dot")),
            *(getattr(Tensor, name) for name in (*matmuls, "__matmul__", "__rmatmul__")),
        ],
        "bmm": [*_named(torch, ("bmm", "baddbmm")), Tensor.bmm, Tensor.baddbmm],
        "softmax": [*_named(torch, ("softmax",)), F.softmax, Tensor.softmax, torch.special.softmax],
        "silu": [*_named(torch._C._nn, ("silu",)), F.silu],
        "gelu": [*_named(torch._C._nn, ("gelu",)), F.gelu],
        "relu": [*_named(torch, ("relu",)), F.relu, Tensor.relu],
        "layer_norm": [*_named(torch, ("layer_norm", "native_layer_norm")), F.layer_norm],
        "rms_norm": [*_named(torch, ("rms_norm",)), F.rms_norm],
        "embedding": [*_named(torch, ("embedding",)), F.embedding],
    }
    table = {f: Spelling(operator) for operator, fs in functions.items() for f in fs}
    in_place = {
        torch.relu_: ("relu", torch.relu),
        Tensor.relu_: ("relu", torch.relu),
        F.relu_: ("relu", torch.relu),
        torch.ops.aten.relu_: ("relu", torch.relu),
        torch.ops.aten.silu_: ("silu", F.silu),
        Tensor.addmm_: ("matmul", torch.addmm),
        Tensor.addmv_: ("matmul", torch.addmv),
        Tensor.addbmm_: ("matmul", torch.addbmm),
        Tensor.baddbmm_: ("bmm", torch.baddbmm),
    }
    return table | {f: Spelling(op, functional) for f, (op, functional) in in_place.items()}


SPELLINGS = _spellings()
_ADDMM = frozenset({torch.addmm, Tensor.addmm, torch.ops.aten.addmm})

_MODULE_OPERATORS = (
    (re.compile(r"RMSNorm|^T5LayerNorm$"), "rms_norm"),
    (re.compile(r"LayerNorm"), "layer_norm"),
    (re.compile(r"GELU"), "gelu"),
    (re.compile(r"SiLU"), "silu"),
    (re.compile(r"^ReLU$"), "relu"),
)


def spelling_of(
    function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Spelling | None:
    """Returns how a function called with these arguments is spelled; None: it is no operator.

    `addmm` by a parameter is how Conv1D-style projections (GPT-2) spell `linear`.
    """
    packet = function.overloadpacket if isinstance(function, OpOverload) else function
    spelling = SPELLINGS.get(packet)
    if spelling is None:
        # Kernels that a library registers itself are told by name: the object may not exist yet.
        is_grouped = getattr(packet, "__name__", "") == "grouped_mm_fallback"
        return Spelling("linear") if is_grouped else None
    if is_addmm(packet):
        weight = (kwargs or {}).get("mat2", args[-1] if args else None)
        return Spelling("linear") if isinstance(weight, nn.Parameter) else spelling
    return spelling


def is_addmm(function: Any) -> bool:
    """Tells whether a function is `addmm`, which is `linear` where it is by a parameter."""
    packet = function.overloadpacket if isinstance(function, OpOverload) else function
    return packet in _ADDMM


def is_fused_attention(function: Any) -> bool:
    """Tells whether a function is scaled dot-product attention in one piece."""
    packet = function.overloadpacket if isinstance(function, OpOverload) else function
    return packet in _FUSED_ATTENTION


def module_operator(module: nn.Module) -> str | None:
    """Returns the operator that a module as a whole is (norms and activations), or None.

    PyTorch's own modules are not meant: each calls one function, which is seen.
    """
    if type(module).__module__.startswith("torch.nn.") or any(True for _ in module.children()):
        return None
    name = type(module).__name__
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
        if name in ("core", "all"):
            raise SelectionError(
                f"{name!r} is a word of the command line: give noisescope.CORE_OPERATORS for core, "
                "and leave operators out for all"
            )
        if name not in OPERATORS:
            raise SelectionError(
                f"unknown operator {name!r}{near_names(str(name), OPERATORS) or '.'} "
                f"Accepted: {', '.join(OPERATORS)}."
            )
    return tuple(dict.fromkeys(names))
