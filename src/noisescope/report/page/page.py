"""The page: sections with figures and tables as one HTML file that needs nothing else.

Text goes into the template escaped, figures as SVG (vector.py), each also as PNG and its data
as CSV. What the sections say of a diagnosis is in sections.py; nothing here knows of one.
"""

import base64
import csv
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from noisescope.report.page.vector import svg_of
from noisescope.report.pictures.paint import THEME, png_of

_HERE = Path(__file__).parent
_SLUG = re.compile(r"[a-z][a-z0-9-]*")
_WHOLE = re.compile(r"\[[-+0-9.,e ]{3,30}\]|(?<![\w-])--[a-z][a-z-]*")
_FIGURE = re.compile(r"[-+]?[0-9]|n/a$|none$")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: Its heading.
        columns: Their names; the first column names the rows.
        rows: Cells, row by row, as they are to be read.
        note: How to read it; empty where it says so itself.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with its data. Names in the figure must have gone through `paint.drawable`.

    Attributes:
        name: Stem of its files, figures/NAME.png and figures/NAME.csv: small letters, digits, `-`.
        title: Heading and accessible name.
        caption: One or two sentences: what is to be seen.
        figure: From `paint.new_figure`, in the colours of `paint`, which the page turns dark.
        tips: What hover and focus show, by the gid of an artist; its first line names the mark.
            Of an artist that draws many marks, such as a scatter, `GID/3` is the fourth.
        columns: Names of the columns of its data.
        rows: The data: texts and numbers; None and what is not finite are unknown.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    tips: Mapping[str, str]
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def __post_init__(self) -> None:
        _check_slug(self.name)


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading.

    Attributes:
        name: Its anchor: small letters, digits, `-`.
        title: Its heading.
        paragraphs: What is said first.
        pictures: Figures, in order.
        tables: Tables, in order, below them.
        code: A command, shown as it is typed; empty without one.
    """

    name: str
    title: str
    paragraphs: tuple[str, ...]
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = field(default=())
    code: str = ""

    def __post_init__(self) -> None:
        _check_slug(self.name)


def page_bytes(title: str, summary: Sequence[str], sections: Sequence[Section]) -> bytes:
    """Returns the page; equal arguments give equal bytes.

    Args:
        title: What the page is of; its heading.
        summary: What there is to know, one statement each, shown first.
        sections: In their order.

    Returns:
        HTML in UTF-8 that fetches nothing and allows no script but its own.
    """
    _check_apart([section.name for section in sections], "sections")
    _check_apart([p.name for section in sections for p in section.pictures], "pictures")
    style, script = _style(), _own("page.js")
    text = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=title,
            summary=summary,
            sections=sections,
            style=Markup(style),
            script=Markup(script),
            style_hash=_hash(style),
            script_hash=_hash(script),
            svg_of=lambda picture: Markup(
                svg_of(picture.figure, picture.name, picture.caption, picture.tips)
            ),
        )
    )
    return text.encode()


def picture_files(sections: Sequence[Section]) -> dict[str, bytes]:
    """Returns every figure as figures/NAME.png, and its data as figures/NAME.csv."""
    files = {}
    for picture in (p for section in sections for p in section.pictures):
        files[f"figures/{picture.name}.png"] = png_of(picture.figure)
        files[f"figures/{picture.name}.csv"] = csv_bytes(picture.columns, picture.rows)
    return files


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Returns a table as CSV in UTF-8, numbers in full, the unknown empty.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_csv_cell(name) for name in columns])
    writer.writerows([_csv_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode()


def plain(text: object) -> str:
    """Returns a text with `?` for what cannot be shown, such as controls and halves of characters.

    Marks that turn the direction of the text that follows are among them.
    """
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


def shown(cell: object) -> str:
    """Returns a cell of a figure's data as the page shows it: numbers with four digits."""
    if cell is None:
        return "n/a"
    if isinstance(cell, float):
        return f"{cell:.4g}" if math.isfinite(cell) else "n/a"
    return plain(cell)


def _prose(text: object) -> Markup:
    """Returns a text escaped, with intervals and options that no line end may tear."""
    return Markup(_WHOLE.sub(r'<span class="whole">\g<0></span>', str(escape(plain(text)))))


def _kinds(rows: Sequence[Sequence[object]], columns: Sequence[str]) -> list[Markup]:
    """Returns the class of each column: texts stand to the left, figures to the right."""
    return [
        Markup("")
        if number and all(_is_figure(row[number]) for row in rows)
        else Markup(' class="text"')
        for number in range(len(columns))
    ]


def _is_figure(cell: object) -> bool:
    return not isinstance(cell, str) or cell == "" or _FIGURE.match(cell) is not None


def _csv_cell(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    if isinstance(cell, float):
        return repr(float(cell))
    text = plain(cell)
    return f"'{text}" if isinstance(cell, str) and text.startswith(_FORMULA) else text


def _check_slug(name: str) -> None:
    if not _SLUG.fullmatch(name):
        raise ValueError(f"{name!r} is no name: small letters, digits and - are accepted")


def _check_apart(names: Sequence[str], what: str) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"{what} share a name: {', '.join(names)}")


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )
    made.filters |= {"shown": shown, "prose": _prose, "kinds": _kinds}
    return made


def _style() -> str:
    """Returns the style sheet: the colours' values by day and night, and classes to take them."""
    light = "".join(f"--{name}:{pair[0]};" for name, pair in THEME.items())
    dark = "".join(f"--{name}:{pair[1]};" for name, pair in THEME.items())
    classes = "".join(
        f".f-{name}{{fill:var(--{name})}}.s-{name}{{stroke:var(--{name})}}" for name in THEME
    )
    return (
        f":root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"{classes}\n{_own('page.css')}"
    )


@cache
def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
