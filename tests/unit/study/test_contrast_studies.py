"""Two studies in directories: what both have is compared, and what differs is said."""

from dataclasses import replace

import pytest
from helpers.study_worker import (
    Ending,
    FakeWorker,
    carry_out,
    carry_out_steps,
    condition_of,
    make_plan,
)

from noisescope.errors import InputError
from noisescope.measure import CLEAN
from noisescope.study import read_study
from noisescope.study.contrast_studies import contrast_studies

PLAN = make_plan(samples=24, size=12)


class Shifted(FakeWorker):
    """Gives the same records, with more KL under noise."""

    def __call__(self, unit):
        found = super().__call__(unit)
        records = (
            r if r.condition == CLEAN else replace(r, kl_nats=r.kl_nats + 0.5)
            for r in found.records
        )
        return replace(found, records=tuple(records))


@pytest.fixture
def make(tmp_path):
    """Returns what carries a study out and reads it."""
    count = iter(range(100))

    def made(plan=PLAN, worker=None, with_steps=False):
        directory = tmp_path / f"study-{next(count)}"
        (carry_out_steps if with_steps else carry_out)(directory, plan, worker)
        return read_study(directory)

    return made


def told(contrast):
    return "\n".join(contrast.notes)


def models(model, configuration="c"):
    return {"model": "sha256:" + 64 * model, "configuration": configuration, "data": "d"}


def test_studies_of_one_model_are_said_to_be_that(make):
    plan = replace(PLAN, fingerprints=models("a"))
    found = contrast_studies(make(plan), make(plan))
    assert found.has_same_weights and found.differing == ()
    assert "the weights are identical (sha256:aaaaaaaaaaaa): A and B hold the same model" in told(
        found
    )
    assert "the data are the same: 24 samples are paired" in told(found)
    assert all(change.is_same for change in found.changes)


def test_the_same_weights_in_another_configuration_are_not_the_same_model(make):
    first, second = (replace(PLAN, fingerprints=models("a", c)) for c in "cd")
    found = contrast_studies(make(first), make(second))
    assert "identical" in told(found) and "the configuration, end tokens" in told(found)
    assert not any(change.is_same for change in found.changes)


def test_other_weights_are_compared_pair_by_pair(make):
    other = replace(PLAN, fingerprints=models("b"))
    found = contrast_studies(make(), make(other, Shifted()))
    assert "identical" not in told(found) and not found.has_same_weights
    kl = found.of("kl")
    assert [change.condition for change in kl] == ["L0", "L1"]
    assert all(change.difference.mean == pytest.approx(0.5) for change in kl)
    assert all(change.sides.is_paired for change in kl)
    assert set(found.doses) == {"L0", "L1"}
    assert {c.condition for c in found.of("accuracy")} == {CLEAN, "L0", "L1"}


def test_conditions_of_one_alone_are_named_and_others_compared(make):
    other = make_plan(samples=24, conditions=("L1", "L2", "L3"), size=12)
    found = contrast_studies(make(), make(other))
    assert found.only == (("L0",), ("L2", "L3"))
    assert {change.condition for change in found.changes} == {CLEAN, "L1"}


def test_conditions_that_select_other_sites_are_not_compared(make):
    other = replace(PLAN, conditions={"L0": condition_of("L5"), "L1": condition_of("L1")})
    found = contrast_studies(make(), make(other))
    assert "L0 select other sites in A than in B, and are not compared" in told(found)
    assert "L0" not in {change.condition for change in found.changes}


def test_other_noise_is_compared_and_said(make):
    noisier = {n: {**condition_of(n), "error_model": {"scale": 0.1}} for n in ("L0", "L1")}
    found = contrast_studies(make(), make(replace(PLAN, conditions=noisier)))
    assert "error model scale: 0.05 in A, 0.1 in B (every condition)" in found.differing
    assert len(found.of("kl")) == 2


def test_everything_else_that_differs_is_said(make):
    other = make_plan(
        samples=24,
        size=12,
        draws=3,
        seed=8,
        settings={"--noise-scale": 0.05, "--dtype": "bfloat16", "operators": ("linear",)},
        versions={**PLAN.versions, "torch": "2.13.0"},
    )
    found = contrast_studies(make(), make(other))
    assert set(found.differing) == {
        "seed: 7 in A, 8 in B",
        "draws: 2 in A, 3 in B",
        "--dtype: float32 in A, bfloat16 in B",
        "version of torch: 2.9.0 in A, 2.13.0 in B",
    }
    assert "2 draws in A, 3 in B: the first 2 are compared" in told(found)
    assert "the seeds differ, so the noise is not the same" in told(found)


def test_samples_of_one_alone_are_left_out(make):
    found = contrast_studies(make(), make(make_plan(samples=30, size=10)))
    assert "24 samples are the same and paired; the others, of 24 in A and 30 in B" in told(found)
    assert all(change.samples == (24, 24) for change in found.of("accuracy"))


def test_samples_of_the_same_name_and_other_content_are_not_paired(make):
    other = replace(PLAN, samples=tuple(replace(s, digest="other") for s in PLAN.samples))
    found = contrast_studies(make(), make(other))
    assert "no sample is the same in both: two means are compared, 24 samples of A with 24" in told(
        found
    )
    assert not any(change.sides.is_paired for change in found.changes)


def test_a_study_that_is_not_finished_is_compared_as_far_as_it_is(make, tmp_path):
    half = tmp_path / "half"
    with pytest.raises(KeyError):
        carry_out(half, PLAN, Ending(1))
    found = contrast_studies(make(), read_study(half))
    assert "B is not finished (1 of 2 units): what both have is compared" in told(found)
    assert all(change.samples == (12, 12) for change in found.of("accuracy"))


def test_what_studies_chose_themselves_is_marked(make):
    plan = replace(PLAN, has_steps=True)
    found = contrast_studies(make(plan, with_steps=True), make(plan, with_steps=True))
    by_name = {change.condition: change.is_asked for change in found.changes}
    assert {name for name, is_asked in by_name.items() if is_asked} == {CLEAN, "L0", "L1"}
    assert len(by_name) > 3


def test_a_study_without_records_is_refused(make, tmp_path):
    none = tmp_path / "none"
    with pytest.raises(KeyError):
        carry_out(none, PLAN, Ending(0))
    with pytest.raises(InputError, match=r"none \(B\) has no records yet: let its command"):
        contrast_studies(make(), read_study(none))
