"""Who reads whom, with which weights: graphs as data.

`graphs` is the arithmetic and the built-in ones, of which `base_graph` makes some; `files` reads others, `substitutes` says who
is read in place of the lost, `properties` says how fast a graph averages, `draw` shows it. `python -m gala_mpi.topology ring
-n 32` prints and draws.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gala_mpi.errors import SettingError
from gala_mpi.topology import files
from gala_mpi.topology.graphs import BUILT_IN, Shifts, Table, Topology, base, hierarchical
from gala_mpi.topology.properties import mixing_rate, second_singular_value

__all__ = ["BUILT_IN", "Graph", "Shifts", "Table", "Topology", "build", "mixing_rate", "resolve", "second_singular_value"]

BASE = re.compile(r"base:([1-9]\d{0,2}|1000)")
HIERARCHICAL = re.compile(r"hierarchical:([1-9]\d{0,2}|1000)")  # a period is K rounds, all of which are kept


@dataclass(frozen=True)
class Graph:
    """A graph as a setting: what a user names, and once it is resolved all that `build` takes on any rank and at any time.

    Attributes:
        name: a built-in name, base:K, hierarchical:K, or that of a file.
        text: the file's whole text, so that a run can be resumed when the file is gone.
        nodes: hierarchical:K: the node of each agent.
    """

    name: str
    text: str = ""
    nodes: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def from_word(word: str) -> Graph:
        """Return the graph that a word of the command line names, not resolved yet."""
        return Graph(word)

    @staticmethod
    def from_stored(stored: str | Mapping[str, Any]) -> Graph:
        """Return the graph that a run's settings hold: an object, or in old runs "name", "name\\ntext", "name\\nnodes"."""
        if not isinstance(stored, str):
            return Graph(stored["name"], stored["text"], tuple(stored["nodes"]))
        name, _, rest = stored.partition("\n")
        if HIERARCHICAL.fullmatch(name):
            return Graph(name, nodes=tuple(map(int, rest.split())))
        return Graph(name, rest)


def resolve(wanted: Graph, hosts: Sequence[str]) -> Graph:
    """Add what `build` needs: the text of a file, or the node of each agent.

    Text that is there already stays, so that a run can be resumed when the file is gone.

    Args:
        hosts: of each agent.

    Raises:
        SettingError: there is no such graph and no such file.
    """
    name = wanted.name
    if HIERARCHICAL.fullmatch(name):  # a resumed run may have other hosts
        nodes = list(dict.fromkeys(hosts))
        return Graph(name, nodes=tuple(nodes.index(host) for host in hosts))
    if wanted.text or name in BUILT_IN or BASE.fullmatch(name):
        return wanted
    try:
        with open(name, encoding="utf-8-sig") as file:
            return Graph(name, file.read())
    except FileNotFoundError:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        names = f"{', '.join(BUILT_IN)}, base:K, hierarchical:K (K from 1 to 1000) or a file"
        raise SettingError(f"--topology {name}: {names} is expected{hint}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SettingError(f"--topology {name}: a text file is expected ({error})") from None


def build(graph: Graph, size: int | None) -> Topology:
    """Return a resolved graph over `size` agents; None: as many as its file has. One agent has no peers under any built-in
    name.

    Raises:
        SettingError: the file is wrong or not for `size` agents; or there is neither a file nor a size.
    """
    name = graph.name
    hierarchy, degree = HIERARCHICAL.fullmatch(name), BASE.fullmatch(name)
    if hierarchy or (not graph.text and (degree or name in BUILT_IN)):
        if size is None:
            raise SettingError(f"--topology {name}: the number of agents is expected (-n 32)")
        if hierarchy:
            return Topology(name, len(graph.nodes), hierarchical(graph.nodes, int(hierarchy[1])))
        if size == 1:
            return Topology(name, size, (Shifts((1,), ()),))
        rounds = base(size, int(degree[1])) if degree else BUILT_IN[name](size)
        return Topology(name, size, rounds, mutual=name.partition(":")[0] == "base")
    built = files.parse(name, graph.text)
    if size not in (None, built.size):
        raise SettingError(f"--topology {name}: a graph of {built.size} agents, but there are {size}; as many are expected")
    return built
