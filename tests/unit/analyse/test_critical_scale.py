"""Targets, the walk towards them, and the scale found, on curves whose answer is known."""

import math

import numpy as np
import pytest
from scipy import special

from noisescope.analyse.critical_scale import critical_scale
from noisescope.analyse.next_scale import next_scale
from noisescope.analyse.target import Target, parse_target
from noisescope.errors import InputError

C, CAP = 3.0, 6.0
LOST, MIDDLE, WIDTH = 0.7, 0.3, 0.4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy=-5%", Target("accuracy", 0.05)),
        ("accuracy=-0.05", Target("accuracy", 0.05)),
        (" kl = 0.1 ", Target("kl", 0.1)),
        ("nll=1e-3", Target("nll", 0.001)),
        ("kl=+2", Target("kl", 2.0)),
    ],
)
def test_a_target_is_read_and_written_back(text, expected):
    found = parse_target(text)
    assert found == expected and parse_target(str(found)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("accuracy=5%", "; a loss is negative"),
        ("accuracy=0", "; a loss is negative"),
        ("accuracy=-5", "; a loss of all answers or more"),
        ("accuracy=-100%", "; a loss of all answers or more"),
        ("kl=-0.1", "; kl rises, in nats per token, by a number above 0"),
        ("kl=0", "; kl rises"),
        ("nll=10%", "; nll rises"),
        ("kl=1e999", "; kl rises"),
        ("kl=1.2.3", "; '1.2.3' is not a number"),
        ("kl=nan", ""),
        ("ppl=3", ""),
        ("kl", ""),
        ("", ""),
    ],
)
def test_any_other_text_is_refused_in_one_line(text, why):
    with pytest.raises(InputError) as caught:
        parse_target(text)
    told = str(caught.value)
    assert told.startswith(f"Target {text!r} cannot be used{why}")
    assert "give 'accuracy=-5%' or 'accuracy=-0.05'" in told and "\n" not in told


@pytest.mark.parametrize(("measure", "loss"), [("kl", 0.0), ("nll", math.nan), ("accuracy", 1.0)])
def test_a_loss_that_cannot_be_reached_is_refused(measure, loss):
    with pytest.raises(InputError, match="Target loss"):
        Target(measure, loss)


def kl_study(rng, K=4, N=50):
    """Samples, draws and cells that differ, the same ones at every scale, and noise of its own."""
    sample = np.exp(0.8 * rng.standard_normal((1, N)) - 0.32)
    draw = np.exp(0.1 * rng.standard_normal((K, 1)) - 0.005)
    cell = rng.standard_normal((K, N))

    def measure(scale):
        own = 0.8 * cell + 0.6 * rng.standard_normal((K, N))
        mean = CAP * -math.expm1(-C * scale**2 / CAP)
        return mean * sample * draw * np.exp(0.3 * own - 0.045)

    return measure


def answer_study(rng, K=4, N=50):
    """Every answer is lost from a scale of its own on; answers to one question go together."""
    latent = math.sqrt(0.5) * (rng.standard_normal((1, N)) + rng.standard_normal((K, N)))
    threshold = special.ndtr(latent)

    def measure(scale):
        return (threshold < LOST * special.expit(math.log(scale / MIDDLE) / WIDTH)).astype(float)

    return measure


def kl_truth(loss):
    return math.sqrt(-math.log1p(-loss / CAP) * CAP / C)


def answer_truth(loss):
    return MIDDLE * math.exp(WIDTH * special.logit(loss / LOST))


def walk(target, measure, start, steps=12, c=None):
    measured = {}
    while True:
        scale = next_scale(target, measured, start, steps_left=steps - len(measured), c=c)
        if scale is None:
            return measured
        assert scale not in measured and 1e-6 <= scale <= 10 and float(f"{scale:.3g}") == scale
        measured[scale] = measure(scale)


@pytest.mark.parametrize(
    ("text", "study", "truth", "start", "c", "widest"),
    [
        ("kl=0.1", kl_study, kl_truth, 0.05, C, 1.6),
        pytest.param("kl=0.1", kl_study, kl_truth, 0.01, None, 1.65, marks=pytest.mark.slow),
        pytest.param("nll=2", kl_study, kl_truth, 0.05, None, 1.75, marks=pytest.mark.slow),
        ("accuracy=-20%", answer_study, answer_truth, 0.5, None, 2.2),
    ],
)
def test_the_interval_holds_the_critical_scale_in_400_studies(text, study, truth, start, c, widest):
    target = parse_target(text)
    covered, widths, steps = 0, [], []
    for i in range(400):
        measured = walk(target, study(np.random.default_rng([3, i])), start, c=c)
        found = critical_scale(target, measured)
        covered += found.low <= truth(target.loss) <= found.high
        widths.append(found.high / max(found.low, 1e-9))
        steps.append(len(measured))
    assert covered / 400 >= 0.93
    assert np.median(widths) <= widest
    assert np.quantile(steps, 0.9) <= 10


@pytest.mark.parametrize("text", ["kl=0.1", "nll=1"])
def test_without_chance_the_estimate_is_the_truth(text):
    target = parse_target(text)
    shape = np.random.default_rng(0).uniform(0.999, 1.001, (2, 200))
    shape /= shape.mean()
    measured = walk(target, lambda s: CAP * -math.expm1(-C * s**2 / CAP) * shape, 0.01, 20)
    found = critical_scale(target, measured)
    assert found.is_bracketed and found.estimate == pytest.approx(kl_truth(target.loss), rel=0.01)
    assert found.high / found.low <= 1.16


def test_the_walk_begins_at_the_prediction_for_kl_only():
    assert next_scale(Target("kl", 0.1), {}, 0.5, steps_left=5, c=10.0) == 0.1
    assert next_scale(Target("nll", 0.1), {}, 0.5, steps_left=5, c=10.0) == 0.5
    for c in (0.0, -1.0, math.nan, math.inf, None):
        assert next_scale(Target("kl", 0.1), {}, 0.12345, steps_left=5, c=c) == 0.123


def test_the_walk_is_the_same_every_time_and_ends_with_its_steps():
    target = Target("kl", 0.1)
    first, again = (walk(target, kl_study(np.random.default_rng(1)), 0.01) for _ in range(2))
    assert list(first) == list(again)
    assert next_scale(target, {}, 0.01, steps_left=0) is None
    assert len(walk(target, kl_study(np.random.default_rng(1)), 0.01, steps=3)) == 3


@pytest.mark.parametrize(("level", "end"), [(0.0, 10.0), (0.05, 10.0), (3.0, 1e-6)])
def test_a_loss_that_never_passes_ends_at_the_limits(level, end):
    noise = np.random.default_rng(0).uniform(0.9, 1.1, (3, 30))
    measured = walk(Target("kl", 0.1), lambda s: level * noise, 0.1, steps=60)
    found = critical_scale(Target("kl", 0.1), measured)
    assert end in measured and len(measured) <= 12
    assert not found.is_bracketed and math.isnan(found.estimate)
    assert (found.low, found.high) == ((0.0, 1e-6) if level == 3 else (10.0, math.inf))
    assert ("is reached below 1e-06" if level == 3 else "not reached up to 10") in found.reason


def test_a_plateau_at_the_target_ends():
    rng = np.random.default_rng(0)
    measured = walk(Target("kl", 0.1), lambda s: rng.exponential(0.1, (3, 30)), 0.1, steps=60)
    assert len(measured) <= 20


def test_too_few_samples_end_at_once():
    measured = walk(Target("kl", 0.1), lambda s: np.full((3, 1), s**2), 0.1)
    assert len(measured) == 1
    found = critical_scale(Target("kl", 0.1), measured)
    assert (found.low, found.high) == (0.0, math.inf) and "use more samples" in found.reason


def test_answers_too_few_to_be_below_do_not_send_the_walk_down_for_ever():
    target = Target("accuracy", 0.03)  # 50 samples without a loss leave 6 % possible
    measured = walk(target, answer_study(np.random.default_rng(0)), 0.1, steps=40)
    found = critical_scale(target, measured)
    assert found.low == 0 and found.high < 1 and len(measured) <= 14
    assert "though nothing is lost at" in found.reason
    assert found.estimate == pytest.approx(answer_truth(0.03), rel=0.5)


def table(mean, N=40):
    """Two draws whose losses lie within 2 % of a mean."""
    return mean * np.linspace(0.98, 1.02, N)[None].repeat(2, 0) + [[1e-9], [0]]


def test_a_table_worked_by_hand():
    measured = {0.1: table(0.01), 0.2: table(0.04), 0.4: table(0.16)}
    found = critical_scale(Target("kl", 0.09), measured)
    assert (found.low, found.high, found.scales) == (0.2, 0.4, (0.1, 0.2, 0.4))
    assert found.estimate == pytest.approx(0.3)  # s^2, straight in log-log
    assert found.reason == "kl=0.09 is reached at 0.3, between 0.2 and 0.4"


def test_losses_that_fall_on_the_way_up_are_pooled():
    measured = {0.1: table(0.01), 0.2: table(0.12), 0.3: table(0.05), 0.4: table(0.2)}
    found = critical_scale(Target("kl", 0.1), measured)
    assert (found.low, found.high) == (0.1, 0.2)
    assert "does not rise throughout" in found.reason
    # The two in the middle pool to the geometric mean 0.0775; the estimate keeps to the bracket.
    assert found.estimate == 0.2


def test_unclear_losses_that_fall_are_pooled_by_their_geometric_mean():
    wide = np.array([[0.1, 1.9] * 3])
    losses = {0.1: 0.01 * wide, 0.2: 0.12 * wide, 0.3: 0.06 * wide, 0.4: 3.0 * wide + 1.0}
    pooled = math.sqrt(0.12 * 0.06)
    share = math.log(0.1 / pooled) / math.log(4.0 / pooled)
    found = critical_scale(Target("kl", 0.1), losses)
    assert found.estimate == pytest.approx(0.3 * (4 / 3) ** share)


def test_steps_grow_on_a_plateau():
    wide = 0.1 * np.random.default_rng(0).uniform(0.9, 1.1, (1, 30))
    found = next_scale(Target("kl", 0.1), dict.fromkeys((0.1, 0.12, 0.144), wide), 1, steps_left=9)
    assert found == pytest.approx(0.1 / 1.2**8, rel=0.01)


def test_accuracy_is_interpolated_in_lost_answers():
    lost = {0.1: 0, 0.2: 20, 0.8: 100}
    measured = {s: (np.arange(200) < n).astype(float)[None] for s, n in lost.items()}
    found = critical_scale(Target("accuracy", 0.3), measured)
    assert found.estimate == pytest.approx(0.2 * 4**0.5) and (found.low, found.high) == (0.2, 0.8)
    assert "one draw: this speaks" in found.reason


def test_overflow_is_above_where_all_of_it_is_and_never_below():
    some, everything = table(0.01), np.full((2, 40), np.inf)
    some[0, :30] = np.nan
    measured = {0.1: table(0.01), 0.2: some, 0.4: everything}
    found = critical_scale(Target("kl", 0.1), measured)
    assert (found.low, found.high) == (0.1, 0.4)
    assert found.estimate == pytest.approx(0.2)  # nothing to interpolate: the middle
    nothing = {0.1: everything}
    assert "no loss is finite" in critical_scale(Target("kl", 0.1), nothing).reason
    assert next_scale(Target("kl", 0.1), nothing, 0.1, steps_left=3) == 0.01


@pytest.mark.parametrize("N", [5, 6])
def test_one_and_the_same_loss_is_judged_by_the_sign_test(N):
    measured = {0.1: np.zeros((2, N)), 0.2: np.full((2, N), 0.3)}
    assert critical_scale(Target("kl", 0.1), measured).is_bracketed == (N == 6)


def test_samples_of_one_source_count_as_one():
    measured = {0.1: table(0.01), 0.2: np.random.default_rng(0).exponential(0.2, (2, 40))}
    apart = critical_scale(Target("kl", 0.1), measured)
    together = critical_scale(Target("kl", 0.1), measured, groups=[i // 20 for i in range(40)])
    assert apart.is_bracketed and not together.is_bracketed


def test_nothing_measured_is_nothing_known():
    found = critical_scale(Target("kl", 0.1), {})
    assert (found.low, found.high, found.scales) == (0.0, math.inf, ())
    assert "no scale was measured" in found.reason


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({0.1: np.ones((1, 2)), 0.2: np.ones((1, 3))}, "of shapes"),
        ({0.0: np.ones((1, 2))}, "scale 0.0: give a finite number above 0"),
    ],
)
def test_what_cannot_be_used_is_refused(measured, message):
    with pytest.raises(InputError, match=message):
        critical_scale(Target("kl", 0.1), measured)
