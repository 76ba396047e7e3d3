"""Tables of numbers and words: on a terminal, and as CSV, Markdown, LaTeX, Parquet and plain text."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

import checkout  # noqa: F401
from gala_mpi.run import RunError
from stats import Estimate

GAP = 2  # spaces between columns of a terminal
ENCODING = {"encoding": "utf-8", "errors": "backslashreplace"}  # names of files may be any bytes


@dataclass
class Table:
    """Rows of numbers and words under headings. A number that is sure to some extent only is an `Estimate`."""

    headings: tuple[str, ...]
    rows: list[tuple] = field(default_factory=list)

    def cells(self) -> list[list[str]]:
        """Return rows for people: 4 digits, thousands apart, a dash where there is nothing."""
        return [[show(value) for value in row] for row in self.rows]

    def numeric(self, column: int) -> bool:
        """Return whether a column is flush right."""
        return any(isinstance(row[column], (int, float, np.number, Estimate)) for row in self.rows)

    def flat(self) -> Table:
        """Return the table with three columns for every one of estimates: the value, and the ends of its interval."""
        parts = []
        for heading, *column in zip(self.headings, *self.rows):
            if any(isinstance(value, Estimate) for value in column):
                triples = [value if isinstance(value, Estimate) else Estimate(value) for value in column]
                parts += zip((heading, f"{heading} low", f"{heading} high"), *triples)
            else:
                parts.append((heading, *column))
        headings, *rows = zip(*parts)
        return Table(headings, rows)


def show(value: Any) -> str:
    if isinstance(value, Estimate):
        known = not np.isnan(value.low) and not np.isnan(value.high)
        return f"{show(value.value)} [{show(value.low)}, {show(value.high)}]" if known else show(value.value)
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, str):
        return value if value.isprintable() else "".join(map(printable, value))
    if value is None or np.isnan(value):
        return "–"
    if np.isinf(value):
        return "∞" if value > 0 else "-∞"
    if isinstance(value, (int, np.integer)) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def printable(character: str) -> str:
    """Return the character, or its code where it is a line break or another one that names of files may have."""
    return character if character.isprintable() else repr(character)[1:-1]


def highest(values: dict[str, float]) -> list[str]:
    """Return the names of the largest value: several where 4 digits tell no difference."""
    most = f"{max(values.values()):.4g}"
    return [name for name, value in values.items() if f"{value:.4g}" == most]


def listed(names: list[str], most: int = 3) -> str:
    """Return names in words, and how many more there are: "a, b and c"."""
    shown = names if len(names) <= most else [*names[:most], f"{len(names) - most} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


# On a terminal.


def print_table(table: Table) -> None:
    """Print a table. On a terminal too narrow for it, a block of columns after the other, each with the columns that tell the
    rows apart, or with their numbers where these are too wide: nothing is cut off."""
    headings, cells = list(table.headings), table.cells()
    right = [table.numeric(n) for n in range(len(headings))]
    widths = [max(map(cell_len, column)) for column in zip(headings, *cells)]
    natural = sum(widths) + GAP * (len(widths) - 1)
    console = Console(width=None if sys.stdout.isatty() else max(natural, 1), markup=False, emoji=False, highlight=False)
    repeated = 1
    if natural > console.width:
        repeated = distinct(cells)
        if sum(widths[:repeated]) + GAP * repeated > console.width // 2:
            numbers = [str(n) for n in range(1, len(cells) + 1)]
            headings, cells, right = ["#", *headings], [[n, *row] for n, row in zip(numbers, cells)], [True, *right]
            widths, repeated = [max(map(len, ["#", *numbers])), *widths], 1
    for number, block in enumerate(blocks(widths, console.width, repeated)):
        drawn = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, GAP, 0, 0))
        for n in block:
            drawn.add_column(headings[n], justify="right" if right[n] else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*(row[n] for n in block))
        if number:
            console.print()
        console.print(drawn)


def distinct(cells: list[list[str]]) -> int:
    """Return how many of the first columns tell all rows apart; all columns, where they do not either."""
    columns = range(1, len(cells[0]) + 1) if cells else [1]
    return next((n for n in columns if len({tuple(row[:n]) for row in cells}) == len(cells)), columns[-1])


def blocks(widths: list[int], width: int, repeated: int) -> list[list[int]]:
    """Return which columns stand side by side within `width` characters, the first `repeated` ones in every block.

    A column that is too wide all the same has a block of its own, in which its words are broken.
    """
    first = list(range(repeated))
    begin = sum(widths[:repeated]) + GAP * (repeated - 1)
    packed, used = [[*first]], begin
    for n, own in enumerate(widths[repeated:], repeated):
        if used + GAP + own > width and len(packed[-1]) > repeated:
            packed.append([*first])
            used = begin
        packed[-1].append(n)
        used += GAP + own
    return packed


# In files.


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a name to write to. What is there when the block ends becomes `path`: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(table: Table, path: Path) -> None:
    with whole(path) as temporary, open(temporary, "w", newline="", **ENCODING) as file:
        csv.writer(file).writerows([table.headings, *([_plain(value) for value in row] for row in table.rows)])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def write_parquet(table: Table, path: Path) -> None:
    """Write a column of float64, int64, bool or string for each of the table; what is not there is null."""
    import pyarrow
    from pyarrow import parquet

    columns = {heading: [_plain(value) for value in column] for heading, *column in zip(table.headings, *table.rows)}
    with whole(path) as temporary:
        parquet.write_table(pyarrow.table({name: uniform(column) for name, column in columns.items()}), temporary)


def uniform(column: list) -> list:
    """Return the values as one kind: as they are where they are of one, as floats or as strings elsewhere."""
    kinds = {type(value) for value in column if value is not None}
    if len(kinds) < 2:
        return column
    common = float if kinds <= {int, float} else str
    return [value if value is None else common(value) for value in column]


def markdown(table: Table) -> str:
    rows = [list(table.headings), ["---:" if table.numeric(n) else "---" for n in range(len(table.headings))], *table.cells()]
    return "".join("| " + " | ".join(cell.replace("|", r"\|").replace("$", r"\$") for cell in row) + " |\n" for row in rows)


LATEX = {character: rf"\{character}" for character in "%&_#${}"} | {"±": r"$\pm$", "–": "--", "×": r"$\times$"}
LATEX |= {"≥": r"$\geq$", "τ": r"$\tau$", "β": r"$\beta$", "∞": r"$\infty$", "→": r"$\to$", "\\": r"\textbackslash{}"}
LATEX |= {"^": r"\^{}", "~": r"\~{}"}


def latex(table: Table) -> str:
    escape = str.maketrans(LATEX)
    columns = "".join("r" if table.numeric(n) else "l" for n in range(len(table.headings)))
    lines = [" & ".join(cell.translate(escape) for cell in row) + r" \\" for row in [table.headings, *table.cells()]]
    # A bracket after a line's end would be read as its distance to the next one.
    body = "\n".join([lines[0], r"\hline", *("{}" + line if line.startswith("[") else line for line in lines[1:])])
    return f"\\begin{{tabular}}{{{columns}}}\n{body}\n\\end{{tabular}}\n"


def text(table: Table) -> str:
    rows = [list(table.headings), *table.cells()]
    widths = [max(map(cell_len, column)) for column in zip(*rows)]
    padded = ((cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths)) for row in rows)
    return "".join("  ".join(row).rstrip() + "\n" for row in padded)


FORMS: dict[str, Callable[[Table], str]] = {".md": markdown, ".tex": latex, ".txt": text}
FILES = (".csv", ".md", ".parquet", ".tex", ".txt")


def check_table(path: Path, drawn: Path) -> None:
    """Raise RunError unless a table can be written to `path`, beside the CSV with the numbers drawn."""
    if path.suffix not in FILES:
        raise RunError(f"--table {path}: a file name that ends in {', '.join(FILES)} is expected")
    if not path.parent.is_dir():
        raise RunError(f"--table {path}: there is no folder {path.parent}; a folder that is there is expected")
    if path.resolve() == drawn.resolve():
        raise RunError(f"--table {path}: the numbers of the figure are written there; another name is expected")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise RunError(f"--table {path}: pyarrow is not installed (pip install pyarrow)") from None


def write_table(table: Table, path: Path) -> None:
    """Write a table as the end of the file's name says: numbers with all digits to CSV and Parquet, else as people see them."""
    if path.suffix in FORMS:
        with whole(path) as temporary:
            temporary.write_text(FORMS[path.suffix](table), **ENCODING)
    else:
        {".csv": write_csv, ".parquet": write_parquet}[path.suffix](table.flat(), path)
