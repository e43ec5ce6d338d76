"""What a call of an operator means: its layouts, its axis, and the tensor that it writes into."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from noisescope.inject.operators import Spelling
from noisescope.inject.rows import Layout

Function = Callable[..., Any]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
# Of the output ("output") and of the inputs by number, where the last axis does not hold channels.
Layouts = Mapping[Any, Layout]


def layouts_of(
    operator: str, index: int, args: Any, kwargs: dict[str, Any], batch: int | None
) -> Layouts:
    """Tells where the last axis of a call's output and inputs runs over keys.

    Scores and probabilities do. Of the products in an attention module every first one makes scores
    [.., T, D] x [.., D, S], and every second one context [.., T, S] x [.., S, D]: the order of the
    calls tells, as the shapes do not where T, D and S are equal.

    Args:
        operator: The operator.
        index: Which call of it in its module this is.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        batch: Rows of the batch now; None where the tokens of rows are not known.
    """
    if batch is None or operator not in ("softmax", "matmul", "bmm"):
        return {}
    shapes = [t.shape for t in _tensors((args, kwargs))]
    if not shapes:
        return {}
    if operator == "softmax":
        is_attention = len(shapes[0]) >= 4 or (len(shapes[0]) == 3 and shapes[0][0] != batch)
        return {"output": "keys", 0: "keys"} if is_attention else {}
    if len(shapes) < 2 or min(len(shapes[-2]), len(shapes[-1])) < 3:
        return {}
    left, right = len(shapes) - 2, len(shapes) - 1
    if index % 2:
        return {left: "keys"}
    is_einsum = bool(args) and isinstance(args[0], str)  # its keys need no transposing
    return {"output": "keys"} if is_einsum else {"output": "keys", right: "transposed"}


def softmax_dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Returns the axis that a softmax runs over."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    return dim if isinstance(dim, int) else -1


def out_of_place(
    spelling: Spelling, function: Function, args: Any, kwargs: dict[str, Any]
) -> tuple[Function, Any, dict[str, Any], Tensor | None]:
    """Turns a call that writes into a tensor into one that does not, and names that tensor.

    The clean result would otherwise overwrite what the backward pass has saved.
    """
    is_switch_positional = spelling.operator in ("relu", "silu") and args[1:2] == (True,)
    if spelling.functional is not None:
        function = spelling.functional
    elif is_switch_positional:
        args = (args[0], False)
    elif kwargs.get("inplace") is True:
        kwargs["inplace"] = False
    else:
        target = kwargs.pop("out", None)
        return function, args, kwargs, target
    target = _first(args, kwargs)
    if torch.is_grad_enabled() and target.requires_grad:
        # What the function saves must outlive the writing.
        args, kwargs = _replaced((args, kwargs), target, target.clone())
    return function, args, kwargs, target


def _replaced(arguments: Arguments, old: Tensor, new: Tensor) -> Arguments:
    args, kwargs = arguments
    return (
        tuple(new if a is old else a for a in args),
        {k: new if v is old else v for k, v in kwargs.items()},
    )


def _first(args: Any, kwargs: dict[str, Any]) -> Tensor:
    return _tensors((args, kwargs))[0]


def write(target: Tensor, result: Tensor) -> Tensor:
    """Writes a result where the call was told to."""
    if target.shape != result.shape:
        target.resize_(result.shape)
    return target.copy_(result)


def may_share_memory(output: Any, arguments: Arguments) -> bool:
    """Tells whether writing into an output could change an argument, or an element twice."""
    if not isinstance(output, Tensor):
        return False
    if not _has_one_memory(output) or 0 in output.stride():
        return True
    held = output.untyped_storage().data_ptr()
    return any(
        _has_one_memory(t) and t.untyped_storage().data_ptr() == held for t in _tensors(arguments)
    )


def _has_one_memory(x: Tensor) -> bool:
    """Tells whether a storage of its own holds all values: not so where they are sparse."""
    return x.layout is torch.strided and not x._is_zerotensor()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []
