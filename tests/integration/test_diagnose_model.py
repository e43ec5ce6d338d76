"""The whole diagnosis, on a model with one site made fragile and on one without."""

import warnings
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import transformers

from noisescope import LoadedModel, RelativeGaussian, diagnose_model, fingerprint, make_task
from noisescope.analyse import STANDS_OUT
from noisescope.errors import InputError
from noisescope.study import StudyInterrupted
from noisescope.study.executor import InProcess
from noisescope.study.steps import BLAME, BLAMED, CHANNELS, PARTS, SCALES, SITES, all_but

WIDTH, LAYERS, PLANTED = 32, 6, 3
NOISE = RelativeGaussian(0.05)
FILES = ("manifest.json", "records.parquet", "witnesses.json", "profile.safetensors")


def model(is_planted: bool):
    config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=32,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=4,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = transformers.GPT2LMHeadModel(config).eval()
    if is_planted:  # an offset on all channels, which every later LayerNorm removes
        with torch.no_grad():
            made.transformer.h[PLANTED].mlp.c_proj.bias += 50.0
    return made


def loaded(is_planted: bool = True) -> LoadedModel:
    made = model(is_planted)
    return LoadedModel(
        made, None, Path("made"), torch.float32, made.device, fingerprint(made), 32, ()
    )


def task(samples: int = 12):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 64, (samples, 16), generator=generator).tolist()
    return make_task([{"prompt_ids": row} for row in ids], name="random")


@lru_cache(maxsize=2)
def diagnosed(is_planted: bool):
    return diagnose_model(loaded(is_planted), task(), NOISE, draws=2, until="kl=0.05")


def test_planting_changes_nothing_that_is_computed():
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        plain, planted = (model(p)(input_ids=ids).logits for p in (False, True))
    assert torch.allclose(plain, planted, atol=1e-3)


def test_the_planted_site_is_blamed_first_and_confirmed_by_injection():
    blame = diagnosed(True).findings.blame
    assert blame.kind == STANDS_OUT
    assert blame.sites[0] == f"transformer.h.{PLANTED}.mlp.c_proj:linear:0"
    assert blame.ratios[blame.sites[0]] > 10


def test_cleaning_it_brings_nearly_everything_back_and_it_alone_costs_as_much():
    remedy = diagnosed(True).findings.remedy
    assert remedy.brought_back.mean > 0.8
    assert remedy.carried.mean > 0.8
    assert remedy.without.mean < 0.2 * remedy.everything.mean
    assert remedy.answers_lost.mean != remedy.answers_lost.mean  # nothing was generated


def test_an_untouched_model_raises_no_alarm():
    found = diagnosed(False).findings
    assert found.blame.kind != STANDS_OUT


def test_every_step_chose_and_was_measured():
    found = diagnosed(True)
    assert {SITES, PARTS, SCALES, CHANNELS, BLAME} <= set(found.chosen)
    measured = {record.condition for record in found.records}
    assert set(found.plan.conditions) <= measured
    assert {BLAMED, all_but(BLAMED)} <= measured
    assert all(step.startswith("until") or step in found.chosen for step in found.chosen)


def test_prediction_stands_beside_measurement_and_agrees():
    found = diagnosed(False).findings
    assert found.agreement.conditions >= 15
    assert found.agreement.rank > 0.95
    assert found.agreement.r2 > 0.9
    assert 0.8 < found.agreement.ratio < 1.25
    assert set(found.predictions) == set(diagnosed(False).plan.conditions)


def test_what_was_asked_stands_apart_from_what_was_chosen():
    found = diagnosed(True)
    names = [s.condition for s in found.summaries]
    assert names[:3] == ["embedding", "layer_norm", "linear"] or "linear" in names
    assert f"transformer.h.{PLANTED}.mlp.c_proj:linear:0" not in names
    assert "L0-2" in names and "all" in names


def test_the_scale_of_a_chosen_loss_is_bracketed():
    critical = diagnosed(False).findings.critical
    assert critical.is_bracketed
    assert critical.low < critical.estimate < critical.high


def test_dose_and_response_follow_the_line_of_the_prediction():
    responses = diagnosed(False).findings.responses
    assert {"all", "L0-2", "L3-5"} <= set(responses)
    smallest = responses["all"].scales[0]
    assert 0.6 < smallest.ratio.mean < 1.6


class Stopping(InProcess):
    """Ends as Ctrl-C does, after so many units."""

    def __init__(self, units: int) -> None:
        self.left = units

    def run(self, worker, units):
        for unit in units:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield worker(unit)


@pytest.mark.parametrize("step", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5))])
def test_a_diagnosis_that_was_stopped_anywhere_ends_the_same_to_the_byte(tmp_path, step):
    options = {"draws": 2, "operators": "linear,softmax"}
    whole = tmp_path / "whole"
    diagnose_model(loaded(), task(8), NOISE, out=whole, **options)
    stopped, runs = tmp_path / "stopped", 0
    while True:
        runs += 1
        try:
            diagnose_model(
                loaded(), task(8), NOISE, out=stopped, executor=Stopping(step), **options
            )
            break
        except (KeyboardInterrupt, StudyInterrupted):
            assert runs < 60
    assert runs > 1
    for name in FILES:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_finished_diagnosis_is_shown_again_without_measuring(tmp_path):
    out = tmp_path / "study"
    first = diagnose_model(loaded(), task(8), NOISE, out=out, operators="linear", draws=2)
    again = diagnose_model(
        loaded(), task(8), NOISE, out=out, operators="linear", draws=2, executor=Stopping(0)
    )
    assert again.records == first.records
    assert again.findings.blame == first.findings.blame


def test_another_question_is_refused(tmp_path):
    out = tmp_path / "study"
    diagnose_model(loaded(), task(8), NOISE, out=out, operators="linear")
    with pytest.raises(InputError, match="--until"):
        diagnose_model(loaded(), task(8), NOISE, out=out, operators="linear", until="kl=0.1")


def test_a_lost_profile_is_made_anew_and_a_changed_one_is_refused(tmp_path):
    out = tmp_path / "study"
    diagnose_model(loaded(), task(8), NOISE, out=out, operators="linear")
    data = (out / "profile.safetensors").read_bytes()
    (out / "profile.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InputError, match="was changed since it was written"):
        diagnose_model(loaded(), task(8), NOISE, out=out, operators="linear")


def test_an_error_of_which_nothing_can_be_predicted_is_diagnosed_all_the_same():
    class Shift(RelativeGaussian):
        def mean_square(self, y):
            raise InputError("not known")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = diagnose_model(loaded(), task(8), Shift(0.05), operators="linear", draws=2)
    assert any("nothing is predicted: not known" in str(w.message) for w in caught)
    assert found.told.profile is None
    assert found.findings.agreement is None
    assert PARTS in found.chosen
