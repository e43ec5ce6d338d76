"""What the terminal shows: a table that fits, plain text into a pipe, names never as markup."""

import io
from dataclasses import replace

import pytest
from helpers.diagnoses import (
    small_diagnosis,
    with_analysis,
    with_conditions,
    with_name,
    with_summaries,
)
from helpers.small_models import small_model
from rich.console import Console

from noisescope.analyse import Interval, Verdict
from noisescope.inject.probe import list_sites
from noisescope.report.table import bar
from noisescope.report.terminal import (
    print_coverage,
    print_diagnosis,
    print_sites,
    progress_bar,
)
from noisescope.study import Margins, make_diagnosis


def shown(print_it, *arguments, width=80, **options):
    file = io.StringIO()
    print_it(Console(file=file, width=width, **options), *arguments)
    return file.getvalue()


def table_lines(text, first):
    """The lines of the table: its header, which begins with `first`, up to what follows."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next(i for i, line in enumerate(lines) if line.startswith(("prediction:", "coverage")))
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
    assert "predicted" in header
    _, *lines = table_lines(shown(print_diagnosis, diagnosis, width=110), kind)
    worst = max(diagnosis.summaries, key=lambda s: s.kl_nats.mean).condition
    longest = max(lines, key=lambda line: line.count("█"))
    assert longest.split()[0] == worst
    assert "inconclusive" in text or "beyond chance" in text or "none (" in text


def test_each_column_holds_its_own_figure():
    diagnosis = small_diagnosis("layers", True)
    first = replace(
        diagnosis.summaries[0],
        condition="mine",
        accuracy=0.6,
        degradation=0.25,
        kl_nats=Interval(0.5, 0.25, 0.75, 9.0, True),
    )
    changed = with_analysis(with_summaries(diagnosis, first), baseline_accuracy=0.8)
    header, line = table_lines(shown(print_diagnosis, changed), "layers")
    assert header.split()[:3] == ["layers", "accuracy", "lost"]
    assert line.split()[:6] == ["mine", "60.0%", "25.0%", "0.5", "[0.25,", "0.75]"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_is_never_wrapped_and_no_cell_is_cut(width):
    diagnosis = with_conditions(small_diagnosis(), 28)
    text = shown(print_diagnosis, diagnosis, width=width)
    lines = table_lines(text, "layers")
    assert [line.split()[0] for line in lines[1:]] == [f"L{i}" for i in range(28)]
    assert all(len(line) <= width for line in lines)
    assert "…" not in text
    assert any("█" in line for line in lines) == (width >= 120)
    assert ("predicted" in lines[0]) == (width >= 80)
    assert ("dose" in lines[0]) == (width >= 80)
    assert all(name in lines[0] for name in ("accuracy", "KL, nats/token", "harm"))


@pytest.mark.parametrize(
    ("width", "left_out"), [(120, []), (80, ["dose", "lost"]), (66, ["dose", "lost", "accuracy"])]
)
def test_long_names_of_sites_are_whole_where_other_columns_can_go(width, left_out):
    name = "model.layers.{}.self_attn.o_proj:linear"
    diagnosis = with_conditions(small_diagnosis(), 12, name=name)
    lines = table_lines(shown(print_diagnosis, diagnosis, width=width), "layers")
    assert [line.split()[0] for line in lines[1:]] == [name.format(i) for i in range(12)]
    columns = ["accuracy", "lost", "KL", "harm", "dose"]
    assert [c for c in columns if c in lines[0]] == [c for c in columns if c not in left_out]
    assert all(("[" in line) == (width >= 80) for line in lines[1:])


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


def verdict(measure, outcome, samples=None, draws=None):
    return Verdict(measure, outcome, 0.01, 0.5, 0.5, samples, draws, "why")


def test_the_verdicts_are_words_of_their_own_and_say_what_would_settle_them():
    diagnosis = with_conditions(small_diagnosis(), 3)
    outcomes = [
        (verdict("accuracy", "harmful"), verdict("kl", "inconclusive", samples=190)),
        (verdict("accuracy", "harmless"), verdict("kl", "inconclusive", draws=12)),
        (verdict("accuracy", "inconclusive"), verdict("kl", "harmless")),
    ]
    some = [
        replace(s, accuracy_verdict=accuracy, kl_verdict=kl)
        for s, (accuracy, kl) in zip(diagnosis.summaries, outcomes, strict=True)
    ]
    text = shown(print_diagnosis, with_summaries(diagnosis, *some), width=100)
    header, *lines = table_lines(text, "layers")
    start = header.index("harm")
    assert [line[start - 3 : start + 4].strip() for line in lines] == ["yes/?", "no/?", "?/no"]
    told = text.splitlines()
    assert "harm by accuracy/KL: a loss beyond 1 point / 0.01 nats per token; ? is" in text
    assert "inconclusive by accuracy: L2" in told
    settled = "about 190 samples in L0, 12 draws in L1 would settle it"
    assert f"inconclusive by KL: L0, L1; {settled}" in told


@pytest.mark.parametrize(
    ("accuracy", "said"), [(0.01, "1 point /"), (0.02, "2 points /"), (0.005, "0.5 points /")]
)
def test_margins_are_said_in_points_and_nats(accuracy, said):
    changed = replace(small_diagnosis(), margins=Margins(accuracy, 0.3))
    assert f"beyond {said} 0.3 nats per token" in " ".join(shown(print_diagnosis, changed).split())


def test_where_nothing_is_generated_harm_is_of_kl_alone():
    text = shown(print_diagnosis, small_diagnosis(is_generative=False))
    assert "harm: a loss beyond 0.01 nats per token" in text
    assert "point" not in text.split("harm:")[1].split("Avalanche")[0]
    assert "inconclusive by accuracy" not in text
    assert "by accuracy: none, since nothing was generated" in text


def test_the_held_out_loss_of_the_worst_is_shown():
    diagnosis = small_diagnosis()
    accuracy = replace(
        diagnosis.worst_accuracy,
        held_out=Interval(0.73, 0.6228, 0.8085, 9.0, False),
        held_out_draws=False,
    )
    kl = replace(
        diagnosis.worst_kl, held_out=Interval(0.26, 0.21, 0.32, 9.0, True), held_out_draws=True
    )
    changed = with_analysis(diagnosis, worst_accuracy=accuracy, worst_kl=kl)
    text = " ".join(shown(print_diagnosis, changed).split())
    assert "on questions that did not choose it, it loses 73.0 [62.3, 80.8] points" in text
    expected = "questions and draws that did not choose it, it loses 0.26 [0.21, 0.32] nats"
    assert expected in text


def test_rough_intervals_are_named_once_with_what_makes_them_rough():
    diagnosis = with_conditions(small_diagnosis(), 6)
    some = [
        replace(s, kl_nats=replace(s.kl_nats, caution=caution))
        for s, caution in zip(
            diagnosis.summaries,
            ["few draws: a", "few draws: b; skewed: c", *["few draws: d"] * 4],
            strict=True,
        )
    ]
    lines = shown(print_diagnosis, with_summaries(diagnosis, *some)).splitlines()
    assert "intervals of KL are rough: few draws in all 6; skewed in L1" in lines
    some[0] = diagnosis.summaries[0]
    lines = shown(print_diagnosis, with_summaries(diagnosis, *some)).splitlines()
    assert any("few draws in 5 of 6; skewed in L1" in line for line in lines)
    healthy = shown(print_diagnosis, with_summaries(diagnosis, *[diagnosis.summaries[0]] * 1))
    assert "rough" not in healthy


def test_a_close_call_is_noted_with_its_counts():
    diagnosis = small_diagnosis()
    some = [replace(r, close_calls=2 if i < 3 else 0) for i, r in enumerate(diagnosis.records)]
    found = make_diagnosis(diagnosis.plan, some, diagnosis.witnesses, ())
    text = " ".join(shown(print_diagnosis, found).split())
    assert f"Note: in 3 of {len(some)} answers the two best tokens came within rounding" in text
    assert "in 6 steps" in text
    none = [replace(r, close_calls=0) for r in diagnosis.records]
    silent = make_diagnosis(diagnosis.plan, none, diagnosis.witnesses, ())
    assert "within rounding" not in shown(print_diagnosis, silent)


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
    witness = small_diagnosis("operators").witnesses["all"]
    lines = shown(print_coverage, witness.records).splitlines()
    assert [line.split()[0] for line in lines] == [
        "coverage",
        *(row.operator for row in witness.coverage()),
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
