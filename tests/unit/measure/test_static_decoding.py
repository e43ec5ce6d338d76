"""Steps of fixed size, through a compiled model, answer as steps with a growing cache do."""

from functools import partial

import pytest
import torch
from helpers.one_by_one import SEED, condition, one_row_answer, plain_session, texts
from helpers.small_models import small_model
from transformers import StaticCache

from noisescope.errors import NoisescopeWarning
from noisescope.inject import Session
from noisescope.measure import generate, static_decoding
from noisescope.measure.answers import Boarding, Limits, Prompt
from noisescope.measure.caches import can_be_static, to_dynamic, to_static
from noisescope.measure.generate import decode
from noisescope.measure.sharing import Rider
from noisescope.measure.static_decoding import (
    StaticSteps,
    bucket_of,
    capacity_of,
    compiled_step,
    largest_bucket,
)
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import AbsoluteGaussian, RelativeGaussian, RoundTo

PROMPTS = texts((3, 14, 1, 8))
COUNT = 8

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Steps:
    """A backend that counts graphs, and what each batch of fixed size was given."""

    def __init__(self):
        self.graphs = 0
        self.batches = []  # of each: the arguments of its steps

    def backend(self, graph, example_inputs):
        self.graphs += 1
        return graph

    def compiled_step(self, model):
        compiled = compiled_step(model, backend=self.backend)

        def call(**given):
            self.batches[-1].append({k: v for k, v in given.items() if k != "past_key_values"})
            return compiled(**given)

        return call

    def begin(self, *given):
        self.batches.append([])
        return StaticSteps(*given)

    @property
    def sizes(self):
        return [tuple(batch[0]["attention_mask"].shape) for batch in self.batches]


@pytest.fixture
def steps(monkeypatch):
    torch.compiler.reset()
    static_decoding._graphs.clear()
    made = Steps()
    monkeypatch.setattr(generate, "compiled_step", made.compiled_step)
    monkeypatch.setattr(generate, "StaticSteps", made.begin)
    return made


def two_layers(family, **overrides):
    layers = "n_layer" if family == "gpt2" else "num_hidden_layers"
    return small_model(family, **{layers: 2}, **overrides)


def everyone(scale=1.0):
    return (
        condition("linear", RelativeGaussian(0.1 * scale), operators="linear"),
        condition("softmax", AbsoluteGaussian(0.2 * scale), operators="softmax", layers=[1]),
        condition("all", RelativeGaussian(0.05 * scale)),
    )


def decoded(model, conditions, compiles, prompts=PROMPTS, seed=SEED, draw=0, **limits):
    """Returns answers and close calls of the clean model and every condition; and the sessions."""
    apart = TakenApart(model)
    sessions = [Session(model, c.error_model, c.selection, seed, attest=False) for c in conditions]
    riders = [Rider("", None), *(Rider("", s, draw) for s in sessions)]
    boardings = [Boarding(r, apart.first_region(r.session)) for r in riders]
    named = [Prompt(f"s{n}", tuple(ids)) for n, ids in enumerate(prompts)]
    given = Limits(**{"max_new_tokens": COUNT} | limits)
    found = decode(model, named, boardings, given, apart.prompt_entries, compile_steps=compiles)
    return [[(a.ids, a.is_cut, a.close_calls) for a in answers] for answers in found], sessions


def with_ends(model):
    """Makes the model end its answers at different steps, and some not at all."""
    model.generation_config.eos_token_id = None
    clean = [one_row_answer(model, prompt, "", None, count=COUNT) for prompt in PROMPTS]
    model.generation_config.eos_token_id = sorted({clean[0][2], clean[-1][4], clean[2][3], 63})
    return model


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_answers_are_those_of_a_growing_cache_while_rows_end_and_batches_shrink(family, steps):
    model = with_ends(two_layers(family))
    growing, _ = decoded(model, everyone(), False)
    assert not steps.batches
    fixed, _ = decoded(model, everyone(), True)
    assert fixed == growing
    assert len({len(ids) for answers in fixed for ids, *_ in answers}) > 2
    assert steps.sizes == [(16, 64), (8, 64)]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.slow
def test_prompts_that_wait_come_in_when_half_of_the_rows_are_done(steps, monkeypatch):
    model = with_ends(two_layers("llama"))
    options = {"prompts": texts((3, 14, 1, 8, 5)), "rows": 8, "prompt_rows": 4}
    growing, _ = decoded(model, everyone(), False, **options)
    joins, join_rows = [], generate.join_rows
    monkeypatch.setattr(
        generate, "join_rows", lambda *given: (joins.append(1), join_rows(*given))[1]
    )
    fixed, _ = decoded(model, everyone(), True, **options)
    assert fixed == growing
    assert len(joins) > 1  # two waves fill the first batch; another comes in while rows are open
    assert set(steps.sizes) == {(8, 64)} and steps.graphs == 1


def test_nothing_about_a_step_changes_but_tokens_and_positions(steps):
    model = two_layers("llama")
    model.generation_config.eos_token_id = None
    decoded(model, everyone()[:1], True)
    (batch,) = steps.batches
    assert len(batch) == COUNT - 1
    prompt_lengths = torch.tensor([len(p) for p in PROMPTS])
    for n, given in enumerate(batch):
        assert given["attention_mask"] is batch[0]["attention_mask"]
        assert given["input_ids"].shape == given["position_ids"].shape == (8, 1)
        positions = given["position_ids"][:4, 0].sort().values
        assert torch.equal(positions, prompt_lengths.sort().values + n)
    assert torch.equal(batch[0]["attention_mask"][:, 14:], torch.ones(8, 50, dtype=torch.int64))
    assert steps.graphs == 1


def test_seeds_draws_and_scales_share_their_graphs(steps):
    model = two_layers("llama")
    model.generation_config.eos_token_id = None
    found = [
        decoded(model, everyone(scale), True, seed=seed, draw=draw)[0]
        for scale, seed, draw in [(1.0, 0, 0), (4.0, 1, 2)]
    ]
    assert steps.graphs == 1 and found[0] != found[1]
    assert found[1] == decoded(model, everyone(4.0), False, seed=1, draw=2)[0]


def test_doses_are_those_of_a_growing_cache_where_riders_end_as_a_whole(steps, monkeypatch):
    model = two_layers("llama")
    conditions = [condition(f"{s}", RelativeGaussian(s), operators="linear") for s in (0.1, 3.0, 5)]
    model.generation_config.eos_token_id = None
    endless, _ = decoded(model, conditions, False, prompts=PROMPTS[:1])
    model.generation_config.eos_token_id = endless[2][0][0][3]
    monkeypatch.setattr(generate, "_DONE_SHARE", 1 << 20)  # a growing batch drops them at once
    answers, growing = decoded(model, conditions, False, prompts=PROMPTS[:1])
    found, fixed = decoded(model, conditions, True, prompts=PROMPTS[:1])
    assert found == answers and len({len(ids) for ((ids, *_),) in answers[1:]}) > 1
    for mine, other in zip(fixed, growing, strict=True):
        assert mine.counts == other.counts
        for one, two in zip(mine.records, other.records, strict=True):
            torch.testing.assert_close(one.tallies, two.tallies, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_rows_that_are_done_count_for_nobody_at_the_ends_of_a_rider(steps, monkeypatch):
    model = with_ends(two_layers("llama"))
    seen, spans = [], generate.Ride.spans
    monkeypatch.setattr(
        generate.Ride, "spans", spans.setter(lambda r, s: (seen.append(s), spans.fset(r, s))[1])
    )
    decoded(model, everyone()[:2], True, prompts=PROMPTS[:3])
    for of_step in seen:
        assert [s.begin for s in of_step] == [0, *(s.end for s in of_step[:-1])]
    of_steps = [spans for spans in seen if spans[-1].end in (8, 16)]
    widths = [sum(s.end - s.begin for s in spans if s.session) for spans in of_steps]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) > 2


@pytest.mark.parametrize("family", ["gpt2", pytest.param("opt", marks=pytest.mark.slow)])
def test_answers_fill_the_context_and_rows_that_are_done_do_not_leave_it(family, steps):
    sizes = {"gpt2": "n_positions", "opt": "max_position_embeddings"}
    model = two_layers(family, **{sizes[family]: 16})
    model.generation_config.eos_token_id = None
    options = {"prompts": texts((16, 3, 14, 9, 15)), "max_new_tokens": 30, "context_length": 16}
    growing, _ = decoded(model, everyone()[:1], False, **options)
    fixed, _ = decoded(model, everyone()[:1], True, **options)
    assert fixed == growing
    assert [len(ids) for ids, *_ in fixed[0]] == [1, 14, 3, 8, 2]
    assert max(int(given["position_ids"].max()) for b in steps.batches for given in b) == 15


@pytest.mark.parametrize(
    ("family", "error_model"),
    [
        ("mistral", RelativeGaussian(0.1)),  # sliding windows
        ("qwen3_moe", RelativeGaussian(0.1)),  # experts
        ("llama", RoundTo("mxfp4", "weights")),
    ],
)
def test_what_a_batch_of_fixed_size_does_not_serve_runs_as_before(family, error_model, steps):
    model = two_layers(family)
    conditions = [
        condition("some", error_model, layers=[1], operators="linear", modules="self_attn")
    ]
    growing, _ = decoded(model, conditions, False)
    assert decoded(model, conditions, True)[0] == growing
    assert not steps.batches


@pytest.mark.slow
def test_few_sizes_are_compiled_and_others_run_as_before(steps, monkeypatch):
    monkeypatch.setattr(static_decoding, "_MOST_GRAPHS", 1)
    model = with_ends(two_layers("llama"))
    growing, _ = decoded(model, everyone(), False)
    assert decoded(model, everyone(), True)[0] == growing
    assert steps.sizes == [(16, 64)] and steps.graphs == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_compiled_runs_as_it_is_and_says_so(monkeypatch):
    def fail(graph, example_inputs):
        raise ValueError("no compiler here")

    torch.compiler.reset()
    monkeypatch.setattr(generate, "compiled_step", partial(compiled_step, backend=fail))
    model = two_layers("llama")
    growing, _ = decoded(model, everyone()[:1], False)
    with pytest.warns(NoisescopeWarning, match="no compiler here") as told:
        fixed, _ = decoded(model, everyone()[:1], True)
        again, _ = decoded(model, everyone()[:1], True)
    assert fixed == again == growing
    assert len(told) == 1


def test_an_error_in_a_step_leaves_the_model_without_hooks(steps, monkeypatch):
    model = two_layers("llama")
    monkeypatch.setattr(StaticSteps, "__call__", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoded(model, everyone()[:1], True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def static_of(model, cache, capacity):
    assert can_be_static(cache, model.config)
    return to_static(cache, model.config, capacity)


def test_unnamed_samples_meet_the_noise_of_a_growing_cache():
    model = two_layers("llama")
    ids, mask = torch.tensor([texts((6,))[0], [0, 0, *texts((4,), seed=1)[0]]]), torch.ones(2, 6)
    mask = mask.long()
    mask[1, :2] = 0
    position = mask.sum(dim=1, keepdim=True)
    found = []
    for is_fixed in (False, True):
        with plain_session(model, everyone()[2], 0, None) as session, torch.no_grad():
            cache = model(input_ids=ids, attention_mask=mask, use_cache=True).past_key_values
            noise = []
            if is_fixed:
                # What a copied cache holds is unknown, so it is filled by passes of its own.
                cache = StaticCache(config=model.config, max_cache_len=12)
                model(input_ids=ids, attention_mask=mask, past_key_values=cache)
            for n in range(3):
                width = 12 if is_fixed else 7 + n
                output = model(
                    input_ids=torch.full((2, 1), 5 + n),
                    attention_mask=torch.cat([mask, mask.new_ones(2, width - 6)], dim=1),
                    position_ids=position + n,
                    past_key_values=cache,
                )
                noise.append(output.logits)
            assert {record.rows for record in session.records} == {"token"}
        found.append(torch.cat(noise))
    torch.testing.assert_close(*found)


def test_caches_turn_static_and_back():
    model = two_layers("llama")
    with torch.no_grad():
        cache = model(input_ids=torch.tensor(texts((5, 5))), use_cache=True).past_key_values
        keys = [layer.keys.clone() for layer in cache.layers]
        static = static_of(model, cache, 64)
        assert static.layers[0].keys.shape[2] == 64
        back = to_dynamic(static, 5)
    assert all(map(torch.equal, keys, (layer.keys for layer in back.layers)))
    assert back.get_seq_length() == 5


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_windows_do_not_turn_static(family):
    model = two_layers(family)
    with torch.no_grad():
        cache = model(input_ids=torch.tensor(texts((5,))), use_cache=True).past_key_values
    assert not can_be_static(cache, model.config)


def test_sizes_are_few():
    assert [capacity_of(*given) for given in [(1, 1), (60, 4), (60, 5)]] == [64, 64, 128]
    assert [largest_bucket(*given) for given in [(44, 1 << 30), (3, 5), (7, 7)]] == [48, 5, 7]
    sizes = {n: bucket_of(n, 48) for n in (48, 25, 24, 17, 16, 9, 8, 1)}
    assert sizes == {48: 48, 25: 48, 24: 24, 17: 24, 16: 16, 9: 16, 8: 8, 1: 8}
    assert [bucket_of(1, largest) for largest in (1, 5, 7)] == [1, 5, 7]
