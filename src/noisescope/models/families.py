"""Where a model keeps its embedding, layers, final norm and head.

The names of a layout are looked up by suffix, so that a bare backbone (no prefix) and a wrapped
model (a longer prefix) are found too. The layouts are data in layouts.py; what a layer holds is not
known here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from noisescope.errors import SelectionError, near_names
from noisescope.models.layouts import FAMILIES, LAYOUTS, REGISTERED, Family, register_family

__all__ = [
    "FAMILIES",
    "Family",
    "Region",
    "Regions",
    "find_regions",
    "register_family",
    "uncompiled",
]


@dataclass(frozen=True)
class Region:
    """One region of a model: its name, and its modules under their dotted names."""

    name: str
    modules: tuple[tuple[str, nn.Module], ...]


@dataclass(frozen=True)
class Regions:
    """All regions of one model in the order they run: embed, layers, norm, head.

    Args:
        all: The regions. A model without a known layout has the single region ``"model"``.
        n_layers: How many of them are layers.
        family: The family's name; ``"like llama"`` when the layout was recognised by its names
            alone; empty when it was not recognised.
    """

    all: tuple[Region, ...]
    n_layers: int
    family: str

    def named(self, name: str) -> Region:
        """Returns the region of that name.

        Raises:
            SelectionError: There is none.
        """
        for region in self.all:
            if region.name == name:
                return region
        raise SelectionError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        layers = f"layers 0 to {self.n_layers - 1}" if self.n_layers else "no layers"
        if name.lstrip("-").isdigit():
            return (
                f"No layer {name}: this model has {layers}. "
                "List them with 'noisescope sites MODEL'."
            )
        others = [r.name for r in self.all if not r.name.isdigit()]
        known = " and ".join([layers, *(f"region {n!r}" for n in others)])
        return f"No region {name!r}: this model has {known}{near_names(name, others)}"


def uncompiled(model: nn.Module) -> nn.Module:
    """Returns the model that `torch.compile` wraps, and any other as it is."""
    # Told by its name: nothing is compiled here, and the compiler takes seconds to import.
    inner = getattr(model, "_orig_mod", None)
    is_wrapper = type(model).__name__ == "OptimizedModule" and isinstance(inner, nn.Module)
    return inner if is_wrapper else model  # type: ignore[return-value]


def find_regions(model: nn.Module) -> Regions:
    """Returns the regions of a model.

    The family comes from ``config.model_type`` of the model or, in a wrapper, of a module inside
    it. Without a known family the known layouts are tried, and one fits when its layers and its
    embedding are there. Lists of vision and audio towers are passed over.

    Args:
        model: A causal model, its bare backbone, a module that wraps either, or any other module.

    Raises:
        SelectionError: Several lists of layers fit equally well, or a registered family names a
            list that the model does not have.
    """
    modules = dict(model.named_modules())
    lists = [n for n, m in modules.items() if isinstance(m, _LISTS) and len(m) > 0]
    for model_type in _model_types(modules.values()):
        family = REGISTERED.get(model_type) or FAMILIES.get(model_type)
        if family is None:
            continue
        place = _find_layers(family.layers, lists, model_type)
        if place is not None:
            return _regions(family, place, modules, model_type)
        if model_type in REGISTERED:
            raise SelectionError(
                f"family {model_type!r} is registered with layers at {family.layers!r}, which this "
                f"model does not have; lists of modules here: {', '.join(lists) or 'none'}"
            )
    return _guess(modules, lists)


_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
_OTHER_SENSES = ("vision", "visual", "image", "video", "audio", "speech")
_TEXT_TOWERS = ("language_model", "text_model")


@dataclass(frozen=True)
class _Place:
    """Where a family's list of layers was found: ``prefix + name`` less the ``dropped`` lead."""

    layers: str
    prefix: str
    dropped: str


def _model_types(modules: Iterable[nn.Module]) -> list[str]:
    """Returns model types and class names, outermost first, each once."""
    found: dict[str, None] = {}
    for module in modules:
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(model_type, str):
            found[model_type] = None
        if type(module).__name__ in REGISTERED:
            found[type(module).__name__] = None
    return list(found)


def _find_layers(path: str, lists: list[str], family: str, whole: bool = False) -> _Place | None:
    """Finds the list of layers by its whole path, or else by the longest tail of it that is there.

    Lists of text are looked through before those of other senses.
    """
    parts = path.split(".")
    text = [n for n in lists if not _is_other_sense(n)]
    for names in (text, lists):
        for start in range(1 if whole else len(parts)):
            tail = ".".join(parts[start:])
            hits = [n for n in names if n == tail or n.endswith(f".{tail}")]
            if hits:
                layers = _only(hits, family)
                dropped = ".".join(parts[:start])
                return _Place(layers, layers.removesuffix(tail), dropped and f"{dropped}.")
    return None


def _is_other_sense(name: str) -> bool:
    return any(sense in name.lower() for sense in _OTHER_SENSES)


def _only(names: list[str], family: str) -> str:
    """Returns the one outermost list, a text tower's before others.

    Raises:
        SelectionError: More than one is left.
    """
    outer = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    text = [n for n in outer if any(part in _TEXT_TOWERS for part in n.split("."))] or outer
    if len(text) > 1:
        raise SelectionError(
            f"{len(text)} lists fit the layers of a {family or 'model without a model_type'}: "
            f"{', '.join(text)}; say which with noisescope.models.register_family"
        )
    return text[0]


def _guess(modules: Mapping[str, nn.Module], lists: list[str]) -> Regions:
    """Tries the known layouts, whole paths first; the model is one region when none fits."""
    own_type = next(iter(_model_types(modules.values())), "")
    tails = {family.layers.split(".")[-1] for family in LAYOUTS.values()}
    known = [n for n in lists if n.split(".")[-1] in tails and not _is_other_sense(n)]
    for whole in (True, False):
        for name, family in LAYOUTS.items():
            place = _find_layers(family.layers, known, own_type, whole)
            if place is not None and _named(family.embed, place, modules):
                _only(known, own_type)
                return _regions(family, place, modules, f"like {name}")
    return Regions((Region("model", (("", modules[""]),)),), 0, "")


def _regions(family: Family, place: _Place, modules: Mapping[str, nn.Module], name: str) -> Regions:
    children = list(modules[place.layers].named_children())
    layers = [
        Region(str(index), ((f"{place.layers}.{child}", module),))
        for index, (child, module) in enumerate(children)
    ]
    ends = {
        part: Region(part, _named(names, place, modules))
        for part, names in (("embed", family.embed), ("norm", family.norm), ("head", family.head))
    }
    found = [ends["embed"], *layers, ends["norm"], ends["head"]]
    return Regions(tuple(r for r in found if r.modules), len(layers), name)


def _named(
    paths: Iterable[str], place: _Place, modules: Mapping[str, nn.Module]
) -> tuple[tuple[str, nn.Module], ...]:
    found = (next((n for n in _candidates(p, place) if n in modules), None) for p in paths)
    return tuple((n, modules[n]) for n in found if n is not None)


def _candidates(path: str, place: _Place) -> Iterator[str]:
    """Yields where a part may be: beside the layers, then ever further out (a tower's head)."""
    if place.dropped and path.startswith(place.dropped):
        yield place.prefix + path.removeprefix(place.dropped)
        return
    prefix = place.prefix
    while True:
        yield prefix + path
        if not prefix:
            return
        prefix = prefix.rstrip(".").rpartition(".")[0]
        prefix = prefix and f"{prefix}."
