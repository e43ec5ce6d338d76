"""A study on disk: it goes on where it was, measures nothing twice, and refuses what differs."""

import errno
import json
import math
import shutil

import pyarrow.parquet as pq
import pytest
from helpers.commands import (
    FINISHED,
    PROFILE,
    SMALL_STUDY,
    carry_out,
    files_of,
    in_small_units,
    interrupted_in_unit,
    nothing_measured,
    refusal,
    with_plain_figures,
    work_with,
    write_questions,
    write_small_study,
    write_texts,
)
from helpers.diagnoses import small_task
from helpers.model_dirs import CHAT_TEMPLATE, loaded_small, save_model
from helpers.small_models import small_model

from noisescope import InputError, RelativeGaussian, diagnose_layers
from noisescope.cli import run
from noisescope.diagnose import carry_out as study_of_a_diagnosis
from noisescope.measure import Worker
from noisescope.report import output, write_report
from noisescope.study import ENDING, StudyInterrupted, read_study
from noisescope.study.kept_profile import read_profile
from noisescope.study.steps import SITES
from noisescope.tasks import make_task


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    root = write_small_study(tmp_path_factory.mktemp("origin"))
    save_model(root / "other", small_model("llama", seed=1))
    write_texts(root / "texts.txt", 6)
    return root


@pytest.fixture
def place(origin, tmp_path, monkeypatch):
    """The working directory, with the models and the data; units are of two samples."""
    in_small_units(monkeypatch)
    with_plain_figures(monkeypatch)
    return work_with(origin, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def asked_once(origin, tmp_path_factory):
    """A study of what is asked for, and no more than that; nobody changes it."""
    place = tmp_path_factory.mktemp("asked")
    with pytest.MonkeyPatch.context() as patch:
        in_small_units(patch)
        with_plain_figures(patch)
        work_with(origin, place, patch)
        assert run([*ASKED, "--out=study"]) == 0
    return place / "study"


@pytest.fixture
def asked(asked_once, place):
    """A copy of it in the working directory."""
    shutil.copytree(asked_once, place / "study")


GOOD = list(SMALL_STUDY)
ASKED = [*GOOD, "--no-predict"]  # and no more than that


def kl_of(directory):
    """KL and more by condition, draw and sample."""
    rows = pq.read_table(directory / "records.parquet").to_pylist()
    fields = ("kl_nats", "nll_change_nats", "top1_agreement", "kl_p99_nats", "is_right", "answer")
    return {(r["condition"], r["draw"], r["sample"]): [r[f] for f in fields] for r in rows}


def assert_equal_in_numbers(one, other):
    assert one.keys() == other.keys()
    for key, row in one.items():
        for a, b in zip(row, other[key], strict=True):
            is_same = math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) if type(a) is float else a == b
            assert is_same, (key, a, b)


def test_numbers_that_differ_are_noticed():
    key = ("L0", 0, "1")
    assert_equal_in_numbers({key: [0.5, "a"]}, {key: [0.5 + 1e-8, "a"]})
    for other in ({key: [0.501, "a"]}, {key: [0.5, "b"]}, {}):
        with pytest.raises(AssertionError):
            assert_equal_in_numbers({key: [0.5, "a"]}, other)


@pytest.mark.parametrize(
    "words",
    [["--draws=2", "--window=1"], ["--data=texts.txt"], ["--sites", "--operators=matmul"]],
    ids=["answers", "texts", "sites"],
)
def test_an_interrupted_command_goes_on_to_the_same_bytes(place, monkeypatch, capsys, words):
    good = [word for word in GOOD if word != "--window=1"]
    at_once = carry_out(capsys, *good, *words, "--out=at-once")
    with interrupted_in_unit(monkeypatch, 1):
        assert run([*good, *words, "--out=study"]) == 130
    told = capsys.readouterr()
    kept = "1 of 3 units are kept in study"
    assert told.err == f"Interrupted: {kept}: run the same command to go on.\n"
    assert told.out == ""
    assert files_of(place / "study").keys() == {"manifest.json", "records.jsonl"}
    resumed = carry_out(capsys, *good, *words, "--out=study")
    assert resumed == at_once.replace("at-once", "study")
    assert files_of(place / "study") == files_of(place / "at-once")
    names = {n for n in files_of(place / "study") if not n.startswith("figures/")}
    assert names | set(FINISHED) == {*FINISHED, "manifest.json", PROFILE}
    assert b"study" not in (place / "study" / "result.json").read_bytes()


def test_interrupted_without_a_directory_nothing_is_kept_and_it_is_said(place, monkeypatch, capsys):
    before = sorted(place.rglob("*"))
    with interrupted_in_unit(monkeypatch, 2):
        assert run(ASKED) == 130
    told = capsys.readouterr()
    said = "2 of 3 units are measured: nothing is kept: give --out to be able to go on"
    assert (told.out, told.err) == ("", f"Interrupted: {said}.\n")
    assert sorted(place.rglob("*")) == before


def test_that_it_ends_stays_in_sight_until_it_does(monkeypatch):
    in_small_units(monkeypatch)
    loaded, told = loaded_small(), []
    with interrupted_in_unit(monkeypatch, 2), pytest.raises(StudyInterrupted):
        diagnose_layers(
            loaded, small_task(loaded), RelativeGaussian(0.3), window=1,
            progress=lambda *given: told.append(given),
        )  # fmt: skip
    texts = [text for text, _, _ in told]
    first = texts.index(ENDING)
    assert set(texts[first:]) == {ENDING}
    assert {done for _, done, _ in told[first:]} > {1, 2}, "the unit's own progress, too"


def test_only_what_is_missing_is_measured(place, monkeypatch, capsys):
    with interrupted_in_unit(monkeypatch, 2):
        assert run([*ASKED, "--out=study"]) == 130
    measure, measured = Worker.__call__, []

    def tell(worker, unit):
        measured.append(unit.samples)
        return measure(worker, unit)

    monkeypatch.setattr(Worker, "__call__", tell)
    carry_out(capsys, *ASKED, "--out=study")
    assert measured == [("4", "5")]


def test_from_python_an_error_in_a_unit_loses_no_unit_before_it(tmp_path, monkeypatch):
    in_small_units(monkeypatch)
    loaded = loaded_small()
    task, noise = small_task(loaded), RelativeGaussian(0.3)
    asked = {"window": 1, "memory_gib": 1, "predict": False}
    measure = Worker.__call__

    def fail(worker, unit):
        if "2" in unit.samples:
            raise ZeroDivisionError
        return measure(worker, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__call__", fail)
        with pytest.raises(ZeroDivisionError):
            diagnose_layers(loaded, task, noise, out=tmp_path / "study", **asked)
    told = []
    for name in ("study", "at-once"):
        found = diagnose_layers(
            loaded, task, noise, out=str(tmp_path / name), **asked,
            progress=lambda *given: told.append(given),
        )  # fmt: skip
        write_report(found, tmp_path / name)
    assert told[0] == ("1 of 3 units are kept already", 1, 3)
    assert told[-1][1:] == (3, 3)
    assert files_of(tmp_path / "study") == files_of(tmp_path / "at-once")
    in_memory = diagnose_layers(loaded, task, noise, **asked)
    assert in_memory.records == found.records
    assert in_memory.analysis == found.analysis


def test_a_complete_study_is_printed_again_and_nothing_is_measured(place, monkeypatch, capsys):
    first = carry_out(capsys, *GOOD, "--out=study")
    before = files_of(place / "study")
    with nothing_measured(monkeypatch):
        assert carry_out(capsys, *GOOD, "--out=study") == first
        assert carry_out(capsys, *GOOD, "--out=study", "--extend") == first
    assert files_of(place / "study") == before
    with nothing_measured(monkeypatch), pytest.raises(AssertionError, match="measured"):
        run([*GOOD, "--out=another"])


def test_other_margins_judge_again_without_measuring(place, monkeypatch, capsys):
    # KL needs ten samples for a verdict.
    words = [*GOOD, f"--data={write_texts(place / 'more.txt', 12)}", "--out=study"]
    assert "harm: a loss beyond 0.01 nats" in carry_out(capsys, *words)
    before = files_of(place / "study")
    with nothing_measured(monkeypatch):
        text = carry_out(capsys, *words, "--kl-margin=50", "--accuracy-margin=0.5")
        shown = carry_out(capsys, "show", "study", "--kl-margin=50")
    assert "harm: a loss beyond 50 nats" in text and "harm: a loss beyond 50 nats" in shown
    after = files_of(place / "study")
    judged = {"result.json", "report.html", "windows.png", "windows.csv"}
    judged |= {"single-sites.png", "single-sites.csv"}
    assert {n.removeprefix("figures/") for n in after if after[n] != before[n]} == judged
    result = json.loads(after["result.json"])
    assert result["config"]["kl_margin_nats_per_token"] == 50
    verdicts = {e["kl_verdict"]["outcome"] for e in result["layer_sensitivity"].values()}
    assert verdicts == {"harmless"}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--noise-scale=0.1"], ["scale", "0.2 there, 0.1 now"]),
        (["--seed=3"], ["seed: 0 there, 3 now"]),
        (["--dtype=bfloat16"], ["--dtype: float32 there, bfloat16 now"]),
        (["--max-new-tokens=2"], ["--max-new-tokens: 3 there, 2 now"]),
        (["--operators=linear"], ["--operators: matmul,linear there, linear now"]),
        (["--data=texts.txt"], ["sample 0: other content or prompt now"]),
        (["--model=other"], ["model fingerprint: sha256:", " there, sha256:", " now"]),
        (["--rounding=stochastic"], ["rounding", "nearest there, stochastic now"]),
        (["--samples=2"], ["samples: 6 there, 2 now"]),
        (["--search"], ["search: false there, true now"]),
        (["--draws=2"], ["smaller study: draws: 1 there, 2 now", "add --extend"]),
    ],
    ids=lambda value: value[0].split("=")[0] if value[0].startswith("--") else "",
)
@pytest.mark.usefixtures("asked")
def test_another_question_is_refused_with_both_values(place, capsys, words, parts):
    before = files_of(place / "study")
    line = refusal(capsys, *ASKED, *words, "--out=study")
    assert all(part in line for part in ["study holds", *parts]), line
    assert files_of(place / "study") == before


def change_json(path, **changes):
    """Changes a JSON file; the one that a link points to stays as it is."""
    entry = json.loads(path.read_text()) | changes
    path.unlink()
    path.write_text(json.dumps(entry))


def change_template(model):
    (model / "chat_template.jinja").unlink()
    (model / "chat_template.jinja").write_text(CHAT_TEMPLATE + "b")


CONFIGURATION = "the model's configuration, end tokens or attention: sha256:"
CHANGES = {
    "epsilon": (lambda m: change_json(m / "config.json", rms_norm_eps=1e-3), CONFIGURATION),
    "end tokens": (
        lambda m: change_json(m / "generation_config.json", eos_token_id=[2, 7]),
        CONFIGURATION,
    ),
    "chat template": (change_template, "sample 0: other content or prompt now"),
}


@pytest.mark.parametrize(
    ("what", "extend"),
    [
        ("epsilon", False),
        ("end tokens", True),
        ("chat template", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("epsilon", True), ("end tokens", False), ("chat template", True))
        ),
    ],
)
def test_a_model_with_the_same_weights_is_not_the_same_model(place, capsys, what, extend):
    """What is changed lies beside the weights."""
    change, text = CHANGES[what]
    shutil.copytree(place / "llama", place / "changed")
    words = [word for word in ASKED if not word.startswith("--model")]
    carry_out(capsys, *words, "--model=changed", "--out=study")
    before = files_of(place / "study")
    result = json.loads(before["result.json"])
    assert list(result["fingerprints"]) == ["model", "configuration", "data"]
    change(place / "changed")
    options = ["--draws=2", "--extend"] if extend else []
    line = refusal(capsys, *words, "--model=changed", *options, "--out=study")
    assert text in line
    assert "model fingerprint" not in line
    assert files_of(place / "study") == before


def test_another_attention_is_another_study(place, tmp_path):
    noise, out = RelativeGaussian(0.3), tmp_path / "study"
    loaded = loaded_small()
    task = small_task(loaded)
    diagnose_layers(loaded, task, noise, window=1, out=out, memory_gib=1)
    eager = loaded_small(attn_implementation="eager")
    eager.model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="the model's configuration, end tokens or attention"):
        diagnose_layers(eager, task, noise, window=1, out=out, memory_gib=1)


def test_another_scoring_function_is_another_study(tmp_path):
    def diagnose(score):
        task = make_task([{"prompt_ids": (5, 9, 4), "truth": "3"}], score, max_new_tokens=2)
        return diagnose_layers(loaded, task, RelativeGaussian(0.3), window=1, out=out)

    loaded, out = loaded_small(), tmp_path / "study"
    diagnose(lambda answer, sample: answer[0] == 3)
    diagnose(lambda answer, sample: answer[0] == 3)
    line = r"another study: scoring code: \w{12} there, \w{12} now; give"
    with pytest.raises(InputError, match=line):
        diagnose(lambda answer, sample: answer[0] == 4)


@pytest.mark.parametrize(
    ("words", "limits", "said"),
    [
        (["--batch-size=1"], (1, 1.0), "1 rows at a time"),
        (["--memory-gib=0.25"], (4, 0.25), "0.25 GiB"),
        (["--batch-size=3", "--memory-gib=0.5"], (3, 0.5), "3 rows at a time and 0.5 GiB"),
        (["--batch-size=4", "--memory-gib=1"], (4, 1.0), None),
        (["--batch-size=8", "--memory-gib=2"], (4, 1.0), None),
        ([], (4, 1.0), None),
    ],
)
def test_a_study_goes_on_within_smaller_limits(place, monkeypatch, capsys, words, limits, said):
    begun = [*ASKED, "--batch-size=4", "--out=study"]
    with interrupted_in_unit(monkeypatch, 1):
        assert run(begun) == 130
    manifest = (place / "study" / "manifest.json").read_bytes()
    plans, start = [], Worker.__init__

    def see(worker, loaded, task, plan, spec, tell, **known):
        plans.append((plan.batch_size, plan.memory_gib))
        assert (spec["rows_per_batch"], spec["memory_gib"]) == plans[-1]
        start(worker, loaded, task, plan, spec, tell, **known)

    capsys.readouterr()
    goes_on = [word for word in ASKED if not word.startswith("--memory")]
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "__init__", see)
        assert run([*goes_on, *words, "--out=study"]) == 0
    assert plans == [limits]
    line = (
        f"Warning: the study goes on with at most {said}, less than it was begun with: figures "
        "may change by rounding\n"
    )
    assert capsys.readouterr().err == ("" if said is None else line)
    assert (place / "study" / "manifest.json").read_bytes() == manifest
    with nothing_measured(monkeypatch):
        carry_out(capsys, *goes_on, *words, "--out=study")


def test_many_draws_are_many_units(place, monkeypatch, capsys):
    monkeypatch.setattr(study_of_a_diagnosis, "ROWS_PER_UNIT", 6)
    units, measure = [], Worker.__call__

    def see(worker, unit):
        units.append(unit)
        return measure(worker, unit)

    monkeypatch.setattr(Worker, "__call__", see)
    carry_out(capsys, *ASKED, "--samples=2", "--draws=3", "--out=study")
    carry_out(capsys, *ASKED, "--samples=2", "--draws=5", "--out=study", "--extend")
    assert [(u.samples, u.draws, u.with_clean) for u in units] == [
        (("0", "1"), (0, 1), True),
        (("0", "1"), (2,), False),
        (("0", "1"), (3, 4), False),
    ]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    carry_out(capsys, *ASKED, "--samples=2", "--draws=5", "--out=at-once")
    assert_equal_in_numbers(kl_of(place / "study"), kl_of(place / "at-once"))
    layout = json.loads((place / "at-once" / "manifest.json").read_text())["plan"]["layout"]
    assert layout["draws_per_unit"] == 256 // 3


def test_a_report_that_cannot_be_written_loses_nothing(place, monkeypatch, capsys):
    def fail(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(output, "replace_file", fail)
        assert run([*GOOD, "--out=study"]) == 2
    told = capsys.readouterr()
    assert "cannot write study/result.json: No space left" in told.err
    assert "run the same command again, all that was measured is kept" in told.err
    assert "KL, nats/token" in told.out, "what was measured is shown all the same"
    with nothing_measured(monkeypatch):
        carry_out(capsys, *GOOD, "--out=study")
    assert (place / "study" / "result.json").is_file()


@pytest.mark.usefixtures("asked")
def test_operators_and_layers_are_not_one_study(capsys):
    words = [word for word in ASKED if word != "--window=1"]
    line = refusal(capsys, "operators", *words[1:], "--operators=core", "--out=study")
    assert "kind: layers there, operators now" in line


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (["--samples=3"], ["--samples=6"]),
        (["--draws=1"], ["--draws=3"]),
        (["--stride=2"], ["--stride=1"]),
        (["--samples=4", "--stride=2"], ["--samples=6", "--stride=1", "--draws=2"]),
    ],
    ids=["samples", "draws", "conditions", "all"],
)
def test_an_extended_study_has_the_numbers_of_one_done_at_once(place, capsys, begin, more):
    carry_out(capsys, *ASKED, *begin, "--out=study")
    before = kl_of(place / "study")
    carry_out(capsys, *ASKED, *more, "--out=study", "--extend")
    carry_out(capsys, *ASKED, *more, "--out=at-once")
    grown, at_once = kl_of(place / "study"), kl_of(place / "at-once")
    assert before.items() <= grown.items(), "what was there is as it was"
    assert_equal_in_numbers(grown, at_once)
    one, other = (
        json.loads((place / name / "result.json").read_text()) for name in ("study", "at-once")
    )
    assert one["config"] == other["config"]
    assert one["most_sensitive_by_kl"]["condition"] == other["most_sensitive_by_kl"]["condition"]


def test_an_extended_study_measures_what_it_chose_on_the_new_samples_too(place, capsys):
    study = place / "study"
    carry_out(capsys, *GOOD, "--samples=4", "--out=study")
    chosen, before = read_study(study).plan.chosen, kl_of(study)
    assert chosen and set(chosen.values()) == {SITES}
    carry_out(capsys, *GOOD, "--samples=6", "--out=study", "--extend")
    state, grown = read_study(study), kl_of(study)
    assert (state.plan.chosen, state.steps) == (chosen, (SITES,))
    assert before.items() <= grown.items(), "what was there is as it was"
    assert grown.keys() - before.keys() == {
        (name, 0, sample) for name in ("clean", *state.plan.conditions) for sample in ("4", "5")
    }
    assert chosen.keys() < set(state.plan.conditions)
    assert read_profile(study).samples == tuple("012345"), "predicted on all of them, too"
    carry_out(capsys, *GOOD, "--samples=6", "--out=at-once")
    assert (study / PROFILE).read_bytes() == (place / "at-once" / PROFILE).read_bytes()
    at_once = kl_of(place / "at-once")
    assert_equal_in_numbers(
        {key: row for key, row in grown.items() if key in at_once},
        {key: row for key, row in at_once.items() if key in grown},
    )


def test_without_a_directory_there_is_nothing_to_extend():
    loaded = loaded_small()
    with pytest.raises(InputError, match="extend=True needs out"):
        diagnose_layers(loaded, small_task(loaded), RelativeGaussian(0.1), extend=True)


def test_equal_commands_give_equal_files_with_any_memory(place, capsys):
    words = [word for word in GOOD if not word.startswith("--memory")]
    carry_out(capsys, *words, "--out=first")
    carry_out(capsys, *words, "--memory-gib=0.5", "--out=second")
    assert files_of(place / "first", FINISHED) == files_of(place / "second", FINISHED)


def test_groups_in_the_data_reach_records_and_result(place, capsys):
    grouped = write_questions(place / "grouped.parquet", groups=[1, 1, 2, 2, None, 3])
    carry_out(capsys, *ASKED, f"--data={grouped}", "--out=study")
    rows = pq.read_table(place / "study" / "records.parquet").to_pylist()
    assert [r["group"] for r in rows[:6]] == ["1", "1", "2", "2", None, "3"]
    carry_out(capsys, *ASKED, "--out=apart")
    mean, caution = {}, {}
    for name in ("study", "apart"):
        result = json.loads((place / name / "result.json").read_text())
        interval = result["layer_sensitivity"]["L0"]["kl_nats_per_token"]
        mean[name], caution[name] = interval["mean"], interval["caution"]
    assert mean["study"] == mean["apart"]
    assert "few sources of questions: 4" in caution["study"]
    assert "few questions: 6" in caution["apart"]
    line = refusal(capsys, *ASKED, f"--data={grouped}", "--out=apart")
    assert "sample 0: other content or prompt now" in line
