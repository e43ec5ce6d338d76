"""What a worker may take and must not mix: memory of prompts, lengths, units before this one."""

import dataclasses
import threading

import psutil
import pytest
import torch
from helpers.model_dirs import as_loaded, loaded_small
from helpers.one_by_one import SEED, condition, one_row_answer, texts
from helpers.small_models import small_model

from noisescope.errors import DoseError
from noisescope.measure import Plan, Unit, Worker
from noisescope.measure.memory import rows_of_decoding, rows_of_scoring
from noisescope.noise import RelativeGaussian
from noisescope.tasks import make_task


def task_of(lengths, max_new_tokens=6):
    samples = [{"name": f"s{n}", "prompt_ids": ids} for n, ids in enumerate(texts(lengths))]
    return make_task(samples, lambda answer, sample: True, max_new_tokens=max_new_tokens)


def worker_of(loaded, task, conditions, **fields):
    loaded.model.generation_config.eos_token_id = None
    return Worker(loaded, task, Plan(tuple(conditions), seed=SEED, memory_gib=2, **fields))


def answers_of(result, name):
    return {r.sample: r.answer for r in result.records if r.condition == name}


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_rows_of_a_model_that_minds_their_length_keep_apart(kind):
    """Rotary embeddings that change at a length take it from the longest row of the batch."""
    if kind == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}
        rope = {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 16}
        model = small_model("phi3", max_position_embeddings=128, rope_parameters=rope | factors)
    else:
        rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4}
        model = small_model("llama", max_position_embeddings=16, rope_parameters=rope)
    model.generation_config.eos_token_id = None
    lengths = (5, 40, 8)
    loaded = dataclasses.replace(as_loaded(model), context_length=128)
    noisy = condition("L1", layers=1)
    worker = worker_of(loaded, task_of(lengths), [noisy])
    together = worker(Unit("u", ("s0", "s1", "s2"), ("L1",), (0,)))
    for n, ids in enumerate(texts(lengths)):
        alone = worker(Unit("v", (f"s{n}",), ("L1",), (0,)))
        for name in ("clean", "L1"):
            assert answers_of(together, name)[f"s{n}"] == answers_of(alone, name)[f"s{n}"]
        kept = [r.kl_nats for r in together.records if r.sample == f"s{n}"]
        assert kept == pytest.approx([r.kl_nats for r in alone.records], rel=1e-5)
        expected = one_row_answer(model, ids, f"s{n}", noisy, 0, 6, 128)
        assert answers_of(together, "L1")[f"s{n}"] == " ".join(map(str, expected))


def test_prompts_stay_within_the_memory_that_is_allowed():
    """A wave of prompts is as large as a pass of scoring may be, not as the cache would allow."""
    model = small_model("llama", max_position_embeddings=512)
    assert rows_of_decoding(model, 300, 0.02) > 4 * rows_of_scoring(model, 300, 0.02)
    loaded = dataclasses.replace(as_loaded(model), context_length=512)
    loaded.model.generation_config.eos_token_id = None
    task = task_of((300,) * 12, max_new_tokens=2)
    conditions = [condition(f"c{n}") for n in range(3)]
    worker = Worker(loaded, task, Plan(tuple(conditions), seed=SEED, memory_gib=0.1))
    unit = Unit("u", tuple(f"s{n}" for n in range(12)), ("c0", "c1", "c2"), (0,))
    worker(dataclasses.replace(unit, samples=("s0",)))  # what is made once
    process, peak, is_done = psutil.Process(), [0], threading.Event()

    def watch():
        while not is_done.wait(0.002):
            peak[0] = max(peak[0], process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        worker(unit)
    finally:
        is_done.set()
        watcher.join()
    assert peak[0] - before < 0.2 * 2**30


def test_what_arrived_before_is_not_asked_for_again():
    """Whether a study goes on must not hang on which unit a process meets first."""
    loaded = loaded_small()
    loaded = dataclasses.replace(loaded, model=loaded.model.bfloat16(), dtype=torch.bfloat16)
    tiny = condition("tiny", RelativeGaussian(1e-6), layers=1, operators="linear")
    task = task_of((4, 5))
    unit = Unit("u", ("s0",), ("tiny",), (0,))
    with pytest.raises(DoseError, match="no noise arrived in tiny"):
        worker_of(loaded, task, [tiny])(unit)
    plan = Plan((tiny,), seed=SEED)
    assert Worker(loaded, task, plan, arrived=("tiny",))(unit).records


def test_every_unit_begins_afresh(monkeypatch):
    """A unit after one that ran out of memory is what it is in a process of its own."""
    worker = worker_of(loaded_small(), task_of((4, 5)), [condition("L1", layers=1)])
    unit = Unit("u", ("s0", "s1"), ("L1",), (0,))
    expected = worker(unit)
    failures = [torch.OutOfMemoryError("out of memory")]
    real = Worker._scores

    def failing(self, *args):
        if failures:
            raise failures.pop()
        return real(self, *args)

    monkeypatch.setattr(Worker, "_scores", failing)
    with pytest.warns(UserWarning, match="memory ran out"):
        broken = worker(unit)
    assert any("halved" in note for note in broken.notes)
    assert worker(unit).as_json() == expected.as_json()
    assert worker(unit).notes == ()
