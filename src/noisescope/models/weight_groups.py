"""Which weights take a format together: linear modules, those that engines run fused as one.

Inference engines run q/k/v and gate/up as one product, so they must share a format, as must all
experts of a layer. Which format they get is not decided here.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

# Siblings that engines run as one product.
_FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("w1", "w3"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
)
_ROUTERS = ("gate", "router", "shared_expert_gate")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class WeightGroup:
    """Modules that share a format.

    Attributes:
        name: The modules' common prefix and their last names: ``model.layers.3.mlp.gate_proj+
            up_proj``.
        modules: Their dotted names.
        shapes: Outputs and inputs of every matrix.
        active_share: Share of the weights that one token reads: 1, or that of the routed experts.
    """

    name: str
    modules: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    active_share: float = 1.0

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return sum(outputs * inputs for outputs, inputs in self.shapes)


@dataclass(frozen=True)
class WeightGroups:
    """The linear modules of a model.

    Attributes:
        groups: Those that may take a format, in running order.
        kept: Those that stay as they are, each with the reason.
    """

    groups: tuple[WeightGroup, ...]
    kept: dict[str, str]

    @property
    def bound(self) -> tuple[tuple[str, ...], ...]:
        """The modules of each group that has several."""
        return tuple(group.modules for group in self.groups if len(group.modules) > 1)


def find_weight_groups(
    model: nn.Module, running: Iterable[str], keep: Sequence[str] = ()
) -> WeightGroups:
    """Returns the groups of linear modules.

    A head that shares its weight with the embedding is kept, as engines look rows up in it; so are
    routers, which engines leave as they are, and what runs as one with a module that is kept.

    Args:
        model: The model.
        running: Names of modules in which a linear operator runs, in running order.
        keep: Patterns of names that are to be kept: a name, its ending, or a glob.
    """
    modules = dict(model.named_modules())
    config = getattr(model, "config", None)
    tied = _embedding_weights(model)
    bound: dict[str, list[str]] = {}
    for name in dict.fromkeys(running):
        bound.setdefault(_group_key(name, modules), []).append(name)
    kept: dict[str, str] = {}
    members: list[list[str]] = []
    for names in bound.values():
        reasons = {name: _reason_to_keep(name, modules[name], keep, tied) for name in names}
        first = next((name for name, reason in reasons.items() if reason), None)
        if first is None:
            members.append(names)
        for name in names if first is not None else ():
            kept[name] = reasons[name] or f"runs as one with {first}"
    groups = tuple(
        WeightGroup(
            _group_name(names),
            tuple(names),
            tuple(shape for name in names for shape in _shapes(modules[name])),
            _active_share(names[0], modules, config),
        )
        for names in members
    )
    return WeightGroups(groups, kept)


def is_named_by(pattern: str, name: str) -> bool:
    """Tells whether a pattern, a name, its ending or a glob, names a module."""
    return name == pattern or name.endswith("." + pattern) or fnmatch.fnmatchcase(name, pattern)


def _reason_to_keep(name: str, module: nn.Module, keep: Sequence[str], tied: Sequence[Any]) -> str:
    named = next((pattern for pattern in keep if is_named_by(pattern, name)), None)
    if named is not None:
        return f"named by {named!r}"
    if name.rpartition(".")[2] in _ROUTERS:
        return "a router"
    if not _shapes(module):
        return "its weights are not its own"
    if any(weight is own for own in module.parameters(recurse=False) for weight in tied):
        return "its weight is that of the embedding"
    return ""


def _embedding_weights(model: nn.Module) -> list[Any]:
    return [
        weight
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters(recurse=False)
    ]


def _group_key(name: str, modules: dict[str, nn.Module]) -> str:
    """Returns what the members of a group have in common."""
    expert = _expert_holder(name)
    if expert:
        return f"{expert}.*"
    parent, _, leaf = name.rpartition(".")
    for siblings in _FUSED:
        there = [s for s in siblings if f"{parent}.{s}" in modules]
        if leaf in there and len(there) > 1:
            return f"{parent}.{'+'.join(there)}"
    return name


def _expert_holder(name: str) -> str:
    """Returns the module that holds the experts that a module is one of; '' for others."""
    parts = name.split(".")
    inner = [n for n, part in enumerate(parts) if part == "experts"]
    return ".".join(parts[: inner[0] + 1]) if inner else ""


def _group_name(names: Sequence[str]) -> str:
    holder = _expert_holder(names[0])
    if holder:
        return holder
    parent = names[0].rpartition(".")[0]
    leaves = "+".join(name.rpartition(".")[2] for name in names)
    return f"{parent}.{leaves}" if parent else leaves


def weights_of(module: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """Returns a module's own matrices, each with the axis of its inputs: -1, or -2 where turned."""
    is_turned = type(module).__name__ == "Conv1D" or bool(getattr(module, "is_transposed", False))
    axis = -2 if is_turned else -1
    return [
        (weight, axis)
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() >= 2 and not name.endswith("bias")  # experts have one each
    ]


def _shapes(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Returns outputs and inputs of every matrix of a module."""
    found: list[tuple[int, int]] = []
    for weight, axis in weights_of(module):
        rows, columns = weight.shape[-2:]
        shape = (columns, rows) if axis == -2 else (rows, columns)
        found += [shape] * max(1, weight.shape[:-2].numel())
    return tuple(found)


def _active_share(name: str, modules: dict[str, nn.Module], config: Any) -> float:
    """Returns the share of a group's weights that one token reads."""
    if not _expert_holder(name):
        return 1.0
    config = getattr(config, "text_config", config)
    per_token = _first(config, _EXPERTS_PER_TOKEN)
    experts = _first(config, _EXPERTS)
    if per_token is None or not experts:
        return 1.0
    return min(1.0, per_token / experts)


def _first(config: Any, names: Sequence[str]) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int)), None)
