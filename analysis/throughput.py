"""How fast is training, where does an update's time go, and what does it draw?

    python analysis/throughput.py runs
    python analysis/throughput.py runs --by exchange,num_envs --out speed.pdf

Draws frames per second against ranks, the seconds of an update by section, and watts where they were measured.

Definitions:

* frames/s: emulator frames of all agents (a step has --atari.frame-skip of Atari, 4 by default, and 1 of any other env) over
  training time, from the first update of any agent to the last one of any: who ends early, is lost or comes late does none
  meanwhile. Each agent's first update counts as its others do, so that the start of the program does not. Agents that cannot be
  read count as the others do.
* a run that was resumed with other settings, or on another number of ranks, is several: each stretch has its own row.
* ms an update: the mean time from the end of an agent's update to that of the next; the first update of a metrics file is left
  out: the start, or a time in which the agent was lost, is in it.
* sections: the mean wall time of an agent's update spent choosing actions, in the environments, in the backward pass, in the
  optimiser, in the exchange and recording; other: the rest, up to the next update.
* cores used: processor time of all agents over the same time; 2 means two cores all the time. Cores busy: of whole nodes,
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
from gala_mpi.run.steps import from_its_beginning
from gala_mpi.run.tables import TABLES
from groups import SIZE, Group, grouped, labels, mixtures, stretches
from published import is_atari
from script import COLOURS, MARKERS, Answer, Options, Table, legend, line_style, main, panels
from tables import highest, listed


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
        return self.watts / self.frames if self.frames else np.nan


def answer(found: list[Run], options: Options) -> Answer:
    pieces = [piece for run in found for piece in stretches(run)]
    untimed = {piece: reason for piece in pieces if (reason := unmeasurable(piece))}
    timed = [piece for piece in pieces if piece not in untimed]
    if not timed:
        raise RunError(f"{found[0].path}: {untimed[pieces[0]]}; two or more, one after the other, are expected")
    groups = grouped(timed, options.by, known=found)
    speeds = [measure(run, group) for group in groups for run in group.runs]
    measured = any(np.isfinite(speed.watts) for speed in speeds)
    order = list(dict.fromkeys([*labels(grouped(found, options.by)), *labels(groups)]))  # a stretch may have its own
    bars = means(speeds)
    heights = [3.4, 0.38 * len(bars) + 1.6] + [3.2] * measured
    figure, axes = panels(len(heights), height=sum(heights) / len(heights), height_ratios=heights)
    against_ranks(axes[0], speeds, order, lambda speed: speed.frames, "frames/s (all agents)")
    draw_sections(axes[1], bars)
    legend(figure, axes[:1])
    if measured:
        against_ranks(axes[2], speeds, order, lambda speed: speed.watts, "power (W, all nodes)")
    sentence = answered(speeds)
    alt = f"Frames per second against ranks, and bars of an update's time by section. {sentence}"
    notes = [] if measured else ["energy: not available in these runs"]
    if measured:
        without = dict.fromkeys(str(speed.run.path) for speed in speeds if not np.isfinite(speed.watts))
        notes += [f"{path}: energy is not available" for path in without]
    notes += mixtures(groups, apart=SIZE)
    notes += [f"{piece.path}: {reason}; left out" for piece, reason in untimed.items()]
    return Answer(table(speeds), figure, alt, points(speeds), notes, sentence)


def answered(speeds: list[Speed]) -> str:
    """Return the answer in a sentence."""
    rates: dict[str, float] = {}
    for speed in sorted(speeds, key=lambda speed: speed.frames):
        rates[f"{speed.group.name} on {speed.ranks} rank{'s' * (speed.ranks > 1)}"] = speed.frames
    best = highest(rates)
    return f"The fastest {'are' if len(best) > 1 else 'is'} {listed(best)}, with {rates[best[0]]:,.0f} frames/s."


def updates(run: Run) -> list[np.ndarray]:
    """Return the updates of every readable agent that did some."""
    return [rows for rows in map(run.updates, run.readable) if len(rows)]


def took(run: Run, rank: int) -> np.ndarray:
    """Return the seconds that an agent's updates took, but for the first of each metrics file, float64 [updates]: before such
    a one the agent may have been lost, or the program stopped."""
    rows = run.updates(rank)
    first = np.isin(rows["update"], [part.after_update + 1 for part in run.parts[rank]])
    return 3600 * np.diff(rows["hours"])[~first[1:]]


def unmeasurable(run: Run) -> str:
    """Return why a run's rates cannot be told, in words; empty: they can."""
    tables = updates(run)
    if not any(len(took(run, rank)) for rank in run.readable):
        return "fewer than two updates are there"
    rising = all((np.diff(rows["hours"]) >= 0).all() for rows in tables)
    return "" if rising and span(tables) > 0 else "its updates do not follow each other in time"


def span(tables: list[np.ndarray]) -> float:
    """Return the seconds from where the first agent began to where the last one ended."""
    began = min(from_its_beginning(rows)["hours"][0] for rows in tables)
    return 3600 * float(max(rows["hours"][-1] for rows in tables) - began)


def measure(run: Run, group: Group) -> Speed:
    tables = updates(run)
    seconds = span(tables)
    frames_per_step = (run.settings().get("atari.frame_skip") or 4) if is_atari(run.config["env"]) else 1
    missing = run.agents / len(run.readable)
    steps = sum(int(np.ptp(from_its_beginning(rows)["steps"])) for rows in tables)
    cpu = sum(len(rows) * rows["cpu"][-max(1, len(rows) - 1) :].mean(dtype=float) for rows in tables)
    several = [rows for rows in tables if len(rows) > 1]
    parts = np.array([[rows[name][1:].mean(dtype=float) for name in SECTIONS] for rows in several]).mean(axis=0)
    whole = float(np.mean([each.mean() for rank in run.readable if len(each := took(run, rank))]))
    sections = np.array([*parts, max(0.0, whole - parts.sum())])
    busy = [weighted(list(run.energy_by_rank().values()), name) for name in ("cores_busy", "gpus_busy")]
    frames = missing * frames_per_step * steps / seconds
    return Speed(run, group, frames, sections, missing * cpu / seconds, *busy, run.watts)


def weighted(nodes: list[np.ndarray], column: str) -> float:
    """Return the mean of a column over nodes and time; NaN: not available."""
    rows = np.concatenate(nodes) if nodes else np.zeros(0, TABLES["energy"])
    rows = rows[np.isfinite(rows[column]) & (rows["seconds"] > 0)]
    return float(np.average(rows[column], weights=rows["seconds"])) if len(rows) else np.nan


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
    """Draw a line for each group (its colour) and game and number of environments a rank (its marker)."""
    lines: dict[tuple[str, int], list[Speed]] = {}
    for speed in speeds:
        lines.setdefault((speed.group.name, speed.run.config["num_envs"]), []).append(speed)
    kinds = sorted({(mine[0].group.env, environments) for (_, environments), mine in lines.items()})
    for (name, environments), mine in lines.items():
        style = line_style(order.index(mine[0].group.label))
        kind = kinds.index((mine[0].group.env, environments))
        symbol = MARKERS[(kind + order.index(mine[0].group.label) // len(COLOURS)) % len(MARKERS)]
        ranks = sorted({speed.ranks for speed in mine})
        middle = [np.mean([value(speed) for speed in mine if speed.ranks == n]) for n in ranks]
        ax.plot(ranks, middle, **style)
        words = f"{name}, {environments} a rank"
        ax.plot([s.ranks for s in mine], [value(s) for s in mine], symbol, color=style["color"], alpha=0.8, label=words)
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
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=7, fontsize=8, handlelength=1, columnspacing=0.8)


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
