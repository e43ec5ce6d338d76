"""Executors that make the worker again from its spec: here, and in another process."""

import json
import subprocess
import sys
from dataclasses import dataclass

from noisescope.measure import Unit, UnitResult
from noisescope.study import InProcess, make_worker

ELSEWHERE = """
import json, sys
from noisescope.measure import Unit
from noisescope.study import make_worker
spec, *units = map(json.loads, sys.stdin)
worker = make_worker(spec)
for unit in units:
    print(json.dumps(worker(Unit.from_json(unit)).as_json()))
"""


@dataclass
class FromSpec(InProcess):
    """Makes the worker again from JSON and carries units out in reverse, also through JSON."""

    spec: dict | None = None

    def run(self, worker, units):
        self.spec = json.loads(json.dumps(worker.spec))
        made = make_worker(self.spec)
        for unit in reversed(list(units)):
            result = made(Unit.from_json(json.loads(json.dumps(unit.as_json()))))
            yield UnitResult.from_json(json.loads(json.dumps(result.as_json())))


class InAnotherProcess(InProcess):
    """Carries units out in a new process, in another working directory."""

    def run(self, worker, units):
        lines = [json.dumps(worker.spec), *(json.dumps(unit.as_json()) for unit in units)]
        done = subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
        for line in done.stdout.splitlines():
            yield UnitResult.from_json(json.loads(line))
