"""The one global state of this interface: what is selected, counted and registered.

The interface is global by nature; everything global is here, so that one name holds it all.
"""

from collections.abc import MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from noisescope.errors import SelectionError
from noisescope.inject.injector import Injector
from noisescope.inject.mode import OperatorMode
from noisescope.inject.operators import CORE_OPERATORS
from noisescope.inject.sites import Site
from noisescope.inject.tracker import Tracker

EXTENDED_OPERATORS = ("softmax", "silu", "gelu", "layer_norm", "rms_norm")
PHASE_LABELS = ("rollout", "actor_forward", "actor_backward", "unknown")
_COUNTED = ("rollout", "actor", "unknown")


def zero_counts() -> dict[str, int]:
    """Returns the counters of every label and phase at zero."""
    return {f"{label}_{phase}": 0 for label in _COUNTED for phase in ("forward", "backward")}


@dataclass(frozen=True)
class Settings:
    """What `enable_noisy_ops` was last told."""

    error_scale: float = 1e-5
    error_type: str = "relative_gaussian"
    all_ops_mode: bool = False


@dataclass(frozen=True)
class Wish:
    """What is selected now; None stands for all layers, and for the operators of the mode."""

    layers: tuple[int, ...] | None
    operators: tuple[str, ...] | None
    phases: tuple[str, ...]

    @property
    def is_for_all(self) -> bool:
        """Whether nothing was left out on purpose."""
        return self.layers is None and self.operators is None and len(self.phases) == 2

    @property
    def is_for_none(self) -> bool:
        """Whether nothing was asked for, so that nothing happening is right."""
        return self.layers == () or self.operators == () or not self.phases

    def __str__(self) -> str:
        layers = "all" if self.layers is None else list(self.layers)
        operators = "by the mode" if self.operators is None else ", ".join(self.operators)
        return f"layers {layers}, operators {operators}, phases {' and '.join(self.phases)}"


@dataclass
class Registration:
    """The hooks of one registered model. It holds no module strongly."""

    tracker: Tracker
    hooks: ExitStack
    modules: "WeakSet[nn.Module]"
    n_layers: int


@dataclass
class State:
    """Everything global. `injector` and `mode` are None while noise is off."""

    settings: Settings = field(default_factory=Settings)
    forward: bool = True
    backward: bool = True
    seed: int = 0
    draw: int = 0
    layers: tuple[int, ...] | None = None
    operators: tuple[str, ...] | None = None
    current_layer: int | None = None
    was_layer_named: bool = False
    label: str = "unknown"
    counts: dict[str, int] = field(default_factory=zero_counts)
    layer_counts: dict[int | str, dict[str, int]] = field(default_factory=dict)
    injector: Injector | None = None
    mode: OperatorMode | None = None
    models: MutableMapping[nn.Module, Registration] = field(default_factory=WeakKeyDictionary)
    active: list[Tracker] = field(default_factory=list)  # of the models that run now

    def wish(self) -> Wish:
        """Returns what is selected now."""
        switched = {"forward": self.forward, "backward": self.backward}
        phases = tuple(phase for phase, is_on in switched.items() if is_on)
        return Wish(self.layers, self.operators, phases)

    def wants_operator(self, operator: str) -> bool:
        """Tells whether an operator is selected: by name, or else by the mode."""
        if self.operators is not None:
            return operator in self.operators
        extended = EXTENDED_OPERATORS if self.settings.all_ops_mode else ()
        return operator in CORE_OPERATORS + extended

    def includes(self, site: Site) -> bool:
        """Tells whether a site is selected; raises where no layer of the filter can be known."""
        if not self.wants_operator(site.operator):
            return False
        if self.layers and not self.was_layer_named:
            self._check_layers(self.layers)
        return self.layers is None or layer_of(site.region) in self.layers

    def _check_layers(self, layers: tuple[int, ...]) -> None:
        if not self.models:
            raise SelectionError(
                f"a layer filter {list(layers)} is set but no layer is known: call "
                "register_layer_hooks(model) before running the model."
            )
        last = max(known.n_layers for known in self.models.values()) - 1
        if not any(0 <= layer <= last for layer in layers):
            raise SelectionError(
                f"the layer filter {list(layers)} names no layer: the registered model has layers "
                f"0 to {last}. Change it with set_selective_layers."
            )


def layer_of(region: str) -> int | None:
    """Returns the number of a layer; None for the regions outside the layers."""
    return int(region) if region.isdigit() else None


STATE = State()
