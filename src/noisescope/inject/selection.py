"""A selection: which sites, phases, channels and positions; checked against the model later.

What needs no model is checked when a selection is made, the rest when a session opens.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from noisescope.errors import SelectionError, near_names
from noisescope.inject.elements import Elements, as_indices, check_indices
from noisescope.inject.operators import check_operators
from noisescope.inject.site_names import (
    call_of,
    check_modules_exist,
    check_names,
    is_inside,
    is_named,
    regions_that_hold,
)
from noisescope.inject.sites import Site
from noisescope.models import Regions

PHASES = ("forward", "backward")
_ELEMENT_FIELDS = ("channels", "without_channels", "positions")


@dataclass(frozen=True)
class Selection:
    """Which sites are meant; None stands for all.

    Attributes:
        layers: Layer numbers and region names (`embed`, `norm`, `head`).
        operators: Operator names.
        modules: Patterns on dotted module names: a name, its ending (`mlp.down_proj`) or a glob. A
            pattern that names a module selects everything inside it.
        phases: `forward`, `backward` or both.
        sites: Names of sites: `module:operator`, all calls, or `module:operator:index`, one.
        without: Sites that are left out, named in the same way.
        channels: Channels of a site's output that get noise. Where heads have an axis of their own
            a head's first channel is its number times its width; over keys the head is the channel.
        without_channels: Channels that get none.
        positions: Tokens that get noise, by their index within their sample, padding not counted;
            of scores and probabilities, those of the query.
    """

    layers: tuple[int | str, ...] | None = None
    operators: tuple[str, ...] | None = None
    modules: tuple[str, ...] | None = None
    phases: tuple[str, ...] = ("forward",)
    sites: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    channels: tuple[int, ...] | None = None
    without_channels: tuple[int, ...] = ()
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_names(self.sites or (), self.without)
        for name in _ELEMENT_FIELDS:
            check_indices(name, getattr(self, name) or ())
        if self.channels is not None and self.without_channels:
            raise SelectionError(
                "channels and without_channels are both given: name the channels that get noise, "
                "or those that do not."
            )
        given = [name for name in _ELEMENT_FIELDS if getattr(self, name) not in (None, ())]
        if given and "backward" in self.phases:
            raise SelectionError(
                f"{' and '.join(given)} with backward noise: only forward noise can be restricted; "
                f"leave phases at ('forward',), or leave {' and '.join(given)} out."
            )

    @property
    def elements(self) -> Elements | None:
        """Which elements of an output are meant; None: all."""
        if self.channels is None and not self.without_channels and self.positions is None:
            return None
        return Elements(self.channels, self.without_channels, self.positions)

    def includes(self, site: Site) -> bool:
        """Tells whether a site of a selected region is meant."""
        if not self.touches(site.module, site.operator):
            return False
        is_chosen = self.sites is None or is_named(site.name, self.sites)
        return is_chosen and site.name not in self.without

    def touches(self, module: str, operator: str) -> bool:
        """Tells whether any call of an operator in a module of a selected region can be meant."""
        if self.operators is not None and operator not in self.operators:
            return False
        if self.modules is not None and not any(matches(p, module) for p in self.modules):
            return False
        call = call_of(module, operator)
        if call in self.without:
            return False
        return self.sites is None or any(call in (s, s.rpartition(":")[0]) for s in self.sites)


def make_selection(
    layers: int | str | Iterable[int | str] | None = None,
    operators: str | Iterable[str] | None = None,
    modules: str | Iterable[str] | None = None,
    phases: str | Iterable[str] = ("forward",),
    *,
    sites: str | Iterable[str] | None = None,
    without: str | Iterable[str] = (),
    channels: int | Iterable[int] | None = None,
    without_channels: int | Iterable[int] = (),
    positions: int | Iterable[int] | None = None,
) -> Selection:
    """Checks what can be checked without a model and makes the selection.

    The arguments are the attributes of a `Selection`; what is selected is what all of them allow.

    Raises:
        SelectionError: An unknown operator or phase, a name that is no site's, a channel that
            cannot be, or an empty list (which would select nothing).
    """
    phase_names = (phases,) if isinstance(phases, str) else tuple(phases)
    for phase in phase_names:
        if phase not in PHASES:
            raise SelectionError(f"unknown phase {phase!r}: accepted are {' and '.join(PHASES)}.")
    selection = Selection(
        layers=_as_tuple(layers),
        operators=check_operators(operators),
        modules=_as_tuple(modules),
        phases=tuple(dict.fromkeys(phase_names)),
        sites=_as_tuple(sites),
        without=_as_tuple(without) or (),
        channels=as_indices("channels", channels),
        without_channels=as_indices("without_channels", without_channels) or (),
        positions=as_indices("positions", positions),
    )
    for name in ("layers", "operators", "modules", "phases", "sites", "channels", "positions"):
        if getattr(selection, name) == ():
            raise SelectionError(f"{name}=[] selects nothing: name at least one, or leave it out.")
    return selection


def selected_regions(selection: Selection, regions: Regions) -> tuple[str, ...]:
    """Returns the names of the selected regions; without layers, of those that hold named sites.

    Raises:
        SelectionError: A layer out of range, or a region that this model does not have.
    """
    names = [region.name for region in regions.all]
    if selection.layers is None:
        sites = selection.sites
        return tuple(names) if sites is None else regions_that_hold(sites, regions)
    return tuple(dict.fromkeys(_region_name(layer, names, regions) for layer in selection.layers))


def check_modules(selection: Selection, model: nn.Module, prefixes: Sequence[str]) -> None:
    """Raises SelectionError for a module pattern that matches nothing in the selected regions."""
    names = [n for n, _ in model.named_modules() if any(is_inside(n, p) for p in prefixes)]
    for pattern in selection.modules or ():
        if not any(matches(pattern, name) for name in names):
            endings = {".".join(n.split(".")[-k:]) for n in names for k in (1, 2)} | set(names)
            raise SelectionError(
                f"no module matches {pattern!r} in the selected layers"
                f"{near_names(pattern, endings) or '.'} List them with 'noisescope sites MODEL'."
            )


def check_sites(selection: Selection, model: nn.Module, regions: Regions) -> None:
    """Raises SelectionError for a named site whose module is not there.

    What is selected must lie in the selected layers; what is left out, anywhere in the model.
    """
    if selection.sites is None and not selection.without:
        return
    chosen = selected_regions(replace(selection, sites=None), regions)
    holders = [holder for name in chosen for holder, _ in regions.named(name).modules]
    names = [name for name, _ in model.named_modules()]
    inside = [name for name in names if any(is_inside(name, holder) for holder in holders)]
    check_modules_exist(selection.sites or (), inside, "the selected layers")
    check_modules_exist(selection.without, names, "the model")


def check_attention(selection: Selection, model: nn.Module, prefixes: Sequence[str]) -> None:
    """Raises SelectionError where attention is selected but runs in kernels that show no operators.

    Fused attention of PyTorch is taken apart; flash and flex kernels cannot be.
    """
    for name, module in model.named_modules():
        kernel = _attention_kernel(module, model)
        if not kernel or not any(is_inside(name, p) for p in prefixes):
            continue
        for operator in ("matmul", "softmax"):
            if selection.touches(name, operator):
                raise SelectionError(
                    f"{operator} is selected in {name}, but attention runs as {kernel!r}, "
                    "which shows no operators: load the model with "
                    "attn_implementation='sdpa', or select other operators."
                )


def _attention_kernel(module: nn.Module, model: nn.Module) -> str:
    """Returns the name of the kernel of an attention module that shows no operators, else ''."""
    if "Attention" not in type(module).__name__:
        return ""
    config = getattr(module, "config", None) or getattr(model, "config", None)
    kernel = str(getattr(config, "_attn_implementation", ""))
    return kernel if "flash" in kernel or "flex" in kernel else ""


def matches(pattern: str, module: str) -> bool:
    """Tells whether a pattern names this module or one that holds it."""
    parts = module.split(".")
    holders = (".".join(parts[:k]) for k in range(len(parts), 0, -1))
    return any(
        h == pattern or h.endswith("." + pattern) or fnmatch.fnmatchcase(h, pattern)
        for h in holders
    )


def _region_name(layer: int | str, names: list[str], regions: Regions) -> str:
    name = str(layer)
    if name in names and not isinstance(layer, bool):
        return name
    if not regions.n_layers:
        raise SelectionError(
            f"no layer {layer!r}: no layers are known for this model. "
            "Name them once with noisescope.register_family(model_type, layers=...)."
        )
    others = [n for n in names if not n.isdigit()]
    raise SelectionError(
        f"no layer {layer}: this model has layers 0 to {regions.n_layers - 1}"
        f"{' and ' + ', '.join(others) if others else ''}. "
        "List them with 'noisescope sites MODEL'."
    )


def _as_tuple(values: Any) -> tuple[Any, ...] | None:
    if values is None:
        return None
    if isinstance(values, (str, int)):
        return (values,)
    if not isinstance(values, Iterable):
        raise SelectionError(f"{values!r} selects nothing: give a name, a number, or a list.")
    return tuple(dict.fromkeys(values))
