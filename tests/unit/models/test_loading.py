"""Loading a directory: what comes back, and one line for each directory that cannot be used."""

import contextlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers.shared import shared_path
from helpers.small_models import small_model
from transformers.utils import logging as transformers_logging

from noisescope.errors import InputError
from noisescope.models import fingerprint, load_model


def save(directory: Path, family: str = "llama", **options: Any) -> Path:
    """Saves a small model, silently, and returns its directory."""
    previous = transformers_logging.set_tqdm_hook(
        lambda factory, args, kwargs: factory(*args, **{**kwargs, "disable": True})
    )
    try:
        small_model(family).save_pretrained(directory, **options)
    finally:
        transformers_logging.set_tqdm_hook(previous)
    return directory


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save(tmp_path / "llama")


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    file = directory / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})


def edit_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        load_model(path, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_directory_becomes_a_model_ready_to_measure(llama: Path) -> None:
    loaded = load_model(llama, device="cpu")
    saved = small_model("llama")
    assert fingerprint(saved) == loaded.fingerprint == fingerprint(loaded.model)
    assert not loaded.model.training
    assert (loaded.path, loaded.dtype, loaded.device.type) == (llama, torch.float32, "cpu")
    assert loaded.context_length == 64
    assert loaded.tokenizer is None
    assert loaded.notes == ("no tokenizer beside the model: samples must be given as token ids",)
    ids = torch.arange(3, 12)[None]
    assert torch.equal(loaded.model(ids).logits, saved(ids).logits)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert", "opt"])
def test_tied_and_masked_models_load_with_all_their_weights(tmp_path: Path, family: str) -> None:
    loaded = load_model(save(tmp_path, family), device="cpu")
    assert type(loaded.model) is type(small_model(family))
    assert loaded.fingerprint == fingerprint(small_model(family))
    assert loaded.context_length == 64


def test_shards_are_put_together(tmp_path: Path) -> None:
    directory = save(tmp_path, max_shard_size="20KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    assert load_model(directory).fingerprint == fingerprint(small_model("llama"))


@pytest.mark.parametrize("given", ["bfloat16", torch.bfloat16])
def test_the_dtype_is_the_one_asked_for(llama: Path, given: str | torch.dtype) -> None:
    loaded = load_model(llama, dtype=given)
    assert loaded.dtype is torch.bfloat16
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert loaded.fingerprint == fingerprint(small_model("llama").to(torch.bfloat16))


@pytest.mark.parametrize("given", [None, "auto"])
def test_without_a_dtype_it_is_as_saved(tmp_path: Path, given: str | None) -> None:
    small_model("llama").to(torch.float16).save_pretrained(tmp_path)
    assert load_model(tmp_path, dtype=given).dtype is torch.float16


def test_attention_is_fused_unless_asked_otherwise(llama: Path) -> None:
    assert load_model(llama).model.config._attn_implementation == "sdpa"
    eager = load_model(llama, attn_implementation="eager")
    assert eager.model.config._attn_implementation == "eager"


def test_device_auto_spreads_the_model_over_what_is_here(llama: Path) -> None:
    assert load_model(llama, device="auto").fingerprint == load_model(llama).fingerprint


def test_a_tensor_without_a_place_is_noted(llama: Path) -> None:
    edit_weights(llama, odd=torch.zeros(2))
    notes = load_model(llama).notes
    assert "tensors in the files that the model has no place for: odd" in notes


def test_code_that_lies_beside_a_known_architecture_is_not_run(llama: Path) -> None:
    edit_config(llama, auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (llama / "modeling.py").write_text("raise SystemExit('was run')")
    assert load_model(llama).fingerprint == fingerprint(small_model("llama"))


def test_stories_comes_with_its_tokenizer_and_a_padding_token() -> None:
    loaded = load_model(shared_path("models/stories260K"))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.pad_token == "</s>"
    assert loaded.context_length == 512
    assert loaded.notes == ()
    assert loaded.fingerprint.startswith("sha256:")


def test_nano_sort_sorts_and_has_no_tokenizer() -> None:
    loaded = load_model(shared_path("models/gpt-nano-sort"), device="cpu")
    assert loaded.tokenizer is None
    assert loaded.context_length == 11
    ids = torch.tensor([[2, 0, 1, 1, 0, 2]])
    for _ in range(6):
        next_id = loaded.model(ids).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, next_id], dim=1)
    assert ids[0, 6:].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_tokenizer_may_lie_elsewhere(llama: Path) -> None:
    loaded = load_model(llama, tokenizer=shared_path("models/stories260K"))
    assert loaded.tokenizer is not None
    assert loaded.notes == ()


def test_loading_is_silent_and_leaves_the_log_as_it_was(
    llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    edit_weights(llama, odd=torch.zeros(2))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    hook = transformers_logging.set_tqdm_hook(None)
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.INFO)
    transformers_logging.add_handler(handler)
    try:
        load_model(llama)
        with contextlib.suppress(InputError):
            load_model(llama, dtype="float16", device="cpu", tokenizer=llama)
        assert records == []
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.set_tqdm_hook(hook) is None
    finally:
        transformers_logging.remove_handler(handler)
        transformers_logging.set_verbosity(verbosity)
    output = capfd.readouterr()
    assert output.out == ""
    assert output.err == ""


def test_the_log_is_restored_after_a_failure_while_loading(llama: Path) -> None:
    edit_weights(llama, model__norm__weight=None)
    before = transformers_logging.get_verbosity()
    refusal(llama)
    assert transformers_logging.get_verbosity() == before
    assert transformers_logging.set_tqdm_hook(None) is None


def test_what_is_no_directory_is_refused(llama: Path) -> None:
    assert "no such model directory: '/nowhere'" in refusal("/nowhere")
    assert "hf download NAME --local-dir DIR" in refusal("Qwen/Qwen2.5-0.5B")
    assert "is a file: give the directory" in refusal(llama / "config.json")


def test_paths_that_the_system_refuses_are_answered_in_one_line(tmp_path: Path) -> None:
    directory = save(tmp_path, max_shard_size="20KB")
    long = tmp_path / ("x" * 256)
    assert "cannot read model directory" in refusal(long)
    assert "cannot read tokenizer directory" in refusal(directory, tokenizer=long)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x" * 256}}))
    assert "File name too long; give a directory" in refusal(directory)


def test_a_directory_without_config_is_refused(llama: Path) -> None:
    (llama / "config.json").unlink()
    assert "no config.json in" in refusal(llama)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"llama"',
        pytest.param("[" * 100_000, id="deep"),
        pytest.param("9" * 5000, id="huge"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(llama: Path, text: str) -> None:
    (llama / "config.json").write_text(text)
    assert "config.json' is not " in refusal(llama)


def test_an_architecture_that_is_not_known_is_refused(llama: Path) -> None:
    edit_config(llama, model_type="unheard_of")
    assert "cannot load the configuration in" in refusal(llama)


def test_a_field_of_the_wrong_type_is_refused(llama: Path) -> None:
    edit_config(llama, hidden_size="wide")
    assert "cannot load the configuration in" in refusal(llama)


@pytest.mark.parametrize("value", [["a"], 3])
def test_a_model_type_that_is_no_text_is_refused(llama: Path, value: Any) -> None:
    edit_config(llama, model_type=value)
    assert f"model_type {value!r} in" in refusal(llama)


@pytest.mark.parametrize("field", ["num_attention_heads", "num_key_value_heads"])
def test_a_model_of_zero_heads_is_refused(llama: Path, field: str) -> None:
    edit_config(llama, **{field: 0, "head_dim": None})
    assert "cannot load the " in refusal(llama)


@pytest.mark.parametrize("value", [[3], 3])
def test_architectures_that_are_no_texts_are_refused(llama: Path, value: Any) -> None:
    edit_config(llama, architectures=value)
    assert "cannot load the configuration in" in refusal(llama)


@pytest.mark.parametrize("value", ["2", -1, 2.0, True, [2, -1], [[2]], {"a": 1}])
def test_an_end_token_that_is_no_token_id_is_refused(llama: Path, value: Any) -> None:
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    assert f"eos_token_id {value!r} in" in refusal(llama)


@pytest.mark.parametrize("content", [{}, {"eos_token_id": None}, {"eos_token_id": [2, 3]}])
def test_end_tokens_may_be_several_or_none(llama: Path, content: dict[str, Any]) -> None:
    (llama / "generation_config.json").write_text(json.dumps(content))
    loaded = load_model(llama)
    assert loaded.model.generation_config is not None
    assert loaded.model.generation_config.eos_token_id == content.get("eos_token_id")


def test_a_model_that_is_no_language_model_is_refused(llama: Path) -> None:
    edit_config(llama, model_type="vit", architectures=["ViTModel"])
    assert "model_type 'vit' is no causal or masked language model" in refusal(llama)


def test_own_code_needs_its_flag(llama: Path) -> None:
    edit_config(llama, model_type="own", auto_map={"AutoConfig": "configuration.Own"})
    assert "allow it with --trust-remote-code" in refusal(llama)


def test_a_directory_without_safetensors_is_refused(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    assert "no safetensors file in" in refusal(llama)
    (llama / "pytorch_model.bin").write_bytes(b"")
    assert "only pytorch_model.bin: such files can run code" in refusal(llama)


@pytest.mark.parametrize("keep", [0, 4, 3000, -1])
def test_a_weight_file_that_was_cut_short_is_refused(llama: Path, keep: int) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    assert "the file is damaged or cut short" in refusal(llama)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = save(tmp_path, max_shard_size="20KB")
    first, *others = sorted(directory.glob("*.safetensors"))
    first.unlink()
    assert f"1 of {len(others) + 1} shards missing" in refusal(directory)
    assert f"first {first.name}" in refusal(directory)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', "nothing"])
def test_an_index_that_names_no_shards_is_refused(tmp_path: Path, text: str) -> None:
    directory = save(tmp_path, max_shard_size="20KB")
    (directory / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json' " in refusal(directory)


def test_a_weight_that_is_missing_is_named(llama: Path) -> None:
    edit_weights(llama, model__norm__weight=None, lm_head__weight=None)
    assert "weights missing in" in refusal(llama)
    assert "lm_head.weight, model.norm.weight; they would be random" in refusal(llama)


def test_a_tied_head_may_be_missing(tmp_path: Path) -> None:
    directory = save(tmp_path, "qwen2")
    assert "lm_head.weight" not in safetensors.torch.load_file(directory / "model.safetensors")
    assert load_model(directory).fingerprint == fingerprint(small_model("qwen2"))


def test_a_weight_of_another_shape_is_named(llama: Path) -> None:
    edit_weights(llama, model__norm__weight=torch.zeros(5))
    assert "model.norm.weight in" in refusal(llama)
    assert "has shape (5,), config.json asks for (32,)" in refusal(llama)


def test_a_tokenizer_that_is_not_there_is_refused(llama: Path) -> None:
    assert "no tokenizer in" in refusal(llama, tokenizer=llama)
    assert "no such tokenizer directory" in refusal(llama, tokenizer="/nowhere")


def test_a_damaged_tokenizer_is_refused(llama: Path) -> None:
    shutil.copy(shared_path("models/stories260K") / "tokenizer_config.json", llama)
    (llama / "tokenizer.json").write_text("{")
    assert "cannot load the tokenizer in" in refusal(llama)


def test_a_tokenizer_config_that_is_no_object_is_refused(llama: Path) -> None:
    shutil.copy(shared_path("models/stories260K") / "tokenizer.json", llama)
    (llama / "tokenizer_config.json").write_text("[]")
    assert "cannot load the tokenizer in" in refusal(llama)


@pytest.mark.parametrize("dtype", ["fp8", "int8", "", torch.int8, torch.float64])
def test_a_dtype_that_is_not_accepted_is_refused(llama: Path, dtype: Any) -> None:
    text = refusal(llama, dtype=dtype)
    assert text.startswith(
        f"dtype {str(dtype)!r}: accepted are float32, bfloat16, float16 and auto"
    )


@pytest.mark.parametrize("device", ["cuda:99", "tpu", ""])
def test_a_device_that_is_not_here_is_refused(llama: Path, device: str) -> None:
    assert refusal(llama, device=device).startswith(
        f"device {device!r}: not available; accepted here: cpu"
    )


def test_devices_are_those_of_the_machine(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "device 'cuda': not available" in refusal(llama, device="cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "accepted here: cpu, cuda, cuda:0, cuda:1" in refusal(llama, device="cuda:2")


def test_mps_is_refused_for_want_of_float64(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "device 'mps': not available" in refusal(llama, device="mps")


@pytest.mark.parametrize("name", ["flash", "someone/kernel"])
def test_an_attention_that_is_not_known_is_refused(llama: Path, name: str) -> None:
    assert refusal(llama, attn_implementation=name).startswith(
        f"attention '{name}': accepted are sdpa, eager"
    )
