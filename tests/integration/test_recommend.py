"""`noisescope recommend`: of a model and of a study, its files, and what it refuses."""

import contextlib
import io
import json
import re
import shutil

import pytest
from helpers.commands import (
    SMALL_STUDY,
    files_of,
    in_small_units,
    interrupted_in_unit,
    refusal,
    with_plain_figures,
    work_with,
    write_small_study,
)
from helpers.model_dirs import save_model
from helpers.small_models import small_model

from noisescope.assignment import Assignment
from noisescope.cli import run
from noisescope.export import read_plain
from noisescope.models import load_model
from noisescope.study import read_study


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A small Llama whose head is its own, questions, and a study of them."""
    root = write_small_study(tmp_path_factory.mktemp("origin"))
    save_model(root / "untied", small_model("llama", tie_word_embeddings=False))
    return root


@pytest.fixture
def place(origin, tmp_path, monkeypatch):
    in_small_units(monkeypatch)
    with_plain_figures(monkeypatch)
    return work_with(origin, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def measured(origin, tmp_path_factory):
    """A study of the small Llama, with its report; nobody changes it."""
    place = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        in_small_units(patch)
        with_plain_figures(patch)
        work_with(origin, place, patch)
        assert run([*SMALL_STUDY, "--out=study"]) == 0
    return place


@pytest.fixture
def study(measured, place):
    """A copy of it in the working directory."""
    shutil.copytree(measured / "study", place / "study")
    return place / "study"


@pytest.fixture(scope="module")
def made(origin, tmp_path_factory):
    """A recommendation that was carried out, and what it said; nobody changes it."""
    place, said = tmp_path_factory.mktemp("made"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        in_small_units(patch)
        with_plain_figures(patch)
        work_with(origin, place, patch)
        assert run(GOOD) == 0
    return place, said.getvalue()


@pytest.fixture
def found(made, place):
    """A copy of it in the working directory."""
    shutil.copytree(made[0] / "found", place / "found")
    return place / "found"


MODEL = ["recommend", "untied", "--data=test.parquet", "--max-new-tokens=3", "--device=cpu"]
MODEL += ["--memory-gib=1", "--formats=int3_g8,int4_g8,int8_g8", "--quantize=weights"]
GOOD = [*MODEL, "--bits=9", "--out=found"]


def result_of(directory):
    return json.loads((directory / "result.json").read_text())["recommendation"]


def test_it_keeps_within_the_bits_and_says_so(made):
    told = " ".join(made[1].split())
    found = result_of(made[0] / "found")
    assert found["bits_per_weight"] <= 9
    assert "with at most 9 bits per weight" in told.lower()
    assert "Written: found/" in told and "exports/assignment.json" in told
    # Bits by hand: codes and one float32 scale for every eight weights.
    by_format = {"int3_g8": 7, "int4_g8": 8, "int8_g8": 12}
    whole = sum(g["weights"] for g in found["groups"])
    bits = sum(g["weights"] * by_format[g["format"]] for g in found["groups"]) / whole
    assert found["bits_per_weight"] == pytest.approx(bits, rel=1e-12)


def test_what_is_recommended_was_measured_beside_what_is_not(made):
    assignments = result_of(made[0] / "found")["assignments"]
    names = {name for one in assignments for name in (one, *assignments[one]["also"])}
    assert {"recommended", "last layers high", "by weight error", "all int4_g8"} <= names
    for name, one in assignments.items():
        assert one["measured_kl_nats_per_token"]["mean"] > 0
        assert (one["loses_more_by"] is None) == (name == "recommended")
        if not name.startswith(("recommended", "fewer", "more")):
            assert one["bits_per_weight"] <= 9 * (1 + 1e-9)
    predicted = {name: one["predicted_kl_nats_per_token"] for name, one in assignments.items()}
    least = predicted["recommended"]
    rivals = ("last layers high", "by weight error", "all int4_g8")
    assert all(least <= predicted[name] for name in rivals if name in predicted)


def test_a_bound_on_the_loss_takes_the_fewest_bits(made, place):
    by_bits = result_of(made[0] / "found")
    bound = by_bits["assignments"]["recommended"]["predicted_kl_nats_per_token"]
    assert run([*MODEL, f"--kl={bound * 1.0001}", "--out=by-loss"]) == 0
    by_loss = result_of(place / "by-loss")
    recommended = by_loss["assignments"]["recommended"]
    assert recommended["predicted_kl_nats_per_token"] <= bound * 1.0001
    assert by_loss["bits_per_weight"] <= by_bits["bits_per_weight"]


def test_the_model_and_its_directory_are_untouched(place):
    before = files_of(place / "untied")
    assert run([*MODEL, "--bits=9"]) == 0
    assert files_of(place / "untied") == before


def test_engines_files_name_modules_of_the_model(made):
    place = made[0]
    assignment = read_plain((place / "found/exports/assignment.json").read_text())
    assert isinstance(assignment, Assignment)
    modules = dict(load_model(str(place / "untied")).model.named_modules())
    assert set(assignment.formats) | set(assignment.kept) <= set(modules)
    linear = {name for name in modules if name.endswith("_proj")} | {"lm_head"}
    assert set(assignment.formats) == linear
    for parent in ("model.layers.0.self_attn", "model.layers.1.self_attn"):
        shared = {assignment.formats[f"{parent}.{p}_proj"] for p in "qkv"}
        assert len(shared) == 1


def test_stopped_it_goes_on_to_the_same_bytes(place, monkeypatch, capsys):
    assert run(GOOD) == 0  # here: the report names the directory of the model
    with interrupted_in_unit(monkeypatch, 2):
        assert run([*MODEL, "--bits=9", "--out=again"]) == 130
    assert "run the same command to go on" in capsys.readouterr().err
    assert run([*MODEL, "--bits=9", "--out=again"]) == 0
    one, other = files_of(place / "found"), files_of(place / "again")
    skipped = {"lock", "manifest.json"}
    assert {n: b for n, b in one.items() if n not in skipped} == {
        n: b for n, b in other.items() if n not in skipped
    }


def test_another_goal_in_the_same_directory_is_refused(found, capsys):
    before = files_of(found)
    capsys.readouterr()
    assert run([*MODEL, "--bits=8", "--out=found"]) == 2
    assert "--bits" in capsys.readouterr().err
    assert files_of(found) == before


def test_of_a_study_it_takes_model_and_data_and_joins_its_report(place, study, capsys):
    plain = (study / "report.html").read_text()
    assert 'id="recommendation"' not in plain
    capsys.readouterr()
    words = ["--formats=int4_g8,int8_g8", "--quantize=weights", "--bits=9", "--memory-gib=1"]
    assert run(["recommend", "study", *words]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "study/recommend/" in told and "study/report.html" in told
    assert 'id="recommendation"' in (place / "study/report.html").read_text()
    assert read_study(place / "study/recommend").is_complete
    # Its own command writes the report anew, and keeps what lies beside it.
    assert run([*SMALL_STUDY, "--out=study"]) == 0
    assert 'id="recommendation"' in (place / "study/report.html").read_text()


def test_show_tells_it_again_without_the_model(made, found, capsys):
    said = made[1]
    assert run(["show", "found"]) == 0
    shown = capsys.readouterr().out
    start = "Recommendation\n"
    assert start in shown
    assert shown.partition(start)[2].split("Written")[0].split() == (
        said.partition(start)[2].split("No file for")[0].split("Written")[0].split()
    )


def test_a_recommendation_is_not_recommended_of_into_itself(found, capsys):
    before = files_of(found)
    words = ["recommend", "found", "--bits=9", "--formats=int4_g8,int8_g8"]
    assert "found holds a recommendation: name the directory" in refusal(capsys, *words)
    assert files_of(found) == before


def test_bits_that_nothing_keeps_within_leave_nothing_behind(study, capsys):
    words = ["recommend", "study", "--formats=int4_g8,int8_g8", "--quantize=weights", "--bits=1"]
    assert "the cheapest of these formats takes" in refusal(capsys, *words)
    assert not (study / "recommend").exists()


def test_what_a_goal_cannot_reach_does_not_stop_the_study_beside_it(study, capsys):
    words = ["recommend", "study", "--formats=int4_g8,int8_g8", "--quantize=weights"]
    assert run([*words, "--kl=1e-30", "--memory-gib=1"]) == 2
    capsys.readouterr()
    assert run([*SMALL_STUDY, "--out=study"]) == 0


REFUSED = {
    "no goal": ([], r"one goal is needed: bits per weight \(--bits 4.8\) or a loss"),
    "two goals": (["--bits=5", "--kl=0.1"], "one goal is needed"),
    "no bits": (["--bits=0"], "--bits 0: a number above 0 is needed"),
    "too few bits": (["--bits=2"], "2 bits per weight: the cheapest of these formats takes"),
    "too small a loss": (["--kl=1e-30"], "the most exact of these formats is predicted to cost"),
    "no such format": (["--bits=5", "--formats=int4,fp7"], "format 'fp7'"),
    "no formats": (["--bits=5", "--formats="], "no formats: give some"),
    "no such operand": (["--bits=5", "--quantize=all"], "operand 'all': both or weights"),
    "nothing to keep": (["--bits=9", "--keep=nose"], "--keep nose: no linear module"),
    "all kept": (["--bits=9", "--keep=*"], "no linear module may take a format: all are kept"),
    "no such engine": (["--bits=9", "--engines=vllm"], "--engines vllm: plain, llm-compressor"),
    "no such model": (["nowhere", "--bits=9"], "nowhere: no such directory"),
    "no data": (["untied", "--bits=9"], "untied is no study: of a model, name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line(place, case, capsys):
    words, said = REFUSED[case]
    named = words and not words[0].startswith("-")
    base = ["recommend"] if named else [w for w in MODEL if not _is_given_again(w, words)]
    before = files_of(place)
    assert re.search(said, refusal(capsys, *base, *words))
    assert files_of(place) == before


def _is_given_again(word, words):
    return any(word.partition("=")[0] == w.partition("=")[0] for w in words)


def test_options_of_a_model_do_not_go_with_a_study(study, capsys):
    words = ["recommend", "study", "--bits=9", "--data=test.parquet"]
    assert "--data does not go with a study" in refusal(capsys, *words)


def test_an_engine_that_cannot_say_it_is_an_error_when_it_was_asked_for(place, capsys):
    words = [*MODEL, "--bits=9", "--out=found", "--engines=llama.cpp"]
    assert "llama.cpp: no format 'int3_g8'" in refusal(capsys, *words)
    assert not (place / "found").exists()
