"""The sections of a diagnosis: what the terminal says of it, with figures, in the page's order.

The verdict stands before them, see `summary_of`. What was not looked at is left out, with a line
where a reader would miss it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from noisescope.analyse import Agreement, Summary, Worst
from noisescope.inject import coverage_table
from noisescope.report import claims
from noisescope.report.conclusion import topics
from noisescope.report.figures import counted, estimate_text, points_text, ratio_text, times_text
from noisescope.report.page import section_tables
from noisescope.report.page.how import how_section
from noisescope.report.page.page import Picture, Section, Table, page_bytes, picture_files
from noisescope.report.pictures.channels import channel_picture
from noisescope.report.pictures.conditions import condition_picture
from noisescope.report.pictures.depth import depth_picture
from noisescope.report.pictures.dose import dose_picture
from noisescope.report.pictures.heatmap import measures_picture
from noisescope.report.pictures.map import map_picture
from noisescope.report.pictures.prediction import prediction_picture
from noisescope.report.pictures.profile_map import sites_picture
from noisescope.report.recommendation.section import recommendation_claims, recommendation_section
from noisescope.study import Diagnosis
from noisescope.study.steps import BLAME, PARTS, SITES

PAGE = "report.html"
_WITHOUT = (
    "Nothing was predicted, so there is no map of all sites, and nothing to hold measured KL "
    "against."
)


def title_of(diagnosis: Diagnosis) -> str:
    """Returns the page's heading."""
    told = "where numeric error hurts"
    if diagnosis.recommendation is not None:
        told = "which weights need how many bits"
    return f"{Path(str(diagnosis.config['model'])).name}: {told}"


def summary_of(diagnosis: Diagnosis) -> list[str]:
    """Returns the verdict, one statement each: of a whole diagnosis what it says in the terminal.

    Of any other study, what costs most and how sure that is.
    """
    if diagnosis.recommendation is not None:
        return recommendation_claims(diagnosis.recommendation)
    if diagnosis.kind == "diagnose":
        return topics(diagnosis)
    told = [*claims.cost(diagnosis)] if claims.whole_summary(diagnosis) is not None else []
    if diagnosis.winner is not None:
        told.append(f"The search by KL names {diagnosis.winner.name}.")
    if diagnosis.summaries:
        told += [_worst(diagnosis, "accuracy", diagnosis.worst_accuracy)]
        told += [_worst(diagnosis, "KL", diagnosis.worst_kl)]
    if diagnosis.kind == "channels":
        told += claims.channels(diagnosis)
    return told


def _worst(diagnosis: Diagnosis, measure: str, worst: Worst) -> str:
    name = "Avalanche point" if diagnosis.kind == "layers" else "Most fragile"
    reason = worst.reason if worst.condition else f"none, since {worst.reason}"
    told = f"{name} by {measure}: {reason}"
    if worst.condition is None or not math.isfinite(worst.held_out.mean):
        return f"{told}."
    loss = f"{estimate_text(worst.held_out)} nats per token"
    if worst.measure == "accuracy":
        loss = points_text(worst.held_out)
    return f"{told}; on data that did not choose it, it loses {loss}."


def report_files(diagnosis: Diagnosis, extra: Sequence[Section] = ()) -> dict[str, bytes]:
    """Returns the report by the names of its files: report.html, figures/*.png and figures/*.csv.

    Args:
        diagnosis: Finished, or as far as it is.
        extra: Sections from elsewhere, shown before how it was run.

    Returns:
        The same bytes for an equal diagnosis: nothing in them depends on clock or directory.
    """
    sections = (*diagnosis_sections(diagnosis), *extra, how_section(diagnosis))
    page = page_bytes(title_of(diagnosis), summary_of(diagnosis), sections)
    return {PAGE: page, **picture_files(sections)}


def diagnosis_sections(diagnosis: Diagnosis) -> tuple[Section, ...]:
    """Returns the sections of a diagnosis, but for how it was run, which `how_section` says."""
    if diagnosis.recommendation is not None:
        # What it says stands before it, as the verdict.
        section = replace(recommendation_section(diagnosis.recommendation), paragraphs=())
        return tuple(filter(None, (section, _coverage(diagnosis))))
    made = [
        _map(diagnosis),
        _prediction(diagnosis),
        _dose(diagnosis),
        _windows(diagnosis),
        _operators(diagnosis),
        _sites(diagnosis),
        _channels(diagnosis),
        _coverage(diagnosis),
    ]
    return _with_measures(diagnosis, [section for section in made if section is not None])


def _with_measures(diagnosis: Diagnosis, sections: Sequence[Section]) -> tuple[Section, ...]:
    """Returns the sections, the last one on what was asked for with the picture of all of it."""
    asked = [s.name for s in sections if s.name in ("windows", "operators", "single-sites")]
    name = next((n for n in ("operators", "windows", "single-sites") if n in asked), None)
    picture = measures_picture(diagnosis) if name is not None else None
    if picture is None:
        return tuple(sections)
    return tuple(
        replace(s, pictures=(*s.pictures, picture)) if s.name == name else s for s in sections
    )


def _map(diagnosis: Diagnosis) -> Section | None:
    profile = diagnosis.told.profile
    pictures = [map_picture(diagnosis)]
    told = [] if profile is not None else [_WITHOUT]
    if profile is not None:
        pictures.append(sites_picture(profile))
        if profile.without:
            named = claims.some(profile.without)
            told.append(
                f"No gradient reaches {counted(len(profile.without), 'site')}, of which nothing "
                f"is predicted: {named}."
            )
    return _section("map", "The map", told, pictures)


def _prediction(diagnosis: Diagnosis) -> Section | None:
    if diagnosis.told.profile is None:
        return None
    told = [*claims.held(diagnosis)]
    if diagnosis.findings.agreement is not None:
        told.append(_agreement(diagnosis.findings.agreement))
    return _section("prediction", "Predicted and measured", told, [prediction_picture(diagnosis)])


def _agreement(found: Agreement) -> str:
    told = f"Over {counted(found.conditions, 'condition')}: "
    if math.isfinite(found.rank):
        told += (
            f"rank correlation {found.rank:.2f}, slope of the logarithms "
            f"{ratio_text(found.slope)}, R² {found.r2:.2f}, "
        )
    return f"{told}measured over predicted {times_text(found.ratio)} in the middle."


def _dose(diagnosis: Diagnosis) -> Section | None:
    found = diagnosis.findings
    told = claims.avalanche(diagnosis)
    if not found.responses and diagnosis.config["noise_scale"] is not None:
        told = ["No dose and response: one scale was measured; --scales measures more.", *told]
    parts = diagnosis.chosen.get(PARTS, ())
    pictures = [
        dose_picture(diagnosis),
        depth_picture(diagnosis),
        condition_picture(diagnosis, "regions", "Regions: each alone, and all but each", parts),
    ]
    return _section(
        "dose", "Dose and response", told, pictures, section_tables.additivity_table(diagnosis)
    )


def _windows(diagnosis: Diagnosis) -> Section | None:
    summaries = [s for s in diagnosis.summaries if s.condition in diagnosis.layers]
    if not summaries:
        return None
    ordered = sorted(summaries, key=lambda s: tuple(diagnosis.layers[s.condition]))
    return _conditions(diagnosis, "windows", "Windows of layers", ordered)


def _operators(diagnosis: Diagnosis) -> Section | None:
    rest = [s for s in diagnosis.summaries if s.condition not in diagnosis.layers]
    if not rest or diagnosis.kind == "sites":
        return None
    return _conditions(diagnosis, "operators", "Operators", rest)


def _conditions(
    diagnosis: Diagnosis, name: str, title: str, summaries: Sequence[Summary]
) -> Section:
    worst = [told for told in claims.worst(diagnosis) if f"among {name}" in told]
    pictures = [condition_picture(diagnosis, name, f"{title}: KL and accuracy", summaries)]
    table = section_tables.condition_table(diagnosis, title, summaries)
    return Section(name, title, tuple(worst), tuple(filter(None, pictures)), (table,))


def _sites(diagnosis: Diagnosis) -> Section | None:
    found: list[Summary] = [*diagnosis.chosen.get(SITES, ()), *diagnosis.chosen.get(BLAME, ())]
    if diagnosis.kind == "sites":
        found = [*diagnosis.summaries, *found]
    if not found:
        return None
    told = [*claims.blamed(diagnosis), *claims.needed(diagnosis)]
    picture = condition_picture(diagnosis, "single-sites", "Single sites", found)
    table = section_tables.condition_table(diagnosis, "Single sites", found)
    return _section("single-sites", "Single sites", told, [picture], [table])


def _channels(diagnosis: Diagnosis) -> Section | None:
    if not diagnosis.told.modules and not diagnosis.findings.channels:
        return None
    return _section(
        "channels",
        "Outlier channels",
        claims.channels(diagnosis),
        [channel_picture(diagnosis)],
        section_tables.channel_tables(diagnosis),
    )


def _coverage(diagnosis: Diagnosis) -> Section | None:
    # At other scales the dose is another, and a mean over them would be nobody's.
    names = [s.condition for s in diagnosis.summaries] or list(diagnosis.witnesses)
    records = [r for name in names for r in diagnosis.witnesses[name].records]
    if not records:
        return None
    told = [
        "Sites that ran, were selected and were perturbed, summed over the conditions that were "
        "asked for, and what arrived: the relative norm of the change, and the share of elements "
        "that changed."
    ]
    rows = coverage_table(records)
    lost = [row.operator for row in rows if row.rows == "row" and row.forward]
    if lost:
        told.append(
            f"Rows lost their sample in {', '.join(lost)}: noise there depends on the batch."
        )
    return _section(
        "coverage", "Coverage and dose", told, [], [section_tables.coverage(diagnosis, rows)]
    )


def _section(
    name: str,
    title: str,
    told: Sequence[str],
    pictures: Sequence[Picture | None],
    tables: Sequence[Table] = (),
) -> Section | None:
    shown = tuple(picture for picture in pictures if picture is not None)
    if not (told or shown or tables):
        return None
    return Section(name, title, tuple(told), shown, tuple(tables))
