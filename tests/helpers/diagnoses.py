"""Finished diagnoses of a small model, for what is done with them afterwards."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
from helpers.model_dirs import loaded_small

from noisescope.analyse import Interval, Summary
from noisescope.diagnose import diagnose_layers, diagnose_operators
from noisescope.measure import greedy_answers
from noisescope.noise import RelativeGaussian
from noisescope.study import Diagnosis
from noisescope.tasks import Task, make_task, token_task

PROMPTS = [[5 + i, 9, 4 + i % 3] for i in range(6)]


def small_task(loaded, is_generative: bool = True) -> Task:
    """A task whose truths are the clean model's own answers, or texts to be scored."""
    if not is_generative:
        return make_task([{"prompt_ids": prompt} for prompt in PROMPTS], name="texts")
    loaded.model.generation_config.eos_token_id = None
    return token_task(PROMPTS, greedy_answers(loaded.model, PROMPTS, 3, None))


@functools.cache
def small_diagnosis(
    kind: str = "layers", is_generative: bool = True, draws: int = 2, scale: float = 0.3
) -> Diagnosis:
    """Diagnoses a small Llama; the same object for the same arguments."""
    loaded = loaded_small()
    task = small_task(loaded, is_generative)
    if kind == "operators":
        return diagnose_operators(loaded, task, RelativeGaussian(scale), draws=draws)
    return diagnose_layers(loaded, task, RelativeGaussian(scale), window=1, draws=draws)


def with_name(diagnosis: Diagnosis, name: str) -> Diagnosis:
    """Returns the diagnosis of a model in another directory."""
    return dataclasses.replace(
        diagnosis, loaded=dataclasses.replace(diagnosis.loaded, path=Path("models") / name)
    )


def with_conditions(diagnosis: Diagnosis, count: int, seed: int = 0) -> Diagnosis:
    """Returns a diagnosis of so many single layers, with made-up figures."""
    rng = np.random.default_rng(seed)
    session = next(iter(diagnosis.measurement.sessions.values()))
    summaries = []
    for layer in range(count):
        mean = float(rng.lognormal(-4, 1))
        kl = Interval(mean, mean * 0.6, mean * 1.4, 20.0, True)
        drop = Interval(mean / 2, -0.01, mean, 20.0, True)
        summaries.append(
            Summary(f"L{layer}", 0.9, drop, mean, kl, kl, Interval(1 - mean, 0, 1, 9.0, True), 2, 6)
        )
    worst = max(summaries, key=lambda s: s.kl_nats.mean).condition
    sessions = {s.condition: session for s in summaries}
    return dataclasses.replace(
        diagnosis,
        summaries=tuple(summaries),
        layers={s.condition: (i,) for i, s in enumerate(summaries)},
        measurement=dataclasses.replace(diagnosis.measurement, sessions=sessions),
        worst_kl=dataclasses.replace(diagnosis.worst_kl, condition=worst),
    )
