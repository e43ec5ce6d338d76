"""Every wrong input gets one line on standard error, exit status 2, and no file is written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import work_with
from helpers.model_dirs import character_tokenizer, save_model
from helpers.small_models import small_model

from noisescope.cli import commands, run

QUESTIONS = [("2+3=?", "5"), ("what is 4-1?", "3"), ("7 dogs", "7")]


def parquet_table():
    prompts = [[{"role": "user", "content": text}] for text, _ in QUESTIONS]
    truths = [{"ground_truth": truth} for _, truth in QUESTIONS]
    return pa.table({"prompt": prompts, "reward_model": truths})


def list_files(directory):
    """Every path below a directory with its bytes."""
    return {p: p.read_bytes() if p.is_file() else None for p in directory.rglob("*")}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A Llama and a GPT-2 with a tokenizer, and questions of each kind."""
    root = tmp_path_factory.mktemp("origin")
    save_model(root / "llama")
    save_model(root / "gpt2", small_model("gpt2"))
    save_model(root / "plain", tokenizer=character_tokenizer(chat_template=None))
    pq.write_table(parquet_table(), root / "test.parquet")
    (root / "texts.txt").write_text("the dog ran\n\na cat sat\n")
    return root


@pytest.fixture
def place(origin, tmp_path, monkeypatch):
    """A fresh directory with links to the models and the data, and the working directory."""
    return work_with(origin, tmp_path, monkeypatch)


GOOD = ["layers", "--model=llama", "--data=test.parquet", "--max-new-tokens=2", "--device=cpu"]


def refusal(capsys, place, *words, status=2):
    """Runs the command and returns its one line; the directory must be as before."""
    before = list_files(place)
    capsys.readouterr()
    assert run(list(words)) == status
    captured = capsys.readouterr()
    assert list_files(place) == before
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n"), captured.err
    assert captured.err.startswith("Error: ")
    assert captured.out == ""
    return captured.err


def test_the_good_command_is_good(capsys, place):
    assert run([*GOOD, "--out=study"]) == 0
    assert {"report.html", "records.parquet", "result.json", "manifest.json"} < {
        p.name for p in (place / "study").iterdir()
    }


OPTIONS = {
    "no such model": (["--model=nowhere"], ["no such model directory", "'nowhere'", "hf download"]),
    "a file as model": (["--model=test.parquet"], ["'test.parquet' is a file", "directory"]),
    "no such data": (["--data=none.parquet"], ["no such data file", "'none.parquet'", "jsonl"]),
    "a directory as data": (["--data=llama"], ["'llama' is a directory", "parquet"]),
    "unknown kind of data": (["--data=x.csv"], ["x.csv"]),
    "no such tokenizer": (["--tokenizer=nowhere"], ["no such tokenizer directory", "'nowhere'"]),
    "window 0": (["--window=0"], ["--window 0", "at least 1"]),
    "window too wide": (["--window=4"], ["window of 4 layers", "has 3", "give 1 to 3"]),
    "stride 0": (["--stride=0"], ["--stride 0", "at least 1"]),
    "stride negative": (["--stride", "-2"], ["--stride -2", "at least 1"]),
    "scale negative": (["--noise-scale=-0.1"], ["-0.1", "at least 0", "try 0.05"]),
    "scale NaN": (["--noise-scale=nan"], ["nan", "finite"]),
    "scale infinite": (["--noise-scale=inf"], ["inf", "finite"]),
    "scale a word": (["--noise-scale=abc"], ["--noise-scale", "'abc'", "--help"]),
    "error type": (["--error-type=gauss"], ["'gauss'", "relative_gaussian"]),
    "rounding": (["--rounding=up"], ["'up'", "nearest", "stochastic"]),
    "unknown operator": (["--operators=sofmax"], ["'sofmax'", "did you mean 'softmax'", "linear"]),
    "empty operator": (["--operators=linear,"], ["unknown operator ''", "Accepted"]),
    "preset among names": (["--operators=core,silu"], ["'core' stands alone"]),
    "never run: gelu": (["--operators=gelu"], ["never runs 'gelu'", "It runs", "silu"]),
    "never run: layer_norm": (
        ["--operators=layer_norm"],
        ["never runs 'layer_norm'", "did you mean 'rms_norm'"],
    ),
    "no samples": (["--samples=0"], ["samples 0", "at least 1"]),
    "samples a fraction": (["--samples=1.5"], ["--samples", "'1.5'"]),
    "no draws": (["--draws=0"], ["--draws 0", "at least 1"]),
    "batch of none": (["--batch-size=0"], ["--batch-size 0", "at least 1"]),
    "no new tokens": (["--max-new-tokens=0"], ["max_new_tokens 0", "at least 1"]),
    "seed negative": (["--seed=-1"], ["--seed -1", "0 to 4294967295"]),
    "seed too large": (["--seed=4294967296"], ["--seed 4294967296", "0 to 4294967295"]),
    "dtype": (["--dtype=fp8"], ["'fp8'", "float32, bfloat16, float16"]),
    "device": (["--device=cuda:9"], ["'cuda:9'", "not available", "cpu"]),
    "unknown option": (["--windows=3"], ["--windows", "--window", "--help"]),
    "option without value": (["--window"], ["--window", "--help"]),
    "out nowhere": (["--out=a/b"], ["a/b", "no directory", "make it first"]),
    "out is a file": (["--out=texts.txt"], ["texts.txt is a file", "name a directory"]),
    "out is no study": (["--out=llama"], ["llama holds other files and no study", "is empty"]),
    "extend nothing": (["--extend"], ["--extend", "name the study", "--out DIR"]),
    "accuracy margin 0": (["--accuracy-margin=0"], ["--accuracy-margin 0.0", "0.01 is a point"]),
    "accuracy margin 1": (["--accuracy-margin=1"], ["--accuracy-margin 1.0", "between 0 and 1"]),
    "kl margin negative": (["--kl-margin=-1"], ["--kl-margin -1.0", "above 0"]),
    "kl margin NaN": (["--kl-margin=nan"], ["--kl-margin nan", "above 0"]),
    "memory of none": (["--memory-gib=0"], ["--memory-gib 0.0", "above 0"]),
    "sites and a window": (["--sites", "--window=2"], ["--sites", "leave out --window"]),
    "until: nothing": (["--until=x"], ["--until", "'x'", "accuracy=-5%", "kl=0.1"]),
    "until: a gain": (["--until=accuracy=5%"], ["--until", "a loss is negative"]),
    "scales a word": (["--scales=0.1,abc"], ["--scales '0.1,abc'", "'abc'", "0.01,0.1, or auto"]),
    "scales empty": (["--scales="], ["--scales ''", "no number"]),
    "scales negative": (["--scales=-0.1"], ["--scales: -0.1 is not above 0"]),
    "scales NaN": (["--scales=nan"], ["--scales: nan is not above 0"]),
    "scales of a search": (["--scales=0.1", "--search"], ["--scales needs", "leave out --search"]),
    "until unpredicted": (["--until=kl=1", "--no-predict"], ["--until needs", "--no-predict"]),
    "scales of sites": (["--scales=auto", "--sites"], ["--scales needs", "leave out --sites"]),
    "until of texts": (
        ["--until=accuracy=-5%", "--data=texts.txt"],
        ["--until accuracy=-5%", "nothing is generated from texts", "kl=0.1"],
    ),
    "result exists": (["--result=texts.txt"], ["--result texts.txt exists already"]),
    "result nowhere": (["--result=a/b.json"], ["--result a/b.json", "no directory"]),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_wrong_option_gets_one_line(case, capsys, place):
    extra, parts = OPTIONS[case]
    line = refusal(capsys, place, *GOOD, *extra)
    assert all(part in line for part in parts), line


COMMANDS = {
    "unknown command": (["layer"], ["'layer'", "Did you mean 'layers'?", "noisescope --help"]),
    "no model": (["layers", "--data=x"], ["--model", "noisescope layers --help"]),
    "sites of nothing": (["sites", "nowhere"], ["no such model directory"]),
    "sites without model": (["sites"], ["argument", "noisescope sites --help"]),
    "operators: unknown": (
        ["operators", *GOOD[1:], "--operators=linaer"],
        ["'linaer'", "'linear'"],
    ),
    "operators: draws": (["operators", *GOOD[1:], "--draws=0"], ["--draws 0"]),
    "diagnose: until": (["diagnose", *GOOD[1:], "--until=kl"], ["--until", "'kl'", "kl=0.1"]),
    "diagnose: scales": (["diagnose", *GOOD[1:], "--scales=a"], ["'a' is no number"]),
    "diagnose: window 0": (["diagnose", *GOOD[1:], "--window=0"], ["--window 0"]),
    "diagnose: window": (["diagnose", *GOOD[1:], "--window=4"], ["window of 4 layers", "has 3"]),
    "diagnose: operator": (["diagnose", *GOOD[1:], "--operators=linaer"], ["'linear'"]),
    "diagnose: search": (["diagnose", *GOOD[1:], "--search"], ["--search", "diagnose --help"]),
    "channels: operators": (["channels", *GOOD[1:], "--operators=all"], ["--operators"]),
    "channels: draws": (["channels", *GOOD[1:], "--draws=0"], ["--draws 0"]),
    "profile: draws": (["profile", *GOOD[1:], "--draws=2"], ["--draws", "profile --help"]),
    "profile: label draws": (["profile", *GOOD[1:], "--label-draws=0"], ["label draws 0"]),
    "profile: label error": (["profile", *GOOD[1:], "--label-error=0"], ["label error 0"]),
    "profile: no noise": (["profile", *GOOD[1:], "--noise-scale=0"], ["--noise-scale 0"]),
    "profile: operator": (["profile", *GOOD[1:], "--operators=gelu"], ["never runs 'gelu'"]),
    "profile over files": (["profile", *GOOD[1:], "--out=llama"], ["llama exists already"]),
    "profile nowhere": (["profile", *GOOD[1:], "--out=a/b"], ["no directory", "make it first"]),
    "show without a directory": (["show"], ["argument", "noisescope show --help"]),
    "show nothing": (["show", "nowhere"], ["nowhere holds no study", "name one that does"]),
    "show a file": (["show", "texts.txt"], ["texts.txt is a file", "name the directory"]),
    "show other files": (["show", "llama"], ["llama holds no study", "manifest.json"]),
    "show with a margin of 0": (["show", "x", "--kl-margin=0"], ["--kl-margin 0.0"]),
    "demo over a file": (["demo", "--out=texts.txt"], ["texts.txt is a file"]),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_a_wrong_command_gets_one_line(case, capsys, place):
    words, parts = COMMANDS[case]
    line = refusal(capsys, place, *words)
    assert all(part in line for part in parts), line


def without_weights(place):
    (place / "bare").mkdir()
    shutil.copy(place / "llama" / "config.json", place / "bare")
    return ["--model=bare"], ["no safetensors file", "'bare'"]


def pickled_weights(place):
    without_weights(place)
    (place / "bare" / "pytorch_model.bin").write_bytes(b"\x80")
    return ["--model=bare"], ["only pytorch_model.bin", "save_pretrained"]


def broken_weights(place):
    without_weights(place)
    (place / "bare" / "model.safetensors").write_bytes(b"not a tensor in here")
    return ["--model=bare"], ["damaged or cut short"]


def parquet_without_column(place):
    pq.write_table(parquet_table().drop_columns(["reward_model"]), place / "x.parquet")
    return ["--data=x.parquet"], ["no column 'reward_model'", "prompt and reward_model"]


def parquet_of_nothing(place):
    pq.write_table(parquet_table().slice(0, 0), place / "x.parquet")
    return ["--data=x.parquet"], ["holds no samples", "at least one"]


def no_parquet(place):
    (place / "x.parquet").write_text("prompt,reward_model\n")
    return ["--data=x.parquet"], ["not a parquet file", "write it again"]


def empty_file(place):
    (place / "x.parquet").touch()
    return ["--data=x.parquet"], ["not a parquet file"]


def empty_texts(place):
    (place / "x.txt").write_text(" \n\n \n")
    return ["--data=x.txt"], ["holds no samples"]


def jsonl_without_answer(place):
    (place / "x.jsonl").write_text(json.dumps({"question": "2+2"}) + "\n")
    return ["--data=x.jsonl"], ["line 1", "no text 'answer'"]


def long_prompt(place):
    (place / "x.txt").write_text("the dog ran " * 20)
    return ["--data=x.txt"], ["'0' is 239 tokens long", "at most 64", "shorten it"]


def path_with_markup(place):
    return ["--data=[red]none[bold].txt"], ["'[red]none[bold].txt'"]


def long_path(place):
    return ["--data=" + "d/" * 100 + "x.txt"], ["d/" * 100]


MADE = [
    without_weights,
    pickled_weights,
    broken_weights,
    parquet_without_column,
    parquet_of_nothing,
    no_parquet,
    empty_file,
    empty_texts,
    jsonl_without_answer,
    long_prompt,
    path_with_markup,
    long_path,
]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("command", ["layers", "operators"])
def test_a_wrong_file_gets_one_line(make, command, capsys, place):
    extra, parts = make(place)
    line = refusal(capsys, place, command, *GOOD[1:], *extra, "--out=study")
    assert all(part in line for part in parts), line


def test_noise_that_rounding_erases_is_an_error_and_weak_noise_a_note(capsys, place):
    bf16 = [*GOOD, "--dtype=bfloat16", "--operators=linear", "--out=study"]
    line = refusal(capsys, place, *bf16, "--noise-scale=1e-5")
    assert "no noise arrived in L0-2" in line and "stochastic" in line
    assert run([*bf16, "--noise-scale=1e-3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    told = " ".join(captured.out.split())
    assert "Note: under half of the noise arrived in L0-2" in told
    notes = json.loads((place / "study" / "result.json").read_text())["notes"]
    assert any(note.startswith("under half of the noise arrived") for note in notes)


def test_gpt2_has_layer_norm_and_no_rms_norm(capsys, place):
    good = [*GOOD, "--model=gpt2", "--operators"]
    assert "never runs 'rms_norm'" in refusal(capsys, place, *good, "rms_norm")
    assert run([*good, "layer_norm"]) == 0


def test_more_samples_than_there_are_are_all_used_and_said(capsys, place):
    assert run([*GOOD, "--samples=50", "--out=study"]) == 0
    said = "50 samples asked for, 3 in test.parquet: all are used"
    assert f"Note: {said}\n" in capsys.readouterr().out
    result = json.loads((place / "study" / "result.json").read_text())
    assert result["config"]["n_samples"] == 3
    assert result["notes"].count(said) == 1


def test_clean_answers_that_were_cut_are_said(capsys, place):
    assert run([*GOOD, "--samples=3", "--max-new-tokens=2"]) == 0
    assert "clean answers were cut at 2 tokens" in " ".join(capsys.readouterr().out.split())


def test_a_result_inside_the_output_directory_is_refused(capsys, place):
    line = refusal(capsys, place, *GOOD, "--out=study", "--result=study/result.json")
    assert "--result study/result.json lies in --out study" in line


def test_a_context_too_short_is_told_before_the_model_runs(capsys, place):
    """Learned positions end with the context: a longer prompt would break inside the model."""
    model = small_model("gpt2", n_positions=8, vocab_size=600)
    model.save_pretrained(place / "short")
    line = refusal(capsys, place, *GOOD, "--model=short", "--tokenizer=llama")
    assert "the model takes at most 8" in line


def test_a_tokenizer_of_another_model_is_told(capsys, place):
    small_model("llama", vocab_size=3).save_pretrained(place / "tiny")
    line = refusal(capsys, place, *GOOD, "--model=tiny", "--tokenizer=llama")
    assert "the model knows 0 to 2" in line


def test_without_a_chat_template_the_prompt_is_plain_and_it_is_said(capsys, place):
    assert run([*GOOD, "--model=plain", "--samples=3"]) == 0
    assert "Note: no chat template: prompts are given as plain text" in capsys.readouterr().out
    assert run([*GOOD, "--samples=3"]) == 0
    assert "chat template" not in capsys.readouterr().out


def test_a_masked_model_cannot_be_measured_but_its_sites_be_listed(capsys, place):
    save_model(place / "bert", small_model("bert"))
    line = refusal(capsys, place, *GOOD, "--model=bert")
    assert "does not predict the next token" in line
    assert run(["sites", "bert"]) == 0
    assert "layer_norm" in capsys.readouterr().out


def test_an_output_made_meanwhile_stays_untouched(capsys, place, monkeypatch):
    probe = commands.load_model

    def load_and_occupy(*given, **options):
        (place / "study").mkdir()
        (place / "study" / "mine").write_text("mine")
        return probe(*given, **options)

    monkeypatch.setattr(commands, "load_model", load_and_occupy)
    assert run([*GOOD, "--out=study"]) == 2
    assert "study holds other files and no study" in capsys.readouterr().err
    assert [p.name for p in (place / "study").iterdir()] == ["mine"]


def test_a_later_prompt_that_is_too_long_leaves_no_directory(capsys, place):
    (place / "x.txt").write_text("the dog ran\n\n" + "a cat sat " * 20)
    line = refusal(capsys, place, *GOOD, "--data=x.txt", "--out=study")
    assert "'1' is 199 tokens long" in line
    (place / "empty").mkdir()
    refusal(capsys, place, *GOOD, "--data=x.txt", "--out=empty")
    assert list((place / "empty").iterdir()) == []


def test_a_directory_that_takes_no_files_is_told_before_anything_is_loaded(capsys, place):
    line = refusal(capsys, place, *GOOD, "--model=nowhere", "--out=/proc/study")
    assert "--out /proc/study: nothing can be written in /proc" in line


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--stride=0"], "--stride"),
        (["--noise-scale=-1"], "noise scale"),
        (["--operators=nope"], "unknown operator"),
        (["--seed=-1"], "--seed"),
        (["--out=texts.txt"], "texts.txt is a file"),
        (["--kl-margin=0"], "--kl-margin"),
        (["--extend"], "--extend"),
        (["--memory-gib=-1"], "--memory-gib -1.0"),
        (["--sites", "--stride=2"], "--sites"),
    ],
)
def test_what_needs_no_model_is_checked_before_it_is_loaded(words, part, capsys, place):
    line = refusal(capsys, place, *GOOD, "--model=nowhere", "--data=nowhere.txt", *words)
    assert part in line


@pytest.mark.parametrize("words", [["--window=9"], ["--operators=gelu"], ["--data=x.txt"]])
def test_what_needs_no_answers_is_checked_before_any_is_generated(
    words, capsys, place, monkeypatch
):
    def generate(*arguments, **options):
        raise AssertionError("generated")

    monkeypatch.setattr("transformers.GenerationMixin.generate", generate)
    (place / "x.txt").write_text("the dog ran " * 20)
    refusal(capsys, place, *GOOD, *words)


def subprocess_environment():
    source = Path(__file__).parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}


def test_as_a_process_it_is_one_line_and_status_2(place):
    before = list_files(place)
    done = subprocess.run(
        [sys.executable, "-m", "noisescope", *GOOD, "--model=nowhere"],
        capture_output=True,
        text=True,
        check=False,
        env=subprocess_environment(),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: no such model directory")
    assert done.stderr.count("\n") == 1
    assert list_files(place) == before
