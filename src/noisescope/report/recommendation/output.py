"""What a recommendation leaves in its directory: the report, and a file for each engine.

A study's own report shows the recommendation that lies beside it.
"""

from pathlib import Path

from noisescope.errors import InputError
from noisescope.export import Exports, export_files
from noisescope.report.output import write_into, write_report
from noisescope.report.page.page import Section
from noisescope.report.recommendation.section import recommendation_section
from noisescope.study import Diagnosis, is_study, make_diagnosis, read_study, read_told
from noisescope.study.recommended import Recommendation

BESIDE = "recommend"  # below a study's directory
EXPORTS = "exports"


def write_recommendation(
    diagnosis: Diagnosis, directory: Path, exports: Exports
) -> tuple[str, ...]:
    """Writes the report and the engines' files into the directory of a recommendation's study.

    Returns:
        The names of the files, the report first.

    Raises:
        InputError: They cannot be written; the study itself is complete all the same.
    """
    files = write_report(diagnosis, directory)
    made = {f"{EXPORTS}/{name}": data for name, data in exports.files.items()}
    write_into(directory, made)
    return (*files, *made)


def exports_of(
    found: Recommendation, names: list[str], engines: list[str] | None = None
) -> Exports:
    """Returns the engines' files of what is recommended.

    Args:
        found: The recommendation.
        names: Of all modules of the model.
        engines: Which; None: all that can express it.

    Raises:
        InputError: An engine that was asked for cannot express it.
    """
    return export_files(found.assignment, names, engines)


def kept_recommendation(directory: Path) -> tuple[Section, ...]:
    """Returns the section of the recommendation that lies beside a study; none where none does."""
    beside = directory / BESIDE
    if not is_study(beside):
        return ()
    try:
        state = read_study(beside)
        told = read_told(beside)
        made = make_diagnosis(state.plan, state.records, state.witnesses, state.notes, told=told)
    except InputError:
        return ()  # damaged, or without a solution: its own command says so
    found = made.recommendation
    return () if found is None else (recommendation_section(found),)
