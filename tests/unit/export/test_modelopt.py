"""ModelOpt's recipe: loaded by it, matched by it, and run where a CPU can.

Not run here: MX and NVFP4, which ModelOpt rounds on a CUDA device alone.
"""

import fnmatch
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.assigned import all_names, by_layer, demo_model, logits, mixed, named_tree, rounded

from noisescope.assignment import Assignment
from noisescope.export import NotExpressible, modelopt

# One per layer of the demo model.
FORMATS = (
    "int8",
    "int8_tensor",
    "int8_g32",
    "int4",
    "int4_g32",
    "fp8_e4m3",
    "fp8_e4m3_tensor",
    "fp8_e4m3_g64",
)


@pytest.fixture(scope="module")
def tool(engines):
    """ModelOpt, which takes seconds to import; its warnings on import are passed over there."""
    quantization = pytest.importorskip("modelopt.torch.quantization")
    recipe = pytest.importorskip("modelopt.recipe")
    config = pytest.importorskip("modelopt.torch.quantization.config")
    return SimpleNamespace(mtq=quantization, load_recipe=recipe.load_recipe, config=config)


def loaded(tool, export, directory):
    path = directory / export.name
    path.write_text(export.text)
    return tool.load_recipe(path).quantize


@pytest.mark.parametrize("operand", ["weights", "both"])
def test_on_the_demo_model_it_rounds_as_we_do(tool, operand, tmp_path):
    model = demo_model()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    assignment = by_layer(FORMATS, operand=operand, dtype="float32")
    config = loaded(tool, modelopt(assignment, dict(model.named_modules())), tmp_path)
    model = tool.mtq.quantize(model, config, logits)
    assert torch.isfinite(logits(model)).all()
    tokens = torch.randn(2, 16, 384, generator=torch.Generator().manual_seed(0))
    for name, module in model.named_modules():
        if not hasattr(module, "weight_quantizer"):
            continue
        given = assignment.formats.get(name)
        assert module.weight_quantizer.is_enabled == (given is not None), name
        assert module.input_quantizer.is_enabled == (given is not None and operand == "both"), name
        assert not module.output_quantizer.is_enabled
        if given is None:
            continue
        weight = weights[f"{name}.weight"]
        own = rounded(given, weight)
        # The weights are bfloat16: some lie halfway between two codes, and either is right.
        assert (module.weight_quantizer(weight) - own).norm() < 0.25 * (own - weight).norm(), name
        if operand == "both":
            # A tensor's scale is a token's: a scale over the batch would depend on what is in it.
            x = tokens[..., : module.in_features]
            own = rounded(given, x, is_weight=False)
            assert (module.input_quantizer(x) - own).norm() < 0.02 * (own - x).norm(), name


@pytest.mark.parametrize(
    ("name", "bits", "sizes"),
    [
        ("nvfp4", (2, 1), {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}),
        ("mxfp4", (2, 1), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}),
        ("mxfp6", (2, 3), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}),
        ("mxfp6_e3m2", (3, 2), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}),
        ("mxfp8", (4, 3), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}),
        ("mxfp8_e5m2", (5, 2), {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}),
    ],
)
def test_blocks_with_scales_of_their_own_are_read_as_modelopts(tool, name, bits, sizes, tmp_path):
    config = loaded(tool, modelopt(by_layer([name], operand="both"), all_names(1)), tmp_path)
    assert len(config.quant_cfg) == 15
    for entry in config.quant_cfg[1:]:
        assert (entry.cfg.num_bits, dict(entry.cfg.block_sizes)) == (bits, sizes)


def test_presets_of_modelopt_are_the_same(tool, tmp_path):
    """Their presets name all weights at once; the attributes must be ours."""
    presets = {
        "nvfp4": tool.mtq.NVFP4_DEFAULT_CFG,
        "mxfp4": tool.mtq.MXFP4_DEFAULT_CFG,
        "fp8_e4m3": tool.mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
        "int4": tool.mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG,
    }
    for name, preset in presets.items():
        operand = "weights" if name == "int4" else "both"
        config = loaded(tool, modelopt(by_layer([name], operand=operand), all_names(1)), tmp_path)
        theirs = tool.config.QuantizeConfig.model_validate(preset)
        for kind in ("weight", "input")[: 1 if name == "int4" else 2]:
            own = next(
                e.cfg for e in config.quant_cfg if e.quantizer_name.endswith(f"{kind}_quantizer")
            )
            found = [e.cfg for e in theirs.quant_cfg if e.quantizer_name == f"*{kind}_quantizer"]
            assert own.model_copy(update={"effective_bits": None}) == found[-1].model_copy(
                update={"effective_bits": None}
            ), (name, kind)


def test_all_is_off_first_and_each_quantizer_is_named_once():
    assignment = mixed(operand="both")
    recipe = yaml.safe_load(modelopt(assignment, all_names()).text)
    first, *entries = recipe["quantize"]["quant_cfg"]
    assert first == {"quantizer_name": "*", "enable": False}
    patterns = [entry["quantizer_name"] for entry in entries]
    rounded_ones = [n for n, f in assignment.formats.items() if f != "bf16"]
    kinds = ("weight", "input", "output")
    for name in all_names():
        for kind in kinds:
            hits = sum(fnmatch.fnmatch(f"{name}.{kind}_quantizer", p) for p in patterns)
            assert hits == (name in rounded_ones and kind != "output")
    assert recipe["quantize"]["algorithm"] == "max"


def test_hostile_names_stay_literal(tool, tmp_path):
    names = ("a*b", "axb", "m[0-9].x", "m5.x", "q?", "qq", "k", "[!k]", "[")
    model = named_tree(names)
    model.forward = lambda x: [model.get_submodule(n)(x) for n in names]
    assignment = Assignment(dict.fromkeys(names[::2], "int8"), kept=names[1::2], dtype="float32")
    config = loaded(tool, modelopt(assignment, dict(model.named_modules())), tmp_path)
    model = tool.mtq.quantize(model, config, lambda m: m(torch.ones(2, 32)))
    for name in names:
        quantizer = model.get_submodule(name).weight_quantizer
        assert quantizer.is_enabled == (name in assignment.formats), name


@pytest.mark.parametrize("name", ["int4_g32_asym", "mxfp4_ceil", "fp8_e5m2", "fp8_e4m3_cast"])
def test_what_it_has_not_is_refused(name):
    with pytest.raises(NotExpressible, match=f"ModelOpt: no format {name!r} for weights alone"):
        modelopt(by_layer([name]), all_names(1))


def test_notes_tell_what_needs_cuda():
    assert "CUDA device alone" in " ".join(modelopt(by_layer(["nvfp4"]), all_names(1)).notes)
    assert len(modelopt(by_layer(["int8"]), all_names(1)).notes) == 1
