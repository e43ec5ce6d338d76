"""Names that would do harm if they became markup, a formula, a template or a word of a shell."""

from noisescope.report.page.page import Picture, Section, Table
from noisescope.report.pictures.paint import BAR, drawable, new_figure

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\alpha$",
    "$\\frac{",
    "{{7*7}}{% raw %}",
    "</title></style></script><svg onload=alert(1)>",
    "]]><!--",
    "\u202egnp.exe \u05d0\u05d1\u05d2",
    "\x00\x1b[31m\ud800",
    "a" * 3000,
    "模型 é & < > ' \"",
)


def made_picture(name: str = "one", text: str = "x", tips=None) -> Picture:
    """Two bars, one of which says the text."""
    figure = new_figure(3, 2)
    axes = figure.subplots()
    for number, bar in enumerate(axes.bar([0, 1], [1, 2], color=BAR)):
        bar.set_gid(f"bar-{number}")
    axes.set_title(drawable(text))
    axes.set_xticks([0, 1], [drawable(text), "b"])
    shown = {"bar-0": f"{text}\nfirst", "bar-1": "b\nsecond"} if tips is None else tips
    return Picture(name, text, text, figure, shown, ("name", "KL"), ((text, 0.125), ("b", None)))


def made_section(text: str = "x", **changes) -> Section:
    """A section that says the text wherever it can be said."""
    entry = {
        "name": "part",
        "title": text,
        "paragraphs": (text,),
        "pictures": (made_picture(text=text),),
        "tables": (Table(text, (text, "value"), ((text, "1.5 [1, 2]"),), text),),
        "code": f"run {text}",
    }
    return Section(**{**entry, **changes})


def hostile_sections() -> list[Section]:
    """A section for each of the names."""
    return [
        made_section(text, name=f"part-{n}", pictures=(made_picture(f"picture-{n}", text),))
        for n, text in enumerate(HOSTILE)
    ]
