"""What the terminal shows: a table that fits, plain text into a pipe, names never as markup."""

import io
from dataclasses import replace

import pytest
from helpers.diagnoses import small_diagnosis, with_conditions, with_name
from helpers.small_models import small_model
from rich.console import Console

from noisescope.inject.probe import list_sites
from noisescope.report.terminal import (
    bar,
    print_coverage,
    print_diagnosis,
    print_sites,
    progress_bar,
)


def shown(print_it, *arguments, width=80, **options):
    file = io.StringIO()
    print_it(Console(file=file, width=width, **options), *arguments)
    return file.getvalue()


def table_lines(text, first):
    """The lines of the table: its header, which begins with `first`, up to the coverage."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next(i for i, line in enumerate(lines) if line.startswith("coverage"))
    return lines[start:end]


@pytest.mark.parametrize("kind", ["layers", "operators"])
@pytest.mark.parametrize("is_generative", [True, False])
def test_the_table_has_a_line_per_condition_at_80_columns(kind, is_generative):
    diagnosis = small_diagnosis(kind, is_generative)
    text = shown(print_diagnosis, diagnosis)
    assert all(len(line) <= 80 for line in text.splitlines())
    header, *lines = table_lines(text, kind)
    assert [line.split()[0] for line in lines] == [s.condition for s in diagnosis.summaries]
    assert "…" not in text
    assert ("accuracy" in header) == is_generative
    worst = max(diagnosis.summaries, key=lambda s: s.kl_nats.mean).condition
    longest = max(lines, key=lambda line: line.count("█"))
    assert longest.split()[0] == worst
    assert "inconclusive" in text or "beyond chance" in text or "none (" in text


def test_each_column_holds_its_own_figure():
    diagnosis = small_diagnosis("layers", True)
    first = replace(diagnosis.summaries[0], condition="mine", accuracy=0.6, degradation=0.25)
    sessions = diagnosis.measurement.sessions | {
        "mine": diagnosis.measurement.sessions[diagnosis.summaries[0].condition]
    }
    measurement = replace(diagnosis.measurement, sessions=sessions)
    changed = replace(diagnosis, summaries=(first,), measurement=measurement, baseline_accuracy=0.8)
    header, line = table_lines(shown(print_diagnosis, changed), "layers")
    assert header.split()[:3] == ["layers", "accuracy", "lost"]
    assert line.split()[:3] == ["mine", "60.0%", "25.0%"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_is_never_wrapped(width):
    diagnosis = with_conditions(small_diagnosis(), 28)
    lines = table_lines(shown(print_diagnosis, diagnosis, width=width), "layers")
    assert [line.split()[0] for line in lines[1:]] == [f"L{i}" for i in range(28)]
    assert all(len(line) <= width for line in lines)
    assert any("█" in line for line in lines) == (width >= 80)


def test_into_a_pipe_there_is_no_colour_and_into_a_terminal_there_is():
    plain = shown(print_diagnosis, small_diagnosis())
    coloured = shown(print_diagnosis, small_diagnosis(), force_terminal=True)
    assert "\x1b" not in plain and "\x1b[" in coloured


@pytest.mark.parametrize("name", ["[red]x[red]", "[bold]", ":smile:", "[link=x]y", "$x_", "[]"])
def test_a_hostile_name_stays_text(name):
    assert name in shown(print_diagnosis, with_name(small_diagnosis(), name))


def test_the_headline_says_what_was_done():
    text = " ".join(shown(print_diagnosis, small_diagnosis()).split())
    assert "RelativeGaussian 0.3 on matmul, linear; 6 samples, 2 draws, seed 0; clean" in text
    assert "clean accuracy 100.0%" in text
    alone = " ".join(shown(print_diagnosis, small_diagnosis(draws=1, is_generative=False)).split())
    assert "1 draw, seed 0; nothing generated" in alone


def test_noise_of_nothing_has_no_bar():
    text = shown(print_diagnosis, small_diagnosis(scale=0.0))
    assert "█" not in text and "no condition did worse than the clean model" in text


@pytest.mark.parametrize(
    ("value", "largest", "expected"),
    [
        (1.0, 1.0, "████"),
        (0.5, 1.0, "██"),
        (0.125, 1.0, "▌"),
        (1e-9, 1.0, "▏"),
        (0.0, 1.0, ""),
        (-1.0, 1.0, ""),
        (float("nan"), 1.0, ""),
        (1.0, 0.0, ""),
        (1.0, float("nan"), ""),
    ],
)
def test_a_bar_is_its_share_of_the_largest(value, largest, expected):
    assert bar(value, largest, 4) == expected


def test_coverage_lists_every_operator_with_its_sites():
    session = small_diagnosis("operators").measurement.sessions["all"]
    lines = shown(print_coverage, session.records).splitlines()
    assert [line.split()[0] for line in lines] == [
        "coverage",
        *(row.operator for row in session.coverage()),
    ]


def test_sites_of_like_layers_share_a_line():
    records = list_sites(small_model("llama"), [1, 2, 3])
    text = shown(print_sites, records, False)
    line = next(line for line in text.splitlines() if "q_proj" in line)
    assert line.split() == ["0-2", "model.layers.*.self_attn.q_proj", "linear", "1"]
    full = shown(print_sites, records, True)
    assert sum("q_proj" in line for line in full.splitlines()) == 3
    assert "model.layers.2.self_attn.q_proj" in full
    assert "head" in text and "embed" in text


def test_progress_is_shown_in_a_terminal_alone():
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=80)
        with progress_bar(console) as tell:
            tell("L0-2 [red]", 3, 7)
        text = file.getvalue()
        assert ("L0-2 [red]" in text and "3/7" in text) if is_terminal else not text
