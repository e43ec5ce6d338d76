"""An evaluation in a directory: runs come back as they were, and nothing else is taken for them."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from helpers.harness import run_of

from noisescope.errors import InputError, NoisescopeError
from noisescope.harness.kept import RUNS, Kept, is_evaluation, replace_file
from noisescope.inject import Site, SiteRecord, Witness

ASKED = {
    "lasting": {"model": "sha256:1", "seed": 0},
    "conditions": {"all": {"scale": 0.1}},
    "tasks": {"task": "sha256:2"},
}


def test_a_run_comes_back_as_it_was(tmp_path):
    tally = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    site = SiteRecord(
        Site("0", "m", "linear", 0), True, 1, 1, 0, "token", False, {"forward": tally}
    )
    run = run_of(
        "all",
        2,
        values=[1.0, math.nan, (-3.0, 2.0), None, -math.inf],
        responses=["text <b>", [[-1.5, True], [math.nan, False]], "", None, "\N{SNOWMAN}"],
        aggregates={"acc,none": math.nan},
        notes=("a note",),
        witness=Witness((site,), False),
    )
    Kept(tmp_path / "out", ASKED).write(run)
    found = Kept(tmp_path / "out", ASKED).read("all", 2, "task")
    assert repr(found) == repr(run)  # NaN is not equal to itself
    assert Kept(tmp_path / "out", ASKED).read("all", 1, "task") is None
    assert is_evaluation(tmp_path / "out")


def test_a_changed_file_is_found(tmp_path):
    kept = Kept(tmp_path, ASKED)
    kept.write(run_of("all"))
    (path,) = (tmp_path / RUNS).iterdir()
    path.write_text(path.read_text().replace('"acc": 1.0', '"acc": 0.0'))
    with pytest.raises(InputError, match=rf"{path} was changed .* delete it"):
        kept.read("all", 0, "task")
    path.write_text("")
    with pytest.raises(InputError, match="was changed"):
        kept.read("all", 0, "task")


def test_another_question_is_refused_and_changes_nothing(tmp_path):
    Kept(tmp_path, ASKED)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    others = (
        ({**ASKED, "lasting": {"model": "sha256:9", "seed": 0}}, "model was sha256:1"),
        ({**ASKED, "lasting": {"model": "sha256:1", "seed": 5}}, "seed was 0 and is 5 now"),
        ({**ASKED, "conditions": {"all": {"scale": 0.2}}}, "condition 'all' was"),
        ({**ASKED, "tasks": {"task": "sha256:3"}}, "task 'task' was sha256:2"),
    )
    for other, said in others:
        with pytest.raises(InputError, match=said):
            Kept(tmp_path, other)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_conditions_and_tasks_are_added(tmp_path):
    Kept(tmp_path, ASKED).write(run_of("all"))
    more = {**ASKED, "conditions": {"L0": {"scale": 0.1}}, "tasks": {"other": "sha256:4"}}
    Kept(tmp_path, more)
    manifest = json.loads((tmp_path / "evaluation.json").read_bytes())
    assert set(manifest["conditions"]) == {"all", "L0"} and set(manifest["tasks"]) == {
        "task",
        "other",
    }
    assert Kept(tmp_path, ASKED).read("all", 0, "task") is not None


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        Kept(tmp_path, ASKED)
    (tmp_path / "evaluation.json").write_text("{}")
    with pytest.raises(InputError, match="is no evaluation of this noisescope"):
        Kept(tmp_path, ASKED)


def test_without_a_directory_nothing_is_kept():
    kept = Kept(None, ASKED)
    kept.write(run_of("all"))
    assert kept.read("all", 0, "task") is None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    replace_file(path, b"old")
    (tmp_path / "file.new").mkdir()
    with pytest.raises(NoisescopeError, match=r"cannot write .* what was finished is kept"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "held",
    [{"schema": 1}, {"schema": 1, "lasting": [], "conditions": {}, "tasks": {}}, [1], "text"],
)
def test_a_manifest_of_another_shape_is_no_evaluation(tmp_path, held):
    (tmp_path / "evaluation.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match="is no evaluation of this noisescope"):
        Kept(tmp_path, ASKED)


def test_a_name_that_is_no_directory_holds_no_evaluation(tmp_path):
    assert not is_evaluation(tmp_path / ("x" * 300))


def test_rows_stay_what_they_were_and_all_runs_come_back(tmp_path):
    assert Kept(tmp_path, {**ASKED, "batch_size": 7}).asked["batch_size"] == 7
    kept = Kept(tmp_path, {**ASKED, "batch_size": 32})
    assert kept.asked["batch_size"] == 7
    for draw in (0, 1):
        kept.write(run_of("all", draw))
    assert sorted(run.draw for run in Kept(tmp_path, ASKED).all_runs()) == [0, 1]
    assert Kept(None, ASKED).all_runs() == []


def test_a_name_outlives_a_loss_of_power(tmp_path, monkeypatch):
    synced = []
    sync = os.fsync

    def heard(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", heard)
    replace_file(tmp_path / "file", b"new")
    assert synced[-1] == tmp_path
