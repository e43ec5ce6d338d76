"""What a study asks of a cluster: the same bytes, also where units fail or run elsewhere before."""

import json
import shutil
from collections import Counter

import pytest
import torch
from helpers.cluster import CrewHere, ray_here
from helpers.commands import (
    SMALL_STUDY,
    files_of,
    in_small_units,
    interrupted_in_unit,
    with_plain_figures,
    write_small_study,
)
from helpers.model_dirs import save_model
from helpers.small_models import small_model

from noisescope import RelativeGaussian, diagnose_layers, load_model, load_task
from noisescope.cli import run
from noisescope.cluster import RayExecutor, executor
from noisescope.errors import InputError, MemoryShortError
from noisescope.study import read_study

STUDY = ("layers", *SMALL_STUDY[1:], "--draws=2")
ON_RAY = ("--executor=ray",)
BAD = "0-samples-2"


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return write_small_study(tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def whole(origin):
    """The study of a single process, beside the others: a study tells the paths of its files."""
    with pytest.MonkeyPatch.context() as patch:
        in_small_units(patch)
        with_plain_figures(patch)
        patch.chdir(origin)
        assert run([*STUDY, "--out=whole"]) == 0
    return files_of(origin / "whole")


@pytest.fixture
def place(origin, monkeypatch):
    in_small_units(monkeypatch)
    with_plain_figures(monkeypatch)
    monkeypatch.chdir(origin)
    yield origin
    for made in ("study", "small"):
        shutil.rmtree(origin / made, ignore_errors=True)


def failing(error, times):
    """Returns what fails so often at one unit."""
    met = Counter()

    def fails(job):
        met[job.name] += 1
        if job.name == BAD and met[BAD] <= times:
            raise error

    return fails


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryShortError("memory ran out with one row"), "memory ran out with one row"),
        (torch.OutOfMemoryError("CUDA out of memory"), r"memory ran out \(OutOfMemoryError"),
        (RuntimeError("CUDA error: an illegal\naddress"), "RuntimeError: CUDA error: an illegal"),
    ],
    ids=["one row", "memory", "spoilt"],
)
def test_a_unit_that_fails_twice_is_tried_again(place, whole, monkeypatch, capsys, error, said):
    with ray_here(monkeypatch, failing(error, 2)) as crews:
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 0
    assert files_of(place / "study") == whole
    assert crews[0].hired == 2 + 2  # each failure costs its worker
    capsys.readouterr()


def test_one_that_fails_three_times_is_named_in_the_result_and_the_rest_goes_on(
    place, whole, monkeypatch, capsys
):
    with ray_here(monkeypatch, failing(RuntimeError("broken"), 99)):
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert f"unit {BAD} failed 3 times and is missing" in printed
    result = json.loads((place / "study" / "result.json").read_text())
    (failed,) = result["failed_units"]
    assert (failed["unit"], failed["attempts"]) == (BAD, 3)
    assert "RuntimeError: broken" in failed["error"]
    # Steps were carried out, and each condition has all but the two samples of the unit.
    assert {entry["samples"] for entry in result["layer_sensitivity"].values()} == {4}
    assert result["chosen"]["sites"]
    state = read_study(place / "study")
    assert not state.is_complete
    assert state.units_done == state.units_total - 1
    # The same command tries it again, and nothing else of the first stage.
    asked = []
    with ray_here(monkeypatch, lambda job: asked.append(job.name)):
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 0
    assert [name for name in asked if name.startswith("0-")] == [BAD]
    assert read_study(place / "study").is_complete
    result = json.loads((place / "study" / "result.json").read_text())
    assert "failed_units" not in result
    wanted = json.loads(whole["result.json"])
    assert result["layer_sensitivity"] == wanted["layer_sensitivity"]


def test_a_search_cannot_go_on_without_a_unit(place, monkeypatch, capsys):
    def fails(job):
        if job.kind == "unit":
            raise RuntimeError("broken")

    with ray_here(monkeypatch, fails):
        assert run([*STUDY, *ON_RAY, "--search", "--samples=20", "--out=study"]) == 2
    error = capsys.readouterr().err
    assert "failed 3 times" in error
    assert "the search cannot go on without it" in error


def test_a_study_that_was_begun_here_goes_on_there(place, whole, monkeypatch, capsys):
    with interrupted_in_unit(monkeypatch, 2):
        assert run([*STUDY, "--out=study"]) == 130
    with ray_here(monkeypatch):
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 0
    assert files_of(place / "study") == whole
    capsys.readouterr()


def test_after_ctrl_c_what_is_in_hand_is_kept_and_it_goes_on_here(
    place, whole, monkeypatch, capsys
):
    in_small_units(monkeypatch, 1)
    assert run([*STUDY, "--out=small"]) == 0
    with interrupted_in_unit(monkeypatch, 1), ray_here(monkeypatch):
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 130
    # Of six units, two workers had two each, and no other was handed out.
    assert read_study(place / "study").units_done == 4
    assert "4 of 6 units are kept" in capsys.readouterr().err
    assert run([*STUDY, "--out=study"]) == 0
    assert files_of(place / "study") == files_of(place / "small")


def test_what_only_this_process_has_is_refused(place, monkeypatch):
    loaded = load_model("llama", device="cpu")
    task = load_task("test.parquet", 4, max_new_tokens=3)
    with ray_here(monkeypatch), pytest.raises(InputError, match="must lie in files"):
        diagnose_layers(
            loaded, task, RelativeGaussian(0.2), window=1, executor=RayExecutor(), out="study"
        )
    assert not (place / "study").exists()


def test_another_model_on_a_machine_is_refused(place, monkeypatch, capsys, tmp_path_factory):
    """Every process must be given the same files."""
    other = tmp_path_factory.mktemp("other")
    save_model(other / "llama", small_model("llama", seed=1))

    with ray_here(monkeypatch) as crews:
        made = executor.RayCrew

        def elsewhere(ray, needs, versions, source, threads):
            return made(ray, needs, versions, {**source, "model": str(other / "llama")}, threads)

        monkeypatch.setattr(executor, "RayCrew", elsewhere)
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 2
    assert crews
    error = capsys.readouterr().err
    assert "its fingerprint is" in error
    assert "give every process the same files" in error
    assert not (place / "study").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--executor=rey"], "--executor 'rey': accepted is ray, or nothing for this process; did"),
        (["--workers=2"], "--workers 2 tells of a cluster: give --executor ray, too"),
        (["--ray-address=auto"], "--ray-address auto tells of a cluster: give --executor ray, too"),
        (["--executor=ray", "--device=cuda:1"], "--device cuda:1 with --executor ray: a worker ta"),
        (["--executor=ray", "--workers=0"], "--workers 0: at least 1 is needed"),
        (["--executor=ray", "--gpus-per-worker=-1"], "--gpus-per-worker -1: 0 or more is needed"),
    ],
)
def test_options_that_do_not_fit_are_told_before_anything_is_loaded(
    place, capsys, monkeypatch, options, text
):
    monkeypatch.setattr("noisescope.cli.commands.load_model", None)
    assert run([*STUDY, *options, "--out=study"]) == 2
    assert text in capsys.readouterr().err
    assert not (place / "study").exists()


def test_a_model_without_memory_for_it_is_told(place, monkeypatch, capsys):
    def full(source):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("noisescope.cluster.station.load_source", full)
    with ray_here(monkeypatch):
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 2
    error = capsys.readouterr().err
    assert "no worker could be started: worker on " in error
    assert "there is no memory for the model: give more --gpus-per-worker" in error
    assert not (place / "study").exists()


def test_one_executor_serves_study_after_study(place, monkeypatch):
    """The workers stay while model and data are the same, and are others where they are not."""
    loaded = load_model("llama", device="cpu")
    source = {
        "model": str(place / "llama"),
        "tokenizer": None,
        "dtype": None,
        "device": None,
        "trust_remote_code": False,
        "data": str(place / "test.parquet"),
        "max_new_tokens": 3,
    }

    def records(executor, samples, seed, scale):
        task = load_task("test.parquet", samples, max_new_tokens=3)
        given = {**source, "samples": samples}
        noise = RelativeGaussian(scale)
        options = {"window": 1, "seed": seed, "memory_gib": 1, "executor": executor}
        return diagnose_layers(loaded, task, noise, source=given, **options).records

    with ray_here(monkeypatch) as crews, RayExecutor() as executor:
        for samples, seed, scale, count in (
            (4, 0, 0.2, 1),
            (4, 1, 0.2, 1),
            (4, 1, 0.3, 1),
            (6, 0, 0.2, 2),
        ):
            asked = (samples, seed, scale)
            assert records(executor, *asked) == records(None, *asked)
            assert len(crews) == count
        assert sum(crew.hired for crew in crews) == 2 * 2  # none was lost on the way


def test_noise_that_never_arrives_ends_it_like_here_whichever_unit_comes_first(
    place, monkeypatch, capsys
):
    """In bfloat16 rounding erases so little noise, in every unit."""
    void = [*STUDY, "--noise-scale=1e-9", "--dtype=bfloat16"]
    assert run([*void, "--out=small"]) == 2
    here = capsys.readouterr().err
    assert "no noise arrived in L0" in here
    assert not (place / "small").exists()
    monkeypatch.setattr(CrewHere, "wait", lambda self, calls, seconds: [calls[-1]])
    with ray_here(monkeypatch):
        for _ in range(2):
            assert run([*void, *ON_RAY, "--out=study"]) == 2
            assert "no noise arrived in L0" in capsys.readouterr().err
            assert not (place / "study").exists()


def test_a_study_of_which_every_unit_fails_chooses_nothing(place, monkeypatch, capsys):
    def fails(job):
        if job.kind == "unit":
            raise RuntimeError("broken")

    with ray_here(monkeypatch, fails):
        assert run([*STUDY, *ON_RAY, "--out=study"]) == 2
    assert "every unit failed, the first 3 times: " in capsys.readouterr().err
    assert not read_study(place / "study").steps if (place / "study").exists() else True


def test_a_source_that_lacks_something_is_told(place, monkeypatch):
    loaded = load_model("llama", device="cpu")
    task = load_task("test.parquet", 4, max_new_tokens=3)
    with ray_here(monkeypatch), pytest.raises(InputError, match="source lacks 'samples', 'max_new"):
        diagnose_layers(
            loaded,
            task,
            RelativeGaussian(0.2),
            window=1,
            executor=RayExecutor(),
            source=dict.fromkeys(
                ("model", "tokenizer", "dtype", "device", "trust_remote_code", "data")
            ),
        )
