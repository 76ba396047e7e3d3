"""The figures of docs/results.md. What they show is computed in claims.py and kept.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import stats
from curves import carried
from kept import Kept, Timed, at_hours, game
from layout import legend, line_style, marker, panels
from stats import Estimate
from tables import Table

MOMENTS = 100  # at which scores are drawn over time


def bars(ax: Axes, x: Sequence, found: Sequence[Estimate], number: int, name: str) -> None:
    """Draw the estimates of the method with this number, and their intervals."""
    ends = [[e.value - e.low for e in found], [e.high - e.value for e in found]]
    ax.errorbar(x, [e.value for e in found], yerr=ends, label=name, marker=marker(number), **line_style(number))


def band(ax: Axes, x: np.ndarray, strata: Sequence[np.ndarray], number: int, name: str) -> None:
    """Draw the mean over games of the mean over runs, and its interval. Strata: of each game [runs, points]."""
    there = np.isfinite(np.concatenate(strata)).all(axis=0)
    values = [runs[:, there] for runs in strata]
    low, high = stats.interval(values)
    style = line_style(number)
    ax.plot(x[there], stats.mean(values), label=name, **style)
    ax.fill_between(x[there], low, high, color=style["color"], alpha=0.15, linewidth=0)


def over_sizes(found: dict[tuple[str, int], Estimate], kept: Kept, says: str) -> Figure:
    """Draw a number over the number of environments, a line a method.

    Args:
        found: of methods and agents.
        says: what the number is.
    """
    figure, axes = panels(1)
    for number, method in enumerate(kept.values("method")):
        agents = [agents for agents in kept.values("agents") if (method, agents) in found]
        beside = 16 * np.array(agents) * 1.04 ** (number - 2)
        bars(axes[0], beside, [found[method, n] for n in agents], number, kept.names[method])
    axes[0].set_xscale("log", base=2)
    ticks = [16 * agents for agents in kept.values("agents")]
    axes[0].set_xticks(ticks, [str(tick) for tick in ticks])
    axes[0].set(xlabel="environments of all agents", ylabel=says)
    axes[0].set_ylim(bottom=min(0, axes[0].get_ylim()[0]))
    legend(figure, axes)
    return figure


def learning(kept: Kept) -> Figure:
    """Draw the mean curve of each method, a panel for each game and number of environments."""
    games, sizes = kept.values("env"), kept.values("agents")
    figure, axes = panels(len(games) * len(sizes), 2.4, len(sizes))
    for ax, (env, agents) in zip(axes, [(env, agents) for env in games for agents in sizes]):
        for number, method in enumerate(kept.values("method")):
            curves = [kept.curve(run) for run in kept.where(env=env, agents=agents, method=method)]
            if curves:
                scores = np.array([carried(curve[:, 2]) for curve in curves])
                band(ax, curves[0][:, 0] / 1e6, [scores], number, kept.names[method])
        ax.set_title(f"{game(env)}, {16 * agents} environments", fontsize=9)
        ax.set(xlabel="steps (million)", ylabel="score")
    legend(figure, axes)
    return figure


def over_time(races: Sequence[tuple[str, Timed]], names: dict[str, str]) -> Figure:
    """Draw scores over time, mean over games, a panel for each place and number of environments.

    Args:
        races: what the panel is called, and its runs.
        names: what methods are called.
    """
    figure, axes = panels(len(races), 2.4, 2)
    for ax, (title, games) in zip(axes, races):
        last = max(float(np.median([hours for hours, _ in runs])) for each in games for runs in each.values())
        moments = np.linspace(0, last, MOMENTS)
        for number, method in enumerate(games[0]):
            strata = [np.array([at_hours(curve, moments) for _, curve in each[method]]) for each in games]
            band(ax, 60 * moments, strata, number, names[method])
        ax.set_title(title, fontsize=9)
        ax.set(xlabel="minutes", ylabel="score (of the best run's)")
        ax.set_ylim(bottom=0)
    legend(figure, axes)
    return figure


def over_rates(table: Table) -> Figure:
    """Draw the score of each method over its learning rate."""
    figure, axes = panels(1)
    for number, name in enumerate(dict.fromkeys(row[0] for row in table.rows)):
        x, scores = zip(*((times, score) for method, times, _, score, *_ in table.rows if method == name))
        bars(axes[0], x, scores, number, name)
    of_rates(axes[0], "score (of the best run's)")
    axes[0].set_ylim(bottom=0)
    legend(figure, axes)
    return figure


def distances(found: dict[str, dict[float, np.ndarray]]) -> Figure:
    """Draw the distance of agents to their mean over the learning rate, a line a game, beside one that is linear.

    Args:
        found: of each game, by how many times the rule's rate, those of its runs.
    """
    figure, axes = panels(1)
    for number, (env, by_rate) in enumerate(found.items()):
        bars(axes[0], [*by_rate], [stats.estimate([values]) for values in by_rate.values()], number, game(env))
    rates, values = zip(*((rate, values.mean()) for by_rate in found.values() for rate, values in by_rate.items()))
    middle = np.exp(np.mean(np.log(values)) - np.mean(np.log(rates)))
    ends = np.array([min(rates), max(rates)])
    axes[0].plot(ends, middle * ends, color="#555555", linestyle=":", label="linear")
    of_rates(axes[0], "distance to the mean of the agents")
    axes[0].set_yscale("log", base=2)
    axes[0].yaxis.set_major_formatter("{x:g}")
    legend(figure, axes)
    return figure


def of_rates(ax: Axes, says: str) -> None:
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set(xlabel="learning rate (times the square-root rule's)", ylabel=says)


def ranking(table: Table) -> Figure:
    """Draw the score of each method, the highest at the top."""
    rows = sorted(table.rows, key=lambda row: row[2].value)
    figure, axes = panels(1, 0.3 * len(rows) + 1.1)
    for y, (_, _, score, *_) in enumerate(rows):
        ends = [[score.value - score.low], [score.high - score.value]]
        axes[0].errorbar(score.value, y, xerr=ends, marker="o", color=line_style(0)["color"])
    axes[0].set_yticks(range(len(rows)), [row[0] for row in rows])
    axes[0].set(xlabel="score (of the best run's)")
    axes[0].set_xlim(left=0)
    return figure
