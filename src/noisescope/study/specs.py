"""What another process needs to carry out a study's units: a spec, as JSON, and the worker of one.

A spec names files and plain values. It is refused where what lies at its paths is not what the
study was made of.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from noisescope.errors import InputError
from noisescope.measure import Condition, Plan, Worker
from noisescope.measure.conditions import KNOWN_ERROR_MODELS
from noisescope.models import LoadedModel, load_model
from noisescope.study.files import sha256, to_json
from noisescope.study.identity import fingerprints_of, scoring_of
from noisescope.study.plan import SampleKey, StudyPlan, sample_keys
from noisescope.tasks import Task, load_task


def worker_spec(plan: StudyPlan, source: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the spec of a study's worker; None where it can live in this process only.

    Args:
        plan: The study's plan.
        source: Where model and data came from: `model`, `tokenizer`, `dtype`, `device`,
            `trust_remote_code`, `data`, `samples` and `max_new_tokens`; None: from memory.
    """
    kinds = {condition["error_model"]["type"] for condition in plan.conditions.values()}
    if source is None or not kinds <= KNOWN_ERROR_MODELS.keys():
        return None
    return {
        "source": {**source, **_settled(plan, source)},
        "conditions": dict(plan.conditions),
        "draws": plan.draws,
        "seed": plan.seed,
        "generates": plan.generates,
        "rows_per_batch": plan.layout.rows_per_batch,
        "memory_gib": plan.layout.memory_gib,
        "compile_steps": plan.layout.compile_steps,
        "fingerprints": {**plan.fingerprints, "prompts": _prompts_fingerprint(plan.samples)},
        "scoring": plan.settings.get("scoring"),
    }


def _settled(plan: StudyPlan, source: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was left to be chosen by the machine, as it was chosen for the study."""
    device = source["device"] or plan.settings["--device"]
    return {"dtype": plan.settings["--dtype"], "device": device}


@dataclass(frozen=True)
class Loaded:
    """What a source names, in this process.

    Attributes:
        model: The model, with its tokenizer.
        task: The samples and their scoring.
    """

    model: LoadedModel
    task: Task


def load_source(source: Mapping[str, Any]) -> Loaded:
    """Loads the model and the data of a source; see `worker_spec`.

    Raises:
        InputError: They cannot be loaded.
    """
    task = load_task(source["data"], source["samples"], max_new_tokens=source["max_new_tokens"])
    loaded = load_model(
        source["model"],
        dtype=source["dtype"],
        device=source["device"],
        tokenizer=source["tokenizer"],
        trust_remote_code=source["trust_remote_code"],
    )
    return Loaded(loaded, task)


def make_worker(spec: Mapping[str, Any]) -> Worker:
    """Loads model and data and returns the worker of a spec.

    Raises:
        InputError: They cannot be loaded, or are not those of the study.
    """
    return worker_of(spec, load_source(spec["source"]))


def worker_of(spec: Mapping[str, Any], here: Loaded) -> Worker:
    """Returns the worker of a spec, of what its source names.

    Raises:
        InputError: It is not what the study was made of.
    """
    source, loaded, task = spec["source"], here.model, here.task
    found = fingerprints_of(loaded, task)
    found["prompts"] = _prompts_fingerprint(sample_keys(task, loaded.tokenizer))
    named = {
        "model": f"model {source['model']}: its fingerprint",
        "configuration": f"model {source['model']}: the fingerprint of its configuration",
        "data": f"data {source['data']}: its fingerprint",
        "prompts": f"tokenizer {source['tokenizer'] or source['model']}: the prompts' fingerprint",
    }
    for what, text in named.items():
        wanted = spec["fingerprints"][what]
        if found[what] != wanted:
            raise InputError(
                f"{text} is {found[what][:19]}, the study's is {wanted[:19]}; give every process "
                "the same files"
            )
    scoring, wanted = scoring_of(task), spec["scoring"]
    if scoring != wanted:
        names = [None if told is None else told["function"] for told in (scoring, wanted)]
        raise InputError(
            f"answers are scored by {names[0]}, the study's by {names[1]}: carry it out in the "
            "process that has that function"
        )
    plan = Plan(
        tuple(Condition.from_json(name, entry) for name, entry in spec["conditions"].items()),
        spec["draws"],
        spec["seed"],
        spec["rows_per_batch"],
        spec["memory_gib"],
        generates=spec["generates"],
        compile_steps=spec["compile_steps"],
    )
    return Worker(loaded, task, plan, spec)


def _prompts_fingerprint(samples: Iterable[SampleKey]) -> str:
    return f"sha256:{sha256(to_json([sample.digest for sample in samples]))}"
