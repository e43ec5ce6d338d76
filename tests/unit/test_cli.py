"""The command line: what it prints, where, and with which status."""

import json
import re
import warnings

import pyarrow.parquet as pq
import pytest
import torch
from helpers.model_dirs import save_model

from noisescope.cli import commands, run
from noisescope.errors import InputError, NoisescopeWarning
from noisescope.report import fresh_directory

STUDY_FILES = {
    "complete.json",
    "heatmap.png",
    "lock",
    "manifest.json",
    "records.parquet",
    "result.json",
    "witnesses.json",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("the dog ran\n\na cat sat\n\none two three\n")
    return path


def good(model, data, *words):
    return ["layers", f"--model={model}", f"--data={data}", "--device=cpu", "--window=1", *words]


def test_help_lists_the_commands_and_is_no_error(capsys):
    assert run(["--help"]) == 0
    captured = capsys.readouterr()
    assert all(name in captured.out for name in ("layers", "operators", "sites", "show", "demo"))
    assert captured.err == ""


def test_without_a_command_the_help_is_shown_and_the_status_is_2(capsys):
    assert run([]) == 2
    captured = capsys.readouterr()
    assert "layers" in captured.out + captured.err and "Error" not in captured.err


@pytest.mark.parametrize("command", ["layers", "operators", "sites", "show", "demo"])
def test_every_command_has_help_for_every_option(command, capsys):
    assert run([command, "--help"]) == 0
    assert "--noise-scale" in capsys.readouterr().out or command in ("sites", "show")


def test_layers_writes_what_it_prints(model, data, tmp_path, capsys):
    out, result = tmp_path / "study", tmp_path / "result.json"
    assert run(good(model, data, "--draws=2", f"--out={out}", f"--result={result}")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "L0" in captured.out and str(out / "result.json") in captured.out.replace("\n", "")
    assert {p.name for p in out.iterdir()} == STUDY_FILES
    assert (out / "result.json").read_bytes() == result.read_bytes()
    assert pq.read_table(out / "records.parquet").num_rows == 3 * (1 + 3 * 2)
    assert json.loads(result.read_text())["config"]["model"] == str(model)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_without_outputs_nothing_is_written(model, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(good(model, data)) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("Nothing was written: --out DIR")


def test_the_options_reach_the_diagnosis(model, data, tmp_path, capsys):
    result = tmp_path / "result.json"
    words = ["--noise-scale=0.2", "--error-type=absolute_gaussian", "--stride=2", "--seed=7"]
    words += ["--operators=silu,rms_norm", "--samples=2", "--dtype=bfloat16"]
    assert run(good(model, data, *words, "--rounding=stochastic", f"--result={result}")) == 0
    config = json.loads(result.read_text())["config"]
    assert config["error_model"] == "AbsoluteGaussian"
    assert config["error_parameters"] == {"scale": 0.2, "rounding": "stochastic"}
    assert (config["window_size"], config["stride"], config["seed"]) == (1, 2, 7)
    assert config["operators"] == ["silu", "rms_norm"] and config["n_samples"] == 2
    assert (config["dtype"], config["device"]) == ("bfloat16", "cpu")


def test_the_batch_size_changes_no_figure_that_is_printed(model, data, capsys):
    shown = []
    for size in (1, 2, 3):
        assert run(good(model, data, f"--batch-size={size}")) == 0
        table = capsys.readouterr().out.split("\ncoverage")[0]
        # Padding is counted among the elements of the dose, so its share may differ.
        shown.append(re.sub(r" +0\.0\d+ on +\d+%", "", table))
    assert shown[0] == shown[1] == shown[2]


def test_operators_prints_a_line_per_operator(model, data, capsys):
    assert run(["operators", f"--model={model}", f"--data={data}", "--device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines if line]
    assert {"linear", "matmul", "softmax", "silu", "rms_norm", "embedding", "core", "all"} <= set(
        first
    )


def test_sites_lists_what_can_be_selected(model, capsys):
    assert run(["sites", str(model)]) == 0
    grouped = capsys.readouterr().out
    assert "0-2" in grouped and "mlp.down_proj" in grouped and "lm_head" in grouped
    assert run(["sites", str(model), "--full"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > len(grouped.splitlines())


def test_a_fresh_directory_is_numbered(tmp_path):
    base = tmp_path / "demo"
    assert fresh_directory(base) == base
    base.mkdir()
    assert fresh_directory(base) == tmp_path / "demo-2"
    (tmp_path / "demo-2").touch()
    assert fresh_directory(base) == tmp_path / "demo-3"


def raising(error):
    def command(*arguments, **options):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a\nb"), 2, "Error: a b"),
        (InputError("[red]x[/] :smile: " + "y" * 300), 2, "Error: [red]x[/] :smile: " + "y" * 300),
        (KeyboardInterrupt(), 130, "Interrupted: nothing was written."),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "Error: the device's memory is full: "),
    ],
)
def test_an_error_is_one_line(error, status, line, monkeypatch, capsys):
    monkeypatch.setattr(commands, "load_model", raising(error))
    assert run(["sites", "x"]) == status
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(line)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError, OSError])
def test_a_defect_of_ours_is_not_hidden(error, monkeypatch):
    monkeypatch.setattr(commands, "load_model", raising(error("shapes do not fit")))
    with pytest.raises(error, match="shapes do not fit"):
        run(["sites", "x"])


def test_our_warnings_are_one_line_and_others_as_python_shows_them(monkeypatch, capsys):
    def load(*arguments, **options):
        warnings.warn("[red] ours " + "x" * 200, NoisescopeWarning, stacklevel=1)
        raise InputError("stop")

    monkeypatch.setattr(commands, "load_model", load)
    before = warnings.showwarning
    assert run(["sites", "x"]) == 2
    assert warnings.showwarning is before
    assert capsys.readouterr().err == f"Warning: [red] ours {'x' * 200}\nError: stop\n"
