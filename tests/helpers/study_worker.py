"""A worker whose results are a hash of what was asked, and a command that runs a study with it.

python study_worker.py DIR [--pause SECONDS] [--samples N] [--extend]
"""

import argparse
import hashlib
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from noisescope.inject import SiteRecord, Witness
from noisescope.inject.sites import Site
from noisescope.measure import CLEAN, Record, Unit, UnitResult
from noisescope.study import Layout, SampleKey, StudyInterrupted, StudyPlan, open_study
from noisescope.study.files import explained, replace_file


def number(*parts) -> float:
    """A float64 in [0, 1) that is a function of its arguments, with all its bits in use."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def group_of(sample: str) -> str | None:
    return f"g{int(sample[1:]) // 3}" if int(sample[1:]) % 2 else None


def record_of(condition: str, draw: int, sample: str) -> Record:
    value = number(condition, draw, sample)
    return Record(
        condition=condition,
        draw=draw,
        sample=sample,
        tokens=int(100 * value),
        kl_nats=math.nan if value > 0.9 else value,
        nll_change_nats=value - 0.5,
        top1_agreement=value,
        is_right=[True, False, None][int(3 * value)],
        group=group_of(sample),
        answer=None if value > 0.8 else f"{value}\nzwölf 数 \U0001f600 \"'\\\r\x85\u2028",
        is_cut=value > 0.5,
        answer_ids=tuple(range(int(5 * value))) if condition == CLEAN else None,
    )


def unanswered(record: Record) -> Record:
    return replace(record, is_right=None, answer=None, is_cut=None)


def witness_of(unit: Unit, condition: str) -> Witness:
    """Tallies whose sum depends on the order of its terms, and sites that units see differently."""

    def site_record(name: str) -> SiteRecord:
        tally = [number(unit.samples, unit.draws, condition, name, i) * 10**i for i in range(6)]
        return SiteRecord(
            Site("0", name, "linear", 0),
            is_selected=True,
            seen=len(unit.samples),
            forward=len(unit.samples),
            tallies={"forward": torch.tensor(tally, dtype=torch.float64)},
        )

    odd = sum(int(sample[1:]) for sample in unit.samples) % 2
    return Witness(tuple(site_record(name) for name in (["b", "a"] if odd else ["a", "c"])))


class FakeWorker:
    """Counts what it is asked for; `spec` makes it again elsewhere."""

    def __init__(self, pause_s: float = 0.0):
        self.pause_s = pause_s
        self.units: list[Unit] = []

    @property
    def spec(self):
        return {"pause_s": self.pause_s}

    def learn(self, result: UnitResult, first: list[str]) -> None:
        pass

    def __call__(self, unit: Unit) -> UnitResult:
        self.units.append(unit)
        time.sleep(self.pause_s)
        keys = [(CLEAN, 0, s) for s in unit.samples] if unit.with_clean else []
        keys += [(c, d, s) for c in unit.conditions for d in unit.draws for s in unit.samples]
        records = (record_of(*key) for key in keys)
        if not unit.generates:
            records = (r if r.condition == CLEAN else unanswered(r) for r in records)
        return UnitResult(
            unit.name,
            tuple(records),
            {c: witness_of(unit, c) for c in unit.conditions},
            (f"note {len(unit.samples)}", "a note of all"),
        )


class Ending(FakeWorker):
    """Fails after some units."""

    def __init__(self, units: int):
        super().__init__()
        self.left = units

    def __call__(self, unit: Unit) -> UnitResult:
        if len(self.units) == self.left:
            raise KeyError(unit.name)
        return super().__call__(unit)


def condition_of(name: str) -> dict[str, Any]:
    return {"error_model": {"scale": 0.05}, "layers": [name]}


def make_plan(samples=4, draws=2, conditions=("L0", "L1"), size=2, **changes) -> StudyPlan:
    names = [f"s{i}" for i in range(samples)]
    fields = {
        "kind": "layers",
        "conditions": {c: condition_of(c) for c in conditions},
        "draws": draws,
        "seed": 7,
        "samples": tuple(SampleKey(n, group_of(n), f"digest of {n}") for n in names),
        "layout": Layout(size),
        "settings": {"--noise-scale": 0.05, "--dtype": "float32", "operators": ("linear",)},
        "scope": {"--num-samples": samples},
        "fingerprints": {"model": "sha256:" + 64 * "a", "data": f"sha256:{samples:064}"},
        "versions": {"python": "3.11.9", "torch": "2.9.0", "noisescope": "0.1.0"},
    }
    return StudyPlan(**fields | changes)


def sites_of(study) -> dict[str, Any]:
    """What a step chooses: new names by all records so far, and one that is there already."""
    mark = hashlib.sha256(repr(study.records).encode()).hexdigest()[:6]
    return {name: condition_of(name) for name in (f"a-{mark}", "L0", f"b-{mark}")}


def channels_of(study) -> dict[str, Any]:
    mark = hashlib.sha256(repr(study.records).encode()).hexdigest()[:6]
    return {f"c-{mark}": condition_of(f"c-{mark}")}


# Step, what it chooses from the study so far, and whether its conditions are answered.
STEPS = (
    ("sites", sites_of, False),
    ("nothing", lambda study: {}, None),
    ("channels", channels_of, None),
)


def run_steps(study, worker, steps=STEPS, executor=None) -> None:
    """Has everything measured: what was asked, then what each step chooses."""
    study.run(worker, executor)
    for name, choice, generates in steps:
        if study.chosen(name) is None:
            study.choose(name, choice(study), generates=generates)
        study.run(worker, executor)


def carry_out_steps(directory: Path | None, plan: StudyPlan, worker=None, extend=False, **options):
    """Opens, runs and finishes a study with steps; returns what it measured."""
    with open_study(directory, plan, extend=extend) as study:
        if not study.is_complete:
            run_steps(study, worker or FakeWorker(), **options)
            study.finish()
        return told(study)


def carry_out(directory: Path | None, plan: StudyPlan, worker=None, extend=False, executor=None):
    """Opens, runs and finishes a study, as a command does; returns what it measured."""
    with open_study(directory, plan, extend=extend) as study:
        study.run(worker or FakeWorker(), executor)
        study.finish()
        if directory is not None:
            done, total = study.progress
            with explained(
                directory / "result.json", f"{done} of {total} units are kept in {directory}"
            ):
                replace_file(directory / "result.json", repr(study.records).encode())
        return told(study)


def told(study) -> str:
    """Returns all that a study or its state tells, to the last bit, as text."""
    witnesses = {name: witness.as_json() for name, witness in study.witnesses.items()}
    return repr((study.records, witnesses, study.notes))


def snapshot(directory: Path) -> dict[str, bytes]:
    """Returns every file of a directory with its bytes."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*")}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--extend", action="store_true")
    given = parser.parse_args()
    try:
        plan = make_plan(given.samples, size=1)
        carry_out(given.directory, plan, FakeWorker(given.pause), given.extend)
    except StudyInterrupted as error:
        print(error, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
