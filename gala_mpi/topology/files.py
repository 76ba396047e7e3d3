"""Graphs from text: an edge list, or a matrix of weights. Every complaint names the file and the line.

Edge list: `reader peer` or `reader peer weight` on each line. Without weights an agent's are uniform, 1 / (1 + |in-peers|).
With weights, `reader reader weight` gives an agent's own, and the weights of each reader sum to 1.

Matrix: as many lines as agents with as many weights each; line r says with which weights agent r mixes all agents.

Fields are separated by blanks, tabs or a comma; what follows # is a comment. The first line decides which of the two it is:
an edge begins with two whole numbers, and three fields whose sum is 1 are a matrix's (no edge's are).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from gala_mpi.errors import SettingError
from gala_mpi.topology.graphs import Table, Topology

TOLERANCE = 1e-6  # of a sum of weights, which people write with a few digits
WHOLE = re.compile(r"\d{1,18}")


@dataclass(frozen=True)
class Line:
    """A line: where it stands, from 1, and what it says."""

    number: int
    fields: list[str]


@dataclass
class Row:
    """A row of weights: what one agent reads. `number` is the last line that says so."""

    number: int
    weights: dict[int, float]
    own: float


def parse(name: str, text: str) -> Topology:
    """Return the graph that `text` describes. Raises SettingError, which names file, line and what is wrong."""
    lines = _lines(text)
    if not lines:
        raise SettingError(f"--topology {name}: edges (reader peer [weight]) or a matrix of weights are expected; it is empty")
    is_list = _begins_an_edge(lines[0]) and not _is_row_of_three(lines[0])
    rows = _edges(name, lines) if is_list else _matrix(name, lines)
    if not is_list or len(lines[0].fields) == 3:  # without weights all are 1, and their sum is divided out
        for reader, row in enumerate(rows):
            _check_sum(name, reader, row)
    table = Table(tuple(tuple(row.weights) for row in rows), tuple((row.own, *row.weights.values()) for row in rows))
    _check_connected(name, rows, table)
    return Topology(name, len(rows), (table,))


def _lines(text: str) -> list[Line]:
    """Return the lines that say something."""
    bare = [(number, line.partition("#")[0].strip()) for number, line in enumerate(text.split("\n"), start=1)]
    return [Line(number, re.split(r"\s*,\s*|\s+", line)) for number, line in bare if line]


def _begins_an_edge(line: Line) -> bool:
    return len(line.fields) in (2, 3) and all(WHOLE.fullmatch(field) for field in line.fields[:2])


def _is_row_of_three(line: Line) -> bool:
    """Return whether it is 1 0 0, 0 1 0 or 0 0 1, however written: a row of a matrix, and no edge of a sound graph."""
    try:
        return len(line.fields) == 3 and sum(map(float, line.fields)) == 1
    except ValueError:
        return False


def _wrong(name: str, line: int, what: str) -> SettingError:
    return SettingError(f"--topology {name}, line {line}: {what}")


def _weight(name: str, line: Line, field: str) -> float:
    try:
        weight = float(field)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise _wrong(name, line.number, f"{field!r} is no weight; a number, 0 or more, is expected")
    return weight


def _edges(name: str, lines: list[Line]) -> list[Row]:
    weighted = len(lines[0].fields) == 3
    rows: dict[int, Row] = {}
    seen: dict[tuple[int, int], int] = {}
    for line in lines:
        reader, peer, weight = _edge(name, line, weighted, lines[0].number)
        if (reader, peer) in seen:
            raise _wrong(name, line.number, f"{reader} {peer} stands in line {seen[reader, peer]} already; once is expected")
        seen[reader, peer] = line.number
        row = rows.setdefault(reader, Row(line.number, {}, 0.0 if weighted else 1.0))
        row.number = line.number
        if reader == peer:
            row.own = weight
        else:
            row.weights[peer] = weight
    return _of_everybody(name, rows, seen)


def _edge(name: str, line: Line, weighted: bool, first: int) -> tuple[int, int, float]:
    if not _begins_an_edge(line):
        raise _wrong(name, line.number, f"{' '.join(line.fields)!r} is no edge; reader peer [weight] is expected")
    if (len(line.fields) == 3) != weighted:
        has = "no weight, unlike" if weighted else "a weight, unlike"
        raise _wrong(name, line.number, f"it has {has} line {first}; weights on all lines or on none are expected")
    reader, peer = map(int, line.fields[:2])
    if not weighted and reader == peer:
        raise _wrong(name, line.number, f"agent {reader} reads itself; another agent, or weights, are expected")
    weight = _weight(name, line, line.fields[2]) if weighted else 1.0
    if weight == 0 and reader != peer:
        raise _wrong(name, line.number, f"agent {reader} reads {peer} with weight 0; a positive weight is expected")
    return reader, peer, weight


def _of_everybody(name: str, rows: dict[int, Row], seen: dict[tuple[int, int], int]) -> list[Row]:
    """Return the rows in order: everybody from 0 to the largest number must read somebody."""
    largest = max(seen, key=max)
    # The first gap comes after at most as many agents as there are rows, however large a number somebody has mistyped.
    silent = next((agent for agent in range(max(largest) + 1) if agent not in rows), None)
    if silent is not None:
        line = next((line for edge, line in seen.items() if silent in edge), seen[largest])
        raise _wrong(name, line, f"agents go up to {max(largest)}, but agent {silent} reads nobody; a peer is expected")
    return [rows[agent] for agent in range(len(rows))]


def _matrix(name: str, lines: list[Line]) -> list[Row]:
    size = len(lines[0].fields)
    rows = []
    for reader, line in enumerate(lines):
        if len(line.fields) != size:
            what = f"{len(line.fields)} fields, but {size} in line {lines[0].number}; a weight for each agent is expected"
            raise _wrong(name, line.number, what)
        weights = {peer: _weight(name, line, field) for peer, field in enumerate(line.fields)}
        if reader < size:
            own = weights.pop(reader)
            rows.append(Row(line.number, {peer: weight for peer, weight in weights.items() if weight}, own))
    if len(lines) != size:
        what = f"the matrix ends after {len(lines)} lines of {size} weights; as many lines as weights are expected"
        raise _wrong(name, lines[-1].number, what)
    return rows


def _check_sum(name: str, reader: int, row: Row) -> None:
    total = math.fsum([row.own, *row.weights.values()])
    if abs(total - 1) > TOLERANCE:
        raise _wrong(name, row.number, f"the weights of agent {reader}, its own included, sum to {total:.7g}; 1 is expected")


def _check_connected(name: str, rows: list[Row], table: Table) -> None:
    """Check that everybody hears of everybody, directly or through others: 0 of all and all of 0."""
    out = [[] for _ in rows]
    for reader, peers in enumerate(table.peers):
        for peer in peers:
            out[peer].append(reader)
    expected = "a strongly connected graph is expected"
    deaf = set(range(len(rows))) - _reached(out)
    if deaf:
        agent = min(deaf)
        raise _wrong(name, rows[agent].number, f"agent {agent} never hears of agent 0, not even through others; {expected}")
    unheard = set(range(len(rows))) - _reached(table.peers)
    if unheard:
        agent = min(unheard)
        raise _wrong(name, rows[0].number, f"agent 0 never hears of agent {agent}, not even through others; {expected}")


def _reached(links: list[list[int]] | tuple[tuple[int, ...], ...]) -> set[int]:
    """Return everybody to whom links lead from agent 0."""
    reached, ahead = {0}, [0]
    while ahead:
        new = set(links[ahead.pop()]) - reached
        reached |= new
        ahead += new
    return reached
