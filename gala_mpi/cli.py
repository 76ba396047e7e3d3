"""Command lines: parse options into a dataclass by tyro, and checks that several commands share, with the same messages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeAlias, TypeVar

from gala_mpi.errors import SettingError

T = TypeVar("T")

if TYPE_CHECKING:
    Unprefixed: TypeAlias = Annotated[T, "unprefixed"]
else:

    class Unprefixed:
        """`name: Unprefixed[Kind]` in a dataclass of options: the flags of the dataclass Kind are without `name`."""

        def __class_getitem__(cls, kind: type):
            import tyro  # as below: annotations are evaluated where a command line is parsed

            return Annotated[kind, tyro.conf.arg(name="")]


def parse(kind: type[T] | dict[str, type], program: str, text: str, arguments: list[str], **more: Any) -> T:
    """Parse a command line into options.

    Args:
        kind: a dataclass, whose field docstrings are the help and whose fields without a default are positional; or a dict
            of subcommand → dataclass.
        program: the name in `python -m gala_mpi.<program>`.
        text: what the command does, and examples.
        arguments: the command line, without the program.
        more: passed on to tyro, for example `default`.

    Raises:
        SystemExit: 0 after --help, 2 after a flag that tyro refuses (it has printed why).
    """
    import tyro  # under MPI only rank 0 parses, so only rank 0 pays for the import

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_one_word)
    registry.primitive_rule(_yes_no_or_none)
    read: Any = tyro.extras.subcommand_cli_from_dict if isinstance(kind, dict) else tyro.cli
    how = (tyro.conf.PositionalRequiredArgs,)
    with ignore_broken_pipe():
        return read(
            kind, prog=f"python -m gala_mpi.{program}", description=text, args=arguments, config=how, registry=registry, **more
        )
    sys.exit()  # the pipe broke while help was printed, whose reader has seen enough of it


def _one_word(field):
    """Return tyro's rule for a type with `from_word`, which is one word on the command line; None for other types."""
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


def _yes_no_or_none(field):
    """Return tyro's rule for a flag that may be left open: True, False or None; True without a word. None for other types."""
    import tyro

    if field.type != Optional[bool]:
        return None
    values = {"True": True, "False": False, "None": None}
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="{True,False,None}",
        instance_from_str=lambda words: values[words[0]] if words else True,
        is_instance=lambda value: value is None or isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
        choices=tuple(values),
    )


@contextmanager
def ignore_broken_pipe() -> Iterator[None]:
    """Let the reader of standard output, such as `| head`, stop reading without an error."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own flush at exit fails
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # which rich makes it of
            raise


def require(holds: object, flag: str, value: object, allowed: str) -> None:
    """Check a setting.

    Raises:
        SettingError: `holds` is false; its text is "FLAG VALUE: ALLOWED is expected".
    """
    if not holds:
        raise SettingError(f"{flag} {value}: {allowed} is expected")


def require_whole(flag: str, value: int | None, lowest: int) -> None:
    """Check a setting that is a whole number, or None where it is not set.

    Raises:
        SettingError: it is less than `lowest`.
    """
    require(value is None or value >= lowest, flag, value, f"a whole number, {lowest} or more,")


def require_file(flag: str, path: Path | None, *endings: str) -> None:
    """Check the name of a file to be written, or None where it is not set.

    Raises:
        SettingError: its ending, which chooses the format, is none of `endings`, or its folder does not exist.
    """
    if path is not None:
        names = " or ".join(filter(None, (", ".join(endings[:-1]), endings[-1])))
        require(path.suffix in endings, flag, path, f"a name that ends in {names}")
        require(os.path.isdir(path.absolute().parent), flag, path, "a file in a folder that exists")
