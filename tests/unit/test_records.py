"""Records as JSON: what is not finite is null, and comes back as NaN."""

import dataclasses
import json
import math

import pytest

from noisescope.records import CLEAN, Record

RECORD = Record(
    "L1", 2, "a", 7, 0.1 + 0.2, -1e-300, 5 / 7, True, 1.5, 2.5, 3.25, "g", "42", False, 0, (4, 2)
)


def test_a_record_survives_json_to_the_last_bit():
    assert Record.from_json(json.loads(json.dumps(RECORD.as_json()))) == RECORD
    empty = dataclasses.replace(RECORD, answer_ids=())
    assert Record.from_json(json.loads(json.dumps(empty.as_json()))) == empty


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "field",
    ["kl_nats", "kl_p95_nats", "kl_p99_nats", "nll_nats", "nll_change_nats", "top1_agreement"],
)
def test_numbers_that_are_not_finite_are_null_and_come_back_as_nan(field, value):
    entry = dataclasses.replace(RECORD, **{field: value}).as_json()
    assert entry[field] is None
    read = Record.from_json(json.loads(json.dumps(entry, allow_nan=False)))
    assert math.isnan(getattr(read, field))
    others = {k: v for k, v in entry.items() if k != field}
    assert {k: v for k, v in read.as_json().items() if k != field} == others


def test_what_lacks_without_being_a_number_stays_none():
    record = Record(CLEAN, 0, "a", 3, 0.0, 0.0, 1.0, None)
    read = Record.from_json(json.loads(json.dumps(record.as_json())))
    assert (read.is_right, read.group, read.answer, read.is_cut, read.close_calls) == (None,) * 5
    assert math.isnan(read.nll_nats)
