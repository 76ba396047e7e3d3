"""How far behind are the messages that agents mix, and who is left waiting?

    python analysis/staleness.py runs/pong-gossip-...

Runs whose agents mix messages, or share one vector (A3C). Draws, for each group of runs, how the lags of the messages on every
edge are spread.

Definitions, from the tables `mixes` and `updates`:

* edge j→i: agent i reads agent j. lag of a message: i's update number when it mixed j's message, minus the update number at
  which j published it. Positive: the peer is behind, the message comes from so many updates before the reader's own. Negative:
  the peer is ahead, the message comes from so many updates after it. The unit is updates. Under A3C the sender is rank 0, which
  holds the shared vector, and the lag is how many updates of others it received between i's pull and i's next push.
* share in a row of the picture: of all messages on that edge, a column for each lag, or for several lags in a row where
  there are more than 60. Lags beyond the 0.5% and 99.5% quantiles of all messages are counted in the first and last column.
* skipped: the share of an agent's updates after which it mixed nothing, because no newer message of every in-peer was there.
* longest staleness: the most updates in a row without a mix. longest gap: the longest time in which an agent made no call
  into MPI, so that messages could not move (s). The first update of a metrics file is left out: the start is in it.
* torn: messages thrown away because they were being rewritten while they were read; in all runs of the group.
"""

from __future__ import annotations

import numpy as np

import checkout  # noqa: F401
from gala_mpi.run import Run, RunError
from gala_mpi.run.parts import counted
from groups import Group, grouped, mixtures
from script import Answer, Options, Table, main, panels

MOST_EDGES = 64  # drawn; the busiest
MOST_COLUMNS = 60
TICKS = 16  # labelled edges, at most


def answer(found: list[Run], options: Options) -> Answer:
    mixing = [run for run in found if mixes_messages(run)]
    if not mixing:
        raise RunError("no run of --exchange gossip or server on 2 agents or more is there; messages are what this is about")
    groups = grouped(mixing, options.by, known=found)
    lags = [edge_lags(group) for group in groups]
    if not any(lags):
        raise RunError("no message was mixed in these runs; one or more is expected")
    drawn = [n for n in range(len(groups)) if lags[n]]
    rows = [min(MOST_EDGES, len(lags[n])) for n in drawn]
    heights = [max(1.9, 0.25 * n + 1.1) for n in rows]
    figure, axes = panels(len(drawn), height=sum(heights) / len(drawn), height_ratios=heights)
    for ax, n in zip(axes, drawn):
        draw(ax, groups[n], lags[n])
        figure.colorbar(ax.images[0], ax=ax, label="share", fraction=0.05)
    medians = "; ".join(f"{groups[n].name}: median {np.median(np.concatenate(list(lags[n].values()))):g}" for n in drawn)
    alt = f"Heat maps of message lags, a row an edge. Lags in updates, negative where the peer was ahead: {medians}."
    table, points = tables(groups, lags)
    sentence = answered(np.concatenate([mine for edges in lags for mine in edges.values()]), table)
    notes = mixtures(groups) + [f"{run.path}: no messages between agents; left out" for run in found if run not in mixing]
    return Answer(table, figure, alt, points, notes, sentence)


def answered(lags: np.ndarray, table: Table) -> str:
    """Return the answer in a sentence: `lags` of all messages, and the table of the groups."""
    median, most = np.quantile(lags, [0.5, 0.95])
    waiting = max(table.rows, key=lambda row: row[table.headings.index("skipped (%)")])
    skipped, staleness = (waiting[table.headings.index(name)] for name in ("skipped (%)", "longest staleness"))
    whose = f"{waiting[0]}, {skipped:.1f}%, up to {staleness} in a row"
    half = f"Half of the messages lag at most {median:g} updates behind and 95% at most {most:g}"
    if not skipped:
        return f"{half}; no update went without a mix."
    return f"{half}; most updates without a mix are those of {whose}."


def mixes_messages(run: Run) -> bool:
    """Return whether the run's agents mix messages of each other, or wait for some, or share one vector."""
    if len(run.parts) == 1 or not len(run.newest):
        return False
    ranks = range(len(run.parts))
    return any(len(run.mixes(rank)) or run.updates(rank)["staleness"].any() or len(pulls(run, rank)) for rank in ranks)


def pulls(run: Run, rank: int) -> np.ndarray:
    """Return the lags of an agent's pulls of the vector that all share, int64 [pulls]; none where agents mix messages."""
    lags = run.updates(rank)["age"]
    return np.empty(0, int) if len(run.mixes(rank)) else lags[np.isfinite(lags)].astype(int)


def edge_lags(group: Group) -> dict[tuple[int, int], np.ndarray]:
    """Return (peer, rank) → lags of what rank mixed or pulled, over all runs of the group; int64 [messages], updates."""
    lags: dict[tuple[int, int], list[np.ndarray]] = {}
    for run in group.runs:
        for rank in range(len(run.parts)):
            mixes = run.mixes(rank)
            for peer in np.unique(mixes["peer"]):
                mine = mixes[mixes["peer"] == peer]
                lags.setdefault((int(peer), rank), []).append(mine["update"] - mine["version"])
            if len(shared := pulls(run, rank)):
                lags.setdefault((0, rank), []).append(shared)
    return {edge: np.concatenate(lags[edge]) for edge in sorted(lags, key=lambda edge: edge[::-1])}


def histogram(lags: dict[tuple[int, int], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return columns' edges, half-way between whole lags, and the share of each edge's messages in each, [edges, columns]."""
    low, high = np.quantile(np.concatenate(list(lags.values())), [0.005, 0.995], method="nearest").astype(int)
    width = -(-(high - low + 1) // MOST_COLUMNS)
    columns = -(-(high - low + 1) // width)
    places = {edge: (np.clip(a, low, high) - low) // width for edge, a in lags.items()}
    shares = [np.bincount(place, minlength=columns) / len(place) for place in places.values()]
    return low - 0.5 + width * np.arange(columns + 1), np.array(shares)


def draw(ax, group: Group, lags: dict[tuple[int, int], np.ndarray]) -> None:
    busiest = sorted(lags, key=lambda edge: -len(lags[edge]))[:MOST_EDGES]
    shown = {edge: lags[edge] for edge in lags if edge in busiest}
    columns, shares = histogram(shown)
    extent = (columns[0], columns[-1], len(shown) - 0.5, -0.5)
    ax.imshow(shares, aspect="auto", cmap="cividis", extent=extent, interpolation="nearest", vmin=0)
    step = -(-len(shown) // TICKS)
    ax.set_yticks(range(0, len(shown), step), [f"{j}→{i}" for j, i in list(shown)[::step]])
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(False)
    more = "" if len(shown) == len(lags) else f", the {len(shown)} busiest of {len(lags)} edges"
    ax.set(
        title=f"{group.name}{more}",
        xlabel="lag (updates); positive: the peer is behind, negative: it is ahead",
        ylabel="sender→reader",
    )


def skipped(run: Run) -> tuple[int, int]:
    """Return the number of updates after which nothing was mixed, and of all updates, over all agents."""
    updates = [run.updates(rank) for rank in range(len(run.parts))]
    return sum(int((table["staleness"] > 0).sum()) for table in updates), sum(map(len, updates))


def longest_gap(run: Run, rank: int) -> float:
    """Return the longest gap of an agent, s, but for the first update of each of its metrics files."""
    updates = run.updates(rank)
    first = np.isin(updates["update"], [part.after_update + 1 for part in run.parts[rank]])
    return float(np.nanmax(updates["poke_gap"][~first], initial=0))


def tables(groups: list[Group], lags: list[dict[tuple[int, int], np.ndarray]]) -> tuple[Table, Table]:
    """Return a table for people, a line a group, and the histogram of every edge."""
    headings = ("group", "edges", "messages", "median lag", "95% under", "largest lag", "skipped (%)", "longest staleness")
    people = Table((*headings, "longest gap (s)", "torn"))
    points = Table(("env", "group", "sender", "reader", "lag", "messages"))
    for group, edges in zip(groups, lags):
        everything = np.concatenate([*edges.values(), np.zeros(0, int)])
        missed, total = np.sum([skipped(run) for run in group.runs], axis=0)
        updates = [run.updates(rank) for run in group.runs for rank in range(len(run.parts))]
        updates = [table for table in updates if len(table)]
        spread = np.quantile(everything, [0.5, 0.95, 1]) if len(everything) else [np.nan] * 3
        torn = sum(counted(table["torn"]) for table in updates)
        gap = max((longest_gap(run, rank) for run in group.runs for rank in range(len(run.parts))), default=np.nan)
        staleness = max(int(table["staleness"].max()) for table in updates)
        row = (group.name, len(edges), len(everything), *spread, 100 * missed / total, staleness, gap, torn)
        people.rows.append(row)
        for (peer, rank), mine in edges.items():
            for lag, number in zip(*np.unique(mine, return_counts=True)):
                points.rows.append((group.env, group.label, peer, rank, lag, number))
    return people, points


if __name__ == "__main__":
    main(answer, Options, __doc__)
