"""torchao's `FqnToConfig` as JSON: one configuration by the name of each module.

The JSON is what `torchao.core.config.config_to_dict` gives of the object, written without torchao,
which is no dependency. Names are given in full: the first match wins, and a name matches itself.
"""

import json
from collections.abc import Iterable
from typing import Any

from noisescope.assignment import Assignment
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

ENGINE = "torchao"
_ACCEPTED = {
    "weights": (
        "int8 (group, channel, tensor), int2 to int8 (group, channel, also asymmetric), fp8_e4m3 "
        "and fp8_e5m2 (group, channel, tensor), nvfp4, and bf16 and fp16 as the model's own dtype"
    ),
    "both": (
        "int8 (channel, tensor), fp8_e4m3_channel, mxfp4, mxfp8, nvfp4, and bf16 and fp16 as the "
        "model's own dtype"
    ),
}
_LOAD_NOTE = (
    "load it with torchao.core.config.config_from_dict(json.load(file)), then quantize_(model, "
    "config, filter_fn=None), transformers' TorchAoConfig(config), or vLLM's "
    "quantization_config_file"
)
_INTX_NOTE = (
    "torchao keeps these integers one to a byte, dequantised before each product: the error is "
    "the format's, the memory and the speed are not"
)
_MX_NOTE = (
    "torchao's MX and NVFP4 configurations are prototypes; run on activations they need SM100"
)

_Json = dict[str, Any]


def torchao(assignment: Assignment, names: Iterable[str]) -> Export:
    """Returns the configuration, a JSON file.

    Args:
        assignment: The assignment.
        names: Names of all modules of the model.

    Raises:
        InputError: A module is none of the model's, or a format is unknown.
        NotExpressible: No configuration of torchao is the format.
    """
    check_names(assignment, names)
    check_linear(assignment, ENGINE)
    configs: dict[str, _Json | None] = {}
    for name, given in assignment.formats.items():
        scheme = read_scheme(given)
        is_left = is_unrounded(scheme, assignment.dtype, ENGINE)
        configs[name] = None if is_left else _config(scheme, assignment.operand)
    configs |= dict.fromkeys(assignment.kept)
    for name in configs:
        if name.startswith("re:") or name == "_default":
            raise NotExpressible(f"{ENGINE}: module name {name!r} has another meaning there")
    # torchao writes the table twice, the second time under the name that it used to have.
    whole = _made("FqnToConfig", fqn_to_config=configs, module_fqn_to_config=configs)
    text = json.dumps(whole, indent=1) + "\n"
    return Export("torchao_config.json", text, (*_notes(configs), *notes_on_left(assignment)))


def _config(scheme: Scheme, operand: str) -> _Json:
    made = _weight_only(scheme) if operand == "weights" else _dynamic(scheme)
    if made is None:
        raise refuse(ENGINE, scheme, operand, _ACCEPTED[operand])
    return made


def _weight_only(scheme: Scheme) -> _Json | None:
    if scheme.scale == "nvfp4":
        return _made("NVFP4WeightOnlyConfig", use_dynamic_per_tensor_scale=True)
    if scheme.scale not in ("tensor", "channel", "group"):
        return None
    if scheme.element.startswith("fp8"):
        return _made(
            "Float8WeightOnlyConfig",
            2,
            weight_dtype=_float8(scheme.element),
            set_inductor_config=True,
            granularity=_granularity(scheme),
        )
    if scheme.element == "int8" and scheme.is_symmetric:
        return _made(
            "Int8WeightOnlyConfig",
            2,
            group_size=None,
            granularity=_granularity(scheme),
            set_inductor_config=True,
        )
    return _intx(scheme) if scheme.is_integer and scheme.scale != "tensor" else None


def _intx(scheme: Scheme) -> _Json:
    axis = _made("PerAxis", axis=0)
    # NO_CLIPPING: the largest magnitude keeps its place, as it does where scale = absmax / code.
    mapping = "SYMMETRIC_NO_CLIPPING_ERR" if scheme.is_symmetric else "ASYMMETRIC"
    return _made(
        "IntxWeightOnlyConfig",
        2,
        weight_dtype=_dtype(scheme.element),
        granularity=axis if scheme.scale == "channel" else _granularity(scheme),
        mapping_type=_choice("MappingType", mapping),
        scale_dtype=None,
        intx_packing_format=_choice("IntxPackingFormat", "UNPACKED_TO_INT8"),
        intx_choose_qparams_algorithm=_choice("IntxChooseQParamsAlgorithm", "AFFINE"),
    )


def _dynamic(scheme: Scheme) -> _Json | None:
    if scheme.scale == "nvfp4":
        return _made(
            "NVFP4DynamicActivationNVFP4WeightConfig",
            use_triton_kernel=True,
            use_dynamic_per_tensor_scale=True,
            step=None,
        )
    if scheme.scale == "mx":
        return _mx(scheme)
    if scheme.element == "int8" and scheme.is_symmetric and scheme.scale in ("channel", "tensor"):
        return _int8(scheme)
    return _float8_dynamic() if (scheme.element, scheme.scale) == ("fp8_e4m3", "channel") else None


def _int8(scheme: Scheme) -> _Json:
    row = _made("PerRow", dim=-1)
    return _made(
        "Int8DynamicActivationInt8WeightConfig",
        2,
        act_mapping_type=_choice("MappingType", "SYMMETRIC"),
        weight_only_decode=False,
        granularity=row if scheme.scale == "channel" else [row, _granularity(scheme)],
        set_inductor_config=True,
        reduce_range=False,
    )


def _float8_dynamic() -> _Json:
    dtype, row = _float8("fp8_e4m3"), _made("PerRow", dim=-1)
    multiply = _made("Float8MMConfig", emulate=False, use_fast_accum=True, pad_inner_dim=False)
    return _made(
        "Float8DynamicActivationFloat8WeightConfig",
        2,
        activation_dtype=dtype,
        weight_dtype=dtype,
        granularity=[row, row],
        packing_format=_choice("Float8PackingFormat", "PLAIN"),
        mm_config=multiply,
        activation_value_lb=None,
        activation_value_ub=None,
        kernel_preference=_choice("KernelPreference", "AUTO"),
        set_inductor_config=True,
        alg_id=0,
    )


def _mx(scheme: Scheme) -> _Json | None:
    dtypes = {"fp8_e4m3": "float8_e4m3fn", "fp4_e2m1": "float4_e2m1fn_x2"}
    if scheme.element not in dtypes:
        return None
    dtype = _dtype(dtypes[scheme.element])
    return _made(
        "MXDynamicActivationMXWeightConfig",
        block_size=32,
        activation_dtype=dtype,
        weight_dtype=dtype,
        kernel_preference=_choice("KernelPreference", "AUTO"),
        scaling_mode=_choice("ScaleCalculationMode", "RCEIL" if scheme.is_ceil else "FLOOR"),
    )


def _granularity(scheme: Scheme) -> _Json:
    if scheme.scale == "group":
        return _made("PerGroup", group_size=scheme.group)
    return _made("PerTensor") if scheme.scale == "tensor" else _made("PerRow", dim=-1)


def _float8(element: str) -> _Json:
    return _dtype({"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}[element])


def _made(kind: str, version: int = 1, **data: Any) -> _Json:
    return {"_type": kind, "_version": version, "_data": data}


def _choice(kind: str, name: str) -> _Json:
    return {"_type": kind, "_data": name}


def _dtype(name: str) -> _Json:
    return _choice("torch.dtype", name)


def _notes(configs: dict[str, _Json | None]) -> Iterable[str]:
    kinds = {config["_type"] for config in configs.values() if config}
    yield _LOAD_NOTE
    if "IntxWeightOnlyConfig" in kinds:
        yield _INTX_NOTE
    if any(kind.startswith(("MX", "NVFP4")) for kind in kinds):
        yield _MX_NOTE
