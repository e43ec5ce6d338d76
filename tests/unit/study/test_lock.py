"""The lock: one holder, also where the file went while another was about to take it."""

import fcntl
import os
import shutil

import pytest

from noisescope.errors import InputError
from noisescope.study.lock import LOCK, holder_of, take_lock


@pytest.mark.parametrize("with_directory", [False, True])
def test_a_lock_whose_file_went_meanwhile_is_taken_anew(tmp_path, monkeypatch, with_directory):
    """As where the process that held it discarded its study between our opening and locking."""
    directory, flock = tmp_path / "study", fcntl.flock
    directory.mkdir()
    opened = []

    def discard_and_lock(descriptor, kind):
        opened.append(descriptor)
        if len(opened) == 1:
            if with_directory:
                shutil.rmtree(directory)
            else:
                (directory / LOCK).unlink()
        flock(descriptor, kind)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", discard_and_lock)
        lock = take_lock(directory)
    assert len(opened) == 2
    assert os.path.samestat(os.fstat(lock.descriptor), (directory / LOCK).stat())
    assert holder_of(directory) is not None
    with pytest.raises(InputError, match="is in use by process"):
        take_lock(directory)
    lock.release()
    take_lock(directory).release()


def test_a_lock_file_that_never_stays_is_given_up(tmp_path, monkeypatch):
    flock = fcntl.flock

    def remove_and_lock(descriptor, kind):
        (tmp_path / LOCK).unlink()
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with pytest.raises(InputError, match="lock is removed again and again: name another"):
        take_lock(tmp_path)


def test_a_lock_file_that_was_replaced_meanwhile_is_another_one(tmp_path, monkeypatch):
    """As where a third process has begun a study in the discarded one's place: it is the holder."""
    flock, third = fcntl.flock, []

    def replace_and_lock(descriptor, kind):
        if not third:
            third.append(None)
            (tmp_path / LOCK).unlink()
            third.append(take_lock(tmp_path))
        flock(descriptor, kind)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", replace_and_lock)
        with pytest.raises(InputError, match="is in use by process"):
            take_lock(tmp_path)
    third[1].release()
