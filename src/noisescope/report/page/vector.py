"""A figure as SVG that can stand inside a page: its own names, no styles, marks that can be read.

The drawing is matplotlib's. What it writes as styles becomes attributes and classes, because the
page forbids inline styles and has colours for the dark; ids get the figure's name in front, because
a page holds several.
"""

import io
import re
from collections.abc import Mapping
from xml.etree import ElementTree as ET

import matplotlib
from matplotlib.figure import Figure

from noisescope.report.pictures.paint import THEME, settle

_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_PIXELS_PER_POINT = 96 / 72
_WIDEST = 1250  # pixels that still can be read when they are made to fit
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_SPACES = re.compile(r"\s+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NAMES = {light: name for name, (light, _) in THEME.items()}
_COLOURED = {"fill": "f", "stroke": "s"}
_KEPT = {
    *("fill", "fill-opacity", "fill-rule", "font-size", "font-style", "font-weight", "opacity"),
    *("stroke", "stroke-dasharray", "stroke-dashoffset", "stroke-linecap", "stroke-linejoin"),
    *("stroke-miterlimit", "stroke-opacity", "stroke-width", "text-anchor"),
}
_ROUNDED = ("d", "x", "y", "width", "height", "transform")


def svg_of(figure: Figure, name: str, description: str, tips: Mapping[str, str]) -> str:
    """Returns a figure as an `svg` element.

    Args:
        figure: What to draw.
        name: In front of all ids; `NAME-title` and `NAME-caption` in the page say what it shows.
        description: What is to be seen, for those who have the SVG alone.
        tips: What a mark says, by its artist's gid; of the fourth mark of an artist, by `GID/3`.

    Returns:
        The element, without styles, scripts or links; equal figures give equal texts.

    Raises:
        ValueError: A tip for what is not drawn.
    """
    drawn = ET.fromstring(_drawn(figure, name))
    marks = _marks(drawn, name, tips)
    (root,) = _cleaned(drawn, _ids(drawn, name), marks)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    root.attrib |= {
        "width": f"{width * _PIXELS_PER_POINT:.0f}",
        "height": f"{height * _PIXELS_PER_POINT:.0f}",
        # What is in an image cannot be reached one by one, and in a group it can.
        "role": "group" if tips else "img",
        "aria-labelledby": f"{name}-title",
        "aria-describedby": f"{name}-caption",
    }
    if float(root.attrib["width"]) > _WIDEST:
        root.attrib["class"] = "big"
    described = ET.Element("desc")
    described.text = _printable(description)
    root.insert(0, described)
    return ET.tostring(root, encoding="unicode")


def _drawn(figure: Figure, name: str) -> bytes:
    """Returns what matplotlib writes, with text as text and nothing of clock or chance in it."""
    settle(figure)
    made = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            made,
            format="svg",
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    return made.getvalue()


def _marks(root: ET.Element, name: str, tips: Mapping[str, str]) -> dict[ET.Element, str]:
    """Returns the elements that have something to say, with what it is."""
    by_id = {element.attrib.get("id"): element for element in root.iter()}
    marks = {}
    for gid, tip in tips.items():
        artist, _, number = gid.partition("/")
        mark = by_id.get(artist)
        if mark is not None and number:
            found = mark.findall(f".//{_SVG}use") or mark.findall(f"{_SVG}path")
            mark = found[int(number)] if int(number) < len(found) else None
        if mark is None:
            raise ValueError(f"there is a tip for {gid!r}, which {name} does not draw")
        marks[mark] = tip
    return marks


def _ids(root: ET.Element, name: str) -> dict[str, str]:
    """Returns the ids that something refers to, each with its name in the page."""
    used: set[str] = set()
    for element in root.iter():
        for value in element.attrib.values():
            used.update(_REFERENCE.findall(value))
        used.add(element.attrib.get(f"{_LINK}href", "").removeprefix("#"))
    ids = [element.attrib["id"] for element in root.iter() if element.attrib.get("id") in used]
    return {old: f"{name}-{number}" for number, old in enumerate(dict.fromkeys(ids))}


def _cleaned(
    element: ET.Element, ids: Mapping[str, str], marks: Mapping[ET.Element, str]
) -> list[ET.Element]:
    """Returns an element as the page takes it; in the place of an idle group, what is in it."""
    tag = element.tag.removeprefix(_SVG)
    if tag in ("metadata", "style", "title"):
        return []
    made = ET.Element(tag, _attributes(element, ids))
    made.text = element.text if tag == "text" else None
    for child in element:
        made.extend(_cleaned(child, ids, marks))
    if element in marks:
        if tag == "g" and len(made) == 1:
            made = made[0]
        made.attrib["class"] = f"{made.attrib.get('class', '')} mark".strip()
        made.attrib["role"] = "img"
        # Without the script the browser shows it by itself, and it names the mark.
        told = ET.Element("title")
        told.text = _printable(marks[element])
        made.insert(0, told)
    if tag in ("g", "defs") and (not len(made) or (tag == "g" and not made.attrib)):
        return list(made)
    return [made]


def _attributes(element: ET.Element, ids: Mapping[str, str]) -> dict[str, str]:
    kept: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key == "id" and value in ids:
            kept["id"] = ids[value]
        elif key == f"{_LINK}href":
            kept["href"] = f"#{ids[value[1:]]}" if value.startswith("#") else value
        elif key == "style":
            kept |= _styles(value)
        elif key in _ROUNDED:
            kept[key] = _SPACES.sub(" ", _NUMBER.sub(_rounded, value)).strip()
        elif key in ("viewBox", "clip-path") or key in _KEPT:
            kept[key] = _REFERENCE.sub(lambda found: f"url(#{ids[found.group(1)]})", value)
    if kept.get("transform", "").startswith("rotate(-0 "):
        del kept["transform"]
    # A named colour is the page's to choose: in the dark it is another.
    named = {p: c for p, c in _COLOURED.items() if kept.get(p) in _NAMES}
    classes = " ".join(f"{c}-{_NAMES[kept.pop(p)]}" for p, c in named.items())
    return kept | ({"class": classes} if classes else {})


def _styles(style: str) -> dict[str, str]:
    """Returns the properties of a style that are attributes of SVG too."""
    pairs = (part.split(":", 1) for part in style.split(";") if ":" in part)
    found = {key.strip(): value.strip() for key, value in pairs}
    size = re.search(r"([\d.]+)px", found.get("font", ""))
    if size:
        found["font-size"] = size.group(1)
        if "bold" in found["font"] or re.search(r"\b700\b", found["font"]):
            found["font-weight"] = "bold"
    return {key: value for key, value in found.items() if key in _KEPT}


def _rounded(match: re.Match[str]) -> str:
    text = f"{float(match.group()):.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
