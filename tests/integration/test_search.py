"""--search: the worst of a full sweep at 40 % of its evaluations, and no word of accuracy."""

import json

import pyarrow.parquet as pq
import pytest
from helpers.commands import (
    FINISHED,
    carry_out,
    files_of,
    interrupted_in_unit,
    nothing_measured,
    refusal,
    with_plain_figures,
    work_with,
    write_questions,
    write_texts,
)
from helpers.model_dirs import save_model
from helpers.small_models import small_model

from noisescope.cli import run
from noisescope.demo import demo_model_dir, demo_questions

KINDS = {"layers": ["--window=1"], "sites": ["--sites", "--operators=linear"]}


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    root = tmp_path_factory.mktemp("origin")
    save_model(root / "deep", small_model("llama", num_hidden_layers=6))
    save_model(root / "llama")
    write_texts(root / "texts.txt", 25)
    write_questions(root / "test.parquet", 25)
    return root


@pytest.fixture
def place(origin, tmp_path, monkeypatch):
    with_plain_figures(monkeypatch)
    return work_with(origin, tmp_path, monkeypatch)


GOOD = ["layers", "--model=deep", "--device=cpu", "--memory-gib=1", "--noise-scale=0.3"]
TEXTS = [*GOOD, "--data=texts.txt"]
QUESTIONS = [*GOOD, "--data=test.parquet", "--max-new-tokens=4"]


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


@pytest.mark.parametrize("kind", ["layers", pytest.param("sites", marks=pytest.mark.slow)])
def test_it_names_the_worst_of_the_full_sweep_at_40_percent_of_it(place, capsys, kind):
    carry_out(capsys, *TEXTS, *KINDS[kind], "--out=full")
    text = carry_out(capsys, *TEXTS, *KINDS[kind], "--search", "--out=study")
    full, found = result_of(place / "full"), result_of(place / "study")
    (key,) = [key for key in full if key.endswith("_sensitivity")]
    kl = {name: entry["kl_nats_per_token"]["mean"] for name, entry in full[key].items()}
    best, second = sorted(kl.values())[:-3:-1]
    assert best > 1.2 * second, "a clear gap"
    search = found["search"]
    assert search["name"] == max(kl, key=kl.get) == found["most_sensitive_by_kl"]["condition"]
    assert search["evaluations_of_full_sweep"] == 25 * len(kl)
    rows = pq.read_table(place / "study" / "records.parquet").to_pylist()
    noisy = [r for r in rows if r["condition"] != "clean"]
    assert len(noisy) == search["evaluations"] <= 0.4 * 25 * len(kl)
    assert search["loss"] > search["runner_up_loss"] and len(search["reserve"]) == 5
    assert f"Search by KL: {search['name']} (" in text
    assert "of the evaluations of a full sweep; on 5 samples held back" in " ".join(text.split())


@pytest.mark.parametrize("unit", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_it_goes_on_where_it_was_to_the_same_bytes(place, monkeypatch, capsys, unit):
    words = [*TEXTS, "--window=1", "--search"]
    carry_out(capsys, *words, "--out=at-once")
    with interrupted_in_unit(monkeypatch, unit):
        assert run([*words, "--out=study"]) == 130
    assert f"{unit} of " in capsys.readouterr().err
    state = carry_out(capsys, "show", "study")
    assert f"a study of layers, {unit} unit{'s' if unit > 1 else ''} of a search, " in state
    assert "Search by KL" not in state, "it has not ended"
    carry_out(capsys, *words, "--out=study")
    assert files_of(place / "study") == files_of(place / "at-once")
    with nothing_measured(monkeypatch):
        carry_out(capsys, *words, "--out=study")
    assert files_of(place / "study", FINISHED) == files_of(place / "at-once", FINISHED)


def test_questions_are_answered_clean_and_never_under_noise(place, capsys):
    text = carry_out(capsys, *QUESTIONS, "--window=1", "--search", "--out=study")
    rows = pq.read_table(place / "study" / "records.parquet").to_pylist()
    for row in rows:
        has_answer = row["answer"] is not None and row["is_right"] is not None
        assert has_answer == (row["condition"] == "clean")
    result = result_of(place / "study")
    assert result["baseline_accuracy"] is not None
    assert result["avalanche_point"] is None
    why = "a search goes by KL alone, and nothing was generated under noise"
    assert result["avalanche"]["reason"] == why
    for entry in result["layer_sensitivity"].values():
        assert entry["accuracy"] is None and entry["accuracy_drop"]["mean"] is None
        assert entry["accuracy_verdict"]["reason"] == f"inconclusive: {why}"
        assert entry["degradation"] is None and entry["degradation_note"] == why
    told = " ".join(text.split())
    assert "clean accuracy" in told and f"by accuracy: none, since {why}" in told
    assert "nan" not in text.lower() and "n/a" not in text and "accuracy lost" not in text
    assert "inconclusive by accuracy" not in text
    header = next(line for line in text.splitlines() if line.startswith("layers"))
    assert "accuracy" not in header and "lost" not in header
    assert carry_out(capsys, "show", "study").split("\n", 1)[1].count("nan") == 0


def test_what_is_too_little_to_be_searched_is_swept_and_said(place, capsys):
    words = [*TEXTS, "--window=3", "--search", "--out=study"]
    text = " ".join(carry_out(capsys, *words).split())
    assert "(all was measured, too little to be searched; on 25 samples it loses" in text
    search = result_of(place / "study")["search"]
    assert search["is_full_sweep"] and search["evaluations"] == 2 * 25
    words[words.index("--window=3")] = "--window=6"
    words[-1] = "--out=one"
    text = " ".join(carry_out(capsys, *words).split())
    assert "it loses" in text and "runner-up" not in text and "n/a" not in text


def test_a_search_of_operators_leaves_their_sets_out(place, capsys):
    words = ["operators", *TEXTS[1:], "--search", "--out=study"]
    carry_out(capsys, *words)
    result = result_of(place / "study")
    names = list(result["operator_sensitivity"])
    assert set(names) == {"linear", "matmul", "softmax", "silu", "rms_norm", "embedding"}
    assert result["search"]["name"] in names


def test_a_search_cannot_be_extended(place, capsys):
    words = [*TEXTS, "--window=1", "--search", "--out=study"]
    carry_out(capsys, *words, "--samples=20")
    line = refusal(capsys, *words, "--samples=25", "--extend")
    assert "study is a search" in line and "cannot be extended" in line


@pytest.mark.slow
def test_the_demo_models_worst_site_is_found(tmp_path, capsys):
    words = ["layers", f"--model={demo_model_dir()}", f"--data={demo_questions()}", "--device=cpu"]
    words += ["--dtype=float32", "--noise-scale=0.2", "--samples=60", "--window=2", "--stride=1"]
    carry_out(capsys, *words, "--operators=all", "--search", f"--out={tmp_path / 'study'}")
    search = result_of(tmp_path / "study")["search"]
    assert search["name"] == "L6-7"
    assert search["evaluations"] <= 0.4 * search["evaluations_of_full_sweep"]
