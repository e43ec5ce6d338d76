"""The documentation site: built without a warning, whole, and fetching nothing.

It is built once, in this process; what has no entry, no page or no target is told by the build.
"""

import ast
import html.parser
import importlib
import io
import re
import shutil
import sys
import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from helpers.messages import is_said, makes_errors, texts_in

from noisescope.cli.commands import app

ROOT = Path(__file__).parents[2]
DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "noisescope"
ROOMS = ("noisescope", *(f"noisescope.{n}" for n in ("noisy_ops", "training", "trackers")))
ROOMS += tuple(f"noisescope.{n}" for n in ("harness", "cluster"))


def build(source: Path, out: Path) -> str:
    """Builds a site as `make docs` does; returns the warnings."""
    application = pytest.importorskip("sphinx.application")
    from sphinx.util.docutils import docutils_namespace, patch_docutils

    told, path, names = io.StringIO(), list(sys.path), set(sys.modules)
    with warnings.catch_warnings(), docutils_namespace(), patch_docutils(str(source)):
        warnings.simplefilter("ignore")  # of other packages; Sphinx's own are in `told`
        made = application.Sphinx(
            source, source, out, out / ".doctrees", "html", status=None, warning=told
        )
        made.build()
    sys.path[:] = path
    for name in {"command_reference", "docstrings"} - names:  # the site's own
        sys.modules.pop(name, None)
    return told.getvalue()


class Links(html.parser.HTMLParser):
    """What a page links to, what it fetches to be shown, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.names |= {given["id"]} if given.get("id") else set()
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag == "link" and given.get("rel") not in ("canonical", "author"):
            self.fetched.append(given["href"])
        self.fetched += [given["src"]] if given.get("src") else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, and what the build complained of."""
    out = tmp_path_factory.mktemp("site")
    return out, build(DOCS, out)


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site[0]).as_posix(): Links(path.read_text())
        for path in site[0].rglob("*.html")
    }


def inventory(out: Path) -> set[tuple[str, str]]:
    """Returns what the site has an entry of: kind and name."""
    from sphinx.util.inventory import InventoryFile

    with (out / "objects.inv").open("rb") as file:
        found = InventoryFile.load(file, "", lambda base, path: path)
    return {(kind, name) for kind, entries in found.items() for name in entries}


def test_it_is_built_without_a_warning(site):
    assert site[1] == ""


def test_every_public_name_has_an_entry(site):
    """Under the package, or under the room that it comes from."""
    entries = {name for kind, name in inventory(site[0]) if kind.startswith("py:")}
    rooms = [importlib.import_module(room) for room in ROOMS]
    for room in rooms:
        for name in room.__all__:
            thing = getattr(room, name)
            same = {f"{r.__name__}.{name}" for r in rooms if getattr(r, name, None) is thing}
            assert same & entries, f"{room.__name__}.{name}"


def test_every_command_has_its_section_and_every_option_its_entry(site, pages):
    options = {name for kind, name in inventory(site[0]) if kind == "std:cmdoption"}
    group = typer.main.get_command(app)
    assert {"diagnose", "compare", "recommend"} <= set(group.commands)
    for name, command in group.commands.items():
        assert f"command-{name}" in pages["commands.html"].names
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert {f"noisescope-{name}.{o}" for o in parameter.opts} <= options, name


WORDS = ("operator", "region", "site", "error model", "selection", "condition", "draw", "dose")
WORDS += ("sensitivity", "prediction", "confirmation", "attestation", "avalanche", "study")


def test_every_word_is_explained(site):
    terms = {name for kind, name in inventory(site[0]) if kind == "std:term"}
    assert {*WORDS, "noise as a function"} <= terms


def test_every_section_of_a_report_is_explained():
    """Its heading is said, by itself or with others."""
    page = (DOCS / "report.md").read_text().lower()
    titles = set()
    for path in (SOURCE / "report").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("_section", "_conditions", "Section")
            ):
                titles |= {a.value for a in node.args[:3] if isinstance(a, ast.Constant)}
    headings = {title for title in titles if isinstance(title, str) and title[:1].isupper()}
    assert {"The map", "Windows of layers", "Dose and response", "How it was run"} <= headings
    for title in headings:
        assert title.lower() in page, title


def test_every_page_is_reached_from_the_first(pages):
    reached, left = set(), ["index.html"]
    while left:
        name = left.pop()
        if name in reached or name not in pages:
            continue
        reached.add(name)
        here = Path(name).parent
        for link in pages[name].links:
            path = urlsplit(link)
            if not path.scheme and path.path.endswith(".html"):
                left.append(Path(*_plain(here / path.path)).as_posix())
    made_by_sphinx = {"search.html", "genindex.html", "py-modindex.html"}
    assert set(pages) - made_by_sphinx <= reached
    assert {path.stem for path in DOCS.glob("*.md")} <= {Path(p).stem for p in reached}


def _plain(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        else:
            parts.append(part)
    return parts


def broken_links(out: Path, pages: dict[str, Links]) -> list[str]:
    """Returns the links to places of the site that are not there."""
    broken = []
    for name, page in pages.items():
        for link in [*page.links, *page.fetched]:
            at = urlsplit(link)
            if at.scheme or link.startswith("data:"):
                continue
            target = "/".join(_plain(Path(name).parent / unquote(at.path))) if at.path else name
            is_there = (out / target).is_file()
            if is_there and at.fragment and target in pages and target != "search.html":
                is_there = unquote(at.fragment) in pages[target].names
            if not is_there:
                broken.append(f"{name}: {link}")
    return broken


def test_no_link_is_broken(site, pages):
    assert broken_links(site[0], pages) == []
    text = '<a href="b.html">x</a><a href="#c">y</a><a id="d" href="#d">z</a><img src="e.png">'
    told = [f"index.html: {link}" for link in ("b.html", "#c", "e.png")]
    assert broken_links(site[0], {"index.html": Links(text)}) == told


OUTSIDE = re.compile(r"^(?:[a-z]+:)?//")
LOADED = re.compile(r"""(?:url\(\s*['"]?|@import\s+['"])((?:https?:)?//[^'")]+)""")


def test_nothing_is_fetched_from_anywhere_else(site, pages):
    for name, page in pages.items():
        assert not [link for link in page.fetched if OUTSIDE.match(link)], name
    for path in site[0].rglob("*.css"):
        assert not LOADED.findall(path.read_text()), path.name
    assert OUTSIDE.match("https://a/b.js") and OUTSIDE.match("//a/b") and not OUTSIDE.match("a//b")
    assert LOADED.findall("@import 'https://a/b.css'; x{background:url(//c/d.png)}")


SMALL = {
    "index.md": "# One\n\n```{toctree}\ntwo\n```\n\n[two](two.md)\n",
    "two.md": "# Two\n\n{py:class}`noisescope.Session`\n",
}


@pytest.mark.parametrize(
    ("page", "text", "said"),
    [
        ("index.md", "[three](three.md)", "cross-reference target not found: 'three.md'"),
        ("two.md", "{py:class}`noisescope.Sesion`", "reference target not found"),
        ("three.md", "# Three", "isn't included in any toctree"),
    ],
)
def test_a_page_with_a_broken_reference_is_a_warning(tmp_path, page, text, said):
    """The site's own configuration, on two pages: also what the first test rests on."""
    source = tmp_path / "docs"
    source.mkdir()
    for name in ("conf.py", "command_reference.py", "docstrings.py"):
        shutil.copy(DOCS / name, source)
    for name, kept in SMALL.items():
        (source / name).write_text(kept)
    with (source / "two.md").open("a") as file:
        file.write("\n```{eval-rst}\n.. autoclass:: noisescope.Session\n```\n")
    with (source / page).open("a") as file:
        file.write(f"\n{text}\n")
    told = build(source, tmp_path / "out")
    assert said in told and page.removesuffix(".md") in told


def quoted() -> list[str]:
    """Returns the messages that the page on errors explains."""
    return re.findall(r"^\| `([^`]+)` \|", (DOCS / "errors.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def said():
    """What each room of the package says, and whether it makes errors that a user can cause."""
    rooms: dict[str, tuple[set[str], bool]] = {}
    for path in SOURCE.rglob("*.py"):
        room, tree = path.relative_to(SOURCE).parts[0], ast.parse(path.read_text())
        texts, has_errors = rooms.get(room, (set(), False))
        rooms[room] = (texts | set(texts_in(tree)), has_errors or makes_errors(tree))
    return rooms


def test_every_error_that_is_explained_is_one_of_the_program(said):
    texts = set().union(*(texts for texts, _ in said.values()))
    messages = quoted()
    assert len(messages) > 140 and len(set(messages)) == len(messages)
    for message in messages:
        assert len(message.replace("…", "")) >= 12, message
        assert is_said(message, texts), message
    assert not is_said("no such model catalogue: …", texts)
    assert not is_said("accepted is a list of {role, content}…column 'prompt' of …", texts)


def test_every_room_with_errors_has_some_explained(said):
    messages = quoted()
    rooms = {room: texts for room, (texts, has_errors) in said.items() if has_errors}
    assert {"models", "tasks", "inject", "study", "extras.py"} <= set(rooms)
    assert "errors.py" not in rooms
    for room, texts in rooms.items():
        assert any(is_said(message, texts) for message in messages), room
