"""Command lines: a dataclass of options is read by tyro; and what several programs refuse, refused in the same words."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gala_mpi.errors import SettingError

T = TypeVar("T")


def parse(kind: type[T] | dict[str, type], program: str, text: str, arguments: list[str], flat: bool = False, **more) -> T:
    """The command line → options.

    Args:
        kind: a dataclass, whose field docstrings are the help; its fields without a default are positional. Or one for
            each subcommand.
        program: `python -m gala_mpi.<program>`.
        text: what it does, and examples.
        flat: fields of a dataclass inside it need no prefix.
        more: for tyro, for example `default`.

    Raises:
        SystemExit: 0 after --help, 2 after a flag that tyro refuses (it has printed why).
    """
    import tyro  # under MPI only rank 0 parses, so only rank 0 pays for the import

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_one_word)
    read: Any = tyro.extras.subcommand_cli_from_dict if isinstance(kind, dict) else tyro.cli
    how = (tyro.conf.PositionalRequiredArgs, *((tyro.conf.OmitArgPrefixes,) if flat else ()))
    with reader_may_leave():
        return read(
            kind, prog=f"python -m gala_mpi.{program}", description=text, args=arguments, config=how, registry=registry, **more
        )
    sys.exit()  # who asked for the help has seen enough of it


def _one_word(field):
    """Tyro's rule for a type with `from_word`: it is one word on the command line, and `str` of it is that word."""
    import tyro

    kind = field.type
    if not hasattr(kind, "from_word"):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: kind.from_word(words[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """What is printed here may go to `| head`, which stops reading: nothing is wrong."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush fails


def require(holds: object, flag: str, value: object, allowed: str) -> None:
    """Raises SettingError unless it holds: "FLAG VALUE: ALLOWED is expected"."""
    if not holds:
        raise SettingError(f"{flag} {value}: {allowed} is expected")


def require_whole(flag: str, value: int | None, lowest: int) -> None:
    """For a whole number, or None: not set."""
    require(value is None or value >= lowest, flag, value, f"a whole number, {lowest} or more,")


def require_file(flag: str, path: Path | None, *endings: str) -> None:
    """For a file to be written: its name tells the format, and its folder is there."""
    if path is not None:
        names = f"{', '.join(endings[:-1])} or {endings[-1]}"
        require(path.suffix in endings, flag, path, f"a name that ends in {names}")
        require(path.absolute().parent.is_dir(), flag, path, "a file in a folder that exists")
