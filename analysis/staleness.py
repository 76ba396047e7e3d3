"""How old are the messages that agents mix, and who is left waiting?

    python analysis/staleness.py runs/pong-gossip-...

Gossip runs only. Draws, for each group of runs, how the ages of the messages on every edge are spread.

Definitions, from the tables `mixes` and `updates`:

* edge j→i: agent i reads agent j. age: i's update number when it mixed j's message, minus the message's version: how many
  updates the message is behind its reader. Negative: the sender was ahead. The unit is updates.
* share in a row of the picture: of all messages on that edge, a column for each age, or for several ages in a row where
  there are more than 60. Ages beyond the 0.5% and 99.5% quantiles of all messages are counted in the first and last column.
* skipped: the share of an agent's updates after which it mixed nothing, because no newer message of every in-peer was there.
* longest staleness: the most updates in a row without a mix. longest gap: the longest time in which an agent made no call
  into MPI, so that messages could not move (s).
* torn: messages thrown away because they were being rewritten while they were read; in all runs of the group.
"""

from __future__ import annotations

import numpy as np

from groups import Group, grouped, mixtures
from runs import Run, RunError
from script import Answer, Options, Table, main, panels

MOST_EDGES = 64  # drawn; the busiest
MOST_COLUMNS = 60
TICKS = 16  # labelled edges, at most


def answer(found: list[Run], options: Options) -> Answer:
    gossip = [run for run in found if run.config["exchange"] == "gossip" and run.agents > 1 and len(run.newest)]
    if not gossip:
        raise RunError("no run of --exchange gossip on 2 agents or more is there; messages are what this is about")
    groups = grouped(gossip, options.by)
    ages = [edge_ages(group) for group in groups]
    if not any(ages):
        raise RunError("no message was mixed in these runs; one or more is expected")
    drawn = [n for n in range(len(groups)) if ages[n]]
    rows = [min(MOST_EDGES, len(ages[n])) for n in drawn]
    heights = [max(1.9, 0.25 * n + 1.1) for n in rows]
    figure, axes = panels(len(drawn), height=sum(heights) / len(drawn), height_ratios=heights)
    for ax, n in zip(axes, drawn):
        draw(ax, groups[n], ages[n])
        figure.colorbar(ax.images[0], ax=ax, label="share", fraction=0.05)
    medians = "; ".join(f"{groups[n].name}: median {np.median(np.concatenate(list(ages[n].values()))):g}" for n in drawn)
    alt = f"Heat maps of message ages, a row an edge. Ages in updates: {medians}."
    table, points = tables(groups, ages)
    notes = mixtures(groups) + [f"{run.path}: no gossip between agents; left out" for run in found if run not in gossip]
    return Answer(table, figure, alt, points, notes)


def edge_ages(group: Group) -> dict[tuple[int, int], np.ndarray]:
    """(peer, rank) → ages of the messages that rank mixed, over all runs of the group, updates."""
    ages: dict[tuple[int, int], list[np.ndarray]] = {}
    for run in group.runs:
        for rank in range(run.agents):
            mixes = run.mixes(rank)
            for peer in np.unique(mixes["peer"]):
                mine = mixes[mixes["peer"] == peer]
                ages.setdefault((int(peer), rank), []).append(mine["update"] - mine["version"])
    return {edge: np.concatenate(ages[edge]) for edge in sorted(ages, key=lambda edge: edge[::-1])}


def histogram(ages: dict[tuple[int, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Columns' edges, half-way between whole ages, and the share of each edge's messages in each, [edges, columns]."""
    low, high = np.quantile(np.concatenate(list(ages.values())), [0.005, 0.995], method="nearest").astype(int)
    width = -(-(high - low + 1) // MOST_COLUMNS)
    columns = -(-(high - low + 1) // width)
    places = {edge: (np.clip(a, low, high) - low) // width for edge, a in ages.items()}
    shares = [np.bincount(place, minlength=columns) / len(place) for place in places.values()]
    return low - 0.5 + width * np.arange(columns + 1), np.array(shares)


def draw(ax, group: Group, ages: dict[tuple[int, int], np.ndarray]) -> None:
    busiest = sorted(ages, key=lambda edge: -len(ages[edge]))[:MOST_EDGES]
    shown = {edge: ages[edge] for edge in ages if edge in busiest}
    columns, shares = histogram(shown)
    extent = (columns[0], columns[-1], len(shown) - 0.5, -0.5)
    ax.imshow(shares, aspect="auto", cmap="cividis", extent=extent, interpolation="nearest", vmin=0)
    step = -(-len(shown) // TICKS)
    ax.set_yticks(range(0, len(shown), step), [f"{j}→{i}" for j, i in list(shown)[::step]])
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(False)
    more = "" if len(shown) == len(ages) else f", the {len(shown)} busiest of {len(ages)} edges"
    ax.set(title=f"{group.name}{more}", xlabel="age of the message (updates)", ylabel="sender→reader")


def skipped(run: Run) -> tuple[int, int]:
    """Updates after which nothing was mixed, and all updates, over all agents."""
    updates = [run.updates(rank) for rank in range(run.agents)]
    return sum(int((table["staleness"] > 0).sum()) for table in updates), sum(map(len, updates))


def torn_messages(table: np.ndarray) -> int:
    """Of one agent; each start counts from 0."""
    torn = np.maximum(table["torn"].astype(int), 0)  # -1: the file does not say
    grown = np.diff(torn, prepend=0)
    return int(np.where(grown < 0, torn, grown).sum())


def tables(groups: list[Group], ages: list[dict[tuple[int, int], np.ndarray]]) -> tuple[Table, Table]:
    """For people, a line a group; and the histogram of every edge."""
    headings = ("group", "edges", "messages", "median age", "95% under", "oldest", "skipped (%)", "longest staleness")
    people = Table((*headings, "longest gap (s)", "torn"))
    points = Table(("env", "group", "sender", "reader", "age", "messages"))
    for group, edges in zip(groups, ages):
        everything = np.concatenate([*edges.values(), np.zeros(0, int)])
        missed, total = np.sum([skipped(run) for run in group.runs], axis=0)
        updates = [run.updates(rank) for run in group.runs for rank in range(run.agents)]
        updates = [table for table in updates if len(table)]
        spread = np.quantile(everything, [0.5, 0.95, 1]) if len(everything) else [np.nan] * 3
        torn = sum(map(torn_messages, updates))
        gap = np.nanmax([table["poke_gap"].max() for table in updates])
        staleness = max(int(table["staleness"].max()) for table in updates)
        row = (group.name, len(edges), len(everything), *spread, 100 * missed / total, staleness, gap, torn)
        people.rows.append(row)
        for (peer, rank), mine in edges.items():
            for age, number in zip(*np.unique(mine, return_counts=True)):
                points.rows.append((group.env, group.label, peer, rank, age, number))
    return people, points


if __name__ == "__main__":
    main(answer, Options, __doc__)
