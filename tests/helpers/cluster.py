"""A Ray cluster for tests, and its workers as processes that can be killed."""

import json
import pickle
import random
import signal
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import psutil

from noisescope.cluster import executor
from noisescope.cluster.pool import Done
from noisescope.cluster.remote import worker_class

WORKING, STARTING = "ray::RemoteWorker.work", "ray::RemoteWorker.start"


def processes(title: str = "ray::RemoteWorker") -> list[psutil.Process]:
    """Returns the workers' processes whose title, which tells what they do, begins so.

    Of this process alone: another one on this machine may have a cluster, too.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
    return found


@contextmanager
def killing(count: int, longest_s: float, seed: int = 0):
    """Kills a worker that is at work so many times, each at a random moment; yields the killed.

    Args:
        count: How often.
        longest_s: The latest moment, from when one was seen at work.
        seed: Of the moments.
    """
    moments, killed, is_over = random.Random(seed), [], threading.Event()

    def kill():
        while len(killed) < count and not is_over.is_set():
            if not processes(WORKING):
                time.sleep(0.01)
                continue
            time.sleep(moments.uniform(0, longest_s))
            working = processes(WORKING)
            if working:
                with suppress(psutil.Error):
                    working[0].send_signal(signal.SIGKILL)
                    killed.append(working[0].pid)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        is_over.set()
        thread.join()


def wait_for(is_so, seconds: float = 30.0) -> bool:
    """Waits until something is so, and tells whether it came to be."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.05)
    return is_so()


class CrewHere:
    """Stands for `RayCrew`: its workers are objects of this process, and what they get is pickled.

    Args:
        fails: Called with each job before it is done; what it raises is what the worker meets.
    """

    def __init__(self, *given, fails=lambda job: None):
        _, self.needs, self.versions, self.source, self.threads = given
        self.fails, self.spec, self.calls, self.hired = fails, None, {}, 0

    def take(self, spec):
        self.spec = json.loads(json.dumps(spec))

    def hire(self):
        self.hired += 1
        worker = worker_class()()
        return worker, self._call(worker.start, self.versions, self.source, self.threads)

    def ping(self, worker):
        return self._call(worker.ping)

    def call(self, worker, job):
        def work(kind, spec, given):
            station = worker.station
            worker.station = _Failing(station, lambda: self.fails(job))
            try:
                return worker.work(kind, spec, given)
            finally:
                worker.station = station

        return self._call(work, job.kind, self.spec, pickle.loads(pickle.dumps(job.work)))

    def _call(self, method, *given):
        number = len(self.calls)
        self.calls[number] = (method, given)
        return number

    def wait(self, calls, seconds):
        return [calls[0]]

    def outcome(self, call):
        method, given = self.calls[call]
        answer = pickle.loads(pickle.dumps(method(*given)))
        if "error" in answer:
            return Done(error=answer["error"], is_users=answer["kind"] == "users")
        return Done(answer["value"])

    def dismiss(self, worker):
        worker.station = None

    def missing(self):
        return "nothing is missing here"


class _Failing:
    """A station that meets something before it works."""

    def __init__(self, station, meets):
        self.station, self.meets = station, meets

    def work(self, *given):
        self.meets()
        return self.station.work(*given)


_CONNECTED = SimpleNamespace(is_initialized=lambda: True)


@contextmanager
def ray_here(monkeypatch, fails=lambda job: None):
    """Has `--executor ray` work in this process; yields the crews that were made."""
    crews = []

    def make(*given):
        crews.append(CrewHere(*given, fails=fails))
        return crews[-1]

    with monkeypatch.context() as patch:
        patch.setattr(executor, "require", lambda *given: _CONNECTED)
        patch.setattr(executor, "connect", lambda address: False)
        patch.setattr(executor, "rooms", lambda needs: 2)
        patch.setattr(executor, "has_gpus", lambda: False)
        patch.setattr(executor, "RayCrew", make)
        yield crews
