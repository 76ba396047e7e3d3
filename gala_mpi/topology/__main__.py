"""Print what a graph is like and draw it. One process, no MPI.

python -m gala_mpi.topology ring -n 32
python -m gala_mpi.topology one-peer-exponential -n 32 --out graph.png
python -m gala_mpi.topology base:2 -n 6
python -m gala_mpi.topology my_graph.txt
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

from rich.console import Console
from rich.table import Table

from gala_mpi import cli, topology
from gala_mpi.cli import require_file, require_whole
from gala_mpi.errors import SettingError
from gala_mpi.topology import Graph, draw
from gala_mpi.topology.graphs import Topology
from gala_mpi.topology.properties import Properties, properties

ROUNDING = 1e-6  # of shares


@dataclass(frozen=True)
class GraphView:
    """What a graph is like: who reads whom, how fast it averages, what it costs."""

    topology: str
    """ring, exponential, one-peer-exponential, complete, torus, base:K, hierarchical:K, or a file as for --topology of
    training."""
    agents: Optional[int] = None
    """How many agents; -n for short. A file may say so itself."""
    nodes: int = 4
    """Over how many nodes the agents of hierarchical:K are dealt."""
    parameters: int = 866_439
    """Length of the vectors that are sent, as float32. The default is that of network gala on Pong."""
    out: Optional[Path] = None
    """Also draw the graph into this file: FILE.png, FILE.svg or FILE.pdf."""
    json: bool = False
    """Print one JSON object instead of a table and a drawing."""


def main(arguments: list[str]) -> None:
    wanted = parse(arguments)
    try:
        check(wanted)
        hosts = [str(agent * wanted.nodes // (wanted.agents or 1)) for agent in range(wanted.agents or 0)]
        graph = topology.build(topology.resolve(Graph(wanted.topology), hosts), wanted.agents)
        if wanted.out is not None:
            save(graph, wanted.out)
    except SettingError as error:
        print(f"gala_mpi: {error}", file=sys.stderr)
        sys.exit(2)
    with cli.ignore_broken_pipe():
        show(wanted, graph, properties(graph, wanted.parameters))


def parse(arguments: list[str]) -> GraphView:
    return cli.parse(
        GraphView,
        "topology",
        "Print and draw who reads whom.\n\n"
        "  python -m gala_mpi.topology ring -n 32\n"
        "  python -m gala_mpi.topology exponential -n 1000 --out graph.png\n"
        "  python -m gala_mpi.topology my_graph.txt",
        [re.sub(r"^-n(\d*)$", lambda n: f"--agents={n[1]}" if n[1] else "--agents", word) for word in arguments],
    )


def check(wanted: GraphView) -> None:
    """Refuse what cannot work. Raises SettingError."""
    require_whole("-n", wanted.agents, 1)
    require_whole("--nodes", wanted.nodes, 1)
    require_whole("--parameters", wanted.parameters, 1)
    require_file("--out", wanted.out, ".png", ".svg", ".pdf")


def save(graph: Topology, path: Path) -> None:
    try:
        draw.picture(graph, path)
    except OSError as error:
        raise SettingError(f"--out {path} cannot be written: {error}") from None


def show(wanted: GraphView, graph: Topology, found: Properties) -> None:
    if wanted.json:
        print(json.dumps({"topology": graph.name, "agents": graph.size, **asdict(found)}))
    else:
        # A pipe or a file has no width: lines are as long as they must be.
        console = Console() if sys.stdout.isatty() else Console(width=200)
        print(f"{graph.name}, {graph.size} agents")
        console.print(table(found))
        print(draw.text(graph))
    if wanted.out is not None:
        print(f"drawn: {wanted.out}", file=sys.stderr)


def table(found: Properties) -> Table:
    """Return the figures with their names; rates of a period and of an update where these differ."""
    rows = Table(show_header=False)
    rows.add_row("degree: whom an agent reads in an update, at most", f"{found.degree}")
    rows.add_row("readers of an agent in an update, at most", f"{found.out_degree}")
    rows.add_row("diameter: updates until all have heard of all", f"{found.diameter}")
    if found.period > 1:
        rows.add_row("period: updates until whom an agent reads comes round again", f"{found.period}")
        rows.add_row(f"β, second singular value of the product of the period's {found.period} rounds", f"{found.beta:.12g}")
        rows.add_row("β/(1−β)", ratio(found.ratio))
        rows.add_row(f"β per update, the root of order {found.period}", f"{found.beta_per_update:.12g}")
        rows.add_row("β/(1−β) of β per update", ratio(found.ratio_per_update))
    else:
        rows.add_row("β, second singular value", f"{found.beta:.12g}")
        rows.add_row("β/(1−β)", ratio(found.ratio))
    rows.add_row("updates to halve a disagreement", halving(found))
    if found.largest_share - found.least_share > ROUNDING:
        rows.add_row("how much an agent counts in what all come to", f"{found.least_share:.4g} to {found.largest_share:.4g}")
    rows.add_row("bytes an agent reads in an update, at most", f"{found.bytes_per_update:,}")
    return rows


def ratio(value: float | None) -> str:
    return "none: β is 1 or more" if value is None else f"{value:.6g}"


def halving(found: Properties) -> str:
    if found.updates_to_halve is None:
        return "never"
    return f"{found.updates_to_halve:.4g}" + (" (it is gone then)" if found.long_run_rate == 0 else "")


if __name__ == "__main__":
    main(sys.argv[1:])
