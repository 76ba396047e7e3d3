"""Who reads whom, with which weights: graphs as data.

`graphs` is the arithmetic and the built-in ones, `files` reads others, `figures` says how fast a graph averages, `draw` shows
it. `python -m gala_mpi.topology ring -n 32` prints and draws.
"""

from __future__ import annotations

import difflib

from gala_mpi.errors import SettingError
from gala_mpi.topology import files
from gala_mpi.topology.figures import mixing_rate, second_singular_value
from gala_mpi.topology.graphs import BUILT_IN, Shifts, Table, Topology

__all__ = ["BUILT_IN", "Shifts", "Table", "Topology", "build", "mixing_rate", "resolve", "second_singular_value", "title"]


def resolve(wanted: str) -> str:
    """What a user names → what `build` takes on any rank and at any time: a built-in name, or a file's name and whole text.

    What was resolved once stays as it is, so that a run can be resumed when the file is gone.

    Raises:
        SettingError: there is no such graph and no such file.
    """
    if wanted in BUILT_IN or "\n" in wanted:
        return wanted
    try:
        with open(wanted, encoding="utf-8-sig") as file:
            return f"{wanted}\n{file.read()}"
    except FileNotFoundError:
        near = difflib.get_close_matches(wanted, BUILT_IN, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise SettingError(f"--topology {wanted}: {', '.join(BUILT_IN)} or a file is expected{hint}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SettingError(f"--topology {wanted}: a text file is expected ({error})") from None


def title(resolved: str) -> str:
    """The built-in name, or the file's."""
    return resolved.partition("\n")[0]


def build(resolved: str, size: int | None) -> Topology:
    """The graph over `size` agents; None: as many as its file has. One agent has no peers under any built-in name.

    Raises:
        SettingError: the file is wrong, or is not for `size` agents.
    """
    name, _, text = resolved.partition("\n")
    if name in BUILT_IN:
        if size is None:
            raise SettingError(f"--topology {name}: the number of agents is expected (-n 32)")
        return Topology(name, size, BUILT_IN[name](size) if size > 1 else (Shifts((1,), ()),))
    graph = files.parse(name, text)
    if size not in (None, graph.size):
        raise SettingError(f"--topology {name}: a graph of {graph.size} agents, but there are {size}; as many are expected")
    return graph
