"""An extension measures what was added, and only that."""

import pyarrow.parquet as pq
import pytest
from helpers.study_worker import Ending, FakeWorker, carry_out, make_plan, record_of, snapshot

from noisescope.measure import CLEAN
from noisescope.study import Layout, open_study, read_study
from noisescope.study.units import unit_keys

OLD = make_plan(samples=3, draws=2, conditions=("L0", "L2"))
LARGER = {
    "samples": make_plan(samples=6, draws=2, conditions=("L0", "L2")),
    "draws": make_plan(samples=3, draws=4, conditions=("L0", "L2")),
    "conditions": make_plan(samples=3, draws=2, conditions=("L1", "L0", "L2", "L3")),
    "samples and draws": make_plan(samples=4, draws=3, conditions=("L0", "L2")),
    "all": make_plan(samples=6, draws=3, conditions=("L2", "L1", "L0")),
}


def all_keys(plan):
    names = [sample.name for sample in plan.samples]
    keys = [(CLEAN, 0, s) for s in names]
    return keys + [(c, d, s) for c in plan.conditions for d in range(plan.draws) for s in names]


def begin_complete(directory):
    carry_out(directory, OLD)
    return set(all_keys(OLD))


def begin_running(directory):
    """All but the last unit of the old plan is measured."""
    worker = Ending(1)
    with open_study(directory, OLD) as study, pytest.raises(KeyError):
        study.run(worker)
    return {key for unit in worker.units for key in unit_keys(unit)}


@pytest.mark.parametrize("begin", [begin_complete, begin_running])
@pytest.mark.parametrize("what", LARGER)
def test_only_what_was_added_is_measured(tmp_path, begin, what):
    directory, plan = tmp_path / "study", LARGER[what]
    there = begin(directory)
    worker = FakeWorker()
    carry_out(directory, plan, worker, extend=True)
    measured = [key for unit in worker.units for key in unit_keys(unit)]
    assert len(measured) == len(set(measured))
    assert set(measured) == set(all_keys(plan)) - there
    state = read_study(directory)
    assert state.is_complete
    assert state.stages == 2
    assert repr(state.records) == repr(tuple(record_of(*key) for key in all_keys(plan)))


@pytest.mark.parametrize("what", LARGER)
def test_an_extension_of_a_running_or_of_a_complete_study_is_the_same(tmp_path, what):
    for begin in (begin_complete, begin_running):
        directory = tmp_path / begin.__name__
        begin(directory)
        carry_out(directory, LARGER[what], extend=True)
    assert snapshot(tmp_path / "begin_complete") == snapshot(tmp_path / "begin_running")


def test_cut_draws_grow_like_others_and_nothing_is_measured_twice(tmp_path):
    layout = Layout(2, draws_per_unit=2)
    small = make_plan(samples=3, draws=3, conditions=("L0", "L2"), layout=layout)
    large = make_plan(samples=5, draws=8, conditions=("L2", "L1", "L0"), layout=layout)
    directory, units = tmp_path / "study", []
    for plan, ends in ((small, 2), (small, None), (large, 4), (large, None)):
        worker = FakeWorker() if ends is None else Ending(ends)
        try:
            carry_out(directory, plan, worker, extend=True)
        except KeyError:
            assert len(worker.units) == ends
        units += worker.units
    measured = [key for unit in units for key in unit_keys(unit)]
    assert sorted(measured) == sorted(all_keys(large))
    assert all(len(unit.draws) <= 2 for unit in units)
    carry_out(tmp_path / "whole", large)
    files = [(tmp_path / name / "records.parquet").read_bytes() for name in ("study", "whole")]
    assert files[0] == files[1]


def test_records_are_those_of_a_study_made_at_once(tmp_path):
    carry_out(tmp_path / "grown", OLD)
    carry_out(tmp_path / "grown", LARGER["samples"], extend=True)
    carry_out(tmp_path / "grown", LARGER["all"], extend=True)
    carry_out(tmp_path / "whole", LARGER["all"])
    grown, whole = ((tmp_path / name / "records.parquet") for name in ("grown", "whole"))
    assert grown.read_bytes() == whole.read_bytes()
    assert pq.read_table(grown).num_rows == len(all_keys(LARGER["all"]))


def test_an_extension_in_hand_goes_on_with_or_without_the_option(tmp_path):
    for extend in (False, True):
        directory = tmp_path / str(extend)
        carry_out(directory, OLD)
        with open_study(directory, LARGER["all"], extend=True) as study:
            assert study.opening == (
                "extended by samples: 3 there, 6 now; draws: 2 there, 3 now; conditions: L1 now, "
                "not there; --num-samples: 3 there, 6 now; 2 of 8 units are kept already"
            )
            assert not study.is_complete
            assert len(study.records) == len(all_keys(OLD))
        carry_out(directory, LARGER["all"], extend=extend)
        assert len(read_study(directory).records) == len(all_keys(LARGER["all"]))


def test_an_extension_of_a_complete_study_that_was_ended_goes_on(tmp_path):
    directory, plan = tmp_path / "study", LARGER["all"]
    carry_out(directory, OLD)
    first, second = Ending(2), FakeWorker()
    with open_study(directory, plan, extend=True) as study, pytest.raises(KeyError):
        study.run(first)
    assert read_study(directory).units_done == 4
    carry_out(directory, plan, second)
    measured = [key for unit in (*first.units, *second.units) for key in unit_keys(unit)]
    assert len(first.units) == 2
    assert sorted(measured) == sorted(set(all_keys(plan)) - set(all_keys(OLD)))


def test_the_units_of_a_running_study_stay_what_they_were(tmp_path):
    """Also where new conditions come before the old ones, and with another layout asked for."""
    begin_running(tmp_path / "study")
    worker = FakeWorker()
    carry_out(tmp_path / "study", LARGER["all"], worker, extend=True)
    assert worker.units[0].conditions == ("L0", "L2")
    assert worker.units[0].samples == ("s2",)
    plan = make_plan(samples=8, draws=3, conditions=("L2", "L1", "L0"), size=5)
    carry_out(tmp_path / "study", plan, worker, extend=True)
    assert worker.units[-1].samples == ("s6", "s7")
    assert read_study(tmp_path / "study").plan.layout == OLD.layout


def test_nothing_added_is_said_and_no_error(tmp_path):
    carry_out(tmp_path / "study", OLD)
    before = snapshot(tmp_path / "study")
    with open_study(tmp_path / "study", OLD, extend=True) as study:
        assert study.opening == ("--extend: nothing is added; complete: nothing is left to measure")
    assert snapshot(tmp_path / "study") == before


def test_options_that_add_nothing_are_taken_over(tmp_path):
    carry_out(tmp_path / "study", OLD)
    plan = make_plan(samples=3, draws=2, conditions=("L0", "L2"), scope={"--stride": 2})
    worker = FakeWorker()
    carry_out(tmp_path / "study", plan, worker, extend=True)
    assert worker.units == []
    state = read_study(tmp_path / "study")
    assert (state.plan.scope, state.stages) == ({"--stride": 2}, 1)


def test_extend_begins_a_study_where_none_is(tmp_path):
    carry_out(tmp_path / "study", OLD, extend=True)
    carry_out(tmp_path / "whole", OLD)
    assert snapshot(tmp_path / "study") == snapshot(tmp_path / "whole")


def test_witnesses_of_old_and_new_units_are_summed(tmp_path):
    carry_out(tmp_path / "study", OLD)
    old = read_study(tmp_path / "study").witnesses["L0"].counts
    carry_out(tmp_path / "study", LARGER["samples"], extend=True)
    state = read_study(tmp_path / "study")
    new = state.witnesses["L0"].counts
    assert old["a:linear:0"]["forward"] == 3
    assert new["a:linear:0"]["forward"] == 6
    assert state.notes == ("note 2", "a note of all", "note 1")
