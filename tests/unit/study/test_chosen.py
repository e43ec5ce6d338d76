"""Steps choose conditions from the records so far: kept before they are measured, and once."""

import dataclasses
import json
import math

import pyarrow.parquet as pq
import pytest
from helpers.study_worker import (
    STEPS,
    Ending,
    FakeWorker,
    carry_out,
    carry_out_steps,
    condition_of,
    make_plan,
    run_steps,
    snapshot,
    told,
)

from noisescope.errors import InputError
from noisescope.measure import CLEAN, Unit
from noisescope.study import Layout, make_diagnosis, make_units, open_study, read_study
from noisescope.study import state as state_module
from noisescope.study.units import unit_keys

PLAN = make_plan(samples=3, draws=2, conditions=("L0", "L1"), size=2, has_steps=True)
X, Y = {"X": condition_of("X")}, {"Y": condition_of("Y")}


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "study"


def keys_of(units):
    return [key for unit in units for key in unit_keys(unit)]


def test_what_steps_choose_is_measured_over_all_samples_and_draws(directory):
    worker = FakeWorker()
    carry_out_steps(directory, PLAN, worker)
    state = read_study(directory)
    names = list(state.plan.conditions)
    assert names[:2] == ["L0", "L1"] and [name[0] for name in names[2:]] == ["a", "b", "c"]
    samples = [s.name for s in PLAN.samples]
    expected = [(CLEAN, 0, s) for s in samples]
    expected += [(c, k, s) for c in names for k in range(2) for s in samples]
    assert [(r.condition, r.draw, r.sample) for r in state.records] == expected
    assert sorted(keys_of(worker.units)) == sorted(expected)
    assert [u.name for u in worker.units] == [
        "0-samples-0", "0-samples-1", "1-sites-scored-0", "1-sites-scored-1", "3-channels-0",
        "3-channels-1",
    ]  # fmt: skip
    assert [u.generates for u in worker.units] == [True, True, False, False, True, True]
    assert (state.is_complete, state.stages, state.steps) == (
        True, 1, ("sites", "nothing", "channels"),
    )  # fmt: skip
    assert set(state.witnesses) == set(names)
    assert state.plan.chosen == dict(zip(names[2:], ("sites", "sites", "channels"), strict=True))
    assert list(state.plan.asked) == ["L0", "L1"]
    assert state.plan.families == [["L0", "L1"], names[2:4], names[4:]]


def test_all_names_that_a_step_wanted_are_told_in_its_order(directory):
    with open_study(directory, PLAN) as study:
        assert study.chosen("sites") is None
        run_steps(study, FakeWorker())
        first, there, second = study.chosen("sites")
        assert (first[0], there, second[0]) == ("a", "L0", "b")
        assert study.chosen("nothing") == ()
        assert study.chosen("") is None
        study.finish()
        assert study.chosen("sites") == (first, there, second)
    with open_study(directory, PLAN) as study:
        assert study.is_complete
        assert study.opening == "complete: nothing is left to measure"
        assert study.chosen("sites") == (first, there, second)
        study.choose("sites", X)
        assert study.is_complete


def test_the_choice_that_is_kept_wins(directory):
    with open_study(directory, PLAN) as study:
        study.run(FakeWorker())
        study.choose("sites", X)
        before = snapshot(directory)
        study.choose("sites", Y)
        assert study.chosen("sites") == ("X",)
    with open_study(directory, PLAN) as study:
        study.choose("sites", Y, generates=False)
        assert study.chosen("sites") == ("X",)
        assert study.opening == "2 of 4 units are kept already; steps may add more"
    assert {**snapshot(directory), "lock": b""} == {**before, "lock": b""}


def test_a_choice_is_kept_as_json_gives_it_back(directory):
    entry = {"error_model": {"scale": 0.05}, "selection": {"layers": (1, 2)}}
    for folder in (directory, None):
        with open_study(folder, PLAN) as study:
            study.run(FakeWorker())
            study.choose("sites", {"X": entry})
            assert study.plan.conditions["X"]["selection"] == {"layers": [1, 2]}
            study.run(FakeWorker())
            study.choose("again", {"X": entry})
            assert study.chosen("again") == ("X",)
            study.run(Ending(0))


def test_a_step_waits_for_all_that_was_asked_before():
    with open_study(None, PLAN) as study:
        with pytest.raises(ValueError, match=r"step 'sites' cannot .* now: 0 of 2 units are meas"):
            study.choose("sites", X)
        study.run(FakeWorker())
        study.choose("sites", X)
        with pytest.raises(ValueError, match=r"step 'more' cannot .* now: 2 of 4 units are meas"):
            study.choose("more", Y)
        with pytest.raises(ValueError, match="2 of 4 units are measured: run the study to its end"):
            study.finish()
        study.run(FakeWorker())
        study.finish()
        with pytest.raises(ValueError, match=r"step 'more' cannot .* now: it is finished"):
            study.choose("more", Y)


@pytest.mark.parametrize("changes", [{"has_steps": False}, {"is_adaptive": True}])
def test_only_a_plan_with_steps_lets_them_choose(changes):
    plan = dataclasses.replace(PLAN, **changes)
    with open_study(None, plan) as study, pytest.raises(ValueError, match="a plan with has_steps"):
        study.choose("sites", X)


def test_a_step_without_a_name_does_not_choose():
    with open_study(None, PLAN) as study, pytest.raises(ValueError, match="and a name are needed"):
        study.choose("", X)


@pytest.mark.parametrize(
    ("conditions", "generates", "text"),
    [
        ({"L0": condition_of("other")}, None, "chose 'L0', which is another condition here"),
        ({CLEAN: condition_of("X")}, None, "chose 'clean', which is another condition here"),
        (X, None, "wants answers under 'X', which has none here"),
    ],
)
def test_a_name_that_is_taken_is_refused(directory, conditions, generates, text):
    with open_study(directory, PLAN) as study:
        study.run(FakeWorker())
        study.choose("sites", X, generates=False)
        study.run(FakeWorker())
        before = snapshot(directory)
        with pytest.raises(ValueError, match=f"step 'more' .*{text}"):
            study.choose("more", conditions, generates=generates)
        assert snapshot(directory) == before
        assert study.chosen("more") is None
        study.choose("more", X, generates=False)
        assert study.progress == (4, 4)


def test_the_asked_alone_is_no_complete_study(directory):
    with open_study(directory, PLAN) as study:
        study.run(FakeWorker())
        assert not study.is_complete
    assert not read_study(directory).is_complete
    with open_study(directory, PLAN) as study:
        assert not study.is_complete
        assert study.opening == "2 of 2 units are kept already; steps may add more"
        run_steps(study, FakeWorker())
        study.finish()
    carry_out_steps(directory.with_name("whole"), PLAN)
    assert snapshot(directory) == snapshot(directory.with_name("whole"))


def test_a_study_of_the_same_conditions_without_steps_is_another(directory):
    carry_out_steps(directory, PLAN)
    text = "holds another study: chooses conditions itself: true there, false now"
    with pytest.raises(InputError, match=text):
        open_study(directory, dataclasses.replace(PLAN, has_steps=False))


def test_a_study_in_memory_has_steps_too(directory):
    assert carry_out_steps(None, PLAN) == carry_out_steps(directory, PLAN)


def test_choosing_changes_no_record_of_what_was_there(directory):
    """Not even its place in the journal, whose study stays the same one."""
    with open_study(directory, PLAN) as study:
        study.run(FakeWorker())
        journal = (directory / "records.jsonl").read_bytes()
        records = study.records
        run_steps(study, FakeWorker())
        assert (directory / "records.jsonl").read_bytes().startswith(journal)
        assert study.records[: len(records)] == records


EXTENSIONS = {
    "samples": make_plan(samples=5, draws=2, conditions=("L0", "L1"), has_steps=True),
    "draws": make_plan(samples=3, draws=4, conditions=("L0", "L1"), has_steps=True),
    "conditions": make_plan(samples=3, draws=2, conditions=("L2", "L0", "L1"), has_steps=True),
    "all": make_plan(samples=6, draws=3, conditions=("L2", "L0", "L1"), has_steps=True),
}


@pytest.mark.parametrize("what", EXTENSIONS)
def test_an_extension_measures_what_was_chosen_too(directory, what):
    first, second, plan = FakeWorker(), FakeWorker(), EXTENSIONS[what]
    carry_out_steps(directory, PLAN, first)
    old = read_study(directory)
    carry_out_steps(directory, plan, second, extend=True)
    state = read_study(directory)
    assert (state.is_complete, state.stages, state.steps) == (True, 2, old.steps)
    assert list(state.plan.conditions) == [*plan.conditions, *old.plan.chosen]
    assert state.plan.chosen == old.plan.chosen
    samples = [s.name for s in plan.samples]
    everything = [(CLEAN, 0, s) for s in samples]
    everything += [
        (c, k, s) for c in state.plan.conditions for k in range(plan.draws) for s in samples
    ]
    assert [(r.condition, r.draw, r.sample) for r in state.records] == everything
    measured = keys_of([*first.units, *second.units])
    assert sorted(measured) == sorted(everything)
    scored = {name for name, step in state.plan.chosen.items() if step == "sites"}
    for unit in second.units:
        assert unit.generates != bool(scored & set(unit.conditions))
        assert unit.generates or (not unit.with_clean and scored >= set(unit.conditions))
    units = [u.name for u in (*first.units, *second.units)]
    assert len(units) == len(set(units))


def test_an_extension_while_steps_are_left_goes_on_with_them(directory):
    with open_study(directory, PLAN) as study:
        run_steps(study, FakeWorker(), STEPS[:1])
    worker = FakeWorker()
    with open_study(directory, EXTENSIONS["all"], extend=True) as study:
        with pytest.raises(ValueError, match="cannot add to the study now"):
            study.choose("channels", X)
        assert "4 of 14 units are kept already; steps may add more" in study.opening
        run_steps(study, worker)
        study.finish()
    state = read_study(directory)
    assert state.steps == ("sites", "nothing", "channels")
    assert len(state.records) == 6 + len(state.plan.conditions) * 3 * 6
    # The stages: asked, sites, the extension, nothing, channels.
    assert {u.name.rsplit("-", 1)[0] for u in worker.units} == {
        "2-samples", "2-samples-scored", "2-conditions", "2-draws", "2-draws-scored", "4-channels",
    }  # fmt: skip


def test_what_a_step_chose_becomes_the_users_when_it_is_asked_for(directory):
    with open_study(directory, PLAN) as study:
        study.run(FakeWorker())
        study.choose("sites", X)
        study.run(FakeWorker())
        study.finish()
    plan = make_plan(samples=3, draws=2, conditions=("X", "L0", "L1"), has_steps=True)
    with pytest.raises(InputError, match="conditions: X now, not there; add --extend"):
        open_study(directory, plan)
    worker = FakeWorker()
    carry_out(directory, plan, worker, extend=True)
    assert worker.units == []
    state = read_study(directory)
    assert (state.is_complete, state.stages, dict(state.plan.chosen)) == (True, 2, {})
    assert list(state.plan.asked) == ["X", "L0", "L1"]
    with open_study(directory, plan) as study:
        assert study.is_complete
        assert study.chosen("sites") == ("X",)
    other = dataclasses.replace(plan, conditions={**plan.conditions, "Y": condition_of("Z")})
    carry_out(directory, other, extend=True)


@pytest.mark.parametrize("extend", [False, True])
def test_a_chosen_name_that_is_asked_for_with_other_content_is_refused(directory, extend):
    with open_study(directory, PLAN) as study:
        study.run(FakeWorker())
        study.choose("sites", X)
    plan = dataclasses.replace(PLAN, conditions={**PLAN.conditions, "X": condition_of("Z")})
    with pytest.raises(InputError, match=r'condition X layers: \["X"\] there, \["Z"\] now'):
        open_study(directory, plan, extend=extend)


def test_a_reader_finds_its_way_at_each_moment(directory):
    """Before and after each choice and each unit."""
    seen = []

    class Looking(FakeWorker):
        def __call__(self, unit):
            look()
            return super().__call__(unit)

    def look():
        state = read_study(directory)
        made_of = {r.condition for r in state.records}
        assert made_of <= {CLEAN, *state.plan.conditions}
        plan = dataclasses.replace(
            state.plan, about={"config": {"max_new_tokens": 3}, "layers": {}, "notes": []}
        )
        found = make_diagnosis(plan, state.records, state.witnesses, state.notes)
        assert {s.condition for s in found.summaries} <= made_of
        seen.append((state.units_done, state.units_total, len(state.steps), state.is_complete))

    with open_study(directory, PLAN) as study:
        study.run(Looking())
        for name, choice, generates in STEPS:
            look()
            study.choose(name, choice(study), generates=generates)
            look()
            study.run(Looking())
        look()
        study.finish()
        look()
    look()
    assert seen == [
        (0, 2, 0, False), (1, 2, 0, False), (2, 2, 0, False), (2, 4, 1, False), (2, 4, 1, False),
        (3, 4, 1, False), (4, 4, 1, False), (4, 4, 2, False), (4, 4, 2, False), (4, 6, 3, False),
        (4, 6, 3, False), (5, 6, 3, False), (6, 6, 3, False), (6, 6, 3, True), (6, 6, 3, True),
    ]  # fmt: skip


def test_a_reader_whom_a_step_overtakes_knows_its_conditions(directory, monkeypatch):
    with open_study(directory, PLAN) as study:
        study.run(FakeWorker())
        read = state_module.read_kept

        def overtaken(*given):
            if study.chosen("sites") is None:
                study.choose("sites", X)
                study.run(FakeWorker())
            return read(*given)

        monkeypatch.setattr(state_module, "read_kept", overtaken)
        state = read_study(directory)
        assert state.steps == ("sites",)
        assert told(state) == told(study)


def test_conditions_are_cut_and_the_clean_records_come_with_the_first():
    layout = Layout(2, draws_per_unit=2, conditions_per_unit=2)
    plan = make_plan(samples=3, draws=3, layout=layout)
    units = make_units(plan, "u", ["s0", "s1", "s2"], ["A", "B", "C"], range(3), True)
    assert [(u.samples, u.conditions, u.draws, u.with_clean) for u in units] == [
        (s, c, k, (c, k) == (("A", "B"), (0, 1)))
        for s in (("s0", "s1"), ("s2",))
        for c in (("A", "B"), ("C",))
        for k in ((0, 1), (2,))
    ]
    assert len({u.name for u in units}) == len(units)
    with pytest.raises(InputError, match="conditions_per_unit 0: at least 1 is needed"):
        Layout(1, conditions_per_unit=0)


def test_cut_conditions_give_the_records_of_uncut_ones(tmp_path):
    for name, size in (("whole", None), ("cut", 1)):
        carry_out_steps(
            tmp_path / name, dataclasses.replace(PLAN, layout=Layout(2, conditions_per_unit=size))
        )
    files = [(tmp_path / name / "records.parquet").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_clean_answers_are_kept_as_tokens(directory):
    with open_study(directory, PLAN) as study:
        assert study.clean_answers == {}
        study.run(FakeWorker())
        expected = {r.sample: r.answer_ids for r in study.records if r.condition == CLEAN}
        assert study.clean_answers == expected
        assert all(type(ids) is tuple for ids in expected.values())
        run_steps(study, FakeWorker())
        study.finish()
    with open_study(directory, PLAN) as study:
        assert study.clean_answers == expected
    column = pq.read_table(directory / "records.parquet").column("answer_ids")
    assert str(column.type).startswith("list<") and str(column.type).endswith("int64>")
    assert column.to_pylist()[:3] == [list(ids) for ids in expected.values()]
    assert column.to_pylist()[3:] == [None] * (len(PLAN.conditions) + 3) * 6


def test_units_of_steps_pass_through_json(directory):
    worker = FakeWorker()
    carry_out_steps(directory, PLAN, worker)
    for unit in worker.units:
        assert Unit.from_json(json.loads(json.dumps(unit.as_json()))) == unit


def test_only_what_was_asked_for_competes_and_is_judged_together():
    """A step's conditions may lose more, or nothing: they change nothing of the others."""
    plan = make_plan(samples=12, draws=2, conditions=("L0", "L1"), size=12, has_steps=True)
    about = {"config": {"max_new_tokens": 3}, "layers": {}, "notes": []}

    class Answering(FakeWorker):
        """Loses by condition, and answers nothing under X and Y."""

        def __call__(self, unit):
            result = super().__call__(unit)
            loss = {CLEAN: 0.0, "L0": 0.011, "L1": 0.013, "X": 2.0, "Y": 0.001}
            return dataclasses.replace(
                result,
                records=tuple(
                    dataclasses.replace(
                        r,
                        kl_nats=loss[r.condition] * (0.5 + int(r.sample[1:]) / 11),
                        group=r.group,
                        is_right=None if r.condition in "XY" else r.condition != "L1",
                    )
                    for r in result.records
                ),
            )

    def diagnosed(study):
        kept = dataclasses.replace(study.plan, about=about)
        return make_diagnosis(kept, study.records, study.witnesses, study.notes)

    with open_study(None, plan) as study:
        study.run(Answering())
        before = diagnosed(study)
        study.choose("sites", X | Y, generates=False)
        study.run(Answering())
        after = diagnosed(study)
    assert repr(after.summaries) == repr(before.summaries)
    assert repr(after.worst_kl) == repr(before.worst_kl) and after.worst_kl.condition == "L1"
    assert repr(after.worst_accuracy) == repr(before.worst_accuracy)
    assert after.worst_accuracy.condition == "L1"
    assert before.chosen == {} and list(after.chosen) == ["sites"]
    chosen, other = after.chosen["sites"]
    assert (chosen.condition, other.condition) == ("X", "Y") and math.isnan(chosen.accuracy)
    assert chosen.kl_nats.mean == pytest.approx(2.0)
    assert "nothing was generated under this noise" in chosen.accuracy_verdict.reason
