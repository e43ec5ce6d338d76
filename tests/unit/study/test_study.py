"""A study from its beginning to its end, and what it does not let through."""

import dataclasses
import math

import pyarrow.parquet as pq
import pytest
from helpers.study_worker import (
    Ending,
    FakeWorker,
    carry_out,
    make_plan,
    record_of,
    snapshot,
    told,
    witness_of,
)

from noisescope.errors import InputError
from noisescope.inject.witness import merge_witnesses
from noisescope.measure import CLEAN, UnitResult
from noisescope.study import Layout, SampleKey, make_units, open_study, read_study
from noisescope.study import study as study_module


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "study"


def keys(samples=4, draws=2, conditions=("L0", "L1")):
    names = [f"s{i}" for i in range(samples)]
    noisy = [(c, d, s) for c in conditions for d in range(draws) for s in names]
    return [(CLEAN, 0, s) for s in names] + noisy


def test_every_condition_draw_and_sample_is_measured_once_and_in_order(directory):
    worker = FakeWorker()
    with open_study(directory, make_plan()) as study:
        study.run(worker)
        study.finish()
        assert repr(study.records) == repr(tuple(record_of(*key) for key in keys()))
    assert [unit.samples for unit in worker.units] == [("s0", "s1"), ("s2", "s3")]
    assert all(unit.with_clean and unit.draws == (0, 1) for unit in worker.units)
    assert all(unit.conditions == ("L0", "L1") for unit in worker.units)


def test_a_finished_study_is_these_files(directory):
    carry_out(directory, make_plan())
    assert sorted(snapshot(directory)) == [
        "complete.json",
        "lock",
        "manifest.json",
        "records.parquet",
        "result.json",
        "witnesses.json",
    ]
    assert (directory / "lock").read_bytes() == b""


def test_the_parquet_file_holds_what_was_measured(directory):
    carry_out(directory, make_plan())
    rows = pq.read_table(directory / "records.parquet").to_pylist()
    wanted = [record_of(*key) for key in keys()]
    assert len(rows) == len(wanted)
    for row, record in zip(rows, wanted, strict=True):
        for field in dataclasses.fields(record):
            value = getattr(record, field.name)
            value = list(value) if isinstance(value, tuple) else value
            is_nan = isinstance(value, float) and math.isnan(value)
            assert row[field.name] == (None if is_nan else value)
            assert type(row[field.name]) is (type(None) if is_nan else type(value))
    assert any(row["kl_nats"] is None for row in rows)


def test_the_parquet_file_says_where_it_is_from(directory):
    carry_out(directory, make_plan())
    about = pq.read_schema(directory / "records.parquet").metadata[b"noisescope"].decode()
    assert '"seed":7' in about
    assert '"model":"sha256:aaaa' in about
    assert '"torch":"2.9.0"' in about


def test_equal_studies_are_equal_files(tmp_path):
    carry_out(tmp_path / "a", make_plan())
    carry_out(tmp_path / "b", make_plan())
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")
    carry_out(tmp_path / "c", make_plan(seed=8))
    assert (
        snapshot(tmp_path / "a")["records.parquet"] != snapshot(tmp_path / "c")["records.parquet"]
    )


def test_memory_disk_and_reading_tell_the_same_to_the_last_bit(directory):
    in_memory = carry_out(None, make_plan())
    assert carry_out(directory, make_plan()) == in_memory
    assert told(read_study(directory)) == in_memory
    with open_study(directory, make_plan()) as study:
        assert told(study) == in_memory


def test_witnesses_and_notes_are_merged_over_units(directory):
    worker = FakeWorker()
    carry_out(directory, make_plan(), worker)
    state = read_study(directory)
    for condition in ("L0", "L1"):
        wanted = merge_witnesses(witness_of(unit, condition) for unit in worker.units)
        assert state.witnesses[condition].as_json() == wanted.as_json()
    assert state.notes == ("note 2", "a note of all")


def test_a_complete_study_measures_nothing(directory):
    carry_out(directory, make_plan())
    before = snapshot(directory)
    worker = FakeWorker()
    carry_out(directory, make_plan(), worker)
    assert worker.units == []
    assert snapshot(directory) == before


def test_a_study_goes_on_where_it_was(directory):
    plan = make_plan(samples=7)
    with pytest.raises(KeyError), open_study(directory, plan) as study:
        study.run(Ending(2))
    worker = FakeWorker()
    with open_study(directory, plan) as study:
        assert study.opening == "2 of 4 units are kept already"
        assert study.progress == (2, 4)
        assert not study.is_complete
        study.run(worker)
        assert study.progress == (4, 4)
        study.finish()
        assert study.is_complete
    assert [unit.samples for unit in worker.units] == [("s4", "s5"), ("s6",)]
    carry_out(directory.with_name("whole"), plan)
    (directory.with_name("whole") / "result.json").unlink()
    assert snapshot(directory) == snapshot(directory.with_name("whole"))


def test_reading_tells_where_it_stands(directory):
    plan = make_plan()
    with open_study(directory, plan) as study:
        state = read_study(directory)
        assert (state.units_done, state.units_total, state.is_complete) == (0, 2, False)
        assert state.is_running
        assert state.records == ()
        study.run(FakeWorker())
        state = read_study(directory)
        assert (state.units_done, len(state.records)) == (2, 20)
        assert told(state) == told(study)
        assert not state.is_complete
        study.finish()
    state = read_study(directory)
    assert (state.units_done, state.units_total, state.stages) == (2, 2, 1)
    assert state.is_complete
    assert not state.is_running
    assert state.plan == plan.decoded()


def test_reading_needs_no_right_to_write_and_changes_nothing(directory):
    with open_study(directory, make_plan()) as study:
        study.run(FakeWorker())
    with (directory / "records.jsonl").open("ab") as file:
        file.write(b'{"condition":"torn')
    before = snapshot(directory)
    assert read_study(directory).units_done == 2
    assert snapshot(directory) == before


def test_reading_what_is_no_study(tmp_path):
    with pytest.raises(InputError, match=r"holds no study \(manifest.json is missing\): name one"):
        read_study(tmp_path)


def test_progress_is_told_per_unit():
    told = []
    with open_study(None, make_plan()) as study:
        study.run(FakeWorker(), progress=lambda *args: told.append(args))
    assert told == [("", 0, 2), ("0-samples-0", 1, 2), ("0-samples-1", 2, 2)]


def test_finishing_needs_every_unit(directory):
    with (
        open_study(directory, make_plan()) as study,
        pytest.raises(ValueError, match="0 of 2 units are measured: run the study to its end"),
    ):
        study.finish()


def test_what_is_known_is_gathered_once_until_more_is_kept(monkeypatch):
    gathered = []

    def gather(*given):
        gathered.append(given)
        return gather_all(*given)

    gather_all = study_module.gather
    monkeypatch.setattr(study_module, "gather", gather)
    with open_study(None, make_plan()) as study:
        seen = []
        study.run(FakeWorker(), progress=lambda *_: seen.append(len(study.records)))
        assert seen == [0, 10, 20]
        for _ in range(3):
            assert len(study.records) == 20
            assert study.witnesses and study.notes
        study.finish()
        assert len(study.records) == 20
    assert len(gathered) == 3


def test_a_study_in_memory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    carry_out(None, make_plan())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["records.parquet", "witnesses.json", "complete.json"])
def test_a_finished_file_that_was_changed_is_noticed_at_every_byte(directory, name):
    carry_out(directory, make_plan())
    path = directory / name
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 300)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match=f"{name} was changed since it was written") as caught:
            read_study(directory)
        assert "restore it from a copy" in str(caught.value)
    with pytest.raises(InputError, match=f"{name} was changed since it was written"):
        open_study(directory, make_plan())
    path.write_bytes(data)
    assert read_study(directory).is_complete


@pytest.mark.parametrize("name", ["records.parquet", "witnesses.json", "complete.json"])
def test_a_finished_file_that_is_gone_is_noticed(directory, name):
    carry_out(directory, make_plan())
    (directory / name).unlink()
    with pytest.raises(InputError, match=f"{name} (was changed|is missing)"):
        open_study(directory, make_plan())


def test_a_changed_manifest_is_noticed_at_every_byte(directory):
    with open_study(directory, make_plan()):
        pass
    path = directory / "manifest.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match=r"manifest.json was changed since it was written"):
            read_study(directory)


class Odd(FakeWorker):
    """A worker whose results are changed on their way."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __call__(self, unit):
        return self.change(super().__call__(unit))


def with_records(change):
    return lambda result: dataclasses.replace(result, records=tuple(change(list(result.records))))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (with_records(lambda r: r[1:]), "it lacks sample 's0', clean, draw 0"),
        (with_records(lambda r: [*r, r[3]]), "it has twice sample 's1', L0, draw 0"),
        (
            with_records(lambda r: [*r, record_of("L0", 2, "s0")]),
            "it was not asked for sample 's0', L0, draw 2",
        ),
        (
            with_records(lambda r: [*r, record_of("L0", 0, "s3")]),
            "it was not asked for sample 's3', L0, draw 0",
        ),
        (
            with_records(lambda r: [dataclasses.replace(r[0], group="g"), *r[1:]]),
            "sample 's0' has group 'g'",
        ),
        (lambda r: dataclasses.replace(r, witnesses={}), "the witness of L0 lacks"),
        (
            lambda r: dataclasses.replace(r, witnesses=r.witnesses | {"L9": r.witnesses["L0"]}),
            "the witness of L9 is too many",
        ),
        (
            lambda r: dataclasses.replace(r, unit="0-samples-9"),
            "unit '0-samples-9', which it was not asked for",
        ),
    ],
)
def test_a_result_that_is_not_what_was_asked_for_is_not_kept(directory, change, text):
    with open_study(directory, make_plan()) as study, pytest.raises(ValueError, match=text):
        study.run(Odd(change))
    assert read_study(directory).units_done == 0


def test_an_executor_that_gives_a_unit_twice_or_leaves_one_out():
    class Twice:
        def run(self, worker, units):
            first = next(iter(units))
            yield from (worker(first), worker(first))

    class Fewer:
        def run(self, worker, units):
            yield worker(next(iter(units)))

    with (
        open_study(None, make_plan()) as study,
        pytest.raises(ValueError, match="gave unit '0-samples-0', which it was not asked for"),
    ):
        study.run(FakeWorker(), Twice())
    with (
        open_study(None, make_plan()) as study,
        pytest.raises(ValueError, match="left out 1 units, first '0-samples-1'"),
    ):
        study.run(FakeWorker(), Fewer())


def test_what_the_worker_gives_passes_through_json():
    class Exact(FakeWorker):
        def __call__(self, unit):
            result = super().__call__(unit)
            records = (dataclasses.replace(r, kl_nats=math.inf) for r in result.records)
            return UnitResult(result.unit, tuple(records), result.witnesses)

    with open_study(None, make_plan()) as study:
        study.run(Exact())
        assert all(math.isnan(record.kl_nats) for record in study.records)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"draws": 0}, "draws 0: at least 1 is needed; try 4"),
        ({"seed": -1}, "seed -1: accepted are 0 to 4294967295; try 0"),
        ({"conditions": {"clean": {}}}, "a condition is named 'clean', as the clean model is"),
        ({"samples": ()}, "a study without samples: give at least one"),
        (
            {"samples": (SampleKey("a", None, "x"), SampleKey("a", None, "y"))},
            "2 samples are named 'a': give each its own name",
        ),
    ],
)
def test_a_plan_is_checked_when_it_is_made(changes, text):
    with pytest.raises(InputError, match=text):
        dataclasses.replace(make_plan(), **changes)


def test_a_layout_is_checked_when_it_is_made():
    with pytest.raises(InputError, match="samples_per_unit 0: at least 1 is needed; try 16"):
        Layout(0)
    with pytest.raises(InputError, match="rows_per_batch 0: at least 1 is needed; try 16"):
        Layout(1, 0)
    with pytest.raises(InputError, match="draws_per_unit 0: at least 1 is needed; try 16"):
        Layout(1, draws_per_unit=0)


def test_units_of_nothing_are_none():
    plan = make_plan()
    assert make_units(plan, "u", [], ["L0"], [0], True) == []
    assert make_units(plan, "u", ["s0"], [], [0], False) == []
    assert make_units(plan, "u", ["s0"], ["L0"], [], False) == []
    assert len(make_units(plan, "u", ["s0"], [], [], True)) == 1


def test_draws_are_cut_and_the_clean_records_come_with_the_first_of_them():
    plan = make_plan(samples=3, draws=5, layout=Layout(2, draws_per_unit=2))
    units = make_units(plan, "u", ["s0", "s1", "s2"], ["L0", "L1"], range(5), True)
    assert [(u.samples, u.draws, u.with_clean) for u in units] == [
        (("s0", "s1"), (0, 1), True),
        (("s0", "s1"), (2, 3), False),
        (("s0", "s1"), (4,), False),
        (("s2",), (0, 1), True),
        (("s2",), (2, 3), False),
        (("s2",), (4,), False),
    ]
    assert [u.name for u in units] == [f"u-{n}" for n in range(6)]
    clean = make_units(plan, "u", ["s0", "s1", "s2"], [], [], True)
    assert [(u.samples, u.draws, u.with_clean) for u in clean] == [
        (("s0", "s1"), (), True),
        (("s2",), (), True),
    ]


def test_cut_draws_give_the_records_of_uncut_ones(tmp_path):
    whole, cut = (make_plan(draws=5, layout=Layout(2, draws_per_unit=n)) for n in (None, 2))
    worker = FakeWorker()
    carry_out(tmp_path / "whole", whole)
    with open_study(tmp_path / "cut", cut) as study, pytest.raises(KeyError):
        study.run(Ending(2))
    carry_out(tmp_path / "cut", cut, worker)
    assert len(worker.units) == 4
    files = [(tmp_path / name / "records.parquet").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]
