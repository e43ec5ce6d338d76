"""Ctrl-C while units run: the first ends after the unit in hand, the second at once."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ENDING = "ends after this unit; Ctrl-C again ends now"


class StudyInterrupted(KeyboardInterrupt):
    """A study was ended by Ctrl-C, cleanly; its text says how to go on. Exit status: 130."""


@dataclass
class Interrupts:
    """Whether an end was asked for."""

    is_asked: bool = False


@contextmanager
def hold_interrupts(tell: Callable[[], None]) -> Iterator[Interrupts]:
    """Keeps the first SIGINT for the next safe moment; a second raises KeyboardInterrupt.

    Outside the main thread, and where SIGINT is ignored (as under nohup), nothing is changed.

    Args:
        tell: Called at the first, so that the user knows it was heard.
    """
    interrupts = Interrupts()
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (signal.SIG_IGN, None):
        yield interrupts
        return

    def hold(number: int, frame: FrameType | None) -> None:
        if interrupts.is_asked:
            raise KeyboardInterrupt
        interrupts.is_asked = True
        tell()

    signal.signal(signal.SIGINT, hold)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)
