"""The plan's scripts, as their users type them."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.shared import shared_path
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from noisescope.cli import run
from noisescope.demo import demo_model_dir

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run_script(name: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


@pytest.fixture(scope="module")
def random_qwen(tmp_path_factory) -> Path:
    """A randomly initialised model of Qwen2.5's shape in small, with a tokenizer and a template."""
    path = tmp_path_factory.mktemp("models") / "random-qwen"
    tokenizer = AutoTokenizer.from_pretrained(demo_model_dir())
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=640,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def script_here(monkeypatch, capsys):
    """Runs a script in this process; returns its status and standard error."""

    def run_here(name: str, *words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [name, *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPTS / name), run_name="__main__")
        return left.value.code or 0, capsys.readouterr().err

    return run_here


def test_the_plans_script_from_end_to_end(script_here, random_qwen, tmp_path):
    """GSM8K in the plan's layout through an untrained model: every answer is wrong, and said so.

    It never ends an answer by itself, so that all of them are cut.
    """
    questions = shared_path("data/gsm8k/test.parquet")
    result_file = tmp_path / "result.json"
    words = ["--checkpoint", str(random_qwen), "--tokenizer", str(random_qwen)]
    words += ["--test-data", str(questions), "--noise-scale", "0.05", "--window-size", "2"]
    words += ["--n-samples", "3", "--max-new-tokens", "32", "--output", str(result_file)]
    status, error = script_here("layer_sensitivity_diagnosis.py", *words)
    assert status == 0, error
    result = json.loads(result_file.read_text())
    assert result["config"]["model"] == str(random_qwen)
    assert result["config"]["noise_scale"] == 0.05
    assert result["config"]["window_size"] == 2
    assert result["config"]["n_samples"] == 3
    assert result["config"]["max_new_tokens"] == 32
    assert result["baseline_accuracy"] == 0
    assert list(result["layer_sensitivity"]) == ["L0-1", "L2-3"]
    for window in result["layer_sensitivity"].values():
        assert window["accuracy"] == 0
        assert window["degradation"] is None
        assert "nothing to lose" in window["degradation_note"]
        assert window["kl_nats_per_token"]["mean"] > 0
        assert window["dose"]["relative_l2"] == pytest.approx(0.05, rel=0.1)
        layers = {str(n) for n in window["layers"]}
        assert set(window["injection_stats"]) == layers
        assert all(s["forward"] > 0 for s in window["injection_stats"].values())
    assert result["avalanche_point"] is None
    assert "nothing to lose" in result["avalanche"]["reason"]
    assert list(tmp_path.iterdir()) == [result_file]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--noise-scale", "-1", "noise scale -1"),
        ("--noise-scale", "nan", "noise scale nan"),
        ("--window-size", "9", "window of 9 layers"),
        ("--window-size", "x", "'x'"),
        ("--n-samples", "0", "0"),
        ("--test-data", "nowhere.parquet", "nowhere.parquet"),
        ("--checkpoint", "nowhere", "nowhere"),
    ],
)
def test_a_wrong_argument_is_one_line_and_writes_nothing(
    script_here, random_qwen, tmp_path, option, value, said
):
    given = {
        "--checkpoint": str(random_qwen),
        "--test-data": str(demo_model_dir() / "test.parquet"),
        "--output": str(tmp_path / "result.json"),
        "--n-samples": "2",
    }
    given[option] = value
    words = [word for pair in given.items() for word in pair]
    status, error = script_here("layer_sensitivity_diagnosis.py", *words)
    assert status == 2
    assert error.count("\n") == 1
    assert said in error
    assert not list(tmp_path.iterdir())


def test_a_result_that_exists_is_left_alone(script_here, random_qwen, tmp_path):
    result_file = tmp_path / "result.json"
    result_file.write_text("mine")
    words = ["--checkpoint", str(random_qwen), "--output", str(result_file)]
    questions = str(demo_model_dir() / "test.parquet")
    status, error = script_here("layer_sensitivity_diagnosis.py", *words, "--test-data", questions)
    assert status == 2
    assert "exists already" in error
    assert result_file.read_text() == "mine"


def test_diagnose_model_is_the_command_line(script_here, capsys):
    words = ("layers", "--window", "x")
    status, error = script_here("diagnose_model.py", *words)
    assert status == run(list(words)) == 2
    assert error == capsys.readouterr().err


@pytest.mark.slow
def test_as_a_process_the_script_says_the_same(script_here):
    words = ("layers", "--window", "x")
    done = run_script("diagnose_model.py", *words)
    assert (done.returncode, done.stderr) == script_here("diagnose_model.py", *words)
