"""How does the score grow with steps, with hours, and with energy?

    python analysis/learning_curves.py runs/pong-gossip-...                       one run
    python analysis/learning_curves.py runs --by exchange --out curves.pdf        all runs in a folder, compared
    python analysis/learning_curves.py runs --statistic iqm                       over games and seeds
    python analysis/learning_curves.py runs --axis steps --smooth 5 --log x --ylim -21 21

Draws the training score against the steps of all agents, hours, and kilojoules where energy was measured. Thick: a group; thin:
each of its runs.

Definitions:

* score: the sum of real (never clipped) rewards of one whole training episode, of any agent. Normalised: 0 is a random
  policy, 1 the human tester of Mnih et al. 2015.
* steps (all agents): the sum over agents of the steps that each had done at the end of the update in which the episode ended.
* energy: of all nodes, as their counters tell; whose counters stands on the axis. Drawn where all runs have the same.
* line: from 0 to where the last run of the group ends, x is cut into 100 equal bins (fewer if a run would have under 30
  episodes a bin, but 10 at least); a run's value in a bin is the mean score of the episodes that ended in it, and that of the
  bin before where none did; drawn at the middle of the bin. A run goes from the bin of its first episode to that of its last
  one (to the end, if that is the last bin but one). The line is the mean of these values over runs (--statistic mean, a panel
  for each game) or the interquartile mean of the normalised values over games × seeds (--statistic iqm; Agarwal et al.,
  NeurIPS 2021), from the first bin in which every run that still goes has a value to the last one in which every game has.
* n: where a run ends, the line goes on with those that are left, and says how many these are. It may jump there.
* band: of several runs, the 95% percentile bootstrap interval of the line, runs resampled within each game (2,000 times;
  with few runs it is too narrow, with one run of a game there is none); of a group of a single run, ± 1 standard deviation of
  the scores of the episodes in the bin.
* --smooth K: each run's values are the means over K bins around each, of those that it has. Bands of single runs are not.
* first, last: mean of the first and last 100 scores by time, over all agents; best: the largest mean of 100 successive
  scores. Of a run of fewer episodes, all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

import checkout  # noqa: F401
import stats
from curves import MOST_BINS, Curve, Line, curve
from gala_mpi.run import Run, RunError
from groups import Group, grouped, labels, mixtures
from published import GAMES
from script import Answer, Options, Table, legend, line_style, main, panels
from tables import highest, listed

LATE = 0.1  # of a curve: where it is remarked that it begins
WINDOW = 100  # episodes behind first, best and last
AXES = {"steps": "steps (all agents)", "hours": "training time (hours)", "kilojoules": "energy (kJ, {})"}


@dataclass(frozen=True)
class Curves(Options):
    """How does the score grow?"""

    statistic: Literal["mean", "iqm"] = "mean"
    """mean: over runs, a row of panels for each game; iqm: interquartile mean of normalised scores over games × seeds."""
    axis: Optional[Literal["steps", "hours", "kilojoules"]] = None
    """The only axis along which curves are drawn. None: all that were measured."""
    smooth: int = 1
    """Draw means over so many bins; 1: none."""
    xlim: Optional[tuple[float, float]] = None
    """The ends of the axis of --axis."""
    ylim: Optional[tuple[float, float]] = None
    """The ends of the axis of scores."""
    log: Literal["none", "x", "y", "xy"] = "none"
    """Axes that are logarithmic."""


def answer(found: list[Run], options: Curves) -> Answer:
    check(options)
    some = [run for run in found if len(run.scores)]
    notes = [f"{run.path}: no finished episode is there; it is left out" for run in found if run not in some]
    if not some:
        raise RunError(f"{found[0].path}: no finished episode is there; one or more is expected")
    groups = grouped(some, options.by, known=found)
    lines, more = by_game(groups) if options.statistic == "mean" else over_games(groups)
    axes = measured(some, options.axis)
    curves = {(n, axis): curve(line, axis, options.smooth) for n, line in enumerate(lines) for axis in axes}
    statistic = {"mean": "mean", "iqm": "interquartile mean"}[options.statistic]
    figure = draw(lines, curves, axes, options, labels(grouped(found, options.by)))
    smoothed = f", smoothed over {options.smooth} bins" if options.smooth > 1 else ""
    figure.suptitle(f"{statistic} of training scores{smoothed}\n{bands(lines)}", fontsize=10)
    first = next(iter(axes))
    drawn = [(line, curves[n, first].value) for n, line in enumerate(lines)]
    ends = [f"{line.group.label} ends at {value[-1]:.3g} ({line.panel})" for line, value in drawn if len(value)]
    alt = f"Lines of the {statistic} training score against {', '.join(axes)}: {'; '.join(ends)}."
    notes += [*mixtures(groups), *more, *unmeasured(some), *short(lines, curves)]
    return Answer(table(groups), figure, alt, points(lines, curves), notes, answered(lines, curves, first))


def answered(lines: list[Line], curves: dict[tuple[int, str], Curve], axis: str) -> str:
    """Return the answer in a sentence: of each panel which line is highest where the first one ends, of those that have begun
    there, or how far its only line rises."""
    words = []
    for panel in dict.fromkeys(line.panel for line in lines):
        drawn = {line.group.label: curves[n, axis] for n, line in enumerate(lines) if line.panel == panel}
        drawn = {label: c for label, c in drawn.items() if len(c.x)}
        if not drawn:
            continue
        end = min(c.x[-1] for c in drawn.values())
        values = {label: np.interp(end, c.x, c.value) for label, c in drawn.items() if c.x[0] <= end}
        best, *others = highest(values)
        where = f"{end:,.0f} steps" if axis == "steps" else f"{end:.4g} {axis}"
        what = f"the score of {best} is the highest of {len(values)} at {where}, {values[best]:.4g}"
        if others:
            most = f", the most of {len(values)}" if len(values) > 1 + len(others) else ""
            what = f"{listed([best, *others])} score alike at {where}, {values[best]:.4g}{most}"
        elif len(values) == 1:
            what = f"the score of {best} goes from {drawn[best].value[0]:.4g} to {values[best]:.4g}"
        words.append(f"{panel}: {what}")
    return "; ".join(words) + "." if words else ""


def check(options: Curves) -> None:
    """Raise RunError where options make no sense."""
    if not 1 <= options.smooth <= MOST_BINS:
        raise RunError(f"--smooth {options.smooth}: a number of bins from 1 to {MOST_BINS} is expected")
    if options.xlim and not options.axis:
        raise RunError("--xlim: --axis is expected with it, which says of which axis the ends are")
    for name, logarithmic in (("xlim", "x" in options.log), ("ylim", "y" in options.log)):
        low, high = getattr(options, name) or (1, 2)
        if not (np.isfinite([low, high]).all() and low < high and (low > 0 or not logarithmic)):
            above = ", above 0 on a logarithmic axis," if logarithmic else ""
            raise RunError(f"--{name} {low:g} {high:g}: two finite numbers{above} are expected, the smaller one first")


def measured(found: list[Run], wanted: str | None) -> dict[str, str]:
    """Return the axes to draw along, with their names. Raises RunError where the wanted one was not measured."""
    sources = {run.joules[2] for run in found}
    axes = {axis: name for axis, name in AXES.items() if axis != "kilojoules"}
    if len(sources) == 1 and "" not in sources:
        axes["kilojoules"] = AXES["kilojoules"].format(*sources)
    if wanted and wanted not in axes:
        raise RunError(
            f"--axis {wanted}: energy was not measured in all runs, or not alike; one of {', '.join(axes)} is expected"
        )
    return {wanted: axes[wanted]} if wanted else axes


def unmeasured(found: list[Run]) -> list[str]:
    """Say why there is no axis of energy, if some runs have measured it."""
    sources: dict[str, list[str]] = {}
    for run in found:
        sources.setdefault(run.joules[2] or "nothing", []).append(str(run.path))
    if len(sources) == 1:
        return []
    said = "; ".join(f"{source} in {', '.join(paths[:3])}{', ...' * (len(paths) > 3)}" for source, paths in sources.items())
    return [f"energy is not drawn: not all runs have measured the same ({said})"]


def by_game(groups: list[Group]) -> tuple[list[Line], list[str]]:
    return [Line(group.env, group, [group.runs], False) for group in groups], []


def over_games(groups: list[Group]) -> tuple[list[Line], list[str]]:
    """Return one line a label, over all games whose scores can be normalised, and notes."""
    known = [group for group in groups if group.env in GAMES]
    if not known:
        raise RunError(f"--statistic iqm: no run of {', '.join(GAMES)} is there; other games have no normalised score")
    games = sorted({group.env for group in known})
    lines, notes = [], [f"{group.name}: has no normalised score; it is left out" for group in groups if group not in known]
    for label in labels(known):
        mine = [group for group in known if group.label == label]
        runs = [run for group in mine for run in group.runs]
        lines.append(Line(", ".join(games), Group("all games", label, runs), [group.runs for group in mine], True))
        if absent := sorted(set(games) - {group.env for group in mine}):
            notes.append(f"{label}: has no runs of {', '.join(absent)}, which others have")
    return lines, notes


def windows(score: np.ndarray) -> tuple[float, float, float]:
    """Return the mean score of the first, the best and the last WINDOW episodes."""
    means = stats.moving_mean(score, WINDOW)
    return means[0], means.max(), means[-1]


def table(groups: list[Group]) -> Table:
    """Return a table with a line a run."""
    rows = Table(("run", "group", "agents", "steps", "hours", "episodes", "first", "best", "last", "state"))
    for group in groups:
        for run in group.runs:
            first, best, last = windows(run.scores["score"])
            counts = (run.agents, run.steps, run.hours, len(run.scores))
            rows.rows.append((str(run.path), group.name, *counts, first, best, last, run.state))
    return rows


def short(lines: list[Line], curves: dict[tuple[int, str], Curve]) -> list[str]:
    """Return a note for each line that goes on without some of its runs."""
    notes = []
    for (n, axis), c in curves.items():
        name, every = f"{lines[n].group.name}, {axis}", len(c.each)
        if not len(c.runs):
            notes.append(f"{name}: the runs of one game end before those of another begin; no line is drawn")
            continue
        drops = [(x, here) for x, here, before in zip(c.x, c.runs, [every, *c.runs]) if here != before]
        if drops:
            said = ", ".join(f"n = {here} from {on_axis(x)} on" for x, here in drops)
            notes.append(f"{name}: the line goes on where some of its {every} runs have ended: {said}")
        if c.x[0] > LATE * c.end:
            notes.append(f"{name}: the line begins at {on_axis(c.x[0])}, where every run has ended an episode")
        if c.until < c.end:
            until, end = on_axis(c.until), on_axis(c.end)
            notes.append(f"{name}: the line ends at {until}, where a game has no run left; others go on to {end}")
    return notes


def on_axis(x: float) -> str:
    """A place on an axis, to four digits: 23,370 steps, 0.01129 hours."""
    rounded = float(f"{x:.4g}")
    return f"{rounded:,.0f}" if rounded >= 1000 else f"{rounded:g}"


def draw(
    lines: list[Line], curves: dict[tuple[int, str], Curve], axes: dict[str, str], options: Curves, order: list[str]
) -> Figure:
    names = list(dict.fromkeys(line.panel for line in lines))
    figure, all_panels = panels(len(names) * len(axes), columns=1 if len(names) < 3 else len(axes))
    for (name, axis), ax in zip([(name, axis) for name in names for axis in axes], all_panels):
        for n, line in enumerate(lines):
            if line.panel == name:
                plot(ax, curves[n, axis], counted(line.group.label, lines), order.index(line.group.label))
        ylabel = "normalised score (0 random, 1 human)" if options.statistic == "iqm" else "score (points)"
        ax.set(title=name, xlabel=axes[axis], ylabel=ylabel, xlim=(0, None))
        scaled(ax, options)
        if axis == "steps":
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    legend(figure, all_panels)
    return figure


def scaled(ax: Axes, options: Curves) -> None:
    """Set limits and scales of the axes. Raises RunError where scores have no logarithm."""
    if "x" in options.log:
        ax.set_xscale("log")
        ax.autoscale(axis="x")
    if "y" in options.log:
        lowest = min(np.nanmin(line.get_ydata()) for line in ax.lines)
        if lowest <= 0:
            raise RunError(f"--log {options.log}: scores above 0 are expected, and {lowest:.4g} is drawn")
        ax.set_yscale("log")
    ax.set(xlim=options.xlim or ax.get_xlim(), ylim=options.ylim or ax.get_ylim())


def counted(label: str, lines: list[Line]) -> str:
    """Return a label with its number of runs, which may not be the same in all games."""
    numbers = [len(line.group.runs) for line in lines if line.group.label == label]
    low, high = min(numbers), max(numbers)
    return f"{label} ({low if low == high else f'{low}–{high}'} run{'s' * (high > 1)})"


def plot(ax: Axes, curve: Curve, label: str, number: int) -> None:
    style = line_style(number)
    dots = "." if len(curve.x) < 20 else ""  # a single point has no line
    if len(curve.each) > 1:
        ax.plot(curve.every, curve.each.T, linewidth=0.6, alpha=0.5, **style)
    ax.plot(curve.x, curve.value, label=label, linewidth=1.8, marker=dots, **style)
    ax.fill_between(curve.x, curve.low, curve.high, color=style["color"], alpha=0.18, linewidth=0)
    for place in np.flatnonzero(np.diff(curve.runs)):
        at = (curve.x[place + 1], curve.value[place + 1])
        ax.plot(*at, marker="|", markersize=9, color=style["color"])
        ax.annotate(f"n = {curve.runs[place + 1]}", at, (3, 9), textcoords="offset points", fontsize=8, color=style["color"])


def bands(lines: list[Line]) -> str:
    """Say what the bands of these lines are."""
    several = {len(line.group.runs) > 1 for line in lines}
    words = {False: "±1 SD of the episodes", True: "95% bootstrap interval over runs"}
    if len(several) == 1:
        return f"band: {words[several.pop()]}"
    return f"band: {words[True]}, or {words[False]} of a single run"


def points(lines: list[Line], curves: dict[tuple[int, str], Curve]) -> Table:
    """Return the points of all lines, those of groups without `run`."""
    rows = Table(("env", "group", "axis", "x", "value", "low", "high", "episodes", "runs", "run"))
    for (n, axis), c in curves.items():
        where, runs = (lines[n].group.env, lines[n].group.label, axis), [run for game in lines[n].games for run in game]
        rows.rows += [(*where, *point, None) for point in zip(c.x, c.value, c.low, c.high, c.episodes, c.runs)]
        for run, values in zip(runs, c.each) if len(runs) > 1 else ():
            mine = [(x, value) for x, value in zip(c.every, values) if np.isfinite(value)]
            rows.rows += [(*where, x, value, None, None, None, 1, str(run.path)) for x, value in mine]
    return rows


if __name__ == "__main__":
    main(answer, Curves, __doc__)
