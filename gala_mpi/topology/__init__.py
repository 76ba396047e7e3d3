"""Who reads whom, with which weights: graphs as data.

`graphs` is the arithmetic and the built-in ones, `files` reads others, `figures` says how fast a graph averages, `draw` shows
it. `python -m gala_mpi.topology ring -n 32` prints and draws.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from gala_mpi.errors import SettingError
from gala_mpi.topology import files
from gala_mpi.topology.graphs import BUILT_IN, Shifts, Table, Topology, hierarchical
from gala_mpi.topology.properties import mixing_rate, second_singular_value

__all__ = ["BUILT_IN", "Shifts", "Table", "Topology", "build", "mixing_rate", "resolve", "second_singular_value", "title"]


HIERARCHICAL = re.compile(r"hierarchical:([1-9]\d{0,2}|1000)")  # a period is K rounds, all of which are kept


def resolve(wanted: str, hosts: Sequence[str]) -> str:
    """What a user names → what `build` takes on any rank and at any time: a built-in name, a file's name and whole text, or
    hierarchical:K and the node of each agent.

    The text of a file stays as it is, so that a run can be resumed when the file is gone.

    Args:
        hosts: of each agent.

    Raises:
        SettingError: there is no such graph and no such file.
    """
    if HIERARCHICAL.fullmatch(title(wanted)):  # a resumed run may have other hosts
        nodes = list(dict.fromkeys(hosts))
        return f"{title(wanted)}\n{' '.join(str(nodes.index(host)) for host in hosts)}"
    if wanted in BUILT_IN or "\n" in wanted:
        return wanted
    try:
        with open(wanted, encoding="utf-8-sig") as file:
            return f"{wanted}\n{file.read()}"
    except FileNotFoundError:
        near = difflib.get_close_matches(wanted, BUILT_IN, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        names = f"{', '.join(BUILT_IN)}, hierarchical:K (K from 1 to 1000) or a file"
        raise SettingError(f"--topology {wanted}: {names} is expected{hint}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SettingError(f"--topology {wanted}: a text file is expected ({error})") from None


def title(resolved: str) -> str:
    """The built-in name, or the file's."""
    return resolved.partition("\n")[0]


def build(resolved: str, size: int | None) -> Topology:
    """The graph over `size` agents; None: as many as its file has. One agent has no peers under any built-in name.

    Raises:
        SettingError: the file is wrong or not for `size` agents; or there is neither a file nor a size.
    """
    name, _, text = resolved.partition("\n")
    hierarchy = HIERARCHICAL.fullmatch(name)
    if size is None and (hierarchy or name in BUILT_IN):
        raise SettingError(f"--topology {name}: the number of agents is expected (-n 32)")
    if name in BUILT_IN:
        return Topology(name, size, BUILT_IN[name](size) if size > 1 else (Shifts((1,), ()),))
    if hierarchy:
        nodes = text.split()
        return Topology(name, len(nodes), hierarchical(nodes, int(hierarchy[1])))
    graph = files.parse(name, text)
    if size not in (None, graph.size):
        raise SettingError(f"--topology {name}: a graph of {graph.size} agents, but there are {size}; as many are expected")
    return graph
