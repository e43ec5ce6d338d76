"""The recipe, parsed and matched by compressed-tensors, whose schemes llm-compressor applies."""

import re
from types import SimpleNamespace

import pytest
import yaml
from helpers.assigned import all_names, by_layer, demo_model, linear_names, mixed, named_tree

from noisescope.assignment import Assignment
from noisescope.export import NotExpressible, llm_compressor

HOSTILE = ("a+b.c(1)", "aab.c1", "m.[0-9].*", "m.5.x", "re:m.5", "Linear", "p|q", "p", "(?i)z", "Z")


@pytest.fixture(scope="module")
def tool(engines):
    """compressed-tensors, which takes a second to import."""
    quantization = pytest.importorskip("compressed_tensors.quantization")
    match = pytest.importorskip("compressed_tensors.utils.match")
    presets = pytest.importorskip("compressed_tensors.quantization.quant_scheme")
    return SimpleNamespace(quantization=quantization, match=match, presets=presets)


def modifier_of(export):
    """Returns the modifier's arguments, found as llm-compressor's `Recipe.from_dict` finds them."""
    ((stage, groups),) = yaml.safe_load(export.text).items()
    ((group, modifiers),) = groups.items()
    ((name, arguments),) = modifiers.items()
    assert stage.endswith("_stage")
    assert group.endswith("_modifiers")
    assert name == "QuantizationModifier"
    assert set(arguments) == {"ignore", "config_groups"}
    return arguments


def parsed(tool, export):
    """Returns the configuration as `resolve_quantization_config` makes it."""
    arguments = modifier_of(export)
    schemes = {
        name: tool.quantization.QuantizationScheme.model_validate(group)
        for name, group in arguments["config_groups"].items()
    }
    return tool.quantization.QuantizationConfig(config_groups=schemes, ignore=arguments["ignore"])


def groups_of(tool, config, model):
    """Returns the groups with a target that matches each module, once per target."""
    return {
        name: [
            group
            for group, scheme in config.config_groups.items()
            for target in scheme.targets
            if tool.match.is_match(name, module, target, ignore=config.ignore)
        ]
        for name, module in model.named_modules()
    }


def assert_exact(tool, config, assignment, model):
    """Every assigned module is in one group and kept ones in none; one group is one format."""
    found = groups_of(tool, config, model)
    formats = {}
    for name, groups in found.items():
        given = assignment.formats.get(name)
        is_left = given is None or given == "bf16"
        assert len(groups) == (0 if is_left else 1), (name, groups)
        if groups:
            formats.setdefault(groups[0], set()).add(given)
    assert set(formats) == set(config.config_groups)
    assert all(len(given) == 1 for given in formats.values())


def test_every_assigned_module_is_matched_by_one_target(tool):
    assignment = mixed()
    config = parsed(tool, llm_compressor(assignment, all_names()))
    model = named_tree(linear_names())
    assert_exact(tool, config, assignment, model)
    targets = [t for scheme in config.config_groups.values() for t in scheme.targets]
    assert len(targets) <= 6


def test_a_target_that_overlaps_is_found(tool):
    assignment = mixed()
    config = parsed(tool, llm_compressor(assignment, all_names()))
    config.config_groups["group_1"].targets[0] = r"re:^model\.layers\.\d+\.mlp\.down_proj$"
    with pytest.raises(AssertionError, match=r"layers\.1\.mlp\.down_proj"):
        assert_exact(tool, config, assignment, named_tree(linear_names()))


def test_hostile_names_stay_literal(tool):
    names = tuple(HOSTILE)
    assignment = Assignment(dict.fromkeys(names[::2], "int8"), kept=names[1::2])
    config = parsed(tool, llm_compressor(assignment, names))
    # A module of every name, and none of a class that a target could name.
    for name in names:
        module = named_tree(["x"])
        hits = [
            t
            for t in config.config_groups["group_0"].targets
            if tool.match.is_match(name, module, t, ignore=config.ignore)
        ]
        assert len(hits) == (name in assignment.formats), name
        ignored = [t for t in config.ignore if tool.match.is_match(name, module, t)]
        assert len(ignored) == (name in assignment.kept), name


def test_kept_and_unrounded_modules_are_ignored(tool):
    assignment = mixed()
    config = parsed(tool, llm_compressor(assignment, all_names()))
    ignored = {n for n in all_names() if any(tool.match.match_name(n, t) for t in config.ignore)}
    assert ignored == {"lm_head"} | {n for n, f in assignment.formats.items() if f == "bf16"}


# The presets of compressed-tensors; INT8 and FP8_DYNAMIC are per channel and token.
@pytest.mark.parametrize(
    ("name", "operand", "preset"),
    [
        ("nvfp4", "weights", "NVFP4A16"),
        ("nvfp4", "both", "NVFP4"),
        ("mxfp4", "weights", "MXFP4A16"),
        ("mxfp4", "both", "MXFP4"),
        ("mxfp6", "weights", "MXFP6A16"),
        ("mxfp8", "weights", "MXFP8A16"),
        ("mxfp8", "both", "MXFP8"),
        ("fp8_e4m3", "both", "FP8_DYNAMIC"),
        ("int8", "both", "INT8"),
        ("int8_g128", "weights", "W8A16"),
        ("int4", "weights", "W4A16"),
        ("int4_asym", "weights", "W4A16_ASYM"),
        ("int3_g128", "weights", "W3A16"),
    ],
)
def test_a_scheme_is_the_preset_field_by_field(tool, name, operand, preset):
    export = llm_compressor(by_layer([name], operand=operand), all_names(1))
    (scheme,) = parsed(tool, export).config_groups.values()
    theirs = tool.presets.preset_name_to_scheme(preset, scheme.targets)
    assert scheme == theirs


def test_groups_of_activations_are_blocks_of_the_same_size(tool):
    export = llm_compressor(by_layer(["int4_g32_asym"], operand="both"), all_names(1))
    (scheme,) = parsed(tool, export).config_groups.values()
    for arguments in (scheme.weights, scheme.input_activations):
        assert (arguments.num_bits, arguments.group_size, arguments.symmetric) == (4, 32, False)
        assert arguments.strategy == "group"
    assert scheme.input_activations.dynamic is True
    assert scheme.weights.dynamic is False


def test_two_spellings_of_a_format_are_one_group():
    export = llm_compressor(by_layer(["int8", "int8_channel"]), all_names(2))
    assert list(modifier_of(export)["config_groups"]) == ["group_0"]


def test_applied_to_the_demo_model_each_module_carries_its_scheme(tool):
    formats = ["int8", "int4_g32", "bf16", "fp8_e4m3", "nvfp4", "mxfp4", "mxfp8", "int4_g64_asym"]
    model = demo_model()
    assignment = by_layer(formats)
    config = parsed(tool, llm_compressor(assignment, dict(model.named_modules())))
    tool.quantization.apply_quantization_config(model, config, show_progress=False)
    schemes = {n: getattr(m, "quantization_scheme", None) for n, m in model.named_modules()}
    for name, scheme in schemes.items():
        given = assignment.formats.get(name, "bf16")
        if given == "bf16":
            assert scheme is None, name
        else:
            assert scheme.weights.num_bits == int(re.search(r"[48]", given)[0])


def test_nothing_to_quantise_is_refused_because_a_recipe_without_groups_means_everything():
    with pytest.raises(NotExpressible, match="nothing to write"):
        llm_compressor(by_layer(["bf16"]), all_names(1))


def test_activations_of_mxfp6_have_no_scheme():
    with pytest.raises(NotExpressible, match="'mxfp6' for weights and activations; it takes int2"):
        llm_compressor(by_layer(["mxfp6"], operand="both"), all_names(1))


def test_notes_say_where_the_arithmetic_differs():
    notes = " ".join(
        llm_compressor(by_layer(["nvfp4", "mxfp4"], operand="both"), all_names(2)).notes
    )
    assert "rounds an MX scale up" in notes
    assert "calibrated on data" in notes
    assert len(llm_compressor(by_layer(["int8"]), all_names(1)).notes) == 1
