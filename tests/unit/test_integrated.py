"""`IntegratedDiagnostic`: any form of a model in, a verdict and a report out, nothing changed."""

import pytest
import torch
from helpers.commands import files_of, with_plain_figures
from helpers.diagnoses import small_task, whole_diagnosis
from helpers.model_dirs import character_tokenizer, loaded_small, save_model
from helpers.small_models import small_model

from noisescope import InputError, IntegratedDiagnostic, result_of
from noisescope.models import in_memory

TEXTS = ["the dog ran", "a cat sat", "one two three"]
QUICK = {"operators": "silu", "window": 3, "scales": [0.1], "noise_scale": 0.2}


def test_it_says_what_the_diagnosis_says(tmp_path, monkeypatch):
    with_plain_figures(monkeypatch)
    loaded = loaded_small()
    diagnostic = IntegratedDiagnostic(loaded, noise_scale=0.2, draws=2, until="kl=0.1")
    diagnosis = diagnostic.run(small_task(loaded))
    assert diagnosis is diagnostic.diagnosis
    assert result_of(diagnosis) == result_of(whole_diagnosis())
    assert diagnostic.verdict == result_of(diagnosis)["verdict"]["paragraph"]
    written = diagnostic.report(tmp_path / "a" / "report")
    assert written[:2] == ("result.json", "report.html")
    assert {"figures/map.png", "figures/dose.png", "figures/dose.csv"} < set(written)
    assert files_of(tmp_path / "a" / "report").keys() == set(written)


def test_a_model_in_memory_is_as_before(tmp_path):
    model = small_model("llama").train()
    model.model.layers[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    diagnostic = IntegratedDiagnostic(model, character_tokenizer(), out=tmp_path / "s", **QUICK)
    diagnostic.run(TEXTS)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(torch.equal(weights[n], t) for n, t in model.state_dict().items())
    assert (tmp_path / "s" / "complete.json").exists()


def test_it_is_as_before_after_an_error_too():
    model = small_model("llama").train()
    with pytest.raises(InputError, match="no samples"):
        IntegratedDiagnostic(model, character_tokenizer(), **QUICK).run([])
    with pytest.raises(InputError, match="window of 9 layers"):
        IntegratedDiagnostic(model, character_tokenizer(), **{**QUICK, "window": 9}).run(TEXTS)
    assert all(module.training for module in model.modules())


def test_a_directory_and_a_model_in_memory_give_the_same_figures(tmp_path):
    model = small_model("llama")
    path = save_model(tmp_path / "llama", model)
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS))
    figures = []
    for diagnostic, data in (
        (IntegratedDiagnostic(path, **QUICK), tmp_path / "texts.txt"),
        (IntegratedDiagnostic(model, character_tokenizer(), **QUICK), TEXTS),
    ):
        records = diagnostic.run(data).records
        figures.append([(r.condition, r.sample, r.kl_nats) for r in records])
    assert figures[0] == figures[1]


def test_pairs_are_questions_with_their_answers():
    model = small_model("llama")
    diagnostic = IntegratedDiagnostic(
        model, character_tokenizer(), max_new_tokens=2, samples=2, **QUICK
    )
    diagnosis = diagnostic.run([("2+3=?", 5), ("4-1=?", "3"), ("1+1=?", 2)])
    assert len(diagnosis.plan.samples) == 2
    assert diagnosis.baseline_accuracy == diagnosis.baseline_accuracy  # answers were generated


def test_what_it_cannot_use_is_told():
    model = small_model("llama")
    with pytest.raises(InputError, match="call run"):
        _ = IntegratedDiagnostic(model).verdict
    with pytest.raises(InputError, match="model Linear: a directory, a LoadedModel or"):
        IntegratedDiagnostic(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="noise scale -1"):
        IntegratedDiagnostic(model, noise_scale=-1)
    with pytest.raises(InputError, match="no such model directory"):
        IntegratedDiagnostic("nowhere")
    with pytest.raises(InputError, match="as an object"):
        IntegratedDiagnostic(model, "directory")
    with pytest.raises(InputError, match="as a directory"):
        IntegratedDiagnostic("nowhere", character_tokenizer())
    with pytest.raises(InputError, match="has its tokenizer already"):
        IntegratedDiagnostic(loaded_small(), character_tokenizer())
    with torch.device("meta"):
        empty = small_model("llama")
    with pytest.raises(InputError, match="has no weights"):
        IntegratedDiagnostic(empty)


def test_a_model_in_memory_is_described_as_a_loaded_one():
    model = small_model("llama")
    found = in_memory(model)
    assert found.model is model and found.dtype == torch.float32
    assert found.context_length == model.config.max_position_embeddings
    assert found.fingerprint.startswith("sha256:")
    assert found.notes == ("no tokenizer given: samples must be given as token ids",)
    assert in_memory(model, character_tokenizer()).notes == ()
