"""Sessions inside each other add both errors, whichever is left first."""

import pytest
import torch
from helpers.injection import OneOperator, fired
from helpers.small_models import small_model
from torch import nn

from noisescope.errors import InputError
from noisescope.inject import inject
from noisescope.noise import ErrorModel, RelativeGaussian

IDS = torch.tensor([[5, 9, 11, 3], [7, 7, 8, 2]])


class Add(ErrorModel):
    """Adds one number, so that errors of several sessions are told apart."""

    rounding = "nearest"

    def __init__(self, value):
        self.value = value

    def error(self, y_RD, at):
        return torch.full_like(y_RD, self.value)


@pytest.mark.parametrize("first_left", ["inner", "outer"])
@pytest.mark.parametrize("inner_operators", ["linear", ["linear", "relu"], "relu"])
def test_nested_sessions_add_both_errors_and_leave_in_either_order(first_left, inner_operators):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    x = torch.ones(2, 3)
    clean = model[0](x)
    outer = inject(model, Add(1.0), operators="linear").__enter__()
    inner = inject(model, Add(0.25), operators=inner_operators).__enter__()
    result = model(x)
    sessions = [inner, outer] if first_left == "inner" else [outer, inner]
    sessions[0].__exit__(None, None, None)
    half = model(x)
    sessions[1].__exit__(None, None, None)
    of_linear = 0.25 * ("linear" in inner_operators)
    of_relu = 0.25 * ("relu" in inner_operators)

    def expected(linear, relu):
        return (clean + linear).relu() + relu

    torch.testing.assert_close(result, expected(1.0 + of_linear, of_relu))
    left = expected(1.0, 0.0) if first_left == "inner" else expected(of_linear, of_relu)
    torch.testing.assert_close(half, left)
    torch.testing.assert_close(model(x), clean.relu())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nested_sessions_both_see_modules_written_out_by_hand():
    model = small_model("llama")
    with torch.no_grad(), inject(model, Add(0.5), 0, "rms_norm") as outer:
        with inject(model, Add(0.25), [0, 1], "rms_norm") as inner:
            hidden = model(input_ids=IDS, output_hidden_states=True)
    assert len(fired(outer)) == 2
    assert len(fired(inner)) == 4
    assert hidden.logits.isfinite().all()


def test_a_session_opens_once_at_a_time_and_again_later():
    model = OneOperator(nn.Linear(3, 3))
    session = inject(model, RelativeGaussian(0.1))
    for _ in range(2):
        with session:
            model(torch.ones(2, 3))
            with pytest.raises(InputError, match="open already: open another one"):
                session.__enter__()
    assert fired(session) == {"op:linear:0": 2}
