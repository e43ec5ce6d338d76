"""Witnesses: summed over units, and the same after a way through JSON."""

import json

import pytest
import torch
from helpers.small_models import small_model

from noisescope.inject import Witness, inject, merge_witnesses
from noisescope.noise import RelativeGaussian

IDS = torch.arange(14).reshape(2, 7) + 5


def witness_of(error_model=None, ids=IDS, **selection):
    model = small_model("llama")
    with torch.no_grad(), inject(model, error_model or RelativeGaussian(0.1), **selection) as found:
        model(input_ids=ids)
    return found.witness


@pytest.mark.parametrize("selection", [{}, {"layers": 1}, {"operators": ["linear", "softmax"]}])
def test_a_witness_survives_json_to_the_last_bit(selection):
    witness = witness_of(**selection)
    read = Witness.from_json(json.loads(json.dumps(witness.as_json(), allow_nan=False)))
    assert (read.counts, read.dose(), read.doses(), read.coverage()) == (
        (witness.counts, witness.dose(), witness.doses(), witness.coverage())
    )
    assert read.as_json() == witness.as_json()


def test_a_sum_of_witnesses_is_the_witness_of_all_passes():
    model = small_model("llama")
    with torch.no_grad(), inject(model, RelativeGaussian(0.1), operators="linear") as whole:
        for row in IDS:
            model(input_ids=row[None])
    parts = [witness_of(ids=row[None], operators="linear") for row in IDS]
    found = merge_witnesses(parts)
    assert found.counts == whole.counts and found.coverage() == whole.coverage()
    assert found.dose().elements == whole.dose().elements
    assert found.dose().relative_l2 == pytest.approx(whole.dose().relative_l2, rel=1e-12)
    assert [r.seen for r in parts[0].records] == [1] * len(parts[0].records)


def test_a_sum_keeps_the_lesser_knowledge_of_rows_and_new_sites():
    one, other = witness_of(layers=0), witness_of(layers=1)
    one.records[0].rows = "sample"
    found = merge_witnesses([one, other, one])
    assert len(found.records) == len(one.records) + len(other.records)
    assert found.records[0].rows == "sample" and found.records[0].seen == 2
    assert merge_witnesses([]).records == ()


def test_stochastic_rounding_is_judged_by_its_norm_alone():
    stochastic = witness_of(RelativeGaussian(0.1, "stochastic"), operators="linear")
    assert stochastic.is_stochastic
    assert merge_witnesses([stochastic, stochastic]).is_stochastic
    assert Witness.from_json(stochastic.as_json()).is_stochastic
