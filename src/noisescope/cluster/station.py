"""What runs in a worker: the model is loaded once and stays, and work comes as it is called for.

It gives plain data back, also of what went wrong: an error is no object that must be understood on
the other side.
"""

import os
import platform
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch

from noisescope.errors import MemoryShortError, NoisescopeError
from noisescope.measure import Condition, Unit, Worker
from noisescope.measure.memory import default_gib, is_out_of_memory
from noisescope.study.channels import look_at_channels
from noisescope.study.specs import Loaded, load_source, worker_of


class Station:
    """A worker's model and task, and the worker of the study in hand.

    Args:
        source: Where model and data lie; see `worker_spec`.
        threads: Threads of an operation on the CPU. Sums depend on it in their last bits.
    """

    def __init__(self, source: Mapping[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._loaded: Loaded = load_source(source)
        self._spec: dict[str, Any] | None = None  # without its conditions
        self._conditions: dict[str, Any] = {}
        self._worker: Worker | None = None

    def place(self) -> dict[str, Any]:
        """Returns the fields of a `Place`, and where this is: `host` and `pid`."""
        model = self._loaded.model  # with its tokenizer
        return {
            "device": str(model.device),
            "memory_gib": round(default_gib(model.model), 3),
            "host": platform.node(),
            "pid": os.getpid(),
        }

    def work(self, kind: str, spec: Mapping[str, Any], work: Any) -> Any:
        """Does a piece of work.

        Args:
            kind: ``"unit"``, ``"pass"``, ``"channels"`` or ``"place"``.
            spec: From which the worker is made; see `worker_spec`.
            work: What is to be done: JSON of a unit with its known answers, a `ProfilePass`, or the
                known answers.

        Returns:
            JSON of a `UnitResult`, a `PassResult`, or what the channels look like.
        """
        if kind == "place":
            return self.place()
        worker = self._worker_of(spec)
        if kind == "unit":
            unit, answers = work
            worker.know(answers)
            return worker(Unit.from_json(unit)).as_json()
        if kind == "pass":
            return worker.backward(work)
        worker.know(work)
        return look_at_channels(worker)

    def _worker_of(self, spec: Mapping[str, Any]) -> Worker:
        """Returns the worker of a spec: the one that is there, where only conditions were added."""
        asked = {**spec, "conditions": {}}
        conditions = spec["conditions"]
        has_others = any(conditions.get(n, known) != known for n, known in self._conditions.items())
        if self._worker is None or asked != self._spec or has_others:
            self._worker, self._spec, self._conditions = worker_of(spec, self._loaded), asked, {}
        self._conditions |= conditions
        self._worker.add(Condition.from_json(name, entry) for name, entry in conditions.items())
        return self._worker


def answered(work: Callable[[], Any], short_of_memory: str = "memory ran out") -> dict[str, Any]:
    """Does something and returns its `value`, or its `error` and the `kind` of it.

    Kinds: ``"users"``, which the user must mend; ``"failed"``, which another attempt may mend.

    Args:
        work: What is done.
        short_of_memory: What is said where memory runs out.
    """
    try:
        return {"value": work()}
    except MemoryShortError as error:
        return {"kind": "failed", "error": f"{_here()}: {error}"}
    except NoisescopeError as error:
        return {"kind": "users", "error": f"{_here()}: {error}"}
    except Exception as error:
        if is_out_of_memory(error):
            return {"kind": "failed", "error": f"{_here()}: {short_of_memory} ({_line(error)})"}
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
        return {"kind": "failed", "error": f"{_here()}: {_line(error)} ({place})"}


def _here() -> str:
    return f"worker on {platform.node()}"


def _line(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__
