"""The energy that a run's nodes have used, by what their counters told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

COUNTERS = {"node_joules": "node", "cpu_joules": "CPU", "gpu_joules": "GPU"}


@dataclass(frozen=True)
class Node:
    """One node during one start.

    Attributes:
        hours: of training at each reading, and before them where the first one counts from; float64 [readings + 1].
        joules: used until then; float64 [readings + 1].
        seconds: of all readings.
    """

    hours: np.ndarray
    joules: np.ndarray
    seconds: float

    @property
    def watts(self) -> float:
        return float(self.joules[-1]) / self.seconds


def counters(tables: Sequence[np.ndarray]) -> list[str]:
    """Return the columns whose sum is the energy of every node; none: they count different things, or nothing.

    A node's own counter is taken where all have one. Else its CPUs are counted, and its GPUs where it has some.

    Args:
        tables: rows of `energy` of each node.
    """
    told = [{name for name in COUNTERS if np.isfinite(table[name]).any()} for table in tables]
    common, some = set.intersection(*told) if told else set(), set().union(*told)
    if "node_joules" in common:
        return ["node_joules"]
    return [name for name in ("cpu_joules", "gpu_joules") if name in (some if "cpu_joules" in common else common)]


def metered(rows: np.ndarray, columns: Sequence[str], report: Callable[[str], None] = lambda problem: None) -> Node:
    """Return the energy of a node that counts in these columns.

    A reading that was missed is taken to be of the node's mean power.

    Args:
        rows: of `energy`, one or more.
        report: is told of missed readings, in one line.
    """
    used, seconds = np.zeros(len(rows)), rows["seconds"].astype(float)
    for name in columns:
        joules, there = rows[name].astype(float), np.isfinite(rows[name])
        if there.any():  # else it has none of these
            mean = joules[there].sum() / max(seconds[there].sum(), 1e-9)
            used += np.where(there, joules, mean * seconds)
            if not there.all():
                missed = f"{np.count_nonzero(~there):,} of {len(rows):,} readings of {COUNTERS[name]} are missing"
                report(f"{missed}; they count as the others' mean power")
    begin = rows["hours"][0] - np.nan_to_num(seconds[0]) / 3600
    return Node(np.array([begin, *rows["hours"]]), np.cumsum([0, *used]), max(float(seconds.sum()), 1e-9))


def power(starts: Sequence[Sequence[Node]]) -> float:
    """Return the power of all nodes, W, mean over the time of all starts; NaN: not available.

    Args:
        starts: the nodes of each start.
    """
    measured = [nodes for nodes in starts if nodes]
    if not measured:
        return np.nan
    return float(np.average([sum(node.watts for node in nodes) for nodes in measured], weights=[_longest(n) for n in measured]))


def _longest(nodes: Sequence[Node]) -> float:
    return max(node.seconds for node in nodes)
