"""The parts that all scripts share: a command line, a table on the terminal and in a file, a figure and a CSV beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

import checkout  # noqa: F401
from gala_mpi.errors import SettingError
from gala_mpi.run import Run, RunError
from groups import incomplete, load
from layout import COLOURS, MARKERS, legend, line_style, marker, panels, save  # noqa: F401  (for the scripts)
from tables import Table, check_table, print_table, whole, write_csv, write_table

FORMATS = (".png", ".pdf", ".svg")
STYLE = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,  # whole numbers on axes
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Options:
    """What every script is asked."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, or folders that hold runs at any depth."""
    by: str = "method"
    """Runs of one env that agree in these settings are a group: any setting, like exchange, seed or a2c.gae_lambda;
    agents; environments (of all agents); method (the exchange with its topology and staleness bound).
    Several with commas between."""
    where: str = ""
    """Only runs whose settings are so: env=pong,seed<3. The settings are those of --by; =, !=, <, <=, >, >=; all of several
    with commas between hold; what is not set is unset."""
    table: Optional[Path] = None
    """Also write the table: .csv, .md, .tex, .parquet (by pyarrow) or .txt."""
    out: Optional[Path] = None
    """The figure: .png, .pdf or .svg. The CSV with the numbers drawn has the same name.
    None: named after the script, in the run's directory if there is one run, else here."""


@dataclass
class Answer:
    """What a script says about some runs.

    Attributes:
        table: for the terminal and the report.
        figure: None: there is nothing to draw.
        alt: what is to be seen in the figure, for those who cannot see it.
        points: the numbers drawn.
        notes: what a reader should know, a line each.
        sentence: the answer to the script's question, with its number.
    """

    table: Table
    figure: Figure | None = None
    alt: str = ""
    points: Table | None = None
    notes: list[str] = field(default_factory=list)
    sentence: str = ""


# Running.


def main(
    answer: Callable[[list[Run], Any], Answer], options: type[Options], about: str, arguments: list[str] | None = None
) -> None:
    """Ask `answer` about the runs on the command line, print its table and write its figure.

    Exit status 2 and one line where runs or options make no sense.
    """
    name = Path(sys.modules[answer.__module__].__file__).stem
    print_codes()
    chosen = tyro.cli(options, prog=f"{name}.py", description=about, args=arguments)
    try:
        if not chosen.runs:
            raise RunError("no run is named; a run directory or a folder of runs is expected")
        found, problems = load(chosen.runs, chosen.where)
        path = target(chosen.out, found, name)
        if chosen.table:
            check_table(chosen.table, path.with_suffix(".csv"))
        with plt.rc_context(STYLE):
            said = answer(found, chosen)
            bring_out(said, path)
        if chosen.table:
            write_table(said.table, chosen.table)
    except (SettingError, OSError) as error:
        print(f"{name}.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    with reader_may_leave():
        print_table(said.table)
        if said.sentence:
            print(f"\n{said.sentence}")
    for line in [*problems, *said.notes, *incomplete(found)]:
        print(f"note: {line}", file=sys.stderr)
    written = [path, path.with_suffix(".csv")] if said.figure else []
    if written := [*written, chosen.table] if chosen.table else written:
        with reader_may_leave():
            print("", *written, sep="\n")


def print_codes() -> None:
    """Print the code of a character that the terminal's encoding does not have, instead of an error."""
    sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let what is printed go to `| head`, which stops reading: the files have been written, and nothing is wrong."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # which rich makes it of
            raise


def target(out: Path | None, found: list[Run], name: str) -> Path:
    """Return where the figure goes.

    Raises:
        RunError: nothing can be written there.
    """
    path = out or (found[0].path if len(found) == 1 else Path()) / f"{name}.png"
    if path.suffix.lower() not in FORMATS:
        raise RunError(f"--out {path}: a file name that ends in {', '.join(FORMATS)} is expected")
    check_folder(path)
    return path


def check_folder(path: Path) -> None:
    """Raise RunError unless `path` can lie where it says."""
    if not path.parent.is_dir():
        raise RunError(f"--out {path}: there is no folder {path.parent}; a folder that is there is expected")


def bring_out(said: Answer, path: Path) -> None:
    if said.figure:
        with whole(path) as temporary:
            save(said.figure, temporary, dpi=150)
        plt.close(said.figure)
        write_csv(said.points, path.with_suffix(".csv"))


def progress(tasks: Sequence[Any], what: str) -> Iterable[Any]:
    """Yield the tasks, and show on a terminal's standard error how many are done."""
    console = Console(stderr=True)
    return track(tasks, what, console=console, transient=True, disable=not console.is_terminal)
