"""Whose parameters made up the final policy?

    python analysis/influence.py runs
    python analysis/influence.py runs --by topology --out influence.pdf

Runs whose agents mix messages over a graph (gossip). Draws each agent's influence beside its share of the updates: a fast
agent does more updates, but its peers mix it no more often for that.

Definitions, with x_i the parameters of agent i, and what every agent mixed, by the table `mixes`:

* final policy: the mean of the newest parameters of all agents but the lost ones, so far if the run still trains.
* share of an agent at a moment: the final policy is Σ_j π_j × (the parameters that agent j held then) + later steps, where π is
  a row vector: (1/n) 1ᵀ times the product of all mixing matrices that happened since, late, missing and early messages
  included. Σ_j π_j = 1. Long before the end, every row of the product is the same, its left eigenvector of eigenvalue 1: π.
* influence: the mean of π_j over up to 200 moments, evenly spread over the updates of all agents, from the beginning on. In
  lock-step on a regular graph it is 1/n for every agent.
* effective agents: exp H, H = -Σ_j π_j log π_j being the entropy (nats) of the influence: n if all have the same, 1 if one has
  all of it.
* share of the steps: Σ_v c_j(v) ‖s_j(v)‖ over the optimiser's steps s_j(v) of agent j, c_j(v) being their coefficients in the
  final policy, over the same of all agents. Steps whose length is not finite count as none.
* fastest, slowest: by updates, among the agents that were not lost.

Of a resumed run the newest start is looked at, with the checkpoint as its beginning. A run of which some agent's rows since
then cannot be read has no influence that could be told, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

import checkout  # noqa: F401
from consensus import reads_over_a_graph
from gala_mpi.run import Run, RunError
from gala_mpi.run.layout import lost
from groups import Group, grouped, labels, mixtures
from mixing import Mixing
from script import Answer, Options, Table, legend, line_style, main, panels, progress

HEADINGS = (
    "run",
    "group",
    "agents",
    "effective agents",
    "entropy (nats)",
    "largest (%)",
    "of agent",
    "smallest (%)",
    "of agent ",
)
HEADINGS += ("fastest's (%)", "slowest's (%)", "lost agents' (%)")


@dataclass(frozen=True)
class Influence:
    """Of one run; (agents,) arrays.

    Attributes:
        moments: π, the newest first, [moments, agents].
        steps: share of the steps.
        updates: done in the newest start.
        clipped: how many messages of each agent were newer than all its rows that can be read.
        lost: whether the agent was lost.
    """

    run: Run
    moments: np.ndarray
    steps: np.ndarray
    updates: np.ndarray
    clipped: np.ndarray
    lost: np.ndarray

    @property
    def shares(self) -> np.ndarray:
        return self.moments.mean(axis=0)

    @property
    def entropy(self) -> float:
        some = self.shares[self.shares > 0]
        return float(-(some * np.log(some)).sum())

    @property
    def effective(self) -> float:
        return float(np.exp(self.entropy))


def answer(found: list[Run], options: Options) -> Answer:
    mixing = [run for run in found if mixes(run)]
    if not mixing:
        what = "no run whose agents mixed messages over a graph since its newest start is there (--exchange gossip)"
        raise RunError(f"{found[0].path}: {what}")
    unknown = {run: f"{run.path}: {why}" for run in mixing if (why := unreadable(run))}
    if len(unknown) == len(mixing):
        raise RunError(next(iter(unknown.values())))
    whole = [run for run in mixing if run not in unknown]
    groups = grouped(whole, options.by, known=found)
    influences = {id(run): influence(run) for run in progress(whole, "influence")}
    shown = [(group, agents) for group in groups for agents in sorted({run.agents for run in group.runs})]
    order = labels(grouped(found, options.by))  # a group has the same colour in every script
    figure, axes = panels(len(shown), height=2.8)
    for ax, (group, agents) in zip(axes, shown):
        mine = [influences[id(run)] for run in group.runs if run.agents == agents]
        draw(ax, group, mine, order.index(group.label))
    legend(figure, axes)
    table, points = tables(groups, influences)
    sentence = answered(list(influences.values()))
    notes = [f"{line}; left out" for line in unknown.values()]
    for run in found:
        since = " since its newest start" if len(run.starts) > 1 else ""
        notes += [f"{run.path}: its agents mixed no messages over a graph{since}; left out"] if run not in mixing else []
    notes += [note for found in influences.values() for note in remarks(found)]
    notes += mixtures(groups, apart={"agents", "environments"})
    return Answer(table, figure, f"Bars of every agent's influence on the final policy. {sentence}", points, notes, sentence)


def mixes(run: Run) -> bool:
    """Return whether the agents of the newest start mixed messages over a graph."""
    newest = run.during(len(run.starts) - 1, len(run.starts) - 1)
    return run.agents > 1 and reads_over_a_graph(run) and any(len(newest.mixes(rank)) for rank in range(run.agents))


def unreadable(run: Run) -> str:
    """Say of which agents some rows of the newest start cannot be read: nobody knows what they mixed. Empty: of none."""
    newest = run.during(len(run.starts) - 1, len(run.starts) - 1)
    some = []
    for rank in range(run.agents):
        rows = {"updates": newest.updates(rank), "mixes": newest.mixes(rank)}
        if rank not in newest.readable or any(len(rows[name]) < newest.parts[rank][-1].rows[name] for name in rows):
            some.append(rank)
    whose = f"agent{'s' * (len(some) > 1)} {', '.join(map(str, some))}"
    return f"the newest metrics of {whose} cannot be read whole, so that nobody knows what was mixed" if some else ""


def influence(run: Run) -> Influence:
    """Go back from the final policy through everything it is made of."""
    mixing = Mixing(run, clip=True)
    dead = np.isin(np.arange(run.agents), list(lost(run.path)))
    dead &= ~dead.all()
    newest = np.array([mixing.newest(rank) for rank in range(run.agents)])
    outputs = [mixing.output(rank, update) for rank, update in enumerate(newest) if not dead[rank]]
    nodes, weights = (np.concatenate(parts) for parts in zip(*outputs))
    moments, shares = [], []
    for block, share, left_nodes, left in mixing.back(nodes, weights[:, None] / len(outputs)):
        shares.append(share[:, 0])
        if block.first:
            moments.append(np.bincount(mixing.rank[left_nodes], left[:, 0], run.agents))
    coefficients = np.concatenate(shares[::-1])
    rank, version = mixing.rank[: len(coefficients)], mixing.version[: len(coefficients)]
    begun = version == mixing.begun[rank]
    moments.append(np.bincount(rank[begun], coefficients[begun], run.agents))
    lengths = np.zeros(len(coefficients))
    for agent in range(run.agents):
        steps = run.updates(agent)
        mine = (rank == agent) & ~begun
        norms = np.where(np.isfinite(steps["step_norm"]), steps["step_norm"], 0)
        lengths[mine] = norms[np.searchsorted(steps["update"], version[mine])]
    walked = np.bincount(rank, coefficients * lengths, run.agents)
    steps = walked / walked.sum() if walked.sum() else np.full(run.agents, np.nan)
    return Influence(run, np.array(moments), steps, mixing.last - mixing.begun, mixing.clipped, dead)


def remarks(found: Influence) -> list[str]:
    """Return what a reader should know about one run."""
    lines = []
    if len(found.run.starts) > 1:
        lines.append(f"{found.run.path}: resumed; the influence is that since its newest start")
    if found.lost.any():
        lines.append(f"{found.run.path}: lost: agent {', '.join(map(str, np.flatnonzero(found.lost)))}")
    endless = [rank for rank in range(found.run.agents) if not np.isfinite(found.run.updates(rank)["step_norm"]).all()]
    if endless:
        whose = f"step_norm of agent {', '.join(map(str, endless))} is not always finite"
        lines.append(f"{found.run.path}: {whose}; such steps count as none in the share of the steps")
    for agent in np.flatnonzero(found.clipped):
        what = f"{found.clipped[agent]:,} messages of agent {agent} are newer than its rows that can be read"
        lines.append(f"{found.run.path}: {what}; they count as its newest that is there")
    return lines


def answered(some: list[Influence]) -> str:
    """Return the answer in a sentence."""
    least = max(some, key=lambda found: found.shares.max() * found.run.agents)
    agent, share = int(least.shares.argmax()), 100 * least.shares.max()
    if least.shares.max() * least.run.agents < 1.01:
        return "All agents made up the final policy in equal parts: the largest is less than 1% above its equal share."
    where = " where they are most unequal" if len(some) > 1 else ""
    parts = f"{least.effective:.1f} effective agents of {least.run.agents}{where}"
    return f"The final policy is made up of {parts}: the largest share, {share:.1f}%, is that of agent {agent}."


def draw(ax: Axes, group: Group, some: list[Influence], number: int) -> None:
    """Draw bars of the influence of every agent, and its shares of updates and steps: means over runs."""
    shares, steps = (100 * np.mean([getattr(found, name) for found in some], axis=0) for name in ("shares", "steps"))
    updates = 100 * np.mean([found.updates / found.updates.sum() for found in some], axis=0)
    agents = np.arange(len(shares))
    gone = np.any([found.lost for found in some], axis=0)
    colour = line_style(number)["color"]
    ax.bar(agents, shares, color=colour, alpha=0.55, hatch=["///" if lost else "" for lost in gone], label="influence")
    ax.plot(agents, updates, "o", color="black", markersize=5, label="share of the updates")
    ax.plot(agents, steps, "_", color="black", markersize=12, label="share of the steps")
    ax.axhline(100 / len(shares), color="black", linewidth=0.8, linestyle=":", label="equal shares")
    ax.xaxis.get_major_locator().set_params(integer=True)
    hatched = "; hatched: lost" if gone.any() else ""
    runs = f"{len(some)} run{'s' * (len(some) > 1)}"
    ax.set(title=f"{group.name}, {len(shares)} agents, {runs}{hatched}", xlabel="agent", ylabel="share (%)")


def tables(groups: list[Group], influences: dict[int, Influence]) -> tuple[Table, Table]:
    people = Table(HEADINGS)
    points = Table(("run", "env", "group", "agent", "lost", "updates", "influence", "share of the steps"))
    for group in groups:
        for run in group.runs:
            found = influences[id(run)]
            shares, living = found.shares, np.flatnonzero(~found.lost)
            fastest, slowest = (living[pick(found.updates[living])] for pick in (np.argmax, np.argmin))
            most, least = int(shares.argmax()), int(shares.argmin())
            row = (str(run.path), group.name, run.agents, found.effective, found.entropy, 100 * shares[most], most)
            row += (100 * shares[least], least, 100 * shares[fastest], 100 * shares[slowest])
            people.rows.append((*row, 100 * shares[found.lost].sum() if found.lost.any() else np.nan))
            for agent, columns in enumerate(zip(found.lost, found.updates, shares, found.steps)):
                points.rows.append((str(run.path), group.env, group.label, agent, *columns))
    return people, points


if __name__ == "__main__":
    main(answer, Options, __doc__)
