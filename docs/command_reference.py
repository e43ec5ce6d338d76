"""The directive `commands`: every command of the program and each of its options, from the program.

Written here, since the parser that Typer carries with it is not the Click that sphinx-click reads.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import typer
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from noisescope.cli.commands import app as program

NAME = "noisescope"
OPTION = re.compile(r"(?<!\S)--[a-z][a-z-]*")
VALUES = {str: "text", int: "number", float: "number", Path: "path"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Adds the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Commands(SphinxDirective):
    """Writes a section for each command: what it does, how it is called, what it takes."""

    def run(self) -> list[nodes.Node]:
        """Returns the sections."""
        made: list[nodes.Node] = [overview(commands())]
        for name, command in commands().items():
            section = nodes.section(ids=[f"command-{name}"], names=[f"command-{name}"])
            section += nodes.title(text=f"{NAME} {name}")
            self.state.document.note_explicit_target(section)
            lines = StringList(list(lines_of(name, command)), source=f"{NAME} {name}")
            self.state.nested_parse(lines, self.content_offset, section)
            made.append(section)
        return made


def overview(found: dict[str, Any]) -> nodes.bullet_list:
    """Returns the commands with what they do, each a link to its section."""
    listed = nodes.bullet_list()
    for name, command in found.items():
        link = nodes.reference("", "", nodes.literal(text=name), refid=f"command-{name}")
        listed += nodes.list_item(
            "", nodes.paragraph("", "", link, nodes.Text(f": {command.help or ''}"))
        )
    return listed


def commands() -> dict[str, Any]:
    """Returns the commands of the program by their names."""
    group: Any = typer.main.get_command(program)
    return dict(group.commands)


def lines_of(name: str, command: Any) -> Iterator[str]:
    """Yields what is said of a command, in reStructuredText."""
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    needed = [f"{p.opts[0]} {value_of(p)}" for p in options if p.required]
    words = [NAME, name, *map(value_of, arguments), *needed, "[OPTIONS]"]
    yield from (command.help or "", "", ".. code-block:: text", "", f"   {' '.join(words)}", "")
    yield from (f".. program:: {NAME} {name}", "")
    for argument in arguments:
        yield from (f"``{value_of(argument)}``", f"   {escaped(argument.help or '')}", "")
    for option in options:
        value = value_of(option)
        yield f".. option:: {', '.join(option.opts)}{f' <{value}>' if value else ''}"
        yield from ("", f"   {escaped(option.help or '')}{more_on(option)}", "")


def value_of(parameter: Any) -> str:
    """Returns what stands for the value of a parameter; nothing where it takes none."""
    if getattr(parameter, "is_flag", False):
        return ""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    kind = parameter.type_descriptor.annotation
    return VALUES[get_args(kind)[0] if parameter.multiple else kind]


def more_on(option: Any) -> str:
    """Returns what is to be known of an option beside its help."""
    if option.required:
        return " *Needed.*"
    has_default = option.default is not None and not option.is_flag
    return f" *Default:* ``{option.default}``." if has_default else ""


def escaped(text: str) -> str:
    """Returns a text that reStructuredText shows as it is, options as code."""
    plain = "".join(f"\\{c}" if c in "\\*`_|<>" else c for c in text)
    return OPTION.sub(r"``\g<0>``", plain)
