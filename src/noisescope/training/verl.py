"""Loaded by verl's workers, by name: puts the noise of `VERL_NOISY_OPS_*` on what they train.

Importing this module is what switches it on, as ``VERL_USE_EXTERNAL_MODULES=noisescope.training.
verl`` or ``actor_rollout_ref.model.external_lib=noisescope.training.verl`` do. Methods of verl's
classes are wrapped, which are all in `POINTS`; nothing of torch is.
"""

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from noisescope.errors import InputError
from noisescope.training.after_import import AfterImport
from noisescope.training.environment import PREFIX, Wanted, read_environment
from noisescope.training.verl_engine import attach, noise_of, say

CHECKED_WITH = "0.9.1"
_BASE = "verl.workers.engine.base"
_FSDP = "verl.workers.engine.fsdp.transformer_impl"
_WORKERS = "verl.workers.engine_workers"
_WEIGHTS = "verl.checkpoint_engine.base"
# What is wrapped, by module: the class (or "" for a function of the module) and the name in it.
POINTS: dict[str, tuple[tuple[str, str], ...]] = {
    # zero_grad, forward_backward_batch over the micro-batches, optimizer_step
    _BASE: (("BaseEngine", "train_batch"), ("BaseEngine", "infer_batch")),
    # builds the model (`module`) and the optimizer; both are there when it returns
    _FSDP: (("FSDPEngine", "initialize"), ("FSDPEngine", "load_checkpoint")),
    # asked when a worker with a rollout is built: beside the model, or apart from it
    _WORKERS: (("", "get_rollout_class"),),
    _WEIGHTS: (("", "get_rollout_class"),),
}
# What an engine must have, besides: read in verl_engine.
ATTRIBUTES = ("module", "optimizer", "engine_config", "model_config", "rank")

_Around = Callable[..., Any]


def install(wanted: Wanted) -> AfterImport:
    """Wraps `POINTS` in what verl has imported, and the rest as soon as it does."""
    arounds: dict[str, _Around] = {
        "train_batch": lambda call, engine, *a, **k: _with(noise_of(engine), "updating", call)(
            engine, *a, **k
        ),
        "infer_batch": lambda call, engine, *a, **k: _with(noise_of(engine), "inferring", call)(
            engine, *a, **k
        ),
        "initialize": functools.partial(_initialize, wanted),
        "load_checkpoint": _load_checkpoint,
        "get_rollout_class": functools.partial(_get_rollout_class, wanted),
    }
    hook = AfterImport({module: functools.partial(_wrap_points, arounds) for module in POINTS})
    hook.install()
    return hook


def _wrap_points(arounds: dict[str, _Around], module: ModuleType) -> None:
    for class_name, name in POINTS[module.__name__]:
        holder = getattr(module, class_name, None) if class_name else module
        original = getattr(holder, name, None)
        if not callable(original):
            place = ".".join(part for part in (module.__name__, class_name, name) if part)
            version = getattr(sys.modules.get("verl"), "__version__", "of unknown version")
            raise InputError(
                f"verl {version} has no {place}, which noise is put on at: "
                f"noisescope.training.verl was checked with verl {CHECKED_WITH}; use that, or "
                f"unset {PREFIX}ENABLED"
            )
        setattr(holder, name, _wrapped(original, arounds[name]))


def _wrapped(original: Any, around: _Around) -> Any:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    return call


def _with(noise: Any, context: str, call: Any) -> Any:
    """Returns the call inside a context of an engine's noise; as it is, where there is none."""
    if noise is None:
        return call

    def run(engine: Any, *args: Any, **kwargs: Any) -> Any:
        with getattr(noise, context)(engine):
            return call(engine, *args, **kwargs)

    return run


def _initialize(wanted: Wanted, call: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    result = call(engine, *args, **kwargs)
    missing = [name for name in ATTRIBUTES if not hasattr(engine, name)]
    base = sys.modules[_BASE].BaseEngine
    if missing or type(engine).train_batch is not base.train_batch:
        lack = f"has no {', '.join(missing)}" if missing else "has a train_batch of its own"
        raise InputError(
            f"verl's {type(engine).__name__} {lack}: noisescope.training.verl was checked with "
            f"verl {CHECKED_WITH}; use that, or unset {PREFIX}ENABLED"
        )
    attach(engine, wanted)
    return result


def _load_checkpoint(call: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    result = call(engine, *args, **kwargs)
    noise = noise_of(engine)
    if noise is not None:
        noise.forget_steps()
    return result


def _get_rollout_class(wanted: Wanted, call: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
    if not wanted.training_only:
        raise InputError(
            f"{PREFIX}ENABLED without {PREFIX}TRAINING_ONLY, and verl's rollout {name!r} generates "
            "in an engine of its own, which this noise does not reach: set "
            f"{PREFIX}TRAINING_ONLY=1 for noise in the update alone"
        )
    return call(name, *args, **kwargs)


_wanted = read_environment(os.environ)
hook: AfterImport | None = None
if _wanted is None:
    say(None, f"no noise: {PREFIX}ENABLED is not set in this process")
else:
    hook = install(_wanted)
    say(None, f"waiting for verl to build a model: {_wanted.error_model}, seed {_wanted.seed}")
