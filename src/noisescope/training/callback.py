"""`NoiseCallback`: noise inside the steps of a transformers `Trainer` and of TRL's trainers.

Draw = number of optimizer steps so far. Within a step samples differ by their own tokens, so the
noise does not depend on how a step is cut into micro-batches, and a resumed run goes on with the
noise it would have met. Noise on weights is elsewhere (aqn_callback).
"""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from noisescope.errors import InputError, NoisescopeWarning, near_names
from noisescope.inject import Witness, make_selection
from noisescope.inject.dose import Dose
from noisescope.noise import ErrorModel, flat_address
from noisescope.training.trainer import bare_model, calling_trainer, generates, unwrap, wrap
from noisescope.training.watched import WatchedNoise, check_error_model, dose_figures

_LOG = logging.getLogger(__name__)
WORK = ("update", "rollout", "evaluation")


class NoiseCallback(TrainerCallback):  # type: ignore[misc]
    """Puts error on the operators of a model while a `Trainer` trains it.

    The noise is there while the trainer works on a micro-batch (forward, loss, backward, with what
    gradient checkpointing computes again) and gone when that is over, also by an exception.
    Evaluation runs clean unless asked for. At each log the dose since the last one joins the
    trainer's log, as ``noise/update/forward_share_changed`` and ``.../forward_relative_l2``.

    The old log-probabilities that GRPO computes itself belong to the update: they meet its noise.
    Reference and reward models are other models, and clean; a reference that is the same model
    without its adapter is not another model.

    Args:
        error_model: What is added, e.g. ``RelativeGaussian(0.02)``.
        phases: `forward`, `backward` or both; see `inject`.
        during: What runs under noise: ``update``, ``rollout`` (the answers that GRPO and RLOO
            generate; forward alone) and ``evaluation``.
        seed: First key word, 0 to 2**32 - 1.
        draw: Draw of the first step; each optimizer step has the next one.
        **selection: Of `inject`: ``layers``, ``operators``, ``modules``, ``sites``, ``without``,
            ``channels``, ``without_channels``, ``positions``.

    Raises:
        InputError: An argument that cannot be used.
        SelectionError: A selection that cannot be, as `inject` says.
    """

    def __init__(
        self,
        error_model: ErrorModel,
        *,
        phases: str | Iterable[str] = ("forward", "backward"),
        during: str | Iterable[str] = "update",
        seed: int = 0,
        draw: int = 0,
        **selection: Any,
    ) -> None:
        check_error_model(error_model)
        flat_address(seed, draw, site=0, rows=0)  # checks both words
        self.error_model = error_model
        self.phases = make_selection(phases=phases, **selection).phases
        self.during = _work(during, self.phases)
        self.seed, self.draw = seed, draw
        self.selection = selection
        self._trainer: Any = None
        self._noise: dict[str, WatchedNoise] = {}
        self._attested: set[str] = set()

    # What a user may read.

    @property
    def witness(self) -> Witness:
        """What arrived in the update since training began: dose, coverage, counts by site."""
        return self.witness_of("update" if "update" in self.during else self.during[0])

    def witness_of(self, work: str) -> Witness:
        """What arrived in one kind of work."""
        return self._noise[work].witness if work in self._noise else Witness()

    def dose(self, phase: str = "forward") -> Dose:
        """What arrived in the update since training began."""
        return self.witness.dose(phase)

    # What the trainer calls.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the noise on the trainer's model, and tells what was attached."""
        self._leave()
        trainer = calling_trainer(type(self).__name__)
        self._check(trainer)
        model = bare_model(trainer)
        self._attested.clear()
        self._noise = {work: self._noise_of(work, model) for work in self.during}
        self._trainer = trainer
        for method, around in self._wraps(trainer):
            wrap(trainer, method, around)
        regions = self._noise[self.during[0]].session.region_names
        _LOG.info(
            "noise attached to %s: %s on %s, %s, regions %s, seed %d",
            *(type(model).__name__, self.error_model, " and ".join(self.during)),
            *(" and ".join(self.phases), ", ".join(regions), self.seed),
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the first step: raises where no noise arrived in the update."""
        self._attest("update")
        if "rollout" in self.during and self._noise["rollout"].session.records:
            self._attest("rollout")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lets the trainer go, and attests what has not been."""
        self._leave()
        for work in self.during:
            if work != "evaluation":
                self._attest(work)

    # Parts.

    def _noise_of(self, work: str, model: Any) -> WatchedNoise:
        phases = self.phases if work == "update" else ("forward",)
        return WatchedNoise(
            model, self.error_model, work, self.seed, self.draw, phases=phases, **self.selection
        )

    def _check(self, trainer: Any) -> None:
        if "rollout" not in self.during:
            return
        if not generates(trainer):
            raise InputError(
                f"during='rollout': {type(trainer).__name__} generates nothing; use it with TRL's "
                "GRPOTrainer or RLOOTrainer, or leave 'rollout' out of during"
            )
        if getattr(trainer, "use_vllm", False):
            raise InputError(
                "during='rollout' with use_vllm=True: vLLM generates with a model of its own, that "
                "this noise does not reach; set use_vllm=False, or leave 'rollout' out of during"
            )

    def _wraps(self, trainer: Any) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = [("log", self._logging)]
        if "update" in self.during:
            found.append(("training_step", self._updating))
        if generates(trainer):
            found.append(("_generate", self._generating))
        if "evaluation" in self.during:
            found.append(("prediction_step", self._evaluating))
        return found

    def _leave(self) -> None:
        if self._trainer is not None:
            for method, around in self._wraps(self._trainer):
                unwrap(self._trainer, method, around)
        self._trainer = None

    @property
    def _step(self) -> int:
        return int(self._trainer.state.global_step)

    @contextmanager
    def _updating(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        with self._noise["update"].at(self._step):
            yield

    @contextmanager
    def _evaluating(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # Every evaluation meets the same noise, so that steps can be compared.
        with self._noise["evaluation"].at(0):
            yield

    @contextmanager
    def _generating(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Rollouts are made inside the step: its noise is off meanwhile, and their own on."""
        update = self._noise.get("update")
        is_open = update is not None and update.is_open
        is_training = bool(self._trainer.model.training) or is_open
        if is_open and update is not None:
            update.session.__exit__(None, None, None)
        try:
            if "rollout" in self.during and is_training:
                with self._noise["rollout"].at(self._step):
                    yield
            else:
                yield
        finally:
            if is_open and update is not None:
                update.session.__enter__()

    @contextmanager
    def _logging(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> Iterator[None]:
        """Before a log is written: what arrived since the last one joins it."""
        is_evaluation = any(name.startswith("eval_") for name in logs)
        for work, noise in self._noise.items():
            if (work == "evaluation") == is_evaluation:
                logs.update(dose_figures(f"noise/{work}", noise.take(), noise.session.phases))
        yield

    def _attest(self, work: str) -> None:
        if work in self._noise and work not in self._attested:
            self._noise[work].attest()
            self._attested.add(work)
            _warn_of_silence(self._noise[work])


def _warn_of_silence(noise: WatchedNoise) -> None:
    if noise.is_head_silent:
        warnings.warn(
            f"no noise arrived in the head in the {noise.work}: the trainer computes with its "
            "weights and never calls it, as TRL does for its losses; everywhere else it arrived",
            NoisescopeWarning,
            stacklevel=2,
        )


def _work(during: str | Iterable[str], phases: tuple[str, ...]) -> tuple[str, ...]:
    names = (during,) if isinstance(during, str) else tuple(dict.fromkeys(during))
    for name in names:
        if name not in WORK:
            raise InputError(
                f"during {name!r}: {', '.join(map(repr, WORK))} are accepted"
                f"{near_names(str(name), WORK)}"
            )
    if not names:
        raise InputError(f"during=(): name at least one of {', '.join(map(repr, WORK))}")
    without_gradient = [name for name in names if name != "update"]
    if "forward" not in phases and without_gradient:
        raise InputError(
            f"during {without_gradient[0]!r} with phases={phases!r}: no gradient flows there; add "
            "'forward' to phases, or leave it out of during"
        )
    return names
