"""A process that ends at any call to the system leaves what the next one can go on from."""

import os
import shutil

import pytest
from helpers.killing import KILLED, die_at_call, run_fork
from helpers.study_worker import Ending, FakeWorker, carry_out, make_plan, snapshot

from noisescope.study import open_study, read_study

SMALL = make_plan(samples=3, draws=1, conditions=("L0",), size=2)
LARGE = make_plan(samples=4, draws=2, conditions=("L1", "L0"), size=2)


def begin_nothing(directory):
    pass


def begin_running(directory):
    with open_study(directory, SMALL) as study, pytest.raises(KeyError):
        study.run(Ending(1))


def begin_complete(directory):
    carry_out(directory, SMALL)


def start(directory, begun):
    """Puts a copy of what was begun in a directory; nothing, where nothing was."""
    shutil.rmtree(directory, ignore_errors=True)
    if begun.exists():
        shutil.copytree(begun, directory)


def carry_out_fully(directory, plan):
    carry_out(directory, plan, extend=True)


@pytest.mark.parametrize(
    ("begin", "plan", "least_calls"),
    [
        (begin_nothing, SMALL, 45),
        pytest.param(begin_running, SMALL, 35, marks=pytest.mark.slow),
        (begin_running, LARGE, 45),
        (begin_complete, SMALL, 8),
        (begin_complete, LARGE, 45),
    ],
)
def test_the_next_run_comes_to_the_same_end(tmp_path, begin, plan, least_calls):
    begun, whole, directory = tmp_path / "begun", tmp_path / "whole", tmp_path / "study"
    begin(begun)
    start(whole, begun)
    carry_out_fully(whole, plan)
    wanted = snapshot(whole)
    number = 1
    while True:
        start(directory, begun)
        status = run_fork(lambda: (die_at_call(number), carry_out_fully(directory, plan)))  # noqa: B023
        if status == 0:
            break
        assert status == KILLED
        if (directory / "manifest.json").exists():
            assert not read_study(directory).is_running
        carry_out_fully(directory, plan)
        assert snapshot(directory) == wanted, number
        number += 1
    assert snapshot(directory) == wanted
    assert number > least_calls


def test_no_unit_in_a_block_that_was_written_is_measured_again(tmp_path):
    directory = tmp_path / "study"
    number, kept = 1, set()
    while True:
        shutil.rmtree(directory, ignore_errors=True)
        status = run_fork(lambda: (die_at_call(number), carry_out(directory, SMALL)))  # noqa: B023
        if status == 0:
            break
        journal = directory / "records.jsonl"
        sealed = journal.read_bytes().count(b'{"unit"') if journal.exists() else 0
        done = (directory / "complete.json").exists()
        worker = FakeWorker()
        carry_out(directory, SMALL, worker)
        assert len(worker.units) == (0 if done else 2 - sealed)
        kept.add((sealed, done))
        number += 1
    assert kept == {(0, False), (1, False), (2, False), (2, True), (0, True)}


def test_bytes_are_synced_before_their_file_takes_its_name(tmp_path, monkeypatch):
    calls = []
    names = {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename", "replace")}

    def opening(path, *args, **kwargs):
        descriptor = real["open"](path, *args, **kwargs)
        names[descriptor] = str(path)
        return descriptor

    def syncing(descriptor):
        calls.append(("fsync", names[descriptor]))
        real["fsync"](descriptor)

    def replacing(source, target, **kwargs):
        calls.append(("replace", str(source), str(target)))
        real["replace"](source, target, **kwargs)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", replacing)
    directory = tmp_path / "study"
    carry_out(directory, SMALL)
    replaced = [i for i, call in enumerate(calls) if call[0] == "replace"]
    assert len(replaced) == 5  # manifest, records, witnesses, complete, result
    for i in replaced:
        _, source, target = calls[i]
        assert source == target + ".new"
        assert ("fsync", source) in calls[:i]
        assert calls[i + 1] == ("fsync", str(directory))
    order = [call[2].rsplit("/", 1)[1] for call in calls if call[0] == "replace"]
    assert order == [
        "manifest.json",
        "complete.json",
        "records.parquet",
        "witnesses.json",
        "result.json",
    ]
