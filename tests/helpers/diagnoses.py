"""Finished diagnoses of a small model, for what is done with them afterwards."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
from helpers.model_dirs import loaded_small

from noisescope.analyse import Interval, Summary
from noisescope.diagnose import diagnose_layers, diagnose_model, diagnose_operators
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


@functools.cache
def whole_diagnosis(is_generative: bool = True, draws: int = 2) -> Diagnosis:
    """Diagnoses a small Llama from operator to channel; the same object for the same arguments."""
    loaded = loaded_small()
    task = small_task(loaded, is_generative)
    return diagnose_model(loaded, task, RelativeGaussian(0.2), draws=draws, until="kl=0.1")


def with_findings(diagnosis: Diagnosis, **changes) -> Diagnosis:
    """Returns the diagnosis with some of what was found beyond its table changed."""
    return replace(diagnosis, findings=replace(diagnosis.findings, **changes))


def with_config(diagnosis: Diagnosis, **changes) -> Diagnosis:
    """Returns the diagnosis with something else said of what was asked."""
    about = {**diagnosis.plan.about, "config": {**diagnosis.config, **changes}}
    return replace(diagnosis, plan=replace(diagnosis.plan, about=about))


def with_name(diagnosis: Diagnosis, name: str) -> Diagnosis:
    """Returns the diagnosis of a model in another directory."""
    return with_config(diagnosis, model=str(Path("models") / name))


def with_analysis(diagnosis: Diagnosis, **changes) -> Diagnosis:
    """Returns the diagnosis with some of its figures changed."""
    return replace(diagnosis, analysis=replace(diagnosis.analysis, **changes))


def with_summaries(diagnosis: Diagnosis, *summaries: Summary) -> Diagnosis:
    """Returns the diagnosis with these lines in the place of its own; the first one's witness."""
    witness = next(iter(diagnosis.witnesses.values()))
    entry = next(iter(diagnosis.plan.asked.values()))
    plan = replace(diagnosis.plan, conditions={s.condition: entry for s in summaries}, chosen={})
    return replace(
        with_analysis(diagnosis, summaries=summaries),
        plan=plan,
        witnesses={s.condition: witness for s in summaries},
    )


def with_conditions(
    diagnosis: Diagnosis, count: int, seed: int = 0, name: str = "L{}"
) -> Diagnosis:
    """Returns a diagnosis of so many single layers, with made-up figures."""
    rng = np.random.default_rng(seed)
    summaries = []
    for layer in range(count):
        mean = float(rng.lognormal(-4, 1))
        kl = Interval(mean, mean * 0.6, mean * 1.4, 20.0, True)
        drop = Interval(mean / 2, -0.01, mean, 20.0, True)
        summaries.append(
            replace(
                diagnosis.summaries[0],
                condition=name.format(layer),
                accuracy=0.9,
                accuracy_drop=drop,
                degradation=mean,
                kl_nats=kl,
                nll_change_nats=kl,
                top1_agreement=Interval(1 - mean, 0, 1, 9.0, True),
            )
        )
    worst = max(summaries, key=lambda s: s.kl_nats.mean).condition
    return with_analysis(
        with_summaries(diagnosis, *summaries),
        worst_kl=replace(diagnosis.analysis.worst_kl, condition=worst),
    )
