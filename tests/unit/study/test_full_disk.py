"""A full disk: a line that says what to do, and no finished unit lost."""

import errno
import os
import re
import shutil
import subprocess

import pytest
from helpers.study_worker import FakeWorker, carry_out, make_plan, snapshot

from noisescope.errors import NoisescopeError
from noisescope.study import open_study, read_study

PLAN = make_plan(samples=6, size=1)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place, left):
    """Leaves so many bytes of a file system free."""
    state = os.statvfs(place)
    (place / "filler").write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - left)))


@pytest.mark.parametrize("left", range(0, 60 * 1024, 4096))
def test_on_a_full_disk_nothing_finished_is_lost(small_disk, tmp_path, left):
    directory = small_disk / "study"
    directory.mkdir()
    fill(small_disk, left)
    kept = 0
    try:
        carry_out(directory, PLAN)
    except NoisescopeError as error:
        text = str(error)
        assert "No space left on device" in text
        assert text.endswith("make room and run the same command again")
        named = re.search(r"(\d) of 6 units are kept", text)
        kept = int(named[1]) if named else 0
        if (directory / "manifest.json").exists():
            assert read_study(directory).units_done == kept
    else:
        kept = 6
        assert left >= 20 * 1024
    (small_disk / "filler").unlink()
    worker = FakeWorker()
    carry_out(directory, PLAN, worker)
    assert len(worker.units) == 6 - kept
    carry_out(tmp_path / "whole", PLAN)
    assert snapshot(directory) == snapshot(tmp_path / "whole")


class FullDisk:
    """The n-th write fails half-way, as does every later one until room is made."""

    def __init__(self, monkeypatch, number, code=errno.ENOSPC):
        self.left, self.code, self.real = number, code, os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor, data):
        self.left -= 1
        if self.left > 0:
            return self.real(descriptor, data)
        if self.left == 0:
            self.real(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("number", range(1, 13))
def test_whichever_write_fails(tmp_path, monkeypatch, number):
    """Lock, manifest, six blocks, records, witnesses, complete, result."""
    directory = tmp_path / "study"
    carry_out(tmp_path / "whole", PLAN)
    with monkeypatch.context() as patch:
        FullDisk(patch, number)
        with pytest.raises(NoisescopeError, match="No space left on device") as caught:
            carry_out(directory, PLAN)
        kept = min(6, max(0, number - 3))
        if kept or number == 3:
            assert f"{kept} of 6 units are kept in {directory}: make room" in str(caught.value)
    assert not list(directory.glob("*.new"))
    if kept:
        assert read_study(directory).units_done == kept
        journal = directory / "records.jsonl"
        assert not journal.exists() or journal.read_bytes().endswith(b'"}\n')
    worker = FakeWorker()
    carry_out(directory, PLAN, worker)
    assert len(worker.units) == 6 - kept
    assert snapshot(directory) == snapshot(tmp_path / "whole")


def test_the_text_of_a_unit_that_could_not_be_written(tmp_path, monkeypatch):
    with open_study(tmp_path / "study", PLAN) as study:
        FullDisk(monkeypatch, 3)
        with pytest.raises(NoisescopeError) as caught:
            study.run(FakeWorker())
    assert str(caught.value) == (
        f"cannot write {tmp_path}/study/records.jsonl: No space left on device; 2 of 6 units are "
        f"kept in {tmp_path}/study: make room and run the same command again"
    )


def test_the_text_of_an_error_that_is_no_lack_of_room(tmp_path, monkeypatch):
    with open_study(tmp_path / "study", PLAN) as study:
        FullDisk(monkeypatch, 1, errno.EIO)
        with pytest.raises(NoisescopeError) as caught:
            study.run(FakeWorker())
    assert str(caught.value) == (
        f"cannot write {tmp_path}/study/records.jsonl: Input/output error; 0 of 6 units are kept "
        f"in {tmp_path}/study: mend that and run the same command again"
    )


def test_an_extension_that_cannot_be_written_leaves_the_old_study(tmp_path, monkeypatch):
    directory = tmp_path / "study"
    carry_out(directory, PLAN)
    before = snapshot(directory)
    with monkeypatch.context() as patch:
        FullDisk(patch, 2)  # the lock's is the first
        with pytest.raises(NoisescopeError, match=r"cannot write .*manifest.json: No space left"):
            open_study(directory, make_plan(samples=8, size=1), extend=True)
    assert snapshot(directory) == before
