"""Changes a module as soon as somebody imports it, and not before.

verl loads its plugins while it is half imported itself: what is to be wrapped is not there yet, and
importing it from here would drag the whole of it into processes that need none of it.
"""

import importlib.machinery
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

Change = Callable[[ModuleType], None]


class AfterImport(MetaPathFinder):
    """Calls a function with each of some modules once it has been imported."""

    def __init__(self, changes: Mapping[str, Change]) -> None:
        self.changes = dict(changes)

    def install(self) -> None:
        """Changes the modules that are there, and waits for the others."""
        for name in list(self.changes):
            module = sys.modules.get(name)
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                self.changes.pop(name)(module)
        if self.changes:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Waits no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds a module as the others would, and changes it after its own code has run."""
        change = self.changes.get(fullname)
        if change is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find and finder is not self else None
            if spec is not None and spec.loader is not None:
                self._follow(spec.loader, fullname, change)
                return spec  # type: ignore[no-any-return]
        return None

    def _follow(self, loader: Any, name: str, change: Change) -> None:
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.changes.pop(name, None)
            change(module)

        loader.exec_module = exec_module
