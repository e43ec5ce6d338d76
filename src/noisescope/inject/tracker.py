"""Follows a model into its regions and modules, by hooks that are all taken away again.

The innermost module and the count of calls give every operator its site. Gradient checkpointing
runs layers a second time during the backward pass: they meet the rows, and so the noise, of their
first run.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from noisescope.inject.dose import SiteRecord
from noisescope.inject.operators import module_operator
from noisescope.inject.rows import Rows
from noisescope.inject.tokens import TokenReader
from noisescope.models import Regions

_REMEMBERED_PASSES = 4096


@dataclass
class Place:
    """Where the model is: region, module, and how often each operator ran there in this pass."""

    region: str
    module: str
    rows: Rows | None
    calls: dict[tuple[str, str], int] = field(default_factory=dict)
    operator: str | None = None  # set while a module that is an operator as a whole runs
    record: SiteRecord | None = None  # of that operator

    def next_index(self, operator: str) -> int:
        """Counts a call of an operator in this module and returns its index."""
        key = (self.module, operator)
        index = self.calls.get(key, 0)
        self.calls[key] = index + 1
        return index


class Listener(Protocol):
    """What a tracker calls; an injector is one."""

    def enter_region(self) -> None:
        """Called before a region's module runs."""

    def leave_region(self) -> None:
        """Called after it ran, or raised."""

    def before_module(self, place: Place, module: nn.Module, args: Any) -> Any:
        """Called before a module that is an operator; may return other arguments."""

    def after_module(self, place: Place, module: nn.Module, output: Any) -> Any:
        """Called after it; may return another output."""


def is_recomputing() -> bool:
    """Tells whether a backward pass runs now: a forward call is then a checkpoint's second one."""
    return torch._C._current_graph_task_id() != -1


class Tracker:
    """Keeps the stack of places while it is attached to a model."""

    def __init__(self, listener: Listener, reader: TokenReader) -> None:
        self.listener = listener
        self.reader = reader
        self.places: list[Place] = []
        self.passes = 0
        self.rows: Rows | None = None
        self._root_depth = 0
        self._held: OrderedDict[tuple[str, int], Rows] = OrderedDict()

    @property
    def place(self) -> Place | None:
        """The innermost place, or None outside every tracked region."""
        return self.places[-1] if self.places else None

    def attach(
        self, model: nn.Module, regions: Regions, names: Sequence[str], stack: ExitStack
    ) -> None:
        """Registers the hooks; `stack` removes them, also when attaching fails half way."""
        roots = [m for m in _roots(model) if m is not None]
        for root in roots:
            stack.callback(
                root.register_forward_pre_hook(self._enter_root, with_kwargs=True).remove
            )
            stack.callback(
                root.register_forward_hook(self._leave_root, always_call=True, prepend=True).remove
            )
        for region in regions.all:
            if region.name in names:
                for holder, module in region.modules:
                    self._attach_region(region.name, holder, module, stack)

    def _attach_region(self, region: str, holder: str, root: nn.Module, stack: ExitStack) -> None:
        for name, module in root.named_modules():
            full = ".".join(p for p in (holder, name) if p)
            before, after = self._hooks(region, full, module, is_root=module is root)
            stack.callback(module.register_forward_pre_hook(before).remove)
            # Prepended: of nested sessions the inner one entered last and must leave first.
            stack.callback(
                module.register_forward_hook(after, always_call=True, prepend=True).remove
            )

    def _hooks(
        self, region: str, name: str, module: nn.Module, is_root: bool
    ) -> tuple[Callable[..., Any], Callable[..., Any]]:
        operator = module_operator(module)

        def before(module: nn.Module, args: Any) -> Any:
            if is_root:
                self.places.append(Place(region, name, self._rows_for(region, args)))
                self.listener.enter_region()
            else:
                above = self.places[-1]
                self.places.append(Place(region, name, above.rows, above.calls))
            if operator is None:
                return None
            self.places[-1].operator = operator
            return self.listener.before_module(self.places[-1], module, args)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            if not self.places or self.places[-1].module != name:
                return None  # the way in raised before this place was noted
            place = self.places[-1]
            try:
                if operator is None or output is None:
                    return None
                return self.listener.after_module(place, module, output)
            finally:
                self.places.pop()
                if is_root:
                    self.listener.leave_region()

        return before, after

    def _enter_root(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._root_depth += 1
        if self._root_depth == 1 and not is_recomputing():
            with torch.no_grad():
                self.rows = self.reader.read(module, args, kwargs)
            self.passes += 1

    def _leave_root(self, module: nn.Module, args: Any, output: Any) -> None:
        self._root_depth = max(0, self._root_depth - 1)

    def _rows_for(self, region: str, args: Any) -> Rows | None:
        """Returns the rows of this pass; for a checkpoint's second run, those of its first."""
        first = next((a for a in args if isinstance(a, Tensor)), None)
        key = (region, first.data_ptr()) if first is not None else None
        if is_recomputing():
            return self._held.get(key, self.rows) if key else self.rows
        if key and self.rows is not None:
            self._held[key] = self.rows
            if len(self._held) > _REMEMBERED_PASSES:
                self._held.popitem(last=False)
        return self.rows

    def reset(self) -> None:
        """Forgets every place, after an interrupt that no hook saw."""
        while self.places:
            self.places.pop()
        self._root_depth = 0
        self._held.clear()


def _roots(model: nn.Module) -> list[nn.Module | None]:
    """Returns the model and the backbone inside it, which users sometimes call directly."""
    backbone = getattr(model, "base_model", None)
    return [model, backbone if isinstance(backbone, nn.Module) and backbone is not model else None]
