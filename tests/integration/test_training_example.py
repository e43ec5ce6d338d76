"""`examples/robust_training.py`: refusals, going on after an interrupt, and the whole of it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.commands import files_of
from safetensors.torch import load_file
from transformers.utils import logging as transformers_logging

EXAMPLE = Path(__file__).parents[2] / "examples" / "robust_training.py"
SMALL = ("--steps=2", "--batch=1", "--samples=2", "--draws=1")


@pytest.fixture
def example(monkeypatch):
    """The example as a module; what it does to logging and the path is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    verbosity = transformers_logging.get_verbosity()
    spec = importlib.util.spec_from_file_location("robust_training", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "robust_training", module)
    spec.loader.exec_module(module)
    yield module
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()
    sys.modules.pop("train_demo_model", None)


def trained_only(example, monkeypatch):
    """Leaves diagnosis and comparison out."""
    monkeypatch.setattr(example, "diagnose", lambda arm, out, settings: None)
    monkeypatch.setattr(example, "compare", lambda out: 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--steps=0",), "--steps 0: a whole number of at least 1 is needed"),
        (("--train-noise=-1",), "--train-noise -1.0: a number above 0 is needed"),
        (("--peak=0",), "--peak 0.0: a number above 0 is needed"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_written(
    example, tmp_path, capsys, words, said
):
    assert example.main(["--out", str(tmp_path / "x"), *words]) == 2
    assert capsys.readouterr().err == f"Error: {said}\n"
    assert not (tmp_path / "x").exists()


def test_a_directory_of_something_else_is_left_alone(example, tmp_path, monkeypatch, capsys):
    trained_only(example, monkeypatch)
    (tmp_path / "mine").write_text("kept")
    assert example.main(["--out", str(tmp_path)]) == 2
    assert "is not empty and not of this example: name another" in capsys.readouterr().err
    assert files_of(tmp_path) == {"mine": b"kept"}


def test_another_run_of_the_same_directory_needs_the_same_options(
    example, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(example, "train", lambda arm, out, settings: None)
    trained_only(example, monkeypatch)
    assert example.main(["--out", str(tmp_path / "x"), *SMALL]) == 0
    before = files_of(tmp_path)
    assert example.main(["--out", str(tmp_path / "x"), *SMALL]) == 0
    assert example.main(["--out", str(tmp_path / "x"), *SMALL, "--seed=1"]) == 2
    assert "was begun with other options (seed 0): give those again" in capsys.readouterr().err
    assert files_of(tmp_path) == before
    (tmp_path / "x" / "settings.json").write_text("{")
    assert example.main(["--out", str(tmp_path / "x"), *SMALL]) == 2
    assert "settings.json is not JSON any more: name another --out" in capsys.readouterr().err


@pytest.mark.slow
def test_stopped_it_goes_on_to_the_same_weights(example, tmp_path, monkeypatch, capsys):
    trained_only(example, monkeypatch)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert example.main(["--out", str(whole), *SMALL]) == 0
    told = capsys.readouterr().out
    assert "clean: step 2 of 2, loss " in told and ", no noise, " in told
    assert "noisy: step 2 of 2, loss " in told and ", dose 0.1 on 9" in told

    def interrupt(self, args, state, control, **given):
        if self.arm == "noisy" and state.global_step == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(example.Progress, "on_save", interrupt, raising=False)
        assert example.main(["--out", str(stopped), *SMALL]) == 130
    assert "Interrupted: the same command goes on from here." in capsys.readouterr().err
    assert example.main(["--out", str(stopped), *SMALL]) == 0
    assert "clean: trained already" in capsys.readouterr().out
    weights = {}
    for arm in ("clean", "noisy"):
        files = [d / arm / "model" / "model.safetensors" for d in (whole, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()
        weights[arm] = load_file(files[0])
        assert not (whole / arm / "checkpoints").exists()
    assert any(not torch.equal(w, weights["noisy"][n]) for n, w in weights["clean"].items())


@pytest.mark.slow
def test_the_whole_of_it_ends_with_a_comparison(example, tmp_path, capsys):
    assert example.main(["--out", str(tmp_path / "out"), *SMALL]) == 0
    told = capsys.readouterr().out
    assert "Without noise accuracy is" in told and "Under noise KL" in told
    result = json.loads((tmp_path / "out" / "comparison" / "compare.json").read_text())
    assert not result["weights_are_identical"]
    assert (tmp_path / "out" / "comparison" / "report.html").is_file()
    assert example.main(["--out", str(tmp_path / "out"), *SMALL]) == 0  # nothing anew
