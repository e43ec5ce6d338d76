"""torchao's configuration: equal to torchao's own, loaded by it, applied by it and run.

Not run here, because a CPU has no kernel for them: float8, MX and NVFP4 of activations.
"""

import json
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from helpers.assigned import (
    all_names,
    by_layer,
    demo_model,
    logits,
    named_tree,
    rounded,
)

from noisescope.assignment import Assignment
from noisescope.export import NotExpressible, torchao

# Formats for the demo model's eight layers. Of exact ones the engine's scale is ours; its symmetric
# integers have another largest code. The weights are bfloat16, so some lie halfway between two
# codes, and either is right.
EXACT = ("fp8_e4m3", "fp8_e5m2_g32", "int4_g32_asym", "nvfp4")
NEAR = ("int8", "int8_tensor", "int8_g32", "int4_g32")


@pytest.fixture(scope="module")
def tool(engines):
    """torchao, which takes seconds to import; its warnings on import are passed over there."""
    quantization = pytest.importorskip("torchao.quantization")
    config = pytest.importorskip("torchao.core.config")
    mx = pytest.importorskip("torchao.prototype.mx_formats")
    return SimpleNamespace(q=quantization, config=config, mx=mx)


@pytest.fixture(autouse=True)
def same_precision():
    """Puts back what torchao's configurations set for the whole process."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def configs(tool):
    """Returns torchao's own object for each format, by format and operand."""
    q, mx = tool.q, tool.mx
    symmetric, asymmetric = q.MappingType.SYMMETRIC_NO_CLIPPING_ERR, q.MappingType.ASYMMETRIC
    fp4 = torch.float4_e2m1fn_x2
    floor, ceil = mx.ScaleCalculationMode.FLOOR, mx.ScaleCalculationMode.RCEIL
    intx, fp8 = q.IntxWeightOnlyConfig, q.Float8WeightOnlyConfig
    of_mx = mx.MXDynamicActivationMXWeightConfig
    return {
        ("int8", "weights"): q.Int8WeightOnlyConfig(),
        ("int8_tensor", "weights"): q.Int8WeightOnlyConfig(granularity=q.PerTensor()),
        ("int8_g32", "weights"): q.Int8WeightOnlyConfig(granularity=q.PerGroup(32)),
        ("int8_asym", "weights"): intx(torch.int8, q.PerAxis(0), asymmetric),
        ("int4", "weights"): intx(torch.int4, q.PerGroup(128), symmetric),
        ("int4_g32_asym", "weights"): intx(torch.int4, q.PerGroup(32), asymmetric),
        ("int2_channel", "weights"): intx(torch.int2, q.PerAxis(0), symmetric),
        ("fp8_e4m3", "weights"): fp8(),
        ("fp8_e4m3_tensor", "weights"): fp8(granularity=q.PerTensor()),
        ("fp8_e5m2_g32", "weights"): fp8(torch.float8_e5m2, granularity=q.PerGroup(32)),
        ("nvfp4", "weights"): mx.NVFP4WeightOnlyConfig(),
        ("bf16", "weights"): None,
        ("int8", "both"): q.Int8DynamicActivationInt8WeightConfig(),
        ("int8_tensor", "both"): q.Int8DynamicActivationInt8WeightConfig(
            granularity=[q.PerRow(), q.PerTensor()]
        ),
        ("fp8_e4m3", "both"): q.Float8DynamicActivationFloat8WeightConfig(granularity=q.PerRow()),
        ("mxfp8", "both"): of_mx(scaling_mode=floor),
        ("mxfp8_ceil", "both"): of_mx(scaling_mode=ceil),
        ("mxfp4", "both"): of_mx(activation_dtype=fp4, weight_dtype=fp4, scaling_mode=floor),
        ("nvfp4", "both"): mx.NVFP4DynamicActivationNVFP4WeightConfig(),
    }


def test_the_json_is_torchaos_own_of_every_format(tool):
    for (name, operand), config in configs(tool).items():
        assignment = Assignment({"a.b": name}, kept=("lm_head",), operand=operand)
        entry = json.loads(torchao(assignment, ["a.b", "lm_head"]).text)
        table = tool.q.FqnToConfig(OrderedDict([("a.b", config), ("lm_head", None)]))
        assert entry == tool.config.config_to_dict(table), (name, operand)
        assert tool.config.config_to_dict(tool.config.config_from_dict(entry)) == entry


def test_transformers_takes_it(tool, monkeypatch):
    from transformers import TorchAoConfig
    from transformers.utils import quantization_config

    # It has asked already, before the folder of engines was on the path.
    monkeypatch.setattr(quantization_config, "is_torchao_available", lambda: True)
    text = torchao(by_layer(["int8", "nvfp4"]), all_names(2)).text
    config = TorchAoConfig(tool.config.config_from_dict(json.loads(text)))
    entry = config.to_dict()["quant_type"]["default"]
    assert entry == json.loads(text)
    assert TorchAoConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def applied(tool, assignment, dtype="float32"):
    """Returns the demo model after `quantize_` with the file's configuration."""
    model = demo_model(dtype)
    text = torchao(assignment, dict(model.named_modules())).text
    config = tool.config.config_from_dict(json.loads(text))
    tool.q.quantize_(model, config, filter_fn=None)
    return model


def assert_carries(model, assignment):
    """Assigned modules are of torchao's tensors, all others plain parameters."""
    for name, module in model.named_modules():
        if not isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            continue
        is_plain = type(module.weight.data) is torch.Tensor
        given = assignment.formats.get(name, "bf16")
        assert is_plain == (given == "bf16"), name
        if not is_plain:
            assert type(module.weight.data).__module__.startswith("torchao."), name


@pytest.mark.parametrize("formats", [[*EXACT, *NEAR], ["bf16", "int8", *["bf16"] * 6]])
def test_applied_to_the_demo_model_it_runs_and_rounds_as_we_do(tool, formats):
    assignment = by_layer(formats, dtype="float32")
    clean, model = demo_model(), applied(tool, assignment)
    assert_carries(model, assignment)
    assert torch.isfinite(logits(model)).all()
    weights = dict(clean.named_parameters())
    for name, given in assignment.formats.items():
        if given == "bf16":
            continue
        weight = weights[f"{name}.weight"].detach()
        theirs = model.get_submodule(name).weight.dequantize() - weight
        own = rounded(given, weight) - weight
        if given in EXACT:
            assert (theirs - own).norm() < 0.15 * own.norm(), (name, given)
        else:
            # Scales to the code 127.5 (int8), 7 or 8 (int4), where ours go to 127 and 7.
            assert 0.85 < theirs.norm() / own.norm() < 1.06, (name, given)


def test_outputs_are_those_of_our_own_rounding(tool):
    assignment = by_layer([*EXACT, *EXACT], dtype="float32")
    model, own = applied(tool, assignment), demo_model()
    clean = logits(own)
    for name, given in assignment.formats.items():
        weight = own.get_submodule(name).weight
        weight.data = rounded(given, weight)
    theirs, ours = logits(model), logits(own)
    assert (ours - clean).norm() > 0.01 * clean.norm()
    assert (theirs - ours).norm() < 0.15 * (ours - clean).norm()


def test_with_activations_it_runs_on_a_cpu_too(tool):
    assignment = by_layer(["int8", "int8_tensor", *["bf16"] * 6], operand="both", dtype="float32")
    model = applied(tool, assignment)
    assert_carries(model, assignment)
    clean = logits(demo_model())
    change = (logits(model) - clean).norm() / clean.norm()
    assert 0.001 < change < 0.1


def test_in_bfloat16_it_runs_as_well(tool):
    assignment = by_layer([*EXACT, *NEAR])
    model = applied(tool, assignment, "bfloat16")
    assert_carries(model, assignment)
    assert torch.isfinite(logits(model)).all()


def test_what_a_cpu_cannot_run_says_so(tool):
    """These files are torchao's own (above); here is why they are not run in these tests."""
    for name, told in (
        ("fp8_e4m3", "Float8 dynamic quantization requires"),
        ("nvfp4", "only supported on sm100"),
        ("mxfp8", "Only supporting bf16"),
    ):
        with pytest.raises(AssertionError, match=told):
            applied(tool, by_layer([name], operand="both", dtype="float32"))


def test_hostile_names_stay_literal(tool):
    names = ("a+b.c(1)", "aab.c1", "m.[0-9]", "m.5", "x?", "xy")
    model = named_tree(names)
    assignment = Assignment(dict.fromkeys(names[::2], "int8"), kept=names[1::2], dtype="float32")
    text = torchao(assignment, dict(model.named_modules())).text
    config = tool.config.config_from_dict(json.loads(text))
    tool.q.quantize_(model, config, filter_fn=None)
    assert_carries(model, assignment)


@pytest.mark.parametrize("name", ["re:m", "_default"])
def test_names_with_another_meaning_are_refused(name):
    with pytest.raises(NotExpressible, match="has another meaning"):
        torchao(Assignment({"x": "int8"}, kept=(name,)), ["x", name])


def test_notes_tell_of_memory_and_prototypes():
    notes = " ".join(torchao(by_layer(["int4", "nvfp4"]), all_names(2)).notes)
    assert "one to a byte" in notes
    assert "prototypes" in notes
    assert len(torchao(by_layer(["int8"]), all_names(1)).notes) == 1
