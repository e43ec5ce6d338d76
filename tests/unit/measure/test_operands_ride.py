"""Riders whose weights and activations are rounded get what their own session gives them."""

import pytest
import torch
from helpers.one_by_one import (
    SEED,
    assert_close,
    condition,
    fork_scores,
    one_row_answer,
    plain_logits,
    plain_scores,
    plain_session,
    sequences_of,
    texts,
)
from helpers.small_models import small_model

from noisescope.inject import Ride, RideError, Session, Span
from noisescope.inject.weights import DisturbedWeights
from noisescope.measure.answers import Boarding, Limits, Prompt
from noisescope.measure.generate import decode
from noisescope.measure.sharing import Rider
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import RelativeGaussian, RoundModules, RoundTo

LENGTHS = (11, 5, 8)
MODULES = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}


@pytest.fixture(autouse=True)
def seeded():
    """The same random weights and inputs in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def conditions_for(family):
    named = MODULES.get(family, MODULES["llama"])
    return (
        condition("weights", RoundTo("int4_g16", "weights"), operators="linear"),
        condition("everything", RoundTo("int8", "weights")),
        condition("activations", RoundTo("mxfp4", "activations"), layers=[1, 2]),
        condition("both", RoundTo("nvfp4", "both"), operators="linear"),
        condition("attention", RoundTo("int4_g4", "activations"), operators="matmul"),
        condition("output", RoundTo("mxfp8"), layers=[0, 1], operators="linear"),
        condition("gaussian", RelativeGaussian(0.05), layers=1),
        condition("modules", RoundModules({named: "int4_g8"}, "both")),
        condition("chance", RoundTo("int4_g8", "both", "stochastic"), layers=1),
    )


def as_one_batch(model, conditions, ids, names, draw=0):
    """Runs clean rows and then each condition's rows in one batch; returns logits and sessions."""
    sessions = [Session(model, c.error_model, c.selection, SEED, attest=False) for c in conditions]
    ride, rows = Ride(model, sessions), len(ids)
    ride.spans = [Span(s, draw, rows * n, rows * n + rows) for n, s in enumerate([None, *sessions])]
    ride.reader.names = tuple(names) * (1 + len(sessions))
    mask = torch.ones_like(ids).repeat(1 + len(sessions), 1)
    with torch.no_grad(), ride:
        logits = model(input_ids=ids.repeat(1 + len(sessions), 1), attention_mask=mask).logits
    return logits.split(rows), sessions


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_every_row_of_a_batch_gets_what_its_own_session_gives(family, attention):
    model, conditions = small_model(family, attn_implementation=attention), conditions_for(family)
    ids, names = torch.tensor(texts((8, 8))), ("a", "b")
    found, sessions = as_one_batch(model, conditions, ids, names)
    kept = [None, *conditions]
    for n, (given, mine) in enumerate(zip(kept, found, strict=True)):
        with torch.no_grad(), plain_session(model, given, 0, names) as session:
            alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(mine, alone, rtol=1e-6, atol=1e-5)
        if given is None:
            continue
        assert (mine - found[0]).abs().max() > 1e-3, given.name
        expected = {r.site.name: r for r in session.records}
        there = {r.site.name: r for r in sessions[n - 1].records}
        assert there.keys() == expected.keys()
        for name, record in there.items():
            one = expected[name]
            assert record.is_selected == one.is_selected and record.forward == one.forward
            assert record.rows == one.rows and record.tallies.keys() == one.tallies.keys()
            for phase, tally in record.tallies.items():
                torch.testing.assert_close(tally, one.tallies[phase], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_spans_of_other_samples_and_draws_get_their_own(attention):
    model = small_model("llama", attn_implementation=attention)
    chance = RoundTo("int4_g8", "both", "stochastic")
    given = [condition("linear", chance, operators="linear"), condition("all", chance)]
    sessions = [Session(model, c.error_model, c.selection, SEED, attest=False) for c in given]
    ids = torch.tensor(texts((8, 8, 8, 8)))
    mask = torch.ones_like(ids)
    mask[2, :3] = mask[0, :2] = 0  # each row is padded on the left as it likes
    order = [(None, 0), (given[0], 0), (given[1], 0), (given[0], 1)]
    ride = Ride(model, sessions)
    ride.spans = [
        Span(None if c is None else sessions[given.index(c)], draw, n, n + 1)
        for n, (c, draw) in enumerate(order)
    ]
    ride.reader.names = tuple("abcd")
    with torch.no_grad(), ride:
        found = model(input_ids=ids, attention_mask=mask).logits
    for n, (one, draw) in enumerate(order):
        with torch.no_grad(), plain_session(model, one, draw, ["abcd"[n]]):
            alone = model(input_ids=ids[n : n + 1], attention_mask=mask[n : n + 1]).logits
        begin = int((mask[n] == 0).sum())
        torch.testing.assert_close(found[n, begin:], alone[0, begin:], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_many_conditions_in_one_pass_score_as_each_alone(family, attention):
    model = small_model(family, attn_implementation=attention)
    conditions, sequences = conditions_for(family), sequences_of(LENGTHS)
    apart = TakenApart(model)
    assert apart.can_share and apart.halves is not None
    found, sessions = fork_scores(model, sequences, conditions, draws=2, apart=apart)
    expected = plain_scores(model, sequences, conditions, draws=2)
    assert_close(found, expected)
    kls = [rows[0].kl_nats for rows in expected]
    assert kls[0] == 0 and all(kl > 1e-6 for kl in kls[1:])
    for given in conditions:
        plain = [plain_logits(model, sequences, given, draw)[1] for draw in range(2)]
        for record in sessions[given.name].records:
            if record.site.region == "head":  # computes scored tokens alone
                continue
            name = record.site.name
            one, other = (next(r for r in s.records if r.site.name == name) for s in plain)
            assert record.forward == one.forward + other.forward, name
            for phase, tally in record.tallies.items():
                whole = one.tallies[phase] + other.tallies[phase]
                torch.testing.assert_close(tally, whole, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 1 << 20])
def test_the_most_rows_change_no_score(rows):
    model, sequences = small_model("llama"), sequences_of(LENGTHS)
    conditions = conditions_for("llama")
    found, _ = fork_scores(model, sequences, conditions, rows=rows)
    assert_close(found, plain_scores(model, sequences, conditions))


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_mixtures_score_as_each_condition_alone(experts):
    model = small_model("mixtral", experts_implementation=experts)
    conditions, sequences = conditions_for("llama")[:5], sequences_of(LENGTHS)
    found, _ = fork_scores(model, sequences, conditions)
    assert_close(found, plain_scores(model, sequences, conditions))


@pytest.mark.parametrize("operand", ["weights", "activations"])
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_rows_of_experts_are_not_told_apart(experts, operand):
    model = small_model("mixtral", experts_implementation=experts)
    given = condition("experts", RoundTo("int8", operand), modules="*.experts")
    with pytest.raises(RideError, match="lose their sample"):
        as_one_batch(model, [given], torch.tensor(texts((8, 8))), ("a", "b"))


@pytest.mark.parametrize(
    "family", ["llama", "mixtral", pytest.param("gpt2", marks=pytest.mark.slow)]
)
def test_answers_decoded_together_are_those_of_one_row_at_a_time(family):
    model, prompts, count = small_model(family), texts((3, 9, 1, 6)), 6
    model.generation_config.eos_token_id = None
    chance = condition("chance", RoundTo("int4_g8", "both", "stochastic"), operators="linear")
    conditions = [*conditions_for(family)[:8], chance]
    if family == "mixtral":
        conditions = [condition("heads", RoundTo("int4_g8", "both"), modules="self_attn")]
    apart, weights = TakenApart(model), DisturbedWeights()
    sessions = [Session(model, c.error_model, c.selection, SEED, attest=False) for c in conditions]
    for session in sessions:
        session.weights = weights
    riders = [Rider("", None), *(Rider("", session) for session in sessions)]
    boardings = [Boarding(r, apart.first_region(r.session)) for r in riders]
    named = [Prompt(f"s{n}", tuple(ids)) for n, ids in enumerate(prompts)]
    found = decode(model, named, boardings, Limits(count, None, 1 << 20), apart.prompt_entries)
    excused = 0
    for given, answers in zip([None, *conditions], found, strict=True):
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            alone = one_row_answer(model, prompt, f"s{n}", given, 0, count)
            if answer.ids != alone:
                assert answer.close_calls, (given, n)
                excused += 1
    assert excused <= 1
    assert len({str([a.ids for a in answers]) for answers in found}) > 1
