"""The command line: what it prints, where, and with which status."""

import inspect
import json
import re
import warnings
from dataclasses import fields

import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import nothing_measured, with_plain_figures
from helpers.model_dirs import save_model

from noisescope.cli import commands, run
from noisescope.cli.given import StudyOptions
from noisescope.errors import InputError, NoisescopeWarning
from noisescope.report import fresh_directory

COMMANDS = ["diagnose", "layers", "operators", "channels", "profile", "sites", "show", "demo"]
COMMANDS += ["compare"]
STUDY_FILES = {
    "complete.json",
    "figures",
    "lock",
    "manifest.json",
    "profile.safetensors",
    "records.parquet",
    "report.html",
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
    assert all(name in captured.out for name in COMMANDS)
    assert captured.err == ""


def test_without_a_command_the_help_is_shown_and_the_status_is_2(capsys):
    assert run([]) == 2
    captured = capsys.readouterr()
    assert "layers" in captured.out + captured.err and "Error" not in captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_for_every_option(command, capsys):
    assert run([command, "--help"]) == 0
    assert "--noise-scale" in capsys.readouterr().out or command in ("sites", "show", "compare")


def test_layers_writes_what_it_prints(model, data, tmp_path, monkeypatch, capsys):
    with_plain_figures(monkeypatch)
    out, result = tmp_path / "study", tmp_path / "result.json"
    assert run(good(model, data, "--draws=2", f"--out={out}", f"--result={result}")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "L0" in captured.out and str(out / "report.html") in captured.out.replace("\n", "")
    assert {p.name for p in out.iterdir()} == STUDY_FILES
    assert (out / "result.json").read_bytes() == result.read_bytes()
    chosen = sum(len(found) for found in json.loads(result.read_text())["chosen"].values())
    assert pq.read_table(out / "records.parquet").num_rows == 3 * (1 + (3 + chosen) * 2)
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
    for size in (1, 3):
        assert run(good(model, data, f"--batch-size={size}")) == 0
        table = capsys.readouterr().out.split("\ncoverage")[0]
        # Padding is counted among the elements of the dose, so its share may differ.
        shown.append(re.sub(r" +0\.0\d+ on +\d+%", "", table))
    assert shown[0] == shown[1]


def test_operators_prints_a_line_per_operator(model, data, capsys):
    assert run(["operators", f"--model={model}", f"--data={data}", "--device=cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = [line.split()[0] for line in lines if line]
    assert {"linear", "matmul", "softmax", "silu", "rms_norm", "embedding", "core", "all"} <= set(
        first
    )


def test_a_whole_diagnosis_ends_with_its_verdict(model, data, tmp_path, capsys):
    out = tmp_path / "study"
    words = ["diagnose", f"--model={model}", f"--data={data}", "--device=cpu", "--noise-scale=0.2"]
    words += ["--draws=2", "--scales=0.1,0.4", "--until=kl=0.1", f"--out={out}"]
    assert run(words) == 0
    captured = capsys.readouterr()
    told = " ".join(captured.out.split())
    assert captured.err == ""
    assert "Verdict - Noise of scale 0.2" in told and "What to do:" in told
    assert "kl=0.1 is reached" in told and "measured/predicted" in told
    assert {p.name for p in out.iterdir()} == STUDY_FILES | {"channels.json"}
    pictures = {p.stem for p in (out / "figures").glob("*.png")}
    assert {"map", "sites", "prediction", "dose", "windows", "operators"} < pictures
    assert {p.stem for p in (out / "figures").glob("*.csv")} == pictures
    for name in pictures:
        assert (out / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert told.endswith(
        f"Written: {out}/report.html; beside it result.json, records.parquet and "
        f"{len(pictures)} figures in figures."
    )
    assert run(["show", str(out)]) == 0
    assert captured.out.split("Written:")[0] in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["verdict"]["paragraph"] == " ".join(result["verdict"]["sentences"])
    assert [s["scale"] for s in result["avalanche_curve"]["L0"]["scales"]] == [0.1, 0.2, 0.4]


def test_layers_take_scales_and_a_loss_and_need_not_predict(model, data, tmp_path, capsys):
    result = tmp_path / "result.json"
    given = ["--noise-scale=0.2", "--scales=0.1", "--until=nll=0.05", f"--result={result}"]
    assert run(good(model, data, *given)) == 0
    found = json.loads(result.read_text())
    assert set(found["avalanche_curve"]) == {"L0", "L1", "L2", "all layers"}
    assert found["critical_scale"]["target"] == "nll=0.05"
    assert "critical scale: nll=0.05" in " ".join(capsys.readouterr().out.split())
    alone = tmp_path / "alone.json"
    assert run(good(model, data, "--no-predict", f"--result={alone}")) == 0
    found = json.loads(alone.read_text())
    assert found["prediction"] is None and found["chosen"] == {}
    assert "predicted" not in capsys.readouterr().out


def test_channels_lists_what_is_large_and_what_noise_there_costs(model, data, tmp_path, capsys):
    result = tmp_path / "result.json"
    words = ["channels", f"--model={model}", f"--data={data}", "--device=cpu", "--draws=2"]
    assert run([*words, f"--result={result}"]) == 0
    out = capsys.readouterr().out
    assert "noise in channels of" in out and "is an outlier" in " ".join(out.split())
    found = json.loads(result.read_text())["channels"]
    assert found["modules"] and len(found["effects"]) == 3


def test_profile_predicts_without_measuring(model, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "profile"
    words = ["profile", f"--model={model}", f"--data={data}", "--device=cpu", "--label-draws=4"]
    with nothing_measured(monkeypatch):
        assert run([*words, f"--out={out}"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "nothing was injected" in " ".join(captured.out.split())
    assert "worst sites" in captured.out and "total" in captured.out
    assert {p.name for p in out.iterdir()} == {
        "profile.safetensors",
        "profile.json",
        "profile.png",
    }
    found = json.loads((out / "profile.json").read_text())
    assert found["label_draws"] == 4 and found["fingerprints"]["model"].startswith("sha256:")
    assert found["sites"]["lm_head:linear:0"]["kl_nats_per_token"] > 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert run([*words, f"--out={out}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_options_of_a_group_are_given_once_and_reach_every_command(model, data):
    """What commands share is declared in one place, and reaches each of them."""
    shared = {field.name for field in fields(StudyOptions)}
    for command in (commands.diagnose, commands.layers, commands.operators, commands.channels):
        assert shared <= set(inspect.signature(command).parameters)


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
