"""A search: each round's units follow from the records so far, also after a kill."""

import pytest
from helpers.study_worker import Ending, FakeWorker, make_plan, snapshot, told

from noisescope.errors import InputError
from noisescope.measure import CLEAN
from noisescope.study import make_units, open_study, read_study

CONDITIONS = tuple(f"L{i}" for i in range(8))
PLAN = make_plan(samples=8, draws=1, conditions=CONDITIONS, size=1, is_adaptive=True)


def halving(records):
    """Sequential halving: all conditions on two samples, the worse half on two more, and so on."""
    noisy = [r for r in records if r.condition != CLEAN]
    seen = sorted({r.sample for r in records})
    if len(seen) == 8:
        return []
    left = [c for c in CONDITIONS if sum(r.condition == c for r in noisy) == len(seen)]
    means = {c: sum(r.top1_agreement for r in noisy if r.condition == c) for c in left}
    worst = sorted(left, key=means.__getitem__)[: max(1, len(left) // 2)] if seen else left
    samples = [s.name for s in PLAN.samples][len(seen) : len(seen) + 2]
    return make_units(PLAN, f"round {len(seen) // 2}", samples, worst, [0], with_clean=True)


def search(directory, worker, plan=PLAN):
    with open_study(directory, plan) as study:
        study.run_rounds(worker, halving)
        study.finish()
        return told(study)


def test_each_round_sees_the_records_of_those_before():
    worker = FakeWorker()
    search(None, worker)
    assert [len(unit.conditions) for unit in worker.units] == [8, 8, 4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize("units", range(9))
def test_a_search_that_was_ended_anywhere_comes_to_the_same_end(tmp_path, units):
    in_memory = search(None, FakeWorker())
    search(tmp_path / "whole", FakeWorker())
    directory = tmp_path / "study"
    first, second = Ending(units), FakeWorker()
    if units < 8:
        with pytest.raises(KeyError):
            search(directory, first)
        state = read_study(directory)
        assert (state.units_done, state.units_total) == (units, None)
        assert not state.is_complete
        assert len(state.records) == sum(1 + len(u.conditions) for u in first.units)
    else:
        search(directory, first)
    assert search(directory, second) == in_memory
    assert len(first.units) + len(second.units) == 8
    assert snapshot(directory) == snapshot(tmp_path / "whole")
    assert told(read_study(directory)) == in_memory


def test_a_finished_search_asks_nothing_more(tmp_path):
    search(tmp_path / "study", FakeWorker())
    with open_study(tmp_path / "study", PLAN) as study:
        assert study.opening == "complete: nothing is left to measure"
        study.run_rounds(FakeWorker(), lambda records: pytest.fail("asked again"))
        study.finish()


def test_a_search_is_not_finished_before_it_has_ended(tmp_path):
    with open_study(tmp_path / "study", PLAN) as study, pytest.raises(ValueError, match="its end"):
        study.finish()


def test_asking_for_something_again_is_an_error():
    with (
        open_study(None, PLAN) as study,
        pytest.raises(ValueError, match="unit 'u-0' is empty, or asks for something again"),
    ):
        study.run_rounds(FakeWorker(), lambda _: make_units(PLAN, "u", ["s0"], ["L0"], [0], True))
    with (
        open_study(None, PLAN) as study,
        pytest.raises(ValueError, match="unit 'v1-0' is empty, or asks for something again"),
    ):
        study.run_rounds(
            FakeWorker(),
            lambda seen: make_units(PLAN, f"v{len(seen[:1])}", ["s0"], ["L0"], [0], not seen),
        )


def test_units_of_a_journal_that_the_search_does_not_ask_for(tmp_path):
    with pytest.raises(KeyError):
        search(tmp_path / "study", Ending(5))
    with (
        open_study(tmp_path / "study", PLAN) as study,
        pytest.raises(InputError, match="holds unit round 1-0, which the plan does not ask for"),
    ):
        study.run_rounds(FakeWorker(), lambda records: [] if records else halving(records))


def test_a_plan_is_run_the_way_it_was_made():
    with open_study(None, PLAN) as study, pytest.raises(ValueError, match="come from run_rounds"):
        study.run(FakeWorker())
    with open_study(None, make_plan()) as study, pytest.raises(ValueError, match="call run"):
        study.run_rounds(FakeWorker(), halving)
