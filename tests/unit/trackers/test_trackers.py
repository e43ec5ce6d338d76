"""Runs of trackers, read back from their files: numbers, texts, figures, configuration."""

import html
import json
import math
import os
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import refusal
from helpers.diagnoses import small_diagnosis, with_name
from helpers.harness import run_of

from noisescope import log_diagnosis, log_evaluation
from noisescope.errors import InputError
from noisescope.harness import Evaluation, EvaluationMargins
from noisescope.harness.paired import changes_of
from noisescope.inject import Witness, make_selection
from noisescope.measure import Condition
from noisescope.noise import RelativeGaussian
from noisescope.report import verdict
from noisescope.trackers import make_tracker, parse_trackers
from noisescope.trackers.entry import Entry
from noisescope.trackers.from_diagnosis import diagnosis_entry
from noisescope.trackers.from_evaluation import evaluation_entry
from noisescope.trackers.tensorboard import as_markdown, write_tensorboard
from noisescope.trackers.wandb import write_wandb

HOSTILE = '<script>alert(1)</script> ![x](http://a.b/c) **b** `c`\n# d\n- e | f\n===\n~~~ & "g"'


@pytest.fixture(scope="module")
def diagnosis():
    return small_diagnosis()


@pytest.fixture(scope="module")
def png():
    """A figure of 3 by 2 pixels, as a report would have drawn it."""
    import io

    import matplotlib.image

    file = io.BytesIO()
    matplotlib.image.imsave(
        file, [[(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)]] * 2, format="png"
    )
    return file.getvalue()


def events(place: Path):
    """The run as TensorBoard's own reader finds it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return found.Reload()


def text_of(found, name: str) -> str:
    (event,) = found.Tensors(f"{name}/text_summary")
    return event.tensor_proto.string_val[0].decode()


# TensorBoard.


def test_windows_are_a_curve_over_layers_with_their_bounds(diagnosis, png, tmp_path):
    place = log_diagnosis(diagnosis, "tensorboard", tmp_path, figures={"measures": png})
    found = events(place)
    for name, attribute in (("", "mean"), ("_low", "low"), ("_high", "high")):
        curve = found.Scalars(f"windows/kl_nats_per_token{name}")
        expected = [getattr(s.kl_nats, attribute) for s in diagnosis.summaries]
        assert [point.step for point in curve] == [0, 1, 2]
        assert [point.value for point in curve] == pytest.approx(expected, rel=1e-6)
    for summary in diagnosis.summaries:
        (dose,) = found.Scalars(f"dose_relative_l2/{summary.condition}")
        told = diagnosis.witnesses[summary.condition].dose().relative_l2
        assert dose.value == pytest.approx(told, rel=1e-6)
        (drop,) = found.Scalars(f"accuracy_drop/{summary.condition}")
        assert drop.value == pytest.approx(summary.accuracy_drop.mean)
    (clean,) = found.Scalars("clean/accuracy")
    assert clean.value == diagnosis.baseline_accuracy


def test_figures_verdict_and_configuration_are_there(diagnosis, png, tmp_path):
    found = events(log_diagnosis(diagnosis, "tensorboard", tmp_path, figures={"measures": png}))
    (image,) = found.Images("figures/measures")
    assert image.encoded_image_string == png and (image.width, image.height) == (3, 2)
    assert text_of(found, "verdict") == as_markdown(verdict(diagnosis))
    config = text_of(found, "config")
    for name, value in diagnosis.plan.fingerprints.items():
        assert as_markdown(f'"{name}": "{value}"') in config
    assert "versions" in config and "seed: 0" in config


def test_figures_are_drawn_where_no_report_has(diagnosis):
    entry = diagnosis_entry(diagnosis)
    assert "measures" in entry.figures
    assert all(data.startswith(b"\x89PNG") for data in entry.figures.values())


def test_every_log_is_a_run_of_its_own(diagnosis, tmp_path):
    places = [log_diagnosis(diagnosis, "tensorboard", tmp_path, figures={}) for _ in range(2)]
    assert [place.name for place in places] == ["layers-small", "layers-small-2"]
    with pytest.raises(KeyError):
        events(places[0]).Scalars("no such number")


def test_unknown_numbers_are_left_out(diagnosis):
    entry = diagnosis_entry(small_diagnosis(is_generative=False), {})
    assert not any(s.tag.startswith(("clean/accuracy", "accuracy")) for s in entry.scalars)
    assert all(s.value == s.value for s in entry.scalars)
    assert json.loads(json.dumps(entry.config, allow_nan=False)) == entry.config


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated:DeprecationWarning")
def test_nothing_of_a_name_or_text_becomes_markup(diagnosis, tmp_path):
    from tensorboard.plugin_util import markdown_to_safe_html

    shown = markdown_to_safe_html(as_markdown(HOSTILE))
    for tag in ("<script", "<img", "<a ", "<strong", "<em", "<code", "<h1", "<ul", "<table"):
        assert tag not in shown
    for text in ("&lt;script&gt;", "![x](http://a.b/c)", "**b**", "# d", "- e | f", "===", "~~~"):
        assert text in html.unescape(shown) or text in shown, (text, shown)
    assert "\\" not in shown
    named = with_name(diagnosis, "../<b>a b</b>")
    place = log_diagnosis(named, "tensorboard", tmp_path, figures={})
    assert place.parent == tmp_path and set(place.name) <= set("abcdefghijklmnopqrstuvwxyz_-.")


# Weights & Biases.


def records(place: Path):
    """The records of an offline run: blocks of a LevelDB log with protocol buffers in them.

    Source: the format of LevelDB's log files; the package has no reader of its own in Python.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = place.glob("*.wandb")
    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def test_an_offline_run_of_wandb_holds_it_all(diagnosis, png, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "")  # as good as unset
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    entry = diagnosis_entry(diagnosis, {"measures": png})
    place = write_wandb(entry, tmp_path, "my-project")
    assert place.name.startswith("offline-run-") and place.parent == tmp_path / "wandb"
    assert "WANDB_ERROR_REPORTING" not in os.environ
    found = list(records(place))
    (run,) = (r.run for r in found if r.WhichOneof("record_type") == "run")
    assert run.project == "my-project" and run.display_name == "layers-small"
    config = {u.key: json.loads(u.value_json) for u in run.config.update}
    assert config["fingerprints"] == dict(diagnosis.plan.fingerprints) and config["seed"] == 0
    rows = [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
        for r in found
        if r.WhichOneof("record_type") == "history"
    ]
    curve = [(r["layer"], r["windows/kl_nats_per_token"]) for r in rows if "layer" in r]
    assert curve == [(n, s.kl_nats.mean) for n, s in enumerate(diagnosis.summaries)]
    assert rows[0]["figures/measures/width"] == 3, rows[0]
    assert (place / "files" / rows[0]["figures/measures/path"]).read_bytes()[:4] == b"\x89PNG"
    assert rows[0][f"kl_nats_per_token/{diagnosis.summaries[0].condition}"] == curve[0][1]
    told = {
        u.key or "/".join(u.nested_key): json.loads(u.value_json)
        for r in found
        if r.WhichOneof("record_type") == "summary"
        for u in r.summary.update
    }
    assert told["verdict"] == verdict(diagnosis)


def test_the_users_mode_of_wandb_is_checked_before_anything_is_loaded(tmp_path, monkeypatch):
    for mode, said in (
        ("disabled", "WANDB_MODE is 'disabled', so nothing would be logged: unset it"),
        ("foo", "WANDB_MODE 'foo' is no mode; accepted are offline, online"),
    ):
        monkeypatch.setenv("WANDB_MODE", mode)
        with pytest.raises(InputError, match=said):
            make_tracker("wandb", tmp_path)
    for mode in ("", "online"):
        monkeypatch.setenv("WANDB_MODE", mode)
        make_tracker("wandb", tmp_path)


# Evaluations.


def evaluation() -> Evaluation:
    names = ("L0-1", "L2-3")
    runs = [run_of(values=[1.0] * 20), *(run_of(n, values=[0.0] * 15 + [1.0] * 5) for n in names)]
    return Evaluation(
        runs=tuple(runs),
        changes=changes_of(runs, names, EvaluationMargins()),
        conditions=tuple(
            Condition(n, RelativeGaussian(0.1), make_selection(layers=[2 * k, 2 * k + 1]))
            for k, n in enumerate(names)
        ),
        config={"model": "dir/model", "seed": 0},
        fingerprints={"model": "sha256:1"},
        versions={},
        margins=EvaluationMargins(),
        witnesses={n: Witness((), False) for n in names},
    )


def test_samples_that_are_lost_are_logged():
    runs = [run_of(values=[1.0] * 20), run_of("all", values=[math.nan] * 2 + [1.0] * 18)]
    changes = changes_of(runs, ["all"], EvaluationMargins())
    conditions = (Condition("all", RelativeGaussian(0.1), make_selection()),)
    given = replace(evaluation(), changes=changes, conditions=conditions, witnesses={})
    found = {s.tag: s.value for s in evaluation_entry(given).scalars}
    assert found["task_acc_none/all_samples_lost"] == 2


def test_an_evaluation_is_logged_by_task_metric_and_condition(tmp_path):
    given = evaluation()
    found = events(log_evaluation(given, "tensorboard", tmp_path))
    (noisy,) = found.Scalars("task_acc_none/L0-1_noisy")
    assert noisy.value == 0.25
    curve = found.Scalars("windows/task_acc_none_difference")
    assert [(p.step, p.value) for p in curve] == [(0, -0.75), (2, -0.75)]
    assert "task_acc_none/L0-1_samples_lost" not in found.Tags()["scalars"]
    assert "task, acc, L0\\-1: harmful" in text_of(found, "verdict")
    assert "sha256" in text_of(found, "config")


# What a user can cause.


def test_trackers_are_read_from_options_and_each_is_meant_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    found = parse_trackers(
        [f"tensorboard:{tmp_path / 'a'},wandb:mine", "tensorboard", "wandb:mine"]
    )
    assert [(t.name, t.directory, t.project) for t in found] == [
        ("tensorboard", tmp_path / "a", "noisescope"),
        ("wandb", Path(), "mine"),
        ("tensorboard", Path("runs"), "noisescope"),
    ]
    assert parse_trackers(None) == () and not list(tmp_path.iterdir())
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "kept"))
    monkeypatch.setenv("WANDB_PROJECT", "usual")
    (tracker,) = parse_trackers(["wandb"])
    assert (tracker.directory, tracker.project) == (tmp_path / "kept", "usual")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord", "--log tensorbord: no such tracker; did you mean 'tensorboard'"),
        ("mlflow", "accepted are tensorboard, tensorboard:DIR, wandb, or wandb:PROJECT"),
        ("", "names no tracker"),
        ("tensorboard:", "names no tracker"),
        ("tensorboard:a\0b", "is no name of a directory"),
        ("wandb:a/b", "a project's name has none of"),
    ],
)
def test_what_is_no_tracker_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        parse_trackers([given])


def test_a_directory_that_takes_no_files_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(InputError, match=r"--log tensorboard .*file.* is a file"):
            make_tracker("tensorboard", tmp_path / place)
    words = ("layers", "--model=nowhere", "--data=nowhere", f"--log=tensorboard:{tmp_path}/file")
    assert "is a file; name a directory" in refusal(capsys, *words)
    with pytest.raises(InputError, match="cannot write"):
        write_tensorboard(Entry("name", {}, ()), tmp_path / "file")


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as told:
        make_tracker(name)
    assert str(told.value) == (
        f"--log {name} needs the package '{module}', which is not installed: "
        f"pip install 'noisescope[{name}]'"
    )


def test_a_diagnosis_without_a_report_is_logged_by_the_command(tmp_path, capsys, monkeypatch):
    from noisescope.cli import commands
    from noisescope.cli.given import StudyOptions

    given = StudyOptions(model="m", data="d", log=[f"tensorboard:{tmp_path / 'runs'}"])
    made = replace(small_diagnosis(), notes=("a note",))
    monkeypatch.setattr(
        commands, "log_diagnosis", lambda d, t, figures: log_diagnosis(d, t, figures=figures or {})
    )
    (line,) = commands._log(made, given)
    assert line == f"Logged: {tmp_path / 'runs' / 'layers-small'}"
    assert text_of(events(tmp_path / "runs" / "layers-small"), "notes") == "a note"
