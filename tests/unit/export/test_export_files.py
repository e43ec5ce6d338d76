"""All engines at once: what each takes, and why one is left out."""

import ast
from pathlib import Path

import pytest
from helpers.assigned import all_names, by_layer, mixed

import noisescope.export
from noisescope.assignment import Assignment
from noisescope.errors import InputError
from noisescope.export import EXPORTS, NotExpressible, export_files

NEED_NO_SCHEME = ("patterns", "gguf_names")
FILES = {
    "plain": "assignment.json",
    "llm-compressor": "llm_compressor_recipe.yaml",
    "torchao": "torchao_config.json",
    "modelopt": "modelopt_recipe.yaml",
    "llama.cpp": "llama_cpp_tensor_types.txt",
}


def engines_of(name, operand="weights", **fields):
    """Returns which engines write a file for one format, by the names of the files."""
    made = export_files(by_layer([name], operand=operand, **fields), all_names(1))
    engines = {engine for engine, file in FILES.items() if file in made.files}
    assert set(made.left_out) == set(EXPORTS) - engines
    assert all("\n" not in why for why in made.left_out.values())
    return {engine.removesuffix("-compressor")[:5] for engine in engines - {"plain"}}


# Which engine takes which format; written from the engines' documents, not from the code.
@pytest.mark.parametrize(
    ("name", "weights", "both"),
    [
        ("int8", "llm torch model llama", "llm torch model"),
        ("int8_tensor", "llm torch model llama", "llm torch model"),
        ("int8_g32", "llm torch model llama", "llm model"),
        ("int8_g16", "llm torch model", "llm model"),
        ("int8_asym", "llm torch", "llm"),
        ("int5_g32_asym", "llm torch llama", "llm"),
        ("int4", "llm torch model llama", "llm model"),
        ("int4_g32", "llm torch model llama", "llm model"),
        ("int4_g32_asym", "llm torch llama", "llm"),
        ("int4_tensor", "llm model llama", "llm model"),
        ("int3_g64", "llm torch model", "llm model"),
        ("fp8_e4m3", "llm torch model", "llm torch model"),
        ("fp8_e4m3_tensor", "llm torch model", "llm model"),
        ("fp8_e4m3_g128", "llm torch model", "llm model"),
        ("fp8_e4m3_cast", "", ""),
        ("fp8_e5m2", "torch", ""),
        ("fp6_e2m3", "", ""),
        ("fp4_e2m1_g32", "", ""),
        ("mxfp8", "llm model", "llm torch model"),
        ("mxfp8_e5m2", "model", "model"),
        ("mxfp6", "llm model", "model"),
        ("mxfp6_e3m2", "model", "model"),
        ("mxfp4", "llm model llama", "llm torch model"),
        ("mxfp4_ceil", "", "torch"),
        ("nvfp4", "llm torch model llama", "llm torch model"),
    ],
)
def test_which_engine_takes_which_format(name, weights, both):
    assert engines_of(name) == set(weights.split())
    assert engines_of(name, "both") == set(both.split())


@pytest.mark.parametrize(
    ("name", "dtype", "engines"),
    [
        ("bf16", "bfloat16", "torch model llama"),
        ("bf16", "float32", "torch model llama"),
        ("bf16", "float16", "llama"),
        ("fp16", "float16", "torch model llama"),
        ("fp16", "bfloat16", "llama"),
    ],
)
def test_sixteen_bits_are_the_models_own_or_none(name, dtype, engines):
    """llm-compressor quantises every linear module where a recipe names none, so it gets none."""
    assert engines_of(name, dtype=dtype) == set(engines.split())


def test_an_engine_that_was_asked_for_raises():
    with pytest.raises(NotExpressible, match=r"llama\.cpp: no format 'fp8_e4m3'.* it takes int8"):
        export_files(by_layer(["fp8_e4m3"]), all_names(1), ["llama.cpp"])
    assert list(export_files(mixed(), all_names(), ["plain"]).files) == ["assignment.json"]


@pytest.mark.parametrize(
    ("assignment", "names", "engines", "told"),
    [
        (mixed(), all_names(), ["llamacpp"], "engine 'llamacpp'.*did you mean 'llama.cpp'"),
        (mixed(), all_names(3), None, r"module 'model\.layers\.3.*none of that name; did you mean"),
        (mixed(kept=("lm_heads",)), all_names(), None, "module 'lm_heads'.*did you mean 'lm_head'"),
        (by_layer(["int1"]), all_names(1), None, "format 'int1'"),
    ],
)
def test_wrong_input_raises_whatever_the_engines(assignment, names, engines, told):
    with pytest.raises(InputError, match=told) as caught:
        export_files(assignment, names, engines)
    assert not isinstance(caught.value, NotExpressible)


@pytest.mark.parametrize("engine", EXPORTS)
def test_bound_modules_that_differ_reach_no_engine(engine):
    assignment = mixed()
    # The mapping is not frozen: what was bound when made is looked at again.
    assignment.formats["model.layers.0.self_attn.k_proj"] = "int8"  # type: ignore[index]
    with pytest.raises(InputError, match="bound modules differ"):
        export_files(assignment, all_names(), [engine])


def test_experts_in_one_tensor_and_conv1d_are_not_passed_over_in_silence():
    experts = Assignment({"model.layers.0.mlp.experts": "int8"}, model_type="mixtral")
    made = export_files(experts, ["model.layers.0.mlp.experts"])
    assert set(made.files) == {"assignment.json", "llama_cpp_tensor_types.txt"}
    assert "holds all experts in one tensor" in made.left_out["torchao"]
    conv1d = Assignment({"transformer.h.0.attn.c_attn": "int8"}, model_type="gpt2")
    made = export_files(conv1d, ["transformer.h.0.attn.c_attn"])
    assert set(made.left_out) == {"llm-compressor", "torchao"}
    assert "Conv1D" in made.left_out["torchao"]


def test_sixteen_bits_in_a_float32_model_are_told():
    made = export_files(mixed(dtype="float32"), all_names())
    for file in ("llm_compressor_recipe.yaml", "modelopt_recipe.yaml"):
        assert "modules in bf16 stay in float32, the model's own dtype" in made.notes[file]


def test_same_assignment_same_bytes():
    first, second = (export_files(mixed(), all_names()).files for _ in range(2))
    assert first == second
    assert all(text.endswith(b"\n") for text in first.values())


def test_no_engine_is_imported():
    """By the sources: transformers itself imports torchao where it is installed."""
    engines = {"torchao", "modelopt", "compressed_tensors", "llmcompressor", "gguf"}
    for path in Path(noisescope.export.__file__).parent.glob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        imported |= {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        assert not {name.split(".")[0] for name in imported if name} & engines, path
        assert "noisescope.export.scheme" in imported or path.stem in ("scheme", *NEED_NO_SCHEME)
