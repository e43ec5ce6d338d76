"""What is decided while a model is traced: the compiler calls these functions, once for a graph.

Their results are constants of the graph, so they may depend only on what the graph is guarded on:
the model, and the shape of the session.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.nn.functional as F
from torch._dynamo import assume_constant_result
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import TracingContext

from noisescope.errors import InputError
from noisescope.inject import attention
from noisescope.inject.compiled.state import STATE, Module, Running
from noisescope.inject.compiled.tables import CAPACITY
from noisescope.inject.operators import is_addmm, is_fused_attention, spelling_of
from noisescope.inject.rows import HEADS_FIRST
from noisescope.inject.sites import FIRST_PARAMETER, Site, SiteKey
from noisescope.noise import RelativeGaussian

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _constant(function: _Function) -> _Function:
    """Tells the compiler to run a function while it traces."""
    marked: _Function = assume_constant_result(function)
    return marked


@_constant
def has_begun(hooks: int) -> bool:
    """Tells whether the session of these hooks runs a compiled model now."""
    return any(running.hooks == hooks for running in STATE.running)


@_constant
def enter(
    hooks: int, region: str, name: str, is_entry: bool, operator: str, is_mixed: bool
) -> bool:
    """Notes that a module begins; False: it is not in a region that is being followed."""
    running = _of_hooks(hooks)
    context = TracingContext.try_get()
    if running.context is not context:  # another graph, or this one from its beginning
        running.context = context
        running.stack.clear()
        running.calls.clear()
    above = running.stack[-1] if running.stack else None
    if above is not None and above.region == region:
        calls = above.calls
    elif is_entry:
        _check_frame(running, region)
        calls = running.calls.setdefault(region, {})
    else:
        return False
    is_mixed = is_mixed or (above is not None and above.is_mixed)
    module = Module(region, name, calls, operator, is_mixed)
    running.stack.append(module)
    if operator:
        module.site = _see(running, module, operator)
    return True


def _check_frame(running: Running, region: str) -> None:
    """Raises InputError where calls of one region lie in two graphs: they could not be counted."""
    code = InstructionTranslator.current_tx().output.root_tx.f_code
    frame = f"{code.co_filename}:{code.co_name}"
    if running.frames.setdefault(region, frame) != frame:
        raise InputError(
            f"layer {region} runs in two graphs of one pass, as the model breaks its graph between "
            "two calls of it: run the model in the session without torch.compile."
        )


@_constant
def leave(hooks: int, region: str, name: str) -> int:
    """Notes that a module ends; returns its site's number where it is an operator, or -1."""
    running = _of_hooks(hooks)
    top = running.stack[-1] if running.stack else None
    if top is None or (top.region, top.name) != (region, name):
        return -1
    running.stack.pop()
    return top.site


@_constant
def spelled(depth: int, function: Any) -> str:
    """Returns what a call is: an operator, ``attention``, ``inside`` one, or nothing."""
    if not STATE.running[depth].stack:
        return ""
    top = _innermost(depth)
    if top.operator:
        return "inside" if top.site >= 0 else ""
    if is_fused_attention(function):
        return "attention"
    if function is F.multi_head_attention_forward:
        raise InputError(
            "F.multi_head_attention_forward in a compiled model is one piece: run the model in the "
            "session without torch.compile."
        )
    spelling = spelling_of(function, (), {})
    return "" if spelling is None else spelling.operator


@_constant
def functional(function: Any) -> Any:
    """Returns the function that computes the same and writes nothing, or None."""
    spelling = spelling_of(function, (), {})
    return None if spelling is None else spelling.functional


@_constant
def call(depth: int, operator: str) -> tuple[int, str, int, str, bool, str]:
    """Counts a call of an operator.

    Returns:
        The number of its site, -1 where nothing falls on it; the operator; the index of the call;
        the region; whether rows lose their token; what error falls on.
    """
    running, top = STATE.running[depth], _innermost(depth)
    index = top.calls.get((top.name, operator), 0)
    number = _see(running, top, operator)
    treatment = "" if number < 0 else running.session.treatment(Site(*running.keys[number]))
    return number, operator, index, top.region, top.is_mixed, treatment


@_constant
def attention_calls(depth: int) -> tuple[tuple[int, str, int, str, bool, str], ...]:
    """Counts the three operators of fused attention; none where it is left whole."""
    running, top = STATE.running[depth], _innermost(depth)
    keys = [_next_key(top, operator) for operator in attention.SITE_OPERATORS]
    session = running.session
    treatments = [session.treatment(Site(*key)) for key in keys]
    if session.leaves_attention_whole or not any(treatments):
        running.seen.update(dict.fromkeys(keys, True))
        return ()
    calls = []
    for key, treatment in zip(keys, treatments, strict=True):
        is_perturbed = bool(treatment) or session.has_rows_apart
        number = running.number_of(key) if is_perturbed else -1
        if not is_perturbed:
            running.seen[key] = False
        calls.append((number, *key[2:], top.region, top.is_mixed, treatment))
    return tuple(calls)


@_constant
def perturbs(depth: int, phase: str) -> bool:
    """Tells whether there is noise in a phase."""
    return phase in STATE.running[depth].session.phases


@_constant
def has_rows_apart(depth: int) -> bool:
    """Tells whether rows of a batch get error of their own."""
    return STATE.running[depth].session.has_rows_apart


@_constant
def depth(hooks: int) -> int:
    """Returns how many sessions lie around the one of these hooks."""
    return STATE.running.index(_of_hooks(hooks))


@_constant
def module_place(depth: int) -> tuple[int, str, bool]:
    """Returns the site of the module that is an operator, its region, and if its rows are mixed."""
    top = _innermost(depth)
    return top.site, top.region, top.is_mixed


@_constant
def is_heads_first(depth: int, site: int) -> bool:
    """Tells what a shape of four axes means at a site."""
    return STATE.running[depth].keys[site][2] in HEADS_FIRST


@_constant
def computed(depth: int, site: int) -> tuple[int, bool, bool] | None:
    """Returns the word of a site whose noise the graph computes; if relative, and how rounded.

    None: an operator of its own does it.
    """
    tables = STATE.tables[depth]
    if tables is None or site >= CAPACITY:
        return None
    running = STATE.running[depth]
    key = running.keys[site]
    if key[2] == "softmax":
        return None
    tables.add_site(site)
    model = running.session.conditions[0].error_model
    return Site(*key).word, isinstance(model, RelativeGaussian), model.rounding == "stochastic"


@_constant
def parameter_number(depth: int) -> int:
    """Numbers the uses of parameters in a module that is an operator."""
    top = _innermost(depth)
    top.parameters += 1
    return FIRST_PARAMETER + top.parameters - 1


@_constant
def falls_on(depth: int, role: str) -> bool:
    """Tells whether the error falls on an input in this role."""
    return role in STATE.running[depth].session.operands


@_constant
def is_linear_by_parameter(function: Any) -> bool:
    """Tells whether a function is `linear` where it is by a parameter."""
    return is_addmm(function)


def _of_hooks(hooks: int) -> Running:
    return [running for running in STATE.running if running.hooks == hooks][-1]


def _innermost(depth: int) -> Module:
    return STATE.running[depth].stack[-1]


def _next_key(module: Module, operator: str) -> SiteKey:
    index = module.calls.get((module.name, operator), 0)
    module.calls[module.name, operator] = index + 1
    return module.region, module.name, operator, index


def _see(running: Running, module: Module, operator: str) -> int:
    key = _next_key(module, operator)
    if running.session.treatment(Site(*key)):
        return running.number_of(key)
    running.seen[key] = False
    return -1
