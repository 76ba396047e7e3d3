"""`--config FILE.toml`: settings in a file, by the names of their flags. Flags beside it win.

env = "breakout"
num-envs = 32
wall-minutes = 60

[a2c]
discount = 0.995
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gala_mpi.config import Config
from gala_mpi.errors import SettingError

FLAG = "--config"
OF_THE_COMMAND = ("config", "run_dir", "resume", "replay")  # what a run's settings do not say of another one


def expand(arguments: list[str]) -> list[str]:
    """Return the words of a command line with those of its file before all other flags, in place of --config FILE.

    Raises:
        SettingError: the file cannot be read, or a name in it is no setting's.
    """
    own, files = [], []
    words = iter(arguments)
    for word in words:
        flag, equals, name = word.partition("=")
        if flag != FLAG:
            own.append(word)
        elif name := name if equals else next(words, ""):
            files.append(Path(name))
        else:
            raise SettingError(f"{FLAG}: a TOML file is expected")
    first = next((i for i, word in enumerate(own) if word.startswith("-")), len(own))  # behind the name of a benchmark
    return own[:first] + [word for file in files for word in _words_of(file)] + own[first:]


def to_toml(settings: Config) -> str:
    """Return the settings that are not the defaults as a file: `expand` makes a command line of it that stands for them."""
    import tomli_w  # which few commands need

    return tomli_w.dumps(_changed(settings, Config()))


def _changed(settings: Any, defaults: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that differ from those of another one, by the names of their flags."""
    found: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value, default = getattr(settings, field.name), getattr(defaults, field.name)
        if value == default or field.name in OF_THE_COMMAND:
            continue
        name = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value) and not hasattr(value, "from_word"):
            tables[name] = _changed(value, default)
        elif isinstance(value, tuple):
            found[name] = list(value)
        else:
            found[name] = value if isinstance(value, bool | int | float) else str(value)
    return found | tables  # TOML's tables come last


def _words_of(file: Path) -> list[str]:
    try:
        settings = tomllib.loads(file.read_text())
    except OSError as error:
        raise SettingError(f"{FLAG} {file}: {error.strerror}; a TOML file is expected") from None
    except ValueError as error:  # of TOML, or of UTF-8
        raise SettingError(f"{FLAG} {file}: a TOML file is expected ({error})") from None
    return [str(word) for word in _words(file, settings, Config, "")]


def _words(file: Path, settings: Mapping[str, Any], kind: type, table: str) -> Iterator[object]:
    """Yield the words of a command line for a table of the file, whose names are fields of the dataclass `kind`."""
    kinds = typing.get_type_hints(kind)
    fields = {field.name for field in dataclasses.fields(kind)} - set(OF_THE_COMMAND if not table else ())
    seen: set[str] = set()
    for name, value in settings.items():
        field, shown = name.replace("-", "_"), f"{table}{name}"
        if field not in fields:
            raise SettingError(f"{FLAG} {file}: {shown}: a flag of gala_mpi.train without its -- is expected")
        if field in seen:
            raise SettingError(f"{FLAG} {file}: {shown}: it stands there twice, with - and _; one of them is expected")
        seen.add(field)
        flag = f"--{table}{name.replace('_', '-')}"
        is_table = dataclasses.is_dataclass(kinds[field]) and not hasattr(kinds[field], "from_word")
        if is_table != isinstance(value, dict):
            raise SettingError(f"{FLAG} {file}: {shown}: a {'table' if is_table else 'value'} is expected")
        if is_table:
            yield from _words(file, value, kinds[field], f"{table}{name}.")
        elif isinstance(value, list) and typing.get_origin(kinds[field]) is not tuple:
            raise SettingError(f"{FLAG} {file}: {shown}: one value is expected")
        elif any(isinstance(each, str) and each.startswith("-") for each in (value if isinstance(value, list) else [value])):
            raise SettingError(f"{FLAG} {file}: {shown}: a value that is no flag, so without - before it, is expected")
        elif kinds[field] is bool:
            if not isinstance(value, bool):
                raise SettingError(f"{FLAG} {file}: {shown}: true or false is expected")
            yield flag if value else f"--{table}no-{name.replace('_', '-')}"
        elif isinstance(value, list):
            yield from [flag, *value] if value else ()
        else:
            yield from (flag, value)
