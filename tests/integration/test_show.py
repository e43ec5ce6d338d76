"""`noisescope show`: where a study stands, at any moment, without a model and without a change."""

import json
import re

import pytest
from helpers.commands import (
    SMALL_STUDY,
    carry_out,
    files_of,
    in_small_units,
    interrupted_in_unit,
    nothing_measured,
    refusal,
    with_plain_figures,
    work_with,
    write_small_study,
)

from noisescope.cli import run
from noisescope.study import open_study, read_study


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return write_small_study(tmp_path_factory.mktemp("origin"))


@pytest.fixture
def place(origin, tmp_path, monkeypatch):
    in_small_units(monkeypatch)
    with_plain_figures(monkeypatch)
    return work_with(origin, tmp_path, monkeypatch)


GOOD = [*SMALL_STUDY, "--out=study"]


def half_done(monkeypatch, capsys, *words):
    with interrupted_in_unit(monkeypatch, 2):
        assert run([*GOOD, *words]) == 130
    capsys.readouterr()


def test_a_half_done_study_shows_what_is_done_and_what_it_says_so_far(place, monkeypatch, capsys):
    half_done(monkeypatch, capsys)
    before = files_of(place / "study")
    text = carry_out(capsys, "show", "study")
    assert text.startswith("study: a study of layers, 2 of 3 units, 16 records, more steps may")
    assert "3 conditions, 1 draw, 6 samples, seed 0; model llama (sha256:" in text
    assert re.search(r"^L0 .*^L1 .*^L2 ", text, re.MULTILINE | re.DOTALL)
    assert "4 samples are too few to tell" in " ".join(text.split())
    assert "works on it" not in text and "nan" not in text.lower()
    assert files_of(place / "study") == before


WHOLE = ["diagnose", *GOOD[1:], "--scales=0.1"]


@pytest.mark.parametrize(
    "unit", [3, 12, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 9, 15))]
)
def test_a_whole_diagnosis_is_shown_at_every_moment(place, monkeypatch, capsys, unit):
    """Also where a step is half done: what it will tell is not told yet, and nothing breaks."""
    with interrupted_in_unit(monkeypatch, unit):
        assert run(WHOLE) == 130
    capsys.readouterr()
    before = files_of(place / "study")
    text = carry_out(capsys, "show", "study")
    assert text.startswith("study: a study of diagnose, ") and "complete" not in text
    assert "Verdict" in text and "nan" not in text.lower()
    assert files_of(place / "study") == before
    printed = carry_out(capsys, *WHOLE)
    shown = carry_out(capsys, "show", "study")
    assert shown.startswith("study: a study of diagnose, complete")
    assert printed.split("Written:")[0] in shown


@pytest.mark.parametrize("command", ["channels", pytest.param("operators", marks=pytest.mark.slow)])
def test_every_kind_is_shown(place, capsys, command):
    words = [word for word in GOOD[1:] if not word.startswith("--window")]
    printed = carry_out(capsys, command, *words)
    assert printed.split("Written:")[0] in carry_out(capsys, "show", "study")


def test_a_study_that_has_only_begun_shows_no_table(place, monkeypatch, capsys):
    with interrupted_in_unit(monkeypatch, 1):
        assert run(GOOD) == 130
    (place / "study" / "records.jsonl").unlink()
    text = carry_out(capsys, "show", "study")
    assert text.startswith("study: a study of layers, 0 of 3 units, 0 records, more steps may")
    assert "KL, nats/token" not in text


def test_a_complete_study_shows_what_its_command_printed(place, monkeypatch, capsys):
    printed = carry_out(capsys, *GOOD)
    with nothing_measured(monkeypatch):
        text = carry_out(capsys, "show", "study")
    first, *rest = text.splitlines(keepends=True)
    assert first == "study: a study of layers, complete\n"
    report = printed.split("Written:")[0]
    assert "".join(rest).endswith(report) and report.startswith("llama (float32, cpu)")


def test_who_works_on_it_is_said(place, monkeypatch, capsys):
    half_done(monkeypatch, capsys)
    with open_study(place / "study", read_study(place / "study").plan):
        text = " ".join(carry_out(capsys, "show", "study").split())
    told = "2 of 3 units, 16 records, more steps may follow"
    assert re.search(told + r"; process \d+ on host \S+ works on it now", text)


def test_an_extended_study_says_so(place, capsys):
    carry_out(capsys, *GOOD)
    carry_out(capsys, *GOOD, "--draws=2", "--extend")
    assert "complete, extended 1 time\n" in carry_out(capsys, "show", "study")
    carry_out(capsys, *GOOD, "--draws=3", "--extend")
    assert "complete, extended 2 times\n" in carry_out(capsys, "show", "study")


def test_other_directories_are_refused(place, capsys):
    (place / "empty").mkdir()
    for name in ("nowhere", "empty", "llama"):
        line = refusal(capsys, "show", name)
        assert (
            line == f"Error: {name} holds no study (manifest.json is missing): name one that does\n"
        )
    assert not (place / "nowhere").exists()


@pytest.mark.parametrize("name", ["manifest.json", "records.parquet", "witnesses.json"])
def test_a_complete_study_that_was_changed_is_refused(place, capsys, name):
    carry_out(capsys, *GOOD)
    path = place / "study" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    line = refusal(capsys, "show", "study")
    assert f"study/{name} was changed since it was written" in line
    assert "was changed" in refusal(capsys, *GOOD)


def test_a_record_changed_by_hand_is_refused(place, monkeypatch, capsys):
    half_done(monkeypatch, capsys)
    path = place / "study" / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    record = json.loads(lines[5])
    record["kl_nats"] = 0.0
    lines[5] = json.dumps(record, separators=(",", ":")) + "\n"
    path.write_text("".join(lines))
    assert "records.jsonl: line 6 changed since it was written" in refusal(capsys, "show", "study")
    assert "line 6 changed since it was written" in refusal(capsys, *GOOD)


@pytest.mark.parametrize("name", ["[red]x[bold]", "a\x1b[31mb", ":smile:"])
def test_names_in_a_study_stay_text(place, monkeypatch, capsys, name):
    (place / name).symlink_to(place / "llama")
    (place / f"{name}.parquet").symlink_to(place / "test.parquet")
    words = [word for word in GOOD if not word.startswith(("--model", "--data"))]
    carry_out(capsys, *words, f"--model={name}", f"--data={name}.parquet")
    text = carry_out(capsys, "show", "study")
    assert "\x1b" not in text
    assert text.count(name.replace("\x1b", "?")) == 4, "model twice, data, and a note"
