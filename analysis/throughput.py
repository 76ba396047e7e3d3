"""How fast is training, where does an update's time go, and what does it draw?

    python analysis/throughput.py runs
    python analysis/throughput.py runs --by exchange,num_envs --out speed.pdf

Draws frames per second against ranks, the seconds of an update by section, and watts where they were measured.

Definitions:

* frames/s: emulator frames of all agents (4 a step for Atari, 1 for any other env) over training time. Of each agent the
  time from its first to its last recorded update counts, so that the start does not; the agents' rates are added. Of a
  run that was resumed on another number of ranks, only the time since then counts.
* sections: the mean wall time of an agent's update spent choosing actions, in the environments, in the backward pass, in the
  optimiser, in the exchange and recording; other: the rest, up to the next update.
* cores used: processor time of all agents over training time; 2 means two cores all the time. Cores busy: of whole nodes,
  other programs included. GPUs busy: the share of the time in which a kernel ran, mean over the nodes' GPUs.
* watts, joules a frame: of all nodes together, as their counters tell ("–": not available).
* efficiency: frames/s a rank over that of the group's runs with the fewest ranks; weak: among runs with as many
  environments a rank, strong: among runs with as many environments in all. 100% is perfect scaling.
* points: runs; lines join means over runs. Runs that another program disturbed are slower: compare runs of one quiet machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

import checkout  # noqa: F401
from gala_mpi.clock import SECTIONS
from gala_mpi.run import Run, RunError
from groups import SIZE, Group, grouped, labels, mixtures
from published import is_atari
from script import COLOURS, MARKERS, Answer, Options, Table, line_style, main, panels


@dataclass(frozen=True)
class Speed:
    """What was measured of one run; NaN: not available."""

    run: Run
    group: Group
    frames: float  # a second
    sections: np.ndarray  # s an update, those of SECTIONS and the rest
    cores_used: float
    cores_busy: float
    gpus_busy: float
    watts: float

    @property
    def ranks(self) -> int:
        return self.run.agents

    @property
    def joules(self) -> float:
        """A frame."""
        return self.watts / self.frames


def answer(found: list[Run], options: Options) -> Answer:
    timed = [run for run in found if any(len(lately(run, rank)) > 1 for rank in range(run.agents))]
    if not timed:
        raise RunError(f"{found[0].path}: fewer than two updates are there; two or more are expected")
    groups = grouped(timed, options.by)
    speeds = [measure(run, group) for group in groups for run in group.runs]
    measured = any(np.isfinite(speed.watts) for speed in speeds)
    bars = means(speeds)
    heights = [3.4, 0.38 * len(bars) + 1.6] + [3.2] * measured
    figure, axes = panels(len(heights), height=sum(heights) / len(heights), height_ratios=heights)
    against_ranks(axes[0], speeds, labels(groups), lambda speed: speed.frames, "frames/s (all agents)")
    draw_sections(axes[1], bars)
    if measured:
        against_ranks(axes[2], speeds, labels(groups), lambda speed: speed.watts, "power (W, all nodes)")
    fastest = max(speeds, key=lambda speed: speed.frames)
    alt = (
        f"Frames per second against ranks, the fastest {fastest.frames:,.0f} by {fastest.group.name} on {fastest.ranks} ranks; "
        "and bars of an update's time by section."
    )
    notes = [] if measured else ["energy: not available in these runs"]
    notes += mixtures(groups, apart=SIZE)
    notes += [f"{run.path}: fewer than two updates; left out" for run in found if run not in timed]
    return Answer(table(speeds), figure, alt, points(speeds), notes)


def measure(run: Run, group: Group) -> Speed:
    tables = [table for table in (lately(run, rank) for rank in range(run.agents)) if len(table) > 1]
    seconds = np.array([3600 * np.ptp(table["hours"]) for table in tables])
    steps = np.array([np.ptp(table["steps"]) for table in tables])
    frames_per_step = (run.settings().get("atari.frame_skip") or 4) if is_atari(run.config["env"]) else 1
    frames = frames_per_step * float(np.sum(steps / seconds))
    parts = np.array([[table[name][1:].mean(dtype=float) for name in SECTIONS] for table in tables]).mean(axis=0)
    whole = np.mean([s / (len(table) - 1) for s, table in zip(seconds, tables)])
    cores = float(np.sum([table["cpu"][1:].sum(dtype=float) / s for s, table in zip(seconds, tables)]))
    begin = min(table["hours"][0] for table in tables)
    nodes = [table[table["hours"] >= begin] for table in map(run.energy, range(run.agents))]
    nodes = [table for table in nodes if len(table)]
    busy = [weighted(nodes, name) for name in ("cores_busy", "gpus_busy")]
    return Speed(run, group, frames, np.array([*parts, max(0.0, whole - parts.sum())]), cores, *busy, power(run, nodes))


def lately(run: Run, rank: int) -> np.ndarray:
    """Return the updates since the run has had as many agents as now."""
    table = run.updates(rank)
    before = np.flatnonzero(run.agents_at(rank, table["update"]) != run.agents)
    return table[before[-1] + 1 :] if len(before) else table


def power(run: Run, nodes: list[np.ndarray]) -> float:
    """Return the power of all nodes, W, between the first and last moment of which each of them tells; NaN: not available."""
    hours, joules, _ = run.joules
    begin = max((table["hours"][0] for table in nodes), default=np.inf)
    end = min((table["hours"][-1] for table in nodes), default=-np.inf)
    if not len(hours) or begin >= end:
        return np.nan
    first, last = np.interp([begin, end], hours, joules)
    return float(last - first) / (end - begin) / 3600


def weighted(nodes: list[np.ndarray], column: str) -> float:
    """Return the mean of a column over nodes and time."""
    if not nodes:
        return np.nan
    return float(np.mean([np.average(table[column], weights=table["seconds"]) for table in nodes]))


def means(speeds: list[Speed]) -> dict[str, np.ndarray]:
    """Return the sections of the mean update for each group, number of ranks and of environments."""
    bars: dict[str, list[np.ndarray]] = {}
    for speed in speeds:
        words = f"{speed.group.name}, {speed.ranks} × {speed.run.config['num_envs']}"
        bars.setdefault(words, []).append(speed.sections)
    return {words: np.mean(sections, axis=0) for words, sections in bars.items()}


def efficiency(speed: Speed, speeds: list[Speed], same: Callable[[Speed], int]) -> float:
    """Return the efficiency in percent; NaN where nothing with fewer ranks is there."""
    alike = [s for s in speeds if s.group is speed.group and same(s) == same(speed)]
    fewest = min(s.ranks for s in alike)
    if fewest == speed.ranks:
        return np.nan
    base = np.mean([s.frames / s.ranks for s in alike if s.ranks == fewest])
    return 100 * speed.frames / speed.ranks / base


def against_ranks(ax: Axes, speeds: list[Speed], order: list[str], value: Callable[[Speed], float], label: str) -> None:
    lines: dict[tuple[str, int], list[Speed]] = {}
    for speed in speeds:
        lines.setdefault((speed.group.name, speed.run.config["num_envs"]), []).append(speed)
    for (name, environments), mine in lines.items():
        style = line_style(order.index(mine[0].group.label))
        marker = MARKERS[order.index(mine[0].group.label) % len(MARKERS)]
        ranks = sorted({speed.ranks for speed in mine})
        middle = [np.mean([value(speed) for speed in mine if speed.ranks == n]) for n in ranks]
        ax.plot(ranks, middle, **style)
        words = f"{name}, {environments} a rank"
        ax.plot([s.ranks for s in mine], [value(s) for s in mine], marker, color=style["color"], alpha=0.8, label=words)
    ticks = sorted({speed.ranks for speed in speeds})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    ax.set(
        xlabel="ranks (legend: environments a rank)",
        ylabel=label,
        ylim=(0, 1.1 * np.nanmax([value(speed) for speed in speeds])),
    )
    ax.margins(x=0.1)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=8)


def draw_sections(ax: Axes, bars: dict[str, np.ndarray]) -> None:
    left = np.zeros(len(bars))
    colours = [*COLOURS[:6], "#999999"]
    for n, name in enumerate((*SECTIONS, "other")):
        width = np.array([1000 * sections[n] for sections in bars.values()])
        ax.barh(range(len(bars)), width, left=left, color=colours[n], label=name, edgecolor="white", linewidth=0.5)
        left += width
    ax.set_yticks(range(len(bars)), bars.keys(), fontsize=9)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="mean wall time of an update (ms)", ylabel="group, ranks × environments a rank")
    ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1), ncols=7, fontsize=8, handlelength=1, columnspacing=0.8)


def table(speeds: list[Speed]) -> Table:
    headings = ("group", "ranks", "environments a rank", "frames/s", "ms an update", "exchange (%)", "cores used")
    more = ("cores busy (%)", "GPUs busy (%)", "watts", "mJ a frame", "weak (%)", "strong (%)")
    rows = Table((*headings, *more))
    for s in sorted(speeds, key=lambda s: (s.group.name, s.ranks)):
        weak = efficiency(s, speeds, lambda s: s.run.config["num_envs"])
        strong = efficiency(s, speeds, lambda s: s.run.settings()["environments"])
        whole = s.sections.sum()
        parts = (1000 * whole, 100 * s.sections[list(SECTIONS).index("exchange")] / whole, s.cores_used)
        power = (100 * s.cores_busy, 100 * s.gpus_busy, s.watts, 1000 * s.joules, weak, strong)
        rows.rows.append((s.group.name, s.ranks, s.run.config["num_envs"], s.frames, *parts, *power))
    return rows


def points(speeds: list[Speed]) -> Table:
    sections = tuple(f"{name}_s" for name in (*SECTIONS, "other"))
    rows = Table(("run", "env", "group", "ranks", "environments_a_rank", "frames_per_s", *sections, "cores_used", "watts"))
    for s in speeds:
        where = (str(s.run.path), s.group.env, s.group.label, s.ranks, s.run.config["num_envs"], s.frames)
        rows.rows.append((*where, *s.sections, s.cores_used, s.watts))
    return rows


if __name__ == "__main__":
    main(answer, Options, __doc__)
