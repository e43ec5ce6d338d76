"""The report of a diagnosis: its sections in order, holding the figures that the result holds."""

import csv
import io
import math
import shlex
from dataclasses import replace

import pytest
from helpers.diagnoses import (
    small_diagnosis,
    whole_diagnosis,
    with_conditions,
    with_config,
    with_findings,
    with_name,
    with_summaries,
)

from noisescope.analyse import Interval
from noisescope.noise import RelativeGaussian
from noisescope.report import result_of, sentences
from noisescope.report.figures import estimate_text, points_text
from noisescope.report.page.how import command_of, how_section
from noisescope.report.page.page import Section, page_bytes
from noisescope.report.page.sections import PAGE, diagnosis_sections, report_files, summary_of
from noisescope.report.pictures.cells import SUM, grid_of, label_of
from noisescope.report.pictures.conditions import condition_picture
from noisescope.report.pictures.prediction import short_site
from noisescope.study import Margins, Told

ORDER = [
    "map",
    "prediction",
    "dose",
    "windows",
    "operators",
    "single-sites",
    "channels",
    "coverage",
]
NAN = Interval(math.nan, math.nan, math.nan, math.nan, False)


@pytest.fixture(scope="module")
def files():
    return report_files(whole_diagnosis())


def rows_of(files, name):
    return list(csv.DictReader(io.StringIO(files[f"figures/{name}.csv"].decode())))


def same(text, value):
    return text == "" if value is None else float(text) == value


def test_the_sections_come_in_order_and_none_is_empty():
    sections = diagnosis_sections(whole_diagnosis())
    assert [section.name for section in sections] == ORDER
    for section in sections:
        assert section.title and (section.pictures or section.tables)
    names = [picture.name for section in sections for picture in section.pictures]
    assert len(set(names)) == len(names)
    assert {"map", "prediction", "dose", "windows", "operators", "channels"} <= set(names)


def test_the_verdict_comes_first_and_is_that_of_the_terminal(files):
    text = files[PAGE].decode()
    assert " ".join(summary_of(whole_diagnosis())) == " ".join(sentences(whole_diagnosis()))
    assert text.index('<h2 id="verdict-heading">') < text.index('<section id="map"')
    assert "What to do:" in text[: text.index('<section id="map"')]


@pytest.mark.parametrize("name", ["windows", "operators"])
def test_conditions_hold_the_figures_of_the_result(files, name):
    key = {"windows": "layer_sensitivity", "operators": "operator_sensitivity"}[name]
    expected = result_of(whole_diagnosis())[key]
    rows = rows_of(files, name)
    assert {row["condition"] for row in rows} == set(expected)
    for row in rows:
        entry = expected[row["condition"]]
        kl, drop = entry["kl_nats_per_token"], entry["accuracy_drop"]
        assert same(row["KL, nats per token"], kl["mean"])
        assert same(row["low"], kl["low"]) and same(row["high"], kl["high"])
        assert same(row["accuracy"], entry["accuracy"])
        assert float(row["accuracy lost, points"]) == pytest.approx(100 * drop["mean"])
        assert row["harm by KL"] == entry["kl_verdict"]["outcome"]
        assert row["harm by accuracy"] == entry["accuracy_verdict"]["outcome"]


def test_tables_hold_every_interval_of_the_conditions():
    diagnosis = whole_diagnosis()
    tables = {t.title: t for s in diagnosis_sections(diagnosis) for t in s.tables}
    cells = [cell for table in tables.values() for row in table.rows for cell in row]
    for summary in diagnosis.summaries:
        assert estimate_text(summary.kl_nats) in cells
        assert points_text(summary.accuracy_drop).removesuffix(" points") in cells
    for effect in diagnosis.findings.channels:
        assert {estimate_text(effect.these), estimate_text(effect.others)} <= set(cells)
    for part in diagnosis.findings.additivity.parts:
        assert estimate_text(part.alone) in cells


def test_doses_hold_the_figures_of_the_result(files):
    rows = rows_of(files, "dose")
    expected = [
        (name, scale)
        for name, curve in result_of(whole_diagnosis())["avalanche_curve"].items()
        for scale in curve["scales"]
    ]
    assert len(rows) == len(expected) > 8
    for row, (name, scale) in zip(rows, expected, strict=True):
        assert row["noise in"] == name and same(row["scale"], scale["scale"])
        assert same(row["measured KL, nats per token"], scale["measured"]["mean"])
        assert same(row["low ratio"], scale["ratio"]["low"])
        assert row["beside the line"] == scale["place"]


def test_prediction_holds_both_and_names_what_is_off(files):
    result = result_of(whole_diagnosis())["prediction"]
    rows = {row["condition"]: row for row in rows_of(files, "prediction")}
    for name, row in rows.items():
        predicted = result["conditions"][name]
        assert same(row["predicted KL, nats per token"], predicted["kl_nats_per_token"])
        measured = float(row["measured KL, nats per token"])
        ratio = measured / predicted["kl_nats_per_token"]
        assert float(row["measured over predicted"]) == pytest.approx(ratio)
    departing = result["agreement"]["departing"]
    assert set(departing) <= {name for name, row in rows.items() if row["off the line"] == "yes"}


def test_cells_of_the_map_add_up_to_their_sums():
    diagnosis = whole_diagnosis()
    grid, profile = grid_of(diagnosis), diagnosis.told.profile
    single = [c for (region, operator), c in grid.cells.items() if SUM not in (region, operator)]
    assert sum(len(cell.sites) for cell in single) == len(profile.sites)
    total = grid.cells[SUM, SUM]
    assert sum(cell.predicted for cell in single) == pytest.approx(total.predicted)
    by_hand = {}
    for site in profile.sites:
        key = (label_of(site.region), site.operator)
        by_hand[key] = by_hand.get(key, 0.0) + float(site.kl_EKN[0].mean())
    for cell in single:
        assert cell.predicted == pytest.approx(by_hand[cell.region, cell.operator])
    for region in grid.regions[:-1]:
        row = [cell.predicted for cell in single if cell.region == region]
        assert sum(row) == pytest.approx(grid.cells[region, SUM].predicted)


def test_what_was_measured_stands_in_its_cell():
    diagnosis = whole_diagnosis()
    grid = grid_of(diagnosis)
    kl = {s.condition: s.kl_nats for s in diagnosis.analysis.summaries}
    (found,) = grid.cells[SUM, "linear"].measured
    assert (found.condition, found.kl) == ("linear", kl["linear"])
    assert [m.condition for m in grid.cells["L0", SUM].measured] == ["L0"]
    assert [m.condition for m in grid.cells[SUM, SUM].measured] == ["all"]
    sites = {
        m.condition: key for key, c in grid.cells.items() for m in c.measured if ":" in m.condition
    }
    assert sites
    for name, (region, operator) in sites.items():
        cell = grid.cells[region, operator]
        assert name in cell.sites and name.rsplit(":", 2)[1] == operator


def test_a_measurement_lies_above_or_below_its_prediction_beyond_chance_only():
    grid = grid_of(whole_diagnosis())
    for cell in grid.cells.values():
        for found in cell.measured:
            if found.place == "above":
                assert found.kl.low > found.predicted.kl_nats
            if found.place == "below":
                assert found.kl.high < found.predicted.kl_nats


def test_without_a_prediction_the_page_says_so_and_leaves_it_out():
    diagnosis = small_diagnosis()
    bare = replace(
        diagnosis,
        told=Told(),
        findings=replace(diagnosis.findings, predictions={}, agreement=None, blame=None),
    )
    sections = diagnosis_sections(bare)
    assert "prediction" not in [section.name for section in sections]
    assert "Nothing was predicted" in sections[0].paragraphs[0]
    assert PAGE in report_files(bare)


@pytest.mark.parametrize(
    ("kind", "is_generative"),
    [
        ("layers", True),
        ("operators", False),
        pytest.param("layers", False, marks=pytest.mark.slow),
        pytest.param("operators", True, marks=pytest.mark.slow),
    ],
)
def test_a_smaller_study_has_a_page_too(kind, is_generative):
    diagnosis = small_diagnosis(kind, is_generative)
    sections = diagnosis_sections(diagnosis)
    named = [section.name for section in sections]
    assert {"layers": "windows", "operators": "operators"}[kind] in named
    assert named == [name for name in ORDER if name in named]
    told = summary_of(diagnosis)
    assert any("by KL:" in line for line in told)
    assert page_bytes("t", told, sections) == page_bytes("t", told, diagnosis_sections(diagnosis))


def test_unknown_figures_are_drawn_and_written_as_such():
    diagnosis = with_conditions(small_diagnosis(), 3)
    first, second, third = diagnosis.summaries
    nothing = replace(first, kl_nats=NAN, accuracy=math.nan, accuracy_drop=NAN)
    zero = replace(second, kl_nats=replace(NAN, mean=0.0))
    unknown = with_findings(with_summaries(diagnosis, nothing, zero, third), predictions={})
    found = condition_picture(unknown, "x", "t", unknown.summaries)
    assert found.rows[0][1:4] == pytest.approx((math.nan,) * 3, nan_ok=True)
    assert "n/a" in found.tips["kl-0"]
    assert b"n/a" in page_bytes("t", [], [Section("s", "t", (), (found,))])
    assert condition_picture(unknown, "x", "t", ()) is None


def test_of_many_conditions_those_that_cost_most_are_drawn_and_all_are_kept():
    diagnosis = with_conditions(small_diagnosis(), 90)
    found = condition_picture(diagnosis, "x", "t", diagnosis.summaries)
    assert "Drawn are the 60 that cost most" in found.caption
    assert len(found.rows) == 90
    drawn = {tip.split("\n")[0] for gid, tip in found.tips.items() if gid.startswith("kl-")}
    by_cost = sorted(diagnosis.summaries, key=lambda s: -s.kl_nats.mean)
    assert drawn == {s.condition for s in by_cost[:60]}


SHORT, LONG = "L{}", "model.layers.{}.post_attention_layernorm_of_a_kind:x:0"
CROSSED = [(1, LONG), (2, SHORT), (3, LONG), (61, SHORT)]


@pytest.mark.parametrize(
    ("count", "name"),
    [
        *((1, SHORT), (2, LONG), (3, SHORT), (61, LONG)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CROSSED),
    ],
)
def test_any_number_of_conditions_fits(count, name):
    """A figure too small for its labels would warn, and warnings are errors here."""
    diagnosis = with_conditions(small_diagnosis(), count, name=name)
    report_files(with_findings(diagnosis, predictions={}))


def test_a_single_module_fits_too():
    whole = whole_diagnosis()
    one = replace(whole, told=replace(whole.told, modules=whole.told.modules[:1]))
    assert PAGE in report_files(one)


def test_one_row_alone_is_no_map():
    operators = replace(small_diagnosis("operators"), told=Told())
    assert grid_of(operators) is None


def test_a_section_from_elsewhere_stands_before_how_it_was_run():
    extra = Section("recommendation", "What to keep", ("x",))
    text = report_files(small_diagnosis(), (extra,))[PAGE].decode()
    order = [text.index(f'<section id="{n}"') for n in ("coverage", "recommendation", "how")]
    assert order == sorted(order)


def test_the_same_diagnosis_gives_the_same_bytes(files):
    assert report_files(whole_diagnosis()) == files


@pytest.mark.parametrize("name", ["a b; rm -rf ~", "$(touch x)", "-x", "it's", '"\\', "`id`"])
def test_no_name_becomes_a_word_of_the_shell(name):
    diagnosis = with_config(small_diagnosis(), model=name, data=name)
    words = shlex.split(command_of(diagnosis).replace("\\\n", " "))
    assert words[:2] == ["noisescope", "layers"]
    given = dict(zip(words[2::2], words[3::2], strict=True))
    expected = f"./{name}" if name.startswith("-") else name
    assert given["--model"] == given["--data"] == expected


def test_the_command_gives_what_was_asked():
    diagnosis = whole_diagnosis()
    words = shlex.split(
        command_of(with_name(replace(diagnosis, margins=Margins(0.02, 0.5)), "m")).replace(
            "\\\n", ""
        )
    )
    given = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[:2] == ["noisescope", "diagnose"]
    assert given["--model"] == "models/m" and given["--noise-scale"] == "0.2"
    assert given["--draws"] == "2" and given["--samples"] == "6" and given["--seed"] == "0"
    assert given["--until"] == "kl=0.1" and given["--kl-margin"] == "0.5"
    assert given["--accuracy-margin"] == "0.02" and given["--window"] == given["--stride"]


def test_what_no_command_runs_has_none():
    unknown = with_config(small_diagnosis(), error_model="MyOwn")
    assert command_of(unknown) == ""
    assert "from Python" in " ".join(how_section(unknown).paragraphs)


def test_stochastic_rounding_is_part_of_the_command():
    parameters = {**vars(RelativeGaussian(0.3, "stochastic"))}
    diagnosis = with_config(small_diagnosis(), error_parameters=parameters, model="m")
    assert "--rounding stochastic" in command_of(diagnosis)


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("AbsoluteGaussian", {"scale": 0.5}, "--noise-scale 0.5 --error-type absolute_gaussian"),
        ("RoundTo", {"format": "mxfp4", "operand": "both"}, "--format mxfp4"),
        ("RoundTo", {"format": "x; y", "operand": "output"}, "--format 'x; y' --operand output"),
        ("BitFlips", {"rate": 0.1, "bit": None}, "--noise-scale 0.1 --error-type bit_flips"),
        ("BitFlips", {"rate": 0.1, "bit": 0}, ""),
        ("StuckChannels", {"share": 0.1, "value": 0.0, "channels": [3]}, ""),
    ],
)
def test_every_error_that_options_can_name_is_named(name, parameters, expected):
    parameters = {**parameters, "rounding": "nearest"}
    changed = with_config(small_diagnosis(), error_model=name, error_parameters=parameters)
    command = " ".join(command_of(changed).replace("\\\n", " ").split())
    assert (expected in command) if expected else command == ""


def test_sites_are_written_short():
    assert short_site("model.layers.7.self_attn:matmul:0") == "L7 self_attn:matmul:0"
    assert short_site("transformer.h.11.attn") == "L11 attn"
    assert short_site("model.layers.3") == "L3"
    assert short_site("lm_head:linear:0") == "lm_head:linear:0"
    assert short_site("model.layers.x.y") == "model.layers.x.y"
