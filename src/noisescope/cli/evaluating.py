"""The command that evaluates tasks of lm-evaluation-harness clean and under noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from noisescope.analyse.gate import Gate, exit_status, parse_gate
from noisescope.cli import options as o
from noisescope.cli.commands import Interrupted, app, load_from
from noisescope.cli.evaluation_places import conditions_of, parse_gen_kwargs
from noisescope.cli.evaluation_text import print_evaluation
from noisescope.cli.given import StudyOptions, takes
from noisescope.errors import InputError
from noisescope.extras import require
from noisescope.harness import (
    EvaluationMargins,
    LoadedTask,
    TaskOptions,
    check_gates,
    evaluate_tasks,
    is_evaluation,
    load_tasks,
    ruling_text,
    rulings_of,
    write_evaluation,
)
from noisescope.noise import ErrorModel
from noisescope.report import check_empty, check_writable
from noisescope.report.table import plain
from noisescope.report.terminal import progress_bar
from noisescope.trackers import log_evaluation, parse_trackers


@dataclass(frozen=True)
class EvalOptions:
    """What `eval` takes."""

    model: o.Model
    tasks: Annotated[
        str,
        typer.Option(
            help="Tasks of lm-evaluation-harness joined by commas: names, groups, tags, patterns "
            "such as mmlu_*, or YAML files."
        ),
    ]
    include_path: Annotated[
        Path | None,
        typer.Option(help="Directory with YAML files of your own tasks; functions they name run."),
    ] = None
    tokenizer: o.Tokenizer = None
    noise_scale: o.Scale = None
    error_type: o.ErrorType = None
    format: o.Format = None
    operand: o.Operand = None
    rounding: o.Rounding = "nearest"
    layers: Annotated[
        str | None,
        typer.Option(
            help="Noise in these layers and regions alone, e.g. 0-3,7,head; everywhere if unset."
        ),
    ] = None
    window: Annotated[
        int | None, typer.Option(help="Noise in windows of so many layers, one at a time.")
    ] = None
    stride: o.Stride = None
    operators: o.Operators = "all"
    draws: o.Draws = 1
    seed: o.Seed = 0
    limit: Annotated[
        float | None,
        typer.Option(help="The first so many samples of each task, or a share below 1."),
    ] = None
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; as the task says if unset.")
    ] = None
    gen_kwargs: Annotated[
        str | None,
        typer.Option(help="Options of generation: max_gen_toks=64,until=..., or a JSON object."),
    ] = None
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask through the chat template.")
    ] = False
    system_instruction: Annotated[
        str | None, typer.Option(help="What is said before each prompt.")
    ] = None
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code", help="Let tasks run code that the model has written."
        ),
    ] = False
    batch_size: o.BatchSize = None
    dtype: o.Dtype = None
    device: o.Device = None
    trust_remote_code: o.RemoteCode = False
    accuracy_margin: o.AccuracyMargin = 0.01
    nats_margin: Annotated[
        float,
        typer.Option(help="Loss of log-likelihood, and KL of choices, that is still no harm."),
    ] = 0.01
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            help="A bound not to be passed: 'accuracy<-1%', 'nll>0.02', 'kl>0.02' (of choices), or "
            "of one task, condition or metric 'accuracy\\[gsm8k]<-1%'. Exit status 1 where it is "
            "shown, 0 where it is excluded, 3 where that is open. May be given several times."
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to write; an evaluation there goes on where it was."),
    ] = None
    log: o.Log = None

    def check(self) -> None:
        """Raises InputError for an option out of range, before anything is loaded."""
        o.check_numbers(self.seed, batch_size=self.batch_size, draws=self.draws)
        o.check_numbers(self.seed, window=self.window, stride=self.stride)
        o.check_margins(self.accuracy_margin, self.nats_margin)
        o.check_names(self.operators)
        if self.window is not None and self.layers is not None:
            raise InputError(
                "--window goes through all layers: leave out --layers, or give --layers alone"
            )
        if self.stride is not None and self.window is None:
            raise InputError(f"--stride {self.stride}: it goes with --window; give that, too")
        if self.out is not None:
            _check_out(self.out)
        parse_trackers(self.log)
        self.gates()

    def gates(self) -> list[Gate]:
        """Returns the bounds that are not to be passed."""
        return [_gate(text) for text in self.fail_if or ()]

    def error_model(self) -> ErrorModel:
        """Returns what is added, or done to weights and activations."""
        given = StudyOptions(
            model=self.model,
            data="",
            noise_scale=self.noise_scale,
            error_type=self.error_type,
            format=self.format,
            operand=self.operand,
            rounding=self.rounding,
        )
        return given.error_model()

    def options(self) -> TaskOptions:
        """Returns how the tasks are asked."""
        return TaskOptions(
            num_fewshot=self.num_fewshot,
            limit=self.limit,
            gen_kwargs=parse_gen_kwargs(self.gen_kwargs),
            apply_chat_template=self.apply_chat_template,
            system_instruction=self.system_instruction,
            run_unsafe_code=self.confirm_run_unsafe_code,
        )


@app.command("eval")
@takes(EvalOptions)
def evaluate(given: EvalOptions) -> None:
    """Evaluate tasks of lm-evaluation-harness clean and under noise, paired sample by sample."""
    given.check()
    require("lm_eval", "eval", "noisescope eval")
    error_model, options = given.error_model(), given.options()
    if error_model.is_null:
        raise InputError("--noise-scale 0 changes nothing: give a scale above 0, such as 0.05")
    names = [name.strip() for name in given.tasks.split(",") if name.strip()]
    with Console(stderr=True).status("reading the tasks"):
        tasks = load_tasks(names, given.include_path, options)
    try:
        _evaluate(given, error_model, tasks, options)
    except KeyboardInterrupt:
        kept = "nothing was written"
        if given.out is not None and is_evaluation(given.out):
            kept = f"what was finished is kept in {given.out}: run the same command again to go on"
        raise Interrupted(f"Interrupted: {kept}.") from None


def _evaluate(
    given: EvalOptions, error_model: ErrorModel, tasks: list[LoadedTask], options: TaskOptions
) -> None:
    loaded = load_from(
        given.model, given.tokenizer, given.dtype, given.device, given.trust_remote_code
    )
    conditions = conditions_of(given, loaded, error_model)
    names = [condition.name for condition in conditions]
    check_gates(given.gates(), tasks, names)
    with progress_bar(Console(stderr=True), "runs") as tell:
        evaluation = evaluate_tasks(
            loaded,
            tasks,
            conditions,
            draws=given.draws,
            seed=given.seed,
            batch_size=given.batch_size,
            options=options,
            margins=EvaluationMargins(given.accuracy_margin, given.nats_margin),
            out=given.out,
            progress=tell,
        )
    where = "Nothing was written: --out DIR keeps the evaluation and its samples."
    try:
        if given.out is not None:
            first, *others = write_evaluation(evaluation, given.out)
            where = f"Written: {given.out / first}; beside it {', '.join(others)} and runs."
    finally:
        print_evaluation(Console(), evaluation)
    typer.echo(where)
    for tracker in parse_trackers(given.log):
        typer.echo(f"Logged: {log_evaluation(evaluation, tracker)}")
    # A directory may hold more than what is asked; bounds are of what is asked.
    asked = {task.name for task in tasks}
    meant = [c for c in evaluation.changes if c.condition in names and c.task in asked]
    rulings = rulings_of(meant, given.gates())
    for ruling in rulings:
        Console().print(plain(ruling_text(ruling)))
    raise typer.Exit(exit_status(rulings))


def _check_out(out: Path) -> None:
    if is_evaluation(out):
        check_writable("--out", out, out)
    else:
        check_empty("--out", out)


def _gate(text: str) -> Gate:
    try:
        return parse_gate(text)
    except InputError:  # whose words are of two models or studies
        raise InputError(
            f"--fail-if {text!r}: give 'accuracy<-1%' (points), 'kl>0.02' (nats, of choices) or "
            "'nll>0.02', or of one task, condition or metric 'accuracy[gsm8k]<-1%'"
        ) from None
