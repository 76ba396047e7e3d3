"""How does the score grow with steps, and with hours?

    python analysis/learning_curves.py runs/pong-gossip-...                       one run
    python analysis/learning_curves.py runs --by exchange --out curves.pdf        all runs in a folder, compared

Prints a line a run and draws the training score against the steps of all agents and against hours, a row of panels for
each game. Beside the figure it writes a CSV with the numbers drawn. Runs of one game that agree in the settings of --by
are a group, drawn as one line. Works on runs that still train. Needs h5py, numpy and matplotlib.

Definitions:

* score: the sum of real (never clipped) rewards of one whole training episode, of any agent.
* steps (all agents): the steps of the agent at the end of the update in which the episode ended, times the agents.
* line: from 0 to where the first run of the group ends, x is cut into 100 equal bins (fewer if a run has under 3,000
  episodes there, but 10 at least); a run's value in a bin is the mean score of the episodes that ended in it; the line
  is the mean of these values over the runs of the group that have episodes there, drawn at the middle of the bin.
* band: of a single run, ± 1 standard deviation of the scores of the episodes in the bin; of several runs, from the
  smallest to the largest of the runs' values.
* first, last: mean of the first and last 100 scores by time, over all agents; best: the largest mean of 100 successive
  scores. Of a run of fewer episodes, all of them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from runs import Run, RunError, find_runs, open_run

MOST_BINS, FEWEST_BINS = 100, 10
EPISODES_PER_BIN = 30  # wanted on average, at least
WINDOW = 100  # episodes behind first, best and last
AXES = {"steps": "steps (all agents)", "hours": "training time (hours)"}
FORMATS = (".png", ".pdf", ".svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, less yellow
LEGEND_WIDTH = 110  # letters, of which the line before a name takes 8
DASHES = ("-", "--", ":", "-.")  # for more groups than colours
# Settings that say where and how long, not what was learnt: runs that differ in these alone are repetitions.
INCIDENTAL = {"run_dir", "resume", "seed", "total_steps", "wall_minutes", "checkpoint_minutes", "keep_checkpoints"}


@dataclass(frozen=True)
class Scores:
    """The finished episodes of one run in the order of time; (episodes,) arrays."""

    run: Run
    steps: np.ndarray
    hours: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class Group:
    """Runs of one env that are drawn as one line."""

    env: str
    label: str
    members: list[Scores]

    @property
    def name(self) -> str:
        return self.env if self.label == self.env else f"{self.env} {self.label}"


@dataclass(frozen=True)
class Curve:
    """A line and its band; (bins,) arrays, bins without episodes left out."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    episodes: np.ndarray
    runs: np.ndarray  # how many runs have episodes in the bin


# Reading.


def load(paths: list[str]) -> list[Scores]:
    """The scores of all runs at `paths`. What is damaged or has no episodes is told on stderr, and left out.

    Raises:
        RunError: nothing is left.
    """
    found, lines = [], []
    for path in find_runs(paths):
        try:
            scores = read(open_run(path))
        except RunError as error:
            lines.append(str(error))
            continue
        if len(scores.score):
            found.append(scores)
        else:
            lines.append(f"{path}: no finished episode is there; one or more is expected")
        lines += scores.run.problems
    if not found:
        raise RunError(lines[0] + (f" (and {len(lines) - 1} more problems)" if lines[1:] else ""))
    for line in lines:
        note(line)
    return found


def read(run: Run) -> Scores:
    episodes = run.all_episodes()
    episodes = episodes[np.argsort(episodes["hours"], kind="stable")]
    return Scores(run, episodes["steps"] * run.agents, episodes["hours"], episodes["score"].astype(float))


def note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr)


# Grouping.


def settings(run: Run) -> dict[str, Any]:
    """All settings by name, the learner's dotted ("a2c.gae_lambda"), and the number of agents."""
    flat: dict[str, Any] = {"agents": run.agents}
    for name, value in run.config.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def grouped(scores: list[Scores], by: list[str]) -> list[Group]:
    """The scores of runs that agree in their env and in the settings `by`, ordered by these.

    Raises:
        RunError: there is no such setting.
    """
    known = sorted(set().union(*(settings(s.run) for s in scores)))
    for name in by:
        if name not in known:
            raise RunError(f"--by {name}: no such setting; one of {', '.join(known)} is expected")
    groups: dict[tuple, Group] = {}
    for s in scores:
        values = [(name, settings(s.run).get(name)) for name in by]
        env = s.run.config["env"]
        key = (env, *(rank(value) for _, value in values))
        label = ", ".join(describe(name, value) for name, value in values)
        groups.setdefault(key, Group(env, label, [])).members.append(s)
    return [groups[key] for key in sorted(groups)]


def rank(value: Any) -> tuple[int, Any]:
    """Sorts values of a setting: unset, then numbers, then words."""
    return (0, 0) if value is None else (2, value) if isinstance(value, str) else (1, value)


def describe(name: str, value: Any) -> str:
    # A graph from a file is its name and its whole text.
    return value.partition("\n")[0] if isinstance(value, str) else f"{name} {'unset' if value is None else value}"


def differences(group: Group) -> list[str]:
    """The settings in which runs of a group differ and that are no mere repetition."""
    members = [settings(s.run) for s in group.members]
    names = sorted(set().union(*members) - INCIDENTAL)
    return [name for name in names if len({repr(member.get(name)) for member in members}) > 1]


# Curves.


def curve(members: list[Scores], axis: str) -> Curve:
    """The line and band of a group along `axis` ("steps" or "hours"); see the top of this file."""
    end, _ = ends(members, axis)
    fewest = min(np.count_nonzero(getattr(s, axis) <= end) for s in members)
    edges = np.linspace(0, end, np.clip(fewest // EPISODES_PER_BIN, FEWEST_BINS, MOST_BINS) + 1)
    binned = [bin_scores(getattr(s, axis), s.score, edges) for s in members]
    episodes, means, deviations = (np.array(columns) for columns in zip(*binned, strict=True))  # (runs, bins) each
    some = episodes.sum(axis=0) > 0
    episodes, means, deviations = episodes[:, some], means[:, some], deviations[:, some]
    mean = np.nanmean(means, axis=0)
    if len(members) == 1:
        low, high = mean - deviations[0], mean + deviations[0]
    else:
        low, high = np.nanmin(means, axis=0), np.nanmax(means, axis=0)
    middles = (edges[:-1] + edges[1:])[some] / 2
    return Curve(middles, mean, low, high, episodes.sum(axis=0), (episodes > 0).sum(axis=0))


def ends(members: list[Scores], axis: str) -> tuple[float, float]:
    """Where the first and the last of the runs end."""
    ends = [float(getattr(s, axis).max()) for s in members]
    return min(ends), max(ends)


def bin_scores(x: np.ndarray, score: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number, mean and standard deviation of the scores in each bin, (bins,) each; NaN without scores.

    A bin holds its left edge, the last bin holds both; scores beyond the last edge are left out.
    """
    bins, inside = len(edges) - 1, x <= edges[-1]
    score, index = score[inside], np.searchsorted(edges[1:-1], x[inside], side="right")
    number = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, score, bins) / number
        variance = np.bincount(index, (score - mean[index]) ** 2, bins) / number
    return number, mean, np.sqrt(variance)


def windows(score: np.ndarray) -> tuple[float, float, float]:
    """Mean score of the first, the best and the last WINDOW episodes."""
    width = min(WINDOW, len(score))
    sums = np.cumsum(np.concatenate([[0.0], score]))
    means = (sums[width:] - sums[:-width]) / width
    return means[0], means.max(), means[-1]


# What comes out.


def table(groups: list[Group]) -> str:
    """A line a run: numbers to the right, words to the left."""
    rows = [("run", "group", "agents", "steps", "hours", "episodes", "first", "best", "last", "state")]
    for group in groups:
        for s in group.members:
            scores = (f"{mean:.1f}" for mean in windows(s.score))
            counts = (f"{s.run.agents}", f"{s.run.steps:,}", f"{s.run.hours:.3g}", f"{len(s.score):,}")
            rows.append((str(s.run.path), group.name, *counts, *scores, s.run.state))
    columns = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        words = column[0] in ("run", "group", "state")
        columns.append([cell.ljust(width) if words else cell.rjust(width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def remarks(groups: list[Group]) -> list[str]:
    """What a reader of the lines should know."""
    lines = []
    for group in groups:
        if differing := differences(group):
            lines.append(f"{group.name}: averages runs that differ in {', '.join(differing)} (--by tells them apart)")
        for axis in AXES:
            first, last = ends(group.members, axis)
            if first < 0.9 * last:
                lines.append(f"{group.name}: drawn to {first:,.4g} {axis}, where one run ends (the last: {last:,.4g})")
    return lines


def draw(groups: list[Group], curves: dict[tuple[int, str], Curve], path: Path) -> None:
    """Score against steps and hours, a row of panels an env; a label has the same colour in every row."""
    envs = sorted({group.env for group in groups})
    labels = list(dict.fromkeys(group.label for group in groups))
    with plt.rc_context({"font.size": 12, "axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(11, 5 * len(envs)), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)
        for row, env in zip(figure.subfigures(len(envs), 1, squeeze=False)[:, 0], envs, strict=True):
            lines = [(n, group) for n, group in enumerate(groups) if group.env == env]
            panels = row.subplots(1, 2, sharey=True)
            for panel, (axis, label) in zip(panels, AXES.items(), strict=True):
                for n, group in lines:
                    plot(panel, curves[n, axis], f"{group.label} ({count(group)})", labels.index(group.label))
                panel.set(xlabel=label, xlim=(0, None))
                panel.locator_params(axis="x", nbins=6)
                panel.grid(alpha=0.25)
            panels[0].xaxis.set_major_formatter(EngFormatter(sep=""))
            panels[0].set_ylabel("score")
            row.suptitle(f"{env}: mean score of training episodes; {bands([group for _, group in lines])}", fontsize=12)
            handles, names = panels[0].get_legend_handles_labels()
            columns = int(np.clip(LEGEND_WIDTH // (max(map(len, names)) + 8), 1, 3))
            row.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def plot(panel: Axes, curve: Curve, label: str, number: int) -> None:
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    marker = "." if len(curve.x) < 20 else ""  # a single point has no line
    panel.plot(curve.x, curve.mean, dash, color=colour, label=label, linewidth=1.8, marker=marker)
    panel.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)


def count(group: Group) -> str:
    return "1 run" if len(group.members) == 1 else f"{len(group.members)} runs"


def bands(groups: list[Group]) -> str:
    """What the bands of these groups are."""
    kinds = {len(group.members) > 1: None for group in groups}
    words = {False: "±1 SD of the episodes", True: "smallest to largest run"}
    if len(kinds) == 1:
        return f"band: {words[kinds.popitem()[0]]}"
    return f"band: {words[True]}, or {words[False]} of a single run"


def write_csv(groups: list[Group], curves: dict[tuple[int, str], Curve], path: Path) -> None:
    """The numbers drawn, one line a point."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env", "group", "axis", "x", "mean", "low", "high", "episodes", "runs"])
        for (number, axis), c in curves.items():
            for point in zip(c.x, c.mean, c.low, c.high, c.episodes, c.runs, strict=True):
                writer.writerow([groups[number].env, groups[number].label, axis, *(value.item() for value in point)])


# The command.


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")  # one line, no usage


def parser() -> Parser:
    parser = Parser(description="Training score against steps and hours: a table, a figure and a CSV.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, or a folder that holds runs")
    parser.add_argument(
        "--by",
        default="exchange",
        metavar="SETTING[,SETTING]",
        help="runs of one env that agree in these settings are one line: any setting of a run, like seed, topology or "
        "a2c.gae_lambda, or agents (default: exchange)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the figure, .png, .pdf or .svg; the CSV has the same name (default: learning_curve.png, in the run's "
        "directory if there is one run, else here)",
    )
    return parser


def target(out: Path | None, scores: list[Scores]) -> Path:
    """Where the figure goes.

    Raises:
        RunError: nothing can be written there.
    """
    path = out or (scores[0].run.path if len(scores) == 1 else Path()) / "learning_curve.png"
    if path.suffix.lower() not in FORMATS:
        raise RunError(f"--out {path}: a file name that ends in {', '.join(FORMATS)} is expected")
    if not path.parent.is_dir():
        raise RunError(f"--out {path}: there is no folder {path.parent}; a folder that is there is expected")
    return path


def main(arguments: list[str] | None = None) -> None:
    command = parser()
    options = command.parse_args(arguments)
    try:
        scores = load(options.runs)
        groups = grouped(scores, options.by.replace("-", "_").split(","))
        path = target(options.out, scores)
        curves = {(n, axis): curve(group.members, axis) for n, group in enumerate(groups) for axis in AXES}
        print(table(groups))
        for line in remarks(groups):
            note(line)
        draw(groups, curves, path)
        write_csv(groups, curves, path.with_suffix(".csv"))
    except (RunError, OSError) as error:
        command.error(str(error))
    print(f"\n{path}\n{path.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
