"""Import what a user names: modules, and functions in them, from the working directory too, as `python -m` does.

A program that calls `gala_mpi.train` gives functions themselves. They get the names by which others find them, MODULE:FUNCTION.
One that has none (a lambda, a function inside another one, or of a program without a file) is known to this process alone; its
name has a "<" in it.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gala_mpi.errors import SettingError

MAIN = "__main__"
PROGRAM = "<program>"  # a main program that is no module

_given: dict[tuple[str, str], Any] = {}  # setting and name → what this program has given for it
_importing: list[str] = []  # the modules that are being imported


def remember(setting: str, function: Callable[..., Any]) -> str:
    """Return the name of what this program has given for a setting; in this process it stands for just that from now on."""
    module = getattr(function, "__module__", None) or type(function).__module__
    name = getattr(function, "__qualname__", None) or f"<{type(function).__qualname__}>"
    if reached(sys.modules.get(module), name) is not function and "<" not in name:
        name = f"<{name}>"  # of another function, which this one wraps, say
    place = f"{_main() if module == MAIN else module}:{name}"
    _given[setting, place] = function
    return place


def given(setting: str, place: str) -> Any:
    """Return what this program has given for a setting by this name; None: nothing."""
    return _given.get((setting, place))


def is_for_all(place: str) -> bool:
    """Return whether other processes too can import what has this name."""
    return "<" not in place


def importing() -> str:
    """Return the module that is being imported to find something in it; empty: none is."""
    return _importing[-1] if _importing else ""


def main_folder() -> Path | None:
    """Return the folder from which the main program can be imported; None: it is found without, or not at all."""
    main = sys.modules[MAIN]
    file = getattr(main, "__file__", None)
    return Path(file).absolute().parent if file and getattr(main, "__spec__", None) is None else None


def _main() -> str:
    """Return the name by which others import the main program."""
    main = sys.modules[MAIN]
    spec, file = getattr(main, "__spec__", None), Path(getattr(main, "__file__", None) or PROGRAM)
    if spec is not None:
        return spec.name
    return file.stem if file.suffix == ".py" and "." not in file.stem else PROGRAM


def reached(module: Any, name: str) -> Any:
    """Return what has a dotted name in a module; None: nothing has."""
    found = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


@contextmanager
def same_directory() -> Iterator[None]:
    """Stay in the working directory, whatever a user's code changes it to."""
    here = os.getcwd()
    try:
        yield
    finally:
        os.chdir(here)


def in_a_line(error: BaseException) -> str:
    """Return what was raised, and the line of code where it began."""
    try:
        said = " ".join(f"{type(error).__name__}: {error}".split())
    except Exception:  # of its own __str__
        said = type(error).__name__
    cause = error.__cause__
    frames = traceback.extract_tb(cause and cause.__traceback__) or traceback.extract_tb(error.__traceback__)
    return f"{said}, in {frames[-1].filename}, line {frames[-1].lineno}" if frames else said


def find(module: str) -> Any:
    """Import a module.

    Raises:
        SettingError: there is none, or importing it fails; the text says why, and where it was looked for.
    """
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    _importing.append(module)
    try:
        with same_directory():
            return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        name = error.name if isinstance(error, ModuleNotFoundError) else None  # of what was looked for
        missing = name and f"{module}.".startswith(f"{name}.")
        said = " ".join(f"{type(error).__name__}: {error}".split())
        why = f"there is no module {name}" if missing else f"importing {module} fails ({said})"
        raise SettingError(f"{why}; one that is installed, on PYTHONPATH or in {here} is expected") from None
    finally:
        _importing.pop()


def load(place: str, setting: str = "") -> Any:
    """Return what this program has given for a setting by the name "module:name"; else import that.

    Raises:
        SettingError: there is no such module, or it has no such name.
    """
    found = given(setting, place)
    if found is not None:
        return found
    refuse_unnamed(place)
    module, _, name = place.partition(":")
    found = reached(find(module), name)
    if found is None:
        raise SettingError(f"{module} has no {name}; a name that is defined there is expected")
    return found


def refuse_unnamed(place: str) -> None:
    """Refuse the name of what only another process has known. Raises SettingError."""
    if not is_for_all(place):
        raise SettingError(
            "only the program that has trained it knows this function, which has no name of its own to be imported by; "
            "one at the top of a module is expected"
        )
