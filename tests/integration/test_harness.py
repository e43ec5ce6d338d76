"""Tasks of lm-evaluation-harness clean and under noise: run, kept, gone on with, and reported."""

import json
import math
import random
import re
import sys
from dataclasses import dataclass, replace

import pyarrow.parquet as pq
import pytest
import torch
from helpers.commands import carry_out, refusal
from helpers.harness import ANSWERS, CHOICES, TEXTS, loaded_for_tasks, requests, run_of, write_tasks
from helpers.model_dirs import save_model
from helpers.small_models import small_model
from rich.console import Console

from noisescope import NoisyLM, TaskOptions, evaluate_tasks, load_model, load_task
from noisescope.cli import run
from noisescope.cli.evaluation_text import print_evaluation
from noisescope.demo import demo_model_dir, demo_questions
from noisescope.errors import DoseError, InputError
from noisescope.harness import (
    EvaluationMargins,
    evaluation_result,
    load_tasks,
    runner,
    write_evaluation,
)
from noisescope.harness.paired import changes_of
from noisescope.inject import inject, make_selection
from noisescope.measure import Condition, greedy_answers
from noisescope.noise import RelativeGaussian, RoundTo
from noisescope.tasks import encode_task

NOISE = RelativeGaussian(0.3)
ALL = (CHOICES, ANSWERS, TEXTS)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("given") / "tasks", count=10)


@pytest.fixture(scope="module")
def loaded():
    return loaded_for_tasks()


@pytest.fixture(scope="module")
def evaluation(loaded, tasks):
    return evaluate_tasks(loaded, ALL, NOISE, draws=2, include_path=tasks, batch_size=4)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "llama"
    return save_model(directory, small_model("llama", max_position_embeddings=256))


def by(evaluation, condition: str, draw: int, task: str):
    """The one run of a condition, draw and task."""
    keys = condition, draw, task
    (found,) = (r for r in evaluation.runs if (r.condition, r.draw, r.task) == keys)
    return found


def test_every_sample_of_every_task_is_paired(evaluation):
    found = {(c.task, c.metric): c for c in evaluation.changes}
    assert set(found) == {
        (CHOICES, "acc"),
        (CHOICES, "acc_norm"),
        (CHOICES, "choice_kl"),
        (ANSWERS, "exact_match"),
        (TEXTS, "word_perplexity"),
        (TEXTS, "bits_per_byte"),
    }
    assert all((c.draws, c.samples, c.condition) == (2, 10, "all") for c in evaluation.changes)
    assert found[CHOICES, "choice_kl"].noisy > 0.01
    acc = found[CHOICES, "acc"]
    runs = [by(evaluation, *key, CHOICES) for key in (("clean", 0), ("all", 0), ("all", 1))]
    means = [sum(a.metrics["acc"] for a in r.answers) / 10 for r in runs]
    assert acc.clean == pytest.approx(means[0]) == runs[0].aggregates["acc,none"]
    assert acc.noisy == pytest.approx((means[1] + means[2]) / 2)
    assert acc.difference.mean == pytest.approx(acc.noisy - acc.clean)


def test_the_harness_scores_what_we_score(evaluation, loaded):
    """Log-likelihoods of choices, clean and noisy, from plain passes over the same tokens."""
    for key, session in ((("clean", 0), None), (("all", 1), inject(loaded.model, NOISE, draw=1))):
        answer = by(evaluation, *key, CHOICES).answers[4]
        prompt = loaded.tokenizer.encode("fox number 4 has 4+1 legs: how many?")
        for choice, (likelihood, is_greedy) in zip(("5", "6", "15"), answer.response, strict=True):
            ids = torch.tensor([prompt + loaded.tokenizer.encode(" " + choice)])
            with torch.no_grad():
                if session is None:
                    logits = loaded.model(input_ids=ids).logits
                else:
                    with session:
                        logits = loaded.model(input_ids=ids).logits
            before = logits[0, len(prompt) - 1 : -1].double().log_softmax(dim=-1)
            label = ids[0, len(prompt) :, None]
            assert likelihood == pytest.approx(float(before.gather(1, label).sum()), rel=1e-5)
            assert is_greedy == bool((before.argmax(dim=-1) == label[:, 0]).all())


def test_examples_in_the_prompts_are_the_same_in_every_run(evaluation):
    runs = [by(evaluation, *key, ANSWERS) for key in (("clean", 0), ("all", 0), ("all", 1))]
    asked = [[answer.prompt_hash for answer in r.answers] for r in runs]
    assert asked[0] == asked[1] == asked[2] and len(set(asked[0])) == 10


def test_batches_change_no_figure(evaluation, loaded, tasks):
    other = evaluate_tasks(loaded, ALL, NOISE, draws=2, include_path=tasks, batch_size=7)
    for one, two in zip(evaluation.changes, other.changes, strict=True):
        assert (one.task, one.metric) == (two.task, two.metric)
        assert two.noisy == pytest.approx(one.noisy, rel=1e-5)
    assert by(other, "all", 1, ANSWERS).answers == by(evaluation, "all", 1, ANSWERS).answers


def test_what_it_rests_on_is_in_the_result(evaluation, loaded, tmp_path):
    result = evaluation_result(evaluation)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["fingerprints"]["model"] == loaded.fingerprint
    assert set(result["fingerprints"]) >= {"configuration", "tokenizer", *ALL}
    assert result["versions"]["lm_eval"] and result["config"]["seed"] == 0
    all_ = result["conditions"]["all"]
    assert all_["error_model"]["type"] == "RelativeGaussian"
    assert all_["dose"]["relative_l2"] == pytest.approx(0.3, rel=0.1)
    assert {row["operator"] for row in all_["coverage"]} >= {"linear", "rms_norm", "softmax"}
    acc = result["tasks"][CHOICES]["all"]["acc,none"]
    assert acc["verdict"]["outcome"] in ("harmful", "harmless", "inconclusive")
    assert acc["difference"]["includes_draws"] and acc["samples"] == 10
    write_evaluation(evaluation, tmp_path)
    table = pq.read_table(tmp_path / "samples.parquet").to_pylist()
    assert len(table) == 3 * 10 * (2 + 1 + 2)  # runs x samples x metrics of the three tasks
    assert json.loads((tmp_path / "result.json").read_text()) == result


def test_what_was_finished_is_not_run_again_and_the_end_is_the_same(
    evaluation, loaded, tasks, tmp_path, monkeypatch
):
    asked = {"include_path": tasks, "batch_size": 4, "draws": 2, "out": tmp_path / "out"}
    measure, left = NoisyLM.generate_until, [2]

    def measure_and_stop(lm, requests, **options):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(lm, requests, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NoisyLM, "generate_until", measure_and_stop)
        evaluate_tasks(loaded, ALL, NOISE, **asked)
    kept = set((tmp_path / "out" / "runs").iterdir())
    assert len(kept) == 7  # three clean, three of draw 0, and of draw 1 the choices
    before = {path: path.stat().st_mtime_ns for path in kept}
    ended = evaluate_tasks(loaded, ALL, NOISE, **asked)
    assert before == {path: path.stat().st_mtime_ns for path in kept}
    assert evaluation_result(ended) == evaluation_result(evaluation)
    assert [r.answers for r in ended.runs] == [r.answers for r in evaluation.runs]
    with monkeypatch.context() as patch:
        patch.setattr(runner, "NoisyLM", None)  # nothing is left to run
        again = evaluate_tasks(loaded, ALL, NOISE, **asked)
        fewer = evaluate_tasks(loaded, [TEXTS], NOISE, **{**asked, "draws": 1})
    assert evaluation_result(again) == evaluation_result(ended) == evaluation_result(fewer)
    with pytest.raises(InputError, match="holds another evaluation: seed was 0 and is 1 now"):
        evaluate_tasks(loaded, ALL, NOISE, seed=1, **asked)
    with pytest.raises(InputError, match="condition 'all' was"):
        evaluate_tasks(loaded, ALL, RelativeGaussian(0.1), **asked)


def test_sampled_answers_are_drawn_alike_whichever_runs_came_before(loaded, tasks):
    asked = TaskOptions(gen_kwargs={"do_sample": True, "temperature": 3.0}, limit=4)
    given = {"include_path": tasks, "batch_size": 4, "options": asked}
    alone = evaluate_tasks(loaded, [ANSWERS], NOISE, **given)
    names = {"first": [1], "all": None}
    places = [Condition(n, NOISE, make_selection(layers=x)) for n, x in names.items()]
    after = evaluate_tasks(loaded, [ANSWERS], places, draws=2, **given)
    for key in (("clean", 0), ("all", 0)):
        assert by(alone, *key, ANSWERS).answers == by(after, *key, ANSWERS).answers
    answers = [by(after, c, k, ANSWERS).answers for c, k in (("clean", 0), ("all", 0), ("all", 1))]
    assert len({str(found) for found in answers}) == 3


def test_global_generators_and_the_tokenizer_are_left_alone(loaded, tasks):
    before = random.getstate(), torch.get_rng_state(), loaded.tokenizer.padding_side
    evaluate_tasks(loaded, [TEXTS], NOISE, include_path=tasks, batch_size=4)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    assert loaded.tokenizer.padding_side == before[2]


def test_formats_are_conditions_too(loaded, tasks):
    conditions = [Condition("mxfp4", RoundTo("mxfp4", "weights"), make_selection())]
    found = evaluate_tasks(loaded, [TEXTS], conditions, include_path=tasks, batch_size=4)
    assert found.changes[0].noisy != found.changes[0].clean
    with pytest.raises(InputError, match="the same in every draw"):
        evaluate_tasks(loaded, [TEXTS], conditions, draws=2, include_path=tasks)


def test_a_void_condition_is_an_error(loaded, tasks):
    condition = Condition("none", RelativeGaussian(1e-12), make_selection(operators="linear"))
    with pytest.raises(DoseError, match="no noise arrived in none"):
        evaluate_tasks(loaded, [TEXTS], [condition], include_path=tasks, batch_size=4)
    with pytest.raises(InputError, match="scale 0 changes nothing"):
        evaluate_tasks(loaded, [TEXTS], RelativeGaussian(0.0), include_path=tasks)
    with pytest.raises(InputError, match="give one or more, each with a name of its own"):
        evaluate_tasks(loaded, [TEXTS], [], include_path=tasks)


def test_a_directory_tells_of_all_that_it_holds(loaded, tasks, tmp_path):
    """Going on with less, or elsewhere, took the fuller result away."""
    out, names = tmp_path / "out", {"first": [0], "last": [2]}
    places = [Condition(n, NOISE, make_selection(layers=x)) for n, x in names.items()]
    asked = {"include_path": tasks, "options": TaskOptions(limit=4), "out": out}
    fuller = evaluate_tasks(loaded, [TEXTS], places[:1], draws=2, batch_size=3, **asked)
    other = evaluate_tasks(loaded, [TEXTS], places[1:], **asked)
    assert [c.name for c in other.conditions] == ["first", "last"]
    assert [(r.condition, r.draw) for r in other.runs] == [
        ("clean", 0),
        ("first", 0),
        ("first", 1),
        ("last", 0),
    ]
    told = {(c.condition, c.metric): c.draws for c in other.changes}
    assert (told["first", "bits_per_byte"], told["last", "bits_per_byte"]) == (2, 1)
    assert other.config["draws"] == 2 and other.config["batch_size"] == 3  # of the first time
    assert [r.answers for r in other.runs[:3]] == [r.answers for r in fuller.runs]
    assert other.conditions[0] == places[0]
    write_evaluation(other, out)
    assert set(json.loads((out / "result.json").read_bytes())["conditions"]) == set(names)


@dataclass(frozen=True)
class Mine(RelativeGaussian):
    """An error model of the user's own, which no directory knows."""


def test_a_condition_with_an_error_model_of_ones_own_is_named(loaded, tasks, tmp_path):
    asked = {"include_path": tasks, "options": TaskOptions(limit=2), "out": tmp_path / "out"}
    mine = Condition("mine", Mine(0.3), make_selection())
    evaluate_tasks(loaded, [TEXTS], [mine], batch_size=4, **asked)
    found = evaluate_tasks(loaded, [TEXTS], NOISE, **asked)
    assert [c.name for c in found.conditions] == ["all"]
    assert "mine is kept with an error model of your own, and is told of only" in found.notes[-1]


def test_options_without_effect_are_noted_and_other_ones_refused(loaded, tasks):
    asked = TaskOptions(gen_kwargs={"max_gen_toks": 3}, limit=2)
    ready = load_tasks([TEXTS], tasks, asked)
    found = evaluate_tasks(loaded, ready, NOISE, batch_size=4)
    assert found.config["limit"] == 2
    assert f"gen_kwargs does nothing in {TEXTS}: these tasks generate nothing" in found.notes
    with pytest.raises(InputError, match=r"was loaded with other options .*limit was 2, is 1"):
        evaluate_tasks(loaded, ready, NOISE, options=replace(asked, limit=1))


@pytest.mark.parametrize("wrong", ["1 / 0", "doc.nosuch"])
def test_what_code_of_a_task_raises_as_it_runs_is_one_line(loaded, tasks, tmp_path, wrong):
    path = tasks / f"{TEXTS}.yaml"
    (tmp_path / path.name).write_text(path.read_text() + "process_results: !function own.scored\n")
    (tmp_path / "own.py").write_text(f"def scored(doc, results):\n    return {{'m': {wrong}}}\n")
    said = f"cannot run task '{TEXTS}': (ZeroDivisionError|AttributeError): "
    options = TaskOptions(limit=2)
    with pytest.raises(InputError, match=said):
        evaluate_tasks(loaded, [TEXTS], NOISE, include_path=tmp_path, options=options)


# The command.


def test_samples_that_are_lost_are_printed(evaluation, capsys):
    runs = [run_of(values=[1.0] * 20), run_of("all", values=[math.nan] * 2 + [1.0] * 18)]
    changes = changes_of(runs, ["all"], EvaluationMargins())
    print_evaluation(Console(width=200), replace(evaluation, changes=changes))
    said = "task, acc: no number under noise in 2 of 20 samples; the means are of the rest"
    told = capsys.readouterr().out
    assert said in told and "intervals are rough: few discordant answers in task, acc\n" in told
    print_evaluation(Console(width=200), evaluation)
    assert "no number under noise" not in capsys.readouterr().out


def command(model_dir, tasks, *more: str) -> list[str]:
    words = ["eval", f"--model={model_dir}", f"--include-path={tasks}", "--device=cpu"]
    return [*words, "--noise-scale=0.3", "--batch-size=8", *more]


def test_the_command_prints_and_keeps_an_evaluation(
    model_dir, tasks, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "160")
    words = command(model_dir, tasks, f"--tasks={CHOICES},{TEXTS}", f"--out={tmp_path / 'out'}")
    words += ["--window=2", "--stride=1", "--limit=6", f"--log=tensorboard:{tmp_path / 'runs'}"]
    told = carry_out(capsys, *words)
    assert "local_choices (6 samples), local_texts (6 samples); 1 draw, seed 0" in told
    assert told.startswith("llama (float32, cpu), RelativeGaussian 0.3; ")
    for line in ("local_choices   L0-1", "local_texts     L1-2", "coverage", "rms_norm"):
        assert line in told
    assert "harm: a loss beyond 1 point of answers, 0.01 nats" in told
    assert (
        f"Written: {tmp_path / 'out' / 'result.json'}; beside it samples.parquet and runs." in told
    )
    assert f"Logged: {tmp_path / 'runs' / 'eval-llama'}" in told
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result["conditions"]) == {"L0-1", "L1-2"} and result["config"]["limit"] == 6
    monkeypatch.setattr(runner, "NoisyLM", None)
    again = carry_out(capsys, *words[:-1])
    assert again.splitlines()[0] == told.splitlines()[0]


def test_the_help_keeps_its_brackets(capsys):
    assert run(["eval", "--help"]) == 0
    assert "accuracy[gsm8k]<-1%" in re.sub(r"[^!-~]+", "", capsys.readouterr().out)


def test_layers_are_named_as_ranges_and_regions(model_dir, tasks, capsys):
    told = carry_out(
        capsys, *command(model_dir, tasks, f"--tasks={TEXTS}", "--layers=1-2,head", "--limit=2")
    )
    assert "1-2,head" in told and "Nothing was written" in told


def test_a_bound_sets_the_exit_status(model_dir, tasks, capsys, monkeypatch):
    words = command(model_dir, tasks, f"--tasks={TEXTS}")
    assert run([*words, "--fail-if=nll[bits_per_byte]>9"]) == 0
    assert "PASS nll[bits_per_byte]>9: excluded everywhere" in capsys.readouterr().out
    assert run([*words, "--fail-if=nll>1e-9"]) in (1, 3)
    capsys.readouterr()
    monkeypatch.setattr(runner, "NoisyLM", None)  # found before anything is measured
    assert run([*words, "--fail-if=accuracy<-1%"]) == 2
    assert "these tasks tell no accuracy; they tell nll" in capsys.readouterr().err


def test_bad_input_is_one_line(model_dir, tasks, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("")
    one = f"--tasks={TEXTS}"
    for words, said in (
        ([one, "--layers=7"], "--layers 7: no layer '7'; this model has layers 0 to 2 and "),
        ([one, "--layers=,"], "names nothing"),
        ([one, "--layers=1", "--window=1"], "leave out --layers"),
        ([one, "--stride=1"], "it goes with --window"),
        ([one, "--window=9"], "window of 9 layers"),
        ([one, "--draws=0"], "--draws 0: a whole number of at least 1"),
        ([one, "--limit=0"], "limit 0"),
        ([one, "--gen-kwargs=temperature"], "--gen-kwargs 'temperature' cannot be read"),
        ([one, "--operators=lineal"], "did you mean 'linear'"),
        ([one, "--noise-scale=0"], "--noise-scale 0 changes nothing"),
        ([one, f"--out={tmp_path / 'taken'}"], "exists already: name one that does not"),
        ([one, f"--out={tmp_path / ('x' * 300)}"], "File name too long; name another"),
        ([one, "--fail-if=nll[gsm8k]>0.1"], "no task, condition or metric 'gsm8k' is evaluated"),
        ([one, "--log=tensorbord"], "no such tracker; did you mean 'tensorboard'"),
        ([one, "--format=mxfp4"], "a format is an error of its own"),
        (["--tasks=,"], "no task is named"),
        ([one, "--fail-if=acc<-1%"], "--fail-if 'acc<-1%': give 'accuracy<-1%' (points), 'kl"),
    ):
        assert said in refusal(capsys, *command(model_dir, tasks, *words)), words


def test_options_of_generation_are_read_in_two_forms():
    from noisescope.cli.evaluation_places import parse_gen_kwargs

    expected = {"max_gen_toks": 64, "do_sample": False, "temperature": 0.5, "until": "x"}
    assert parse_gen_kwargs("max_gen_toks=64,do_sample=False,temperature=0.5,until=x") == expected
    assert parse_gen_kwargs(json.dumps(expected)) == expected
    assert parse_gen_kwargs(None) == {}


def test_without_the_harness_the_command_names_what_installs_it(
    model_dir, tasks, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    told = refusal(capsys, *command(model_dir, tasks, f"--tasks={TEXTS}"))
    assert told == (
        "Error: noisescope eval needs the package 'lm_eval', which is not installed: "
        "pip install 'noisescope[eval]'\n"
    )


def test_interrupted_it_says_what_is_kept(model_dir, tasks, tmp_path, capsys, monkeypatch):
    def stop(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(NoisyLM, "loglikelihood_rolling", stop)
    words = command(model_dir, tasks, f"--tasks={TEXTS}", f"--out={tmp_path / 'out'}")
    assert run(words) == 130
    assert f"what was finished is kept in {tmp_path / 'out'}" in capsys.readouterr().err
    assert run(words[:-1]) == 130
    assert "Interrupted: nothing was written." in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_model_answers_as_in_a_study():
    """Clean and noisy, through the chat template: token for token as our own decoding."""
    loaded = load_model(demo_model_dir(), dtype="float32", device="cpu")
    task = load_task(demo_questions(), 8)
    size = loaded.model.get_input_embeddings().num_embeddings
    prompts = encode_task(task, loaded.tokenizer, loaded.context_length, size)
    texts = [loaded.tokenizer.decode(ids) for ids in prompts]
    asked = [(text, {"until": [], "max_gen_toks": 80}) for text in texts]
    for noise in (None, RelativeGaussian(0.1)):
        lm = NoisyLM(loaded, noise, batch_size=3)
        found = lm.generate_until(requests("generate_until", asked))
        session = inject(loaded.model, noise or RelativeGaussian(0.0))
        with torch.no_grad(), session:
            answers = [
                greedy_answers(loaded.model, [ids], 80, loaded.context_length)[0] for ids in prompts
            ]
        assert found == [loaded.tokenizer.decode(a, skip_special_tokens=True) for a in answers]


def test_shares_of_a_task_are_taken_as_the_harness_takes_them(loaded, tasks):
    found = evaluate_tasks(
        loaded,
        [TEXTS],
        NOISE,
        include_path=tasks,
        batch_size=4,
        options=TaskOptions(limit=0.25),
    )
    assert found.changes[0].samples == 3  # of ten, rounded up
