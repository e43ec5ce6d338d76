"""Noise on the engines that verl trains with: attached to a built model, attested after a step.

Only functions of an engine; which methods of verl call them is in verl.py.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from noisescope.errors import DoseError, InputError
from noisescope.training.environment import PREFIX, Wanted
from noisescope.training.watched import WatchedNoise


class EngineNoise:
    """The noise of one engine.

    Args:
        engine: A built engine of verl: it has `module`, `rank` and `optimizer`.
        role: `actor`, `critic` or `ref`.
        wanted: What the environment asks for.
    """

    def __init__(self, engine: Any, role: str, wanted: Wanted) -> None:
        self.role, self.wanted = role, wanted
        options = {"seed": wanted.seed, **wanted.selection}
        self.update = WatchedNoise(engine.module, wanted.error_model, "update", **options)
        self.scoring: WatchedNoise | None = None
        if not wanted.training_only and "forward" in wanted.phases:
            options["phases"] = ("forward",)
            self.scoring = WatchedNoise(
                engine.module, wanted.error_model, "log-probabilities", **options
            )
        self.steps: int | None = None  # optimizer steps done; None: to be asked of the optimizer
        self._attested: set[str] = set()

    @contextmanager
    def updating(self, engine: Any) -> Iterator[None]:
        """One optimizer step; after the first, raises where no noise arrived."""
        step = self._steps_done(engine)
        with self.update.at(step):
            yield
        self.steps = step + 1
        self._attest(engine, self.update)

    @contextmanager
    def inferring(self, engine: Any) -> Iterator[None]:
        """One pass without gradients: the old log-probabilities, or values."""
        if self.scoring is None:
            yield
            return
        with self.scoring.at(self._steps_done(engine)):
            yield
        self._attest(engine, self.scoring)

    def forget_steps(self) -> None:
        """After a checkpoint was loaded: the optimizer knows better."""
        self.steps = None

    def _steps_done(self, engine: Any) -> int:
        if self.steps is None:
            self.steps = optimizer_steps(getattr(engine, "optimizer", None))
        return self.steps

    def _attest(self, engine: Any, noise: WatchedNoise) -> None:
        if noise.work in self._attested:
            return
        noise.attest(self.wanted.is_named)
        self._attested.add(noise.work)
        doses = "; ".join(f"{p} {noise.session.dose(p)}" for p in noise.session.phases)
        fired = sum(1 for record in noise.session.records if record.forward or record.backward)
        silent = "; none in the head, which was never called" if noise.is_head_silent else ""
        say(engine, f"first {noise.work} of {self.role}: {fired} sites perturbed; {doses}{silent}")


_engines: "WeakKeyDictionary[Any, EngineNoise | None]" = WeakKeyDictionary()


def attach(engine: Any, wanted: Wanted) -> None:
    """Puts noise on an engine that has just built its model, and says what was attached.

    Raises:
        InputError: The selection does not fit the model; or the engine has its own training step.
    """
    role = role_of(engine)
    kind = type(engine.module).__name__
    inner = type(getattr(engine.module, "_fsdp_wrapped_module", engine.module)).__name__
    name = inner if inner == kind else f"{inner} in {kind}"
    if role not in wanted.roles:
        _engines[engine] = None
        say(engine, f"no noise on {role} {name}: noise is for {', '.join(wanted.roles)}")
        return
    try:
        noise = _engines[engine] = EngineNoise(engine, role, wanted)
    except ValueError as error:
        raise InputError(f"{PREFIX}*: {error}") from error
    session = noise.update.session
    where = "update" if noise.scoring is None else "update and log-probabilities"
    say(
        engine,
        f"noise attached to {role} {name}: {wanted.error_model} on "
        f"{', '.join(session.selection.operators or ())}; regions "
        f"{', '.join(session.region_names)}; {' and '.join(wanted.phases)}; in the {where}; seed "
        f"{wanted.seed}",
    )


def noise_of(engine: Any) -> EngineNoise | None:
    """Returns the noise of an engine, None for one that is to be clean.

    Raises:
        DoseError: Noise was never attached to it.
    """
    if engine not in _engines:
        raise DoseError(
            f"{PREFIX}ENABLED is set, and verl's {type(engine).__name__} runs without noise: it is "
            "attached to FSDPEngine and what inherits its 'initialize'; use strategy fsdp or "
            f"fsdp2, or unset {PREFIX}ENABLED"
        )
    return _engines[engine]


def role_of(engine: Any) -> str:
    """Returns `ref` for an engine that only runs forward, else `actor` or `critic`."""
    if getattr(engine.engine_config, "forward_only", False):
        return "ref"
    is_value = getattr(engine.model_config, "model_type", "") == "value_model"
    return "critic" if is_value else "actor"


def optimizer_steps(optimizer: Any) -> int:
    """Returns how many steps an optimizer has taken, as its state tells; 0 where it does not."""
    states = getattr(optimizer, "state", {}).values()
    return max((int(state["step"]) for state in states if "step" in state), default=0)


def say(engine: Any, text: str) -> None:
    """Writes one line on standard error: verl logs warnings alone, and Ray passes this on."""
    rank = getattr(engine, "rank", None)
    place = f"pid {os.getpid()}" if rank is None else f"rank {rank}, pid {os.getpid()}"
    print(f"noisescope ({place}): {text}", file=sys.stderr, flush=True)
