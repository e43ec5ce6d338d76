"""Sessions under torch.compile: the noise of an uncompiled model, in one graph that serves many."""

import dataclasses

import pytest
import torch
from helpers.small_models import small_model

from noisescope.errors import InputError
from noisescope.inject import Ride, Session, Span, inject, make_selection
from noisescope.inject.compiled.state import STATE
from noisescope.inject.watch import Watch
from noisescope.noise import AbsoluteGaussian, RelativeGaussian, RoundTo

IDS = torch.arange(16).reshape(2, 8) + 5

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class Compiled:
    """A model, compiled in one piece, and how often the compiler was asked for a graph."""

    def __init__(self, model, fullgraph=True):
        torch.compiler.reset()
        self.graphs = 0
        self.model = model
        self._call = torch.compile(model, backend=self._take, fullgraph=fullgraph)

    def _take(self, graph, example_inputs):
        self.graphs += 1
        return graph

    def __call__(self, **inputs):
        return self._call(**inputs)


def small_llama():
    """Two layers: a third would be compiled for nothing."""
    return small_model("llama", num_hidden_layers=2)


@pytest.fixture
def llama():
    return Compiled(small_llama())


def run(call, session, **inputs):
    """Returns logits and all that the session noted, of one pass without gradients."""
    session.forget()
    with torch.no_grad():
        logits = call(input_ids=IDS, **inputs).logits
    return logits, session.counts, session.doses(), session.coverage()


def assert_same_noise(compiled, session, **inputs):
    plain, compiled_result = (run(c, session, **inputs) for c in (compiled.model, compiled))
    assert torch.equal(plain[0], compiled_result[0])
    assert plain[1:] == compiled_result[1:]


def test_one_graph_serves_every_seed_draw_and_scale(llama):
    with torch.no_grad():
        clean = llama(input_ids=IDS).logits  # compiled before there is any session
    for scale, seed in [(0.05, 0), (0.2, 7)]:
        with inject(llama.model, RelativeGaussian(scale), seed=seed) as session:
            assert_same_noise(llama, session)
            first = run(llama, session)[0]
            session.draw = 3
            assert_same_noise(llama, session)
            assert not torch.equal(first, run(llama, session)[0])
    assert llama.graphs == 2
    with torch.no_grad():
        assert torch.equal(llama(input_ids=IDS).logits, clean)
    assert llama.graphs == 2


@pytest.mark.parametrize(
    "selected",
    [
        {"layers": [1], "operators": ["softmax", "matmul"]},
        pytest.param({"layers": [0], "channels": [3]}, marks=pytest.mark.slow),
        pytest.param({"operators": "linear"}, marks=pytest.mark.slow),
        pytest.param(
            {"operators": ["rms_norm", "embedding"], "without": "model.norm:rms_norm"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_any_selection_gets_the_noise_of_the_uncompiled_model(llama, selected):
    with inject(llama.model, AbsoluteGaussian(0.1), **selected) as session:
        assert_same_noise(llama, session)
    assert llama.graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_other_families_and_padded_samples_with_names(family):
    compiled = Compiled(small_model(family))
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    with inject(compiled.model, RelativeGaussian(0.05)) as session:
        session.name_samples(["a", "b"])
        assert_same_noise(compiled, session, attention_mask=mask)
        assert {record.rows for record in session.records} == {"token"}


def test_gradients_meet_the_same_noise_on_the_way_back(llama):
    def gradients(call, session):
        session.forget()
        llama.model.zero_grad()
        call(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad.clone() for p in llama.model.parameters()], session.counts, session.doses()

    for seed in (0, 1):
        both = ("forward", "backward")
        with inject(llama.model, RelativeGaussian(0.05), phases=both, seed=seed) as session:
            plain, compiled = gradients(llama.model, session), gradients(llama, session)
        assert all(map(torch.equal, plain[0], compiled[0]))
        assert plain[1:] == compiled[1:]
    assert llama.graphs == 1


def test_nested_sessions_add_each_its_own(llama):
    for seed in (1, 2):
        with (
            inject(llama.model, RelativeGaussian(0.05), operators="linear") as outer,
            inject(llama.model, RelativeGaussian(0.05), seed=seed, layers=1) as inner,
        ):
            outer_plain, plain = run(llama.model, outer), inner.counts
            inner.forget()
            outer_compiled = run(llama, outer)
            assert torch.equal(outer_plain[0], outer_compiled[0])
            assert outer_plain[1:] == outer_compiled[1:]
            assert inner.counts == plain
    assert llama.graphs == 1


@pytest.fixture
def noise_in_graphs(monkeypatch):
    """Lets graphs compute the noise themselves, as they do on a GPU."""
    monkeypatch.setattr(STATE, "computes", True)


def close_doses(one, other):
    assert one.keys() == other.keys()
    for site, dose in one.items():
        assert dataclasses.astuple(dose) == pytest.approx(
            dataclasses.astuple(other[site]), rel=1e-5, nan_ok=True
        )


@pytest.mark.usefixtures("noise_in_graphs")
@pytest.mark.parametrize(
    "operators", [("linear", "softmax"), pytest.param(None, marks=pytest.mark.slow)]
)
def test_noise_that_the_graph_computes_is_the_same(llama, operators):
    for scale, seed in [(0.05, 0), (0.2, 7)]:
        selected = {"layers": [1], "operators": operators, "seed": seed}
        with inject(llama.model, RelativeGaussian(scale), **selected) as session:
            for session.draw in (0, 3):
                plain, compiled = run(llama.model, session), run(llama, session)
                torch.testing.assert_close(plain[0], compiled[0])
                assert plain[1] == compiled[1]
                close_doses(plain[2], compiled[2])
            run(llama, session)
        assert session.counts == plain[1]  # of the last pass, read after the session
    assert llama.graphs == 1


@pytest.mark.slow
@pytest.mark.usefixtures("noise_in_graphs")
def test_noise_that_the_graph_computes_for_conditions_that_change_places(llama):
    ride_with_changing_places(llama, RelativeGaussian(0.3))
    assert llama.graphs == 1


@pytest.mark.slow
@pytest.mark.usefixtures("noise_in_graphs")
def test_nested_sessions_of_one_shape_read_tables_of_their_own(llama):
    made = []
    for call in (llama.model, llama):
        with (
            inject(llama.model, RelativeGaussian(0.05), layers=[0], modules="*.mlp.*") as outer,
            inject(llama.model, RelativeGaussian(0.1), 0, modules="*.mlp.*", seed=1) as inner,
        ):
            made.append((run(call, outer)[0], outer.counts, inner.counts))
    torch.testing.assert_close(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]


@pytest.mark.slow
@pytest.mark.usefixtures("noise_in_graphs")
def test_another_rounding_is_another_graph():
    compiled = Compiled(small_llama().bfloat16())
    for rounding in ("nearest", "stochastic"):
        error = RelativeGaussian(0.001, rounding)
        with inject(compiled.model, error, layers=[0], operators="linear") as session:
            session.attest = False
            plain, made = run(compiled.model, session), run(compiled, session)
        close_doses(plain[2], made[2])
    assert compiled.graphs == 2


@pytest.mark.slow
@pytest.mark.usefixtures("noise_in_graphs")
def test_float64_is_left_to_the_operator_which_keeps_it():
    compiled = Compiled(small_llama().double())
    with inject(compiled.model, RelativeGaussian(1e-9), layers=[0], operators="linear") as session:
        assert_same_noise(compiled, session)


@pytest.mark.slow
def test_sessions_on_a_model_and_on_a_part_of_it():
    """The part is called from outside the graph of the whole, and has one of its own."""
    model = small_llama()
    made = []
    for call in (model, Compiled(model, fullgraph=False)):
        with (
            inject(model, RelativeGaussian(0.1), layers=["head"]) as outer,
            inject(model.model, RelativeGaussian(0.1), seed=1, layers=[0]) as inner,
        ):
            made.append((run(call, outer)[0], outer.counts, inner.counts))
    assert torch.equal(made[0][0], made[1][0])
    assert made[0][1:] == made[1][1:]


@pytest.mark.parametrize(
    "how",
    [
        "module",
        pytest.param("forward", marks=pytest.mark.slow),
        pytest.param("in place", marks=pytest.mark.slow),
    ],
)
def test_a_part_that_was_compiled_and_run_before_gets_its_noise_too(how):
    torch.compiler.reset()
    model = small_llama()
    with inject(model, RelativeGaussian(0.1), operators="linear") as session:
        plain = run(model, session)
    if how == "module":
        model.model = torch.compile(model.model, backend="eager")
    elif how == "forward":
        model.model.forward = torch.compile(model.model.forward, backend="eager")
    else:
        model.model.compile(backend="eager")
    with torch.no_grad():
        model(input_ids=IDS)
    with inject(model, RelativeGaussian(0.1), operators="linear") as session:
        compiled = run(model, session)
    assert torch.equal(plain[0], compiled[0])
    assert plain[1:] == compiled[1:]


def test_a_second_thread_with_a_compiled_model_is_refused(llama, monkeypatch):
    monkeypatch.setattr(STATE, "running", [object()])
    monkeypatch.setattr(STATE, "thread", -1)
    with inject(llama.model, RelativeGaussian(0.1)) as session, torch.no_grad():
        session.attest = False
        with pytest.raises(InputError, match="another thread"):
            llama(input_ids=IDS)


@pytest.mark.slow
def test_a_backward_pass_behind_the_session_says_so():
    model = small_llama()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with inject(model, RelativeGaussian(0.1), phases="backward", layers=[0]) as session:
        session.attest = False
        loss = compiled(input_ids=IDS, labels=IDS).loss
    with pytest.raises(InputError, match=r"inside the 'with' block"):
        loss.backward()


def test_rounded_weights_and_activations(llama):
    with inject(llama.model, RoundTo("mxfp4", "both"), layers=[0], operators="linear") as session:
        assert_same_noise(llama, session)


@pytest.mark.parametrize(
    "second", [AbsoluteGaussian(0.2), pytest.param(RelativeGaussian(0.3), marks=pytest.mark.slow)]
)
def test_conditions_that_ride_together_may_change_places(llama, second):
    ride_with_changing_places(llama, second)
    assert llama.graphs == 1


def ride_with_changing_places(llama, second):
    model = llama.model
    errors = (RelativeGaussian(0.1), second)
    selections = (make_selection(layers=[0]), make_selection(operators=["linear", "softmax"]))
    sessions = [
        Session(model, error, selection, 0, attest=False)
        for error, selection in zip(errors, selections, strict=True)
    ]
    ride = Ride(model, sessions)
    for places in [(None, *sessions), (*sessions, None)]:
        ride.spans = [Span(s, n, 2 * n, 2 * n + 2) for n, s in enumerate(places)]
        ride.reader.names = ("a", "b") * 3
        made = []
        for call in (model, llama):
            for session in sessions:
                session.forget()
            with ride, torch.no_grad():
                logits = call(input_ids=IDS.repeat(3, 1)).logits
            made.append((logits, [s.counts for s in sessions], [s.doses() for s in sessions]))
        torch.testing.assert_close(made[0][0], made[1][0])
        assert made[0][1] == made[1][1]
        for one, other in zip(made[0][2], made[1][2], strict=True):
            close_doses(one, other)


def test_generation_with_a_static_cache_which_compiles_itself():
    model = small_llama()
    with inject(model, RelativeGaussian(0.1), operators="linear") as session:
        made = []
        for options in ({}, {"cache_implementation": "static"}):
            session.forget()
            session.name_samples(["a", "b"])
            ids = model.generate(
                IDS,
                attention_mask=torch.ones_like(IDS),
                max_new_tokens=4,
                do_sample=False,
                **options,
            )
            made.append((ids.tolist(), session.counts))
    assert made[0] == made[1]


def test_a_function_around_the_model_leaves_the_model_a_graph_of_its_own():
    model = small_llama()
    doubled = torch.compile(lambda ids: model(input_ids=ids).logits * 2, backend="eager")
    with inject(model, RelativeGaussian(0.1), operators="linear") as session, torch.no_grad():
        made, counts = doubled(IDS), session.counts
        assert torch.equal(made, run(model, session)[0] * 2)
        assert session.counts == counts


@pytest.mark.slow
def test_layers_that_are_compiled_one_by_one_get_their_own_noise():
    model = small_llama()
    with inject(model, RelativeGaussian(0.1), operators="linear") as session:
        plain = run(model, session)
    for layer in model.model.layers:
        layer.compile(backend="eager")
    with inject(model, RelativeGaussian(0.1), operators="linear") as session:
        compiled = run(model, session)
    assert torch.equal(plain[0], compiled[0])
    assert plain[1:] == compiled[1:]


def test_the_compiled_model_may_be_given_in_place_of_the_model(llama):
    with inject(llama._call, RelativeGaussian(0.1), layers=[1]) as session:
        assert_same_noise(llama, session)
        assert all(r.site.module.startswith("model.layers.") for r in session.records)


@pytest.mark.slow
def test_an_error_inside_leaves_the_model_as_it_was(llama):
    with torch.no_grad():
        clean = llama(input_ids=IDS).logits
    with inject(llama.model, RelativeGaussian(0.1)) as session, torch.no_grad():
        with pytest.raises(Exception, match=r"index|range"):
            llama(input_ids=IDS + 10_000)
        assert_same_noise(llama, session)
    assert not torch.overrides._get_current_function_mode_stack()
    with torch.no_grad():
        assert torch.equal(llama(input_ids=IDS).logits, clean)


def test_what_cannot_follow_a_compiled_model_says_so(llama):
    with Watch(llama.model, [RelativeGaussian(0.1)]) as watch, torch.no_grad():
        watch.begin(torch.zeros_like(IDS))
        with pytest.raises(InputError, match=r"without torch\.compile"):
            llama(input_ids=IDS)


@pytest.mark.slow
@pytest.mark.parametrize("computes", [False, True])
def test_the_compiler_of_the_cpu_makes_the_same_of_it_but_for_rounding(monkeypatch, computes):
    monkeypatch.setattr(STATE, "computes", computes)
    model = small_llama()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True)
    with inject(model, RelativeGaussian(0.05), layers=[0], operators="linear") as session:
        plain, made = run(model, session), run(compiled, session)
    torch.testing.assert_close(plain[0], made[0], rtol=1e-4, atol=1e-5)
    assert plain[1] == made[1]
    close_doses(plain[2], made[2])
