"""A selection: which sites and phases; checked against the model when a session opens."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from noisescope.errors import SelectionError, near_names
from noisescope.inject.operators import check_operators
from noisescope.inject.sites import Site
from noisescope.models import Regions

PHASES = ("forward", "backward")


@dataclass(frozen=True)
class Selection:
    """Which sites are meant; None stands for all.

    Attributes:
        layers: Layer numbers and region names (`embed`, `norm`, `head`).
        operators: Operator names.
        modules: Patterns on dotted module names: a name, its ending (`mlp.down_proj`) or a glob. A
            pattern that names a module selects everything inside it.
        phases: `forward`, `backward` or both.
    """

    layers: tuple[int | str, ...] | None = None
    operators: tuple[str, ...] | None = None
    modules: tuple[str, ...] | None = None
    phases: tuple[str, ...] = ("forward",)

    def includes(self, site: Site) -> bool:
        """Tells whether a site of a selected region is meant."""
        if self.operators is not None and site.operator not in self.operators:
            return False
        return self.modules is None or any(matches(p, site.module) for p in self.modules)


def make_selection(
    layers: int | str | Iterable[int | str] | None = None,
    operators: str | Iterable[str] | None = None,
    modules: str | Iterable[str] | None = None,
    phases: str | Iterable[str] = ("forward",),
) -> Selection:
    """Checks what can be checked without a model and makes the selection.

    Raises:
        SelectionError: An unknown operator or phase, or an empty list (which would select nothing).
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
    )
    for name in ("layers", "operators", "modules", "phases"):
        if getattr(selection, name) == ():
            raise SelectionError(f"{name}=[] selects nothing: name at least one, or leave it out.")
    return selection


def selected_regions(selection: Selection, regions: Regions) -> tuple[str, ...]:
    """Returns the names of the selected regions.

    Raises:
        SelectionError: A layer out of range, or a region that this model does not have.
    """
    names = [region.name for region in regions.all]
    if selection.layers is None:
        return tuple(names)
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


def check_attention(selection: Selection, model: nn.Module, prefixes: Sequence[str]) -> None:
    """Raises SelectionError where attention is selected but runs in kernels that show no operators.

    Fused attention of PyTorch is taken apart; flash and flex kernels cannot be.
    """
    for name, module in model.named_modules():
        kernel = _attention_kernel(module, model)
        if not kernel or not any(is_inside(name, p) for p in prefixes):
            continue
        for operator in ("matmul", "softmax"):
            if selection.includes(Site("", name, operator, 0)):
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


def is_inside(module: str, holder: str) -> bool:
    """Tells whether a name is `holder` or lies inside it; the empty name holds everything."""
    return not holder or module == holder or module.startswith(holder + ".")


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
