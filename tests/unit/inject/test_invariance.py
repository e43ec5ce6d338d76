"""The error at a channel of a token of a sample is one number, however the model is run."""

import pytest
import torch
from helpers.more_models import more_model
from helpers.small_models import small_model

from noisescope.inject import inject
from noisescope.noise import RelativeGaussian

FAMILIES = (
    "llama", "qwen3", "gpt2", "opt", "gemma2", "gemma3_text", "phi3", "gpt_neox", "mistral",
)  # fmt: skip
# Four heads of width eight: lengths at which tokens, heads and channels could be taken for another.
LENGTHS = (4, 8)
SCALE, LONG = 0.05, 21
PAD = 0


def text(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (length,), generator=generator)


def logits_of(model, ids, mask=None, names=None, seed=0, draw=0, **selection):
    session = inject(model, RelativeGaussian(SCALE), seed=seed, draw=draw, **selection)
    session.name_samples(names)
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), session:
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions)
    return output.logits, session


def alone(model, ids, **options):
    return logits_of(model, ids[None], torch.ones_like(ids[None]), **options)[0][0]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def is_noisy(model, ids, result):
    with torch.no_grad():
        return (model(input_ids=ids[None]).logits[0] - result).abs().max() > 1e-2


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_meets_the_noise_of_its_samples_alone(family, side, names):
    model = small_model(family)
    texts = [text(length, seed) for seed, length in enumerate((*LENGTHS, LONG))]
    ids = torch.full((3, LONG), PAD)
    mask = torch.zeros(3, LONG, dtype=torch.int64)
    places = [slice(LONG - len(t), None) if side == "left" else slice(len(t)) for t in texts]
    for row, (sample, place) in enumerate(zip(texts, places, strict=True)):
        ids[row, place], mask[row, place] = sample, 1
    batched, session = logits_of(model, ids, mask, names)
    assert {line.rows for line in session.coverage()} == {"token"}
    for row, (sample, place) in enumerate(zip(texts, places, strict=True)):
        single = alone(model, sample, names=names and names[row : row + 1])
        assert is_noisy(model, sample, single)
        close(batched[row, place], single)


@pytest.mark.parametrize("names", [None, ("a", "b", "c")])
def test_the_order_of_the_rows_changes_nothing(names):
    model = small_model("llama")
    ids = torch.stack([text(9, seed) for seed in range(3)])
    order = [2, 0, 1]
    one, _ = logits_of(model, ids, names=names)
    other, _ = logits_of(model, ids[order], names=names and [names[i] for i in order])
    close(other, one[order])


def test_unnamed_samples_share_the_noise_of_what_they_share():
    model = small_model("llama")
    one, other = text(9), text(9)
    other[5] = (other[5] + 1) % 60
    first, second = alone(model, one), alone(model, other)
    close(first[:5], second[:5])
    named = alone(model, one, names=["a"]), alone(model, one, names=["b"])
    assert (named[0] - named[1]).abs().max() > 1e-2


@pytest.mark.parametrize("change", [{"seed": 1}, {"draw": 1}])
def test_another_seed_or_draw_is_another_noise(change):
    model = small_model("llama")
    assert (alone(model, text(9)) - alone(model, text(9), **change)).abs().max() > 1e-2


def generated(model, ids, mask, new_tokens, **options):
    session = inject(model, RelativeGaussian(SCALE))
    with torch.no_grad(), session:
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **options,
        )
    return output.sequences, torch.stack(output.logits, dim=1)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_generation_meets_the_noise_of_a_rescore_without_cache(family, cache):
    """Prompts of 3 and 6 tokens grow past 16, the window of the sliding ones."""
    model = small_model(family)
    ids, mask = torch.full((2, 6), PAD), torch.zeros(2, 6, dtype=torch.int64)
    for row, length in enumerate((3, 6)):
        ids[row, -length:], mask[row, -length:] = text(length, row), 1
    new_tokens = 14
    sequences, steps = generated(model, ids, mask, new_tokens, cache_implementation=cache)
    whole_mask = torch.cat([mask, torch.ones(2, new_tokens, dtype=torch.int64)], dim=1)
    rescored, _ = logits_of(model, sequences, whole_mask)
    close(steps, rescored[:, -new_tokens - 1 : -1])
    for row, length in enumerate((3, 6)):
        single = alone(model, sequences[row, 6 - length :])
        assert is_noisy(model, sequences[row, 6 - length :], single)
        close(steps[row], single[-new_tokens - 1 : -1])


def test_latent_attention_meets_the_noise_of_the_cached_tokens_at_every_step():
    """It keeps latents, and projects those of all tokens again when a new one comes."""
    model = more_model("deepseek_v3")
    ids = text(9)[None]
    with torch.no_grad(), inject(model, RelativeGaussian(0.1), modules="*kv_b_proj") as session:
        session.name_samples(["a"])
        whole = model(input_ids=ids, use_cache=False).logits
        output, steps = model(input_ids=ids[:, :6], use_cache=True), []
        for n in range(6, 9):
            cache = output.past_key_values
            output = model(input_ids=ids[:, n : n + 1], past_key_values=cache, use_cache=True)
            steps.append(output.logits)
        assert {record.rows for record in session.records} == {"token"}
    close(torch.cat(steps, dim=1), whole[:, 6:])


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])  # has no fused one
def test_written_out_and_fused_attention_meet_the_same_noise(family):
    fused = small_model(family, attn_implementation="sdpa")
    eager = small_model(family, attn_implementation="eager")
    for length in LENGTHS:
        close(alone(eager, text(length)), alone(fused, text(length)))


@pytest.mark.parametrize("operator", ["matmul", "softmax", "rms_norm", "linear", "embedding"])
def test_one_operator_alone_is_invariant_to_padding(operator):
    """At T = H = D of the heads, where every axis looks like every other."""
    model = small_model("qwen3", num_attention_heads=8, num_key_value_heads=8, head_dim=8)
    sample = text(8)
    ids = torch.cat([torch.full((3,), PAD), sample])[None]
    mask = (torch.arange(11) > 2).long()[None]
    padded, _ = logits_of(model, ids, mask, operators=operator)
    single = alone(model, sample, operators=operator)
    assert is_noisy(model, sample, single)
    close(padded[0, 3:], single)


@pytest.mark.parametrize("k", [1, 3])
def test_a_head_that_computes_the_last_tokens_alone_meets_their_noise(k):
    model = small_model("llama")
    ids = text(9)[None]
    with torch.no_grad(), inject(model, RelativeGaussian(SCALE), layers="head"):
        all_logits = model(input_ids=ids).logits
        last = model(input_ids=ids, logits_to_keep=k).logits
    close(last, all_logits[:, -k:])


def test_a_head_that_computes_chosen_tokens_meets_their_noise():
    model = small_model("llama")
    ids, kept = text(9)[None], torch.tensor([1, 6, 2])
    with torch.no_grad(), inject(model, RelativeGaussian(SCALE), layers="head"):
        all_logits = model(input_ids=ids).logits
        some = model(input_ids=ids, logits_to_keep=kept).logits
    close(some, all_logits[:, kept])


@pytest.mark.parametrize("names", [None, ("a",) * 3 + ("b",) * 3])
def test_beam_search_needs_names_and_says_so(names):
    """Ten steps of three beams reorder them; named, every beam meets its sample's noise."""
    model = small_model("llama")
    ids = torch.stack([text(4, seed) for seed in range(2)])
    session = inject(model, RelativeGaussian(SCALE))
    session.name_samples(names)
    with torch.no_grad(), session:
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            num_beams=3,
            max_new_tokens=10,
            min_new_tokens=10,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
    rows = {line.rows for line in session.coverage()}
    assert rows == ({"row"} if names is None else {"token"})
    if names is not None:
        rescored, _ = logits_of(model, output.sequences, names=("a", "b"))
        scores = rescored[:, 3:-1].log_softmax(-1).gather(2, output.sequences[:, 4:, None])
        close(scores.sum((1, 2)) / 10, output.sequences_scores)


def test_gradients_are_invariant_to_padding():
    """Transposed keys too: their positions lie on the last axis."""
    model = small_model("llama", attn_implementation="eager")
    sample = text(8)

    def gradient(ids, mask, real):
        embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        session = inject(model, RelativeGaussian(0.3), phases="backward", layers=[0, 1])
        session.name_samples(["a"])
        with session:
            logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).logits
            logits[:, real].cos().sum().backward()
        return embeds.grad[0, real]

    alone_ = gradient(sample[None], torch.ones(1, 8, dtype=torch.int64), slice(0, None))
    ids = torch.cat([torch.full((3,), PAD), sample])[None]
    padded = gradient(ids, (torch.arange(11) > 2).long()[None], slice(3, None))
    torch.testing.assert_close(padded, alone_, rtol=1e-3, atol=1e-3 * float(alone_.abs().max()))


def test_bfloat16_meets_the_noise_of_float32_and_nearly_its_dose():
    model = small_model("llama")
    wide, wide_session = logits_of(model, text(9)[None], operators="linear")
    narrow, session = logits_of(model.bfloat16(), text(9)[None], operators="linear")
    assert session.dose().asked_relative_l2 == pytest.approx(SCALE, rel=0.05)
    assert session.dose().relative_l2 == pytest.approx(wide_session.dose().relative_l2, rel=0.02)
    other, _ = logits_of(model, text(9)[None], operators="linear", seed=1)
    distance = (narrow - wide).norm()
    assert distance < 0.5 * (other - wide).norm()


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_table_of_positions_read_once_for_the_batch_meets_every_samples_noise(family):
    model = small_model(family)
    ids = torch.stack([text(9, seed) for seed in range(2)])
    options = {"layers": "embed", "names": ["a", "b"]}
    both, session = logits_of(model, ids, **options)
    single, _ = logits_of(model, ids[1:], layers="embed", names=["b"])
    assert is_noisy(model, ids[1], single[0])
    close(both[1:], single)
    assert {line.rows for line in session.coverage()} == {"token"}


def test_mixed_experts_are_noisy_and_reported_as_rows():
    model = small_model("mixtral")
    _, session = logits_of(model, text(9)[None])
    rows = {line.operator: line.rows for line in session.coverage()}
    assert rows["linear"] == "row"
    assert rows["matmul"] == "token"
