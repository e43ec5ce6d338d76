"""The `noisy_ops` interface, a thin face on inject/: its scripts run when their import changes.

It is global by nature: one state, switched on and off. Where the original's behaviour was a defect
ours is right, and the docstring says so. Importing this module reads the `VERL_NOISY_OPS_*`
environment variables.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from noisescope.errors import InputError, SelectionError
from noisescope.inject.dose import Dose, SiteRecord, total_dose
from noisescope.inject.injector import Injector
from noisescope.inject.mode import OperatorMode, remove_mode
from noisescope.inject.operators import CORE_OPERATORS, check_operators
from noisescope.inject.sites import Site
from noisescope.inject.tokens import TokenReader
from noisescope.inject.tracker import Place, Tracker, is_recomputing
from noisescope.models import Region, Regions, find_regions
from noisescope.noise import make_error_model

EXTENDED_OPERATORS = ("softmax", "silu", "gelu", "layer_norm", "rms_norm")
PHASE_LABELS = ("rollout", "actor_forward", "actor_backward", "unknown")
_TRUE = ("1", "true", "yes", "on")
_CALLS_PER_DRAW = 1024


@dataclass
class _Anywhere(Place):
    """The place of operators outside every hooked model: each call is a site of its own.

    The index wraps, so that a long run keeps a bounded number of records; each wrap is another
    draw.
    """

    injector: Injector | None = None

    def next_index(self, operator: str) -> int:
        index = super().next_index(operator)
        if index and index % _CALLS_PER_DRAW == 0 and self.injector is not None:
            self.injector.draw = (self.injector.draw + 1) % 2**32
        return index % _CALLS_PER_DRAW


@dataclass
class _Settings:
    """What `enable_noisy_ops` was last told."""

    error_scale: float = 1e-5
    error_type: str = "relative_gaussian"
    all_ops_mode: bool = False


@dataclass
class _State:
    """The one global state of this interface."""

    enabled: bool = False
    settings: _Settings = field(default_factory=_Settings)
    forward: bool = True
    backward: bool = True
    seed: int = 0
    draw: int = 0
    label: str = "unknown"
    layers: tuple[int, ...] | None = None
    operators: tuple[str, ...] | None = None
    current_layer: int | None = None
    was_layer_set: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    layer_counts: dict[int | str, dict[str, int]] = field(default_factory=dict)
    injector: "_CountingInjector | None" = None
    mode: OperatorMode | None = None
    tracker: "Tracker | None" = None
    hooks: ExitStack = field(default_factory=ExitStack)
    anywhere: _Anywhere | None = None

    @property
    def phases(self) -> tuple[str, ...]:
        switched = {"forward": self.forward, "backward": self.backward}
        return tuple(phase for phase, is_on in switched.items() if is_on)

    def includes(self, site: Site) -> bool:
        """Tells whether a site is selected, by layer and by operator."""
        wanted = CORE_OPERATORS + (EXTENDED_OPERATORS if self.settings.all_ops_mode else ())
        if self.operators is not None:
            wanted = self.operators
        return site.operator in wanted and self.includes_layer(_layer_of(site.region))

    def includes_layer(self, layer: int | None) -> bool:
        """Tells whether a layer is selected; raises where none can be known."""
        if self.layers and layer is None and self.tracker is None and not self.was_layer_set:
            raise SelectionError(
                f"a layer filter {list(self.layers)} is set but no layer is known: call "
                "register_layer_hooks(model) before running the model."
            )
        return self.layers is None or layer in self.layers


class _CountingInjector(Injector):
    """An injector that also keeps the counters of this interface."""

    def note(self, record: SiteRecord, phase: str, counted: Tensor) -> None:
        super().note(record, phase, counted)
        if phase == "forward" and is_recomputing():
            return
        key = f"{_STATE.label.removesuffix('_forward').removesuffix('_backward')}_{phase}"
        layer = _layer_of(record.site.region)
        per_layer = _STATE.layer_counts.setdefault(
            "unknown" if layer is None else layer, {"forward": 0, "backward": 0}
        )
        per_layer[phase] += 1
        _STATE.counts[key] = _STATE.counts.get(key, 0) + 1


class _Listener:
    """Routes a tracked model's modules to whatever injector is switched on now."""

    def enter_region(self) -> None:
        """Nothing to do: the mode is on everywhere."""

    def leave_region(self) -> None:
        """Nothing to do."""

    def before_module(self, place: Place, module: nn.Module, args: Any) -> Any:
        """Notes a module that is an operator as a whole, such as an RMSNorm."""
        if _STATE.injector is None:
            return None
        place.record = _STATE.injector.see(place, str(place.operator))
        if not place.record.is_selected:
            return None
        return _STATE.injector.wrap_inputs(place.record, place.rows, (args, {}), {})[0]

    def after_module(self, place: Place, module: nn.Module, output: Any) -> Any:
        """Adds the error to its output."""
        if _STATE.injector is None or place.record is None or not place.record.is_selected:
            return None
        return _STATE.injector.perturb_output(place.record, place.rows, output, {}, -1)


_STATE = _State()


def _place() -> Place | None:
    if _STATE.injector is None:
        return None
    if _STATE.tracker is not None and _STATE.tracker.place is not None:
        return _STATE.tracker.place
    if _STATE.anywhere is None or _STATE.anywhere.injector is not _STATE.injector:
        _STATE.anywhere = _Anywhere("unknown", "", None, injector=_STATE.injector)
    layer = _STATE.current_layer
    _STATE.anywhere.region = "unknown" if layer is None else str(layer)
    return _STATE.anywhere


def _layer_of(region: str) -> int | None:
    return int(region) if region.isdigit() else None


def _refresh() -> None:
    """Asks again which sites are selected, after a setting changed."""
    if _STATE.injector is not None:
        _STATE.injector.records.clear()
        _STATE.injector.phases = _STATE.phases


# Switching on and off.


def enable_noisy_ops(
    error_scale: float = 1e-5, error_type: str = "relative_gaussian", all_ops_mode: bool = False
) -> None:
    """Switches noise on for every PyTorch operator of this thread, until `disable_noisy_ops`.

    Noise is a function of the tokens and of the place (see `set_noise_seed`), so the global random
    generator is neither used nor disturbed. Every spelling of an operator is covered, fused
    attention too. Calling it again changes the settings; nothing is patched, so nothing can be
    left behind.

    Args:
        error_scale: Standard deviation of the error, relative or absolute by `error_type`.
        error_type: ``"relative_gaussian"`` or ``"absolute_gaussian"``.
        all_ops_mode: Adds softmax, silu, gelu, layer_norm and rms_norm to matmul, bmm and linear.

    Raises:
        InputError: An unknown type, or a scale that is negative, NaN or infinite.
    """
    error_model = make_error_model(error_type, error_scale)
    disable_noisy_ops()
    _STATE.settings = _Settings(error_scale, error_type, all_ops_mode)
    _STATE.counts = {}
    _STATE.injector = _CountingInjector(
        error_model, _STATE.phases, _STATE.includes, _STATE.seed, _STATE.draw
    )
    _STATE.mode = OperatorMode(_STATE.injector, _place)
    _STATE.mode.__enter__()  # type: ignore[no-untyped-call]
    _STATE.enabled = True


def disable_noisy_ops() -> dict[str, int]:
    """Switches noise off and returns the injection counts: `forward`, `backward`, and by phase."""
    if _STATE.mode is not None:
        remove_mode(_STATE.mode)
    _STATE.mode, _STATE.injector, _STATE.enabled = None, None, False
    return _totals() | dict(_STATE.counts)


@contextmanager
def noisy_ops_context(
    error_scale: float = 1e-5, error_type: str = "relative_gaussian", all_ops_mode: bool = False
) -> Iterator[None]:
    """Noise inside the `with` block; afterwards what was before, noise or none. Contexts nest."""
    was_enabled, before = _STATE.enabled, _STATE.settings
    enable_noisy_ops(error_scale, error_type, all_ops_mode)
    try:
        yield
    finally:
        disable_noisy_ops()
        if was_enabled:
            counts = _STATE.counts
            enable_noisy_ops(before.error_scale, before.error_type, before.all_ops_mode)
            _STATE.counts = counts


def set_noise_seed(seed: int = 0, draw: int = 0) -> None:
    """Chooses the realisation: the same tokens under the same seed and draw meet the same noise.

    Give every training step its own draw if repeated samples should meet new noise.
    """
    _STATE.seed, _STATE.draw = seed, draw
    if _STATE.injector is not None:
        _STATE.injector.seed, _STATE.injector.draw = seed, draw
    if _STATE.tracker is not None:
        _STATE.tracker.reader.seed, _STATE.tracker.reader.draw = seed, draw


# Phases.


def set_noise_phases(forward: bool = True, backward: bool = True) -> None:
    """Chooses the passes that receive noise. Backward noise falls on each input's gradient."""
    _STATE.forward, _STATE.backward = bool(forward), bool(backward)
    _refresh()


def get_noise_phases() -> dict[str, bool]:
    """Returns ``{"forward_enabled": ..., "backward_enabled": ...}``."""
    return {"forward_enabled": _STATE.forward, "backward_enabled": _STATE.backward}


def set_phase(phase: str) -> None:
    """Sets the label under which injections are counted: one of `PHASE_LABELS`."""
    if phase not in PHASE_LABELS:
        raise InputError(f"phase {phase!r}: accepted are {', '.join(PHASE_LABELS)}.")
    _STATE.label = phase


def get_phase() -> str:
    """Returns the label."""
    return _STATE.label


# Selecting.


def set_selective_layers(layers: Sequence[int] | None) -> None:
    """Selects layers: None all, an empty list none, ``[0, 5]`` those alone.

    Embedding, final norm and head belong to no layer. A filter while no layer can be known (no
    hooks, no `set_current_layer`) is an error at the first operator; the original then perturbed
    everything. Backward noise obeys the filter, which it did not there.
    """
    _STATE.layers = None if layers is None else tuple(int(layer) for layer in layers)
    _refresh()


def get_selective_layers() -> list[int] | None:
    """Returns the selected layers, or None for all."""
    return None if _STATE.layers is None else list(_STATE.layers)


def set_layer_window(start: int, end: int) -> None:
    """Selects layers start..end-1.

    Raises:
        InputError: The window is empty or negative.
    """
    if not 0 <= start < end:
        raise InputError(f"layer window {start}..{end}: 0 <= start < end is needed.")
    set_selective_layers(range(start, end))


def set_selective_operators(operators: Sequence[str] | None) -> None:
    """Selects operators: None by the mode, an empty list none, ``["softmax"]`` that alone.

    Raises:
        SelectionError: An unknown name (a `ValueError`, as in the original).
    """
    _STATE.operators = check_operators(operators)
    _refresh()


def get_selective_operators() -> list[str] | None:
    """Returns the selected operators, or None."""
    return None if _STATE.operators is None else list(_STATE.operators)


def should_inject_for_layer(layer: int | None = None) -> bool:
    """Tells whether a layer (by default the current one) is selected."""
    wanted = get_current_layer() if layer is None else layer
    return _STATE.layers is None or wanted in _STATE.layers


def should_inject_for_operator(operator: str) -> bool:
    """Tells whether an operator is selected.

    Raises:
        SelectionError: An unknown name.
    """
    check_operators(operator)
    if _STATE.operators is not None:
        return operator in _STATE.operators
    return operator in CORE_OPERATORS or (
        _STATE.settings.all_ops_mode and operator in EXTENDED_OPERATORS
    )


# Layers.


def register_layer_hooks(model: nn.Module, layer_pattern: str = ".layers.") -> int:
    """Follows a model, so that every operator knows its layer; returns the number of layers.

    Works for every family that `noisescope` knows, whatever the pattern, and on a bare backbone;
    the pattern finds the layers of other models. Registering again replaces the hooks.

    Raises:
        SelectionError: No layers were found.
    """
    regions = find_regions(model)
    if not regions.n_layers:
        regions = _regions_by_pattern(model, layer_pattern)
    remove_layer_hooks()
    tracker = Tracker(_Listener(), TokenReader(_STATE.seed, _STATE.draw))
    with ExitStack() as stack:
        tracker.attach(model, regions, [r.name for r in regions.all], stack)
        _STATE.hooks = stack.pop_all()
    _STATE.tracker = tracker
    return regions.n_layers


def remove_layer_hooks() -> None:
    """Takes the hooks away again; the original threw their handles away."""
    _STATE.hooks.close()
    _STATE.tracker = None


def set_current_layer(layer: int | None) -> None:
    """Names the layer of the operators to come, where no hooks do."""
    _STATE.current_layer = layer
    _STATE.was_layer_set = _STATE.was_layer_set or layer is not None


def get_current_layer() -> int | None:
    """Returns the layer that runs now, or None outside every layer."""
    tracked = _STATE.tracker.place if _STATE.tracker is not None else None
    return _STATE.current_layer if tracked is None else _layer_of(tracked.region)


def _regions_by_pattern(model: nn.Module, pattern: str) -> Regions:
    numbered = re.compile(re.escape(pattern.rstrip(".")) + r"\.(\d+)$")
    found = [
        (int(match.group(1)), name, module)
        for name, module in model.named_modules()
        if (match := numbered.search(f".{name}"))
    ]
    if not found:
        raise SelectionError(
            f"no layers match {pattern!r} in {type(model).__name__}: give the pattern of its layer "
            "list, such as '.blocks.', or use noisescope.register_family."
        )
    regions = tuple(
        Region(str(n), ((name, module),)) for n, name, module in sorted(found, key=lambda f: f[0])
    )
    return Regions(all=regions, n_layers=len(regions), family="")


# Counting.


def get_injection_stats() -> dict[str, Any]:
    """Returns the settings and the counts."""
    totals = _totals()
    return {
        "enabled": _STATE.enabled,
        "error_scale": _STATE.settings.error_scale,
        "error_type": _STATE.settings.error_type,
        "current_phase": _STATE.label,
        **get_noise_phases(),
        "counts": dict(_STATE.counts),
        "total_forward": totals["forward"],
        "total_backward": totals["backward"],
    }


def get_layer_injection_stats() -> dict[int | str, dict[str, int]]:
    """Returns ``{layer or "unknown": {"forward": n, "backward": n}}``.

    Everything outside the layers (embedding, final norm, head) is "unknown", never the last layer.
    """
    return {layer: dict(counts) for layer, counts in _STATE.layer_counts.items()}


def get_injection_dose(phase: str = "forward") -> Dose:
    """Returns what really arrived since noise was enabled or a selection last changed."""
    records = list(_STATE.injector.records.values()) if _STATE.injector else []
    return total_dose(records, phase)


def reset_injection_stats() -> None:
    """Sets the counts to zero."""
    _STATE.counts = {}


def reset_layer_injection_stats() -> None:
    """Sets the counts per layer to zero."""
    _STATE.layer_counts = {}


def print_injection_summary() -> None:
    """Prints the counts by phase and by layer."""
    stats = get_injection_stats()
    print(f"noise: {stats['error_type']} {stats['error_scale']:g}, enabled: {stats['enabled']}")
    for key, count in sorted(stats["counts"].items()):
        print(f"  {key:>18}: {count:,}")
    if not stats["counts"]:
        print("  no injections recorded yet")
    for layer, counts in sorted(
        _STATE.layer_counts.items(), key=lambda item: str(item[0]).zfill(9)
    ):
        print(
            f"  layer {layer!s:>8}: forward {counts['forward']:,}, backward {counts['backward']:,}"
        )


def _totals() -> dict[str, int]:
    return {
        phase: sum(n for key, n in _STATE.counts.items() if key.endswith(f"_{phase}"))
        for phase in ("forward", "backward")
    }


# The environment.


def _is_set(name: str) -> bool:
    return os.environ.get(f"VERL_NOISY_OPS_{name}", "").strip().lower() in _TRUE


def _enable_from_environment() -> None:
    """Reads `VERL_NOISY_OPS_ENABLED, _SCALE, _TYPE, _ALL_OPS, _FORWARD_ONLY, _BACKWARD_ONLY`.

    Both `_ONLY` flags together mean both phases. With `_TRAINING_ONLY` noise is left to the
    trainer, which enables it around its steps.
    """
    if not _is_set("ENABLED"):
        return
    forward_only, backward_only = _is_set("FORWARD_ONLY"), _is_set("BACKWARD_ONLY")
    if forward_only != backward_only:
        set_noise_phases(forward=forward_only, backward=backward_only)
    if _is_set("TRAINING_ONLY"):
        return
    text = os.environ.get("VERL_NOISY_OPS_SCALE", "1e-4")
    try:
        scale = float(text)
    except ValueError:
        raise InputError(
            f"VERL_NOISY_OPS_SCALE={text!r}: a number is needed, such as 1e-4."
        ) from None
    error_type = os.environ.get("VERL_NOISY_OPS_TYPE", "relative_gaussian")
    enable_noisy_ops(scale, error_type, all_ops_mode=_is_set("ALL_OPS"))


_enable_from_environment()
