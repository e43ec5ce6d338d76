"""A worker is made again from its spec, elsewhere: the same bytes, or a refusal."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.commands import files_of, in_small_units, with_plain_figures, write_questions
from helpers.executors import FromSpec, InAnotherProcess
from helpers.model_dirs import CHAT_TEMPLATE, save_model
from helpers.small_models import small_model

from noisescope import InputError, RelativeGaussian, diagnose_layers, load_model, load_task
from noisescope.noise import AbsoluteGaussian
from noisescope.report import write_report
from noisescope.study import InProcess, make_worker


class Recorder(InProcess):
    """Keeps the spec and measures as usual."""

    def run(self, worker, units):
        self.spec = worker.spec
        yield from map(worker, units)


@pytest.fixture
def source(tmp_path):
    """A model and questions on disk, as the command line names them."""
    save_model(tmp_path / "llama")
    write_questions(tmp_path / "test.parquet")
    return {
        "model": str(tmp_path / "llama"),
        "tokenizer": None,
        "dtype": None,
        "device": "cpu",
        "trust_remote_code": False,
        "data": str(tmp_path / "test.parquet"),
        "samples": 4,
        "max_new_tokens": 3,
    }


def carry_out(source, noise=None, with_source=True, out=None, **options):
    loaded = load_model(source["model"], device="cpu")
    task = load_task(source["data"], source["samples"], max_new_tokens=source["max_new_tokens"])
    found = diagnose_layers(
        loaded,
        task,
        noise or RelativeGaussian(0.3, "stochastic"),
        window=1,
        out=out,
        memory_gib=1,
        source=source if with_source else None,
        **options,
    )
    if out is not None:
        write_report(found, out)
    return found


@pytest.mark.parametrize(
    "executor", [FromSpec, pytest.param(InAnotherProcess, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("search", [False, True])
def test_a_worker_made_from_the_spec_gives_the_same_files(
    source, tmp_path, monkeypatch, executor, search
):
    in_small_units(monkeypatch)
    with_plain_figures(monkeypatch)
    if search:  # twenty samples are the least to be searched
        source["samples"] = 20
        write_questions(Path(source["data"]), 20)
    options = {"search": search, "seed": 5, "draws": 2}
    carry_out(source, out=tmp_path / "here", **options)
    carry_out(source, out=tmp_path / "there", executor=executor(), **options)
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


@pytest.mark.parametrize(
    "noise", [RelativeGaussian(0.3), AbsoluteGaussian(0.01, "stochastic")], ids=["rel", "abs"]
)
def test_a_spec_passes_through_json_whole(source, noise):
    executor = FromSpec()
    carry_out(source, noise, executor=executor, seed=9, draws=2)
    again = make_worker(executor.spec).spec
    assert json.loads(json.dumps(again)) == executor.spec
    assert (executor.spec["seed"], executor.spec["draws"]) == (9, 2)


def test_what_the_machine_chose_stands_in_the_spec(source):
    """Another machine has other defaults, as a GPU, which would change the last bits."""
    recorder = Recorder()
    carry_out({**source, "dtype": None, "device": None}, executor=recorder)
    chosen = recorder.spec["source"]
    assert (chosen["dtype"], chosen["device"]) == ("float32", "cpu")


@dataclass(frozen=True)
class Tripled(RelativeGaussian):
    """An error model that another process does not know."""


@pytest.mark.parametrize(
    "options", [{"noise": Tripled(0.3)}, {"with_source": False}], ids=["error model", "memory"]
)
def test_what_another_process_cannot_make_has_no_spec(source, options):
    recorder = Recorder()
    carry_out(source, executor=recorder, **options)
    assert recorder.spec is None


def other_weights(source):
    save_model(Path(source["model"]), small_model("llama", seed=1))


def other_configuration(source):
    path = Path(source["model"]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-3}))


def other_data(source):
    write_questions(Path(source["data"]), groups=list(range(6)))


def other_template(source):
    (Path(source["model"]) / "chat_template.jinja").write_text(CHAT_TEMPLATE + "b")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_weights, "model .*: its fingerprint"),
        (other_configuration, "model .*: the fingerprint of its configuration"),
        (other_data, "data .*: its fingerprint"),
        (other_template, "tokenizer .*: the prompts' fingerprint"),
    ],
)
def test_other_files_at_the_same_place_are_refused(source, change, what):
    executor = FromSpec()
    carry_out(source, executor=executor)
    change(source)
    line = f"{what} is sha256:.*, the study's is sha256:.*; give every process the same files"
    with pytest.raises(InputError, match=line) as error:
        make_worker(executor.spec)
    assert "\n" not in str(error.value)


def test_another_scoring_function_than_the_datas_is_refused(source):
    recorder = Recorder()
    carry_out(source, executor=recorder)
    assert recorder.spec["scoring"]["function"] == "noisescope.tasks.samples.score_answer"
    with pytest.raises(InputError, match=r"scored by noisescope\..*, the study's by my.score: "):
        make_worker({**recorder.spec, "scoring": {"function": "my.score", "code": "0a"}})
