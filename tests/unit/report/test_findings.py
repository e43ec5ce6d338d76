"""What is shown beyond the table of conditions: tables that fit, JSON, pictures, a profile."""

import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from helpers.diagnoses import small_diagnosis, whole_diagnosis, with_findings, with_name
from matplotlib import image
from rich.console import Console

from noisescope.analyse import mean_and_error
from noisescope.profile import Profile, SiteProfile
from noisescope.report import draw_doses, draw_profile, result_of
from noisescope.report.figures import per_cent
from noisescope.report.findings import dose_columns
from noisescope.report.profile_text import print_profile, total_columns, worst_columns
from noisescope.report.result import result_bytes
from noisescope.report.shares import position_shares, top_channels
from noisescope.report.table import width_of
from noisescope.report.terminal import print_diagnosis
from noisescope.study.kept_channels import Massive, ModuleChannels
from noisescope.study.told import Told

PNG = b"\x89PNG\r\n\x1a\n"


def shown(print_it, *arguments, width=80):
    file = io.StringIO()
    print_it(Console(file=file, width=width), *arguments)
    return file.getvalue()


def line_of(text, first):
    return next(line for line in text.splitlines() if line.startswith(first))


@pytest.mark.parametrize("width", [70, 80, 120, 200])
@pytest.mark.parametrize("is_generative", [True, False])
def test_everything_fits_and_nothing_is_cut(width, is_generative):
    text = shown(print_diagnosis, whole_diagnosis(is_generative), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text and "nan" not in text.lower()


def test_single_sites_stand_beside_their_prediction():
    diagnosis = whole_diagnosis()
    text = shown(print_diagnosis, diagnosis, width=120)
    for summary in diagnosis.chosen["sites"]:
        predicted = diagnosis.findings.predictions[summary.condition].kl_nats
        words = line_of(text, summary.condition).split()
        assert words[1] == f"{summary.kl_nats.mean:.2g}"
        assert words[-2] == f"{predicted:.2g}"
        assert float(words[-1]) == pytest.approx(summary.kl_nats.mean / predicted, rel=0.06)


def test_the_agreement_is_a_line_of_its_own():
    found = whole_diagnosis().findings.agreement
    text = " ".join(shown(print_diagnosis, whole_diagnosis()).split())
    assert f"prediction: rank {found.rank:.2f}, slope {found.slope.mean:.2g} [" in text
    assert f"over {found.conditions} conditions" in text


def test_doses_are_marked_where_they_leave_the_line():
    response = whole_diagnosis().findings.responses["all"]
    places = ["on", "above", "below", "unknown", "on", "on", "on"]
    some = [replace(s, place=p) for s, p in zip(response.scales, places, strict=False)]
    columns = dose_columns({"all": replace(response, scales=tuple(some))}, 300)
    marks = [column[0][-1] for name, column in columns.items() if name != "dose"]
    assert [m if m in "+-?" else "" for m in marks[:4]] == ["", "+", "-", "?"]
    assert all(" x" in column[0] for name, column in columns.items() if name != "dose")
    narrow = dose_columns({"all": replace(response, scales=tuple(some))}, 40)
    assert width_of(narrow) <= 40 and "dose" in narrow and len(narrow) < len(columns)


def test_outlier_channels_and_massive_activations_are_listed():
    peak = Massive(-812.5, 2300.0, 7, 1, None, None)
    module = ModuleChannels("model.layers.1.mlp.down_proj", 32, (5, 3), (40.0, 12.0), 40.0, (peak,))
    diagnosis = whole_diagnosis()
    told = Told(diagnosis.told.profile, (module,))
    text = shown(print_diagnosis, replace(diagnosis, told=told), width=120)
    site = next(s for s in told.profile.sites if s.module == module.module)
    kl_D = site.channels_ECD[0].sum(axis=0)
    words = line_of(text, module.module).split()
    assert words[1:4] == ["5", "40", f"{kl_D[5]:.2g}"]
    assert words[4] == per_cent(kl_D[5] / kl_D.sum()).split()[0]
    assert "-8.1e+02" in text and "2,300" in text


# The result.


def test_the_result_carries_what_was_found():
    diagnosis = whole_diagnosis()
    result = json.loads(result_bytes(diagnosis), parse_constant=lambda c: pytest.fail(c))
    found = diagnosis.findings
    prediction = result["prediction"]
    assert prediction["label_draws"] == diagnosis.told.profile.label_draws
    assert set(prediction["conditions"]) == set(diagnosis.plan.conditions)
    assert prediction["agreement"]["ratio"] == found.agreement.ratio
    site = prediction["sites"]["lm_head:linear:0"]
    assert len(site["top_channels"]) == 10 and site["region"] == "head"
    assert sum(site["share_by_position"].values()) == pytest.approx(1.0)
    assert {step: list(entries) for step, entries in result["chosen"].items()} == {
        step: [s.condition for s in summaries] for step, summaries in diagnosis.chosen.items()
    }
    assert result["chosen"]["parts"]["head"]["kl_nats_per_token"]["mean"] > 0
    assert set(result["layer_sensitivity"]) == {"L0", "L1", "L2"}
    assert "linear" in result["operator_sensitivity"] and "all" in result["operator_sensitivity"]
    assert set(result["avalanche_curve"]) == set(found.responses)
    assert result["additivity"]["outcome"] == found.additivity.outcome
    assert result["critical_scale"]["target"] == "kl=0.1"
    assert result["blame"]["kind"] == found.blame.kind
    assert result["verdict"]["sentences"]
    assert len(result["channels"]["effects"]) == len(found.channels)


def test_the_same_study_gives_the_same_bytes():
    whole_diagnosis.cache_clear()
    one = result_bytes(whole_diagnosis())
    whole_diagnosis.cache_clear()
    assert result_bytes(whole_diagnosis()) == one


def test_what_was_not_looked_at_is_null():
    result = result_of(small_diagnosis("operators"))
    names = ("avalanche_curve", "additivity", "critical_scale", "channels", "blame", "verdict")
    assert all(result[name] is None for name in names)
    assert result["chosen"] == {} and result["prediction"] is not None
    assert json.loads(json.dumps(result)) == result


# The pictures.


def pixels_of(data, tmp_path):
    assert data.startswith(PNG)
    (tmp_path / "x.png").write_bytes(data)
    return image.imread(tmp_path / "x.png")


def test_the_dose_and_the_map_are_pictures(tmp_path):
    diagnosis = whole_diagnosis()
    for data in (draw_doses(diagnosis), draw_profile(diagnosis.told.profile, "x")):
        height, width, _ = pixels_of(data, tmp_path).shape
        assert 500 < height < 1500 and 1000 < width < 3000
    assert draw_doses(diagnosis) == draw_doses(whole_diagnosis())


def test_any_number_of_windows_and_hostile_names_are_drawn(tmp_path):
    diagnosis = with_name(whole_diagnosis(), "$x_\n<b>")
    response = diagnosis.findings.responses["all"]
    many = {f"L{n} $_{n}": response for n in range(30)} | {"all": response}
    assert pixels_of(draw_doses(with_findings(diagnosis, responses=many)), tmp_path).size


def test_a_response_of_nothing_is_drawn_without_points(tmp_path):
    diagnosis = whole_diagnosis()
    response = diagnosis.findings.responses["all"]
    nothing = [
        replace(s, measured=replace(s.measured, mean=0.0), predicted_nats=math.nan)
        for s in response.scales
    ]
    empty = {"all": replace(response, scales=tuple(nothing))}
    assert pixels_of(draw_doses(with_findings(diagnosis, responses=empty)), tmp_path).size


# A profile on its own.


def made_site(region, module, operator, kl_KN, channels_CD, index=0):
    return SiteProfile(
        region,
        module,
        operator,
        index,
        "token",
        np.array([kl_KN], dtype=float),
        np.array([channels_CD], dtype=float),
        np.zeros((1, len(channels_CD[0]))),
    )


def made_profile(*sites, without=()):
    return Profile(
        sites, without, ("0", "1"), (3, 3), ({"type": "RelativeGaussian", "scale": 0.1},),
        "signs", 2, 7,
    )  # fmt: skip


HEAD = made_site(
    "head", "lm_head", "linear", [[1, 3], [3, 5]], [[0, 0], [1, 0], [0.5, 1.5], [0, 0]]
)
LAYER = made_site("0", "m.0.q", "linear", [[1, 1], [1, 1]], [[1, 0], [0, 0], [0, 0], [0, 0]])
SOFTMAX = made_site("0", "m.0.a", "softmax", [[0, 0], [0, 0]], [[0, 0]] * 4)


def test_totals_add_up_with_their_standard_errors():
    columns = total_columns(made_profile(HEAD, LAYER, SOFTMAX), 200)
    assert columns["region"] == ["head", "0", "total"]
    # Draws of the head: means 2 and 4 over samples, so 3 with an error of 1; of the layer: 1.
    assert columns["linear"] == ["3 ±1", "1 ±0", "4 ±1"]
    assert columns["softmax"] == ["", "0 ±0", "0 ±0"]
    assert columns["total"] == ["3 ±1", "1 ±0", "4 ±1"]
    narrow = total_columns(made_profile(HEAD, LAYER, SOFTMAX), 22)
    assert narrow["total"] == ["3", "1", "4"] and width_of(narrow) <= 22


def test_the_worst_sites_come_with_positions_and_channels():
    columns = worst_columns(made_profile(LAYER, HEAD), 200)
    assert columns["worst sites"] == ["lm_head:linear:0", "m.0.q:linear:0"]
    assert columns["share"] == ["75 %", "25 %"]
    assert columns["first"] == ["0 %", "100 %"]
    assert columns["prompt"][0] == "33 %" and columns["answer"][0] == "67 %"
    assert columns["channels"][0] == "0 (50 %), 1 (50 %)"
    assert "unknown" not in columns


def test_a_profile_says_what_it_does_not_know():
    text = " ".join(shown(print_profile, made_profile(HEAD, without=("a:x:0",)), "my").split())
    assert "no gradient reaches 1 site, of which nothing is predicted: a:x:0" in text
    assert "my: predicted KL of RelativeGaussian 0.1" in text and "nothing was injected" in text
    unscored = made_site("0", "m.0.q", "linear", [[math.nan] * 2] * 2, [[0, 0]] * 4)
    assert "nan" not in shown(print_profile, made_profile(unscored), "my").lower()
    assert draw_profile(made_profile(unscored), "my").startswith(PNG)


def test_shares_are_of_the_sites_own_sum():
    assert position_shares(HEAD) == pytest.approx(
        {"first": 0.0, "prompt": 1 / 3, "answer": 2 / 3, "unknown": 0.0}
    )
    assert top_channels(HEAD, 1) == [(0, 1.5, 0.5)]
    assert mean_and_error([HEAD]) == (3.0, 1.0)
    assert math.isnan(position_shares(SOFTMAX)["first"])
