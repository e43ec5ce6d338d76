"""A study that is killed at random moments comes to the same end as one that ran through."""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers.killing import end_of, kill_and_resume, size_of, start_fork, wait_for
from helpers.study_worker import FakeWorker, carry_out, make_plan, snapshot

from noisescope.study import read_study

SCRIPT = Path(__file__).parents[1] / "helpers" / "study_worker.py"


def test_forks_killed_at_25_random_moments(tmp_path):
    """The whole of a run is hit: its beginning, units, the making of its files, its end."""
    plan, directory = make_plan(samples=40, size=1), tmp_path / "study"
    wanted = carry_out(tmp_path / "whole", plan)
    moments, kills, done = random.Random(0), 0, []
    while kills < 25:
        process = start_fork(lambda: carry_out(directory, plan, FakeWorker(0.002)))
        time.sleep(moments.expovariate(1 / 0.03))
        os.kill(process, signal.SIGKILL)
        if end_of(process) == 0:  # it was faster: once more from the beginning
            for path in directory.iterdir():
                path.unlink()
            continue
        kills += 1
        if (directory / "manifest.json").exists():
            state = read_study(directory)
            assert not state.is_running
            done.append(state.units_done)
    assert len(set(done)) > 5
    assert carry_out(directory, plan) == wanted
    assert snapshot(directory) == snapshot(tmp_path / "whole")


@pytest.mark.slow
def test_a_command_killed_at_25_random_moments(tmp_path):
    kills = 25
    plan, directory = make_plan(samples=4 * kills, size=1), tmp_path / "study"
    carry_out(tmp_path / "whole", plan)
    command = [sys.executable, str(SCRIPT), str(directory)]
    command += ["--samples", str(4 * kills), "--pause", "0.2"]
    torn = kill_and_resume(
        command,
        kills,
        longest_s=0.6,
        started=lambda: is_held(directory),
        is_interesting=lambda: read_study(directory).units_done > 0,
    )
    assert torn > 0
    assert snapshot(directory) == snapshot(tmp_path / "whole")


def is_held(directory):
    return (directory / "records.jsonl").exists() and read_study(directory).is_running


def test_a_half_written_block_of_a_killed_process_is_measured_again(tmp_path):
    """A kill inside a write is rare, so the process is made to stand still in one."""
    plan, directory = make_plan(samples=6, size=1), tmp_path / "study"
    carry_out(tmp_path / "whole", plan)

    def stand_still():
        real, journal = os.write, directory / "records.jsonl"

        def write(descriptor, data):
            if size_of(journal) and os.fstat(descriptor).st_ino == journal.stat().st_ino:
                real(descriptor, bytes(data)[: len(data) // 3])
                signal.pause()
            return real(descriptor, data)

        os.write = write
        carry_out(directory, plan)

    process = start_fork(stand_still)
    wait_for(lambda: size_of(directory / "records.jsonl") > 0)
    time.sleep(0.3)
    os.kill(process, signal.SIGKILL)
    assert end_of(process) == -signal.SIGKILL
    assert not (directory / "records.jsonl").read_bytes().endswith(b"\n")
    worker = FakeWorker()
    carry_out(directory, plan, worker)
    assert len(worker.units) == 5
    assert snapshot(directory) == snapshot(tmp_path / "whole")
