"""Follows a model into its regions and modules, by hooks that are all taken away again.

The innermost module and the count of calls give every operator its site. Gradient checkpointing
runs layers a second time during the backward pass: they meet the rows, and so the noise, of their
first run.
"""

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from noisescope.errors import InputError
from noisescope.inject.dose import SiteRecord
from noisescope.inject.frames import CAN_COMPILE, run_as_is, set_compiler
from noisescope.inject.operators import module_operator
from noisescope.inject.rows import Rows
from noisescope.inject.sites import FIRST_PARAMETER
from noisescope.inject.tokens import TokenReader
from noisescope.models import Regions

_REMEMBERED_PASSES = 4096
# Of the trackers that are attached: what tells them apart in a graph.
_numbers: set[int] = set()


# Calls of each operator in each module, counted within one pass of a region.
Calls = dict[tuple[str, str], int]

# Names that wrappers put between a module and what they wrap: of torch.compile, and of FSDP.
_WRAPPED = re.compile(r"\.(_orig_mod|_fsdp_wrapped_module)(?=\.|$)")
_EXPERTS = re.compile(r"(^|\.)experts(\.|$)")


@dataclass(slots=True)
class Place:
    """Where the model is: region, module, and how often each operator ran there in this pass."""

    region: str
    module: str
    rows: Rows | None
    calls: Calls = field(default_factory=dict)
    operator: str | None = None  # set while a module that is an operator as a whole runs
    record: SiteRecord | None = None  # of that operator
    parameters: tuple[Tensor, ...] = ()
    marks: Sequence[Any] = ()  # of that operator, in a ride

    def next_index(self, operator: str) -> int:
        """Counts a call of an operator in this module and returns its index."""
        key = (self.module, operator)
        index = self.calls.get(key, 0)
        self.calls[key] = index + 1
        return index

    def parameter_index(self, parameter: Tensor) -> int:
        """Returns the number of a parameter among the inputs of the module."""
        known = next((n for n, p in enumerate(self.parameters) if p is parameter), None)
        if known is None:
            known = len(self.parameters)
            self.parameters = (*self.parameters, parameter)
        return FIRST_PARAMETER + known


class Listener(Protocol):
    """What a tracker calls; an injector is one."""

    def enter_region(self) -> None:
        """Called before a region's module runs."""

    def leave_region(self) -> None:
        """Called after it ran, or raised."""

    def before_module(self, place: Place, module: nn.Module, args: Any) -> Any:
        """Called before a module that is an operator; may return other arguments.

        `args` is the pair of positional and keyword arguments.
        """

    def after_module(self, place: Place, module: nn.Module, output: Any) -> Any:
        """Called after it; may return another output."""

    @property
    def compilable(self) -> Any:
        """The session as `inject.compiled` knows it; None: it cannot follow a compiled model."""


def is_recomputing() -> bool:
    """Tells whether a backward pass runs now: a forward call is then a checkpoint's second one."""
    return torch._C._current_graph_task_id() != -1


class Tracker:
    """Keeps the stack of places while it is attached to a model.

    Args:
        listener: What is told of regions and of modules that are operators.
        reader: Reads which sample and position each row of a pass is.
    """

    def __init__(self, listener: Listener, reader: TokenReader) -> None:
        self.listener = listener
        self.reader = reader
        self.places: list[Place] = []
        self.passes = 0
        self.rows: Rows | None = None
        self._number = 0
        self._is_attached = False
        self._compiled_root: nn.Module | None = None
        self._has_compiled = False
        self._running: list[nn.Module] = []  # roots, outermost first
        self._calls: dict[str, Calls] = {}
        self._first_inside: dict[str, set[str]] = {}
        self._descending: set[str] = set()  # regions of which no module has returned yet
        self._second_runs: dict[str, tuple[Rows | None, Calls]] = {}
        self._held: OrderedDict[tuple[str, int], tuple[Rows, Calls]] = OrderedDict()

    @property
    def place(self) -> Place | None:
        """The innermost place, or None outside every tracked region."""
        return self.places[-1] if self.places else None

    def attach(
        self, model: nn.Module, regions: Regions, names: Sequence[str], stack: ExitStack
    ) -> None:
        """Registers the hooks; `stack` removes them, also when attaching fails half way."""
        # A copy of the model made meanwhile keeps the hooks: they must then do nothing.
        stack.callback(setattr, self, "_is_attached", False)
        self._is_attached = True
        self._number = next(n for n in itertools.count() if n not in _numbers)
        _numbers.add(self._number)
        stack.callback(_numbers.discard, self._number)
        for root in _roots(model, regions):
            _hook(root, *self._root_hooks(), stack)
        for region in regions.all:
            if region.name in names:
                for holder, module in region.modules:
                    self._attach_region(region.name, holder, module, stack)

    def _attach_region(self, region: str, holder: str, root: nn.Module, stack: ExitStack) -> None:
        entries = {id(module) for module in entry_modules(root)}
        for name, module in root.named_modules():
            full = _WRAPPED.sub("", ".".join(p for p in (holder, name) if p))
            before, after = self._hooks(region, full, module, id(module) in entries)
            _hook(module, before, after, stack)

    def _hooks(
        self, region: str, name: str, module: nn.Module, is_entry: bool
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        number, places, first_inside = self._number, self.places, self._first_inside
        descending = self._descending
        operator = module_operator(module)
        loses_rows = is_experts(name, module)

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                from noisescope.inject import compiled

                return compiled.before(
                    number, region, name, is_entry, operator or "", loses_rows, args, kwargs
                )
            above = places[-1] if places else None
            if above is not None and above.region == region:
                if region in descending:
                    first_inside.setdefault(region, set()).add(name)
                place: Place | None = Place(region, name, above.rows, above.calls)
            else:
                place = self._next_place(region, name, is_entry, args, kwargs)
            if place is None:
                return None
            if loses_rows and place.rows is not None:
                place.rows = place.rows.mixed()
            place.operator = operator
            places.append(place)
            if len(places) == 1:
                self.listener.enter_region()
            if operator is None:
                return None
            return self.listener.before_module(place, module, (args, kwargs))

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if torch.compiler.is_compiling():
                from noisescope.inject import compiled

                return compiled.after(number, region, name, loses_rows, output)
            descending.discard(region)
            place = places[-1] if places else None
            if place is None or place.module != name or place.region != region:
                return None  # the way in noted no place
            try:
                if operator is None or output is None:
                    return None
                return self.listener.after_module(place, module, output)
            finally:
                places.pop()
                if not places:
                    self.listener.leave_region()

        run_as_is(before, after)
        return before, after

    def _root_hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        number = self._number

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            if torch.compiler.is_compiling():
                from noisescope.inject import compiled

                return compiled.stay_outside(number)
            compiler = set_compiler(None)
            try:
                # The whole module is compiled, or its forward alone.
                is_compiled = compiler is not None or _is_compiled(module.forward)
                if is_compiled and not CAN_COMPILE:
                    raise InputError(
                        f"a compiled model in a session: torch {torch.__version__} lacks what that "
                        "needs; run it without torch.compile, or with torch 2.13."
                    )
                self._enter_root(module, args, kwargs, is_compiled)
            finally:
                set_compiler(compiler)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if torch.compiler.is_compiling():
                return
            self._leave_root(module, args, output)

        run_as_is(before, with_calls=False)
        run_as_is(after)
        return before, after

    def _next_place(
        self, region: str, name: str, is_entry: bool, args: Any, kwargs: Any
    ) -> Place | None:
        """Returns the place of a module that enters its region, or None outside the region."""
        if not self._is_attached:
            return None
        above = self.place
        if is_entry:
            if not is_recomputing():
                self._descending.add(region)
            return Place(region, name, *self._pass_of(region, args, kwargs))
        if above is None and is_recomputing():
            return Place(region, name, *self._second_run_of(region, name, args, kwargs))
        return None

    def _enter_root(self, module: nn.Module, args: Any, kwargs: Any, is_compiled: bool) -> None:
        if not self._is_attached or is_recomputing():
            return
        if module in self._running:
            self._abandon()
        if not self._running:
            self._begin_pass()
        if self.rows is None:
            with torch.no_grad():
                self.rows = self.reader.read(module, args, kwargs)
        self._running.append(module)
        if is_compiled and self._compiled_root is None:
            self._begin_compiled(module)

    def _leave_root(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._running:
            left = self._running[self._running.index(module) :]
            del self._running[self._running.index(module) :]
            if any(root is self._compiled_root for root in left):
                self._end_compiled(is_whole=output is not None)
            self.reader.note_output(output)

    def _begin_compiled(self, model: nn.Module) -> None:
        from noisescope.inject import compiled

        if self.listener.compilable is None:
            raise InputError(
                f"a {type(self.listener).__name__.lower()} follows the model, and the model is "
                "compiled: run it without torch.compile."
            )
        compiled.begin(self.listener.compilable, self._number, model, self.rows)
        self._compiled_root, self._has_compiled = model, True

    def _end_compiled(self, is_whole: bool) -> None:
        from noisescope.inject import compiled

        self._compiled_root = None
        compiled.end(self.listener.compilable, is_whole)

    def _begin_pass(self) -> None:
        if self.rows is not None:
            self.rows.forget_maps()
        self.rows = None
        self._calls = {}
        self.passes += 1

    def _pass_of(self, region: str, args: Any, kwargs: Any) -> tuple[Rows | None, Calls]:
        """Returns rows and counts of this pass; for a checkpoint's second run, of its first."""
        tensors = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        first = next(tensors, None)
        key = (region, -1 if first is None else first.data_ptr())
        if is_recomputing():
            rows, calls = self._held.get(key, (self.rows, {}))
            return rows, dict(calls)
        # Outside every pass (a layer called by itself) each call begins anew.
        calls = self._calls.setdefault(region, {}) if self._running else {}
        if self.rows is not None and torch.is_grad_enabled():
            self._held[key] = (self.rows, dict(calls))
            if len(self._held) > _REMEMBERED_PASSES:
                self._held.popitem(last=False)
        return self.rows, calls

    def _second_run_of(
        self, region: str, name: str, args: Any, kwargs: Any
    ) -> tuple[Rows | None, Calls]:
        """Returns rows and counts where a checkpoint runs a region again past its own hooks.

        Transformers checkpoints a layer's `forward` and not its call. The first module inside then
        begins the second run: it is given the layer's own input, by which the pass is known.
        """
        if region not in self._second_runs or name in self._first_inside.get(region, ()):
            self._second_runs[region] = self._pass_of(region, args, kwargs)
        return self._second_runs[region]

    def _abandon(self) -> None:
        """Ends a pass that an interrupt broke off without calling the hooks on its way."""
        if self.places:
            self.places.clear()
            self.listener.leave_region()
        if self._compiled_root is not None:
            self._end_compiled(is_whole=False)
        self._running.clear()

    def reset(self) -> None:
        """Forgets every place, after an interrupt that no hook saw."""
        if self._compiled_root is not None:
            self._end_compiled(is_whole=False)
        if self._has_compiled:
            from noisescope.inject import compiled

            compiled.forget_passes(self.listener.compilable.perturber)
        self.places.clear()
        self._running.clear()
        self._second_runs.clear()
        self._held.clear()


def is_experts(name: str, module: nn.Module) -> bool:
    """Tells whether a module is the experts of a mixture, where rows lose their sample."""
    return bool(_EXPERTS.search(name)) or type(module).__name__.endswith("Experts")


def _hook(
    module: nn.Module, before: Callable[..., Any], after: Callable[..., Any], stack: ExitStack
) -> None:
    handle = module.register_forward_pre_hook(before, with_kwargs=True)
    stack.callback(handle.remove)
    _rename(handle, module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs)
    # Prepended: of nested sessions the inner one entered last and must leave first.
    handle = module.register_forward_hook(after, always_call=True, prepend=True)
    stack.callback(handle.remove)
    _rename(handle, module._forward_hooks, module._forward_hooks_always_called)
    module._forward_hooks.move_to_end(handle.id, last=False)  # type: ignore[attr-defined]


def _rename(handle: RemovableHandle, hooks: dict[int, Any], marked: dict[int, Any]) -> None:
    """Gives a hook a number that the next session's will have again: graphs are guarded on it."""
    number = next(n for n in itertools.count(-1, -1) if n not in hooks)
    hooks[number], marked[number] = hooks.pop(handle.id), marked.pop(handle.id)
    handle.id = number


def _is_compiled(function: Any) -> bool:
    return hasattr(function, "_torchdynamo_orig_callable")


def _roots(model: nn.Module, regions: Regions) -> list[nn.Module]:
    """Returns the model and every module on the way to its layers: users call these directly."""
    modules = dict(model.named_modules())
    names: dict[str, None] = {"": None}
    for region in regions.all:
        for name, _ in region.modules:
            parts = name.split(".")
            if region.name.isdigit():
                names |= dict.fromkeys(".".join(parts[:n]) for n in range(1, len(parts)))
    found = (modules[name] for name in names)
    return [m for m in found if not isinstance(m, (nn.ModuleList, nn.ModuleDict))]


def entry_modules(root: nn.Module) -> list[nn.Module]:
    """Returns the modules that enter a region: its root, or what is in it where that never runs."""
    if not isinstance(root, (nn.ModuleList, nn.ModuleDict)):
        return [root]
    return [entry for child in root.children() for entry in entry_modules(child)]
