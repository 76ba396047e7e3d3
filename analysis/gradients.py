"""How alike are the agents' gradients?

    python analysis/gradients.py runs --by exchange

Draws the correlation of every two agents' gradients as a heat map for each group of runs: GALA's agents against A2C's
workers. After Assran et al. 2019, who show that gossip agents explore more diverse gradients than synchronous workers.

Definitions:

* gradient: of an agent's own loss, before any averaging over agents and before clipping, at equal updates of both agents.
* correlation: the cosine of the angle between two gradients, from their sketches (standard error at most 0.016 an update),
  averaged over a run's sketched updates, and these means over the group's runs.
* peers: pairs of which one has mixed the other's parameters; framed in the heat map.
* ±: standard error of the mean. Of several runs: over runs, each of which counts once. Of one run: over its updates, which are
  as good as fewer that are independent, by their autocorrelation (`stats.standard_error_in_a_row`).
* a run that was resumed with other settings, or on another number of ranks, is several.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Rectangle

import checkout  # noqa: F401
import stats
from gala_mpi.run import Run, RunError
from groups import Group, grouped, mixtures, stretches
from script import Answer, Options, Table, main, panels

LEAST_SCALE = 0.2  # of the colours: what is next to nothing looks so
MOST_WRITTEN = 8  # agents whose correlations are written into the cells


@dataclass(frozen=True)
class Correlation:
    """Of one group and number of agents.

    Attributes:
        runs: of each run the cosines, [updates, agents, agents].
        peers: [agents, agents]: whether row has mixed column's parameters.
    """

    group: Group
    runs: list[np.ndarray]
    peers: np.ndarray

    @property
    def agents(self) -> int:
        return len(self.peers)

    @property
    def updates(self) -> int:
        return sum(map(len, self.runs))

    @property
    def counted(self) -> str:
        runs = f" of {len(self.runs)} runs" if len(self.runs) > 1 else ""
        return f"{self.updates:,} updates{runs}"

    @property
    def mean(self) -> np.ndarray:
        return np.mean([matrices.mean(axis=0) for matrices in self.runs], axis=0)

    def over(self, pairs: np.ndarray) -> tuple[float, float]:
        """Return the mean over `pairs` (a mask), and its standard error; NaN where there are no pairs."""
        if not pairs.any():
            return np.nan, np.nan
        means = [matrices[:, pairs].mean(axis=1) for matrices in self.runs]
        if len(means) == 1:
            return float(means[0].mean()), stats.standard_error_in_a_row(means[0])
        of_runs = np.array([values.mean() for values in means])
        return float(of_runs.mean()), stats.standard_error(of_runs)


def answer(found: list[Run], options: Options) -> Answer:
    pieces = [piece for run in found for piece in stretches(run)]
    sketched = [run for run in pieces if run.agents > 1 and all(len(run.sketches(rank)) for rank in range(run.agents))]
    if not sketched:
        raise RunError(f"{found[0].path}: no sketches of 2 agents or more are there (--sketch-updates of gala_mpi.train)")
    groups = grouped(sketched, options.by, known=found)
    shown = [c for group in groups for c in correlations(group) if c.runs]
    if not shown:
        raise RunError(f"{sketched[0].path}: no two agents have sketches of equal updates yet")
    largest = max(LEAST_SCALE, *(np.abs(c.mean[~np.eye(c.agents, dtype=bool)]).max() for c in shown))
    figure, axes = panels(len(shown), height=3.6, columns=min(2, len(shown)))
    for ax, c in zip(axes, shown):
        draw(ax, c, largest)
    figure.colorbar(
        axes[0].images[0], ax=axes, label="correlation of gradients (cosine)", shrink=0.7, location="bottom", aspect=40
    )
    table, points = tables(shown)
    said = "; ".join(f"{row[0]} on {row[1]} agents {row[4]:.3f}" for row in table.rows)
    left_out = dict.fromkeys(str(run.path) for run in pieces if run not in sketched)
    notes = [f"{path}: no sketches of every agent, or a single one; left out" for path in left_out]
    notes += mixtures(groups, apart={"agents", "environments"})
    alt = f"Heat maps of the correlation of agents' gradients. Means over pairs: {said}."
    return Answer(table, figure, alt, points, notes, answered(shown))


def answered(shown: list[Correlation]) -> str:
    """Return the answer in a sentence."""
    means = {f"{c.group.name} on {c.agents} agents": float(c.mean[np.triu_indices(c.agents, 1)].mean()) for c in shown}
    most, least = (pick(means, key=lambda name: means[name]) for pick in (max, min))
    if len(means) == 1:
        return f"The correlation of two agents' gradients is {means[most]:.3f} on average (1: alike, 0: unrelated)."
    if f"{means[most]:.3f}" == f"{means[least]:.3f}":
        return f"Gradients of two agents are equally alike in all groups: their correlation is {means[most]:.3f} on average."
    ends = f"most alike in {most}, {means[most]:.3f} on average, and least in {least}, {means[least]:.3f}"
    return f"Gradients of two agents are {ends}."


def correlations(group: Group) -> list[Correlation]:
    """Return one correlation for each number of agents."""
    shown = []
    for agents in sorted({run.agents for run in group.runs}):
        mine = [run for run in group.runs if run.agents == agents]
        peers = np.zeros((agents, agents), bool)
        for run in mine:
            for rank in range(agents):
                read = np.unique(run.mixes(rank)["peer"])
                peers[rank, read[read < agents]] = True  # others have left the run since
        of_runs: dict[Path, list[np.ndarray]] = {}  # the stretches of one run are no two runs
        for run in mine:
            of_runs.setdefault(run.path, []).append(cosines(run))
        matrices = [np.concatenate(found) for found in of_runs.values()]
        shown.append(Correlation(group, [cosine for cosine in matrices if len(cosine)], peers))
    return shown


def cosines(run: Run) -> np.ndarray:
    """Return the cosines at the updates of which all agents have sketches; float64 [updates, agents, agents]."""
    sketches = [run.sketches(rank) for rank in range(run.agents)]
    common = sorted(set.intersection(*(set(table["update"].tolist()) for table in sketches)))
    gradients = [table["gradient"][np.searchsorted(table["update"], common)] for table in sketches]
    stacked = np.array(gradients, float).transpose(1, 0, 2)
    lengths = np.linalg.norm(stacked, axis=2, keepdims=True)
    whole = ((lengths > 0) & np.isfinite(lengths)).all(axis=(1, 2))
    unit = stacked[whole] / lengths[whole]
    return unit @ unit.transpose(0, 2, 1)


def draw(ax, c: Correlation, largest: float) -> None:
    shown = np.where(np.eye(c.agents, dtype=bool), np.nan, c.mean)
    ax.imshow(shown, cmap=colormaps["PuOr_r"].with_extremes(bad="#bbbbbb"), vmin=-largest, vmax=largest)
    for reader, sender in np.argwhere(c.peers):
        ax.add_patch(Rectangle((sender - 0.47, reader - 0.47), 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.6))
    if c.agents <= MOST_WRITTEN:
        for row, column in np.argwhere(~np.eye(c.agents, dtype=bool)):
            dark = abs(c.mean[row, column]) > 0.65 * largest
            ax.text(
                column,
                row,
                f"{c.mean[row, column]:z.2f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if dark else "black",
            )
        ax.set_xticks(range(c.agents))
        ax.set_yticks(range(c.agents))
    ax.grid(False)
    ax.set(title=f"{c.group.name}, {c.counted}", xlabel="agent", ylabel="agent (framed: reads)")


def tables(shown: list[Correlation]) -> tuple[Table, Table]:
    people = Table(("group", "agents", "runs", "updates", "correlation", "±", "of peers", "± ", "of others", "±  "))
    points = Table(("env", "group", "agents", "row", "column", "correlation", "peers"))
    for c in shown:
        pairs = np.triu(np.ones((c.agents, c.agents), bool), 1)
        peers = c.peers | c.peers.T
        few = (c.over(pairs), c.over(pairs & peers), c.over(pairs & ~peers) if peers.any() else (np.nan, np.nan))
        people.rows.append((c.group.name, c.agents, len(c.runs), c.updates, *(value for pair in few for value in pair)))
        for row, column in np.ndindex(c.agents, c.agents):
            points.rows.append(
                (c.group.env, c.group.label, c.agents, row, column, c.mean[row, column], bool(peers[row, column]))
            )
    return people, points


if __name__ == "__main__":
    main(answer, Options, __doc__)
