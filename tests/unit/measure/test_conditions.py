"""Windows of layers: every layer is covered, whatever the stride."""

import itertools

import pytest

from noisescope.errors import InputError
from noisescope.measure import layer_windows, window_name

SIZES = [
    (layers, window, stride)
    for layers, window, stride in itertools.product(range(1, 13), range(1, 13), range(1, 6))
    if window <= layers
]


@pytest.mark.parametrize(("layers", "window", "stride"), SIZES)
def test_windows_have_their_size_and_rise_to_the_last_layer(layers, window, stride):
    windows = layer_windows(layers, window, stride)
    assert all(w == tuple(range(w[0], w[0] + window)) for w in windows)
    starts = [w[0] for w in windows]
    assert starts[0] == 0 and windows[-1][-1] == layers - 1
    assert starts == sorted(set(starts))
    # Only the last step may be shorter, where the window was moved back.
    steps = [b - a for a, b in itertools.pairwise(starts)]
    assert all(step == stride for step in steps[:-1]) and all(0 < s <= stride for s in steps)
    if stride <= window:
        assert set().union(*windows) == set(range(layers))


def test_the_plans_windows_of_28_layers():
    windows = layer_windows(28, 3, 3)
    assert [window_name(w) for w in windows] == [
        *("L0-2", "L3-5", "L6-8", "L9-11", "L12-14", "L15-17", "L18-20", "L21-23", "L24-26"),
        "L25-27",
    ]


def test_a_window_of_one_layer_is_named_by_it():
    assert [window_name(w) for w in layer_windows(3, 1, 1)] == ["L0", "L1", "L2"]


@pytest.mark.parametrize("window", [0, -1, 29])
def test_a_window_out_of_range_is_refused(window):
    with pytest.raises(InputError, match=f"window of {window} layers: .*28; give 1 to 28"):
        layer_windows(28, window, 3)


@pytest.mark.parametrize("stride", [0, -3])
def test_a_stride_below_one_is_refused(stride):
    with pytest.raises(InputError, match=f"stride {stride}: at least 1 is needed; try 3"):
        layer_windows(28, 3, stride)


def test_a_model_without_known_layers_is_told_how_to_name_them():
    with pytest.raises(InputError, match=r"register_family\(model_type, layers"):
        layer_windows(0, 1, 1)
