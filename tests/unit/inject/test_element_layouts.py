"""Channels and positions in whole models: padding, caches, heads, experts, shared batches."""

import itertools

import pytest
import torch
from helpers.injection import SEED
from helpers.one_by_one import (
    assert_close,
    condition,
    fork_scores,
    plain_scores,
    plain_session,
    sequences_of,
)
from helpers.small_models import small_model

from noisescope.errors import SelectionError
from noisescope.inject import Ride, Session, Span, inject
from noisescope.inject.dose import SiteRecord
from noisescope.inject.elements import Elements, find_mask
from noisescope.inject.rows import Rows
from noisescope.inject.sites import Site
from noisescope.noise import AbsoluteGaussian, RelativeGaussian

NAMES = ("a", "b")
IDS = torch.arange(14).reshape(2, 7) + 5
PAD = 0
RESTRICTIONS = {
    "channels": {"channels": [1, 3]},
    "without channels": {"without_channels": [0, 2]},
    "positions": {"positions": [0, 2, 5]},
    "both": {"channels": [1], "positions": [4, 5, 6, 7, 8]},
}


def text(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (length,), generator=generator)


def logits_of(model, ids, mask=None, **selection):
    mask = torch.ones_like(ids) if mask is None else mask
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad(), inject(model, RelativeGaussian(0.3), **selection):
        return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("restriction", RESTRICTIONS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3_text"])
def test_a_padded_sample_is_restricted_as_it_is_alone(family, side, restriction):
    model, selection = small_model(family), RESTRICTIONS[restriction]
    short, long = text(8, 1), text(21, 2)
    ids, mask = torch.full((2, 21), PAD), torch.zeros(2, 21, dtype=torch.int64)
    place = slice(13, None) if side == "left" else slice(8)
    ids[0, place], ids[1], mask[0, place], mask[1] = short, long, 1, 1
    batched = logits_of(model, ids, mask, **selection)
    for row, (sample, where) in enumerate([(short, place), (long, slice(None))]):
        alone = logits_of(model, sample[None], **selection)[0]
        with torch.no_grad():
            clean = model(input_ids=sample[None]).logits[0]
        assert (alone - clean).abs().max() > 1e-2
        close(batched[row, where], alone)


# A growing cache with each restriction; a fixed one, and sliding windows, with one of them.
CACHED = [("llama", "dynamic", restriction) for restriction in RESTRICTIONS]
CACHED += [("llama", "static", "both"), ("gemma3_text", "dynamic", "positions")]
CACHED += [("gemma3_text", "static", "both")]
CROSSED = set(itertools.product(("llama", "gemma3_text"), ("dynamic", "static"), RESTRICTIONS))


@pytest.mark.parametrize(
    ("family", "cache", "restriction"),
    [
        *CACHED,
        *(pytest.param(*c, marks=pytest.mark.slow) for c in sorted(CROSSED - set(CACHED))),
    ],
)
def test_cached_generation_is_restricted_as_a_rescore_is(family, cache, restriction):
    model, selection = small_model(family), RESTRICTIONS[restriction]
    ids, mask = torch.full((2, 6), PAD), torch.zeros(2, 6, dtype=torch.int64)
    for row, length in enumerate((3, 6)):
        ids[row, -length:], mask[row, -length:] = text(length, row), 1
    with torch.no_grad(), inject(model, RelativeGaussian(0.3), **selection):
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=14,
            min_new_tokens=14,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            cache_implementation=cache,
        )
    whole = torch.cat([mask, torch.ones(2, 14, dtype=torch.int64)], dim=1)
    rescored = logits_of(model, output.sequences, whole, **selection)
    close(torch.stack(output.logits, dim=1), rescored[:, -15:-1])


@pytest.mark.parametrize("position", [0, 3, 6])
def test_noise_at_a_position_changes_nothing_before_it(position):
    model = small_model("llama")
    with torch.no_grad():
        clean = model(input_ids=IDS).logits
    session = inject(model, RelativeGaussian(0.3), operators="linear", positions=position)
    with torch.no_grad(), session:
        noisy = model(input_ids=IDS).logits
    assert torch.equal(noisy[:, :position], clean[:, :position])
    assert (noisy[:, position] - clean[:, position]).abs().max() > 1e-2


def test_all_keys_of_a_head_are_meant_under_left_padding():
    """The first key's channel then lies below the first one of its head."""
    first_key_B = torch.tensor([0, -2])
    sample_BT = torch.tensor([[7], [8]]).expand(2, 3)
    rows = Rows(0, 0, sample_BT, torch.arange(3).expand(2, 3), first_key_B, 3)
    record = SiteRecord(Site("0", "m", "softmax", 0), True)
    value = torch.zeros(2, 4, 3, 3)
    at, _ = rows.address(value, "softmax", "keys", record.site.word)
    assert at.channel_R.min() < 0
    mask = find_mask(Elements(channels=(1, 2)), record, rows, value, "keys", at)
    expected = torch.tensor([False, True, True, False])[None, :, None, None].expand_as(value)
    assert mask.expand(-1, 3).reshape(value.shape).equal(expected)
    assert record.channels == 4


def test_unnamed_embeddings_have_positions_all_the_same():
    model = small_model("llama")
    embeds = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    session = inject(model, RelativeGaussian(0.3), operators="linear", positions=[4])
    with torch.no_grad():
        clean = model(inputs_embeds=embeds).logits
        with session:
            noisy = model(inputs_embeds=embeds).logits
    assert torch.equal(noisy[:, :4], clean[:, :4])
    assert not torch.equal(noisy[:, 4], clean[:, 4])


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_have_channels_but_no_positions(family, implementation):
    model = small_model(family, experts_implementation=implementation)
    hooks = [len(m._forward_hooks) for m in model.modules()]
    text = r"positions cannot be told at \S*experts\S*: no token is known for its rows of \[.*"
    with pytest.raises(SelectionError, match=text), torch.no_grad():
        with inject(model, RelativeGaussian(0.1), positions=0):
            model(input_ids=IDS)
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    with torch.no_grad():
        with inject(model, RelativeGaussian(0.1), modules="self_attn", positions=0):
            model(input_ids=IDS)
        session = inject(model, RelativeGaussian(0.1), modules="experts", channels=[2, 5])
        if implementation == "batched_mm":  # its products are [rows, channels, 1]
            text = r"channels cannot be told at \S*experts:bmm:0: an output of \[28, \d+, 1\] is"
            with pytest.raises(SelectionError, match=text), session:
                model(input_ids=IDS)
            return
        with session:
            model(input_ids=IDS)
    for record in (r for r in session.records if r.forward):
        assert record.dose().elements > 0
        assert record.dose().elements % 2 == 0
        assert record.dose().share_changed > 0.9


def test_channels_of_an_unknown_layout_of_heads_cannot_be_told():
    class Odd(torch.nn.Module):
        def forward(self, x):
            B, T, D = x.shape
            return torch.softmax(x.reshape(B, 1, T, 2, D // 2), -1)

    model = torch.nn.Sequential(Odd())
    text = r"channels cannot be told at 0:softmax:0: an output of \[2, 1, 3, 2, 4\] is in no known"
    for selection in ({"channels": 0}, {"without_channels": 0}):
        with (
            pytest.raises(SelectionError, match=text),
            inject(model, RelativeGaussian(0.1), **selection),
        ):
            model(torch.ones(2, 3, 8))


# Many conditions in one batch.

CONDITIONS = (
    condition("one", RelativeGaussian(0.3), channels=[2], operators="linear"),
    condition("others", AbsoluteGaussian(0.1), without_channels=[2], layers=[0, 2]),
    condition("heads", RelativeGaussian(0.3), channels=[0, 3], operators="softmax"),
    condition("late", RelativeGaussian(0.3), positions=[5, 6], layers=1),
    condition("all", RelativeGaussian(0.3)),
)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_conditions_with_other_channels_ride_in_one_batch(family, attention):
    model = small_model(family, attn_implementation=attention)
    sessions = [Session(model, c.error_model, c.selection, 7, attest=False) for c in CONDITIONS]
    riders = [None, *sessions]
    ride = Ride(model, sessions)
    ride.spans = [Span(s, 3 if s else 0, 2 * n, 2 * n + 2) for n, s in enumerate(riders)]
    ride.reader.names = NAMES * len(riders)
    with torch.no_grad(), ride:
        together = model(input_ids=IDS.repeat(len(riders), 1)).logits.split(2)
    with torch.no_grad():
        torch.testing.assert_close(together[0], model(input_ids=IDS).logits)
    for given, session, rows in zip(CONDITIONS, sessions, together[1:], strict=True):
        with torch.no_grad(), plain_session(model, given, 3, NAMES) as alone:
            expected = model(input_ids=IDS).logits
        torch.testing.assert_close(rows, expected, rtol=1e-5, atol=1e-5)
        assert session.counts == alone.counts
        assert {n: d.elements for n, d in session.doses().items()} == {
            n: d.elements for n, d in alone.doses().items()
        }
        session.check() if session._tracker.passes else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_riders_other_channels_are_clean_to_the_last_bit(dtype, rounding):
    """Seen at the last site of a layer's first projection, before anything mixes channels."""
    model = small_model("llama").to(dtype)
    site = "model.layers.0.self_attn.q_proj:linear"
    error_model = RelativeGaussian(0.2, rounding)
    selections = ({"channels": [1, 9]}, {"without_channels": [1, 9]}, {"positions": [2]}, {})
    given = [condition(str(n), error_model, sites=site, **s) for n, s in enumerate(selections)]
    sessions = [Session(model, c.error_model, c.selection, SEED, attest=False) for c in given]
    ride = Ride(model, sessions)
    ride.spans = [Span(s, 0, 2 * n, 2 * n + 2) for n, s in enumerate([None, *sessions])]
    ride.reader.names = NAMES * 5
    seen = []
    hook = model.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda module, args, output: seen.append(output.clone())
    )
    with torch.no_grad(), ride:
        model(input_ids=IDS.repeat(5, 1))
    hook.remove()
    clean, some, others, late, everything = seen[0].split(2)
    is_listed = torch.zeros(32, dtype=torch.bool)
    is_listed[[1, 9]] = True
    is_late = (torch.arange(7) == 2)[:, None]
    assert torch.equal(some, torch.where(is_listed, everything, clean))
    assert torch.equal(others, torch.where(is_listed, clean, everything))
    assert torch.equal(late, torch.where(is_late, everything, clean))
    assert [s.dose().elements for s in sessions] == [28, 420, 64, 448]


def test_positions_in_experts_cannot_ride_either():
    model = small_model("mixtral")
    given = condition("p", positions=[0])
    session = Session(model, given.error_model, given.selection, SEED, attest=False)
    ride = Ride(model, [session])
    ride.spans = [Span(session, 0, 0, 2)]
    ride.reader.names = NAMES
    with pytest.raises(SelectionError, match="positions cannot be told"), torch.no_grad(), ride:
        model(input_ids=IDS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scoring_forks_restrict_as_sessions_do(family):
    model = small_model(family)
    sequences = sequences_of((6, 11, 9))
    found, _ = fork_scores(model, sequences, CONDITIONS, draws=2)
    assert_close(found, plain_scores(model, sequences, CONDITIONS, draws=2), rel=1e-4, abs=1e-6)
