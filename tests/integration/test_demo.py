"""The demo model that the package carries: what is promised of it, and its command."""

import json
import os
import subprocess
import sys
import zipfile

import pyarrow.parquet as pq
import pytest
from helpers.commands import FINISHED, PROFILE, files_of, with_plain_figures
from helpers.load import ROOT, load_file

from noisescope import RelativeGaussian, diagnose_layers, diagnose_operators, load_model, load_task
from noisescope.cli import run
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.measure import Plan, measure

QUESTIONS = 500


@pytest.fixture(scope="module")
def demo():
    return load_model(demo_model_dir(), dtype="float32", device="cpu")


def training_script():
    return load_file("scripts/train_demo_model.py")


def test_it_is_a_qwen2_of_the_promised_size(demo):
    assert demo.model.config.model_type == "qwen2"
    assert 1_000_000 <= demo.model.num_parameters() <= 2_000_000
    assert sum(f.stat().st_size for f in demo_model_dir().iterdir()) <= 4_000_000
    assert demo.tokenizer.chat_template


@pytest.mark.slow
def test_it_solves_at_least_95_percent_of_the_unseen_questions(demo):
    task = load_task(demo_questions())
    assert len(task.samples) == QUESTIONS
    records = measure(demo, task, Plan(conditions=())).records
    assert len(records) == QUESTIONS
    assert sum(r.is_right for r in records) >= 0.95 * QUESTIONS


def test_its_questions_are_the_held_out_ones_of_the_training_script():
    script = training_script()
    seed = json.loads((demo_model_dir() / "training.json").read_text())["seed"]
    problems = script.draw_problems(seed + 4, QUESTIONS, held_out=True)
    rows = pq.read_table(demo_questions()).to_pylist()
    assert [r["prompt"][0]["content"] for r in rows] == [p.question for p in problems]
    assert [r["reward_model"]["ground_truth"] for r in rows] == [str(p.truth) for p in problems]
    assert all(p.is_held_out for p in problems)
    trained_on = script.draw_problems(seed + 1, 2000, held_out=False)
    assert not {p.arithmetic for p in trained_on} & {p.arithmetic for p in problems}


def test_worked_answers_of_the_problems_are_right():
    """Every line of arithmetic holds, by Python's own evaluation of its left side."""
    for problem in training_script().draw_problems(7, 300, held_out=False):
        *lines, last = problem.answer.splitlines()
        for line in lines:
            left, right = line.split(" = ")
            a, sign, b = left.split()
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert value == int(right)
        assert last == f"#### {problem.truth}"
        assert lines[-1].split(" = ")[1] == str(problem.truth)


def test_the_demo_command_writes_beside_what_is_there(tmp_path, monkeypatch, capsys):
    with_plain_figures(monkeypatch)
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "noisescope-demo", tmp_path / "noisescope-demo-2"
    first.mkdir()
    (first / "mine.txt").write_text("mine")
    assert run(["demo", "--samples", "2"]) == 0
    assert "noisescope-demo-2" in capsys.readouterr().out
    assert files_of(first) == {"mine.txt": b"mine"}
    assert {*FINISHED, PROFILE} <= files_of(second).keys()
    result = json.loads((second / "result.json").read_text())
    assert result["baseline_accuracy"] >= 0.75
    assert all(w["dose"]["share_changed"] > 0.9 for w in result["layer_sensitivity"].values())


@pytest.mark.slow
def test_the_demo_command_writes_the_same_bytes_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(["demo", "--samples", "4"]) == 0
    assert files_of(tmp_path / "noisescope-demo") == files_of(tmp_path / "noisescope-demo-2")


@pytest.mark.slow
def test_windows_and_operators_over_all_questions(demo):
    """Its last layers are the fragile ones, and all operators hurt more than the core ones."""
    task = load_task(demo_questions())
    windows = diagnose_layers(
        demo, task, RelativeGaussian(0.2), window=2, stride=2, operators="all"
    )
    assert windows.worst_kl.condition == "L6-7"
    assert windows.worst_kl.is_conclusive
    assert windows.worst_accuracy.condition == "L6-7"
    by_operator = diagnose_operators(demo, task, RelativeGaussian(0.1))
    kl = {s.condition: s.kl_nats.mean for s in by_operator.summaries}
    assert kl["all"] > kl["core"] > 0
    assert all(kl["all"] > kl[name] for name in kl if name not in ("all", "core"))


@pytest.mark.slow
def test_it_works_from_an_installed_wheel_offline(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("noisescope-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "noisescope", "demo", "--samples", "8"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((work / "noisescope-demo" / "result.json").read_text())
    assert result["config"]["model"].startswith(str(site))
