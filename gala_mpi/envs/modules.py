"""Import what a user names: modules, and functions in them, from the working directory too, as `python -m` does."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gala_mpi.errors import SettingError


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
    try:
        with same_directory():
            return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's module does when it is imported
        name = error.name if isinstance(error, ModuleNotFoundError) else None  # of what was looked for
        missing = name and f"{module}.".startswith(f"{name}.")
        said = " ".join(f"{type(error).__name__}: {error}".split())
        why = f"there is no module {name}" if missing else f"importing {module} fails ({said})"
        raise SettingError(f"{why}; one that is installed, on PYTHONPATH or in {here} is expected") from None


def load(place: str) -> Any:
    """Import "module:name" and return it.

    Raises:
        SettingError: there is no such module, or it has no such name.
    """
    module, _, name = place.partition(":")
    found = find(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise SettingError(f"{module} has no {name}; a name that is defined there is expected") from None
    return found
