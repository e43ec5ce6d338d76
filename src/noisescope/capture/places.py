"""Which modules are captured: those that patterns name, or the output projections of every layer.

Output projections are told by their names and widths, since modules are not always declared in the
order they run. Where layers are is known to models.find_regions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from noisescope.errors import SelectionError, near_names
from noisescope.inject.selection import matches
from noisescope.inject.tracker import is_experts
from noisescope.models import find_regions

DEFAULT_PATTERNS = ("self_attn.o_proj", "mlp.down_proj")

_LISTS = (nn.ModuleList, nn.ModuleDict)  # hold modules and never run
_WRITERS = frozenset(
    "o_proj out_proj c_proj dense wo o out proj "
    "down_proj dense_4h_to_h fc2 fc_out w2 output_linear linear2 lin2".split()
)


def find_places(model: nn.Module, patterns: str | Iterable[str] | None) -> dict[str, nn.Module]:
    """Returns the modules to capture under their dotted names, in the model's order.

    Args:
        model: Any module.
        patterns: Names, endings of names or globs; of modules within each other that one pattern
            matches, the outermost. None: `output_projections`.

    Raises:
        SelectionError: A pattern matches no module, or there is no pattern.
    """
    if patterns is None:
        return output_projections(model)
    given = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not given:
        raise SelectionError("layer_patterns=[] captures nothing: name a module, or give None.")
    runnable = {n: m for n, m in model.named_modules() if n and not isinstance(m, _LISTS)}
    chosen = {name for pattern in given for name in _outermost(pattern, runnable)}
    return {name: module for name, module in runnable.items() if name in chosen}


def _outermost(pattern: Any, modules: Mapping[str, nn.Module]) -> list[str]:
    hits = [n for n in modules if isinstance(pattern, str) and matches(pattern, n)]
    if not hits:
        endings = {".".join(n.split(".")[-k:]) for n in modules for k in (1, 2)} | set(modules)
        raise SelectionError(
            f"no module matches {pattern!r} in this model"
            f"{near_names(str(pattern), endings) or '.'} layer_patterns=None captures the output "
            "projections of any family; list modules with 'noisescope sites MODEL'."
        )
    known = set(hits)
    return [n for n in hits if known.isdisjoint(holders(n))]


def holders(name: str) -> list[str]:
    """Returns the names of the modules that hold a module, the model's own ('') first."""
    parts = name.split(".")
    return [".".join(parts[:k]) for k in range(len(parts))]


def output_projections(model: nn.Module) -> dict[str, nn.Module]:
    """Returns what attention and MLP of every layer add to the residual stream, in any family.

    Of every block of a layer (and of the linear maps that stand in the layer itself, as OPT's) it
    is the linear map of the hidden width with a customary name (``o_proj``, ``c_proj``, ``fc2``),
    or else the last one of that width. Of a mixture it is the whole block: its experts see parts of
    the tokens, and their sum is what the layer adds.

    Raises:
        SelectionError: No layers are known for this model, or none holds such a map.
    """
    width = _hidden_width(model)
    layers = [r for r in find_regions(model).all if r.name.isdigit()]
    places: dict[str, nn.Module] = {}
    for name, layer in (pair for region in layers for pair in region.modules):
        for inner, module in _of_layer(layer, width):
            places[f"{name}.{inner}"] = module
    if not places:
        raise SelectionError(
            f"no output projections found in the {len(layers)} known layers of this model: name "
            "the modules in layer_patterns, or its layers once with "
            "noisescope.register_family(model_type, layers=...)."
        )
    return places


def _of_layer(layer: nn.Module, width: int | None) -> Iterable[tuple[str, nn.Module]]:
    for name, block in layer.named_children():
        if _out_width(block) is not None:
            continue
        if any(is_experts(inner, module) for inner, module in block.named_modules()):
            yield name, block
        else:
            yield from _writer(_linear_maps(name, block), width)
    direct = [(n, m) for n, m in layer.named_children() if _out_width(m) is not None]
    yield from _writer(direct, width)


def _linear_maps(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the outermost linear maps inside: an adapter's own maps lie in the one it adapts."""
    if _out_width(module) is not None:
        return [(name, module)]
    found = [_linear_maps(f"{name}.{inner}", child) for inner, child in module.named_children()]
    return [pair for pairs in found for pair in pairs]


def _writer(maps: list[tuple[str, nn.Module]], width: int | None) -> list[tuple[str, nn.Module]]:
    """Returns the one map that writes the output, in a list, or an empty list."""
    fitting = [(n, m) for n, m in maps if width is None or _out_width(m) == width]
    customary = [(n, m) for n, m in fitting if n.rpartition(".")[2] in _WRITERS]
    return (customary or fitting)[-1:]


def _out_width(module: nn.Module) -> int | None:
    """Returns the channels that a linear map writes; `nf` is GPT-2's Conv1D."""
    width = getattr(module, "out_features", getattr(module, "nf", None))
    return width if isinstance(width, int) else None


def _hidden_width(model: nn.Module) -> int | None:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "get_text_config"):
            config = config.get_text_config()
        width = getattr(config, "hidden_size", None)
        if isinstance(width, int):
            return width
    return None
