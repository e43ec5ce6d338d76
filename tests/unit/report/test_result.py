"""The result file: the plan's fields, strict JSON, the same bytes for the same run."""

import json
import math
from dataclasses import replace

import pytest
from helpers.diagnoses import PROMPTS, small_diagnosis, small_task, with_analysis
from helpers.model_dirs import loaded_small

from noisescope.analyse import Interval
from noisescope.analyse.intervals import UNKNOWN
from noisescope.diagnose import diagnose_layers
from noisescope.errors import InputError
from noisescope.noise import RelativeGaussian
from noisescope.records import CLEAN
from noisescope.report import result_of, write_result
from noisescope.study import Margins
from noisescope.tasks import make_task, token_task


def strict_json(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_strict_reader_refuses_nan():
    with pytest.raises(AssertionError, match="NaN is not JSON"):
        strict_json('{"x": NaN}')


def test_the_plans_fields_are_there_and_right():
    diagnosis = small_diagnosis()
    result = result_of(diagnosis)
    assert result["config"]["model"] == "small"
    assert result["config"]["noise_scale"] == 0.3
    assert result["config"]["window_size"] == 1
    assert result["config"]["n_samples"] == len(PROMPTS)
    assert result["baseline_accuracy"] == 1.0
    assert list(result["layer_sensitivity"]) == ["L0", "L1", "L2"]
    noisy = [r for r in diagnosis.records if r.condition != CLEAN]
    for index, (name, entry) in enumerate(result["layer_sensitivity"].items()):
        right = [r.is_right for r in noisy if r.condition == name]
        assert entry["layers"] == [index]
        assert entry["accuracy"] == pytest.approx(sum(right) / len(right))
        assert entry["degradation"] == pytest.approx(1 - sum(right) / len(right))
        assert list(entry["injection_stats"]) == [str(index)]
        assert entry["injection_stats"][str(index)]["backward"] == 0
        counts = diagnosis.witnesses[name].counts.values()
        assert entry["injection_stats"][str(index)]["forward"] == sum(c["forward"] for c in counts)
    largest = max(result["layer_sensitivity"].items(), key=lambda item: item[1]["degradation"])
    assert result["avalanche_point"] == largest[0]


def test_each_condition_carries_its_kl_dose_coverage_and_draws():
    diagnosis = small_diagnosis()
    for name, entry in result_of(diagnosis)["layer_sensitivity"].items():
        summary = next(s for s in diagnosis.summaries if s.condition == name)
        assert entry["kl_nats_per_token"]["mean"] == summary.kl_nats.mean > 0
        assert entry["kl_nats_per_token"]["includes_draws"] is True
        assert (entry["draws"], entry["samples"]) == (2, len(PROMPTS))
        assert entry["dose"]["relative_l2"] == pytest.approx(0.3, rel=0.2)
        assert {row["operator"] for row in entry["coverage"] if row["perturbed"]} == {
            "linear",
            "matmul",
        }
        assert all(row["seen"] >= row["selected"] >= row["perturbed"] for row in entry["coverage"])


def test_it_says_what_its_numbers_rest_on():
    result = result_of(small_diagnosis())
    assert result["fingerprints"]["model"] == "sha256:0"
    assert result["fingerprints"]["data"].startswith("sha256:")
    assert {"python", "torch", "transformers", "numpy"} <= result["versions"].keys()
    assert (result["config"]["draws"], result["config"]["seed"]) == (2, 0)
    assert result["config"]["error_parameters"] == {"scale": 0.3, "rounding": "nearest"}
    assert result["clean_nll_nats_per_token"] > 0
    avalanche = result["avalanche"]
    assert avalanche["condition"] == result["avalanche_point"]
    assert avalanche["is_conclusive"] in (True, False) and avalanche["reason"]


@pytest.mark.parametrize("kind", ["layers", "operators"])
@pytest.mark.parametrize("is_generative", [True, False])
def test_the_file_is_strict_json_of_the_result(tmp_path, kind, is_generative):
    diagnosis = small_diagnosis(kind, is_generative)
    result = result_of(diagnosis)
    write_result(diagnosis, tmp_path / "result.json")
    assert strict_json((tmp_path / "result.json").read_text()) == result
    assert ("layer_sensitivity" in result) == (kind == "layers")
    assert ("operator_sensitivity" in result) == (kind == "operators")
    if not is_generative:
        assert result["baseline_accuracy"] is None and result["avalanche_point"] is None


def test_an_operators_result_has_the_single_ones_and_the_plans_two_sets():
    result = result_of(small_diagnosis("operators"))
    single = result["config"]["operators"]
    assert list(result["operator_sensitivity"]) == [*single, "core", "all"]
    assert result["config"]["sets"]["core"] == ["matmul", "linear"]
    assert result["config"]["sets"]["all"] == single
    assert result["most_sensitive_by_kl"]["condition"] in single
    assert "layers" not in result["operator_sensitivity"]["all"]


def test_a_baseline_of_zero_gives_a_degradation_of_null_and_says_why():
    loaded = loaded_small()
    loaded.model.generation_config.eos_token_id = None
    task = token_task(PROMPTS, [[99, 99]] * len(PROMPTS))
    result = result_of(diagnose_layers(loaded, task, RelativeGaussian(0.3), window=3))
    assert (result["baseline_accuracy"], result["avalanche_point"]) == (0.0, None)
    entry = result["layer_sensitivity"]["L0-2"]
    assert entry["degradation"] is None and entry["accuracy"] == 0.0
    assert "answers no question right" in entry["degradation_note"]
    assert "answers no question right" in result["avalanche"]["reason"]


def test_one_sample_has_no_interval_rather_than_one_of_no_width():
    loaded = loaded_small()
    task = small_task(loaded)
    one = token_task([PROMPTS[0]], [[int(t) for t in task.samples[0].truth.split()]])
    result = result_of(diagnose_layers(loaded, one, RelativeGaussian(0.3)))
    interval = result["layer_sensitivity"]["L0-2"]["kl_nats_per_token"]
    assert interval["mean"] > 0 and interval["low"] is None and interval["high"] is None


def test_equal_runs_give_equal_bytes(tmp_path):
    for name in ("one", "other"):
        loaded = loaded_small()
        diagnosis = diagnose_layers(
            loaded, small_task(loaded), RelativeGaussian(0.3), window=2, stride=1, draws=2
        )
        write_result(diagnosis, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize(("margin", "outcome"), [(1e-4, "harmful"), (5.0, "harmless")])
def test_each_condition_carries_its_verdicts_and_their_margins(margin, outcome):
    task = make_task([{"prompt_ids": [5 + i, 9, 4, 7]} for i in range(12)])
    margins = Margins(0.02, margin)
    noise = RelativeGaussian(0.3)
    diagnosis = diagnose_layers(loaded_small(), task, noise, window=1, margins=margins)
    result = result_of(diagnosis)
    assert result["config"]["accuracy_margin"] == 0.02
    assert result["config"]["kl_margin_nats_per_token"] == margin
    for entry in result["layer_sensitivity"].values():
        verdict = entry["kl_verdict"]
        assert (verdict["measure"], verdict["margin"]) == ("kl", margin)
        assert verdict["outcome"] == outcome and verdict["reason"].startswith(f"{outcome}: a loss")
        accuracy = entry["accuracy_verdict"]
        assert (accuracy["outcome"], accuracy["margin"]) == ("inconclusive", 0.02)
        assert accuracy["p_harmful"] is None and "nothing was generated" in accuracy["reason"]


def test_tails_are_the_mean_over_samples_of_the_records_percentiles():
    diagnosis = small_diagnosis()
    for name, entry in result_of(diagnosis)["layer_sensitivity"].items():
        mine = [r for r in diagnosis.records if r.condition == name]
        for field in ("kl_p95_nats", "kl_p99_nats"):
            values = [getattr(r, field) for r in mine]
            assert entry[field]["mean"] == pytest.approx(sum(values) / len(values))
        assert entry["kl_p99_nats"]["mean"] >= entry["kl_p95_nats"]["mean"] > 0


def test_the_worst_carries_what_it_costs_where_it_was_not_chosen():
    worst = Interval(0.2, 0.1, 0.4, 9.0, False, "few draws: ...")
    diagnosis = small_diagnosis()
    held = replace(diagnosis.worst_kl, held_out=worst, held_out_draws=True, chosen_again=0.75)
    entry = result_of(with_analysis(diagnosis, worst_kl=held))["most_sensitive_by_kl"]
    assert entry["held_out"]["mean"] == 0.2
    assert (entry["held_out"]["low"], entry["held_out"]["high"]) == (0.1, 0.4)
    assert (entry["held_out_draws"], entry["chosen_again"]) == (True, 0.75)
    unknown = replace(held, held_out=UNKNOWN, chosen_again=math.nan)
    entry = result_of(with_analysis(diagnosis, worst_kl=unknown))["most_sensitive_by_kl"]
    assert entry["held_out"]["mean"] is None and entry["chosen_again"] is None


def test_groups_reach_the_records_and_widen_the_intervals():
    """Each text four times under one group is worth as much as once, and not four times."""
    texts = [{"prompt_ids": [5 + i, 9, 4, 7]} for i in range(5)] * 4
    grouped = [{**text, "group": str(i % 5)} for i, text in enumerate(texts)]
    found = {}
    for name, samples in (("apart", texts), ("grouped", grouped)):
        task = make_task(samples)
        found[name] = diagnose_layers(loaded_small(), task, RelativeGaussian(0.3), window=3)
    assert {r.group for r in found["apart"].records} == {None}
    assert [r.group for r in found["grouped"].records[:5]] == ["0", "1", "2", "3", "4"]
    apart, grouped = (
        result_of(d)["layer_sensitivity"]["L0-2"]["kl_nats_per_token"] for d in found.values()
    )
    assert grouped["mean"] == pytest.approx(apart["mean"])
    assert grouped["high"] - grouped["low"] > 1.2 * (apart["high"] - apart["low"])
    prints = [d.plan.fingerprints["data"] for d in found.values()]
    assert prints[0] != prints[1]


def test_nothing_is_written_over(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already: name a file that does not"):
        write_result(small_diagnosis(), path)
    assert path.read_text() == "mine"
    with pytest.raises(InputError, match=r"cannot write .*No such file or directory"):
        write_result(small_diagnosis(), tmp_path / "nowhere" / "result.json")
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]
