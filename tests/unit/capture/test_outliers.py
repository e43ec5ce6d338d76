"""Planted outlier channels and massive activations are found, in every family, and nothing else."""

import numpy as np
import pytest
import torch
from helpers.more_models import MORE, more_model, toy_model
from helpers.shared import shared_path
from helpers.small_models import FAMILIES, small_model
from transformers import AutoModelForCausalLM

from noisescope.capture import ActivationCapture, find_massive, find_outliers
from noisescope.capture.rows import Labels
from noisescope.capture.stream import Stream
from noisescope.errors import InputError

EVERY = [*FAMILIES, *MORE, "toy"]
IDS = torch.randint(3, 64, (4, 24), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[0, :5] = MASK[2, :9] = 0
CHANNEL = 7


def model_of(family):
    if family == "toy":
        return toy_model()
    return more_model(family) if family in MORE else small_model(family)


def capture_of(model, patterns=None):
    with ActivationCapture(model, patterns) as capture, torch.no_grad():
        for batch in (slice(0, 2), slice(2, 4)):
            model(input_ids=IDS[batch], attention_mask=MASK[batch])
    return capture


def make_loud(module, factor):
    """Scales one output channel of a projection, or of every expert of a mixture."""
    with torch.no_grad():
        if hasattr(module, "experts"):
            module.experts.down_proj[:, CHANNEL] *= factor
        elif hasattr(module, "nf"):
            module.weight[:, CHANNEL] *= factor
        else:
            module.weight[CHANNEL] *= factor
        if getattr(module, "bias", None) is not None:
            module.bias[CHANNEL] *= factor


def reported(capture):
    outliers = capture.detect_outliers()
    loud = {(name, c) for name, found in outliers.items() for c in found["outlier_channels"]}
    massive = {(n, m.channel) for n, found in capture.massive_activations().items() for m in found}
    assert set(outliers) == set(capture.massive_activations()) == set(capture.modules)
    return loud, massive


@pytest.mark.parametrize("family", EVERY)
def test_sound_models_report_nothing(family):
    assert reported(capture_of(model_of(family))) == (set(), set())


@pytest.mark.parametrize("family", EVERY)
def test_a_planted_outlier_channel_is_found_and_nothing_else(family):
    model = model_of(family)
    *_, name = ActivationCapture(model, None).modules
    make_loud(model.get_submodule(name), 100)
    capture = capture_of(model)
    assert reported(capture) == ({(name, CHANNEL)}, set())
    found = capture.detect_outliers()[name]
    magnitude = capture.statistics[name].mean_abs
    assert found["num_outliers"] == 1
    assert found["max_ratio"] == pytest.approx(magnitude[CHANNEL] / np.median(magnitude))
    assert found["max_ratio"] > 30


class Explode:
    """A hook that makes one value of the second batch large, at row 0 and column 13."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self, module, args, output):
        self.calls += 1
        if self.calls == 2:
            output = output.clone()
            output.view(2, 24, -1)[0, 13, CHANNEL] = self.value
        return output


@pytest.mark.parametrize("family", EVERY)
def test_a_planted_massive_activation_is_found_with_its_place(family):
    model = model_of(family)
    *_, name = ActivationCapture(model, None).modules
    typical = capture_of(model).statistics[name].typical_magnitude()
    model.get_submodule(name).register_forward_hook(Explode(-5000 * typical))
    capture = capture_of(model)
    loud, massive = reported(capture)
    assert massive == {(name, CHANNEL)}
    # By the plan's definition one value this large makes its channel an outlier too.
    assert loud == {(name, CHANNEL)}
    (found,) = capture.massive_activations()[name]
    place = (found.call, found.row, found.position, found.token_id, found.count)
    assert place == (1, 0, 13 - 9, int(IDS[2, 13]), 1)
    assert found.value == pytest.approx(-5000 * typical)
    assert found.ratio == pytest.approx(5000, rel=0.01)


def test_a_token_that_explodes_by_its_weights_is_found_in_the_residual_stream():
    model = small_model("llama")
    ids = IDS.clone()
    ids[1, 3] = 2  # a token that stands nowhere else
    with torch.no_grad():
        model.model.embed_tokens.weight[2, CHANNEL] = 3e3
    with ActivationCapture(model, "model.layers") as capture, torch.no_grad():
        model(input_ids=ids)
    for found in capture.massive_activations().values():
        assert [(m.row, m.position, m.token_id, m.channel) for m in found] == [(1, 3, 2, CHANNEL)]


def statistics_of(x, **labels):
    stream = Stream(x.shape[1], x.device)
    label_N4 = torch.zeros(len(x), 4, dtype=torch.int64)
    label_N4[:, 2] = torch.arange(len(x))
    stream.update(x, Labels(torch.ones(len(x), dtype=torch.bool), label_N4))
    return stream.statistics()


def test_gaussian_activations_report_nothing():
    rng = np.random.default_rng(5)
    generator = torch.Generator().manual_seed(5)
    # Small ones more often: they vary most and cost least.
    sizes = ([20, 16] * np.array([100, 64]) ** (rng.random((1000, 2)) ** 2)).astype(int)
    sizes[:4] = [(20, 16), (20, 1024), (2000, 16), (2000, 1024)]
    alarms = 0
    for tokens, channels in sizes.tolist():
        x = torch.randn(tokens, channels, generator=generator) * 10 ** rng.uniform(-3, 3)
        found = statistics_of(x)
        loud = find_outliers(found.mean_abs)["num_outliers"]
        alarms += loud > 0 or len(find_massive(found)) > 0
    assert alarms <= 50


def test_a_lower_threshold_reports_no_gaussian_either():
    generator = torch.Generator().manual_seed(6)
    found = [statistics_of(torch.randn(500, 200, generator=generator)) for _ in range(20)]
    assert not any(find_massive(s, threshold=15) for s in found)
    # Values of 4 times the median there are, but none of 10 times its own channel's.
    assert not any(find_massive(s, threshold=4) for s in found)


def test_massive_values_are_listed_largest_first_and_counted_where_not_listed():
    x = torch.randn(300, 20, generator=torch.Generator().manual_seed(7))
    places = [10, 20, 30, 40, 50, 60]
    x[places, 3] = torch.tensor([5.0, -9.0, 6.0, 7.0, 8.0, 2.0]) * 1e3
    x[99, 5] = 9.5e3
    found = find_massive(statistics_of(x))
    assert [(m.channel, m.position) for m in found] == [(5, 99), (3, 20), (3, 50), (3, 40), (3, 30)]
    assert [m.count for m in found] == [1, 6, 6, 6, 6]
    median = np.median(np.abs(x.numpy()))
    assert found[0].ratio == pytest.approx(9.5e3 / median, rel=0.061)


def test_a_loud_channel_hides_no_massive_activation_and_is_none():
    x = torch.randn(1000, 20, generator=torch.Generator().manual_seed(8))
    x[:, 2] *= 5000
    x[44, 11] = 3000
    assert [(m.channel, m.position) for m in find_massive(statistics_of(x))] == [(11, 44)]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_neither_definition_depends_on_the_unit(scale):
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    x[7, 7] = 2000
    x[:, 9] *= 40
    found = statistics_of(x * scale)
    assert find_outliers(found.mean_abs)["outlier_channels"] == [9]
    assert [m.channel for m in find_massive(found)] == [7]


@pytest.mark.parametrize(
    ("magnitudes", "expected"),
    [
        ([1, 2, 3, 20, 21], (0, 7.0, [])),
        ([1, 1, 1, 10], (0, 10.0, [])),  # more than the threshold, not equal to it
        ([1, 1, 1, 10.5, 30], (2, 30.0, [3, 4])),
        ([1, 2, 3, 4, 30], (0, 10.0, [])),
        ([0, 0, 0, 0, 1, 1, 50], (1, 50.0, [6])),  # dead channels are not compared with
        ([np.nan, 1, 1, 40], (1, 40.0, [3])),
    ],
)
def test_outliers_follow_the_definition(magnitudes, expected):
    found = find_outliers(magnitudes)
    assert (found["num_outliers"], found["max_ratio"], found["outlier_channels"]) == expected
    assert type(found["outlier_channels"]) is list


def test_the_median_of_an_even_number_is_between_the_middle_two():
    assert find_outliers([1, 3, 100, 0.5])["max_ratio"] == 50


@pytest.mark.parametrize("magnitudes", [[], [0, 0], [np.nan, np.nan]])
def test_without_magnitudes_there_is_no_ratio(magnitudes):
    found = find_outliers(magnitudes)
    assert np.isnan(found["max_ratio"])
    assert found["num_outliers"] == 0


@pytest.mark.parametrize("threshold", [0, -1, float("nan"), float("inf"), "ten", None, True])
def test_a_threshold_that_is_none_is_refused(threshold):
    with pytest.raises(InputError, match=r"give a finite number above 0"):
        find_outliers([1, 2], threshold)
    with pytest.raises(InputError, match=r"give a finite number above 0"):
        find_massive(statistics_of(torch.randn(3, 3)), threshold)


def test_a_lower_threshold_finds_what_a_higher_passes_over():
    model = small_model("qwen2")
    make_loud(model.model.layers[0].mlp.down_proj, 8)
    capture = capture_of(model, ["mlp.down_proj"])
    name = "model.layers.0.mlp.down_proj"
    assert CHANNEL in capture.detect_outliers(threshold=3)[name]["outlier_channels"]
    assert capture.detect_outliers(threshold=50)[name]["num_outliers"] == 0


@pytest.mark.parametrize("name", ["stories260K", "gpt-nano-sort"])
def test_small_trained_models_are_captured_and_their_figures_are_sane(name):
    model = AutoModelForCausalLM.from_pretrained(shared_path(f"models/{name}"))
    ids = torch.randint(0, model.config.vocab_size, (2, 5))
    with ActivationCapture(model, None) as capture, torch.no_grad():
        model(input_ids=ids)
    assert len(capture.modules) == 2 * model.config.num_hidden_layers
    for found in capture.statistics.values():
        assert (found.mean_abs <= found.rms * (1 + 1e-12)).all()
        assert (found.rms <= found.max_abs * (1 + 1e-12)).all()
