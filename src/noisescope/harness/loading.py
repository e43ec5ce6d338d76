"""Tasks of lm-evaluation-harness by name, ready to run; nothing is fetched from anywhere.

A name may be a task, a group, a tag, a pattern, or a YAML file. The harness's own catalogue of some
fourteen thousand is read only where the user's directory does not hold all that is named.
"""

import fnmatch
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from noisescope.errors import InputError, near_names
from noisescope.extras import require
from noisescope.harness.refused import in_one_line
from noisescope.harness.surroundings import bars_told, offline, quiet, skipped

_MARKS = "*?["
_MOST_CHARACTERS, _MOST_FILES = 300, 3


@dataclass(frozen=True)
class TaskOptions:
    """How the tasks are asked.

    Attributes:
        num_fewshot: Examples before each question; None: as the task says.
        limit: The first so many samples of each task; a share below 1; None: all.
        gen_kwargs: Options of generation that take precedence over the tasks'.
        apply_chat_template: Whether prompts go through the tokenizer's chat template.
        system_instruction: What is said before each prompt.
        fewshot_seed: Seed by which examples are chosen, the same in every run.
        run_unsafe_code: Whether tasks may run that execute what the model writes.
    """

    num_fewshot: int | None = None
    limit: float | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    apply_chat_template: bool = False
    system_instruction: str | None = None
    fewshot_seed: int = 1234
    run_unsafe_code: bool = False

    def __post_init__(self) -> None:
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise InputError(f"fewshot examples {self.num_fewshot}: a whole number from 0 up")
        if self.limit is not None and not (
            0 < self.limit < 1 or (self.limit >= 1 and float(self.limit).is_integer())
        ):
            raise InputError(
                f"limit {self.limit}: a whole number of samples of each task, or a share below 1"
            )


@dataclass(frozen=True)
class LoadedTask:
    """A task that is ready to run.

    Attributes:
        name: Its name.
        task: The harness's object.
        fingerprint: ``"sha256:..."`` over its configuration and data, without where files lie.
        options: How it was asked to be asked.
        unused: Names of the options that do nothing in it: the number of examples where the task
            says 0, options of generation where it generates nothing.
    """

    name: str
    task: Any
    fingerprint: str
    options: TaskOptions = field(default_factory=TaskOptions)
    unused: tuple[str, ...] = ()

    @property
    def output_type(self) -> str:
        """The harness's name for what is asked of the model."""
        return str(self.task.OUTPUT_TYPE)

    @property
    def metrics(self) -> tuple[str, ...] | None:
        """Names of its metrics; None where code of its own decides them as it runs."""
        if not hasattr(self.task, "config") or callable(self.task.get_config("process_results")):
            return None
        return tuple(self.task.aggregation())

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of how answers are read out."""
        return tuple(str(f.name) for f in getattr(self.task, "_filters", ()))


def load_tasks(
    names: Sequence[str], include_path: Path | None, options: TaskOptions
) -> list[LoadedTask]:
    """Loads tasks, in the order of their names; groups and tags are taken apart.

    Args:
        names: Tasks, groups, tags, patterns such as ``mmlu_*``, or YAML files.
        include_path: A directory with YAML files of the user's own tasks. What they name as
            functions is run.
        options: How they are asked.

    Raises:
        InputError: lm-evaluation-harness is not installed, a name is unknown, or a task cannot be
            loaded: its data are not on this machine, or its file is wrong.
    """
    # Imported first: while it is kept offline, a library would remember that it is.
    tasks = require("lm_eval.tasks", "eval", "tasks of lm-evaluation-harness")
    with offline(), quiet(), bars_told(lambda share: None):
        return _load_tasks(tasks, names, include_path, options)


def _load_tasks(
    tasks: Any, names: Sequence[str], include_path: Path | None, options: TaskOptions
) -> list[LoadedTask]:
    if not names:
        raise InputError("no task is named: give one or more, such as gsm8k,arc_easy")
    if include_path is not None and not include_path.is_dir():
        raise InputError(f"there is no directory {include_path}: name one with YAML files of tasks")
    manager, wanted = _manager(tasks, names, include_path)
    found: dict[str, Any] = {}
    for name in wanted:
        loaded = in_one_line(f"cannot load task {name!r}", partial(_of_name, manager, name))
        found |= {task: made for task, made in loaded.items() if task not in found}
    return [
        in_one_line(f"cannot load task {name!r}", partial(_prepared, name, task, options))
        for name, task in found.items()
    ]


def _of_name(manager: Any, name: str) -> dict[str, Any]:
    found: dict[str, Any] = manager.load([name])["tasks"]
    return found


def _manager(tasks: Any, names: Sequence[str], include_path: Path | None) -> tuple[Any, list[str]]:
    """Returns a catalogue that holds all the names, and the names with patterns written out."""
    manager: Any = None
    wrong: list[str] = []
    for has_defaults in (False, True):
        if not has_defaults and include_path is None and not all(map(_is_file, names)):
            continue
        make = partial(
            tasks.TaskManager,
            include_path=None if include_path is None else str(include_path),
            include_defaults=has_defaults,
        )
        with skipped() as unread:
            manager = in_one_line(f"cannot load the tasks in {str(include_path)!r}", make)
        wrong += [] if has_defaults else unread  # of its own files some are no tasks
        known = set(manager.all_tasks)
        if all(_is_file(name) or _matching(name, known) for name in names):
            break
    wanted = []
    for name in names:
        matching = [name] if _is_file(name) else _matching(name, known)
        if not matching:
            raise InputError(
                f"no task {name!r} in lm-evaluation-harness"
                f"{'' if include_path is None else f' or in {include_path}'}"
                f"{near_names(name, known) or '.'} List them with 'lm-eval ls tasks'."
                f"{_said_of(wrong)}"
            )
        wanted += matching
    return manager, list(dict.fromkeys(wanted))


def _said_of(wrong: Sequence[str]) -> str:
    """Returns what the harness said of files that it cannot read, as the end of a line."""
    lines = list(dict.fromkeys(wrong))[:_MOST_FILES]
    return "".join(f" lm_eval: {line[:_MOST_CHARACTERS]}" for line in lines)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml")) and Path(name).is_file()


def _matching(name: str, known: set[str]) -> list[str]:
    if name in known:
        return [name]
    return sorted(fnmatch.filter(known, name)) if any(mark in name for mark in _MARKS) else []


def _prepared(name: str, task: Any, options: TaskOptions) -> LoadedTask:
    """Applies what was asked to a task, as the harness's own command line does."""
    if getattr(task, "UNSAFE_CODE", False) and not options.run_unsafe_code:
        raise InputError(
            f"task {name!r} runs code that the model writes: where you mean that, on a machine "
            "that may be harmed, give --confirm-run-unsafe-code"
        )
    if getattr(task, "MULTIMODAL", False):
        raise InputError(f"task {name!r} shows pictures or sounds: a language model takes text")
    unused = []
    if options.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(options.gen_kwargs), update=True)
    elif options.gen_kwargs:
        unused.append("gen_kwargs")
    default = task.get_config("num_fewshot")
    if options.num_fewshot is not None and default != 0:
        task.set_config(key="num_fewshot", value=options.num_fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    elif options.num_fewshot:
        unused.append("num_fewshot")
    fingerprint = task_fingerprint(task, options.limit)
    return LoadedTask(name, task, fingerprint, options, tuple(unused))


def task_fingerprint(task: Any, limit: float | None = None) -> str:
    """Returns ``"sha256:<hex>"`` over a task's configuration and the documents that are asked."""
    config = dict(task.dump_config())
    config.pop("metadata", None)
    config.pop("dataset_kwargs", None)  # where its files lie, and where they are unpacked
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    documents = task.eval_docs
    count = len(documents)
    if limit is not None:
        count = min(count, math.ceil(count * limit) if limit < 1 else int(limit))
    for n in range(count):
        digest.update(json.dumps(documents[n], sort_keys=True, default=str).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"
