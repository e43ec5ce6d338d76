"""The demo model that the package carries: what is promised of it, and its command."""

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from noisescope import RelativeGaussian, diagnose_layers, diagnose_operators, load_model, load_task
from noisescope.cli import run
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.measure import Plan, measure

ROOT = Path(__file__).parents[2]
QUESTIONS = 500


@pytest.fixture(scope="module")
def demo():
    return load_model(demo_model_dir(), dtype="float32", device="cpu")


def training_script() -> ModuleType:
    path = ROOT / "scripts" / "train_demo_model.py"
    spec = importlib.util.spec_from_file_location("train_demo_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_it_is_a_qwen2_of_the_promised_size(demo):
    assert demo.model.config.model_type == "qwen2"
    assert 1_000_000 <= demo.model.num_parameters() <= 2_000_000
    assert sum(f.stat().st_size for f in demo_model_dir().iterdir()) <= 4_000_000
    assert demo.tokenizer.chat_template


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


def test_the_demo_command_writes_beside_an_earlier_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["demo", "--samples", "4"]) == 0
    assert run(["demo", "--samples", "4"]) == 0
    printed = capsys.readouterr().out
    assert "noisescope-demo-2" in printed
    first, second = tmp_path / "noisescope-demo", tmp_path / "noisescope-demo-2"
    names = ("result.json", "records.parquet", "witnesses.json", "complete.json", "heatmap.png")
    assert set(names) <= {p.name for p in first.iterdir()}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    result = json.loads((first / "result.json").read_text())
    assert result["baseline_accuracy"] >= 0.75
    assert all(w["dose"]["share_changed"] > 0.9 for w in result["layer_sensitivity"].values())


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
