"""The recipe of llm-compressor: groups of modules, each with a scheme of compressed-tensors.

Schemes are spelled out field by field, as compressed-tensors spells its presets, because a preset
cannot say every group size. Targets are exact: a recipe whose targets overlap has no one meaning.
"""

import json
from collections.abc import Iterable
from typing import Any

import yaml  # type: ignore[import-untyped]

from noisescope.assignment import Assignment
from noisescope.export.patterns import check_targets, exact_patterns
from noisescope.export.scheme import (
    Export,
    NotExpressible,
    Scheme,
    check_linear,
    check_names,
    is_unrounded,
    notes_on_left,
    read_scheme,
    refuse,
)

ENGINE = "llm-compressor"
_ACCEPTED = (
    "int2 to int8 (group, channel, tensor, also asymmetric), fp8_e4m3 (group, channel, tensor), "
    "nvfp4, mxfp4, mxfp8, bf16 and fp16 as the model's own dtype, and mxfp6 for weights alone"
)
_MX_ELEMENTS = ("fp4_e2m1", "fp6_e2m3", "fp8_e4m3")
_MX_NOTE = (
    "compressed-tensors rounds an MX scale up where the largest element would saturate; the format "
    "rounds it down always (OCP)"
)
_NVFP4_NOTE = (
    "NVFP4's tensor scale of activations is calibrated on data (dynamic: local); the format has "
    "one per token"
)


def llm_compressor(assignment: Assignment, names: Iterable[str]) -> Export:
    """Returns the recipe, a YAML file.

    Args:
        assignment: The assignment.
        names: Names of all modules of the model.

    Raises:
        InputError: A module is none of the model's, or a format is unknown.
        NotExpressible: No scheme of compressed-tensors is the format.
    """
    names = tuple(names)
    check_names(assignment, names)
    check_linear(assignment, ENGINE)
    groups, left = _groups(assignment)
    if not groups:
        # Without groups the modifier falls back to quantising every linear module.
        raise NotExpressible(f"{ENGINE}: every module stays as it is, so there is nothing to write")
    members = {"ignore": left} | {f"group_{i}": modules for i, (_, modules) in enumerate(groups)}
    targets = {group: exact_patterns(modules) for group, modules in members.items()}
    owners = {name: group for group, modules in members.items() for name in modules}
    check_targets(targets, owners, names)
    config = {
        f"group_{i}": {"targets": _as_targets(targets[f"group_{i}"]), **fields}
        for i, (fields, _) in enumerate(groups)
    }
    modifier = {"ignore": _as_targets(targets["ignore"]), "config_groups": config}
    recipe = {"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}}
    text = yaml.safe_dump(recipe, sort_keys=False, width=1_000_000)
    return Export("llm_compressor_recipe.yaml", text, tuple(_notes(assignment)))


def _groups(assignment: Assignment) -> tuple[list[tuple[dict[str, Any], list[str]]], list[str]]:
    """Returns the fields of each scheme with its modules, and the modules that stay as they are."""
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    left = list(assignment.kept)
    for name, given in assignment.formats.items():
        scheme = read_scheme(given)
        if is_unrounded(scheme, assignment.dtype, ENGINE):
            left.append(name)
            continue
        fields = _fields(scheme, assignment.operand)
        groups.setdefault(json.dumps(fields), (fields, []))[1].append(name)
    return list(groups.values()), left


def _as_targets(patterns: Iterable[str]) -> list[str]:
    # A plain name would also be compared with the names of classes.
    return [f"re:{pattern}" for pattern in patterns]


def _fields(scheme: Scheme, operand: str) -> dict[str, Any]:
    """Returns the arguments of weights and activations, as compressed-tensors names them."""
    weights = _weights(scheme)
    if weights is None or (operand == "both" and (scheme.scale, scheme.bits) == ("mx", 6)):
        raise refuse(ENGINE, scheme, operand, _ACCEPTED)
    if operand == "weights":
        return {"weights": weights}
    return {"weights": weights, "input_activations": _activations(scheme, weights)}


def _weights(scheme: Scheme) -> dict[str, Any] | None:
    fields: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int" if scheme.is_integer else "float",
        "strategy": scheme.scale,
        "symmetric": scheme.is_symmetric,
        "dynamic": False,
    }
    if scheme.scale == "nvfp4":
        scale = dict.fromkeys(("scale_dtype", "zp_dtype"), "torch.float8_e4m3fn")
        return {**fields, "strategy": "tensor_group", "group_size": 16, **scale}
    if scheme.scale == "mx":
        if scheme.is_ceil or scheme.element not in _MX_ELEMENTS:
            return None
        scale = dict.fromkeys(("scale_dtype", "zp_dtype"), "torch.uint8")
        return {**fields, "strategy": "group", "group_size": 32, **scale}
    if scheme.scale == "cast" or not (scheme.is_integer or scheme.element == "fp8_e4m3"):
        return None
    return {**fields, "group_size": scheme.group} if scheme.scale == "group" else fields


def _activations(scheme: Scheme, weights: dict[str, Any]) -> dict[str, Any]:
    if scheme.scale == "nvfp4":
        return {**weights, "dynamic": "local", "observer": "static_minmax"}
    if scheme.scale in ("channel", "tensor"):
        return {**weights, "strategy": "token", "dynamic": True}
    return {**weights, "dynamic": True}


def _notes(assignment: Assignment) -> Iterable[str]:
    schemes = [read_scheme(name) for name in dict.fromkeys(assignment.formats.values())]
    yield "load it with llmcompressor.oneshot(model=MODEL, recipe='llm_compressor_recipe.yaml')"
    yield from notes_on_left(assignment)
    if any(scheme.scale == "mx" for scheme in schemes):
        yield _MX_NOTE
    if assignment.operand == "both" and any(scheme.scale == "nvfp4" for scheme in schemes):
        yield _NVFP4_NOTE
