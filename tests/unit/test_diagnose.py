"""The two diagnoses: their conditions, what they refuse, and what they say."""

import dataclasses

import pytest
from helpers.diagnoses import small_diagnosis, small_task
from helpers.model_dirs import loaded_small

from noisescope.diagnose import diagnose_layers, diagnose_operators, probe
from noisescope.errors import DoseWarning, InputError, SelectionError
from noisescope.noise import AbsoluteGaussian, RelativeGaussian
from noisescope.tasks import PLAIN_PROMPT_NOTE, make_task

NOISE = RelativeGaussian(0.3)


@pytest.mark.parametrize(
    ("window", "stride", "names"),
    [
        (1, None, ["L0", "L1", "L2"]),
        (2, None, ["L0-1", "L1-2"]),
        (2, 1, ["L0-1", "L1-2"]),
        (3, None, ["L0-2"]),
        (1, 2, ["L0", "L2"]),
    ],
)
def test_windows_slide_over_all_layers(window, stride, names):
    loaded = loaded_small()
    asked = {"window": window, "stride": stride, "predict": False}
    found = diagnose_layers(loaded, small_task(loaded), NOISE, **asked)
    assert [s.condition for s in found.summaries] == names
    assert found.config["window_size"] == window
    assert found.config["stride"] == (stride or window)
    for name, layers in found.layers.items():
        counted = found.witnesses[name].counts
        assert {int(site.split(".")[2]) for site in counted} == set(layers)


def test_the_clean_model_is_the_baseline_and_the_worst_is_named():
    found = small_diagnosis()
    assert found.baseline_accuracy == 1.0
    losses = {s.condition: s.accuracy_drop.mean for s in found.summaries}
    assert found.worst_accuracy.condition == max(losses, key=losses.get)
    divergences = {s.condition: s.kl_nats.mean for s in found.summaries}
    assert found.worst_kl.condition == max(divergences, key=divergences.get)


def test_layers_take_the_core_operators_unless_told():
    loaded = loaded_small()
    task = small_task(loaded)
    core = diagnose_layers(loaded, task, NOISE, window=3, predict=False)
    assert core.config["operators"] == ["matmul", "linear"]
    every = diagnose_layers(loaded, task, NOISE, window=3, operators="all", predict=False)
    assert set(every.config["operators"]) == {"linear", "matmul", "softmax", "silu", "rms_norm"}
    some = diagnose_layers(loaded, task, NOISE, window=3, operators=["silu"], predict=False)
    witness = some.witnesses["L0-2"]
    assert {r.site.operator for r in witness.records if r.forward} == {"silu"}


def test_operators_are_perturbed_one_at_a_time_then_in_the_plans_two_sets():
    found = small_diagnosis("operators")
    single = ["linear", "matmul", "softmax", "silu", "rms_norm", "embedding"]
    assert [s.condition for s in found.summaries] == [*single, "core", "all"]
    for name, witness in found.witnesses.items():
        fired = {r.site.operator for r in witness.records if r.forward}
        expected = {"core": {"linear", "matmul"}, "all": set(single)}.get(name, {name})
        assert fired == expected
    assert found.worst_kl.condition in single and found.worst_accuracy.condition in single


def test_one_operator_alone_has_no_sets():
    loaded = loaded_small()
    found = diagnose_operators(loaded, small_task(loaded), NOISE, operators="softmax")
    assert [s.condition for s in found.summaries] == ["softmax"]


def test_a_diagnosis_repeats_itself():
    loaded = loaded_small()
    task = small_task(loaded)
    runs = [
        diagnose_layers(loaded, task, NOISE, window=1, draws=2, seed=seed).records
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_an_absolute_error_reaches_every_element():
    loaded = loaded_small()
    found = diagnose_layers(loaded, small_task(loaded), AbsoluteGaussian(0.01), window=3)
    assert found.witnesses["L0-2"].dose().share_changed > 0.99


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": 0}, InputError, "window of 0 layers: this model has 3"),
        ({"window": 4}, InputError, "give 1 to 3"),
        ({"stride": 0}, InputError, "stride 0: at least 1"),
        ({"draws": 0}, InputError, "draws 0"),
        ({"seed": -1}, InputError, "seed -1"),
        ({"batch_size": 0}, InputError, "batch size 0"),
        ({"operators": "gelu"}, SelectionError, "this model never runs 'gelu'"),
        ({"operators": "lin"}, SelectionError, "unknown operator 'lin'; did you mean 'linear'"),
        ({"operators": "embedding"}, SelectionError, "this model never runs 'embedding'"),
        ({"operators": "core,silu"}, SelectionError, "'core' stands alone"),
        ({"operators": []}, SelectionError, r"operators=\[\] selects nothing"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_generated(options, error, message):
    loaded = loaded_small()
    task = small_task(loaded)
    loaded.model.generate = None  # calling it would raise another error
    with pytest.raises(error, match=message):
        diagnose_layers(loaded, task, NOISE, **options)


@pytest.mark.parametrize(
    "options", [{"draws": 0}, {"operators": "gelu"}, {"operators": ()}, {"seed": 1 << 32}]
)
def test_operators_refuse_the_same(options):
    loaded = loaded_small()
    with pytest.raises((InputError, SelectionError)):
        diagnose_operators(loaded, small_task(loaded), NOISE, **options)


def test_notes_of_the_model_the_task_and_the_measurement_are_gathered():
    loaded = loaded_small()
    loaded.tokenizer.chat_template = None
    loaded = dataclasses.replace(
        loaded, model=loaded.model.bfloat16(), notes=("about the model",), dtype=loaded.dtype
    )
    question = {"messages": ({"role": "user", "content": "2+2"},), "truth": "4"}
    task = make_task([question], notes=["about the task"], max_new_tokens=2)
    with pytest.warns(DoseWarning, match="under half of the noise arrived in L0-2"):
        found = diagnose_layers(loaded, task, RelativeGaussian(1e-3), operators="linear")
    assert found.notes[:3] == ("about the model", "about the task", PLAIN_PROMPT_NOTE)
    assert any(note.startswith("under half of the noise arrived in L0-2") for note in found.notes)


def test_probing_runs_a_short_beginning_of_the_first_sample():
    loaded = loaded_small()
    lengths = []
    hook = loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    with hook:
        records = probe(loaded, make_task(["a" * 40, "b"]))
    assert lengths == [(1, 16)]
    assert {r.site.region for r in records} == {"embed", "0", "1", "2", "norm", "head"}


def test_the_plan_that_was_measured_is_kept():
    found = small_diagnosis(draws=2)
    assert list(found.plan.asked) == [s.condition for s in found.summaries]
    assert (found.plan.draws, found.plan.seed) == (2, 0)


def test_layers_that_no_window_covers_are_named():
    loaded = loaded_small()
    alone = {"window": 1, "predict": False}
    found = diagnose_layers(loaded, small_task(loaded), NOISE, stride=2, **alone)
    assert "layers in no window: 1" in found.notes
    covered = diagnose_layers(loaded, small_task(loaded), NOISE, **alone)
    assert not any("no window" in note for note in covered.notes)


def test_noise_of_scale_0_is_said_to_change_nothing():
    loaded = loaded_small()
    found = diagnose_layers(loaded, small_task(loaded), RelativeGaussian(0.0), window=3)
    assert "noise of scale 0 changes nothing: every figure is the clean model's" in found.notes
    assert all(s.kl_nats.mean == 0 for s in found.summaries)
    assert found.worst_kl.condition is None


def test_a_short_answers_cut_is_counted_where_the_model_can_end_an_answer():
    loaded = loaded_small()
    task = small_task(loaded)
    said = {int(token) for sample in task.samples for token in sample.truth.split()}
    loaded.model.generation_config.eos_token_id = max(set(range(64)) - said)
    found = diagnose_layers(loaded, task, NOISE, window=3, predict=False)
    cut = [note for note in found.notes if "were cut at" in note]
    assert len(cut) == 1 and cut[0].startswith(f"{len(task.samples)} of {len(task.samples)} clean")
    loaded.model.generation_config.eos_token_id = None
    silent = diagnose_layers(loaded, task, NOISE, window=3, predict=False)
    assert not any("were cut at" in note for note in silent.notes)
