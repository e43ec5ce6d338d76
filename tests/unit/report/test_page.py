"""The page: one file, in order, escaped, the same bytes again; figures beside it as PNG and CSV."""

import base64
import csv
import hashlib
import io
import re
from html.parser import HTMLParser

import pytest
from helpers.hostile import HOSTILE
from helpers.hostile import made_picture as picture
from helpers.hostile import made_section as section

from noisescope.report.page.page import Picture, csv_bytes, page_bytes, picture_files
from noisescope.report.pictures.paint import new_figure


class Outline(HTMLParser):
    """Keeps tags with their attributes, and the text of each."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(data.decode())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def names(self, *wanted):
        return [tag for tag, _ in self.tags if tag in wanted]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_name_becomes_markup(text):
    plain, hostile = (Outline(page_bytes(t, [t], [section(t)])) for t in ("some text", text))
    assert [t for t, _ in hostile.tags] == [t for t, _ in plain.tags]
    assert not [name for _, attributes in hostile.tags for name in attributes if name[:2] == "on"]
    shown = "".join(c if c.isprintable() else "?" for c in text)
    assert hostile.text.count(shown) >= 8


def test_a_tag_that_slipped_through_would_be_seen():
    """The check above fails for a page that is not escaped."""
    data = page_bytes("t", ["<b>x</b>"], [section()]).replace(b"&lt;b&gt;", b"<b>")
    assert Outline(data).names("b") == ["b"]


def test_headings_follow_the_order_and_each_section_has_one():
    sections = [section(name=name, pictures=(picture(f"p-{name}"),)) for name in ("one", "two")]
    outline = Outline(page_bytes("t", ["a"], sections))
    assert outline.names("h1", "h2", "h3") == ["h1", "h2", *["h2", "h3", "h3"] * 2]
    ids = {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    for tag, attributes in outline.tags:
        if tag in ("section", "figure", "svg"):
            assert set(attributes["aria-labelledby"].split()) <= ids
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    assert [a["id"] for t, a in outline.tags if t == "section"] == ["verdict", "one", "two"]


def test_ids_are_apart_though_figures_are_alike():
    sections = [section(pictures=(picture("one"), picture("two"), picture("three")))]
    outline = Outline(page_bytes("t", [], sections))
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 8
    text = page_bytes("t", [], sections).decode()
    for used in re.findall(r'url\(#([^)]+)\)|<use href="#([^"]+)"', text):
        assert "".join(used) in ids


def test_equal_sections_give_equal_bytes_however_often_they_are_drawn():
    sections = [section()]
    page, files = page_bytes("t", ["a"], sections), picture_files(sections)
    assert page_bytes("t", ["a"], sections) == page == page_bytes("t", ["a"], [section()])
    assert picture_files(sections) == files == picture_files([section()])
    assert files.keys() == {"figures/one.png", "figures/one.csv"}
    assert files["figures/one.png"].startswith(b"\x89PNG\r\n")


def test_only_its_own_style_and_script_are_allowed():
    data = page_bytes("t", ["a"], [section()]).decode()
    (policy,) = re.findall(r'Security-Policy" content="([^"]+)"', data)
    policy = policy.replace("&#39;", "'").replace("&#43;", "+")
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", data, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert " style=" not in data and "http://" not in data and "https://" not in data


def test_every_mark_says_its_tip_and_a_figure_without_is_an_image():
    outline = Outline(page_bytes("t", [], [section()]))
    marks = [a for _, a in outline.tags if "mark" in a.get("class", "").split()]
    assert [a["role"] for a in marks] == ["img", "img"]
    assert "b\nsecond" in outline.text
    (svg,) = [a for t, a in outline.tags if t == "svg"]
    assert svg["role"] == "group"
    still = Outline(page_bytes("t", [], [section(pictures=(picture(tips={}),))]))
    assert [a["role"] for t, a in still.tags if t == "svg"] == ["img"]


def test_a_tip_for_what_is_not_drawn_is_an_error():
    with pytest.raises(ValueError, match="'bar-7', which one does not draw"):
        page_bytes("t", [], [section(pictures=(picture(tips={"bar-7": "x"}),))])
    with pytest.raises(ValueError, match="'bar-0/9'"):
        page_bytes("t", [], [section(pictures=(picture(tips={"bar-0/9": "x"}),))])


def test_marks_of_one_artist_are_told_apart_by_number():
    figure = new_figure(3, 2)
    axes = figure.subplots()
    axes.scatter([0, 1, 2], [0, 1, 2], gid="same")
    axes.scatter([0, 1, 2], [2, 1, 0], s=[9, 16, 25], gid="sizes")
    axes.plot([0, 1, 2], [1, 1, 1], "o-", gid="line")
    tips = {f"{gid}/{n}": f"{gid} {n}" for gid in ("same", "sizes", "line") for n in range(3)}
    shown = Picture("one", "t", "c", figure, tips, ("a",), ())
    data = page_bytes("t", [], [section(pictures=(shown,))]).decode()
    assert re.findall(r"<title>([a-z]+ \d)</title>", data) == sorted(
        tips.values(), key=lambda tip: (["same", "sizes", "line"].index(tip[:-2]), tip)
    )
    where = re.findall(
        r'<use href="#[^"]+" x="([\d.]+)"[^>]*class="[^"]*mark"[^>]*><title>same', data
    )
    assert len(where) == 3 and [float(x) for x in where] == sorted(float(x) for x in where)


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "1a", "a/b", "a\n"])
def test_names_of_files_and_anchors_are_plain(name):
    with pytest.raises(ValueError, match="small letters, digits and -"):
        picture(name)
    with pytest.raises(ValueError, match="small letters, digits and -"):
        section(name=name)


def test_two_of_a_name_are_refused():
    with pytest.raises(ValueError, match="sections share a name"):
        page_bytes("t", [], [section(), section(pictures=())])
    with pytest.raises(ValueError, match="pictures share a name"):
        page_bytes("t", [], [section(pictures=(picture(), picture()))])


def test_csv_holds_numbers_in_full_and_no_formula():
    rows = [
        ("=1+1", 1 / 3, None),
        ("@x", float("nan"), 7),
        ('-a,"b"', -2.5, True),
        ("\tx", 0.1, ""),
    ]
    data = csv_bytes(("name", "KL", "+n"), rows)
    found = list(csv.reader(io.StringIO(data.decode())))
    assert found[0] == ["name", "KL", "'+n"]
    assert [row[0] for row in found[1:]] == ["'=1+1", "'@x", '\'-a,"b"', "?x"]
    assert [row[1] for row in found[1:]] == [repr(1 / 3), "", "-2.5", "0.1"]
    assert [row[2] for row in found[1:]] == ["", "7", "True", ""]


def test_intervals_and_options_are_not_torn_at_the_end_of_a_line():
    data = page_bytes("t", ["costs 0.1 [0.05, 0.2] <b>; give --draws 4"], []).decode()
    assert '<span class="whole">[0.05, 0.2]</span> &lt;b&gt;' in data
    assert '<span class="whole">--draws</span> 4' in data
