"""What the terminal shows below the table of conditions: what a study found beyond it.

Single sites, doses, channels as small tables, the rest a line each. Nothing is shown of what was
not looked at.
"""

import math
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from noisescope.analyse import Agreement, Response, Summary
from noisescope.analyse.dose_response import ScaleResponse
from noisescope.report.channels import channel_tables
from noisescope.report.claims import departing_text, outliers
from noisescope.report.figures import estimate_text, number_text, ratio_text, times_text
from noisescope.report.table import Columns, fitting, plain, plain_table, width_of
from noisescope.study import Diagnosis
from noisescope.study.steps import SITES

_PLACES = {"on": "", "above": "+", "below": "-", "unknown": "?"}
_DOSES = "dose: times the line c s^2; + above, - below it beyond chance, ? open"


def agreement_line(diagnosis: Diagnosis) -> Text | None:
    """Returns the line that holds prediction against measurement; None where there is none."""
    found = diagnosis.findings.agreement
    return None if found is None else plain(_agreement(found))


def print_findings(console: Console, diagnosis: Diagnosis) -> None:
    """Prints single sites, doses, channels, and a line each on what else was found."""
    for table in _tables(diagnosis, console.width):
        console.print(table)
    for line in _lines(diagnosis):
        console.print(plain(line))


def _agreement(found: Agreement) -> str:
    told = "prediction: "
    if math.isfinite(found.rank):
        told += f"rank {found.rank:.2f}, slope {ratio_text(found.slope)}, R2 {found.r2:.2f}, "
    told += f"measured/predicted {times_text(found.ratio)} over {found.conditions} conditions"
    if found.departing:
        told += f"; off the line: {departing_text(found.departing)}"
    return told


def _tables(diagnosis: Diagnosis, width: int) -> Iterator[Table | Text]:
    chosen = diagnosis.chosen.get(SITES, ())
    if chosen:
        yield _sites(diagnosis, chosen, width)
    if diagnosis.findings.responses:
        yield plain_table(dose_columns(diagnosis.findings.responses, width))
        yield plain(_DOSES)
    yield from channel_tables(diagnosis, width)


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    found = diagnosis.findings
    if diagnosis.kind == "channels":
        yield from outliers(diagnosis)
    if diagnosis.kind == "diagnose":  # its verdict says the rest
        return
    for name, response in found.responses.items():
        yield f"{name}: {response.reason}"
    if found.additivity is not None:
        yield f"additivity: {found.additivity.reason}"
    if found.amplification is not None:
        yield f"amplification: {found.amplification.reason}"
    if found.critical is not None:
        yield f"critical scale: {found.critical.reason}"
    elif found.target is not None:
        yield f"critical scale: {found.target} is open, since nothing measured tells of it"


def _sites(diagnosis: Diagnosis, chosen: tuple[Summary, ...], width: int) -> Table:
    """Returns the single sites that were chosen: measured beside predicted."""
    predictions = [diagnosis.findings.predictions.get(s.condition) for s in chosen]
    predicted = [p.kl_nats if p is not None else math.nan for p in predictions]
    means = [s.kl_nats.mean for s in chosen]
    columns: Columns = {
        "single site": [s.condition for s in chosen],
        "KL, nats/token": [estimate_text(s.kl_nats) for s in chosen],
        "predicted": [number_text(kl) for kl in predicted],
        "ratio": [
            times_text(mean / kl) if kl > 0 else "n/a"
            for mean, kl in zip(means, predicted, strict=True)
        ],
    }
    narrower: list[tuple[str, list[str] | None]] = [
        ("KL, nats/token", [number_text(mean) for mean in means]),
        ("ratio", None),
        ("predicted", None),
    ]
    return plain_table(fitting(columns, narrower, width))


def dose_columns(responses: Mapping[str, Response], width: int) -> Columns:
    """Returns a column per scale that most were measured at, a row per response.

    A cell holds the KL and how many times the line it is; the KL goes where the width is small,
    then the smallest scales.
    """
    scales = _shared_scales(responses)
    full: Columns = {"dose": list(responses)}
    short: Columns = {"dose": list(responses)}
    for scale in scales:
        points = [_at(response, scale) for response in responses.values()]
        full[f"{scale:g}"] = [_cell(point, with_kl=True) for point in points]
        short[f"{scale:g}"] = [_cell(point, with_kl=False) for point in points]
    # All cells are shortened or none: two kinds in one table would be misread.
    return fitting(
        full if width_of(full) <= width else short,
        [(f"{scale:g}", None) for scale in scales[:-1]],
        width,
    )


def _shared_scales(responses: Mapping[str, Response]) -> list[float]:
    """Returns the scales of the response that most share; of one alone, all of its own."""
    counts: dict[float, int] = {}
    for response in responses.values():
        for point in response.scales:
            counts[point.scale] = counts.get(point.scale, 0) + 1
    least = 1 if len(responses) == 1 else 2
    return sorted(scale for scale, count in counts.items() if count >= least) or sorted(counts)


def _at(response: Response, scale: float) -> ScaleResponse | None:
    return next((point for point in response.scales if point.scale == scale), None)


def _cell(point: ScaleResponse | None, with_kl: bool) -> str:
    if point is None:
        return ""
    ratio = f"{times_text(point.ratio.mean)}{_PLACES[point.place]}"
    return f"{number_text(point.measured.mean)} x{ratio}" if with_kl else ratio
