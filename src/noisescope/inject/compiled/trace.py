"""What is traced into the graph: the hooks of modules, and every call of an operator."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import graph_break

from noisescope.inject import attention
from noisescope.inject.calls import layouts_of, out_of_place, softmax_dim, write
from noisescope.inject.compiled import decide
from noisescope.inject.compiled.state import STATE
from noisescope.inject.compiled.tables import Tables
from noisescope.inject.operands import find_inputs, value_of
from noisescope.inject.operators import Spelling
from noisescope.inject.rows import Layout, token_words
from noisescope.noise.expression import perturb_expression
from noisescope.noise.fused import FORMATS

# Of the three steps of attention: where the last axis runs over keys.
_ATTENTION_LAYOUTS: tuple[dict[Any, Layout], ...] = (
    {"output": "keys", 1: "transposed"},
    {"output": "keys", 0: "keys"},
    {0: "keys"},
)


def stay_outside(hooks: int) -> None:
    """Ends the graph where another one than the model's own is being traced.

    A function around the model, or a layer: the model is then called from outside the graph, and
    compiled by itself if it is whole.
    """
    if not decide.has_begun(hooks):
        graph_break("a noisescope session begins here: compile the model itself")


def before(
    hooks: int,
    region: str,
    name: str,
    is_entry: bool,
    operator: str,
    is_mixed: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The hook before a module of a region."""
    stay_outside(hooks)
    if not decide.enter(hooks, region, name, is_entry, operator, is_mixed) or not operator:
        return None
    depth = decide.depth(hooks)
    site, _, is_mixed = decide.module_place(depth)
    if site < 0 or not _has_way_back(depth):
        return None
    return _with_noisy_inputs(depth, site, args, kwargs, {}, is_mixed)


def after(hooks: int, region: str, name: str, is_mixed: bool, output: Any) -> Any:
    """The hook behind it."""
    site = decide.leave(hooks, region, name)
    if site < 0 or output is None:
        return None
    return _perturbed(decide.depth(hooks), site, region, is_mixed, output, "channels", -1)


def run(depth: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs one call of the model's in the graph."""
    operator = decide.spelled(depth, function)
    if operator == "":
        return function(*args, **kwargs)
    if operator == "inside":
        return function(*_with_noisy_parameters(depth, args), **kwargs)
    if operator == "attention":
        return _attend(depth, function, args, kwargs)
    if decide.is_linear_by_parameter(function) and isinstance(_last(args, kwargs), nn.Parameter):
        operator = "linear"
    call = decide.call(depth, operator)
    number, operator, index, region, is_mixed, treatment = call
    if number < 0:
        return function(*args, **kwargs)
    spelling = Spelling(operator, decide.functional(function))
    function, args, kwargs, target = out_of_place(spelling, function, args, dict(kwargs))
    batch = None if is_mixed else _batch(depth)
    layouts = layouts_of(operator, index, args, kwargs, batch)
    if treatment == "inputs":
        args, kwargs = _with_disturbed_inputs(
            depth, number, operator, function, args, kwargs, layouts, is_mixed
        )
        result = function(*args, **kwargs)
    else:
        if _has_way_back(depth):
            args, kwargs = _with_noisy_inputs(depth, number, args, kwargs, layouts, is_mixed)
        result = function(*args, **kwargs)
        dim = softmax_dim(args, kwargs) if operator == "softmax" else -1
        layout = layouts.get("output", "channels")
        result = _perturbed(depth, number, region, is_mixed, result, layout, dim)
    return result if target is None else write(target, result)


def _attend(depth: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs fused attention: whole where nothing in it is perturbed, else in three steps."""
    calls = decide.attention_calls(depth)
    if len(calls) == 0:
        return function(*args, **kwargs)
    if decide.has_rows_apart(depth):
        sites, is_mixed = [number for number, *_ in calls], calls[0][4]
        return _attend_by_rows(STATE.handles[depth], sites, is_mixed, *args, **kwargs)

    def run(step: int, compute: Callable[..., Any], *inputs: Any) -> Tensor:
        number, operator, _, region, is_mixed, treatment = calls[step]
        layouts = _ATTENTION_LAYOUTS[step]
        if number < 0:
            plain: Tensor = compute(*inputs)
            return plain
        if treatment == "inputs":
            inputs, _ = _with_disturbed_inputs(
                depth, number, operator, compute, inputs, {}, layouts, is_mixed
            )
            disturbed: Tensor = compute(*inputs)
            return disturbed
        if _has_way_back(depth):
            inputs, _ = _with_noisy_inputs(depth, number, inputs, {}, layouts, is_mixed)
        layout = layouts.get("output", "channels")
        perturbed: Tensor = _perturbed(
            depth, number, region, is_mixed, compute(*inputs), layout, -1
        )
        return perturbed

    return attention.attend(*args, **kwargs, run=run)


def _attend_by_rows(
    handle: Tensor,
    sites: list[int],
    is_mixed: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    attended: Tensor = torch.ops.noisescope.attend(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        handle,
        sites,
        is_mixed,
    )
    return attended


def _perturbed(
    depth: int, site: int, region: str, is_mixed: bool, output: Any, layout: Layout, dim: int
) -> Any:
    """Puts the error on an output; of several, on the first."""
    if isinstance(output, tuple) and len(output):
        first = _perturbed(depth, site, region, is_mixed, output[0], layout, dim)
        return (first, *output[1:])
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return output
    if not decide.perturbs(depth, "forward"):
        return output
    samples = STATE.samples[depth]
    if region == "embed" and output.dim() == 3 and output.shape[0] == 1:
        if output.shape[1] == samples.shape[1]:
            output = output.expand(samples.shape[0], -1, -1)
    if layout == "channels" and not is_mixed and not torch.is_grad_enabled():
        recipe, tables = decide.computed(depth, site), STATE.tables[depth]
        # What a table's device or float32 does not hold is left to the operator.
        if output.dtype not in FORMATS or output.device != STATE.samples[depth].device:
            recipe = None
        words = token_words(output, decide.is_heads_first(depth, site), *_tokens(depth))
        if recipe is not None and tables is not None and words is not None:
            return _computed(site, recipe, tables, output, words)
    return torch.ops.noisescope.perturb(output, STATE.handles[depth], site, layout, dim, is_mixed)


def _tokens(depth: int) -> tuple[Tensor, Tensor]:
    return STATE.samples[depth], STATE.positions[depth]


def _computed(
    site: int,
    recipe: tuple[int, bool, bool],
    tables: Tables,
    output: Tensor,
    words: tuple[Tensor, Tensor, Tensor],
) -> Tensor:
    """Adds the noise in the graph, for the compiler to fuse, and its dose to the table."""
    word, is_relative, is_stochastic = recipe
    words_2B, scale_B = tables.words_2B, tables.scale_NB[site]
    sample_R, position_R, channel_R = words
    each = sample_R.shape[0] // words_2B.shape[1]
    noisy_RD, tally_R6 = perturb_expression(
        output.reshape(sample_R.shape[0], -1),
        sample_R,
        position_R,
        channel_R,
        words_2B[0].repeat_interleave(each),
        words_2B[1].repeat_interleave(each),
        word,
        scale_B.repeat_interleave(each),
        is_relative,
        is_stochastic,
        # One kernel with all around it, rather than random words made once and kept in memory.
        is_aligned=False,
    )
    tally_B6 = tally_R6.reshape(words_2B.shape[1], each, -1).sum(dim=1)
    # No matrix product: the mode would take it for one of the model's.
    tally_C6 = (tables.member_BC[:, :, None] * tally_B6[:, None, :]).sum(dim=0)
    tables.tally_NCF[site].add_(torch.cat([tally_C6, tables.aboard_C[:, None]], dim=1))
    return noisy_RD.reshape(output.shape)


def _batch(depth: int) -> int | None:
    """Returns the rows of the batch, or None where no rows are known."""
    batch = STATE.samples[depth].shape[0]
    return batch if batch > 0 else None


def _has_way_back(depth: int) -> bool:
    return torch.is_grad_enabled() and decide.perturbs(depth, "backward")


def _with_noisy_inputs(
    depth: int,
    site: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layouts: Any,
    is_mixed: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Puts an identity with a noisy way back on every input that wants a gradient."""
    handle = STATE.handles[depth]
    number = 0

    def wrap(value: Any) -> Any:
        nonlocal number
        if isinstance(value, (tuple, list)):
            return type(value)([wrap(v) for v in value])
        if not isinstance(value, Tensor):
            return value
        n = number
        number += 1
        if not value.requires_grad:
            return value
        return torch.ops.noisescope.with_noisy_gradient(
            value,
            handle,
            site,
            n,
            layouts.get(n, "channels"),
            isinstance(value, nn.Parameter),
            is_mixed,
        )

    return tuple([wrap(value) for value in args]), {k: wrap(v) for k, v in kwargs.items()}


def _with_noisy_parameters(depth: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Gives the weights of a norm that is written out by hand their noise on the way back."""
    if not _has_way_back(depth):
        return args
    site, _, is_mixed = decide.module_place(depth)
    wrapped = []
    for value in args:
        if isinstance(value, nn.Parameter) and value.requires_grad:
            number = decide.parameter_number(depth)
            value = torch.ops.noisescope.with_noisy_gradient(
                value, STATE.handles[depth], site, number, "channels", True, is_mixed
            )
        wrapped.append(value)
    return tuple(wrapped)


def _with_disturbed_inputs(
    depth: int,
    site: int,
    operator: str,
    function: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    layouts: Any,
    is_mixed: bool,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Puts error on the weights and activations that go into a call."""
    chosen = [
        (number, one)
        for number, one in enumerate(find_inputs(function, operator, args, kwargs, layouts))
        if decide.falls_on(depth, one.role) and value_of(one.key, args, kwargs).is_floating_point()
    ]
    for number, one in chosen:
        noisy = torch.ops.noisescope.disturb_input(
            value_of(one.key, args, kwargs),
            STATE.handles[depth],
            site,
            number,
            one.role,
            one.axis,
            one.layout,
            number == chosen[-1][0],
            is_mixed,
        )
        if isinstance(one.key, str):
            kwargs = {**kwargs, one.key: noisy}
        else:
            args = (*args[: one.key], noisy, *args[one.key + 1 :])
    return args, kwargs


def _last(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kwargs.get("mat2", args[-1] if args else None)
