"""What the paper claims, and what the runs in results/ say of it: numbers, figures and a verdict for each claim.

A run of results/ is a row of numbers (digest.py has their definitions) and twenty points of its curve. Runs are compared within
a game and a number of environments, at equal steps. Scores of several games are divided by that of the best run of the game, by
whatever method. Intervals are of 95%, over runs (seeds) within games, by the stratified bootstrap; of shares Wilson's.

A claim that one is better than the other is *shown* where the whole interval of the difference is above 0, *opposite* where it
is below, and *not shown* else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

import checkout  # noqa: F401
import published
import stats
from claim_figures import distances, learning, over_rates, over_sizes, over_time, ranking
from consensus import ALARM
from kept import Kept, at_hours, best, finite, game, strata, timed
from stats import Estimate
from tables import Table, show

SHOWN, SOME, NOT_SHOWN, OPPOSITE, OPEN = "shown", "shown for some", "not shown", "opposite", "not tried"
GALA, BASE = "ring", "a2c"  # the claims are of these
RANKED = "score", "area", "played"
ENOUGH = 0.5  # of the best run's score: a run that reaches it converges
TIMES = {"half": 0.5, "twice": 2.0, "fourfold": 4.0, "eightfold": 8.0}  # the learning rate, by the ends of methods' names


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
    figure = over_sizes(shares, kept, "share of runs that converge")
    alt = f"Share of convergent runs over the number of environments, a line a method. {sentence}"
    return Finding(verdict(d), sentence, [table, thresholds(limits)], figure, alt)


def percent(share: Estimate | None) -> str:
    return "–" if share is None else f"{100 * share.value:.0f}% [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def thresholds(limits: dict[str, float]) -> Table:
    return Table(("game", "score of a convergent run"), [(game(env), limit) for env, limit in limits.items()])


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


def equal_hours(network: Kept, slow: Kept, kept: Kept) -> Finding:
    """(c) Score at equal hours: on one machine, with a slow rank, over a network."""
    table = Table(("environments", "where", "GALA, min", "A2C, min", "score of GALA − A2C then"))
    races, leads = [], {}
    ways = (kept, "one machine"), (slow, "a rank slower by 20 ms an update"), (network, "a network of 1 Gbit/s and 1 ms")
    for some, how in ways:
        for agents in some.values("agents"):
            scored = [(each, at_the_end(each)) for each in timed(some, agents, (GALA, BASE), best(kept))]
            scored = [(each, scores) for each, scores in scored if np.isfinite(np.concatenate([*scores.values()])).all()]
            if scored:
                place, games = f"{16 * agents} environments, {how}", [each for each, _ in scored]
                leads[place] = compared(*([scores[method] for _, scores in scored] for method in (GALA, BASE)))
                minutes = (60 * np.median([hours for each in games for hours, _ in each[m]]) for m in (GALA, BASE))
                table.rows.append((16 * agents, how, *map(float, minutes), leads[place]))
                races.append((place, games))
    words = "; ".join(f"{place}: {show(d)}" for place, d in leads.items())
    sentence = f"Score of GALA less that of A2C when the faster of both has ended, in parts of the best run's: {words}."
    figure = over_time(races, kept.names) if races else None
    alt = f"Scores of GALA on the ring and of A2C over minutes, mean over games. {sentence}"
    return Finding(together(leads.values()), sentence, [table], figure, alt)


def at_the_end(runs: dict[str, list[tuple[float, np.ndarray]]]) -> dict[str, np.ndarray]:
    """Return of each method its runs' scores when the faster method has ended (the median of its runs); NaN: none by then.

    Args:
        runs: of a game, as `timed` gives them.
    """
    end = min(float(np.median([hours for hours, _ in each])) for each in runs.values())
    return {method: np.array([at_hours(curve, end) for _, curve in each]) for method, each in runs.items()}


def diversity(kept: Kept) -> Finding:
    """(d) Are the agents' gradients less alike than those of A2C's workers?"""
    table = Table(("environments", "method", "runs", "cosine"))
    found, differences = {}, {}
    for agents in kept.values("agents"):
        for method in kept.values("method"):
            mine = strata(kept, agents, [method], "cosine")[0]
            if mine:
                found[method, agents] = stats.estimate(mine)
                table.rows.append((16 * agents, kept.names[method], sum(map(len, mine)), found[method, agents]))
        differences[agents] = compared(*reversed(strata(kept, agents, (GALA, BASE), "cosine")))
    each = "; ".join(f"{agents} agents {show(d)}" for agents, d in differences.items())
    sentence = f"Cosine of two gradients, A2C's workers less GALA's agents on the ring: {each}."
    figure = over_sizes(found, kept, "cosine of two agents' gradients") if found else None
    alt = f"Cosine of two agents' gradients over the number of environments, a line a method. {sentence}"
    return Finding(together(differences.values()), sentence, [table], figure, alt)


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
    by_rate = over_ring(rates, kept)
    slope = exponent(by_rate)
    kind = OPEN if not gossip else SHOWN if largest <= ALARM and slope.low <= 1 <= slope.high else NOT_SHOWN
    sentence = (
        f"The largest distance was {100 * largest:.0f}% of its bound, over {len(gossip)} runs; over the learning rates that "
        f"were tried, the distance at the end goes as the rate to the power {show(slope)} (1: linear)."
    )
    figure = distances(by_rate) if by_rate else None
    alt = f"Distance of agents on the ring to their mean over the learning rate, a line a game. {sentence}"
    return Finding(kind, sentence, [table], figure, alt)


def over_ring(rates: Kept, kept: Kept) -> dict[str, dict[float, np.ndarray]]:
    """Return the distances of 8 agents on the ring to their mean, of each game that has runs at all rates, by the rate (times
    the rule's); none where there is one rate."""
    both = Kept(kept.runs + rates.runs, {}, kept.names)
    ring = sorted((rate(method)[1], method) for method in both.values("method") if rate(method)[0] == GALA)
    found = {
        env: {x: np.array(finite(both.where(env=env, method=method, agents=8), "distance")) for x, method in ring}
        for env in rates.values("env")
    }
    return {env: values for env, values in found.items() if len(ring) > 1 and all(map(len, values.values()))}


def exponent(by_rate: dict[str, dict[float, np.ndarray]]) -> Estimate:
    """Return p of distance ∝ rate^p: least squares through the logarithms, mean over games."""
    if not by_rate:
        return Estimate(np.nan)
    random, total, drawn = np.random.default_rng(0), 0.0, 0.0
    for runs in by_rate.values():
        x, values = np.log2([*runs]), [np.log2(v) for v in runs.values()]
        weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
        total += float(weights @ [v.mean() for v in values]) / len(by_rate)
        drawn += weights @ np.array([stats.resample(v, random).mean(axis=1) for v in values]) / len(by_rate)
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
    return Finding("see the table", sentence, [table], ranking(table), f"Score of each method on 8 agents. {sentence}")


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
    sentence = f"Mean score of the last tenth of training: {few}. Below, published scores with their protocols."
    alt = f"Learning curves of each game and number of environments. {sentence}"
    return Finding("see the table", sentence, [table, landmarks(kept.values("env"))], learning(kept), alt)


def landmarks(games: list[str]) -> Table:
    """Return published scores of some games. Budgets and protocols differ: they are no competitors."""
    table = Table(("published", *games, "steps (million)", "environments", "protocol", "source"))
    for r in published.load():
        trained = (r.steps and r.steps / 1e6, r.environments, r.protocol, r.source)
        table.rows.append((r.method, *map(r.words, games), *trained))
    return table


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
