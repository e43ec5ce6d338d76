"""The tensor types, read as llama-quantize reads them, against gguf's own names and types."""

import re

import pytest
import torch
from helpers.assigned import all_names, by_layer, demo_model, mixed, rounded
from helpers.small_models import small_model

from noisescope.assignment import Assignment
from noisescope.export import NotExpressible, llama_cpp
from noisescope.export.gguf_names import ARCHITECTURES, TENSORS, tensor_names
from noisescope.export.llama_cpp import BITS

gguf = pytest.importorskip("gguf")

BY_NAME = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
PREFIXES = {"gpt2": "transformer.h", "bloom": "transformer.h", "falcon": "transformer.h"}


def parsed(text):
    """Returns pattern and type of each line, as `parse_tensor_type_file` of llama-quantize does.

    Words split at white space, at the first `=`; names of tensors in lower case.
    """
    entries = []
    for word in text.split():
        pattern, _, kind = word.partition("=")
        entries.append((pattern.lower(), gguf.GGMLQuantizationType[kind.upper()]))
    return entries


def types_of(text, tensors):
    """Returns the type of each tensor: the first pattern that is found in its name."""
    entries = parsed(text)
    return {t: next((k for p, k in entries if re.search(p, t)), None) for t in tensors}


def tensor_map(model_type, n_layers=4):
    return gguf.get_tensor_name_map(BY_NAME[ARCHITECTURES[model_type]], n_layers)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_names_are_ggufs_own(model_type):
    """Every name that both tables know is the same in both."""
    names = tensor_map(model_type)
    prefix = {"gpt_neox": "gpt_neox.layers"}.get(
        model_type, PREFIXES.get(model_type, "model.layers")
    )
    both = 0
    for rest, tensors in TENSORS.items():
        theirs = names.get_name(f"{prefix}.3.{rest}")
        if theirs is not None:
            assert tensor_names(f"{prefix}.3.{rest}") == (theirs,), rest
            assert theirs == f"blk.3.{tensors[0]}"
            both += 1
    assert both >= 4
    assert names.get_name("lm_head") in ("output", None)


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3", "gpt2", "gpt_neox"]
)
def test_every_linear_module_of_a_real_model_has_its_tensor(family):
    model = small_model(family)
    names = tensor_map(family)
    kinds = ("Linear", "Conv1D")
    linear = [n for n, m in model.named_modules() if type(m).__name__ in kinds]
    assert len(linear) > 9
    for name in linear:
        # Gemma 2 ties its head, so gguf does not list it.
        assert tensor_names(name) == (names.get_name(name) or "output",)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_of_a_layer_are_its_stacked_tensors(family):
    model = small_model(family)
    names = tensor_map(family)
    assert "model.layers.2.mlp.experts" in dict(model.named_modules())
    stacked = tensor_names("model.layers.2.mlp.experts")
    apart = {names.get_name(f"model.layers.2.mlp.experts.{p}_proj") for p in ("gate", "up", "down")}
    assert set(stacked) == apart | {"blk.2.ffn_gate_up_exps"}
    assert gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.FFN_GATE_UP_EXP] == "blk.{bid}.ffn_gate_up_exps"
    assert tensor_names("model.layers.2.mlp.experts.11.down_proj") == ("blk.2.ffn_down_exps",)
    assert tensor_names("model.layers.2.block_sparse_moe.experts.7.w3") == ("blk.2.ffn_up_exps",)
    assert tensor_names("model.layers.2.mlp.gate") == (names.get_name("model.layers.2.mlp.gate"),)


@pytest.mark.parametrize(
    "name", ["vision_tower.layers.0.self_attn.q_proj", "model.layers.0.mlp.other", "model", "x"]
)
def test_nothing_is_guessed(name):
    assert tensor_names(name) == ()


def test_bits_are_ggufs_own():
    for kind, bits in BITS.items():
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
        assert bits == 8 * size / block


def test_each_tensor_gets_its_type_and_no_other_gets_any():
    assignment = mixed()
    export = llama_cpp(assignment, all_names())
    kinds = {"mxfp4": "MXFP4", "int4_g32": "Q4_0", "bf16": "BF16"}
    names = tensor_map("llama")
    wanted = {
        f"{names.get_name(module)}.weight": gguf.GGMLQuantizationType[kinds[given]]
        for module, given in assignment.formats.items()
    }
    wanted["output.weight"] = gguf.GGMLQuantizationType.BF16
    others = [
        "token_embd.weight",
        "blk.0.attn_norm.weight",
        "blk.11.attn_q.weight",
        "xblk.0.attn_q",
    ]
    others += [f"blk.{i}.{t}.bias" for i in range(4) for t in ("attn_q", "ffn_down")]
    others += ["blk.0.attn_q_norm.weight", "output_norm.weight", "blk.0.ffn_down_exps.weight"]
    assert types_of(export.text, [*wanted, *others]) == wanted | dict.fromkeys(others)
    patterns = [pattern for pattern, _ in parsed(export.text)]
    for tensor in wanted:
        assert sum(bool(re.search(p, tensor)) for p in patterns) == 1


def test_lines_are_what_the_grammar_takes():
    """ECMAScript's expressions and Python's agree on these characters."""
    text = llama_cpp(mixed(), all_names()).text
    assert re.fullmatch(r"(\^[a-z0-9_\\.()|]+\$=[a-z0-9_]+\n)+", text)
    assert r"^blk\.(0|2|3)\.ffn_down\.weight$=q4_0" in text.splitlines()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("int8_g32", "q8_0"),
        ("int8", "q8_0"),
        ("int8_tensor", "q8_0"),
        ("int8_g64", "q8_0"),
        ("int5_g32", "q5_0"),
        ("int5_g32_asym", "q5_1"),
        ("int4_g32", "q4_0"),
        ("int4", "q4_0"),
        ("int4_g32_asym", "q4_1"),
        ("mxfp4", "mxfp4"),
        ("nvfp4", "nvfp4"),
        ("bf16", "bf16"),
        ("fp16", "f16"),
    ],
)
def test_type_of_a_format(name, kind):
    export = llama_cpp(by_layer([name]), all_names(1))
    tensors = ["blk.0.ffn_up.weight", "blk.0.attn_k.weight"]
    assert types_of(export.text, tensors) == dict.fromkeys(
        tensors, gguf.GGMLQuantizationType[kind.upper()]
    )
    finer = name in ("int8", "int8_tensor", "int8_g64", "int4")
    assert any(f"{name} is written as {kind}" in note for note in export.notes) == finer


@pytest.mark.parametrize(
    "name",
    [
        "int8_g32",
        "int8",
        "int8_tensor",
        "int8_g64",
        "int5_g32",
        "int5_g32_asym",
        "int4_g32",
        "int4",
        "int4_channel",
        "int4_g32_asym",
        "int4_asym",
        "mxfp4",
        "bf16",
        "fp16",
    ],
)
def test_the_error_of_a_type_is_the_formats_or_less(name, weight):
    """gguf's own rounding against ours; a scale in float16 costs less than a hundredth."""
    text = llama_cpp(by_layer([name]), all_names(1)).text
    kind = types_of(text, ["blk.0.ffn_up.weight"])["blk.0.ffn_up.weight"]
    stored = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind)
    theirs = (torch.from_numpy(stored.astype("float32")).reshape(weight.shape) - weight).norm()
    ours = (rounded(name, weight) - weight).norm()
    assert theirs <= 1.01 * ours
    assert theirs >= 0.3 * ours


@pytest.fixture(scope="module")
def weight():
    """A weight of the demo model, off the grid of bfloat16 that it was trained on."""
    weight = demo_model().get_submodule("model.layers.3.mlp.down_proj").weight.detach()
    return weight * 1.0123


def test_what_a_user_must_know_is_told():
    notes = " ".join(llama_cpp(by_layer(["nvfp4"]), all_names(1)).notes)
    assert "--token-embedding-type bf16" in notes
    assert "without a tensor scale" in notes
    assert "token_embd.weight" in notes


def test_kept_modules_are_named_in_the_models_own_dtype():
    for dtype, kind in (("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")):
        export = llama_cpp(mixed(dtype=dtype), all_names())
        assert types_of(export.text, ["output.weight"]) == {
            "output.weight": gguf.GGMLQuantizationType[kind]
        }


def experts(kinds, **fields):
    formats = {f"model.layers.0.mlp.experts.{e}.up_proj": k for e, k in enumerate(kinds)}
    return Assignment(formats, model_type="qwen3_moe", **fields)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        (by_layer(["int8"], operand="both"), "types are of weights alone"),
        (by_layer(["int8"], model_type="opt"), "model_type 'opt' are not known here; known are"),
        (by_layer(["int8_g16"]), "no format 'int8_g16'"),
        (by_layer(["mxfp4_ceil"]), "no format 'mxfp4_ceil'"),
        (by_layer(["int8"], kept=("model.layers.0.mlp",)), "has no tensor that is known"),
        (experts(["int8", "int4"]), "shares tensor 'blk.0.ffn_up_exps'"),
        (
            experts(["int8"], kept=("model.layers.0.mlp.experts.1.up_proj",)),
            "shares tensor .*q8_0 and bf16",
        ),
        (
            Assignment({"model.layers.0.mlp.gate": "int8"}, model_type="mixtral"),
            "is a router, which is never quantised",
        ),
    ],
)
def test_what_cannot_be_said_is_refused(assignment, told):
    names = (*all_names(1), *assignment.formats, *assignment.kept)
    with pytest.raises(NotExpressible, match=told):
        llama_cpp(assignment, names)


def test_experts_of_one_format_are_one_line():
    text = llama_cpp(experts(["int8"] * 8), list(experts(["int8"] * 8).formats)).text
    assert text == "^blk\\.0\\.ffn_up_exps\\.weight$=q8_0\n"
