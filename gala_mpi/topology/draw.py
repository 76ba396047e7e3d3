"""Pictures of a graph: characters for a terminal, a figure for a file.

A matrix shows row by row whom each agent reads. The figure has the agents on a circle beside it, or on their grid, as long
as single arrows can be told apart. Colours (digits in the terminal) tell the rounds of a period.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gala_mpi.topology.graphs import Shifts, Topology

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_IN_TERMINAL = 36  # agents: two columns for each, within 80
MOST_ON_CIRCLE = 64
DIGITS = "123456789abcdefghijklmnopqrstuvwxyz"

Edge = tuple[int, int, int]  # reader, peer, round


def edges(graph: Topology) -> Iterator[Edge]:
    """Yield every reading once, in the first round in which it occurs."""
    for reader in range(graph.size):
        first = {peer: round for round in reversed(range(graph.period)) for peer in graph.in_peers(reader, round)}
        yield from ((reader, peer, round) for peer, round in first.items())


def text(graph: Topology) -> str:
    """Return the matrix as characters, or agent 0's peers where that would be too wide."""
    if graph.size > MOST_IN_TERMINAL:
        return "\n".join(_peers_of_agent_0(graph))
    cells = [["·"] * graph.size for _ in range(graph.size)]
    for agent in range(graph.size):
        cells[agent][agent] = "\\"
    for reader, peer, round in edges(graph):
        cells[reader][peer] = "●" if graph.period == 1 else DIGITS[round % len(DIGITS)]
    tens = "    " + " ".join(str(agent // 10) if agent % 10 == 0 and agent else " " for agent in range(graph.size))
    ones = "    " + " ".join(str(agent % 10) for agent in range(graph.size))
    legend = "each row reads the columns marked " + ("●" if graph.period == 1 else "with a round of the period")
    rows = [f"{agent:>3} " + " ".join(row) for agent, row in enumerate(cells)]
    return "\n".join(line.rstrip() for line in (legend, tens, ones, *rows) if line.strip())


def _peers_of_agent_0(graph: Topology) -> list[str]:
    lines = []
    for round in range(graph.period):
        peers = graph.in_peers(0, round)
        shown = ", ".join(map(str, peers[:20])) + (f", ... ({len(peers)} in all)" if len(peers) > 20 else "")
        when = f" in round {round + 1}" if graph.period > 1 else ""
        lines.append(f"agent 0 reads {shown}{when}")
    return [*lines, "--out graph.png draws all"]


def picture(graph: Topology, path: Path) -> None:
    """Write the figure to `path`, under a temporary name first: a kill leaves the old file or the new one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    both = graph.size <= MOST_ON_CIRCLE
    figure = Figure(figsize=(13 if both else 7, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if both else 1, squeeze=False)[0]
    found = list(edges(graph))
    if both:
        _draw_arrows(panels[0], graph, found)
    _draw_matrix(panels[-1], graph, found)
    figure.suptitle(f"{graph.name}, {graph.size} agents")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _colour(round: int) -> str:
    return f"C{round % 10}"


def _places(graph: Topology) -> tuple[np.ndarray, bool]:
    """Return where each agent stands, [size, 2], and whether that is a grid: of shifts on two sides, each of 2 or more."""
    first = graph.rounds[0]
    if isinstance(first, Shifts) and len(first.shape) == 2 and min(first.shape) > 1:
        rows, columns = np.unravel_index(np.arange(graph.size), first.shape)
        return np.stack([columns, -rows], axis=1).astype(float), True
    angles = math.pi / 2 - 2 * math.pi * np.arange(graph.size) / graph.size  # clockwise, from the top
    return np.stack([np.cos(angles), np.sin(angles)], axis=1), False


def _draw_arrows(axes: Axes, graph: Topology, found: list[Edge]) -> None:
    """Draw an arrow from whom is read to who reads: the way of a message."""
    places, grid = _places(graph)
    faint = max(0.15, min(1.0, 120 / max(1, len(found))))
    size = 320 if grid or graph.size <= 16 else 5000 / graph.size
    style = {"arrowstyle": "-|>", "shrinkA": size**0.5 / 2, "shrinkB": size**0.5 / 2, "mutation_scale": 9}
    for reader, peer, round in found:
        start = places[peer]
        wraps = grid and np.abs(start - places[reader]).max() > 1
        if wraps:  # over the edge: a stub from the direction from which it comes
            start = places[reader] + 0.6 * np.sign(places[reader] - start)
        bend = {"connectionstyle": "arc3,rad=-0.12", "linestyle": "--" if wraps else "-"}
        arrow = style | bend | {"color": _colour(round), "alpha": faint, "shrinkA": 0 if wraps else style["shrinkA"]}
        axes.annotate("", places[reader], start, arrowprops=arrow, annotation_clip=False)
    axes.scatter(*places.T, s=size, color="white", edgecolor="black", zorder=3)
    for agent, (x, y) in enumerate(places):
        axes.text(x, y, str(agent), ha="center", va="center", fontsize=8 if graph.size <= 32 else 6, zorder=4)
    margin = 0.8 if grid else 0.15
    low, high = places.min(axis=0) - margin, places.max(axis=0) + margin
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axes.set_title("messages" + ("; dashed: from the opposite edge" if grid else ""))
    axes.axis("off")


def _draw_matrix(axes: Axes, graph: Topology, found: list[Edge]) -> None:
    side = max(1.2, 330 / graph.size * 0.8)  # points
    own = np.arange(graph.size)
    axes.plot(own, own, "s", markersize=side, markeredgewidth=0, color="0.8", label="itself")
    for round in range(graph.period):
        marks = np.array([(peer, reader) for reader, peer, at in found if at == round]).reshape(-1, 2)
        axes.plot(*marks.T, "s", markersize=side, markeredgewidth=0, color=_colour(round), label=f"round {round + 1}")
    ends = (-0.5, graph.size - 0.5)
    axes.set(xlim=ends, ylim=ends[::-1], xlabel="whom it reads", ylabel="agent", aspect="equal")
    axes.locator_params(integer=True, min_n_ticks=1)
    if graph.period > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=8 / side, frameon=False)
