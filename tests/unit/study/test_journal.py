"""The journal: torn anywhere, it goes on; changed anywhere, it says where."""

import dataclasses
import json
import os
import re
from itertools import pairwise, permutations

import pytest
from helpers.study_worker import Ending, FakeWorker, carry_out, make_plan, snapshot

from noisescope.errors import InputError
from noisescope.study import open_study, read_study
from noisescope.study.journal import Journal, decoded, read_journal
from noisescope.study.units import manifest_units

SMALL = make_plan(samples=2, draws=1, conditions=("L0",), size=1)


@pytest.fixture
def running(tmp_path):
    """A study whose units are all in the journal, which is not compacted yet."""
    directory = tmp_path / "study"
    with open_study(directory, SMALL) as study:
        study.run(FakeWorker())
    return directory


@pytest.fixture
def wanted(tmp_path):
    carry_out(tmp_path / "whole", SMALL)
    return snapshot(tmp_path / "whole")


@pytest.fixture
def journal(tmp_path):
    """Three units' results, the journal that holds them, and where each of its blocks ends."""
    path = tmp_path / "records.jsonl"
    with open_study(None, make_plan(samples=3, draws=1, conditions=("L0",), size=1)) as study:
        results = [decoded(FakeWorker()(unit)) for unit in manifest_units(study._manifest)]
    written = Journal.open(path, "me", 0, read_journal(path, "me"))
    ends = [0]
    for result in results:
        written.append(result)
        ends.append(path.stat().st_size)
    written.close()
    return path, results, ends


def texts(results):
    return [json.dumps(result.as_json()) for result in results]


def test_a_journal_holds_lines_of_plain_json(journal):
    path, results, _ = journal
    lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    assert all(json.loads(text) == json.loads(text) for text in path.read_text().splitlines())
    assert [line["sample"] for line in lines if "sample" in line] == [
        record.sample for result in results for record in result.records
    ]
    assert [line["unit"] for line in lines if "unit" in line] == [r.unit for r in results]


def test_cut_at_any_byte_the_whole_units_before_are_read(journal):
    path, results, ends = journal
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        found = read_journal(path, "me")
        whole = sum(end <= size for end in ends[1:])
        assert texts(found.results) == texts(results[:whole]), size
        assert (found.size, found.total_size) == (ends[whole], size)


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_cut_at_any_byte_a_study_goes_on_to_the_same_end(running, wanted, monkeypatch, step):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # thousands of them
    before = snapshot(running)
    data = before["records.jsonl"]
    for size in range(0, len(data) + 1, step):
        for path in running.iterdir():
            path.unlink()
        (running / "manifest.json").write_bytes(before["manifest.json"])
        (running / "records.jsonl").write_bytes(data[:size])
        carry_out(running, SMALL)
        assert snapshot(running) == wanted, size


def test_a_torn_tail_is_cut_off_before_more_is_written(tmp_path, wanted):
    directory = tmp_path / "study"
    with open_study(directory, SMALL) as study, pytest.raises(KeyError):
        study.run(Ending(1))
    with (directory / "records.jsonl").open("ab") as file:
        file.write(b'{"condition":"clean"}\n{"torn')
    with open_study(directory, SMALL) as study:
        study.run(FakeWorker())
    assert read_study(directory).units_done == 2
    carry_out(directory, SMALL)
    assert snapshot(directory) == wanted


@pytest.mark.parametrize(
    "mask", [0x20, *(pytest.param(m, marks=pytest.mark.slow) for m in (0x01, 0x80))]
)
def test_a_changed_byte_is_told_or_measured_again(journal, mask):
    path, results, ends = journal
    data = path.read_bytes()
    last_seal = data.rindex(b'\n{"unit"')
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :])
        try:
            found = read_journal(path, "me")
        except InputError as error:
            assert re.search(r"records\.jsonl: .*lines? \d+", str(error))
        else:  # the last seal is no seal any more, as if it had never been written
            assert place >= last_seal
            assert texts(found.results) == texts(results[:2])
            assert found.size == ends[2]


def test_each_line_changed_by_hand_is_named(journal):
    path, _, _ = journal
    lines = path.read_text().split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        changed = line.replace('"', '" ', 1) if '"unit"' in line[:8] else line.replace("0", "1", 1)
        if '"unit"' in line[:8]:
            changed = line[:-3] + ("0" if line[-3] != "0" else "1") + line[-2:]
        assert changed != line
        path.write_text("\n".join([*lines[: number - 1], changed, *lines[number:], ""]))
        with pytest.raises(InputError) as caught:
            read_journal(path, "me")
        named = re.search(r"(?:line|lines \d+ to) (\d+) changed", str(caught.value))
        assert int(named[1]) == number, line


def test_a_line_that_is_gone_doubled_or_moved_is_noticed(journal):
    path, _, _ = journal
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 13
    for number in range(len(lines) - 1):
        for changed in (
            lines[:number] + lines[number + 1 :],
            [*lines[:number], lines[number], *lines[number:]],
            [*lines[:number], lines[number + 1], lines[number], *lines[number + 2 :]],
        ):
            path.write_bytes(b"".join(changed))
            with pytest.raises(InputError, match=r"records.jsonl: .*delete everything from line"):
                read_journal(path, "me")


def test_blocks_in_another_order_are_noticed(journal):
    path, _, ends = journal
    data = path.read_bytes()
    blocks = [data[a:b] for a, b in pairwise(ends)]
    for order in permutations(range(3)):
        path.write_bytes(b"".join(blocks[i] for i in order))
        if order == (0, 1, 2):
            assert len(read_journal(path, "me").results) == 3
            continue
        with pytest.raises(InputError, match="something in lines"):
            read_journal(path, "me")


def test_the_text_says_which_line_and_what_to_do(journal):
    path, _, _ = journal
    path.write_text(path.read_text().replace('"draw":0', '"draw":1', 3))
    with pytest.raises(InputError) as caught:
        read_journal(path, "me")
    assert str(caught.value) == (
        f"{path}: line 2 changed since it was written: restore the file from a copy, or delete "
        "everything from line 1 on, to have it measured again"
    )


def test_what_the_text_advises_mends_a_study(running, wanted):
    path = running / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[6] = lines[6].replace('"draw":0', '"draw":1')
    path.write_text("".join(lines))
    with pytest.raises(InputError, match=r"line 7 changed .*delete everything from line 6 on"):
        open_study(running, SMALL)
    path.write_text("".join(lines[:5]))
    worker = FakeWorker()
    carry_out(running, SMALL, worker)
    assert [unit.samples for unit in worker.units] == [("s1",)]
    assert snapshot(running) == wanted


def test_the_journal_of_another_study_is_refused(journal):
    with pytest.raises(InputError, match="belongs to another study than the manifest beside it"):
        read_journal(journal[0], "you")


def open_with_journal_of(study, directory, plan):
    """Opens a study of this plan that has been begun, with the journal of another one in it."""
    with open_study(directory, plan):
        pass
    (directory / "records.jsonl").write_bytes((study / "records.jsonl").read_bytes())
    open_study(directory, plan)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 8}, {"kind": "x"}, {"settings": {}}, {"fingerprints": {}}, {"versions": {}}],
)
def test_the_journal_of_a_study_like_this_one_is_refused(running, tmp_path, changes):
    other = dataclasses.replace(SMALL, **changes)
    with pytest.raises(InputError, match="belongs to another study than the manifest beside it"):
        open_with_journal_of(running, tmp_path / "other", other)


def test_a_journal_with_units_that_the_plan_lacks_is_refused(running, tmp_path):
    other = make_plan(samples=1, draws=1, conditions=("L0",), size=1)
    with pytest.raises(InputError, match="holds unit 0-samples-1, which the plan does not ask for"):
        open_with_journal_of(running, tmp_path / "other", other)


def test_a_journal_whose_units_are_others_is_refused(running, tmp_path):
    other = make_plan(samples=2, draws=2, conditions=("L0",), size=1)
    with pytest.raises(
        InputError,
        match=r"unit 0-samples-0 is not what the plan asks for \(it lacks sample 's0', L0, draw 1",
    ):
        open_with_journal_of(running, tmp_path / "other", other)


def test_zeros_that_a_loss_of_power_leaves_at_the_end_are_cut_off(running, wanted):
    with (running / "records.jsonl").open("ab") as file:
        file.write(bytes(4096))
    carry_out(running, SMALL)
    assert snapshot(running) == wanted
