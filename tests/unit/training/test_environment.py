"""What the variables ask for, as data, and what of them cannot be used."""

import pytest

from noisescope.errors import InputError
from noisescope.noise import AbsoluteGaussian, RelativeGaussian
from noisescope.training.environment import PREFIX, read_environment


def read(**given):
    return read_environment({f"{PREFIX}{n}": v for n, v in given.items()} | {"OTHER": "x"})


@pytest.mark.parametrize("value", ["", "0", "false", "no"])
def test_nothing_is_asked_unless_it_is_enabled(value):
    assert read(ENABLED=value, SCALE="0.1") is None
    assert read_environment({}) is None


def test_the_defaults_are_those_of_noisy_ops():
    wanted = read(ENABLED="True")
    assert wanted.error_model == RelativeGaussian(1e-4)
    assert wanted.phases == ("forward", "backward")
    assert wanted.selection["operators"] == ("matmul", "bmm", "linear")
    assert wanted.selection["layers"] is None
    assert (wanted.seed, wanted.training_only, wanted.roles) == (0, False, ("actor",))
    assert not wanted.is_named


def test_everything_can_be_said():
    wanted = read(
        ENABLED="on",
        SCALE="0.02",
        TYPE="absolute_gaussian",
        ROUNDING="stochastic",
        ALL_OPS="1",
        BACKWARD_ONLY="1",
        TRAINING_ONLY="yes",
        LAYERS="0, 2-4,norm",
        SEED="7",
        ROLES="actor,critic",
    )
    assert wanted.error_model == AbsoluteGaussian(0.02, "stochastic")
    assert wanted.phases == ("backward",)
    assert wanted.selection["layers"] == (0, 2, 3, 4, "norm")
    assert "rms_norm" in wanted.selection["operators"]
    assert (wanted.seed, wanted.training_only, wanted.roles) == (7, True, ("actor", "critic"))
    assert wanted.is_named


def test_both_of_the_two_only_mean_both():
    wanted = read(ENABLED="1", FORWARD_ONLY="1", BACKWARD_ONLY="1")
    assert wanted.phases == ("forward", "backward")
    assert read(ENABLED="1", FORWARD_ONLY="1").phases == ("forward",)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"SCALE": "much"}, "VERL_NOISY_OPS_SCALE='much': a number is needed, such as 1e-4"),
        ({"SCALE": "-1"}, "VERL_NOISY_OPS_SCALE='-1': noise scale -1.0: a finite number"),
        ({"TYPE": "gauss"}, "VERL_NOISY_OPS_TYPE='gauss': error type 'gauss': 'relative_gaussian'"),
        ({"ROUNDING": "up"}, "VERL_NOISY_OPS_ROUNDING='up': rounding 'up': 'nearest' or"),
        ({"OPERATORS": "linaer"}, "OPERATORS='linaer': unknown operator.*did you mean 'linear'"),
        ({"SEED": "-1"}, "VERL_NOISY_OPS_SEED='-1': a whole number is needed, such as 0"),
        ({"SEED": "4294967296"}, "VERL_NOISY_OPS_SEED='4294967296': seed 4294967296: an integer"),
        ({"ROLES": "actor,judge"}, "ROLES='actor,judge': actor, critic, ref are accepted"),
        ({"LAYER": "1"}, "VERL_NOISY_OPS_LAYER is not known: .*did you mean 'LAYERS'"),
    ],
)
def test_what_cannot_be_used_is_one_line(given, said):
    with pytest.raises(InputError, match=said) as caught:
        read(ENABLED="1", **given)
    assert "\n" not in str(caught.value)
