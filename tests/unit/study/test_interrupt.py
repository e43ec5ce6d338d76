"""Ctrl-C: the unit in hand is kept and the text says how to go on; twice ends at once."""

import os
import signal
import threading

import pytest
from helpers.killing import end_of, size_of, start_fork, wait_for
from helpers.study_worker import FakeWorker, carry_out, make_plan, snapshot

from noisescope.study import ENDING, StudyInterrupted, open_study, read_study

PLAN = make_plan(samples=6, size=1)


@pytest.fixture(autouse=True)
def default_handler():
    """Workers of pytest-xdist ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupting(FakeWorker):
    """Sends itself the signal while it measures its third unit."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def __call__(self, unit):
        result = super().__call__(unit)
        if len(self.units) == 3:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)
        return result


def test_the_unit_in_hand_is_kept(tmp_path):
    told = []
    with (
        open_study(tmp_path / "study", PLAN) as study,
        pytest.raises(StudyInterrupted) as caught,
    ):
        study.run(Interrupting(1), progress=lambda *args: told.append(args))
    assert str(caught.value) == (
        f"3 of 6 units are kept in {tmp_path}/study: run the same command to go on"
    )
    assert told[2] == ("0-samples-1", 2, 6)
    assert told[3:] == [(ENDING, 2, 6), (ENDING, 3, 6)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    worker = FakeWorker()
    carry_out(tmp_path / "study", PLAN, worker)
    assert len(worker.units) == 3
    carry_out(tmp_path / "whole", PLAN)
    assert snapshot(tmp_path / "study") == snapshot(tmp_path / "whole")


def test_twice_ends_at_once_and_loses_nothing_finished(tmp_path):
    with open_study(tmp_path / "study", PLAN) as study, pytest.raises(KeyboardInterrupt) as caught:
        study.run(Interrupting(2))
    assert not isinstance(caught.value, StudyInterrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read_study(tmp_path / "study").units_done == 2
    carry_out(tmp_path / "study", PLAN)
    carry_out(tmp_path / "whole", PLAN)
    assert snapshot(tmp_path / "study") == snapshot(tmp_path / "whole")


def test_a_study_says_that_it_is_ending():
    asked = []

    class Asking(Interrupting):
        def __call__(self, unit):
            asked.append(study.is_ending)
            result = super().__call__(unit)
            asked.append(study.is_ending)
            return result

    with open_study(None, PLAN) as study, pytest.raises(StudyInterrupted):
        study.run(Asking(1))
    assert asked == [False] * 5 + [True]


def test_in_memory_the_text_names_the_option():
    with (
        open_study(None, PLAN) as study,
        pytest.raises(StudyInterrupted, match="3 of 6 units are measured: nothing is kept: give"),
    ):
        study.run(Interrupting(1))


def test_it_passes_for_ctrl_c_where_nobody_knows_it():
    assert issubclass(StudyInterrupted, KeyboardInterrupt)


def test_an_ignored_signal_stays_ignored(tmp_path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with open_study(tmp_path / "study", PLAN) as study:
        study.run(Interrupting(3))
        assert study.progress == (6, 6)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_another_thread_leaves_signals_alone():
    done = []

    def work():
        done.append(carry_out(None, PLAN))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [carry_out(None, PLAN)]


def test_a_process_ends_cleanly_and_gives_the_directory_free(tmp_path):
    directory = tmp_path / "study"

    def command():
        try:
            carry_out(directory, PLAN, FakeWorker(0.05))
        except StudyInterrupted as error:
            raise SystemExit(130) from error

    process = start_fork(command)
    wait_for(lambda: size_of(directory / "records.jsonl") > 0)
    os.kill(process, signal.SIGINT)
    assert end_of(process) == 130
    state = read_study(directory)
    assert 0 < state.units_done < 6
    assert not state.is_running
    assert (directory / "lock").read_bytes() == b""
    carry_out(directory, PLAN)
    carry_out(tmp_path / "whole", PLAN)
    assert snapshot(directory) == snapshot(tmp_path / "whole")
