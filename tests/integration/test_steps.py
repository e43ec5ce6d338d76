"""A study whose steps choose, on a real model: here, elsewhere, ended and gone on with, and grown.

The driver is what a diagnosis does, in small: windows first, then sites of the worst of them.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from helpers.commands import write_questions
from helpers.executors import FromSpec, InAnotherProcess
from helpers.model_dirs import save_model

from noisescope import RelativeGaussian, load_model, load_task
from noisescope.inject import make_selection
from noisescope.measure import CLEAN, Condition, Plan, Worker
from noisescope.measure import worker as worker_module
from noisescope.study import (
    Layout,
    StudyPlan,
    conditions_json,
    fingerprints_of,
    make_diagnosis,
    open_study,
    read_study,
    sample_keys,
    scoring_of,
    worker_spec,
)

NOISE = RelativeGaussian(0.3, "stochastic")
WINDOWS = tuple(Condition(f"L{n}", NOISE, make_selection(layers=n)) for n in range(3))


@dataclass
class Driver:
    """Opens, measures and finishes a study with two steps."""

    source: dict
    draws: int = 2

    def __post_init__(self):
        self.loaded = load_model(self.source["model"], device="cpu")
        self.task = load_task(
            self.source["data"],
            self.source["samples"],
            max_new_tokens=self.source["max_new_tokens"],
        )

    def plan(self):
        return StudyPlan(
            kind="layers",
            conditions=conditions_json(WINDOWS),
            draws=self.draws,
            seed=5,
            samples=sample_keys(self.task, self.loaded.tokenizer),
            layout=Layout(2, memory_gib=1.0, draws_per_unit=1),
            settings={
                "--dtype": "float32",
                "--device": "cpu",
                "scoring": scoring_of(self.task),
            },
            fingerprints=fingerprints_of(self.loaded, self.task),
            has_steps=True,
            about={"config": {"max_new_tokens": 3}, "layers": {}, "notes": []},
        )

    def carry_out(self, out: Path, executor=None, extend=False):
        with open_study(out, self.plan(), extend) as study:
            spec = worker_spec(study.plan, self.source)
            plan = Plan(WINDOWS, self.draws, 5, memory_gib=1.0)
            worker = Worker(self.loaded, self.task, plan, spec, clean_answers=study.clean_answers)
            worker.add(self.conditions(study, study.plan.chosen))
            study.run(worker, executor)
            for step, generates in (("sites", False), ("scales", None)):
                if study.chosen(step) is None:
                    chosen = conditions_json(self.choice(step, study.records))
                    study.choose(step, chosen, generates=generates)
                worker.add(self.conditions(study, study.chosen(step)))
                study.run(worker, executor)
            study.finish()
            return make_diagnosis(study.plan, study.records, study.witnesses, study.notes)

    @staticmethod
    def conditions(study, names):
        return [Condition.from_json(name, study.plan.conditions[name]) for name in names]

    @staticmethod
    def choice(step, records):
        """The window that loses most: two sites of it, and it at another scale."""
        loss = {w.name: sum(r.kl_nats for r in records if r.condition == w.name) for w in WINDOWS}
        worst = max(loss, key=loss.__getitem__)
        if step == "scales":
            noise = RelativeGaussian(0.6, "stochastic")
            return [Condition(f"{worst} at 0.6", noise, make_selection(layers=int(worst[1:])))]
        names = [f"model.layers.{worst[1:]}.mlp.{part}_proj" for part in ("up", "down")]
        return [
            Condition(name, NOISE, make_selection(layers=int(worst[1:]), modules=name))
            for name in names
        ]


@dataclass
class EndingAfter:
    """Carries out so many units and fails."""

    left: int

    def run(self, worker, units):
        for unit in units:
            if not self.left:
                raise KeyError(unit.name)
            self.left -= 1
            yield worker(unit)


@pytest.fixture
def source(tmp_path):
    save_model(tmp_path / "llama")
    write_questions(tmp_path / "test.parquet")
    return {
        "model": str(tmp_path / "llama"),
        "tokenizer": None,
        "dtype": None,
        "device": "cpu",
        "trust_remote_code": False,
        "data": str(tmp_path / "test.parquet"),
        "samples": 4,
        "max_new_tokens": 3,
    }


def files_of(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir()}


@pytest.mark.parametrize(
    "executor", [FromSpec, pytest.param(InAnotherProcess, marks=pytest.mark.slow)]
)
def test_a_worker_made_elsewhere_carries_out_what_was_chosen(source, tmp_path, executor):
    found = Driver(source).carry_out(tmp_path / "here")
    Driver(source).carry_out(tmp_path / "there", executor())
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")
    names = [s.condition for s in found.summaries]
    assert names == ["L0", "L1", "L2"]
    assert {step: len(chosen) for step, chosen in found.chosen.items()} == {"sites": 2, "scales": 1}
    (scaled,) = found.chosen["scales"]
    assert scaled.condition.endswith(" at 0.6")
    assert found.worst_kl.condition in names
    answered = {s.condition for s in found.analysis.summaries if s.accuracy == s.accuracy}
    assert answered == {*names, scaled.condition}
    assert all(witness.dose().relative_l2 > 0 for witness in found.witnesses.values())


@pytest.mark.parametrize("after", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 9))])
def test_what_was_ended_goes_on_to_the_same_bytes(source, tmp_path, after):
    """Also where the clean answers are those of records and no longer of the worker."""
    Driver(source).carry_out(tmp_path / "whole")
    with pytest.raises(KeyError):
        Driver(source).carry_out(tmp_path / "ended", EndingAfter(after))
    assert read_study(tmp_path / "ended").units_done == after
    Driver(source).carry_out(tmp_path / "ended")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "ended")


def test_more_samples_and_draws_are_measured_under_what_was_chosen(source, tmp_path):
    old = Driver(source).carry_out(tmp_path / "study")
    new = Driver({**source, "samples": 6}, draws=3).carry_out(tmp_path / "study", extend=True)
    names = [s.condition for s in old.analysis.summaries]
    assert len(names) == 6
    assert [(s.condition, s.draws, s.samples) for s in new.analysis.summaries] == [
        (name, 3, 6) for name in names
    ]
    kept = {(r.condition, r.draw, r.sample): r for r in new.records}
    assert all(
        repr(asdict(r)) == repr(asdict(kept[r.condition, r.draw, r.sample])) for r in old.records
    )


def test_clean_answers_are_decoded_once_in_a_studys_life(source, tmp_path, monkeypatch):
    met = []
    decode = worker_module.decode

    def noting(model, prompts, boardings, *given):
        if any(b.rider.name == CLEAN for b in boardings):
            met.extend(p.name for p in prompts)
        return decode(model, prompts, boardings, *given)

    monkeypatch.setattr(worker_module, "decode", noting)
    with pytest.raises(KeyError):
        Driver(source).carry_out(tmp_path / "study", EndingAfter(5))
    Driver(source).carry_out(tmp_path / "study")
    Driver(source, draws=3).carry_out(tmp_path / "study", extend=True)
    assert len(met) == len(set(met)) == 4
