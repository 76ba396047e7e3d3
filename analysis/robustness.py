"""How many runs converge as environments are added?

    python analysis/robustness.py runs
    python analysis/robustness.py runs --threshold pong 15 breakout 200

The question of Figure 1a of Assran et al. 2019: A2C against GALA, as the number of environments (the paper's simulators)
grows. Draws the share of convergent runs against the number of environments of all agents, a panel for each game. All runs of a
game are judged at one step, that of compare.py, so that none has more time to converge than the others.

Definitions:

{common}
* convergent: the run's score at the common step reaches the game's threshold.
* threshold: --threshold; else half-way from a random policy's score to the one that A2C on 16 environments reaches in 10
  million steps (the A2C row of Stable-Baselines3's zoo in published.csv). This default is ours, the paper's was not to be had.
* interval: Wilson's 95% interval of a share; the numbers beside a point are convergent runs of all runs (left out where
  there are more than 8 groups: the table has them). Groups on one number of environments stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import numpy as np

import checkout  # noqa: F401
import common
import stats
from common import Point
from gala_mpi.run import Run, RunError
from groups import SIZE, Group, grouped, labels, mixtures
from published import PUBLISHED, RANDOM
from script import Answer, Options, Table, legend, line_style, main, marker, panels
from tables import listed

MOST_WRITTEN = 8  # groups whose counts stand beside their points
SPREAD = 1.5  # between the first and the last of groups on one number of environments
__doc__ = __doc__.format(common=common.__doc__.partition("\n\n")[2].rstrip())
A2C = next(reference for reference in PUBLISHED if reference.method == "A2C (SB3 zoo)")


@dataclass(frozen=True)
class Robustness(Options):
    """How many runs converge?"""

    threshold: dict[str, float] = field(default_factory=dict)
    """GAME SCORE ...: what a convergent run reaches, for example pong 15 breakout 200."""
    steps: Optional[float] = None
    """Judge runs at this step instead of the common one."""


@dataclass(frozen=True)
class Count:
    """Runs of one group on one number of environments."""

    group: Group
    environments: int
    convergent: int
    runs: int
    threshold: float
    at: Point

    @property
    def share(self) -> float:
        return self.convergent / self.runs

    @property
    def interval(self) -> tuple[float, float]:
        return stats.share(self.convergent, self.runs)


def answer(found: list[Run], options: Robustness) -> Answer:
    common.check_place(options.steps, "steps")
    scored = [run for run in found if len(run.scores)]
    if not scored:
        raise RunError(f"{found[0].path}: no finished episode is there; one or more is expected")
    check_thresholds(options.threshold, found)
    limits = thresholds({run.config["env"] for run in scored}, options.threshold)
    judged = [run for run in scored if run.config["env"] in limits]
    if not judged:
        raise RunError(
            f"{scored[0].config['env']}: no threshold is known; --threshold {scored[0].config['env']} SCORE is expected"
        )
    groups = grouped(judged, options.by, known=found)
    at = common.points(groups, "steps", options.steps)
    counts = [count for group in groups for count in count_runs(group, limits[group.env], at[group.env])]
    games = sorted({group.env for group in groups})
    figure, axes = panels(len(games))
    order = labels(grouped(found, options.by))  # a group has the same colour in every script
    for ax, game in zip(axes, games):
        draw(ax, [count for count in counts if count.group.env == game], order)
        ax.set(title=f"{game}: convergent at a score of {limits[game]:.4g} at {at[game]}, bars: Wilson's 95% interval")
    legend(figure, axes)
    said = "; ".join(f"{c.group.name} on {c.environments} environments: {c.convergent} of {c.runs}" for c in counts)
    notes = [f"{run.path}: no finished episode, or a game without --threshold; left out" for run in found if run not in judged]
    notes += [note for point in at.values() for note in point.notes] + mixtures(groups, apart=SIZE)
    table = Table(("group", "environments", "convergent", "runs", "share (%)", "low (%)", "high (%)", "threshold", "at"))
    for c in counts:
        shares = [100 * share for share in (c.share, *c.interval)]
        table.rows.append((c.group.name, c.environments, c.convergent, c.runs, *shares, c.threshold, str(c.at)))
    alt = f"Share of convergent runs against environments. {said}."
    return Answer(table, figure, alt, table, notes, answered(counts))


def answered(counts: list[Count]) -> str:
    """Return the answer in a sentence."""
    places = {str(c.at) for c in counts}
    place = f"by {places.pop()}" if len(places) == 1 else "by the common step of their game"
    total = f"{sum(c.convergent for c in counts)} of {sum(c.runs for c in counts)} runs converge {place}"
    share = min(c.share for c in counts)
    least = [c for c in counts if c.share == share]
    where = listed([f"{c.group.name} on {c.environments} environments: {c.convergent} of {c.runs}" for c in least])
    return f"{total}; the fewest of {where}." if len(least) < len(counts) else f"{total}."


def thresholds(games: set[str], wanted: dict[str, float]) -> dict[str, float]:
    """Return what each game's convergent runs reach; a game that nothing is known of is left out."""
    known = {game: (RANDOM.scores[game][0] + A2C.scores[game][0]) / 2 for game in games if game in A2C.scores}
    return known | {game: score for game, score in wanted.items() if game in games}


def check_thresholds(wanted: dict[str, float], found: list[Run]) -> None:
    """Raise RunError unless each game of --threshold is there, and its score is a number."""
    games = sorted({run.config["env"] for run in found})
    for game, score in wanted.items():
        if game not in games:
            raise RunError(f"--threshold {game} {score:g}: no run of {game} is there; one of {', '.join(games)} is expected")
        if not np.isfinite(score):
            raise RunError(f"--threshold {game} {score:g}: a score that is a finite number is expected")


def count_runs(group: Group, threshold: float, at: Point) -> list[Count]:
    """Return one count for each number of environments of which a run has come as far as the common step."""
    reached: dict[int, list[bool]] = {}
    for run, score in zip(at.groups[group.label], at.scores(group.label)):
        reached.setdefault(run.settings()["environments"], []).append(score >= threshold)
    return [Count(group, number, sum(some), len(some), threshold, at) for number, some in sorted(reached.items())]


def draw(ax, counts: list[Count], order: list[str]) -> None:
    present = [label for label in order if any(count.group.label == label for count in counts)]
    step = min(1.06, SPREAD ** (1 / max(1, len(present) - 1)))
    for place, label in enumerate(present):
        mine, number = [count for count in counts if count.group.label == label], order.index(label)
        x = [count.environments * step ** (place - (len(present) - 1) / 2) for count in mine]  # side by side
        share = np.array([count.share for count in mine])
        bars = np.clip(np.abs(np.array([count.interval for count in mine]).T - share), 0, 1)
        ax.errorbar(x, 100 * share, 100 * bars, marker=marker(number), capsize=3, label=label, **line_style(number))
        for middle, count in zip(x, mine) if len(present) <= MOST_WRITTEN else ():
            words = f"{count.convergent}/{count.runs}"
            ax.annotate(
                words,
                (middle, 100 * count.share),
                (5, 4),
                textcoords="offset points",
                fontsize=8,
                color=line_style(number)["color"],
            )
    ticks = sorted({count.environments for count in counts})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()
    ax.set_xlim(ticks[0] / SPREAD, ticks[-1] * SPREAD)
    ax.set(xlabel="environments (all agents)", ylabel="convergent runs (%)", ylim=(-5, 108))


if __name__ == "__main__":
    main(answer, Robustness, __doc__)
