"""A backward pass depends on nothing but what is asked: not on the passes before it."""

import pytest
import torch
from helpers.one_by_one import texts
from helpers.predicted import texts_of
from helpers.small_models import small_model

from noisescope.errors import MemoryShortError
from noisescope.measure import passes as passes_module
from noisescope.measure.passes import Passes, ProfilePass
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import RelativeGaussian

GIVEN = texts_of(texts([8, 10, 12, 9]), prompt=2)


@pytest.fixture(scope="module")
def llama():
    return TakenApart(small_model("llama"))


def asked(name="a", draws=(0, 1)):
    return ProfilePass(name, GIVEN, draws, 7, (RelativeGaussian(0.05),), "signs", ("linear",))


def figures(result):
    return [
        (part.samples, [{k: (e.nats_EB, e.by_channel_ECD) for k, e in one.items()}])
        for part in result.parts
        for one in part.effects
    ]


def with_memory_for(rows, monkeypatch):
    """Memory runs out in any batch of more rows."""
    run = passes_module.backward_effects

    def limited(apart, watch, sequences, *rest):
        if len(sequences.names) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(apart, watch, sequences, *rest)

    monkeypatch.setattr(passes_module, "backward_effects", limited)


def test_a_pass_is_run_in_halves_where_memory_is_short_and_the_next_one_whole(llama, monkeypatch):
    passes = Passes(llama)
    whole = passes.run(asked())
    with monkeypatch.context() as patch:
        with_memory_for(1, patch)
        halves = passes.run(asked())
    again = passes.run(asked())
    assert [part.samples for part in whole.parts] == [(0, 1, 2, 3)]
    assert [part.samples for part in halves.parts] == [(0,), (1,), (2,), (3,)]
    torch.testing.assert_close(figures(again), figures(whole), rtol=0, atol=0)
    assert halves.seen == whole.seen == again.seen


def test_without_memory_for_a_row_it_is_an_error(llama, monkeypatch):
    with_memory_for(0, monkeypatch)
    with pytest.raises(MemoryShortError, match="backward pass over one sample: give shorter"):
        Passes(llama).run(asked())


def test_no_more_rows_than_are_allowed_run_together(llama):
    parts = Passes(llama, most_rows=3).run(asked()).parts
    assert [part.samples for part in parts] == [(0, 1, 2), (3,)]
