"""Runs conditions over samples: batch by batch, the clean model first, then each condition."""

import warnings
from collections.abc import Callable, Sequence

from noisescope.errors import DoseWarning, InputError
from noisescope.inject import Session
from noisescope.measure.attest import check_arrived, cut_note, not_finite_note, weak_dose_note
from noisescope.measure.batch import Batch, CleanBatch, make_batches
from noisescope.measure.plan import Measurement, Plan, Progress
from noisescope.models import LoadedModel
from noisescope.records import CLEAN, Record
from noisescope.tasks import Task, encode_task


def measure(
    loaded: LoadedModel, task: Task, plan: Plan, progress: Progress | None = None
) -> Measurement:
    """Measures every condition of a plan on every sample of a task.

    Warns with a `DoseWarning` where under half of the noise arrived.

    Args:
        loaded: The model, its tokenizer and its context length.
        task: The samples and their scoring.
        plan: The conditions, draws and seed.
        progress: Told what runs now, and how many units of how many are done.

    Raises:
        InputError: The model predicts no next token, or a prompt does not fit it.
        SelectionError: A condition's selection names nothing, or never fired.
        DoseError: Rounding erased all of a condition's noise.
    """
    batches = _encoded_batches(loaded, task, plan)
    sessions = {
        c.name: Session(loaded.model, c.error_model, c.selection, plan.seed, attest=False)
        for c in plan.conditions
    }
    tell = _counter(progress, len(batches) * (1 + len(sessions) * plan.draws))
    records: list[Record] = []
    clean_nlls: list[float] = []
    cut = 0
    for batch in batches:
        tell(CLEAN)
        clean = CleanBatch(loaded, task, batch)
        records += clean.records
        clean_nlls += clean.nlls
        cut += clean.cut
        for name, session in sessions.items():
            for draw in range(plan.draws):
                tell(name if plan.draws == 1 else f"{name}, draw {draw + 1} of {plan.draws}")
                records += clean.noisy_records(name, session, draw)
                if batch is batches[0] and draw == 0:
                    check_arrived(name, session)
    tell("done")
    order = {name: i for i, name in enumerate([CLEAN, *sessions])}
    records.sort(key=lambda r: (order[r.condition], r.draw))  # stable: samples keep their order
    nll = sum(clean_nlls) / len(clean_nlls) if clean_nlls else float("nan")
    notes = _notes(sessions, records, cut_note(cut, task))
    return Measurement(tuple(records), sessions, nll, notes)


def _encoded_batches(loaded: LoadedModel, task: Task, plan: Plan) -> list[Batch]:
    """Returns the batches; raises where the model cannot be measured on them."""
    model = loaded.model
    if not model.can_generate():
        raise InputError(
            f"{type(model).__name__} does not predict the next token, so it cannot be measured: "
            "give a causal language model, or use noisescope.inject from Python"
        )
    prompts = encode_task(
        task, loaded.tokenizer, loaded.context_length, model.get_input_embeddings().num_embeddings
    )
    return list(make_batches(loaded, task, prompts, plan.batch_size))


def _counter(progress: Progress | None, total: int) -> Callable[[str], None]:
    """Returns what tells the progress that something begins, all before it being done."""
    begun = iter(range(total + 1))

    def tell(what: str) -> None:
        done = next(begun)
        if progress is not None:
            progress(what, done, total)

    return tell


def _notes(
    sessions: dict[str, Session], records: Sequence[Record], cut: str | None
) -> tuple[str, ...]:
    weak_dose = weak_dose_note(sessions)
    if weak_dose is not None:
        warnings.warn(weak_dose, DoseWarning, stacklevel=3)
    return tuple(note for note in (weak_dose, not_finite_note(records), cut) if note is not None)
