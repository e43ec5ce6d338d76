"""Which directories a study opens, which it refuses, and in which words."""

import dataclasses
import os
import signal
import socket

import pytest
from helpers.killing import end_of, run_fork, start_fork, wait_for
from helpers.study_worker import FakeWorker, carry_out, group_of, make_plan, snapshot

from noisescope.errors import InputError, NoisescopeError
from noisescope.inject import make_selection
from noisescope.measure import Condition
from noisescope.noise import RelativeGaussian
from noisescope.study import (
    Layout,
    SampleKey,
    conditions_json,
    open_study,
    read_study,
    sample_keys,
)
from noisescope.tasks import Sample, make_task


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "study"


def refusal(directory, plan, **options):
    before = snapshot(directory)
    with pytest.raises(InputError) as caught:
        open_study(directory, plan, **options)
    assert snapshot(directory) == before
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{directory} ")


def other_sample(number, **changes):
    samples = list(make_plan().samples)
    samples[number] = dataclasses.replace(samples[number], **changes)
    return {"samples": tuple(samples)}


OTHER = "; give the old values to go on with it, or name another --out"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "operators"}, "kind: layers there, operators now"),
        ({"seed": 8}, "seed: 7 there, 8 now"),
        ({"generates": False}, "answers generated: true there, false now"),
        ({"is_adaptive": True}, "search: false there, true now"),
        (
            {"settings": {"--noise-scale": 0.1, "--dtype": "float32", "operators": ["linear"]}},
            "--noise-scale: 0.05 there, 0.1 now",
        ),
        (
            {"settings": {"--noise-scale": 0.05, "--dtype": "bfloat16", "device": "cuda"}},
            "--dtype: float32 there, bfloat16 now; "
            'operators: ["linear"] there, nothing now; device: nothing there, cuda now',
        ),
        (
            {"fingerprints": {"model": "sha256:" + 64 * "b", "data": f"sha256:{4:064}"}},
            "model fingerprint: sha256:aaaaaaaaaaaa... there, sha256:bbbbbbbbbbbb... now",
        ),
        (
            {"fingerprints": {"model": "sha256:" + 64 * "a", "data": f"sha256:{10**63:064}"}},
            "data fingerprint: sha256:000000000000... there, sha256:100000000000... now",
        ),
        (
            {
                "fingerprints": {
                    "model": "sha256:" + 64 * "a",
                    "configuration": "sha256:" + 64 * "c",
                    "data": f"sha256:{4:064}",
                }
            },
            "the model's configuration, end tokens or attention: nothing there, "
            "sha256:cccccccccccc... now",
        ),
        (
            {"versions": {"python": "3.12.1", "torch": "2.9.1", "noisescope": "0.2.0"}},
            "torch version: 2.9.0 there, 2.9.1 now; noisescope version: 0.1.0 there, 0.2.0 now",
        ),
        (
            {
                "settings": {
                    "--noise-scale": 0.05,
                    "--dtype": "a\nb" + 90 * "c",
                    "operators": ["linear"],
                }
            },
            '--dtype: float32 there, "a\\nb' + 55 * "c" + "... now",
        ),
        (other_sample(2, name="x"), "sample number 3: s2 there, x now"),
        (other_sample(2, digest="x"), "sample s2: other content or prompt now"),
        (other_sample(0, group="x"), "sample s0: other content or prompt now"),
        (
            {"conditions": {"L0": {"error_model": {"scale": 1.0}}, "L1": {}}},
            "condition L0 error_model scale: 0.05 there, 1.0 now; "
            'condition L0 layers: ["L0"] there, nothing now; 1 more conditions differ, too',
        ),
    ],
)
@pytest.mark.parametrize("extend", [False, True])
def test_another_plan_is_refused_with_what_differs(directory, changes, text, extend):
    with open_study(directory, make_plan()):
        pass
    plan = dataclasses.replace(make_plan(), **changes)
    said = refusal(directory, plan, extend=extend)
    assert said == f"holds another study: {text}{OTHER}"


@pytest.mark.parametrize("extend", [False, True])
def test_a_smaller_plan_is_refused(directory, extend):
    with open_study(directory, make_plan()):
        pass
    assert refusal(directory, make_plan(samples=3), extend=extend) == (
        f"holds another study: samples: 4 there, 3 now; --num-samples: 4 there, 3 now{OTHER}"
    )
    assert refusal(directory, make_plan(draws=1), extend=extend) == (
        f"holds another study: draws: 2 there, 1 now{OTHER}"
    )
    assert refusal(directory, make_plan(conditions=("L1",)), extend=extend) == (
        f"holds another study: conditions: L0 there, not now{OTHER}"
    )


def test_many_differences_are_counted(directory):
    with open_study(directory, make_plan(conditions=("a", "b", "c", "d", "e"))):
        pass
    plan = make_plan(kind="x", seed=1, draws=1, settings={}, conditions=("f",))
    assert refusal(directory, plan) == (
        "holds another study: kind: layers there, x now; seed: 7 there, 1 now; "
        "--noise-scale: 0.05 there, nothing now; --dtype: float32 there, nothing now; "
        f"and 4 more{OTHER}"
    )


def test_a_larger_plan_wants_extend(directory):
    with open_study(directory, make_plan()):
        pass
    larger = make_plan(samples=6, draws=3, conditions=("L0", "L1", "L2"))
    assert refusal(directory, larger) == (
        "holds a smaller study: samples: 4 there, 6 now; draws: 2 there, 3 now; "
        "conditions: L2 now, not there; --num-samples: 4 there, 6 now; add --extend to measure "
        "what was added, give the old values, or name another --out"
    )


def test_a_search_cannot_be_extended(directory):
    with open_study(directory, make_plan(is_adaptive=True)):
        pass
    assert refusal(directory, make_plan(draws=3, is_adaptive=True), extend=True) == (
        "is a search, which goes where its records lead and cannot be extended "
        "(draws: 2 there, 3 now): name another --out"
    )


def test_layout_python_and_order_of_conditions_are_no_difference(directory):
    carry_out(directory.with_name("whole"), make_plan())
    with open_study(directory, make_plan()):
        pass
    plan = make_plan(
        size=1,
        conditions=("L1", "L0"),
        versions={"python": "3.13", "torch": "2.9.0", "noisescope": "0.1.0"},
    )
    with open_study(directory, plan) as study:
        assert study.plan.layout == Layout(2)
        study.run(FakeWorker())
        study.finish()
    (directory.with_name("whole") / "result.json").unlink()
    assert snapshot(directory) == snapshot(directory.with_name("whole"))


def test_what_is_no_study_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="holds other files and no study: name a directory that"):
        open_study(tmp_path, make_plan())
    assert snapshot(tmp_path) == before


def test_what_a_killed_check_left_behind_is_no_other_file(tmp_path):
    (tmp_path / ".noisescope-a1b2c3").mkdir()
    carry_out(tmp_path, make_plan())
    assert read_study(tmp_path).is_complete


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="file is a file: name a directory"):
        open_study(tmp_path / "file", make_plan())


def test_a_directory_without_a_parent(tmp_path):
    with pytest.raises(InputError, match=r"there is no directory .*/a; make it first"):
        open_study(tmp_path / "a" / "b", make_plan())


def test_an_empty_directory_becomes_a_study(tmp_path):
    carry_out(tmp_path, make_plan())
    assert read_study(tmp_path).is_complete


def test_a_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(NoisescopeError) as caught:
        open_study(tmp_path / "a", make_plan())
    assert str(caught.value) == (
        f"cannot write {tmp_path}/a: Permission denied: mend that and run the same command again"
    )


def test_a_manifest_of_another_schema(directory):
    from noisescope.study.files import seal

    directory.mkdir()
    (directory / "manifest.json").write_bytes(seal({"schema": 1}))
    (directory / "lock").touch()
    assert refusal(directory, make_plan()).endswith(
        "manifest.json has schema 1, this noisescope reads 2: use the version that made it, or "
        "name another directory"
    )


def test_the_same_process_cannot_open_it_twice(directory):
    with open_study(directory, make_plan()):
        with pytest.raises(InputError, match=f"is in use by process {os.getpid()} on host"):
            open_study(directory, make_plan())
    with open_study(directory, make_plan()):
        pass


def test_a_second_process_is_refused_until_the_first_is_gone(directory):
    def hold():
        with open_study(directory, make_plan()):
            signal.pause()

    holder = start_fork(hold)
    wait_for((directory / "records.jsonl").exists)
    assert refusal(directory, make_plan()) == (
        f"is in use by process {holder} on host {socket.gethostname()}: wait for it or stop it"
    )
    assert read_study(directory).holder == f"process {holder} on host {socket.gethostname()}"
    os.kill(holder, signal.SIGKILL)
    assert end_of(holder) == -signal.SIGKILL
    assert not read_study(directory).is_running
    with open_study(directory, make_plan()):
        assert read_study(directory).is_running


def test_many_processes_that_begin_at_once_are_one_study(directory):
    """Each measures, or is refused in a line; together they leave what one leaves."""

    def compete():
        try:
            carry_out(directory, make_plan(samples=6, size=1), FakeWorker(0.01))
        except InputError as error:
            raise SystemExit(0 if "is in use by" in str(error) else 3) from error

    processes = [start_fork(compete) for _ in range(6)]
    assert [end_of(process) for process in processes] == [0] * 6
    carry_out(directory.with_name("whole"), make_plan(samples=6, size=1))
    assert snapshot(directory) == snapshot(directory.with_name("whole"))


def test_whoever_looks_keeps_nobody_out(directory):
    def look():
        while not (directory / "complete.json").exists():
            if (directory / "manifest.json").exists():
                read_study(directory)

    lookers = [start_fork(look) for _ in range(3)]
    for samples in range(2, 12):
        carry_out(directory, make_plan(samples=samples, size=1), extend=True)
    assert [end_of(process) for process in lookers] == [0] * 3


def test_looking_while_a_study_grows_always_fits(directory):
    def grow():
        for samples in range(2, 30):
            carry_out(directory, make_plan(samples=samples, size=1), extend=True)

    process = start_fork(grow)
    wait_for((directory / "manifest.json").exists)
    seen = []
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        seen.append(read_study(directory).units_done)
    assert seen == sorted(seen)
    assert read_study(directory).units_done == 29


def test_an_error_in_opening_gives_the_directory_free(directory):
    carry_out(directory, make_plan())
    for _ in range(2):
        with pytest.raises(InputError, match="another study"):
            open_study(directory, make_plan(seed=1))
    assert run_fork(lambda: open_study(directory, make_plan()).close()) == 0


def test_conditions_and_samples_come_from_what_they_describe():
    condition = Condition("L0-1", RelativeGaussian(scale=0.05), make_selection(layers=(0, 1)))
    (entry,) = conditions_json([condition]).values()
    assert entry["error_model"]["type"] == "RelativeGaussian"
    assert entry["error_model"]["scale"] == 0.05
    assert entry["selection"]["layers"] == (0, 1)
    with pytest.raises(InputError, match="two conditions are named 'L0-1'"):
        conditions_json([condition, condition])


def words(text, **options):
    """A tokenizer of one token per letter."""
    return {"input_ids": [ord(letter) for letter in text]}


words.chat_template = None


def capitals(text, **options):
    return words(text.upper())


capitals.chat_template = None


def test_the_digest_of_a_sample_covers_its_token_ids():
    """So another tokenizer, or chat template, is another sample."""
    task = make_task([Sample("a", prompt="one", truth="1")])
    assert sample_keys(task, words)[0].digest != sample_keys(task, capitals)[0].digest


@pytest.mark.parametrize(
    "change", [{"prompt": "other"}, {"truth": "2"}, {"name": "b"}, {"group": "g"}]
)
def test_the_digest_of_a_sample_covers_all_its_fields(change):
    sample = Sample("a", prompt="one", truth="1")
    (key,) = sample_keys(make_task([sample]), words)
    (same,) = sample_keys(make_task([Sample("a", prompt="one", truth="1")]), words)
    (other,) = sample_keys(make_task([dataclasses.replace(sample, **change)]), words)
    assert key == same
    assert key.digest != other.digest


def test_the_digest_of_a_sample_covers_chats_and_ids():
    chats = [Sample("a", messages=({"role": "user", "content": text},)) for text in "xy"]
    ids = [Sample("a", prompt_ids=(1, number)) for number in (2, 3)]
    digests = {sample_keys(make_task([sample]), words)[0].digest for sample in (*chats, *ids)}
    assert len(digests) == 4


def test_groups_of_the_fake_are_of_both_kinds():
    assert {group_of(key.name) is None for key in make_plan().samples} == {True, False}
    assert SampleKey("s1", "g0", "digest of s1") in make_plan().samples
