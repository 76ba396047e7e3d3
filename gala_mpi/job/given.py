"""What a program gives `gala_mpi.train`, as settings: flags of a command line, but for their form.

Of a `Config` what differs from the defaults is given, of keywords all that are there. The rest is the defaults', or with
`resume` and `replay` the run's, as it is for flags. A function in place of a name gets one (`envs.modules`).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from gala_mpi.cli import require
from gala_mpi.config import Config
from gala_mpi.envs import modules
from gala_mpi.errors import SettingError
from gala_mpi.job import prepare

BY_FUNCTION = ("env", "network")  # settings for which a function may stand
PLAIN: dict[type, tuple[type, str]] = {int: (Integral, "a whole number"), float: (Real, "a number"), str: (str, "a string")}


def gather(config: Config | None, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given: values of the settings' kinds by their names, and dicts of these for tables (a2c, atari, ...).

    Raises:
        SettingError: there is no such setting, or a value is not of its kind.
    """
    require(config is None or isinstance(config, Config), "config", type(config).__name__, "a gala_mpi.Config")
    found = {} if config is None else _changed(config)
    for name, value in keywords.items():
        value = _changed(value) if dataclasses.is_dataclass(value) and not hasattr(value, "from_word") else value
        found[name] = {**found.get(name, {}), **value} if isinstance(value, Mapping) else value
    require(found.get("config") is None, "config", found.get("config"), "settings, of which only the command reads a file,")
    for name in BY_FUNCTION:
        value = found.get(name)
        if callable(value):
            found[name] = modules.remember(name, value)
        require(value is None or callable(value) or isinstance(value, str), f"--{name}", value, "a name or a function")
    return _fitting(Config, found, "")


def words(given: Mapping[str, Any], table: str = "") -> Iterator[tuple[str, object]]:
    """Yield what is given as names and values that can be compared, in one order."""
    for name, value in sorted(given.items()):
        if isinstance(value, dict):
            yield from words(value, f"{table}{name}.")
        else:
            yield f"{table}{name}", str(value)


def read(given: Mapping[str, Any]) -> Config:
    """Return the settings that what is given stands for.

    Raises:
        SettingError: `resume` or `replay` without a run.
    """
    return _replaced(prepare.before(given.get("resume", False), given.get("run_dir"), given.get("replay")), given)


def _changed(settings: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are not its defaults, tables as dicts."""
    defaults, found = type(settings)(), {}
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), getattr(defaults, field.name)
        if value == default:
            continue
        is_table = dataclasses.is_dataclass(default) and type(value) is type(default) and not hasattr(value, "from_word")
        found[field.name] = _changed(value) if is_table else value
    return found


def _replaced(settings: Any, given: Mapping[str, Any]) -> Any:
    """Return a dataclass with what is given in place of its own."""
    tables = {name: _replaced(getattr(settings, name), value) for name, value in given.items() if isinstance(value, dict)}
    return dataclasses.replace(settings, **{**given, **tables})


def _fitting(kind: type, given: Mapping[str, Any], table: str) -> dict[str, Any]:
    """Return what is given of a dataclass's fields as values of their kinds. Raises SettingError."""
    kinds = typing.get_type_hints(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    for name, value in given.items():
        near = difflib.get_close_matches(str(name), fields, n=1)
        hint = f" (did you mean {table}{near[0]}?)" if near else ""
        require(name in fields, f"{table}{name}", value, f"a setting of gala_mpi.Config{hint}")
    return {name: _fit(f"--{table}{name.replace('_', '-')}", kinds[name], value) for name, value in given.items()}


def _fit(flag: str, kind: Any, value: Any) -> Any:
    """Return a value as one of a field's kind, as the command line would read it. Raises SettingError."""
    origin, members = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _fit(flag, next(each for each in members if each is not type(None)), value)
    if origin is typing.Literal:
        require(isinstance(value, str) and value in members, flag, value, " or ".join(map(str, members)))
        return value
    if origin is tuple:
        require(isinstance(value, (tuple, list)), flag, value, "a list of strings")
        return tuple(_fit(flag, members[0], each) for each in value)
    if hasattr(kind, "from_word"):
        require(isinstance(value, (kind, str)), flag, value, f"a name, or {kind.__name__.lower()},")
        return kind.from_word(value) if isinstance(value, str) else value
    if dataclasses.is_dataclass(kind):
        require(isinstance(value, Mapping), flag, value, "a dict of its settings")
        return _fitting(typing.cast(type, kind), value, f"{flag.removeprefix('--')}.")
    if kind is Path:
        require(isinstance(value, (str, os.PathLike)), flag, value, "a path")
        return Path(value)
    if kind is bool:
        require(isinstance(value, (bool, np.bool_)), flag, value, "True or False")
        return bool(value)
    number, words = PLAIN[kind]
    require(isinstance(value, number) and not isinstance(value, bool), flag, repr(value), words)
    convert: Callable[[Any], Any] = kind
    try:
        return convert(value)
    except OverflowError:  # a whole number beyond all floats
        raise SettingError(f"{flag}: a number that large cannot be computed with; a smaller one is expected") from None
