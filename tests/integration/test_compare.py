"""`noisescope compare`: studies and models by the real command, its gate, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import SMALL_STUDY, files_of, refusal, work_with, write_questions, write_texts
from helpers.model_dirs import CHAT_TEMPLATE, character_tokenizer, save_model
from helpers.small_models import small_model
from safetensors.torch import load_file, save_file

from noisescope.cli import comparing, run
from noisescope.demo import demo_model_dir, demo_questions


def copy_of_the_demo(directory, change=lambda name, weight: weight, **config):
    """Copies the demo model with other weights, or another configuration."""
    shutil.copytree(demo_model_dir(), directory)
    path = directory / "model.safetensors"
    weights = {name: change(name, weight) for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})
    told = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(told))


def shaken(name, weight):
    """Noise as large as the weights themselves in the attention of every layer."""
    if "self_attn" not in name:
        return weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return (weight.float() * (1 + noise)).to(weight.dtype)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """The demo model and copies of it, small Llamas, data, and studies of the small one."""
    root = tmp_path_factory.mktemp("origin")
    (root / "demo").symlink_to(demo_model_dir())
    (root / "questions.parquet").symlink_to(demo_questions())
    copy_of_the_demo(root / "same")
    copy_of_the_demo(root / "shaken", shaken)
    copy_of_the_demo(root / "wide", lambda name, weight: weight.float(), dtype="float32")
    save_model(root / "llama")
    save_model(root / "retrained", small_model("llama", seed=1))
    save_model(root / "larger", small_model("llama", vocab_size=70))
    save_model(root / "plain", tokenizer=character_tokenizer(chat_template=None))
    bare = save_model(root / "bare")
    for path in bare.glob("*token*"):
        path.unlink()
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    write_questions(root / "test.parquet", 12)
    write_texts(root / "texts.txt", 12)
    (root / "empty").mkdir()
    asked = [w for w in SMALL_STUDY if not w.startswith(("--model", "--data", "--noise"))]
    asked += ["--no-predict", f"--data={root / 'test.parquet'}"]
    for name, model, scale in (
        ("study", "llama", 0.2),
        ("noisier", "llama", 0.6),
        ("after", "retrained", 0.2),
    ):
        words = [f"--model={root / model}", f"--noise-scale={scale}", f"--out={root / name}"]
        assert run([*asked, *words]) == 0
    return root


@pytest.fixture
def place(origin, tmp_path, monkeypatch):
    return work_with(origin, tmp_path, monkeypatch)


MODELS = ["--data=questions.parquet", "--device=cpu", "--samples=12", "--memory-gib=1"]
MODELS += ["--max-new-tokens=64"]


def compared(capsys, *words):
    """Runs the command and returns its status, and what it prints as one line."""
    capsys.readouterr()
    status = run(["compare", *words])
    told = capsys.readouterr()
    assert told.err == "", told.err
    return status, " ".join(told.out.split())


def test_a_model_that_was_damaged_fails_the_gate(place, capsys):
    out = place / "out"
    gates = ["--fail-if", "kl>0.02", "--fail-if", "accuracy<-1%"]
    status, text = compared(capsys, "demo", "shaken", *MODELS, *gates, f"--out={out}")
    assert status == 1
    assert "Gate kl>0.02 is shown (exit 1): KL(A || B) is " in text
    assert re.search(r"Gates: kl>0.02(, accuracy<-1%)? shown.* \(exit 1\)\.$", text)
    assert "the weights are identical" not in text
    result = json.loads((out / "compare.json").read_text())
    assert result["exit_status"] == 1 and result["a"]["path"] == "demo"
    kl, accuracy = result["changes"][:2]
    assert kl["b"] > 0.02 and kl["samples_a"] == 12 and kl["difference"]["low"] > 0.02
    assert accuracy["a"] == 1.0 and accuracy["flips"]["lost"] == pytest.approx(1 - accuracy["b"])
    page = (out / "report.html").read_text()
    assert "Gate kl&gt;0.02 is shown" in page
    assert "noisescope compare demo shaken --data questions.parquet --samples 12" in page
    assert {p.name for p in (out / "figures").iterdir()} == {"samples.png", "samples.csv"}


def test_a_model_in_another_precision_passes_it(place, capsys):
    status, text = compared(capsys, "demo", "wide", *MODELS, "--fail-if=kl>0.02")
    assert status == 0
    assert "A demo (bfloat16, cpu)" in text and "B wide (float32, cpu)" in text
    assert "Differs: dtype: bfloat16 in A, float32 in B" in text
    assert re.search(r"is excluded \(exit 0\): KL\(A \|\| B\) is .*, within 0.02 \(p .*\)\.$", text)


def test_too_few_samples_to_tell_are_neither(place, capsys):
    status, text = compared(capsys, "demo", "wide", *MODELS, "--fail-if=accuracy<-1%")
    assert status == 3
    assert text.endswith("about 300 samples would settle it if that holds.")
    assert "Gate accuracy<-1% is inconclusive (exit 3)" in text


def test_the_same_weights_differ_by_exactly_nothing(place, capsys):
    words = ["--data=questions.parquet", "--device=cpu", "--samples=2", f"--out={place / 'out'}"]
    status, text = compared(capsys, "demo", "same", *words, "--fail-if=kl>1e-9")
    assert status == 0 and "Note: the weights are identical (sha256:" in text
    assert text.endswith("the weights are identical, so KL(A || B) is the same.")
    result = json.loads((place / "out" / "compare.json").read_text())
    assert result["models_are_identical"]
    assert [c["difference"]["mean"] for c in result["changes"]] == [0, 0, 0]


def test_without_a_gate_the_status_is_0_and_nothing_is_written(place, capsys):
    before = sorted(place.rglob("*"))
    status, text = compared(capsys, "llama", "retrained", "--data=texts.txt", "--device=cpu")
    assert status == 0 and sorted(place.rglob("*")) == before
    assert text.endswith("Nothing was written: --out DIR keeps the comparison and its report.")
    assert "KL(A || B), nats/token" in text and "NLL, nats/token" in text
    assert "accuracy" not in text


def test_a_model_without_a_tokenizer_takes_that_of_the_other(place, capsys):
    words = ["--data=texts.txt", "--device=cpu", "--fail-if=nll>0.1"]
    status, text = compared(capsys, "llama", "bare", *words)
    assert status == 0 and "B: it has no tokenizer: that of A is used" in text


def test_a_quantised_checkpoint_is_held_against_the_original(tmp_path, engines):
    """As far from it as the same model with the weights rounded by hand.

    In a process of its own: transformers asks once for the library that loads such checkpoints.
    """
    tests = Path(__file__).parents[1]
    paths = [str(tests), str(engines), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, tests / "helpers" / "quantised.py", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    packed, rounded = json.loads(done.stdout.splitlines()[-1])
    assert packed == pytest.approx(rounded, rel=1e-3) and packed > 0.001


def test_two_scales_of_one_model_are_compared_under_the_same_noise(place, capsys):
    out = place / "out"
    before = [files_of(place / name) for name in ("study", "noisier")]
    status, text = compared(capsys, "study", "noisier", "--fail-if=kl[L1]>1e-4", f"--out={out}")
    assert status == 1 and "Gate kl[L1]>1e-4 is shown (exit 1): KL in L1 changes by +" in text
    assert "A study: layers of" in text and "RelativeGaussian 0.2; 12 samples, 1 draw" in text
    assert "Differs: error model scale: 0.2 in A, 0.6 in B (every condition)" in text
    assert "the weights are identical" in text and "12 samples are paired" in text
    assert "Under noise KL rises beyond chance in all 3 conditions" in text
    result = json.loads((out / "compare.json").read_text())
    assert set(result["doses"]) == {"L0", "L1", "L2"}
    for condition in ("L0", "L1", "L2"):
        found = {
            name: json.loads((place / name / "result.json").read_text())["layer_sensitivity"][
                condition
            ]["kl_nats_per_token"]["mean"]
            for name in ("study", "noisier")
        }
        entry = next(
            c for c in result["changes"] if (c["condition"], c["measure"]) == (condition, "kl")
        )
        assert (entry["a"], entry["b"]) == pytest.approx((found["study"], found["noisier"]))
        assert entry["difference"]["mean"] == pytest.approx(found["noisier"] - found["study"])
    assert [files_of(place / name) for name in ("study", "noisier")] == before
    assert {"differences-kl.png", "differences-accuracy.csv", "samples.png"} <= {
        p.name for p in (out / "figures").iterdir()
    }


def test_before_and_after_training(place, capsys):
    status, text = compared(capsys, "study", "after", "--fail-if=kl>100")
    assert status == 0 and "the weights are identical" not in text
    assert "Gate kl>100 is excluded" in text and "Without noise accuracy is" in text


def test_a_study_against_itself_is_exactly_the_same(place, capsys):
    status, text = compared(capsys, "study", "study", "--fail-if=kl>1e-9", "--fail-if=accuracy<-1%")
    assert status == 0 and "Under noise KL is the same in all 3 conditions." in text
    assert text.endswith("Gates: kl>1e-9, accuracy<-1% excluded (exit 0).")


REFUSED = [
    (["nothing", "study"], "there is no directory nothing: name that of a study or of a model"),
    (["study", "empty"], "empty holds neither a study (manifest.json) nor a model (config.json)"),
    (["study", "texts.txt"], "texts.txt is a file: name the directory of a study or of a model"),
    (["study", "llama"], "study is a study and llama is a model: give two studies, or two models"),
    (["llama", "study"], "study is a study and llama is a model: give two studies, or two models"),
    (["llama", "llama"], "two models need --data: questions (.parquet, .jsonl) or a plain .txt"),
    (["study", "after", "--data=texts.txt"], "--data is for two models: two studies are compared"),
    (["study", "after", "--dtype=float32"], "--dtype is for two models: two studies are compared"),
    (["study", "after", "--trust-remote-code"], "--trust-remote-code is for two models"),
    (["study", "after", "--fail-if=kl<1"], "--fail-if: Gate 'kl<1' cannot be used; kl rises, in"),
    (["nothing", "none", "--fail-if=x"], "--fail-if: Gate 'x' cannot be used: give 'kl>0.02' or"),
    (["study", "after", "--fail-if=kl[L9]>1"], "no condition 'L9' was compared; did you mean '"),
    (["study", "after", "--fail-if=nll>1"], "no nll was compared; name one of accuracy, kl"),
    (["study", "after", "--out=llama"], "--out llama exists already: name one that does not"),
    (["study", "after", "--out=none/x"], "--out none/x: there is no directory"),
    (["llama", "larger", "--data=texts.txt"], "the vocabularies differ, 64 tokens in A and 70 in"),
    (["llama", "plain", "--data=test.parquet"], "the tokenizers encode sample '0' differently ("),
    (["llama", "llama", "--data=none.txt"], "none.txt"),
    (["llama", "llama", "--data=texts.txt", "--samples=0"], "samples 0: give a whole number"),
    (["llama", "llama", "--data=texts.txt", "--memory-gib=0"], "--memory-gib 0"),
    (["llama", "llama", "--data=texts.txt", "--batch-size=0"], "--batch-size 0"),
    (["llama", "llama", "--data=texts.txt", "--dtype=int3"], "dtype 'int3': accepted are float32"),
    (["llama", "llama", "--data=texts.txt", "--fail-if=accuracy<-1%"], "nothing is generated from"),
    (["llama", "llama", "--data=texts.txt", "--fail-if=kl[L0]>1"], "two models have no condition"),
    (["llama"], "Missing argument 'B'"),
]


@pytest.mark.parametrize(("words", "line"), REFUSED, ids=[" ".join(w) for w, _ in REFUSED])
def test_what_cannot_be_compared_is_refused_in_one_line(place, capsys, words, line):
    before = sorted(place.rglob("*"))
    told = refusal(capsys, "compare", *words)
    assert told.startswith("Error: ") and line in told
    assert sorted(place.rglob("*")) == before


def test_nothing_is_loaded_before_the_gate_is_read(place, capsys, monkeypatch):
    monkeypatch.setattr(comparing, "load_model", None)
    words = ["llama", "llama", "--data=texts.txt"]
    for gate in ("--fail-if=kl", "--fail-if=accuracy<-1%", "--fail-if=kl[L0]>1"):
        assert "give" in refusal(capsys, "compare", *words, gate) or "leave" in gate + "leave"


def test_a_study_that_was_changed_by_hand_is_refused(place, origin, capsys):
    shutil.copytree(origin / "study", place / "changed")
    path = place / "changed" / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    assert "manifest.json was changed since it was written" in refusal(
        capsys, "compare", "changed", "study"
    )


def test_a_study_without_records_is_refused(place, origin, capsys):
    (place / "begun").mkdir()
    shutil.copy(origin / "study" / "manifest.json", place / "begun")
    assert "begun (B) has no records yet" in refusal(capsys, "compare", "study", "begun")


def test_a_directory_that_holds_something_is_not_written_into(place, capsys):
    (place / "kept").mkdir()
    (place / "kept" / "mine").write_text("mine")
    line = refusal(capsys, "compare", "study", "after", "--out=kept")
    assert "--out kept exists already" in line
    assert [p.name for p in (place / "kept").iterdir()] == ["mine"]


def test_the_template_of_the_tokenizer_is_what_differs():
    """What the case of two tokenizers above rests on."""
    assert CHAT_TEMPLATE and character_tokenizer().chat_template
