"""What is around a run of lm-evaluation-harness: no network, no chatter, generators as they were.

The harness logs, draws bars and seeds the global generators; the libraries under it would fetch
what they lack. All of it is held for the time of a run, and as before afterwards. What importing
them does to a process, such as handlers of their loggers and filters of warnings, stays done.
"""

import logging
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

# Of the harness itself, so that sampled answers are those of its own command line.
_RANDOM_SEED, _OTHER_SEED = 0, 1234
_OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE")
_READ_ALREADY = (
    ("huggingface_hub.constants", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_HUB_OFFLINE"),
    ("datasets.config", "HF_DATASETS_OFFLINE"),
    ("evaluate.config", "HF_EVALUATE_OFFLINE"),
)
_WITH_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
_SPEAKERS = ("lm_eval", "datasets", "lm-eval")
# True of every run from here, and no news: that the model was loaded before, and what was asked.
_NO_NEWS = ("pretrained", "already-initialized", "generation_kwargs", "Overwriting default")
_MOST_WARNINGS = 5
_READER = "lm_eval.tasks._index"


@contextmanager
def offline() -> Iterator[None]:
    """Lets no library of Hugging Face fetch anything for a while."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    with ExitStack() as stack:
        stack.callback(_restore, before)
        os.environ.update(dict.fromkeys(_OFFLINE, "1"))
        for module, name in _READ_ALREADY:
            stack.enter_context(_replaced(module, name, True))
        yield


def _restore(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _replaced(module: str, name: str, value: Any) -> Iterator[None]:
    """Gives a name of a module another value for a while, where it is imported and has the name."""
    place = sys.modules.get(module)
    if not hasattr(place, name):
        yield
        return
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


class Warnings(logging.Handler):
    """Keeps what the harness warns of, each once, numbers apart."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._lines: dict[str, str] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a warning."""
        line = " ".join(record.getMessage().split())
        if not any(words in line for words in _NO_NEWS):
            self._lines.setdefault(re.sub(r"[0-9]+", "#", line), line)

    @property
    def lines(self) -> list[str]:
        """The first few."""
        return list(self._lines.values())[:_MOST_WARNINGS]


@contextmanager
def quiet() -> Iterator[Warnings]:
    """Keeps the harness and what is under it from writing; yields what they warn of."""
    heard = Warnings()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    kept = []
    for name in _SPEAKERS:
        logger = logging.getLogger(name)
        kept.append((logger, logger.level, logger.propagate, list(logger.handlers)))
        logger.setLevel(logging.WARNING)
        logger.propagate, logger.handlers = False, [heard]
    try:
        yield heard
    finally:
        for logger, level, propagate, handlers in kept:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagate, handlers
        transformers_logging.set_verbosity(verbosity)


@contextmanager
def skipped() -> Iterator[list[str]]:
    """Yields what the harness says of files that it cannot read, which it says to nobody else."""
    lines: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        line = " ".join(record.getMessage().split())
        if line.startswith("Skip "):
            lines.append(line)
        return record.levelno >= logging.WARNING

    logger = logging.getLogger(_READER)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(keep)
    try:
        yield lines
    finally:
        logger.removeFilter(keep)
        logger.setLevel(level)


class Bar:
    """Stands where the harness draws a bar, and tells how far it is."""

    tell: Callable[[float], None] = staticmethod(lambda share: None)

    def __init__(self, items: Any = None, total: int | None = None, **rest: Any) -> None:
        self._items = items
        self.total = (
            total if total is not None else (len(items) if hasattr(items, "__len__") else 0)
        )
        self.n = 0

    def __iter__(self) -> Iterator[Any]:
        yield from self._items

    def update(self, count: int = 1) -> None:
        """Counts what was answered."""
        self.n += count
        if self.total:
            type(self).tell(min(1.0, self.n / self.total))

    def close(self) -> None:
        """Ends."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@contextmanager
def bars_told(tell: Callable[[float], None]) -> Iterator[None]:
    """Turns the harness's bars, and those of data that are read, into calls of `tell`."""
    with ExitStack() as stack:
        made = type("Told", (Bar,), {"tell": staticmethod(tell)})
        for name in _WITH_BARS:
            stack.enter_context(_replaced(name, "tqdm", made))
        datasets: Any = sys.modules.get("datasets")
        if datasets is not None and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        yield


@contextmanager
def seeded() -> Iterator[None]:
    """Seeds the global generators as the harness does, and gives them back as they were.

    Tasks that sample their answers, or shuffle their data, read them.
    """
    devices = list(range(torch.cuda.device_count()))
    before = random.getstate(), np.random.get_state()  # noqa: NPY002, tasks read the old one
    with torch.random.fork_rng(devices=devices):
        random.seed(_RANDOM_SEED)
        np.random.seed(_OTHER_SEED)  # noqa: NPY002
        torch.manual_seed(_OTHER_SEED)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002
