"""What the paper claims, and what the runs in results/ say of it: numbers, figures and a verdict for each claim.

A run of results/ is a row of numbers (digest.py has their definitions) and twenty points of its curve. Runs are compared within
a game and a number of environments, at equal steps. Scores of several games are divided by that of the best run of the game, by
whatever method. Intervals are of 95%, over runs (seeds) within games, by the stratified bootstrap; of shares Wilson's.

A claim that one is better than the other is *shown* where the whole interval of the difference is above 0, *opposite* where it
is below, and *not shown* else.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import checkout  # noqa: F401
import stats
from consensus import ALARM
from curves import carried
from layout import legend, line_style, marker, panels
from stats import Estimate
from tables import Table, show

SHOWN, SOME, NOT_SHOWN, OPPOSITE, OPEN = "shown", "shown for some", "not shown", "opposite", "not tried"
GALA, BASE = "ring", "a2c"  # the claims are of these
RANKED = "score", "area", "played"
ENOUGH = 0.5  # of the best run's score: a run that reaches it converges
TIMES = {"half": 0.5, "twice": 2.0, "fourfold": 4.0, "eightfold": 8.0}  # the learning rate, by the ends of methods' names

Row = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """The runs of some parts of results/.

    Attributes:
        runs: a row each; all but words are floats.
        curves: of each run, by its environment, method, agents and seed: [20, 3], steps, hours and score.
        names: what methods are called.
    """

    runs: list[Row]
    curves: dict[tuple, np.ndarray]
    names: dict[str, str]

    def where(self, **wanted: Any) -> list[Row]:
        return [run for run in self.runs if all(run[name] == value for name, value in wanted.items())]

    def values(self, name: str) -> list:
        """Return the different values of a column, in order; methods in that of `names`."""
        found = {run[name] for run in self.runs}
        return [key for key in self.names if key in found] if name == "method" else sorted(found)

    @property
    def hours(self) -> float:
        return sum(run["hours"] for run in self.runs)


@dataclass(frozen=True)
class Finding:
    """What the runs say of one claim.

    Attributes:
        alt: of the figure.
    """

    verdict: str
    sentence: str
    tables: list[Table] = field(default_factory=list)
    figure: Figure | None = None
    alt: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim.

    Attributes:
        name: of its chapter and figure.
        says: what the paper says, or what is asked.
        judge: what the runs of its parts say of it.
        parts: of results/; of the last one there must be runs.
    """

    name: str
    says: str
    judge: Callable[..., Finding]
    parts: tuple[str, ...]

    def finding(self, *kept: Kept) -> Finding:
        return self.judge(*kept) if kept[-1].runs else Finding(OPEN, "No runs yet.")


def load(folder: Path, parts: Iterable[str], names: dict[str, str]) -> Kept:
    """Read the runs of some parts; none where there are none."""
    runs, curves = [], {}
    for part in parts:
        runs += [typed(row) for row in rows_of(folder / part / "runs.csv")]
        for row in map(typed, rows_of(folder / part / "curves.csv")):
            curves.setdefault(key(row), []).append((row["steps"], row["hours"], row["score"]))
    return Kept(runs, {name: np.array(points) for name, points in curves.items()}, names)


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def typed(row: dict[str, str]) -> Row:
    whole = {"agents", "seed"}
    return {name: int(value) if name in whole else _number(value) for name, value in row.items()}


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def key(row: Row) -> tuple:
    return row["env"], row["method"], row["agents"], row["seed"]


def verdict(difference: Estimate) -> str:
    """Return what a difference says of the claim that it is above 0; NaN: one side has no runs."""
    if np.isnan(difference.value):
        return OPEN
    return SHOWN if difference.low > 0 else OPPOSITE if difference.high < 0 else NOT_SHOWN


def together(differences: Iterable[Estimate]) -> str:
    """Return the verdict where there are several differences: one for each number of environments."""
    verdicts = {verdict(difference) for difference in differences} - {OPEN}
    if not verdicts:
        return OPEN
    return verdicts.pop() if len(verdicts) == 1 else SOME if SHOWN in verdicts else NOT_SHOWN


def cost(*some: Kept) -> str:
    runs = [run for kept in some for run in kept.runs]
    seeds = len({run["seed"] for run in runs})
    hours = sum(kept.hours for kept in some)
    return f"{counted(len(runs), 'run')}, up to {counted(seeds, 'seed')}, {hours:.1f} h" if runs else "–"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def best(kept: Kept, value: str = "score") -> dict[str, float]:
    """Return the score of each game's best run, or another value of it."""
    return {env: max(finite(kept.where(env=env), value), default=np.nan) for env in kept.values("env")}


def finite(runs: list[Row], name: str) -> list[float]:
    return [run[name] for run in runs if np.isfinite(run[name])]


def strata(kept: Kept, agents: int, methods: Iterable[str], value: str = "score") -> list[list[np.ndarray]]:
    """Return of each method the runs' values, an array a game, of the games that all of them have runs of.

    Scores are divided by that of the game's best run: "score" and "area" by its score in training, "played" by that played.
    """
    by = {"score": "score", "area": "score", "played": "played"}.get(value)
    scale = best(kept, by) if by else dict.fromkeys(kept.values("env"), 1.0)
    found: list[list[np.ndarray]] = [[] for _ in methods]
    for env in kept.values("env"):
        each = [np.array(finite(kept.where(env=env, method=method, agents=agents), value)) for method in methods]
        if all(len(values) for values in each):
            for mine, values in zip(found, each):
                mine.append(values / scale[env])
    return found


def compared(ours: list[np.ndarray], theirs: list[np.ndarray]) -> Estimate:
    return stats.difference(ours, theirs) if ours else Estimate(np.nan)


# The claims.


def convergent(kept: Kept) -> Finding:
    """(a) Do runs converge as environments are added?"""
    limits = {env: ENOUGH * value for env, value in best(kept).items()}
    table = Table(("environments", "method", "convergent", "of", "share"))
    shares: dict[tuple[str, int], Estimate] = {}
    for agents in kept.values("agents"):
        for method in kept.values("method"):
            runs = [run for run in kept.where(agents=agents, method=method) if np.isfinite(run["score"])]
            if runs:
                good = sum(run["score"] >= limits[run["env"]] for run in runs)
                shares[method, agents] = Estimate(good / len(runs), *stats.share(good, len(runs)))
                table.rows.append((16 * agents, kept.names[method], good, len(runs), shares[method, agents]))
    most = max(kept.values("agents"))
    d = compared(*([(values >= ENOUGH).astype(float) for values in side] for side in strata(kept, most, (GALA, BASE))))
    sentence = (
        f"With {16 * most} environments {percent(shares.get((GALA, most)))} of GALA's runs converge and "
        f"{percent(shares.get((BASE, most)))} of A2C's; the difference is {show(d)}."
    )
    figure, axes = panels(1)
    for number, method in enumerate(kept.values("method")):
        x = [agents for agents in kept.values("agents") if (method, agents) in shares]
        y = [shares[method, agents] for agents in x]
        bars = [[e.value - e.low for e in y], [e.high - e.value for e in y]]
        at = 16 * np.array(x) * 1.04 ** (number - 2)  # beside each other
        axes[0].errorbar(
            at, [e.value for e in y], yerr=bars, label=kept.names[method], marker=marker(number), **line_style(number)
        )
    axes[0].set_xscale("log", base=2)
    ticks = [16 * agents for agents in kept.values("agents")]
    axes[0].set_xticks(ticks, [str(tick) for tick in ticks])
    axes[0].set(xlabel="environments of all agents", ylabel="share of runs that converge", ylim=(-0.03, 1.03))
    legend(figure, axes)
    alt = f"Share of convergent runs over the number of environments, a line a method. {sentence}"
    return Finding(verdict(d), sentence, [table, thresholds(limits)], figure, alt)


def percent(share: Estimate | None) -> str:
    return "–" if share is None else f"{100 * share.value:.0f}% [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def thresholds(limits: dict[str, float]) -> Table:
    return Table(("game", "score of a convergent run"), [(game(env), limit) for env, limit in limits.items()])


def game(env: str) -> str:
    return env.removeprefix("MinAtar/").removesuffix("-v1")


def equal_steps(kept: Kept) -> Finding:
    """(b) Score at equal steps: in training, and of the final policies."""
    training, told = ahead(kept, "score", "area")
    final, played = ahead(kept, "played")
    sentence = (
        f"Score of GALA on the ring less that of A2C, in parts of the best run's, mean over games: {by_size(told)}. "
        f"Of final policies (the mean of the agents, most probable actions): {by_size(played)}."
    )
    alt = f"Learning curves of each game and number of environments. {sentence}"
    return Finding(together(told.values()), sentence, [training, final], learning(kept), alt)


def ahead(kept: Kept, value: str, *others: str) -> tuple[Table, dict[int, Estimate]]:
    """Return how all methods stand beside GALA on the ring by a value, with others shown, and GALA's lead on A2C by agents."""
    table = Table(("environments", "method", "runs", value, *others, "GALA (ring) − it", "P(GALA better)"))
    leads = {}
    for agents in kept.values("agents"):
        for method in kept.values("method"):
            found = [strata(kept, agents, [method], name)[0] for name in (value, *others)]
            if not found[0]:
                continue
            ours, theirs = strata(kept, agents, (GALA, method), value)
            d = p = Estimate(np.nan)
            if ours and method != GALA:
                d, p = compared(ours, theirs), stats.probability_of_improvement(ours, theirs)
            leads[method, agents] = d
            table.rows.append((16 * agents, kept.names[method], sum(map(len, found[0])), *map(stats.estimate, found), d, p))
    return table, {agents: leads.get((BASE, agents), Estimate(np.nan)) for agents in kept.values("agents")}


def by_size(differences: dict[int, Estimate]) -> str:
    return "; ".join(f"{16 * agents} environments {show(d)}" for agents, d in differences.items())


def learning(kept: Kept) -> Figure:
    """Draw the mean curve of each method, a panel for each game and number of environments."""
    games, sizes = kept.values("env"), kept.values("agents")
    figure, axes = panels(len(games) * len(sizes), 2.4, len(sizes))
    for ax, (env, agents) in zip(axes, [(env, agents) for env in games for agents in sizes]):
        for number, method in enumerate(kept.values("method")):
            curves = [kept.curves[key(run)] for run in kept.where(env=env, agents=agents, method=method)]
            if curves:
                scores = np.array([carried(curve[:, 2]) for curve in curves])
                there = np.isfinite(scores).all(axis=0)
                x, y = curves[0][there, 0] / 1e6, scores[:, there]
                low, high = stats.interval([y]) if len(y) > 1 else (y[0], y[0])
                style = line_style(number)
                ax.plot(x, y.mean(axis=0), label=kept.names[method], **style)
                ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        ax.set_title(f"{game(env)}, {16 * agents} environments", fontsize=9)
        ax.set(xlabel="steps (million)", ylabel="score")
    legend(figure, axes)
    return figure


def equal_hours(network: Kept, slow: Kept, kept: Kept) -> Finding:
    """(c) Score at equal hours: on one machine, with a slow rank, over a network."""
    table = Table(("environments", "where", "GALA, min", "A2C, min", "score of GALA − A2C then"))
    said = []
    ways = (kept, "one machine"), (slow, "a rank slower by 20 ms an update"), (network, "a network of 1 Gbit/s and 1 ms")
    for some, how in ways:
        for agents in some.values("agents"):
            pair: tuple[list, list] = [], []
            minutes: tuple[list, list] = [], []
            for env in some.values("env"):
                runs = [some.where(env=env, agents=agents, method=method) for method in (GALA, BASE)]
                if not all(runs):
                    continue
                end = min(float(np.median([run["hours"] for run in each])) for each in runs)
                for mine, time, each in zip(pair, minutes, runs):
                    values = [at_hour(some.curves[key(run)], end) / best(kept).get(env, np.nan) for run in each]
                    mine.append(np.array(values))
                    time += [60 * run["hours"] for run in each]
            kept_games = [np.isfinite(ours).all() and np.isfinite(theirs).all() for ours, theirs in zip(*pair)]
            ours, theirs = ([v for v, keep in zip(side, kept_games) if keep] for side in pair)
            if ours:
                d = compared(ours, theirs)
                table.rows.append((16 * agents, how, *(float(np.median(time)) for time in minutes), d))
                said.append((agents, how, d))
    words = "; ".join(f"{16 * a} environments, {how}: {show(d)}" for a, how, d in said)
    sentence = f"Score of GALA less that of A2C when the faster of both has ended, in parts of the best run's: {words}."
    return Finding(together(d for _, _, d in said), sentence, [table])


def at_hour(curve: np.ndarray, hour: float) -> float:
    """Return the score of the last twentieth that had ended by then; NaN: no episode had."""
    scores = carried(curve[:, 2])
    ended = np.flatnonzero(curve[:, 1] <= hour * (1 + 1e-9))
    return float(scores[ended[-1]]) if len(ended) else np.nan


def diversity(kept: Kept) -> Finding:
    """(d) Are the agents' gradients less alike than those of A2C's workers?"""
    table = Table(("environments", "method", "runs", "cosine"))
    differences = {}
    for agents in kept.values("agents"):
        for method in kept.values("method"):
            mine = strata(kept, agents, [method], "cosine")[0]
            if mine:
                table.rows.append((16 * agents, kept.names[method], sum(map(len, mine)), stats.estimate(mine)))
        differences[agents] = compared(*reversed(strata(kept, agents, (GALA, BASE), "cosine")))
    each = "; ".join(f"{agents} agents {show(d)}" for agents, d in differences.items())
    sentence = f"Cosine of two gradients, A2C's workers less GALA's agents on the ring: {each}."
    return Finding(together(differences.values()), sentence, [table])


def ball(rates: Kept, kept: Kept) -> Finding:
    """(e) The ε-ball."""
    gossip = [run for run in kept.runs if np.isfinite(run["ratio"])]
    largest = max((run["ratio"] for run in gossip), default=np.nan)
    table = Table(("environments", "method", "runs", "distance to the mean", "distance / bound, largest (%)"))
    for agents in kept.values("agents"):
        for method in kept.values("method"):
            runs = [run for run in gossip if (run["method"], run["agents"]) == (method, agents)]
            if runs:
                spread = stats.estimate(strata(kept, agents, [method], "distance")[0])
                table.rows.append((16 * agents, kept.names[method], len(runs), spread, 100 * max(r["ratio"] for r in runs)))
    slope = exponent(rates, kept)
    kind = OPEN if not gossip else SHOWN if largest <= ALARM and slope.low <= 1 <= slope.high else NOT_SHOWN
    sentence = (
        f"The largest distance was {100 * largest:.0f}% of its bound, over {len(gossip)} runs; over the learning rates that "
        f"were tried, the distance at the end goes as the rate to the power {show(slope)} (1: linear)."
    )
    return Finding(kind, sentence, [table])


def exponent(rates: Kept, kept: Kept) -> Estimate:
    """Return p of distance ∝ rate^p on 8 agents: least squares through the logarithms, mean over games."""
    both = Kept(kept.runs + rates.runs, {}, kept.names)
    ring = [method for method in both.values("method") if rate(method)[0] == GALA]
    games = [env for env in rates.values("env") if all(both.where(env=env, method=m, agents=8) for m in ring)]
    if len(ring) < 2 or not games:
        return Estimate(np.nan)
    x = np.log2([rate(method)[1] for method in ring])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    random, total, drawn = np.random.default_rng(0), 0.0, 0.0
    for env in games:
        values = [np.log2(finite(both.where(env=env, method=m, agents=8), "distance")) for m in ring]
        total += float(weights @ [v.mean() for v in values]) / len(games)
        drawn += weights @ np.array([stats.resample(v, random).mean(axis=1) for v in values]) / len(games)
    return Estimate(total, *map(float, stats.quantiles(drawn)))


def rates(kept: Kept, rates: Kept) -> Finding:
    """GALA and A2C at several learning rates each: which is ahead when neither is held back by its own?"""
    bases = GALA, "exponential", BASE
    of_rule = [run for run in kept.runs if run["agents"] == 8 and run["env"] in rates.values("env") and run["method"] in bases]
    both = Kept(of_rule + rates.runs, {}, kept.names)
    table = Table(("method", "times the rule's rate", "runs", *RANKED))
    tops = {}
    for base in bases:
        methods = [method for method in both.values("method") if rate(method)[0] == base]
        rows = {method: numbers(both, method) for method in sorted(methods, key=lambda method: rate(method)[1])}
        table.rows += [(kept.names[base], rate(method)[1], *row) for method, row in rows.items()]
        tops[base] = max(rows, key=lambda method: rows[method][1].value, default=base)
    d = compared(*strata(both, 8, (tops[GALA], tops[BASE])))
    each = " and ".join(f"{kept.names[base]} at {rate(tops[base])[1]:g} times the rule's rate" for base in (GALA, BASE))
    sentence = f"On 8 agents, each at the best of its rates ({each}), GALA's score less A2C's is {show(d)}."
    return Finding(verdict(d), sentence, [table], over_rates(table), f"Score of each over the learning rate. {sentence}")


def over_rates(table: Table) -> Figure:
    figure, axes = panels(1)
    for number, name in enumerate(dict.fromkeys(row[0] for row in table.rows)):
        x, scores = zip(*((times, score) for method, times, _, score, *_ in table.rows if method == name))
        bars = [[e.value - e.low for e in scores], [e.high - e.value for e in scores]]
        y = [e.value for e in scores]
        axes[0].errorbar(x, y, yerr=bars, label=name, marker=marker(number), **line_style(number))
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set(xlabel="learning rate (times the square-root rule's)", ylabel="score (of the best run's)")
    axes[0].set_ylim(bottom=0)
    legend(figure, axes)
    return figure


def rate(method: str) -> tuple[str, float]:
    """Return a method at the rule's learning rate, and how many times that its own is."""
    base, _, word = method.partition("-")
    return (base, TIMES[word]) if word in TIMES else (method, 1.0)


def ranked(kept: Kept) -> Table:
    """Return the numbers of each method on 8 agents."""
    methods = kept.values("method")
    return Table(("method", "runs", *RANKED), [(kept.names[method], *numbers(kept, method)) for method in methods])


def numbers(kept: Kept, method: str) -> tuple:
    """Return a method's runs on 8 agents, and the mean of each value of RANKED, in parts of the best run's."""
    found = [strata(kept, 8, [method], value)[0] for value in RANKED]
    return sum(map(len, found[0])), *(stats.estimate(mine) if mine else Estimate(np.nan) for mine in found)


def beyond(kept: Kept, more: Kept) -> Finding:
    """What is new beyond the paper."""
    games = more.values("env")
    runs = [run for run in kept.runs if run["agents"] == 8 and run["env"] in games] + more.runs
    table = ranked(Kept(runs, {}, kept.names))
    top = max(table.rows, key=lambda row: row[2].value)
    sentence = f"The highest score at equal steps is that of {top[0]}: {show(top[2])} of the best run's."
    return Finding("see the table", sentence, [table])


def atari(kept: Kept) -> Finding:
    """The real part: Atari games."""
    table = Table(("game", "environments", "method", "runs", "score in training", "played by arg max", "hours a run"))
    for env in kept.values("env"):
        for agents in kept.values("agents"):
            for method in kept.values("method"):
                runs = kept.where(env=env, agents=agents, method=method)
                if runs:
                    values = [stats.estimate([np.array([run[name] for run in runs])]) for name in ("score", "played")]
                    hours = float(np.median([run["hours"] for run in runs]))
                    table.rows.append((env, 16 * agents, kept.names[method], len(runs), *values, hours))
    few = "; ".join(f"{row[0]}, {row[1]} environments, {row[2]}: {show(row[4].value)}" for row in table.rows)
    return Finding("see the table", f"Mean score of the last tenth of training: {few}.", [table])


CLAIMS = (
    Claim(
        "convergent",
        "A2C breaks down as environments are added, GALA does not: more of its runs converge",
        convergent,
        ("minatar",),
    ),
    Claim("equal-steps", "GALA learns in fewer steps than A2C", equal_steps, ("minatar",)),
    Claim(
        "equal-hours",
        "GALA learns in less time than A2C, and neither a straggler nor a network holds it up",
        equal_hours,
        ("network", "straggler", "minatar"),
    ),
    Claim("diversity", "gradients of GALA's agents are less correlated than those of A2C's workers", diversity, ("minatar",)),
    Claim(
        "ball",
        "all agents stay within a ball whose radius is linear in the learning rate and grows with the graph's β",
        ball,
        ("rates", "minatar"),
    ),
    Claim("rates", "GALA learns in fewer steps than A2C, with the best learning rate of each", rates, ("minatar", "rates")),
    Claim(
        "beyond",
        "beyond the paper: other graphs, periodic averages with and without an outer step, PPO under gossip",
        beyond,
        ("minatar", "beyond"),
    ),
    Claim("atari", "the same on Atari games", atari, ("atari",)),
)
