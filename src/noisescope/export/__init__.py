"""A recommendation in the file that an inference engine loads: one file per engine, as text.

Pure: nothing is written and no engine is imported.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from noisescope.assignment import Assignment
from noisescope.errors import InputError, near_names
from noisescope.export.llama_cpp import llama_cpp
from noisescope.export.llm_compressor import llm_compressor
from noisescope.export.modelopt import modelopt
from noisescope.export.plain import plain, read_plain
from noisescope.export.scheme import Export, NotExpressible
from noisescope.export.torchao import torchao

__all__ = [
    "EXPORTS",
    "Export",
    "Exports",
    "NotExpressible",
    "export_files",
    "llama_cpp",
    "llm_compressor",
    "modelopt",
    "plain",
    "read_plain",
    "torchao",
]

EXPORTS: Mapping[str, Callable[[Assignment, Iterable[str]], Export]] = {
    "plain": plain,
    "llm-compressor": llm_compressor,
    "torchao": torchao,
    "modelopt": modelopt,
    "llama.cpp": llama_cpp,
}


@dataclass(frozen=True)
class Exports:
    """Files for engines.

    Attributes:
        files: Contents by file name.
        notes: What a user must know of each file, one line each.
        left_out: Why an engine got no file, one line, by the engine's name.
    """

    files: Mapping[str, bytes]
    notes: Mapping[str, tuple[str, ...]]
    left_out: Mapping[str, str]


def export_files(
    assignment: Assignment, names: Iterable[str], engines: Iterable[str] | None = None
) -> Exports:
    """Returns the files of an assignment.

    Args:
        assignment: The assignment.
        names: Names of all modules of the model.
        engines: Keys of ``EXPORTS``. None: all, of which those that cannot say the assignment are
            left out.

    Raises:
        InputError: An engine is unknown; an engine that was asked for cannot say the assignment;
            a module is none of the model's; a format is unknown.
    """
    names = tuple(names)
    assignment.check()
    made: dict[str, Export] = {}
    left_out: dict[str, str] = {}
    for engine in EXPORTS if engines is None else engines:
        if engine not in EXPORTS:
            raise InputError(
                f"engine {engine!r}: give {', '.join(EXPORTS)}{near_names(engine, EXPORTS)}"
            )
        try:
            made[engine] = EXPORTS[engine](assignment, names)
        except NotExpressible as error:
            if engines is not None:
                raise
            left_out[engine] = str(error)
    return Exports(
        files={export.name: export.text.encode() for export in made.values()},
        notes={export.name: export.notes for export in made.values()},
        left_out=left_out,
    )
