"""How good are the final policies, beside published ones?

    python analysis/scores.py runs
    python analysis/scores.py runs --table scores.tex

Reads the evaluations that `python -m gala_mpi.evaluate RUN` has added to runs: of each checkpoint the newest one.

Definitions:

* a run's final policy: that of its newest checkpoint evaluated, whenever that was; a run with a newer one is named. It is the
  average of the agents' parameters. Independent agents are not averaged: each counts as a run, and where only their average
  was played the evaluation does not count.
* best: the mean score of the group's best final policy over its evaluation's episodes, ± the standard error over these
  episodes. Chosen by the same episodes, it is biased upwards; its n is the number of policies it was chosen from.
* mean: over the group's final policies, of their means ± the standard error over policies.
* normalised: of the mean; 0 is a random policy, 1 the human tester of Mnih et al. 2015.
* steps, environments: of training, all agents together; of a run until it ended.
* over checkpoints (where some run has several evaluated): the mean score of a run's episodes at each, a line a run, ± the
  standard error over episodes. Independent agents' episodes are pooled.
* references: published scores as they were published, their own spread, protocol and source beside them (published.csv).
  Protocols differ (sampled actions, other budgets, intermediate evaluations): they are landmarks, no competitors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import checkout  # noqa: F401
import stats
from evaluations import Evaluation, evaluations, shortened, unevaluated
from gala_mpi.run import Run, RunError
from groups import Group, grouped, labels, mixtures
from published import PUBLISHED, is_atari, normalised
from script import Answer, Options, Table, line_style, main, panels
from tables import highest, listed


@dataclass(frozen=True)
class Result:
    """What one group's runs scored: of each run its evaluations, one of each checkpoint, in order."""

    group: Group
    runs: list[list[Evaluation]]

    @property
    def final(self) -> list[Evaluation]:
        return [run[-1] for run in self.runs]

    @property
    def policies(self) -> list[np.ndarray]:
        """The scores of each final policy's episodes."""
        return [scores for evaluation in self.final for scores in evaluation.policies.values()]

    @property
    def means(self) -> np.ndarray:
        return np.concatenate([evaluation.means for evaluation in self.final])

    @property
    def best(self) -> np.ndarray:
        return self.policies[int(self.means.argmax())]


HEADINGS = ("env", "method", "best", "n", "mean", "normalised", "checkpoint", "episodes", "steps", "environments", "protocol")


def answer(found: list[Run], options: Options) -> Answer:
    of_runs, notes = {}, []
    for run in found:
        of_runs[run], more = evaluations(run)
        notes += more + shortened(of_runs[run])
        if not run.evaluations:
            notes.append(f"{run.path}: no evaluation is there (python -m gala_mpi.evaluate); left out")
    evaluated = [run for run in found if of_runs[run]]
    if not evaluated:
        raise RunError(f"{notes[0]}; one of a final policy is expected" if found[0].evaluations else missing(found[0]))
    groups = grouped(evaluated, options.by, known=found)
    results = [Result(group, [of_runs[run] for run in group.runs]) for group in groups]
    table = Table((*HEADINGS, "source"))
    for game in sorted({group.env for group in groups}):
        table.rows += [row(result) for result in results if result.group.env == game]
        for r in (reference for reference in PUBLISHED if game in reference.scores):
            trained = (None, None, r.steps, r.environments, r.protocol, r.source)
            table.rows.append((game, r.method, None, None, r.words(game), normalised(game, r.scores[game][0]), *trained))
    figure, alt = draw(results, labels(grouped(found, options.by)))
    notes += [line for result in results for final in result.final for line in unevaluated(final)]
    return Answer(table, figure, alt, points(results), [*notes, *mixtures(groups)], answered(results))


def missing(run: Run) -> str:
    return f"{run.path}: no evaluation is there; python -m gala_mpi.evaluate {run.path} makes one"


def answered(results: list[Result]) -> str:
    """Return the answer in a sentence: whose final policies score most in each game."""
    words = []
    for game in sorted({result.group.env for result in results}):
        mine = {result.group.label: float(result.means.mean()) for result in results if result.group.env == game}
        best = highest(mine)
        alike = "alike, " if len(best) > 1 else ""
        most = f", the most of {len(mine)} groups" if len(mine) > len(best) else ""
        words.append(f"{game}: the final policies of {listed(best)} score {alike}{mine[best[0]]:,.4g} on average{most}")
    return "; ".join(words) + "."


def row(result: Result) -> tuple:
    best, means, runs = result.best, result.means, result.group.runs
    ways = sorted({evaluation.arg_max for evaluation in result.final}, reverse=True)
    actions = " or ".join("most probable actions" if way else "sampled actions" for way in ways)
    protocol = f"{'up to 30 no-ops, ' if is_atari(result.group.env) else ''}{actions}, ± SE"
    numbers = (
        spread([evaluation.checkpoint for evaluation in result.final]),
        spread([len(scores) for scores in result.policies]),
        spread([run.steps for run in runs]),
        spread([run.settings()["environments"] for run in runs]),
    )
    value = normalised(result.group.env, means.mean())
    group = result.group
    return group.env, group.label, with_error(best), len(means), with_error(means), value, *numbers, protocol, "these runs"


def with_error(values: np.ndarray) -> str:
    """Return the mean ± the standard error, in words."""
    return f"{values.mean():,.5g}" + (f" ± {stats.standard_error(values):.2g}" if len(values) > 1 else "")


def spread(numbers: list[int]) -> int | str:
    """Return the number that all are, or the least and the largest in words."""
    low, high = min(numbers), max(numbers)
    return low if low == high else f"{low:,}–{high:,}"


def points(results: list[Result]) -> Table:
    """Return the score of every episode, of all checkpoints."""
    rows = Table(("env", "group", "run", "checkpoint", "final", "policy", "episode", "score"))
    for result in results:
        for evaluation in (evaluation for run in result.runs for evaluation in run):
            whose = (result.group.env, result.group.label, str(evaluation.run.path), evaluation.checkpoint)
            final = evaluation in result.final
            for policy, scores in evaluation.policies.items():
                rows.rows += [(*whose, final, policy, n, score) for n, score in enumerate(scores)]
    return rows


def draw(results: list[Result], order: list[str]) -> tuple[Figure, str]:
    """Draw final policies, and evaluations over checkpoints; `order`: of all groups, which is that of their colours."""
    games = sorted({result.group.env for result in results})
    several = [game for game in games if any(len(run) > 1 for r in results if r.group.env == game for run in r.runs)]
    lines = {game: [r for r in results if r.group.env == game] for game in games}
    names = {game: [r.group.label for r in lines[game]] + [r.method for r in PUBLISHED if game in r.scores] for game in games}
    heights = [0.3 * len(names[game]) + 1.1 for game in games] + [2.8] * len(several)
    figure, axes = panels(len(heights), height=sum(heights) / len(heights), height_ratios=heights)
    for ax, game in zip(axes, games):
        draw_final(ax, game, lines[game], names[game], order)
    for ax, game in zip(axes[len(games) :], several):
        draw_checkpoints(ax, game, lines[game], order)
    said = "; ".join(f"{r.group.name} {r.means.mean():.4g}" for r in results)
    below = " Below, mean scores over checkpoints." if several else ""
    return figure, f"Mean evaluation scores: {said}; published scores beside them.{below}"


def draw_final(ax: Axes, game: str, results: list[Result], names: list[str], order: list[str]) -> None:
    for y, result in enumerate(results):
        label = result.group.label
        look = {"color": line_style(order.index(label))["color"], "label": label}
        ax.plot(result.means, [y] * len(result.means), "o", alpha=0.5, **look)
        error = stats.standard_error(result.means) if len(result.means) > 1 else stats.standard_error(result.best)
        ax.errorbar(result.means.mean(), y, xerr=error, fmt="|", markersize=16, capsize=4, **look)
    for y, reference in enumerate((r for r in PUBLISHED if game in r.scores), start=len(results)):
        ax.plot(reference.scores[game][0], y, "x", color="#555555")
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.invert_yaxis()
    ax.set(title=f"{game}: circles: policies, bars: mean ± standard error, ×: published", xlabel="score (points)")


def draw_checkpoints(ax: Axes, game: str, results: list[Result], order: list[str]) -> None:
    """Draw a line for each run; its last point is the final policy."""
    for result in results:
        style = line_style(order.index(result.group.label))
        for n, run in enumerate(result.runs):
            means = [evaluation.episodes.mean() for evaluation in run]
            errors = [stats.standard_error(evaluation.episodes) for evaluation in run]
            at = [evaluation.checkpoint for evaluation in run]
            ax.errorbar(at, means, errors, marker="o", capsize=2, label=None if n else result.group.label, **style)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(title=f"{game}: over checkpoints, ± standard error over episodes", xlabel="checkpoint", ylabel="score (points)")
    if len(results) > 1:
        ax.legend(fontsize=8)


if __name__ == "__main__":
    main(answer, Options, __doc__)
