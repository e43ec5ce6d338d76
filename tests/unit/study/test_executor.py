"""Another executor needs no change outside it, and changes no byte."""

import json
import os
import threading

import pytest
from helpers.killing import end_of, start_fork
from helpers.study_worker import FakeWorker, carry_out, make_plan, snapshot

from noisescope.measure import Unit, UnitResult
from noisescope.study import open_study, read_study


class Processes:
    """Sends units as JSON to processes, which make their worker of its spec; gives the last first.

    What a cluster does, in small.
    """

    def run(self, worker, units):
        spec = json.dumps(worker.spec)
        calls = [self._start(spec, json.dumps(unit.as_json())) for unit in units]
        for process, pipe in reversed(calls):
            with os.fdopen(pipe, "rb") as answer:
                text = answer.read()
            assert end_of(process) == 0
            yield UnitResult.from_json(json.loads(text))

    def _start(self, spec, unit):
        reading, writing = os.pipe()

        def carry_out_there():
            worker = FakeWorker(**json.loads(spec))
            result = worker(Unit.from_json(json.loads(unit)))
            with os.fdopen(writing, "wb") as answer:
                answer.write(json.dumps(result.as_json()).encode())

        process = start_fork(carry_out_there)
        os.close(writing)
        return process, reading


class Shuffled:
    """Carries units out in threads, and gives them in an order of its own."""

    def __init__(self, stride):
        self.stride = stride

    def run(self, worker, units):
        results, units = {}, list(units)
        threads = [
            threading.Thread(target=lambda u=unit: results.update({u.name: worker(u)}))
            for unit in units
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [unit.name for unit in units]
        for first in range(self.stride):
            for name in names[first :: self.stride]:
                yield results[name]


@pytest.mark.parametrize("executor", [Processes(), Shuffled(1), Shuffled(2), Shuffled(3)])
def test_any_executor_gives_the_same_bytes(tmp_path, executor):
    plan = make_plan(samples=7)
    wanted = carry_out(tmp_path / "here", plan)
    assert carry_out(tmp_path / "there", plan, executor=executor) == wanted
    assert carry_out(None, plan, executor=executor) == wanted
    assert snapshot(tmp_path / "there") == snapshot(tmp_path / "here")


def test_a_study_goes_on_with_another_executor(tmp_path):
    class Fails(Processes):
        def run(self, worker, units):
            results = super().run(worker, units)
            yield next(results)
            yield next(results)
            raise ConnectionError("a machine is gone")

    plan = make_plan(samples=7)
    carry_out(tmp_path / "whole", plan)
    with pytest.raises(ConnectionError):
        carry_out(tmp_path / "study", plan, executor=Fails())
    assert read_study(tmp_path / "study").units_done == 2
    worker = FakeWorker()
    carry_out(tmp_path / "study", plan, worker)
    assert [unit.samples[0] for unit in worker.units] == ["s0", "s2"]
    assert snapshot(tmp_path / "study") == snapshot(tmp_path / "whole")


def test_only_what_is_missing_is_sent(tmp_path):
    sent = []

    class Telling:
        def run(self, worker, units):
            units = list(units)
            sent.append([unit.name for unit in units])
            yield from map(worker, units)

    plan = make_plan()
    with open_study(tmp_path / "study", plan) as study:
        study.run(FakeWorker(), Telling())
        study.run(FakeWorker(), Telling())
    carry_out(tmp_path / "study", plan, executor=Telling())
    assert sent == [["0-samples-0", "0-samples-1"]]


def test_an_error_closes_the_executor():
    closed = []

    class Closing:
        def run(self, worker, units):
            first = next(iter(units))
            try:
                yield worker(first)
                yield worker(first)
            finally:
                closed.append(True)

    with open_study(None, make_plan()) as study, pytest.raises(ValueError, match="not asked for"):
        study.run(FakeWorker(), Closing())
    assert closed == [True]
