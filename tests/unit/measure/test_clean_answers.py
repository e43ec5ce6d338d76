"""Clean answers are decoded once, and a unit's result does not depend on whether they are known."""

import dataclasses
import json

import pytest
from helpers.model_dirs import as_loaded, loaded_small
from helpers.one_by_one import SEED, condition, texts
from helpers.small_models import small_model

from noisescope.errors import SelectionError
from noisescope.inject import make_selection
from noisescope.measure import CLEAN, Condition, Plan, Unit, Worker
from noisescope.measure import worker as worker_module
from noisescope.noise import RelativeGaussian
from noisescope.tasks import make_task

PROMPTS = texts((3, 9, 2, 6, 4))
NAMES = tuple("abcde")
CONDITIONS = (condition("L1", layers=1), condition("all"), condition("head", layers="head"))
WHOLE = Unit("whole", NAMES, ("L1", "all", "head"), (0, 2))
RIDERS = dataclasses.replace(WHOLE, name="riders", with_clean=False)
SCORED = dataclasses.replace(RIDERS, name="scored", generates=False)
CLEANS = Unit("clean", NAMES, (), ())


def task_of(is_generative=True):
    samples = [{"name": n, "prompt_ids": ids} for n, ids in zip(NAMES, PROMPTS, strict=True)]
    right = (lambda answer, sample: len(answer) > 3) if is_generative else None
    return make_task(samples, right, max_new_tokens=5)


def worker_of(loaded=None, conditions=CONDITIONS, is_generative=True, **given):
    loaded = loaded or loaded_small()
    limits = {name: given.pop(name) for name in ("batch_size",) if name in given}
    plan = Plan(conditions, draws=3, seed=SEED, **limits)
    return Worker(loaded, task_of(is_generative), plan, **given)


def as_text(result):
    return json.dumps(result.as_json())


def answers_of(result):
    return {r.sample: r.answer_ids for r in result.records if r.condition == CLEAN}


@pytest.fixture
def decoded(monkeypatch):
    """Whom each call decoded: names of the riders, and of the samples."""
    calls = []
    decode = worker_module.decode

    def noting(model, prompts, boardings, *given):
        calls.append(([b.rider.name for b in boardings], "".join(p.name for p in prompts)))
        return decode(model, prompts, boardings, *given)

    monkeypatch.setattr(worker_module, "decode", noting)
    return calls


RIDING = ["L1", "L1", "all", "all", "head", "head"]


def test_clean_records_carry_the_tokens_of_their_answers():
    found = worker_of()(WHOLE)
    for record in found.records:
        if record.condition == CLEAN:
            assert " ".join(map(str, record.answer_ids)) == record.answer
            assert len(record.answer_ids) == record.tokens
        else:
            assert record.answer_ids is None


def test_texts_have_no_answers():
    found = worker_of(is_generative=False)(WHOLE)
    assert {r.answer_ids for r in found.records} == {None}
    again = worker_of(is_generative=False, clean_answers={"a": (5, 6)})(WHOLE)
    assert as_text(again) == as_text(found)


def test_what_is_known_is_not_decoded(decoded):
    worker = worker_of()
    worker(WHOLE)
    assert decoded == [([CLEAN, *RIDING], "abcde")]
    worker(RIDERS)
    worker(SCORED)
    assert decoded[1:] == [(RIDING, "abcde")]
    worker(WHOLE)
    assert decoded[2:] == [([CLEAN, *RIDING], "abcde")]


def test_what_is_not_known_is_decoded_once(decoded):
    known = answers_of(worker_of()(CLEANS))
    worker = worker_of(clean_answers={"b": known["b"], "e": known["e"]})
    decoded.clear()
    worker(SCORED)
    worker(SCORED)
    assert decoded == [([CLEAN], "acd")]


FEW = dataclasses.replace(RIDERS, name="few", samples=("d", "b"))
KNOWN = {
    "of all samples": ("llama", {}, RIDERS),
    "of some, in batches that are cut": ("llama", {"batch_size": 4}, FEW),
    "of a mixture, only scored": ("mixtral", {}, SCORED),
}
CROSSED = [
    (family, limits, unit)
    for family, limits in (("llama", {}), ("llama", {"batch_size": 4}), ("mixtral", {}))
    for unit in (RIDERS, SCORED, FEW)
    if (family, limits, unit) not in KNOWN.values()
]


@pytest.mark.parametrize(
    ("family", "limits", "unit"),
    [
        *(pytest.param(*case, id=name) for name, case in KNOWN.items()),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CROSSED),
    ],
)
def test_a_result_is_the_same_whether_the_answers_were_known_or_not(family, limits, unit):
    loaded = as_loaded(small_model(family))
    clean = worker_of(loaded, **limits)(CLEANS)
    told = worker_of(loaded, clean_answers=answers_of(clean), **limits)
    met = worker_of(loaded, **limits)
    met(WHOLE)
    expected = as_text(worker_of(loaded, **limits)(unit))
    for worker in (told, met, met):
        assert as_text(worker(unit)) == expected


def test_scores_and_answers_are_those_of_the_unit_with_its_clean_records():
    whole, worker = worker_of()(WHOLE), worker_of()
    worker(CLEANS)
    assert worker(RIDERS).records == whole.records[len(NAMES) :]
    unanswered = {"is_right": None, "answer": None, "is_cut": None, "close_calls": None}
    expected = tuple(dataclasses.replace(r, **unanswered) for r in whole.records[len(NAMES) :])
    assert worker(SCORED).records == expected


def test_scores_go_along_the_answers_that_were_given():
    given = dict.fromkeys(NAMES, (7, 7, 7))
    found = worker_of(clean_answers=given)(SCORED)
    assert {r.tokens for r in found.records} == {3}


@pytest.mark.parametrize("size", [2, 3, 7])
def test_a_party_without_the_clean_model_keeps_the_rows_within_the_limit(monkeypatch, size):
    """Clean rows come on top of it where prompts are shared."""
    loaded, most = loaded_small(), []
    worker = worker_of(loaded, batch_size=size, clean_answers=answers_of(worker_of()(CLEANS)))
    unit = dataclasses.replace(RIDERS, samples=("a",))
    worker(unit)  # the trials that come first have batches of their own

    def note(module, args, kwargs):
        most.append(len(args[0]))

    # Behind the layer where riders branch off: its own hooks see the rows before they do.
    loaded.model.model.layers[2].register_forward_pre_hook(note, with_kwargs=True)
    worker(unit)
    assert max(most) <= size


def test_progress_never_goes_back():
    for unit, known in ((WHOLE, False), (RIDERS, False), (RIDERS, True), (SCORED, False)):
        told = []
        answers = answers_of(worker_of()(CLEANS)) if known else {}
        worker_of(clean_answers=answers, tell=lambda _, share: told.append(share))(unit)  # noqa: B023
        assert told == sorted(told) and told[-1] <= 1
    told.clear()
    answers = answers_of(worker_of()(CLEANS))
    worker_of(clean_answers=answers, tell=lambda _, share: told.append(share))(SCORED)
    assert told[0] == 0


# Conditions that are chosen later.


def test_a_condition_that_was_added_is_measured_as_if_it_had_been_there():
    one, other = worker_of(conditions=CONDITIONS[:1]), worker_of()
    with pytest.raises(KeyError):
        one(SCORED)
    one.add(CONDITIONS[1:])
    one.add(CONDITIONS)
    assert as_text(one(WHOLE)) == as_text(other(WHOLE))


def test_a_name_is_one_condition():
    with pytest.raises(ValueError, match="'L1' is the name of another condition"):
        worker_of().add([condition("L1", layers=0)])


def test_sessions_are_made_when_they_are_used(monkeypatch):
    made = []
    session = worker_module.Session

    def noting(*given, **named):
        made.append(given)
        return session(*given, **named)

    monkeypatch.setattr(worker_module, "Session", noting)
    worker = worker_of()
    worker.add(condition(f"more {n}", layers=1) for n in range(300))
    assert made == []
    for _ in range(2):
        worker(dataclasses.replace(SCORED, conditions=("L1", "more 7")))
        assert len(made) == 2


def test_a_selection_that_names_nothing_is_told_at_its_first_unit():
    worker = worker_of(conditions=(condition("L9", layers=9),))
    with pytest.raises(SelectionError, match="no layer 9"):
        worker(dataclasses.replace(SCORED, conditions=("L9",)))


class Own(RelativeGaussian):
    """An error model that another process does not know."""


def test_the_spec_holds_every_condition_or_there_is_none():
    spec = {"seed": 7, "conditions": {}}
    worker = worker_of(conditions=CONDITIONS[:1], spec=spec)
    assert list(worker.spec["conditions"]) == ["L1"] and worker.spec["seed"] == 7
    worker.add(CONDITIONS)
    entries = json.loads(json.dumps(worker.spec))["conditions"]
    assert [Condition.from_json(name, entry) for name, entry in entries.items()] == [*CONDITIONS]
    worker.add([Condition("own", Own(0.1), make_selection(layers=1))])
    assert worker.spec is None
    assert worker_of().spec is None


def test_a_condition_comes_back_from_json_with_an_error_model_of_ones_own():
    own = Condition("own", Own(0.1), make_selection(layers=1))
    entry = json.loads(json.dumps(own.as_json()))
    assert Condition.from_json("own", entry, kinds=(Own,)) == own
    with pytest.raises(KeyError, match="Own"):
        Condition.from_json("own", entry)
