"""The recipe of NVIDIA ModelOpt: an ordered list of quantizers by name; the last match wins.

YAML and not JSON: keys of `block_sizes` must be integers, which JSON has not. Everything is off
first, then each module's own quantizers are set by their full names.
"""

import glob
from collections.abc import Iterable
from typing import Any

import yaml  # type: ignore[import-untyped]

from noisescope.assignment import Assignment
from noisescope.export.scheme import (
    Export,
    Scheme,
    check_linear,
    check_names,
    is_unrounded,
    notes_on_left,
    read_scheme,
    refuse,
)

ENGINE = "ModelOpt"
_ACCEPTED = (
    "int2 to int8 and fp8_e4m3 (group, channel, tensor, symmetric), nvfp4, mxfp4, mxfp6, mxfp8, "
    "each with every element, and bf16 and fp16 as the model's own dtype"
)
_LOAD_NOTE = (
    "load it with modelopt.recipe.load_recipe('modelopt_recipe.yaml'), then "
    "modelopt.torch.quantization.quantize(model, recipe.quantize, forward_loop)"
)
_CUDA_NOTE = (
    "ModelOpt rounds to MX and NVFP4 on a CUDA device alone, with scales by its own rule; NVFP4's "
    "tensor scale of activations is calibrated on data, where the format has one per token"
)


def modelopt(assignment: Assignment, names: Iterable[str]) -> Export:
    """Returns the recipe, a YAML file.

    Args:
        assignment: The assignment.
        names: Names of all modules of the model.

    Raises:
        InputError: A module is none of the model's, or a format is unknown.
        NotExpressible: No quantizer of ModelOpt is the format.
    """
    check_names(assignment, names)
    check_linear(assignment, ENGINE, has_conv1d=True)
    entries: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    schemes = {name: read_scheme(given) for name, given in assignment.formats.items()}
    for name, scheme in schemes.items():
        if is_unrounded(scheme, assignment.dtype, ENGINE):
            continue
        entries.append(_entry(name, "weight", _weights(scheme, assignment.operand)))
        if assignment.operand == "both":
            entries.append(_entry(name, "input", _inputs(scheme)))
    recipe = {
        "metadata": {"recipe_type": "ptq", "description": "Formats that noisescope recommends."},
        "quantize": {"quant_cfg": entries, "algorithm": "max"},
    }
    text = yaml.dump(recipe, Dumper=_Plain, sort_keys=False, width=1_000_000)
    on_cuda = any(scheme.scale in ("mx", "nvfp4") for scheme in schemes.values())
    notes = (_LOAD_NOTE, _CUDA_NOTE) if on_cuda else (_LOAD_NOTE,)
    return Export("modelopt_recipe.yaml", text, (*notes, *notes_on_left(assignment)))


class _Plain(yaml.SafeDumper):  # type: ignore[misc]
    """Writes equal entries out in full: anchors save nothing that a reader wants saved."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns that nothing is written as an alias."""
        return True


def _entry(module: str, tensor: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"quantizer_name": f"{glob.escape(module)}.{tensor}_quantizer", "cfg": config}


def _weights(scheme: Scheme, operand: str) -> dict[str, Any]:
    """Returns the attributes of a weight's quantizer; its axis 0 is the output channel."""
    if scheme.scale in ("mx", "nvfp4") and not scheme.is_ceil:
        return _blocks(scheme)
    if not (scheme.is_integer or scheme.element == "fp8_e4m3") or not scheme.is_symmetric:
        raise refuse(ENGINE, scheme, operand, _ACCEPTED)
    if scheme.scale == "group":
        sizes = {-1: scheme.group, "type": "static"}
        return {"num_bits": _bits(scheme), "block_sizes": sizes}
    if scheme.scale in ("channel", "tensor"):
        return {"num_bits": _bits(scheme), "axis": 0 if scheme.scale == "channel" else None}
    raise refuse(ENGINE, scheme, operand, _ACCEPTED)


def _inputs(scheme: Scheme) -> dict[str, Any]:
    """Returns the attributes of an input's quantizer: a scale per token, or per block of it."""
    if scheme.scale in ("mx", "nvfp4"):
        return _blocks(scheme)
    sizes = {-1: scheme.group or None}
    return {"num_bits": _bits(scheme), "type": "dynamic", "block_sizes": sizes}


def _blocks(scheme: Scheme) -> dict[str, Any]:
    scale = [4, 3] if scheme.scale == "nvfp4" else [8, 0]
    sizes = {-1: scheme.group, "type": "dynamic", "scale_bits": scale}
    return {"num_bits": _bits(scheme), "block_sizes": sizes}


def _bits(scheme: Scheme) -> int | list[int]:
    """Returns the bits of an integer, or exponent and mantissa of a float."""
    if scheme.is_integer:
        return scheme.bits
    exponent, mantissa = scheme.element[-3], scheme.element[-1]
    return [int(exponent), int(mantissa)]
