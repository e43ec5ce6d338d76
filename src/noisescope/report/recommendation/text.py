"""A recommendation in the terminal: what is recommended, what it is compared with, which group."""

from rich.console import Console
from rich.text import Text

from noisescope.report.figures import counted, estimate_text, number_text, percent
from noisescope.report.recommendation.section import recommendation_claims, span_text
from noisescope.report.table import Columns, fitting, plain, plain_table
from noisescope.report.terminal import point
from noisescope.study import Diagnosis
from noisescope.study.recommended import Recommendation

_MOST_GROUPS = 12


def print_recommendation(console: Console, diagnosis: Diagnosis) -> None:
    """Prints the recommendation of a study."""
    found = diagnosis.recommendation
    if found is None:
        console.print("Nothing is recommended yet: the study was stopped before it was predicted.")
        return
    options = found.options
    what = "weights and activations" if options.operand == "both" else "weights"
    console.print(
        plain(
            f"{diagnosis.config['model']}: {', '.join(options.formats)} for {what} of "
            f"{counted(len(options.groups), 'group')}, {counted(len(options.kept), 'module')} "
            f"kept; {counted(len(diagnosis.plan.samples), 'sample')}"
        )
    )
    console.print(plain_table(_assigned(found, console.width)))
    console.print(plain_table(_groups(found, console.width)))
    if len(options.groups) > _MOST_GROUPS:
        console.print(f"of {len(options.groups)} groups, those predicted to cost most in the first")
    for note in diagnosis.notes:
        console.print(plain(f"Note: {note}"))
    console.print(Text("Recommendation", style="bold"))
    for claim in recommendation_claims(found):
        console.print(point(claim, console.width))


def _assigned(found: Recommendation, width: int) -> Columns:
    rows = found.assigned
    columns: Columns = {
        "assignment": [a.name for a in rows],
        "bits": [f"{a.bits:.2f}" for a in rows],
        "predicted": [number_text(a.predicted.kl_nats) for a in rows],
        "measured KL, nats/token": [
            "n/a" if a.summary is None else estimate_text(a.summary.kl_nats) for a in rows
        ],
        "accuracy": ["n/a" if a.summary is None else percent(a.summary.accuracy) for a in rows],
        "loses more by": ["" if a.worse_by is None else span_text(a.worse_by) for a in rows],
    }
    if set(columns["accuracy"]) <= {"n/a"}:
        del columns["accuracy"]
    return fitting(columns, [("loses more by", None), ("accuracy", None)], width)


def _groups(found: Recommendation, width: int) -> Columns:
    """Returns the groups that cost most in the coarsest format, and what each gets."""
    kl_GF, formats = found.choices.kl_GF, found.options.formats
    coarsest = int(found.choices.bits_GF.mean(axis=0).argmin())
    order = sorted(range(len(kl_GF)), key=lambda row: -kl_GF[row, coarsest])[:_MOST_GROUPS]
    chosen = found.best.chosen
    columns: Columns = {
        "group": [found.options.groups[row].name for row in order],
        "format": [formats[chosen[row]] for row in order],
        "predicted KL": [number_text(float(kl_GF[row, chosen[row]])) for row in order],
        f"in {formats[coarsest]}": [number_text(float(kl_GF[row, coarsest])) for row in order],
    }
    return fitting(columns, [(f"in {formats[coarsest]}", None), ("predicted KL", None)], width)
