"""Ends processes in the middle of their work: commands by SIGKILL, forks at a call to the system.

`kill_and_resume` takes any command line that runs a study to its end and can be run again.
"""

import os
import random
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

KILLED = 77
_LONGEST_S = 60
CALLS = ("open", "write", "fsync", "ftruncate", "replace", "rename", "unlink", "mkdir")


def kill_and_resume(
    command: Sequence[str],
    kills: int,
    longest_s: float,
    *,
    seed: int = 0,
    started: Callable[[], bool] = lambda: True,
    is_interesting: Callable[[], bool] = lambda: True,
) -> int:
    """Runs a command again and again, each time killed at a random moment, and then to its end.

    Args:
        command: The command line.
        kills: How often it is killed.
        longest_s: The latest moment, counted from when it has started its work.
        seed: Of the moments.
        started: Tells whether the work has started; asked until it says so.
        is_interesting: Asked after each kill, e.g. whether work was lost; counted.

    Returns:
        After how many kills `is_interesting` said so.

    Raises:
        AssertionError: It ended before it was killed, or the last run failed.
    """
    moments = random.Random(seed)
    count = 0
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not started():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, longest_s))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, (process.returncode, errors.decode())
        count += is_interesting()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return count


def start_fork(function: Callable[[], object]) -> int:
    """Starts a function in a fork of this process; returns its id. An error is status 1.

    It ends after a minute, whatever becomes of this process.
    """
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads, from Python 3.12 on
        process = os.fork()
    if process:
        return process
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in workers of xdist
        signal.alarm(_LONGEST_S)
        function()
        status = 0
    except SystemExit as leave:
        status = int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(process: int) -> int:
    """Waits for a fork; returns its status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run_fork(function: Callable[[], object]) -> int:
    """Runs a function in a fork of this process; returns its status."""
    return end_of(start_fork(function))


def die_at_call(number: int, calls: Sequence[str] = CALLS) -> None:
    """Makes this process end, without any clean-up, instead of the n-th of these calls.

    A write that is not made is made by half.
    """
    left = [number]

    def dying(name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os._exit(KILLED)
            return real(*args, **kwargs)

        return call

    for name in calls:
        setattr(os, name, dying(name, getattr(os, name)))


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Waits until something is so."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
