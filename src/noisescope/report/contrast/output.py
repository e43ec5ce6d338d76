"""Writes a comparison: its figures as JSON, the report as one page, and the pictures beside it."""

from collections.abc import Sequence
from pathlib import Path

from noisescope.analyse.gate import Ruling
from noisescope.errors import InputError
from noisescope.report.contrast.page import contrast_sections, contrast_summary, contrast_title
from noisescope.report.contrast.result import contrast_bytes
from noisescope.report.page.page import page_bytes, picture_files
from noisescope.study.contrast import Contrast
from noisescope.study.files import replace_file


def write_contrast(
    contrast: Contrast, rulings: Sequence[Ruling], directory: Path, command: str
) -> tuple[str, ...]:
    """Writes a comparison into a directory that is empty or does not exist.

    Args:
        contrast: What was compared.
        rulings: Of the gates.
        directory: Where to; its parent exists.
        command: By which it is compared again.

    Returns:
        The names of the files, pictures as one.

    Raises:
        InputError: They cannot be written.
    """
    sections = contrast_sections(contrast, rulings, command)
    page = page_bytes(contrast_title(contrast), contrast_summary(contrast, rulings), sections)
    pictures = picture_files(sections)
    files = {"compare.json": contrast_bytes(contrast, rulings), "report.html": page, **pictures}
    for name, data in files.items():
        path = directory / name
        try:
            directory.mkdir(exist_ok=True)
            path.parent.mkdir(exist_ok=True)
            replace_file(path, data)
        except OSError as error:
            raise InputError(
                f"cannot write {path}: {error.strerror}; make room, or name another --out"
            ) from error
    named = [name for name in files if name not in pictures]
    return (*named, "figures") if pictures else tuple(named)
