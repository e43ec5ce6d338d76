"""How a command ends early: Ctrl-C, cleanly, to go on later; a closed pipe, losing nothing."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import (
    FINISHED,
    carry_out,
    files_of,
    nothing_measured,
    with_plain_figures,
    write_texts,
)
from helpers.model_dirs import save_model

from noisescope.cli import commands, run
from noisescope.report import output
from noisescope.study import Study


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory, with a model and texts for three units."""
    save_model(tmp_path / "llama")
    write_texts(tmp_path / "many.txt", 80)
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = ["layers", "--model=llama", "--data=many.txt", "--samples=80", "--device=cpu"]


def subprocess_environment():
    source = Path(__file__).parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}


# Workers of a parallel test run ignore SIGINT, and a child inherits that.
BEGIN_AND_TELL = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from noisescope.cli import main
from noisescope.measure import Worker
measure = Worker._measure
def tell(*given):
    print("begun", file=sys.__stdout__, flush=True)  # a progress bar takes sys.stdout over
    time.sleep(1)
    return measure(*given)
Worker._measure = tell
main()
"""


def interrupt_a_run(place, stderr, *words):
    """Starts a long run, sends SIGINT in the middle of it, and returns the finished process."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN_AND_TELL, *GOOD, *words],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=place,
        env=subprocess_environment(),
    )
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 60)[0], "the run did not begin"
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    return process


@pytest.mark.slow
def test_ctrl_c_in_the_middle_is_one_line_status_130_and_nothing_written(place):
    before = sorted(place.rglob("*"))
    process = interrupt_a_run(place, subprocess.PIPE)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    said = "nothing is kept: give --out to be able to go on"
    assert error == f"Interrupted: 1 of 3 units are measured: {said}.\n"
    assert sorted(place.rglob("*")) == before


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once_and_says_what_is_kept(place):
    process = interrupt_a_run(place, subprocess.PIPE, "--out=study")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    told = "what was finished is kept in study: run the same command again to go on"
    assert error == f"Interrupted: {told}.\n"
    assert {p.name for p in (place / "study").iterdir()} <= {
        "lock",
        "manifest.json",
        "records.jsonl",
    }


def test_ctrl_c_gives_the_terminal_back_and_the_same_command_goes_on(place, monkeypatch, capsys):
    with_plain_figures(monkeypatch)
    ours, theirs = pty.openpty()
    process = interrupt_a_run(place, theirs, "--out=study")
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how a closed terminal ends on Linux
        while chunk := os.read(ours, 4096):
            shown += chunk
    os.close(ours)
    assert process.wait(timeout=60) == 130
    process.stdout.close()
    hide, show = b"\x1b[?25l", b"\x1b[?25h"
    assert hide in shown, "the progress bar hides the cursor"
    assert shown.rindex(show) > shown.rindex(hide)
    kept = b"Interrupted: 1 of 3 units are kept in study: run the same command to go on."
    assert shown.splitlines()[-1].endswith(kept)
    carry_out(capsys, *GOOD, "--out=study")
    carry_out(capsys, *GOOD, "--out=at-once")
    assert files_of(place / "study", FINISHED) == files_of(place / "at-once", FINISHED)


@pytest.mark.parametrize(
    ("moment", "with_out"),
    [
        ("finish", True),
        ("finish", False),
        ("report_files", True),
        ("print_diagnosis", True),
        ("print_diagnosis", False),
    ],
)
def test_ctrl_c_after_measuring_says_what_is_kept(place, monkeypatch, capsys, moment, with_out):
    with_plain_figures(monkeypatch)
    module = {"finish": Study, "report_files": output, "print_diagnosis": commands}[moment]
    words = [*GOOD, "--samples=4"] + (["--out=study"] if with_out else [])

    def interrupt(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, moment, interrupt)
        assert run(words) == 130
    kept = "what was finished is kept in study: run the same command again to go on"
    assert capsys.readouterr().err == (
        f"Interrupted: {kept if with_out else 'nothing was written'}.\n"
    )
    if with_out:
        with nothing_measured(monkeypatch):
            carry_out(capsys, *words)
        assert set(FINISHED) <= files_of(place / "study").keys()


def test_ctrl_c_after_the_result_was_written_says_so(place, monkeypatch, capsys):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "print_diagnosis", interrupt)
    assert run([*GOOD, "--samples=4", "--result=result.json"]) == 130
    assert capsys.readouterr().err == "Interrupted: result.json is written.\n"
    assert (place / "result.json").is_file()


def test_ctrl_c_before_a_study_was_begun_says_that_nothing_was_written(place, monkeypatch, capsys):
    def interrupt(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "load_model", interrupt)
    (place / "study").mkdir()
    assert run([*GOOD, "--out=study"]) == 130
    assert capsys.readouterr().err == "Interrupted: nothing was written.\n"


def test_a_closed_pipe_loses_nothing(place, monkeypatch):
    """As `noisescope ... | head` closes it: all is written before the table meets it."""
    with_plain_figures(monkeypatch)
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with pytest.raises((BrokenPipeError, SystemExit)):
            run([*GOOD, "--out=study"])
    assert set(FINISHED) <= files_of(place / "study").keys()


@pytest.mark.slow
def test_a_closed_pipe_loses_nothing_and_is_no_traceback(place):
    process = subprocess.Popen(
        [sys.executable, "-m", "noisescope", *GOOD, "--out=study"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=subprocess_environment(),
    )
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(timeout=60) != 0
    assert set(FINISHED) <= files_of(place / "study").keys()
