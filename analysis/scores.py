"""How good are the final policies, beside published ones?

    python analysis/scores.py runs
    python analysis/scores.py runs --table scores.tex

Reads the evaluations that `python -m gala_mpi.evaluate RUN` has added to runs; only the newest of each run counts.

Definitions:

* a run's final policy: the average of its agents' parameters. Independent agents are not averaged: each counts as a run.
* best: the mean score of the group's best final policy over its evaluation's episodes, ± the standard error over these
  episodes. Chosen by the same episodes, it is biased upwards; its n is the number of policies it was chosen from.
* mean: over the group's final policies, of their means ± the standard error over policies.
* normalised: of the mean; 0 is a random policy, 1 the human tester of Mnih et al. 2015.
* references: published scores as they were published, their own spread, protocol and source beside them (published.csv).
  Protocols differ (sampled actions, other budgets, intermediate evaluations): they are landmarks, no competitors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import checkout  # noqa: F401
import stats
from gala_mpi.run import Run, RunError
from groups import Group, grouped, labels, mixtures
from published import PUBLISHED, normalised
from script import Answer, Options, Table, line_style, main, panels

MEAN = -1  # the averaged policy's number


@dataclass(frozen=True)
class Result:
    """Final policies of one group: the scores of each one's episodes."""

    group: Group
    episodes: list[np.ndarray]

    @property
    def means(self) -> np.ndarray:
        return np.array([scores.mean() for scores in self.episodes])

    @property
    def best(self) -> np.ndarray:
        return self.episodes[int(self.means.argmax())]


def answer(found: list[Run], options: Options) -> Answer:
    evaluated = [run for run in found if run.evaluations]
    if not evaluated:
        raise RunError(f"{found[0].path}: no evaluation is there; python -m gala_mpi.evaluate {found[0].path} makes one")
    groups = grouped(evaluated, options.by)
    results = [Result(group, [scores for run in group.runs for scores in final_policies(run)]) for group in groups]
    table = Table(("env", "method", "best", "n", "mean", "normalised", "episodes", "protocol", "source"))
    for game in sorted({group.env for group in groups}):
        for result in (result for result in results if result.group.env == game):
            table.rows.append(row(result))
        for r in (reference for reference in PUBLISHED if game in reference.scores):
            score, spread = r.scores[game]
            words = f"{score:,.5g}" + (f" ± {spread}" if spread else "")
            table.rows.append((game, r.method, None, None, words, normalised(game, score), None, r.protocol, r.source))
    figure, alt = draw(results)
    points = Table(("env", "group", "policy", "episode", "score"))
    for result in results:
        for policy, scores in enumerate(result.episodes):
            points.rows += [(result.group.env, result.group.label, policy, n, score) for n, score in enumerate(scores)]
    notes = [
        f"{run.path}: no evaluation is there (python -m gala_mpi.evaluate); left out" for run in found if run not in evaluated
    ]
    notes += mixtures(groups)
    return Answer(table, figure, alt, points, notes, answered(results))


def answered(results: list[Result]) -> str:
    """Return the answer in a sentence: whose final policies score most in each game."""
    words = []
    for game in sorted({result.group.env for result in results}):
        mine = {result.group.label: float(result.means.mean()) for result in results if result.group.env == game}
        best = max(mine, key=lambda label: mine[label])
        most = f", the most of {len(mine)} groups" if len(mine) > 1 else ""
        words.append(f"{game}: the final policies of {best} score {mine[best]:,.4g} on average{most}")
    return "; ".join(words) + "."


def final_policies(run: Run) -> list[np.ndarray]:
    """Return the scores of each final policy's episodes, from the newest evaluation."""
    episodes, _ = run.evaluations[-1]
    policies = np.unique(episodes["policy"])
    own = policies[policies != MEAN]
    wanted = own if run.config["exchange"] == "none" and len(own) else [MEAN]
    return [episodes["score"][episodes["policy"] == policy].astype(float) for policy in wanted]


def row(result: Result) -> tuple:
    best, means = result.best, result.means
    ways = {bool(run.evaluations[-1][1]["arg_max"]): run for run in result.group.runs}
    actions = " or ".join("most probable actions" if way else "sampled actions" for way in sorted(ways, reverse=True))
    numbers = sorted({len(scores) for scores in result.episodes})
    episodes = numbers[0] if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"
    protocol = f"up to 30 no-ops, {actions}, ± SE"
    mean = f"{means.mean():,.5g}" + (f" ± {stats.standard_error(means):.2g}" if len(means) > 1 else "")
    best_words = f"{best.mean():,.5g} ± {stats.standard_error(best):.2g}"
    value = normalised(result.group.env, means.mean())
    return result.group.env, result.group.label, best_words, len(means), mean, value, episodes, protocol, "these runs"


def draw(results: list[Result]):
    games = sorted({result.group.env for result in results})
    figure, axes = panels(len(games), height=2.8)
    order = labels([result.group for result in results])
    for ax, game in zip(axes, games):
        mine = [result for result in results if result.group.env == game]
        references = [reference for reference in PUBLISHED if game in reference.scores]
        for y, result in enumerate(mine):
            colour = line_style(order.index(result.group.label))["color"]
            ax.plot(result.means, [y] * len(result.means), "o", color=colour, alpha=0.5)
            error = stats.standard_error(result.means) if len(result.means) > 1 else stats.standard_error(result.best)
            ax.errorbar(result.means.mean(), y, xerr=error, fmt="|", markersize=16, capsize=4, color=colour)
        for y, reference in enumerate(references, start=len(mine)):
            ax.plot(reference.scores[game][0], y, "x", color="#555555")
        names = [result.group.label for result in mine] + [reference.method for reference in references]
        ax.set_yticks(range(len(names)), names, fontsize=9)
        ax.invert_yaxis()
        ax.set(title=f"{game}: circles: policies, bars: mean ± standard error, ×: published", xlabel="score (points)")
    figure.set_size_inches(7, sum(0.3 * len(ax.get_yticks()) + 1.1 for ax in axes))
    said = "; ".join(f"{r.group.name} {r.means.mean():.4g}" for r in results)
    return figure, f"Mean evaluation scores: {said}; published scores beside them."


if __name__ == "__main__":
    main(answer, Options, __doc__)
