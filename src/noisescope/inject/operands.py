"""Error on what goes into an operator: its weights and activations, rounded before they meet.

A product is computed with the disturbed copies; the weight itself is never written. Blocks of a
format lie along the axis that the product sums over. What is kept of a weight is in weights.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload

from noisescope.errors import SelectionError, near_names
from noisescope.inject.calls import Arguments, Function, Layouts
from noisescope.inject.perturb import add_error
from noisescope.inject.rows import KEYS_PER_HEAD, Layout
from noisescope.inject.selection import Selection
from noisescope.inject.sites import Site
from noisescope.noise import (
    Address,
    ErrorModel,
    RoundModules,
    RoundTo,
    flat_address,
    make_format,
    site_word,
)

Role = Literal["activations", "weights", "addend"]

OUTPUT = frozenset({"output"})
# What of each operator's inputs error can fall on.
_INPUTS: dict[str, frozenset[str]] = {
    "linear": frozenset({"activations", "weights"}),
    "matmul": frozenset({"activations"}),
    "bmm": frozenset({"activations"}),
    "embedding": frozenset({"weights"}),
}
# Whose outputs may run over keys: a scale there would hold padding, and tokens that come later.
_OVER_KEYS = frozenset({"matmul", "bmm", "softmax"})
_Places = tuple[tuple[int, int], tuple[str, str]]
_ATEN = torch.ops.aten
# Where a function has its two factors, by position and by name.
_FACTORS: dict[Any, _Places] = {
    function: places
    for functions, places in (
        ((F.linear, _ATEN.linear), ((0, 1), ("input", "weight"))),
        ((F.embedding,), ((0, 1), ("input", "weight"))),
        ((torch.embedding, _ATEN.embedding), ((1, 0), ("indices", "weight"))),
        ((torch.addmm, Tensor.addmm, _ATEN.addmm), ((1, 2), ("mat1", "mat2"))),
        ((torch.baddbmm, Tensor.baddbmm, _ATEN.baddbmm), ((1, 2), ("batch1", "batch2"))),
    )
    for function in functions
}
_PLAIN = frozenset({"matmul", "__matmul__", "mm", "bmm", "mv"})
_SECOND_NAMES = ("other", "mat2", "tensor2", "vec", "mat_b", "weight")


@dataclass(frozen=True)
class Input:
    """A tensor that goes into a call.

    Attributes:
        key: Its position among the arguments, or its name.
        role: What it is.
        axis: The axis that the product sums over, -1 or -2.
        layout: What its last axis holds, once `axis` is the last.
    """

    key: int | str
    role: Role
    axis: int = -1
    layout: Layout = "channels"


@dataclass(frozen=True)
class Disturbance:
    """What disturbs the inputs of one call.

    Attributes:
        error_model: The error at this site.
        address: Returns where the rows of an activation lie, by its value, layout and word.
        weight: Returns a disturbed weight and its tally, by its value, the axis that the product
            sums over, the error and its word.
        note: Told each tally.
    """

    error_model: ErrorModel
    address: Callable[[Tensor, Layout, int], Address]
    weight: Callable[[Tensor, int, ErrorModel, int], tuple[Tensor, Tensor]]
    note: Callable[[Tensor], None]


def falls_on_inputs(error_model: ErrorModel) -> bool:
    """Tells whether an error falls on weights or activations, and not on outputs."""
    return error_model.operands != OUTPUT


def reaches_operator(error_model: ErrorModel, operator: str) -> bool:
    """Tells whether an error can fall on an operator at all."""
    if not falls_on_inputs(error_model):
        return not (operator in _OVER_KEYS and _shares_scales(error_model))
    return bool(error_model.operands & _INPUTS.get(operator, frozenset()))


def _shares_scales(error_model: ErrorModel) -> bool:
    """Tells whether an element's error depends on its neighbours, by a scale that they share."""
    if isinstance(error_model, RoundModules):
        return any(make_format(name).scale != "none" for _, name in error_model.formats)
    return isinstance(error_model, RoundTo) and make_format(error_model.format).scale != "none"


def reaches(error_model: ErrorModel, site: Site) -> bool:
    """Tells whether an error can fall on a site at all, whatever is selected."""
    own = error_model.at_module(site.module)
    if own is not error_model and own.is_null:
        return False  # a module that is given no error
    return reaches_operator(own, site.operator)


def check_operands(error_model: ErrorModel, selection: Selection, model: nn.Module) -> None:
    """Raises SelectionError for a selection that error on weights or activations cannot have.

    And for a module that is given a format and is not there.
    """
    if isinstance(error_model, RoundModules):
        known = {name for name, _ in model.named_modules()}
        for name, _ in error_model.formats:
            if name not in known:
                raise SelectionError(
                    f"no module {name!r} for a format{near_names(name, known) or '.'} List them "
                    "with 'noisescope sites MODEL --full'."
                )
    if not falls_on_inputs(error_model):
        return
    what = " and ".join(sorted(error_model.operands))
    if "backward" in selection.phases:
        raise SelectionError(
            f"backward noise of an error on {what}: gradients pass it unchanged; leave phases at "
            "('forward',), or give the error operand='output'."
        )
    if selection.elements is not None:
        raise SelectionError(
            f"channels or positions with an error on {what}: they restrict outputs; leave them "
            "out, or give the error operand='output'."
        )


def find_inputs(
    function: Function, operator: str, args: Sequence[Any], kwargs: dict[str, Any], layouts: Layouts
) -> tuple[Input, ...]:
    """Returns the factors of a call; none where the axis that it sums over is not known.

    Values are rounded token by token, as caches hold them: over keys, blocks would hold tokens
    that came later, and padding.
    """
    packet = function.overloadpacket if isinstance(function, OpOverload) else function
    places = _FACTORS.get(packet)
    name = getattr(packet, "__name__", "")
    if places is None and (name in _PLAIN or "grouped_mm" in name or name == "context"):
        places = ((0, 1), ("input", ""))
    if places is None:
        return ()
    left, right = (
        _key(at, names, args, kwargs)
        for at, names in zip(
            places[0], ((places[1][0], "mat_a"), _names(places[1][1])), strict=True
        )
    )
    if left is None or right is None:
        return ()
    if operator == "embedding":
        return (Input(left, "addend"), Input(right, "weights"))
    second = value_of(right, args, kwargs)
    is_weight = operator == "linear" or isinstance(second, nn.Parameter)
    is_turned = packet in (F.linear, torch.ops.aten.linear)
    addend = _addend(args, kwargs) if places[0][0] == 1 else ()
    if is_weight:
        axis = -1 if is_turned else -2
        return (*addend, Input(left, "activations"), Input(right, "weights", axis))
    is_context = layouts.get(_number(left, args, kwargs)) == "keys"
    return (
        *addend,
        Input(left, "activations", -1, "keys" if is_context else "channels"),
        Input(right, "activations", -1 if is_context or second.dim() < 2 else -2),
    )


def _addend(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Input, ...]:
    """Returns what a product is added to, where it has rows: a bias has none."""
    key = _key(0, ("input",), args, kwargs)
    has_rows = key is not None and value_of(key, args, kwargs).dim() > 1
    return (Input(key, "addend"),) if has_rows and key is not None else ()


def _names(name: str) -> tuple[str, ...]:
    return (name,) if name else _SECOND_NAMES


def _key(
    at: int, names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]
) -> int | str | None:
    """Returns where a tensor stands among the arguments, or None."""
    if at < len(args) and isinstance(args[at], Tensor):
        return at
    return next((name for name in names if isinstance(kwargs.get(name), Tensor)), None)


def value_of(key: int | str, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Returns the tensor in one place of the arguments."""
    value: Tensor = args[key] if isinstance(key, int) else kwargs[key]
    return value


def _number(key: int | str, args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Returns the number of a tensor among all tensors of the call."""
    before = args[:key] if isinstance(key, int) else args
    return sum(isinstance(value, Tensor) for value in before)


def replaced(arguments: Arguments, key: int | str, new: Tensor) -> Arguments:
    """Returns the arguments with another tensor in one place."""
    args, kwargs = arguments
    if isinstance(key, str):
        return args, {**kwargs, key: new}
    return (*args[:key], new, *args[key + 1 :]), kwargs


def rows_of_inputs(
    inputs: Sequence[Input], arguments: Arguments, begin: int, end: int, batch: int
) -> Arguments | None:
    """Returns the arguments of a call for some rows of the batch; None: they are not of a batch."""
    if (begin, end) == (0, batch):
        return arguments
    for one in inputs:
        value = value_of(one.key, *arguments)
        if one.role == "weights":
            continue
        if one.role == "addend" and value.dim() and value.shape[0] == 1:
            value = value.expand(batch, *value.shape[1:])  # ids of positions, one row for all
        if not value.dim() or value.shape[0] % batch:
            return None
        each = value.shape[0] // batch
        arguments = replaced(arguments, one.key, value[begin * each : end * each])
    return arguments


def disturb(
    inputs: Sequence[Input], site: Site, arguments: Arguments, by: Disturbance
) -> Arguments:
    """Returns the arguments of a call with error on those inputs that the error falls on."""
    for number, one in enumerate(inputs):
        if one.role not in by.error_model.operands:
            continue
        value = value_of(one.key, *arguments)
        if not value.is_floating_point():
            continue
        noisy = disturb_one(value, number, one, site, by)
        # Straight through; a tensor of its own, as autograd marks it and it may be kept.
        passed = add_error(value, lambda _, noisy=noisy: noisy.detach())  # type: ignore[misc]
        arguments = replaced(arguments, one.key, passed)
    return arguments


def disturb_one(value: Tensor, number: int, one: Input, site: Site, by: Disturbance) -> Tensor:
    """Returns a call's n-th input with error on it; a weight's copy may be one that is kept."""
    word = site_word(f"{site.name}:input{number}")
    if one.role == "weights":
        noisy, tally = by.weight(value, one.axis, by.error_model, word)
    else:
        noisy, tally = _disturb_activation(value, one, word, by)
    by.note(tally)
    return noisy


def _disturb_activation(
    value: Tensor, one: Input, word: int, by: Disturbance
) -> tuple[Tensor, Tensor]:
    turned = value.detach() if one.axis == -1 else value.detach().transpose(-2, -1)
    at = by.address(turned, one.layout, word)
    noisy, tally = perturb_activation(turned, one.layout, by.error_model, at)
    return (noisy if one.axis == -1 else noisy.transpose(-2, -1)), tally


def perturb_activation(
    value: Tensor, layout: Layout, error_model: ErrorModel, at: Address
) -> tuple[Tensor, Tensor]:
    """Returns a disturbed activation and its tally.

    Args:
        value: [.., K], the axis that the product sums over last.
        layout: What that axis holds.
        error_model: What disturbs it.
        at: Where its rows lie.
    """
    flat_RD = value.reshape(len(at), value.numel() // max(1, len(at)))
    if layout == "keys":
        column_RD, at = _from_first_key(flat_RD, at)
        noisy_RD, tally = error_model.perturb(flat_RD.gather(1, column_RD), at)
        noisy_RD = torch.empty_like(noisy_RD).scatter_(1, column_RD, noisy_RD)
    else:
        noisy_RD, tally = error_model.perturb(flat_RD, at)
    return noisy_RD.reshape(value.shape), tally


def _from_first_key(flat_RD: Tensor, at: Address) -> tuple[Tensor, Address]:
    """Returns the columns in an order that begins with each row's own first key, and its address.

    Left padding would else shift the blocks, and a sample's error would depend on its company.
    """
    columns_D = torch.arange(flat_RD.shape[1], device=flat_RD.device)
    half = KEYS_PER_HEAD // 2
    padding_R = (-((at.channel_R + half) % KEYS_PER_HEAD - half)).clamp_min(0)
    column_RD = (columns_D + padding_R[:, None]) % max(1, flat_RD.shape[1])
    return column_RD, replace(at, channel_R=at.channel_R + padding_R)


def no_address(value: Tensor) -> Address:
    """Returns an address for error that no random number decides."""
    rows = value.shape[:-1].numel() if value.dim() else 1
    return flat_address(0, 0, 0, rows, value.device)


def disturb_weight(
    weight: Tensor, axis: int, error_model: ErrorModel, seed: int, draw: int, word: int
) -> tuple[Tensor, Tensor]:
    """Returns a disturbed copy of a weight, and the tally.

    Args:
        weight: [.., O, K], or [.., K, O] where `axis` is -2; each matrix by itself.
        axis: The axis that the product sums over.
        error_model: What disturbs it.
        seed: First key word of the random numbers.
        draw: Number of the realisation.
        word: The weight's word in the counter.
    """
    turned = weight.detach() if axis == -1 else weight.detach().transpose(-2, -1)
    matrices = turned.reshape(-1, *turned.shape[-2:])
    made, tallies = [], []
    for number, matrix_OK in enumerate(matrices):
        at = flat_address(seed, draw, (word + number) % 2**32, len(matrix_OK), weight.device)
        noisy_OK, tally = error_model.perturb_weight(matrix_OK, at)
        made.append(noisy_OK)
        tallies.append(tally)
    noisy = torch.stack(made).reshape(turned.shape)
    noisy = noisy if axis == -1 else noisy.transpose(-2, -1)
    return noisy, torch.stack(tallies).sum(dim=0)
