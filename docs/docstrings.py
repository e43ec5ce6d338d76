"""How docstrings and signatures are read, where Sphinx would take them for something else.

A name that has no entry is a warning, and with it an error, but for those of other packages (there
is no network in a build) and of the inside of this one.
"""

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

OTHERS = ("collections", "numpy", "os", "pathlib", "torch", "transformers", "typing")
# What signatures of public names mention and nobody outside makes or reads.
INSIDE = (
    "noisescope.analyse.evidence",
    "noisescope.capture.statistics.PeakTable",
    "noisescope.inject.elements",
    "noisescope.measure",
    "noisescope.report.page",
    "noisescope.study.executor",
    "noisescope.study.format_options",
)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects what is below."""
    app.connect("missing-reference", leave_as_text)
    app.connect("autodoc-process-signature", without_factories)
    app.connect("autodoc-process-docstring", as_a_sentence, priority=400)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def leave_as_text(
    app: Sphinx, environment: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.TextElement | None:
    """Returns the name as it is shown where it is known to have no entry; None where it is not."""
    if node.get("refdomain") != "py":
        return None
    name = node["reftarget"]
    is_known = name.partition(".")[0] in OTHERS or name.startswith(INSIDE)
    return shown if is_known else None


def without_factories(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Returns the signature with defaults that can be read: a made one has no text."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


def as_a_sentence(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Keeps napoleon from taking what stands before a colon for the type of a property.

    It reads the first line alone so, which is an empty comment then.
    """
    if what in ("property", "attribute"):
        lines[:0] = ["..", ""]
