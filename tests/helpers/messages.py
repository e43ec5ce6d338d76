"""What the program says: the texts in the source, a hole where a value is put in."""

import ast
from collections.abc import Iterator

HOLE = "\0"
ERRORS = ("InputError", "SelectionError", "DoseError", "NoisescopeError", "StudyInterrupted")


def texts_in(tree: ast.AST) -> Iterator[str]:
    """Yields every text below a node; pieces that stand side by side are one."""
    inner = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(v.value if isinstance(v, ast.Constant) else HOLE for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in inner:
                yield node.value


def makes_errors(tree: ast.AST) -> bool:
    """Tells whether a file makes an error that a user can cause."""
    return any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS
        for node in ast.walk(tree)
    )


def is_said(message: str, texts: set[str]) -> bool:
    """Tells whether a text of the source says a message, in which … stands for values."""
    parts = [part for part in message.split("…") if part]
    return any(_in_order(parts, text) for text in texts)


def _in_order(parts: list[str], text: str) -> bool:
    begin = 0
    for part in parts:
        begin = text.find(part, begin)
        if begin < 0:
            return False
        begin += len(part)
    return True
