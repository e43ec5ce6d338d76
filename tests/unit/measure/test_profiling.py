"""A profile: when it stops, how sure it is, and which channel it finds; bad input."""

import numpy as np
import pytest
import torch
from helpers.more_models import more_model
from helpers.one_by_one import texts
from helpers.predicted import site_kl, texts_of
from helpers.small_models import small_model

from noisescope.errors import InputError, NoisescopeError
from noisescope.inject.effects import effect_of
from noisescope.measure import passes, profiling
from noisescope.measure.profiling import ProfileOptions, Texts, make_profile, relative_error
from noisescope.measure.taken_apart import TakenApart
from noisescope.noise import AbsoluteGaussian, Address, ErrorModel, RelativeGaussian

NOISE = [RelativeGaussian(0.05)]
GIVEN = texts_of(texts([8, 10, 12, 9]), prompt=2)


@pytest.fixture(scope="module")
def llama():
    return TakenApart(small_model("llama"))


# How sure.


def test_the_relative_error_is_that_of_a_mean():
    draws = np.array([1.0, 2.0, 4.0, 5.0])
    expected = np.sqrt(((draws - 3) ** 2).sum() / 3 / 4) / 3
    assert relative_error(draws) == pytest.approx(expected)
    assert np.isnan(relative_error(draws[:1]))
    assert np.isnan(relative_error(np.zeros(3)))


def errors_of(profile):
    return [relative_error(np.nanmean(site.kl_EKN[0], axis=1)) for site in profile.sites]


def test_it_stops_when_the_middle_site_is_known_well_enough(llama):
    loose, tight = (
        make_profile(llama, GIVEN, NOISE, options=ProfileOptions(label_error=error))
        for error in (0.2, 0.045)
    )
    assert np.median(errors_of(loose)) <= 0.2 and np.median(errors_of(tight)) <= 0.045
    assert loose.label_draws == 3 < tight.label_draws < 64
    # Draws are numbered: the first three are the same ones.
    for one, other in zip(loose.sites, tight.sites, strict=True):
        np.testing.assert_array_equal(one.kl_EKN, other.kl_EKN[:, :3])
    half = make_profile(
        llama, GIVEN, NOISE, options=ProfileOptions(label_draws=tight.label_draws // 2)
    )
    assert np.median(errors_of(half)) > 0.045
    capped = ProfileOptions(label_error=1e-6, most_draws=12)
    assert make_profile(llama, GIVEN, NOISE, options=capped).label_draws == 12


@pytest.mark.slow
def test_two_standard_errors_hold_the_truth_as_often_as_they_say(llama):
    """Sites share their draws, so it is runs that count: 40 of them, of 12 draws each.

    The truth is known to a fifth of a run's own error, which costs the intervals half a point.
    """
    truth = site_kl(make_profile(llama, GIVEN, NOISE, options=ProfileOptions(label_draws=250)))
    options = ProfileOptions(label_draws=12)
    runs = [make_profile(llama, GIVEN, NOISE, seed=n, options=options) for n in range(1, 41)]
    found = np.array([site_kl(run) for run in runs])
    errors = np.array([errors_of(run) for run in runs]) * found
    # Student's t with 11 degrees of freedom lies within two standard errors at 93 %.
    assert 0.88 < (np.abs(found - truth) < 2 * errors).mean() < 0.97
    # The error that is told is the spread that is there.
    assert np.median(errors.mean(axis=0) / found.std(axis=0, ddof=1)) == pytest.approx(1, abs=0.2)


def test_channel_errors_are_the_spread_between_passes(llama):
    options = ProfileOptions(label_draws=24)
    profile = make_profile(llama, GIVEN, NOISE, options=options, most_rows=4)
    site = next(s for s in profile.sites if s.name == "model.layers.0.mlp.up_proj:linear:0")
    others = [
        make_profile(llama, GIVEN, NOISE, seed=n, options=options, most_rows=4)
        for n in range(1, 13)
    ]
    sums = np.array(
        [next(s for s in p.sites if s.name == site.name).channels_ECD[0].sum(0) for p in others]
    )
    assert np.median(site.channel_errors_ED[0] / sums.std(axis=0, ddof=1)) == pytest.approx(
        1, abs=0.25
    )
    one = make_profile(llama, GIVEN, NOISE, options=ProfileOptions(label_draws=1), most_rows=4)
    assert np.isnan(one.sites[0].channel_errors_ED).all()


# Planted channels.

# Who writes the channel, who reads it, and in which of its columns; None: in the channel's own.
_MLP = ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", None)
# Heads of 8 channels; two query heads share a key-value head.
_GROUPED_VALUE = ("model.layers.1.self_attn.v_proj", "model.layers.1.self_attn.o_proj", (7, 15))
PLANTS = {
    "llama": _MLP,
    "qwen2": _MLP,
    "qwen3": _MLP,
    "mistral": _MLP,
    "gemma2": _MLP,
    "gemma3_text": _MLP,
    "phi3": ("model.layers.1.mlp.gate_up_proj", "model.layers.1.mlp.down_proj", (7,)),
    "mixtral": _GROUPED_VALUE,
    "qwen3_moe": _GROUPED_VALUE,
    "lfm2": ("model.layers.1.feed_forward.w3", "model.layers.1.feed_forward.w2", None),
    "gpt2": ("transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj", None),
    "gpt_neox": (
        "gpt_neox.layers.1.mlp.dense_h_to_4h",
        "gpt_neox.layers.1.mlp.dense_4h_to_h",
        None,
    ),
    "opt": ("model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2", None),
    "bloom": (
        "transformer.h.1.mlp.dense_h_to_4h",
        "transformer.h.1.mlp.dense_4h_to_h",
        None,
    ),
    "bert": (
        "bert.encoder.layer.1.attention.self.value",
        "bert.encoder.layer.1.attention.output.dense",
        None,
    ),
}
# Where gate and up are one projection, the channel of up comes after those of the gate.
PLANTED_AT = {"phi3": 48 + 7}
PLANTED = 7


@pytest.mark.parametrize("family", PLANTS)
def test_a_channel_that_is_read_a_hundred_times_is_the_top_channel(family):
    """Written as a hundredth and read a hundredfold: the model stays, absolute error in it grows.

    It costs 10,000 times as much. Relative error costs what it did where nothing nonlinear is in
    between; the next test plants what relative error sees.
    """
    model = more_model(family) if family in ("lfm2", "bloom") else small_model(family)
    writer, reader = (model.get_submodule(name) for name in PLANTS[family][:2])
    channel = PLANTED_AT.get(family, PLANTED)
    columns = list(PLANTS[family][2] or (channel,))
    is_conv1d = family == "gpt2"  # its weights are [in, out]
    with torch.no_grad():
        (writer.weight[:, channel] if is_conv1d else writer.weight[channel]).mul_(0.01)
        if is_conv1d:
            reader.weight[columns] *= 100
        else:
            reader.weight[:, columns] *= 100
        if writer.bias is not None:
            writer.bias[channel] *= 0.01
    options = ProfileOptions(label_draws=4, operators=("linear",))
    profile = make_profile(TakenApart(model), GIVEN, [AbsoluteGaussian(0.01)], options=options)
    site = next(s for s in profile.sites if s.name == f"{PLANTS[family][0]}:linear:0")
    by_channel = site.channels_ECD[0].sum(axis=0)
    second, top = np.sort(by_channel)[-2:]
    assert by_channel.argmax() == channel
    assert top > 100 * second


def test_a_large_constant_that_is_subtracted_again_is_found_by_relative_error_alone():
    """The model computes the same; only the values on the way are 100 times as large."""
    model = small_model("gpt_neox")
    clean = TakenApart(model)
    options = ProfileOptions(label_draws=8, operators=("linear",))
    noises = [RelativeGaussian(0.05), AbsoluteGaussian(0.01)]
    name = "gpt_neox.layers.1.attention.dense:linear:0"

    def profile_of(apart):
        made = make_profile(apart, GIVEN, noises, options=options)
        return next(s for s in made.sites if s.name == name).channels_ECD.sum(axis=1)

    before = profile_of(clean)
    layer = model.gpt_neox.layers[1]
    with torch.no_grad():
        layer.attention.dense.bias[PLANTED] += 100.0
        layer.mlp.dense_4h_to_h.bias[PLANTED] -= 100.0  # the two are added up
    after = profile_of(TakenApart(model))
    assert after[0].argmax() == PLANTED and after[0, PLANTED] > 100 * before[0, PLANTED]
    np.testing.assert_allclose(after[1], before[1], rtol=1e-2)
    others = np.arange(len(after[0])) != PLANTED
    np.testing.assert_allclose(after[0][others], before[0][others], rtol=1e-2)


# What it is made of.


def test_operators_restrict_it_and_leave_the_figures(llama):
    options = {"label_draws": 2}
    whole = make_profile(llama, GIVEN, NOISE, options=ProfileOptions(**options))
    some = make_profile(
        llama, GIVEN, NOISE, options=ProfileOptions(**options, operators=("linear",))
    )
    expected = {s.name: s.kl_EKN for s in whole.sites if s.operator == "linear"}
    assert [s.name for s in some.sites] == list(expected)
    for site in some.sites:
        np.testing.assert_allclose(site.kl_EKN, expected[site.name], rtol=1e-3)
    none = make_profile(llama, GIVEN, NOISE, options=ProfileOptions(**options, operators=("gelu",)))
    assert none.sites == () and none.without == ()


def test_samples_without_scored_tokens_are_unknown_and_change_nothing_else(llama):
    ids = texts([8, 5, 9])
    given = Texts(("a", "b", "c"), (ids[0][:2], ids[1], ids[2][:2]), (ids[0][2:], [], ids[2][2:]))
    profile = make_profile(llama, given, NOISE, options=ProfileOptions(label_draws=3))
    assert profile.tokens == (6, 0, 7)
    for site in profile.sites:
        assert np.isnan(site.kl_EKN[:, :, 1]).all()
        assert np.isfinite(site.kl_EKN[:, :, [0, 2]]).all()
        mean = site.kl_EKN[:, :, [0, 2]].mean()
        assert site.channels_ECD.sum() == pytest.approx(mean, rel=1e-3)


def test_a_site_that_some_samples_never_reach_does_nothing_there():
    sums = profiling._Sums((3, 3), 1)
    key = ("0", "m", "linear", 0)
    ones, zero_R = torch.ones(1, 2), torch.zeros(1, dtype=torch.int64)
    at = Address(0, 0, 0, zero_R, zero_R, zero_R)
    effect = effect_of(ones, ones, NOISE, at, "row", 1)
    sums.add([0], range(2), [{}, {}])
    sums.add([1], range(2), [{key: effect}, {key: effect}])
    (site,) = sums.site_profiles([key])
    np.testing.assert_allclose(site.kl_EKN, [[[0, 0.0025]] * 2], rtol=1e-6)
    assert site.channels_ECD.sum() == pytest.approx(0.00125)


def test_sites_that_nothing_is_read_from_are_named():
    profile = make_profile(
        TakenApart(more_model("qwen3_next")), GIVEN, NOISE, options=ProfileOptions(label_draws=1)
    )
    # The last state of the recurrence, for a next piece of text that does not come.
    assert profile.without == (
        "model.layers.0.linear_attn:matmul:5",
        "model.layers.2.linear_attn:matmul:5",
    )
    assert not {s.name for s in profile.sites} & set(profile.without)


# Memory, and bad input.


def test_where_memory_runs_out_rows_are_halved(llama, monkeypatch):
    rows = []
    real = passes.backward_effects

    def meagre(apart, watch, sequences, *rest):
        rows.append(len(sequences.names))
        if len(sequences.names) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(apart, watch, sequences, *rest)

    expected = site_kl(make_profile(llama, GIVEN, NOISE, options=ProfileOptions(label_draws=1)))
    monkeypatch.setattr(passes, "backward_effects", meagre)
    found = site_kl(make_profile(llama, GIVEN, NOISE, options=ProfileOptions(label_draws=1)))
    assert rows == [4, 2, 1, 1, 1, 1]
    np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_where_not_even_one_row_fits_the_user_hears_of_it(llama, monkeypatch):
    def never(*_):
        raise MemoryError

    monkeypatch.setattr(passes, "backward_effects", never)
    with pytest.raises(InputError, match="memory ran out in a backward pass over one sample"):
        make_profile(llama, GIVEN, NOISE)


def test_other_errors_come_through(llama, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(passes, "backward_effects", broken)
    with pytest.raises(RuntimeError, match="something else"):
        make_profile(llama, GIVEN, NOISE)


def test_an_error_model_of_which_nothing_is_known_is_refused(llama):
    class Unknown(ErrorModel):
        rounding = "nearest"

        def error(self, y_RD, at):
            return y_RD

    with pytest.raises(InputError, match="mean square of Unknown is not known"):
        make_profile(llama, GIVEN, [Unknown()])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label_draws": 0}, "label draws 0: at least 1"),
        ({"label_error": 0.0}, "label error 0.0: more than 0"),
        ({"label_error": float("nan")}, "label error nan: more than 0"),
        ({"most_draws": 2}, "most draws 2: at least 3"),
        ({"estimator": "dice"}, "estimator 'dice': 'signs' or 'labels' is needed"),
        ({"operators": ("linaer",)}, "unknown operator 'linaer'.*linear"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(NoisescopeError, match=message):
        ProfileOptions(**fields)


def test_whoever_waits_is_told(llama):
    told = []
    make_profile(
        llama,
        GIVEN,
        NOISE,
        options=ProfileOptions(label_draws=2),
        most_rows=2,
        tell=lambda what, share: told.append((what, share)),
    )
    assert told == [("predicting, draws 1-2", 0.0), ("predicting, draws 1-2", 0.5)]
