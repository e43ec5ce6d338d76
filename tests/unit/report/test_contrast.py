"""What a comparison says: sentences, tables, the page and its JSON."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from noisescope.analyse import Interval
from noisescope.analyse.change import Sides, adjusted, make_change
from noisescope.analyse.gate import judge, parse_gate
from noisescope.inject import Dose
from noisescope.records import CLEAN
from noisescope.report.contrast.output import write_contrast
from noisescope.report.contrast.page import contrast_sections, contrast_summary
from noisescope.report.contrast.result import contrast_of
from noisescope.report.contrast.text import print_contrast, print_rulings
from noisescope.report.contrast.words import (
    p_text,
    ruling_text,
    signed_points,
    signed_text,
    statements,
    verdict_line,
)
from noisescope.study.contrast import MODELS, STUDIES, Contrast, Party

NAN = math.nan
HOSTILE = "=cmd|' /C calc'!A0<script>alert(1)</script>&$x^2$"


def interval(mean, low=NAN, high=NAN):
    return Interval(mean, low, high, 10.0, False)


def pair_of(name, measure, second, first=None, is_same=False):
    second = np.atleast_2d(np.asarray(second, float))
    first = np.zeros_like(second) if first is None else np.atleast_2d(np.asarray(first, float))
    samples = tuple(f"s{n}" for n in range(second.shape[1]))
    return make_change(name, measure, Sides(first, second, samples=samples), is_same=is_same)


def party(path="a", **about):
    known = {"model": path, "data": "test", "dtype": "float32", "device": "cpu", "samples": 40}
    prints = {"model": "sha256:" + path * 64, "configuration": "c", "data": "d"}
    return Party(path, known | about, prints, {"torch": "2.13"})


def of_models(rise=0.03, lost=4, **changes):
    rng = np.random.default_rng(0)
    right = [1.0] * 40
    found = adjusted(
        [
            pair_of("", "kl", rise + rng.exponential(0.001, 40)),
            pair_of("", "accuracy", [0.0] * lost + right[lost:], right),
            pair_of("", "nll", 1 + rng.normal(0, 0.01, 40), np.ones(40)),
        ]
    )
    fields = {"agreement": {"top1": 0.975, "answers": 0.9}} | changes
    return Contrast(MODELS, party("a"), party("b"), found, **fields)


def of_studies(**changes):
    rng = np.random.default_rng(1)
    base = rng.exponential(0.02, (1, 40))
    shifts = {"L0": 0.05, "L1": -0.015, "L2": 0.0}
    found = [pair_of(CLEAN, "accuracy", [1.0] * 40, [1.0] * 40, is_same=True)]
    for name, shift in shifts.items():
        noise = rng.normal(0, 0.004, base.shape)
        second = base + shift + noise - noise.mean()
        found.append(pair_of(name, "kl", second, base))
    dose = Dose(100, 90, 0.05, 0.05, 0.05)
    about = {"study": "layers", "draws": 1, "seed": 0, "error model": "RelativeGaussian"}
    fields = {
        "doses": dict.fromkeys(shifts, (dose, dose)),
        "differing": ("seed: 0 in A, 1 in B", "error model scale: 0.1 in A, 0.2 in B (every one)"),
        "notes": ("the weights are identical",),
        "only": (("L7",), ()),
    }
    parties = (party(n, **about, **{"noise scale": 0.1}) for n in "ab")
    return Contrast(STUDIES, *parties, adjusted(found), **fields | changes)


def printed(contrast, rulings=(), width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    print_contrast(console, contrast)
    print_rulings(console, rulings, contrast.kind)
    return console.export_text()


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (interval(0.0221, -0.0053, 0.038), "+0.022 [-0.0053, 0.038]"),
        (interval(-0.5, -0.9, -0.1), "-0.5 [-0.9, -0.1]"),
        (interval(0.3), "+0.3 [too few data]"),
        (interval(0.0), "0"),
        (interval(NAN), "n/a"),
    ],
)
def test_differences_are_written_with_their_sign(found, text):
    assert signed_text(found) == text


def test_points_are_written_with_their_sign():
    assert signed_points(interval(-0.02, -0.051, 0.01)) == "-2.0 [-5.1, 1.0]"
    assert signed_points(interval(0.02)) == "+2.0 [too few data]"
    assert signed_points(interval(NAN)) == "n/a"


def test_p_values_never_read_as_zero():
    assert (p_text(0.0123), p_text(0.0)) == ("p = 0.012", "p < 1e-12")


def test_two_models_are_told_measure_by_measure():
    text = " ".join(statements(of_models()))
    assert "KL(A || B) is 0.031 [" in text and "the same in 97.5%" in text
    assert "Accuracy is 100.0% in A and 90.0% in B: -10.0 [" in text
    assert "NLL is 1 in A and 1 in B: " in text and "which chance may explain" in text
    assert "Of 40 answers 4 are wrong in B alone, and 0 are right in B alone" in text
    assert "Of 40 answers 1 is wrong" in " ".join(statements(of_models(lost=1)))


def test_the_same_model_is_said_to_be_that():
    same = [pair_of("", "kl", [0.0] * 5, is_same=True)]
    found = Contrast(MODELS, party("a"), party("a"), tuple(same))
    assert statements(found) == [
        "KL(A || B) is 0: the weights are identical, and nothing was to be run."
    ]


def test_studies_are_told_by_what_rose_and_fell():
    text = " ".join(statements(of_studies()))
    assert "Without noise accuracy is 100.0% in both: the model is the same." in text
    assert "Under noise KL rises beyond chance in L0, most in L0: +0.05 [" in text
    assert "it falls beyond chance in L1" in text and "it is open in L2." in text


@pytest.mark.parametrize(
    ("gate", "kind", "starts", "ends"),
    [
        ("kl>0.02", MODELS, "is shown (exit 1): KL(A || B) is 0.031 [", "beyond 0.02 (p < 1e-12, "),
        ("kl>0.5", MODELS, "is excluded (exit 0): KL(A || B) is 0.031 [", "within 0.5 (p "),
        (
            "accuracy<-8%",
            MODELS,
            "is inconclusive (exit 3): accuracy changes by -10.0 [",
            "points,",
        ),
        ("kl[L0]>0.02", STUDIES, "is shown (exit 1): KL in L0 changes by +0.05 [", "beyond 0.02"),
        ("kl>0.5", STUDIES, "KL in L0, the nearest of 3 conditions, changes by +0.05 [", "within"),
        (
            "accuracy<-1%",
            STUDIES,
            "(exit 0): the weights are identical, so accuracy is the",
            "same",
        ),
    ],
)
def test_a_ruling_says_what_decided_it(gate, kind, starts, ends):
    contrast = of_models() if kind == MODELS else of_studies()
    text = ruling_text(judge(parse_gate(gate), contrast.changes), kind)
    assert text.startswith(f"Gate {gate} is ") and starts in text and ends in text


def test_what_would_settle_a_gate_is_the_last_line():
    contrast = of_models(rise=0.018)
    rulings = [judge(parse_gate(g), contrast.changes) for g in ("kl>0.5", "accuracy<-8%")]
    needed = rulings[1].needed_samples
    last = " ".join(printed(contrast, rulings, width=200).splitlines()[-1].split())
    assert last == (
        "Gates: kl>0.5 excluded; accuracy<-8% inconclusive (exit 3); about "
        f"{needed:,} samples would settle what is open."
    )
    assert f"about {needed:,} samples would settle it" in verdict_line(rulings[1:], MODELS)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_cell_is_cut_in_the_terminal(width):
    text = printed(of_studies(), width=width)
    assert "…" not in text and "+0.05" in text and "nan" not in text.lower()
    assert ("dose A" in text) == (width == 140)
    assert "not compared: L7" in " ".join(text.split())


def test_the_table_of_two_models_has_a_row_per_measure():
    lines = printed(of_models()).splitlines()
    assert [line.split(",")[0] for line in lines[3:6]] == ["KL(A || B)", "accuracy", "NLL"]
    assert lines[3].split()[-1] == "up" and lines[5].split()[-1] == "?"


@pytest.mark.parametrize("make", [of_models, of_studies])
def test_the_page_and_its_files_are_written_once(make, tmp_path):
    contrast, out = make(), tmp_path / "out"
    rulings = [judge(parse_gate("kl>0.02"), contrast.changes)]
    names = write_contrast(contrast, rulings, out, "noisescope compare a b")
    assert names == ("compare.json", "report.html", "figures")
    page = (out / "report.html").read_text()
    for text in ("What changed", "The gate", "How it was run", "noisescope compare a b"):
        assert text in page
    assert "nan" not in page.lower().replace("nanos", "")
    pictures = {p.name for p in (out / "figures").iterdir()}
    assert "samples.png" in pictures and "samples.csv" in pictures
    result = json.loads((out / "compare.json").read_text())
    assert result["exit_status"] == 1 and result["gates"][0]["outcome"] == "shown"
    again = tmp_path / "again"
    write_contrast(contrast, rulings, again, "noisescope compare a b")
    for path in out.rglob("*.*"):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()


def test_the_verdict_comes_first_on_the_page():
    contrast = of_models()
    rulings = [judge(parse_gate("kl>0.02"), contrast.changes)]
    summary = contrast_summary(contrast, rulings)
    assert summary[0].startswith("Gate kl>0.02 is shown")
    assert summary[-1] == "Do not take B as it is: kl>0.02 is shown."
    assert [s.name for s in contrast_sections(contrast, rulings, "x")] == [
        "changes",
        "samples",
        "gate",
        "differing",
        "run",
    ]


def test_figures_in_json_are_those_that_were_found():
    contrast = of_studies()
    result = contrast_of(contrast)
    assert result["compared"] == STUDIES and result["only_in_a"] == ["L7"]
    entry = next(c for c in result["changes"] if c["condition"] == "L0")
    change = next(c for c in contrast.changes if c.condition == "L0")
    assert entry["difference"]["low"] == change.difference.low
    assert (entry["draws"], entry["samples_a"], entry["is_paired"]) == (1, 40, True)
    assert result["doses"]["L0"]["a"]["elements"] == 100
    assert result["a"]["seed"] == 0 and result["a"]["versions"] == {"torch": "2.13"}
    assert not result["weights_are_identical"]


def test_what_is_unknown_is_null_in_json():
    found = Contrast(MODELS, party("a"), party("b"), (pair_of("", "kl", [0.5]),))
    text = json.dumps(contrast_of(found), allow_nan=False)
    assert json.loads(text)["changes"][0]["p"] is None


def test_hostile_names_stay_text(tmp_path):
    contrast = of_studies()
    named = tuple(
        replace(c, condition=HOSTILE if c.condition == "L0" else c.condition)
        for c in contrast.changes
    )
    first = replace(contrast.first, path=HOSTILE)
    contrast = replace(contrast, changes=named, first=first, notes=(HOSTILE, "[red]"))
    write_contrast(contrast, [], tmp_path / "out", f"x '{HOSTILE}'")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    with (tmp_path / "out" / "figures" / "differences-kl.csv").open(newline="") as file:
        assert not any(cell.startswith("=") for row in csv.reader(file) for cell in row)
    assert "[red]" in printed(contrast)
