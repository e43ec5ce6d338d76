"""Carries out runs: one task under one condition and draw at a time, each kept as it ends.

The harness asks and scores. What differs between two runs is the noise alone: examples in prompts
and sampled answers are drawn from the same seeds in every run.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from noisescope.extras import require
from noisescope.harness.answers import Run, answers_of
from noisescope.harness.kept import Kept
from noisescope.harness.loading import LoadedTask, TaskOptions
from noisescope.harness.noisy_lm import NoisyLM
from noisescope.harness.refused import in_one_line
from noisescope.harness.surroundings import bars_told, quiet, seeded
from noisescope.inject import Witness
from noisescope.measure import Condition, Progress
from noisescope.measure.attest import check_arrived
from noisescope.models import LoadedModel
from noisescope.records import CLEAN


@dataclass
class Runner:
    """Carries out the runs of an evaluation, one after the other.

    Attributes:
        loaded: The model.
        tasks: The tasks.
        options: How they are asked.
        rows: Rows that run together.
        kept: Where runs are kept; what is there is not run again.
        seed: First key word of the random numbers.
        progress: Told what runs, and how many runs of how many are done.
    """

    loaded: LoadedModel
    tasks: Sequence[LoadedTask]
    options: TaskOptions
    rows: int
    kept: Kept
    seed: int
    progress: Progress | None

    def all_runs(self, conditions: Sequence[Condition], draws: int) -> tuple[Run, ...]:
        """Returns the clean runs first, then condition by condition, draw by draw."""
        noisy = [(c, k) for c in conditions for k in range(draws)]
        plan: list[tuple[Condition | None, int]] = [(None, 0), *noisy]
        total = len(plan) * len(self.tasks)
        runs: list[Run] = []
        for condition, draw in plan:
            lm: NoisyLM | None = None
            for task in self.tasks:
                name = CLEAN if condition is None else condition.name
                run = self.kept.read(name, draw, task.name)
                if run is None:
                    lm = lm or self._model(condition, draw)
                    what = name if draws == 1 or condition is None else f"{name}, draw {draw}"
                    tell = partial(self._tell, f"{what}: {task.name}", len(runs), total)
                    run = self._run(lm, name, draw, task, tell)
                    self.kept.write(run)
                runs.append(run)
        self._tell("done", len(runs), total, 0.0)
        return tuple(runs)

    def _tell(self, what: str, done: int, total: int, share: float) -> None:
        if self.progress is not None:
            self.progress(what, done + share, total)

    def _model(self, condition: Condition | None, draw: int) -> NoisyLM:
        if condition is None:
            return NoisyLM(self.loaded, batch_size=self.rows)
        lm = NoisyLM(
            self.loaded,
            condition.error_model,
            selection=condition.selection,
            seed=self.seed,
            draw=draw,
            batch_size=self.rows,
        )
        if lm.session is not None:
            lm.session.attest = False  # told below, with the condition's name
        return lm

    def _run(
        self, lm: NoisyLM, name: str, draw: int, task: LoadedTask, tell: Callable[[float], None]
    ) -> Run:
        evaluator = require("lm_eval.evaluator", "eval", "an evaluation")
        tell(0.0)
        if lm.session is not None:
            lm.session.forget()
        # The harness draws examples for the prompts from a generator that goes on from run to run.
        task.task.set_fewshot_seed(seed=self.options.fewshot_seed)
        with ExitStack() as stack:
            # Sampled answers are drawn alike in every run, whichever runs came before.
            stack.enter_context(seeded())
            stack.enter_context(bars_told(tell))
            heard = stack.enter_context(quiet())
            found = in_one_line(
                f"lm-evaluation-harness cannot run task {task.name!r}",
                lambda: evaluator.evaluate(
                    lm,
                    {"tasks": {task.name: task.task}},
                    limit=self.options.limit,
                    cache_requests=False,  # its files are pickles, and know a task by its name
                    bootstrap_iters=0,
                    log_samples=True,
                    system_instruction=self.options.system_instruction,
                    apply_chat_template=self.options.apply_chat_template,
                    fewshot_as_multiturn=self.options.apply_chat_template,
                    confirm_run_unsafe_code=self.options.run_unsafe_code,
                ),
            )
        if lm.session is not None:
            check_arrived(name, lm.session)
        return Run(
            condition=name,
            draw=draw,
            task=task.name,
            answers=answers_of(found["samples"][task.name]),
            aggregates=_aggregates(found["results"][task.name]),
            higher_is_better=dict(found["higher_is_better"].get(task.name, {})),
            output_type=str(task.task.OUTPUT_TYPE),
            witness=Witness.from_json(lm.witness.as_json()),
            notes=tuple(heard.lines),
        )


def _aggregates(results: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in results.items()
        if isinstance(value, (int, float)) and "_stderr" not in name and "," in name
    }
