"""A unit of work: its records in order, its witnesses, and the same result wherever it runs."""

import dataclasses
import json

import pytest
import torch
from helpers.model_dirs import as_loaded, loaded_small
from helpers.more_models import toy_model
from helpers.one_by_one import SEED, condition, one_row_answer, texts
from helpers.small_models import small_model

from noisescope.errors import InputError, NoisescopeWarning
from noisescope.inject import Witness, merge_witnesses
from noisescope.measure import CLEAN, Plan, Unit, UnitResult, Worker, make_units, samples_per_unit
from noisescope.measure.worker import MEMORY_NOTE, PLAIN_NOTE
from noisescope.tasks import make_task

PROMPTS = texts((3, 9, 2, 6, 4))
NAMES = tuple("abcde")
CONDITIONS = (condition("L1", layers=1), condition("all"), condition("head", layers="head"))
UNIT = Unit("u", NAMES, ("L1", "all", "head"), (0, 2))
SMALL = dataclasses.replace(UNIT, samples=NAMES[:3], draws=(2,))


def task_of(prompts=PROMPTS, is_generative=True):
    samples = [
        {"name": name, "prompt_ids": ids, "group": f"g{n % 2}"}
        for n, (name, ids) in enumerate(zip(NAMES, prompts, strict=False))
    ]
    right = (lambda answer, sample: len(answer) > 3) if is_generative else None
    return make_task(samples, right, max_new_tokens=5)


def worker_of(loaded=None, task=None, **fields):
    loaded = loaded or loaded_small()
    loaded.model.generation_config.eos_token_id = None
    plan = Plan(CONDITIONS, draws=3, seed=SEED, **fields)
    return Worker(loaded, task or task_of(), plan)


def same(one, other, rel=1e-5):
    """Asserts that records are equal, their numbers to rounding."""
    for a, b in zip(one, other, strict=True):
        for name, value in a.as_json().items():
            theirs = b.as_json()[name]
            if isinstance(value, float):
                assert value == pytest.approx(theirs, rel=rel, abs=1e-6), (name, a, b)
            else:
                assert value == theirs, (name, a, b)
    return True


def test_records_come_condition_by_condition_draw_by_draw_in_sample_order():
    result = worker_of()(UNIT)
    expected = [(CLEAN, 0, n) for n in NAMES]
    expected += [(c, k, n) for c in ("L1", "all", "head") for k in (0, 2) for n in NAMES]
    assert [(r.condition, r.draw, r.sample) for r in result.records] == expected
    assert [r.group for r in result.records[:5]] == ["g0", "g1"] * 2 + ["g0"]
    assert result.unit == "u" and list(result.witnesses) == ["L1", "all", "head"]
    assert result.notes == ()


def test_answers_are_those_of_one_row_at_a_time():
    result = worker_of(batch_size=12)(UNIT)
    model = loaded_small().model
    model.generation_config.eos_token_id = None
    by_name = {c.name: c for c in CONDITIONS}
    for record in result.records:
        prompt = PROMPTS[NAMES.index(record.sample)]
        given = by_name.get(record.condition)
        alone = one_row_answer(model, prompt, record.sample, given, record.draw, 5)
        assert record.answer == " ".join(map(str, alone)) or record.close_calls
        assert record.is_cut and record.is_right is True


@pytest.mark.parametrize("part", [{"samples": ("c", "a")}, {"conditions": ("all",), "draws": (2,)}])
def test_a_smaller_unit_gives_the_same_records(part):
    whole, unit = worker_of()(UNIT), dataclasses.replace(UNIT, **part)
    found = worker_of()(unit)
    key = {(r.condition, r.draw, r.sample): r for r in whole.records}
    assert same(found.records, [key[r.condition, r.draw, r.sample] for r in found.records], 1e-4)
    assert tuple(found.witnesses) == unit.conditions


def test_the_same_unit_gives_the_same_result_to_the_last_bit():
    worker = worker_of()
    one = json.dumps(worker(UNIT).as_json())
    worker(dataclasses.replace(UNIT, samples=("b",)))
    assert one == json.dumps(worker(UNIT).as_json())


def test_a_unit_without_clean_records_has_the_noisy_ones_alone():
    whole = worker_of()(UNIT)
    found = worker_of()(dataclasses.replace(UNIT, with_clean=False))
    assert found.records == whole.records[len(NAMES) :]


def test_a_unit_that_generates_nothing_scores_along_the_clean_answers():
    whole = worker_of()(UNIT)
    found = worker_of()(dataclasses.replace(UNIT, generates=False))
    unanswered = {"is_right": None, "answer": None, "is_cut": None, "close_calls": None}
    expected = [
        r if r.condition == CLEAN else dataclasses.replace(r, **unanswered) for r in whole.records
    ]
    assert same(found.records, expected)


def test_texts_are_scored_along_themselves():
    found = worker_of(task=task_of(is_generative=False))(UNIT)
    assert [r.tokens for r in found.records[:5]] == [len(ids) - 1 for ids in PROMPTS]
    assert all(r.is_right is None and r.answer is None for r in found.records)


@pytest.mark.parametrize("limits", [{"batch_size": 1}, {"batch_size": 4}, {"memory_gib": 1e-4}])
def test_no_limit_changes_a_record(limits):
    assert same(worker_of(**limits)(SMALL).records, worker_of()(SMALL).records, 1e-4)


@pytest.mark.parametrize("kind", ["plain", "mixes rows", "scales by rows", "knows the batch"])
def test_a_model_whose_layers_cannot_be_shared_is_told_of_and_measured(kind):
    loaded = as_loaded(toy_model(kind), context_length=None)
    task = task_of(is_generative=False)
    alone = {
        name: worker_of(loaded, task)(dataclasses.replace(UNIT, conditions=(name,), draws=(2,)))
        for name in UNIT.conditions
    }
    found = worker_of(loaded, task)(UNIT)
    assert found.notes == (() if kind == "plain" else (PLAIN_NOTE,))
    for name, result in alone.items():
        mine = [r for r in found.records if (r.condition, r.draw) == (name, 2)]
        assert same(mine, result.records[5:])


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    MemoryError(),
]


def with_little_memory(loaded, rows, error):
    def refuse(module, args, kwargs):
        if len(args[0]) > rows:
            raise error

    hook = loaded.model.model.layers[1].register_forward_pre_hook(refuse, with_kwargs=True)
    return loaded, hook


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_out_of_memory_halves_the_batch_and_counts_nothing_twice(error):
    unit = dataclasses.replace(UNIT, generates=False)
    expected = worker_of()(unit)
    loaded, _ = with_little_memory(loaded_small(), 12, error)
    worker = worker_of(loaded)
    with pytest.warns(NoisescopeWarning, match="memory ran out: batches were halved") as told:
        result = worker(unit)
        counted = {name: w.as_json() for name, w in result.witnesses.items()}
        again = worker(unit)
    assert len(told) == 1
    assert result.notes == again.notes == (MEMORY_NOTE,)
    assert same(result.records, expected.records, 1e-4) and again.records == result.records
    assert counted == {name: w.as_json() for name, w in again.witnesses.items()}
    # Padding differs with the batch, but not in the head, which computes the scored tokens alone.
    for name in ("all", "head"):
        here, there = (r.witnesses[name].doses()["lm_head:linear:0"] for r in (result, expected))
        assert here.elements == there.elements > 0


def test_out_of_memory_at_one_row_is_an_error():
    loaded = loaded_small()
    worker = worker_of(loaded)
    assert worker(dataclasses.replace(UNIT, samples=("a",)))
    with_little_memory(loaded, 0, OUT_OF_MEMORY[0])
    with (
        pytest.warns(NoisescopeWarning, match="memory ran out"),
        pytest.raises(InputError, match="memory ran out with one row at a time: give shorter"),
    ):
        worker(UNIT)


def test_other_errors_are_raised_at_once_and_the_model_is_as_before():
    loaded = loaded_small()
    worker = worker_of(loaded)
    loaded.model.model.layers[1].mlp.forward = lambda x: x.reshape(7, 7)
    with pytest.raises(RuntimeError, match="shape"):
        worker(UNIT)
    assert not torch.overrides._get_current_function_mode_stack()
    assert not loaded.model.model.layers[1]._forward_pre_hooks


def test_results_survive_json_to_the_last_bit():
    result = worker_of()(UNIT)
    read = UnitResult.from_json(json.loads(json.dumps(result.as_json())))
    assert read.records == result.records and read.unit == "u" and read.notes == ()
    for name, witness in result.witnesses.items():
        copy = read.witnesses[name]
        assert (copy.counts, copy.dose(), copy.doses()) == (
            (witness.counts, witness.dose(), witness.doses())
        )
        assert copy.coverage() == witness.coverage() and copy.as_json() == witness.as_json()
    assert Unit.from_json(json.loads(json.dumps(UNIT.as_json()))) == UNIT


def test_witnesses_of_parts_add_up_to_the_whole():
    whole = worker_of(batch_size=1)(SMALL)
    worker = worker_of(batch_size=1)
    parts = [worker(dataclasses.replace(SMALL, samples=(name,))) for name in SMALL.samples]
    for name, expected in whole.witnesses.items():
        found = merge_witnesses(Witness.from_json(p.witnesses[name].as_json()) for p in parts)
        assert found.counts == expected.counts
        assert found.dose().elements == expected.dose().elements
        assert found.dose().relative_l2 == pytest.approx(expected.dose().relative_l2, rel=1e-9)


@pytest.mark.parametrize(("riders", "size"), [(1, 32), (9, 25), (99, 2), (2000, 1)])
def test_units_are_as_large_as_a_batch_is_good_for(riders, size):
    plan = Plan((CONDITIONS[0],), draws=riders)
    assert samples_per_unit(plan) == size  # 256 rows, the clean ones too, and 32 samples at most
    units = make_units(plan, [str(n) for n in range(130)])
    assert [name for unit in units for name in unit.samples] == [str(n) for n in range(130)]
    assert all(unit.draws == tuple(range(riders)) for unit in units)
    assert len({unit.name for unit in units}) == len(units)


@pytest.mark.parametrize("gib", [0, -1, float("inf"), float("nan")])
def test_a_limit_on_memory_is_a_number_above_zero(gib):
    with pytest.raises(InputError, match="a number above 0 is needed"):
        Plan((), memory_gib=gib)


def test_experts_are_measured_by_themselves():
    loaded = as_loaded(small_model("mixtral"))
    found = worker_of(loaded)(UNIT)
    alone = worker_of(loaded)(dataclasses.replace(UNIT, conditions=("all",), draws=(2,)))
    mine = [r for r in found.records if (r.condition, r.draw) == ("all", 2)]
    assert found.notes == ()
    assert [r.answer for r in mine] == [r.answer for r in alone.records[5:]]
