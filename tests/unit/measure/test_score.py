"""Scoring: shapes of batches, models that cannot be taken apart, chunks of logits, no tokens."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from helpers.more_models import MORE, more_model, toy_model
from helpers.one_by_one import (
    CPU,
    assert_close,
    condition,
    fork_scores,
    plain_logits,
    plain_scores,
    sequences_of,
    texts,
)
from helpers.small_models import small_model

from noisescope.measure import make_sequences, token_metrics
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import RelativeGaussian

CONDITIONS = (
    condition("L0", layers=0),
    condition("L1-2", layers=[1, 2]),
    condition("embed", layers="embed"),
    condition("head", RelativeGaussian(0.5), layers="head"),
    condition("all", RelativeGaussian(0.05)),
)


@pytest.mark.parametrize("lengths", [(9,), (20,), (3, 3), (4, 20, 9, 2, 17)])
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gpt2", *MORE])
def test_batches_of_any_shape_score_as_each_condition_alone(family, lengths):
    model = more_model(family) if family in MORE else small_model(family)
    sequences = sequences_of(lengths, prompts=1)
    found, _ = fork_scores(model, sequences, CONDITIONS)
    assert_close(found, plain_scores(model, sequences, CONDITIONS))


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "opt", "gpt_neox"])
def test_heads_tied_to_the_embedding_or_not(family, is_tied):
    model, sequences = small_model(family, tie_word_embeddings=is_tied), sequences_of((9, 4))
    found, _ = fork_scores(model, sequences, CONDITIONS)
    assert_close(found, plain_scores(model, sequences, CONDITIONS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    model, sequences = small_model("llama").to(dtype), sequences_of((9, 4))
    rounding = condition("stochastic", RelativeGaussian(0.01, "stochastic"), layers=1)
    found, _ = fork_scores(model, sequences, [*CONDITIONS, rounding])
    expected = plain_scores(model, sequences, [*CONDITIONS, rounding])
    # In short formats a sum in another order moves a state by a whole unit.
    rel, abs_ = (1e-9, 1e-12) if dtype == torch.float64 else (0.25, 2e-3)
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.kl_nats == pytest.approx(other.kl_nats, rel=rel, abs=abs_)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_row_alone_scores_what_it_does_among_others(family):
    model, ids = small_model(family), texts((12, 5, 9))
    sequences = make_sequences(["a", "b", "c"], [t[:2] for t in ids], [t[2:] for t in ids], CPU)
    found, _ = fork_scores(model, sequences, CONDITIONS)
    for row, (name, text) in enumerate(zip("abc", ids, strict=True)):
        alone = make_sequences([name], [text[:2]], [text[2:]], CPU)
        expected = plain_scores(model, alone, CONDITIONS)
        assert_close([rows[row : row + 1] for rows in found], expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 6, 7, 12, 1 << 20])
@pytest.mark.parametrize("logits_bytes", [1, 1 << 15, 1 << 28])
def test_no_limit_changes_a_score_and_every_limit_is_kept(rows, logits_bytes):
    model, sequences = small_model("llama"), sequences_of((9, 4, 7))
    apart, seen = TakenApart(model), []
    assert apart.can_share
    with model.model.layers[2].register_forward_hook(lambda m, a, out: seen.append(len(out))):
        found, _ = fork_scores(
            model, sequences, CONDITIONS, 2, apart, rows, logits_bytes=logits_bytes
        )
    assert_close(found, plain_scores(model, sequences, CONDITIONS, draws=2))
    assert max(seen) <= max(rows, 3)


@pytest.mark.parametrize("kind", ["plain", "mixes rows", "scales by rows", "knows the batch"])
def test_a_model_whose_layers_cannot_be_shared_runs_its_conditions_one_by_one(kind):
    model, sequences = toy_model(kind), sequences_of((9, 4, 7))
    apart = TakenApart(model)
    assert apart.halves is None, "it is its own inner model"
    assert apart.can_share == (kind == "plain")
    conditions = [condition(f"L{n}", layers=n) for n in range(3)] + [condition("all")]
    found, _ = fork_scores(model, sequences, conditions, draws=2, apart=apart)
    assert_close(found, plain_scores(model, sequences, conditions, draws=2))


def test_a_model_without_known_layers_is_one_region():
    model, sequences = small_model("llama"), sequences_of((9, 4, 7))
    model.model.blocks = model.model.layers  # a name that no family has
    del model.model.layers
    type(model.model).layers = property(lambda self: self.blocks)
    try:
        model.config.model_type = "unknown"
        apart = TakenApart(model)
        assert apart.regions.n_layers == 0 and apart.halves is None
        conditions = [condition("all", RelativeGaussian(0.05)), condition("linear")]
        found, _ = fork_scores(model, sequences, conditions, apart=apart)
        assert_close(found, plain_scores(model, sequences, conditions))
    finally:
        del type(model.model).layers


@pytest.mark.parametrize("places", [("cpu", "disk", "cpu"), ("cpu", "cpu", "disk"), ("disk",) * 3])
def test_a_model_dispatched_over_devices_scores_as_it_does_whole(places, tmp_path):
    whole, sequences = small_model("llama"), sequences_of((9, 4, 7))
    expected = plain_scores(whole, sequences, CONDITIONS)
    device_map = {f"model.layers.{n}": place for n, place in enumerate(places)}
    device_map |= {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": places[2]}
    device_map["model.rotary_emb"] = "cpu"
    model = dispatch_model(
        small_model("llama"), device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    before = hooks_of(model)
    apart = TakenApart(model)
    assert apart.can_share and apart.halves is not None
    found, _ = fork_scores(model, sequences, CONDITIONS, apart=apart)
    assert_close(found, expected)
    assert hooks_of(model) == before
    with (
        model.model.layers[1].register_forward_hook(stop),
        pytest.raises(KeyboardInterrupt),
    ):
        fork_scores(model, sequences, CONDITIONS, apart=apart)
    assert hooks_of(model) == before


def stop(module, args, output):
    raise KeyboardInterrupt


def hooks_of(model):
    return [
        (id(m), len(m._forward_hooks), len(m._forward_pre_hooks), m.__dict__.get("forward"))
        for m in model.modules()
    ]


def test_percentiles_are_those_of_numpy_over_a_rows_tokens():
    model, sequences = small_model("llama"), sequences_of((40, 4, 3, 2))
    given = condition("L1", layers=1)
    found, _ = fork_scores(model, sequences, [given])
    clean, noisy = (plain_logits(model, sequences, c)[0] for c in (None, given))
    kl = token_metrics(clean, noisy, sequences.label_N).kl_nats.numpy()
    for score, part in zip(found[1], np.split(kl, np.cumsum(sequences.counts)[:-1]), strict=True):
        if len(part):
            p95, p99 = np.percentile(part, [95, 99])
            assert (score.kl_p95_nats, score.kl_p99_nats) == pytest.approx((p95, p99), rel=1e-5)
    assert found[1][0].kl_p99_nats > found[1][0].kl_p95_nats > found[1][0].kl_nats
    assert found[1][3].tokens == 0 and math.isnan(found[1][3].kl_p95_nats)


@pytest.mark.parametrize("riders", [1, 7, 40])
@pytest.mark.parametrize("together", [16, 50, 1000])
def test_logits_of_all_rows_never_exist_at_once(riders, together):
    model, sequences = small_model("llama"), sequences_of((30, 20, 25))
    sizes = []
    given = condition("L1", layers=1)
    apart = TakenApart(model)
    assert apart.can_share
    with model.lm_head.register_forward_hook(lambda m, a, out: sizes.append(out.numel())):
        fork_scores(model, sequences, [given], riders, apart, logits_bytes=28 * 64 * together)
    assert max(sizes) <= 64 * together
    assert sum(sizes) >= 64 * len(sequences.label_N) * (1 + riders) > 4 * max(sizes) or (
        together == 1000
    )


@pytest.mark.parametrize("answers", [[[], [8, 9]], [[], []]])
def test_answers_without_tokens_are_nan_and_the_others_are_not(answers):
    sequences = make_sequences(["a", "b"], [[5, 6], [7]], answers, CPU)
    for rows in fork_scores(small_model("llama"), sequences, CONDITIONS[:2])[0]:
        nothing, other = rows
        assert nothing.tokens == 0 and all(math.isnan(v) for v in astuple(nothing)[1:])
        assert other.tokens == len(answers[1])
        assert math.isnan(other.kl_nats) == (not answers[1])


def test_the_clean_model_loses_nothing_to_itself():
    (rows,), _ = fork_scores(small_model("llama"), sequences_of((9, 4)), [])
    for score in rows:
        assert (score.kl_nats, score.nll_change_nats, score.top1_agreement) == (0.0, 0.0, 1.0)


def test_sequences_hold_the_place_that_predicts_each_token():
    sequences = make_sequences(["a", "b"], [[5, 6], [7]], [[8, 9], [10]], CPU)
    assert sequences.ids_BT.tolist() == [[5, 6, 8, 9], [7, 10, 0, 0]]
    assert sequences.mask_BT.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert sequences.row_N.tolist() == [0, 0, 1] and sequences.before_N.tolist() == [1, 2, 0]
    assert sequences.label_N.tolist() == [8, 9, 10] and sequences.counts == (2, 1)


def test_the_last_token_may_lie_one_beyond_the_context():
    model = small_model("gpt2", n_positions=6)
    answer = [7, 8, 9, 10, 11]
    sequences = make_sequences(["a"], [[5, 6]], [answer], CPU, context_length=6)
    assert sequences.ids_BT.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert sequences.label_N.tolist() == answer
    assert_close(
        fork_scores(model, sequences, CONDITIONS)[0], plain_scores(model, sequences, CONDITIONS)
    )
