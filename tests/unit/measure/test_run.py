"""Measuring whole plans: pairing, order, batches, draws, and a model left as it was."""

import dataclasses
import math

import pytest
import torch
from helpers.model_dirs import as_loaded, loaded_small
from helpers.one_by_one import SEED, one_row_answer
from helpers.small_models import small_model

from noisescope.errors import DoseError, DoseWarning, InputError, SelectionError
from noisescope.inject import inject, make_selection
from noisescope.measure import CLEAN, Condition, Plan, greedy_answers, measure
from noisescope.noise import AbsoluteGaussian, RelativeGaussian
from noisescope.tasks import make_task, token_task

PROMPTS = [[(3 * i + j) % 60 + 4 for j in range(1 + i % 5)] for i in range(11)]
NOISE = RelativeGaussian(0.4)
NUMBERS = ("kl_nats", "kl_p95_nats", "kl_p99_nats", "nll_nats", "nll_change_nats")


def condition(name, error_model=NOISE, **selection):
    return Condition(name, error_model, make_selection(**selection))


def conditions():
    return (condition("L1", layers=1), condition("linear", operators="linear"))


def noise_notes(found):
    """The notes but those of answers: made-up answers never end, and are often close."""
    return [n for n in found.notes if "were cut at" not in n and "came within rounding" not in n]


def clean_task(loaded, count=6):
    """A task whose truths are the clean model's own answers: its accuracy is 1."""
    loaded.model.generation_config.eos_token_id = None
    answers = greedy_answers(loaded.model, PROMPTS, count, None)
    return token_task(PROMPTS, answers)


def test_records_come_clean_first_then_by_condition_draw_and_sample():
    loaded = loaded_small()
    found = measure(loaded, clean_task(loaded), Plan(conditions(), draws=2, batch_size=4))
    names = [str(i) for i in range(len(PROMPTS))]
    expected = [(CLEAN, 0, n) for n in names]
    expected += [(c, k, n) for c in ("L1", "linear") for k in range(2) for n in names]
    assert [(r.condition, r.draw, r.sample) for r in found.records] == expected


def test_clean_records_lose_nothing():
    loaded = loaded_small()
    found = measure(loaded, clean_task(loaded), Plan(conditions()))
    clean = [r for r in found.records if r.condition == CLEAN]
    assert len(clean) == len(PROMPTS)
    for record in clean:
        assert (record.kl_nats, record.nll_change_nats, record.top1_agreement) == (0.0, 0.0, 1.0)
        assert record.is_right is True and record.tokens == 6


@pytest.mark.parametrize(
    ("family", "kind"),
    [("llama", "answers"), ("qwen3", "texts"), ("gpt2", "texts"), ("gpt2", "context")],
)
def test_the_batch_size_changes_nothing(family, kind):
    size = {"n_positions": 9} if family == "gpt2" else {"max_position_embeddings": 9}
    loaded = as_loaded(small_model(family, **(size if kind == "context" else {})))
    task = clean_task(loaded, 4)
    if kind == "context":  # answers of different lengths end with the context
        loaded = dataclasses.replace(loaded, context_length=9)
        task = dataclasses.replace(task, max_new_tokens=50)
    if kind == "texts":
        texts = [{"prompt_ids": [*prompt, 5, 6]} for prompt in PROMPTS]
        task = make_task(texts)
    runs = [
        measure(loaded, task, Plan(conditions(), draws=2, seed=3, batch_size=size)).records
        for size in (4, None)
    ]
    assert len(runs[0]) == 5 * len(PROMPTS)
    for records in runs[1:]:
        for one, other in zip(runs[0], records, strict=True):
            for field in NUMBERS:
                assert getattr(one, field) == pytest.approx(
                    getattr(other, field), rel=1e-3, abs=1e-5
                )
            plain = dict.fromkeys(NUMBERS, 0.0)
            assert dataclasses.replace(one, **plain) == dataclasses.replace(other, **plain)
    if kind == "context":
        assert {r.tokens for r in runs[0]} == {9, 8, 7, 6, 5}


def test_a_record_holds_what_the_noisy_model_did_alone():
    loaded = loaded_small()
    task = clean_task(loaded)
    found = measure(loaded, task, Plan(conditions(), draws=2, seed=SEED, batch_size=5))
    record = next(r for r in found.records if (r.condition, r.draw, r.sample) == ("linear", 1, "7"))
    truth = [int(token) for token in task.samples[7].truth.split()]
    ids = torch.tensor([[*PROMPTS[7], *truth]])
    places = slice(len(PROMPTS[7]) - 1, -1)
    model = loaded.model
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0, places].double().log_softmax(-1)
        with inject(model, NOISE, operators="linear", seed=SEED, draw=1) as session:
            session.name_samples(["7"])
            log_q = model(input_ids=ids).logits[0, places].double().log_softmax(-1)
    noisy = one_row_answer(model, PROMPTS[7], "7", conditions()[1], 1, 6)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert record.kl_nats == pytest.approx(kl, rel=1e-4) != 0
    assert record.is_right == (noisy == truth)


def test_draws_and_seeds_are_different_noise_and_equal_ones_the_same():
    loaded = loaded_small()
    task = clean_task(loaded)

    def kls(seed):
        plan = Plan((condition("all"),), draws=2, seed=seed)
        records = measure(loaded, task, plan).records[len(PROMPTS) :]
        return [r.kl_nats for r in records]

    one = kls(1)
    assert one == kls(1)
    assert one != kls(2)
    assert one[: len(PROMPTS)] != one[len(PROMPTS) :]


def test_texts_are_scored_along_themselves_without_generating():
    loaded = loaded_small()
    loaded.model.generate = None  # calling it would raise
    texts = ["once upon a time", "the dog ran"]
    found = measure(loaded, make_task(texts), Plan(conditions()))
    ids = [loaded.tokenizer(text)["input_ids"] for text in texts]
    assert [r.tokens for r in found.records[:2]] == [len(row) - 1 for row in ids]
    assert all(r.is_right is None for r in found.records)
    nlls = []
    for row in ids:
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([row])).logits[0, :-1].double()
        nlls.append(torch.nn.functional.cross_entropy(logits, torch.tensor(row[1:])).item())
    assert found.clean_nll_nats == pytest.approx(sum(nlls) / 2, rel=1e-5)


def test_answers_are_decoded_and_scored_by_the_task():
    loaded = loaded_small()
    given = []

    def score(answer, sample):
        given.append((answer, sample.name))
        return sample.name == "1"

    task = make_task([{"prompt": "a b"}, {"prompt": "c"}], score, max_new_tokens=3)
    loaded.model.generation_config.eos_token_id = None
    found = measure(loaded, task, Plan(()))
    assert [r.is_right for r in found.records] == [False, True]
    prompts = [loaded.tokenizer(text)["input_ids"] for text in ("a b", "c")]
    expected = [
        loaded.tokenizer.decode(answer, skip_special_tokens=True)
        for answer in greedy_answers(loaded.model, prompts, 3, None)
    ]
    assert given == [(expected[0], "0"), (expected[1], "1")]


def test_witnesses_hold_the_dose_and_the_counts_of_each_condition():
    loaded = loaded_small()
    found = measure(loaded, clean_task(loaded), Plan(conditions(), batch_size=4))
    assert list(found.witnesses) == ["L1", "linear"]
    for witness in found.witnesses.values():
        dose = witness.dose()
        assert dose.relative_l2 == pytest.approx(0.4, rel=0.2)
        assert dose.relative_l2 == pytest.approx(dose.asked_relative_l2, rel=1e-3)
    regions = {name.split(":")[0].split(".")[2] for name in found.witnesses["L1"].counts}
    assert regions == {"1"}


def test_noise_of_scale_zero_is_the_clean_model():
    loaded = loaded_small()
    plan = Plan((condition("none", RelativeGaussian(0.0)),), draws=2)
    found = measure(loaded, clean_task(loaded), plan)
    assert len(found.records) == 3 * len(PROMPTS) and not noise_notes(found)
    assert all(r.kl_nats < 1e-12 and r.is_right for r in found.records)


def fingerprint_of(model):
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in model.modules()
    ]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return hooks, weights


def assert_unchanged(model, before):
    hooks, weights = before
    found_hooks, found = fingerprint_of(model)
    assert found_hooks == hooks and found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert not torch.overrides._get_current_function_mode_stack()


def test_the_model_is_left_as_it_was():
    loaded = loaded_small()
    task = clean_task(loaded)
    before = fingerprint_of(loaded.model)
    measure(loaded, task, Plan(conditions(), draws=2))
    assert_unchanged(loaded.model, before)


def test_the_model_is_left_as_it_was_after_an_error_inside():
    loaded = loaded_small()
    task = clean_task(loaded)
    before = fingerprint_of(loaded.model)
    calls = []

    def stop(answer, sample):
        calls.append(sample.name)
        if len(calls) > 15:
            raise RuntimeError("enough")
        return True

    with pytest.raises(RuntimeError, match="enough"):
        measure(loaded, dataclasses.replace(task, score=stop), Plan(conditions()))
    assert_unchanged(loaded.model, before)

    def interrupt(module, args, output):
        if torch.overrides._get_current_function_mode_stack():
            raise KeyboardInterrupt

    layer = loaded.model.model.layers[1]
    with layer.mlp.register_forward_hook(interrupt), pytest.raises(KeyboardInterrupt):
        measure(loaded, task, Plan(conditions()))
    assert_unchanged(loaded.model, before)


def test_progress_rises_from_unit_to_unit_to_the_end():
    loaded = loaded_small()
    told = []
    plan = Plan(conditions(), draws=60, generates=False)  # so many that two samples make a unit
    measure(loaded, clean_task(loaded, 1), plan, lambda *said: told.append(said))
    done = [n for _, n, _ in told]
    assert {total for _, _, total in told} == {6} and done == sorted(done) and done[-1] == 6
    assert set(range(1, 7)) <= set(done)


def test_a_model_that_predicts_no_next_token_is_refused():
    loaded = loaded_small("bert")
    with pytest.raises(InputError, match="BertForMaskedLM does not predict the next token"):
        measure(loaded, make_task(["a text"]), Plan(()))


def test_a_prompt_longer_than_the_context_is_refused_before_anything_runs():
    loaded = dataclasses.replace(loaded_small(), context_length=4)
    loaded.model.forward = None
    with pytest.raises(InputError, match="is 5 tokens long, the model takes at most 4"):
        measure(loaded, token_task(PROMPTS, [[1]] * len(PROMPTS)), Plan(conditions()))


def test_noise_that_rounding_erases_makes_the_result_void():
    loaded = as_loaded(small_model("llama").bfloat16())
    told = []
    tiny = condition("tiny", RelativeGaussian(1e-5), operators="linear")
    plan = Plan((tiny, condition("L1", layers=1)), batch_size=2)
    with pytest.raises(DoseError, match=r"no noise arrived in tiny: .*0 of .* elements changed"):
        measure(loaded, clean_task(loaded), plan, lambda *said: told.append(said))
    assert all(done < 1 for _, done, _ in told), "the first unit is enough to know"


def test_stochastic_rounding_lets_tiny_noise_arrive():
    loaded = as_loaded(small_model("llama").bfloat16())
    plan = Plan((condition("tiny", RelativeGaussian(1e-5, "stochastic"), operators="linear"),))
    found = measure(loaded, clean_task(loaded), plan)
    dose = found.witnesses["tiny"].dose()
    assert 0 < dose.share_changed < 0.05
    assert dose.relative_l2 >= dose.asked_relative_l2
    assert not noise_notes(found)


def test_a_weak_dose_is_told_once_for_all_its_conditions():
    loaded = as_loaded(small_model("llama").bfloat16())
    weak = RelativeGaussian(1e-3)
    names = [f"L{i}" for i in range(3)]
    plan = Plan(
        (
            *(condition(name, weak, layers=i) for i, name in enumerate(names)),
            condition("all", weak),
            condition("strong"),
        )
    )
    with pytest.warns(DoseWarning) as caught:
        found = measure(loaded, clean_task(loaded), plan)
    assert [str(w.message) for w in caught] == noise_notes(found)
    assert found.notes[0].startswith("under half of the noise arrived in L0, L1, L2 and 1 more (")
    assert "strong" not in found.notes[0]


@pytest.mark.parametrize("selection", [{"operators": "gelu"}, {"layers": 2, "operators": "relu"}])
def test_a_condition_that_never_fires_is_an_error_after_its_first_pass(selection):
    loaded = loaded_small()
    told = []
    plan = Plan((condition("void", **selection),), batch_size=1)
    with pytest.raises(SelectionError, match="never ran in the selection"):
        measure(loaded, clean_task(loaded), plan, lambda *said: told.append(said))
    assert all(done < 1 for _, done, _ in told)


def test_logits_that_overflow_are_told_and_their_kl_is_null():
    loaded = loaded_small()
    plan = Plan((condition("flood", AbsoluteGaussian(3e38), operators="linear"),))
    found = measure(loaded, clean_task(loaded), plan)
    broken = [r for r in found.records if not math.isfinite(r.kl_nats)]
    assert {r.condition for r in broken} == {"flood"}
    assert f"overflow in flood (flood: {len(broken)} of 11 records" in " ".join(found.notes)
    assert broken[0].as_json()["kl_nats"] is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draws": 0}, "draws 0: at least 1"),
        ({"batch_size": 0}, "batch size 0: at least 1"),
        ({"seed": -1}, "seed -1: accepted are 0 to 4294967295"),
        ({"seed": 1 << 32}, "seed 4294967296: accepted are 0 to 4294967295"),
        ({"conditions": (condition("a"), condition("a"))}, "two conditions are named 'a'"),
        ({"conditions": (condition("clean"),)}, "two conditions are named 'clean'"),
    ],
)
def test_a_plan_is_checked_when_made(fields, message):
    with pytest.raises(InputError, match=message):
        Plan(**{"conditions": (), **fields})
