"""Layers: registered models tell in which layer each operator runs.

Several models may be registered, such as an actor and its reference; none is kept alive by it.
"""

import re
from contextlib import ExitStack
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.overrides import _get_current_function_mode_stack

from noisescope.errors import InputError, SelectionError
from noisescope.inject.mode import OperatorMode, remove_mode
from noisescope.inject.tokens import TokenReader
from noisescope.inject.tracker import Place, Tracker
from noisescope.models import Region, Regions, find_regions
from noisescope.noisy_ops.state import STATE, Registration, layer_of


class _Listener:
    """Routes one model's modules to whatever injector is switched on now."""

    def __init__(self, model: nn.Module) -> None:
        self.tracker = Tracker(self, TokenReader(STATE.seed, STATE.draw))
        self._modules = WeakSet(model.modules())
        self._lent: OperatorMode | None = None

    compilable = None

    def enter_region(self) -> None:
        """Notes that this model runs; lends the mode to a thread that does not have it."""
        STATE.active.append(self.tracker)
        mode = STATE.mode
        if mode is not None and not any(m is mode for m in _get_current_function_mode_stack()):
            mode.__enter__()  # type: ignore[no-untyped-call]
            self._lent = mode

    def leave_region(self) -> None:
        """Undoes that."""
        if self.tracker in STATE.active:
            STATE.active.remove(self.tracker)
        if self._lent is not None:
            remove_mode(self._lent)
            self._lent = None

    def before_module(self, place: Place, module: nn.Module, args: Any) -> Any:
        """Notes a module that is an operator as a whole, such as an RMSNorm."""
        # A deep copy of the model brings these hooks along; its own see to it.
        if STATE.injector is None or module not in self._modules:
            return None
        place.record = STATE.injector.see(place, str(place.operator))
        if not place.record.is_selected:
            return None
        return STATE.injector.wrap_inputs(place.record, place.rows, (args, {}), {})[0]

    def after_module(self, place: Place, module: nn.Module, output: Any) -> Any:
        """Adds the error to its output."""
        if STATE.injector is None or place.record is None or not place.record.is_selected:
            return None
        return STATE.injector.perturb_output(place.record, place.rows, output, {}, -1)


def register_layer_hooks(model: nn.Module, layer_pattern: str = ".layers.") -> int:
    """Follows a model, so that every operator knows its layer; returns the number of layers.

    Works for every family that `noisescope` knows, whatever the pattern, and on a bare backbone;
    the pattern finds the layers of other models. A second model is followed beside the first; a
    model that is registered again, alone or inside another, has its hooks replaced.

    Args:
        model: The model; it is not kept alive.
        layer_pattern: Name of the list of layers between dots, such as ``".blocks."``.

    Raises:
        InputError: Not a module.
        SelectionError: No layers were found.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model {type(model).__name__}: a torch.nn.Module is needed.")
    regions = _find_regions(model, layer_pattern)
    modules = {m for region in regions.all for _, m in region.modules}
    for other, known in list(STATE.models.items()):
        if other is model or not modules.isdisjoint(known.modules):
            remove_layer_hooks(other)
    tracker = _Listener(model).tracker
    with ExitStack() as stack:
        tracker.attach(model, regions, [r.name for r in regions.all], stack)
        hooks = stack.pop_all()
    STATE.models[model] = Registration(tracker, hooks, WeakSet(modules), regions.n_layers)
    return regions.n_layers


def remove_layer_hooks(model: nn.Module | None = None) -> None:
    """Takes the hooks of a model, by default of all models, away again.

    The original threw their handles away. A model that has no hooks is left as it is.
    """
    for known in list(STATE.models) if model is None else [model]:
        registration = STATE.models.pop(known, None)
        if registration is not None:
            registration.hooks.close()
            registration.tracker.reset()
            registration.tracker.listener.leave_region()


def set_current_layer(layer_id: int | None) -> None:
    """Names the layer of the operators to come, where no hooks do; None: outside every layer."""
    STATE.current_layer = layer_id
    STATE.was_layer_named = STATE.was_layer_named or layer_id is not None


def get_current_layer() -> int | None:
    """Returns the layer that runs now, or None outside every layer."""
    tracked = STATE.active[-1].place if STATE.active else None
    return STATE.current_layer if tracked is None else layer_of(tracked.region)


def _find_regions(model: nn.Module, pattern: str) -> Regions:
    """Finds the layers of a known family, or else of the pattern."""
    try:
        regions = find_regions(model)
    except SelectionError:
        if (matched := _match_pattern(model, pattern)) is None:
            raise
        return matched
    if regions.n_layers:
        return regions
    if (matched := _match_pattern(model, pattern)) is not None:
        return matched
    raise SelectionError(
        f"no layers match {pattern!r} in {type(model).__name__}: give the pattern of its layer "
        "list, such as '.blocks.', or use noisescope.register_family."
    )


def _match_pattern(model: nn.Module, pattern: str) -> Regions | None:
    """Returns a region per number; modules of several towers share theirs."""
    numbered = re.compile(rf"\.{re.escape(pattern.strip('.'))}\.(\d+)$")
    layers: dict[int, list[tuple[str, nn.Module]]] = {}
    names: list[str] = []
    for name, module in model.named_modules():
        match = numbered.search(f".{name}")
        if match and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
            layers.setdefault(int(match.group(1)), []).append((name, module))
    regions = tuple(Region(str(n), tuple(found)) for n, found in sorted(layers.items()))
    return Regions(regions, len(regions), "") if regions else None
